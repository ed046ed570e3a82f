//! The sources of events about messages after the call.

use crate::word::words;

words!(
    /// The source of an event.
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
