//! The live inbox: open sockets that are shown what comes into an inbox.
//!
//! A socket holds nothing but the number up to which its person has seen the inbox. What it shows it reads from the database,
//! after that number, whenever its bell rings: so nothing is missed and nothing shown twice, whatever the bell does. The bell
//! is rung by hints over the broker, once after each time they may have been missed, and now and then by the clock.
//!
//! `follow` is the route, `socket` one open socket, `hub` knows whose bell is where, `feed` reads for many at once.

pub mod feed;
pub mod follow;
pub mod hub;
mod socket;

use shared::{
    amqp::{Broker, Heard, Subscriber, topology},
    contract::wire::InboxHints,
};
use tokio_util::sync::CancellationToken;

use hub::Hub;

/// Rings the bells that hints name, until `stop`.
pub async fn listen(hub: &Hub, broker: &Broker, stop: &CancellationToken) {
    let mut subscriber = Subscriber::new(broker, topology::LIVE, topology::LIVE_INBOX, stop);
    while let Some(heard) = subscriber.next().await {
        match heard {
            Heard::Began => hub.ring_all(),
            Heard::Message(body) => obey(hub, &body),
        }
    }
}

fn obey(hub: &Hub, body: &[u8]) {
    match serde_json::from_slice::<InboxHints>(body) {
        Ok(hints) if hints.p.is_empty() => hub.ring_all(),
        Ok(hints) => hints.p.into_iter().for_each(|person| hub.ring(person)),
        // Of a later version, most likely: looking costs little.
        Err(_) => hub.ring_all(),
    }
}
