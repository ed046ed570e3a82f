//! Starts the loops, reports their health, and stops them together.

use std::{future::Future, sync::Arc, time::Duration};

use broker::{Consumer, ConsumerHealth};
use runtime::probe::Parts;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    RunError,
    due_times::DueTimes,
    failure_streak::FailureStreak,
    probe::{ConsumersPart, Heartbeat, TasksPart},
    task::{Task, run_until_stopped},
};

/// All loops of this process.
pub struct Supervisor {
    stop: CancellationToken,
    due_times: DueTimes,
    loops: JoinSet<&'static str>,
    heartbeats: Vec<Arc<Heartbeat>>,
    consumers: Vec<Arc<ConsumerHealth>>,
}

impl Supervisor {
    /// A supervisor without loops. Its loops stop with `stop`, and `due_times` wakes them.
    pub fn new(due_times: DueTimes, stop: &CancellationToken) -> Self {
        let (heartbeats, consumers) = (Vec::new(), Vec::new());
        Self { stop: stop.child_token(), due_times, loops: JoinSet::new(), heartbeats, consumers }
    }

    /// The token that stops every loop.
    pub const fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Spawns a task.
    pub fn spawn<T: Task>(&mut self, task: T) {
        let heartbeat = Arc::new(Heartbeat::new(T::NAME, T::PERIOD));
        self.heartbeats.push(Arc::clone(&heartbeat));
        let running = run_until_stopped(task, heartbeat, self.due_times.clone(), self.stop.clone());
        self.loops.spawn(async move {
            running.await;
            T::NAME
        });
    }

    /// Spawns a loop that consumes a queue. How often it turns depends on the queue, so health shows only its failures.
    pub fn spawn_consumer<F, Fut>(&mut self, name: &'static str, consumer: Consumer, start: F)
    where
        F: FnOnce(Consumer, FailureStreak, CancellationToken) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let heartbeat = Arc::new(Heartbeat::new(name, Duration::MAX / 2));
        self.heartbeats.push(Arc::clone(&heartbeat));
        self.consumers.push(consumer.health());
        let consuming = start(consumer, FailureStreak::new(heartbeat), self.stop.clone());
        self.loops.spawn(async move {
            consuming.await;
            name
        });
    }

    /// Adds the health of the loops to `parts`.
    pub fn register_health(&self, parts: &Parts) {
        parts.add(TasksPart(self.heartbeats.clone()));
        parts.add(ConsumersPart(self.consumers.clone()));
    }

    /// Waits for `stop`, then up to `drain` for the loops and the publishes of `tracker` to finish their current work.
    /// Another scheduler, or this one after its next start, continues with the rest.
    pub async fn join(mut self, tracker: &TaskTracker, drain: Duration) -> Result<(), RunError> {
        let ended = self.stop.clone().run_until_cancelled(self.loops.join_next()).await;
        // On a stop, a loop may end before this function sees the stop.
        if let Some(ended) = ended.filter(|_| !self.stop.is_cancelled()) {
            let name = ended.and_then(Result::ok).unwrap_or("a loop that panicked");
            self.stop.cancel();
            return Err(RunError::Ended(name));
        }
        tracker.close();
        let finished = async {
            while self.loops.join_next().await.is_some() {}
            tracker.wait().await;
        };
        if timeout(drain, finished).await.is_err() {
            tracing::warn!(drain_ms = drain.as_millis(), "not everything was finished in time; it is taken up again");
        }
        Ok(())
    }
}
