//! A ClusterNetworkPolicy read from its manifest (P-100 … P-111).
//!
//! The kind is young and its definition in a cluster may be newer than this reader. P-109 says what then holds: a rule that
//! accepts and cannot be read matches nothing, one that denies or passes denies everything. The same is done with whatever
//! else in a rule an API server would have refused. An object without a usable tier, priority or subject is not used.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use serde_json::{Value, json};
use tidegate_api::resource::{Action, PolicyPort, PortMatch, Protocol, Tier};

use super::networkpolicy::{AUDIT, Complain, cidr, is_audit};
use super::piecewise::{Pieces, Whole, annotations, stand_in, whole};
use super::{Invalid, port, port_name, selector, typed};

use crate::model::policy::{Namespaces, Peer, Pods, Policy, PolicyKey, PolicyKind, Rule};
use crate::model::selector::Selector;

/// Most rules of a direction, peers of a rule, protocols of a rule and networks of a peer (P-111).
const ENTRIES_MAX: usize = 25;
/// Largest priority number (P-101).
const PRIORITY_MAX: u16 = 1000;

/// The object as far as it is looked at.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    #[serde(default)]
    spec: Spec,
    /// Looked at for its annotations.
    #[serde(default)]
    metadata: Value,
    // Known, so that what is unknown can be told, and not looked at.
    #[serde(default, rename = "apiVersion")]
    _api_version: Value,
    #[serde(default, rename = "kind")]
    _kind: Value,
    #[serde(default, rename = "status")]
    _status: Value,
}

/// `spec` of the object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Spec {
    tier: String,
    priority: Option<i64>,
    subject: Subject,
    ingress: Option<Vec<Listed>>,
    egress: Option<Vec<Listed>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Subject {
    namespaces: Option<LabelSelector>,
    pods: Option<NamespacedPods>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NamespacedPods {
    namespace_selector: Option<LabelSelector>,
    pod_selector: Option<LabelSelector>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Listed {
    name: String,
    action: String,
    from: Option<Vec<ListedPeer>>,
    to: Option<Vec<ListedPeer>>,
    protocols: Option<Vec<ListedProtocol>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListedPeer {
    namespaces: Option<LabelSelector>,
    pods: Option<NamespacedPods>,
    nodes: Option<LabelSelector>,
    networks: Option<Vec<String>>,
    domain_names: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListedProtocol {
    tcp: Option<ListedPorts>,
    udp: Option<ListedPorts>,
    sctp: Option<ListedPorts>,
    destination_named_port: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListedPorts {
    destination_port: Option<ListedPort>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ListedPort {
    number: Option<i32>,
    range: Option<ListedRange>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ListedRange {
    start: i32,
    end: i32,
}

impl ListedPeer {
    /// Known kinds of peers that it is; one, if it is right.
    fn kinds(&self) -> usize {
        let set = [
            self.namespaces.is_some(),
            self.pods.is_some(),
            self.nodes.is_some(),
            self.networks.is_some(),
            self.domain_names.is_some(),
        ];
        set.iter().filter(|set| **set).count()
    }
}

/// Reads one ClusterNetworkPolicy as it was written. `unknown` gets fields that its kind does not have: a rule with such a
/// field is closed (P-109).
///
/// # Errors
/// As [`read`], and when something has a wrong type. If tier, priority and subjects can be told, something stands in whose
/// rules are closed where they cannot be read.
pub(super) fn read_value(name: &str, value: &Value, unknown: Option<&mut Vec<String>>) -> Result<Policy, Invalid> {
    let strict = unknown.is_some();
    let error = match whole(value, unknown, &["ingress", "egress"]) {
        Ok(Whole::Read(object)) => return read(name, &object),
        Ok(Whole::StrangeRules(_)) => Invalid::new("spec", "cannot be read"),
        Err(error) => return Err(stand_in(error, piecewise(name, value, strict))),
    };
    piecewise(name, value, strict).ok_or(error)
}

/// What can be read, rule by rule; nothing without tier, priority and subjects.
fn piecewise(name: &str, value: &Value, strict: bool) -> Option<Policy> {
    let spec = value.get("spec")?;
    let mut pieces = Pieces::new(strict);
    let subject = spec.get("subject").filter(|subject| pieces.reads::<Subject>(subject, "spec.subject"))?;
    let strange = pieces.is_strange(spec, &["tier", "priority", "subject", "ingress", "egress"], "spec");
    let mut rules = |field: &str| {
        pieces.list(spec.get(field), &format!("spec.{field}"), |pieces, rule, at| {
            match !strange && rule.is_object() && pieces.reads::<Listed>(rule, at) {
                true => rule.clone(),
                // Without peers it is closed when it is read.
                false => {
                    let text = |field: &str| rule.get(field).and_then(Value::as_str).unwrap_or_default();
                    json!({ "name": text("name"), "action": text("action") })
                }
            }
        })
    };
    let (ingress, egress) = (rules("ingress"), rules("egress"));
    let object = json!({
        "metadata": { "annotations": annotations(value, AUDIT) },
        "spec": {
            "tier": spec.get("tier"),
            "priority": spec.get("priority"),
            "subject": subject,
            "ingress": ingress,
            "egress": egress,
        },
    });
    let mut policy = read(name, &typed(&object, None).ok()?).ok()?;
    policy.complaints = pieces.told(policy.complaints);
    Some(policy)
}

/// Reads one ClusterNetworkPolicy.
///
/// # Errors
/// When its tier, priority or subjects cannot be told, or it has more rules than the API allows.
pub(crate) fn read(name: &str, object: &Manifest) -> Result<Policy, Invalid> {
    let spec = &object.spec;
    let priority = spec.priority.ok_or_else(|| Invalid::new("spec.priority", "missing"))?;
    let priority = u16::try_from(priority).ok().filter(|priority| *priority <= PRIORITY_MAX);
    let priority = priority.ok_or_else(|| Invalid::new("spec.priority", format!("is not 0 to {PRIORITY_MAX}")))?;
    let tier = match spec.tier.as_str() {
        "Admin" => Tier::Admin(priority),
        "Baseline" => Tier::Baseline(priority),
        other => return Err(Invalid::new("spec.tier", format!("{other:?} is not Admin or Baseline"))),
    };
    let subjects = match (&spec.subject.namespaces, &spec.subject.pods) {
        (Some(namespaces), None) => of_namespaces(namespaces, "spec.subject.namespaces")?,
        (None, Some(pods)) => of_pods(pods, "spec.subject.pods")?,
        _ => return Err(Invalid::new("spec.subject", "needs one of namespaces and pods")),
    };
    let mut complaints = Vec::new();
    let mut complain = |complaint: Invalid| complaints.push((complaint.field, complaint.message));
    let ingress = rules(spec.ingress.as_deref(), true, &mut complain)?;
    let egress = rules(spec.egress.as_deref(), false, &mut complain)?;
    let key = PolicyKey { kind: PolicyKind::ClusterNetworkPolicy, namespace: String::new(), name: name.into() };
    let said = object.metadata.get("annotations").and_then(|annotations| annotations.get(AUDIT));
    let audit = is_audit(said.and_then(Value::as_str), &mut complaints);
    Ok(Policy { key, tier, subjects, audit, isolates: [false; 2], ingress, egress, complaints })
}

fn rules(listed: Option<&[Listed]>, ingress: bool, complain: Complain<'_>) -> Result<Vec<Rule>, Invalid> {
    let listed = listed.unwrap_or_default();
    let direction = if ingress { "spec.ingress" } else { "spec.egress" };
    if listed.len() > ENTRIES_MAX {
        return Err(Invalid::new(direction, format!("has {} rules; {ENTRIES_MAX} are allowed", listed.len())));
    }
    let rules = listed.iter().enumerate().map(|(index, rule)| {
        let field = format!("{direction}[{index}]");
        let action = match rule.action.as_str() {
            "Accept" => Ok(Action::Accept),
            "Deny" => Ok(Action::Deny),
            "Pass" => Ok(Action::Pass),
            other => Err(Invalid::new(format!("{field}.action"), format!("{other:?} is not Accept, Deny or Pass"))),
        };
        let read = action.clone().and_then(|action| read_rule(rule, action, ingress, &field, complain));
        read.unwrap_or_else(|complaint| {
            let closed = closed(&rule.name, action.unwrap_or(Action::Deny));
            let instead =
                if closed.action == Action::Accept { "the rule accepts nothing" } else { "the rule denies everything" };
            complain(Invalid::new(complaint.field, format!("{}: {instead}", complaint.message)));
            closed
        })
    });
    Ok(rules.collect())
}

/// What a rule is that cannot be read (P-109).
fn closed(name: &str, action: Action) -> Rule {
    match action {
        Action::Accept => Rule { name: name.into(), action, peers: Some(Vec::new()), ports: None },
        Action::Deny | Action::Pass => Rule { name: name.into(), action: Action::Deny, peers: None, ports: None },
    }
}

fn read_rule(
    rule: &Listed,
    action: Action,
    ingress: bool,
    field: &str,
    complain: Complain<'_>,
) -> Result<Rule, Invalid> {
    let [(which, listed), (other, none)] = match ingress {
        true => [("from", &rule.from), ("to", &rule.to)],
        false => [("to", &rule.to), ("from", &rule.from)],
    };
    if none.is_some() {
        return Err(Invalid::new(format!("{field}.{other}"), "is no field of a rule of this direction"));
    }
    let field_peers = format!("{field}.{which}");
    let listed = listed.as_deref().unwrap_or_default();
    // P-108: unlike in a NetworkPolicy, nobody listed is not everybody.
    bounded(listed.len(), &field_peers)?;
    let mut peers = Vec::new();
    for (index, entry) in listed.iter().enumerate() {
        let field = format!("{field_peers}[{index}]");
        let unsupported = entry.domain_names.is_some() && action == Action::Accept && !ingress && entry.kinds() == 1;
        match peer(entry, ingress, &field, &mut peers) {
            // P-107: names are for rules that accept, and what is behind them is not known here.
            Err(complaint) if unsupported => {
                complain(Invalid::new(complaint.field, "names are not looked up here; it matches nothing"))
            }
            read => read?,
        }
    }
    // P-108: names of domains are no pods either.
    let by_pod_alone = listed.iter().all(|entry| entry.namespaces.is_some() || entry.pods.is_some());
    let ports = match &rule.protocols {
        None => None,
        Some(listed) => {
            bounded(listed.len(), &format!("{field}.protocols"))?;
            let mut ports = Vec::new();
            for (index, entry) in listed.iter().enumerate() {
                let field = format!("{field}.protocols[{index}]");
                protocol(entry, by_pod_alone, &field, &mut ports)?;
                // The API takes any name here, whether a port can have it or not.
                if let Some(name) = named_port(entry)
                    && let Err(complaint) = port_name(name, format!("{field}.destinationNamedPort"))
                {
                    complain(complaint);
                }
            }
            Some(ports)
        }
    };
    Ok(Rule { name: rule.name.clone(), action, peers: Some(peers), ports })
}

fn bounded(entries: usize, field: &str) -> Result<(), Invalid> {
    match entries {
        1..=ENTRIES_MAX => Ok(()),
        0 => Err(Invalid::new(field, "needs an entry")),
        more => Err(Invalid::new(field, format!("has {more} entries; {ENTRIES_MAX} are allowed"))),
    }
}

fn peer(entry: &ListedPeer, ingress: bool, field: &str, peers: &mut Vec<Peer>) -> Result<(), Invalid> {
    if entry.kinds() > 1 {
        return Err(Invalid::new(field, "has more than one kind of peer"));
    }
    match entry {
        ListedPeer { namespaces: Some(it), .. } => {
            peers.push(Peer::Pods(of_namespaces(it, &format!("{field}.namespaces"))?));
        }
        ListedPeer { pods: Some(it), .. } => peers.push(Peer::Pods(of_pods(it, &format!("{field}.pods"))?)),
        // P-106: in ingress these are as unknown as any other.
        ListedPeer { nodes: Some(it), .. } if !ingress => {
            peers.push(Peer::Nodes(selector::read(it, &format!("{field}.nodes"))?));
        }
        ListedPeer { networks: Some(it), .. } if !ingress => {
            bounded(it.len(), &format!("{field}.networks"))?;
            for (index, text) in it.iter().enumerate() {
                peers.push(Peer::Network(cidr(text, format!("{field}.networks[{index}]"))?, Vec::new()));
            }
        }
        _ => {
            let listed = [
                ("nodes", entry.nodes.is_some()),
                ("networks", entry.networks.is_some()),
                ("domainNames", entry.domain_names.is_some()),
            ];
            return Err(match listed.into_iter().find(|(_, is_there)| *is_there) {
                Some((name, _)) if ingress => {
                    let message = "is no peer of ingress: this kind cannot name who is outside the cluster there, a \
                                   NetworkPolicy or GatewayPolicy can";
                    Invalid::new(format!("{field}.{name}"), message)
                }
                Some((name, _)) => Invalid::new(format!("{field}.{name}"), "is no peer of a rule with this action"),
                None => Invalid::new(field, "has nothing that this version knows"),
            });
        }
    }
    Ok(())
}

fn of_namespaces(namespaces: &LabelSelector, field: &str) -> Result<Pods, Invalid> {
    let namespaces = Namespaces::Matching(selector::read(namespaces, field)?);
    Ok(Pods { namespaces, pods: Selector::default() })
}

fn of_pods(pods: &NamespacedPods, field: &str) -> Result<Pods, Invalid> {
    // The API demands both, so that nobody means all namespaces who has forgotten them.
    let demanded = |selector: &Option<LabelSelector>, name: &str| {
        let field = format!("{field}.{name}");
        selector.as_ref().map_or_else(|| Err(Invalid::new(&field, "missing")), |it| selector::read(it, &field))
    };
    Ok(Pods {
        namespaces: Namespaces::Matching(demanded(&pods.namespace_selector, "namespaceSelector")?),
        pods: demanded(&pods.pod_selector, "podSelector")?,
    })
}

/// The name of a port; an empty one is none.
fn named_port(entry: &ListedProtocol) -> Option<&str> {
    entry.destination_named_port.as_deref().filter(|name| !name.is_empty())
}

/// P-108: one protocol with its ports, or a name whatever the protocol.
fn protocol(
    entry: &ListedProtocol,
    by_pod_alone: bool,
    field: &str,
    ports: &mut Vec<PolicyPort>,
) -> Result<(), Invalid> {
    let with = |ports: &Option<ListedPorts>, protocol, name| ports.clone().map(|it| (it, protocol, name));
    let listed = [
        with(&entry.tcp, Protocol::Tcp, "tcp"),
        with(&entry.udp, Protocol::Udp, "udp"),
        with(&entry.sctp, Protocol::Sctp, "sctp"),
    ];
    let mut listed = listed.into_iter().flatten();
    match (listed.next(), listed.next(), named_port(entry)) {
        (Some((it, protocol, name)), None, None) => {
            // The API has no such entry without ports: what it says is not known here.
            let unknown = || Invalid::new(format!("{field}.{name}"), "has nothing that this version knows");
            let it = it.destination_port.ok_or_else(unknown)?;
            let matched = numbers(&it, &format!("{field}.{name}.destinationPort"))?;
            ports.push(PolicyPort { protocol, port: matched });
            Ok(())
        }
        (None, _, Some(name)) => {
            if !by_pod_alone {
                let message = "only pods have named ports, and the rule has other peers";
                return Err(Invalid::new(format!("{field}.destinationNamedPort"), message));
            }
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                ports.push(PolicyPort { protocol, port: PortMatch::Named(name.into()) });
            }
            Ok(())
        }
        (None, ..) => Err(Invalid::new(field, "has nothing that this version knows")),
        _ => Err(Invalid::new(field, "has more than one kind of protocol")),
    }
}

fn numbers(it: &ListedPort, field: &str) -> Result<PortMatch, Invalid> {
    match (it.number, &it.range) {
        (Some(number), None) => port(number, format!("{field}.number")).map(|port| PortMatch::Range(port, port)),
        (None, Some(range)) => {
            let first = port(range.start, format!("{field}.range.start"))?;
            let last = port(range.end, format!("{field}.range.end"))?;
            match first < last {
                true => Ok(PortMatch::Range(first, last)),
                false => Err(Invalid::new(format!("{field}.range"), format!("{first} is not below {last}"))),
            }
        }
        _ => Err(Invalid::new(field, "needs one of number and range")),
    }
}
