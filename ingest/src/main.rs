//! The `ingest` service as its own process.

use std::{process::ExitCode, sync::Arc};

use shared::{
    config::{Config, environment},
    faultpoint, telemetry,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> ExitCode {
    match start().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start() -> anyhow::Result<()> {
    let config = Arc::new(Config::from_env()?);
    telemetry::init("ingest", &config.log);
    if let Some(spec) = environment().get("POSTHASTE_ABORT_AT").filter(|spec| !spec.is_empty()) {
        faultpoint::arm(spec).map_err(anyhow::Error::msg)?;
    }
    let (stop, mut term, mut int) =
        (CancellationToken::new(), signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(telemetry::install_metrics().keep_up(stop.clone()));
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        stopping.cancel();
    });
    Ok(ingest::run(config, stop).await?)
}
