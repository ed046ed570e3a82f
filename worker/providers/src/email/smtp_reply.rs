//! The meaning of the replies of a mail server (RFC 5321, RFC 3463).

use domain::{Fault, Outcome};

/// A step of sending a mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Connecting, greeting, encryption.
    Connect,
    /// AUTH.
    Login,
    /// MAIL FROM.
    Sender,
    /// RCPT TO.
    Recipient,
    /// DATA, before its content.
    Data,
    /// The content: from here on the server may have accepted the mail, whatever the reply.
    Content,
}

impl Step {
    /// The step that the server refused.
    const fn subject(self) -> &'static str {
        match self {
            Self::Connect => "the connection",
            Self::Login => "the login",
            Self::Sender => "the sender",
            Self::Recipient => "the recipient",
            Self::Data | Self::Content => "the mail",
        }
    }
}

/// The outcome of a refusal with reply code `code` (4xx or 5xx) and the server's words.
///
/// The server's text is read and never stored, because servers put addresses into it.
pub(super) fn refusal(step: Step, code: u16, text: &str) -> Outcome {
    let status = enhanced(text);
    let detail = format!("the mail server refused {} with {code}", step.subject());
    let fault = Fault::new(code.to_string(), status.map_or(detail.clone(), |status| format!("{detail} {status}")));
    match (step, code) {
        (_, 421) => Outcome::Throttled(fault, None),
        (_, ..=499) | (Step::Connect, _) => Outcome::Transient(fault, None),
        // 530, 534, 535, 538: log in first, or with other credentials, or encrypted.
        (Step::Login, _) | (_, 530 | 534 | 535 | 538) => Outcome::Misconfigured(fault),
        // A sender that is refused is our setting, unless it is about the size announced with it.
        (Step::Sender, 550 | 551 | 553) => Outcome::Misconfigured(fault),
        (Step::Recipient, 550 | 551 | 553) if is_dead(status, text) => Outcome::AddressDead(fault),
        // Some servers look at the recipient only after the content; then the status must say so.
        (Step::Content, 550 | 551 | 553) if status.is_some_and(names_dead_address) => Outcome::AddressDead(fault),
        _ => Outcome::Rejected(fault),
    }
}

/// The enhanced status code at the start of a reply's text, such as `5.1.1`.
fn enhanced(text: &str) -> Option<&str> {
    let word = text.split_ascii_whitespace().next()?;
    let mut parts = word.split('.');
    let class = parts.next().is_some_and(|class| matches!(class, "2" | "4" | "5"));
    let number = |part: Option<&str>| {
        part.is_some_and(|digits| (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()))
    };
    (class && number(parts.next()) && number(parts.next()) && parts.next().is_none()).then_some(word)
}

/// No such mailbox, domain or address, mailbox moved or switched off. Policy (5.7.x) or a full box say nothing about
/// the next mail.
fn names_dead_address(status: &str) -> bool {
    matches!(status, "5.1.1" | "5.1.2" | "5.1.3" | "5.1.6" | "5.1.10" | "5.2.1")
}

/// Without an enhanced status, only clear words count: an address that is wrongly taken for dead gets no mail again.
fn is_dead(status: Option<&str>, text: &str) -> bool {
    const WORDS: &[&str] = &[
        "unknown",
        "no such",
        "not exist",
        "doesn't exist",
        "invalid",
        "not found",
        "unavailable",
        "no mailbox",
        "disabled",
    ];
    match status {
        Some(status) => names_dead_address(status),
        None => {
            let text = text.to_ascii_lowercase();
            WORDS.iter().any(|word| text.contains(word))
        }
    }
}

/// The id under which a server says it has queued a mail: `… queued as 4F1A…` (Postfix), `OK id=1t…` (Exim).
pub(super) fn queue_id(text: &str) -> Option<String> {
    let after = ["queued as ", "id="].iter().find_map(|lead| text.split_once(lead).map(|(_, rest)| rest))?;
    let id: String = after.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
    (!id.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::OutcomeClass::{self, *};

    fn class(step: Step, code: u16, text: &str) -> OutcomeClass {
        refusal(step, code, text).class()
    }

    #[test]
    fn each_reply_has_its_meaning() {
        for (step, code, text, expected) in [
            (Step::Connect, 421, "4.3.2 closing", Throttled),
            (Step::Content, 421, "4.7.0 slow down", Throttled),
            (Step::Recipient, 450, "4.2.1 busy", Transient),
            (Step::Recipient, 451, "4.7.1 greylisted", Transient),
            (Step::Content, 452, "4.3.1 no space", Transient),
            (Step::Login, 454, "4.7.0 try later", Transient),
            (Step::Connect, 554, "no service here", Transient),
            (Step::Login, 535, "5.7.8 wrong", Misconfigured),
            (Step::Sender, 530, "5.7.0 log in first", Misconfigured),
            (Step::Sender, 553, "5.7.1 not yours", Misconfigured),
            (Step::Sender, 552, "5.3.4 too large", Rejected),
            (Step::Recipient, 550, "5.1.1 no such person", AddressDead),
            (Step::Recipient, 553, "5.1.3 bad syntax", AddressDead),
            (Step::Recipient, 550, "User unknown", AddressDead),
            (Step::Recipient, 550, "Requested action not taken: mailbox unavailable", AddressDead),
            (Step::Recipient, 550, "5.7.1 listed at some blocklist", Rejected),
            (Step::Recipient, 550, "relaying denied", Rejected),
            (Step::Recipient, 552, "5.2.2 mailbox full", Rejected),
            (Step::Content, 550, "5.1.1 no such person", AddressDead),
            (Step::Content, 550, "user unknown to our spam filter", Rejected),
            (Step::Content, 554, "5.7.1 spam", Rejected),
        ] {
            assert_eq!(class(step, code, text), expected, "{step:?} {code} {text}");
        }
    }

    #[test]
    fn the_words_of_a_server_are_not_repeated() {
        let outcome = refusal(Step::Recipient, 550, "5.1.1 <ada@example.com>: user unknown");
        let fault = outcome.fault().unwrap();
        assert_eq!(
            (fault.code.as_deref(), fault.detail.as_str()),
            (Some("550"), "the mail server refused the recipient with 550 5.1.1")
        );
    }

    #[test]
    fn an_enhanced_status_is_three_numbers_and_nothing_else() {
        for text in ["5.1.1", "5.1.1 text", "2.0.0 ok", "4.7.100 x"] {
            assert!(enhanced(text).is_some(), "{text}");
        }
        for text in ["", "no", "3.1.1", "5.1", "5.1.1.1", "5.1.1:", "5.a.1", "5.1.1111", "10.0.0.1"] {
            assert_eq!(enhanced(text), None, "{text}");
        }
    }

    #[test]
    fn the_queue_id_of_the_common_servers_is_found() {
        assert_eq!(queue_id("2.0.0 Ok: queued as 4BcX9z0ABC").as_deref(), Some("4BcX9z0ABC"));
        assert_eq!(queue_id("OK id=1tAbCd-0000xy-2Z").as_deref(), Some("1tAbCd-0000xy-2Z"));
        assert_eq!(queue_id("2.0.0 taken"), None);
        assert_eq!(queue_id("queued as <ada@example.com>"), None);
    }
}
