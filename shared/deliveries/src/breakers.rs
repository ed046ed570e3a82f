//! Circuit breakers. All workers share their state, and the lines behind an open breaker stop.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{BreakerState, ProviderName, TenantId};
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::BreakerStore;

/// A breaker as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// The key of the calls that it guards.
    pub key: String,
    /// Its state.
    pub state: BreakerState,
    /// Failures in a row.
    pub failures: i32,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Open: when a probe may be made. Half open: when the probe counts as lost.
    pub retry_at: DateTime<Utc>,
    /// The end of the pause that the provider asked for, while it lasts.
    pub paused_until: Option<DateTime<Utc>>,
}

row! {
    struct StoredBreaker {
        key: String as Text,
        state: String as Text,
        failures: i32 as Int4,
        since: DateTime<Utc> as Timestamptz,
        retry_at: DateTime<Utc> as Timestamptz,
        paused_until: Option<DateTime<Utc>> as Nullable<Timestamptz>,
    }
}

row! {
    struct Counted {
        scope: String as Text,
        state: String as Text,
        number: i64 as Int8,
    }
}

impl Breaker {
    /// How long it holds calls back at `now`. While a probe is under way, no call waits longer than `patience`: the
    /// probe may take as long as a call, or end soon.
    pub fn holds_back(&self, now: DateTime<Utc>, patience: std::time::Duration) -> Option<std::time::Duration> {
        let left = (self.retry_at - now).to_std().ok();
        let open = match self.state {
            BreakerState::Closed => None,
            BreakerState::Open => left,
            BreakerState::HalfOpen => left.map(|left| left.min(patience)),
        };
        open.max(self.paused_until.and_then(|until| (until - now).to_std().ok()))
    }
}

/// The key of one session's breaker.
pub fn session_key(session: Uuid) -> String {
    format!("waha/session/{session}")
}

/// The key of the breaker of a WAHA host. Each tenant has one of its own, because one tenant's wrong session shows
/// nothing about the host to the others.
pub fn host_key(tenant: TenantId, base_url: &str) -> String {
    let origin = url::Url::parse(base_url).map(|url| url.origin().ascii_serialization());
    format!("{HOST}{tenant}/{}", origin.unwrap_or_default())
}

const HOST: &str = "waha/host/";

impl BreakerStore<'_> {
    /// The breakers with these keys that have a stored state.
    pub async fn list(self, keys: Vec<String>) -> DbResult<Vec<Breaker>> {
        let rows = ByKeys { keys }.query().rows(self.store).await?;
        Ok(rows.into_iter().filter_map(breaker).collect())
    }

    /// Every breaker that differs from a new one.
    pub async fn troubled(self) -> DbResult<Vec<Breaker>> {
        let rows = Troubled {}.query().rows(self.store).await?;
        Ok(rows.into_iter().filter_map(breaker).collect())
    }

    /// The breakers of these providers, for every credential and target.
    pub async fn of_scope(self, providers: Vec<ProviderName>) -> DbResult<Vec<(ProviderName, Breaker)>> {
        let names = providers.iter().map(|name| name.as_str()).collect();
        let rows = OfProviders { providers: names }.query().rows(self.store).await?;
        let named = |breaker: Breaker| Some((breaker.key.split('/').next()?.parse().ok()?, breaker));
        Ok(rows.into_iter().filter_map(breaker).filter_map(named).collect())
    }

    /// The breakers whose keys have this prefix.
    pub async fn before(self, prefix: &str) -> DbResult<Vec<Breaker>> {
        let rows = Before { prefix: prefix.to_owned() }.query().rows(self.store).await?;
        Ok(rows.into_iter().filter_map(breaker).collect())
    }

    /// The number of breakers in each state that differ from a new one, by `session` or `host` for WAHA, else by
    /// provider.
    pub async fn count(self) -> DbResult<Vec<(String, BreakerState, i64)>> {
        let rows = Count {}.query().rows(self.store).await?;
        let known = |Counted { scope, state, number }| Some((scope, state.parse().ok()?, number));
        Ok(rows.into_iter().filter_map(known).collect())
    }

    /// Deletes up to `limit` breakers that no longer matter; returns their number. These have been closed for an hour,
    /// or had no call for a week.
    pub async fn prune(self, limit: i64) -> DbResult<usize> {
        Forget { limit }.query().run(self.store).await
    }

    /// Counts a failure. At the `failures_max`th failure in a row, or a failed probe, the breaker opens for `open_ms`,
    /// and the lines behind it wait that long.
    pub async fn record_failure(self, key: &str, failures_max: i32, open_ms: i32) -> DbResult<Option<Breaker>> {
        let rows = Failed { key: key.to_owned(), failures_max, open_ms, host: HOST }.query().rows(self.store).await?;
        Ok(rows.into_iter().find_map(breaker))
    }

    /// Pauses calls for `wait_ms`, as the provider asked.
    pub async fn record_pause(self, key: &str, wait_ms: i32) -> DbResult<Option<Breaker>> {
        let rows = Paused { key: key.to_owned(), wait_ms }.query().rows(self.store).await?;
        Ok(rows.into_iter().find_map(breaker))
    }

    /// Records a successful call: the breaker closes, and the lines behind it continue.
    pub async fn record_success(self, key: &str) -> DbResult<()> {
        Passed { key: key.to_owned(), host: HOST }.query().run(self.store).await.map(drop)
    }

    /// Asks for permission to make the one probe of a breaker that is due. At most one caller gets it within
    /// `probe_ms`.
    pub async fn probe(self, key: &str, probe_ms: i32) -> DbResult<bool> {
        let allowed = Probe { probe_ms, key: key.to_owned() }.query().first(self.store).await?;
        Ok(allowed.is_some())
    }

    /// Stops the line of a session until it works: WAHA answered to a call that began at `began` that the session does
    /// not work. A newer report about the session takes precedence.
    pub async fn shut_session(self, session: Uuid, state: &str, began: DateTime<Utc>) -> DbResult<()> {
        ShutSession { state: state.to_owned(), session, began }.query().run(self.store).await.map(drop)
    }

    /// Stops a line for a while, as its provider asked.
    pub async fn block_line(self, line: Uuid, wait_ms: i32) -> DbResult<()> {
        BlockLine { line, wait_ms }.query().run(self.store).await.map(drop)
    }
}

fn breaker(stored: StoredBreaker) -> Option<Breaker> {
    let StoredBreaker { key, state, failures, since, retry_at, paused_until } = stored;
    Some(Breaker { key, state: state.parse().ok()?, failures, since, retry_at, paused_until })
}

sql!(ByKeys in "breakers/by_keys.sql" { keys: Vec<String> as Array<Text> } -> StoredBreaker);
sql!(Troubled in "breakers/troubled.sql" {} -> StoredBreaker);
sql!(OfProviders in "breakers/of_providers.sql" { providers: Vec<&'static str> as Array<Text> } -> StoredBreaker);
sql!(Before in "breakers/before.sql" { prefix: String as Text } -> StoredBreaker);
sql!(Count in "breakers/count.sql" {} -> Counted);
sql!(Forget in "breakers/forget.sql" { limit: i64 as Int8 });
sql!(Failed in "breakers/failed.sql" {
    key: String as Text, failures_max: i32 as Int4, open_ms: i32 as Int4, host: &'static str as Text
} -> StoredBreaker);
sql!(Paused in "breakers/paused.sql" { key: String as Text, wait_ms: i32 as Int4 } -> StoredBreaker);
sql!(Passed in "breakers/passed.sql" { key: String as Text, host: &'static str as Text });
sql!(Probe in "breakers/probe.sql" { probe_ms: i32 as Int4, key: String as Text } -> bool as Bool);
sql!(ShutSession in "breakers/shut_session.sql" {
    state: String as Text, session: Uuid as SqlUuid, began: DateTime<Utc> as Timestamptz
});
sql!(BlockLine in "breakers/block_line.sql" { line: Uuid as SqlUuid, wait_ms: i32 as Int4 });
statements!(
    ByKeys,
    Troubled,
    OfProviders,
    Before,
    Count,
    Forget,
    Failed,
    Paused,
    Passed,
    Probe,
    ShutSession,
    BlockLine
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_breaker_for_each_tenant_and_origin() {
        let key = |tenant, url| host_key(TenantId(tenant), url);
        assert_eq!(key(1, "https://waha.example/a"), key(1, "https://waha.example:443/b"));
        assert_ne!(key(1, "https://waha.example"), key(2, "https://waha.example"));
        assert_ne!(key(1, "https://waha.example"), key(1, "https://waha.example:8443"));
    }
}
