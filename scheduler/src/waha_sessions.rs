//! Compares sessions with what their WAHA says of them: puts back what it forgot, starts what should run, notes states whose
//! webhooks were lost, and fetches messages that nobody told us of.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{StreamExt, stream};
use metrics::{counter, gauge};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use shared::{
    clock,
    db::{DbResult, Store, wa_sessions::Session, waha_events::NewEvent},
    domain::{TenantId, session::WORKING},
    egress,
    waha::{
        Host, Session as Shown, Waha, WahaError,
        event::{Envelope, Meaning, listed},
        hook::{self, Lack},
    },
};
use tokio::{sync::Semaphore, time::timeout};
use uuid::Uuid;

use crate::task::{Report, Task, TaskError, count_of, gauge_of};

/// Sessions compared in one turn.
const LIMIT: i64 = 400;
/// Tenants whose sessions are compared at once.
const TENANTS_MAX: usize = 16;
/// Calls to WAHA under way at once for one tenant: hosts that hang must not take the places of others.
const CALLS_MAX: usize = 4;
/// What the sessions of one tenant may take in one turn; those that are left come with the next one.
const TURN_MAX: Duration = Duration::from_secs(60);
/// Checks that fetch messages at once, over all tenants: each holds an answer of up to 4 MiB.
const FETCHES_MAX: usize = 4;
/// What one check fetches, and how long it begins with further pages; where there is more, the next one goes on from there.
const FETCH_BYTES_MAX: usize = 16 * 1024 * 1024;
const FETCH_MAX: Duration = Duration::from_secs(20);
/// The first pause before a host is asked again that let a call time out; each later one is twice as long.
const HANG_PAUSE: Duration = Duration::from_secs(10);
const HANG_DOUBLINGS_MAX: u32 = 2;
/// So long after its pause a host is no longer remembered.
const HANG_FORGET: Duration = Duration::from_secs(600);
/// From so many sessions of one WAHA in a turn on, one list of them all is cheaper than asking for each.
const LIST_MIN: usize = 4;
/// What a comparison may take, fetched messages included.
const CHECK_TIMEOUT: Duration = Duration::from_secs(50);
/// A session that says it works and tells nothing for so long is asked for its messages.
const SILENCE: TimeDelta = TimeDelta::minutes(30);
/// Messages are fetched from so long before the last one known: clocks differ, and WAHA repeats webhooks for a while.
const OVERLAP: TimeDelta = TimeDelta::minutes(2);
/// The first pause between two attempts to bring a session back; each later one is twice as long.
const POKE_PAUSE: Duration = Duration::from_secs(40);
const POKE_DOUBLINGS_MAX: u32 = 6;
const CHATS_PAGE: usize = 50;
const CHATS_MAX: usize = 500;
/// Chats come newest first; after so many without news the rest has none.
const QUIET_CHATS_MAX: usize = 20;
const MESSAGES_PAGE: usize = 50;
const MESSAGES_MAX: usize = 1000;

/// The task.
pub struct WahaSessions {
    store: Store,
    waha: Waha,
    call_timeout: Duration,
    pokes: Mutex<HashMap<Uuid, (Instant, u32)>>,
    hanging: Mutex<HashMap<String, (Instant, u32)>>,
    cursors: Mutex<HashMap<Uuid, FetchCursor>>,
    fetches: Semaphore,
}

/// How far the messages of a session are fetched: so many chats, and so many messages of the next one.
#[derive(Clone, Copy, Default)]
struct FetchCursor {
    chats: usize,
    messages: usize,
}

/// A session's messages being fetched.
struct Fetch<'a> {
    session: &'a Session,
    host: &'a Host,
    since: DateTime<Utc>,
    cursor: FetchCursor,
    bytes: usize,
    until: Instant,
    /// Messages of people that were found.
    people: usize,
    /// Events that nobody had told.
    new: usize,
}

impl Fetch<'_> {
    fn is_full(&self) -> bool {
        self.bytes >= FETCH_BYTES_MAX || Instant::now() >= self.until
    }
}

/// What a comparison came to.
struct Checked {
    is_reachable: bool,
    needs_fetch: bool,
    fetched_until: Option<DateTime<Utc>>,
}

impl WahaSessions {
    /// Asks with `waha`; each call may take `call_timeout`.
    pub fn new(store: Store, waha: Waha, call_timeout: Duration) -> Self {
        Self {
            store,
            waha,
            call_timeout,
            pokes: Mutex::default(),
            hanging: Mutex::default(),
            cursors: Mutex::default(),
            fetches: Semaphore::new(FETCHES_MAX),
        }
    }

    /// Compares the sessions of one tenant.
    async fn turn(&self, sessions: Vec<Session>) -> DbResult<()> {
        let comparing = async {
            let asked = self.ask(sessions).await;
            let checks = asked.into_iter().map(|(session, host, shown)| self.check(session, host, shown));
            let results: Vec<DbResult<()>> = stream::iter(checks).buffer_unordered(CALLS_MAX).collect().await;
            results.into_iter().collect()
        };
        timeout(TURN_MAX, comparing).await.unwrap_or(Ok(()))
    }

    /// What WAHA says of each session.
    async fn ask(&self, sessions: Vec<Session>) -> Vec<(Session, Host, Result<Shown, WahaError>)> {
        let mut hosts: HashMap<(String, String), Vec<Session>> = HashMap::new();
        for session in sessions {
            let key = session.settings.api_key.as_ref().map(|key| key.expose_secret().to_owned());
            hosts.entry((session.settings.base_url.clone(), key.unwrap_or_default())).or_default().push(session);
        }
        let groups = hosts.into_values().map(|group| self.ask_host(group));
        stream::iter(groups).buffer_unordered(CALLS_MAX).concat().await
    }

    async fn ask_host(&self, group: Vec<Session>) -> Vec<(Session, Host, Result<Shown, WahaError>)> {
        if group.first().is_some_and(|session| self.is_hanging(&session.settings.base_url)) {
            return Vec::new();
        }
        let Some(host) = group.first().and_then(|session| self.host(session)) else {
            // Its address may not be called any more.
            tracing::warn!(sessions = group.len(), "the base_url of sessions may not be called");
            return Vec::new();
        };
        if group.len() < LIST_MIN {
            let asked = group.into_iter().map(|session| async {
                let shown = host.session(&session.settings.name).await;
                (session, host.clone(), shown)
            });
            return futures_util::future::join_all(asked).await;
        }
        let list = host.sessions().await;
        let of = |session: &Session| match &list {
            Ok(list) => {
                list.iter().find(|shown| shown.name == session.settings.name).cloned().ok_or(WahaError::NotFound)
            }
            Err(error) => Err(error.clone()),
        };
        group
            .into_iter()
            .map(|session| (of(&session), session))
            .map(|(shown, session)| (session, host.clone(), shown))
            .collect()
    }

    fn host(&self, session: &Session) -> Option<Host> {
        self.waha.host_of(session, self.call_timeout).ok()
    }

    /// Whether a host let a call time out so short ago that it is not asked.
    fn is_hanging(&self, base_url: &str) -> bool {
        let hanging = self.hanging.lock().unwrap_or_else(PoisonError::into_inner);
        hanging.get(base_url).is_some_and(|(until, _)| Instant::now() < *until)
    }

    /// Notes whether a host let a call time out. One that refuses at once costs nothing and is asked again.
    fn note_host(&self, base_url: &str, hangs: bool) {
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

    async fn check(&self, session: Session, host: Host, shown: Result<Shown, WahaError>) -> DbResult<()> {
        let id = session.id;
        if shown.is_ok() && self.is_hanging(&session.settings.base_url) {
            return Ok(());
        }
        let checked = match timeout(CHECK_TIMEOUT, self.compare(&session, &host, shown)).await {
            Ok(Ok(checked)) => {
                self.note_host(&session.settings.base_url, false);
                checked
            }
            Ok(Err(FailureStreak::Waha(error))) => {
                let hangs = matches!(error, WahaError::Unanswered(egress::Trouble::Timeout));
                self.note_host(&session.settings.base_url, hangs);
                let error_text = error.to_string();
                tracing::warn!(session.id = %id, error = error_text, "a session could not be compared with WAHA");
                counter!("posthaste_waha_check_failures_total").increment(1);
                let is_reachable = !matches!(error, WahaError::Unreachable(_) | WahaError::Unanswered(_));
                Checked { is_reachable, needs_fetch: true, fetched_until: None }
            }
            Ok(Err(FailureStreak::Database(error))) => return Err(error),
            Err(_) => {
                self.note_host(&session.settings.base_url, true);
                Checked { is_reachable: true, needs_fetch: true, fetched_until: None }
            }
        };
        self.store.note_check(id, checked.is_reachable, checked.needs_fetch, checked.fetched_until).await
    }

    async fn compare(
        &self,
        session: &Session,
        host: &Host,
        shown: Result<Shown, WahaError>,
    ) -> Result<Checked, FailureStreak> {
        let (name, id) = (session.settings.name.as_str(), session.id);
        let secret = session.settings.webhook_secret.as_ref();
        let mut needs_fetch = session.needs_fetch || session.unreachable_since.is_some();
        let shown = match shown {
            Err(WahaError::NotFound) if session.is_wanted && session.hook_url.is_some() => {
                tracing::info!(session.id = %id, "WAHA has forgotten a session: it is made again");
                counter!("posthaste_waha_restored_total").increment(1);
                let url = session.hook_url.as_deref().unwrap_or_default();
                let config = hook::with_webhook(None, url, secret, None);
                needs_fetch = true;
                host.create_session(name, &config, true).await?
            }
            Err(WahaError::NotFound) => {
                self.note_state(session, "STOPPED").await?;
                return Ok(Checked { is_reachable: true, needs_fetch, fetched_until: None });
            }
            shown => shown?,
        };
        let mut state = shown.status.clone();
        if session.is_wanted {
            if self.put_back(session, host, &shown).await? {
                needs_fetch = true;
                state = host.session(name).await?.status;
            }
            if matches!(state.as_str(), "STOPPED" | "FAILED") && self.may_poke(id) {
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

    /// Puts our webhook into the session's configuration where it is not; says whether it was not.
    async fn put_back(&self, session: &Session, host: &Host, shown: &Shown) -> Result<bool, FailureStreak> {
        let (Some(url), secret) = (session.hook_url.as_deref(), session.settings.webhook_secret.as_ref()) else {
            return Ok(false);
        };
        let is_lacking = match hook::lack(shown.config.as_ref(), url, secret) {
            Lack::Nothing => false,
            Lack::Webhook => true,
            // It may be there and not be shown: a session is not restarted for that again and again.
            Lack::Key => self.may_poke(session.id),
        };
        if is_lacking {
            tracing::info!(session.id = %session.id, "WAHA does not know where to send a session's events: it is told");
            counter!("posthaste_waha_restored_total").increment(1);
            let config = hook::with_webhook(shown.config.clone(), url, secret, session.previous_secret.as_ref());
            host.update_session(&session.settings.name, &config).await?;
        }
        Ok(is_lacking)
    }

    async fn note_state(&self, session: &Session, state: &str) -> DbResult<()> {
        if session.state == state {
            return Ok(());
        }
        if session.is_working() {
            // It is no more, and nobody told us.
            counter!("posthaste_waha_silent_total", "why" => "state").increment(1);
        }
        self.store.note_answer(session, state).await
    }

    /// Fetches what may have been missed.
    async fn catch_up(&self, session: &Session, host: &Host, needs_fetch: bool) -> Result<Checked, FailureStreak> {
        let now = clock::now();
        let is_old = |at: Option<DateTime<Utc>>| at.is_none_or(|at| now - at > SILENCE);
        let is_silent = session.is_wanted && is_old(session.last_event_at) && is_old(session.fetched_until);
        let Some(known) = session.fetched_until.filter(|_| needs_fetch || is_silent) else {
            // What was said before it was ours is none of our business.
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
        self.keep_cursor(session.id, (!is_done).then_some(fetch.cursor));
        counter!("posthaste_waha_fetched_total").increment(count_of(new));
        if new > 0 {
            tracing::info!(session.id = %session.id, new, "fetched what WAHA had not told");
        }
        if is_silent && fetch.people > 0 && new > 0 {
            counter!("posthaste_waha_silent_total", "why" => "messages").increment(1);
            tracing::warn!(session.id = %session.id, "a session works and tells nothing; check that WAHA reaches PUBLIC_URL");
        }
        Ok(Checked { is_reachable: true, needs_fetch: !is_done, fetched_until: is_done.then_some(now) })
    }

    fn cursor(&self, id: Uuid) -> FetchCursor {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied().unwrap_or_default()
    }

    fn keep_cursor(&self, id: Uuid, cursor: Option<FetchCursor>) {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        match cursor {
            Some(cursor) => drop(cursors.insert(id, cursor)),
            None => drop(cursors.remove(&id)),
        }
    }

    /// Keeps what the chats of a session say since then, as events, page by page; says whether that is all.
    async fn fetch(&self, fetch: &mut Fetch<'_>) -> Result<bool, FailureStreak> {
        let mut quiet = 0;
        while fetch.cursor.chats < CHATS_MAX && quiet < QUIET_CHATS_MAX {
            let chats = fetch.host.chats(&fetch.session.settings.name, CHATS_PAGE, fetch.cursor.chats).await?;
            for chat in &chats {
                let has_news = self.fetch_chat(fetch, &chat.id).await?;
                if fetch.is_full() {
                    return Ok(false);
                }
                fetch.cursor = FetchCursor { chats: fetch.cursor.chats + 1, messages: 0 };
                quiet = if has_news { 0 } else { quiet + 1 };
                if quiet >= QUIET_CHATS_MAX {
                    break;
                }
            }
            if chats.len() < CHATS_PAGE {
                break;
            }
        }
        Ok(true)
    }

    /// Says whether there was news in it.
    async fn fetch_chat(&self, fetch: &mut Fetch<'_>, chat: &str) -> Result<bool, FailureStreak> {
        let (session, since) = (fetch.session, fetch.since);
        let name = session.settings.name.as_str();
        let mut has_news = false;
        while fetch.cursor.messages < MESSAGES_MAX && !fetch.is_full() {
            let page = fetch.host.chat_messages(name, chat, Some(since), MESSAGES_PAGE, fetch.cursor.messages).await?;
            let is_last = page.messages.len() < MESSAGES_PAGE;
            let events = page.messages.iter().filter_map(|message| as_event(session, message, since)).collect();
            has_news |= self.keep(fetch, events).await?;
            fetch.bytes += page.bytes;
            fetch.cursor.messages += MESSAGES_PAGE;
            if is_last {
                fetch.cursor.messages = MESSAGES_MAX;
            }
        }
        Ok(has_news)
    }

    /// Says whether there were any.
    async fn keep(&self, fetch: &mut Fetch<'_>, events: Vec<NewEvent>) -> DbResult<bool> {
        if events.is_empty() {
            return Ok(false);
        }
        fetch.people += events.iter().filter(|event| event.event == "message").count();
        let kept = self.store.keep_events(events).await?;
        fetch.new += kept.iter().filter(|is_new| **is_new).count();
        Ok(true)
    }

    /// Whether a session may be interfered with again.
    fn may_poke(&self, id: Uuid) -> bool {
        let mut pokes = self.pokes.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, count) = pokes.get(&id).copied().map_or((None, 0), |(last, count)| (Some(last), count));
        let pause = POKE_PAUSE * 2_u32.pow(count.saturating_sub(1).min(POKE_DOUBLINGS_MAX));
        // Long at peace: its next trouble is a new one.
        let is_over = last.is_some_and(|last| last.elapsed() > pause * 4);
        let may = last.is_none_or(|last| last.elapsed() >= pause);
        if may {
            pokes.insert(id, (Instant::now(), if is_over { 1 } else { count + 1 }));
        }
        may
    }

    async fn show(&self) -> DbResult<()> {
        for (state, count) in self.store.count_sessions().await? {
            gauge!("posthaste_waha_sessions", "state" => state).set(gauge_of(count));
        }
        gauge!("posthaste_waha_unreachable_sessions").set(gauge_of(self.store.unreachable_sessions().await?));
        Ok(())
    }
}

impl Task for WahaSessions {
    const NAME: &'static str = "waha_sessions";
    const PERIOD: Duration = Duration::from_secs(2);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let sessions = self.store.take_checks(LIMIT).await?;
        if sessions.is_empty() {
            return Ok(Report::Done);
        }
        let report = if i64::try_from(sessions.len()) == Ok(LIMIT) { Report::More } else { Report::Done };
        let mut tenants: HashMap<TenantId, Vec<Session>> = HashMap::new();
        for session in sessions {
            tenants.entry(session.tenant).or_default().push(session);
        }
        let this = &*self;
        let turns = tenants.into_values().map(|sessions| this.turn(sessions));
        let results: Vec<DbResult<()>> = stream::iter(turns).buffer_unordered(TENANTS_MAX).collect().await;
        results.into_iter().collect::<DbResult<()>>()?;
        self.show().await?;
        Ok(report)
    }
}

/// What ends a comparison early.
enum FailureStreak {
    Waha(WahaError),
    Database(shared::db::DbError),
}

impl From<WahaError> for FailureStreak {
    fn from(error: WahaError) -> Self {
        Self::Waha(error)
    }
}

impl From<shared::db::DbError> for FailureStreak {
    fn from(error: shared::db::DbError) -> Self {
        Self::Database(error)
    }
}

/// A message of a chat's list as the event that should have told of it.
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
