//! Asks a broker for its version. The broker sends it to every client in its greeting, but lapin does not expose it.
//! So we open one extra connection, read the greeting and close it; the broker logs one abandoned handshake.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A working broker answers quickly, and the version is only a log line.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// The greeting of RabbitMQ is about 500 bytes.
const GREETING_BYTES_MAX: u32 = 64 * 1024;

/// Older brokers lack queue arguments that the topology needs.
pub(super) const OLDEST: (u32, u32) = (3, 10);

/// The version of the broker at this address, without TLS only; `None` if it sends none.
pub(super) async fn ask(host: &str, port: u16) -> Option<String> {
    let greeting = tokio::time::timeout(ASK_TIMEOUT, greet(host, port)).await.ok()?.ok()?;
    find(&greeting)
}

async fn greet(host: &str, port: u16) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((host, port)).await?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    let (_kind, _channel) = (stream.read_u8().await?, stream.read_u16().await?);
    let length = stream.read_u32().await?.min(GREETING_BYTES_MAX);
    let mut greeting = Vec::new();
    stream.take(length.into()).read_to_end(&mut greeting).await?;
    Ok(greeting)
}

/// Finds the entry `version` of the server properties: its name, the type `S`, a length of four bytes, the text.
fn find(greeting: &[u8]) -> Option<String> {
    const ENTRY: &[u8] = b"\x07versionS";
    let start = greeting.windows(ENTRY.len()).position(|window| window == ENTRY)? + ENTRY.len();
    let (length, text) = greeting.get(start..)?.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    String::from_utf8(text.get(..length)?.to_vec()).ok()
}

/// Whether `version` is known to be older than `OLDEST`.
pub(super) fn is_too_old(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    matches!((parts.next(), parts.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < OLDEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_in_a_greeting() {
        let greeting =
            b"\x00\x0a\x00\x0a\x00\x09\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS\x00\x00\x00\x063.10.8";
        assert_eq!(find(greeting).as_deref(), Some("3.10.8"));
        assert_eq!(find(&greeting[..greeting.len() - 1]), None);
        assert_eq!(find(b""), None);
    }

    #[test]
    fn only_versions_before_the_oldest_supported_are_too_old() {
        assert!(is_too_old("3.9.27"));
        assert!(!is_too_old("3.10.8"));
        assert!(!is_too_old("4.1.0-rc.1"));
        assert!(!is_too_old("unknown"));
    }
}
