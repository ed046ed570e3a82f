//! The live inbox: WebSockets that push new inbox items.
//!
//! A socket keeps only the sequence number up to which its person has seen the inbox. Whenever its bell rings, it reads the
//! later items from the database. So no item is missed or sent twice, however often the bell rings. The bell is rung by
//! hints over the broker, once after hints may have been lost, and periodically.
//!
//! `follow` is the route, `socket` one open socket, `hub` registers the bells, `feed` reads for many sockets at once.

pub mod feed;
pub mod follow;
pub mod hub;
mod socket;
pub mod state;

use broker::{Broker, Heard, Subscriber, topology};
use domain::contract::wire::InboxHints;
use tokio_util::sync::CancellationToken;

use hub::Hub;

/// Rings the bells for hints from the broker, until `stop`.
pub async fn listen(hub: &Hub, broker: &Broker, stop: &CancellationToken) {
    let mut subscriber = Subscriber::new(broker, topology::LIVE, topology::LIVE_INBOX, stop);
    while let Some(event) = subscriber.next().await {
        match event {
            Heard::Began => hub.ring_all(),
            Heard::Message(body) => obey(hub, &body),
        }
    }
}

fn obey(hub: &Hub, body: &[u8]) {
    match serde_json::from_slice::<InboxHints>(body) {
        Ok(hints) if hints.p.is_empty() => hub.ring_all(),
        Ok(hints) => hints.p.into_iter().for_each(|person| hub.ring(person)),
        // Probably from a later version. Checking all inboxes costs little.
        Err(_) => hub.ring_all(),
    }
}
