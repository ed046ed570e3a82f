//! Processes provider events about deliveries: it sends states and engagement to the log writer, suppresses dead
//! addresses, and confirms subscriptions.
//!
//! Events are leased for a while, not locked. All their effects may be repeated, as for WAHA events.

use std::time::{Duration, Instant};

use broker::Publisher;
use connectors::{
    egress::{self, resolver::GuardedResolver},
    provider_events::{AddressNews, Meaning, Report as ProviderReport, meaning},
};
use deliveries::{
    Deliveries,
    poll::WorkKind,
    provider_events::{PendingProviderEvent, Subject},
};
use domain::{
    Channel, DeliveryId, EventKind, EventSource, ProviderName, State, clock,
    contract::{Event, guard::Guard},
    suppression::{SuppressionReason, SuppressionScope},
};
use metrics::counter;
use records::{Records, inbound_webhooks::InboundWebhook, suppressions::Finding};
use reqwest::Client;
use runtime::metric;
use store::Store;
use url::Url;
use uuid::Uuid;

use crate::{
    task::{Report, Task, TaskError},
    webhooks::inbound_webhooks::{self, LEASE_MS, LIMIT, TRIES_MAX, WebhookTable, pause_ms},
};

/// The longest confirmation of a subscription.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// How often old events are deleted, and how many at once.
const FORGET_EVERY: Duration = Duration::from_secs(600);
const PRUNE_LIMIT: i64 = 5000;

/// Confirms SNS subscriptions.
#[derive(Clone)]
pub struct Subscriber(Client);

impl Subscriber {
    /// A client that reaches only public addresses, and only over TLS.
    pub fn new() -> reqwest::Result<Self> {
        let client = egress::client(CONFIRM_TIMEOUT).dns_resolver(GuardedResolver::shared(Guard::default()));
        client.timeout(CONFIRM_TIMEOUT).https_only(true).build().map(Self)
    }

    async fn confirm(&self, url: Url) -> bool {
        self.0.get(url).send().await.is_ok_and(|response| response.status().is_success())
    }
}

/// The task that processes provider events.
pub struct ProviderEvents {
    store: Store,
    publisher: Publisher,
    subscriber: Subscriber,
    forgot_at: Option<Instant>,
}

/// An event with its parsed report.
struct ParsedEvent {
    event: PendingProviderEvent,
    source: EventSource,
    report: ProviderReport,
}

/// The events of one turn, sorted by what to do with them.
#[derive(Default)]
struct Work {
    parsed: Vec<ParsedEvent>,
    subscriptions: Vec<(PendingProviderEvent, Url)>,
    done: Vec<Uuid>,
    ignored: Vec<Uuid>,
    later: Vec<PendingProviderEvent>,
}

/// The decision about a report, by the state of its delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReportDecision {
    /// Publish it.
    Reported,
    /// The outcome of the call is not written yet. Wait.
    Early,
    /// It is about another call, or already known. Drop it.
    Stale,
}

impl ProviderEvents {
    /// Publishes reports through `publisher`.
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
                work.retry_later(event);
            }
        }
    }

    async fn report(&self, work: &mut Work) -> Result<(), TaskError> {
        let named = self.resolve_references(&work.parsed).await?;
        let ids = work.parsed.iter().filter_map(|parsed| named.delivery(parsed)).collect();
        let subjects = self.store.provider_events().subjects(ids).await?;
        let (mut events, mut addresses) = (Vec::new(), Vec::new());
        for parsed in std::mem::take(&mut work.parsed) {
            let delivery = named.delivery(&parsed);
            let subject = subjects.iter().find(|subject| Some(subject.about.1) == delivery);
            let Some(subject) = subject else {
                work.retry_later(parsed.event);
                continue;
            };
            match decide_report(&parsed, subject) {
                ReportDecision::Early if !inbound_webhooks::is_expired(parsed.event.created_at, clock::now()) => {
                    work.retry_later(parsed.event);
                    continue;
                }
                ReportDecision::Reported => {
                    events.extend(parsed.report.kind.map(|kind| report_event(subject, kind, &parsed.report)))
                }
                ReportDecision::Early | ReportDecision::Stale => {}
            }
            work.done.push(parsed.event.id);
            addresses.push((parsed.event.id, subject.about.1, parsed.report.address, parsed.report.detail));
        }
        inbound_webhooks::publish(&self.publisher, &events).await?;
        self.apply_address_news(addresses).await
    }

    /// Finds the deliveries of events that carry only the provider's own reference.
    async fn resolve_references(&self, parsed: &[ParsedEvent]) -> Result<ReferencedDeliveries, TaskError> {
        let mut named = ReferencedDeliveries::default();
        for provider in ProviderName::ALL.iter().copied() {
            let Some(source) = provider.info().reported_by else { continue };
            let own = parsed.iter().filter(|parsed| parsed.source == source && parsed.report.delivery.is_none());
            let refs = own.flat_map(|parsed| parsed.report.references.clone()).collect();
            let found = self.store.provider_events().ids_by_ref(provider, refs).await?;
            named.0.extend(found.into_iter().map(|(name, id)| (source, name, id)));
        }
        Ok(named)
    }

    /// Applies what the events say about addresses: counts soft bounces and suppresses dead addresses.
    async fn apply_address_news(
        &self,
        address_news: Vec<(Uuid, DeliveryId, AddressNews, Option<String>)>,
    ) -> Result<(), TaskError> {
        let with = |wanted: AddressNews| {
            address_news
                .iter()
                .filter(move |(.., news, _)| *news == wanted)
                .map(|(event, delivery, ..)| (*event, *delivery))
        };
        let works: Vec<DeliveryId> = with(AddressNews::Works).map(|(_, delivery)| delivery).collect();
        self.store.provider_events().prune_soft_bounces(works).await?;
        let weak = self.store.provider_events().count_soft_bounces(with(AddressNews::Weak).collect()).await?;
        let mut findings: Vec<Finding> = weak
            .into_iter()
            .map(|delivery| Finding {
                delivery,
                scope: SuppressionScope::All,
                reason: SuppressionReason::SoftBounces,
                detail: None,
            })
            .collect();
        findings.extend(address_news.into_iter().filter_map(|(_, delivery, news, detail)| match news {
            AddressNews::Suppress(scope, reason) => Some(Finding { delivery, scope, reason, detail }),
            AddressNews::None | AddressNews::Works | AddressNews::Weak => None,
        }));
        self.store.suppressions().suppress(&findings).await?;
        Ok(())
    }

    async fn forget(&mut self) -> Result<(), TaskError> {
        if self.forgot_at.is_none_or(|at| at.elapsed() >= FORGET_EVERY)
            && !self.store.provider_events().prune(PRUNE_LIMIT).await?
        {
            self.forgot_at = Some(Instant::now());
        }
        Ok(())
    }
}

/// The deliveries of provider references.
#[derive(Default)]
struct ReferencedDeliveries(Vec<(EventSource, String, DeliveryId)>);

impl ReferencedDeliveries {
    /// The delivery of an event: by our own id, else by the provider's reference.
    fn delivery(&self, parsed: &ParsedEvent) -> Option<DeliveryId> {
        let by_ref = || {
            let named = |name: &String| {
                self.0.iter().find(|(source, own, _)| *source == parsed.source && own == name).map(|(.., id)| *id)
            };
            parsed.report.references.iter().find_map(named)
        };
        parsed.report.delivery.or_else(by_ref)
    }
}

impl Work {
    /// Retries an event later, unless it has waited for long enough.
    fn retry_later(&mut self, event: PendingProviderEvent) {
        match inbound_webhooks::is_expired(event.created_at, clock::now()) {
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

    async fn process(&self, events: Vec<PendingProviderEvent>) -> Result<(), TaskError> {
        let mut work = classify(events);
        self.subscribe(&mut work).await;
        self.report(&mut work).await?;
        let waits = work.later.iter().map(|event| pause_ms(event.tries)).collect();
        let later = work.later.iter().map(|event| event.id).collect();
        self.store.inbound_webhooks().put_off(InboundWebhook::Provider, later, waits).await?;
        self.store.inbound_webhooks().end(InboundWebhook::Provider, work.done, work.ignored).await?;
        Ok(())
    }
}

impl Task for ProviderEvents {
    const NAME: &'static str = "provider_events";
    const PERIOD: Duration = inbound_webhooks::PERIOD;
    const WORK: Option<WorkKind> = Some(WorkKind::ProviderEvents);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let events = self.store.provider_events().take(LIMIT, LEASE_MS).await?;
        if events.is_empty() {
            self.forget().await?;
            return Ok(Report::Done);
        }
        let report = if i64::try_from(events.len()) == Ok(LIMIT) { Report::More } else { Report::Done };
        inbound_webhooks::process(&*self, &self.store, events).await?;
        Ok(report)
    }
}

/// Sorts events by what to do with them.
fn classify(events: Vec<PendingProviderEvent>) -> Work {
    let mut work = Work::default();
    for event in events {
        let readable = event.source.zip(event.body.as_deref()).filter(|_| event.tries < TRIES_MAX);
        let understood = readable.map(|(source, body)| (source, meaning(source, body, event.created_at)));
        match understood {
            Some((source, Meaning::Report(report))) => work.parsed.push(ParsedEvent { event, source, report }),
            Some((_, Meaning::Subscribe(url))) => work.subscriptions.push((event, url)),
            Some((_, Meaning::Nothing)) | None => {
                counter!(metric::PROVIDER_EVENTS_IGNORED).increment(1);
                work.ignored.push(event.id);
            }
        }
    }
    work
}

/// Decides whether a report applies to the current state of its delivery.
///
/// "Delivered" applies in every state. "Sent" only resolves an unknown outcome. "Failed" is about one call: it ends a
/// delivery that waits for another call only if that call's outcome was unknown, and it does not change a delivery that
/// another call sent.
fn decide_report(parsed: &ParsedEvent, subject: &Subject) -> ReportDecision {
    let Some(kind) = parsed.report.kind else { return ReportDecision::Stale };
    let is_bad = matches!(kind, EventKind::Failed | EventKind::Bounced);
    if !is_bad && kind != EventKind::Sent {
        return ReportDecision::Reported;
    }
    match subject.state {
        State::Sending => ReportDecision::Early,
        State::Queued | State::Retrying if subject.in_doubt => ReportDecision::Reported,
        State::Queued | State::Retrying | State::Scheduled => ReportDecision::Stale,
        _ if is_bad && is_about_last_call(parsed, subject) => ReportDecision::Reported,
        _ => ReportDecision::Stale,
    }
}

/// True if the event may be about the last call of its delivery.
fn is_about_last_call(parsed: &ParsedEvent, subject: &Subject) -> bool {
    if parsed.source == EventSource::Tracking {
        return true;
    }
    match subject.provider {
        Some(provider) if provider.is_reported_by(parsed.source) => {
            let names = &parsed.report.references;
            names.is_empty() || subject.reference.as_ref().is_none_or(|known| names.contains(known))
        }
        // A service that sends mail also takes it over SMTP, and reports on it in the same way.
        Some(ProviderName::Smtp) => ProviderName::of(Channel::Email).any(|name| name.is_reported_by(parsed.source)),
        Some(provider) => provider.info().simulates,
        None => true,
    }
}

fn report_event(subject: &Subject, kind: EventKind, report: &ProviderReport) -> Event {
    Event { detail: report.detail.clone(), ..Event::report(subject.about, kind, report.at) }
}

#[cfg(test)]
mod tests {
    use domain::TenantId;

    use super::*;

    fn parsed(source: EventSource, kind: EventKind, reference: Option<&str>) -> ParsedEvent {
        let event = PendingProviderEvent {
            id: Uuid::now_v7(),
            source: Some(source),
            body: None,
            tries: 1,
            created_at: clock::now(),
        };
        let report = ProviderReport {
            kind: Some(kind),
            at: clock::now(),
            delivery: None,
            references: reference.map(str::to_owned).into_iter().collect(),
            detail: None,
            address: AddressNews::None,
        };
        ParsedEvent { event, source, report }
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
            (Kind::Delivered, State::Sending, false, ReportDecision::Reported),
            (Kind::Delivered, State::Retrying, false, ReportDecision::Reported),
            (Kind::Opened, State::Sent, false, ReportDecision::Reported),
            (Kind::Complained, State::Delivered, false, ReportDecision::Reported),
            (Kind::Sent, State::Sending, false, ReportDecision::Early),
            (Kind::Sent, State::Retrying, true, ReportDecision::Reported),
            (Kind::Sent, State::Queued, true, ReportDecision::Reported),
            (Kind::Sent, State::Queued, false, ReportDecision::Stale),
            (Kind::Sent, State::Sent, false, ReportDecision::Stale),
            (Kind::Sent, State::Dead, false, ReportDecision::Stale),
            (Kind::Failed, State::Sending, false, ReportDecision::Early),
            (Kind::Failed, State::Retrying, true, ReportDecision::Reported),
            (Kind::Failed, State::Retrying, false, ReportDecision::Stale),
            (Kind::Failed, State::Queued, false, ReportDecision::Stale),
            (Kind::Failed, State::Sent, false, ReportDecision::Reported),
            (Kind::Bounced, State::Delivered, false, ReportDecision::Reported),
        ] {
            let subject = subject(state, twilio, Some("SM1"), in_doubt);
            assert_eq!(
                decide_report(&parsed(EventSource::Twilio, kind, Some("SM1")), &subject),
                wanted,
                "{kind} {state} {in_doubt}"
            );
        }
    }

    #[test]
    fn what_failed_on_another_call_does_not_end_a_delivery() {
        let bounced = |source, reference| parsed(source, EventKind::Bounced, Some(reference));
        let by = |provider| subject(State::Sent, Some(provider), Some("a"), false);
        assert_eq!(
            decide_report(&bounced(EventSource::Sendgrid, "a"), &by(ProviderName::Sendgrid)),
            ReportDecision::Reported
        );
        assert_eq!(
            decide_report(&bounced(EventSource::Sendgrid, "b"), &by(ProviderName::Sendgrid)),
            ReportDecision::Stale,
            "an earlier call"
        );
        assert_eq!(
            decide_report(&bounced(EventSource::Sendgrid, "a"), &by(ProviderName::Ses)),
            ReportDecision::Stale,
            "another provider"
        );
        assert_eq!(
            decide_report(&bounced(EventSource::Ses, "b"), &by(ProviderName::Smtp)),
            ReportDecision::Reported,
            "SES behind SMTP"
        );
        assert_eq!(decide_report(&bounced(EventSource::Twilio, "b"), &by(ProviderName::Smtp)), ReportDecision::Stale);
        let nameless = subject(State::Sent, Some(ProviderName::Ses), None, false);
        assert_eq!(decide_report(&bounced(EventSource::Ses, "b"), &nameless), ReportDecision::Reported);
    }
}
