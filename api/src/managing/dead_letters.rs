//! Dead letters: reading them, and replaying or dropping many of them at once.

use actix_web::{HttpResponse, web::Data};
use deliveries::{
    Deliveries,
    letters::{DeadLetter, LetterAction, LetterFilter},
};
use domain::contract::submission::FieldError;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use web::{
    Web, audit,
    auth::{Admin, Identity},
    body::JsonBody,
    params::{self, Id, Params, Text},
    problem::Problem,
};

use crate::openapi::{DeadLetterBody, LetterFilterBody, ReplayStateBody};

/// Longest reason for a replay, in bytes: a sentence or two.
const REASON_BYTES_MAX: usize = 1000;
/// Letters a second: more than the scheduler could start.
const RATE_MAX: i32 = 100_000;
/// Most ids in a filter; more do not fit into a body.
const IDS_MAX: usize = 1500;

/// Selects dead letters. An absent parameter does not restrict.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// `open`, `replayed` or `dropped`, in any case.
    #[param(value_type = Option<String>, example = "open")]
    status: Option<Text>,
    /// The channel.
    #[param(value_type = Option<String>)]
    channel: Option<Text>,
    /// `schema`, `tenant`, `too_large`, `unroutable`, `poison`, `attempts_exhausted`, `misconfigured` or
    /// `expired_crashes`.
    #[param(value_type = Option<String>)]
    reason: Option<Text>,
    /// The message, or the AMQP `message_id`.
    #[param(value_type = Option<String>)]
    message_id: Option<Text>,
    /// The slug of a tenant, for operators.
    #[param(value_type = Option<String>)]
    tenant: Option<Text>,
    /// Stored at this time or later.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Text>,
    /// Stored before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Text>,
    /// Entries per page, 1 to 200; default 50.
    #[param(value_type = Option<u16>)]
    limit: Option<Text>,
    /// The `next_cursor` of the previous page.
    #[param(value_type = Option<String>)]
    cursor: Option<Text>,
}

/// The parameters of a list: filter, start, size.
type LetterPage = (LetterFilter, Option<Uuid>, i64);

impl ListQuery {
    fn read(self) -> Result<LetterPage, Problem> {
        let filter = LetterFilter {
            ids: None,
            status: params::word("status", self.status)?,
            channel: params::word("channel", self.channel)?,
            reason: params::word("reason", self.reason)?,
            message_id: params::given(self.message_id),
            tenant: params::given(self.tenant),
            since: params::time("since", self.since)?,
            until: params::time("until", self.until)?,
            all: false,
            despite_tenant: false,
        };
        Ok((filter, params::cursor(self.cursor)?, params::limit(self.limit)?))
    }
}

/// A page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeadLetterList {
    /// The dead letters, newest first.
    #[schema(value_type = Vec<DeadLetterBody>)]
    pub dead_letters: Vec<DeadLetter>,
    /// The cursor of the next page; `null` on the last one.
    pub next_cursor: Option<String>,
}

/// Dead letters, newest first.
///
/// Roles: admin for its tenant; operator for all, letters of unknown tenants included.
#[utoipa::path(get, path = "/api/admin/dead-letters", tag = "dead letters", params(ListQuery),
    responses((status = 200, description = "A page of dead letters", body = DeadLetterList)))]
pub async fn list(admin: Admin, query: Params<ListQuery>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (scope, (filter, before, limit)) = (admin.0.scope(), query.0.read()?);
    let rows =
        web.queries.run(async move |store| store.dead_letters().list(scope, &filter, before, limit + 1).await).await?;
    let (dead_letters, next_cursor) = params::page_of(rows, limit, |letter| letter.id);
    Ok(HttpResponse::Ok().json(DeadLetterList { dead_letters, next_cursor }))
}

/// One dead letter.
///
/// Roles: admin, operator.
#[utoipa::path(get, path = "/api/admin/dead-letters/{id}", tag = "dead letters", params(("id" = Uuid, Path, description = "The dead letter")),
    responses((status = 200, description = "The dead letter", body = DeadLetterBody)))]
pub async fn show(admin: Admin, id: Id, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (scope, id) = (admin.0.scope(), id.0);
    let found = web.queries.run(async move |store| store.dead_letters().find(scope, id).await).await?;
    Ok(HttpResponse::Ok().json(found.ok_or_else(|| Problem::not_found("dead letter"))?))
}

/// Selects the dead letters to move, and how to move them.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveBody {
    /// The filter; an empty one needs `all`.
    #[serde(default)]
    #[schema(value_type = LetterFilterBody)]
    filter: LetterFilter,
    /// Yes, all of them.
    #[serde(default)]
    all: bool,
    /// Also replays letters that were refused because their publisher may not publish for the tenant (reason `tenant`).
    /// They are checked again, and accepted only if the mapping of broker users has changed.
    #[serde(default)]
    despite_tenant: bool,
    /// Only say how many match.
    #[serde(default)]
    dry_run: bool,
    /// Letters a second; default: no limit.
    #[schema(minimum = 1, maximum = 100_000)]
    rate: Option<i32>,
    /// Why, for the audit.
    #[schema(max_length = 1000, example = "the receiver is back")]
    reason: Option<String>,
}

impl MoveBody {
    /// The checked filter and reason, or every fault.
    fn check(self) -> Result<(LetterFilter, String), Problem> {
        let mut faults = Vec::new();
        let mut fault = |field: &str, message: &str| faults.push(FieldError::new(field, message));
        if self.filter.is_empty() && !(self.all || self.filter.all) {
            fault("filter", "restricts nothing; add `\"all\": true` if every open letter is meant");
        }
        if self.filter.status.is_some_and(|status| status.as_str() != "open") {
            fault("filter.status", "must be open: nothing else can be moved");
        }
        if self.filter.ids.as_ref().is_some_and(|ids| ids.len() > IDS_MAX) {
            fault("filter.ids", "must be at most 1500");
        }
        let texts = [
            ("filter.message_id", &self.filter.message_id),
            ("filter.tenant", &self.filter.tenant),
            ("reason", &self.reason),
        ];
        for (field, _) in texts.iter().filter(|(_, text)| text.as_deref().is_some_and(|text| text.contains('\0'))) {
            fault(field, "must not contain NUL");
        }
        if self.rate.is_some_and(|rate| !(1..=RATE_MAX).contains(&rate)) {
            fault("rate", "must be from 1 to 100000 letters a second");
        }
        let reason = self.reason.unwrap_or_default().trim().to_owned();
        if reason.is_empty() || reason.len() > REASON_BYTES_MAX {
            fault("reason", "is required: say in 1 to 1000 bytes why");
        }
        let despite_tenant = self.despite_tenant || self.filter.despite_tenant;
        let filter = LetterFilter { all: self.all || self.filter.all, despite_tenant, ..self.filter };
        if faults.is_empty() { Ok((filter, reason)) } else { Err(Problem::validation(faults)) }
    }
}

/// How many letters match.
#[derive(Debug, Serialize, ToSchema)]
pub struct Matched {
    /// Open letters that match at this moment.
    pub matched: i64,
}

/// A replay or drop that has started.
#[derive(Debug, Serialize, ToSchema)]
pub struct MoveStarted {
    /// For `GET /api/admin/replays/{id}`.
    pub replay_id: Uuid,
    /// Open letters that matched at the start.
    pub matched: i64,
}

/// Replays dead letters.
///
/// A delivery gets a new run and keeps its history; a refused publish goes through the intake again. A letter that was
/// refused because its publisher may not publish for the tenant stays, unless the filter names the reason `tenant` or
/// `despite_tenant` is true. Only open letters move, each once, however many replays select them. With `dry_run`
/// nothing moves and the answer is 200 with the number.
///
/// Roles: admin for its tenant; operator for all.
#[utoipa::path(post, path = "/api/admin/dead-letters/replay", tag = "dead letters",
    request_body(content = MoveBody, example = json!({"filter": {"channel": "webhook", "reason": "attempts_exhausted"}, "rate": 100, "reason": "the receiver is back"})),
    responses((status = 202, description = "Begun", body = MoveStarted), (status = 200, description = "A dry run", body = Matched)))]
pub async fn replay(admin: Admin, web: Data<Web>, body: JsonBody) -> Result<HttpResponse, Problem> {
    start(&web, &admin.0, LetterAction::Replay, body).await
}

/// Drops dead letters for good.
///
/// They stay in the list with the status `dropped`. With `dry_run` nothing moves and the answer is 200 with the number.
///
/// Roles: admin for its tenant; operator for all.
#[utoipa::path(post, path = "/api/admin/dead-letters/drop", tag = "dead letters",
    request_body(content = MoveBody, example = json!({"filter": {"reason": "schema"}, "reason": "test messages of a developer"})),
    responses((status = 202, description = "Begun", body = MoveStarted), (status = 200, description = "A dry run", body = Matched)))]
pub async fn drop(admin: Admin, web: Data<Web>, body: JsonBody) -> Result<HttpResponse, Problem> {
    start(&web, &admin.0, LetterAction::Drop, body).await
}

async fn start(web: &Web, caller: &Identity, action: LetterAction, body: JsonBody) -> Result<HttpResponse, Problem> {
    let body: MoveBody = body.parse().await?;
    let (scope, dry_run, rate) = (caller.scope(), body.dry_run, body.rate);
    let (filter, reason) = body.check()?;
    if dry_run {
        let matched = web
            .queries
            .run(async move |store| store.dead_letters().letters_match(scope, &filter, action).await)
            .await?;
        return Ok(audit::unchanged(HttpResponse::Ok().json(Matched { matched })));
    }
    let actor = caller.actor();
    let starting =
        async move |store: store::Store| store.replays().start(scope, action, &filter, rate, &reason, &actor).await;
    let (replay_id, matched) = web.queries.run(starting).await?;
    Ok(audit::made(HttpResponse::Accepted().json(MoveStarted { replay_id, matched }), replay_id))
}

/// The progress of a replay or drop.
///
/// Roles: admin, operator.
#[utoipa::path(get, path = "/api/admin/replays/{id}", tag = "dead letters", params(("id" = Uuid, Path, description = "The `replay_id`")),
    responses((status = 200, description = "Its progress", body = ReplayStateBody)))]
pub async fn progress(admin: Admin, id: Id, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (scope, id) = (admin.0.scope(), id.0);
    let found = web.queries.run(async move |store| store.replays().replay(scope, id).await).await?;
    Ok(HttpResponse::Ok().json(found.ok_or_else(|| Problem::not_found("replay"))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use web::problem::Code;

    fn check(body: &str) -> Result<(LetterFilter, String), Code> {
        let body: MoveBody =
            domain::contract::submission::parse_json(body.as_bytes()).map_err(|_| Code::MalformedBody)?;
        body.check().map_err(|problem| problem.code())
    }

    #[test]
    fn a_move_needs_a_filter_and_a_reason() {
        assert!(check(r#"{"filter":{"channel":"sms"},"reason":"back"}"#).is_ok());
        assert!(check(r#"{"filter":{},"all":true,"reason":"back"}"#).is_ok());
        assert!(check(r#"{"filter":{"all":true},"reason":"back"}"#).is_ok());
        for bad in [
            r#"{"filter":{},"reason":"back"}"#,
            r#"{"reason":"back"}"#,
            r#"{"filter":{"channel":"sms"}}"#,
            r#"{"filter":{"channel":"sms"},"reason":"  "}"#,
            r#"{"filter":{"channel":"sms"},"reason":"a\u0000b"}"#,
            r#"{"filter":{"status":"dropped","channel":"sms"},"reason":"back"}"#,
            r#"{"filter":{"channel":"sms"},"reason":"back","rate":0}"#,
        ] {
            assert_eq!(check(bad).unwrap_err(), Code::ValidationFailed, "{bad}");
        }
    }

    #[test]
    fn an_unknown_filter_is_refused() {
        for bad in [
            r#"{"filter":{"chanel":"sms"},"reason":"x"}"#,
            r#"{"filter":{"channel":"fax"},"reason":"x"}"#,
            r#"{"filters":{},"reason":"x"}"#,
        ] {
            assert_eq!(check(bad).unwrap_err(), Code::MalformedBody, "{bad}");
        }
    }
}
