//! Submissions that other backends publish to RabbitMQ: the same bodies, the same validator, the same commit as over HTTP.
//!
//! A message is acknowledged once it is committed, or once a copy of it is confirmed in the dead letter queue. While the
//! database or the broker is away it simply stays unacknowledged: the broker keeps it.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use actix_web::{ResponseError, web::Data};
use futures_util::{StreamExt, stream};
use shared::{
    amqp::{
        self, Acker, Broker, Consumer, ConsumerHealth, Delivery, Headers, INTAKE_HIGH, INTAKE_STD, Outgoing, Publisher,
    },
    contract::submission::{Draft, FieldError, Submission},
    db::accept::{Acceptance, Accepted},
    domain::{Channel, DeadReason, Lane, TenantId},
    reconnect::Reconnect,
    telemetry::TraceContext,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    AMQP,
    app::{App, Db},
    body::is_json,
    cache::Cache,
    problem::{Code, Problem},
    submitting::{
        accept::{AcceptError, Verdict},
        addresses,
        envelope::{Hashes, Origin, seal},
        idempotency::{self, Kind},
        notifications::key_taken,
    },
    whatsapp::carrier::{self, Carrier, Wanted},
};

/// On a refused publish that is replayed: its key and its publisher were checked when it first came.
pub const REPLAY: &str = "x-posthaste-replay";

/// Largest body, in bytes: what does not fit belongs behind a link, or goes over HTTP.
const BODY_BYTES_MAX: usize = 256 * 1024;
/// Unfinished messages per queue: two batches, so that one waits while the other is committed.
const PREFETCH: u16 = 256;
/// Messages of one commit.
const BATCH_MAX: usize = 128;
/// Messages judged at once: some of them ask the database where a person can be reached.
const JUDGED_TOGETHER: usize = 4;
/// How long the mapping of broker users is remembered; it is a small table.
const USERS_TTL: Duration = Duration::from_secs(5);
/// Answers never go to our own queues, whatever `reply_to` says: they would be taken for submissions or work.
const OWN_PREFIX: &str = "posthaste.";

/// Takes submissions from the broker.
pub struct Intake {
    app: Data<App>,
    publisher: Publisher,
    users: Users,
}

/// Broker users that speak for one tenant only.
struct Users {
    db: Db,
    remembered: Cache<(), Arc<HashMap<String, TenantId>>>,
}

impl Users {
    async fn map(&self) -> Result<Arc<HashMap<String, TenantId>>, Problem> {
        if let Some(map) = self.remembered.get(&()) {
            return Ok(map);
        }
        let rows = self.db.run(async |store| store.amqp_users().await).await?;
        let map = Arc::new(rows.into_iter().collect());
        self.remembered.put((), Arc::clone(&map), USERS_TTL);
        Ok(map)
    }
}

/// The consumers of the intake, registered once they are asked for the first time.
pub struct Consumers(Vec<Consumer>);

impl Consumers {
    /// One for each intake queue.
    pub fn open(broker: &Broker, stop: &CancellationToken) -> Self {
        Self([INTAKE_HIGH, INTAKE_STD].map(|queue| Consumer::open(broker, queue, PREFETCH, stop)).into())
    }

    /// How they are doing.
    pub fn health(&self) -> Vec<Arc<ConsumerHealth>> {
        self.0.iter().map(Consumer::health).collect()
    }
}

/// Takes submissions until stopped, then finishes the batches in hand.
pub async fn run(intake: Arc<Intake>, consumers: Consumers, stop: CancellationToken) {
    let mut queues = JoinSet::new();
    for consumer in consumers.0 {
        queues.spawn(consume(Arc::clone(&intake), consumer, stop.clone()));
    }
    while queues.join_next().await.is_some() {}
}

async fn consume(intake: Arc<Intake>, mut consumer: Consumer, stop: CancellationToken) {
    let (queue, acker) = (consumer.health(), consumer.acker());
    while let Some(batch) = consumer.next_batch(BATCH_MAX, Duration::ZERO).await {
        let mut round = Round { intake: &intake, queue: queue.queue(), acker: &acker, pauses: Reconnect::new() };
        round.settle(batch, &stop).await;
    }
    consumer.cancel().await;
    acker.flush().await;
}

/// What becomes of a message.
enum Judgement {
    Accept(Box<Acceptance>, Vec<u8>),
    Refuse(Refusal),
    /// The database is away, so nobody can tell yet.
    Later,
}

/// Why a message is refused, for a person, for the log of dead letters, and for whoever published it.
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
        Self::schema(told(&errors), Problem::validation(errors))
    }

    fn malformed(error: FieldError) -> Self {
        Self::schema(told(std::slice::from_ref(&error)), Problem::malformed(error))
    }

    fn tenant(detail: String) -> Self {
        let problem = Problem::new(Code::Forbidden, format!("Publish as a user of that tenant: {detail}."));
        Self { reason: DeadReason::Tenant, detail, problem }
    }
}

/// Names the fields and says what is wrong with them. Some messages of the parser quote what they found; content has no
/// place in a dead letter's detail, so of those only the position is kept.
fn told(errors: &[FieldError]) -> String {
    let tell = |error: &FieldError| match error.field.as_str() {
        "body" => format!("body: is no JSON of a submission{}", position(&error.message)),
        field => format!("{field}: {}", error.message.split(", expected").next().unwrap_or_default()),
    };
    errors.iter().map(tell).collect::<Vec<_>>().join("; ")
}

fn position(message: &str) -> String {
    message.rfind(" at line ").and_then(|start| message.get(start..)).unwrap_or_default().to_owned()
}

/// A routing key `<tenant>.<channel>.<lane>`.
#[derive(Debug, PartialEq, Eq)]
struct Key<'a> {
    tenant: &'a str,
    channel: Channel,
    lane: Lane,
}

impl<'a> Key<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let words: Vec<&str> = text.split('.').collect();
        let [tenant, channel, lane] = words[..] else {
            return Err("routing key: must be <tenant>.<channel>.<lane>".to_owned());
        };
        let channel = channel.parse().map_err(|unknown| format!("routing key: the channel {unknown}"))?;
        let lane = lane.parse().map_err(|unknown| format!("routing key: the lane {unknown}"))?;
        Ok(Self { tenant, channel, lane })
    }
}

/// Whether the scheduler published it again, straight to the queue. A producer publishes through the ingress exchange,
/// where the header means nothing.
fn is_replay(delivery: &Delivery) -> bool {
    delivery.exchange.is_empty() && delivery.properties.header(REPLAY).is_some()
}

fn key_of(delivery: &Delivery) -> &str {
    let original = delivery.properties.header(amqp::ROUTING_KEY).filter(|_| is_replay(delivery));
    original.unwrap_or(&delivery.routing_key)
}

impl Intake {
    /// Accepts with `app`, and publishes dead letters and answers with `publisher`.
    pub fn new(app: Data<App>, publisher: Publisher) -> Self {
        let users = Users { db: app.db.clone(), remembered: Cache::new(1) };
        Self { app, publisher, users }
    }

    async fn judge(&self, delivery: &Delivery) -> Judgement {
        match self.check(delivery).await {
            Ok((acceptance, answer)) => Judgement::Accept(Box::new(acceptance), answer),
            Err(Some(refusal)) => Judgement::Refuse(refusal),
            Err(None) => Judgement::Later,
        }
    }

    /// `Err(None)`: nobody can tell at the moment.
    async fn check(&self, delivery: &Delivery) -> Result<(Acceptance, Vec<u8>), Option<Refusal>> {
        let key = Key::parse(key_of(delivery)).map_err(|detail| refuse_schema(detail, Code::ValidationFailed))?;
        let tenant = self.tenant(&key, delivery).await?;
        check_frame(delivery)?;
        let (mut draft, origin, hashes) = self.read(delivery, &key, tenant)?;
        self.app.complete(tenant, &mut draft.content).await.map_err(|_| None)?;
        // Nobody waits for an answer who could come back later, so the message waits for its session.
        let wanted = Wanted { must_wait: true, ..Wanted::one(&draft) };
        let session = carrier::choose(&self.app, tenant, draft.channel, &draft.session, wanted).await;
        let session = session.map_err(|problem| {
            let is_final = problem.status_code().is_client_error();
            is_final.then(|| Refusal::schema(problem.to_string(), problem))
        })?;
        let recipients = addresses::recipients(&self.app, tenant, &draft).await.map_err(|_| None)?;
        Ok(seal(draft, recipients, origin, Some(hashes), session.as_ref().map(Carrier::line)))
    }

    async fn tenant(&self, key: &Key<'_>, delivery: &Delivery) -> Result<TenantId, Option<Refusal>> {
        let found = self.app.credentials.tenant(key.tenant).await.map_err(|_| None)?;
        let tenant = found.ok_or_else(|| Refusal::tenant("the tenant of the routing key is unknown".to_owned()))?;
        if !is_replay(delivery) {
            let users = self.users.map().await.map_err(|_| None)?;
            check_user(&users, tenant, delivery.properties.user_id())?;
        }
        Ok(tenant)
    }

    fn read(&self, delivery: &Delivery, key: &Key<'_>, tenant: TenantId) -> Result<(Draft, Origin, Hashes), Refusal> {
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
        let mut draft = submission.check(&self.app.rules()).map_err(Refusal::invalid)?;
        draft.lane = key.lane;
        let request = idempotency::request_hash(Kind::Send, &delivery.body, &[("channel", key.channel.as_str())]);
        let hashes = Hashes { key: idempotency::key_hash(&id), request };
        let (request_id, traceparent) =
            (delivery.properties.header("x-request-id"), delivery.properties.header("traceparent"));
        let trace = TraceContext::take_or_make(request_id, traceparent);
        Ok((draft, Origin { tenant, source: AMQP, trace }, hashes))
    }
}

fn refuse_schema(detail: String, code: Code) -> Refusal {
    let problem = Problem::new(code, format!("Correct the message: {detail}."));
    Refusal::schema(detail, problem)
}

fn invalid(field: &str, message: &str) -> Refusal {
    Refusal::invalid(vec![FieldError::new(field, message)])
}

/// A mapped user speaks for its own tenant only, and a tenant with mapped users is spoken for by them only.
fn check_user(users: &HashMap<String, TenantId>, tenant: TenantId, user: Option<&str>) -> Result<(), Refusal> {
    let refuse = |detail: &str| Err(Refusal::tenant(detail.to_owned()));
    match user.and_then(|user| users.get(user)) {
        Some(own) if *own == tenant => Ok(()),
        Some(_) => refuse("user_id: this broker user speaks for another tenant"),
        None if users.values().all(|mapped| *mapped != tenant) => Ok(()),
        None if user.is_none() => refuse("user_id: is required for this tenant"),
        None => refuse("user_id: this broker user does not speak for the tenant"),
    }
}

/// Checks what can be told without reading the body.
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

async fn judged(intake: &Intake, delivery: Delivery) -> (Delivery, Judgement) {
    let judgement = intake.judge(&delivery).await;
    (delivery, judgement)
}

/// One batch on its way from the queue to its end.
struct Round<'a> {
    intake: &'a Intake,
    queue: &'a str,
    acker: &'a Acker,
    pauses: Reconnect,
}

impl Round<'_> {
    /// Goes over the batch until each message is committed or dead-lettered, or the process stops; then the rest goes back
    /// to the queue.
    async fn settle(&mut self, mut batch: Vec<Delivery>, stop: &CancellationToken) {
        loop {
            batch = self.pass(batch).await;
            if batch.is_empty() {
                return;
            }
            metrics::counter!("posthaste_intake_held_total", "queue" => self.queue.to_owned()).increment(1);
            if stop.run_until_cancelled(self.pauses.pause()).await.is_none() {
                batch.iter().for_each(|delivery| self.acker.requeue(delivery.tag));
                return;
            }
        }
    }

    /// Returns what must be tried again.
    async fn pass(&self, batch: Vec<Delivery>) -> Vec<Delivery> {
        let (mut later, mut refused) = (Vec::new(), Vec::new());
        let (mut valid, mut acceptances, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        let judging = batch.into_iter().map(|delivery| judged(self.intake, delivery));
        let judged: Vec<(Delivery, Judgement)> = stream::iter(judging).buffered(JUDGED_TOGETHER).collect().await;
        for (delivery, judgement) in judged {
            match judgement {
                Judgement::Accept(acceptance, answer) => {
                    valid.push(delivery);
                    acceptances.push(*acceptance);
                    answers.push(answer);
                }
                Judgement::Refuse(refusal) => refused.push((delivery, refusal)),
                Judgement::Later => later.push(delivery),
            }
        }
        let verdicts =
            if valid.is_empty() { Vec::new() } else { self.intake.app.acceptor.accept_batch(acceptances).await };
        for ((delivery, answer), verdict) in valid.into_iter().zip(answers).zip(verdicts) {
            match concluded(verdict, answer) {
                Ok(answer) => self.finish(&delivery, answer),
                Err(Some(refusal)) => refused.push((delivery, refusal)),
                Err(None) => later.push(delivery),
            }
        }
        later.extend(self.bury(refused).await);
        later
    }

    /// Dead-letters what was refused, all at once; returns what could not be.
    async fn bury(&self, refused: Vec<(Delivery, Refusal)>) -> Vec<Delivery> {
        let burying = refused.into_iter().map(|(delivery, refusal)| self.bury_one(delivery, refusal));
        futures_util::future::join_all(burying).await.into_iter().flatten().collect()
    }

    async fn bury_one(&self, mut delivery: Delivery, refusal: Refusal) -> Option<Delivery> {
        let original = key_of(&delivery).to_owned();
        delivery.routing_key = original;
        let id = delivery.properties.message_id().unwrap_or_default();
        let detail = format!("message_id `{id}`: {}", refusal.detail);
        let publisher = &self.intake.publisher;
        match amqp::dead_letter(publisher, self.queue, &delivery, refusal.reason, &detail).await {
            Ok(()) => {
                metrics::counter!("posthaste_intake_refused_total", "reason" => refusal.reason.as_str()).increment(1);
                let answer = serde_json::json!({ "error": refusal.problem.to_json() });
                self.finish(&delivery, answer.to_string().into_bytes());
                None
            }
            Err(error) => {
                tracing::warn!(%error, queue = self.queue, "a refused message could not be dead-lettered and is kept");
                Some(delivery)
            }
        }
    }

    fn finish(&self, delivery: &Delivery, answer: Vec<u8>) {
        self.acker.done(delivery.tag);
        if let Some(reply) = reply(delivery, answer) {
            let publisher = self.intake.publisher.clone();
            // Whoever asked for an answer may be gone; the message is safe either way.
            tokio::spawn(async move { publisher.publish_one(reply).await });
        }
    }
}

/// The answer to give, or why there is none: refused, or (`None`) the database could not say.
fn concluded(verdict: Verdict, answer: Vec<u8>) -> Result<Vec<u8>, Option<Refusal>> {
    match verdict {
        Ok(Accepted::New) => Ok(answer),
        Ok(Accepted::Replayed(first)) => Ok(first),
        // What comes by the broker waits for its session; were it otherwise, it would come back later.
        Ok(Accepted::NoRoom { .. }) => Err(None),
        Ok(Accepted::KeyTaken) => {
            Err(Some(Refusal::schema("message_id: was used for a message with another body", key_taken())))
        }
        Err(AcceptError::Refused) => {
            let detail = "the database refused it".to_owned();
            Err(Some(Refusal { reason: DeadReason::Poison, detail, problem: Problem::internal() }))
        }
        Err(AcceptError::Full | AcceptError::Late | AcceptError::Unavailable | AcceptError::Stopping) => Err(None),
    }
}

fn reply(delivery: &Delivery, body: Vec<u8>) -> Option<Outgoing> {
    let to = delivery.properties.reply_to().filter(|to| !to.is_empty() && !to.starts_with(OWN_PREFIX))?;
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
    fn a_routing_key_names_tenant_channel_and_lane() {
        let key = Key::parse("demo.in_app.high").unwrap();
        assert_eq!(key, Key { tenant: "demo", channel: Channel::InApp, lane: Lane::High });
        for bad in ["", "demo.sms", "demo.sms.high.x", "demo.fax.high", "demo.sms.fast", "posthaste.intake.std"] {
            assert!(Key::parse(bad).unwrap_err().starts_with("routing key"), "{bad}");
        }
    }

    #[test]
    fn mapped_users_and_mapped_tenants_keep_to_each_other() {
        let users = HashMap::from([("orders".to_owned(), TenantId(1))]);
        let check = |tenant, user| check_user(&users, TenantId(tenant), user).map_err(|refusal| refusal.reason);
        assert_eq!(check(1, Some("orders")), Ok(()));
        assert_eq!(check(2, Some("anybody")), Ok(()));
        assert_eq!(check(2, None), Ok(()));
        for (tenant, user) in [(1, None), (1, Some("anybody")), (2, Some("orders"))] {
            assert_eq!(check(tenant, user), Err(DeadReason::Tenant), "{tenant} {user:?}");
        }
    }

    #[test]
    fn a_dead_letters_detail_names_the_field_and_quotes_no_content() {
        let faults = |body: &str| Refusal::malformed(Submission::parse(body.as_bytes()).unwrap_err()).detail;
        assert_eq!(faults(r#"{"channel":"sms","colour":"secret"}"#), "colour: unknown field `colour`");
        let wrong_type = faults(r#"{"channel":"sms","metadata":"secret"}"#);
        assert!(wrong_type.starts_with("body: is no JSON of a submission at line 1"), "{wrong_type}");
        assert!(!wrong_type.contains("secret"));
    }

    #[test]
    fn a_used_key_is_refused_and_a_database_that_is_away_decides_nothing() {
        let taken = concluded(Ok(Accepted::KeyTaken), Vec::new()).unwrap_err().unwrap();
        assert_eq!((taken.reason, taken.problem.code()), (DeadReason::Schema, Code::IdempotencyKeyReused));
        assert!(concluded(Err(AcceptError::Unavailable), Vec::new()).unwrap_err().is_none());
        assert_eq!(
            concluded(Ok(Accepted::Replayed(b"first".to_vec())), b"second".to_vec()).ok(),
            Some(b"first".to_vec())
        );
    }
}
