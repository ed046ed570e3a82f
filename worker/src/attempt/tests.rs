use domain::{
    Address, Channel, Lane, MessageId, QuietHours, Receipt, Schedule,
    contract::provider::{Asking, Sending},
    retry::AmbiguousPolicy,
    suppression::SuppressionScope,
};

use super::*;

/// A webhook secret of the right form.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The stub provider's reaction to a call.
enum Act {
    Answer(Outcome),
    Panic,
    Hang,
}

struct Stub(ProviderName, Act);

impl Provider for Stub {
    fn name(&self) -> ProviderName {
        self.0
    }

    fn send<'a>(&'a self, _: &'a Order) -> Sending<'a> {
        match &self.1 {
            Act::Answer(outcome) => Box::pin(std::future::ready(outcome.clone())),
            Act::Panic => panic!("on purpose"),
            Act::Hang => Box::pin(std::future::pending()),
        }
    }
}

fn context(provider: Option<Act>) -> ChannelContext {
    context_with(provider.into_iter().map(|act| (ProviderName::Sandbox, act)).collect())
}

fn context_with(acts: Vec<(ProviderName, Act)>) -> ChannelContext {
    let stub = |(name, act)| -> Arc<dyn Provider> { Arc::new(Stub(name, act)) };
    let providers: Vec<_> = acts.into_iter().map(stub).collect();
    ChannelContext {
        route: Route { channel: Channel::Sms, lane: Lane::Normal },
        providers: providers.into(),
        policy: RetryPolicy {
            max_attempts: 3,
            schedule: Schedule::Exponential { base: Duration::from_secs(10), max: Duration::from_secs(60) },
            ambiguous: AmbiguousPolicy::Resend,
            wait_max: Duration::from_secs(24 * 3600),
        },
        timeout: Duration::from_millis(50),
        lease_margin: Duration::from_secs(3600),
        breakers: None,
        secrets: None,
        tracking: None,
        unsubscribe_links: None,
        cut_short: CancellationToken::new(),
    }
}

fn claim(attempts: u16) -> Claim {
    Claim {
        delivery: DeliveryId::generate(),
        run: i32::from(attempts),
        message: MessageId::generate(),
        tenant: TenantId(1),
        line: None,
        recipient: Address::new("+15550001234"),
        tries: Tries { attempts, ..Tries::default() },
        round: FailoverRound::NEW,
        waiting_since: None,
        suppressed: Vec::new(),
        user_id: None,
        policy: None,
        content: br#"{"message":"hello"}"#.to_vec(),
        accepted_at: clock::now(),
        expires_at: None,
        request_id: None,
        traceparent: None,
    }
}

fn fault() -> Fault {
    Fault::new("500", "no")
}

async fn attempted(act: Act, claim: Claim) -> Event {
    attempt(&context(Some(act)), claim, Instant::now()).await
}

fn unknown_code(event: &Event) -> Option<&str> {
    let attempt = event.attempt.as_ref()?;
    assert_eq!((event.kind, attempt.outcome), (EventKind::Ambiguous, OutcomeClass::Unknown));
    attempt.code.as_deref()
}

#[tokio::test]
async fn an_attempt_is_recorded_with_what_the_provider_said() {
    let receipt = Receipt { provider_ref: Some("SM1".to_owned()), code: Some("201".to_owned()), ..Receipt::default() };
    let claim = claim(1);
    let event = attempted(Act::Answer(Outcome::Sent(receipt)), claim.clone()).await;
    assert_eq!((event.delivery, event.run, event.tenant), (claim.delivery, claim.run, claim.tenant));
    assert_eq!((event.kind, event.state, event.spent, event.crash), (EventKind::Sent, State::Sent, true, false));
    let attempt = event.attempt.unwrap();
    assert_eq!((attempt.provider, attempt.outcome), (ProviderName::Sandbox, OutcomeClass::Sent));
    assert_eq!((attempt.code.as_deref(), attempt.provider_ref.as_deref()), (Some("201"), Some("SM1")));
}

#[tokio::test]
async fn a_failure_is_retried_later_and_the_last_one_is_a_dead_letter() {
    let failed = || Act::Answer(Outcome::Transient(fault(), None));
    let first = attempted(failed(), claim(1)).await;
    assert_eq!((first.kind, first.state, first.dead), (EventKind::Retrying, State::Retrying, None));
    assert!((10_000..=11_000).contains(&first.delay_ms.unwrap()), "{:?}", first.delay_ms);
    assert_eq!(first.attempt.unwrap().detail.as_deref(), Some("no"));
    let last = attempted(failed(), claim(3)).await;
    assert_eq!((last.state, last.dead), (State::Dead, Some(DeadReason::AttemptsExhausted)));
}

#[tokio::test]
async fn a_provider_that_panics_leaves_an_unknown_outcome() {
    assert_eq!(unknown_code(&attempted(Act::Panic, claim(1)).await), Some("panic"));
}

#[tokio::test]
async fn a_provider_that_hangs_is_cut_short_with_an_unknown_outcome() {
    assert_eq!(unknown_code(&attempted(Act::Hang, claim(1)).await), Some("timeout"));
}

#[test]
fn a_claim_that_is_given_back_has_made_no_call_and_spent_nothing() {
    let claim = claim(2);
    let event = give_back(&context(Some(Act::Hang)), &claim);
    assert_eq!((event.delivery, event.run, event.state), (claim.delivery, claim.run, State::Retrying));
    assert_eq!((event.attempt, event.spent, event.crash, event.dead), (None, false, false, None));
}

#[tokio::test]
async fn a_process_in_a_hurry_cuts_its_provider_short_and_calls_no_other() {
    let patient = ChannelContext { timeout: Duration::from_secs(3600), ..context(Some(Act::Hang)) };
    let (event, ()) = tokio::join!(attempt(&patient, claim(1), Instant::now()), async { patient.cut_short.cancel() });
    assert_eq!(unknown_code(&event), Some("shutdown"));
    let event = attempt(&patient, claim(1), Instant::now()).await;
    assert_eq!((event.state, event.attempt, event.spent), (State::Retrying, None, false));
}

/// Its gate waits until the process must end.
struct SlowGate(CancellationToken);

impl Provider for SlowGate {
    fn name(&self) -> ProviderName {
        ProviderName::Sandbox
    }

    fn gate<'a>(&'a self, _: &'a Order) -> Asking<'a> {
        self.0.cancel();
        Box::pin(std::future::pending())
    }

    fn send<'a>(&'a self, _: &'a Order) -> Sending<'a> {
        panic!("a call begins after the shutdown did")
    }
}

#[tokio::test]
async fn no_call_begins_once_a_gate_was_cut_short() {
    let context = context(None);
    let providers: Vec<Arc<dyn Provider>> = vec![Arc::new(SlowGate(context.cut_short.clone()))];
    let context = ChannelContext { providers: providers.into(), ..context };
    let event = attempt(&context, claim(1), Instant::now()).await;
    assert_eq!((event.state, event.attempt, event.spent), (State::Retrying, None, false));
}

#[tokio::test]
async fn looks_that_call_nobody_end_a_delivery_by_the_time_waited_and_not_by_their_number() {
    let context = context(Some(Act::Panic));
    let long_ago = Instant::now().checked_sub(context.lease_margin).unwrap();
    let look = async |hours| {
        let waiting_since = Some(clock::now() - chrono::TimeDelta::hours(hours));
        let tries = Tries { attempts: 1, deferrals: 1000, crashes: 0 };
        attempt(&context, Claim { waiting_since, tries, ..claim(1) }, long_ago).await
    };
    assert_eq!(look(23).await.state, State::Retrying);
    assert_eq!(look(25).await.dead, Some(DeadReason::AttemptsExhausted));
}

#[tokio::test]
async fn a_claim_that_could_end_before_the_answer_is_not_used() {
    let context = context(Some(Act::Panic));
    let long_ago = Instant::now().checked_sub(context.lease_margin).unwrap();
    let event = attempt(&context, claim(1), long_ago).await;
    assert_eq!((event.state, event.attempt, event.spent), (State::Retrying, None, false));
}

#[tokio::test]
async fn an_expired_message_is_not_sent() {
    let past = clock::now() - chrono::TimeDelta::seconds(1);
    let event = attempted(Act::Panic, Claim { expires_at: Some(past), ..claim(1) }).await;
    assert_eq!(
        (event.kind, event.state, event.attempt, event.spent),
        (EventKind::Expired, State::Expired, None, false)
    );
}

#[tokio::test]
async fn a_retry_after_the_expiry_is_not_planned() {
    // The provider asks for a retry a day later.
    let wait = Some(Duration::from_secs(24 * 3600));
    let soon = clock::now() + chrono::TimeDelta::hours(1);
    let claim = Claim { expires_at: Some(soon), ..claim(1) };
    let event = attempted(Act::Answer(Outcome::Transient(fault(), wait)), claim).await;
    assert_eq!((event.kind, event.state, event.delay_ms), (EventKind::Expired, State::Expired, None));
    assert!(event.attempt.is_some());
}

#[tokio::test]
async fn a_channel_that_is_not_set_up_makes_a_dead_letter_without_an_attempt() {
    let event = attempt(&context(None), claim(1), Instant::now()).await;
    assert_eq!((event.state, event.dead, event.attempt), (State::Dead, Some(DeadReason::Misconfigured), None));
    assert!(SkipReason::NoProvider.detail(&context(None)).contains("SMS_BACKEND"));
}

#[tokio::test]
async fn content_that_cannot_be_read_makes_a_dead_letter_without_an_attempt() {
    let event = attempted(Act::Panic, Claim { content: b"{".to_vec(), ..claim(1) }).await;
    assert_eq!((event.state, event.dead, event.attempt), (State::Dead, Some(DeadReason::Schema), None));
}

#[tokio::test]
async fn content_of_a_newer_version_waits_for_a_newer_worker_and_spends_no_attempt() {
    for newer in
        [r#"{"message":"x","withheld":"from_the_future"}"#, r#"{"message":"x","send_window":{"days":["someday"]}}"#]
    {
        let event = attempted(Act::Panic, Claim { content: newer.as_bytes().to_vec(), ..claim(1) }).await;
        let said = (event.state, event.dead, event.attempt, event.spent);
        assert_eq!(said, (State::Retrying, None, None, false), "{newer}");
        assert!(event.delay_ms >= Some(60_000), "{newer}: {:?}", event.delay_ms);
    }
}

#[tokio::test]
async fn a_failure_goes_to_the_next_provider_at_once_and_the_pause_comes_after_the_last() {
    let failed = || Act::Answer(Outcome::Transient(fault(), None));
    let both = context_with(vec![(ProviderName::Twilio, failed()), (ProviderName::Sns, failed())]);
    let first = attempt(&both, claim(1), Instant::now()).await;
    assert_eq!((first.state, first.delay_ms), (State::Retrying, Some(0)));
    assert_eq!(first.attempt.unwrap().provider, ProviderName::Twilio);
    let second = attempt(&both, Claim { round: first.round, ..claim(2) }, Instant::now()).await;
    assert_eq!(second.attempt.as_ref().unwrap().provider, ProviderName::Sns);
    assert!((10_000..=11_000).contains(&second.delay_ms.unwrap()), "the first pause: {:?}", second.delay_ms);
    let third = attempt(&both, Claim { round: second.round, ..claim(3) }, Instant::now()).await;
    assert_eq!(third.attempt.as_ref().unwrap().provider, ProviderName::Twilio, "a new round begins with the first");
    assert_eq!(third.state, State::Retrying, "a round that has begun is finished, whatever the attempts");
    let last = attempt(&both, Claim { round: third.round, ..claim(4) }, Instant::now()).await;
    assert_eq!((last.state, last.dead), (State::Dead, Some(DeadReason::AttemptsExhausted)));
}

#[tokio::test]
async fn what_the_recipient_refuses_no_other_provider_is_asked() {
    let refused = Act::Answer(Outcome::Rejected(fault()));
    let both = context_with(vec![(ProviderName::Twilio, refused), (ProviderName::Sns, Act::Panic)]);
    assert_eq!(attempt(&both, claim(1), Instant::now()).await.state, State::Failed);
}

#[tokio::test]
async fn nothing_is_sent_to_a_suppressed_address() {
    let all = vec![(SuppressionScope::All, SuppressionReason::HardBounce)];
    let event = attempted(Act::Panic, Claim { suppressed: all, ..claim(1) }).await;
    assert_eq!((event.state, event.attempt, event.spent), (State::Suppressed, None, false));
    assert!(event.detail.unwrap().contains("hard_bounce"));
    let marketing = || vec![(SuppressionScope::Marketing, SuppressionReason::Complaint)];
    let other = Claim { suppressed: marketing(), ..claim(1) };
    assert_eq!(attempted(Act::Answer(Outcome::Sent(Receipt::default())), other).await.state, State::Sent);
    let content = br#"{"message":"x","category":"marketing"}"#.to_vec();
    let campaign = Claim { suppressed: marketing(), content, ..claim(1) };
    assert_eq!(attempted(Act::Panic, campaign).await.state, State::Suppressed);
    let by_class = br#"{"message":"x","category":"promo","class":"marketing"}"#.to_vec();
    let campaign = Claim { suppressed: marketing(), content: by_class, ..claim(1) };
    assert_eq!(attempted(Act::Panic, campaign).await.state, State::Suppressed);
    let news = vec![(SuppressionScope::of_category("news"), SuppressionReason::Unsubscribed)];
    let content = br#"{"message":"x","category":"news"}"#.to_vec();
    let letter = Claim { suppressed: news, content, ..claim(1) };
    let event = attempted(Act::Panic, letter).await;
    assert_eq!((event.state, event.reason), (State::Suppressed, Some(Reason::Unsubscribed)));
}

fn of_person(policy: RecipientPolicy, content: &str) -> Claim {
    let (user_id, content) = (Some("ada".to_owned()), content.as_bytes().to_vec());
    Claim { user_id, content, policy: Some(Arc::new(policy)), ..claim(1) }
}

#[tokio::test]
async fn what_its_person_does_not_want_is_not_sent() {
    let said = || RecipientPolicy {
        preferences: serde_json::from_str(r#"{"keys": {"news": {"enabled": false}}}"#).unwrap(),
        ..RecipientPolicy::default()
    };
    let event = attempted(Act::Panic, of_person(said(), r#"{"message":"x","category":"news"}"#)).await;
    assert_eq!(
        (event.state, event.reason, event.attempt, event.spent),
        (State::Suppressed, Some(Reason::Preference), None, false)
    );
    let sent = || Act::Answer(Outcome::Sent(Receipt::default()));
    for wanted in [r#"{"message":"x"}"#, r#"{"message":"x","category":"news","class":"essential"}"#] {
        assert_eq!(attempted(sent(), of_person(said(), wanted)).await.state, State::Sent, "{wanted}");
    }
    let opt_in = r#"{"message":"x","kind":"digest","opt_in":true}"#;
    let silent = Claim { policy: None, ..of_person(RecipientPolicy::default(), opt_in) };
    assert_eq!(attempted(Act::Panic, silent.clone()).await.reason, Some(Reason::Preference), "nobody said yes");
    assert_eq!(attempted(sent(), Claim { user_id: None, ..silent }).await.state, State::Sent, "nobody to ask");
}

#[tokio::test]
async fn in_quiet_hours_a_delivery_is_held_until_they_end_and_spends_nothing() {
    // Quiet all day except for two minutes that have just passed.
    let minute = u16::try_from(clock::now().timestamp() / 60 % 1440).unwrap();
    let quiet = QuietHours { start: (minute + 1438) % 1440, end: (minute + 1436) % 1440 };
    let policy = || RecipientPolicy { quiet: Some(quiet), ..RecipientPolicy::default() };
    let event = attempted(Act::Panic, of_person(policy(), r#"{"message":"x"}"#)).await;
    assert_eq!(
        (event.kind, event.state, event.reason),
        (EventKind::Scheduled, State::Scheduled, Some(Reason::QuietHours))
    );
    assert_eq!((event.attempt, event.spent), (None, false));
    let end = event.at + chrono::TimeDelta::milliseconds(event.delay_ms.unwrap());
    assert_eq!(end.timestamp_millis() % 60_000, 0, "the moment itself: {end}");
    assert_eq!(end.timestamp() / 60 % 1440, i64::from(quiet.end));
    let sent = Act::Answer(Outcome::Sent(Receipt::default()));
    let code = of_person(policy(), r#"{"message":"x","category":"security"}"#);
    assert_eq!(attempted(sent, code).await.state, State::Sent);
    let brief = Some(clock::now() + chrono::TimeDelta::minutes(30));
    let event = attempted(Act::Panic, Claim { expires_at: brief, ..of_person(policy(), r#"{"message":"x"}"#) }).await;
    assert_eq!((event.state, event.reason), (State::Expired, Some(Reason::QuietHours)), "it could never be sent");
}

#[tokio::test]
async fn outside_its_send_window_a_delivery_is_held_until_that_opens() {
    // The window opens in an hour and stays open for an hour.
    let minute = u16::try_from(clock::now().timestamp() / 60 % 1440).unwrap();
    let (from, to) = ((minute + 60) % 1440, (minute + 120) % 1440);
    let window = serde_json::json!({"days": domain::Day::ALL, "from": from, "to": to});
    let said = |category: &str, window: &serde_json::Value| {
        serde_json::json!({"message": "x", "category": category, "send_window": window}).to_string()
    };
    let nobody = Claim { user_id: None, policy: None, ..of_person(RecipientPolicy::default(), &said("news", &window)) };
    for claim in [of_person(RecipientPolicy::default(), &said("news", &window)), nobody] {
        let event = attempted(Act::Panic, claim).await;
        assert_eq!(
            (event.kind, event.state, event.reason, event.attempt.is_none(), event.spent),
            (EventKind::Scheduled, State::Scheduled, Some(Reason::SendWindow), true, false)
        );
        let opening = event.at + chrono::TimeDelta::milliseconds(event.delay_ms.unwrap());
        assert_eq!((opening.timestamp_millis() % 60_000, opening.timestamp() / 60 % 1440), (0, i64::from(from)));
    }
    let sent = || Act::Answer(Outcome::Sent(Receipt::default()));
    let open = serde_json::json!({"days": domain::Day::ALL, "from": (minute + 1380) % 1440, "to": to});
    for content in [said("security", &window), said("news", &open)] {
        assert_eq!(
            attempted(sent(), of_person(RecipientPolicy::default(), &content)).await.state,
            State::Sent,
            "{content}"
        );
    }
    let brief = Some(clock::now() + chrono::TimeDelta::minutes(30));
    let claim = Claim { expires_at: brief, ..of_person(RecipientPolicy::default(), &said("news", &window)) };
    let event = attempted(Act::Panic, claim).await;
    assert_eq!((event.state, event.reason), (State::Expired, Some(Reason::SendWindow)));
    // The quiet hours cover the whole window.
    let quiet = QuietHours { start: (minute + 30) % 1440, end: (minute + 150) % 1440 };
    let owl = RecipientPolicy { quiet: Some(quiet), ..RecipientPolicy::default() };
    let event = attempted(Act::Panic, of_person(owl, &said("news", &window))).await;
    assert_eq!((event.state, event.reason), (State::Suppressed, Some(Reason::SendWindow)));
}

#[tokio::test]
async fn a_strangers_words_are_bounded_and_fit_into_a_column() {
    let detail = format!("\0{}", "ä".repeat(DETAIL_BYTES_MAX));
    let event = attempted(Act::Answer(Outcome::Rejected(Fault::new("4\n00", detail))), claim(1)).await;
    let attempt = event.attempt.unwrap();
    assert_eq!(attempt.code.as_deref(), Some("400"));
    let detail = attempt.detail.unwrap();
    assert!(detail.len() <= DETAIL_BYTES_MAX && detail.chars().all(|c| c == 'ä'), "{}", detail.len());
}

#[test]
fn jitter_differs_between_deliveries_and_runs_and_stays_below_one() {
    let values: Vec<f64> = (0..100).map(|run| DeliveryRef::of(&Claim { run, ..claim(1) }).jitter()).collect();
    assert!(values.iter().all(|value| (0.0..1.0).contains(value)));
    assert!(values.iter().any(|value| *value < 0.25) && values.iter().any(|value| *value > 0.75), "{values:?}");
    let same = claim(1);
    assert_ne!(DeliveryRef::of(&same).jitter(), DeliveryRef::of(&Claim { run: 2, ..same }).jitter());
}

#[test]
fn the_secret_of_the_tests_has_the_form_of_a_real_one() {
    assert!(providers::webhook::standard_webhooks::sign(SECRET, "id", 0, b"").is_some());
}
