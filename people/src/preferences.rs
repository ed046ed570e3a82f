//! The preferences of a person: reading, changing, opting out, exporting, deleting.

use std::{collections::BTreeMap, sync::Arc};

use actix_web::{HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use content::catalogue::{Catalogue, NotificationType};
use domain::{
    Channel, Preferences, TenantId, Topic,
    category::MARKETING,
    clock,
    contract::submission::FieldError,
    suppression::{SuppressionReason, SuppressionScope},
    token::Role,
};
use records::{
    Records,
    preferences::{Consequences, OptOut},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use web::{
    Web, audit,
    auth::{Anyone, Identity},
    body::JsonBody,
    params::{self, Params, PathUser, Text},
    problem::{Code, Problem},
};

use crate::choices::Choices;

/// The preferences of a person.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Preferences)]
pub struct PreferencesView {
    /// The person.
    user_id: String,
    /// Whether e-mail is on.
    email_enabled: bool,
    /// Whether push notifications are on.
    push_enabled: bool,
    /// Whether text messages are on.
    sms_enabled: bool,
    /// Whether the inbox is on.
    in_app_enabled: bool,
    /// Whether WhatsApp is on.
    whatsapp_enabled: bool,
    /// Whether webhooks are on.
    webhook_enabled: bool,
    /// Whether advertising is wanted.
    marketing_enabled: bool,
    /// Whether notifications that are not essential are on.
    non_essential_enabled: bool,
    /// The tenant's types, and every type or category that the person made a choice about. The switches above are not
    /// included in these values.
    types: BTreeMap<String, ChoiceView>,
}

/// The effective choice about a type or category.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Choice)]
pub struct ChoiceView {
    /// Whether it is wanted.
    enabled: bool,
    /// The allowed channels; absent: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["in_app", "push"]))]
    channels: Option<Vec<Channel>>,
}

/// Selects a person.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct PersonQuery {
    /// The person, for producers and admins; other callers get their own.
    #[param(value_type = Option<String>)]
    user_id: Option<Text>,
}

/// All data about a person's preferences.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PreferencesExport)]
pub struct ExportView {
    /// The person.
    user_id: String,
    /// When it was read.
    exported_at: DateTime<Utc>,
    /// The effective preferences.
    preferences: PreferencesView,
    /// The stored preferences; `null`: the person never set any.
    #[schema(value_type = Option<Object>)]
    stored: Option<Preferences>,
    /// The suppressions of the person's known addresses.
    opt_outs: Vec<OptOutView>,
}

/// A suppression of an address.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OptOut)]
pub struct OptOutView {
    /// The channel.
    #[schema(value_type = String, example = "email")]
    channel: Channel,
    /// `all`, `marketing`, or `category:` and a name.
    #[schema(value_type = String, example = "marketing")]
    scope: SuppressionScope,
    /// Why.
    #[schema(value_type = String, example = "unsubscribed")]
    reason: SuppressionReason,
    /// Since when.
    created_at: DateTime<Utc>,
}

/// A person whose preferences the caller may read and change.
pub struct PreferencesAccess {
    /// The tenant.
    pub tenant: TenantId,
    /// The person.
    pub user: String,
}

impl PreferencesAccess {
    /// The caller, or the requested person if the caller's role allows it.
    pub fn of(caller: &Arc<Identity>, asked: Option<Text>) -> Result<Self, Problem> {
        let user = params::given(asked).unwrap_or_else(|| caller.subject.clone());
        let may = user == caller.subject || matches!(caller.role, Role::Admin | Role::Producer);
        if !may {
            return Err(Problem::new(Code::Forbidden, "Ask for yourself: this role has its own preferences only."));
        }
        Ok(Self { tenant: caller.tenant, user })
    }

    async fn show(self, web: &Web) -> Result<HttpResponse, Problem> {
        let stored = self.stored(web).await?.unwrap_or_default();
        Ok(HttpResponse::Ok().json(self.view(web, &stored).await?))
    }

    async fn stored(&self, web: &Web) -> Result<Option<Preferences>, Problem> {
        let (tenant, user) = (self.tenant, self.user.clone());
        web.queries.run(async move |store| store.preferences().load(tenant, &user).await).await
    }

    async fn view(&self, web: &Web, stored: &Preferences) -> Result<PreferencesView, Problem> {
        let catalogue = web.catalogue(self.tenant).await?;
        Ok(PreferencesView::of(&self.user, stored, &catalogue))
    }

    async fn put(self, web: &Web, body: JsonBody) -> Result<HttpResponse, Problem> {
        let body: Map<String, Value> = body.parse().await?;
        let choices = Choices::read(&self.user, body).map_err(Problem::validation)?;
        self.change(web, |preferences| choices.apply(preferences)).await
    }

    async fn change(
        self,
        web: &Web,
        change: impl FnOnce(&mut Preferences) -> Result<Consequences, FieldError> + Send + 'static,
    ) -> Result<HttpResponse, Problem> {
        let (tenant, user) = (self.tenant, self.user.clone());
        let changed =
            web.queries.run(async move |store| store.preferences().change(tenant, &user, change).await).await?;
        let stored = changed.map_err(|fault| Problem::validation(vec![fault]))?;
        let view = self.view(web, &stored).await?;
        Ok(audit::about(HttpResponse::Ok().json(view), tenant, &self.user))
    }

    async fn erase(self, web: &Web) -> Result<HttpResponse, Problem> {
        let Self { tenant, user } = self;
        let erased = user.clone();
        web.queries.run(async move |store| store.preferences().erase(tenant, &erased).await).await?;
        Ok(audit::about(HttpResponse::NoContent().finish(), tenant, &user))
    }
}

impl PreferencesView {
    fn of(user: &str, stored: &Preferences, catalogue: &Catalogue) -> Self {
        let is_on = |channel| stored.channels.get(&channel) != Some(&false);
        let marketing = stored.keys.get(MARKETING).and_then(|choice| choice.enabled);
        let mut types: BTreeMap<String, ChoiceView> =
            catalogue.types.values().map(|one| (one.name.clone(), of_type(stored, catalogue, one))).collect();
        let said = stored.keys.keys().map(String::as_str).chain(stored.no_marketing.then_some(MARKETING));
        for key in said {
            types.entry(key.to_owned()).or_insert_with(|| of_key(stored, catalogue, key));
        }
        Self {
            user_id: user.to_owned(),
            email_enabled: is_on(Channel::Email),
            push_enabled: is_on(Channel::Push),
            sms_enabled: is_on(Channel::Sms),
            in_app_enabled: is_on(Channel::InApp),
            whatsapp_enabled: is_on(Channel::Whatsapp),
            webhook_enabled: is_on(Channel::Webhook),
            marketing_enabled: !stored.no_marketing && !stored.only_essential && marketing != Some(false),
            non_essential_enabled: !stored.only_essential,
            types,
        }
    }
}

/// The effective choice about a type of the tenant: which of its channels are on, or which of those that the person
/// named.
fn of_type(stored: &Preferences, catalogue: &Catalogue, of_type: &NotificationType) -> ChoiceView {
    let named = stored.keys.get(&of_type.name).and_then(|choice| choice.channels.as_ref());
    let may_take: Vec<Channel> =
        named.map_or_else(|| of_type.channels.clone(), |named| named.iter().copied().collect());
    let topic = Topic {
        kind: Some(&of_type.name),
        category: of_type.category.as_deref(),
        class: catalogue.class(Some(&of_type.name), None),
        channel: Channel::InApp,
        default_enabled: of_type.default_enabled,
    };
    let channels = allowed(stored, topic, &may_take);
    ChoiceView { enabled: !channels.is_empty(), channels: Some(channels).filter(|channels| !channels.is_empty()) }
}

/// The effective choice about a name without a type, such as a category.
fn of_key(stored: &Preferences, catalogue: &Catalogue, key: &str) -> ChoiceView {
    let class = catalogue.class(None, Some(key));
    let topic = Topic { kind: None, category: Some(key), class, channel: Channel::InApp, default_enabled: true };
    let channels = allowed(stored, topic, Channel::ALL);
    let is_any = channels.len() == Channel::ALL.len();
    ChoiceView { enabled: !channels.is_empty(), channels: Some(channels).filter(|some| !some.is_empty() && !is_any) }
}

/// Those of `channels` that are on for a topic, without regard to the switches of whole channels.
fn allowed(stored: &Preferences, topic: Topic<'_>, channels: &[Channel]) -> Vec<Channel> {
    let unswitched = Preferences { channels: BTreeMap::new(), ..stored.clone() };
    channels.iter().copied().filter(|channel| unswitched.allow(Topic { channel: *channel, ..topic })).collect()
}

/// The caller's preferences.
///
/// `types` has every type of the tenant with the effective choice, and every other type or category that the person
/// made a choice about. The switches of whole channels are separate and take precedence: any "off" wins. Essential
/// notifications are always sent.
///
/// Roles: any for itself; producer and admin for others of the tenant.
#[utoipa::path(get, path = "/api/notifications/preferences", tag = "preferences", params(PersonQuery),
    responses((status = 200, description = "The preferences", body = PreferencesView)))]
pub async fn show(caller: Anyone, query: Params<PersonQuery>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    PreferencesAccess::of(&caller.0, query.0.user_id)?.show(&web).await
}

/// A person's preferences.
///
/// As `GET /api/notifications/preferences`.
///
/// Roles: producer and admin; a user for itself.
#[utoipa::path(get, path = "/api/notifications/preferences/{user_id}", tag = "preferences",
    params(("user_id" = String, Path, description = "The person")),
    responses((status = 200, description = "The preferences", body = PreferencesView)))]
pub async fn show_of(caller: Anyone, user: PathUser, web: Data<Web>) -> Result<HttpResponse, Problem> {
    PreferencesAccess::of(&caller.0, Some(user.0))?.show(&web).await
}

/// Changes the caller's preferences.
///
/// The keys of the body decide between three forms. Fields that are not sent stay unchanged:
///
/// * a map by type or category: `{"task_reminder": {"enabled": true, "channels": ["in_app"]}, "marketing": {"enabled": false}}`;
///   `channels` are the only allowed ones, `null` allows all again, and `"task_reminder": null` deletes the choice;
/// * a row: `{"category": "marketing", "channel": "email", "enabled": false}`;
/// * switches: `email_enabled`, `sms_enabled`, `push_enabled`, `in_app_enabled`, `whatsapp_enabled`, `webhook_enabled`,
///   `marketing_enabled`, `marketing_emails`, `non_essential_enabled`.
///
/// Any "off" wins. Switching an unsubscribed category on again lifts the unsubscription.
///
/// Roles: any for itself; producer and admin for others of the tenant.
#[utoipa::path(put, path = "/api/notifications/preferences", tag = "preferences", params(PersonQuery),
    request_body(content = Object, example = json!({"task_reminder": {"enabled": true, "channels": ["in_app"]}, "marketing": {"enabled": false}})),
    responses((status = 200, description = "What holds now", body = PreferencesView)))]
pub async fn update(
    caller: Anyone,
    query: Params<PersonQuery>,
    web: Data<Web>,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    PreferencesAccess::of(&caller.0, query.0.user_id)?.put(&web, body).await
}

/// Changes a person's preferences.
///
/// As `PUT /api/notifications/preferences`.
///
/// Roles: producer and admin; a user for itself.
#[utoipa::path(put, path = "/api/notifications/preferences/{user_id}", tag = "preferences",
    params(("user_id" = String, Path, description = "The person")),
    request_body(content = Object, example = json!({"category": "marketing", "channel": "email", "enabled": false})),
    responses((status = 200, description = "What holds now", body = PreferencesView)))]
pub async fn update_of(
    caller: Anyone,
    user: PathUser,
    web: Data<Web>,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    PreferencesAccess::of(&caller.0, Some(user.0))?.put(&web, body).await
}

/// Changes the caller's preferences, under another path.
///
/// As `PUT /api/notifications/preferences`.
///
/// Roles: any for itself; producer and admin for others of the tenant.
#[utoipa::path(put, path = "/api/notifications", tag = "preferences", params(PersonQuery),
    request_body(content = Object, example = json!({"email_enabled": true, "marketing_emails": false})),
    responses((status = 200, description = "What holds now", body = PreferencesView)))]
pub async fn update_all(
    caller: Anyone,
    query: Params<PersonQuery>,
    web: Data<Web>,
    body: JsonBody,
) -> Result<HttpResponse, Problem> {
    PreferencesAccess::of(&caller.0, query.0.user_id)?.put(&web, body).await
}

/// Deletes the caller's preferences.
///
/// The inbox stays. A refusal of advertising stays too: by a fingerprint of the address, without the address.
///
/// Roles: any for itself; producer and admin for others of the tenant.
#[utoipa::path(delete, path = "/api/notifications", tag = "preferences", params(PersonQuery),
    responses((status = 204, description = "Forgotten")))]
pub async fn erase(caller: Anyone, query: Params<PersonQuery>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    PreferencesAccess::of(&caller.0, query.0.user_id)?.erase(&web).await
}

/// Opts out of advertising.
///
/// It covers every channel, and every mail to the person's e-mail address. `marketing_enabled` reverses it.
///
/// Roles: any for itself; producer and admin for others of the tenant.
#[utoipa::path(post, path = "/api/notifications/opt-out/marketing", tag = "preferences", params(PersonQuery),
    responses((status = 200, description = "What holds now", body = PreferencesView)))]
pub async fn opt_out_of_marketing(
    caller: Anyone,
    query: Params<PersonQuery>,
    web: Data<Web>,
) -> Result<HttpResponse, Problem> {
    let change = |preferences: &mut Preferences| {
        preferences.no_marketing = true;
        Ok(Consequences { suppress: vec![SuppressionScope::Marketing], lift: Vec::new() })
    };
    PreferencesAccess::of(&caller.0, query.0.user_id)?.change(&web, change).await
}

/// Opts out of every notification that is not essential.
///
/// It covers every channel. `non_essential_enabled` reverses it.
///
/// Roles: any for itself; producer and admin for others of the tenant.
#[utoipa::path(post, path = "/api/notifications/opt-out/all-non-essential", tag = "preferences", params(PersonQuery),
    responses((status = 200, description = "What holds now", body = PreferencesView)))]
pub async fn opt_out_of_all(
    caller: Anyone,
    query: Params<PersonQuery>,
    web: Data<Web>,
) -> Result<HttpResponse, Problem> {
    let change = |preferences: &mut Preferences| {
        preferences.only_essential = true;
        Ok(Consequences::default())
    };
    PreferencesAccess::of(&caller.0, query.0.user_id)?.change(&web, change).await
}

/// Exports all data about the caller's preferences.
///
/// Roles: any for itself; producer and admin for others of the tenant.
#[utoipa::path(get, path = "/api/notifications/export", tag = "preferences", params(PersonQuery),
    responses((status = 200, description = "Preferences and opt-outs", body = ExportView)))]
pub async fn export(caller: Anyone, query: Params<PersonQuery>, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let whose = PreferencesAccess::of(&caller.0, query.0.user_id)?;
    let (tenant, user) = (whose.tenant, whose.user.clone());
    let opt_outs = web.queries.run(async move |store| store.preferences().opt_outs(tenant, &user).await).await?;
    let stored = whose.stored(&web).await?;
    let preferences = whose.view(&web, &stored.clone().unwrap_or_default()).await?;
    let view =
        |OptOut { channel, scope, reason, created_at }: OptOut| OptOutView { channel, scope, reason, created_at };
    let user = whose.user.clone();
    let export = ExportView {
        user_id: whose.user,
        exported_at: clock::now(),
        preferences,
        stored,
        opt_outs: opt_outs.into_iter().map(view).collect(),
    };
    Ok(audit::about(HttpResponse::Ok().json(export), tenant, &user))
}

#[cfg(test)]
mod tests {
    use domain::Class;
    use serde_json::json;

    use super::*;

    fn catalogue() -> Catalogue {
        let of_type = |name: &str, category: &str, class, default_enabled| NotificationType {
            name: name.to_owned(),
            category: Some(category.to_owned()),
            label: None,
            description: None,
            class,
            channels: vec![Channel::InApp, Channel::Push],
            default_enabled,
            send_window: None,
        };
        let types = [
            of_type("task_reminder", "tasks", None, true),
            of_type("digest", "news", None, false),
            of_type("login", "account", Some(Class::Essential), true),
        ];
        Catalogue { types: types.into_iter().map(|one| (one.name.clone(), one)).collect(), ..Catalogue::default() }
    }

    fn types(stored: Value) -> Value {
        let stored: Preferences = serde_json::from_value(stored).unwrap();
        serde_json::to_value(PreferencesView::of("ada", &stored, &catalogue())).unwrap()["types"].clone()
    }

    #[test]
    fn known_types_are_shown_as_they_hold_and_others_as_they_were_chosen() {
        let both = json!(["in_app", "push"]);
        let silent = types(json!({}));
        assert_eq!(silent["task_reminder"], json!({"enabled": true, "channels": both}));
        assert_eq!(silent["digest"], json!({"enabled": false}), "off by itself");
        assert_eq!(silent.as_object().unwrap().len(), 3);

        let chosen = types(json!({"keys": {
            "task_reminder": {"channels": ["push"]}, "news": {"enabled": true}, "promo": {"enabled": false}, "blog": {"off": ["email"]},
            "other": {"enabled": true},
        }}));
        assert_eq!(chosen["task_reminder"], json!({"enabled": true, "channels": ["push"]}));
        assert_eq!(chosen["digest"], json!({"enabled": true, "channels": both}), "by its category");
        assert_eq!((&chosen["promo"], &chosen["other"]), (&json!({"enabled": false}), &json!({"enabled": true})));
        let by = chosen["blog"]["channels"].as_array().unwrap();
        assert!(by.contains(&json!("push")) && !by.contains(&json!("email")), "{by:?}");

        let out = types(json!({"only_essential": true, "no_marketing": true, "channels": {"push": false}}));
        assert_eq!(out["task_reminder"]["enabled"], json!(false));
        assert_eq!(out["login"], json!({"enabled": true, "channels": both}));
        assert_eq!(out["marketing"], json!({"enabled": false}));
    }

    #[test]
    fn a_person_has_their_own_and_a_producer_all_of_the_tenant() {
        let of = |role, asked: Option<&str>| {
            let caller = Arc::new(Identity { tenant: TenantId(1), role, subject: "ada".to_owned(), via: None });
            let asked = asked.map(|user| Text::try_from(user.to_owned()).unwrap());
            PreferencesAccess::of(&caller, asked).ok().map(|whose| whose.user)
        };
        assert_eq!(of(Role::User, None).as_deref(), Some("ada"));
        assert_eq!(of(Role::User, Some("eve")), None);
        assert_eq!(of(Role::Agent, Some("eve")), None);
        assert_eq!(of(Role::Operator, Some("eve")), None);
        assert_eq!(of(Role::Producer, Some("eve")).as_deref(), Some("eve"));
        assert_eq!(of(Role::Admin, Some("eve")).as_deref(), Some("eve"));
    }
}
