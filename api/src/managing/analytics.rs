//! Counts of deliveries by outcome, per day, channel, provider, template and category.

use std::collections::BTreeMap;

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{ACCEPT, CONTENT_DISPOSITION},
    web::Data,
};
use chrono::{Days, NaiveDate};
use domain::{EventKind, clock};
use records::{
    Records,
    analytics::{AnalyticsFilter, KindCount, TRIED, WRONG},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use web::{
    Web,
    auth::Admin,
    params::{self, Params, Text},
    problem::Problem,
};

/// The number of days before the last one, unless the request names the first day.
const DAYS_USUAL: u64 = 29;
/// The possible groupings.
const GROUPS: [&str; 5] = ["day", "channel", "provider", "template", "category"];
/// How the days are named.
const BY_DAY: &str = "day";

/// Selects deliveries. An absent parameter does not restrict.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct AnalyticsQuery {
    /// On this channel.
    #[param(value_type = Option<String>, example = "email")]
    channel: Option<Text>,
    /// By this provider.
    #[param(value_type = Option<String>, example = "sendgrid")]
    provider: Option<Text>,
    /// From the template of this name.
    #[param(value_type = Option<String>)]
    template: Option<Text>,
    /// About this.
    #[param(value_type = Option<String>)]
    category: Option<Text>,
    /// Accepted on this UTC day or later: a day, or a time within it. Default: 29 days before the last day.
    #[param(value_type = Option<String>, example = "2024-01-01T00:00:00")]
    start_date: Option<Text>,
    /// Accepted on this UTC day or before. Default: today.
    #[param(value_type = Option<String>, example = "2024-01-31T23:59:59")]
    end_date: Option<Text>,
    /// Groups by these only: `day`, `channel`, `provider`, `template`, `category`, separated by commas.
    #[param(value_type = Option<String>, example = "channel")]
    group_by: Option<Text>,
    /// `json` or `csv`; `Accept: text/csv` does the same.
    #[param(value_type = Option<String>, example = "json")]
    format: Option<Text>,
}

/// Counts of deliveries by outcome.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeliveryAnalytics)]
pub struct AnalyticsView {
    /// The first day.
    #[schema(value_type = String, format = Date)]
    pub start_date: NaiveDate,
    /// The last day.
    #[schema(value_type = String, format = Date)]
    pub end_date: NaiveDate,
    /// Deliveries that ever had each kind of event.
    #[schema(value_type = BTreeMap<String, i64>)]
    pub totals: Counts,
    /// Percent of them.
    pub rates: Rates,
    /// By UTC day of acceptance, in order; days without deliveries are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_day: Option<Vec<Group>>,
    /// By channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_channel: Option<Vec<Group>>,
    /// By provider; `null`: none was called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_provider: Option<Vec<Group>>,
    /// By template; `null`: written without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_template: Option<Vec<Group>>,
    /// By category; `null`: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_category: Option<Vec<Group>>,
}

/// Deliveries by kind of event; every kind is present.
pub type Counts = BTreeMap<&'static str, i64>;

/// Percent of deliveries, with two decimals; 0 if there are none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Rates {
    /// Delivered, of those sent.
    #[schema(example = 98.52)]
    pub delivery_rate: f64,
    /// Opened, of those delivered.
    pub open_rate: f64,
    /// Clicked, of those delivered.
    pub click_rate: f64,
    /// Came back, of those sent.
    pub bounce_rate: f64,
    /// The share that failed, bounced or died, of the deliveries that were tried.
    pub failure_rate: f64,
}

/// Some of the deliveries.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeliveryAnalyticsGroup, example = json!({"day": "2026-01-31", "sent": 200, "delivered": 197, "opened": 80, "clicked": 12, "failed": 1,
    "bounced": 2, "dead": 0, "suppressed": 4, "expired": 0, "cancelled": 0, "read": 0, "complained": 0,
    "rates": {"delivery_rate": 98.5, "open_rate": 40.61, "click_rate": 6.09, "bounce_rate": 1.0, "failure_rate": 1.49}}))]
pub struct Group {
    /// The group: `day`, `channel`, `provider`, `template` or `category`; and the number of each kind.
    #[serde(flatten)]
    #[schema(value_type = BTreeMap<String, Object>)]
    pub members: BTreeMap<&'static str, Value>,
    /// Percent of them.
    pub rates: Rates,
}

/// Counts of deliveries by outcome.
///
/// A delivery counts on the UTC day of its acceptance, and once for each kind of event it ever had, however often it
/// was tried or replayed: a delivery that was delivered also counts as sent. The counts are written in the same commit
/// as the delivery log.
///
/// Roles: admin.
#[utoipa::path(get, path = "/api/notifications/analytics/delivery", tag = "managing", params(AnalyticsQuery),
    responses((status = 200, description = "The counts; as CSV one line for each of the first of `group_by`, else for each day",
        content((AnalyticsView = "application/json"), (String = "text/csv")))))]
pub async fn delivery(
    admin: Admin,
    query: Params<AnalyticsQuery>,
    request: HttpRequest,
    web: Data<Web>,
) -> Result<HttpResponse, Problem> {
    let query = query.0;
    let is_csv = is_csv(query.format, &request)?;
    let groups = groups(query.group_by)?;
    let (from, to) = days(query.start_date, query.end_date, clock::now().date_naive())?;
    let filter = AnalyticsFilter {
        from,
        to,
        channel: params::word("channel", query.channel)?,
        provider: params::given(query.provider),
        template: params::given(query.template),
        category: params::given(query.category),
    };
    let (tenant, by) = (admin.0.tenant, groups.clone().unwrap_or_else(|| GROUPS.to_vec()));
    let asked = by.clone();
    let rows = web
        .queries
        .run(async move |store| store.analytics().delivery_counts(tenant, filter, asked.clone()).await)
        .await?;
    if is_csv {
        let group = groups.and_then(|groups| groups.first().copied()).unwrap_or(BY_DAY);
        let text = csv_of(group, &gathered(&rows, group)).map_err(|_| Problem::internal())?;
        let name = format!("attachment; filename=\"deliveries_{from}_{to}.csv\"");
        return Ok(HttpResponse::Ok()
            .content_type("text/csv; charset=utf-8")
            .insert_header((CONTENT_DISPOSITION, name))
            .body(text));
    }
    Ok(HttpResponse::Ok().json(view((from, to), &by, &rows)))
}

fn view((start_date, end_date): (NaiveDate, NaiveDate), by: &[&'static str], rows: &[KindCount]) -> AnalyticsView {
    let of = |group: &'static str| by.contains(&group).then(|| gathered(rows, group));
    let all: Vec<&KindCount> = rows.iter().filter(|row| row.by == "total").collect();
    AnalyticsView {
        start_date,
        end_date,
        totals: counts(&all),
        rates: rates(&all),
        by_day: of(BY_DAY),
        by_channel: of("channel"),
        by_provider: of("provider"),
        by_template: of("template"),
        by_category: of("category"),
    }
}

/// The groups of one kind, ordered by name.
fn gathered(rows: &[KindCount], group: &'static str) -> Vec<Group> {
    let mut keys: BTreeMap<&str, Vec<&KindCount>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.by == group) {
        keys.entry(&row.key).or_default().push(row);
    }
    let made = |(key, rows): (&str, Vec<&KindCount>)| {
        let key = Some(key).filter(|key| !key.is_empty());
        let mut members = BTreeMap::from([(group, json!(key))]);
        members.extend(counts(&rows).into_iter().map(|(kind, count)| (kind, json!(count))));
        Group { members, rates: rates(&rows) }
    };
    keys.into_iter().map(made).collect()
}

fn of_kind(rows: &[&KindCount], kind: &str) -> i64 {
    rows.iter().filter(|row| row.kind == kind).map(|row| row.count).sum()
}

fn counts(rows: &[&KindCount]) -> Counts {
    EventKind::counted().into_iter().map(|kind| (kind.as_str(), of_kind(rows, kind.as_str()))).collect()
}

fn rates(rows: &[&KindCount]) -> Rates {
    let of = |kind| of_kind(rows, kind);
    Rates {
        delivery_rate: percent(of("delivered"), of("sent")),
        open_rate: percent(of("opened"), of("delivered")),
        click_rate: percent(of("clicked"), of("delivered")),
        bounce_rate: percent(of("bounced"), of("sent")),
        failure_rate: percent(of(WRONG), of(TRIED)),
    }
}

/// Rounded to two decimals, and at most 100: a mail can be opened without a report of its delivery.
fn percent(part: i64, whole: i64) -> f64 {
    if whole <= 0 {
        return 0.0;
    }
    let hundredths = (i128::from(part) * 20_000 + i128::from(whole)) / (2 * i128::from(whole));
    f64::from(i32::try_from(hundredths.clamp(0, 10_000)).unwrap_or_default()) / 100.0
}

/// One line for each group. A value that begins like a formula is escaped, so that no spreadsheet computes it.
fn csv_of(group: &'static str, groups: &[Group]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let counted = EventKind::counted();
    let kinds = counted.iter().map(|kind| kind.as_str());
    let rates = ["delivery_rate", "open_rate", "click_rate", "bounce_rate", "failure_rate"];
    writer.write_record(std::iter::once(group).chain(kinds).chain(rates))?;
    for Group { members, rates } in groups {
        let name = members.get(group).and_then(Value::as_str).unwrap_or_default().to_owned();
        let name = if name.starts_with(['=', '+', '-', '@']) { format!("'{name}") } else { name };
        let numbers = counted.iter().map(|kind| members.get(kind.as_str()).map(Value::to_string).unwrap_or_default());
        let Rates { delivery_rate, open_rate, click_rate, bounce_rate, failure_rate } = rates;
        let rates = [delivery_rate, open_rate, click_rate, bounce_rate, failure_rate].map(|rate| format!("{rate:.2}"));
        writer.write_record(std::iter::once(name).chain(numbers).chain(rates))?;
    }
    Ok(writer.into_inner()?)
}

fn is_csv(format: Option<Text>, request: &HttpRequest) -> Result<bool, Problem> {
    match params::given(format).as_deref() {
        Some("csv") => Ok(true),
        Some("json") => Ok(false),
        Some(_) => Err(Problem::parameter("format", "must be `json` or `csv`")),
        None => {
            let accept = request.headers().get(ACCEPT).and_then(|header| header.to_str().ok()).unwrap_or_default();
            Ok(accept.trim_start().to_ascii_lowercase().starts_with("text/csv"))
        }
    }
}

/// The requested groupings; `None` if the request names none.
fn groups(text: Option<Text>) -> Result<Option<Vec<&'static str>>, Problem> {
    let Some(text) = params::given(text) else { return Ok(None) };
    let refuse = || Problem::parameter("group_by", format!("must be some of {}", GROUPS.join(", ")));
    let group = |word: &str| GROUPS.into_iter().find(|group| *group == word.trim()).ok_or_else(refuse);
    text.split(',').map(group).collect::<Result<Vec<_>, _>>().map(Some)
}

/// From which day to which.
fn days(start: Option<Text>, end: Option<Text>, today: NaiveDate) -> Result<(NaiveDate, NaiveDate), Problem> {
    let to = day("end_date", end)?.unwrap_or(today);
    let from = day("start_date", start)?;
    let from = from.unwrap_or_else(|| to.checked_sub_days(Days::new(DAYS_USUAL)).unwrap_or(to));
    if from > to {
        return Err(Problem::parameter("start_date", "must not be after end_date"));
    }
    Ok((from, to))
}

/// A day, or the UTC day of a time.
fn day(name: &str, text: Option<Text>) -> Result<Option<NaiveDate>, Problem> {
    let text = params::given(text);
    if let Some(day) = text.as_deref().and_then(|text| text.parse::<NaiveDate>().ok()) {
        return Ok(Some(day));
    }
    let refuse =
        |_| Problem::parameter(name, "must be a day such as 2026-01-31, or a time such as 2026-01-31T09:00:00Z");
    let text = text.map(Text::try_from).transpose().map_err(|message| Problem::parameter(name, message))?;
    Ok(params::time(name, text).map_err(refuse)?.map(|at| at.date_naive()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Option<Text> {
        Some(Text::try_from(text.to_owned()).unwrap())
    }

    fn date(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    #[test]
    fn a_rate_is_rounded_and_there_is_none_of_nothing() {
        for (part, whole, percent_of_it) in
            [(0, 0, 0.0), (5, 0, 0.0), (1, 3, 33.33), (2, 3, 66.67), (1, 1, 100.0), (3, 2, 100.0), (1, 20_000, 0.01)]
        {
            assert!((percent(part, whole) - percent_of_it).abs() < 1e-9, "{part}/{whole}: {}", percent(part, whole));
        }
    }

    #[test]
    fn days_are_days_or_times_within_them_and_the_last_one_belongs() {
        let today = date("2026-03-31");
        let printed = days(text("2024-01-01T00:00:00"), text("2024-01-31T23:59:59"), today).unwrap();
        assert_eq!(printed, (date("2024-01-01"), date("2024-01-31")));
        assert_eq!(days(text("2024-01-01"), text("2024-01-01"), today).unwrap().0, date("2024-01-01"));
        assert_eq!(days(None, None, today).unwrap(), (date("2026-03-02"), today));
        assert_eq!(days(text("2024-01-01T00:30:00+01:00"), None, today).unwrap().0, date("2023-12-31"), "its UTC day");
        assert!(days(text("2024-02-01"), text("2024-01-01"), today).is_err());
        for bad in ["yesterday", "2024-13-01", "2024-02-30", "1"] {
            assert!(days(text(bad), None, today).is_err() && days(None, text(bad), today).is_err(), "{bad}");
        }
    }

    #[test]
    fn groups_are_those_there_are() {
        assert_eq!(groups(text("channel,day")).unwrap(), Some(vec!["channel", "day"]));
        assert_eq!(groups(None).unwrap(), None);
        assert!(groups(text("recipient")).is_err());
    }

    #[test]
    fn what_looks_like_a_formula_is_harmless_in_a_table() {
        let row = |by: &str, key: &str| KindCount { by: by.into(), key: key.into(), kind: "sent".into(), count: 2 };
        let text =
            csv_of("category", &gathered(&[row("category", "=1+1"), row("category", ""), row("day", "x")], "category"));
        let text = String::from_utf8(text.unwrap()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("category,sent,delivered,"), "{text}");
        assert!(lines[1].starts_with(",2,0,") && lines[2].starts_with("'=1+1,2,0,") && lines.len() == 3, "{text}");
    }
}
