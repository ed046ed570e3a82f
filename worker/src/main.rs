//! The `worker` service as its own process.

use std::process::ExitCode;

use shared::local_dispatch::LocalDispatch;

#[tokio::main]
async fn main() -> ExitCode {
    let run = |config, parts, stop| worker::run(config, parts, LocalDispatch::default(), stop);
    shared::service::process_with_probe("worker", run).await
}
