//! DKIM signatures (RFC 6376, RFC 8463), relaxed in headers and body: what mail servers on the way may fold or trim.

use aws_lc_rs::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, Utc};
use runtime::config::DkimConfig;

/// Header fields that are signed where a mail has them; those of one-click unsubscription must be (RFC 8058).
const SIGNED: &[&str] = &[
    "from",
    "to",
    "subject",
    "date",
    "message-id",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "list-unsubscribe",
    "list-unsubscribe-post",
];
/// Signed once more than it occurs, so that no second one can be added ("oversigning").
const OVERSIGNED: &str = "from";
/// Characters of a signature in one line.
const FOLD_AT: usize = 72;
const WHITESPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// Why a key cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum DkimError {
    /// There is no such file, or it may not be read.
    #[error("DKIM_PRIVATE_KEY_PATH cannot be read")]
    Read(#[source] std::io::Error),
    /// The file is no key that can sign.
    #[error("DKIM_PRIVATE_KEY_PATH must be a PEM file with an RSA key of at least 2048 bits, or an Ed25519 key")]
    Key,
}

/// Signs mails for one domain.
pub(super) struct Signer {
    domain: String,
    selector: String,
    key: Key,
}

enum Key {
    Rsa(Box<RsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
}

impl Signer {
    /// The signer of the settings; its key is read once.
    pub(super) fn load(config: &DkimConfig) -> Result<Self, DkimError> {
        let pem = std::fs::read_to_string(&config.private_key_path).map_err(DkimError::Read)?;
        let key = Key::parse(&pem).ok_or(DkimError::Key)?;
        Ok(Self { domain: config.domain.clone(), selector: config.selector.clone(), key })
    }

    /// The mail with its signature before it; `None`: it is no mail, or the key failed.
    pub(super) fn sign(&self, mail: &[u8], at: DateTime<Utc>) -> Option<Vec<u8>> {
        let (head, body) = split(mail)?;
        let fields = fields(head);
        let mut names: Vec<_> = SIGNED.iter().copied().filter(|name| fields.iter().any(|f| f.is(name))).collect();
        names.push(OVERSIGNED);
        let unsigned = format!(
            "v=1; a={}; c=relaxed/relaxed; d={}; s={};\r\n t={}; h={};\r\n bh={};\r\n b=",
            self.key.algorithm(),
            self.domain,
            self.selector,
            at.timestamp(),
            names.join(":\r\n  "),
            body_hash(body),
        );
        let signature = self.key.sign(signed_text(&fields, &names, &unsigned).as_bytes())?;
        let folded =
            signature.as_bytes().chunks(FOLD_AT).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\r\n  ");
        let mut signed = format!("DKIM-Signature: {unsigned}{folded}\r\n").into_bytes();
        signed.extend_from_slice(mail);
        Some(signed)
    }
}

impl Key {
    fn parse(pem: &str) -> Option<Self> {
        let (_, rest) = pem.split_once("-----BEGIN ")?;
        let (kind, rest) = rest.split_once("-----")?;
        let (text, _) = rest.split_once("-----END ")?;
        let der = STANDARD.decode(text.split(WHITESPACE).collect::<String>()).ok()?;
        let rsa = |key: RsaKeyPair| Self::Rsa(Box::new(key));
        match kind {
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(&der).ok().map(rsa),
            "PRIVATE KEY" => match Ed25519KeyPair::from_pkcs8(&der) {
                Ok(key) => Some(Self::Ed25519(Box::new(key))),
                Err(_) => RsaKeyPair::from_pkcs8(&der).ok().map(rsa),
            },
            _ => None,
        }
    }

    const fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "rsa-sha256",
            Self::Ed25519(_) => "ed25519-sha256",
        }
    }

    fn sign(&self, text: &[u8]) -> Option<String> {
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature).ok()?;
                Some(STANDARD.encode(signature))
            }
            // Ed25519 signs the hash (RFC 8463, section 3).
            Self::Ed25519(key) => Some(STANDARD.encode(key.sign(digest(&SHA256, text).as_ref()))),
        }
    }
}

/// One header field: its name, and its value as it stands, folded.
struct Field<'a> {
    name: &'a str,
    value: &'a str,
}

impl Field<'_> {
    fn is(&self, name: &str) -> bool {
        self.name.trim_end().eq_ignore_ascii_case(name)
    }
}

fn split(mail: &[u8]) -> Option<(&str, &[u8])> {
    let end = mail.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, body) = (mail.get(..end + 2)?, mail.get(end + 4..)?);
    Some((std::str::from_utf8(head).ok()?, body))
}

fn fields(head: &str) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    let mut rest = head;
    while let Some((name, after)) = rest.split_once(':') {
        // A field ends at a line end that no white space follows.
        let ends = after.match_indices("\r\n").map(|(at, _)| at);
        let end = ends.into_iter().find(|at| !after.get(at + 2..).is_some_and(|next| next.starts_with([' ', '\t'])));
        let (value, next) = end.and_then(|end| after.split_at_checked(end)).unwrap_or((after, ""));
        fields.push(Field { name, value });
        rest = next.strip_prefix("\r\n").unwrap_or_default();
    }
    fields
}

/// The named fields, each the last one not yet taken, then the signature's own without a line end.
fn signed_text(fields: &[Field<'_>], names: &[&str], signature: &str) -> String {
    let mut left: Vec<_> = fields.iter().collect();
    let mut text = String::new();
    for name in names {
        if let Some(at) = left.iter().rposition(|field| field.is(name)) {
            text.push_str(&format!("{}:{}\r\n", name.to_ascii_lowercase(), relaxed(left.remove(at).value)));
        }
    }
    text.push_str("dkim-signature:");
    text.push_str(&relaxed(signature));
    text
}

fn relaxed(value: &str) -> String {
    value.split(WHITESPACE).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn body_hash(body: &[u8]) -> String {
    STANDARD.encode(digest(&SHA256, &relaxed_body(body)))
}

/// White space is one space, none at the end of a line; no empty lines at the end.
fn relaxed_body(body: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(body.len());
    let mut empty_lines = 0;
    let mut rest = body;
    while !rest.is_empty() {
        let end = rest.windows(2).position(|window| window == b"\r\n");
        let (line, next) = rest.split_at(end.unwrap_or(rest.len()));
        rest = next.get(2..).unwrap_or_default();
        let kept = line.iter().rposition(|byte| !is_whitespace(*byte)).map_or(0, |last| last + 1);
        let line = line.get(..kept).unwrap_or_default();
        if line.is_empty() {
            empty_lines += 1;
            continue;
        }
        text.extend(b"\r\n".repeat(std::mem::take(&mut empty_lines)));
        let mut after_whitespace = false;
        for byte in line {
            if !is_whitespace(*byte) {
                text.push(*byte);
            } else if !after_whitespace {
                text.push(b' ');
            }
            after_whitespace = is_whitespace(*byte);
        }
        text.extend_from_slice(b"\r\n");
    }
    text
}

const fn is_whitespace(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

#[cfg(test)]
mod tests {
    use super::{super::compose::compose, *};
    use crate::testing::order;
    use aws_lc_rs::signature::{ED25519, KeyPair, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

    use domain::Channel;

    /// The example of RFC 8463, appendix A: mail, signature without `b`, signature, public key.
    const MAIL: &str = "From: Joe SixPack <joe@football.example.com>\r\n\
        To: Suzie Q <suzie@shopping.example.net>\r\n\
        Subject: Is dinner ready?\r\n\
        Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n\
        Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n\r\n\
        Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n";
    const UNSIGNED: &str = "v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n d=football.example.com; i=@football.example.com;\r\n \
        q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n subject : date : message-id : from : subject : date;\r\n \
        bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n b=";
    const SIGNATURE: &str = "/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11BusFa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==";
    const PUBLIC: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

    fn signer(key: Key) -> Signer {
        Signer { domain: "example.com".to_owned(), selector: "s1".to_owned(), key }
    }

    #[test]
    fn the_published_example_is_what_would_be_signed_here() {
        let (head, body) = split(MAIL.as_bytes()).unwrap();
        assert_eq!(body_hash(body), "2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=");
        let names = ["from", "to", "subject", "date", "message-id", "from", "subject", "date"];
        let verify = |text: String| {
            let key = UnparsedPublicKey::new(&ED25519, STANDARD.decode(PUBLIC).unwrap());
            key.verify(digest(&SHA256, text.as_bytes()).as_ref(), &STANDARD.decode(SIGNATURE).unwrap())
        };
        assert!(verify(signed_text(&fields(head), &names, UNSIGNED)).is_ok());
        let other = head.replace("dinner", "supper");
        assert!(verify(signed_text(&fields(&other), &names, UNSIGNED)).is_err());
    }

    #[test]
    fn bodies_are_relaxed_as_the_standard_says() {
        for (body, expected) in [
            ("", ""),
            ("\r\n\r\n", ""),
            ("a", "a\r\n"),
            (" C \r\nD \t E\r\n\r\n\r\n", " C\r\nD E\r\n"),
            ("a\r\n \t\r\n\r\nb\r\n", "a\r\n\r\n\r\nb\r\n"),
            ("\r\na", "\r\na\r\n"),
        ] {
            assert_eq!(String::from_utf8(relaxed_body(body.as_bytes())).unwrap(), expected, "{body:?}");
        }
    }

    /// Both kinds of key sign what they should, and only what is there.
    #[test]
    fn a_signed_mail_names_what_it_covers() {
        let rsa = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let ed = Ed25519KeyPair::generate().unwrap();
        let public = (rsa.public_key().as_ref().to_vec(), ed.public_key().as_ref().to_vec());
        let mail = format!(
            "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nList-Unsubscribe:\r\n <https://a.example/u>\r\n{MAIL}"
        );
        for signer in [signer(Key::Rsa(Box::new(rsa))), signer(Key::Ed25519(Box::new(ed)))] {
            let signed = signer.sign(mail.as_bytes(), "2026-11-20T12:00:00Z".parse().unwrap()).unwrap();
            let signed = String::from_utf8(signed).unwrap();
            let (header, rest) = signed.split_at(signed.len() - mail.len());
            assert_eq!(rest, mail);
            let value = header.strip_prefix("DKIM-Signature: ").unwrap().strip_suffix("\r\n").unwrap();
            assert!(value.lines().all(|line| line.len() < 100), "{value}");
            let names =
                ["from", "to", "subject", "date", "message-id", "list-unsubscribe", "list-unsubscribe-post", "from"];
            assert!(relaxed(value).contains(&format!("h={};", names.join(": "))), "{value}");
            let (unsigned, signature) = value.split_at(value.find(" b=").unwrap() + 3);
            let signature = STANDARD.decode(signature.split(WHITESPACE).collect::<String>()).unwrap();
            let (head, _) = split(mail.as_bytes()).unwrap();
            let text = signed_text(&fields(head), &names, unsigned);
            let held = match signer.key {
                Key::Rsa(_) => {
                    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &public.0).verify(text.as_bytes(), &signature)
                }
                Key::Ed25519(_) => {
                    let hash = digest(&SHA256, text.as_bytes());
                    UnparsedPublicKey::new(&ED25519, &public.1).verify(hash.as_ref(), &signature)
                }
            };
            assert!(held.is_ok(), "{}", signer.key.algorithm());
        }
    }

    #[test]
    fn every_mail_that_can_be_written_can_be_signed() {
        let signer = signer(Key::Ed25519(Box::new(Ed25519KeyPair::generate().unwrap())));
        let file = serde_json::json!([{"filename": "ä", "content_type": "text/plain", "content": ""}]);
        for content in [
            serde_json::json!({"html": ""}),
            serde_json::json!({"title": "ä", "message": "\n\n"}),
            serde_json::json!({"message": "m", "attachments": file}),
        ] {
            for recipient in ["ada@example.org", "дмитрий@example.org"] {
                let order = order(Channel::Email, recipient, &content.to_string());
                let mail = compose(&"Ä <noreply@example.com>".parse().unwrap(), &order).unwrap();
                assert!(signer.sign(&mail.bytes, DateTime::UNIX_EPOCH).is_some(), "{content}");
            }
        }
    }

    #[test]
    fn what_is_no_key_or_no_mail_is_refused() {
        for pem in [
            "",
            "key",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END ",
        ] {
            assert!(Key::parse(pem).is_none(), "{pem}");
        }
        let signer = signer(Key::Ed25519(Box::new(Ed25519KeyPair::generate().unwrap())));
        assert!(signer.sign(b"no mail", DateTime::UNIX_EPOCH).is_none());
    }
}
