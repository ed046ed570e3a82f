//! The `scheduler` service as its own process.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    runtime::service::process_with_probe("scheduler", scheduler::run).await
}
