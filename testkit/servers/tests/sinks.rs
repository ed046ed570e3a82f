//! The two sinks over real sockets, with clients that are as plain as possible.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use servers::sinks::http::{HttpSink, Reply as HttpReply};
use servers::sinks::smtp::{Options, Reply as SmtpReply, SmtpSink};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(60);

/// Reads until `end` has been seen; an end of the connection before that is an error.
async fn read_to(stream: &mut TcpStream, end: &str) -> Result<String> {
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains(end) {
        let read = tokio::time::timeout(LIMIT, stream.read_buf(&mut text)).await??;
        ensure!(read > 0, "the connection ended after {:?}", String::from_utf8_lossy(&text));
    }
    Ok(String::from_utf8(text)?)
}

/// Everything until the connection ends, in whatever way.
async fn read_rest(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut text)).await?;
    Ok(text)
}

async fn post(sink: &HttpSink, path: &str) -> Result<String> {
    let mut client = TcpStream::connect(sink.address()).await?;
    let request = format!("POST {path} HTTP/1.1\r\nHost: sink\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi");
    client.write_all(request.as_bytes()).await?;
    Ok(String::from_utf8_lossy(&read_rest(&mut client).await?).into_owned())
}

#[tokio::test]
async fn requests_are_recorded_as_they_came_and_connections_kept_open() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let mut client = TcpStream::connect(sink.address()).await?;
    // Two requests at once, the second one chunked: what comes early must not get lost.
    client.write_all(b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nX-Id: 7\r\nContent-Length: 7\r\n\r\n{\"n\":1}").await?;
    client.write_all(b"PUT /d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n").await?;
    let requests = sink.wait_for(2, LIMIT).await?;
    let [first, second] = requests.as_slice() else { anyhow::bail!("{} requests", requests.len()) };
    assert_eq!((first.method.as_str(), first.path(), first.target.as_str()), ("POST", "/a", "/a?b=c"));
    assert_eq!((first.header("x-id"), first.json()?), (Some("7"), serde_json::json!({"n": 1})));
    assert_eq!((second.method.as_str(), second.body.as_slice()), ("PUT", b"ab".as_slice()));
    client.write_all(b"GET /end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    assert_eq!(String::from_utf8(read_rest(&mut client).await?)?.matches("HTTP/1.1 200 OK").count(), 3);
    sink.clear();
    assert_eq!(sink.requests().len(), 0);
    Ok(())
}

#[tokio::test]
async fn replies_are_what_was_asked_for() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let busy = HttpReply::status(429).with_header("Retry-After", "3");
    sink.reply_to(
        "/s",
        HttpReply::Sequence(vec![busy, HttpReply::Garbage, HttpReply::CloseAfterBody, HttpReply::ok()]),
    );
    let answer = post(&sink, "/s").await?;
    ensure!(answer.starts_with("HTTP/1.1 429") && answer.contains("Retry-After: 3"), "{answer}");
    ensure!(!post(&sink, "/s").await?.starts_with("HTTP"));
    assert_eq!(post(&sink, "/s").await?, "");
    for _ in 0..2 {
        ensure!(post(&sink, "/s").await?.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(sink.requests_to("/s").len(), 5);
    sink.reply_by_default(HttpReply::with(|request| {
        HttpReply::json(201, &serde_json::json!({"echo": request.text()}))
    }));
    ensure!(post(&sink, "/other").await?.ends_with("{\"echo\":\"hi\"}"));
    Ok(())
}

#[tokio::test]
async fn slow_hanging_and_refusing_receivers() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    sink.reply_to("/slow", HttpReply::ok().after(Duration::from_millis(200)));
    sink.reply_to("/hang", HttpReply::Hang);
    sink.reply_to("/cut", HttpReply::CloseBeforeReading);
    let began = Instant::now();
    ensure!(post(&sink, "/slow").await?.starts_with("HTTP/1.1 200"));
    ensure!(began.elapsed() >= Duration::from_millis(200));
    assert_eq!(post(&sink, "/cut").await?, "");
    assert_eq!((sink.cut_off(), sink.requests_to("/cut").len()), (1, 0));
    sink.clear();
    let mut hanging = std::pin::pin!(post(&sink, "/hang"));
    tokio::select! {
        answer = &mut hanging => anyhow::bail!("there was an answer: {answer:?}"),
        arrived = sink.wait_for(1, LIMIT) => assert_eq!(arrived?[0].path(), "/hang"),
    }
    let answer = tokio::time::timeout(Duration::from_millis(300), hanging).await;
    ensure!(answer.is_err(), "there was an answer");
    assert_eq!(sink.requests_to("/hang").len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_receiver_can_go_away_and_come_back() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let address = sink.address();
    let mut open = TcpStream::connect(address).await?;
    open.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    read_to(&mut open, "\r\n\r\n").await?;
    drop(sink);
    assert_eq!(read_rest(&mut open).await?, b"");
    let sink = HttpSink::start(address).await?;
    ensure!(post(&sink, "/").await?.starts_with("HTTP/1.1 200"));
    Ok(())
}

#[tokio::test]
async fn thousands_of_requests_a_second_are_taken() -> Result<()> {
    let sink = HttpSink::start_local().await?;
    let clients = (0..10).map(|_| many_requests(sink.address(), 500));
    let running: Vec<_> = clients.map(tokio::spawn).collect();
    sink.wait_for(5_000, LIMIT).await?;
    for client in running {
        client.await??;
    }
    Ok(())
}

async fn many_requests(address: std::net::SocketAddr, count: usize) -> Result<()> {
    let mut client = TcpStream::connect(address).await?;
    for _ in 0..count {
        client.write_all(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi").await?;
        read_to(&mut client, "\r\n\r\n").await?;
    }
    Ok(())
}

/// A client's half of an SMTP session: commands out, replies in.
struct Smtp(TcpStream);

impl Smtp {
    async fn connect(sink: &SmtpSink) -> Result<Self> {
        let mut client = Self(TcpStream::connect(sink.address()).await?);
        client.expect("220").await?;
        client.0.write_all(b"EHLO test\r\n").await?;
        read_to(&mut client.0, "250 SMTPUTF8\r\n").await?;
        Ok(client)
    }

    async fn expect(&mut self, code: &str) -> Result<String> {
        let reply = read_to(&mut self.0, "\r\n").await?;
        ensure!(reply.lines().last().is_some_and(|line| line.starts_with(code)), "expected {code}, got {reply}");
        Ok(reply)
    }

    async fn tell(&mut self, command: &str, code: &str) -> Result<String> {
        self.0.write_all(format!("{command}\r\n").as_bytes()).await?;
        self.expect(code).await
    }

    async fn begin(&mut self, recipient: &str) -> Result<()> {
        self.tell("MAIL FROM:<from@example.com> BODY=8BITMIME", "250").await?;
        self.tell(&format!("RCPT TO:<{recipient}>"), "250").await?;
        self.tell("DATA", "354").await.map(drop)
    }
}

#[tokio::test]
async fn mail_is_recorded_without_its_dot_stuffing() -> Result<()> {
    let sink = SmtpSink::start_local().await?;
    let mut client = Smtp::connect(&sink).await?;
    client.begin("to@example.com").await?;
    client.tell("Subject: a\r\n long one\r\n\r\n..dot\r\nümlaut\r\n.", "250").await?;
    let mails = sink.wait_for(1, LIMIT).await?;
    let [mail] = mails.as_slice() else { anyhow::bail!("{} mails", mails.len()) };
    assert_eq!(mail.text(), "Subject: a\r\n long one\r\n\r\n.dot\r\nümlaut\r\n");
    assert_eq!(mail.header("subject").as_deref(), Some("a long one"));
    assert_eq!((mail.client.as_str(), mail.sender.as_str(), mail.accepted), ("test", "from@example.com", true));
    assert_eq!(
        (mail.recipients.as_slice(), mail.parameters.as_slice()),
        (["to@example.com".to_owned()].as_slice(), ["BODY=8BITMIME".to_owned()].as_slice())
    );
    client.tell("RCPT TO:<x@y>", "503").await?;
    client.tell("QUIT", "221").await?;
    Ok(())
}

#[tokio::test]
async fn recipients_and_content_are_refused_as_asked_for() -> Result<()> {
    let sink = SmtpSink::start_local().await?;
    sink.reply_to_recipient("Gone@example.com", SmtpReply::Code(550, "5.1.1 gone".to_owned()));
    sink.reply_to_content(SmtpReply::Sequence(vec![
        SmtpReply::Code(451, "4.3.0 later".to_owned()),
        SmtpReply::Drop,
        SmtpReply::Accept,
    ]));
    let mut client = Smtp::connect(&sink).await?;
    client.tell("MAIL FROM:<from@example.com>", "250").await?;
    client.tell("RCPT TO:<gone@example.com>", "550").await?;
    client.tell("DATA", "503").await?;
    client.tell("RSET", "250").await?;
    client.begin("a@example.com").await?;
    client.tell("x\r\n.", "451").await?;
    client.begin("a@example.com").await?;
    ensure!(client.tell("x\r\n.", "250").await.is_err_and(|error| error.to_string().contains("ended")));
    let mut again = Smtp::connect(&sink).await?;
    again.begin("a@example.com").await?;
    again.tell("x\r\n.", "250").await?;
    let accepted: Vec<bool> = sink.mails_to("a@example.com").iter().map(|mail| mail.accepted).collect();
    assert_eq!(accepted, [false, false, true]);
    sink.reply_to_sender(SmtpReply::Code(421, "4.3.2 closing".to_owned()));
    again.tell("MAIL FROM:<>", "421").await?;
    assert_eq!(read_rest(&mut again.0).await?, b"");
    Ok(())
}

#[tokio::test]
async fn credentials_are_demanded_and_checked() -> Result<()> {
    let options = Options { credentials: Some(("user".to_owned(), "secret".to_owned())), size_max: 100 };
    let sink = SmtpSink::start_with(([127, 0, 0, 1], 0).into(), options).await?;
    let mut client = Smtp::connect(&sink).await?;
    client.tell("MAIL FROM:<a@b>", "530").await?;
    // "\0user\0wrong", then "user" and "secret" one by one.
    client.tell("AUTH PLAIN AHVzZXIAd3Jvbmc=", "535").await?;
    client.tell("AUTH LOGIN", "334").await?;
    client.tell("dXNlcg==", "334").await?;
    client.tell("c2VjcmV0", "235").await?;
    client.tell("MAIL FROM:<a@b> SIZE=101", "552").await?;
    client.begin("to@example.com").await?;
    client.tell(&format!("{}\r\n.", "x".repeat(101)), "552").await?;
    client.begin("to@example.com").await?;
    client.tell("small\r\n.", "250").await?;
    assert_eq!(sink.mails().iter().map(|mail| mail.user.clone()).collect::<Vec<_>>(), [Some("user".to_owned())]);
    Ok(())
}

#[tokio::test]
async fn pipelined_commands_are_answered_in_order() -> Result<()> {
    let sink = SmtpSink::start_local().await?;
    let mut client = Smtp::connect(&sink).await?;
    client.0.write_all(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n").await?;
    let replies = read_to(&mut client.0, "354").await?;
    assert_eq!(replies.matches("250").count(), 3);
    client.0.write_all(b"Subject: x\r\n\r\ny\r\n.\r\nQUIT\r\n").await?;
    read_rest(&mut client.0).await?;
    assert_eq!(sink.mails_to("E@F").len(), 1);
    Ok(())
}
