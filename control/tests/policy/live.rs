//! Objects that come, change and go, all kinds in any order, right ones and wrong ones; after every step the tables say what
//! the naive reading of all objects says, for the same reason, and what a fresh start with the same objects says.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};
use tidegate_api::resource::{Body, Kind, Resource, ResourceKey};
use tidegate_control::model::{Dirty, Model, Object};
use tidegate_control::offline::Offline;
use tidegate_control::offline::question::Question;
use tidegate_control::policies::Policies;
use tidegate_control::source::{ObjectKey, ObjectKind};
use tidegate_control::watch::{self, Dialect, Exposed, Invalid};
use tidegate_policy::{Compiler, Decided, Direction, Query};

use super::cluster::{self, Dice, NAMESPACES, OUTSIDE, PORTS};
use super::naive::{Cluster, End, Judged, Target};
use super::valid;

const KINDS: [ObjectKind; 5] = [
    ObjectKind::Namespace,
    ObjectKind::Pod,
    ObjectKind::Node,
    ObjectKind::NetworkPolicy,
    ObjectKind::ClusterNetworkPolicy,
];

/// The whole way from manifests to tables.
#[derive(Default)]
pub struct Gateway {
    pub model: Model,
    pub index: Policies,
    pub compiler: Compiler,
    pub held: BTreeMap<ResourceKey, Resource>,
    /// Identities by address, as a dataplane learns them: from resources of pods.
    pub identities: BTreeMap<IpAddr, u32>,
    dirty: Dirty,
}

impl Gateway {
    /// Takes in an object and returns the complaints about a policy; one that cannot be used leaves what there was.
    pub fn apply(&mut self, kind: ObjectKind, value: &Value) -> Result<Vec<(String, String)>, Invalid> {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = ObjectKey { kind, namespace: text("/metadata/namespace"), name: text("/metadata/name") };
        let object = watch::read(&key, value, Dialect::Files, Exposed::default(), &mut Vec::new())?;
        let complaints = match &object {
            Object::Policy(policy) => policy.complaints.clone(),
            _ => Vec::new(),
        };
        self.model.apply(object, &mut self.dirty);
        Ok(complaints)
    }

    pub fn delete(&mut self, kind: ObjectKind, name: &str) {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        self.model.delete(&ObjectKey { kind, namespace: namespace.into(), name: name.into() }, &mut self.dirty);
    }

    /// Takes effect; the resources that were sent.
    pub fn publish(&mut self) -> usize {
        let dirty = std::mem::take(&mut self.dirty);
        let resolved = self.model.resolve_policies(&mut self.index, &dirty.policies);
        let mut changes: Vec<(ResourceKey, Option<Resource>)> = Vec::new();
        for (key, resource) in resolved {
            let before = self.held.get(&key).map(|resource| &resource.version);
            if before != resource.as_ref().map(|resource| &resource.version) {
                match &resource {
                    Some(resource) => drop(self.held.insert(key.clone(), resource.clone())),
                    None => drop(self.held.remove(&key)),
                }
                changes.push((key, resource));
            }
        }
        self.compiler.update(changes.iter().map(|(key, resource)| (key, resource.as_ref())));
        self.identities.clear();
        for resource in self.held.values() {
            let Body::Pod(pod) = &resource.body else { continue };
            for address in &pod.addresses {
                assert_eq!(self.identities.insert(*address, pod.identity), None, "two pods have {address}");
            }
        }
        changes.len()
    }

    /// What in audit would deny it, by the tables.
    pub fn would(&self, ingress: bool, subject: IpAddr, peer: IpAddr, target: Target) -> Option<Decided> {
        self.compiler.table().audit(&self.query(ingress, subject, peer, target))
    }

    fn query(&self, ingress: bool, subject: IpAddr, peer: IpAddr, target: Target) -> Query {
        let identity = |address: IpAddr| self.identities.get(&address).copied().unwrap_or(0);
        let protocol = match target.protocol {
            "TCP" => 6,
            "UDP" => 17,
            "SCTP" => 132,
            "ICMP" => 1,
            _ => 47,
        };
        Query {
            direction: if ingress { Direction::Ingress } else { Direction::Egress },
            subject: identity(subject),
            peer: identity(peer),
            peer_address: peer,
            protocol,
            port: target.port,
            is_itself: subject == peer,
        }
    }

    /// What the tables say of two addresses.
    pub fn judge(&self, ingress: bool, subject: IpAddr, peer: IpAddr, target: Target) -> Judged<'_> {
        let verdict = self.compiler.table().lookup(&self.query(ingress, subject, peer, target));
        let named = |id, rule: Option<u16>| {
            let (kind, name) = self.compiler.table().policy(id).unwrap().split_once('/').unwrap();
            let kind = if kind == "NetworkPolicy" { "NetworkPolicy" } else { "ClusterNetworkPolicy" };
            (kind, name, rule.map(usize::from))
        };
        let by = match verdict.decided_by {
            Decided::Default => None,
            Decided::Isolation(policy) | Decided::Itself(policy) => Some(named(policy, None)),
            Decided::Rule(policy, rule) => Some(named(policy, Some(rule))),
        };
        Judged { allow: verdict.allow, by }
    }
}

fn objects(cluster: &mut Cluster, kind: ObjectKind) -> &mut BTreeMap<String, Value> {
    match kind {
        ObjectKind::Namespace => &mut cluster.namespaces,
        ObjectKind::Pod => &mut cluster.pods,
        ObjectKind::Node => &mut cluster.nodes,
        ObjectKind::NetworkPolicy => &mut cluster.network_policies,
        _ => &mut cluster.cluster_policies,
    }
}

/// One object comes, changes or goes. What an API server would have refused is refused whole, or in part and told.
fn step(seed: u64, dice: &mut Dice, cluster: &mut Cluster, gateway: &mut Gateway) {
    let kind = dice.one(&[KINDS[0], KINDS[1], KINDS[1], KINDS[2], KINDS[3], KINDS[3], KINDS[4]]);
    let (namespace, number) = (dice.one(&NAMESPACES), dice.below(4));
    let name = match kind {
        ObjectKind::Namespace => namespace.to_owned(),
        ObjectKind::Pod | ObjectKind::NetworkPolicy => format!("{namespace}/o{number}"),
        _ => format!("o{number}"),
    };
    if dice.below(5) == 0 {
        objects(cluster, kind).remove(&name);
        gateway.delete(kind, &name);
        return;
    }
    let place = NAMESPACES.iter().position(|it| *it == namespace).unwrap();
    let own = format!("o{number}");
    let value = match kind {
        ObjectKind::Namespace => cluster::namespace(dice, namespace),
        ObjectKind::Pod => cluster::pod(dice, namespace, &own, place * 4 + number),
        ObjectKind::Node => cluster::node(dice, &own, number),
        ObjectKind::NetworkPolicy => cluster::network_policy(dice, namespace, &own),
        _ => cluster::cluster_policy(dice, &own),
    };
    let (usable, whole) = match kind {
        ObjectKind::NetworkPolicy => (valid::network_policy(&value), valid::network_policy_is_whole(&value)),
        ObjectKind::ClusterNetworkPolicy => (valid::cluster_policy(&value), valid::cluster_policy_is_whole(&value)),
        _ => (valid::other(&value), true),
    };
    match gateway.apply(kind, &value) {
        Ok(complaints) => {
            assert!(usable, "seed {seed}: nobody should use {value:#}");
            assert_eq!(complaints.is_empty(), whole, "seed {seed}: {complaints:?} about {value:#}");
            objects(cluster, kind).insert(name, value);
        }
        Err(error) => assert!(!usable, "seed {seed}: {error}: {value:#}"),
    }
}

/// Everybody in both families.
fn ends(cluster: &Cluster) -> Vec<End> {
    let mut addresses: Vec<IpAddr> = OUTSIDE.iter().map(|address| address.parse().unwrap()).collect();
    addresses.extend(cluster.pods.keys().flat_map(|pod| cluster.addresses(pod)));
    addresses.sort();
    addresses.dedup();
    addresses.into_iter().map(|address| End { pod: cluster.pod_at(address).cloned(), address }).collect()
}

/// Every pair of ends in one family, each each with two targets.
fn compare(seed: u64, cluster: &Cluster, gateway: &Gateway, dice: &mut Dice) -> u64 {
    let (ends, mut asked) = (ends(cluster), 0);
    let with_audit = Cluster { with_audit: true, ..cluster.clone() };
    for subject in ends.iter().filter(|end| end.pod.is_some()) {
        for peer in ends.iter().filter(|peer| peer.address.is_ipv4() == subject.address.is_ipv4()) {
            for ingress in [true, true, false, false] {
                let (protocol, port) = dice.one(&PORTS);
                let target = Target { protocol, port };
                let naive = cluster.judge(ingress, subject, peer, target);
                let ours = gateway.judge(ingress, subject.address, peer.address, target);
                assert_eq!(
                    ours, naive,
                    "seed {seed}: ingress {ingress} of {subject:?}, peer {peer:?}, {target:?}\n{cluster:#?}"
                );
                let would = with_audit.judge(ingress, subject, peer, target);
                let told = gateway.would(ingress, subject.address, peer.address, target).filter(|_| ours.allow);
                assert_eq!(
                    told.is_some(),
                    naive.allow && !would.allow,
                    "seed {seed}: in audit, ingress {ingress} of {subject:?}, peer {peer:?}, {target:?}\n{cluster:#?}"
                );
                asked += 1;
            }
        }
    }
    asked
}

/// The same objects all at once, in an order of their own: what is sent is a function of the objects alone.
fn fresh(seed: u64, cluster: &mut Cluster, dice: &mut Dice) -> Gateway {
    let mut gateway = Gateway::default();
    let mut all: Vec<(ObjectKind, Value)> = KINDS
        .into_iter()
        .flat_map(|kind| objects(cluster, kind).values().cloned().map(move |it| (kind, it)).collect::<Vec<_>>())
        .collect();
    while !all.is_empty() {
        let (kind, value) = all.swap_remove(dice.below(all.len()));
        gateway.apply(kind, &value).unwrap_or_else(|error| panic!("seed {seed}: {error}: {value:#}"));
        if dice.below(8) == 0 {
            gateway.publish();
        }
    }
    gateway.publish();
    gateway
}

/// The same objects as files: the answers of `tidegate policy eval`, which knows a pod and itself (P-033) and a pod and its
/// node (P-032), and names what decided.
fn compare_offline(seed: u64, cluster: &mut Cluster, dice: &mut Dice) -> u64 {
    let mut items = Vec::new();
    for (kind, (name, version)) in KINDS.into_iter().zip([
        ("Namespace", "v1"),
        ("Pod", "v1"),
        ("Node", "v1"),
        ("NetworkPolicy", "networking.k8s.io/v1"),
        ("ClusterNetworkPolicy", "policy.networking.k8s.io/v1alpha2"),
    ]) {
        for value in objects(cluster, kind).values() {
            let mut value = value.clone();
            (value["kind"], value["apiVersion"]) = (name.into(), version.into());
            items.push(value);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let text = json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string();
    std::fs::write(folder.path().join("all.json"), text).unwrap();
    let offline = Offline::read(folder.path()).unwrap();
    let (ends, mut asked) = (ends(cluster), 0);
    for from in &ends {
        for to in ends.iter().filter(|to| to.address.is_ipv4() == from.address.is_ipv4()) {
            let (protocol, port) = dice.one(&PORTS);
            let target = Target { protocol, port };
            let (egress, ingress) = (cluster.judge(false, from, to, target), cluster.judge(true, to, from, target));
            let itself = from.pod.is_some() && from.pod == to.pod;
            let expected = [ingress, egress].map(|judged| match judged.by {
                _ if itself => ("allow", json!("self")),
                None => ("allow", json!("default")),
                Some((kind, name, rule)) => {
                    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
                    let by = json!({ "kind": kind, "namespace": namespace, "name": name, "rule": rule });
                    (if judged.allow { "allow" } else { "deny" }, by)
                }
            });
            let question = Question {
                from: from.address.to_string(),
                to: to.address.to_string(),
                protocol: protocol.into(),
                port: (port != 0).then_some(port.into()),
            };
            let answer = offline.ask(&question).unwrap();
            let found = [(answer.ingress, answer.ingress_by), (answer.egress, answer.egress_by)];
            assert_eq!(found, expected, "seed {seed}: {question:?}\n{cluster:#?}");
            asked += 1;
        }
    }
    asked
}

/// As many questions as `TIDEGATE_POLICY_QUESTIONS` says, from a seed on; `TIDEGATE_POLICY_SEED` replaces it.
fn judge_clusters(first: u64) {
    let number = |name: &str, default: u64| std::env::var(name).ok().map_or(default, |text| text.parse().unwrap());
    let wanted = number("TIDEGATE_POLICY_QUESTIONS", 1_100_000);
    let mut seed = number("TIDEGATE_POLICY_SEED", first);
    let mut asked = 0;
    while asked < wanted {
        let mut dice = Dice::new(seed);
        let (mut cluster, mut gateway) = (Cluster::default(), Gateway::default());
        for round in 0..12 {
            for _ in 0..if round == 0 { 24 } else { 1 + dice.below(4) } {
                step(seed, &mut dice, &mut cluster, &mut gateway);
            }
            gateway.publish();
            asked += compare(seed, &cluster, &gateway, &mut dice);
        }
        if seed.is_multiple_of(4) {
            asked += compare_offline(seed, &mut cluster, &mut dice);
        }
        let other = fresh(seed, &mut cluster, &mut dice);
        assert_eq!(other.held, gateway.held, "seed {seed}: what is sent depends on the order of events");
        assert_eq!(other.compiler.table().digest(), gateway.compiler.table().digest(), "seed {seed}");
        let names: Vec<(ObjectKind, String)> = KINDS
            .into_iter()
            .flat_map(|kind| {
                objects(&mut cluster, kind).keys().cloned().map(move |name| (kind, name)).collect::<Vec<_>>()
            })
            .collect();
        names.iter().for_each(|(kind, name)| gateway.delete(*kind, name));
        gateway.publish();
        assert!(gateway.held.is_empty(), "seed {seed}: left behind: {:?}", gateway.held.keys());
        seed += 1;
    }
    println!("{asked} questions, seeds {first} to {}", seed - 1);
}

/// T-048, T-050 … T-060, P-045: no stricter than the API says, and no laxer. Over two million questions in two tests,
/// so that they run side by side.
#[test]
fn every_state_of_a_changing_cluster_is_judged_as_the_api_says() {
    judge_clusters(1);
}

/// T-054: the same for other clusters.
#[test]
fn every_state_of_other_clusters_is_judged_as_the_api_says() {
    judge_clusters(1_000_000);
}

/// P-010: a pod's label costs the pod and the sets it enters and leaves; labels that nobody looks at cost nothing.
#[test]
fn a_change_costs_what_it_touches() {
    let mut dice = Dice::new(7);
    let mut gateway = Gateway::default();
    let mut pod = |number: usize, labels: Value| {
        let mut pod = cluster::pod(&mut dice, "x", &format!("p{number}"), number);
        pod["metadata"]["labels"] = labels;
        pod["spec"] = json!({});
        pod["status"] = json!({ "podIPs": [{ "ip": format!("10.0.0.{number}") }] });
        pod
    };
    for number in 1..200 {
        let labels = json!({ "app": "web", "serial": format!("{number}") });
        gateway.apply(ObjectKind::Pod, &pod(number, labels)).unwrap();
    }
    let policy = |app: &str| {
        json!({
            "metadata": { "namespace": "x", "name": format!("to-{app}") },
            "spec": { "podSelector": { "matchLabels": { "app": app } }, "ingress": [{ "from": [{ "podSelector": {} }] }] },
        })
    };
    gateway.apply(ObjectKind::NetworkPolicy, &policy("web")).unwrap();
    gateway.apply(ObjectKind::NetworkPolicy, &policy("api")).unwrap();
    gateway.publish();
    let identities = gateway.held.keys().filter(|key| key.kind == Kind::IdentitySet).count();
    assert_eq!(identities, 3, "web, api, everybody of the namespace");
    gateway.apply(ObjectKind::Pod, &pod(7, json!({ "app": "web", "serial": "other" }))).unwrap();
    assert_eq!(gateway.publish(), 0, "nobody looks at that label");
    gateway.apply(ObjectKind::Pod, &pod(7, json!({ "app": "api" }))).unwrap();
    assert_eq!(gateway.publish(), 3, "the pod, the set it enters, and that of everybody, which has one identity more");
    gateway.apply(ObjectKind::Pod, &pod(7, json!({ "app": "web" }))).unwrap();
    assert_eq!(gateway.publish(), 3);
    gateway.delete(ObjectKind::NetworkPolicy, "x/to-api");
    assert_eq!(gateway.publish(), 2, "the policy and its set");
}
