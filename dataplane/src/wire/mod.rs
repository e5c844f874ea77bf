//! Wire formats: every header Tidegate reads or writes, and the only parser of them.
//!
//! Owns byte layouts, their validation, checksums and the edits that keep checksums true. Refuses to know tables, flows,
//! time and counters: a function here takes bytes and values and returns values.
//!
//! How a packet is learned: [`ethernet::parse_ethernet`] finds the network header, [`packet::parse_l3`] checks it and
//! everything up to the ports in one pass, and returns an [`L3`](packet::L3) that later steps trust. Addresses stay in the
//! frame until the key builder copies them once ([`ipv4::addresses`], [`ipv6::addresses`]).
//!
//! How headers are written: a `Repr` value has `len()` and `emit(&mut [u8])`, and `parse(emit(x)) == x`. Headers inside
//! forwarded packets are changed by [`edit`], and in no other place.
//!
//! Nothing here allocates, and nothing panics, whatever the bytes are.

pub mod checksum;
pub mod ethernet;
pub mod arp;
pub mod ipv4;
pub mod ipv6;
pub mod packet;
mod plain;
pub mod udp;
pub mod tcp;
pub mod sctp;
pub mod icmp;
pub mod icmpv6;
pub mod ndp;
pub mod vxlan;
pub mod gue;
pub mod encap;
pub mod quote;
pub mod edit;
pub mod fragment;
pub mod reset;

/// The header at the start of bytes, and what follows it; `None` if there are not that many. One comparison, where a cast of
/// a slice's prefix also asks whether it could wrap around the end of memory.
macro_rules! front {
    ($header:ty, $bytes:expr) => {{
        let bytes: &[u8] = $bytes;
        bytes.split_first_chunk::<{ size_of::<$header>() }>().map(|(front, rest)| {
            let header: &$header = zerocopy::transmute_ref!(front);
            (header, rest)
        })
    }};
}
/// The header at the start of bytes, to be written.
macro_rules! front_mut {
    ($header:ty, $bytes:expr) => {{
        let bytes: &mut [u8] = $bytes;
        bytes.first_chunk_mut::<{ size_of::<$header>() }>().map(|front| {
            let header: &mut $header = zerocopy::transmute_mut!(front);
            header
        })
    }};
}
use {front, front_mut};

/// IP version of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Internet Protocol version 4.
    V4,
    /// Internet Protocol version 6.
    V6,
}

/// Protocol numbers of the IPv4 protocol field and the IPv6 next-header field (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// IPv6 hop-by-hop options, RFC 8200 section 4.3.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4, RFC 792.
    pub const ICMP: u8 = 1;
    /// IPv4 inside another packet, RFC 2003.
    pub const IPIP: u8 = 4;
    /// Transmission Control Protocol, RFC 9293.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol, RFC 768.
    pub const UDP: u8 = 17;
    /// IPv6 inside another packet, RFC 2473 and RFC 4213.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header, RFC 8200 section 4.4.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header, RFC 8200 section 4.5.
    pub const FRAGMENT: u8 = 44;
    /// Generic routing encapsulation, RFC 2784.
    pub const GRE: u8 = 47;
    /// Encapsulating security payload, RFC 4303.
    pub const ESP: u8 = 50;
    /// Authentication header, RFC 4302.
    pub const AH: u8 = 51;
    /// ICMP for IPv6, RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// IPv6 "no next header", RFC 8200 section 4.7.
    pub const NO_NEXT: u8 = 59;
    /// IPv6 destination options, RFC 8200 section 4.6.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// Stream Control Transmission Protocol, RFC 9260.
    pub const SCTP: u8 = 132;
}

/// Why bytes are not the packet they claim to be: one variant per distinct reason, each a drop reason of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// Fewer than 14 bytes of Ethernet header.
    EthernetTruncated,
    /// An 802.1Q or 802.1ad tag without its four bytes.
    VlanTruncated,
    /// A third VLAN tag.
    VlanTooMany,
    /// ARP too short, or not Ethernet/IPv4, or an unknown operation.
    ArpMalformed,
    /// Fewer bytes than the IPv4 header announces.
    Ipv4Truncated,
    /// Version field of an IPv4 packet is not 4.
    Ipv4BadVersion,
    /// Header length below five words.
    Ipv4BadHeaderLength,
    /// Total length smaller than the header or larger than the frame.
    Ipv4BadTotalLength,
    /// Header checksum does not verify.
    Ipv4BadChecksum,
    /// An option that runs past the header.
    Ipv4BadOptions,
    /// Loose or strict source route option (L-056).
    Ipv4SourceRoute,
    /// A fragment that ends beyond 65,535 bytes, or a middle fragment whose length is not a multiple of eight.
    Ipv4BadFragment,
    /// Fewer than 40 bytes of IPv6 header.
    Ipv6Truncated,
    /// Version field of an IPv6 packet is not 6.
    Ipv6BadVersion,
    /// Payload length larger than the frame, or a jumbogram.
    Ipv6BadPayloadLength,
    /// An extension header that runs past the packet.
    Ipv6ExtensionTruncated,
    /// More extension headers or bytes of them than N-064 allows.
    Ipv6ExtensionTooMany,
    /// Hop-by-hop options that are not the first extension header.
    Ipv6ExtensionOrder,
    /// Type 0 routing header (RFC 5095), or one that still has segments to visit.
    Ipv6RoutingHeader,
    /// A fragment that ends beyond 65,535 bytes, a middle fragment whose length is not a multiple of eight, or two
    /// fragment headers.
    Ipv6BadFragment,
    /// Fewer than eight bytes of UDP header.
    UdpTruncated,
    /// UDP length below eight or beyond the IP payload.
    UdpBadLength,
    /// UDP checksum zero over IPv6 (N-072).
    Udp6ZeroChecksum,
    /// Fewer than 20 bytes of TCP header, or fewer than the data offset announces; tiny first fragments too (N-061).
    TcpTruncated,
    /// TCP data offset below five words.
    TcpBadOffset,
    /// Fewer than twelve bytes of SCTP common header.
    SctpTruncated,
    /// Fewer than eight bytes of ICMP or ICMPv6 header.
    IcmpTruncated,
    /// ICMP or ICMPv6 checksum does not verify (N-031).
    IcmpBadChecksum,
    /// Neighbour discovery that RFC 4861 sections 7.1.1 and 7.1.2 tell receivers to discard.
    NdpMalformed,
    /// Fewer than eight bytes of VXLAN header.
    VxlanTruncated,
    /// VXLAN header without the I flag (V-001).
    VxlanNoVni,
    /// Fewer bytes than the GUE header announces, or none at all.
    GueTruncated,
    /// GUE with flags, of an unknown variant, a control message, or with something other than IP inside.
    GueUnsupported,
    /// The packet quoted in an ICMP error is too short to name its flow, or is of the wrong family.
    QuoteTruncated,
    /// The quoted IPv4 header's checksum does not verify (N-031, RFC 5508 REQ-3a).
    QuoteBadChecksum,
    /// The quoted IPv4 header's version or header length is wrong.
    QuoteBadHeader,
    /// The quoted packet is not a first fragment: it has no ports.
    QuoteLaterFragment,
}
