//! Renders templates for submissions.

use std::sync::Arc;

use content::template::{Template, TemplateError};
use domain::{
    Channel, TenantId,
    contract::submission::{FieldError, Part},
};
use serde_json::Value;
use web::problem::Problem;

use crate::Submissions;

/// Renders on a thread where it blocks no other request.
pub async fn render(
    (submissions, tenant): (&Submissions, TenantId),
    template: Arc<Template>,
    channel: Channel,
    variables: Value,
) -> Result<Part, Problem> {
    let rendering = move || template.render(channel, &variables).map_err(|error| faults(&template, &variables, error));
    submissions.renderers.run(tenant, rendering).await?.map_err(Problem::validation)
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
