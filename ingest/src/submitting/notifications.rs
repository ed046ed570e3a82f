//! Submits one message, or a test notification to the caller.

use actix_web::{HttpRequest, HttpResponse, web::Data};
use domain::{Channel, contract::submission::Submission, token::Role};
use serde::Deserialize;
use submission::{
    Submissions,
    envelope::{SendAnswer, to_json},
    http::{origin, submit_message},
    idempotency::{self, Kind},
    openapi::SendBody,
};
use utoipa::ToSchema;
use web::{
    auth::{Anyone, Identity, Producer},
    body::{JsonBody, SUBMISSION},
    observe::Trace,
    problem::{Code, Problem},
};

/// Sends one message.
///
/// The answer is a promise: with the `202` the message is committed to disk, and it will end as delivered, failed,
/// dead, suppressed, cancelled or expired, even if processes crash. Give an `Idempotency-Key` to be able to repeat the
/// request safely: the same key with the same body gives the first answer again (`Idempotent-Replayed: true`), with
/// another body 422. Keys are kept for 72 hours and shared with AMQP.
///
/// Without a `recipient` it goes to the known addresses of the person `user_id`: their e-mail address, their phone,
/// each of their devices. If none is known the delivery ends `failed` with `reason` `no_address`.
///
/// Roles: producer, admin.
#[utoipa::path(post, path = "/api/notifications/send", tag = "submitting",
    request_body(content = SendBody, examples(
        ("webhook" = (summary = "Webhook", value = json!({"channel": "webhook", "recipient": "https://example.com/hook", "data": {"order": 42}}))),
        ("email" = (summary = "E-mail", value = json!({"user_id": "user123", "channel": "email", "recipient": "user@example.com",
            "title": "Welcome to NEXUS", "message": "Thank you for joining our platform!", "category": "onboarding", "priority": "normal"}))),
        ("sms" = (summary = "Text message", value = json!({"user_id": "user123", "channel": "sms", "recipient": "+1234567890",
            "message": "Your verification code is: 123456", "category": "security", "priority": "high"}))),
        ("in_app" = (summary = "In-app, later", value = json!({"channel": "in_app", "recipient": "user123", "title": "Task completed",
            "message": "Your export is ready", "data": {"action_url": "/downloads/1"}, "scheduled_at": "2030-01-31T09:00:00Z"}))))),
    responses((status = 202, description = "Accepted: committed to disk", body = SendAnswer,
        headers(("Idempotent-Replayed" = String, description = "`true` when this is the first answer given again")))))]
pub async fn send(
    producer: Producer,
    trace: Trace,
    submissions: Data<Submissions>,
    request: HttpRequest,
    body: JsonBody<SUBMISSION>,
) -> Result<HttpResponse, Problem> {
    let bytes = body.read().await?;
    let mut submission = Submission::parse(&bytes).map_err(Problem::malformed)?;
    let key = idempotency::key(request.headers(), submission.idempotency_key.take())?;
    let draft = submission.check(&submissions.web.rules()).map_err(Problem::validation)?;
    submit_message(&submissions, draft, origin(&producer.0, trace, key, Kind::Send, &bytes)).await
}

/// The body of `test`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TestBody {
    /// The channel; default `in_app`.
    #[schema(example = "in_app")]
    pub channel: Option<String>,
    /// The recipient; required for any channel except `in_app`, and only for producers and admins.
    pub recipient: Option<String>,
}

/// Sends a test notification to the caller.
///
/// Without a body it goes to the caller's own inbox: to the `sub` of a token, or the id of an API key. Producers and
/// admins may name another channel and a recipient.
///
/// Roles: any.
#[utoipa::path(post, path = "/api/notifications/test", tag = "submitting",
    request_body(content = Option<TestBody>, example = json!({"channel": "in_app"})),
    responses((status = 202, description = "Accepted", body = SendAnswer)))]
pub async fn test(
    caller: Anyone,
    trace: Trace,
    submissions: Data<Submissions>,
    request: HttpRequest,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    let asked: TestBody = body.parse_or_default().await?;
    let key = idempotency::key(request.headers(), None)?;
    let submission = test_submission(&caller.0, asked)?;
    let meant = to_json(&(submission.channel.as_deref(), submission.recipient.as_deref()));
    let draft = submission.check(&submissions.web.rules()).map_err(Problem::validation)?;
    submit_message(&submissions, draft, origin(&caller.0, trace, key, Kind::Test, &meant)).await
}

fn test_submission(caller: &Identity, asked: TestBody) -> Result<Submission, Problem> {
    let channel = asked.channel.unwrap_or_else(|| Channel::InApp.to_string());
    let is_own = asked.recipient.as_deref().is_none_or(|recipient| recipient == caller.subject);
    let is_in_app = channel.parse() == Ok(Channel::InApp);
    let may_submit = matches!(caller.role, Role::Producer | Role::Admin);
    if !(may_submit || is_in_app && is_own) {
        return Err(Problem::new(
            Code::Forbidden,
            "Leave out `channel` and `recipient`: this role tests its own inbox.",
        ));
    }
    let recipient = asked.recipient.or_else(|| is_in_app.then(|| caller.subject.clone()));
    Ok(Submission {
        channel: Some(channel),
        recipient,
        title: Some("Test notification".to_owned()),
        message: Some("If you can read this, it works.".to_owned()),
        category: Some("test".to_owned()),
        kind: Some("test".to_owned()),
        ..Submission::default()
    })
}

#[cfg(test)]
mod tests {
    use domain::TenantId;

    use super::*;

    fn caller(role: Role) -> Identity {
        Identity { tenant: TenantId(1), role, subject: "ada".to_owned(), via: None }
    }

    fn asked(channel: Option<&str>, recipient: Option<&str>) -> TestBody {
        TestBody { channel: channel.map(str::to_owned), recipient: recipient.map(str::to_owned) }
    }

    #[test]
    fn a_test_goes_to_the_inbox_of_whoever_asks() {
        let submission = test_submission(&caller(Role::User), asked(None, None)).unwrap();
        assert_eq!((submission.channel.as_deref(), submission.recipient.as_deref()), (Some("in_app"), Some("ada")));
    }

    #[test]
    fn only_who_may_submit_may_test_other_addresses() {
        for body in [asked(Some("email"), Some("eve@example.com")), asked(None, Some("eve"))] {
            let refused = test_submission(&caller(Role::User), body).unwrap_err();
            assert_eq!(refused.code(), Code::Forbidden);
        }
        assert!(test_submission(&caller(Role::Producer), asked(Some("email"), Some("eve@example.com"))).is_ok());
    }
}
