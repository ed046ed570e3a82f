//! The facts of the delivery log.

use crate::{State, word::words};

words!(
    /// What a row of the delivery log says. With the delivery and its run it is the row's identity, so repeating
    /// an event changes nothing.
    EventKind {
        /// The provider took it.
        Sent = "sent",
        /// The recipient's side has it.
        Delivered = "delivered",
        /// The recipient's side said no.
        Failed = "failed",
        /// The try failed and another one is due.
        Retrying = "retrying",
        /// The try may or may not have reached the recipient.
        Ambiguous = "ambiguous",
        /// We could not.
        Dead = "dead",
        /// It waits before its first call, though it could go out: for the end of the person's quiet hours,
        /// or for its send window.
        Scheduled = "scheduled",
        /// Switched off.
        Suppressed = "suppressed",
        /// Its time ran out.
        Expired = "expired",
        /// The producer took it back.
        Cancelled = "cancelled",
        /// An admin started it again.
        Replayed = "replayed",
        /// The provider gave it back after taking it.
        Bounced = "bounced",
        /// The person saw it.
        Read = "read",
        /// A voice or video message was played.
        Played = "played",
        /// A mail was opened.
        Opened = "opened",
        /// A link in it was followed.
        Clicked = "clicked",
        /// The person called it unwanted.
        Complained = "complained",
    }
);

impl EventKind {
    /// The kind of event that moves a delivery into `state`; `None` for states no event reports.
    pub const fn of(state: State) -> Option<Self> {
        match state {
            State::Sent => Some(Self::Sent),
            State::Delivered => Some(Self::Delivered),
            State::Failed => Some(Self::Failed),
            State::Bounced => Some(Self::Bounced),
            State::Retrying => Some(Self::Retrying),
            State::Dead => Some(Self::Dead),
            State::Suppressed => Some(Self::Suppressed),
            State::Expired => Some(Self::Expired),
            State::Cancelled => Some(Self::Cancelled),
            State::Scheduled => Some(Self::Scheduled),
            State::Queued | State::Sending => None,
        }
    }
}

words!(
    /// Why a delivery waits or ended although no provider was called.
    Reason {
        /// The person has no such address.
        NoAddress = "no_address",
        /// The address is dead: it does not exist, or a mail came back for good.
        AddressDead = "address_dead",
        /// As above, told by the provider afterwards.
        HardBounce = "hard_bounce",
        /// Several in a row came back.
        SoftBounces = "soft_bounces",
        /// The person called a message unwanted.
        Complaint = "complaint",
        /// The person unsubscribed.
        Unsubscribed = "unsubscribed",
        /// The person switched it off.
        Preference = "preference",
        /// It is quiet where the person lives; it goes on afterwards.
        QuietHours = "quiet_hours",
        /// Its send window is closed where the person lives; it goes on when that opens.
        SendWindow = "send_window",
        /// Its rule told the person enough already.
        Throttled = "throttled",
    }
);

words!(
    /// Why something became a dead letter.
    DeadReason {
        /// The body is no valid submission.
        Schema = "schema",
        /// The tenant is unknown, or the publisher may not speak for it.
        Tenant = "tenant",
        /// The body exceeds the limit.
        TooLarge = "too_large",
        /// No queue is bound for its routing key.
        Unroutable = "unroutable",
        /// The broker gave up redelivering it, or it cannot be read.
        Poison = "poison",
        /// Every try failed.
        AttemptsExhausted = "attempts_exhausted",
        /// Our own settings or credentials keep it from being sent.
        Misconfigured = "misconfigured",
        /// Workers died on it again and again.
        ExpiredCrashes = "expired_crashes",
    }
);

words!(
    /// Where a dead letter comes from.
    DeadOrigin {
        /// A delivery that ended as `dead`.
        Delivery = "delivery",
        /// A body published to the ingress exchange that was refused.
        Intake = "intake",
        /// The broker gave it up.
        Broker = "broker",
    }
);
