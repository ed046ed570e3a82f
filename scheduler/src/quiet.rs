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
    /// Until then somebody wants to know.
    asked_until: Option<Instant>,
    /// Since then all has been well, at every look.
    since: Option<Instant>,
    generations: [u64; 2],
}

impl Quiet {
    /// Looks at `watched`, and asks through `publisher` whether the broker takes messages.
    pub const fn new(watched: Watched, publisher: Publisher, timing: TimingConfig) -> Self {
        Self { watched, publisher, timing, asked_until: None, since: None, generations: [0; 2] }
    }

    /// Says that claims wait to be doubted: for so long it is looked, and worth a message, whether all is well.
    pub fn ask(&mut self) {
        self.asked_until = Some(Instant::now() + self.timing.doubt_grace * 2);
    }

    /// Whether somebody wants to know.
    pub fn is_asked(&self) -> bool {
        self.asked_until.is_some_and(|until| until >= Instant::now())
    }

    /// Looks, and says whether all has been well for the doubt grace. To be called often.
    pub async fn look(&mut self) -> bool {
        if !self.is_asked() {
            self.since = None;
            return false;
        }
        // What the look says was so when it began.
        let now = Instant::now();
        self.since = if self.is_well().await { self.since.or(Some(now)) } else { None };
        self.since.is_some_and(|since| since.elapsed() >= self.timing.doubt_grace)
    }

    async fn is_well(&mut self) -> bool {
        let Watched { publishing, consuming, consumer, .. } = &self.watched;
        let generations = [publishing.generation(), consuming.generation()];
        let is_same = std::mem::replace(&mut self.generations, generations) == generations;
        is_same
            && publishing.is_usable()
            && consumer.is_consuming()
            && self.log_keeps_up().await
            && self.probe().await.is_ok()
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
