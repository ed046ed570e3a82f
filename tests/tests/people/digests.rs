//! Digests: events gather in windows, and each window becomes one message, whatever fails in between.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Timelike, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{
    Role, Stack,
    api::SOON,
    eventually,
    patient::LONG,
    rules::{change, event, inbox, person, rule, template, until_inbox},
};

const TEXT: &str = "{{count}}:{{#each items}} {{this.n}}{{/each}}";

fn gathering(event_type: &str, digest: Value) -> Value {
    json!({"name": event_type, "event_type": event_type, "template_name": "digest", "channels": ["in_app"], "digest": digest})
}

async fn until_count(stack: &Stack, what: &str, query: &str, wanted: i64) -> Result<()> {
    let counted = eventually(what, SOON, || async { (stack.count(query).await.ok()? == wanted).then_some(()) }).await;
    counted.with_context(|| query.to_owned())
}

async fn moment(stack: &Stack, query: &str) -> Result<DateTime<Utc>> {
    let text: String =
        stack.sql().await?.query_one(&format!("SELECT to_json(x)#>>'{{}}' FROM ({query}) q(x)"), &[]).await?.get(0);
    Ok(text.parse()?)
}

/// Lets the end come of every window that is open.
async fn close_now(stack: &Stack) -> Result<()> {
    stack.sql().await?.execute("UPDATE digests SET closes_at = now() WHERE state = 'open'", &[]).await?;
    Ok(())
}

/// Lets so many seconds pass for every window that is open.
async fn pass(stack: &Stack, seconds: u32) -> Result<()> {
    let past = |column: &str| format!("{column} = {column} - interval '{seconds} seconds'");
    let moved = [past("opened_at"), past("closes_at"), past("latest_at")].join(", ");
    stack.sql().await?.batch_execute(&format!("UPDATE digests SET {moved} WHERE state = 'open'")).await?;
    Ok(())
}

#[tokio::test]
async fn events_gather_in_windows_and_each_is_told_once() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let (admin, api) = (stack.admin(), stack.producer());
    template(&stack, "digest", TEXT).await?;

    // Events before the close of a window are in it, in order; the next event opens the next one.
    let fixed = rule(&admin, &gathering("fixed", json!({"window_seconds": 3600}))).await?;
    for n in 1..=3 {
        let answer = event(&api, "fixed", "ada", json!({"n": n})).await?;
        assert_eq!((&answer["gathered"], &answer["messages"]), (&json!([fixed]), &json!([])));
    }
    event(&api, "fixed", "bob", json!({"n": 9})).await?;
    let hours = "SELECT count(*) FROM digests WHERE round(extract(epoch FROM closes_at - opened_at)) = 3600";
    assert_eq!(stack.count(hours).await?, 2, "later events do not prolong it");
    let dry =
        api.post("/api/events/dry-run", &json!({"type": "fixed", "user_id": "ada", "data": {"n": 4}})).await?.ok()?;
    assert_eq!((&dry["rules"][0]["digest"]["opens"], &dry["rules"][0]["digest"]["items"]), (&json!(false), &json!(3)));
    close_now(&stack).await?;
    until_inbox(&api, "ada", &["3: 1 2 3"]).await?;
    until_inbox(&api, "bob", &["1: 9"]).await?;
    event(&api, "fixed", "ada", json!({"n": 4})).await?;
    close_now(&stack).await?;
    until_inbox(&api, "ada", &["3: 1 2 3", "1: 4"]).await?;
    assert_eq!(stack.count("SELECT count(*) FROM digest_items").await?, 0, "a sent window keeps no items");

    // It closes by itself, and not before its time.
    rule(&admin, &gathering("brief", json!({"window_seconds": 1}))).await?;
    event(&api, "brief", "ben", json!({"n": 1})).await?;
    until_inbox(&api, "ben", &["1: 1"]).await?;
    let in_time = "SELECT count(*) FROM digests WHERE user_id = 'ben' AND closes_at >= opened_at + interval '1 second'";
    assert_eq!(stack.count(in_time).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_full_window_closes_at_once_however_fast_events_come() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let (admin, api) = (stack.admin(), stack.producer());
    template(&stack, "digest", TEXT).await?;
    rule(&admin, &gathering("filled", json!({"window_seconds": 3600, "max_items": 2}))).await?;
    let at_once = (0..7).map(|n| event(&api, "filled", "cy", json!({"n": n})));
    futures_util::future::try_join_all(at_once).await?;
    let counts = async || -> Result<Vec<String>> {
        let texts = inbox(&api, "cy").await?;
        let mut counts: Vec<String> =
            texts.iter().filter_map(|text| Some(text.split(':').next()?.to_owned())).collect();
        counts.sort_unstable();
        Ok(counts)
    };
    let are = async |wanted: &[&str]| counts().await.ok().filter(|counts| counts == wanted).map(drop);
    eventually("three full windows are sent", SOON, || are(&["2", "2", "2"])).await?;
    close_now(&stack).await?;
    eventually("the last window is sent", SOON, || are(&["1", "2", "2", "2"])).await
}

#[tokio::test]
async fn windows_are_kept_apart_by_a_key_and_events_without_it_share_one() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let (admin, api) = (stack.admin(), stack.producer());
    template(&stack, "digest", TEXT).await?;
    rule(&admin, &gathering("keyed", json!({"window_seconds": 3600, "key": "data.project"}))).await?;
    for (n, data) in
        [json!({"project": "a"}), json!({"project": "b"}), json!({"project": "a"}), json!({}), json!({"project": null})]
            .into_iter()
            .enumerate()
    {
        let mut data = data;
        data["n"] = json!(n);
        event(&api, "keyed", "dan", data).await?;
    }
    close_now(&stack).await?;
    until_inbox(&api, "dan", &["2: 0 2", "1: 1", "2: 3 4"]).await
}

#[tokio::test]
async fn the_first_event_is_sent_at_once_and_an_empty_window_sends_nothing() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let (admin, api) = (stack.admin(), stack.producer());
    template(&stack, "digest", TEXT).await?;
    rule(&admin, &gathering("first", json!({"window_seconds": 3600, "first_immediately": true}))).await?;
    let answer = event(&api, "first", "eve", json!({"n": 1})).await?;
    assert_eq!((answer["messages"].as_array().map(Vec::len), &answer["gathered"]), (Some(1), &json!([])));
    event(&api, "first", "fay", json!({"n": 1})).await?;
    until_inbox(&api, "eve", &["1: 1"]).await?;
    until_inbox(&api, "fay", &["1: 1"]).await?;
    for n in 2..=3 {
        event(&api, "first", "eve", json!({"n": n})).await?;
    }
    close_now(&stack).await?;
    until_inbox(&api, "eve", &["1: 1", "2: 2 3"]).await?;
    until_count(&stack, "all windows close", "SELECT count(*) FROM digests WHERE state <> 'closed'", 0).await?;
    assert_eq!(inbox(&api, "fay").await?, ["1: 1"]);
    assert_eq!(stack.count("SELECT count(*) FROM digests WHERE user_id = 'fay' AND message_id IS NULL").await?, 1);
    let names = [
        "posthaste_digests_closed_total{end=\"empty\"} 1",
        "posthaste_digests_closed_total{end=\"unrenderable\"} 0",
        "posthaste_digest_lag_seconds",
    ];
    stack.until_measured("all", &names).await?;
    stack.until_counted("all", "posthaste_digests_closed_total{end=\"told\"}").await
}

#[tokio::test]
async fn a_throttle_holds_for_digests_as_well() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let (admin, api) = (stack.admin(), stack.producer());
    template(&stack, "digest", TEXT).await?;
    let throttled = json!({"name": "t", "event_type": "throttled", "template_name": "digest", "channels": ["in_app"],
        "digest": {"window_seconds": 1, "key": "data.n"}, "throttle": {"limit": 1, "window_seconds": 3600}});
    rule(&admin, &throttled).await?;
    for n in 0..3 {
        event(&api, "throttled", "gil", json!({"n": n})).await?;
    }
    let suppressed = "SELECT count(*) FROM deliveries WHERE reason = 'throttled' AND state = 'suppressed'";
    until_count(&stack, "two are suppressed", suppressed, 2).await?;
    eventually("one is sent", SOON, || async {
        inbox(&api, "gil").await.ok().filter(|texts| texts.len() == 1).map(drop)
    })
    .await
}

#[tokio::test]
async fn a_sliding_window_is_prolonged_by_each_event_and_has_a_maximum() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let (admin, api) = (stack.admin(), stack.producer());
    template(&stack, "digest", TEXT).await?;
    rule(&admin, &gathering("slide", json!({"window_seconds": 1000, "max_window_seconds": 1500}))).await?;
    let length = "SELECT round(extract(epoch FROM closes_at - opened_at))::int8 FROM digests WHERE state = 'open'";
    event(&api, "slide", "ada", json!({"n": 1})).await?;
    assert_eq!(stack.count(length).await?, 1000);
    // Each event keeps it open for as long again; only the maximum ends that.
    pass(&stack, 300).await?;
    event(&api, "slide", "ada", json!({"n": 2})).await?;
    let prolonged = stack.count(length).await?;
    assert!((1300..1500).contains(&prolonged), "{prolonged}");
    pass(&stack, 400).await?;
    event(&api, "slide", "ada", json!({"n": 3})).await?;
    assert_eq!(stack.count(length).await?, 1500);
    let dry = api.post("/api/events/dry-run", &json!({"type": "slide", "user_id": "ada"})).await?.ok()?;
    assert_eq!((&dry["rules"][0]["digest"]["opens"], &dry["rules"][0]["digest"]["items"]), (&json!(false), &json!(3)));
    assert!(inbox(&api, "ada").await?.is_empty());
    // Not a thousand seconds after its last event, and over all the same.
    pass(&stack, 800).await?;
    until_inbox(&api, "ada", &["3: 1 2 3"]).await?;
    // The events since are in the next window, none is lost.
    event(&api, "slide", "ada", json!({"n": 4})).await?;
    assert_eq!(stack.count(length).await?, 1000);
    close_now(&stack).await?;
    until_inbox(&api, "ada", &["3: 1 2 3", "1: 4"]).await
}

#[tokio::test]
async fn a_schedule_goes_by_the_clock_of_the_person_and_follows_whoever_moves() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let (admin, api) = (stack.admin(), stack.producer());
    template(&stack, "digest", TEXT).await?;
    person(&stack, "ada", &json!({"time_zone": "Asia/Tokyo"})).await?;
    person(&stack, "cy", &json!({"time_zone": "America/Los_Angeles"})).await?;
    // Half an hour from now it is not that minute of any hour in any of these zones: no window closes while this looks on.
    let minute = (stack_now(&stack).await?.minute() + 30) % 60;
    let (cron, morning) = (format!("{minute} 8 * * *"), format!("08:{minute:02}"));
    rule(&admin, &gathering("daily", json!({"cron": cron, "window_seconds": 60}))).await?;
    for user in ["ada", "bob", "cy"] {
        event(&api, "daily", user, json!({"n": 1})).await?;
    }
    let closes = async |user: &str| {
        moment(&stack, &format!("SELECT closes_at FROM digests WHERE user_id = '{user}' AND state = 'open'")).await
    };
    let local = |at: DateTime<Utc>, zone: &str| {
        at.with_timezone(&zone.parse::<chrono_tz::Tz>().unwrap()).format("%H:%M").to_string()
    };
    assert_eq!(local(closes("ada").await?, "Asia/Tokyo"), morning);
    assert_eq!(local(closes("bob").await?, "UTC"), morning);
    assert_eq!(local(closes("cy").await?, "America/Los_Angeles"), morning);

    // A person who moves while the window is open: the window notices when it would close.
    person(&stack, "ada", &json!({"time_zone": "Europe/Lisbon"})).await?;
    let sql = stack.sql().await?;
    sql.execute("UPDATE digests SET closes_at = now() WHERE user_id = 'ada'", &[]).await?;
    let moved = eventually("the window follows", SOON, || async {
        let at = closes("ada").await.ok()?;
        (local(at, "Europe/Lisbon") == morning).then_some(at)
    })
    .await?;
    assert!(moved - stack_now(&stack).await? <= TimeDelta::hours(25));
    assert!(inbox(&api, "ada").await?.is_empty());
    // A day later.
    sql.execute(
        "UPDATE digests SET opened_at = opened_at - interval '2 days', closes_at = now() WHERE user_id = 'ada'",
        &[],
    )
    .await?;
    until_inbox(&api, "ada", &["1: 1"]).await?;

    // A schedule that comes soon, all the way.
    rule(&admin, &gathering("soon", json!({"cron": "*/2 * * * * *"}))).await?;
    for n in 0..3 {
        event(&api, "soon", "dan", json!({"n": n})).await?;
    }
    eventually("all of them are sent", SOON, || async {
        let texts = inbox(&api, "dan").await.ok()?;
        let sum: i64 = texts.iter().filter_map(|text| text.split(':').next()?.parse::<i64>().ok()).sum();
        (sum == 3).then_some(())
    })
    .await
}

async fn stack_now(stack: &Stack) -> Result<DateTime<Utc>> {
    moment(stack, "SELECT now()").await
}

#[tokio::test]
async fn what_no_rule_or_template_tells_any_more_is_dropped_or_waits_and_both_show() -> Result<()> {
    let stack = Stack::patient(&[]).await?;
    let (admin, api) = (stack.admin(), stack.producer());
    template(&stack, "digest", "{{count}} {{user.id}}").await?;
    let open = json!({"window_seconds": 86400});
    let removed = rule(&admin, &gathering("removed", open.clone())).await?;
    let off = rule(&admin, &gathering("off", open.clone())).await?;
    rule(&admin, &gathering("unsaid", open.clone())).await?;
    rule(&admin, &gathering("newer", open.clone())).await?;
    for (event_type, user) in [("removed", "ada"), ("off", "bob"), ("unsaid", "cy"), ("newer", "dan")] {
        event(&api, event_type, user, json!({"n": 1})).await?;
    }
    admin.request(Method::DELETE, &format!("/api/rules/{removed}"), &[], None).await?;
    change(&admin, &off, &json!({"active": false})).await?;
    let sql = stack.sql().await?;
    sql.execute("UPDATE templates SET parts = '{\"default\": {\"message\": \"{{gone}}\"}}'", &[]).await?;
    // As a newer version writes it.
    let newer = "UPDATE rules SET definition = definition || '{\"from_the_future\": 1}' WHERE name = 'newer'";
    sql.execute(newer, &[]).await?;
    // A copy of what the tenant manages is a second old at most.
    let is_broken = async |wanted: bool| {
        let dry = api.post("/api/events/dry-run", &json!({"type": "unsaid", "user_id": "cy"})).await.ok()?.ok().ok()?;
        (dry["rules"].as_array()?.iter().any(|rule| rule["error"]["field"] == "gone") == wanted).then_some(())
    };
    eventually("the change is noticed", SOON, || is_broken(true)).await?;
    sql.execute("UPDATE digests SET closes_at = now() + interval '1 second' WHERE state = 'open'", &[]).await?;
    let dropped =
        "SELECT count(*) FROM digests WHERE state = 'closed' AND message_id IS NULL AND user_id IN ('ada', 'bob')";
    until_count(&stack, "two are dropped", dropped, 2).await?;
    let waits = |user: &str| {
        format!(
            "SELECT count(*) FROM digests WHERE state = 'open' AND user_id = '{user}' AND closes_at > now() + interval '30 seconds'"
        )
    };
    until_count(&stack, "one waits for its template", &waits("cy"), 1).await?;
    until_count(&stack, "one waits for a scheduler that can read its rule", &waits("dan"), 1).await?;
    stack.until_measured("all", &["posthaste_digests_closed_total{end=\"dropped\"} 2"]).await?;
    eventually("the log says so", SOON, || async {
        stack.logs().ok()?.contains("a window cannot be told").then_some(())
    })
    .await?;
    assert_eq!(stack.count("SELECT count(*) FROM messages").await?, 0);
    // The template is mended.
    sql.execute("UPDATE templates SET parts = '{\"default\": {\"message\": \"{{count}} after all\"}}'", &[]).await?;
    sql.execute("UPDATE rules SET definition = definition - 'from_the_future'", &[]).await?;
    eventually("the change is noticed", SOON, || is_broken(false)).await?;
    sql.execute("UPDATE digests SET closes_at = now() + interval '1 second' WHERE state = 'open'", &[]).await?;
    until_inbox(&api, "cy", &["1 after all"]).await?;
    until_inbox(&api, "dan", &["1 after all"]).await
}

#[tokio::test]
async fn invariant_l_k_two_schedulers_that_die_at_any_point_tell_each_window_once_and_lose_none() -> Result<()> {
    let mut stack = Stack::patient_apart(1).await?;
    stack.kill9("scheduler")?;
    let (admin, api) = (stack.admin(), stack.producer());
    template(&stack, "digest", TEXT).await?;
    rule(&admin, &gathering("x", json!({"window_seconds": 1}))).await?;
    let users: Vec<String> = (0..120).map(|n| format!("user{n}")).collect();
    let (mut sent, mut n) = (BTreeMap::<String, usize>::new(), 0);
    let mut round = async |stack: &Stack| -> Result<()> {
        let api = stack.producer();
        for part in users.chunks(20) {
            n += 1;
            let events = part.iter().map(|user| event(&api, "x", user, json!({"n": n})));
            futures_util::future::try_join_all(events).await?;
            part.iter().for_each(|user| *sent.entry(user.clone()).or_default() += 1);
        }
        Ok(())
    };
    for point in ["before_close:1", "after_close:1", "before_close:3", "before_publish:2", "after_close:2"] {
        round(&stack).await?;
        for name in ["doomed", "twin"] {
            stack.spawn(name, Role::Scheduler, &[("POSTHASTE_ABORT_AT", point)])?;
        }
        // Events come while windows close.
        while stack.ended("doomed", Duration::ZERO).await.is_err() {
            round(&stack).await?;
        }
        stack.kill9("twin")?;
    }
    stack.launch("scheduler", Role::Scheduler, &[]).await?;
    stack.launch("second", Role::Scheduler, &[]).await?;
    let open = "SELECT count(*) FROM digests WHERE state <> 'closed'";
    eventually("all windows close", LONG, || async { (stack.count(open).await.ok()? == 0).then_some(()) }).await?;
    let busy = "SELECT count(*) FROM deliveries WHERE state <> 'delivered'";
    eventually("all is delivered", LONG, || async { (stack.count(busy).await.ok()? == 0).then_some(()) }).await?;
    let windows = stack.count("SELECT count(*) FROM digests").await?;
    assert_eq!(stack.count("SELECT count(DISTINCT message_id) FROM digests").await?, windows);
    assert_eq!(stack.count("SELECT count(*) FROM messages WHERE source = 'digest'").await?, windows);
    assert_eq!(stack.count("SELECT count(*) FROM digest_items").await?, 0);
    for user in &users {
        let mut told: Vec<usize> = Vec::new();
        for text in inbox(&api, user).await? {
            let (count, items) = text.split_once(':').context("a digest")?;
            let items: Vec<usize> = items.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
            assert_eq!(count, items.len().to_string());
            assert!(items.is_sorted(), "{text}");
            told.extend(items);
        }
        told.sort_unstable();
        let all = told.len();
        told.dedup();
        assert_eq!((told.len(), all), (sent[user], sent[user]), "{user}: each event once");
    }
    Ok(())
}

#[tokio::test]
async fn what_gathers_is_sealed_written_anew_with_a_new_key_and_kept_no_longer_than_the_rest() -> Result<()> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let key = |byte: u8| STANDARD.encode([byte; 32]);
    let mut stack = Stack::start_with(&[("POSTHASTE_ENCRYPTION_KEY", &key(1))]).await?;
    let (admin, api) = (stack.admin(), stack.producer());
    template(&stack, "digest", "{{count}}:{{#each items}} {{this.secret}}{{/each}}").await?;
    rule(&admin, &gathering("x", json!({"window_seconds": 86400, "key": "data.secret"}))).await?;
    for _ in 0..2 {
        event(&api, "x", "ada", json!({"secret": "canary"})).await?;
    }
    let plain = "SELECT (SELECT count(*) FROM event_log WHERE position('canary'::bytea IN data) > 0)
        + (SELECT count(*) FROM digest_items WHERE position('canary'::bytea IN data) > 0) + (SELECT count(*) FROM digests WHERE key LIKE '%canary%')";
    assert_eq!(stack.count(plain).await?, 0);
    let heads = |table: &str| format!("SELECT count(DISTINCT substr(data, 1, 8)) FROM {table}");
    stack.set("POSTHASTE_ENCRYPTION_KEY", Some(&key(2)));
    stack.set("POSTHASTE_ENCRYPTION_KEY_PREVIOUS", Some(&key(1)));
    stack.kill9("all")?;
    stack.launch("all", Role::All, &[]).await?;
    event(&stack.producer(), "x", "ada", json!({"secret": "canary"})).await?;
    assert_eq!(stack.count(&heads("digest_items")).await?, 2, "two keys");
    stack.cli(&["rotate-keys"])?;
    assert_eq!((stack.count(&heads("digest_items")).await?, stack.count(&heads("event_log")).await?), (1, 1));
    stack.sql().await?.execute("UPDATE digests SET closes_at = now()", &[]).await?;
    until_inbox(&stack.producer(), "ada", &["3: canary canary canary"]).await?;

    // Old events go with everything else that is old; closed windows and throttles by themselves.
    stack.sql().await?.execute("UPDATE event_log SET created_at = now() - interval '9 days'", &[]).await?;
    stack.cli(&["retention", "set", "--tenant", "acme", "--days", "7"])?;
    stack.cli(&["retention", "run"])?;
    assert_eq!(stack.count("SELECT count(*) FROM event_log").await?, 0);
    let sql = stack.sql().await?;
    sql.batch_execute("UPDATE digests SET closes_at = now() - interval '8 days';
        INSERT INTO throttles VALUES (gen_random_uuid(), 1, 'ada', '{}', 1, 1, gen_random_uuid(), now() - interval '1 second')").await?;
    stack.kill9("all")?;
    stack.launch("all", Role::All, &[]).await?;
    until_count(
        &stack,
        "both are forgotten",
        "SELECT (SELECT count(*) FROM digests) + (SELECT count(*) FROM throttles)",
        0,
    )
    .await
}
