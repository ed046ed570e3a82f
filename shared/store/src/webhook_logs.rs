//! Calls to the receivers of webhook configurations: a receiver that is gone, or fails for days, is switched off.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{
    DeliveryId, TenantId,
    seal::{Column, Place},
};
use serde_json::Value;
use uuid::Uuid;

use super::{DbResult, Store, sealed, statement, webhook_events::enqueue_webhook_events};

/// A call to log.
#[derive(Clone)]
pub struct NewCall {
    /// Its id.
    pub id: Uuid,
    /// Whose configuration.
    pub tenant: TenantId,
    /// The configuration.
    pub configuration: Uuid,
    /// The event's name, or the kind of message.
    pub event: Option<String>,
    /// The delivery, which is the `webhook-id`.
    pub delivery: DeliveryId,
    /// Which attempt, from 1.
    pub attempt: i32,
    /// The status of the answer; `None`: there was none.
    pub status: Option<i32>,
    /// Whether the receiver took it.
    pub is_taken: bool,
    /// What was sent, masked and cut off.
    pub request: Value,
    /// What was answered, masked and cut off.
    pub response: Option<Value>,
    /// How long it took.
    pub duration_ms: i32,
    /// When.
    pub at: DateTime<Utc>,
}

impl std::fmt::Debug for NewCall {
    /// What was sent never shows in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewCall")
            .field("delivery", &self.delivery)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// A logged call.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its id.
    pub id: Uuid,
    /// The event's name.
    pub event: Option<String>,
    /// The delivery.
    pub delivery: Uuid,
    /// Which attempt.
    pub attempt: i32,
    /// The status of the answer.
    pub status: Option<i32>,
    /// What was sent.
    pub request: Value,
    /// What was answered.
    pub response: Option<Value>,
    /// How long it took.
    pub duration_ms: i32,
    /// When.
    pub at: DateTime<Utc>,
}

type Row = (Uuid, Option<String>, Uuid, i32, Option<i32>, Vec<u8>, Option<Vec<u8>>, (i32, DateTime<Utc>));
type SqlRow = (SqlUuid, Nullable<Text>, SqlUuid, Int4, Nullable<Int4>, Binary, Nullable<Binary>, (Int4, Timestamptz));

impl Store {
    /// Writes calls down, each once. A configuration that answered 410, or whose calls all failed for `disable_after_ms`, is
    /// switched off, and the tenant's others hear of it; returns which, and why.
    pub async fn log_calls(&self, calls: &[NewCall], disable_after_ms: i64) -> DbResult<Vec<(Uuid, String)>> {
        let seal = |place: Place, value: &Value| self.sealer().seal(place, value.to_string().as_bytes());
        let request = |call: &NewCall| seal(sealed::LOG_REQUEST.of(call.tenant), &call.request);
        let response = |call: &NewCall| {
            call.response.as_ref().map(|value| seal(sealed::LOG_RESPONSE.of(call.tenant), value)).transpose()
        };
        let requests: Result<Vec<_>, _> = calls.iter().map(request).collect();
        let responses: Result<Vec<_>, _> = calls.iter().map(response).collect();
        let query = statement::<(SqlUuid, Text)>(LOG)
            .bind::<Array<SqlUuid>, _>(column(calls, |call| call.id))
            .bind::<Array<Int4>, _>(column(calls, |call| call.tenant.0))
            .bind::<Array<SqlUuid>, _>(column(calls, |call| call.configuration))
            .bind::<Array<Nullable<Text>>, _>(column(calls, |call| {
                call.event.as_ref().map(|name| name.replace('\0', ""))
            }))
            .bind::<Array<SqlUuid>, _>(column(calls, |call| call.delivery.0))
            .bind::<Array<Int4>, _>(column(calls, |call| call.attempt))
            .bind::<Array<Nullable<Int4>>, _>(column(calls, |call| call.status))
            .bind::<Array<Binary>, _>(requests?)
            .bind::<Array<Nullable<Binary>>, _>(responses?)
            .bind::<Array<Int4>, _>(column(calls, |call| call.duration_ms))
            .bind::<Array<Timestamptz>, _>(column(calls, |call| call.at))
            .bind::<Array<Bool>, _>(column(calls, |call| call.is_taken))
            .bind::<Int8, _>(disable_after_ms);
        query.rows(self).await
    }

    /// Up to `limit` calls of a configuration, newest first; those before `before`, if given.
    pub async fn calls(
        &self,
        tenant: TenantId,
        configuration: Uuid,
        before: Option<Uuid>,
        limit: i64,
    ) -> DbResult<Vec<Call>> {
        let query = statement::<SqlRow>(LIST)
            .bind::<SqlUuid, _>(configuration)
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(before.unwrap_or(Uuid::max()))
            .bind::<Int8, _>(limit);
        let rows: Vec<Row> = query.within(Some(tenant)).rows(self).await?;
        let open = |column: Column, stored: Vec<u8>| -> Value {
            let opened = self.opened(column.of(tenant), stored).unwrap_or_default();
            serde_json::from_slice(&opened).unwrap_or_default()
        };
        let call = |(id, event, delivery, attempt, status, request, response, (duration_ms, at)): Row| {
            let request = open(sealed::LOG_REQUEST, request);
            let response = response.map(|response| open(sealed::LOG_RESPONSE, response));
            Call { id, event, delivery, attempt, status, request, response, duration_ms, at }
        };
        Ok(rows.into_iter().map(call).collect())
    }
}

fn column<T>(calls: &[NewCall], of: impl Fn(&NewCall) -> T) -> Vec<T> {
    calls.iter().map(of).collect()
}

/// A configuration that was removed meanwhile has no log. Only what changes anything is updated.
const LOG: &str = concat!(
    "
WITH l AS MATERIALIZED (
    SELECT * FROM unnest(?::uuid[], ?::int4[], ?::uuid[], ?::text[], ?::uuid[], ?::int4[], ?::int4[], ?::bytea[], ?::bytea[], ?::int4[],
                         ?::timestamptz[], ?::bool[])
        AS l (id, tenant_id, configuration_id, event, delivery_id, attempt, response_status, request, response, duration_ms, created_at, taken)
), written AS (
    INSERT INTO webhook_logs (id, tenant_id, configuration_id, event, delivery_id, attempt, response_status, request, response, duration_ms, created_at)
    SELECT l.id, l.tenant_id, l.configuration_id, event, delivery_id, attempt, response_status, request, response, duration_ms, l.created_at
    FROM l JOIN webhook_configurations c ON c.id = l.configuration_id
    ON CONFLICT DO NOTHING
), seen AS (
    SELECT configuration_id, bool_or(taken) AS taken, coalesce(bool_or(response_status = 410), false) AS gone, min(created_at) AS since
    FROM l GROUP BY configuration_id ORDER BY configuration_id
), judged AS (
    UPDATE webhook_configurations c
    SET failing_since = CASE WHEN s.taken THEN NULL ELSE coalesce(c.failing_since, s.since) END,
        is_active = NOT (s.gone OR v.failing), disabled_at = CASE WHEN s.gone OR v.failing THEN now() END,
        disabled_why = CASE WHEN s.gone THEN 'gone' WHEN v.failing THEN 'failing' END,
        swept_at = NULL
    FROM seen s JOIN webhook_configurations o ON o.id = s.configuration_id
    CROSS JOIN LATERAL (
        SELECT coalesce(NOT s.taken AND o.failing_since < now() - ?::int8 * interval '1 millisecond', false) AS failing) v
    WHERE c.id = s.configuration_id AND c.is_active AND (s.gone OR v.failing OR s.taken = (c.failing_since IS NOT NULL))
    RETURNING c.id, c.tenant_id, c.name, c.url, c.is_active, c.disabled_why
), heard AS (",
    enqueue_webhook_events!(plain
        "
    SELECT tenant_id, NULL::text, NULL::uuid, 'endpoint.disabled', clock_timestamp(), id, NULL::int4,
           jsonb_build_object('configuration_id', id, 'name', name, 'url', url, 'reason', disabled_why)
    FROM judged WHERE NOT is_active"
    ),
    "
)
SELECT id, disabled_why FROM judged WHERE NOT is_active"
);

const LIST: &str = "
SELECT id, event, delivery_id, attempt, response_status, request, response, duration_ms, created_at
FROM webhook_logs WHERE configuration_id = ? AND tenant_id = ? AND id < ? ORDER BY id DESC LIMIT ?";
