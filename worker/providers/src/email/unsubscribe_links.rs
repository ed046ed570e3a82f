//! Adds an unsubscribe link to every mail that is not essential. With it a mail program unsubscribes its reader by one click (RFC
//! 8058).

use deliveries::{Deliveries, claim::Claim};
use domain::{
    Channel, Class,
    category::MARKETING,
    contract::submission::Content,
    unsubscribe::{Key, PATH, UnsubscribeToken},
};
use runtime::config::Config;
use store::Store;
use tokio::sync::OnceCell;
use url::Url;

/// Longest link: a header line has at most 998 bytes (RFC 5322, section 2.1.1), its name and brackets included.
const URL_BYTES_MAX: usize = 960;

/// Makes the links.
pub struct UnsubscribeLinks {
    public_url: Url,
    store: Store,
    key: OnceCell<Key>,
}

impl UnsubscribeLinks {
    /// With links to the public URL of the settings.
    pub fn new(config: &Config, store: &Store) -> Self {
        Self { public_url: config.http.public_url.clone(), store: store.clone(), key: OnceCell::new() }
    }

    /// Adds the link to a mail, unless the mail is essential. `None`: the key cannot be loaded, and the mail must not be sent yet.
    pub async fn apply(&self, claim: &Claim, content: &mut Content) -> Option<()> {
        if content.class() == Class::Essential {
            return Some(());
        }
        // Boxed, because a query's future is large and this one is part of every attempt's.
        let key = match self.key.get() {
            Some(key) => key,
            None => Box::pin(self.key.get_or_try_init(|| self.store.provider_events().unsubscribe_key()))
                .await
                .inspect_err(|error| tracing::warn!(%error, "a mail waits for the key of its unsubscribe link"))
                .ok()?,
        };
        let category = content.category.as_ref().or(content.kind.as_ref()).filter(|name| !name.is_empty());
        let full = UnsubscribeToken {
            tenant: claim.tenant,
            user_id: claim.person(Channel::Email).map(str::to_owned),
            address: Some(claim.recipient.clone()),
            category: category.map_or(MARKETING, String::as_str).to_owned(),
        };
        let link = |unsubscribe_token: &UnsubscribeToken| {
            Some(format!("{}{PATH}{}", self.public_url, key.token(unsubscribe_token).ok()?))
        };
        let url = link(&full)?;
        // A very long user id does not fit into a link: then the link unsubscribes the address only.
        let url = if url.len() <= URL_BYTES_MAX { url } else { link(&UnsubscribeToken { user_id: None, ..full })? };
        content.unsubscribe_url = Some(url).filter(|url| url.len() <= URL_BYTES_MAX);
        Some(())
    }
}
