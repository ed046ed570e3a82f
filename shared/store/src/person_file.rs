//! What is kept about one person beside messages and inbox, page by page: for the person, who may ask for all of it.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{TenantId, seal::Place};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{DbResult, Statement, Store, sealed, statement};

impl Store {
    /// The person's preferences, as they are stored.
    pub async fn preferences_as_stored(&self, tenant: TenantId, user_id: &str) -> DbResult<Option<Value>> {
        let query = statement::<Nullable<Text>>(PREFERENCES).within(Some(tenant)).bind::<Int4, _>(tenant.0);
        let rows: Vec<Option<String>> = query.bind::<Text, _>(user_id.to_owned()).rows(self).await?;
        Ok(rows.into_iter().flatten().next().and_then(|json| serde_json::from_str(&json).ok()))
    }

    /// Devices with their tokens.
    pub async fn devices_as_stored(&self, tenant: TenantId, user_id: &str) -> DbResult<Vec<Value>> {
        type Row = (Uuid, String, Option<String>, DateTime<Utc>);
        let query = statement::<(SqlUuid, Text, Nullable<Text>, Timestamptz)>(DEVICES).within(Some(tenant));
        let query = query.bind::<Int4, _>(tenant.0).bind::<Text, _>(user_id.to_owned());
        let rows: Vec<Row> = query.rows(self).await?;
        let device = |(id, token, platform, created_at): Row| {
            let token = self.opened_text(sealed::DEVICE.of(tenant), token);
            json!({"id": id, "token": token, "platform": platform, "created_at": created_at})
        };
        Ok(rows.into_iter().map(device).collect())
    }

    /// Events from other systems about a person, newest first; those older than `before`.
    pub async fn events_about(
        &self,
        tenant: TenantId,
        user_id: &str,
        before: Uuid,
        limit: i64,
    ) -> DbResult<Vec<(Uuid, Value)>> {
        type Row = (Uuid, String, Vec<u8>, DateTime<Utc>);
        let query = page::<(SqlUuid, Text, Binary, Timestamptz)>(EVENTS, tenant, user_id, before, limit);
        let rows: Vec<Row> = query.rows(self).await?;
        let event = |(id, event_type, data, created_at): Row| {
            let data = self.opened_json(sealed::EVENT_DATA.of(tenant), data);
            (id, json!({"id": id, "event_type": event_type, "data": data, "created_at": created_at}))
        };
        Ok(rows.into_iter().map(event).collect())
    }

    /// Digests of a person with what gathered in them, newest first; those older than `before`.
    pub async fn digests_of(
        &self,
        tenant: TenantId,
        user_id: &str,
        before: Uuid,
        limit: i64,
    ) -> DbResult<Vec<(Uuid, Value)>> {
        type Row = ((Uuid, Uuid, String), (DateTime<Utc>, DateTime<Utc>, Option<Uuid>, Vec<Vec<u8>>));
        type SqlRow = ((SqlUuid, SqlUuid, Text), (Timestamptz, Timestamptz, Nullable<SqlUuid>, Array<Binary>));
        let rows: Vec<Row> = page::<SqlRow>(DIGESTS, tenant, user_id, before, limit).rows(self).await?;
        let digest = |((id, rule, key), (opened_at, closes_at, message, items)): Row| {
            let place = sealed::DIGEST_ITEM.of(tenant);
            let items: Vec<Value> = items.into_iter().map(|item| self.opened_json(place, item)).collect();
            let digest = json!({"id": id, "rule_id": rule, "key": key, "opened_at": opened_at, "closes_at": closes_at,
                "message_id": message, "items": items});
            (id, digest)
        };
        Ok(rows.into_iter().map(digest).collect())
    }

    /// WhatsApp messages from a number, newest first; those older than `before`.
    pub async fn inbound_from(
        &self,
        tenant: TenantId,
        phone: &str,
        before: Uuid,
        limit: i64,
    ) -> DbResult<Vec<(Uuid, Value)>> {
        type Row = (Uuid, String, Vec<u8>, DateTime<Utc>);
        let prints = self.sealer().fingerprints(&tenant.to_string(), phone);
        let query = statement::<(SqlUuid, Text, Binary, Timestamptz)>(INBOUND)
            .bind::<Int4, _>(tenant.0)
            .bind::<Array<Binary>, _>(prints.iter().map(|print| print.to_vec()).collect::<Vec<_>>())
            .bind::<SqlUuid, _>(before)
            .bind::<Int8, _>(limit);
        let rows: Vec<Row> = query.within(Some(tenant)).rows(self).await?;
        let message = |(id, kind, content, sent_at): Row| {
            let content = self.opened_json(sealed::INBOUND_CONTENT.of(tenant), content);
            (id, json!({"id": id, "type": kind, "content": content, "sent_at": sent_at}))
        };
        Ok(rows.into_iter().map(message).collect())
    }

    fn opened_json(&self, place: Place, stored: Vec<u8>) -> Value {
        serde_json::from_slice(&self.opened(place, stored).unwrap_or_default()).unwrap_or_default()
    }
}

/// A statement on a page of what is a person's.
fn page<Row>(text: &'static str, tenant: TenantId, user_id: &str, before: Uuid, limit: i64) -> Statement<Row> {
    let own = statement(text).within(Some(tenant)).bind::<Int4, _>(tenant.0).bind::<Text, _>(user_id.to_owned());
    own.bind::<SqlUuid, _>(before).bind::<Int8, _>(limit)
}

const PREFERENCES: &str = "SELECT preferences::text FROM users WHERE tenant_id = ? AND user_id = ?";

const DEVICES: &str =
    "SELECT id, token, platform, created_at FROM devices WHERE tenant_id = ? AND user_id = ? ORDER BY id";

const EVENTS: &str = "
SELECT id, event_type, data, created_at FROM event_log
WHERE tenant_id = ? AND user_id = ? AND id < ? ORDER BY id DESC LIMIT ?";

const DIGESTS: &str = "
SELECT d.id, d.rule_id, d.key, d.opened_at, d.closes_at, d.message_id,
       ARRAY(SELECT i.data FROM digest_items i WHERE i.digest_id = d.id ORDER BY i.event_id LIMIT 1000)
FROM digests d WHERE d.tenant_id = ? AND d.user_id = ? AND d.id < ? ORDER BY d.id DESC LIMIT ?";

const INBOUND: &str = "
SELECT id, kind, content, sent_at FROM wa_inbound
WHERE tenant_id = ? AND chat_hash = ANY (?::bytea[]) AND id < ? ORDER BY id DESC LIMIT ?";
