//! Measures what rules cost: events judged against 1,000 of them, and `POST /api/events` from end to end.
//! `cargo run --release -p posthaste-testkit --bin rules`, with PostgreSQL and RabbitMQ installed; programs are taken from
//! `target/release` if they are there.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use domain::{RuleDefinition, RuleIndex};
use serde_json::{Value, json};
use testkit::{Api, Role, Stack, TestServers, rules};

/// Rules of a tenant.
const RULES: usize = 1000;
/// How long each thing is measured.
const WATCH: Duration = Duration::from_secs(10);
/// Requests at once.
const CALLERS: usize = 64;

#[tokio::main]
async fn main() -> Result<()> {
    pure()?;
    let mut stack = Stack::prepare(TestServers::private("rules")?, &[]).await?;
    stack.launch("all", Role::All, &[]).await?;
    rules::template(&stack, "plain", "{{user.id}}: {{amount}}").await?;
    let admin = stack.admin();
    for n in 0..RULES {
        rules::rule(&admin, &rule(n)).await?;
    }
    let gathering = json!({"name": "g", "event_type": "gather", "template_name": "plain", "channels": ["in_app"],
        "digest": {"window_seconds": 86_400}});
    rules::rule(&admin, &gathering).await?;
    for (what, event_type, amount) in [
        ("no rule matches", "type7.made", 0),
        ("one message each", "type7.made", 1007),
        ("gathered for a digest", "gather", 1),
    ] {
        let rate = posted(&stack.producer(), event_type, amount).await?;
        println!("POST /api/events, {what}: {rate:.0} a second with {CALLERS} callers");
    }
    Ok(())
}

/// One of many: each type has ten rules, each with conditions of its own.
fn rule(n: usize) -> Value {
    json!({"name": format!("rule {n}"), "event_type": format!("type{}.{}", n / 10, if n % 10 == 9 { "*" } else { "made" }),
        "template_name": "plain", "channels": ["in_app"], "conditions": [
            {"field": "data.amount", "op": "eq", "value": 1000 + n / 10}, {"field": "data.place", "op": "eq", "value": n % 10}]})
}

fn event(amount: usize) -> Value {
    json!({"type": "type7.made", "user_id": "ada", "data": {"amount": amount, "place": 3, "items": [1, 2, 3]},
        "user": {"id": "ada", "attributes": {"tier": "gold"}}})
}

/// Judges events without anything around it, by the index and by every rule.
fn pure() -> Result<()> {
    let types: Vec<String> =
        (0..RULES).map(|n| rule(n)["event_type"].as_str().unwrap_or_default().to_owned()).collect();
    let definitions: Vec<RuleDefinition> = (0..RULES)
        .map(|n| {
            serde_json::from_value(
                json!({"template_name": "t", "channels": ["in_app"], "conditions": rule(n)["conditions"]}),
            )
        })
        .collect::<Result<_, _>>()?;
    let index = RuleIndex::new(types.iter().map(String::as_str));
    let event = event(1007);
    let judged = |places: &dyn Fn() -> Vec<usize>| {
        let (started, mut events) = (Instant::now(), 0_u32);
        while started.elapsed() < WATCH / 5 {
            for _ in 0..100 {
                let matched = places().into_iter().filter(|place| definitions[*place].unmet(&event).is_none()).count();
                assert_eq!(black_box(matched), 1);
            }
            events += 100;
        }
        f64::from(events) / started.elapsed().as_secs_f64()
    };
    let by_index = judged(&|| index.matching(black_box("type7.made")));
    println!("events judged against {RULES} rules: {by_index:.0} a second on one core");
    let same: Vec<&str> = types.iter().map(|_| "type7.made").collect();
    let crowded = RuleIndex::new(same);
    let all = judged(&|| crowded.matching(black_box("type7.made")));
    println!("the same where all {RULES} hear of one type: {all:.0} a second");
    Ok(())
}

async fn posted(api: &Api, event_type: &str, amount: usize) -> Result<f64> {
    let (count, started) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let callers = (0..CALLERS).map(|caller| {
        let (api, count, event_type) = (api.clone(), Arc::clone(&count), event_type.to_owned());
        tokio::spawn(async move {
            while started.elapsed() < WATCH {
                let user = format!("user{}", caller * 1000 + count.fetch_add(1, Ordering::Relaxed) % 1000);
                rules::event(&api, &event_type, &user, json!({"amount": amount, "place": 3})).await?;
            }
            Ok::<_, anyhow::Error>(())
        })
    });
    for caller in futures_util::future::join_all(callers).await {
        caller??;
    }
    Ok(count.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
}
