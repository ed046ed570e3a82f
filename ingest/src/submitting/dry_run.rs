//! Dry run: the effects of an event and their reasons, without carrying them out.

use std::{collections::HashMap, sync::Arc};

use actix_web::{HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use content::{
    catalogue::{Catalogue, Rule},
    compose::Notice,
    event_messages::{self, RenderError},
};
use deliveries::Deliveries;
use domain::{
    Channel, Condition, Person, Reason, RecipientPolicy, TenantId, Throttle, Topic,
    acceptance::NewDigestItem,
    clock,
    contract::submission::{Content, Part},
};
use records::Records;
use serde::Serialize;
use store::Store;
use submission::Submissions;
use utoipa::ToSchema;
use uuid::Uuid;
use web::{
    audit,
    auth::Producer,
    body::{JsonBody, SUBMISSION},
    problem::Problem,
};

use crate::submitting::events::{Event, EventBody, MATCHED_MAX, RuleError, item, notices, too_many};

/// The effects of an event.
#[derive(Debug, Serialize, ToSchema)]
pub struct DryRun {
    /// The rules that would match, the oldest first.
    pub matched_rules: Vec<Uuid>,
    /// Every rule of the tenant, and its effect.
    pub rules: Vec<RuleVerdict>,
}

/// The effect of a rule.
#[derive(Debug, Serialize, ToSchema)]
pub struct RuleVerdict {
    /// The rule.
    pub rule_id: Uuid,
    /// Its name.
    pub name: String,
    /// Whether it would match.
    pub matched: bool,
    /// Why it would not: it is `inactive`, listens to other types (`event_type`), or a `condition` does not hold.
    #[schema(value_type = Option<String>, example = "condition")]
    pub because: Option<&'static str>,
    /// The first condition that does not hold.
    pub condition: Option<UnmetCondition>,
    /// The effect on each channel.
    pub channels: Vec<ChannelVerdict>,
    /// Why it could not be rendered.
    pub error: Option<RuleError>,
    /// When its message would be sent, if later than now.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// The window in which the event would wait; none if it is sent at once.
    pub digest: Option<WindowVerdict>,
    /// The state of its throttle.
    pub throttle: Option<ThrottleVerdict>,
}

/// A condition that does not hold.
#[derive(Debug, Serialize, ToSchema)]
pub struct UnmetCondition {
    /// Its place among the conditions of the rule, from 0.
    pub index: usize,
    /// Where it looks.
    pub field: String,
    /// How it compares.
    pub op: &'static str,
    /// With what.
    #[schema(value_type = Option<serde_json::Value>)]
    pub value: serde_json::Value,
}

/// The effect on a channel.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChannelVerdict {
    /// The channel.
    #[schema(value_type = String)]
    pub channel: Channel,
    /// How many addresses the person has there; without one the delivery fails with `no_address`.
    pub addresses: usize,
    /// Whether the person's preferences allow it; otherwise the delivery is suppressed.
    pub allowed: bool,
    /// The end of the person's present quiet hours, if they delay it.
    pub quiet_until: Option<DateTime<Utc>>,
    /// The wait when it is sent: `quiet_hours` or `send_window`; of both, the one that ends last.
    #[schema(value_type = Option<String>, example = "send_window")]
    pub waits_for: Option<Reason>,
    /// The end of the wait; absent if the quiet hours cover the whole send window: then it would be suppressed.
    pub waits_until: Option<DateTime<Utc>>,
    /// The rendered content.
    #[schema(value_type = Option<PartBody>)]
    pub content: Option<Part>,
}

/// A window of a digest.
#[derive(Debug, Serialize, ToSchema)]
pub struct WindowVerdict {
    /// Whether the event would open it.
    pub opens: bool,
    /// How many events wait in it already.
    pub items: i32,
    /// When it closes as things stand.
    pub closes_at: DateTime<Utc>,
    /// Whether this event would be sent at once, because it is the first one.
    pub told_at_once: bool,
}

/// A throttle for one person.
#[derive(Debug, Serialize, ToSchema)]
pub struct ThrottleVerdict {
    /// Messages allowed.
    pub limit: u32,
    /// Within any period of so many seconds.
    pub window_seconds: u32,
    /// Messages left at the moment.
    pub left: u32,
}

/// Shows the effects of an event and their reasons; nothing is sent and nothing is stored.
///
/// For each rule: whether it matches, and if not, why; for each channel whether the person has an address and wants it;
/// the window of its digest; the rest of its throttle; the rendered content.
///
/// Roles: producer, admin.
#[utoipa::path(post, path = "/api/events/dry-run", tag = "rules",
    request_body(content = EventBody, example = json!({"eventType": "order.paid", "userId": "user-123", "data": {"amount": 100}})),
    responses((status = 200, description = "What would happen", body = DryRun)))]
pub async fn run(
    producer: Producer,
    submissions: Data<Submissions>,
    body: JsonBody<SUBMISSION>,
) -> Result<HttpResponse, Problem> {
    let event = body.parse::<EventBody>().await?.check()?;
    let tenant = producer.0.tenant;
    let catalogue = submissions.web.catalogue(tenant).await?;
    let user = event.user_id.clone();
    let query = async move |store: Store| {
        let person = store.people().load(tenant, vec![user.clone()]).await?.remove(&user);
        let preferences = store.rules().chosen_preferences(tenant, &user).await?;
        Ok((person.unwrap_or_else(|| Person::unknown(user)), preferences, store.rules().switched_off(tenant).await?))
    };
    let (person, preferences, switched_off) = submissions.web.queries.run(query).await?;
    let policy = RecipientPolicy { preferences, zone: person.time_zone, quiet: person.quiet_hours };
    let dry_run =
        EventDryRun { submissions: &submissions, catalogue, tenant, event, person, policy, now: clock::now() };
    let mut rules = dry_run.rules().await?;
    rules.extend(switched_off.into_iter().map(|(id, name)| RuleVerdict::unmatched(id, &name, "inactive")));
    rules.sort_by_key(|verdict| verdict.rule_id);
    let matched_rules = rules.iter().filter(|verdict| verdict.matched).map(|verdict| verdict.rule_id).collect();
    Ok(audit::unchanged(HttpResponse::Ok().json(DryRun { matched_rules, rules })))
}

struct EventDryRun<'a> {
    submissions: &'a Submissions,
    catalogue: Arc<Catalogue>,
    tenant: TenantId,
    event: Event,
    person: Person,
    policy: RecipientPolicy,
    now: DateTime<Utc>,
}

impl RuleVerdict {
    fn unmatched(rule_id: Uuid, name: &str, because: &'static str) -> Self {
        Self {
            rule_id,
            name: name.to_owned(),
            matched: false,
            because: Some(because),
            condition: None,
            channels: Vec::new(),
            error: None,
            scheduled_at: None,
            digest: None,
            throttle: None,
        }
    }
}

impl EventDryRun<'_> {
    async fn rules(&self) -> Result<Vec<RuleVerdict>, Problem> {
        let facts = event_messages::facts(self.event.event_input(), &self.person);
        let listening: Vec<Uuid> = self.catalogue.rules_for(&self.event.event_type).map(|rule| rule.id).collect();
        let matches = |rule: &&Arc<Rule>| listening.contains(&rule.id) && rule.definition.unmet(&facts).is_none();
        let matching: Vec<Arc<Rule>> = self.catalogue.rules.iter().filter(matches).take(MATCHED_MAX).cloned().collect();
        let (mut windows, mut throttles) = (self.windows(&matching).await?, self.throttles(&matching).await?);
        let notices =
            notices(self.submissions, self.tenant, &self.catalogue, matching, (&self.event, &self.person)).await?;
        let mut notices: HashMap<Uuid, _> = notices.into_iter().map(|(rule, notice)| (rule.id, notice)).collect();
        let mut verdicts = Vec::with_capacity(self.catalogue.rules.len());
        for rule in &self.catalogue.rules {
            let unmet = rule.definition.unmet(&facts);
            verdicts.push(match unmet {
                _ if !listening.contains(&rule.id) => RuleVerdict::unmatched(rule.id, &rule.name, "event_type"),
                Some(index) => RuleVerdict {
                    condition: rule.definition.conditions.get(index).map(|condition| unmet_condition(index, condition)),
                    ..RuleVerdict::unmatched(rule.id, &rule.name, "condition")
                },
                None => {
                    let (digest, throttle) = (windows.remove(&rule.id), throttles.remove(&rule.id));
                    let notice = notices.remove(&rule.id).unwrap_or_else(|| Err(too_many()));
                    self.matched(rule, notice, digest, throttle)
                }
            });
        }
        Ok(verdicts)
    }

    fn matched(
        &self,
        rule: &Rule,
        notice: Result<Notice, RenderError>,
        digest: Option<WindowVerdict>,
        throttle: Option<ThrottleVerdict>,
    ) -> RuleVerdict {
        let (notice, error) = match notice {
            Ok(notice) => (Some(notice), None),
            Err(error) => (None, Some(RuleError { rule_id: rule.id, field: error.field, message: error.message })),
        };
        let (channels, content) = (rule.definition.channels.iter(), notice.as_ref().map(|notice| &notice.content));
        let scheduled_at = notice.as_ref().and_then(|notice| notice.scheduled_at);
        let gathered = digest.as_ref().filter(|window| !window.told_at_once).map(|window| window.closes_at);
        let at = scheduled_at.or(gathered).unwrap_or(self.now);
        RuleVerdict {
            matched: true,
            because: None,
            channels: channels.map(|channel| self.channel(rule, *channel, content, at)).collect(),
            error,
            scheduled_at,
            digest,
            throttle,
            ..RuleVerdict::unmatched(rule.id, &rule.name, "")
        }
    }

    /// The end of a message on a channel, if it is to be sent at `at`.
    fn channel(&self, rule: &Rule, channel: Channel, content: Option<&Content>, at: DateTime<Utc>) -> ChannelVerdict {
        let kind = rule.definition.notification_type.as_deref().unwrap_or(&self.event.event_type);
        let category = content.map_or(rule.definition.category.as_deref(), |content| content.category.as_deref());
        let class = content.map_or_else(|| self.catalogue.class(Some(kind), category), Content::class);
        let of_type = self.catalogue.types.get(kind);
        let default_enabled = of_type.is_none_or(|of_type| of_type.default_enabled);
        let window = of_type.and_then(|of_type| of_type.send_window.as_ref());
        let topic = Topic { kind: Some(kind), category, class, channel, default_enabled };
        let quiet = self.policy.wait(class, channel, None, self.now);
        let wait = self.policy.wait(class, channel, window, at);
        ChannelVerdict {
            channel,
            addresses: self.person.addresses(channel).len(),
            allowed: self.policy.preferences.allow(topic),
            quiet_until: quiet.and_then(|wait| wait.until),
            waits_for: wait.map(|wait| wait.reason),
            waits_until: wait.and_then(|wait| wait.until),
            content: content.and_then(|content| content.parts.get(&channel)).cloned(),
        }
    }

    /// The digest windows in which the event would wait, by rule, in one query.
    async fn windows(&self, rules: &[Arc<Rule>]) -> Result<HashMap<Uuid, WindowVerdict>, Problem> {
        let own = |rule: &Arc<Rule>| {
            let digest = rule.definition.digest.as_ref()?;
            Some((item(&self.event, &self.person, rule.id, digest, self.now), digest.first_immediately))
        };
        let items: Vec<(NewDigestItem, bool)> = rules.iter().filter_map(own).collect();
        if items.is_empty() {
            return Ok(HashMap::new());
        }
        let (tenant, user) = (self.tenant, self.event.user_id.clone());
        let asked = items.iter().map(|(item, _)| (item.rule, item.key.clone())).collect();
        let open = self
            .submissions
            .web
            .queries
            .run(async move |store: Store| store.digests().open_digests(tenant, &user, asked).await)
            .await?;
        let window = |(item, first_immediately): (NewDigestItem, bool)| {
            let open = open.get(&item.rule).copied();
            let (items, closes_at) = open.unwrap_or((0, item.closes_at));
            let opens = open.is_none();
            (item.rule, WindowVerdict { opens, items, closes_at, told_at_once: opens && first_immediately })
        };
        Ok(items.into_iter().map(window).collect())
    }

    /// The permits that the throttles have left, by rule, in one query.
    async fn throttles(&self, rules: &[Arc<Rule>]) -> Result<HashMap<Uuid, ThrottleVerdict>, Problem> {
        let own = |rule: &Arc<Rule>| Some((rule.id, rule.definition.throttle?));
        let throttles: Vec<(Uuid, Throttle)> = rules.iter().filter_map(own).collect();
        if throttles.is_empty() {
            return Ok(HashMap::new());
        }
        let (tenant, user, asked) = (self.tenant, self.event.user_id.clone(), throttles.clone());
        let used = self
            .submissions
            .web
            .queries
            .run(async move |store: Store| store.throttles().used(tenant, &user, asked).await)
            .await?;
        let verdict = |(rule, Throttle { limit, window_seconds }): (Uuid, Throttle)| {
            let used = u32::try_from(used.get(&rule).copied().unwrap_or_default()).unwrap_or(u32::MAX);
            (rule, ThrottleVerdict { limit, window_seconds, left: limit.saturating_sub(used) })
        };
        Ok(throttles.into_iter().map(verdict).collect())
    }
}

fn unmet_condition(index: usize, condition: &Condition) -> UnmetCondition {
    let Condition { field, op, value } = condition.clone();
    UnmetCondition { index, field, op: op.as_str(), value }
}

/// The rendered content, for the OpenAPI document.
#[derive(ToSchema)]
#[schema(as = RenderedPart)]
#[expect(dead_code, reason = "describes `Part`, which knows nothing of OpenAPI")]
pub struct PartBody {
    /// Subject of a mail, title of a notification.
    title: Option<String>,
    /// The plain part.
    message: Option<String>,
    /// The HTML part.
    html: Option<String>,
}
