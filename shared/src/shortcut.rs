//! The short way of a hint within a process that both accepts and sends: whoever committed it tells the pool at once, and
//! publishes it as always.
//!
//! The broker's copy stays the one that counts. It comes a moment later and is kept unacknowledged until the attempt that it
//! allowed has ended, as if it had come first; so a process that dies leaves its hints with the broker, and nobody has to know
//! by which way one came.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::{sync::Notify, time::sleep_until};

use crate::{
    amqp::{ConsumerHealth, Tag},
    contract::WorkItem,
    db::outbox::DispatchItem,
    domain::{DeliveryId, Route},
};

/// The short ways of a process, one for each route. Clones share them.
#[derive(Clone, Default)]
pub struct Shortcut(Arc<Mutex<HashMap<Route, Arc<ShortLane>>>>);

impl Shortcut {
    /// The way of a route.
    pub fn lane(&self, route: Route) -> Arc<ShortLane> {
        Arc::clone(lock(&self.0).entry(route).or_default())
    }

    /// Tells the pools of this process what may be sent now, and says whether they heard of all of it. Those that are busy or
    /// away do not listen: they hear of it from the broker, where it waits in its turn.
    pub fn offer(&self, items: &[DispatchItem]) -> bool {
        let lanes = lock(&self.0);
        let hears = |item: &DispatchItem| {
            lanes.get(&item.route).is_some_and(|lane| lane.offer(WorkItem::new(item.delivery, item.run)))
        };
        items.iter().filter(|item| hears(item)).count() == items.len()
    }
}

/// The short way of one route.
#[derive(Default)]
pub struct ShortLane {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    /// Who listens; nobody before a pool has opened, and after it has closed.
    listener: Option<Listener>,
    /// Told, and not taken yet.
    waiting: VecDeque<WorkItem>,
    /// Told, and not ended yet; with the broker's copy where it has come.
    ahead: HashMap<Key, Option<Tag>>,
    /// Attempts of the pool whose hint came from the broker.
    others: usize,
    /// Ended before the broker's copy came, the oldest first.
    ended: VecDeque<Key>,
}

/// What a copy of the broker's is to a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// Of a hint that was not told, or long ago.
    New,
    /// Of one that was told; it is kept for its end.
    Kept,
    /// Of one that was told and has ended.
    Over,
}

/// So many hints that ended before their copy came are remembered: more than a broker holds back for one consumer. A copy of one
/// that was forgotten, or that another process gets, costs a claim that wins nothing.
const ENDED_MAX: usize = 1024;

struct Listener {
    health: Arc<ConsumerHealth>,
    /// Deliveries that may be under way when another one is told.
    room: usize,
}

type Key = (DeliveryId, i32);

const fn key(hint: WorkItem) -> Key {
    (hint.d, hint.r)
}

impl ShortLane {
    /// From now on a pool listens, as long as fewer than `room` of its deliveries are under way: a busy one takes things in
    /// the broker's order. While its consumer is away nothing is told, since no attempt could be written down.
    pub fn open(&self, health: Arc<ConsumerHealth>, room: usize) {
        lock(&self.state).listener = Some(Listener { health, room });
    }

    /// Nobody listens any more. What was not taken is forgotten: the broker has it. Returned are its copies.
    pub fn close(&self) -> Vec<Tag> {
        let mut state = lock(&self.state);
        state.listener = None;
        let waiting = std::mem::take(&mut state.waiting);
        waiting.into_iter().filter_map(|hint| state.ahead.remove(&key(hint)).flatten()).collect()
    }

    fn offer(&self, hint: WorkItem) -> bool {
        let mut state = lock(&self.state);
        let under_way = state.ahead.len() + state.others;
        let listens = |listener: &Listener| under_way < listener.room && listener.health.is_consuming();
        let is_told = state.listener.as_ref().is_some_and(listens);
        if is_told {
            state.ahead.insert(key(hint), None);
            state.waiting.push_back(hint);
            self.arrived.notify_one();
        }
        is_told
    }

    /// Waits until something was told, and then until `moment`. Nothing is lost by dropping it.
    pub async fn arrived_by(&self, moment: Instant) {
        while lock(&self.state).waiting.is_empty() {
            self.arrived.notified().await;
        }
        sleep_until(moment.into()).await;
    }

    /// The next hints, at most `max`.
    pub fn take(&self, max: usize) -> Vec<WorkItem> {
        let mut state = lock(&self.state);
        let count = state.waiting.len().min(max);
        state.waiting.drain(..count).collect()
    }

    /// The broker's copy of a hint has come.
    pub fn meet(&self, hint: WorkItem, copy: Tag) -> Copy {
        let mut state = lock(&self.state);
        if let Some(kept) = state.ahead.get_mut(&key(hint)) {
            *kept = Some(copy);
            return Copy::Kept;
        }
        // It is among the first: copies come in the order of the hints.
        match state.ended.iter().position(|ended| *ended == key(hint)) {
            Some(place) => {
                state.ended.remove(place);
                Copy::Over
            }
            None => Copy::New,
        }
    }

    /// An attempt begins whose hint came from the broker.
    pub fn begin_other(&self) {
        lock(&self.state).others += 1;
    }

    /// It has ended.
    pub fn end_other(&self) {
        let mut state = lock(&self.state);
        state.others = state.others.saturating_sub(1);
    }

    /// The attempt at what was told has ended and is written down. The broker's copy, if it has come.
    pub fn end(&self, hint: WorkItem) -> Option<Tag> {
        let mut state = lock(&self.state);
        let copy = state.ahead.remove(&key(hint))?;
        if copy.is_none() {
            state.ended.push_back(key(hint));
            let surplus = state.ended.len().saturating_sub(ENDED_MAX);
            state.ended.drain(..surplus);
        }
        copy
    }

    /// What was told came to nothing here: its copy, if it has come. One that comes later is as good as any other.
    pub fn forget(&self, hint: WorkItem) -> Option<Tag> {
        lock(&self.state).ahead.remove(&key(hint)).flatten()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Channel, Lane};

    const ROUTE: Route = Route { channel: Channel::Webhook, lane: Lane::Normal };

    fn item() -> DispatchItem {
        DispatchItem { delivery: DeliveryId::generate(), run: 0, route: ROUTE }
    }

    /// A shortcut with a pool that has room for so many, and its lane.
    fn opened(room: usize) -> (Shortcut, Arc<ShortLane>) {
        let shortcut = Shortcut::default();
        let lane = shortcut.lane(ROUTE);
        lane.open(ConsumerHealth::of_a_test(true), room);
        (shortcut, lane)
    }

    #[test]
    fn only_a_pool_that_listens_and_has_room_is_told() {
        let (shortcut, items) = (Shortcut::default(), [item(), item(), item()]);
        assert!(!shortcut.offer(&items));
        let lane = shortcut.lane(ROUTE);
        assert!(!shortcut.offer(&items));
        assert_eq!(lane.take(9), [], "nobody has opened it");
        lane.open(ConsumerHealth::of_a_test(false), 2);
        assert!(!shortcut.offer(&items));
        assert_eq!(lane.take(9), [], "its consumer is away");
        lane.open(ConsumerHealth::of_a_test(true), 2);
        assert!(!shortcut.offer(&items), "the third has to wait for the broker");
        let told = lane.take(9);
        assert_eq!(told.iter().map(|hint| hint.d).collect::<Vec<_>>(), [items[0].delivery, items[1].delivery]);
        assert!(!shortcut.offer(&[item()]));
        assert_eq!(lane.take(9), [], "what was taken is under way");
        lane.end(told[0]);
        lane.begin_other();
        assert!(!shortcut.offer(&[item()]));
        assert_eq!(lane.take(9), [], "and so is what came from the broker");
        lane.end_other();
        assert!(shortcut.offer(&[item()]));
        assert_eq!(lane.take(9).len(), 1);
        let _ = lane.close();
        lane.end(told[1]);
        assert!(!shortcut.offer(&[item()]));
        assert_eq!(lane.take(9), [], "it was closed");
    }

    #[test]
    fn a_copy_is_kept_for_the_end_and_known_after_it() {
        let (shortcut, lane) = opened(9);
        assert!(shortcut.offer(&[item(), item(), item()]));
        let [early, late, nothing] = lane.take(9).try_into().unwrap();
        assert_eq!(lane.meet(early, Tag::of_a_test(1)), Copy::Kept);
        assert_eq!(lane.end(early), Some(Tag::of_a_test(1)));
        assert_eq!(lane.meet(early, Tag::of_a_test(4)), Copy::New, "it was met before: this is a repeat");
        assert_eq!(lane.end(late), None);
        assert_eq!(lane.meet(late, Tag::of_a_test(2)), Copy::Over);
        assert_eq!(lane.meet(late, Tag::of_a_test(5)), Copy::New);
        assert_eq!(lane.forget(nothing), None);
        assert_eq!(lane.meet(nothing, Tag::of_a_test(3)), Copy::New, "somebody has to look at it");
    }

    #[test]
    fn what_was_not_taken_goes_back_to_the_broker() {
        let (shortcut, lane) = opened(9);
        assert!(shortcut.offer(&[item(), item(), item()]));
        let taken = lane.take(1);
        let waiting: Vec<WorkItem> = lock(&lane.state).waiting.iter().copied().collect();
        assert_eq!(lane.meet(taken[0], Tag::of_a_test(1)), Copy::Kept);
        assert_eq!(lane.meet(waiting[0], Tag::of_a_test(2)), Copy::Kept);
        assert_eq!(lane.close(), [Tag::of_a_test(2)]);
        assert_eq!(lane.end(taken[0]), Some(Tag::of_a_test(1)), "what is under way goes on");
    }

    #[test]
    fn hints_whose_copy_never_comes_are_not_remembered_for_ever() {
        let (shortcut, lane) = opened(9);
        for _ in 0..ENDED_MAX + 10 {
            assert!(shortcut.offer(&[item()]));
            lane.take(9).into_iter().for_each(|hint| assert_eq!(lane.end(hint), None));
        }
        let state = lock(&lane.state);
        assert_eq!((state.ended.len(), state.ahead.len()), (ENDED_MAX, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_follows_closely_is_waited_for() {
        let (shortcut, lane) = opened(9);
        let now = tokio::time::Instant::now();
        let late = now + std::time::Duration::from_millis(8);
        assert!(shortcut.offer(&[item()]));
        lane.arrived_by(late.into_std()).await;
        assert!(tokio::time::Instant::now() >= late);
        let waiting = lane.arrived_by(now.into_std());
        drop(waiting);
        assert_eq!(lane.take(9).len(), 1, "nothing is lost by not waiting");
    }
}
