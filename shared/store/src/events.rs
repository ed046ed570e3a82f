//! The delivery log. This is the only place where an outcome changes a delivery.

use diesel::sql_types::{Array, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{
    Channel, DeadReason, DeliveryId, EventKind, ProviderName, TenantId,
    contract::{AttemptRecord, Event},
};
use uuid::Uuid;

use super::{
    DbResult, Store,
    analytics::{daily, reach},
    statement::{day, statement},
    webhook_events::enqueue_webhook_events,
};

/// The code of the attempt in a crash report: the worker died, and we do not know what the provider did.
pub const WORKER_LOST: &str = "worker_lost";

/// The changes that a batch of events made; repeated events change nothing and are not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Log rows written, by kind.
    pub written: Vec<(EventKind, u64)>,
    /// Retries that are due now, by channel.
    pub retries: Vec<(Channel, u64)>,
    /// Dead letters written, by reason.
    pub dead: Vec<(DeadReason, u64)>,
}

/// A delivery that a provider reported on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referred {
    /// The provider's reference for it.
    pub name: String,
    /// Tenant, delivery, run and channel, as [`Event::report`] takes them.
    pub about: (TenantId, DeliveryId, i32, Channel),
}

impl Store {
    /// Records `events` in one commit per day of their deliveries: log row, counters, the delivery's next state, its
    /// next due row, its dead letter. Repeating an event changes nothing. An attempt is logged even if its run is
    /// over. An event without an attempt, or with a supposed one (a crash report), is logged only if it moves the
    /// delivery.
    pub async fn record(&self, mut events: Vec<Event>) -> DbResult<Recorded> {
        // One lock order for every writer, and later reports about a call follow the call.
        events.sort_by_key(|event| (event.report, event.delivery, event.run));
        let (calls, reports) = events.split_at(events.partition_point(|event| !event.report));
        let mut rows: Vec<(String, String, i64)> = Vec::new();
        // One statement per day, since a statement opens the partitions of one day.
        let one_day = |one: &Event, next: &Event| day(&one.delivery.0) == day(&next.delivery.0);
        for part in calls.chunk_by(one_day).chain(reports.chunk_by(one_day)) {
            let ids: Vec<Uuid> = part.iter().map(|event| event.delivery.0).collect();
            if let Some(query) = bind(part).at_day_of(self, &ids).await? {
                rows.extend(query.rows::<(String, String, i64)>(self).await?);
            }
        }
        Ok(Recorded { written: tally(&rows, "written"), retries: tally(&rows, "retry"), dead: tally(&rows, "dead") })
    }

    /// The deliveries with these references of a provider, with the current run of each.
    pub async fn deliveries_by_ref(&self, provider: ProviderName, refs: Vec<String>) -> DbResult<Vec<Referred>> {
        let query = statement::<(Text, SqlUuid, Int4, Int4, Text)>(BY_REF)
            .bind::<Text, _>(provider.as_str())
            .bind::<Array<Text>, _>(refs);
        let rows: Vec<(String, Uuid, i32, i32, String)> = query.rows(self).await?;
        let referred = |(name, id, run, tenant, channel): (String, Uuid, i32, i32, String)| {
            let about = (TenantId(tenant), DeliveryId(id), run, channel.parse().ok()?);
            Some(Referred { name, about })
        };
        Ok(rows.into_iter().filter_map(referred).collect())
    }

    /// The tenant and channel of these deliveries, for those that exist.
    pub async fn delivery_owners(&self, ids: &[DeliveryId]) -> DbResult<Vec<(DeliveryId, TenantId, Channel)>> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let query = statement::<(SqlUuid, Int4, Text)>(OWNERS).near(&ids).bind::<Array<SqlUuid>, _>(ids);
        let rows: Vec<(Uuid, i32, String)> = query.rows(self).await?;
        let owner = |(id, tenant, channel): (Uuid, i32, String)| {
            Some((DeliveryId(id), TenantId(tenant), channel.parse().ok()?))
        };
        Ok(rows.into_iter().filter_map(owner).collect())
    }
}

const BY_REF: &str = "
SELECT r.ref, d.id, d.run, d.tenant_id, d.channel
FROM (SELECT ?::text AS provider) p CROSS JOIN unnest(?::text[]) AS asked(ref)
JOIN provider_refs r ON r.provider = p.provider AND r.ref = asked.ref
JOIN deliveries d ON d.id = r.delivery_id";

const OWNERS: &str = "SELECT id, tenant_id, channel FROM deliveries@ WHERE id = ANY (?::uuid[])";

fn tally<W: std::str::FromStr>(rows: &[(String, String, i64)], what: &str) -> Vec<(W, u64)> {
    let ours = rows.iter().filter(|(kind, ..)| kind == what);
    ours.filter_map(|(_, word, n)| Some((word.parse().ok()?, u64::try_from(*n).ok()?))).collect()
}

fn bind(events: &[Event]) -> super::Statement<(Text, Text, Int8)> {
    let ids: Vec<Uuid> = events.iter().map(|event| event.delivery.0).collect();
    statement(RECORD)
        .bind::<Array<SqlUuid>, _>(ids)
        .bind::<Array<Int4>, _>(column(events, |e| e.run))
        .bind::<Array<Text>, _>(column(events, |e| e.kind.as_str()))
        .bind::<Array<Int4>, _>(column(events, |e| e.tenant.0))
        .bind::<Array<Text>, _>(column(events, |e| e.channel.as_str()))
        .bind::<Array<Timestamptz>, _>(column(events, |e| e.at))
        .bind::<Array<Nullable<Text>>, _>(attempts(events, |a| Some(a.provider.as_str())))
        .bind::<Array<Nullable<Text>>, _>(attempts(events, |a| Some(a.outcome.as_str())))
        .bind::<Array<Nullable<Text>>, _>(attempts(events, |a| clean(a.code.as_deref())))
        .bind::<Array<Nullable<Text>>, _>(column(events, |e| clean(detail(e))))
        .bind::<Array<Nullable<Int4>>, _>(attempts(events, |a| Some(a.duration_ms)))
        .bind::<Array<Nullable<Text>>, _>(attempts(events, |a| clean(a.provider_ref.as_deref())))
        .bind::<Array<Text>, _>(column(events, |e| e.state.as_str()))
        .bind::<Array<Nullable<Int8>>, _>(column(events, |e| e.delay_ms))
        .bind::<Array<Nullable<Text>>, _>(column(events, |e| e.reason.map(|reason| reason.as_str())))
        .bind::<Array<Nullable<Text>>, _>(column(events, |e| e.dead.map(|reason| reason.as_str())))
        .bind::<Array<Nullable<SqlUuid>>, _>(column(events, |e| e.dead.map(|_| Uuid::now_v7())))
        .bind::<Array<Bool>, _>(column(events, |e| e.spent))
        .bind::<Array<Bool>, _>(column(events, |e| e.crash))
        .bind::<Array<Bool>, _>(column(events, |e| e.report))
        .bind::<Array<Int4>, _>(column(events, |e| e.round.0))
        .bind::<Text, _>(WORKER_LOST)
}

fn column<T>(events: &[Event], of: impl Fn(&Event) -> T) -> Vec<T> {
    events.iter().map(of).collect()
}

fn attempts<T>(events: &[Event], of: impl Fn(&AttemptRecord) -> Option<T>) -> Vec<Option<T>> {
    events.iter().map(|event| event.attempt.as_ref().and_then(&of)).collect()
}

/// The detail of the provider call, else that of the event.
fn detail(event: &Event) -> Option<&str> {
    let call = event.attempt.as_ref().and_then(|attempt| attempt.detail.as_deref());
    call.or(event.detail.as_deref())
}

/// PostgreSQL's text cannot hold NUL, and a provider's answer may contain one.
fn clean(text: Option<&str>) -> Option<String> {
    text.map(|text| text.replace('\0', ""))
}

/// `moved` checks run and state, so applying an event twice changes nothing.
///
/// * A real outcome that arrives after its worker was taken for dead still wins while no later run has started. A
///   crash report never overrides an outcome, not even one that is stored because this version cannot read it.
/// * If the outcome comes after the crash report, `told` removes the supposed attempt from the log: there was one
///   call, so there is one attempt. Only a delivery that has crashed, or was not moved, can have such a row.
/// * If reports arrive together, the one wins that would win if they arrived one after the other: what arrived cannot
///   have failed, but can bounce.
/// * `bits` are the kinds that are logged with it, as far as they are known before; `touched` is what is logged of
///   deliveries that were not moved. The statement returns what moved the delivery, and what a provider reported
///   later unless something better was known.
/// * A delivery that is held until a moment waits for exactly that moment, and counts as neither tried nor deferred.
///   One that found no provider to call has waited since the first time it found none.
const RECORD: &str = concat!(
    "
WITH e AS MATERIALIZED (
    SELECT * FROM unnest(?::uuid[], ?::int4[], ?::text[], ?::int4[], ?::text[], ?::timestamptz[], ?::text[], ?::text[], ?::text[], ?::text[],
                         ?::int4[], ?::text[], ?::text[], ?::int8[], ?::text[], ?::text[], ?::uuid[], ?::bool[], ?::bool[], ?::bool[], ?::int4[])
        AS e(delivery_id, run, kind, tenant_id, channel, at, provider, outcome, code, detail, duration_ms, provider_ref,
             state, delay_ms, reason, dead, letter_id, spent, crash, report, round)
), moved AS (
    UPDATE deliveries@ d
    SET state = e.state, reason = e.reason, provider = coalesce(e.provider, d.provider), lease_until = NULL, updated_at = clock_timestamp(),
        attempts = d.attempts - (NOT e.spent)::int, deferrals = d.deferrals + (NOT e.spent AND e.provider IS NOT NULL)::int, crashes = d.crashes + e.crash::int, round = e.round,
        waiting_since = CASE WHEN e.state = 'retrying' AND e.provider IS NULL THEN coalesce(d.waiting_since, e.at) END,
        ",
    reach!("e.bits"),
    "
    FROM (SELECT DISTINCT ON (delivery_id, run) *,
              reached_bits(kind) | bit_or(CASE WHEN provider IS NOT NULL AND NOT crash THEN reached_bits(kind) ELSE 0::smallint END)
                  OVER (PARTITION BY delivery_id)
              | bit_or(CASE WHEN report THEN reached_bits(kind) ELSE 0::smallint END) OVER (PARTITION BY delivery_id, run) AS bits
          FROM e ORDER BY delivery_id, run, crash, state = 'sent', report AND state = 'failed', state = 'delivered') e
    WHERE d.id = e.delivery_id AND d.run = e.run
      AND ((d.state = 'sending'
            AND NOT (e.crash AND EXISTS (SELECT FROM unread_events u WHERE u.delivery_id = e.delivery_id AND u.run = e.run))) OR (d.state IN ('queued', 'retrying') AND NOT e.crash AND e.delay_ms IS NULL)
           OR (e.report AND e.state <> 'sent' AND (d.state = 'sent' OR (d.state = 'delivered' AND e.state = 'bounced'))))
    RETURNING d.id, d.run, d.crashes, d.message_id, d.tenant_id, d.channel, d.state, e.kind, e.delay_ms, e.dead, e.letter_id, e.detail,
              e.at, e.provider, e.code, d.provider AS carrier, d.category, d.template, d.fresh
), logged AS (
    INSERT INTO delivery_events@ (delivery_id, run, kind, tenant_id, channel, at, provider, outcome, code, detail, duration_ms, provider_ref)
    SELECT delivery_id, run, kind, tenant_id, channel, at, provider, outcome, code, detail, duration_ms, provider_ref FROM e
    WHERE (provider IS NOT NULL AND NOT crash) OR (delivery_id, run, kind) IN (SELECT id, run, kind FROM moved)
       OR (report AND EXISTS (SELECT 1 FROM deliveries@ d WHERE d.id = e.delivery_id AND d.run = e.run))
    ON CONFLICT DO NOTHING
    RETURNING delivery_id, run, tenant_id, channel, kind, at, provider, code, detail
), touched AS (
    UPDATE deliveries@ d SET ",
    reach!("l.bits"),
    "
    FROM (SELECT delivery_id, bit_or(reached_bits(kind)) AS bits FROM logged WHERE delivery_id NOT IN (SELECT id FROM moved) GROUP BY 1 ORDER BY 1) l
    WHERE d.id = l.delivery_id AND l.bits & ~d.reached <> 0
    RETURNING d.id, d.tenant_id, d.channel, d.provider, d.category, d.template, d.fresh
), named AS (
    INSERT INTO provider_refs (provider, ref, delivery_id, tenant_id)
    SELECT provider, provider_ref, delivery_id, tenant_id FROM e
    WHERE provider_ref IS NOT NULL AND outcome = 'sent' AND provider IN ('waha', 'twilio', 'sendgrid', 'ses', 'sns')
    ON CONFLICT DO NOTHING
), told AS (
    UPDATE delivery_events@ x SET provider = NULL, outcome = NULL, duration_ms = NULL
    FROM (SELECT * FROM e WHERE provider IS NOT NULL AND NOT crash AND kind <> 'ambiguous'
          AND delivery_id NOT IN (SELECT id FROM moved WHERE crashes = 0)) e
    WHERE x.delivery_id = e.delivery_id AND x.run = e.run AND x.kind = 'ambiguous' AND x.code = ?
), daily AS (",
    daily!(
        "SELECT id, tenant_id, channel, carrier, category, template, fresh FROM moved
          UNION ALL SELECT id, tenant_id, channel, provider, category, template, fresh FROM touched"
    ),
    "
), waiting AS (
    INSERT INTO due (delivery_id, due_at, run, why)
    SELECT id, CASE state WHEN 'scheduled' THEN at ELSE clock_timestamp() END + delay_ms * interval '1 millisecond', run,
           CASE state WHEN 'scheduled' THEN state ELSE 'retry' END
    FROM moved WHERE delay_ms IS NOT NULL
    ON CONFLICT (delivery_id) DO UPDATE SET due_at = excluded.due_at, run = excluded.run, why = excluded.why
), letters AS (
    INSERT INTO dead_letters (id, tenant_id, message_id, delivery_id, channel, origin, reason, detail)
    SELECT letter_id, tenant_id, message_id, id, channel, CASE dead WHEN 'poison' THEN 'broker' ELSE 'delivery' END, dead,
           coalesce(detail, '')
    FROM moved WHERE dead IS NOT NULL
    RETURNING id, tenant_id, message_id, delivery_id, channel, origin, reason
), heard AS (",
    enqueue_webhook_events!(
        "
        SELECT l.tenant_id, l.channel, l.delivery_id, 'message.' || l.kind, l.at, l.delivery_id, l.run,
               jsonb_build_object('delivery_id', l.delivery_id, 'channel', l.channel, 'status', l.kind, 'provider', l.provider,
                                  'code', l.code, 'detail', l.detail)
        FROM logged l
        WHERE l.kind <> 'ambiguous' AND (l.kind IN ('delivered', 'bounced', 'read', 'played', 'opened', 'clicked', 'complained')
              OR (l.delivery_id, l.run, l.kind) IN (SELECT id, run, kind FROM moved))
        UNION ALL
        SELECT tenant_id, channel, id, 'message.' || state, at, id, run,
               jsonb_build_object('delivery_id', id, 'channel', channel, 'status', state, 'provider', provider, 'code', code, 'detail', detail)
        FROM moved WHERE kind = 'ambiguous'
        UNION ALL
        SELECT tenant_id, channel, delivery_id, 'dead_letter.created', clock_timestamp(), id, NULL,
               jsonb_build_object('id', id, 'message_id', message_id, 'delivery_id', delivery_id, 'channel', channel, 'origin', origin,
                                  'reason', reason)
        FROM letters"
    ),
    "
)
SELECT 'written', kind, count(*) FROM logged GROUP BY 2
UNION ALL SELECT 'retry', channel, count(*) FROM moved WHERE delay_ms IS NOT NULL AND state <> 'scheduled' GROUP BY 2
UNION ALL SELECT 'dead', dead, count(*) FROM moved WHERE dead IS NOT NULL GROUP BY 2"
);
