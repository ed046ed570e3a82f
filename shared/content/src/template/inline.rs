//! Styles: mail programs drop `<style>`, so its rules are written into the elements that they match.
//!
//! This is the most expensive step of a rendering, and it cannot be interrupted. So its input is limited by its cost:
//! each rule is compared with each element.

use std::{sync::LazyLock, thread};

use css_inline::CSSInliner;

use super::TemplateError;

/// Elements times selectors.
const WORK_MAX: usize = 1_000_000;
/// Largest style sheets together.
const STYLE_BYTES_MAX: usize = 64 * 1024;
/// Elements in each other.
const DEPTH_MAX: usize = 256;
/// Enough for the deepest page that is accepted.
const STACK_BYTES: usize = 8 * 1024 * 1024;

static INLINER: LazyLock<CSSInliner<'static>> = LazyLock::new(|| {
    // Rules that depend on the screen cannot be written into an element, so they stay.
    CSSInliner::options().load_remote_stylesheets(false).keep_at_rules(true).build()
});

/// Writes style sheets into the elements that they match. HTML without a style sheet is returned unchanged.
pub(super) fn styles(html: String) -> Result<String, TemplateError> {
    let too_large = |what: &str| {
        TemplateError::TooLarge(format!("its HTML is too large to have its styles written into it: {what}"))
    };
    let lower = html.to_ascii_lowercase();
    let Some(shape) = Shape::of(&lower) else { return Ok(html) };
    if shape.style_bytes > STYLE_BYTES_MAX {
        return Err(too_large("more than 64 KiB of styles"));
    }
    if shape.elements.saturating_mul(shape.selectors) > WORK_MAX {
        return Err(too_large("too many elements for so many rules"));
    }
    if shape.depth > DEPTH_MAX {
        return Err(too_large("elements nest too deep"));
    }
    let inlined = thread::scope(|scope| {
        let running = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || INLINER.inline(&html));
        running.ok().and_then(|running| running.join().ok())
    });
    match inlined {
        Some(Ok(inlined)) => Ok(inlined),
        Some(Err(error)) => Err(TemplateError::Source(format!("its styles cannot be read: {error}"))),
        None => Err(TemplateError::Source("its styles cannot be read".to_owned())),
    }
}

/// The cost of inlining.
#[derive(Default)]
struct Shape {
    style_bytes: usize,
    selectors: usize,
    elements: usize,
    depth: usize,
}

impl Shape {
    /// `None`: there is no style sheet. An element that is never closed counts as the parent of all that follows.
    fn of(lower: &str) -> Option<Self> {
        let mut shape = Self::default();
        let mut styles = lower.split("<style").skip(1).peekable();
        styles.peek()?;
        for style in styles {
            let style = style.split("</style").next().unwrap_or_default();
            shape.style_bytes += style.len();
            shape.selectors += style.matches(['{', ',']).count() + 1;
        }
        let mut open = 0_usize;
        for tag in lower.split('<').skip(1) {
            match tag.bytes().next() {
                Some(b'/') => open = open.saturating_sub(1),
                Some(byte) if byte.is_ascii_alphabetic() => {
                    shape.elements += 1;
                    open += usize::from(!is_void(tag));
                    shape.depth = shape.depth.max(open);
                }
                _ => {}
            }
        }
        Some(shape)
    }
}

/// Elements without an end tag, and those whose end tag is often left out.
fn is_void(tag: &str) -> bool {
    let name = tag.split(|char: char| !char.is_ascii_alphanumeric()).next().unwrap_or_default();
    ["area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr", "p", "li", "td", "tr", "th"]
        .contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_into_elements_and_those_for_screens_stay() {
        let html = "<html><head><style>p{color:red} @media (max-width:9px){p{color:blue}}</style></head><body><p>x</p></body></html>";
        let inlined = styles(html.to_owned()).unwrap();
        assert!(inlined.contains("<p style=\"color: red;\">x</p>") && inlined.contains("@media"), "{inlined}");
    }

    #[test]
    fn html_without_styles_stays_byte_for_byte() {
        for html in ["<P CLASS=a>x<br>y", "", "<p style='color:red'>x</p>", "no <b>styles"] {
            assert_eq!(styles(html.to_owned()).unwrap(), html);
        }
    }

    #[test]
    fn what_would_take_long_is_refused() {
        for html in [
            format!("<style>{}</style>{}", "p{color:red}".repeat(2000), "<p>x</p>".repeat(2000)),
            format!("<style>{}</style>", "p{color:red}".repeat(10_000)),
            format!("<style>p{{color:red}}</style>{}", "<div>".repeat(10_000)),
        ] {
            assert!(matches!(styles(html), Err(TemplateError::TooLarge(_))));
        }
    }

    #[test]
    fn the_worst_that_is_let_through_is_quick() {
        let is_quick = || {
            let begun = std::time::Instant::now();
            let deep = format!("<style>{} x{{color:red}}</style>{}", "div ".repeat(200), "<div>".repeat(250));
            assert!(styles(deep).is_ok());
            let wide = format!("<style>{}</style>{}", "p{color:red}".repeat(900), "<p>x</p>".repeat(1000));
            assert!(styles(wide).is_ok());
            let untidy = format!("<style>p{{color:red}}</style>{}", "<p><td><li>".repeat(100_000));
            assert!(styles(untidy).is_ok());
            begun.elapsed() < std::time::Duration::from_secs(20)
        };
        // The machine may stall once, but not every time.
        assert!((0..3).any(|_| is_quick()));
    }
}
