//! The preferences of a person: which notifications, on which channels. Any "off" wins; essential notifications pass.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::{Channel, Class, QuietHours, Reason, SendWindow, category::MARKETING};

/// A person's choice about one type or category.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Whether it is wanted at all; `None`: no choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// The only channels that it may use; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<BTreeSet<Channel>>,
    /// Channels it may not take.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub off: BTreeSet<Channel>,
    /// Channels that were switched on: an explicit "yes" to types that are off by default.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub on: BTreeSet<Channel>,
}

/// Everything a person chose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preferences {
    /// Switches of whole channels; a channel without a switch is on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub channels: BTreeMap<Channel, bool>,
    /// Whether all advertising is off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_marketing: bool,
    /// Whether everything except essential notifications is off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_essential: bool,
    /// Choices by type, or by category.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, Choice>,
}

/// The notification that is about to be sent.
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
    /// Whether its type is on for people who made no choice about it.
    pub default_enabled: bool,
}

/// The facts about a person that decide whether and when something is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecipientPolicy {
    /// The person's choices.
    pub preferences: Preferences,
    /// Their time zone; `None`: UTC.
    pub zone: Option<Tz>,
    /// When they are not disturbed.
    pub quiet: Option<QuietHours>,
}

/// A wait before a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The end of the wait; `None`: the quiet hours cover the whole send window.
    pub until: Option<DateTime<Utc>>,
    /// The reason of the wait. Of two reasons, the one that ends last.
    pub reason: Reason,
}

/// How far ahead to look for a moment that both quiet hours and a send window allow. A window that opens once a week
/// may fall once into the hour that a clock change skips.
const AHEAD_MAX: TimeDelta = TimeDelta::days(15);

impl Choice {
    /// Whether it was switched off, for all channels or this one.
    pub fn refuses(&self, channel: Channel) -> bool {
        let is_left_out = self.channels.as_ref().is_some_and(|channels| !channels.contains(&channel));
        self.enabled == Some(false) || is_left_out || self.off.contains(&channel)
    }

    /// Whether it was asked for.
    fn asks(&self, channel: Channel) -> bool {
        self.enabled == Some(true) || self.on.contains(&channel)
    }

    /// Switches one channel. Switching a channel on while everything is off allows this channel only.
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

    /// The choices about a type, its category, and advertising if it is advertising.
    fn about<'a>(
        &'a self,
        kind: Option<&'a str>,
        category: Option<&'a str>,
        class: Class,
    ) -> impl Iterator<Item = &'a Choice> {
        let as_advertising = (class == Class::Marketing).then_some(MARKETING);
        [kind, category, as_advertising].into_iter().flatten().filter_map(|key| self.keys.get(key))
    }

    /// Whether the person refuses advertising on every channel.
    pub fn refuses_marketing(&self) -> bool {
        let by_key = self.keys.get(MARKETING).is_some_and(|choice| choice.enabled == Some(false));
        self.no_marketing || self.only_essential || by_key
    }

    /// Whether the person refuses advertising by mail, by any setting.
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

    /// Restricts a type or category to these channels; `None`: any channel.
    pub fn restrict(&mut self, key: &str, channels: Option<BTreeSet<Channel>>) {
        let choice = self.keys.entry(key.to_owned()).or_default();
        choice.off.clear();
        choice.on.clear();
        choice.channels = channels;
    }
}

impl RecipientPolicy {
    /// The wait of a delivery that disturbs: its reason and end. `None`: it need not wait.
    pub fn wait(
        &self,
        class: Class,
        channel: Channel,
        window: Option<&SendWindow>,
        now: DateTime<Utc>,
    ) -> Option<Wait> {
        if !disturbs(class, channel) {
            return None;
        }
        let zone = self.zone.unwrap_or(Tz::UTC);
        let (mut at, mut reason) = (now, None);
        while at <= now + AHEAD_MAX {
            if let Some(end) = self.quiet.and_then(|quiet| quiet.until(at, zone)) {
                (at, reason) = (end, Some(Reason::QuietHours));
            }
            match window.map(|window| window.opening(at, zone)) {
                Some(Some(opening)) if opening > at => (at, reason) = (opening, Some(Reason::SendWindow)),
                Some(None) => break,
                Some(Some(_)) | None => return reason.map(|reason| Wait { until: Some(at), reason }),
            }
        }
        Some(Wait { until: None, reason: Reason::SendWindow })
    }
}

/// Whether something of this class can disturb a person on this channel. Essential notifications need not wait.
const fn disturbs(class: Class, channel: Channel) -> bool {
    match channel {
        Channel::Email | Channel::Sms | Channel::Push | Channel::Whatsapp => !matches!(class, Class::Essential),
        Channel::InApp | Channel::Webhook => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Day;

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
            // The key of advertising covers all advertising, whatever its category is called.
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

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn window(days: &[Day], from: u16, to: u16) -> SendWindow {
        SendWindow { days: days.iter().copied().collect(), from: from * 60, to: to * 60 }
    }

    #[test]
    fn only_what_disturbs_waits_for_quiet_hours_and_send_windows() {
        let policy = RecipientPolicy { quiet: Some(QuietHours { start: 0, end: 600 }), ..RecipientPolicy::default() };
        let (night, noon) = (utc("2026-06-01T03:00:00Z"), window(Day::ALL, 12, 13));
        let until = |class, channel| policy.wait(class, channel, None, night).map(|wait| (wait.until, wait.reason));
        let opening = |class, channel| RecipientPolicy::default().wait(class, channel, Some(&noon), night);
        for channel in [Channel::Email, Channel::Sms, Channel::Push, Channel::Whatsapp] {
            let quiet = Some((Some(night + TimeDelta::hours(7)), Reason::QuietHours));
            assert_eq!(until(Class::Transactional, channel), quiet, "{channel}");
            assert_eq!(until(Class::Essential, channel), None, "{channel}");
            let wanted = Wait { until: Some(night + TimeDelta::hours(9)), reason: Reason::SendWindow };
            assert_eq!(opening(Class::Marketing, channel), Some(wanted), "{channel}");
            assert_eq!(opening(Class::Essential, channel), None, "{channel}");
        }
        for channel in [Channel::InApp, Channel::Webhook] {
            assert_eq!(
                (until(Class::Marketing, channel), opening(Class::Marketing, channel)),
                (None, None),
                "{channel}"
            );
        }
        assert_eq!(RecipientPolicy::default().wait(Class::Marketing, Channel::Sms, None, night), None);
    }

    #[test]
    fn quiet_hours_and_a_send_window_together_give_the_first_moment_that_both_allow() {
        let weekdays = [Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri];
        let office = window(&weekdays, 9, 17);
        let quiet = |start: u16, end: u16| Some(QuietHours { start: start * 60, end: end * 60 });
        let vienna: Tz = "Europe/Vienna".parse().unwrap();
        // 1 June 2026 is a Monday. An empty end: no wait.
        let table = [
            // The window opens after the quiet, and the quiet ends within the window.
            (quiet(22, 8), None, &office, "2026-06-01T23:00:00Z", "2026-06-02T09:00:00Z", Reason::SendWindow),
            (quiet(22, 11), None, &office, "2026-06-01T23:00:00Z", "2026-06-02T11:00:00Z", Reason::QuietHours),
            (quiet(12, 13), None, &office, "2026-06-01T12:30:00Z", "2026-06-01T13:00:00Z", Reason::QuietHours),
            (quiet(12, 13), None, &office, "2026-06-01T13:00:00Z", "", Reason::QuietHours),
            (None, None, &office, "2026-06-01T16:59:00Z", "", Reason::SendWindow),
            // The quiet hours last beyond the end of the window, and over the weekend.
            (quiet(16, 8), None, &office, "2026-06-05T16:30:00Z", "2026-06-08T09:00:00Z", Reason::SendWindow),
            (quiet(16, 10), None, &office, "2026-06-05T16:30:00Z", "2026-06-08T10:00:00Z", Reason::QuietHours),
            // In the person's time zone.
            (quiet(22, 8), Some(vienna), &office, "2026-06-01T06:30:00Z", "2026-06-01T07:00:00Z", Reason::SendWindow),
            (quiet(22, 10), Some(vienna), &office, "2026-06-01T06:30:00Z", "2026-06-01T08:00:00Z", Reason::QuietHours),
        ];
        for (quiet, zone, window, now, until, reason) in table {
            let policy = RecipientPolicy { quiet, zone, ..RecipientPolicy::default() };
            let wanted = (!until.is_empty()).then(|| Wait { until: Some(utc(until)), reason });
            let found = policy.wait(Class::Marketing, Channel::Email, Some(window), utc(now));
            assert_eq!(found, wanted, "{quiet:?} {zone:?} at {now}");
        }
        // The person's quiet hours cover all of the window.
        let owl = RecipientPolicy { quiet: quiet(8, 18), ..RecipientPolicy::default() };
        let never = Some(Wait { until: None, reason: Reason::SendWindow });
        for now in ["2026-06-01T07:00:00Z", "2026-06-01T12:00:00Z", "2026-06-06T20:00:00Z"] {
            assert_eq!(owl.wait(Class::Marketing, Channel::Email, Some(&office), utc(now)), never, "{now}");
        }
    }
}
