//! Filters of dead letters.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use diesel::{
    BoolExpressionMethods, ExpressionMethods, IntoSql, QueryDsl,
    dsl::{now, sql},
    pg::Pg,
    sql_types::{Bool, Text, Timestamptz},
};
use domain::{Channel, DeadReason, TenantId, UnknownWord, contract::submission::parse_time};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use uuid::Uuid;

use super::LetterAction;
use crate::schema::dead_letters;

/// The status of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LetterStatus {
    /// It has not been dealt with.
    Open,
    /// It was started again.
    Replayed,
    /// Dropped, because it is not worth a replay.
    Dropped,
}

impl LetterStatus {
    const ALL: [Self; 3] = [Self::Open, Self::Replayed, Self::Dropped];

    /// The word in the column.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replayed => "replayed",
            Self::Dropped => "dropped",
        }
    }
}

impl FromStr for LetterStatus {
    type Err = UnknownWord;

    /// Case does not matter, as in every status filter.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|status| status.as_str().eq_ignore_ascii_case(text));
        found.ok_or_else(|| UnknownWord { expected: Self::ALL.map(Self::as_str).join(", ") })
    }
}

impl<'de> Deserialize<'de> for LetterStatus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Selects letters; `None` does not restrict. It is stored with each replay as given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LetterFilter {
    /// One of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<Uuid>>,
    /// With this status. For lists only, since only open letters can be moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<LetterStatus>,
    /// On this channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<Channel>,
    /// For this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<DeadReason>,
    /// Of this message, or with this AMQP `message_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// Of the tenant with this slug; for operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Stored at this time or later.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "time")]
    pub since: Option<DateTime<Utc>>,
    /// Stored before this time.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "time")]
    pub until: Option<DateTime<Utc>>,
    /// Confirms that all letters are meant; required if nothing else is set.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Also replays letters that were refused because their publisher may not publish for the tenant. Filtering by that
    /// reason does the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub despite_tenant: bool,
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let moment = |text: String| parse_time(&text).ok_or_else(|| D::Error::custom("a time must be RFC 3339"));
    text.map(moment).transpose()
}

pub(super) type LetterQuery = dead_letters::BoxedQuery<'static, Pg>;

impl LetterFilter {
    /// Whether it restricts nothing; `all` and `despite_tenant` do not count.
    pub fn is_empty(&self) -> bool {
        *self == Self { all: self.all, despite_tenant: self.despite_tenant, ..Self::default() }
    }

    /// The letters that `scope` may see and the filter selects.
    pub(super) fn query(&self, scope: Option<TenantId>) -> LetterQuery {
        let mut query = dead_letters::table.into_boxed();
        if let Some(TenantId(tenant)) = scope {
            query = query.filter(dead_letters::tenant_id.eq(tenant));
        }
        if let Some(slug) = self.tenant.clone() {
            let same =
                sql::<Bool>("tenant_id = (SELECT t.id FROM tenants t WHERE t.slug = ").bind::<Text, _>(slug).sql(")");
            query = query.filter(same);
        }
        if let Some(status) = self.status {
            query = query.filter(dead_letters::status.eq(status.as_str()));
        }
        self.restrict(query)
    }

    /// Those of them that are open by now and that `action` moves.
    pub(super) fn open(&self, scope: Option<TenantId>, action: LetterAction) -> LetterQuery {
        let open = Self { status: Some(LetterStatus::Open), ..self.clone() };
        open.moved_by(action, scope).filter(dead_letters::created_at.le(now.into_sql::<Timestamptz>()))
    }

    /// The letters that `scope` may see, the filter selects and `action` moves.
    pub(super) fn moved_by(&self, action: LetterAction, scope: Option<TenantId>) -> LetterQuery {
        let query = self.query(scope);
        let takes_all = self.despite_tenant || self.reason == Some(DeadReason::Tenant);
        match action {
            LetterAction::Replay if !takes_all => query.filter(dead_letters::reason.ne(DeadReason::Tenant.as_str())),
            LetterAction::Replay | LetterAction::Drop => query,
        }
    }

    fn restrict(&self, mut query: LetterQuery) -> LetterQuery {
        if let Some(ids) = self.ids.clone() {
            query = query.filter(dead_letters::id.eq_any(ids));
        }
        if let Some(channel) = self.channel {
            query = query.filter(dead_letters::channel.eq(channel.as_str()));
        }
        if let Some(reason) = self.reason {
            query = query.filter(dead_letters::reason.eq(reason.as_str()));
        }
        if let Some(text) = self.message_id.clone() {
            query = match text.parse::<Uuid>() {
                Ok(id) => query.filter(dead_letters::message_id.eq(id).or(dead_letters::amqp_id.eq(text))),
                Err(_) => query.filter(dead_letters::amqp_id.eq(text)),
            };
        }
        if let Some(since) = self.since {
            query = query.filter(dead_letters::created_at.ge(since));
        }
        if let Some(until) = self.until {
            query = query.filter(dead_letters::created_at.lt(until));
        }
        query
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_survives_being_stored() {
        let text = r#"{"ids":["0191d8a0-0000-7000-8000-000000000001"],"status":"OPEN","channel":"in-app","reason":"poison",
            "message_id":"order-7","tenant":"acme","since":"2026-01-02T03:04:05","until":"2026-01-02T03:04:05+01:00","all":true}"#;
        let filter: LetterFilter = serde_json::from_str(text).unwrap();
        let stored = serde_json::to_value(&filter).unwrap();
        assert_eq!(stored["status"], "open");
        assert_eq!(stored["channel"], "in_app");
        assert_eq!(stored["since"], "2026-01-02T03:04:05Z");
        assert_eq!(serde_json::from_value::<LetterFilter>(stored).unwrap(), filter);
    }

    #[test]
    fn what_a_filter_does_not_know_it_refuses() {
        for bad in [
            r#"{"chanel":"sms"}"#,
            r#"{"channel":"fax"}"#,
            r#"{"since":"yesterday"}"#,
            r#"{"ids":["1"]}"#,
            r#"{"status":"lost"}"#,
        ] {
            assert!(serde_json::from_str::<LetterFilter>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_alone_restricts_nothing() {
        assert!(LetterFilter { all: true, despite_tenant: true, ..LetterFilter::default() }.is_empty());
        assert!(!LetterFilter { ids: Some(Vec::new()), ..LetterFilter::default() }.is_empty());
    }
}
