//! SQLSTATE: whether the server or the values caused an error.
//!
//! diesel keeps the text of a server's error and drops its code, and the text is no help: servers speak many languages.
//! So the stream below a connection writes each error's code in front of its message, as `psql` does with `VERBOSITY
//! verbose`: `53100: could not extend file`. Once diesel passes the code on (diesel-rs/diesel#5232), the stream can be
//! removed.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind, Error};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

pub(crate) const SERIALIZATION_FAILURE: &str = "40001";
pub(crate) const DEADLOCK_DETECTED: &str = "40P01";
pub(crate) const LOCK_NOT_AVAILABLE: &str = "55P03";
/// The server ended the statement, usually because of its time limit.
pub(crate) const QUERY_CANCELED: &str = "57014";
pub(crate) const DATA_CORRUPTED: &str = "XX001";
pub(crate) const INDEX_CORRUPTED: &str = "XX002";
const UNDEFINED_TABLE: &str = "42P01";
const UNDEFINED_COLUMN: &str = "42703";
const UNDEFINED_FUNCTION: &str = "42883";
const CODE_LEN: usize = 5;
const SEPARATOR: &str = ": ";
/// Tag and length of a message of the server; the length counts itself.
const HEADER_LEN: usize = 5;
const LENGTH_LEN: usize = 4;
const ERROR_RESPONSE: u8 = b'E';
const READ_LEN: usize = 8192;

/// The code of a refused statement, if the server sent one.
pub fn code(error: &Error) -> Option<&str> {
    match error {
        Error::DatabaseError(_, info) => code_of(info.message()),
        _ => None,
    }
}

/// Whether the code means that the schema lacks an object that a statement names.
pub fn is_schema_missing(code: &str) -> bool {
    matches!(code, UNDEFINED_TABLE | UNDEFINED_COLUMN | UNDEFINED_FUNCTION)
}

fn code_of(message: &str) -> Option<&str> {
    let (code, rest) = message.split_at_checked(CODE_LEN)?;
    let is_code = code.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
    (is_code && rest.starts_with(SEPARATOR)).then_some(code)
}

/// Whether the values of the statement are not the cause, so the same statement may succeed later.
///
/// | SQLSTATE | cause |
/// |---|---|
/// | 21, 22, 23, 44, P0 | the values: cardinality, data, integrity, check option, a `RAISE` of a trigger |
/// | 54 | the values: too large, nested too deeply |
/// | 54 with a hint and without a table | the server: no transaction ids are left, and the hint says to vacuum |
/// | everything else | the server: connection, read-only, deadlock, timeout, disk or memory full, schema (42: a partition or column is missing, a right was revoked), operator, I/O, internal |
///
/// A code that is not listed counts as the server's: waiting loses nothing. Errors of diesel itself are never the
/// server's, except those that say that the connection is gone.
pub fn is_servers_fault(error: &Error) -> bool {
    match error {
        Error::DatabaseError(kind, info) => match code_of(info.message()) {
            Some(code) => !is_values_fault(code, info.as_ref()),
            None => !is_violation(kind),
        },
        Error::BrokenTransactionManager => true,
        Error::RollbackErrorOnCommit { rollback_error, commit_error } => {
            is_servers_fault(rollback_error) || is_servers_fault(commit_error)
        }
        _ => false,
    }
}

fn is_values_fault(code: &str, info: &(dyn DatabaseErrorInformation + Send + Sync)) -> bool {
    match code.split_at_checked(2) {
        Some(("21" | "22" | "23" | "44" | "P0", _)) => true,
        Some(("54", _)) => info.table_name().is_some() || info.hint().is_none(),
        _ => false,
    }
}

/// The errors that diesel classifies, for an error without a code.
const fn is_violation(kind: &DatabaseErrorKind) -> bool {
    use DatabaseErrorKind::{
        CheckViolation, ExclusionViolation, ForeignKeyViolation, NotNullViolation, RestrictViolation, UniqueViolation,
    };
    matches!(
        kind,
        UniqueViolation
            | ForeignKeyViolation
            | NotNullViolation
            | CheckViolation
            | RestrictViolation
            | ExclusionViolation
    )
}

/// A stream from a PostgreSQL server whose errors carry their code in their message.
pub struct Coded<S> {
    inner: S,
    chunk: Box<[u8]>,
    rewriter: Rewriter,
    ready: Vec<u8>,
    /// How much of `ready` was read.
    taken: usize,
}

impl<S> Coded<S> {
    /// A stream of which nothing was read yet.
    pub fn new(inner: S) -> Self {
        let chunk = vec![0; READ_LEN].into_boxed_slice();
        Self { inner, chunk, rewriter: Rewriter::default(), ready: Vec::new(), taken: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Coded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.taken >= this.ready.len() {
            this.ready.clear();
            this.taken = 0;
            let mut chunk = ReadBuf::new(&mut this.chunk);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.rewriter.feed(chunk.filled(), &mut this.ready);
        }
        let left = this.ready.get(this.taken..).unwrap_or_default();
        let (now, _) = left.split_at(left.len().min(buf.remaining()));
        buf.put_slice(now);
        this.taken += now.len();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Coded<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}

/// Follows the messages of a server, however the stream splits them.
#[derive(Default)]
struct Rewriter {
    /// Bytes of the current message that pass unchanged.
    passing: usize,
    /// The start of a message that is not complete enough yet: of a header, or of an error.
    held: Vec<u8>,
}

impl Rewriter {
    fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let wanted = if self.passing > 0 { self.passing } else { self.wanted() };
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            bytes = later;
            if self.passing > 0 {
                out.extend_from_slice(now);
                self.passing -= now.len();
            } else {
                self.held.extend_from_slice(now);
                self.settle(out);
            }
        }
    }

    /// The number of bytes missing until the held message can be passed on; never 0.
    fn wanted(&self) -> usize {
        let whole = body_len(&self.held).map_or(HEADER_LEN, |body| HEADER_LEN + body);
        whole.saturating_sub(self.held.len()).max(1)
    }

    /// Passes the held bytes on as soon as they are a complete error, or the header of any other message.
    fn settle(&mut self, out: &mut Vec<u8>) {
        let Some(body) = body_len(&self.held) else { return };
        if self.held.first() != Some(&ERROR_RESPONSE) {
            self.passing = body;
            out.append(&mut self.held);
        } else if self.held.len() >= HEADER_LEN + body {
            out.extend(with_code(&self.held).unwrap_or_else(|| self.held.clone()));
            self.held.clear();
        }
    }
}

/// The length of a message's body, if its header is complete.
fn body_len(message: &[u8]) -> Option<usize> {
    let (_, rest) = message.split_first()?;
    let length = u32::from_be_bytes(*rest.first_chunk::<LENGTH_LEN>()?);
    Some(usize::try_from(length).ok()?.saturating_sub(LENGTH_LEN))
}

/// The error with its code (field `C`) in front of its message (field `M`).
fn with_code(error: &[u8]) -> Option<Vec<u8>> {
    let fields = || error.get(HEADER_LEN..).into_iter().flat_map(|body| body.split_inclusive(|byte| *byte == 0));
    let code = fields().find_map(|field| field.strip_prefix(b"C"))?.strip_suffix(&[0])?;
    let mut body = Vec::with_capacity(error.len() + CODE_LEN + SEPARATOR.len());
    for field in fields() {
        match field.strip_prefix(b"M") {
            Some(message) => body.extend([b"M", code, SEPARATOR.as_bytes(), message].concat()),
            None => body.extend_from_slice(field),
        }
    }
    let length = u32::try_from(body.len() + LENGTH_LEN).ok()?;
    Some([&[ERROR_RESPONSE], &length.to_be_bytes()[..], &body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + LENGTH_LEN).unwrap();
        [&[tag], &length.to_be_bytes()[..], body].concat()
    }

    fn rewritten(bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut rewriter, mut out) = (Rewriter::default(), Vec::new());
        bytes.chunks(piece).for_each(|piece| rewriter.feed(piece, &mut out));
        out
    }

    #[test]
    fn an_error_gets_its_code_whatever_pieces_it_arrives_in_and_all_else_stays_as_it_is() {
        let row = message(b'D', b"E\0\0\0\x05 no error at all");
        let (before, after) = (message(b'Z', b"I"), message(b'C', b""));
        let error = message(b'E', b"SFEHLER\0VERROR\0C53100\0Mkein Platz\0ttable\0\0");
        let coded = message(b'E', b"SFEHLER\0VERROR\0C53100\0M53100: kein Platz\0ttable\0\0");
        let sent = [&row[..], &before, &error, &after, &error, &row].concat();
        let wanted = [&row[..], &before, &coded, &after, &coded, &row].concat();
        for piece in 1..sent.len() {
            assert_eq!(rewritten(&sent, piece), wanted, "in pieces of {piece}");
        }
    }

    #[test]
    fn an_error_without_a_code_stays_as_it_is() {
        let error = message(b'E', b"SERROR\0Mno code\0\0");
        assert_eq!(rewritten(&error, error.len()), error);
    }

    #[test]
    fn only_a_code_of_the_server_is_read_as_one() {
        assert_eq!(code_of("53100: could not extend file"), Some("53100"));
        assert_eq!(code_of("22P02: invalid"), Some("22P02"));
        for text in ["", "53100", "53100 : x", "could not extend file", "ünï: x", "p0001: x"] {
            assert_eq!(code_of(text), None, "{text}");
        }
    }

    #[test]
    fn only_values_that_are_wrong_are_not_the_servers_fault() {
        let refused = |code: &str| {
            let info = format!("{code}: refused");
            is_servers_fault(&Error::DatabaseError(DatabaseErrorKind::Unknown, Box::new(info)))
        };
        for code in ["22021", "22003", "23505", "23514", "21000", "44000", "P0001", "54000", "54001"] {
            assert!(!refused(code), "{code}");
        }
        for code in [
            "08006", "0A000", "25006", "25P02", "26000", "28000", "40001", "40P01", "42501", "42703", "42P01", "53100",
            "53200", "53300", "55P03", "57014", "57P01", "57P03", "58030", "XX000", "XX002", "99999",
        ] {
            assert!(refused(code), "{code}");
        }
    }

    #[test]
    fn without_a_code_the_kind_decides() {
        let of = |kind| is_servers_fault(&Error::DatabaseError(kind, Box::new("refused".to_owned())));
        assert!(of(DatabaseErrorKind::UnableToSendCommand) && of(DatabaseErrorKind::ReadOnlyTransaction));
        assert!(!of(DatabaseErrorKind::UniqueViolation));
        assert!(is_servers_fault(&Error::BrokenTransactionManager));
        assert!(!is_servers_fault(&Error::NotFound));
    }
}
