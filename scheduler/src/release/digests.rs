//! Closes digest windows: the events of each window become one message, or none.
//!
//! Windows are locked while they are closed, and their messages are accepted in the same transaction. So two schedulers
//! share the work, and one that dies in between leaves no trace.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use content::{
    catalogue::{Catalogue, Rule},
    compose::Notice,
    event_messages::{self, RenderError},
    template,
};
use deliveries::{
    Deliveries,
    digests::{Closing, DueDigest, Ending, HeldDigest},
    poll::WorkKind,
    throttles::Ask,
};
use domain::{Channel, Person, Reason, TenantId, Throttle, acceptance::Acceptance, clock};
use engine::dispatch::Dispatcher;
use metrics::counter;
use records::{Records, catalogue::Catalogues};
use runtime::{faultpoint, metric};
use store::{DbError, DbResult, Store};
use tokio::task::{JoinError, spawn_blocking};
use uuid::Uuid;

use crate::{
    due_times::DueTimes,
    task::{Report, Task, TaskError, count_of},
};

/// Windows closed in one transaction. It must be short, because new events of these windows wait for it.
const LIMIT: i64 = 50;
/// Rows deleted in one turn.
const PRUNE_LIMIT: i64 = 1000;
/// How long closed windows are kept, so that their result can be looked up.
const KEEP_DAYS: i32 = 7;
/// The pause before a window that cannot be rendered is retried: someone may fix the template.
const RETRY_PAUSE: TimeDelta = TimeDelta::seconds(60);
/// The longest rendering time for the windows of one tenant in one turn.
const TENANT_TIME_MAX: Duration = Duration::from_secs(1);
/// The pause before the tenant's other windows get their turn.
const TENANT_PAUSE: TimeDelta = TimeDelta::seconds(5);
/// How long a failing window is retried.
const RETRY_MAX: TimeDelta = TimeDelta::hours(1);
/// The source of messages from digests.
const SOURCE: &str = "digest";

/// The task that closes windows.
pub struct Digests {
    store: Store,
    catalogues: Catalogues,
    dispatcher: Dispatcher,
    due_times: DueTimes,
    relay_after_ms: i32,
}

/// Data about the windows of a turn, loaded before they are locked.
struct WindowContext {
    catalogues: HashMap<TenantId, Arc<Catalogue>>,
    people: HashMap<(TenantId, String), Person>,
    sessions: HashMap<TenantId, Option<Uuid>>,
}

/// How a window ended, as a metric label.
#[derive(Clone, Copy)]
pub enum End {
    Sent,
    Empty,
    Dropped,
    Unrenderable,
    Postponed,
}

/// Why windows could not be closed.
#[derive(Debug, thiserror::Error)]
enum CloseError {
    #[error(transparent)]
    Database(#[from] DbError),
    /// A bug of Posthaste. The next turn would meet the same window again.
    #[error("what a window becomes could not be decided")]
    Undecided(#[from] JoinError),
}

impl End {
    /// Every value of the metric label.
    pub const ALL: [Self; 5] = [Self::Sent, Self::Empty, Self::Dropped, Self::Unrenderable, Self::Postponed];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "told",
            Self::Empty => "empty",
            Self::Dropped => "dropped",
            Self::Unrenderable => "unrenderable",
            Self::Postponed => "put_off",
        }
    }
}

impl Digests {
    /// The relay publishes what this task has not published after `relay_after_ms`.
    pub fn new(store: Store, dispatcher: Dispatcher, due_times: DueTimes, relay_after_ms: i32) -> Self {
        Self { catalogues: Catalogues::new(store.clone()), store, dispatcher, due_times, relay_after_ms }
    }

    /// Loads everything that needs a connection of its own, before windows are locked.
    async fn load_context(&self, due: &[DueDigest]) -> DbResult<WindowContext> {
        let mut known = WindowContext { catalogues: HashMap::new(), people: HashMap::new(), sessions: HashMap::new() };
        let tenants: HashSet<TenantId> = due.iter().map(|digest| digest.tenant).collect();
        for tenant in tenants {
            // A cached copy might not have the rule yet, and its window would be dropped.
            let catalogue = self.catalogues.newest(tenant).await?;
            let by_whatsapp = |rule: &Arc<Rule>| rule.definition.channels.contains(&Channel::Whatsapp);
            if catalogue.rules.iter().any(by_whatsapp) {
                known.sessions.insert(tenant, self.store.rules().usual_session(tenant).await?);
            }
            known.catalogues.insert(tenant, catalogue);
            let theirs = due.iter().filter(|digest| digest.tenant == tenant).map(|digest| digest.user_id.clone());
            let ids: HashSet<String> = theirs.collect();
            let people = self.store.people().load(tenant, ids.into_iter().collect()).await?;
            known.people.extend(people.into_iter().map(|(id, person)| ((tenant, id), person)));
        }
        Ok(known)
    }

    /// Closes windows together. If that fails, it closes each one alone, and delays those that fail alone.
    async fn close(&self, due: &[DueDigest]) -> DbResult<()> {
        match self.close_together(due).await {
            Err(CloseError::Database(error)) if error.is_unavailable() => Err(error),
            Err(error) if due.len() > 1 => {
                tracing::warn!(%error, "windows could not be closed together; each is closed alone");
                for one in due {
                    self.close_alone(one).await?;
                }
                Ok(())
            }
            Err(error) => self.postpone(due, &error).await,
            Ok(()) => Ok(()),
        }
    }

    async fn close_alone(&self, one: &DueDigest) -> DbResult<()> {
        let due = std::slice::from_ref(one);
        match self.close_together(due).await {
            Err(CloseError::Database(error)) if error.is_unavailable() => Err(error),
            Err(error) => self.postpone(due, &error).await,
            Ok(()) => Ok(()),
        }
    }

    /// Delays windows that failed alone. After an hour of failures they end without a message.
    async fn postpone(&self, due: &[DueDigest], error: &CloseError) -> DbResult<()> {
        counter!(metric::TASK_FAILURES, "task" => Self::NAME).increment(1);
        let closing = self.store.digests().hold(due.iter().map(|digest| digest.id).collect()).await?;
        let (mut endings, mut ends) = (Vec::new(), Vec::new());
        for digest in &closing.digests {
            let (end, ending) = retry_or_end(digest, clock::now());
            let (tenant, items, label) = (digest.tenant, digest.count, end.as_str());
            tracing::error!(digest = %digest.id, tenant.id = %tenant, items, end = label, %error, "a window cannot be closed");
            ends.push(end);
            endings.push((digest.id, ending));
        }
        closing.end(endings, self.relay_after_ms).await?;
        count_ends(&ends);
        Ok(())
    }

    async fn close_together(&self, due: &[DueDigest]) -> Result<(), CloseError> {
        let known = Arc::new(self.load_context(due).await?);
        // Rendering takes time: it runs on a blocking thread, and while no window is locked.
        let windows = self.store.digests().closing(due.iter().map(|digest| digest.id).collect()).await?;
        let deciding = Arc::clone(&known);
        let mut decided = spawn_blocking(move || deciding.decide_all(windows)).await?;
        let mut closing = self.store.digests().hold(decided.keys().copied().collect()).await?;
        let (mut endings, mut ends) = (Vec::new(), Vec::new());
        // All schedulers take throttle permits in the same order, which avoids deadlocks.
        let mut digests = std::mem::take(&mut closing.digests);
        digests.sort_by(|one, other| (one.rule, &one.user_id).cmp(&(other.rule, &other.user_id)));
        for digest in digests {
            // A window that changed since it was read stays due and is read again.
            let Some((_, decision)) = decided.remove(&digest.id).filter(|(before, _)| digest.is_still(before)) else {
                continue;
            };
            let (end, ending) = decision.ending(&mut closing, &digest).await?;
            ends.push(end);
            endings.push((digest.id, ending));
        }
        let dispatch = closing.end(endings, self.relay_after_ms).await?;
        faultpoint::pass(faultpoint::AFTER_CLOSE);
        dispatch.into_iter().for_each(|dispatch| self.dispatcher.post(dispatch));
        count_ends(&ends);
        Ok(())
    }
}

fn count_ends(ends: &[End]) {
    for end in ends {
        counter!(metric::DIGESTS_CLOSED, "end" => end.as_str()).increment(1);
    }
}

/// The decision about a window, made without the database.
enum Decision {
    /// The end is final.
    Ended(End, Ending),
    /// Send it, unless its throttle withholds it.
    Ready(Box<ReadyDigest>),
}

impl Decision {
    /// Computes the end of a locked window.
    async fn ending(self, closing: &mut Closing, digest: &HeldDigest) -> DbResult<(End, Ending)> {
        let ReadyDigest { mut notice, person, throttle } = match self {
            Self::Ended(end, ending) => return Ok((end, ending)),
            Self::Ready(ready) => *ready,
        };
        if let Some(throttle) = throttle
            && !is_granted(closing, digest, throttle).await?
        {
            notice.content.withheld = Some(Reason::Throttled);
        }
        let content = serde_json::to_vec(&notice.content).unwrap_or_default();
        let acceptance = Acceptance {
            tenant: digest.tenant,
            source: SOURCE,
            request_id: None,
            traceparent: None,
            key: None,
            bulk: None,
            messages: vec![notice.to(&person, Some(content))],
            beside: Vec::new(),
            room_in: None,
        };
        Ok((End::Sent, Ending::Told(Box::new(acceptance))))
    }
}

/// A rendered message that only its throttle can still withhold.
struct ReadyDigest {
    notice: Notice,
    person: Person,
    throttle: Option<Throttle>,
}

impl WindowContext {
    /// Renders windows. The time for each tenant is bounded, so that slow templates of one tenant do not delay the
    /// others: its other windows wait for [`TENANT_PAUSE`].
    fn decide_all(&self, windows: Vec<HeldDigest>) -> HashMap<Uuid, (HeldDigest, Decision)> {
        let mut spent: HashMap<TenantId, Duration> = HashMap::new();
        let mut decided = HashMap::with_capacity(windows.len());
        for window in windows {
            let spent = spent.entry(window.tenant).or_default();
            let began = Instant::now();
            let decision = match *spent < TENANT_TIME_MAX {
                true => self.decide(&window, clock::now()),
                false => {
                    Decision::Ended(End::Postponed, Ending::Later { at: clock::now() + TENANT_PAUSE, is_end: false })
                }
            };
            *spent += began.elapsed();
            decided.insert(window.id, (window, decision));
        }
        decided
    }

    /// Decides whether to send, drop or delay a window.
    fn decide(&self, digest: &HeldDigest, now: DateTime<Utc>) -> Decision {
        if digest.count == 0 {
            return Decision::Ended(End::Empty, Ending::Silent);
        }
        let Some((catalogue, rule)) = self.rule(digest) else {
            let (rule, items) = (digest.rule, digest.count);
            if self.catalogues.get(&digest.tenant).is_some_and(|catalogue| catalogue.unread_rules.contains(&rule)) {
                return postpone(digest, "rule", now);
            }
            tracing::info!(%rule, items, "dropped a window: its rule is gone or switched off");
            return Decision::Ended(End::Dropped, Ending::Silent);
        };
        let unknown = || Person::unknown(&digest.user_id);
        let person = self.people.get(&(digest.tenant, digest.user_id.clone())).cloned().unwrap_or_else(unknown);
        if let Some(at) = rescheduled_at(digest, &rule, &person, now) {
            return Decision::Ended(End::Postponed, Ending::Later { at, is_end: true });
        }
        let mut notice = match notice(catalogue, &rule, digest, &person, now) {
            Ok(notice) => notice,
            Err(_) if catalogue.unread_templates.contains(&rule.definition.template_name) => {
                return postpone(digest, "template", now);
            }
            Err(error) => {
                let (end, ending) = unrenderable(digest, &error, now);
                return Decision::Ended(end, ending);
            }
        };
        notice.lane = event_messages::lane_of_digest(notice.lane);
        notice.session = self.sessions.get(&digest.tenant).copied().flatten();
        Decision::Ready(Box::new(ReadyDigest { notice, person, throttle: rule.definition.throttle }))
    }

    fn rule(&self, digest: &HeldDigest) -> Option<(&Catalogue, Arc<Rule>)> {
        let catalogue = self.catalogues.get(&digest.tenant)?;
        Some((&**catalogue, Arc::clone(catalogue.rule(digest.rule)?)))
    }
}

/// The new closing time, if the person's time zone or the rule's schedule changed while the window was open. A window
/// that is due now never closes earlier than planned: it closes now.
fn rescheduled_at(digest: &HeldDigest, rule: &Rule, person: &Person, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let of_rule = rule.definition.digest.as_ref().filter(|_| !digest.is_full)?;
    of_rule.scheduled(digest.opened_at, person.zone()).filter(|at| *at > now)
}

fn notice(
    catalogue: &Catalogue,
    rule: &Rule,
    digest: &HeldDigest,
    person: &Person,
    now: DateTime<Utc>,
) -> Result<Notice, RenderError> {
    let items = digest.items.iter().map(|item| serde_json::from_slice(item).unwrap_or_default()).collect();
    let variables = event_messages::variables_of_digest(digest.count, items, &digest.event_type, person);
    event_messages::notice(catalogue, rule, &digest.event_type, (&variables, template::deadline()), now)
}

/// Delays a window whose rule or template a newer version wrote, until a scheduler can read it. Nothing is dropped.
fn postpone(digest: &HeldDigest, what: &str, now: DateTime<Utc>) -> Decision {
    let (rule, items) = (digest.rule, digest.count);
    tracing::warn!(%rule, items, what, "a window waits: this version cannot read its rule or template");
    Decision::Ended(End::Postponed, Ending::Later { at: now + RETRY_PAUSE, is_end: false })
}

fn unrenderable(digest: &HeldDigest, error: &RenderError, now: DateTime<Utc>) -> (End, Ending) {
    let (rule, items, RenderError { field, message }) = (digest.rule, digest.count, error);
    let (end, ending) = retry_or_end(digest, now);
    if matches!(end, End::Unrenderable) {
        tracing::error!(%rule, items, field, message, "dropped a window that could not be told for an hour");
    } else {
        tracing::warn!(%rule, items, field, message, "a window cannot be told; it is tried again in a minute");
    }
    (end, ending)
}

/// Retries a failing window for [`RETRY_MAX`] after its latest event, then ends it.
fn retry_or_end(digest: &HeldDigest, now: DateTime<Utc>) -> (End, Ending) {
    if now > digest.latest_at + RETRY_MAX {
        return (End::Unrenderable, Ending::Silent);
    }
    (End::Postponed, Ending::Later { at: now + RETRY_PAUSE, is_end: false })
}

async fn is_granted(closing: &mut Closing, digest: &HeldDigest, throttle: Throttle) -> DbResult<bool> {
    let rules = vec![(digest.rule, throttle)];
    let ask = Ask { tenant: digest.tenant, user_id: digest.user_id.clone(), rules, taker: digest.id };
    Ok(closing.take_throttles(ask).await?.contains_key(&digest.rule))
}

impl Task for Digests {
    const NAME: &'static str = "digests";
    const PERIOD: Duration = Duration::from_millis(250);
    const WORK: Option<WorkKind> = Some(WorkKind::Digests);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let due = self.store.digests().due(LIMIT, &self.due_times.floors()).await?;
        if !due.is_empty() {
            self.close(&due).await?;
        }
        Ok(if count_of(due.len()) >= LIMIT.unsigned_abs() { Report::More } else { Report::Done })
    }
}

/// The task that deletes closed windows and expired throttles.
pub struct DigestPruning(pub Store);

impl Task for DigestPruning {
    const NAME: &'static str = "digest_forgets";
    const PERIOD: Duration = Duration::from_secs(600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let windows = self.0.digests().prune(KEEP_DAYS, PRUNE_LIMIT).await?;
        let throttles = self.0.throttles().prune(PRUNE_LIMIT).await?;
        let is_full = |rows: usize| count_of(rows) >= PRUNE_LIMIT.unsigned_abs();
        Ok(if is_full(windows) || is_full(throttles) { Report::More } else { Report::Done })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn window(opened: &str, closes: &str) -> HeldDigest {
        HeldDigest {
            id: Uuid::now_v7(),
            tenant: TenantId(1),
            rule: Uuid::now_v7(),
            user_id: "ada".to_owned(),
            count: 1,
            is_full: false,
            event_type: "x".to_owned(),
            opened_at: at(opened),
            closes_at: at(closes),
            latest_at: at(closes),
            items: Vec::new(),
        }
    }

    fn rule(digest: serde_json::Value) -> Rule {
        let definition = json!({"template_name": "t", "channels": ["email"], "digest": digest});
        let definition = serde_json::from_value(definition).unwrap();
        Rule { id: Uuid::now_v7(), name: "r".to_owned(), event_type: "x".to_owned(), definition }
    }

    fn living_in(zone: &str) -> Person {
        Person { time_zone: zone.parse().ok(), ..Person::unknown("ada") }
    }

    #[test]
    fn whoever_moves_while_a_window_is_open_is_told_in_the_new_morning() {
        // Opened in the evening in Vienna, closes at 8:00 there.
        let window = window("2026-01-31T19:00:00Z", "2026-02-01T07:00:00Z");
        let daily = rule(json!({"cron": "0 8 * * *"}));
        let now = at("2026-02-01T07:00:00.1Z");
        assert_eq!(rescheduled_at(&window, &daily, &living_in("Europe/Vienna"), now), None);
        let in_lisbon = rescheduled_at(&window, &daily, &living_in("Europe/Lisbon"), now);
        assert_eq!(in_lisbon, Some(at("2026-02-01T08:00:00Z")));
        assert_eq!(
            rescheduled_at(&window, &daily, &living_in("Europe/Lisbon"), at("2026-02-01T08:00:00.1Z")),
            None,
            "once"
        );
        assert_eq!(rescheduled_at(&window, &daily, &living_in("Asia/Tokyo"), now), None, "morning was hours ago: now");
        let full = HeldDigest { is_full: true, ..window.clone() };
        assert_eq!(
            rescheduled_at(&full, &daily, &living_in("Europe/Lisbon"), now),
            None,
            "a full one waits for no clock"
        );
        assert_eq!(
            rescheduled_at(&window, &rule(json!({"window_seconds": 60})), &living_in("Europe/Lisbon"), now),
            None
        );
    }

    #[tokio::test]
    async fn a_panic_while_windows_are_decided_is_an_error_and_not_the_databases() {
        let decided = spawn_blocking(|| assert!(at("2026-02-01T07:00:00Z") < at("2026-01-01T07:00:00Z"))).await;
        let error = decided.map_err(CloseError::from).unwrap_err();
        assert!(matches!(error, CloseError::Undecided(_)), "{error}");
    }

    #[test]
    fn what_cannot_be_told_is_tried_again_for_an_hour() {
        let window = window("2026-01-31T19:00:00Z", "2026-02-01T07:00:00Z");
        let error = RenderError { field: "name".to_owned(), message: "is missing".to_owned() };
        let later = |now: &str| matches!(unrenderable(&window, &error, at(now)).1, Ending::Later { is_end: false, .. });
        assert!(later("2026-02-01T07:00:01Z") && later("2026-02-01T08:00:00Z"));
        assert!(!later("2026-02-01T08:00:01Z"));
        let ends = |now: &str| retry_or_end(&window, at(now)).0.as_str();
        assert_eq!([ends("2026-02-01T08:00:00Z"), ends("2026-02-01T08:00:01Z")], ["put_off", "unrenderable"]);
    }
}
