//! Broadcasts: one notification for every person of a target.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Condition, Person, word::words};

words!(
    /// Where a broadcast stands.
    BroadcastStatus {
        /// It begins at its time.
        Scheduled = "scheduled",
        /// Its messages are being accepted.
        Running = "running",
        /// An admin paused it.
        Paused = "paused",
        /// All its messages are accepted.
        Completed = "completed",
        /// An admin ended it.
        Cancelled = "cancelled",
    }
);

/// The attribute that holds a person's subscription.
pub const TIER: &str = "tier";
/// The prefix of a condition's field that names an attribute.
const ATTRIBUTES: &str = "attributes.";

/// The people of a broadcast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// All people of the tenant.
    All {},
    /// People whose attribute `tier` has this value.
    Subscription {
        /// The tier.
        tier: String,
    },
    /// People whose attribute has this value.
    Attribute {
        /// Its name.
        name: String,
        /// Its value.
        value: Value,
    },
    /// These, known or not.
    Users {
        /// Their ids.
        ids: Vec<String>,
    },
    /// People for whom every condition holds.
    Query {
        /// Conditions on `locale`, `time_zone` and `attributes.…`.
        conditions: Vec<Condition>,
    },
}

impl Target {
    /// The attribute that selects people, if the target names one.
    pub fn attribute(&self) -> Option<(&str, Value)> {
        match self {
            Self::Subscription { tier } => Some((TIER, json!(tier))),
            Self::Attribute { name, value } => Some((name, value.clone())),
            Self::All {} | Self::Users { .. } | Self::Query { .. } => None,
        }
    }

    /// The conditions of a target of the kind `Query`; empty for other kinds.
    pub fn conditions(&self) -> &[Condition] {
        match self {
            Self::Query { conditions } => conditions,
            _ => &[],
        }
    }

    /// Whether its conditions hold for a person with these facts.
    pub fn means(&self, locale: Option<&str>, time_zone: Option<&str>, attributes: &Map<String, Value>) -> bool {
        let conditions = self.conditions();
        if conditions.is_empty() {
            return true;
        }
        // An unknown fact is absent, not null.
        let mut facts = Map::from_iter([("attributes".to_owned(), Value::Object(attributes.clone()))]);
        for (name, text) in [("locale", locale), ("time_zone", time_zone)] {
            facts.extend(text.map(|text| (name.to_owned(), json!(text))));
        }
        let facts = Value::Object(facts);
        conditions.iter().all(|condition| condition.holds(&facts))
    }

    /// Whether its conditions hold for a person.
    pub fn means_person(&self, person: &Person) -> bool {
        let zone = person.time_zone.map(|zone| zone.name());
        self.means(person.locale.as_deref(), zone, &person.attributes)
    }
}

/// Whether a condition of a target can use this field.
pub fn is_targetable(field: &str) -> bool {
    ["locale", "time_zone"].contains(&field) || field.strip_prefix(ATTRIBUTES).is_some_and(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(locale: Option<&str>, attributes: Value) -> Person {
        let Value::Object(attributes) = attributes else { panic!("{attributes}") };
        Person { locale: locale.map(str::to_owned), attributes, ..Person::unknown("ada") }
    }

    fn target(conditions: Value) -> Target {
        serde_json::from_value(json!({"type": "query", "conditions": conditions})).unwrap()
    }

    #[test]
    fn the_printed_targets_are_read_and_anything_beside_them_is_refused() {
        for printed in [
            json!({"type": "all"}),
            json!({"type": "subscription", "tier": "premium"}),
            json!({"type": "attribute", "name": "city", "value": "Wien"}),
            json!({"type": "users", "ids": ["a"]}),
        ] {
            let target: Target = serde_json::from_value(printed.clone()).unwrap();
            assert_eq!(serde_json::to_value(target).unwrap(), printed);
        }
        for other in [json!({"type": "all", "tier": "x"}), json!({"type": "none"}), json!({}), json!({"type": "users"})]
        {
            assert!(serde_json::from_value::<Target>(other.clone()).is_err(), "{other}");
        }
    }

    #[test]
    fn all_conditions_must_hold_of_a_person() {
        let target = target(
            json!([{"field": "locale", "op": "eq", "value": "de-AT"}, {"field": "attributes.age", "op": "gte", "value": 18}]),
        );
        assert!(target.means_person(&person(Some("de-AT"), json!({"age": 18}))));
        assert!(!target.means_person(&person(Some("de-AT"), json!({"age": "18"}))), "unlike types compare false");
        assert!(!target.means_person(&person(Some("de-AT"), json!({}))));
        assert!(!target.means_person(&person(None, json!({"age": 20}))));
    }

    #[test]
    fn conditions_look_at_what_a_target_can_know() {
        assert!(is_targetable("locale") && is_targetable("time_zone") && is_targetable("attributes.tier"));
        for field in ["email", "data.amount", "attributes.", "attributes", "user.attributes.tier"] {
            assert!(!is_targetable(field), "{field}");
        }
    }
}
