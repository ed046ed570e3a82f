//! Digests: windows in which events gather, and their closing. A window is a row that closes once, in the transaction that
//! accepts what became of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use domain::{
    TenantId,
    acceptance::{Acceptance, NewDigestItem, SideRecord},
};
use runtime::faultpoint;
use uuid::Uuid;

use super::{
    DbResult, Scoped, Store,
    outbox::Dispatch,
    poll::{Floors, WorkKind, floor_of},
    sealed, statement,
    throttles::{Ask, Granted},
};

/// Data of one digest that is read to be told, in bytes; what goes beyond is counted only.
const ITEMS_BYTES_MAX: i64 = 2 * 1024 * 1024;

/// What one window is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Group {
    tenant: i32,
    rule: Uuid,
    user_id: String,
    key: String,
}

impl Group {
    fn of(tenant: TenantId, item: &NewDigestItem) -> Self {
        Self { tenant: tenant.0, rule: item.rule, user_id: item.user_id.clone(), key: item.key.clone() }
    }
}

/// A window that closes now.
#[derive(Clone, Debug)]
pub struct DueDigest {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub tenant: TenantId,
    /// The person.
    pub user_id: String,
}

/// A window that is held for its closing.
#[derive(Clone, Debug)]
pub struct HeldDigest {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub tenant: TenantId,
    /// The rule.
    pub rule: Uuid,
    /// The person.
    pub user_id: String,
    /// How many events gathered.
    pub count: i32,
    /// Whether it closes because it is full.
    pub is_full: bool,
    /// The type of the last event.
    pub event_type: String,
    /// When the window opened.
    pub opened_at: DateTime<Utc>,
    /// When it was to close.
    pub closes_at: DateTime<Utc>,
    /// When it was to close at the latest.
    pub latest_at: DateTime<Utc>,
    /// The data of the events as JSON, in order; without the last ones where they are too much.
    pub items: Vec<Vec<u8>>,
}

/// What becomes of a window.
#[derive(Clone, Debug)]
pub enum Ending {
    /// It is told.
    Told(Box<Acceptance>),
    /// It closes and says nothing.
    Silent,
    /// It does not close yet, but at another moment; where that is the end it was always meant to have, whatever comes.
    Later {
        /// The moment.
        at: DateTime<Utc>,
        /// Whether it is its end.
        is_end: bool,
    },
}

/// Windows held for their closing, in a transaction that lets nobody else have them.
pub struct Closing {
    store: Store,
    conn: Scoped,
    /// The windows.
    pub digests: Vec<HeldDigest>,
}

type HeldRow = ((Uuid, i32, Uuid, String, i32, bool), (String, DateTime<Utc>, DateTime<Utc>, DateTime<Utc>));
type HeldSqlRow = ((SqlUuid, Int4, SqlUuid, Text, Int4, Bool), (Text, Timestamptz, Timestamptz, Timestamptz));

impl Store {
    /// Opens a window with nothing in it; says whether there was none. Of several who try at once one does.
    pub async fn open_window(&self, tenant: TenantId, item: &NewDigestItem) -> DbResult<bool> {
        let query = statement::<()>(OPEN)
            .bind::<SqlUuid, _>(item.digest)
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(item.rule)
            .bind::<Text, _>(item.user_id.clone())
            .bind::<Text, _>(item.key.clone())
            .bind::<Int4, _>(item.max_items)
            .bind::<Text, _>(item.event_type.clone())
            .bind::<Timestamptz, _>(item.opened_at)
            .bind::<Timestamptz, _>(item.closes_at)
            .bind::<Timestamptz, _>(item.latest_at);
        Ok(query.within(Some(tenant)).run(self).await? > 0)
    }

    /// How many events the open windows of a person hold, and when they close. `asked` names each by its rule and key.
    pub async fn open_digests(
        &self,
        tenant: TenantId,
        user: &str,
        asked: Vec<(Uuid, String)>,
    ) -> DbResult<HashMap<Uuid, (i32, DateTime<Utc>)>> {
        let (rules, keys): (Vec<Uuid>, Vec<String>) = asked.into_iter().unzip();
        let query = statement::<(SqlUuid, Int4, Timestamptz)>(OPEN_OF_PERSON)
            .bind::<Array<SqlUuid>, _>(rules)
            .bind::<Array<Text>, _>(keys)
            .bind::<Int4, _>(tenant.0)
            .bind::<Text, _>(user.to_owned());
        let rows: Vec<(Uuid, i32, DateTime<Utc>)> = query.within(Some(tenant)).rows(self).await?;
        Ok(rows.into_iter().map(|(rule, items, closes_at)| (rule, (items, closes_at))).collect())
    }

    /// Locks the open windows that events are going to be put into, in one order, before anything else is locked that the closing
    /// of a window needs as well.
    pub(super) async fn lock_windows(
        &self,
        conn: &mut AsyncPgConnection,
        beside: &[(TenantId, &SideRecord)],
    ) -> DbResult<()> {
        let group = |(tenant, beside): &(TenantId, &SideRecord)| match beside {
            SideRecord::DigestItem(item) => Some(Group::of(*tenant, item)),
            SideRecord::Event(_) | SideRecord::Broadcast(_) => None,
        };
        let groups: BTreeSet<Group> = beside.iter().filter_map(group).collect();
        if groups.is_empty() {
            return Ok(());
        }
        let texts = |of: fn(&Group) -> &String| groups.iter().map(|group| of(group).clone()).collect::<Vec<_>>();
        let query = statement::<()>(LOCK_WINDOWS)
            .bind::<Array<Int4>, _>(groups.iter().map(|group| group.tenant).collect::<Vec<_>>())
            .bind::<Array<SqlUuid>, _>(groups.iter().map(|group| group.rule).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(texts(|group| &group.user_id))
            .bind::<Array<Text>, _>(texts(|group| &group.key));
        RunQueryDsl::execute(query, conn).await?;
        Ok(())
    }

    /// Puts events into their windows, within the transaction that accepts them. Windows that have a fill get one event at a
    /// time, so that none takes more.
    pub(super) async fn gather(
        &self,
        conn: &mut AsyncPgConnection,
        items: &[(TenantId, &NewDigestItem)],
    ) -> DbResult<()> {
        let mut rounds: Vec<BTreeMap<Group, Vec<&NewDigestItem>>> = Vec::new();
        let mut places: HashMap<Group, usize> = HashMap::new();
        for (tenant, item) in items {
            let group = Group::of(*tenant, item);
            let place = places.entry(group.clone()).or_default();
            if rounds.len() <= *place {
                rounds.push(BTreeMap::new());
            }
            if let Some(round) = rounds.get_mut(*place) {
                round.entry(group).or_default().push(item);
            }
            *place += usize::from(item.max_items < ROOMY);
        }
        for round in rounds {
            self.gather_round(conn, round).await?;
        }
        Ok(())
    }

    async fn gather_round(
        &self,
        conn: &mut AsyncPgConnection,
        round: BTreeMap<Group, Vec<&NewDigestItem>>,
    ) -> DbResult<()> {
        let mut columns = WindowColumns::default();
        round.iter().for_each(|(group, items)| columns.push(group, items));
        let rows: Vec<(Uuid, i32, Uuid, String, String)> = RunQueryDsl::load(columns.bind(), conn).await?;
        let windows: HashMap<Group, Uuid> = rows
            .into_iter()
            .map(|(id, tenant, rule, user_id, key)| (Group { tenant, rule, user_id, key }, id))
            .collect();
        let (mut digests, mut events, mut tenants, mut data) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (group, items) in round {
            let Some(window) = windows.get(&group) else { continue };
            for item in items {
                digests.push(*window);
                events.push(item.event);
                tenants.push(group.tenant);
                data.push(self.sealer().seal(sealed::DIGEST_ITEM.of(TenantId(group.tenant)), &item.data)?);
            }
        }
        let query = statement::<()>(INSERT_ITEMS)
            .bind::<Array<SqlUuid>, _>(digests)
            .bind::<Array<SqlUuid>, _>(events)
            .bind::<Array<Int4>, _>(tenants)
            .bind::<Array<Binary>, _>(data);
        RunQueryDsl::execute(query, conn).await?;
        Ok(())
    }

    /// Up to `limit` windows that close now and that nobody holds, the oldest first.
    pub async fn due_digests(&self, limit: i64, floors: &Floors) -> DbResult<Vec<DueDigest>> {
        let query = statement::<(SqlUuid, Int4, Text)>(DUE)
            .bind::<Timestamptz, _>(floor_of(floors, WorkKind::Digests))
            .bind::<Int8, _>(limit);
        let rows: Vec<(Uuid, i32, String)> = query.rows(self).await?;
        let due = |(id, tenant, user_id)| DueDigest { id, tenant: TenantId(tenant), user_id };
        Ok(rows.into_iter().map(due).collect())
    }

    /// Windows that close now, with what gathered in them: to write their messages before they are held.
    pub async fn closing_digests(&self, ids: Vec<Uuid>) -> DbResult<Vec<HeldDigest>> {
        let rows: Vec<HeldRow> = statement::<HeldSqlRow>(CLOSING).bind::<Array<SqlUuid>, _>(ids).rows(self).await?;
        let tenants: HashMap<Uuid, i32> = rows.iter().map(|((id, tenant, ..), _)| (*id, *tenant)).collect();
        let asked: Vec<Uuid> = tenants.keys().copied().collect();
        let query = statement::<(SqlUuid, Binary)>(ITEMS).bind::<Array<SqlUuid>, _>(asked);
        let stored: Vec<(Uuid, Vec<u8>)> = query.bind::<Int8, _>(ITEMS_BYTES_MAX).rows(self).await?;
        let mut items: HashMap<Uuid, Vec<Vec<u8>>> = HashMap::new();
        for (digest, data) in stored {
            let tenant = TenantId(tenants.get(&digest).copied().unwrap_or_default());
            items.entry(digest).or_default().extend(self.opened(sealed::DIGEST_ITEM.of(tenant), data));
        }
        Ok(rows.into_iter().map(|row| digest(row, &mut items)).collect())
    }

    /// Takes hold of windows for their closing: those that nobody else holds and that are still to be closed. What gathered in them
    /// is not read again.
    pub async fn hold_digests(&self, ids: Vec<Uuid>) -> DbResult<Closing> {
        let mut conn = self.transaction().await?;
        match held(&mut conn, ids).await {
            Ok(digests) => Ok(Closing { store: self.clone(), conn, digests }),
            Err(error) => conn.finish(Err(error)).await,
        }
    }

    /// Forgets up to `limit` windows that closed more than `days` ago; says how many.
    pub async fn forget_digests(&self, days: i32, limit: i64) -> DbResult<usize> {
        statement::<()>(FORGET).bind::<Int4, _>(days).bind::<Int8, _>(limit).run(self).await
    }
}

async fn held(conn: &mut AsyncPgConnection, ids: Vec<Uuid>) -> DbResult<Vec<HeldDigest>> {
    let query = statement::<HeldSqlRow>(HOLD).bind::<Array<SqlUuid>, _>(ids);
    let rows: Vec<HeldRow> = RunQueryDsl::load(query, conn).await?;
    Ok(rows.into_iter().map(|row| digest(row, &mut HashMap::new())).collect())
}

fn digest(row: HeldRow, items: &mut HashMap<Uuid, Vec<Vec<u8>>>) -> HeldDigest {
    let ((id, tenant, rule, user_id, count, is_full), (event_type, opened_at, closes_at, latest_at)) = row;
    let (tenant, items) = (TenantId(tenant), items.remove(&id).unwrap_or_default());
    HeldDigest { id, tenant, rule, user_id, count, is_full, event_type, opened_at, closes_at, latest_at, items }
}

impl HeldDigest {
    /// Whether a window is as it was: nothing came into it, and nothing moved its end.
    pub fn is_still(&self, before: &Self) -> bool {
        let shape = |one: &Self| (one.count, one.is_full, one.opened_at, one.closes_at, one.latest_at);
        shape(self) == shape(before)
    }
}

impl Closing {
    /// Takes a place of a throttle for a window; given back if the closing fails.
    pub async fn take_throttles(&mut self, ask: Ask) -> DbResult<Granted> {
        self.store.take_throttles_on(&mut self.conn, ask).await
    }

    /// Closes the windows or puts them off, and accepts what they became: all of it or nothing. Returns what to publish now.
    pub async fn end(mut self, endings: Vec<(Uuid, Ending)>, relay_after_ms: i32) -> DbResult<Option<Dispatch>> {
        let ended = self.write(endings, relay_after_ms).await;
        faultpoint::pass(faultpoint::BEFORE_CLOSE);
        self.conn.finish(ended).await
    }

    async fn write(&mut self, endings: Vec<(Uuid, Ending)>, relay_after_ms: i32) -> DbResult<Option<Dispatch>> {
        let (mut closed, mut messages, mut batch) = (Vec::new(), Vec::new(), Vec::new());
        let (mut later, mut moments, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for (id, ending) in endings {
            match ending {
                Ending::Told(acceptance) => {
                    closed.push(id);
                    messages.push(acceptance.messages.as_slice().first().map(|message| message.id.0));
                    batch.push(*acceptance);
                }
                Ending::Silent => {
                    closed.push(id);
                    messages.push(None);
                }
                Ending::Later { at, is_end } => {
                    later.push(id);
                    moments.push(at);
                    ends.push(is_end);
                }
            }
        }
        if !later.is_empty() {
            let query = statement::<()>(PUT_OFF)
                .bind::<Array<SqlUuid>, _>(later)
                .bind::<Array<Timestamptz>, _>(moments)
                .bind::<Array<Bool>, _>(ends);
            RunQueryDsl::execute(query, &mut *self.conn).await?;
        }
        if !closed.is_empty() {
            let query =
                statement::<()>(CLOSE).bind::<Array<SqlUuid>, _>(closed).bind::<Array<Nullable<SqlUuid>>, _>(messages);
            RunQueryDsl::execute(query, &mut *self.conn).await?;
        }
        if batch.is_empty() {
            return Ok(None);
        }
        self.store.accept_on(&mut self.conn, &batch, relay_after_ms).await
    }
}

/// A window with less room than this must not take more; others take what comes at once, and a few more than their fill.
const ROOMY: i32 = 1000;

/// Windows turned on their side.
#[derive(Default)]
struct WindowColumns {
    id: Vec<Uuid>,
    tenant: Vec<i32>,
    rule: Vec<Uuid>,
    user_id: Vec<String>,
    key: Vec<String>,
    items: Vec<i32>,
    max_items: Vec<i32>,
    event_type: Vec<String>,
    opened_at: Vec<DateTime<Utc>>,
    closes_at: Vec<DateTime<Utc>>,
    latest_at: Vec<DateTime<Utc>>,
}

impl WindowColumns {
    /// A window that opens is the first item's; one that is open is prolonged by the last.
    fn push(&mut self, group: &Group, items: &[&NewDigestItem]) {
        let (Some(first), Some(last)) = (items.first(), items.last()) else { return };
        self.id.push(first.digest);
        self.tenant.push(group.tenant);
        self.rule.push(group.rule);
        self.user_id.push(group.user_id.clone());
        self.key.push(group.key.clone());
        self.items.push(i32::try_from(items.len()).unwrap_or(i32::MAX));
        self.max_items.push(last.max_items);
        self.event_type.push(last.event_type.clone());
        self.opened_at.push(first.opened_at);
        self.closes_at.push(last.closes_at);
        self.latest_at.push(first.latest_at);
    }

    fn bind(self) -> super::Statement<(SqlUuid, Int4, SqlUuid, Text, Text)> {
        statement(GATHER)
            .bind::<Array<SqlUuid>, _>(self.id)
            .bind::<Array<Int4>, _>(self.tenant)
            .bind::<Array<SqlUuid>, _>(self.rule)
            .bind::<Array<Text>, _>(self.user_id)
            .bind::<Array<Text>, _>(self.key)
            .bind::<Array<Int4>, _>(self.items)
            .bind::<Array<Int4>, _>(self.max_items)
            .bind::<Array<Text>, _>(self.event_type)
            .bind::<Array<Timestamptz>, _>(self.opened_at)
            .bind::<Array<Timestamptz>, _>(self.closes_at)
            .bind::<Array<Timestamptz>, _>(self.latest_at)
    }
}

/// Groups come in order, so that two who gather at once lock windows in one order. A full window closes at once and lets the
/// next one open.
const GATHER: &str = "
INSERT INTO digests AS d (id, tenant_id, rule_id, user_id, key, items, max_items, event_type, opened_at, closes_at, latest_at, state)
SELECT g.id, g.tenant_id, g.rule_id, g.user_id, g.key, g.items, g.max_items, g.event_type, g.opened_at,
       CASE WHEN g.items >= g.max_items THEN now() ELSE least(g.closes_at, g.latest_at) END, g.latest_at,
       CASE WHEN g.items >= g.max_items THEN 'full' ELSE 'open' END
FROM unnest(?::uuid[], ?::int4[], ?::uuid[], ?::text[], ?::text[], ?::int4[], ?::int4[], ?::text[], ?::timestamptz[], ?::timestamptz[], ?::timestamptz[])
    AS g(id, tenant_id, rule_id, user_id, key, items, max_items, event_type, opened_at, closes_at, latest_at)
ON CONFLICT (tenant_id, rule_id, user_id, key) WHERE state = 'open' DO UPDATE SET
    items = d.items + excluded.items, max_items = excluded.max_items, event_type = excluded.event_type,
    closes_at = CASE WHEN d.items + excluded.items >= excluded.max_items THEN now()
                     ELSE least(d.latest_at, greatest(d.closes_at, excluded.closes_at)) END,
    state = CASE WHEN d.items + excluded.items >= excluded.max_items THEN 'full' ELSE 'open' END
RETURNING d.id, d.tenant_id, d.rule_id, d.user_id, d.key";

/// In the order of [`GATHER`].
const LOCK_WINDOWS: &str = "
SELECT 1 FROM unnest(?::int4[], ?::uuid[], ?::text[], ?::text[]) WITH ORDINALITY AS g(tenant_id, rule_id, user_id, key, place)
JOIN digests d ON d.tenant_id = g.tenant_id AND d.rule_id = g.rule_id AND d.user_id = g.user_id AND d.key = g.key AND d.state = 'open'
ORDER BY g.place FOR UPDATE OF d";

const INSERT_ITEMS: &str = "
INSERT INTO digest_items (digest_id, event_id, tenant_id, data) SELECT * FROM unnest(?::uuid[], ?::uuid[], ?::int4[], ?::bytea[])";

const OPEN: &str = "
INSERT INTO digests (id, tenant_id, rule_id, user_id, key, max_items, event_type, opened_at, closes_at, latest_at, state)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'open')
ON CONFLICT (tenant_id, rule_id, user_id, key) WHERE state = 'open' DO NOTHING";

const OPEN_OF_PERSON: &str = "
SELECT d.rule_id, d.items, d.closes_at FROM unnest(?::uuid[], ?::text[]) AS asked(rule_id, key)
JOIN digests d ON d.tenant_id = ? AND d.rule_id = asked.rule_id AND d.user_id = ? AND d.key = asked.key AND d.state = 'open'";

/// Whoever holds one has it locked; the lock dies with its holder.
const DUE: &str = "
SELECT id, tenant_id, user_id FROM digests WHERE state <> 'closed' AND closes_at >= ? AND closes_at <= now() ORDER BY closes_at LIMIT ?
FOR UPDATE SKIP LOCKED";

/// A fixed text that reads windows which close now.
macro_rules! closing {
    ($rest:literal) => {
        concat!(
            "SELECT id, tenant_id, rule_id, user_id, items, state = 'full', event_type, opened_at, closes_at, latest_at ",
            "FROM digests WHERE id = ANY (?::uuid[]) AND state <> 'closed' AND closes_at <= now() ORDER BY id",
            $rest
        )
    };
}

const CLOSING: &str = closing!("");
const HOLD: &str = closing!(" FOR UPDATE SKIP LOCKED");

const ITEMS: &str = "
SELECT x.digest_id, x.data FROM (
    SELECT i.digest_id, i.event_id, i.data, sum(octet_length(i.data)) OVER (PARTITION BY i.digest_id ORDER BY i.event_id) AS bytes
    FROM digest_items i WHERE i.digest_id = ANY (?::uuid[])) x
WHERE x.bytes <= ? ORDER BY x.digest_id, x.event_id";

/// A full window keeps its state: it takes nothing more however long it waits.
const PUT_OFF: &str = "
UPDATE digests d SET closes_at = p.at, latest_at = CASE WHEN p.is_end THEN p.at ELSE d.latest_at END
FROM unnest(?::uuid[], ?::timestamptz[], ?::bool[]) AS p(id, at, is_end) WHERE d.id = p.id";

/// What was gathered stands in the message now.
const CLOSE: &str = "
WITH ended AS (SELECT * FROM unnest(?::uuid[], ?::uuid[]) AS e(id, message_id)
), gone AS (DELETE FROM digest_items i USING ended e WHERE i.digest_id = e.id
)
UPDATE digests d SET state = 'closed', message_id = e.message_id, closes_at = now() FROM ended e WHERE d.id = e.id";

const FORGET: &str = "
DELETE FROM digests WHERE id IN (
    SELECT id FROM digests WHERE state = 'closed' AND closes_at < now() - ? * interval '1 day' LIMIT ? FOR UPDATE SKIP LOCKED)";
