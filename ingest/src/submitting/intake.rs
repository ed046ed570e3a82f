//! Consumes submissions that other backends publish to RabbitMQ: with the same bodies, validator and commit as over HTTP.
//!
//! A message is acknowledged once it is committed, or once its copy is confirmed in the dead letter queue. While the
//! database or the broker is down it stays unacknowledged, and the broker keeps it. A message that fails for a reason of
//! its own is retried a few times beside the others, then it is dead-lettered.

use std::{borrow::Cow, sync::Arc, time::Duration};

use actix_web::{ResponseError, http::StatusCode, web::Data};
use broker::{
    self, Acker, Broker, Consumer, ConsumerHealth, Delivery, Headers, INTAKE_HIGH, INTAKE_STD, Outgoing, Publisher,
    USER_ID,
};
use deliveries::{Deliveries, accept::Accepted};
use domain::{
    Channel, DeadReason, Lane, Publishers, RequireMapping, TenantId,
    acceptance::Acceptance,
    contract::submission::{Draft, FieldError, Submission},
    replay::{self, Replayed},
};
use futures_util::{StreamExt, stream};
use records::Records;
use runtime::{metric, reconnect::Reconnect, telemetry::TraceContext};
use submission::{
    AMQP, Submissions,
    accept::{AcceptError, AcceptResult},
    envelope::{Origin, RequestKey},
    http::key_taken,
    idempotency::{self, Kind},
    pipeline::{Prepared, build_message, prepare},
};
use tokio::{
    sync::OnceCell,
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;
use web::{
    body::is_json,
    cache::Cache,
    problem::{Code, Problem},
    query_runner::QueryRunner,
};

/// Largest body, in bytes. Larger content belongs behind a link or goes over HTTP.
const BODY_BYTES_MAX: usize = 256 * 1024;
/// Unacknowledged messages per queue: two batches, so that one waits while the other is committed.
const PREFETCH: u16 = 256;
/// Most messages of one commit.
const BATCH_MAX: usize = 128;
/// Messages checked concurrently: some of them look up a person's addresses in the database.
const CHECKED_TOGETHER: usize = 4;
/// Bound on checking one message. Look-ups take a few milliseconds.
const CHECK_WAIT: Duration = Duration::from_secs(2);
/// Most tries of a message that fails for a reason of its own: with their pauses about two minutes.
const OWN_TRIES_MAX: u32 = 10;
/// How long the mapping of broker users to tenants is cached; it is a small table.
const USERS_TTL: Duration = Duration::from_secs(5);
/// Replies never go to our own queues, whatever `reply_to` says: they would be read as submissions or work.
const OWN_PREFIX: &str = "posthaste.";
/// Prefix of queues that the broker named. Their names cannot be guessed, so every publisher may get replies there.
const SERVER_NAMED: &str = "amq.";

/// Accepts submissions from the broker.
pub struct Intake {
    submissions: Data<Submissions>,
    publisher: Publisher,
    /// Publishes replies. The broker closes its channel if the user may not publish to the default exchange, so it must not
    /// be shared.
    replies: Publisher,
    users: Users,
    replay_key: OnceCell<replay::Key>,
}

/// Maps broker users to the tenants that they may publish for.
struct Users {
    queries: QueryRunner,
    require: RequireMapping,
    remembered: Cache<(), Arc<Publishers>>,
}

impl Users {
    async fn publishers(&self) -> Result<Arc<Publishers>, Problem> {
        if let Some(publishers) = self.remembered.get(&()) {
            return Ok(publishers);
        }
        let users = self.queries.run(async |store| store.tenants().amqp_users().await).await?;
        let publishers = Arc::new(Publishers::new(users, self.require));
        self.remembered.put((), Arc::clone(&publishers), USERS_TTL);
        Ok(publishers)
    }
}

/// The consumers of the intake queues.
pub struct Consumers(Vec<Consumer>);

impl Consumers {
    /// Opens one consumer per intake queue.
    pub fn open(broker: &Broker, stop: &CancellationToken) -> Self {
        Self([INTAKE_HIGH, INTAKE_STD].map(|queue| Consumer::open(broker, queue, PREFETCH, stop)).into())
    }

    /// The health of each consumer.
    pub fn health(&self) -> Vec<Arc<ConsumerHealth>> {
        self.0.iter().map(Consumer::health).collect()
    }
}

/// Consumes submissions until stopped, then finishes the current batches.
pub async fn run(intake: Arc<Intake>, consumers: Consumers, stop: CancellationToken) {
    let mut queues = JoinSet::new();
    for consumer in consumers.0 {
        queues.spawn(consume(Arc::clone(&intake), consumer, stop.clone()));
    }
    while queues.join_next().await.is_some() {}
}

async fn consume(intake: Arc<Intake>, mut consumer: Consumer, stop: CancellationToken) {
    let (health, acker) = (consumer.health(), consumer.acker());
    let mut queue =
        QueueIntake { intake: &intake, name: health.queue(), acker: &acker, waiting: Vec::new(), accepted_at: None };
    loop {
        let due = queue.next_due();
        tokio::select! {
            batch = consumer.next_batch(BATCH_MAX, Duration::ZERO) => match batch {
                Some(batch) => queue.settle(batch.into_iter().map(Held::new).collect()).await,
                None => break,
            },
            () = sleep_until(due) => {
                let held = queue.take_due();
                queue.settle(held).await;
            }
        }
        if stop.is_cancelled() {
            break;
        }
    }
    queue.waiting.iter().for_each(|held| acker.requeue(held.delivery.tag));
    consumer.cancel().await;
    acker.flush().await;
}

/// A message that was delivered and is not yet acknowledged.
struct Held {
    delivery: Delivery,
    /// Whether its publisher may get replies in the queue of `reply_to`, even if the broker did not name that queue.
    may_be_answered: bool,
    /// Tries that failed for a reason of the message's own.
    own_tries: u32,
    /// When its last try ended.
    tried_at: Option<Instant>,
    /// When the next try is due.
    due: Instant,
    pauses: Reconnect,
}

impl Held {
    fn new(delivery: Delivery) -> Self {
        Self {
            delivery,
            may_be_answered: false,
            own_tries: 0,
            tried_at: None,
            due: Instant::now(),
            pauses: Reconnect::new(),
        }
    }
}

/// The result of checking a message.
enum Decision {
    Accept(Box<Acceptance>, Vec<u8>),
    /// Its key was accepted before, with this answer.
    Repeat(Vec<u8>),
    Refuse(Refusal),
    Later(HoldReason),
}

/// Why a message cannot be settled now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HoldReason {
    /// The database or the broker is down.
    Server,
    /// A look-up failed: either the database is down, or only this tenant's data is affected.
    LookUp,
    /// An internal error while this message was checked.
    Message,
    /// The same, before its publisher was known to be allowed for the tenant that it names.
    Publisher,
}

impl HoldReason {
    /// Whether the failure counts against the message. A failed look-up counts if other messages were accepted since the
    /// last try, because then the database works.
    fn is_own(self, tried_at: Option<Instant>, accepted_at: Option<Instant>) -> bool {
        match self {
            Self::Server => false,
            Self::LookUp => tried_at.is_some() && accepted_at > tried_at,
            Self::Message | Self::Publisher => true,
        }
    }

    /// The reason of the dead letter if the tries are used up. A dead letter of an unverified publisher is shown to no
    /// tenant.
    fn dead_reason(self) -> DeadReason {
        if self == Self::Publisher { DeadReason::Tenant } else { DeadReason::Poison }
    }
}

/// Why a message is not accepted.
enum Unaccepted {
    Refused(Refusal),
    Later(HoldReason),
}

impl From<Refusal> for Unaccepted {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Conversion from a failed look-up.
impl From<Problem> for Unaccepted {
    fn from(problem: Problem) -> Self {
        let is_server = problem.status_code() == StatusCode::SERVICE_UNAVAILABLE;
        Self::Later(if is_server { HoldReason::LookUp } else { HoldReason::Message })
    }
}

/// Why a message is refused: `detail` for people and the dead letter, `problem` for the publisher.
struct Refusal {
    reason: DeadReason,
    detail: String,
    problem: Problem,
}

impl Refusal {
    fn schema(detail: impl Into<String>, problem: Problem) -> Self {
        Self { reason: DeadReason::Schema, detail: detail.into(), problem }
    }

    fn invalid(errors: Vec<FieldError>) -> Self {
        Self::schema(describe(&errors), Problem::validation(errors))
    }

    fn malformed(error: FieldError) -> Self {
        Self::schema(describe_malformed(&error), Problem::malformed(error))
    }

    fn tenant(detail: String) -> Self {
        let problem = Problem::new(Code::Forbidden, format!("Publish as a user of that tenant: {detail}."));
        Self { reason: DeadReason::Tenant, detail, problem }
    }
}

/// Lists the fields and their faults.
fn describe(errors: &[FieldError]) -> String {
    let describe_one = |error: &FieldError| format!("{}: {}", error.field, error.message);
    errors.iter().map(describe_one).collect::<Vec<_>>().join("; ")
}

/// Why a body cannot be read. The parser's messages quote content, and content must not be in a dead letter's detail: of all but
/// those about the name of a field only the position is kept.
fn describe_malformed(error: &FieldError) -> String {
    let FieldError { field, message, .. } = error;
    // Below the first name a path may hold keys of the publisher's own.
    let field = field.split(['.', '[']).next().unwrap_or_default();
    let is_about_name =
        ["unknown field", "missing field", "duplicate field"].iter().any(|lead| message.starts_with(lead));
    match field {
        "body" => format!("body: is no JSON of a submission{}", position(message)),
        _ if is_about_name => format!("{field}: {}", message.split(", expected").next().unwrap_or_default()),
        _ => format!("{field}: is of a wrong type or form{}", position(message)),
    }
}

fn position(message: &str) -> String {
    message.rfind(" at line ").and_then(|start| message.get(start..)).unwrap_or_default().to_owned()
}

/// The parts of a routing key `<tenant>.<channel>.<lane>` after the tenant.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    channel: Channel,
    lane: Lane,
}

impl Key {
    fn parse(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split('.').collect();
        let [_, channel, lane] = words[..] else {
            return Err("routing key: must be <tenant>.<channel>.<lane>".to_owned());
        };
        let channel = channel.parse().map_err(|unknown| format!("routing key: the channel {unknown}"))?;
        let lane = lane.parse().map_err(|unknown| format!("routing key: the lane {unknown}"))?;
        Ok(Self { channel, lane })
    }
}

/// The publisher of a message, and its routing key.
struct ClaimedPublisher<'a> {
    key: &'a str,
    user: Option<&'a str>,
    /// The publisher was checked when the message first came, and its name is no longer known.
    is_checked: bool,
}

impl<'a> ClaimedPublisher<'a> {
    /// The publisher as the broker verified it.
    fn of(delivery: &'a Delivery) -> Self {
        Self { key: &delivery.routing_key, user: delivery.properties.user_id(), is_checked: false }
    }

    /// The publisher according to a replayed dead letter. Trust it only after checking the proof.
    fn replayed(delivery: &'a Delivery) -> Self {
        let user = delivery.properties.header(USER_ID);
        Self { key: &delivery.routing_key, user: user.filter(|user| !user.is_empty()), is_checked: user.is_none() }
    }
}

/// A publisher that may publish for the tenant of its routing key.
struct Admitted<'a> {
    key: &'a str,
    tenant: TenantId,
    may_be_answered: bool,
}

impl Intake {
    /// Accepts with `submissions`, publishes dead letters with `publisher` and replies with `replies`.
    pub fn new(
        submissions: Data<Submissions>,
        publisher: Publisher,
        replies: Publisher,
        require: RequireMapping,
    ) -> Self {
        let users = Users { queries: submissions.web.queries.clone(), require, remembered: Cache::new(1) };
        Self { submissions, publisher, replies, users, replay_key: OnceCell::new() }
    }

    async fn decide(&self, held: &mut Held) -> Decision {
        let (until, delivery) = (Instant::now() + CHECK_WAIT, &held.delivery);
        held.may_be_answered = false;
        let admitted = match timeout_at(until, self.admit(delivery)).await {
            Ok(Ok(admitted)) => admitted,
            Ok(Err(Unaccepted::Refused(refusal))) => return Decision::Refuse(refusal),
            Ok(Err(Unaccepted::Later(HoldReason::Message))) => return Decision::Later(HoldReason::Publisher),
            // An unverified publisher must not create a dead letter of the tenant that it names: the message waits for the
            // database.
            Ok(Err(Unaccepted::Later(_))) | Err(_) => return Decision::Later(HoldReason::Server),
        };
        held.may_be_answered = admitted.may_be_answered;
        match timeout_at(until, self.check(delivery, &admitted)).await {
            Ok(Ok(Prepared::Commit(acceptance, answer))) => Decision::Accept(acceptance, answer),
            Ok(Ok(Prepared::Repeat(first))) => Decision::Repeat(first),
            Ok(Err(Unaccepted::Refused(refusal))) => Decision::Refuse(refusal),
            Ok(Err(Unaccepted::Later(reason))) => Decision::Later(reason),
            // A slow database does not count against the message.
            Err(_) => Decision::Later(HoldReason::Server),
        }
    }

    /// Checks that the publisher may publish for the tenant of its routing key. This comes before anything else of the
    /// message is read, because every other refusal is shown to that tenant.
    async fn admit<'a>(&self, delivery: &'a Delivery) -> Result<Admitted<'a>, Unaccepted> {
        let claim = self.claim(delivery).await?;
        let slug = claim.key.split('.').next().unwrap_or_default();
        let found = self.submissions.web.credentials.tenant(slug).await?;
        let tenant = found.ok_or_else(|| Refusal::tenant("the tenant of the routing key is unknown".to_owned()))?;
        let admitted = |may_be_answered| Admitted { key: claim.key, tenant, may_be_answered };
        if claim.is_checked {
            return Ok(admitted(false));
        }
        let publishers = self.users.publishers().await?;
        publishers.check(tenant, claim.user).map_err(|detail| Refusal::tenant(detail.to_owned()))?;
        let queue = delivery.properties.reply_to().unwrap_or_default();
        Ok(admitted(publishers.may_be_answered(tenant, claim.user, queue)))
    }

    async fn check(&self, delivery: &Delivery, admitted: &Admitted<'_>) -> Result<Prepared, Unaccepted> {
        let key = Key::parse(admitted.key).map_err(|detail| refuse_schema(detail, Code::ValidationFailed))?;
        check_frame(delivery)?;
        let (draft, origin) = self.read(delivery, &key, admitted.tenant)?;
        let prepared = prepare(&self.submissions, origin.key, async {
            // A publisher cannot be asked to come back later, so the message waits for its session.
            build_message(&self.submissions, draft, origin, true).await
        });
        prepared.await.map_err(|problem| match problem.status_code().is_client_error() {
            true => Unaccepted::from(Refusal::schema(problem.to_string(), problem)),
            false => Unaccepted::from(problem),
        })
    }

    /// The publisher of a message, and its routing key. A replayed dead letter carries a proof. The same header without a
    /// proof is refused, since only a replay has a reason to send it.
    async fn claim<'a>(&self, delivery: &'a Delivery) -> Result<ClaimedPublisher<'a>, Unaccepted> {
        if delivery.properties.header(replay::LETTER).is_none() {
            return Ok(ClaimedPublisher::of(delivery));
        }
        self.load_replay_key().await?;
        let detail = "the header x-posthaste-replay comes without its proof";
        self.proven(delivery).ok_or_else(|| Refusal::tenant(detail.to_owned()).into())
    }

    /// The publisher of a replayed dead letter, if its proof is valid.
    fn proven<'a>(&self, delivery: &'a Delivery) -> Option<ClaimedPublisher<'a>> {
        let properties = &delivery.properties;
        let replayed = Replayed {
            letter: properties.header(replay::LETTER)?,
            routing_key: &delivery.routing_key,
            message_id: properties.message_id().unwrap_or_default(),
            user: properties.header(USER_ID),
            body: &delivery.body,
        };
        let holds = self.replay_key.get()?.holds(&replayed, properties.header(replay::PROOF)?);
        holds.then(|| ClaimedPublisher::replayed(delivery))
    }

    async fn load_replay_key(&self) -> Result<(), Problem> {
        let load =
            async || self.submissions.web.queries.run(async |store| store.provider_events().replay_key().await).await;
        self.replay_key.get_or_try_init(load).await.map(drop)
    }

    fn read(&self, delivery: &Delivery, key: &Key, tenant: TenantId) -> Result<(Draft, Origin), Refusal> {
        let id = message_id(delivery)?;
        let mut submission = Submission::parse(&delivery.body).map_err(Refusal::malformed)?;
        let in_body = submission.idempotency_key.take();
        if in_body.is_some_and(|in_body| in_body != id) {
            return Err(invalid("idempotency_key", "must be the same as the property message_id"));
        }
        if submission.channel.as_deref().is_some_and(|text| text.parse() != Ok(key.channel)) {
            return Err(invalid("channel", "must be the same as in the routing key"));
        }
        submission.channel = Some(key.channel.to_string());
        let mut draft = submission.check(&self.submissions.web.rules()).map_err(Refusal::invalid)?;
        draft.lane = key.lane;
        let request = idempotency::request_hash(Kind::Send, &delivery.body, &[("channel", key.channel.as_str())]);
        let request_key = RequestKey { tenant, key: idempotency::key_hash(&id), request };
        let (request_id, traceparent) =
            (delivery.properties.header("x-request-id"), delivery.properties.header("traceparent"));
        let trace = TraceContext::take_or_make(request_id, traceparent);
        Ok((draft, Origin { tenant, source: AMQP, trace, key: Some(request_key) }))
    }
}

fn refuse_schema(detail: String, code: Code) -> Refusal {
    let problem = Problem::new(code, format!("Correct the message: {detail}."));
    Refusal::schema(detail, problem)
}

fn invalid(field: &str, message: &str) -> Refusal {
    Refusal::invalid(vec![FieldError::new(field, message)])
}

/// The original routing key of a message that a scheduler of the version before replayed straight to the queue, without a
/// proof. Such a message is refused, and its next replay carries a proof.
fn first_key(delivery: &Delivery) -> Option<&str> {
    delivery.properties.header(replay::LETTER).filter(|_| delivery.exchange.is_empty())?;
    delivery.properties.header(broker::ROUTING_KEY)
}

/// Checks what can be checked without parsing the body.
fn check_frame(delivery: &Delivery) -> Result<(), Refusal> {
    if delivery.body.len() > BODY_BYTES_MAX {
        let problem = Problem::new(Code::PayloadTooLarge, "Publish at most 256 KiB, or send it over HTTP.");
        return Err(Refusal {
            reason: DeadReason::TooLarge,
            detail: "body: must have at most 256 KiB".to_owned(),
            problem,
        });
    }
    if !delivery.properties.content_type().is_none_or(|text| text.is_empty() || is_json(text)) {
        return Err(refuse_schema("content_type: must be application/json".to_owned(), Code::UnsupportedMediaType));
    }
    Ok(())
}

fn message_id(delivery: &Delivery) -> Result<String, Refusal> {
    let id = delivery.properties.message_id().unwrap_or_default().to_owned();
    idempotency::check(id).map_err(|_| {
        let detail = "message_id: is required and must have 1 to 200 bytes: it is the idempotency key";
        refuse_schema(detail.to_owned(), Code::InvalidIdempotencyKey)
    })
}

async fn decide_held(intake: &Intake, mut held: Held) -> (Held, Decision) {
    let decision = intake.decide(&mut held).await;
    (held, decision)
}

/// One intake queue and its unacknowledged messages.
struct QueueIntake<'a> {
    intake: &'a Intake,
    name: &'a str,
    acker: &'a Acker,
    /// Messages to retry later.
    waiting: Vec<Held>,
    /// When a message was last accepted.
    accepted_at: Option<Instant>,
}

impl QueueIntake<'_> {
    /// When the next waiting message is due; an hour from now if none waits.
    fn next_due(&self) -> Instant {
        let due = self.waiting.iter().map(|held| held.due).min();
        due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))
    }

    /// Takes the waiting messages that are due, up to the size of one commit.
    fn take_due(&mut self) -> Vec<Held> {
        let now = Instant::now();
        let mut left = BATCH_MAX;
        self.waiting
            .extract_if(.., |held| {
                let is_taken = held.due <= now && left > 0;
                left -= usize::from(is_taken);
                is_taken
            })
            .collect()
    }

    /// Commits or dead-letters what it can and keeps the rest waiting. Waiting messages that the broker will redeliver are
    /// dropped first.
    async fn settle(&mut self, batch: Vec<Held>) {
        self.waiting.retain(|held| self.acker.is_current(held.delivery.tag));
        let (mut refused, mut valid) = (Vec::new(), Vec::new());
        let (mut acceptances, mut answers) = (Vec::new(), Vec::new());
        let deciding = batch.into_iter().map(|held| decide_held(self.intake, held));
        let decided: Vec<(Held, Decision)> = stream::iter(deciding).buffered(CHECKED_TOGETHER).collect().await;
        for (held, decision) in decided {
            match decision {
                Decision::Accept(acceptance, answer) => {
                    valid.push(held);
                    acceptances.push(*acceptance);
                    answers.push(answer);
                }
                Decision::Repeat(first) => {
                    self.accepted_at = Some(Instant::now());
                    self.finish(&held, first);
                }
                Decision::Refuse(refusal) => refused.push((held, refusal)),
                Decision::Later(reason) => refused.extend(self.put_off(held, reason)),
            }
        }
        let results = if valid.is_empty() {
            Vec::new()
        } else {
            self.intake.submissions.acceptor.accept_batch(acceptances).await
        };
        for ((held, answer), result) in valid.into_iter().zip(answers).zip(results) {
            match conclude(result, answer) {
                Ok(answer) => {
                    self.accepted_at = Some(Instant::now());
                    self.finish(&held, answer);
                }
                Err(Some(refusal)) => refused.push((held, refusal)),
                Err(None) => refused.extend(self.put_off(held, HoldReason::Server)),
            }
        }
        self.dead_letter_all(refused).await;
    }

    /// Keeps a message for another try. If its own tries are used up, returns it with a refusal.
    fn put_off(&mut self, mut held: Held, reason: HoldReason) -> Option<(Held, Refusal)> {
        if reason.is_own(held.tried_at, self.accepted_at) {
            held.own_tries += 1;
            if held.own_tries >= OWN_TRIES_MAX {
                let detail = format!("could not be judged in {OWN_TRIES_MAX} tries; the log of ingest says why");
                return Some((held, Refusal { reason: reason.dead_reason(), detail, problem: Problem::internal() }));
            }
        }
        self.hold(held);
        None
    }

    fn hold(&mut self, mut held: Held) {
        let now = Instant::now();
        held.tried_at = Some(now);
        held.due = now + held.pauses.next();
        metrics::counter!(metric::INTAKE_HELD, "queue" => self.name.to_owned()).increment(1);
        self.waiting.push(held);
    }

    /// Dead-letters refused messages, all at once. A message that could not be published is kept.
    async fn dead_letter_all(&mut self, refused: Vec<(Held, Refusal)>) {
        let publishing = refused.into_iter().map(|(held, refusal)| self.dead_letter(held, refusal));
        let kept: Vec<Held> = futures_util::future::join_all(publishing).await.into_iter().flatten().collect();
        kept.into_iter().for_each(|held| self.hold(held));
    }

    async fn dead_letter(&self, mut held: Held, refusal: Refusal) -> Option<Held> {
        if let Some(key) = first_key(&held.delivery).map(str::to_owned) {
            held.delivery.routing_key = key;
        }
        let delivery = &held.delivery;
        let user = self.intake.proven(delivery).map_or(delivery.properties.user_id(), |claim| claim.user);
        let id = delivery.properties.message_id().unwrap_or_default();
        let detail = format!("message_id `{id}`: {}", refusal.detail);
        let publisher = &self.intake.publisher;
        match broker::dead_letter_of(publisher, self.name, delivery, user, refusal.reason, &detail).await {
            Ok(()) => {
                metrics::counter!(metric::INTAKE_REFUSED, "reason" => refusal.reason.as_str()).increment(1);
                let answer = serde_json::json!({ "error": refusal.problem.to_json() });
                self.finish(&held, answer.to_string().into_bytes());
                None
            }
            Err(error) => {
                tracing::warn!(%error, queue = self.name, "a refused message could not be dead-lettered and is kept");
                Some(held)
            }
        }
    }

    /// Acknowledges a message and replies to its publisher, if it asked for a reply and may get one there.
    fn finish(&self, held: &Held, answer: Vec<u8>) {
        self.acker.done(held.delivery.tag);
        if let Some(reply) = reply(held, answer) {
            let replies = self.intake.replies.clone();
            // The publisher may be gone. The message is settled either way.
            tokio::spawn(async move { replies.publish_one(reply).await });
        }
    }
}

/// The reply to send, or why there is none: `Some` refusal, or `None` if the database gave no result.
fn conclude(result: AcceptResult, answer: Vec<u8>) -> Result<Vec<u8>, Option<Refusal>> {
    match result {
        Ok(Accepted::New) => Ok(answer),
        Ok(Accepted::Replayed(first)) => Ok(first),
        // AMQP submissions wait for their session, so this is not expected; if it happens, the message is retried.
        Ok(Accepted::NoRoom { .. }) => Err(None),
        Ok(Accepted::KeyTaken) => {
            Err(Some(Refusal::schema("message_id: was used for a message with another body", key_taken())))
        }
        Err(AcceptError::Refused) => {
            let detail = "the database refused it".to_owned();
            Err(Some(Refusal { reason: DeadReason::Poison, detail, problem: Problem::internal() }))
        }
        // A stored answer that cannot be read now is sent once it can be read.
        Ok(Accepted::Unanswered) | Err(_) => Err(None),
    }
}

fn takes_answers(queue: &str, may_be_answered: bool) -> bool {
    !queue.is_empty() && !queue.starts_with(OWN_PREFIX) && (may_be_answered || queue.starts_with(SERVER_NAMED))
}

fn reply(held: &Held, body: Vec<u8>) -> Option<Outgoing> {
    let delivery = &held.delivery;
    let to = delivery.properties.reply_to().filter(|to| takes_answers(to, held.may_be_answered))?;
    Some(Outgoing {
        exchange: "",
        routing_key: Cow::Owned(to.to_owned()),
        message_id: delivery.properties.message_id().unwrap_or_default().to_owned(),
        kind: Cow::Borrowed("reply.v1"),
        headers: Headers::new(),
        correlation_id: delivery.properties.correlation_id().map(str::to_owned),
        content_type: Cow::Borrowed("application/json"),
        body,
        is_hint: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_routing_key_names_channel_and_lane_after_its_tenant() {
        let key = Key::parse("demo.in_app.high").unwrap();
        assert_eq!(key, Key { channel: Channel::InApp, lane: Lane::High });
        for bad in ["", "demo.sms", "demo.sms.high.x", "demo.fax.high", "demo.sms.fast", "posthaste.intake.std"] {
            assert!(Key::parse(bad).unwrap_err().starts_with("routing key"), "{bad}");
        }
    }

    #[test]
    fn answers_go_to_no_queue_of_ours_and_without_a_right_to_another_to_queues_named_by_the_broker_only() {
        let queues = ["", "posthaste.intake.std", "billing.replies", "amq.gen-x", "amq.rabbitmq.reply-to"];
        assert_eq!(queues.map(|queue| takes_answers(queue, true)), [false, false, true, true, true]);
        assert_eq!(queues.map(|queue| takes_answers(queue, false)), [false, false, false, true, true]);
    }

    #[test]
    fn a_dead_letters_detail_names_the_field_and_quotes_no_content() {
        let faults = |body: &str| Refusal::malformed(Submission::parse(body.as_bytes()).unwrap_err()).detail;
        assert_eq!(faults(r#"{"channel":"sms","colour":"secret"}"#), "colour: unknown field `colour`");
        let wrong_type = faults(r#"{"channel":"sms","metadata":"secret"}"#);
        assert!(wrong_type.starts_with("metadata: is of a wrong type or form at line 1"), "{wrong_type}");
        let own_key = faults(r#"{"channel":"sms","attachments":[{"filename":{"secret":1}}]}"#);
        assert!(own_key.starts_with("attachments: is of a wrong type or form at line 1"), "{own_key}");
        let no_json = faults(r#"{"channel":"secret"#);
        assert!(no_json.starts_with("body: is no JSON of a submission at line 1"), "{no_json}");
        assert!(![wrong_type, own_key, no_json].iter().any(|detail| detail.contains("secret")));
    }

    #[tokio::test]
    async fn only_trouble_of_its_own_counts_against_a_message() {
        let (before, after) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        assert!(!HoldReason::Server.is_own(Some(before), Some(after)));
        assert!(HoldReason::Message.is_own(None, None) && HoldReason::Publisher.is_own(None, None));
        assert_eq!(
            (HoldReason::Message.dead_reason(), HoldReason::Publisher.dead_reason()),
            (DeadReason::Poison, DeadReason::Tenant)
        );
        assert!(HoldReason::LookUp.is_own(Some(before), Some(after)), "others were accepted meanwhile");
        for (tried_at, accepted_at) in [(None, Some(after)), (Some(after), Some(before)), (Some(before), None)] {
            assert!(!HoldReason::LookUp.is_own(tried_at, accepted_at), "{tried_at:?} {accepted_at:?}");
        }
    }

    #[test]
    fn a_used_key_is_refused_and_a_database_that_is_away_decides_nothing() {
        let taken = conclude(Ok(Accepted::KeyTaken), Vec::new()).unwrap_err().unwrap();
        assert_eq!((taken.reason, taken.problem.code()), (DeadReason::Schema, Code::IdempotencyKeyReused));
        assert!(conclude(Err(AcceptError::Unavailable), Vec::new()).unwrap_err().is_none());
        assert_eq!(
            conclude(Ok(Accepted::Replayed(b"first".to_vec())), b"second".to_vec()).ok(),
            Some(b"first".to_vec())
        );
    }
}
