//! `posthaste listen`: a local webhook receiver, to see what arrives while you write your own.

use std::{net::Ipv4Addr, path::PathBuf, process::ExitCode};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    http::StatusCode,
    web::{Bytes, Data, PayloadConfig, to},
};
use anyhow::Context;
use domain::clock;
use providers::webhook::standard_webhooks::sign;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use crate::{
    output::{Output, time},
    settings,
};

/// The signature libraries of the standard refuse timestamps further from now than this, in seconds.
const TOLERANCE: i64 = 300;
/// The largest message body that Posthaste accepts.
const BODY_BYTES_MAX: usize = 30 * 1024 * 1024;

/// Receive webhooks on this machine, check their signatures and show them, until Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  posthaste listen
  posthaste listen --port 9000 --secret-file ./webhook-secret
  posthaste listen --status 503  # see how it is tried again

Posthaste calls addresses inside your network only with WEBHOOK_ALLOW_NETS, such as WEBHOOK_ALLOW_NETS=127.0.0.0/8.
The secret is the configuration's, else the tenant's: GET /api/webhooks/signing-secret.")]
pub struct Args {
    /// The port to listen on
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// The secret that signs the webhooks; without it signatures are shown and not checked. The variable or
    /// --secret-file keeps it out of the process list
    #[arg(long, env = "POSTHASTE_WEBHOOK_SECRET", hide_env_values = true)]
    secret: Option<SecretString>,
    /// A file that holds the secret; it goes before --secret
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// The status to answer with
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(200..600))]
    status: u16,
}

struct Receiver {
    secret: Option<SecretString>,
    status: StatusCode,
    out: Output,
}

impl Args {
    /// Runs the command.
    pub async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        let status = StatusCode::from_u16(self.status)?;
        let secret = settings::secret_of(self.secret_file.as_deref(), self.secret)?;
        let receiver = Data::new(Receiver { secret, status, out });
        let port = self.port;
        let server = HttpServer::new(move || {
            App::new()
                .app_data(Data::clone(&receiver))
                .app_data(PayloadConfig::new(BODY_BYTES_MAX))
                .default_service(to(receive))
        });
        let server = server
            .workers(1)
            .bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("failed to listen on port {port}: choose another with --port"))?;
        out.note(&format!("Listening on http://127.0.0.1:{port}, any path. End with Ctrl-C."));
        server.run().await?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn receive(receiver: Data<Receiver>, request: HttpRequest, body: Bytes) -> HttpResponse {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let [id, timestamp, signatures] = ["webhook-id", "webhook-timestamp", "webhook-signature"].map(header);
    let verdict = match &receiver.secret {
        None => "not checked: give --secret",
        Some(secret) => verdict(secret.expose_secret(), (id, timestamp, signatures), &body, clock::now().timestamp()),
    };
    let content = serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body)));
    let shown = json!({
        "at": time(clock::now()),
        "method": request.method().as_str(),
        "path": request.uri().to_string(),
        "webhook_id": id,
        "signature": verdict,
        "body": content,
    });
    // If the terminal is gone, a signal ends the command. The sender gets its response either way.
    let _ = receiver.out.print(&shown, people);
    HttpResponse::new(receiver.status)
}

/// Checks whether one of the signatures matches id, timestamp and body, and whether the timestamp is near `now`.
fn verdict(secret: &str, (id, timestamp, signatures): (&str, &str, &str), body: &[u8], now: i64) -> &'static str {
    let Ok(at) = timestamp.parse::<i64>() else { return "MISSING" };
    let Some(expected) = sign(secret, id, at, body) else { return "not checked: the secret has no known form" };
    match signatures.split(' ').any(|signature| signature == expected) {
        false => "WRONG",
        true if (now - at).abs() > TOLERANCE => "right, but its timestamp is more than five minutes away",
        true => "right",
    }
}

fn people(shown: &Value) -> String {
    let text = |name: &str| shown.get(name).and_then(Value::as_str).unwrap_or_default();
    let body = shown.get("body").map(|body| format!("{body:#}")).unwrap_or_default();
    let [at, method, path, id, signature] = ["at", "method", "path", "webhook_id", "signature"].map(text);
    format!("{at}  {method} {path}\n  webhook-id {id}, signature {signature}\n{body}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_right_only_for_its_secret_its_body_and_its_time() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let (id, at, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        let published = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let head = (id, "1614265330", published);
        assert_eq!(verdict(secret, head, body, at + 10), "right");
        assert_eq!(verdict(secret, (id, "1614265330", &format!("v1,AAAA {published}")), body, at), "right");
        assert!(verdict(secret, head, body, at + 301).contains("minutes away"));
        assert_eq!(verdict(secret, head, b"{}", at), "WRONG");
        assert_eq!(verdict("whsec_AAAA", head, body, at), "WRONG");
        assert_eq!(verdict(secret, (id, "", ""), body, at), "MISSING");
    }
}
