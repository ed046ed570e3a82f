//! The `ingest` service as its own process.
fn main() {}
