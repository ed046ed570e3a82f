//! Works through what providers told of deliveries: states and engagement go to the log writer, addresses that do not work are
//! suppressed, subscriptions are confirmed.
//!
//! Events are taken for a while, not locked, and everything they lead to may be repeated, as with those of WAHA.

use std::time::{Duration, Instant};

use metrics::counter;
use reqwest::Client;
use shared::{
    amqp::Publisher,
    clock,
    contract::{Event, guard::Guard},
    db::{
        Store,
        inbound_webhooks::InboundWebhook,
        poll::WorkKind,
        provider_events::{PendingProviderEvent, Subject},
        suppressions::Finding,
    },
    domain::{
        DeliveryId, EventKind, EventSource, ProviderName, State,
        suppression::{SuppressionReason, SuppressionScope},
    },
    egress::{self, resolver::GuardedResolver},
    provider_events::{AddressNews, Meaning, Report as News, meaning},
};
use url::Url;
use uuid::Uuid;

use crate::{
    inbound_webhooks::{self, LEASE_MS, LIMIT, TRIES_MAX, WebhookTable, pause_ms},
    task::{Report, Task, TaskError},
};

/// How long a confirmation may take.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// How often events of long ago are forgotten, and how many at once.
const FORGET_EVERY: Duration = Duration::from_secs(600);
const FORGET_LIMIT: i64 = 5000;

/// Confirms subscriptions of SNS.
#[derive(Clone)]
pub struct Subscriber(Client);

impl Subscriber {
    /// A client that reaches public addresses over TLS only.
    pub fn new() -> reqwest::Result<Self> {
        let client = egress::client(CONFIRM_TIMEOUT).dns_resolver(GuardedResolver::shared(Guard::default()));
        client.timeout(CONFIRM_TIMEOUT).https_only(true).build().map(Self)
    }

    async fn confirm(&self, url: Url) -> bool {
        self.0.get(url).send().await.is_ok_and(|response| response.status().is_success())
    }
}

/// The task.
pub struct ProviderEvents {
    store: Store,
    publisher: Publisher,
    subscriber: Subscriber,
    forgot_at: Option<Instant>,
}

/// An event with what it says.
struct Heard {
    event: PendingProviderEvent,
    source: EventSource,
    news: News,
}

/// What a turn does with its events.
#[derive(Default)]
struct Work {
    heard: Vec<Heard>,
    subscriptions: Vec<(PendingProviderEvent, Url)>,
    done: Vec<Uuid>,
    ignored: Vec<Uuid>,
    later: Vec<PendingProviderEvent>,
}

/// What becomes of news about a delivery as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is reported.
    Reported,
    /// The outcome of the call is not written yet.
    Early,
    /// It is about another call, or known.
    Stale,
}

impl ProviderEvents {
    /// Reports through `publisher`.
    pub const fn new(store: Store, publisher: Publisher, subscriber: Subscriber) -> Self {
        Self { store, publisher, subscriber, forgot_at: None }
    }

    async fn subscribe(&self, work: &mut Work) {
        for (event, url) in std::mem::take(&mut work.subscriptions) {
            let host = url.host_str().unwrap_or_default().to_owned();
            if self.subscriber.confirm(url).await {
                tracing::info!(host, "confirmed a subscription");
                work.done.push(event.id);
            } else {
                tracing::warn!(host, "a subscription could not be confirmed yet");
                work.put_off(event);
            }
        }
    }

    async fn report(&self, work: &mut Work) -> Result<(), TaskError> {
        let named = self.named(&work.heard).await?;
        let ids = work.heard.iter().filter_map(|heard| named.delivery(heard)).collect();
        let subjects = self.store.subjects(ids).await?;
        let (mut events, mut addresses) = (Vec::new(), Vec::new());
        for heard in std::mem::take(&mut work.heard) {
            let delivery = named.delivery(&heard);
            let subject = subjects.iter().find(|subject| Some(subject.about.1) == delivery);
            let Some(subject) = subject else {
                work.put_off(heard.event);
                continue;
            };
            match fate(&heard, subject) {
                Fate::Early if !inbound_webhooks::is_over(heard.event.created_at, clock::now()) => {
                    work.put_off(heard.event);
                    continue;
                }
                Fate::Reported => events.extend(heard.news.kind.map(|kind| told(subject, kind, &heard.news))),
                Fate::Early | Fate::Stale => {}
            }
            work.done.push(heard.event.id);
            addresses.push((heard.event.id, subject.about.1, heard.news.address, heard.news.detail));
        }
        inbound_webhooks::publish(&self.publisher, &events).await?;
        self.judge(addresses).await
    }

    /// Which deliveries providers mean by their own names.
    async fn named(&self, heard: &[Heard]) -> Result<Named, TaskError> {
        let mut named = Named::default();
        for (source, provider) in [
            (EventSource::Sendgrid, ProviderName::Sendgrid),
            (EventSource::Twilio, ProviderName::Twilio),
            (EventSource::Ses, ProviderName::Ses),
        ] {
            let own = heard.iter().filter(|heard| heard.source == source && heard.news.delivery.is_none());
            let refs = own.flat_map(|heard| heard.news.references.clone()).collect();
            let found = self.store.ids_by_ref(provider, refs).await?;
            named.0.extend(found.into_iter().map(|(name, id)| (source, name, id)));
        }
        Ok(named)
    }

    /// What the events say about addresses.
    async fn judge(&self, said: Vec<(Uuid, DeliveryId, AddressNews, Option<String>)>) -> Result<(), TaskError> {
        let with = |wanted: AddressNews| {
            said.iter().filter(move |(.., news, _)| *news == wanted).map(|(event, delivery, ..)| (*event, *delivery))
        };
        let works: Vec<DeliveryId> = with(AddressNews::Works).map(|(_, delivery)| delivery).collect();
        self.store.forget_soft_bounces(works).await?;
        let weak = self.store.count_soft_bounces(with(AddressNews::Weak).collect()).await?;
        let mut findings: Vec<Finding> = weak
            .into_iter()
            .map(|delivery| Finding {
                delivery,
                scope: SuppressionScope::All,
                reason: SuppressionReason::SoftBounces,
                detail: None,
            })
            .collect();
        findings.extend(said.into_iter().filter_map(|(_, delivery, news, detail)| match news {
            AddressNews::Suppress(scope, reason) => Some(Finding { delivery, scope, reason, detail }),
            AddressNews::None | AddressNews::Works | AddressNews::Weak => None,
        }));
        self.store.suppress(&findings).await?;
        Ok(())
    }

    async fn forget(&mut self) -> Result<(), TaskError> {
        if self.forgot_at.is_none_or(|at| at.elapsed() >= FORGET_EVERY)
            && !self.store.forget_provider_events(FORGET_LIMIT).await?
        {
            self.forgot_at = Some(Instant::now());
        }
        Ok(())
    }
}

/// What providers call deliveries.
#[derive(Default)]
struct Named(Vec<(EventSource, String, DeliveryId)>);

impl Named {
    /// The delivery that an event is about: by our own id, else by the provider's.
    fn delivery(&self, heard: &Heard) -> Option<DeliveryId> {
        let by_ref = || {
            let named = |name: &String| {
                self.0.iter().find(|(source, own, _)| *source == heard.source && own == name).map(|(.., id)| *id)
            };
            heard.news.references.iter().find_map(named)
        };
        heard.news.delivery.or_else(by_ref)
    }
}

impl Work {
    /// Looks at an event again later, unless that has been done for long enough.
    fn put_off(&mut self, event: PendingProviderEvent) {
        match inbound_webhooks::is_over(event.created_at, clock::now()) {
            true => self.ignored.push(event.id),
            false => self.later.push(event),
        }
    }
}

impl WebhookTable for ProviderEvents {
    type Event = PendingProviderEvent;
    const TABLE: InboundWebhook = InboundWebhook::Provider;

    fn row(event: &PendingProviderEvent) -> (Uuid, i16) {
        (event.id, event.tries)
    }

    async fn work_through(&self, events: Vec<PendingProviderEvent>) -> Result<(), TaskError> {
        let mut work = sort(events);
        self.subscribe(&mut work).await;
        self.report(&mut work).await?;
        let waits = work.later.iter().map(|event| pause_ms(event.tries)).collect();
        let later = work.later.iter().map(|event| event.id).collect();
        self.store.put_off_events(InboundWebhook::Provider, later, waits).await?;
        self.store.end_events(InboundWebhook::Provider, work.done, work.ignored).await?;
        Ok(())
    }
}

impl Task for ProviderEvents {
    const NAME: &'static str = "provider_events";
    const PERIOD: Duration = inbound_webhooks::PERIOD;
    const WORK: Option<WorkKind> = Some(WorkKind::ProviderEvents);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let events = self.store.take_provider_events(LIMIT, LEASE_MS).await?;
        if events.is_empty() {
            self.forget().await?;
            return Ok(Report::Done);
        }
        let report = if i64::try_from(events.len()) == Ok(LIMIT) { Report::More } else { Report::Done };
        inbound_webhooks::work_through(&*self, &self.store, events).await?;
        Ok(report)
    }
}

/// What each event leads to.
fn sort(events: Vec<PendingProviderEvent>) -> Work {
    let mut work = Work::default();
    for event in events {
        let readable = event.source.zip(event.body.as_deref()).filter(|_| event.tries < TRIES_MAX);
        let said = readable.map(|(source, body)| (source, meaning(source, body, event.created_at)));
        match said {
            Some((source, Meaning::Report(news))) => work.heard.push(Heard { event, source, news }),
            Some((_, Meaning::Subscribe(url))) => work.subscriptions.push((event, url)),
            Some((_, Meaning::Nothing)) | None => {
                counter!("posthaste_provider_events_ignored_total").increment(1);
                work.ignored.push(event.id);
            }
        }
    }
    work
}

/// Whether news fit a delivery as it stands.
///
/// "Delivered" holds whatever the state is by now. "Sent" only resolves an unknown outcome. "Failed" is about one call: it ends a
/// delivery that waits for another call only where the outcome of that call was unknown, and does not touch one that went out by
/// another call.
fn fate(heard: &Heard, subject: &Subject) -> Fate {
    let Some(kind) = heard.news.kind else { return Fate::Stale };
    let is_bad = matches!(kind, EventKind::Failed | EventKind::Bounced);
    if !is_bad && kind != EventKind::Sent {
        return Fate::Reported;
    }
    match subject.state {
        State::Sending => Fate::Early,
        State::Queued | State::Retrying if subject.in_doubt => Fate::Reported,
        State::Queued | State::Retrying | State::Scheduled => Fate::Stale,
        _ if is_bad && is_about_last_call(heard, subject) => Fate::Reported,
        _ => Fate::Stale,
    }
}

/// Whether the call that an event is about may be the last one that was made.
fn is_about_last_call(heard: &Heard, subject: &Subject) -> bool {
    let source = match heard.source {
        EventSource::Sendgrid => ProviderName::Sendgrid,
        EventSource::Twilio => ProviderName::Twilio,
        EventSource::Ses => ProviderName::Ses,
        EventSource::Tracking => return true,
    };
    match subject.provider {
        Some(provider) if provider == source => {
            let names = &heard.news.references;
            names.is_empty() || subject.reference.as_ref().is_none_or(|known| names.contains(known))
        }
        // Both services also take mail by SMTP, and tell of it like this.
        Some(ProviderName::Smtp) => source != ProviderName::Twilio,
        Some(ProviderName::Sandbox) | None => true,
        Some(_) => false,
    }
}

fn told(subject: &Subject, kind: EventKind, news: &News) -> Event {
    Event { detail: news.detail.clone(), ..Event::report(subject.about, kind, news.at) }
}

#[cfg(test)]
mod tests {
    use shared::domain::{Channel, TenantId};

    use super::*;

    fn heard(source: EventSource, kind: EventKind, reference: Option<&str>) -> Heard {
        let event = PendingProviderEvent {
            id: Uuid::now_v7(),
            source: Some(source),
            body: None,
            tries: 1,
            created_at: clock::now(),
        };
        let news = News {
            kind: Some(kind),
            at: clock::now(),
            delivery: None,
            references: reference.map(str::to_owned).into_iter().collect(),
            detail: None,
            address: AddressNews::None,
        };
        Heard { event, source, news }
    }

    fn subject(state: State, provider: Option<ProviderName>, reference: Option<&str>, in_doubt: bool) -> Subject {
        let about = (TenantId(1), DeliveryId::generate(), 2, Channel::Sms);
        Subject { about, state, provider, reference: reference.map(str::to_owned), in_doubt }
    }

    #[test]
    fn news_fit_the_delivery_as_it_stands() {
        use EventKind as Kind;
        let twilio = Some(ProviderName::Twilio);
        for (kind, state, in_doubt, wanted) in [
            (Kind::Delivered, State::Sending, false, Fate::Reported),
            (Kind::Delivered, State::Retrying, false, Fate::Reported),
            (Kind::Opened, State::Sent, false, Fate::Reported),
            (Kind::Complained, State::Delivered, false, Fate::Reported),
            (Kind::Sent, State::Sending, false, Fate::Early),
            (Kind::Sent, State::Retrying, true, Fate::Reported),
            (Kind::Sent, State::Queued, true, Fate::Reported),
            (Kind::Sent, State::Queued, false, Fate::Stale),
            (Kind::Sent, State::Sent, false, Fate::Stale),
            (Kind::Sent, State::Dead, false, Fate::Stale),
            (Kind::Failed, State::Sending, false, Fate::Early),
            (Kind::Failed, State::Retrying, true, Fate::Reported),
            (Kind::Failed, State::Retrying, false, Fate::Stale),
            (Kind::Failed, State::Queued, false, Fate::Stale),
            (Kind::Failed, State::Sent, false, Fate::Reported),
            (Kind::Bounced, State::Delivered, false, Fate::Reported),
        ] {
            let subject = subject(state, twilio, Some("SM1"), in_doubt);
            assert_eq!(
                fate(&heard(EventSource::Twilio, kind, Some("SM1")), &subject),
                wanted,
                "{kind} {state} {in_doubt}"
            );
        }
    }

    #[test]
    fn what_failed_on_another_call_does_not_end_a_delivery() {
        let bounced = |source, reference| heard(source, EventKind::Bounced, Some(reference));
        let by = |provider| subject(State::Sent, Some(provider), Some("a"), false);
        assert_eq!(fate(&bounced(EventSource::Sendgrid, "a"), &by(ProviderName::Sendgrid)), Fate::Reported);
        assert_eq!(
            fate(&bounced(EventSource::Sendgrid, "b"), &by(ProviderName::Sendgrid)),
            Fate::Stale,
            "an earlier call"
        );
        assert_eq!(fate(&bounced(EventSource::Sendgrid, "a"), &by(ProviderName::Ses)), Fate::Stale, "another provider");
        assert_eq!(fate(&bounced(EventSource::Ses, "b"), &by(ProviderName::Smtp)), Fate::Reported, "SES behind SMTP");
        assert_eq!(fate(&bounced(EventSource::Twilio, "b"), &by(ProviderName::Smtp)), Fate::Stale);
        let nameless = subject(State::Sent, Some(ProviderName::Ses), None, false);
        assert_eq!(fate(&bounced(EventSource::Ses, "b"), &nameless), Fate::Reported);
    }
}
