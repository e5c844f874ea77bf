//! A NetworkPolicy read from its manifest (P-001 … P-027).
//!
//! Owns the defaults and what an API server checks. A rule allows, so what in it cannot be worked with matches nothing, is
//! said, and leaves the rest as it is: a slip of the pen must not open what the object is there to close. An object whose
//! subjects are not known cannot be used at all. Where a type is wrong, each part is read by itself.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};
use tidegate_api::resource::{Action, PolicyPort, PortMatch, Tier};

use super::piecewise::{Pieces, Whole, annotations, stand_in, whole};
use super::{Invalid, port, port_name, protocol, selector, typed};
use crate::model::Name;
use crate::model::policy::{Namespaces, Peer, Pods, Policy, PolicyKey, PolicyKind, Rule};
use crate::model::selector::Selector;

/// Most exceptions of one block: an API server's object has room for some tens of thousands.
const EXCEPT_MAX: usize = 65_536;

/// Annotation of a policy that is to decide nothing and to count what it would deny.
pub(crate) const AUDIT: &str = "tidegate.io/audit";

/// Takes down what is closed instead of read.
pub(super) type Complain<'a> = &'a mut dyn FnMut(Invalid);

/// Reads one NetworkPolicy as it was written. `unknown` gets fields that its kind does not have: whatever has such a field
/// matches nothing.
///
/// # Errors
/// When something has a wrong type, or it cannot be told which pods it is about. If that can, something stands in that
/// isolates them and accepts what can be read.
pub(super) fn read_value(name: &Name, value: &Value, unknown: Option<&mut Vec<String>>) -> Result<Policy, Invalid> {
    let strict = unknown.is_some();
    let whole = match whole(value, unknown, &["ingress", "egress"]) {
        Ok(whole) => whole,
        Err(error) => return Err(stand_in(error, piecewise(name, value, strict))),
    };
    let (Whole::Read(object) | Whole::StrangeRules(object)) = &whole;
    match (mistake(object).filter(|_| strict), &whole) {
        (Some(error), _) => Err(stand_in(error, piecewise(name, value, strict))),
        (None, Whole::Read(object)) => read(name, object),
        (None, Whole::StrangeRules(_)) => {
            piecewise(name, value, strict).ok_or_else(|| Invalid::new("spec", "cannot be read"))
        }
    }
}

/// What is right by its type, and leaves it open for which direction the policy is meant, or for whom: an API server, which
/// refuses it or gives it a meaning that nobody writes down on purpose, has not seen it.
fn mistake(object: &api::NetworkPolicy) -> Option<Invalid> {
    let Some(spec) = &object.spec else { return Some(Invalid::new("spec", "missing")) };
    unknown_types(spec.policy_types.as_deref().unwrap_or_default()).next()
}

/// Entries of `policyTypes` that are none.
fn unknown_types(types: &[String]) -> impl Iterator<Item = Invalid> {
    let unknown = types.iter().enumerate().filter(|(_, it)| !matches!(it.as_str(), "Ingress" | "Egress"));
    unknown.map(|(index, other)| {
        Invalid::new(format!("spec.policyTypes[{index}]"), format!("{other:?} is not Ingress or Egress"))
    })
}

/// What can be read, part by part; nothing, if it cannot be told which pods it is about. Without a `spec` it is about all of
/// the namespace, as an API server would have it, and closed.
fn piecewise(name: &Name, value: &Value, strict: bool) -> Option<Policy> {
    let closed = json!({ "policyTypes": ["Ingress", "Egress"] });
    let spec = value.get("spec").filter(|spec| !spec.is_null()).unwrap_or(&closed);
    let pods = spec.as_object()?.get("podSelector");
    let mut pieces = Pieces::new(strict);
    if pods.is_some_and(|pods| !pieces.reads::<Option<LabelSelector>>(pods, "spec.podSelector")) {
        return None;
    }
    // A field beside the lists that nobody knows may be the selector, and may be to limit the rules.
    let strange = pieces.is_strange(spec, &["podSelector", "policyTypes", "ingress", "egress"], "spec");
    if strange && pods.is_none() {
        return None;
    }
    let one = spec.get("policyTypes").filter(|types| types.is_string()).map(|one| json!([one]));
    let types =
        pieces.list(one.as_ref().or_else(|| spec.get("policyTypes")), "spec.policyTypes", |_, entry, _| match entry {
            Value::String(text) => text.clone().into(),
            other => other.to_string().into(),
        });
    let mut rules = |field: &str, peers: &str| {
        pieces
            .list(spec.get(field), &format!("spec.{field}"), |pieces, rule, at| piece_of_rule(pieces, rule, peers, at))
    };
    let (ingress, egress) = (rules("ingress", "from"), rules("egress", "to"));
    let object = json!({
        "metadata": { "annotations": annotations(value, AUDIT) },
        "spec": {
            "podSelector": pods,
            "policyTypes": types,
            "ingress": ingress,
            "egress": egress,
        },
    });
    let mut policy = read(name, &typed(&object, None).ok()?).ok()?;
    if strange {
        policy.ingress.iter_mut().chain(&mut policy.egress).for_each(|rule| rule.peers = Some(Vec::new()));
    }
    policy.complaints = pieces.told(policy.complaints);
    Some(policy)
}

/// A rule in which what cannot be read is something that matches nothing.
fn piece_of_rule(pieces: &mut Pieces, rule: &Value, peers: &str, field: &str) -> Value {
    // A peer of no kind and a port without a name are closed when they are read.
    let (nobody, no_port) = (json!({}), json!({ "port": "" }));
    let closed = json!({ (peers): [nobody] });
    if !rule.is_object() {
        pieces.complaints.push(Invalid::new(field, "is no rule; it accepts nothing"));
        return closed;
    }
    if pieces.is_strange(rule, &[peers, "ports"], field) {
        return closed;
    }
    let listed = pieces.list(rule.get(peers), &format!("{field}.{peers}"), |pieces, peer, at| {
        match pieces.reads::<api::NetworkPolicyPeer>(peer, at) && peer.is_object() {
            true => peer.clone(),
            false => nobody.clone(),
        }
    });
    let ports = pieces.list(rule.get("ports"), &format!("{field}.ports"), |pieces, port, at| {
        match pieces.reads::<api::NetworkPolicyPort>(port, at) && port.is_object() {
            true => port.clone(),
            false => no_port.clone(),
        }
    });
    json!({ (peers): listed, "ports": ports })
}

/// Reads one NetworkPolicy.
///
/// # Errors
/// When it cannot be told which pods it is about.
pub(crate) fn read(name: &Name, object: &api::NetworkPolicy) -> Result<Policy, Invalid> {
    let mut complaints = Vec::new();
    let spec = object.spec.clone().unwrap_or_default();
    let pods = match &spec.pod_selector {
        Some(pods) => selector::read(pods, "spec.podSelector")?,
        None => Selector::default(),
    };
    let mut complain = |complaint: Invalid| complaints.push((complaint.field, complaint.message));
    let mut ingress = Vec::new();
    for (index, rule) in spec.ingress.iter().flatten().enumerate() {
        let field = format!("spec.ingress[{index}]");
        let peers = peers(rule.from.as_deref(), &name.namespace, &format!("{field}.from"), &mut complain);
        ingress.push(accept(peers, ports(rule.ports.as_deref(), &field, &mut complain)));
    }
    let mut egress = Vec::new();
    for (index, rule) in spec.egress.iter().flatten().enumerate() {
        let field = format!("spec.egress[{index}]");
        let peers = peers(rule.to.as_deref(), &name.namespace, &format!("{field}.to"), &mut complain);
        egress.push(accept(peers, ports(rule.ports.as_deref(), &field, &mut complain)));
    }
    // P-002: what is listed is meant; nothing listed means ingress, and egress if it has rules.
    let isolates = match spec.policy_types.as_deref().unwrap_or_default() {
        [] => [true, !egress.is_empty()],
        types => {
            let unknown: Vec<Invalid> = unknown_types(types).collect();
            // What is neither may be either.
            let isolates = |direction: &str| !unknown.is_empty() || types.iter().any(|it| it == direction);
            let isolates = ["Ingress", "Egress"].map(isolates);
            unknown.into_iter().for_each(&mut complain);
            isolates
        }
    };
    let key = PolicyKey { kind: PolicyKind::NetworkPolicy, namespace: name.namespace.clone(), name: name.name.clone() };
    let subjects = Pods { namespaces: Namespaces::One(name.namespace.clone()), pods };
    let annotations = object.metadata.annotations.as_ref();
    let audit =
        is_audit(annotations.and_then(|annotations| annotations.get(AUDIT)).map(String::as_str), &mut complaints);
    Ok(Policy { key, tier: Tier::Namespace, subjects, audit, isolates, ingress, egress, complaints })
}

/// Whether the annotation says so. What it says otherwise is a slip, and the policy is in force.
pub(super) fn is_audit(said: Option<&str>, complaints: &mut Vec<(String, String)>) -> bool {
    match said {
        Some("true") => true,
        None | Some("false") => false,
        Some(other) => {
            let message = format!("{other:?} is not \"true\" or \"false\"; the policy is in force");
            complaints.push((format!("metadata.annotations[{AUDIT}]"), message));
            false
        }
    }
}

fn accept(peers: Option<Vec<Peer>>, ports: Option<Vec<PolicyPort>>) -> Rule {
    Rule { name: String::new(), action: Action::Accept, peers, ports }
}

/// P-007: no list and an empty one are everybody.
fn peers(
    listed: Option<&[api::NetworkPolicyPeer]>,
    namespace: &str,
    field: &str,
    complain: Complain<'_>,
) -> Option<Vec<Peer>> {
    let listed = listed.filter(|listed| !listed.is_empty())?;
    let mut peers = Vec::new();
    for (index, entry) in listed.iter().enumerate() {
        match peer(entry, namespace, &format!("{field}[{index}]")) {
            Ok(peer) => peers.push(peer),
            Err(complaint) => complain(complaint),
        }
    }
    Some(peers)
}

/// P-008, P-020: a block of addresses, or pods.
fn peer(entry: &api::NetworkPolicyPeer, namespace: &str, field: &str) -> Result<Peer, Invalid> {
    let namespaces = entry.namespace_selector.as_ref();
    let namespaces = namespaces.map(|it| selector::read(it, &format!("{field}.namespaceSelector"))).transpose()?;
    let pods = entry.pod_selector.as_ref().map(|it| selector::read(it, &format!("{field}.podSelector"))).transpose()?;
    match (&entry.ip_block, namespaces, pods) {
        (Some(block), None, None) => network(block, &format!("{field}.ipBlock")),
        (Some(_), ..) => Err(Invalid::new(field, "has an ipBlock and selectors; it matches nothing")),
        (None, None, None) => Err(Invalid::new(field, "has nothing that this version knows; it matches nothing")),
        (None, namespaces, pods) => Ok(Peer::Pods(Pods {
            namespaces: namespaces.map_or_else(|| Namespaces::One(namespace.into()), Namespaces::Matching),
            pods: pods.unwrap_or_default(),
        })),
    }
}

fn network(block: &api::IPBlock, field: &str) -> Result<Peer, Invalid> {
    let prefix = cidr(&block.cidr, format!("{field}.cidr"))?;
    let listed = block.except.as_deref().unwrap_or_default();
    if listed.len() > EXCEPT_MAX {
        return Err(Invalid::new(
            format!("{field}.except"),
            format!("has over {EXCEPT_MAX} entries; the block matches nothing"),
        ));
    }
    let mut except = Vec::with_capacity(listed.len());
    for (index, text) in listed.iter().enumerate() {
        let field = format!("{field}.except[{index}]");
        let inner = cidr(text, field.clone())?;
        if !(prefix.contains(&inner) && inner.prefix_len() > prefix.prefix_len()) {
            return Err(Invalid::new(
                field,
                format!("{inner} is not strictly within {prefix}; the block matches nothing"),
            ));
        }
        except.push(inner);
    }
    Ok(Peer::Network(prefix, except))
}

/// A prefix, its host bits cleared, in the family that packets have.
pub(super) fn cidr(text: &str, field: String) -> Result<IpNet, Invalid> {
    let prefix: IpNet = text.trim().parse().map_err(|_| {
        Invalid::new(field.clone(), format!("{text:?} is not a prefix like 192.0.2.0/24 or 2001:db8::/32"))
    })?;
    if let IpAddr::V6(v6) = prefix.addr()
        && v6.to_ipv4_mapped().is_some()
        && prefix.prefix_len() >= 96
    {
        return Err(Invalid::new(field, format!("{text:?} is IPv4 written as IPv6; write it as IPv4")));
    }
    Ok(prefix.trunc())
}

/// P-007, P-023: no list and an empty one are every port of every protocol.
fn ports(listed: Option<&[api::NetworkPolicyPort]>, field: &str, complain: Complain<'_>) -> Option<Vec<PolicyPort>> {
    let listed = listed.filter(|listed| !listed.is_empty())?;
    let mut ports = Vec::new();
    for (index, entry) in listed.iter().enumerate() {
        match policy_port(entry, &format!("{field}.ports[{index}]")) {
            Ok(port) => ports.push(port),
            Err(complaint) => complain(complaint),
        }
    }
    Some(ports)
}

fn policy_port(entry: &api::NetworkPolicyPort, field: &str) -> Result<PolicyPort, Invalid> {
    let protocol = protocol(entry.protocol.as_deref(), format!("{field}.protocol"))?;
    let end = |port: &str| match entry.end_port {
        None => Ok(()),
        Some(_) => Err(Invalid::new(
            format!("{field}.endPort"),
            format!("needs a port number, and {port}; it matches nothing"),
        )),
    };
    let matched = match &entry.port {
        None => end("there is none").map(|()| PortMatch::ALL)?,
        Some(IntOrString::String(name)) => {
            end("there is a name")?;
            port_name(name, format!("{field}.port"))?;
            PortMatch::Named(name.clone())
        }
        Some(IntOrString::Int(number)) => {
            let first = port(*number, format!("{field}.port"))?;
            let last = entry.end_port.map_or(Ok(first), |end| port(end, format!("{field}.endPort")))?;
            if last < first {
                let message = format!("{last} is below the port {first}; it matches nothing");
                return Err(Invalid::new(format!("{field}.endPort"), message));
            }
            PortMatch::Range(first, last)
        }
    };
    Ok(PolicyPort { protocol, port: matched })
}
