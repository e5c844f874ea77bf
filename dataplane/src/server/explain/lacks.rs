//! What a packet lacks to get through, as objects and the kernel have it.
//!
//! A worker tells where a packet ends and knows rows; which endpoints are not ready, whom a policy accepts, what the kernel
//! says of a neighbour and how much of a quota is held stands with the compiler or with all workers together. This puts
//! object, value and what is needed behind the story. Refuses to guess: of what is not known nothing is said.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tidegate_api::explain::{Explanation, Step, Verdict};
use tidegate_api::resource::{
    Body, Kind, Policy, PolicyPeer, PolicyPort, PolicyRule, PortMatch, Protocol, Resource, Service, ServicePort,
};

use super::WorkerQuery;
use crate::compile::thread::{Handle, View};
use crate::compile::{mapped_ip, tunnel};
use crate::drops::DropReason;
use crate::explain::envelope::NoFrame;
use crate::kernel::NeighbourKey;
use crate::kernel::once::{self, Rule};
use crate::mailbox::EgressUse;
use crate::table::Family;
use crate::table::egress::PortClass;
use crate::table::route::RouteTarget;
use crate::table::tunnel::TunnelRow;

/// Endpoints, rules, peers or pods that are named; of more, how many there are.
pub(super) const NAMED_MAX: usize = 4;

/// Puts what is missing behind the steps of `explanation`. `view` has the Services.
///
/// # Errors
/// Who has not answered, for people.
pub fn tell(
    view: &View,
    compiler: &Handle,
    workers: &dyn WorkerQuery,
    explanation: &mut Explanation,
) -> Result<(), String> {
    let reason = match &explanation.verdict {
        Verdict::Dropped(reason) | Verdict::Answered { reason: Some(reason), .. } => reason.reason.as_str(),
        _ => "",
    };
    let is = |wanted: DropReason| reason == wanted.name();
    let mut found = match &explanation.verdict {
        Verdict::Waits { device, address } => neighbour(view, device, *address).into_iter().collect(),
        _ => endpoints(view, &explanation.steps, is(DropReason::NoLocalEndpoint)),
    };
    if is(DropReason::PolicyDeniedIngress) || is(DropReason::PolicyDeniedEgress) {
        found.extend(policy(compiler, &explanation.steps)?);
    }
    if is(DropReason::NoFrontend) {
        found.extend(frontends(view, &explanation.steps));
    }
    if is(DropReason::EgressPortsExhausted) || is(DropReason::EgressQuota) {
        let used = workers.egress().map_err(|error| error.to_string())?;
        found.extend(match is(DropReason::EgressQuota) {
            true => quota(view, &used, &explanation.steps),
            false => ports(&used, &explanation.steps),
        });
    }
    if is(DropReason::NoSource) {
        found.extend(super::taken::sources(view, compiler, &explanation.steps)?);
    }
    if is(DropReason::EgressNoAddress) {
        found.extend(super::taken::egress(view, compiler, &explanation.steps)?);
    }
    if is(DropReason::NoTunnel) {
        let gateways = compiler.view(Some(Kind::Gateway)).map_err(|error| error.to_string())?.objects;
        found.extend(tunnel_of(view, &explanation.steps).map(|row| end(view, &gateways, row)).unwrap_or_default());
    }
    if is(DropReason::NoRoute) {
        // Without the rules the routes are still worth telling.
        let rules = once::foreign_rules().unwrap_or_default();
        found.extend(routes(view, &explanation.steps, &rules));
    }
    explanation.steps.extend(found);
    Ok(())
}

pub(super) fn lacks(what: String, found: String, needed: impl Into<String>) -> Step {
    Step::Lacks { what, found, needed: needed.into() }
}

/// Some names, and how many more there are.
fn some(names: impl IntoIterator<Item = String>) -> String {
    let mut names: Vec<String> = names.into_iter().collect();
    let more = names.len().saturating_sub(NAMED_MAX);
    names.truncate(NAMED_MAX);
    if more > 0 {
        names.push(format!("{more} more"));
    }
    names.join(", ")
}

/// The next hop whose link-layer address is being asked for.
fn neighbour(view: &View, device: &str, address: IpAddr) -> Option<Step> {
    let ifindex = view.tables.devices.rows().find(|(_, row)| *row.name == *device)?.1.ifindex;
    let underlay = mapped_ip(address);
    let tunnel = view.tables.tunnels.rows().find(|(_, row)| row.live && row.underlay == underlay);
    let who = tunnel.map(|(_, row)| format!(", which is node {}", row.name)).unwrap_or_default();
    let known = view.neighbours.get(&NeighbourKey { ifindex, address });
    let state = known.map_or_else(
        || "the kernel has not asked yet".to_owned(),
        |known| format!("the kernel asks for it and says {}", known.state_name()),
    );
    let asked = if address.is_ipv4() { "ARP" } else { "neighbour discovery" };
    Some(lacks(
        format!("MAC of next hop {address}{who}, on {device}"),
        format!("none, {state}"),
        format!("an answer to {asked}"),
    ))
}

/// Where the packet was to go: what it is translated to, else the endpoint that has it, else whom it is to.
fn target(steps: &[Step]) -> Option<IpAddr> {
    let by = |address: fn(&Step) -> Option<IpAddr>| steps.iter().rev().find_map(address);
    let translated = by(|step| match step {
        Step::Translated { destination, .. } => Some(destination.ip()),
        _ => None,
    });
    let endpoint = || {
        by(|step| match step {
            Step::Backend { address, .. } => Some(*address),
            _ => None,
        })
    };
    let asked = || {
        by(|step| match step {
            Step::Packet { destination, .. } => Some(*destination),
            _ => None,
        })
    };
    translated.or_else(endpoint).or_else(asked)
}

/// The tunnel that it was to go through: that of the endpoint's prefix, or of the node itself.
fn tunnel_of<'v>(view: &'v View, steps: &[Step]) -> Option<&'v TunnelRow> {
    let (tables, address) = (&view.tables, mapped_ip(target(steps)?));
    let by_prefix = match tables.routes.lookup(&address).map(|row| &row.target) {
        Some(RouteTarget::Tunnel(id)) => tables.tunnels.row(*id),
        _ => None,
    };
    by_prefix.or_else(|| tables.tunnels.rows().map(|(_, row)| row).find(|row| row.underlay == address))
}

/// Why nothing can be sent through a tunnel: its own end is not here, or there is no way to the other one.
fn end(view: &View, gateways: &[Arc<Resource>], row: &TunnelRow) -> Vec<Step> {
    let mut found = Vec::new();
    if !row.live {
        found.extend(own_end(view, gateways, row.family));
    } else if row.next_hops.is_empty() {
        let address = tunnel::underlay_of(row);
        found.push(lacks(
            format!("way to node {}, {address}", row.name),
            tunnel::state_name(row, &view.tables.neighbours).to_owned(),
            format!("a route to {address} by a device of dataplane.interfaces that is up (ip route get {address})"),
        ));
    }
    let served = view.tables.devices.rows().map(|(_, row)| &*row.name);
    let down = served.filter(|name| view.down.iter().any(|down| down == name));
    found.extend(down.map(|name| {
        lacks(
            format!("device {name}"),
            "down, or without a carrier".to_owned(),
            format!("up (ip link set dev {name} up)"),
        )
    }));
    found
}

/// Why a packet cannot come as it was asked, and what its tunnel lacks.
///
/// # Errors
/// Who has not answered, for people.
pub fn without_frame(view: &View, compiler: &Handle, none: NoFrame) -> Result<String, String> {
    let gateways = compiler.view(Some(Kind::Gateway)).map_err(|error| error.to_string())?.objects;
    Ok(with_end(view, &gateways, none))
}

fn with_end(view: &View, gateways: &[Arc<Resource>], none: NoFrame) -> String {
    let row = none.tunnel.and_then(|id| view.tables.tunnels.row(id));
    let found = row.map(|row| end(view, gateways, row)).unwrap_or_default();
    found.into_iter().fold(none.message, |told, step| match step {
        Step::Lacks { what, found, needed } => format!("{told}; {what}: {found}; needed: {needed}"),
        _ => told,
    })
}

/// The address of the own VTEP of a family, where this machine does not have it.
pub(super) fn own_end(view: &View, gateways: &[Arc<Resource>], family: Family) -> Option<Step> {
    let (name, gateway) = gateways.iter().find_map(|resource| match &resource.body {
        Body::Gateway(gateway) => Some((&resource.name, gateway)),
        _ => None,
    })?;
    let (own, other) = match family {
        Family::V4 => (&gateway.vtep_v4, &gateway.vtep_v6),
        Family::V6 => (&gateway.vtep_v6, &gateway.vtep_v4),
    };
    let version = if family == Family::V4 { "IPv4" } else { "IPv6" };
    let holder = |address: IpAddr| view.addresses.iter().find(|(held, _)| held.addr() == address).map(|(_, name)| name);
    let Some(own) = own else {
        let what = format!("VTEP of gateway {name} over {version}");
        return Some(lacks(what, "none".to_owned(), "annotations of the overlay for that family at its Node"));
    };
    if holder(own.underlay).is_some() {
        return None;
    }
    // Both families of an underlay are on one device, as a rule.
    let device = other.as_ref().and_then(|other| holder(other.underlay)).map_or("DEVICE", String::as_str);
    Some(lacks(
        format!("VTEP of gateway {name} over {version}, {}", own.underlay),
        "on no device of this machine".to_owned(),
        format!("ip address add {}/LENGTH dev {device}", own.underlay),
    ))
}

/// Which way is missing, of those that the packet and its answers take.
fn routes(view: &View, steps: &[Step], rules: &[Rule]) -> Vec<Step> {
    let endpoint = steps.iter().rev().find_map(|step| match step {
        Step::Backend { address, node, pod, .. } => {
            let pod = if pod.is_empty() { String::new() } else { format!(", pod {pod}") };
            let node = if node.is_empty() { String::new() } else { format!(" on {node}") };
            Some((*address, format!("endpoint {address}{pod}{node}")))
        }
        _ => None,
    });
    let client = steps.iter().rev().find_map(|step| match step {
        Step::Flow { client, .. } => Some(client.ip()),
        Step::Packet { source, .. } => Some(*source),
        _ => None,
    });
    let asked = || target(steps).map(|address| (address, address.to_string()));
    let back = client.map(|address| (address, format!("client {address}")));
    let mut ways: Vec<(IpAddr, String)> = endpoint.or_else(asked).into_iter().collect();
    ways.extend(back);
    let devices = || some(view.tables.devices.rows().map(|(_, row)| row.name.to_string()));
    let mut found: Vec<Step> = ways
        .iter()
        .filter_map(|(address, who)| {
            let is = match view.tables.routes.lookup(&mapped_ip(*address)).map(|row| &row.target) {
                None => "none in the kernel's tables local and main",
                Some(RouteTarget::Blackhole) => "one that leads nowhere, or by none of the devices that are served",
                Some(RouteTarget::Local) => "to this machine itself",
                Some(RouteTarget::Tunnel(_) | RouteTarget::NextHops(_) | RouteTarget::Connected(_)) => return None,
            };
            let needed = format!("one in table main by a device that is up, of {} (ip route get {address})", devices());
            Some(lacks(format!("route to {who}"), is.to_owned(), needed))
        })
        .collect();
    let Some(is_v4) = ways.first().map(|(address, _)| address.is_ipv4()) else { return found };
    let rules = rules.iter().filter(|rule| rule.is_v4 == is_v4);
    let told = some(rules.map(|rule| format!("{}: {}", rule.priority, rule.text)));
    if !told.is_empty() {
        let what = format!("rules of policy routing (ip {} rule)", if is_v4 { "-4" } else { "-6" });
        found.push(lacks(what, told, "none: Tidegate follows the tables local and main alone"));
    }
    found
}

/// The Service that was asked for, where nobody can be chosen there.
fn endpoints(view: &View, steps: &[Step], is_local: bool) -> Vec<Step> {
    let asked = steps.iter().find_map(|step| match step {
        Step::Service { service, port, endpoints, .. } if is_local || *endpoints == 0 => Some((service, *port)),
        _ => None,
    });
    let packet = steps.iter().find_map(|step| match step {
        Step::Packet { protocol, destination, .. } => Some((*protocol, destination.is_ipv4())),
        _ => None,
    });
    let (Some((name, number)), Some((protocol, is_v4))) = (asked, packet) else { return Vec::new() };
    let resource = view.objects.iter().find(|resource| resource.name == *name);
    let Some(Body::Service(Service { ports, .. })) = resource.map(|resource| &resource.body) else { return Vec::new() };
    let is_it = |port: &&ServicePort| port.port == number && port.protocol.number() == protocol;
    let Some(port) = ports.iter().find(is_it) else { return Vec::new() };
    let family = if is_v4 { "IPv4" } else { "IPv6" };
    let which = if number == 0 { String::new() } else { format!(" port {number}") };
    let at = |address: IpAddr, node: &str| match node {
        "" => format!("{address} without a node"),
        node => format!("{address} on {node}"),
    };
    let serving = port.backends.iter().filter(|backend| backend.address.is_ipv4() == is_v4);
    let serving: Vec<String> = serving.map(|backend| at(backend.address, &backend.node)).collect();
    if is_local {
        let found =
            format!("{} serve, none of them has a node and is ready ({})", serving.len(), some(serving.clone()));
        let found = if serving.is_empty() { "none serves".to_owned() } else { found };
        let what = format!("{family} endpoints of {name}{which} that are local to a node");
        return vec![lacks(what, found, "1 that is ready and has a nodeName")];
    }
    let idle = port.not_serving.iter().filter(|endpoint| endpoint.address.is_ipv4() == is_v4);
    let idle: Vec<String> = idle.map(|endpoint| at(endpoint.address, &endpoint.node)).collect();
    let mut found = vec!["0 ready".to_owned()];
    if !serving.is_empty() {
        found.push(format!("{} draining ({})", serving.len(), some(serving)));
    }
    if !idle.is_empty() {
        found.push(format!("{} not ready ({})", idle.len(), some(idle)));
    }
    if found.len() == 1 {
        found.push("no other is known".to_owned());
    }
    vec![lacks(format!("{family} endpoints of {name}{which}"), found.join(", "), "1 ready")]
}

/// Which Services have the address that was asked, and at which ports.
fn frontends(view: &View, steps: &[Step]) -> Option<Step> {
    let (protocol, address, port) = steps.iter().find_map(|step| match step {
        Step::Packet { protocol, destination, destination_port, .. } => {
            Some((*protocol, *destination, (*destination_port)?))
        }
        _ => None,
    })?;
    let has_it = |service: &Service| {
        let lists = [&service.addresses, &service.external_addresses, &service.cluster_addresses];
        lists.iter().any(|list| list.contains(&address))
            || service.prefixes.iter().any(|prefix| prefix.contains(&address))
    };
    let is_node = |service: &Service| service.node_addresses.contains(&address);
    let at = |service: &Service| {
        let ports = service.ports.iter().filter_map(|port| {
            let number = if has_it(service) { Some(port.port) } else { port.node_port };
            number.map(|number| format!("{} {number}", port.protocol))
        });
        some(ports)
    };
    let names = view.objects.iter().filter_map(|resource| match &resource.body {
        Body::Service(service) if has_it(service) || is_node(service) => {
            Some((resource.name.as_str(), at(service))).filter(|(_, ports)| !ports.is_empty())
        }
        _ => None,
    });
    let names = some(names.map(|(name, ports)| format!("{name} at {ports}")));
    let found = if names.is_empty() { "no Service has the address".to_owned() } else { names };
    let asked = protocol_name(protocol).map_or_else(|| format!("protocol {protocol}"), |name| name.to_string());
    Some(lacks(format!("Service at {address} with port {asked} {port}"), found, "one with that port and protocol"))
}

/// The name of a protocol that Services have.
fn protocol_name(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.number() == number)
}

/// Whom the policy accepts that isolates the pod, and who it is.
fn policy(compiler: &Handle, steps: &[Step]) -> Result<Option<Step>, String> {
    let denied = steps.iter().rev().find_map(|step| match step {
        Step::Policy { direction, policy, rule: None, allowed: false, ends, .. } => {
            Some((direction.as_str(), policy, *ends))
        }
        _ => None,
    });
    let Some((direction, name, ends)) = denied else { return Ok(None) };
    let objects = |kind| compiler.view(Some(kind)).map(|view| view.objects).map_err(|error| error.to_string());
    let policies = objects(Kind::Policy)?;
    let Some(Body::Policy(policy)) = policies.iter().find(|each| each.name == *name).map(|each| &each.body) else {
        return Ok(None);
    };
    let (sets, pods) = (objects(Kind::IdentitySet)?, objects(Kind::Pod)?);
    Ok(accepted(policy, name, direction, ends, steps, &Names { sets: &sets, pods: &pods }))
}

/// Objects that have names for what rules speak of.
struct Names<'a> {
    sets: &'a [Arc<Resource>],
    pods: &'a [Arc<Resource>],
}

impl Names<'_> {
    /// Pods of a set.
    fn of_set(&self, set: &str) -> String {
        let set = self.sets.iter().find(|resource| resource.name == set);
        let members: BTreeSet<u32> = match set.map(|resource| &resource.body) {
            Some(Body::IdentitySet(set)) => set.identities.iter().copied().collect(),
            _ => BTreeSet::new(),
        };
        let is_member = |resource: &&Arc<Resource>| match &resource.body {
            Body::Pod(pod) => members.contains(&pod.identity),
            _ => false,
        };
        match some(self.pods.iter().filter(is_member).map(|resource| resource.name.clone())) {
            none if none.is_empty() => "pods of a selection that has none now".to_owned(),
            names => format!("pods {names}"),
        }
    }

    /// The pod that has an address.
    fn of_address(&self, address: IpAddr) -> Option<&str> {
        let has_it =
            |resource: &&Arc<Resource>| matches!(&resource.body, Body::Pod(pod) if pod.addresses.contains(&address));
        self.pods.iter().find(has_it).map(|resource| resource.name.as_str())
    }
}

/// Whom `policy` accepts, and what it met: `ends` as it sees them. Without these a node would pick the pod, and the packet's
/// own are told.
fn accepted(
    policy: &Policy,
    name: &str,
    direction: &str,
    ends: Option<(SocketAddr, SocketAddr)>,
    steps: &[Step],
    names: &Names<'_>,
) -> Option<Step> {
    let (protocol, came) = steps.iter().find_map(|step| match step {
        Step::Packet { protocol, source, destination, .. } => Some((*protocol, (*source, *destination))),
        _ => None,
    })?;
    let (source, destination) = ends.map_or(came, |(source, destination)| (source.ip(), destination.ip()));
    // Of other protocols a port is an identifier, which no rule is about.
    let port = match ends {
        None => ", and a node would pick the pod".to_owned(),
        Some((_, to)) => protocol_name(protocol).map(|name| format!(", {name} {}", to.port())).unwrap_or_default(),
    };
    let (rules, sides) = match direction {
        "ingress" => (&policy.ingress, "sources"),
        _ => (&policy.egress, "destinations"),
    };
    let accepted = match rules.as_slice() {
        [] => "none".to_owned(),
        rules => some(rules.iter().map(|rule| rule_text(rule, names))),
    };
    // Out of the overlay alone an address tells whose packet it is.
    let is_inside = steps.iter().any(|step| matches!(step, Step::Decapsulated { .. }));
    let pod = |address| names.of_address(address).map(|pod| format!(" (pod {pod})")).unwrap_or_default();
    let from = if is_inside { pod(source) } else { String::new() };
    Some(Step::Differs {
        what: format!("{sides} that {name} accepts"),
        tables: accepted,
        packet: format!("{source}{from} -> {destination}{}{port}", pod(destination)),
    })
}

/// What one rule matches.
fn rule_text(rule: &PolicyRule, names: &Names<'_>) -> String {
    let peer = |peer: &PolicyPeer| match peer {
        PolicyPeer::Set(set) => names.of_set(set),
        PolicyPeer::Network { prefix, except } if except.is_empty() => prefix.to_string(),
        PolicyPeer::Network { prefix, except } => {
            format!("{prefix} except {}", some(except.iter().map(ToString::to_string)))
        }
    };
    let port = |PolicyPort { protocol, port }: &PolicyPort| match port {
        PortMatch::Range(first, last) if first == last => format!("{protocol} {first}"),
        PortMatch::Range(first, last) => format!("{protocol} {first}-{last}"),
        PortMatch::Named(name) => format!("{protocol} {name}"),
    };
    let peers = match rule.peers.as_deref() {
        None => "everybody".to_owned(),
        Some([]) => "nobody".to_owned(),
        Some(peers) => some(peers.iter().map(peer)),
    };
    match rule.ports.as_deref() {
        None => peers,
        Some([]) => format!("{peers} at no port"),
        Some(ports) => format!("{peers} at pods' ports {}", some(ports.iter().map(port))),
    }
}

/// The pod, its policy, the address that it leaves with, and the class of its ports.
fn leaving(steps: &[Step]) -> Option<(IpAddr, Option<&str>, IpAddr, PortClass)> {
    let class = steps.iter().find_map(|step| match step {
        Step::Packet { protocol, .. } => PortClass::of(*protocol),
        _ => None,
    })?;
    steps.iter().find_map(|step| match step {
        Step::Egress { pod, policy, address, .. } => Some((*pod, policy.as_deref(), (*address)?, class)),
        _ => None,
    })
}

/// Ports of the external address, over all workers.
fn ports(used: &[EgressUse], steps: &[Step]) -> Option<Step> {
    let (_, _, address, class) = leaving(steps)?;
    let mapped = mapped_ip(address);
    let of_it = used.iter().flat_map(|used| &used.pools).filter(|(at, of, ..)| (*at, *of) == (mapped, class));
    let (mut held, mut all) = (0u64, 0u64);
    for (_, _, tally, given) in of_it {
        (held, all) = (held + u64::from(tally.used), all + u64::from(*given));
    }
    let what = format!("{} ports of external address {address}", class.name());
    Some(lacks(what, format!("{held} of {all} are in use or rest"), "one that is free, or another address"))
}

/// What the pod and its namespace hold, against what its policy allows.
fn quota(view: &View, used: &[EgressUse], steps: &[Step]) -> Option<Step> {
    let (pod, policy, ..) = leaving(steps)?;
    let policy = policy?;
    let tables = &view.tables;
    let (_, row) = tables.egress.policies().find(|(_, row)| *row.name == *policy)?;
    let own = tables.pods.pod(&mapped_ip(pod))?;
    let holders = || used.iter().flat_map(|used| &used.pods);
    let held: u64 = holders().filter(|(id, _)| *id == own.backend).map(|(_, holder)| u64::from(holder.held)).sum();
    let of_namespace = holders().filter(|(_, holder)| holder.namespace == own.namespace);
    let all: u64 = of_namespace.map(|(_, holder)| u64::from(holder.held)).sum();
    let told = |whose: String, held: u64, most: u32| {
        let needed = format!("fewer than {most}, the most that EgressPolicy {policy} allows");
        (held >= u64::from(most)).then(|| lacks(format!("ports of {whose}"), format!("{held} held"), needed))
    };
    let by_pod = told(format!("pod {pod}"), held, row.ports_per_pod_max);
    let namespace = || told(format!("the namespace of pod {pod}"), all, row.ports_per_namespace_max);
    by_pod.or_else(namespace)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tidegate_api::explain::Question;
    use tidegate_api::resource::{Backend, NotServing, TrafficPolicy};

    use super::*;
    use crate::compile::tests::{on_machine, update};
    use crate::explain::envelope;
    use crate::kernel::{Neighbour, nud};
    use crate::objects::tests::{full, gateway, named, peer, service};
    use crate::state::ports::{Holder, Tally};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn packet(protocol: u8, source: &str, destination: &str) -> Step {
        Step::Packet {
            protocol,
            source: ip(source),
            source_port: Some(40_000),
            destination: ip(destination),
            destination_port: Some(80),
            bytes: 40,
            ttl: 64,
            fragment: false,
        }
    }

    fn told(step: &Step) -> String {
        match step {
            Step::Lacks { what, found, needed } => format!("{what}: {found}; needed: {needed}"),
            Step::Differs { what, tables, packet } => format!("{what}: {tables} | {packet}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn endpoints_that_are_there_and_not_ready_are_named_with_their_nodes() {
        let on = |address: &str, node: &str, weight| Backend {
            address: ip(address),
            port: 8080,
            weight,
            local_weight: 0,
            node: node.into(),
            pod: String::new(),
        };
        for (v4, vip, pods) in [
            (true, "203.0.113.10", ["10.244.1.5", "10.244.2.5"]),
            (false, "2001:db8:f::10", ["fd00:10:244:1::5", "fd00:10:244:2::5"]),
        ] {
            let family = if v4 { "IPv4" } else { "IPv6" };
            let asked = |endpoints| Step::Service {
                service: "shop/web".into(),
                port: 80,
                kind: "vip".into(),
                mode: "fullnat".into(),
                scheduler: Default::default(),
                endpoints,
                affinity_s: 0,
                is_remembered: false,
            };
            let of = |backends: &[Backend], not_serving: Vec<NotServing>| {
                let mut body = service(&[vip], 80, backends);
                (body.ports[0].not_serving, body.ports[0].external_policy) = (not_serving, TrafficPolicy::Local);
                View { objects: vec![Arc::new(named("shop/web", "1", body))], ..View::default() }
            };
            let steps = |endpoints| [packet(6, "192.0.2.7", vip), asked(endpoints)];
            let says = |view: &View, is_local| {
                endpoints(view, &steps(0), is_local).iter().map(told).collect::<Vec<_>>().join("")
            };
            let idle = |node: &str| NotServing { address: ip(pods[1]), node: node.into() };
            // Of the other family nothing is told.
            let other = on(if v4 { "fd00::9" } else { "10.0.0.9" }, "w9", 0);
            let view = of(&[on(pods[0], "w1", 0), other], vec![idle("w2")]);
            assert_eq!(
                says(&view, false),
                format!(
                    "{family} endpoints of shop/web port 80: 0 ready, 1 draining ({} on w1), 1 not ready ({} on w2); \
                     needed: 1 ready",
                    pods[0], pods[1]
                )
            );
            assert!(says(&of(&[], vec![]), false).contains("0 ready, no other is known; needed: 1 ready"));
            let view = of(&[on(pods[0], "", 1)], vec![]);
            assert_eq!(
                says(&view, true),
                format!(
                    "{family} endpoints of shop/web port 80 that are local to a node: 1 serve, none of them has a \
                     node and is ready ({} without a node); needed: 1 that is ready and has a nodeName",
                    pods[0]
                )
            );
            assert!(says(&of(&[], vec![]), true).contains("local to a node: none serves; needed"));
            // Where there are some, or the Service is not known, nothing is said.
            assert_eq!(endpoints(&view, &steps(1), false), []);
            assert_eq!(endpoints(&View::default(), &steps(0), false), []);
        }
    }

    #[test]
    fn services_that_have_the_address_at_other_ports_are_named() {
        for vip in ["203.0.113.10", "2001:db8:f::10"] {
            let mut nodes = service(&[], 443, &[]);
            (nodes.node_addresses, nodes.ports[0].node_port) = (vec![ip(vip)], Some(30_443));
            let objects =
                [("shop/web", service(&[vip], 81, &[])), ("shop/nodes", nodes), ("shop/far", service(&[], 80, &[]))];
            let objects = objects.into_iter().map(|(name, body)| Arc::new(named(name, "1", body)));
            let view = View { objects: objects.collect(), ..View::default() };
            let says = |view: &View| told(&frontends(view, &[packet(6, "192.0.2.7", vip)]).unwrap());
            let what = format!("Service at {vip} with port TCP 80");
            let needed = "needed: one with that port and protocol";
            assert_eq!(says(&view), format!("{what}: shop/web at TCP 81, shop/nodes at TCP 30443; {needed}"));
            assert_eq!(says(&View::default()), format!("{what}: no Service has the address; {needed}"));
        }
    }

    #[test]
    fn a_neighbour_that_does_not_answer_is_named_with_the_kernels_word() {
        let (mut compiler, _) = on_machine();
        assert_eq!(
            update(&mut compiler, full(vec![named("gw", "1", gateway()), named("w1", "1", peer(1))])).rejected,
            []
        );
        let tables = compiler.tables().clone();
        let lan = tables.devices.rows().find(|(_, row)| &*row.name == "lan0").unwrap().1.ifindex;
        for (address, asked) in [("198.51.100.11", "ARP"), ("2001:db8:2::11", "neighbour discovery")] {
            let row = ip(address);
            let mut view = View { tables: tables.clone(), ..View::default() };
            let says = |view: &View| told(&neighbour(view, "lan0", row).unwrap());
            let name = format!("MAC of next hop {row}, which is node w1, on lan0: none");
            assert_eq!(says(&view), format!("{name}, the kernel has not asked yet; needed: an answer to {asked}"));
            let failed = Neighbour { mac: None, state: nud::FAILED, managed: true };
            view.neighbours = HashMap::from([(NeighbourKey { ifindex: lan, address: row }, failed)]);
            let words = "the kernel asks for it and says FAILED";
            assert_eq!(says(&view), format!("{name}, {words}; needed: an answer to {asked}"));
            assert_eq!(neighbour(&view, "lan9", row), None);
        }
        let stranger = told(&neighbour(&View { tables, ..View::default() }, "lan0", ip("198.51.100.99")).unwrap());
        assert!(stranger.starts_with("MAC of next hop 198.51.100.99, on lan0: none"), "{stranger}");
    }

    #[test]
    fn an_own_end_that_is_gone_and_a_way_that_is_none_are_named_with_the_command() {
        let lost = |is_lost: &dyn Fn(&crate::kernel::Address) -> bool, is_down: bool| {
            let (mut compiler, _) = on_machine();
            let objects = vec![named("gw", "1", gateway()), named("w1", "1", peer(1))];
            assert_eq!(update(&mut compiler, full(objects.clone())).rejected, []);
            let mut layout = compiler.facts().layout.clone();
            layout.addresses.retain(|entry| !is_lost(entry));
            if is_down {
                // Nor is there another way.
                layout.routes.retain(|route| route.prefix.prefix_len() > 0);
                layout.links.values_mut().filter(|link| link.name == "lan0").for_each(|link| link.up = false);
            }
            let addresses = layout.held().map(|held| (held.address, held.device.to_owned())).collect();
            let down = layout.links.values().filter(|link| !link.up).map(|link| link.name.clone()).collect();
            crate::compile::tests::layout(&mut compiler, layout);
            let view = View { tables: compiler.tables().clone(), addresses, down, ..View::default() };
            (view, objects.into_iter().map(Arc::new).collect::<Vec<_>>())
        };
        for (own, version, pod, node) in [
            ("198.51.100.1", "IPv4", "10.244.1.5", "198.51.100.11"),
            ("2001:db8:2::1", "IPv6", "fd00:10:244:1::5", "2001:db8:2::11"),
        ] {
            let says = |(view, objects): &(View, Vec<Arc<Resource>>), to: &str| {
                let steps = [packet(6, "192.0.2.7", to)];
                let row = tunnel_of(view, &steps).unwrap();
                end(view, objects, row).iter().map(told).collect::<Vec<_>>()
            };
            let gone = lost(&|entry| entry.address == ip(own), false);
            let expected = format!(
                "VTEP of gateway gw over {version}, {own}: on no device of this machine; needed: ip address add \
                 {own}/LENGTH dev lan0"
            );
            // To a pod through the tunnel, and to the node itself.
            assert_eq!(says(&gone, pod), [expected.as_str()]);
            assert_eq!(says(&gone, node), [expected.as_str()]);
            // Where the question cannot be asked because of it.
            let cannot = |(view, objects): &(View, Vec<Arc<Resource>>)| {
                let source: Vec<u8> = match ip(pod) {
                    IpAddr::V4(v4) => {
                        [&[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0][..], &v4.octets(), &[192, 0, 2, 7]].concat()
                    }
                    IpAddr::V6(v6) => [&[0x60, 0, 0, 0, 0, 0, 6, 64][..], &v6.octets(), &[0x20; 16]].concat(),
                };
                let node = Some("w1".to_owned());
                let question = Question { bytes: source, is_frame: false, device: None, node };
                envelope::frame(&view.tables, &question).map_err(|none| with_end(view, objects, none))
            };
            assert_eq!(cannot(&gone), Err(format!("this gateway has no VTEP of that family; {expected}")));

            let down = lost(&|_| false, true);
            assert_eq!(
                says(&down, pod),
                [
                    format!(
                        "way to node w1, {node}: no route; needed: a route to {node} by a device of \
                         dataplane.interfaces that is up (ip route get {node})"
                    ),
                    "device lan0: down, or without a carrier; needed: up (ip link set dev lan0 up)".to_owned(),
                ]
            );
            let refused = cannot(&down).unwrap_err();
            assert!(
                refused.starts_with(&format!("no device leads to node w1; way to node w1, {node}: no route; ")),
                "{refused}"
            );
            assert!(
                refused.ends_with("; device lan0: down, or without a carrier; needed: up (ip link set dev lan0 up)")
            );
            assert!(cannot(&lost(&|_| false, false)).is_ok());
            // Where all is well nothing is said, and nothing where no tunnel was to be taken.
            assert_eq!(says(&lost(&|_| false, false), pod), Vec::<String>::new());
            assert!(tunnel_of(&gone.0, &[packet(6, "192.0.2.7", "192.0.2.8")]).is_none());
            let family = if ip(own).is_ipv4() { Family::V4 } else { Family::V6 };
            let Body::Gateway(mut body) = gone.1[0].body.clone() else { panic!() };
            (body.vtep_v4, body.vtep_v6) = (None, None);
            let without = [Arc::new(named("gw", "2", body))];
            let words = own_end(&gone.0, &without, family).map(|step| told(&step)).unwrap();
            assert!(words.starts_with(&format!("VTEP of gateway gw over {version}: none; needed: ")), "{words}");
        }
    }

    #[test]
    fn a_route_that_is_missing_is_named_with_its_endpoint_and_rules_that_are_not_followed() {
        let (compiler, _) = on_machine();
        let mut tables = compiler.tables().clone();
        tables.routes = Default::default();
        let view = View { tables, ..View::default() };
        for (pod, client, is_v4) in [("10.99.2.11", "192.0.2.7", true), ("fd00:99:2::11", "2001:db8:1::7", false)] {
            let backend = Step::Backend { address: ip(pod), port: 8080, node: "w2".into(), pod: "shop/a".into() };
            let rule = |is_v4, priority| Rule { is_v4, priority, text: "from all lookup 100".into() };
            let says = |rules: &[Rule]| {
                let steps = [packet(6, client, "203.0.113.10"), backend.clone()];
                routes(&view, &steps, rules).iter().map(told).collect::<Vec<_>>()
            };
            let none =
                "none in the kernel's tables local and main; needed: one in table main by a device that is up, of";
            let lines = says(&[rule(is_v4, 9), rule(!is_v4, 7)]);
            assert_eq!(lines.len(), 3, "{lines:?}");
            assert!(lines[0].starts_with(&format!("route to endpoint {pod}, pod shop/a on w2: {none} wan0, lan0 (ip")));
            assert!(lines[1].starts_with(&format!("route to client {client}: {none}")), "{lines:?}");
            assert_eq!(
                lines[2],
                format!(
                    "rules of policy routing (ip {} rule): 9: from all lookup 100; needed: none: Tidegate follows the \
                     tables local and main alone",
                    if is_v4 { "-4" } else { "-6" }
                )
            );
            assert_eq!(says(&[rule(!is_v4, 7)]).len(), 2);
            // Routes that are there are not told.
            let routed = View { tables: compiler.tables().clone(), ..View::default() };
            let steps = [packet(6, client, "203.0.113.10")];
            assert!(!routes(&routed, &steps, &[]).iter().any(|step| told(step).contains("client")), "{client}");
        }
    }

    fn object(kind: &str, name: &str, body: serde_json::Value) -> Arc<Resource> {
        let body = serde_json::from_value(serde_json::json!({ kind: body })).unwrap();
        Arc::new(Resource { name: name.into(), version: "1".into(), body })
    }

    #[test]
    fn whom_a_policy_accepts_is_told_beside_whom_it_met() {
        let pods = ["10.244.3.5", "fd00:10:244:3::5"];
        let policy = serde_json::json!({
            "tier": "namespace", "subjects": "s", "isolates_ingress": true,
            "ingress": [
                { "action": "accept", "peers": [
                    { "network": { "prefix": "10.0.0.0/8", "except": ["10.1.0.0/16"] } },
                    { "set": "friends" }, { "set": "nobody" }] },
                { "action": "accept", "ports": [
                    { "protocol": "TCP", "port": { "range": [80, 80] } }, { "protocol": "UDP", "port": { "range": [5, 9] } },
                    { "protocol": "TCP", "port": { "named": "http" } }] },
                { "action": "accept", "peers": [], "ports": [] }]
        });
        let policy = object("policy", "NetworkPolicy/shop/p", policy);
        let Body::Policy(policy) = &policy.body else { panic!() };
        let sets = [object("identity-set", "friends", serde_json::json!({ "identities": [7] }))];
        let pod = serde_json::json!({ "addresses": pods, "node": "w3", "identity": 7, "egress": [] });
        let known = [object("pod", "shop/friend", pod)];
        let names = Names { sets: &sets, pods: &known };
        let accepts = "10.0.0.0/8 except 10.1.0.0/16, pods shop/friend, pods of a selection that has none now, \
                       everybody at pods' ports TCP 80, UDP 5-9, TCP http, nobody at no port";
        for (client, vip, pod) in [("192.0.2.7", "203.0.113.10", pods[0]), ("2001:db8:1::7", "2001:db8:f::10", pods[1])]
        {
            let told_of = |direction, ends, steps: &[Step]| {
                told(&super::accepted(policy, "NetworkPolicy/shop/p", direction, ends, steps, &names).unwrap())
            };
            let ends = |source, to, port| Some((SocketAddr::new(ip(source), 40_000), SocketAddr::new(ip(to), port)));
            let says = |direction, steps: &[Step]| told_of(direction, None, steps);
            let picks = ", and a node would pick the pod";
            let what = "sources that NetworkPolicy/shop/p accepts";
            assert_eq!(
                says("ingress", &[packet(6, client, vip)]),
                format!("{what}: {accepts} | {client} -> {vip}{picks}")
            );
            // On the wire an address does not make a pod of anybody.
            assert_eq!(says("ingress", &[packet(6, pod, vip)]), format!("{what}: {accepts} | {pod} -> {vip}{picks}"));
            let decap = Step::Decapsulated { node: "w3".into(), underlay: ip("198.51.100.13"), vni: 1 };
            let inside = [decap, packet(6, pod, vip)];
            assert_eq!(
                says("ingress", &inside),
                format!("{what}: {accepts} | {pod} (pod shop/friend) -> {vip}{picks}")
            );
            // As policies see it: the pod that was chosen instead of the VIP, and its port.
            let chosen = told_of("ingress", ends(client, pod, 8080), &[packet(6, client, vip)]);
            assert_eq!(chosen, format!("{what}: {accepts} | {client} -> {pod} (pod shop/friend), TCP 8080"));
            // An identifier of echo is no port.
            let echo = told_of("ingress", ends(client, pod, 9), &[packet(1, client, vip)]);
            assert_eq!(echo, format!("{what}: {accepts} | {client} -> {pod} (pod shop/friend)"));
            let outward = told_of("egress", ends(client, pod, 53), &[packet(17, client, vip)]);
            let what = "destinations that NetworkPolicy/shop/p accepts";
            assert_eq!(outward, format!("{what}: none | {client} -> {pod} (pod shop/friend), UDP 53"));
        }
    }

    fn leaves(pod: &str, address: &str) -> [Step; 2] {
        let egress = Step::Egress {
            pod: ip(pod),
            policies: vec!["out".into()],
            policy: Some("out".into()),
            address: Some(ip(address)),
        };
        [packet(17, pod, if ip(pod).is_ipv4() { "192.0.2.7" } else { "2001:db8:1::7" }), egress]
    }

    #[test]
    fn used_up_ports_are_counted_over_all_workers() {
        for (pod, address) in [("10.244.1.5", "192.0.2.240"), ("fd00:10:244:1::5", "2001:db8:1::240")] {
            let tally = |used| Tally { used, ..Tally::default() };
            let of = |used| EgressUse {
                pools: vec![
                    (mapped_ip(ip(address)), PortClass::Udp, tally(used), 32_256),
                    (mapped_ip(ip(address)), PortClass::Tcp, tally(9), 32_256),
                ],
                pods: Vec::new(),
            };
            let step = ports(&[of(32_256), of(32_255)], &leaves(pod, address)).unwrap();
            assert_eq!(
                told(&step),
                format!(
                    "udp ports of external address {address}: 64511 of 64512 are in use or rest; needed: one that is \
                     free, or another address"
                )
            );
        }
    }

    #[test]
    fn a_quota_is_told_with_what_is_held_by_the_pod_or_its_namespace() {
        let pods = [("shop/a", 1), ("shop/b", 2)].map(|(name, n)| {
            let addresses = [format!("10.244.1.{n}"), format!("fd00:10:244:1::{n}")];
            let pod = serde_json::json!({ "addresses": addresses, "node": "w1", "identity": 0, "egress": ["out"] });
            (*object("pod", name, pod)).clone()
        });
        let policy = serde_json::json!({
            "addresses": ["192.0.2.240", "2001:db8:1::240"], "ports_per_pod_max": 5, "ports_per_namespace_max": 8
        });
        let (mut compiler, _) = on_machine();
        let policy = (*object("egress", "out", policy)).clone();
        let objects = [named("gw", "1", gateway()), named("w1", "1", peer(1)), policy].into_iter().chain(pods);
        assert_eq!(update(&mut compiler, full(objects.collect())).rejected, []);
        let view = View { tables: compiler.tables().clone(), ..View::default() };
        for (a, b, external) in
            [("10.244.1.1", "10.244.1.2", "192.0.2.240"), ("fd00:10:244:1::1", "fd00:10:244:1::2", "2001:db8:1::240")]
        {
            let of = |pod: &str, held| {
                let row = view.tables.pods.pod(&mapped_ip(ip(pod))).unwrap();
                (row.backend, Holder { held, namespace: row.namespace, refused: 0 })
            };
            let says = |held: [u32; 2]| {
                // Two workers.
                let used =
                    [a, b].map(|pod| EgressUse { pools: Vec::new(), pods: vec![of(a, held[0]), of(pod, held[1])] });
                quota(&view, &used, &leaves(a, external)).as_ref().map(told)
            };
            let most = |most| format!("needed: fewer than {most}, the most that EgressPolicy out allows");
            assert_eq!(says([2, 1]), Some(format!("ports of pod {a}: 5 held; {}", most(5))));
            assert_eq!(says([0, 4]), Some(format!("ports of the namespace of pod {a}: 8 held; {}", most(8))));
            assert_eq!(says([0, 1]), None);
        }
    }
}
