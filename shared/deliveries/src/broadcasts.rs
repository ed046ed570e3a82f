//! Broadcasts: their notification (sealed), their progress, and the states of their deliveries.
//!
//! Messages are accepted in pages, in the order of the people's ids. One commit accepts a page's messages and moves the
//! cursor past it, so after a crash no person gets a second message and none is left out. Each page keeps the counts
//! of its own deliveries: a broadcast to millions is counted page by page, and a finished page is not counted again.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use content::broadcast::{Definition, SOURCE};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use domain::{
    BroadcastStatus, BulkId, Lane, Person, Route, Target, TenantId,
    acceptance::{Acceptance, NewBulk, NewMessage, share},
};
use records::{
    Records,
    people::{PersonRow, people},
};
use runtime::faultpoint;
use serde_json::{Map, Value};
use store::{
    DbResult, Store, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::{BroadcastStore, Deliveries, outbox::Dispatch};

/// People of one page.
const PAGE: i64 = 1000;
/// People read for one page; most of them may not be in the target.
const WINDOW: i64 = 20_000;
/// People counted by one statement.
const COUNT_WINDOW: i64 = 50_000;
/// The same, if conditions are checked in this process.
const COUNT_WINDOW_HERE: i64 = 5000;
/// A broadcast of at most this many pages is counted at each request.
const LIVE_PAGES: i32 = 20;

/// A running broadcast.
#[derive(Clone, Debug)]
pub struct OpenBroadcast {
    /// Its id.
    pub id: Uuid,
    /// The tenant of the broadcast.
    pub tenant: TenantId,
    /// The notification and its target.
    pub definition: Definition,
    /// Whether its people have been counted.
    pub is_counted: bool,
}

/// The next people of a broadcast, as they were read.
#[derive(Clone, Debug)]
pub struct Page {
    /// The people, in the order of their ids.
    pub people: Vec<Person>,
    /// The person after whom the next page begins; `None`: this is the last page.
    next: Option<String>,
    after: String,
    stored: Vec<u8>,
    definition: Definition,
}

/// The result of a page.
#[derive(Clone, Debug, Default)]
pub struct PageDone {
    /// People told.
    pub told: usize,
    /// Whether there may be more.
    pub more: bool,
    /// Deliveries to hand to the broker now.
    pub dispatch: Option<Dispatch>,
}

/// The states of a broadcast's deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BroadcastCounts {
    /// Without an end.
    pub waiting: i64,
    /// The provider took them.
    pub sent: i64,
    /// They arrived.
    pub delivered: i64,
    /// Failed, bounced, dead or expired.
    pub failed: i64,
    /// They were switched off.
    pub suppressed: i64,
    /// They were taken back.
    pub cancelled: i64,
}

/// A broadcast as an admin sees it.
#[derive(Clone, Debug)]
pub struct StoredBroadcast {
    /// Its id.
    pub id: Uuid,
    /// The notification and its target.
    pub definition: Definition,
    /// Where it stands.
    pub status: BroadcastStatus,
    /// When it begins, if it was to begin later.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// The number of people in the target, once they are counted.
    pub total: Option<i64>,
    /// People told so far.
    pub told: i64,
    /// Deliveries so far.
    pub accepted: i64,
    /// Where those stand.
    pub counts: BroadcastCounts,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it last got on.
    pub updated_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

/// An admin's action on a broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// It stops for a while.
    Pause,
    /// It continues.
    Resume,
    /// It ends, and its waiting deliveries are cancelled.
    Cancel,
}

/// A page whose deliveries are due to be counted.
#[derive(Clone, Copy, Debug)]
pub struct DuePage {
    broadcast: Uuid,
    no: i32,
    tenant: TenantId,
    range: (Uuid, Uuid),
    is_cancelled: bool,
}

/// The people of a page, and the start of the next one; `None`: this is the last page.
struct Audience {
    people: Vec<Person>,
    next: Option<String>,
}

row! {
    struct RunningRow {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        definition: Vec<u8> as Binary,
        is_counted: bool as Bool,
    }
}

row! {
    /// A part of the people: how many are in the target, how many were read, and the id of the last one.
    struct CountRow {
        meant: i64 as Int8,
        seen: i64 as Int8,
        last: Option<String> as Nullable<Text>,
    }
}

row! {
    struct FactsRow {
        user_id: String as Text,
        is_known: bool as Bool,
        locale: Option<String> as Nullable<Text>,
        time_zone: Option<String> as Nullable<Text>,
        attributes: String as Text,
    }
}

row! {
    struct DueRow {
        broadcast_id: Uuid as SqlUuid,
        no: i32 as Int4,
        tenant_id: i32 as Int4,
        first: Uuid as SqlUuid,
        last: Uuid as SqlUuid,
        is_cancelled: bool as Bool,
    }
}

row! {
    struct BroadcastRow {
        id: Uuid as SqlUuid,
        definition: Vec<u8> as Binary,
        status: String as Text,
        scheduled_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        total: Option<i64> as Nullable<Int8>,
        told: i64 as Int8,
        accepted: i64 as Int8,
        created_at: DateTime<Utc> as Timestamptz,
        updated_at: DateTime<Utc> as Timestamptz,
        finished_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        waiting: i64 as Int8,
        sent: i64 as Int8,
        delivered: i64 as Int8,
        failed: i64 as Int8,
        suppressed: i64 as Int8,
        cancelled: i64 as Int8,
    }
}

row! {
    /// The notification and its target (sealed), and the cursor.
    struct CursorRow {
        definition: Vec<u8> as Binary,
        after_user: String as Text,
    }
}

row! {
    struct NotEndedRow {
        id: Uuid as SqlUuid,
        definition: Vec<u8> as Binary,
        after_user: String as Text,
    }
}

impl BroadcastStore<'_> {
    /// Starts broadcasts that are due; returns their number.
    pub async fn begin(self) -> DbResult<usize> {
        Begin {}.query().run(self.store).await
    }

    /// Running broadcasts in the order of their ids, after `after`.
    pub async fn running(self, after: Uuid, limit: i64) -> DbResult<Vec<OpenBroadcast>> {
        let rows = Running { after, limit }.query().rows(self.store).await?;
        let open = |RunningRow { id, tenant_id, definition, is_counted }: RunningRow| {
            let tenant = TenantId(tenant_id);
            // A broadcast that cannot be read must not delay the others.
            let definition = self
                .definition(tenant, definition)
                .inspect_err(|error| tracing::error!(broadcast = %id, %error, "a broadcast cannot be read"));
            Some(OpenBroadcast { id, tenant, definition: definition.ok()??, is_counted })
        };
        Ok(rows.into_iter().filter_map(open).collect())
    }

    fn definition(self, tenant: TenantId, stored: Vec<u8>) -> DbResult<Option<Definition>> {
        Ok(serde_json::from_slice(&self.store.sealer().open(sealed::BROADCAST.of(tenant), stored)?).ok())
    }

    /// The number of deliveries of this kind that already wait for their turn.
    pub async fn ahead_of(self, broadcast: &OpenBroadcast) -> DbResult<i64> {
        let OpenBroadcast { tenant, definition, .. } = broadcast;
        let shares = definition.channels.iter().map(|&channel| share(*tenant, Route { channel, lane: Lane::Bulk }));
        let lines = shares.chain(definition.session).collect();
        Ahead { lines }.query().within(Some(*tenant)).row(self.store).await
    }

    /// Counts the people of a broadcast, one part at a time, and stores the number.
    pub async fn count_audience(self, broadcast: &OpenBroadcast) -> DbResult<()> {
        let OpenBroadcast { id, tenant, definition, .. } = broadcast;
        let total = match &definition.target {
            Target::Users { ids } => i64::try_from(ids.len()).unwrap_or(i64::MAX),
            target if target.conditions().is_empty() => self.count_stored(*tenant, target).await?,
            target => self.count_here(*tenant, target).await?,
        };
        SetTotal { total, id: *id }.query().within(Some(*tenant)).run(self.store).await.map(drop)
    }

    async fn count_stored(self, tenant: TenantId, target: &Target) -> DbResult<i64> {
        let (name, value) = wanted(target);
        let (mut after, mut total) = (String::new(), 0);
        loop {
            let (name, value) = (name.clone(), value.clone());
            let query = Count { tenant: tenant.0, after, name, value, window: COUNT_WINDOW }.query();
            let CountRow { meant, seen, last } = query.within(Some(tenant)).row(self.store).await?;
            total += meant;
            match last.filter(|_| seen >= COUNT_WINDOW) {
                Some(last) => after = last,
                None => return Ok(total),
            }
        }
    }

    async fn count_here(self, tenant: TenantId, target: &Target) -> DbResult<i64> {
        let (mut after, mut total) = (String::new(), 0);
        loop {
            let query = Facts { tenant: tenant.0, after, window: COUNT_WINDOW_HERE }.query();
            let rows = query.within(Some(tenant)).rows(self.store).await?;
            let meant = |row: &&FactsRow| {
                let attributes: Map<String, Value> = serde_json::from_str(&row.attributes).unwrap_or_default();
                row.is_known && target.means(row.locale.as_deref(), row.time_zone.as_deref(), &attributes)
            };
            total += i64::try_from(rows.iter().filter(meant).count()).unwrap_or_default();
            let is_full = i64::try_from(rows.len()).is_ok_and(|seen| seen >= COUNT_WINDOW_HERE);
            match rows.into_iter().next_back().filter(|_| is_full) {
                Some(last) => after = last.user_id,
                None => return Ok(total),
            }
        }
    }

    /// The next people of a broadcast, to write messages for; `None`: it does not run. No message is accepted yet, and
    /// no row is locked.
    pub async fn next_page(self, broadcast: &OpenBroadcast) -> DbResult<Option<Page>> {
        let mut conn = self.store.within(Some(broadcast.tenant)).await?;
        let page = Step { store: self.store, broadcast, relay_after_ms: 0 }.read(&mut conn).await;
        conn.finish(page).await
    }

    /// Accepts messages to people of a page, one for each person from the first on, and moves the cursor past them, in
    /// one commit. Changes nothing if the broadcast was changed after the page was read.
    pub async fn tell_page(
        self,
        broadcast: &OpenBroadcast,
        page: Page,
        messages: Vec<NewMessage>,
        relay_after_ms: i32,
    ) -> DbResult<PageDone> {
        let mut conn = self.store.within(Some(broadcast.tenant)).await?;
        let step = Step { store: self.store, broadcast, relay_after_ms };
        let told = step.tell(&mut conn, page, messages).await;
        let done = conn.finish(told).await?;
        faultpoint::pass(faultpoint::AFTER_PAGE);
        Ok(done)
    }

    /// Up to `limit` pages that are due to be counted. Other callers do not get them for a while.
    pub async fn due_pages(self, limit: i64) -> DbResult<Vec<DuePage>> {
        let rows = Due { limit }.query().rows(self.store).await?;
        let page = |row: DueRow| DuePage {
            broadcast: row.broadcast_id,
            no: row.no,
            tenant: TenantId(row.tenant_id),
            range: (row.first, row.last),
            is_cancelled: row.is_cancelled,
        };
        Ok(rows.into_iter().map(page).collect())
    }

    /// Counts the states of a page's deliveries. If the broadcast is cancelled, the deliveries that still wait are
    /// cancelled first.
    pub async fn count_page(self, page: &DuePage) -> DbResult<()> {
        let DuePage { broadcast, no, tenant, range, is_cancelled } = *page;
        if is_cancelled {
            self.store.messages().cancel_page(tenant, broadcast, range).await?;
            let query = Unpark { tenant: tenant.0, first: range.0, last: range.1 }.query();
            query.within(Some(tenant)).run(self.store).await?;
        }
        let query = CountPage { broadcast, no }.query().in_partition_of([&range.0, &range.1]);
        query.within(Some(tenant)).run(self.store).await.map(drop)
    }

    /// A tenant's broadcasts, newest first; those before `before`.
    pub async fn list(self, tenant: TenantId, before: Option<Uuid>, limit: i64) -> DbResult<Vec<StoredBroadcast>> {
        let query = List { tenant: tenant.0, before: before.unwrap_or(Uuid::max()), limit }.query();
        let rows = query.within(Some(tenant)).rows(self.store).await?;
        // A broadcast that cannot be read is left out.
        let read = |row: BroadcastRow| {
            let broadcast = self.broadcast_of(tenant, row);
            broadcast.inspect_err(|error| tracing::error!(%error, "a broadcast is left out")).ok().flatten()
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    /// A broadcast of a tenant. A small one is counted now.
    pub async fn find(self, tenant: TenantId, id: Uuid) -> DbResult<Option<StoredBroadcast>> {
        let query = Show { tenant: tenant.0, id, live_pages: LIVE_PAGES }.query();
        let row = query.within(Some(tenant)).first(self.store).await?;
        row.map_or(Ok(None), |row| self.broadcast_of(tenant, row))
    }

    fn broadcast_of(self, tenant: TenantId, row: BroadcastRow) -> DbResult<Option<StoredBroadcast>> {
        let Some(definition) = self.definition(tenant, row.definition)? else { return Ok(None) };
        let Ok(status) = row.status.parse() else { return Ok(None) };
        let counts = BroadcastCounts {
            waiting: row.waiting,
            sent: row.sent,
            delivered: row.delivered,
            failed: row.failed,
            suppressed: row.suppressed,
            cancelled: row.cancelled,
        };
        Ok(Some(StoredBroadcast {
            id: row.id,
            definition,
            status,
            scheduled_at: row.scheduled_at,
            total: row.total,
            told: row.told,
            accepted: row.accepted,
            counts,
            created_at: row.created_at,
            updated_at: row.updated_at,
            finished_at: row.finished_at,
        }))
    }

    /// Pauses, resumes or cancels a broadcast; returns whether its state allowed that.
    pub async fn steer(self, tenant: TenantId, id: Uuid, steering: Steering) -> DbResult<bool> {
        let query = match steering {
            Steering::Pause => Pause { tenant: tenant.0, id }.query(),
            Steering::Resume => Resume { tenant: tenant.0, id }.query(),
            Steering::Cancel => return self.cancel_broadcast(tenant, id).await,
        };
        Ok(query.within(Some(tenant)).run(self.store).await? > 0)
    }

    async fn cancel_broadcast(self, tenant: TenantId, id: Uuid) -> DbResult<bool> {
        let mut conn = self.store.within(Some(tenant)).await?;
        let cancelled = async {
            let stored = Cancel { tenant: tenant.0, id }.query().rows_on(&mut conn).await?;
            let Some(stored) = stored.into_iter().next() else { return Ok(false) };
            if let Some(definition) = self.definition(tenant, stored)? {
                self.forget_named(&mut conn, tenant, id, &definition).await?;
            }
            Ok(true)
        };
        let cancelled = cancelled.await;
        conn.finish(cancelled).await
    }

    /// Deletes the list of named people of a broadcast that has ended.
    async fn forget_named(
        self,
        conn: &mut AsyncPgConnection,
        tenant: TenantId,
        id: Uuid,
        definition: &Definition,
    ) -> DbResult<()> {
        let Target::Users { ids } = &definition.target else { return Ok(()) };
        let named = Some(definition.named.unwrap_or(ids.len()));
        let target = Target::Users { ids: Vec::new() };
        self.rewrite(conn, (tenant, id), &Definition { target, named, ..definition.clone() }, "").await
    }

    async fn rewrite(
        self,
        conn: &mut AsyncPgConnection,
        (tenant, id): (TenantId, Uuid),
        definition: &Definition,
        after: &str,
    ) -> DbResult<()> {
        let json = serde_json::to_vec(definition).unwrap_or_default();
        let definition = self.store.sealer().seal(sealed::BROADCAST.of(tenant), &json)?;
        Rewrite { definition, after: after.to_owned(), id }.query().run_on(conn).await?;
        Ok(())
    }

    /// Removes a person from the unfinished broadcasts of a tenant: from the list of named people, and from the cursor.
    pub async fn erase_from_broadcasts(self, tenant: TenantId, user_id: &str) -> DbResult<()> {
        let mut conn = self.store.within(Some(tenant)).await?;
        let erased = async {
            let rows = NotEnded { tenant: tenant.0 }.query().rows_on(&mut conn).await?;
            for NotEndedRow { id, definition, after_user: after } in rows {
                let Some(stored) = self.store.opened(sealed::BROADCAST.of(tenant), definition) else { continue };
                let Ok(mut definition) = serde_json::from_slice::<Definition>(&stored) else { continue };
                let Target::Users { ids } = &mut definition.target else { continue };
                if !ids.iter().any(|one| one == user_id) {
                    continue;
                }
                ids.retain(|one| one != user_id);
                // The people before this one already have their messages.
                let before = ids.iter().rfind(|one| **one < after).cloned().unwrap_or_default();
                let after = if after == user_id { before } else { after };
                self.rewrite(&mut conn, (tenant, id), &definition, &after).await?;
            }
            StepBack { tenant: tenant.0, user_id: user_id.to_owned() }.query().run_on(&mut conn).await?;
            Ok(())
        };
        let erased = erased.await;
        conn.finish(erased).await
    }
}

/// The attribute that selects people, as statements take it.
fn wanted(target: &Target) -> (Option<String>, Option<Value>) {
    target.attribute().map(|(name, value)| (name.to_owned(), value)).unzip()
}

/// One page inside its transaction.
struct Step<'a> {
    store: &'a Store,
    broadcast: &'a OpenBroadcast,
    relay_after_ms: i32,
}

impl Step<'_> {
    async fn read(&self, conn: &mut AsyncPgConnection) -> DbResult<Option<Page>> {
        let read = Read { id: self.broadcast.id }.query().rows_on(conn).await?;
        let Some(CursorRow { definition: stored, after_user: after }) = read.into_iter().next() else {
            return Ok(None);
        };
        let Some(definition) = self.store.broadcasts().definition(self.broadcast.tenant, stored.clone())? else {
            return Ok(None);
        };
        let Audience { people, next } = match &definition.target {
            Target::Users { ids } => self.named(conn, ids, &after).await?,
            target => self.known(conn, target, after.clone()).await?,
        };
        Ok(Some(Page { people, next, after, stored, definition }))
    }

    async fn tell(
        &self,
        conn: &mut AsyncPgConnection,
        page: Page,
        mut messages: Vec<NewMessage>,
    ) -> DbResult<PageDone> {
        let id = self.broadcast.id;
        let locked = Lock { id }.query().rows_on(conn).await?;
        let Some(cursor) = locked.into_iter().next() else { return Ok(PageDone::default()) };
        // Another scheduler accepted this page, or a person was removed from the broadcast: read the page again.
        if cursor.definition != page.stored || cursor.after_user != page.after {
            return Ok(PageDone { more: true, ..PageDone::default() });
        }
        // If time ran out within the page, the rest belongs to the next page.
        let told = messages.len().min(page.people.len());
        let last = page.people.get(told.saturating_sub(1)).filter(|_| told < page.people.len());
        let next = last.map(|person| person.id.clone()).or(page.next);
        if !matches!(page.definition.target, Target::Users { .. }) {
            self.drop_erased(conn, &mut messages).await?;
        }
        let deliveries: Vec<Uuid> =
            messages.iter().flat_map(|message| message.deliveries.iter().map(|delivery| delivery.id.0)).collect();
        let dispatch = if messages.is_empty() { None } else { self.accept(conn, messages).await? };
        let progress = Progress {
            next: next.clone(),
            told: count(told),
            accepted: i32::try_from(deliveries.len()).unwrap_or(i32::MAX),
            first: deliveries.iter().min().copied(),
            last: deliveries.iter().max().copied(),
            id,
        };
        progress.query().run_on(conn).await?;
        if next.is_none() {
            self.store.broadcasts().forget_named(conn, self.broadcast.tenant, id, &page.definition).await?;
        }
        faultpoint::pass(faultpoint::WITHIN_PAGE);
        Ok(PageDone { told, more: next.is_some(), dispatch })
    }

    /// Leaves out people who were erased after the page was read.
    async fn drop_erased(&self, conn: &mut AsyncPgConnection, messages: &mut Vec<NewMessage>) -> DbResult<()> {
        let ids: Vec<String> = messages.iter().filter_map(|message| message.user_id.clone()).collect();
        let there = StillThere { tenant: self.broadcast.tenant.0, ids }.query().rows_on(conn).await?;
        let there: HashSet<&str> = there.iter().map(String::as_str).collect();
        messages.retain(|message| message.user_id.as_deref().is_some_and(|id| there.contains(id)));
        Ok(())
    }

    async fn accept(&self, conn: &mut AsyncPgConnection, messages: Vec<NewMessage>) -> DbResult<Option<Dispatch>> {
        let OpenBroadcast { id, tenant, definition, .. } = self.broadcast;
        let content = serde_json::to_vec(&definition.content).unwrap_or_default();
        let acceptance = Acceptance {
            tenant: *tenant,
            source: SOURCE,
            request_id: definition.request_id.clone(),
            traceparent: definition.traceparent.clone(),
            key: None,
            room_in: None,
            bulk: Some(NewBulk { id: BulkId(*id), content, refused: 0 }),
            messages,
            beside: Vec::new(),
        };
        self.store.acceptance().accept_on(conn, &[acceptance], self.relay_after_ms).await
    }

    /// The next people that a target names, in order. A person unknown to the tenant can still get it in the app.
    async fn named(&self, conn: &mut AsyncPgConnection, ids: &[String], after: &str) -> DbResult<Audience> {
        let from = ids.partition_point(|id| id.as_str() <= after);
        let size = usize::try_from(PAGE).unwrap_or_default();
        let rest = ids.get(from..).unwrap_or_default();
        let (page, left) = rest.split_at(size.min(rest.len()));
        let mut known = self.people(conn, page.to_vec()).await?;
        let person = |id: &String| known.remove(id).unwrap_or_else(|| Person::unknown(id));
        Ok(Audience {
            people: page.iter().map(person).collect(),
            next: page.last().filter(|_| !left.is_empty()).cloned(),
        })
    }

    /// The next people of the tenant that a target selects.
    async fn known(&self, conn: &mut AsyncPgConnection, target: &Target, after: String) -> DbResult<Audience> {
        let TenantId(tenant) = self.broadcast.tenant;
        let (name, value) = wanted(target);
        let pick = Pick { tenant, after: after.clone(), name, value, window: WINDOW, page: PAGE };
        let ids = pick.query().rows_on(conn).await?;
        let next = if count(ids.len()) >= PAGE {
            ids.last().cloned()
        } else {
            let ends = WindowEnd { tenant, after, skipped: WINDOW - 1 }.query().rows_on(conn).await?;
            ends.into_iter().next()
        };
        let mut known = self.people(conn, ids.clone()).await?;
        let people = ids.iter().filter_map(|id| known.remove(id)).filter(|person| target.means_person(person));
        Ok(Audience { people: people.collect(), next })
    }

    async fn people(&self, conn: &mut AsyncPgConnection, ids: Vec<String>) -> DbResult<HashMap<String, Person>> {
        let rows = people(self.broadcast.tenant, ids).rows_on(conn).await?;
        let read = |row: PersonRow| {
            let person = self.store.people().person_of(self.broadcast.tenant, row);
            person.inspect_err(|error| tracing::error!(%error, "a person is left out")).ok()
        };
        Ok(rows.into_iter().filter_map(read).map(|person| (person.id.clone(), person)).collect())
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

sql!(Begin in "broadcasts/begin.sql" {});
sql!(Running in "broadcasts/running.sql" { after: Uuid as SqlUuid, limit: i64 as Int8 } -> RunningRow);
sql!(Ahead in "broadcasts/ahead.sql" { lines: Vec<Uuid> as Array<SqlUuid> } -> i64 as Int8);
sql!(SetTotal in "broadcasts/set_total.sql" { total: i64 as Int8, id: Uuid as SqlUuid });
sql!(Count in "broadcasts/count.sql" {
    tenant: i32 as Int4, after: String as Text, name: Option<String> as Nullable<Text>,
    value: Option<Value> as Nullable<Jsonb>, window: i64 as Int8
} -> CountRow);
sql!(Facts in "broadcasts/facts.sql" { tenant: i32 as Int4, after: String as Text, window: i64 as Int8 } -> FactsRow);
sql!(Due in "broadcasts/due.sql" { limit: i64 as Int8 } -> DueRow);
sql!(Unpark in "broadcasts/unpark.sql" { tenant: i32 as Int4, first: Uuid as SqlUuid, last: Uuid as SqlUuid });
sql!(CountPage in "broadcasts/count_page.sql" { broadcast: Uuid as SqlUuid, no: i32 as Int4 });
sql!(List in "broadcasts/list.sql" {
    tenant: i32 as Int4, before: Uuid as SqlUuid, limit: i64 as Int8
} -> BroadcastRow);
sql!(Show in "broadcasts/show.sql" {
    tenant: i32 as Int4, id: Uuid as SqlUuid, live_pages: i32 as Int4
} -> BroadcastRow);
sql!(Pause in "broadcasts/pause.sql" { tenant: i32 as Int4, id: Uuid as SqlUuid });
sql!(Resume in "broadcasts/resume.sql" { tenant: i32 as Int4, id: Uuid as SqlUuid });
sql!(Cancel in "broadcasts/cancel.sql" { tenant: i32 as Int4, id: Uuid as SqlUuid } -> Vec<u8> as Binary);
sql!(Rewrite in "broadcasts/rewrite.sql" { definition: Vec<u8> as Binary, after: String as Text, id: Uuid as SqlUuid });
sql!(NotEnded in "broadcasts/not_ended.sql" { tenant: i32 as Int4 } -> NotEndedRow);
sql!(StepBack in "broadcasts/step_back.sql" { tenant: i32 as Int4, user_id: String as Text });
sql!(Read in "broadcasts/read.sql" { id: Uuid as SqlUuid } -> CursorRow);
sql!(Lock in "broadcasts/lock.sql" { id: Uuid as SqlUuid } -> CursorRow);
sql!(Progress in "broadcasts/progress.sql" {
    next: Option<String> as Nullable<Text>, told: i64 as Int8, accepted: i32 as Int4,
    first: Option<Uuid> as Nullable<SqlUuid>, last: Option<Uuid> as Nullable<SqlUuid>, id: Uuid as SqlUuid
});
sql!(StillThere in "broadcasts/still_there.sql" {
    tenant: i32 as Int4, ids: Vec<String> as Array<Text>
} -> String as Text);
sql!(Pick in "broadcasts/pick.sql" {
    tenant: i32 as Int4, after: String as Text, name: Option<String> as Nullable<Text>,
    value: Option<Value> as Nullable<Jsonb>, window: i64 as Int8, page: i64 as Int8
} -> String as Text);
sql!(WindowEnd in "broadcasts/window_end.sql" {
    tenant: i32 as Int4, after: String as Text, skipped: i64 as Int8
} -> String as Text);
statements!(
    Begin, Running, Ahead, SetTotal, Count, Facts, Due, Unpark, CountPage, List, Show, Pause, Resume, Cancel, Rewrite,
    NotEnded, StepBack, Read, Lock, Progress, StillThere, Pick, WindowEnd
);
