//! The providers: one file per vendor. `registry` creates those that the settings name, in their order of failover. `breakers`
//! holds calls back from a provider that keeps failing. `secrets` caches the secrets that sign webhooks.

pub mod aws;
pub mod breakers;
#[cfg(test)]
mod conformance;
pub mod counters;
pub mod email;
pub mod in_app;
pub mod push;
pub mod registry;
pub mod sandbox;
pub mod secrets;
pub mod sms;
#[cfg(test)]
mod testing;
pub mod vendor;
pub mod webhook;
pub mod whatsapp;

use domain::Lane;

/// How many attempts a lane makes at once, out of at most `max`. Bulk gets half: it is not urgent, and its attempts compete
/// with the other lanes for the same providers.
pub fn concurrency(max: usize, lane: Lane) -> usize {
    match lane {
        Lane::High | Lane::Normal => max,
        Lane::Bulk => (max / 2).max(1),
    }
}
