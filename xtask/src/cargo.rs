//! Calling Cargo from a program that Cargo itself runs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Result, bail};
use servers::{environment, process, stop::Stop};

/// The packages whose programs make up a running platform.
const PROGRAM_PACKAGES: [&str; 4] = ["posthaste-cli", "posthaste-ingest", "posthaste-worker", "posthaste-scheduler"];

/// How the programs are built.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Profile {
    /// Quick to build.
    Dev,
    /// Quick to run.
    Release,
}

impl Profile {
    /// The directory of this profile below the target directory.
    pub fn dir(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// The directory of the workspace.
pub fn workspace_root() -> PathBuf {
    let manifest_dir =
        environment::get("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest_dir.parent().map_or(manifest_dir.clone(), Path::to_owned)
}

/// Cargo's target directory: the one this program was built in, wherever a user's configuration put it.
pub fn target_dir() -> PathBuf {
    let program = env::current_exe().unwrap_or_default();
    let tagged = program.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    tagged.map_or_else(|| workspace_root().join("target"), Path::to_owned)
}

/// Where the built programs of a profile are.
pub fn program_dir(profile: Profile) -> PathBuf {
    target_dir().join(profile.dir())
}

/// A Cargo command in the workspace, without the variables that `cargo run` set for this program: some
/// build scripts watch those, and everything would be built anew each time.
pub fn cargo() -> Command {
    let mut command = Command::new(environment::get("CARGO").unwrap_or_else(|| "cargo".to_owned()));
    process::without_variables(
        &mut command,
        &["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"],
    );
    command.current_dir(workspace_root());
    command
}

/// Builds the programs of the platform; Cargo's own output shows how far it is.
pub fn build_programs(profile: Profile, stop: &Stop) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--bins"]);
    for package in PROGRAM_PACKAGES {
        build.args(["--package", package]);
    }
    if profile == Profile::Release {
        build.arg("--release");
    }
    finish(build, profile, stop)
}

/// As [`build_programs`], with the features that building the tests of the whole workspace gives them: so nothing is built twice.
pub fn build_for_tests(stop: &Stop) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--workspace", "--bins"]);
    finish(build, Profile::Dev, stop)
}

fn finish(mut build: Command, profile: Profile, stop: &Stop) -> Result<PathBuf> {
    let status = process::run(&mut build, stop)?;
    stop.check()?;
    if !status.success() {
        bail!("the build failed; its messages are above");
    }
    Ok(program_dir(profile))
}

/// The exit code that passes on how a child ended.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
