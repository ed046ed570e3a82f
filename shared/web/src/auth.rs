//! Authentication: turns an API key or a token into an identity. The tenant comes from the credential alone.
//!
//! Keys and tenants are cached for less than half a minute, so under load a request needs no query. A revoked key works for
//! at most that long.

use std::{borrow::Cow, future::Future, net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use actix_web::{
    FromRequest, HttpMessage, HttpRequest,
    dev::Payload,
    http::header::{AUTHORIZATION, HeaderMap},
    web::Data,
};
use chrono::{DateTime, Utc};
use domain::{
    TenantId,
    acceptance::Hash,
    contract::submission::NAME_BYTES_MAX,
    token::{self, KEY_PREFIX, KeyForm, Role, Via},
};
use records::{Records, keys::KeyRow};
use secrecy::SecretString;
use store::Store;
use url::form_urlencoded;
use uuid::Uuid;

use crate::{
    cache::Cache,
    client,
    migration_state::MigrationState,
    permits::FirstLookUps,
    problem::{Code, Problem},
    query_runner::QueryRunner,
};

/// Lifetime of a cached key. With the cache's grace and the look-up itself, a revoked key is refused everywhere within 30
/// seconds.
const FOUND_TTL: Duration = Duration::from_secs(25);
/// Lifetime of a cached "there is no such key": short, so that a new key works at once.
const MISSING_TTL: Duration = Duration::from_secs(2);
/// Bound on a look-up. It precedes the commit, and both together have about two seconds.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(1);
/// Cached keys that exist, and as many that do not; about 200 bytes each.
const KEYS_MAX: usize = 10_000;
/// Look-ups at once of keys that this process has not seen.
const LOOK_UPS_MAX: usize = 4;
/// Cached tenants.
const TENANTS_MAX: usize = 10_000;
/// Longest accepted credential; a token has about 300 bytes.
const CREDENTIAL_BYTES_MAX: usize = 8 * 1024;
/// Path prefix of the WebSocket routes.
const SOCKETS: &str = "/ws/";
/// Longest tenant slug, as in the schema.
const SLUG_BYTES_MAX: usize = 63;

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its tenant.
    pub tenant: TenantId,
    /// The role, which decides what it may do.
    pub role: Role,
    /// The `sub` of a token, or the id of a key.
    pub subject: String,
    /// The key that issued the token. `None` for a key itself, and for a token that was signed directly with `JWT_SECRET`.
    pub via: Option<Via>,
}

impl Identity {
    /// The tenant whose data the caller sees; `None` for an operator, which sees all tenants.
    pub fn scope(&self) -> Option<TenantId> {
        (self.role != Role::Operator).then_some(self.tenant)
    }

    /// The actor's name in the audit log.
    pub fn actor(&self) -> String {
        self.actor_as(&self.subject)
    }

    /// As [`Identity::actor`], with `name` instead of the subject.
    pub fn actor_as(&self, name: &str) -> String {
        let via = self.via.map(|via| via.key.to_string()).filter(|key| *key != self.subject);
        let via = via.map(|key| format!(" via key:{key}")).unwrap_or_default();
        format!("{}:{name}{via}", self.role)
    }
}

/// The gate's finding about the credential of a request; the extractors read it.
pub struct Caller(Result<Arc<Identity>, Option<Problem>>);

impl Caller {
    /// Wraps the result of authentication, which runs once per request.
    pub fn new(identified: Result<Arc<Identity>, Problem>) -> Self {
        Self(identified.map_err(Some))
    }

    /// The identity, if the credential is valid.
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.0.as_ref().ok()
    }

    fn take(&mut self) -> Result<Arc<Identity>, Problem> {
        match &mut self.0 {
            Ok(identity) => Ok(Arc::clone(identity)),
            Err(problem) => Err(problem.take().unwrap_or_else(|| refuse("Send a credential that holds."))),
        }
    }
}

/// Authenticates callers.
pub struct Credentials {
    queries: QueryRunner,
    jwt_secret: SecretString,
    keys: Cache<Hash, Arc<Identity>>,
    /// Keys that do not exist, in a cache of their own, so that a flood of them evicts no real key.
    missing: Cache<Hash, ()>,
    /// Permits for look-ups of keys that this process has not seen.
    first_look_ups: FirstLookUps,
    tenants: Cache<String, TenantId>,
}

impl Credentials {
    /// Checks tokens against `jwt_secret` and keys against the database.
    pub fn new(queries: QueryRunner, jwt_secret: SecretString) -> Self {
        Self {
            queries,
            jwt_secret,
            keys: Cache::new(KEYS_MAX),
            missing: Cache::new(KEYS_MAX),
            first_look_ups: FirstLookUps::new(LOOK_UPS_MAX),
            tenants: Cache::new(TENANTS_MAX),
        }
    }

    /// Authenticates a credential that comes from `address`. An API key that needs a look-up waits for a permit only if
    /// `may_wait`.
    pub async fn identify(
        &self,
        credential: &str,
        address: Option<IpAddr>,
        may_wait: bool,
    ) -> Result<Arc<Identity>, Problem> {
        if credential.starts_with(KEY_PREFIX) {
            self.by_key(credential, address, may_wait).await
        } else {
            self.by_token(credential).await
        }
    }

    /// Whether only the database can tell if a credential is invented: it is an API key that the caches know neither as
    /// existing nor as missing. A checksum in the key would not help: its algorithm is public.
    pub fn is_unseen(&self, credential: &str) -> bool {
        let is_seen = |hash: &Hash| self.keys.contains(hash) || self.missing.contains_fresh(hash);
        KeyForm::of(credential).is_some() && !is_seen(&token::hash_key(credential))
    }

    /// When a valid credential expires; a key never does.
    pub fn ends(&self, credential: &str) -> Option<DateTime<Utc>> {
        if credential.starts_with(KEY_PREFIX) {
            return None;
        }
        // A token that has just expired counts as expired now.
        let claims = token::decode(&self.jwt_secret, credential).ok();
        Some(claims.and_then(|claims| DateTime::from_timestamp(claims.exp, 0)).unwrap_or_default())
    }

    /// The tenant with this slug. Missing tenants are not cached: only a token or a publisher of ours can name one, and a
    /// publish that was refused and is replayed right after its tenant was created must find it.
    pub async fn tenant(&self, slug: &str) -> Result<Option<TenantId>, Problem> {
        if !is_slug(slug) {
            return Ok(None);
        }
        if let Some(remembered) = self.tenants.get(slug) {
            return Ok(Some(remembered));
        }
        let asked = slug.to_owned();
        let found =
            self.queries.run_within(LOOK_UP_TIMEOUT, async move |store| store.tenants().id(&asked).await).await?;
        if let Some(tenant) = found {
            self.tenants.put(slug.to_owned(), tenant, FOUND_TTL);
        }
        Ok(found)
    }

    /// Drops a revoked key from the cache of this process.
    pub fn forget_key(&self, id: Uuid) {
        let id = id.to_string();
        self.keys.forget_where(|identity| identity.subject == id);
    }

    async fn by_key(&self, key: &str, address: Option<IpAddr>, may_wait: bool) -> Result<Arc<Identity>, Problem> {
        let unknown = || refuse("This API key is unknown or revoked; make a new one with `posthaste key create`.");
        KeyForm::of(key).ok_or_else(unknown)?;
        let hash = token::hash_key(key);
        if let Some(identity) = self.keys.get(&hash) {
            return Ok(identity);
        }
        if self.missing.get(&hash).is_some() {
            return Err(unknown());
        }
        let identity = self.look_up(hash, address, may_wait).await?;
        match &identity {
            Some(identity) => self.keys.put(hash, Arc::clone(identity), FOUND_TTL),
            None => {
                self.keys.forget(&hash);
                self.missing.put(hash, (), MISSING_TTL);
            }
        }
        identity.ok_or_else(unknown)
    }

    /// Looks a key up in the database. Few unseen keys are looked up at once, so that invented keys leave connections to
    /// others.
    async fn look_up(
        &self,
        hash: Hash,
        address: Option<IpAddr>,
        may_wait: bool,
    ) -> Result<Option<Arc<Identity>>, Problem> {
        let permits = if self.keys.contains(&hash) {
            None
        } else {
            let permits = match may_wait {
                true => self.first_look_ups.enter(address, LOOK_UP_TIMEOUT).await,
                false => self.first_look_ups.try_enter(address),
            };
            Some(permits.ok_or_else(Problem::unavailable)?)
        };
        // The permits move into the query, which may outlive the caller's timeout.
        let query = async move |store: Store| {
            let found = store.api_keys().by_hash(&hash).await;
            drop(permits);
            found
        };
        let found = self.queries.run_within(LOOK_UP_TIMEOUT, query).await?;
        let identity = |KeyRow { id, tenant_id, role, .. }| Identity {
            tenant: tenant_id,
            role,
            subject: id.to_string(),
            via: None,
        };
        Ok(found.map(|key| Arc::new(identity(key))))
    }

    async fn by_token(&self, text: &str) -> Result<Arc<Identity>, Problem> {
        let claims = token::decode(&self.jwt_secret, text)
            .map_err(|error| Problem::new(Code::Unauthenticated, format!("Get a new token: {error}.")))?;
        if !is_subject(&claims.sub) {
            return Err(refuse("Get a new token: its `sub` must have 1 to 200 bytes and no control characters."));
        }
        let tenant =
            self.tenant(&claims.tenant).await?.ok_or_else(|| refuse("Get a new token: its tenant is unknown."))?;
        Ok(Arc::new(Identity { tenant, role: claims.role, subject: claims.sub, via: claims.via }))
    }
}

fn refuse(detail: &'static str) -> Problem {
    Problem::new(Code::Unauthenticated, detail)
}

/// Whether a text can be a slug. Other texts cannot be in the database, and some cannot even be sent to it.
fn is_slug(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=SLUG_BYTES_MAX).contains(&text.len()) && text.bytes().all(plain)
}

/// Whether a text can be the `sub` of a token.
pub fn is_subject(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// The credential in `Authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let missing = || refuse("Send `Authorization: Bearer <API key or token>`.");
    let header = headers.get(AUTHORIZATION).ok_or_else(missing)?;
    let (scheme, credential) = header.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(missing)?;
    let credential = credential.trim();
    let usable =
        scheme.eq_ignore_ascii_case("bearer") && !credential.is_empty() && credential.len() <= CREDENTIAL_BYTES_MAX;
    if usable { Ok(credential) } else { Err(missing()) }
}

/// The credential of a request: from the header, or from the query when a browser opens a socket and cannot send the
/// header.
pub fn presented<'a>(headers: &'a HeaderMap, path: &str, query: &str) -> Result<Cow<'a, str>, Problem> {
    let by_header = bearer(headers);
    if by_header.is_ok() || headers.contains_key(AUTHORIZATION) || !path.starts_with(SOCKETS) {
        return by_header.map(Cow::Borrowed);
    }
    let token = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "token").map(|(_, token)| token);
    // Proxies log query strings. A token in a log expires soon; a key does not.
    let is_usable =
        |token: &Cow<'_, str>| (1..=CREDENTIAL_BYTES_MAX).contains(&token.len()) && !token.starts_with(KEY_PREFIX);
    let usable = token.filter(is_usable);
    let missing = || refuse("Open the socket with `?token=<token>`; send an API key in `Authorization`.");
    usable.map(|token| Cow::Owned(token.into_owned())).ok_or_else(missing)
}

async fn authorize(request: HttpRequest, roles: &'static [Role]) -> Result<Arc<Identity>, Problem> {
    let credentials = request.app_data::<Data<Credentials>>().ok_or_else(Problem::internal)?;
    let migrations = request.app_data::<Data<MigrationState>>().ok_or_else(Problem::internal)?;
    let found = request.extensions_mut().get_mut::<Caller>().map(Caller::take);
    let identity = match found {
        Some(found) => found?,
        None => {
            let credential = presented(request.headers(), request.match_info().as_str(), request.query_string())?;
            credentials.identify(&credential, client::address(&request), true).await?
        }
    };
    if !roles.contains(&identity.role) {
        let names: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
        let detail = format!("Use a credential with one of these roles: {}.", names.join(", "));
        return Err(Problem::new(Code::Forbidden, detail));
    }
    migrations.require_current()?;
    Ok(identity)
}

/// Defines one extractor per set of roles, so that a handler's signature says who may call it.
macro_rules! extractors {
    ($($(#[$doc:meta])* $name:ident: $roles:expr;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(pub Arc<Identity>);

        impl FromRequest for $name {
            type Error = Problem;
            type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

            fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
                let request = request.clone();
                Box::pin(async move { authorize(request, $roles).await.map($name) })
            }
        }
    )+};
}

extractors! {
    /// May submit.
    Producer: &[Role::Producer, Role::Admin];
    /// May read messages and cancel them.
    Reader: &[Role::Producer, Role::Admin, Role::Operator];
    /// May manage its tenant; an operator manages all of them.
    Admin: &[Role::Admin, Role::Operator];
    /// Works across tenants.
    Operator: &[Role::Operator];
    /// Any authenticated caller.
    Anyone: Role::ALL;
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn credential(header: &'static [u8]) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_bytes(header).unwrap());
        bearer(&headers).ok().map(str::to_owned)
    }

    #[test]
    fn a_bearer_credential_is_found_whatever_the_case_of_the_scheme() {
        assert_eq!(credential(b"Bearer ph_abc").as_deref(), Some("ph_abc"));
        assert_eq!(credential(b"bearer   ph_abc ").as_deref(), Some("ph_abc"));
    }

    #[test]
    fn anything_else_is_no_credential() {
        for bad in [&b""[..], b"Bearer", b"Bearer ", b"Basic ph_abc", b"ph_abc", b"Bearer\tph_abc", b"Bearer \xff"] {
            assert_eq!(credential(bad), None, "{bad:?}");
        }
        assert_eq!(bearer(&HeaderMap::new()).unwrap_err().code(), Code::Unauthenticated);
    }

    #[test]
    fn a_query_holds_a_credential_for_sockets_only_and_never_against_the_header() {
        let none = HeaderMap::new();
        let presented = |headers: &HeaderMap, path, query| presented(headers, path, query).ok().map(Cow::into_owned);
        assert_eq!(presented(&none, "/ws/notifications/ada", "since=1&token=a.b%2Bc").as_deref(), Some("a.b+c"));
        assert_eq!(presented(&none, "/api/notifications", "token=a.b.c"), None);
        assert_eq!(presented(&none, "/ws/notifications/ada", "token="), None);
        assert_eq!(presented(&none, "/ws/notifications/ada", "token=ph_key"), None, "proxies log it");
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer ph_header"));
        assert_eq!(presented(&headers, "/ws/notifications/ada", "token=query").as_deref(), Some("ph_header"));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Basic x"));
        assert_eq!(presented(&headers, "/ws/notifications/ada", "token=query"), None);
    }

    #[test]
    fn only_what_can_be_a_slug_is_looked_up() {
        assert!(is_slug("demo-1"));
        for bad in ["", "Demo", "de mo", "d\0", &"x".repeat(64)] {
            assert!(!is_slug(bad), "{bad}");
        }
    }

    #[test]
    fn an_operator_sees_every_tenant_and_nobody_else_does() {
        for role in Role::ALL {
            let identity = Identity { tenant: TenantId(7), role: *role, subject: "x".to_owned(), via: None };
            assert_eq!(identity.scope().is_none(), *role == Role::Operator);
        }
    }
}
