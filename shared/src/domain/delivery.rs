//! The life of a delivery.

use super::word::words;

words!(
    /// Where a delivery stands. Outside this is its `status`; it never moves backwards to an outsider's surprise:
    /// the only ways out of an end are a replay (`dead` → `queued`) and a provider's later word (`sent` → …).
    State {
        /// Waits for its `scheduled_at`; owns a due row.
        Scheduled = "scheduled",
        /// May be sent now; the broker carries it.
        Queued = "queued",
        /// A worker has claimed it and may be talking to the provider.
        Sending = "sending",
        /// Waits for its next try; owns a due row.
        Retrying = "retrying",
        /// The provider took it; an end unless the provider says more.
        Sent = "sent",
        /// The recipient's side has it.
        Delivered = "delivered",
        /// The recipient's or customer's side said no: a normal end.
        Failed = "failed",
        /// The provider took it and reported later that it did not arrive.
        Bounced = "bounced",
        /// We could not: a person must look at it.
        Dead = "dead",
        /// Not sent because the address or the person is switched off.
        Suppressed = "suppressed",
        /// The producer took it back before it was sent.
        Cancelled = "cancelled",
        /// Its `expires_at` passed before it was sent.
        Expired = "expired",
    }
);

impl State {
    /// Whether nothing more will be tried.
    pub const fn is_end(self) -> bool {
        !matches!(self, Self::Scheduled | Self::Queued | Self::Sending | Self::Retrying)
    }

    /// Whether a producer can still take the delivery back.
    pub const fn is_cancellable(self) -> bool {
        matches!(self, Self::Scheduled | Self::Queued | Self::Retrying)
    }

    /// How finished the state is; the status of a message is the least finished one of its deliveries.
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

    /// The status of a message with these deliveries: the least finished one; `None` without deliveries.
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
