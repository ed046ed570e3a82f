//! Checkers that other people wrote; `cargo xtask test --oracles` installs them.

use std::{
    io::Write,
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{eventually, setting};

/// Python takes seconds to load what moto brings along, on a machine that is busy even more.
const START_LIMIT: Duration = Duration::from_secs(180);
const WITHOUT: &str = "the oracles are not installed: run `cargo xtask test --oracles`";

/// Gives a script of `tests/oracles` its question, as JSON, and reads the answer.
pub fn python(script: &str, question: &Value) -> Result<Value> {
    ask(script, interpreter()?.arg(scripts().join(script)), question)
}

/// The same for a script of Node.
pub fn node(script: &str, question: &Value) -> Result<Value> {
    let modules = setting("POSTHASTE_TEST_NODE_MODULES").context(WITHOUT)?;
    let browser = setting("POSTHASTE_TEST_CHROMIUM").context(WITHOUT)?;
    let mut command = Command::new("node");
    command.env("NODE_PATH", modules).env("POSTHASTE_TEST_CHROMIUM", browser);
    ask(script, command.arg(scripts().join(script)), question)
}

/// A Python with every package of `requirements.txt`.
pub fn interpreter() -> Result<Command> {
    Ok(Command::new(setting("POSTHASTE_TEST_PYTHON").context(WITHOUT)?))
}

/// Where the scripts are.
pub fn scripts() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/oracles")
}

fn ask(script: &str, command: &mut Command, question: &Value) -> Result<Value> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().with_context(|| format!("failed to start {script}"))?;
    child.stdin.take().context("no standard input")?.write_all(question.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script} failed:\n{complaint}");
    serde_json::from_slice(&output.stdout).with_context(|| format!("{script} gave no JSON:\n{complaint}"))
}

/// A third-party server on a port of its own; dropping it kills it.
pub struct Server {
    /// Where it listens, on the loopback interface.
    pub port: u16,
    child: Child,
}

impl Server {
    /// Starts what `command` makes of a free port, and waits until it takes connections.
    pub async fn start(command: impl FnOnce(u16) -> Result<Command>) -> Result<Self> {
        // Not one of the system's choice: a client in passing could sit on that before the server does.
        let port = servers::private::ports::find_free()?;
        let mut command = command(port)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let server = Self { port, child };
        eventually("the oracle's server listens", START_LIMIT, || async {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
        })
        .await?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
