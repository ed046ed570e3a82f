//! The counters that start at 0. A counter that appeared with its first increment would hide that increment from
//! alerts.

use domain::{Channel, DeadReason, EventKind};
use metrics::counter;
use runtime::telemetry::at_zero;
use store::letters::LetterAction;

use crate::digests::End;

/// The counters without a label.
const PLAIN: [&str; 16] = [
    "posthaste_audit_lost_total",
    "posthaste_audit_watched_total",
    "posthaste_broadcast_people_total",
    "posthaste_events_unread_total",
    "posthaste_hints_given_up_total",
    "posthaste_idempotency_keys_forgotten_total",
    "posthaste_outbox_relayed_total",
    "posthaste_provider_events_ignored_total",
    "posthaste_released_total",
    "posthaste_retention_rows_total",
    "posthaste_waha_check_failures_total",
    "posthaste_waha_errors_total",
    "posthaste_waha_fetched_total",
    "posthaste_waha_inbound_total",
    "posthaste_waha_restored_total",
    "posthaste_webhook_events_total",
];

/// Starts each counter of a scheduler, with each value of its label. Tasks start their failure counters themselves.
pub fn start() {
    for name in PLAIN {
        counter!(name).increment(0);
    }
    at_zero("posthaste_events_written_total", "kind", EventKind::ALL.iter().map(|kind| kind.as_str()));
    at_zero("posthaste_retries_scheduled_total", "channel", Channel::ALL.iter().map(|channel| channel.as_str()));
    at_zero("posthaste_dead_lettered_total", "reason", DeadReason::ALL.iter().map(|reason| reason.as_str()));
    at_zero("posthaste_digests_closed_total", "end", End::ALL.map(End::as_str));
    at_zero(
        "posthaste_letters_moved_total",
        "action",
        [LetterAction::Replay, LetterAction::Drop].map(LetterAction::as_str),
    );
    at_zero("posthaste_waha_silent_total", "why", ["state", "messages"]);
}

#[cfg(test)]
mod tests {
    use runtime::telemetry::install_metrics;

    use super::*;

    #[test]
    fn counters_stand_at_zero_from_the_start() {
        let metrics = install_metrics();
        start();
        let text = metrics.render();
        for line in [
            "posthaste_released_total ",
            "posthaste_events_written_total{kind=\"expired\"} ",
            "posthaste_digests_closed_total{end=\"put_off\"} ",
            "posthaste_dead_lettered_total{reason=\"poison\"} ",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
