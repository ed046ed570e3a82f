//! Lines: no window of a minute holds more than the limit (invariant R), and tenants take turns (invariant F).

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use testkit::{HttpSink, Reply, Stack, eventually};
use tokio::task::JoinSet;

/// A line in the stack's database, as a session of tenant 1 has one.
const LINE: &str = "0191d8a0-0000-7000-8000-0000000000aa";

async fn line(stack: &Stack, rate: i32, more: &str) -> Result<()> {
    let sql = format!(
        "INSERT INTO lines (id, tenant_id, kind, route, rate{more_names}) VALUES ('{LINE}', 1, 'session', 'whatsapp', {rate}{more_values})",
        more_names = more.split_once('=').map(|(name, _)| format!(", {name}")).unwrap_or_default(),
        more_values = more.split_once('=').map(|(_, value)| format!(", {value}")).unwrap_or_default(),
    );
    stack.sql().await?.batch_execute(&sql).await?;
    Ok(())
}

/// Takes slots with eight callers at once until there are `enough`, and says when each was taken, as the line has it.
async fn rush(stack: &Stack, enough: usize) -> Result<Vec<f64>> {
    let (given, mut had) = tokio::sync::mpsc::channel(enough);
    let (mut callers, started) = (JoinSet::new(), Instant::now());
    for _ in 0..8 {
        let (mut client, given) = (stack.sql().await?, given.clone());
        callers.spawn(async move {
            while !given.is_closed() && started.elapsed() < Duration::from_secs(300) {
                // The line is ours from the call to the commit, so its newest slots are those that were just had.
                let taking = client.transaction().await?;
                let take = format!("SELECT n FROM take_slots(ARRAY['{LINE}']::uuid[], ARRAY[3])");
                let n: i32 = taking.query_one(&take, &[]).await?.get(0);
                let newest = format!(
                    "SELECT extract(epoch FROM slots[cardinality(slots)])::float8 FROM lines WHERE id = '{LINE}'"
                );
                let at: Option<f64> = taking.query_one(&newest, &[]).await?.get(0);
                taking.commit().await?;
                for _ in 0..n {
                    // The receiver stops once it has enough.
                    let _ = given.send(at.context("it has a slot")?).await;
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            anyhow::Ok(())
        });
    }
    drop(given);
    let mut taken = Vec::new();
    while taken.len() < enough {
        taken.push(had.recv().await.context("the slots are not used")?);
    }
    had.close();
    while let Ok(at) = had.try_recv() {
        taken.push(at);
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    taken.sort_by(f64::total_cmp);
    Ok(taken)
}

#[tokio::test]
async fn invariant_r_no_window_holds_more_slots_than_the_limit_with_many_callers() -> Result<()> {
    let stack = Stack::start().await?;
    // The window is a function of the schema; a short one shows many of them.
    let short = "CREATE OR REPLACE FUNCTION slot_window() RETURNS interval LANGUAGE sql IMMUTABLE AS $$ SELECT interval '1 second' $$";
    stack.sql().await?.batch_execute(short).await?;
    line(&stack, 7, "").await?;
    let taken = rush(&stack, 5 * 7).await?;
    for window in taken.windows(8) {
        // A millionth: the database's clock.
        assert!(window[7] - window[0] > 0.999_998, "8 slots within a window: {window:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_daily_cap_a_gap_and_a_block_hold_as_well() -> Result<()> {
    let stack = Stack::start().await?;
    let sql = stack.sql().await?;
    let take = async |wanted: i32| -> Result<i32> {
        let sql_text = format!("SELECT n FROM take_slots(ARRAY['{LINE}']::uuid[], ARRAY[{wanted}])");
        Ok(sql.query_one(&sql_text, &[]).await?.get(0))
    };
    // A day that ends between two calls would give the slots of the next one.
    let rest = "SELECT extract(epoch FROM date_trunc('day', now() AT TIME ZONE 'UTC') + interval '1 day' - now() AT TIME ZONE 'UTC')::int8";
    let rest = u64::try_from(stack.count(rest).await?)?;
    if rest < 60 {
        tokio::time::sleep(Duration::from_secs(rest + 1)).await;
    }
    line(&stack, 20, "daily_cap=5").await?;
    assert_eq!((take(3).await?, take(3).await?, take(3).await?), (3, 2, 0));
    let next_day = "SELECT free_at > now() AND free_at <= now() + interval '1 day' FROM lines";
    assert!(sql.query_one(next_day, &[]).await?.get::<_, bool>(0), "the line sleeps until the next day");

    sql.batch_execute("UPDATE lines SET daily_cap = NULL, gap_ms = 60000, slots = '{}', free_at = '-infinity'").await?;
    assert_eq!((take(3).await?, take(3).await?), (1, 0), "one at a time, a gap apart");

    sql.batch_execute(
        "UPDATE lines SET gap_ms = 0, slots = '{}', free_at = '-infinity', blocked_until = now() + interval '1 hour'",
    )
    .await?;
    assert_eq!(take(1).await?, 0);
    sql.batch_execute("UPDATE lines SET blocked_until = '-infinity', is_open = false").await?;
    assert_eq!(take(1).await?, 0, "a session that is not working sends nothing");
    sql.batch_execute("UPDATE lines SET is_open = true").await?;
    assert_eq!(take(30).await?, 20);
    Ok(())
}

#[tokio::test]
async fn a_tenants_limit_holds_over_all_of_its_sessions() -> Result<()> {
    let stack = Stack::start().await?;
    let sql = stack.sql().await?;
    line(&stack, 20, "").await?;
    let other = "0191d8a0-0000-7000-8000-0000000000bb";
    sql.batch_execute(&format!(
        "INSERT INTO lines (id, tenant_id, kind, route, rate) VALUES ('{other}', 1, 'session', 'whatsapp', 20);
         INSERT INTO lines (id, tenant_id, kind, route, rate) VALUES (gen_random_uuid(), 1, 'tenant', 'whatsapp', 25)"
    ))
    .await?;
    let both =
        format!("SELECT array_agg(n ORDER BY line) FROM take_slots(ARRAY['{LINE}', '{other}']::uuid[], ARRAY[15, 15])");
    assert_eq!(sql.query_one(&both, &[]).await?.get::<_, Vec<i32>>(0), [15, 10]);
    assert_eq!(sql.query_one(&both, &[]).await?.get::<_, Vec<i32>>(0), [0, 0]);
    let asleep = "SELECT count(*) FROM lines WHERE kind = 'session' AND free_at > slots[1] + interval '60 seconds'";
    assert_eq!(stack.count(asleep).await?, 2, "both sleep until the tenant has a slot again");
    Ok(())
}

#[tokio::test]
async fn invariant_f_a_tenant_with_a_long_queue_does_not_hold_up_another_ones_bulk() -> Result<()> {
    let stack = Stack::patient(&[("WORKER_CONCURRENCY", "8")]).await?;
    let sink = HttpSink::start_local().await?;
    // 8 places at 50 ms: the long queue alone takes at least 50 s.
    sink.reply_by_default(Reply::ok().after(Duration::from_millis(50)));
    let busy = stack.producer();
    stack.cli(&["tenant", "create", "quiet"])?;
    let quiet = stack.api(&stack.create_key("quiet", "producer")?);

    let urls = |prefix: &str, count: usize| -> Vec<String> {
        (0..count).map(|n| sink.url(&format!("/{prefix}/{n}"))).collect()
    };
    let bulk = |recipients: Vec<String>| json!({"recipients": recipients, "channel": "webhook", "data": {"a": 1}});
    let long = busy.post("/api/notifications/send-bulk", &bulk(urls("busy", 8000))).await?.ok()?;
    let short = quiet.post("/api/notifications/send-bulk", &bulk(urls("quiet", 200))).await?.ok()?;
    assert_eq!((&long["sent"], &short["sent"]), (&json!(8000), &json!(200)));
    let counts = async |api: &testkit::Api, answer: &serde_json::Value| {
        let path = format!("/api/bulk/{}", answer["bulk_id"].as_str()?);
        api.get(&path).await.ok()?.body["delivered"].as_u64()
    };
    eventually("the quiet tenant's bulk has arrived", Duration::from_secs(300), || async {
        (counts(&quiet, &short).await? == 200).then_some(())
    })
    .await?;
    // By the times in the log: a later look at the counts would find more of the long one done.
    let meanwhile = "SELECT count(*) FROM delivery_events e, (
            SELECT min(m.created_at) AS began, max(q.at) AS ended FROM delivery_events q
            JOIN deliveries d ON d.id = q.delivery_id JOIN messages m ON m.id = d.message_id
            WHERE q.tenant_id <> 1 AND q.kind = 'delivered') quiet
        WHERE e.tenant_id = 1 AND e.kind = 'delivered' AND e.at BETWEEN quiet.began AND quiet.ended";
    let done = stack.count(meanwhile).await?;
    assert!(done < 4000, "the quiet tenant waited for {done} of the busy one's 8000");
    // Waiting deliveries are in the database. The broker has one window, and at most four more are being published.
    let outside =
        "SELECT (SELECT count(*) FROM deliveries WHERE state IN ('queued', 'sending')) - (SELECT count(*) FROM parked)";
    let outside = stack.count(outside).await?;
    assert!(outside <= 5 * 1000 + 100, "{outside} wait outside of the database");
    // One statement, so one snapshot: deliveries are released all the while.
    let miscounted = "SELECT (SELECT count(*) FROM parked) - (SELECT sum(waiting)::int8 FROM lines)";
    assert_eq!(stack.count(miscounted).await?, 0, "the lines count their rows");
    Ok(())
}

#[tokio::test]
async fn invariant_f_a_tenant_that_floods_with_singles_is_overtaken_by_a_quiet_one() -> Result<()> {
    let stack = Stack::patient(&[("WORKER_CONCURRENCY", "8")]).await?;
    let sink = HttpSink::start_local().await?;
    sink.reply_by_default(Reply::ok().after(Duration::from_millis(50)));
    stack.cli(&["tenant", "create", "quiet"])?;
    let (busy, quiet) = (stack.producer(), stack.api(&stack.create_key("quiet", "producer")?));
    let webhook = |path: &str| json!({"channel": "webhook", "recipient": sink.url(path), "data": {"a": 1}});
    // Far more than 8 places at 50 ms empty meanwhile; calls of 100 are no bulk yet.
    let hundred: Vec<String> = (0..100).map(|n| sink.url(&format!("/busy/{n}"))).collect();
    let flood = json!({"channel": "webhook", "recipients": hundred, "data": {"a": 1}});
    // The depth of the queue is looked at four times a second: the quicker the machine, the more is accepted before.
    let mut is_noticed = false;
    for _ in 0..30 {
        for _ in 0..10 {
            busy.post("/api/notifications/send-bulk", &flood).await?.ok()?;
        }
        // A share's line is made when something first waits in it.
        is_noticed = stack.count("SELECT count(*) FROM lines WHERE kind = 'share'").await? > 0;
        if is_noticed {
            break;
        }
    }
    assert!(is_noticed, "a flood waits in its share");
    let id = quiet.send(&webhook("/quiet")).await?;
    // Deliveries that reached the broker before the flood was noticed go first; how long they take depends on the machine.
    quiet.wait_status_within(&id, "delivered", Duration::from_secs(300)).await?;
    // The flood may be over by now, so deliveries that moved after the quiet one count as overtaken.
    let behind = "SELECT count(*) FROM deliveries WHERE tenant_id = 1 AND (state IN ('queued', 'sending')
        OR updated_at > (SELECT max(updated_at) FROM deliveries WHERE tenant_id <> 1))";
    assert!(stack.count(behind).await? > 0, "the quiet tenant overtook no delivery");
    Ok(())
}

#[tokio::test]
async fn invariant_f_a_tenants_wave_of_scheduled_singles_is_overtaken_by_a_quiet_one() -> Result<()> {
    let stack = Stack::patient(&[("WORKER_CONCURRENCY", "8")]).await?;
    let sink = HttpSink::start_local().await?;
    // 8 places at 20 ms: the wave alone takes at least 20 s.
    sink.reply_by_default(Reply::ok().after(Duration::from_millis(20)));
    stack.cli(&["tenant", "create", "quiet"])?;
    let (busy, quiet) = (stack.producer(), stack.api(&stack.create_key("quiet", "producer")?));
    // Calls of 100 are no bulk yet.
    let at = domain::clock::now() + chrono::TimeDelta::hours(1);
    let hundred: Vec<String> = (0..100).map(|n| sink.url(&format!("/busy/{n}"))).collect();
    let wave = json!({"channel": "webhook", "recipients": hundred, "data": {"a": 1}, "scheduled_at": at.to_rfc3339()});
    for _ in 0..80 {
        busy.post("/api/notifications/send-bulk", &wave).await?.ok()?;
    }
    let single = json!({"channel": "webhook", "recipient": sink.url("/quiet"), "data": {"a": 1}, "scheduled_at": at.to_rfc3339()});
    let id = quiet.send(&single).await?;
    // All are due at one moment, as at the end of quiet hours.
    assert_eq!(stack.sql().await?.execute("UPDATE due SET due_at = now()", &[]).await?, 8001);
    quiet.wait_status_within(&id, "delivered", Duration::from_secs(300)).await?;
    // As it was written down. Before the quiet one go at most a window at the broker and what is on its way there.
    let before = "SELECT count(*) FROM delivery_events e WHERE e.tenant_id = 1 AND e.kind = 'delivered'
        AND e.at < (SELECT at FROM delivery_events q WHERE q.tenant_id <> 1 AND q.kind = 'delivered')";
    let before = stack.count(before).await?;
    assert!(before < 4000, "the quiet tenant waited for {before} of the wave's 8000");
    let outside =
        "SELECT (SELECT count(*) FROM deliveries WHERE state IN ('queued', 'sending')) - (SELECT count(*) FROM parked)";
    let outside = stack.count(outside).await?;
    assert!(outside <= 5 * 1000 + 100, "{outside} of the wave wait outside of the database");
    Ok(())
}

#[tokio::test]
async fn a_slot_that_was_used_late_counts_from_then_for_its_session_and_its_tenant() -> Result<()> {
    let stack = Stack::start().await?;
    line(&stack, 2, "").await?;
    let sql = stack.sql().await?;
    let taken = "UPDATE lines SET slots = ARRAY[now() - interval '50 seconds', now() - interval '40 seconds']";
    let tenants =
        "INSERT INTO lines (id, tenant_id, kind, route, rate) VALUES (gen_random_uuid(), 1, 'tenant', 'whatsapp', 2)";
    sql.batch_execute(&format!("{tenants}; {taken}")).await?;
    let moved = "SELECT count(*) FILTER (WHERE slots[1] < now() - interval '45 seconds' AND slots[2] > now() - interval '5 seconds'
        AND cardinality(slots) = 2 AND free_at = slots[1] + interval '62 seconds') FROM lines";
    assert_eq!(stack.count(moved).await?, 0);
    sql.batch_execute(&format!("SELECT move_slot('{LINE}', now() - interval '39 seconds')")).await?;
    assert_eq!(stack.count(moved).await?, 2, "the newer of the two was the one of this call");
    sql.batch_execute(&format!(
        "UPDATE lines SET slots = '{{}}'; SELECT move_slot('{LINE}', now() - interval '70 seconds')"
    ))
    .await?;
    assert_eq!(
        stack.count("SELECT sum(cardinality(slots)) FROM lines").await?,
        2,
        "one that is over already counts once more"
    );
    Ok(())
}
