//! Looks up the addresses of a message that names a person. A message with a recipient needs no look-up.

use std::collections::HashMap;

use domain::{Address, Channel, Person, TenantId, contract::submission::Draft};
use records::Records;
use web::problem::Problem;

use crate::Submissions;

/// The recipients of a message: the one it names, or the known addresses of its person, such as several devices. An empty
/// recipient means that the person has no address; the worker ends its delivery for that reason.
pub async fn recipients(submissions: &Submissions, tenant: TenantId, draft: &Draft) -> Result<Vec<Address>, Problem> {
    if let Some(recipient) = &draft.recipient {
        return Ok(vec![recipient.clone()]);
    }
    let Some(id) = draft.user_id.clone() else { return Ok(vec![Address::new("")]) };
    let mut known = people(submissions, tenant, vec![id.clone()]).await?;
    let addresses = known.remove(&id).map(|person| person.addresses(draft.channel)).unwrap_or_default();
    Ok(if addresses.is_empty() { vec![Address::new("")] } else { addresses })
}

/// Looks up people by id; unknown ids are left out.
pub async fn people(
    submissions: &Submissions,
    tenant: TenantId,
    ids: Vec<String>,
) -> Result<HashMap<String, Person>, Problem> {
    submissions.web.queries.run(async move |store| store.people().load(tenant, ids).await).await
}

/// Whether addresses of people on this channel are looked up.
pub const fn is_looked_up(channel: Channel) -> bool {
    match channel {
        Channel::Email | Channel::Sms | Channel::Push | Channel::Whatsapp => true,
        Channel::InApp | Channel::Webhook => false,
    }
}
