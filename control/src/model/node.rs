//! A Node: which pod prefixes live on it and how flannel's VXLAN reaches it (V-021).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::MacAddress;

/// One Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name of the Node.
    pub name: String,
    /// Object identity (S-005).
    pub uid: String,
    /// Pod prefixes of both families, host bits cleared.
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone` (S-045); empty when not given.
    pub zone: String,
    /// Label `node.kubernetes.io/exclude-from-external-load-balancers`: not a target of modes that choose nodes (S-006).
    pub excluded: bool,
    /// Its labels that are not "false", by which the gateways of a set are found.
    pub labels: BTreeSet<String>,
    /// All its labels, by which policies find it.
    pub label_values: BTreeMap<String, String>,
    /// Every address of `status.addresses`, sorted: what policies know as the Node's (P-107).
    pub all_addresses: BTreeSet<IpAddr>,
    /// Internal addresses of `status.addresses`, as listed (S-065).
    pub addresses: Vec<IpAddr>,
    /// What flannel says, or why this Node is not part of the VXLAN overlay.
    pub overlay: Result<Overlay, String>,
}

/// A Node's end points in the overlay: one per family (V-020).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// IPv4 in IPv4, or why not.
    pub v4: Result<Tunnel, String>,
    /// IPv6 in IPv6, or why not.
    pub v6: Result<Tunnel, String>,
}

/// One tunnel end point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Underlay address.
    pub underlay: IpAddr,
    /// MAC of the VTEP.
    pub mac: MacAddress,
    /// Network identifier, 24 bits.
    pub vni: u32,
}

impl Node {
    /// Pod prefixes of one family.
    pub fn pod_cidrs_of(&self, v4: bool) -> Vec<IpNet> {
        self.pod_cidrs.iter().copied().filter(|cidr| cidr.addr().is_ipv4() == v4).collect()
    }
}
