//! From the claim to the outcome: retries, failover, pacing, doubt, and processes that are killed.

mod doubt;
mod engine;
mod failover;
mod kills;
mod lines;
mod polls;
mod provider_events;
mod push;
mod refusal;
mod releases;
