//! Webhooks: HTTP requests to addresses that tenants name.

pub mod http;
pub mod standard_webhooks;
