//! The words of the settings of WhatsApp sessions.

use super::word::words;

/// The state in which a session sends. Every other state stops its line.
pub const WORKING: &str = "WORKING";

words!(
    /// The treatment of a message over the session's pace.
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
    /// The signatures that are accepted for a webhook of a session.
    #[derive(Default)]
    SignatureRule {
        /// WAHA's own signature: `X-Webhook-Hmac`, SHA-512.
        Waha = "waha",
        /// `X-Waha-Signature: sha256=…`.
        Seed = "seed",
        /// Either of them; if both are sent, both must verify.
        #[default]
        Both = "both",
    }
);
