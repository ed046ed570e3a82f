//! Checkers that other people wrote, installed below `target/oracles` for the tests that ask them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use servers::{
    private::{Install, install::AptGet},
    process::{self, on_path},
    progress::Progress,
    stop::Stop,
};

use crate::cargo::{target_dir, workspace_root};

/// The files that list the packages, in the order of the comparison.
const LISTS: [&str; 4] = ["requirements.txt", "constraints.txt", "package.json", "package-lock.json"];

/// The possible names of a browser, Debian's first.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// The installed checkers.
#[derive(Debug)]
pub struct Oracles {
    dir: PathBuf,
    browser: PathBuf,
}

impl Oracles {
    /// Installs what is listed in `tests/oracles`, unless exactly that is there already, and a browser if there is none.
    pub fn install(allowed: Install, progress: &Progress, stop: &Stop) -> Result<Self> {
        let browser = browser(allowed, progress, stop)?;
        let (lists, dir) = (workspace_root().join("tests/oracles"), target_dir().join("oracles"));
        let (oracles, wanted) = (Self { dir: dir.clone(), browser }, read(&lists)?);
        let mark = dir.join("installed");
        if fs::read_to_string(&mark).is_ok_and(|there| there == wanted) {
            return Ok(oracles);
        }
        for program in ["python3", "npm"] {
            if on_path(program).is_none() {
                bail!("{program} is needed for the oracles and is not on the PATH: install it, or leave out --oracles");
            }
        }
        // A half of an earlier list must not be taken for this one.
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("failed to remove {}", dir.display()));
            }
            _ => fs::create_dir_all(&dir).with_context(|| format!("failed to create {}", dir.display()))?,
        }
        progress.step("installing oracles from PyPI (a minute the first time)", || oracles.python(&lists, stop))?;
        progress.step("installing oracles from npm", || oracles.npm(&lists, stop))?;
        fs::write(&mark, wanted).with_context(|| format!("failed to write {}", mark.display()))?;
        Ok(oracles)
    }

    /// How the tests find them.
    pub fn variables(&self) -> [(&'static str, PathBuf); 3] {
        [
            ("POSTHASTE_TEST_CHROMIUM", self.browser.clone()),
            ("POSTHASTE_TEST_PYTHON", self.dir.join("python/bin/python")),
            ("POSTHASTE_TEST_NODE_MODULES", self.dir.join("node_modules")),
        ]
    }

    fn python(&self, lists: &Path, stop: &Stop) -> Result<()> {
        let venv = self.dir.join("python");
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv), "python3 -m venv (Debian: python3-venv)", stop)?;
        let mut pip = Command::new(venv.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
        pip.arg("--requirement").arg(lists.join("requirements.txt"));
        pip.arg("--constraint").arg(lists.join("constraints.txt"));
        run(&mut pip, "pip install", stop)
    }

    fn npm(&self, lists: &Path, stop: &Stop) -> Result<()> {
        for list in ["package.json", "package-lock.json"] {
            fs::copy(lists.join(list), self.dir.join(list)).with_context(|| format!("failed to copy {list}"))?;
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&self.dir);
        run(&mut npm, "npm ci", stop)
    }
}

/// Chromium, or what was made of it; Debian's package where the machine has none.
fn browser(allowed: Install, progress: &Progress, stop: &Stop) -> Result<PathBuf> {
    let found = || BROWSERS.iter().find_map(|name| on_path(name));
    if let Some(browser) = found() {
        return Ok(browser);
    }
    match AptGet::usable().filter(|_| allowed == Install::Allowed) {
        Some(apt) => apt.install(&["chromium"], progress, stop)?,
        None => bail!("Chromium is needed for the oracles and is not on the PATH: install it (Debian: chromium)"),
    }
    found().context("Chromium still not found after installing; see what apt-get said above")
}

fn read(lists: &Path) -> Result<String> {
    let text = |list: &&str| fs::read_to_string(lists.join(list)).with_context(|| format!("failed to read {list}"));
    Ok(LISTS.iter().map(text).collect::<Result<Vec<_>>>()?.join("\n"))
}

fn run(command: &mut Command, name: &str, stop: &Stop) -> Result<()> {
    let status = process::run(command, stop)?;
    stop.check()?;
    if !status.success() {
        bail!(
            "{name} failed; its messages are above. The oracles come from PyPI and npm, so the network is needed once"
        );
    }
    Ok(())
}
