//! VXLAN encapsulation: the outer headers of a tunnel, prepared once and finished per packet.
//!
//! Owns what is put in front of an inner IP packet: outer Ethernet, outer IP, outer UDP, VXLAN and inner Ethernet, 64 bytes
//! over IPv4 and 84 over IPv6. Refuses to know neighbours: the outer MAC addresses are set afterwards with
//! [`set_outer_macs`].
//!
//! Everything that a tunnel fixes is laid out and summed when its row is compiled. Per packet a handful of words is filled in:
//! lengths, source port, identification, ECN and inner ethertype, and one checksum is folded.
//!
//! The price of IPv6: its outer UDP checksum must be valid (V-005) and covers the inner packet. [`inner_sum`] gets that
//! sum from the inner headers alone: a segment whose own checksum is right sums, with its pseudo header, to `0xffff`, so
//! its sum is the complement of the pseudo header's, whatever the payload. It trusts the inner checksum; if that is wrong
//! the outer one is wrong as well and the far end drops the packet one layer earlier, counted there as a UDP checksum
//! error. [`inner_sum_of_all`] reads every byte, about as long as copying them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::Sum;
use super::ethernet::{self, Mac};
use super::packet::{Fragment, L3};
use super::{Family, front_mut, ipv4, ipv6, packet, plain, protocol, udp, vxlan};

/// Bytes put in front of an inner IP packet over IPv4.
pub const OUTER_LEN_V4: usize = 64;
/// Bytes put in front of an inner IP packet over IPv6.
pub const OUTER_LEN_V6: usize = 84;
/// What the tunnel takes from the link MTU over IPv4: all but the outer Ethernet header (V-009).
pub const OVERHEAD_V4: u16 = 50;
/// What the tunnel takes from the link MTU over IPv6 (V-009).
pub const OVERHEAD_V6: u16 = 70;

/// Outer headers over IPv4, first byte of the frame first.
#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct OuterV4 {
    link: ethernet::Header,
    ip: ipv4::Header,
    udp: udp::Header,
    vxlan: [u8; vxlan::HEADER_LEN],
    inner: ethernet::Header,
}

/// Outer headers over IPv6, first byte of the frame first.
#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct OuterV6 {
    link: ethernet::Header,
    ip: ipv6::Header,
    udp: udp::Header,
    vxlan: [u8; vxlan::HEADER_LEN],
    inner: ethernet::Header,
}

const _: () = assert!(size_of::<OuterV4>() == OUTER_LEN_V4 && size_of::<OuterV6>() == OUTER_LEN_V6);

/// Copies headers to the start of `out` and returns them there, so that no field is written twice into memory that is read
/// again at once.
macro_rules! lay {
    ($headers:expr, $out:expr, $type:ty) => {
        front_mut!($type, $out).map(|place| {
            *place = *$headers;
            place
        })
    };
}
/// The underlay addresses of a tunnel, network order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// Over IPv4.
    V4 {
        /// Ours.
        source: [u8; 4],
        /// The far end's.
        destination: [u8; 4],
    },
    /// Over IPv6.
    V6 {
        /// Ours.
        source: [u8; 16],
        /// The far end's.
        destination: [u8; 16],
    },
}

/// What is fixed about a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Outer addresses.
    pub underlay: Underlay,
    /// Outer UDP destination port, host order (V-002).
    pub port: u16,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Inner source MAC: our VTEP's (V-014).
    pub source_mac: Mac,
    /// Inner destination MAC: the far VTEP's (V-014).
    pub destination_mac: Mac,
    /// Outer TTL or hop limit; 64 by default (V-006).
    pub ttl: u8,
    /// Outer DF over IPv4; unset by default (V-006).
    pub dont_fragment: bool,
}

/// What differs from packet to packet.
#[derive(Clone, Copy, Debug)]
pub struct Inner {
    /// IP version of the inner packet.
    pub family: Family,
    /// Length of the inner IP packet, bytes.
    pub len: u16,
    /// Outer UDP source port, see [`vxlan::source_port`] (V-003).
    pub source_port: u16,
    /// Outer identification over IPv4: must vary unless DF is set (V-006, RFC 6864).
    pub id: u16,
    /// Outer TOS or traffic class: DSCP by configuration (V-008), ECN from [`vxlan::ecn_encap`].
    pub tos: u8,
    /// Sum over the inner IP packet, needed over IPv6 only; see [`inner_sum`]. Over IPv4 give [`Sum::ZERO`].
    pub sum: Sum,
}

/// The prepared outer headers of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EncapTemplate {
    /// Over IPv4.
    V4(TemplateV4),
    /// Over IPv6.
    V6(TemplateV6),
}

/// The prepared outer headers of a tunnel over IPv4.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TemplateV4 {
    headers: OuterV4,
    /// Over the IP header with TOS, length and identification zero.
    ip_sum: u16,
}

/// The prepared outer headers of a tunnel over IPv6.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TemplateV6 {
    headers: OuterV6,
    /// Over what the UDP checksum covers and the tunnel fixes: addresses, protocol, destination port, VXLAN, inner MACs.
    udp_sum: u16,
}

impl EncapTemplate {
    /// Lays out and sums the headers of a tunnel.
    #[must_use]
    pub fn new(tunnel: &Tunnel) -> EncapTemplate {
        let link =
            |ethertype: u16, destination, source| ethernet::Header { destination, source, ethertype: ethertype.into() };
        let nowhere = Mac::default();
        let udp = udp::Header {
            source_port: 0.into(),
            destination_port: tunnel.port.into(),
            length: 0.into(),
            checksum: 0.into(),
        };
        let mut vxlan = [0; vxlan::HEADER_LEN];
        let _written = vxlan::Repr { vni: tunnel.vni }.emit(&mut vxlan);
        let inner = link(0, tunnel.destination_mac, tunnel.source_mac);
        match tunnel.underlay {
            Underlay::V4 { source, destination } => {
                let ip = ipv4::Header::plain(source, destination, tunnel.ttl, tunnel.dont_fragment);
                let headers = OuterV4 { link: link(ethernet::IPV4, nowhere, nowhere), ip, udp, vxlan, inner };
                EncapTemplate::V4(TemplateV4 { headers, ip_sum: Sum::ZERO.bytes(ip.as_bytes()).fold() })
            }
            Underlay::V6 { source, destination } => {
                let ip = ipv6::Header::plain(source, destination, tunnel.ttl);
                let headers = OuterV6 { link: link(ethernet::IPV6, nowhere, nowhere), ip, udp, vxlan, inner };
                let udp_sum = Sum::ZERO
                    .pseudo_v6(source, destination, protocol::UDP, 0)
                    .bytes(udp.as_bytes())
                    .bytes(&vxlan)
                    .bytes(inner.as_bytes())
                    .fold();
                EncapTemplate::V6(TemplateV6 { headers, udp_sum })
            }
        }
    }

    /// IP version of the outer headers.
    #[inline]
    #[must_use]
    pub fn family(&self) -> Family {
        match self {
            EncapTemplate::V4(_) => Family::V4,
            EncapTemplate::V6(_) => Family::V6,
        }
    }

    /// Bytes that [`EncapTemplate::write`] writes: 64 or 84.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            EncapTemplate::V4(_) => OUTER_LEN_V4,
            EncapTemplate::V6(_) => OUTER_LEN_V6,
        }
    }

    /// Always false: headers have bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// What the tunnel takes from the link MTU: 50 or 70 (V-009).
    #[inline]
    #[must_use]
    pub fn overhead(&self) -> u16 {
        match self {
            EncapTemplate::V4(_) => OVERHEAD_V4,
            EncapTemplate::V6(_) => OVERHEAD_V6,
        }
    }

    /// The same headers with the outer MAC addresses, which no checksum covers.
    #[must_use]
    pub fn between(&self, destination: Mac, source: Mac) -> Outside {
        match *self {
            EncapTemplate::V4(mut template) => {
                (template.headers.link.destination, template.headers.link.source) = (destination, source);
                Outside::VxlanV4(template)
            }
            EncapTemplate::V6(mut template) => {
                (template.headers.link.destination, template.headers.link.source) = (destination, source);
                Outside::VxlanV6(template)
            }
        }
    }

    /// Writes the headers for one inner packet at the start of `out`, which the inner packet follows, and returns their
    /// length; `None` (nothing written) if `out` is too small or the outer packet would be too long. Outer MAC addresses are
    /// zero until [`set_outer_macs`].
    #[inline]
    pub fn write(&self, out: &mut [u8], inner: &Inner) -> Option<usize> {
        match self {
            EncapTemplate::V4(template) => template.write(out, inner),
            EncapTemplate::V6(template) => template.write(out, inner),
        }
    }
}

impl TemplateV4 {
    /// As [`EncapTemplate::write`], with the outer MAC addresses that the template has.
    #[inline(always)]
    pub fn write(&self, out: &mut [u8], inner: &Inner) -> Option<usize> {
        let total_len = inner.len.checked_add(OVERHEAD_V4)?;
        let udp_len = total_len - 20;
        let sum = Sum::ZERO.word(self.ip_sum).word(u16::from(inner.tos)).word(total_len).word(inner.id);
        let headers = lay!(&self.headers, out, OuterV4)?;
        headers.ip.tos = inner.tos;
        headers.ip.total_length = total_len.into();
        headers.ip.identification = inner.id.into();
        headers.ip.checksum = sum.checksum().into();
        // "It SHOULD be transmitted as zero" (RFC 7348 section 5, V-004): the template's checksum stays.
        headers.udp.source_port = inner.source_port.into();
        headers.udp.length = udp_len.into();
        headers.inner.ethertype = ethernet::of(inner.family).into();
        Some(OUTER_LEN_V4)
    }
}

impl TemplateV6 {
    /// As [`EncapTemplate::write`], with the outer MAC addresses that the template has.
    #[inline(always)]
    pub fn write(&self, out: &mut [u8], inner: &Inner) -> Option<usize> {
        let udp_len = inner.len.checked_add(OVERHEAD_V4 - 20)?;
        let ethertype = ethernet::of(inner.family);
        // Length counts twice, in the pseudo header and in UDP's own.
        let sum = inner.sum.word(self.udp_sum).word(udp_len).word(udp_len).word(inner.source_port).word(ethertype);
        let headers = lay!(&self.headers, out, OuterV6)?;
        headers.ip.version_class_label = (6 << 28 | u32::from(inner.tos) << 20).into();
        headers.ip.payload_length = udp_len.into();
        headers.udp.source_port = inner.source_port.into();
        headers.udp.length = udp_len.into();
        headers.udp.checksum = sum.udp_checksum().into();
        headers.inner.ethertype = ethertype.into();
        Some(OUTER_LEN_V6)
    }
}

/// All that is put before a packet on its way out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outside {
    /// VXLAN over IPv4.
    VxlanV4(TemplateV4),
    /// VXLAN over IPv6.
    VxlanV6(TemplateV6),
    /// An Ethernet header that lacks its ethertype.
    Ethernet(ethernet::Header),
}

impl Outside {
    /// Plain Ethernet.
    #[must_use]
    pub fn ethernet(destination: Mac, source: Mac) -> Outside {
        Outside::Ethernet(ethernet::Header { destination, source, ethertype: 0.into() })
    }
}

/// Writes an Ethernet header for one packet at the start of `out`; `None` (nothing written) if `out` is shorter.
#[inline(always)]
pub fn write_ethernet(header: &ethernet::Header, out: &mut [u8], family: Family) -> Option<()> {
    lay!(header, out, ethernet::Header)?.ethertype = ethernet::of(family).into();
    Some(())
}

/// Writes the outer MAC addresses of a frame that [`EncapTemplate::write`] began; false if it is shorter than twelve bytes.
#[inline]
pub fn set_outer_macs(frame: &mut [u8], destination: Mac, source: Mac) -> bool {
    ethernet::set_macs(frame, destination, source)
}

/// The sum over an IP packet, from its headers alone where its L4 checksum says the rest; see the file's head for what that
/// trusts. `packet` starts at the IP header, `l3` is what parse said of it (before or after a translation).
///
/// Fragments, UDP without a checksum and protocols without one that we read cost a pass over the packet.
#[inline]
pub fn inner_sum(packet: &[u8], l3: &L3) -> Sum {
    if l3.family == Family::V6
        && let Some(sum) = plain::sum_v6(packet, l3)
    {
        return sum;
    }
    known_segment_sum(packet, l3)
        .unwrap_or_else(|| inner_sum_of_all(packet.get(..usize::from(l3.total_len)).unwrap_or(packet)))
}

#[inline]
fn known_segment_sum(packet: &[u8], l3: &L3) -> Option<Sum> {
    if l3.fragment != Fragment::None {
        return None;
    }
    let (headers, segment) = packet.split_at_checked(usize::from(l3.l4_offset))?;
    let pseudo = match (l3.protocol, l3.family) {
        (protocol::TCP, _) | (protocol::ICMPV6, Family::V6) => {
            packet::pseudo_header(packet, l3.family, l3.protocol, l3.l4_len()).fold()
        }
        (protocol::UDP, _) => {
            let (header, _) = udp::Header::ref_from_prefix(segment).ok()?;
            if header.checksum() == 0 || header.length() != l3.l4_len() {
                return None;
            }
            packet::pseudo_header(packet, l3.family, l3.protocol, l3.l4_len()).fold()
        }
        (protocol::ICMP, Family::V4) => 0,
        _ => return None,
    };
    Some(Sum::ZERO.bytes(headers).word(!pseudo))
}

/// The sum over an IP packet, every byte read.
pub fn inner_sum_of_all(packet: &[u8]) -> Sum {
    Sum::ZERO.bytes(packet)
}
