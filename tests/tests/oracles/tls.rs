//! TLS of mail servers and brokers: the other side is Python's, the certificates are those of an authority made for the test.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{
    Stack, TestServers,
    api::SOON,
    eventually,
    oracle::{Server, interpreter, python, scripts},
    stack::Role,
};

use super::{PATIENT, first_attempt};

/// A folder with the certificates of `certificates.py`.
struct Authority(PathBuf);

impl Authority {
    fn make() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("oracle-{}", uuid::Uuid::now_v7().simple()));
        std::fs::create_dir_all(&dir)?;
        python("certificates.py", &json!({"folder": dir}))?;
        Ok(Self(dir))
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        // Only litter is left if it fails.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn mail_server(mode: &str, certificate: &str, taken: &Path) -> Result<Server> {
    Server::start(|port| {
        let mut command = interpreter()?;
        command.arg(scripts().join("smtp_server.py")).arg(port.to_string()).arg(taken).args([mode, certificate]);
        Ok(command)
    })
    .await
}

/// The mail server asks for TLS, and the certificate decides: one of another authority is given no mail.
#[tokio::test]
async fn mails_go_out_over_starttls_and_tls_to_whom_the_authority_vouches_for_only() -> Result<()> {
    let authority = Authority::make()?;
    for mode in ["starttls", "tls"] {
        for (certificate, is_trusted) in [("server.pem", true), ("stranger.pem", false)] {
            let taken = authority.0.join(format!("{mode}-{certificate}.json"));
            let server = mail_server(mode, &authority.file(certificate), &taken).await?;
            let [timeout, margin] = PATIENT;
            let stack = Stack::start_with(&[
                timeout,
                margin,
                ("SMTP_HOST", "127.0.0.1"),
                ("SMTP_PORT", &server.port.to_string()),
                ("SMTP_USE_TLS", mode),
                ("EMAIL_FROM", "Posthaste Tests <noreply@example.com>"),
                ("SSL_CERT_FILE", &authority.file("ca.pem")),
            ])
            .await?;
            let mail = json!({"channel": "email", "recipient": "ada@example.org", "title": "T", "message": "M"});
            let id = stack.producer().send(&mail).await?;
            let attempt = first_attempt(&stack, &id).await?;
            assert_eq!(attempt["outcome"] == "sent", is_trusted, "{mode} {certificate}: {attempt}");
            let seen = std::fs::read_to_string(&taken).unwrap_or_default();
            assert_eq!(!seen.is_empty(), is_trusted, "{mode} {certificate}: {seen}");
            if is_trusted {
                let seen: Value = serde_json::from_str(seen.trim())?;
                assert_eq!((&seen["tls"], &seen["recipients"]), (&json!(true), &json!(["ada@example.org"])));
            }
        }
    }
    Ok(())
}

/// The test's broker behind the TLS of a third-party library.
async fn broker(servers: &TestServers, certificate: &str) -> Result<Server> {
    let behind = url::Url::parse(&servers.amqp_url)?.port().context("the broker has no port")?;
    Server::start(|port| {
        let mut command = interpreter()?;
        command.arg(scripts().join("tls_proxy.py")).args([port.to_string(), behind.to_string()]).arg(certificate);
        Ok(command)
    })
    .await
}

#[tokio::test]
async fn a_broker_is_used_over_amqps_if_the_authority_vouches_for_it_and_otherwise_messages_wait() -> Result<()> {
    let (authority, servers) = (Authority::make()?, TestServers::shared()?);
    for (certificate, is_trusted) in [("server.pem", true), ("stranger.pem", false)] {
        let proxy = broker(&servers, &authority.file(certificate)).await?;
        let mut stack =
            Stack::prepare(servers.clone(), &[("SSL_CERT_FILE", &authority.file("ca.pem")), ("RUST_LOG", "info")])
                .await?;
        let mut url = url::Url::parse(&stack.amqp_url.replacen("amqp://", "amqps://", 1))?;
        url.set_port(Some(proxy.port)).ok().context("the URL takes no port")?;
        stack.amqp_url = url.to_string();
        stack.spawn("all", Role::All, &[])?;
        if is_trusted {
            stack.ready("all").await?;
        }
        let note = json!({"channel": "in_app", "recipient": "ada", "message": "m"});
        let id = eventually("it is accepted", SOON, || async { stack.producer().send(&note).await.ok() }).await?;
        if is_trusted {
            stack.producer().wait_status(&id, "delivered").await?;
        } else {
            let says = || async { stack.logs().ok()?.to_lowercase().contains("certificate").then_some(()) };
            eventually("the log names the certificate", SOON, says).await?;
            assert_eq!(stack.producer().get(&format!("/api/messages/{id}")).await?.ok()?["status"], "queued");
        }
    }
    Ok(())
}
