//! The counters that stand at 0 from the start: one that began with its first increment would hide that increment from alerts.

use broker::{INTAKE_HIGH, INTAKE_STD};
use domain::{Channel, DeadReason, EventSource};
use metrics::counter;
use runtime::telemetry::at_zero;
use submission::{AMQP, HTTP};
use web::problem::Code;

/// Those without a label.
const PLAIN: [&str; 9] = [
    "posthaste_audit_lost_entries_total",
    "posthaste_audit_retried_total",
    "posthaste_digest_keys_missing_total",
    "posthaste_events_total",
    "posthaste_reads_lost_total",
    "posthaste_rule_errors_total",
    "posthaste_rules_matched_total",
    "posthaste_tracking_lost_total",
    "posthaste_ws_pushed_total",
];
const BOOLEANS: [&str; 2] = ["false", "true"];

/// Shows each counter of ingest with each value of its labels.
pub fn start() {
    for name in PLAIN {
        counter!(name).increment(0);
    }
    let tellers = || EventSource::ALL.iter().map(|teller| teller.as_str());
    at_zero("posthaste_requests_refused_total", "code", Code::ALL.iter().map(|code| code.as_str()));
    at_zero("posthaste_waha_webhooks_total", "duplicate", BOOLEANS);
    at_zero("posthaste_signature_failures_total", "source", tellers().chain(["waha"]));
    at_zero("posthaste_intake_held_total", "queue", [INTAKE_HIGH, INTAKE_STD]);
    at_zero("posthaste_intake_refused_total", "reason", DeadReason::ALL.iter().map(|reason| reason.as_str()));
    for channel in Channel::ALL {
        for source in [HTTP, AMQP] {
            counter!("posthaste_messages_accepted_total", "channel" => channel.as_str(), "source" => source)
                .increment(0);
        }
    }
    for provider in tellers() {
        for duplicate in BOOLEANS {
            counter!("posthaste_provider_events_total", "provider" => provider, "duplicate" => duplicate).increment(0);
        }
    }
}
