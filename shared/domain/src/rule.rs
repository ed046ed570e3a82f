//! Rules: which events cause which notifications. Conditions never convert types: values of different types are not
//! equal.

use std::{cmp::Ordering, collections::HashMap};

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

use super::{Channel, Priority, window::DigestRule, word::words};

words!(
    /// How a condition compares.
    Operator {
        /// Equal.
        Eq = "eq",
        /// Not equal, and of one type.
        Ne = "ne",
        /// Greater.
        Gt = "gt",
        /// Greater or equal.
        Gte = "gte",
        /// Less.
        Lt = "lt",
        /// Less or equal.
        Lte = "lte",
        /// One of a list.
        In = "in",
        /// The field is present, `null` included; with the value `false`: the field is absent.
        Exists = "exists",
        /// A text contains a text, or a list contains an element.
        Contains = "contains",
    }
);

/// The roots of a condition's path: the event itself, its data, its person.
const ROOTS: [&str; 4] = ["type", "user_id", "data", "user"];
/// The end of a pattern that matches every type below a prefix.
const BELOW: &str = ".*";
/// The pattern that matches every type.
const ALL: &str = "*";

/// Whether `path` names a place in an event: `data.amount`, `user.attributes.tier`, `data.lines.0.sku`.
pub fn is_path(path: &str) -> bool {
    let mut steps = path.split('.');
    steps.next().is_some_and(|root| ROOTS.contains(&root)) && steps.all(|step| !step.is_empty())
}

/// The value at `path` in an event.
pub fn look_up<'a>(event: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(event, |here, step| match here {
        Value::Object(members) => members.get(step),
        Value::Array(list) => list.get(step.parse::<usize>().ok()?),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    })
}

/// One thing that must hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// A path such as `data.amount` or `user.attributes.tier`.
    pub field: String,
    /// How it is compared.
    pub op: Operator,
    /// With what.
    #[serde(default)]
    pub value: Value,
}

impl Condition {
    /// Whether it holds for `event`, which has the members `type`, `user_id`, `data` and `user`.
    pub fn holds(&self, event: &Value) -> bool {
        let found = look_up(event, &self.field);
        if self.op == Operator::Exists {
            return found.is_some() == (self.value != Value::Bool(false));
        }
        found.is_some_and(|found| self.op.compare(found, &self.value))
    }

    /// Why it could never hold: `op` cannot use this `value`.
    pub fn fault(&self) -> Option<&'static str> {
        match (self.op, &self.value) {
            (Operator::In, Value::Array(_)) => None,
            (Operator::In, _) => Some("must be a list"),
            (Operator::Exists, Value::Null | Value::Bool(_)) => None,
            (Operator::Exists, _) => Some("must be true or false"),
            (Operator::Gt | Operator::Gte | Operator::Lt | Operator::Lte, Value::Number(_) | Value::String(_)) => None,
            (Operator::Gt | Operator::Gte | Operator::Lt | Operator::Lte, _) => Some("must be a number or a text"),
            (Operator::Eq | Operator::Ne | Operator::Contains, _) => None,
        }
    }
}

impl Operator {
    fn compare(self, found: &Value, value: &Value) -> bool {
        let order = || order(found, value);
        match self {
            Self::Eq => is_same(found, value),
            Self::Ne => is_like(found, value) && !is_same(found, value),
            Self::Gt => order() == Some(Ordering::Greater),
            Self::Gte => matches!(order(), Some(Ordering::Greater | Ordering::Equal)),
            Self::Lt => order() == Some(Ordering::Less),
            Self::Lte => matches!(order(), Some(Ordering::Less | Ordering::Equal)),
            Self::In => value.as_array().is_some_and(|list| list.iter().any(|one| is_same(found, one))),
            Self::Contains => match (found, value) {
                (Value::String(text), Value::String(part)) => text.contains(part.as_str()),
                (Value::Array(list), _) => list.iter().any(|one| is_same(one, value)),
                _ => false,
            },
            Self::Exists => true,
        }
    }
}

/// Whether two values have one type. `null` may be compared with anything.
fn is_like(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Null, _) | (_, Value::Null) => true,
        _ => std::mem::discriminant(one) == std::mem::discriminant(other),
    }
}

/// Whether two values are equal; `5` and `5.0` are one number.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => order_numbers(one, other) == Some(Ordering::Equal),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let has = |(name, value)| other.get(name).is_some_and(|other| is_same(value, other));
            one.len() == other.len() && one.iter().all(has)
        }
        _ => one == other,
    }
}

fn order(one: &Value, other: &Value) -> Option<Ordering> {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => order_numbers(one, other),
        (Value::String(one), Value::String(other)) => Some(one.cmp(other)),
        _ => None,
    }
}

/// Whole numbers are compared as whole numbers: as fractions, the largest ones would become equal.
fn order_numbers(one: &Number, other: &Number) -> Option<Ordering> {
    if let (Some(one), Some(other)) = (one.as_i64(), other.as_i64()) {
        return Some(one.cmp(&other));
    }
    if let (Some(one), Some(other)) = (one.as_u64(), other.as_u64()) {
        return Some(one.cmp(&other));
    }
    one.as_f64()?.partial_cmp(&other.as_f64()?)
}

/// How often one person gets a message by a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Throttle {
    /// The number of messages.
    pub limit: u32,
    /// The period, in seconds.
    pub window_seconds: u32,
}

/// The body of a rule, without its name and event type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleDefinition {
    /// All of them must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The template of the notification.
    pub template_name: String,
    /// By which ways.
    pub channels: Vec<Channel>,
    /// The type of the notification; unset: the event's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification_type: Option<String>,
    /// Its category; unset: the type's, else the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// How urgent it is.
    #[serde(default)]
    pub priority: Priority,
    /// How long it waits first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_seconds: Option<u32>,
    /// Whether events gather.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<DigestRule>,
    /// Limits how often one person gets a message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<Throttle>,
}

impl RuleDefinition {
    /// The index of the first condition that does not hold for `event`; `None`: all hold.
    pub fn unmet(&self, event: &Value) -> Option<usize> {
        self.conditions.iter().position(|condition| !condition.holds(event))
    }
}

/// Whether a text is a valid pattern of event types: a type, a prefix with `.*`, or `*`.
pub fn is_pattern(text: &str) -> bool {
    let name = text.strip_suffix(BELOW).unwrap_or(text);
    text == ALL || (!name.is_empty() && !name.contains('*'))
}

/// Finds the rules for a type of event. The time does not grow with the number of rules.
#[derive(Clone, Debug, Default)]
pub struct RuleIndex {
    exact: HashMap<String, Vec<usize>>,
    below: HashMap<String, Vec<usize>>,
    all: Vec<usize>,
}

impl RuleIndex {
    /// The index of rules by their patterns.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Self {
        let mut index = Self::default();
        for (place, pattern) in patterns.into_iter().enumerate() {
            let places = match pattern.strip_suffix(BELOW) {
                _ if pattern == ALL => &mut index.all,
                Some(name) => index.below.entry(name.to_owned()).or_default(),
                None => index.exact.entry(pattern.to_owned()).or_default(),
            };
            places.push(place);
        }
        index
    }

    /// The indexes of the rules that match `event_type`, in order.
    pub fn matching(&self, event_type: &str) -> Vec<usize> {
        let beginnings = event_type.match_indices('.').filter_map(|(end, _)| event_type.get(..end));
        let below = beginnings.filter_map(|beginning| self.below.get(beginning));
        let mut places: Vec<usize> =
            self.exact.get(event_type).into_iter().chain(below).chain([&self.all]).flatten().copied().collect();
        places.sort_unstable();
        places
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event() -> Value {
        json!({
            "type": "order.paid",
            "user_id": "ada",
            "data": {
                "amount": 100, "share": 0.5, "big": 9_007_199_254_740_993_i64, "text": "10", "none": null, "yes": true,
                "tags": ["new", 7], "lines": [{"sku": "a-1"}], "nested": {"a": {"b": 1}}, "when": "2026-01-31T09:00:00Z",
            },
            "user": {"id": "ada", "name": null, "attributes": {"tier": "gold"}},
        })
    }

    fn holds(field: &str, op: &str, value: Value) -> bool {
        Condition { field: field.to_owned(), op: op.parse().unwrap(), value }.holds(&event())
    }

    #[test]
    fn every_operator_compares_what_is_of_one_type() {
        for (field, op, value, wanted) in [
            ("data.amount", "eq", json!(100), true),
            ("data.amount", "eq", json!(100.0), true),
            ("data.amount", "eq", json!(101), false),
            ("data.amount", "ne", json!(101), true),
            ("data.amount", "ne", json!(100), false),
            ("data.amount", "gt", json!(99.5), true),
            ("data.amount", "gt", json!(100), false),
            ("data.amount", "gte", json!(100), true),
            ("data.amount", "lt", json!(100), false),
            ("data.amount", "lt", json!(100.5), true),
            ("data.amount", "lte", json!(100), true),
            ("data.big", "eq", json!(9_007_199_254_740_992_i64), false),
            ("data.big", "gt", json!(9_007_199_254_740_992_i64), true),
            ("data.big", "lt", json!(u64::MAX), true),
            ("data.when", "gte", json!("2026-01-01T00:00:00Z"), true),
            ("data.yes", "eq", json!(true), true),
            ("data.tags", "eq", json!(["new", 7.0]), true),
            ("data.nested", "eq", json!({"a": {"b": 1}}), true),
            ("data.amount", "in", json!([1, 100]), true),
            ("data.amount", "in", json!([1, 2]), false),
            ("data.text", "contains", json!("1"), true),
            ("data.tags", "contains", json!("new"), true),
            ("data.tags", "contains", json!(7), true),
            ("data.tags", "contains", json!("ne"), false),
            ("data.lines.0.sku", "eq", json!("a-1"), true),
            ("user.attributes.tier", "eq", json!("gold"), true),
            ("type", "contains", json!("paid"), true),
            ("user_id", "eq", json!("ada"), true),
        ] {
            assert_eq!(holds(field, op, value.clone()), wanted, "{field} {op} {value}");
        }
    }

    #[test]
    fn unlike_types_compare_false_whatever_is_asked() {
        for op in ["eq", "ne", "gt", "gte", "lt", "lte"] {
            for (field, value) in [
                ("data.text", json!(10)),
                ("data.amount", json!("100")),
                ("data.yes", json!(1)),
                ("data.yes", json!("true")),
            ] {
                assert!(!holds(field, op, value.clone()), "{field} {op} {value}");
            }
        }
        assert!(!holds("data.amount", "in", json!(["100"])) && !holds("data.amount", "in", json!("100")));
        assert!(!holds("data.amount", "contains", json!(1)) && !holds("data.text", "contains", json!(1)));
        assert!(!holds("data.tags", "contains", json!("7")));
        assert!(!holds("data.yes", "gt", json!(false)) && !holds("data.tags", "gt", json!([])), "have no order");
    }

    #[test]
    fn null_is_there_and_what_is_missing_is_not() {
        for (field, op, value, wanted) in [
            ("data.none", "exists", Value::Null, true),
            ("data.none", "exists", json!(true), true),
            ("data.none", "exists", json!(false), false),
            ("data.gone", "exists", json!(true), false),
            ("data.gone", "exists", json!(false), true),
            ("data.amount.x", "exists", json!(true), false),
            ("data.lines.1", "exists", json!(true), false),
            ("data.none", "eq", Value::Null, true),
            ("data.gone", "eq", Value::Null, false),
            ("data.gone", "ne", json!(1), false),
            ("data.amount", "ne", Value::Null, true),
            ("data.none", "ne", json!(1), true),
            ("data.amount", "eq", Value::Null, false),
        ] {
            assert_eq!(holds(field, op, value.clone()), wanted, "{field} {op} {value}");
        }
    }

    #[test]
    fn the_first_condition_that_does_not_hold_is_named() {
        let definition = |conditions: Value| -> RuleDefinition {
            serde_json::from_value(json!({"template_name": "t", "channels": ["email"], "conditions": conditions}))
                .unwrap()
        };
        let good = json!({"field": "data.amount", "op": "eq", "value": 100});
        let bad = json!({"field": "data.amount", "op": "eq", "value": 1});
        assert_eq!(definition(json!([])).unmet(&event()), None);
        assert_eq!(definition(json!([good, good])).unmet(&event()), None);
        assert_eq!(definition(json!([good, bad, bad])).unmet(&event()), Some(1));
    }

    #[test]
    fn a_condition_that_could_never_hold_is_told_apart() {
        let fault = |op: &str, value: Value| {
            Condition { field: "data.x".to_owned(), op: op.parse().unwrap(), value }.fault().is_some()
        };
        assert!(
            fault("in", json!("a"))
                && fault("exists", json!("yes"))
                && fault("gt", json!(null))
                && fault("lte", json!([1]))
        );
        assert!(
            !fault("in", json!([]))
                && !fault("exists", json!(null))
                && !fault("gt", json!("a"))
                && !fault("eq", json!(null))
        );
        for good in ["type", "user_id", "data", "data.a.b", "user.attributes.tier", "data.list.0"] {
            assert!(is_path(good), "{good}");
        }
        for bad in ["", "amount", "data.", "data..a", ".data", "users.id", "Data.a"] {
            assert!(!is_path(bad), "{bad}");
        }
    }

    #[test]
    fn a_type_is_heard_by_its_name_its_beginning_or_any() {
        let patterns = ["order.paid", "order.*", "*", "order", "order.paid.*", "invoice.*", "order.paid"];
        let index = RuleIndex::new(patterns);
        let heard = |event_type: &str| index.matching(event_type);
        assert_eq!(heard("order.paid"), [0, 1, 2, 6]);
        assert_eq!(heard("order"), [2, 3], "a beginning is not what begins with it");
        assert_eq!(heard("order.paid.twice"), [1, 2, 4]);
        assert_eq!(heard("orders.paid"), [2]);
        assert_eq!(heard("Order.paid"), [2], "case counts");
        assert_eq!(heard(""), [2]);
        assert!(RuleIndex::default().matching("order.paid").is_empty());
    }

    #[test]
    fn a_star_stands_at_the_end_or_alone() {
        for good in ["*", "order.*", "order.paid", "SUBSCRIPTION_PAYMENT_FAILED", "a.b.*", "größe"] {
            assert!(is_pattern(good), "{good}");
        }
        for bad in ["", ".*", "order*", "*.paid", "order.*.paid", "**", "order.**"] {
            assert!(!is_pattern(bad), "{bad}");
        }
    }
}
