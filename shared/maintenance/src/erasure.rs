//! Erasure: a person is removed everywhere; the facts of the log and the counters stay.
//!
//! A request is a row. It is carried out in steps: by the request itself while its client waits, then by a scheduler. A
//! delivery that a worker holds is erased in a later step; its message expires at once, so no further try follows. An
//! outcome that the database refused is dropped; otherwise its open dead letter would keep the delivery from ending.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, Utc};
use deliveries::Deliveries;
use diesel::sql_types::{Array, Binary, Bool, Double, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{
    Address, Channel, MessageId, Preferences, TenantId,
    suppression::{SuppressionReason, SuppressionScope, is_suppressible, suppressed_form},
};
use records::Records;
use serde::Serialize;
use serde_json::Value;
use store::{
    DbResult, Store, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::ErasureStore;

/// Messages of one step.
const BATCH: i64 = 100;
/// Bodies opened at once.
const OPENED: i64 = 200;
/// How long a request works on its erasure alone. Its answer counts the erased rows, so no scheduler may take part.
pub const ATTENDED: Duration = Duration::from_secs(10);
/// How long a taken erasure belongs to its caller: longer than a step takes.
const LEASE: Duration = Duration::from_secs(300);

/// The erased rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Erased {
    /// Messages whose content is gone.
    pub messages: i64,
    /// Deliveries whose recipient was removed.
    pub deliveries: i64,
    /// Entries of the inbox.
    pub inbox: i64,
    /// Contents of bulks that have no other recipient.
    pub bulks: i64,
    /// Stored answers that the person was removed from.
    pub idempotency_responses: i64,
    /// Dead letters that were emptied or closed.
    pub dead_letters: i64,
    /// Messages from the person, and reports of WhatsApp about them.
    pub inbound: i64,
    /// The contact of the person (1), and devices.
    pub contact: i64,
    /// Events from other systems, and events in the person's digests.
    pub events: i64,
}

impl Erased {
    /// Adds the counts of another step.
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

/// A person whose erasure was requested.
#[derive(Clone, Debug)]
pub struct Erasure {
    /// The tenant of the person.
    pub tenant: TenantId,
    /// The person.
    pub user_id: String,
    /// Messages accepted after this time are not erased.
    pub asked_at: DateTime<Utc>,
    /// Whether to erase data that is linked to the person only by an address.
    pub by_address: bool,
}

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to do at once.
    More,
    /// Only deliveries that a worker holds are left.
    Held,
    /// Nothing of the person is left.
    Done,
}

impl ErasureStore<'_> {
    /// Stores the request to erase a person; for `by_address` see [`Erasure::by_address`]. The refusal of advertising
    /// is kept.
    pub async fn begin(self, tenant: TenantId, user_id: &str, by_address: bool) -> DbResult<Erasure> {
        self.store.preferences().keep_opt_out_of(tenant, user_id).await?;
        let begun = Begin { tenant: tenant.0, user_id: user_id.to_owned(), by_address };
        let Begun { asked_at, by_address } = begun.query().within(Some(tenant)).row(self.store).await?;
        Ok(Erasure { tenant, user_id: user_id.to_owned(), asked_at, by_address })
    }

    /// Takes up to `limit` erasures that no process works on, longest due first. They belong to the caller for a while,
    /// so no other process decrypts the same rows.
    pub async fn take(self, limit: i64) -> DbResult<Vec<Erasure>> {
        let take = Take { lease: LEASE.as_secs_f64(), attended: ATTENDED.as_secs_f64(), limit };
        let taken = take.query().rows(self.store).await?;
        let erasure = |Taken { tenant_id, user_id, asked_at, by_address }| Erasure {
            tenant: TenantId(tenant_id),
            user_id,
            asked_at,
            by_address,
        };
        Ok(taken.into_iter().map(erasure).collect())
    }

    /// Gives an erasure back, to continue after `pause`.
    pub async fn resume(self, person: &Erasure, pause: Duration) -> DbResult<()> {
        let Erasure { tenant, user_id, .. } = person;
        let resume = Resume { pause: pause.as_secs_f64(), tenant: tenant.0, user_id: user_id.clone() };
        resume.query().within(Some(*tenant)).run(self.store).await.map(drop)
    }

    /// Gives an erasure back after a failed step. Each further failure doubles the pause, up to 45 minutes.
    pub async fn put_off(self, person: &Erasure) -> DbResult<()> {
        let Erasure { tenant, user_id, .. } = person;
        let put_off = PutOff { tenant: tenant.0, user_id: user_id.clone() };
        put_off.query().within(Some(*tenant)).run(self.store).await.map(drop)
    }

    /// Takes one step and adds its counts to `erased`. Several callers may do so at once.
    pub async fn step(self, person: &Erasure, erased: &mut Erased) -> DbResult<Step> {
        let Erasure { tenant, asked_at, .. } = *person;
        let user_id = || person.user_id.clone();
        let mut eraser = Eraser { store: self.store, person, erased, recipients: BTreeSet::new() };
        let step = eraser.messages().await?;
        let inbox = DeleteInbox { tenant: tenant.0, user_id: user_id(), limit: BATCH };
        eraser.erased.inbox += inbox.query().within(Some(tenant)).row(self.store).await?;
        let families = DeleteFamilies { tenant: tenant.0, user_id: user_id(), asked_at };
        families.query().within(Some(tenant)).run(self.store).await?;
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
        self.store.broadcasts().erase_from_broadcasts(tenant, &person.user_id).await?;
        let is_left = IsLeft { tenant: tenant.0, user_id: user_id(), asked_at };
        if is_left.query().within(Some(tenant)).row(self.store).await? {
            return Ok(Step::More);
        }
        let numbers = DeleteInboxNumbers { tenant: tenant.0, user_id: user_id() };
        numbers.query().within(Some(tenant)).run(self.store).await?;
        End { tenant: tenant.0, user_id: user_id(), asked_at }.query().within(Some(tenant)).run(self.store).await?;
        Ok(Step::Done)
    }
}

struct Eraser<'a> {
    store: &'a Store,
    person: &'a Erasure,
    erased: &'a mut Erased,
    /// The person's addresses found so far in this step.
    recipients: BTreeSet<String>,
}

impl Eraser<'_> {
    async fn messages(&mut self) -> DbResult<Step> {
        let Erasure { tenant, user_id, asked_at, .. } = self.person;
        let (mut after, mut step) = (Uuid::nil(), Step::Done);
        loop {
            let pick = Pick { tenant: tenant.0, user_id: user_id.clone(), asked_at: *asked_at, after, limit: BATCH };
            let picked = pick.query().within(Some(*tenant)).rows(self.store).await?;
            let Some(&Picked { id: last, .. }) = picked.last() else { return Ok(step) };
            let taken = i64::try_from(picked.len()).unwrap_or_default();
            if self.empty(picked).await? < taken {
                step = Step::Held;
                after = last;
            } else {
                return Ok(Step::More);
            }
        }
    }

    /// Cancels the waiting deliveries of these messages and empties all that no worker holds; returns the number.
    async fn empty(&mut self, picked: Vec<Picked>) -> DbResult<i64> {
        let tenant = self.person.tenant;
        let alive: Vec<Uuid> = picked.iter().filter(|message| message.is_alive).map(|message| message.id).collect();
        let ids: Vec<Uuid> = picked.into_iter().map(|message| message.id).collect();
        if !alive.is_empty() {
            let expire = Expire { tenant: tenant.0, ids: alive.clone() };
            expire.query().within(Some(tenant)).run(self.store).await?;
            self.give_up_outcomes(alive.clone()).await?;
        }
        for id in alive {
            self.store.messages().cancel(Some(tenant), MessageId(id)).await?;
        }
        let blank = self.store.sealer().seal(sealed::CONTENT.of(tenant), b"{}")?;
        let empty = EmptyMessages { tenant: tenant.0, ids, blank: blank.clone() };
        let emptied = empty.query().within(Some(tenant)).row(self.store).await?;
        self.echoes(emptied.theirs).await?;
        self.erased.messages += emptied.messages;
        self.erased.deliveries += emptied.deliveries;
        self.erased.dead_letters += emptied.letters;
        let place = sealed::RECIPIENT.of(tenant);
        let recipients = emptied.recipients.into_iter();
        self.recipients.extend(recipients.filter_map(|stored| self.store.opened_text(place, stored)));
        self.recipients.remove("");
        if !emptied.bulks.is_empty() {
            let bulks = EmptyBulks { tenant: tenant.0, ids: emptied.bulks.clone(), blank };
            self.erased.bulks += bulks.query().within(Some(tenant)).row(self.store).await?;
            self.answers(emptied.bulks).await?;
        }
        Ok(emptied.messages)
    }

    /// Drops the outcomes of these messages that are in dead letters. Their deliveries then count as crashed, and end
    /// without a call because their messages have expired.
    async fn give_up_outcomes(&mut self, messages: Vec<Uuid>) -> DbResult<()> {
        // The letter of an outcome names no tenant, so this statement runs over the rows of all tenants.
        let give_up = GiveUpOutcomes { tenant: self.person.tenant.0, ids: messages };
        self.erased.dead_letters += give_up.query().row(self.store).await?;
        Ok(())
    }

    /// Empties the webhook events about these deliveries or messages.
    async fn echoes(&self, subjects: Vec<Uuid>) -> DbResult<()> {
        if subjects.is_empty() {
            return Ok(());
        }
        let tenant = self.person.tenant;
        let blank = self.store.sealer().seal(sealed::CONTENT.of(tenant), b"{}")?;
        let echoes = DeleteEchoes { tenant: tenant.0, subjects, blank };
        echoes.query().within(Some(tenant)).run(self.store).await.map(drop)
    }

    /// Removes the person from the stored answers of bulk calls. The answers stay: without them a repeated call would
    /// send again.
    async fn answers(&mut self, bulks: Vec<Uuid>) -> DbResult<()> {
        let tenant = self.person.tenant;
        let place = sealed::RESPONSE.of(tenant);
        let answers = Answers { tenant: tenant.0, bulks }.query().within(Some(tenant)).rows(self.store).await?;
        for Answer { key_hash, response: old } in answers {
            let opened = self.store.opened(place, old.clone()).unwrap_or_default();
            let Ok(mut answer) = serde_json::from_slice::<Value>(&opened) else { continue };
            if !self.take_out(&mut answer) {
                continue;
            }
            let new = self.store.sealer().seal(place, &serde_json::to_vec(&answer).unwrap_or_default())?;
            let replace = ReplaceAnswer { tenant: tenant.0, key_hash, old, new };
            let replaced = replace.query().within(Some(tenant)).run(self.store).await?;
            self.erased.idempotency_responses += i64::try_from(replaced).unwrap_or_default();
        }
        Ok(())
    }

    /// Whether there was a mention to remove.
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

    /// Events that other systems sent about the person.
    async fn happenings(&mut self) -> DbResult<()> {
        let Erasure { tenant, asked_at, .. } = *self.person;
        let user_id = || self.person.user_id.clone();
        let events = DeleteEvents { tenant: tenant.0, user_id: user_id(), asked_at, limit: BATCH };
        self.erased.events += events.query().within(Some(tenant)).row(self.store).await?;
        let digests = DeleteDigests { tenant: tenant.0, user_id: user_id(), asked_at, limit: BATCH };
        self.erased.events += digests.query().within(Some(tenant)).row(self.store).await?;
        let throttles = DeleteThrottles { tenant: tenant.0, user_id: user_id() };
        throttles.query().within(Some(tenant)).run(self.store).await.map(drop)
    }

    /// The person's addresses that the tenant knows.
    async fn addresses(&mut self) -> DbResult<Vec<(Channel, Address)>> {
        let Erasure { tenant, user_id, .. } = self.person;
        let Some(person) = self.store.people().load(*tenant, vec![user_id.clone()]).await?.remove(user_id) else {
            return Ok(Vec::new());
        };
        let channels = Channel::ALL.iter().filter(|channel| is_suppressible(**channel));
        let addresses: Vec<(Channel, Address)> = channels
            .flat_map(|channel| person.addresses(*channel).into_iter().map(|address| (*channel, address)))
            .collect();
        self.recipients.extend(addresses.iter().map(|(_, address)| address.reveal().to_owned()));
        Ok(addresses)
    }

    /// Deletes the contact of the person. A refusal of advertising stays, by the fingerprints of the addresses.
    async fn contact(&mut self, addresses: Vec<(Channel, Address)>) -> DbResult<()> {
        let Erasure { tenant, user_id, asked_at, .. } = self.person;
        let read = KnownPreferences { tenant: tenant.0, user_id: user_id.clone() };
        let preferences = read.query().within(Some(*tenant)).first(self.store).await?.flatten();
        let preferences: Preferences =
            preferences.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
        if preferences.refuses_marketing() && !addresses.is_empty() {
            self.opt_out(addresses).await?;
        }
        let contact = DeleteContact { tenant: tenant.0, user_id: user_id.clone(), asked_at: *asked_at };
        self.erased.contact += contact.query().within(Some(*tenant)).row(self.store).await?;
        Ok(())
    }

    async fn opt_out(&self, addresses: Vec<(Channel, Address)>) -> DbResult<()> {
        let tenant = self.person.tenant;
        let realm = tenant.to_string();
        let print = |(channel, address): &(Channel, Address)| {
            self.store.sealer().fingerprint(&realm, &suppressed_form(*channel, address.reveal())).to_vec()
        };
        let opt_out = OptOut {
            tenant: tenant.0,
            scope: SuppressionScope::Marketing.to_string(),
            reason: SuppressionReason::Unsubscribed.as_str(),
            ids: addresses.iter().map(|_| Uuid::now_v7()).collect(),
            channels: addresses.iter().map(|(channel, _)| channel.as_str()).collect(),
            hashes: addresses.iter().map(print).collect(),
        };
        opt_out.query().within(Some(tenant)).run(self.store).await.map(drop)
    }

    /// Refused publishes that name the person.
    async fn letters(&mut self) -> DbResult<()> {
        let tenant = self.person.tenant;
        let mut after = Uuid::nil();
        loop {
            let letters = Letters { tenant: tenant.0, after, limit: OPENED };
            let letters = letters.query().within(Some(tenant)).rows(self.store).await?;
            let Some(&Bodied { id: last, .. }) = letters.last() else { return Ok(()) };
            let mut theirs = Vec::new();
            for Bodied { id, body } in letters {
                let body = self.store.opened(sealed::LETTER_BODY.of_nobody(), body).unwrap_or_default();
                let names = serde_json::from_slice(&body).is_ok_and(|body| self.is_theirs(&body));
                theirs.extend(names.then_some(id));
            }
            if !theirs.is_empty() {
                let empty = EmptyLetters { tenant: tenant.0, ids: theirs };
                let emptied = empty.query().within(Some(tenant)).run(self.store).await?;
                self.erased.dead_letters += i64::try_from(emptied).unwrap_or_default();
            }
            after = last;
        }
    }

    /// A suppression outlives its person, without the address.
    async fn suppressions(&mut self) -> DbResult<()> {
        let tenant = self.person.tenant;
        let realm = tenant.to_string();
        let forms = self.recipients.iter().flat_map(|text| {
            Channel::ALL.iter().filter(|channel| is_suppressible(**channel)).map(|c| suppressed_form(*c, text))
        });
        let prints = forms.flat_map(|form| self.store.sealer().fingerprints(&realm, &form));
        let hashes: Vec<Vec<u8>> = prints.map(|print| print.to_vec()).collect();
        let empty = EmptySuppressions { tenant: tenant.0, hashes };
        empty.query().within(Some(tenant)).run(self.store).await.map(drop)
    }

    /// Data that is found by the person's numbers: messages from them, reports of WhatsApp about them, and messages to
    /// them that name no person.
    async fn numbers(&mut self) -> DbResult<()> {
        let phones: Vec<String> = self.recipients.iter().filter(|text| text.starts_with('+')).cloned().collect();
        if phones.is_empty() {
            return Ok(());
        }
        let tenant = self.person.tenant;
        let realm = tenant.to_string();
        let prints = phones.iter().flat_map(|phone| self.store.sealer().fingerprints(&realm, phone));
        let hashes: Vec<Vec<u8>> = prints.map(|print| print.to_vec()).collect();
        let inbound = DeleteInbound { tenant: tenant.0, hashes: hashes.clone() };
        let inbound = inbound.query().within(Some(tenant)).rows(self.store).await?;
        self.erased.inbound += i64::try_from(inbound.len()).unwrap_or_default();
        self.echoes(inbound).await?;
        self.webhooks(&phones).await?;
        loop {
            let nameless = Nameless { tenant: tenant.0, hashes: hashes.clone(), limit: BATCH };
            let picked = nameless.query().within(Some(tenant)).rows(self.store).await?;
            if picked.is_empty() || self.empty(picked).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn webhooks(&mut self, phones: &[String]) -> DbResult<()> {
        let tenant = self.person.tenant;
        let place = sealed::WAHA_EVENT.of(tenant);
        let (mut after, blank) = (Uuid::nil(), self.store.sealer().seal(place, b"{}")?);
        loop {
            let webhooks = Webhooks { tenant: tenant.0, after, limit: OPENED };
            let webhooks = webhooks.query().within(Some(tenant)).rows(self.store).await?;
            let Some(&Bodied { id: last, .. }) = webhooks.last() else { return Ok(()) };
            let mut theirs = Vec::new();
            for Bodied { id, body } in webhooks {
                let body = self.store.opened(place, body).unwrap_or_default();
                let body = String::from_utf8_lossy(&body);
                let names = phones.iter().any(|phone| body.contains(phone.trim_start_matches('+')));
                theirs.extend(names.then_some(id));
            }
            if !theirs.is_empty() {
                let empty = EmptyWebhooks { tenant: tenant.0, ids: theirs, blank: blank.clone() };
                let emptied = empty.query().within(Some(tenant)).run(self.store).await?;
                self.erased.inbound += i64::try_from(emptied).unwrap_or_default();
            }
            after = last;
        }
    }
}

row! {
    struct Begun {
        asked_at: DateTime<Utc> as Timestamptz,
        by_address: bool as Bool,
    }
}

row! {
    struct Taken {
        tenant_id: i32 as Int4,
        user_id: String as Text,
        asked_at: DateTime<Utc> as Timestamptz,
        by_address: bool as Bool,
    }
}

row! {
    /// A message to empty.
    struct Picked {
        id: Uuid as SqlUuid,
        /// Whether it has a delivery without an end.
        is_alive: bool as Bool,
    }
}

row! {
    /// The number of emptied messages and deliveries and of closed letters, and the keys for further rows.
    struct Emptied {
        messages: i64 as Int8,
        deliveries: i64 as Int8,
        letters: i64 as Int8,
        recipients: Vec<String> as Array<Text>,
        bulks: Vec<Uuid> as Array<SqlUuid>,
        /// The deliveries.
        theirs: Vec<Uuid> as Array<SqlUuid>,
    }
}

row! {
    struct Answer {
        key_hash: Vec<u8> as Binary,
        response: Vec<u8> as Binary,
    }
}

row! {
    /// A row whose sealed body may name the person.
    struct Bodied {
        id: Uuid as SqlUuid,
        body: Vec<u8> as Binary,
    }
}

sql!(Begin in "erasure/begin.sql" { tenant: i32 as Int4, user_id: String as Text, by_address: bool as Bool } -> Begun);
sql!(Take in "erasure/take.sql" { lease: f64 as Double, attended: f64 as Double, limit: i64 as Int8 } -> Taken);
sql!(Resume in "erasure/resume.sql" { pause: f64 as Double, tenant: i32 as Int4, user_id: String as Text });
sql!(PutOff in "erasure/put_off.sql" { tenant: i32 as Int4, user_id: String as Text });
sql!(IsLeft in "erasure/is_left.sql" {
    tenant: i32 as Int4, user_id: String as Text, asked_at: DateTime<Utc> as Timestamptz
} -> bool as Bool);
sql!(End in "erasure/end.sql" {
    tenant: i32 as Int4, user_id: String as Text, asked_at: DateTime<Utc> as Timestamptz
});
sql!(DeleteInbox in "erasure/delete_inbox.sql" {
    tenant: i32 as Int4, user_id: String as Text, limit: i64 as Int8
} -> i64 as Int8);
sql!(DeleteInboxNumbers in "erasure/delete_inbox_numbers.sql" { tenant: i32 as Int4, user_id: String as Text });
sql!(DeleteFamilies in "erasure/delete_families.sql" {
    tenant: i32 as Int4, user_id: String as Text, asked_at: DateTime<Utc> as Timestamptz
});
sql!(DeleteEvents in "erasure/delete_events.sql" {
    tenant: i32 as Int4, user_id: String as Text, asked_at: DateTime<Utc> as Timestamptz, limit: i64 as Int8
} -> i64 as Int8);
sql!(DeleteDigests in "erasure/delete_digests.sql" {
    tenant: i32 as Int4, user_id: String as Text, asked_at: DateTime<Utc> as Timestamptz, limit: i64 as Int8
} -> i64 as Int8);
sql!(DeleteThrottles in "erasure/delete_throttles.sql" { tenant: i32 as Int4, user_id: String as Text });
sql!(KnownPreferences in "erasure/preferences.sql" {
    tenant: i32 as Int4, user_id: String as Text
} -> Option<String> as Nullable<Text>);
sql!(DeleteContact in "erasure/delete_contact.sql" {
    tenant: i32 as Int4, user_id: String as Text, asked_at: DateTime<Utc> as Timestamptz
} -> i64 as Int8);
sql!(OptOut in "erasure/opt_out.sql" {
    tenant: i32 as Int4, scope: String as Text, reason: &'static str as Text, ids: Vec<Uuid> as Array<SqlUuid>,
    channels: Vec<&'static str> as Array<Text>, hashes: Vec<Vec<u8>> as Array<Binary>
});
sql!(Pick in "erasure/pick.sql" {
    tenant: i32 as Int4, user_id: String as Text, asked_at: DateTime<Utc> as Timestamptz, after: Uuid as SqlUuid,
    limit: i64 as Int8
} -> Picked);
sql!(Nameless in "erasure/nameless.sql" {
    tenant: i32 as Int4, hashes: Vec<Vec<u8>> as Array<Binary>, limit: i64 as Int8
} -> Picked);
sql!(Expire in "erasure/expire.sql" { tenant: i32 as Int4, ids: Vec<Uuid> as Array<SqlUuid> });
sql!(GiveUpOutcomes in "erasure/give_up_outcomes.sql" {
    tenant: i32 as Int4, ids: Vec<Uuid> as Array<SqlUuid>
} -> i64 as Int8);
sql!(EmptyMessages in "erasure/empty_messages.sql" {
    tenant: i32 as Int4, ids: Vec<Uuid> as Array<SqlUuid>, blank: Vec<u8> as Binary
} -> Emptied);
sql!(EmptyBulks in "erasure/empty_bulks.sql" {
    tenant: i32 as Int4, ids: Vec<Uuid> as Array<SqlUuid>, blank: Vec<u8> as Binary
} -> i64 as Int8);
sql!(Answers in "erasure/answers.sql" { tenant: i32 as Int4, bulks: Vec<Uuid> as Array<SqlUuid> } -> Answer);
sql!(ReplaceAnswer in "erasure/replace_answer.sql" {
    tenant: i32 as Int4, key_hash: Vec<u8> as Binary, old: Vec<u8> as Binary, new: Vec<u8> as Binary
});
sql!(Letters in "erasure/letters.sql" { tenant: i32 as Int4, after: Uuid as SqlUuid, limit: i64 as Int8 } -> Bodied);
sql!(EmptyLetters in "erasure/empty_letters.sql" { tenant: i32 as Int4, ids: Vec<Uuid> as Array<SqlUuid> });
sql!(EmptySuppressions in "erasure/empty_suppressions.sql" {
    tenant: i32 as Int4, hashes: Vec<Vec<u8>> as Array<Binary>
});
sql!(DeleteInbound in "erasure/delete_inbound.sql" {
    tenant: i32 as Int4, hashes: Vec<Vec<u8>> as Array<Binary>
} -> Uuid as SqlUuid);
sql!(DeleteEchoes in "erasure/delete_echoes.sql" {
    tenant: i32 as Int4, subjects: Vec<Uuid> as Array<SqlUuid>, blank: Vec<u8> as Binary
});
sql!(Webhooks in "erasure/webhooks.sql" { tenant: i32 as Int4, after: Uuid as SqlUuid, limit: i64 as Int8 } -> Bodied);
sql!(EmptyWebhooks in "erasure/empty_webhooks.sql" {
    tenant: i32 as Int4, ids: Vec<Uuid> as Array<SqlUuid>, blank: Vec<u8> as Binary
});
statements!(
    Begin,
    Take,
    Resume,
    PutOff,
    IsLeft,
    End,
    DeleteInbox,
    DeleteInboxNumbers,
    DeleteFamilies,
    DeleteEvents,
    DeleteDigests,
    DeleteThrottles,
    KnownPreferences,
    DeleteContact,
    OptOut,
    Pick,
    Nameless,
    Expire,
    GiveUpOutcomes,
    EmptyMessages,
    EmptyBulks,
    Answers,
    ReplaceAnswer,
    Letters,
    EmptyLetters,
    EmptySuppressions,
    DeleteInbound,
    DeleteEchoes,
    Webhooks,
    EmptyWebhooks,
);
