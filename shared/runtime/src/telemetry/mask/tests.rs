use std::io::Write;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const MASKS: [&str; 4] = ["***@***", "+***", "[card]", "[iban]"];

#[test]
fn people_are_taken_out_wherever_they_stand() {
    for (line, wanted) in [
        ("mail to ada@example.com, please", "mail to ***@***, please"),
        ("ada.l+tag@mail.example.co.uk.", "***@***."),
        ("<ada@example.com>", "<***@***>"),
        ("to=ada@example.com}", "to=***@***}"),
        ("ädä@exämple.de", "***@***"),
        ("ada@[127.0.0.1]:25", "***@***:25"),
        ("root@localhost", "***@***"),
        ("GET /api/users/ada%40example.com?x=1", "GET /api/users/***@***?x=1"),
        (r#"{"m":"first\nada@example.com"}"#, r#"{"m":"first\n***@***"}"#),
        (r#"{"m":"\u001bada@example.com"}"#, r#"{"m":"\u001b***@***"}"#),
        ("491701234567@c.us", "***@***"),
        ("+491701234567@c.us", "***@***"),
        ("+49 170 1234567@c.us", "***@***"),
        ("ada+4917012345@example.com", "***@***"),
        ("4111111111111111@example.com", "***@***"),
        ("tel:+491701234567;", "tel:+***;"),
        ("+1 (415) 555-0100 rang", "+*** rang"),
        ("/phones/%2B491701234567/x", "/phones/+***/x"),
        ("+1234567", "+***"),
        ("card 4111 1111 1111 1111 12/26", "card [card] 12/26"),
        ("4111-1111-1111-1111", "[card]"),
        ("378282246310005", "[card]"),
        ("3782 822463 10005", "[card]"),
        ("n=5555555555554444,", "n=[card],"),
        ("card-4111111111111111", "card-[card]"),
        (r#""\n4111111111111111""#, r#""\n[card]""#),
        (r#""\u001b4111111111111111""#, r#""\u001b[card]""#),
        ("DE89370400440532013000", "[iban]"),
        ("de89370400440532013000", "[iban]"),
        ("IBAN DE89 3704 0044 0532 0130 00 paid", "IBAN [iban] paid"),
        ("GB29NWBK60161331926819.", "[iban]."),
        ("BE71096123456769", "[iban]"),
        (r#""\nGB29 NWBK 6016 1331 9268 19""#, r#""\n[iban]""#),
    ] {
        assert_eq!(masked(line), wanted, "{line}");
        assert_eq!(masked(wanted), wanted, "masking again changes nothing");
    }
}

#[test]
fn what_is_ours_stays() {
    for line in [
        "2026-11-20T16:26:07.123456789Z",
        "2026-01-31T09:00:00+01:00",
        "2026-01-31 09:00:00 +0100",
        "took 12.345678901234567 s, 0.000041111111111111111",
        "at_ms=1763655967005 at_us=1763655967000003 at_ns=1763655967000000008",
        "127.0.0.1:5672 [::1]:8080",
        "01234567-1234-7234-8234-123456789012",
        "abcdefab-1234-7234-8234-1234567abcde",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "be12345678901234 posthaste.work.webhook.normal v0.1.0",
        "@ at the start, a+b, 1+2, x @ y, +123456",
        "4111111111111112 is no card, and 41111111111111110000000 neither",
        "DE89370400440532013001 is no IBAN",
        "t019b0f1e2d3c7a4b8c9d0e1f2a3b4c5d",
    ] {
        assert_eq!(masked(line), line);
        assert!(matches!(mask(line.as_bytes()), Cow::Borrowed(_)), "nothing is copied: {line}");
    }
}

#[test]
fn a_writer_reports_the_whole_line_as_written() {
    let mut writer = Masking(Vec::new());
    let line = b"from ada@example.com\n";
    assert_eq!(writer.write(line).unwrap(), line.len());
    writer.flush().unwrap();
    assert_eq!(writer.0, b"from ***@***\n");
}

#[test]
fn a_line_of_usual_length_is_read_in_microseconds() {
    let line = "{\"service\":\"ingest\",\"timestamp\":\"2026-11-20T16:26:07.123456Z\",\"level\":\"INFO\",\"message\":\"attempt made\",\
        \"delivery\":\"0191d8a0-0000-7000-8000-000000000001\",\"duration_ms\":12,\"target\":\"worker::attempt\"}\n";
    let hundred = || {
        let start = std::time::Instant::now();
        for _ in 0..100 {
            assert!(matches!(mask(std::hint::black_box(line.as_bytes())), Cow::Borrowed(_)));
        }
        start.elapsed()
    };
    // A debug build on a busy machine needs about 10 µs a line. The machine may stall in some hundreds, but not in
    // each.
    let quickest = (0..20).map(|_| hundred()).min().unwrap();
    assert!(quickest < std::time::Duration::from_millis(50), "{quickest:?} for 100 lines");
}

/// The check digit that makes `digits` a card number.
fn with_luhn(digits: &str) -> String {
    (0..10).map(|check| format!("{digits}{check}")).find(|card| is_luhn(card.as_bytes().iter())).unwrap()
}

fn with_mod_97(country: &str, account: &str) -> String {
    (2..99).map(|check| format!("{country}{check:02}{account}")).find(|iban| is_mod_97(iban.as_bytes().iter())).unwrap()
}

/// The text around a value in a line.
fn around() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop_oneof![
        Just((" ", " ")),
        Just(("\"", "\"")),
        Just(("(", ")")),
        Just(("=", ",")),
        Just((":", ";")),
        Just(("", "")),
        Just(("<", ">")),
        Just(("\\n", "\\n")),
    ]
}

fn masked_between((before, after): (&str, &str), value: &str) -> String {
    let line = masked(&format!("some text{before}{value}{after}more text"));
    assert!(line.starts_with("some text") || before.is_empty(), "{line}");
    line
}

proptest! {
    #[test]
    fn no_address_stays(around in around(), local in "[a-z][a-z0-9]{3,12}([._+-][a-z0-9]{4,8})?", domain in "[a-z]{4,10}(\\.[a-z]{4,8})?\\.[a-z]{2,6}") {
        let line = masked_between(around, &format!("{local}@{domain}"));
        prop_assert!(!line.contains(&local) && !line.contains(&domain), "{}", line);
        prop_assert!(line.contains("***@***"));
    }

    #[test]
    fn no_phone_number_stays(around in around(), digits in "[1-9][0-9]{6,14}", gap in 2_usize..6, sign in "[ .-]") {
        let line = masked_between(around, &format!("+{digits}"));
        prop_assert!(!line.contains(&digits), "{}", line);
        let (head, tail) = digits.split_at(gap);
        let line = masked_between(around, &format!("+{head}{sign}{tail}"));
        prop_assert!(!line.contains(head) && !line.contains(tail), "{}", line);
    }

    #[test]
    fn no_card_number_stays(around in around().prop_filter("a word goes on", |(before, after)| !before.is_empty() && !after.is_empty()), digits in "[2-9][0-9]{11,17}") {
        let card = with_luhn(&digits);
        let line = masked_between(around, &card);
        prop_assert!(line.contains("[card]") && !line.contains(&card), "{}", line);
    }

    #[test]
    fn no_card_number_in_groups_stays(digits in "[2-9][0-9]{14}", sign in "[ -]") {
        let card = with_luhn(&digits);
        let grouped: Vec<&str> = [0, 4, 8, 12].iter().map(|at| &card[*at..at + 4]).collect();
        let line = masked_between((" ", ","), &grouped.join(&sign));
        prop_assert_eq!(line, "some text [card],more text");
    }

    #[test]
    fn no_iban_stays(country in "[A-Z]{2}", account in "[A-Z0-9]{11,30}") {
        let iban = with_mod_97(&country, &account);
        prop_assert_eq!(masked_between((" ", "."), &iban), "some text [iban].more text");
        let groups: Vec<String> = iban.as_bytes().chunks(4).map(|group| String::from_utf8_lossy(group).into_owned()).collect();
        let line = masked_between((" ", "."), &groups.join(" "));
        prop_assert!(line.contains("[iban]") && !line.contains(&iban[4..12]), "{}", line);
    }

    #[test]
    fn ids_times_and_numbers_stay(uuid in any::<u128>(), trace in "[0-9a-f]{31}[a-f]", span in "[0-9a-f]{15}[a-f]", port in any::<u16>(), ms in 0_u64..4_102_444_800_000, ratio in any::<f64>().prop_filter("as logs write them", |ratio| ratio.is_finite() && ratio.abs() < 1e9)) {
        let uuid = Uuid::from_u128(uuid);
        let at = chrono::DateTime::from_timestamp_millis(i64::try_from(ms).unwrap()).unwrap();
        let line = format!("{uuid} {trace} 00-{trace}-{span}-01 127.0.0.1:{port} {} {ms}ms {ratio}", at.to_rfc3339());
        prop_assert_eq!(masked(&line), line);
    }

    #[test]
    fn json_stays_json_whatever_it_says(text in "(\\PC|[\\\\\"\u{1b}\n@+ 0-9a-f.]){0,80}", name in "[a-z]{1,8}") {
        let line = serde_json::json!({ name: text }).to_string();
        let parsed = serde_json::from_slice::<serde_json::Value>(&mask(line.as_bytes()));
        prop_assert!(parsed.is_ok(), "{}", line);
    }

    #[test]
    fn masking_twice_is_masking_once(text in "(\\PC|[@+ 0-9.%-]){0,80}") {
        // After a mask, another sign makes a new address of it: then more is masked, never less.
        prop_assume!(!text.split_whitespace().any(|word| word.matches(['@', '%']).count() > 1));
        let once = masked(&text);
        prop_assert_eq!(masked(&once), once.clone());
        prop_assert!(once == text || MASKS.iter().any(|mask| once.contains(mask)));
    }
}
