//! Telephone numbers: E.164 outside, chat ids at WhatsApp.

/// Country codes of two digits (ITU-T E.164); 1 and 7 have one digit, all others three.
const TWO_DIGITS: &[&str] = &[
    "20", "27", "30", "31", "32", "33", "34", "36", "39", "40", "41", "43", "44", "45", "46", "47", "48", "49", "51",
    "52", "53", "54", "55", "56", "57", "58", "60", "61", "62", "63", "64", "65", "66", "81", "82", "84", "86", "90",
    "91", "92", "93", "94", "95", "98",
];

/// Whether this is `+` and 7 to 15 digits.
pub fn is_e164(text: &str) -> bool {
    text.strip_prefix('+')
        .is_some_and(|digits| (7..=15).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The country prefix of a number in E.164 form: `+49`.
pub fn country_prefix(number: &str) -> Option<String> {
    let digits = number.strip_prefix('+').filter(|_| is_e164(number))?;
    let length = match digits.get(..2)? {
        two if two.starts_with(['1', '7']) => 1,
        two if TWO_DIGITS.contains(&two) => 2,
        _ => 3,
    };
    Some(format!("+{}", digits.get(..length)?))
}

/// The number behind a chat id of WhatsApp, in E.164 form; whatever is no number's chat (a group, a hidden id) stays as it is.
pub fn number_of_chat(chat: &str) -> String {
    let user = chat.strip_suffix("@c.us").or_else(|| chat.strip_suffix("@s.whatsapp.net"));
    // A colon leads to one device of the person.
    let number = user.map(|user| format!("+{}", user.split(':').next().unwrap_or_default()));
    number.filter(|number| is_e164(number)).unwrap_or_else(|| chat.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_have_one_two_or_three_digits() {
        for (number, prefix) in [
            ("+12025550123", Some("+1")),
            ("+79161234567", Some("+7")),
            ("+4915112345678", Some("+49")),
            ("+5511987654321", Some("+55")),
            ("+353861234567", Some("+353")),
            ("+0987654321", Some("+098")),
            ("4915112345678", None),
            ("+49", None),
            ("+49x15112345", None),
        ] {
            assert_eq!(country_prefix(number).as_deref(), prefix, "{number}");
        }
    }

    #[test]
    fn only_chats_of_numbers_become_numbers() {
        for (chat, number) in [
            ("4915112345678@c.us", "+4915112345678"),
            ("4915112345678:12@s.whatsapp.net", "+4915112345678"),
            ("+1234567890", "+1234567890"),
            ("120363025246125888@g.us", "120363025246125888@g.us"),
            ("86753098@lid", "86753098@lid"),
            ("status@broadcast", "status@broadcast"),
            ("x@c.us", "x@c.us"),
        ] {
            assert_eq!(number_of_chat(chat), number);
        }
    }
}
