//! Makes one retry policy per channel from the settings.

use std::time::Duration;

use domain::{Channel, RetryPolicy, Schedule, retry::AmbiguousPolicy};

use super::{by_channel::ByChannel, kind::InDoubt, reader::Reader, table};

/// The policy of every channel.
pub type RetryConfig = ByChannel<RetryPolicy>;

const MINUTE: u64 = 60;
const HOUR: u64 = 3_600;
/// The pauses, in seconds, that the Standard Webhooks specification recommends.
const STANDARD_WEBHOOKS: [u64; 9] =
    [5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR];
/// Attempts of that schedule: the first one and a retry after each pause.
const STANDARD_WEBHOOKS_ATTEMPTS: u16 = 10;

/// The parts of one channel's policy.
struct Parts {
    attempts: u16,
    base: Option<Duration>,
    max: Option<Duration>,
    longest: Duration,
}

pub(super) fn read(reader: &mut Reader) -> Option<RetryConfig> {
    let common = common(reader);
    let webhook = webhook(reader);
    let doubt = in_doubt(reader);
    let (attempts, base, max) = (
        reader.get_each(&table::RETRY_MAX_ATTEMPTS_ON),
        reader.get_each(&table::RETRY_BASE_MS_ON),
        reader.get_each(&table::RETRY_MAX_MS_ON),
    );
    let wait_max = reader.get(&table::BREAKER_WAIT_MAX_MS);
    let (common, doubt, wait_max) = (common?, doubt?, wait_max?);
    let policy = |channel| {
        let general = if channel == Channel::Webhook { webhook.parts(&common) } else { common.parts() };
        let parts = Parts {
            attempts: attempts.get(channel).unwrap_or(general.attempts),
            base: base.get(channel).or(general.base),
            max: *max.get(channel),
            ..general
        };
        let (max_attempts, schedule, ambiguous) = (parts.attempts, parts.schedule(), *doubt.get(channel));
        RetryPolicy { max_attempts, schedule, ambiguous, wait_max }
    };
    Some(ByChannel::make(policy))
}

impl Parts {
    /// Doubling pauses if a first one is set, else the standard ones, cut to the number of attempts.
    fn schedule(&self) -> Schedule {
        match self.base {
            Some(base) => Schedule::Exponential { base, max: self.max.unwrap_or(self.longest) },
            None => Schedule::Fixed(self.standard()),
        }
    }

    fn standard(&self) -> Vec<Duration> {
        let retries = usize::from(self.attempts.saturating_sub(1));
        let longest = self.max.unwrap_or(Duration::MAX);
        STANDARD_WEBHOOKS.iter().take(retries).map(|&pause| Duration::from_secs(pause).min(longest)).collect()
    }
}

/// `RETRY_MAX_ATTEMPTS`, `RETRY_BASE_MS`, `RETRY_MAX_MS`.
struct Common {
    attempts: u16,
    base: Duration,
    max: Duration,
}

fn common(reader: &mut Reader) -> Option<Common> {
    let attempts = reader.get(&table::RETRY_MAX_ATTEMPTS);
    let base = reader.get(&table::RETRY_BASE_MS);
    let max = reader.get(&table::RETRY_MAX_MS);
    Some(Common { attempts: attempts?, base: base?, max: max? })
}

impl Common {
    const fn parts(&self) -> Parts {
        Parts { attempts: self.attempts, base: Some(self.base), max: None, longest: self.max }
    }
}

/// `WEBHOOK_MAX_RETRIES` and `WEBHOOK_RETRY_DELAY`. They count retries and have no longest pause of their own.
struct Webhook {
    retries: Option<u16>,
    delay: Option<Duration>,
}

fn webhook(reader: &mut Reader) -> Webhook {
    Webhook { retries: reader.get(&table::WEBHOOK_MAX_RETRIES), delay: reader.get(&table::WEBHOOK_RETRY_DELAY) }
}

impl Webhook {
    fn parts(&self, common: &Common) -> Parts {
        let attempts = self.retries.map_or(STANDARD_WEBHOOKS_ATTEMPTS, |retries| retries.saturating_add(1));
        Parts { attempts, base: self.delay, max: None, longest: common.max }
    }
}

/// Text messages and WhatsApp wait for the provider's report by default, because a repeated message annoys people and
/// costs money.
fn in_doubt(reader: &mut Reader) -> Option<ByChannel<AmbiguousPolicy>> {
    let set = reader.get_each(&table::AMBIGUOUS_POLICY_ON);
    let wait = reader.get(&table::AMBIGUOUS_HOLD_MS)?;
    Some(ByChannel::make(|channel| {
        let usual = if matches!(channel, Channel::Sms | Channel::Whatsapp) { InDoubt::Hold } else { InDoubt::Resend };
        match set.get(channel).unwrap_or(usual) {
            InDoubt::Hold => AmbiguousPolicy::Hold(wait),
            InDoubt::Resend => AmbiguousPolicy::Resend,
        }
    }))
}
