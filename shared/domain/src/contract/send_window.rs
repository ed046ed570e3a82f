//! The written form of send windows: `{"days": ["mon", "fri"], "from": "09:00", "to": "17:00"}`.

use serde_json::{Value, json};

use super::{
    field_error::{FieldError, shown},
    time_of_day::{minute_of_day, time_of_day},
};
use crate::{Day, SendWindow, UnknownWord};

/// The end of the day, a minute after 23:59. No clock shows it.
const END_OF_DAY: (&str, u16) = ("24:00", 24 * 60);

/// Reads the window in the field `field`; each fault names its place.
pub fn read(field: &str, value: Value) -> Result<SendWindow, Vec<FieldError>> {
    let fault = |member: &str, message: &str| FieldError::new(format!("{field}{member}"), message);
    let Value::Object(mut members) = value else {
        let message =
            r#"must be {"from": "09:00", "to": "17:00"}, with `days` such as ["mon", "fri"] where it is not every day"#;
        return Err(vec![fault("", message)]);
    };
    let mut faults = Vec::new();
    let days = match members.remove("days") {
        None | Some(Value::Null) => Day::ALL.iter().copied().collect(),
        Some(Value::Array(list)) if list.is_empty() => {
            faults.push(fault(".days", "must name one at least"));
            Default::default()
        }
        Some(Value::Array(list)) => {
            let read = list.iter().map(|day| day.as_str().unwrap_or_default().parse::<Day>()).enumerate();
            let known = |(index, day): (usize, Result<Day, UnknownWord>)| {
                day.map_err(|unknown| faults.push(fault(&format!(".days[{index}]"), &unknown.to_string()))).ok()
            };
            read.filter_map(known).collect()
        }
        Some(_) => {
            faults.push(fault(".days", r#"must be a list such as ["mon", "fri"]"#));
            Default::default()
        }
    };
    let mut minute = |name: &str| members.remove(name).and_then(|value| minute_of_day(value.as_str()?));
    let from = minute("from");
    let to = match members.remove("to") {
        Some(Value::String(text)) if text == END_OF_DAY.0 => Some(END_OF_DAY.1),
        value => value.and_then(|value| minute_of_day(value.as_str()?)),
    };
    if from.is_none() {
        faults.push(fault(".from", "must be a time of day such as 09:00"));
    }
    match to {
        None => faults.push(fault(".to", "must be a time of day such as 17:00, or 24:00")),
        Some(_) if from == to => faults.push(fault(".to", "must differ from `from`; a whole day is 00:00 to 24:00")),
        Some(_) => {}
    }
    faults.extend(members.into_iter().map(|(name, _)| fault(&format!(".{}", shown(name)), "is unknown")));
    match from.zip(to) {
        Some((from, to)) if faults.is_empty() => Ok(SendWindow { days, from, to }),
        _ => Err(faults),
    }
}

/// The written form of a window. A window of every day has no list of days.
pub fn show(window: &SendWindow) -> Value {
    let (from, to) = (time_of_day(window.from), time_of_day(window.to));
    if window.days.len() == Day::ALL.len() {
        return json!({"from": from, "to": to});
    }
    json!({"days": window.days, "from": from, "to": to})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_read_and_shown() {
        for written in [
            json!({"days": ["mon", "wed", "sun"], "from": "09:00", "to": "17:30"}),
            json!({"from": "22:00", "to": "02:00"}),
            json!({"days": ["sat"], "from": "00:00", "to": "24:00"}),
        ] {
            assert_eq!(show(&read("send_window", written.clone()).unwrap()), written);
        }
        let all =
            json!({"days": ["sun", "mon", "tue", "wed", "thu", "fri", "sat", "mon"], "from": "09:00", "to": "17:00"});
        assert_eq!(show(&read("w", all).unwrap()), json!({"from": "09:00", "to": "17:00"}));
        let window = read("w", json!({"days": null, "from": "09:00", "to": "17:00"})).unwrap();
        assert_eq!((window.days.len(), window.from, window.to), (7, 540, 1020));
    }

    #[test]
    fn every_fault_is_named() {
        let faults = |value: Value| -> Vec<String> {
            read("w", value).unwrap_err().into_iter().map(|fault| fault.field).collect()
        };
        for wrong in [json!(null), json!("09:00-17:00"), json!([])] {
            assert_eq!(faults(wrong), ["w"]);
        }
        assert_eq!(faults(json!({})), ["w.from", "w.to"]);
        assert_eq!(faults(json!({"from": "9:00", "to": "24:01"})), ["w.from", "w.to"]);
        assert_eq!(faults(json!({"from": "24:00", "to": "08:00"})), ["w.from"]);
        assert_eq!(faults(json!({"from": "09:00", "to": "09:00"})), ["w.to"]);
        assert_eq!(faults(json!({"days": [], "from": "09:00", "to": "17:00"})), ["w.days"]);
        assert_eq!(faults(json!({"days": "mon", "from": "09:00", "to": "17:00"})), ["w.days"]);
        let several = json!({"days": ["mon", "funday", 7], "from": "09:00", "to": 17, "zone": "UTC"});
        assert_eq!(faults(several), ["w.days[1]", "w.days[2]", "w.to", "w.zone"]);
    }
}
