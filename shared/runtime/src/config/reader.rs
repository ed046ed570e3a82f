//! Reads settings by the table: finds the variable among its names, parses it, and collects faults and sources.

use std::collections::BTreeMap;

use domain::Channel;
use url::Url;

use super::{
    by_channel::ByChannel,
    fault::{ConfigError, ConfigFault},
    kind::Bad,
    setting::{PLACEHOLDER, Secrecy, Setting, Spec, Unset},
    table,
};

/// The text shown in place of a secret.
const MASK: &str = "***";
/// An unknown name that differs from a known one in at most this many letters is taken for a typing error.
const SLIP_LETTERS_MAX: usize = 3;

/// A setting as `posthaste config check` shows it: its name, its value with secrets masked, its source.
pub type Shown = (&'static str, String, &'static str);

/// The variables, and the faults and sources found so far.
pub(super) struct Reader {
    vars: BTreeMap<String, String>,
    faults: Vec<ConfigFault>,
    shown: Vec<Shown>,
}

impl Reader {
    pub(super) fn new(vars: BTreeMap<String, String>) -> Self {
        let vars = vars.into_iter().filter(|(_, value)| !value.trim().is_empty()).collect();
        let mut reader = Self { vars, faults: Vec::new(), shown: Vec::new() };
        reader.read_files();
        reader.check_names();
        reader
    }

    /// `NAME_FILE` names a file that holds the secret `NAME`. Containers get secrets in this way.
    fn read_files(&mut self) {
        let secrets = table::all().filter(|setting| setting.spec().secrecy != Secrecy::Open);
        for name in secrets.flat_map(|setting| names(setting.spec())) {
            let pointer = format!("{name}_FILE");
            let Some(path) = self.vars.remove(&pointer) else { continue };
            let text = std::fs::read_to_string(path.trim()).map(|text| text.trim_end().to_owned());
            match text {
                _ if self.vars.contains_key(name) => self.disagree(name, &pointer),
                Ok(text) if text.is_empty() => self.fault(&pointer, Some(&path), "is an empty file".to_owned(), None),
                Ok(text) => drop(self.vars.insert(name.to_owned(), text)),
                Err(error) => self.fault(&pointer, Some(&path), format!("cannot be read: {error}"), None),
            }
        }
    }

    /// The value of the setting or its default. A fault is recorded and gives `None`.
    pub(super) fn get<T>(&mut self, setting: &'static Setting<T>) -> Option<T> {
        let spec = &setting.spec;
        let Some((name, text)) = self.find(spec) else { return self.default(setting) };
        self.shown.push((spec.name, shown(spec, &text), name));
        let text = if spec.secrecy == Secrecy::Hidden { text.as_str() } else { text.trim() };
        let parsed = match text {
            PLACEHOLDER => Err(Bad::Because("is the placeholder of .env.example".to_owned())),
            _ => (setting.kind.parse)(text),
        };
        match parsed {
            Ok(value) => Some(value),
            Err(bad) => {
                self.refuse(name, setting, &bad, text);
                None
            }
        }
    }

    /// The value for each channel that has one.
    pub(super) fn get_each<T>(&mut self, settings: &'static ByChannel<Setting<T>>) -> ByChannel<Option<T>> {
        ByChannel::make(|channel: Channel| self.get(settings.get(channel)))
    }

    /// Whether the setting has any value.
    pub(super) fn is_set<T>(&self, setting: &Setting<T>) -> bool {
        names(&setting.spec).any(|name| self.vars.contains_key(name))
    }

    /// Whether a fault of the setting is already recorded.
    pub(super) fn is_missing<T>(&self, setting: &Setting<T>) -> bool {
        self.faults.iter().any(|fault| fault.name == setting.spec.name)
    }

    /// Records that a setting is missing; `why` follows its name.
    pub(super) fn missing<T>(&mut self, setting: &Setting<T>, why: &str) {
        let problem = format!("{why}: set it to {}", setting.kind.expects);
        self.fault(setting.spec.name, None, problem, setting.spec.example_value());
    }

    /// Records that a valid value does not fit the other settings; `why` follows its name.
    pub(super) fn unfit<T>(&mut self, setting: &Setting<T>, why: &str) {
        self.fault(setting.spec.name, None, why.to_owned(), None);
    }

    /// Records that two settings contradict each other.
    pub(super) fn disagree(&mut self, one: &str, other: &str) {
        self.fault(&format!("{one} and {other}"), None, "disagree: set one of them, or both alike".to_owned(), None);
    }

    /// Ends the reading: returns the built value, or every fault.
    pub(super) fn finish<T>(self, built: Option<T>) -> Result<(T, Vec<Shown>), ConfigError> {
        match built {
            Some(value) if self.faults.is_empty() => Ok((value, self.shown)),
            _ => Err(ConfigError { faults: self.faults }),
        }
    }

    fn default<T>(&mut self, setting: &'static Setting<T>) -> Option<T> {
        let spec = &setting.spec;
        match spec.unset {
            Unset::Value(text) => {
                self.shown.push((spec.name, text.to_owned(), "default"));
                (setting.kind.parse)(text).ok()
            }
            Unset::Derived(text) => {
                self.shown.push((spec.name, text.to_owned(), "derived"));
                None
            }
            Unset::Required => {
                self.missing(setting, "is missing");
                None
            }
            Unset::Nothing => {
                self.shown.push((spec.name, String::new(), "unset"));
                None
            }
        }
    }

    /// The first of the setting's names that is set, and its value. The others must not have another value.
    fn find(&mut self, spec: &Spec) -> Option<(&'static str, String)> {
        let set: Vec<_> = names(spec).filter_map(|name| Some((name, self.vars.get(name)?.clone()))).collect();
        let (first, text) = set.first()?.clone();
        if let Some((other, _)) = set.iter().find(|(_, other)| other.trim() != text.trim()) {
            self.disagree(first, other);
        }
        Some((first, text))
    }

    fn refuse<T>(&mut self, name: &str, setting: &Setting<T>, bad: &Bad, text: &str) {
        let problem = match bad {
            Bad::Shape => format!("must be {}", setting.kind.expects),
            Bad::Because(reason) => format!("{reason}; it must be {}", setting.kind.expects),
        };
        let value = if setting.spec.secrecy == Secrecy::Open { text } else { MASK };
        self.fault(name, Some(value), problem, setting.spec.example_value());
    }

    fn fault(&mut self, name: &str, value: Option<&str>, problem: String, example: Option<&'static str>) {
        self.faults.push(ConfigFault { name: name.to_owned(), value: value.map(str::to_owned), problem, example });
    }

    fn check_names(&mut self) {
        let unknown: Vec<_> = self.vars.keys().filter(|name| is_ours(name) && !is_known(name)).cloned().collect();
        for name in unknown {
            let hint = nearest(&name).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            self.fault(&name, None, format!("is no setting of Posthaste{hint}"), None);
        }
        for (name, why) in table::REFUSED.iter().filter(|(name, _)| self.vars.contains_key(*name)).collect::<Vec<_>>() {
            self.fault(name, None, (*why).to_owned(), None);
        }
    }
}

fn names(spec: &Spec) -> impl Iterator<Item = &'static str> + use<> {
    std::iter::once(spec.name).chain(spec.aliases.iter().copied())
}

fn is_ours(name: &str) -> bool {
    table::OWN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn is_known(name: &str) -> bool {
    let foreign = table::FOREIGN.contains(&name) || name.starts_with(table::FOREIGN_PREFIX);
    foreign || table::all().any(|setting| setting.spec().name == name)
}

/// The known name closest to a mistyped one, with or without a superfluous `POSTHASTE_`.
fn nearest(name: &str) -> Option<&'static str> {
    let bare = name.strip_prefix("POSTHASTE_").unwrap_or(name);
    let known = table::all().flat_map(|setting| names(setting.spec())).chain(table::FOREIGN.iter().copied());
    let far = |candidate: &str| letters_apart(name, candidate).min(letters_apart(bare, candidate));
    known
        .map(|candidate| (far(candidate), candidate))
        .min()
        .filter(|(far, _)| *far <= SLIP_LETTERS_MAX)
        .map(|(_, near)| near)
}

/// The Levenshtein distance: letters to add, drop or change to make one text of the other.
fn letters_apart(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, letter) in one.bytes().enumerate() {
        let mut diagonal = above;
        let mut left = above + 1;
        for (cell, against) in row.iter_mut().skip(1).zip(other.bytes()) {
            let changed = diagonal + usize::from(letter != against);
            diagonal = *cell;
            left = changed.min(left + 1).min(*cell + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = above + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

fn shown(spec: &Spec, text: &str) -> String {
    match spec.secrecy {
        Secrecy::Open => text.trim().to_owned(),
        Secrecy::Hidden => MASK.to_owned(),
        Secrecy::Password => without_password(text).unwrap_or_else(|| MASK.to_owned()),
    }
}

/// The URL with its password masked and without its query, which may also hold a password.
fn without_password(text: &str) -> Option<String> {
    let mut url = Url::parse(text).ok()?;
    if url.password().is_some() {
        url.set_password(Some(MASK)).ok()?;
    }
    if url.query().is_some() {
        url.set_query(Some(MASK));
    }
    Some(url.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_put_next_to_what_was_meant() {
        for (slip, meant) in [
            ("POSTHASTE_DATABASE_URL", Some("DATABASE_URL")),
            ("POSTHASTE_AMQP_UR", Some("AMQP_URL")),
            ("POSTHASTE_ADMIN_KYE", Some("POSTHASTE_ADMIN_KEY")),
            ("RETRY_MAX_ATTEMPTS_EMIAL", Some("RETRY_MAX_ATTEMPTS_EMAIL")),
            ("POSTHASTE_COLOUR_OF_THE_LOGO", None),
        ] {
            assert_eq!(nearest(slip), meant, "{slip}");
        }
    }

    #[test]
    fn the_password_of_a_url_is_never_shown() {
        for url in ["amqp://user:hunter2@host/v", "postgres://host/db?user=a&password=hunter2", "hunter2"] {
            let spec = Spec { secrecy: Secrecy::Password, ..table::AMQP_URL.spec };
            assert!(!shown(&spec, url).contains("hunter2"), "{url}");
        }
        assert_eq!(without_password("amqp://user:hunter2@host/v").as_deref(), Some("amqp://user:***@host/v"));
    }

    #[test]
    fn letters_apart_counts_slips() {
        for (one, other, slips) in [("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("HOST", "PORT", 2)] {
            assert_eq!(letters_apart(one, other), slips, "{one} {other}");
        }
    }
}
