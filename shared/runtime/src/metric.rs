//! The table of metrics: the single home of every name, kind, unit, label and help text. Code names a metric by its
//! constant (`metrics::counter!(metric::RELEASED)`), so a misspelt name does not compile.

use domain::{Channel, DeadReason, EventKind, EventSource};
use metrics::Unit;

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The name in `/metrics`.
    pub name: &'static str,
    /// The sentence behind `# HELP`.
    pub help: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// The unit of the value, if `metrics` knows it.
    pub unit: Option<Unit>,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// How it starts at 0.
    pub start: Start,
}

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// A distribution.
    Histogram,
}

/// How a counter starts at 0. A counter that began with its first increment would hide that increment from `rate` and
/// `increase`.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// [`start_at_zero`] of this service, with each combination of these values, in the order of the labels.
    Service(Service, &'static [Values]),
    /// The code that counts starts it, because it alone knows the values of the labels, such as names of queues.
    Owner,
    /// Nothing: a gauge, a histogram, or a counter that appears with its first increment.
    Unset,
}

/// The values of a label.
pub type Values = fn() -> Vec<&'static str>;

/// A service that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Accepts messages, webhooks and reports of providers.
    Ingest,
    /// Sends.
    Worker,
    /// Writes the log, and releases what is due.
    Scheduler,
}

/// Registers the help text of every metric with the recorder.
pub(crate) fn describe() {
    for row in TABLE {
        let Metric { name, help, kind, unit, .. } = *row;
        metrics::with_recorder(|recorder| match kind {
            Kind::Counter => recorder.describe_counter(name.into(), unit, help.into()),
            Kind::Gauge => recorder.describe_gauge(name.into(), unit, help.into()),
            Kind::Histogram => recorder.describe_histogram(name.into(), unit, help.into()),
        });
    }
}

/// Starts the counters of `service` at 0, with each value of their labels. Call it once the recorder is installed.
pub fn start_at_zero(service: Service) {
    for row in TABLE {
        if let Start::Service(owner, values) = row.start
            && owner == service
        {
            for labels in series(row.labels, values) {
                metrics::counter!(row.name, labels).increment(0);
            }
        }
    }
}

/// Each combination of the values of the labels. Without labels it is one empty combination.
fn series(labels: &[&'static str], values: &[Values]) -> Vec<Vec<metrics::Label>> {
    labels.iter().zip(values).fold(vec![Vec::new()], |found, (label, values)| {
        let values = values();
        let with = |rest: &Vec<metrics::Label>, value| [&rest[..], &[metrics::Label::new(*label, value)]].concat();
        found.iter().flat_map(|rest| values.iter().map(move |value| with(rest, *value))).collect()
    })
}

const fn counter(labels: &'static [&'static str], start: Start) -> Metric {
    Metric { name: "", help: "", kind: Kind::Counter, unit: None, labels, start }
}

const fn gauge(labels: &'static [&'static str]) -> Metric {
    Metric { name: "", help: "", kind: Kind::Gauge, unit: None, labels, start: Start::Unset }
}

const fn histogram(labels: &'static [&'static str]) -> Metric {
    Metric { name: "", help: "", kind: Kind::Histogram, unit: None, labels, start: Start::Unset }
}

impl Metric {
    const fn seconds(self) -> Self {
        Self { unit: Some(Unit::Seconds), ..self }
    }
}

const fn ingest(values: &'static [Values]) -> Start {
    Start::Service(Service::Ingest, values)
}

const fn worker(values: &'static [Values]) -> Start {
    Start::Service(Service::Worker, values)
}

const fn scheduler(values: &'static [Values]) -> Start {
    Start::Service(Service::Scheduler, values)
}

fn booleans() -> Vec<&'static str> {
    vec!["false", "true"]
}

fn channels() -> Vec<&'static str> {
    Channel::ALL.iter().map(|channel| channel.as_str()).collect()
}

fn claim_results() -> Vec<&'static str> {
    vec!["won", "lost", "early"]
}

fn dead_reasons() -> Vec<&'static str> {
    DeadReason::ALL.iter().map(|reason| reason.as_str()).collect()
}

fn event_kinds() -> Vec<&'static str> {
    EventKind::ALL.iter().map(|kind| kind.as_str()).collect()
}

fn event_sources() -> Vec<&'static str> {
    EventSource::ALL.iter().map(|source| source.as_str()).collect()
}

fn signature_sources() -> Vec<&'static str> {
    event_sources().into_iter().chain(["waha"]).collect()
}

fn waha_silences() -> Vec<&'static str> {
    vec!["state", "messages"]
}

/// Writes the constants and the table from one text, so that no metric can be missing from the table. The doc comment
/// of a row is its help text.
macro_rules! table {
    ($($(#[doc = $help:literal])+ $constant:ident: $name:literal = $row:expr;)+) => {
        $($(#[doc = $help])+ pub const $constant: &str = $name;)+

        /// Every metric.
        pub const TABLE: &[Metric] =
            &[$(Metric { name: $constant, help: concat!($($help),+).trim_ascii(), ..$row }),+];
    };
}

table! {
    // Accepting.

    /// Messages committed to disk, by channel and source.
    MESSAGES_ACCEPTED: "posthaste_messages_accepted_total" = counter(&["channel", "source"], Start::Owner);
    /// HTTP requests answered with a problem, by its code.
    REQUESTS_REFUSED: "posthaste_requests_refused_total" = counter(&["code"], Start::Owner);
    /// From a request's headers to its answer, by route and status.
    HTTP_REQUEST_SECONDS: "posthaste_http_request_seconds" = histogram(&["route", "status"]).seconds();
    /// From a checked request to its commit.
    ACCEPT_SECONDS: "posthaste_accept_seconds" = histogram(&[]).seconds();
    /// Requests that shared a commit.
    ACCEPT_BATCH_SIZE: "posthaste_accept_batch_size" = histogram(&[]);
    /// Messages of the intake that had to wait for the database or broker.
    INTAKE_HELD: "posthaste_intake_held_total" = counter(&["queue"], Start::Owner);
    /// AMQP submissions dead-lettered, by reason.
    INTAKE_REFUSED: "posthaste_intake_refused_total" = counter(&["reason"], ingest(&[dead_reasons]));
    /// Events of other systems, committed to disk.
    EVENTS: "posthaste_events_total" = counter(&[], ingest(&[]));
    /// Rules that matched such events.
    RULES_MATCHED: "posthaste_rules_matched_total" = counter(&[], ingest(&[]));
    /// Rules that matched an event but could not make their message.
    RULE_ERRORS: "posthaste_rule_errors_total" = counter(&[], ingest(&[]));
    /// Events without a value for the key that separates the windows of their digest.
    DIGEST_KEYS_MISSING: "posthaste_digest_keys_missing_total" = counter(&[], ingest(&[]));
    /// Events of providers that verified, by provider and whether they were new.
    PROVIDER_EVENTS: "posthaste_provider_events_total" =
        counter(&["provider", "duplicate"], ingest(&[event_sources, booleans]));
    /// Webhooks and reports of providers without a valid signature, by source.
    SIGNATURE_FAILURES: "posthaste_signature_failures_total" = counter(&["source"], ingest(&[signature_sources]));
    /// Webhooks of WAHA that verified, by whether they were new.
    WAHA_WEBHOOKS: "posthaste_waha_webhooks_total" = counter(&["duplicate"], ingest(&[booleans]));
    /// Opens and clicks that could not be stored.
    TRACKING_LOST: "posthaste_tracking_lost_total" = counter(&[], ingest(&[]));
    /// Times an audit entry could not be written; it is tried again until it is.
    AUDIT_RETRIED: "posthaste_audit_retried_total" = counter(&[], ingest(&[]));
    /// Audit entries that could not be written at all; the log has them.
    AUDIT_LOST_ENTRIES: "posthaste_audit_lost_entries_total" = counter(&[], ingest(&[]));

    // The people's side.

    /// Sockets that are open.
    WS_CONNECTIONS: "posthaste_ws_connections" = gauge(&[]);
    /// Notifications shown on sockets.
    WS_PUSHED: "posthaste_ws_pushed_total" = counter(&[], ingest(&[]));
    /// Sockets that closed, by reason; `slow`: the client did not read.
    WS_CLOSED: "posthaste_ws_closed_total" = counter(&["reason"], Start::Unset);
    /// Reads of inbox items that are missing in the delivery log.
    READS_LOST: "posthaste_reads_lost_total" = counter(&[], ingest(&[]));

    // Between PostgreSQL and RabbitMQ.

    /// Whether there is a connection to the broker: 1 or 0.
    BROKER_CONNECTED: "posthaste_broker_connected" = gauge(&["connection"]);
    /// Whether the broker takes no publishes because it is short of memory or disk: 1 or 0.
    BROKER_BLOCKED: "posthaste_broker_blocked" = gauge(&["connection"]);
    /// Lost connections to the broker.
    BROKER_RECONNECTS: "posthaste_broker_reconnects_total" = counter(&["connection"], Start::Unset);
    /// Whether a queue is read: 1 or 0.
    CONSUMER_REGISTERED: "posthaste_consumer_registered" = gauge(&["queue"]);
    /// When a queue last delivered a message, in seconds since 1970.
    CONSUMER_LAST_DELIVERY: "posthaste_consumer_last_delivery_timestamp_seconds" = gauge(&["queue"]).seconds();
    /// Messages that may have been delivered before, by queue.
    REDELIVERED: "posthaste_redelivered_total" = counter(&["queue"], Start::Owner);
    /// Messages finished after their channel was lost: the broker delivers them again.
    STALE_ACKS: "posthaste_stale_acks_total" = counter(&["queue"], Start::Owner);
    /// Publishes that the broker confirmed, by exchange.
    PUBLISHED: "posthaste_published_total" = counter(&["exchange"], Start::Unset);
    /// Publishes that failed, by reason.
    PUBLISH_FAILED: "posthaste_publish_failed_total" = counter(&["reason"], Start::Owner);
    /// From a publish to its confirm.
    PUBLISH_CONFIRM_SECONDS: "posthaste_publish_confirm_seconds" = histogram(&[]).seconds();
    /// Outbox rows that a process left to the relay.
    DISPATCH_LEFT_TO_RELAY: "posthaste_dispatch_left_to_relay_total" = counter(&[], Start::Owner);
    /// Deliveries that the relay published.
    OUTBOX_RELAYED: "posthaste_outbox_relayed_total" = counter(&[], scheduler(&[]));
    /// Outbox rows that wait for the broker.
    OUTBOX_PENDING: "posthaste_outbox_pending" = gauge(&[]);
    /// How long the oldest outbox row has waited.
    OUTBOX_OLDEST_SECONDS: "posthaste_outbox_oldest_seconds" = gauge(&[]).seconds();
    /// Work messages that the broker gave up after too many returns; the audit finds their deliveries.
    HINTS_GIVEN_UP: "posthaste_hints_given_up_total" = counter(&[], scheduler(&[]));
    /// Events and submissions that the broker gave up after too many returns, and that were published again, by queue.
    RETURNED_AGAIN: "posthaste_returned_again_total" = counter(&["queue"], Start::Owner);
    /// Deliveries whose message the broker lost; they were published again.
    AUDIT_LOST: "posthaste_audit_lost_total" = counter(&[], scheduler(&[]));
    /// Deliveries put under watch because a worker held them past the lease.
    AUDIT_WATCHED: "posthaste_audit_watched_total" = counter(&[], scheduler(&[]));

    // Sending.

    /// Provider calls by how they ended.
    DELIVERY_ATTEMPTS: "posthaste_delivery_attempts_total" =
        counter(&["channel", "provider", "outcome"], Start::Owner);
    /// How long a provider call took.
    DELIVERY_SECONDS: "posthaste_delivery_seconds" = histogram(&["channel", "provider"]).seconds();
    /// From acceptance to the provider's acceptance, for deliveries sent on the first attempt.
    END_TO_END_SECONDS: "posthaste_end_to_end_seconds" = histogram(&["channel", "lane"]).seconds();
    /// Deliveries by how they were claimed: with their acceptance, or from a queue, won or lost.
    CLAIMS: "posthaste_claims_total" = counter(&["result"], worker(&[claim_results]));
    /// Provider calls that may or may not have sent the message.
    AMBIGUOUS: "posthaste_ambiguous_total" = counter(&["channel"], Start::Owner);
    /// Deliveries that went on to the next provider of their channel.
    FAILOVERS: "posthaste_failovers_total" = counter(&["channel", "from"], Start::Owner);
    /// Deliveries claimed and not yet answered by their provider.
    WORKER_IN_FLIGHT: "posthaste_worker_in_flight" = gauge(&["channel", "lane"]);
    /// Slots of WhatsApp sessions whose call ended late. Their minute counts from that end.
    LATE_SLOTS: "posthaste_late_slots_total" = counter(&[], worker(&[]));
    /// Webhooks not sent because their address is in a network that is not allowed.
    EGRESS_BLOCKED: "posthaste_egress_blocked_total" = counter(&[], worker(&[]));
    /// Calls to webhook configurations missing in their log.
    WEBHOOK_CALLS_NOT_LOGGED: "posthaste_webhook_calls_not_logged_total" = counter(&[], worker(&[]));
    /// Circuit breakers by state.
    BREAKER_STATE: "posthaste_breaker_state" = gauge(&["provider", "scope", "state"]);

    // Scheduling.

    /// Delivery events written to the log, by kind.
    EVENTS_WRITTEN: "posthaste_events_written_total" = counter(&["kind"], scheduler(&[event_kinds]));
    /// Delivery events that shared a commit.
    LOG_WRITER_BATCH_SIZE: "posthaste_log_writer_batch_size" = histogram(&[]);
    /// Events kept because this version cannot read them.
    EVENTS_UNREAD_KEPT: "posthaste_events_unread_total" = counter(&[], scheduler(&[]));
    /// Kept events that no scheduler can read yet.
    EVENTS_UNREAD: "posthaste_events_unread" = gauge(&[]);
    /// Deliveries that stay `sending` because their outcome is in an open dead letter.
    OUTCOMES_IN_LETTERS: "posthaste_outcomes_in_letters" = gauge(&[]);
    /// Retries that were planned, by channel.
    RETRIES_SCHEDULED: "posthaste_retries_scheduled_total" = counter(&["channel"], scheduler(&[channels]));
    /// Deliveries that became dead letters, by reason.
    DEAD_LETTERED: "posthaste_dead_lettered_total" = counter(&["reason"], scheduler(&[dead_reasons]));
    /// Dead letters that were replayed or dropped.
    LETTERS_MOVED: "posthaste_letters_moved_total" = counter(&["action"], Start::Owner);
    /// Claims whose worker counted as lost, by channel.
    WORKERS_LOST: "posthaste_workers_lost_total" = counter(&["channel"], scheduler(&[channels]));
    /// 1 while doubt is suspended, because outcomes cannot arrive or the log is behind.
    DOUBT_SUSPENDED: "posthaste_doubt_suspended" = gauge(&[]);
    /// Claims past lease and grace that wait until the broker and the log have worked for one grace; counted up to
    /// 10,000.
    DOUBT_HELD: "posthaste_doubt_held" = gauge(&[]);
    /// Deliveries handed to the broker because they were due, or because their tenant had its turn.
    RELEASED: "posthaste_released_total" = counter(&[], scheduler(&[]));
    /// How late the oldest retry or scheduled message is.
    SCHEDULER_LAG_SECONDS: "posthaste_scheduler_lag_seconds" = gauge(&[]).seconds();
    /// Pacing queues.
    LINES: "posthaste_lines" = gauge(&[]);
    /// Pacing queues in which deliveries wait.
    LINES_WAITING: "posthaste_lines_waiting" = gauge(&[]);
    /// How long one turn of a scheduler loop took.
    TASK_SECONDS: "posthaste_task_seconds" = histogram(&["task"]).seconds();
    /// Turns of scheduler loops that failed, by task.
    TASK_FAILURES: "posthaste_task_failures_total" = counter(&["task"], Start::Owner);
    /// Digest windows that closed, by end: told (a message was made), empty, dropped …
    DIGESTS_CLOSED: "posthaste_digests_closed_total" = counter(&["end"], Start::Owner);
    /// How long the oldest window that should be closed is overdue.
    DIGEST_LAG_SECONDS: "posthaste_digest_lag_seconds" = gauge(&[]).seconds();
    /// People told by broadcasts.
    BROADCAST_PEOPLE: "posthaste_broadcast_people_total" = counter(&[], scheduler(&[]));
    /// Events turned into webhooks of configurations.
    WEBHOOK_EVENTS: "posthaste_webhook_events_total" = counter(&[], scheduler(&[]));
    /// Events of providers that have no meaning for Posthaste.
    PROVIDER_EVENTS_IGNORED: "posthaste_provider_events_ignored_total" = counter(&[], scheduler(&[]));
    /// Days for which partitions exist, beyond today.
    PARTITION_DAYS_AHEAD: "posthaste_partition_days_ahead" = gauge(&[]);
    /// Rows removed by retention.
    RETENTION_ROWS: "posthaste_retention_rows_total" = counter(&[], scheduler(&[]));
    /// Idempotency keys removed because they are too old.
    IDEMPOTENCY_KEYS_FORGOTTEN: "posthaste_idempotency_keys_forgotten_total" = counter(&[], scheduler(&[]));

    // WhatsApp.

    /// Messages from people, received through WAHA.
    WAHA_INBOUND: "posthaste_waha_inbound_total" = counter(&[], scheduler(&[]));
    /// Messages from people that had to be fetched from WAHA.
    WAHA_FETCHED: "posthaste_waha_fetched_total" = counter(&[], scheduler(&[]));
    /// Sessions that work but send no webhooks, by the missing kind.
    WAHA_SILENT: "posthaste_waha_silent_total" = counter(&["why"], scheduler(&[waha_silences]));
    /// Sessions by state.
    WAHA_SESSIONS: "posthaste_waha_sessions" = gauge(&["state"]);
    /// Sessions whose WAHA does not answer.
    WAHA_UNREACHABLE_SESSIONS: "posthaste_waha_unreachable_sessions" = gauge(&[]);
    /// Sessions whose configuration WAHA had lost and got again.
    WAHA_RESTORED: "posthaste_waha_restored_total" = counter(&[], scheduler(&[]));
    /// Comparisons of a session with its WAHA that failed.
    WAHA_CHECK_FAILURES: "posthaste_waha_check_failures_total" = counter(&[], scheduler(&[]));
    /// Errors that WAHA reported.
    WAHA_ERRORS: "posthaste_waha_errors_total" = counter(&[], scheduler(&[]));

    // Every process.

    /// Always 1; its label names the version that runs.
    BUILD_INFO: "posthaste_build_info" = gauge(&["version"]);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_name_is_given_once_and_ends_as_its_kind_does() {
        let names: BTreeSet<_> = TABLE.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), TABLE.len());
        for Metric { name, kind, unit, .. } in TABLE {
            assert!(name.starts_with("posthaste_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert_eq!(name.ends_with("_seconds"), *unit == Some(Unit::Seconds), "{name}");
        }
    }

    #[test]
    fn a_row_that_starts_at_zero_is_a_counter_with_values_for_each_label() {
        for Metric { name, help, kind, labels, start, .. } in TABLE {
            assert!(!help.is_empty() && help.trim() == *help, "{name}");
            match start {
                Start::Service(_, values) => {
                    assert_eq!((*kind, values.len()), (Kind::Counter, labels.len()), "{name}");
                }
                Start::Owner => assert_eq!(*kind, Kind::Counter, "{name}"),
                Start::Unset => {}
            }
        }
    }
}
