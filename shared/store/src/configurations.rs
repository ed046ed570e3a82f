//! Where tenants want to hear of events: URL, events, further headers, and a secret of its own (sealed).

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use domain::{TenantId, token};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{DbResult, Statement, Store, sealed, statement};

/// What an admin sets.
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
    /// Whether events go there at present.
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
    /// Whose it is.
    pub tenant: TenantId,
    /// What its admin set.
    pub settings: ConfigurationSettings,
    /// Signs what goes there: `whsec_…`, and behind a space `whsk_…` where it signs by Ed25519 as well.
    pub secret: SecretString,
    /// Signed before, and still does until `previous_until`.
    pub previous_secret: Option<SecretString>,
    /// Until when the previous secret signs too.
    pub previous_until: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed by an admin.
    pub updated_at: DateTime<Utc>,
    /// When it was switched off, and why: `admin`, `gone` or `failing`.
    pub disabled: Option<(DateTime<Utc>, String)>,
}

impl Configuration {
    /// The public key of its Ed25519 signatures, `whpk_…`, if it makes any.
    pub fn public_key(&self) -> Option<String> {
        self.secret.expose_secret().split(' ').find_map(token::webhook_public_key)
    }

    /// The secret as receivers take it, `whsec_…`.
    pub fn shared_secret(&self) -> &str {
        self.secret.expose_secret().split(' ').next().unwrap_or_default()
    }
}

type Row = (
    (Uuid, i32, String, String, Option<Vec<String>>, Vec<u8>, Vec<u8>),
    (Option<Vec<u8>>, Option<DateTime<Utc>>, bool, DateTime<Utc>, DateTime<Utc>),
    (Option<DateTime<Utc>>, Option<String>),
);
type SqlRow = (
    (SqlUuid, Int4, Text, Text, Nullable<Array<Text>>, Binary, Binary),
    (Nullable<Binary>, Nullable<Timestamptz>, Bool, Timestamptz, Timestamptz),
    (Nullable<Timestamptz>, Nullable<Text>),
);

/// A fixed text that reads configurations.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, tenant_id, name, url, events, headers, secret, ",
            "previous_secret, previous_until, is_active, created_at, updated_at, disabled_at, disabled_why FROM webhook_configurations ",
            $rest
        )
    };
}

impl Store {
    /// Makes a configuration.
    pub async fn create_configuration(
        &self,
        tenant: TenantId,
        settings: &ConfigurationSettings,
        secret: &SecretString,
    ) -> DbResult<Uuid> {
        let id = Uuid::now_v7();
        let secret = self.sealer().seal(sealed::CONFIGURATION_SECRET.of(tenant), secret.expose_secret().as_bytes())?;
        let query = self.bind_configuration(statement::<()>(CREATE), tenant, settings)?;
        query
            .bind::<SqlUuid, _>(id)
            .bind::<Int4, _>(tenant.0)
            .bind::<Binary, _>(secret)
            .within(Some(tenant))
            .run(self)
            .await?;
        Ok(id)
    }

    /// Writes the settings of a configuration anew; says whether the tenant has it.
    pub async fn update_configuration(
        &self,
        tenant: TenantId,
        id: Uuid,
        settings: &ConfigurationSettings,
    ) -> DbResult<bool> {
        let query = self.bind_configuration(statement::<()>(UPDATE), tenant, settings)?;
        Ok(query.bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(id).within(Some(tenant)).run(self).await? > 0)
    }

    /// Removes a configuration; says whether the tenant had it.
    pub async fn remove_configuration(&self, tenant: TenantId, id: Uuid) -> DbResult<bool> {
        let query = statement::<()>(REMOVE).bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(id).within(Some(tenant));
        Ok(query.run(self).await? > 0)
    }

    /// One configuration of a tenant.
    pub async fn configuration(&self, tenant: TenantId, id: Uuid) -> DbResult<Option<Configuration>> {
        let query = statement(ONE).bind::<Int4, _>(tenant.0).bind::<SqlUuid, _>(id).within(Some(tenant));
        Ok(self.configurations_of(query).await?.into_iter().next())
    }

    /// Up to `limit` configurations of a tenant, newest first; those older than `before`, if given.
    pub async fn list_configurations(
        &self,
        tenant: TenantId,
        before: Option<Uuid>,
        limit: i64,
    ) -> DbResult<Vec<Configuration>> {
        let query = statement(LIST)
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(before.unwrap_or(Uuid::max()))
            .bind::<Int8, _>(limit);
        self.configurations_of(query.within(Some(tenant))).await
    }

    /// Gives a configuration another secret; the former one signs too for `grace_seconds`. Says whether the tenant has it.
    pub async fn replace_secret(
        &self,
        tenant: TenantId,
        id: Uuid,
        secret: &SecretString,
        grace_seconds: i32,
    ) -> DbResult<bool> {
        let place = sealed::CONFIGURATION_SECRET.of(tenant);
        let query = statement::<()>(REPLACE_SECRET)
            .bind::<Binary, _>(self.sealer().seal(place, secret.expose_secret().as_bytes())?)
            .bind::<Int4, _>(grace_seconds)
            .bind::<Int4, _>(tenant.0)
            .bind::<SqlUuid, _>(id);
        Ok(query.within(Some(tenant)).run(self).await? > 0)
    }

    /// When the configurations of tenants were last changed, of those that were within `seconds`.
    pub async fn changed_configurations(&self, seconds: i32) -> DbResult<Vec<(TenantId, DateTime<Utc>)>> {
        let query = statement::<(Int4, Timestamptz)>(CHANGED).bind::<Int4, _>(seconds);
        let rows: Vec<(i32, DateTime<Utc>)> = query.rows(self).await?;
        Ok(rows.into_iter().map(|(tenant, at)| (TenantId(tenant), at)).collect())
    }

    fn bind_configuration<T>(
        &self,
        query: Statement<T>,
        tenant: TenantId,
        settings: &ConfigurationSettings,
    ) -> DbResult<Statement<T>> {
        let headers = serde_json::to_vec(&settings.headers).unwrap_or_default();
        Ok(query
            .bind::<Text, _>(settings.name.clone())
            .bind::<Text, _>(settings.url.clone())
            .bind::<Nullable<Array<Text>>, _>(settings.events.clone())
            .bind::<Binary, _>(self.sealer().seal(sealed::CONFIGURATION_HEADERS.of(tenant), &headers)?)
            .bind::<Bool, _>(settings.is_active))
    }

    async fn configurations_of(&self, query: Statement<SqlRow>) -> DbResult<Vec<Configuration>> {
        let rows: Vec<Row> = query.rows(self).await?;
        let secret = |tenant: TenantId, stored: Vec<u8>| -> Option<SecretString> {
            let plain = self.opened(sealed::CONFIGURATION_SECRET.of(tenant), stored)?;
            Some(String::from_utf8(plain).ok()?.into())
        };
        let open = |row: Row| {
            let ((id, tenant, name, url, events, headers, stored), rest, (disabled_at, disabled_why)) = row;
            let (previous, previous_until, is_active, created_at, updated_at) = rest;
            let tenant = TenantId(tenant);
            let headers = self.opened(sealed::CONFIGURATION_HEADERS.of(tenant), headers)?;
            let headers = serde_json::from_slice(&headers).unwrap_or_default();
            Some(Configuration {
                id,
                tenant,
                settings: ConfigurationSettings { name, url, events, headers, is_active },
                secret: secret(tenant, stored)?,
                previous_secret: previous.and_then(|previous| secret(tenant, previous)),
                previous_until,
                created_at,
                updated_at,
                disabled: disabled_at.zip(disabled_why),
            })
        };
        Ok(rows.into_iter().filter_map(open).collect())
    }
}

const CREATE: &str = "
INSERT INTO webhook_configurations (name, url, events, headers, is_active, id, tenant_id, secret, updated_at, disabled_at, disabled_why)
SELECT x.*, clock_timestamp(), CASE WHEN NOT x.is_active THEN now() END, CASE WHEN NOT x.is_active THEN 'admin' END
FROM (SELECT ?::text, ?::text, ?::text[], ?::bytea, ?::bool AS is_active, ?::uuid, ?::int4, ?::bytea) x";

const UPDATE: &str = "
UPDATE webhook_configurations c SET name = x.name, url = x.url, events = x.events, headers = x.headers, is_active = x.is_active,
    updated_at = clock_timestamp(), failing_since = CASE WHEN c.is_active THEN c.failing_since END,
    disabled_at = CASE WHEN NOT x.is_active THEN coalesce(c.disabled_at, now()) END,
    disabled_why = CASE WHEN NOT x.is_active THEN coalesce(c.disabled_why, 'admin') END,
    swept_at = CASE WHEN NOT x.is_active THEN c.swept_at END
FROM (SELECT ?::text AS name, ?::text AS url, ?::text[] AS events, ?::bytea AS headers, ?::bool AS is_active) x
WHERE c.tenant_id = ? AND c.id = ?";

const REPLACE_SECRET: &str = "
UPDATE webhook_configurations SET previous_secret = secret, secret = ?, previous_until = now() + ? * interval '1 second',
    updated_at = clock_timestamp()
WHERE tenant_id = ? AND id = ?";

const CHANGED: &str = "
SELECT tenant_id, max(updated_at) FROM webhook_configurations WHERE updated_at > now() - ? * interval '1 second' GROUP BY tenant_id";

const REMOVE: &str = "DELETE FROM webhook_configurations WHERE tenant_id = ? AND id = ?";

const ONE: &str = select!("WHERE tenant_id = ? AND id = ?");
const LIST: &str = select!("WHERE tenant_id = ? AND id < ? ORDER BY id DESC LIMIT ?");
