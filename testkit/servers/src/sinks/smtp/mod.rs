//! A real ESMTP server that keeps every message and answers, or misbehaves, as a test asks.
//!
//! ```no_run
//! use std::time::Duration;
//! use servers::sinks::smtp::{Reply, SmtpSink};
//!
//! # async fn example() -> anyhow::Result<()> {
//! let sink = SmtpSink::start_local().await?;
//! sink.reply_to_recipient("gone@example.com", Reply::Code(550, "5.1.1 no such person".to_owned()));
//! sink.reply_to_content(Reply::Sequence(vec![Reply::Drop, Reply::Accept]));
//! // … have something send mail to sink.address() …
//! let mails = sink.wait_for(2, Duration::from_secs(5)).await?;
//! assert_eq!(mails.iter().filter(|mail| mail.accepted).count(), 1);
//! # Ok(())
//! # }
//! ```

mod reply;
mod session;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

pub use reply::Reply;

use super::Listening;
use super::record::Record;
use reply::{Occasion, Replies};

/// The requirements and limits of the server.
#[derive(Clone, Debug)]
pub struct Options {
    /// User and password. When set, mail is taken only after AUTH PLAIN or AUTH LOGIN with these.
    pub credentials: Option<(String, String)>,
    /// The largest message in bytes, announced as SIZE; a larger one is answered 552.
    pub size_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { credentials: None, size_max: 64 * 1024 * 1024 }
    }
}

/// One message whose content has arrived to its final dot.
#[derive(Clone, Debug)]
pub struct Mail {
    /// The name that the client gave in EHLO or HELO.
    pub client: String,
    /// The user that the client logged in as.
    pub user: Option<String>,
    /// The address of MAIL FROM; empty for a bounce.
    pub sender: String,
    /// The parameters of MAIL FROM, such as `BODY=8BITMIME`.
    pub parameters: Vec<String>,
    /// The addresses of RCPT TO that were accepted.
    pub recipients: Vec<String>,
    /// The message as it was before dot-stuffing.
    pub content: Vec<u8>,
    /// Whether the client heard that the message was accepted: not if the content was refused, or the connection dropped after
    /// the final dot.
    pub accepted: bool,
    /// When the final dot was read.
    pub received_at: Instant,
    /// The same moment by the wall clock.
    pub received_at_clock: SystemTime,
}

impl Mail {
    /// The whole message as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.content).into_owned()
    }

    /// The first header of that name, unfolded.
    pub fn header(&self, name: &str) -> Option<String> {
        let text = self.text();
        let mut lines = text
            .split("\r\n")
            .take_while(|line| !line.is_empty())
            .skip_while(|line| !line.split_once(':').is_some_and(|(found, _)| found.eq_ignore_ascii_case(name)));
        let (_, first) = lines.next()?.split_once(':')?;
        let folded = lines.take_while(|line| line.starts_with([' ', '\t']));
        Some(folded.fold(first.trim().to_owned(), |value, line| format!("{value} {}", line.trim())))
    }
}

/// The server. It accepts everything unless told otherwise.
#[derive(Debug)]
pub struct SmtpSink {
    listening: Listening,
    shared: Arc<Shared>,
}

/// The state that the sessions share with the sink.
#[derive(Debug)]
struct Shared {
    options: Options,
    replies: Mutex<Replies>,
    mails: Record<Mail>,
}

impl Shared {
    fn replies(&self) -> MutexGuard<'_, Replies> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SmtpSink {
    /// Listens on an address; port 0 takes any free one.
    pub async fn start(address: SocketAddr) -> std::io::Result<Self> {
        Self::start_with(address, Options::default()).await
    }

    /// Listens on a free port of the loopback interface.
    pub async fn start_local() -> std::io::Result<Self> {
        Self::start((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// Listens on an address with demands of its own.
    pub async fn start_with(address: SocketAddr, options: Options) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { options, replies: Mutex::default(), mails: Record::default() });
        let state = Arc::clone(&shared);
        let listening = Listening::start(address, move |stream| session::serve(stream, Arc::clone(&state))).await?;
        Ok(Self { listening, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listening.address
    }

    /// Connections that were made to it so far.
    pub fn connections(&self) -> usize {
        self.listening.connections()
    }

    /// How to greet a new connection.
    pub fn reply_to_connection(&self, reply: Reply) {
        self.shared.replies().set(Occasion::Connection, reply);
    }

    /// How to answer MAIL FROM.
    pub fn reply_to_sender(&self, reply: Reply) {
        self.shared.replies().set(Occasion::Sender, reply);
    }

    /// How to answer RCPT TO with this address.
    pub fn reply_to_recipient(&self, address: &str, reply: Reply) {
        self.shared.replies().set(Occasion::Recipient(address.to_lowercase()), reply);
    }

    /// How to answer RCPT TO with any other address.
    pub fn reply_to_recipients(&self, reply: Reply) {
        self.shared.replies().set(Occasion::OtherRecipient, reply);
    }

    /// How to answer the final dot of a message.
    pub fn reply_to_content(&self, reply: Reply) {
        self.shared.replies().set(Occasion::Content, reply);
    }

    /// Accepts everything again.
    pub fn accept_all(&self) {
        *self.shared.replies() = Replies::default();
    }

    /// Every message whose content arrived, accepted or not, in the order of arrival.
    pub fn mails(&self) -> Vec<Arc<Mail>> {
        self.shared.mails.all()
    }

    /// The messages to one address.
    pub fn mails_to(&self, address: &str) -> Vec<Arc<Mail>> {
        let to_address = |mail: &Arc<Mail>| mail.recipients.iter().any(|to| to.eq_ignore_ascii_case(address));
        self.mails().into_iter().filter(to_address).collect()
    }

    /// Waits until `wanted` messages have arrived since the last [`clear`](Self::clear), and returns all
    /// of them.
    pub async fn wait_for(&self, wanted: usize, limit: Duration) -> Result<Vec<Arc<Mail>>> {
        self.shared.mails.wait_for(wanted, limit).await
    }

    /// Forgets the messages; what was said about replies stays.
    pub fn clear(&self) {
        self.shared.mails.clear();
    }
}
