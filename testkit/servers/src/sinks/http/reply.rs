//! The sink's reactions to a request, by path.

use std::{fmt, sync::Arc, time::Duration};

use super::Request;

/// Computes a reply from the request: for stand-ins of vendors that hand out ids.
pub type Handler = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

/// How one request ends.
#[derive(Clone)]
pub enum Reply {
    /// An answer: status code, extra headers, body.
    Status(u16, Vec<(String, String)>, Vec<u8>),
    /// Something else, after a while.
    Delay(Duration, Box<Reply>),
    /// No answer; the connection stays open for as long as the client likes.
    Hang,
    /// The connection is reset once the head is read: the request was never taken in.
    CloseBeforeReading,
    /// The request is taken in, then the connection ends without an answer.
    CloseAfterBody,
    /// An answer that is not HTTP.
    Garbage,
    /// An answer that stops in the middle of its body; the connection stays open for as long as the client likes.
    Stall(u16, Vec<(String, String)>, Vec<u8>),
    /// One after the other, request by request; the last one repeats.
    Sequence(Vec<Reply>),
    /// The reply that the handler makes from the request once it is read.
    With(Handler),
}

impl Reply {
    /// The reply to send. A handler chooses it from the request.
    pub(super) fn decided(self, request: &Request) -> Self {
        match self {
            Self::With(handler) => handler(request),
            Self::Delay(delay, later) => later.decided(request).after(delay),
            other => other,
        }
    }

    /// 200 without content.
    pub fn ok() -> Self {
        Self::status(200)
    }

    /// A status without content.
    pub fn status(code: u16) -> Self {
        Self::Status(code, Vec::new(), Vec::new())
    }

    /// A status with JSON content.
    pub fn json(code: u16, body: &serde_json::Value) -> Self {
        let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
        Self::Status(code, headers, body.to_string().into_bytes())
    }

    /// The same with one more header; only an answer can have headers.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        if let Self::Status(_, headers, _) = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// The same, but only half of its body ever comes.
    #[must_use]
    pub fn stalled(self) -> Self {
        match self {
            Self::Status(code, headers, body) => Self::Stall(code, headers, body),
            other => other,
        }
    }

    /// The same after a while.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self::Delay(delay, Box::new(self))
    }

    /// The reply that a function makes from the request.
    pub fn with(handler: impl Fn(&Request) -> Self + Send + Sync + 'static) -> Self {
        Self::With(Arc::new(handler))
    }

    /// The reply for the `nth` request (from zero), with every sequence resolved.
    fn nth(&self, nth: usize) -> Self {
        match self {
            Self::Sequence(replies) => match replies.get(nth).or(replies.last()) {
                Some(reply) => reply.nth(nth),
                None => Self::ok(),
            },
            Self::Delay(delay, reply) => reply.nth(nth).after(*delay),
            other => other.clone(),
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(code, ..) => write!(f, "Status({code})"),
            Self::Delay(delay, reply) => write!(f, "Delay({delay:?}, {reply:?})"),
            Self::Hang => f.write_str("Hang"),
            Self::CloseBeforeReading => f.write_str("CloseBeforeReading"),
            Self::CloseAfterBody => f.write_str("CloseAfterBody"),
            Self::Garbage => f.write_str("Garbage"),
            Self::Stall(code, ..) => write!(f, "Stall({code})"),
            Self::Sequence(replies) => f.debug_tuple("Sequence").field(replies).finish(),
            Self::With(_) => f.write_str("With(…)"),
        }
    }
}

/// Which reply is for which path.
#[derive(Debug, Default)]
pub(super) struct Routes(Vec<Route>);

#[derive(Debug)]
struct Route {
    /// A path, or a beginning of paths followed by `*`.
    pattern: String,
    reply: Reply,
    used: usize,
}

impl Routes {
    pub(super) fn set(&mut self, pattern: &str, reply: Reply) {
        self.0.retain(|route| route.pattern != pattern);
        self.0.push(Route { pattern: pattern.to_owned(), reply, used: 0 });
    }

    /// The reply for the next request to `path`; it counts as used.
    pub(super) fn next(&mut self, path: &str) -> Reply {
        let matching = self.0.iter_mut().filter_map(|route| Some((route.rank(path)?, route)));
        let Some((_, route)) = matching.max_by_key(|(rank, _)| *rank) else {
            return Reply::ok();
        };
        let reply = route.reply.nth(route.used);
        route.used += 1;
        reply
    }
}

impl Route {
    /// How well the route fits: nothing if not at all, the most for the exact path.
    fn rank(&self, path: &str) -> Option<usize> {
        if self.pattern == path {
            return Some(usize::MAX);
        }
        let beginning = self.pattern.strip_suffix('*')?;
        path.starts_with(beginning).then_some(beginning.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(routes: &mut Routes, path: &str) -> String {
        format!("{:?}", routes.next(path))
    }

    #[test]
    fn the_closest_route_wins_and_sequences_count_by_route() {
        let mut routes = Routes::default();
        routes.set("*", Reply::status(404));
        routes.set("/a/*", Reply::Sequence(vec![Reply::status(500), Reply::Hang]));
        routes.set("/a/b", Reply::ok().after(Duration::from_secs(1)));
        assert_eq!(said(&mut routes, "/x"), "Status(404)");
        assert_eq!(said(&mut routes, "/a/c"), "Status(500)");
        assert_eq!(said(&mut routes, "/a/b"), "Delay(1s, Status(200))");
        assert_eq!(said(&mut routes, "/a/d"), "Hang");
        assert_eq!(said(&mut routes, "/a/d"), "Hang");
    }
}
