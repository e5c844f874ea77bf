//! The API's text, followed word by word over objects as they were written.
//!
//! Slow and obvious on purpose: it looks at raw JSON, knows no identities, no sets and no tables, and shares no code with
//! what it judges. Where the API leaves something open, it says what the specification decided.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

pub type Labels = BTreeMap<String, String>;

/// The cluster as written: objects by `namespace/name` or name.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub namespaces: BTreeMap<String, Value>,
    pub pods: BTreeMap<String, Value>,
    pub nodes: BTreeMap<String, Value>,
    pub network_policies: BTreeMap<String, Value>,
    pub cluster_policies: BTreeMap<String, Value>,
}

/// One side of a connection.
#[derive(Clone, Debug)]
pub struct End {
    pub pod: Option<String>,
    pub address: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub protocol: &'static str,
    pub port: u16,
}

fn list<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn labels(object: &Value) -> Labels {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    labels.into_iter().flatten().map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect()
}

/// P-011.
fn selects(selector: &Value, labels: &Labels) -> bool {
    let by_labels = selector.get("matchLabels").and_then(Value::as_object);
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
    fn namespace_labels(&self, namespace: &str) -> Labels {
        let mut found = self.namespaces.get(namespace).map(labels).unwrap_or_default();
        found.insert("kubernetes.io/metadata.name".into(), namespace.into());
        found
    }

    /// P-009, P-105: neither pods with their node's addresses nor those that have ended.
    fn is_subject(&self, pod: &str) -> bool {
        let pod = &self.pods[pod];
        let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or("Running");
        pod.pointer("/spec/hostNetwork") != Some(&Value::Bool(true)) && !matches!(phase, "Succeeded" | "Failed")
    }

    fn pod_is(&self, pod: &str, namespaces: impl Fn(&str, &Labels) -> bool, pods: Option<&Value>) -> bool {
        let namespace = pod.split('/').next().unwrap();
        self.is_subject(pod)
            && namespaces(namespace, &self.namespace_labels(namespace))
            && pods.is_none_or(|selector| selects(selector, &labels(&self.pods[pod])))
    }

    /// Whether a connection may pass one side: `ingress` asks the receiver's policies, else the sender's.
    pub fn allows(&self, ingress: bool, subject: &End, peer: &End, target: Target) -> bool {
        let Some(pod) = subject.pod.as_deref().filter(|pod| self.is_subject(pod)) else { return true };
        let receiver = if ingress { subject } else { peer };
        match self.tier("Admin", ingress, pod, peer, receiver, target) {
            Some("Accept") => return true,
            Some("Deny") => return false,
            _ => {}
        }
        let mut isolated = false;
        for (name, policy) in &self.network_policies {
            let (spec, namespace) = (&policy["spec"], name.split('/').next().unwrap());
            let everything = Value::Object(serde_json::Map::new());
            let selector = spec.get("podSelector").unwrap_or(&everything);
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
            isolated = true;
            let (rules, peers) = if ingress { ("ingress", "from") } else { ("egress", "to") };
            for rule in list(spec, rules) {
                let (peers, ports) = (list(rule, peers), list(rule, "ports"));
                let by_peer = peers.is_empty() || peers.iter().any(|it| self.np_peer(it, namespace, peer));
                let by_port = ports.is_empty() || ports.iter().any(|it| self.np_port(it, receiver, target));
                if by_peer && by_port {
                    return true;
                }
            }
        }
        if isolated {
            return false;
        }
        !matches!(self.tier("Baseline", ingress, pod, peer, receiver, target), Some("Deny"))
    }

    /// P-008, P-020.
    fn np_peer(&self, entry: &Value, namespace: &str, peer: &End) -> bool {
        if let Some(block) = entry.get("ipBlock") {
            let inside = |text: &Value| text.as_str().unwrap().parse::<IpNet>().unwrap().contains(&peer.address);
            return inside(&block["cidr"]) && !list(block, "except").iter().any(inside);
        }
        let Some(pod) = &peer.pod else { return false };
        match entry.get("namespaceSelector") {
            Some(selector) => self.pod_is(pod, |_, labels| selects(selector, labels), entry.get("podSelector")),
            None => self.pod_is(pod, |its, _| its == namespace, Some(&entry["podSelector"])),
        }
    }

    /// P-023, P-024.
    fn np_port(&self, entry: &Value, receiver: &End, target: Target) -> bool {
        let protocol = entry.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
        if protocol != target.protocol {
            return false;
        }
        match entry.get("port") {
            None => true,
            Some(Value::String(name)) => self.is_named(receiver, name, target),
            Some(number) => {
                let first = number.as_u64().unwrap();
                let last = entry.get("endPort").and_then(Value::as_u64).unwrap_or(first);
                (first..=last).contains(&target.port.into())
            }
        }
    }

    fn is_named(&self, receiver: &End, name: &str, target: Target) -> bool {
        let Some(pod) = receiver.pod.as_deref().filter(|pod| self.is_subject(pod)) else { return false };
        let containers = self.pods[pod].pointer("/spec/containers").and_then(Value::as_array).unwrap();
        containers.iter().flat_map(|container| list(container, "ports")).any(|port| {
            let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
            text(port, "name") == name && protocol == target.protocol && port["containerPort"] == target.port
        })
    }

    /// The action of the first rule of a tier that matches (P-101, P-102).
    fn tier(
        &self,
        tier: &str,
        ingress: bool,
        pod: &str,
        peer: &End,
        receiver: &End,
        target: Target,
    ) -> Option<&'static str> {
        let mut policies: Vec<(u64, &String, &Value)> = self
            .cluster_policies
            .iter()
            .map(|(name, policy)| (policy["spec"]["priority"].as_u64().unwrap(), name, &policy["spec"]))
            .filter(|(_, _, spec)| spec["tier"] == tier && self.cnp_pods(&spec["subject"], pod))
            .collect();
        policies.sort_by_key(|(priority, name, _)| (*priority, *name));
        let (rules, peers) = if ingress { ("ingress", "from") } else { ("egress", "to") };
        for rule in policies.iter().flat_map(|(_, _, spec)| list(spec, rules)) {
            let action = ["Accept", "Deny", "Pass"].into_iter().find(|it| rule["action"] == *it).unwrap();
            // P-109, also for protocols.
            let unknown = list(rule, peers).iter().any(|it| {
                let known: &[&str] =
                    if ingress { &["namespaces", "pods"] } else { &["namespaces", "pods", "networks", "nodes"] };
                let name_to_accept = !ingress && it.get("domainNames").is_some() && action == "Accept";
                !name_to_accept && !known.iter().any(|field| it.get(field).is_some())
            });
            let unknown = unknown
                || list(rule, "protocols").iter().any(|it| {
                    !["tcp", "udp", "sctp"]
                        .iter()
                        .any(|field| it.pointer(&format!("/{field}/destinationPort")).is_some())
                        && it.get("destinationNamedPort").is_none()
                });
            if unknown {
                match action {
                    "Accept" => continue,
                    _ => return Some("Deny"),
                }
            }
            let by_peer = list(rule, peers).iter().any(|it| self.cnp_peer(it, peer));
            let by_port = rule.get("protocols").is_none()
                || list(rule, "protocols").iter().any(|it| self.cnp_protocol(it, receiver, target));
            if by_peer && by_port {
                return Some(action);
            }
        }
        None
    }

    fn cnp_pods(&self, entry: &Value, pod: &str) -> bool {
        match entry.get("namespaces") {
            Some(selector) => self.pod_is(pod, |_, labels| selects(selector, labels), None),
            None => {
                let pods = &entry["pods"];
                self.pod_is(pod, |_, labels| selects(&pods["namespaceSelector"], labels), Some(&pods["podSelector"]))
            }
        }
    }

    /// P-106, P-107.
    fn cnp_peer(&self, entry: &Value, peer: &End) -> bool {
        if entry.get("namespaces").is_some() || entry.get("pods").is_some() {
            return peer.pod.as_ref().is_some_and(|pod| self.cnp_pods(entry, pod));
        }
        let networks = list(entry, "networks").iter();
        let mut networks = networks.map(|it| it.as_str().unwrap().parse::<IpNet>().unwrap());
        let nodes =
            entry.get("nodes").map(|selector| self.nodes.values().filter(move |it| selects(selector, &labels(it))));
        let mut addresses =
            nodes.into_iter().flatten().flat_map(|node| node["status"]["addresses"].as_array().unwrap());
        networks.any(|it| it.contains(&peer.address))
            || addresses.any(|it| text(it, "address").parse() == Ok(peer.address))
    }

    fn cnp_protocol(&self, entry: &Value, receiver: &End, target: Target) -> bool {
        if let Some(name) = entry.get("destinationNamedPort") {
            return self.is_named(receiver, name.as_str().unwrap(), target);
        }
        let Some(ports) = entry.pointer(&format!("/{}/destinationPort", target.protocol.to_lowercase())) else {
            return false;
        };
        match ports.get("range") {
            Some(range) => {
                let (first, last) = (range["start"].as_u64().unwrap(), range["end"].as_u64().unwrap());
                (first..=last).contains(&target.port.into())
            }
            None => ports["number"] == target.port,
        }
    }
}
