//! The `ingest` service as its own process.

use std::process::ExitCode;

use engine::local_dispatch::LocalDispatch;

#[tokio::main]
async fn main() -> ExitCode {
    let run = |config, parts, stop| ingest::run(config, parts, LocalDispatch::default(), stop);
    runtime::service::process("ingest", run).await
}
