//! Recovery: deliveries of workers that died, and deliveries that the broker lost.

pub mod audit;
pub mod crashes;
