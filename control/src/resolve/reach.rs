//! Which nodes' pods are reached through the overlay, and endpoints that are not.
//!
//! Owns what control can know of the way to an endpoint: it names a node, and that node is a peer, or is not; its address is
//! the node's own, or in some node's pod CIDR, or is not, whether it names a node or none, as endpoints do that a person or
//! an importer wrote. Refuses to know routes: whether a peer answers is what the dataplane finds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::{Backend, Service};

use super::note::Note;
use crate::model::node::{Node, Tunnel};

/// Nodes told one by one.
const NODES_TOLD_MAX: usize = 5;
/// Addresses told of each.
const ADDRESSES_TOLD_MAX: usize = 3;
/// Pod CIDRs told of a node, or of all.
const CIDRS_TOLD_MAX: usize = 6;

/// The way to one Node's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// This gateway itself: nothing is said of its own pods.
    own: bool,
    /// Pod prefixes behind a tunnel.
    reached: Vec<IpNet>,
    /// Pod prefixes that are not.
    unreached: Vec<IpNet>,
    /// Addresses of the Node itself: its kernel has them, not the overlay.
    addresses: Vec<IpAddr>,
    /// Why there is no tunnel for IPv4, then for IPv6; absent where there is one.
    why_not: [Option<String>; 2],
}

/// Why no tunnel leads to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause<'r> {
    /// It names a Node that is not there.
    NoNode,
    /// The Node that it names has no tunnel of its family, for this reason.
    NoTunnel(&'r str),
    /// It is not where that Node and its pods are.
    Outside,
    /// It names none, and is where no Node and no pod is.
    Nowhere,
}

/// The ways to all Nodes, by name.
#[derive(Debug, Default)]
pub struct Reach {
    ways: BTreeMap<String, Way>,
}

impl Way {
    /// The way to `node`; `own`: it is this gateway.
    pub fn new(node: &Node, own: bool) -> Self {
        let why_not = |v4: bool| -> Option<String> {
            let overlay = match &node.overlay {
                Err(reason) => return Some(reason.clone()),
                Ok(overlay) => overlay,
            };
            let tunnel: &Result<Tunnel, String> = if v4 { &overlay.v4 } else { &overlay.v6 };
            let none = || format!("no {} pod CIDR", if v4 { "IPv4" } else { "IPv6" });
            tunnel.as_ref().err().cloned().or_else(|| node.pod_cidrs_of(v4).is_empty().then(none))
        };
        let why_not = [why_not(true), why_not(false)];
        let has_tunnel = |cidr: &IpNet| why_not[usize::from(cidr.addr().is_ipv6())].is_none();
        let (reached, unreached) = node.pod_cidrs.iter().partition(|cidr| has_tunnel(cidr));
        let tunnels = node.overlay.iter().flat_map(|overlay| [&overlay.v4, &overlay.v6]).flatten();
        let addresses = node.addresses.iter().copied().chain(tunnels.map(|tunnel| tunnel.underlay)).collect();
        Way { own, reached, unreached, addresses, why_not }
    }

    fn leads_within(&self, address: IpAddr) -> bool {
        self.cidrs().any(|cidr| cidr.contains(&address))
    }

    /// Whether nothing speaks against an endpoint on this Node.
    fn leads_to(&self, address: IpAddr) -> bool {
        self.own || self.reached.iter().any(|cidr| cidr.contains(&address)) || self.addresses.contains(&address)
    }

    fn cidrs(&self) -> impl Iterator<Item = &IpNet> {
        self.reached.iter().chain(&self.unreached)
    }
}

impl Reach {
    /// Replaces the way to a Node. Returns the pod prefixes that are or were behind a tunnel to it, if that changes
    /// anything for endpoints.
    pub fn replace(&mut self, name: &str, way: Option<Way>) -> Option<Vec<IpNet>> {
        if self.ways.get(name) == way.as_ref() {
            return None;
        }
        let mut touched = way.as_ref().map(|way| way.reached.clone()).unwrap_or_default();
        let before = match way {
            Some(way) => self.ways.insert(name.into(), way),
            None => self.ways.remove(name),
        };
        touched.extend(before.into_iter().flat_map(|before| before.reached));
        Some(touched)
    }

    /// Whether no Node is known.
    pub fn is_empty(&self) -> bool {
        self.ways.is_empty()
    }

    /// Whether an address is in a pod prefix that a tunnel leads to, or in our own.
    fn covers(&self, address: IpAddr) -> bool {
        let leads = |way: &Way| way.reached.iter().any(|cidr| cidr.contains(&address));
        self.ways.values().any(|way| leads(way) || (way.own && way.leads_within(address)))
    }

    /// Whether what is said of an endpoint depends on all Nodes: it names none, and is in no pod prefix.
    pub fn is_lost(&self, backend: &Backend) -> bool {
        backend.node.is_empty() && !self.covers(backend.address)
    }

    /// Why no tunnel leads to an endpoint.
    fn why_not(&self, backend: &Backend) -> Option<Cause<'_>> {
        let way = self.ways.get(&backend.node);
        if way.is_some_and(|way| way.leads_to(backend.address)) {
            return None;
        }
        // It says the wrong node, or is about to move: what counts is where its address leads.
        if self.covers(backend.address) {
            return None;
        }
        if backend.node.is_empty() {
            let is_nodes = |way: &Way| way.addresses.contains(&backend.address);
            let is_told = !self.is_empty() && !self.ways.values().any(is_nodes);
            return is_told.then_some(Cause::Nowhere);
        }
        let Some(way) = way else { return Some(Cause::NoNode) };
        let why_not = way.why_not[usize::from(backend.address.is_ipv6())].as_deref();
        Some(why_not.map_or(Cause::Outside, Cause::NoTunnel))
    }

    /// The same for people.
    fn words(&self, node: &str, cause: &Cause<'_>) -> String {
        match cause {
            Cause::NoTunnel(why) => (*why).to_owned(),
            Cause::NoNode => "there is no Node of that name".to_owned(),
            Cause::Outside => {
                let known = some(self.ways.get(node).into_iter().flat_map(Way::cidrs));
                format!("neither an address of that Node nor in its pod CIDRs, which are {known}")
            }
            Cause::Nowhere => {
                let known = some(self.ways.values().flat_map(Way::cidrs));
                format!("in no pod CIDR of the overlay, which has {known}")
            }
        }
    }

    /// The condition of a Service with endpoints to which no tunnel leads.
    pub fn note(&self, service: &Service) -> Option<Note> {
        let mut nodes: BTreeMap<(&str, Cause<'_>), BTreeSet<IpAddr>> = BTreeMap::new();
        for backend in service.ports.iter().flat_map(|port| &port.backends) {
            if let Some(why) = self.why_not(backend) {
                nodes.entry((&backend.node, why)).or_default().insert(backend.address);
            }
        }
        if nodes.is_empty() {
            return None;
        }
        let told = |((node, cause), addresses): (&(&str, Cause<'_>), &BTreeSet<IpAddr>)| {
            let why = self.words(node, cause);
            let some: Vec<String> = addresses.iter().take(ADDRESSES_TOLD_MAX).map(ToString::to_string).collect();
            let node = if node.is_empty() { "no node" } else { node };
            format!("{node} ({}{}: {why})", some.join(", "), more(addresses.len(), ADDRESSES_TOLD_MAX))
        };
        let list: Vec<String> = nodes.iter().take(NODES_TOLD_MAX).map(told).collect();
        let message = format!(
            "no tunnel leads to endpoints on {}{}; packets to them follow the kernel's routes, and their answers have to find \
             the way back to this gateway's fullnat addresses",
            list.join("; "),
            more(nodes.len(), NODES_TOLD_MAX)
        );
        Some(Note { kind: "BackendsReachable", reason: "NotInOverlay", message })
    }
}

/// How many are left out of those that are told.
fn more(all: usize, told: usize) -> String {
    if all > told { format!(" and {} more", all - told) } else { String::new() }
}

/// Some pod CIDRs, in order.
fn some<'a>(cidrs: impl Iterator<Item = &'a IpNet>) -> String {
    let cidrs: BTreeSet<&IpNet> = cidrs.collect();
    let told: Vec<String> = cidrs.iter().take(CIDRS_TOLD_MAX).map(ToString::to_string).collect();
    match told.as_slice() {
        [] => "none".to_owned(),
        told => format!("{}{}", told.join(", "), more(cidrs.len(), CIDRS_TOLD_MAX)),
    }
}
