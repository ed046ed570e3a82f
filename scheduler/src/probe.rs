//! Readiness checks: whether the loops still turn, and whether the queues are still consumed.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use broker::ConsumerHealth;
use runtime::probe::{Checking, Health, Part};

/// A turn that takes longer than this in addition to its period counts as hung: statements and publishes end after 10
/// s, and the longest wait between two tries is 15 s.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// The name of the part that checks whether the queues are consumed.
pub const CONSUMERS: &str = "consumers";

/// The heartbeat of one loop.
#[derive(Debug)]
pub struct Heartbeat {
    name: &'static str,
    period: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    turned: Instant,
    failing: bool,
}

impl Heartbeat {
    /// The heartbeat of a loop that turns at least once in `period`.
    pub fn new(name: &'static str, period: Duration) -> Self {
        Self { name, period, state: Mutex::new(State { turned: Instant::now(), failing: false }) }
    }

    /// The loop's name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Records a successful turn.
    pub fn beat(&self) {
        *self.lock() = State { turned: Instant::now(), failing: false };
    }

    /// Records a failed turn. The reason appears only in the log, because health reports are public.
    pub fn failed(&self) {
        *self.lock() = State { turned: Instant::now(), failing: true };
    }

    /// The loop's health.
    pub fn health(&self) -> Health {
        let state = self.lock();
        let silence = state.turned.elapsed();
        if silence > self.period + STALLED_AFTER {
            Health::Down(format!("{} has not turned for {} s", self.name, silence.as_secs()))
        } else if state.failing {
            Health::Degraded(format!("{} fails and is tried again", self.name))
        } else {
            Health::Up
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All loops as one part. Its health is that of the worst loop.
pub struct TasksPart(pub Vec<Arc<Heartbeat>>);

impl Part for TasksPart {
    fn name(&self) -> &'static str {
        "tasks"
    }

    fn check(&self) -> Checking<'_> {
        Box::pin(std::future::ready(worst(self.0.iter().map(|heartbeat| heartbeat.health()))))
    }
}

/// The queues that this process consumes.
pub struct ConsumersPart(pub Vec<Arc<ConsumerHealth>>);

impl Part for ConsumersPart {
    fn name(&self) -> &'static str {
        CONSUMERS
    }

    fn check(&self) -> Checking<'_> {
        let idle = self.0.iter().filter(|consumer| !consumer.is_consuming());
        let health = worst(idle.map(|consumer| Health::Down(format!("not consuming {}", consumer.queue()))));
        Box::pin(std::future::ready(health))
    }
}

/// The worst health of several. Equally bad ones are joined, so that no reason is lost.
fn worst(all: impl Iterator<Item = Health>) -> Health {
    all.fold(Health::Up, |worst, next| match (worst, next) {
        (Health::Up, next) => next,
        (worst, Health::Up) => worst,
        (Health::Down(one), Health::Down(other)) => Health::Down(format!("{one}; {other}")),
        (Health::Down(one), _) | (_, Health::Down(one)) => Health::Down(one),
        (Health::Degraded(one), Health::Degraded(other)) => Health::Degraded(format!("{one}; {other}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_loop_speaks_for_all() {
        let degraded = |text: &str| Health::Degraded(text.to_owned());
        let down = |text: &str| Health::Down(text.to_owned());
        assert_eq!(worst([].into_iter()), Health::Up);
        assert_eq!(worst([Health::Up, degraded("a"), Health::Up, degraded("b")].into_iter()), degraded("a; b"));
        assert_eq!(worst([degraded("a"), down("b"), Health::Up, degraded("c"), down("d")].into_iter()), down("b; d"));
    }
}
