//! People: reading, changing and erasing their data.

use std::time::{Duration, Instant};

use actix_web::{HttpResponse, web::Data};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, SecondsFormat, Utc};
use domain::{
    contract::{contact::ContactChange, submission::FieldError},
    token::Role,
};
use maintenance::{
    Maintenance,
    erasure::{Erased, Step},
};
use records::{
    Records,
    contacts::{Contact, ContactFilter, Saved},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use store::Store;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use web::{
    Web,
    auth::{Anyone, Identity, Producer},
    body::JsonBody,
    params::{self, Params, PathUser, Text},
    problem::{Code, Problem},
};

use crate::person_file;

/// A caller who may read and change this person: an admin, a producer, or the user itself.
pub fn require_access(caller: &Identity, user: &str) -> Result<(), Problem> {
    match caller.role {
        Role::Admin | Role::Producer => Ok(()),
        Role::User if caller.subject == user => Ok(()),
        _ => Err(Problem::new(
            Code::Forbidden,
            "Use a credential with one of these roles: producer, admin; or the person's own.",
        )),
    }
}

/// Whether the caller may erase and export a person: an admin may, and the person with a token from an admin's key.
/// Returns whether data that is linked only by an address is included.
pub fn require_ownership(caller: &Identity, user: &str) -> Result<bool, Problem> {
    let is_vouched = caller.via.is_none_or(|via| matches!(via.role, Role::Admin | Role::Operator));
    match caller.role {
        Role::Admin => Ok(true),
        Role::User if caller.subject == user && is_vouched => Ok(false),
        _ => Err(Problem::new(
            Code::Forbidden,
            "Use an admin's credential, or a token of the person that an admin's key made.",
        )),
    }
}

/// Fields that a person may not change: an address leads to the messages sent to it, and attributes select messages.
const TENANTS: [&str; 3] = ["email", "phone", "attributes"];

/// Refuses fields of a person that the caller may not change.
fn require_own(caller: &Identity, members: &Map<String, Value>) -> Result<(), Problem> {
    if caller.role != Role::User {
        return Ok(());
    }
    let is_foreign = |name: &&String| TENANTS.contains(&name.as_str());
    let refuse = |name: &String| FieldError::new(name, "may be changed by a producer or an admin only");
    let faults: Vec<FieldError> = members.keys().filter(is_foreign).map(refuse).collect();
    if faults.is_empty() { Ok(()) } else { Err(Problem::forbidden_fields(faults)) }
}

/// The person of a path.
fn named(user: PathUser) -> Result<String, Problem> {
    let user = user.0.into_inner();
    if user.is_empty() { Err(Problem::parameter("user_id", "must not be empty")) } else { Ok(user) }
}

/// The data of a person.
///
/// A person of whom only preferences are known is a 404. Tokens of devices are not shown; the export has them.
///
/// Roles: producer, admin; a user for itself.
#[utoipa::path(get, path = "/api/users/{user_id}", tag = "people",
    params(("user_id" = String, Path, description = "The person")),
    responses((status = 200, description = "The person", body = UserView)))]
pub async fn show(caller: Anyone, user: PathUser, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (tenant, user) = (caller.0.tenant, named(user)?);
    require_access(&caller.0, &user)?;
    let found = web.queries.run(async move |store| store.contacts().find(tenant, &user).await).await?;
    let contact = found.ok_or_else(|| Problem::not_found("person"))?;
    Ok(HttpResponse::Ok().json(person_file::person_json(&contact)))
}

/// Creates or changes a person.
///
/// A given field is set, `null` removes it, and an absent field stays; each attribute follows the same rule. Every
/// fault is named at once. The answer is 201 if the person is new.
///
/// Roles: producer, admin; a user for itself, but only `name`, `locale`, `time_zone` and `quiet_hours`.
#[utoipa::path(put, path = "/api/users/{user_id}", tag = "people",
    params(("user_id" = String, Path, description = "The person")),
    request_body(content = UserBody, example = json!({"email": "ada@example.com", "phone": "+431234567890", "name": "Ada", "locale": "de-AT",
        "time_zone": "Europe/Vienna", "quiet_hours": {"start": "22:00", "end": "08:00"}, "attributes": {"tier": "gold"}})),
    responses((status = 200, description = "Changed", body = UserView), (status = 201, description = "Made", body = UserView)))]
pub async fn put(caller: Anyone, user: PathUser, web: Data<Web>, body: JsonBody) -> Result<HttpResponse, Problem> {
    let (tenant, user) = (caller.0.tenant, named(user)?);
    require_access(&caller.0, &user)?;
    let members: Map<String, Value> = body.parse().await?;
    require_own(&caller.0, &members)?;
    let change = ContactChange::read(members, Some(&user)).map_err(Problem::validation)?;
    let saving = async move |store: Store| {
        let saved = store.contacts().save(tenant, vec![change]).await?;
        Ok((saved, store.contacts().find(tenant, &user).await?))
    };
    let (saved, contact) = web.queries.run(saving).await?;
    let mut answer = match saved.into_iter().next() {
        Some(Saved::Refused(fault)) => return Err(Problem::validation(vec![fault])),
        Some(Saved::Made) => HttpResponse::Created(),
        Some(Saved::Changed) | None => HttpResponse::Ok(),
    };
    // The person may have been erased at the same time.
    let contact = contact.ok_or_else(|| Problem::not_found("person"))?;
    Ok(answer.json(person_file::person_json(&contact)))
}

/// Selects people. An absent parameter does not restrict.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct UsersQuery {
    /// With this language tag.
    #[param(value_type = Option<String>, example = "de-AT")]
    locale: Option<Text>,
    /// By this zone's clock.
    #[param(value_type = Option<String>, example = "Europe/Vienna")]
    time_zone: Option<Text>,
    /// With this attribute, as `name:value`. A value that reads as a number, `true` or `false` also finds those.
    #[param(value_type = Option<String>, example = "tier:gold")]
    attribute: Option<Text>,
    /// Entries per page, 1 to 200; default 50.
    #[param(value_type = Option<u16>)]
    limit: Option<Text>,
    /// The `next_cursor` of the previous page.
    #[param(value_type = Option<String>)]
    cursor: Option<Text>,
}

/// The people of the tenant, newest first.
///
/// Roles: producer, admin.
#[utoipa::path(get, path = "/api/users", tag = "people", params(UsersQuery),
    responses((status = 200, description = "A page of people", body = UserList)))]
pub async fn list(producer: Producer, query: Params<UsersQuery>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (tenant, query) = (producer.0.tenant, query.0);
    let filter = ContactFilter {
        locale: params::given(query.locale),
        time_zone: params::given(query.time_zone),
        attribute: attribute(query.attribute)?,
    };
    let (after, limit) = (cursor(query.cursor)?, params::limit(query.limit)?);
    let found =
        web.queries.run(async move |store| store.contacts().list(tenant, &filter, after, limit + 1).await).await?;
    let (found, next_cursor) = params::page_after(found, limit, cursor_after);
    let users: Vec<Value> = found.iter().map(person_file::person_json).collect();
    Ok(HttpResponse::Ok().json(json!({ "users": users, "next_cursor": next_cursor })))
}

/// `name:value` as the JSON objects that hold it.
fn attribute(text: Option<Text>) -> Result<Option<Vec<String>>, Problem> {
    let Some(text) = params::given(text) else { return Ok(None) };
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| Problem::parameter("attribute", "must be a name and a value with a colon between"))?;
    let other = serde_json::from_str(value).ok().filter(|other: &Value| other.is_number() || other.is_boolean());
    let values = [Some(Value::from(value)), other].into_iter().flatten();
    Ok(Some(values.map(|value| json!({ name: value }).to_string()).collect()))
}

fn cursor_after(contact: &Contact) -> String {
    let at = contact.created_at.to_rfc3339_opts(SecondsFormat::Micros, true);
    URL_SAFE_NO_PAD.encode(format!("{at} {}", contact.person.id))
}

fn cursor(text: Option<Text>) -> Result<Option<(DateTime<Utc>, String)>, Problem> {
    let parse = |text: String| {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let (at, id) = text.split_once(' ')?;
        let id = Text::try_from(id.to_owned()).ok()?.into_inner();
        Some((DateTime::parse_from_rfc3339(at).ok()?.with_timezone(&Utc), id))
    };
    let refuse = || Problem::parameter("cursor", "must be the `next_cursor` of an earlier page");
    params::given(text).map(|text| parse(text).ok_or_else(refuse)).transpose()
}

/// The data of a person. `null` removes a field, an absent field stays.
#[derive(ToSchema)]
#[schema(as = UserSettings)]
#[expect(dead_code, reason = "describes what `ContactChange` reads, which knows nothing of OpenAPI")]
pub struct UserBody {
    /// Where mails go.
    #[schema(example = "ada@example.com")]
    email: Option<String>,
    /// The number for text and WhatsApp messages: `+` and 7 to 15 digits.
    #[schema(example = "+431234567890")]
    phone: Option<String>,
    /// How they are called.
    #[schema(max_length = 200)]
    name: Option<String>,
    /// A language tag.
    #[schema(example = "de-AT")]
    locale: Option<String>,
    /// A zone of the IANA database; absent: UTC.
    #[schema(example = "Europe/Vienna")]
    time_zone: Option<String>,
    /// When they must not be disturbed, in their local time; may cross midnight.
    quiet_hours: Option<QuietHoursBody>,
    /// Other facts, 8 KiB at most. Not encrypted: conditions and targets use them.
    #[schema(value_type = Option<Object>, example = json!({"tier": "gold"}))]
    attributes: Option<Map<String, Value>>,
}

/// From one time of day to another.
#[derive(ToSchema)]
#[schema(as = QuietHours)]
#[expect(dead_code, reason = "describes what is read and written elsewhere")]
pub struct QuietHoursBody {
    /// The first quiet minute.
    #[schema(example = "22:00")]
    start: String,
    /// The first minute that is not quiet; it differs from `start`.
    #[schema(example = "08:00")]
    end: String,
}

/// A person.
#[derive(ToSchema)]
#[schema(as = User)]
#[expect(dead_code, reason = "describes what `person_file` writes")]
pub struct UserView {
    /// The tenant's own id.
    #[schema(example = "ada")]
    id: String,
    /// Their stored data.
    #[serde(flatten)]
    #[schema(inline)]
    told: UserBody,
    /// Their devices.
    devices: Vec<DeviceView>,
    /// When they were first heard of.
    created_at: DateTime<Utc>,
    /// When they were last changed.
    updated_at: DateTime<Utc>,
}

/// A device, without its token.
#[derive(Serialize, ToSchema)]
#[schema(as = Device)]
pub struct DeviceView {
    /// Its id.
    pub id: Uuid,
    /// `ios`, `android` or `web`, if given.
    #[schema(example = "ios")]
    pub platform: Option<String>,
    /// When it was registered first.
    pub created_at: DateTime<Utc>,
}

/// A page of people.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what `list` writes")]
pub struct UserList {
    /// The people, newest first.
    users: Vec<UserView>,
    /// The cursor of the next page; `null` on the last one.
    next_cursor: Option<String>,
}

/// How long a caller waits; the scheduler erases the rest.
const PATIENCE: Duration = Duration::from_secs(3);

/// The erased rows.
#[derive(Debug, Serialize, ToSchema)]
pub struct Erasure {
    /// How much of what.
    #[schema(value_type = ErasedCounts)]
    pub erased: Erased,
    /// Whether something is left, such as a message that a worker is sending now; it is erased within seconds.
    pub pending: bool,
}

/// How much was erased.
#[derive(ToSchema)]
#[schema(as = Erased)]
#[expect(dead_code, reason = "describes `Erased`, which knows nothing of OpenAPI")]
pub struct ErasedCounts {
    /// Messages whose content was removed; waiting ones were cancelled.
    messages: i64,
    /// Deliveries whose recipient was removed.
    deliveries: i64,
    /// Entries of the inbox.
    inbox: i64,
    /// Contents of bulks that have no other recipient.
    bulks: i64,
    /// Stored answers that the person was removed from.
    idempotency_responses: i64,
    /// Dead letters that were emptied or closed.
    dead_letters: i64,
    /// WhatsApp messages from the person, and events about them.
    inbound: i64,
    /// The contact of the person (1), and devices.
    contact: i64,
    /// Events from other systems, and events in digests.
    events: i64,
}

/// Erases a person.
///
/// All data that identifies the person or was written to them is removed: contact data, devices, attributes,
/// preferences, content, recipients, inbox, events, refused publishes, messages from their numbers. Waiting messages
/// are cancelled. States, counters and the facts of the log stay, and so does the fingerprint of an address that
/// refuses advertising. A repeat finds nothing and answers zeros. Only an admin's call removes data that is linked only
/// by an address: messages from a number, publishes and messages that name the address and no person, the address of a
/// suppression.
///
/// Roles: admin; a user for itself, with a token that an admin's key or the owner of `JWT_SECRET` made.
#[utoipa::path(delete, path = "/api/users/{user_id}", tag = "people",
    params(("user_id" = String, Path, description = "The person")),
    responses((status = 200, description = "What was erased", body = Erasure)))]
pub async fn erase(caller: Anyone, user: PathUser, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (tenant, user) = (caller.0.tenant, user.0.into_inner());
    let by_address = require_ownership(&caller.0, &user)?;
    let erasing = async move |store: Store| {
        let (started, mut erased) = (Instant::now(), Erased::default());
        let person = store.erasure().begin(tenant, &user, by_address).await?;
        loop {
            let step = store.erasure().step(&person, &mut erased).await?;
            if step != Step::More || started.elapsed() > PATIENCE {
                return Ok(Erasure { erased, pending: step != Step::Done });
            }
        }
    };
    Ok(HttpResponse::Ok().json(web.queries.run_within(PATIENCE * 3, erasing).await?))
}

#[cfg(test)]
mod tests {
    use domain::{Person, TenantId, token::Via};

    use super::*;

    #[test]
    fn a_cursor_comes_back_as_what_it_was_made_of() {
        let created_at = DateTime::from_timestamp_micros(1_800_000_000_123_456).unwrap();
        let person = Person::unknown("a b:ü");
        let contact = Contact { person, devices: Vec::new(), created_at, updated_at: created_at };
        let text = |text: &str| Some(Text::try_from(text.to_owned()).unwrap());
        assert_eq!(cursor(text(&cursor_after(&contact))).unwrap(), Some((created_at, "a b:ü".to_owned())));
        assert!(cursor(text("AAAA")).is_err() && cursor(text("!")).is_err());
    }

    #[test]
    fn an_attribute_is_looked_for_as_text_and_as_what_it_reads_as() {
        let text = |text: &str| Some(Text::try_from(text.to_owned()).unwrap());
        assert_eq!(attribute(text("tier:gold")).unwrap().unwrap(), [r#"{"tier":"gold"}"#]);
        assert_eq!(attribute(text("age:36")).unwrap().unwrap(), [r#"{"age":"36"}"#, r#"{"age":36}"#]);
        assert_eq!(attribute(text("at:a:b")).unwrap().unwrap(), [r#"{"at":"a:b"}"#]);
        assert!(attribute(text("tier")).is_err());
    }

    #[test]
    fn a_user_erases_itself_unless_a_lesser_key_made_its_token() {
        let caller = |role, via: Option<Role>| {
            let via = via.map(|role| Via { key: Uuid::nil(), role });
            Identity { tenant: TenantId(1), role, subject: "ada".to_owned(), via }
        };
        let reach = |role, via| require_ownership(&caller(role, via), "ada").ok();
        assert_eq!((reach(Role::Admin, None), reach(Role::Admin, Some(Role::Admin))), (Some(true), Some(true)));
        assert_eq!((reach(Role::User, None), reach(Role::User, Some(Role::Admin))), (Some(false), Some(false)));
        for (role, via) in [(Role::User, Some(Role::Producer)), (Role::User, Some(Role::User)), (Role::Producer, None)]
        {
            assert_eq!(reach(role, via), None, "{role} via {via:?}");
        }
        assert!(require_ownership(&caller(Role::User, None), "bob").is_err());
    }

    #[test]
    fn a_user_sees_itself_and_nobody_else() {
        let caller = |role| Identity { tenant: TenantId(1), role, subject: "ada".to_owned(), via: None };
        assert!(require_access(&caller(Role::User), "ada").is_ok());
        assert!(require_access(&caller(Role::User), "bob").is_err());
        assert!(require_access(&caller(Role::Producer), "bob").is_ok());
        assert!(require_access(&caller(Role::Operator), "ada").is_err());
    }
}
