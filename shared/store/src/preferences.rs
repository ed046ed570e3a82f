//! What people want, and what outlives it: who said no to advertising is kept by the fingerprint of the address.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Nullable, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use domain::{
    Address, Channel, Preferences, TenantId,
    suppression::{SuppressionReason, SuppressionScope, is_suppressible},
    unsubscribe::UnsubscribeToken,
};

use super::{
    DbResult, Store, messages::minute_after, people::Profile, sealed, statement, suppressions::NewSuppression,
};

/// What becomes of addresses when preferences change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consequences {
    /// This is kept from the person's e-mail address from now on.
    pub suppress: Vec<SuppressionScope>,
    /// This no more, if the person had unsubscribed from it.
    pub lift: Vec<SuppressionScope>,
}

/// A suppression of an address of a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptOut {
    /// The channel.
    pub channel: Channel,
    /// What is kept from the address.
    pub scope: SuppressionScope,
    /// Why.
    pub reason: SuppressionReason,
    /// Since when.
    pub created_at: DateTime<Utc>,
}

/// What is stored of a person, as far as it matters here.
struct Stored {
    preferences: Option<Preferences>,
    email: Option<Address>,
}

impl Store {
    /// What a person chose; `None`: nothing was ever said.
    pub async fn preferences(&self, tenant: TenantId, user_id: &str) -> DbResult<Option<Preferences>> {
        let query = statement::<Nullable<Text>>(READ).bind::<Int4, _>(tenant.0).bind::<Text, _>(user_id.to_owned());
        let json: Option<Option<String>> = query.within(Some(tenant)).rows(self).await?.into_iter().next();
        Ok(json.flatten().map(|json| serde_json::from_str(&json).unwrap_or_default()))
    }

    /// Changes what a person chose; a change at the same time comes before or after this one, and none is lost. Answers what
    /// holds now, or what `change` said against it.
    pub async fn change_preferences<E: Send>(
        &self,
        tenant: TenantId,
        user_id: &str,
        change: impl FnOnce(&mut Preferences) -> Result<Consequences, E> + Send,
    ) -> DbResult<Result<Preferences, E>> {
        let mut conn = self.within(Some(tenant)).await?;
        let result = self.change_within(&mut conn, tenant, user_id, change).await;
        match result {
            // Nothing of it stands, the row that was made for it neither.
            Ok(Err(refused)) => {
                drop(conn.done::<()>(Err(diesel::result::Error::RollbackTransaction)).await);
                Ok(Err(refused))
            }
            result => conn.finish(result).await,
        }
    }

    async fn change_within<E: Send>(
        &self,
        conn: &mut AsyncPgConnection,
        tenant: TenantId,
        user_id: &str,
        change: impl FnOnce(&mut Preferences) -> Result<Consequences, E> + Send,
    ) -> DbResult<Result<Preferences, E>> {
        let stored = self.lock(conn, tenant, user_id).await?;
        let mut preferences = stored.preferences.unwrap_or_default();
        let consequences = match change(&mut preferences) {
            Ok(consequences) => consequences,
            Err(refused) => return Ok(Err(refused)),
        };
        let json = serde_json::to_string(&preferences).unwrap_or_default();
        let query = statement::<()>(WRITE).bind::<Text, _>(json).bind::<Int4, _>(tenant.0);
        RunQueryDsl::execute(query.bind::<Text, _>(user_id.to_owned()), conn).await?;
        if let Some(email) = stored.email {
            self.draw(conn, tenant, &email, consequences).await?;
        }
        Ok(Ok(preferences))
    }

    async fn draw(
        &self,
        conn: &mut AsyncPgConnection,
        tenant: TenantId,
        email: &Address,
        consequences: Consequences,
    ) -> DbResult<()> {
        if !consequences.lift.is_empty() {
            let prints = self.address_prints(tenant, Channel::Email, email.reveal());
            let query = statement::<()>(LIFT)
                .bind::<Int4, _>(tenant.0)
                .bind::<Text, _>(Channel::Email.as_str())
                .bind::<Array<Binary>, _>(prints.iter().map(|print| print.to_vec()).collect::<Vec<_>>())
                .bind::<Array<Text>, _>(consequences.lift.iter().map(ToString::to_string).collect::<Vec<_>>())
                .bind::<Text, _>(SuppressionReason::Unsubscribed.as_str());
            RunQueryDsl::execute(query, conn).await?;
        }
        let new: Vec<NewSuppression> = consequences
            .suppress
            .into_iter()
            .map(|scope| unsubscribe_token(tenant, email.clone(), scope, true))
            .collect();
        self.suppress_within(conn, &new).await
    }

    /// Forgets what a person chose. Who turned advertising down stays so: by fingerprint, at every address that is known to
    /// be theirs.
    pub async fn erase_preferences(&self, tenant: TenantId, user_id: &str) -> DbResult<()> {
        let mut conn = self.within(Some(tenant)).await?;
        let erasing = async {
            self.keep_opt_out(&mut conn, tenant, user_id).await?;
            for text in [FORGET, DROP_EMPTY] {
                let query = statement::<()>(text).bind::<Int4, _>(tenant.0).bind::<Text, _>(user_id.to_owned());
                RunQueryDsl::execute(query, &mut *conn).await?;
            }
            Ok(())
        };
        let result = erasing.await;
        conn.finish(result).await
    }

    /// Before a person is forgotten: if they turned advertising down, that is kept by the fingerprints of their addresses.
    pub(super) async fn keep_opt_out_of(&self, tenant: TenantId, user_id: &str) -> DbResult<()> {
        let mut conn = self.within(Some(tenant)).await?;
        let result = self.keep_opt_out(&mut conn, tenant, user_id).await;
        conn.finish(result).await
    }

    async fn keep_opt_out(&self, conn: &mut AsyncPgConnection, tenant: TenantId, user_id: &str) -> DbResult<()> {
        let Some(stored) = self.chosen(conn, SHOWN, tenant, user_id).await? else { return Ok(()) };
        if !stored.preferences.is_some_and(|preferences| preferences.refuses_marketing_mail()) {
            return Ok(());
        }
        let query = statement::<Text>(MAILED).bind::<Int4, _>(tenant.0).bind::<Text, _>(user_id.to_owned());
        let mailed: Vec<String> = RunQueryDsl::load(query, conn).await?;
        let mut emails: BTreeSet<String> = stored.email.iter().map(|email| email.reveal().to_owned()).collect();
        emails.extend(mailed.into_iter().filter_map(|email| self.opened_text(sealed::RECIPIENT.of(tenant), email)));
        let keep = |email| unsubscribe_token(tenant, Address::new(email), SuppressionScope::Marketing, false);
        self.suppress_within(conn, &emails.into_iter().map(keep).collect::<Vec<_>>()).await
    }

    /// Silences a category on e-mail, for the person and for the address. A repeat changes nothing.
    pub async fn unsubscribe(&self, said: &UnsubscribeToken) -> DbResult<()> {
        let tenant = said.tenant;
        let mut conn = self.within(Some(tenant)).await?;
        let silencing = async {
            let scope = SuppressionScope::of_category(&said.category);
            if let Some(user_id) = &said.user_id {
                let change = |preferences: &mut Preferences| {
                    preferences.switch_channel(&said.category, Channel::Email, false);
                    Ok::<_, std::convert::Infallible>(Consequences { suppress: vec![scope.clone()], lift: Vec::new() })
                };
                let _ = self.change_within(&mut conn, tenant, user_id, change).await?;
            }
            let named = said.address.clone().map(|address| unsubscribe_token(tenant, address, scope, true));
            self.suppress_within(&mut conn, named.as_slice()).await
        };
        let result = silencing.await;
        conn.finish(result).await
    }

    /// What is kept from the addresses of a person.
    pub async fn opt_outs(&self, tenant: TenantId, user_id: &str) -> DbResult<Vec<OptOut>> {
        type Row = (String, String, String, DateTime<Utc>);
        let people = self.people(tenant, vec![user_id.to_owned()]).await?;
        let Some(person) = people.get(user_id) else { return Ok(Vec::new()) };
        let channels = Channel::ALL.iter().copied().filter(|channel| is_suppressible(*channel));
        let addresses =
            channels.flat_map(|channel| person.addresses(channel).into_iter().map(move |one| (channel, one)));
        let prints = addresses.flat_map(|(channel, one)| self.address_prints(tenant, channel, one.reveal()));
        let query = statement::<(Text, Text, Text, Timestamptz)>(OPT_OUTS)
            .bind::<Int4, _>(tenant.0)
            .bind::<Array<Binary>, _>(prints.map(|print| print.to_vec()).collect::<Vec<_>>());
        let rows: Vec<Row> = query.within(Some(tenant)).rows(self).await?;
        let read = |(channel, scope, reason, created_at): Row| {
            let (channel, scope, reason) = (channel.parse().ok()?, scope.parse().ok()?, reason.parse().ok()?);
            Some(OptOut { channel, scope, reason, created_at })
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    async fn suppress_within(&self, conn: &mut AsyncPgConnection, new: &[NewSuppression]) -> DbResult<()> {
        if let Some(query) = self.suppressing(new)? {
            RunQueryDsl::execute(query, conn).await?;
        }
        Ok(())
    }

    /// The row of a person, locked until the end of the transaction; made if there is none.
    async fn lock(&self, conn: &mut AsyncPgConnection, tenant: TenantId, user_id: &str) -> DbResult<Stored> {
        let stored = self.chosen(conn, LOCK, tenant, user_id).await?;
        Ok(stored.unwrap_or(Stored { preferences: None, email: None }))
    }

    async fn chosen(
        &self,
        conn: &mut AsyncPgConnection,
        text: &'static str,
        tenant: TenantId,
        user_id: &str,
    ) -> DbResult<Option<Stored>> {
        type Row = (Option<String>, Option<Vec<u8>>);
        let query = statement::<(Nullable<Text>, Nullable<Binary>)>(text);
        let query = query.bind::<Int4, _>(tenant.0).bind::<Text, _>(user_id.to_owned());
        let rows: Vec<Row> = RunQueryDsl::load(query, conn).await?;
        let Some((preferences, profile)) = rows.into_iter().next() else { return Ok(None) };
        let profile = profile.map(|stored| self.sealer().open(sealed::PROFILE.of(tenant), stored)).transpose()?;
        let profile: Option<Profile> = profile.and_then(|json| serde_json::from_slice(&json).ok());
        Ok(Some(Stored {
            preferences: preferences.map(|json| serde_json::from_str(&json).unwrap_or_default()),
            email: profile.and_then(|profile| profile.email).map(Address::new),
        }))
    }
}

fn unsubscribe_token(tenant: TenantId, address: Address, scope: SuppressionScope, is_shown: bool) -> NewSuppression {
    NewSuppression {
        tenant,
        channel: Channel::Email,
        address,
        is_shown,
        scope,
        reason: SuppressionReason::Unsubscribed,
        detail: None,
        delivery: None,
    }
}

const READ: &str = "SELECT preferences::text FROM users WHERE tenant_id = ? AND user_id = ?";

const LOCK: &str = "
INSERT INTO users (tenant_id, user_id) VALUES (?, ?)
ON CONFLICT (tenant_id, user_id) DO UPDATE SET updated_at = now()
RETURNING preferences::text, profile";

const SHOWN: &str = "SELECT preferences::text, profile FROM users WHERE tenant_id = ? AND user_id = ? FOR UPDATE";

const WRITE: &str = "UPDATE users SET preferences = ?::jsonb WHERE tenant_id = ? AND user_id = ?";

const FORGET: &str = "UPDATE users SET preferences = NULL, updated_at = now() WHERE tenant_id = ? AND user_id = ? AND preferences IS NOT NULL";

/// Of whom nothing else is known, nothing stays.
const DROP_EMPTY: &str = "
DELETE FROM users u WHERE tenant_id = ? AND user_id = ? AND profile IS NULL AND preferences IS NULL AND locale IS NULL
  AND time_zone IS NULL AND quiet_start IS NULL AND attributes = '{}'
  AND NOT EXISTS (SELECT FROM devices d WHERE d.tenant_id = u.tenant_id AND d.user_id = u.user_id)";

/// Where the newest mails to a person went.
const MAILED: &str = concat!(
    "
SELECT d.recipient
FROM (SELECT ?::int4 AS tenant_id, ?::text AS user_id) f
CROSS JOIN LATERAL (SELECT m.id FROM messages m WHERE m.tenant_id = f.tenant_id AND m.user_id = f.user_id ORDER BY m.id DESC LIMIT 200) m
CROSS JOIN LATERAL (
    SELECT d.recipient FROM deliveries d WHERE d.message_id = m.id AND d.channel = 'email' AND d.id >= m.id AND d.id < ",
    minute_after!("m.id"),
    " OFFSET 0) d"
);

const LIFT: &str = "
DELETE FROM suppressions
WHERE tenant_id = ? AND channel = ? AND address_hash = ANY (?::bytea[]) AND scope = ANY (?::text[]) AND reason = ?";

const OPT_OUTS: &str = "
SELECT channel, scope, reason, created_at FROM suppressions WHERE tenant_id = ? AND address_hash = ANY (?::bytea[]) ORDER BY id";
