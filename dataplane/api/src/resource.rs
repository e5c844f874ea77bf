//! Resolved objects: what control wants, without selectors and without Kubernetes types.
//!
//! A resource has a kind, a name that is unique in its kind, a version (opaque; equal versions mean equal content)
//! and a body. Control sends all resources once (a full sync) and then only what changed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A pod: whose an overlay address is.
mod pod;
/// Translation of what leaves the cluster.
mod egress;
/// Network policy: identities, sets of them, rules.
mod policy;
/// Policy of a gateway: clients, Services, limits.
mod gatepolicy;

pub use egress::{Egress, Filtering, Mapping, MappingClass, PortForward, PortTimeout, StaticNat};
pub use gatepolicy::{ClientRange, FrontPort, GatewayAction, GatewayPolicy, GatewayRule, SourceLimits};
pub use pod::Pod;
pub use policy::{
    Action, Identity, IdentitySet, NamedPort, Policy, PolicyPeer, PolicyPort, PolicyRule, PortMatch, Tier,
};

/// Six octets of a link-layer address, in wire order; text form `02:00:5e:10:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddress(pub [u8; 6]);

/// Kind and name of a resource: its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ResourceKey {
    /// Which kind of object this is.
    pub kind: Kind,
    /// Unique within the kind, for example `shop/web` for the Service `web` in namespace `shop`.
    pub name: String,
}

/// The kinds of resolved objects this version knows, in the order in which they are sent: what limits others goes before
/// what it limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// This gateway itself: its VTEPs and reserved addresses. Exactly one.
    Gateway,
    /// Another node of the overlay: where its pods live and how to reach them.
    Peer,
    /// Pods that no policy can tell apart.
    Identity,
    /// The pods that one selector means.
    IdentitySet,
    /// Rules about who may reach whom.
    Policy,
    /// Rules about which clients may reach which Services.
    GatewayPolicy,
    /// A pod that some policy selects.
    Pod,
    /// A Service with its frontends and endpoints.
    Service,
    /// How selected pods reach the outside.
    Egress,
    /// An external address or port that is always the same pod's.
    StaticNat,
}

/// One object with its version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resource {
    /// Unique within its kind.
    pub name: String,
    /// Opaque; equal versions mean equal bodies.
    pub version: String,
    /// The object.
    pub body: Body,
}

/// The object itself, in a member named like its kind: `{"service": {…}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Body {
    /// See [`Gateway`].
    Gateway(Gateway),
    /// See [`Peer`].
    Peer(Peer),
    /// See [`Service`].
    Service(Service),
    /// See [`Identity`].
    Identity(Identity),
    /// See [`IdentitySet`].
    IdentitySet(IdentitySet),
    /// See [`Policy`].
    Policy(Policy),
    /// See [`GatewayPolicy`].
    GatewayPolicy(GatewayPolicy),
    /// See [`Pod`].
    Pod(Pod),
    /// See [`Egress`].
    Egress(Egress),
    /// See [`StaticNat`].
    StaticNat(StaticNat),
}

/// This gateway: one VTEP per family, and the overlay addresses reserved for `fullnat`.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Gateway {
    /// Inner IPv4 in outer IPv4 (V-020). Absent: no IPv4 overlay.
    pub vtep_v4: Option<Vtep>,
    /// Inner IPv6 in outer IPv6 (V-020). Absent: no IPv6 overlay.
    pub vtep_v6: Option<Vtep>,
    /// Source addresses for `fullnat`, both families, inside this gateway's pod CIDRs and never used by the kernel.
    #[serde(default)]
    pub fullnat_sources: Vec<IpAddr>,
    /// The pod CIDRs of this gateway's own node (traffic inside VXLAN to them is ours or the node's own pods').
    #[serde(default)]
    pub pod_cidrs: Vec<IpNet>,
    /// Key of the Maglev flow hash, equal on all gateways of a set (L-009); 16 bytes as hex. Empty: a fixed default.
    #[serde(default)]
    pub hash_key: String,
    /// A TCP segment that is not a SYN and has no flow (S-077, L-012).
    #[serde(default)]
    pub orphan_tcp: OrphanTcp,
    /// Clamp the MSS of SYN and SYN-ACK to what fits the overlay (V-013).
    #[serde(default = "yes")]
    pub clamp_mss: bool,
    /// Tunnels of load balancers in front of the gateway that end here. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decap: Option<Decap>,
    /// TCP port at which every node is asked whether it lives: that of kube-proxy's own health (S-114). Absent: none is
    /// asked, and none is ever suspected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_port: Option<u16>,
    /// What policies ask of flows and addresses, beside their rules.
    #[serde(default, skip_serializing_if = "PolicyOptions::is_default")]
    pub policy: PolicyOptions,
    /// The other gateways of the set, in the order of names. They share the announcement of VIPs on common links.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<GatewayPeer>,
}

/// How policies are applied, whatever they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyOptions {
    /// Flows that a policy has let begin are not asked again when policies change (P-031).
    #[serde(default)]
    pub sticky: bool,
    /// What becomes of packets from and to pod addresses that nobody has told of (P-034).
    #[serde(default)]
    pub unknown_pod: UnknownPod,
}

impl PolicyOptions {
    /// Whether nothing differs from the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of packets from and to an address within a node's pod prefixes whose pod is not known (P-034).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownPod {
    /// They pass as if no policy were about it: the CNI on workers is the first to decide.
    #[default]
    Allow,
    /// They are dropped.
    Deny,
}

/// Another gateway of the set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayPeer {
    /// Name of its Node.
    pub node: String,
    /// Where it is reached with heartbeats, any number of either family.
    pub addresses: Vec<IpAddr>,
}

/// Tunnels that end at this gateway: IP in IP (protocols 4 and 41) and GUE, of either family in either.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Decap {
    /// Outer destinations.
    pub addresses: Vec<IpAddr>,
    /// Outer sources; packets from elsewhere are dropped.
    pub sources: Vec<IpNet>,
    /// UDP port of GUE, host order. Absent: IP in IP alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gue_port: Option<u16>,
}

/// What to answer to a TCP segment without a flow in `fullnat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrphanTcp {
    /// Drop and count (S-077 default).
    #[default]
    Drop,
    /// Answer RST, rate-limited (L-012).
    Reset,
}

/// One VXLAN tunnel end point of this gateway (RFC 7348).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vtep {
    /// Underlay address: outer source on send, outer destination on receive.
    pub underlay: IpAddr,
    /// Inner source MAC on send, inner destination MAC on receive.
    pub mac: MacAddress,
    /// Overlay address of the VTEP itself (flannel: first address of the node's pod CIDR); answered to ARP and NS.
    pub overlay: IpAddr,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port, 8472 for flannel.
    pub port: u16,
}

/// Another node of the overlay (V-022): prefixes → VTEP MAC → underlay address.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Peer {
    /// How to reach its IPv4 pods.
    pub v4: Option<PeerVtep>,
    /// How to reach its IPv6 pods.
    pub v6: Option<PeerVtep>,
}

/// One family of a [`Peer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerVtep {
    /// Outer destination address.
    pub underlay: IpAddr,
    /// Inner destination MAC.
    pub mac: MacAddress,
    /// Network identifier this peer receives on.
    pub vni: u32,
    /// UDP destination port this peer receives on.
    pub port: u16,
    /// Pod prefixes that live on this node; inner sources from this peer must lie inside (P-047).
    pub pod_cidrs: Vec<IpNet>,
}

/// A Service as the dataplane sees it. Its name is `namespace/name`.
///
/// It is reached at four kinds of frontend, which differ in the rules that apply (S-065, S-066, S-080): its VIPs
/// (`addresses` and `prefixes`), its external addresses, its cluster addresses, and its node ports.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Service {
    /// Object identity: a Service deleted and made again under the same name is another one (S-005).
    pub uid: String,
    /// Seconds since the epoch at creation; the older Service owns a frontend claimed twice (S-067).
    #[serde(default)]
    pub created_at_s: i64,
    /// Addresses served (VIPs), any number of either family.
    pub addresses: Vec<IpAddr>,
    /// Prefixes all of whose addresses are VIPs; an exact frontend of any Service goes before them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<IpNet>,
    /// `externalIPs`: as VIPs, but `source_ranges` does not apply (S-066, S-080).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external_addresses: Vec<IpAddr>,
    /// `clusterIPs`, where the gateway serves them (S-060): `internal_policy` applies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cluster_addresses: Vec<IpAddr>,
    /// The gateway's node addresses, where it serves node ports (S-065); each port with its `node_port`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_addresses: Vec<IpAddr>,
    /// Clients that may reach the VIPs, both families in one list. A family without a range is not restricted (S-081).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_ranges: Vec<IpNet>,
    /// `healthCheckNodePort`, host order: a port that every node with kube-proxy has open, at which it may be asked whether it
    /// lives (S-114).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check_port: Option<u16>,
    /// One entry per (port, protocol).
    pub ports: Vec<ServicePort>,
}

/// One (port, protocol) of a Service and who answers it.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct ServicePort {
    /// Name in the Service, possibly empty.
    #[serde(default)]
    pub name: String,
    /// L4 protocol.
    pub protocol: Protocol,
    /// Port at the VIP, host order. 0: every port that no other frontend of the address has; a backend whose port is 0
    /// then gets the port that the client asked for.
    pub port: u16,
    /// Port at `Service::node_addresses`, host order; absent: not reached there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
    /// How packets reach a backend.
    #[serde(default)]
    pub mode: DeliveryMode,
    /// What `externalTrafficPolicy` says: which weight of a [`Backend`] counts for clients outside the cluster.
    #[serde(default)]
    pub external_policy: TrafficPolicy,
    /// What `internalTrafficPolicy` says, for `cluster_addresses`; `Local` at a gateway drops (S-060).
    #[serde(default)]
    pub internal_policy: TrafficPolicy,
    /// Seconds for which a client stays with its endpoint after its last new connection (S-090); absent: no affinity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_timeout_s: Option<u32>,
    /// Clients that are sent to a certain endpoint by where they come from, longest prefix first; all others, and those
    /// whose endpoint takes no new flows, are scheduled. In modes that choose the endpoint here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_backends: Vec<SourceBackend>,
    /// How an endpoint is chosen for a new flow.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// Which fields of a packet the schedulers that hash look at (L-009).
    #[serde(default)]
    pub hash: HashFields,
    /// Seconds over which the weight of a new endpoint grows to its full value (L-048); 0: at once.
    #[serde(default)]
    pub slow_start_s: u16,
    /// Every datagram is scheduled alone and leaves no flow behind; UDP in modes that keep the client's address only.
    #[serde(default)]
    pub one_packet: bool,
    /// Addresses (as prefixes of full length) and prefixes of the Service, of whatever kind, at which this port is another
    /// Service's (S-067).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_at: Vec<IpNet>,
    /// All serving endpoints of both families; an endpoint that left the serving set is absent (S-102).
    pub backends: Vec<Backend>,
    /// For telling people: endpoints that do not serve, of a family in which no endpoint gets new flows. Not all there are,
    /// if there are many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_serving: Vec<NotServing>,
}

/// Value of `externalTrafficPolicy` and `internalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrafficPolicy {
    /// Any endpoint.
    #[default]
    Cluster,
    /// Endpoints that are local to a node which is chosen first (S-048).
    Local,
}

/// How an endpoint is chosen for a new flow, by the names of the kernel's `ipvs` (L-030 … L-042).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduler {
    /// Maglev: the same choice on every gateway (L-001 … L-010).
    #[default]
    Mh,
    /// Round robin (L-030).
    Rr,
    /// Weighted round robin (L-031).
    Wrr,
    /// Least connections (L-032).
    Lc,
    /// Weighted least connections (L-033).
    Wlc,
    /// Shortest expected delay (L-034).
    Sed,
    /// Never queue (L-035).
    Nq,
    /// Hash of the source address (L-036).
    Sh,
    /// Hash of the destination address (L-037).
    Dh,
    /// Weighted failover (L-041).
    Fo,
    /// Weighted overflow (L-042).
    Ovf,
}

/// Which fields of a packet the schedulers that hash look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HashFields {
    /// Both addresses, both ports, protocol.
    #[default]
    Flow,
    /// The same without the client's port: all connections of a client go to one endpoint.
    WithoutSourcePort,
    /// The destination port alone.
    DestinationPort,
}

/// L4 protocol of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Protocol number 6.
    #[default]
    Tcp,
    /// Protocol number 17.
    Udp,
    /// Protocol number 132.
    Sctp,
}

/// How packets reach a backend (design 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryMode {
    /// Destination and source translated; replies come back through this gateway.
    #[default]
    Fullnat,
    /// The VIP is kept: the packet goes inside VXLAN to a node with a ready endpoint, nodes weighted by the
    /// `local_weight` of their endpoints, and that node's own kube-proxy picks the pod. To a node whose way has not been
    /// proven nothing is sent; while none is proven, delivery is `fullnat`.
    NodeDsr,
    /// Destination translated, source kept; each node sends its pods' replies back through the gateway they came from. To
    /// be asked for only where every endpoint's node is known to do so. Clients inside the overlay get `fullnat`.
    Symmetric,
}

/// One endpoint of a [`ServicePort`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backend {
    /// Pod address.
    pub address: IpAddr,
    /// Pod port, host order. 0 only under a [`ServicePort`] of every port: the port that the client asked for.
    pub port: u16,
    /// Share of new flows; 0: existing flows go on, no new ones (draining, or not in the Cluster set of S-043).
    #[serde(default = "one")]
    pub weight: u16,
    /// The same in the Local set of all nodes (S-048); 0 without a node (S-049).
    #[serde(default)]
    pub local_weight: u16,
    /// Name of the node the pod runs on, which is that of its [`Peer`]; empty when not known.
    #[serde(default)]
    pub node: String,
    /// Pod name, for telling people.
    #[serde(default)]
    pub pod: String,
}

/// An endpoint that is known and has no part in anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NotServing {
    /// Pod address.
    pub address: IpAddr,
    /// Name of the node the pod runs on; empty when not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
}

/// Clients whose endpoint is given by their address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SourceBackend {
    /// Their addresses, before any translation.
    pub sources: IpNet,
    /// Address of the endpoint, of the same family. One that is none of the port's backends has no effect.
    pub address: IpAddr,
}

/// Versions by key: what one side holds.
pub type Versions = BTreeMap<ResourceKey, String>;

fn yes() -> bool {
    true
}

fn one() -> u16 {
    1
}

impl Kind {
    /// Every kind, in the order of keys.
    pub const ALL: [Kind; 10] = [
        Kind::Gateway,
        Kind::Peer,
        Kind::Identity,
        Kind::IdentitySet,
        Kind::Policy,
        Kind::GatewayPolicy,
        Kind::Pod,
        Kind::Service,
        Kind::Egress,
        Kind::StaticNat,
    ];
}

impl Body {
    /// The kind this body belongs to.
    pub fn kind(&self) -> Kind {
        match self {
            Body::Gateway(_) => Kind::Gateway,
            Body::Peer(_) => Kind::Peer,
            Body::Service(_) => Kind::Service,
            Body::Identity(_) => Kind::Identity,
            Body::IdentitySet(_) => Kind::IdentitySet,
            Body::Policy(_) => Kind::Policy,
            Body::GatewayPolicy(_) => Kind::GatewayPolicy,
            Body::Pod(_) => Kind::Pod,
            Body::Egress(_) => Kind::Egress,
            Body::StaticNat(_) => Kind::StaticNat,
        }
    }
}

impl ServicePort {
    /// Whether this port is served at an address or prefix of its Service, and not another Service's there.
    pub fn is_at(&self, at: impl Into<IpNet>) -> bool {
        self.not_at.is_empty() || !self.not_at.contains(&at.into())
    }
}

impl Resource {
    /// Kind and name of this resource.
    pub fn key(&self) -> ResourceKey {
        ResourceKey { kind: self.body.kind(), name: self.name.clone() }
    }
}

impl Protocol {
    /// The IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

impl std::fmt::Display for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Scheduler::Mh => "mh",
            Scheduler::Rr => "rr",
            Scheduler::Wrr => "wrr",
            Scheduler::Lc => "lc",
            Scheduler::Wlc => "wlc",
            Scheduler::Sed => "sed",
            Scheduler::Nq => "nq",
            Scheduler::Sh => "sh",
            Scheduler::Dh => "dh",
            Scheduler::Fo => "fo",
            Scheduler::Ovf => "ovf",
        })
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Gateway => "gateway",
            Kind::Peer => "peer",
            Kind::Service => "service",
            Kind::Identity => "identity",
            Kind::IdentitySet => "identity set",
            Kind::Policy => "policy",
            Kind::GatewayPolicy => "gateway policy",
            Kind::Pod => "pod",
            Kind::Egress => "egress policy",
            Kind::StaticNat => "static NAT",
        })
    }
}

impl std::fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Whoever speaks to a socket chooses names; what is said about them must stay one line of a log.
        const CHARS_MAX: usize = 320;
        write!(f, "{} ", self.kind)?;
        self.name.chars().take(CHARS_MAX).flat_map(char::escape_debug).try_for_each(|char| write!(f, "{char}"))?;
        if self.name.chars().nth(CHARS_MAX).is_some() { f.write_str("…") } else { Ok(()) }
    }
}

impl std::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// A text that is not a MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address (expected six hexadecimal octets, like 02:00:5e:10:00:01)")]
pub struct NotAMacAddress(pub String);

impl std::str::FromStr for MacAddress {
    type Err = NotAMacAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut octets = [0u8; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(|| NotAMacAddress(text.into()))?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| NotAMacAddress(text.into()))?;
        }
        if parts.next().is_some() {
            return Err(NotAMacAddress(text.into()));
        }
        Ok(MacAddress(octets))
    }
}

impl Serialize for MacAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_shown_on_one_line_however_it_is() {
        let shown = |name: &str| ResourceKey { kind: Kind::Service, name: name.into() }.to_string();
        assert_eq!(shown("shop/web"), "service shop/web");
        assert_eq!(shown("a\nERROR b\u{1b}[2J"), "service a\\nERROR b\\u{1b}[2J");
        let long = shown(&"x".repeat(100_000));
        assert!(long.chars().count() < 340 && long.ends_with('…'), "{long}");
    }
}
