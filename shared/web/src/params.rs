//! Parameters in paths and queries, validated before any query runs.

use std::{
    future::{Ready, ready},
    str::FromStr,
};

use actix_web::{FromRequest, HttpRequest, dev::Payload, error::QueryPayloadError, web::Query};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use domain::{
    UnknownWord,
    contract::submission::{NAME_BYTES_MAX, parse_time},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error},
};
use utoipa::IntoParams;
use uuid::Uuid;

use crate::problem::{Code, Problem};

/// Default number of entries on a page.
const LIMIT_USUAL: i64 = 50;
/// Most entries on a page.
const LIMIT_MAX: i64 = 200;
/// Most entries that `page` may skip. Further on, use a cursor: it costs the same on every page.
const SKIP_MAX: i64 = 10_000;

/// The `{id}` of a path. A malformed id gives a 404, as an unknown one does.
#[derive(Clone, Copy, Debug)]
pub struct Id(pub Uuid);

impl FromRequest for Id {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let id = request.match_info().get("id").and_then(|text| text.parse().ok());
        ready(id.map(Self).ok_or_else(|| Problem::not_found("thing")))
    }
}

/// The `{user_id}` of a path.
#[derive(Clone, Debug)]
pub struct PathUser(pub Text);

impl FromRequest for PathUser {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(path_text(request, "user_id").map(Self))
    }
}

/// The `{name}` of a path.
#[derive(Clone, Debug)]
pub struct PathName(pub Text);

impl FromRequest for PathName {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(path_text(request, "name").map(Self))
    }
}

/// A text parameter of a path. The router leaves some bytes encoded (a slash must not change the path), and ids and names
/// from other systems may contain any of them.
fn path_text(request: &HttpRequest, name: &str) -> Result<Text, Problem> {
    let text = decoded(request.match_info().get(name).unwrap_or_default());
    Text::try_from(text).map_err(|message| Problem::parameter(name, message))
}

/// A part of a path with the remaining percent-encoding undone.
pub fn decoded(part: &str) -> String {
    let pair = format!("text={}", part.replace('+', "%2B").replace('&', "%26"));
    let text = url::form_urlencoded::parse(pair.as_bytes()).next().map(|(_, text)| text.into_owned());
    text.unwrap_or_default()
}

/// The query string of a request. An unknown parameter or one of the wrong type is a problem.
#[derive(Clone, Debug)]
pub struct Params<T>(pub T);

impl<T: DeserializeOwned> Params<T> {
    /// Parses the query, for a handler that has to check something else first.
    pub fn read(request: &HttpRequest) -> Result<Self, Problem> {
        let query = Query::<T>::from_query(request.query_string());
        let refuse = |error| match error {
            QueryPayloadError::Deserialize(error) => {
                Problem::new(Code::InvalidParameter, format!("Correct the query: {error}."))
            }
            _ => Problem::new(Code::InvalidParameter, "Correct the query: it cannot be read."),
        };
        query.map(|query| Self(query.into_inner())).map_err(refuse)
    }
}

impl<T: DeserializeOwned> FromRequest for Params<T> {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Self::read(request))
    }
}

/// A short text without control characters: an id, a name, a few words to search for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(String);

impl Text {
    /// The text itself.
    pub fn into_inner(self) -> String {
        self.0
    }
}

impl TryFrom<String> for Text {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        let fits = text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control);
        if fits { Ok(Self(text)) } else { Err("must have at most 200 bytes and no control characters") }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A parameter; an empty one counts as absent.
pub fn given(text: Option<Text>) -> Option<String> {
    text.map(Text::into_inner).filter(|text| !text.is_empty())
}

/// A parameter whose value is from a closed list, in any case.
pub fn word<W: FromStr<Err = UnknownWord>>(name: &str, text: Option<Text>) -> Result<Option<W>, Problem> {
    let parse = |text: String| {
        text.to_lowercase().parse().map_err(|unknown: UnknownWord| Problem::parameter(name, unknown.to_string()))
    };
    given(text).map(parse).transpose()
}

/// A boolean parameter.
pub fn flag(name: &str, text: Option<Text>) -> Result<Option<bool>, Problem> {
    let parse = |text: String| match text.to_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Problem::parameter(name, "must be true or false")),
    };
    given(text).map(parse).transpose()
}

/// A time parameter.
pub fn time(name: &str, text: Option<Text>) -> Result<Option<DateTime<Utc>>, Problem> {
    // In a query a plus means a space, yet people write `+01:00` unencoded.
    let parse = |text: String| parse_time(&text).or_else(|| parse_time(&text.replace(' ', "+")));
    let refuse = || Problem::parameter(name, "must be an RFC 3339 time such as 2026-01-31T09:00:00Z");
    given(text).map(|text| parse(text).ok_or_else(refuse)).transpose()
}

/// The number of entries per page.
pub fn limit(text: Option<Text>) -> Result<i64, Problem> {
    number("limit", text, 1..=LIMIT_MAX).map(|limit| limit.unwrap_or(LIMIT_USUAL))
}

/// How many entries precede a page; pages count from 1.
pub fn skip(page: Option<Text>, limit: i64) -> Result<i64, Problem> {
    let page = number("page", page, 1..=SKIP_MAX / limit + 1)?;
    Ok(page.map_or(0, |page| (page - 1) * limit))
}

/// An integer parameter within bounds.
fn number(name: &str, text: Option<Text>, bounds: std::ops::RangeInclusive<i64>) -> Result<Option<i64>, Problem> {
    let refuse =
        || Problem::parameter(name, format!("must be a whole number from {} to {}", bounds.start(), bounds.end()));
    given(text).map(|text| text.parse().ok().filter(|number| bounds.contains(number)).ok_or_else(refuse)).transpose()
}

/// The cursor of the page after this entry. Opaque to clients.
pub fn cursor_after(id: Uuid) -> String {
    URL_SAFE_NO_PAD.encode(id)
}

/// The entry after which a page starts.
pub fn cursor(text: Option<Text>) -> Result<Option<Uuid>, Problem> {
    let parse = |text: String| {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        let id = bytes.and_then(|bytes| Uuid::from_slice(&bytes).ok());
        id.ok_or_else(|| Problem::parameter("cursor", "must be the `next_cursor` of an earlier page"))
    };
    given(text).map(parse).transpose()
}

/// As [`cursor_after`], for lists with numbered entries.
pub fn number_cursor_after(id: i64) -> String {
    URL_SAFE_NO_PAD.encode(id.to_be_bytes())
}

/// As [`cursor`], for lists with numbered entries.
pub fn number_cursor(text: Option<Text>) -> Result<Option<i64>, Problem> {
    let parse = |text: String| {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        let refuse = || Problem::parameter("cursor", "must be the `next_cursor` of an earlier page");
        bytes.map(i64::from_be_bytes).ok_or_else(refuse)
    };
    given(text).map(parse).transpose()
}

/// One page of `rows`, which hold one row more than the limit if there is another page.
pub fn page_of<T>(rows: Vec<T>, limit: i64, id: impl Fn(&T) -> Uuid) -> (Vec<T>, Option<String>) {
    page_after(rows, limit, |row| cursor_after(id(row)))
}

/// As [`page_of`], with a cursor of any kind.
pub fn page_after<T>(mut rows: Vec<T>, limit: i64, cursor: impl Fn(&T) -> String) -> (Vec<T>, Option<String>) {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(cursor);
    (rows, next)
}

/// Which page.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// Entries of a page, up to 200.
    #[param(value_type = Option<i64>)]
    pub limit: Option<Text>,
    /// The `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    pub cursor: Option<Text>,
}

#[cfg(test)]
mod tests {
    use domain::State;

    use super::*;

    fn text(text: &str) -> Option<Text> {
        Some(Text::try_from(text.to_owned()).unwrap())
    }

    #[test]
    fn a_cursor_comes_back_as_the_id_it_was_made_of_and_anything_else_is_refused() {
        let id = Uuid::now_v7();
        assert_eq!(cursor(text(&cursor_after(id))).unwrap(), Some(id));
        assert_eq!(cursor(None).unwrap(), None);
        for bad in ["x", "AAAA", "!!!", "00000000-0000-0000-0000-000000000000"] {
            assert!(cursor(text(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_numbered_cursor_comes_back_as_the_number_it_was_made_of() {
        assert_eq!(number_cursor(text(&number_cursor_after(7))).unwrap(), Some(7));
        assert!(number_cursor(text(&cursor_after(Uuid::now_v7()))).is_err() && number_cursor(text("x")).is_err());
    }

    #[test]
    fn limits_and_pages_have_bounds() {
        assert_eq!(limit(None).unwrap(), 50);
        assert_eq!(limit(text("200")).unwrap(), 200);
        assert!(limit(text("0")).is_err() && limit(text("201")).is_err() && limit(text("ten")).is_err());
        assert_eq!(skip(text("3"), 50).unwrap(), 100);
        assert!(skip(text("0"), 50).is_err() && skip(text("9999999999"), 50).is_err());
    }

    #[test]
    fn a_status_filter_ignores_case_and_an_empty_one_does_not_restrict() {
        assert_eq!(word::<State>("status", text("QUEUED")).unwrap(), Some(State::Queued));
        assert_eq!(word::<State>("status", text("")).unwrap(), None);
        assert!(word::<State>("status", text("lost")).is_err());
    }

    #[test]
    fn a_flag_is_true_or_false_in_any_case() {
        assert_eq!((flag("x", text("True")).unwrap(), flag("x", text("0")).unwrap()), (Some(true), Some(false)));
        assert_eq!(flag("x", text("")).unwrap(), None);
        assert!(flag("x", text("yes")).is_err());
    }

    #[test]
    fn a_time_in_a_query_may_have_lost_its_plus() {
        assert_eq!(
            time("from", text("2026-01-01T00:00:00 01:00")).unwrap(),
            time("from", text("2025-12-31T23:00:00Z")).unwrap()
        );
        assert!(time("from", text("yesterday")).is_err());
    }

    #[test]
    fn a_text_holds_nothing_that_the_database_cannot() {
        assert!(Text::try_from("a\0b".to_owned()).is_err());
        assert!(Text::try_from("x".repeat(201)).is_err());
    }

    #[test]
    fn only_a_full_page_has_a_next_one() {
        let ids: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
        assert_eq!(page_of(ids.clone(), 3, |id| *id).1, None);
        let (page, next) = page_of(ids.clone(), 2, |id| *id);
        assert_eq!((page.len(), cursor(text(&next.unwrap())).unwrap()), (2, Some(ids[1])));
    }
}
