//! A private RabbitMQ node with its own name server, cookie, home and ports.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::ServersConfig;
use super::container::Container;
use super::find::RabbitmqPrograms;
use super::host::Host;
use super::native::Native;
use super::ports::ServerPorts;
use super::server::{Probe, Server};
use crate::process::{Mark, output_of, without_variables};

const NAME: &str = "rabbitmq";
const IMAGE: &str = "rabbitmq:3.13";
const IMAGE_WITH_MANAGEMENT: &str = "rabbitmq:3.13-management";

/// The node shuts down in good order.
const GENTLE: Signal = Signal::SIGTERM;

/// Runs `rabbitmqctl` against a native node.
#[derive(Debug)]
pub(super) struct Control {
    program: PathBuf,
    home: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Control {
    /// `programs` are those that run the node of `config`.
    pub(super) fn of(config: &ServersConfig, ports: &ServerPorts, programs: &RabbitmqPrograms) -> Self {
        let home = config.dir.join(NAME);
        let environment = environment(&home, ports);
        Self { program: programs.script.with_file_name("rabbitmqctl"), home, environment }
    }

    /// Runs one command and returns what it prints.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        without_variables(&mut command, &["RABBITMQ_", "ERL_", "LOG_BASE", "MNESIA_BASE"]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).current_dir(&self.home);
        output_of(command.args(["--node", NODE]).args(arguments))
    }
}

/// Independent of the machine's host name. It need not be unique, because the name server is private.
const NODE: &str = "posthaste@localhost";

/// How long a probe waits for the broker's first byte.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// Describes the server; nothing is started yet.
pub(super) fn server(
    config: &ServersConfig,
    ports: &ServerPorts,
    programs: Option<RabbitmqPrograms>,
) -> Result<Server> {
    let version = programs.as_ref().map_or_else(|| IMAGE.to_owned(), |programs| programs.version.clone());
    let host: Box<dyn Host> = match programs {
        Some(programs) => Box::new(native(config, ports, &programs)?),
        None => Box::new(container(config, ports)),
    };
    let mut used = vec![ports.amqp];
    used.extend(config.management.then_some(ports.management));
    let probe = Greeting { amqp: ports.amqp, management: config.management.then_some(ports.management) };
    Ok(Server {
        name: NAME,
        version,
        dir: config.dir.clone(),
        ports: [used.as_slice(), &[ports.distribution, ports.epmd]].concat(),
        host,
        probe: Box::new(probe),
        gentle: GENTLE,
        stop: config.stop.clone(),
        detached: false,
    })
}

fn native(config: &ServersConfig, ports: &ServerPorts, programs: &RabbitmqPrograms) -> Result<Native> {
    let home = config.dir.join(NAME);
    write_configuration(&home, config, ports)?;
    let environment = environment(&home, ports);
    let script = programs.script.clone();
    Ok(Native {
        data: home.join("mnesia"),
        prepare: Box::new(|| Ok(())),
        mark: Mark::Environment(format!("RABBITMQ_PID_FILE={}", home.join("pid").display())),
        command: Box::new(move || command(&script, &home, &environment)),
        gentle: GENTLE,
        log: config.log_of(NAME),
        pid_file: config.pid_file_of(NAME),
        running: None.into(),
    })
}

/// With `RABBITMQ_ALLOW_INPUT` the script turns into the Erlang machine instead of watching over it, so
/// the process id we know is the broker's own; `-noinput` undoes what that setting is named after.
fn command(script: &Path, home: &Path, environment: &[(&'static str, String)]) -> Command {
    let mut command = Command::new(script);
    without_variables(&mut command, &["RABBITMQ_", "ERL_", "LOG_BASE", "MNESIA_BASE", "NOTIFY_SOCKET"]);
    command.env("RABBITMQ_ALLOW_INPUT", "1").arg("-noinput");
    command.envs(environment.iter().map(|(name, value)| (name, value))).current_dir(home);
    command
}

/// Every path and port that a node would otherwise share with the system's own RabbitMQ.
fn environment(home: &Path, ports: &ServerPorts) -> Vec<(&'static str, String)> {
    let below = |name: &str| home.join(name).display().to_string();
    vec![
        // Erlang keeps its cookie here.
        ("HOME", home.display().to_string()),
        ("ERL_EPMD_PORT", ports.epmd.to_string()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
        // Otherwise a failed boot drops it into whatever directory is current.
        ("ERL_CRASH_DUMP", below("erl_crash.dump")),
        ("RABBITMQ_NODENAME", NODE.to_owned()),
        ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
        ("RABBITMQ_NODE_PORT", ports.amqp.to_string()),
        ("RABBITMQ_DIST_PORT", ports.distribution.to_string()),
        ("RABBITMQ_MNESIA_BASE", below("mnesia")),
        ("RABBITMQ_LOG_BASE", below("log")),
        // To standard output, which is the log file that our other servers have as well.
        ("RABBITMQ_LOGS", "-".to_owned()),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", below("enabled_plugins")),
        ("RABBITMQ_CONFIG_FILE", below("rabbitmq.conf")),
        ("RABBITMQ_CONFIG_FILES", below("conf.d")),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", below("advanced.config")),
        ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
        ("RABBITMQ_PID_FILE", below("pid")),
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}".to_owned()),
    ]
}

fn write_configuration(home: &Path, config: &ServersConfig, ports: &ServerPorts) -> Result<()> {
    let plugins = if config.management { "[rabbitmq_management].\n" } else { "[].\n" };
    let files = [
        (home.join("rabbitmq.conf"), configuration(config, ports)),
        (home.join("enabled_plugins"), plugins.to_owned()),
    ];
    fs::create_dir_all(home.join("conf.d")).with_context(|| format!("failed to create {}", home.display()))?;
    for (path, text) in files {
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

/// The limits are those of a shared development machine: alarms should come from our own load tests,
/// not from a small disk or from other programs' memory.
fn configuration(config: &ServersConfig, ports: &ServerPorts) -> String {
    let mut text = format!(
        "listeners.tcp.default = 127.0.0.1:{}\n\
         log.console.level = warning\n\
         vm_memory_high_watermark.relative = 0.7\n\
         disk_free_limit.absolute = 50MB\n",
        ports.amqp
    );
    if config.management {
        text += &format!("management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}\n", ports.management);
    }
    text
}

fn container(config: &ServersConfig, ports: &ServerPorts) -> Container {
    let name = format!("{}-{NAME}", super::postgres::identity(&config.dir));
    let mut options = vec![
        // The node's data is filed under its host name.
        "--hostname=posthaste".to_owned(),
        format!("--publish=127.0.0.1:{}:5672", ports.amqp),
        format!("--volume={name}:/var/lib/rabbitmq"),
    ];
    options.extend(config.management.then(|| format!("--publish=127.0.0.1:{}:15672", ports.management)));
    Container {
        name,
        image: if config.management { IMAGE_WITH_MANAGEMENT } else { IMAGE },
        options,
        arguments: Vec::new(),
        pid_file: config.pid_file_of(NAME),
    }
}

/// Asks the broker for its greeting. The AMQP listener opens last, so a client that gets a greeting may
/// go to work, and no second Erlang machine has to start for the question.
#[derive(Debug)]
struct Greeting {
    amqp: u16,
    management: Option<u16>,
}

impl Probe for Greeting {
    fn is_ready(&self) -> bool {
        let management_listens = self.management.is_none_or(|port| connect(port).is_ok());
        management_listens && greeting(self.amqp).is_ok_and(|kind| kind == METHOD_FRAME)
    }
}

/// The first byte of the broker's first frame in AMQP 0-9-1.
const METHOD_FRAME: u8 = 1;

fn connect(port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), PROBE_LIMIT)
}

fn greeting(port: u16) -> std::io::Result<u8> {
    let mut broker = connect(port)?;
    broker.set_read_timeout(Some(PROBE_LIMIT))?;
    broker.write_all(b"AMQP\x00\x00\x09\x01")?;
    let mut first = [0];
    broker.read_exact(&mut first)?;
    Ok(u8::from_be_bytes(first))
}
