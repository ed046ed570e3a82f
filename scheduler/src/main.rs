//! The `scheduler` service as its own process.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use shared::{
    config::{self, Config},
    faultpoint,
    probe::{self, Parts},
    telemetry,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Arc::new(Config::from_env()?);
    telemetry::init("scheduler", &config.log);
    if let Some(spec) = config::environment().get("POSTHASTE_ABORT_AT").filter(|spec| !spec.is_empty()) {
        faultpoint::arm(spec).map_err(|expected| anyhow!("POSTHASTE_ABORT_AT must be {expected}"))?;
    }
    let stop = CancellationToken::new();
    tokio::spawn(stop_on_signal(stop.clone())?);
    let (parts, metrics) = (Parts::new(), telemetry::install_metrics());
    tokio::spawn(metrics.clone().keep_up(stop.clone()));
    let http = &config.http;
    let serving = probe::serve(&http.host, http.port, parts.clone(), metrics, stop.clone());
    let serving = async { serving.await.with_context(|| format!("failed to listen on {}:{}", http.host, http.port)) };
    let running = scheduler::run_with(Arc::clone(&config), parts, stop.clone());
    tokio::try_join!(serving, async { running.await.map_err(anyhow::Error::from) })?;
    Ok(())
}

fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        stop.cancel();
    })
}
