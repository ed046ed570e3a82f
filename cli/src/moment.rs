//! Parses times and durations from the command line.

use std::{str::FromStr, time::Duration};

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use domain::contract::submission::parse_time;

/// A hundred years: more than anything stored needs, and far less than dates can express.
const SECONDS_MAX: i64 = 100 * 365 * 86_400;

/// A point in time, or a distance from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// This point in time.
    At(DateTime<Utc>),
    /// This distance from now. The option implies the direction.
    Away(TimeDelta),
}

/// The text is not a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadMoment(&'static str);

impl std::fmt::Display for BadMoment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadMoment {}

impl Moment {
    /// The point in time, with a distance counted into the past.
    pub fn ago(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::At(at) => at,
            Self::Away(distance) => now - distance,
        }
    }

    /// The point in time, with a distance counted into the future.
    pub fn ahead(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::At(at) => at,
            Self::Away(distance) => now + distance,
        }
    }
}

impl FromStr for Moment {
    type Err = BadMoment;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let day = || NaiveDate::from_str(text).ok().map(|day| day.and_time(NaiveTime::MIN).and_utc());
        let moment = distance(text).map(Self::Away).or_else(|| parse_time(text).or_else(day).map(Self::At));
        moment.ok_or(BadMoment("use a distance such as 30m, 2h or 1d, or a time such as 2026-01-31T08:00:00Z"))
    }
}

/// Parses a duration such as `90s`, `15m`, `1h`, `7d`, `2w`.
pub fn duration(text: &str) -> Result<Duration, BadMoment> {
    let length = distance(text.trim()).and_then(|distance| distance.to_std().ok()).filter(|length| !length.is_zero());
    length.ok_or(BadMoment("use a number with a unit: 90s, 15m, 1h, 7d or 2w"))
}

fn distance(text: &str) -> Option<TimeDelta> {
    let unit = text.chars().last()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        'w' => 604_800,
        _ => return None,
    };
    let digits = text.strip_suffix(unit)?.trim_end();
    let number = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let total = number.parse::<i64>().ok()?.checked_mul(seconds)?;
    TimeDelta::try_seconds(total).filter(|_| total <= SECONDS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(text: &str) -> Option<Moment> {
        text.parse().ok()
    }

    #[test]
    fn a_distance_is_a_number_and_a_unit() {
        for (text, seconds) in
            [("0s", 0), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86_400), ("2w", 1_209_600), (" 2 h ", 7200)]
        {
            assert_eq!(moment(text), Some(Moment::Away(TimeDelta::seconds(seconds))), "{text}");
        }
    }

    #[test]
    fn a_time_is_rfc_3339_and_may_lack_its_zone_or_its_hour() {
        let at = |text: &str| Some(Moment::At(text.parse().unwrap()));
        for (text, meant) in [
            ("2026-01-31T08:00:00Z", "2026-01-31T08:00:00Z"),
            ("2026-01-31T08:00:00+02:00", "2026-01-31T06:00:00Z"),
            ("2026-01-31T08:00:00", "2026-01-31T08:00:00Z"),
            ("2026-01-31", "2026-01-31T00:00:00Z"),
        ] {
            assert_eq!(moment(text), at(meant), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_examples() {
        for text in [
            "",
            "h",
            "2",
            "-2h",
            "+2h",
            "1.5h",
            "2y",
            "yesterday",
            "2026-13-01",
            "9999999999999999999s",
            "999999999w",
            "2é",
        ] {
            assert!(text.parse::<Moment>().unwrap_err().to_string().contains("2h"), "{text}");
        }
    }

    #[test]
    fn the_option_gives_the_direction() {
        let now: DateTime<Utc> = "2026-01-31T08:00:00Z".parse().unwrap();
        let moment = Moment::Away(TimeDelta::hours(2));
        assert_eq!(moment.ago(now).to_rfc3339(), "2026-01-31T06:00:00+00:00");
        assert_eq!(moment.ahead(now).to_rfc3339(), "2026-01-31T10:00:00+00:00");
        assert_eq!(Moment::At(now).ago(now), Moment::At(now).ahead(now));
    }

    #[test]
    fn a_duration_is_not_zero() {
        assert_eq!(duration("1h").unwrap(), Duration::from_secs(3600));
        assert!(duration("0s").is_err() && duration("2026-01-31").is_err());
    }
}
