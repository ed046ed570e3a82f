//! Roles, limits, and the isolation of tenants.

mod access;
mod doors;
mod privacy;
