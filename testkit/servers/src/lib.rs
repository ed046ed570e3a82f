//! The servers that `cargo xtask up`, the tests and the measurements run beside the platform.
//!
//! [`private`] starts private PostgreSQL and RabbitMQ servers, [`sinks`] are small real receivers for webhooks and mail,
//! and [`process`] starts and ends child processes without leaving any behind. The crate depends on no other one of the
//! workspace, so that a first `cargo xtask up` compiles little before the platform itself.

pub mod env_file;
pub mod environment;
pub mod http;
pub mod private;
pub mod process;
pub mod progress;
pub mod random;
pub mod sinks;
pub mod stop;
