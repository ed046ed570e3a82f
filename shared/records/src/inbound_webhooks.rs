//! The operations that both tables of inbound webhooks share: give rows back, put them off, end them.

use diesel::sql_types::{Array, Int4, Uuid as SqlUuid};
use store::{
    DbResult,
    sql::{sql, statements},
};
use uuid::Uuid;

use crate::InboundWebhookStore;

/// A table of inbound webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboundWebhook {
    /// The webhooks of WAHA.
    Waha,
    /// The webhooks of other providers.
    Provider,
}

impl InboundWebhookStore<'_> {
    /// Ends events as `done`, or as `ignored` if there is nothing to do.
    pub async fn end(self, of: InboundWebhook, done: Vec<Uuid>, ignored: Vec<Uuid>) -> DbResult<()> {
        if done.is_empty() && ignored.is_empty() {
            return Ok(());
        }
        let ended = [done.as_slice(), &ignored].concat();
        let query = match of {
            InboundWebhook::Waha => EndWaha { done, ended }.query(),
            InboundWebhook::Provider => EndProvider { done, ended }.query(),
        };
        query.run(self.store).await.map(drop)
    }

    /// Gives taken events back, so that they are taken again soon; events that ended meanwhile stay ended.
    pub async fn give_back(self, of: InboundWebhook, ids: Vec<Uuid>) -> DbResult<()> {
        let query = match of {
            InboundWebhook::Waha => GiveBackWaha { ids }.query(),
            InboundWebhook::Provider => GiveBackProvider { ids }.query(),
        };
        query.run(self.store).await.map(drop)
    }

    /// Delays each event by its number of milliseconds.
    pub async fn put_off(self, of: InboundWebhook, ids: Vec<Uuid>, waits_ms: Vec<i32>) -> DbResult<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let query = match of {
            InboundWebhook::Waha => PutOffWaha { ids, waits_ms }.query(),
            InboundWebhook::Provider => PutOffProvider { ids, waits_ms }.query(),
        };
        query.run(self.store).await.map(drop)
    }
}

sql!(EndWaha in "inbound_webhooks/end_waha.sql" {
    done: Vec<Uuid> as Array<SqlUuid>, ended: Vec<Uuid> as Array<SqlUuid>
});
sql!(EndProvider in "inbound_webhooks/end_provider.sql" {
    done: Vec<Uuid> as Array<SqlUuid>, ended: Vec<Uuid> as Array<SqlUuid>
});
sql!(GiveBackWaha in "inbound_webhooks/give_back_waha.sql" { ids: Vec<Uuid> as Array<SqlUuid> });
sql!(GiveBackProvider in "inbound_webhooks/give_back_provider.sql" { ids: Vec<Uuid> as Array<SqlUuid> });
sql!(PutOffWaha in "inbound_webhooks/put_off_waha.sql" {
    ids: Vec<Uuid> as Array<SqlUuid>, waits_ms: Vec<i32> as Array<Int4>
});
sql!(PutOffProvider in "inbound_webhooks/put_off_provider.sql" {
    ids: Vec<Uuid> as Array<SqlUuid>, waits_ms: Vec<i32> as Array<Int4>
});
statements!(EndWaha, EndProvider, GiveBackWaha, GiveBackProvider, PutOffWaha, PutOffProvider);
