//! The ways in which a call to WAHA can fail.

use std::time::Duration;

use crate::egress::Trouble;

/// A call to WAHA that failed. Nothing in it holds an address, content or secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WahaError {
    /// WAHA was certainly not called: refused by the address guard, not resolved, or not connected.
    #[error("WAHA could not be reached ({})", .0.as_str())]
    Unreachable(Trouble),
    /// The request was sent and there is no answer: it may have been carried out.
    #[error("WAHA did not answer ({})", .0.as_str())]
    Unanswered(Trouble),
    /// 401 or 403: the API key is not valid.
    #[error("WAHA refused the API key")]
    BadKey,
    /// 404: there is no such session (or chat, or path).
    #[error("WAHA has no such session")]
    NotFound,
    /// 422: the session is not in the state that the call needs.
    #[error("the session is {status}, not WORKING")]
    SessionStatus {
        /// Its state, as WAHA reports it.
        status: String,
    },
    /// 422 or 501: the session's engine, or this edition of WAHA, cannot do it.
    #[error("WAHA cannot do this with the session's engine")]
    NotImplemented,
    /// 429, with the wait that WAHA requests.
    #[error("WAHA asked to wait")]
    TooMany(Option<Duration>),
    /// Another 4xx, or an answer of an unexpected kind.
    #[error("WAHA refused the call with {0}")]
    Refused(u16),
    /// 5xx, with the wait that WAHA requests.
    #[error("WAHA failed with {0}")]
    Failed(u16, Option<Duration>),
    /// 2xx with a body that cannot be read: the call was carried out.
    #[error("WAHA's answer cannot be read")]
    Unreadable,
}

impl WahaError {
    pub(super) fn unanswered(error: &reqwest::Error) -> Self {
        let trouble = Trouble::of(error);
        if trouble.is_unsent() { Self::Unreachable(trouble) } else { Self::Unanswered(trouble) }
    }

    /// The meaning of an answer that is not a success.
    pub(super) fn answered(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Self {
        match status {
            401 | 403 => Self::BadKey,
            404 => Self::NotFound,
            422 => unprocessable(body),
            429 => Self::TooMany(retry_after),
            501 => Self::NotImplemented,
            500.. => Self::Failed(status, retry_after),
            _ => Self::Refused(status),
        }
    }

    /// A short word or status for the log.
    pub fn code(&self) -> String {
        match self {
            Self::Unreachable(trouble) | Self::Unanswered(trouble) => trouble.as_str().to_owned(),
            Self::BadKey => "401".to_owned(),
            Self::NotFound => "404".to_owned(),
            Self::SessionStatus { .. } => "session_status".to_owned(),
            Self::NotImplemented => "not_implemented".to_owned(),
            Self::TooMany(_) => "429".to_owned(),
            Self::Refused(status) | Self::Failed(status, _) => status.to_string(),
            Self::Unreadable => "unreadable".to_owned(),
        }
    }
}

/// WAHA answers 422 for the state of the session (fields `status` and `expected`), for features that the engine lacks,
/// and for values that it does not understand.
fn unprocessable(body: &[u8]) -> WahaError {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    if let (Some(status), Some(_)) = (body.get("status").and_then(|status| status.as_str()), body.get("expected")) {
        return WahaError::SessionStatus { status: status.chars().take(64).collect() };
    }
    let said = body.to_string().to_lowercase();
    match ["not implemented", "plus version"].iter().any(|words| said.contains(words)) {
        true => WahaError::NotImplemented,
        false => WahaError::Refused(422),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_kinds_of_422_are_told_apart() {
        let of = |body: &str| WahaError::answered(422, None, body.as_bytes());
        let status = r#"{"error":"Session status is not as expected. Try again later or restart the session",
            "session":"default","status":"SCAN_QR_CODE","expected":["WORKING"]}"#;
        assert_eq!(of(status), WahaError::SessionStatus { status: "SCAN_QR_CODE".to_owned() });
        let engine = r#"{"statusCode":422,"message":"The method is not implemented by the engine."}"#;
        assert_eq!(of(engine), WahaError::NotImplemented);
        assert_eq!(of(r#"{"message":"chatId must be a string"}"#), WahaError::Refused(422));
        assert_eq!(of("no json"), WahaError::Refused(422));
    }

    #[test]
    fn statuses_become_what_they_mean() {
        let wait = Some(Duration::from_secs(3));
        for (status, error) in [
            (401, WahaError::BadKey),
            (403, WahaError::BadKey),
            (404, WahaError::NotFound),
            (429, WahaError::TooMany(wait)),
            (500, WahaError::Failed(500, wait)),
            (501, WahaError::NotImplemented),
            (302, WahaError::Refused(302)),
        ] {
            assert_eq!(WahaError::answered(status, wait, b""), error);
        }
    }
}
