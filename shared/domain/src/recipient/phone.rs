//! Phone numbers in E.164 form, and their chats on WhatsApp.

/// Country codes of two digits (ITU-T E.164 assignments); 1 and 7 stand alone, all others have three.
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

/// The country prefix of a number, such as `+49`; `None` if it is not in E.164 form.
pub fn country_prefix(number: &str) -> Option<&str> {
    let digits = number.strip_prefix('+')?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let length = match digits.get(..1)? {
        "1" | "7" => 1,
        _ if digits.get(..2).is_some_and(|code| TWO_DIGITS.contains(&code)) => 2,
        _ => 3,
    };
    number.get(..=length)
}

/// Whether this is a Brazilian number with a ninth digit. WhatsApp knows some of these without that digit, so only WAHA
/// can find the chat.
pub fn is_brazilian_mobile(number: &str) -> bool {
    let national = number.strip_prefix("+55").filter(|rest| rest.len() == 11);
    national.and_then(|rest| rest.get(2..3)) == Some("9")
}

/// The number of a WhatsApp chat id, in E.164 form. The chat id of a group or a hidden id stays as it is.
pub fn number_of_chat(chat: &str) -> String {
    let user = chat.strip_suffix("@c.us").or_else(|| chat.strip_suffix("@s.whatsapp.net"));
    // The part after a colon names one device of the person.
    let number = user.map(|user| format!("+{}", user.split(':').next().unwrap_or_default()));
    number.filter(|number| is_e164(number)).unwrap_or_else(|| chat.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_have_one_to_three_digits() {
        for (number, prefix) in [
            ("+1234567890", Some("+1")),
            ("+79161234567", Some("+7")),
            ("+4915112345678", Some("+49")),
            ("+351912345678", Some("+351")),
            ("+0987654321", Some("+098")),
            ("4915112345678", None),
            ("+49x", None),
            ("+", None),
        ] {
            assert_eq!(country_prefix(number), prefix, "{number}");
        }
    }

    #[test]
    fn only_long_brazilian_mobiles_need_a_look() {
        assert!(is_brazilian_mobile("+5511987654321"));
        for other in ["+551187654321", "+4911987654321", "+5511887654321", "120363@g.us"] {
            assert!(!is_brazilian_mobile(other), "{other}");
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
