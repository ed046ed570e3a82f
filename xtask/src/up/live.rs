//! The demonstration's browser: it follows an inbox over a WebSocket, as a page would that shows toasts.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::{net::TcpStream, runtime::Handle, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest, http::header::AUTHORIZATION},
};

/// How long the socket may take to open, or a notification to arrive once it stands in the inbox.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// An open socket.
pub(super) struct Toasts<'a> {
    runtime: &'a Handle,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl<'a> Toasts<'a> {
    /// Follows the inbox of `user` at the platform's `url`.
    pub(super) fn follow(runtime: &'a Handle, url: &str, user: &str, key: &str) -> Result<Self> {
        let address = format!("{}/ws/notifications/{user}", url.replacen("http", "ws", 1));
        let mut request = address.into_client_request()?;
        request.headers_mut().insert(AUTHORIZATION, format!("Bearer {key}").parse()?);
        let opened = runtime.block_on(async { timeout(TIME_LIMIT, connect_async(request)).await });
        let (socket, _) = opened.context("no answer")?.context("the socket was refused")?;
        Ok(Self { runtime, socket })
    }

    /// The next toast as a line.
    pub(super) fn next(&mut self) -> Result<String> {
        let Self { runtime, socket } = self;
        runtime.block_on(async { timeout(TIME_LIMIT, next(socket)).await.context("nothing came")? })
    }
}

async fn next(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> Result<String> {
    while let Some(message) = socket.next().await {
        if let Message::Text(text) = message.context("the socket broke")?
            && let Some(line) = toast(&serde_json::from_str(&text)?)
        {
            return Ok(line);
        }
    }
    anyhow::bail!("the socket ended")
}

/// The text that a page would show; nothing for messages of other types.
fn toast(message: &Value) -> Option<String> {
    let data = message.get("data").filter(|_| message.get("type").is_some_and(|kind| kind == "notification"))?;
    let text = |name: &str| data.get(name).and_then(Value::as_str).unwrap_or_default();
    Some(format!("{}: {}", text("title"), text("message")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_notifications_become_toasts() {
        let shown = toast(&json!({"type": "notification", "data": {"title": "Hello", "message": "It works."}}));
        assert_eq!(shown.as_deref(), Some("Hello: It works."));
        assert_eq!(toast(&json!({"type": "other", "data": {"title": "Hello"}})), None);
    }
}
