//! Closes windows in which events gathered: each becomes one message, or nothing.
//!
//! Windows are held by a lock while they are closed, and what they became is accepted in the same transaction: two schedulers
//! share the work, and of one that dies in the middle nothing is left.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use metrics::{counter, describe_counter, describe_gauge};
use shared::{
    catalogue::{Catalogue, Catalogues, Rule},
    clock,
    compose::Notice,
    db::{
        DbError, DbResult, Store,
        accept::Acceptance,
        digests::{Closing, DueDigest, Ending, HeldDigest},
        poll::WorkKind,
        throttles::Ask,
    },
    dispatch::Dispatcher,
    domain::{Channel, Person, Reason, TenantId, Throttle},
    event_messages::{self, RenderError},
    faultpoint, template,
};
use tokio::task::{JoinError, spawn_blocking};
use uuid::Uuid;

use crate::{
    failure_streak::FAILURES,
    poller::Outlook,
    task::{Report, Task, TaskError, count_of},
};

/// Windows closed in one transaction: what gathers in them meanwhile waits for it, so it is short.
const LIMIT: i64 = 50;
/// Rows forgotten in a turn.
const FORGET_LIMIT: i64 = 1000;
/// How long closed windows are kept for whoever asks what became of one.
const KEEP_DAYS: i32 = 7;
/// When a window that cannot be told is tried again: somebody may mend the template.
const AGAIN: TimeDelta = TimeDelta::seconds(60);
/// How long the windows of one tenant may take to be written in one turn.
const TENANT_TIME_MAX: Duration = Duration::from_secs(1);
/// When the rest of its windows has its turn.
const CROWDED: TimeDelta = TimeDelta::seconds(5);
/// How long that goes on.
const PATIENCE: TimeDelta = TimeDelta::hours(1);
/// The source of messages that digests become.
const SOURCE: &str = "digest";

/// The task.
pub struct Digests {
    store: Store,
    catalogues: Catalogues,
    dispatcher: Dispatcher,
    outlook: Outlook,
    relay_after_ms: i32,
}

/// What is known about the windows of a turn before they are held.
struct Known {
    catalogues: HashMap<TenantId, Arc<Catalogue>>,
    people: HashMap<(TenantId, String), Person>,
    sessions: HashMap<TenantId, Option<Uuid>>,
}

/// How a window ended, as a metric has it.
#[derive(Clone, Copy)]
pub enum End {
    Told,
    Empty,
    Dropped,
    Unrenderable,
    PutOff,
}

/// Why windows could not be closed.
#[derive(Debug, thiserror::Error)]
enum CloseError {
    #[error(transparent)]
    Database(#[from] DbError),
    /// A defect of ours, which would meet the same window again in the next turn.
    #[error("what a window becomes could not be decided")]
    Undecided(#[from] JoinError),
}

impl End {
    /// Every value of the metric's label.
    pub const ALL: [Self; 5] = [Self::Told, Self::Empty, Self::Dropped, Self::Unrenderable, Self::PutOff];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Told => "told",
            Self::Empty => "empty",
            Self::Dropped => "dropped",
            Self::Unrenderable => "unrenderable",
            Self::PutOff => "put_off",
        }
    }
}

impl Digests {
    /// The relay takes over what is not published after `relay_after_ms`.
    pub fn new(store: Store, dispatcher: Dispatcher, outlook: Outlook, relay_after_ms: i32) -> Self {
        describe_counter!("posthaste_digests_closed_total", "Windows that ended, by how: told, empty, dropped …");
        describe_gauge!("posthaste_digest_lag_seconds", "How late the oldest window is that should be closed.");
        Self { catalogues: Catalogues::new(store.clone()), store, dispatcher, outlook, relay_after_ms }
    }

    /// Everything that needs a connection of its own is asked before windows are held.
    async fn known(&self, due: &[DueDigest]) -> DbResult<Known> {
        let mut known = Known { catalogues: HashMap::new(), people: HashMap::new(), sessions: HashMap::new() };
        let tenants: HashSet<TenantId> = due.iter().map(|digest| digest.tenant).collect();
        for tenant in tenants {
            // A copy that is a moment old might not know the rule yet, and its window would be dropped.
            let catalogue = self.catalogues.newest(tenant).await?;
            let by_whatsapp = |rule: &Arc<Rule>| rule.definition.channels.contains(&Channel::Whatsapp);
            if catalogue.rules.iter().any(by_whatsapp) {
                known.sessions.insert(tenant, self.store.usual_session(tenant).await?);
            }
            known.catalogues.insert(tenant, catalogue);
            let theirs = due.iter().filter(|digest| digest.tenant == tenant).map(|digest| digest.user_id.clone());
            let ids: HashSet<String> = theirs.collect();
            let people = self.store.people(tenant, ids.into_iter().collect()).await?;
            known.people.extend(people.into_iter().map(|(id, person)| ((tenant, id), person)));
        }
        Ok(known)
    }

    /// Closes windows together; where that fails for one of them, each alone, and what fails alone is put off.
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
            Err(error) => self.put_off(due, &error).await,
            Ok(()) => Ok(()),
        }
    }

    async fn close_alone(&self, one: &DueDigest) -> DbResult<()> {
        let due = std::slice::from_ref(one);
        match self.close_together(due).await {
            Err(CloseError::Database(error)) if error.is_unavailable() => Err(error),
            Err(error) => self.put_off(due, &error).await,
            Ok(()) => Ok(()),
        }
    }

    /// What fails alone for an hour ends without a message.
    async fn put_off(&self, due: &[DueDigest], error: &CloseError) -> DbResult<()> {
        counter!(FAILURES, "task" => Self::NAME).increment(1);
        let closing = self.store.hold_digests(due.iter().map(|digest| digest.id).collect()).await?;
        let (mut endings, mut ends) = (Vec::new(), Vec::new());
        for digest in &closing.digests {
            let (end, ending) = again_or_never(digest, clock::now());
            let (tenant, items, word) = (digest.tenant, digest.count, end.as_str());
            tracing::error!(digest = %digest.id, tenant.id = %tenant, items, end = word, %error, "a window cannot be closed");
            ends.push(end);
            endings.push((digest.id, ending));
        }
        closing.end(endings, self.relay_after_ms).await?;
        count_ends(&ends);
        Ok(())
    }

    async fn close_together(&self, due: &[DueDigest]) -> Result<(), CloseError> {
        let known = Arc::new(self.known(due).await?);
        // Templates take their time: not on this thread, and not while windows are held.
        let windows = self.store.closing_digests(due.iter().map(|digest| digest.id).collect()).await?;
        let knowing = Arc::clone(&known);
        let mut judged = spawn_blocking(move || knowing.judge(windows)).await?;
        let mut closing = self.store.hold_digests(judged.keys().copied().collect()).await?;
        let (mut endings, mut ends) = (Vec::new(), Vec::new());
        // Whoever takes places of the same throttles takes them in one order.
        let mut digests = std::mem::take(&mut closing.digests);
        digests.sort_by(|one, other| (one.rule, &one.user_id).cmp(&(other.rule, &other.user_id)));
        for digest in digests {
            // What changed since it was read stays due and is read again.
            let Some((_, decision)) = judged.remove(&digest.id).filter(|(before, _)| digest.is_still(before)) else {
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
        counter!("posthaste_digests_closed_total", "end" => end.as_str()).increment(1);
    }
}

/// What is to become of a window, as far as that needs no database.
enum Decision {
    /// Its end is settled.
    Ended(End, Ending),
    /// It is told, unless its throttle withholds it.
    Ready(Box<ReadyDigest>),
}

impl Decision {
    /// What becomes of a window that is held.
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
        Ok((End::Told, Ending::Told(Box::new(acceptance))))
    }
}

/// A message that only its throttle can still withhold.
struct ReadyDigest {
    notice: Notice,
    person: Person,
    throttle: Option<Throttle>,
}

impl Known {
    /// Writes what windows say. The time of a tenant whose templates are slow is bounded: the rest of its windows waits a little.
    fn judge(&self, windows: Vec<HeldDigest>) -> HashMap<Uuid, (HeldDigest, Decision)> {
        let mut spent: HashMap<TenantId, Duration> = HashMap::new();
        let mut judged = HashMap::with_capacity(windows.len());
        for window in windows {
            let spent = spent.entry(window.tenant).or_default();
            let began = Instant::now();
            let decision = match *spent < TENANT_TIME_MAX {
                true => self.decide(&window, clock::now()),
                false => Decision::Ended(End::PutOff, Ending::Later { at: clock::now() + CROWDED, is_end: false }),
            };
            *spent += began.elapsed();
            judged.insert(window.id, (window, decision));
        }
        judged
    }

    /// Told, or not, or not yet.
    fn decide(&self, digest: &HeldDigest, now: DateTime<Utc>) -> Decision {
        if digest.count == 0 {
            return Decision::Ended(End::Empty, Ending::Silent);
        }
        let Some((catalogue, rule)) = self.rule(digest) else {
            let (rule, items) = (digest.rule, digest.count);
            if self.catalogues.get(&digest.tenant).is_some_and(|catalogue| catalogue.unread_rules.contains(&rule)) {
                return put_off(digest, "rule", now);
            }
            tracing::info!(%rule, items, "dropped a window: its rule is gone or switched off");
            return Decision::Ended(End::Dropped, Ending::Silent);
        };
        let unknown = || Person::unknown(&digest.user_id);
        let person = self.people.get(&(digest.tenant, digest.user_id.clone())).cloned().unwrap_or_else(unknown);
        if let Some(at) = moved(digest, &rule, &person, now) {
            return Decision::Ended(End::PutOff, Ending::Later { at, is_end: true });
        }
        let mut notice = match notice(catalogue, &rule, digest, &person, now) {
            Ok(notice) => notice,
            Err(_) if catalogue.unread_templates.contains(&rule.definition.template_name) => {
                return put_off(digest, "template", now);
            }
            Err(untold) => {
                let (end, ending) = unrenderable(digest, &untold, now);
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

/// When a window closes after all, if its person lives by another clock meanwhile, or the rule by another schedule. Never sooner:
/// what was to close by now closes now.
fn moved(digest: &HeldDigest, rule: &Rule, person: &Person, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
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

/// A window whose rule or template a newer version wrote waits for a scheduler that can read it; nothing of it is dropped.
fn put_off(digest: &HeldDigest, what: &str, now: DateTime<Utc>) -> Decision {
    let (rule, items) = (digest.rule, digest.count);
    tracing::warn!(%rule, items, what, "a window waits: this version cannot read its rule or template");
    Decision::Ended(End::PutOff, Ending::Later { at: now + AGAIN, is_end: false })
}

fn unrenderable(digest: &HeldDigest, untold: &RenderError, now: DateTime<Utc>) -> (End, Ending) {
    let (rule, items, RenderError { field, message }) = (digest.rule, digest.count, untold);
    let (end, ending) = again_or_never(digest, now);
    if matches!(end, End::Unrenderable) {
        tracing::error!(%rule, items, field, message, "dropped a window that could not be told for an hour");
    } else {
        tracing::warn!(%rule, items, field, message, "a window cannot be told; it is tried again in a minute");
    }
    (end, ending)
}

/// A window that fails is tried again for a while, then it ends.
fn again_or_never(digest: &HeldDigest, now: DateTime<Utc>) -> (End, Ending) {
    if now > digest.latest_at + PATIENCE {
        return (End::Unrenderable, Ending::Silent);
    }
    (End::PutOff, Ending::Later { at: now + AGAIN, is_end: false })
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
        let due = self.store.due_digests(LIMIT, &self.outlook.floors()).await?;
        if !due.is_empty() {
            self.close(&due).await?;
        }
        Ok(if count_of(due.len()) >= LIMIT.unsigned_abs() { Report::More } else { Report::Done })
    }
}

/// The task that forgets closed windows and throttles that say nothing any more.
pub struct DigestForgets(pub Store);

impl Task for DigestForgets {
    const NAME: &'static str = "digest_forgets";
    const PERIOD: Duration = Duration::from_secs(600);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let windows = self.0.forget_digests(KEEP_DAYS, FORGET_LIMIT).await?;
        let throttles = self.0.forget_throttles(FORGET_LIMIT).await?;
        let is_full = |rows: usize| count_of(rows) >= FORGET_LIMIT.unsigned_abs();
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
        // Opened in the evening of Vienna, to close at 8:00 there.
        let window = window("2026-01-31T19:00:00Z", "2026-02-01T07:00:00Z");
        let daily = rule(json!({"cron": "0 8 * * *"}));
        let now = at("2026-02-01T07:00:00.1Z");
        assert_eq!(moved(&window, &daily, &living_in("Europe/Vienna"), now), None);
        let in_lisbon = moved(&window, &daily, &living_in("Europe/Lisbon"), now);
        assert_eq!(in_lisbon, Some(at("2026-02-01T08:00:00Z")));
        assert_eq!(moved(&window, &daily, &living_in("Europe/Lisbon"), at("2026-02-01T08:00:00.1Z")), None, "once");
        assert_eq!(moved(&window, &daily, &living_in("Asia/Tokyo"), now), None, "morning was hours ago: now");
        let full = HeldDigest { is_full: true, ..window.clone() };
        assert_eq!(moved(&full, &daily, &living_in("Europe/Lisbon"), now), None, "a full one waits for no clock");
        assert_eq!(moved(&window, &rule(json!({"window_seconds": 60})), &living_in("Europe/Lisbon"), now), None);
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
        let untold = RenderError { field: "name".to_owned(), message: "is missing".to_owned() };
        let later =
            |now: &str| matches!(unrenderable(&window, &untold, at(now)).1, Ending::Later { is_end: false, .. });
        assert!(later("2026-02-01T07:00:01Z") && later("2026-02-01T08:00:00Z"));
        assert!(!later("2026-02-01T08:00:01Z"));
        let ends = |now: &str| again_or_never(&window, at(now)).0.as_str();
        assert_eq!([ends("2026-02-01T08:00:00Z"), ends("2026-02-01T08:00:01Z")], ["put_off", "unrenderable"]);
    }
}
