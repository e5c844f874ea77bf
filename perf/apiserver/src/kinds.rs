//! The table of kinds: what is served under which path, and how its lists merge.
//!
//! Owns the built-in kinds and the reading of a CustomResourceDefinition into one more. Refuses to know objects, users and
//! HTTP. A kind is cheap to share (`Arc<Kind>`) and never changes; a new definition replaces it.
//!
//! What is said about a kind here is what the real server does with it: only some kinds count their `generation` (Services
//! do not), some accept an update without a `resourceVersion` and some do not (Leases and custom resources do not).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

/// How a list behaves under server-side apply (`x-kubernetes-list-type` of the published schema).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType {
    /// One value: who owns it owns all of it.
    Atomic,
    /// Scalars, each with owners of its own.
    Set,
    /// Objects known by some of their fields; a field that may be absent comes with its default.
    Map(Vec<ListKey>),
}

/// One field by which the objects of a list are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListKey {
    /// Name of the field.
    pub field: String,
    /// Its value when an object lacks it.
    pub default: Option<Value>,
}

/// One kind of object in one version.
#[derive(Clone, Debug)]
pub struct Kind {
    /// API group, empty for the core group.
    pub group: String,
    /// Version within the group, like `v1`.
    pub version: String,
    /// Name in paths, like `services`.
    pub plural: String,
    /// Name for one object on the command line, like `service`.
    pub singular: String,
    /// Name in objects, like `Service`.
    pub kind: String,
    /// Shorter names for the command line.
    pub short: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether `/status` is served.
    pub has_status: bool,
    /// Whether `metadata.generation` counts changes of what is wanted.
    pub generation: bool,
    /// Whether PUT without a `resourceVersion` overwrites.
    pub unconditional: bool,
    /// Whether it comes from a CustomResourceDefinition.
    pub custom: bool,
    /// The schema of a custom kind, when its definition has one.
    pub schema: Option<Value>,
    /// Lists that are not atomic, by field path without indices (`status.conditions`).
    lists: BTreeMap<String, ListType>,
    /// Maps that are one value, by field path.
    atomic_maps: Vec<String>,
}

impl Kind {
    /// `v1`, or `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Name that is unique over groups, as messages say it: `services`, `leases.coordination.k8s.io`.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// How the list at `path` (field names joined with dots) merges.
    pub fn list_type(&self, path: &str) -> &ListType {
        self.lists.get(path).unwrap_or(&ListType::Atomic)
    }

    /// Whether the map at `path` is one value.
    pub fn atomic_map(&self, path: &str) -> bool {
        self.atomic_maps.iter().any(|atomic| atomic == path)
    }

    fn list(mut self, path: &str, of: ListType) -> Kind {
        self.lists.insert(path.to_owned(), of);
        self
    }

    fn atomic(mut self, path: &str) -> Kind {
        self.atomic_maps.push(path.to_owned());
        self
    }

    fn short(mut self, names: &[&str]) -> Kind {
        self.short = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    fn counted(mut self) -> Kind {
        self.generation = true;
        self
    }

    fn conditional(mut self) -> Kind {
        self.unconditional = false;
        self
    }
}

fn keys(fields: &[&str]) -> ListType {
    ListType::Map(fields.iter().map(|field| ListKey { field: (*field).to_owned(), default: None }).collect())
}

fn ports(number: &str) -> ListType {
    ListType::Map(vec![
        ListKey { field: number.to_owned(), default: None },
        ListKey { field: "protocol".to_owned(), default: Some(Value::from("TCP")) },
    ])
}

fn base(group: &str, version: &str, plural: &str, kind: &str, namespaced: bool, has_status: bool) -> Kind {
    let mut lists = BTreeMap::new();
    lists.insert("metadata.finalizers".to_owned(), ListType::Set);
    lists.insert("metadata.ownerReferences".to_owned(), keys(&["uid"]));
    Kind {
        group: group.to_owned(),
        version: version.to_owned(),
        plural: plural.to_owned(),
        singular: kind.to_lowercase(),
        kind: kind.to_owned(),
        short: Vec::new(),
        namespaced,
        has_status,
        generation: false,
        unconditional: true,
        custom: false,
        schema: None,
        lists,
        atomic_maps: Vec::new(),
    }
}

/// A kind of ours before its definition has been posted: as a custom resource with conditions by type.
fn ours(plural: &str, kind: &str) -> Kind {
    let mut kind = base("tidegate.io", "v1alpha1", plural, kind, false, true)
        .list("status.conditions", keys(&["type"]))
        .counted()
        .conditional();
    kind.custom = true;
    kind
}

/// The kinds that are served from the start.
pub fn built_in() -> Vec<Arc<Kind>> {
    let pod = base("", "v1", "pods", "Pod", true, true)
        .short(&["po"])
        .list("spec.containers", keys(&["name"]))
        .list("spec.initContainers", keys(&["name"]))
        .list("spec.containers.ports", ports("containerPort"))
        .list("spec.containers.env", keys(&["name"]))
        .list("spec.containers.volumeMounts", keys(&["mountPath"]))
        .list("spec.volumes", keys(&["name"]))
        .list("status.conditions", keys(&["type"]))
        .list("status.podIPs", keys(&["ip"]))
        .list("status.hostIPs", ListType::Atomic)
        .counted();
    let service = base("", "v1", "services", "Service", true, true)
        .short(&["svc"])
        .list("spec.ports", ports("port"))
        .list("status.conditions", keys(&["type"]))
        .atomic("spec.selector");
    let node = base("", "v1", "nodes", "Node", false, true)
        .short(&["no"])
        .list("spec.podCIDRs", ListType::Set)
        .list("status.conditions", keys(&["type"]))
        .list("status.addresses", keys(&["type"]));
    let policy = base("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", true, false)
        .short(&["netpol"])
        .atomic("spec.podSelector")
        .counted();
    let definition =
        base("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", false, true)
            .short(&["crd", "crds"])
            .list("status.conditions", keys(&["type"]))
            .counted();
    let namespace = base("", "v1", "namespaces", "Namespace", false, true)
        .short(&["ns"])
        .list("status.conditions", keys(&["type"]));
    let slice = base("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", true, false).counted();
    let kinds = vec![
        service,
        base("", "v1", "endpoints", "Endpoints", true, false).short(&["ep"]),
        node,
        namespace,
        pod,
        base("", "v1", "events", "Event", true, false).short(&["ev"]),
        base("", "v1", "secrets", "Secret", true, false),
        base("", "v1", "configmaps", "ConfigMap", true, false).short(&["cm"]),
        slice,
        base("coordination.k8s.io", "v1", "leases", "Lease", true, false).conditional(),
        base("events.k8s.io", "v1", "events", "Event", true, false).short(&["ev"]),
        policy,
        definition,
        ours("addresspools", "AddressPool"),
        ours("egresspolicies", "EgressPolicy").list("status.gateways", keys(&["name"])),
        ours("gatewaypolicies", "GatewayPolicy"),
        ours("staticnats", "StaticNat"),
    ];
    kinds.into_iter().map(Arc::new).collect()
}

/// The kind that a CustomResourceDefinition defines, in its stored version.
///
/// # Errors
/// What the definition lacks, as the real server would say it.
pub fn from_definition(definition: &Value) -> Result<Kind, String> {
    let text = |pointer: &str| definition.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let need =
        |pointer: &str| text(pointer).ok_or_else(|| format!("{}: Required value", pointer[1..].replace('/', ".")));
    let group = need("/spec/group")?;
    let plural = need("/spec/names/plural")?;
    let name = need("/spec/names/kind")?;
    let scope = need("/spec/scope")?;
    let versions = definition.pointer("/spec/versions").and_then(Value::as_array).cloned().unwrap_or_default();
    let stored = |version: &&Value| version.get("storage").and_then(Value::as_bool) == Some(true);
    let version = versions
        .iter()
        .find(stored)
        .ok_or("spec.versions: Invalid value: must have exactly one version marked as storage version")?;
    let number = version.get("name").and_then(Value::as_str).ok_or("spec.versions[0].name: Required value")?;
    let schema = version.pointer("/schema/openAPIV3Schema").cloned();
    let has_status = version.pointer("/subresources/status").is_some();
    let mut kind = base(&group, number, &plural, &name, scope == "Namespaced", has_status).counted().conditional();
    kind.custom = true;
    if let Some(singular) = text("/spec/names/singular") {
        kind.singular = singular;
    }
    if let Some(short) = definition.pointer("/spec/names/shortNames").and_then(Value::as_array) {
        kind.short = short.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    }
    if let Some(schema) = &schema {
        read_lists(schema, "", &mut kind);
    }
    kind.schema = schema;
    Ok(kind)
}

/// Gathers from a schema how its lists and maps merge.
fn read_lists(schema: &Value, path: &str, kind: &mut Kind) {
    if schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic") {
        kind.atomic_maps.push(path.to_owned());
    }
    match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => drop(kind.lists.insert(path.to_owned(), ListType::Set)),
        Some("map") => {
            let names = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array).cloned().unwrap_or_default();
            let key = |field: &str| ListKey {
                field: field.to_owned(),
                default: schema.pointer(&format!("/items/properties/{field}/default")).cloned(),
            };
            let of = ListType::Map(names.iter().filter_map(Value::as_str).map(key).collect());
            kind.lists.insert(path.to_owned(), of);
        }
        _ => {}
    }
    if let Some(items) = schema.get("items") {
        read_lists(items, path, kind);
    }
    for (field, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
        read_lists(inner, &path, kind);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_definition_tells_scope_status_and_how_lists_merge() {
        let kind = from_definition(&json!({"spec": {
            "group": "example.io", "scope": "Namespaced",
            "names": {"plural": "tides", "singular": "tide", "kind": "Tide", "shortNames": ["td"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"properties": {"names": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                                            "plain": {"type": "array", "items": {"type": "string"}}}},
                    "status": {"properties": {"conditions": {"type": "array", "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["type"], "items": {"type": "object"}}}}}}}}]}}))
        .unwrap();
        assert!(kind.namespaced && kind.has_status && kind.custom && kind.generation && !kind.unconditional);
        assert_eq!((kind.resource().as_str(), kind.api_version().as_str()), ("tides.example.io", "example.io/v1"));
        assert_eq!(*kind.list_type("spec.names"), ListType::Set);
        assert_eq!(*kind.list_type("spec.plain"), ListType::Atomic);
        assert_eq!(*kind.list_type("status.conditions"), keys(&["type"]));
    }

    #[test]
    fn a_definition_without_a_stored_version_is_refused() {
        let refused = from_definition(
            &json!({"spec": {"group": "g", "scope": "Cluster", "names": {"plural": "p", "kind": "K"}, "versions": []}}),
        );
        assert!(refused.is_err());
    }
}
