//! People and the events about them: contacts, preferences, inboxes, rules, digests, broadcasts.

mod analytics;
mod broadcasts;
mod contacts;
mod digests;
mod live;
mod preferences;
mod rules;
