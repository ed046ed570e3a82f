//! Unsubscribing by a link in a mail: a page with one button, and the route that the button (or a mail program, RFC
//! 8058) posts to.
//!
//! Opening the page never unsubscribes, because scanners open every link. The page needs no script, cookie or
//! credential: the token names the person and the category, and only we can make it.

use std::sync::OnceLock;

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    http::{
        StatusCode,
        header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
    },
    web::Data,
};
use deliveries::Deliveries;
use domain::{
    Channel,
    category::MARKETING,
    unsubscribe::{Key, PATH, UnsubscribeToken},
};
use records::Records;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use web::{
    Web,
    auth::Anyone,
    body::{ANONYMOUS, RawBody},
    params::{self, Params, PathUser, Text},
    problem::Problem,
};

use crate::preferences::PreferencesAccess;

/// No script, no content of other sites, no frame; the form may post to this site only.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
const ROBOTS: HeaderName = HeaderName::from_static("x-robots-tag");
const STYLE: &str = "body{font:1.125rem/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:32rem;margin:4rem auto;padding:0 1rem}\
    button{font:inherit;color:#fff;background:#1d4ed8;border:0;border-radius:.375rem;padding:.75rem 1.5rem;min-height:2.75rem;cursor:pointer}\
    button:hover{background:#1e40af}button:focus-visible{outline:3px solid #1a1a1a;outline-offset:3px}";

/// The key of the links, once it is loaded.
#[derive(Default)]
pub struct UnsubscribeKey(OnceLock<Key>);

impl UnsubscribeKey {
    async fn key<'a>(&'a self, web: &Web) -> Result<&'a Key, Problem> {
        if self.0.get().is_none() {
            web.migrations.require_current()?;
            let key = web.queries.run(async move |store| store.provider_events().unsubscribe_key().await).await?;
            // Every process loads the same key.
            let _ = self.0.set(key);
        }
        self.0.get().ok_or_else(Problem::unavailable)
    }
}

/// The result of an unsubscription.
#[derive(Debug, Serialize, ToSchema)]
pub struct Unsubscribed {
    /// Always true.
    unsubscribed: bool,
    /// The category that is no longer sent.
    #[schema(example = "marketing")]
    category: String,
    /// On this channel.
    #[schema(value_type = String, example = "email")]
    channel: Channel,
}

/// Which category.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct CategoryQuery {
    /// The category or type to unsubscribe from; default `marketing`.
    #[param(value_type = Option<String>)]
    category: Option<Text>,
}

/// A link.
#[derive(Debug, Serialize, ToSchema)]
pub struct UnsubscribeUrl {
    /// Where it leads; it never expires.
    url: String,
}

/// The page of an unsubscribe link: it names the category and has one button, which posts to the same URL.
///
/// Opening it changes nothing.
#[utoipa::path(method(get, head), path = "/api/notifications/unsubscribe/{token}", tag = "preferences", security(()),
    params(("token" = String, Path, description = "As it stands in the mail")),
    responses((status = 200, description = "The page", body = String, content_type = "text/html")))]
pub async fn page(web: Data<Web>, links: Data<UnsubscribeKey>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let Some(said) = read(&web, &links, &request).await? else { return unknown(&request) };
    Ok(document(
        StatusCode::OK,
        "Unsubscribe",
        &format!(
            "<p>Stop e-mails about <strong>{}</strong>?</p>\
             <form method=\"post\"><input type=\"hidden\" name=\"List-Unsubscribe\" value=\"One-Click\">\
             <button type=\"submit\">Unsubscribe</button></form>",
            escaped(&said.category)
        ),
    ))
}

/// Unsubscribes at once (RFC 8058): no e-mail of the category is sent any more, to the person or to the address.
///
/// The body does not matter: a form, multipart, or nothing. A repeat gets the same answer. A browser gets a page.
#[utoipa::path(post, path = "/api/notifications/unsubscribe/{token}", tag = "preferences", security(()),
    params(("token" = String, Path, description = "As it stands in the mail")),
    responses((status = 200, description = "Unsubscribed", body = Unsubscribed)))]
pub async fn act(
    web: Data<Web>,
    links: Data<UnsubscribeKey>,
    request: HttpRequest,
    body: RawBody,
) -> Result<HttpResponse, Problem> {
    let Some(said) = read(&web, &links, &request).await? else { return unknown(&request) };
    body.read(ANONYMOUS).await?;
    let (unsubscribe_token, category) = (said.clone(), said.category);
    web.queries.run(async move |store| store.preferences().unsubscribe(&unsubscribe_token).await).await?;
    if !is_browser(&request) {
        return Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(Unsubscribed {
            unsubscribed: true,
            category,
            channel: Channel::Email,
        }));
    }
    let text = format!("<p role=\"status\">No more e-mails about <strong>{}</strong>.</p>", escaped(&category));
    Ok(document(StatusCode::OK, "You are unsubscribed", &text))
}

/// Creates a link with which a person unsubscribes from a category, for mails that other systems send.
///
/// It covers e-mail of the category, for the person and for the address that is known when the link is used.
///
/// Roles: producer and admin; a user for itself.
#[utoipa::path(get, path = "/api/notifications/unsubscribe-url/{user_id}", tag = "preferences",
    params(("user_id" = String, Path, description = "The person"), CategoryQuery),
    responses((status = 200, description = "The link", body = UnsubscribeUrl)))]
pub async fn url(
    caller: Anyone,
    user: PathUser,
    query: Params<CategoryQuery>,
    web: Data<Web>,
    links: Data<UnsubscribeKey>,
) -> Result<HttpResponse, Problem> {
    let PreferencesAccess { tenant, user } = PreferencesAccess::of(&caller.0, Some(user.0))?;
    let category = params::given(query.0.category).unwrap_or_else(|| MARKETING.to_owned());
    let unsubscribe_token = UnsubscribeToken { tenant, user_id: Some(user), address: None, category };
    let token = links.key(&web).await?.token(&unsubscribe_token).map_err(|_| Problem::internal())?;
    Ok(HttpResponse::Ok().json(UnsubscribeUrl { url: format!("{}{PATH}{token}", web.public_url) }))
}

async fn read(web: &Web, links: &UnsubscribeKey, request: &HttpRequest) -> Result<Option<UnsubscribeToken>, Problem> {
    let token = request.match_info().get("token").unwrap_or_default();
    Ok(links.key(web).await?.read(token))
}

/// A link that is not ours.
fn unknown(request: &HttpRequest) -> Result<HttpResponse, Problem> {
    if !is_browser(request) {
        return Err(Problem::not_found("link"));
    }
    let text = "<p>Use the link of the mail in full, or answer the mail and ask to be taken off its list.</p>";
    Ok(document(StatusCode::NOT_FOUND, "This link is not valid", text))
}

/// Browsers ask for HTML by name; a program that accepts anything gets JSON.
fn is_browser(request: &HttpRequest) -> bool {
    request
        .headers()
        .get_all(ACCEPT)
        .filter_map(|accept| accept.to_str().ok())
        .any(|accept| accept.contains("text/html"))
}

fn document(status: StatusCode, title: &str, main: &str) -> HttpResponse {
    let page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><style>{STYLE}</style></head>\
         <body><main><h1>{title}</h1>{main}</main></body></html>"
    );
    HttpResponseBuilder::new(status)
        .content_type("text/html; charset=utf-8")
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header((REFERRER_POLICY, "no-referrer"))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((ROBOTS, "noindex"))
        .body(page)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use actix_web::{body::to_bytes, http::header::CONTENT_TYPE};

    use super::*;

    #[actix_web::test]
    async fn the_page_can_run_nothing_and_load_nothing() {
        let page = document(StatusCode::OK, "T", &format!("<p>{}</p>", escaped("<script>&\"'")));
        let header =
            |name: HeaderName| page.headers().get(name).and_then(|value| value.to_str().ok()).unwrap().to_owned();
        assert!(header(CONTENT_SECURITY_POLICY).starts_with("default-src 'none';"));
        assert_eq!(header(CONTENT_TYPE), "text/html; charset=utf-8");
        assert_eq!((header(CACHE_CONTROL), header(REFERRER_POLICY)), ("no-store".to_owned(), "no-referrer".to_owned()));
        let body = to_bytes(page.into_body()).await.unwrap();
        let html = String::from_utf8_lossy(&body);
        assert!(html.contains("<p>&lt;script&gt;&amp;&quot;&#39;</p>") && !html.contains("<script"), "{html}");
    }
}
