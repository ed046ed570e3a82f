//! The HTTP API as a caller sees it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::Value;

use crate::eventually;

/// How long anything may take that should happen at once, on a machine that is slow and stands still now and then.
pub const SOON: Duration = Duration::from_secs(60);

/// The pause before a request is repeated.
const REPEAT_PAUSE: Duration = Duration::from_millis(100);

/// A caller with a credential.
#[derive(Clone)]
pub struct Api {
    client: reqwest::Client,
    base: String,
    credential: String,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body, `null` if it is no JSON.
    pub body: Value,
}

impl Answer {
    /// The body of a 2xx; anything else fails with what was said.
    pub fn ok(self) -> Result<Value> {
        anyhow::ensure!(self.status.is_success(), "{} {}", self.status, self.body);
        Ok(self.body)
    }

    /// Whether ingest could not reach its database in time: nothing is wrong with the request.
    fn is_to_be_repeated(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE && self.body["code"] == "unavailable"
    }

    /// The names of the fields a problem complains about.
    pub fn fields(&self) -> Vec<String> {
        let errors = self.body["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().filter_map(|error| error["field"].as_str().map(str::to_owned)).collect()
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Api {
    /// A caller of `base` with `credential` as bearer.
    pub fn new(base: &str, credential: &str) -> Self {
        Self { client: reqwest::Client::new(), base: base.to_owned(), credential: credential.to_owned() }
    }

    /// A request with a body and further headers.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).timeout(SOON);
        if !self.credential.is_empty() {
            request = request.bearer_auth(&self.credential);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await?;
        Ok(Answer { status, headers, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
    }

    /// GET; one that the database was too slow for is repeated, as the answer says.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        let start = Instant::now();
        loop {
            let answer = self.request(Method::GET, path, &[], None).await?;
            if !answer.is_to_be_repeated() || start.elapsed() >= SOON {
                return Ok(answer);
            }
            tokio::time::sleep(REPEAT_PAUSE).await;
        }
    }

    /// POST of JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.request(Method::POST, path, &[], Some(serde_json::to_vec(body)?)).await
    }

    /// `send` that must be accepted; the message's id. A 503 is repeated under the same key, as a careful client does: a
    /// machine that stands still for two seconds makes ingest say so.
    pub async fn send(&self, body: &Value) -> Result<String> {
        let fresh = format!("harness-{}", uuid::Uuid::now_v7());
        let key = body["idempotency_key"].as_str().unwrap_or(&fresh);
        let start = Instant::now();
        let mut answer = self.send_keyed(key, body).await?;
        while answer.is_to_be_repeated() && start.elapsed() < SOON {
            tokio::time::sleep(REPEAT_PAUSE).await;
            answer = self.send_keyed(key, body).await?;
        }
        anyhow::ensure!(answer.status == StatusCode::ACCEPTED, "{} {}", answer.status, answer.body);
        answer.body["id"].as_str().map(str::to_owned).context("a 202 carries the id")
    }

    /// `send` under an idempotency key.
    pub async fn send_keyed(&self, key: &str, body: &Value) -> Result<Answer> {
        self.request(
            Method::POST,
            "/api/notifications/send",
            &[("Idempotency-Key", key)],
            Some(serde_json::to_vec(body)?),
        )
        .await
    }

    /// The message as it stands.
    pub async fn message(&self, id: &str) -> Result<Value> {
        self.get(&format!("/api/messages/{id}")).await?.ok()
    }

    /// The timeline as it stands.
    pub async fn timeline(&self, id: &str) -> Result<Value> {
        self.get(&format!("/api/messages/{id}/timeline")).await?.ok()
    }

    /// Waits until the message has `status`.
    pub async fn wait_status(&self, id: &str, status: &str) -> Result<Value> {
        self.wait_status_within(id, status, SOON).await
    }

    /// Waits until the message has `status`.
    pub async fn wait_status_within(&self, id: &str, status: &str, limit: Duration) -> Result<Value> {
        let what = format!("message {id} becomes {status}");
        let found = eventually(&what, limit, || async {
            self.message(id).await.ok().filter(|message| message["status"] == status)
        });
        match found.await {
            Ok(message) => Ok(message),
            Err(late) => Err(late.context(format!("it stands at {:?}", self.timeline(id).await))),
        }
    }
}
