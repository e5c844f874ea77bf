//! # Parse: frame to packet
//!
//! reads   the frame's headers, `table::local`, `table::tunnel`     writes  a [`Packet`]; changes no byte
//! drops   every reason of `wire::Malformed`, `EthertypeUnknown`, `OtherHost`, `NotOurs`, `MartianSource`, `EcnMismatch`,
//!         `VxlanUnknownVni`, `VxlanUnknownPeer`, `VxlanOuterFragment`, `VxlanOtherHost`, `VxlanInnerVlan`,
//!         `VxlanWrongFamily`
//! cost    each header once; VXLAN adds one comparison and one small hash lookup (the peer)
//! spec    RFC 7348, V-001 … V-016, V-020, L-056, N-072    tests   `dataplane/tests/golden/parse.rs`, `wire`
//!
//! After this stage offsets and lengths are trusted: nothing behind it checks them again, though all still go through
//! checked slices.

use crate::counters::{Counters, Event};
use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::{Domain, Kind, Packet};
use crate::table::{DeviceId, Tables, TunnelId};
use crate::wire::packet::{Fragment, L3, parse_l3};
use crate::wire::{Family as Version, ethernet, ipv4, ipv6, ndp, protocol, vxlan};

/// Where a frame came in.
#[derive(Clone, Copy, Debug)]
pub struct Ingress {
    /// Device of the port.
    pub device: DeviceId,
    /// The device's link-layer address.
    pub mac: [u8; 6],
}

/// What the frame carries, with VXLAN to us taken off.
///
/// # Errors
/// The reason why the frame ends here.
#[inline(always)]
pub fn run(tables: &Tables, ingress: Ingress, bytes: &[u8], counters: &mut Counters) -> Result<Packet, DropReason> {
    let link = ethernet::parse_ethernet(bytes)?;
    if link.destination.0 != ingress.mac && !link.destination.is_group() {
        return Err(DropReason::OtherHost);
    }
    if link.ethertype == ethernet::ARP {
        return Ok(Packet::arp(ingress.device, Domain::Wire, TunnelId::NONE, link.l3_offset));
    }
    if !matches!(link.ethertype, ethernet::IPV4 | ethernet::IPV6) {
        return Err(DropReason::EthertypeUnknown);
    }
    let l3 = bytes.get(usize::from(link.l3_offset)..).ok_or(DropReason::EthernetTruncated)?;
    let outer = network(link.ethertype, l3)?;
    if outer.protocol == protocol::UDP
        && let Some(tunnelled) = tunnelled(tables, &outer, l3)
    {
        return overlay(tables, ingress, link.l3_offset, &outer, l3, tunnelled?, counters);
    }
    Ok(Packet {
        kind: Kind::Ip,
        domain: Domain::Wire,
        device: ingress.device,
        tunnel: TunnelId::NONE,
        l3_offset: link.l3_offset,
        ecn: None,
        l3: outer,
    })
}

/// A checked IP header of the version that the EtherType promises, from a possible source.
#[inline(always)]
fn network(ethertype: u16, l3: &[u8]) -> Result<L3, DropReason> {
    // The EtherType says which header is meant, so that one of the wrong version is counted under the right name.
    match (ethertype == ethernet::IPV6, l3.first().map(|first| first >> 4)) {
        (true, Some(6)) | (false, _) => {}
        (true, Some(_)) => return Err(DropReason::Ipv6BadVersion),
        (true, None) => return Err(DropReason::Ipv6Truncated),
    }
    let at = parse_l3(l3)?;
    let martian = match at.family {
        Version::V6 if ethertype != ethernet::IPV6 => return Err(DropReason::Ipv4BadVersion),
        Version::V4 => {
            let (source, destination) = ipv4::addresses(l3);
            ipv4::is_martian_source(source, destination)
        }
        Version::V6 => {
            let (source, destination) = ipv6::addresses(l3);
            // Duplicate address detection asks from the unspecified address (RFC 4862 section 5.4.2).
            let probe = at.protocol == protocol::ICMPV6 && at.icmp_type == ndp::SOLICITATION;
            ipv6::is_martian_source(source, destination) && !(probe && source == [0; 16])
        }
    };
    if martian { Err(DropReason::MartianSource) } else { Ok(at) }
}

/// `None`: not VXLAN to us. Otherwise the peer's outer source, or why it is refused.
#[inline(always)]
fn tunnelled(tables: &Tables, outer: &L3, l3: &[u8]) -> Option<Result<[u8; 16], DropReason>> {
    let vtep = tables.locals.vtep(outer.family)?;
    let (source, destination) = match outer.family {
        Version::V4 => {
            let (source, destination) = ipv4::addresses(l3);
            (source.mapped(), destination.mapped())
        }
        Version::V6 => ipv6::addresses(l3),
    };
    if destination != vtep.underlay {
        return None;
    }
    match outer.fragment {
        // V-012: a VTEP may discard fragmented VXLAN; its ports are not all known.
        Fragment::First { .. } | Fragment::Later { .. } => Some(Err(DropReason::VxlanOuterFragment)),
        Fragment::None if outer.destination_port == vtep.port => Some(Ok(source)),
        Fragment::None => None,
    }
}

/// The inner packet of a VXLAN datagram from `peer` (outer source, IPv4 mapped).
#[inline(always)]
fn overlay(
    tables: &Tables,
    ingress: Ingress,
    outer_offset: u16,
    outer: &L3,
    l3: &[u8],
    peer: [u8; 16],
    counters: &mut Counters,
) -> Result<Packet, DropReason> {
    const UDP_HEADER_LEN: u16 = 8;
    const VXLAN_HEADER_LEN: u16 = 8;
    const _: () = assert!(VXLAN_HEADER_LEN as usize == vxlan::HEADER_LEN);
    let datagram = l3
        .get(usize::from(outer.l4_offset)..usize::from(outer.total_len))
        .and_then(|udp| udp.get(usize::from(UDP_HEADER_LEN)..))
        .ok_or(DropReason::UdpTruncated)?;
    let header = vxlan::parse(datagram)?;
    if header.unknown_bits {
        counters.count(Event::VxlanUnknownFlags);
    }
    let vtep = tables.locals.vtep(outer.family).ok_or(DropReason::NotOurs)?;
    if header.vni != vtep.vni {
        return Err(DropReason::VxlanUnknownVni);
    }
    let tunnel = match outer.family {
        Version::V4 => <[u8; 4]>::unmapped(&peer).and_then(|peer| tables.tunnels.by_underlay_v4(&peer, header.vni)),
        Version::V6 => tables.tunnels.by_underlay_v6(&peer, header.vni),
    }
    .ok_or(DropReason::VxlanUnknownPeer)?;
    let inner = datagram.get(vxlan::HEADER_LEN..).ok_or(DropReason::VxlanTruncated)?;
    let link = ethernet::parse_ethernet(inner)?;
    if link.vlan.is_some() {
        return Err(DropReason::VxlanInnerVlan);
    }
    if link.destination.0 != vtep.mac && !link.destination.is_group() {
        return Err(DropReason::VxlanOtherHost);
    }
    counters.count(Event::Decapsulated);
    let before = outer_offset + outer.l4_offset + UDP_HEADER_LEN + VXLAN_HEADER_LEN;
    let l3_offset = before + link.l3_offset;
    if link.ethertype == ethernet::ARP {
        if outer.family != Version::V4 {
            return Err(DropReason::VxlanWrongFamily);
        }
        return Ok(Packet::arp(ingress.device, Domain::Overlay, tunnel, l3_offset));
    }
    if !matches!(link.ethertype, ethernet::IPV4 | ethernet::IPV6) {
        return Err(DropReason::EthertypeUnknown);
    }
    let l3 = inner.get(usize::from(link.l3_offset)..).ok_or(DropReason::EthernetTruncated)?;
    let at = network(link.ethertype, l3)?;
    if at.family != outer.family {
        return Err(DropReason::VxlanWrongFamily);
    }
    let ecn = vxlan::ecn_decap(at.tos, outer.tos).ok_or(DropReason::EcnMismatch)?;
    let changed = (ecn != at.tos & 0b11).then_some(ecn);
    Ok(Packet {
        kind: Kind::Ip,
        domain: Domain::Overlay,
        device: ingress.device,
        tunnel,
        l3_offset,
        ecn: changed,
        l3: at,
    })
}
