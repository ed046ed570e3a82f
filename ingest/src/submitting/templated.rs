//! Submits messages from templates. A message is rendered before it is accepted: later changes of the template do not
//! affect it.

use std::{collections::BTreeMap, sync::Arc};

use actix_web::{HttpRequest, HttpResponse, web::Data};
use content::template::{Template, TemplateError};
use domain::{
    Channel, TenantId,
    contract::submission::{Draft, FieldError, Part, Submission, TemplateRef, parse_json},
};
use serde_json::{Map, Value, value::RawValue};
use utoipa::ToSchema;

use crate::{
    app::App,
    auth::Producer,
    body::{JsonBody, SUBMISSION},
    observe::Trace,
    openapi::{RecipientBody, SharedBody},
    problem::Problem,
    submitting::{
        envelope::{SendAnswer, to_json},
        idempotency::{self, Kind},
        notifications::{accept, hashes, origin},
    },
    whatsapp::carrier,
};

/// Fields that the template provides, so the request must not.
const SAID: [&str; 5] = ["title", "subject", "message", "text", "html"];

/// As a submission, without title, message and HTML: those come from the template.
#[derive(ToSchema)]
#[schema(as = TemplateSubmission)]
#[expect(dead_code, reason = "it describes the body; the submission itself reads it")]
pub struct TemplateSendBody {
    /// The template.
    #[schema(example = "order_confirmation")]
    template_name: String,
    /// What is filled in. All variables that the template declares must be given, and all that it uses.
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
/// It is rendered now, with the current version: changing the template later changes nothing that was accepted. A missing
/// variable is a 400 that names it. Everything else is as for `send`.
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
    app: Data<App>,
    request: HttpRequest,
    body: JsonBody<SUBMISSION>,
) -> Result<HttpResponse, Problem> {
    let bytes = body.read().await?;
    let (ask, mut submission) = split(&bytes).map_err(Problem::malformed)?;
    let key = idempotency::key(request.headers(), submission.idempotency_key.take())?;
    let (tenant, hashes) = (producer.0.tenant, hashes(key, Kind::Template, &bytes));
    match draft(&app, tenant, ask, submission).await {
        Ok(draft) => accept(&app, tenant, draft, origin(&producer.0, trace), hashes).await,
        // The template may have been deleted since a request with the same key was accepted.
        Err(problem) => carrier::repeat(&app, tenant, hashes, problem).await,
    }
}

/// The template, and the variables to fill in.
struct Ask {
    name: String,
    variables: Value,
}

/// Separates the template from the body; the rest is a submission without content.
fn split(body: &[u8]) -> Result<(Ask, Submission), FieldError> {
    let mut members: BTreeMap<String, Box<RawValue>> = parse_json(body)?;
    let name = members.remove("template_name").ok_or_else(|| FieldError::new("template_name", "is required"))?;
    let name = serde_json::from_str(name.get()).map_err(|_| FieldError::new("template_name", "must be a text"))?;
    let variables = members.remove("template_vars");
    let variables = variables.map_or(Ok(Map::new()), |raw| serde_json::from_str(raw.get()));
    let variables = variables.map_err(|_| FieldError::new("template_vars", "must be an object"))?;
    if let Some(name) = SAID.iter().find(|name| members.contains_key(**name)) {
        return Err(FieldError::new(*name, "comes from the template; use `send` to say it yourself"));
    }
    Ok((Ask { name, variables: Value::Object(variables) }, Submission::parse(&to_json(&members))?))
}

async fn draft(app: &App, tenant: TenantId, ask: Ask, mut submission: Submission) -> Result<Draft, Problem> {
    let channel: Option<Channel> = submission.channel.as_deref().and_then(|text| text.parse().ok());
    let Some(channel) = channel else {
        return submission.check(&app.rules()).map_err(Problem::validation);
    };
    let template = find(app, tenant, &ask.name).await?;
    let part = render((app, tenant), Arc::clone(&template), channel, ask.variables).await?;
    (submission.title, submission.message, submission.html) = (part.title, part.message, part.html);
    let source = &template.source;
    submission.category = submission.category.or_else(|| source.category.clone());
    let mut draft = submission.check(&app.rules()).map_err(Problem::validation)?;
    draft.content.template = Some(TemplateRef { name: source.name.clone(), version: source.version });
    app.complete(tenant, &mut draft.content).await?;
    Ok(draft)
}

/// The active template of this name.
async fn find(app: &App, tenant: TenantId, name: &str) -> Result<Arc<Template>, Problem> {
    if let Some(template) = app.catalogue(tenant).await?.templates.get(name) {
        return Ok(Arc::clone(template));
    }
    // Another process may have created it a moment ago.
    let catalogues = app.catalogues.clone();
    let newest = app.db.run(async move |_| catalogues.newest(tenant).await).await?;
    let unknown = || FieldError::new("template_name", "must be an active template of this tenant");
    newest.templates.get(name).cloned().ok_or_else(|| Problem::validation(vec![unknown()]))
}

/// Renders on a thread where it blocks no other request.
pub async fn render(
    (app, tenant): (&App, TenantId),
    template: Arc<Template>,
    channel: Channel,
    variables: Value,
) -> Result<Part, Problem> {
    let rendering = move || template.render(channel, &variables).map_err(|error| faults(&template, &variables, error));
    app.renderers.run(tenant, rendering).await?.map_err(Problem::validation)
}

/// The problem for the caller, with every declared variable that is missing.
pub fn faults(template: &Template, variables: &Value, error: TemplateError) -> Vec<FieldError> {
    let missing = |name: &str| {
        let message = TemplateError::Missing(name.to_owned()).to_string();
        FieldError::new(format!("template_vars.{name}"), message)
    };
    match error {
        TemplateError::Missing(name) => {
            let mut all = template.missing(variables);
            if !all.contains(&name.as_str()) {
                all.push(&name);
            }
            all.into_iter().map(missing).collect()
        }
        TemplateError::NoPart(_) => vec![FieldError::new("channel", "is none that the template says anything on")],
        TemplateError::TooLarge(why) => vec![FieldError::new("template_vars", format!("cannot be filled in: {why}"))],
        TemplateError::Source(why) => vec![FieldError::new("template_name", format!("cannot be rendered: {why}"))],
    }
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
