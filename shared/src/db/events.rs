//! The delivery log, and the one place where an outcome changes a delivery.

use diesel::sql_types::{Array, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use super::{DbResult, Store, bounds, statement};
use crate::contract::{AttemptRecord, Event};

impl Store {
    /// Writes `events` down in one commit: log row, counters, the delivery's next state, its next due row, its dead
    /// letter. Repeating an event changes nothing; an event of an older run is logged and otherwise ignored.
    pub async fn record(&self, mut events: Vec<Event>) -> DbResult<()> {
        // One lock order for every writer.
        events.sort_by_key(|event| (event.delivery, event.run));
        bind(&events).run(self).await?;
        Ok(())
    }
}

fn bind(events: &[Event]) -> super::Statement<()> {
    let ids: Vec<Uuid> = events.iter().map(|event| event.delivery.0).collect();
    let (low, high) = bounds(&ids);
    statement(RECORD)
        .bind::<Array<SqlUuid>, _>(ids)
        .bind::<Array<Int4>, _>(column(events, |e| e.run))
        .bind::<Array<Text>, _>(column(events, |e| e.kind.as_str()))
        .bind::<Array<Int4>, _>(column(events, |e| e.tenant.0))
        .bind::<Array<Text>, _>(column(events, |e| e.channel.as_str()))
        .bind::<Array<Timestamptz>, _>(column(events, |e| e.at))
        .bind::<Array<Nullable<Text>>, _>(attempts(events, |a| Some(a.provider.as_str())))
        .bind::<Array<Nullable<Text>>, _>(attempts(events, |a| Some(a.outcome.as_str())))
        .bind::<Array<Nullable<Text>>, _>(attempts(events, |a| a.code.clone()))
        .bind::<Array<Nullable<Text>>, _>(attempts(events, |a| a.detail.clone()))
        .bind::<Array<Nullable<Int4>>, _>(attempts(events, |a| Some(a.duration_ms)))
        .bind::<Array<Nullable<Text>>, _>(attempts(events, |a| a.provider_ref.clone()))
        .bind::<Array<Text>, _>(column(events, |e| e.state.as_str()))
        .bind::<Array<Nullable<Int8>>, _>(column(events, |e| e.delay_ms))
        .bind::<Array<Nullable<Text>>, _>(column(events, |e| e.dead.map(|reason| reason.as_str())))
        .bind::<Array<Bool>, _>(column(events, |e| e.spent))
        .bind::<Array<Bool>, _>(column(events, |e| e.crash))
        .bind::<SqlUuid, _>(low)
        .bind::<SqlUuid, _>(high)
}

fn column<T>(events: &[Event], of: impl Fn(&Event) -> T) -> Vec<T> {
    events.iter().map(of).collect()
}

fn attempts<T>(events: &[Event], of: impl Fn(&AttemptRecord) -> Option<T>) -> Vec<Option<T>> {
    events.iter().map(|event| event.attempt.as_ref().and_then(&of)).collect()
}

/// `moved` is guarded by run and state, so applying an event twice does nothing. A real outcome that arrives after its
/// worker was taken for dead still wins while no later run has started; a crash report never beats an outcome.
const RECORD: &str = "
WITH e AS MATERIALIZED (
    SELECT * FROM unnest(?::uuid[], ?::int4[], ?::text[], ?::int4[], ?::text[], ?::timestamptz[], ?::text[], ?::text[], ?::text[], ?::text[],
                         ?::int4[], ?::text[], ?::text[], ?::int8[], ?::text[], ?::bool[], ?::bool[])
        AS e(delivery_id, run, kind, tenant_id, channel, at, provider, outcome, code, detail, duration_ms, provider_ref,
             state, delay_ms, dead, spent, crash)
), logged AS (
    INSERT INTO delivery_events (delivery_id, run, kind, tenant_id, channel, at, provider, outcome, code, detail, duration_ms, provider_ref)
    SELECT delivery_id, run, kind, tenant_id, channel, at, provider, outcome, code, detail, duration_ms, provider_ref FROM e
    ON CONFLICT DO NOTHING
    RETURNING tenant_id, channel, kind, at
), counted AS (
    INSERT INTO event_counts (minute, tenant_id, channel, kind, n)
    SELECT date_trunc('minute', at) AS minute, tenant_id, channel, kind, count(*) FROM logged
    GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
    ON CONFLICT (minute, tenant_id, channel, kind) DO UPDATE SET n = event_counts.n + excluded.n
), moved AS (
    UPDATE deliveries d
    SET state = e.state, provider = coalesce(e.provider, d.provider), lease_until = NULL, updated_at = clock_timestamp(),
        attempts = d.attempts - (NOT e.spent)::int, deferrals = d.deferrals + (NOT e.spent)::int, crashes = d.crashes + e.crash::int
    FROM e
    WHERE d.id = e.delivery_id AND d.run = e.run AND d.id BETWEEN ? AND ?
      AND (d.state = 'sending' OR (d.state IN ('queued', 'retrying') AND NOT e.crash AND e.delay_ms IS NULL))
    RETURNING d.id, d.run, d.message_id, d.tenant_id, d.channel, e.delay_ms, e.dead, e.detail
), waiting AS (
    INSERT INTO due (delivery_id, due_at, run, why)
    SELECT id, clock_timestamp() + delay_ms * interval '1 millisecond', run, 'retry' FROM moved WHERE delay_ms IS NOT NULL
    ON CONFLICT (delivery_id) DO UPDATE SET due_at = excluded.due_at, run = excluded.run, why = excluded.why
)
INSERT INTO dead_letters (id, tenant_id, message_id, delivery_id, channel, origin, reason, detail)
SELECT gen_random_uuid(), tenant_id, message_id, id, channel, 'delivery', dead, coalesce(detail, '') FROM moved WHERE dead IS NOT NULL";
