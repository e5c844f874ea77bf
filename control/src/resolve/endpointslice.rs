//! Which endpoints of a Service's slices are used, and with which weight.
//!
//! Owns the join of slices to a port (S-010, S-011, S-040), the choice that kube-proxy makes between ready and
//! terminating endpoints (S-043, S-044) and by topology hints (S-045), and the choice of endpoints that are local to
//! their nodes (S-048, S-049). Each family is chosen for itself (S-121). Refuses to choose for a packet: that is the
//! dataplane's, by the weights given here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tidegate_api::resource::{Backend, NotServing, Protocol};

use super::site::Here;
use crate::model::endpointslice::{Endpoint, EndpointSlice};
use crate::model::service::Wishes;

/// Endpoints that do not serve and are told of all the same.
const NOT_SERVING_MAX: usize = 8;

/// What to choose by.
pub struct Choice<'a> {
    /// Weights that were asked for.
    pub wishes: &'a Wishes,
    /// Where hints are followed from; absent: they are not.
    pub here: Option<&'a Here>,
    /// Nodes whose endpoints are not local to anybody.
    pub excluded: Option<&'a BTreeSet<String>>,
}

/// Which ports of a slice belong to a port of the Service.
pub struct Join<'a> {
    /// L4 protocol.
    pub protocol: Protocol,
    /// Names of the ports, of which one has to be equal: they are joined by name, never by number (S-010).
    pub names: Vec<&'a str>,
    /// The endpoint gets the port that the client asked for, not the slice's.
    pub any_port: bool,
}

/// What is known of one ip:port over all slices.
#[derive(Default)]
struct Candidate<'a> {
    ready: bool,
    serving: bool,
    terminating: bool,
    node: &'a str,
    pod: &'a str,
    hinted_nodes: BTreeSet<&'a str>,
    hinted_zones: BTreeSet<&'a str>,
}

/// Whose hints are followed.
enum Topology<'a> {
    Nobody,
    Node(&'a str),
    Zone(&'a str),
}

impl Choice<'_> {
    /// All endpoints of one port that are chosen or still serve: those that are not chosen have weight 0, so that their
    /// flows go on (S-100, S-102). In order of family, address and port.
    pub fn backends(&self, join: &Join<'_>, slices: &[&EndpointSlice]) -> Vec<Backend> {
        let candidates = candidates(join, slices);
        let mut backends = Vec::new();
        for v4 in [true, false] {
            let family: Vec<(&(IpAddr, u16), &Candidate<'_>)> =
                candidates.iter().filter(|((address, _), _)| address.is_ipv4() == v4).collect();
            let known = || family.iter().map(|(_, candidate)| *candidate);
            let any_ready = known().any(|candidate| candidate.ready);
            let any_local_ready = known().any(|candidate| candidate.ready && self.is_local(candidate));
            let topology = self.topology(known());
            for ((address, port), candidate) in &family {
                let chosen = candidate.lives(any_ready) && (!any_ready || topology.allows(candidate));
                // S-048: all nodes' local endpoints; terminating ones only if no node has a ready one.
                let local = candidate.lives(any_local_ready) && self.is_local(candidate);
                if !(chosen || local || candidate.serving) {
                    continue;
                }
                let weight = self.wishes.weight(*address, candidate.pod);
                backends.push(Backend {
                    address: *address,
                    port: *port,
                    weight: if chosen { weight } else { 0 },
                    local_weight: if local { weight } else { 0 },
                    node: candidate.node.into(),
                    pod: candidate.pod.into(),
                });
            }
        }
        backends
    }

    /// Endpoints that are none of `backends` and would be missed: of families in which none of those gets new flows.
    pub fn not_serving(&self, join: &Join<'_>, slices: &[&EndpointSlice], backends: &[Backend]) -> Vec<NotServing> {
        let gets_flows = |v4| {
            let of_family = backends.iter().filter(|backend| backend.address.is_ipv4() == v4);
            of_family.into_iter().any(|backend| backend.weight > 0 || backend.local_weight > 0)
        };
        let missed = [true, false].map(|v4| !gets_flows(v4));
        if missed == [false, false] {
            return Vec::new();
        }
        let candidates = candidates(join, slices);
        let idle = candidates.iter().filter(|((address, port), _)| {
            let is_it = |backend: &Backend| (backend.address, backend.port) == (*address, *port);
            missed[usize::from(!address.is_ipv4())] && !backends.iter().any(is_it)
        });
        let told = |((address, _), candidate): (&(IpAddr, u16), &Candidate<'_>)| NotServing {
            address: *address,
            node: candidate.node.into(),
        };
        idle.map(told).take(NOT_SERVING_MAX).collect()
    }

    /// S-049: without a node it is local to nobody.
    fn is_local(&self, candidate: &Candidate<'_>) -> bool {
        !candidate.node.is_empty() && !self.excluded.is_some_and(|excluded| excluded.contains(candidate.node))
    }

    /// S-045: hints count only if every ready endpoint has them and one is meant for here.
    fn topology<'c>(&self, candidates: impl Iterator<Item = &'c Candidate<'c>> + Clone) -> Topology<'_> {
        let Some(here) = self.here else { return Topology::Nobody };
        let ready = candidates.filter(|candidate| candidate.ready);
        let hints_for = |hints: fn(&'c Candidate<'c>) -> &'c BTreeSet<&'c str>, whom: &str| {
            let mut ready = ready.clone();
            ready.clone().all(|candidate| !hints(candidate).is_empty())
                && ready.any(|candidate| hints(candidate).contains(whom))
        };
        if hints_for(|candidate| &candidate.hinted_nodes, &here.node) {
            return Topology::Node(&here.node);
        }
        match hints_for(|candidate| &candidate.hinted_zones, &here.zone) {
            true => Topology::Zone(&here.zone),
            false => Topology::Nobody,
        }
    }
}

fn candidates<'a>(join: &Join<'_>, slices: &[&'a EndpointSlice]) -> BTreeMap<(IpAddr, u16), Candidate<'a>> {
    let mut candidates: BTreeMap<(IpAddr, u16), Candidate<'a>> = BTreeMap::new();
    for slice in slices {
        let ours = |offer: &str, protocol| protocol == join.protocol && join.names.contains(&offer);
        for offer in slice.ports.iter().filter(|offer| ours(&offer.name, offer.protocol)) {
            // S-011: the number is the slice's.
            let port = if join.any_port { 0 } else { offer.port };
            for endpoint in &slice.endpoints {
                let candidate = Candidate::new(endpoint);
                match candidates.get_mut(&(endpoint.address, port)) {
                    Some(known) => known.merge(candidate),
                    None => drop(candidates.insert((endpoint.address, port), candidate)),
                }
            }
        }
    }
    candidates
}

impl<'a> Candidate<'a> {
    fn new(endpoint: &'a Endpoint) -> Self {
        Candidate {
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            node: &endpoint.node,
            pod: &endpoint.pod,
            hinted_nodes: endpoint.hinted_nodes.iter().map(String::as_str).collect(),
            hinted_zones: endpoint.hinted_zones.iter().map(String::as_str).collect(),
        }
    }

    /// The same ip:port in a second slice, while it moves from one to the other (S-040, T-021): the livelier word
    /// counts, so that neither order of slices nor the stale one decides.
    fn merge(&mut self, other: Candidate<'a>) {
        self.ready |= other.ready;
        self.serving |= other.serving;
        self.terminating &= other.terminating;
        self.node = self.node.max(other.node);
        self.pod = self.pod.max(other.pod);
        self.hinted_nodes.extend(other.hinted_nodes);
        self.hinted_zones.extend(other.hinted_zones);
    }

    /// S-043: ready; where none is, those that still serve while they terminate.
    fn lives(&self, any_ready: bool) -> bool {
        match any_ready {
            true => self.ready,
            false => self.serving && self.terminating,
        }
    }
}

impl Topology<'_> {
    fn allows(&self, candidate: &Candidate<'_>) -> bool {
        match self {
            Topology::Nobody => true,
            Topology::Node(name) => candidate.hinted_nodes.contains(name),
            Topology::Zone(name) => candidate.hinted_zones.contains(name),
        }
    }
}
