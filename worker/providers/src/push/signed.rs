//! Signed tokens (JWT, RFC 7519) that authenticate Posthaste at Google, Apple and browsers' push services.

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeyPair as RsaKeyPair,
    signature::{EcdsaKeyPair, RSA_PKCS1_SHA256},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;

/// Signs by ECDSA on P-256. `None`: the machine has no randomness left.
pub(super) fn es256(key: &EcdsaKeyPair, header: &Value, claims: &Value) -> Option<String> {
    joined(header, claims, |text| Some(key.sign(&SystemRandom::new(), text).ok()?.as_ref().to_vec()))
}

/// Signs by RSA.
pub(super) fn rs256(key: &RsaKeyPair, header: &Value, claims: &Value) -> Option<String> {
    joined(header, claims, |text| {
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature).ok()?;
        Some(signature)
    })
}

fn joined(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Option<String> {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(header), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(text.as_bytes())?);
    Some(format!("{text}.{signature}"))
}
