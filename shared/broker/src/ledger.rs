//! Tracks which deliveries of one channel are finished, and which acks to send. Pure: time is an argument.
//!
//! A multiple ack costs the broker and us about as much as a single one, so we ack finished deliveries together, up
//! to the first unfinished one. Deliveries that finish behind an unfinished one wait a short time for it and are then
//! acked singly, so one slow delivery never blocks the rest of the prefetch.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The longest delay of an ack: short compared to a provider call, long enough to collect many.
const FLUSH_AFTER: Duration = Duration::from_millis(5);
/// This many finished deliveries are acked at once; a larger number brought no measurable gain.
const FLUSH_AT: usize = 64;
/// How long a finished delivery waits for an earlier unfinished one.
const STUCK_AFTER: Duration = Duration::from_millis(100);

/// One ack or requeue to send to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckCommand {
    /// Requeue this delivery.
    Requeue(u64),
    /// Multiple ack up to this number; the second field counts the deliveries it finishes.
    DoneThrough(u64, usize),
    /// Ack this delivery alone.
    Done(u64),
}

impl AckCommand {
    /// The number of deliveries it concerns.
    pub(super) fn count(self) -> usize {
        match self {
            Self::DoneThrough(_, count) => count,
            Self::Requeue(_) | Self::Done(_) => 1,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Open,
    Finished(Instant),
    /// Sent to the broker, or part of the next commands.
    Settled,
}

/// The unfinished deliveries of one channel. The broker numbers them from 1 without gaps.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The number of the first slot.
    floor: u64,
    slots: VecDeque<Slot>,
    finished: usize,
    oldest: Option<Instant>,
    requeue: Vec<u64>,
    flush_at: usize,
    stuck_at: usize,
}

impl Ledger {
    pub(super) fn new(prefetch: u16) -> Self {
        let prefetch = usize::from(prefetch);
        Self {
            floor: 1,
            slots: VecDeque::with_capacity(prefetch),
            finished: 0,
            oldest: None,
            requeue: Vec::new(),
            // With a small prefetch, waiting for a full batch would leave the queue idle.
            flush_at: FLUSH_AT.min(prefetch / 2).max(1),
            stuck_at: prefetch / 4,
        }
    }

    /// Records a delivery.
    pub(super) fn delivered(&mut self, number: u64) {
        while self.next_number() < number {
            // If the broker ever skips a number, the missing one must not block the others.
            self.slots.push_back(Slot::Settled);
        }
        if self.next_number() == number {
            self.slots.push_back(Slot::Open);
        }
    }

    fn next_number(&self) -> u64 {
        self.floor.saturating_add(u64::try_from(self.slots.len()).unwrap_or(u64::MAX))
    }

    fn open_slot(&mut self, number: u64) -> Option<&mut Slot> {
        let index = usize::try_from(number.checked_sub(self.floor)?).ok()?;
        self.slots.get_mut(index).filter(|slot| **slot == Slot::Open)
    }

    /// Records that a delivery is finished. Returns true if the commands or their due time changed.
    pub(super) fn finish(&mut self, number: u64, now: Instant) -> bool {
        let Some(slot) = self.open_slot(number) else { return false };
        *slot = Slot::Finished(now);
        self.finished += 1;
        self.oldest.get_or_insert(now);
        number == self.floor || [1, self.flush_at, self.stuck_at + 1].contains(&self.finished)
    }

    /// Records that a delivery is requeued. Returns true if a command must be sent.
    pub(super) fn give_back(&mut self, number: u64) -> bool {
        let Some(slot) = self.open_slot(number) else { return false };
        *slot = Slot::Settled;
        self.requeue.push(number);
        true
    }

    /// The number of deliveries that are neither finished nor requeued.
    pub(super) fn open(&self) -> usize {
        self.slots.iter().filter(|slot| **slot == Slot::Open).count()
    }

    /// The number of deliveries that are finished or requeued, but not yet sent to the broker.
    pub(super) fn unsent(&self) -> usize {
        self.finished + self.requeue.len()
    }

    /// When the next command is due, at `now` or later.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let waiting_since = match self.oldest {
            _ if !self.requeue.is_empty() => return Some(now),
            None => return None,
            Some(oldest) => oldest,
        };
        let stuck = self.slots.front() == Some(&Slot::Open);
        let (limit, delay) = match stuck {
            false => (self.flush_at, FLUSH_AFTER),
            true => (self.stuck_at + 1, STUCK_AFTER),
        };
        if self.finished >= limit { Some(now) } else { Some(waiting_since + delay) }
    }

    /// The commands to send now, in this order; with `all`, also those that are not due.
    pub(super) fn commands(&mut self, now: Instant, all: bool) -> Vec<AckCommand> {
        // Requeues come first: a multiple ack beyond them would ack them too.
        let mut commands: Vec<_> = self.requeue.drain(..).map(AckCommand::Requeue).collect();
        commands.extend(self.advance());
        let overdue = self.finished > self.stuck_at
            || self.oldest.is_some_and(|oldest| now.saturating_duration_since(oldest) >= STUCK_AFTER);
        if self.finished > 0 && (all || overdue) {
            commands.extend(self.pick());
        }
        commands
    }

    /// Removes the settled and finished slots at the front.
    fn advance(&mut self) -> Option<AckCommand> {
        let mut through = None;
        let mut count = 0;
        while let Some(slot) = self.slots.pop_front_if(|slot| *slot != Slot::Open) {
            if slot != Slot::Settled {
                // The broker refuses an ack for a number that is already settled, so the ack names the last finished
                // one.
                through = Some(self.floor);
                count += 1;
            }
            self.floor += 1;
        }
        if count > 0 {
            self.finished -= count;
            self.oldest = self.oldest_finished();
        }
        through.map(|number| AckCommand::DoneThrough(number, count))
    }

    fn oldest_finished(&self) -> Option<Instant> {
        let finished = self.slots.iter().filter_map(|slot| match slot {
            Slot::Finished(at) => Some(*at),
            Slot::Open | Slot::Settled => None,
        });
        if self.finished == 0 { None } else { finished.min() }
    }

    fn pick(&mut self) -> Vec<AckCommand> {
        let mut commands = Vec::with_capacity(self.finished);
        for (slot, number) in self.slots.iter_mut().zip(self.floor..) {
            if matches!(slot, Slot::Finished(_)) {
                *slot = Slot::Settled;
                commands.push(AckCommand::Done(number));
            }
        }
        self.finished = 0;
        self.oldest = None;
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(prefetch: u16, delivered: u64) -> (Ledger, Instant) {
        let mut ledger = Ledger::new(prefetch);
        (1..=delivered).for_each(|number| ledger.delivered(number));
        (ledger, Instant::now())
    }

    #[test]
    fn a_contiguous_run_is_acked_with_one_word() {
        let (mut ledger, now) = ledger(100, 10);
        for number in [3, 1, 2, 4] {
            ledger.finish(number, now);
        }
        assert_eq!(ledger.commands(now, false), [AckCommand::DoneThrough(4, 4)]);
        assert_eq!((ledger.commands(now, true), ledger.open()), (vec![], 6));
    }

    #[test]
    fn a_lone_finished_delivery_waits_a_little_for_company() {
        let (mut ledger, now) = ledger(200, 100);
        assert_eq!(ledger.due(now), None);
        assert!(ledger.finish(1, now));
        assert_eq!(ledger.due(now), Some(now + FLUSH_AFTER));
        for number in 2..64 {
            assert!(!ledger.finish(number, now) || number == 51, "{number}");
        }
        assert!(ledger.finish(64, now));
        assert_eq!(ledger.due(now), Some(now));
    }

    #[test]
    fn a_small_prefetch_is_not_held_up_by_a_large_batch() {
        let (mut ledger, now) = ledger(2, 2);
        ledger.finish(1, now);
        assert_eq!(ledger.due(now), Some(now));
    }

    #[test]
    fn what_finished_behind_a_stuck_head_is_acked_singly_in_time() {
        let (mut ledger, now) = ledger(40, 40);
        ledger.finish(2, now);
        assert_eq!(ledger.due(now), Some(now + STUCK_AFTER));
        assert_eq!(ledger.commands(now, false), []);
        assert_eq!(ledger.commands(now + STUCK_AFTER, false), [AckCommand::Done(2)]);
        assert_eq!(ledger.due(now), None);
        ledger.finish(1, now);
        assert_eq!(ledger.commands(now, false), [AckCommand::DoneThrough(1, 1)]);
    }

    #[test]
    fn more_than_a_quarter_of_the_prefetch_behind_a_stuck_head_is_acked_at_once() {
        let (mut ledger, now) = ledger(16, 16);
        for number in 2..=5 {
            ledger.finish(number, now);
        }
        assert_eq!(ledger.commands(now, false), []);
        assert!(ledger.finish(6, now));
        assert_eq!(ledger.due(now), Some(now));
        assert_eq!(ledger.commands(now, false), [2, 3, 4, 5, 6].map(AckCommand::Done));
    }

    #[test]
    fn an_ack_for_many_never_ends_at_a_number_the_broker_already_knows() {
        let (mut ledger, now) = ledger(4, 4);
        ledger.finish(3, now);
        ledger.finish(4, now);
        assert_eq!(ledger.commands(now, true), [AckCommand::Done(3), AckCommand::Done(4)]);
        ledger.finish(1, now);
        ledger.give_back(2);
        assert_eq!(ledger.commands(now, false), [AckCommand::Requeue(2), AckCommand::DoneThrough(1, 1)]);
        assert_eq!(ledger.unsent() + ledger.open(), 0);
        ledger.delivered(5);
        ledger.finish(5, now);
        assert_eq!(ledger.commands(now, false), [AckCommand::DoneThrough(5, 1)]);
    }

    #[test]
    fn finishing_twice_or_what_was_never_delivered_says_nothing() {
        let (mut ledger, now) = ledger(4, 1);
        ledger.finish(1, now);
        assert!(!ledger.finish(1, now) && !ledger.finish(0, now) && !ledger.finish(9, now) && !ledger.give_back(1));
        assert_eq!(ledger.commands(now, false), [AckCommand::DoneThrough(1, 1)]);
        assert!(!ledger.finish(1, now));
        assert_eq!(ledger.commands(now, true), []);
    }

    /// Every order of finishing a few deliveries, with commands taken at every step, acks each of them exactly once
    /// and none that is unfinished.
    #[test]
    fn every_order_of_finishing_is_told_exactly_once() {
        fn permute(order: &mut Vec<u64>, at: usize, seen: &mut dyn FnMut(&[u64])) {
            if at == order.len() {
                return seen(order);
            }
            for other in at..order.len() {
                order.swap(at, other);
                permute(order, at + 1, seen);
                order.swap(at, other);
            }
        }
        let mut check = |order: &[u64]| {
            for all in [false, true] {
                let (mut ledger, mut now) = ledger(8, 6);
                let mut unacked: std::collections::BTreeSet<u64> = (1..=6).collect();
                let mut finished = std::collections::BTreeSet::new();
                for number in order {
                    finished.insert(*number);
                    ledger.finish(*number, now);
                    now += Duration::from_millis(40);
                    for command in ledger.commands(now, all) {
                        let settled: Vec<u64> = match command {
                            AckCommand::DoneThrough(through, _) => unacked.range(..=through).copied().collect(),
                            AckCommand::Done(number) | AckCommand::Requeue(number) => vec![number],
                        };
                        assert_eq!(settled.len(), command.count(), "{order:?} {command:?}");
                        assert!(
                            settled.iter().all(|number| finished.contains(number) && unacked.remove(number)),
                            "{order:?}"
                        );
                    }
                }
                assert!(ledger.commands(now, true).len() <= 6 && ledger.open() == 0 && ledger.unsent() == 0);
            }
        };
        permute(&mut (1..=6).collect(), 0, &mut check);
    }
}
