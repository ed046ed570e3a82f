//! Turns a notice and a person into a message with one delivery per channel: for requests, rules, digests and
//! broadcasts alike.

use chrono::{DateTime, Utc};
use domain::{
    Address, Channel, DeliveryId, Lane, MessageId, Person, Priority, Route,
    acceptance::{NewDelivery, NewMessage},
    contract::submission::Content,
};
use uuid::Uuid;

/// A notice to one person or many.
#[derive(Clone, Debug)]
pub struct Notice {
    /// The channels.
    pub channels: Vec<Channel>,
    /// The content; with `parts` where channels differ.
    pub content: Content,
    /// The priority.
    pub priority: Priority,
    /// The lane.
    pub lane: Lane,
    /// When to send it, if later than now.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// When it expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// The WhatsApp session to send it through.
    pub session: Option<Uuid>,
}

impl Notice {
    /// The message with this notice to `person`: one delivery per channel, for push one per device. If the person has
    /// no address for a channel, the delivery has none either, and the worker ends it for that reason. `content`: as
    /// JSON; `None`: the bulk's.
    pub fn to(&self, person: &Person, content: Option<Vec<u8>>) -> NewMessage {
        // The message needs the smaller id: queries search for deliveries after their message.
        let id = MessageId::generate();
        let deliveries = self.channels.iter().flat_map(|channel| self.deliveries(person, *channel)).collect();
        NewMessage {
            id,
            user_id: Some(person.id.clone()),
            category: self.content.category.clone(),
            priority: self.priority.as_str(),
            content,
            scheduled_at: self.scheduled_at,
            expires_at: self.expires_at,
            deliveries,
            template: self.content.template.as_ref().map(|template| template.name.clone()),
        }
    }

    fn deliveries(&self, person: &Person, channel: Channel) -> Vec<NewDelivery> {
        let mut addresses = person.addresses(channel);
        if addresses.is_empty() {
            addresses.push(Address::new(""));
        }
        let delivery = |recipient: Address| NewDelivery {
            id: DeliveryId::generate(),
            route: Route { channel, lane: self.lane },
            line: self.session.filter(|_| channel == Channel::Whatsapp && !recipient.reveal().is_empty()),
            recipient,
            rank: self.priority.rank(),
            kind: self.content.kind_of_message(),
        };
        addresses.into_iter().map(delivery).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_older_than_its_deliveries_and_has_one_for_each_address() {
        let notice = Notice {
            channels: vec![Channel::InApp, Channel::Email],
            content: Content::default(),
            priority: Priority::Normal,
            lane: Lane::Normal,
            scheduled_at: None,
            expires_at: None,
            session: None,
        };
        let message = notice.to(&Person::unknown("ada"), None);
        let recipients: Vec<&str> = message.deliveries.iter().map(|delivery| delivery.recipient.reveal()).collect();
        assert_eq!(recipients, ["ada", ""]);
        assert!(message.deliveries.iter().all(|delivery| message.id.0 < delivery.id.0));
    }
}
