//! The `worker` service as its own process.

use std::{process::ExitCode, sync::Arc};

use futures_util::TryFutureExt;
use shared::{
    config::{Config, environment},
    faultpoint,
    probe::{self, Parts},
    telemetry,
};

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
    if let Some(point) = environment().get("POSTHASTE_ABORT_AT") {
        faultpoint::arm(point).map_err(anyhow::Error::msg)?;
    }
    telemetry::init("worker", &config.log);
    let metrics = telemetry::install_metrics();
    let (stop, parts) = (worker::signals::stop_on_signal()?, Parts::new());
    tokio::spawn(metrics.clone().keep_up(stop.clone()));
    let watching = probe::serve(&config.http.host, config.http.port, parts.clone(), metrics, stop.clone());
    let working = worker::run_watched(Arc::clone(&config), &parts, stop.clone());
    tokio::try_join!(watching.map_err(anyhow::Error::from), working.map_err(anyhow::Error::from))?;
    Ok(())
}
