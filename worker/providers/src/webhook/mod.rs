//! Webhooks: HTTP requests to addresses that tenants name.

mod calls;
mod crowd;
pub mod http;
pub mod standard_webhooks;
