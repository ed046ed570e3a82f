//! The settings as tables: variables in, values or faults out.

use std::{collections::BTreeMap, time::Duration};

use domain::{Schedule, retry::AmbiguousPolicy};
use secrecy::ExposeSecret;

use super::{
    setting::{PLACEHOLDER, Secrecy, Unset},
    *,
};

const LEAST: [(&str, &str); 2] = [("DATABASE_URL", "postgres://u:pw@db/posthaste"), ("AMQP_URL", "amqp://u:pw@mq/%2f")];
const SMTP: [(&str, &str); 2] = [("SMTP_HOST", "mail.example.com"), ("EMAIL_FROM", "noreply@example.com")];

/// The pair of RFC 8291, section 5.
const VAPID: [(&str, &str); 2] = [
    (
        "PUSH_VAPID_PUBLIC_KEY",
        "BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8",
    ),
    ("PUSH_VAPID_PRIVATE_KEY", "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"),
];

fn vars(more: &[(&'static str, &'static str)]) -> BTreeMap<&'static str, &'static str> {
    LEAST.iter().chain(more).copied().collect()
}

fn config(more: &[(&'static str, &'static str)]) -> Config {
    Config::from_env_map(vars(more)).unwrap_or_else(|error| panic!("{more:?}: {error}"))
}

fn refusal(more: &[(&'static str, &'static str)]) -> String {
    match Config::from_env_map(vars(more)) {
        Ok(_) => panic!("{more:?} was accepted"),
        Err(error) => error.to_string(),
    }
}

fn smtp(more: &[(&'static str, &'static str)]) -> (u16, SmtpTls) {
    let smtp = config(&[&SMTP, more].concat()).email.smtp.unwrap();
    (smtp.port, smtp.tls)
}

fn seconds(list: &[u64]) -> Vec<Duration> {
    list.iter().copied().map(Duration::from_secs).collect()
}

#[test]
fn two_settings_are_enough_to_start() {
    let config = config(&[]);
    assert_eq!(config.database.url.expose_secret(), "postgres://u:pw@db/posthaste");
    assert_eq!((config.database.pool_size, config.http.port, config.http.host.as_str()), (16, 8080, "127.0.0.1"));
    assert_eq!(config.http.public_url.as_str(), "http://127.0.0.1:8080/");
    assert!((1..=2).contains(&config.http.workers));
    assert_eq!(config.auth.jwt_expires_in, Duration::from_secs(3600));
    assert_eq!(config.auth.jwt_refresh_expires_in, Duration::from_secs(7 * 24 * 3600));
    assert_eq!((config.worker.channels.as_slice(), config.worker.concurrency), (Channel::ALL, 64));
    assert_eq!((config.webhook.timeout, config.provider_timeout), (Duration::from_secs(15), Duration::from_secs(15)));
    assert_eq!(config.log, "info");
    let timing = config.timing;
    assert_eq!(
        [timing.drain, timing.audit_after, timing.relay_after, timing.lease_margin].to_vec(),
        seconds(&[20, 120, 15, 10])
    );
    assert_eq!(
        [timing.heartbeat, timing.publish_timeout, timing.doubt_grace, timing.lag_max()].to_vec(),
        seconds(&[5, 10, 30, 15])
    );
    let backends = Channel::ALL.iter().map(|&channel| config.backends(channel).to_vec()).collect::<Vec<_>>();
    assert_eq!(
        backends,
        [vec![], vec![], vec![], vec![ProviderName::Http], vec![ProviderName::Inbox], vec![ProviderName::Waha]]
    );
}

#[test]
fn every_default_and_every_example_is_of_its_kind() {
    for setting in table::all() {
        let spec = setting.spec();
        // The owner creates a secret once. A command in its place would create another one at each load.
        assert!(!spec.example.contains("$("), "{}", spec.name);
        assert_eq!(setting.accepts(spec.example), spec.example != PLACEHOLDER, "{}", spec.name);
        if let Unset::Value(text) = spec.unset {
            assert!(setting.accepts(text), "{}", spec.name);
        }
        assert!(spec.doc.ends_with('.') && !setting.expects().to_string().is_empty(), "{}", spec.name);
    }
}

#[test]
fn no_name_stands_for_two_settings() {
    let mut names: Vec<_> = table::all().flat_map(|s| [&[s.spec().name], s.spec().aliases].concat()).collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn the_example_file_is_a_valid_environment_as_it_stands_and_with_every_line_taken() {
    let pairs = |text: &str| -> BTreeMap<String, String> {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let is_of_name = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        let named = lines.filter(|(name, _)| name.bytes().all(is_of_name));
        named.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    Config::from_env_map(pairs(&env_example())).unwrap();
    let mut all = pairs(&env_example().replace("# ", ""));
    assert!(all.insert("JWT_SECRET".into(), "s".repeat(32)).is_some());
    for name in ["POSTHASTE_ENCRYPTION_KEY", "POSTHASTE_ENCRYPTION_KEY_PREVIOUS"] {
        assert!(all.insert(name.into(), format!("{}=", "A".repeat(43))).is_some());
    }
    for (name, key) in VAPID {
        assert!(all.insert(name.into(), key.into()).is_some());
    }
    assert_eq!(all.len(), table::all().count());
    Config::from_env_map(all).unwrap();
}

#[test]
fn the_placeholder_of_the_example_file_is_no_value_of_any_setting() {
    for name in ["JWT_SECRET", "POSTHASTE_ENCRYPTION_KEY", "PUSH_VAPID_PRIVATE_KEY", "WAHA_API_KEY"] {
        let refused = refusal(&[(name, PLACEHOLDER)]);
        assert!(refused.contains(&format!("{name}=*** is the placeholder of .env.example")), "{refused}");
        assert!(!refused.contains(PLACEHOLDER), "it is no example either: {refused}");
    }
}

#[test]
fn every_secret_can_stand_in_a_file() {
    let file = std::env::temp_dir().join(format!("posthaste-setting-{}", std::process::id()));
    let path = file.display().to_string();
    let read = |more: &[(&str, &str)]| {
        let all = LEAST.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::from_env_map(all).map_err(|error| error.to_string())
    };
    std::fs::write(&file, format!("{}\n", "s".repeat(32))).unwrap();
    let config = read(&[("JWT_SECRET_FILE", &path)]).unwrap();
    assert_eq!(config.require_jwt_secret().unwrap().expose_secret(), "s".repeat(32));
    assert!(read(&[("JWT_SECRET_FILE", &path), ("JWT_SECRET", "x")]).unwrap_err().contains("disagree"));
    assert!(read(&[("POSTHASTE_ENCRYPTION_KEY_FILE", &path)]).unwrap_err().contains("must be 32 bytes in base64"));
    std::fs::remove_file(&file).unwrap();
    assert!(read(&[("JWT_SECRET_FILE", &path)]).unwrap_err().contains("JWT_SECRET_FILE"));
    assert!(read(&[("PORT_FILE", &path)]).is_ok(), "no secret, and no name of ours");
}

#[test]
fn a_database_that_cannot_be_connected_to_as_asked_is_refused_at_the_start() {
    for (url, says) in [
        ("postgres://u:hunter2@db/n?sslmode=verify-ca", "without the file of a certificate in sslrootcert"),
        ("postgres://u:hunter2@db/n?sslmode=allow", "an sslmode other than"),
        ("postgres://u:hunter2@db/n?ssl_mode=require", "an option that cannot be used"),
    ] {
        let refused = refusal(&[("DATABASE_URL", url)]);
        assert!(refused.contains(says) && !refused.contains("hunter2"), "{refused}");
    }
    let several = config(&[("DATABASE_URL", "postgres://u:pw@one,two:5433/n?sslmode=verify-full")]);
    assert_eq!(several.database.url.expose_secret().matches("two").count(), 1);
}

#[test]
fn every_fault_is_reported_at_once() {
    let broken = table::all().filter(|setting| !setting.accepts("\u{1} ? \u{1}")).map(|setting| setting.spec().name);
    let broken: Vec<_> = broken.collect();
    let error = Config::from_env_map(broken.iter().map(|&name| (name, "\u{1} ? \u{1}"))).unwrap_err();
    assert!(broken.len() > 50, "{broken:?}");
    let named: Vec<_> = error.faults.iter().map(|fault| fault.name.as_str()).collect();
    assert!(broken.iter().all(|name| named.contains(name)), "{broken:?} {named:?}");
}

#[test]
fn a_fault_names_variable_value_expectation_and_example() {
    assert_eq!(
        refusal(&[("PORT", "http")]),
        "a setting is wrong:\n  PORT=http must be a whole number from 1 to 65535; for example 8080"
    );
    assert!(refusal(&[("AMQP_URL", "")]).contains("AMQP_URL is missing: set it to an amqp:// or amqps:// URL"));
}

#[test]
fn a_secret_is_shown_nowhere() {
    let secrets = [
        ("DATABASE_URL", "postgres://u:hunter2@db/x"),
        ("AMQP_URL", "amqp://u:hunter2@mq"),
        ("DB_PASSWORD", "hunter2"),
    ];
    let config = config(&secrets);
    let shown = format!("{:?} {:?}", config, config.describe());
    assert!(!shown.contains("hunter2") && shown.contains("postgres://u:***@db/x"), "{shown}");
    for (name, value) in
        [("JWT_SECRET", "hunter2"), ("DATABASE_URL", "mysql://u:hunter2@db"), ("DB_PASSWORD", "hunter2")]
    {
        let error = refusal(&[(name, value), ("PORT", "x")]);
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn describe_names_every_setting_with_its_source() {
    let shown = config(&[("EMAIL_SERVICE", "sandbox")]).describe();
    assert_eq!(shown.len(), table::all().count());
    for (name, value, source) in [
        ("EMAIL_BACKEND", "sandbox", "EMAIL_SERVICE"),
        ("PORT", "8080", "default"),
        ("AMQP_URL", "amqp://u:***@mq/%2f", "AMQP_URL"),
        ("JWT_SECRET", "", "unset"),
    ] {
        assert!(shown.contains(&(name, value.to_owned(), source)), "{name}: {shown:?}");
    }
}

#[test]
fn secrets_are_marked_as_such() {
    for setting in table::all() {
        let name = setting.spec().name;
        let secret = ["PASSWORD", "SECRET", "AMQP_URL", "DATABASE_URL", "_KEY", "KEY_PREVIOUS", "_TOKEN"]
            .iter()
            .any(|word| name.ends_with(word) && !name.ends_with("PUBLIC_KEY"));
        assert_eq!(secret, setting.spec().secrecy != Secrecy::Open, "{name}");
    }
}

#[test]
fn an_unknown_name_that_looks_like_ours_stops_the_start_with_a_suggestion() {
    for (name, hint) in [
        ("POSTHASTE_PORT", "POSTHASTE_PORT is no setting of Posthaste; did you mean PORT?"),
        ("POSTHASTE_ADMINKEY", "did you mean POSTHASTE_ADMIN_KEY?"),
        ("RETRY_BASE_MS_INAPP", "did you mean RETRY_BASE_MS_IN_APP?"),
        ("POSTHASTE_NONSENSE_OF_SOME_LENGTH", "is no setting of Posthaste"),
    ] {
        assert!(refusal(&[(name, "secret")]).contains(hint), "{}", refusal(&[(name, "secret")]));
        assert!(!refusal(&[(name, "hunter2")]).contains("hunter2"));
    }
}

#[test]
fn names_of_clients_tests_and_others_pass() {
    let mut more =
        vec![("POSTHASTE_TEST_ANYTHING", "1"), ("SENDGRID_API_KEY", "k"), ("REDIS_URL", "x"), ("SMTP_HSOT", "x")];
    more.extend(table::FOREIGN.iter().map(|&name| (name, "x")));
    config(&more);
}

#[test]
fn an_empty_setting_is_unset() {
    let config = config(&[("PORT", ""), ("EMAIL_BACKEND", " "), ("JWT_SECRET", ""), ("POSTHASTE_NONSENSE", "")]);
    assert_eq!((config.http.port, config.auth.jwt_secret.is_some()), (8080, false));
}

#[test]
fn aliases_that_agree_pass_and_aliases_that_disagree_stop_the_start() {
    for (one, other) in [
        ("EMAIL_BACKEND", "EMAIL_SERVICE"),
        ("SMTP_HOST", "EMAIL_HOST"),
        ("SMTP_PORT", "EMAIL_PORT"),
        ("SMTP_USER", "EMAIL_USER"),
        ("SMTP_PASSWORD", "EMAIL_PASSWORD"),
        ("EMAIL_PASSWORD", "SMTP_PASS"),
        ("EMAIL_FROM", "FROM_EMAIL"),
        ("SMS_BACKEND", "SMS_PROVIDER"),
    ] {
        let error = refusal(&[(one, "1"), (other, "2")]);
        assert!(error.contains(&format!("{one} and {other} disagree")), "{error}");
    }
    config(&[("SMTP_PORT", "25"), ("EMAIL_PORT", "25 ")]);
}

#[test]
fn the_old_push_key_is_refused_with_the_reason() {
    let error = refusal(&[("FCM_SERVER_KEY", "hunter2")]);
    assert!(error.contains("Google shut down the API") && !error.contains("hunter2"), "{error}");
}

#[test]
fn ingest_alone_needs_the_token_secret_and_it_must_be_long() {
    let missing = config(&[]).require_jwt_secret().unwrap_err().to_string();
    assert!(missing.contains("JWT_SECRET is missing, and ingest needs it"), "{missing}");
    let short = refusal(&[("JWT_SECRET", "0123456789012345678901234567890")]);
    assert!(short.contains("JWT_SECRET=*** has 31 bytes; it must have at least 32"), "{short}");
    let long = config(&[("JWT_SECRET", "01234567890123456789012345678901")]);
    assert_eq!(long.require_jwt_secret().unwrap().expose_secret().len(), 32);
}

#[test]
fn lifetimes_take_seconds_and_units() {
    for (text, seconds) in
        [("3600", 3600), ("90s", 90), ("15m", 900), ("1h", 3600), ("24h", 86400), ("7d", 604_800), ("2 w", 1_209_600)]
    {
        assert_eq!(config(&[("JWT_EXPIRES_IN", text)]).auth.jwt_expires_in, Duration::from_secs(seconds), "{text}");
    }
    for text in ["0", "-1", "h", "1y", "1.5h", "366d", "99999999999999999999", "1h30m", "1ä"] {
        assert!(refusal(&[("JWT_EXPIRES_IN", text)]).contains("JWT_EXPIRES_IN"), "{text}");
    }
}

#[test]
fn the_database_can_be_given_in_five_parts() {
    let parts = |password| {
        [
            ("DB_HOST", "db"),
            ("DB_PORT", "5433"),
            ("DB_USERNAME", "ada"),
            ("DB_PASSWORD", password),
            ("DB_DATABASE", "post haste"),
            ("AMQP_URL", "amqp://mq"),
        ]
    };
    let config = Config::from_env_map(parts("p@ss/w:rd#1%+")).unwrap();
    let url = Url::parse(config.database.url.expose_secret()).unwrap();
    assert_eq!(
        (url.host_str(), url.port(), url.username(), url.path()),
        (Some("db"), Some(5433), "ada", "/post%20haste")
    );
    assert_eq!(url.password(), Some("p%40ss%2Fw%3Ard%231%+"));
}

#[test]
fn a_part_of_the_database_must_not_contradict_the_url() {
    config(&[
        ("DB_HOST", "db"),
        ("DB_PORT", "5432"),
        ("DB_USERNAME", "u"),
        ("DB_PASSWORD", "pw"),
        ("DB_DATABASE", "posthaste"),
    ]);
    for (name, value) in
        [("DB_HOST", "x"), ("DB_PORT", "1"), ("DB_USERNAME", "x"), ("DB_PASSWORD", "x"), ("DB_DATABASE", "x")]
    {
        let error = refusal(&[(name, value)]);
        assert!(error.contains(&format!("DATABASE_URL and {name} disagree")), "{error}");
    }
}

#[test]
fn half_a_database_names_what_is_missing() {
    let error = Config::from_env_map([("DB_HOST", "db"), ("AMQP_URL", "amqp://mq")]).unwrap_err().to_string();
    assert!(error.contains("DB_USERNAME is missing") && error.contains("DB_DATABASE is missing"), "{error}");
    let none: [(&str, &str); 0] = [];
    let error = Config::from_env_map(none).unwrap_err().to_string();
    assert!(error.starts_with("2 settings are wrong:\n  DATABASE_URL is missing"), "{error}");
}

#[test]
fn a_database_url_may_point_at_a_socket() {
    for url in
        ["postgresql:///posthaste?host=/run/pg", "postgres://u@[::1]:5433/x", "postgres:///?host=/run/pg&dbname=x"]
    {
        assert_eq!(config(&[("DATABASE_URL", url)]).database.url.expose_secret(), url);
    }
    for url in ["postgres://", "postgres:///x", "postgres://host", "mysql://h/d", "host=db"] {
        assert!(refusal(&[("DATABASE_URL", url)]).contains("DATABASE_URL=*** must be"), "{url}");
    }
}

#[test]
fn commands_that_need_only_the_database_read_only_that() {
    let config = DatabaseConfig::from_env_map([("DATABASE_URL", "postgres://u:pw@db/x"), ("PORT", "no")]).unwrap();
    assert_eq!(config.pool_size, 16);
}

#[test]
fn the_public_url_ends_in_a_slash_and_follows_the_address() {
    for (more, url) in [
        (vec![("PORT", "9000")], "http://127.0.0.1:9000/"),
        (vec![("HOST", "0.0.0.0")], "http://127.0.0.1:8080/"),
        (vec![("HOST", "::")], "http://[::1]:8080/"),
        (vec![("HOST", "[fd00::1]")], "http://[fd00::1]:8080/"),
        (vec![("PUBLIC_URL", "https://example.com/notify")], "https://example.com/notify/"),
    ] {
        assert_eq!(config(&more).http.public_url.as_str(), url);
    }
    for text in ["ftp://example.com", "example.com", "https://example.com/?a=1"] {
        assert!(refusal(&[("PUBLIC_URL", text)]).contains("PUBLIC_URL"), "{text}");
    }
    for text in ["999.1.1.1", "a b", "http://x", "host:80"] {
        assert!(refusal(&[("HOST", text)]).contains("HOST"), "{text}");
    }
}

#[test]
fn backends_are_lists_in_order() {
    let config = config(&[&SMTP[..], &[("EMAIL_BACKEND", "smtp, sandbox"), ("SMS_BACKEND", "sandbox")]].concat());
    assert_eq!(config.backends(Channel::Email), [ProviderName::Smtp, ProviderName::Sandbox]);
    assert_eq!(config.backends(Channel::Sms), [ProviderName::Sandbox]);
}

#[test]
fn a_backend_of_another_channel_is_refused() {
    for (name, value, why) in [
        ("EMAIL_BACKEND", "http", "must be a comma list of smtp, sendgrid, ses, sandbox"),
        ("EMAIL_BACKEND", "sandbox,", "must be a comma list of smtp, sendgrid, ses, sandbox"),
        ("IN_APP_BACKEND", "inbox,inbox", "names `inbox` twice"),
        ("WEBHOOK_BACKEND", "carrier-pigeon", "must be a comma list of http, sandbox"),
    ] {
        assert!(refusal(&[(name, value)]).contains(why), "{}", refusal(&[(name, value)]));
    }
}

#[test]
fn a_mail_server_alone_means_smtp() {
    assert_eq!(config(&SMTP).email.backends, [ProviderName::Smtp]);
    assert_eq!(
        config(&[("EMAIL_HOST", "mail"), ("FROM_EMAIL", "Nexus <a@b.example>")]).email.backends,
        [ProviderName::Smtp]
    );
    let sandbox = config(&[("SMTP_HOST", "mail"), ("EMAIL_BACKEND", "sandbox")]).email;
    assert_eq!((sandbox.backends, sandbox.smtp.is_some()), (vec![ProviderName::Sandbox], true));
}

#[test]
fn a_half_configured_backend_names_what_is_missing() {
    let error = refusal(&[("EMAIL_BACKEND", "smtp")]);
    assert!(error.contains("SMTP_HOST is missing") && error.contains("EMAIL_FROM is missing"), "{error}");
    let error = refusal(&[("SMTP_HOST", "mail"), ("SMTP_USER", "ada")]);
    assert!(error.contains("EMAIL_FROM is missing") && error.contains("SMTP_PASSWORD is missing"), "{error}");
    assert!(refusal(&[&SMTP[..], &[("SMTP_PASS", "x")]].concat()).contains("SMTP_USER is missing"));
}

#[test]
fn a_half_configured_vendor_names_what_is_missing() {
    const DKIM: &str = "DKIM needs its three settings";
    for (settings, missing) in [
        (&[("EMAIL_BACKEND", "sendgrid")][..], &["SENDGRID_API_KEY", "EMAIL_FROM"][..]),
        (&[("EMAIL_BACKEND", "ses")], &["EMAIL_FROM", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]),
        (&[("SMS_BACKEND", "sns"), ("AWS_REGION", "us-east-1")], &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]),
        (&[("SMS_BACKEND", "twilio")], &["TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "TWILIO_FROM_NUMBER"]),
        (&[("TWILIO_ACCOUNT_SID", "AC1"), ("SMS_AUTH_TOKEN", "t")], &["TWILIO_FROM_NUMBER"]),
        (&[("DKIM_DOMAIN", "example.com")], &["DKIM_SELECTOR", "DKIM_PRIVATE_KEY_PATH", DKIM]),
    ] {
        let error = refusal(settings);
        for name in missing {
            assert!(error.contains(name), "{settings:?} should name {name}: {error}");
        }
        for (name, _) in settings {
            assert!(!error.contains(&format!("{name} is missing")), "{error}");
        }
    }
    let both = [("EMAIL_BACKEND", "ses"), ("SMS_BACKEND", "sns")];
    assert_eq!(refusal(&both).matches("AWS_REGION is missing").count(), 1);
}

#[test]
fn vendors_are_chosen_by_settings_alone() {
    let key = [("AWS_REGION", "eu-central-1"), ("AWS_ACCESS_KEY_ID", "AK"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let mail = [("EMAIL_BACKEND", "sendgrid,ses"), ("SENDGRID_API_KEY", "SG.x"), ("EMAIL_FROM", "a@b.example")];
    let both = config(&[&key[..], &mail, &[("SMS_PROVIDER", "sns,twilio")], &TWILIO].concat());
    assert_eq!(both.backends(Channel::Email), [ProviderName::Sendgrid, ProviderName::Ses]);
    assert_eq!(both.backends(Channel::Sms), [ProviderName::Sns, ProviderName::Twilio]);
    assert_eq!(both.email.sendgrid.base_url.as_str(), "https://api.sendgrid.com/");
    assert_eq!(both.sms.twilio.base_url.as_str(), "https://api.twilio.com/");
    // The names of an older set of settings, without a backend.
    let alone = config(&TWILIO);
    assert_eq!(alone.backends(Channel::Sms), [ProviderName::Twilio]);
    assert_eq!(alone.sms.twilio.from.as_deref(), Some("+1234567890"));
    let shown = alone.describe();
    assert!(shown.contains(&("TWILIO_AUTH_TOKEN", "***".to_owned(), "SMS_AUTH_TOKEN")), "{shown:?}");
}

const TWILIO: [(&str, &str); 3] = [
    ("SMS_ACCOUNT_SID", "your-twilio-sid"),
    ("SMS_AUTH_TOKEN", "your-twilio-token"),
    ("SMS_FROM_NUMBER", "+1234567890"),
];

#[test]
fn senders_and_regions_have_their_forms() {
    for (name, good, bad) in [
        (
            "TWILIO_FROM_NUMBER",
            &["+15005550006", "12345", "Posthaste", "MG0123456789abcdef0123456789abcdef"][..],
            &["+", "+1 500", "a name that is too long", "MG0123"][..3],
        ),
        ("SNS_SENDER_ID", &["NEXUS", "a-1"], &["12345", "twelve-chars", "a b"]),
        ("AWS_REGION", &["us-east-1", "cn-north-1"], &["us_east", "evil.example/", "-x"]),
        ("DKIM_DOMAIN", &["example.com"], &["a;b", "a..b", "a b"]),
    ] {
        let rest = [("DKIM_SELECTOR", "s"), ("DKIM_PRIVATE_KEY_PATH", "/k")];
        let rest = if name == "DKIM_DOMAIN" { &rest[..] } else { &[] };
        good.iter().for_each(|text| drop(config(&[rest, &[(name, text)]].concat())));
        bad.iter().for_each(|text| assert!(refusal(&[rest, &[(name, text)]].concat()).contains(name), "{text}"));
    }
}

#[test]
fn the_sender_is_one_address() {
    for from in ["noreply@example.com", "Nexus Mail <noreply@example.com>"] {
        assert_eq!(config(&[("SMTP_HOST", "mail"), ("EMAIL_FROM", from)]).email.from.as_deref(), Some(from));
    }
    for from in
        ["noreply", "@example.com", "a@", "a@b c", "a@b.example, c@d.example", "Nexus a@b.example>", "a@b\n.example"]
    {
        assert!(refusal(&[("EMAIL_FROM", from)]).contains("EMAIL_FROM"), "{from}");
    }
}

#[test]
fn encryption_of_mail_follows_word_and_port() {
    let login = [("SMTP_USER", "u"), ("SMTP_PASSWORD", "p"), ("SMTP_PORT", "25")];
    let here = [&login[..], &[("SMTP_HOST", "127.0.0.1")]].concat();
    for (more, expected) in [
        (vec![], (587, SmtpTls::StartTls)),
        (vec![("SMTP_PORT", "465")], (465, SmtpTls::Tls)),
        (vec![("SMTP_PORT", "1025")], (1025, SmtpTls::None)),
        (login.to_vec(), (25, SmtpTls::StartTls)),
        (here, (25, SmtpTls::None)),
        (vec![("SMTP_USE_TLS", "true")], (587, SmtpTls::StartTls)),
        (vec![("SMTP_USE_TLS", "true"), ("SMTP_PORT", "25")], (25, SmtpTls::StartTls)),
        (vec![("SMTP_USE_TLS", "True"), ("SMTP_PORT", "465")], (465, SmtpTls::Tls)),
        (vec![("SMTP_USE_TLS", "false"), ("SMTP_PORT", "587")], (587, SmtpTls::None)),
        (vec![("SMTP_USE_TLS", "none")], (587, SmtpTls::None)),
        (vec![("SMTP_USE_TLS", "tls")], (465, SmtpTls::Tls)),
        (vec![("SMTP_USE_TLS", "starttls"), ("SMTP_PORT", "465")], (465, SmtpTls::StartTls)),
        (vec![("EMAIL_SECURE", "true")], (465, SmtpTls::Tls)),
        (vec![("EMAIL_SECURE", "true"), ("EMAIL_PORT", "2465")], (2465, SmtpTls::Tls)),
        (vec![("EMAIL_SECURE", "false"), ("EMAIL_PORT", "587")], (587, SmtpTls::StartTls)),
        (vec![("EMAIL_SECURE", "false"), ("EMAIL_PORT", "1025")], (1025, SmtpTls::None)),
        (vec![("EMAIL_SECURE", "false"), ("SMTP_USE_TLS", "true")], (587, SmtpTls::StartTls)),
    ] {
        assert_eq!(smtp(&more), expected, "{more:?}");
    }
    let error = refusal(&[&SMTP[..], &[("SMTP_USE_TLS", "none"), ("EMAIL_SECURE", "true")]].concat());
    assert!(error.contains("SMTP_USE_TLS and EMAIL_SECURE disagree"), "{error}");
}

#[test]
fn networks_and_channels_are_lists() {
    let config = config(&[("WEBHOOK_ALLOW_NETS", "10.0.0.0/8, ::1,127.0.0.1"), ("WORKER_CHANNELS", "in-app,email")]);
    assert_eq!(
        config.webhook.allow_nets.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.0/8", "::1/128", "127.0.0.1/32"]
    );
    assert_eq!(config.worker.channels, [Channel::InApp, Channel::Email]);
    assert_eq!(config.waha.media_nets, [], "they are no networks for media");
    for (name, value) in
        [("WEBHOOK_ALLOW_NETS", "10.0.0.0/33"), ("WORKER_CHANNELS", "fax"), ("WORKER_CHANNELS", "sms,sms")]
    {
        assert!(refusal(&[(name, value)]).contains(name));
    }
}

#[test]
fn the_log_filter_is_checked_at_the_start() {
    assert_eq!(config(&[("RUST_LOG", "info,lapin=warn")]).log, "info,lapin=warn");
    assert!(refusal(&[("RUST_LOG", "info,lapin=loud")]).contains("RUST_LOG"));
}

#[test]
fn retries_are_eight_attempts_doubling_from_ten_seconds_to_an_hour() {
    let config = config(&[]);
    for &channel in Channel::ALL.iter().filter(|&&channel| channel != Channel::Webhook) {
        let policy = config.retry_policy(channel);
        assert_eq!((policy.max_attempts, policy.schedule), (8, doubling(10_000, 3_600_000)), "{channel}");
    }
}

fn doubling(base: u64, max: u64) -> Schedule {
    Schedule::Exponential { base: Duration::from_millis(base), max: Duration::from_millis(max) }
}

#[test]
fn a_setting_for_one_channel_wins_there_only() {
    let config = config(&[
        ("RETRY_MAX_ATTEMPTS", "5"),
        ("RETRY_BASE_MS", "100"),
        ("RETRY_MAX_MS", "900"),
        ("RETRY_MAX_ATTEMPTS_IN_APP", "2"),
        ("RETRY_BASE_MS_IN_APP", "7"),
        ("RETRY_MAX_MS_IN_APP", "70"),
    ]);
    let (in_app, email) = (config.retry_policy(Channel::InApp), config.retry_policy(Channel::Email));
    assert_eq!((in_app.max_attempts, in_app.schedule), (2, doubling(7, 70)));
    assert_eq!((email.max_attempts, email.schedule), (5, doubling(100, 900)));
}

#[test]
fn webhooks_follow_their_own_settings() {
    const STANDARD: [u64; 9] = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400];
    let fixed = |list: &[u64]| Schedule::Fixed(seconds(list));
    for (more, attempts, schedule) in [
        (vec![], 10, fixed(&STANDARD)),
        (vec![("RETRY_MAX_ATTEMPTS", "2"), ("RETRY_BASE_MS", "1"), ("RETRY_MAX_MS", "1")], 10, fixed(&STANDARD)),
        (vec![("WEBHOOK_MAX_RETRIES", "3")], 4, fixed(&[5, 300, 1800])),
        (vec![("WEBHOOK_MAX_RETRIES", "0")], 1, fixed(&[])),
        (vec![("WEBHOOK_MAX_RETRIES", "20")], 21, fixed(&STANDARD)),
        (vec![("WEBHOOK_RETRY_DELAY", "1000")], 10, doubling(1000, 3_600_000)),
        (
            vec![("WEBHOOK_MAX_RETRIES", "3"), ("WEBHOOK_RETRY_DELAY", "1000"), ("RETRY_MAX_MS", "9000")],
            4,
            doubling(1000, 9000),
        ),
        (vec![("WEBHOOK_MAX_RETRIES", "3"), ("RETRY_MAX_ATTEMPTS_WEBHOOK", "2")], 2, fixed(&[5])),
        (
            vec![("WEBHOOK_RETRY_DELAY", "1000"), ("RETRY_BASE_MS_WEBHOOK", "50"), ("RETRY_MAX_MS_WEBHOOK", "60")],
            10,
            doubling(50, 60),
        ),
        (vec![("RETRY_MAX_MS_WEBHOOK", "60000"), ("WEBHOOK_MAX_RETRIES", "3")], 4, fixed(&[5, 60, 60])),
    ] {
        let policy = config(&more).retry_policy(Channel::Webhook);
        assert_eq!((policy.max_attempts, policy.schedule), (attempts, schedule), "{more:?}");
    }
}

#[test]
fn doubt_holds_text_messages_and_whatsapp_and_resends_the_rest() {
    let held = |config: &Config| -> Vec<_> {
        let held = |&&channel: &&Channel| config.retry_policy(channel).ambiguous != AmbiguousPolicy::Resend;
        Channel::ALL.iter().filter(held).copied().collect()
    };
    assert_eq!(held(&config(&[])), [Channel::Sms, Channel::Whatsapp]);
    let changed =
        config(&[("AMBIGUOUS_POLICY_SMS", "resend"), ("AMBIGUOUS_POLICY_EMAIL", "hold"), ("AMBIGUOUS_HOLD_MS", "50")]);
    assert_eq!(held(&changed), [Channel::Email, Channel::Whatsapp]);
    assert_eq!(changed.retry_policy(Channel::Email).ambiguous, AmbiguousPolicy::Hold(Duration::from_millis(50)));
    assert!(refusal(&[("AMBIGUOUS_POLICY_PUSH", "maybe")]).contains("must be resend or hold"));
}

#[test]
fn a_push_backend_without_its_settings_stops_the_start_and_says_which() {
    for (backend, missing) in [
        ("fcm", &["FCM_CREDENTIALS_PATH"][..]),
        ("apns", &["APNS_CERTIFICATE_PATH", "APNS_TOPIC"]),
        ("webpush", &["PUSH_VAPID_PUBLIC_KEY", "PUSH_VAPID_PRIVATE_KEY", "PUSH_VAPID_SUBJECT"]),
    ] {
        let refused = refusal(&[("PUSH_BACKEND", backend)]);
        for name in missing {
            let says = format!("{name} is missing, and PUSH_BACKEND names {backend}");
            assert!(refused.contains(&says), "{refused}");
        }
    }
    assert!(refusal(&[("APNS_KEY_ID", "ABC123DEFG")]).contains("APNS_TEAM_ID is missing"));
    assert!(refusal(&[("APNS_TEAM_ID", "DEF123GHIJ")]).contains("APNS_KEY_ID is missing"));
}

#[test]
fn push_backends_have_what_they_need() {
    let files = [
        ("PUSH_BACKEND", "fcm, apns,webpush"),
        ("FCM_CREDENTIALS_PATH", "/run/fcm.json"),
        ("APNS_CERTIFICATE_PATH", "/run/apns.pem"),
        ("APNS_TOPIC", "com.example.app"),
        ("PUSH_VAPID_SUBJECT", "mailto:ops@example.com"),
    ];
    let push = config(&[&files[..], &VAPID].concat()).push;
    assert_eq!(push.backends, [ProviderName::Fcm, ProviderName::Apns, ProviderName::Webpush]);
    assert_eq!(push.fcm.unwrap().base_url.as_str(), "https://fcm.googleapis.com/");
    let apns = push.apns.unwrap();
    assert_eq!((apns.base_url.as_str(), apns.signer.is_none()), ("https://api.push.apple.com/", true));
    assert!(push.webpush.unwrap().key_pair().is_some());
}

#[test]
fn vapid_keys_of_two_pairs_are_refused_and_not_shown() {
    let [(public, key), (private, _)] = VAPID;
    let other = "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94";
    let refused = refusal(&[(public, key), (private, other), ("PUSH_VAPID_SUBJECT", "mailto:ops@example.com")]);
    assert!(refused.contains("PUSH_VAPID_PRIVATE_KEY is not the private key of"), "{refused}");
    assert!(!refused.contains(other));
    assert!(refusal(&[(private, "tooshort")]).contains("PUSH_VAPID_PRIVATE_KEY=*** must be a P-256 private key"));
    assert!(refusal(&[("PUSH_VAPID_SUBJECT", "ops@example.com")]).contains("must be a mailto: or https: URL"));
}

#[test]
fn waits_that_are_not_set_fit_those_that_are() {
    let timing = config(&[("WEBHOOK_TIMEOUT", "120000"), ("RELAY_AFTER_MS", "3000"), ("LEASE_MARGIN_MS", "0")]).timing;
    assert_eq!((timing.drain, timing.publish_timeout), (Duration::from_secs(125), Duration::from_secs(2)));
    let timing = config(&[("AMQP_URL", "amqp://u:pw@mq/v?heartbeat=20"), ("AMQP_HEARTBEAT_SECONDS", "1")]).timing;
    assert_eq!(
        (timing.heartbeat, timing.doubt_grace),
        (Duration::from_secs(20), Duration::from_secs(120)),
        "the URL wins"
    );
    let config = config(&[("AMQP_HEARTBEAT_SECONDS", "1"), ("RELAY_AFTER_MS", "3000"), ("DOUBT_GRACE_MS", "5000")]);
    assert!(config.broker.url.expose_secret().ends_with("?heartbeat=1"));
    assert_eq!(config.timing.lag_max(), Duration::from_secs(2));
}

#[test]
fn waits_in_the_wrong_order_stop_the_start_and_name_the_setting() {
    for (settings, fault) in [
        ([("DRAIN_TIMEOUT_MS", "17999"), ("WEBHOOK_TIMEOUT", "15000")], "DRAIN_TIMEOUT_MS would cut calls"),
        ([("DOUBT_GRACE_MS", "24999"), ("AMQP_HEARTBEAT_SECONDS", "5")], "DOUBT_GRACE_MS would doubt sends"),
    ] {
        let refusal = refusal(&settings);
        assert!(refusal.contains(fault), "{refusal}");
    }
    config(&[("DRAIN_TIMEOUT_MS", "18000"), ("DOUBT_GRACE_MS", "25000")]);
}
