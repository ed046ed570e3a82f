//! One client's session: commands in, replies out (RFC 5321, with PIPELINING, SIZE, 8BITMIME, SMTPUTF8
//! and AUTH).

use std::io::{ErrorKind, Result};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use base64::prelude::{BASE64_STANDARD, Engine};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::reply::Occasion;
use super::{Mail, Reply, Shared};

/// Serves one client until the session ends.
pub(super) async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let session = Session { stream: BufReader::new(stream), shared, client: String::new(), user: None, envelope: None };
    // A client that hangs up in the middle is no news.
    let _ = session.run().await;
}

/// The state of the connection after a command.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Next {
    Continue,
    Close,
}

/// Whether a command was answered with the usual yes.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Answer {
    Accepted,
    Refused,
    Closing,
}

impl From<Answer> for Next {
    fn from(answer: Answer) -> Self {
        if answer == Answer::Closing { Self::Close } else { Self::Continue }
    }
}

/// The arguments of MAIL and RCPT so far.
struct Envelope {
    sender: String,
    parameters: Vec<String>,
    recipients: Vec<String>,
}

struct Session {
    stream: BufReader<TcpStream>,
    shared: Arc<Shared>,
    client: String,
    user: Option<String>,
    envelope: Option<Envelope>,
}

impl Session {
    async fn run(mut self) -> Result<()> {
        if self.reply(&[Occasion::Connection], "220 sink.localhost ESMTP").await? == Answer::Closing {
            return Ok(());
        }
        while let Some(line) = self.read_line().await? {
            if self.obey(&line).await? == Next::Close {
                break;
            }
        }
        Ok(())
    }

    async fn obey(&mut self, line: &str) -> Result<Next> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" => self.ehlo(rest).await?,
            "HELO" => {
                self.client = rest.to_owned();
                self.say("250 sink.localhost").await?;
            }
            "AUTH" => self.auth(rest).await?,
            "MAIL" => return self.mail(rest).await,
            "RCPT" => return self.rcpt(rest).await,
            "DATA" => return self.data().await,
            "RSET" => {
                self.envelope = None;
                self.say("250 2.0.0 forgotten").await?;
            }
            "NOOP" => self.say("250 2.0.0 nothing done").await?,
            "VRFY" => self.say("252 2.0.0 try it").await?,
            "QUIT" => {
                self.say("221 2.0.0 bye").await?;
                return Ok(Next::Close);
            }
            _ => self.say("500 5.5.1 unknown command").await?,
        }
        Ok(Next::Continue)
    }

    async fn ehlo(&mut self, client: &str) -> Result<()> {
        self.client = client.to_owned();
        self.envelope = None;
        let options = &self.shared.options;
        let auth = if options.credentials.is_some() { "250-AUTH PLAIN LOGIN\r\n" } else { "" };
        let size = options.size_max;
        self.say(&format!(
            "250-sink.localhost\r\n250-PIPELINING\r\n250-SIZE {size}\r\n{auth}250-8BITMIME\r\n\
             250-ENHANCEDSTATUSCODES\r\n250 SMTPUTF8"
        ))
        .await
    }

    async fn auth(&mut self, rest: &str) -> Result<()> {
        let (mechanism, initial) = rest.split_once(' ').map_or((rest, None), |(name, initial)| (name, Some(initial)));
        let given = match mechanism.to_ascii_uppercase().as_str() {
            "PLAIN" => self.auth_plain(initial).await?,
            "LOGIN" => self.auth_login(initial).await?,
            _ => return self.say("504 5.5.4 unknown mechanism").await,
        };
        if given.is_some() && given == self.shared.options.credentials {
            self.user = given.map(|(user, _)| user);
            return self.say("235 2.7.0 welcome").await;
        }
        self.say("535 5.7.8 wrong credentials").await
    }

    /// `authorization NUL user NUL password`.
    async fn auth_plain(&mut self, initial: Option<&str>) -> Result<Option<(String, String)>> {
        let Some(response) = self.response(initial, "334 ").await? else {
            return Ok(None);
        };
        let mut parts = response.splitn(3, '\0').skip(1).map(str::to_owned);
        Ok(parts.next().zip(parts.next()))
    }

    async fn auth_login(&mut self, initial: Option<&str>) -> Result<Option<(String, String)>> {
        // "Username:" and "Password:" in base64.
        let user = self.response(initial, "334 VXNlcm5hbWU6").await?;
        let password = self.response(None, "334 UGFzc3dvcmQ6").await?;
        Ok(user.zip(password))
    }

    /// The client's answer to a prompt, or the one that it sent along with the command.
    async fn response(&mut self, initial: Option<&str>, prompt: &str) -> Result<Option<String>> {
        let encoded = match initial {
            Some(initial) => initial.to_owned(),
            None => {
                self.say(prompt).await?;
                self.read_line().await?.unwrap_or_default()
            }
        };
        Ok(BASE64_STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok()))
    }

    async fn mail(&mut self, rest: &str) -> Result<Next> {
        if self.shared.options.credentials.is_some() && self.user.is_none() {
            return self.refuse("530 5.7.0 log in first").await;
        }
        let Some((sender, parameters)) = path(rest, "FROM:") else {
            return self.refuse("501 5.5.4 MAIL FROM:<address>").await;
        };
        if announced_size(&parameters) > self.shared.options.size_max {
            return self.refuse("552 5.3.4 too large").await;
        }
        let answer = self.reply(&[Occasion::Sender], "250 2.1.0 sender accepted").await?;
        if answer == Answer::Accepted {
            self.envelope = Some(Envelope { sender, parameters, recipients: Vec::new() });
        }
        Ok(answer.into())
    }

    async fn rcpt(&mut self, rest: &str) -> Result<Next> {
        let Some((recipient, _)) = path(rest, "TO:") else {
            return self.refuse("501 5.5.4 RCPT TO:<address>").await;
        };
        if self.envelope.is_none() {
            return self.refuse("503 5.5.1 MAIL first").await;
        }
        let named = Occasion::Recipient(recipient.to_lowercase());
        let answer = self.reply(&[named, Occasion::OtherRecipient], "250 2.1.5 recipient accepted").await?;
        if let (Answer::Accepted, Some(envelope)) = (answer, &mut self.envelope) {
            envelope.recipients.push(recipient);
        }
        Ok(answer.into())
    }

    async fn data(&mut self) -> Result<Next> {
        let Some(envelope) = self.envelope.take_if(|envelope| !envelope.recipients.is_empty()) else {
            return self.refuse("503 5.5.1 RCPT first").await;
        };
        self.say("354 end with a dot").await?;
        let Some(content) = self.read_content().await? else {
            return self.refuse("552 5.3.4 too large").await;
        };
        let (received_at, received_at_clock) = (Instant::now(), SystemTime::now());
        let reply = self.shared.replies().next(&[Occasion::Content]);
        self.shared.mails.add(Mail {
            client: self.client.clone(),
            user: self.user.clone(),
            sender: envelope.sender,
            parameters: envelope.parameters,
            recipients: envelope.recipients,
            content,
            accepted: accepts(&reply),
            received_at,
            received_at_clock,
        });
        Ok(self.perform(reply, "250 2.0.0 taken").await?.into())
    }

    /// The content up to the final dot with dot-stuffing undone, or nothing if it is too large.
    async fn read_content(&mut self) -> Result<Option<Vec<u8>>> {
        let limit = self.shared.options.size_max;
        let mut content = Vec::new();
        let mut line = Vec::new();
        loop {
            line.clear();
            if self.stream.read_until(b'\n', &mut line).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if line == b".\r\n" {
                return Ok((content.len() <= limit).then_some(content));
            }
            // Beyond the limit it is read and forgotten, so that memory stays bounded.
            if content.len() <= limit {
                content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
            }
        }
    }

    async fn read_line(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        let read = self.stream.read_until(b'\n', &mut line).await?;
        Ok((read > 0).then(|| String::from_utf8_lossy(&line).trim_end().to_owned()))
    }

    async fn say(&mut self, reply: &str) -> Result<()> {
        self.stream.write_all(format!("{reply}\r\n").as_bytes()).await
    }

    async fn refuse(&mut self, reply: &str) -> Result<Next> {
        self.say(reply).await?;
        Ok(Next::Continue)
    }

    /// Says what was asked for on this occasion, else the usual.
    async fn reply(&mut self, occasions: &[Occasion], usual: &str) -> Result<Answer> {
        let reply = self.shared.replies().next(occasions);
        self.perform(reply, usual).await
    }

    async fn perform(&mut self, mut reply: Reply, usual: &str) -> Result<Answer> {
        while let Reply::Delay(delay, later) = reply {
            tokio::time::sleep(delay).await;
            reply = *later;
        }
        match reply {
            Reply::Accept => self.say(usual).await.map(|()| Answer::Accepted),
            Reply::Code(code, text) => self.say(&format!("{code} {text}")).await.map(|()| answer_of(code)),
            Reply::Hang => self.wait_for_the_client_to_leave().await,
            // Sequences are resolved by now, so this is `Drop`.
            _ => Ok(Answer::Closing),
        }
    }

    async fn wait_for_the_client_to_leave(&mut self) -> Result<Answer> {
        while self.stream.read_u8().await.is_ok() {}
        Ok(Answer::Closing)
    }
}

fn answer_of(code: u16) -> Answer {
    match code {
        200..300 => Answer::Accepted,
        421 => Answer::Closing,
        _ => Answer::Refused,
    }
}

/// Whether the client is going to get a success.
fn accepts(reply: &Reply) -> bool {
    match reply {
        Reply::Accept => true,
        Reply::Code(code, _) => answer_of(*code) == Answer::Accepted,
        Reply::Delay(_, later) => accepts(later),
        Reply::Drop | Reply::Hang | Reply::Sequence(_) => false,
    }
}

/// The address and parameters of `FROM:<a@b> SIZE=1` or `TO:<a@b>`.
fn path(text: &str, keyword: &str) -> Option<(String, Vec<String>)> {
    let text = text.trim_start();
    let rest = text.get(keyword.len()..).filter(|_| text.to_ascii_uppercase().starts_with(keyword))?;
    let (address, parameters) = rest.trim_start().strip_prefix('<')?.split_once('>')?;
    Some((address.to_owned(), parameters.split_whitespace().map(str::to_owned).collect()))
}

fn announced_size(parameters: &[String]) -> usize {
    let size = parameters.iter().find_map(|parameter| parameter.strip_prefix("SIZE="));
    size.and_then(|size| size.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_an_address_in_brackets_and_parameters() {
        let parameters = vec!["SIZE=12".to_owned(), "BODY=8BITMIME".to_owned()];
        assert_eq!(path("FROM:<a@b> SIZE=12 BODY=8BITMIME", "FROM:"), Some(("a@b".to_owned(), parameters.clone())));
        assert_eq!(path("from: <>", "FROM:"), Some((String::new(), Vec::new())));
        assert_eq!(path("a@b", "TO:"), None);
        assert_eq!(announced_size(&parameters), 12);
    }
}
