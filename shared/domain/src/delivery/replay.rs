//! The headers of a submission that is published again from a dead letter: the letter, its publisher, and a proof that
//! the scheduler wrote both.
//!
//! The proof is an HMAC under a key that the database keeps. Without it the headers are ignored.

use std::borrow::Cow;

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

/// Header: the letter.
pub const LETTER: &str = "x-posthaste-replay";
/// Header: the proof.
pub const PROOF: &str = "x-posthaste-replay-proof";

/// A submission that is published again.
#[derive(Clone, Copy, Debug)]
pub struct Replayed<'a> {
    /// The id of the letter.
    pub letter: &'a str,
    /// The routing key.
    pub routing_key: &'a str,
    /// The property `message_id`.
    pub message_id: &'a str,
    /// The publisher, as the broker checked it the first time. Empty: the publisher gave none. `None`: the letter was
    /// written before users were kept, and its user was checked.
    pub user: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
}

/// Makes and checks proofs.
#[derive(Clone)]
pub struct Key(hmac::Key);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// Makes the key from these random bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The proof of a submission.
    pub fn proof(&self, replayed: &Replayed<'_>) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.0, &replayed.framed()))
    }

    /// Whether `proof` belongs to this submission.
    pub fn holds(&self, replayed: &Replayed<'_>, proof: &str) -> bool {
        let tag = URL_SAFE_NO_PAD.decode(proof);
        tag.is_ok_and(|tag| hmac::verify(&self.0, &replayed.framed(), &tag).is_ok())
    }
}

impl Replayed<'_> {
    /// Each part follows its length, so two submissions never give the same bytes.
    fn framed(&self) -> Vec<u8> {
        let user = self.user.map_or(Cow::Borrowed("-"), |user| Cow::Owned(format!("={user}")));
        let parts = [self.letter, self.routing_key, self.message_id, &user].map(str::as_bytes);
        let framed = |part: &&[u8]| [&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes()[..], part].concat();
        parts.iter().chain([&self.body]).flat_map(framed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLAYED: Replayed<'_> = Replayed {
        letter: "1",
        routing_key: "acme.sms.high",
        message_id: "order-7",
        user: Some("orders"),
        body: b"{}",
    };

    #[test]
    fn a_proof_holds_for_its_own_submission_under_its_own_key_only() {
        let key = Key::new(&[1; 32]);
        let proof = key.proof(&REPLAYED);
        assert!(key.holds(&REPLAYED, &proof));
        assert!(!Key::new(&[2; 32]).holds(&REPLAYED, &proof));
        for forged in [
            Replayed { letter: "2", ..REPLAYED },
            Replayed { routing_key: "globex.sms.high", ..REPLAYED },
            Replayed { routing_key: "acme.sms.highorder-", message_id: "7", ..REPLAYED },
            Replayed { message_id: "order-8", ..REPLAYED },
            Replayed { user: Some("other"), ..REPLAYED },
            Replayed { user: Some(""), ..REPLAYED },
            Replayed { user: None, ..REPLAYED },
            Replayed { body: b"[]", ..REPLAYED },
        ] {
            assert!(!key.holds(&forged, &proof), "{forged:?}");
        }
        for proof in ["", "1", "AAAA", "not base64!"] {
            assert!(!key.holds(&REPLAYED, proof), "{proof}");
        }
    }
}
