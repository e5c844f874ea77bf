//! A Service as far as a gateway cares: a valid value, whatever the manifest looked like.

use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::Protocol;

use super::Name;

/// One Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Namespace and name.
    pub name: Name,
    /// Object identity (S-005); empty when nobody assigned one.
    pub uid: String,
    /// Seconds since the epoch at creation, 0 when unknown (S-067).
    pub created_at_s: i64,
    /// `metadata.generation`, told back in conditions.
    pub generation: Option<i64>,
    /// Whether `spec.type` is LoadBalancer; all below is empty when it is not.
    pub load_balancer: bool,
    /// `spec.loadBalancerClass` (S-001).
    pub class: Option<String>,
    /// The label that leaves this Service to somebody else (S-003).
    pub left_to: Option<&'static str>,
    /// `clusterIP` is `None` or empty (S-004).
    pub without_cluster_ip: bool,
    /// Addresses served, in order of `ipFamilies`, then as listed (S-120).
    pub addresses: Vec<IpAddr>,
    /// Addresses listed whose family is not in `ipFamilies` (S-123).
    pub addresses_of_other_families: Vec<IpAddr>,
    /// Ports in order of (port, protocol), which is unique (S-010).
    pub ports: Vec<ServicePort>,
    /// `externalTrafficPolicy: Local` (S-017).
    pub local: bool,
    /// `loadBalancerSourceRanges` or its annotation (S-021).
    pub source_ranges: Vec<IpNet>,
    /// `sessionAffinity: ClientIP` (S-015).
    pub affinity: bool,
    /// `externalIPs` (S-023).
    pub external_ips: Vec<String>,
}

/// One (port, protocol) of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, the key to slice ports; may be empty.
    pub name: String,
    /// L4 protocol.
    pub protocol: Protocol,
    /// Port at the VIP, host order, never 0.
    pub port: u16,
}
