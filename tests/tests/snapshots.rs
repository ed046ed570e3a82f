//! Interfaces that other programs depend on, as text files beside this one: a change of it shows in a diff.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use broker::topology::{Argument, Arguments, Exchange, INGRESS, Topology, topology};
use domain::{
    Channel, DeadReason, DeliveryId, EventKind, FailoverRound, Lane, OutcomeClass, ProviderName, Reason, State,
    TenantId,
    contract::{
        AttemptRecord, Event, EventBatch, WorkItem,
        wire::{InboxHint, InboxHints, Wire},
    },
};
use runtime::metric::{Metric, TABLE};
use serde_json::{Map, Value};
use testkit::programs;
use web::problem::{CONTENT_TYPE, Code};

/// Each snapshot; the folder has no other files.
const SNAPSHOTS: [&str; 7] = ["bodies", "help", "metrics", "openapi", "plans", "problems", "topology"];
/// JSON that fits stays in one line.
const WIDTH: usize = 120;

#[test]
fn the_openapi_document_changes_knowingly() {
    let mut document: Value = serde_json::from_str(&ingest::openapi::document()).unwrap();
    document["info"]["version"] = "[version]".into();
    let problems = share_problems(&mut document);
    document["problems"] = problems.into();
    assert_unchanged("openapi", &pretty(&document, 0, 0));
}

#[test]
fn the_asyncapi_document_names_what_the_topology_declares() {
    let text = fs::read_to_string(root().join("docs/asyncapi.yaml")).unwrap();
    assert!(broker_names(&text).contains(INGRESS), "{INGRESS} is not in docs/asyncapi.yaml");
    assert_eq!(differences(&text, &topology()), [""; 0]);
}

#[test]
fn a_name_that_the_topology_does_not_declare_is_noticed() {
    let text = "urn:posthaste:amqp `posthaste.ingress` and posthaste.egress. Names with `posthaste.` get none.";
    assert_eq!(broker_names(text), BTreeSet::from(["posthaste.ingress", "posthaste.egress"]));
    let text = fs::read_to_string(root().join("docs/asyncapi.yaml")).unwrap();
    for (part, other) in [
        ("type: topic", "type: fanout"),
        ("posthaste.ingress", "posthaste.egress"),
        ("in_app, whatsapp]", "whatsapp]"),
        ("[high, normal, bulk]", "[high, low, bulk]"),
        ("{tenant}.{channel}.{lane}", "{tenant}.{lane}"),
    ] {
        assert!(text.contains(part), "{part}");
        assert_ne!(differences(&text.replace(part, other), &topology()), [""; 0], "{other}");
    }
}

#[test]
fn bodies_on_the_broker_change_knowingly() {
    let hints = InboxHints::new(vec![InboxHint(0x00ff_ffff_ffff_ffff)]);
    let bodies = [
        body(&WorkItem::new(delivery(), 3)),
        body(&EventBatch::new(vec![event()])),
        body(&hints),
        words("state", State::ALL),
        words("kind", EventKind::ALL),
        words("channel", Channel::ALL),
        words("reason", Reason::ALL),
        words("dead", DeadReason::ALL),
        words("outcome", OutcomeClass::ALL),
        words("provider", ProviderName::ALL),
    ];
    assert_unchanged("bodies", &bodies.join("\n"));
}

#[test]
fn the_topology_changes_knowingly() {
    let Topology { exchanges, queues, bindings } = topology();
    let exchanges = exchanges
        .iter()
        .map(|exchange| format!("exchange {} {}{}", exchange.name, kind_of(exchange), arguments(&exchange.arguments)));
    let queues = queues.iter().map(|queue| format!("queue {}{}", queue.name, arguments(&queue.arguments)));
    let bindings =
        bindings.iter().map(|binding| format!("binding {} {:?} {}", binding.exchange, binding.key, binding.queue));
    assert_unchanged("topology", &lines(exchanges.chain(queues).chain(bindings)));
}

#[test]
fn the_problems_change_knowingly() {
    let problems = Code::ALL.iter().map(|code| {
        let (status, word, title, uri) = (code.status(), code.as_str(), code.title(), code.uri());
        format!("{status} {word} | {title} | {uri}")
    });
    assert_unchanged("problems", &lines(problems));
}

#[test]
fn the_metrics_change_knowingly() {
    let mut rows: Vec<&Metric> = TABLE.iter().collect();
    rows.sort_by_key(|row| row.name);
    let metrics = rows.iter().map(|row| {
        let kind = format!("{:?}", row.kind).to_lowercase();
        let labels = row.labels.join(", ");
        let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
        format!("{}{labels} {kind} | {}", row.name, row.help)
    });
    assert_unchanged("metrics", &lines(metrics));
}

#[test]
fn the_help_of_every_command_changes_knowingly() -> Result<()> {
    let mut text = String::new();
    let mut commands = vec![Vec::new()];
    while let Some(command) = commands.pop() {
        let mut run = programs::program("posthaste", None, &BTreeMap::new())?;
        let help = programs::run(run.args(&command).arg("--help"))?;
        let below = subcommands(&help).map(|name| [&command[..], &[name.to_owned()]].concat());
        commands.extend(below.collect::<Vec<_>>().into_iter().rev());
        let name = [&["posthaste".to_owned()], &command[..]].concat().join(" ");
        text += &format!("$ {name} --help\n{}\n\n", help.trim_end());
    }
    assert_unchanged("help", text.trim_end());
    Ok(())
}

#[test]
fn no_snapshot_is_left_behind() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let unknown = files.filter(|file| !SNAPSHOTS.iter().any(|name| *file == format!("{name}.snap")));
    assert_eq!(unknown.collect::<Vec<_>>(), [""; 0]);
}

/// Compares `text` with the snapshot of this name. CONTRIBUTING.md says how a change is accepted.
fn assert_unchanged(name: &str, text: &str) {
    assert!(SNAPSHOTS.contains(&name), "{name} is missing in SNAPSHOTS");
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.collect::<Vec<_>>().join("\n")
}

/// JSON with a line for each value that fits in one. `used`: columns before the value.
fn pretty(value: &Value, indent: usize, used: usize) -> String {
    let line = value.to_string();
    if used + line.chars().count() <= WIDTH {
        return line;
    }
    let inner = indent + 2;
    let (open, close, items): (_, _, Vec<String>) = match value {
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| {
                let name = Value::from(name.as_str()).to_string();
                format!("{name}: {}", pretty(value, inner, inner + name.chars().count() + 3))
            };
            ('{', '}', fields.iter().map(field).collect())
        }
        Value::Array(items) => ('[', ']', items.iter().map(|item| pretty(item, inner, inner + 1)).collect()),
        _ => return line,
    };
    let (outer, inner) = (" ".repeat(indent), " ".repeat(inner));
    let items: Vec<String> = items.into_iter().map(|item| format!("{inner}{item}")).collect();
    format!("{open}\n{}\n{outer}{close}", items.join(",\n"))
}

/// Puts a name in the place of each problem that an operation answers, and gives what the names stand for: hundreds of
/// answers are the same few.
fn share_problems(document: &mut Value) -> Map<String, Value> {
    let mut shared = Map::new();
    let items = document["paths"].as_object_mut().unwrap().values_mut();
    for operation in items.flat_map(|item| item.as_object_mut().unwrap().values_mut()) {
        let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) else { continue };
        for response in responses.values_mut().filter(|response| !response["content"][CONTENT_TYPE].is_null()) {
            let name = response["description"].as_str().unwrap().to_owned();
            // Entries that differ under one name stay in place.
            if shared.entry(name.clone()).or_insert_with(|| response.clone()) == response {
                *response = name.into();
            }
        }
    }
    shared
}

/// A body under its AMQP type.
fn body<B: Wire>(body: &B) -> String {
    format!("{}\n{}\n", B::TYPE, pretty(&serde_json::to_value(body).unwrap(), 0, 0))
}

/// A field of the bodies with the words that it may have.
fn words<T: ToString>(field: &str, all: &[T]) -> String {
    format!("{field}: {}", join(all))
}

fn join<T: ToString>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn delivery() -> DeliveryId {
    "0191d8a0-0000-7000-8000-000000000001".parse().unwrap()
}

/// An event with every field set; no real one has them all.
fn event() -> Event {
    Event {
        tenant: TenantId(7),
        delivery: delivery(),
        run: 3,
        channel: Channel::Email,
        kind: EventKind::Retrying,
        at: "2026-01-31T09:00:00.123456Z".parse().unwrap(),
        attempt: Some(AttemptRecord {
            provider: ProviderName::Smtp,
            outcome: OutcomeClass::Transient,
            code: Some("451".to_owned()),
            detail: Some("the server asks for a later try".to_owned()),
            duration_ms: 120,
            provider_ref: Some("queue-id".to_owned()),
        }),
        state: State::Retrying,
        delay_ms: Some(2000),
        detail: Some("no provider was called".to_owned()),
        reason: Some(Reason::QuietHours),
        dead: Some(DeadReason::AttemptsExhausted),
        spent: true,
        round: FailoverRound::NEW.with(ProviderName::Smtp, true),
        crash: true,
        report: true,
    }
}

/// The type of an exchange as the broker spells it.
fn kind_of(exchange: &Exchange) -> String {
    serde_json::to_value(exchange).unwrap()["type"].as_str().unwrap().to_owned()
}

fn arguments(arguments: &Arguments) -> String {
    let shown = arguments.iter().map(|(name, value)| match value {
        Argument::Number(number) => format!(" {name}={number}"),
        Argument::Text(text) => format!(" {name}={text}"),
    });
    shown.collect()
}

/// Where the AsyncAPI document differs from the topology.
fn differences(text: &str, topology: &Topology) -> Vec<String> {
    let exchanges: BTreeMap<&str, String> =
        topology.exchanges.iter().map(|exchange| (exchange.name, kind_of(exchange))).collect();
    let is_declared =
        |name: &&str| exchanges.contains_key(name) || topology.queues.iter().any(|queue| queue.name == *name);
    let unknown = broker_names(text).into_iter().filter(|name| !is_declared(name));
    let mut found: Vec<String> = unknown.map(|name| format!("the topology has no {name}")).collect();
    for block in text.split("exchange:\n").skip(1) {
        let (name, kind) = (after(block, "name: ", '\n'), after(block, "type: ", '\n'));
        if exchanges.get(name).is_none_or(|own| own != kind) {
            found.push(format!("{name} is no {kind} exchange"));
        }
    }
    for (parameter, all) in [("channel", join(Channel::ALL)), ("lane", join(Lane::ALL))] {
        let list = after(after(text, &format!("      {parameter}:\n"), ']'), "enum: [", '\0');
        if list != all {
            found.push(format!("{parameter} is one of {list}, not one of {all}"));
        }
    }
    let address = after(text, "address: '", '\'').replace("{tenant}", "*").replace("{channel}", "*");
    let keys: Vec<String> = Lane::ALL.iter().map(|lane| address.replace("{lane}", lane.as_str())).collect();
    let bound = topology.bindings.iter().filter(|binding| binding.exchange == INGRESS);
    let unbound = bound.filter(|binding| !keys.contains(&binding.key));
    found.extend(unbound.map(|binding| format!("{} is no key of the address", binding.key)));
    found
}

/// The text between the first `start` and the next `end`; nothing where there is none.
fn after<'a>(text: &'a str, start: &str, end: char) -> &'a str {
    text.split_once(start).and_then(|(_, rest)| rest.split(end).next()).unwrap_or_default()
}

/// Names of exchanges and queues in a text.
fn broker_names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || "._".contains(c)));
    words.map(|word| word.trim_end_matches('.')).filter(|word| word.starts_with("posthaste.")).collect()
}

/// The commands that a help lists. A longer text goes on further to the right.
fn subcommands(help: &str) -> impl Iterator<Item = &str> {
    let list = after(help, "Commands:\n", '\0').lines().take_while(|line| !line.is_empty());
    let names = list.filter_map(|line| line.strip_prefix("  ")?.split_once(' ')).map(|(name, _)| name);
    names.filter(|name| !name.is_empty() && *name != "help")
}
