//! Drop reasons: the one list of why a packet may end here.
//!
//! Owns the enum, the names, the help texts and the severities; counters, `tidegate show drops` and `docs/drops.md`
//! are made from this list and from nothing else. A packet leaves with exactly one verdict, and if that verdict is
//! a drop it carries exactly one of these.

use crate::wire::Malformed;

/// How much an operator should care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Normal in any network: scans, late segments, expired time to live.
    Info,
    /// Somebody sends what they should not, or something is missing.
    Warning,
    /// Tidegate or its host is short of something, or misconfigured.
    Error,
}

impl Severity {
    /// Lower-case name, as shown to people and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

macro_rules! drops {
    ($($variant:ident, $stage:ident, $severity:ident, $help:literal;)*) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $help] $variant,)*
        }

        impl DropReason {
            /// All reasons in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// Stable name, as counted and shown.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => stringify!($variant),)* }
            }

            /// The stage that gives this reason: a file of `dataplane/src/stage`.
            pub const fn stage(self) -> &'static str {
                match self { $(DropReason::$variant => stringify!($stage),)* }
            }

            /// How much an operator should care.
            pub const fn severity(self) -> Severity {
                match self { $(DropReason::$variant => Severity::$severity,)* }
            }

            /// What it means, one sentence.
            pub const fn help(self) -> &'static str {
                match self { $(DropReason::$variant => $help,)* }
            }
        }
    };
}

drops! {
    EthernetTruncated,     parse, Warning, "The frame ends inside the Ethernet header.";
    VlanTruncated,         parse, Warning, "The frame ends inside an 802.1Q tag, or has more than two.";
    EthertypeUnknown,      parse, Info,    "Neither IPv4, IPv6 nor ARP.";
    OtherHost,             parse, Info,    "The destination MAC is neither ours nor a group address.";
    ArpMalformed,          parse, Warning, "An ARP packet of the wrong length, hardware or protocol type.";
    Ipv4Truncated,         parse, Warning, "The packet ends inside the IPv4 header.";
    Ipv4BadVersion,        parse, Warning, "The version field is not 4.";
    Ipv4BadHeaderLength,   parse, Warning, "IHL is below 5 or beyond the packet.";
    Ipv4BadTotalLength,    parse, Warning, "The IPv4 total length is below the header or beyond the frame.";
    Ipv4BadChecksum,       parse, Warning, "The IPv4 header checksum is wrong.";
    Ipv4SourceRoute,       parse, Warning, "The packet carries a source route option (L-056).";
    Ipv4BadOptions,        parse, Warning, "An IPv4 option has an impossible length.";
    Ipv4BadFragment,       parse, Warning, "A fragment beyond 65,535 bytes, or a middle one whose length is no multiple of eight.";
    Ipv6Truncated,         parse, Warning, "The packet ends inside the IPv6 header or an extension header.";
    Ipv6BadVersion,        parse, Warning, "The version field is not 6.";
    Ipv6BadPayloadLength,  parse, Warning, "The IPv6 payload length is beyond the frame.";
    Ipv6ExtensionTooMany,  parse, Warning, "More IPv6 extension headers than are followed.";
    Ipv6ExtensionOrder,    parse, Warning, "Hop-by-hop options that are not the first extension header.";
    Ipv6BadFragment,       parse, Warning, "A fragment beyond 65,535 bytes, of odd length in the middle, or with two fragment headers.";
    Ipv6RoutingHeader,     parse, Warning, "A routing header of type 0 (RFC 5095), or one that still has segments left.";
    UdpTruncated,          parse, Warning, "The packet ends inside the UDP header.";
    UdpBadLength,          parse, Warning, "The UDP length is below 8 or beyond the packet.";
    Udp6ZeroChecksum,      parse, Warning, "A UDP datagram over IPv6 without checksum (N-072).";
    TcpTruncated,          parse, Warning, "The packet ends inside the TCP header.";
    TcpBadOffset,          parse, Warning, "The TCP data offset is below 5 or beyond the packet.";
    SctpTruncated,         parse, Warning, "The packet ends inside the SCTP common header.";
    SctpBadChecksum,       sctp, Warning,  "The CRC32c of an SCTP packet is wrong (N-075).";
    SctpInvalid,           sctp, Warning,  "An SCTP packet whose chunks cannot be read, or that no SCTP sends (RFC 9260 sections 6.10, 8.5).";
    SctpFragment,          sctp, Warning,  "A fragment of an SCTP packet whose ports would change: its checksum covers what is elsewhere (N-075).";
    IcmpTruncated,         parse, Warning, "The packet ends inside the ICMP or ICMPv6 header.";
    IcmpBadChecksum,       parse, Warning, "The checksum of an ICMP message that we would answer or translate is wrong.";
    QuoteMalformed,        parse, Warning, "The packet quoted by an ICMP error cannot be understood.";
    NdpMalformed,          parse, Warning, "A neighbour solicitation with a wrong length, hop limit or option.";
    MartianSource,         parse, Warning, "The source is multicast, broadcast, loopback, unspecified, or equals the destination.";
    VxlanTruncated,        parse, Warning, "The datagram ends inside the VXLAN header.";
    VxlanNoVni,            parse, Warning, "The VXLAN I flag is not set (V-001).";
    VxlanUnknownVni,       parse, Warning, "No overlay here has this VNI (V-002).";
    VxlanUnknownPeer,      parse, Warning, "The outer source is not a known VTEP (V-015).";
    VxlanOuterFragment,    parse, Warning, "A fragmented VXLAN datagram (V-012).";
    VxlanOtherHost,        parse, Info,    "The inner destination MAC is not our VTEP's (V-015).";
    VxlanInnerVlan,        parse, Warning, "The inner frame carries an 802.1Q tag (V-014).";
    VxlanWrongFamily,      parse, Warning, "Inner and outer family differ, which no peer of this overlay sends (V-020).";
    EcnMismatch,           parse, Warning, "Outer CE on an inner packet that is not ECN capable (V-007, RFC 6040).";
    DecapUnknownSource,    decap, Warning, "The outer source may not send into a tunnel that ends here.";
    DecapOuterFragment,    decap, Warning, "A fragment of a packet that a tunnel brought: it must arrive whole.";
    DecapNested,           decap, Warning, "A tunnel inside a tunnel that ends here.";
    GueTruncated,          decap, Warning, "The datagram ends inside the GUE header.";
    GueUnsupported,        decap, Warning, "GUE with flags, of an unknown variant, a control message, or without an IP packet.";
    FragmentUntracked,     flow, Info,     "A fragment whose flow is not known, or of a protocol whose fragments are not followed.";
    FragmentOverlap,       fragment, Warning, "A fragment that overlaps another of its datagram, or comes after one that did (N-061).";
    FragmentExpired,       fragment, Info, "The first fragment of its datagram did not come in time (N-060).";
    FragmentsFull,         fragment, Warning, "No room to follow another datagram in fragments, or to let another one wait (N-063).";
    HandOverFull,          owner, Error,   "The ring to the worker that owns the packet had no room: that worker is overloaded.";
    HandOverLoop,          owner, Warning, "The packet changed hands twice and belongs to yet another worker.";
    SpoofedSource,         flow, Error,    "The inner source does not live behind the VTEP that sent it (P-047).";
    NotOurs,               flow, Info,     "The destination is no address served here.";
    NoFlow,                flow, Info,     "Addressed to a translated address, but no flow is known (S-078).";
    OrphanSegment,         flow, Info,     "A TCP segment that is no SYN, or an SCTP packet that is no INIT, to a Service, without a flow (S-077).";
    TcpInvalid,            flow, Info,     "A TCP segment that the state of its flow does not allow (N-086).";
    TableFull,             flow, Error,    "The flow table has no room and nothing in it that can be spared; established flows are never evicted (N-100).";
    NoFrontend,            service, Info,  "No Service has this address, protocol and port (S-074).";
    SourceDenied,          service, Info,  "The client is in none of the Service's source ranges (S-072).";
    NoLocalEndpoint,       service, Warning, "The external traffic policy is Local, and no endpoint is known by its node (S-071).";
    InternalPolicyLocal,   service, Info,  "A cluster address under the internal traffic policy Local: gateways have no endpoint (S-060).";
    NodePortLocal,         service, Info,  "A node port under the external traffic policy Local: gateways have no endpoint (S-065).";
    NoBackend,             service, Warning, "The Service has no endpoint; beyond the rate at which that is answered (S-070).";
    ProtocolUnsupported,   service, Info,  "A protocol other than TCP, UDP, SCTP or ICMP echo at a Service address.";
    PolicyDeniedIngress,   policy, Info,   "A network policy of the pod that this would go to does not allow it (P-040).";
    PolicyDeniedEgress,    policy, Info,   "A network policy of the pod that sends this does not allow it (P-042).";
    PolicyUnknownPod,      policy, Info,   "From or to an address of a node's pods whose pod is not known, and such are to be denied (P-034).";
    GatewayPolicyDenied,   gatepolicy, Info, "A GatewayPolicy does not let this client reach the Service, or be answered an echo.";
    GatewayPolicyLimited,  gatepolicy, Info, "The source has more new connections or unfinished handshakes than a GatewayPolicy allows it.";
    PortsExhausted,        nat, Error,     "Every source port towards this backend is in use: reserve more fullnat addresses.";
    NoSource,              nat, Error,     "No fullnat source address of this family is configured.";
    NoMapping,             egress, Info,   "From outside to an external address, and no pod has that port (N-023).";
    Filtered,              egress, Info,   "From outside to a pod's external port, by somebody the pod has not sent to (N-009).";
    EgressNoAddress,       egress, Error,  "A pod under an egress policy that has no address of this family, or that nobody knows; beyond the rate at which that is answered (N-111).";
    EgressPortsExhausted,  egress, Error,  "Every port of the pod's external address that this worker gives out is in use; beyond the rate at which that is answered (N-041).";
    EgressQuota,           egress, Warning, "The pod or its namespace holds as many ports as its egress policy allows; beyond the rate at which that is answered (N-040).";
    EgressElsewhere,       egress, Info,   "The first packet of a pod's flow, at a gateway that does not carry the pod's external address: its answers would go to another one (N-111, N-112).";
    EgressProtocolTaken,   egress, Info,   "A protocol without ports, to somebody whom another pod with the same external address speaks it with; beyond the rate at which that is answered (N-095).";
    NoRoute,               route, Warning, "No route to the destination, or only one that forbids it.";
    NoTunnel,              route, Warning, "The backend lives behind no known VTEP.";
    NeighbourUnresolved,   route, Warning, "The next hop did not answer in time, or too many packets wait for it.";
    NoEgressPort,          route, Error,   "The route leaves by a device that this worker does not serve.";
    EditRefused,           rewrite, Error, "The frame was not what parse had said of it; report this.";
    TtlExpired,            rewrite, Info,  "Time to live ran out; beyond the rate at which that is answered.";
    TooBig,                encap, Info,    "Larger than the path allows; beyond the rate at which that is answered (V-010).";
    NoFrames,              encap, Error,   "No free frame for the pieces of a packet that had to be cut (V-010).";
    NoHeadroom,            encap, Error,   "The frame has no room for another header.";
    AnswerSuppressed,      local, Info,    "A request that we answer, beyond the rate at which we do.";
    ErrorUnmatched,        error, Info,    "An ICMP error that quotes no flow of ours.";
    IcmpUnhandled,         local, Info,    "An ICMP message to one of our addresses that is neither echo, error nor discovery.";
    TxRingFull,            verdict, Error, "The port's transmit ring had no room.";
    ShuttingDown,          verdict, Info,  "Held when the worker stopped.";
}

impl From<Malformed> for DropReason {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::EthernetTruncated => DropReason::EthernetTruncated,
            Malformed::VlanTruncated | Malformed::VlanTooMany => DropReason::VlanTruncated,
            Malformed::ArpMalformed => DropReason::ArpMalformed,
            Malformed::Ipv4Truncated => DropReason::Ipv4Truncated,
            Malformed::Ipv4BadVersion => DropReason::Ipv4BadVersion,
            Malformed::Ipv4BadHeaderLength => DropReason::Ipv4BadHeaderLength,
            Malformed::Ipv4BadTotalLength => DropReason::Ipv4BadTotalLength,
            Malformed::Ipv4BadChecksum => DropReason::Ipv4BadChecksum,
            Malformed::Ipv4BadOptions => DropReason::Ipv4BadOptions,
            Malformed::Ipv4SourceRoute => DropReason::Ipv4SourceRoute,
            Malformed::Ipv4BadFragment => DropReason::Ipv4BadFragment,
            Malformed::Ipv6Truncated | Malformed::Ipv6ExtensionTruncated => DropReason::Ipv6Truncated,
            Malformed::Ipv6BadVersion => DropReason::Ipv6BadVersion,
            Malformed::Ipv6BadPayloadLength => DropReason::Ipv6BadPayloadLength,
            Malformed::Ipv6ExtensionTooMany => DropReason::Ipv6ExtensionTooMany,
            Malformed::Ipv6ExtensionOrder => DropReason::Ipv6ExtensionOrder,
            Malformed::Ipv6BadFragment => DropReason::Ipv6BadFragment,
            Malformed::Ipv6RoutingHeader => DropReason::Ipv6RoutingHeader,
            Malformed::UdpTruncated => DropReason::UdpTruncated,
            Malformed::UdpBadLength => DropReason::UdpBadLength,
            Malformed::Udp6ZeroChecksum => DropReason::Udp6ZeroChecksum,
            Malformed::TcpTruncated => DropReason::TcpTruncated,
            Malformed::TcpBadOffset => DropReason::TcpBadOffset,
            Malformed::SctpTruncated => DropReason::SctpTruncated,
            Malformed::IcmpTruncated => DropReason::IcmpTruncated,
            Malformed::IcmpBadChecksum => DropReason::IcmpBadChecksum,
            Malformed::QuoteTruncated
            | Malformed::QuoteBadChecksum
            | Malformed::QuoteBadHeader
            | Malformed::QuoteLaterFragment => DropReason::QuoteMalformed,
            Malformed::NdpMalformed => DropReason::NdpMalformed,
            Malformed::VxlanTruncated => DropReason::VxlanTruncated,
            Malformed::VxlanNoVni => DropReason::VxlanNoVni,
            Malformed::GueTruncated => DropReason::GueTruncated,
            Malformed::GueUnsupported => DropReason::GueUnsupported,
        }
    }
}

/// The text of `docs/drops.md`.
pub fn document() -> String {
    let mut text = String::from(
        "# Drop reasons\n\nGenerated from `dataplane/src/drops.rs`; a test compares. See `tidegate show drops`.\n\n\
         | reason | stage | severity | meaning |\n|---|---|---|---|\n",
    );
    for reason in DropReason::ALL {
        text.push_str(&format!(
            "| `{}` | {} | {} | {} |\n",
            reason.name(),
            reason.stage(),
            reason.severity().name(),
            reason.help()
        ));
    }
    text
}
