//! Finding the programs of both servers, and refusing versions that are too old.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{on_path, output_of};

/// The oldest PostgreSQL that the platform supports.
const POSTGRES_MAJOR_MIN: u32 = 15;

/// The oldest RabbitMQ that the platform supports.
const RABBITMQ_MIN: (u32, u32) = (3, 10);

/// Where distributions keep PostgreSQL, one directory per major version.
const POSTGRES_VERSIONS: &str = "/usr/lib/postgresql";

/// Debian's real start script. The command on the PATH is a wrapper that changes to the account
/// `rabbitmq` or refuses to run.
const RABBITMQ_SCRIPT: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// The programs of one PostgreSQL version.
#[derive(Clone, Debug)]
pub(super) struct PostgresPrograms {
    dir: PathBuf,
    major: u32,
    pub(super) version: String,
}

impl PostgresPrograms {
    /// The path of one of its programs.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn in_dir(dir: PathBuf) -> Option<Self> {
        let complete = ["postgres", "initdb", "psql"].iter().all(|name| dir.join(name).is_file());
        let said = output_of(Command::new(dir.join("postgres")).arg("--version").current_dir("/")).ok()?;
        let version = said.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        complete.then_some(Self { dir, major: major_and_minor(version)?.0, version: version.to_owned() })
    }
}

/// The newest PostgreSQL of this machine, or the one that made `data_major`, since data belongs to one
/// major version. Nothing when there is none; an error when there are only wrong ones.
pub(super) fn postgres(data_major: Option<u32>) -> Result<Option<PostgresPrograms>> {
    let found: Vec<PostgresPrograms> = postgres_dirs().into_iter().filter_map(PostgresPrograms::in_dir).collect();
    let Some(newest) = found.iter().max_by_key(|programs| programs.major) else {
        return Ok(None);
    };
    match data_major {
        None if newest.major < POSTGRES_MAJOR_MIN => {
            bail!(
                "found PostgreSQL {} in {}, but Posthaste needs {POSTGRES_MAJOR_MIN} or newer",
                newest.version,
                newest.dir.display()
            )
        }
        None => Ok(Some(newest.clone())),
        Some(major) => match found.iter().find(|programs| programs.major == major) {
            Some(programs) => Ok(Some(programs.clone())),
            None => bail!(
                "the data was made by PostgreSQL {major}, but only {} is here; install {major}, or delete the data",
                newest.version
            ),
        },
    }
}

fn postgres_dirs() -> Vec<PathBuf> {
    let versions = fs::read_dir(POSTGRES_VERSIONS).into_iter().flatten().flatten();
    let mut dirs: Vec<PathBuf> =
        versions.map(|version| version.path().join("bin")).filter(|dir| dir.is_dir()).collect();
    dirs.extend(on_path("postgres").and_then(|program| program.canonicalize().ok()?.parent().map(Path::to_owned)));
    dirs
}

/// RabbitMQ's start script.
#[derive(Clone, Debug)]
pub(super) struct RabbitmqPrograms {
    pub(super) script: PathBuf,
    pub(super) version: String,
}

impl RabbitmqPrograms {
    /// A real script has `rabbitmq-env` beside it, a wrapper has not. The version is in the name of a
    /// plugin, which spares us a start of the Erlang machine just to ask.
    fn at(script: &Path) -> Option<Self> {
        let script = script.canonicalize().ok()?;
        let scripts = script.parent()?;
        scripts.join("rabbitmq-env").is_file().then_some(())?;
        let plugins = fs::read_dir(scripts.parent()?.join("plugins")).ok()?.flatten();
        let version = plugins.filter_map(|plugin| version_of_core(plugin.file_name().to_str()?)).next()?;
        Some(Self { script, version })
    }
}

/// `rabbit-3.10.8` or `rabbit-3.10.8.ez` is the core; `rabbit_common-…` is not.
fn version_of_core(plugin: &str) -> Option<String> {
    let version = plugin.strip_prefix("rabbit-")?;
    Some(version.strip_suffix(".ez").unwrap_or(version).to_owned())
}

/// The RabbitMQ of this machine. Nothing when there is none; an error when it is too old.
pub(super) fn rabbitmq() -> Result<Option<RabbitmqPrograms>> {
    let candidates = [Some(PathBuf::from(RABBITMQ_SCRIPT)), on_path("rabbitmq-server")];
    let Some(found) = candidates.iter().flatten().find_map(|script| RabbitmqPrograms::at(script)) else {
        return Ok(None);
    };
    if major_and_minor(&found.version).is_some_and(|version| version < RABBITMQ_MIN) {
        let (major, minor) = RABBITMQ_MIN;
        bail!(
            "found RabbitMQ {} ({}), but Posthaste needs {major}.{minor} or newer",
            found.version,
            found.script.display()
        );
    }
    Ok(Some(found))
}

/// The first two numbers of a version such as `15.8`, `17beta1` or `3.10.8`.
fn major_and_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_names() {
        assert_eq!(version_of_core("rabbit-3.10.8").as_deref(), Some("3.10.8"));
        assert_eq!(version_of_core("rabbit-4.1.0.ez").as_deref(), Some("4.1.0"));
        assert_eq!(version_of_core("rabbit_common-3.10.8"), None);
        assert_eq!(major_and_minor("15.8"), Some((15, 8)));
        assert_eq!(major_and_minor("17beta1"), Some((17, 0)));
        assert_eq!(major_and_minor("16"), Some((16, 0)));
        assert_eq!(major_and_minor("devel"), None);
    }
}
