//! Verifies webhooks of WAHA.
//!
//! WAHA signs the raw body with HMAC-SHA512 in two headers. The form of the seed documents is HMAC-SHA256 in one
//! header. If both are sent, both must verify. A value in any other form is no signature.

use aws_lc_rs::hmac::{HMAC_SHA256, HMAC_SHA512, Key, verify};
use chrono::{DateTime, Utc};
use domain::SignatureRule;
use secrecy::{ExposeSecret, SecretString};

/// WAHA's own signature.
pub const HMAC: &str = "x-webhook-hmac";
/// The header that names the algorithm of that signature.
pub const HMAC_ALGORITHM: &str = "x-webhook-hmac-algorithm";
/// The header of the seed documents: `sha256=<hex>`.
pub const SIGNATURE: &str = "x-waha-signature";

const SHA512_BYTES: usize = 64;
const SHA256_BYTES: usize = 32;

/// The signatures in the headers of a webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    sha512: Option<Vec<u8>>,
    sha256: Option<Vec<u8>>,
}

impl Claims {
    /// Reads the values of the three headers. `None`: there is no signature, or a header is invalid: given twice, cut
    /// off, or of an unknown algorithm.
    pub fn read(hmac: &[&[u8]], algorithm: &[&[u8]], signature: &[&[u8]]) -> Option<Self> {
        let sha512 = match (hmac, algorithm) {
            ([], []) => None,
            ([hex], [name]) if name.eq_ignore_ascii_case(b"sha512") => Some(unhex(hex, SHA512_BYTES)?),
            _ => return None,
        };
        let sha256 = match signature {
            [] => None,
            [value] => Some(unhex(value.strip_prefix(b"sha256=")?, SHA256_BYTES)?),
            _ => return None,
        };
        (sha512.is_some() || sha256.is_some()).then_some(Self { sha512, sha256 })
    }

    /// Whether every signature is valid for `body` under one of `keys`, and one has a kind that `rule` accepts.
    pub fn hold<'a>(
        &self,
        mut keys: impl Iterator<Item = &'a Keys>,
        rule: SignatureRule,
        body: &[u8],
        now: DateTime<Utc>,
    ) -> bool {
        let is_asked_for = match rule {
            SignatureRule::Waha => self.sha512.is_some(),
            SignatureRule::Seed => self.sha256.is_some(),
            SignatureRule::Both => true,
        };
        let holds = |key: &Key, tag: &Option<Vec<u8>>| tag.as_ref().is_none_or(|tag| verify(key, body, tag).is_ok());
        is_asked_for
            && keys
                .any(|keys| keys.hold_at(now) && holds(&keys.sha512, &self.sha512) && holds(&keys.sha256, &self.sha256))
    }
}

/// A webhook secret, ready to verify.
#[derive(Clone)]
pub struct Keys {
    sha512: Key,
    sha256: Key,
    until: Option<DateTime<Utc>>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(…)")
    }
}

impl Keys {
    /// The keys of a secret, valid until this time, or without an end.
    pub fn new(secret: &SecretString, until: Option<DateTime<Utc>>) -> Self {
        let secret = secret.expose_secret().as_bytes();
        Self { sha512: Key::new(HMAC_SHA512, secret), sha256: Key::new(HMAC_SHA256, secret), until }
    }

    fn hold_at(&self, now: DateTime<Utc>) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// The bytes of exactly this many pairs of hexadecimal digits.
fn unhex(text: &[u8], bytes: usize) -> Option<Vec<u8>> {
    if text.len() != bytes * 2 {
        return None;
    }
    let text = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    (0..bytes).map(|at| u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    // The example of WAHA's own documentation, recomputed with openssl.
    const KEY: &str = "my-secret-key";
    const BODY: &[u8] = br#"{"event":"message","session":"default","engine":"WEBJS"}"#;
    const SHA512: &str = "208f8a55dde9e05519e898b10b89bf0d0b3b0fdf11fdbf09b6b90476301b98d8097c462b2b17a6ce93b6b47a136cf2e78a33a63f6752c2c1631777076153fa89";

    fn sha256(key: &str, body: &[u8]) -> String {
        let tag = aws_lc_rs::hmac::sign(&Key::new(HMAC_SHA256, key.as_bytes()), body);
        let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256={hex}")
    }

    fn keys(secret: &str) -> Keys {
        Keys::new(&secret.into(), None)
    }

    fn claims(hmac: &[&str], algorithm: &[&str], signature: &[&str]) -> Option<Claims> {
        fn bytes<'a>(list: &[&'a str]) -> Vec<&'a [u8]> {
            list.iter().map(|text| text.as_bytes()).collect()
        }
        Claims::read(&bytes(hmac), &bytes(algorithm), &bytes(signature))
    }

    fn holds(claims: Option<Claims>, keys: &[Keys], rule: SignatureRule, body: &[u8]) -> bool {
        claims.is_some_and(|claims| claims.hold(keys.iter(), rule, body, domain::clock::now()))
    }

    #[test]
    fn the_documented_vector_holds_and_its_twins_do_not() {
        let vector = || claims(&[SHA512], &["sha512"], &[]);
        assert!(holds(vector(), &[keys(KEY)], SignatureRule::Both, BODY));
        assert!(holds(vector(), &[keys(KEY)], SignatureRule::Waha, BODY));
        assert!(!holds(vector(), &[keys(KEY)], SignatureRule::Seed, BODY), "the session takes the other form only");
        let mut changed = BODY.to_vec();
        changed[30] ^= 1;
        assert!(!holds(vector(), &[keys(KEY)], SignatureRule::Both, &changed), "a changed body");
        assert!(!holds(vector(), &[keys("my-secret-kez")], SignatureRule::Both, BODY), "another key");
        assert!(
            !holds(claims(&[SHA512], &["sha256"], &[]), &[keys(KEY)], SignatureRule::Both, BODY),
            "a changed algorithm"
        );
    }

    #[test]
    fn the_printed_form_holds_and_its_twins_do_not() {
        let signature = sha256(KEY, BODY);
        let printed = || claims(&[], &[], &[&signature]);
        assert!(holds(printed(), &[keys(KEY)], SignatureRule::Both, BODY));
        assert!(holds(printed(), &[keys(KEY)], SignatureRule::Seed, BODY));
        assert!(!holds(printed(), &[keys(KEY)], SignatureRule::Waha, BODY), "the session takes WAHA's own only");
        assert!(!holds(printed(), &[keys(KEY)], SignatureRule::Both, b"{}"), "another body");
        assert!(claims(&[], &[], &[&signature.replace("sha256=", "sha1=")]).is_none(), "a changed algorithm");
        assert!(claims(&[], &[], &[signature.trim_start_matches("sha256=")]).is_none(), "no algorithm");
    }

    #[test]
    fn where_both_are_sent_both_must_hold() {
        let (good, bad) = (sha256(KEY, BODY), sha256("other", BODY));
        for rule in [SignatureRule::Both, SignatureRule::Waha, SignatureRule::Seed] {
            assert!(holds(claims(&[SHA512], &["sha512"], &[&good]), &[keys(KEY)], rule, BODY));
            assert!(!holds(claims(&[SHA512], &["sha512"], &[&bad]), &[keys(KEY)], rule, BODY));
        }
    }

    #[test]
    fn two_secrets_hold_while_one_replaces_the_other() {
        let vector = || claims(&[SHA512], &["sha512"], &[]);
        let now = domain::clock::now();
        let former = |until| Keys::new(&KEY.into(), Some(until));
        assert!(holds(vector(), &[keys("new"), former(now + TimeDelta::hours(1))], SignatureRule::Both, BODY));
        assert!(!holds(vector(), &[keys("new"), former(now - TimeDelta::seconds(1))], SignatureRule::Both, BODY));
    }

    #[test]
    fn what_is_not_exactly_a_signature_is_none() {
        let (cut, long) = (&SHA512[..126], format!("{SHA512}{SHA512}"));
        let odd = SHA512.replace('a', "g");
        for (hmac, algorithm) in [
            (&[][..], &[][..]),
            (&[SHA512], &[]),
            (&[], &["sha512"]),
            (&[SHA512, SHA512], &["sha512"]),
            (&[SHA512], &["sha512", "sha512"]),
            (&[cut], &["sha512"]),
            (&[&long], &["sha512"]),
            (&[&odd], &["sha512"]),
            (&[""], &["sha512"]),
            (&[SHA512], &["SHA-512"]),
        ] {
            assert_eq!(claims(hmac, algorithm, &[]), None, "{hmac:?} {algorithm:?}");
        }
        let signature = sha256(KEY, BODY);
        assert_eq!(claims(&[], &[], &[&signature, &signature]), None);
        assert_eq!(claims(&[SHA512], &["sha512"], &["sha256="]), None, "one good one does not make up for a bad one");
    }
}
