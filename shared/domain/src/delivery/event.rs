//! The facts of the delivery log, and the table of their kinds.

use crate::{State, word::words};

/// The row of a kind of event.
#[derive(Debug)]
pub struct EventKindInfo {
    /// The state that it shows; `None`: that depends on the event.
    pub shows: Option<State>,
    /// Its bit in `deliveries.reached`, which rows store: it never changes, and no other kind ever gets it. 0: analytics
    /// do not count it.
    pub bit: i16,
    /// Further bits that a delivery reaches with it.
    pub implies: i16,
    /// Whether a person did it with a message.
    pub is_engagement: bool,
    /// When webhook configurations get an event about it.
    pub webhooks: WebhookRule,
}

/// When webhook configurations get an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookRule {
    /// Never under this name: a delivery is replayed or in doubt only in its own log. A doubt is reported as the state that
    /// follows it.
    Never,
    /// If it moved the delivery.
    IfMoved,
    /// Each time that it is logged.
    Always,
}

/// The bit of `tried`: deliveries that a provider took, or that went wrong.
pub const TRIED_BIT: i16 = 1 << 12;
/// The bit of `wrong`: deliveries that failed, came back or died.
pub const WRONG_BIT: i16 = 1 << 13;
const SENT_BIT: i16 = 1;

/// Writes the list of words and the table from one text, so that no kind can be missing from the table.
macro_rules! event_kinds {
    ($($(#[$meta:meta])* $name:ident = $word:literal { $($field:ident: $value:expr),+ }),+ $(,)?) => {
        words!(
            /// The kind of a row of the delivery log. With the delivery and its run it is the row's identity, so repeating
            /// an event changes nothing.
            EventKind { $($(#[$meta])* $name = $word),+ }
        );

        impl EventKind {
            /// The row of this kind.
            pub const fn info(self) -> &'static EventKindInfo {
                match self { $(Self::$name => &EventKindInfo { $($field: $value),+ }),+ }
            }
        }
    };
}

event_kinds! {
    /// The provider took it.
    Sent = "sent" {
        shows: Some(State::Sent), bit: SENT_BIT, implies: TRIED_BIT,
        is_engagement: false, webhooks: WebhookRule::IfMoved
    },
    /// The recipient's side has it.
    Delivered = "delivered" {
        shows: Some(State::Delivered), bit: 2, implies: TRIED_BIT | SENT_BIT,
        is_engagement: false, webhooks: WebhookRule::Always
    },
    /// The recipient's side said no.
    Failed = "failed" {
        shows: Some(State::Failed), bit: 4, implies: TRIED_BIT | WRONG_BIT,
        is_engagement: false, webhooks: WebhookRule::IfMoved
    },
    /// The try failed and another one is due.
    Retrying = "retrying" {
        shows: Some(State::Retrying), bit: 0, implies: 0, is_engagement: false, webhooks: WebhookRule::IfMoved
    },
    /// The try may or may not have reached the recipient.
    Ambiguous = "ambiguous" { shows: None, bit: 0, implies: 0, is_engagement: false, webhooks: WebhookRule::Never },
    /// We could not.
    Dead = "dead" {
        shows: Some(State::Dead), bit: 16, implies: TRIED_BIT | WRONG_BIT,
        is_engagement: false, webhooks: WebhookRule::IfMoved
    },
    /// It waits before its first call, though it could go out: for the end of the person's quiet hours,
    /// or for its send window.
    Scheduled = "scheduled" {
        shows: Some(State::Scheduled), bit: 0, implies: 0, is_engagement: false, webhooks: WebhookRule::IfMoved
    },
    /// Switched off.
    Suppressed = "suppressed" {
        shows: Some(State::Suppressed), bit: 32, implies: 0, is_engagement: false, webhooks: WebhookRule::IfMoved
    },
    /// Its time ran out.
    Expired = "expired" {
        shows: Some(State::Expired), bit: 64, implies: 0, is_engagement: false, webhooks: WebhookRule::IfMoved
    },
    /// The producer took it back.
    Cancelled = "cancelled" {
        shows: Some(State::Cancelled), bit: 128, implies: 0, is_engagement: false, webhooks: WebhookRule::IfMoved
    },
    /// An admin started it again.
    Replayed = "replayed" {
        shows: Some(State::Queued), bit: 0, implies: 0, is_engagement: false, webhooks: WebhookRule::Never
    },
    /// The provider gave it back after taking it.
    Bounced = "bounced" {
        shows: Some(State::Bounced), bit: 8, implies: TRIED_BIT | WRONG_BIT,
        is_engagement: false, webhooks: WebhookRule::Always
    },
    /// The person saw it.
    Read = "read" {
        shows: Some(State::Delivered), bit: 256, implies: 0, is_engagement: true, webhooks: WebhookRule::Always
    },
    /// A voice or video message was played. It was read before.
    Played = "played" {
        shows: Some(State::Delivered), bit: 0, implies: 0, is_engagement: false, webhooks: WebhookRule::Always
    },
    /// A mail was opened.
    Opened = "opened" {
        shows: Some(State::Delivered), bit: 512, implies: 0, is_engagement: true, webhooks: WebhookRule::Always
    },
    /// A link in it was followed.
    Clicked = "clicked" {
        shows: Some(State::Delivered), bit: 1024, implies: 0, is_engagement: true, webhooks: WebhookRule::Always
    },
    /// The person called it unwanted.
    Complained = "complained" {
        shows: Some(State::Delivered), bit: 2048, implies: 0, is_engagement: true, webhooks: WebhookRule::Always
    },
}

impl EventKind {
    /// The bits that a delivery reaches with it: `reached_bits` of the schema.
    pub const fn reached(self) -> i16 {
        self.info().bit | self.info().implies
    }

    /// The kinds that analytics count, by their bits.
    pub fn counted() -> Vec<Self> {
        let mut counted: Vec<Self> = Self::ALL.iter().copied().filter(|kind| kind.info().bit != 0).collect();
        counted.sort_by_key(|kind| kind.info().bit);
        counted
    }

    /// The words of the kinds whose row is so.
    pub fn words(is_so: impl Fn(&EventKindInfo) -> bool) -> Vec<&'static str> {
        Self::ALL.iter().filter(|kind| is_so(kind.info())).map(|kind| kind.as_str()).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_the_bit_that_is_stored() {
        use EventKind::{
            Bounced, Cancelled, Clicked, Complained, Dead, Delivered, Expired, Failed, Opened, Read, Sent, Suppressed,
        };
        let stored =
            [Sent, Delivered, Failed, Bounced, Dead, Suppressed, Expired, Cancelled, Read, Opened, Clicked, Complained];
        assert_eq!(EventKind::counted(), stored);
        for (place, kind) in stored.iter().enumerate() {
            assert_eq!(kind.info().bit, 1 << place, "the bit of {kind} has changed");
        }
    }

    #[test]
    fn a_kind_is_called_as_the_state_that_it_moves_into() {
        for kind in EventKind::ALL {
            let Ok(state) = kind.as_str().parse::<State>() else { continue };
            assert_eq!(kind.info().shows, Some(state));
        }
    }

    #[test]
    fn an_engagement_is_always_reported_and_shows_that_it_arrived() {
        for kind in EventKind::ALL.iter().filter(|kind| kind.info().is_engagement) {
            assert_eq!((kind.info().shows, kind.info().webhooks), (Some(State::Delivered), WebhookRule::Always));
        }
    }
}
