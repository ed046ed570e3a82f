//! WhatsApp sessions: the address of their WAHA, their secrets (sealed), and the line in which their deliveries wait.
//!
//! A session and its line have one id and are written together.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::{
    result::{DatabaseErrorKind, Error},
    sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use domain::{OnLimit, SignatureRule, TenantId, seal::Place, session::WORKING};
use secrecy::{ExposeSecret, SecretString};
use store::{
    DbError, DbResult, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::SessionStore;

/// Messages a minute for a session without a pace of its own: WhatsApp bans numbers that write faster.
pub const RATE_DEFAULT: i32 = 20;
/// How long a replaced webhook secret still verifies.
const ROTATION: TimeDelta = TimeDelta::hours(24);

/// The pace of its deliveries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Messages in any 60 seconds.
    pub rate: i32,
    /// Messages in a UTC day, if there is a limit.
    pub daily_cap: Option<i32>,
    /// Least pause between two messages.
    pub gap_ms: i32,
    /// A random addition to each pause, up to this.
    pub jitter_ms: i32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { rate: RATE_DEFAULT, daily_cap: None, gap_ms: 0, jitter_ms: 0 }
    }
}

/// The settings of an admin.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name at WAHA.
    pub name: String,
    /// Where WAHA is.
    pub base_url: String,
    /// The API key for WAHA.
    pub api_key: Option<SecretString>,
    /// Signs what WAHA tells us.
    pub webhook_secret: Option<SecretString>,
    /// The signatures that are accepted for a webhook.
    pub signature: SignatureRule,
    /// Networks or addresses webhooks may come from; empty: any.
    pub allow_ips: Vec<String>,
    /// The treatment of a message over the pace.
    pub on_limit: OnLimit,
    /// The pace.
    pub pace: Pace,
}

/// A WhatsApp session of a tenant. Its line has the same id.
#[derive(Clone, Debug)]
pub struct Session {
    /// Our id.
    pub id: Uuid,
    /// The tenant of the session.
    pub tenant: TenantId,
    /// Whether that is the first tenant, which belongs to the operator.
    pub is_operators: bool,
    /// The admin's settings.
    pub settings: Settings,
    /// The webhook secret before the present one.
    pub previous_secret: Option<SecretString>,
    /// Until when that one verifies.
    pub previous_until: Option<DateTime<Utc>>,
    /// Its state, in WAHA's words.
    pub state: String,
    /// Since when.
    pub state_at: DateTime<Utc>,
    /// Whether its admin started it. Then a configuration that WAHA has lost is restored.
    pub is_wanted: bool,
    /// When a webhook of it came last.
    pub last_event_at: Option<DateTime<Utc>>,
    /// The time of the last comparison with WAHA.
    pub checked_at: Option<DateTime<Utc>>,
    /// Messages from people up to this time are known.
    pub fetched_until: Option<DateTime<Utc>>,
    /// Where its webhooks go.
    pub hook_url: Option<String>,
    /// Since when its WAHA has not answered.
    pub unreachable_since: Option<DateTime<Utc>>,
    /// Whether messages from people may have been missed.
    pub needs_fetch: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// The time of the last change of its settings.
    pub updated_at: DateTime<Utc>,
}

impl Session {
    /// Whether it sends.
    pub fn is_working(&self) -> bool {
        self.state == WORKING
    }

    /// The webhook secrets that are valid at `now`, the newest first.
    pub fn secrets(&self, now: DateTime<Utc>) -> impl Iterator<Item = &SecretString> {
        let previous = self.previous_secret.as_ref().filter(|_| self.previous_until.is_some_and(|until| now < until));
        self.settings.webhook_secret.iter().chain(previous)
    }
}

/// Why a session was not stored.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The tenant has a session of that name.
    #[error("there is a session of that name")]
    Taken,
    /// The statement failed.
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

/// The result of removing a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone, and its line.
    Yes,
    /// Not removed: this many deliveries wait in its line.
    Busy(i32),
    /// The tenant has no such session.
    Unknown,
}

row! {
    /// A session with its line.
    struct SessionRow {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        name: String as Text,
        base_url: String as Text,
        api_key: Option<Vec<u8>> as Nullable<Binary>,
        webhook_secret: Option<Vec<u8>> as Nullable<Binary>,
        previous_secret: Option<Vec<u8>> as Nullable<Binary>,
        previous_until: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        signature: String as Text,
        allow_ips: Vec<String> as Array<Text>,
        on_limit: String as Text,
        state: String as Text,
        state_at: DateTime<Utc> as Timestamptz,
        is_wanted: bool as Bool,
        last_event_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        checked_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        fetched_until: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        created_at: DateTime<Utc> as Timestamptz,
        updated_at: DateTime<Utc> as Timestamptz,
        hook_url: Option<String> as Nullable<Text>,
        unreachable_since: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        needs_fetch: bool as Bool,
        is_operators: bool as Bool,
        rate: Option<i32> as Nullable<Int4>,
        daily_cap: Option<i32> as Nullable<Int4>,
        gap_ms: Option<i32> as Nullable<Int4>,
        jitter_ms: Option<i32> as Nullable<Int4>,
    }
}

row! {
    struct RemovedRow {
        is_gone: bool as Bool,
        waiting: i32 as Int4,
    }
}

row! {
    struct StateCount {
        state: String as Text,
        n: i64 as Int8,
    }
}

impl SessionStore<'_> {
    /// Creates a session with its line, which is stopped until WAHA reports that the session works.
    pub async fn create(self, tenant: TenantId, settings: &Settings) -> Result<Uuid, SaveError> {
        let id = Uuid::now_v7();
        let create = Create {
            id,
            tenant: tenant.0,
            name: settings.name.clone(),
            base_url: settings.base_url.clone(),
            api_key: self.seal_secret(sealed::SESSION_KEY.of(tenant), &settings.api_key)?,
            webhook_secret: self.seal_secret(sealed::SESSION_SECRET.of(tenant), &settings.webhook_secret)?,
            signature: settings.signature.as_str(),
            allow_ips: settings.allow_ips.clone(),
            on_limit: settings.on_limit.as_str(),
            working: WORKING,
            rate: settings.pace.rate,
            daily_cap: settings.pace.daily_cap,
            gap_ms: settings.pace.gap_ms,
            jitter_ms: settings.pace.jitter_ms,
        };
        create.query().row(self.store).await.map_err(SaveError::from)
    }

    /// Replaces the settings of a session. A replaced webhook secret stays valid for 24 hours.
    pub async fn update(self, before: &Session, settings: &Settings) -> Result<(), SaveError> {
        let plain = |secret: &Option<SecretString>| secret.as_ref().map(|secret| secret.expose_secret().to_owned());
        let is_replaced = plain(&before.settings.webhook_secret) != plain(&settings.webhook_secret);
        let (previous, until) = match is_replaced {
            true => (&before.settings.webhook_secret, Some(domain::clock::now() + ROTATION)),
            false => (&before.previous_secret, before.previous_until),
        };
        let (key, secret) = (sealed::SESSION_KEY.of(before.tenant), sealed::SESSION_SECRET.of(before.tenant));
        let update = Update {
            id: before.id,
            name: settings.name.clone(),
            base_url: settings.base_url.clone(),
            api_key: self.seal_secret(key, &settings.api_key)?,
            webhook_secret: self.seal_secret(secret, &settings.webhook_secret)?,
            signature: settings.signature.as_str(),
            allow_ips: settings.allow_ips.clone(),
            on_limit: settings.on_limit.as_str(),
            previous_secret: self.seal_secret(secret, previous)?,
            previous_until: until,
            rate: settings.pace.rate,
            daily_cap: settings.pace.daily_cap,
            gap_ms: settings.pace.gap_ms,
            jitter_ms: settings.pace.jitter_ms,
        };
        update.query().row(self.store).await?;
        Ok(())
    }

    /// Removes a session with its line, unless deliveries wait in it.
    pub async fn remove(self, tenant: TenantId, id: Uuid) -> DbResult<Removed> {
        let removed = Remove { id, tenant: tenant.0 }.query().within(Some(tenant)).first(self.store).await?;
        Ok(match removed {
            None => Removed::Unknown,
            Some(RemovedRow { is_gone: true, .. }) => Removed::Yes,
            Some(RemovedRow { is_gone: false, waiting }) => Removed::Busy(waiting),
        })
    }

    /// The session with this id.
    pub async fn find(self, id: Uuid) -> DbResult<Option<Session>> {
        Ok(self.open_sessions(ById { id }.query().rows(self.store).await?).into_iter().next())
    }

    /// The sessions with these ids.
    pub async fn by_ids(self, ids: Vec<Uuid>) -> DbResult<Vec<Session>> {
        Ok(self.open_sessions(ByIds { ids }.query().rows(self.store).await?))
    }

    /// The tenant's session of this id, else of this name.
    pub async fn session_of(self, tenant: TenantId, id_or_name: &str) -> DbResult<Option<Session>> {
        let query = ByReference { tenant: tenant.0, id: id_or_name.parse().ok(), name: id_or_name.to_owned() }.query();
        let found = self.open_sessions(query.within(Some(tenant)).rows(self.store).await?);
        // A name may equal another session's id: the id takes precedence.
        let is_named = |session: &Session| session.settings.name == id_or_name;
        let (by_id, by_name): (Vec<_>, Vec<_>) = found.into_iter().partition(|session| !is_named(session));
        Ok(by_id.into_iter().chain(by_name).next())
    }

    /// Sessions of this name, of any tenant, up to a hundred, those with the latest webhook first. The signature
    /// decides which one is meant.
    pub async fn named(self, name: &str) -> DbResult<Vec<Session>> {
        Ok(self.open_sessions(ByName { name: name.to_owned() }.query().rows(self.store).await?))
    }

    /// Up to `limit` sessions of a tenant, newest first; only those older than `before`, if given.
    pub async fn list(self, tenant: TenantId, before: Option<Uuid>, limit: i64) -> DbResult<Vec<Session>> {
        let list = List { tenant: tenant.0, before: before.unwrap_or(Uuid::max()), limit };
        Ok(self.open_sessions(list.query().within(Some(tenant)).rows(self.store).await?))
    }

    /// Stores the state of a session. `told_at`: the time of the change, as a webhook of WAHA reports it. Webhooks may
    /// arrive out of order, and the latest one counts. `None`: it is WAHA's answer to a request. The session's line
    /// opens and stops with the state; deliveries in a line that opens are released at once.
    pub async fn set_state(self, id: Uuid, state: &str, told_at: Option<DateTime<Utc>>) -> DbResult<()> {
        self.write_state(id, state, told_at, None).await
    }

    /// Stores WAHA's answer to a comparison that began with this session, unless the state has changed meanwhile: the
    /// newer state is more reliable than an answer that took long.
    pub async fn note_answer(self, session: &Session, state: &str) -> DbResult<()> {
        self.write_state(session.id, state, None, Some(session.state_at)).await
    }

    async fn write_state(
        self,
        id: Uuid,
        state: &str,
        told_at: Option<DateTime<Utc>>,
        known_since: Option<DateTime<Utc>>,
    ) -> DbResult<()> {
        let set = SetState { id, state: state.to_owned(), told_at, known_since, working: WORKING };
        set.query().run(self.store).await.map(drop)
    }

    /// Notes whether an admin wants the session to run.
    pub async fn want(self, id: Uuid, is_wanted: bool) -> DbResult<()> {
        Want { id, is_wanted }.query().run(self.store).await.map(drop)
    }

    /// Marks the operator's own sessions. A process of the version before creates them without the mark; marking twice
    /// changes nothing.
    pub async fn mark_operators_sessions(self) -> DbResult<usize> {
        MarkOperators {}.query().run(self.store).await
    }

    /// Starts webhooks at one URL for each session below `base`. Before that, messages from people may have been
    /// missed: they are fetched for every started session. Returns the number of sessions, started or not.
    pub async fn begin_hooks(self, base: &str) -> DbResult<i64> {
        MoveHooks { base: base.to_owned() }.query().run(self.store).await?;
        MarkMissed {}.query().row(self.store).await
    }

    /// Stores the URL of the webhooks of a session.
    pub async fn set_hook(self, id: Uuid, hook_url: &str) -> DbResult<()> {
        SetHook { id, hook_url: hook_url.to_owned() }.query().run(self.store).await.map(drop)
    }

    /// Takes up to `limit` sessions that are due for a comparison with WAHA; no other caller gets them before the next
    /// one is due.
    pub async fn take_checks(self, limit: i64) -> DbResult<Vec<Session>> {
        let ids = TakeChecks { limit }.query().rows(self.store).await?;
        if ids.is_empty() { Ok(Vec::new()) } else { self.by_ids(ids).await }
    }

    /// Stores the result of a comparison with WAHA: whether it answers, whether messages from people may have been
    /// missed, and until when they were fetched.
    pub async fn note_check(
        self,
        id: Uuid,
        is_reachable: bool,
        needs_fetch: bool,
        fetched_until: Option<DateTime<Utc>>,
    ) -> DbResult<()> {
        NoteCheck { id, is_reachable, needs_fetch, fetched_until }.query().run(self.store).await.map(drop)
    }

    /// The number of sessions in each state.
    pub async fn count(self) -> DbResult<Vec<(String, i64)>> {
        let counts = CountByState {}.query().rows(self.store).await?;
        Ok(counts.into_iter().map(|StateCount { state, n }| (state, n)).collect())
    }

    /// Started sessions whose WAHA does not answer.
    pub async fn unreachable(self) -> DbResult<i64> {
        CountUnreachable {}.query().row(self.store).await
    }

    fn open_sessions(self, rows: Vec<SessionRow>) -> Vec<Session> {
        // A session that cannot be read must not delay the others.
        let read = |row: SessionRow| {
            let session = self.open_session(row);
            session.inspect_err(|error| tracing::error!(%error, "a session is left out")).ok()
        };
        rows.into_iter().filter_map(read).collect()
    }

    fn open_session(self, row: SessionRow) -> DbResult<Session> {
        let tenant = TenantId(row.tenant_id);
        let settings = Settings {
            name: row.name,
            base_url: row.base_url,
            api_key: self.open_secret(sealed::SESSION_KEY.of(tenant), row.api_key)?,
            webhook_secret: self.open_secret(sealed::SESSION_SECRET.of(tenant), row.webhook_secret)?,
            // A word of a later version means the strictest rule that we know.
            signature: row.signature.parse().unwrap_or(SignatureRule::Waha),
            allow_ips: row.allow_ips,
            on_limit: row.on_limit.parse().unwrap_or_default(),
            pace: Pace {
                rate: row.rate.unwrap_or(RATE_DEFAULT),
                daily_cap: row.daily_cap,
                gap_ms: row.gap_ms.unwrap_or_default(),
                jitter_ms: row.jitter_ms.unwrap_or_default(),
            },
        };
        Ok(Session {
            id: row.id,
            tenant,
            is_operators: row.is_operators,
            settings,
            previous_secret: self.open_secret(sealed::SESSION_SECRET.of(tenant), row.previous_secret)?,
            previous_until: row.previous_until,
            state: row.state,
            state_at: row.state_at,
            is_wanted: row.is_wanted,
            last_event_at: row.last_event_at,
            checked_at: row.checked_at,
            fetched_until: row.fetched_until,
            hook_url: row.hook_url,
            unreachable_since: row.unreachable_since,
            needs_fetch: row.needs_fetch,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }

    fn seal_secret(self, place: Place, secret: &Option<SecretString>) -> DbResult<Option<Vec<u8>>> {
        let sealed = secret.as_ref().map(|secret| self.store.sealer().seal(place, secret.expose_secret().as_bytes()));
        Ok(sealed.transpose()?)
    }

    fn open_secret(self, place: Place, stored: Option<Vec<u8>>) -> DbResult<Option<SecretString>> {
        let Some(stored) = stored else { return Ok(None) };
        let plain = String::from_utf8(self.store.sealer().open(place, stored)?)
            .map_err(|_| domain::seal::SealError::Damaged)?;
        Ok(Some(plain.into()))
    }
}

sql!(Create in "wa_sessions/create.sql" {
    id: Uuid as SqlUuid, tenant: i32 as Int4, name: String as Text, base_url: String as Text,
    api_key: Option<Vec<u8>> as Nullable<Binary>, webhook_secret: Option<Vec<u8>> as Nullable<Binary>,
    signature: &'static str as Text, allow_ips: Vec<String> as Array<Text>, on_limit: &'static str as Text,
    working: &'static str as Text, rate: i32 as Int4, daily_cap: Option<i32> as Nullable<Int4>, gap_ms: i32 as Int4,
    jitter_ms: i32 as Int4
} -> Uuid as SqlUuid);
sql!(Update in "wa_sessions/update.sql" {
    id: Uuid as SqlUuid, name: String as Text, base_url: String as Text,
    api_key: Option<Vec<u8>> as Nullable<Binary>, webhook_secret: Option<Vec<u8>> as Nullable<Binary>,
    signature: &'static str as Text, allow_ips: Vec<String> as Array<Text>, on_limit: &'static str as Text,
    previous_secret: Option<Vec<u8>> as Nullable<Binary>,
    previous_until: Option<DateTime<Utc>> as Nullable<Timestamptz>, rate: i32 as Int4,
    daily_cap: Option<i32> as Nullable<Int4>, gap_ms: i32 as Int4, jitter_ms: i32 as Int4
} -> Uuid as SqlUuid);
sql!(Remove in "wa_sessions/remove.sql" { id: Uuid as SqlUuid, tenant: i32 as Int4 } -> RemovedRow);
sql!(ById in "wa_sessions/by_id.sql" { id: Uuid as SqlUuid } -> SessionRow);
sql!(ByIds in "wa_sessions/by_ids.sql" { ids: Vec<Uuid> as Array<SqlUuid> } -> SessionRow);
sql!(ByReference in "wa_sessions/by_reference.sql" {
    tenant: i32 as Int4, id: Option<Uuid> as Nullable<SqlUuid>, name: String as Text
} -> SessionRow);
sql!(ByName in "wa_sessions/by_name.sql" { name: String as Text } -> SessionRow);
sql!(List in "wa_sessions/list.sql" {
    tenant: i32 as Int4, before: Uuid as SqlUuid, limit: i64 as Int8
} -> SessionRow);
sql!(SetState in "wa_sessions/set_state.sql" {
    id: Uuid as SqlUuid, state: String as Text, told_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
    known_since: Option<DateTime<Utc>> as Nullable<Timestamptz>, working: &'static str as Text
});
sql!(Want in "wa_sessions/want.sql" { id: Uuid as SqlUuid, is_wanted: bool as Bool });
sql!(MarkOperators in "wa_sessions/mark_operators.sql" {});
sql!(MoveHooks in "wa_sessions/move_hooks.sql" { base: String as Text });
sql!(MarkMissed in "wa_sessions/mark_missed.sql" {} -> i64 as Int8);
sql!(SetHook in "wa_sessions/set_hook.sql" { id: Uuid as SqlUuid, hook_url: String as Text });
sql!(TakeChecks in "wa_sessions/take_checks.sql" { limit: i64 as Int8 } -> Uuid as SqlUuid);
sql!(NoteCheck in "wa_sessions/note_check.sql" {
    id: Uuid as SqlUuid, is_reachable: bool as Bool, needs_fetch: bool as Bool,
    fetched_until: Option<DateTime<Utc>> as Nullable<Timestamptz>
});
sql!(CountByState in "wa_sessions/count_by_state.sql" {} -> StateCount);
sql!(CountUnreachable in "wa_sessions/count_unreachable.sql" {} -> i64 as Int8);
statements!(
    Create,
    Update,
    Remove,
    ById,
    ByIds,
    ByReference,
    ByName,
    List,
    SetState,
    Want,
    MarkOperators,
    MoveHooks,
    MarkMissed,
    SetHook,
    TakeChecks,
    NoteCheck,
    CountByState,
    CountUnreachable
);
