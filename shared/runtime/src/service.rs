//! Starts and stops every process.

use std::{error::Error, io, process::ExitCode, sync::Arc};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, ConfigError, environment},
    faultpoint,
    probe::{self, Parts},
    telemetry,
};

/// The setting that makes a process abort at a named point, for the fault tests.
const ABORT_AT: &str = "POSTHASTE_ABORT_AT";

/// Why a process could not start.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The settings are invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The fault point does not exist.
    #[error("{ABORT_AT} must be {0}")]
    FaultPoint(String),
    /// The signal handlers could not be installed.
    #[error("failed to listen for signals")]
    Signals(#[source] io::Error),
}

/// Reads the settings, starts logging and metrics, and handles signals: the first SIGTERM or Ctrl-C cancels the
/// returned token, a second one ends the process at once. Call it inside a tokio runtime.
pub fn begin(name: &str) -> Result<(Arc<Config>, CancellationToken), BeginError> {
    let config = Config::from_env()?;
    telemetry::init(name, &config.log);
    if let Some(spec) = environment().get(ABORT_AT).filter(|spec| !spec.is_empty()) {
        faultpoint::arm(spec).map_err(BeginError::FaultPoint)?;
    }
    let stop = CancellationToken::new();
    let listen = |kind| signal(kind).map_err(BeginError::Signals);
    let (terminate, interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::spawn(handle_signals(terminate, interrupt, stop.clone()));
    tokio::spawn(telemetry::install_metrics().keep_up(stop.clone()));
    Ok((Arc::new(config), stop))
}

/// The first signal starts an orderly stop, the second one exits at once.
async fn handle_signals(mut terminate: Signal, mut interrupt: Signal, stop: CancellationToken) {
    let mut next = async || tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} };
    next().await;
    tracing::info!("stopping: finishing what is under way");
    stop.cancel();
    next().await;
    tracing::warn!("a second signal: leaving at once; what was under way is taken up again after the next start");
    std::process::exit(1);
}

/// Runs a service that serves its own health endpoints as the process `name`, from reading the settings to the exit
/// code.
pub async fn process<F, E>(name: &str, run: impl FnOnce(Arc<Config>, Parts, CancellationToken) -> F) -> ExitCode
where
    F: Future<Output = Result<(), E>>,
    E: Error + 'static,
{
    exit(async {
        let (config, stop) = begin(name)?;
        Ok(run(config, Parts::new(), stop).await?)
    })
    .await
}

/// As [`process`], for a service without an API: a bare listener serves its health and metrics.
pub async fn process_with_probe<F, E>(
    name: &str,
    run: impl FnOnce(Arc<Config>, Parts, CancellationToken) -> F,
) -> ExitCode
where
    F: Future<Output = Result<(), E>>,
    E: Error + 'static,
{
    exit(async {
        let (config, stop) = begin(name)?;
        let parts = Parts::new();
        let (host, port, metrics) = (config.http.host.clone(), config.http.port, telemetry::install_metrics());
        let watching = probe::serve(&host, port, parts.clone(), metrics, stop.clone());
        let working = async {
            let worked = run(config, parts, stop.clone()).await;
            stop.cancel();
            worked
        };
        tokio::pin!(working);
        // The listener ends by itself only if it could not be opened.
        tokio::select! {
            biased; // parts that are not ready yet must be in the list before the first probe
            worked = &mut working => return Ok(worked?),
            watched = watching => watched.map_err(|source| ListenError { host: host.clone(), port, source })?,
        }
        Ok(working.await?)
    })
    .await
}

/// The listener for health and metrics could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {host}:{port}")]
struct ListenError {
    host: String,
    port: u16,
    #[source]
    source: io::Error,
}

/// Logs the error once, with all its causes.
async fn exit(work: impl Future<Output = Result<(), Box<dyn Error>>>) -> ExitCode {
    let Err(error) = work.await else { return ExitCode::SUCCESS };
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    tracing::error!(error = text, "the process ends");
    eprintln!("{}", telemetry::masked(&text));
    ExitCode::FAILURE
}
