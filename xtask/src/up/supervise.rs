//! Starting again what died.

use std::time::{Duration, Instant};

use anyhow::Result;
use servers::{private::Server, progress::Progress, stop::Stop};

use super::services::Service;

/// How often a process is looked at.
const POLL: Duration = Duration::from_millis(250);

/// The pause before the first restart; it doubles each time, so that a broken program does not spin.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// The longest pause before a restart.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A process that has run for so long counts as healthy again.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// Something that is meant to run until we stop it.
pub(super) trait Watched: Sync {
    fn name(&self) -> &str;
    fn is_running(&self) -> bool;
    fn start(&self) -> Result<()>;
}

impl Watched for Server {
    fn name(&self) -> &str {
        self.name()
    }
    fn is_running(&self) -> bool {
        self.is_running()
    }
    fn start(&self) -> Result<()> {
        self.start()
    }
}

impl Watched for Service {
    fn name(&self) -> &str {
        self.name
    }
    fn is_running(&self) -> bool {
        self.is_running()
    }
    fn start(&self) -> Result<()> {
        self.start()
    }
}

/// Starts it again whenever it has died, until a stop is asked for.
pub(super) fn keep_alive(watched: &dyn Watched, stop: &Stop, progress: &Progress) {
    let mut pause = PAUSE_MIN;
    let mut started = Instant::now();
    while !stop.sleep(POLL) {
        if watched.is_running() {
            continue;
        }
        if started.elapsed() > HEALTHY_AFTER {
            pause = PAUSE_MIN;
        }
        progress.line(format_args!("{} has ended; starting it again in {:.1} s", watched.name(), pause.as_secs_f64()));
        if stop.sleep(pause) {
            return;
        }
        match watched.start() {
            Ok(()) => progress.line(format_args!("{} runs again", watched.name())),
            Err(error) if !stop.requested() => {
                progress.line(format_args!("{} does not start: {error:#}", watched.name()))
            }
            Err(_) => return,
        }
        started = Instant::now();
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Dies as soon as it was started, and asks to stop at the third start.
    struct Weak<'a> {
        starts: AtomicUsize,
        stop: &'a Stop,
    }

    impl Watched for Weak<'_> {
        fn name(&self) -> &str {
            "weak"
        }
        fn is_running(&self) -> bool {
            false
        }
        fn start(&self) -> Result<()> {
            if self.starts.fetch_add(1, Ordering::Relaxed) == 2 {
                self.stop.request();
            }
            Ok(())
        }
    }

    #[test]
    fn what_dies_is_started_again_with_growing_pauses() {
        let stop = Stop::default();
        let weak = Weak { starts: AtomicUsize::new(0), stop: &stop };
        let began = Instant::now();
        keep_alive(&weak, &stop, &Progress::silent());
        assert_eq!(weak.starts.load(Ordering::Relaxed), 3);
        assert!(began.elapsed() >= PAUSE_MIN * (1 + 2 + 4));
    }
}
