//! Quiet hours: when a person does not want to be disturbed, by local time.

use chrono::{DateTime, Days, LocalResult, NaiveDateTime, NaiveTime, Offset, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

/// From one local time of day to another, in minutes after midnight. It may cross midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuietHours {
    /// The first quiet minute.
    pub start: u16,
    /// The first minute that is not quiet.
    pub end: u16,
}

/// If a clock change skips the minutes between two windows, the second window follows at once. The search goes through
/// at most this many windows; no time zone needs more than two.
const WINDOWS_MAX: usize = 4;

impl QuietHours {
    /// When the quiet hours around `now` end; `None`: it is not quiet. When clocks go back, both copies of a repeated
    /// minute are quiet. When clocks skip the end, quiet hours end with the skip. Example: 22:00-02:30, and clocks go
    /// from 02:00 to 03:00: they end at 03:00.
    pub fn until(self, now: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
        let mut at = now;
        for _ in 0..WINDOWS_MAX {
            match self.end_after(at, zone) {
                Some(end) => at = end,
                None => break,
            }
        }
        (at > now).then_some(at)
    }

    /// Whether a minute of the day is quiet. A window whose end equals its start is empty.
    const fn has(self, minute: u16) -> bool {
        if self.start <= self.end {
            self.start <= minute && minute < self.end
        } else {
            self.start <= minute || minute < self.end
        }
    }

    /// The end of the window that contains `at`.
    fn end_after(self, at: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
        let local = at.with_timezone(&zone).naive_local();
        let minute = u16::try_from(local.hour() * 60 + local.minute()).ok().filter(|minute| self.has(*minute))?;
        let ends_tomorrow = minute >= self.end;
        let date = if ends_tomorrow { local.date().checked_add_days(Days::new(1))? } else { local.date() };
        let time = NaiveTime::from_num_seconds_from_midnight_opt(u32::from(self.end) * 60, 0)?;
        moment(date.and_time(time), at, zone)
    }
}

/// The next time after `at` at which local time is `local`.
fn moment(local: NaiveDateTime, at: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
    match zone.from_local_datetime(&local) {
        LocalResult::Single(moment) => Some(moment.to_utc()),
        LocalResult::Ambiguous(first, second) => {
            let (first, second) = (first.to_utc().min(second.to_utc()), first.to_utc().max(second.to_utc()));
            Some(if first > at { first } else { second })
        }
        // The clock skips this time. With the offset before the skip, it is a time after the skip.
        LocalResult::None => {
            let before = zone.offset_from_utc_datetime(&at.naive_utc()).fix();
            jump(at, before.from_local_datetime(&local).single()?.to_utc(), zone)
        }
    }
}

/// The moment between these two at which the zone's offset changes. Offsets change at whole seconds.
pub(super) fn jump(before: DateTime<Utc>, mut after: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
    let offset = |at: DateTime<Utc>| zone.offset_from_utc_datetime(&at.naive_utc()).fix();
    let mut before = DateTime::from_timestamp(before.timestamp(), 0)?;
    let usual = offset(before);
    while (after - before).num_seconds() > 1 {
        let middle = before + TimeDelta::seconds((after - before).num_seconds() / 2);
        if offset(middle) == usual {
            before = middle;
        } else {
            after = middle;
        }
    }
    Some(after)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hours(text: &str) -> QuietHours {
        let minute = |text: &str| {
            let (hour, minute) = text.split_once(':').unwrap();
            hour.parse::<u16>().unwrap() * 60 + minute.parse::<u16>().unwrap()
        };
        let (start, end) = text.split_once('-').unwrap();
        QuietHours { start: minute(start), end: minute(end) }
    }

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    /// Window, zone, now, end of the quiet hours; an empty end: it is not quiet.
    type Row = (&'static str, &'static str, &'static str, &'static str);

    fn assert_ends(table: &[Row]) {
        for (window, zone, now, end) in table {
            let wanted = (!end.is_empty()).then(|| utc(end));
            assert_eq!(hours(window).until(utc(now), zone.parse().unwrap()), wanted, "{window} in {zone} at {now}");
        }
    }

    #[test]
    fn quiet_ends_when_the_clock_on_the_wall_says_so() {
        assert_ends(&[
            // Within a day; the first minute is quiet, the last is not.
            ("13:00-14:00", "UTC", "2026-06-01T12:59:59Z", ""),
            ("13:00-14:00", "UTC", "2026-06-01T13:00:00Z", "2026-06-01T14:00:00Z"),
            ("13:00-14:00", "UTC", "2026-06-01T13:59:59.999Z", "2026-06-01T14:00:00Z"),
            ("13:00-14:00", "UTC", "2026-06-01T14:00:00Z", ""),
            // Across midnight, months and years.
            ("22:00-08:00", "UTC", "2026-06-01T21:59:00Z", ""),
            ("22:00-08:00", "UTC", "2026-06-01T22:00:00Z", "2026-06-02T08:00:00Z"),
            ("22:00-08:00", "UTC", "2026-06-02T00:00:00Z", "2026-06-02T08:00:00Z"),
            ("22:00-08:00", "UTC", "2026-06-02T07:59:00Z", "2026-06-02T08:00:00Z"),
            ("22:00-08:00", "UTC", "2026-06-02T08:00:00Z", ""),
            ("22:00-08:00", "UTC", "2026-12-31T23:00:00Z", "2027-01-01T08:00:00Z"),
            ("22:00-08:00", "UTC", "2028-02-28T23:00:00Z", "2028-02-29T08:00:00Z"),
            // To and from midnight.
            ("22:00-00:00", "UTC", "2026-06-01T23:30:00Z", "2026-06-02T00:00:00Z"),
            ("22:00-00:00", "UTC", "2026-06-02T00:00:00Z", ""),
            ("00:00-06:00", "UTC", "2026-06-02T00:00:00Z", "2026-06-02T06:00:00Z"),
            ("00:00-06:00", "UTC", "2026-06-01T23:59:00Z", ""),
            ("00:00-23:59", "UTC", "2026-06-01T12:00:00Z", "2026-06-01T23:59:00Z"),
            // An empty one.
            ("08:00-08:00", "UTC", "2026-06-01T08:00:00Z", ""),
            ("00:00-00:00", "UTC", "2026-06-01T00:00:00Z", ""),
            // Zones: by whole, half and quarter hours, and another date.
            ("22:00-08:00", "Europe/Vienna", "2026-07-01T20:00:00Z", "2026-07-02T06:00:00Z"),
            ("22:00-08:00", "Europe/Vienna", "2026-01-01T20:59:00Z", ""),
            ("22:00-08:00", "Europe/Vienna", "2026-01-01T21:00:00Z", "2026-01-02T07:00:00Z"),
            ("22:00-08:00", "America/New_York", "2026-01-15T03:00:00Z", "2026-01-15T13:00:00Z"),
            ("22:00-08:00", "Asia/Kolkata", "2026-06-01T16:30:00Z", "2026-06-02T02:30:00Z"),
            ("22:00-08:00", "Asia/Kolkata", "2026-06-01T16:29:00Z", ""),
            ("22:00-08:00", "Asia/Kathmandu", "2026-06-01T16:15:00Z", "2026-06-02T02:15:00Z"),
            ("22:00-08:00", "Asia/Kathmandu", "2026-06-01T16:14:59Z", ""),
            ("22:00-08:00", "Australia/Adelaide", "2026-01-15T11:30:00Z", "2026-01-15T21:30:00Z"),
            ("22:00-08:00", "Pacific/Chatham", "2026-07-01T09:15:00Z", "2026-07-01T19:15:00Z"),
            ("22:00-08:00", "Pacific/Kiritimati", "2026-06-01T08:00:00Z", "2026-06-01T18:00:00Z"),
            ("22:00-08:00", "America/St_Johns", "2026-01-15T01:30:00Z", "2026-01-15T11:30:00Z"),
        ]);
    }

    #[test]
    fn quiet_follows_a_clock_that_is_put_forward_or_back() {
        assert_ends(&[
            // Clocks go forward during the window: it is an hour shorter.
            ("22:00-08:00", "Europe/Vienna", "2026-03-28T22:00:00Z", "2026-03-29T06:00:00Z"),
            // Clocks skip its end (02:00 becomes 03:00): it ends with the skip.
            ("22:00-02:30", "Europe/Vienna", "2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z"),
            ("22:00-02:30", "Europe/Vienna", "2026-03-29T00:59:59.500Z", "2026-03-29T01:00:00Z"),
            ("22:00-02:30", "Europe/Vienna", "2026-03-29T01:00:00Z", ""),
            ("22:00-03:00", "Europe/Vienna", "2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z"),
            // Clocks skip all of it: there is no window on that day.
            ("02:10-02:50", "Europe/Vienna", "2026-03-29T00:59:00Z", ""),
            ("02:10-02:50", "Europe/Vienna", "2026-03-29T01:00:00Z", ""),
            // Clocks skip its beginning.
            ("02:30-04:00", "Europe/Vienna", "2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"),
            // Clocks skip the minutes between two windows: the second follows the first.
            ("03:00-02:30", "Europe/Vienna", "2026-03-29T00:00:00Z", "2026-03-30T00:30:00Z"),
            // Clocks go back during the window: it is an hour longer.
            ("22:00-08:00", "Europe/Vienna", "2026-10-24T20:00:00Z", "2026-10-25T07:00:00Z"),
            // Clocks go back over its end (03:00 becomes 02:00): it ends twice, and it is not quiet in between.
            ("22:00-02:30", "Europe/Vienna", "2026-10-24T23:00:00Z", "2026-10-25T00:30:00Z"),
            ("22:00-02:30", "Europe/Vienna", "2026-10-25T00:30:00Z", ""),
            ("22:00-02:30", "Europe/Vienna", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z"),
            ("22:00-02:30", "Europe/Vienna", "2026-10-25T01:30:00Z", ""),
            // Clocks go back by half an hour (02:00 becomes 01:30).
            ("22:00-01:45", "Australia/Lord_Howe", "2026-04-04T14:40:00Z", "2026-04-04T14:45:00Z"),
            ("22:00-01:45", "Australia/Lord_Howe", "2026-04-04T15:00:00Z", "2026-04-04T15:15:00Z"),
            // Clocks go forward at midnight: a day begins at 01:00.
            ("22:00-00:30", "Africa/Cairo", "2026-04-23T21:00:00Z", "2026-04-23T22:00:00Z"),
            // Clocks go back at midnight: the same evening comes twice.
            ("22:00-23:30", "Africa/Cairo", "2026-10-29T20:10:00Z", "2026-10-29T20:30:00Z"),
            ("22:00-23:30", "Africa/Cairo", "2026-10-29T21:10:00Z", "2026-10-29T21:30:00Z"),
            // A whole day that the zone skipped.
            ("22:00-08:00", "Pacific/Apia", "2011-12-30T09:00:00Z", "2011-12-30T18:00:00Z"),
        ]);
    }

    proptest! {
        #[test]
        fn all_is_quiet_up_to_the_end_and_the_end_is_not(
            seconds in 1_000_000_000_i64..2_100_000_000,
            (start, end) in (0_u16..1440, 0_u16..1440),
            zone in proptest::sample::select(chrono_tz::TZ_VARIANTS.to_vec()),
        ) {
            let (quiet, now) = (QuietHours { start, end }, DateTime::from_timestamp(seconds, 0).unwrap());
            let minute = |at: DateTime<Utc>| {
                let local = at.with_timezone(&zone).naive_local();
                u16::try_from(local.hour() * 60 + local.minute()).unwrap()
            };
            match quiet.until(now, zone) {
                None => prop_assert!(!quiet.has(minute(now))),
                Some(until) => {
                    prop_assert!(until > now && until - now < TimeDelta::hours(50));
                    prop_assert!(!quiet.has(minute(until)), "{until}");
                    let mut at = now;
                    while at < until {
                        prop_assert!(quiet.has(minute(at)), "{at} before {until}");
                        at += TimeDelta::minutes(7);
                    }
                    prop_assert!(quiet.has(minute(until - TimeDelta::seconds(1))));
                }
            }
        }
    }
}
