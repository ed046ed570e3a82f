//! Composes the mail of a delivery (RFC 5322, MIME). The mail library encodes every value, so no value can add a header or a
//! recipient.

use base64::{Engine, engine::general_purpose::STANDARD};
use domain::{
    Fault, Outcome,
    contract::{
        Order,
        submission::{self, Content},
    },
};
use lettre::{
    Address, Message,
    message::{
        Attachment, Body, Mailbox, MultiPart, SinglePart,
        header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue},
    },
};
use tokio::task::spawn_blocking;

/// The subject of a mail without a title.
pub(super) const SUBJECT_DEFAULT: &str = "Notification";
/// Names the message to the readers of the mail.
const MESSAGE_HEADER: &str = "X-Posthaste-Message-Id";
/// Names the delivery in what Amazon SES reports about mails without tags.
const DELIVERY_HEADER: &str = "X-Posthaste-Delivery-Id";
/// One-click unsubscription (RFC 8058): the address, and the promise that a POST to it is enough.
const UNSUBSCRIBE: &str = "List-Unsubscribe";
const UNSUBSCRIBE_POST: (&str, &str) = ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click");

/// A mail ready for the wire.
#[derive(Debug)]
pub(super) struct Mail {
    pub(super) sender: Address,
    pub(super) recipient: Address,
    /// Headers and body, lines ending in CRLF, dots not yet stuffed.
    pub(super) bytes: Vec<u8>,
}

/// Why a delivery has no form as a mail.
#[derive(Debug, thiserror::Error)]
pub(super) enum ComposeError {
    /// The recipient cannot be written to.
    #[error("the recipient is no e-mail address")]
    Recipient,
    /// An attachment is not base64.
    #[error("an attachment is not base64")]
    Attachment,
    /// The mail library refused it.
    #[error("the content has no form as a mail")]
    Content,
    /// The key of the settings did not sign it.
    #[error("the mail could not be signed; see DKIM_PRIVATE_KEY_PATH")]
    Signature,
}

impl ComposeError {
    /// A short word for programs.
    const fn code(&self) -> &'static str {
        match self {
            Self::Recipient => "bad_address",
            Self::Attachment => "bad_attachment",
            Self::Content => "content",
            Self::Signature => "dkim",
        }
    }

    /// Its meaning for the delivery.
    pub(super) fn into_outcome(self) -> Outcome {
        let fault = Fault::new(self.code(), self.to_string());
        match self {
            Self::Recipient | Self::Attachment | Self::Content => Outcome::Rejected(fault),
            Self::Signature => Outcome::Misconfigured(fault),
        }
    }
}

/// Writes the mail of a delivery. The `Message-ID` is the same for every attempt, so a receiver can tell repeats.
pub(super) fn compose(from: &Mailbox, order: &Order) -> Result<Mail, ComposeError> {
    let recipient: Address = order.recipient.reveal().parse().map_err(|_| ComposeError::Recipient)?;
    let content = &order.content;
    let head = Message::builder()
        .from(from.clone())
        .to(Mailbox::new(None, recipient.clone()))
        .subject(non_empty(&content.title).unwrap_or(SUBJECT_DEFAULT))
        .message_id(Some(message_id(from, order)))
        .date_now();
    let head = extra_headers(order).into_iter().fold(head, |head, (name, value)| {
        head.raw_header(HeaderValue::new(HeaderName::new_from_ascii_str(name), value))
    });
    let mail = match mixed(content)? {
        Some(parts) => head.multipart(parts),
        None => match text(content) {
            Text::Single(part) => head.singlepart(part),
            Text::Both(parts) => head.multipart(parts),
        },
    };
    let bytes = mail.map_err(|_| ComposeError::Content)?.formatted();
    Ok(Mail { sender: from.email.clone(), recipient, bytes })
}

/// Composes a mail. One with attachments is composed on a blocking thread: encoding megabytes would delay the other tasks of this
/// thread.
pub(super) async fn compose_blocking<F>(order: &Order, write: F) -> Result<Mail, ComposeError>
where
    F: FnOnce(&Order) -> Result<Mail, ComposeError> + Send + 'static,
{
    if order.content.attachments.is_empty() {
        return write(order);
    }
    let order = order.clone();
    spawn_blocking(move || write(&order)).await.unwrap_or(Err(ComposeError::Content))
}

/// The same on every attempt and from every provider.
pub(super) fn message_id(from: &Mailbox, order: &Order) -> String {
    format!("<{}@{}>", order.delivery, from.email.domain())
}

/// Our headers, which every mail carries with every provider.
pub(super) fn extra_headers(order: &Order) -> Vec<(&'static str, String)> {
    let mut headers = vec![(MESSAGE_HEADER, order.message.to_string()), (DELIVERY_HEADER, order.delivery.to_string())];
    // A URL that would break out of its brackets is not made by Posthaste.
    let url =
        order.content.unsubscribe_url.as_deref().filter(|url| url.bytes().all(|b| b.is_ascii_graphic() && b != b'>'));
    if let Some(url) = url {
        let (name, promise) = UNSUBSCRIBE_POST;
        headers.extend([(UNSUBSCRIBE, format!("<{url}>")), (name, promise.to_owned())]);
    }
    headers
}

enum Text {
    Single(SinglePart),
    Both(MultiPart),
}

pub(super) fn non_empty(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

fn text(content: &Content) -> Text {
    match (non_empty(&content.message), non_empty(&content.html)) {
        (Some(plain), Some(html)) => Text::Both(MultiPart::alternative_plain_html(plain.to_owned(), html.to_owned())),
        (None, Some(html)) => Text::Single(SinglePart::html(html.to_owned())),
        (plain, None) => Text::Single(SinglePart::plain(plain.unwrap_or_default().to_owned())),
    }
}

/// Text and attachments, if there are any.
fn mixed(content: &Content) -> Result<Option<MultiPart>, ComposeError> {
    if content.attachments.is_empty() {
        return Ok(None);
    }
    let parts = match text(content) {
        Text::Single(part) => MultiPart::mixed().singlepart(part),
        Text::Both(both) => MultiPart::mixed().multipart(both),
    };
    content.attachments.iter().try_fold(parts, |parts, file| Ok(parts.singlepart(attachment(file)?))).map(Some)
}

fn attachment(file: &submission::Attachment) -> Result<SinglePart, ComposeError> {
    let bytes = STANDARD.decode(&file.content).map_err(|_| ComposeError::Attachment)?;
    // An unreadable type becomes that of unknown bytes; the file still arrives.
    let kind = ContentType::parse(&file.content_type).or_else(|_| ContentType::parse("application/octet-stream"));
    // By default the library sends a text file as text, and mail servers then change its line ends.
    let body = Body::new_with_encoding(bytes, ContentTransferEncoding::Base64).map_err(|_| ComposeError::Attachment)?;
    Ok(Attachment::new(file.filename.clone()).body(body, kind.map_err(|_| ComposeError::Attachment)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::order;
    use domain::Channel;

    fn mail(recipient: &str, content: &serde_json::Value) -> Result<Mail, ComposeError> {
        let from = "Posthaste <noreply@example.com>".parse().unwrap();
        compose(&from, &order(Channel::Email, recipient, &content.to_string()))
    }

    fn headers(mail: &Mail) -> Vec<(String, String)> {
        let text = String::from_utf8(mail.bytes.clone()).unwrap();
        let head = text.split("\r\n\r\n").next().unwrap().replace("\r\n ", " ").replace("\r\n\t", " ");
        head.split("\r\n")
            .map(|line| line.split_once(": ").unwrap())
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect()
    }

    #[test]
    fn a_mail_names_sender_recipient_and_delivery() {
        let content = serde_json::json!({"title": "Grüße", "message": "Hallo"});
        let order = order(Channel::Email, "ada@example.org", &content.to_string());
        let mail = compose(&"Posthaste <noreply@example.com>".parse().unwrap(), &order).unwrap();
        let headers = headers(&mail);
        let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(header("From"), Some("Posthaste <noreply@example.com>"));
        assert_eq!(header("To"), Some("ada@example.org"));
        assert_eq!(header("Message-ID"), Some(format!("<{}@example.com>", order.delivery).as_str()));
        assert_eq!(header("X-Posthaste-Message-Id"), Some(order.message.to_string().as_str()));
        assert!(header("Subject").is_some_and(|subject| subject.starts_with("=?utf-8?")), "{headers:?}");
        assert!(header("Date").is_some() && header("MIME-Version").is_some());
    }

    #[test]
    fn text_html_and_files_become_alternatives_inside_a_mixture() {
        let content = serde_json::json!({
            "message": "plain", "html": "<p>rich</p>",
            "attachments": [{"filename": "räte.txt", "content_type": "text/plain", "content": "aGVsbG8="}],
        });
        let text = String::from_utf8(mail("ada@example.org", &content).unwrap().bytes).unwrap();
        let places: Vec<_> =
            ["multipart/mixed", "multipart/alternative", "text/plain", "text/html", "Content-Disposition: attachment"]
                .iter()
                .map(|part| text.find(part).unwrap_or_else(|| panic!("no {part} in {text}")))
                .collect();
        assert!(places.is_sorted(), "{places:?}");
        assert!(
            text.contains("filename*0*=utf-8''r%C3%A4te.txt") || text.contains("filename*=utf-8''r%C3%A4te.txt"),
            "{text}"
        );
    }

    #[test]
    fn no_value_can_become_a_header_of_its_own() {
        let evil = "x\r\nBcc: spy@example.net\r\n\r\nbody";
        let content = serde_json::json!({
            "title": evil, "message": "m",
            "attachments": [{"filename": evil, "content_type": "text/plain\r\nBcc: spy@example.net", "content": ""}],
        });
        let mail = mail("ada@example.org", &content).unwrap();
        let text = String::from_utf8(mail.bytes.clone()).unwrap();
        assert!(text.split("\r\n").all(|line| !line.to_ascii_lowercase().starts_with("bcc:")), "{text}");
        assert_eq!(headers(&mail).iter().filter(|(name, _)| name == "To").count(), 1);
    }

    #[test]
    fn what_is_no_mail_is_refused() {
        let content = serde_json::json!({"message": "m"});
        assert!(matches!(mail("not an address", &content), Err(ComposeError::Recipient)));
        assert!(matches!(mail("a@b.example\r\nRCPT TO:<c@d.example>", &content), Err(ComposeError::Recipient)));
        let broken = serde_json::json!({"message": "m", "attachments": [{"filename": "f", "content_type": "text/plain", "content": "%"}]});
        assert!(matches!(mail("ada@example.org", &broken), Err(ComposeError::Attachment)));
    }
}
