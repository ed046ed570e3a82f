//! Masks people in log lines: e-mail addresses, phone numbers, card numbers and IBANs.
//!
//! It works on a finished line of any form, so nothing is logged past it. The line is read once, byte by byte, and
//! copied only if something is found. Our own values stay: UUIDs, trace ids, times, durations, ports.

use std::{borrow::Cow, io, ops::Range};

use tracing_subscriber::fmt::MakeWriter;

const EMAIL: &[u8] = b"***@***";
const PHONE: &[u8] = b"+***";
const CARD: &[u8] = b"[card]";
const IBAN: &[u8] = b"[iban]";

/// The minimum of digits after the `+` of a phone number.
const PHONE_DIGITS_MIN: usize = 7;
const CARD_DIGITS: Range<usize> = 13..20;
/// The digits of a group in a card number that is written in groups; the first group has four.
const CARD_GROUP: Range<usize> = 2..8;
const IBAN_LETTERS: Range<usize> = 15..35;

/// `text` without people.
pub fn masked(text: &str) -> String {
    String::from_utf8_lossy(&mask(text.as_bytes())).into_owned()
}

/// `line` without people.
pub fn mask(line: &[u8]) -> Cow<'_, [u8]> {
    let found = find(line);
    if found.is_empty() {
        return Cow::Borrowed(line);
    }
    let mut masked = Vec::with_capacity(line.len());
    let mut kept = 0;
    for (range, mask) in found {
        masked.extend_from_slice(line.get(kept..range.start).unwrap_or_default());
        masked.extend_from_slice(mask);
        kept = range.end;
    }
    masked.extend_from_slice(line.get(kept..).unwrap_or_default());
    Cow::Owned(masked)
}

type Matches = Vec<(Range<usize>, &'static [u8])>;

/// The parts to mask, in order, without overlaps.
fn find(line: &[u8]) -> Matches {
    let mut found = Matches::new();
    // `local`: the start of a name before an `@`. `fresh`: a word begins here, whatever precedes it. `seen`: the end of
    // the last match.
    let (mut at, mut local, mut fresh, mut seen) = (0, 0, 0, 0);
    while let Some(byte) = line.get(at).copied() {
        if let Some(sign) = sign(line, at, b'@', *b"40") {
            let end = domain_end(line, at + sign).filter(|_| local < at);
            if let Some(end) = end {
                add_email(&mut found, local..end);
                seen = end;
            }
            at = end.unwrap_or(at + sign);
            (local, fresh) = (at, at);
            continue;
        }
        if let Some(escape) = escape(line, at) {
            at += escape;
            (local, fresh) = (at, at);
            continue;
        }
        let begins =
            at == fresh || !at.checked_sub(1).and_then(|before| line.get(before)).is_some_and(|byte| is_word(*byte));
        if let Some((end, mask)) = number(line, at, byte, begins).filter(|_| at >= seen) {
            found.push((at..end, mask));
            seen = end;
        }
        at += 1;
        if !is_local(byte) {
            local = at;
        }
    }
    found
}

/// An address includes earlier matches inside its name, such as a number.
fn add_email(found: &mut Matches, mut range: Range<usize>) {
    while let Some((last, _)) = found.last().filter(|(last, _)| last.end > range.start) {
        range.start = range.start.min(last.start);
        found.pop();
    }
    found.push((range, EMAIL));
}

/// The length of the sign at `at`, plain or percent-encoded.
fn sign(line: &[u8], at: usize, plain: u8, encoded: [u8; 2]) -> Option<usize> {
    match line.get(at)? {
        byte if *byte == plain => Some(1),
        b'%' => line.get(at + 1..at + 3)?.eq_ignore_ascii_case(&encoded).then_some(3),
        _ => None,
    }
}

/// The length of the JSON escape at `at`. Its letters belong to no word, and must not be separated from it.
fn escape(line: &[u8], at: usize) -> Option<usize> {
    if line.get(at) != Some(&b'\\') {
        return None;
    }
    Some(if line.get(at + 1) == Some(&b'u') { 6 } else { 2 })
}

/// The characters of a name before an `@`, except those that usually separate a name from the text before it.
const fn is_local(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || byte >= 0x80
        || matches!(byte, b'.' | b'_' | b'%' | b'+' | b'-' | b'!' | b'#' | b'$' | b'\'' | b'*' | b'^' | b'`' | b'~')
}

/// The end of the domain that begins at `start`. A dot or hyphen at its end is punctuation.
fn domain_end(line: &[u8], start: usize) -> Option<usize> {
    let rest = line.get(start..)?;
    if rest.first() == Some(&b'[') {
        let end = rest.iter().position(|byte| *byte == b']')?;
        return Some(start + end + 1);
    }
    let in_domain =
        |byte: &u8| byte.is_ascii_alphanumeric() || *byte >= 0x80 || matches!(byte, b'.' | b'-' | b'_' | b'*');
    let long = rest.iter().position(|byte| !in_domain(byte)).unwrap_or(rest.len());
    let end = rest.get(..long)?.iter().rposition(|byte| !matches!(byte, b'.' | b'-'))? + 1;
    Some(start + end)
}

/// The end and the mask of a person's number that begins at `at`, where a word may begin.
fn number(line: &[u8], at: usize, byte: u8, begins: bool) -> Option<(usize, &'static [u8])> {
    match byte {
        b'+' | b'%' => {
            let sign = sign(line, at, b'+', *b"2B")?;
            phone_end(line, at + sign).map(|end| (end, PHONE))
        }
        b'0'..=b'9' if begins => card_end(line, at).map(|end| (end, CARD)),
        _ if begins && byte.is_ascii_alphabetic() => iban_end(line, at).map(|end| (end, IBAN)),
        _ => None,
    }
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Digits with at most two signs between any two of them, as people write numbers.
fn phone_end(line: &[u8], start: usize) -> Option<usize> {
    let (mut digits, mut between, mut end) = (0, 0, start);
    for (place, byte) in line.iter().enumerate().skip(start) {
        match byte {
            b'0'..=b'9' => (digits, between, end) = (digits + 1, 0, place + 1),
            b' ' | b'-' | b'.' | b'(' | b')' | b'/' if between < 2 => between += 1,
            _ => break,
        }
    }
    (digits >= PHONE_DIGITS_MIN).then_some(end)
}

/// Thirteen to nineteen digits with a valid check digit, in one piece or in groups with one kind of sign between them.
fn card_end(line: &[u8], at: usize) -> Option<usize> {
    let first = digits_end(line, at);
    let separator = line.get(first).copied().filter(|byte| matches!(byte, b' ' | b'-'));
    let grouped = separator.filter(|_| first - at == 4).and_then(|separator| grouped_card_end(line, at, separator));
    grouped.or_else(|| {
        let digits = line.get(at..first)?;
        let stands_alone = !touches(line, at, first) && !is_epoch(digits);
        (stands_alone && CARD_DIGITS.contains(&digits.len()) && is_luhn(digits.iter())).then_some(first)
    })
}

fn digits_end(line: &[u8], at: usize) -> usize {
    let rest = line.get(at..).unwrap_or_default();
    at + rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len())
}

fn grouped_card_end(line: &[u8], at: usize, separator: u8) -> Option<usize> {
    let mut end = digits_end(line, at);
    let mut best = None;
    while line.get(end) == Some(&separator) {
        let next = digits_end(line, end + 1);
        if !CARD_GROUP.contains(&(next - end - 1)) {
            break;
        }
        end = next;
        let digits = || line.get(at..end).unwrap_or_default().iter().filter(|byte| byte.is_ascii_digit());
        let count = digits().count();
        if count >= CARD_DIGITS.end {
            break;
        }
        if CARD_DIGITS.contains(&count) && !touches(line, at, end) && is_luhn(digits()) {
            best = Some(end);
        }
    }
    best
}

/// Whether digits are part of something longer: a hexadecimal number, a word, a fraction. The start of a word has no
/// letter before it.
fn touches(line: &[u8], start: usize, end: usize) -> bool {
    let at = |place: Option<usize>| place.and_then(|place| line.get(place)).copied().unwrap_or(b' ');
    let is_fraction = at(start.checked_sub(1)) == b'.' && at(start.checked_sub(2)).is_ascii_digit();
    let goes_on = is_word(at(Some(end))) || at(Some(end)) == b'.' && at(Some(end + 1)).is_ascii_digit();
    is_fraction || goes_on
}

/// Milli-, micro- and nanoseconds since 1970 begin with 1 until 2033; card numbers of those lengths do not.
fn is_epoch(digits: &[u8]) -> bool {
    digits.first() == Some(&b'1') && matches!(digits.len(), 13 | 16 | 19)
}

fn is_luhn<'a>(digits: impl DoubleEndedIterator<Item = &'a u8>) -> bool {
    let weigh = |(place, digit): (usize, &u8)| {
        let digit = u32::from(digit.wrapping_sub(b'0'));
        if place % 2 == 0 { digit } else { digit * 2 - if digit > 4 { 9 } else { 0 } }
    };
    let (mut sum, mut all_zero) = (0, true);
    for (place, digit) in digits.rev().enumerate() {
        all_zero &= *digit == b'0';
        sum += weigh((place, digit));
    }
    !all_zero && sum % 10 == 0
}

/// Two letters, two digits and up to thirty more, in one piece or in groups of four, with the remainder 1.
fn iban_end(line: &[u8], at: usize) -> Option<usize> {
    let head = line.get(at..at + 4)?;
    let [a, b, c, d] = head else { return None };
    if !(a.is_ascii_alphabetic() && b.is_ascii_alphabetic() && c.is_ascii_digit() && d.is_ascii_digit()) {
        return None;
    }
    let word_end = word_end(line, at);
    if word_end - at > 4 {
        let word = line.get(at..word_end)?;
        let is_iban = IBAN_LETTERS.contains(&word.len()) && !is_hex_id(word) && is_mod_97(word.iter());
        return is_iban.then_some(word_end);
    }
    spaced_iban_end(line, at)
}

fn spaced_iban_end(line: &[u8], at: usize) -> Option<usize> {
    let (mut end, mut best) = (at + 4, None);
    while line.get(end) == Some(&b' ') {
        let next = word_end(line, end + 1);
        let size = next - end - 1;
        if !(1..=4).contains(&size) {
            break;
        }
        end = next;
        let letters = || line.get(at..end).unwrap_or_default().iter().filter(|byte| **byte != b' ');
        if IBAN_LETTERS.contains(&letters().count()) && is_mod_97(letters()) {
            best = Some(end);
        }
        if size < 4 {
            break;
        }
    }
    best
}

fn word_end(line: &[u8], at: usize) -> usize {
    let rest = line.get(at..).unwrap_or_default();
    at + rest.iter().position(|byte| !is_word(*byte)).unwrap_or(rest.len())
}

/// Span ids, trace ids and UUIDs without hyphens.
fn is_hex_id(word: &[u8]) -> bool {
    matches!(word.len(), 16 | 32) && word.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_mod_97<'a>(letters: impl Iterator<Item = &'a u8> + Clone) -> bool {
    let turned = letters.clone().skip(4).chain(letters.take(4));
    let value = |byte: &u8| match byte {
        b'0'..=b'9' => Some((u32::from(byte - b'0'), 10)),
        b'A'..=b'Z' => Some((u32::from(byte - b'A') + 10, 100)),
        b'a'..=b'z' => Some((u32::from(byte - b'a') + 10, 100)),
        _ => None,
    };
    let remainder =
        turned.map(value).try_fold(0, |rest, value| value.map(|(value, times)| (rest * times + value) % 97));
    remainder == Some(1)
}

/// Writes lines with people masked.
#[derive(Clone, Copy, Debug)]
pub struct Masking<W>(pub W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Masking<W> {
    type Writer = Masking<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Masking(self.0.make_writer())
    }
}

impl<W: io::Write> io::Write for Masking<W> {
    /// Takes a whole line: the formatter passes it in one piece.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(&mask(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests;
