//! Encryption at rest: what people wrote and where they can be reached is unreadable in the database and its dumps.
//!
//! AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce per value. A sealed value is
//! `MAGIC ‖ key id (4 bytes) ‖ nonce (12) ‖ ciphertext ‖ tag (16)`; in a text column it is the same in base64 behind `phs1:`.
//! The key id is the beginning of the key's SHA-256, so that values of an old key are still read while
//! `posthaste rotate-keys` writes them anew. Without a key everything is stored as it is, and read as it is.
//!
//! The [`crate::db`] layer alone seals and opens; everybody above it sees plain values.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
    hmac, rand,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use secrecy::{ExposeSecret, SecretString};

/// What a sealed value begins with. No JSON text does, since it cannot begin with a NUL.
const MAGIC: [u8; 4] = [0, b'p', b'h', 1];
/// What a sealed text begins with.
const TEXT_PREFIX: &str = "phs1:";
const KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 4;
const HEAD_BYTES: usize = MAGIC.len() + KEY_ID_BYTES + NONCE_LEN;

/// A fingerprint: equal for equal values under one key, and it tells nothing else without the key.
pub type Fingerprint = [u8; 32];

/// Why a value could not be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// A key is not 32 bytes in base64.
    #[error("an encryption key must be 32 bytes in base64: make one with `openssl rand -base64 32`")]
    BadKey,
    /// The value is of a key that is not configured.
    #[error("a stored value was encrypted with another key: add that key to POSTHASTE_ENCRYPTION_KEY_PREVIOUS")]
    UnknownKey,
    /// The value was changed or cut off.
    #[error("a stored value cannot be decrypted: it is damaged")]
    Damaged,
    /// The system gave no random numbers.
    #[error("the system has no random numbers to give")]
    NoRandom,
}

struct Key {
    id: [u8; KEY_ID_BYTES],
    aead: LessSafeKey,
    fingerprints: hmac::Key,
}

/// Seals with the newest key and opens with any of them. Cheap to clone; without keys it passes everything through.
#[derive(Clone, Default)]
pub struct Sealer {
    keys: Arc<[Key]>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({} keys)", self.keys.len())
    }
}

impl Sealer {
    /// Seals with the first of `keys`, each 32 bytes in base64, and opens with all of them. No keys: nothing is sealed.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a SecretString>) -> Result<Self, SealError> {
        let keys: Result<Vec<Key>, SealError> = keys.into_iter().map(Key::parse).collect();
        Ok(Self { keys: keys?.into() })
    }

    /// Whether values are sealed at all.
    pub fn is_on(&self) -> bool {
        !self.keys.is_empty()
    }

    /// `plain` as it is to be stored.
    pub fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let Some(key) = self.keys.first() else { return Ok(plain.to_vec()) };
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| SealError::NoRandom)?;
        let mut stored = Vec::with_capacity(HEAD_BYTES + plain.len() + AES_256_GCM.tag_len());
        stored.extend_from_slice(&MAGIC);
        stored.extend_from_slice(&key.id);
        stored.extend_from_slice(&nonce);
        let mut body = plain.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.aead.seal_in_place_append_tag(nonce, Aad::empty(), &mut body).map_err(|_| SealError::Damaged)?;
        stored.append(&mut body);
        Ok(stored)
    }

    /// What `stored` says. What was stored without a key comes back as it is.
    pub fn open(&self, stored: Vec<u8>) -> Result<Vec<u8>, SealError> {
        let Some((id, rest)) = stored.strip_prefix(&MAGIC).and_then(|rest| rest.split_first_chunk::<KEY_ID_BYTES>())
        else {
            return Ok(stored);
        };
        let key = self.keys.iter().find(|key| key.id == *id).ok_or(SealError::UnknownKey)?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Damaged)?;
        let mut body = body.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = key.aead.open_in_place(nonce, Aad::empty(), &mut body).map_err(|_| SealError::Damaged)?;
        let length = plain.len();
        body.truncate(length);
        Ok(body)
    }

    /// As [`Sealer::seal`], for a text column.
    pub fn seal_text(&self, plain: &str) -> Result<String, SealError> {
        if !self.is_on() {
            return Ok(plain.to_owned());
        }
        Ok(format!("{TEXT_PREFIX}{}", STANDARD_NO_PAD.encode(self.seal(plain.as_bytes())?)))
    }

    /// As [`Sealer::open`], for a text column.
    pub fn open_text(&self, stored: String) -> Result<String, SealError> {
        let Some(sealed) = stored.strip_prefix(TEXT_PREFIX).and_then(|text| STANDARD_NO_PAD.decode(text).ok()) else {
            return Ok(stored);
        };
        if !sealed.starts_with(&MAGIC) {
            return Ok(stored);
        }
        String::from_utf8(self.open(sealed)?).map_err(|_| SealError::Damaged)
    }

    /// Whether a stored value would be written otherwise today: it is plain though there is a key, or of an older key.
    pub fn is_stale(&self, stored: &[u8]) -> bool {
        let id = stored.strip_prefix(&MAGIC).and_then(|rest| rest.get(..KEY_ID_BYTES));
        self.keys.first().is_some_and(|key| id != Some(&key.id))
    }

    /// What every value sealed with the newest key begins with, in a byte column and in a text column; `None` without a key.
    pub fn heads(&self) -> Option<(Vec<u8>, String)> {
        let head = [MAGIC, self.keys.first()?.id].concat();
        let mut text = format!("{TEXT_PREFIX}{}", STANDARD_NO_PAD.encode(&head));
        // The last digit also holds bits of what follows.
        text.pop();
        Some((head, text))
    }

    /// The fingerprint under which `value` is found again in its stored rows; `realm` keeps equal values of two tenants, or
    /// of two kinds, apart. Without a key it is a plain SHA-256: it hides nothing then, and neither does the row.
    pub fn fingerprint(&self, realm: &str, value: &str) -> Fingerprint {
        let text = framed(realm, value);
        let tag = self.keys.first().map(|key| hmac::sign(&key.fingerprints, &text));
        let hash = tag.map_or_else(|| digest(&SHA256, &text).as_ref().to_vec(), |tag| tag.as_ref().to_vec());
        hash.try_into().unwrap_or_default()
    }

    /// Every fingerprint under which `value` may be stored: one for each key, the newest first, and the one without a key.
    pub fn fingerprints(&self, realm: &str, value: &str) -> Vec<Fingerprint> {
        let text = framed(realm, value);
        let signed = self.keys.iter().filter_map(|key| hmac::sign(&key.fingerprints, &text).as_ref().try_into().ok());
        signed.chain(digest(&SHA256, &text).as_ref().try_into().ok()).collect()
    }
}

/// Length first, so that no two pairs frame alike.
fn framed(realm: &str, value: &str) -> Vec<u8> {
    format!("{}:{realm}{value}", realm.len()).into_bytes()
}

impl Key {
    fn parse(text: &SecretString) -> Result<Self, SealError> {
        let bytes = STANDARD.decode(text.expose_secret().trim()).map_err(|_| SealError::BadKey)?;
        let bytes: [u8; KEY_BYTES] = bytes.try_into().map_err(|_| SealError::BadKey)?;
        let hash = digest(&SHA256, &bytes);
        let id = hash.as_ref().first_chunk().copied().ok_or(SealError::BadKey)?;
        let aead = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| SealError::BadKey)?);
        // A key of its own for each use: derived, so that an operator keeps just one.
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &bytes), b"posthaste fingerprint");
        Ok(Self { id, aead, fingerprints: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SecretString {
        STANDARD.encode([byte; KEY_BYTES]).into()
    }

    fn sealer(bytes: &[u8]) -> Sealer {
        let keys: Vec<SecretString> = bytes.iter().map(|byte| key(*byte)).collect();
        Sealer::new(&keys).unwrap()
    }

    #[test]
    fn what_is_sealed_is_unreadable_and_opens_again() {
        let sealer = sealer(&[1]);
        let stored = sealer.seal(b"{\"text\":\"canary\"}").unwrap();
        assert!(!stored.windows(6).any(|window| window == b"canary"));
        assert_ne!(stored, sealer.seal(b"{\"text\":\"canary\"}").unwrap(), "a nonce of its own each time");
        assert_eq!(sealer.open(stored).unwrap(), b"{\"text\":\"canary\"}");
        let text = sealer.seal_text("ana@example.com").unwrap();
        assert!(text.starts_with(TEXT_PREFIX) && !text.contains("ana"));
        assert_eq!(sealer.open_text(text).unwrap(), "ana@example.com");
    }

    #[test]
    fn without_a_key_values_pass_through_and_plain_ones_stay_readable_with_one() {
        let off = Sealer::default();
        assert_eq!(off.seal(b"plain").unwrap(), b"plain");
        assert_eq!(off.open_text("phs1:not sealed".to_owned()).unwrap(), "phs1:not sealed");
        assert_eq!(sealer(&[1]).open(b"plain".to_vec()).unwrap(), b"plain");
        assert_eq!(sealer(&[1]).open_text("plain".to_owned()).unwrap(), "plain");
    }

    #[test]
    fn an_old_key_still_opens_and_its_values_are_stale() {
        let old = sealer(&[1]).seal(b"x").unwrap();
        let both = sealer(&[2, 1]);
        assert!(both.is_stale(&old) && both.is_stale(b"plain"));
        assert_eq!(both.open(old.clone()).unwrap(), b"x");
        assert!(!both.is_stale(&both.seal(b"x").unwrap()));
        assert_eq!(sealer(&[2]).open(old), Err(SealError::UnknownKey));
    }

    #[test]
    fn a_head_tells_the_values_of_the_newest_key_from_all_others() {
        let (old, both) = (sealer(&[1]), sealer(&[2, 1]));
        let (bytes, text) = both.heads().unwrap();
        for plain in ["", "x", "a longer text"] {
            assert!(both.seal(plain.as_bytes()).unwrap().starts_with(&bytes));
            assert!(both.seal_text(plain).unwrap().starts_with(&text));
            assert!(!old.seal(plain.as_bytes()).unwrap().starts_with(&bytes));
            assert!(!old.seal_text(plain).unwrap().starts_with(&text));
        }
        assert_eq!(Sealer::default().heads(), None);
    }

    #[test]
    fn a_changed_byte_or_a_missing_one_is_damage() {
        let sealer = sealer(&[1]);
        let stored = sealer.seal(b"secret").unwrap();
        for at in HEAD_BYTES..stored.len() {
            let mut changed = stored.clone();
            changed[at] ^= 1;
            assert_eq!(sealer.open(changed), Err(SealError::Damaged));
        }
        assert_eq!(sealer.open(stored[..HEAD_BYTES - 1].to_vec()), Err(SealError::Damaged));
    }

    #[test]
    fn fingerprints_find_a_value_again_across_a_rotation_and_differ_between_tenants() {
        let (old, both) = (sealer(&[1]), sealer(&[2, 1]));
        assert!(both.fingerprints("1", "a").contains(&old.fingerprint("1", "a")));
        assert!(both.fingerprints("1", "a").contains(&Sealer::default().fingerprint("1", "a")));
        assert_ne!(both.fingerprint("1", "a"), both.fingerprint("2", "a"));
        assert_ne!(both.fingerprint("1", "1a"), both.fingerprint("11", "a"));
    }

    #[test]
    fn only_32_bytes_in_base64_are_a_key() {
        for bad in ["", "short", &STANDARD.encode([1; 31])] {
            assert_eq!(Sealer::new([&SecretString::from(bad)]).err(), Some(SealError::BadKey), "{bad}");
        }
    }
}
