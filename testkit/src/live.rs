//! A client of the live inbox: what a browser or an app does with the socket.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::api::SOON;

/// Ids that wait to be looked at; no test has more.
const FOLLOWED_MAX: usize = 100_000;

/// A socket that is read all the time, as a browser does it: one that is not read answers no ping, and is given up.
pub struct Followed {
    ids: mpsc::Receiver<Result<String>>,
}

impl Followed {
    /// The id of the next notification, if it comes within `limit`.
    pub async fn next(&mut self, limit: Duration) -> Result<Option<String>> {
        match timeout(limit, self.ids.recv()).await {
            Ok(next) => next.context("the reader of the socket has ended")?.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// The ids of the next notifications, each of which comes within `limit`.
    pub async fn ids(&mut self, count: usize, limit: Duration) -> Result<Vec<String>> {
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count {
            let next = self.next(limit).await.with_context(|| format!("after {} of {count}", ids.len()))?;
            ids.push(next.with_context(|| format!("{} of {count} came", ids.len()))?);
        }
        Ok(ids)
    }
}

/// An open socket.
pub struct Live {
    socket: WebSocketStream<TcpStream>,
}

/// How to open one.
#[derive(Clone, Debug)]
pub struct Opening<'a> {
    /// The port of the process.
    pub port: u16,
    /// Whose inbox.
    pub user: &'a str,
    /// In the query.
    pub token: Option<&'a str>,
    /// In the header.
    pub bearer: Option<&'a str>,
    /// The last notification that was seen.
    pub since: Option<&'a str>,
    /// Bytes that the system takes in for us; `None`: as many as it likes.
    pub buffer: Option<u32>,
}

impl<'a> Opening<'a> {
    /// At this port, this person's, with a token in the query or an API key in the header.
    pub fn new(port: u16, user: &'a str, credential: &'a str) -> Self {
        let is_key = credential.starts_with("ph_");
        let (token, bearer) = if is_key { (None, Some(credential)) } else { (Some(credential), None) };
        Self { port, user, token, bearer, since: None, buffer: None }
    }

    /// With what came after this notification.
    pub fn since(self, id: &'a str) -> Self {
        Self { since: Some(id), ..self }
    }

    /// Opens it; `Err` with the status where that was refused.
    pub async fn try_open(&self) -> Result<Result<Live, u16>> {
        let Self { port, user, .. } = self;
        let given = [("token", self.token), ("since", self.since)];
        let given = given.iter().filter_map(|(name, value)| Some((name, (*value)?)));
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(given).finish();
        let mut request = format!("ws://127.0.0.1:{port}/ws/notifications/{user}?{query}").into_client_request()?;
        if let Some(bearer) = self.bearer {
            request.headers_mut().insert("authorization", HeaderValue::from_str(&format!("Bearer {bearer}"))?);
        }
        let tcp = TcpSocket::new_v4()?;
        if let Some(bytes) = self.buffer {
            tcp.set_recv_buffer_size(bytes)?;
        }
        let stream = tcp.connect(([127, 0, 0, 1], *port).into()).await?;
        match timeout(SOON, client_async(request, stream)).await.context("no answer to the upgrade")? {
            Ok((socket, _)) => Ok(Ok(Live { socket })),
            Err(Error::Http(response)) => Ok(Err(response.status().as_u16())),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens it.
    pub async fn open(&self) -> Result<Live> {
        self.try_open().await?.map_err(|status| anyhow::anyhow!("the socket was refused with {status}"))
    }
}

impl Live {
    /// The next message, as it is.
    pub async fn message(&mut self) -> Result<Value> {
        timeout(SOON, self.any()).await.context("nothing came")?
    }

    /// The next message, however long that takes.
    async fn any(&mut self) -> Result<Value> {
        loop {
            match self.socket.next().await.context("the socket ended")?? {
                Message::Text(text) => return Ok(serde_json::from_str(&text)?),
                Message::Close(frame) => bail!("the socket was closed: {frame:?}"),
                _ => {}
            }
        }
    }

    /// The next notification.
    pub async fn notification(&mut self) -> Result<Value> {
        loop {
            let mut message = self.message().await?;
            if message["type"] == "notification" {
                return Ok(message["data"].take());
            }
        }
    }

    /// Reads on in a task of its own until the socket ends.
    pub fn follow(mut self) -> Followed {
        let (seen, ids) = mpsc::channel(FOLLOWED_MAX);
        tokio::spawn(async move {
            loop {
                let id = match self.any().await {
                    Ok(message) => message["data"]["id"].as_str().map(|id| Ok(id.to_owned())),
                    Err(error) => Some(Err(error)),
                };
                let Some(id) = id else { continue };
                let is_last = id.is_err();
                if seen.send(id).await.is_err() || is_last {
                    return;
                }
            }
        });
        Followed { ids }
    }

    /// The ids of the next notifications.
    pub async fn ids(&mut self, count: usize) -> Result<Vec<String>> {
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count {
            let seen = ids.len();
            let next = self.notification().await.with_context(|| format!("after {seen} of {count}"))?;
            ids.push(next["id"].as_str().context("a notification has an id")?.to_owned());
        }
        Ok(ids)
    }

    /// The remaining items, and the code with which the socket is closed; 1006 where there is none.
    pub async fn rest(&mut self, limit: Duration) -> Result<(Vec<String>, u16)> {
        let mut ids = Vec::new();
        loop {
            match timeout(limit, self.socket.next()).await.context("the socket was not closed")? {
                Some(Ok(Message::Text(text))) => {
                    let message: Value = serde_json::from_str(&text)?;
                    ids.extend(message["data"]["id"].as_str().map(str::to_owned));
                }
                Some(Ok(Message::Close(frame))) => return Ok((ids, frame.map_or(1005, |frame| frame.code.into()))),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Ok((ids, 1006)),
            }
        }
    }

    /// Sends something.
    pub async fn say(&mut self, message: Message) -> Result<()> {
        Ok(self.socket.send(message).await?)
    }

    /// Whether nothing comes for a moment.
    pub async fn is_quiet(&mut self, moment: Duration) -> bool {
        timeout(moment, self.message()).await.is_err()
    }
}
