//! What would become of a packet, and why: the question and its answer.
//!
//! The owning worker decides about the packet with its tables and its state as they are, and changes nothing: no counter,
//! no flow, no port. What cannot be known beforehand (limits on answers, a full ring) is not in the answer.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::resource::{MacAddress, Scheduler};

/// A packet that somebody asks about.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Question {
    /// Device it comes in by. Absent: of a frame the device with its destination MAC; of a bare IP packet the one that
    /// leads back to its sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Node whose VTEP sends it in VXLAN. Absent, and without a device: the node whose pod has the source address, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// True: `bytes` begin with an Ethernet header. False: with an IP header; the rest is put around it.
    #[serde(default)]
    pub is_frame: bool,
    /// The packet, as on the wire.
    pub bytes: Vec<u8>,
}

/// What would become of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The worker that owns it, whose tables and state these are; of what goes to the kernel 0.
    pub worker: u32,
    /// Generation of its tables.
    pub generation: u64,
    /// What was looked at, in order.
    pub steps: Vec<Step>,
    /// Where it ends.
    pub verdict: Verdict,
}

/// One step on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// It came in.
    Received {
        /// Device.
        device: String,
        /// Length of the frame.
        bytes: u32,
    },
    /// It was in VXLAN.
    Decapsulated {
        /// Node whose VTEP sent it.
        node: String,
        /// Address of that VTEP.
        underlay: IpAddr,
        /// Network identifier.
        vni: u32,
    },
    /// What it is, without VXLAN.
    Packet {
        /// IANA protocol number.
        protocol: u8,
        /// Source.
        source: IpAddr,
        /// Its port, for protocols that have ports.
        source_port: Option<u16>,
        /// Destination.
        destination: IpAddr,
        /// Its port.
        destination_port: Option<u16>,
        /// IP length.
        bytes: u16,
        /// Time to live; of IPv6 the hop limit.
        ttl: u8,
        /// Whether it is a fragment.
        fragment: bool,
    },
    /// The packet and the tables do not say the same of something.
    Differs {
        /// What it is, and of whom: `VTEP MAC of node w2`.
        what: String,
        /// What the tables have.
        tables: String,
        /// What the packet carries.
        packet: String,
    },
    /// Something is not as it would have to be for the packet to get through.
    Lacks {
        /// What it is, and of whom: `endpoints of shop/web port 80`.
        what: String,
        /// How it is.
        found: String,
        /// How it would have to be.
        needed: String,
    },
    /// It asks for the link-layer address of this one.
    Arp,
    /// Who owns it.
    Owned {
        /// Number of the worker.
        worker: u32,
        /// Of how many.
        workers: u32,
    },
    /// Its flow is known.
    Flow {
        /// Whether it goes the way of the first packet.
        original: bool,
        /// Whether a pod began it with the outside: then `vip` is whom it asked there, and `source` what it is seen as.
        #[serde(default)]
        egress: bool,
        /// State of the flow.
        state: String,
        /// Who began it, before translation.
        client: SocketAddr,
        /// Whom it asked.
        vip: SocketAddr,
        /// Translated source.
        source: SocketAddr,
        /// Translated destination.
        backend: SocketAddr,
        /// Since the last packet.
        idle_s: u64,
        /// Packets since the worker last carried its count to the backend, at most four seconds ago: the way of the first, and
        /// back. None while a handshake goes on.
        packets: (u64, u64),
    },
    /// No flow is known.
    NoFlow,
    /// Something the flow depends on has changed since its last packet: all is looked at again.
    Revalidated,
    /// It asks for this port of a Service.
    Service {
        /// `namespace/name`.
        service: String,
        /// Port of the Service; 0: every port.
        port: u16,
        /// What sort of address was asked for: `vip`, `external`, `cluster`, `node`.
        kind: String,
        /// `fullnat` or `node-dsr`.
        mode: String,
        /// How an endpoint is chosen.
        scheduler: Scheduler,
        /// Endpoints that new flows can get.
        endpoints: u32,
        /// Seconds for which a client stays with its endpoint; 0: no session affinity.
        #[serde(default, skip_serializing_if = "is_zero")]
        affinity_s: u32,
        /// Whether the endpoint of this client is remembered.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        is_remembered: bool,
    },
    /// It is a pod's, on its way to the outside.
    Egress {
        /// The pod's address.
        pod: IpAddr,
        /// Names of the EgressPolicies in force that the pod has.
        policies: Vec<String>,
        /// The first that is for this destination. One that is not among `policies` selects the pod and is not in force; empty:
        /// its name is not known either. Absent: none is, or the pod has an address of its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<String>,
        /// The external address that the pod has: of that policy, or its own by a StaticNat (1:1).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<IpAddr>,
    },
    /// It is to an external address of pods.
    External {
        /// The address.
        address: IpAddr,
        /// Names of the EgressPolicies that have it.
        policies: Vec<String>,
    },
    /// What a pod's end is seen as from outside.
    Binding {
        /// Which sort: `endpoint-independent`, `address-and-port-dependent`, `one-to-one`, `forwarded-port`, or
        /// `whole-protocol` for a protocol without ports, which is the pod's with this remote.
        sort: String,
        /// The EgressPolicy; empty: a StaticNat, or a policy that is no more.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        policy: String,
        /// The StaticNat; empty: an EgressPolicy.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        static_nat: String,
        /// Address and port of the pod, or its echo identifier; port 0: a protocol without ports.
        internal: SocketAddr,
        /// The same as it is seen from outside.
        external: SocketAddr,
        /// First and last port of the block that the port was dealt in; absent where no worker gives the port out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        block: Option<(u16, u16)>,
        /// Whether this packet would make it.
        is_new: bool,
    },
    /// This endpoint has it, or this node.
    Backend {
        /// Address.
        address: IpAddr,
        /// Port; 0: the node picks the pod.
        port: u16,
        /// Node, where known.
        node: String,
        /// Name of the pod, where known.
        pod: String,
    },
    /// A policy was asked.
    Policy {
        /// `ingress` or `egress` of a pod; `clients`: a GatewayPolicy.
        direction: String,
        /// The object that decided, as control names it; empty: none is about it, or none decided.
        policy: String,
        /// What the rule is counted under, where only that is known yet; never told.
        #[serde(skip)]
        key: u64,
        /// Number of its rule; absent: the isolation that no rule lifts.
        rule: Option<u16>,
        /// Whether it may pass.
        allowed: bool,
        /// Of what may not pass both ends as the policy sees them: the source before and the destination after translation.
        /// Absent: it may, or a node picks the pod.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ends: Option<(SocketAddr, SocketAddr)>,
    },
    /// What it leaves with.
    Translated {
        /// Source.
        source: SocketAddr,
        /// Destination.
        destination: SocketAddr,
    },
    /// It is to another pod's external address and comes back in as if from the wire: what follows is of this second half.
    TakenBack,
    /// It leaves in VXLAN.
    Encapsulated {
        /// Node it goes to.
        node: String,
        /// Address of that node's VTEP.
        underlay: IpAddr,
        /// Link-layer address of that VTEP.
        mac: MacAddress,
        /// Network identifier.
        vni: u32,
        /// Largest inner packet.
        mtu: u16,
    },
    /// The neighbour that it is handed to.
    NextHop {
        /// Device.
        device: String,
        /// Address.
        address: IpAddr,
        /// Link-layer address; absent: it is being asked for.
        mac: Option<MacAddress>,
        /// Largest packet on the device.
        mtu: u16,
    },
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Where a packet ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// It leaves.
    Sent {
        /// By this device.
        device: String,
        /// In fragments, since it is larger than its path.
        in_fragments: bool,
    },
    /// It waits until its neighbour answers, and is dropped when that takes too long.
    Waits {
        /// Device of the neighbour.
        device: String,
        /// Its address.
        address: IpAddr,
    },
    /// It comes back in as if from the wire, since it is to an external address of another pod; only of fragments and ICMP
    /// errors, whose second half is not told.
    Returns,
    /// It is answered from here.
    Answered {
        /// With what.
        with: String,
        /// Why it is not let through, where that is a reason for drops.
        reason: Option<Reason>,
    },
    /// It waits for the first fragment of its datagram, or goes on with that one's ports.
    Followed,
    /// The pinhole passes it to this machine's kernel; no worker sees it.
    Kernel {
        /// Which entry the pinhole would need, and who has the address.
        why: String,
    },
    /// It ends here.
    Dropped(Reason),
}

/// A reason for drops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Its name, as counted.
    pub reason: String,
    /// The stage that gives it.
    pub stage: String,
    /// `info`, `warning` or `error`.
    pub severity: String,
    /// What it means.
    pub help: String,
}
