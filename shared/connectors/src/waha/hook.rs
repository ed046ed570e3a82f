//! The configuration that a session needs at WAHA, so that its webhooks reach us.

use secrecy::{ExposeSecret, SecretString};
use url::Url;
use uuid::Uuid;

use super::{Hmac, Retries, SessionConfig, WebhookSpec};

/// The path of WAHA's webhooks below the public URL.
const PATH: &str = "webhooks/waha";
/// WAHA's word for all events except the engine's raw ones.
const ALL_EVENTS: &str = "*";
/// WAHA's default, fifteen tries at intervals of two seconds, would give up within half a minute.
const RETRIES: Retries = Retries { policy: None, delay_seconds: Some(4), attempts: Some(30) };

/// The URL below which every session has its own, for our `public_url`. Webhooks to this URL itself are also accepted,
/// from a WAHA that was configured earlier or by hand.
pub fn base(public_url: &Url) -> String {
    public_url.join(PATH).map_or_else(|_| format!("{public_url}{PATH}"), String::from)
}

/// The URL of a session's webhooks. It names the session, so only that session's key is tried.
pub fn url(public_url: &Url, session: Uuid) -> String {
    format!("{}/{session}", base(public_url))
}

/// A webhook's URL without the session in it.
fn base_of(url: &str) -> &str {
    url.rsplit_once('/').filter(|(_, last)| last.parse::<Uuid>().is_ok()).map_or(url, |(base, _)| base)
}

/// The missing part of a session's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Nothing.
    Nothing,
    /// The webhook or its key differs from the expected one.
    Webhook,
    /// It shows no key. It may have none; some versions do not show it.
    Key,
}

/// The part that `config` lacks so that webhooks go to `url`, signed with `secret`.
pub fn lack(config: Option<&SessionConfig>, url: &str, secret: Option<&SecretString>) -> Lack {
    let webhook = config.and_then(|config| config.webhooks.iter().find(|webhook| webhook.url == url));
    let Some(webhook) = webhook.filter(|webhook| !webhook.events.is_empty()) else { return Lack::Webhook };
    let shown = webhook.hmac.as_ref().and_then(|hmac| hmac.key.as_deref()).filter(|key| !is_masked(key));
    match (shown, secret.map(ExposeSecret::expose_secret)) {
        (None, None) => Lack::Nothing,
        (None, Some(_)) => match webhook.hmac.as_ref().is_some_and(|hmac| hmac.key.is_some()) {
            true => Lack::Nothing,
            false => Lack::Key,
        },
        (Some(shown), secret) if Some(shown) == secret => Lack::Nothing,
        (Some(_), _) => Lack::Webhook,
    }
}

fn is_masked(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| matches!(c, '*' | '•' | 'x'))
}

/// `config` with our webhook, signed with `secret`; the rest stays unchanged. `previous`: the former secret, which
/// identifies our webhook at a former URL.
pub fn with_webhook(
    config: Option<SessionConfig>,
    url: &str,
    secret: Option<&SecretString>,
    previous: Option<&SecretString>,
) -> SessionConfig {
    let mut config = config.unwrap_or_default();
    let former = config.webhooks.iter().position(|webhook| webhook.url == url).map(|at| config.webhooks.remove(at));
    let is_ours = |webhook: &WebhookSpec| {
        let key = webhook.hmac.as_ref().and_then(|hmac| hmac.key.as_deref());
        let mut secrets = secret.into_iter().chain(previous).map(ExposeSecret::expose_secret);
        let is_known = key.is_some_and(|key| secrets.any(|secret| secret == key));
        webhook.url == base_of(url) || (base_of(&webhook.url).ends_with(PATH) && is_known)
    };
    config.webhooks.retain(|other| !is_ours(other));
    config.webhooks.push(WebhookSpec {
        url: url.to_owned(),
        events: vec![ALL_EVENTS.to_owned()],
        hmac: secret.map(|secret| Hmac { key: Some(secret.expose_secret().to_owned()) }),
        retries: Some(RETRIES),
        rest: former.map(|former| former.rest).unwrap_or_default(),
    });
    config
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const URL: &str = "https://notify.example.com/webhooks/waha/0191d8a0-0000-7000-8000-000000000001";

    #[test]
    fn the_webhook_is_put_in_once_and_what_else_is_there_stays() {
        let secret = SecretString::from("s3cret");
        let before: SessionConfig = serde_json::from_value(json!({"debug": true, "webhooks": [
            {"url": "https://other.example.com", "events": ["message"]}, {"url": URL, "events": ["message"], "hmac": {"key": "old"}}]})).unwrap();
        assert_eq!(lack(Some(&before), URL, Some(&secret)), Lack::Webhook, "another key");
        let after = with_webhook(Some(before), URL, Some(&secret), None);
        assert_eq!((after.webhooks.len(), lack(Some(&after), URL, Some(&secret))), (2, Lack::Nothing));
        assert_eq!(after.rest.get("debug"), Some(&json!(true)));
        assert_eq!(with_webhook(Some(after.clone()), URL, Some(&secret), None), after);
    }

    #[test]
    fn what_is_forgotten_shows_and_what_is_hidden_does_not() {
        let secret = SecretString::from("s3cret");
        let config = |webhooks: serde_json::Value| serde_json::from_value(json!({"webhooks": webhooks})).unwrap();
        let lack = |config: &SessionConfig| lack(Some(config), URL, Some(&secret));
        assert_eq!(super::lack(None, URL, Some(&secret)), Lack::Webhook);
        assert_eq!(lack(&config(json!([]))), Lack::Webhook);
        assert_eq!(lack(&config(json!([{"url": URL, "events": []}]))), Lack::Webhook);
        assert_eq!(lack(&config(json!([{"url": URL, "events": ["*"]}]))), Lack::Key);
        assert_eq!(lack(&config(json!([{"url": URL, "events": ["*"], "hmac": {}}]))), Lack::Key);
        assert_eq!(lack(&config(json!([{"url": URL, "events": ["*"], "hmac": {"key": "****"}}]))), Lack::Nothing);
    }

    #[test]
    fn a_webhook_of_ours_that_leads_elsewhere_goes_and_one_of_others_stays() {
        let (secret, previous) = (SecretString::from("new"), SecretString::from("old"));
        let config = serde_json::from_value(json!({"webhooks": [
            {"url": "http://old/webhooks/waha", "events": ["*"], "hmac": {"key": "old"}},
            {"url": "http://older/webhooks/waha/0191d8a0-0000-7000-8000-000000000001", "events": ["*"], "hmac": {"key": "new"}},
            {"url": "https://notify.example.com/webhooks/waha", "events": ["*"], "hmac": {"key": "***"}},
            {"url": "http://other/webhooks/waha", "events": ["*"], "hmac": {"key": "theirs"}}]}));
        let urls: Vec<String> = with_webhook(config.unwrap(), URL, Some(&secret), Some(&previous))
            .webhooks
            .into_iter()
            .map(|webhook| webhook.url)
            .collect();
        assert_eq!(urls, ["http://other/webhooks/waha", URL]);
    }

    #[test]
    fn the_url_is_below_the_public_one_and_names_the_session() {
        assert_eq!(
            url(&Url::parse("https://example.com/notify/").unwrap(), Uuid::nil()),
            "https://example.com/notify/webhooks/waha/00000000-0000-0000-0000-000000000000"
        );
    }
}
