//! The replies of the server, by command.

use std::collections::HashMap;
use std::time::Duration;

/// An answer to one command.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The usual answer.
    Accept,
    /// A code and a text, such as 451 and `4.3.0 try later`. After 421 the connection ends.
    Code(u16, String),
    /// Something else, after a while.
    Delay(Duration, Box<Reply>),
    /// No answer; the connection ends.
    Drop,
    /// No answer; the connection stays open for as long as the client likes.
    Hang,
    /// One after the other, time by time; the last one repeats.
    Sequence(Vec<Reply>),
}

impl Reply {
    /// The same after a while.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self::Delay(delay, Box::new(self))
    }

    /// The reply at the `nth` time (from zero), with every sequence resolved.
    fn nth(&self, nth: usize) -> Self {
        match self {
            Self::Sequence(replies) => match replies.get(nth).or(replies.last()) {
                Some(reply) => reply.nth(nth),
                None => Self::Accept,
            },
            Self::Delay(delay, reply) => reply.nth(nth).after(*delay),
            other => other.clone(),
        }
    }
}

/// The commands that can have a reply of their own.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Occasion {
    /// A client has connected.
    Connection,
    /// MAIL FROM.
    Sender,
    /// RCPT TO with this address, in lower case.
    Recipient(String),
    /// RCPT TO with an address of which nothing was said.
    OtherRecipient,
    /// The final dot of a message.
    Content,
}

/// The replies that were asked for, by occasion, with the number of times each was used.
#[derive(Debug, Default)]
pub(super) struct Replies(HashMap<Occasion, (Reply, usize)>);

impl Replies {
    pub(super) fn set(&mut self, occasion: Occasion, reply: Reply) {
        self.0.insert(occasion, (reply, 0));
    }

    /// The reply to the first of the occasions that something was said about; it counts as used.
    pub(super) fn next(&mut self, occasions: &[Occasion]) -> Reply {
        let Some(occasion) = occasions.iter().find(|occasion| self.0.contains_key(occasion)) else {
            return Reply::Accept;
        };
        self.0.get_mut(occasion).map_or(Reply::Accept, |(reply, used)| {
            *used += 1;
            reply.nth(*used - 1)
        })
    }
}
