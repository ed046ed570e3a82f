//! Devices of people: registered, and taken away. A token that comes again moves to the person that it is given for now, if
//! the caller may move it.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use domain::{Device, Platform, TenantId};
use uuid::Uuid;

use super::{DbResult, Store, people::Profile, sealed, statement};

/// Devices of one person; one more, and the oldest goes.
const DEVICES_MAX: i64 = 50;

/// A device that was registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Its id.
    pub id: Uuid,
    /// Its platform.
    pub platform: Option<Platform>,
    /// When its token came first.
    pub created_at: DateTime<Utc>,
    /// Whether the token is new.
    pub is_new: bool,
}

impl Store {
    /// Registers a device for a person, who is known from then on. `None`: it is another person's, and the caller may not
    /// move it (`may_move`).
    pub async fn register_device(
        &self,
        tenant: TenantId,
        user_id: &str,
        device: &Device,
        may_move: bool,
    ) -> DbResult<Option<Registered>> {
        let mut conn = self.within(Some(tenant)).await?;
        let registered = self.register_within(&mut conn, tenant, user_id, device, may_move).await;
        conn.finish(registered).await
    }

    async fn register_within(
        &self,
        conn: &mut AsyncPgConnection,
        tenant: TenantId,
        user_id: &str,
        device: &Device,
        may_move: bool,
    ) -> DbResult<Option<Registered>> {
        let (token, realm) = (device.token.reveal(), tenant.to_string());
        let known = self.sealer().fingerprints(&realm, token).iter().map(|print| print.to_vec()).collect::<Vec<_>>();
        let person = statement::<()>(MAKE_KNOWN)
            .bind::<Int4, _>(tenant.0)
            .bind::<Text, _>(user_id.to_owned())
            .bind::<Binary, _>(self.seal_profile(tenant, &Profile::default())?);
        RunQueryDsl::execute(person, conn).await?;
        let query = statement::<(SqlUuid, Nullable<Text>, Timestamptz, Bool)>(REGISTER)
            .bind::<SqlUuid, _>(Uuid::now_v7())
            .bind::<Int4, _>(tenant.0)
            .bind::<Text, _>(user_id.to_owned())
            .bind::<Text, _>(self.sealer().seal_text(sealed::DEVICE.of(tenant), token)?)
            .bind::<Binary, _>(self.sealer().fingerprint(&realm, token).to_vec())
            .bind::<Nullable<Text>, _>(device.platform.map(Platform::as_str))
            .bind::<Array<Binary>, _>(known)
            .bind::<Bool, _>(may_move);
        let rows: Vec<(Uuid, Option<String>, DateTime<Utc>, bool)> = RunQueryDsl::get_results(query, conn).await?;
        let Some((id, platform, created_at, is_new)) = rows.into_iter().next() else { return Ok(None) };
        let query = statement::<()>(LIMIT)
            .bind::<Int4, _>(tenant.0)
            .bind::<Text, _>(user_id.to_owned())
            .bind::<SqlUuid, _>(id)
            .bind::<Int8, _>(DEVICES_MAX - 1);
        RunQueryDsl::execute(query, conn).await?;
        Ok(Some(Registered { id, platform: platform.and_then(|word| word.parse().ok()), created_at, is_new }))
    }

    /// Takes a device away; says whether the person had it.
    pub async fn remove_device(&self, tenant: TenantId, user_id: &str, id: Uuid) -> DbResult<bool> {
        let query = statement::<()>(REMOVE)
            .bind::<Int4, _>(tenant.0)
            .bind::<Text, _>(user_id.to_owned())
            .bind::<SqlUuid, _>(id);
        Ok(query.within(Some(tenant)).run(self).await? > 0)
    }
}

const MAKE_KNOWN: &str = "
INSERT INTO users (tenant_id, user_id, profile) VALUES (?, ?, ?)
ON CONFLICT (tenant_id, user_id) DO UPDATE SET profile = excluded.profile, updated_at = clock_timestamp() WHERE users.profile IS NULL";

/// While keys are rotated a token may stand there under the fingerprint of an older key.
const REGISTER: &str = "
WITH given AS MATERIALIZED (
    SELECT ?::uuid AS id, ?::int4 AS tenant_id, ?::text AS user_id, ?::text AS token, ?::bytea AS token_hash, ?::text AS platform,
        ?::bytea[] AS known, ?::bool AS may_move
), found AS MATERIALIZED (
    SELECT d.id FROM devices d, given g WHERE d.tenant_id = g.tenant_id AND d.token_hash = ANY (g.known)
), moved AS (
    UPDATE devices d SET user_id = g.user_id, token = g.token, token_hash = g.token_hash, platform = coalesce(g.platform, d.platform)
    FROM given g WHERE d.tenant_id = g.tenant_id AND d.token_hash = ANY (g.known) AND (g.may_move OR d.user_id = g.user_id)
    RETURNING d.id, d.platform, d.created_at, false AS is_new
), made AS (
    INSERT INTO devices (id, tenant_id, user_id, token, token_hash, platform)
    SELECT id, tenant_id, user_id, token, token_hash, platform FROM given WHERE NOT EXISTS (SELECT FROM found)
    ON CONFLICT (tenant_id, token_hash) DO UPDATE SET user_id = excluded.user_id, token = excluded.token,
        platform = coalesce(excluded.platform, devices.platform)
        WHERE devices.user_id = excluded.user_id OR (SELECT may_move FROM given)
    RETURNING id, platform, created_at, id = (SELECT id FROM given) AS is_new
)
SELECT * FROM moved UNION ALL SELECT * FROM made";

const LIMIT: &str = "
DELETE FROM devices WHERE id = ANY (ARRAY(
    SELECT id FROM devices WHERE tenant_id = ? AND user_id = ? AND id <> ? ORDER BY id DESC OFFSET ?))";

const REMOVE: &str = "DELETE FROM devices WHERE tenant_id = ? AND user_id = ? AND id = ?";
