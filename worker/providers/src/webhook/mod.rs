//! Webhooks: HTTP requests to addresses that tenants name.

mod calls;
pub mod http;
mod origin_limiter;
pub mod standard_webhooks;
