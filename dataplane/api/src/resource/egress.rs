//! Translation of what leaves the cluster: egress policies, and addresses translated one to one.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Protocol;

/// How pods that name it reach the outside. Its resource is named like the object it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    /// Destinations it is for; empty: every one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<IpNet>,
    /// Destinations within those that it is not for: they are forwarded untranslated (N-043, N-110).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<IpNet>,
    /// Where the cluster itself is: neither translated nor forwarded, unless the same prefix is in `except` (N-110).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inside: Vec<IpNet>,
    /// Addresses that the outside sees, of either family; this gateway alone uses them. None of a packet's family: the
    /// packet is dropped (N-111).
    pub addresses: Vec<IpAddr>,
    /// TCP: how ports are given out, and who may send to them.
    #[serde(default = "by_destination")]
    pub tcp: Mapping,
    /// The same for UDP.
    #[serde(default)]
    pub udp: Mapping,
    /// Most ports that one pod may hold at once, over all protocols and addresses of a family; `None`: no limit (N-040).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports_per_pod_max: Option<u32>,
    /// Most ports that all pods of one namespace may hold at once; `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports_per_namespace_max: Option<u32>,
    /// Idle UDP mappings to these ports end earlier than others (N-007); both in host order and seconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub udp_timeouts: Vec<PortTimeout>,
    /// Whether protocols that have no ports (ESP, GRE, IP in IP) leave too, one pod with each destination (N-095).
    #[serde(default)]
    pub other_protocols: bool,
    /// Whether the ledger records who had which port (N-044).
    #[serde(default)]
    pub log: bool,
}

/// How ports of one protocol are given out, and who may send to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Mapping {
    /// Which packets of a pod's port show the same external port.
    #[serde(default)]
    pub class: MappingClass,
    /// Who may send to a mapped port (of endpoint-independent mappings; others take packets of their peer alone).
    #[serde(default)]
    pub filtering: Filtering,
}

/// Mapping behaviour in the terms of RFC 4787 section 4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MappingClass {
    /// One external port for all destinations (REQ-1).
    #[default]
    EndpointIndependent,
    /// An external port per destination address and port, which flows to other destinations may share (RFC 7857
    /// section 3).
    AddressAndPortDependent,
}

/// Filtering behaviour in the terms of RFC 4787 section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filtering {
    /// Addresses that the pod has sent to from this port.
    #[default]
    AddressDependent,
    /// Everyone.
    EndpointIndependent,
}

/// How long a mapping to a destination port lives unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortTimeout {
    /// Destination port, host order, never 0.
    pub port: u16,
    /// Seconds, 1..=86,400.
    pub idle_s: u32,
}

/// An external address, or some of its ports, that is always the same pod's. Its resource is named like the object it
/// comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticNat {
    /// What the outside sees.
    pub external: IpAddr,
    /// The pod's address, of the same family.
    pub internal: IpAddr,
    /// Ports that are forwarded; empty: everything, of every protocol, in both directions (1:1).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortForward>,
}

/// One forwarded port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortForward {
    /// L4 protocol.
    pub protocol: Protocol,
    /// Port at the external address, host order, never 0.
    pub external: u16,
    /// Port at the internal address, host order, never 0.
    pub internal: u16,
}

/// TCP maps by destination unless asked otherwise: endpoint-independent TCP with the timers of RFC 5382 gives an address
/// about 180 new connections a second.
fn by_destination() -> Mapping {
    Mapping { class: MappingClass::AddressAndPortDependent, filtering: Filtering::AddressDependent }
}
