//! Calls whose end may stay unknown, and the echoes that settle them.
//!
//! A row stands from before the call, so that an echo finds it even if the worker dies or the echo overtakes the answer.

use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Uuid as SqlUuid};
use domain::{Channel, DeliveryId, ProviderName, TenantId};
use uuid::Uuid;

use super::{DbResult, Store, statement};

/// Whose, what, at which run, on which channel: what an event is about.
pub type About = (TenantId, DeliveryId, i32, Channel);

/// A call that is about to be made.
#[derive(Clone, Copy, Debug)]
pub struct Begun<'a> {
    /// The delivery.
    pub delivery: DeliveryId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The session that carries it.
    pub session: Uuid,
    /// The chat it goes to.
    pub chat_id: &'a str,
    /// What it says.
    pub body: &'a str,
    /// How long an unknown end is waited for.
    pub hold_ms: i32,
}

impl Store {
    /// Notes a call before it is made. Says whether an earlier one of the same delivery has an unknown end.
    pub async fn begin_hold(&self, begun: Begun<'_>) -> DbResult<bool> {
        let (chat, body) =
            (self.chat_hashes(begun.session, begun.chat_id), self.body_hashes(begun.session, begun.body));
        let newest = |hashes: Vec<Vec<u8>>| hashes.into_iter().next().unwrap_or_default();
        statement::<Bool>(BEGIN)
            .near([&begun.delivery.0])
            .bind::<SqlUuid, _>(begun.session)
            .bind::<Binary, _>(newest(chat))
            .bind::<Binary, _>(newest(body))
            .bind::<Int4, _>(begun.hold_ms)
            .bind::<SqlUuid, _>(begun.delivery.0)
            .row(self)
            .await
    }

    /// The end of a call is known: `provider_ref` names the message if it was taken. The name stands before the delivery
    /// log has it, so that no echo of this message can be taken for another's.
    pub async fn end_hold(&self, tenant: TenantId, delivery: DeliveryId, provider_ref: Option<String>) -> DbResult<()> {
        let query = statement::<()>(END)
            .bind::<SqlUuid, _>(delivery.0)
            .bind::<Text, _>(ProviderName::Waha.as_str())
            .bind::<Nullable<Text>, _>(provider_ref)
            .bind::<SqlUuid, _>(delivery.0)
            .bind::<Int4, _>(tenant.0);
        query.run(self).await.map(drop)
    }

    /// A message that was sent through the session's interface came back: finds the call that made it. Returned is a delivery
    /// that waits for just that; write the event `sent` down for it. Nothing is returned for a call that is under way, and
    /// for messages whose names are known already. `provider_ref` is `<session id>/<id at WAHA>`.
    ///
    /// A hidden id (`…@lid`) of a chat does not show its number; there the text alone must identify one call.
    pub async fn resolve_hold(
        &self,
        session: Uuid,
        chat_id: &str,
        body: &str,
        provider_ref: &str,
    ) -> DbResult<Option<About>> {
        let query = statement::<(Int4, SqlUuid, Int4, Text)>(RESOLVE)
            .bind::<Text, _>(ProviderName::Waha.as_str())
            .bind::<Text, _>(provider_ref.to_owned())
            .bind::<SqlUuid, _>(session)
            .bind::<Array<Binary>, _>(self.body_hashes(session, body))
            .bind::<Nullable<Array<Binary>>, _>((!is_hidden(chat_id)).then(|| self.chat_hashes(session, chat_id)));
        let rows: Vec<(i32, Uuid, i32, String)> = query.rows(self).await?;
        Ok(rows.into_iter().find_map(about))
    }

    /// Looks at up to `limit` calls that should have ended: forgets those of deliveries that did, and returns the deliveries
    /// that wait although their message came back.
    pub async fn sweep_holds(&self, limit: i64) -> DbResult<Vec<About>> {
        let query = statement::<(Int4, SqlUuid, Int4, Text)>(SWEEP).bind::<Int8, _>(limit);
        let rows: Vec<(i32, Uuid, i32, String)> = query.rows(self).await?;
        Ok(rows.into_iter().filter_map(about).collect())
    }

    fn chat_hashes(&self, session: Uuid, chat_id: &str) -> Vec<Vec<u8>> {
        let hashes = self.sealer().fingerprints(&format!("hold/chat/{session}"), chat_id);
        hashes.iter().map(|hash| hash.to_vec()).collect()
    }

    /// WhatsApp trims what it sends.
    fn body_hashes(&self, session: Uuid, body: &str) -> Vec<Vec<u8>> {
        let hashes = self.sealer().fingerprints(&format!("hold/body/{session}"), body.trim());
        hashes.iter().map(|hash| hash.to_vec()).collect()
    }
}

/// Whether a chat is named by an id behind which WhatsApp hides the number.
fn is_hidden(chat_id: &str) -> bool {
    chat_id.ends_with("@lid")
}

fn about((tenant, delivery, run, channel): (i32, Uuid, i32, String)) -> Option<About> {
    Some((TenantId(tenant), DeliveryId(delivery), run, channel.parse().ok()?))
}

/// The run is the one the claim has just made.
const BEGIN: &str = "
WITH call AS (
    SELECT d.id, d.tenant_id, d.run, c.session_id, c.chat_hash, c.body_hash, now() + c.hold_ms * interval '1 millisecond' AS until
    FROM (SELECT ?::uuid AS session_id, ?::bytea AS chat_hash, ?::bytea AS body_hash, ?::int4 AS hold_ms, ?::uuid AS delivery_id) c
    JOIN deliveries@ d ON d.id = c.delivery_id
), before AS (SELECT h.delivery_id FROM holds h JOIN call ON h.delivery_id = call.id AND h.run < call.run
), begun AS (
    INSERT INTO holds (delivery_id, tenant_id, session_id, run, chat_hash, body_hash, until)
    SELECT id, tenant_id, session_id, run, chat_hash, body_hash, until FROM call
    ON CONFLICT (delivery_id) DO UPDATE SET run = excluded.run, session_id = excluded.session_id, chat_hash = excluded.chat_hash,
        body_hash = excluded.body_hash, at = now(), until = excluded.until
)
SELECT EXISTS (SELECT 1 FROM before)";

const END: &str = "
WITH ended AS (DELETE FROM holds WHERE delivery_id = ?)
INSERT INTO provider_refs (provider, ref, delivery_id, tenant_id)
SELECT provider, ref, delivery_id, tenant_id
FROM (SELECT ?::text AS provider, ?::text AS ref, ?::uuid AS delivery_id, ?::int4 AS tenant_id) n WHERE ref IS NOT NULL
ON CONFLICT DO NOTHING";

/// The oldest call of the same words first: echoes come in the order of the calls.
const RESOLVE: &str = "
WITH echo AS (SELECT ?::text AS provider, ?::text AS ref
), alike AS MATERIALIZED (
    SELECT h.delivery_id, h.chat_hash, h.at FROM holds h
    WHERE h.session_id = ? AND h.echo IS NULL AND h.body_hash = ANY (?::bytea[])
      AND NOT EXISTS (SELECT 1 FROM provider_refs r JOIN echo e ON r.provider = e.provider AND r.ref = e.ref)
), meant AS MATERIALIZED (
    SELECT a.delivery_id FROM alike a CROSS JOIN (SELECT ?::bytea[] AS hashes) chat
    WHERE CASE WHEN chat.hashes IS NULL THEN (SELECT count(*) FROM alike) = 1 ELSE a.chat_hash = ANY (chat.hashes) END
), found AS MATERIALIZED (
    SELECT h.delivery_id FROM holds h WHERE h.delivery_id = ANY (ARRAY(SELECT delivery_id FROM meant)) AND h.echo IS NULL
    ORDER BY h.at LIMIT 1 FOR UPDATE SKIP LOCKED
), matched AS (
    UPDATE holds h SET echo = e.ref FROM echo e WHERE h.delivery_id IN (SELECT delivery_id FROM found)
    RETURNING h.delivery_id, h.tenant_id, h.run
), named AS (
    INSERT INTO provider_refs (provider, ref, delivery_id, tenant_id)
    SELECT e.provider, e.ref, m.delivery_id, m.tenant_id FROM matched m CROSS JOIN echo e
    ON CONFLICT DO NOTHING
)
SELECT d.tenant_id, d.id, d.run, d.channel FROM matched m JOIN deliveries d ON d.id = m.delivery_id AND d.run = m.run
WHERE d.state IN ('retrying', 'queued')";

const SWEEP: &str = "
WITH seen AS MATERIALIZED (
    SELECT h.delivery_id, h.run, h.echo, d.tenant_id, d.channel, d.run AS now_at, d.state
    FROM (SELECT * FROM holds WHERE echo IS NOT NULL OR at < now() - interval '1 minute' ORDER BY echo IS NULL, at LIMIT ?) h
    LEFT JOIN deliveries d ON d.id = h.delivery_id
), gone AS (
    DELETE FROM holds WHERE delivery_id IN (
        SELECT delivery_id FROM seen WHERE coalesce(state, 'none') NOT IN ('scheduled', 'queued', 'sending', 'retrying'))
)
SELECT tenant_id, delivery_id, now_at, channel FROM seen
WHERE echo IS NOT NULL AND state IN ('retrying', 'queued')";
