//! The route of a delivery: channel, lane, priority.

use super::word::words;

words!(
    /// The kind of address a delivery goes to.
    Channel {
        /// E-mail over SMTP or a mail provider.
        Email = "email",
        /// Short message to a phone.
        Sms = "sms",
        /// Push notification to a device or browser.
        Push = "push",
        /// HTTP POST to a system's URL.
        Webhook = "webhook",
        /// A row in the recipient's inbox.
        InApp = "in_app" | "in-app",
        /// WhatsApp through WAHA.
        Whatsapp = "whatsapp",
    }
);

words!(
    /// Each channel has one queue per lane, so a lane never waits behind a lower one.
    Lane {
        /// Urgent and high priority.
        High = "high",
        /// Every other single message.
        Normal = "normal",
        /// Large requests and low priority.
        Bulk = "bulk",
    }
);

words!(
    /// The priority that the producer asks for. It selects the lane.
    #[derive(Default)]
    Priority {
        /// May wait behind everything else.
        Low = "low",
        /// The default.
        #[default]
        Normal = "normal",
        /// Before normal.
        High = "high",
        /// As high; later features let it pass quiet hours.
        Urgent = "urgent",
    }
);

impl Priority {
    /// The lane a single message of this priority takes.
    pub const fn lane(self) -> Lane {
        match self {
            Self::Low => Lane::Bulk,
            Self::Normal => Lane::Normal,
            Self::High | Self::Urgent => Lane::High,
        }
    }

    /// Its rank in a line: a higher rank goes first.
    pub const fn rank(self) -> i16 {
        match self {
            Self::Low => 0,
            Self::Normal => 1,
            Self::High => 2,
            Self::Urgent => 3,
        }
    }
}

/// A channel and a lane: names one work queue and its routing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// The channel.
    pub channel: Channel,
    /// The lane.
    pub lane: Lane,
}

impl Route {
    /// Every route: each channel with each lane.
    pub fn all() -> impl Iterator<Item = Self> {
        Channel::ALL.iter().flat_map(|&channel| Lane::ALL.iter().map(move |&lane| Self { channel, lane }))
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.channel, self.lane)
    }
}
