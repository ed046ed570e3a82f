//! The metrics of a worker. No label holds an address. No label holds a tenant either: the number of series would grow with them.

use std::time::Duration;

use domain::{Channel, OutcomeClass, ProviderName, Route};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, histogram};
use runtime::telemetry::at_zero;

/// Registers the help text of each metric for `/metrics`.
pub fn describe() {
    describe_counter!("posthaste_delivery_attempts_total", "Provider calls by how they ended.");
    describe_histogram!("posthaste_delivery_seconds", "How long a provider call took.");
    describe_histogram!(
        "posthaste_end_to_end_seconds",
        "From acceptance to the provider's yes, for deliveries sent on the first attempt."
    );
    describe_counter!(
        "posthaste_claims_total",
        "Deliveries by how they were claimed: with their acceptance, or from a queue, won or lost."
    );
    describe_counter!("posthaste_ambiguous_total", "Provider calls of which it is not known whether they sent.");
    describe_counter!("posthaste_failovers_total", "Deliveries that went on to the next provider of their channel.");
    describe_gauge!("posthaste_worker_in_flight", "Deliveries claimed and not yet answered by their provider.");
    describe_counter!(
        "posthaste_late_slots_total",
        "Slots of WhatsApp sessions whose call ended late, and which count from then."
    );
    describe_counter!("posthaste_egress_blocked_total", "Webhooks not sent because they lead inside.");
    describe_counter!(
        "posthaste_webhook_calls_not_logged_total",
        "Calls to webhook configurations missing in their log."
    );
}

/// Initializes each counter at 0, for the channels that this worker serves and their providers.
pub fn start_at_zero<'a>(channels: impl IntoIterator<Item = (Channel, &'a [ProviderName])>) {
    for (channel, providers) in channels {
        at_zero("posthaste_ambiguous_total", "channel", [channel.as_str()]);
        for provider in providers {
            let (channel, provider) = (channel.as_str(), provider.as_str());
            counter!("posthaste_failovers_total", "channel" => channel, "from" => provider).increment(0);
            for outcome in OutcomeClass::ALL {
                attempts(channel, provider, *outcome).increment(0);
            }
        }
    }
    at_zero("posthaste_claims_total", "result", ["won", "lost", "early"]);
    for name in
        ["posthaste_late_slots_total", "posthaste_egress_blocked_total", "posthaste_webhook_calls_not_logged_total"]
    {
        counter!(name).increment(0);
    }
}

fn attempts(channel: &'static str, provider: &'static str, outcome: OutcomeClass) -> metrics::Counter {
    counter!("posthaste_delivery_attempts_total", "channel" => channel, "provider" => provider, "outcome" => outcome.as_str())
}

/// Records a provider call that ended as `outcome` after `took`.
pub fn attempted(channel: Channel, provider: ProviderName, outcome: OutcomeClass, took: Duration) {
    let (channel, provider) = (channel.as_str(), provider.as_str());
    attempts(channel, provider, outcome).increment(1);
    histogram!("posthaste_delivery_seconds", "channel" => channel, "provider" => provider).record(took);
    if outcome == OutcomeClass::Unknown {
        counter!("posthaste_ambiguous_total", "channel" => channel).increment(1);
    }
}

/// Counts a delivery that fails over from provider `from` to the next one.
pub fn failed_over(channel: Channel, from: ProviderName) {
    counter!("posthaste_failovers_total", "channel" => channel.as_str(), "from" => from.as_str()).increment(1);
}

/// Records a delivery that was sent on its first attempt, `age` after its message was accepted.
pub fn sent_at_once(route: Route, age: Duration) {
    histogram!("posthaste_end_to_end_seconds", "channel" => route.channel.as_str(), "lane" => route.lane.as_str())
        .record(age);
}

/// Counts a WhatsApp slot whose call ended later than the slot window allows.
pub fn slot_used_late() {
    counter!("posthaste_late_slots_total").increment(1);
}

/// Counts the deliveries of one claim from a queue: `won` of `asked`.
pub fn claimed(won: usize, asked: usize) {
    count_claims("won", won);
    count_claims("lost", asked.saturating_sub(won));
}

/// Counts `n` deliveries that were claimed with their acceptance.
pub fn came_claimed(n: usize) {
    count_claims("early", n);
}

fn count_claims(result: &'static str, n: usize) {
    counter!("posthaste_claims_total", "result" => result).increment(u64::try_from(n).unwrap_or(u64::MAX));
}

/// The gauge of the deliveries that a pool has in flight.
pub fn in_flight(route: Route) -> metrics::Gauge {
    metrics::gauge!("posthaste_worker_in_flight", "channel" => route.channel.as_str(), "lane" => route.lane.as_str())
}

/// Counts a webhook that was not sent because its URL leads into the internal network.
pub fn egress_blocked() {
    counter!("posthaste_egress_blocked_total").increment(1);
}

/// Counts a call to a webhook configuration that is missing from the call log because the log's queue was full.
pub fn call_not_logged() {
    counter!("posthaste_webhook_calls_not_logged_total").increment(1);
}
