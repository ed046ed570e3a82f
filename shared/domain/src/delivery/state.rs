//! The states of a delivery.

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

impl State {
    /// Whether the state is final: no more tries follow.
    pub const fn is_end(self) -> bool {
        !matches!(self, Self::Scheduled | Self::Queued | Self::Sending | Self::Retrying)
    }

    /// Whether a producer can still cancel the delivery.
    pub const fn is_cancellable(self) -> bool {
        matches!(self, Self::Scheduled | Self::Queued | Self::Retrying)
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
        let cancellable: Vec<_> = State::ALL.iter().filter(|s| s.is_cancellable()).collect();
        assert_eq!(cancellable, [&State::Scheduled, &State::Queued, &State::Retrying]);
    }
}
