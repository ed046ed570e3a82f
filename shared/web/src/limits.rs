//! Rate limits. There is a bucket per credential, per tenant (all its credentials together), per address without a
//! credential, per family of refresh tokens, per sender of webhooks, and per address whose API keys have to be looked up.
//!
//! A bucket holds as many requests as its limit and refills evenly over the window. Buckets live in memory and each process
//! has its own. A check costs one hash and one lock, and no query.

use std::{
    collections::{HashMap, hash_map::RandomState},
    fmt,
    hash::{BuildHasher, Hash},
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use domain::TenantId;
use governor::{
    Quota, RateLimiter,
    clock::{Clock, MonotonicClock},
    middleware::StateInformationMiddleware,
    nanos::Nanos,
    state::{StateStore, keyed::ShrinkableKeyedStateStore},
};
use records::Records;
use runtime::config::RateConfig;
use store::Store;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{auth::Identity, cache::evict_lowest, client::Network, problem::Problem};

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// The limit of an address without a credential is that of a credential divided by this.
const ADDRESS_SHARE: u32 = 100;
/// Smallest limit of an address, unless a credential's limit is lower.
const ADDRESS_MIN: u32 = 100;
/// An address may cause look-ups of API keys: a credential's limit divided by this, and at least [`ADDRESS_MIN`]. Behind a
/// proxy that is not trusted, all real keys are looked up for one address after a start.
const LOOK_UP_SHARE: u32 = 10;
/// Senders of webhooks get so many times the limit of a credential: a provider sends the events of many people from one
/// address.
const WEBHOOK_TIMES: u32 = 10;
/// All credentials of a tenant together get so many times the limit of one. This bounds a caller that issues tokens for
/// ever new subjects, each with a full bucket.
const TENANT_TIMES: u32 = 10;
/// Most buckets of one kind, 16 bytes each. Beyond that the fullest ones are evicted: they lose least by starting again.
const BUCKETS_MAX: usize = 200_000;
/// How often full buckets are dropped and the tenants' own limits are reloaded.
const KEEP_UP_EVERY: Duration = Duration::from_secs(5);
/// The window of a tenant's own limit.
const MINUTE: Duration = Duration::from_secs(60);

/// All rate limits of this process.
pub struct Limits {
    credentials: Buckets,
    addresses: Buckets,
    webhooks: Buckets,
    /// Per address, for requests with any refresh token. The token's family is in the body, so its bucket is charged later.
    refreshes: Buckets,
    families: Buckets,
    /// Per address, for look-ups of API keys. If the bucket is empty, a key is refused only if it cannot be looked up at
    /// once.
    look_ups: Buckets,
    /// Per tenant.
    shared: Buckets,
    tenants: RwLock<HashMap<TenantId, Arc<TenantBuckets>>>,
    /// How often the tenants' own limits were set.
    changes: AtomicU64,
    hasher: RandomState,
}

impl Limits {
    /// Full buckets with the sizes from the settings.
    pub fn new(rate: RateConfig) -> Self {
        let RateConfig { window, requests } = rate;
        let address = requests.min(ADDRESS_MIN.max(requests / ADDRESS_SHARE));
        Self {
            credentials: Buckets::new(requests, window),
            addresses: Buckets::new(address, window),
            webhooks: Buckets::new(requests.saturating_mul(WEBHOOK_TIMES), window),
            refreshes: Buckets::new(requests, window),
            families: Buckets::new(address, window),
            look_ups: Buckets::new(ADDRESS_MIN.max(requests / LOOK_UP_SHARE), window),
            shared: Buckets::new(requests.saturating_mul(TENANT_TIMES), window),
            tenants: RwLock::default(),
            changes: AtomicU64::new(0),
            hasher: RandomState::new(),
        }
    }

    /// Charges the bucket of a credential and that of its tenant. A token shares the bucket of the key whose id is its
    /// subject.
    pub fn of_credential(&self, identity: &Identity) -> RateLimitDecision {
        let key = self.hasher.hash_one((identity.tenant, &identity.subject));
        let tenant = self.hasher.hash_one(identity.tenant);
        let own = self.tenants.read().unwrap_or_else(PoisonError::into_inner).get(&identity.tenant).cloned();
        let (each, all) = own.as_deref().map_or((&self.credentials, &self.shared), |own| {
            // The buckets with the default limit do not say which tenant they belong to, so each one moves when it is used.
            own.each.adopt(key, &self.credentials);
            own.all.adopt(tenant, &self.shared);
            (&own.each, &own.all)
        });
        let decision = each.take(key);
        if decision.retry_after.is_some() {
            return decision;
        }
        Some(all.take(tenant)).filter(|decision| decision.retry_after.is_some()).unwrap_or(decision)
    }

    /// Charges the address's bucket for refresh tokens.
    pub fn of_refreshes(&self, address: Option<IpAddr>) -> RateLimitDecision {
        self.refreshes.take(self.hash(address))
    }

    /// Charges the bucket of a family of refresh tokens.
    pub fn of_family(&self, family: Uuid) -> RateLimitDecision {
        self.families.take(self.hasher.hash_one(family))
    }

    /// Charges the bucket of an address.
    pub fn of_address(&self, address: Option<IpAddr>) -> RateLimitDecision {
        self.addresses.take(self.hash(address))
    }

    /// Charges the address's bucket for look-ups of API keys that are not cached.
    pub fn of_look_ups(&self, address: Option<IpAddr>) -> RateLimitDecision {
        self.look_ups.take(self.hash(address))
    }

    /// Charges the address's bucket for webhooks.
    pub fn of_webhooks(&self, address: Option<IpAddr>) -> RateLimitDecision {
        self.webhooks.take(self.hash(address))
    }

    fn hash(&self, address: Option<IpAddr>) -> u64 {
        self.hasher.hash_one(address.map(Network::of))
    }

    /// Loads the tenants' own limits from the database.
    pub async fn read(&self, store: &Store) {
        let changes = self.changes.load(Ordering::Acquire);
        match store.limits().http().await {
            Ok(own) if self.changes.load(Ordering::Acquire) == changes => self.set(own),
            // A limit that was set during the query is newer than this result.
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "the limits of tenants stay as they were"),
        }
    }

    /// Sets the tenants' own limits. A change refills no bucket: the used share stays the same.
    pub fn set(&self, own: Vec<(TenantId, i32)>) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        self.changes.fetch_add(1, Ordering::AcqRel);
        let mut old = std::mem::take(&mut *tenants);
        for (tenant, limit) in own {
            let Ok(limit) = u32::try_from(limit) else { continue };
            let own = match old.remove(&tenant) {
                Some(old) if old.each.limit == limit => old,
                Some(old) => {
                    let own = TenantBuckets::new(limit);
                    own.each.adopt_all(&old.each);
                    own.all.adopt_all(&old.all);
                    Arc::new(own)
                }
                None => Arc::new(TenantBuckets::new(limit)),
            };
            tenants.insert(tenant, own);
        }
        for old in old.into_values() {
            self.credentials.adopt_all(&old.each);
            self.shared.adopt_all(&old.all);
        }
    }

    /// The highest limit that an admin may set for its own tenant: the default of the settings.
    pub fn usual_per_minute(&self) -> u64 {
        let credentials = &self.credentials;
        let per_window = u128::from(credentials.limit) * MINUTE.as_millis();
        u64::try_from(per_window / credentials.window.as_millis().max(1)).unwrap_or(u64::MAX).max(1)
    }

    fn shrink(&self) {
        let Self { credentials, addresses, webhooks, refreshes, families, look_ups, shared, .. } = self;
        for buckets in [credentials, addresses, webhooks, refreshes, families, look_ups, shared] {
            buckets.limiter.retain_recent();
        }
        for own in self.tenants.read().unwrap_or_else(PoisonError::into_inner).values() {
            own.each.limiter.retain_recent();
            own.all.limiter.retain_recent();
        }
    }
}

/// The buckets of a tenant with its own limit.
struct TenantBuckets {
    /// Per credential.
    each: Buckets,
    /// One bucket for all credentials together.
    all: Buckets,
}

impl TenantBuckets {
    fn new(limit: u32) -> Self {
        Self { each: Buckets::new(limit, MINUTE), all: Buckets::new(limit.saturating_mul(TENANT_TIMES), MINUTE) }
    }
}

/// Reloads the tenants' own limits and drops full buckets periodically, until stopped.
pub async fn keep_up(limits: &Limits, store: Store, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(KEEP_UP_EVERY)).await.is_some() {
        limits.shrink();
        limits.read(&store).await;
    }
}

/// The result of charging a bucket.
#[derive(Clone, Debug)]
pub struct RateLimitDecision {
    limit: HeaderValue,
    remaining: u32,
    /// Seconds until the bucket is full.
    reset: u64,
    /// Seconds until the next request is allowed, if this one was refused.
    retry_after: Option<u64>,
}

impl RateLimitDecision {
    /// The problem to answer with, if the request was refused.
    pub fn refusal(&self) -> Option<Problem> {
        self.retry_after.map(Problem::rate_limited)
    }

    /// Writes the rate limit headers.
    pub fn write(self, headers: &mut HeaderMap) {
        headers.insert(LIMIT, self.limit);
        headers.insert(REMAINING, self.remaining.into());
        headers.insert(RESET, self.reset.into());
    }
}

type Limiter = RateLimiter<u64, States, MonotonicClock, StateInformationMiddleware>;

/// Buckets of one size.
struct Buckets {
    limit: u32,
    window: Duration,
    header: HeaderValue,
    /// Time until one request is refilled.
    each: Duration,
    limiter: Limiter,
    /// The state of the limiter, in nanoseconds since `start`.
    states: States,
    start: Instant,
}

impl fmt::Debug for Buckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {:?}", self.limit, self.window)
    }
}

impl Buckets {
    fn new(limit: u32, window: Duration) -> Self {
        let size = NonZeroU32::new(limit).unwrap_or(NonZeroU32::MIN);
        let each = (window / size.get()).max(Duration::from_nanos(1));
        // `with_period` returns `None` only for a period of zero.
        let quota = Quota::with_period(each).unwrap_or_else(|| Quota::per_second(size)).allow_burst(size);
        let states = States::default();
        let limiter = Limiter::new(quota, states.clone(), MonotonicClock);
        // The limiter started some nanoseconds earlier. The difference makes no bucket emptier when it moves.
        let start = MonotonicClock.now();
        Self { limit: size.get(), window, header: size.get().into(), each, limiter, states, start }
    }

    /// Moves a bucket from buckets of another size, if it exists there.
    fn adopt(&self, key: u64, old: &Self) {
        let state = old.states.lock().remove(&key);
        if let Some(state) = state {
            let state = self.converted(state, old);
            raise(&mut self.states.lock(), key, state);
        }
    }

    /// Moves all buckets from buckets of another size.
    fn adopt_all(&self, old: &Self) {
        let moved = std::mem::take(&mut *old.states.lock());
        let mut states = self.states.lock();
        for (key, state) in moved {
            raise(&mut states, key, self.converted(state, old));
        }
    }

    /// Converts the state of a bucket of `old` so that the same share of this limit is used, in whole requests.
    fn converted(&self, state: Nanos, old: &Self) -> Nanos {
        let now = MonotonicClock.now();
        let full_at = old.start + Duration::from_nanos(state.as_u64());
        let used = full_at.saturating_duration_since(now).div_duration_f64(old.window).min(1.0);
        let until_full = self.each.mul_f64((used * f64::from(self.limit)).round());
        Nanos::from(now.saturating_duration_since(self.start) + until_full)
    }

    fn take(&self, key: u64) -> RateLimitDecision {
        let decision = |remaining, reset, retry_after| RateLimitDecision {
            limit: self.header.clone(),
            remaining,
            reset,
            retry_after,
        };
        match self.limiter.check_key(&key) {
            Ok(state) => {
                let left = state.remaining_burst_capacity();
                let missing = u128::from(self.limit.saturating_sub(left)) * self.window.as_nanos();
                decision(left, seconds(missing / u128::from(self.limit)), None)
            }
            Err(refused) => {
                let wait = refused.wait_time_from(MonotonicClock.now());
                decision(0, seconds(self.window.as_nanos()), Some(seconds(wait.as_nanos()).max(1)))
            }
        }
    }
}

/// Whole seconds, rounded up: a caller that waits so long is not refused again.
fn seconds(nanos: u128) -> u64 {
    u64::try_from(nanos.div_ceil(1_000_000_000)).unwrap_or(u64::MAX)
}

/// The state of each bucket: the time when it will be full. The keys are already hashes with a secret seed.
#[derive(Clone, Default)]
struct States(Arc<Mutex<StateMap>>);

type StateMap = HashMap<u64, Nanos, IdentityHasher>;

impl States {
    fn lock(&self) -> MutexGuard<'_, StateMap> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("States")
    }
}

impl StateStore for States {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut states = self.lock();
        if let Some(state) = states.get_mut(key) {
            let (taken, next) = decide(Some(*state))?;
            *state = next;
            return Ok(taken);
        }
        let (taken, next) = decide(None)?;
        raise(&mut states, *key, next);
        Ok(taken)
    }
}

/// Stores the time when a bucket will be full, unless a later time is stored. If the map is full, the buckets that will be
/// full first are evicted: they had the fewest requests lately.
fn raise(states: &mut StateMap, key: u64, full_at: Nanos) {
    if states.len() >= BUCKETS_MAX && !states.contains_key(&key) {
        evict_lowest(states, |full_at| *full_at);
    }
    let noted = states.entry(key).or_insert(full_at);
    *noted = full_at.max(*noted);
}

impl ShrinkableKeyedStateStore<u64> for States {
    fn retain_recent(&self, drop_below: Nanos) {
        let mut states = self.lock();
        states.retain(|_, state| *state > drop_below);
        if states.capacity() > 4 * states.len().max(1024) {
            states.shrink_to_fit();
        }
    }

    fn len(&self) -> usize {
        self.lock().len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A hasher that passes hashes through unchanged.
#[derive(Clone, Copy, Default)]
struct IdentityHasher;

impl BuildHasher for IdentityHasher {
    type Hasher = BuildIdentityHasher;

    fn build_hasher(&self) -> BuildIdentityHasher {
        BuildIdentityHasher(0)
    }
}

struct BuildIdentityHasher(u64);

impl std::hash::Hasher for BuildIdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.hash(self);
    }

    fn write_u64(&mut self, number: u64) {
        self.0 ^= number;
    }
}

#[cfg(test)]
mod tests {
    use domain::token::Role;

    use super::*;

    fn limits(requests: u32) -> Limits {
        Limits::new(RateConfig { window: MINUTE, requests })
    }

    fn identity(tenant: i32, subject: &str) -> Identity {
        Identity { tenant: TenantId(tenant), role: Role::Producer, subject: subject.to_owned(), via: None }
    }

    fn shown(decision: &RateLimitDecision) -> (&str, u32, Option<u64>) {
        (decision.limit.to_str().unwrap(), decision.remaining, decision.retry_after)
    }

    #[test]
    fn each_credential_has_a_bucket_of_its_own() {
        let limits = limits(3);
        let ada = identity(1, "ada");
        for left in [2, 1, 0] {
            assert_eq!(shown(&limits.of_credential(&ada)), ("3", left, None));
        }
        let refused = limits.of_credential(&ada);
        assert!(refused.refusal().is_some());
        // A pause of the machine refills some of the bucket. It does not happen every time.
        let exhausted = |n| {
            let one = identity(3, &format!("one{n}"));
            (0..3).for_each(|_| drop(limits.of_credential(&one)));
            limits.of_credential(&one)
        };
        let third = |decision: &RateLimitDecision| shown(decision) == ("3", 0, Some(20));
        assert!((0..10).map(exhausted).any(|decision| third(&decision)), "a third of a minute until the next");
        assert!(limits.of_credential(&identity(1, "eve")).refusal().is_none());
        assert!(limits.of_credential(&identity(2, "ada")).refusal().is_none());
    }

    #[test]
    fn ever_new_subjects_of_a_tenant_come_no_further_than_ten_of_them() {
        let limits = limits(60);
        limits.set(vec![(TenantId(2), 6)]);
        for (tenant, wanted) in [(1, 600), (2, 60)] {
            let taken = (0..1200).filter(|n| {
                let subject = format!("subject{n}");
                limits.of_credential(&identity(tenant, &subject)).refusal().is_none()
            });
            let taken = taken.count();
            // A bucket of 600 refills ten requests for each second that the test takes.
            assert!((wanted..wanted + wanted / 2).contains(&taken), "{taken} of tenant {tenant}");
        }
        assert!(limits.of_credential(&identity(3, "ada")).refusal().is_none(), "another tenant's is untouched");
    }

    #[test]
    fn a_family_of_refresh_tokens_has_a_bucket_of_its_own() {
        let limits = limits(3);
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let left: Vec<bool> = (0..4).map(|_| limits.of_family(one).refusal().is_none()).collect();
        assert_eq!(left, [true, true, true, false]);
        assert!(limits.of_family(other).refusal().is_none());
        assert!(limits.of_refreshes(None).refusal().is_none());
    }

    #[test]
    fn a_flood_of_new_buckets_leaves_the_emptiest_as_they_are() {
        let slow = Buckets::new(2, Duration::from_secs(86_400));
        slow.take(0);
        slow.take(0);
        for key in 1..u64::try_from(BUCKETS_MAX).unwrap() + 10 {
            slow.take(key);
        }
        assert!(slow.take(0).refusal().is_some(), "whoever has used it up does not begin anew");
        assert!(slow.limiter.len() <= BUCKETS_MAX);
    }

    #[test]
    fn an_address_has_a_hundredth_and_never_less_than_a_hundred_or_more_than_a_credential() {
        for (requests, wanted) in [(10_000, "100"), (50_000, "500"), (500, "100"), (7, "7")] {
            assert_eq!(shown(&limits(requests).of_address(None)).0, wanted);
        }
        assert_eq!(shown(&limits(10_000).of_webhooks(None)).0, "100000");
        assert_eq!(shown(&limits(u32::MAX).of_webhooks(None)).0, u32::MAX.to_string());
    }

    #[test]
    fn neighbours_in_one_ipv6_network_share_a_bucket_and_others_do_not() {
        let limits = limits(1);
        let refused = |address: &str| limits.of_address(Some(address.parse().unwrap())).refusal().is_some();
        assert!(!refused("2001:db8::1") && refused("2001:db8::ffff:2"));
        assert!(!refused("2001:db8:0:1::1") && !refused("10.0.0.1") && !refused("10.0.0.2"));
        assert!(refused("::ffff:10.0.0.1"), "the same address in other clothes");
        assert!(limits.of_webhooks(Some("10.0.0.1".parse().unwrap())).refusal().is_none());
    }

    #[test]
    fn a_tenant_with_a_limit_of_its_own_has_that_and_keeps_its_buckets_while_it_stands() {
        let limits = limits(100);
        let (ada, bob) = (identity(1, "ada"), identity(2, "bob"));
        limits.set(vec![(TenantId(1), 2)]);
        assert_eq!(shown(&limits.of_credential(&ada)), ("2", 1, None));
        limits.set(vec![(TenantId(1), 2), (TenantId(3), -1)]);
        assert_eq!(shown(&limits.of_credential(&ada)), ("2", 0, None));
        assert_eq!(shown(&limits.of_credential(&bob)), ("100", 99, None));
        limits.set(Vec::new());
        assert_eq!(shown(&limits.of_credential(&identity(1, "new"))).0, "100");
    }

    #[test]
    fn a_changed_limit_refills_no_bucket() {
        let limits = Limits::new(RateConfig { window: Duration::from_secs(86_400), requests: 100 });
        let (ada, bob) = (identity(1, "ada"), identity(1, "bob"));
        let left = |who: &Identity| shown(&limits.of_credential(who)).1;
        (0..49).for_each(|_| drop(limits.of_credential(&ada)));
        assert_eq!((left(&ada), left(&bob)), (50, 99));
        // Each check takes one more. After a pause of the machine less is used, as these windows are minutes.
        limits.set(vec![(TenantId(1), 10)]);
        assert!((4..=7).contains(&left(&ada)), "half of ten were used");
        assert_eq!(left(&bob), 9, "a hundredth of ten is nothing");
        limits.set(vec![(TenantId(1), 5)]);
        assert!((1..=3).contains(&left(&ada)), "six of ten are three of five");
        limits.set(Vec::new());
        assert!((19..=60).contains(&left(&ada)), "four of five are eighty of a hundred");
        while limits.of_credential(&ada).refusal().is_none() {}
        let after = |own| {
            limits.set(own);
            (0..200).filter(|_| limits.of_credential(&ada).refusal().is_none()).count()
        };
        let regained: usize = (0..20).map(|_| after(vec![(TenantId(1), 50)]) + after(Vec::new())).sum();
        assert!(regained < 100, "changes to and fro gave {regained} back");
    }

    #[test]
    fn all_credentials_of_a_tenant_together_keep_what_they_used() {
        let limits = limits(10);
        let spend = |from: usize, to: usize| {
            (from..to).filter(|n| limits.of_credential(&identity(1, &format!("s{n}"))).refusal().is_none()).count()
        };
        limits.set(vec![(TenantId(1), 5)]);
        assert!((50..60).contains(&spend(0, 80)));
        limits.set(vec![(TenantId(1), 6)]);
        assert!(spend(80, 160) < 10, "a bucket of sixty has one more each second");
        limits.set(Vec::new());
        assert!(spend(160, 240) < 15);
    }

    #[test]
    fn look_ups_of_an_address_are_apart_from_its_other_requests() {
        let limits = limits(2_000);
        let address = Some("192.0.2.1".parse().unwrap());
        let taken = (0..400).filter(|_| limits.of_look_ups(address).refusal().is_none()).count();
        assert!((200..300).contains(&taken), "{taken}: a tenth of what a credential has");
        assert!(limits.of_address(address).refusal().is_none() && limits.of_webhooks(address).refusal().is_none());
        assert!(limits.of_look_ups(Some("192.0.2.2".parse().unwrap())).refusal().is_none());
        assert_eq!(shown(&self::limits(7).of_look_ups(None)).0, "100");
    }

    #[test]
    fn memory_is_bounded_and_full_buckets_are_forgotten() {
        let fast = Buckets::new(1_000_000, Duration::from_secs(1));
        for key in 0..u64::try_from(BUCKETS_MAX).unwrap() + 10 {
            fast.take(key);
            assert!(fast.limiter.len() <= BUCKETS_MAX);
        }
        let start = Instant::now();
        while !fast.limiter.is_empty() {
            assert!(start.elapsed() < Duration::from_secs(120));
            fast.limiter.retain_recent();
        }
        let slow = Buckets::new(1, MINUTE);
        slow.take(1);
        slow.limiter.retain_recent();
        assert_eq!(slow.limiter.len(), 1, "one that is not full is kept");
    }

    #[test]
    fn a_look_up_costs_next_to_nothing() {
        let (limits, ada) = (limits(100_000_000), identity(1, "0191d8a0-0000-7000-8000-000000000001"));
        let thousand = || {
            let start = Instant::now();
            for _ in 0..1000 {
                assert!(limits.of_credential(&ada).refusal().is_none());
            }
            start.elapsed()
        };
        // A release build needs well below a microsecond; a debug build on a busy machine needs some. The machine may pause
        // during some thousand checks, but not during every thousand.
        let quickest = (0..20).map(|_| thousand()).min().unwrap();
        assert!(quickest < Duration::from_millis(50), "{quickest:?} for 1000");
    }

    #[test]
    fn the_usual_limit_is_by_the_minute() {
        let of = |window, requests| Limits::new(RateConfig { window, requests }).usual_per_minute();
        assert_eq!((of(MINUTE, 10_000), of(MINUTE * 15, 150), of(Duration::from_secs(1), 5)), (10_000, 10, 300));
    }
}
