//! Compares sessions with their WAHA: restores sessions and webhooks that WAHA lost, starts sessions that should run,
//! records states whose webhooks were lost, and fetches messages that WAHA did not report.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use connectors::{
    egress,
    waha::{
        Host, Session as WahaSession, Waha, WahaError,
        event::{Envelope, Meaning, listed},
        hook::{self, Lack},
    },
};
use domain::{TenantId, clock, session::WORKING};
use futures_util::{StreamExt, stream};
use metrics::{counter, gauge};
use records::{Records, wa_sessions::Session, waha_events::NewEvent};
use runtime::metric;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use store::{DbResult, Store};
use tokio::{sync::Semaphore, time::timeout};
use uuid::Uuid;

use crate::task::{Report, Task, TaskError, count_of, gauge_of};

/// Sessions compared in one turn.
const LIMIT: i64 = 400;
/// Tenants whose sessions are compared at the same time.
const TENANTS_MAX: usize = 16;
/// Concurrent calls to WAHA for one tenant. The limit keeps hanging hosts from using up the capacity of others.
const CALLS_MAX: usize = 4;
/// The longest time for the sessions of one tenant in one turn. The rest follows in the next turn.
const TURN_MAX: Duration = Duration::from_secs(60);
/// Concurrent checks that fetch messages, over all tenants. Each holds a response of up to 4 MiB.
const FETCHES_MAX: usize = 4;
/// The most bytes that one check fetches, and how long it starts further pages. The next check continues from there.
const FETCH_BYTES_MAX: usize = 16 * 1024 * 1024;
const FETCH_MAX: Duration = Duration::from_secs(20);
/// The first pause before a host that timed out is called again. Each later pause is twice as long.
const HANG_PAUSE: Duration = Duration::from_secs(10);
const HANG_DOUBLINGS_MAX: u32 = 2;
/// A host is forgotten this long after its pause.
const HANG_FORGET: Duration = Duration::from_secs(600);
/// For this many sessions of one WAHA in a turn, one list of all sessions is cheaper than a call for each.
const LIST_MIN: usize = 4;
/// The longest comparison, including fetched messages.
const CHECK_TIMEOUT: Duration = Duration::from_secs(50);
/// A working session that reports nothing for this long is checked for messages.
const SILENCE: TimeDelta = TimeDelta::minutes(30);
/// Fetching starts this long before the last known message, because clocks differ and WAHA repeats webhooks for a
/// while.
const OVERLAP: TimeDelta = TimeDelta::minutes(2);
/// The first pause between two attempts to restore a session. Each later pause is twice as long.
const RESTORE_PAUSE: Duration = Duration::from_secs(40);
const RESTORE_DOUBLINGS_MAX: u32 = 6;
const CHATS_PAGE: usize = 50;
const CHATS_MAX: usize = 500;
/// Chats come newest first. After this many without new messages, the rest has none either.
const UNCHANGED_CHATS_MAX: usize = 20;
const MESSAGES_PAGE: usize = 50;
const MESSAGES_MAX: usize = 1000;

/// The task that compares sessions.
pub struct WahaSessions {
    store: Store,
    waha: Waha,
    call_timeout: Duration,
    restores: Mutex<HashMap<Uuid, (Instant, u32)>>,
    hanging: Mutex<HashMap<String, (Instant, u32)>>,
    cursors: Mutex<HashMap<Uuid, FetchCursor>>,
    fetches: Semaphore,
}

/// How far a session is fetched: the number of finished chats, and of messages of the next chat.
#[derive(Clone, Copy, Default)]
struct FetchCursor {
    chats: usize,
    messages: usize,
}

/// The state of fetching one session's messages.
struct Fetch<'a> {
    session: &'a Session,
    host: &'a Host,
    since: DateTime<Utc>,
    cursor: FetchCursor,
    bytes: usize,
    until: Instant,
    /// Messages from people that were found.
    people: usize,
    /// Events that no webhook had reported.
    new: usize,
}

impl Fetch<'_> {
    fn is_full(&self) -> bool {
        self.bytes >= FETCH_BYTES_MAX || Instant::now() >= self.until
    }
}

/// The result of a comparison.
struct Checked {
    is_reachable: bool,
    needs_fetch: bool,
    fetched_until: Option<DateTime<Utc>>,
}

impl WahaSessions {
    /// Calls WAHA through `waha`. Each call may take `call_timeout`.
    pub fn new(store: Store, waha: Waha, call_timeout: Duration) -> Self {
        Self {
            store,
            waha,
            call_timeout,
            restores: Mutex::default(),
            hanging: Mutex::default(),
            cursors: Mutex::default(),
            fetches: Semaphore::new(FETCHES_MAX),
        }
    }

    /// Compares the sessions of one tenant.
    async fn compare_tenant(&self, sessions: Vec<Session>) -> DbResult<()> {
        let comparing = async {
            let states = self.fetch_states(sessions).await;
            let checks = states.into_iter().map(|(session, host, remote)| self.check(session, host, remote));
            let results: Vec<DbResult<()>> = stream::iter(checks).buffer_unordered(CALLS_MAX).collect().await;
            results.into_iter().collect()
        };
        timeout(TURN_MAX, comparing).await.unwrap_or(Ok(()))
    }

    /// Asks WAHA for each session.
    async fn fetch_states(&self, sessions: Vec<Session>) -> Vec<(Session, Host, Result<WahaSession, WahaError>)> {
        let mut hosts: HashMap<(String, String), Vec<Session>> = HashMap::new();
        for session in sessions {
            let key = session.settings.api_key.as_ref().map(|key| key.expose_secret().to_owned());
            hosts.entry((session.settings.base_url.clone(), key.unwrap_or_default())).or_default().push(session);
        }
        let groups = hosts.into_values().map(|group| self.fetch_host_states(group));
        stream::iter(groups).buffer_unordered(CALLS_MAX).concat().await
    }

    async fn fetch_host_states(&self, group: Vec<Session>) -> Vec<(Session, Host, Result<WahaSession, WahaError>)> {
        if group.first().is_some_and(|session| self.is_hanging(&session.settings.base_url)) {
            return Vec::new();
        }
        let Some(host) = group.first().and_then(|session| self.host(session)) else {
            // The egress guard now refuses its address.
            tracing::warn!(sessions = group.len(), "the base_url of sessions may not be called");
            return Vec::new();
        };
        if group.len() < LIST_MIN {
            let states = group.into_iter().map(|session| async {
                let remote = host.session(&session.settings.name).await;
                (session, host.clone(), remote)
            });
            return futures_util::future::join_all(states).await;
        }
        let list = host.sessions().await;
        let of = |session: &Session| match &list {
            Ok(list) => {
                list.iter().find(|remote| remote.name == session.settings.name).cloned().ok_or(WahaError::NotFound)
            }
            Err(error) => Err(error.clone()),
        };
        group
            .into_iter()
            .map(|session| (of(&session), session))
            .map(|(remote, session)| (session, host.clone(), remote))
            .collect()
    }

    fn host(&self, session: &Session) -> Option<Host> {
        self.waha.host_of(session, self.call_timeout).ok()
    }

    /// True if a call to the host timed out recently, so it is not called.
    fn is_hanging(&self, base_url: &str) -> bool {
        let hanging = self.hanging.lock().unwrap_or_else(PoisonError::into_inner);
        hanging.get(base_url).is_some_and(|(until, _)| Instant::now() < *until)
    }

    /// Records whether a call to the host timed out. A host that refuses at once costs nothing and is called again.
    fn record_timeout(&self, base_url: &str, hangs: bool) {
        let mut hanging = self.hanging.lock().unwrap_or_else(PoisonError::into_inner);
        hanging.retain(|_, (until, _)| until.elapsed() < HANG_FORGET);
        if !hangs {
            hanging.remove(base_url);
            return;
        }
        let count = hanging.get(base_url).map_or(0, |(_, count)| *count);
        let pause = HANG_PAUSE * 2_u32.pow(count.min(HANG_DOUBLINGS_MAX));
        hanging.insert(base_url.to_owned(), (Instant::now() + pause, count + 1));
    }

    async fn check(&self, session: Session, host: Host, remote: Result<WahaSession, WahaError>) -> DbResult<()> {
        let id = session.id;
        if remote.is_ok() && self.is_hanging(&session.settings.base_url) {
            return Ok(());
        }
        let checked = match timeout(CHECK_TIMEOUT, self.compare(&session, &host, remote)).await {
            Ok(Ok(checked)) => {
                self.record_timeout(&session.settings.base_url, false);
                checked
            }
            Ok(Err(CompareError::Waha(error))) => {
                let hangs = matches!(error, WahaError::Unanswered(egress::Trouble::Timeout));
                self.record_timeout(&session.settings.base_url, hangs);
                let error_text = error.to_string();
                tracing::warn!(session.id = %id, error = error_text, "a session could not be compared with WAHA");
                counter!(metric::WAHA_CHECK_FAILURES).increment(1);
                let is_reachable = !matches!(error, WahaError::Unreachable(_) | WahaError::Unanswered(_));
                Checked { is_reachable, needs_fetch: true, fetched_until: None }
            }
            Ok(Err(CompareError::Database(error))) => return Err(error),
            Err(_) => {
                self.record_timeout(&session.settings.base_url, true);
                Checked { is_reachable: true, needs_fetch: true, fetched_until: None }
            }
        };
        self.store
            .whatsapp_sessions()
            .note_check(id, checked.is_reachable, checked.needs_fetch, checked.fetched_until)
            .await
    }

    async fn compare(
        &self,
        session: &Session,
        host: &Host,
        remote: Result<WahaSession, WahaError>,
    ) -> Result<Checked, CompareError> {
        let (name, id) = (session.settings.name.as_str(), session.id);
        let secret = session.settings.webhook_secret.as_ref();
        let mut needs_fetch = session.needs_fetch || session.unreachable_since.is_some();
        let remote = match remote {
            Err(WahaError::NotFound) if session.is_wanted && session.hook_url.is_some() => {
                tracing::info!(session.id = %id, "WAHA has forgotten a session: it is made again");
                counter!(metric::WAHA_RESTORED).increment(1);
                let url = session.hook_url.as_deref().unwrap_or_default();
                let config = hook::with_webhook(None, url, secret, None);
                needs_fetch = true;
                host.create_session(name, &config, true).await?
            }
            Err(WahaError::NotFound) => {
                self.note_state(session, "STOPPED").await?;
                return Ok(Checked { is_reachable: true, needs_fetch, fetched_until: None });
            }
            remote => remote?,
        };
        let mut state = remote.status.clone();
        if session.is_wanted {
            if self.restore_webhook(session, host, &remote).await? {
                needs_fetch = true;
                state = host.session(name).await?.status;
            }
            if matches!(state.as_str(), "STOPPED" | "FAILED") && self.may_restore(id) {
                tracing::info!(session.id = %id, state, "a session that should run does not: it is started");
                needs_fetch = true;
                if state == "FAILED" {
                    host.restart_session(name).await?
                } else {
                    host.start_session(name).await?
                }
                state = host.session(name).await?.status;
            }
        }
        self.note_state(session, &state).await?;
        if state != WORKING {
            return Ok(Checked { is_reachable: true, needs_fetch, fetched_until: None });
        }
        self.catch_up(session, host, needs_fetch).await
    }

    /// Adds our webhook to the session's configuration if it is missing. Returns true if it was missing.
    async fn restore_webhook(
        &self,
        session: &Session,
        host: &Host,
        remote: &WahaSession,
    ) -> Result<bool, CompareError> {
        let (Some(url), secret) = (session.hook_url.as_deref(), session.settings.webhook_secret.as_ref()) else {
            return Ok(false);
        };
        let is_missing = match hook::lack(remote.config.as_ref(), url, secret) {
            Lack::Nothing => false,
            Lack::Webhook => true,
            // The key may be set although WAHA does not show it. The limit avoids restarting the session again and
            // again.
            Lack::Key => self.may_restore(session.id),
        };
        if is_missing {
            tracing::info!(session.id = %session.id, "WAHA does not know where to send a session's events: it is told");
            counter!(metric::WAHA_RESTORED).increment(1);
            let config = hook::with_webhook(remote.config.clone(), url, secret, session.previous_secret.as_ref());
            host.update_session(&session.settings.name, &config).await?;
        }
        Ok(is_missing)
    }

    async fn note_state(&self, session: &Session, state: &str) -> DbResult<()> {
        if session.state == state {
            return Ok(());
        }
        if session.is_working() {
            // The session stopped working, and no webhook reported it.
            counter!(metric::WAHA_SILENT, "why" => "state").increment(1);
        }
        self.store.whatsapp_sessions().note_answer(session, state).await
    }

    /// Fetches messages that may have been missed.
    async fn catch_up(&self, session: &Session, host: &Host, needs_fetch: bool) -> Result<Checked, CompareError> {
        let now = clock::now();
        let is_old = |at: Option<DateTime<Utc>>| at.is_none_or(|at| now - at > SILENCE);
        let is_silent = session.is_wanted && is_old(session.last_event_at) && is_old(session.fetched_until);
        let Some(known) = session.fetched_until.filter(|_| needs_fetch || is_silent) else {
            // Messages from before the session belonged to Posthaste are not fetched.
            let fetched_until = session.fetched_until.is_none().then_some(now);
            return Ok(Checked { is_reachable: true, needs_fetch: false, fetched_until });
        };
        let cursor = self.cursor(session.id);
        let since = known - OVERLAP;
        let _permit = self.fetches.acquire().await.ok();
        let until = Instant::now() + FETCH_MAX;
        let mut fetch = Fetch { session, host, since, cursor, bytes: 0, until, people: 0, new: 0 };
        let is_done = self.fetch(&mut fetch).await?;
        let new = fetch.new;
        self.set_cursor(session.id, (!is_done).then_some(fetch.cursor));
        counter!(metric::WAHA_FETCHED).increment(count_of(new));
        if new > 0 {
            tracing::info!(session.id = %session.id, new, "fetched what WAHA had not told");
        }
        if is_silent && fetch.people > 0 && new > 0 {
            counter!(metric::WAHA_SILENT, "why" => "messages").increment(1);
            tracing::warn!(session.id = %session.id, "a session works and tells nothing; check that WAHA reaches PUBLIC_URL");
        }
        Ok(Checked { is_reachable: true, needs_fetch: !is_done, fetched_until: is_done.then_some(now) })
    }

    fn cursor(&self, id: Uuid) -> FetchCursor {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied().unwrap_or_default()
    }

    fn set_cursor(&self, id: Uuid, cursor: Option<FetchCursor>) {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        match cursor {
            Some(cursor) => drop(cursors.insert(id, cursor)),
            None => drop(cursors.remove(&id)),
        }
    }

    /// Stores new messages of the session's chats as events, page by page. Returns true if it reached the end.
    async fn fetch(&self, fetch: &mut Fetch<'_>) -> Result<bool, CompareError> {
        let mut chats_without_news = 0;
        while fetch.cursor.chats < CHATS_MAX && chats_without_news < UNCHANGED_CHATS_MAX {
            let chats = fetch.host.chats(&fetch.session.settings.name, CHATS_PAGE, fetch.cursor.chats).await?;
            for chat in &chats {
                let has_news = self.fetch_chat(fetch, &chat.id).await?;
                if fetch.is_full() {
                    return Ok(false);
                }
                fetch.cursor = FetchCursor { chats: fetch.cursor.chats + 1, messages: 0 };
                chats_without_news = if has_news { 0 } else { chats_without_news + 1 };
                if chats_without_news >= UNCHANGED_CHATS_MAX {
                    break;
                }
            }
            if chats.len() < CHATS_PAGE {
                break;
            }
        }
        Ok(true)
    }

    /// Returns true if the chat had new messages.
    async fn fetch_chat(&self, fetch: &mut Fetch<'_>, chat: &str) -> Result<bool, CompareError> {
        let (session, since) = (fetch.session, fetch.since);
        let name = session.settings.name.as_str();
        let mut has_news = false;
        while fetch.cursor.messages < MESSAGES_MAX && !fetch.is_full() {
            let page = fetch.host.chat_messages(name, chat, Some(since), MESSAGES_PAGE, fetch.cursor.messages).await?;
            let is_last = page.messages.len() < MESSAGES_PAGE;
            let events = page.messages.iter().filter_map(|message| as_event(session, message, since)).collect();
            has_news |= self.store_events(fetch, events).await?;
            fetch.bytes += page.bytes;
            fetch.cursor.messages += MESSAGES_PAGE;
            if is_last {
                fetch.cursor.messages = MESSAGES_MAX;
            }
        }
        Ok(has_news)
    }

    /// Stores events. Returns true if there were any.
    async fn store_events(&self, fetch: &mut Fetch<'_>, events: Vec<NewEvent>) -> DbResult<bool> {
        if events.is_empty() {
            return Ok(false);
        }
        fetch.people += events.iter().filter(|event| event.event == "message").count();
        let stored = self.store.waha_events().insert(events).await?;
        fetch.new += stored.iter().filter(|is_new| **is_new).count();
        Ok(true)
    }

    /// True if Posthaste may try again to change or start the session.
    fn may_restore(&self, id: Uuid) -> bool {
        let mut restores = self.restores.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, count) = restores.get(&id).copied().map_or((None, 0), |(last, count)| (Some(last), count));
        let pause = RESTORE_PAUSE * 2_u32.pow(count.saturating_sub(1).min(RESTORE_DOUBLINGS_MAX));
        // After a long quiet time the next failure starts a new series.
        let is_new_series = last.is_some_and(|last| last.elapsed() > pause * 4);
        let may = last.is_none_or(|last| last.elapsed() >= pause);
        if may {
            restores.insert(id, (Instant::now(), if is_new_series { 1 } else { count + 1 }));
        }
        may
    }

    async fn set_gauges(&self) -> DbResult<()> {
        for (state, count) in self.store.whatsapp_sessions().count().await? {
            gauge!(metric::WAHA_SESSIONS, "state" => state).set(gauge_of(count));
        }
        gauge!(metric::WAHA_UNREACHABLE_SESSIONS).set(gauge_of(self.store.whatsapp_sessions().unreachable().await?));
        Ok(())
    }
}

impl Task for WahaSessions {
    const NAME: &'static str = "waha_sessions";
    const PERIOD: Duration = Duration::from_secs(2);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let sessions = self.store.whatsapp_sessions().take_checks(LIMIT).await?;
        if sessions.is_empty() {
            return Ok(Report::Done);
        }
        let report = if i64::try_from(sessions.len()) == Ok(LIMIT) { Report::More } else { Report::Done };
        let mut tenants: HashMap<TenantId, Vec<Session>> = HashMap::new();
        for session in sessions {
            tenants.entry(session.tenant).or_default().push(session);
        }
        let this = &*self;
        let turns = tenants.into_values().map(|sessions| this.compare_tenant(sessions));
        let results: Vec<DbResult<()>> = stream::iter(turns).buffer_unordered(TENANTS_MAX).collect().await;
        results.into_iter().collect::<DbResult<()>>()?;
        self.set_gauges().await?;
        Ok(report)
    }
}

/// Why a comparison ended early.
enum CompareError {
    Waha(WahaError),
    Database(store::DbError),
}

impl From<WahaError> for CompareError {
    fn from(error: WahaError) -> Self {
        Self::Waha(error)
    }
}

impl From<store::DbError> for CompareError {
    fn from(error: store::DbError) -> Self {
        Self::Database(error)
    }
}

/// Converts a message of a chat's list into the event that should have reported it.
fn as_event(session: &Session, message: &Value, since: DateTime<Utc>) -> Option<NewEvent> {
    let event = match listed(message, since) {
        Meaning::Person(person) if person.sent_at >= since => "message",
        Meaning::Ack { .. } => "message.ack",
        _ => return None,
    };
    let body = json!({"event": event, "session": session.settings.name, "payload": message}).to_string().into_bytes();
    let dedup = Envelope::read(&body).ok()?.dedup(&body, since);
    Some(NewEvent { tenant: session.tenant, session: session.id, dedup, event: event.to_owned(), body })
}
