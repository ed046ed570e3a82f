//! From the acceptance of a message to its outcome: one file per table or aggregate, its statements in `sql/`.
//!
//! [`Deliveries`] is the table of contents: each of its methods gives the statements of one file.

pub mod accept;
pub mod breakers;
pub mod broadcasts;
pub mod claim;
pub mod digests;
pub mod due;
pub mod events;
pub mod expiry;
pub mod holds;
pub mod letters;
pub mod lines;
pub mod messages;
pub mod outbox;
pub mod poll;
pub mod provider_events;
mod recipient_policy;
pub mod release;
pub mod schema;
pub mod side_records;
pub mod throttles;
pub mod unread_events;
pub mod wa_outbound;
pub mod webhook_events;

store::handles! {
    /// From the acceptance of a message to its outcome.
    pub trait Deliveries {
        /// Acceptance of messages.
        acceptance: AcceptanceStore,
        /// Breakers of providers, sessions and receivers.
        breakers: BreakerStore,
        /// Broadcasts.
        broadcasts: BroadcastStore,
        /// Claims of deliveries.
        claims: ClaimStore,
        /// Digests.
        digests: DigestStore,
        /// Deliveries with a due time, and claims that may be lost.
        due: DueStore,
        /// The delivery log.
        delivery_log: DeliveryLog,
        /// Deliveries that expire.
        expiry: ExpiryStore,
        /// Calls with an unknown end.
        holds: HoldStore,
        /// Dead letters.
        dead_letters: DeadLetterStore,
        /// Replays of dead letters.
        replays: ReplayStore,
        /// Pacing queues.
        lines: LineStore,
        /// Messages and their timelines.
        messages: MessageStore,
        /// The outbox.
        outbox: OutboxStore,
        /// The first due time of each kind of work.
        polls: PollStore,
        /// Reports of providers.
        provider_events: ProviderEventStore,
        /// Preferences of recipients, for claims.
        recipient_policies: PolicyStore,
        /// Rows that an acceptance writes beside its messages.
        side_records: SideRecordStore,
        /// Limits per person and category.
        throttles: ThrottleStore,
        /// Events that this version cannot read or write.
        unread_events: UnreadEventStore,
        /// Sent WhatsApp messages.
        whatsapp_outbound: WhatsappOutboundStore,
        /// Events for webhook configurations.
        webhook_events: WebhookEventStore,
    }
}

/// Every statement, for the test that compares them with the schema.
pub fn statements() -> Vec<store::sql::Shape> {
    let modules = [
        accept::shapes(),
        accept::columns::shapes(),
        breakers::shapes(),
        broadcasts::shapes(),
        claim::shapes(),
        digests::shapes(),
        due::shapes(),
        events::shapes(),
        expiry::shapes(),
        holds::shapes(),
        letters::shapes(),
        letters::replay::shapes(),
        lines::shapes(),
        messages::shapes(),
        outbox::shapes(),
        poll::shapes(),
        provider_events::shapes(),
        recipient_policy::shapes(),
        side_records::shapes(),
        throttles::shapes(),
        unread_events::shapes(),
        wa_outbound::shapes(),
        webhook_events::shapes(),
    ];
    modules.into_iter().flatten().collect()
}
