//! A client of the HTTP API, used by `send` and `message`.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use url::{Host, Url};

use crate::settings::{given, secret_of};

const USUAL_URL: &str = "http://127.0.0.1:8080";
/// Ingest answers within two seconds even when its database is down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the API is, and who asks.
#[derive(Debug, clap::Args)]
pub struct Access {
    /// Where ingest listens [default: http://127.0.0.1:8080]
    #[arg(long, env = "POSTHASTE_URL", hide_env_values = true)]
    url: Option<String>,
    /// An API key or a token; the variable or --key-file keeps it out of the process list
    #[arg(long, env = "POSTHASTE_PRODUCER_KEY", hide_env_values = true)]
    key: Option<String>,
    /// A file that holds the key; it goes before --key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// A client of the API.
pub struct Api {
    client: Client,
    base: Url,
    key: SecretString,
}

/// A successful response.
pub struct Answer {
    /// The JSON body.
    pub body: Value,
    /// True if it repeats the response to an earlier request with the same idempotency key.
    pub replayed: bool,
}

/// A problem in the form of RFC 9457.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    status: u16,
    title: String,
    detail: String,
    code: String,
    errors: Vec<FieldFault>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FieldFault {
    field: String,
    message: String,
}

impl fmt::Display for Problem {
    /// Writes the problem's sentence, then one line for each field.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentence = if self.detail.is_empty() { &self.title } else { &self.detail };
        write!(f, "{sentence} ({} {})", self.status, self.code)?;
        self.errors.iter().try_for_each(|fault| write!(f, "\n  {}: {}", fault.field, fault.message))
    }
}

impl std::error::Error for Problem {}

impl Access {
    /// Creates the client.
    pub fn open(self) -> anyhow::Result<Api> {
        let text = given(self.url).unwrap_or_else(|| USUAL_URL.to_owned());
        let mut base = Url::parse(&text)
            .with_context(|| format!("`{text}` is no URL: set POSTHASTE_URL to something like {USUAL_URL}"))?;
        // Without a trailing slash, `join` would replace the last part of the path.
        if !base.path().ends_with('/') {
            let path = format!("{}/", base.path());
            base.set_path(&path);
        }
        let key = secret_of(self.key_file.as_deref(), given(self.key).map(Into::into))?
            .context("there is no key: set POSTHASTE_PRODUCER_KEY or --key-file; `posthaste key create --tenant NAME --role producer` makes one")?;
        let mut builder = Client::builder().timeout(ANSWER_TIMEOUT);
        if is_here(&base) {
            builder = builder.no_proxy();
        }
        Ok(Api { client: builder.build()?, base, key })
    }
}

/// True for addresses of this machine, which must not go through a proxy.
fn is_here(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => IpAddr::from(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::from(ip).is_loopback(),
        None => false,
    }
}

impl Api {
    /// Sends a GET request.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.call(self.client.get(self.base.join(path)?)).await?.body)
    }

    /// Sends a POST request, with the idempotency key if there is one.
    pub async fn post(&self, path: &str, body: &Value, idempotency_key: Option<&str>) -> anyhow::Result<Answer> {
        let mut request = self.client.post(self.base.join(path)?).json(body);
        if let Some(key) = idempotency_key {
            request = request.header("Idempotency-Key", key);
        }
        self.call(request).await
    }

    async fn call(&self, request: RequestBuilder) -> anyhow::Result<Answer> {
        let sent = request.bearer_auth(self.key.expose_secret()).send().await;
        let answer = sent.with_context(|| {
            format!(
                "no answer from {}: start Posthaste with `posthaste run` or `cargo xtask up`, or set POSTHASTE_URL",
                self.base
            )
        })?;
        read(answer).await
    }
}

async fn read(answer: Response) -> anyhow::Result<Answer> {
    let status = answer.status();
    let replayed = answer.headers().get("Idempotent-Replayed").is_some_and(|value| value == "true");
    let text = answer.text().await.context("the answer broke off")?;
    if !status.is_success() {
        bail!(problem(status, &text));
    }
    let body = serde_json::from_str(&text).context("the answer is no JSON: is POSTHASTE_URL really Posthaste?")?;
    Ok(Answer { body, replayed })
}

/// The problem of a refused request, also if a proxy in between answered instead of ingest.
fn problem(status: StatusCode, text: &str) -> Problem {
    let told: Option<Problem> = serde_json::from_str(text).ok();
    let told = told.filter(|problem| !problem.title.is_empty() || !problem.detail.is_empty());
    told.unwrap_or_else(|| {
        let title = status.canonical_reason().unwrap_or("refused").to_owned();
        Problem { status: status.as_u16(), title, code: "without a reason".to_owned(), ..Problem::default() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_as_a_sentence_and_its_fields() {
        let text = r#"{"type":"x","title":"Bad request","status":400,"detail":"Correct the fields and send again.",
            "code":"validation","errors":[{"field":"recipient","message":"is required"}]}"#;
        let shown = problem(StatusCode::BAD_REQUEST, text).to_string();
        assert_eq!(shown, "Correct the fields and send again. (400 validation)\n  recipient: is required");
    }

    #[test]
    fn a_gateway_that_answers_in_html_is_told_by_its_status() {
        for text in ["<html>", "", "{}", "null"] {
            assert_eq!(
                problem(StatusCode::BAD_GATEWAY, text).to_string(),
                "Bad Gateway (502 without a reason)",
                "{text}"
            );
        }
    }

    #[test]
    fn a_base_with_a_path_is_kept() {
        let access =
            Access { url: Some("https://example.com/notify".to_owned()), key: Some("k".to_owned()), key_file: None };
        assert_eq!(access.open().unwrap().base.join("api/x").unwrap().as_str(), "https://example.com/notify/api/x");
    }

    #[test]
    fn empty_settings_are_unset() {
        let access = Access { url: Some(String::new()), key: Some(" ".to_owned()), key_file: None };
        assert!(access.open().err().unwrap().to_string().contains("POSTHASTE_PRODUCER_KEY"));
    }

    #[test]
    fn only_this_machine_is_reached_past_proxies() {
        for (url, here) in [
            ("http://127.0.0.1:8080/", true),
            ("http://localhost/", true),
            ("http://[::1]/", true),
            ("https://example.com/", false),
        ] {
            assert_eq!(is_here(&Url::parse(url).unwrap()), here, "{url}");
        }
    }
}
