//! The table of settings: the single home of every name, alias, default, sentence and example. The reader, the
//! messages of a refused start, `posthaste config check` and `.env.example` are all made from it.

use std::time::Duration;

use domain::{Channel, ProviderName, RequireMapping, p256::PublicKey, seal::Required};
use ipnet::IpNet;
use secrecy::SecretString;
use url::Url;

use super::{
    by_channel::ByChannel,
    categories::Categories,
    kind::{self, InDoubt, TlsWord},
    setting::{Known, PLACEHOLDER, Row, Secrecy, Setting, Unset},
};

/// Writes the statics and the list of sections from one text, so that no setting can be missing from the list.
macro_rules! settings {
    ($($title:literal { $($(#[doc = $doc:literal])+ $name:ident: $type:ty = $setting:expr;)+ })+) => {
        $($(pub(super) static $name: $type = $setting.doc(concat!($($doc),+));)+)+

        /// Every setting, by section, in the order of `.env.example`.
        pub(super) fn sections() -> Vec<(&'static str, Vec<&'static dyn Known>)> {
            vec![$(($title, [$($name.settings()),+].into_iter().flatten().collect())),+]
        }
    };
}

/// A setting whose variable has the name of its static.
macro_rules! per_channel {
    ($prefix:literal, $kind:expr, $example:literal) => {
        ByChannel {
            email: Setting::new(concat!($prefix, "EMAIL"), $kind, $example),
            sms: Setting::new(concat!($prefix, "SMS"), $kind, $example),
            push: Setting::new(concat!($prefix, "PUSH"), $kind, $example),
            webhook: Setting::new(concat!($prefix, "WEBHOOK"), $kind, $example),
            in_app: Setting::new(concat!($prefix, "IN_APP"), $kind, $example),
            whatsapp: Setting::new(concat!($prefix, "WHATSAPP"), $kind, $example),
        }
    };
}

settings! {
    "Database and broker" {
        /// The PostgreSQL database. The five DB_* settings can be set instead. Its option `sslmode` requests TLS, such
        /// as `?sslmode=verify-full`.
        DATABASE_URL: Setting<Url> =
            Setting::new("DATABASE_URL", kind::POSTGRES_URL, "postgres://posthaste:change-me@127.0.0.1:5432/posthaste")
                .unset(Unset::Derived("made of the DB_* settings")).secrecy(Secrecy::Password);
        /// The database server, if DATABASE_URL is not set.
        DB_HOST: Setting<String> = Setting::new("DB_HOST", kind::HOST, "127.0.0.1");
        /// The port of the database server.
        DB_PORT: Setting<u16> = Setting::new("DB_PORT", kind::PORT, "5432").unset(Unset::Derived("5432"));
        /// The role to log in as.
        DB_USERNAME: Setting<String> = Setting::new("DB_USERNAME", kind::TEXT, "posthaste");
        /// The role's password.
        DB_PASSWORD: Setting<SecretString> = Setting::new("DB_PASSWORD", kind::SECRET, "change-me").secrecy(Secrecy::Hidden);
        /// The database's name.
        DB_DATABASE: Setting<String> = Setting::new("DB_DATABASE", kind::TEXT, "posthaste");
        /// The maximum number of database connections of one process.
        DATABASE_POOL_SIZE: Setting<usize> = Setting::new("DATABASE_POOL_SIZE", kind::POOL, "16").default("16");
        /// The RabbitMQ broker; the path is the virtual host.
        AMQP_URL: Setting<Url> = Setting::new("AMQP_URL", kind::AMQP_URL, "amqp://posthaste:change-me@127.0.0.1:5672/%2f")
            .unset(Unset::Required).secrecy(Secrecy::Password);
        /// The heartbeat of connections to the broker, if AMQP_URL names none. After three heartbeats without traffic
        /// the broker redelivers the messages of a lost process.
        AMQP_HEARTBEAT_SECONDS: Setting<u16> =
            Setting::new("AMQP_HEARTBEAT_SECONDS", kind::HEARTBEAT, "5").default("5");
        /// Whether a broker user must be mapped to a tenant (`posthaste tenant map-amqp-user`) to publish at all.
        /// `auto`: as soon as one user is mapped. `false`: only tenants that have mapped users are closed to others.
        AMQP_REQUIRE_MAPPING: Setting<RequireMapping> =
            Setting::new("AMQP_REQUIRE_MAPPING", kind::REQUIRE_MAPPING, "true").default("auto");
    }
    "Encryption" {
        /// Encrypts contents, recipients and secrets in the database. Unset: they are stored in the clear. Make it once
        /// and keep it: another key cannot read stored values.
        ENCRYPTION_KEY: Setting<SecretString> =
            Setting::new("POSTHASTE_ENCRYPTION_KEY", kind::ENCRYPTION_KEY, PLACEHOLDER).secrecy(Secrecy::Hidden);
        /// Former keys, which still decrypt until `posthaste rotate-keys` has encrypted every value again.
        ENCRYPTION_KEY_PREVIOUS: Setting<Vec<SecretString>> =
            Setting::new("POSTHASTE_ENCRYPTION_KEY_PREVIOUS", kind::ENCRYPTION_KEYS, PLACEHOLDER).secrecy(Secrecy::Hidden);
        /// Refuses stored values that are not encrypted. Set it once `posthaste rotate-keys` has reported that none is
        /// left. `bound` also refuses values in the format of former versions; docs/privacy.md says when to use it.
        ENCRYPTION_REQUIRED: Setting<Required> =
            Setting::new("POSTHASTE_ENCRYPTION_REQUIRED", kind::ENCRYPTION_REQUIRED, "true").default("false");
    }
    "Retention" {
        /// Days after which messages and their history are removed, for tenants without a value of their own.
        RETENTION_DAYS: Setting<i32> = Setting::new("RETENTION_DAYS", kind::DAYS, "90").unset(Unset::Derived("for ever"));
    }
    "HTTP" {
        /// The address ingest listens on.
        HOST: Setting<String> = Setting::new("HOST", kind::HOST, "127.0.0.1").default("127.0.0.1");
        /// The port ingest listens on.
        PORT: Setting<u16> = Setting::new("PORT", kind::PORT, "8080").default("8080");
        /// The public URL of ingest. Links in mails and the callbacks of providers start with it.
        PUBLIC_URL: Setting<Url> = Setting::new("PUBLIC_URL", kind::PUBLIC_URL, "https://notify.example.com")
            .unset(Unset::Derived("http://HOST:PORT"));
        /// Threads that serve HTTP.
        HTTP_WORKERS: Setting<usize> =
            Setting::new("HTTP_WORKERS", kind::THREADS, "2").unset(Unset::Derived("2, or 1 on a machine with one core"));
        /// The window of RATE_LIMIT_MAX_REQUESTS.
        RATE_LIMIT_WINDOW_MS: Setting<Duration> =
            Setting::new("RATE_LIMIT_WINDOW_MS", kind::WINDOW, "60000").default("60000");
        /// Requests that each credential may make in that window, at each ingest process. All credentials of a tenant
        /// together may make ten times as many. An address without a valid credential may make a hundredth of them, at
        /// least 100 (but not more than a credential). It may have a tenth of them, at least 100, of unknown API keys
        /// looked up. Webhooks of providers may make ten times as many. A tenant can have a limit of its own.
        RATE_LIMIT_MAX_REQUESTS: Setting<u32> =
            Setting::new("RATE_LIMIT_MAX_REQUESTS", kind::REQUESTS, "10000").default("10000");
        /// Networks of the proxies in front of ingest. With them a caller's address is the last one in
        /// `X-Forwarded-For` (else in `Forwarded`) that is outside these networks. Each proxy must append to the header
        /// that it sets and remove the other one: if a request has both, both are ignored.
        TRUSTED_PROXIES: Setting<Vec<IpNet>> =
            Setting::new("TRUSTED_PROXIES", kind::NETS, "10.0.0.0/8").unset(Unset::Derived("none"));
        /// Bytes of request bodies that all requests of an ingest process may hold at once. Beyond it a large body is
        /// answered with 503. A tenant may hold a quarter of it, at least 30 MiB; an address without a credential a
        /// sixteenth, at least 1 MiB.
        BODY_BYTES_IN_FLIGHT: Setting<usize> =
            Setting::new("BODY_BYTES_IN_FLIGHT", kind::BODY_BYTES, "268435456").default("268435456");
    }
    "Tokens" {
        /// Signs and checks access tokens. Ingest does not start without it.
        JWT_SECRET: Setting<SecretString> = Setting::new("JWT_SECRET", kind::JWT_SECRET, PLACEHOLDER)
            .secrecy(Secrecy::Hidden);
        /// How long an access token is valid.
        JWT_EXPIRES_IN: Setting<Duration> = Setting::new("JWT_EXPIRES_IN", kind::LIFETIME, "1h").default("1h");
        /// How long a refresh token is valid.
        JWT_REFRESH_EXPIRES_IN: Setting<Duration> =
            Setting::new("JWT_REFRESH_EXPIRES_IN", kind::LIFETIME, "7d").default("7d");
    }
    "E-mail" {
        /// The backends for e-mail, in order: if one fails, the next is tried. `sandbox` only simulates.
        EMAIL_BACKEND: Setting<Vec<ProviderName>> = Setting::new("EMAIL_BACKEND", kind::EMAIL_BACKENDS, "smtp")
            .aliases(&["EMAIL_SERVICE"]).unset(Unset::Derived("smtp where SMTP_HOST is set, else none"));
        /// The sender of every mail.
        EMAIL_FROM: Setting<String> =
            Setting::new("EMAIL_FROM", kind::MAIL_FROM, "noreply@example.com").aliases(&["FROM_EMAIL"]);
        /// The mail server.
        SMTP_HOST: Setting<String> = Setting::new("SMTP_HOST", kind::HOST, "smtp.example.com").aliases(&["EMAIL_HOST"]);
        /// The mail server's port.
        SMTP_PORT: Setting<u16> = Setting::new("SMTP_PORT", kind::PORT, "587").aliases(&["EMAIL_PORT"])
            .unset(Unset::Derived("465 with implicit TLS, else 587"));
        /// The user to log in as. Unset: there is no login.
        SMTP_USER: Setting<String> = Setting::new("SMTP_USER", kind::TEXT, "mailer@example.com").aliases(&["EMAIL_USER"]);
        /// That user's password.
        SMTP_PASSWORD: Setting<SecretString> = Setting::new("SMTP_PASSWORD", kind::SECRET, "change-me")
            .aliases(&["EMAIL_PASSWORD", "SMTP_PASS"]).secrecy(Secrecy::Hidden);
        /// Encryption: `true` is STARTTLS, or implicit TLS on port 465; `false` is none. Also `starttls`, `tls`,
        /// `none`.
        SMTP_USE_TLS: Setting<TlsWord> = Setting::new("SMTP_USE_TLS", kind::TLS_WORD, "true").unset(Unset::Derived(
            "tls on port 465; starttls on 587, and where a password would leave this machine; else none",
        ));
        /// The same in the words of nodemailer: `true` is implicit TLS; `false` is STARTTLS on port 587, else none.
        EMAIL_SECURE: Setting<bool> = Setting::new("EMAIL_SECURE", kind::SWITCH, "false");
        /// Mails over SMTP are signed (DKIM) for this domain. It needs the two settings below.
        DKIM_DOMAIN: Setting<String> = Setting::new("DKIM_DOMAIN", kind::DOMAIN, "example.com");
        /// The selector of the public key in DNS: a TXT record at SELECTOR._domainkey.DOMAIN.
        DKIM_SELECTOR: Setting<String> = Setting::new("DKIM_SELECTOR", kind::DOMAIN, "posthaste");
        /// The file of the private key: PEM, RSA of at least 2048 bits or Ed25519.
        DKIM_PRIVATE_KEY_PATH: Setting<String> =
            Setting::new("DKIM_PRIVATE_KEY_PATH", kind::TEXT, "/etc/posthaste/dkim.pem");
        /// The API key of SendGrid, allowed to send mail.
        SENDGRID_API_KEY: Setting<SecretString> =
            Setting::new("SENDGRID_API_KEY", kind::SECRET, "SG.change-me").secrecy(Secrecy::Hidden);
        /// The address of SendGrid's API: for its region in the EU, proxies and tests.
        SENDGRID_BASE_URL: Setting<Url> = Setting::new("SENDGRID_BASE_URL", kind::PUBLIC_URL, "https://api.eu.sendgrid.com")
            .default("https://api.sendgrid.com");
        /// The configuration set named in mails through Amazon SES, so that SES reports their events.
        SES_CONFIGURATION_SET: Setting<String> = Setting::new("SES_CONFIGURATION_SET", kind::DOMAIN, "posthaste");
    }
    "Text messages" {
        /// The backends for text messages, in order: if one fails, the next is tried. `sandbox` only simulates.
        SMS_BACKEND: Setting<Vec<ProviderName>> = Setting::new("SMS_BACKEND", kind::SMS_BACKENDS, "twilio")
            .aliases(&["SMS_PROVIDER"]).unset(Unset::Derived("twilio where TWILIO_ACCOUNT_SID is set, else none"));
        /// The account at Twilio.
        TWILIO_ACCOUNT_SID: Setting<String> = Setting::new("TWILIO_ACCOUNT_SID", kind::TEXT, "AC0123456789abcdef0123456789abcdef")
            .aliases(&["SMS_ACCOUNT_SID"]);
        /// The account's token, which also signs Twilio's callbacks.
        TWILIO_AUTH_TOKEN: Setting<SecretString> = Setting::new("TWILIO_AUTH_TOKEN", kind::SECRET, "change-me")
            .aliases(&["SMS_AUTH_TOKEN"]).secrecy(Secrecy::Hidden);
        /// The sender of every text message through Twilio.
        TWILIO_FROM_NUMBER: Setting<String> = Setting::new("TWILIO_FROM_NUMBER", kind::TWILIO_FROM, "+15005550006")
            .aliases(&["TWILIO_PHONE_NUMBER", "SMS_FROM_NUMBER"]);
        /// The address of Twilio's API: for its other regions, proxies and tests.
        TWILIO_BASE_URL: Setting<Url> = Setting::new("TWILIO_BASE_URL", kind::PUBLIC_URL, "https://api.dublin.ie1.twilio.com")
            .default("https://api.twilio.com");
        /// The sender of text messages through Amazon SNS, in countries that allow a name.
        SNS_SENDER_ID: Setting<String> = Setting::new("SNS_SENDER_ID", kind::SNS_SENDER, "NEXUS");
    }
    "Amazon Web Services" {
        /// The region of Amazon SES and SNS.
        AWS_REGION: Setting<String> = Setting::new("AWS_REGION", kind::AWS_REGION, "eu-central-1");
        /// The id of the access key for both.
        AWS_ACCESS_KEY_ID: Setting<String> = Setting::new("AWS_ACCESS_KEY_ID", kind::TEXT, "AKIDEXAMPLE");
        /// The secret of that key.
        AWS_SECRET_ACCESS_KEY: Setting<SecretString> =
            Setting::new("AWS_SECRET_ACCESS_KEY", kind::SECRET, "change-me").secrecy(Secrecy::Hidden);
        /// The session token of a temporary key.
        AWS_SESSION_TOKEN: Setting<SecretString> =
            Setting::new("AWS_SESSION_TOKEN", kind::SECRET, "change-me").secrecy(Secrecy::Hidden);
        /// The address of both, instead of Amazon's own: for proxies and tests.
        AWS_ENDPOINT_URL: Setting<Url> = Setting::new("AWS_ENDPOINT_URL", kind::PUBLIC_URL, "http://127.0.0.1:5000");
    }
    "What providers report" {
        /// The public key of SendGrid's event webhook, which signs its events. Unset: its events are refused.
        SENDGRID_WEBHOOK_PUBLIC_KEY: Setting<PublicKey> = Setting::new("SENDGRID_WEBHOOK_PUBLIC_KEY", kind::SENDGRID_KEY,
            "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE83T4O/n84iotIvIW4mdBgQ/7dAfSmpqIM8kF9mN1flpVKS3GRqe62gw+2fNNRaINXvVpiglSI8eNEc6wEA3F+g==");
        /// The topics of Amazon SNS through which SES reports. Unset: all messages of SNS are refused, since any AWS
        /// account can get messages signed by SNS.
        SNS_TOPIC_ARNS: Setting<Vec<String>> =
            Setting::new("SNS_TOPIC_ARNS", kind::TOPICS, "arn:aws:sns:eu-central-1:123456789012:ses-events");
        /// The file of a certificate (PEM) that is trusted instead of those named in messages of SNS; then none is
        /// fetched.
        SNS_SIGNING_CERT_PATH: Setting<String> =
            Setting::new("SNS_SIGNING_CERT_PATH", kind::TEXT, "/etc/posthaste/sns.pem");
        /// Whether SNS must sign with SHA-256: a topic with `SignatureVersion` 2. Otherwise the older SHA-1 is also
        /// accepted.
        SNS_REQUIRE_SHA256: Setting<bool> = Setting::new("SNS_REQUIRE_SHA256", kind::SWITCH, "true").default("false");
        /// The mails whose opens are recorded, by a pixel in their HTML.
        TRACK_OPENS: Setting<Categories> =
            Setting::new("TRACK_OPENS", kind::CATEGORIES, "marketing").unset(Unset::Derived("none"));
        /// The mails whose links lead through PUBLIC_URL, so that clicks are recorded.
        TRACK_CLICKS: Setting<Categories> =
            Setting::new("TRACK_CLICKS", kind::CATEGORIES, "marketing").unset(Unset::Derived("none"));
    }
    "Other channels" {
        /// The backend for WhatsApp messages: `waha` sends through the sessions of each tenant. `sandbox` only
        /// simulates.
        WHATSAPP_BACKEND: Setting<Vec<ProviderName>> =
            Setting::new("WHATSAPP_BACKEND", kind::WHATSAPP_BACKENDS, "waha").default("waha");
        /// The backend of the in-app inbox. `sandbox` only simulates.
        IN_APP_BACKEND: Setting<Vec<ProviderName>> =
            Setting::new("IN_APP_BACKEND", kind::IN_APP_BACKENDS, "inbox").default("inbox");
        /// The backend for webhooks. `sandbox` only simulates.
        WEBHOOK_BACKEND: Setting<Vec<ProviderName>> =
            Setting::new("WEBHOOK_BACKEND", kind::WEBHOOK_BACKENDS, "http").default("http");
        /// The time that a webhook's receiver has to answer.
        WEBHOOK_TIMEOUT: Setting<Duration> = Setting::new("WEBHOOK_TIMEOUT", kind::TIMEOUT, "15000").default("15000");
        /// Private networks that webhooks may reach.
        WEBHOOK_ALLOW_NETS: Setting<Vec<IpNet>> =
            Setting::new("WEBHOOK_ALLOW_NETS", kind::NETS, "10.20.0.0/16,fd00::/8").unset(Unset::Derived("none"));
        /// A webhook configuration is switched off after every call to it has failed for this long.
        WEBHOOK_DISABLE_AFTER_MS: Setting<Duration> =
            Setting::new("WEBHOOK_DISABLE_AFTER_MS", kind::DELAY, "432000000").default("432000000");
        /// Days that logs of webhook configurations, and events held for them, are kept.
        WEBHOOK_KEEP_DAYS: Setting<i32> = Setting::new("WEBHOOK_KEEP_DAYS", kind::DAYS, "30").default("30");
        /// The longest call to any other provider.
        PROVIDER_TIMEOUT_MS: Setting<Duration> =
            Setting::new("PROVIDER_TIMEOUT_MS", kind::TIMEOUT, "15000").default("15000");
    }
    "Push" {
        /// The backends for push notifications. If there are several, each serves its own kind of device. `sandbox`
        /// only simulates.
        PUSH_BACKEND: Setting<Vec<ProviderName>> =
            Setting::new("PUSH_BACKEND", kind::PUSH_BACKENDS, "fcm,apns,webpush").unset(Unset::Derived("none"));
        /// Firebase Cloud Messaging: the JSON file of a service account.
        FCM_CREDENTIALS_PATH: Setting<String> =
            Setting::new("FCM_CREDENTIALS_PATH", kind::PATH, "/run/secrets/fcm.json");
        /// The Firebase project, if it differs from the one in that file.
        FCM_PROJECT_ID: Setting<String> = Setting::new("FCM_PROJECT_ID", kind::WORD, "my-project")
            .unset(Unset::Derived("the project of the file"));
        /// The address of the API of Firebase Cloud Messaging.
        FCM_BASE_URL: Setting<Url> = Setting::new("FCM_BASE_URL", kind::PUBLIC_URL, "https://fcm.googleapis.com/")
            .default("https://fcm.googleapis.com/");
        /// Apple: the token key (.p8) named by APNS_KEY_ID. Without APNS_KEY_ID: a PEM with a push certificate and its
        /// key.
        APNS_CERTIFICATE_PATH: Setting<String> =
            Setting::new("APNS_CERTIFICATE_PATH", kind::PATH, "/run/secrets/AuthKey_ABC123DEFG.p8");
        /// The id of the token key.
        APNS_KEY_ID: Setting<String> = Setting::new("APNS_KEY_ID", kind::WORD, "ABC123DEFG");
        /// The id of the team it belongs to.
        APNS_TEAM_ID: Setting<String> = Setting::new("APNS_TEAM_ID", kind::WORD, "DEF123GHIJ");
        /// The bundle id of the app.
        APNS_TOPIC: Setting<String> = Setting::new("APNS_TOPIC", kind::WORD, "com.example.app");
        /// The address of Apple's push service; for apps in development: https://api.development.push.apple.com/. An
        /// http:// address means HTTP/2 without TLS.
        APNS_BASE_URL: Setting<Url> = Setting::new("APNS_BASE_URL", kind::PUBLIC_URL, "https://api.push.apple.com/")
            .default("https://api.push.apple.com/");
        /// Web Push: the public key that web pages subscribe with. docs/push.md says how to make the pair.
        PUSH_VAPID_PUBLIC_KEY: Setting<String> =
            Setting::new("PUSH_VAPID_PUBLIC_KEY", kind::VAPID_PUBLIC, PLACEHOLDER);
        /// The private key of the pair.
        PUSH_VAPID_PRIVATE_KEY: Setting<SecretString> =
            Setting::new("PUSH_VAPID_PRIVATE_KEY", kind::VAPID_PRIVATE, PLACEHOLDER).secrecy(Secrecy::Hidden);
        /// The contact that a push service may write to about problems.
        PUSH_VAPID_SUBJECT: Setting<String> =
            Setting::new("PUSH_VAPID_SUBJECT", kind::VAPID_SUBJECT, "mailto:ops@example.com");
    }
    "WhatsApp" {
        /// The address of WAHA. If set, the first tenant has a session called `default`, which is started there.
        WAHA_BASE_URL: Setting<Url> = Setting::new("WAHA_BASE_URL", kind::PUBLIC_URL, "http://127.0.0.1:3000");
        /// The API key of that WAHA.
        WAHA_API_KEY: Setting<SecretString> =
            Setting::new("WAHA_API_KEY", kind::SECRET, "change-me").secrecy(Secrecy::Hidden);
        /// Signs WAHA's webhooks about the session `default`. Unset: its webhooks are refused.
        WAHA_WEBHOOK_SECRET: Setting<SecretString> = Setting::new("WAHA_WEBHOOK_SECRET", kind::SECRET, "change-me")
            .aliases(&["WEBHOOK_SECRET"]).secrecy(Secrecy::Hidden);
        /// Private networks that files at a `media.url` may be fetched from. WEBHOOK_ALLOW_NETS does not apply here: a
        /// tenant that may call an address may not always read from it.
        MEDIA_ALLOW_NETS: Setting<Vec<IpNet>> =
            Setting::new("MEDIA_ALLOW_NETS", kind::NETS, "10.30.0.0/16").unset(Unset::Derived("none"));
    }
    "Retries" {
        /// The maximum number of attempts, on every channel except webhook.
        RETRY_MAX_ATTEMPTS: Setting<u16> = Setting::new("RETRY_MAX_ATTEMPTS", kind::ATTEMPTS, "8").default("8");
        /// The pause before the first retry; each later pause is twice as long. Not for webhooks.
        RETRY_BASE_MS: Setting<Duration> = Setting::new("RETRY_BASE_MS", kind::DELAY, "10000").default("10000");
        /// The longest pause between two attempts.
        RETRY_MAX_MS: Setting<Duration> = Setting::new("RETRY_MAX_MS", kind::DELAY, "3600000").default("3600000");
        /// Retries of a webhook after its first attempt.
        WEBHOOK_MAX_RETRIES: Setting<u16> = Setting::new("WEBHOOK_MAX_RETRIES", kind::RETRIES, "3").unset(Unset::Derived("9"));
        /// The pause before a webhook's first retry; each later pause is twice as long.
        WEBHOOK_RETRY_DELAY: Setting<Duration> = Setting::new("WEBHOOK_RETRY_DELAY", kind::DELAY, "1000").unset(Unset::Derived(
            "the Standard Webhooks schedule: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h",
        ));
        /// The maximum number of attempts on one channel; it overrides the settings above.
        RETRY_MAX_ATTEMPTS_ON: ByChannel<Setting<u16>> = per_channel!("RETRY_MAX_ATTEMPTS_", kind::ATTEMPTS, "5");
        /// The first pause on one channel; it overrides the settings above.
        RETRY_BASE_MS_ON: ByChannel<Setting<Duration>> = per_channel!("RETRY_BASE_MS_", kind::DELAY, "2000");
        /// The longest pause on one channel; it overrides the settings above.
        RETRY_MAX_MS_ON: ByChannel<Setting<Duration>> = per_channel!("RETRY_MAX_MS_", kind::DELAY, "600000");
        /// After an attempt that may have been sent: `resend`, or `hold` until the provider reports. Unset: hold for
        /// sms and whatsapp, else resend.
        AMBIGUOUS_POLICY_ON: ByChannel<Setting<InDoubt>> = per_channel!("AMBIGUOUS_POLICY_", kind::IN_DOUBT, "hold");
        /// How long `hold` waits for the provider's report before it sends again.
        AMBIGUOUS_HOLD_MS: Setting<Duration> = Setting::new("AMBIGUOUS_HOLD_MS", kind::DELAY, "600000").default("600000");
    }
    "Circuit breakers" {
        /// Failures in a row after which a provider, a WhatsApp session or the host of its WAHA is not called for a
        /// while.
        BREAKER_FAILURES: Setting<i32> = Setting::new("BREAKER_FAILURES", kind::FAILURES, "5").default("5");
        /// The pause before one message is sent to see whether it works again.
        BREAKER_OPEN_MS: Setting<Duration> = Setting::new("BREAKER_OPEN_MS", kind::TIMEOUT, "30000").default("30000");
        /// How long a delivery waits for a provider that is not called, without any attempt, before it becomes a dead
        /// letter.
        BREAKER_WAIT_MAX_MS: Setting<Duration> =
            Setting::new("BREAKER_WAIT_MAX_MS", kind::DELAY, "86400000").default("86400000");
    }
    "Worker and clockwork" {
        /// The channels this worker serves.
        WORKER_CHANNELS: Setting<Vec<Channel>> =
            Setting::new("WORKER_CHANNELS", kind::CHANNELS, "email,webhook").default("all");
        /// Deliveries that a worker attempts at once, per channel and lane.
        WORKER_CONCURRENCY: Setting<usize> = Setting::new("WORKER_CONCURRENCY", kind::CONCURRENCY, "64").default("64");
        /// The time in which a stopping process finishes its work: at least 3 s more than the longest call. A
        /// supervisor must wait longer than this before it kills the process.
        DRAIN_TIMEOUT_MS: Setting<Duration> = Setting::new("DRAIN_TIMEOUT_MS", kind::TIMEOUT, "20000")
            .unset(Unset::Derived("5 s more than the longer of WEBHOOK_TIMEOUT and PROVIDER_TIMEOUT_MS"));
        /// A dispatch without a result is audited this long after it was published.
        AUDIT_AFTER_MS: Setting<Duration> = Setting::new("AUDIT_AFTER_MS", kind::DELAY, "120000").default("120000");
        /// An unpublished outbox row is relayed after this long. A publish must be confirmed within two thirds of it,
        /// at least 1 and at most 10 s.
        RELAY_AFTER_MS: Setting<Duration> = Setting::new("RELAY_AFTER_MS", kind::DELAY, "15000").default("15000");
        /// A worker's claim on a delivery lasts this much longer than the provider's timeout.
        LEASE_MARGIN_MS: Setting<Duration> = Setting::new("LEASE_MARGIN_MS", kind::DELAY, "10000").default("10000");
        /// How long after the end of a claim its outcome may arrive, while the broker works and the log is not behind.
        /// After that its worker counts as lost and the delivery is sent again. At least three heartbeats and a publish
        /// timeout.
        DOUBT_GRACE_MS: Setting<Duration> = Setting::new("DOUBT_GRACE_MS", kind::DELAY, "30000")
            .unset(Unset::Derived("three heartbeats and, for the log, at least as long again and 15 s: 30000"));
    }
    "Logs" {
        /// The log filter: a level, or a list such as info,lapin=warn. Logs are JSON lines, or readable lines on a
        /// terminal.
        RUST_LOG: Setting<String> = Setting::new("RUST_LOG", kind::LOG_FILTER, "info").default("info");
    }
}

/// Every setting.
pub(super) fn all() -> impl Iterator<Item = &'static dyn Known> {
    sections().into_iter().flat_map(|(_, settings)| settings)
}

/// Names with a prefix of the settings that belong to clients, the development stack or the fault tests; the services
/// skip them.
pub(super) const FOREIGN: &[&str] = &[
    "POSTHASTE_URL",
    "POSTHASTE_ADMIN_KEY",
    "POSTHASTE_PRODUCER_KEY",
    "POSTHASTE_TENANT",
    "POSTHASTE_WEBHOOK_SECRET",
    "POSTHASTE_ABORT_AT",
];
/// The prefix of names that tests choose freely.
pub(super) const FOREIGN_PREFIX: &str = "POSTHASTE_TEST_";
/// Only settings of Posthaste start with these, so an unknown name is a typing error.
pub(super) const OWN_PREFIXES: &[&str] =
    &["POSTHASTE_", "RETRY_MAX_ATTEMPTS_", "RETRY_BASE_MS_", "RETRY_MAX_MS_", "AMBIGUOUS_POLICY_"];
/// Settings that stop the start wherever they are found, and the reason.
pub(super) const REFUSED: &[(&str, &str)] = &[(
    "FCM_SERVER_KEY",
    "is refused: Google shut down the API it belongs to in 2024; use FCM_CREDENTIALS_PATH with a service account's file",
)];

const HEAD: &str = "\
# Settings of Posthaste, read from the environment once, at the start. An empty setting is unset.
# A secret, and a URL with a password in it, may stand in a file instead: NAME_FILE is the path of the file.
# Copy this file to .env, take the # off the lines you need, and load it: set -a; . ./.env; set +a
# It is written from the table in shared/runtime/src/config/table.rs, and a test compares the two: change the table, then run
#   POSTHASTE_TEST_BLESS=1 cargo test --package posthaste-tests --test tidy
";

/// The text of `.env.example`.
pub fn env_example() -> String {
    let mut text = HEAD.to_owned();
    for (title, settings) in sections() {
        text.push_str(&format!("\n# ---- {title} ----\n"));
        let mut said = "";
        for setting in settings {
            if said != setting.spec().doc {
                said = setting.spec().doc;
                text.push_str(&format!("\n{}", comment(setting)));
            }
            text.push_str(&line(setting));
        }
    }
    text
}

/// The sentence, then the values that the setting takes, its default and its other names.
fn comment(setting: &dyn Known) -> String {
    let spec = setting.spec();
    let takes = Some(setting.expects()).filter(|what| *what != kind::ANY_TEXT).map(|what| format!(" Takes {what}."));
    let unset = match spec.unset {
        Unset::Nothing => None,
        Unset::Required => Some(" Required.".to_owned()),
        Unset::Value(text) | Unset::Derived(text) => Some(format!(" Default: {text}.")),
    };
    let aliases = (!spec.aliases.is_empty()).then(|| format!(" Also read as {}.", spec.aliases.join(", ")));
    let facts: String = [takes, unset, aliases].into_iter().flatten().collect();
    let second = if facts.is_empty() { facts } else { format!("#{facts}\n") };
    format!("#{}\n{second}", spec.doc)
}

fn line(setting: &dyn Known) -> String {
    let spec = setting.spec();
    let hash = if matches!(spec.unset, Unset::Required) || spec.name == DATABASE_URL.spec.name { "" } else { "# " };
    format!("{hash}{}={}\n", spec.name, spec.example)
}
