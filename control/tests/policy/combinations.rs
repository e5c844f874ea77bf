//! Every combination of nil, empty and set: thousands of policies, each against the naive reading, both directions and
//! families (T-050, T-051, T-052, T-060).
//!
//! What is written for a field is one of a list of texts; `-` leaves it out.

use serde_json::{Map, Value, json};
use tidegate_control::source::ObjectKind;

use super::live::Gateway;
use super::naive::{Cluster, End, Target};
use super::valid;

/// x/a is asked about; x/b, y/a and a pod of the host are its peers. All are dual-stack and serve `web` on 80/TCP.
fn stage() -> (Cluster, Gateway) {
    let (mut cluster, mut gateway) = (Cluster::default(), Gateway::default());
    for name in ["x", "y"] {
        let value = json!({ "metadata": { "name": name, "labels": { "ns": name } } });
        gateway.apply(ObjectKind::Namespace, &value).unwrap();
        cluster.namespaces.insert(name.into(), value);
    }
    let node = json!({
        "metadata": { "name": "w1", "labels": { "role": "worker" } },
        "status": { "addresses": [{ "type": "InternalIP", "address": "172.18.0.9" }, { "type": "InternalIP", "address": "fd00:18::9" }] },
    });
    gateway.apply(ObjectKind::Node, &node).unwrap();
    cluster.nodes.insert("w1".into(), node);
    for (namespace, name, host, v4, v6) in [
        ("x", "a", false, "10.0.1.1", "fd00::1:1"),
        ("x", "b", false, "10.0.1.2", "fd00::1:2"),
        ("y", "a", false, "10.0.2.1", "fd00::2:1"),
        ("y", "h", true, "172.18.0.9", "fd00:18::9"),
    ] {
        let value = json!({
            "metadata": { "namespace": namespace, "name": name, "labels": { "pod": name } },
            "spec": { "hostNetwork": host, "containers": [{ "name": "c", "ports": [{ "name": "web", "containerPort": 80 }] }] },
            "status": { "phase": "Running", "podIPs": [{ "ip": v4 }, { "ip": v6 }] },
        });
        gateway.apply(ObjectKind::Pod, &value).unwrap();
        cluster.pods.insert(format!("{namespace}/{name}"), value);
    }
    (cluster, gateway)
}

const ADDRESSES: [[&str; 2]; 4] =
    [["10.0.1.2", "fd00::1:2"], ["10.0.2.1", "fd00::2:1"], ["172.18.0.9", "fd00:18::9"], ["192.0.2.7", "2001:db8::7"]];
const TARGETS: [Target; 4] = [
    Target { protocol: "TCP", port: 80 },
    Target { protocol: "TCP", port: 81 },
    Target { protocol: "UDP", port: 80 },
    Target { protocol: "ICMP", port: 0 },
];

struct Table {
    cluster: Cluster,
    gateway: Gateway,
    policies: u64,
    questions: u64,
    /// Policies that were refused, and answers that were no.
    refused: u64,
    denied: u64,
}

impl Table {
    fn new() -> Self {
        let (cluster, gateway) = stage();
        Table { cluster, gateway, policies: 0, questions: 0, refused: 0, denied: 0 }
    }

    /// The policy alone, about every peer, port and direction.
    fn judge(&mut self, kind: ObjectKind, spec: Value) {
        let network = kind == ObjectKind::NetworkPolicy;
        let name = if network { "x/p" } else { "p" };
        let value = json!({ "metadata": { "namespace": if network { "x" } else { "" }, "name": "p" }, "spec": spec });
        let (usable, whole) = match network {
            true => (valid::network_policy(&value), valid::network_policy_is_whole(&value)),
            false => (valid::cluster_policy(&value), valid::cluster_policy_is_whole(&value)),
        };
        self.gateway.delete(kind, name);
        let read = self.gateway.apply(kind, &value);
        assert_eq!(read.is_ok(), usable, "{read:?} {value:#}");
        assert!(read.is_err() || read.is_ok_and(|complaints| complaints.is_empty() == whole), "{value:#}");
        self.gateway.publish();
        self.policies += 1;
        self.refused += u64::from(!usable);
        let held = match network {
            true => &mut self.cluster.network_policies,
            false => &mut self.cluster.cluster_policies,
        };
        held.clear();
        if usable {
            held.insert(name.into(), value.clone());
        }
        for family in [0, 1] {
            let own = ["10.0.1.1", "fd00::1:1"][family].parse().unwrap();
            let subject = End { pod: Some("x/a".into()), address: own };
            for address in ADDRESSES.map(|both| both[family].parse().unwrap()) {
                let peer = End { pod: self.cluster.pod_at(address).cloned(), address };
                for (target, ingress) in TARGETS.iter().flat_map(|target| [(*target, true), (*target, false)]) {
                    let naive = self.cluster.judge(ingress, &subject, &peer, target);
                    let ours = self.gateway.judge(ingress, own, address, target);
                    assert_eq!(ours, naive, "ingress {ingress}, peer {address}, {target:?}: {value:#}");
                    self.questions += 1;
                    self.denied += u64::from(!naive.allow);
                }
            }
        }
    }

    fn tell(&self, of: &str) {
        let Table { policies, questions, refused, denied, .. } = self;
        println!("{of}: {policies} policies, {refused} refused, {questions} questions, {denied} denied");
        assert!(*denied > questions / 50 && *denied < questions - questions / 50, "the table says one thing only");
    }
}

/// An object of fields, each with its text; `-` is left out.
fn object(fields: &[(&str, &str)]) -> Value {
    let mut object = Map::new();
    for (name, text) in fields.iter().filter(|(_, text)| *text != "-") {
        object.insert((*name).into(), text.parse().unwrap_or_else(|error| panic!("{text}: {error}")));
    }
    Value::Object(object)
}

/// P-008, P-020: what a peer may have, alone and beside another, in both directions, with and without ports.
#[test]
fn t_050_every_peer_of_a_network_policy() {
    let mut table = Table::new();
    let pods = ["-", "null", "{}", r#"{"matchLabels":{"pod":"b"}}"#, r#"{"matchLabels":{"pod":"none"}}"#];
    let namespaces = ["-", "null", "{}", r#"{"matchLabels":{"ns":"y"}}"#, r#"{"matchLabels":{"ns":"none"}}"#];
    let blocks = [
        "-",
        "null",
        r#"{"cidr":"10.0.0.0/16"}"#,
        r#"{"cidr":"fd00::/64","except":[]}"#,
        r#"{"cidr":"0.0.0.0/0","except":["10.0.2.0/24","192.0.2.0/25"]}"#,
        r#"{"cidr":"::/0","except":null}"#,
        "{}",
    ];
    for pod in pods {
        for namespace in namespaces {
            for block in blocks {
                let peer = object(&[("podSelector", pod), ("namespaceSelector", namespace), ("ipBlock", block)]);
                for peers in [json!([peer]), json!([peer, { "podSelector": { "matchLabels": { "pod": "b" } } }])] {
                    for ports in ["-", r#"[{"port":80}]"#] {
                        let mut spec = json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] });
                        for (rules, side) in [("ingress", "from"), ("egress", "to")] {
                            let mut rule = object(&[("ports", ports)]);
                            rule[side] = peers.clone();
                            spec[rules] = json!([rule]);
                        }
                        table.judge(ObjectKind::NetworkPolicy, spec);
                    }
                }
            }
        }
    }
    table.tell("peers");
}

/// P-001 … P-007: lists of rules, of peers, of ports, of types; and whom it is about.
#[test]
fn t_051_every_list_of_a_network_policy() {
    let mut table = Table::new();
    let peers = ["-", "null", "[]", r#"[{"podSelector":{"matchLabels":{"pod":"b"}}}]"#, r#"[{}]"#];
    let ports = ["-", "null", "[]", "[{}]", r#"[{"port":80}]"#, r#"[{"port":0}]"#];
    let full = |side: &str| {
        let mut lists = ["-", "null", "[]", "[{}]"].map(String::from).to_vec();
        for peers in peers {
            lists.extend(ports.map(|ports| json!([object(&[(side, peers), ("ports", ports)])]).to_string()));
        }
        lists
    };
    let few = |side: &str| {
        let some = format!(r#"[{{"{side}":[{{"namespaceSelector":{{}}}}]}}]"#);
        [String::from("-"), "null".into(), "[]".into(), "[{}]".into(), some]
    };
    let types = ["-", "null", "[]", r#"["Ingress"]"#, r#"["Egress"]"#, r#"["Ingress","Egress"]"#, r#"["Both"]"#];
    let pods = ["-", "null", "{}", r#"{"matchLabels":{"pod":"a"}}"#, r#"{"matchLabels":{"pod":"b"}}"#];
    for pods in pods {
        for types in types {
            let mut judge = |ingress: &str, egress: &str| {
                let fields = [("podSelector", pods), ("policyTypes", types), ("ingress", ingress), ("egress", egress)];
                table.judge(ObjectKind::NetworkPolicy, object(&fields));
            };
            for ingress in full("from") {
                few("to").iter().for_each(|egress| judge(&ingress, egress));
            }
            for egress in full("to") {
                few("from").iter().for_each(|ingress| judge(ingress, &egress));
            }
        }
    }
    table.tell("lists");
}

/// P-023, P-024, P-027: port, endPort, protocol.
#[test]
fn t_045_t_052_every_port_of_a_network_policy() {
    let mut table = Table::new();
    for port in ["-", "null", "80", "79", r#""web""#, r#""none""#, r#""""#, "0", "-1", "65535", "65536"] {
        for end in ["-", "null", "80", "81", "79", "0", "65535", "65536"] {
            for protocol in ["-", "null", r#""TCP""#, r#""UDP""#, r#""SCTP""#, r#""GRE""#, r#""""#] {
                let rule = json!({ "ports": [object(&[("port", port), ("endPort", end), ("protocol", protocol)])] });
                let spec = json!({ "policyTypes": ["Ingress", "Egress"], "ingress": [rule], "egress": [rule] });
                table.judge(ObjectKind::NetworkPolicy, spec);
            }
        }
    }
    table.tell("ports");
}

/// P-011: every operator on labels that are there, and on those that are not, beside every kind of matchLabels; as the
/// subject's selector, the peer's and that of its namespace.
#[test]
fn t_042_every_expression_of_a_selector() {
    let mut table = Table::new();
    for (key, own, other) in [("pod", "b", "a"), ("ns", "y", "x"), ("gone", "b", "y"), ("", "b", "a")] {
        for operator in ["In", "NotIn", "Exists", "DoesNotExist", "exists", ""] {
            let (one, two) = (format!(r#"["{own}"]"#), format!(r#"["{own}","{other}"]"#));
            for values in ["-", "null", "[]", &one, &two, r#"["none"]"#] {
                for labels in ["-", "null", "{}", r#"{"pod":"b"}"#, r#"{"gone":"b"}"#] {
                    let mut expression = object(&[("values", values)]);
                    (expression["key"], expression["operator"]) = (key.into(), operator.into());
                    let mut selector = object(&[("matchLabels", labels)]);
                    selector["matchExpressions"] = json!([expression]);
                    for peer in [json!({ "podSelector": selector }), json!({ "namespaceSelector": selector })] {
                        let spec = json!({
                            "policyTypes": ["Ingress", "Egress"],
                            "ingress": [{ "from": [peer] }], "egress": [{ "to": [peer] }],
                        });
                        table.judge(ObjectKind::NetworkPolicy, spec);
                    }
                    table.judge(ObjectKind::NetworkPolicy, json!({ "podSelector": selector }));
                }
            }
        }
    }
    table.tell("selectors");
}

/// P-102, P-106 … P-109: what a peer may have, all at once too; actions; protocols.
#[test]
fn t_055_t_060_every_rule_of_a_cluster_network_policy() {
    let mut table = Table::new();
    let peers = || {
        let mut peers = Vec::new();
        for namespaces in ["-", "null", "{}", r#"{"matchLabels":{"ns":"y"}}"#] {
            for pods in ["-", "null", r#"{"namespaceSelector":{},"podSelector":{"matchLabels":{"pod":"b"}}}"#] {
                for nodes in ["-", r#"{"matchLabels":{"role":"worker"}}"#] {
                    for networks in ["-", "[]", r#"["192.0.2.0/24","fd00::/64"]"#, r#"["there"]"#] {
                        for names in ["-", r#"["example.org"]"#] {
                            peers.push(object(&[
                                ("namespaces", namespaces),
                                ("pods", pods),
                                ("nodes", nodes),
                                ("networks", networks),
                                ("domainNames", names),
                            ]));
                        }
                    }
                }
            }
        }
        peers
    };
    let protocols = [
        "-",
        "null",
        "[]",
        "[{}]",
        r#"[{"tcp":{"destinationPort":{"number":80}}}]"#,
        r#"[{"udp":{"destinationPort":{"range":{"start":79,"end":81}}}}]"#,
        r#"[{"tcp":{"destinationPort":{"range":{"start":80,"end":80}}}}]"#,
        r#"[{"destinationNamedPort":"web"}]"#,
        r#"[{"quic":{}}]"#,
    ];
    for action in ["Accept", "Deny", "Pass", "Log"] {
        for peer in peers() {
            for protocols in protocols {
                let mut spec = json!({ "tier": "Admin", "priority": 1, "subject": { "namespaces": {} } });
                for (rules, side) in [("ingress", "from"), ("egress", "to")] {
                    let mut rule = object(&[("protocols", protocols)]);
                    (rule["action"], rule[side]) = (action.into(), json!([peer]));
                    // What the rule leaves over is denied, so that accepting shows, or accepted.
                    let rest = if action == "Accept" { "Deny" } else { "Accept" };
                    spec[rules] = json!([rule, { "action": rest, side: [{ "namespaces": {} }] }]);
                }
                table.judge(ObjectKind::ClusterNetworkPolicy, spec);
            }
        }
    }
    table.tell("rules");
}

/// P-101, P-105: subjects, tiers, priorities; lists of rules.
#[test]
fn t_056_every_subject_and_tier_of_a_cluster_network_policy() {
    let mut table = Table::new();
    let selectors = ["-", "null", "{}", r#"{"matchLabels":{"ns":"x"}}"#, r#"{"matchLabels":{"ns":"y"}}"#];
    let pods = [
        "-",
        "null",
        "{}",
        r#"{"namespaceSelector":{},"podSelector":{}}"#,
        r#"{"namespaceSelector":{},"podSelector":{"matchLabels":{"pod":"a"}}}"#,
        r#"{"namespaceSelector":{"matchLabels":{"ns":"y"}},"podSelector":{"matchLabels":{"pod":"a"}}}"#,
    ];
    let deny = r#"[{"action":"Deny","SIDE":[{"namespaces":{}}]}]"#;
    for namespaces in selectors {
        for pods in pods {
            for tier in [r#""Admin""#, r#""Baseline""#, r#""Boss""#, r#""""#] {
                for priority in ["-", "null", "0", "1000", "1001", "-1"] {
                    for rules in ["-", "null", "[]", deny] {
                        let subject = object(&[("namespaces", namespaces), ("pods", pods)]).to_string();
                        let spec = object(&[
                            ("tier", tier),
                            ("priority", priority),
                            ("subject", &subject),
                            ("ingress", &rules.replace("SIDE", "from")),
                            ("egress", &rules.replace("SIDE", "to")),
                        ]);
                        // Of many that are refused for the same reason, one is enough.
                        if rules == deny || tier == r#""Admin""# {
                            table.judge(ObjectKind::ClusterNetworkPolicy, spec);
                        }
                    }
                }
            }
        }
    }
    let Table { policies, refused, denied, .. } = table;
    println!("subjects: {policies} policies, {refused} refused, {denied} denied");
    assert!(denied > 0 && refused > policies / 2 && refused < policies);
}
