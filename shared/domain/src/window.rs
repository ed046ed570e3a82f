//! Digest windows: they collect events into one notification. A window has a fixed length, slides, or ends at a local
//! time.

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use serde::{Deserialize, Serialize};

/// The largest number of events in a window.
pub const ITEMS_MAX: u32 = 1000;

/// How events are collected into one notification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DigestRule {
    /// The length of a window in seconds. A sliding window lasts so long after its last event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_seconds: Option<u32>,
    /// A path in the event, such as `data.project`. Events with different values there get windows of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Closes a window early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_items: Option<u32>,
    /// Makes the window slide: each event extends it, up to this many seconds after the first event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_window_seconds: Option<u32>,
    /// Sends the first event at once and collects only those that follow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub first_immediately: bool,
    /// Closes windows by a schedule in the person's local time instead, such as `0 8 * * *`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
}

/// When a window closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// If nothing more comes.
    pub closes_at: DateTime<Utc>,
    /// The latest time at which it closes.
    pub latest_at: DateTime<Utc>,
}

impl DigestRule {
    /// When a window that opens at `opened_at` closes for a person in `zone`. A schedule has precedence.
    pub fn closing(&self, opened_at: DateTime<Utc>, zone: Tz) -> Closing {
        if let Some(closes_at) = self.scheduled(opened_at, zone) {
            return Closing { closes_at, latest_at: closes_at };
        }
        let after = |seconds: u32| opened_at + TimeDelta::seconds(i64::from(seconds));
        let window = self.window_seconds.unwrap_or_default();
        let latest = self.max_window_seconds.unwrap_or_default().max(window);
        Closing { closes_at: after(window), latest_at: after(latest) }
    }

    /// When the schedule closes such a window; `None`: there is no schedule.
    pub fn scheduled(&self, opened_at: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
        let schedule = LocalSchedule::parse(self.cron.as_deref()?).ok()?;
        schedule.next(opened_at, zone)
    }

    /// The number of events that fills a window.
    pub fn fill(&self) -> u32 {
        self.max_items.unwrap_or(ITEMS_MAX).clamp(1, ITEMS_MAX)
    }
}

/// A cron schedule in the person's local time.
#[derive(Clone, Debug)]
pub struct LocalSchedule(Cron);

impl LocalSchedule {
    /// Reads five fields, or six with seconds first. The error says why it is invalid.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        parser.parse(text).map(Self).map_err(|error| error.to_string())
    }

    /// The next time after `after`. A local time that clocks skip counts as the first moment after the skip; one that
    /// comes twice counts once.
    pub fn next(&self, after: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
        self.0.find_next_occurrence(&after.with_timezone(&zone), false).ok().map(|at| at.with_timezone(&Utc))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn rule(json: serde_json::Value) -> DigestRule {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_window_has_a_fixed_length_or_slides_up_to_a_maximum() {
        let opened = utc("2026-01-31T09:00:00Z");
        let fixed = rule(serde_json::json!({"window_seconds": 60})).closing(opened, Tz::UTC);
        assert_eq!((fixed.closes_at, fixed.latest_at), (utc("2026-01-31T09:01:00Z"), utc("2026-01-31T09:01:00Z")));
        let sliding = rule(serde_json::json!({"window_seconds": 60, "max_window_seconds": 600}));
        let sliding = sliding.closing(opened, Tz::UTC);
        assert_eq!((sliding.closes_at, sliding.latest_at), (utc("2026-01-31T09:01:00Z"), utc("2026-01-31T09:10:00Z")));
        let narrow = rule(serde_json::json!({"window_seconds": 60, "max_window_seconds": 6})).closing(opened, Tz::UTC);
        assert_eq!(narrow.latest_at, narrow.closes_at);
    }

    #[test]
    fn a_schedule_is_read_on_the_wall_of_the_person_and_comes_before_a_length() {
        let daily = rule(serde_json::json!({"cron": "0 8 * * *", "window_seconds": 60}));
        for (zone, opened, closes) in [
            (Tz::UTC, "2026-01-31T07:59:59Z", "2026-01-31T08:00:00Z"),
            (Tz::UTC, "2026-01-31T08:00:00Z", "2026-02-01T08:00:00Z"),
            (Tz::Europe__Vienna, "2026-01-31T09:00:00Z", "2026-02-01T07:00:00Z"),
            (Tz::Europe__Vienna, "2026-07-31T09:00:00Z", "2026-08-01T06:00:00Z"),
            (Tz::America__Los_Angeles, "2026-01-31T09:00:00Z", "2026-01-31T16:00:00Z"),
            (Tz::Asia__Kathmandu, "2026-01-31T09:00:00Z", "2026-02-01T02:15:00Z"),
            (Tz::Pacific__Auckland, "2026-01-31T09:00:00Z", "2026-01-31T19:00:00Z"),
        ] {
            let closing = daily.closing(utc(opened), zone);
            assert_eq!((closing.closes_at, closing.latest_at), (utc(closes), utc(closes)), "{zone} {opened}");
        }
    }

    #[test]
    fn an_hour_that_is_left_out_or_there_twice_closes_a_window_once() {
        let half_past_two = LocalSchedule::parse("30 2 * * *").unwrap();
        let next = |after: &str| half_past_two.next(utc(after), Tz::Europe__Vienna).unwrap();
        // On 29 March 2026 clocks go from 2:00 to 3:00 (1:00 UTC).
        assert_eq!(next("2026-03-28T12:00:00Z"), utc("2026-03-29T01:00:00Z"), "the first moment after the gap");
        assert_eq!(next("2026-03-29T01:00:00Z"), utc("2026-03-30T00:30:00Z"));
        // On 25 October 2026 they go from 3:00 back to 2:00 (1:00 UTC).
        assert_eq!(next("2026-10-24T12:00:00Z"), utc("2026-10-25T00:30:00Z"), "the first of both");
        assert_eq!(next("2026-10-25T00:30:00Z"), utc("2026-10-26T01:30:00Z"), "not a second time");
        // A window over the clock change is as long as that day.
        let morning = LocalSchedule::parse("0 8 * * *").unwrap();
        let next = |after: &str| morning.next(utc(after), Tz::Europe__Vienna).unwrap();
        assert_eq!(next("2026-03-28T07:00:00Z"), utc("2026-03-29T06:00:00Z"), "23 hours");
        assert_eq!(next("2026-10-24T06:00:00Z"), utc("2026-10-25T07:00:00Z"), "25 hours");
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for bad in ["", "8", "0 8 * *", "61 8 * * *", "0 24 * * *", "0 8 * * FUNDAY", "0 0 8 * * * 2030", "every day"] {
            assert!(LocalSchedule::parse(bad).is_err(), "{bad}");
        }
        let never = LocalSchedule::parse("0 0 30 2 *").unwrap();
        assert_eq!(never.next(utc("2026-01-01T00:00:00Z"), Tz::UTC), None);
        assert!(LocalSchedule::parse("*/2 * * * * *").is_ok(), "seconds may stand before");
        assert!(LocalSchedule::parse("0 8 * * MON-FRI").is_ok());
    }

    #[test]
    fn a_window_has_a_fill_even_where_none_is_set() {
        assert_eq!(rule(serde_json::json!({"window_seconds": 1})).fill(), ITEMS_MAX);
        assert_eq!(rule(serde_json::json!({"window_seconds": 1, "max_items": 3})).fill(), 3);
    }
}
