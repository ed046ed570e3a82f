//! A file of shell `NAME=value` lines: what one run leaves for the next, and for people to `source`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Values that outlive a run. Each change is on disk before the call returns.
#[derive(Debug)]
pub struct EnvFile {
    path: PathBuf,
    values: BTreeMap<String, String>,
}

impl EnvFile {
    /// Reads the file; one that is not there is empty.
    pub fn open(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        let values = text.lines().filter_map(|line| line.split_once('='));
        let values = values.map(|(name, value)| (name.trim().to_owned(), unquoted(value.trim()))).collect();
        Self { path: path.to_owned(), values }
    }

    /// The value of a name; an empty one counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Sets names and writes the file.
    pub fn set<'a>(&mut self, values: impl IntoIterator<Item = (&'a str, String)>) -> Result<()> {
        self.values.extend(values.into_iter().map(|(name, value)| (name.to_owned(), value)));
        self.write()
    }

    /// Forgets names and writes the file.
    pub fn remove(&mut self, names: &[&str]) -> Result<()> {
        self.values.retain(|name, _| !names.contains(&name.as_str()));
        self.write()
    }

    /// Writes a new file and renames it over the old one, so that no reader ever sees half of it. It
    /// holds secrets, so only its owner may read it.
    fn write(&self) -> Result<()> {
        crate::process::create_parent(&self.path)?;
        let unfinished = self.path.with_extension("unfinished");
        let text: String = self.values.iter().map(|(name, value)| format!("{name}={}\n", quoted(value))).collect();
        fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&unfinished, &self.path))
            .with_context(|| format!("failed to write {}", self.path.display()))
    }
}

/// Quotes only what a shell would read differently, so that the simplest reader copes with the rest.
fn quoted(value: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
    if value.chars().all(harmless) { value.to_owned() } else { format!("'{}'", value.replace('\'', r"'\''")) }
}

fn unquoted(value: &str) -> String {
    match value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        Some(inner) => inner.replace(r"'\''", "'"),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_quoting() {
        for value in ["postgres://a@127.0.0.1:1/b", "it's & more; $HOME", ""] {
            assert_eq!(unquoted(&quoted(value)), value);
        }
        assert_eq!(quoted("amqp://guest:guest@127.0.0.1:5672/%2f"), "amqp://guest:guest@127.0.0.1:5672/%2f");
    }

    #[test]
    fn what_one_run_writes_the_next_one_reads() -> Result<()> {
        let path = std::env::temp_dir().join(format!("servers-env-{}", std::process::id()));
        EnvFile::open(&path).set([("A", "1".to_owned()), ("B", "two words".to_owned())])?;
        let mut again = EnvFile::open(&path);
        assert_eq!(again.get("B"), Some("two words"));
        again.remove(&["A"])?;
        assert_eq!(EnvFile::open(&path).get("A"), None);
        fs::remove_file(&path)?;
        Ok(())
    }
}
