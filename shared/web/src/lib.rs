//! The way of every request to its handler: the gate with authentication, rate limits and the audit log; bodies,
//! parameters and problems; and the state that all handlers share.

pub mod audit;
pub mod auth;
pub mod body;
pub mod cache;
pub mod client;
pub mod db;
pub mod gate;
pub mod limits;
pub mod observe;
pub mod params;
pub mod permits;
pub mod problem;
pub mod schema;
pub mod schemas;
pub mod state;

pub use db::Db;
pub use state::Web;
