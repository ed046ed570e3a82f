//! Acceptance while the database is slow, refuses, dies or is held by other sessions: every answer is true, and no request pays for
//! its neighbour.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::TimeDelta;
use deliveries::{Deliveries, accept::Accepted, digests::Ending};
use domain::{
    Address, Channel, DeliveryId, Lane, MessageId, Route, TenantId,
    acceptance::{Acceptance, Crowding, Leases, NewDelivery, NewDigestItem, NewMessage, SideRecord},
    clock,
};
use futures_util::future::{join_all, try_join_all};
use reqwest::Method;
use runtime::config::DatabaseConfig;
use serde_json::{Value, json};
use store::Store;
use testkit::{
    Api, Role, Stack, TestServers,
    api::{Answer, SOON},
    eventually,
    half_answers::HalfAnswers,
    proxy::address_of,
};
use uuid::Uuid;

fn note(user: &str) -> Value {
    json!({"channel": "in_app", "recipient": "ada", "user_id": user, "message": "m"})
}

/// Ingest alone: nothing needs to be sent.
async fn ingest() -> Result<Stack> {
    let key = STANDARD.encode([1; 32]);
    let mut stack = Stack::prepare(TestServers::shared()?, &[("POSTHASTE_ENCRYPTION_KEY", &key)]).await?;
    stack.launch("ingest", Role::Ingest, &[]).await?;
    Ok(stack)
}

/// Sends without a key.
async fn send(api: &Api, body: &Value) -> Result<Answer> {
    api.post("/api/notifications/send", body).await
}

/// Repeats a whole round of requests until none is answered with 503, as on a machine that is slow for a moment: no request may
/// depend on a repetition without its neighbours. Returns how many were accepted in all rounds.
async fn rounds_until_decided(round: impl AsyncFn() -> Result<Vec<u16>>) -> Result<i64> {
    let (mut accepted, begun) = (0, Instant::now());
    loop {
        let answers = round().await?;
        accepted += i64::try_from(answers.iter().filter(|status| **status == 202).count())?;
        if !answers.contains(&503) {
            return Ok(accepted);
        }
        ensure!(begun.elapsed() < SOON, "some requests of every round were answered with 503");
    }
}

/// Sends a note for each of these users at once; the answers. The bad one is refused with 500, every other one accepted, and each may
/// be answered with 503.
async fn send_for(api: &Api, users: &[&str]) -> Result<Vec<u16>> {
    let send_one = async |user: &str| -> Result<u16> {
        let answer = send(api, &note(user)).await?;
        let (status, wanted) = (answer.status.as_u16(), if user == "bad" { 500 } else { 202 });
        ensure!(status == wanted || status == 503, "{user}: {status} {}", answer.body);
        Ok(status)
    };
    try_join_all(users.iter().map(|user| send_one(user))).await
}

/// How long the overload lasts at least.
const LOAD: Duration = Duration::from_secs(5);

#[tokio::test]
async fn what_is_answered_with_503_is_not_stored_however_slow_the_database_is() -> Result<()> {
    let stack = ingest().await?;
    // Longer than a request waits for its commit to begin, and well below the statement limit of 1.2 s.
    stack
        .sql()
        .await?
        .batch_execute(
            "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.8); RETURN NULL; END $$;
             CREATE TRIGGER linger AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION linger()",
        )
        .await?;
    let (api, begun, body) = (stack.producer(), Instant::now(), note("ada"));
    let (accepted, refused) = (Cell::new(0), Cell::new(0));
    let is_over = || match accepted.get() > 0 && refused.get() > 0 {
        true => begun.elapsed() >= LOAD,
        false => begun.elapsed() >= SOON,
    };
    let client = async || -> Result<()> {
        while !is_over() {
            let answer = send(&api, &body).await?;
            match answer.status.as_u16() {
                202 => accepted.set(accepted.get() + 1),
                503 => refused.set(refused.get() + 1),
                _ => anyhow::bail!("{} {}", answer.status, answer.body),
            }
        }
        Ok(())
    };
    try_join_all((0..64).map(|_| client())).await?;
    let (accepted, refused): (i64, i64) = (accepted.get(), refused.get());
    ensure!(accepted > 0 && refused > 0, "{accepted} accepted, {refused} refused: this was no overload");
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, accepted, "{refused} were refused");
    Ok(())
}

#[tokio::test]
async fn nobody_pays_for_a_neighbour_whose_row_is_refused_nor_for_a_race_that_was_lost() -> Result<()> {
    let stack = ingest().await?;
    let sql = stack.sql().await?;
    sql.batch_execute(
        "CREATE SEQUENCE races;
         CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
             IF NEW.user_id = 'bad' THEN RAISE SQLSTATE '22000'; END IF;
             IF NEW.user_id = 'late' AND nextval('races') = 1 THEN RAISE SQLSTATE '40P01'; END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER judge BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION judge()",
    )
    .await?;
    let api = stack.producer();
    // The first insert of each round loses a race, and its request is accepted all the same.
    let mut stored = rounds_until_decided(async || {
        sql.batch_execute("ALTER SEQUENCE races RESTART").await?;
        send_for(&api, &["late"]).await
    })
    .await?;

    // They share commits: while the first ones are under way, the others pile up.
    let users: Vec<&str> = (0..192).map(|n| if n % 4 == 0 { "bad" } else { "good" }).collect();
    stored += rounds_until_decided(async || send_for(&api, &users).await).await?;
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, stored);
    let commits = stack.count("SELECT count(*) FROM outbox").await?;
    assert!(commits < stored, "{commits} outbox rows, one for each commit: no two messages shared one");

    // A kept answer that can no longer be read must not undo the other messages of its commit.
    let body = note("good");
    eventually("a request with a key is accepted", SOON, || async {
        (api.send_keyed("sealed", &body).await.ok()?.status.as_u16() == 202).then_some(())
    })
    .await?;
    sql.execute(r"UPDATE idempotency_keys SET response = '\x0070680141414141'", &[]).await?;
    stored += 1 + rounds_until_decided(async || {
        let repeats = join_all((0..8).map(|_| api.send_keyed("sealed", &body)));
        let (repeats, others) = futures_util::join!(repeats, send_for(&api, &["good"; 64]));
        for answer in repeats {
            assert_eq!(answer?.status.as_u16(), 503, "the kept answer cannot be read");
        }
        others
    })
    .await?;
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, stored);
    Ok(())
}

#[tokio::test]
async fn a_repeated_bulk_stores_no_second_copy_of_its_content() -> Result<()> {
    let stack = ingest().await?;
    let body =
        serde_json::to_vec(&json!({"user_ids": ["ada", "bob"], "channel": "in_app", "title": "t", "message": "m"}))?;
    let api = stack.producer();
    for _ in 0..3 {
        let key = [("Idempotency-Key", "bulk")];
        api.request(Method::POST, "/api/notifications/send-bulk", &key, Some(body.clone())).await?.ok()?;
    }
    assert_eq!(stack.count("SELECT count(*) FROM bulks").await?, 1);
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, 2);
    Ok(())
}

const TENANT: TenantId = TenantId(1);

/// A message for the bulk lane, which waits in its tenant's share, with the records that are stored beside it.
fn low(beside: Vec<SideRecord>) -> Acceptance {
    let delivery = NewDelivery {
        id: DeliveryId::generate(),
        route: Route { channel: Channel::InApp, lane: Lane::Bulk },
        recipient: Address::new("ada"),
        line: None,
        rank: 0,
        kind: "text",
    };
    let message = NewMessage {
        id: MessageId::generate(),
        user_id: None,
        category: None,
        priority: "low",
        content: Some(b"{}".to_vec()),
        scheduled_at: None,
        expires_at: None,
        deliveries: vec![delivery],
        template: None,
    };
    Acceptance {
        tenant: TENANT,
        source: "http",
        request_id: None,
        traceparent: None,
        key: None,
        bulk: None,
        messages: vec![message],
        beside,
        room_in: None,
    }
}

#[tokio::test]
async fn an_acceptance_and_the_closing_of_a_window_take_their_locks_in_one_order() -> Result<()> {
    let stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    let store = Store::open(&DatabaseConfig::plain(&stack.database_url.parse()?), 2)?;
    let now = clock::now();
    let item = NewDigestItem {
        digest: Uuid::now_v7(),
        rule: Uuid::now_v7(),
        user_id: "ada".to_owned(),
        key: String::new(),
        event: Uuid::now_v7(),
        data: b"{}".to_vec(),
        event_type: "x".to_owned(),
        opened_at: now,
        closes_at: now - TimeDelta::seconds(1),
        latest_at: now,
        max_items: 1000,
    };
    assert!(store.digests().open_window(TENANT, &item).await?);
    let closing = store.digests().hold(vec![item.digest]).await?;
    assert_eq!(closing.digests.len(), 1);
    // The acceptance parks in the tenant's share and gathers into the window that is being closed.
    let accepting = tokio::spawn({
        let event = NewDigestItem { digest: Uuid::now_v7(), ..item.clone() };
        let (store, batch) = (store.clone(), vec![low(vec![SideRecord::DigestItem(event)])]);
        async move { store.acceptance().accept(&batch, 1000, &Crowding::default(), &Leases::new()).await }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("the acceptance waits", SOON, || async { (stack.count(waits).await.ok()? == 1).then_some(()) }).await?;
    // The digest's message waits in the same share.
    closing.end(vec![(item.digest, Ending::Told(Box::new(low(Vec::new()))))], 1000).await?;
    assert_eq!(accepting.await??.results, [Accepted::New]);
    assert_eq!(stack.count("SELECT count(*) FROM digests WHERE state = 'open'").await?, 1, "the event opened another");
    Ok(())
}

#[tokio::test]
async fn an_answer_of_the_database_that_breaks_off_after_its_row_is_no_acceptance() -> Result<()> {
    let mut stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    let (direct, server) = (stack.database_url.clone(), address_of(&stack.database_url)?);
    let proxy = HalfAnswers::start(server).await?;
    let through = direct.replace(&server.to_string(), &proxy.address().to_string());
    stack.database_url = format!("{through}?sslmode=disable");
    stack.launch("ingest", Role::Ingest, &[]).await?;
    stack.database_url = direct;
    let (api, body) = (stack.producer(), note("ada"));
    // The key is known from here on: the next request asks for nothing but its acceptance.
    api.send(&body).await?;
    proxy.arm(true);
    let answer = send(&api, &body).await?;
    proxy.arm(false);
    assert_eq!((answer.status.as_u16(), &answer.body["code"]), (503, &json!("unavailable")), "{}", answer.body);
    assert!(
        answer.body["detail"].as_str().is_some_and(|detail| detail.contains("may have been stored")),
        "{}",
        answer.body
    );
    // This server did not die, so the row is there: the acceptance was what broke off.
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, 2);
    api.send(&body).await?;
    Ok(())
}
