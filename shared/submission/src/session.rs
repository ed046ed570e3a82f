//! Chooses the WhatsApp session of a message, and checks whether it may be accepted for it now.

use deliveries::Deliveries;
use domain::{
    Channel, OnLimit, TenantId,
    contract::submission::{FieldError, SessionAsk},
};
use records::{Records, wa_sessions::Session};
use uuid::Uuid;
use web::problem::{Code, Problem};

use crate::Submissions;

/// The session of messages that name none, if a tenant has several.
const DEFAULT_SESSION: &str = "default";

/// How many messages need the session, and when.
#[derive(Clone, Copy, Debug)]
pub struct SessionDemand {
    /// The number of messages.
    pub messages: usize,
    /// They are sent later: the state of the session at that time is not known yet.
    pub is_scheduled: bool,
    /// No caller can come back: the messages wait for their session in any state.
    pub must_wait: bool,
}

/// The session that carries a message.
#[derive(Clone, Debug)]
pub struct ChosenSession {
    /// The session.
    pub session: Session,
    /// Whether the message is refused if it would have to wait for a slot.
    is_strict: bool,
}

impl ChosenSession {
    /// The session's pacing queue.
    pub const fn line(&self) -> Uuid {
        self.session.id
    }

    /// The pacing queue in which the message must find room at once.
    pub fn room_in(&self) -> Option<Uuid> {
        self.is_strict.then_some(self.session.id)
    }
}

/// The session for messages on `channel`; `None` for other channels, and if WhatsApp is only simulated.
pub async fn choose(
    submissions: &Submissions,
    tenant: TenantId,
    channel: Channel,
    ask: &SessionAsk,
    demand: SessionDemand,
) -> Result<Option<ChosenSession>, Problem> {
    if channel != Channel::Whatsapp {
        return Ok(None);
    }
    let Some(session) = find(submissions, tenant, ask.session.clone()).await? else { return Ok(None) };
    let waits = demand.is_scheduled || demand.must_wait || ask.queue_when_offline;
    if !session.is_working() && !waits {
        let detail = format!(
            "Start the session and scan its code first (it is {}), or set `queue_when_offline` to have the message wait.",
            session.state
        );
        return Err(Problem::new(Code::SessionNotWorking, detail));
    }
    let rejects = ask.on_limit.unwrap_or(session.settings.on_limit) == OnLimit::Reject;
    let is_strict = rejects && session.is_working() && !demand.is_scheduled && !demand.must_wait;
    if is_strict {
        require_room(submissions, &session, demand.messages).await?;
    }
    Ok(Some(ChosenSession { session, is_strict }))
}

async fn find(submissions: &Submissions, tenant: TenantId, named: Option<String>) -> Result<Option<Session>, Problem> {
    if let Some(name) = named {
        let found = submissions
            .web
            .queries
            .run(async move |store| store.whatsapp_sessions().session_of(tenant, &name).await)
            .await?;
        return found.map(Some).ok_or_else(|| Problem::not_found("session"));
    }
    let found = submissions
        .web
        .queries
        .run(async move |store| {
            let mut some = store.whatsapp_sessions().list(tenant, None, 2).await?;
            match some.len() {
                0 | 1 => Ok((some.pop(), false)),
                _ => Ok((store.whatsapp_sessions().session_of(tenant, DEFAULT_SESSION).await?, true)),
            }
        })
        .await?;
    match found {
        (Some(session), _) => Ok(Some(session)),
        (None, true) => Err(required("is required: this tenant has several sessions and none is called `default`")),
        (None, false) if submissions.sends_by_waha => {
            Err(required("is required: make a session first, see POST /sessions"))
        }
        (None, false) => Ok(None),
    }
}

fn required(message: &str) -> Problem {
    Problem::validation(vec![FieldError::new("session_id", message)])
}

/// Refuses early what has no chance. The commit decides.
async fn require_room(submissions: &Submissions, session: &Session, messages: usize) -> Result<(), Problem> {
    let line = session.id;
    let (room, wait) = submissions.web.queries.run(async move |store| store.lines().line_room(line).await).await?;
    let fits = i32::try_from(messages).is_ok_and(|messages| messages <= room);
    if fits { Ok(()) } else { Err(no_room(wait)) }
}

/// The WhatsApp session has no free slot.
pub fn no_room(seconds: f64) -> Problem {
    let wait = std::time::Duration::try_from_secs_f64(seconds.ceil()).map_or(1, |wait| wait.as_secs());
    Problem::session_busy(wait.max(1))
}
