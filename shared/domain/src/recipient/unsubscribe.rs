//! Unsubscribe links. Each has a token that names the person and the category, and that only we can create or read.
//!
//! Nothing is stored for a link, however old its mail is: the token contains everything. It is `nonce (12) ‖
//! ciphertext ‖ tag (16)` of AES-256-GCM in base64url, under keys derived from a secret in the database. The nonce
//! comes from a MAC of the plaintext, so the same content always gives the same token, and a retry of a mail is the
//! same mail.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{Address, TenantId, crypto::seal::SealError};

/// The path of a link below the public URL.
pub const PATH: &str = "api/notifications/unsubscribe/";
/// The longest token that we try to read: what fits into one header line of a mail.
const TOKEN_CHARS_MAX: usize = 1600;
/// The first byte of the plaintext: the version of its format.
const FORMAT: u8 = 1;

/// The content of a token: who unsubscribes from what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsubscribeToken {
    /// The tenant of the person.
    pub tenant: TenantId,
    /// The person, if known.
    pub user_id: Option<String>,
    /// The address that the mail went to; `None`: the address that the person has when the link is used.
    pub address: Option<Address>,
    /// The category to unsubscribe from.
    pub category: String,
}

/// Creates and reads tokens.
#[derive(Clone)]
pub struct Key {
    aead: std::sync::Arc<LessSafeKey>,
    nonces: hmac::Key,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// Derives the keys from these random bytes.
    pub fn new(secret: &[u8]) -> Result<Self, SealError> {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived = |purpose: &str| hmac::sign(&secret, purpose.as_bytes());
        let aead = UnboundKey::new(&AES_256_GCM, derived("unsubscribe: content").as_ref());
        Ok(Self {
            aead: std::sync::Arc::new(LessSafeKey::new(aead.map_err(|_| SealError::BadKey)?)),
            nonces: hmac::Key::new(hmac::HMAC_SHA256, derived("unsubscribe: nonce").as_ref()),
        })
    }

    /// Creates a token.
    pub fn token(&self, unsubscribe_token: &UnsubscribeToken) -> Result<String, SealError> {
        let mut plaintext = unsubscribe_token.encode();
        let nonce: [u8; NONCE_LEN] =
            hmac::sign(&self.nonces, &plaintext).as_ref().first_chunk().copied().ok_or(SealError::Damaged)?;
        let used = Nonce::assume_unique_for_key(nonce);
        self.aead.seal_in_place_append_tag(used, Aad::empty(), &mut plaintext).map_err(|_| SealError::Damaged)?;
        Ok(URL_SAFE_NO_PAD.encode([nonce.as_slice(), plaintext.as_slice()].concat()))
    }

    /// The content of a token; `None` if the token is not valid.
    pub fn read(&self, token: &str) -> Option<UnsubscribeToken> {
        let token = Some(token).filter(|token| token.len() <= TOKEN_CHARS_MAX)?;
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let plaintext =
            self.aead.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), &mut sealed).ok()?;
        UnsubscribeToken::read(plaintext)
    }
}

impl UnsubscribeToken {
    /// Format, tenant, then each text after its length in two bytes; a missing text has the largest length.
    fn encode(&self) -> Vec<u8> {
        let mut plaintext = vec![FORMAT];
        plaintext.extend(self.tenant.0.to_be_bytes());
        let address = self.address.as_ref().map(Address::reveal);
        for text in [self.user_id.as_deref(), address, Some(&self.category)] {
            let length = text.and_then(|text| u16::try_from(text.len()).ok()).unwrap_or(u16::MAX);
            plaintext.extend(length.to_be_bytes());
            plaintext.extend(text.filter(|_| length != u16::MAX).unwrap_or_default().as_bytes());
        }
        plaintext
    }

    fn read(plaintext: &[u8]) -> Option<Self> {
        let rest = plaintext.strip_prefix(&[FORMAT])?;
        let (tenant, mut rest) = rest.split_first_chunk()?;
        let mut text = || {
            let (length, after) = rest.split_first_chunk()?;
            let length = Some(u16::from_be_bytes(*length)).filter(|length| *length != u16::MAX);
            let (text, after) = after.split_at_checked(usize::from(length.unwrap_or_default()))?;
            rest = after;
            let text = String::from_utf8(text.to_vec()).ok()?;
            Some(length.map(|_| text))
        };
        let (user_id, address, category) = (text()?, text()?, text()??);
        let tenant = TenantId(i32::from_be_bytes(*tenant));
        rest.is_empty().then_some(Self { tenant, user_id, address: address.map(Address::new), category })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unsubscribe_tokens() -> Vec<UnsubscribeToken> {
        let full = UnsubscribeToken {
            tenant: TenantId(7),
            user_id: Some("ada".to_owned()),
            address: Some(Address::new("ada@example.com")),
            category: "marketing".to_owned(),
        };
        vec![
            UnsubscribeToken { user_id: None, ..full.clone() },
            UnsubscribeToken { address: None, ..full.clone() },
            UnsubscribeToken { user_id: Some(String::new()), category: "ä\n".to_owned(), ..full.clone() },
            full,
        ]
    }

    #[test]
    fn a_token_says_what_was_written_and_shows_nothing_of_it() {
        let key = Key::new(&[7; 32]).unwrap();
        for unsubscribe_token in unsubscribe_tokens() {
            let token = key.token(&unsubscribe_token).unwrap();
            assert_eq!(key.read(&token), Some(unsubscribe_token.clone()));
            assert_eq!(key.token(&unsubscribe_token).unwrap(), token, "the same link reads the same");
            let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
            assert!(!bytes.windows(3).any(|window| window == b"ada" || window == b"mar"));
        }
    }

    #[test]
    fn no_bit_of_a_token_can_be_changed_and_no_other_key_reads_it() {
        let key = Key::new(&[7; 32]).unwrap();
        for unsubscribe_token in unsubscribe_tokens() {
            let token = key.token(&unsubscribe_token).unwrap();
            assert_eq!(Key::new(&[8; 32]).unwrap().read(&token), None);
            let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= 1;
                assert_eq!(key.read(&URL_SAFE_NO_PAD.encode(changed)), None, "byte {at}");
                assert_eq!(key.read(&URL_SAFE_NO_PAD.encode(&bytes[..at])), None, "cut off at {at}");
            }
        }
        for garbage in ["", "AAAA", "…", &"A".repeat(5000)] {
            assert_eq!(key.read(garbage), None);
        }
    }

    #[test]
    fn the_longest_names_fit_into_a_line_of_a_mail_without_the_person() {
        let key = Key::new(&[7; 32]).unwrap();
        let longest = UnsubscribeToken {
            tenant: TenantId(i32::MAX),
            user_id: None,
            address: Some(Address::new("a".repeat(254))),
            category: "c".repeat(200),
        };
        assert!(key.token(&longest).unwrap().len() <= 700);
    }
}
