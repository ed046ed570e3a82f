//! The `ingest` service as its own process.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    shared::service::process("ingest", ingest::run).await
}
