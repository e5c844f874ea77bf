//! What an API server would have refused, told from the same raw JSON: the rules of the types' comments and of the
//! definition's validations, one by one.

use ipnet::IpNet;
use serde_json::Value;

/// A field that is there; `null` is not.
pub fn field<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    value.get(name).filter(|value| !value.is_null())
}

pub fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn count(value: &Value, names: &[&str]) -> usize {
    names.iter().filter(|name| field(value, name).is_some()).count()
}

/// A list or nothing.
fn is_list(value: &Value, name: &str) -> bool {
    field(value, name).is_none_or(Value::is_array)
}

/// Apimachinery's `IsQualifiedName`, and without a prefix its `IsValidLabelValue`.
fn label(text: &str) -> bool {
    let ends = [text.chars().next(), text.chars().last()];
    text.len() <= 63
        && text.chars().all(|it| it.is_ascii_alphanumeric() || "-_.".contains(it))
        && ends.iter().flatten().all(char::is_ascii_alphanumeric)
}

fn label_key(text: &str) -> bool {
    let (prefix, name) = text.rsplit_once('/').unwrap_or(("a", text));
    let small =
        |part: &str| !part.is_empty() && label(part) && !part.contains(['_', '.']) && part == part.to_lowercase();
    !name.is_empty() && label(name) && prefix.split('.').all(small)
}

/// P-011.
fn selector(value: &Value) -> bool {
    let labels = value.get("matchLabels").and_then(Value::as_object);
    value.is_object()
        && labels.into_iter().flatten().all(|(key, value)| label_key(key) && value.as_str().is_some_and(label))
        && list(value, "matchExpressions").iter().all(|entry| {
            let values = !list(entry, "values").is_empty();
            let fits = match text(entry, "operator") {
                "In" | "NotIn" => values,
                "Exists" | "DoesNotExist" => !values,
                _ => false,
            };
            let values = list(entry, "values");
            fits && label_key(text(entry, "key")) && values.iter().all(|value| value.as_str().is_some_and(label))
        })
}

fn maybe_selector(value: &Value, name: &str) -> bool {
    field(value, name).is_none_or(selector)
}

fn prefix(value: &Value) -> Option<IpNet> {
    value.as_str()?.parse().ok()
}

fn port(value: &Value) -> bool {
    value.as_u64().is_some_and(|port| (1..=65_535).contains(&port))
}

/// Whether a NetworkPolicy can be used at all: its types are right, and it can be told whom it is about, and for what.
pub fn network_policy(policy: &Value) -> bool {
    let spec = &policy["spec"];
    if !spec.is_object() || !list(spec, "policyTypes").iter().all(|it| it == "Ingress" || it == "Egress") {
        return false;
    }
    let typed = ["ingress", "egress", "policyTypes"].iter().all(|name| is_list(spec, name));
    typed && maybe_selector(spec, "podSelector")
}

/// Whether nothing in a NetworkPolicy needs a complaint.
pub fn network_policy_is_whole(policy: &Value) -> bool {
    let spec = &policy["spec"];
    let rules = |rules: &str, peers: &str| {
        list(spec, rules)
            .iter()
            .all(|rule| list(rule, peers).iter().all(np_peer) && list(rule, "ports").iter().all(np_port))
    };
    rules("ingress", "from") && rules("egress", "to")
}

/// What an API server takes for the name of a port (apimachinery's `IsValidPortName`).
fn port_name(name: &str) -> bool {
    let parts: Vec<&str> = name.split('-').collect();
    name.len() <= 15
        && parts.iter().all(|part| !part.is_empty() && part.chars().all(|it| matches!(it, 'a'..='z' | '0'..='9')))
        && name.contains(|it: char| it.is_alphabetic())
}

/// P-008, P-020: a block, or selectors, and something at all.
pub fn np_peer(peer: &Value) -> bool {
    let selectors = count(peer, &["podSelector", "namespaceSelector"]);
    let block = field(peer, "ipBlock");
    (selectors > 0) != block.is_some()
        && maybe_selector(peer, "podSelector")
        && maybe_selector(peer, "namespaceSelector")
        && block.is_none_or(|block| {
            prefix(&block["cidr"]).is_some_and(|cidr| {
                list(block, "except").iter().all(|except| {
                    prefix(except).is_some_and(|it| cidr.contains(&it) && it.prefix_len() > cidr.prefix_len())
                })
            })
        })
}

/// P-023.
pub fn np_port(entry: &Value) -> bool {
    let (first, last) = (field(entry, "port"), field(entry, "endPort"));
    field(entry, "protocol").is_none_or(|it| it == "TCP" || it == "UDP" || it == "SCTP")
        && match first {
            None => last.is_none(),
            Some(Value::String(name)) => last.is_none() && port_name(name),
            Some(first) => {
                port(first) && last.is_none_or(|last| port(last) && last.as_u64().unwrap() >= first.as_u64().unwrap())
            }
        }
}

/// Whether a ClusterNetworkPolicy can be used at all (P-101, P-105, P-111).
pub fn cluster_policy(policy: &Value) -> bool {
    let spec = &policy["spec"];
    let rules = |name: &str| {
        is_list(spec, name) && list(spec, name).len() <= 25 && list(spec, name).iter().all(Value::is_object)
    };
    matches!(text(spec, "tier"), "Admin" | "Baseline")
        && spec["priority"].as_u64().is_some_and(|priority| priority <= 1000)
        && count(&spec["subject"], &["namespaces", "pods"]) == 1
        && cnp_pods(&spec["subject"])
        && rules("ingress")
        && rules("egress")
}

/// Whether nothing in it needs a complaint.
pub fn cluster_policy_is_whole(policy: &Value) -> bool {
    let spec = &policy["spec"];
    let rules = list(spec, "ingress").iter().chain(list(spec, "egress"));
    let mut entries = rules.flat_map(|rule| list(rule, "protocols"));
    // The API takes any name, and no port has one of these.
    let named =
        entries.all(|entry| matches!(text(entry, "destinationNamedPort"), name if name.is_empty() || port_name(name)));
    named
        && list(spec, "ingress").iter().all(|rule| cnp_rule(rule, true))
        // P-107: names are not looked up, and that is said.
        && list(spec, "egress").iter().all(|rule| {
            cnp_rule(rule, false) && !list(rule, "to").iter().any(|peer| field(peer, "domainNames").is_some())
        })
}

fn cnp_pods(entry: &Value) -> bool {
    maybe_selector(entry, "namespaces")
        && field(entry, "pods").is_none_or(|pods| {
            ["namespaceSelector", "podSelector"].iter().all(|name| field(pods, name).is_some_and(selector))
        })
}

/// P-106 … P-109.
pub fn cnp_rule(rule: &Value, ingress: bool) -> bool {
    let peers = list(rule, if ingress { "from" } else { "to" });
    let by_pod_alone = peers.iter().all(|peer| count(peer, &["namespaces", "pods"]) > 0);
    let protocols = list(rule, "protocols");
    matches!(text(rule, "action"), "Accept" | "Deny" | "Pass")
        && field(rule, if ingress { "to" } else { "from" }).is_none()
        && (1..=25).contains(&peers.len())
        && peers.iter().all(|peer| cnp_peer(peer, ingress, rule["action"] == "Accept"))
        && field(rule, "protocols").is_none_or(|_| (1..=25).contains(&protocols.len()))
        && protocols.iter().all(|entry| cnp_protocol(entry, by_pod_alone))
}

fn cnp_peer(peer: &Value, ingress: bool, accept: bool) -> bool {
    let networks = list(peer, "networks");
    let known: &[&str] = match (ingress, accept) {
        (true, _) => &["namespaces", "pods"],
        (false, false) => &["namespaces", "pods", "networks", "nodes"],
        (false, true) => &["namespaces", "pods", "networks", "nodes", "domainNames"],
    };
    count(peer, &["namespaces", "pods", "networks", "nodes", "domainNames"]) == 1
        && count(peer, known) == 1
        && cnp_pods(peer)
        && maybe_selector(peer, "nodes")
        && field(peer, "networks").is_none_or(|_| (1..=25).contains(&networks.len()))
        && networks.iter().all(|it| prefix(it).is_some())
}

fn cnp_protocol(entry: &Value, by_pod_alone: bool) -> bool {
    let numbered = ["tcp", "udp", "sctp"].into_iter().filter_map(|name| field(entry, name));
    let numbered: Vec<&Value> = numbered.collect();
    match (numbered.as_slice(), field(entry, "destinationNamedPort")) {
        ([], Some(name)) => by_pod_alone && name != "",
        ([one], None) => field(one, "destinationPort").is_some_and(|ports| {
            let range = field(ports, "range");
            count(ports, &["number", "range"]) == 1
                && field(ports, "number").is_none_or(port)
                && range.is_none_or(|it| {
                    port(&it["start"]) && port(&it["end"]) && it["start"].as_u64() < it["end"].as_u64()
                })
        }),
        _ => false,
    }
}

/// Whether a Pod, a Namespace or a Node can be used; a Pod that runs has an address.
pub fn other(object: &Value) -> bool {
    if object.pointer("/status/phase").is_some_and(|phase| phase == "Running")
        && list(&object["status"], "podIPs").is_empty()
    {
        return false;
    }
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    let ports = list(&object["spec"], "containers").iter().flat_map(|container| list(container, "ports"));
    labels.is_none_or(|labels| labels.values().all(Value::is_string))
        && ports.filter(|entry| !text(entry, "name").is_empty()).all(|entry| {
            port(&entry["containerPort"])
                && field(entry, "protocol").is_none_or(|it| it == "TCP" || it == "UDP" || it == "SCTP")
        })
        && list(&object["status"], "podIPs").iter().all(|entry| text(entry, "ip").parse::<std::net::IpAddr>().is_ok())
}
