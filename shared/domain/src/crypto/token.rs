//! Credentials: access tokens (JWT), API keys and webhook secrets, made and checked in one place.
//!
//! The database, not this module, knows which tenants exist and which keys are revoked.

use std::{fmt, str::FromStr, time::Duration};

use aws_lc_rs::{
    digest::{SHA256, digest},
    rand,
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::{UnknownWord, clock};

/// Both `iss` and `aud` of every token: we issue and accept our own tokens only.
pub const ISSUER: &str = "posthaste";
/// How far the clocks of two machines may differ before a token is refused.
pub const LEEWAY_SECONDS: u64 = 30;
/// HS256 wants a key as long as its digest (RFC 7518, section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;
/// The prefix of every API key, so that people and secret scanners recognize one.
pub const KEY_PREFIX: &str = "ph_";
/// The prefix of every refresh token.
pub const REFRESH_PREFIX: &str = "phr_";
/// The prefix of every webhook secret (Standard Webhooks).
pub const WEBHOOK_SECRET_PREFIX: &str = "whsec_";
/// Random bytes in a key or secret: as many as SHA-256 has.
const RANDOM_BYTES: usize = 32;
/// Random characters in an API key.
const KEY_RANDOM_CHARS: usize = 43;
/// Characters of its checksum.
const KEY_CHECKSUM_CHARS: usize = 6;

/// The role of a credential, which decides its rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything in its tenant.
    Admin,
    /// Submits and reads.
    Producer,
    /// Works the helpdesk.
    Agent,
    /// Its own inbox, preferences and conversations.
    User,
    /// Across tenants.
    Operator,
}

impl Role {
    /// Every role, in order.
    pub const ALL: &'static [Self] = &[Self::Admin, Self::Producer, Self::Agent, Self::User, Self::Operator];

    /// The text form of this role.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Producer => "producer",
            Self::Agent => "agent",
            Self::User => "user",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownWord;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words = || Self::ALL.iter().map(|role| role.as_str()).collect::<Vec<_>>();
        Self::ALL
            .iter()
            .find(|role| role.as_str() == text)
            .copied()
            .ok_or_else(|| UnknownWord { expected: words().join(", ") })
    }
}

/// Why a token was not made or not accepted. The texts are for the holder of the token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The secret is too short to sign with.
    #[error("the token secret has {0} bytes; it must have at least {SECRET_BYTES_MIN}")]
    WeakSecret(usize),
    /// It has expired.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYet,
    /// Another algorithm, signature, issuer or audience, a claim missing or of the wrong type, or no token at all.
    #[error("the token is not valid")]
    Invalid(#[source] jsonwebtoken::errors::Error),
}

impl From<jsonwebtoken::errors::Error> for TokenError {
    fn from(error: jsonwebtoken::errors::Error) -> Self {
        match error.kind() {
            ErrorKind::ExpiredSignature => Self::Expired,
            ErrorKind::ImmatureSignature => Self::NotYet,
            _ => Self::Invalid(error),
        }
    }
}

/// The API key that made a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Via {
    /// Its id.
    pub key: Uuid,
    /// The key's role, which may allow more than the token's.
    pub role: Role,
}

/// The claims of a token. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The person or program; of a `user`, the user id.
    pub sub: String,
    /// The tenant's slug.
    pub tenant: String,
    /// Its role.
    pub role: Role,
    /// The API key that made it; absent if the owner of the secret made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Via>,
    /// The issuer.
    pub iss: String,
    /// For whom.
    #[serde(deserialize_with = "audience")]
    pub aud: String,
    /// When it ends.
    #[serde(deserialize_with = "seconds")]
    pub exp: i64,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_seconds")]
    pub iat: Option<i64>,
    /// When it begins.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_seconds")]
    pub nbf: Option<i64>,
}

/// Makes a token that is valid for `ttl` from now, in the name of the secret's owner.
pub fn encode(secret: &SecretString, sub: &str, tenant: &str, role: Role, ttl: Duration) -> Result<String, TokenError> {
    encode_via(secret, (sub, tenant), role, ttl, None)
}

/// As [`encode`], for a subject and a tenant, with the API key that requests it.
pub fn encode_via(
    secret: &SecretString,
    (sub, tenant): (&str, &str),
    role: Role,
    ttl: Duration,
    via: Option<Via>,
) -> Result<String, TokenError> {
    let now = clock::now().timestamp();
    let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    let claims = Claims {
        sub: sub.to_owned(),
        tenant: tenant.to_owned(),
        role,
        via,
        iss: ISSUER.to_owned(),
        aud: ISSUER.to_owned(),
        exp: now.saturating_add(ttl),
        iat: Some(now),
        nbf: None,
    };
    let key = EncodingKey::from_secret(strong(secret)?);
    Ok(jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)?)
}

/// Checks a token and returns its claims. Only HS256; `exp`, `iss` and `aud` are required, `nbf` is respected.
pub fn decode(secret: &SecretString, token: &str) -> Result<Claims, TokenError> {
    let key = DecodingKey::from_secret(strong(secret)?);
    Ok(jsonwebtoken::decode::<Claims>(token, &key, &validation())?.claims)
}

fn validation() -> Validation {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.leeway = LEEWAY_SECONDS;
    validation.validate_nbf = true;
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[ISSUER]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation
}

fn strong(secret: &SecretString) -> Result<&[u8], TokenError> {
    let bytes = secret.expose_secret().as_bytes();
    if bytes.len() < SECRET_BYTES_MIN { Err(TokenError::WeakSecret(bytes.len())) } else { Ok(bytes) }
}

/// A NumericDate may have a fraction (RFC 7519, section 2), and some libraries write one.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let whole = || number.as_f64().and_then(|seconds| format!("{:.0}", seconds.trunc()).parse().ok());
    number.as_i64().or_else(whole).ok_or_else(|| serde::de::Error::custom("a time must be seconds since 1970"))
}

fn optional_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    seconds(deserializer).map(Some)
}

/// One audience or a list of them. Ours was already found among them.
fn audience<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(deserializer)? {
        Audience::One(one) => one,
        Audience::Many(many) => many.into_iter().find(|one| one == ISSUER).unwrap_or_default(),
    })
}

/// The system gave no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system has no random numbers to give")]
pub struct NoRandomness;

/// Which form of API key a text has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyForm {
    /// Its checksum holds.
    Checked,
    /// The older form, which has no checksum.
    Unchecked,
}

impl KeyForm {
    /// The form of a text; `None`: it is no API key, and no query of the database is needed.
    pub fn of(text: &str) -> Option<Self> {
        let body = text.strip_prefix(KEY_PREFIX)?;
        if !body.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
            return None;
        }
        match body.len().checked_sub(KEY_RANDOM_CHARS)? {
            0 => Some(Self::Unchecked),
            KEY_CHECKSUM_CHARS => {
                let (random, sum) = body.split_at_checked(KEY_RANDOM_CHARS)?;
                (sum == checksum(random)).then_some(Self::Checked)
            }
            _ => None,
        }
    }
}

/// The checksum of a key: six characters of base64 for the first four bytes of a SHA-256. It is not secret: it shows
/// that a key is mistyped, and shows secret scanners that a key is real.
fn checksum(random: &str) -> String {
    let hash = hash_key(random);
    URL_SAFE_NO_PAD.encode(hash.first_chunk::<4>().copied().unwrap_or_default())
}

/// A new API key: shown to its owner once, and stored as its hash.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// `ph_`, 43 characters of URL-safe base64 and a checksum of six.
    pub text: SecretString,
    /// The hash that is stored.
    pub hash: [u8; 32],
}

impl ApiKey {
    /// Makes one.
    pub fn generate() -> Result<Self, NoRandomness> {
        let random = URL_SAFE_NO_PAD.encode(random::<RANDOM_BYTES>()?);
        let text = format!("{KEY_PREFIX}{random}{}", checksum(&random));
        Ok(Self { hash: hash_key(&text), text: text.into() })
    }
}

/// The hash under which a key is stored: SHA-256. Keys are random, so no slow hash is needed.
pub fn hash_key(text: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.iter_mut().zip(digest(&SHA256, text.as_bytes()).as_ref()).for_each(|(to, from)| *to = *from);
    hash
}

/// A new refresh token: shown to its owner once, and stored as its hash. It names its family, so an old token is
/// recognized although only the hash of the newest is stored.
#[derive(Clone, Debug)]
pub struct RefreshToken {
    /// The family.
    pub family: Uuid,
    /// `phr_` and 64 characters of URL-safe base64.
    pub text: SecretString,
    /// The hash that is stored.
    pub hash: [u8; 32],
}

impl RefreshToken {
    /// The first of a new family.
    pub fn generate() -> Result<Self, NoRandomness> {
        Self::of(uuid::Builder::from_random_bytes(random()?).into_uuid())
    }

    /// Makes another token of this family.
    pub fn of(family: Uuid) -> Result<Self, NoRandomness> {
        let mut bytes = family.into_bytes().to_vec();
        bytes.extend_from_slice(&random::<RANDOM_BYTES>()?);
        let text = format!("{REFRESH_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        Ok(Self { family, hash: hash_key(&text), text: text.into() })
    }

    /// The family that a token names, and the token's hash; `None` if it is no refresh token.
    pub fn read(text: &str) -> Option<(Uuid, [u8; 32])> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(REFRESH_PREFIX)?).ok()?;
        let (family, secret) = bytes.split_first_chunk::<16>()?;
        (secret.len() == RANDOM_BYTES).then(|| (Uuid::from_bytes(*family), hash_key(text)))
    }
}

/// A new webhook signing secret in the form of Standard Webhooks: `whsec_` and 32 bytes in base64.
pub fn webhook_secret() -> Result<SecretString, NoRandomness> {
    Ok(format!("{WEBHOOK_SECRET_PREFIX}{}", STANDARD.encode(random::<RANDOM_BYTES>()?)).into())
}

/// The prefix of every private key for webhooks (Standard Webhooks, Ed25519).
pub const WEBHOOK_KEY_PREFIX: &str = "whsk_";
/// The prefix of every public key for webhooks.
pub const WEBHOOK_PUBLIC_PREFIX: &str = "whpk_";
const ED25519_BYTES: usize = 32;

/// Makes a private key for webhooks: the 32 bytes of the private key and those of the public key, in base64.
pub fn webhook_key() -> Result<SecretString, NoRandomness> {
    let seed = random::<ED25519_BYTES>()?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| NoRandomness)?;
    let both: Vec<u8> = seed.iter().chain(pair.public_key().as_ref()).copied().collect();
    Ok(format!("{WEBHOOK_KEY_PREFIX}{}", STANDARD.encode(both)).into())
}

/// The key pair of a `whsk_…`; `None` if the text is not one.
pub fn webhook_key_pair(key: &str) -> Option<Ed25519KeyPair> {
    let bytes = STANDARD.decode(key.strip_prefix(WEBHOOK_KEY_PREFIX)?).ok()?;
    let (seed, public) = bytes.split_at_checked(ED25519_BYTES)?;
    Ed25519KeyPair::from_seed_and_public_key(seed, public).ok()
}

/// The public key of a `whsk_…`, as `whpk_…`.
pub fn webhook_public_key(key: &str) -> Option<String> {
    let pair = webhook_key_pair(key)?;
    Some(format!("{WEBHOOK_PUBLIC_PREFIX}{}", STANDARD.encode(pair.public_key().as_ref())))
}

fn random<const SIZE: usize>() -> Result<[u8; SIZE], NoRandomness> {
    let mut bytes = [0; SIZE];
    rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn secret() -> SecretString {
        "0123456789abcdef0123456789abcdef".into()
    }

    fn good() -> Value {
        let exp = clock::now().timestamp() + 60;
        json!({ "sub": "ada", "tenant": "demo", "role": "user", "iss": ISSUER, "aud": ISSUER, "exp": exp })
    }

    fn with(name: &str, value: Value) -> Value {
        let mut claims = good();
        claims[name] = value;
        claims
    }

    fn without(name: &str) -> Value {
        let mut claims = good();
        claims.as_object_mut().unwrap().remove(name);
        claims
    }

    fn signed(algorithm: Algorithm, claims: &Value) -> String {
        let key = EncodingKey::from_secret(secret().expose_secret().as_bytes());
        jsonwebtoken::encode(&Header::new(algorithm), claims, &key).unwrap()
    }

    fn decoded(claims: &Value) -> Result<Claims, TokenError> {
        decode(&secret(), &signed(Algorithm::HS256, claims))
    }

    #[test]
    fn a_token_says_what_it_was_made_for() {
        let token = encode(&secret(), "ada", "demo", Role::Producer, Duration::from_secs(60)).unwrap();
        let claims = decode(&secret(), &token).unwrap();
        assert_eq!((claims.sub.as_str(), claims.tenant.as_str(), claims.role), ("ada", "demo", Role::Producer));
        assert_eq!(claims.exp - claims.iat.unwrap(), 60);
    }

    #[test]
    fn a_token_names_the_key_that_made_it_and_others_name_none() {
        let via = Via { key: Uuid::from_u128(7), role: Role::Producer };
        let named = ("ada", "demo");
        let token = encode_via(&secret(), named, Role::User, Duration::from_secs(60), Some(via)).unwrap();
        assert_eq!(decode(&secret(), &token).unwrap().via, Some(via));
        assert_eq!(decoded(&good()).unwrap().via, None);
        for bad in [json!("admin"), json!({"role": "admin"}), json!({"key": Uuid::nil(), "role": "root"})] {
            assert!(decoded(&with("via", bad.clone())).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_that_others_made_with_our_secret_is_taken() {
        let now = clock::now().timestamp();
        for claims in [
            good(),
            with("aud", json!(["other", ISSUER])),
            with("nbf", json!(now)),
            with("iat", json!(f64::from(u32::try_from(now).unwrap()) + 0.5)),
        ] {
            assert!(decoded(&claims).is_ok(), "{claims}");
        }
        assert_eq!(decoded(&with("exp", json!(4_000_000_000.5))).unwrap().exp, 4_000_000_000);
    }

    #[test]
    fn an_unsigned_token_is_refused() {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        for alg in ["none", "None", "NONE"] {
            let token = format!("{}.{}.", part(&json!({ "alg": alg, "typ": "JWT" })), part(&good()));
            assert!(matches!(decode(&secret(), &token), Err(TokenError::Invalid(_))), "{alg}");
        }
        let signature_cut = signed(Algorithm::HS256, &good()).rsplit_once('.').unwrap().0.to_owned() + ".";
        assert!(decode(&secret(), &signature_cut).is_err());
    }

    #[test]
    fn another_algorithm_is_refused_even_under_the_right_secret() {
        for algorithm in [Algorithm::HS384, Algorithm::HS512] {
            assert!(
                matches!(decode(&secret(), &signed(algorithm, &good())), Err(TokenError::Invalid(_))),
                "{algorithm:?}"
            );
        }
    }

    #[test]
    fn another_secret_and_a_changed_payload_are_refused() {
        let token = signed(Algorithm::HS256, &good());
        assert!(decode(&"another secret of at least 32 bytes".into(), &token).is_err());
        let (head, rest) = token.split_once('.').unwrap();
        let (_, signature) = rest.split_once('.').unwrap();
        let forged = URL_SAFE_NO_PAD.encode(with("role", json!("operator")).to_string());
        assert!(decode(&secret(), &format!("{head}.{forged}.{signature}")).is_err());
    }

    #[test]
    fn a_token_ends_and_begins_when_it_says_give_or_take_the_leeway() {
        let now = clock::now().timestamp();
        let leeway = i64::try_from(LEEWAY_SECONDS).unwrap();
        assert!(matches!(decoded(&with("exp", json!(now - leeway - 5))), Err(TokenError::Expired)));
        assert!(decoded(&with("exp", json!(now - leeway / 2))).is_ok());
        assert!(matches!(decoded(&with("nbf", json!(now + leeway + 3600))), Err(TokenError::NotYet)));
        assert!(decoded(&with("nbf", json!(now + leeway - 5))).is_ok());
    }

    #[test]
    fn every_needed_claim_is_required() {
        for name in ["sub", "tenant", "role", "iss", "aud", "exp"] {
            assert!(matches!(decoded(&without(name)), Err(TokenError::Invalid(_))), "{name}");
        }
    }

    #[test]
    fn a_claim_of_another_value_or_type_is_refused() {
        let later = clock::now().timestamp() + 60;
        for (name, value) in [
            ("iss", json!("somebody")),
            ("aud", json!("somebody")),
            ("aud", json!(["somebody"])),
            ("aud", json!([])),
            ("role", json!("root")),
            ("role", json!(["admin"])),
            // A time of the wrong type once passed as "no time given" (CVE-2026-25537).
            ("exp", json!(later.to_string())),
            ("exp", json!([later])),
            ("exp", json!(null)),
            ("exp", json!(-1)),
            ("nbf", json!((later - 120).to_string())),
            ("sub", json!(7)),
            ("tenant", json!(null)),
        ] {
            let claims = with(name, value);
            assert!(decoded(&claims).is_err(), "{claims}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", "x", "a.b", "a.b.c", "..", "a.b.c.d"] {
            assert!(matches!(decode(&secret(), text), Err(TokenError::Invalid(_))), "{text}");
        }
    }

    #[test]
    fn a_short_secret_neither_signs_nor_checks() {
        let short: SecretString = "x".repeat(SECRET_BYTES_MIN - 1).into();
        assert!(matches!(
            encode(&short, "a", "b", Role::User, Duration::from_secs(1)),
            Err(TokenError::WeakSecret(31))
        ));
        assert!(matches!(decode(&short, "a.b.c"), Err(TokenError::WeakSecret(31))));
    }

    #[test]
    fn a_key_is_random_and_found_by_its_hash() {
        let (one, other) = (ApiKey::generate().unwrap(), ApiKey::generate().unwrap());
        let text = one.text.expose_secret();
        assert!(text.starts_with(KEY_PREFIX) && text.len() == 52, "{text}");
        assert!(text[3..].bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
        assert_eq!(hash_key(text), one.hash);
        assert_ne!(one.hash, other.hash);
        assert!(!format!("{one:?}").contains(text));
    }

    #[test]
    fn a_made_up_key_is_known_by_its_checksum() {
        let key = ApiKey::generate().unwrap();
        let text = key.text.expose_secret();
        assert_eq!(KeyForm::of(text), Some(KeyForm::Checked));
        assert_eq!(KeyForm::of(&text[..46]), Some(KeyForm::Unchecked), "as they were made before");
        let other = if text.ends_with('A') { "B" } else { "A" };
        let swapped = format!("{KEY_PREFIX}{}{}", "x".repeat(43), &text[46..]);
        for bad in
            [&format!("{}{other}", &text[..46]), &text[..51], &format!("{text}A"), &swapped, "ph_", "ph_abc", "x"]
        {
            assert_eq!(KeyForm::of(bad), None, "{bad}");
        }
        assert_eq!(KeyForm::of(&format!("ph_{}", "ü".repeat(21) + "x")), None);
    }

    #[test]
    fn a_refresh_token_names_its_family_and_nothing_else_is_one() {
        let first = RefreshToken::generate().unwrap();
        let second = RefreshToken::of(first.family).unwrap();
        let text = second.text.expose_secret();
        assert_eq!(RefreshToken::read(text), Some((first.family, second.hash)));
        assert_ne!(first.hash, second.hash);
        assert_ne!(first.family, RefreshToken::generate().unwrap().family);
        assert!(!format!("{second:?}").contains(text));
        for bad in ["", "phr_", "phr_AAAA", &text[1..], &text[..text.len() - 2], &format!("{text}AAAA")] {
            assert_eq!(RefreshToken::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_hash_is_sha_256() {
        let hex: String = hash_key("abc").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_webhook_secret_is_32_bytes_in_base64() {
        let secret = webhook_secret().unwrap();
        let encoded = secret.expose_secret().strip_prefix(WEBHOOK_SECRET_PREFIX).unwrap();
        assert_eq!(STANDARD.decode(encoded).unwrap().len(), 32);
        assert_ne!(secret.expose_secret(), webhook_secret().unwrap().expose_secret());
    }

    #[test]
    fn a_role_has_one_spelling_everywhere() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(*role));
            assert_eq!(json!(role), json!(role.as_str()));
        }
        assert!("Admin".parse::<Role>().unwrap_err().to_string().contains("admin, producer"));
    }
}
