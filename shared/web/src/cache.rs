//! A cache of query results, so that a request under load needs no query.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

/// While one caller reloads an expired value, the others use the old value for this long. Without it, each expiry would
/// send all callers to the database at once.
const GRACE: Duration = Duration::from_secs(2);

/// A full cache evicts one entry in so many.
const EVICTED_PART: usize = 8;

struct Entry<V> {
    value: V,
    until: Instant,
}

/// Values by key, each with its own lifetime; at most `max` of them.
pub struct Cache<K, V> {
    entries: RwLock<HashMap<K, Entry<V>>>,
    max: usize,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// An empty cache.
    pub fn new(max: usize) -> Self {
        Self { entries: RwLock::default(), max }
    }

    /// The cached value. After each expiry one caller gets `None` and has to reload it.
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let now = Instant::now();
        let remembered = {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            let entry = entries.get(key)?;
            (entry.until > now).then(|| entry.value.clone())
        };
        remembered.or_else(|| self.take_turn(key, now))
    }

    /// The first caller after an expiry extends the old value for the others and gets `None`.
    fn take_turn<Q>(&self, key: &Q, now: Instant) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get_mut(key)?;
        if entry.until > now {
            return Some(entry.value.clone());
        }
        entry.until = now + GRACE;
        None
    }

    /// Removes a value.
    pub fn forget<Q>(&self, key: &Q)
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Whether there is a value, fresh or expired.
    pub fn contains<Q>(&self, key: &Q) -> bool
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }

    /// Whether there is a value that has not expired.
    pub fn contains_fresh<Q>(&self, key: &Q) -> bool
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).is_some_and(|entry| entry.until > Instant::now())
    }

    /// Removes the values that `is_meant` selects.
    pub fn forget_where(&self, is_meant: impl Fn(&V) -> bool) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| !is_meant(&entry.value));
    }

    /// Stores a value. A full cache evicts the entries that expire first.
    pub fn put(&self, key: K, value: V, ttl: Duration) {
        let now = Instant::now();
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.max && !entries.contains_key(&key) {
            evict_lowest(&mut entries, |entry| entry.until);
        }
        entries.insert(key, Entry { value, until: now + ttl });
    }
}

/// Evicts the eighth of the entries with the lowest rank. A flood of new entries then neither empties a full map nor costs
/// a pass over it for each of them.
pub fn evict_lowest<K, V, S, R: Ord + Copy>(entries: &mut HashMap<K, V, S>, rank: impl Fn(&V) -> R) {
    let mut ranks: Vec<R> = entries.values().map(&rank).collect();
    let evicted = ranks.len() / EVICTED_PART;
    if evicted < ranks.len() {
        let (_, last, _) = ranks.select_nth_unstable(evicted);
        let last = *last;
        entries.retain(|_, entry| rank(entry) > last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_remembered_until_it_is_stale_and_then_one_caller_asks() {
        let cache = Cache::new(8);
        cache.put("a", 1, Duration::from_secs(60));
        assert_eq!((cache.get("a"), cache.get("b")), (Some(1), None));
        let goes_on = || {
            cache.put("a", 2, Duration::ZERO);
            assert_eq!(cache.get("a"), None, "the first one asks");
            cache.get("a") == Some(2)
        };
        // The grace may end while the machine pauses, but not every time.
        assert!((0..10).any(|_| goes_on()), "the others go on with the old answer meanwhile");
    }

    #[test]
    fn a_stale_answer_is_there_but_not_fresh() {
        let cache = Cache::new(8);
        cache.put("a", 1, Duration::from_secs(60));
        cache.put("b", 1, Duration::ZERO);
        assert!(cache.contains_fresh("a") && cache.contains("b") && !cache.contains_fresh("b"));
        assert!(!cache.contains_fresh("c"));
    }

    #[test]
    fn it_never_holds_more_than_its_bound() {
        let cache = Cache::new(4);
        for key in 0..100 {
            cache.put(key, key, Duration::from_secs(60));
            assert!(cache.entries.read().unwrap().len() <= 4);
        }
        assert_eq!(cache.get(&99), Some(99));
    }

    #[test]
    fn a_flood_evicts_the_oldest_and_leaves_the_rest() {
        let cache = Cache::new(800);
        for key in 0..800 {
            cache.put(key, key, Duration::from_secs(60));
        }
        cache.put(1000, 1000, Duration::from_secs(60));
        let kept = (0..800).filter(|key| cache.contains(key)).count();
        assert!((690..800).contains(&kept), "{kept}");
        assert!(cache.contains(&799) && !cache.contains(&0));
        cache.forget_where(|value| *value == 799);
        assert!(!cache.contains(&799) && cache.contains(&798));
    }
}
