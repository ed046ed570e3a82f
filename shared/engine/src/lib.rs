//! Hands accepted deliveries to workers: through the broker ([`dispatch`]), or to a worker of the same process
//! ([`local_dispatch`]).

pub mod dispatch;
pub mod local_dispatch;
