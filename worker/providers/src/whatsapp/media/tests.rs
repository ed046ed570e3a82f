use std::net::{IpAddr, Ipv4Addr};

use servers::sinks::http::{HttpSink, Reply};

use super::*;

const TENANT: TenantId = TenantId(1);

fn fetcher(guard: Guard) -> Fetcher {
    // Every name leads to this machine.
    let inward = Arc::new(|_| async { Ok(vec![(IpAddr::V4(Ipv4Addr::LOCALHOST), 0).into()]) }.boxed());
    Fetcher::new(GuardedResolver::asking(guard, inward), Duration::from_secs(30)).unwrap()
}

fn exempting() -> Fetcher {
    fetcher(Guard::new(vec!["127.0.0.0/8".parse().unwrap()]))
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn code(outcome: &Outcome) -> Option<&str> {
    outcome.fault().and_then(|fault| fault.code.as_deref())
}

fn reply(body: impl Into<Vec<u8>>) -> Reply {
    Reply::Status(200, Vec::new(), body.into())
}

#[tokio::test]
async fn a_file_is_fetched_once_for_all_who_need_it_also_after_a_redirect() {
    let (sink, fetcher) = (HttpSink::start_local().await.unwrap(), exempting());
    sink.reply_to("/old", Reply::status(302).with_header("Location", &sink.url("/a.png")));
    sink.reply_to("/a.png", reply("abc"));
    for _ in 0..3 {
        assert_eq!(&*fetcher.get(TENANT, &sink.url("/old"), later()).await.unwrap(), "YWJj");
    }
    assert_eq!((sink.requests_to("/old").len(), sink.requests_to("/a.png").len()), (1, 1));
}

#[tokio::test]
async fn what_the_guard_refuses_is_not_called_by_address_by_name_or_by_redirect() {
    let sink = HttpSink::start_local().await.unwrap();
    let named = format!("http://files.example:{}/secret", sink.address().port());
    for url in [sink.url("/secret"), named] {
        let outcome = fetcher(Guard::default()).get(TENANT, &url, later()).await.unwrap_err();
        assert!(matches!(outcome, Outcome::Rejected(_)), "{url}");
        assert_eq!(code(&outcome), Some("target_not_allowed"), "{url}");
    }
    assert_eq!(sink.connections(), 0);
    sink.reply_to("/to-inside", Reply::status(307).with_header("Location", "http://10.1.2.3/latest/meta-data"));
    let outcome = exempting().get(TENANT, &sink.url("/to-inside"), later()).await.unwrap_err();
    assert_eq!((code(&outcome), outcome.class().as_str()), (Some("target_not_allowed"), "rejected"));
}

#[tokio::test]
async fn a_file_that_cannot_be_had_is_a_refusal_or_a_reason_to_come_back() {
    let (sink, fetcher) = (HttpSink::start_local().await.unwrap(), exempting());
    sink.reply_to("/large", reply(vec![0; ATTACHMENTS_BYTES_MAX + 1]));
    sink.reply_to("/gone", Reply::status(404));
    sink.reply_to("/round", Reply::status(302).with_header("Location", "/round"));
    sink.reply_to("/busy", Reply::status(503).with_header("Retry-After", "7"));
    sink.reply_to("/broken", Reply::CloseAfterBody);
    for (path, class) in [
        ("/large", "rejected"),
        ("/gone", "rejected"),
        ("/round", "rejected"),
        ("/busy", "transient"),
        ("/broken", "transient"),
    ] {
        let outcome = fetcher.get(TENANT, &sink.url(path), later()).await.unwrap_err();
        assert_eq!(outcome.class().as_str(), class, "{path}: {outcome:?}");
        assert!(path != "/busy" || matches!(outcome, Outcome::Transient(_, Some(wait)) if wait.as_secs() == 7));
    }
}

#[tokio::test]
async fn a_slow_file_goes_on_coming_when_its_attempt_gives_up_and_takes_no_place_from_other_tenants() {
    let (sink, fetcher) = (HttpSink::start_local().await.unwrap(), exempting());
    sink.reply_to("/slow", reply("abc").after(Duration::from_millis(300)));
    let first = fetcher.get(TENANT, &sink.url("/slow"), Instant::now()).await.unwrap_err();
    assert!(matches!(&first, Outcome::Throttled(_, Some(_))), "{first:?}");
    assert_eq!(&*fetcher.get(TENANT, &sink.url("/slow"), later()).await.unwrap(), "YWJj");
    assert_eq!(sink.requests_to("/slow").len(), 1);

    sink.reply_to("/hang*", reply("abc").stalled());
    for n in 0..FETCHES_OF_TENANT_MAX {
        assert!(fetcher.get(TENANT, &sink.url(&format!("/hang{n}")), Instant::now()).await.is_err());
    }
    sink.reply_to("/fine", reply("abc"));
    let crowded = fetcher.get(TENANT, &sink.url("/fine"), later()).await.unwrap_err();
    assert_eq!(code(&crowded), Some("media_pending"));
    assert_eq!(&*fetcher.get(TenantId(2), &sink.url("/fine"), later()).await.unwrap(), "YWJj");
}

#[tokio::test]
async fn a_tenant_with_many_files_pushes_out_its_own_and_not_those_of_others() {
    let file = |started_at: Instant, bytes: usize| {
        let fetched: Fetched = Ok("x".repeat(bytes).into());
        (started_at, async { fetched }.boxed().shared())
    };
    let (now, mut files) = (Instant::now(), HashMap::new());
    let mut keep = |tenant: i32, name: &str, seconds_ago: u64, bytes: usize| {
        let (started_at, fetched) = file(now - Duration::from_secs(seconds_ago), bytes);
        assert!(fetched.clone().now_or_never().is_some());
        files.insert((TenantId(tenant), name.to_owned()), File { started_at, fetched });
    };
    keep(1, "old and small", 30, 1024);
    for n in 0..5 {
        keep(2, &format!("large{n}"), 20 - n, CACHE_BYTES_MAX / 4);
    }
    evict_old(&mut files);
    let mut left: Vec<&str> = files.keys().map(|(_, name)| name.as_str()).collect();
    left.sort_unstable();
    assert_eq!(left, ["large2", "large3", "large4", "old and small"]);
}
