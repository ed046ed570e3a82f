//! The `worker` service as its own process.
fn main() {}
