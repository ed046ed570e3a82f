//! Schemas of the OpenAPI document for types of other crates.

use chrono::{DateTime, Utc};
use utoipa::ToSchema;
use uuid::Uuid;

/// A dead letter.
#[derive(ToSchema)]
#[schema(as = DeadLetter)]
pub struct DeadLetterBody {
    /// Its id.
    pub id: Uuid,
    /// The slug of its tenant; `null` if it is unknown.
    pub tenant: Option<String>,
    /// The message whose delivery died.
    pub message_id: Option<Uuid>,
    /// The delivery that died.
    pub delivery_id: Option<Uuid>,
    /// The channel, as far as it is known.
    pub channel: Option<String>,
    /// `delivery`, `intake` or `broker`.
    #[schema(example = "delivery")]
    pub origin: String,
    /// Why.
    #[schema(example = "attempts_exhausted")]
    pub reason: String,
    /// The event in a clause.
    pub detail: String,
    /// The `message_id` property of a refused publish.
    pub amqp_id: Option<String>,
    /// The routing key of a refused publish.
    pub routing_key: Option<String>,
    /// Whether the body of the refused publish was kept.
    pub has_body: bool,
    /// `open`, `replayed` or `dropped`.
    #[schema(example = "open")]
    pub status: String,
    /// The replay that moved it.
    pub replay_id: Option<Uuid>,
    /// When it was written down.
    pub created_at: DateTime<Utc>,
}

/// Selects dead letters. An absent field does not restrict.
#[derive(ToSchema)]
#[schema(as = DeadLetterFilter)]
pub struct LetterFilterBody {
    /// One of these.
    pub ids: Option<Vec<Uuid>>,
    /// The channel.
    pub channel: Option<String>,
    /// The reason.
    pub reason: Option<String>,
    /// The message, or the AMQP `message_id`.
    pub message_id: Option<String>,
    /// The slug of a tenant, for operators.
    pub tenant: Option<String>,
    /// Stored at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Written down before this time.
    pub until: Option<DateTime<Utc>>,
}

/// A replay or drop and its progress.
#[derive(ToSchema)]
#[schema(as = Replay)]
pub struct ReplayStateBody {
    /// Its id.
    pub id: Uuid,
    /// `replay` or `drop`.
    #[schema(example = "replay")]
    pub action: String,
    /// Which letters were meant.
    #[schema(value_type = Object)]
    pub filter: serde_json::Value,
    /// The person who requested it: role and subject.
    #[schema(example = "admin:0191d8a0-0000-7000-8000-000000000001")]
    pub actor: String,
    /// Why.
    pub note: String,
    /// Letters a second.
    pub rate: Option<i32>,
    /// Open letters that matched at the start.
    pub matched: i32,
    /// Letters moved so far.
    pub replayed: i32,
    /// Letters that could not be moved.
    pub skipped: i32,
    /// `running`, `done` or `cancelled`.
    #[schema(example = "done")]
    pub status: String,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

/// An entry of the audit log.
#[derive(ToSchema)]
#[schema(as = AuditEntry)]
pub struct AuditEntryBody {
    /// Its number in the chain.
    pub id: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// The slug of the tenant; `null` if it concerns no tenant, or several.
    #[schema(example = "acme")]
    pub tenant: Option<String>,
    /// The actor: role and subject, or `cli:` and a user of the machine.
    #[schema(example = "admin:0191d8a0-0000-7000-8000-000000000001")]
    pub actor: String,
    /// The action: method and route, or the command.
    #[schema(example = "DELETE /api/admin/keys/{id}")]
    pub action: String,
    /// The target: the ids of the path, or the id of a new object.
    #[schema(example = "0191d8a0-0000-7000-8000-000000000002")]
    pub target: String,
    /// The `X-Request-Id` of the call.
    pub request_id: Option<String>,
}
