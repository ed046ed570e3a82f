//! Checks the broker: connection, topology, and consumers on every queue.

use std::{collections::BTreeSet, time::Instant};

use anyhow::Context;
use broker::{
    DLQ, EVENTS_LOG, INTAKE_HIGH, INTAKE_STD, QueueDepth, TopologyError, connect,
    declare::{self, Fault},
};

use super::finding::Finding;
use crate::settings;

/// A queue holds only messages that may be sent now. More than this is a backlog worth a warning.
const READY_WARN: u32 = 10_000;
/// The most queues named in one line.
const NAMES_MAX: usize = 5;

/// Runs all checks of the broker. Without a connection that is the only finding.
pub async fn examine() -> Vec<Finding> {
    match reach().await {
        Ok(findings) => findings,
        Err(error) => vec![Finding::failed(
            "broker",
            &error,
            "check AMQP_URL and that RabbitMQ runs; messages are accepted meanwhile",
        )],
    }
}

async fn reach() -> anyhow::Result<Vec<Finding>> {
    let started = Instant::now();
    let url = settings::broker_url()?;
    let connection = connect(&url, "posthaste doctor").await.with_context(|| settings::shown(&url))?;
    let mut findings = vec![Finding::ok("broker", format!("reached in {} ms", started.elapsed().as_millis()))];
    findings.push(topology(declare::check(&connection).await));
    let depths = declare::depths(&connection).await?;
    if !depths.is_empty() {
        findings.extend([consumers(&depths), backlog(&depths)]);
    }
    Ok(findings)
}

fn topology(checked: Result<(), TopologyError>) -> Finding {
    match checked {
        Ok(()) => Finding::ok("topology", "every exchange and queue is there"),
        Err(TopologyError::Problems(problems)) => {
            let objects: Vec<_> = problems.iter().map(|problem| problem.object.clone()).collect();
            let missing = problems.iter().all(|problem| problem.fault == Fault::Missing);
            let advice = if missing { "posthaste topology declare" } else { "posthaste topology check" };
            Finding::fail("topology", format!("not as needed: {}", shortened(&objects)), advice)
        }
        Err(error) => Finding::failed("topology", &error.into(), "posthaste topology check"),
    }
}

/// A queue with messages and without consumers means that a service is down. An empty one may have no consumer on purpose.
fn consumers(depths: &[QueueDepth]) -> Finding {
    let idle: Vec<_> = depths.iter().filter(|queue| queue.consumers == 0).collect();
    let stuck: Vec<_> = idle.iter().copied().filter(|queue| queue.messages_ready > 0).collect();
    if !stuck.is_empty() {
        return Finding::fail("consumers", format!("work waits without consumers: {}", names(&stuck)), start(&stuck));
    }
    if !idle.is_empty() {
        return Finding::warn("consumers", format!("nobody listens to {}", names(&idle)), start(&idle));
    }
    Finding::ok("consumers", format!("{} queues, each with consumers", depths.len()))
}

fn names(queues: &[&QueueDepth]) -> String {
    shortened(&queues.iter().map(|queue| queue.name.clone()).collect::<Vec<_>>())
}

/// The command that starts the consumers of these queues.
fn start(queues: &[&QueueDepth]) -> String {
    let services: BTreeSet<_> = queues.iter().map(|queue| service(&queue.name)).collect();
    format!("start it: posthaste run --only {}", services.into_iter().collect::<Vec<_>>().join(","))
}

fn service(queue: &str) -> &'static str {
    match queue {
        INTAKE_HIGH | INTAKE_STD => "ingest",
        DLQ | EVENTS_LOG => "scheduler",
        _ => "worker",
    }
}

fn backlog(depths: &[QueueDepth]) -> Finding {
    let ready: u64 = depths.iter().map(|queue| u64::from(queue.messages_ready)).sum();
    let long = depths.iter().filter(|queue| queue.messages_ready > READY_WARN);
    let long: Vec<_> = long.map(|queue| format!("{} ({})", queue.name, queue.messages_ready)).collect();
    if long.is_empty() {
        return Finding::ok("queues", format!("{ready} messages wait"));
    }
    Finding::warn(
        "queues",
        format!("{ready} messages wait, most in {}", shortened(&long)),
        "add workers, or raise WORKER_CONCURRENCY",
    )
}

pub(super) fn shortened(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::CheckResult;

    fn queue(name: &str, messages_ready: u32, consumers: u32) -> QueueDepth {
        QueueDepth { name: name.to_owned(), messages_ready, consumers }
    }

    #[test]
    fn work_that_nobody_takes_is_a_failure_and_says_who_should() {
        let found = consumers(&[queue("posthaste.work.sms.high", 0, 0), queue(EVENTS_LOG, 3, 0)]);
        assert_eq!(
            (found.verdict, found.advice.as_deref()),
            (CheckResult::Fail, Some("start it: posthaste run --only scheduler"))
        );
        let idle = consumers(&[queue("posthaste.work.sms.high", 0, 0), queue(EVENTS_LOG, 3, 1)]);
        assert_eq!(
            (idle.verdict, idle.advice.as_deref()),
            (CheckResult::Warn, Some("start it: posthaste run --only worker"))
        );
        assert_eq!(consumers(&[queue(INTAKE_STD, 9, 1)]).verdict, CheckResult::Ok);
        let down = consumers(&[queue(DLQ, 0, 0), queue(INTAKE_STD, 0, 0), queue(EVENTS_LOG, 0, 0)]);
        assert_eq!(down.advice.as_deref(), Some("start it: posthaste run --only ingest,scheduler"));
    }

    #[test]
    fn a_long_queue_is_worth_a_look() {
        assert_eq!(backlog(&[queue("a", READY_WARN, 1)]).verdict, CheckResult::Ok);
        let long = backlog(&[queue("a", READY_WARN + 1, 1), queue("b", 1, 1)]);
        assert_eq!((long.verdict, long.detail.as_str()), (CheckResult::Warn, "10002 messages wait, most in a (10001)"));
    }

    #[test]
    fn many_names_are_cut_short() {
        let names: Vec<_> = (0..7).map(|n| n.to_string()).collect();
        assert_eq!(shortened(&names), "0, 1, 2, 3, 4 and 2 more");
    }
}
