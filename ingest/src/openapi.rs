//! The OpenAPI document. Each route describes itself; this module adds the shared parts: the head, schemas of types in
//! other crates, and the problems of every route.

use std::collections::BTreeMap;

use api::{
    managing::{
        admin, analytics, audit, broadcasts, channels, configurations, dead_letters, keys, notification_types, rules,
        suppressions, templates, tenant_limits, tenants, tokens, webhooks,
    },
    messages,
    whatsapp::{messages as whatsapp_messages, sessions},
};
use people::{devices, export, imports, inbox, live::follow, preferences, unsubscribe, users};
use serde_json::json;
use submission::idempotency;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        ContentBuilder, OpenApi as Tree, Ref, RefOr, Response, ResponseBuilder, Responses,
        header::HeaderBuilder,
        path::{Operation, ParameterBuilder, ParameterIn, PathItem},
        schema::{Object, Schema, Type},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
        server::Server,
    },
};
use web::{
    openapi::FieldErrorBody,
    problem::{CONTENT_TYPE, Code, ProblemBody},
};

use crate::{
    docs, health,
    inbound::{provider_events, tracking, waha},
    submitting::{bulk, dry_run, events, notifications, notify, templated, whatsapp},
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

/// The path prefix of the routes with which admins manage notifications.
const ADMIN_NOTIFICATIONS: &str = "/api/admin/notifications/";
/// The same prefix as other programs of the same operator write it.
const ADMIN_NOTIFICATIONS_ALIAS: &str = "/__mozaiks/admin/notifications/";

#[derive(OpenApi)]
#[openapi(
    info(title = "Posthaste", description = ABOUT, license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")),
    paths(
        notifications::send, notifications::test, bulk::send, bulk::show, templated::send, notify::send,
        events::receive, dry_run::run,
        rules::list, rules::create, rules::show, rules::update, rules::remove,
        messages::list, messages::show, messages::timeline, messages::cancel,
        inbox::list, inbox::unread, inbox::list_of, inbox::unread_of, inbox::mark, inbox::mark_all, inbox::read_all, inbox::read,
        inbox::mark_unread, inbox::archive, inbox::unarchive, inbox::archive_many, inbox::unarchive_many,
        inbox::delete_many, inbox::delete, follow::follow,
        preferences::show, preferences::show_of, preferences::update, preferences::update_of, preferences::update_all, preferences::erase,
        preferences::opt_out_of_marketing, preferences::opt_out_of_all, preferences::export,
        unsubscribe::page, unsubscribe::act, unsubscribe::url,
        dead_letters::list, dead_letters::show, dead_letters::replay, dead_letters::drop, dead_letters::progress,
        whatsapp::send, whatsapp::send_bulk, whatsapp_messages::list, whatsapp_messages::show, whatsapp_messages::stats,
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

/// Adds the parts that operations share, by their properties: whether one needs a credential, has a body, names an
/// object.
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

/// The same operations under the other prefix.
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

/// `post_notifications_send`: the method name in generated clients.
fn operation_id(path: &str, method: &'static str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty() && *word != "api");
    // Paths of sessions have no `/api` before them; otherwise their names are those of the others.
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
