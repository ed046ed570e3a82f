//! Submits messages from templates. A message is rendered before it is accepted: later changes of the template do not
//! affect it.

use std::{collections::BTreeMap, sync::Arc};

use actix_web::{HttpRequest, HttpResponse, web::Data};
use content::template::Template;
use domain::{
    Channel, TenantId,
    contract::submission::{Draft, FieldError, Submission, TemplateRef, parse_json},
};
use serde_json::{Map, Value, value::RawValue};
use submission::{
    Submissions,
    envelope::{SendAnswer, to_json},
    http::{origin, submit},
    idempotency::{self, Kind},
    openapi::{RecipientBody, SharedBody},
    pipeline::build_message,
};
use utoipa::ToSchema;
use web::{
    auth::Producer,
    body::{JsonBody, SUBMISSION},
    observe::Trace,
    problem::Problem,
};

/// Fields that the template provides, so the request must not.
const RENDERED_FIELDS: [&str; 5] = ["title", "subject", "message", "text", "html"];

/// As a submission, without title, message and HTML: those come from the template.
#[derive(ToSchema)]
#[schema(as = TemplateSubmission)]
#[expect(dead_code, reason = "it describes the body; the submission itself reads it")]
pub struct TemplateSendBody {
    /// The template.
    #[schema(example = "order_confirmation")]
    template_name: String,
    /// The variables. All that the template declares or uses must be given.
    #[schema(value_type = Object, example = json!({"customer_name": "John Doe"}))]
    template_vars: Option<Value>,
    /// To whom. May be left out for `in_app` where `user_id` is given.
    recipient: Option<RecipientBody>,
    /// The rest.
    #[schema(inline)]
    #[serde(flatten)]
    shared: SharedBody,
}

/// Sends a message rendered from a template.
///
/// It is rendered now, with the current version: changing the template later changes nothing that was accepted. A
/// missing variable is a 400 that names it. Everything else is as for `send`.
///
/// Roles: producer, admin.
#[utoipa::path(post, path = "/api/notifications/send-template", tag = "submitting",
    request_body(content = TemplateSendBody, example = json!({"user_id": "user123", "channel": "email", "recipient": "user@example.com",
        "template_name": "order_confirmation", "template_vars": {"customer_name": "John Doe", "order_id": "12345", "amount": "99.99"}})),
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
    let (template_use, mut submission) = split(&bytes).map_err(Problem::malformed)?;
    let key = idempotency::key(request.headers(), submission.idempotency_key.take())?;
    let origin = origin(&producer.0, trace, key, Kind::Template, &bytes);
    submit(&submissions, origin.key, async {
        let draft = draft(&submissions, origin.tenant, template_use, submission).await?;
        build_message(&submissions, draft, origin, false).await
    })
    .await
}

/// The template, and the variables to fill in.
struct TemplateUse {
    name: String,
    variables: Value,
}

/// Separates the template from the body; the rest is a submission without content.
fn split(body: &[u8]) -> Result<(TemplateUse, Submission), FieldError> {
    let mut members: BTreeMap<String, Box<RawValue>> = parse_json(body)?;
    let name = members.remove("template_name").ok_or_else(|| FieldError::new("template_name", "is required"))?;
    let name = serde_json::from_str(name.get()).map_err(|_| FieldError::new("template_name", "must be a text"))?;
    let variables = members.remove("template_vars");
    let variables = variables.map_or(Ok(Map::new()), |raw| serde_json::from_str(raw.get()));
    let variables = variables.map_err(|_| FieldError::new("template_vars", "must be an object"))?;
    if let Some(name) = RENDERED_FIELDS.iter().find(|name| members.contains_key(**name)) {
        return Err(FieldError::new(*name, "comes from the template; use `send` to say it yourself"));
    }
    Ok((TemplateUse { name, variables: Value::Object(variables) }, Submission::parse(&to_json(&members))?))
}

async fn draft(
    submissions: &Submissions,
    tenant: TenantId,
    template_use: TemplateUse,
    mut submission: Submission,
) -> Result<Draft, Problem> {
    let channel: Option<Channel> = submission.channel.as_deref().and_then(|text| text.parse().ok());
    let Some(channel) = channel else {
        return submission.check(&submissions.web.rules()).map_err(Problem::validation);
    };
    let template = find(submissions, tenant, &template_use.name).await?;
    let part = submissions.renderers.render(tenant, Arc::clone(&template), channel, template_use.variables).await?;
    (submission.title, submission.message, submission.html) = (part.title, part.message, part.html);
    let source = &template.source;
    submission.category = submission.category.or_else(|| source.category.clone());
    let mut draft = submission.check(&submissions.web.rules()).map_err(Problem::validation)?;
    draft.content.template = Some(TemplateRef { name: source.name.clone(), version: source.version });
    Ok(draft)
}

/// The active template of this name.
async fn find(submissions: &Submissions, tenant: TenantId, name: &str) -> Result<Arc<Template>, Problem> {
    if let Some(template) = submissions.web.catalogue(tenant).await?.templates.get(name) {
        return Ok(Arc::clone(template));
    }
    // Another process may have created it a moment ago.
    let catalogues = submissions.web.catalogues.clone();
    let newest = submissions.web.queries.run(async move |_| catalogues.newest(tenant).await).await?;
    let unknown = || FieldError::new("template_name", "must be an active template of this tenant");
    newest.templates.get(name).cloned().ok_or_else(|| Problem::validation(vec![unknown()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(body: &str) -> String {
        split(body.as_bytes()).err().map(|fault| fault.field).unwrap_or_default()
    }

    #[test]
    fn the_printed_request_is_taken_and_what_the_template_says_is_not() {
        let printed = r#"{"user_id": "user123", "channel": "email", "recipient": "user@example.com", "template_name": "order_confirmation",
            "template_vars": {"customer_name": "John Doe", "order_id": "12345", "amount": "99.99"}}"#;
        assert_eq!(field(printed), "");
        assert_eq!(field(r#"{"channel":"sms","recipient":"+1234567890"}"#), "template_name");
        assert_eq!(field(r#"{"template_name":"t","template_vars":[]}"#), "template_vars");
        assert_eq!(field(r#"{"template_name":"t","subject":"s"}"#), "subject");
        assert_eq!(field(r#"{"template_name":"t","colour":"red"}"#), "colour");
    }
}
