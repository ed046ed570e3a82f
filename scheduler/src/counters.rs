//! The counters that start at 0. A counter that appeared with its first increment would hide that increment from
//! alerts.

use deliveries::letters::LetterAction;
use runtime::{
    metric::{self, Service},
    telemetry::at_zero,
};

use crate::release::digests::End;

/// Starts each counter of a scheduler, with each value of its label. Tasks start the counters whose labels they know.
pub fn start() {
    metric::start_at_zero(Service::Scheduler);
    at_zero(metric::DIGESTS_CLOSED, "end", End::ALL.map(End::as_str));
    at_zero(metric::LETTERS_MOVED, "action", [LetterAction::Replay, LetterAction::Drop].map(LetterAction::as_str));
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
