//! The signature of an outgoing webhook, by the Standard Webhooks specification 1.0.
//!
//! Signed is `<id>.<timestamp>.<body>`: with HMAC-SHA256 and the bytes that a `whsec_…` stands for (v1), or with Ed25519 and
//! the key that a `whsk_…` stands for (v1a). The id stays the same over all attempts; the timestamp is each attempt's own.

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use domain::token::{WEBHOOK_KEY_PREFIX, WEBHOOK_SECRET_PREFIX, webhook_key_pair};

/// The value of `webhook-signature` for one secret: `v1,<base64>` or `v1a,<base64>`. `None`: the secret has neither form.
///
/// `id` is the value of `webhook-id`, `timestamp` that of `webhook-timestamp` in Unix seconds, `body` the bytes as sent.
pub fn sign(secret: &str, id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
    let timestamp = timestamp.to_string();
    let parts = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
    if secret.starts_with(WEBHOOK_KEY_PREFIX) {
        let signature = webhook_key_pair(secret)?.sign(&parts.concat());
        return Some(format!("v1a,{}", STANDARD.encode(signature)));
    }
    let key = STANDARD.decode(secret.strip_prefix(WEBHOOK_SECRET_PREFIX)?).ok()?;
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &key));
    parts.into_iter().for_each(|part| context.update(part));
    Some(format!("v1,{}", STANDARD.encode(context.sign())))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Published with the specification's reference libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIMESTAMP: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn the_published_vector_comes_out() {
        assert_eq!(sign(SECRET, ID, TIMESTAMP, BODY).as_deref(), Some(SIGNATURE));
    }

    #[test]
    fn a_change_of_any_part_changes_the_signature() {
        let other_secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSx";
        for signature in [
            sign(other_secret, ID, TIMESTAMP, BODY),
            sign(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJel", TIMESTAMP, BODY),
            sign(SECRET, ID, TIMESTAMP + 1, BODY),
            sign(SECRET, ID, TIMESTAMP, br#"{"test":2432232314}"#),
            sign(SECRET, ID, TIMESTAMP, b""),
        ] {
            assert!(signature.is_some_and(|signature| signature.starts_with("v1,") && signature != SIGNATURE));
        }
    }

    #[test]
    fn a_private_key_signs_what_its_public_key_verifies_and_nothing_else() {
        use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
        use secrecy::ExposeSecret;
        let (key, other) = (domain::token::webhook_key().unwrap(), domain::token::webhook_key().unwrap());
        let public = |key: &str| {
            let public = domain::token::webhook_public_key(key).unwrap();
            STANDARD.decode(public.strip_prefix("whpk_").unwrap()).unwrap()
        };
        let signature = sign(key.expose_secret(), ID, TIMESTAMP, BODY).unwrap();
        let signature = STANDARD.decode(signature.strip_prefix("v1a,").unwrap()).unwrap();
        let signed = [ID.as_bytes(), b".", TIMESTAMP.to_string().as_bytes(), b".", BODY].concat();
        let verify =
            |key: &str, signed: &[u8]| UnparsedPublicKey::new(&ED25519, public(key)).verify(signed, &signature);
        assert!(verify(key.expose_secret(), &signed).is_ok());
        assert!(verify(other.expose_secret(), &signed).is_err());
        assert!(verify(key.expose_secret(), &signed[1..]).is_err());
    }

    #[test]
    fn a_secret_of_another_form_signs_nothing() {
        for secret in
            ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_not base64"]
        {
            assert_eq!(sign(secret, ID, TIMESTAMP, BODY), None, "{secret}");
        }
    }
}
