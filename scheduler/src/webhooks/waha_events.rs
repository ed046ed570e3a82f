//! Processes WAHA events: it stores messages from people, and applies session states and acknowledgements.
//!
//! Events are leased for a while, not locked. All their effects may be repeated, so another scheduler simply takes the
//! events of a scheduler that died.

use std::{collections::BTreeSet, time::Duration};

use broker::Publisher;
use chrono::{DateTime, Utc};
use connectors::waha::event::{Ack, FromPerson, FromUs, Meaning, meaning, own_id, reference};
use deliveries::{Deliveries, events::Referred, poll::WorkKind};
use domain::{EventKind, ProviderName, clock, contract::Event, phone::country_prefix};
use metrics::counter;
use records::{Records, inbound_webhooks::InboundWebhook, wa_inbound::NewInbound, waha_events::PendingEvent};
use runtime::metric;
use store::Store;
use uuid::Uuid;

use crate::{
    task::{Report, Task, TaskError, count_of},
    webhooks::inbound_webhooks::{self, LEASE_MS, LIMIT, TRIES_MAX, WebhookTable, pause_ms},
};

/// The task that processes WAHA events.
pub struct WahaEvents {
    store: Store,
    publisher: Publisher,
}

/// The events of one turn, sorted by what to do with them.
#[derive(Default)]
struct Work {
    inbound: Vec<NewInbound>,
    states: Vec<(Uuid, String, DateTime<Utc>)>,
    acks: Vec<PendingAck>,
    echoes: Vec<(PendingEvent, FromUs)>,
    done: Vec<Uuid>,
    ignored: Vec<Uuid>,
    later: Vec<PendingEvent>,
}

struct PendingAck {
    event: PendingEvent,
    waha_id: String,
    ack: Ack,
    at: DateTime<Utc>,
}

impl WahaEvents {
    /// Publishes reports through `publisher`.
    pub const fn new(store: Store, publisher: Publisher) -> Self {
        Self { store, publisher }
    }

    /// Reports acknowledgements to the log writer. An acknowledgement whose message is not known yet waits.
    async fn report(&self, work: &mut Work) -> Result<(), TaskError> {
        if work.acks.is_empty() {
            return Ok(());
        }
        let asked = work.acks.iter().flat_map(|acked| reference_forms(acked.event.session, &acked.waha_id)).collect();
        let known = self.store.delivery_log().deliveries_by_ref(ProviderName::Waha, asked).await?;
        let now = clock::now();
        let mut events = Vec::new();
        for acked in std::mem::take(&mut work.acks) {
            let own = reference_forms(acked.event.session, &acked.waha_id);
            let found: Vec<&Referred> = known
                .iter()
                .filter(|referred| own.contains(&referred.name) && referred.about.0 == acked.event.tenant)
                .collect();
            if found.is_empty() {
                match inbound_webhooks::is_expired(acked.event.created_at, now) {
                    true => work.ignored.push(acked.event.id),
                    false => work.later.push(acked.event),
                }
                continue;
            }
            work.done.push(acked.event.id);
            events.extend(found.into_iter().filter_map(|referred| report_event(referred, acked.ack, acked.at)));
        }
        inbound_webhooks::publish(&self.publisher, &events).await
    }

    /// Handles WAHA's echo of our own message. It proves that a delivery with an unknown outcome, whose response was
    /// lost, was sent.
    async fn echo(&self, work: &mut Work) -> Result<(), TaskError> {
        let mut events = Vec::new();
        for (event, echo) in std::mem::take(&mut work.echoes) {
            // Typed on the phone, not sent by Posthaste.
            if !echo.by_api {
                work.ignored.push(event.id);
                continue;
            }
            work.done.push(event.id);
            let name = reference(event.session, &echo.waha_id);
            let settled = self.store.holds().resolve(event.session, &echo.chat_id, &echo.body, &name).await?;
            events.extend(settled.map(|about| Event::report(about, EventKind::Sent, echo.sent_at)));
        }
        inbound_webhooks::publish(&self.publisher, &events).await
    }
}

impl WebhookTable for WahaEvents {
    type Event = PendingEvent;
    const TABLE: InboundWebhook = InboundWebhook::Waha;

    fn row(event: &PendingEvent) -> (Uuid, i16) {
        (event.id, event.tries)
    }

    async fn process(&self, events: Vec<PendingEvent>) -> Result<(), TaskError> {
        let mut work = classify(events);
        let (people, new) =
            (work.inbound.len(), self.store.whatsapp_inbound().insert(std::mem::take(&mut work.inbound)).await?);
        counter!(metric::WAHA_INBOUND).increment(count_of(new));
        tracing::debug!(people, new, "kept messages from people");
        for (session, state, at) in std::mem::take(&mut work.states) {
            self.store.whatsapp_sessions().set_state(session, &state, Some(at)).await?;
        }
        self.echo(&mut work).await?;
        self.report(&mut work).await?;
        let waits = work.later.iter().map(|event| pause_ms(event.tries)).collect();
        self.store
            .inbound_webhooks()
            .put_off(InboundWebhook::Waha, work.later.iter().map(|event| event.id).collect(), waits)
            .await?;
        self.store.inbound_webhooks().end(InboundWebhook::Waha, work.done, work.ignored).await?;
        Ok(())
    }
}

impl Task for WahaEvents {
    const NAME: &'static str = "waha_events";
    const PERIOD: Duration = inbound_webhooks::PERIOD;
    const WORK: Option<WorkKind> = Some(WorkKind::WahaEvents);

    async fn run(&mut self) -> Result<Report, TaskError> {
        let events = self.store.waha_events().take(LIMIT, LEASE_MS).await?;
        if events.is_empty() {
            return Ok(Report::Done);
        }
        let report = if i64::try_from(events.len()) == Ok(LIMIT) { Report::More } else { Report::Done };
        let sessions: BTreeSet<Uuid> = events.iter().map(|event| event.session).collect();
        self.store.waha_events().note_heard(sessions.into_iter().collect()).await?;
        inbound_webhooks::process(&*self, &self.store, events).await?;
        Ok(report)
    }
}

/// Sorts events by what to do with them.
fn classify(events: Vec<PendingEvent>) -> Work {
    let mut work = Work::default();
    for event in events {
        let body = event.body.as_deref().filter(|_| event.tries < TRIES_MAX);
        let meaning = body.map_or(Meaning::Nothing, |body| meaning(body, event.created_at));
        match meaning {
            Meaning::Person(message) => {
                work.done.push(event.id);
                work.inbound.push(inbound(&event, *message));
            }
            Meaning::State { state, at } => {
                work.done.push(event.id);
                work.states.push((event.session, state, at));
            }
            Meaning::Ack { waha_id, ack, at } => work.acks.push(PendingAck { event, waha_id, ack, at }),
            Meaning::Echo(echo) => work.echoes.push((event, echo)),
            Meaning::Failure => {
                counter!(metric::WAHA_ERRORS).increment(1);
                tracing::warn!(session.id = %event.session, "WAHA reports an error of its own");
                work.done.push(event.id);
            }
            Meaning::Nothing => work.ignored.push(event.id),
        }
    }
    work
}

fn inbound(event: &PendingEvent, message: FromPerson) -> NewInbound {
    let FromPerson { waha_id, sender, recipient, kind, content, sent_at, raw_sent_at } = message;
    let country = country_prefix(&sender).map(str::to_owned);
    let waha_id = own_id(&waha_id).to_owned();
    let (tenant, session) = (event.tenant, event.session);
    NewInbound { tenant, session, waha_id, sender, recipient, kind, content, country, sent_at, raw_sent_at }
}

/// The two possible names of a message: its distinguishing part, or its id as WAHA writes it.
fn reference_forms(session: Uuid, waha_id: &str) -> [String; 2] {
    [reference(session, waha_id), format!("{session}/{waha_id}")]
}

fn report_event(referred: &Referred, ack: Ack, at: DateTime<Utc>) -> Option<Event> {
    let kind = match ack {
        Ack::Error => EventKind::Failed,
        Ack::Pending => return None,
        Ack::Server => EventKind::Sent,
        Ack::Device => EventKind::Delivered,
        Ack::Read => EventKind::Read,
        Ack::Played => EventKind::Played,
    };
    let detail = (ack == Ack::Error).then(|| "WhatsApp did not take the message".to_owned());
    Some(Event { detail, ..Event::report(referred.about, kind, at) })
}

#[cfg(test)]
mod tests {
    use domain::{Channel, DeliveryId, State, TenantId};
    use serde_json::{Value, json};

    use super::*;

    fn event(body: &Value) -> PendingEvent {
        PendingEvent {
            id: Uuid::now_v7(),
            tenant: TenantId(1),
            session: Uuid::now_v7(),
            event: "message".to_owned(),
            body: Some(body.to_string().into_bytes()),
            tries: 1,
            created_at: clock::now(),
        }
    }

    #[test]
    fn each_event_goes_where_it_belongs_and_what_is_not_known_is_ignored() {
        let work = classify(vec![
            event(
                &json!({"event": "message", "session": "s", "payload": {"id": "1", "from": "4915112345678@c.us", "body": "hi"}}),
            ),
            event(&json!({"event": "session.status", "session": "s", "payload": {"status": "WORKING"}})),
            event(&json!({"event": "message.ack", "session": "s", "payload": {"id": "1", "ack": 2}})),
            event(
                &json!({"event": "message.any", "session": "s", "payload": {"id": "2", "fromMe": true, "source": "api"}}),
            ),
            event(&json!({"event": "api.error", "session": "s"})),
            event(&json!({"event": "label.upsert", "session": "s"})),
        ]);
        let counts = (work.inbound.len(), work.states.len(), work.acks.len(), work.echoes.len());
        assert_eq!((counts, work.done.len(), work.ignored.len()), ((1, 1, 1, 1), 3, 1));
        assert_eq!(work.inbound.first().and_then(|message| message.country.as_deref()), Some("+49"));
    }

    #[test]
    fn what_cannot_be_decrypted_or_was_tried_too_often_is_ignored() {
        let body = json!({"event": "message", "session": "s", "payload": {"id": "1", "from": "4915112345678@c.us"}});
        let work = classify(vec![
            PendingEvent { body: None, ..event(&body) },
            PendingEvent { tries: TRIES_MAX, ..event(&body) },
        ]);
        assert_eq!((work.inbound.len(), work.ignored.len()), (0, 2));
    }

    #[test]
    fn an_acknowledgement_becomes_what_it_says() {
        let about = (TenantId(1), DeliveryId::generate(), 3, Channel::Whatsapp);
        let referred = Referred { name: "x".to_owned(), about };
        let report_event =
            |ack| report_event(&referred, ack, clock::now()).map(|event| (event.kind, event.state, event.run));
        assert_eq!(report_event(Ack::Error), Some((EventKind::Failed, State::Failed, 3)));
        assert_eq!(report_event(Ack::Pending), None);
        assert_eq!(report_event(Ack::Server), Some((EventKind::Sent, State::Sent, 3)));
        assert_eq!(report_event(Ack::Device), Some((EventKind::Delivered, State::Delivered, 3)));
        assert_eq!(report_event(Ack::Read), Some((EventKind::Read, State::Delivered, 3)));
    }
}
