//! Tracking of mails: a pixel reports that a mail was opened, links report clicks. It changes only HTML, and only for the
//! categories that the settings name.

use std::panic::{AssertUnwindSafe, catch_unwind};

use connectors::provider_events::tracking::{CLICK_PATH, Key, OPEN_PATH, is_followable};
use domain::{DeliveryId, contract::submission::Content};
use runtime::config::{Config, TrackConfig};
use store::Store;
use tokio::{sync::OnceCell, task::spawn_blocking};
use url::Url;

/// Elements whose content is text, not markup.
const RAW_TEXT_ELEMENTS: [&str; 5] = ["script", "style", "textarea", "title", "xmp"];
/// A link that contains this word is not tracked, because unsubscribing must work without Posthaste.
const UNSUBSCRIBE_WORD: &str = "unsubscribe";

/// Longest target that is replaced, in bytes: no browser follows much longer ones, and each is encrypted into its link.
const TARGET_BYTES_MAX: usize = 8 * 1024;
/// Longest name of a character reference (HTML, section 13.5); a search for its end goes no further.
const REFERENCE_BYTES_MAX: usize = 32;

/// Makes mails tracked.
pub struct Tracking {
    rules: TrackConfig,
    public_url: Url,
    store: Store,
    key: OnceCell<Key>,
}

impl Tracking {
    /// As the settings have it; `None`: nothing is tracked.
    pub fn of(config: &Config, store: &Store) -> Option<Self> {
        let (rules, public_url) = (config.track.clone(), config.http.public_url.clone());
        rules.is_on().then(|| Self { rules, public_url, store: store.clone(), key: OnceCell::new() })
    }

    /// Puts pixel and links into the HTML of a mail, if its category asks for them. `None`: this process ends, and the mail must
    /// not go out.
    pub async fn apply(&self, delivery: DeliveryId, content: &mut Content) -> Option<()> {
        let category = content.category.as_deref();
        let (opens, clicks) = (self.rules.opens.have(category), self.rules.clicks.have(category));
        let Some(html) = content.html.take_if(|html| !html.is_empty() && (opens || clicks)) else { return Some(()) };
        // Without the key the mail is sent untracked.
        let key = match self.key.get_or_try_init(|| Key::load(&self.store)).await {
            Ok(key) => key.clone(),
            Err(error) => {
                content.html = Some(html);
                tracing::warn!(%error, "a mail goes out untracked");
                return Some(());
            }
        };
        let links = TrackingLinks { key, public_url: self.public_url.to_string(), delivery, opens, clicks };
        // A long page takes milliseconds, which would delay the other tasks of this thread.
        content.html = Some(spawn_blocking(move || rewrite_or_keep(html, |html| links.insert_into(html))).await.ok()?);
        Some(())
    }
}

/// Rewrites `html`, and returns it unchanged if `rewrite` panics.
fn rewrite_or_keep(html: String, rewrite: impl FnOnce(&str) -> String) -> String {
    catch_unwind(AssertUnwindSafe(|| rewrite(&html))).unwrap_or_else(|_panic| {
        tracing::error!("the links of a mail could not be replaced, it goes out untracked");
        html
    })
}

/// The tracking links of one mail.
struct TrackingLinks {
    key: Key,
    public_url: String,
    delivery: DeliveryId,
    opens: bool,
    clicks: bool,
}

impl TrackingLinks {
    fn insert_into(&self, html: &str) -> String {
        let pixel = self.opens.then(|| {
            let url = format!("{}{OPEN_PATH}{}", self.public_url, self.key.open(self.delivery));
            format!("<img src=\"{url}\" width=\"1\" height=\"1\" alt=\"\" style=\"border:0\">")
        });
        let own = format!("{}t/", self.public_url);
        let link = |target: &str| {
            let is_ours = target.starts_with(&own) || target.to_ascii_lowercase().contains(UNSUBSCRIBE_WORD);
            (self.clicks && !is_ours && is_followable(target))
                .then(|| format!("{}{CLICK_PATH}{}", self.public_url, self.key.click(self.delivery, target)))
        };
        rewrite(html, pixel.as_deref(), link)
    }
}

/// `html` with each target of a link that `link` replaces, and `pixel` at the end of its body.
fn rewrite(html: &str, pixel: Option<&str>, link: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(html.len() * 2);
    let (mut rest, mut body_end) = (html, None);
    while let Some((before, found)) = split_at_tag(rest) {
        out.push_str(before);
        let length = if found.starts_with("<!--") {
            end_of(found, "-->")
        } else if starts_with_word(found, "</body") {
            body_end = Some(out.len());
            end_of(found, ">")
        } else if let Some(name) =
            RAW_TEXT_ELEMENTS.iter().find(|name| starts_with_word(found.get(1..).unwrap_or_default(), name))
        {
            let close = format!("</{name}");
            let end =
                found.char_indices().find(|(at, _)| starts_with_word(found.get(*at..).unwrap_or_default(), &close));
            end.map_or(found.len(), |(at, _)| at)
        } else if starts_with_word(found, "<a") || starts_with_word(found, "<area") {
            let (tag, length) = anchor(found, &link);
            out.push_str(&tag);
            rest = found.get(length..).unwrap_or_default();
            continue;
        } else {
            1
        };
        out.push_str(found.get(..length).unwrap_or(found));
        rest = found.get(length..).unwrap_or_default();
    }
    out.push_str(rest);
    if let Some(pixel) = pixel {
        out.insert_str(body_end.unwrap_or(out.len()), pixel);
    }
    out
}

/// Splits before the next `<`.
fn split_at_tag(text: &str) -> Option<(&str, &str)> {
    text.split_at_checked(text.find('<')?)
}

/// The bytes up to and with `mark`, or all.
fn end_of(text: &str, mark: &str) -> usize {
    text.find(mark).map_or(text.len(), |at| at + mark.len())
}

/// Whether a text begins with a word in whatever case, and the word ends there.
fn starts_with_word(text: &str, word: &str) -> bool {
    let begins = text.as_bytes().get(..word.len()).is_some_and(|head| head.eq_ignore_ascii_case(word.as_bytes()));
    let after = text.as_bytes().get(word.len());
    begins && after.is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-')
}

/// The tag of an anchor with its target replaced, and how long it was.
fn anchor(text: &str, link: &impl Fn(&str) -> Option<String>) -> (String, usize) {
    let name_end = text.find(|c: char| c != '<' && !c.is_ascii_alphanumeric()).unwrap_or(text.len());
    let (mut out, mut rest) = text.split_at_checked(name_end).map_or((String::new(), text), |(a, b)| (a.to_owned(), b));
    let mut is_found = false;
    loop {
        let space = rest.find(|c: char| !c.is_ascii_whitespace() && c != '/').unwrap_or(rest.len());
        out.push_str(take(&mut rest, space));
        if rest.is_empty() || rest.starts_with('>') {
            out.push_str(take(&mut rest, 1));
            return (out, text.len() - rest.len());
        }
        let ends = |c: char| c.is_ascii_whitespace() || matches!(c, '=' | '>' | '/');
        let end = rest.find(ends).unwrap_or(rest.len()).max(1);
        let name = take(&mut rest, end);
        out.push_str(name);
        let gap = rest.find(|c: char| !c.is_ascii_whitespace()).unwrap_or(rest.len());
        if !rest.get(gap..).is_some_and(|after| after.starts_with('=')) {
            continue;
        }
        let equals = gap + 1;
        let after = rest.get(equals..).unwrap_or_default();
        let space = after.find(|c: char| !c.is_ascii_whitespace()).unwrap_or(after.len());
        out.push_str(take(&mut rest, equals + space));
        let raw = match rest.chars().next() {
            // An end that never comes takes the rest.
            Some(quote @ ('"' | '\'')) => {
                let inside = rest.get(1..).unwrap_or_default();
                take(&mut rest, inside.find(quote).map_or(usize::MAX, |at| at + 2))
            }
            _ => {
                let end = rest.find(|c: char| c.is_ascii_whitespace() || c == '>').unwrap_or(rest.len());
                take(&mut rest, end)
            }
        };
        // Of several the first one counts.
        let is_target = name.eq_ignore_ascii_case("href") && !is_found;
        is_found |= is_target;
        let value = match raw.chars().next() {
            Some(quote @ ('"' | '\'')) => raw.get(1..).and_then(|rest| rest.strip_suffix(quote)),
            _ => Some(raw),
        };
        let target = value.filter(|value| is_target && value.len() <= TARGET_BYTES_MAX).and_then(decoded);
        match target.and_then(|target| link(target.trim())) {
            Some(url) => {
                let quote = if raw.starts_with('\'') { '\'' } else { '"' };
                out.extend([quote.to_string(), url, quote.to_string()]);
            }
            None => out.push_str(raw),
        }
    }
}

/// Takes so many bytes from the front.
fn take<'a>(rest: &mut &'a str, length: usize) -> &'a str {
    let (taken, left) = rest.split_at_checked(length.min(rest.len())).unwrap_or((rest, ""));
    *rest = left;
    taken
}

/// The value of an attribute without its character references; `None`: there is one that is not known here.
fn decoded(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('&') {
        out.push_str(take(&mut rest, at));
        let Some(length) = reference_length(rest) else {
            // An ampersand that was not written as a reference, as in most links.
            out.push_str(take(&mut rest, 1));
            continue;
        };
        let reference = take(&mut rest, length);
        out.push(match reference {
            "&amp;" | "&AMP;" => '&',
            "&quot;" => '"',
            "&apos;" => '\'',
            "&lt;" => '<',
            "&gt;" => '>',
            _ => {
                let digits = reference.strip_prefix("&#")?.strip_suffix(';')?;
                let hex = digits.strip_prefix(['x', 'X']);
                char::from_u32(hex.map_or_else(|| digits.parse(), |hex| u32::from_str_radix(hex, 16)).ok()?)?
            }
        });
    }
    out.push_str(rest);
    Some(out)
}

/// The length of the character reference that `text` begins with, ampersand and semicolon included.
fn reference_length(text: &str) -> Option<usize> {
    let name = text.bytes().skip(1).take(REFERENCE_BYTES_MAX);
    let length = name.take_while(|byte| *byte == b'#' || byte.is_ascii_alphanumeric()).count();
    (length > 0 && text.as_bytes().get(length + 1) == Some(&b';')).then_some(length + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clicks(html: &str) -> String {
        let link = |target: &str| is_followable(target).then(|| format!("T[{target}]"));
        rewrite(html, None, link)
    }

    #[test]
    fn targets_of_links_are_replaced_however_they_are_written() {
        for (html, wanted) in [
            (r#"<a href="https://a.example/?b=1&amp;c=2">x</a>"#, r#"<a href="T[https://a.example/?b=1&c=2]">x</a>"#),
            (r#"<A  HREF = 'http://a.example' class=b>x</A>"#, r#"<A  HREF = 'T[http://a.example]' class=b>x</A>"#),
            ("<a href=https://a.example/b>x</a>", r#"<a href="T[https://a.example/b]">x</a>"#),
            (r#"<a title="a > b" href="https://a.example">"#, r#"<a title="a > b" href="T[https://a.example]">"#),
            (r#"<a href=" https://a.example ">"#, r#"<a href="T[https://a.example]">"#),
            (r#"<a href="https://a.example/?b=1&c=2">"#, r#"<a href="T[https://a.example/?b=1&c=2]">"#),
            (r#"<a href="https://a.example/&#38;&#x26;">"#, r#"<a href="T[https://a.example/&&]">"#),
            ("<a\nhref=\"https://a.example\"\n>", "<a\nhref=\"T[https://a.example]\"\n>"),
            (r#"<a href="https://a.example/?a&&amp;b&c">"#, r#"<a href="T[https://a.example/?a&&b&c]">"#),
            (r#"<area href="https://a.example"/>"#, r#"<area href="T[https://a.example]"/>"#),
            (r#"<a href="https://ä.example/ö">ü</a>"#, r#"<a href="T[https://ä.example/ö]">ü</a>"#),
            (
                r#"<a href="https://a.example" href="https://b.example">"#,
                r#"<a href="T[https://a.example]" href="https://b.example">"#,
            ),
        ] {
            assert_eq!(clicks(html), wanted);
        }
    }

    #[test]
    fn a_mail_keeps_its_html_where_rewriting_it_fails() {
        let html = "<a href=\"https://a.example\">x</a>";
        assert_eq!(rewrite_or_keep(html.to_owned(), |_| panic!("a fault")), html);
        assert_eq!(rewrite_or_keep(html.to_owned(), str::to_uppercase), html.to_uppercase());
    }

    #[test]
    fn everything_else_stays_byte_for_byte() {
        for html in [
            "",
            "plain < text & more",
            "<",
            "<a",
            "<a ",
            "<a href",
            "<a href=",
            "<a href=\"",
            "<a href=\"mailto:ada@example.com\">",
            "<a href=\"tel:+49\"><a href=\"#top\"><a href=\"/x\"><a href=\"javascript:x()\"><a href='{{x}}'>",
            "<abbr href=\"https://a.example\"><link href=\"https://a.example\"><img src=\"https://a.example\">",
            "<a data-href=\"https://a.example\" name='b' disabled>",
            "<a href=\"https://a.example/&hellip;\">",
            "<!-- <a href=\"https://a.example\"> --><!--",
            "<script>'<a href=\"https://a.example\">'</script><style>a:after{content:'<a href=https://a.example>'}</style>",
            "<SCRIPT><a href=\"https://a.example\">",
            "<a-b href=\"https://a.example\">",
            "ä<ü<a ö>\u{2028}</a>",
        ] {
            assert_eq!(clicks(html), html);
        }
    }

    #[test]
    fn the_pixel_stands_at_the_end_of_the_body() {
        let opens = |html: &str| rewrite(html, Some("P"), |_| None);
        assert_eq!(opens("<html><body>x</body></html>"), "<html><body>xP</body></html>");
        assert_eq!(opens("<BODY>x</BODY >"), "<BODY>xP</BODY >");
        assert_eq!(opens("<p>x</p>"), "<p>x</p>P");
        assert_eq!(opens("<body>x</body><!-- </body> -->"), "<body>xP</body><!-- </body> -->");
    }

    #[test]
    fn a_target_that_is_too_long_stays_as_it_is() {
        let page = |length: usize| format!("<a href=\"{}\">", "x".repeat(length));
        let replaced = |length: usize| rewrite(&page(length), None, |_| Some("T".to_owned()));
        assert_eq!(replaced(TARGET_BYTES_MAX), "<a href=\"T\">");
        assert_eq!(replaced(TARGET_BYTES_MAX + 1), page(TARGET_BYTES_MAX + 1));
    }

    #[test]
    fn a_hostile_page_takes_no_longer_than_its_length_allows() {
        let ampersands = format!("<a href=\"{}\">", "&".repeat(1024 * 1024));
        let names = format!("<a href=\"{}\">", "&a".repeat(512 * 1024));
        let many = format!("<a href=\"{}\">", "&".repeat(8000)).repeat(130);
        let units = ["<a href=\"", "<", "<script>", "<a ", "&", "<!--", "</body", "<a href=&"];
        let pages = units.map(|unit| unit.repeat(1024 * 1024 / unit.len()));
        for html in pages.into_iter().chain([ampersands, names, many]) {
            let is_quick = || {
                let started = std::time::Instant::now();
                assert!(rewrite(&html, Some("P"), |_| None).len() >= html.len());
                started.elapsed() < std::time::Duration::from_secs(10)
            };
            // Milliseconds where it is compiled for speed, minutes where each step went through the rest of the page. The machine
            // may stand still once, but not every time.
            assert!((0..3).any(|_| is_quick()), "{}", html.get(..20).unwrap());
        }
    }
}
