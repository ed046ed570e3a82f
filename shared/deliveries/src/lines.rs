//! Lines: pacing queues. A delivery waits in one for a slot of a WhatsApp session, or for its tenant's turn.
//!
//! A statement that counts the slots of a line locks its row, so a limit holds with any number of workers. A release
//! is only a hint: the claim takes the slot ([`ClaimStore::claim`]).

use diesel::sql_types::{Double, Int4, Int8, Text, Uuid as SqlUuid};
use domain::{DeliveryId, TenantId, channel::Route};
use store::{
    DbResult,
    sql::{row, sql, statements},
};
use uuid::Uuid;

use crate::{
    LineStore,
    release::{Released, ReleasedRow},
};

/// The largest number of shares served in one pass.
const SHARES_MAX: i32 = 256;

row! {
    /// The free slots of a line, see [`LineStore::line_room`].
    pub(crate) struct RoomRow {
        pub(crate) room: i32 as Int4,
        pub(crate) seconds: f64 as Double,
    }
}

row! {
    struct WaitingRow {
        deliveries: i64 as Int8,
        lines: i64 as Int8,
    }
}

impl LineStore<'_> {
    /// Takes deliveries with a free slot out of up to `limit` sessions' lines, highest rank first, and puts them into
    /// outbox rows to publish now. Two schedulers never take the same delivery.
    pub async fn release_sessions(self, limit: i64, relay_after_ms: i32) -> DbResult<Released> {
        Ok(ReleaseSessions { limit, relay_after_ms }.query().rows(self.store).await?.into())
    }

    /// Takes up to `room` deliveries of a route out of the tenants' shares, in equal parts, and puts them into outbox
    /// rows. Tenants take turns: the one served longest ago comes first.
    pub async fn release_shares(self, route: Route, room: i32, relay_after_ms: i32) -> DbResult<Released> {
        let (route, shares) = (route.to_string(), i64::from(room.min(SHARES_MAX)));
        Ok(ReleaseShares { route, shares, room, relay_after_ms }.query().rows(self.store).await?.into())
    }

    /// The routes in which a tenant's share has waiting deliveries.
    pub async fn routes_with_shares(self) -> DbResult<Vec<Route>> {
        let rows = ShareRoutes {}.query().rows(self.store).await?;
        let route = |text: &String| {
            let (channel, lane) = text.split_once('.')?;
            Some(Route { channel: channel.parse().ok()?, lane: lane.parse().ok()? })
        };
        Ok(rows.iter().filter_map(route).collect())
    }

    /// The number of deliveries that a line could let through now beyond those waiting in it; and, if there are none,
    /// the seconds until its next slot.
    pub async fn line_room(self, line: Uuid) -> DbResult<(i32, f64)> {
        let found = Room { line }.query().first(self.store).await?;
        Ok(found.map_or((0, 1.0), |row| (row.room, row.seconds)))
    }

    /// Makes the slot of a delivery's claim count from now on.
    pub async fn charge_late_slot(self, line: Uuid, delivery: DeliveryId) -> DbResult<()> {
        let delivery = delivery.0;
        ChargeLateSlot { line, delivery }.query().in_partition_of([&delivery]).run(self.store).await.map(drop)
    }

    /// Limits all sessions of a tenant together to `per_minute` slots; `None` removes the limit.
    pub async fn limit_sessions(self, tenant: TenantId, per_minute: Option<i32>) -> DbResult<()> {
        let tenant = tenant.0;
        match per_minute {
            Some(rate) => LimitTenant { tenant, rate }.query().run(self.store).await?,
            None => FreeTenant { tenant }.query().run(self.store).await?,
        };
        Ok(())
    }

    /// The number of deliveries waiting in lines, and of lines with waiting deliveries.
    pub async fn waiting_in_lines(self) -> DbResult<(i64, i64)> {
        let WaitingRow { deliveries, lines } = Waiting {}.query().row(self.store).await?;
        Ok((deliveries, lines))
    }

    /// Deletes up to `limit` shares of tenants in which nothing waited for `idle_s`; returns their number. A share is
    /// created again when it is needed.
    pub async fn prune_shares(self, idle_s: i32, limit: i64) -> DbResult<usize> {
        ForgetShares { idle_s, limit }.query().run(self.store).await
    }
}

sql!(ReleaseSessions in "lines/release_sessions.sql" {
    limit: i64 as Int8, relay_after_ms: i32 as Int4
} -> ReleasedRow);
sql!(ReleaseShares in "lines/release_shares.sql" {
    route: String as Text, shares: i64 as Int8, room: i32 as Int4, relay_after_ms: i32 as Int4
} -> ReleasedRow);
sql!(ShareRoutes in "lines/share_routes.sql" {} -> String as Text);
sql!(pub(crate) Room in "lines/room.sql" { line: Uuid as SqlUuid } -> RoomRow);
sql!(ChargeLateSlot in "lines/charge_late_slot.sql" { line: Uuid as SqlUuid, delivery: Uuid as SqlUuid });
sql!(LimitTenant in "lines/limit_tenant.sql" { tenant: i32 as Int4, rate: i32 as Int4 });
sql!(FreeTenant in "lines/free_tenant.sql" { tenant: i32 as Int4 });
sql!(Waiting in "lines/waiting.sql" {} -> WaitingRow);
sql!(ForgetShares in "lines/forget_shares.sql" { idle_s: i32 as Int4, limit: i64 as Int8 });
statements!(
    ReleaseSessions,
    ReleaseShares,
    ShareRoutes,
    Room,
    ChargeLateSlot,
    LimitTenant,
    FreeTenant,
    Waiting,
    ForgetShares,
);
