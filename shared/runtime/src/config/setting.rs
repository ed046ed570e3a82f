//! One setting: every fact about a variable, except its value.

use domain::Channel;

use super::{
    by_channel::ByChannel,
    kind::{Expects, Kind},
};

/// Stands in `.env.example` where no example is possible. It is refused as a value.
pub(super) const PLACEHOLDER: &str = "make-your-own";

/// How much of a value may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secrecy {
    Open,
    /// A URL whose password is hidden.
    Password,
    Hidden,
}

/// The value of a setting that is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unset {
    /// No value. A feature that needs it reports that it is missing.
    Nothing,
    /// The start is refused.
    Required,
    /// This text, read like a set value.
    Value(&'static str),
    /// A value derived from other settings or the machine, described in words.
    Derived(&'static str),
}

/// The part of a setting that does not depend on its type.
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) aliases: &'static [&'static str],
    pub(super) unset: Unset,
    pub(super) secrecy: Secrecy,
    pub(super) doc: &'static str,
    pub(super) example: &'static str,
}

impl Spec {
    /// An example of a value, where there is one.
    pub(super) fn example_value(&self) -> Option<&'static str> {
        Some(self.example).filter(|example| *example != PLACEHOLDER)
    }
}

/// A setting and the kind of value it takes.
pub(super) struct Setting<T> {
    pub(super) spec: Spec,
    pub(super) kind: Kind<T>,
}

impl<T> Setting<T> {
    pub(super) const fn new(name: &'static str, kind: Kind<T>, example: &'static str) -> Self {
        let spec = Spec { name, aliases: &[], unset: Unset::Nothing, secrecy: Secrecy::Open, doc: "", example };
        Self { spec, kind }
    }

    pub(super) const fn aliases(self, aliases: &'static [&'static str]) -> Self {
        Self { spec: Spec { aliases, ..self.spec }, kind: self.kind }
    }

    pub(super) const fn unset(self, unset: Unset) -> Self {
        Self { spec: Spec { unset, ..self.spec }, kind: self.kind }
    }

    pub(super) const fn default(self, text: &'static str) -> Self {
        self.unset(Unset::Value(text))
    }

    pub(super) const fn secrecy(self, secrecy: Secrecy) -> Self {
        Self { spec: Spec { secrecy, ..self.spec }, kind: self.kind }
    }

    pub(super) const fn doc(self, doc: &'static str) -> Self {
        Self { spec: Spec { doc, ..self.spec }, kind: self.kind }
    }
}

/// A setting of any type, for lists, checks and documentation.
pub(super) trait Known: Sync {
    fn spec(&self) -> &Spec;
    fn expects(&self) -> Expects;
    #[cfg(test)]
    fn accepts(&self, text: &str) -> bool;
}

impl<T> Known for Setting<T> {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn expects(&self) -> Expects {
        self.kind.expects
    }

    #[cfg(test)]
    fn accepts(&self, text: &str) -> bool {
        (self.kind.parse)(text).is_ok()
    }
}

/// One row of the table: a setting, or the same setting for each channel.
pub(super) trait Row {
    fn settings(&'static self) -> Vec<&'static dyn Known>;
}

impl<T> Row for Setting<T> {
    fn settings(&'static self) -> Vec<&'static dyn Known> {
        vec![self]
    }
}

impl<T> Row for ByChannel<Setting<T>> {
    fn settings(&'static self) -> Vec<&'static dyn Known> {
        Channel::ALL.iter().map(|&channel| -> &'static dyn Known { self.get(channel) }).collect()
    }
}

impl<T> ByChannel<Setting<T>> {
    pub(super) const fn doc(self, doc: &'static str) -> Self {
        Self {
            email: self.email.doc(doc),
            sms: self.sms.doc(doc),
            push: self.push.doc(doc),
            webhook: self.webhook.doc(doc),
            in_app: self.in_app.doc(doc),
            whatsapp: self.whatsapp.doc(doc),
        }
    }
}
