//! The header `Retry-After` (RFC 9110, section 10.2.3). Every HTTP vendor and webhook receiver may send it.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};

/// The wait that `value` requests at the time `now`: whole seconds or an HTTP date. Of dates only the IMF-fixdate form
/// is read; the two older forms have been obsolete since 1999. A date in the past requests no wait. `None`: the value
/// is neither.
pub fn parse(value: &str, now: DateTime<Utc>) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // This fails only for too many digits, which mean "for ever".
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    // The weekday is ignored: with a wrong weekday, the rest of the date is still clear.
    let (_, date) = value.split_once(", ")?;
    let at = NaiveDateTime::parse_from_str(date, "%d %b %Y %H:%M:%S GMT").ok()?.and_utc();
    Some((at - now).to_std().unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn seconds_and_dates_are_understood() {
        for (value, seconds) in [
            ("120", 120),
            (" 7 ", 7),
            ("0", 0),
            ("Fri, 20 Nov 2026 12:01:00 GMT", 60),
            ("Mon, 20 Nov 2026 12:01:00 GMT", 60),
            ("Fri, 20 Nov 2026 11:00:00 GMT", 0),
            ("99999999999999999999999999", u64::MAX),
        ] {
            assert_eq!(parse(value, now()), Some(Duration::from_secs(seconds)), "{value}");
        }
    }

    #[test]
    fn anything_else_asks_for_nothing() {
        for value in
            ["", "soon", "-5", "1.5", "Fri, 20 Nov 2026", "Friday, 20-Nov-26 12:01:00 GMT", "2026-11-20T12:01:00Z"]
        {
            assert_eq!(parse(value, now()), None, "{value}");
        }
    }
}
