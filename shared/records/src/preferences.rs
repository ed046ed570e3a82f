//! The preferences of people. A refusal of advertising outlives the person, by the fingerprint of the address.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Int4, Nullable, Text, Timestamptz};
use diesel_async::AsyncPgConnection;
use domain::{
    Address, Channel, Preferences, TenantId,
    suppression::{SuppressionReason, SuppressionScope, is_suppressible},
    unsubscribe::UnsubscribeToken,
};
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
};

use crate::{PreferenceStore, Records, people::Profile, suppressions::NewSuppression};

/// The changes to addresses that follow from a change of preferences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consequences {
    /// The e-mail address of the person is suppressed for these from now on.
    pub suppress: Vec<SuppressionScope>,
    /// Suppressions to lift, if the person had unsubscribed.
    pub lift: Vec<SuppressionScope>,
}

/// A suppression of an address of a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptOut {
    /// The channel.
    pub channel: Channel,
    /// The notifications that the address does not get.
    pub scope: SuppressionScope,
    /// Why.
    pub reason: SuppressionReason,
    /// Since when.
    pub created_at: DateTime<Utc>,
}

row! {
    struct StoredRow {
        preferences: Option<String> as Nullable<Text>,
        profile: Option<Vec<u8>> as Nullable<Binary>,
    }
}

row! {
    struct OptOutRow {
        channel: String as Text,
        scope: String as Text,
        reason: String as Text,
        created_at: DateTime<Utc> as Timestamptz,
    }
}

/// The stored values of a person that matter here.
struct Stored {
    preferences: Option<Preferences>,
    email: Option<Address>,
}

impl PreferenceStore<'_> {
    /// The preferences of a person; `None`: the person never set any.
    pub async fn load(self, tenant: TenantId, user_id: &str) -> DbResult<Option<Preferences>> {
        let query = Read { tenant: tenant.0, user_id: user_id.to_owned() }.query();
        let json = query.within(Some(tenant)).first(self.store).await?;
        Ok(json.flatten().map(|json| serde_json::from_str(&json).unwrap_or_default()))
    }

    /// Changes the preferences of a person. Concurrent changes are applied one after the other, and none is lost.
    /// Returns the new preferences, or the refusal of `change`.
    pub async fn change<E: Send>(
        self,
        tenant: TenantId,
        user_id: &str,
        change: impl FnOnce(&mut Preferences) -> Result<Consequences, E> + Send,
    ) -> DbResult<Result<Preferences, E>> {
        let mut conn = self.store.within(Some(tenant)).await?;
        let result = self.change_within(&mut conn, tenant, user_id, change).await;
        match result {
            // Everything is rolled back, including a row created for this change.
            Ok(Err(refused)) => {
                drop(conn.done::<()>(Err(diesel::result::Error::RollbackTransaction)).await);
                Ok(Err(refused))
            }
            result => conn.finish(result).await,
        }
    }

    async fn change_within<E: Send>(
        self,
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
        let query = Write { preferences: json, tenant: tenant.0, user_id: user_id.to_owned() }.query();
        query.run_on(conn).await?;
        if let Some(email) = stored.email {
            self.draw(conn, tenant, &email, consequences).await?;
        }
        Ok(Ok(preferences))
    }

    async fn draw(
        self,
        conn: &mut AsyncPgConnection,
        tenant: TenantId,
        email: &Address,
        consequences: Consequences,
    ) -> DbResult<()> {
        if !consequences.lift.is_empty() {
            let prints = self.store.suppressions().address_prints(tenant, Channel::Email, email.reveal());
            let query = Lift {
                tenant: tenant.0,
                channel: Channel::Email.as_str(),
                prints: prints.iter().map(|print| print.to_vec()).collect(),
                scopes: consequences.lift.iter().map(ToString::to_string).collect(),
                reason: SuppressionReason::Unsubscribed.as_str(),
            };
            query.query().run_on(conn).await?;
        }
        let new: Vec<NewSuppression> = consequences
            .suppress
            .into_iter()
            .map(|scope| unsubscribe_token(tenant, email.clone(), scope, true))
            .collect();
        self.suppress_within(conn, &new).await
    }

    /// Deletes the preferences of a person. A refusal of advertising stays, by fingerprint, at every known address of
    /// the person.
    pub async fn erase(self, tenant: TenantId, user_id: &str) -> DbResult<()> {
        let mut conn = self.store.within(Some(tenant)).await?;
        let erasing = async {
            self.keep_opt_out(&mut conn, tenant, user_id).await?;
            Forget { tenant: tenant.0, user_id: user_id.to_owned() }.query().run_on(&mut conn).await?;
            DropEmpty { tenant: tenant.0, user_id: user_id.to_owned() }.query().run_on(&mut conn).await?;
            Ok(())
        };
        let result = erasing.await;
        conn.finish(result).await
    }

    /// Before a person is erased: a refusal of advertising is kept, by the fingerprints of their addresses.
    pub async fn keep_opt_out_of(self, tenant: TenantId, user_id: &str) -> DbResult<()> {
        let mut conn = self.store.within(Some(tenant)).await?;
        let result = self.keep_opt_out(&mut conn, tenant, user_id).await;
        conn.finish(result).await
    }

    async fn keep_opt_out(self, conn: &mut AsyncPgConnection, tenant: TenantId, user_id: &str) -> DbResult<()> {
        let shown = Shown { tenant: tenant.0, user_id: user_id.to_owned() }.query().rows_on(conn).await?;
        let Some(row) = shown.into_iter().next() else { return Ok(()) };
        let stored = self.stored(tenant, row)?;
        if !stored.preferences.is_some_and(|preferences| preferences.refuses_marketing_mail()) {
            return Ok(());
        }
        let mailed = Mailed { tenant: tenant.0, user_id: user_id.to_owned() }.query().rows_on(conn).await?;
        let mut emails: BTreeSet<String> = stored.email.iter().map(|email| email.reveal().to_owned()).collect();
        emails
            .extend(mailed.into_iter().filter_map(|email| self.store.opened_text(sealed::RECIPIENT.of(tenant), email)));
        let keep = |email| unsubscribe_token(tenant, Address::new(email), SuppressionScope::Marketing, false);
        self.suppress_within(conn, &emails.into_iter().map(keep).collect::<Vec<_>>()).await
    }

    /// Unsubscribes from a category by e-mail, for the person and for the address. A repeat changes nothing.
    pub async fn unsubscribe(self, said: &UnsubscribeToken) -> DbResult<()> {
        let tenant = said.tenant;
        let mut conn = self.store.within(Some(tenant)).await?;
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

    /// The suppressions of a person's addresses.
    pub async fn opt_outs(self, tenant: TenantId, user_id: &str) -> DbResult<Vec<OptOut>> {
        let people = self.store.people().load(tenant, vec![user_id.to_owned()]).await?;
        let Some(person) = people.get(user_id) else { return Ok(Vec::new()) };
        let channels = Channel::ALL.iter().copied().filter(|channel| is_suppressible(*channel));
        let addresses =
            channels.flat_map(|channel| person.addresses(channel).into_iter().map(move |one| (channel, one)));
        let prints = addresses
            .flat_map(|(channel, one)| self.store.suppressions().address_prints(tenant, channel, one.reveal()));
        let query = OptOuts { tenant: tenant.0, prints: prints.map(|print| print.to_vec()).collect() }.query();
        let rows = query.within(Some(tenant)).rows(self.store).await?;
        let read = |OptOutRow { channel, scope, reason, created_at }| {
            let (channel, scope, reason) = (channel.parse().ok()?, scope.parse().ok()?, reason.parse().ok()?);
            Some(OptOut { channel, scope, reason, created_at })
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    async fn suppress_within(self, conn: &mut AsyncPgConnection, new: &[NewSuppression]) -> DbResult<()> {
        if let Some(query) = self.store.suppressions().suppressing(new)? {
            query.query().run_on(conn).await?;
        }
        Ok(())
    }

    /// The row of a person, locked until the end of the transaction. It is created if it does not exist.
    async fn lock(self, conn: &mut AsyncPgConnection, tenant: TenantId, user_id: &str) -> DbResult<Stored> {
        let locked = Lock { tenant: tenant.0, user_id: user_id.to_owned() }.query().rows_on(conn).await?;
        let stored = locked.into_iter().next().map(|row| self.stored(tenant, row)).transpose()?;
        Ok(stored.unwrap_or(Stored { preferences: None, email: None }))
    }

    fn stored(self, tenant: TenantId, StoredRow { preferences, profile }: StoredRow) -> DbResult<Stored> {
        let profile = profile.map(|stored| self.store.sealer().open(sealed::PROFILE.of(tenant), stored)).transpose()?;
        let profile: Option<Profile> = profile.and_then(|json| serde_json::from_slice(&json).ok());
        Ok(Stored {
            preferences: preferences.map(|json| serde_json::from_str(&json).unwrap_or_default()),
            email: profile.and_then(|profile| profile.email).map(Address::new),
        })
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

sql!(Read in "preferences/read.sql" {
    tenant: i32 as Int4, user_id: String as Text
} -> Option<String> as Nullable<Text>);
sql!(Lock in "preferences/lock.sql" { tenant: i32 as Int4, user_id: String as Text } -> StoredRow);
sql!(Shown in "preferences/shown.sql" { tenant: i32 as Int4, user_id: String as Text } -> StoredRow);
sql!(Write in "preferences/write.sql" { preferences: String as Text, tenant: i32 as Int4, user_id: String as Text });
sql!(Forget in "preferences/forget.sql" { tenant: i32 as Int4, user_id: String as Text });
sql!(DropEmpty in "preferences/drop_empty.sql" { tenant: i32 as Int4, user_id: String as Text });
sql!(Mailed in "preferences/mailed.sql" { tenant: i32 as Int4, user_id: String as Text } -> String as Text);
sql!(Lift in "preferences/lift.sql" {
    tenant: i32 as Int4,
    channel: &'static str as Text,
    prints: Vec<Vec<u8>> as Array<Binary>,
    scopes: Vec<String> as Array<Text>,
    reason: &'static str as Text,
});
sql!(OptOuts in "preferences/opt_outs.sql" { tenant: i32 as Int4, prints: Vec<Vec<u8>> as Array<Binary> } -> OptOutRow);
statements!(Read, Lock, Shown, Write, Forget, DropEmpty, Mailed, Lift, OptOuts);
