//! The data of one person beside messages and inbox, page by page: the person may ask for all of it.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{TenantId, seal::Place};
use serde_json::{Value, json};
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::PersonFileStore;

row! {
    struct DeviceRow {
        id: Uuid as SqlUuid,
        token: String as Text,
        platform: Option<String> as Nullable<Text>,
        created_at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    struct EventRow {
        id: Uuid as SqlUuid,
        event_type: String as Text,
        data: Vec<u8> as Binary,
        created_at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    struct DigestRow {
        id: Uuid as SqlUuid,
        rule_id: Uuid as SqlUuid,
        key: String as Text,
        opened_at: DateTime<Utc> as Timestamptz,
        closes_at: DateTime<Utc> as Timestamptz,
        message_id: Option<Uuid> as Nullable<SqlUuid>,
        items: Vec<Vec<u8>> as Array<Binary>,
    }
}

row! {
    struct InboundRow {
        id: Uuid as SqlUuid,
        kind: String as Text,
        content: Vec<u8> as Binary,
        sent_at: DateTime<Utc> as Timestamptz,
    }
}

impl PersonFileStore<'_> {
    /// The person's preferences, as stored.
    pub async fn preferences_as_stored(self, tenant: TenantId, user_id: &str) -> DbResult<Option<Value>> {
        let query = Preferences { tenant: tenant.0, user_id: user_id.to_owned() }.query();
        let json = query.within(Some(tenant)).first(self.store).await?.flatten();
        Ok(json.and_then(|json| serde_json::from_str(&json).ok()))
    }

    /// Devices with their tokens.
    pub async fn devices_as_stored(self, tenant: TenantId, user_id: &str) -> DbResult<Vec<Value>> {
        let query = Devices { tenant: tenant.0, user_id: user_id.to_owned() }.query();
        let rows = query.within(Some(tenant)).rows(self.store).await?;
        let device = |DeviceRow { id, token, platform, created_at }| {
            let token = self.store.opened_text(sealed::DEVICE.of(tenant), token);
            json!({"id": id, "token": token, "platform": platform, "created_at": created_at})
        };
        Ok(rows.into_iter().map(device).collect())
    }

    /// Events from other systems about a person, newest first; only those older than `before`.
    pub async fn events_about(
        self,
        tenant: TenantId,
        user_id: &str,
        before: Uuid,
        limit: i64,
    ) -> DbResult<Vec<(Uuid, Value)>> {
        let query = Events { tenant: tenant.0, user_id: user_id.to_owned(), before, limit }.query();
        let rows = query.within(Some(tenant)).rows(self.store).await?;
        let event = |EventRow { id, event_type, data, created_at }| {
            let data = self.opened_json(sealed::EVENT_DATA.of(tenant), data);
            (id, json!({"id": id, "event_type": event_type, "data": data, "created_at": created_at}))
        };
        Ok(rows.into_iter().map(event).collect())
    }

    /// Digests of a person with their events, newest first; only those older than `before`.
    pub async fn digests_of(
        self,
        tenant: TenantId,
        user_id: &str,
        before: Uuid,
        limit: i64,
    ) -> DbResult<Vec<(Uuid, Value)>> {
        let query = Digests { tenant: tenant.0, user_id: user_id.to_owned(), before, limit }.query();
        let rows = query.within(Some(tenant)).rows(self.store).await?;
        let digest = |row: DigestRow| {
            let place = sealed::DIGEST_ITEM.of(tenant);
            let items: Vec<Value> = row.items.into_iter().map(|item| self.opened_json(place, item)).collect();
            let digest = json!({"id": row.id, "rule_id": row.rule_id, "key": row.key, "opened_at": row.opened_at,
                "closes_at": row.closes_at, "message_id": row.message_id, "items": items});
            (row.id, digest)
        };
        Ok(rows.into_iter().map(digest).collect())
    }

    /// WhatsApp messages from a number, newest first; only those older than `before`.
    pub async fn inbound_from(
        self,
        tenant: TenantId,
        phone: &str,
        before: Uuid,
        limit: i64,
    ) -> DbResult<Vec<(Uuid, Value)>> {
        let prints = self.store.sealer().fingerprints(&tenant.to_string(), phone);
        let prints = prints.iter().map(|print| print.to_vec()).collect();
        let query = Inbound { tenant: tenant.0, prints, before, limit }.query();
        let rows = query.within(Some(tenant)).rows(self.store).await?;
        let message = |InboundRow { id, kind, content, sent_at }| {
            let content = self.opened_json(sealed::INBOUND_CONTENT.of(tenant), content);
            (id, json!({"id": id, "type": kind, "content": content, "sent_at": sent_at}))
        };
        Ok(rows.into_iter().map(message).collect())
    }

    fn opened_json(self, place: Place, stored: Vec<u8>) -> Value {
        serde_json::from_slice(&self.store.opened(place, stored).unwrap_or_default()).unwrap_or_default()
    }
}

sql!(Preferences in "person_file/preferences.sql" {
    tenant: i32 as Int4, user_id: String as Text
} -> Option<String> as Nullable<Text>);
sql!(Devices in "person_file/devices.sql" { tenant: i32 as Int4, user_id: String as Text } -> DeviceRow);
sql!(Events in "person_file/events.sql" {
    tenant: i32 as Int4, user_id: String as Text, before: Uuid as SqlUuid, limit: i64 as Int8
} -> EventRow);
sql!(Digests in "person_file/digests.sql" {
    tenant: i32 as Int4, user_id: String as Text, before: Uuid as SqlUuid, limit: i64 as Int8
} -> DigestRow);
sql!(Inbound in "person_file/inbound.sql" {
    tenant: i32 as Int4, prints: Vec<Vec<u8>> as Array<Binary>, before: Uuid as SqlUuid, limit: i64 as Int8
} -> InboundRow);
statements!(Preferences, Devices, Events, Digests, Inbound);
