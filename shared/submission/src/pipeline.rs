//! The way of a submission, for HTTP and AMQP: a validated request becomes what is committed, or the answer that an earlier
//! request with the same key got.

use std::{collections::HashMap, future::Future};

use deliveries::Deliveries;
use domain::{Address, Channel, Person, TenantId, acceptance::Acceptance, contract::submission::Draft};
use records::Records;
use web::problem::{Code, Problem};

use crate::{
    Submissions,
    envelope::{Built, Origin, RequestKey, build_acceptance, to_json},
    session::{self, SessionDemand},
};

/// The result of preparing a request.
pub enum Prepared {
    /// An acceptance to commit, and the answer once it is committed.
    Commit(Box<Acceptance>, Vec<u8>),
    /// The answer of an earlier request with the same key.
    Repeat(Vec<u8>),
}

/// Builds what to commit. If `build` fails, an earlier request with the same key is looked up: it may have been accepted
/// before its template or session was deleted, and its answer is repeated then.
pub async fn prepare(
    submissions: &Submissions,
    key: Option<RequestKey>,
    build: impl Future<Output = Result<Built, Problem>>,
) -> Result<Prepared, Problem> {
    match build.await {
        Ok((acceptance, answer)) => Ok(Prepared::Commit(Box::new(acceptance), answer)),
        // The database is away: it cannot be asked for the earlier request either.
        Err(problem) if problem.code() == Code::Unavailable => Err(problem),
        Err(problem) => first_answer(submissions, key).await?.map(Prepared::Repeat).ok_or(problem),
    }
}

/// The answer of an earlier request with the same key and content.
pub async fn first_answer(submissions: &Submissions, key: Option<RequestKey>) -> Result<Option<Vec<u8>>, Problem> {
    let Some(RequestKey { tenant, key, request }) = key else { return Ok(None) };
    submissions.web.queries.run(async move |store| store.acceptance().answered(tenant, &key, &request).await).await
}

/// Fills in the settings of the message's type, finds its session and its recipients, and builds the rows. `must_wait`: it
/// waits for its session in any state, because no caller can come back.
pub async fn build_message(
    submissions: &Submissions,
    mut draft: Draft,
    origin: Origin,
    must_wait: bool,
) -> Result<Built, Problem> {
    submissions.web.complete(origin.tenant, &mut draft.content).await?;
    let demand = SessionDemand { messages: 1, is_scheduled: draft.scheduled_at.is_some(), must_wait };
    let session = session::choose(submissions, origin.tenant, draft.channel, &draft.session, demand).await?;
    let recipients = recipients(submissions, origin.tenant, &draft).await?;
    Ok(build_acceptance(draft, recipients, origin, session.as_ref(), |answer| to_json(&answer)))
}

/// The recipients of a message: the one it names, or the known addresses of its person, such as several devices. An empty
/// recipient means that the person has no address; the worker ends its delivery for that reason.
async fn recipients(submissions: &Submissions, tenant: TenantId, draft: &Draft) -> Result<Vec<Address>, Problem> {
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
