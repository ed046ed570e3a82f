//! Crates are the layers: each depends on crates below it only.

use std::fs;

use super::{assert_clean, root};

/// The crates of `shared`, the lowest first, each with those that it may depend on.
const LAYERS: [(&str, &[&str]); 12] = [
    ("domain", &[]),
    ("runtime", &["domain"]),
    ("broker", &["domain", "runtime"]),
    ("content", &["domain"]),
    ("store", &["domain", "runtime"]),
    ("records", &["domain", "runtime", "content", "store"]),
    ("deliveries", &["domain", "runtime", "content", "store", "records"]),
    ("maintenance", &["domain", "runtime", "store", "records", "deliveries"]),
    ("connectors", &["domain", "store", "records", "deliveries"]),
    ("engine", &["domain", "runtime", "broker", "store", "deliveries"]),
    ("web", &["domain", "runtime", "content", "store", "records"]),
    ("submission", &["domain", "runtime", "broker", "content", "store", "records", "deliveries", "engine", "web"]),
];
/// The crates that stand on them, each with those of its own kind that it may depend on.
const SERVICES: [(&str, &[&str]); 6] = [
    ("people", &[]),
    ("api", &[]),
    ("ingest", &["people", "api"]),
    ("worker/providers", &[]),
    ("worker", &["providers"]),
    ("scheduler", &[]),
];

#[test]
fn a_crate_depends_on_the_layers_below_it() {
    assert_clean(LAYERS.iter().flat_map(|(layer, below)| {
        let manifest = fs::read_to_string(root().join("shared").join(layer).join("Cargo.toml")).unwrap();
        strangers(&manifest, below).into_iter().map(move |other| format!("{layer} depends on {other}"))
    }));
    let all = LAYERS.map(|(layer, _)| layer);
    assert_clean(SERVICES.iter().flat_map(|(service, beside)| {
        let manifest = fs::read_to_string(root().join(service).join("Cargo.toml")).unwrap();
        let allowed = [&all[..], *beside].concat();
        strangers(&manifest, &allowed).into_iter().map(move |other| format!("{service} depends on {other}"))
    }));
}

#[test]
fn a_dependency_upwards_is_noticed() {
    let manifest = "[package]\nname = \"posthaste-broker\"\n[dependencies]\nposthaste-domain.workspace = true\n\
        posthaste-store.workspace = true\n";
    assert_eq!(strangers(manifest, &["domain"]), ["store"]);
    assert!(strangers(manifest, &["domain", "store"]).is_empty());
}

/// Crates of ours that a manifest names and should not.
fn strangers(manifest: &str, allowed: &[&str]) -> Vec<String> {
    let named = manifest.lines().filter_map(|line| line.strip_prefix("posthaste-")?.split_once(['.', ' ']));
    named.map(|(name, _)| name.to_owned()).filter(|name| !allowed.contains(&name.as_str())).collect()
}
