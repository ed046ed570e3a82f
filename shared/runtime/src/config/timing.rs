//! The waits that hold the parts together, and the order they have to be in.
//!
//! ```text
//! publish_timeout                       <  relay_after    a row is not relayed while its publish may still succeed
//! longest call + REPORT_TIME            <= drain          an orderly end cuts no call before its own time-out
//! 3 × heartbeat + publish_timeout       <= doubt_grace    no send is doubted while its outcome may be on its way
//! ```
//!
//! A claim ends with its lease (call + `lease_margin`): from then on its worker begins no call. Whether the worker is lost is another
//! question, and it is asked `doubt_grace` later: an outcome may wait for a confirm (`publish_timeout`), and then in the hands of
//! a log writer whose machine is gone, which the broker notices after up to three heartbeats. `audit_after` has no place in the order: the
//! audit only finds claims, and doubts none.

use std::time::Duration;

use url::Url;

use super::{reader::Reader, table};

/// Of the time to stop, this much is for writing down what became of the last calls.
pub const REPORT_TIME: Duration = Duration::from_secs(3);
/// Beyond the longest call, a process takes this long to stop by default.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);
/// RabbitMQ looks for traffic once per heartbeat and gives a connection up at the second look without any.
const HEARTBEATS_UNTIL_LOST: u32 = 3;
/// Healthy brokers confirm within milliseconds; after this the outbox is the better place for a message.
const PUBLISH_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// A shorter one would take a busy machine for a broker that is away. Only where `RELAY_AFTER_MS` is below it as well is a row
/// relayed while its publish may still succeed, which costs a repeat that the claim drops.
const PUBLISH_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// How far the log may be behind before doubt is suspended, unless the heartbeat or the publish time-out asks for more.
const LAG_USUAL: Duration = Duration::from_secs(15);

/// The waits that hold the parts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimingConfig {
    /// The heartbeat of connections to the broker.
    pub heartbeat: Duration,
    /// A message that is not confirmed by then counts as not published.
    pub publish_timeout: Duration,
    /// An outbox row that is not published is relayed after this long.
    pub relay_after: Duration,
    /// A dispatch without a result is looked into this long after it was published.
    pub audit_after: Duration,
    /// A worker's claim outlives the provider's timeout by this.
    pub lease_margin: Duration,
    /// An outcome is waited for this long after its claim ended, before its worker counts as lost.
    pub doubt_grace: Duration,
    /// A stopping process finishes what it holds for this long.
    pub drain: Duration,
}

impl TimingConfig {
    /// The longest time until the broker knows that a node is gone, and hands to others what that node held.
    pub fn lost_after(&self) -> Duration {
        lost_after(self.heartbeat)
    }

    /// How old the outcomes may be that are being written down while crashes are reported: what was published before them has then
    /// been with a log writer for as long as the broker needs to notice that it is gone.
    pub fn lag_max(&self) -> Duration {
        self.doubt_grace.saturating_sub(self.lost_after())
    }
}

fn lost_after(heartbeat: Duration) -> Duration {
    heartbeat.saturating_mul(HEARTBEATS_UNTIL_LOST)
}

/// The broker's URL with the heartbeat of the settings, unless it names one itself; and the heartbeat that holds.
pub(super) fn with_heartbeat(mut url: Url, seconds: u16) -> (Url, u16) {
    let named = url.query_pairs().find(|(name, _)| name == "heartbeat").and_then(|(_, value)| value.parse().ok());
    match named.filter(|seconds| *seconds > 0) {
        Some(named) => (url, named),
        None => {
            url.query_pairs_mut().append_pair("heartbeat", &seconds.to_string());
            (url, seconds)
        }
    }
}

/// Reads the waits. What is not set is made to fit; what is set and does not fit is a fault.
pub(super) fn read(
    reader: &mut Reader,
    heartbeat: Option<u16>,
    longest_call: Option<Duration>,
) -> Option<TimingConfig> {
    let (relay_after, audit_after) = (reader.get(&table::RELAY_AFTER_MS), reader.get(&table::AUDIT_AFTER_MS));
    let lease_margin = reader.get(&table::LEASE_MARGIN_MS);
    let (drain, doubt_grace) = (reader.get(&table::DRAIN_TIMEOUT_MS), reader.get(&table::DOUBT_GRACE_MS));
    let (relay_after, longest_call) = (relay_after?, longest_call?);
    let heartbeat = Duration::from_secs(heartbeat?.into());
    let publish_timeout = (relay_after * 2 / 3).clamp(PUBLISH_TIMEOUT_MIN, PUBLISH_TIMEOUT_MAX);
    let lost_after = lost_after(heartbeat);
    let usual_grace = lost_after + lost_after.max(publish_timeout).max(LAG_USUAL);
    let timing = TimingConfig {
        heartbeat,
        publish_timeout,
        relay_after,
        audit_after: audit_after?,
        lease_margin: lease_margin?,
        doubt_grace: doubt_grace.unwrap_or(usual_grace),
        drain: drain.unwrap_or(longest_call + DRAIN_MARGIN),
    };
    check(reader, &timing, longest_call);
    Some(timing)
}

/// The order above, for what was set.
fn check(reader: &mut Reader, timing: &TimingConfig, longest_call: Duration) {
    let least = longest_call + REPORT_TIME;
    if timing.drain < least {
        let why = "would cut calls that are under way: it must be 3000 more than WEBHOOK_TIMEOUT and PROVIDER_TIMEOUT_MS, at least";
        reader.unfit(&table::DRAIN_TIMEOUT_MS, &format!("{why} {}", least.as_millis()));
    }
    let least = timing.lost_after() + timing.publish_timeout;
    if timing.doubt_grace < least {
        let why = "would doubt sends whose outcomes are on their way: it must cover three heartbeats and a publish time-out, at least";
        reader.unfit(&table::DOUBT_GRACE_MS, &format!("{why} {}", least.as_millis()));
    }
}
