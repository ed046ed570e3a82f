//! The states of a delivery, and the table of the transitions between them.

use self::State::{
    Bounced, Cancelled, Dead, Delivered, Expired, Failed, Queued, Retrying, Scheduled, Sending, Sent, Suppressed,
};
use crate::word::words;

words!(
    /// The state of a delivery; the API calls it `status`. A final state changes in two cases only: a replay
    /// (`dead` → `queued`) and a later report of the provider (`sent` → …).
    State {
        /// Waits for its `scheduled_at`; it has a due row.
        Scheduled = "scheduled",
        /// May be sent now; its message is in the broker.
        Queued = "queued",
        /// A worker has claimed it and may be calling the provider.
        Sending = "sending",
        /// Waits for its next try; it has a due row.
        Retrying = "retrying",
        /// The provider accepted it. Final unless the provider reports more.
        Sent = "sent",
        /// It reached the recipient.
        Delivered = "delivered",
        /// Refused because of the recipient, the address or the message: a normal final state.
        Failed = "failed",
        /// The provider accepted it and reported later that it did not arrive.
        Bounced = "bounced",
        /// Posthaste could not send it; an operator must look at it.
        Dead = "dead",
        /// Not sent because the address is suppressed or the person does not want it.
        Suppressed = "suppressed",
        /// The producer cancelled it before it was sent.
        Cancelled = "cancelled",
        /// Its `expires_at` passed before it was sent.
        Expired = "expired",
    }
);

words!(
    /// The cause of a transition.
    Trigger {
        /// The acceptance of its message.
        Acceptance = "acceptance",
        /// Its due row is due.
        Due = "due",
        /// A worker claims it.
        Claim = "claim",
        /// An event of a worker, or of the scheduler about a delivery in a line; also one that arrives after its worker was
        /// taken for lost.
        Outcome = "outcome",
        /// Its worker is lost.
        Crash = "crash",
        /// A report of the provider, of its own accord.
        Report = "report",
        /// The producer takes it back; or it carries an event to a webhook configuration that is off.
        Cancellation = "cancellation",
        /// An admin replays its dead letter.
        Replay = "replay",
    }
);

/// Transitions of one cause from one state.
#[derive(Debug)]
pub struct Transitions {
    /// The state before; `None`: there is no delivery yet.
    pub from: Option<State>,
    /// The cause.
    pub trigger: Trigger,
    /// The states that may follow.
    pub to: &'static [State],
}

const fn row(from: State, trigger: Trigger, to: &'static [State]) -> Transitions {
    Transitions { from: Some(from), trigger, to }
}

/// States in which an outcome ends a delivery.
const ENDS: &[State] = &[Sent, Delivered, Failed, Dead, Suppressed, Expired];
/// States that a provider reports.
const REPORTED: &[State] = &[Sent, Delivered, Failed, Bounced];

/// Every transition of a delivery; there is no other. `docs/states.md` shows the table. Tests compare it with the page, with
/// the texts of the statements, and with the statement that records events.
pub const TRANSITIONS: &[Transitions] = &[
    Transitions { from: None, trigger: Trigger::Acceptance, to: &[Scheduled, Queued, Sending] },
    row(Scheduled, Trigger::Due, &[Queued]),
    row(Scheduled, Trigger::Cancellation, &[Cancelled]),
    row(Queued, Trigger::Claim, &[Sending]),
    row(Queued, Trigger::Outcome, ENDS),
    row(Queued, Trigger::Report, REPORTED),
    row(Queued, Trigger::Cancellation, &[Cancelled]),
    row(Sending, Trigger::Outcome, &[Scheduled, Retrying, Sent, Delivered, Failed, Dead, Suppressed, Expired]),
    row(Sending, Trigger::Crash, &[Retrying, Dead, Expired]),
    row(Sending, Trigger::Report, REPORTED),
    row(Retrying, Trigger::Due, &[Queued]),
    row(Retrying, Trigger::Outcome, ENDS),
    row(Retrying, Trigger::Report, REPORTED),
    row(Retrying, Trigger::Cancellation, &[Cancelled]),
    row(Sent, Trigger::Report, &[Delivered, Failed, Bounced]),
    row(Delivered, Trigger::Report, &[Bounced]),
    row(Dead, Trigger::Replay, &[Queued]),
];

impl Trigger {
    /// Whether it goes on with the work, so that a state that it leaves is not final.
    const fn is_work(self) -> bool {
        !matches!(self, Self::Report | Self::Replay)
    }

    /// The states from which it moves a delivery.
    pub fn sources(self) -> impl Iterator<Item = State> {
        TRANSITIONS.iter().filter(move |row| row.trigger == self).filter_map(|row| row.from)
    }

    /// Whether it moves a delivery from `from` to `to`.
    pub fn moves(self, from: Option<State>, to: State) -> bool {
        TRANSITIONS.iter().any(|row| row.trigger == self && row.from == from && row.to.contains(&to))
    }
}

impl State {
    /// Whether the state is final: no more tries follow.
    pub fn is_end(self) -> bool {
        !TRANSITIONS.iter().any(|row| row.from == Some(self) && row.trigger.is_work())
    }

    /// The rank of the state, from least to most finished. The status of a message is that of its least finished delivery.
    const fn rank(self) -> u8 {
        match self {
            Self::Scheduled => 0,
            Self::Queued => 1,
            Self::Retrying => 2,
            Self::Sending => 3,
            Self::Sent => 4,
            Self::Delivered => 5,
            Self::Suppressed => 6,
            Self::Cancelled => 7,
            Self::Expired => 8,
            Self::Bounced => 9,
            Self::Failed => 10,
            Self::Dead => 11,
        }
    }

    /// The status of a message whose deliveries have these states: the least finished one. `None` without deliveries.
    pub fn of_message(deliveries: impl IntoIterator<Item = Self>) -> Option<Self> {
        deliveries.into_iter().min_by_key(|state| state.rank())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_as_finished_as_its_least_finished_delivery() {
        assert_eq!(State::of_message([State::Delivered, State::Queued, State::Dead]), Some(State::Queued));
        assert_eq!(State::of_message([State::Dead, State::Delivered]), Some(State::Delivered));
        assert_eq!(State::of_message([]), None);
    }

    #[test]
    fn only_what_waits_can_be_cancelled() {
        assert!(Trigger::Cancellation.sources().eq([State::Scheduled, State::Queued, State::Retrying]));
    }

    #[test]
    fn four_states_are_not_final() {
        let open: Vec<_> = State::ALL.iter().filter(|state| !state.is_end()).collect();
        assert_eq!(open, [&State::Scheduled, &State::Queued, &State::Sending, &State::Retrying]);
    }

    #[test]
    fn every_state_is_reached_and_every_open_one_leads_to_an_end() {
        for state in State::ALL {
            assert!(TRANSITIONS.iter().any(|row| row.to.contains(state)), "nothing leads to {state}");
        }
        // With each pass the states that lead to one of `ended` join it.
        let mut ended: Vec<State> = State::ALL.iter().copied().filter(|state| state.is_end()).collect();
        for _ in State::ALL {
            let leads = |row: &&Transitions| row.trigger.is_work() && row.to.iter().any(|to| ended.contains(to));
            let more: Vec<State> = TRANSITIONS.iter().filter(leads).filter_map(|row| row.from).collect();
            ended.extend(more);
        }
        assert!(State::ALL.iter().all(|state| ended.contains(state)));
    }

    #[test]
    fn a_cause_has_one_row_for_each_state() {
        let keys: std::collections::BTreeSet<_> = TRANSITIONS.iter().map(|row| (row.from, row.trigger)).collect();
        assert_eq!(keys.len(), TRANSITIONS.len());
    }
}
