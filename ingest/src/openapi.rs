//! The OpenAPI document. Routes describe themselves where they are written; here is what they share: the document's head,
//! the bodies whose types live elsewhere, and the problems that any route may answer.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::json;
use utoipa::{
    Modify, OpenApi, ToSchema,
    openapi::{
        ContentBuilder, OpenApi as Tree, Ref, RefOr, Response, ResponseBuilder, Responses,
        header::HeaderBuilder,
        path::{Operation, ParameterBuilder, ParameterIn, PathItem},
        schema::{Object, Schema, Type},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
        server::Server,
    },
};
use uuid::Uuid;

use crate::{
    audit, docs, health,
    inbound::{provider_events, tracking, waha},
    live::follow,
    managing::{
        admin, analytics, broadcasts, channels, configurations, dead_letters, keys, notification_types, rules,
        suppressions, templates, tenant_limits, tenants, tokens, webhooks,
    },
    people::{devices, export, imports, inbox, preferences, unsubscribe, users},
    problem::{CONTENT_TYPE, Code},
    submitting::{bulk, dry_run, events, idempotency, messages, notifications, templated, typed},
    whatsapp::{messages as whatsapp_messages, sessions},
};

const ABOUT: &str = "Durable notifications over e-mail, SMS, push, webhook, in-app inbox and WhatsApp. \
A `202` means: committed to disk.

* Credentials: `Authorization: Bearer <API key or token>`. Keys begin with `ph_`; tokens are JWT (HS256). The tenant comes \
from the credential. Roles: `admin`, `producer`, `agent`, `user`, `operator`.
* Errors are RFC 9457 problems with a `code` from a closed list: [/docs/problems](/docs/problems).
* Limits: each credential may make 10,000 requests a minute unless set otherwise, an address without a valid one 100. Answers \
carry `RateLimit-Limit`, `RateLimit-Remaining` and `RateLimit-Reset` (seconds); one request too many is a 429 with `Retry-After`.
* Every answer carries `X-Request-Id`; `traceparent` is taken or made, and travels on to webhooks.
* Times are RFC 3339; one without a zone is taken as UTC. Lists are newest first and go on at `next_cursor`.
* The same submissions can be published to RabbitMQ: [/asyncapi.yaml](/asyncapi.yaml).";

/// What admins do about notifications.
const ADMIN_NOTIFICATIONS: &str = "/api/admin/notifications/";
/// The same, as programs of the mozaiks family spell it.
const ADMIN_NOTIFICATIONS_ALIAS: &str = "/__mozaiks/admin/notifications/";

#[derive(OpenApi)]
#[openapi(
    info(title = "Posthaste", description = ABOUT, license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")),
    paths(
        notifications::send, notifications::test, bulk::send, bulk::show, templated::send, typed::notify,
        events::receive, dry_run::judge,
        rules::list, rules::create, rules::show, rules::update, rules::remove,
        messages::list, messages::show, messages::timeline, messages::cancel,
        inbox::list, inbox::unread, inbox::list_of, inbox::unread_of, inbox::mark, inbox::mark_all, inbox::read_all, inbox::read,
        inbox::mark_unread, inbox::archive, inbox::unarchive, inbox::archive_many, inbox::unarchive_many,
        inbox::delete_many, inbox::delete, follow::follow,
        preferences::show, preferences::show_of, preferences::update, preferences::update_of, preferences::update_all, preferences::erase,
        preferences::opt_out_of_marketing, preferences::opt_out_of_all, preferences::export,
        unsubscribe::page, unsubscribe::act, unsubscribe::url,
        dead_letters::list, dead_letters::show, dead_letters::replay, dead_letters::drop, dead_letters::progress,
        whatsapp_messages::send, whatsapp_messages::send_bulk, whatsapp_messages::list, whatsapp_messages::show, whatsapp_messages::stats,
        sessions::list, sessions::create, sessions::show, sessions::update, sessions::remove, sessions::start, sessions::stop,
        sessions::restart, sessions::logout, sessions::qr, waha::receive, waha::receive_for, waha::health,
        provider_events::receive, provider_events::receive_short, tracking::open, tracking::click,
        configurations::list, configurations::create, configurations::show, configurations::update, configurations::remove,
        configurations::regenerate, configurations::test, configurations::logs, configurations::replay,
        templates::list, templates::create, templates::show, templates::update, templates::remove, templates::preview, templates::test,
        templates::versions, notification_types::list, notification_types::import, notification_types::remove,
        broadcasts::create, broadcasts::list, broadcasts::show, broadcasts::pause, broadcasts::resume, broadcasts::cancel,
        analytics::delivery,
        webhooks::signing_secret, admin::queues, channels::list, suppressions::list, suppressions::lift,
        tokens::issue, tokens::renew,
        tenants::list, tenants::create, keys::list, keys::create, keys::revoke, tenant_limits::show, tenant_limits::set, audit::list,
        users::list, users::show, users::put, users::erase, devices::register, devices::remove, export::show, imports::create, imports::show,
        health::all, health::live, health::ready, health::metrics, docs::openapi, docs::asyncapi, docs::problems,
    ),
    components(schemas(ProblemBody, FieldErrorBody)),
    modifiers(&Shared),
    security(("bearer" = [])),
    tags(
        (name = "submitting", description = "Messages in"),
        (name = "messages", description = "What became of them"),
        (name = "rules", description = "Which events become which notifications"),
        (name = "inbox", description = "In-app notifications of a person"),
        (name = "people", description = "Whom a tenant knows: addresses, clock, attributes, devices"),
        (name = "preferences", description = "What a person wants, and unsubscribing; links in mails are public"),
        (name = "dead letters", description = "What a person must look at"),
        (name = "tokens", description = "Short-lived credentials for an API key"),
        (name = "templates", description = "What notifications say, and which kinds of them there are"),
        (name = "managing", description = "Tenants, people, keys, limits, the audit log, secrets and queues"),
        (name = "whatsapp", description = "Sessions at WAHA, their messages, and what it tells"),
        (name = "provider events", description = "What providers tell about deliveries, and what tracked mails tell; public, signed"),
        (name = "health", description = "For orchestrators and monitoring; public"),
        (name = "specifications", description = "What this page is made of; public"),
    )
)]
struct Document;

/// The document as it is.
pub fn tree() -> Tree {
    let mut tree = Document::openapi();
    tree.info.version = env!("CARGO_PKG_VERSION").to_owned();
    tree.servers = Some(vec![Server::new("/")]);
    tree
}

/// The document as JSON.
pub fn document() -> String {
    tree().to_json().unwrap_or_default()
}

/// A problem (RFC 9457).
#[derive(ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// Where the kind is explained.
    #[schema(example = "/docs/problems#validation_failed")]
    pub r#type: String,
    /// What the kind means.
    pub title: String,
    /// The HTTP status.
    #[schema(example = 400)]
    pub status: u16,
    /// What to do about it.
    pub detail: String,
    /// The kind; see the closed list at `/docs/problems`.
    #[schema(example = "validation_failed")]
    pub code: String,
    /// Each field that is not valid.
    #[schema(required = false)]
    pub errors: Vec<FieldErrorBody>,
}

/// A field that is not valid.
#[derive(ToSchema)]
#[schema(as = FieldError)]
pub struct FieldErrorBody {
    /// The field, in the producer's own spelling; `body` for the whole.
    #[schema(example = "recipient")]
    pub field: String,
    /// What is wrong with it.
    #[schema(example = "must be one e-mail address such as ada@example.com")]
    pub message: String,
}

/// The channels, as the description spells them.
#[derive(ToSchema)]
#[schema(as = Channel, rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words are the domain's; a test compares them")]
pub enum ChannelWord {
    Email,
    Sms,
    Push,
    Webhook,
    InApp,
    Whatsapp,
}

/// The priorities, as the description spells them.
#[derive(ToSchema)]
#[schema(as = Priority, rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words are the domain's; a test compares them")]
pub enum PriorityWord {
    Low,
    Normal,
    High,
    Urgent,
}

/// The fields that all submissions share.
///
/// Accepted spellings beside these: `subject` for `title`, `text` for `message`, `payload` for `data`, `userId`, `eventType` and
/// `event_type` for `type`, `actionUrl`, `scheduledAt` and `scheduled_for`, `expiresAt`.
#[derive(ToSchema)]
#[schema(as = SubmissionHead)]
pub struct SharedBody {
    /// What kind of address it goes to; `in-app` is accepted for `in_app`.
    pub channel: ChannelWord,
    /// The person.
    #[schema(max_length = 200)]
    pub user_id: Option<String>,
    /// Subject of a mail, title of a notification.
    #[schema(max_length = 998)]
    pub title: Option<String>,
    /// The plain part.
    pub message: Option<String>,
    /// The HTML part, of a mail.
    pub html: Option<String>,
    /// What it is about.
    #[schema(max_length = 200)]
    pub category: Option<String>,
    /// Picks the lane; `normal` unless given.
    pub priority: Option<PriorityWord>,
    /// Data for the recipient's program; a webhook's whole body when it is the only content.
    #[schema(value_type = Option<serde_json::Value>)]
    pub data: Option<serde_json::Value>,
    /// Notes of the producer, given back as they are; at most 8 KiB.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<serde_json::Value>,
    /// When to send it, within a year; a past time means now.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// When it is no longer worth sending.
    pub expires_at: Option<DateTime<Utc>>,
    /// Files that travel with a mail, 20 MB together.
    #[schema(max_items = 50, required = false)]
    pub attachments: Vec<AttachmentBody>,
    /// The kind of notification, shown in the inbox and in webhook bodies.
    #[schema(max_length = 200)]
    pub r#type: Option<String>,
    /// Where a click on an in-app notification leads.
    #[schema(max_length = 2048)]
    pub action_url: Option<String>,
    /// As the header `Idempotency-Key`.
    #[schema(min_length = 1, max_length = 200)]
    pub idempotency_key: Option<String>,
    /// WhatsApp: the session that carries it, by id or name; unless given, the only one or the one called `default`.
    #[schema(max_length = 200)]
    pub session_id: Option<String>,
    /// WhatsApp: over the session's pace `queue` (it waits) or `reject` (429); unless given, as the session has it.
    #[schema(example = "queue")]
    pub on_limit: Option<String>,
    /// WhatsApp: accept it although the session is not WORKING; it waits until it is.
    pub queue_when_offline: Option<bool>,
    /// WhatsApp: a file; the text is its caption.
    pub media: Option<MediaBody>,
    /// When it may disturb the person by e-mail, text message, push or WhatsApp; unless given, as its type has it.
    pub send_window: Option<SendWindowBody>,
}

/// On some days from one time of day to another, by the clock on the wall of the person it is for (no zone: UTC). Outside of it a
/// delivery is `scheduled` for its next opening, `reason` `send_window`.
#[derive(ToSchema)]
#[schema(as = SendWindow)]
pub struct SendWindowBody {
    /// The days on which it opens, of `mon`, `tue`, `wed`, `thu`, `fri`, `sat`, `sun`; every day unless given.
    #[schema(min_items = 1, example = json!(["mon", "tue", "wed", "thu", "fri"]))]
    pub days: Option<Vec<String>>,
    /// The first minute in it.
    #[schema(example = "09:00")]
    pub from: String,
    /// The first minute that is in it no more: another than `from`, before it across midnight, or `24:00`.
    #[schema(example = "17:00")]
    pub to: String,
}

/// A file of a WhatsApp message. Either `data` or `url`.
#[derive(ToSchema)]
#[schema(as = Media)]
pub struct MediaBody {
    /// Its media type; it decides how WhatsApp shows it.
    #[schema(example = "image/jpeg")]
    pub mimetype: String,
    /// The name shown.
    pub filename: Option<String>,
    /// Its bytes in base64, 20 MB at most.
    #[schema(format = Byte)]
    pub data: Option<String>,
    /// Where WAHA fetches it.
    pub url: Option<String>,
}

/// A file.
#[derive(ToSchema)]
#[schema(as = Attachment)]
pub struct AttachmentBody {
    /// Its name.
    pub filename: String,
    /// Its media type.
    #[schema(example = "application/pdf")]
    pub content_type: String,
    /// Its bytes in base64.
    #[schema(format = Byte)]
    pub content: String,
}

/// An address, or a browser's subscription to Web Push; at most 2048 bytes.
#[derive(ToSchema)]
#[schema(as = Recipient)]
#[serde(untagged)]
pub enum RecipientBody {
    /// Address, phone number (E.164), device token, URL or user id; a subscription may also be the text of its JSON.
    Text(String),
    /// What `PushSubscription.toJSON()` gives in a browser.
    Subscription(SubscriptionBody),
}

/// A browser's subscription to Web Push.
#[derive(ToSchema)]
#[schema(as = PushSubscription)]
pub struct SubscriptionBody {
    /// Where its push service takes messages: https, and no private address.
    #[schema(example = "https://push.example.com/abc")]
    pub endpoint: String,
    /// Its keys.
    pub keys: SubscriptionKeysBody,
}

/// The keys of a subscription.
#[derive(ToSchema)]
#[schema(as = PushSubscriptionKeys)]
pub struct SubscriptionKeysBody {
    /// The browser's public key: an uncompressed point on P-256 in base64url.
    pub p256dh: String,
    /// A secret of 16 bytes in base64url.
    pub auth: String,
}

/// One message.
#[derive(ToSchema)]
#[schema(as = Submission)]
pub struct SendBody {
    /// To whom. `to` and `url` are accepted too. May be left out where `user_id` is given: it then goes to the person's inbox,
    /// address, phone or devices; not for `webhook`.
    pub recipient: Option<RecipientBody>,
    /// The rest.
    #[schema(inline)]
    #[serde(flatten)]
    pub shared: SharedBody,
}

/// One content for many recipients. Either `recipients` or `user_ids`.
#[derive(ToSchema)]
#[schema(as = BulkSubmission)]
pub struct BulkBody {
    /// To whom, by address.
    #[schema(min_items = 1, max_items = 10_000)]
    pub recipients: Option<Vec<RecipientBody>>,
    /// To whom, by user id: inboxes, or the addresses, phones or devices that are known of them.
    #[schema(min_items = 1, max_items = 10_000)]
    pub user_ids: Option<Vec<String>>,
    /// The rest.
    #[schema(inline)]
    #[serde(flatten)]
    pub shared: SharedBody,
}

/// A dead letter.
#[derive(ToSchema)]
#[schema(as = DeadLetter)]
pub struct DeadLetterBody {
    /// Its id.
    pub id: Uuid,
    /// The slug of its tenant; `null` if it is unknown.
    pub tenant: Option<String>,
    /// The message whose delivery died.
    pub message_id: Option<Uuid>,
    /// The delivery that died.
    pub delivery_id: Option<Uuid>,
    /// The channel, as far as it is known.
    pub channel: Option<String>,
    /// `delivery`, `intake` or `broker`.
    #[schema(example = "delivery")]
    pub origin: String,
    /// Why.
    #[schema(example = "attempts_exhausted")]
    pub reason: String,
    /// What happened, in a clause.
    pub detail: String,
    /// The `message_id` property of a refused publish.
    pub amqp_id: Option<String>,
    /// The routing key of a refused publish.
    pub routing_key: Option<String>,
    /// Whether the body of the refused publish was kept.
    pub has_body: bool,
    /// `open`, `replayed` or `dropped`.
    #[schema(example = "open")]
    pub status: String,
    /// The replay that moved it.
    pub replay_id: Option<Uuid>,
    /// When it was written down.
    pub created_at: DateTime<Utc>,
}

/// Which dead letters. What is not given does not restrict.
#[derive(ToSchema)]
#[schema(as = DeadLetterFilter)]
pub struct LetterFilterBody {
    /// One of these.
    pub ids: Option<Vec<Uuid>>,
    /// The channel.
    pub channel: Option<String>,
    /// The reason.
    pub reason: Option<String>,
    /// The message, or the AMQP `message_id`.
    pub message_id: Option<String>,
    /// The slug of a tenant, for operators.
    pub tenant: Option<String>,
    /// Written down at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Written down before this time.
    pub until: Option<DateTime<Utc>>,
}

/// A replay or drop and how far it has got.
#[derive(ToSchema)]
#[schema(as = Replay)]
pub struct ReplayStateBody {
    /// Its id.
    pub id: Uuid,
    /// `replay` or `drop`.
    #[schema(example = "replay")]
    pub action: String,
    /// Which letters were meant.
    #[schema(value_type = Object)]
    pub filter: serde_json::Value,
    /// Who asked for it: role and subject.
    #[schema(example = "admin:0191d8a0-0000-7000-8000-000000000001")]
    pub actor: String,
    /// Why.
    pub note: String,
    /// Letters a second.
    pub rate: Option<i32>,
    /// Open letters that matched when it began.
    pub matched: i32,
    /// Letters moved so far.
    pub replayed: i32,
    /// Letters that could not be moved.
    pub skipped: i32,
    /// `running`, `done` or `cancelled`.
    #[schema(example = "done")]
    pub status: String,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

/// An entry of the audit log.
#[derive(ToSchema)]
#[schema(as = AuditEntry)]
pub struct AuditEntryBody {
    /// Its number in the chain.
    pub id: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// The slug of the tenant; `null` where it concerns none or several.
    #[schema(example = "acme")]
    pub tenant: Option<String>,
    /// Who: role and subject, or `cli:` and a user of the machine.
    #[schema(example = "admin:0191d8a0-0000-7000-8000-000000000001")]
    pub actor: String,
    /// What: method and route, or the command.
    #[schema(example = "DELETE /api/admin/keys/{id}")]
    pub action: String,
    /// To which thing: the ids of the path, or what was made.
    #[schema(example = "0191d8a0-0000-7000-8000-000000000002")]
    pub target: String,
    /// The `X-Request-Id` of the call.
    pub request_id: Option<String>,
}

/// Adds what all operations share, by what each of them is: whether it needs a credential, takes a body, names a thing.
struct Shared;

impl Modify for Shared {
    fn modify(&self, tree: &mut Tree) {
        if let Some(components) = tree.components.as_mut() {
            let bearer = HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .description(Some("An API key (`ph_…`) or a token (JWT)"));
            components.add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
        }
        let aliases: Vec<(String, PathItem)> = tree.paths.paths.iter().filter_map(alias).collect();
        tree.paths.paths.extend(aliases);
        for (path, item) in &mut tree.paths.paths {
            for (method, operation) in operations(item) {
                operation.operation_id = Some(operation_id(path, method));
                complete(path, method, operation);
            }
        }
    }
}

/// The same under the prefix that other programs know.
fn alias((path, item): (&String, &PathItem)) -> Option<(String, PathItem)> {
    let rest = path.strip_prefix(ADMIN_NOTIFICATIONS)?;
    Some((format!("{ADMIN_NOTIFICATIONS_ALIAS}{rest}"), item.clone()))
}

/// The operations of a path, of the methods that we use.
pub fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let all = [
        ("get", &mut item.get),
        ("head", &mut item.head),
        ("post", &mut item.post),
        ("put", &mut item.put),
        ("delete", &mut item.delete),
    ];
    all.into_iter().filter_map(|(method, operation)| operation.as_mut().map(|operation| (method, operation)))
}

/// `post_notifications_send`: what generated clients call their methods.
fn operation_id(path: &str, method: &'static str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty() && *word != "api");
    // Those of sessions have no `/api` before them, and else the names of the others.
    let whatsapp = path.starts_with("/messages").then_some("whatsapp");
    std::iter::once(method).chain(whatsapp).chain(words).collect::<Vec<_>>().join("_")
}

fn complete(path: &str, method: &str, operation: &mut Operation) {
    let is_public =
        operation.security.as_ref().is_some_and(|schemes| schemes.iter().all(|scheme| *scheme == Default::default()));
    let submits = path.ends_with("/broadcast")
        || operation.tags.as_ref().is_some_and(|tags| tags.iter().any(|tag| tag == "submitting")) && method == "post";
    let mut codes = if is_public {
        vec![]
    } else {
        vec![Code::Unauthenticated, Code::Forbidden, Code::Unavailable, Code::Internal]
    };
    if !is_public || operation.request_body.is_some() {
        codes.push(Code::RateLimited);
    }
    if operation.request_body.is_some() {
        codes.extend([
            Code::MalformedBody,
            Code::ValidationFailed,
            Code::RequestTimeout,
            Code::PayloadTooLarge,
            Code::UnsupportedMediaType,
        ]);
    }
    if !is_public && (method == "get" || operation.parameters.is_some()) {
        codes.push(Code::InvalidParameter);
    }
    if path.contains("{id}") {
        codes.push(Code::NotFound);
    }
    if ["/cancel", "/pause", "/resume"].iter().any(|end| path.ends_with(end)) {
        codes.push(Code::StateConflict);
    }
    if submits {
        codes.extend([
            Code::InvalidIdempotencyKey,
            Code::TargetNotAllowed,
            Code::IdempotencyKeyReused,
            Code::Overloaded,
        ]);
        operation.parameters.get_or_insert_default().push(RefOr::T(key_parameter()));
    }
    add_problems(&mut operation.responses, &codes);
}

fn key_parameter() -> utoipa::openapi::path::Parameter {
    ParameterBuilder::new()
        .name(idempotency::HEADER)
        .parameter_in(ParameterIn::Header)
        .description(Some("1 to 200 bytes; makes the request safe to repeat"))
        .schema(Some(text_schema()))
        .example(Some(json!("order-42")))
        .build()
}

fn text_schema() -> Schema {
    Schema::Object(Object::with_type(Type::String))
}

/// One response per status; its description lists the codes it may carry.
fn add_problems(responses: &mut Responses, codes: &[Code]) {
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes {
        by_status.entry(code.status()).or_default().push(*code);
    }
    for (status, codes) in by_status {
        let entry = responses.responses.entry(status.to_string());
        entry.or_insert_with(|| RefOr::T(problem_response(&codes)));
    }
}

fn problem_response(codes: &[Code]) -> Response {
    let texts: Vec<String> = codes.iter().map(|code| format!("`{}`: {}", code.as_str(), code.title())).collect();
    let examples = codes.iter().map(|code| {
        let body = json!({"type": code.uri(), "title": code.title(), "status": code.status(), "detail": "…", "code": code.as_str()});
        (code.as_str(), utoipa::openapi::example::ExampleBuilder::new().value(Some(body)).build())
    });
    let content =
        ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).examples_from_iter(examples).build();
    let mut response = ResponseBuilder::new().description(texts.join("; ")).content(CONTENT_TYPE, content);
    if codes.iter().any(|code| matches!(code.status(), 429 | 503)) {
        let header =
            HeaderBuilder::new().schema(Some(text_schema())).description(Some("Seconds after which to try again"));
        response = response.header("Retry-After", header.build());
    }
    response.build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use domain::{Channel, Priority, contract::submission::Submission};

    use super::*;

    #[test]
    fn every_documented_field_of_a_submission_is_accepted_and_every_example_too() {
        let tree = serde_json::to_value(tree()).unwrap();
        let examples =
            &tree["paths"]["/api/notifications/send"]["post"]["requestBody"]["content"]["application/json"]["examples"];
        for (name, example) in examples.as_object().unwrap() {
            let body = serde_json::to_vec(&example["value"]).unwrap();
            Submission::parse(&body).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let text = tree["components"]["schemas"]["Submission"].to_string();
        let fields = [
            "channel",
            "recipient",
            "user_id",
            "title",
            "message",
            "html",
            "category",
            "priority",
            "data",
            "metadata",
            "scheduled_at",
            "expires_at",
            "attachments",
            "type",
            "action_url",
            "idempotency_key",
        ];
        for field in fields {
            assert!(text.contains(&format!("\"{field}\"")), "{field} is not documented: {text}");
            let probe = format!("{{\"{field}\":null}}");
            let refused =
                Submission::parse(probe.as_bytes()).err().is_some_and(|error| error.message.contains("unknown field"));
            assert!(!refused, "{field} is documented and not accepted");
        }
    }

    #[test]
    fn the_described_words_are_those_of_the_domain() {
        let tree = serde_json::to_value(tree()).unwrap();
        let described = |name: &str| tree["components"]["schemas"][name]["enum"].clone();
        let channels: Vec<&str> = Channel::ALL.iter().map(|word| word.as_str()).collect();
        let priorities: Vec<&str> = Priority::ALL.iter().map(|word| word.as_str()).collect();
        assert_eq!((described("Channel"), described("Priority")), (channels.into(), priorities.into()));
    }

    #[test]
    fn every_operation_has_a_summary_an_id_of_its_own_and_says_what_can_go_wrong() {
        let mut tree = tree();
        let mut ids = BTreeSet::new();
        for (path, item) in &mut tree.paths.paths {
            for (_, operation) in operations(item) {
                assert!(operation.summary.is_some(), "{path}");
                assert!(ids.insert(operation.operation_id.clone()), "{path}: {:?}", operation.operation_id);
                let public = ["/health", "/metrics", "/docs", "/openapi", "/asyncapi", "/webhooks/health", "/t/"];
                let unsubscribing = "/api/notifications/unsubscribe/";
                let is_public = public.iter().chain([&unsubscribing]).any(|public| path.starts_with(public));
                assert_eq!(operation.responses.responses.contains_key("401"), !is_public, "{path}");
            }
        }
    }

    #[test]
    fn the_document_is_openapi_3_1() {
        assert_eq!(serde_json::to_value(tree()).unwrap()["openapi"], "3.1.0");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let text = document();
        let schemas = serde_json::from_str::<serde_json::Value>(&text).unwrap()["components"]["schemas"].clone();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.get(name).is_some(), "{name}");
        }
    }
}
