//! The variables of a template: their limits in depth and size, and the text form of numbers.

use serde_json::{Map, Number, Value};

use super::TemplateError;

/// The depth of nested lists and objects.
const DEPTH_MAX: usize = 32;
/// Bytes of texts and keys together, plus a few for each value. Each include copies them.
const BYTES_MAX: usize = 2 * 1024 * 1024;
const VALUE_BYTES: usize = 16;
/// Up to this value, a number with the fraction zero is a whole number in every language.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// A copy for the engine.
pub(super) fn prepared(value: &Value) -> Result<Value, TemplateError> {
    Preparing { left: BYTES_MAX }.value(value, 0)
}

struct Preparing {
    left: usize,
}

impl Preparing {
    fn take(&mut self, bytes: usize) -> Result<(), TemplateError> {
        let left = self.left.checked_sub(bytes.saturating_add(VALUE_BYTES));
        self.left = left.ok_or_else(|| TemplateError::TooLarge("its variables are larger than 2 MiB".to_owned()))?;
        Ok(())
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<Value, TemplateError> {
        if depth > DEPTH_MAX {
            return Err(TemplateError::TooLarge(format!("its variables nest deeper than {DEPTH_MAX}")));
        }
        self.take(value.as_str().map_or(0, str::len))?;
        match value {
            Value::Number(number) => Ok(Value::Number(whole(number))),
            Value::Array(items) => items.iter().map(|item| self.value(item, depth + 1)).collect(),
            Value::Object(members) => {
                let member = |(key, item): (&String, &Value)| {
                    self.take(key.len())?;
                    Ok((key.clone(), self.value(item, depth + 1)?))
                };
                members.iter().map(member).collect::<Result<Map<_, _>, _>>().map(Value::Object)
            }
            Value::Null | Value::Bool(_) | Value::String(_) => Ok(value.clone()),
        }
    }
}

/// `5.0` becomes `5`, as in JavaScript.
fn whole(number: &Number) -> Number {
    let is_whole = |float: &f64| float.fract() == 0.0 && float.abs() <= WHOLE_MAX;
    let text = number.as_f64().filter(|float| number.is_f64() && is_whole(float)).map(|float| format!("{float:.0}"));
    text.and_then(|text| text.parse::<i64>().ok()).map_or_else(|| number.clone(), Number::from)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_written_as_people_write_them() {
        let given = json!([5.0, -3.0, 0.5, 12, -0.0, 1e300]);
        assert_eq!(prepared(&given).unwrap(), json!([5, -3, 0.5, 12, 0, 1e300]));
    }

    #[test]
    fn data_beyond_all_measure_is_refused() {
        let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        assert!(prepared(&nested(32)).is_ok() && prepared(&nested(33)).is_err());
        assert!(prepared(&json!("x".repeat(BYTES_MAX))).is_err());
        assert!(prepared(&json!(vec![0; 200_000])).is_err());
    }
}
