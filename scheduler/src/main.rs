//! The `scheduler` service as its own process.
fn main() {}
