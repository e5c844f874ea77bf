//! Where a Service is reached at this gateway.
//!
//! Owns the sorting of its addresses into the four kinds of the contract, which differ in the rules that apply: VIPs and
//! prefixes, external addresses, cluster addresses, node addresses. An address that is of two kinds is of the first:
//! so nothing slips past the source ranges of a VIP by also being an external address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::site::Site;
use crate::model::service::Service;

/// Addresses of one Service by kind.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Frontends {
    /// VIPs.
    pub addresses: Vec<IpAddr>,
    /// Prefixes of VIPs.
    pub prefixes: Vec<IpNet>,
    /// `externalIPs` that are allowed.
    pub external_addresses: Vec<IpAddr>,
    /// `externalIPs` that are not (S-023).
    pub external_refused: Vec<IpAddr>,
    /// Cluster IPs.
    pub cluster_addresses: Vec<IpAddr>,
    /// Addresses of this gateway at which node ports are served.
    pub node_addresses: Vec<IpAddr>,
}

impl Frontends {
    /// The frontends of `service` at `site`.
    pub fn new(service: &Service, site: &Site) -> Self {
        let mut taken: BTreeSet<IpAddr> = service.addresses.iter().copied().collect();
        let mut fresh = |addresses: &[IpAddr]| -> Vec<IpAddr> {
            addresses.iter().copied().filter(|address| taken.insert(*address)).collect()
        };
        let allowed = |address: &IpAddr| site.external_ips.iter().any(|prefix| prefix.contains(address));
        let (external, external_refused): (Vec<_>, Vec<_>) = service.external_ips.iter().copied().partition(allowed);
        let has_node_ports = service.ports.iter().any(|port| port.node_port.is_some());
        let node = site.node_addresses.iter().copied();
        let node: Vec<IpAddr> = node.filter(|address| has_node_ports && service.has_family_of(*address)).collect();
        Frontends {
            addresses: service.addresses.clone(),
            prefixes: service.wishes.prefixes.clone(),
            external_addresses: fresh(&external),
            external_refused,
            cluster_addresses: if site.cluster_ips { fresh(&service.cluster_ips) } else { Vec::new() },
            node_addresses: fresh(&node), // S-065: never on VIPs
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.every_address().next().is_none()
    }

    /// Whether there is one whose clients' addresses could be kept: of the others a gateway is the only way (S-060, S-065).
    pub fn any_for_outside(&self) -> bool {
        !(self.addresses.is_empty() && self.prefixes.is_empty() && self.external_addresses.is_empty())
    }

    /// Whether there is one of that family.
    pub fn has_family(&self, v4: bool) -> bool {
        self.every_address().any(|address| address.is_ipv4() == v4)
            || self.prefixes.iter().any(|prefix| prefix.addr().is_ipv4() == v4)
    }

    fn every_address(&self) -> impl Iterator<Item = &IpAddr> {
        [&self.addresses, &self.external_addresses, &self.cluster_addresses, &self.node_addresses].into_iter().flatten()
    }
}
