//! WhatsApp sessions: the words they are set up with.

use super::word::words;

/// The state in which a session sends; every other one shuts its line.
pub const WORKING: &str = "WORKING";

words!(
    /// What happens to a message that finds its session's pace used up.
    #[derive(Default)]
    OnLimit {
        /// It waits for its turn.
        #[default]
        Queue = "queue",
        /// It is refused with 429.
        Reject = "reject",
    }
);

words!(
    /// Which signatures may vouch for a webhook of a session.
    #[derive(Default)]
    SignatureRule {
        /// WAHA's own: `X-Webhook-Hmac`, SHA-512.
        Waha = "waha",
        /// `X-Waha-Signature: sha256=…`.
        Seed = "seed",
        /// Either; where both are sent, both must hold.
        #[default]
        Both = "both",
    }
);
