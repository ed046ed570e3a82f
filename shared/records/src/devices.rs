//! The devices of people. A token that is registered again moves to the new person, if the caller may move it.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Binary, Bool, Int4, Int8, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use domain::{Device, Platform, TenantId};
use store::{
    DbResult, sealed,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::{DeviceStore, Records, people::Profile};

/// The maximum of devices of a person. One more removes the oldest.
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

row! {
    struct RegisteredRow {
        id: Uuid as SqlUuid,
        platform: Option<String> as Nullable<Text>,
        created_at: DateTime<Utc> as Timestamptz,
        is_new: bool as Bool,
    }
}

impl DeviceStore<'_> {
    /// Registers a device for a person, who is created if unknown. `None`: the device belongs to another person, and
    /// the caller may not move it (`may_move`).
    pub async fn register(
        self,
        tenant: TenantId,
        user_id: &str,
        device: &Device,
        may_move: bool,
    ) -> DbResult<Option<Registered>> {
        let mut conn = self.store.within(Some(tenant)).await?;
        let registered = self.register_within(&mut conn, tenant, user_id, device, may_move).await;
        conn.finish(registered).await
    }

    async fn register_within(
        self,
        conn: &mut AsyncPgConnection,
        tenant: TenantId,
        user_id: &str,
        device: &Device,
        may_move: bool,
    ) -> DbResult<Option<Registered>> {
        let (token, realm) = (device.token.reveal(), tenant.to_string());
        let known =
            self.store.sealer().fingerprints(&realm, token).iter().map(|print| print.to_vec()).collect::<Vec<_>>();
        let profile = self.store.people().seal_profile(tenant, &Profile::default())?;
        MakeKnown { tenant: tenant.0, user_id: user_id.to_owned(), profile }.query().run_on(conn).await?;
        let query = Register {
            id: Uuid::now_v7(),
            tenant: tenant.0,
            user_id: user_id.to_owned(),
            token: self.store.sealer().seal_text(sealed::DEVICE.of(tenant), token)?,
            token_hash: self.store.sealer().fingerprint(&realm, token).to_vec(),
            platform: device.platform.map(Platform::as_str),
            known,
            may_move,
        };
        let registered = query.query().rows_on(conn).await?.into_iter().next();
        let Some(RegisteredRow { id, platform, created_at, is_new }) = registered else { return Ok(None) };
        let (user_id, others_max) = (user_id.to_owned(), DEVICES_MAX - 1);
        Limit { tenant: tenant.0, user_id, id, others_max }.query().run_on(conn).await?;
        Ok(Some(Registered { id, platform: platform.and_then(|word| word.parse().ok()), created_at, is_new }))
    }

    /// Removes a device; returns whether the person had it.
    pub async fn remove(self, tenant: TenantId, user_id: &str, id: Uuid) -> DbResult<bool> {
        let query = Remove { tenant: tenant.0, user_id: user_id.to_owned(), id }.query();
        Ok(query.within(Some(tenant)).run(self.store).await? > 0)
    }
}

sql!(MakeKnown in "devices/make_known.sql" {
    tenant: i32 as Int4, user_id: String as Text, profile: Vec<u8> as Binary
});
sql!(Register in "devices/register.sql" {
    id: Uuid as SqlUuid,
    tenant: i32 as Int4,
    user_id: String as Text,
    token: String as Text,
    token_hash: Vec<u8> as Binary,
    platform: Option<&'static str> as Nullable<Text>,
    known: Vec<Vec<u8>> as Array<Binary>,
    may_move: bool as Bool,
} -> RegisteredRow);
sql!(Limit in "devices/limit.sql" {
    tenant: i32 as Int4, user_id: String as Text, id: Uuid as SqlUuid, others_max: i64 as Int8
});
sql!(Remove in "devices/remove.sql" { tenant: i32 as Int4, user_id: String as Text, id: Uuid as SqlUuid });
statements!(MakeKnown, Register, Limit, Remove);
