//! Queries of handlers.

use std::{future::Future, time::Duration};

use store::{DbResult, Store};
use tokio::{runtime::Handle, time::timeout};

use crate::problem::Problem;

/// Bound on a query. The statement timeout ends longer list queries.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs queries for the HTTP threads.
#[derive(Clone)]
pub struct QueryRunner {
    store: Store,
    runtime: Handle,
}

impl QueryRunner {
    /// Runs queries on the caller's runtime.
    pub fn new(store: Store) -> Self {
        Self { store, runtime: Handle::current() }
    }

    /// Spawns background work on the main runtime.
    pub fn spawn<F, Fut>(&self, work: F)
    where
        F: FnOnce(Store) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.runtime.spawn(work(self.store.clone()));
    }

    /// Runs `ask` in a task of the main runtime. When a client hangs up, its handler is dropped at any await point, and the
    /// HTTP threads end before the rest of the process. Neither may interrupt a query and leave a pool connection half
    /// used.
    pub async fn run<T, F, Fut>(&self, ask: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(Store) -> Fut + Send + 'static,
        Fut: Future<Output = DbResult<T>> + Send + 'static,
    {
        self.run_within(QUERY_TIMEOUT, ask).await
    }

    /// As [`QueryRunner::run`], with `bound` instead of the default timeout.
    pub async fn run_within<T, F, Fut>(&self, bound: Duration, ask: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(Store) -> Fut + Send + 'static,
        Fut: Future<Output = DbResult<T>> + Send + 'static,
    {
        let task = self.runtime.spawn(ask(self.store.clone()));
        match timeout(bound, task).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(_)) => Err(Problem::internal()),
            Err(_) => Err(Problem::unavailable()),
        }
    }
}
