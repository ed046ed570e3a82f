//! One value per channel, complete by construction.

use domain::Channel;

/// A value for each channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByChannel<T> {
    /// For e-mail.
    pub email: T,
    /// For text messages.
    pub sms: T,
    /// For push notifications.
    pub push: T,
    /// For webhooks.
    pub webhook: T,
    /// For the in-app inbox.
    pub in_app: T,
    /// For WhatsApp.
    pub whatsapp: T,
}

impl<T> ByChannel<T> {
    /// The value for one channel.
    pub const fn get(&self, channel: Channel) -> &T {
        match channel {
            Channel::Email => &self.email,
            Channel::Sms => &self.sms,
            Channel::Push => &self.push,
            Channel::Webhook => &self.webhook,
            Channel::InApp => &self.in_app,
            Channel::Whatsapp => &self.whatsapp,
        }
    }

    /// Makes the value of every channel.
    pub fn make(mut value: impl FnMut(Channel) -> T) -> Self {
        Self {
            email: value(Channel::Email),
            sms: value(Channel::Sms),
            push: value(Channel::Push),
            webhook: value(Channel::Webhook),
            in_app: value(Channel::InApp),
            whatsapp: value(Channel::Whatsapp),
        }
    }
}

impl<T> ByChannel<Option<T>> {
    /// Everything, if nothing is missing.
    pub fn complete(self) -> Option<ByChannel<T>> {
        Some(ByChannel {
            email: self.email?,
            sms: self.sms?,
            push: self.push?,
            webhook: self.webhook?,
            in_app: self.in_app?,
            whatsapp: self.whatsapp?,
        })
    }
}
