//! The `worker` service as its own process.

use std::process::ExitCode;

use engine::local_dispatch::LocalDispatch;

#[tokio::main]
async fn main() -> ExitCode {
    let run = |config, parts, stop| worker::run(config, parts, LocalDispatch::default(), stop);
    runtime::service::process_with_probe("worker", run).await
}
