//! What a person wants to be told, and by which way. Any "off" wins; what is essential passes.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::{Channel, Class, QuietHours, category::MARKETING};

/// What a person chose about one type or category.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Whether it is wanted at all; `None`: nothing was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// The only channels it may take; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<BTreeSet<Channel>>,
    /// Channels it may not take.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub off: BTreeSet<Channel>,
    /// Channels it was asked for on: a "yes" to what is off unless somebody says so.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub on: BTreeSet<Channel>,
}

/// Everything a person chose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preferences {
    /// Switches of whole channels; a channel that is not named is on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub channels: BTreeMap<Channel, bool>,
    /// Whether advertising is unwanted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_marketing: bool,
    /// Whether everything but the essential is unwanted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_essential: bool,
    /// By type, or by a category of that name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, Choice>,
}

/// What is about to be told.
#[derive(Clone, Copy, Debug)]
pub struct Topic<'a> {
    /// The type of the notification.
    pub kind: Option<&'a str>,
    /// Its category.
    pub category: Option<&'a str>,
    /// Its class.
    pub class: Class,
    /// The channel it would take.
    pub channel: Channel,
    /// Whether its type is on for those who said nothing about it.
    pub default_enabled: bool,
}

/// What is known of a person when something is about to be sent to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// What they chose.
    pub preferences: Preferences,
    /// By whose clock they live; `None`: UTC.
    pub zone: Option<Tz>,
    /// When they are not disturbed.
    pub quiet: Option<QuietHours>,
}

impl Choice {
    /// Whether it was switched off, as a whole or for a channel.
    pub fn refuses(&self, channel: Channel) -> bool {
        let is_left_out = self.channels.as_ref().is_some_and(|channels| !channels.contains(&channel));
        self.enabled == Some(false) || is_left_out || self.off.contains(&channel)
    }

    /// Whether it was asked for.
    fn asks(&self, channel: Channel) -> bool {
        self.enabled == Some(true) || self.on.contains(&channel)
    }

    /// Switches one channel. On, where all of it was off, means: by this channel alone.
    fn switch(&mut self, channel: Channel, on: bool) {
        if !on {
            self.on.remove(&channel);
            self.off.insert(channel);
            return;
        }
        self.off.remove(&channel);
        self.on.insert(channel);
        if self.enabled == Some(false) {
            (self.enabled, self.channels) = (Some(true), Some(BTreeSet::from([channel])));
        } else if let Some(channels) = &mut self.channels {
            channels.insert(channel);
        }
    }
}

impl Preferences {
    /// Whether the person wants it.
    pub fn allow(&self, topic: Topic<'_>) -> bool {
        if topic.class == Class::Essential {
            return true;
        }
        let is_channel_off = self.channels.get(&topic.channel) == Some(&false);
        if is_channel_off || self.only_essential || (self.no_marketing && topic.class == Class::Marketing) {
            return false;
        }
        let about = || self.about(topic.kind, topic.category, topic.class);
        !about().any(|choice| choice.refuses(topic.channel))
            && (topic.default_enabled || about().any(|choice| choice.asks(topic.channel)))
    }

    /// What was chosen about a type, its category, and advertising where it is that.
    fn about<'a>(
        &'a self,
        kind: Option<&'a str>,
        category: Option<&'a str>,
        class: Class,
    ) -> impl Iterator<Item = &'a Choice> {
        let as_advertising = (class == Class::Marketing).then_some(MARKETING);
        [kind, category, as_advertising].into_iter().flatten().filter_map(|key| self.keys.get(key))
    }

    /// Whether the person has turned advertising down, on every channel.
    pub fn refuses_marketing(&self) -> bool {
        let by_key = self.keys.get(MARKETING).is_some_and(|choice| choice.enabled == Some(false));
        self.no_marketing || self.only_essential || by_key
    }

    /// Whether the person has turned advertising by mail down, in whatever way.
    pub fn refuses_marketing_mail(&self) -> bool {
        self.refuses_marketing() || self.keys.get(MARKETING).is_some_and(|choice| choice.refuses(Channel::Email))
    }

    /// Switches a type or category as a whole.
    pub fn switch(&mut self, key: &str, on: bool) {
        self.keys.entry(key.to_owned()).or_default().enabled = Some(on);
        if on && key == MARKETING {
            self.no_marketing = false;
        }
    }

    /// Switches a type or category for one channel.
    pub fn switch_channel(&mut self, key: &str, channel: Channel, on: bool) {
        let choice = self.keys.entry(key.to_owned()).or_default();
        if on && key == MARKETING && self.no_marketing {
            self.no_marketing = false;
            choice.enabled = Some(false);
        }
        choice.switch(channel, on);
    }

    /// Says by which channels alone a type or category may come; `None`: by any.
    pub fn restrict(&mut self, key: &str, channels: Option<BTreeSet<Channel>>) {
        let choice = self.keys.entry(key.to_owned()).or_default();
        choice.off.clear();
        choice.on.clear();
        choice.channels = channels;
    }
}

impl Wishes {
    /// Until when something has to wait that disturbs; `None`: it need not.
    pub fn quiet_until(&self, class: Class, channel: Channel, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let disturbs = match channel {
            Channel::Email | Channel::Sms | Channel::Push | Channel::Whatsapp => class != Class::Essential,
            Channel::InApp | Channel::Webhook => false,
        };
        self.quiet.filter(|_| disturbs)?.until(now, self.zone.unwrap_or(Tz::UTC))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Topic<'static> = Topic {
        kind: Some("task_reminder"),
        category: Some("tasks"),
        class: Class::Transactional,
        channel: Channel::Email,
        default_enabled: true,
    };
    const AD: Topic<'static> = Topic { kind: None, category: Some("promo"), class: Class::Marketing, ..ALL };

    fn of(json: &str) -> Preferences {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn any_off_wins_and_nothing_said_means_yes() {
        let push = Topic { channel: Channel::Push, ..ALL };
        let table = [
            ("{}", ALL, true),
            (r#"{"keys": {"task_reminder": {"enabled": false}}}"#, ALL, false),
            (r#"{"keys": {"tasks": {"enabled": false}}}"#, ALL, false),
            (r#"{"keys": {"tasks": {"enabled": false}, "task_reminder": {"enabled": true}}}"#, ALL, false),
            (r#"{"keys": {"tasks": {"enabled": true}, "task_reminder": {"enabled": false}}}"#, ALL, false),
            (r#"{"keys": {"other": {"enabled": false}}}"#, ALL, true),
            // Channels.
            (r#"{"keys": {"task_reminder": {"channels": ["in_app", "push"]}}}"#, ALL, false),
            (r#"{"keys": {"task_reminder": {"channels": ["in_app", "push"]}}}"#, push, true),
            (r#"{"keys": {"task_reminder": {"channels": []}}}"#, push, false),
            (
                r#"{"keys": {"task_reminder": {"enabled": true, "channels": ["push"]}, "tasks": {"off": ["push"]}}}"#,
                push,
                false,
            ),
            (r#"{"keys": {"tasks": {"off": ["email"]}}}"#, ALL, false),
            (r#"{"keys": {"tasks": {"off": ["email"]}}}"#, push, true),
            (r#"{"channels": {"email": false}}"#, ALL, false),
            (r#"{"channels": {"email": false}}"#, push, true),
            (r#"{"channels": {"email": true}}"#, ALL, true),
            (
                r#"{"channels": {"email": false}, "keys": {"task_reminder": {"enabled": true, "on": ["email"]}}}"#,
                ALL,
                false,
            ),
            // Opt-outs.
            (r#"{"no_marketing": true}"#, ALL, true),
            (r#"{"no_marketing": true}"#, AD, false),
            (r#"{"no_marketing": true, "keys": {"promo": {"enabled": true}}}"#, AD, false),
            (r#"{"only_essential": true}"#, ALL, false),
            (r#"{"only_essential": true}"#, AD, false),
            // The key of advertising is about all of it, whatever its category is called.
            (r#"{"keys": {"marketing": {"enabled": false}}}"#, AD, false),
            (r#"{"keys": {"marketing": {"off": ["email"]}}}"#, AD, false),
            (r#"{"keys": {"marketing": {"off": ["email"]}}}"#, Topic { channel: Channel::Push, ..AD }, true),
            (r#"{"keys": {"marketing": {"enabled": false}}}"#, ALL, true),
        ];
        for (preferences, topic, wanted) in table {
            assert_eq!(of(preferences).allow(topic), wanted, "{preferences} {topic:?}");
            let everything_off = Topic { class: Class::Essential, default_enabled: false, ..topic };
            assert!(of(preferences).allow(everything_off), "what is essential passes: {preferences}");
        }
    }

    #[test]
    fn a_type_that_is_off_by_itself_needs_a_yes() {
        let digest = Topic { kind: Some("digest"), category: Some("news"), default_enabled: false, ..ALL };
        let table = [
            ("{}", false),
            (r#"{"keys": {"digest": {"enabled": true}}}"#, true),
            (r#"{"keys": {"news": {"enabled": true}}}"#, true),
            (r#"{"keys": {"digest": {"on": ["email"]}}}"#, true),
            (r#"{"keys": {"digest": {"on": ["push"]}}}"#, false),
            (r#"{"keys": {"digest": {"channels": ["email"]}}}"#, false),
            (r#"{"keys": {"digest": {"enabled": true, "channels": ["push"]}}}"#, false),
            (r#"{"keys": {"digest": {"enabled": true}, "news": {"enabled": false}}}"#, false),
            (r#"{"channels": {"email": true}}"#, false),
        ];
        for (preferences, wanted) in table {
            assert_eq!(of(preferences).allow(digest), wanted, "{preferences}");
        }
    }

    #[test]
    fn what_is_said_last_about_a_channel_holds() {
        let mail = Topic { kind: None, category: Some("news"), ..ALL };
        let push = Topic { channel: Channel::Push, ..mail };
        let mut said = Preferences::default();
        said.switch_channel("news", Channel::Email, false);
        assert!(!said.allow(mail) && said.allow(push));
        said.switch_channel("news", Channel::Email, true);
        assert!(said.allow(mail) && said.allow(push));
        said.switch("news", false);
        assert!(!said.allow(mail) && !said.allow(push));
        said.switch_channel("news", Channel::Email, true);
        assert!(said.allow(mail) && !said.allow(push), "the others stay off");
        said.restrict("news", Some(BTreeSet::from([Channel::Push])));
        assert!(!said.allow(mail) && said.allow(push));
        said.switch_channel("news", Channel::Email, true);
        assert!(said.allow(mail) && said.allow(push), "one more");
        said.switch_channel("news", Channel::Push, false);
        said.restrict("news", None);
        assert!(said.allow(mail) && said.allow(push));
    }

    #[test]
    fn a_yes_to_marketing_ends_the_opt_out_as_far_as_it_goes() {
        let (mail, push) = (AD, Topic { channel: Channel::Push, ..AD });
        let opted_out = Preferences { no_marketing: true, ..Preferences::default() };
        assert!(opted_out.refuses_marketing_mail());
        let mut by_mail = opted_out.clone();
        by_mail.switch_channel(MARKETING, Channel::Email, true);
        assert!(by_mail.allow(mail) && !by_mail.allow(push) && !by_mail.refuses_marketing_mail());
        let mut wholly = opted_out.clone();
        wholly.switch(MARKETING, true);
        assert!(wholly.allow(mail) && wholly.allow(push));
        let mut about_another = opted_out;
        about_another.switch("promo", true);
        assert!(!about_another.allow(mail), "not what was asked");
    }

    #[test]
    fn only_what_disturbs_waits_for_the_end_of_the_quiet() {
        let wishes = Wishes { quiet: Some(QuietHours { start: 0, end: 600 }), ..Wishes::default() };
        let night =
            DateTime::from_timestamp(1_800_000_000, 0).unwrap().date_naive().and_hms_opt(3, 0, 0).unwrap().and_utc();
        let until = |class, channel| wishes.quiet_until(class, channel, night);
        for channel in [Channel::Email, Channel::Sms, Channel::Push, Channel::Whatsapp] {
            assert_eq!(until(Class::Transactional, channel), Some(night + chrono::TimeDelta::hours(7)), "{channel}");
            assert_eq!(until(Class::Essential, channel), None, "{channel}");
        }
        for channel in [Channel::InApp, Channel::Webhook] {
            assert_eq!(until(Class::Marketing, channel), None, "{channel}");
        }
        assert_eq!(Wishes::default().quiet_until(Class::Marketing, Channel::Sms, night), None);
    }
}
