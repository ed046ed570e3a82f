//! The live inbox: WebSockets that push new inbox items.
//!
//! A socket keeps only the sequence number up to which its person has seen the inbox. Whenever it is woken, it reads the
//! later items from the database. So no item is missed or sent twice, however often it is woken. Hints over the broker wake
//! it, so does the end of a time in which hints may have been lost, and so does a timer.
//!
//! `follow` is the route, `socket` one open socket, `hub` registers them, `feed` reads for many sockets at once.

pub mod feed;
pub mod follow;
pub mod hub;
mod socket;
pub mod state;

use broker::{Broker, Heard, Subscriber, topology};
use domain::contract::wire::InboxHints;
use tokio_util::sync::CancellationToken;

use hub::Hub;

/// Wakes the sockets that hints from the broker name, until `stop`.
pub async fn listen(hub: &Hub, broker: &Broker, stop: &CancellationToken) {
    let mut subscriber = Subscriber::new(broker, topology::LIVE, topology::LIVE_INBOX, stop);
    while let Some(event) = subscriber.next().await {
        match event {
            Heard::Began => hub.notify_all(),
            Heard::Message(body) => notify_hinted(hub, &body),
        }
    }
}

fn notify_hinted(hub: &Hub, body: &[u8]) {
    match serde_json::from_slice::<InboxHints>(body) {
        Ok(hints) if hints.p.is_empty() => hub.notify_all(),
        Ok(hints) => hints.p.into_iter().for_each(|person| hub.notify(person)),
        // Probably from a later version. Checking all inboxes costs little.
        Err(_) => hub.notify_all(),
    }
}
