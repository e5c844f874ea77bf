//! Clusters made by chance: few labels, names and addresses, so that things meet, and now and then a slip of the pen.

use serde_json::{Map, Value, json};

/// Chance with a seed (xorshift64*).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % end
    }

    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A slip of the pen: rare, so that most objects are right.
    fn slips(&mut self) -> bool {
        self.below(40) == 0
    }

    fn times(&mut self, end: usize, mut make: impl FnMut(&mut Self) -> Value) -> Value {
        let count = self.below(end);
        Value::Array((0..count).map(|_| make(self)).collect())
    }
}

pub const NAMESPACES: [&str; 4] = ["x", "y", "z", "w"];
pub const PORTS: [(&str, u16); 8] =
    [("TCP", 80), ("TCP", 81), ("TCP", 443), ("UDP", 53), ("UDP", 80), ("SCTP", 80), ("ICMP", 0), ("GRE", 0)];
pub const OUTSIDE: [&str; 6] = ["192.0.2.7", "198.51.100.1", "2001:db8::7", "172.18.0.1", "fd00:18::2", "10.0.9.9"];

pub fn labels(dice: &mut Dice) -> Value {
    let mut labels = Map::new();
    for key in ["a", "b", "c"] {
        if dice.below(3) > 0 {
            labels.insert(key.into(), dice.one(&["1", "2", "3"]).into());
        }
    }
    Value::Object(labels)
}

pub fn selector(dice: &mut Dice) -> Value {
    if dice.slips() {
        return dice
            .one(&[
                r#"{"matchExpressions":[{"key":"a","operator":"In"}]}"#,
                r#"{"matchExpressions":[{"key":"a","operator":"Exists","values":["1"]}]}"#,
                r#"{"matchExpressions":[{"key":"","operator":"Exists"}]}"#,
                r#"{"matchExpressions":[{"key":"a","operator":"Near","values":["1"]}]}"#,
                r#"{"matchLabels":null,"matchExpressions":null}"#,
            ])
            .parse()
            .unwrap();
    }
    let mut selector = Map::new();
    if dice.below(3) == 0 {
        selector.insert("matchLabels".into(), json!({ dice.one(&["a", "b"]): dice.one(&["1", "2", "3"]) }));
    }
    if dice.below(3) == 0 {
        let expressions = dice.times(3, |dice| {
            let (key, operator) = (dice.one(&["a", "b", "c"]), dice.one(&["In", "NotIn", "Exists", "DoesNotExist"]));
            match operator {
                "In" | "NotIn" => {
                    let mut values = vec![dice.one(&["1", "2", "3"])];
                    if dice.below(2) == 0 {
                        values.push(dice.one(&["1", "2", "3"]));
                    }
                    json!({ "key": key, "operator": operator, "values": values })
                }
                _ => json!({ "key": key, "operator": operator }),
            }
        });
        selector.insert("matchExpressions".into(), expressions);
    }
    Value::Object(selector)
}

fn namespace_selector(dice: &mut Dice) -> Value {
    match dice.below(3) {
        0 => json!({ "matchLabels": { "kubernetes.io/metadata.name": dice.one(&NAMESPACES) } }),
        _ => selector(dice),
    }
}

pub fn pod(dice: &mut Dice, namespace: &str, name: &str, number: usize) -> Value {
    let host_network = dice.below(8) == 0;
    // Now and then the address of a neighbour that goes or comes.
    let number = if dice.below(10) == 0 { (number + 1) % 16 } else { number };
    let (v4, v6) = match host_network {
        true => ("172.18.0.1".to_owned(), "fd00:18::1".to_owned()),
        false => (format!("10.0.{}.{}", number % 3, number + 1), format!("fd00::{}:{}", number % 3, number + 1)),
    };
    let both = [json!({ "ip": v4 }), json!({ "ip": v6 })];
    let addresses = match dice.below(16) {
        0 => &both[..0],
        1 => &both[..1],
        2 => &both[1..],
        _ => &both[..],
    };
    let ports = dice.times(3, |dice| {
        let (name, port) = (dice.one(&["web", "dns"]), dice.one(&[80, 81, 53]));
        match dice.below(3) {
            _ if dice.slips() => json!({ "name": name, "containerPort": dice.one(&[0, 65_536]) }),
            0 => json!({ "containerPort": port }),
            1 => json!({ "name": name, "containerPort": port }),
            _ => json!({ "name": name, "containerPort": port, "protocol": dice.one(&["TCP", "UDP", "SCTP"]) }),
        }
    });
    let mut metadata = json!({ "namespace": namespace, "name": name, "labels": labels(dice) });
    if dice.below(3) > 0 {
        metadata["creationTimestamp"] = format!("2026-01-0{}T00:00:00Z", 1 + dice.below(3)).into();
        metadata["uid"] = dice.one(&["u-1", "u-2", "u-3"]).into();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": metadata,
        "spec": { "hostNetwork": host_network, "containers": [{ "name": "c", "ports": ports }] },
        "status": {
            "phase": if dice.below(10) == 0 { "Succeeded" } else { "Running" },
            "podIPs": addresses,
        },
    })
}

pub fn namespace(dice: &mut Dice, name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels(dice) } })
}

pub fn node(dice: &mut Dice, name: &str, number: usize) -> Value {
    let addresses = [
        json!({ "type": "InternalIP", "address": format!("172.18.0.{number}") }),
        json!({ "type": "ExternalIP", "address": format!("fd00:18::{number}") }),
        json!({ "type": "Hostname", "address": name }),
    ];
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": labels(dice) },
        "status": { "addresses": addresses },
    })
}

fn block(dice: &mut Dice) -> Value {
    if dice.slips() {
        return dice
            .one(&[
                r#"{"cidr":"10.0.0.0/33"}"#,
                r#"{"cidr":"everybody"}"#,
                r#"{"cidr":"10.0.0.0/16","except":["10.0.0.0/16"]}"#,
                r#"{"cidr":"10.0.0.0/16","except":["10.0.0.0/24","192.0.2.0/24"]}"#,
                r#"{"cidr":"10.0.0.0/16","except":["fd00::/64"]}"#,
                r#"{"cidr":"0.0.0.0/0","except":null}"#,
            ])
            .parse()
            .unwrap();
    }
    let (cidr, inside): (&str, &[&str]) = dice.one(&[
        ("0.0.0.0/0", &["10.0.0.0/8", "192.0.2.0/24", "10.0.1.0/24"] as &[&str]),
        ("10.0.0.0/16", &["10.0.0.0/24", "10.0.1.0/25", "10.0.1.2/32"]),
        ("10.0.1.7/24", &["10.0.1.0/28", "10.0.1.0/30"]),
        ("::/0", &["fd00::/16", "2001:db8::/32"]),
        ("fd00::/64", &["fd00::1:0/112", "fd00::/112"]),
        ("192.0.2.7/32", &[]),
    ]);
    let mut block = json!({ "cidr": cidr });
    if dice.below(2) == 0 && !inside.is_empty() {
        block["except"] = dice.times(3, |dice| dice.one(inside).into());
    }
    block
}

fn np_peer(dice: &mut Dice) -> Value {
    match dice.below(4) {
        _ if dice.slips() => match dice.below(4) {
            0 => json!({}),
            1 => json!({ "fqdn": "example.org" }),
            2 => json!({ "ipBlock": block(dice), "podSelector": selector(dice) }),
            _ => json!({ "ipBlock": null, "podSelector": null, "namespaceSelector": namespace_selector(dice) }),
        },
        0 => json!({ "ipBlock": block(dice) }),
        1 => json!({ "podSelector": selector(dice) }),
        2 => json!({ "namespaceSelector": namespace_selector(dice) }),
        _ => json!({ "namespaceSelector": namespace_selector(dice), "podSelector": selector(dice) }),
    }
}

fn np_port(dice: &mut Dice) -> Value {
    let mut port = Map::new();
    if dice.below(3) > 0 {
        port.insert("protocol".into(), dice.one(&["TCP", "UDP", "SCTP"]).into());
    }
    match dice.below(4) {
        _ if dice.slips() => {
            return dice
                .one(&[
                    r#"{"endPort":80}"#,
                    r#"{"port":"web","endPort":80}"#,
                    r#"{"port":80,"endPort":79}"#,
                    r#"{"port":0}"#,
                    r#"{"port":65536}"#,
                    r#"{"port":80,"endPort":65536}"#,
                    r#"{"port":""}"#,
                    r#"{"port":"80"}"#,
                    r#"{"port":"web-and-more-web"}"#,
                    r#"{"port":"Web"}"#,
                    r#"{"port":"a--b"}"#,
                    r#"{"port":"-"}"#,
                    r#"{"protocol":"GRE"}"#,
                    r#"{"protocol":"tcp"}"#,
                    r#"{"port":null,"endPort":null,"protocol":null}"#,
                ])
                .parse()
                .unwrap();
        }
        0 => {}
        1 => drop(port.insert("port".into(), dice.one(&["web", "dns", "none"]).into())),
        2 => drop(port.insert("port".into(), dice.one(&[80, 81, 53]).into())),
        _ => {
            port.insert("port".into(), 53.into());
            port.insert("endPort".into(), dice.one(&[53, 80, 443]).into());
        }
    }
    Value::Object(port)
}

/// nil, empty, or set (T-050, T-051).
fn maybe(dice: &mut Dice, of: &mut Map<String, Value>, field: &str, end: usize, make: fn(&mut Dice) -> Value) {
    match dice.below(5) {
        0 => {}
        1 => drop(of.insert(field.into(), json!([]))),
        _ if dice.slips() => drop(of.insert(field.into(), Value::Null)),
        _ => {
            let listed = dice.times(end, make);
            of.insert(field.into(), listed);
        }
    }
}

pub fn network_policy(dice: &mut Dice, namespace: &str, name: &str) -> Value {
    fn rule(dice: &mut Dice, peers: &str) -> Value {
        let mut rule = Map::new();
        maybe(dice, &mut rule, peers, 4, np_peer);
        maybe(dice, &mut rule, "ports", 3, np_port);
        Value::Object(rule)
    }
    let mut spec = Map::new();
    if dice.below(6) > 0 {
        spec.insert("podSelector".into(), selector(dice));
    }
    let types: [Option<&[&str]>; 6] =
        [None, None, Some(&[]), Some(&["Ingress"]), Some(&["Egress"]), Some(&["Ingress", "Egress"])];
    let types = if dice.slips() { Some(["Both", "Egress"].as_slice()) } else { dice.one(&types) };
    if let Some(types) = types {
        spec.insert("policyTypes".into(), json!(types));
    }
    maybe(dice, &mut spec, "ingress", 4, |dice| rule(dice, "from"));
    maybe(dice, &mut spec, "egress", 4, |dice| rule(dice, "to"));
    if dice.slips() {
        spec.insert(dice.one(&["podSelector", "ingress", "egress", "policyTypes"]).into(), 7.into());
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": namespace, "name": name, "annotations": audit(dice) }, "spec": spec,
    })
}

/// Annotations of a policy, which is in audit now and then.
fn audit(dice: &mut Dice) -> Value {
    match dice.below(8) {
        0 | 1 => json!({ "tidegate.io/audit": "true" }),
        2 => json!({ "tidegate.io/audit": "false", "other": "x" }),
        _ => json!({}),
    }
}

fn cnp_pods(dice: &mut Dice) -> Value {
    match dice.below(2) {
        0 => json!({ "namespaces": namespace_selector(dice) }),
        _ => json!({ "pods": { "namespaceSelector": namespace_selector(dice), "podSelector": selector(dice) } }),
    }
}

fn cnp_protocol(dice: &mut Dice, named: bool) -> Value {
    let which = dice.one(&["tcp", "udp", "sctp"]);
    match dice.below(if named { 5 } else { 4 }) {
        0 | 1 => json!({ which: { "destinationPort": { "number": dice.one(&[80, 81, 53]) } } }),
        2 => json!({ which: { "destinationPort": { "range": { "start": 53, "end": dice.one(&[80, 443]) } } } }),
        _ if dice.slips() => dice
            .one(&[
                r#"{"tcp":{"destinationPort":{"number":0}}}"#,
                r#"{"tcp":{"destinationPort":{"number":65536}}}"#,
                r#"{"udp":{"destinationPort":{"range":{"start":80,"end":80}}}}"#,
                r#"{"udp":{"destinationPort":{"range":{"start":80,"end":53}}}}"#,
                r#"{"tcp":{"destinationPort":{"number":80,"range":{"start":53,"end":80}}}}"#,
                r#"{"tcp":{"destinationPort":{}}}"#,
                r#"{"tcp":{}}"#,
                r#"{"tcp":{"destinationPort":{"number":80}},"udp":{"destinationPort":{"number":80}}}"#,
                r#"{"destinationNamedPort":"web","tcp":{"destinationPort":{"number":80}}}"#,
                r#"{"destinationNamedPort":""}"#,
                r#"{"destinationNamedPort":"80"}"#,
                r#"{"destinationNamedPort":"web-and-more-web"}"#,
                r#"{"destinationNamedPort":"web"}"#,
                r#"{}"#,
            ])
            .parse()
            .unwrap(),
        3 if dice.below(4) == 0 => json!({ "quic": {} }),
        3 => json!({ which: { "destinationPort": { "number": 80 } } }),
        _ => json!({ "destinationNamedPort": dice.one(&["web", "dns"]) }),
    }
}

fn cnp_rule(dice: &mut Dice, ingress: bool) -> Value {
    let action = if dice.slips() { "Log" } else { dice.one(&["Accept", "Deny", "Pass"]) };
    let mut by_pod_alone = true;
    let mut peers = vec![cnp_pods(dice)];
    for _ in 0..dice.below(3) {
        peers.push(match dice.below(8) {
            _ if dice.slips() => match dice.below(5) {
                0 if !ingress => json!({ "namespaces": selector(dice), "domainNames": ["example.org"] }),
                0 => json!({ "namespaces": selector(dice), "pods": {} }),
                1 => json!({ "domainNames": ["example.org"] }),
                2 => json!({ "networks": [] }),
                3 => json!({ "networks": ["10.0.0.0/16", "there"] }),
                _ => json!({ "networks": null, "nodes": null, "namespaces": namespace_selector(dice) }),
            },
            0 => json!({ "asteroids": {} }),
            1 if !ingress => json!({ "nodes": selector(dice) }),
            2 | 3 if !ingress => {
                json!({ "networks": [dice.one(&["0.0.0.0/0", "10.0.0.0/16", "::/0", "fd00::/64", "192.0.2.7/32"])] })
            }
            4 if !ingress && action == "Accept" => json!({ "domainNames": ["example.org"] }),
            _ => cnp_pods(dice),
        });
        // The other way round now and then: named ports are for pods alone (P-108).
        by_pod_alone &=
            dice.slips() || peers.last().is_some_and(|it| it.get("namespaces").is_some() || it.get("pods").is_some());
    }
    if dice.below(3) == 0 {
        peers.remove(0);
    }
    if peers.is_empty() && !dice.slips() {
        peers.push(cnp_pods(dice));
    }
    let mut rule = json!({ "action": action, if ingress { "from" } else { "to" }: peers });
    if dice.below(2) == 0 {
        let mut protocols = vec![cnp_protocol(dice, by_pod_alone)];
        if dice.below(2) == 0 {
            protocols.push(cnp_protocol(dice, by_pod_alone));
        }
        rule["protocols"] = protocols.into();
    }
    rule
}

pub fn cluster_policy(dice: &mut Dice, name: &str) -> Value {
    let tier = if dice.slips() { "Boss" } else { dice.one(&["Admin", "Baseline"]) };
    let priority = if dice.slips() { 1001 } else { dice.below(4) };
    let mut spec = json!({ "tier": tier, "priority": priority, "subject": cnp_pods(dice) });
    if dice.slips() {
        spec["subject"] = if dice.below(2) == 0 { json!({}) } else { json!({ "namespaces": {}, "pods": {} }) };
    }
    if dice.below(4) > 0 {
        spec["ingress"] = dice.times(4, |dice| cnp_rule(dice, true));
    }
    if dice.below(4) > 0 {
        spec["egress"] = dice.times(4, |dice| cnp_rule(dice, false));
    }
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": { "name": name, "annotations": audit(dice) }, "spec": spec,
    })
}
