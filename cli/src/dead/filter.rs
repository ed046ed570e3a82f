//! The options that select dead letters.

use deliveries::letters::LetterFilter;
use domain::{Channel, DeadReason, clock};
use store::Store;

use crate::{moment::Moment, settings};

/// Options that narrow letters down; all given ones must hold.
#[derive(Debug, clap::Args)]
pub struct Filter {
    /// On this channel: email, sms, push, webhook, in_app or whatsapp
    #[arg(long)]
    channel: Option<Channel>,
    /// Of this tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// For this reason: schema, tenant, too_large, unroutable, poison, attempts_exhausted, misconfigured or expired_crashes
    #[arg(long)]
    reason: Option<DeadReason>,
    /// Written down at this time or later: ago, such as 2h, or a time such as 2026-01-31T08:00:00Z
    #[arg(long, value_name = "WHEN")]
    since: Option<Moment>,
    /// Written down before this time: ago, such as 1h, or a time
    #[arg(long, value_name = "WHEN")]
    until: Option<Moment>,
    /// Of this message, or with this AMQP message_id
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
}

/// The names of these options, for rules between options.
pub const OPTIONS: [&str; 6] = ["channel", "tenant", "reason", "since", "until", "message_id"];

impl Filter {
    /// The requested tenant.
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// Converts the options into a database filter. An unknown tenant is an error: a typo must not look like "no
    /// letters".
    pub async fn letters(self, store: &Store) -> anyhow::Result<LetterFilter> {
        if let Some(slug) = &self.tenant {
            settings::tenant(store, slug).await?;
        }
        let now = clock::now();
        Ok(LetterFilter {
            channel: self.channel,
            tenant: self.tenant,
            reason: self.reason,
            since: self.since.map(|since| since.ago(now)),
            until: self.until.map(|until| until.ago(now)),
            message_id: self.message_id,
            ..LetterFilter::default()
        })
    }
}
