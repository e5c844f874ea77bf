//! A Service and its EndpointSlices → addresses, ports and backends.
//!
//! Owns which Services are served (S-001 … S-004), the join of ports (S-010, S-011), and which endpoints are chosen
//! (S-040 … S-044). Each family is chosen for itself, as kube-proxy does (S-121). What is asked for and not done yet is
//! told as a [`Note`], never left out silently (S-012, S-084).

use std::collections::BTreeMap;
use std::net::IpAddr;

use tidegate_api::resource::{Backend, DeliveryMode, Protocol, Service as Resolved, ServicePort as ResolvedPort};

use crate::model::endpointslice::EndpointSlice;
use crate::model::service::{Service, ServicePort};

/// A condition of a Service other than "it is programmed". `status` is "the good case holds".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// Type of the condition.
    pub kind: &'static str,
    /// Reason, in CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What becomes of a Service.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// None of our business: no status, no dataplane entry (S-001).
    NotOurs,
    /// Ours; `service` is absent when there is nothing the dataplane could do.
    Ours {
        /// What to send.
        service: Option<Box<Resolved>>,
        /// What people must know.
        notes: Vec<Note>,
    },
}

/// Resolves one Service. `class` is the configured load balancer class; `slices` are those that name this Service.
pub fn resolve<'a>(service: &Service, slices: impl Iterator<Item = &'a EndpointSlice>, class: Option<&str>) -> Outcome {
    if !is_ours(service, class) {
        return Outcome::NotOurs;
    }
    let mut notes = notes(service);
    let ports: Vec<&ServicePort> = service.ports.iter().filter(|port| port.protocol != Protocol::Sctp).collect();
    if service.addresses.is_empty() || ports.is_empty() {
        notes.sort();
        return Outcome::Ours { service: None, notes };
    }
    let slices: Vec<&EndpointSlice> = slices.collect();
    let ports = ports
        .into_iter()
        .map(|port| ResolvedPort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: port.port,
            mode: DeliveryMode::Fullnat,
            backends: backends(port, &slices),
            ..ResolvedPort::default()
        })
        .collect();
    notes.sort();
    let service = Resolved {
        uid: service.uid.clone(),
        created_at_s: service.created_at_s,
        addresses: service.addresses.clone(),
        ports,
        ..Resolved::default()
    };
    Outcome::Ours { service: Some(Box::new(service)), notes }
}

fn is_ours(service: &Service, class: Option<&str>) -> bool {
    service.load_balancer
        && service.class.as_deref() == class // S-001
        && service.left_to.is_none() // S-003
        && !service.without_cluster_ip // S-004
}

/// What is known of one ip:port over all slices.
struct Candidate<'a> {
    ready: bool,
    serving: bool,
    terminating: bool,
    node: &'a str,
    pod: &'a str,
}

/// All endpoints of one port that are chosen or still serve: chosen ones with weight 1, the others with 0, so that
/// their flows go on (S-100, S-102). In order of address and port.
fn backends(port: &ServicePort, slices: &[&EndpointSlice]) -> Vec<Backend> {
    let mut candidates: BTreeMap<(IpAddr, u16), Candidate<'_>> = BTreeMap::new();
    for slice in slices {
        // S-010: joined by name and protocol, never by number; S-011: the number is the slice's.
        let offered = slice.ports.iter().filter(|offer| offer.name == port.name && offer.protocol == port.protocol);
        for offer in offered {
            for endpoint in &slice.endpoints {
                let candidate = Candidate {
                    ready: endpoint.ready,
                    serving: endpoint.serving,
                    terminating: endpoint.terminating,
                    node: &endpoint.node,
                    pod: &endpoint.pod,
                };
                candidates
                    .entry((endpoint.address, offer.port))
                    .and_modify(|known| known.merge(&candidate))
                    .or_insert(candidate);
            }
        }
    }
    let mut backends = Vec::new();
    for v4 in [true, false] {
        let family = || candidates.iter().filter(move |((address, _), _)| address.is_ipv4() == v4);
        // S-043: the ready ones; without any, those that still serve while they terminate.
        let any_ready = family().any(|(_, candidate)| candidate.ready);
        for ((address, number), candidate) in family() {
            let chosen = match any_ready {
                true => candidate.ready,
                false => candidate.serving && candidate.terminating,
            };
            if chosen || candidate.serving {
                backends.push(Backend {
                    address: *address,
                    port: *number,
                    weight: u16::from(chosen),
                    local_weight: 0,
                    node: candidate.node.into(),
                    pod: candidate.pod.into(),
                });
            }
        }
    }
    backends
}

impl<'a> Candidate<'a> {
    /// The same ip:port in a second slice, while it moves from one to the other (S-040, T-021): the livelier word
    /// counts, so that neither order of slices nor the stale one decides.
    fn merge(&mut self, other: &Candidate<'a>) {
        self.ready |= other.ready;
        self.serving |= other.serving;
        self.terminating &= other.terminating;
        self.node = self.node.max(other.node);
        self.pod = self.pod.max(other.pod);
    }
}

fn notes(service: &Service) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut note = |kind, reason, message: String| notes.push(Note { kind, reason, message });
    if service.addresses.is_empty() {
        let message = "no address to serve: neither status.loadBalancer.ingress nor a request for addresses has one";
        note("AddressAssigned", "NoAddress", message.into());
    }
    if !service.addresses_of_other_families.is_empty() {
        let list = join(&service.addresses_of_other_families);
        note(
            "AddressAssigned",
            "FamilyNotInIPFamilies",
            format!("not served, their family is not in spec.ipFamilies: {list}"),
        );
    }
    let sctp: Vec<u16> =
        service.ports.iter().filter(|port| port.protocol == Protocol::Sctp).map(|port| port.port).collect();
    if !sctp.is_empty() {
        note("PortsSupported", "SctpUnsupported", format!("not served: SCTP port {}", join(&sctp))); // S-012
    }
    if service.local {
        let message = "externalTrafficPolicy is Local, but this version delivers through source translation: pods see the \
                       gateway's address, not the client's";
        note("ClientAddressKept", "DeliveredByFullnat", message.into()); // S-056
    }
    if !service.source_ranges.is_empty() {
        let ranges = join(&service.source_ranges);
        let message = format!(
            "loadBalancerSourceRanges is NOT enforced by this version: every client gets in, not only {ranges}"
        );
        note("SourceRangesEnforced", "NotEnforced", message); // S-084
    }
    if service.affinity {
        let message = "sessionAffinity ClientIP is not kept by this version: connections of a client are spread over all endpoints";
        note("SessionAffinityKept", "NotKept", message.into());
    }
    if !service.external_ips.is_empty() {
        let list = service.external_ips.join(", ");
        note("ExternalIPsServed", "NotServed", format!("externalIPs are not served: {list}")); // S-023
    }
    notes
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
