//! Measurements beside that of one webhook after the other: acceptance alone, and single messages beside the bulk of another tenant.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use servers::{
    private::ports,
    process::{self, Process},
};

use super::{Bench, BenchServers, Ours, Settings, wait_ready};

/// Deliveries of one bulk call.
const BULK: usize = 1000;
/// Bulk deliveries that the quiet tenant's singles are measured beside.
const BESIDE: usize = 100_000;
/// Recipients of one call while that heap is made: the most there may be.
const BESIDE_BULK: usize = 10_000;
/// Seconds of an open loop at 100 a second.
const SECONDS: usize = 20;

impl Bench {
    /// Only ingest runs: how many deliveries it accepts, singly and in bulk.
    pub(super) fn accept(&self, messages: u32) -> Result<()> {
        let servers = BenchServers::start(self, "ours")?;
        let settings = Settings::new(self, &servers)?;
        let key = settings.tenant("bench")?;
        let port = ports::find_free()?;
        let process = settings.spawn("ingest", "posthaste-ingest", &[], port)?;
        wait_ready(port, &settings.log("ingest"))?;
        let run = |route: &str, body: &Value, count: u32, connections: &str| -> Result<Value> {
            let file = self.body_file(body)?;
            let mut load = self.load(&key, port, route, &file);
            load.args(["-n", &count.to_string(), "-c", connections, "--proc", &format!("ingest={}", process.pid())]);
            figures(&mut load)
        };
        let single = json!({"channel": "in_app", "recipient": "somebody", "message": "{{id}} {{ts}} x".repeat(20)});
        let people: Vec<String> = (0..BULK).map(|n| format!("somebody-{n}")).collect();
        let bulk = json!({"channel": "in_app", "user_ids": people, "message": "x".repeat(400)});
        let warm = run("/api/notifications/send", &single, 2000, "32")?;
        ensure!(warm.get("non2xx").and_then(Value::as_u64) == Some(0), "refused: {warm}");
        let singles = rate(&run("/api/notifications/send", &single, messages, "32")?)?;
        let bulks = rate(&run("/api/notifications/send-bulk", &bulk, 60, "4")?)?;
        println!("accepted alone, deliveries a second: {singles:.0} singly, {:.0} in calls of {BULK}", bulks * 1000.0);
        Ok(())
    }

    /// The p99 of one tenant's singles, alone and then beside another tenant's heap of bulk deliveries.
    pub(super) fn beside(&self, workers: u32) -> Result<()> {
        let servers = BenchServers::start(self, "ours")?;
        let settings = Settings::new(self, &servers)?;
        let (quiet, busy) = (settings.tenant("quiet")?, settings.tenant("busy")?);
        let (ours, port) = Ours::launch(&settings, workers)?;
        let (sink, bulk_sink) = (self.sink()?, self.sink()?);
        let alone = self.singles(&quiet, port, &sink.address)?;
        let people: Vec<String> = (0..BESIDE_BULK).map(|n| format!("http://{}/bulk/{n}", bulk_sink.address)).collect();
        let file = self.body_file(&json!({"channel": "webhook", "recipients": people, "data": {"a": 1}}))?;
        let mut heap = self.load(&busy, port, "/api/notifications/send-bulk", &file);
        heap.args(["-n", &(BESIDE / BESIDE_BULK).to_string(), "-c", "1"]);
        figures(&mut heap)?;
        let beside = self.singles(&quiet, port, &sink.address)?;
        let left = servers.psql("SELECT count(*) FROM deliveries WHERE lane = 'bulk' AND state <> 'delivered'")?;
        let of = |line: &Value, name: &str| line.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
        for figure in ["e2e_p50_ms", "e2e_p99_ms", "accept_p99_ms"] {
            println!(
                "{figure}: {:.1} alone, {:.1} beside {BESIDE} bulk deliveries",
                of(&alone, figure),
                of(&beside, figure)
            );
        }
        println!("bulk deliveries that were still under way at the end: {}", left.trim());
        drop(ours);
        Ok(())
    }

    pub(super) fn singles(&self, key: &str, port: u16, sink: &str) -> Result<Value> {
        let file = self.dir.join("single.json");
        fs::write(&file, super::body(sink))?;
        let mut load = self.load(key, port, "/api/notifications/send", &file);
        load.args(["-n", &(SECONDS * 100).to_string(), "-c", "32", "--rate", "100", "--sink", sink]);
        figures(&mut load)
    }

    pub(super) fn load(&self, key: &str, port: u16, route: &str, body: &std::path::Path) -> Command {
        let mut load = Command::new(&self.loadsink);
        load.args(["load", "--url", &format!("http://127.0.0.1:{port}{route}")]);
        load.args(["--header", &format!("authorization: Bearer {key}"), "--body", &format!("@{}", body.display())]);
        load
    }

    pub(super) fn body_file(&self, body: &Value) -> Result<PathBuf> {
        let file = self.dir.join("body.json");
        fs::write(&file, body.to_string())?;
        Ok(file)
    }

    pub(super) fn sink(&self) -> Result<Sink> {
        let address = format!("127.0.0.1:{}", ports::find_free()?);
        let mut command = Command::new(&self.loadsink);
        command.args(["sink", "--listen", &address]);
        let name = address.replace(':', "-");
        let process =
            Process::spawn(command, &self.dir.join(format!("{name}.log")), &self.dir.join(format!("{name}.pid")))?;
        std::thread::sleep(Duration::from_millis(200));
        Ok(Sink { address, _process: process })
    }
}

/// A receiver that ends with this.
pub(super) struct Sink {
    pub(super) address: String,
    _process: Process,
}

pub(super) fn figures(load: &mut Command) -> Result<Value> {
    let printed = process::output_of(load)?;
    serde_json::from_str(printed.trim()).with_context(|| format!("the load generator said {printed}"))
}

fn rate(line: &Value) -> Result<f64> {
    let refused = line.get("non2xx").and_then(Value::as_u64);
    ensure!(refused == Some(0), "requests were refused: {line}");
    line.get("accept_rps").and_then(Value::as_f64).context("no rate")
}
