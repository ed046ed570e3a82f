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
/// The crates that stand on them, each with the others that it may depend on. The tests of the providers use sinks.
const SERVICES: [(&str, &[&str]); 7] = [
    ("people", &[]),
    ("api", &[]),
    ("ingest", &["people", "api"]),
    ("worker/providers", &["testkit-servers"]),
    ("worker", &["providers"]),
    ("scheduler", &[]),
    ("testkit", &["testkit-servers"]),
];
/// The crates of a first `cargo xtask up`: they compile none of the platform.
const TOOLS: [(&str, &[&str]); 2] = [("testkit/servers", &[]), ("xtask", &["testkit-servers"])];

#[test]
fn a_crate_depends_on_the_layers_below_it() {
    let dependencies = |folder: &str, allowed: &[&str]| -> Vec<String> {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        strangers(&manifest, allowed).into_iter().map(|other| format!("{folder} depends on {other}")).collect()
    };
    let all = LAYERS.map(|(layer, _)| layer);
    assert_clean(LAYERS.iter().flat_map(|(layer, below)| dependencies(&format!("shared/{layer}"), below)));
    assert_clean(SERVICES.iter().flat_map(|(service, beside)| dependencies(service, &[&all[..], beside].concat())));
    assert_clean(TOOLS.iter().flat_map(|(tool, beside)| dependencies(tool, beside)));
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
