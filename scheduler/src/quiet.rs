//! Whether the outcomes of all calls have had the time to be written down: only then may a claim without one be doubted.
//!
//! An outcome that was published waits in the log queue, or with a log writer. RabbitMQ hands out the oldest first, so what is older
//! than the batch in this process's hands is with some log writer, or written. A log writer on a machine that is lost holds what it
//! has until the broker notices, and one that does not reach the database gives it back within the same time; an outcome that could
//! not be published (a memory alarm, a lost connection) comes when the broker takes messages again. All of it ends within the doubt
//! grace, so that is how long all has to be well before a claim is doubted.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{
    amqp::{Broker, ConsumerHealth, EVENTS_LOG, Outgoing, PublishError, Publisher, declare::ready, topology},
    config::TimingConfig,
    contract::EventBatch,
};
use tokio::time::timeout;
use uuid::Uuid;

use crate::log_progress::LogProgress;

/// Where the messages go that only ask whether the broker takes any.
const ROUTING_KEY: &str = "events.probe";

/// What is looked at.
pub struct Watched {
    /// The connection that this process publishes on.
    pub publishing: Broker,
    /// The connection of its log writer.
    pub consuming: Broker,
    /// How its log writer's consumer is doing.
    pub consumer: Arc<ConsumerHealth>,
    /// How far its log writer is.
    pub log: LogProgress,
}

/// For how long all has been well.
pub struct Quiet {
    watched: Watched,
    publisher: Publisher,
    timing: TimingConfig,
    /// Until then claims wait to be doubted.
    asked_until: Option<Instant>,
    /// Since then all has been well, at every look.
    since: Option<Instant>,
    /// Why doubt is suspended, as of the last look.
    suspended: Option<&'static str>,
    generations: [u64; 2],
}

impl Quiet {
    /// Looks at `watched`, and asks through `publisher` whether the broker takes messages.
    pub const fn new(watched: Watched, publisher: Publisher, timing: TimingConfig) -> Self {
        Self { watched, publisher, timing, asked_until: None, since: None, suspended: None, generations: [0; 2] }
    }

    /// Says that claims wait to be doubted: for so long it is looked, and worth a message, whether all is well.
    pub fn ask(&mut self) {
        self.asked_until = Some(Instant::now() + self.timing.doubt_grace * 2);
    }

    /// Whether claims wait to be doubted.
    pub fn is_asked(&self) -> bool {
        self.asked_until.is_some_and(|until| until >= Instant::now())
    }

    /// Looks, and says whether all has been well for the doubt grace. To be called often.
    pub async fn look(&mut self) -> bool {
        if !self.is_asked() {
            (self.since, self.generations) = (None, self.generations_now());
            self.note(None);
            return false;
        }
        // What the look says was so when it began.
        let now = Instant::now();
        let obstacle = self.obstacle().await;
        self.since = if obstacle.is_none() { self.since.or(Some(now)) } else { None };
        self.note(obstacle);
        self.since.is_some_and(|since| since.elapsed() >= self.timing.doubt_grace)
    }

    /// Whether the last look found that outcomes may still be on their way.
    pub const fn is_suspended(&self) -> bool {
        self.suspended.is_some()
    }

    /// Says in the log when doubt is suspended, and when no longer: claims without an outcome wait that long.
    fn note(&mut self, obstacle: Option<&'static str>) {
        if self.suspended == obstacle {
            return;
        }
        match (obstacle, self.is_asked()) {
            (Some(why), _) => tracing::warn!(why, "claims without an outcome are not doubted, and wait"),
            (None, true) => tracing::info!("all is well again: claims without an outcome are doubted after the grace"),
            (None, false) => tracing::info!("no claim waits to be doubted any more"),
        }
        self.suspended = obstacle;
    }

    fn generations_now(&self) -> [u64; 2] {
        [self.watched.publishing.generation(), self.watched.consuming.generation()]
    }

    /// What keeps outcomes from being written down; `None`: all is well.
    async fn obstacle(&mut self) -> Option<&'static str> {
        let generations = self.generations_now();
        let is_same = std::mem::replace(&mut self.generations, generations) == generations;
        let Watched { publishing, consumer, .. } = &self.watched;
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

    /// Whether what was published a while ago is with a log writer. Clocks of workers may be wrong, and a log writer may never be idle:
    /// either its batch is young enough, or nothing waits behind it.
    async fn log_keeps_up(&self) -> bool {
        let lag_max = self.timing.lag_max();
        let log = &self.watched.log;
        log.stuck_for() <= lag_max && (log.lag() <= lag_max || self.nothing_waits(lag_max).await)
    }

    async fn nothing_waits(&self, patience: Duration) -> bool {
        let Some(connection) = self.watched.consuming.connection() else { return false };
        matches!(timeout(patience, ready(&connection, EVENTS_LOG)).await, Ok(Ok(Some(0))))
    }

    /// Whether the broker takes messages. It tells of an alarm only those who try to publish.
    async fn probe(&self) -> Result<(), PublishError> {
        let nothing = EventBatch::new(Vec::new());
        let probe = Outgoing::json(topology::EVENTS, ROUTING_KEY, Uuid::now_v7(), &nothing)?;
        self.publisher.publish_one(probe).await
    }
}
