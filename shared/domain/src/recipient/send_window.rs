//! Send windows: when something may disturb its recipient, by local time.

use std::collections::BTreeSet;

use chrono::{DateTime, Datelike, Days, NaiveDateTime, NaiveTime, Offset, TimeZone, Timelike, Utc, Weekday};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::quiet::jump;
use crate::word::words;

words!(
    /// A day of the week.
    Day {
        /// The first one.
        Mon = "mon",
        /// The second one.
        Tue = "tue",
        /// The third one.
        Wed = "wed",
        /// The fourth one.
        Thu = "thu",
        /// The fifth one.
        Fri = "fri",
        /// The sixth one.
        Sat = "sat",
        /// The last one.
        Sun = "sun",
    }
);

/// On some days, from one local time of day to another, in minutes after midnight. It may cross midnight; then it
/// belongs to the day on which it opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendWindow {
    /// The days on which it opens.
    pub days: BTreeSet<Day>,
    /// The first minute in it.
    pub from: u16,
    /// The first minute after the window; 1440: the end of the day. It differs from `from`.
    pub to: u16,
}

/// The search for the next opening takes at most this many steps: one per opening, and one per clock change before it.
const STEPS_MAX: usize = 16;
/// A window opens within this many days: a week from today.
const DAYS_AHEAD: u64 = 7;

impl SendWindow {
    /// The first moment from `now` on that lies in the window; that is `now` itself if the window is open. `None`:
    /// there is none. When clocks go back, both copies of a repeated minute are in the window. When clocks skip the
    /// opening, it opens with the skip.
    pub fn opening(&self, now: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
        let offset = |at: DateTime<Utc>| zone.offset_from_utc_datetime(&at.naive_utc()).fix();
        let mut at = now;
        for _ in 0..STEPS_MAX {
            let local = at.with_timezone(&zone).naive_local();
            if self.has(local) {
                return Some(at);
            }
            // If no clock change comes before.
            let opens = at + (self.next(local)? - local);
            at = if offset(at) == offset(opens) { opens } else { jump(at, opens, zone)? };
        }
        None
    }

    /// Whether it is open at this local time.
    fn has(&self, local: NaiveDateTime) -> bool {
        let Ok(minute) = u16::try_from(local.hour() * 60 + local.minute()) else { return false };
        let today = Day::of(local.weekday());
        if self.from <= self.to {
            return (self.from..self.to).contains(&minute) && self.days.contains(&today);
        }
        (self.from <= minute && self.days.contains(&today))
            || (minute < self.to && self.days.contains(&Day::of(local.weekday().pred())))
    }

    /// The local time at which it opens next.
    fn next(&self, local: NaiveDateTime) -> Option<NaiveDateTime> {
        let time = NaiveTime::from_num_seconds_from_midnight_opt(u32::from(self.from) * 60, 0)?;
        let dates = (0..=DAYS_AHEAD).filter_map(|ahead| local.date().checked_add_days(Days::new(ahead)));
        let mut openings =
            dates.filter(|date| self.days.contains(&Day::of(date.weekday()))).map(|date| date.and_time(time));
        openings.find(|opening| *opening > local)
    }
}

impl Day {
    /// As the calendar has it.
    const fn of(day: Weekday) -> Self {
        match day {
            Weekday::Mon => Self::Mon,
            Weekday::Tue => Self::Tue,
            Weekday::Wed => Self::Wed,
            Weekday::Thu => Self::Thu,
            Weekday::Fri => Self::Fri,
            Weekday::Sat => Self::Sat,
            Weekday::Sun => Self::Sun,
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    /// Such as `mon,tue 09:00-17:00`; without days: every day.
    fn window(text: &str) -> SendWindow {
        let minute = |text: &str| {
            let (hour, minute) = text.split_once(':').unwrap();
            hour.parse::<u16>().unwrap() * 60 + minute.parse::<u16>().unwrap()
        };
        let (days, times) = text.rsplit_once(' ').unwrap_or(("mon,tue,wed,thu,fri,sat,sun", text));
        let (from, to) = times.split_once('-').unwrap();
        SendWindow {
            days: days.split(',').map(|day| day.parse().unwrap()).collect(),
            from: minute(from),
            to: minute(to),
        }
    }

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    /// Window, zone, now, its next opening; an empty opening: it is open. 1 June 2026 is a Monday.
    type Row = (&'static str, &'static str, &'static str, &'static str);

    fn assert_opens(table: &[Row]) {
        for (text, zone, now, opening) in table {
            let wanted = utc(if opening.is_empty() { now } else { opening });
            let found = window(text).opening(utc(now), zone.parse().unwrap());
            assert_eq!(found, Some(wanted), "{text} in {zone} at {now}");
        }
    }

    #[test]
    fn a_window_opens_when_the_clock_on_the_wall_says_so() {
        assert_opens(&[
            // Within a day; the first minute is in it, the last is not.
            ("09:00-17:00", "UTC", "2026-06-01T08:59:59.250Z", "2026-06-01T09:00:00Z"),
            ("09:00-17:00", "UTC", "2026-06-01T09:00:00Z", ""),
            ("09:00-17:00", "UTC", "2026-06-01T16:59:59.999Z", ""),
            ("09:00-17:00", "UTC", "2026-06-01T17:00:00Z", "2026-06-02T09:00:00Z"),
            ("09:00-17:00", "UTC", "2026-12-31T23:00:00Z", "2027-01-01T09:00:00Z"),
            ("09:00-17:00", "UTC", "2028-02-28T18:00:00Z", "2028-02-29T09:00:00Z"),
            // To the end of the day, and all of it.
            ("18:00-24:00", "UTC", "2026-06-01T23:59:59Z", ""),
            ("18:00-24:00", "UTC", "2026-06-02T00:00:00Z", "2026-06-02T18:00:00Z"),
            ("18:00-00:00", "UTC", "2026-06-01T23:59:59Z", ""),
            ("18:00-00:00", "UTC", "2026-06-02T00:00:00Z", "2026-06-02T18:00:00Z"),
            ("00:00-24:00", "UTC", "2026-06-02T00:00:00Z", ""),
            ("sat,sun 00:00-24:00", "UTC", "2026-06-01T12:00:00Z", "2026-06-06T00:00:00Z"),
            ("sat,sun 00:00-24:00", "UTC", "2026-06-07T00:00:00Z", ""),
            // Days.
            ("mon,tue,wed,thu,fri 09:00-17:00", "UTC", "2026-06-05T17:00:00Z", "2026-06-08T09:00:00Z"),
            ("mon,tue,wed,thu,fri 09:00-17:00", "UTC", "2026-06-06T12:00:00Z", "2026-06-08T09:00:00Z"),
            ("mon 09:00-17:00", "UTC", "2026-06-01T08:00:00Z", "2026-06-01T09:00:00Z"),
            ("mon 09:00-17:00", "UTC", "2026-06-01T17:00:00Z", "2026-06-08T09:00:00Z"),
            // Across midnight it belongs to the day on which it opens.
            ("22:00-02:00", "UTC", "2026-06-01T01:59:00Z", ""),
            ("22:00-02:00", "UTC", "2026-06-01T02:00:00Z", "2026-06-01T22:00:00Z"),
            ("fri 22:00-02:00", "UTC", "2026-06-05T01:00:00Z", "2026-06-05T22:00:00Z"),
            ("fri 22:00-02:00", "UTC", "2026-06-06T01:59:00Z", ""),
            ("fri 22:00-02:00", "UTC", "2026-06-06T02:00:00Z", "2026-06-12T22:00:00Z"),
            // Zones: by whole, half and quarter hours, and another date.
            ("09:00-17:00", "Europe/Vienna", "2026-07-01T06:59:00Z", "2026-07-01T07:00:00Z"),
            ("09:00-17:00", "Europe/Vienna", "2026-01-01T07:30:00Z", "2026-01-01T08:00:00Z"),
            ("mon 09:00-17:00", "America/Los_Angeles", "2026-06-02T00:30:00Z", "2026-06-08T16:00:00Z"),
            ("mon 09:00-18:00", "America/Los_Angeles", "2026-06-02T00:30:00Z", ""),
            ("09:00-17:00", "Asia/Kolkata", "2026-06-01T03:29:00Z", "2026-06-01T03:30:00Z"),
            ("09:00-17:00", "Asia/Kolkata", "2026-06-01T11:30:00Z", "2026-06-02T03:30:00Z"),
            ("09:00-17:00", "Asia/Kathmandu", "2026-06-01T11:15:00Z", "2026-06-02T03:15:00Z"),
            ("09:00-17:00", "Asia/Kathmandu", "2026-06-01T11:14:59Z", ""),
            ("09:00-17:00", "Australia/Adelaide", "2026-01-15T12:00:00Z", "2026-01-15T22:30:00Z"),
            ("mon 09:00-17:00", "Pacific/Chatham", "2026-05-31T20:00:00Z", "2026-05-31T20:15:00Z"),
            ("mon 09:00-17:00", "Pacific/Kiritimati", "2026-05-31T18:00:00Z", "2026-05-31T19:00:00Z"),
            ("09:00-17:00", "America/St_Johns", "2026-01-15T12:29:00Z", "2026-01-15T12:30:00Z"),
        ]);
    }

    #[test]
    fn a_window_follows_a_clock_that_is_put_forward_or_back() {
        assert_opens(&[
            // Clocks change while it is closed: the night is an hour shorter, or longer.
            ("09:00-17:00", "Europe/Vienna", "2026-03-28T17:00:00Z", "2026-03-29T07:00:00Z"),
            ("09:00-17:00", "Europe/Vienna", "2026-10-24T17:00:00Z", "2026-10-25T08:00:00Z"),
            // Clocks skip the opening (02:00 becomes 03:00): it opens with the skip.
            ("02:30-05:00", "Europe/Vienna", "2026-03-29T00:30:00.500Z", "2026-03-29T01:00:00Z"),
            ("sun 02:30-05:00", "Europe/Vienna", "2026-03-26T00:00:00Z", "2026-03-29T01:00:00Z"),
            // Clocks skip all of it: there is no window on that day.
            ("02:10-02:50", "Europe/Vienna", "2026-03-29T00:30:00Z", "2026-03-30T00:10:00Z"),
            ("sun 02:10-02:50", "Europe/Vienna", "2026-03-29T00:30:00Z", "2026-04-05T00:10:00Z"),
            // Put forward over its end.
            ("01:00-02:30", "Europe/Vienna", "2026-03-29T00:59:59Z", ""),
            ("01:00-02:30", "Europe/Vienna", "2026-03-29T01:00:00Z", "2026-03-29T23:00:00Z"),
            // Clocks go back over its end (03:00 becomes 02:00): it opens twice.
            ("01:00-02:30", "Europe/Vienna", "2026-10-25T00:29:00Z", ""),
            ("01:00-02:30", "Europe/Vienna", "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z"),
            ("01:00-02:30", "Europe/Vienna", "2026-10-25T01:30:00Z", "2026-10-26T00:00:00Z"),
            // Clocks go back over its opening: both openings count.
            ("02:30-05:00", "Europe/Vienna", "2026-10-24T23:00:00Z", "2026-10-25T00:30:00Z"),
            ("02:30-05:00", "Europe/Vienna", "2026-10-25T01:10:00Z", "2026-10-25T01:30:00Z"),
            // Clocks go back by half an hour (02:00 becomes 01:30).
            ("01:40-01:45", "Australia/Lord_Howe", "2026-04-04T14:45:00Z", "2026-04-04T15:10:00Z"),
            // Clocks go forward at midnight: a day begins at 01:00.
            ("fri 00:00-08:00", "Africa/Cairo", "2026-04-23T21:00:00Z", "2026-04-23T22:00:00Z"),
            // Clocks go back at midnight: the evening of a day comes a second time.
            ("thu 20:00-23:30", "Africa/Cairo", "2026-10-29T20:45:00Z", "2026-10-29T21:00:00Z"),
            // A Friday that never was.
            ("fri 09:00-17:00", "Pacific/Apia", "2011-12-30T09:00:00Z", "2012-01-05T19:00:00Z"),
        ]);
    }

    #[test]
    fn a_window_without_days_or_minutes_never_opens() {
        let empty = SendWindow { days: BTreeSet::new(), ..window("09:00-17:00") };
        assert_eq!(empty.opening(utc("2026-06-01T10:00:00Z"), Tz::UTC), None);
        assert_eq!(window("09:00-09:00").opening(utc("2026-06-01T10:00:00Z"), Tz::UTC), None);
    }

    proptest! {
        #[test]
        fn all_is_closed_up_to_the_opening_and_the_opening_is_not(
            seconds in 1_000_000_000_i64..2_100_000_000,
            (from, to) in (0_u16..1440, 0_u16..=1440),
            days in proptest::collection::btree_set(proptest::sample::select(Day::ALL.to_vec()), 1..7),
            zone in proptest::sample::select(chrono_tz::TZ_VARIANTS.to_vec()),
        ) {
            prop_assume!(from != to);
            let (window, now) = (SendWindow { days, from, to }, DateTime::from_timestamp(seconds, 0).unwrap());
            // The same rule, written differently: each day and minute is tested on its own.
            let is_open = |at: DateTime<Utc>| {
                let local = at.with_timezone(&zone).naive_local();
                let minute = u16::try_from(local.hour() * 60 + local.minute()).unwrap();
                let length = if from < to { to - from } else { 1440 - from + to };
                let day = if minute < from { local.weekday().pred() } else { local.weekday() };
                let since = (minute + 1440 - from) % 1440;
                since < length && window.days.iter().any(|one| one.as_str() == day.to_string().to_lowercase())
            };
            // A window that clocks skip opens a week later.
            let opening = window.opening(now, zone).unwrap();
            prop_assert!(opening >= now && opening - now < TimeDelta::days(15));
            prop_assert!(is_open(opening), "{opening}");
            let mut at = now;
            while at < opening {
                prop_assert!(!is_open(at), "{at} before {opening}");
                at += TimeDelta::minutes(7);
            }
            prop_assert!(opening == now || !is_open(opening - TimeDelta::seconds(1)));
        }
    }
}
