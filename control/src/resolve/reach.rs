//! Which nodes' pods are reached through the overlay, and endpoints that are not.
//!
//! Owns what control can know of the way to an endpoint: it names a node, and that node is a peer, or is not; or it names
//! none, as endpoints do that a person or an importer wrote, and its address is in some node's pod CIDR, or is not. Refuses
//! to know routes: whether a peer answers is what the dataplane finds.

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
        self.reached.iter().chain(&self.unreached).any(|cidr| cidr.contains(&address))
    }

    fn is_peer(&self) -> bool {
        !self.reached.is_empty()
    }

    /// Whether nothing speaks against an endpoint on this Node.
    fn leads_to(&self, address: IpAddr) -> bool {
        let within = |cidrs: &[IpNet]| cidrs.iter().any(|cidr| cidr.contains(&address));
        // A peer's endpoint outside its pod prefixes is in the network of the node itself.
        self.own
            || within(&self.reached)
            || self.addresses.contains(&address)
            || (self.is_peer() && !within(&self.unreached))
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

    /// Why no tunnel leads to an endpoint that has a node.
    fn why_not(&self, backend: &Backend) -> Option<&str> {
        let way = self.ways.get(&backend.node);
        if way.is_some_and(|way| way.leads_to(backend.address)) {
            return None;
        }
        // It says the wrong node, or is about to move: what counts is where its address leads.
        let elsewhere = |way: &Way| way.reached.iter().any(|cidr| cidr.contains(&backend.address));
        if self.ways.values().any(elsewhere) {
            return None;
        }
        if backend.node.is_empty() {
            // Our own pods, and the nodes themselves.
            let known =
                |way: &Way| way.addresses.contains(&backend.address) || (way.own && way.leads_within(backend.address));
            return (!self.is_empty() && !self.ways.values().any(known)).then_some("in no pod CIDR of the overlay");
        }
        match way {
            None => Some("there is no Node of that name"),
            Some(way) => Some(way.why_not[usize::from(backend.address.is_ipv6())].as_deref().unwrap_or("no tunnel")),
        }
    }

    /// The condition of a Service with endpoints to which no tunnel leads.
    pub fn note(&self, service: &Service) -> Option<Note> {
        let mut nodes: BTreeMap<(&str, &str), BTreeSet<IpAddr>> = BTreeMap::new();
        for backend in service.ports.iter().flat_map(|port| &port.backends) {
            if let Some(why) = self.why_not(backend) {
                nodes.entry((&backend.node, why)).or_default().insert(backend.address);
            }
        }
        if nodes.is_empty() {
            return None;
        }
        let more =
            |all: usize, told: usize| if all > told { format!(" and {} more", all - told) } else { String::new() };
        let told = |((node, why), addresses): (&(&str, &str), &BTreeSet<IpAddr>)| {
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
