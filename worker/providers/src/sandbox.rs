//! A provider for every channel that simulates each outcome without a vendor.
//!
//! The recipient alone decides the outcome, so it is the same each time. A word anywhere in the recipient
//! counts, such as `fail-429@example.com` or `https://example.com/fail-once`; of a phone number (`+` and digits) the
//! last four digits count, such as `+4915100000429`.
//!
//! | word in the recipient          | phone ends in | outcome                                            |
//! |--------------------------------|---------------|----------------------------------------------------|
//! | `fail-transient` or `fail-500` | 0500          | transient, every time                              |
//! | `fail-429`                     | 0429          | throttled, every time                              |
//! | `fail-reject`                  | 0400          | rejected: the delivery fails                       |
//! | `fail-dead`                    | 0410          | address dead: the delivery fails                   |
//! | `fail-misconfigured`           | 0401          | misconfigured: a dead letter                       |
//! | `fail-timeout`                 | 0408          | unknown: may have been sent                        |
//! | `fail-once`                    | 0001          | transient on the first attempt, then sent          |
//! | `fail-twice`                   | 0002          | transient on the first two attempts, then sent     |
//! | anything else                  | anything else | sent, with the reference `sandbox-<delivery id>`   |
//!
//! As with real providers, a sent webhook or in-app notification has arrived; elsewhere `sent` only means taken.

use domain::{
    Channel, Fault, Outcome, ProviderName, Receipt,
    contract::{Order, Provider, provider::Sending},
};

/// The sandbox.
pub struct Sandbox;

/// The outcome that a recipient selects.
#[derive(Clone, Copy)]
enum Simulation {
    Transient,
    Throttled,
    Rejected,
    AddressDead,
    Misconfigured,
    Unknown,
    /// Transient on that many attempts.
    FailFirst(u16),
}

const BY_WORD: &[(&str, Simulation)] = &[
    ("fail-transient", Simulation::Transient),
    ("fail-500", Simulation::Transient),
    ("fail-429", Simulation::Throttled),
    ("fail-reject", Simulation::Rejected),
    ("fail-dead", Simulation::AddressDead),
    ("fail-misconfigured", Simulation::Misconfigured),
    ("fail-timeout", Simulation::Unknown),
    ("fail-once", Simulation::FailFirst(1)),
    ("fail-twice", Simulation::FailFirst(2)),
];

const BY_LAST_DIGITS: &[(&str, Simulation)] = &[
    ("0500", Simulation::Transient),
    ("0429", Simulation::Throttled),
    ("0400", Simulation::Rejected),
    ("0410", Simulation::AddressDead),
    ("0401", Simulation::Misconfigured),
    ("0408", Simulation::Unknown),
    ("0001", Simulation::FailFirst(1)),
    ("0002", Simulation::FailFirst(2)),
];

impl Provider for Sandbox {
    fn name(&self) -> ProviderName {
        ProviderName::Sandbox
    }

    fn send<'a>(&'a self, order: &'a Order) -> Sending<'a> {
        Box::pin(std::future::ready(simulate(order)))
    }
}

fn simulate(order: &Order) -> Outcome {
    let fault = |code: &str| Fault::new(code, "the sandbox was asked for this outcome");
    match simulation(order.recipient.reveal()) {
        Some(Simulation::Transient) => Outcome::Transient(fault("500"), None),
        Some(Simulation::Throttled) => Outcome::Throttled(fault("429"), None),
        Some(Simulation::Rejected) => Outcome::Rejected(fault("400")),
        Some(Simulation::AddressDead) => Outcome::AddressDead(fault("410")),
        Some(Simulation::Misconfigured) => Outcome::Misconfigured(fault("401")),
        Some(Simulation::Unknown) => Outcome::Unknown(fault("timeout")),
        Some(Simulation::FailFirst(attempts)) if order.attempt <= attempts => Outcome::Transient(fault("500"), None),
        Some(Simulation::FailFirst(_)) | None => sent(order),
    }
}

fn simulation(recipient: &str) -> Option<Simulation> {
    let phone = recipient.strip_prefix('+').is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
    let find = |table: &[(&str, Simulation)], fits: &dyn Fn(&str) -> bool| {
        table.iter().find(|(key, _)| fits(key)).map(|(_, simulation)| *simulation)
    };
    match phone {
        true => find(BY_LAST_DIGITS, &|digits| recipient.ends_with(digits)),
        false => find(BY_WORD, &|word| recipient.contains(word)),
    }
}

fn sent(order: &Order) -> Outcome {
    let arrived = matches!(order.channel, Channel::Webhook | Channel::InApp);
    Outcome::Sent(Receipt { provider_ref: Some(format!("sandbox-{}", order.delivery)), arrived, ..Receipt::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::order;
    use domain::OutcomeClass::{self, *};

    async fn class(channel: Channel, recipient: &str, attempt: u16) -> OutcomeClass {
        let order = Order { attempt, ..order(channel, recipient, "{}") };
        Sandbox.send(&order).await.class()
    }

    #[tokio::test]
    async fn the_recipient_alone_decides_how_an_attempt_ends() {
        for (recipient, phone, expected) in [
            ("fail-transient@example.com", "+15550000500", Transient),
            ("fail-500@example.com", "+15550000500", Transient),
            ("fail-429@example.com", "+15550000429", Throttled),
            ("fail-reject@example.com", "+15550000400", Rejected),
            ("fail-dead@example.com", "+15550000410", AddressDead),
            ("fail-misconfigured@example.com", "+15550000401", Misconfigured),
            ("fail-timeout@example.com", "+15550000408", Unknown),
            ("ada@example.com", "+15550001234", Sent),
            ("0500@example.com", "+15550005000", Sent),
        ] {
            assert_eq!(class(Channel::Email, recipient, 1).await, expected, "{recipient}");
            assert_eq!(class(Channel::Sms, phone, 1).await, expected, "{phone}");
        }
    }

    #[tokio::test]
    async fn some_recipients_fail_only_at_first() {
        for (recipient, failures) in
            [("fail-once@x.example", 1), ("+15550000001", 1), ("fail-twice", 2), ("+15550000002", 2)]
        {
            for attempt in 1..=4 {
                let expected = if attempt <= failures { Transient } else { Sent };
                assert_eq!(class(Channel::Push, recipient, attempt).await, expected, "{recipient} {attempt}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_sent_has_a_reference_and_has_arrived_where_real_providers_would_know() {
        for (channel, expected) in
            [(Channel::Webhook, true), (Channel::InApp, true), (Channel::Email, false), (Channel::Sms, false)]
        {
            let order = order(channel, "somebody", "{}");
            let Outcome::Sent(receipt) = Sandbox.send(&order).await else { panic!("not sent") };
            assert_eq!(receipt.provider_ref, Some(format!("sandbox-{}", order.delivery)));
            assert_eq!(receipt.arrived, expected, "{channel}");
        }
    }
}
