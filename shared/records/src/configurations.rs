//! Webhook configurations: where tenants receive events. Each has a URL, events, headers, and a secret of its own
//! (sealed).

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{TenantId, token};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::ConfigurationStore;

/// The settings of an admin.
#[derive(Clone)]
pub struct ConfigurationSettings {
    /// Its name.
    pub name: String,
    /// Where events go.
    pub url: String,
    /// Which; `None`: all.
    pub events: Option<Vec<String>>,
    /// Further headers, as texts.
    pub headers: Map<String, Value>,
    /// Whether events are sent there now.
    pub is_active: bool,
}

impl std::fmt::Debug for ConfigurationSettings {
    /// Headers may hold credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigurationSettings").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A webhook configuration of a tenant.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// Its id.
    pub id: Uuid,
    /// The tenant of the configuration.
    pub tenant: TenantId,
    /// The admin's settings.
    pub settings: ConfigurationSettings,
    /// The secret that signs its webhooks: `whsec_…`, and after a space `whsk_…` if it also signs with Ed25519.
    pub secret: SecretString,
    /// The former secret, which also signs until `previous_until`.
    pub previous_secret: Option<SecretString>,
    /// The time until which the former secret also signs.
    pub previous_until: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// The time of the last change by an admin.
    pub updated_at: DateTime<Utc>,
    /// When and why it was switched off: `admin`, `gone` or `failing`.
    pub disabled: Option<(DateTime<Utc>, String)>,
}

impl Configuration {
    /// The public key of its Ed25519 signatures, `whpk_…`, if it has one.
    pub fn public_key(&self) -> Option<String> {
        self.secret.expose_secret().split(' ').find_map(token::webhook_public_key)
    }

    /// The secret for receivers, `whsec_…`.
    pub fn shared_secret(&self) -> &str {
        self.secret.expose_secret().split(' ').next().unwrap_or_default()
    }
}

row! {
    struct ConfigurationRow {
        id: Uuid as SqlUuid,
        tenant_id: i32 as Int4,
        name: String as Text,
        url: String as Text,
        events: Option<Vec<String>> as Nullable<Array<Text>>,
        headers: Vec<u8> as Binary,
        secret: Vec<u8> as Binary,
        previous_secret: Option<Vec<u8>> as Nullable<Binary>,
        previous_until: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        is_active: bool as Bool,
        created_at: DateTime<Utc> as Timestamptz,
        updated_at: DateTime<Utc> as Timestamptz,
        disabled_at: Option<DateTime<Utc>> as Nullable<Timestamptz>,
        disabled_why: Option<String> as Nullable<Text>,
    }
}

row! {
    struct Change {
        tenant_id: i32 as Int4,
        at: DateTime<Utc> as Timestamptz,
    }
}

impl ConfigurationStore<'_> {
    /// Makes a configuration.
    pub async fn create(
        self,
        tenant: TenantId,
        settings: &ConfigurationSettings,
        secret: &SecretString,
    ) -> DbResult<Uuid> {
        let id = Uuid::now_v7();
        let secret =
            self.store.sealer().seal(sealed::CONFIGURATION_SECRET.of(tenant), secret.expose_secret().as_bytes())?;
        let create = Create {
            name: settings.name.clone(),
            url: settings.url.clone(),
            events: settings.events.clone(),
            headers: self.sealed_headers(tenant, settings)?,
            is_active: settings.is_active,
            id,
            tenant: tenant.0,
            secret,
        };
        create.query().within(Some(tenant)).run(self.store).await?;
        Ok(id)
    }

    /// Replaces the settings of a configuration; returns whether the tenant has it.
    pub async fn update(self, tenant: TenantId, id: Uuid, settings: &ConfigurationSettings) -> DbResult<bool> {
        let update = Update {
            name: settings.name.clone(),
            url: settings.url.clone(),
            events: settings.events.clone(),
            headers: self.sealed_headers(tenant, settings)?,
            is_active: settings.is_active,
            tenant: tenant.0,
            id,
        };
        Ok(update.query().within(Some(tenant)).run(self.store).await? > 0)
    }

    /// Removes a configuration; returns whether the tenant had it.
    pub async fn remove(self, tenant: TenantId, id: Uuid) -> DbResult<bool> {
        Ok(Remove { tenant: tenant.0, id }.query().within(Some(tenant)).run(self.store).await? > 0)
    }

    /// One configuration of a tenant.
    pub async fn find(self, tenant: TenantId, id: Uuid) -> DbResult<Option<Configuration>> {
        let rows = One { tenant: tenant.0, id }.query().within(Some(tenant)).rows(self.store).await?;
        Ok(self.opened_configurations(rows).into_iter().next())
    }

    /// Up to `limit` configurations of a tenant, newest first; those older than `before`, if given.
    pub async fn list(self, tenant: TenantId, before: Option<Uuid>, limit: i64) -> DbResult<Vec<Configuration>> {
        let list = List { tenant: tenant.0, before: before.unwrap_or(Uuid::max()), limit };
        Ok(self.opened_configurations(list.query().within(Some(tenant)).rows(self.store).await?))
    }

    /// Gives a configuration a new secret; the former one also signs for `grace_seconds`. Returns whether the tenant
    /// has the configuration.
    pub async fn replace_secret(
        self,
        tenant: TenantId,
        id: Uuid,
        secret: &SecretString,
        grace_seconds: i32,
    ) -> DbResult<bool> {
        let place = sealed::CONFIGURATION_SECRET.of(tenant);
        let secret = self.store.sealer().seal(place, secret.expose_secret().as_bytes())?;
        let replace = ReplaceSecret { secret, grace_seconds, tenant: tenant.0, id };
        Ok(replace.query().within(Some(tenant)).run(self.store).await? > 0)
    }

    /// The tenants whose configurations changed within `seconds`, with the time of the last change.
    pub async fn changed(self, seconds: i32) -> DbResult<Vec<(TenantId, DateTime<Utc>)>> {
        let rows = Changed { seconds }.query().rows(self.store).await?;
        Ok(rows.into_iter().map(|Change { tenant_id, at }| (TenantId(tenant_id), at)).collect())
    }

    fn sealed_headers(self, tenant: TenantId, settings: &ConfigurationSettings) -> DbResult<Vec<u8>> {
        let headers = serde_json::to_vec(&settings.headers).unwrap_or_default();
        Ok(self.store.sealer().seal(sealed::CONFIGURATION_HEADERS.of(tenant), &headers)?)
    }

    /// Values that cannot be decrypted are left out.
    fn opened_configurations(self, rows: Vec<ConfigurationRow>) -> Vec<Configuration> {
        let secret = |tenant: TenantId, stored: Vec<u8>| -> Option<SecretString> {
            let plain = self.store.opened(sealed::CONFIGURATION_SECRET.of(tenant), stored)?;
            Some(String::from_utf8(plain).ok()?.into())
        };
        let open = |row: ConfigurationRow| {
            let ConfigurationRow { id, name, url, events, is_active, previous_until, created_at, updated_at, .. } = row;
            let tenant = TenantId(row.tenant_id);
            let headers = self.store.opened(sealed::CONFIGURATION_HEADERS.of(tenant), row.headers)?;
            let headers = serde_json::from_slice(&headers).unwrap_or_default();
            Some(Configuration {
                id,
                tenant,
                settings: ConfigurationSettings { name, url, events, headers, is_active },
                secret: secret(tenant, row.secret)?,
                previous_secret: row.previous_secret.and_then(|previous| secret(tenant, previous)),
                previous_until,
                created_at,
                updated_at,
                disabled: row.disabled_at.zip(row.disabled_why),
            })
        };
        rows.into_iter().filter_map(open).collect()
    }
}

sql!(Create in "configurations/create.sql" {
    name: String as Text, url: String as Text, events: Option<Vec<String>> as Nullable<Array<Text>>,
    headers: Vec<u8> as Binary, is_active: bool as Bool, id: Uuid as SqlUuid, tenant: i32 as Int4,
    secret: Vec<u8> as Binary
});
sql!(Update in "configurations/update.sql" {
    name: String as Text, url: String as Text, events: Option<Vec<String>> as Nullable<Array<Text>>,
    headers: Vec<u8> as Binary, is_active: bool as Bool, tenant: i32 as Int4, id: Uuid as SqlUuid
});
sql!(ReplaceSecret in "configurations/replace_secret.sql" {
    secret: Vec<u8> as Binary, grace_seconds: i32 as Int4, tenant: i32 as Int4, id: Uuid as SqlUuid
});
sql!(Changed in "configurations/changed.sql" { seconds: i32 as Int4 } -> Change);
sql!(Remove in "configurations/remove.sql" { tenant: i32 as Int4, id: Uuid as SqlUuid });
sql!(One in "configurations/one.sql" { tenant: i32 as Int4, id: Uuid as SqlUuid } -> ConfigurationRow);
sql!(List in "configurations/list.sql" {
    tenant: i32 as Int4, before: Uuid as SqlUuid, limit: i64 as Int8
} -> ConfigurationRow);
statements!(Create, Update, ReplaceSecret, Changed, Remove, One, List);
