//! Who tells what became of a message.

use crate::word::words;

words!(
    /// Who told an event.
    EventSource {
        /// SendGrid's Event Webhook.
        Sendgrid = "sendgrid",
        /// Twilio's status callbacks.
        Twilio = "twilio",
        /// SES, through topics of SNS.
        Ses = "ses" | "sns",
        /// Our own pixels and links.
        Tracking = "tracking",
    }
);
