//! Tokens for an API key: short-lived access tokens, and refresh tokens that work once.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{CACHE_CONTROL, HeaderValue},
    web::Data,
};
use domain::{
    contract::submission::FieldError,
    token::{self, KEY_PREFIX, RefreshToken, Role, Via},
};
use records::{
    Records,
    refresh::{Grant, NewFamily},
};
use runtime::config::AuthConfig;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;
use web::{
    Web,
    auth::{self, Anyone, Identity},
    body::{ANONYMOUS, JsonBody},
    problem::{Code, Problem},
};

/// Makes tokens.
pub struct Issuer {
    secret: SecretString,
    access: Duration,
    refresh: Duration,
}

impl Issuer {
    /// Signs with `secret`; the settings limit how long tokens are valid.
    pub fn new(secret: SecretString, config: &AuthConfig) -> Self {
        Self { secret, access: config.jwt_expires_in, refresh: config.jwt_refresh_expires_in }
    }

    fn answer(&self, grant: &Grant, refresh: &RefreshToken) -> Result<HttpResponse, Problem> {
        let named = (grant.subject.as_str(), grant.tenant.as_str());
        let access = token::encode_via(&self.secret, named, grant.role, grant.ttl, Some(grant.via));
        let tokens = Tokens {
            access_token: access.map_err(|_| Problem::internal())?,
            refresh_token: refresh.text.expose_secret().to_owned(),
            token_type: "Bearer",
            expires_in: grant.ttl.as_secs(),
        };
        let secret = (CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(HttpResponse::Ok().insert_header(secret).json(tokens))
    }
}

/// The subject of the tokens. An absent field is that of the key.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBody {
    /// The person or program; for a `user`, the user id. Keys of admins, producers and operators may name any person.
    #[schema(max_length = 200, example = "user123")]
    sub: Option<String>,
    /// The role of the tokens, never above the key's: an admin's key may name any role except operator, a producer's
    /// `producer` and `user`.
    #[schema(value_type = Option<String>, example = "user")]
    role: Option<Role>,
    /// Seconds for which each access token is valid, up to `JWT_EXPIRES_IN`.
    #[schema(minimum = 1)]
    ttl: Option<u64>,
}

/// A pair of tokens.
#[derive(Serialize, ToSchema)]
pub struct Tokens {
    /// A JWT, for `Authorization: Bearer`.
    pub access_token: String,
    /// Gets the next pair, once.
    #[schema(example = "phr_…")]
    pub refresh_token: String,
    /// `Bearer`.
    #[schema(value_type = String, example = "Bearer")]
    pub token_type: &'static str,
    /// Seconds for which the access token is valid.
    #[schema(example = 3600)]
    pub expires_in: u64,
}

/// Creates tokens for an API key.
///
/// For programs that pass a credential on, such as a backend to a person's browser: `{"sub": "user123", "role":
/// "user"}`. Each access token names the key in its claim `via`: only a token from an admin's key lets a person erase
/// or export itself. Access tokens are valid for `JWT_EXPIRES_IN`, a refresh token for `JWT_REFRESH_EXPIRES_IN`.
/// Revoking the key ends its refresh tokens at once; access tokens expire.
///
/// Roles: any, with an API key.
#[utoipa::path(post, path = "/api/auth/token", tag = "tokens",
    request_body(content = Option<TokenBody>, example = json!({"sub": "user123", "role": "user"})),
    responses((status = 200, description = "The tokens", body = Tokens)))]
pub async fn issue(
    caller: Anyone,
    web: Data<Web>,
    issuer: Data<Issuer>,
    request: HttpRequest,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    let is_key = auth::bearer(request.headers())?.starts_with(KEY_PREFIX);
    let key: Option<Uuid> = caller.0.subject.parse().ok().filter(|_| is_key);
    let only_keys = || Problem::new(Code::Forbidden, "Use an API key: a token cannot make others; renew it instead.");
    let key = key.ok_or_else(only_keys)?;
    let asked = granted(&caller.0, body.parse_or_default().await?, issuer.access)?;
    let refresh = RefreshToken::generate().map_err(|_| Problem::internal())?;
    let (subject, role, ttl) = asked;
    let family = NewFamily { id: refresh.family, hash: refresh.hash, key, subject: subject.clone(), role, ttl };
    let holds = issuer.refresh;
    let begun = web.queries.run(async move |store| store.refresh_tokens().insert(family, holds).await).await?;
    let revoked = || Problem::new(Code::Unauthenticated, "This API key is revoked; use another one.");
    let via = Via { key, role: caller.0.role };
    issuer.answer(&Grant { tenant: begun.ok_or_else(revoked)?, subject, role, ttl, via }, &refresh)
}

/// The claims that a family may get: never more than the key itself has.
fn granted(key: &Identity, asked: TokenBody, most: Duration) -> Result<(String, Role, Duration), Problem> {
    let mut faults = Vec::new();
    let most_seconds = most.as_secs();
    if asked.ttl.is_some_and(|ttl| !(1..=most_seconds).contains(&ttl)) {
        faults.push(FieldError::new("ttl", format!("must be from 1 to {most_seconds} seconds")));
    }
    if asked.sub.as_deref().is_some_and(|sub| !auth::is_subject(sub)) {
        faults.push(FieldError::new("sub", "must have 1 to 200 bytes and no control characters"));
    }
    if !faults.is_empty() {
        return Err(Problem::validation(faults));
    }
    let role = asked.role.unwrap_or(key.role);
    let subject = asked.sub.unwrap_or_else(|| key.subject.clone());
    if !includes(key.role).contains(&role) {
        let names: Vec<&str> = includes(key.role).iter().map(|role| role.as_str()).collect();
        return Err(Problem::new(
            Code::Forbidden,
            format!("Ask for one of the roles of this key: {}.", names.join(", ")),
        ));
    }
    let speaks_for_others = matches!(key.role, Role::Operator | Role::Admin | Role::Producer);
    if !speaks_for_others && subject != key.subject {
        return Err(Problem::new(Code::Forbidden, "Leave out `sub`: a key of this role speaks for itself alone."));
    }
    let ttl = asked.ttl.map_or(most, Duration::from_secs);
    Ok((subject, role, ttl))
}

/// The roles whose rights are included in a role.
const fn includes(role: Role) -> &'static [Role] {
    match role {
        Role::Operator => Role::ALL,
        Role::Admin => &[Role::Admin, Role::Producer, Role::Agent, Role::User],
        Role::Producer => &[Role::Producer, Role::User],
        Role::Agent => &[Role::Agent],
        Role::User => &[Role::User],
    }
}

/// A refresh token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RefreshBody {
    /// The newest refresh token of its family.
    #[schema(example = "phr_…")]
    refresh_token: String,
}

/// Exchanges a refresh token for the next pair of tokens.
///
/// A refresh token works once. A used one that comes back may be stolen: then its whole family is revoked, and each of
/// its refresh tokens is answered with 401. So of two concurrent requests with the same token one gets a pair, and the
/// other ends the family. A client that did not get the answer to a refresh starts again with the API key.
///
/// Public: the refresh token is the credential.
#[utoipa::path(post, path = "/api/auth/refresh", tag = "tokens", security(()),
    request_body(content = RefreshBody, example = json!({"refresh_token": "phr_…"})),
    responses((status = 200, description = "The next tokens", body = Tokens),
        (status = 401, description = "`unauthenticated`: A valid credential is needed", body = web::problem::ProblemBody,
            content_type = "application/problem+json")))]
pub async fn renew(web: Data<Web>, issuer: Data<Issuer>, body: JsonBody<ANONYMOUS>) -> Result<HttpResponse, Problem> {
    web.migrations.require_current()?;
    let asked: RefreshBody = body.parse().await?;
    let refused = || {
        Problem::new(
            Code::Unauthenticated,
            "Get new tokens with the API key: this refresh token is used, expired or revoked.",
        )
    };
    let (family, old) = RefreshToken::read(&asked.refresh_token).ok_or_else(refused)?;
    if let Some(problem) = web.limits.of_family(family).refusal() {
        return Err(problem);
    }
    let next = RefreshToken::of(family).map_err(|_| Problem::internal())?;
    let (new, holds) = (next.hash, issuer.refresh);
    let grant =
        web.queries.run(async move |store| store.refresh_tokens().rotate(family, old, new, holds).await).await?;
    issuer.answer(&grant.ok_or_else(refused)?, &next)
}

#[cfg(test)]
mod tests {
    use domain::TenantId;

    use super::*;

    fn granted_to(role: Role, body: &str) -> Result<(String, Role, u64), Code> {
        let key = Identity { tenant: TenantId(1), role, subject: "key".to_owned(), via: None };
        let asked = serde_json::from_str(body).unwrap();
        let (subject, role, ttl) = granted(&key, asked, Duration::from_secs(3600)).map_err(|problem| problem.code())?;
        Ok((subject, role, ttl.as_secs()))
    }

    #[test]
    fn without_a_wish_tokens_are_as_the_key() {
        for role in Role::ALL {
            assert_eq!(granted_to(*role, "{}"), Ok(("key".to_owned(), *role, 3600)));
        }
    }

    #[test]
    fn no_key_gives_more_than_it_has() {
        let rank = |role: &Role| match role {
            Role::Operator => 4,
            Role::Admin => 3,
            Role::Producer | Role::Agent => 2,
            Role::User => 1,
        };
        for key in Role::ALL {
            for asked in Role::ALL {
                let given = granted_to(*key, &format!("{{\"role\":\"{asked}\"}}"));
                assert!(given.is_err() || rank(asked) <= rank(key), "{key} gives {asked}");
                assert!(given.is_ok() || key != asked);
            }
        }
        assert_eq!(granted_to(Role::Producer, r#"{"role":"admin"}"#), Err(Code::Forbidden));
        assert_eq!(granted_to(Role::Admin, r#"{"role":"operator"}"#), Err(Code::Forbidden));
        assert_eq!(granted_to(Role::Producer, r#"{"role":"agent"}"#), Err(Code::Forbidden));
    }

    #[test]
    fn only_some_keys_speak_for_others() {
        let for_ada = r#"{"sub":"ada","role":"user","ttl":60}"#;
        assert_eq!(granted_to(Role::Producer, for_ada), Ok(("ada".to_owned(), Role::User, 60)));
        assert_eq!(granted_to(Role::User, for_ada), Err(Code::Forbidden));
        assert_eq!(granted_to(Role::Agent, r#"{"sub":"ada"}"#), Err(Code::Forbidden));
    }

    #[test]
    fn a_wish_that_makes_no_sense_is_named() {
        for bad in [r#"{"ttl":0}"#, r#"{"ttl":3601}"#, r#"{"sub":""}"#, r#"{"sub":"a\nb"}"#] {
            assert_eq!(granted_to(Role::Admin, bad), Err(Code::ValidationFailed), "{bad}");
        }
    }
}
