//! Calls whose result may stay unknown, and the echoes that settle them.
//!
//! The row is written before the call, so an echo finds it even if the worker dies or the echo arrives before the
//! answer.

use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Uuid as SqlUuid};
use domain::{Channel, DeliveryId, ProviderName, TenantId};
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::HoldStore;

/// The subject of an event: tenant, delivery, run, channel.
pub type About = (TenantId, DeliveryId, i32, Channel);

/// A call about to be made.
#[derive(Clone, Copy, Debug)]
pub struct Begun<'a> {
    /// The delivery.
    pub delivery: DeliveryId,
    /// The tenant of the delivery.
    pub tenant: TenantId,
    /// The session that carries it.
    pub session: Uuid,
    /// The chat it goes to.
    pub chat_id: &'a str,
    /// The text of the message.
    pub body: &'a str,
    /// How long to wait if the result is unknown.
    pub hold_ms: i32,
}

row! {
    struct Waiting {
        tenant_id: i32 as Int4,
        delivery_id: Uuid as SqlUuid,
        run: i32 as Int4,
        channel: String as Text,
    }
}

impl HoldStore<'_> {
    /// Records a call before it is made. Returns whether an earlier call of the same delivery has an unknown result.
    pub async fn begin(self, begun: Begun<'_>) -> DbResult<bool> {
        let (chat, body) =
            (self.chat_hashes(begun.session, begun.chat_id), self.body_hashes(begun.session, begun.body));
        let newest = |hashes: Vec<Vec<u8>>| hashes.into_iter().next().unwrap_or_default();
        let (session, delivery, hold_ms) = (begun.session, begun.delivery.0, begun.hold_ms);
        let begin = Begin { session, chat_hash: newest(chat), body_hash: newest(body), hold_ms, delivery };
        begin.query().in_partition_of([&delivery]).row(self.store).await
    }

    /// Records the result of a call: `provider_ref` names the message if it was accepted. It is stored before the
    /// delivery log has it, so no echo of this message can be taken for another one's.
    pub async fn end(self, tenant: TenantId, delivery: DeliveryId, provider_ref: Option<String>) -> DbResult<()> {
        let provider = ProviderName::Waha.as_str();
        let end = End { delivery: delivery.0, provider, provider_ref, tenant: tenant.0 };
        end.query().run(self.store).await.map(drop)
    }

    /// Finds the call of a message that came back from the session's interface. Returns the delivery if it waits for
    /// this echo; the caller then writes the event `sent`. Returns nothing for a call that is under way, and for a
    /// message whose reference is already known. `provider_ref` is `<session id>/<id at WAHA>`.
    ///
    /// A hidden chat id (`…@lid`) does not show its number; there the text alone must identify one call.
    pub async fn resolve(
        self,
        session: Uuid,
        chat_id: &str,
        body: &str,
        provider_ref: &str,
    ) -> DbResult<Option<About>> {
        let resolve = Resolve {
            provider: ProviderName::Waha.as_str(),
            provider_ref: provider_ref.to_owned(),
            session,
            body_hashes: self.body_hashes(session, body),
            chat_hashes: (!is_hidden(chat_id)).then(|| self.chat_hashes(session, chat_id)),
        };
        let rows = resolve.query().rows(self.store).await?;
        Ok(rows.into_iter().find_map(about))
    }

    /// Reads up to `limit` calls that should have ended. Deletes those of deliveries that ended, and returns the
    /// deliveries that still wait although their message came back.
    pub async fn sweep(self, limit: i64) -> DbResult<Vec<About>> {
        let rows = Sweep { limit }.query().rows(self.store).await?;
        Ok(rows.into_iter().filter_map(about).collect())
    }

    fn chat_hashes(self, session: Uuid, chat_id: &str) -> Vec<Vec<u8>> {
        let hashes = self.store.sealer().fingerprints(&format!("hold/chat/{session}"), chat_id);
        hashes.iter().map(|hash| hash.to_vec()).collect()
    }

    /// WhatsApp trims the text that it sends.
    fn body_hashes(self, session: Uuid, body: &str) -> Vec<Vec<u8>> {
        let hashes = self.store.sealer().fingerprints(&format!("hold/body/{session}"), body.trim());
        hashes.iter().map(|hash| hash.to_vec()).collect()
    }
}

/// Whether the id of a chat hides its number.
fn is_hidden(chat_id: &str) -> bool {
    chat_id.ends_with("@lid")
}

fn about(Waiting { tenant_id, delivery_id, run, channel }: Waiting) -> Option<About> {
    Some((TenantId(tenant_id), DeliveryId(delivery_id), run, channel.parse().ok()?))
}

sql!(Begin in "holds/begin.sql" {
    session: Uuid as SqlUuid, chat_hash: Vec<u8> as Binary, body_hash: Vec<u8> as Binary, hold_ms: i32 as Int4,
    delivery: Uuid as SqlUuid
} -> bool as Bool);
sql!(End in "holds/end.sql" {
    delivery: Uuid as SqlUuid, provider: &'static str as Text, provider_ref: Option<String> as Nullable<Text>,
    tenant: i32 as Int4
});
sql!(Resolve in "holds/resolve.sql" {
    provider: &'static str as Text, provider_ref: String as Text, session: Uuid as SqlUuid,
    body_hashes: Vec<Vec<u8>> as Array<Binary>, chat_hashes: Option<Vec<Vec<u8>>> as Nullable<Array<Binary>>
} -> Waiting);
sql!(Sweep in "holds/sweep.sql" { limit: i64 as Int8 } -> Waiting);
statements!(Begin, End, Resolve, Sweep);
