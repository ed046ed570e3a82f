//! Throttles: how often a rule has recently sent to a person, counted for all replicas.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Bool, Int4, Int8, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use domain::{TenantId, Throttle};
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::ThrottleStore;

/// A person, and the rules that want to send to them.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The tenant of the rules.
    pub tenant: TenantId,
    /// The person.
    pub user_id: String,
    /// The rules with their throttles; each once.
    pub rules: Vec<(Uuid, Throttle)>,
    /// The event or digest that asks; never the same one twice.
    pub taker: Uuid,
}

/// The rules that may send, each with the time recorded for it.
pub type Granted = HashMap<Uuid, DateTime<Utc>>;

row! {
    struct Taken {
        rule_id: Uuid as SqlUuid,
        is_granted: bool as Bool,
        at: DateTime<Utc> as Timestamptz,
    }
}

row! {
    struct UsedThrottle {
        rule_id: Uuid as SqlUuid,
        used: i64 as Int8,
    }
}

impl Ask {
    /// Takes a permit for each rule that has one; the rows stay locked until the end of the transaction.
    fn take(mut self) -> Take {
        // Callers that ask for the same rules must lock them in one order.
        self.rules.sort_by_key(|(rule, _)| *rule);
        let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        Take {
            tenant: self.tenant.0,
            user_id: self.user_id,
            taker: self.taker,
            rules: self.rules.iter().map(|(rule, _)| *rule).collect(),
            most: self.rules.iter().map(|(_, throttle)| number(throttle.limit)).collect(),
            seconds: self.rules.iter().map(|(_, throttle)| number(throttle.window_seconds)).collect(),
        }
    }
}

fn granted(rows: Vec<Taken>) -> Granted {
    rows.into_iter().filter(|taken| taken.is_granted).map(|taken| (taken.rule_id, taken.at)).collect()
}

impl ThrottleStore<'_> {
    /// Takes a permit of each throttle that has one left.
    pub async fn take(self, ask: Ask) -> DbResult<Granted> {
        if ask.rules.is_empty() {
            return Ok(Granted::new());
        }
        let tenant = ask.tenant;
        Ok(granted(ask.take().query().within(Some(tenant)).rows(self.store).await?))
    }

    /// The same within a transaction.
    pub(crate) async fn take_in_transaction(self, conn: &mut AsyncPgConnection, ask: Ask) -> DbResult<Granted> {
        Ok(granted(ask.take().query().rows_on(conn).await?))
    }

    /// Gives permits back, because no message was sent.
    pub async fn give_back(self, tenant: TenantId, user: &str, granted: Granted) -> DbResult<()> {
        if granted.is_empty() {
            return Ok(());
        }
        let (rules, moments): (Vec<Uuid>, Vec<DateTime<Utc>>) = granted.into_iter().unzip();
        let give_back = GiveBack { rules, moments, user_id: user.to_owned() };
        give_back.query().within(Some(tenant)).run(self.store).await.map(drop)
    }

    /// How often these rules sent to a person within their windows.
    pub async fn used(
        self,
        tenant: TenantId,
        user: &str,
        rules: Vec<(Uuid, Throttle)>,
    ) -> DbResult<HashMap<Uuid, i64>> {
        let seconds = |throttle: &Throttle| i32::try_from(throttle.window_seconds).unwrap_or(i32::MAX);
        let used = Used {
            rules: rules.iter().map(|(rule, _)| *rule).collect(),
            seconds: rules.iter().map(|(_, throttle)| seconds(throttle)).collect(),
            user_id: user.to_owned(),
        };
        let rows = used.query().within(Some(tenant)).rows(self.store).await?;
        Ok(rows.into_iter().map(|UsedThrottle { rule_id, used }| (rule_id, used)).collect())
    }

    /// Deletes up to `limit` throttles whose window is over; returns their number.
    pub async fn prune(self, limit: i64) -> DbResult<usize> {
        Forget { limit }.query().run(self.store).await
    }
}

sql!(Take in "throttles/take.sql" {
    tenant: i32 as Int4, user_id: String as Text, taker: Uuid as SqlUuid, rules: Vec<Uuid> as Array<SqlUuid>,
    most: Vec<i32> as Array<Int4>, seconds: Vec<i32> as Array<Int4>
} -> Taken);
sql!(GiveBack in "throttles/give_back.sql" {
    rules: Vec<Uuid> as Array<SqlUuid>, moments: Vec<DateTime<Utc>> as Array<Timestamptz>, user_id: String as Text
});
sql!(Used in "throttles/used.sql" {
    rules: Vec<Uuid> as Array<SqlUuid>, seconds: Vec<i32> as Array<Int4>, user_id: String as Text
} -> UsedThrottle);
sql!(Forget in "throttles/forget.sql" { limit: i64 as Int8 });
statements!(Take, GiveBack, Used, Forget);
