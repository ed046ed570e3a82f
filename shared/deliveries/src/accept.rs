//! Acceptance: stores many submissions in one statement and one commit: idempotency key + message + deliveries +
//! outbox row.

pub(crate) mod columns;

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Int8, Untyped};
use diesel_async::AsyncPgConnection;
use domain::{
    FailoverRound, TenantId, Tries,
    acceptance::{Acceptance, Crowding, Hash, Leases, NewDelivery, NewMessage, SideRecord, at_once},
};
use runtime::wake;
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
    statement::Query,
};
use uuid::Uuid;

use crate::{
    AcceptanceStore, Deliveries,
    claim::Claim,
    lines::Room,
    outbox::{Dispatch, DispatchItem},
};
use columns::{Columns, StoredRow};

/// The result of one commit of acceptances.
#[derive(Debug)]
pub struct Stored {
    /// One result per acceptance, in order.
    pub results: Vec<Accepted>,
    /// The outbox row to publish now.
    pub dispatch: Option<Dispatch>,
    /// The claims made in the same commit. Whether they may be sent is not checked yet ([`PolicyStore::load`]).
    pub claims: Vec<Claim>,
}

/// The result of one acceptance.
#[derive(Clone, Debug, PartialEq)]
pub enum Accepted {
    /// Stored.
    New,
    /// The same request was accepted before; this is its stored answer.
    Replayed(Vec<u8>),
    /// The key was used for another request.
    KeyTaken,
    /// The key was used before, but its stored answer cannot be read at the moment.
    Unanswered,
    /// Its line has no free slot; nothing was stored.
    NoRoom {
        /// Seconds until the line's next slot.
        seconds: f64,
    },
}

row! {
    struct AnswerRow {
        tenant_id: i32 as Int4,
        key_hash: Vec<u8> as Binary,
        request_hash: Vec<u8> as Binary,
        response: Vec<u8> as Binary,
    }
}

impl AcceptanceStore<'_> {
    /// Stores all of `batch` in one commit.
    ///
    /// `crowding`: the tenants over their fair share; `relay_after_ms`: when the relay may publish the outbox row, in
    /// case we die before we do; `leases`: the deliveries claimed in the same commit, all of them [`at_once`] and
    /// with a content of their own.
    pub async fn accept(
        self,
        batch: &[Acceptance],
        relay_after_ms: i32,
        crowding: &Crowding,
        leases: &Leases,
    ) -> DbResult<Stored> {
        let columns = Columns::of(batch, crowding, leases, self.store.sealer())?;
        let parks = columns.parks();
        let query = columns.query(relay_after_ms);
        let stands_alone = |acceptance: &Acceptance| acceptance.beside.is_empty() && acceptance.room_in.is_none();
        let StoredRow { outbox_id, won, accepted_at } = if batch.iter().all(stands_alone) {
            query.row(self.store).await?
        } else {
            match self.accept_with(query, batch).await? {
                Ok(row) => row,
                Err(seconds) => {
                    let results = vec![Accepted::NoRoom { seconds }; batch.len()];
                    return Ok(Stored { results, dispatch: None, claims: Vec::new() });
                }
            }
        };
        if parks {
            wake::scheduler();
        }
        let is_new = |acceptance: &Acceptance| is_new(acceptance, &won);
        let results =
            if batch.iter().all(is_new) { vec![Accepted::New; batch.len()] } else { self.answers(batch, is_new).await };
        let (mut items, mut claims) = (Vec::new(), Vec::new());
        for acceptance in batch.iter().filter(|acceptance| is_new(acceptance)) {
            for (message, delivery) in at_once(acceptance, crowding) {
                match leases.contains_key(&delivery.id) {
                    true => claims.push(claim(acceptance, message, delivery, accepted_at)),
                    false => items.push(item(delivery)),
                }
            }
        }
        Ok(Stored { results, dispatch: outbox_id.map(|outbox_id| Dispatch { outbox_id, items }), claims })
    }

    /// As [`AcceptanceStore::accept`], in a transaction that also writes the side records. If a line has no free slot, it is
    /// rolled back and returns the seconds to wait.
    ///
    /// Locks are taken in the order of [`DigestStore::hold`] and the steps after it: windows first, then the lines
    /// in which deliveries are parked.
    async fn accept_with(
        self,
        query: Query<StoredRow, Untyped>,
        batch: &[Acceptance],
    ) -> DbResult<Result<StoredRow, f64>> {
        let mut conn = self.store.transaction().await?;
        let stored = async {
            self.store.digests().lock_windows(&mut conn, &side_records_of(batch.iter())).await?;
            let row = query.row_on(&mut conn).await?;
            let new = batch.iter().filter(|acceptance| is_new(acceptance, &row.won));
            self.store.side_records().write_side_records(&mut conn, &side_records_of(new)).await?;
            // The count includes what this transaction has just parked, and the line stays locked until the end.
            for line in batch.iter().filter(|acceptance| is_new(acceptance, &row.won)).filter_map(|one| one.room_in) {
                let rooms = Room { line }.query().rows_on(&mut conn).await?;
                if let Some(full) = rooms.into_iter().find(|found| found.room < 0) {
                    return Ok(Err(full.seconds));
                }
            }
            Ok(Ok(row))
        };
        match stored.await {
            Ok(Err(seconds)) => {
                conn.undo().await?;
                Ok(Err(seconds))
            }
            stored => conn.finish(stored).await,
        }
    }

    /// Stores all of `batch`, none of which has a key, within the caller's transaction. Returns what to publish after
    /// its commit.
    pub(crate) async fn accept_on(
        self,
        conn: &mut AsyncPgConnection,
        batch: &[Acceptance],
        relay_after_ms: i32,
    ) -> DbResult<Option<Dispatch>> {
        let crowding = Crowding::default();
        let query = Columns::of(batch, &crowding, &Leases::new(), self.store.sealer())?.query(relay_after_ms);
        let StoredRow { outbox_id, .. } = query.row_on(conn).await?;
        let items = batch.iter().flat_map(|acceptance| at_once(acceptance, &crowding)).map(|(_, d)| item(d)).collect();
        Ok(outbox_id.map(|outbox_id| Dispatch { outbox_id, items }))
    }

    /// Reads the stored answers for the acceptances whose key was taken. New acceptances are already committed, so
    /// this cannot fail.
    async fn answers(self, batch: &[Acceptance], is_new: impl Fn(&Acceptance) -> bool) -> Vec<Accepted> {
        let keyed = || batch.iter().filter(|a| !is_new(a)).filter_map(|a| a.key.as_ref().map(|key| (a.tenant, key)));
        let tenants = keyed().map(|(tenant, _)| tenant.0).collect();
        let key_hashes = keyed().map(|(_, key)| key.key_hash.to_vec()).collect();
        let stored = Answers { tenants, key_hashes }.query().rows(self.store).await;
        if let Err(error) = &stored {
            tracing::warn!(%error, "the answers of repeated requests cannot be read");
        }
        let answer = |acceptance: &Acceptance| {
            let Some(key) = acceptance.key.as_ref().filter(|_| !is_new(acceptance)) else { return Accepted::New };
            let Ok(stored) = &stored else { return Accepted::Unanswered };
            let same = stored
                .iter()
                .find(|row| row.tenant_id == acceptance.tenant.0 && row.key_hash == key.key_hash)
                .filter(|row| row.request_hash == key.request_hash);
            let Some(same) = same else { return Accepted::KeyTaken };
            let opened = self.store.sealer().open(sealed::RESPONSE.of(acceptance.tenant), same.response.clone());
            opened.map_or_else(
                |error| {
                    tracing::error!(%error, "the answer of a repeated request cannot be read");
                    Accepted::Unanswered
                },
                Accepted::Replayed,
            )
        };
        batch.iter().map(answer).collect()
    }

    /// The stored answer under a key, if any: for requests that could not be accepted now.
    pub async fn answered(self, tenant: TenantId, key_hash: &Hash, request_hash: &Hash) -> DbResult<Option<Vec<u8>>> {
        let query = Answers { tenants: vec![tenant.0], key_hashes: vec![key_hash.to_vec()] }.query();
        let stored = query.within(Some(tenant)).rows(self.store).await?;
        let same = stored.into_iter().find(|row| row.request_hash == request_hash);
        Ok(same.map(|row| self.store.sealer().open(sealed::RESPONSE.of(tenant), row.response)).transpose()?)
    }

    /// Deletes idempotency keys older than `hours`, at most `limit`; returns their number.
    pub async fn forget_keys(self, hours: i32, limit: i64) -> DbResult<usize> {
        ForgetKeys { hours, limit }.query().run(self.store).await
    }
}

/// The side records of these acceptances.
fn side_records_of<'a>(acceptances: impl Iterator<Item = &'a Acceptance>) -> Vec<(TenantId, &'a SideRecord)> {
    acceptances.flat_map(|acceptance| acceptance.beside.iter().map(|beside| (acceptance.tenant, beside))).collect()
}

fn is_new(acceptance: &Acceptance, won: &[Uuid]) -> bool {
    acceptance.key.is_none() || won.contains(&acceptance.subject())
}

const fn item(delivery: &NewDelivery) -> DispatchItem {
    DispatchItem { delivery: delivery.id, run: 0, route: delivery.route }
}

/// The first claim of a delivery, made together with its acceptance.
fn claim(acceptance: &Acceptance, message: &NewMessage, delivery: &NewDelivery, accepted_at: DateTime<Utc>) -> Claim {
    Claim {
        delivery: delivery.id,
        run: 1,
        message: message.id,
        tenant: acceptance.tenant,
        recipient: delivery.recipient.clone(),
        line: delivery.line,
        tries: Tries { attempts: 1, ..Tries::default() },
        round: FailoverRound::NEW,
        waiting_since: None,
        suppressed: Vec::new(),
        user_id: message.user_id.clone(),
        policy: None,
        content: message.content.clone().unwrap_or_default(),
        accepted_at,
        expires_at: message.expires_at,
        request_id: acceptance.request_id.clone(),
        traceparent: acceptance.traceparent.clone(),
    }
}

sql!(Answers in "accept/answers.sql" {
    tenants: Vec<i32> as Array<Int4>, key_hashes: Vec<Vec<u8>> as Array<Binary>
} -> AnswerRow);
sql!(ForgetKeys in "accept/forget_keys.sql" { hours: i32 as Int4, limit: i64 as Int8 });
statements!(Answers, ForgetKeys);
