//! What the server says of itself: groups, resources, version, health.
//!
//! Owns the paths that are no resource. Refuses to know objects.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::store::Store;

/// The answer to `path`; none if there is nothing. A text is answered as text.
pub(crate) fn answer(store: &Store, path: &str) -> Option<Value> {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    match &parts[..] {
        ["healthz" | "readyz" | "livez", ..] => Some(json!("ok")),
        ["version"] => Some(json!({
            "major": "1", "minor": "34", "gitVersion": "v1.34.0-tidegate-stand-in", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "2026-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
        })),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["api", "v1"] => resources(store, "", "v1"),
        ["apis"] => {
            let groups: Vec<_> = groups(store).into_iter().map(|(name, version)| group(&name, &version)).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] => {
            let version = groups(store).remove(*name)?;
            let mut group = group(name, &version);
            group["kind"] = json!("APIGroup");
            group["apiVersion"] = json!("v1");
            Some(group)
        }
        ["apis", group, version] => resources(store, group, version),
        _ => None,
    }
}

fn groups(store: &Store) -> BTreeMap<String, String> {
    store.kinds().filter(|kind| !kind.group.is_empty()).map(|kind| (kind.group.clone(), kind.version.clone())).collect()
}

fn group(name: &str, version: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/{version}"), "version": version});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

fn resources(store: &Store, group: &str, version: &str) -> Option<Value> {
    let mut kinds: Vec<_> = store.kinds().filter(|kind| kind.group == group && kind.version == version).collect();
    kinds.sort_by(|a, b| a.plural.cmp(&b.plural));
    let first = kinds.first()?;
    let api_version = first.api_version();
    let resources: Vec<_> = kinds.iter().flat_map(|kind| described(kind)).collect();
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": resources}))
}

fn described(kind: &Kind) -> Vec<Value> {
    let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let mut main = json!({
        "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind, "verbs": verbs,
    });
    if !kind.short.is_empty() {
        main["shortNames"] = json!(kind.short);
    }
    let mut all = vec![main];
    if kind.has_status {
        all.push(json!({
            "name": format!("{}/status", kind.plural), "singularName": "", "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": ["get", "patch", "update"],
        }));
    }
    all
}
