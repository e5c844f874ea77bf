//! Places: the addresses at which Services are reached, and those that pods look like from outside.
//!
//! Owns what each kind of address means for this machine, before any port: whether it is an address of ours whole, a
//! whole prefix, or one port of an address that stays the kernel's. Many Services may share a place; their frontends
//! there are what only one of them can have.

use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::{Body, Protocol, Resource, Service};

/// Somewhere a Service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// A VIP, or a prefix of VIPs; without host bits.
    Vip(IpNet),
    /// An external or cluster address.
    Service(IpAddr),
    /// A node port at an address of this machine.
    NodePort(IpAddr, Protocol, u16),
    /// An address that pods look like from outside.
    External(IpAddr),
}

impl Place {
    /// Every address of the place; `None` for a node port, whose address stays the kernel's.
    pub fn whole(&self) -> Option<IpNet> {
        match self {
            Place::Vip(prefix) => Some(*prefix),
            Place::Service(address) | Place::External(address) => Some((*address).into()),
            Place::NodePort(..) => None,
        }
    }
}

/// Whether a prefix is one address.
pub fn is_one(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// The places of `resource`, each with the field that names it and its number there.
pub fn places(resource: &Resource) -> impl Iterator<Item = ((&'static str, usize), Place)> {
    let (service, external): (_, &[IpAddr]) = match &resource.body {
        Body::Service(service) => (Some(service), &[]),
        Body::Egress(egress) => (None, &egress.addresses),
        Body::StaticNat(nat) => (None, std::slice::from_ref(&nat.external)),
        Body::Gateway(_) | Body::Peer(_) | Body::Pod(_) => (None, &[]),
        Body::Identity(_) | Body::IdentitySet(_) | Body::Policy(_) | Body::GatewayPolicy(_) => (None, &[]),
    };
    let field = if matches!(&resource.body, Body::Egress(_)) { "addresses" } else { "external" };
    let external = external.iter().enumerate();
    let external = external.map(move |(number, address)| ((field, number), Place::External(*address)));
    service.into_iter().flat_map(of_service).chain(external)
}

fn of_service(service: &Service) -> impl Iterator<Item = ((&'static str, usize), Place)> {
    fn named<T: Copy>(field: &'static str, list: &[T]) -> impl Iterator<Item = ((&'static str, usize), T)> {
        list.iter().enumerate().map(move |(number, entry)| ((field, number), *entry))
    }
    let vips = named("addresses", &service.addresses).map(|(at, address)| (at, Place::Vip(address.into())));
    let prefixes = named("prefixes", &service.prefixes).map(|(at, prefix)| (at, Place::Vip(prefix.trunc())));
    let external = named("external_addresses", &service.external_addresses);
    let cluster = named("cluster_addresses", &service.cluster_addresses);
    let whole = external.chain(cluster).map(|(at, address)| (at, Place::Service(address)));
    let nodes = named("node_addresses", &service.node_addresses).flat_map(|(at, address)| {
        let ports = service.ports.iter().filter(move |port| port.is_at(address));
        let ports = ports.filter_map(|port| Some((port.protocol, port.node_port?)));
        ports.map(move |(protocol, port)| (at, Place::NodePort(address, protocol, port)))
    });
    vips.chain(prefixes).chain(whole).chain(nodes)
}
