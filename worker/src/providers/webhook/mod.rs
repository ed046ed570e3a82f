//! Webhooks: HTTP requests to addresses that tenants name.

pub mod http;
mod resolver;
pub mod standard_webhooks;
