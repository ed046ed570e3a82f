//! Clients of external systems: WAHA, the events that providers report, and the guard on every call to an address that a tenant
//! names.

pub mod egress;
pub mod provider_events;
pub mod waha;
