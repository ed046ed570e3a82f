//! Routes with which admins and operators read and manage.

pub mod admin;
pub mod analytics;
pub mod audit;
pub mod broadcasts;
pub mod channels;
pub mod configurations;
pub mod dead_letters;
pub mod keys;
pub mod notification_types;
pub mod rules;
pub mod suppressions;
pub mod template_body;
pub mod templates;
pub mod tenant_limits;
pub mod tenants;
pub mod tokens;
pub mod webhooks;
