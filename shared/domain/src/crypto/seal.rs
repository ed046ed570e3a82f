//! Encryption at rest: contents and addresses of people are unreadable in the database and its dumps.
//!
//! A sealed value is `MAGIC ‖ key id (4 bytes) ‖ nonce (12) ‖ ciphertext ‖ tag (16)`; a text column holds the same in
//! base64 after `phs1:`. The last byte of the magic is the format:
//!
//! * 2: AES-256-GCM-SIV (RFC 8452) with a random nonce. Its associated data are the column and the tenant, so a value
//!   that is moved to another place does not open. A repeated nonce shows only whether two values are equal, so values
//!   need not be counted.
//! * 1: AES-256-GCM (NIST SP 800-38D) without associated data, as former versions wrote it. It is written until
//!   `posthaste rotate-keys` says that no former version reads any more: [`Sealer::set_bound`]. It opens unless the
//!   settings refuse it: [`Required::Bound`].
//! * 0: no encryption, an escape: the rest is a plain value that looks like a sealed one.
//!
//! The key id is the beginning of the key's SHA-256. It lets values of an old key be read while
//! `posthaste rotate-keys` writes them again. Without a key every value is stored and read as it is.
//!
//! Only the [`store`] layer seals and opens; the layers above it see plain values.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use aws_lc_rs::{
    aead::{AES_256_GCM, AES_256_GCM_SIV, Aad, Algorithm, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
    hmac, rand,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use secrecy::{ExposeSecret, SecretString};

use crate::TenantId;

/// The first bytes of every value that is not stored as it is; the format follows. No JSON text begins so, since it
/// cannot begin with a NUL.
const MAGIC: [u8; 3] = [0, b'p', b'h'];
const ESCAPED: u8 = 0;
const FREE: u8 = 1;
const BOUND: u8 = 2;
/// The prefix of a sealed text.
const TEXT_PREFIX: &str = "phs1:";
/// The prefix of a plain text that looks sealed or escaped.
const TEXT_ESCAPE: &str = "phs0:";
const KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 4;
const HEAD_BYTES: usize = MAGIC.len() + 1 + KEY_ID_BYTES + NONCE_LEN;
const TAG_BYTES: usize = 16;

/// A column whose values are sealed, as `table.column`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column(pub &'static str);

impl Column {
    /// The rows of a tenant.
    pub const fn of(self, tenant: TenantId) -> Place {
        Place { column: self.0, tenant: tenant.0 }
    }

    /// The place of rows without a tenant, or whose tenant is unknown when they are sealed.
    pub const fn of_nobody(self) -> Place {
        Place { column: self.0, tenant: 0 }
    }
}

/// The place of a sealed value. The value opens only there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    column: &'static str,
    tenant: i32,
}

impl Place {
    fn aad(self) -> Aad<Vec<u8>> {
        Aad::from([self.column.as_bytes(), b"|", &self.tenant.to_be_bytes()].concat())
    }
}

/// Whether a stored value is of format 2.
pub fn is_bound(stored: &[u8]) -> bool {
    stored.strip_prefix(&MAGIC).and_then(|rest| rest.first()) == Some(&BOUND)
}

/// Whether a text looks sealed or escaped. Such a text can be stored safely, but is refused as an address, token or
/// name.
pub fn looks_sealed(text: &str) -> bool {
    text.starts_with(TEXT_PREFIX) || text.starts_with(TEXT_ESCAPE)
}

/// Which stored values open if there is a key. This is a setting and not a row, because it protects against people who
/// can write to the database. Each level also refuses the values that the level before refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Required {
    /// All of them.
    #[default]
    Nothing,
    /// Encrypted ones; no plain ones.
    Encrypted,
    /// Only values of format 2.
    Bound,
}

/// A fingerprint: equal for equal values under one key. Without the key it reveals nothing else.
pub type Fingerprint = [u8; 32];

/// Why a value could not be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// A key is not 32 bytes in base64.
    #[error("an encryption key must be 32 bytes in base64: make one with `openssl rand -base64 32`")]
    BadKey,
    /// The value was sealed with a key that is not configured.
    #[error("a stored value was encrypted with another key: add that key to POSTHASTE_ENCRYPTION_KEY_PREVIOUS")]
    UnknownKey,
    /// The value was changed or cut off.
    #[error("a stored value cannot be decrypted: it is damaged")]
    Damaged,
    /// The value is not encrypted, and POSTHASTE_ENCRYPTION_REQUIRED refuses that.
    #[error("a stored value is not encrypted, and POSTHASTE_ENCRYPTION_REQUIRED is set")]
    Plain,
    /// The value is of format 1, and POSTHASTE_ENCRYPTION_REQUIRED refuses that.
    #[error(
        "a stored value is in the format of former versions, which POSTHASTE_ENCRYPTION_REQUIRED refuses: set it to true, run \
         `posthaste rotate-keys`, then set it to bound again"
    )]
    Unbound,
    /// The system returned no random numbers.
    #[error("the system has no random numbers to give")]
    NoRandom,
}

struct Key {
    id: [u8; KEY_ID_BYTES],
    /// Format 1.
    free: LessSafeKey,
    /// Format 2.
    bound: LessSafeKey,
    fingerprints: hmac::Key,
}

/// Seals with the newest key and opens with any key. Cheap to clone; without keys it passes values through.
#[derive(Clone, Default)]
pub struct Sealer {
    keys: Arc<[Key]>,
    /// Whether values are written in format 2; clones share this.
    bound: Arc<AtomicBool>,
    required: Required,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({} keys)", self.keys.len())
    }
}

impl Sealer {
    /// Seals with the first of `keys`, each 32 bytes in base64, and opens with all of them. No keys: nothing is sealed.
    /// Values are sealed in format 1, which every version reads, until [`Sealer::set_bound`].
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a SecretString>) -> Result<Self, SealError> {
        let keys: Result<Vec<Key>, SealError> = keys.into_iter().map(Key::parse).collect();
        Ok(Self { keys: keys?.into(), ..Self::default() })
    }

    /// The same, with `required`: other values do not open, so a writer to the database cannot replace a sealed value
    /// with one of them. Without keys it changes nothing.
    #[must_use]
    pub fn requiring(self, required: Required) -> Self {
        Self { required, ..self }
    }

    /// The form that stored values must have.
    pub const fn required(&self) -> Required {
        self.required
    }

    /// Whether values are sealed at all.
    pub fn is_on(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Whether new values are bound to their place (format 2).
    pub fn is_bound(&self) -> bool {
        self.bound.load(Ordering::Relaxed)
    }

    /// Sets whether new values are bound to their place, for this sealer and its clones. Set it only when every process
    /// that reads them knows format 2.
    pub fn set_bound(&self, is_bound: bool) {
        self.bound.store(is_bound, Ordering::Relaxed);
    }

    /// The stored form of `plain` at `place`.
    pub fn seal(&self, place: Place, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        match self.keys.first() {
            Some(key) if self.is_bound() => key.seal(BOUND, &key.bound, place.aad(), plain),
            Some(key) => key.seal(FREE, &key.free, Aad::from(Vec::new()), plain),
            None if plain.starts_with(&MAGIC) => Ok([&MAGIC[..], &[ESCAPED], plain].concat()),
            None => Ok(plain.to_vec()),
        }
    }

    /// The plain value of `stored` at `place`. A value that was stored without a key comes back unchanged.
    pub fn open(&self, place: Place, mut stored: Vec<u8>) -> Result<Vec<u8>, SealError> {
        let format = stored.strip_prefix(&MAGIC).and_then(|rest| rest.first().copied());
        match format {
            Some(FREE) if self.is_on() && self.required >= Required::Bound => Err(SealError::Unbound),
            Some(FREE | BOUND) if self.is_on() => self.decrypt(place, stored),
            _ if self.is_on() && self.required >= Required::Encrypted && !stored.is_empty() => Err(SealError::Plain),
            Some(ESCAPED) => {
                stored.drain(..MAGIC.len() + 1);
                Ok(stored)
            }
            _ => Ok(stored),
        }
    }

    fn decrypt(&self, place: Place, mut stored: Vec<u8>) -> Result<Vec<u8>, SealError> {
        let id = stored.get(MAGIC.len() + 1..).and_then(|rest| rest.first_chunk::<KEY_ID_BYTES>());
        let key = self.keys.iter().find(|key| Some(&key.id) == id).ok_or(SealError::UnknownKey)?;
        let (head, body) = stored.split_at_mut_checked(HEAD_BYTES).ok_or(SealError::Damaged)?;
        let (magic, rest) = head.split_at_checked(MAGIC.len() + 1).ok_or(SealError::Damaged)?;
        let (_, nonce) = rest.split_at_checked(KEY_ID_BYTES).ok_or(SealError::Damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Damaged)?;
        let opened = match magic.last() {
            Some(&BOUND) => key.bound.open_in_place(nonce, place.aad(), body),
            _ => key.free.open_in_place(nonce, Aad::empty(), body),
        };
        let length = opened.map_err(|_| SealError::Damaged)?.len();
        stored.truncate(HEAD_BYTES + length);
        stored.drain(..HEAD_BYTES);
        Ok(stored)
    }

    /// As [`Sealer::seal`], for a text column.
    pub fn seal_text(&self, place: Place, plain: &str) -> Result<String, SealError> {
        match self.is_on() {
            true => Ok(format!("{TEXT_PREFIX}{}", STANDARD_NO_PAD.encode(self.seal(place, plain.as_bytes())?))),
            false if looks_sealed(plain) => Ok(format!("{TEXT_ESCAPE}{plain}")),
            false => Ok(plain.to_owned()),
        }
    }

    /// As [`Sealer::open`], for a text column.
    pub fn open_text(&self, place: Place, stored: String) -> Result<String, SealError> {
        let sealed = stored.strip_prefix(TEXT_PREFIX).filter(|_| self.is_on());
        let sealed =
            sealed.and_then(|text| STANDARD_NO_PAD.decode(text).ok()).filter(|bytes| bytes.starts_with(&MAGIC));
        match sealed {
            Some(sealed) => String::from_utf8(self.open(place, sealed)?).map_err(|_| SealError::Damaged),
            None if self.is_on() && self.required >= Required::Encrypted && !stored.is_empty() => Err(SealError::Plain),
            None => Ok(stored.strip_prefix(TEXT_ESCAPE).map(str::to_owned).unwrap_or(stored)),
        }
    }

    /// Whether a stored value needs to be written again: it is plain although there is a key, it has an older key, or
    /// format 1.
    pub fn is_stale(&self, stored: &[u8]) -> bool {
        self.heads().is_some_and(|(head, _)| !stored.starts_with(&head))
    }

    /// The first bytes of every value of format 2 under the newest key, in a byte column and in a text column; `None`
    /// without a key.
    pub fn heads(&self) -> Option<(Vec<u8>, String)> {
        let head = [&MAGIC[..], &[BOUND], &self.keys.first()?.id].concat();
        let mut text = format!("{TEXT_PREFIX}{}", STANDARD_NO_PAD.encode(&head));
        // The last digit also holds bits of the value after it.
        text.pop();
        Some((head, text))
    }

    /// The fingerprint that finds `value` in its stored rows. `realm` separates equal values of two tenants or two
    /// kinds. Without a key it is a plain SHA-256, which hides nothing; the row itself is plain then too.
    pub fn fingerprint(&self, realm: &str, value: &str) -> Fingerprint {
        let text = framed(realm, value);
        let tag = self.keys.first().map(|key| hmac::sign(&key.fingerprints, &text));
        let hash = tag.map_or_else(|| digest(&SHA256, &text).as_ref().to_vec(), |tag| tag.as_ref().to_vec());
        hash.try_into().unwrap_or_default()
    }

    /// Every fingerprint under which `value` may be stored: one for each key, the newest first, then the one without a
    /// key.
    pub fn fingerprints(&self, realm: &str, value: &str) -> Vec<Fingerprint> {
        let text = framed(realm, value);
        let signed = self.keys.iter().filter_map(|key| hmac::sign(&key.fingerprints, &text).as_ref().try_into().ok());
        signed.chain(digest(&SHA256, &text).as_ref().try_into().ok()).collect()
    }
}

/// The length comes first, so two pairs never give the same bytes.
fn framed(realm: &str, value: &str) -> Vec<u8> {
    format!("{}:{realm}{value}", realm.len()).into_bytes()
}

impl Key {
    fn parse(text: &SecretString) -> Result<Self, SealError> {
        let bytes = STANDARD.decode(text.expose_secret().trim()).map_err(|_| SealError::BadKey)?;
        let bytes: [u8; KEY_BYTES] = bytes.try_into().map_err(|_| SealError::BadKey)?;
        let hash = digest(&SHA256, &bytes);
        let id = hash.as_ref().first_chunk().copied().ok_or(SealError::BadKey)?;
        // Each use has a key of its own, derived from the operator's single key.
        let derived = |usage: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &bytes), usage);
        Ok(Self {
            id,
            free: aead(&AES_256_GCM, &bytes)?,
            bound: aead(&AES_256_GCM_SIV, derived(b"posthaste values in their place").as_ref())?,
            fingerprints: hmac::Key::new(hmac::HMAC_SHA256, derived(b"posthaste fingerprint").as_ref()),
        })
    }

    fn seal(&self, format: u8, aead: &LessSafeKey, aad: Aad<Vec<u8>>, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| SealError::NoRandom)?;
        let mut stored = Vec::with_capacity(HEAD_BYTES + plain.len() + TAG_BYTES);
        stored.extend_from_slice(&MAGIC);
        stored.push(format);
        stored.extend_from_slice(&self.id);
        stored.extend_from_slice(&nonce);
        stored.extend_from_slice(plain);
        let (_, body) = stored.split_at_mut_checked(HEAD_BYTES).ok_or(SealError::Damaged)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = aead.seal_in_place_separate_tag(nonce, aad, body).map_err(|_| SealError::Damaged)?;
        stored.extend_from_slice(tag.as_ref());
        Ok(stored)
    }
}

fn aead(algorithm: &'static Algorithm, key: &[u8]) -> Result<LessSafeKey, SealError> {
    UnboundKey::new(algorithm, key).map(LessSafeKey::new).map_err(|_| SealError::BadKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Place = Column("messages.content").of(TenantId(1));

    fn key(byte: u8) -> SecretString {
        STANDARD.encode([byte; KEY_BYTES]).into()
    }

    fn sealer(bytes: &[u8]) -> Sealer {
        let keys: Vec<SecretString> = bytes.iter().map(|byte| key(*byte)).collect();
        let sealer = Sealer::new(&keys).unwrap();
        sealer.set_bound(true);
        sealer
    }

    #[test]
    fn what_is_sealed_is_unreadable_and_opens_again() {
        let sealer = sealer(&[1]);
        let stored = sealer.seal(HERE, b"{\"text\":\"canary\"}").unwrap();
        assert!(!stored.windows(6).any(|window| window == b"canary"));
        assert_ne!(stored, sealer.seal(HERE, b"{\"text\":\"canary\"}").unwrap(), "a nonce of its own each time");
        assert_eq!(sealer.open(HERE, stored).unwrap(), b"{\"text\":\"canary\"}");
        let text = sealer.seal_text(HERE, "ana@example.com").unwrap();
        assert!(text.starts_with(TEXT_PREFIX) && !text.contains("ana"));
        assert_eq!(sealer.open_text(HERE, text).unwrap(), "ana@example.com");
    }

    #[test]
    fn without_a_key_values_pass_through_and_plain_ones_stay_readable_with_one() {
        let off = Sealer::default();
        assert_eq!(off.seal(HERE, b"plain").unwrap(), b"plain");
        assert_eq!(off.open_text(HERE, "phs1:not sealed".to_owned()).unwrap(), "phs1:not sealed");
        assert_eq!(sealer(&[1]).open(HERE, b"plain".to_vec()).unwrap(), b"plain");
        assert_eq!(sealer(&[1]).open_text(HERE, "plain".to_owned()).unwrap(), "plain");
    }

    #[test]
    fn an_old_key_still_opens_and_its_values_are_stale() {
        let old = sealer(&[1]).seal(HERE, b"x").unwrap();
        let both = sealer(&[2, 1]);
        assert!(both.is_stale(&old) && both.is_stale(b"plain"));
        assert_eq!(both.open(HERE, old.clone()).unwrap(), b"x");
        assert!(!both.is_stale(&both.seal(HERE, b"x").unwrap()));
        assert_eq!(sealer(&[2]).open(HERE, old), Err(SealError::UnknownKey));
    }

    #[test]
    fn a_head_tells_the_values_of_the_newest_key_from_all_others() {
        let (old, both) = (sealer(&[1]), sealer(&[2, 1]));
        let (bytes, text) = both.heads().unwrap();
        for plain in ["", "x", "a longer text"] {
            assert!(both.seal(HERE, plain.as_bytes()).unwrap().starts_with(&bytes));
            assert!(both.seal_text(HERE, plain).unwrap().starts_with(&text));
            assert!(!old.seal(HERE, plain.as_bytes()).unwrap().starts_with(&bytes));
            assert!(!old.seal_text(HERE, plain).unwrap().starts_with(&text));
        }
        assert_eq!(Sealer::default().heads(), None);
    }

    #[test]
    fn a_changed_byte_or_a_missing_one_is_damage() {
        let sealer = sealer(&[1]);
        let stored = sealer.seal(HERE, b"secret").unwrap();
        for at in MAGIC.len() + 1 + KEY_ID_BYTES..stored.len() {
            let mut changed = stored.clone();
            changed[at] ^= 1;
            assert_eq!(sealer.open(HERE, changed), Err(SealError::Damaged));
        }
        assert_eq!(sealer.open(HERE, stored[..HEAD_BYTES - 1].to_vec()), Err(SealError::Damaged));
    }

    #[test]
    fn a_value_opens_in_its_column_and_tenant_only() {
        let sealer = sealer(&[1]);
        let (bytes, text) = (sealer.seal(HERE, b"x").unwrap(), sealer.seal_text(HERE, "x").unwrap());
        let elsewhere = [Column("messages.content").of(TenantId(2)), Column("inbox.content").of(TenantId(1))];
        for place in elsewhere.into_iter().chain([Column("messages.content").of_nobody()]) {
            assert_eq!(sealer.open(place, bytes.clone()), Err(SealError::Damaged), "{place:?}");
            assert_eq!(sealer.open_text(place, text.clone()), Err(SealError::Damaged), "{place:?}");
        }
    }

    #[test]
    fn values_of_the_former_format_open_and_are_stale_and_are_written_until_all_are_bound() {
        let sealer = sealer(&[1]);
        sealer.set_bound(false);
        let (old, text) = (sealer.seal(HERE, b"x").unwrap(), sealer.seal_text(HERE, "x").unwrap());
        assert_eq!(old.get(..4), Some(&[0, b'p', b'h', 1][..]), "what a former version reads");
        sealer.clone().set_bound(true);
        assert!(sealer.is_bound() && sealer.is_stale(&old));
        assert_eq!(sealer.open(HERE, old).as_deref(), Ok(&b"x"[..]));
        assert_eq!(sealer.open_text(HERE, text).as_deref(), Ok("x"));
    }

    #[test]
    fn what_looks_sealed_comes_back_as_it_was_with_a_key_and_without_one_and_when_a_key_comes_later() {
        let (off, on) = (Sealer::default(), sealer(&[1]));
        let real = on.seal_text(HERE, "x").unwrap();
        for text in ["phs1:AHBoAUFBQUE", "phs1:", "phs0:x", "phs0:phs1:AHBoAUFBQUE", real.as_str()] {
            for sealer in [&off, &on] {
                let stored = sealer.seal_text(HERE, text).unwrap();
                assert_eq!(sealer.open_text(HERE, stored.clone()).as_deref(), Ok(text));
                assert_eq!(on.open_text(HERE, stored).as_deref(), Ok(text), "the key came later");
            }
            assert!(off.open_text(HERE, text.to_owned()).is_ok(), "stored before this version");
        }
        for bytes in [&b"\0ph\x01AAAA"[..], b"\0ph\x02AAAABBBBCCCCDDDDEEEE", b"\0ph\0", b"\0ph"] {
            let stored = off.seal(HERE, bytes).unwrap();
            assert_eq!(off.open(HERE, stored.clone()).as_deref(), Ok(bytes));
            assert_eq!(on.open(HERE, stored).as_deref(), Ok(bytes));
        }
    }

    #[test]
    fn a_plain_value_is_refused_where_encryption_is_required() {
        let on = sealer(&[1]).requiring(Required::Encrypted);
        for plain in ["plain", "phs0:phs1:AAAA", "phs1:not sealed"] {
            assert_eq!(on.open_text(HERE, plain.to_owned()), Err(SealError::Plain), "{plain}");
            assert_eq!(on.open(HERE, plain.as_bytes().to_vec()), Err(SealError::Plain));
        }
        assert_eq!(on.open(HERE, on.seal(HERE, b"x").unwrap()).as_deref(), Ok(&b"x"[..]));
        assert_eq!(on.open_text(HERE, String::new()).as_deref(), Ok(""), "there is nothing to protect");
        let off = Sealer::default().requiring(Required::Encrypted);
        assert_eq!(off.open(HERE, b"x".to_vec()).as_deref(), Ok(&b"x"[..]));
    }

    #[test]
    fn a_value_of_the_former_format_is_refused_where_bound_ones_are_required() {
        let former = sealer(&[1]);
        former.set_bound(false);
        let (old, text) = (former.seal(HERE, b"x").unwrap(), former.seal_text(HERE, "x").unwrap());
        assert_eq!(sealer(&[1]).requiring(Required::Encrypted).open(HERE, old.clone()).as_deref(), Ok(&b"x"[..]));
        let bound = sealer(&[1]).requiring(Required::Bound);
        assert_eq!(bound.open(HERE, old), Err(SealError::Unbound));
        assert_eq!(bound.open_text(HERE, text), Err(SealError::Unbound));
        assert_eq!(bound.open(HERE, b"plain".to_vec()), Err(SealError::Plain));
        assert_eq!(bound.open(HERE, bound.seal(HERE, b"x").unwrap()).as_deref(), Ok(&b"x"[..]));
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
