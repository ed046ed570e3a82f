//! Erasure: a person is forgotten everywhere, while the facts of the log and the counters stay.
//!
//! A request is a row; it is carried out in steps, by the request itself as long as its client waits, then by a scheduler. A delivery
//! that a worker holds comes in a later step: its message expires at once, so that no further try follows. An outcome that the database
//! refused is given up, or its delivery would be held for as long as the letter is open.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Float8, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{
    Address, Channel, MessageId, Preferences, TenantId,
    suppression::{SuppressionReason, SuppressionScope, is_suppressible, suppressed_form},
};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::{DbResult, Store, messages::minute_after, sealed, statement};

/// Messages of one step.
const BATCH: i64 = 100;
/// Bodies opened at once.
const OPENED: i64 = 200;
/// How long a request has its erasure to itself: its answer counts what was erased, so no scheduler may take part.
pub const ATTENDED: Duration = Duration::from_secs(10);
/// How long an erasure that was taken is its taker's: longer than a step takes.
const LEASE: Duration = Duration::from_secs(300);

/// What has been erased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Erased {
    /// Messages whose content is gone.
    pub messages: i64,
    /// Deliveries whose recipient is gone.
    pub deliveries: i64,
    /// Entries of the inbox.
    pub inbox: i64,
    /// Contents of bulks without another recipient.
    pub bulks: i64,
    /// Kept answers from which the person was taken out.
    pub idempotency_responses: i64,
    /// Dead letters that were emptied or closed.
    pub dead_letters: i64,
    /// Messages from the person, and what WhatsApp told about them.
    pub inbound: i64,
    /// What was known of the person (1), and devices.
    pub contact: i64,
    /// Events from other systems, and what gathered for the person's digests.
    pub events: i64,
}

impl Erased {
    /// Adds what another step erased.
    pub const fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.deliveries += other.deliveries;
        self.inbox += other.inbox;
        self.bulks += other.bulks;
        self.idempotency_responses += other.idempotency_responses;
        self.dead_letters += other.dead_letters;
        self.inbound += other.inbound;
        self.contact += other.contact;
        self.events += other.events;
    }
}

/// A person who is to be erased.
#[derive(Clone, Debug)]
pub struct Erasure {
    /// Whose person.
    pub tenant: TenantId,
    /// The person.
    pub user_id: String,
    /// What was accepted after this moment is not meant.
    pub asked_at: DateTime<Utc>,
    /// Also data that only an address of the person leads to.
    pub by_address: bool,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to do at once.
    More,
    /// Only what a worker holds is left.
    Held,
    /// Nothing of the person is left.
    Done,
}

impl Store {
    /// Notes down that a person is to be erased, `by_address` too: see [`Erasure::by_address`]. That they turned advertising
    /// down is not forgotten with them.
    pub async fn begin_erasure(&self, tenant: TenantId, user_id: &str, by_address: bool) -> DbResult<Erasure> {
        self.keep_opt_out_of(tenant, user_id).await?;
        let query = statement::<(Timestamptz, Bool)>(BEGIN)
            .bind::<Int4, _>(tenant.0)
            .bind::<Text, _>(user_id.to_owned())
            .bind::<Bool, _>(by_address);
        let (asked_at, by_address) = query.within(Some(tenant)).row(self).await?;
        Ok(Erasure { tenant, user_id: user_id.to_owned(), asked_at, by_address })
    }

    /// Takes up to `limit` erasures that no process works on, longest due first. They are the caller's for a while: no other process
    /// decrypts the same meanwhile.
    pub async fn take_erasures(&self, limit: i64) -> DbResult<Vec<Erasure>> {
        let query = statement::<(Int4, Text, Timestamptz, Bool)>(TAKE)
            .bind::<Float8, _>(LEASE.as_secs_f64())
            .bind::<Float8, _>(ATTENDED.as_secs_f64())
            .bind::<Int8, _>(limit);
        let rows: Vec<(i32, String, DateTime<Utc>, bool)> = query.rows(self).await?;
        let erasure = |(tenant, user_id, asked_at, by_address)| Erasure {
            tenant: TenantId(tenant),
            user_id,
            asked_at,
            by_address,
        };
        Ok(rows.into_iter().map(erasure).collect())
    }

    /// Gives an erasure back, to go on after `pause`.
    pub async fn resume_erasure(&self, person: &Erasure, pause: Duration) -> DbResult<()> {
        let query = statement::<()>(RESUME).bind::<Float8, _>(pause.as_secs_f64());
        self.give_back(query, person).await
    }

    /// Gives an erasure back whose step failed: each further failure doubles the pause, up to three quarters of an hour.
    pub async fn put_off_erasure(&self, person: &Erasure) -> DbResult<()> {
        self.give_back(statement::<()>(PUT_OFF), person).await
    }

    async fn give_back(&self, query: super::Statement<()>, person: &Erasure) -> DbResult<()> {
        let query = query.bind::<Int4, _>(person.tenant.0).bind::<Text, _>(person.user_id.clone());
        query.within(Some(person.tenant)).run(self).await.map(drop)
    }

    /// Takes one step; adds what it erased to `erased`. Any number of callers may do so at once.
    pub async fn erase_step(&self, person: &Erasure, erased: &mut Erased) -> DbResult<Step> {
        let mut eraser = Eraser { store: self, person, erased, recipients: BTreeSet::new() };
        let step = eraser.messages().await?;
        eraser.erased.inbox += eraser.own(INBOX).bind::<Int8, _>(BATCH).row::<i64>(self).await?;
        eraser.own(FAMILIES).bind::<Timestamptz, _>(person.asked_at).run(self).await?;
        eraser.happenings().await?;
        let addresses = eraser.addresses().await?;
        if !person.by_address {
            eraser.recipients.clear();
        }
        if step == Step::Done {
            eraser.letters().await?;
        }
        if !eraser.recipients.is_empty() {
            eraser.suppressions().await?;
            eraser.numbers().await?;
        }
        eraser.contact(addresses).await?;
        if step != Step::Done {
            return Ok(step);
        }
        self.erase_from_broadcasts(person.tenant, &person.user_id).await?;
        let left: bool = eraser.own_row::<Bool>(LEFT).bind::<Timestamptz, _>(person.asked_at).row(self).await?;
        if left {
            return Ok(Step::More);
        }
        eraser.own(INBOX_END).run(self).await?;
        eraser.own(END).bind::<Timestamptz, _>(person.asked_at).run(self).await?;
        Ok(Step::Done)
    }
}

struct Eraser<'a> {
    store: &'a Store,
    person: &'a Erasure,
    erased: &'a mut Erased,
    /// Where the person could be reached, as far as this step has learnt.
    recipients: BTreeSet<String>,
}

/// Messages emptied, deliveries emptied, letters closed, their recipients, their bulks, the deliveries.
type Emptied = (i64, i64, i64, Vec<String>, Vec<Uuid>, Vec<Uuid>);

impl Eraser<'_> {
    /// A statement on what is this person's.
    fn own_row<Row>(&self, text: &'static str) -> super::Statement<Row> {
        let Erasure { tenant, user_id, .. } = self.person;
        statement(text).within(Some(*tenant)).bind::<Int4, _>(tenant.0).bind::<Text, _>(user_id.clone())
    }

    fn own(&self, text: &'static str) -> super::Statement<Int8> {
        self.own_row(text)
    }

    /// A statement on what is this tenant's.
    fn tenants<Row>(&self, text: &'static str) -> super::Statement<Row> {
        statement(text).within(Some(self.person.tenant)).bind::<Int4, _>(self.person.tenant.0)
    }

    async fn messages(&mut self) -> DbResult<Step> {
        let (mut after, mut step) = (Uuid::nil(), Step::Done);
        loop {
            let query = self
                .own_row::<(SqlUuid, Bool)>(PICK)
                .bind::<Timestamptz, _>(self.person.asked_at)
                .bind::<SqlUuid, _>(after)
                .bind::<Int8, _>(BATCH);
            let rows: Vec<(Uuid, bool)> = query.rows(self.store).await?;
            let Some(&(last, _)) = rows.last() else { return Ok(step) };
            let taken = i64::try_from(rows.len()).unwrap_or_default();
            if self.empty(rows).await? < taken {
                step = Step::Held;
                after = last;
            } else {
                return Ok(Step::More);
            }
        }
    }

    /// Cancels the waiting deliveries of these messages and empties all that no worker holds; says how many.
    async fn empty(&mut self, rows: Vec<(Uuid, bool)>) -> DbResult<i64> {
        let tenant = self.person.tenant;
        let alive: Vec<Uuid> = rows.iter().filter(|(_, is_alive)| *is_alive).map(|(id, _)| *id).collect();
        let ids: Vec<Uuid> = rows.into_iter().map(|(id, _)| id).collect();
        if !alive.is_empty() {
            self.tenants::<()>(EXPIRE).bind::<Array<SqlUuid>, _>(alive.clone()).run(self.store).await?;
            self.give_up_outcomes(alive.clone()).await?;
        }
        for id in alive {
            self.store.cancel(Some(tenant), MessageId(id)).await?;
        }
        let blank = self.store.sealer().seal(sealed::CONTENT.of(tenant), b"{}")?;
        let query = self
            .tenants::<(Int8, Int8, Int8, Array<Text>, Array<SqlUuid>, Array<SqlUuid>)>(EMPTY)
            .bind::<Array<SqlUuid>, _>(ids)
            .bind::<Binary, _>(blank.clone());
        let (messages, deliveries, letters, recipients, bulks, theirs): Emptied = query.row(self.store).await?;
        self.echoes(theirs).await?;
        self.erased.messages += messages;
        self.erased.deliveries += deliveries;
        self.erased.dead_letters += letters;
        let place = sealed::RECIPIENT.of(tenant);
        self.recipients.extend(recipients.into_iter().filter_map(|stored| self.store.opened_text(place, stored)));
        self.recipients.remove("");
        if !bulks.is_empty() {
            let query = self.tenants::<Int8>(BULKS).bind::<Array<SqlUuid>, _>(bulks.clone()).bind::<Binary, _>(blank);
            self.erased.bulks += query.row::<i64>(self.store).await?;
            self.answers(bulks).await?;
        }
        Ok(messages)
    }

    /// Gives up the outcomes of these messages that are in dead letters. Their deliveries are then doubted, and end without a call:
    /// their messages have expired.
    async fn give_up_outcomes(&mut self, messages: Vec<Uuid>) -> DbResult<()> {
        // The letter of an outcome names no tenant, so this statement sees the rows of all.
        let query = statement::<Int8>(GIVE_UP_OUTCOMES).bind::<Int4, _>(self.person.tenant.0);
        let letters: i64 = query.bind::<Array<SqlUuid>, _>(messages).row(self.store).await?;
        self.erased.dead_letters += letters;
        Ok(())
    }

    /// Empties the webhook events about these deliveries or messages.
    async fn echoes(&self, subjects: Vec<Uuid>) -> DbResult<()> {
        if subjects.is_empty() {
            return Ok(());
        }
        let blank = self.store.sealer().seal(sealed::CONTENT.of(self.person.tenant), b"{}")?;
        let query = self.tenants::<()>(ECHOES).bind::<Array<SqlUuid>, _>(subjects).bind::<Binary, _>(blank);
        query.run(self.store).await.map(drop)
    }

    /// Takes the person out of the answers that are kept for repeated bulk calls. The answers stay: without them a repeat
    /// would send again.
    async fn answers(&mut self, bulks: Vec<Uuid>) -> DbResult<()> {
        let place = sealed::RESPONSE.of(self.person.tenant);
        let query = self.tenants::<(Binary, Binary)>(ANSWERS).bind::<Array<SqlUuid>, _>(bulks);
        let rows: Vec<(Vec<u8>, Vec<u8>)> = query.rows(self.store).await?;
        for (key, stored) in rows {
            let opened = self.store.opened(place, stored.clone()).unwrap_or_default();
            let Ok(mut answer) = serde_json::from_slice::<Value>(&opened) else { continue };
            if !self.take_out(&mut answer) {
                continue;
            }
            let sealed = self.store.sealer().seal(place, &serde_json::to_vec(&answer).unwrap_or_default())?;
            let query =
                self.tenants::<()>(ANSWER).bind::<Binary, _>(key).bind::<Binary, _>(stored).bind::<Binary, _>(sealed);
            self.erased.idempotency_responses += i64::try_from(query.run(self.store).await?).unwrap_or_default();
        }
        Ok(())
    }

    /// Whether there was something to take out.
    fn take_out(&self, answer: &mut Value) -> bool {
        let mut changed = false;
        for result in answer.get_mut("results").and_then(Value::as_array_mut).into_iter().flatten() {
            if self.is_theirs(result)
                && let Some(members) = result.as_object_mut()
            {
                changed |= members.remove("recipient").is_some();
                changed |= members.remove("user_id").is_some();
            }
        }
        changed
    }

    /// Whether a submission or a result names the person.
    fn is_theirs(&self, value: &Value) -> bool {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let is_user = ["user_id", "userId"].iter().any(|name| text(name) == Some(&self.person.user_id));
        let named = ["recipient", "to", "url"].iter().filter_map(|name| text(name));
        is_user || named.into_iter().any(|name| name == self.person.user_id || self.recipients.contains(name))
    }

    /// What other systems told about the person.
    async fn happenings(&mut self) -> DbResult<()> {
        for text in [EVENTS, DIGESTS] {
            let query = self.own(text).bind::<Timestamptz, _>(self.person.asked_at).bind::<Int8, _>(BATCH);
            self.erased.events += query.row::<i64>(self.store).await?;
        }
        self.own(THROTTLES).run(self.store).await.map(drop)
    }

    /// Where the person can be reached as the tenant knows it.
    async fn addresses(&mut self) -> DbResult<Vec<(Channel, Address)>> {
        let Erasure { tenant, user_id, .. } = self.person;
        let Some(person) = self.store.people(*tenant, vec![user_id.clone()]).await?.remove(user_id) else {
            return Ok(Vec::new());
        };
        let channels = Channel::ALL.iter().filter(|channel| is_suppressible(**channel));
        let addresses: Vec<(Channel, Address)> = channels
            .flat_map(|channel| person.addresses(*channel).into_iter().map(|address| (*channel, address)))
            .collect();
        self.recipients.extend(addresses.iter().map(|(_, address)| address.reveal().to_owned()));
        Ok(addresses)
    }

    /// Forgets what is known of the person. Who wanted no advertising gets none later either: that stays, by the fingerprints
    /// of the addresses.
    async fn contact(&mut self, addresses: Vec<(Channel, Address)>) -> DbResult<()> {
        let query = self.own_row::<Nullable<Text>>(PREFERENCES);
        let preferences: Vec<Option<String>> = query.rows(self.store).await?;
        let preferences = preferences.into_iter().flatten().next();
        let preferences: Preferences =
            preferences.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
        if preferences.refuses_marketing() && !addresses.is_empty() {
            self.opt_out(addresses).await?;
        }
        let query = self.own(CONTACT).bind::<Timestamptz, _>(self.person.asked_at);
        self.erased.contact += query.row::<i64>(self.store).await?;
        Ok(())
    }

    async fn opt_out(&self, addresses: Vec<(Channel, Address)>) -> DbResult<()> {
        let realm = self.person.tenant.to_string();
        let print = |(channel, address): &(Channel, Address)| {
            self.store.sealer().fingerprint(&realm, &suppressed_form(*channel, address.reveal())).to_vec()
        };
        let query = self
            .tenants::<()>(OPT_OUT)
            .bind::<Text, _>(SuppressionScope::Marketing.to_string())
            .bind::<Text, _>(SuppressionReason::Unsubscribed.as_str())
            .bind::<Array<SqlUuid>, _>(addresses.iter().map(|_| Uuid::now_v7()).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(addresses.iter().map(|(channel, _)| channel.as_str()).collect::<Vec<_>>())
            .bind::<Array<Binary>, _>(addresses.iter().map(print).collect::<Vec<_>>());
        query.run(self.store).await.map(drop)
    }

    /// Refused publishes that name the person.
    async fn letters(&mut self) -> DbResult<()> {
        let mut after = Uuid::nil();
        loop {
            let query = self.tenants::<(SqlUuid, Binary)>(LETTERS).bind::<SqlUuid, _>(after).bind::<Int8, _>(OPENED);
            let rows: Vec<(Uuid, Vec<u8>)> = query.rows(self.store).await?;
            let Some(&(last, _)) = rows.last() else { return Ok(()) };
            let mut theirs = Vec::new();
            for (id, body) in rows {
                let body = self.store.opened(sealed::LETTER_BODY.of_nobody(), body).unwrap_or_default();
                let names = serde_json::from_slice(&body).is_ok_and(|body| self.is_theirs(&body));
                theirs.extend(names.then_some(id));
            }
            if !theirs.is_empty() {
                let query = self.tenants::<()>(EMPTY_LETTERS).bind::<Array<SqlUuid>, _>(theirs);
                self.erased.dead_letters += i64::try_from(query.run(self.store).await?).unwrap_or_default();
            }
            after = last;
        }
    }

    /// A suppression outlives its person, without saying whose it is.
    async fn suppressions(&mut self) -> DbResult<()> {
        let realm = self.person.tenant.to_string();
        let forms = self.recipients.iter().flat_map(|text| {
            Channel::ALL.iter().filter(|channel| is_suppressible(**channel)).map(|c| suppressed_form(*c, text))
        });
        let prints = forms.flat_map(|form| self.store.sealer().fingerprints(&realm, &form));
        let hashes: Vec<Vec<u8>> = prints.map(|print| print.to_vec()).collect();
        self.tenants::<()>(SUPPRESSIONS).bind::<Array<Binary>, _>(hashes).run(self.store).await.map(drop)
    }

    /// What is known by the person's numbers: messages from them, what WhatsApp told about them, and messages to them that
    /// name no person.
    async fn numbers(&mut self) -> DbResult<()> {
        let phones: Vec<String> = self.recipients.iter().filter(|text| text.starts_with('+')).cloned().collect();
        if phones.is_empty() {
            return Ok(());
        }
        let realm = self.person.tenant.to_string();
        let prints = phones.iter().flat_map(|phone| self.store.sealer().fingerprints(&realm, phone));
        let hashes: Vec<Vec<u8>> = prints.map(|print| print.to_vec()).collect();
        let query = self.tenants::<SqlUuid>(INBOUND).bind::<Array<Binary>, _>(hashes.clone());
        let inbound: Vec<Uuid> = query.rows(self.store).await?;
        self.erased.inbound += i64::try_from(inbound.len()).unwrap_or_default();
        self.echoes(inbound).await?;
        self.webhooks(&phones).await?;
        loop {
            let query = self.tenants::<(SqlUuid, Bool)>(NAMELESS).bind::<Array<Binary>, _>(hashes.clone());
            let rows: Vec<(Uuid, bool)> = query.bind::<Int8, _>(BATCH).rows(self.store).await?;
            if rows.is_empty() || self.empty(rows).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn webhooks(&mut self, phones: &[String]) -> DbResult<()> {
        let place = sealed::WAHA_EVENT.of(self.person.tenant);
        let (mut after, blank) = (Uuid::nil(), self.store.sealer().seal(place, b"{}")?);
        loop {
            let query = self.tenants::<(SqlUuid, Binary)>(WEBHOOKS).bind::<SqlUuid, _>(after).bind::<Int8, _>(OPENED);
            let rows: Vec<(Uuid, Vec<u8>)> = query.rows(self.store).await?;
            let Some(&(last, _)) = rows.last() else { return Ok(()) };
            let mut theirs = Vec::new();
            for (id, body) in rows {
                let body = self.store.opened(place, body).unwrap_or_default();
                let body = String::from_utf8_lossy(&body);
                let names = phones.iter().any(|phone| body.contains(phone.trim_start_matches('+')));
                theirs.extend(names.then_some(id));
            }
            if !theirs.is_empty() {
                let query = self.tenants::<()>(EMPTY_WEBHOOKS).bind::<Array<SqlUuid>, _>(theirs);
                let rows = query.bind::<Binary, _>(blank.clone()).run(self.store).await?;
                self.erased.inbound += i64::try_from(rows).unwrap_or_default();
            }
            after = last;
        }
    }
}

const BEGIN: &str = "
INSERT INTO erasures (tenant_id, user_id, by_address) VALUES (?, ?, ?)
ON CONFLICT (tenant_id, user_id) DO UPDATE SET created_at = now(), due_at = now(), failures = 0,
    by_address = erasures.by_address OR excluded.by_address
RETURNING created_at, by_address";

const TAKE: &str = "
UPDATE erasures e SET due_at = now() + ? * interval '1 second'
FROM (SELECT tenant_id, user_id FROM erasures WHERE due_at <= now() AND created_at < now() - ? * interval '1 second'
      ORDER BY due_at LIMIT ? FOR UPDATE SKIP LOCKED) p
WHERE e.tenant_id = p.tenant_id AND e.user_id = p.user_id
RETURNING e.tenant_id, e.user_id, e.created_at, e.by_address";

const RESUME: &str = "
UPDATE erasures SET due_at = now() + ? * interval '1 second', failures = 0 WHERE tenant_id = ? AND user_id = ?";

const PUT_OFF: &str = "
UPDATE erasures SET due_at = now() + interval '10 seconds' * power(2, least(failures, 8)), failures = failures + 1
WHERE tenant_id = ? AND user_id = ?";

const END: &str = "DELETE FROM erasures WHERE tenant_id = ? AND user_id = ? AND created_at <= ?";

const LEFT: &str = "
SELECT EXISTS (SELECT 1 FROM inbox i WHERE i.tenant_id = f.tenant_id AND i.user_id = f.user_id AND i.created_at <= f.asked_at)
    OR EXISTS (SELECT 1 FROM event_log e WHERE e.tenant_id = f.tenant_id AND e.user_id = f.user_id AND e.created_at <= f.asked_at)
    OR EXISTS (SELECT 1 FROM digests d WHERE d.tenant_id = f.tenant_id AND d.user_id = f.user_id AND d.opened_at <= f.asked_at)
FROM (SELECT ?::int4 AS tenant_id, ?::text AS user_id, ?::timestamptz AS asked_at) f";

const INBOX: &str = "
WITH gone AS (DELETE FROM inbox WHERE id = ANY (ARRAY(SELECT id FROM inbox WHERE tenant_id = ? AND user_id = ? LIMIT ?)) RETURNING 1)
SELECT count(*) FROM gone";

const EVENTS: &str = "
WITH gone AS (
    DELETE FROM event_log WHERE id = ANY (ARRAY(
        SELECT id FROM event_log WHERE tenant_id = ? AND user_id = ? AND created_at <= ? LIMIT ?)) RETURNING 1)
SELECT count(*) FROM gone";

const DIGESTS: &str = "
WITH theirs AS MATERIALIZED (SELECT id FROM digests WHERE tenant_id = ? AND user_id = ? AND opened_at <= ? LIMIT ?
), items AS (DELETE FROM digest_items i USING theirs t WHERE i.digest_id = t.id
), gone AS (DELETE FROM digests d USING theirs t WHERE d.id = t.id RETURNING 1)
SELECT count(*) FROM gone";

const THROTTLES: &str = "DELETE FROM throttles WHERE tenant_id = ? AND user_id = ?";

const PREFERENCES: &str = "SELECT preferences::text FROM users WHERE tenant_id = ? AND user_id = ?";

const CONTACT: &str = "
WITH f AS (SELECT ?::int4 AS tenant_id, ?::text AS user_id, ?::timestamptz AS asked_at
), devices_gone AS (
    DELETE FROM devices d USING f WHERE d.tenant_id = f.tenant_id AND d.user_id = f.user_id AND d.created_at <= f.asked_at RETURNING 1
), gone AS (
    DELETE FROM users u USING f WHERE u.tenant_id = f.tenant_id AND u.user_id = f.user_id AND u.created_at <= f.asked_at RETURNING 1)
SELECT (SELECT count(*) FROM devices_gone) + (SELECT count(*) FROM gone)";

const OPT_OUT: &str = "
INSERT INTO suppressions (id, tenant_id, channel, address_hash, scope, reason)
SELECT n.id, f.tenant_id, n.channel, n.address_hash, f.scope, f.reason
FROM (SELECT ?::int4 AS tenant_id, ?::text AS scope, ?::text AS reason) f
CROSS JOIN unnest(?::uuid[], ?::text[], ?::bytea[]) AS n(id, channel, address_hash)
ORDER BY n.address_hash
ON CONFLICT (address_hash, tenant_id, channel, scope) DO NOTHING";

// The numbers of an inbox that has nothing in it.
const INBOX_END: &str = "
DELETE FROM inboxes b WHERE b.tenant_id = ? AND b.user_id = ?
    AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.tenant_id = b.tenant_id AND i.user_id = b.user_id)";

// Refresh tokens that speak for the person.
const FAMILIES: &str = "DELETE FROM token_families WHERE tenant_id = ? AND subject = ? AND created_at <= ?";

/// A message with a delivery that is not over.
macro_rules! alive {
    () => {
        concat!(
            "EXISTS (SELECT 1 FROM deliveries d WHERE d.message_id = m.id AND d.id >= m.id AND d.id < ",
            minute_after!("m.id"),
            " AND d.state IN ('scheduled', 'queued', 'sending', 'retrying'))"
        )
    };
}

const PICK: &str = concat!(
    "SELECT m.id, ",
    alive!(),
    " FROM (SELECT ?::int4 AS tenant_id, ?::text AS user_id, ?::timestamptz AS asked_at, ?::uuid AS after) f CROSS JOIN messages m
WHERE m.tenant_id = f.tenant_id AND m.user_id = f.user_id AND m.created_at <= f.asked_at AND m.id > f.after ORDER BY m.id LIMIT ?"
);

const EXPIRE: &str =
    "UPDATE messages SET expires_at = least(expires_at, now()) WHERE tenant_id = ? AND id = ANY (?::uuid[])";

/// The note of an outcome has the id of its letter. A letter that is replayed stays so: its outcome is on its way.
const GIVE_UP_OUTCOMES: &str = concat!(
    "
WITH theirs AS MATERIALIZED (
    SELECT d.id FROM (SELECT ?::int4 AS tenant_id, ?::uuid[] AS ids) f
    JOIN messages m ON m.id = ANY (f.ids) AND m.tenant_id = f.tenant_id
    CROSS JOIN LATERAL (SELECT d.id FROM deliveries d WHERE d.message_id = m.id AND d.id >= m.id AND d.id < ",
    minute_after!("m.id"),
    " OFFSET 0) d
), gone AS (DELETE FROM unread_events u USING theirs t WHERE u.delivery_id = t.id AND u.body = '' RETURNING u.id
), emptied AS (
    UPDATE dead_letters l SET body = NULL, detail = '', status = CASE l.status WHEN 'open' THEN 'dropped' ELSE l.status END
    FROM gone g WHERE l.id = g.id RETURNING 1)
SELECT count(*) FROM emptied"
);

/// The message keeps content of its own, an empty one: the bulk's is no longer its.
const EMPTY: &str = concat!(
    "
WITH free AS MATERIALIZED (
    SELECT m.id, m.bulk_id, f.blank
    FROM (SELECT ?::int4 AS tenant_id, ?::uuid[] AS ids, ?::bytea AS blank) f CROSS JOIN unnest(f.ids) AS asked(id)
    JOIN messages m ON m.id = asked.id
    WHERE m.tenant_id = f.tenant_id AND NOT ",
    alive!(),
    "
), theirs AS MATERIALIZED (
    SELECT d.id, d.recipient FROM free m CROSS JOIN LATERAL (
        SELECT d.id, d.recipient FROM deliveries d WHERE d.message_id = m.id AND d.id >= m.id AND d.id < ",
    minute_after!("m.id"),
    " OFFSET 0) d
), unaddressed AS (UPDATE deliveries d SET recipient = '', recipient_hash = NULL FROM theirs t WHERE d.id = t.id RETURNING 1
), closed AS (UPDATE dead_letters l SET status = 'dropped' FROM theirs t WHERE l.delivery_id = t.id AND l.status = 'open' RETURNING 1
), emptied AS (UPDATE messages m SET user_id = NULL, content = f.blank FROM free f WHERE m.id = f.id RETURNING 1
)
SELECT (SELECT count(*) FROM emptied), (SELECT count(*) FROM unaddressed), (SELECT count(*) FROM closed),
       ARRAY(SELECT recipient FROM theirs), ARRAY(SELECT DISTINCT bulk_id FROM free WHERE bulk_id IS NOT NULL),
       ARRAY(SELECT id FROM theirs)"
);

/// Another person needs the content as long as a message of the bulk has none of its own.
const BULKS: &str = "
WITH emptied AS (
    UPDATE bulks b SET content = f.blank FROM (SELECT ?::int4 AS tenant_id, ?::uuid[] AS ids, ?::bytea AS blank) f
    WHERE b.id = ANY (f.ids) AND b.tenant_id = f.tenant_id
      AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.bulk_id = b.id AND m.content IS NULL)
    RETURNING 1)
SELECT count(*) FROM emptied";

/// A bulk and its key are of one commit, so of one moment, by which there is an index.
const ANSWERS: &str = "
SELECT k.key_hash, k.response
FROM (SELECT ?::int4 AS tenant_id, ?::uuid[] AS ids) f JOIN bulks b ON b.id = ANY (f.ids)
JOIN idempotency_keys k ON k.created_at = b.created_at AND k.subject = b.id
WHERE k.tenant_id = f.tenant_id";

const ANSWER: &str = "
UPDATE idempotency_keys k SET response = f.new
FROM (SELECT ?::int4 AS tenant_id, ?::bytea AS key_hash, ?::bytea AS old, ?::bytea AS new) f
WHERE k.tenant_id = f.tenant_id AND k.key_hash = f.key_hash AND k.response = f.old";

const LETTERS: &str = "
SELECT l.id, l.body FROM dead_letters l WHERE l.tenant_id = ? AND l.id > ? AND l.body IS NOT NULL ORDER BY l.id LIMIT ?";

const EMPTY_LETTERS: &str = "
UPDATE dead_letters SET body = NULL, detail = '', status = CASE status WHEN 'open' THEN 'dropped' ELSE status END
WHERE tenant_id = ? AND id = ANY (?::uuid[])";

const SUPPRESSIONS: &str = "
UPDATE suppressions SET address = NULL, delivery_id = NULL WHERE tenant_id = ? AND address_hash = ANY (?::bytea[])";

const INBOUND: &str = "
WITH gone AS (DELETE FROM wa_inbound WHERE tenant_id = ? AND chat_hash = ANY (?::bytea[]) RETURNING id) SELECT id FROM gone";

/// Webhook events about deliveries, or about messages from the person, and the log of their calls.
const ECHOES: &str = "
WITH f AS (SELECT ?::int4 AS tenant_id, ?::uuid[] AS subjects, ?::bytea AS blank
), gone AS (
    DELETE FROM webhook_events w USING f WHERE w.tenant_id = f.tenant_id AND w.subject = ANY (f.subjects) AND NOT w.pending RETURNING w.carrier
), carriers AS MATERIALIZED (
    SELECT d.id, d.message_id FROM gone g
    CROSS JOIN LATERAL (SELECT d.id, d.message_id, d.state FROM deliveries d WHERE d.id = g.carrier OFFSET 0) d
    WHERE d.state NOT IN ('scheduled', 'queued', 'sending', 'retrying')
), emptied AS (UPDATE messages m SET content = f.blank FROM carriers c CROSS JOIN f WHERE m.id = c.message_id
)
DELETE FROM webhook_logs l USING f
WHERE l.tenant_id = f.tenant_id AND (l.delivery_id = ANY (f.subjects) OR l.delivery_id IN (SELECT id FROM carriers))";

const NAMELESS: &str = concat!(
    "SELECT m.id, ",
    alive!(),
    " FROM (SELECT DISTINCT d.message_id FROM (SELECT ?::int4 AS tenant_id, ?::bytea[] AS hashes) f
      JOIN deliveries d ON d.recipient_hash = ANY (f.hashes) WHERE d.tenant_id = f.tenant_id AND d.channel IN ('whatsapp', 'sms')) x
JOIN messages m ON m.id = x.message_id WHERE m.user_id IS NULL LIMIT ?"
);

const WEBHOOKS: &str =
    "SELECT w.id, w.body FROM waha_events w WHERE w.tenant_id = ? AND w.id > ? ORDER BY w.id LIMIT ?";

const EMPTY_WEBHOOKS: &str = "
UPDATE waha_events w SET body = f.blank, status = CASE w.status WHEN 'pending' THEN 'ignored' ELSE w.status END
FROM (SELECT ?::int4 AS tenant_id, ?::uuid[] AS ids, ?::bytea AS blank) f
WHERE w.tenant_id = f.tenant_id AND w.id = ANY (f.ids)";
