//! The waits between attempts to reconnect to a server.
//!
//! Only this module uses the `backoff` crate. The project's owner asked for it by name, but it is unmaintained: behind this
//! interface it can be replaced without changing any caller.

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff};

/// The shortest wait. A restarting broker is back within a second or two, so the first attempts follow each other quickly.
pub const DELAY_MIN: Duration = Duration::from_millis(200);
/// The longest wait. An operator who brings a server back should not have to restart the services as well.
pub const DELAY_MAX: Duration = Duration::from_secs(15);

/// Each delay varies by up to half, so that a fleet that lost its server does not reconnect all at once.
const JITTER: f64 = 0.5;

/// Endless waits that grow from [`DELAY_MIN`] to [`DELAY_MAX`], each with jitter.
#[derive(Debug)]
pub struct Reconnect(ExponentialBackoff);

impl Reconnect {
    /// Starts with the shortest wait.
    pub fn new() -> Self {
        // Jitter shortens and lengthens each delay, so the first and the longest interval are set inside the bounds.
        let backoff = ExponentialBackoffBuilder::new()
            .with_initial_interval(DELAY_MIN.div_f64(1.0 - JITTER))
            .with_max_interval(DELAY_MAX.div_f64(1.0 + JITTER))
            .with_randomization_factor(JITTER)
            .with_multiplier(2.0)
            .with_max_elapsed_time(None)
            .build();
        Self(backoff)
    }

    /// The next wait.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so there is no Option to unwrap at each call")]
    pub fn next(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(DELAY_MAX).clamp(DELAY_MIN, DELAY_MAX)
    }

    /// Sleeps for the next wait.
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    /// Starts again with the shortest wait. Call it once a connection has proved to work, not when it opens: otherwise a
    /// connection that breaks at once is retried at full speed.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

impl Default for Reconnect {
    fn default() -> Self {
        Self::new()
    }
}

/// The waits as an endless iterator.
pub fn delays() -> impl Iterator<Item = Duration> {
    let mut reconnect = Reconnect::new();
    std::iter::repeat_with(move || reconnect.next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_with_jitter_and_stay_within_the_bounds() {
        let waits: Vec<_> = delays().take(200).collect();
        assert!(waits.iter().all(|wait| (DELAY_MIN..=DELAY_MAX).contains(wait)), "{waits:?}");
        assert!(waits[0] <= Duration::from_millis(601), "{:?}", waits[0]);
        assert!(waits[50..].iter().all(|wait| *wait >= Duration::from_secs(4)), "{waits:?}");
        assert!(waits[50..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter");
    }

    #[test]
    fn a_reset_starts_from_the_shortest_wait_again() {
        let mut reconnect = Reconnect::new();
        for _ in 0..20 {
            reconnect.next();
        }
        reconnect.reset();
        assert!(reconnect.next() <= Duration::from_millis(601));
    }
}
