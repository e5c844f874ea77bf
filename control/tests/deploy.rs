//! What is in `deploy/`, held against the Kubernetes types and against what control is: every rendered document is what its
//! kind says and has no field that its kind has not, the node file in it is one that control reads, and roles grant what
//! control asks, no more and no less.
//!
//! Reads `deploy/manifests/tidegate.yaml`, and what else is rendered in the directory `TIDEGATE_RENDERED` if that is set:
//! `deploy/chart/check` renders every set of values there.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Namespace, PodSpec, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidegate_control::config::NodeFile;
use tidegate_control::rights::{RIGHTS, Right, Scope, WORKER_RIGHTS};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// The documents of one file.
struct Rendered {
    name: String,
    documents: Vec<Value>,
}

impl Rendered {
    fn read(path: &Path) -> Rendered {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let documents = serde_norway::Deserializer::from_str(&text);
        let documents =
            documents.map(|document| Value::deserialize(document).unwrap()).filter(|value| !value.is_null());
        Rendered { name: path.file_stem().unwrap().to_string_lossy().into_owned(), documents: documents.collect() }
    }

    /// All objects of a kind that belong to gateways; the agent on workers has some of its own, and so has who watches.
    fn all<K: DeserializeOwned>(&self, kind: &str) -> Vec<K> {
        let of_others = |document: &Value| {
            let component = &document["metadata"]["labels"]["app.kubernetes.io/component"];
            component == "node-agent" || component == "monitoring"
        };
        let of_kind = self.documents.iter().filter(|document| document["kind"] == kind && !of_others(document));
        of_kind.map(|document| serde_json::from_value(document.clone()).unwrap()).collect()
    }

    fn pod(&self) -> PodSpec {
        let [daemonset] = <[DaemonSet; 1]>::try_from(self.all("DaemonSet")).unwrap();
        daemonset.spec.template.spec.unwrap()
    }

    fn container(&self, name: &str) -> Container {
        self.pod().containers.into_iter().find(|container| container.name == name).unwrap()
    }

    /// Node files by name.
    fn node_files(&self) -> BTreeMap<String, String> {
        let [config] = <[ConfigMap; 1]>::try_from(self.all("ConfigMap")).unwrap();
        config.data.unwrap()
    }
}

/// The plain manifests, and every set of values where they were rendered.
fn rendered() -> Vec<Rendered> {
    let mut files = vec![deploy("manifests/tidegate.yaml")];
    if let Some(directory) = std::env::var_os("TIDEGATE_RENDERED") {
        files.extend(std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()));
        assert!(files.len() >= 4, "{files:?}");
    }
    files.iter().map(|file| Rendered::read(file)).collect()
}

/// Reads a document as `K` and lists the fields that `K` has not.
fn strictly<K: DeserializeOwned>(document: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let read = serde_ignored::deserialize::<_, _, K>(document, |path| unknown.push(path.to_string()));
    if let Err(error) = read {
        unknown.push(error.to_string());
    }
    unknown
}

/// What the chart uses of the kinds of the Prometheus operator, and nothing else of them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "it is about what can be read")]
struct Monitoring<S> {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: S,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "as above")]
struct PodMonitorSpec {
    selector: LabelSelector,
    pod_metrics_endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "as above")]
struct Endpoint {
    port: String,
    interval: String,
    relabelings: Vec<Relabeling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "as above")]
struct Relabeling {
    source_labels: Vec<String>,
    target_label: String,
}

#[derive(Deserialize)]
struct RuleSpec {
    groups: Vec<RuleGroup>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "as above")]
struct RuleGroup {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "as above")]
struct Rule {
    alert: String,
    expr: String,
    r#for: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn complaints(document: &Value) -> Vec<String> {
    match (document["apiVersion"].as_str().unwrap_or(""), document["kind"].as_str().unwrap_or("")) {
        ("v1", "Namespace") => strictly::<Namespace>(document),
        ("v1", "ConfigMap") => strictly::<ConfigMap>(document),
        ("v1", "ServiceAccount") => strictly::<ServiceAccount>(document),
        ("apps/v1", "DaemonSet") => strictly::<DaemonSet>(document),
        ("policy/v1", "PodDisruptionBudget") => strictly::<PodDisruptionBudget>(document),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => strictly::<ClusterRole>(document),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => strictly::<ClusterRoleBinding>(document),
        ("rbac.authorization.k8s.io/v1", "Role") => strictly::<Role>(document),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => strictly::<RoleBinding>(document),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => strictly::<CustomResourceDefinition>(document),
        ("monitoring.coreos.com/v1", "PodMonitor") => strictly::<Monitoring<PodMonitorSpec>>(document),
        ("monitoring.coreos.com/v1", "PrometheusRule") => strictly::<Monitoring<RuleSpec>>(document),
        (version, kind) => vec![format!("{version} {kind} is no kind that this chart is meant to make")],
    }
}

#[test]
fn every_document_is_what_its_kind_says() {
    for file in rendered() {
        assert!(file.documents.len() >= 2, "{}: {} documents", file.name, file.documents.len());
        for document in &file.documents {
            let complaints = complaints(document);
            assert!(complaints.is_empty(), "{}, {}: {complaints:?}", file.name, document["kind"]);
        }
    }
    let misspelt = serde_json::json!({ "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {},
        "spec": { "selector": {}, "template": { "spec": { "hostNetwrok": true, "containers": [] } } } });
    assert!(complaints(&misspelt)[0].ends_with("hostNetwrok"), "this test can see: {:?}", complaints(&misspelt));
}

#[test]
fn node_files_are_what_control_reads() {
    for file in rendered() {
        let files = file.node_files();
        assert!(!files.is_empty(), "{}", file.name);
        for (name, text) in files {
            // Cargo sets this variable for its tests; pods have NODE_NAME from the downward API.
            assert!(text.starts_with("node: { env: NODE_NAME }\n"), "{}/{name}:\n{text}", file.name);
            let read = NodeFile::parse(&text.replace("NODE_NAME", "CARGO_PKG_NAME"));
            let read = read.unwrap_or_else(|error| panic!("{}/{name}: {error}\n{text}", file.name));
            assert_eq!(
                (read.node.as_str(), read.socket.to_str()),
                ("tidegate-control", Some("/run/tidegate/tidegate.sock"))
            );
        }
    }
}

/// The names that a section of the node file may have, from the error for one that it has not.
fn fields_of_control() -> BTreeSet<String> {
    let text = "node: a\ncontrol:\n  source: { directory: /x }\n  no-such-field: 1\n";
    let error = NodeFile::parse(text).unwrap_err();
    error.split_once("expected").unwrap().1.split('`').skip(1).step_by(2).map(String::from).collect()
}

#[test]
fn the_chart_offers_every_field_of_controls_section() {
    let schema: Value =
        serde_json::from_str(&std::fs::read_to_string(deploy("chart/tidegate/values.schema.json")).unwrap()).unwrap();
    let offered: BTreeSet<String> =
        schema["definitions"]["control"]["properties"].as_object().unwrap().keys().cloned().collect();
    let mut expected = fields_of_control();
    assert!(expected.contains("fullnatHosts"), "{expected:?}");
    // What the chart decides.
    expected.retain(|field| !["source", "gatewayLabel"].contains(&field.as_str()));
    let missing: Vec<&String> = expected.difference(&offered).collect();
    assert!(missing.is_empty(), "deploy/chart/tidegate/values.schema.json, definitions.control lacks {missing:?}");
    // What it offers beyond that is found when the set that says everything is read.
    let everything = std::fs::read_to_string(deploy("chart/tidegate/ci/full-values.yaml")).unwrap();
    let everything: Value = serde_norway::from_str(&everything).unwrap();
    // Said for one gateway only, since it lies in its pod CIDRs.
    let own = "fullnatSources";
    let said = |field: &str| everything["control"]["config"].get(field).is_some() || field == own;
    let unsaid: Vec<&String> = offered.iter().filter(|field| !said(field)).collect();
    assert!(unsaid.is_empty(), "deploy/chart/tidegate/ci/full-values.yaml lacks {unsaid:?}");
}

/// Group, resource, verb and scope, one by one.
type Grant = (String, String, String, Scope);

fn rights(rules: &[PolicyRule], scope: Scope) -> BTreeSet<Grant> {
    let mut rights = BTreeSet::new();
    for rule in rules {
        assert!(rule.non_resource_urls.is_none() && rule.resource_names.is_none(), "{rule:?}");
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    rights.insert((group.clone(), resource.clone(), verb.clone(), scope));
                }
            }
        }
    }
    rights
}

#[test]
fn roles_grant_what_control_asks_and_nothing_else() {
    // C-023
    let grants = |rights: &[Right]| -> BTreeSet<Grant> {
        let each = rights.iter().flat_map(|asked| {
            let right = |verb: &&str| (asked.group.into(), asked.resource.into(), (*verb).into(), asked.scope);
            asked.verbs.iter().map(right)
        });
        each.collect()
    };
    let asked = grants(RIGHTS);
    assert!(asked.iter().all(|(_, resource, verb, _)| !resource.contains("secret") && verb != "*" && resource != "*"));
    let mut with_roles = 0;
    for file in rendered() {
        let is_agents = |name: &Option<String>| name.as_ref().is_some_and(|name| name.ends_with("-node-agent"));
        let (of_agents, roles): (Vec<ClusterRole>, Vec<ClusterRole>) =
            file.all("ClusterRole").into_iter().partition(|role: &ClusterRole| is_agents(&role.metadata.name));
        // The agent on workers reads, and less.
        for role in of_agents {
            assert_eq!(rights(role.rules.as_deref().unwrap(), Scope::Cluster), grants(WORKER_RIGHTS), "{}", file.name);
        }
        let own: Vec<Role> = file.all("Role");
        if roles.is_empty() && own.is_empty() {
            continue;
        }
        with_roles += 1;
        let mut granted = BTreeSet::new();
        roles.iter().for_each(|role| granted.extend(rights(role.rules.as_deref().unwrap(), Scope::Cluster)));
        own.iter().for_each(|role| granted.extend(rights(role.rules.as_deref().unwrap(), Scope::OwnNamespace)));
        assert_eq!(granted, asked, "{}", file.name);
        // Both are bound to the account that the pods have.
        let account = file.pod().service_account_name.unwrap();
        let mut cluster: Vec<ClusterRoleBinding> = file.all("ClusterRoleBinding");
        cluster.retain(|binding| !is_agents(&binding.metadata.name));
        let own: Vec<RoleBinding> = file.all("RoleBinding");
        let subjects = cluster.into_iter().flat_map(|b| b.subjects).chain(own.into_iter().flat_map(|b| b.subjects));
        let bound: Vec<String> = subjects.flatten().map(|subject| subject.name).collect();
        assert_eq!(bound, [account.clone(), account], "{}", file.name);
    }
    assert!(with_roles > 0);
}

#[test]
fn containers_have_the_least_that_they_need() {
    for file in rendered() {
        let pod = file.pod();
        assert_eq!((pod.host_network, pod.automount_service_account_token), (Some(true), Some(false)));
        assert_eq!((pod.host_pid, pod.host_ipc), (None, None));
        let names: Vec<&str> = pod.containers.iter().map(|container| container.name.as_str()).collect();
        assert_eq!(names, ["dataplane", "control"]);
        for container in &pod.containers {
            let security = container.security_context.as_ref().unwrap();
            assert_eq!((security.privileged, security.allow_privilege_escalation), (Some(false), Some(false)));
            assert_eq!(security.read_only_root_filesystem, Some(true));
            let capabilities = security.capabilities.as_ref().unwrap();
            assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
            let added = capabilities.add.clone().unwrap_or_default();
            let mounts = container.volume_mounts.iter().flatten();
            let mounts: BTreeSet<&str> = mounts.map(|mount| mount.name.as_str()).collect();
            if container.name == "dataplane" {
                assert_eq!(added, ["BPF", "IPC_LOCK", "NET_ADMIN", "NET_RAW"]);
                assert!(!mounts.contains("token"), "the token is control's");
            } else {
                assert!(added.is_empty() && security.run_as_non_root == Some(true));
                assert!(!mounts.contains("state") && !mounts.contains("bpf") && !mounts.contains("gateway-key"));
            }
            // A socket of one is the other's to open.
            assert_eq!(security.run_as_group, file.container("control").security_context.unwrap().run_as_group);
        }
    }
}

/// What is watched is what the chart starts: ports by their names, alerts and dashboard as they are in `deploy/`.
#[test]
fn what_is_watched_is_there() {
    let mut watched = 0;
    for file in rendered() {
        let of_kind = |kind: &str| file.documents.iter().find(|document| document["kind"] == kind);
        let Some(monitor) = of_kind("PodMonitor") else { continue };
        watched += 1;
        let monitor: Monitoring<PodMonitorSpec> = serde_json::from_value(monitor.clone()).unwrap();
        let containers = file.pod().containers;
        let ports: BTreeSet<(String, i32)> = containers
            .iter()
            .flat_map(|container| container.ports.iter().flatten())
            .map(|port| (port.name.clone().unwrap(), port.container_port))
            .collect();
        let asked: BTreeSet<String> = monitor.spec.pod_metrics_endpoints.iter().map(|at| at.port.clone()).collect();
        assert_eq!(asked, ports.iter().map(|(name, _)| name.clone()).collect(), "{}", file.name);
        for text in file.node_files().values() {
            for (_, port) in &ports {
                assert!(text.contains(&format!("metrics: '[::]:{port}'")), "{}: {text}", file.name);
            }
        }
        let rules: Monitoring<RuleSpec> = serde_json::from_value(of_kind("PrometheusRule").unwrap().clone()).unwrap();
        let own: Value =
            serde_norway::from_str(&std::fs::read_to_string(deploy("prometheus/rules.yaml")).unwrap()).unwrap();
        let names: Vec<&str> =
            rules.spec.groups.iter().flat_map(|group| &group.rules).map(|rule| &*rule.alert).collect();
        let own: Vec<&str> =
            own["groups"][0]["rules"].as_array().unwrap().iter().map(|rule| rule["alert"].as_str().unwrap()).collect();
        assert_eq!(names, own);
        let dashboard = file.documents.iter().find(|document| document["data"]["tidegate.json"].is_string()).unwrap();
        let shown: Value = serde_json::from_str(dashboard["data"]["tidegate.json"].as_str().unwrap()).unwrap();
        let own: Value =
            serde_json::from_str(&std::fs::read_to_string(deploy("grafana/tidegate.json")).unwrap()).unwrap();
        assert_eq!(shown, own);
    }
    assert!(watched > 0 || std::env::var_os("TIDEGATE_RENDERED").is_none(), "a set of values is watched");
}

#[test]
fn a_gateway_is_whoever_has_the_label() {
    for file in rendered() {
        let affinity = file.pod().affinity.unwrap().node_affinity.unwrap();
        let terms = affinity.required_during_scheduling_ignored_during_execution.unwrap().node_selector_terms;
        assert!(!terms.is_empty());
        // Terms are alternatives, so each has to ask for it.
        for term in terms {
            let asks = term.match_expressions.iter().flatten().any(|expression| {
                ["tidegate.io/gateway", "example.net/edge"].contains(&expression.key.as_str())
                    && expression.operator == "Exists"
            });
            assert!(asks, "{}: {term:?}", file.name);
        }
    }
}
