//! Decides when a claim without an outcome may be reported as crashed: only after the outcomes of all calls had time to
//! be written.
//!
//! A published outcome waits in the log queue or at a log writer. RabbitMQ delivers the oldest message first, so
//! everything older than this process's current batch is at some log writer, or written. A log writer on a lost machine
//! keeps its messages until the broker notices; one that does not reach the database returns them within the same time.
//! An outcome that could not be published (a memory alarm, a lost connection) follows when the broker takes messages
//! again. All of this ends within the doubt grace, so everything must be well for that long before a claim is reported.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use broker::{Broker, ConsumerHealth, EVENTS_LOG, Outgoing, PublishError, Publisher, declare::ready, topology};
use domain::contract::EventBatch;
use runtime::config::TimingConfig;
use tokio::time::timeout;
use uuid::Uuid;

use crate::log::log_progress::LogProgress;

/// The routing key of messages that only test whether the broker takes any.
const ROUTING_KEY: &str = "events.probe";

/// The parts that are checked.
pub struct OutcomePath {
    /// The connection that this process publishes on.
    pub publishing: Broker,
    /// The connection of its log writer.
    pub consuming: Broker,
    /// The health of its log writer's consumer.
    pub consumer: Arc<ConsumerHealth>,
    /// The progress of its log writer.
    pub log: LogProgress,
}

/// Tracks for how long all parts have been well.
pub struct CrashGate {
    path: OutcomePath,
    publisher: Publisher,
    timing: TimingConfig,
    /// Claims wait to be reported until then.
    waiting_until: Option<Instant>,
    /// Every check since then found all parts well.
    healthy_since: Option<Instant>,
    /// Why reports are suspended, as of the last check.
    suspended: Option<&'static str>,
    generations: [u64; 2],
}

impl CrashGate {
    /// Checks the parts of `watched`, and tests through `publisher` whether the broker takes messages.
    pub const fn new(path: OutcomePath, publisher: Publisher, timing: TimingConfig) -> Self {
        Self { path, publisher, timing, waiting_until: None, healthy_since: None, suspended: None, generations: [0; 2] }
    }

    /// Records that claims wait to be reported. For twice the doubt grace, checks run and may publish test messages.
    pub fn expect_crashes(&mut self) {
        self.waiting_until = Some(Instant::now() + self.timing.doubt_grace * 2);
    }

    /// True if claims wait to be reported.
    pub fn has_waiting(&self) -> bool {
        self.waiting_until.is_some_and(|until| until >= Instant::now())
    }

    /// Checks all parts, and returns true if they have been well for the doubt grace. Must be called often.
    pub async fn check(&mut self) -> bool {
        if !self.has_waiting() {
            (self.healthy_since, self.generations) = (None, self.generations_now());
            self.log_change(None);
            return false;
        }
        // The result of the check holds from its start.
        let now = Instant::now();
        let suspension_reason = self.suspension_reason().await;
        self.healthy_since = if suspension_reason.is_none() { self.healthy_since.or(Some(now)) } else { None };
        self.log_change(suspension_reason);
        self.healthy_since.is_some_and(|healthy_since| healthy_since.elapsed() >= self.timing.doubt_grace)
    }

    /// True if the last check found that outcomes may still be on their way.
    pub const fn is_suspended(&self) -> bool {
        self.suspended.is_some()
    }

    /// Logs when reports are suspended and when they resume, because claims without an outcome wait that long.
    fn log_change(&mut self, suspension_reason: Option<&'static str>) {
        if self.suspended == suspension_reason {
            return;
        }
        match (suspension_reason, self.has_waiting()) {
            (Some(why), _) => tracing::warn!(why, "claims without an outcome are not doubted, and wait"),
            (None, true) => tracing::info!("all is well again: claims without an outcome are doubted after the grace"),
            (None, false) => tracing::info!("no claim waits to be doubted any more"),
        }
        self.suspended = suspension_reason;
    }

    fn generations_now(&self) -> [u64; 2] {
        [self.path.publishing.generation(), self.path.consuming.generation()]
    }

    /// Why outcomes may not get written. `None`: all parts are well.
    async fn suspension_reason(&mut self) -> Option<&'static str> {
        let generations = self.generations_now();
        let is_same = std::mem::replace(&mut self.generations, generations) == generations;
        let OutcomePath { publishing, consumer, .. } = &self.path;
        if !publishing.is_usable() || !is_same {
            Some("the broker was away or takes no messages")
        } else if !consumer.is_consuming() {
            Some("this scheduler's log writer takes no outcomes")
        } else if !self.log_keeps_up().await {
            Some("the log of outcomes is behind")
        } else if self.probe().await.is_err() {
            Some("the broker confirms no messages")
        } else {
            None
        }
    }

    /// True if outcomes published a while ago have reached a log writer. Workers' clocks may be wrong, and a log writer
    /// may never be idle: so either its batch is young enough, or no message waits behind it.
    async fn log_keeps_up(&self) -> bool {
        let lag_max = self.timing.lag_max();
        let log = &self.path.log;
        log.stuck_for() <= lag_max && (log.lag() <= lag_max || self.is_log_queue_empty(lag_max).await)
    }

    async fn is_log_queue_empty(&self, patience: Duration) -> bool {
        let Some(connection) = self.path.consuming.connection() else { return false };
        matches!(timeout(patience, ready(&connection, EVENTS_LOG)).await, Ok(Ok(Some(0))))
    }

    /// Tests whether the broker takes messages. The broker reports an alarm only to connections that try to publish.
    async fn probe(&self) -> Result<(), PublishError> {
        let nothing = EventBatch::new(Vec::new());
        let probe = Outgoing::json(topology::EVENTS, ROUTING_KEY, Uuid::now_v7(), &nothing)?;
        self.publisher.publish_one(probe).await
    }
}
