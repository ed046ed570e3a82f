//! `posthaste run`: runs all services, or some of them, in one process.

mod health;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use engine::local_dispatch::LocalDispatch;
use runtime::{
    config::Config,
    probe::{self, Parts},
    service, telemetry,
};
use tokio::{
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::failure::chain;
use health::ServicePart;

/// The time that a service needs after its drain to close its connections.
const STOP_MARGIN: Duration = Duration::from_secs(1);

/// Run the services in one process, until SIGTERM or Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  posthaste run                         # ingest, worker and scheduler
  posthaste run --only worker,scheduler # leave ingest to other machines

On SIGTERM or Ctrl-C each service finishes what it holds, within DRAIN_TIMEOUT_MS; a second signal ends at once.")]
pub struct Args {
    /// Only these services, comma-separated
    #[arg(long, value_delimiter = ',', value_name = "SERVICE")]
    only: Vec<Service>,
}

/// The services that `posthaste run` can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Service {
    /// The HTTP API and the AMQP intake
    Ingest,
    /// Calls providers
    Worker,
    /// Stores outcomes, and releases deliveries that are due
    Scheduler,
}

/// The name of a service that ended, and how it ended.
type Ended = (&'static str, anyhow::Result<()>);

impl Service {
    const fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Worker => "worker",
            Self::Scheduler => "scheduler",
        }
    }

    async fn run(
        self,
        config: Arc<Config>,
        health: Parts,
        local_dispatch: LocalDispatch,
        stop: CancellationToken,
    ) -> Ended {
        let ended = match self {
            Self::Ingest => ingest::run(config, health, local_dispatch, stop).await.map_err(anyhow::Error::from),
            Self::Worker => worker::run(config, health, local_dispatch, stop).await.map_err(anyhow::Error::from),
            Self::Scheduler => scheduler::run(config, health, stop).await.map_err(anyhow::Error::from),
        };
        (self.name(), ended)
    }
}

impl Args {
    /// Runs the services until a signal, or until one of them fails.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let (config, stop) = service::begin("posthaste")?;
        let failures = attend(self.start(&config, &stop), stop, config.timing.drain + STOP_MARGIN).await;
        Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Starts the services. Ingest serves the health of the whole process. Without ingest, a plain listener does.
    fn start(&self, config: &Arc<Config>, stop: &CancellationToken) -> JoinSet<Ended> {
        let (mut running, health, local_dispatch) = (JoinSet::new(), Parts::new(), LocalDispatch::default());
        for service in self.services() {
            tracing::info!(name = service.name(), version = env!("CARGO_PKG_VERSION"), "starting");
            let parts =
                if service == Service::Ingest { health.clone() } else { ServicePart::add_to(&health, service.name()) };
            running.spawn(service.run(Arc::clone(config), parts, local_dispatch.clone(), stop.clone()));
        }
        if !self.services().any(|service| service == Service::Ingest) {
            running.spawn(show(Arc::clone(config), health, stop.clone()));
        }
        running
    }

    fn services(&self) -> impl Iterator<Item = Service> {
        let all = [Service::Ingest, Service::Worker, Service::Scheduler];
        all.into_iter().filter(|service| self.only.is_empty() || self.only.contains(service))
    }
}

/// Serves the health and the metrics of a process without ingest, on the port of ingest.
async fn show(config: Arc<Config>, health: Parts, stop: CancellationToken) -> Ended {
    let (http, metrics) = (&config.http, telemetry::install_metrics());
    let served = probe::serve(&http.host, http.port, health, metrics, stop).await;
    ("health", served.with_context(|| format!("failed to listen on {}:{}", http.host, http.port)))
}

/// Waits for every service to end, logs each failure when it happens, and returns them all. A service that ends before
/// the stop also stops the others.
async fn attend(mut running: JoinSet<Ended>, stop: CancellationToken, patience: Duration) -> Vec<anyhow::Error> {
    let mut failures = Vec::new();
    loop {
        let failure = match next(&mut running, &stop, patience).await {
            Ok(None) => return failures,
            Ok(Some(ended)) => failure_of(ended, stop.is_cancelled()),
            Err(late) => {
                running.abort_all();
                Some(late)
            }
        };
        if let Some(failure) = failure {
            tracing::error!(error = chain(&failure), "stopping every service");
            failures.push(failure);
        }
        stop.cancel();
    }
}

/// The next service that ends. After the stop, the wait is bounded.
async fn next(
    running: &mut JoinSet<Ended>,
    stop: &CancellationToken,
    patience: Duration,
) -> anyhow::Result<Option<Result<Ended, JoinError>>> {
    if let Some(ended) = stop.run_until_cancelled(running.join_next()).await {
        return Ok(ended);
    }
    let count = running.len();
    let late = |_| anyhow!("{count} of the services did not stop within {} s", patience.as_secs());
    timeout(patience, running.join_next()).await.map_err(late)
}

fn failure_of(ended: Result<Ended, JoinError>, asked_to: bool) -> Option<anyhow::Error> {
    match ended {
        // Aborted because it was late, which was logged already.
        Err(error) if error.is_cancelled() => None,
        Err(panic) => Some(anyhow::Error::from(panic).context("a service panicked")),
        Ok((name, Err(error))) => Some(error.context(format!("{name} failed"))),
        Ok((name, Ok(()))) if !asked_to => Some(anyhow!("{name} ended by itself")),
        Ok((_, Ok(()))) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    fn asked(only: &[Service]) -> Vec<Service> {
        Args { only: only.to_vec() }.services().collect()
    }

    async fn obedient(stop: CancellationToken) -> Ended {
        stop.cancelled().await;
        ("worker", Ok(()))
    }

    #[test]
    fn all_services_run_unless_some_are_named() {
        assert_eq!(asked(&[]).len(), 3);
        assert_eq!(
            asked(&[Service::Scheduler, Service::Worker, Service::Worker]),
            [Service::Worker, Service::Scheduler]
        );
    }

    async fn failures(running: JoinSet<Ended>, stop: CancellationToken) -> Vec<String> {
        attend(running, stop, PATIENCE).await.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn a_signal_ends_every_service_in_good_order() {
        let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
        running.spawn(obedient(stop.clone()));
        running.spawn(obedient(stop.clone()));
        stop.cancel();
        assert!(failures(running, stop).await.is_empty());
    }

    #[tokio::test]
    async fn a_service_that_fails_takes_the_others_with_it() {
        for (how, wanted) in [(Err(anyhow!("no database")), "ingest failed"), (Ok(()), "ingest ended by itself")] {
            let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
            running.spawn(obedient(stop.clone()));
            running.spawn(async move { ("ingest", how) });
            assert_eq!(failures(running, stop).await, [wanted]);
        }
    }

    #[tokio::test]
    async fn a_panic_is_a_failure() {
        let (stop, mut running) = (CancellationToken::new(), JoinSet::<Ended>::new());
        running.spawn(async { panic!("a bug") });
        assert_eq!(failures(running, stop).await, ["a service panicked"]);
    }

    #[tokio::test]
    async fn a_service_that_does_not_stop_is_not_waited_for() {
        let (stop, mut running) = (CancellationToken::new(), JoinSet::<Ended>::new());
        running.spawn(std::future::pending());
        stop.cancel();
        assert_eq!(failures(running, stop).await, ["1 of the services did not stop within 0 s"]);
    }
}
