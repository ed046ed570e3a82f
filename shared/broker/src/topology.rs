//! The exchanges, queues and bindings that must exist on the broker, as data. Names contain no virtual host.
//!
//! The arguments of a queue are fixed when it is first declared. So we use arguments with the same meaning on every
//! RabbitMQ from 3.10 to 4.x, and a change needs new names. Settings for operators (length caps, consumer timeouts)
//! belong in policies.
//!
//! A producer's routing key is `<tenant>.<channel>.<lane>`. A key of another shape or with an unknown lane matches no
//! intake queue and goes through the alternate exchange into the dead letter queue; because of that alternate
//! exchange the producer gets an ack, not a return.

use std::collections::BTreeMap;

use domain::{Lane, Route};
use serde::Serialize;

/// The exchange for submissions from other backends, keyed `<tenant>.<channel>.<lane>`.
pub const INGRESS: &str = "posthaste.ingress";
/// The exchange for accepted deliveries on their way to workers, keyed `<channel>.<lane>`.
pub const WORK: &str = "posthaste.work";
/// The exchange for events of the delivery log.
pub const EVENTS: &str = "posthaste.events";
/// The exchange for hints to open sockets. Each process with open sockets has its own queue; without such a process
/// the hints are not needed.
pub const LIVE: &str = "posthaste.live";
/// The key of hints about inboxes.
pub const LIVE_INBOX: &str = "inbox";
/// The exchange for dead letters of the broker and ours.
pub const DLX: &str = "posthaste.dlx";
/// The exchange for messages that match no intake queue.
pub const UNROUTABLE: &str = "posthaste.unroutable";

/// Submissions of the high lane, so that they do not wait behind others.
pub const INTAKE_HIGH: &str = "posthaste.intake.high";
/// All other submissions.
pub const INTAKE_STD: &str = "posthaste.intake.std";
/// Events on their way to the log writer.
pub const EVENTS_LOG: &str = "posthaste.events.log";
/// Dead letters on their way into the `dead_letters` table, where a person looks at them.
pub const DLQ: &str = "posthaste.dlq";

/// Returns of one message before the broker dead-letters it: far more than restarts cause, far fewer than a hot loop.
const DELIVERY_LIMIT: i64 = 20;
/// Brokers from 4.0 on would drop a dead letter after 20 returns, and `-1` means "at once" before 4.0.
const DLQ_DELIVERY_LIMIT: i64 = 1_000_000;

/// The name of the work queue of a route.
pub fn work_queue(route: Route) -> String {
    format!("{WORK}.{route}")
}

/// The routing key that reaches the work queue of a route.
pub fn work_key(route: Route) -> String {
    route.to_string()
}

/// The type of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExchangeType {
    /// The key must equal the binding's.
    Direct,
    /// Every bound queue gets a copy.
    Fanout,
    /// The key must match the binding's pattern.
    Topic,
}

/// The value of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Argument {
    /// A whole number.
    Number(i64),
    /// A text.
    Text(&'static str),
}

/// Arguments of an exchange or a queue.
pub type Arguments = BTreeMap<&'static str, Argument>;

/// A durable exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exchange {
    /// Its name.
    pub name: &'static str,
    /// How it routes.
    #[serde(rename = "type")]
    pub kind: ExchangeType,
    /// Its arguments.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub arguments: Arguments,
}

/// A durable queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Its arguments.
    pub arguments: Arguments,
}

/// Which messages of an exchange a queue gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Binding {
    /// The exchange.
    pub exchange: &'static str,
    /// The queue.
    pub queue: String,
    /// The key or pattern; a fanout exchange ignores it.
    pub key: String,
}

/// Everything that must exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// The exchanges; each follows those that it refers to.
    pub exchanges: Vec<Exchange>,
    /// Queues.
    pub queues: Vec<Queue>,
    /// Bindings.
    pub bindings: Vec<Binding>,
}

/// Everything that must exist.
pub fn topology() -> Topology {
    Topology { exchanges: exchanges(), queues: queues(), bindings: bindings() }
}

fn exchanges() -> Vec<Exchange> {
    let exchange = |name, kind| Exchange { name, kind, arguments: Arguments::new() };
    let mut ingress = exchange(INGRESS, ExchangeType::Topic);
    ingress.arguments.insert("alternate-exchange", Argument::Text(UNROUTABLE));
    vec![
        exchange(UNROUTABLE, ExchangeType::Fanout),
        exchange(DLX, ExchangeType::Fanout),
        ingress,
        exchange(WORK, ExchangeType::Direct),
        exchange(EVENTS, ExchangeType::Topic),
        exchange(LIVE, ExchangeType::Topic),
    ]
}

fn queues() -> Vec<Queue> {
    // The dead letter queue comes first: at-least-once dead-lettering gets stuck while its target is missing.
    let mut queues = vec![Queue { name: DLQ.to_owned(), arguments: dlq_arguments() }];
    let names = [INTAKE_HIGH, INTAKE_STD, EVENTS_LOG].map(str::to_owned).into_iter();
    let names = names.chain(Route::all().map(work_queue));
    queues.extend(names.map(|name| Queue { name, arguments: safe_arguments() }));
    queues
}

fn dlq_arguments() -> Arguments {
    Arguments::from([
        ("x-queue-type", Argument::Text("quorum")),
        ("x-delivery-limit", Argument::Number(DLQ_DELIVERY_LIMIT)),
    ])
}

/// A replicated queue that refuses messages when full instead of dropping them, and dead-letters with confirms.
fn safe_arguments() -> Arguments {
    Arguments::from([
        ("x-queue-type", Argument::Text("quorum")),
        ("x-overflow", Argument::Text("reject-publish")),
        ("x-dead-letter-exchange", Argument::Text(DLX)),
        ("x-dead-letter-strategy", Argument::Text("at-least-once")),
        ("x-delivery-limit", Argument::Number(DELIVERY_LIMIT)),
    ])
}

fn bindings() -> Vec<Binding> {
    let binding = |exchange, queue: &str, key: String| Binding { exchange, queue: queue.to_owned(), key };
    let mut bindings = vec![
        binding(DLX, DLQ, String::new()),
        binding(UNROUTABLE, DLQ, String::new()),
        binding(INGRESS, INTAKE_HIGH, intake_pattern(Lane::High)),
        binding(INGRESS, INTAKE_STD, intake_pattern(Lane::Normal)),
        binding(INGRESS, INTAKE_STD, intake_pattern(Lane::Bulk)),
        binding(EVENTS, EVENTS_LOG, "#".to_owned()),
    ];
    bindings.extend(Route::all().map(|route| binding(WORK, &work_queue(route), work_key(route))));
    bindings
}

fn intake_pattern(lane: Lane) -> String {
    format!("*.*.{lane}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_one_work_queue_bound_by_its_key() {
        let topology = topology();
        for route in Route::all() {
            let name = work_queue(route);
            assert_eq!(topology.queues.iter().filter(|queue| queue.name == name).count(), 1, "{name}");
            let bound: Vec<_> = topology.bindings.iter().filter(|binding| binding.queue == name).collect();
            assert_eq!(bound.len(), 1, "{name}");
            assert_eq!((bound[0].exchange, &bound[0].key), (WORK, &work_key(route)));
        }
    }

    #[test]
    fn every_binding_names_an_exchange_and_a_queue_of_the_topology() {
        let topology = topology();
        for binding in &topology.bindings {
            assert!(topology.exchanges.iter().any(|exchange| exchange.name == binding.exchange), "{binding:?}");
            assert!(topology.queues.iter().any(|queue| queue.name == binding.queue), "{binding:?}");
        }
    }

    #[test]
    fn every_queue_is_replicated_and_has_a_positive_delivery_limit() {
        for queue in topology().queues {
            assert_eq!(queue.arguments.get("x-queue-type"), Some(&Argument::Text("quorum")), "{}", queue.name);
            assert!(matches!(queue.arguments.get("x-delivery-limit"), Some(Argument::Number(1..))), "{}", queue.name);
            assert_eq!(queue.arguments.contains_key("x-dead-letter-exchange"), queue.name != DLQ, "{}", queue.name);
        }
    }
}
