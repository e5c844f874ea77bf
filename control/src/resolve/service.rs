//! A Service and its EndpointSlices → frontends, ports and backends.
//!
//! Owns which Services are served (S-001 … S-004), how they are delivered (S-062, S-063; `symmetric` only where every
//! endpoint's Node is said to send answers back), and what each of their ports
//! becomes. What is asked for and not done, or done otherwise, is told as a [`Note`], never left out silently (S-012,
//! S-084).

use std::collections::BTreeSet;

use tidegate_api::resource::{DeliveryMode, Protocol, Service as Resolved, ServicePort as ResolvedPort, TrafficPolicy};

use super::endpointslice::{Choice, Join};
use super::frontend::Frontends;
use super::lack;
use super::note::{Note, notes};
use super::reach::Reach;
use super::site::Site;
use super::source;
use crate::model::endpointslice::EndpointSlice;
use crate::model::service::{Service, ServiceType};

/// Name of the port that stands for every port; a Service cannot give it to one of its own.
pub const EVERY_PORT: &str = "*";

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

/// How a Service is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The mode of all its ports.
    pub mode: DeliveryMode,
    /// `node-dsr` was meant, but the nodes could not answer.
    pub impossible: bool,
    /// There are frontends whose clients' addresses could be kept.
    pub matters: bool,
    /// `symmetric` was meant, but these Nodes with endpoints are not said to send answers back; an empty name: an endpoint
    /// without a Node.
    pub one_way: BTreeSet<String>,
}

/// Resolves one Service at `site`; `slices` are those that name this Service.
pub fn resolve<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    site: &Site,
    reach: &Reach,
) -> Outcome {
    if !may_be_ours(service, site) {
        return Outcome::NotOurs;
    }
    let frontends = Frontends::new(service, site);
    let refused_here = !site.external_ips.is_empty() && !frontends.external_refused.is_empty();
    if service.service_type != ServiceType::LoadBalancer && frontends.is_empty() && !refused_here {
        return Outcome::NotOurs;
    }
    let mut delivery = delivery(service, &frontends, site);
    let slices: Vec<&EndpointSlice> = slices.collect();
    let mut ports = ports(service, &delivery, site, &slices);
    if delivery.mode == DeliveryMode::Symmetric {
        there_and_back(&mut delivery, &mut ports, site);
    }
    let mut notes = notes(service, &frontends, &delivery, site);
    notes.extend(source::note(service, &delivery, &ports));
    notes.extend(lack::note(service, &frontends, &ports, &slices));
    if frontends.is_empty() || ports.is_empty() {
        return Outcome::Ours { service: None, notes };
    }
    let resolved = Resolved {
        uid: service.uid.clone(),
        created_at_s: service.created_at_s,
        addresses: frontends.addresses,
        prefixes: frontends.prefixes,
        external_addresses: frontends.external_addresses,
        cluster_addresses: frontends.cluster_addresses,
        node_addresses: frontends.node_addresses,
        source_ranges: service.source_ranges.clone(),
        health_check_port: service.health_check_node_port.filter(|_| service.external_policy == TrafficPolicy::Local),
        ports,
    };
    notes.extend(reach.note(&resolved));
    notes.sort();
    Outcome::Ours { service: Some(Box::new(resolved)), notes }
}

/// Whether the Service is one whose VIPs we look after, also when nothing of it can be served now.
pub fn is_balanced_here(service: &Service, site: &Site) -> bool {
    service.service_type == ServiceType::LoadBalancer && may_be_ours(service, site)
}

fn may_be_ours(service: &Service, site: &Site) -> bool {
    let of_our_class = match service.service_type {
        ServiceType::LoadBalancer => service.class == site.class, // S-001
        ServiceType::NodePort | ServiceType::ClusterIp => true,
        ServiceType::Other => false,
    };
    of_our_class
        && service.left_to.is_none() // S-003
        && !service.without_cluster_ip // S-004
}

/// S-062: what the Service asks for, else what the node file says, else by policy: to keep the client's address is what
/// `Local` is for.
fn delivery(service: &Service, frontends: &Frontends, site: &Site) -> Delivery {
    let by_policy = match service.external_policy {
        TrafficPolicy::Local => DeliveryMode::NodeDsr,
        TrafficPolicy::Cluster => DeliveryMode::Fullnat,
    };
    let matters = frontends.any_for_outside();
    let meant = service.wishes.mode.or(site.delivery_mode).unwrap_or(by_policy);
    // S-063: a node's kube-proxy answers for the VIPs in status and for external addresses, on the ports of the Service.
    // Addresses are read from there only, or from files, whose author vouches for the status.
    let unknown_to_nodes = !frontends.prefixes.is_empty() || service.wishes.all_ports;
    let possible = matters && !unknown_to_nodes;
    let mode = match meant {
        DeliveryMode::NodeDsr if possible => meant,
        DeliveryMode::Symmetric if matters => meant,
        _ => DeliveryMode::Fullnat,
    };
    let impossible = meant == DeliveryMode::NodeDsr && matters && unknown_to_nodes;
    Delivery { mode, impossible, matters, one_way: BTreeSet::new() }
}

/// Leaves `symmetric` to Services all of whose endpoints can answer through the gateway: one that cannot would answer its
/// client directly, from an address that this one knows nothing of.
fn there_and_back(delivery: &mut Delivery, ports: &mut [ResolvedPort], site: &Site) {
    let nodes = ports.iter().flat_map(|port| &port.backends).map(|backend| &backend.node);
    delivery.one_way = nodes.filter(|node| !site.returning.contains(*node)).cloned().collect();
    if !delivery.one_way.is_empty() {
        delivery.mode = DeliveryMode::Fullnat;
        ports.iter_mut().for_each(|port| port.mode = DeliveryMode::Fullnat);
    }
}

/// The ports, in order of number and protocol; every port of a protocol comes before the single ones.
fn ports(service: &Service, delivery: &Delivery, site: &Site, slices: &[&EndpointSlice]) -> Vec<ResolvedPort> {
    let choice = Choice {
        wishes: &service.wishes,
        here: site.here.as_ref(),
        excluded: (delivery.mode == DeliveryMode::NodeDsr).then_some(&site.excluded), // S-006
    };
    let mut ports = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let ours = service.ports.iter().filter(|port| port.protocol == protocol);
        let names: Vec<&str> = ours.map(|port| port.name.as_str()).collect();
        if service.wishes.all_ports && !names.is_empty() {
            let join = Join { protocol, names, any_port: true };
            ports.push(ResolvedPort {
                name: EVERY_PORT.into(),
                port: 0,
                ..joined(&choice, &join, slices, template(service, delivery, protocol))
            });
        }
    }
    ports.extend(service.ports.iter().map(|port| {
        let join = Join { protocol: port.protocol, names: vec![&port.name], any_port: false };
        ResolvedPort {
            name: port.name.clone(),
            port: port.port,
            node_port: port.node_port.filter(|_| site.node_ports),
            ..joined(&choice, &join, slices, template(service, delivery, port.protocol))
        }
    }));
    if delivery.mode != DeliveryMode::NodeDsr {
        for port in &mut ports {
            port.source_backends = source::entries(&service.wishes, &port.backends);
        }
    }
    ports
}

/// A port with its endpoints.
fn joined(choice: &Choice<'_>, join: &Join<'_>, slices: &[&EndpointSlice], port: ResolvedPort) -> ResolvedPort {
    let backends = choice.backends(join, slices);
    let not_serving = choice.not_serving(join, slices, &backends);
    ResolvedPort { backends, not_serving, ..port }
}

/// What all ports of a protocol have in common.
fn template(service: &Service, delivery: &Delivery, protocol: Protocol) -> ResolvedPort {
    let wishes = &service.wishes;
    ResolvedPort {
        protocol,
        mode: delivery.mode,
        external_policy: service.external_policy,
        internal_policy: service.internal_policy,
        affinity_timeout_s: service.affinity_timeout_s,
        scheduler: wishes.scheduler,
        hash: wishes.hash,
        slow_start_s: wishes.slow_start_s,
        one_packet: wishes.one_packet && protocol == Protocol::Udp && delivery.mode == DeliveryMode::NodeDsr,
        ..ResolvedPort::default()
    }
}
