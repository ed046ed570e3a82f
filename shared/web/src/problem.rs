//! Every way a request can fail, as RFC 9457 problem details.
//!
//! The list is closed: clients match on `code`, and the OpenAPI document is generated from the same table. `detail`
//! says what to do. Internal causes go to the log and never to the caller.

use std::{borrow::Cow, fmt};

use actix_web::{
    HttpResponse, ResponseError,
    http::{
        StatusCode,
        header::{ALLOW, RETRY_AFTER, UPGRADE, WWW_AUTHENTICATE},
    },
};
use domain::contract::submission::FieldError;
use runtime::metric;
use serde::Serialize;
use store::DbError;
use utoipa::ToSchema;

use crate::openapi::FieldErrorBody;

/// Media type of every problem.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// Seconds a client should wait after a 503. By then a batch or a fail-over is over, or the next answer is another 503.
const RETRY_AFTER_SECONDS: u32 = 1;
/// Seconds a client should wait if too many sockets are open.
const SOCKETS_RETRY_AFTER_SECONDS: u64 = 30;
/// Prefix of the validator's message for a forbidden webhook target.
const TARGET_PREFIX: &str = "target_not_allowed";

/// One row per problem: code, status, title.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $status:literal, $title:literal;)+) => {
        /// The kind of a problem.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $variant),+ }

        impl Code {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that clients match on.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code),+ }
            }

            /// The HTTP status.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status),+ }
            }

            /// The meaning of the kind; the same for every occurrence.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),+ }
            }

            /// URL of its explanation, relative to the API.
            pub const fn uri(self) -> &'static str {
                match self { $(Self::$variant => concat!("/docs/problems#", $code)),+ }
            }
        }
    };
}

codes! {
    /// The body is no JSON, or a field has the wrong type or an unknown name.
    MalformedBody = "malformed_body", 400, "The body cannot be read";
    /// The body can be read but a value is not possible; `errors` names every field.
    ValidationFailed = "validation_failed", 400, "Some fields are not valid";
    /// A parameter of the path or query is unknown or not valid.
    InvalidParameter = "invalid_parameter", 400, "A parameter is not valid";
    /// The webhook target is in a private or special network.
    TargetNotAllowed = "target_not_allowed", 400, "The target is not allowed";
    /// The idempotency key is too long or given twice with different values.
    InvalidIdempotencyKey = "invalid_idempotency_key", 400, "The idempotency key is not valid";
    /// The WhatsApp session does not work at the moment.
    SessionNotWorking = "session_not_working", 400, "The WhatsApp session is not working";
    /// No credential, or one that is not valid.
    Unauthenticated = "unauthenticated", 401, "A valid credential is needed";
    /// The credential's role may not do this.
    Forbidden = "forbidden", 403, "The role of the credential does not allow this";
    /// There is no such object, or it belongs to another tenant.
    NotFound = "not_found", 404, "There is no such thing";
    /// The path exists, but not with this method.
    MethodNotAllowed = "method_not_allowed", 405, "The path does not take this method";
    /// The body did not arrive in time.
    RequestTimeout = "request_timeout", 408, "The request took too long to arrive";
    /// The state of the object does not allow this.
    StateConflict = "state_conflict", 409, "The state does not allow this";
    /// The body is larger than the limit.
    PayloadTooLarge = "payload_too_large", 413, "The body is too large";
    /// The headers do not declare the body as JSON.
    UnsupportedMediaType = "unsupported_media_type", 415, "The media type is not supported";
    /// The idempotency key was used for another request.
    IdempotencyKeyReused = "idempotency_key_reused", 422, "The idempotency key belongs to another request";
    /// A change moves a target to another host without new values for its secrets.
    SecretsRequired = "secrets_required", 422, "Stored secrets do not go to another host";
    /// The path speaks WebSocket only.
    UpgradeRequired = "upgrade_required", 426, "A WebSocket is needed";
    /// More requests than the limit.
    RateLimited = "rate_limited", 429, "Too many requests";
    /// The WhatsApp session has no slot free at its pace.
    SessionBusy = "session_limit_reached", 429, "The WhatsApp session is at its limit";
    /// Our fault.
    Internal = "internal", 500, "Something went wrong on our side";
    /// WAHA answered and would not do it.
    WahaRefused = "waha_refused", 502, "WAHA refused the call";
    /// WAHA does not answer.
    WahaUnavailable = "waha_unavailable", 503, "WAHA cannot be reached";
    /// Too much waits to be stored in time.
    Overloaded = "overloaded", 503, "Too much is waiting";
    /// The database cannot do its work: it is away, full, read-only or overloaded.
    Unavailable = "unavailable", 503, "The service is not available at the moment";
}

/// A problem: its kind, and what the caller should do.
#[derive(Debug)]
pub struct Problem {
    code: Code,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    allow: &'static [&'static str],
    retry_after: Option<u64>,
}

/// A problem (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// The URL of the explanation.
    #[schema(value_type = String, example = "/docs/problems#validation_failed")]
    r#type: &'static str,
    /// The meaning of the kind.
    #[schema(value_type = String)]
    title: &'static str,
    /// The HTTP status.
    #[schema(example = 400)]
    status: u16,
    /// How to correct it.
    detail: &'a str,
    /// The kind; see the closed list at `/docs/problems`.
    #[schema(value_type = String, example = "validation_failed")]
    code: &'static str,
    /// Each field that is not valid.
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    #[schema(value_type = Vec<FieldErrorBody>, required = false)]
    errors: &'a [FieldError],
}

impl Problem {
    /// A problem with a sentence that says what to do.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), allow: &[], retry_after: None }
    }

    /// The faults in the fields of a body that can be parsed.
    pub fn validation(errors: Vec<FieldError>) -> Self {
        let forbidden = errors.iter().find(|error| error.message.starts_with(TARGET_PREFIX));
        let (code, detail) = match (forbidden, errors.len()) {
            (Some(_), _) => (Code::TargetNotAllowed, "Name a webhook target that is reachable from the internet."),
            (None, 1) => (Code::ValidationFailed, "Correct the field that `errors` names and send the request again."),
            (None, _) => (Code::ValidationFailed, "Correct the fields that `errors` names and send the request again."),
        };
        Self { errors, ..Self::new(code, detail) }
    }

    /// A change moves a target to another host without new values for the secrets that go there.
    pub fn secrets_required(errors: Vec<FieldError>) -> Self {
        let detail =
            "Give the fields that `errors` names along with the target: what is stored does not go to another host.";
        Self { errors, ..Self::new(Code::SecretsRequired, detail) }
    }

    /// A body that cannot be parsed.
    pub fn malformed(error: FieldError) -> Self {
        Self {
            errors: vec![error],
            ..Self::new(Code::MalformedBody, "Send JSON as /docs describes it; `errors` says where it differs.")
        }
    }

    /// An invalid parameter.
    pub fn parameter(name: &str, message: impl Into<String>) -> Self {
        let error = FieldError::new(name, message);
        Self {
            errors: vec![error.clone()],
            ..Self::new(Code::InvalidParameter, format!("Correct the parameter `{name}`: it {}.", error.message))
        }
    }

    /// Fields that the caller may not change.
    pub fn forbidden_fields(errors: Vec<FieldError>) -> Self {
        Self { errors, ..Self::new(Code::Forbidden, "Leave out the fields that `errors` names.") }
    }

    /// The thing does not exist for this caller.
    pub fn not_found(thing: &str) -> Self {
        Self::new(Code::NotFound, format!("Check the id: this tenant has no such {thing}."))
    }

    /// A path that supports other methods only.
    pub fn method_not_allowed(allow: &'static [&'static str]) -> Self {
        Self { allow, ..Self::new(Code::MethodNotAllowed, format!("Use one of: {}.", allow.join(", "))) }
    }

    /// The rate limit is exceeded; the next request is allowed after `retry_after` seconds.
    pub fn rate_limited(retry_after: u64) -> Self {
        let detail = format!("Wait {retry_after} s, then go on no faster than the RateLimit headers allow.");
        Self { retry_after: Some(retry_after), ..Self::new(Code::RateLimited, detail) }
    }

    /// Too many sockets are open.
    pub fn too_many_sockets(detail: &'static str) -> Self {
        Self { retry_after: Some(SOCKETS_RETRY_AFTER_SECONDS), ..Self::new(Code::RateLimited, detail) }
    }

    /// A path that has to be opened as a WebSocket.
    pub fn upgrade_required() -> Self {
        Self::new(Code::UpgradeRequired, "Open this path as a WebSocket (RFC 6455, version 13).")
    }

    /// A change that the current state does not allow.
    pub fn conflict(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::StateConflict, detail)
    }

    /// A WhatsApp session whose pace is used up for `retry_after` seconds.
    pub fn session_busy(retry_after: u64) -> Self {
        let detail = format!("Wait {retry_after} s for a free slot, or send it with `on_limit` `queue`.");
        Self { retry_after: Some(retry_after), ..Self::new(Code::SessionBusy, detail) }
    }

    /// Too much is waiting.
    pub fn overloaded() -> Self {
        Self::new(Code::Overloaded, "Nothing was stored; repeat the request after a second.")
    }

    /// The database cannot store anything at the moment; nothing was stored.
    pub fn not_stored() -> Self {
        Self::new(Code::Unavailable, "Nothing was stored; repeat the request after a second.")
    }

    /// The database cannot be reached, or did not confirm in time that it stored the request.
    pub fn unavailable() -> Self {
        Self::new(
            Code::Unavailable,
            "Repeat the request after a second, a submission with the same idempotency key: it may have been stored.",
        )
    }

    /// An internal error; the request id leads to its log line.
    pub fn internal() -> Self {
        Self::new(
            Code::Internal,
            "Report this with the X-Request-Id of the answer; repeating the request may not help.",
        )
    }

    /// The kind of the problem.
    pub const fn code(&self) -> Code {
        self.code
    }

    /// The body as JSON; also the `error` of an AMQP reply.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self.body()).unwrap_or_default()
    }

    fn body(&self) -> ProblemBody<'_> {
        let Self { code, detail, errors, .. } = self;
        ProblemBody {
            r#type: code.uri(),
            title: code.title(),
            status: code.status(),
            detail,
            code: code.as_str(),
            errors,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        metrics::counter!(metric::REQUESTS_REFUSED, "code" => self.code.as_str()).increment(1);
        let mut response = HttpResponse::build(self.status_code());
        response.content_type(CONTENT_TYPE);
        match self.code.status() {
            401 => drop(response.insert_header((WWW_AUTHENTICATE, "Bearer realm=\"posthaste\""))),
            426 => drop(response.insert_header((UPGRADE, "websocket"))),
            429 => drop(response.insert_header((RETRY_AFTER, self.retry_after.unwrap_or(1)))),
            503 => drop(response.insert_header((RETRY_AFTER, RETRY_AFTER_SECONDS))),
            _ => {}
        }
        if !self.allow.is_empty() {
            response.insert_header((ALLOW, self.allow.join(", ")));
        }
        response.body(serde_json::to_vec(&self.body()).unwrap_or_default())
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        if error.is_unavailable() {
            tracing::warn!(%error, source, "a request could not be served");
            return Self::unavailable();
        }
        tracing::error!(%error, source, "a statement was refused");
        Self::internal()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_code_is_unique_well_formed_and_has_an_error_status() {
        let codes: HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        let titles: HashSet<_> = Code::ALL.iter().map(|code| code.title()).collect();
        assert_eq!((codes.len(), titles.len()), (Code::ALL.len(), Code::ALL.len()));
        for code in Code::ALL {
            let text = code.as_str();
            assert!(text.starts_with(|c: char| c.is_ascii_lowercase()), "{text}");
            assert!(text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c)), "{text}");
            assert!((400..600).contains(&code.status()), "{text}");
            assert!(code.uri().ends_with(text), "{text}");
        }
    }

    #[test]
    fn every_status_that_the_contract_names_has_a_code() {
        for status in [400, 401, 403, 404, 409, 413, 415, 422, 429, 503] {
            assert!(Code::ALL.iter().any(|code| code.status() == status), "{status}");
        }
    }

    #[test]
    fn a_503_says_when_to_come_back_and_a_401_how() {
        assert_eq!(Problem::overloaded().error_response().headers().get(RETRY_AFTER).unwrap(), "1");
        assert_eq!(Problem::unavailable().error_response().headers().get(RETRY_AFTER).unwrap(), "1");
        assert_eq!(Problem::rate_limited(7).error_response().headers().get(RETRY_AFTER).unwrap(), "7");
        assert!(Problem::new(Code::Unauthenticated, "x").error_response().headers().contains_key(WWW_AUTHENTICATE));
        assert_eq!(Problem::method_not_allowed(&["GET"]).error_response().headers().get(ALLOW).unwrap(), "GET");
    }

    #[test]
    fn a_forbidden_target_has_a_code_of_its_own() {
        let errors = |message: &str| Problem::validation(vec![FieldError::new("recipient", message)]).code();
        assert_eq!(errors("target_not_allowed: private"), Code::TargetNotAllowed);
        assert_eq!(errors("must be an address"), Code::ValidationFailed);
    }
}
