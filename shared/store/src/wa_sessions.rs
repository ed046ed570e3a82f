//! WhatsApp sessions: where their WAHA is, its secrets (sealed), and the line in which their deliveries wait.
//!
//! A session and its line have one id and are written together.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::{
    result::{DatabaseErrorKind, Error},
    sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use domain::{
    OnLimit, SignatureRule, TenantId,
    seal::Place,
    session::{self, WORKING},
};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::{DbError, DbResult, Statement, Store, sealed, statement};

/// Messages a minute unless a session is given another pace: WhatsApp bans numbers that write faster.
pub const RATE_DEFAULT: i32 = 20;
/// How long a replaced webhook secret still verifies.
const ROTATION: TimeDelta = TimeDelta::hours(24);

/// How its deliveries are paced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Messages in any 60 seconds.
    pub rate: i32,
    /// Messages in a UTC day, if there is a cap.
    pub daily_cap: Option<i32>,
    /// Least pause between two messages.
    pub gap_ms: i32,
    /// Chance lengthens a pause by up to this.
    pub jitter_ms: i32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { rate: RATE_DEFAULT, daily_cap: None, gap_ms: 0, jitter_ms: 0 }
    }
}

/// What an admin sets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name at WAHA.
    pub name: String,
    /// Where WAHA is.
    pub base_url: String,
    /// What WAHA wants to see.
    pub api_key: Option<SecretString>,
    /// Signs what WAHA tells us.
    pub webhook_secret: Option<SecretString>,
    /// Which signatures vouch for a webhook.
    pub signature: SignatureRule,
    /// Networks or addresses webhooks may come from; empty: any.
    pub allow_ips: Vec<String>,
    /// What happens over the pace.
    pub on_limit: OnLimit,
    /// The pace.
    pub pace: Pace,
}

/// A WhatsApp session of a tenant. Its id is its line's as well.
#[derive(Clone, Debug)]
pub struct Session {
    /// Our id.
    pub id: Uuid,
    /// Whose it is.
    pub tenant: TenantId,
    /// Whether that is the first tenant, which is the operator's own.
    pub is_operators: bool,
    /// What its admin set.
    pub settings: Settings,
    /// The webhook secret before the present one.
    pub previous_secret: Option<SecretString>,
    /// Until when that one verifies.
    pub previous_until: Option<DateTime<Utc>>,
    /// Its state, in WAHA's words.
    pub state: String,
    /// Since when.
    pub state_at: DateTime<Utc>,
    /// Whether its admin started it: what WAHA forgot is put back.
    pub is_wanted: bool,
    /// When a webhook of it came last.
    pub last_event_at: Option<DateTime<Utc>>,
    /// When it was last compared with WAHA.
    pub checked_at: Option<DateTime<Utc>>,
    /// Messages from people up to here are known.
    pub fetched_until: Option<DateTime<Utc>>,
    /// Where its webhooks go.
    pub hook_url: Option<String>,
    /// Since when its WAHA does not answer.
    pub unreachable_since: Option<DateTime<Utc>>,
    /// Messages from people may have been missed.
    pub needs_fetch: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When its settings were last changed.
    pub updated_at: DateTime<Utc>,
}

impl Session {
    /// Whether it sends.
    pub fn is_working(&self) -> bool {
        self.state == WORKING
    }

    /// The webhook secrets that verify at `now`, the present one first.
    pub fn secrets(&self, now: DateTime<Utc>) -> impl Iterator<Item = &SecretString> {
        let previous = self.previous_secret.as_ref().filter(|_| self.previous_until.is_some_and(|until| now < until));
        self.settings.webhook_secret.iter().chain(previous)
    }
}

/// Why a session was not written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The tenant has one of that name.
    #[error("there is a session of that name")]
    Taken,
    /// The database did not take it.
    #[error(transparent)]
    Database(DbError),
}

impl From<DbError> for SaveError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Refused(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => Self::Taken,
            other => Self::Database(other),
        }
    }
}

/// What came of removing a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone, and its line.
    Yes,
    /// So many deliveries wait in its line.
    Busy(i32),
    /// The tenant has no such session.
    Unknown,
}

/// Its columns, in the order of `COLUMNS`.
type Row = (
    (Uuid, i32, String, String, Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>, Option<DateTime<Utc>>),
    (String, Vec<String>, String, String, DateTime<Utc>, bool),
    (Option<DateTime<Utc>>, Option<DateTime<Utc>>, Option<DateTime<Utc>>, DateTime<Utc>, DateTime<Utc>),
    (Option<String>, Option<DateTime<Utc>>, bool, bool),
    (Option<i32>, Option<i32>, Option<i32>, Option<i32>),
);
type SqlRow = (
    (SqlUuid, Int4, Text, Text, Nullable<Binary>, Nullable<Binary>, Nullable<Binary>, Nullable<Timestamptz>),
    (Text, Array<Text>, Text, Text, Timestamptz, Bool),
    (Nullable<Timestamptz>, Nullable<Timestamptz>, Nullable<Timestamptz>, Timestamptz, Timestamptz),
    (Nullable<Text>, Nullable<Timestamptz>, Bool, Bool),
    (Nullable<Int4>, Nullable<Int4>, Nullable<Int4>, Nullable<Int4>),
);

/// A fixed text that reads sessions with their lines.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT s.id, s.tenant_id, s.name, s.base_url, s.api_key, s.webhook_secret, s.previous_secret, s.previous_until, ",
            "s.signature, s.allow_ips, s.on_limit, s.state, s.state_at, s.is_wanted, ",
            "s.last_event_at, s.checked_at, s.fetched_until, s.created_at, s.updated_at, ",
            "s.hook_url, s.unreachable_since, s.needs_fetch, s.is_operators, ",
            "l.rate, l.daily_cap, l.gap_ms, l.jitter_ms ",
            "FROM wa_sessions s LEFT JOIN lines l ON l.id = s.id ",
            $rest
        )
    };
}

impl Store {
    /// Makes a session with its line; it is shut until WAHA says that it works.
    pub async fn create_session(&self, tenant: TenantId, settings: &Settings) -> Result<Uuid, SaveError> {
        let id = Uuid::now_v7();
        let query = statement::<SqlUuid>(CREATE).bind::<SqlUuid, _>(id).bind::<Int4, _>(tenant.0);
        let query =
            self.bind_settings(query, tenant, settings)?.bind::<Int4, _>(tenant.0).bind::<Text, _>(session::WORKING);
        bind_pace(query, &settings.pace).row::<Uuid>(self).await.map_err(SaveError::from)
    }

    /// Writes the settings of a session anew. A webhook secret that is replaced holds 24 hours more.
    pub async fn update_session(&self, before: &Session, settings: &Settings) -> Result<(), SaveError> {
        let plain = |secret: &Option<SecretString>| secret.as_ref().map(|secret| secret.expose_secret().to_owned());
        let is_replaced = plain(&before.settings.webhook_secret) != plain(&settings.webhook_secret);
        let (previous, until) = match is_replaced {
            true => (&before.settings.webhook_secret, Some(domain::clock::now() + ROTATION)),
            false => (&before.previous_secret, before.previous_until),
        };
        let query = self.bind_settings(statement::<SqlUuid>(UPDATE), before.tenant, settings)?;
        let query = query
            .bind::<Nullable<Binary>, _>(self.seal_secret(sealed::SESSION_SECRET.of(before.tenant), previous)?)
            .bind::<Nullable<Timestamptz>, _>(until)
            .bind::<SqlUuid, _>(before.id);
        bind_pace(query, &settings.pace).bind::<SqlUuid, _>(before.id).row::<Uuid>(self).await?;
        Ok(())
    }

    /// Removes a session with its line, unless deliveries wait in it.
    pub async fn remove_session(&self, tenant: TenantId, id: Uuid) -> DbResult<Removed> {
        let query =
            statement::<(Bool, Int4)>(REMOVE).bind::<SqlUuid, _>(id).bind::<Int4, _>(tenant.0).within(Some(tenant));
        let rows: Vec<(bool, i32)> = query.rows(self).await?;
        Ok(match rows.as_slice() {
            [] => Removed::Unknown,
            [(true, _), ..] => Removed::Yes,
            [(false, waiting), ..] => Removed::Busy(*waiting),
        })
    }

    /// The session with this id.
    pub async fn session(&self, id: Uuid) -> DbResult<Option<Session>> {
        self.sessions_of(statement(BY_ID).bind::<SqlUuid, _>(id)).await.map(|found| found.into_iter().next())
    }

    /// The sessions with these ids.
    pub async fn sessions_by_id(&self, ids: Vec<Uuid>) -> DbResult<Vec<Session>> {
        self.sessions_of(statement(BY_IDS).bind::<Array<SqlUuid>, _>(ids)).await
    }

    /// The tenant's session of this id, else of this name.
    pub async fn session_of(&self, tenant: TenantId, id_or_name: &str) -> DbResult<Option<Session>> {
        let query = statement(BY_REFERENCE)
            .bind::<Int4, _>(tenant.0)
            .bind::<Nullable<SqlUuid>, _>(id_or_name.parse::<Uuid>().ok())
            .bind::<Text, _>(id_or_name.to_owned());
        let found = self.sessions_of(query.within(Some(tenant))).await?;
        // A name may look like another session's id: the id goes first.
        let is_named = |session: &Session| session.settings.name == id_or_name;
        let (by_id, by_name): (Vec<_>, Vec<_>) = found.into_iter().partition(|session| !is_named(session));
        Ok(by_id.into_iter().chain(by_name).next())
    }

    /// Sessions of this name, of whatever tenant, up to a hundred, those that told something last first: the signature decides
    /// which one is meant.
    pub async fn sessions_named(&self, name: &str) -> DbResult<Vec<Session>> {
        self.sessions_of(statement(BY_NAME).bind::<Text, _>(name.to_owned())).await
    }

    /// Up to `limit` sessions of a tenant, newest first; those older than `before`, if given.
    pub async fn list_sessions(&self, tenant: TenantId, before: Option<Uuid>, limit: i64) -> DbResult<Vec<Session>> {
        let query = statement(LIST)
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(before.unwrap_or(Uuid::max()))
            .bind::<Int8, _>(limit);
        self.sessions_of(query.within(Some(tenant))).await
    }

    /// Notes the state of a session. `told_at`: when WAHA says it came about, in a webhook; webhooks may overtake each other,
    /// and the latest holds. `None`: WAHA was asked, and this is its answer. The session's line opens and shuts with it; what
    /// waits in a line that opens is looked at at once.
    pub async fn set_state(&self, id: Uuid, state: &str, told_at: Option<DateTime<Utc>>) -> DbResult<()> {
        self.write_state(id, state, told_at, None).await
    }

    /// Notes what WAHA answered to a comparison that began with this session, unless its state has changed meanwhile: who
    /// noted that knew something newer than an answer that was long on its way.
    pub async fn note_answer(&self, session: &Session, state: &str) -> DbResult<()> {
        self.write_state(session.id, state, None, Some(session.state_at)).await
    }

    async fn write_state(
        &self,
        id: Uuid,
        state: &str,
        told_at: Option<DateTime<Utc>>,
        known_since: Option<DateTime<Utc>>,
    ) -> DbResult<()> {
        let query = statement::<()>(SET_STATE)
            .bind::<Text, _>(state.to_owned())
            .bind::<Text, _>(state.to_owned())
            .bind::<Nullable<Timestamptz>, _>(told_at)
            .bind::<SqlUuid, _>(id)
            .bind::<Nullable<Timestamptz>, _>(told_at)
            .bind::<Nullable<Timestamptz>, _>(known_since)
            .bind::<Text, _>(WORKING);
        query.run(self).await.map(drop)
    }

    /// Notes whether an admin wants the session to run.
    pub async fn want_session(&self, id: Uuid, is_wanted: bool) -> DbResult<()> {
        statement::<()>(WANT).bind::<Bool, _>(is_wanted).bind::<SqlUuid, _>(id).run(self).await.map(drop)
    }

    /// Marks the operator's own sessions. A process of the version before makes them without the mark; to mark twice changes nothing.
    pub async fn mark_operators_sessions(&self) -> DbResult<usize> {
        statement::<()>(MARK_OPERATORS).run(self).await
    }

    /// Whoever takes webhooks begins to, at one URL for each session below `base`. Those before may have missed messages from
    /// people: they are fetched for every started session. Says how many sessions there are, started or not.
    pub async fn begin_hooks(&self, base: &str) -> DbResult<i64> {
        statement::<()>(MOVE_HOOKS).bind::<Text, _>(base.to_owned()).bind::<Text, _>(base.to_owned()).run(self).await?;
        statement::<Int8>(MARK_MISSED).row(self).await
    }

    /// Notes where the webhooks of a session go.
    pub async fn set_hook(&self, id: Uuid, hook_url: &str) -> DbResult<()> {
        let query = statement::<()>("UPDATE wa_sessions SET hook_url = ? WHERE id = ?");
        query.bind::<Text, _>(hook_url.to_owned()).bind::<SqlUuid, _>(id).run(self).await.map(drop)
    }

    /// Takes up to `limit` sessions that are to be compared with WAHA now; nobody else gets them before the next time.
    pub async fn take_checks(&self, limit: i64) -> DbResult<Vec<Session>> {
        let ids: Vec<Uuid> = statement::<SqlUuid>(TAKE_CHECKS).bind::<Int8, _>(limit).rows(self).await?;
        if ids.is_empty() { Ok(Vec::new()) } else { self.sessions_by_id(ids).await }
    }

    /// Notes what a comparison with WAHA came to: whether it answers, whether messages from people may have been missed, and
    /// up to when they were fetched.
    pub async fn note_check(
        &self,
        id: Uuid,
        is_reachable: bool,
        needs_fetch: bool,
        fetched_until: Option<DateTime<Utc>>,
    ) -> DbResult<()> {
        let query = statement::<()>(NOTE_CHECK)
            .bind::<Bool, _>(is_reachable)
            .bind::<Bool, _>(needs_fetch)
            .bind::<Nullable<Timestamptz>, _>(fetched_until)
            .bind::<Bool, _>(needs_fetch)
            .bind::<SqlUuid, _>(id);
        query.run(self).await.map(drop)
    }

    /// How many sessions are in each state.
    pub async fn count_sessions(&self) -> DbResult<Vec<(String, i64)>> {
        statement::<(Text, Int8)>("SELECT state, count(*) FROM wa_sessions GROUP BY state").rows(self).await
    }

    /// Started sessions whose WAHA does not answer.
    pub async fn unreachable_sessions(&self) -> DbResult<i64> {
        statement::<Int8>(UNREACHABLE).row(self).await
    }

    async fn sessions_of(&self, query: Statement<SqlRow>) -> DbResult<Vec<Session>> {
        let rows: Vec<Row> = query.rows(self).await?;
        // One that cannot be read holds up none beside it.
        let read = |row: Row| {
            let session = self.open_session(row);
            session.inspect_err(|error| tracing::error!(%error, "a session is left out")).ok()
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    fn open_session(&self, row: Row) -> DbResult<Session> {
        let (
            (id, tenant, name, base_url, api_key, webhook_secret, previous_secret, previous_until),
            (signature, allow_ips, on_limit, state, state_at, is_wanted),
            (last_event_at, checked_at, fetched_until, created_at, updated_at),
            (hook_url, unreachable_since, needs_fetch, is_operators),
            (rate, daily_cap, gap_ms, jitter_ms),
        ) = row;
        let tenant = TenantId(tenant);
        let settings = Settings {
            name,
            base_url,
            api_key: self.open_secret(sealed::SESSION_KEY.of(tenant), api_key)?,
            webhook_secret: self.open_secret(sealed::SESSION_SECRET.of(tenant), webhook_secret)?,
            // The words are ours alone; one of a later version means the strictest we know.
            signature: signature.parse().unwrap_or(SignatureRule::Waha),
            allow_ips,
            on_limit: on_limit.parse().unwrap_or_default(),
            pace: Pace {
                rate: rate.unwrap_or(RATE_DEFAULT),
                daily_cap,
                gap_ms: gap_ms.unwrap_or_default(),
                jitter_ms: jitter_ms.unwrap_or_default(),
            },
        };
        let previous_secret = self.open_secret(sealed::SESSION_SECRET.of(tenant), previous_secret)?;
        Ok(Session {
            id,
            tenant,
            is_operators,
            settings,
            previous_secret,
            previous_until,
            state,
            state_at,
            is_wanted,
            last_event_at,
            checked_at,
            fetched_until,
            hook_url,
            unreachable_since,
            needs_fetch,
            created_at,
            updated_at,
        })
    }

    fn bind_settings<T>(&self, query: Statement<T>, tenant: TenantId, settings: &Settings) -> DbResult<Statement<T>> {
        Ok(query
            .bind::<Text, _>(settings.name.clone())
            .bind::<Text, _>(settings.base_url.clone())
            .bind::<Nullable<Binary>, _>(self.seal_secret(sealed::SESSION_KEY.of(tenant), &settings.api_key)?)
            .bind::<Nullable<Binary>, _>(self.seal_secret(sealed::SESSION_SECRET.of(tenant), &settings.webhook_secret)?)
            .bind::<Text, _>(settings.signature.as_str())
            .bind::<Array<Text>, _>(settings.allow_ips.clone())
            .bind::<Text, _>(settings.on_limit.as_str()))
    }

    fn seal_secret(&self, place: Place, secret: &Option<SecretString>) -> DbResult<Option<Vec<u8>>> {
        let sealed = secret.as_ref().map(|secret| self.sealer().seal(place, secret.expose_secret().as_bytes()));
        Ok(sealed.transpose()?)
    }

    fn open_secret(&self, place: Place, stored: Option<Vec<u8>>) -> DbResult<Option<SecretString>> {
        let Some(stored) = stored else { return Ok(None) };
        let plain =
            String::from_utf8(self.sealer().open(place, stored)?).map_err(|_| domain::seal::SealError::Damaged)?;
        Ok(Some(plain.into()))
    }
}

fn bind_pace<T>(query: Statement<T>, pace: &Pace) -> Statement<T> {
    query
        .bind::<Int4, _>(pace.rate)
        .bind::<Nullable<Int4>, _>(pace.daily_cap)
        .bind::<Int4, _>(pace.gap_ms)
        .bind::<Int4, _>(pace.jitter_ms)
}

const MARK_OPERATORS: &str = "
UPDATE wa_sessions SET is_operators = true WHERE tenant_id = (SELECT min(id) FROM tenants) AND NOT is_operators";

const CREATE: &str = "
WITH s AS (
    INSERT INTO wa_sessions (id, tenant_id, name, base_url, api_key, webhook_secret, signature, allow_ips, on_limit, is_operators)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ? = (SELECT min(id) FROM tenants))
    RETURNING id, tenant_id, state
), l AS (
    INSERT INTO lines (id, tenant_id, kind, route, is_open, rate, daily_cap, gap_ms, jitter_ms)
    SELECT id, tenant_id, 'session', 'whatsapp', state = ?, ?, ?, ?, ? FROM s
)
SELECT id FROM s";

/// A session that is said to be elsewhere must be looked at anew.
const UPDATE: &str = "
WITH s AS (
    UPDATE wa_sessions SET name = ?, base_url = ?, api_key = ?, webhook_secret = ?, signature = ?, allow_ips = ?, on_limit = ?,
        previous_secret = ?, previous_until = ?, checked_at = NULL, updated_at = now()
    WHERE id = ?
    RETURNING id
), l AS (
    UPDATE lines SET rate = ?, daily_cap = ?, gap_ms = ?, jitter_ms = ?, free_at = least(free_at, now()) WHERE id = ?
)
SELECT id FROM s";

const REMOVE: &str = "
WITH l AS (
    SELECT l.id, l.waiting FROM lines l JOIN wa_sessions s ON s.id = l.id WHERE l.id = ? AND s.tenant_id = ? FOR UPDATE OF l
), idle AS (
    SELECT id FROM l WHERE waiting = 0 AND NOT EXISTS (
        SELECT 1 FROM deliveries d WHERE d.line = l.id AND d.state IN ('scheduled', 'queued', 'sending', 'retrying'))
), line AS (
    DELETE FROM lines WHERE id IN (SELECT id FROM idle)
), gone AS (
    DELETE FROM wa_sessions WHERE id IN (SELECT id FROM idle) RETURNING id
)
SELECT EXISTS (SELECT 1 FROM gone), greatest(waiting, 1) FROM l";

const BY_ID: &str = select!("WHERE s.id = ?");
const BY_IDS: &str = select!("WHERE s.id = ANY (?::uuid[])");
const BY_REFERENCE: &str = select!("WHERE s.tenant_id = ? AND (s.id = ? OR s.name = ?)");
const BY_NAME: &str = select!("WHERE s.name = ? ORDER BY s.last_event_at DESC NULLS LAST, s.id DESC LIMIT 100");
const LIST: &str = select!("WHERE s.tenant_id = ? AND s.id < ? ORDER BY s.id DESC LIMIT ?");

const SET_STATE: &str = "
WITH s AS (
    UPDATE wa_sessions SET state_at = CASE WHEN state = ? THEN state_at ELSE now() END, state = ?, told_at = coalesce(?, told_at)
    WHERE id = ? AND (told_at > ?) IS NOT TRUE AND (state_at = ?) IS NOT FALSE
    RETURNING id, state = ? AS is_working
)
UPDATE lines l SET is_open = s.is_working,
    blocked_until = CASE WHEN s.is_working AND NOT l.is_open THEN '-infinity' ELSE l.blocked_until END,
    free_at = CASE WHEN s.is_working AND NOT l.is_open THEN least(l.free_at, now()) ELSE l.free_at END
FROM s WHERE l.id = s.id";

const MARK_MISSED: &str = "
WITH missed AS (
    UPDATE wa_sessions SET needs_fetch = true, checked_at = NULL WHERE is_wanted AND fetched_until < now() - interval '5 seconds'
)
SELECT count(*) FROM wa_sessions";

const MOVE_HOOKS: &str = "
UPDATE wa_sessions SET hook_url = ? || '/' || id, checked_at = NULL WHERE hook_url IS DISTINCT FROM ? || '/' || id";

/// A session that does not work, or has something to catch up on, is looked at more often. After a gap, and after every outage of the database is one, webhooks
/// may have been lost.
const TAKE_CHECKS: &str = "
WITH picked AS MATERIALIZED (
    SELECT id FROM wa_sessions
    WHERE (is_wanted OR state <> 'STOPPED')
      AND (checked_at IS NULL OR checked_at < now() - CASE WHEN state = 'WORKING' AND NOT needs_fetch AND unreachable_since IS NULL THEN interval '30 seconds' ELSE interval '10 seconds' END)
    ORDER BY checked_at NULLS FIRST LIMIT ? FOR UPDATE SKIP LOCKED
)
UPDATE wa_sessions s SET needs_fetch = s.needs_fetch OR s.checked_at < now() - interval '2 minutes' IS TRUE, checked_at = now()
FROM picked WHERE s.id = picked.id
RETURNING s.id";

/// While webhooks arrive, what they tell is known; WAHA repeats one for some minutes. Whoever asked for another check while
/// this one was under way (`checked_at` is NULL again) is not overruled by what it came to.
const NOTE_CHECK: &str = "
UPDATE wa_sessions SET unreachable_since = CASE WHEN ? THEN NULL ELSE coalesce(unreachable_since, now()) END,
    needs_fetch = ? OR (needs_fetch AND checked_at IS NULL),
    fetched_until = greatest(fetched_until, ?::timestamptz, CASE WHEN NOT ? AND NOT needs_fetch THEN last_event_at - interval '5 minutes' END)
WHERE id = ?";

const UNREACHABLE: &str = "SELECT count(*) FROM wa_sessions WHERE is_wanted AND unreachable_since IS NOT NULL";

const WANT: &str = "
UPDATE wa_sessions SET is_wanted = ?, checked_at = NULL, fetched_until = coalesce(fetched_until, now()), updated_at = now() WHERE id = ?";
