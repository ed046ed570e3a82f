//! Rules: which events cause which notifications.

use actix_web::{HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use domain::{
    Channel, Condition, DigestRule, LocalSchedule, Operator, Priority, RuleDefinition, TenantId, Throttle, UnknownWord,
    clock,
    contract::submission::{FieldError, NAME_BYTES_MAX},
    rule, window,
};
use records::{
    Records,
    counts::Counted,
    rules::{RuleSettings, StoredRule},
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use store::Store;
use utoipa::ToSchema;
use uuid::Uuid;
use web::{
    Web,
    auth::{Admin, Reader},
    body::JsonBody,
    params::{self, Id, Page, Params},
    problem::Problem,
};

use crate::quota::require_quota;

const CONDITIONS_MAX: usize = 50;
/// Longest window of a digest or throttle: 31 days.
const WINDOW_SECONDS_MAX: i64 = 31 * 86_400;
/// As far ahead as a message can be scheduled.
const DELAY_SECONDS_MAX: i64 = 366 * 86_400;
/// Each is a time that is stored for each person.
const THROTTLE_MAX: i64 = 1000;

/// An optional field; `null` unsets it.
type Given<T> = Option<Option<T>>;

fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Given<T>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A new rule. A PUT changes the given fields; `null` unsets one.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleSettings)]
pub struct RuleBody {
    /// Its name. Required to create one.
    #[schema(max_length = 200, example = "Payment failed")]
    name: Option<String>,
    /// The type of its events: a name, a prefix such as `order.*`, or `*` for all. Required to create one.
    #[schema(max_length = 200, example = "subscription.payment_failed")]
    event_type: Option<String>,
    /// The conditions; all of them must hold.
    #[schema(max_items = 50)]
    conditions: Option<Vec<ConditionBody>>,
    /// The template of its messages. Required to create one.
    #[schema(example = "payment_failed")]
    template_name: Option<String>,
    /// Its channels. Required to create one.
    #[schema(example = json!(["email", "in_app"]))]
    channels: Option<Vec<String>>,
    /// How long it waits first.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>, minimum = 0, example = 3600)]
    delay_seconds: Given<i64>,
    /// Whether events are collected into one notification.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<DigestBody>)]
    digest: Given<DigestBody>,
    /// Limits how often one person gets a message.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<ThrottleBody>)]
    throttle: Given<ThrottleBody>,
    /// Whether it is switched on; default `true`.
    active: Option<bool>,
    /// The category of its messages, for preferences; default: that of its type or template.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, example = "billing")]
    category: Given<String>,
    /// `low`, `normal`, `high` or `urgent`; default `normal`.
    #[schema(example = "high")]
    priority: Option<String>,
    /// The type of the notification; default: that of the event.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    notification_type: Given<String>,
}

/// A condition. Nothing is converted: values of different types are not equal.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleCondition)]
pub struct ConditionBody {
    /// The field: below `data` or `user`, or `type` or `user_id`.
    #[schema(example = "data.amount")]
    field: String,
    /// `eq`, `ne`, `gt`, `gte`, `lt`, `lte`, `in`, `exists` (for `null` too) or `contains` (of a text or a list).
    #[schema(example = "gte")]
    op: String,
    /// The value for the comparison.
    #[serde(default)]
    #[schema(value_type = Option<Value>, example = 100)]
    value: Value,
}

/// How events are collected. Either `window_seconds` or `cron`; with both, `cron` decides.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleDigest)]
pub struct DigestBody {
    /// The length of a window from its first event; with `max_window_seconds`, from its last event.
    #[schema(minimum = 1, maximum = 2_678_400, example = 3600)]
    window_seconds: Option<i64>,
    /// A field such as `data.project`: each value has windows of its own. Events without it share one window.
    key: Option<String>,
    /// A window with this many events closes at once; default 1000.
    #[schema(minimum = 1, maximum = 1000)]
    max_items: Option<i64>,
    /// Each event extends the window, up to this length.
    #[schema(minimum = 1, maximum = 2_678_400)]
    max_window_seconds: Option<i64>,
    /// The first event is sent at once and opens the window for the next ones; an empty window sends nothing.
    #[serde(default)]
    first_immediately: bool,
    /// When windows close, in the person's local time: minute, hour, day, month, weekday.
    #[schema(example = "0 8 * * *")]
    cron: Option<String>,
}

/// How often one person gets a message.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RuleThrottle)]
pub struct ThrottleBody {
    /// The number of messages in the period.
    #[schema(minimum = 1, maximum = 1000, example = 3)]
    limit: Option<i64>,
    /// The period, in seconds.
    #[schema(minimum = 1, maximum = 2_678_400, example = 3600)]
    window_seconds: Option<i64>,
}

/// Collects faults.
#[derive(Default)]
struct Faults(Vec<FieldError>);

impl Faults {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError::new(field, message));
    }

    fn name(&mut self, field: &str, text: &str) {
        if !(1..=NAME_BYTES_MAX).contains(&text.len()) || text.chars().any(char::is_control) {
            self.add(field, "must have 1 to 200 bytes and no control characters");
        }
    }

    fn number(&mut self, field: &str, number: Option<i64>, min: i64, max: i64) -> Option<u32> {
        let number = number?;
        if !(min..=max).contains(&number) {
            self.add(field, format!("must be a whole number from {min} to {max}"));
        }
        u32::try_from(number).ok()
    }

    fn word<W: std::str::FromStr<Err = UnknownWord>>(&mut self, field: &str, text: &str) -> Option<W> {
        text.parse().map_err(|unknown: UnknownWord| self.add(field, unknown.to_string())).ok()
    }

    fn path(&mut self, field: &str, path: &str) {
        self.name(field, path);
        if !rule::is_path(path) {
            self.add(field, "must be `type` or `user_id`, or a path below `data` or `user` such as data.amount");
        }
    }
}

impl ConditionBody {
    fn check(self, place: usize, faults: &mut Faults) -> Option<Condition> {
        let field = |name: &str| format!("conditions[{place}].{name}");
        faults.path(&field("field"), &self.field);
        let op = faults.word::<Operator>(&field("op"), &self.op)?;
        let condition = Condition { field: self.field, op, value: self.value };
        if let Some(fault) = condition.fault() {
            faults.add(field("value"), fault);
        }
        Some(condition)
    }
}

impl DigestBody {
    fn check(self, now: DateTime<Utc>, faults: &mut Faults) -> DigestRule {
        let mut window = |name: &str, number| faults.number(&format!("digest.{name}"), number, 1, WINDOW_SECONDS_MAX);
        let window_seconds = window("window_seconds", self.window_seconds);
        let max_window_seconds = window("max_window_seconds", self.max_window_seconds);
        let max_items = faults.number("digest.max_items", self.max_items, 1, i64::from(window::ITEMS_MAX));
        if self.window_seconds.is_none() && self.cron.is_none() {
            faults.add("digest.window_seconds", "is required, unless `cron` is given");
        }
        if self.max_window_seconds.is_some() && self.cron.is_some() {
            faults.add("digest.max_window_seconds", "is for windows of `window_seconds`: one of `cron` does not slide");
        }
        if max_window_seconds.zip(window_seconds).is_some_and(|(max, window)| max < window) {
            faults.add("digest.max_window_seconds", "must not be less than window_seconds");
        }
        if let Some(key) = &self.key {
            faults.path("digest.key", key);
        }
        if let Some(cron) = &self.cron {
            match LocalSchedule::parse(cron) {
                Err(why) => faults.add("digest.cron", format!("must be five fields such as `0 8 * * *`: {why}")),
                Ok(schedule) if schedule.next(now, chrono_tz::UTC).is_none() => {
                    faults.add("digest.cron", "never comes");
                }
                Ok(_) => faults.name("digest.cron", cron),
            }
        }
        DigestRule {
            window_seconds,
            key: self.key,
            max_items,
            max_window_seconds,
            first_immediately: self.first_immediately,
            cron: self.cron,
        }
    }
}

impl ThrottleBody {
    fn check(self, faults: &mut Faults) -> Option<Throttle> {
        for (field, number) in [("throttle.limit", self.limit), ("throttle.window_seconds", self.window_seconds)] {
            if number.is_none() {
                faults.add(field, "is required");
            }
        }
        let limit = faults.number("throttle.limit", self.limit, 1, THROTTLE_MAX);
        let window_seconds = faults.number("throttle.window_seconds", self.window_seconds, 1, WINDOW_SECONDS_MAX);
        Some(Throttle { limit: limit?, window_seconds: window_seconds? })
    }
}

impl RuleBody {
    /// Applies the body to a rule, or creates one.
    async fn apply(self, web: &Web, tenant: TenantId, before: Option<RuleSettings>) -> Result<RuleSettings, Problem> {
        let mut faults = Faults::default();
        let is_new = before.is_none();
        for (field, is_given) in [
            ("name", self.name.is_some()),
            ("event_type", self.event_type.is_some()),
            ("template_name", self.template_name.is_some()),
            ("channels", self.channels.is_some()),
        ] {
            if is_new && !is_given {
                faults.add(field, "is required");
            }
        }
        let template = self.template_name.clone();
        let settings = self.merge(before, &mut faults);
        if let Some(name) = template {
            let asked = name.clone();
            if !web.queries.run(async move |store| store.rules().has_template(tenant, &asked).await).await? {
                faults.add("template_name", "must be the name of a template of this tenant");
            }
        }
        if faults.0.is_empty() { Ok(settings) } else { Err(Problem::validation(faults.0)) }
    }

    fn merge(self, before: Option<RuleSettings>, faults: &mut Faults) -> RuleSettings {
        let mut settings = before.unwrap_or_else(blank);
        if let Some(name) = self.name {
            faults.name("name", &name);
            settings.name = name;
        }
        if let Some(event_type) = self.event_type {
            faults.name("event_type", &event_type);
            if !rule::is_pattern(&event_type) {
                faults.add("event_type", "must be a name such as order.paid, a beginning such as order.*, or *");
            }
            settings.event_type = event_type;
        }
        settings.is_active = self.active.unwrap_or(settings.is_active);
        let definition = &mut settings.definition;
        if let Some(conditions) = self.conditions {
            if conditions.len() > CONDITIONS_MAX {
                faults.add("conditions", "must be at most 50");
            }
            let conditions = conditions.into_iter().enumerate();
            definition.conditions =
                conditions.filter_map(|(place, condition)| condition.check(place, faults)).collect();
        }
        if let Some(name) = self.template_name {
            definition.template_name = name;
        }
        if let Some(channels) = self.channels {
            definition.channels = check_channels(&channels, faults);
        }
        if let Some(seconds) = self.delay_seconds {
            definition.delay_seconds = faults.number("delay_seconds", seconds, 0, DELAY_SECONDS_MAX);
        }
        if let Some(digest) = self.digest {
            definition.digest = digest.map(|digest| digest.check(clock::now(), faults));
        }
        if let Some(throttle) = self.throttle {
            definition.throttle = throttle.and_then(|throttle| throttle.check(faults));
        }
        for (field, given, kept) in [
            ("category", self.category, &mut definition.category),
            ("notification_type", self.notification_type, &mut definition.notification_type),
        ] {
            if let Some(text) = given {
                text.iter().for_each(|text| faults.name(field, text));
                *kept = text;
            }
        }
        if let Some(priority) = self.priority.and_then(|text| faults.word("priority", &text)) {
            definition.priority = priority;
        }
        settings
    }
}

fn blank() -> RuleSettings {
    RuleSettings {
        name: String::new(),
        event_type: String::new(),
        is_active: true,
        definition: RuleDefinition {
            conditions: Vec::new(),
            template_name: String::new(),
            channels: Vec::new(),
            notification_type: None,
            category: None,
            priority: Priority::default(),
            delay_seconds: None,
            digest: None,
            throttle: None,
        },
    }
}

fn check_channels(words: &[String], faults: &mut Faults) -> Vec<Channel> {
    let mut channels = Vec::new();
    for (place, word) in words.iter().enumerate() {
        let channel = faults.word::<Channel>(&format!("channels[{place}]"), word);
        channels.extend(channel.filter(|channel| !channels.contains(channel)));
    }
    if words.is_empty() {
        faults.add("channels", "must name at least one channel");
    }
    channels
}

/// A rule.
#[derive(Serialize, ToSchema)]
#[schema(as = Rule)]
pub struct RuleView {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// The type of event it hears.
    pub event_type: String,
    /// The conditions; all of them must hold.
    #[schema(value_type = Vec<ConditionBody>)]
    pub conditions: Vec<Condition>,
    /// The template that says it.
    pub template_name: String,
    /// The ways it takes.
    #[schema(value_type = Vec<String>)]
    pub channels: Vec<Channel>,
    /// How long it waits first.
    pub delay_seconds: Option<u32>,
    /// How events gather.
    #[schema(value_type = Option<DigestBody>)]
    pub digest: Option<DigestRule>,
    /// How often one person gets a message.
    #[schema(value_type = Option<ThrottleBody>)]
    pub throttle: Option<Throttle>,
    /// Whether it is switched on.
    pub active: bool,
    /// The category of its messages.
    pub category: Option<String>,
    /// How urgent it is.
    #[schema(value_type = String)]
    pub priority: Priority,
    /// The type of the notification.
    pub notification_type: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

impl From<StoredRule> for RuleView {
    fn from(stored: StoredRule) -> Self {
        let StoredRule { id, settings, created_at, updated_at } = stored;
        let RuleSettings { name, event_type, definition, is_active } = settings;
        Self {
            id,
            name,
            event_type,
            conditions: definition.conditions,
            template_name: definition.template_name,
            channels: definition.channels,
            delay_seconds: definition.delay_seconds,
            digest: definition.digest,
            throttle: definition.throttle,
            active: is_active,
            category: definition.category,
            priority: definition.priority,
            notification_type: definition.notification_type,
            created_at,
            updated_at,
        }
    }
}

/// Rules, newest first.
#[derive(Serialize, ToSchema)]
pub struct RuleList {
    /// The rules.
    pub rules: Vec<RuleView>,
    /// Where the next page begins.
    pub next_cursor: Option<String>,
}

fn unknown() -> Problem {
    Problem::not_found("rule")
}

/// The tenant's rules, newest first.
///
/// Roles: producer, admin, operator.
#[utoipa::path(get, path = "/api/rules", tag = "rules", params(Page),
    responses((status = 200, description = "The rules", body = RuleList)))]
pub async fn list(reader: Reader, page: Params<Page>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (limit, before) = (params::limit(page.0.limit)?, params::cursor(page.0.cursor)?);
    let tenant = reader.0.tenant;
    let found = web.queries.run(async move |store| store.rules().list(tenant, before, limit + 1).await).await?;
    let (found, next_cursor) = params::page_of(found, limit, |rule| rule.id);
    Ok(HttpResponse::Ok().json(RuleList { rules: found.into_iter().map(RuleView::from).collect(), next_cursor }))
}

/// Creates a rule: which messages an event causes, and on which channels.
///
/// Every process uses it within a second.
///
/// Roles: admin.
#[utoipa::path(post, path = "/api/rules", tag = "rules",
    request_body(content = RuleBody, example = json!({"name": "Payment failed", "event_type": "subscription.payment_failed",
        "conditions": [{"field": "data.amount", "op": "gte", "value": 100}], "template_name": "payment_failed",
        "channels": ["email", "in_app"], "throttle": {"limit": 3, "window_seconds": 3600}})),
    responses((status = 201, description = "Made", body = RuleView)))]
pub async fn create(admin: Admin, web: Data<Web>, body: JsonBody) -> Result<HttpResponse, Problem> {
    let (body, tenant) = (body.parse::<RuleBody>().await?, admin.0.tenant);
    require_quota(&web, tenant, Counted::Rules).await?;
    let settings = body.apply(&web, tenant, None).await?;
    let saving = async move |store: Store| {
        let id = store.rules().create(tenant, &settings).await?;
        store.rules().find(tenant, id).await
    };
    let made = web.queries.run(saving).await?.ok_or_else(Problem::internal)?;
    web.catalogues.forget(tenant);
    Ok(web::audit::made(HttpResponse::Created().json(RuleView::from(made.clone())), made.id))
}

/// A rule.
///
/// Roles: producer, admin, operator.
#[utoipa::path(get, path = "/api/rules/{id}", tag = "rules", params(("id" = Uuid, Path, description = "The rule")),
    responses((status = 200, description = "The rule", body = RuleView)))]
pub async fn show(reader: Reader, id: Id, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (tenant, id) = (reader.0.tenant, id.0);
    let found = web.queries.run(async move |store| store.rules().find(tenant, id).await).await?.ok_or_else(unknown)?;
    Ok(HttpResponse::Ok().json(RuleView::from(found)))
}

/// Changes a rule. An absent field stays; `null` unsets one.
///
/// Open windows of a digest close as planned, and their messages follow the rule as it is then.
///
/// Roles: admin.
#[utoipa::path(put, path = "/api/rules/{id}", tag = "rules", params(("id" = Uuid, Path, description = "The rule")),
    request_body(content = RuleBody, example = json!({"active": false})),
    responses((status = 200, description = "Changed", body = RuleView)))]
pub async fn update(admin: Admin, id: Id, web: Data<Web>, body: JsonBody) -> Result<HttpResponse, Problem> {
    let body: RuleBody = body.parse().await?;
    let (tenant, id) = (admin.0.tenant, id.0);
    let before = web.queries.run(async move |store| store.rules().find(tenant, id).await).await?.ok_or_else(unknown)?;
    let settings = body.apply(&web, tenant, Some(before.settings)).await?;
    let saving = async move |store: Store| {
        store.rules().update(tenant, id, &settings).await?;
        store.rules().find(tenant, id).await
    };
    let changed = web.queries.run(saving).await?.ok_or_else(unknown)?;
    web.catalogues.forget(tenant);
    Ok(HttpResponse::Ok().json(RuleView::from(changed)))
}

/// Removes a rule. Events in its open windows are discarded.
///
/// Roles: admin.
#[utoipa::path(delete, path = "/api/rules/{id}", tag = "rules", params(("id" = Uuid, Path, description = "The rule")),
    responses((status = 204, description = "Removed")))]
pub async fn remove(admin: Admin, id: Id, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (tenant, id) = (admin.0.tenant, id.0);
    let was_there = web.queries.run(async move |store| store.rules().remove(tenant, id).await).await?;
    web.catalogues.forget(tenant);
    if was_there { Ok(HttpResponse::NoContent().finish()) } else { Err(unknown()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(body: Value) -> Vec<String> {
        let mut faults = Faults::default();
        serde_json::from_value::<RuleBody>(body).unwrap().merge(None, &mut faults);
        faults.0.into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn every_fault_of_a_rule_is_named() {
        for (body, field) in [
            (json!({"name": ""}), "name"),
            (json!({"event_type": "order*"}), "event_type"),
            (json!({"channels": []}), "channels"),
            (json!({"channels": ["email", "pigeon"]}), "channels[1]"),
            (json!({"conditions": [{"field": "amount", "op": "eq"}]}), "conditions[0].field"),
            (json!({"conditions": [{"field": "data.a", "op": "is"}]}), "conditions[0].op"),
            (json!({"conditions": [{"field": "data.a", "op": "in", "value": 1}]}), "conditions[0].value"),
            (json!({"delay_seconds": -1}), "delay_seconds"),
            (json!({"priority": "soon"}), "priority"),
            (json!({"category": ""}), "category"),
            (json!({"digest": {}}), "digest.window_seconds"),
            (json!({"digest": {"window_seconds": 0}}), "digest.window_seconds"),
            (json!({"digest": {"window_seconds": 2_678_401}}), "digest.window_seconds"),
            (json!({"digest": {"window_seconds": 60, "max_window_seconds": 30}}), "digest.max_window_seconds"),
            (json!({"digest": {"cron": "0 8 * * *", "max_window_seconds": 30}}), "digest.max_window_seconds"),
            (json!({"digest": {"cron": "0 25 * * *"}}), "digest.cron"),
            (json!({"digest": {"cron": "0 0 30 2 *"}}), "digest.cron"),
            (json!({"digest": {"window_seconds": 60, "max_items": 1001}}), "digest.max_items"),
            (json!({"digest": {"window_seconds": 60, "key": "project"}}), "digest.key"),
            (json!({"throttle": {"limit": 1}}), "throttle.window_seconds"),
            (json!({"throttle": {"limit": 0, "window_seconds": 1}}), "throttle.limit"),
        ] {
            assert_eq!(faults(body.clone()), [field], "{body}");
        }
        let whole = json!({"name": "n", "event_type": "*", "channels": ["in-app"], "digest": {"window_seconds": 60, "cron": "0 8 * * *",
            "key": "data.project", "max_items": 3, "first_immediately": true}, "throttle": {"limit": 1, "window_seconds": 1},
            "conditions": [{"field": "data.a", "op": "exists"}], "delay_seconds": 0, "category": null, "notification_type": "x"});
        assert!(faults(whole).is_empty());
        assert!(serde_json::from_value::<RuleBody>(json!({"chanels": []})).is_err());
    }

    #[test]
    fn what_is_not_given_stays_and_null_unsets() {
        let merge = |body: Value, before| {
            serde_json::from_value::<RuleBody>(body).unwrap().merge(before, &mut Faults::default())
        };
        let first = merge(
            json!({"name": "a", "category": "billing", "delay_seconds": 5, "digest": {"window_seconds": 60}}),
            None,
        );
        let second = merge(json!({"active": false, "digest": null, "delay_seconds": null}), Some(first));
        assert_eq!((second.name.as_str(), second.is_active), ("a", false));
        assert_eq!(second.definition.category.as_deref(), Some("billing"));
        assert_eq!((second.definition.digest, second.definition.delay_seconds), (None, None));
    }
}
