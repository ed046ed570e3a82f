//! The `ingest` service as its own process.

use std::process::ExitCode;

use shared::local_dispatch::LocalDispatch;

#[tokio::main]
async fn main() -> ExitCode {
    let run = |config, parts, stop| ingest::run(config, parts, LocalDispatch::default(), stop);
    shared::service::process("ingest", run).await
}
