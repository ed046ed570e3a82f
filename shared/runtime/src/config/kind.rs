//! The kinds of settings: each kind pairs a parser with the sentence that describes its values.

use std::{fmt, net::IpAddr, str::FromStr, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::{
    Channel, ProviderName, RequireMapping,
    p256::PublicKey,
    seal::{Required, Sealer},
};
use ipnet::IpNet;
use secrecy::SecretString;
use url::{Host, Url};

use super::{
    categories::Categories,
    postgres::{self, PostgresUrl},
};
use Expects::Text;

/// A parser and its expectation.
pub(super) struct Kind<T> {
    pub(super) expects: Expects,
    pub(super) parse: fn(&str) -> Result<T, Bad>,
}

/// The expectation of a kind, worded to follow "must be".
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Expects {
    Text(&'static str),
    /// Providers of a channel, and the words after their list.
    Backends(Channel, &'static str),
}

impl fmt::Display for Expects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Text(text) => f.write_str(text),
            Self::Backends(channel, note) => {
                let words: Vec<&str> = ProviderName::of(*channel).map(ProviderName::as_str).collect();
                write!(f, "a comma list of {}{note}", words.join(", "))
            }
        }
    }
}

/// Why a text does not fit its kind.
pub(super) enum Bad {
    /// The expectation says it all.
    Shape,
    /// A reason beyond the expectation.
    Because(String),
}

/// HS256 wants a key as long as its digest (RFC 7518, section 3.2).
const JWT_SECRET_BYTES_MIN: usize = 32;
/// The longest pause, in milliseconds: a week. A longer one would outlive the retention of the deliveries that wait.
const DELAY_MS_MAX: u64 = 604_800_000;
/// The longest wait for one call, in milliseconds: ten minutes, a third of RabbitMQ's own limit. A longer call hangs.
const TIMEOUT_MS_MAX: u64 = 600_000;
/// The longest window, in milliseconds: a day. A longer one would be a quota, which a restart must not reset.
const WINDOW_MS_MAX: u64 = 86_400_000;
/// The longest life of a token, in seconds: a year. A longer one needs a key, which can be revoked.
const LIFETIME_SECONDS_MAX: u64 = 31_536_000;

macro_rules! between {
    ($min:literal, $max:literal) => {
        Kind { expects: Text(concat!("a whole number from ", $min, " to ", $max)), parse: whole::<_, $min, $max> }
    };
}

macro_rules! backends {
    ($channel:expr, $note:literal) => {
        Kind { expects: Expects::Backends($channel, $note), parse: |text| backends($channel, text) }
    };
}

pub(super) const HEARTBEAT: Kind<u16> = between!(1, 60);
pub(super) const PORT: Kind<u16> = between!(1, 65535);
pub(super) const POOL: Kind<usize> = between!(1, 1000);
pub(super) const THREADS: Kind<usize> = between!(1, 256);
pub(super) const CONCURRENCY: Kind<usize> = between!(1, 10000);
pub(super) const ATTEMPTS: Kind<u16> = between!(1, 1000);
pub(super) const DAYS: Kind<i32> = between!(1, 36500);
pub(super) const FAILURES: Kind<i32> = between!(1, 10000);
pub(super) const RETRIES: Kind<u16> = between!(0, 999);
pub(super) const REQUESTS: Kind<u32> = between!(1, 100000000);
pub(super) const BODY_BYTES: Kind<usize> = between!(65536, 1099511627776);

pub(super) const DELAY: Kind<Duration> =
    Kind { expects: Text("milliseconds from 0 to 604800000 (a week)"), parse: |text| millis(text, 0, DELAY_MS_MAX) };
pub(super) const TIMEOUT: Kind<Duration> = Kind {
    expects: Text("milliseconds from 1 to 600000 (ten minutes)"),
    parse: |text| millis(text, 1, TIMEOUT_MS_MAX),
};
pub(super) const WINDOW: Kind<Duration> = Kind {
    expects: Text("milliseconds from 1000 to 86400000 (a day)"),
    parse: |text| millis(text, 1000, WINDOW_MS_MAX),
};
pub(super) const LIFETIME: Kind<Duration> =
    Kind { expects: Text("seconds, or a number with s, m, h, d or w, from 1s to 365d"), parse: lifetime };

/// An expectation that allows any text.
pub(super) const ANY_TEXT: Expects = Text("any text");
pub(super) const TEXT: Kind<String> = Kind { expects: ANY_TEXT, parse: |text| Ok(text.to_owned()) };
pub(super) const SECRET: Kind<SecretString> = Kind { expects: ANY_TEXT, parse: |text| Ok(text.into()) };
pub(super) const HOST: Kind<String> =
    Kind { expects: Text("a host name or an IP address, without scheme and port"), parse: host };
pub(super) const JWT_SECRET: Kind<SecretString> = Kind {
    expects: Text("a secret of at least 32 bytes, such as one from `openssl rand -base64 48`"),
    parse: jwt_secret,
};
pub(super) const ENCRYPTION_KEY: Kind<SecretString> =
    Kind { expects: Text("32 bytes in base64, from `openssl rand -base64 32`"), parse: encryption_key };
pub(super) const ENCRYPTION_KEYS: Kind<Vec<SecretString>> = Kind {
    expects: Text("a comma list of keys, each 32 bytes in base64"),
    parse: |text| text.split(',').map(encryption_key).collect(),
};
pub(super) const PATH: Kind<String> = Kind { expects: Text("the path of a file"), parse: |text| Ok(text.to_owned()) };
pub(super) const WORD: Kind<String> =
    Kind { expects: Text("letters, digits, dots, dashes and underscores"), parse: word };
pub(super) const VAPID_PUBLIC: Kind<String> =
    Kind { expects: Text("an uncompressed P-256 point, 65 bytes in base64url"), parse: |text| base64url(text, 65) };
pub(super) const VAPID_PRIVATE: Kind<SecretString> = Kind {
    expects: Text("a P-256 private key, 32 bytes in base64url"),
    parse: |text| base64url(text, 32).map(SecretString::from),
};
pub(super) const VAPID_SUBJECT: Kind<String> = Kind {
    expects: Text("a mailto: or https: URL"),
    parse: |text| url_of(text, &["mailto", "https"]).map(|_| text.to_owned()).ok_or(Bad::Shape),
};
pub(super) const LOG_FILTER: Kind<String> =
    Kind { expects: Text("a level (error, warn, info, debug, trace) or a list of target=level"), parse: log_filter };
pub(super) const MAIL_FROM: Kind<String> =
    Kind { expects: Text("an e-mail address, bare or as `Name <address>`"), parse: mail_from };
pub(super) const SWITCH: Kind<bool> =
    Kind { expects: Text("true or false"), parse: |text| switch(text).ok_or(Bad::Shape) };

pub(super) const ENCRYPTION_REQUIRED: Kind<Required> = Kind {
    expects: Text("true, false or bound"),
    parse: |text| match (text, switch(text)) {
        ("bound", _) => Ok(Required::Bound),
        (_, Some(true)) => Ok(Required::Encrypted),
        (_, Some(false)) => Ok(Required::Nothing),
        (_, None) => Err(Bad::Shape),
    },
};

pub(super) const REQUIRE_MAPPING: Kind<RequireMapping> = Kind {
    expects: Text("auto, true or false"),
    parse: |text| match (text, switch(text)) {
        ("auto", _) => Ok(RequireMapping::Auto),
        (_, Some(true)) => Ok(RequireMapping::Always),
        (_, Some(false)) => Ok(RequireMapping::Never),
        (_, None) => Err(Bad::Shape),
    },
};

pub(super) const POSTGRES_URL: Kind<Url> = Kind {
    expects: Text("a postgres:// URL with a host and a database, special characters of the password %-encoded"),
    parse: postgres_url,
};
pub(super) const AMQP_URL: Kind<Url> = Kind {
    expects: Text("an amqp:// or amqps:// URL with a host, special characters of the password %-encoded"),
    parse: |text| url_of(text, &["amqp", "amqps"]).filter(Url::has_host).ok_or(Bad::Shape),
};
pub(super) const PUBLIC_URL: Kind<Url> =
    Kind { expects: Text("an http:// or https:// URL without query and fragment"), parse: public_url };
pub(super) const AWS_REGION: Kind<String> =
    Kind { expects: Text("the name of an AWS region, such as eu-central-1"), parse: aws_region };
pub(super) const TWILIO_FROM: Kind<String> = Kind {
    expects: Text(
        "a phone number in E.164, a sender name of up to 11 letters and digits, or the id of a messaging service (MG…)",
    ),
    parse: twilio_from,
};
pub(super) const SNS_SENDER: Kind<String> =
    Kind { expects: Text("1 to 11 letters, digits or hyphens, at least one of them a letter"), parse: sns_sender };
pub(super) const DOMAIN: Kind<String> = Kind { expects: Text("a domain name, such as example.com"), parse: domain };
pub(super) const NETS: Kind<Vec<IpNet>> =
    Kind { expects: Text("a comma list of networks or addresses"), parse: |text| list(text, net) };

pub(super) const SENDGRID_KEY: Kind<PublicKey> = Kind {
    expects: Text("the verification key that SendGrid shows: a P-256 key, SPKI in base64"),
    parse: |text| PublicKey::parse(text).ok_or(Bad::Shape),
};
pub(super) const TOPICS: Kind<Vec<String>> = Kind {
    expects: Text("a comma list of ARNs such as arn:aws:sns:<region>:<account>:<name>"),
    parse: |text| list(text, topic),
};
pub(super) const CATEGORIES: Kind<Categories> = Kind {
    expects: Text("`all`, or a comma list of categories"),
    parse: |text| match text {
        "all" => Ok(Categories::All),
        _ => list(text, category).map(Categories::These),
    },
};

pub(super) const CHANNELS: Kind<Vec<Channel>> = Kind {
    expects: Text("`all`, or a comma list of email, sms, push, webhook, in_app, whatsapp"),
    parse: |text| {
        if text == "all" { Ok(Channel::ALL.to_vec()) } else { list(text, |word| word.parse().map_err(|_| Bad::Shape)) }
    },
};
pub(super) const EMAIL_BACKENDS: Kind<Vec<ProviderName>> = backends!(Channel::Email, ", in the order they are tried");
pub(super) const SMS_BACKENDS: Kind<Vec<ProviderName>> = backends!(Channel::Sms, ", in the order they are tried");
pub(super) const PUSH_BACKENDS: Kind<Vec<ProviderName>> = backends!(Channel::Push, "");
pub(super) const WEBHOOK_BACKENDS: Kind<Vec<ProviderName>> = backends!(Channel::Webhook, "");
pub(super) const IN_APP_BACKENDS: Kind<Vec<ProviderName>> = backends!(Channel::InApp, "");
pub(super) const WHATSAPP_BACKENDS: Kind<Vec<ProviderName>> = backends!(Channel::Whatsapp, "");

/// The values of `SMTP_USE_TLS`. The kind of TLS for `On` depends on the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsWord {
    On,
    Off,
    StartTls,
    Tls,
}
pub(super) const TLS_WORD: Kind<TlsWord> =
    Kind { expects: Text("true, false, starttls, tls or none"), parse: |text| tls_word(text).ok_or(Bad::Shape) };

/// The policy after an ambiguous attempt, before the waiting time is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InDoubt {
    Resend,
    Hold,
}
pub(super) const IN_DOUBT: Kind<InDoubt> = Kind {
    expects: Text("resend or hold"),
    parse: |text| match text {
        "resend" => Ok(InDoubt::Resend),
        "hold" => Ok(InDoubt::Hold),
        _ => Err(Bad::Shape),
    },
};

fn topic(word: &str) -> Result<String, Bad> {
    let parts: Vec<&str> = word.split(':').collect();
    match parts.as_slice() {
        ["arn", partition, "sns", region, account, name]
            if partition.starts_with("aws") && ![region, account, name].iter().any(|part| part.is_empty()) =>
        {
            Ok(word.to_owned())
        }
        _ => Err(Bad::Shape),
    }
}

fn category(word: &str) -> Result<String, Bad> {
    let plain = !word.is_empty() && !word.chars().any(char::is_control);
    if plain { Ok(word.to_owned()) } else { Err(Bad::Shape) }
}

fn within(text: &str, min: u64, max: u64) -> Option<u64> {
    text.parse().ok().filter(|number| (min..=max).contains(number))
}

fn whole<T: TryFrom<u64>, const MIN: u64, const MAX: u64>(text: &str) -> Result<T, Bad> {
    within(text, MIN, MAX).and_then(|number| T::try_from(number).ok()).ok_or(Bad::Shape)
}

fn millis(text: &str, min: u64, max: u64) -> Result<Duration, Bad> {
    within(text, min, max).map(Duration::from_millis).ok_or(Bad::Shape)
}

fn lifetime(text: &str) -> Result<Duration, Bad> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit.trim_start() {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(Bad::Shape),
    };
    let most = LIFETIME_SECONDS_MAX / seconds;
    within(number, 1, most).map(|count| Duration::from_secs(count * seconds)).ok_or(Bad::Shape)
}

/// An address in brackets is stored without them.
fn host(text: &str) -> Result<String, Bad> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let named = bare.chars().all(name) && Host::parse(bare).is_ok();
    if named || bare.parse::<IpAddr>().is_ok() { Ok(bare.to_owned()) } else { Err(Bad::Shape) }
}

fn jwt_secret(text: &str) -> Result<SecretString, Bad> {
    if text.len() < JWT_SECRET_BYTES_MIN {
        return Err(Bad::Because(format!("has {} bytes; it must have at least {JWT_SECRET_BYTES_MIN}", text.len())));
    }
    Ok(text.into())
}

fn encryption_key(text: &str) -> Result<SecretString, Bad> {
    let key = SecretString::from(text.trim());
    Sealer::new([&key]).map(|_| key).map_err(|_| Bad::Shape)
}

/// The result has no padding, whether or not the input has.
fn base64url(text: &str, bytes: usize) -> Result<String, Bad> {
    let decoded = URL_SAFE_NO_PAD.decode(text.trim().trim_end_matches('=')).map_err(|_| Bad::Shape)?;
    if decoded.len() == bytes { Ok(URL_SAFE_NO_PAD.encode(decoded)) } else { Err(Bad::Shape) }
}

/// A text that can be part of a path or a header unchanged.
fn word(text: &str) -> Result<String, Bad> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.chars().all(plain) { Ok(text.to_owned()) } else { Err(Bad::Shape) }
}

fn log_filter(text: &str) -> Result<String, Bad> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(Bad::Shape),
    }
}

fn mail_from(text: &str) -> Result<String, Bad> {
    let bare = match text.strip_suffix('>') {
        Some(open) => open.rsplit_once('<').ok_or(Bad::Shape)?.1,
        None => text,
    };
    let (local, domain) = bare.rsplit_once('@').ok_or(Bad::Shape)?;
    let broken = local.is_empty() || bare.contains(char::is_whitespace) || text.contains(char::is_control);
    if broken || host(domain).is_err() { Err(Bad::Shape) } else { Ok(text.to_owned()) }
}

/// The region becomes part of a host name.
fn aws_region(text: &str) -> Result<String, Bad> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.chars().all(good) && !text.starts_with('-') { Ok(text.to_owned()) } else { Err(Bad::Shape) }
}

fn twilio_from(text: &str) -> Result<String, Bad> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.strip_prefix('+').is_some_and(|rest| digits(rest) && (7..=15).contains(&rest.len()));
    let service = text.starts_with("MG") && text.len() == 34 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | '-' | '_' | '&' | '+');
    let short = (1..=11).contains(&text.len()) && !text.starts_with('+') && text.chars().all(named);
    if number || service || short { Ok(text.to_owned()) } else { Err(Bad::Shape) }
}

fn sns_sender(text: &str) -> Result<String, Bad> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let fits = (1..=11).contains(&text.len()) && text.bytes().all(good);
    if fits && text.bytes().any(|byte| byte.is_ascii_alphabetic()) { Ok(text.to_owned()) } else { Err(Bad::Shape) }
}

/// The domain goes into a mail header, so it must be a plain name.
fn domain(text: &str) -> Result<String, Bad> {
    let label = |label: &str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(good)
    };
    if text.len() <= 253 && text.split('.').all(label) { Ok(text.to_ascii_lowercase()) } else { Err(Bad::Shape) }
}

fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn tls_word(text: &str) -> Option<TlsWord> {
    match text.to_ascii_lowercase().as_str() {
        "starttls" => Some(TlsWord::StartTls),
        "tls" => Some(TlsWord::Tls),
        "none" => Some(TlsWord::Off),
        other => switch(other).map(|on| if on { TlsWord::On } else { TlsWord::Off }),
    }
}

fn url_of(text: &str, schemes: &[&str]) -> Option<Url> {
    Url::parse(text).ok().filter(|url| schemes.contains(&url.scheme()))
}

fn postgres_url(text: &str) -> Result<Url, Bad> {
    let url =
        url_of(&postgres::one_authority(text), &["postgres", "postgresql"]).filter(names_database).ok_or(Bad::Shape)?;
    PostgresUrl::parse(text).map(|_| url).map_err(|error| Bad::Because(error.to_string()))
}

/// PostgreSQL also reads the host from the query; the folder of a socket can only be there.
fn names_database(url: &Url) -> bool {
    let asks = |name| url.query_pairs().any(|(key, value)| key == name && !value.is_empty());
    let host = url.host_str().is_some_and(|host| !host.is_empty()) || asks("host");
    host && (url.path().len() > 1 || asks("dbname"))
}

/// It ends in a slash, so that `join` appends to its path.
fn public_url(text: &str) -> Result<Url, Bad> {
    let mut url = url_of(text, &["http", "https"]).ok_or(Bad::Shape)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Bad::Shape);
    }
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url)
}

fn net(text: &str) -> Result<IpNet, Bad> {
    let address = || IpAddr::from_str(text).map(IpNet::from);
    text.parse().or_else(|_| address()).map_err(|_| Bad::Because(format!("`{text}` is no network")))
}

/// The parts of a comma-separated list. An empty or repeated part is an error.
fn list<T: PartialEq>(text: &str, part: impl Fn(&str) -> Result<T, Bad>) -> Result<Vec<T>, Bad> {
    let mut parts = Vec::new();
    for word in text.split(',').map(str::trim) {
        let value = part(word)?;
        if parts.contains(&value) {
            return Err(Bad::Because(format!("names `{word}` twice")));
        }
        parts.push(value);
    }
    Ok(parts)
}

fn backends(channel: Channel, text: &str) -> Result<Vec<ProviderName>, Bad> {
    let serves = |name: &ProviderName| name.serves(channel);
    list(text, |word| ProviderName::from_str(word).ok().filter(serves).ok_or(Bad::Shape))
}
