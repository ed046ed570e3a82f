//! Mail over SMTP and push over HTTP/2 beside webhooks, and webhooks beside a vendor that is dead.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use servers::{
    private::ports,
    sinks::{http::HttpSink, smtp::SmtpSink},
};

use super::{Bench, BenchServers, Ours, Settings, scenarios::figures};

/// Sent before anything is measured.
const WARM_UP: u32 = 500;
/// Text messages that wait for the dead vendor.
const WAITING: u32 = 10_000;
/// Longest wait for everything to arrive.
const LIMIT: Duration = Duration::from_secs(300);
/// Ticks of `/proc/<pid>/stat` in a second.
const TICKS: f64 = 100.0;

/// Where one kind of message arrives.
trait Arrivals {
    /// Messages so far.
    fn count(&self) -> usize;
    /// Connections so far.
    fn connections(&self) -> usize;
}

impl Arrivals for SmtpSink {
    fn count(&self) -> usize {
        self.mails().len()
    }

    fn connections(&self) -> usize {
        self.connections()
    }
}

impl Arrivals for HttpSink {
    fn count(&self) -> usize {
        self.requests().len()
    }

    fn connections(&self) -> usize {
        self.connections()
    }
}

impl Bench {
    /// The same number of webhooks, mails and push notifications, one kind after the other, each into a sink of its own.
    pub(super) fn vendors(&self, messages: u32) -> Result<()> {
        let runtime = tokio::runtime::Runtime::new()?;
        let (hooks, mails, pushes) = runtime.block_on(async {
            anyhow::Ok((HttpSink::start_local().await?, SmtpSink::start_local().await?, HttpSink::start_local().await?))
        })?;
        let servers = BenchServers::start(self, "ours")?;
        let mut settings = Settings::new(self, &servers)?;
        settings.all.extend([
            ("SMTP_HOST", "127.0.0.1".to_owned()),
            ("SMTP_PORT", mails.address().port().to_string()),
            ("EMAIL_FROM", "bench@example.com".to_owned()),
            ("PUSH_BACKEND", "apns".to_owned()),
            ("APNS_BASE_URL", pushes.url("/")),
            ("APNS_CERTIFICATE_PATH", self.signing_key()?),
            ("APNS_KEY_ID", "ABC1234567".to_owned()),
            ("APNS_TEAM_ID", "DEF1234567".to_owned()),
            ("APNS_TOPIC", "com.example.app".to_owned()),
        ]);
        let key = settings.tenant("bench")?;
        let (ours, port) = Ours::launch(&settings, 0)?;
        let text = "x".repeat(400);
        let kinds: [(&str, Value, &dyn Arrivals); 3] = [
            ("webhook", json!({"channel": "webhook", "recipient": hooks.url("/hook"), "data": {"text": text}}), &hooks),
            (
                "mail",
                json!({"channel": "email", "recipient": "ada@example.com", "subject": "Hi", "message": text}),
                &mails,
            ),
            ("push", json!({"channel": "push", "recipient": "ab".repeat(32), "title": "Hi", "message": text}), &pushes),
        ];
        let mut webhooks = None;
        for (name, body, sink) in kinds {
            self.carry(&key, port, (&body, WARM_UP), sink)?;
            let (before, started) = (ours.cpu()?, Instant::now());
            self.carry(&key, port, (&body, messages), sink)?;
            let rate = f64::from(messages) / started.elapsed().as_secs_f64();
            let cpu = (ours.cpu()? - before) * 1e6 / f64::from(messages);
            let base = *webhooks.get_or_insert(rate);
            println!(
                "{name}: {rate:.0} a second ({:.2} of webhooks), {cpu:.0} µs of our CPU each, {} connections in all",
                rate / base,
                sink.connections()
            );
        }
        Ok(())
    }

    /// Posts messages and waits until they have arrived.
    fn carry(&self, key: &str, port: u16, (body, count): (&Value, u32), sink: &dyn Arrivals) -> Result<()> {
        let wanted = sink.count() + usize::try_from(count)?;
        self.post(key, port, body, count)?;
        let started = Instant::now();
        while sink.count() < wanted {
            ensure!(started.elapsed() < LIMIT, "only {} of {wanted} arrived", sink.count());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn post(&self, key: &str, port: u16, body: &Value, count: u32) -> Result<()> {
        let file = self.body_file(body)?;
        let mut load = self.load(key, port, "/api/notifications/send", &file);
        load.args(["-n", &count.to_string(), "-c", "32"]);
        let refused = figures(&mut load)?.get("non2xx").and_then(Value::as_u64);
        ensure!(refused == Some(0), "{refused:?} requests were refused");
        Ok(())
    }

    /// Webhooks alone, and then with text messages waiting for a vendor that refuses connections.
    pub(super) fn outage(&self, messages: u32) -> Result<()> {
        let runtime = tokio::runtime::Runtime::new()?;
        let hooks = runtime.block_on(HttpSink::start_local())?;
        let nowhere = format!("http://127.0.0.1:{}", ports::find_free()?);
        let servers = BenchServers::start(self, "ours")?;
        let mut settings = Settings::new(self, &servers)?;
        settings.all.extend([
            ("SMS_BACKEND", "twilio".to_owned()),
            ("TWILIO_ACCOUNT_SID", format!("AC{}", "0".repeat(32))),
            ("TWILIO_AUTH_TOKEN", "token".to_owned()),
            ("TWILIO_FROM_NUMBER", "+15005550006".to_owned()),
            ("TWILIO_BASE_URL", nowhere),
        ]);
        let key = settings.tenant("bench")?;
        let (_ours, port) = Ours::launch(&settings, 0)?;
        let sink = self.sink()?;
        let webhook = json!({"channel": "webhook", "recipient": hooks.url("/hook"), "data": {"text": "x".repeat(400)}});
        let measure = || -> Result<(f64, f64)> {
            let started = Instant::now();
            self.carry(&key, port, (&webhook, messages), &hooks)?;
            let rate = f64::from(messages) / started.elapsed().as_secs_f64();
            let open = self.singles(&key, port, &sink.address)?;
            Ok((rate, open.get("e2e_p99_ms").and_then(Value::as_f64).context("no p99")?))
        };
        self.carry(&key, port, (&webhook, WARM_UP), &hooks)?;
        let (rate, p99) = measure()?;
        let sms = json!({"channel": "sms", "recipient": "+4915112345678", "message": "hello"});
        self.post(&key, port, &sms, WAITING)?;
        std::thread::sleep(Duration::from_secs(5));
        let (rate_beside, p99_beside) = measure()?;
        let calls =
            servers.psql("SELECT count(*) FROM delivery_events WHERE channel = 'sms' AND provider IS NOT NULL")?;
        println!("webhooks a second: {rate:.0} alone, {rate_beside:.0} ({:.2}) beside the outage", rate_beside / rate);
        println!("p99 at 100 a second: {p99:.1} ms alone, {p99_beside:.1} ms ({:.2}) beside it", p99_beside / p99);
        println!("calls to the dead vendor: {} for {WAITING} messages", calls.trim());
        Ok(())
    }

    /// A key for tokens of APNs, in a file.
    fn signing_key(&self) -> Result<String> {
        let failed = |_| anyhow::anyhow!("failed to make a key");
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        let text = STANDARD.encode(document.map_err(failed)?.as_ref());
        let file = self.dir.join("apns.p8");
        fs::write(&file, format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"))?;
        Ok(file.to_string_lossy().into_owned())
    }
}

impl Ours {
    /// Seconds of CPU that our processes have used.
    fn cpu(&self) -> Result<f64> {
        let mut ticks = 0.0;
        for (name, process) in &self.running {
            let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid()))?;
            let (_, fields) = stat.rsplit_once(')').with_context(|| format!("{name} has no stat line"))?;
            // The state, a letter, is not among the numbers: user time is the 11th of them, system time the 12th.
            let fields: Vec<f64> = fields.split_whitespace().filter_map(|field| field.parse().ok()).collect();
            ticks += fields.iter().skip(10).take(2).sum::<f64>();
        }
        Ok(ticks / TICKS)
    }
}
