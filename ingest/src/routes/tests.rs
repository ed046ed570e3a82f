//! The table of routes against the rules that decide by path: the document, free paths, recorded calls.

use std::collections::BTreeSet;

use actix_web::{
    App as Site, Error,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::header::{HeaderName, HeaderValue},
    middleware::{Next, from_fn},
    test::{TestRequest, call_service, init_service},
};
use domain::{TenantId, seal::Sealer};
use records::audit::person;
use runtime::telemetry::masked;
use web::{
    audit::{answered_action, fits, ids, is_recorded, recorded_action},
    gate::is_free,
};

use super::*;
use crate::openapi;

#[test]
fn the_document_describes_every_route_and_no_other() {
    let routed: BTreeSet<(String, String)> = TABLE
        .iter()
        .flat_map(|(path, methods)| methods.iter().map(|method| ((*path).to_owned(), (*method).to_owned())))
        .collect();
    let mut tree = openapi::tree();
    let described: BTreeSet<(String, String)> = tree
        .paths
        .paths
        .iter_mut()
        .flat_map(|(path, item)| {
            let methods: Vec<String> = openapi::operations(item).map(|(method, _)| method.to_uppercase()).collect();
            methods.into_iter().map(|method| (path.clone(), method))
        })
        .collect();
    assert_eq!(routed, described);
}

#[test]
fn only_health_metrics_specifications_and_links_in_mails_are_free() {
    let free: Vec<&str> = TABLE.iter().map(|(path, _)| *path).filter(|path| is_free(path)).collect();
    let wanted = [
        "/t/o/{token}",
        "/t/c/{token}",
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/openapi.json",
        "/asyncapi.yaml",
        "/docs/problems",
    ];
    assert_eq!(free, wanted);
    assert!(is_free("/docs/") && is_free("/docs/swagger-ui.css"));
    assert!(
        !is_free("/healthy") && !is_free("/tenants") && !is_free("/api/admin/keys") && !is_free("/webhooks/health")
    );
}

const SEEN: HeaderName = HeaderName::from_static("x-seen");

/// Returns the recorded action in a header.
async fn say(request: ServiceRequest, next: Next<BoxBody>) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let begun = recorded_action(&request);
    let mut response = next.call(request).await?;
    let target = ids(response.request(), TenantId(1), &Sealer::default());
    let seen = format!("{begun:?} {:?} {target}", answered_action(response.request()));
    response.headers_mut().insert(SEEN, HeaderValue::from_str(&seen).unwrap());
    Ok(response)
}

/// The path of a route with ids that contain what the router leaves encoded, in every spelling of its letters.
fn spellings(pattern: &str) -> BTreeSet<String> {
    let id = "0191d8a0-0000-7000-8000-000000000001";
    let fill = |part: &str| match part {
        "{user_id}" => "a%2Bb%2525%2Fc".to_owned(),
        "{id}" => id.to_owned(),
        part if part.starts_with('{') => "n%2Fm".to_owned(),
        part => part.to_owned(),
    };
    let parts: Vec<&str> = pattern.split('/').collect();
    let join = |spell: &dyn Fn(usize, &str) -> String| {
        let spelt = |(at, part): (usize, &&str)| if part.starts_with('{') { fill(part) } else { spell(at, part) };
        parts.iter().enumerate().map(spelt).collect::<Vec<_>>().join("/")
    };
    let encode = |part: &str, from: usize, to: usize, lower: bool| -> String {
        let escape = |c: char| if lower { format!("%{:02x}", u32::from(c)) } else { format!("%{:02X}", u32::from(c)) };
        let spelt = |(at, c): (usize, char)| if (from..to).contains(&at) { escape(c) } else { c.to_string() };
        part.chars().enumerate().map(spelt).collect()
    };
    let mut all = BTreeSet::from([join(&|_, part| part.to_owned()), join(&|_, part| encode(part, 0, 99, true))]);
    for (at, part) in parts.iter().enumerate() {
        for letter in 0..part.len() {
            let spell = |n: usize, part: &str| match n == at {
                true => encode(part, letter, letter + 1, letter % 2 == 0),
                false => part.to_owned(),
            };
            all.insert(join(&spell));
        }
    }
    all
}

#[tokio::test]
async fn no_spelling_of_a_path_hides_a_call_or_whom_it_is_about() {
    let mut site = Site::new();
    for (path, _) in TABLE {
        let resource = actix::resource(*path).app_data(RouteTimings::new(path));
        site = site.service(resource.route(actix::route().to(HttpResponse::Ok)));
    }
    let site = init_service(site.wrap(from_fn(say))).await;
    let about = person(&Sealer::default(), TenantId(1), "a+b%25/c");
    let mut calls = 0;
    for (pattern, methods) in TABLE {
        let target = pattern.split('/').filter(|part| part.starts_with('{')).map(|part| match part {
            "{user_id}" => about.clone(),
            "{id}" => masked("0191d8a0-0000-7000-8000-000000000001"),
            _ => "n/m".to_owned(),
        });
        let target = target.collect::<Vec<_>>().join("/");
        let spellings = spellings(pattern);
        for method in methods.iter().map(|method| method.parse::<Method>().unwrap()) {
            let plain = spellings.iter().find(|path| fits(pattern, path)).unwrap();
            if !is_recorded(&method, plain) {
                continue;
            }
            let name = Some(format!("{method} {pattern}"));
            let wanted = format!("{name:?} {name:?} {target}");
            for path in &spellings {
                let request = TestRequest::with_uri(path).method(method.clone()).to_request();
                let response = call_service(&site, request).await;
                let seen = response.headers().get(SEEN).unwrap().to_str().unwrap();
                assert_eq!((response.status().as_u16(), seen), (200, wanted.as_str()), "{method} {path}");
                calls += 1;
            }
        }
    }
    assert!(calls > 1000, "{calls}");
    // A route that is not in the table is recorded under its path.
    let unknown = call_service(&site, TestRequest::patch().uri("/%61nything/new").to_request()).await;
    let seen = unknown.headers().get(SEEN).unwrap().to_str().unwrap();
    assert_eq!(seen.trim(), r#"Some("PATCH /anything/new") None"#);
}

#[test]
fn every_way_of_changing_something_under_admin_is_recorded() {
    for (path, methods) in TABLE.iter().filter(|(path, _)| path.starts_with("/api/admin/")) {
        for method in methods.iter().filter(|method| **method != "GET") {
            assert!(is_recorded(&method.parse().unwrap(), path), "{method} {path}");
        }
    }
}
