//! `cargo xtask up`: from a fresh checkout to a running platform with one command.
//!
//! In order: build, servers, schema, tenant and keys, services, demonstration. What a later run needs
//! again (keys, secrets, ports) is kept in `.local`. Everything that was started is watched until Ctrl-C
//! and then ended: services first, because they still talk to the servers while they finish.

mod backing;
mod demo;
mod live;
mod platform_cli;
mod services;
mod settings;
mod summary;
mod supervise;
mod tenant;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use servers::{
    env_file::EnvFile,
    environment,
    private::{Install, Ports, Servers, lock, ports},
    progress::Progress,
    sinks::{HttpSink, SmtpSink},
    stop::Stop,
};
use tokio::runtime::Runtime;

use crate::cargo::{self, Profile};

use backing::Backing;
use platform_cli::PlatformCli;
use services::Services;
use settings::Settings;
use supervise::Watched;

/// The text of `cargo xtask up --help`.
pub const LONG_ABOUT: &str = "Builds and runs the whole platform until Ctrl-C.\n\n\
    PostgreSQL and RabbitMQ are found on this machine or installed (Debian packages, as root or with a sudo that \
    asks for no password; else a Docker engine serves), and run privately with their data below `.local/`. With \
    DATABASE_URL and AMQP_URL in the environment those servers are used instead. Any other setting in the \
    environment wins over the defaults as well.\n\n\
    URLs and keys are written to `.local/env`, logs to `.local/logs/`, process ids to `.local/pids/`. The next \
    run keeps data, keys and secrets; delete `.local` to begin anew.";

/// Options of `cargo xtask up`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Send no demonstration messages
    #[arg(long)]
    no_demo: bool,
    /// The port of the API [default: PORT from the environment, else 8080]
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// Fail instead of installing a missing PostgreSQL or RabbitMQ
    #[arg(long)]
    no_install: bool,
    /// Run ingest, worker and scheduler as processes of their own
    #[arg(long)]
    separate: bool,
    /// Build and run optimised programs
    #[arg(long)]
    release: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let runtime = Runtime::new()?;
    let stop = Stop::default();
    stop.on_signals(runtime.handle())?;
    let up = Up { args, local: cargo::workspace_root().join(".local"), progress: Progress::console(), stop };
    up.run(&runtime)?;
    Ok(ExitCode::SUCCESS)
}

/// One run of the command.
struct Up<'a> {
    args: &'a Args,
    /// Where everything is kept.
    local: PathBuf,
    progress: Progress,
    stop: Stop,
}

/// The built-in receivers of the demonstration.
struct Sinks {
    http: HttpSink,
    smtp: SmtpSink,
}

impl Up<'_> {
    /// Locals are dropped in the reverse order, so a failure at any point ends what runs by then, services
    /// before servers.
    fn run(&self, runtime: &Runtime) -> Result<()> {
        let _lock = lock(&self.local.join("up.lock"))?;
        services::end_leftovers(&self.local, &self.stop);
        let address = settings::ApiAddress::choose(self.args.port)?;
        ports::check_address(&address.host, address.port)?;
        let mut memory = EnvFile::open(&self.local.join("env"));
        let backing = Backing::choose(&self.local, self.install(), &self.stop)?;
        let jwt_secret = remember_basics(&mut memory, &backing, &address)?;

        let programs = self.progress.step("building", || cargo::build_programs(self.profile(), &self.stop))?;
        let servers = self.start_servers(&backing)?;
        let sinks = self.start_sinks(runtime)?;
        let settings = Settings::new(&backing, &address, jwt_secret, &sinks);
        let cli = PlatformCli::new(&programs, &settings);
        self.stop.check()?;
        self.progress.step("migrating the database", || cli.run(&["migrate"]))?;
        tenant::prepare(&cli, &mut memory)?;
        let services = Services::plan(&self.local, &programs, &settings, self.args.separate, &self.stop)?;
        self.progress.step("starting the services", || services.start_all())?;
        tenant::complete(&cli, &mut memory, &address.url())?;

        self.watch(&services, servers.as_ref(), || self.present(&memory, &sinks, runtime));
        self.progress.line("stopping …");
        services.end_all();
        if let Some(servers) = &servers {
            servers.stop()?;
        }
        self.progress.line("stopped");
        Ok(())
    }

    fn install(&self) -> Install {
        if self.args.no_install { Install::Refused } else { Install::Allowed }
    }

    fn profile(&self) -> Profile {
        if self.args.release { Profile::Release } else { Profile::Dev }
    }

    fn start_servers(&self, backing: &Backing) -> Result<Option<Servers>> {
        match &backing.private {
            Some(config) => Servers::start(config, &self.progress).map(Some),
            None => {
                self.progress.line("using the servers that DATABASE_URL and AMQP_URL name");
                Ok(None)
            }
        }
    }

    /// Their ports are remembered too: a message that waits for a retry finds its receiver after a restart.
    fn start_sinks(&self, runtime: &Runtime) -> Result<Sinks> {
        let mut ports = Ports::open(&self.local);
        let http = ([127, 0, 0, 1], ports.free("http_sink")?).into();
        let smtp = ([127, 0, 0, 1], ports.free("smtp_sink")?).into();
        runtime.block_on(async { Ok(Sinks { http: HttpSink::start(http).await?, smtp: SmtpSink::start(smtp).await? }) })
    }

    /// Keeps everything alive while `meanwhile` runs and after it, until a stop is requested.
    fn watch(&self, services: &Services, servers: Option<&Servers>, meanwhile: impl FnOnce()) {
        let servers = servers.into_iter().flat_map(|servers| [&servers.postgres, &servers.rabbitmq]);
        let servers = servers.map(|server| -> &dyn Watched { server });
        let services = services.iter().map(|service| -> &dyn Watched { service });
        std::thread::scope(|scope| {
            for watched in servers.chain(services) {
                scope.spawn(|| supervise::keep_alive(watched, &self.stop, &self.progress));
            }
            meanwhile();
            self.stop.wait();
        });
    }

    /// A failed demonstration is shown, but what runs keeps running: that is when a person wants to look.
    fn present(&self, memory: &EnvFile, sinks: &Sinks, runtime: &Runtime) {
        if !self.args.no_demo
            && let Err(error) = demo::run(memory, sinks, runtime.handle(), &self.progress, &self.stop)
            && !self.stop.requested()
        {
            self.progress.line(format_args!("the demonstration did not finish: {error:#}"));
        }
        if !self.stop.requested() {
            self.progress.plain(summary::text(memory, &self.local, &sinks.http));
        }
    }
}

/// Writes what is known before anything runs, so that other programs can begin to wait for it. Keys of
/// another database are forgotten.
fn remember_basics(memory: &mut EnvFile, backing: &Backing, address: &settings::ApiAddress) -> Result<String> {
    if memory.get("DATABASE_URL") != Some(&backing.database_url) {
        memory.remove(&tenant::NAMES)?;
    }
    let known = environment::get("JWT_SECRET").or_else(|| memory.get("JWT_SECRET").map(str::to_owned));
    let jwt_secret = known.map_or_else(servers::random::secret, Ok)?;
    memory.set([
        ("POSTHASTE_URL", address.url()),
        ("JWT_SECRET", jwt_secret.clone()),
        ("DATABASE_URL", backing.database_url.clone()),
        ("AMQP_URL", backing.amqp_url.clone()),
    ])?;
    Ok(jwt_secret)
}
