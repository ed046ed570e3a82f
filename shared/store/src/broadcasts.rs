//! Broadcasts: their notification (sealed), their progress, and the states of their deliveries.
//!
//! Messages are accepted in pages, in the order of the people's ids. One commit accepts a page's messages and moves the cursor
//! behind it, so that after a crash no person gets a second message and none is left out. Each page keeps counts of its own
//! deliveries: a broadcast to millions is counted piece by piece, and a finished page is not counted again.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use content::broadcast::{Definition, SOURCE};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Json, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use domain::{
    BroadcastStatus, BulkId, Lane, Person, Route, Target, TenantId,
    acceptance::{Acceptance, NewBulk, NewMessage, share},
};
use runtime::faultpoint;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    DbResult, Store,
    outbox::Dispatch,
    people::{PEOPLE, Row as PersonRow, SqlRow as SqlPerson},
    sealed, statement,
};

/// People of one page.
const PAGE: i64 = 1000;
/// People looked at for one page; most of them may not be meant.
const WINDOW: i64 = 20_000;
/// People counted by one statement.
const COUNT_WINDOW: i64 = 50_000;
/// The same where conditions are looked at here.
const COUNT_WINDOW_HERE: i64 = 5000;
/// Up to so many pages a broadcast is counted at each request.
const LIVE_PAGES: i32 = 20;

/// A broadcast that goes on.
#[derive(Clone, Debug)]
pub struct OpenBroadcast {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub tenant: TenantId,
    /// The notification and its target.
    pub definition: Definition,
    /// Whether its people have been counted.
    pub is_counted: bool,
}

/// People of a broadcast whose turn it is, as they were read.
#[derive(Clone, Debug)]
pub struct Page {
    /// The people, in the order of their ids.
    pub people: Vec<Person>,
    /// Behind whom it goes on; `None`: they are the last ones.
    next: Option<String>,
    after: String,
    stored: Vec<u8>,
    definition: Definition,
}

/// What became of a page.
#[derive(Clone, Debug, Default)]
pub struct PageDone {
    /// People told.
    pub told: usize,
    /// Whether there may be more.
    pub more: bool,
    /// Deliveries to hand to the broker at once.
    pub dispatch: Option<Dispatch>,
}

/// Where the deliveries of a broadcast stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BroadcastCounts {
    /// Without an end.
    pub waiting: i64,
    /// The provider took them.
    pub sent: i64,
    /// They arrived.
    pub delivered: i64,
    /// They failed, came back, died or ran out of time.
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
    /// People it is meant for, once they are counted.
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

/// What an admin does to a broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// It stops for a while.
    Pause,
    /// It goes on.
    Resume,
    /// It ends, and its waiting deliveries are cancelled.
    Cancel,
}

/// A page whose deliveries are to be counted.
#[derive(Clone, Copy, Debug)]
pub struct DuePage {
    broadcast: Uuid,
    no: i32,
    tenant: TenantId,
    range: (Uuid, Uuid),
    is_cancelled: bool,
}

/// The people of a page, and where the next one begins; `None`: nowhere.
struct Audience {
    people: Vec<Person>,
    next: Option<String>,
}

type Row = (
    (Uuid, Vec<u8>, String, Option<DateTime<Utc>>, Option<i64>, i64, i64),
    (DateTime<Utc>, DateTime<Utc>, Option<DateTime<Utc>>),
    (i64, i64, i64, i64, i64, i64),
);
type SqlRow = (
    (SqlUuid, Binary, Text, Nullable<Timestamptz>, Nullable<Int8>, Int8, Int8),
    (Timestamptz, Timestamptz, Nullable<Timestamptz>),
    (Int8, Int8, Int8, Int8, Int8, Int8),
);

impl Store {
    /// Begins broadcasts whose time has come; says how many.
    pub async fn begin_broadcasts(&self) -> DbResult<usize> {
        statement::<()>(BEGIN).run(self).await
    }

    /// Broadcasts that run, in the order of their ids and from `after` on.
    pub async fn running_broadcasts(&self, after: Uuid, limit: i64) -> DbResult<Vec<OpenBroadcast>> {
        let query = statement::<(SqlUuid, Int4, Binary, Bool)>(RUNNING);
        let query = query.bind::<SqlUuid, _>(after).bind::<Int8, _>(limit);
        let rows: Vec<(Uuid, i32, Vec<u8>, bool)> = query.rows(self).await?;
        let open = |(id, tenant, definition, is_counted): (Uuid, i32, Vec<u8>, bool)| {
            // One that cannot be read must not hold up the others.
            let definition = self
                .definition(TenantId(tenant), definition)
                .inspect_err(|error| tracing::error!(broadcast = %id, %error, "a broadcast cannot be read"));
            Some(OpenBroadcast { id, tenant: TenantId(tenant), definition: definition.ok()??, is_counted })
        };
        Ok(rows.into_iter().filter_map(open).collect())
    }

    fn definition(&self, tenant: TenantId, stored: Vec<u8>) -> DbResult<Option<Definition>> {
        Ok(serde_json::from_slice(&self.sealer().open(sealed::BROADCAST.of(tenant), stored)?).ok())
    }

    /// How many deliveries of this kind wait for their turn already.
    pub async fn ahead_of(&self, broadcast: &OpenBroadcast) -> DbResult<i64> {
        let OpenBroadcast { tenant, definition, .. } = broadcast;
        let shares = definition.channels.iter().map(|&channel| share(*tenant, Route { channel, lane: Lane::Bulk }));
        let query =
            statement::<Int8>(AHEAD).bind::<Array<SqlUuid>, _>(shares.chain(definition.session).collect::<Vec<_>>());
        query.within(Some(*tenant)).row(self).await
    }

    /// Counts whom a broadcast is meant for, a part of the people at a time, and notes it down.
    pub async fn count_audience(&self, broadcast: &OpenBroadcast) -> DbResult<()> {
        let OpenBroadcast { id, tenant, definition, .. } = broadcast;
        let total = match &definition.target {
            Target::Users { ids } => i64::try_from(ids.len()).unwrap_or(i64::MAX),
            target if target.conditions().is_empty() => self.count_stored(*tenant, target).await?,
            target => self.count_here(*tenant, target).await?,
        };
        let query = statement::<()>("UPDATE broadcasts SET total = ? WHERE id = ? AND total IS NULL");
        query.bind::<Int8, _>(total).bind::<SqlUuid, _>(*id).within(Some(*tenant)).run(self).await.map(drop)
    }

    async fn count_stored(&self, tenant: TenantId, target: &Target) -> DbResult<i64> {
        let (name, value) = wanted(target);
        let (mut after, mut total) = (String::new(), 0);
        loop {
            let query = statement::<(Int8, Int8, Nullable<Text>)>(COUNT)
                .bind::<Int4, _>(tenant.0)
                .bind::<Text, _>(after)
                .bind::<Nullable<Text>, _>(name.clone())
                .bind::<Nullable<Json>, _>(value.clone())
                .bind::<Int8, _>(COUNT_WINDOW);
            let (meant, seen, last): (i64, i64, Option<String>) = query.within(Some(tenant)).row(self).await?;
            total += meant;
            match last.filter(|_| seen >= COUNT_WINDOW) {
                Some(last) => after = last,
                None => return Ok(total),
            }
        }
    }

    async fn count_here(&self, tenant: TenantId, target: &Target) -> DbResult<i64> {
        type Facts = (String, bool, Option<String>, Option<String>, String);
        let (mut after, mut total) = (String::new(), 0);
        loop {
            let query = statement::<(Text, Bool, Nullable<Text>, Nullable<Text>, Text)>(FACTS)
                .bind::<Int4, _>(tenant.0)
                .bind::<Text, _>(after)
                .bind::<Int8, _>(COUNT_WINDOW_HERE);
            let rows: Vec<Facts> = query.within(Some(tenant)).rows(self).await?;
            let meant = |(_, is_known, locale, zone, attributes): &&Facts| {
                let attributes: Map<String, Value> = serde_json::from_str(attributes).unwrap_or_default();
                *is_known && target.means(locale.as_deref(), zone.as_deref(), &attributes)
            };
            total += i64::try_from(rows.iter().filter(meant).count()).unwrap_or_default();
            let is_full = i64::try_from(rows.len()).is_ok_and(|seen| seen >= COUNT_WINDOW_HERE);
            match rows.into_iter().next_back().filter(|_| is_full) {
                Some((last, ..)) => after = last,
                None => return Ok(total),
            }
        }
    }

    /// The next people of a broadcast, to write messages for; `None`: it does not run. No message is accepted yet, and nothing is locked.
    pub async fn next_page(&self, broadcast: &OpenBroadcast) -> DbResult<Option<Page>> {
        let mut conn = self.within(Some(broadcast.tenant)).await?;
        let page = Step { store: self, broadcast, relay_after_ms: 0 }.read(&mut conn).await;
        conn.finish(page).await
    }

    /// Accepts the messages to the people of a page, one for each of the first of them, and moves the cursor behind those: one commit.
    /// Changes nothing where the broadcast was changed since the page was read.
    pub async fn tell_page(
        &self,
        broadcast: &OpenBroadcast,
        page: Page,
        messages: Vec<NewMessage>,
        relay_after_ms: i32,
    ) -> DbResult<PageDone> {
        let mut conn = self.within(Some(broadcast.tenant)).await?;
        let step = Step { store: self, broadcast, relay_after_ms };
        let told = step.tell(&mut conn, page, messages).await;
        let done = conn.finish(told).await?;
        faultpoint::pass(faultpoint::AFTER_PAGE);
        Ok(done)
    }

    /// Up to `limit` pages to be counted now; others leave them alone for a while.
    pub async fn due_pages(&self, limit: i64) -> DbResult<Vec<DuePage>> {
        type Due = (Uuid, i32, i32, Uuid, Uuid, bool);
        let query = statement::<(SqlUuid, Int4, Int4, SqlUuid, SqlUuid, Bool)>(DUE).bind::<Int8, _>(limit);
        let rows: Vec<Due> = query.rows(self).await?;
        let page = |(broadcast, no, tenant, first, last, is_cancelled)| DuePage {
            broadcast,
            no,
            tenant: TenantId(tenant),
            range: (first, last),
            is_cancelled,
        };
        Ok(rows.into_iter().map(page).collect())
    }

    /// Counts where the deliveries of a page stand; those of a cancelled broadcast that still wait are taken back first.
    pub async fn count_page(&self, page: &DuePage) -> DbResult<()> {
        let DuePage { broadcast, no, tenant, range, is_cancelled } = *page;
        if is_cancelled {
            self.cancel_page(tenant, broadcast, range).await?;
            let query = statement::<()>(UNPARK).bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(range.0);
            query.bind::<SqlUuid, _>(range.1).within(Some(tenant)).run(self).await?;
        }
        let query = statement::<()>(COUNT_PAGE).near([&range.0, &range.1]);
        let query = query.bind::<SqlUuid, _>(broadcast).bind::<Int4, _>(no);
        query.within(Some(tenant)).run(self).await.map(drop)
    }

    /// A tenant's broadcasts, newest first; those before `before`.
    pub async fn list_broadcasts(
        &self,
        tenant: TenantId,
        before: Option<Uuid>,
        limit: i64,
    ) -> DbResult<Vec<StoredBroadcast>> {
        let query = statement::<SqlRow>(LIST)
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(before.unwrap_or(Uuid::max()))
            .bind::<Int8, _>(limit);
        let rows: Vec<Row> = query.within(Some(tenant)).rows(self).await?;
        // One that cannot be read is left out.
        let read = |row: Row| {
            let broadcast = self.broadcast_of(tenant, row);
            broadcast.inspect_err(|error| tracing::error!(%error, "a broadcast is left out")).ok().flatten()
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    /// A broadcast of a tenant. A small one is counted at this moment.
    pub async fn broadcast(&self, tenant: TenantId, id: Uuid) -> DbResult<Option<StoredBroadcast>> {
        let query =
            statement::<SqlRow>(SHOW).bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(id).bind::<Int4, _>(LIVE_PAGES);
        let rows: Vec<Row> = query.within(Some(tenant)).rows(self).await?;
        rows.into_iter().next().map_or(Ok(None), |row| self.broadcast_of(tenant, row))
    }

    fn broadcast_of(&self, tenant: TenantId, (head, times, counts): Row) -> DbResult<Option<StoredBroadcast>> {
        let (id, definition, status, scheduled_at, total, told, accepted) = head;
        let (created_at, updated_at, finished_at) = times;
        let (waiting, sent, delivered, failed, suppressed, cancelled) = counts;
        let Some(definition) = self.definition(tenant, definition)? else { return Ok(None) };
        let Ok(status) = status.parse() else { return Ok(None) };
        let counts = BroadcastCounts { waiting, sent, delivered, failed, suppressed, cancelled };
        Ok(Some(StoredBroadcast {
            id,
            definition,
            status,
            scheduled_at,
            total,
            told,
            accepted,
            counts,
            created_at,
            updated_at,
            finished_at,
        }))
    }

    /// Pauses, resumes or cancels a broadcast; says whether its state allowed that.
    pub async fn steer_broadcast(&self, tenant: TenantId, id: Uuid, steering: Steering) -> DbResult<bool> {
        let text = match steering {
            Steering::Pause => PAUSE,
            Steering::Resume => RESUME,
            Steering::Cancel => return self.cancel_broadcast(tenant, id).await,
        };
        let query = statement::<()>(text).bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(id);
        Ok(query.within(Some(tenant)).run(self).await? > 0)
    }

    async fn cancel_broadcast(&self, tenant: TenantId, id: Uuid) -> DbResult<bool> {
        let mut conn = self.within(Some(tenant)).await?;
        let cancelled = async {
            let query = statement::<Binary>(CANCEL).bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(id);
            let stored: Vec<Vec<u8>> = RunQueryDsl::load(query, &mut *conn).await?;
            let Some(stored) = stored.into_iter().next() else { return Ok(false) };
            if let Some(definition) = self.definition(tenant, stored)? {
                self.forget_named(&mut conn, tenant, id, &definition).await?;
            }
            Ok(true)
        };
        let cancelled = cancelled.await;
        conn.finish(cancelled).await
    }

    /// Whom a broadcast that has ended named need not be known any more.
    async fn forget_named(
        &self,
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
        &self,
        conn: &mut AsyncPgConnection,
        (tenant, id): (TenantId, Uuid),
        definition: &Definition,
        after: &str,
    ) -> DbResult<()> {
        let json = serde_json::to_vec(definition).unwrap_or_default();
        let sealed = self.sealer().seal(sealed::BROADCAST.of(tenant), &json)?;
        let query = statement::<()>("UPDATE broadcasts SET definition = ?, after_user = ? WHERE id = ?")
            .bind::<Binary, _>(sealed)
            .bind::<Text, _>(after.to_owned())
            .bind::<SqlUuid, _>(id);
        RunQueryDsl::execute(query, conn).await?;
        Ok(())
    }

    /// Takes a person out of the unfinished broadcasts of a tenant: from the named people, and from the cursor.
    pub(super) async fn erase_from_broadcasts(&self, tenant: TenantId, user_id: &str) -> DbResult<()> {
        let mut conn = self.within(Some(tenant)).await?;
        let erased = async {
            let query = statement::<(SqlUuid, Binary, Text)>(NOT_ENDED).bind::<Int4, _>(tenant.0);
            let rows: Vec<(Uuid, Vec<u8>, String)> = RunQueryDsl::load(query, &mut *conn).await?;
            for (id, stored, after) in rows {
                let Some(stored) = self.opened(sealed::BROADCAST.of(tenant), stored) else { continue };
                let Ok(mut definition) = serde_json::from_slice::<Definition>(&stored) else { continue };
                let Target::Users { ids } = &mut definition.target else { continue };
                if !ids.iter().any(|one| one == user_id) {
                    continue;
                }
                ids.retain(|one| one != user_id);
                // The people before it have their messages as well.
                let before = ids.iter().rfind(|one| **one < after).cloned().unwrap_or_default();
                let after = if after == user_id { before } else { after };
                self.rewrite(&mut conn, (tenant, id), &definition, &after).await?;
            }
            let query = statement::<()>(STEP_BACK).bind::<Int4, _>(tenant.0).bind::<Text, _>(user_id.to_owned());
            RunQueryDsl::execute(query, &mut *conn).await?;
            Ok(())
        };
        let erased = erased.await;
        conn.finish(erased).await
    }
}

/// The attribute that decides who is meant, as statements take it.
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
        let query = statement::<(Binary, Text)>(READ).bind::<SqlUuid, _>(self.broadcast.id);
        let read: Vec<(Vec<u8>, String)> = RunQueryDsl::load(query, conn).await?;
        let Some((stored, after)) = read.into_iter().next() else { return Ok(None) };
        let Some(definition) = self.store.definition(self.broadcast.tenant, stored.clone())? else { return Ok(None) };
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
        let query = statement::<(Binary, Text)>(LOCK).bind::<SqlUuid, _>(id);
        let locked: Vec<(Vec<u8>, String)> = RunQueryDsl::load(query, conn).await?;
        let Some((stored, after)) = locked.into_iter().next() else { return Ok(PageDone::default()) };
        // Another scheduler accepted this page, or a person was taken out of the broadcast: it is read once more.
        if stored != page.stored || after != page.after {
            return Ok(PageDone { more: true, ..PageDone::default() });
        }
        // Where there was no time for all of the page, the others are the next one.
        let told = messages.len().min(page.people.len());
        let last = page.people.get(told.saturating_sub(1)).filter(|_| told < page.people.len());
        let next = last.map(|person| person.id.clone()).or(page.next);
        if !matches!(page.definition.target, Target::Users { .. }) {
            self.drop_erased(conn, &mut messages).await?;
        }
        let deliveries: Vec<Uuid> =
            messages.iter().flat_map(|message| message.deliveries.iter().map(|delivery| delivery.id.0)).collect();
        let dispatch = if messages.is_empty() { None } else { self.accept(conn, messages).await? };
        let progress = statement::<()>(PROGRESS)
            .bind::<Nullable<Text>, _>(next.clone())
            .bind::<Int8, _>(count(told))
            .bind::<Int4, _>(i32::try_from(deliveries.len()).unwrap_or(i32::MAX))
            .bind::<Nullable<SqlUuid>, _>(deliveries.iter().min().copied())
            .bind::<Nullable<SqlUuid>, _>(deliveries.iter().max().copied())
            .bind::<SqlUuid, _>(id);
        RunQueryDsl::execute(progress, conn).await?;
        if next.is_none() {
            self.store.forget_named(conn, self.broadcast.tenant, id, &page.definition).await?;
        }
        faultpoint::pass(faultpoint::WITHIN_PAGE);
        Ok(PageDone { told, more: next.is_some(), dispatch })
    }

    /// Leaves out those who were erased since the page was read.
    async fn drop_erased(&self, conn: &mut AsyncPgConnection, messages: &mut Vec<NewMessage>) -> DbResult<()> {
        let ids: Vec<String> = messages.iter().filter_map(|message| message.user_id.clone()).collect();
        let query = statement::<Text>(STILL_THERE).bind::<Int4, _>(self.broadcast.tenant.0).bind::<Array<Text>, _>(ids);
        let there: Vec<String> = RunQueryDsl::load(query, conn).await?;
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
        self.store.accept_on(conn, &[acceptance], self.relay_after_ms).await
    }

    /// The next of those that a target names; they are in order. An unknown person can still get it in the app.
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

    /// The next of those the tenant knows whom a target means.
    async fn known(&self, conn: &mut AsyncPgConnection, target: &Target, after: String) -> DbResult<Audience> {
        let tenant = self.broadcast.tenant;
        let (name, value) = wanted(target);
        let query = statement::<Text>(PICK)
            .bind::<Int4, _>(tenant.0)
            .bind::<Text, _>(after.clone())
            .bind::<Nullable<Text>, _>(name)
            .bind::<Nullable<Json>, _>(value)
            .bind::<Int8, _>(WINDOW)
            .bind::<Int8, _>(PAGE);
        let ids: Vec<String> = RunQueryDsl::load(query, conn).await?;
        let next = if count(ids.len()) >= PAGE {
            ids.last().cloned()
        } else {
            let query = statement::<Text>(WINDOW_END)
                .bind::<Int4, _>(tenant.0)
                .bind::<Text, _>(after)
                .bind::<Int8, _>(WINDOW - 1);
            let ends: Vec<String> = RunQueryDsl::load(query, conn).await?;
            ends.into_iter().next()
        };
        let mut known = self.people(conn, ids.clone()).await?;
        let people = ids.iter().filter_map(|id| known.remove(id)).filter(|person| target.means_person(person));
        Ok(Audience { people: people.collect(), next })
    }

    async fn people(&self, conn: &mut AsyncPgConnection, ids: Vec<String>) -> DbResult<HashMap<String, Person>> {
        let query = statement::<SqlPerson>(PEOPLE).bind::<Array<Text>, _>(ids);
        let query = query.bind::<Int4, _>(self.broadcast.tenant.0);
        let rows: Vec<PersonRow> = RunQueryDsl::load(query, conn).await?;
        let read = |row: PersonRow| {
            let person = self.store.person_of(self.broadcast.tenant, row);
            person.inspect_err(|error| tracing::error!(%error, "a person is left out")).ok()
        };
        Ok(rows.into_iter().filter_map(read).map(|person| (person.id.clone(), person)).collect())
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

const BEGIN: &str =
    "UPDATE broadcasts SET status = 'running', updated_at = now() WHERE status = 'scheduled' AND scheduled_at <= now()";

const RUNNING: &str = "
SELECT id, tenant_id, definition, total IS NOT NULL FROM broadcasts WHERE status = 'running' AND id > ? ORDER BY id LIMIT ?";

const AHEAD: &str = "SELECT coalesce(max(waiting), 0)::int8 FROM lines WHERE id = ANY (?::uuid[])";

const READ: &str = "SELECT definition, after_user FROM broadcasts WHERE id = ? AND status = 'running'";

const STILL_THERE: &str = "SELECT user_id FROM users WHERE tenant_id = ? AND user_id = ANY (?::text[])";

const LOCK: &str =
    "SELECT definition, after_user FROM broadcasts WHERE id = ? AND status = 'running' FOR UPDATE SKIP LOCKED";

/// People in the order of their ids, and whether they are meant: known by more than preferences, and with the attribute that
/// decides. The constants are one row that the planner folds in, so that it walks the key and sorts nothing.
macro_rules! in_order {
    ($columns:literal) => {
        concat!(
            "
    SELECT u.user_id, ",
            $columns,
            "u.profile IS NOT NULL AND (f.name IS NULL OR (u.attributes -> f.name) = f.value) AS is_meant
    FROM (SELECT ?::int4 AS tenant_id, ?::text AS after, ?::text AS name, ?::jsonb AS value) f CROSS JOIN users u
    WHERE u.tenant_id = f.tenant_id AND u.user_id > f.after ORDER BY u.user_id LIMIT ?"
        )
    };
}

const PICK: &str = concat!("SELECT p.user_id FROM (", in_order!(""), ") p WHERE p.is_meant ORDER BY p.user_id LIMIT ?");

const COUNT: &str =
    concat!("SELECT count(*) FILTER (WHERE p.is_meant), count(*), max(p.user_id) FROM (", in_order!(""), ") p");

const FACTS: &str = "
SELECT u.user_id, u.profile IS NOT NULL, u.locale, u.time_zone, u.attributes::text
FROM (SELECT ?::int4 AS tenant_id, ?::text AS after) f CROSS JOIN users u
WHERE u.tenant_id = f.tenant_id AND u.user_id > f.after ORDER BY u.user_id LIMIT ?";

const WINDOW_END: &str = "
SELECT u.user_id FROM (SELECT ?::int4 AS tenant_id, ?::text AS after) f CROSS JOIN users u
WHERE u.tenant_id = f.tenant_id AND u.user_id > f.after ORDER BY u.user_id OFFSET ? LIMIT 1";

/// Without a next page the broadcast is over, and its total is the number of people with a message.
const PROGRESS: &str = "
WITH f AS (SELECT ?::text AS next, ?::int8 AS told, ?::int4 AS accepted, ?::uuid AS first, ?::uuid AS last, ?::uuid AS id
), moved AS (
    UPDATE broadcasts b
    SET after_user = coalesce(f.next, ''), told = b.told + f.told, accepted = b.accepted + f.accepted,
        pages = b.pages + (f.accepted > 0)::int, updated_at = now(),
        status = CASE WHEN f.next IS NULL THEN 'completed' ELSE b.status END,
        finished_at = CASE WHEN f.next IS NULL THEN now() END,
        total = CASE WHEN f.next IS NULL THEN b.told + f.told ELSE b.total END
    FROM f WHERE b.id = f.id
    RETURNING b.id, b.tenant_id, b.pages
)
INSERT INTO broadcast_pages (broadcast_id, no, tenant_id, first, last, accepted, waiting, count_at)
SELECT moved.id, moved.pages, moved.tenant_id, f.first, f.last, f.accepted, f.accepted, now() + interval '5 seconds'
FROM moved, f WHERE f.accepted > 0";

const DUE: &str = "
WITH taken AS (
    UPDATE broadcast_pages SET count_at = now() + interval '10 seconds'
    WHERE (broadcast_id, no) IN (
        SELECT broadcast_id, no FROM broadcast_pages WHERE count_at <= now() ORDER BY count_at LIMIT ? FOR UPDATE SKIP LOCKED)
    RETURNING broadcast_id, no, tenant_id, first, last
)
SELECT t.broadcast_id, t.no, t.tenant_id, t.first, t.last, b.status = 'cancelled'
FROM taken t JOIN broadcasts b ON b.id = t.broadcast_id";

/// Takes what was cancelled out of its line, so that it does not hold up paging. The lines are locked first, as by their release.
const UNPARK: &str = "
WITH over AS MATERIALIZED (
    SELECT k.delivery_id, k.line FROM (SELECT ?::int4 AS tenant_id, ?::uuid AS first, ?::uuid AS last) f
    JOIN parked k ON k.delivery_id >= f.first AND k.delivery_id <= f.last
    CROSS JOIN LATERAL (SELECT FROM deliveries d WHERE d.id = k.delivery_id AND d.tenant_id = f.tenant_id AND d.state = 'cancelled' OFFSET 0) d
), held AS MATERIALIZED (
    SELECT l.id FROM lines l WHERE l.id = ANY (ARRAY(SELECT line FROM over)) ORDER BY l.id FOR UPDATE
)
DELETE FROM parked WHERE delivery_id = ANY (ARRAY(SELECT o.delivery_id FROM over o WHERE o.line IN (SELECT id FROM held)))";

/// Where the deliveries between two stand, of those that belong to a broadcast.
macro_rules! standing {
    ($first:literal, $last:literal, $tenant:literal, $broadcast:literal) => {
        concat!(
            "
    SELECT count(*)::int4 AS n, count(*) FILTER (WHERE d.state IN ('scheduled', 'queued', 'sending', 'retrying'))::int4 AS waiting,
           count(*) FILTER (WHERE d.state = 'sent')::int4 AS sent, count(*) FILTER (WHERE d.state = 'delivered')::int4 AS delivered,
           count(*) FILTER (WHERE d.state IN ('failed', 'bounced', 'dead', 'expired'))::int4 AS failed,
           count(*) FILTER (WHERE d.state = 'dead')::int4 AS dead,
           count(*) FILTER (WHERE d.state = 'suppressed')::int4 AS suppressed,
           count(*) FILTER (WHERE d.state = 'cancelled')::int4 AS cancelled
    FROM deliveries@ d
    WHERE d.id >= ",
            $first,
            " AND d.id <= ",
            $last,
            " AND d.tenant_id = ",
            $tenant,
            "
      AND EXISTS (SELECT 1 FROM messages@ m WHERE m.id = d.message_id AND m.bulk_id = ",
            $broadcast,
            ")"
        )
    };
}

/// The younger a page, the sooner it is counted again. What was sent may still arrive or come back, and what died be replayed,
/// for three days; where rows went with their retention, what was counted before stays.
const COUNT_PAGE: &str = concat!(
    "
UPDATE broadcast_pages p
SET waiting = c.waiting, sent = c.sent, delivered = c.delivered, failed = c.failed, suppressed = c.suppressed, cancelled = c.cancelled,
    count_at = c.count_at
FROM (
    SELECT q.broadcast_id, q.no, s.n = q.accepted AS is_whole,
           CASE WHEN s.n = q.accepted THEN s.waiting ELSE q.waiting END AS waiting,
           CASE WHEN s.n = q.accepted THEN s.sent ELSE q.sent END AS sent,
           CASE WHEN s.n = q.accepted THEN s.delivered ELSE q.delivered END AS delivered,
           CASE WHEN s.n = q.accepted THEN s.failed ELSE q.failed END AS failed,
           CASE WHEN s.n = q.accepted THEN s.suppressed ELSE q.suppressed END AS suppressed,
           CASE WHEN s.n = q.accepted THEN s.cancelled ELSE q.cancelled END AS cancelled,
           CASE WHEN s.n = q.accepted AND (s.waiting > 0 OR (s.sent + s.dead > 0 AND q.created_at > now() - interval '3 days'))
                THEN now() + greatest(interval '5 seconds', (now() - q.created_at) / 4) END AS count_at
    FROM (SELECT ?::uuid AS broadcast_id, ?::int4 AS no) f
    JOIN broadcast_pages q ON q.broadcast_id = f.broadcast_id AND q.no = f.no
    CROSS JOIN LATERAL (",
    standing!("q.first", "q.last", "q.tenant_id", "q.broadcast_id"),
    ") s) c
WHERE p.broadcast_id = c.broadcast_id AND p.no = c.no"
);

/// Broadcasts with what was last counted.
macro_rules! listed {
    ($rest:literal) => {
        concat!(
            "
SELECT b.id, b.definition, b.status, b.scheduled_at, b.total, b.told, b.accepted, b.created_at, b.updated_at, b.finished_at,
       c.waiting, c.sent, c.delivered, c.failed, c.suppressed, c.cancelled
",
            $rest
        )
    };
}

const LIST: &str = listed!(
    "FROM (SELECT b.* FROM (SELECT ?::int4 AS tenant_id, ?::uuid AS before) f CROSS JOIN broadcasts b
      WHERE b.tenant_id = f.tenant_id AND b.id < f.before ORDER BY b.id DESC LIMIT ?) b
CROSS JOIN LATERAL (
    SELECT coalesce(sum(p.waiting), 0)::int8 AS waiting, coalesce(sum(p.sent), 0)::int8 AS sent, coalesce(sum(p.delivered), 0)::int8 AS delivered,
           coalesce(sum(p.failed), 0)::int8 AS failed, coalesce(sum(p.suppressed), 0)::int8 AS suppressed,
           coalesce(sum(p.cancelled), 0)::int8 AS cancelled
    FROM broadcast_pages p WHERE p.broadcast_id = b.id) c
ORDER BY b.id DESC"
);

/// Pages that may still change are counted at this moment, where they are few.
const SHOW: &str = concat!(
    listed!(
        "FROM (SELECT ?::int4 AS tenant_id, ?::uuid AS id, ?::int4 AS live_pages) f JOIN broadcasts b ON b.id = f.id AND b.tenant_id = f.tenant_id
CROSS JOIN LATERAL (
    SELECT coalesce(sum(CASE WHEN s.n = p.accepted THEN s.waiting ELSE p.waiting END), 0)::int8 AS waiting,
           coalesce(sum(CASE WHEN s.n = p.accepted THEN s.sent ELSE p.sent END), 0)::int8 AS sent,
           coalesce(sum(CASE WHEN s.n = p.accepted THEN s.delivered ELSE p.delivered END), 0)::int8 AS delivered,
           coalesce(sum(CASE WHEN s.n = p.accepted THEN s.failed ELSE p.failed END), 0)::int8 AS failed,
           coalesce(sum(CASE WHEN s.n = p.accepted THEN s.suppressed ELSE p.suppressed END), 0)::int8 AS suppressed,
           coalesce(sum(CASE WHEN s.n = p.accepted THEN s.cancelled ELSE p.cancelled END), 0)::int8 AS cancelled
    FROM broadcast_pages p LEFT JOIN LATERAL ("
    ),
    standing!("p.first", "p.last", "p.tenant_id", "p.broadcast_id"),
    "
      AND p.count_at IS NOT NULL AND b.pages <= f.live_pages) s ON true
    WHERE p.broadcast_id = b.id) c"
);

const PAUSE: &str = "
UPDATE broadcasts SET status = 'paused', updated_at = now() WHERE tenant_id = ? AND id = ? AND status IN ('scheduled', 'running')";

const RESUME: &str = "
UPDATE broadcasts SET status = CASE WHEN scheduled_at > now() THEN 'scheduled' ELSE 'running' END, updated_at = now()
WHERE tenant_id = ? AND id = ? AND status = 'paused'";

/// Its pages are due now: their waiting deliveries are cancelled.
const CANCEL: &str = "
WITH ended AS (
    UPDATE broadcasts SET status = 'cancelled', after_user = '', updated_at = now(), finished_at = now()
    WHERE tenant_id = ? AND id = ? AND status IN ('scheduled', 'running', 'paused')
    RETURNING id, definition
), hurried AS (
    UPDATE broadcast_pages p SET count_at = now() FROM ended WHERE p.broadcast_id = ended.id AND p.count_at IS NOT NULL
)
SELECT definition FROM ended";

const NOT_ENDED: &str = "
SELECT id, definition, after_user FROM broadcasts
WHERE tenant_id = ? AND status IN ('scheduled', 'running', 'paused') ORDER BY id FOR UPDATE";

/// The cursor behind the people before.
const STEP_BACK: &str = "
UPDATE broadcasts b
SET after_user = coalesce((SELECT u.user_id FROM users u WHERE u.tenant_id = b.tenant_id AND u.user_id < b.after_user
                           ORDER BY u.user_id DESC LIMIT 1), '')
FROM (SELECT ?::int4 AS tenant_id, ?::text AS user_id) f
WHERE b.tenant_id = f.tenant_id AND b.after_user = f.user_id AND b.status IN ('scheduled', 'running', 'paused')";
