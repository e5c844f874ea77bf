//! Objects that come, change and go, all kinds in any order; after every step the tables say what the naive reading of all
//! objects says, and what a fresh start with the same objects says.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;
use tidegate_api::resource::{Kind, Resource, ResourceKey};
use tidegate_control::model::{Dirty, Model, Name};
use tidegate_control::policies::Policies;
use tidegate_control::source::{ObjectKey, ObjectKind};
use tidegate_control::watch::{self, Dialect, Exposed};
use tidegate_policy::{Compiler, Direction, Query};

use super::cluster::{self, Dice, NAMESPACES, OUTSIDE, PORTS};
use super::naive::{Cluster, End, Target};

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
    dirty: Dirty,
}

impl Gateway {
    pub fn apply(&mut self, kind: ObjectKind, value: &Value) {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = ObjectKey { kind, namespace: text("/metadata/namespace"), name: text("/metadata/name") };
        let object = watch::read(&key, value, Dialect::Files, Exposed::default(), &mut Vec::new());
        self.model.apply(object.unwrap_or_else(|error| panic!("{error}: {value}")), &mut self.dirty);
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
        changes.len()
    }

    pub fn allows(&self, ingress: bool, subject: &End, peer: &End, target: Target) -> bool {
        let identity = |end: &End| {
            end.pod.as_ref().map_or(0, |pod| {
                let (namespace, name) = pod.split_once('/').unwrap();
                self.index.identity(&Name { namespace: namespace.into(), name: name.into() })
            })
        };
        let protocol = match target.protocol {
            "TCP" => 6,
            "UDP" => 17,
            "SCTP" => 132,
            "ICMP" => 1,
            _ => 47,
        };
        let query = Query {
            direction: if ingress { Direction::Ingress } else { Direction::Egress },
            subject: identity(subject),
            peer: identity(peer),
            peer_address: peer.address,
            protocol,
            port: target.port,
        };
        self.compiler.table().lookup(&query).allow
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

/// One object comes, changes or goes.
fn step(dice: &mut Dice, cluster: &mut Cluster, gateway: &mut Gateway) {
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
    gateway.apply(kind, &value);
    objects(cluster, kind).insert(name, value);
}

/// Everybody in both families.
fn ends(cluster: &Cluster) -> Vec<End> {
    let mut ends: Vec<End> =
        OUTSIDE.iter().map(|address| End { pod: None, address: address.parse().unwrap() }).collect();
    for (name, pod) in &cluster.pods {
        for entry in pod["status"]["podIPs"].as_array().unwrap() {
            let address: IpAddr = entry["ip"].as_str().unwrap().parse().unwrap();
            ends.push(End { pod: Some(name.clone()), address });
        }
    }
    ends
}

fn compare(seed: u64, cluster: &Cluster, gateway: &Gateway, dice: &mut Dice) -> usize {
    let (ends, mut asked) = (ends(cluster), 0);
    for subject in ends.iter().filter(|end| end.pod.is_some()) {
        for peer in ends.iter().filter(|peer| peer.address.is_ipv4() == subject.address.is_ipv4()) {
            for _ in 0..2 {
                let (protocol, port) = dice.one(&PORTS);
                let target = Target { protocol, port };
                for ingress in [true, false] {
                    let naive = cluster.allows(ingress, subject, peer, target);
                    let ours = gateway.allows(ingress, subject, peer, target);
                    assert_eq!(
                        ours, naive,
                        "seed {seed}: ingress {ingress} of {subject:?}, peer {peer:?}, {target:?}\n{cluster:#?}"
                    );
                    asked += 1;
                }
            }
        }
    }
    asked
}

/// The same objects all at once, in another order.
fn fresh(cluster: &mut Cluster) -> Gateway {
    let mut gateway = Gateway::default();
    for kind in KINDS.into_iter().rev() {
        for value in objects(cluster, kind).values().rev() {
            gateway.apply(kind, value);
        }
    }
    gateway.publish();
    gateway
}

/// T-048, T-050 … T-060: as many questions as `TIDEGATE_POLICY_QUESTIONS` says, from `TIDEGATE_POLICY_SEED` on.
#[test]
fn every_state_of_a_changing_cluster_is_judged_as_the_api_says() {
    let number = |name: &str, default: u64| std::env::var(name).ok().map_or(default, |text| text.parse().unwrap());
    let wanted = number("TIDEGATE_POLICY_QUESTIONS", 150_000);
    let mut seed = number("TIDEGATE_POLICY_SEED", 1);
    let mut asked = 0;
    while asked < wanted {
        let mut dice = Dice::new(seed);
        let (mut cluster, mut gateway) = (Cluster::default(), Gateway::default());
        for round in 0..12 {
            for _ in 0..if round == 0 { 24 } else { 1 + dice.below(4) } {
                step(&mut dice, &mut cluster, &mut gateway);
            }
            gateway.publish();
            asked += u64::try_from(compare(seed, &cluster, &gateway, &mut dice)).unwrap();
        }
        let other = fresh(&mut cluster);
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
    println!("{asked} questions, seeds to {}", seed - 1);
}

/// P-010: a pod's label costs the pod and the sets it enters and leaves; labels that nobody looks at cost nothing.
#[test]
fn a_change_costs_what_it_touches() {
    let mut dice = Dice::new(7);
    let mut gateway = Gateway::default();
    let mut pod = |number: usize, labels: Value| {
        let mut pod = cluster::pod(&mut dice, "x", &format!("p{number}"), number);
        pod["metadata"]["labels"] = labels;
        pod["spec"] = serde_json::json!({});
        pod["status"] = serde_json::json!({ "podIPs": [{ "ip": format!("10.0.0.{number}") }] });
        pod
    };
    for number in 1..200 {
        let labels = serde_json::json!({ "app": "web", "serial": format!("{number}") });
        gateway.apply(ObjectKind::Pod, &pod(number, labels));
    }
    let policy = |app: &str| {
        serde_json::json!({
            "metadata": { "namespace": "x", "name": format!("to-{app}") },
            "spec": { "podSelector": { "matchLabels": { "app": app } }, "ingress": [{ "from": [{ "podSelector": {} }] }] },
        })
    };
    gateway.apply(ObjectKind::NetworkPolicy, &policy("web"));
    gateway.apply(ObjectKind::NetworkPolicy, &policy("api"));
    gateway.publish();
    let identities = gateway.held.keys().filter(|key| key.kind == Kind::IdentitySet).count();
    assert_eq!(identities, 3, "web, api, everybody of the namespace");
    gateway.apply(ObjectKind::Pod, &pod(7, serde_json::json!({ "app": "web", "serial": "other" })));
    assert_eq!(gateway.publish(), 0, "nobody looks at that label");
    gateway.apply(ObjectKind::Pod, &pod(7, serde_json::json!({ "app": "api" })));
    assert_eq!(gateway.publish(), 3, "the pod, the set it enters, and that of everybody, which has one identity more");
    gateway.apply(ObjectKind::Pod, &pod(7, serde_json::json!({ "app": "web" })));
    assert_eq!(gateway.publish(), 3);
    gateway.delete(ObjectKind::NetworkPolicy, "x/to-api");
    assert_eq!(gateway.publish(), 2, "the policy and its set");
}
