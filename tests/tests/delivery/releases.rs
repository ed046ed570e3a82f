//! Releases: what was scheduled, held, retried or replayed takes turns with other tenants, in outbox rows of a bounded size.

use anyhow::Result;
use deliveries::{
    Deliveries,
    letters::{LetterAction, LetterFilter},
    poll::Floors,
};
use domain::{Channel, DeliveryId, Lane, Route, TenantId, acceptance::share};
use runtime::config::DatabaseConfig;
use store::Store;
use testkit::{Stack, TestServers};

const RELAY_AFTER_MS: i32 = 5000;
const WEBHOOK: Route = Route { channel: Channel::Webhook, lane: Lane::Normal };
const BULK: Route = Route { channel: Channel::Webhook, lane: Lane::Bulk };
const SMS: Route = Route { channel: Channel::Sms, lane: Lane::Normal };

/// A database with the schema, no process, and a store on it.
async fn database() -> Result<(Stack, Store)> {
    let stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    let store = Store::open(&DatabaseConfig::plain(&stack.database_url.parse()?), 4)?;
    Ok((stack, store))
}

/// Stores `count` deliveries of a tenant in a state; their ids.
async fn deliveries(stack: &Stack, tenant: i32, route: Route, state: &str, count: usize) -> Result<Vec<String>> {
    let ids: Vec<String> = (0..count).map(|_| DeliveryId::generate().to_string()).collect();
    let (channel, lane) = (route.channel.to_string(), route.lane.to_string());
    stack
        .sql()
        .await?
        .execute(
            "WITH m AS (INSERT INTO messages (id, tenant_id, priority, content, source)
                 SELECT id, $2, 'normal', '{}', 'http' FROM unnest($1::text[]::uuid[]) id)
             INSERT INTO deliveries (id, message_id, tenant_id, channel, lane, recipient, state)
             SELECT id, id, $2, $3, $4, 'x', $5 FROM unnest($1::text[]::uuid[]) id",
            &[&ids, &tenant, &channel, &lane, &state],
        )
        .await?;
    Ok(ids)
}

/// The same, due now.
async fn due(stack: &Stack, tenant: i32, route: Route, state: &str, count: usize) -> Result<()> {
    let ids = deliveries(stack, tenant, route, state, count).await?;
    let insert =
        "INSERT INTO due (delivery_id, due_at, run, why) SELECT id, now(), 0, $2 FROM unnest($1::text[]::uuid[]) id";
    let why = if state == "retrying" { "retry" } else { "scheduled" };
    stack.sql().await?.execute(insert, &[&ids, &why]).await?;
    Ok(())
}

/// Deliveries that wait in the share of a tenant.
async fn waiting(stack: &Stack, tenant: i32, route: Route) -> Result<i64> {
    let share = share(TenantId(tenant), route);
    stack
        .count(&format!("SELECT (SELECT count(*) FROM parked k WHERE k.line = l.id AND l.waiting > 0) FROM lines l WHERE id = '{share}'"))
        .await
}

#[tokio::test]
async fn invariant_f_a_release_parks_what_crowds_others_and_its_outbox_rows_are_bounded() -> Result<()> {
    let (stack, store) = database().await?;
    due(&stack, 1, WEBHOOK, "scheduled", 200).await?;
    due(&stack, 1, WEBHOOK, "retrying", 100).await?;
    due(&stack, 1, BULK, "scheduled", 20).await?;
    due(&stack, 1, SMS, "scheduled", 5).await?;
    for tenant in 101..=120 {
        due(&stack, tenant, WEBHOOK, "scheduled", 60).await?;
    }

    let released = store.due().release(5000, &Floors::new(), &[SMS], RELAY_AFTER_MS).await?;
    assert_eq!((released.picked, released.handed_over()), (325 + 20 * 60, 20 * 60), "quiet tenants go straight out");
    let sizes: Vec<usize> = released.dispatches.iter().map(|dispatch| dispatch.items.len()).collect();
    assert_eq!(sizes.iter().max(), Some(&500), "no outbox row holds more: {sizes:?}");
    let rows = "SELECT count(*) FROM outbox WHERE cardinality(deliveries) BETWEEN 1 AND 500";
    assert_eq!(stack.count(rows).await?, 3);
    // The share that acceptance would use as well: the id is the same in SQL and here.
    assert_eq!(waiting(&stack, 1, WEBHOOK).await?, 300, "scheduled ones and retries of a tenant that crowds");
    assert_eq!(waiting(&stack, 1, BULK).await?, 20, "the bulk lane always takes turns");
    assert_eq!(waiting(&stack, 1, SMS).await?, 5, "a full queue gets nothing more");
    assert_eq!(stack.count("SELECT count(*) FROM due").await?, 0);

    let turn = store.lines().release_shares(WEBHOOK, 250, RELAY_AFTER_MS).await?;
    assert_eq!((turn.picked, turn.handed_over()), (250, 250));
    assert_eq!(store.due().release(5000, &Floors::new(), &[], RELAY_AFTER_MS).await?.picked, 0);
    Ok(())
}

#[tokio::test]
async fn invariant_f_a_replay_of_many_letters_takes_turns() -> Result<()> {
    let (stack, store) = database().await?;
    for id in deliveries(&stack, 1, WEBHOOK, "dead", 150).await? {
        let letter = "INSERT INTO dead_letters (id, tenant_id, message_id, delivery_id, channel, origin, reason)
            SELECT gen_random_uuid(), 1, d, d, 'webhook', 'worker', 'attempts_exhausted' FROM (SELECT $1::text::uuid AS d) x";
        stack.sql().await?.execute(letter, &[&id]).await?;
    }
    let filter = LetterFilter::default();
    let (id, matched) =
        store.replays().start(Some(TenantId(1)), LetterAction::Replay, &filter, None, "again", "admin").await?;
    assert_eq!(matched, 150);
    let running = store.replays().running(1).await?.remove(0);
    let few = store.replays().run_pass(&running.replay, 40, None, RELAY_AFTER_MS).await?;
    let handed_over = few.dispatches.iter().map(|dispatch| dispatch.items.len()).sum::<usize>();
    assert_eq!((few.moved, handed_over), (40, 40), "a few at a time go straight to the broker");
    let many = store.replays().run_pass(&running.replay, 1000, few.last, RELAY_AFTER_MS).await?;
    assert_eq!((many.moved, many.dispatches.len()), (110, 0));
    assert_eq!(waiting(&stack, 1, WEBHOOK).await?, 110);
    let told = format!("SELECT replayed::int8 FROM replays WHERE id = '{id}'");
    assert_eq!(stack.count(&told).await?, 150, "the replay counts deliveries in the share");
    Ok(())
}

#[tokio::test]
async fn parking_in_a_line_that_waits_already_adds_no_index_entries() -> Result<()> {
    let (stack, _) = database().await?;
    let line = share(TenantId(1), BULK);
    let park = |count: usize| {
        format!(
            "INSERT INTO parked (delivery_id, line, run, rank) SELECT gen_random_uuid(), '{line}', 0, 1 FROM generate_series(1, {count})"
        )
    };
    let mut sql = stack.sql().await?;
    sql.batch_execute(&format!(
        "INSERT INTO lines (id, tenant_id, kind, route) VALUES ('{line}', 1, 'share', '{BULK}'); {}",
        park(1)
    ))
    .await?;
    let parking = sql.transaction().await?;
    // Counts that this connection has not reported to the server yet, which may include the transaction before.
    let counted = async || -> Result<(i64, i64)> {
        let counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relid = 'lines'::regclass";
        let row = parking.query_one(counts, &[]).await?;
        Ok((row.get(0), row.get(1)))
    };
    let before = counted().await?;
    for _ in 0..10 {
        parking.batch_execute(&park(3)).await?;
    }
    let after = counted().await?;
    let (updates, heap_only) = (after.0 - before.0, after.1 - before.1);
    assert_eq!((updates, heap_only), (10, 10), "every update of `waiting` stays heap-only");
    Ok(())
}
