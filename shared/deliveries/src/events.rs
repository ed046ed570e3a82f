//! The delivery log. This is the only place where an outcome changes a delivery.
//!
//! Two statements end deliveries: [`DeliveryLog::record`] by an event of one run, and [`cancel`] whatever the run.

use chrono::{DateTime, Utc};
use diesel::{
    result::QueryResult,
    sql_types::{Array, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::AsyncPgConnection;
use domain::{
    Channel, DeadReason, DeliveryId, EventKind, ProviderName, TenantId, WebhookRule,
    contract::{AttemptRecord, Event},
};
use store::{
    DbResult,
    sql::{row, sql, statements},
    statement::day,
};
use uuid::Uuid;

use crate::DeliveryLog;

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

row! {
    /// How many rows of `what` the statement made, by a word: a kind, a channel or a reason.
    struct Change {
        what: String as Text,
        word: String as Text,
        n: i64 as Int8,
    }
}

row! {
    struct ReferredRow {
        name: String as Text,
        id: Uuid as SqlUuid,
        run: i32 as Int4,
        tenant_id: i32 as Int4,
        channel: String as Text,
    }
}

row! {
    struct OwnerRow {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        channel: String as Text,
    }
}

impl DeliveryLog<'_> {
    /// Records `events` in one commit per day of their deliveries: log row, counters, the delivery's next state, its
    /// next due row, its dead letter. Repeating an event changes nothing. An attempt is logged even if its run is
    /// over. An event without an attempt, or with a supposed one (a crash report), is logged only if it moves the
    /// delivery.
    pub async fn record(self, mut events: Vec<Event>) -> DbResult<Recorded> {
        // One lock order for every writer, and later reports about a call follow the call.
        events.sort_by_key(|event| (event.report, event.delivery, event.run));
        let (calls, reports) = events.split_at(events.partition_point(|event| !event.report));
        let mut rows = Vec::new();
        // One statement per day, since a statement opens the partitions of one day.
        let one_day = |one: &Event, next: &Event| day(&one.delivery.0) == day(&next.delivery.0);
        for part in calls.chunk_by(one_day).chain(reports.chunk_by(one_day)) {
            let ids: Vec<Uuid> = part.iter().map(|event| event.delivery.0).collect();
            if let Some(query) = Record::of(part).query().in_existing_partition_of(self.store, &ids).await? {
                rows.extend(query.rows(self.store).await?);
            }
        }
        Ok(Recorded { written: tally(&rows, "written"), retries: tally(&rows, "retry"), dead: tally(&rows, "dead") })
    }

    /// The deliveries with these references of a provider, with the current run of each.
    pub async fn deliveries_by_ref(self, provider: ProviderName, refs: Vec<String>) -> DbResult<Vec<Referred>> {
        let rows = ByRef { provider: provider.as_str(), refs }.query().rows(self.store).await?;
        let referred = |ReferredRow { name, id, run, tenant_id, channel }| {
            let about = (TenantId(tenant_id), DeliveryId(id), run, channel.parse().ok()?);
            Some(Referred { name, about })
        };
        Ok(rows.into_iter().filter_map(referred).collect())
    }

    /// The tenant and channel of these deliveries, for those that exist.
    pub async fn delivery_owners(self, ids: &[DeliveryId]) -> DbResult<Vec<(DeliveryId, TenantId, Channel)>> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let rows = Owners { ids: ids.clone() }.query().in_partition_of(&ids).rows(self.store).await?;
        let owner = |row: OwnerRow| Some((DeliveryId(row.id), TenantId(row.tenant_id), row.channel.parse().ok()?));
        Ok(rows.into_iter().filter_map(owner).collect())
    }
}

/// Takes back those of `deliveries` that wait, on this connection, and returns them. Their log rows say `detail`.
pub(crate) async fn cancel(
    conn: &mut AsyncPgConnection,
    mut deliveries: Vec<Uuid>,
    detail: Option<&'static str>,
) -> QueryResult<Vec<Uuid>> {
    if deliveries.is_empty() {
        return Ok(Vec::new());
    }
    // One lock order for every writer.
    deliveries.sort_unstable();
    Cancel { ids: deliveries, detail }.query().rows_on(conn).await
}

fn tally<W: std::str::FromStr>(rows: &[Change], what: &str) -> Vec<(W, u64)> {
    let ours = rows.iter().filter(|row| row.what == what);
    ours.filter_map(|row| Some((row.word.parse().ok()?, u64::try_from(row.n).ok()?))).collect()
}

impl Record {
    fn of(events: &[Event]) -> Self {
        Self {
            deliveries: column(events, |e| e.delivery.0),
            runs: column(events, |e| e.run),
            kinds: column(events, |e| e.kind.as_str()),
            tenants: column(events, |e| e.tenant.0),
            channels: column(events, |e| e.channel.as_str()),
            times: column(events, |e| e.at),
            providers: attempts(events, |a| Some(a.provider.as_str())),
            outcomes: attempts(events, |a| Some(a.outcome.as_str())),
            codes: attempts(events, |a| clean(a.code.as_deref())),
            details: column(events, |e| clean(detail(e))),
            durations_ms: attempts(events, |a| Some(a.duration_ms)),
            provider_refs: attempts(events, |a| clean(a.provider_ref.as_deref())),
            states: column(events, |e| e.state.as_str()),
            delays_ms: column(events, |e| e.delay_ms),
            reasons: column(events, |e| e.reason.map(|reason| reason.as_str())),
            dead: column(events, |e| e.dead.map(|reason| reason.as_str())),
            letters: column(events, |e| e.dead.map(|_| Uuid::now_v7())),
            spent: column(events, |e| e.spent),
            crashes: column(events, |e| e.crash),
            reports: column(events, |e| e.report),
            rounds: column(events, |e| e.round.0),
            worker_lost: WORKER_LOST,
            referenced: referenced(),
            webhooks_always: EventKind::words(|info| info.webhooks == WebhookRule::Always),
        }
    }
}

/// The providers whose references are stored.
fn referenced() -> Vec<&'static str> {
    let kept = ProviderName::ALL.iter().filter(|name| name.info().keeps_references);
    kept.map(|name| name.as_str()).collect()
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

sql!(Record in "events/record.sql" {
    deliveries: Vec<Uuid> as Array<SqlUuid>,
    runs: Vec<i32> as Array<Int4>,
    kinds: Vec<&'static str> as Array<Text>,
    tenants: Vec<i32> as Array<Int4>,
    channels: Vec<&'static str> as Array<Text>,
    times: Vec<DateTime<Utc>> as Array<Timestamptz>,
    providers: Vec<Option<&'static str>> as Array<Nullable<Text>>,
    outcomes: Vec<Option<&'static str>> as Array<Nullable<Text>>,
    codes: Vec<Option<String>> as Array<Nullable<Text>>,
    details: Vec<Option<String>> as Array<Nullable<Text>>,
    durations_ms: Vec<Option<i32>> as Array<Nullable<Int4>>,
    provider_refs: Vec<Option<String>> as Array<Nullable<Text>>,
    states: Vec<&'static str> as Array<Text>,
    delays_ms: Vec<Option<i64>> as Array<Nullable<Int8>>,
    reasons: Vec<Option<&'static str>> as Array<Nullable<Text>>,
    dead: Vec<Option<&'static str>> as Array<Nullable<Text>>,
    letters: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>,
    spent: Vec<bool> as Array<Bool>,
    crashes: Vec<bool> as Array<Bool>,
    reports: Vec<bool> as Array<Bool>,
    rounds: Vec<i32> as Array<Int4>,
    worker_lost: &'static str as Text,
    referenced: Vec<&'static str> as Array<Text>,
    webhooks_always: Vec<&'static str> as Array<Text>,
} -> Change);
sql!(Cancel in "events/cancel.sql" {
    ids: Vec<Uuid> as Array<SqlUuid>, detail: Option<&'static str> as Nullable<Text>
} -> Uuid as SqlUuid);
sql!(ByRef in "events/by_ref.sql" { provider: &'static str as Text, refs: Vec<String> as Array<Text> } -> ReferredRow);
sql!(Owners in "events/owners.sql" { ids: Vec<Uuid> as Array<SqlUuid> } -> OwnerRow);
statements!(Record, Cancel, ByRef, Owners);
