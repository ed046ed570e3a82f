//! The metrics of a worker. No label holds an address. No label holds a tenant either: the number of series would grow with them.

use std::time::Duration;

use domain::{Channel, OutcomeClass, ProviderName, Route};
use metrics::{counter, histogram};
use runtime::{
    metric::{self, Service},
    telemetry::at_zero,
};

/// Initializes each counter at 0, for the channels that this worker serves and their providers.
pub fn start_at_zero<'a>(channels: impl IntoIterator<Item = (Channel, &'a [ProviderName])>) {
    metric::start_at_zero(Service::Worker);
    for (channel, providers) in channels {
        at_zero(metric::AMBIGUOUS, "channel", [channel.as_str()]);
        for provider in providers {
            let (channel, provider) = (channel.as_str(), provider.as_str());
            counter!(metric::FAILOVERS, "channel" => channel, "from" => provider).increment(0);
            for outcome in OutcomeClass::ALL {
                attempts(channel, provider, *outcome).increment(0);
            }
        }
    }
}

fn attempts(channel: &'static str, provider: &'static str, outcome: OutcomeClass) -> metrics::Counter {
    counter!(metric::DELIVERY_ATTEMPTS, "channel" => channel, "provider" => provider, "outcome" => outcome.as_str())
}

/// Records a provider call that ended as `outcome` after `took`.
pub fn attempted(channel: Channel, provider: ProviderName, outcome: OutcomeClass, took: Duration) {
    let (channel, provider) = (channel.as_str(), provider.as_str());
    attempts(channel, provider, outcome).increment(1);
    histogram!(metric::DELIVERY_SECONDS, "channel" => channel, "provider" => provider).record(took);
    if outcome == OutcomeClass::Unknown {
        counter!(metric::AMBIGUOUS, "channel" => channel).increment(1);
    }
}

/// Counts a delivery that fails over from provider `from` to the next one.
pub fn failed_over(channel: Channel, from: ProviderName) {
    counter!(metric::FAILOVERS, "channel" => channel.as_str(), "from" => from.as_str()).increment(1);
}

/// Records a delivery that was sent on its first attempt, `age` after its message was accepted.
pub fn sent_at_once(route: Route, age: Duration) {
    histogram!(metric::END_TO_END_SECONDS, "channel" => route.channel.as_str(), "lane" => route.lane.as_str())
        .record(age);
}

/// Counts a WhatsApp slot whose call ended later than the slot window allows.
pub fn slot_used_late() {
    counter!(metric::LATE_SLOTS).increment(1);
}

/// Counts the deliveries of one claim from a queue: `won` of `asked`.
pub fn claimed(won: usize, asked: usize) {
    count_claims("won", won);
    count_claims("lost", asked.saturating_sub(won));
}

/// Counts `n` deliveries that were claimed with their acceptance.
pub fn claimed_with_acceptance(n: usize) {
    count_claims("early", n);
}

fn count_claims(result: &'static str, n: usize) {
    counter!(metric::CLAIMS, "result" => result).increment(u64::try_from(n).unwrap_or(u64::MAX));
}

/// The gauge of the deliveries that a pool has in flight.
pub fn in_flight(route: Route) -> metrics::Gauge {
    metrics::gauge!(metric::WORKER_IN_FLIGHT, "channel" => route.channel.as_str(), "lane" => route.lane.as_str())
}

/// Counts a webhook that was not sent because its URL leads into the internal network.
pub fn egress_blocked() {
    counter!(metric::EGRESS_BLOCKED).increment(1);
}

/// Counts a call to a webhook configuration that is missing from the call log because the log's queue was full.
pub fn call_not_logged() {
    counter!(metric::WEBHOOK_CALLS_NOT_LOGGED).increment(1);
}
