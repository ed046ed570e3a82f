//! The address of the database: one URL, or its five parts.

use domain::seal::Sealer;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{postgres::decoded, reader::Reader, setting::Setting, table};

/// The PostgreSQL database.
#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    /// Its URL, password included.
    pub url: SecretString,
    /// The maximum number of connections of one process.
    pub pool_size: usize,
    /// Encrypts contents and addresses of people.
    pub sealer: Sealer,
}

impl DatabaseConfig {
    /// A configuration without encryption, for tools and tests.
    pub fn plain(url: &Url) -> Self {
        Self { url: url.to_string().into(), pool_size: 1, sealer: Sealer::default() }
    }
}

const POSTGRES_PORT: u16 = 5432;

/// The `DB_*` settings.
struct Parts {
    host: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<SecretString>,
    database: Option<String>,
}

pub(super) fn read(reader: &mut Reader) -> Option<DatabaseConfig> {
    let url = reader.get(&table::DATABASE_URL);
    let parts = parts(reader);
    let pool_size = reader.get(&table::DATABASE_POOL_SIZE);
    let sealer = sealer(reader);
    let url = match url {
        Some(url) => {
            compare(reader, &url, &parts);
            url
        }
        None if reader.is_set(&table::DATABASE_URL) => return None,
        None => compose(reader, &parts)?,
    };
    Some(DatabaseConfig { url: String::from(url).into(), pool_size: pool_size?, sealer: sealer? })
}

fn sealer(reader: &mut Reader) -> Option<Sealer> {
    let newest = reader.get(&table::ENCRYPTION_KEY);
    let previous = reader.get(&table::ENCRYPTION_KEY_PREVIOUS).unwrap_or_default();
    let required = reader.get(&table::ENCRYPTION_REQUIRED)?;
    // Each key was checked when it was read. An old key without a new one only opens values that it sealed.
    Some(Sealer::new(newest.iter().chain(&previous)).ok()?.requiring(required))
}

fn parts(reader: &mut Reader) -> Parts {
    Parts {
        host: reader.get(&table::DB_HOST),
        port: reader.get(&table::DB_PORT),
        user: reader.get(&table::DB_USERNAME),
        password: reader.get(&table::DB_PASSWORD),
        database: reader.get(&table::DB_DATABASE),
    }
}

/// A part may be set beside the URL, as many images do, but it must not differ from the URL.
fn compare(reader: &mut Reader, url: &Url, parts: &Parts) {
    let differs = |one: Option<&str>, other: Option<&str>| one.is_some() && one != other;
    let text = |part| decoded(part);
    let password = parts.password.as_ref().map(ExposeSecret::expose_secret);
    let host = url.host_str().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
    for (name, different) in [
        (table::DB_HOST.spec.name, differs(parts.host.as_deref(), host)),
        (table::DB_PORT.spec.name, parts.port.is_some_and(|port| port != url.port().unwrap_or(POSTGRES_PORT))),
        (table::DB_USERNAME.spec.name, differs(parts.user.as_deref(), Some(&text(url.username())))),
        (table::DB_PASSWORD.spec.name, differs(password, Some(&text(url.password().unwrap_or_default())))),
        (
            table::DB_DATABASE.spec.name,
            differs(parts.database.as_deref(), Some(&text(url.path().trim_start_matches('/')))),
        ),
    ] {
        if different {
            reader.disagree(table::DATABASE_URL.spec.name, name);
        }
    }
}

/// The URL made of the parts. If no part is set, `DATABASE_URL` is reported as missing.
fn compose(reader: &mut Reader, parts: &Parts) -> Option<Url> {
    let set = [&table::DB_HOST, &table::DB_USERNAME, &table::DB_DATABASE].map(|setting| reader.is_set(setting));
    if set == [false; 3] {
        reader.missing(&table::DATABASE_URL, "is missing");
        return None;
    }
    for (setting, set) in [&table::DB_HOST, &table::DB_USERNAME, &table::DB_DATABASE].into_iter().zip(set) {
        require_part(reader, setting, set);
    }
    let mut url = Url::parse("postgres://host").ok()?;
    let host = parts.host.as_deref()?;
    url.set_host(Some(&if host.contains(':') { format!("[{host}]") } else { host.to_owned() })).ok()?;
    url.set_port(Some(parts.port.unwrap_or(POSTGRES_PORT))).ok()?;
    url.set_username(parts.user.as_deref()?).ok()?;
    url.set_password(parts.password.as_ref().map(ExposeSecret::expose_secret)).ok()?;
    url.path_segments_mut().ok()?.push(parts.database.as_deref()?);
    Some(url)
}

fn require_part(reader: &mut Reader, setting: &Setting<String>, set: bool) {
    if !set {
        reader.missing(setting, "is missing, and other DB_* settings are there");
    }
}
