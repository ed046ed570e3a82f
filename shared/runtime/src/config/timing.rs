//! The waits that depend on each other, and their required order.
//!
//! ```text
//! publish_timeout                       <  relay_after    a row is not relayed while its publish may still succeed
//! longest call + REPORT_TIME            <= drain          an orderly stop cuts no call before the call's own timeout
//! 3 × heartbeat + publish_timeout       <= doubt_grace    no send is doubted while its outcome may be on its way
//! ```
//!
//! A claim ends with its lease (call + `lease_margin`); after that its worker begins no call. `doubt_grace` later its
//! worker counts as lost. In between, the outcome may wait for a confirm (`publish_timeout`), and then be held by a log
//! writer whose machine is gone, which the broker notices after up to three heartbeats. `audit_after` has no place in
//! the order: the audit finds claims and doubts none.

use std::time::Duration;

use url::Url;

use super::{reader::Reader, table};

/// The part of the time to stop that is for storing the outcomes of the last calls.
pub const REPORT_TIME: Duration = Duration::from_secs(3);
/// By default a process may take this much longer to stop than its longest call.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);
/// RabbitMQ checks for traffic once per heartbeat, and closes a connection at the second check without any.
const HEARTBEATS_UNTIL_LOST: u32 = 3;
/// A healthy broker confirms within milliseconds. After this time a message waits in the outbox instead.
const PUBLISH_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// With a shorter timeout a busy machine would look like a lost broker. If `RELAY_AFTER_MS` is even shorter, a row may
/// be relayed while its publish still succeeds; the claim drops the repeat.
const PUBLISH_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// How far the log may be behind before doubt is suspended, unless the heartbeat or the publish timeout needs more.
const LAG_USUAL: Duration = Duration::from_secs(15);

/// The waits that depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimingConfig {
    /// The heartbeat of connections to the broker.
    pub heartbeat: Duration,
    /// A message that is not confirmed within this time counts as not published.
    pub publish_timeout: Duration,
    /// An outbox row that is not published is relayed after this long.
    pub relay_after: Duration,
    /// A dispatch without a result is audited this long after it was published.
    pub audit_after: Duration,
    /// A worker's claim lasts this much longer than the provider's timeout.
    pub lease_margin: Duration,
    /// The time to wait for an outcome after its claim ended, before its worker counts as lost.
    pub doubt_grace: Duration,
    /// The time in which a stopping process finishes its work.
    pub drain: Duration,
}

impl TimingConfig {
    /// The longest time until the broker notices that a node is gone and redelivers its messages.
    pub fn lost_after(&self) -> Duration {
        lost_after(self.heartbeat)
    }

    /// The largest age of the outcomes that are being stored while crashes are reported. If it is smaller, every
    /// earlier outcome has been with a log writer for as long as the broker needs to notice a lost one.
    pub fn lag_max(&self) -> Duration {
        self.doubt_grace.saturating_sub(self.lost_after())
    }
}

fn lost_after(heartbeat: Duration) -> Duration {
    heartbeat.saturating_mul(HEARTBEATS_UNTIL_LOST)
}

/// The broker's URL with the heartbeat of the settings, unless the URL names one; and the heartbeat in effect.
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

/// Reads the waits. An unset wait is made to fit; a set one that does not fit is a fault.
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

/// Checks the order above for the waits that are set.
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
