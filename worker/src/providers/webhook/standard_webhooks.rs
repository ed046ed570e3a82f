//! The signature of an outgoing webhook, as the Standard Webhooks specification 1.0 wants it.
//!
//! Signed is `<id>.<timestamp>.<body>`, with HMAC-SHA256 and the bytes that the secret's base64 stands for. The id stays
//! the same over all attempts; the timestamp is each attempt's own.

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};

/// What a symmetric secret begins with.
const SECRET_PREFIX: &str = "whsec_";

/// The value of `webhook-signature`, version 1: `v1,<base64>`. `None`: the secret is not `whsec_` and base64.
///
/// `id` is the value of `webhook-id`, `timestamp` that of `webhook-timestamp` in Unix seconds, `body` the bytes as sent.
pub fn sign(secret: &str, id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
    let key = STANDARD.decode(secret.strip_prefix(SECRET_PREFIX)?).ok()?;
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &key));
    for part in [id.as_bytes(), b".", timestamp.to_string().as_bytes(), b".", body] {
        context.update(part);
    }
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
    fn a_secret_of_another_form_signs_nothing() {
        for secret in
            ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_not base64"]
        {
            assert_eq!(sign(secret, ID, TIMESTAMP, BODY), None, "{secret}");
        }
    }
}
