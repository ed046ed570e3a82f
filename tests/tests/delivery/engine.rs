//! Statements over the rows of all tenants, on a real database: the bound of the audit, when a claim is doubted, how long a delivery
//! waits for its provider, and sessions that lost their settings.

use std::time::SystemTime;

use anyhow::{Context, Result};
use chrono::{DateTime, SubsecRound, Utc};
use deliveries::{Deliveries, claim::Claim, outbox::PENDING_MAX, poll::Floors};
use domain::{
    Channel, DeliveryId, EventKind, FailoverRound, OutcomeClass, ProviderName, State, TenantId, Trigger,
    contract::{AttemptRecord, Event, WorkItem},
    state::TRANSITIONS,
};
use maintenance::{
    Maintenance,
    erasure::{Erased, Step},
};
use runtime::config::DatabaseConfig;
use store::{Store, statement};
use testkit::{Stack, TestServers};
use uuid::{NoContext, Timestamp, Uuid};

/// A migrated database without processes, and a store that always speaks on the same connection.
async fn prepared() -> Result<(Stack, Store)> {
    let stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    let store = Store::open(&DatabaseConfig::plain(&stack.database_url.parse()?), 1)?;
    Ok((stack, store))
}

/// A delivery in the state given, with its message and a published outbox row that the audit may look at.
async fn delivery(stack: &Stack, state: &str, run: i32) -> Result<DeliveryId> {
    let (message, id) = (Uuid::now_v7(), Uuid::now_v7());
    stack
        .sql()
        .await?
        .batch_execute(&format!(
            "INSERT INTO messages (id, tenant_id, priority, content, source) VALUES ('{message}', 1, 'normal', '{{}}', 'http');
             INSERT INTO deliveries (id, message_id, tenant_id, channel, lane, recipient, state, run, lease_until)
             VALUES ('{id}', '{message}', 1, 'in_app', 'normal', 'ada', '{state}', {run}, now());
             INSERT INTO outbox (act_at, published_at, deliveries, runs, routes)
             VALUES (now(), now(), '{{{id}}}', '{{0}}', '{{in_app.normal}}')"
        ))
        .await?;
    Ok(DeliveryId(id))
}

#[tokio::test]
async fn an_audit_looks_at_so_many_deliveries_however_large_the_rows_are() -> Result<()> {
    let (stack, store) = prepared().await?;
    let rows = "INSERT INTO outbox (act_at, published_at, deliveries, runs, routes)
        SELECT now(), now(), array_agg(gen_random_uuid()), array_agg(0), array_agg('in_app.bulk'::text)
        FROM generate_series(1, 5) row_no, generate_series(1, 900) GROUP BY row_no";
    stack.sql().await?.batch_execute(rows).await?;
    let first = store.outbox().audit(200, 2_000, &[]).await?;
    assert_eq!(
        (first.seen, first.is_more),
        (3, true),
        "the third row goes beyond the bound, the fourth is for the next pass"
    );
    let rest = store.outbox().audit(200, 2_000, &[]).await?;
    assert_eq!((rest.seen, rest.is_more), (2, false));
    assert_eq!(stack.count("SELECT count(*) FROM outbox").await?, 0);
    Ok(())
}

#[tokio::test]
async fn an_old_row_is_audited_again_within_minutes() -> Result<()> {
    let (stack, store) = prepared().await?;
    delivery(&stack, "queued", 0).await?;
    stack.sql().await?.batch_execute("UPDATE outbox SET created_at = now() - interval '10 hours'").await?;
    assert_eq!(store.outbox().audit(200, 2_000, &[]).await?.seen, 1);
    let soon = "SELECT count(*) FROM outbox WHERE act_at BETWEEN now() + interval '1 minute' AND now() + interval '10 minutes'";
    assert_eq!(stack.count(soon).await?, 1, "a queue that is lost after hours of backlog is noticed in minutes");
    Ok(())
}

#[tokio::test]
async fn rows_that_wait_for_the_broker_are_counted_up_to_a_bound() -> Result<()> {
    let (stack, store) = prepared().await?;
    let rows = "INSERT INTO outbox (act_at, deliveries, runs, routes) SELECT now(), '{}', '{}', '{}' FROM generate_series(1, 10100)";
    stack.sql().await?.batch_execute(rows).await?;
    assert_eq!(store.outbox().count_pending().await?.0, PENDING_MAX);
    Ok(())
}

#[tokio::test]
async fn a_session_that_lost_its_settings_is_refused_and_takes_nothing_for_done() -> Result<()> {
    let (stack, store) = prepared().await?;
    let queued = delivery(&stack, "queued", 0).await?;
    let held = delivery(&stack, "sending", 1).await?;
    let (hint, lost) = (WorkItem::new(queued, 0), WorkItem::new(held, 0));
    statement::<()>("SELECT set_config('posthaste.tenant', '', false)").run(&store).await?;
    assert!(store.outbox().audit(200, 2_000, &[]).await.is_err());
    assert!(store.claims().claim(Channel::InApp, &[hint], 1_000).await.is_err());
    assert!(store.claims().watch(&[lost]).await.is_err());
    assert_eq!(stack.count("SELECT count(*) FROM outbox").await?, 2, "no row went");

    statement::<()>("SELECT set_config('posthaste.tenant', '*', false)").run(&store).await?;
    assert_eq!(store.claims().watch(&[lost]).await?, 1);
    assert_eq!(store.claims().claim(Channel::InApp, &[hint], 1_000).await?.len(), 1);
    assert_eq!(store.outbox().audit(200, 2_000, &[]).await?.watched, 1);
    Ok(())
}

#[tokio::test]
async fn deliveries_of_one_message_of_another_day_all_get_its_content() -> Result<()> {
    let (stack, store) = prepared().await?;
    let tomorrow = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() + 24 * 60 * 60;
    let created = || Uuid::new_v7(Timestamp::from_unix(NoContext, tomorrow, 0));
    let (message, ids) = (Uuid::now_v7(), [created(), created()]);
    let sql = stack.sql().await?;
    let content = r#"{"message": "hello"}"#;
    sql.batch_execute(&format!(
        "INSERT INTO messages (id, tenant_id, priority, content, source) VALUES ('{message}', 1, 'normal', '{content}', 'http');
         INSERT INTO deliveries (id, message_id, tenant_id, channel, lane, recipient, state)
         SELECT id, '{message}', 1, 'push', 'normal', 'device', 'queued' FROM unnest('{{{},{}}}'::uuid[]) id",
        ids[0], ids[1]
    ))
    .await?;
    let hints = ids.map(|id| WorkItem::new(DeliveryId(id), 0));
    let claims = store.claims().claim(Channel::Push, &hints, 1_000).await?;
    let contents: Vec<&[u8]> = claims.iter().map(|claim| claim.content.as_slice()).collect();
    assert_eq!(contents, [content.as_bytes(); 2]);
    Ok(())
}

#[tokio::test]
async fn a_claim_is_doubted_a_grace_after_its_lease_and_not_at_its_end() -> Result<()> {
    let (stack, store) = prepared().await?;
    let held = delivery(&stack, "sending", 1).await?;
    store.claims().watch(&[WorkItem::new(held, 0)]).await?;
    let crashes = store.due().crashed(10, 60_000, 1_000).await?;
    assert_eq!(crashes.iter().map(|crash| crash.is_late).collect::<Vec<_>>(), [false], "its outcome may be on its way");
    assert!(store.due().crashed(10, 60_000, 1_000).await?.is_empty(), "it is looked at again when the grace is over");
    let again = "SELECT count(*) FROM due u JOIN deliveries d ON d.id = u.delivery_id
        WHERE u.why = 'watch' AND u.due_at = d.lease_until + interval '60 s'";
    assert_eq!(stack.count(again).await?, 1, "not before, and not later");
    let sql = stack.sql().await?;
    sql.batch_execute("UPDATE deliveries SET lease_until = now() - interval '61 s'; UPDATE due SET due_at = now()")
        .await?;
    let crashes = store.due().crashed(10, 60_000, 1_000).await?;
    assert_eq!(crashes.iter().map(|crash| crash.is_late).collect::<Vec<_>>(), [true]);
    Ok(())
}

/// A message is stored right before its delivery, so its day may be the one before, which is dropped earlier.
#[tokio::test]
async fn a_claim_whose_message_is_gone_is_doubted_as_well() -> Result<()> {
    let (stack, store) = prepared().await?;
    let held = delivery(&stack, "sending", 1).await?;
    store.claims().watch(&[WorkItem::new(held, 0)]).await?;
    stack.sql().await?.batch_execute("DELETE FROM messages").await?;
    let crashes = store.due().crashed(10, 0, 1_000).await?;
    assert_eq!(crashes.iter().map(|crash| (crash.delivery, crash.expires_at)).collect::<Vec<_>>(), [(held, None)]);
    Ok(())
}

#[tokio::test]
async fn a_claim_whose_outcome_is_in_a_dead_letter_is_not_doubted_before_the_letter_is_dropped() -> Result<()> {
    let (stack, store) = prepared().await?;
    let (held, letter, sql) = (delivery(&stack, "sending", 1).await?, Uuid::now_v7(), stack.sql().await?);
    store.claims().watch(&[WorkItem::new(held, 0)]).await?;
    for _ in 0..2 {
        store.unread_events().keep_lettered_event(letter, held, 1).await?;
    }
    assert_eq!(store.unread_events().forget_lettered_events(Uuid::nil(), 10).await?, (Some(letter), 1));
    assert_eq!(store.unread_events().forget_lettered_events(letter, 10).await?, (None, 0), "behind the last one");
    assert_eq!(store.unread_events().list(Uuid::nil(), 10).await?, [], "there is nothing to read");
    let overdue = "UPDATE deliveries SET lease_until = now() - interval '61 s'; UPDATE due SET due_at = now()";
    sql.batch_execute(overdue).await?;
    assert_eq!(store.due().watches_due(1_000, 10).await?, 1);
    assert!(store.due().crashed(10, 60_000, 1_000).await?.is_empty(), "its outcome is known");
    assert_eq!(store.due().watches_due(1_000, 10).await?, 0, "it is looked at again, but not at once");
    let dropped = format!(
        "INSERT INTO dead_letters (id, origin, reason, status) VALUES ('{letter}', 'broker', 'poison', 'dropped')"
    );
    sql.batch_execute(&dropped).await?;
    assert_eq!(store.unread_events().forget_lettered_events(Uuid::nil(), 10).await?, (Some(letter), 0));
    sql.batch_execute(overdue).await?;
    assert_eq!(store.due().crashed(10, 60_000, 1_000).await?.len(), 1, "its outcome was given up");

    // An open letter keeps no erasure from its end.
    store.unread_events().keep_lettered_event(letter, held, 1).await?;
    sql.batch_execute("UPDATE messages SET user_id = 'ada'; UPDATE dead_letters SET status = 'open', body = 'x'")
        .await?;
    let (person, mut erased) = (store.erasure().begin(TenantId(1), "ada", false).await?, Erased::default());
    assert_eq!((store.erasure().step(&person, &mut erased).await?, erased.dead_letters), (Step::Held, 1));
    sql.batch_execute(overdue).await?;
    let crashes = store.due().crashed(10, 60_000, 1_000).await?;
    let expiries: Vec<_> = crashes.iter().map(|crash| crash.expires_at.is_some()).collect();
    assert_eq!(expiries, [true], "it ends without a call");
    let closed = "SELECT count(*) FROM dead_letters WHERE status = 'dropped' AND body IS NULL";
    assert_eq!(stack.count(closed).await?, 1);
    Ok(())
}

/// A worker's report of a claim that goes back: without a call, or after a call that failed.
fn put_off(claim: &Claim, at: DateTime<Utc>, asked: Option<ProviderName>) -> Event {
    let attempt = asked.map(|provider| AttemptRecord {
        provider,
        outcome: OutcomeClass::Transient,
        code: None,
        detail: None,
        duration_ms: 1,
        provider_ref: None,
    });
    Event {
        tenant: TenantId(1),
        delivery: claim.delivery,
        run: claim.run,
        channel: Channel::InApp,
        kind: EventKind::Retrying,
        at,
        spent: attempt.is_some(),
        attempt,
        state: State::Retrying,
        delay_ms: Some(0),
        detail: None,
        reason: None,
        dead: None,
        round: FailoverRound::NEW,
        crash: false,
        report: false,
    }
}

#[tokio::test]
async fn looks_at_a_provider_that_may_not_be_called_are_not_counted_and_the_wait_is_measured_from_the_first()
-> Result<()> {
    let (stack, store) = prepared().await?;
    let id = delivery(&stack, "queued", 0).await?;
    let (mut run, began) = (0, DateTime::<Utc>::from(SystemTime::now()).trunc_subsecs(6));
    let claimed = async |run: i32| -> Result<Claim> {
        let claims = store.claims().claim(Channel::InApp, &[WorkItem::new(id, run)], 10_000).await?;
        claims.into_iter().next().with_context(|| format!("run {run} is not claimed"))
    };
    for look in 0..110 {
        let claim = claimed(run).await?;
        assert_eq!(claim.waiting_since, (look > 0).then_some(began), "look {look}");
        let at = began + chrono::TimeDelta::minutes(look);
        store.delivery_log().record(vec![put_off(&claim, at, None)]).await?;
        let released = store.due().release(10, &Floors::new(), &[], 60_000).await?.dispatches;
        run = released.first().and_then(|row| row.items.first()).context("nothing is released")?.run;
    }
    assert_eq!(stack.count("SELECT deferrals::int8 FROM deliveries").await?, 0);
    let claim = claimed(run).await?;
    assert_eq!((claim.tries.attempts, claim.waiting_since), (1, Some(began)));
    store.delivery_log().record(vec![put_off(&claim, began, Some(ProviderName::Inbox))]).await?;
    assert_eq!(
        stack.count("SELECT count(*) FROM deliveries WHERE waiting_since IS NULL").await?,
        1,
        "an attempt ends the wait"
    );
    Ok(())
}

/// The state that an event is to bring, of a cause that comes as an event.
fn event_into(state: State, cause: Trigger, delivery: DeliveryId) -> Event {
    let shows = |kind: &&EventKind| kind.info().shows == Some(state);
    let kind = EventKind::ALL.iter().find(shows).copied().unwrap_or(EventKind::Ambiguous);
    let waits = matches!(state, State::Retrying | State::Scheduled);
    Event {
        state,
        delay_ms: waits.then_some(1_000),
        crash: cause == Trigger::Crash,
        report: cause == Trigger::Report,
        ..Event::report((TenantId(1), delivery, 1, Channel::InApp), kind, DateTime::<Utc>::from(SystemTime::now()))
    }
}

#[tokio::test]
async fn an_event_makes_the_transitions_of_the_table_and_no_other() -> Result<()> {
    let (stack, store) = prepared().await?;
    let sql = stack.sql().await?;
    let message = Uuid::now_v7();
    let texts = "INSERT INTO messages (id, tenant_id, priority, content, source) VALUES ($1::text::uuid, 1, 'normal', '{}', 'http')";
    sql.execute(texts, &[&message.to_string()]).await?;
    let (mut cases, mut events) = (Vec::new(), Vec::new());
    for cause in [Trigger::Outcome, Trigger::Crash, Trigger::Report] {
        let of_cause = |to: &&State| TRANSITIONS.iter().any(|row| row.trigger == cause && row.to.contains(to));
        for to in State::ALL.iter().filter(of_cause) {
            for from in State::ALL {
                let id = DeliveryId::generate();
                sql.execute(
                    "INSERT INTO deliveries (id, message_id, tenant_id, channel, lane, recipient, state, run, attempts)
                     VALUES ($1::text::uuid, $2::text::uuid, 1, 'in_app', 'normal', 'ada', $3, 1, 1)",
                    &[&id.to_string(), &message.to_string(), &from.as_str()],
                )
                .await?;
                cases.push((id, *from, cause, *to));
                events.push(event_into(*to, cause, id));
            }
        }
    }
    store.delivery_log().record(events).await?;
    for (id, from, cause, to) in cases {
        let row = sql.query_one("SELECT state FROM deliveries WHERE id = $1::text::uuid", &[&id.to_string()]).await?;
        let wanted = if cause.moves(Some(from), to) { to } else { from };
        assert_eq!(row.get::<_, &str>(0), wanted.as_str(), "{cause} from {from} to {to}");
    }
    Ok(())
}
