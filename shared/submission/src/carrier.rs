//! Chooses the WhatsApp session of a message, and checks whether it may be accepted for it now.

use deliveries::Deliveries;
use domain::{
    Channel, OnLimit, TenantId,
    contract::submission::{Draft, FieldError, SessionAsk},
};
use records::{Records, wa_sessions::Session};
use uuid::Uuid;
use web::problem::{Code, Problem};

use crate::Submissions;

/// The session of messages that name none, if a tenant has several.
const DEFAULT_SESSION: &str = "default";

/// The number of messages, and when they are sent.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The number of messages.
    pub messages: usize,
    /// Sent later: the state of the session at that time is unknown.
    pub is_scheduled: bool,
    /// No caller could try again: the message waits for its session in any state.
    pub must_wait: bool,
}

impl Wanted {
    /// One message.
    pub const fn one(draft: &Draft) -> Self {
        Self { messages: 1, is_scheduled: draft.scheduled_at.is_some(), must_wait: false }
    }
}

/// The session of a message.
#[derive(Clone, Debug)]
pub struct Carrier {
    /// The session.
    pub session: Session,
    /// Whether the message is refused if it would have to wait for a slot.
    is_strict: bool,
}

impl Carrier {
    /// The session's line.
    pub const fn line(&self) -> Uuid {
        self.session.id
    }

    /// The line that must have a free slot for the message now.
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
    wanted: Wanted,
) -> Result<Option<Carrier>, Problem> {
    if channel != Channel::Whatsapp {
        return Ok(None);
    }
    let Some(session) = find(submissions, tenant, ask.session.clone()).await? else { return Ok(None) };
    let waits = wanted.is_scheduled || wanted.must_wait || ask.queue_when_offline;
    if !session.is_working() && !waits {
        let detail = format!(
            "Start the session and scan its code first (it is {}), or set `queue_when_offline` to have the message wait.",
            session.state
        );
        return Err(Problem::new(Code::SessionNotWorking, detail));
    }
    let rejects = ask.on_limit.unwrap_or(session.settings.on_limit) == OnLimit::Reject;
    let is_strict = rejects && session.is_working() && !wanted.is_scheduled && !wanted.must_wait;
    if is_strict {
        require_room(submissions, &session, wanted.messages).await?;
    }
    Ok(Some(Carrier { session, is_strict }))
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

/// An early check, so that a message without a chance is not tried; the commit decides.
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
