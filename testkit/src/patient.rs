//! Help for tests that count, or that read rows which are written a moment later: a machine that stands still for seconds must
//! not look like a provider that does not answer, nor like a worker that is gone.

use std::time::Duration;

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{Api, Stack, api::SOON, eventually};

/// Calls and claims outlast every pause of the machine. Not for tests that kill a worker: its claims would end minutes later.
pub const PATIENT: &[(&str, &str)] =
    &[("PROVIDER_TIMEOUT_MS", "120000"), ("WEBHOOK_TIMEOUT", "120000"), ("LEASE_MARGIN_MS", "60000")];

/// For tests that kill workers or freeze nodes: claims end soon and are doubted soon after. The times keep the order of the real ones,
/// only shorter.
pub const SHORT_LEASES: &[(&str, &str)] = &[
    ("WEBHOOK_TIMEOUT", "2000"),
    ("PROVIDER_TIMEOUT_MS", "2000"),
    ("LEASE_MARGIN_MS", "500"),
    ("AMQP_HEARTBEAT_SECONDS", "1"),
    ("DOUBT_GRACE_MS", "5000"),
];

/// How long much work may take.
pub const LONG: Duration = Duration::from_secs(240);

impl Stack {
    /// As [`Stack::start_with`], with [`PATIENT`] before the settings.
    pub async fn patient(settings: &[(&str, &str)]) -> Result<Self> {
        Self::start_with(&[PATIENT, settings].concat()).await
    }

    /// As [`Stack::start_apart`], with [`PATIENT`].
    pub async fn patient_apart(workers: usize) -> Result<Self> {
        Self::start_apart(workers, PATIENT).await
    }

    /// Waits until a process shows all of this in its metrics: they are counted a moment after the commit.
    pub async fn until_measured(&self, name: &str, wanted: &[&str]) -> Result<()> {
        let url = format!("http://127.0.0.1:{}/metrics", self.port(name)?);
        let url = url.as_str();
        eventually(&format!("the metrics show {wanted:?}"), SOON, || async {
            let shown = reqwest::get(url).await.ok()?.text().await.ok()?;
            wanted.iter().all(|one| shown.contains(one)).then_some(())
        })
        .await
    }

    /// Waits until a process shows a counter, named with its labels, above 0, where all of them stand from the start.
    pub async fn until_counted(&self, name: &str, counter: &str) -> Result<()> {
        let url = format!("http://127.0.0.1:{}/metrics", self.port(name)?);
        let url = url.as_str();
        eventually(&format!("{counter} is counted"), SOON, || async {
            let shown = reqwest::get(url).await.ok()?.text().await.ok()?;
            let count: f64 = shown.lines().find_map(|line| line.strip_prefix(counter))?.trim().parse().ok()?;
            (count > 0.0).then_some(())
        })
        .await
    }

    /// Waits until a count is as wanted.
    pub async fn until_count(&self, query: &str, wanted: i64) -> Result<()> {
        let what = format!("{wanted} by {query}");
        eventually(&what, SOON, || async { (self.count(query).await.ok()? == wanted).then_some(()) }).await
    }
}

/// Erases a person and repeats the call while the answer says that something is left: how much one call erases depends on the
/// machine. Returns all counts.
pub async fn erase(api: &Api, user: &str) -> Result<Value> {
    let (path, begun) = (format!("/api/users/{user}"), std::time::Instant::now());
    let mut all = serde_json::Map::new();
    loop {
        let answer = api.request(Method::DELETE, &path, &[], None).await?.ok()?;
        for (name, count) in answer["erased"].as_object().into_iter().flatten() {
            let before = all.get(name).and_then(Value::as_i64).unwrap_or_default();
            all.insert(name.clone(), json!(before + count.as_i64().unwrap_or_default()));
        }
        if answer["pending"] == false {
            return Ok(Value::Object(all));
        }
        ensure!(begun.elapsed() < SOON, "{user} is not erased yet: {answer}");
    }
}
