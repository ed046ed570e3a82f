//! The routing table: one line per path.

use actix_web::{
    HttpResponse, ResponseError,
    http::Method,
    web::{self as actix, ServiceConfig},
};
use api::{
    managing::{
        admin, analytics, audit, broadcasts, channels, configurations, dead_letters, keys, notification_types, rules,
        suppressions, templates, tenant_limits, tenants, tokens, webhooks,
    },
    messages,
    whatsapp::{messages as whatsapp_messages, sessions},
};
use people::{devices, export, imports, inbox, live::follow, preferences, unsubscribe, users};
use web::{
    observe::RouteTimings,
    problem::{Code, Problem},
};

use crate::{
    docs, health,
    inbound::{provider_events, tracking, waha},
    submitting::{bulk, dry_run, events, notifications, notify, templated, whatsapp},
};

/// Generates the routes and, from the same lines, the table for tests and `Allow` headers.
macro_rules! routes {
    ($($path:literal { $($method:ident $handler:path),+ })+) => {
        /// Every path with its methods, except the page under `/docs`.
        pub const TABLE: &[(&str, &[&str])] = &[$(($path, &[$(stringify!($method)),+])),+];

        fn table(config: &mut ServiceConfig) {
            $(
                config.service(
                    actix::resource($path)
                        .app_data(RouteTimings::new($path))
                        $(.route(actix::method(Method::$method).to($handler)))+
                        .default_service(actix::to(|| async { refuse(&[$(stringify!($method)),+]) })),
                );
            )+
        }
    };
}

// The first match wins: the busiest paths come first, and `{id}` comes after fixed segments that it would match.
routes! {
    "/api/notifications/send"                        { POST notifications::send }
    "/api/notifications/send-bulk"                   { POST bulk::send }
    "/api/notifications/send-template"               { POST templated::send }
    "/api/notifications/test"                        { POST notifications::test }
    "/api/events"                                    { POST events::receive }
    "/api/events/dry-run"                            { POST dry_run::run }
    "/webhooks/waha"                                 { POST waha::receive }
    "/webhooks/waha/{id}"                            { POST waha::receive_for }
    "/webhooks/health"                               { GET waha::health }
    "/webhooks/{provider}"                           { POST provider_events::receive_short }
    "/api/notifications/webhook/{provider}"          { POST provider_events::receive }
    "/t/o/{token}"                                   { GET tracking::open, HEAD tracking::open }
    "/t/c/{token}"                                   { GET tracking::click, HEAD tracking::click }
    "/sessions"                                      { GET sessions::list, POST sessions::create }
    "/sessions/{id}"                                 { GET sessions::show, PUT sessions::update, DELETE sessions::remove }
    "/sessions/{id}/start"                           { POST sessions::start }
    "/sessions/{id}/stop"                            { POST sessions::stop }
    "/sessions/{id}/restart"                         { POST sessions::restart }
    "/sessions/{id}/logout"                          { POST sessions::logout }
    "/sessions/{id}/qr"                              { GET sessions::qr }
    "/api/bulk/{id}"                                 { GET bulk::show }
    "/api/messages"                                  { GET messages::list }
    "/api/messages/{id}"                             { GET messages::show }
    "/api/messages/{id}/timeline"                    { GET messages::timeline }
    "/api/messages/{id}/cancel"                      { POST messages::cancel }
    "/api/notifications"                             { GET inbox::list, POST notify::send, PUT preferences::update_all, DELETE preferences::erase }
    "/api/notifications/register-device"             { POST devices::register }
    "/api/notifications/unread-count"                { GET inbox::unread }
    "/api/notifications/mark-as-read"                { POST inbox::mark }
    "/api/notifications/mark-all-as-read"            { POST inbox::mark_all }
    "/api/notifications/read-all"                    { POST inbox::read_all }
    "/api/notifications/delete"                      { POST inbox::delete_many }
    "/api/notifications/user/{user_id}"              { GET inbox::list_of }
    "/api/notifications/user/{user_id}/unread-count" { GET inbox::unread_of }
    "/api/notifications/templates"                   { GET templates::list, POST templates::create }
    "/api/notifications/templates/{id}"              { GET templates::show, PUT templates::update, DELETE templates::remove }
    "/api/notifications/templates/{id}/preview"      { POST templates::preview }
    "/api/notifications/templates/{id}/test"         { POST templates::test }
    "/api/notifications/templates/{id}/versions"     { GET templates::versions }
    "/api/notifications/archive"                     { POST inbox::archive_many }
    "/api/notifications/unarchive"                   { POST inbox::unarchive_many }
    "/api/notifications/analytics/delivery"          { GET analytics::delivery }
    "/api/notifications/preferences"                 { GET preferences::show, PUT preferences::update }
    "/api/notifications/preferences/{user_id}"       { GET preferences::show_of, PUT preferences::update_of }
    "/api/notifications/opt-out/marketing"           { POST preferences::opt_out_of_marketing }
    "/api/notifications/opt-out/all-non-essential"   { POST preferences::opt_out_of_all }
    "/api/notifications/export"                      { GET preferences::export }
    "/api/notifications/unsubscribe/{token}"         { GET unsubscribe::page, HEAD unsubscribe::page, POST unsubscribe::act }
    "/api/notifications/unsubscribe-url/{user_id}"   { GET unsubscribe::url }
    "/api/notifications/{id}/read"                   { POST inbox::read }
    "/api/notifications/{id}/unread"                 { POST inbox::mark_unread }
    "/api/notifications/{id}/archive"                { POST inbox::archive }
    "/api/notifications/{id}/unarchive"              { POST inbox::unarchive }
    "/ws/notifications/{user_id}"                    { GET follow::follow }
    "/api/notifications/{id}"                        { DELETE inbox::delete }
    "/messages/send"                                 { POST whatsapp::send }
    "/messages/bulk"                                 { POST whatsapp::send_bulk }
    "/messages/stats"                                { GET whatsapp_messages::stats }
    "/messages"                                      { GET whatsapp_messages::list }
    "/messages/{id}"                                 { GET whatsapp_messages::show }
    "/api/notification-types"                        { GET notification_types::list, POST notification_types::import }
    "/api/notification-types/{name}"                 { DELETE notification_types::remove }
    "/api/suppressions"                              { GET suppressions::list }
    "/api/suppressions/{id}"                         { DELETE suppressions::lift }
    "/api/admin/notifications/channels"              { GET channels::list }
    "/api/admin/notifications/broadcast"             { POST broadcasts::create }
    "/api/admin/notifications/broadcasts"            { GET broadcasts::list }
    "/api/admin/notifications/broadcasts/{id}"       { GET broadcasts::show }
    "/api/admin/notifications/broadcasts/{id}/pause" { POST broadcasts::pause }
    "/api/admin/notifications/broadcasts/{id}/resume" { POST broadcasts::resume }
    "/api/admin/notifications/broadcasts/{id}/cancel" { POST broadcasts::cancel }
    "/__mozaiks/admin/notifications/channels"        { GET channels::list }
    "/__mozaiks/admin/notifications/broadcast"       { POST broadcasts::create }
    "/__mozaiks/admin/notifications/broadcasts"      { GET broadcasts::list }
    "/__mozaiks/admin/notifications/broadcasts/{id}" { GET broadcasts::show }
    "/__mozaiks/admin/notifications/broadcasts/{id}/pause" { POST broadcasts::pause }
    "/__mozaiks/admin/notifications/broadcasts/{id}/resume" { POST broadcasts::resume }
    "/__mozaiks/admin/notifications/broadcasts/{id}/cancel" { POST broadcasts::cancel }
    "/api/admin/dead-letters"                        { GET dead_letters::list }
    "/api/admin/dead-letters/replay"                 { POST dead_letters::replay }
    "/api/admin/dead-letters/drop"                   { POST dead_letters::drop }
    "/api/admin/dead-letters/{id}"                   { GET dead_letters::show }
    "/api/admin/replays/{id}"                        { GET dead_letters::progress }
    "/api/admin/queues"                              { GET admin::queues }
    "/api/admin/tenants"                             { GET tenants::list, POST tenants::create }
    "/api/admin/keys"                                { GET keys::list, POST keys::create }
    "/api/admin/keys/{id}"                           { DELETE keys::revoke }
    "/api/admin/limits"                              { GET tenant_limits::show, PUT tenant_limits::set }
    "/api/admin/audit"                               { GET audit::list }
    "/api/auth/token"                                { POST tokens::issue }
    "/api/auth/refresh"                              { POST tokens::renew }
    "/api/webhooks/signing-secret"                   { GET webhooks::signing_secret }
    "/api/rules"                                     { GET rules::list, POST rules::create }
    "/api/rules/{id}"                                { GET rules::show, PUT rules::update, DELETE rules::remove }
    "/api/users"                                     { GET users::list }
    "/api/users/import"                              { POST imports::create }
    "/api/users/imports/{id}"                        { GET imports::show }
    "/api/users/{user_id}"                           { GET users::show, PUT users::put, DELETE users::erase }
    "/api/users/{user_id}/export"                    { GET export::show }
    "/api/users/{user_id}/devices/{id}"              { DELETE devices::remove }
    "/api/webhooks/configurations"                   { GET configurations::list, POST configurations::create }
    "/api/webhooks/configurations/{id}"              { GET configurations::show, PUT configurations::update, DELETE configurations::remove }
    "/api/webhooks/configurations/{id}/regenerate-secret" { POST configurations::regenerate }
    "/api/webhooks/configurations/{id}/test"         { POST configurations::test }
    "/api/webhooks/configurations/{id}/logs"         { GET configurations::logs }
    "/api/webhooks/configurations/{id}/replay"       { POST configurations::replay }
    "/health"                                        { GET health::all }
    "/health/live"                                   { GET health::live }
    "/health/ready"                                  { GET health::ready }
    "/metrics"                                       { GET health::metrics }
    "/openapi.json"                                  { GET docs::openapi }
    "/asyncapi.yaml"                                 { GET docs::asyncapi }
    "/docs/problems"                                 { GET docs::problems }
}

/// Registers every route, the page under `/docs`, and the answer to unknown paths.
pub fn configure(config: &mut ServiceConfig) {
    table(config);
    config
        .service(actix::resource("/docs").route(actix::get().to(docs::ui_root)))
        .service(actix::resource("/docs/{file:.*}").route(actix::get().to(docs::ui)))
        .default_service(actix::to(|| async {
            Problem::new(Code::NotFound, "Look up the path at /docs.").error_response()
        }));
}

fn refuse(allow: &'static [&'static str]) -> HttpResponse {
    Problem::method_not_allowed(allow).error_response()
}

#[cfg(test)]
mod tests;
