//! The ledger: what was accepted, compared with what arrived and with the log. It is what the invariants mean in numbers.

use std::{collections::HashMap, time::Duration};

use anyhow::Result;
use domain::{
    EventKind, State,
    event::{TRIED_BIT, WRONG_BIT},
};

use crate::{HttpSink, Stack, eventually};

/// The result of the comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Messages that were answered with 202 or a broker confirm.
    pub accepted: usize,
    /// Of those: not known to the database. Must be 0 (L).
    pub unknown: usize,
    /// Of those: without an end when the time was up. Must be 0 (L).
    pub unended: usize,
    /// Of those: delivered by the log, but the receiver never saw them. Must be 0 (L).
    pub lost: usize,
    /// Requests the receiver saw beyond the first of each delivery.
    pub repeats: usize,
    /// Of those: not explained by a recorded ambiguity, retry or replay. Must be 0 (D).
    pub unexplained: usize,
    /// Requests the receiver saw without an attempt row for them. Must be 0 (A).
    pub unlogged: usize,
    /// Ambiguities the log holds.
    pub ambiguous: usize,
    /// Whether the counters of each day equal the rows. Must be true (A).
    pub counters_agree: bool,
}

impl Ledger {
    /// Fails unless every invariant holds.
    pub fn hold(&self) -> Result<()> {
        let sound = self.unknown == 0
            && self.unended == 0
            && self.lost == 0
            && self.unexplained == 0
            && self.unlogged == 0
            && self.counters_agree;
        anyhow::ensure!(sound, "an invariant is broken: {self:#?}");
        Ok(())
    }
}

/// Waits up to `limit` for every delivery to end, then compares. `accepted` are message ids; all of them webhooks to `sink`.
pub async fn ledger(stack: &Stack, sink: &HttpSink, accepted: &[String], limit: Duration) -> Result<Ledger> {
    // A message that was accepted without an answer (its 202 was lost) must end as well.
    let open = State::ALL.iter().filter(|state| !state.is_end()).map(|state| format!("'{state}'"));
    let open = open.collect::<Vec<_>>().join(", ");
    let open = &format!("SELECT count(*) FROM deliveries WHERE state IN ({open})");
    let ended =
        eventually("every delivery ends", limit, || async { (stack.count(open).await.ok()? == 0).then_some(()) }).await;
    let sql = stack.sql().await?;
    let mut ledger = Ledger { accepted: accepted.len(), ..Ledger::default() };
    if ended.is_err() {
        ledger.unended = usize::try_from(stack.count(open).await?)?;
    }
    let rows = sql.query("SELECT message_id::text, id::text, state FROM deliveries", &[]).await?;
    let by_message: HashMap<String, (String, String)> =
        rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for request in sink.requests() {
        *seen.entry(request.header("webhook-id").unwrap_or("none").to_owned()).or_default() += 1;
    }
    for id in accepted {
        match by_message.get(id) {
            None => ledger.unknown += 1,
            Some((delivery, state)) if state == "delivered" && !seen.contains_key(delivery) => ledger.lost += 1,
            Some(_) => {}
        }
    }
    let attempts = "SELECT delivery_id::text, count(*) FROM delivery_events WHERE provider IS NOT NULL GROUP BY 1";
    let attempts: HashMap<String, i64> =
        sql.query(attempts, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect();
    let again = "SELECT delivery_id::text, count(DISTINCT run) FROM delivery_events WHERE kind IN ('retrying', 'ambiguous', 'replayed') GROUP BY 1";
    let again: HashMap<String, i64> = sql.query(again, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect();
    for (delivery, times) in &seen {
        let count = |map: &HashMap<String, i64>| map.get(delivery).and_then(|n| usize::try_from(*n).ok()).unwrap_or(0);
        ledger.repeats += times - 1;
        ledger.unexplained += (times - 1).saturating_sub(count(&again));
        ledger.unlogged += times.saturating_sub(count(&attempts));
    }
    ledger.ambiguous =
        usize::try_from(stack.count("SELECT count(*) FROM delivery_events WHERE kind = 'ambiguous'").await?)?;
    ledger.counters_agree = wrong_daily_counts(stack).await? == 0;
    Ok(ledger)
}

/// How many of the daily counts are not what the log and the deliveries say.
pub async fn wrong_daily_counts(stack: &Stack) -> Result<i64> {
    let query = WRONG_DAILY_COUNTS.replace("{counted}", &counted());
    stack.count(&query).await
}

/// Each kind of event with each word that a delivery counts under once it had one, as rows of SQL.
fn counted() -> String {
    let sums = [(TRIED_BIT, "tried"), (WRONG_BIT, "wrong")];
    let words = EventKind::counted().into_iter().map(|kind| (kind.info().bit, kind.as_str())).chain(sums);
    let words: Vec<(i16, &str)> = words.collect();
    let rows = EventKind::ALL.iter().flat_map(|kind| {
        let reached = words.iter().filter(|(bit, _)| kind.reached() & bit != 0);
        reached.map(move |(_, word)| format!("('{kind}', '{word}')"))
    });
    rows.collect::<Vec<_>>().join(", ")
}

/// The provider is not compared: the log does not name it for events that were reported afterwards.
const WRONG_DAILY_COUNTS: &str = "
WITH reached AS (
    SELECT DISTINCT e.delivery_id, k.word AS kind
    FROM delivery_events e JOIN (VALUES {counted}) AS k (kind, word) ON k.kind = e.kind
), wanted AS (
    SELECT (to_timestamp(('x' || left(replace(d.id::text, '-', ''), 12))::bit(48)::bigint / 1000.0) AT TIME ZONE 'UTC')::date AS day,
           d.tenant_id, d.channel, coalesce(d.category, '') AS category, coalesce(d.template, '') AS template, r.kind, count(*) AS n
    FROM reached r JOIN deliveries d ON d.id = r.delivery_id GROUP BY 1, 2, 3, 4, 5, 6
), counted AS (
    SELECT day, tenant_id, channel, category, template, kind, sum(n) AS n FROM daily_counts GROUP BY 1, 2, 3, 4, 5, 6
)
SELECT count(*) FROM wanted FULL JOIN counted USING (day, tenant_id, channel, category, template, kind) WHERE wanted.n IS DISTINCT FROM counted.n";
