//! The wish to stop, as every waiting loop sees it, and the signals that raise it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often [`Stop::wait_until`] looks again.
const POLL: Duration = Duration::from_millis(25);

/// How urgently everything has to end.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
enum Urgency {
    #[default]
    None,
    /// End in good order.
    Stop,
    /// End now; whatever is still running is killed.
    Force,
}

/// A shared switch: asked once it means "stop in good order", asked again "stop at once".
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<(Mutex<Urgency>, Condvar)>);

impl Stop {
    /// Asks to stop; asking again asks to hurry.
    pub fn request(&self) {
        let mut urgency = self.urgency();
        *urgency = if *urgency == Urgency::None { Urgency::Stop } else { Urgency::Force };
        self.0.1.notify_all();
    }

    /// Whether a stop was requested.
    pub fn requested(&self) -> bool {
        *self.urgency() >= Urgency::Stop
    }

    /// Whether a stop was requested twice.
    pub fn forced(&self) -> bool {
        *self.urgency() == Urgency::Force
    }

    /// Fails once a stop was asked for: the way out of a start that is still under way.
    pub fn check(&self) -> Result<()> {
        if self.requested() {
            bail!("stopped before everything was running");
        }
        Ok(())
    }

    /// Sleeps for `time`, or until a stop is asked for. Returns whether it was.
    pub fn sleep(&self, time: Duration) -> bool {
        let asleep = |urgency: &mut Urgency| *urgency == Urgency::None;
        let slept = self.0.1.wait_timeout_while(self.urgency(), time, asleep);
        drop(slept);
        self.requested()
    }

    /// Sleeps until a stop is asked for.
    pub fn wait(&self) {
        while !self.sleep(Duration::from_secs(3600)) {}
    }

    /// Waits until `done` answers true; false when `limit` has passed or a stop was forced before that.
    pub fn wait_until(&self, limit: Duration, mut done: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            if done() {
                return true;
            }
            if self.forced() || Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Turns SIGINT, SIGTERM and SIGHUP of this process into requests to stop, for as long as the
    /// runtime lives. A closed terminal (SIGHUP) ends everything just as Ctrl-C does.
    pub fn on_signals(&self, runtime: &Handle) -> Result<()> {
        let _inside = runtime.enter();
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            runtime.spawn(self.clone().follow(signal(kind)?));
        }
        Ok(())
    }

    async fn follow(self, mut signals: Signal) {
        while signals.recv().await.is_some() {
            self.request();
        }
    }

    fn urgency(&self) -> MutexGuard<'_, Urgency> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_request_forces() {
        let stop = Stop::default();
        assert!(!stop.requested());
        stop.request();
        assert!(stop.requested() && !stop.forced());
        stop.request();
        assert!(stop.forced());
    }

    #[test]
    fn a_request_ends_a_sleep() {
        let stop = Stop::default();
        let other = stop.clone();
        let sleeper = std::thread::spawn(move || other.sleep(Duration::from_secs(3600)));
        stop.request();
        assert!(sleeper.join().is_ok_and(|stopped| stopped));
    }
}
