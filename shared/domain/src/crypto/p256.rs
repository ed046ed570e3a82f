//! Public keys on the curve P-256, which sign with SHA-256 (ECDSA, FIPS 186-5).

use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use base64::{Engine, engine::general_purpose::STANDARD};

/// A public key.
#[derive(Clone, Debug)]
pub struct PublicKey(Arc<ParsedPublicKey>);

impl PublicKey {
    /// Reads the base64 of a SubjectPublicKeyInfo (RFC 5280), the form in which SendGrid shows it.
    pub fn parse(text: &str) -> Option<Self> {
        let der = STANDARD.decode(text.trim()).ok()?;
        ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, der).ok().map(|key| Self(key.into()))
    }

    /// Whether `signature`, the base64 of a DER signature, signs `message`.
    pub fn verifies(&self, message: &[u8], signature: &str) -> bool {
        STANDARD.decode(signature).is_ok_and(|signature| self.0.verify_sig(message, &signature).is_ok())
    }
}
