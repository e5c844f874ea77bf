//! Nodes: where `node-dsr` delivers to, as rows beside those of endpoints.
//!
//! Owns, for every Service port and family that asked for `node-dsr`, the nodes that have its endpoints, what is known of
//! the way to each (the prober tells, [`Nodes::learn`]), and what control and operators are told about it. A node is a
//! backend row like an endpoint, so that epochs, usage and quarantine are the same; its weight is the sum of the local
//! weights of its endpoints (S-050). It refuses to know how a way is proven.
//!
//! Three facts make a node take new flows: it has an endpoint with a local weight (S-048, S-057), it is a peer of the
//! overlay, and its way is proven. A way is a fact of one TCP Service port, family and node, since kube-proxy's rules are.
//! A datagram proves nothing without knowing the protocol inside, so a UDP port takes over what is known of a TCP port of
//! its own Service, and without one what any Service's TCP port says about the node and family. An SCTP port does the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tidegate_api::message::{IpFamily, NodeDelivery, PortDelivery, ServiceDelivery, WayState};
use tidegate_api::resource::{DeliveryMode, Protocol, Service, ServicePort};

use super::service::{PortKey, Services};
use super::suspect::Suspects;
use super::tunnel::Tunnels;
use super::{Nanos, mapped_ip};
use crate::probe::{Finding, Target, Way};
use crate::table::backend::{BackendRow, BackendState};
use crate::table::maglev;
use crate::table::service::EndpointSet;
use crate::table::{BackendId, Family, ServiceId, Tables, TunnelId};

/// What is said of a node that was proven and has fallen silent.
const SILENT: &str = "the node does not answer; new flows go to others while there are any";

/// All nodes of all Services that asked for them.
#[derive(Debug, Default)]
pub struct Nodes {
    services: BTreeMap<Arc<str>, Known>,
    /// Services that have an endpoint on a node.
    by_node: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// How many ways to a node are proven.
    proven: HashMap<(Arc<str>, Family), u32>,
    /// What control has not been told.
    news: BTreeMap<Arc<str>, ServiceDelivery>,
}

/// One Service.
#[derive(Debug, Default)]
struct Known {
    ports: BTreeMap<PortKey, NodePort>,
    /// What the prober said last; a way that is watched and not here is unproven.
    findings: BTreeMap<Way, Finding>,
}

/// One port of one family.
#[derive(Debug)]
struct NodePort {
    id: ServiceId,
    nodes: BTreeMap<Arc<str>, Node>,
}

/// One node of a port.
#[derive(Clone, Debug)]
struct Node {
    weight: u16,
    /// The way there with the node's underlay address; `None`: it is no peer, or we have no VTEP.
    tunnel: Option<(TunnelId, [u8; 16])>,
    finding: Finding,
    /// The node itself does not answer.
    suspected: bool,
    backend: Option<BackendId>,
}

/// What follows from writing one Service.
#[derive(Debug, Default)]
pub struct Written {
    /// Whether any row differs.
    pub changed: bool,
    /// What is to be probed for this Service from now on; `None`: nothing, as before.
    pub targets: Option<Vec<Target>>,
    /// Other Services that leaned on what is known no more.
    pub touched: BTreeSet<Arc<str>>,
}

impl Nodes {
    /// Makes the node rows of the Service `name` say `wanted`, after its other rows were written.
    pub fn write(
        &mut self,
        name: &str,
        wanted: Option<&Service>,
        services: &mut Services,
        tunnels: &Tunnels,
        tables: &mut Tables,
        now: Nanos,
    ) -> Written {
        let wanted = wanted.map(wanted_ports).unwrap_or_default();
        if wanted.is_empty() && !self.services.contains_key(name) {
            return Written::default();
        }
        let name: Arc<str> = name.into();
        let mut known = self.services.remove(&name).unwrap_or_default();
        let mut written = Written::default();
        let targets = targets(&name, &wanted, tunnels);
        self.forget(&mut known, &targets, &mut written.touched);
        let before: BTreeSet<Arc<str>> = node_names(&known);
        let ids: BTreeMap<PortKey, ServiceId> =
            wanted.keys().filter_map(|key| Some((*key, services.id_of(&name, *key)?))).collect();
        known.ports.retain(|key, port| {
            let stays = ids.get(key) == Some(&port.id);
            if !stays {
                written.changed |= !port.nodes.is_empty();
                leave_all(port, services, tables, now);
            }
            stays
        });
        for (key, wanted) in &wanted {
            let Some(id) = ids.get(key).copied() else { continue };
            let nodes = self.nodes(&name, *key, wanted, &known.findings, tunnels, services.suspects());
            let port = known.ports.entry(*key).or_insert_with(|| NodePort { id, nodes: BTreeMap::new() });
            written.changed |= write_port(*key, port, nodes, services, tables, now);
        }
        self.index(&name, &before, &node_names(&known));
        self.news.insert(Arc::clone(&name), delivery(&name, &known.ports));
        if !known.ports.is_empty() {
            self.services.insert(name, known);
        }
        written.targets = Some(targets);
        written
    }

    /// Takes in what the prober found; returns the Services whose rows may differ now.
    pub fn learn(&mut self, way: Way, finding: Finding) -> BTreeSet<Arc<str>> {
        let mut touched = BTreeSet::new();
        let Some(known) = self.services.get_mut(&way.service) else {
            return touched; // it was on its way when the Service went
        };
        let place = (Arc::clone(&way.node), way.family);
        touched.insert(Arc::clone(&way.service));
        let is = finding.state == WayState::Proven;
        let was = known.findings.insert(way, finding).is_some_and(|finding| finding.state == WayState::Proven);
        self.count(place, was, is, &mut touched);
        touched
    }

    /// Services with an endpoint on one of `nodes`.
    pub fn on<'a>(&self, nodes: impl Iterator<Item = &'a str>) -> BTreeSet<Arc<str>> {
        nodes.filter_map(|node| self.by_node.get(node)).flatten().cloned().collect()
    }

    /// What control is to be told, once.
    pub fn take_news(&mut self) -> Vec<ServiceDelivery> {
        std::mem::take(&mut self.news).into_values().collect()
    }

    /// Moves the count of proven ways to a node, and touches everybody there when the first came or the last went.
    fn count(&mut self, place: (Arc<str>, Family), was: bool, is: bool, touched: &mut BTreeSet<Arc<str>>) {
        let count = self.proven.entry(place.clone()).or_default();
        let before = *count;
        *count = (before + u32::from(is)).saturating_sub(u32::from(was));
        if (before == 0) != (*count == 0) {
            touched.extend(self.by_node.get(&place.0).into_iter().flatten().cloned());
        }
        if *count == 0 {
            self.proven.remove(&place);
        }
    }

    /// Forgets what is known of ways that are no longer watched.
    fn forget(&mut self, known: &mut Known, targets: &[Target], touched: &mut BTreeSet<Arc<str>>) {
        let kept: BTreeSet<&Way> = targets.iter().map(|target| &target.way).collect();
        let mut gone = Vec::new();
        known.findings.retain(|way, finding| {
            let stays = kept.contains(way);
            if !stays {
                gone.push(((Arc::clone(&way.node), way.family), finding.state == WayState::Proven));
            }
            stays
        });
        for (place, was) in gone {
            self.count(place, was, false, touched);
        }
    }

    fn index(&mut self, name: &Arc<str>, before: &BTreeSet<Arc<str>>, after: &BTreeSet<Arc<str>>) {
        for node in before.difference(after) {
            if let Some(services) = self.by_node.get_mut(node) {
                services.remove(name);
                if services.is_empty() {
                    self.by_node.remove(node);
                }
            }
        }
        for node in after.difference(before) {
            self.by_node.entry(Arc::clone(node)).or_default().insert(Arc::clone(name));
        }
    }

    /// The nodes of one port, without their rows.
    fn nodes(
        &self,
        name: &Arc<str>,
        (protocol, number, family): PortKey,
        wanted: &WantedPort<'_>,
        findings: &BTreeMap<Way, Finding>,
        tunnels: &Tunnels,
        suspects: &Suspects,
    ) -> BTreeMap<Arc<str>, Node> {
        let mut nodes: BTreeMap<Arc<str>, Node> = BTreeMap::new();
        for backend in &wanted.port.backends {
            if backend.address.is_ipv4() != (family == Family::V4) || backend.node.is_empty() {
                continue;
            }
            let node: Arc<str> = backend.node.as_str().into();
            let entry = nodes.entry(Arc::clone(&node)).or_insert_with(|| {
                let way = tunnels.way(&node, family);
                let finding = match (wanted.unfit, &way) {
                    (Some(unfit), _) => Finding::unproven(unfit),
                    (None, None) => Finding::unproven("the node is no peer of the overlay in this family"),
                    (None, Some(_)) if protocol == Protocol::Tcp => {
                        let way = Way { service: Arc::clone(name), port: number, family, node: Arc::clone(&node) };
                        findings.get(&way).cloned().unwrap_or_default()
                    }
                    (None, Some(_)) => self.lean(findings, &node, family),
                };
                let tunnel = way.map(|way| (way.id, mapped_ip(way.peer.underlay)));
                let suspected = suspects.contains(&node, family);
                Node { weight: 0, tunnel, finding, suspected, backend: None }
            });
            entry.weight = entry.weight.saturating_add(backend.local_weight);
        }
        nodes
    }

    /// What a UDP or SCTP port takes over.
    fn lean(&self, findings: &BTreeMap<Way, Finding>, node: &Arc<str>, family: Family) -> Finding {
        let own = || findings.iter().filter(|(way, _)| way.node == *node && way.family == family);
        if let Some((_, best)) = own().min_by_key(|(_, finding)| finding.state != WayState::Proven) {
            return best.clone();
        }
        if self.proven.contains_key(&(Arc::clone(node), family)) {
            return Finding { state: WayState::Proven, reason: String::new() };
        }
        Finding::unproven("only TCP can be proven, and no TCP port of any Service with node-dsr is proven on this node")
    }
}

/// A port that asked for `node-dsr`.
struct WantedPort<'a> {
    port: &'a ServicePort,
    /// The VIP that is probed, mapped.
    vip: [u8; 16],
    /// Why kube-proxy cannot know this port, if so.
    unfit: Option<&'static str>,
}

/// Ports that asked for `node-dsr`, by family. One VIP stands for all of a port: kube-proxy writes the rules of all of them
/// together.
fn wanted_ports(service: &Service) -> BTreeMap<PortKey, WantedPort<'_>> {
    let mut wanted = BTreeMap::new();
    for family in [Family::V4, Family::V6] {
        let addresses = service.addresses.iter().chain(&service.external_addresses);
        let vips = addresses.filter(|address| address.is_ipv4() == (family == Family::V4));
        let Some(vip) = vips.map(|address| mapped_ip(*address)).min() else { continue };
        for port in service.ports.iter().filter(|port| port.mode == DeliveryMode::NodeDsr) {
            let unfit = match port {
                _ if !service.prefixes.is_empty() => Some("kube-proxy knows addresses and no prefixes"),
                ServicePort { port: 0, .. } => Some("kube-proxy knows single ports only"),
                _ => None,
            };
            wanted.insert((port.protocol, port.port, family), WantedPort { port, vip, unfit });
        }
    }
    wanted
}

/// What is to be probed: the TCP ports on every node with endpoints that can be reached.
fn targets(name: &Arc<str>, wanted: &BTreeMap<PortKey, WantedPort<'_>>, tunnels: &Tunnels) -> Vec<Target> {
    let mut targets = Vec::new();
    for ((protocol, number, family), wanted) in wanted {
        if *protocol != Protocol::Tcp || wanted.unfit.is_some() {
            continue;
        }
        let of_family = wanted
            .port
            .backends
            .iter()
            .filter(|backend| backend.address.is_ipv4() == (*family == Family::V4) && !backend.node.is_empty());
        let nodes: BTreeSet<&str> = of_family.map(|backend| backend.node.as_str()).collect();
        targets.extend(nodes.into_iter().filter_map(|node| {
            let way = tunnels.way(node, *family)?;
            Some(Target {
                way: Way { service: Arc::clone(name), port: *number, family: *family, node: node.into() },
                vip: super::address_of(&wanted.vip),
                ours: way.ours.clone(),
                peer: way.peer.clone(),
            })
        }));
    }
    targets
}

fn node_names(known: &Known) -> BTreeSet<Arc<str>> {
    known.ports.values().flat_map(|port| port.nodes.keys().cloned()).collect()
}

/// Makes the rows of one port's nodes; true when any differs.
fn write_port(
    (_, _, family): PortKey,
    port: &mut NodePort,
    mut nodes: BTreeMap<Arc<str>, Node>,
    services: &mut Services,
    tables: &mut Tables,
    now: Nanos,
) -> bool {
    let mut changed = false;
    let service = port.id;
    for (name, before) in &port.nodes {
        match nodes.get_mut(name) {
            Some(node) => node.backend = before.backend,
            None => changed |= leave(name, before, service, services, tables, now),
        }
    }
    let spare = has_others(&nodes);
    for (name, node) in &mut nodes {
        let Some((tunnel, address)) = node.tunnel else { continue };
        let state = match (node.finding.state, share(node, spare)) {
            (WayState::Proven, 0) => BackendState::Draining,
            (WayState::Proven, _) => BackendState::Active,
            (WayState::Unproven | WayState::Failed | WayState::Suspected, _) => BackendState::Gone,
        };
        let row = BackendRow { address, family, port: 0, node: tunnel, service, state, epoch: 0 };
        let key = (service, maglev::node_key(name), 0);
        let (backends, table) = (services.backends_mut(), Arc::make_mut(&mut tables.backends));
        let before = node.backend.map(|id| table.epoch(id));
        let id = backends.set_row(node.backend, key, row, table, now);
        changed |= before != Some(table.epoch(id));
        node.backend = Some(id);
    }
    let set = endpoint_set(&nodes, services);
    if tables.services.nodes(service) != Some(&set) {
        Arc::make_mut(&mut tables.services).set_nodes(service, Some(set));
        changed = true;
    }
    port.nodes = nodes;
    changed
}

/// The nodes to choose from. One that is not proven or has no weight keeps its place with no share, so that nobody else's
/// slots move when that changes (L-008).
fn endpoint_set(nodes: &BTreeMap<Arc<str>, Node>, services: &mut Services) -> EndpointSet {
    let spare = has_others(nodes);
    let with_rows =
        nodes.iter().filter_map(|(name, node)| Some((maglev::node_key(name), share(node, spare), node.backend?)));
    let mut members: Vec<_> = with_rows.collect();
    members.sort_unstable();
    let keys: Vec<_> = members.iter().map(|(key, weight, _)| (maglev::member_key(key, 0), *weight)).collect();
    EndpointSet {
        members: members.iter().map(|(_, _, backend)| *backend).collect(),
        ring: services.rings_mut().get(&keys, 0),
    }
}

/// The share of new flows a node gets; `spare`: there are others than those that are suspected.
fn share(node: &Node, spare: bool) -> u16 {
    if node.finding.state == WayState::Proven && !(spare && node.suspected) { node.weight } else { 0 }
}

/// Whether a node that is not suspected takes new flows (S-114).
fn has_others(nodes: &BTreeMap<Arc<str>, Node>) -> bool {
    nodes.values().any(|node| !node.suspected && share(node, true) > 0)
}

fn leave_all(port: &mut NodePort, services: &mut Services, tables: &mut Tables, now: Nanos) {
    for (name, node) in std::mem::take(&mut port.nodes) {
        leave(&name, &node, port.id, services, tables, now);
    }
    if tables.services.nodes(port.id).is_some() {
        Arc::make_mut(&mut tables.services).set_nodes(port.id, None);
    }
}

fn leave(
    name: &str,
    node: &Node,
    service: ServiceId,
    services: &mut Services,
    tables: &mut Tables,
    now: Nanos,
) -> bool {
    let Some(id) = node.backend else { return false };
    let table = Arc::make_mut(&mut tables.backends);
    services.backends_mut().leave(id, (service, maglev::node_key(name), 0), table, now);
    true
}

fn delivery(name: &Arc<str>, ports: &BTreeMap<PortKey, NodePort>) -> ServiceDelivery {
    let of_port = |((protocol, port, family), nodes): (&PortKey, &NodePort)| {
        let nodes: Vec<NodeDelivery> = nodes.nodes.iter().map(|(name, node)| told(name, node)).collect();
        // Suspected nodes take what there is if there is nobody else.
        let takes =
            |node: &NodeDelivery| matches!(node.state, WayState::Proven | WayState::Suspected) && node.weight > 0;
        PortDelivery {
            protocol: *protocol,
            port: *port,
            family: match family {
                Family::V4 => IpFamily::Ipv4,
                Family::V6 => IpFamily::Ipv6,
            },
            mode: if nodes.iter().any(takes) { DeliveryMode::NodeDsr } else { DeliveryMode::Fullnat },
            nodes,
        }
    };
    ServiceDelivery { service: name.to_string(), ports: ports.iter().map(of_port).collect() }
}

fn told(name: &Arc<str>, node: &Node) -> NodeDelivery {
    let (state, reason) = match node.finding.state {
        WayState::Proven if node.suspected => (WayState::Suspected, SILENT.to_owned()),
        state => (state, node.finding.reason.clone()),
    };
    NodeDelivery { node: name.to_string(), weight: node.weight.into(), state, reason }
}

#[cfg(test)]
mod tests;
