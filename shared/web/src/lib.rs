//! The way of every request to its handler: the gate with authentication, rate limits and the audit log; bodies,
//! parameters and problems; and the state that all handlers share.

pub mod audit;
pub mod auth;
pub mod body;
pub mod cache;
pub mod client;
pub mod gate;
pub mod limits;
pub mod migration_state;
pub mod observe;
pub mod openapi;
pub mod params;
pub mod permits;
pub mod problem;
pub mod query_runner;
pub mod state;

pub use query_runner::QueryRunner;
pub use state::Web;
