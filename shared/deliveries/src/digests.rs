//! Digests: windows that collect events, and their closing. A window is a row that closes once, in the transaction that
//! accepts its message.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use domain::{
    TenantId,
    acceptance::{Acceptance, NewDigestItem, SideRecord},
};
use runtime::faultpoint;
use store::{
    DbResult, Scoped, Store, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::{
    Deliveries, DigestStore,
    outbox::Dispatch,
    poll::{Floors, WorkKind, floor_of},
    throttles::{Ask, Granted},
};

/// The data of one digest that is read for its message, in bytes. Events beyond it are only counted.
const ITEMS_BYTES_MAX: i64 = 2 * 1024 * 1024;

/// The key of a window.
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
    /// The tenant of the window.
    pub tenant: TenantId,
    /// The person.
    pub user_id: String,
}

/// A window that is held for closing.
#[derive(Clone, Debug)]
pub struct HeldDigest {
    /// Its id.
    pub id: Uuid,
    /// The tenant of the window.
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
    /// The latest time at which it closes.
    pub latest_at: DateTime<Utc>,
    /// The data of the events as JSON, in order. If they are too large together, the last ones are left out.
    pub items: Vec<Vec<u8>>,
}

/// The end of a window.
#[derive(Clone, Debug)]
pub enum Ending {
    /// It closes, and its message is accepted.
    Told(Box<Acceptance>),
    /// It closes and says nothing.
    Silent,
    /// It stays open and closes later: at the end that it always had, or at another time.
    Later {
        /// The moment.
        at: DateTime<Utc>,
        /// Whether it is its end.
        is_end: bool,
    },
}

/// Windows held for closing, in a transaction that keeps them from other callers.
pub struct Closing {
    store: Store,
    conn: Scoped,
    /// The windows.
    pub digests: Vec<HeldDigest>,
}

row! {
    struct OpenWindow {
        rule_id: Uuid as SqlUuid,
        items: i32 as Int4,
        closes_at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    struct GatheredWindow {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        rule_id: Uuid as SqlUuid,
        user_id: String as Text,
        key: String as Text,
    }
}

row! {
    struct DueWindow {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        user_id: String as Text,
    }
}

row! {
    struct ClosingWindow {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        rule_id: Uuid as SqlUuid,
        user_id: String as Text,
        items: i32 as Int4,
        is_full: bool as Bool,
        event_type: String as Text,
        opened_at: DateTime<Utc> as Timestamptz,
        closes_at: DateTime<Utc> as Timestamptz,
        latest_at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    struct StoredItem {
        digest_id: Uuid as SqlUuid,
        data: Vec<u8> as Binary,
    }
}

impl DigestStore<'_> {
    /// Opens an empty window; returns whether it is new. Of several concurrent callers, one opens it.
    pub async fn open_window(self, tenant: TenantId, item: &NewDigestItem) -> DbResult<bool> {
        let open = Open {
            id: item.digest,
            tenant: tenant.0,
            rule: item.rule,
            user_id: item.user_id.clone(),
            key: item.key.clone(),
            max_items: item.max_items,
            event_type: item.event_type.clone(),
            opened_at: item.opened_at,
            closes_at: item.closes_at,
            latest_at: item.latest_at,
        };
        Ok(open.query().within(Some(tenant)).run(self.store).await? > 0)
    }

    /// The number of events in a person's open windows, and when these close. `asked` names each window by rule and
    /// key.
    pub async fn open_digests(
        self,
        tenant: TenantId,
        user: &str,
        asked: Vec<(Uuid, String)>,
    ) -> DbResult<HashMap<Uuid, (i32, DateTime<Utc>)>> {
        let (rules, keys): (Vec<Uuid>, Vec<String>) = asked.into_iter().unzip();
        let open = OpenOfPerson { rules, keys, tenant: tenant.0, user_id: user.to_owned() };
        let rows = open.query().within(Some(tenant)).rows(self.store).await?;
        Ok(rows.into_iter().map(|window| (window.rule_id, (window.items, window.closes_at))).collect())
    }

    /// Locks the open windows that will take events, in one order. This comes before any other lock that the closing of
    /// a window also takes.
    pub(crate) async fn lock_windows(
        self,
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
        let lock = LockWindows {
            tenants: groups.iter().map(|group| group.tenant).collect(),
            rules: groups.iter().map(|group| group.rule).collect(),
            users: groups.iter().map(|group| group.user_id.clone()).collect(),
            keys: groups.iter().map(|group| group.key.clone()).collect(),
        };
        lock.query().run_on(conn).await?;
        Ok(())
    }

    /// Puts events into their windows, in the transaction that accepts them. A window with a limit gets one event at a
    /// time, so that it never takes more.
    pub(crate) async fn gather(
        self,
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
        self,
        conn: &mut AsyncPgConnection,
        round: BTreeMap<Group, Vec<&NewDigestItem>>,
    ) -> DbResult<()> {
        let mut gather = Gather::default();
        round.iter().for_each(|(group, items)| gather.push(group, items));
        let rows = gather.query().rows_on(conn).await?;
        let windows: HashMap<Group, Uuid> = rows.into_iter().map(window).collect();
        let (mut digests, mut events, mut tenants, mut data) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (group, items) in round {
            let Some(window) = windows.get(&group) else { continue };
            for item in items {
                digests.push(*window);
                events.push(item.event);
                tenants.push(group.tenant);
                data.push(self.store.sealer().seal(sealed::DIGEST_ITEM.of(TenantId(group.tenant)), &item.data)?);
            }
        }
        InsertItems { digests, events, tenants, data }.query().run_on(conn).await?;
        Ok(())
    }

    /// Up to `limit` windows that are due to close and not held, oldest first.
    pub async fn due(self, limit: i64, floors: &Floors) -> DbResult<Vec<DueDigest>> {
        let rows = Due { from: floor_of(floors, WorkKind::Digests), limit }.query().rows(self.store).await?;
        let due = |DueWindow { id, tenant_id, user_id }| DueDigest { id, tenant: TenantId(tenant_id), user_id };
        Ok(rows.into_iter().map(due).collect())
    }

    /// Windows that are due to close, with their events. Their messages are written before the windows are held.
    pub async fn closing(self, ids: Vec<Uuid>) -> DbResult<Vec<HeldDigest>> {
        let rows = ClosingOnes { ids }.query().rows(self.store).await?;
        let tenants: HashMap<Uuid, i32> = rows.iter().map(|window| (window.id, window.tenant_id)).collect();
        let digests = tenants.keys().copied().collect();
        let stored = Items { digests, bytes_max: ITEMS_BYTES_MAX }.query().rows(self.store).await?;
        let mut items: HashMap<Uuid, Vec<Vec<u8>>> = HashMap::new();
        for StoredItem { digest_id, data } in stored {
            let tenant = TenantId(tenants.get(&digest_id).copied().unwrap_or_default());
            items.entry(digest_id).or_default().extend(self.store.opened(sealed::DIGEST_ITEM.of(tenant), data));
        }
        Ok(rows.into_iter().map(|row| digest(row, &mut items)).collect())
    }

    /// Holds windows for closing: those that no other caller holds and that are still due. Their events are not read
    /// again.
    pub async fn hold(self, ids: Vec<Uuid>) -> DbResult<Closing> {
        let mut conn = self.store.transaction().await?;
        match held(&mut conn, ids).await {
            Ok(digests) => Ok(Closing { store: self.store.clone(), conn, digests }),
            Err(error) => conn.finish(Err(error)).await,
        }
    }

    /// Deletes up to `limit` windows that closed more than `days` ago; returns their number.
    pub async fn prune(self, days: i32, limit: i64) -> DbResult<usize> {
        Forget { days, limit }.query().run(self.store).await
    }
}

async fn held(conn: &mut AsyncPgConnection, ids: Vec<Uuid>) -> DbResult<Vec<HeldDigest>> {
    let rows = Hold { ids }.query().rows_on(conn).await?;
    Ok(rows.into_iter().map(|row| digest(row, &mut HashMap::new())).collect())
}

fn digest(row: ClosingWindow, items: &mut HashMap<Uuid, Vec<Vec<u8>>>) -> HeldDigest {
    HeldDigest {
        id: row.id,
        tenant: TenantId(row.tenant_id),
        rule: row.rule_id,
        user_id: row.user_id,
        count: row.items,
        is_full: row.is_full,
        event_type: row.event_type,
        opened_at: row.opened_at,
        closes_at: row.closes_at,
        latest_at: row.latest_at,
        items: items.remove(&row.id).unwrap_or_default(),
    }
}

fn window(row: GatheredWindow) -> (Group, Uuid) {
    let GatheredWindow { id, tenant_id, rule_id, user_id, key } = row;
    (Group { tenant: tenant_id, rule: rule_id, user_id, key }, id)
}

impl HeldDigest {
    /// Whether a window is unchanged: it has no new event and the same end.
    pub fn is_still(&self, before: &Self) -> bool {
        let shape = |one: &Self| (one.count, one.is_full, one.opened_at, one.closes_at, one.latest_at);
        shape(self) == shape(before)
    }
}

impl Closing {
    /// Takes a permit of a throttle for a window. It is released if the closing fails.
    pub async fn take_throttles(&mut self, ask: Ask) -> DbResult<Granted> {
        self.store.throttles().take_in_transaction(&mut self.conn, ask).await
    }

    /// Closes or delays the windows and accepts their messages, in one commit. Returns the deliveries to publish now.
    pub async fn end(mut self, endings: Vec<(Uuid, Ending)>, relay_after_ms: i32) -> DbResult<Option<Dispatch>> {
        let ended = self.write(endings, relay_after_ms).await;
        faultpoint::pass(faultpoint::BEFORE_CLOSE);
        self.conn.finish(ended).await
    }

    async fn write(&mut self, endings: Vec<(Uuid, Ending)>, relay_after_ms: i32) -> DbResult<Option<Dispatch>> {
        let (mut close, mut put_off, mut batch) = (Close::default(), PutOff::default(), Vec::new());
        for (id, ending) in endings {
            match ending {
                Ending::Told(acceptance) => {
                    close.ids.push(id);
                    close.messages.push(acceptance.messages.as_slice().first().map(|message| message.id.0));
                    batch.push(*acceptance);
                }
                Ending::Silent => {
                    close.ids.push(id);
                    close.messages.push(None);
                }
                Ending::Later { at, is_end } => {
                    put_off.ids.push(id);
                    put_off.moments.push(at);
                    put_off.ends.push(is_end);
                }
            }
        }
        if !put_off.ids.is_empty() {
            put_off.query().run_on(&mut self.conn).await?;
        }
        if !close.ids.is_empty() {
            close.query().run_on(&mut self.conn).await?;
        }
        if batch.is_empty() {
            return Ok(None);
        }
        self.store.acceptance().accept_on(&mut self.conn, &batch, relay_after_ms).await
    }
}

/// A window with less room than this takes no event beyond its limit. Others take all events at once, and may exceed
/// their limit by a few.
const ROOMY: i32 = 1000;

impl Gather {
    /// The first item opens a window; the last item extends an open one.
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
}

sql!(
    /// Windows as columns.
    #[derive(Default)]
    Gather in "digests/gather.sql" {
        id: Vec<Uuid> as Array<SqlUuid>,
        tenant: Vec<i32> as Array<Int4>,
        rule: Vec<Uuid> as Array<SqlUuid>,
        user_id: Vec<String> as Array<Text>,
        key: Vec<String> as Array<Text>,
        items: Vec<i32> as Array<Int4>,
        max_items: Vec<i32> as Array<Int4>,
        event_type: Vec<String> as Array<Text>,
        opened_at: Vec<DateTime<Utc>> as Array<Timestamptz>,
        closes_at: Vec<DateTime<Utc>> as Array<Timestamptz>,
        latest_at: Vec<DateTime<Utc>> as Array<Timestamptz>,
    } -> GatheredWindow
);
sql!(LockWindows in "digests/lock_windows.sql" {
    tenants: Vec<i32> as Array<Int4>, rules: Vec<Uuid> as Array<SqlUuid>, users: Vec<String> as Array<Text>,
    keys: Vec<String> as Array<Text>
} -> i32 as Int4);
sql!(InsertItems in "digests/insert_items.sql" {
    digests: Vec<Uuid> as Array<SqlUuid>, events: Vec<Uuid> as Array<SqlUuid>, tenants: Vec<i32> as Array<Int4>,
    data: Vec<Vec<u8>> as Array<Binary>
});
sql!(Open in "digests/open.sql" {
    id: Uuid as SqlUuid, tenant: i32 as Int4, rule: Uuid as SqlUuid, user_id: String as Text, key: String as Text,
    max_items: i32 as Int4, event_type: String as Text, opened_at: DateTime<Utc> as Timestamptz,
    closes_at: DateTime<Utc> as Timestamptz, latest_at: DateTime<Utc> as Timestamptz
});
sql!(OpenOfPerson in "digests/open_of_person.sql" {
    rules: Vec<Uuid> as Array<SqlUuid>, keys: Vec<String> as Array<Text>, tenant: i32 as Int4, user_id: String as Text
} -> OpenWindow);
sql!(Due in "digests/due.sql" { from: DateTime<Utc> as Timestamptz, limit: i64 as Int8 } -> DueWindow);
sql!(ClosingOnes in "digests/closing.sql" { ids: Vec<Uuid> as Array<SqlUuid> } -> ClosingWindow);
sql!(Hold in "digests/hold.sql" { ids: Vec<Uuid> as Array<SqlUuid> } -> ClosingWindow);
sql!(Items in "digests/items.sql" { digests: Vec<Uuid> as Array<SqlUuid>, bytes_max: i64 as Int8 } -> StoredItem);
sql!(#[derive(Default)] PutOff in "digests/put_off.sql" {
    ids: Vec<Uuid> as Array<SqlUuid>, moments: Vec<DateTime<Utc>> as Array<Timestamptz>, ends: Vec<bool> as Array<Bool>
});
sql!(#[derive(Default)] Close in "digests/close.sql" {
    ids: Vec<Uuid> as Array<SqlUuid>, messages: Vec<Option<Uuid>> as Array<Nullable<SqlUuid>>
});
sql!(Forget in "digests/forget.sql" { days: i32 as Int4, limit: i64 as Int8 });
statements!(Gather, LockWindows, InsertItems, Open, OpenOfPerson, Due, ClosingOnes, Hold, Items, PutOff, Close, Forget);
