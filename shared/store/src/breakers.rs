//! Circuit breakers: their state is shared by every worker, and the lines behind an open one stand still.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Bool, Int4, Int8, Nullable, Text, Timestamptz};
use domain::{BreakerState, ProviderName, TenantId};

use super::{DbResult, Store, statement, webhook_events::enqueue_webhook_events};

/// A breaker as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// What it stands before.
    pub key: String,
    /// Its state.
    pub state: BreakerState,
    /// Failures in a row.
    pub failures: i32,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Open: when a probe may be made. Half open: when the probe counts as lost.
    pub retry_at: DateTime<Utc>,
    /// Until when the other side asked to be left alone, if it did and that is not over.
    pub paused_until: Option<DateTime<Utc>>,
}

type Row = (String, String, i32, DateTime<Utc>, DateTime<Utc>, Option<DateTime<Utc>>);
type SqlRow = (Text, Text, Int4, Timestamptz, Timestamptz, Nullable<Timestamptz>);

impl Breaker {
    /// How long it keeps calls back at `now`. A probe may take as long as a call, or be over soon: no call waits for it longer
    /// than `patience`.
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
pub fn session_key(session: uuid::Uuid) -> String {
    format!("waha/session/{session}")
}

/// The key of a WAHA host's breaker: one for each tenant, because a wrong session of one says nothing about the host to others.
pub fn host_key(tenant: TenantId, base_url: &str) -> String {
    let origin = url::Url::parse(base_url).map(|url| url.origin().ascii_serialization());
    format!("{HOST}{tenant}/{}", origin.unwrap_or_default())
}

const HOST: &str = "waha/host/";

impl Store {
    /// The breakers with these keys that ever were in trouble.
    pub async fn breakers(&self, keys: Vec<String>) -> DbResult<Vec<Breaker>> {
        let rows: Vec<Row> = statement::<SqlRow>(SELECT).bind::<Array<Text>, _>(keys).rows(self).await?;
        Ok(rows.into_iter().filter_map(breaker).collect())
    }

    /// Every breaker that is not as if it had never been there.
    pub async fn troubled_breakers(&self) -> DbResult<Vec<Breaker>> {
        let rows: Vec<Row> = statement::<SqlRow>(TROUBLED).rows(self).await?;
        Ok(rows.into_iter().filter_map(breaker).collect())
    }

    /// The breakers of these providers, whatever credential or target they stand before.
    pub async fn breakers_of(&self, providers: Vec<ProviderName>) -> DbResult<Vec<(ProviderName, Breaker)>> {
        let names: Vec<&str> = providers.iter().map(|name| name.as_str()).collect();
        let rows: Vec<Row> = statement::<SqlRow>(OF_PROVIDERS).bind::<Array<Text>, _>(names).rows(self).await?;
        let named = |breaker: Breaker| Some((breaker.key.split('/').next()?.parse().ok()?, breaker));
        Ok(rows.into_iter().filter_map(breaker).filter_map(named).collect())
    }

    /// The breakers whose keys begin like this.
    pub async fn breakers_before(&self, prefix: &str) -> DbResult<Vec<Breaker>> {
        let rows: Vec<Row> = statement::<SqlRow>(BEFORE).bind::<Text, _>(prefix.to_owned()).rows(self).await?;
        Ok(rows.into_iter().filter_map(breaker).collect())
    }

    /// How many breakers in trouble are in each state, by what they stand before: `session` or `host` of WAHA, else the provider.
    pub async fn count_breakers(&self) -> DbResult<Vec<(String, BreakerState, i64)>> {
        let rows: Vec<(String, String, i64)> = statement::<(Text, Text, Int8)>(COUNT).rows(self).await?;
        let known = |(scope, state, n): (String, String, i64)| Some((scope, state.parse().ok()?, n));
        Ok(rows.into_iter().filter_map(known).collect())
    }

    /// Forgets up to `limit` breakers without meaning; returns how many. These are the ones that have been closed for an hour, and
    /// others without a call for a week.
    pub async fn forget_breakers(&self, limit: i64) -> DbResult<usize> {
        statement::<()>(FORGET).bind::<Int8, _>(limit).run(self).await
    }

    /// Counts a failure. The breaker opens for `open_ms` at the `failures_max`th in a row, or where the probe failed; the lines
    /// behind it then wait that long.
    pub async fn breaker_failed(&self, key: &str, failures_max: i32, open_ms: i32) -> DbResult<Option<Breaker>> {
        let query = statement::<SqlRow>(FAILED)
            .bind::<Text, _>(key.to_owned())
            .bind::<Int4, _>(failures_max)
            .bind::<Int4, _>(open_ms)
            .bind::<Text, _>(HOST);
        let rows: Vec<Row> = query.rows(self).await?;
        Ok(rows.into_iter().find_map(breaker))
    }

    /// The other side asked to be left alone for `wait_ms`.
    pub async fn breaker_paused(&self, key: &str, wait_ms: i32) -> DbResult<Option<Breaker>> {
        let query = statement::<SqlRow>(PAUSED).bind::<Text, _>(key.to_owned()).bind::<Int4, _>(wait_ms);
        let rows: Vec<Row> = query.rows(self).await?;
        Ok(rows.into_iter().find_map(breaker))
    }

    /// A call got through: the breaker closes, and the lines behind it move again.
    pub async fn breaker_passed(&self, key: &str) -> DbResult<()> {
        let query = statement::<()>(PASSED).bind::<Text, _>(key.to_owned()).bind::<Text, _>(HOST);
        query.run(self).await.map(drop)
    }

    /// Asks to make the one probe of a breaker whose time has come; at most one caller may, until `probe_ms` are over.
    pub async fn breaker_probe(&self, key: &str, probe_ms: i32) -> DbResult<bool> {
        let query = statement::<Bool>(PROBE).bind::<Int4, _>(probe_ms).bind::<Text, _>(key.to_owned());
        Ok(!query.rows::<bool>(self).await?.is_empty())
    }

    /// WAHA said, in answer to a call that began at `began`, that a session does not work: its line is shut until it does.
    /// What was heard of the session since then is newer and stands.
    pub async fn shut_session(&self, session: uuid::Uuid, state: &str, began: DateTime<Utc>) -> DbResult<()> {
        let query = statement::<()>(SHUT)
            .bind::<Text, _>(state.to_owned())
            .bind::<Text, _>(state.to_owned())
            .bind::<diesel::sql_types::Uuid, _>(session)
            .bind::<Timestamptz, _>(began);
        query.run(self).await.map(drop)
    }

    /// Keeps a line still for a while, as its provider asked.
    pub async fn block_line(&self, line: uuid::Uuid, wait_ms: i32) -> DbResult<()> {
        let query = statement::<()>(BLOCK).bind::<diesel::sql_types::Uuid, _>(line).bind::<Int4, _>(wait_ms);
        query.run(self).await.map(drop)
    }
}

fn breaker((key, state, failures, since, retry_at, paused_until): Row) -> Option<Breaker> {
    Some(Breaker { key, state: state.parse().ok()?, failures, since, retry_at, paused_until })
}

/// A fixed text that reads breakers.
macro_rules! select {
    ($where:literal) => {
        concat!(
            "SELECT key, state, failures, since, retry_at, CASE WHEN paused_until > now() THEN paused_until END ",
            "FROM breakers WHERE ",
            $where
        )
    };
}

const SELECT: &str = select!("key = ANY (?::text[])");
/// The first condition is that of an index: of what is not in trouble nothing is read.
macro_rules! troubled {
    () => {
        "(state <> 'closed' OR failures > 0 OR paused_until > '-infinity') AND (state <> 'closed' OR failures > 0 OR paused_until > now())"
    };
}

const TROUBLED: &str = concat!(select!(""), troubled!());
const BEFORE: &str = select!("starts_with(key, ?)");
const OF_PROVIDERS: &str = select!("provider = ANY (?::text[])");

const COUNT: &str = concat!(
    "
SELECT CASE provider WHEN 'waha' THEN split_part(key, '/', 2) ELSE provider END AS scope, state, count(*)
FROM breakers WHERE ",
    troubled!(),
    " GROUP BY 1, 2"
);

const FORGET: &str = "
DELETE FROM breakers WHERE key = ANY (ARRAY(
    SELECT key FROM breakers
    WHERE paused_until <= now() AND CASE WHEN state = 'closed' AND failures = 0
        THEN since < now() - interval '1 hour' AND retry_at < now() - interval '1 hour' ELSE retry_at < now() - interval '7 days' END
    LIMIT ? FOR UPDATE SKIP LOCKED))";

const PAUSED: &str = "
INSERT INTO breakers AS b (key, provider, state, failures, retry_at, paused_until)
SELECT key, split_part(key, '/', 1), 'closed', 0, now(), now() + wait * interval '1 millisecond' FROM (SELECT ?::text, ?::int4) asked(key, wait)
ON CONFLICT (key) DO UPDATE SET paused_until = greatest(b.paused_until, excluded.paused_until)
RETURNING key, state, failures, since, retry_at, paused_until";

/// The lines behind a breaker: the session's own, or those of every session of its tenant at the host.
macro_rules! lines_behind {
    ($key:literal, $host:literal) => {
        concat!(
            "(SELECT s.id FROM wa_sessions s WHERE s.id::text = split_part(",
            $key,
            ", '/', 3) OR (starts_with(",
            $key,
            ", ",
            $host,
            ") AND starts_with(",
            $host,
            " || s.tenant_id || '/' || s.base_url, ",
            $key,
            ")))"
        )
    };
}

const FAILED: &str = concat!(
    "
WITH asked AS (SELECT ?::text AS key, ?::int4 AS failures_max, now() + ?::int4 * interval '1 millisecond' AS until, ?::text AS host
), before AS (SELECT b.state FROM breakers b JOIN asked a ON b.key = a.key
), counted AS (
    INSERT INTO breakers AS b (key, provider, state, failures, retry_at)
    SELECT key, split_part(key, '/', 1), CASE WHEN failures_max <= 1 THEN 'open' ELSE 'closed' END, 1, until FROM asked
    ON CONFLICT (key) DO UPDATE SET
        failures = b.failures + 1,
        state = CASE WHEN b.state = 'half_open' OR b.failures + 1 >= (SELECT failures_max FROM asked) THEN 'open' ELSE b.state END,
        since = CASE WHEN b.state = 'half_open' OR (b.state = 'closed' AND b.failures + 1 >= (SELECT failures_max FROM asked))
                     THEN now() ELSE b.since END,
        retry_at = CASE WHEN b.state = 'open' THEN b.retry_at ELSE excluded.retry_at END
    RETURNING key, state, failures, since, retry_at, CASE WHEN paused_until > now() THEN paused_until END AS paused_until
), stopped AS (
    UPDATE lines l SET blocked_until = greatest(l.blocked_until, c.retry_at), free_at = greatest(l.free_at, c.retry_at)
    FROM counted c, asked a
    WHERE c.state = 'open' AND coalesce((SELECT state FROM before), 'closed') <> 'open' AND l.id IN ",
    lines_behind!("c.key", "a.host"),
    "
), heard AS (",
    enqueue_webhook_events!(plain
        "
    SELECT (SELECT min(id) FROM tenants), NULL::text, NULL::uuid, 'breaker.opened', clock_timestamp(), NULL::uuid, NULL::int4,
           jsonb_build_object('key', key, 'provider', split_part(key, '/', 1), 'state', state, 'failures', failures, 'retry_at', retry_at)
    FROM counted WHERE state = 'open' AND coalesce((SELECT state FROM before), 'closed') = 'closed'"
    ),
    "
)
SELECT key, state, failures, since, retry_at, paused_until FROM counted"
);

const PASSED: &str = concat!(
    "
WITH asked AS (SELECT ?::text AS key, ?::text AS host
), before AS (SELECT b.state FROM breakers b JOIN asked a ON b.key = a.key
), closed AS (
    UPDATE breakers b SET state = 'closed', failures = 0, since = CASE WHEN b.state = 'closed' THEN b.since ELSE now() END
    FROM asked a WHERE b.key = a.key AND (b.state <> 'closed' OR b.failures > 0)
    RETURNING b.key
), heard AS (",
    enqueue_webhook_events!(plain
        "
    SELECT (SELECT min(id) FROM tenants), NULL::text, NULL::uuid, 'breaker.closed', clock_timestamp(), NULL::uuid, NULL::int4,
           jsonb_build_object('key', key, 'provider', split_part(key, '/', 1), 'state', 'closed')
    FROM closed WHERE (SELECT state FROM before) <> 'closed'"
    ),
    "
)
UPDATE lines l SET blocked_until = '-infinity', free_at = least(l.free_at, now())
FROM closed c, asked a
WHERE (SELECT state FROM before) <> 'closed' AND l.blocked_until > now() AND l.id IN ",
    lines_behind!("c.key", "a.host")
);

const PROBE: &str = "
UPDATE breakers SET state = 'half_open', since = CASE WHEN state = 'half_open' THEN since ELSE now() END,
    retry_at = now() + ? * interval '1 millisecond'
WHERE key = ? AND state IN ('open', 'half_open') AND retry_at <= now()
RETURNING true";

const SHUT: &str = "
WITH s AS (
    UPDATE wa_sessions SET state_at = CASE WHEN state = ? THEN state_at ELSE now() END, state = ?
    WHERE id = ? AND state_at <= ?
    RETURNING id
)
UPDATE lines SET is_open = false WHERE id IN (SELECT id FROM s)";

const BLOCK: &str = "
UPDATE lines l SET blocked_until = greatest(l.blocked_until, w.until), free_at = greatest(l.free_at, w.until)
FROM (SELECT ?::uuid AS id, now() + ? * interval '1 millisecond' AS until) w WHERE l.id = w.id";

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
