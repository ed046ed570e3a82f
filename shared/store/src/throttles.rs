//! Throttles: how often a rule told a person something lately, counted where all replicas see it.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Bool, Int4, Int8, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use domain::{TenantId, Throttle};
use uuid::Uuid;

use super::{DbResult, Statement, Store, statement};

/// A person, and the rules that want to send to them.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Whose rules.
    pub tenant: TenantId,
    /// The person.
    pub user_id: String,
    /// The rules with their throttles; each once.
    pub rules: Vec<(Uuid, Throttle)>,
    /// What asks: an event or a digest; never the same one twice.
    pub taker: Uuid,
}

/// The rules that may tell, each with the moment that was taken for it.
pub type Granted = HashMap<Uuid, DateTime<Utc>>;

type SqlRow = (SqlUuid, Bool, Timestamptz);

impl Ask {
    /// Takes a place for each rule that has one; the rows stay locked until the end of the transaction.
    fn take(mut self) -> Statement<SqlRow> {
        // Those who ask for the same rules must lock them in one order.
        self.rules.sort_by_key(|(rule, _)| *rule);
        let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let query = statement(TAKE)
            .bind::<Int4, _>(self.tenant.0)
            .bind::<Text, _>(self.user_id)
            .bind::<SqlUuid, _>(self.taker)
            .bind::<Array<SqlUuid>, _>(self.rules.iter().map(|(rule, _)| *rule).collect::<Vec<_>>())
            .bind::<Array<Int4>, _>(self.rules.iter().map(|(_, throttle)| number(throttle.limit)).collect::<Vec<_>>())
            .bind::<Array<Int4>, _>(
                self.rules.iter().map(|(_, throttle)| number(throttle.window_seconds)).collect::<Vec<_>>(),
            );
        query.bind::<SqlUuid, _>(self.taker)
    }
}

fn granted(rows: Vec<(Uuid, bool, DateTime<Utc>)>) -> Granted {
    rows.into_iter().filter(|(_, is_granted, _)| *is_granted).map(|(rule, _, at)| (rule, at)).collect()
}

impl Store {
    /// Takes a place of each throttle that has one left.
    pub async fn take_throttles(&self, ask: Ask) -> DbResult<Granted> {
        if ask.rules.is_empty() {
            return Ok(Granted::new());
        }
        let tenant = ask.tenant;
        Ok(granted(ask.take().within(Some(tenant)).rows(self).await?))
    }

    /// The same within a transaction.
    pub(super) async fn take_throttles_on(&self, conn: &mut AsyncPgConnection, ask: Ask) -> DbResult<Granted> {
        Ok(granted(RunQueryDsl::load(ask.take(), conn).await?))
    }

    /// Gives places back: no message was sent after all.
    pub async fn give_back_throttles(&self, tenant: TenantId, user: &str, granted: Granted) -> DbResult<()> {
        if granted.is_empty() {
            return Ok(());
        }
        let (rules, moments): (Vec<Uuid>, Vec<DateTime<Utc>>) = granted.into_iter().unzip();
        let query = statement::<()>(GIVE_BACK)
            .bind::<Array<SqlUuid>, _>(rules)
            .bind::<Array<Timestamptz>, _>(moments)
            .bind::<Text, _>(user.to_owned());
        query.within(Some(tenant)).run(self).await.map(drop)
    }

    /// How often these rules told a person something within their windows.
    pub async fn throttles_used(
        &self,
        tenant: TenantId,
        user: &str,
        rules: Vec<(Uuid, Throttle)>,
    ) -> DbResult<HashMap<Uuid, i64>> {
        let seconds = |throttle: &Throttle| i32::try_from(throttle.window_seconds).unwrap_or(i32::MAX);
        let query = statement::<(SqlUuid, Int8)>(USED)
            .bind::<Array<SqlUuid>, _>(rules.iter().map(|(rule, _)| *rule).collect::<Vec<_>>())
            .bind::<Array<Int4>, _>(rules.iter().map(|(_, throttle)| seconds(throttle)).collect::<Vec<_>>())
            .bind::<Text, _>(user.to_owned());
        let rows: Vec<(Uuid, i64)> = query.within(Some(tenant)).rows(self).await?;
        Ok(rows.into_iter().collect())
    }

    /// Forgets up to `limit` throttles that say nothing any more; says how many.
    pub async fn forget_throttles(&self, limit: i64) -> DbResult<usize> {
        statement::<()>(FORGET).bind::<Int8, _>(limit).run(self).await
    }
}

/// The row is locked before its moments are counted, so of two who ask at once the second counts what the first took.
const TAKE: &str = "
INSERT INTO throttles AS t (rule_id, tenant_id, user_id, taken, most, seconds, taker, until)
SELECT a.rule_id, x.tenant_id, x.user_id, ARRAY[clock_timestamp()], a.most, a.seconds, x.taker, clock_timestamp() + a.seconds * interval '1 second'
FROM (SELECT ?::int4 AS tenant_id, ?::text AS user_id, ?::uuid AS taker) x
CROSS JOIN unnest(?::uuid[], ?::int4[], ?::int4[]) AS a(rule_id, most, seconds)
ON CONFLICT (rule_id, user_id) DO UPDATE SET most = excluded.most, seconds = excluded.seconds, (taken, taker, until) = (
    SELECT CASE WHEN cardinality(l.taken) < excluded.most THEN l.taken || clock_timestamp() ELSE t.taken END,
           CASE WHEN cardinality(l.taken) < excluded.most THEN excluded.taker ELSE t.taker END,
           CASE WHEN cardinality(l.taken) < excluded.most THEN clock_timestamp() + excluded.seconds * interval '1 second' ELSE t.until END
    FROM (SELECT ARRAY(SELECT m FROM unnest(t.taken) AS m WHERE m > clock_timestamp() - excluded.seconds * interval '1 second' ORDER BY m) AS taken) l)
RETURNING t.rule_id, t.taker = ?, coalesce(t.taken[cardinality(t.taken)], t.until)";

const GIVE_BACK: &str = "
UPDATE throttles t SET taken = array_remove(t.taken, g.at)
FROM unnest(?::uuid[], ?::timestamptz[]) AS g(rule_id, at) WHERE t.rule_id = g.rule_id AND t.user_id = ?";

const USED: &str = "
SELECT t.rule_id, (SELECT count(*) FROM unnest(t.taken) AS m WHERE m > now() - a.seconds * interval '1 second')
FROM unnest(?::uuid[], ?::int4[]) AS a(rule_id, seconds) JOIN throttles t ON t.rule_id = a.rule_id AND t.user_id = ?";

const FORGET: &str = "
DELETE FROM throttles WHERE (rule_id, user_id) IN (
    SELECT rule_id, user_id FROM throttles WHERE until < now() ORDER BY until LIMIT ? FOR UPDATE SKIP LOCKED)";
