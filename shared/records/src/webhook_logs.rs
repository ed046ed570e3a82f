//! Calls to the receivers of webhook configurations. A receiver that is gone, or fails for days, is switched off.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{
    DeliveryId, TenantId,
    seal::{Column, Place},
};
use serde_json::Value;
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::WebhookLogStore;

/// A call to log.
#[derive(Clone)]
pub struct NewCall {
    /// Its id.
    pub id: Uuid,
    /// The tenant of the configuration.
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
    /// The request, masked and cut off.
    pub request: Value,
    /// The response, masked and cut off.
    pub response: Option<Value>,
    /// How long it took.
    pub duration_ms: i32,
    /// When.
    pub at: DateTime<Utc>,
}

impl std::fmt::Debug for NewCall {
    /// A log never shows the request.
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
    /// The request.
    pub request: Value,
    /// The response.
    pub response: Option<Value>,
    /// How long it took.
    pub duration_ms: i32,
    /// When.
    pub at: DateTime<Utc>,
}

row! {
    struct CallRow {
        id: Uuid as SqlUuid,
        event: Option<String> as Nullable<Text>,
        delivery: Uuid as SqlUuid,
        attempt: i32 as Int4,
        status: Option<i32> as Nullable<Int4>,
        request: Vec<u8> as Binary,
        response: Option<Vec<u8>> as Nullable<Binary>,
        duration_ms: i32 as Int4,
        at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    struct Disabled {
        id: Uuid as SqlUuid,
        why: String as Text,
    }
}

impl WebhookLogStore<'_> {
    /// Stores calls, each once. A configuration that answered 410, or whose calls all failed for `disable_after_ms`, is
    /// switched off, and the tenant's other configurations get an event about it. Returns the configurations switched
    /// off, and why.
    pub async fn insert(self, calls: &[NewCall], disable_after_ms: i64) -> DbResult<Vec<(Uuid, String)>> {
        let seal = |place: Place, value: &Value| self.store.sealer().seal(place, value.to_string().as_bytes());
        let request = |call: &NewCall| seal(sealed::LOG_REQUEST.of(call.tenant), &call.request);
        let response = |call: &NewCall| {
            call.response.as_ref().map(|value| seal(sealed::LOG_RESPONSE.of(call.tenant), value)).transpose()
        };
        let requests: Result<Vec<_>, _> = calls.iter().map(request).collect();
        let responses: Result<Vec<_>, _> = calls.iter().map(response).collect();
        let log = Log {
            ids: column(calls, |call| call.id),
            tenants: column(calls, |call| call.tenant.0),
            configurations: column(calls, |call| call.configuration),
            events: column(calls, |call| call.event.as_ref().map(|name| name.replace('\0', ""))),
            deliveries: column(calls, |call| call.delivery.0),
            attempts: column(calls, |call| call.attempt),
            statuses: column(calls, |call| call.status),
            requests: requests?,
            responses: responses?,
            durations_ms: column(calls, |call| call.duration_ms),
            at: column(calls, |call| call.at),
            taken: column(calls, |call| call.is_taken),
            disable_after_ms,
        };
        let disabled = log.query().rows(self.store).await?;
        Ok(disabled.into_iter().map(|Disabled { id, why }| (id, why)).collect())
    }

    /// Up to `limit` calls of a configuration, newest first; only those before `before`, if given.
    pub async fn list(
        self,
        tenant: TenantId,
        configuration: Uuid,
        before: Option<Uuid>,
        limit: i64,
    ) -> DbResult<Vec<Call>> {
        let list = List { configuration, tenant: tenant.0, before: before.unwrap_or(Uuid::max()), limit };
        let rows = list.query().within(Some(tenant)).rows(self.store).await?;
        let open = |column: Column, stored: Vec<u8>| -> Value {
            let opened = self.store.opened(column.of(tenant), stored).unwrap_or_default();
            serde_json::from_slice(&opened).unwrap_or_default()
        };
        let call = |row: CallRow| {
            let CallRow { id, event, delivery, attempt, status, request, response, duration_ms, at } = row;
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

sql!(Log in "webhook_logs/log.sql" {
    ids: Vec<Uuid> as Array<SqlUuid>, tenants: Vec<i32> as Array<Int4>, configurations: Vec<Uuid> as Array<SqlUuid>,
    events: Vec<Option<String>> as Array<Nullable<Text>>, deliveries: Vec<Uuid> as Array<SqlUuid>,
    attempts: Vec<i32> as Array<Int4>, statuses: Vec<Option<i32>> as Array<Nullable<Int4>>,
    requests: Vec<Vec<u8>> as Array<Binary>, responses: Vec<Option<Vec<u8>>> as Array<Nullable<Binary>>,
    durations_ms: Vec<i32> as Array<Int4>, at: Vec<DateTime<Utc>> as Array<Timestamptz>,
    taken: Vec<bool> as Array<Bool>, disable_after_ms: i64 as Int8
} -> Disabled);
sql!(List in "webhook_logs/list.sql" {
    configuration: Uuid as SqlUuid, tenant: i32 as Int4, before: Uuid as SqlUuid, limit: i64 as Int8
} -> CallRow);
statements!(Log, List);
