//! The API's text, followed word by word over objects as they were written.
//!
//! Slow and obvious on purpose: it looks at raw JSON, knows no identities, no sets and no tables, and shares no code with
//! what it judges. Where the API leaves something open, it says what the specification decided; what an API server would
//! have refused is told by [`valid`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::valid::{self, field, list, text};

pub type Labels = BTreeMap<String, String>;

/// The cluster as written: objects by `namespace/name` or name.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub namespaces: BTreeMap<String, Value>,
    pub pods: BTreeMap<String, Value>,
    pub nodes: BTreeMap<String, Value>,
    pub network_policies: BTreeMap<String, Value>,
    pub cluster_policies: BTreeMap<String, Value>,
    /// Policies in audit count as all others; else they are not there.
    pub with_audit: bool,
}

/// One side of a connection.
#[derive(Clone, Debug)]
pub struct End {
    /// The pod that has the address.
    pub pod: Option<String>,
    pub address: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub protocol: &'static str,
    pub port: u16,
}

/// A judgement, and kind, name and rule of the object that it rests on; no rule: it isolates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged<'c> {
    pub allow: bool,
    pub by: Option<(&'static str, &'c str, Option<usize>)>,
}

fn labels(object: &Value) -> Labels {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    labels.into_iter().flatten().map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect()
}

/// P-011.
fn selects(selector: &Value, labels: &Labels) -> bool {
    let by_labels = field(selector, "matchLabels").and_then(Value::as_object);
    let by_labels =
        by_labels.into_iter().flatten().all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str());
    by_labels
        && list(selector, "matchExpressions").iter().all(|entry| {
            let value = labels.get(text(entry, "key"));
            let listed = value.is_some_and(|value| list(entry, "values").iter().any(|it| it.as_str() == Some(value)));
            match text(entry, "operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("{other}"),
            }
        })
}

impl Cluster {
    fn counts(&self, policy: &Value) -> bool {
        self.with_audit || policy.pointer("/metadata/annotations/tidegate.io~1audit") != Some(&Value::from("true"))
    }

    fn namespace_labels(&self, namespace: &str) -> Labels {
        let mut found = self.namespaces.get(namespace).map(labels).unwrap_or_default();
        found.insert("kubernetes.io/metadata.name".into(), namespace.into());
        found
    }

    /// P-009, P-105: neither pods with their node's addresses nor those that have ended.
    pub fn is_subject(&self, pod: &str) -> bool {
        let pod = &self.pods[pod];
        let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or("Running");
        pod.pointer("/spec/hostNetwork") != Some(&Value::Bool(true)) && !matches!(phase, "Succeeded" | "Failed")
    }

    /// Whose an address is: while several pods claim it, the one's that was created last, by UID if at the same time;
    /// of equal ones the first one's by name.
    pub fn pod_at(&self, address: IpAddr) -> Option<&String> {
        let claims = |pod: &&String| self.is_subject(pod) && self.addresses(pod).contains(&address);
        let age = |pod: &&String| {
            let said = |field: &str| self.pods[*pod]["metadata"][field].as_str().unwrap_or_default().to_owned();
            // Points in time of this form are in the order of their letters.
            (said("creationTimestamp"), said("uid"))
        };
        self.pods.keys().rev().filter(claims).max_by_key(age)
    }

    /// Addresses of a pod as its status lists them.
    pub fn addresses(&self, pod: &str) -> Vec<IpAddr> {
        let status = &self.pods[pod]["status"];
        list(status, "podIPs").iter().map(|entry| text(entry, "ip").parse().unwrap()).collect()
    }

    fn pod_is(&self, pod: &str, namespaces: impl Fn(&str, &Labels) -> bool, pods: Option<&Value>) -> bool {
        let namespace = pod.split('/').next().unwrap();
        self.is_subject(pod)
            && namespaces(namespace, &self.namespace_labels(namespace))
            && pods.is_none_or(|selector| selects(selector, &labels(&self.pods[pod])))
    }

    /// Whether a connection may pass one side: `ingress` asks the receiver's policies, else the sender's. A pod that is both
    /// reaches itself through a Service (P-110).
    pub fn judge(&self, ingress: bool, subject: &End, peer: &End, target: Target) -> Judged<'_> {
        const ALLOWED: Judged<'static> = Judged { allow: true, by: None };
        let Some(pod) = subject.pod.as_deref().filter(|pod| self.is_subject(pod)) else { return ALLOWED };
        let receiver = if ingress { subject } else { peer };
        let judged = |(action, name, rule)| match action {
            "Pass" => None,
            _ => Some(Judged { allow: action == "Accept", by: Some(("ClusterNetworkPolicy", name, Some(rule))) }),
        };
        // P-100: Admin, then NetworkPolicies, then Baseline, then allowed.
        self.tier("Admin", ingress, pod, peer, receiver, target)
            .and_then(judged)
            .or_else(|| self.network_policies(ingress, pod, peer, receiver, target))
            .or_else(|| self.tier("Baseline", ingress, pod, peer, receiver, target).and_then(judged))
            .unwrap_or(ALLOWED)
    }

    /// P-001 … P-007; none: no NetworkPolicy is about the pod (P-103).
    fn network_policies(
        &self,
        ingress: bool,
        pod: &str,
        peer: &End,
        receiver: &End,
        target: Target,
    ) -> Option<Judged<'_>> {
        let everything = Value::Object(serde_json::Map::new());
        let mut isolated = None;
        for (name, policy) in self.network_policies.iter().filter(|(_, policy)| self.counts(policy)) {
            let (spec, namespace) = (&policy["spec"], name.split('/').next().unwrap());
            let selector = field(spec, "podSelector").unwrap_or(&everything);
            if !self.pod_is(pod, |its, _| its == namespace, Some(selector)) {
                continue;
            }
            // P-002.
            let types = list(spec, "policyTypes");
            let about = match (types.is_empty(), ingress) {
                (false, _) => types.iter().any(|it| it == if ingress { "Ingress" } else { "Egress" }),
                (true, true) => true,
                (true, false) => !list(spec, "egress").is_empty(),
            };
            if !about {
                continue;
            }
            isolated.get_or_insert(("NetworkPolicy", name.as_str(), None));
            let (rules, peers) = if ingress { ("ingress", "from") } else { ("egress", "to") };
            for (number, rule) in list(spec, rules).iter().enumerate() {
                let (peers, ports) = (list(rule, peers), list(rule, "ports"));
                let by_peer = peers.is_empty() || peers.iter().any(|it| self.np_peer(it, namespace, peer));
                let by_port = ports.is_empty() || ports.iter().any(|it| self.np_port(it, receiver, target));
                if by_peer && by_port {
                    return Some(Judged { allow: true, by: Some(("NetworkPolicy", name, Some(number))) });
                }
            }
        }
        // P-033: none of them keeps a pod from itself, but that they are about it counts (P-103, P-110).
        isolated.map(|by| Judged { allow: peer.pod.as_deref() == Some(pod), by: Some(by) })
    }

    /// P-008, P-020. What an API server refuses matches nothing.
    fn np_peer(&self, entry: &Value, namespace: &str, peer: &End) -> bool {
        if !valid::np_peer(entry) {
            return false;
        }
        if let Some(block) = field(entry, "ipBlock") {
            let inside = |text: &Value| text.as_str().unwrap().parse::<IpNet>().unwrap().contains(&peer.address);
            return inside(&block["cidr"]) && !list(block, "except").iter().any(inside);
        }
        let Some(pod) = &peer.pod else { return false };
        match field(entry, "namespaceSelector") {
            Some(selector) => self.pod_is(pod, |_, labels| selects(selector, labels), field(entry, "podSelector")),
            None => self.pod_is(pod, |its, _| its == namespace, field(entry, "podSelector")),
        }
    }

    /// P-023, P-024.
    fn np_port(&self, entry: &Value, receiver: &End, target: Target) -> bool {
        let protocol = field(entry, "protocol").and_then(Value::as_str).unwrap_or("TCP");
        if !valid::np_port(entry) || protocol != target.protocol {
            return false;
        }
        match field(entry, "port") {
            None => true,
            Some(Value::String(name)) => self.is_named(receiver, name, target),
            Some(number) => {
                let first = number.as_u64().unwrap();
                let last = field(entry, "endPort").and_then(Value::as_u64).unwrap_or(first);
                (first..=last).contains(&target.port.into())
            }
        }
    }

    fn is_named(&self, receiver: &End, name: &str, target: Target) -> bool {
        let Some(pod) = receiver.pod.as_deref().filter(|pod| self.is_subject(pod)) else { return false };
        let containers = list(&self.pods[pod]["spec"], "containers");
        containers.iter().flat_map(|container| list(container, "ports")).any(|port| {
            let protocol = field(port, "protocol").and_then(Value::as_str).unwrap_or("TCP");
            text(port, "name") == name && protocol == target.protocol && port["containerPort"] == target.port
        })
    }

    /// Action, object and rule of the first rule of a tier that matches (P-101, P-102).
    fn tier(
        &self,
        tier: &str,
        ingress: bool,
        pod: &str,
        peer: &End,
        receiver: &End,
        target: Target,
    ) -> Option<(&'static str, &str, usize)> {
        let mut policies: Vec<(u64, &String, &Value)> = self
            .cluster_policies
            .iter()
            .filter(|(_, policy)| self.counts(policy))
            .map(|(name, policy)| (policy["spec"]["priority"].as_u64().unwrap(), name, &policy["spec"]))
            .filter(|(_, _, spec)| spec["tier"] == tier && self.cnp_pods(&spec["subject"], pod))
            .collect();
        policies.sort_by_key(|(priority, name, _)| (*priority, *name));
        let (rules, peers) = if ingress { ("ingress", "from") } else { ("egress", "to") };
        for (_, name, spec) in policies {
            for (number, rule) in list(spec, rules).iter().enumerate() {
                // P-109, for whatever in a rule cannot be worked with.
                let known = valid::cnp_rule(rule, ingress);
                let action = ["Accept", "Pass"].into_iter().find(|it| rule["action"] == *it).unwrap_or("Deny");
                match (known, action) {
                    (false, "Accept") => continue,
                    (false, _) => return Some(("Deny", name, number)),
                    (true, _) => {}
                }
                let by_peer = list(rule, peers).iter().any(|it| self.cnp_peer(it, peer));
                let by_port = field(rule, "protocols").is_none()
                    || list(rule, "protocols").iter().any(|it| self.cnp_protocol(it, receiver, target));
                if by_peer && by_port {
                    return Some((action, name, number));
                }
            }
        }
        None
    }

    fn cnp_pods(&self, entry: &Value, pod: &str) -> bool {
        match field(entry, "namespaces") {
            Some(selector) => self.pod_is(pod, |_, labels| selects(selector, labels), None),
            None => {
                let pods = &entry["pods"];
                self.pod_is(pod, |_, labels| selects(&pods["namespaceSelector"], labels), field(pods, "podSelector"))
            }
        }
    }

    /// P-106, P-107.
    fn cnp_peer(&self, entry: &Value, peer: &End) -> bool {
        if field(entry, "namespaces").is_some() || field(entry, "pods").is_some() {
            return peer.pod.as_ref().is_some_and(|pod| self.cnp_pods(entry, pod));
        }
        let networks = list(entry, "networks").iter();
        let mut networks = networks.map(|it| it.as_str().unwrap().parse::<IpNet>().unwrap());
        let nodes =
            field(entry, "nodes").map(|selector| self.nodes.values().filter(move |it| selects(selector, &labels(it))));
        let mut addresses = nodes.into_iter().flatten().flat_map(|node| list(&node["status"], "addresses"));
        networks.any(|it| it.contains(&peer.address))
            || addresses.any(|it| text(it, "address").parse() == Ok(peer.address))
    }

    fn cnp_protocol(&self, entry: &Value, receiver: &End, target: Target) -> bool {
        if let Some(name) = field(entry, "destinationNamedPort") {
            return self.is_named(receiver, name.as_str().unwrap(), target);
        }
        let Some(ports) = entry.pointer(&format!("/{}/destinationPort", target.protocol.to_lowercase())) else {
            return false;
        };
        match field(ports, "range") {
            Some(range) => {
                let (first, last) = (range["start"].as_u64().unwrap(), range["end"].as_u64().unwrap());
                (first..=last).contains(&target.port.into())
            }
            None => ports["number"] == target.port,
        }
    }
}
