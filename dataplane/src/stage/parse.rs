//! # Parse: frame to packet
//!
//! reads   the frame's headers, `table::local`, `table::tunnel`     writes  a [`Packet`]; changes no byte
//! drops   every reason of `wire::Malformed`, `EthertypeUnknown`, `OtherHost`, `MartianSource`, `EcnMismatch`,
//!         `VxlanUnknownVni`, `VxlanUnknownPeer`, `VxlanOuterFragment`, `VxlanOtherHost`, `VxlanInnerVlan`,
//!         `VxlanWrongFamily`
//! cost    each header once; VXLAN adds one comparison and one small hash lookup (the peer)
//! spec    RFC 7348, V-001 … V-016, V-020, L-056, N-072    tests   `dataplane/tests/golden/parse.rs`, `wire`
//!
//! After this stage offsets and lengths are trusted: nothing behind it checks them again, though all still go through
//! checked slices.

use crate::counters::{Counters, Event};
use crate::drops::DropReason;
use crate::mutation::{self, Mutation};
use crate::packet::{Domain, Kind, Packet};
use crate::stage::decap;
use crate::table::local::VtepRow;
use crate::table::{DeviceId, Tables, TunnelId, mapped};
use crate::wire::ethernet::Mac;
use crate::wire::packet::{Fragment, L3, parse_l3_accepting_zero_udp6, parse_l3_into};
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
#[inline]
pub fn run(tables: &Tables, ingress: Ingress, bytes: &[u8], counters: &mut Counters) -> Result<Packet, DropReason> {
    let mut packet = Packet::NOTHING;
    read(tables, ingress, bytes, counters, &mut packet)?;
    Ok(packet)
}

/// As [`run`], into `packet`, which holds nothing of use after an error: a batch keeps its packets where they are written.
/// Returns the frame from `packet.l3_offset` on.
///
/// # Errors
/// As [`run`].
#[inline(always)]
pub fn read<'f>(
    tables: &Tables,
    ingress: Ingress,
    bytes: &'f [u8],
    counters: &mut Counters,
    packet: &mut Packet,
) -> Result<&'f [u8], DropReason> {
    let (link, l3) = ethernet::split(bytes)?;
    if ethernet::is_tag(link.ethertype()) {
        return read_tagged(tables, ingress, bytes, counters, packet);
    }
    is_for(link.destination, ingress)?;
    carried(tables, ingress, link.ethertype(), l3, 14, counters, packet)
}

#[cold]
#[inline(never)]
fn read_tagged<'f>(
    tables: &Tables,
    ingress: Ingress,
    bytes: &'f [u8],
    counters: &mut Counters,
    packet: &mut Packet,
) -> Result<&'f [u8], DropReason> {
    let link = ethernet::parse_ethernet(bytes)?;
    is_for(link.destination, ingress)?;
    let l3 = bytes.get(usize::from(link.l3_offset)..).ok_or(DropReason::EthernetTruncated)?;
    carried(tables, ingress, link.ethertype, l3, link.l3_offset, counters, packet)
}

#[inline(always)]
fn is_for(destination: Mac, ingress: Ingress) -> Result<(), DropReason> {
    if destination.0 == ingress.mac || destination.is_group() { Ok(()) } else { Err(DropReason::OtherHost) }
}

/// What a frame carries whose link layer has been read and ends at `l3_offset`.
#[inline(always)]
fn carried<'f>(
    tables: &Tables,
    ingress: Ingress,
    ethertype: u16,
    l3: &'f [u8],
    l3_offset: u16,
    counters: &mut Counters,
    packet: &mut Packet,
) -> Result<&'f [u8], DropReason> {
    packet.kind = Kind::Ip;
    packet.domain = Domain::Wire;
    packet.device = ingress.device;
    packet.tunnel = TunnelId::NONE;
    packet.l3_offset = l3_offset;
    packet.ecn = None;
    if !matches!(ethertype, ethernet::IPV4 | ethernet::IPV6) {
        if ethertype != ethernet::ARP {
            return Err(DropReason::EthertypeUnknown);
        }
        *packet = Packet::arp(ingress.device, Domain::Wire, TunnelId::NONE, l3_offset);
        return Ok(l3);
    }
    if let Err(reason) = network(ethertype, l3, &mut packet.l3) {
        let again = reason == DropReason::Udp6ZeroChecksum && ethertype == ethernet::IPV6;
        return if again { unsummed(tables, l3, counters, packet) } else { Err(reason) };
    }
    match packet.l3.protocol {
        protocol::TCP => Ok(l3),
        protocol::UDP => match (tunnel_end(tables, &packet.l3, l3)?, tables.locals.decap()) {
            (Some(vtep), _) => overlay(tables, vtep, l3, counters, packet),
            (None, Some(ends)) if ends.is_gue(packet.l3.destination_port) => {
                decap::run(tables, ends, l3, counters, packet)
            }
            _ => Ok(l3),
        },
        protocol::IPIP | protocol::IPV6 => match tables.locals.decap() {
            Some(ends) => decap::run(tables, ends, l3, counters, packet),
            None => Ok(l3),
        },
        _ => Ok(l3),
    }
}

/// A second look at a datagram over IPv6 without checksum: GUE may come like that (RFC 6935), since what is inside
/// has its own and comes from configured sources alone. Everything else is refused (N-072).
#[cold]
#[inline(never)]
fn unsummed<'f>(
    tables: &Tables,
    l3: &'f [u8],
    counters: &mut Counters,
    packet: &mut Packet,
) -> Result<&'f [u8], DropReason> {
    let ends = tables.locals.decap().ok_or(DropReason::Udp6ZeroChecksum)?;
    packet.l3 = parse_l3_accepting_zero_udp6(l3)?;
    let (source, destination) = ipv6::addresses(l3);
    if !ends.is_gue(packet.l3.destination_port) || !ends.ends_at(&destination) {
        return Err(DropReason::Udp6ZeroChecksum);
    }
    if ipv6::is_martian_source(source, destination) {
        return Err(DropReason::MartianSource);
    }
    decap::run(tables, ends, l3, counters, packet)
}

/// A checked IP header of the version that the EtherType promises, from a possible source.
#[inline(always)]
pub(super) fn network(ethertype: u16, l3: &[u8], at: &mut L3) -> Result<(), DropReason> {
    // The EtherType says which header is meant, so that one of the wrong version is counted under the right name.
    match (ethertype == ethernet::IPV6, l3.first().map(|first| first >> 4)) {
        (true, Some(6)) | (false, _) => {}
        (true, Some(_)) => return Err(DropReason::Ipv6BadVersion),
        (true, None) => return Err(DropReason::Ipv6Truncated),
    }
    parse_l3_into(l3, at)?;
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
    if martian { Err(DropReason::MartianSource) } else { Ok(()) }
}

/// The tunnel end that this datagram is VXLAN to, if it is one of ours.
///
/// # Errors
/// Why it is and cannot be read.
#[inline(always)]
pub(super) fn tunnel_end<'t>(tables: &'t Tables, outer: &L3, l3: &[u8]) -> Result<Option<&'t VtepRow>, DropReason> {
    let Some(vtep) = tables.locals.vtep(outer.family) else { return Ok(None) };
    let ours = match outer.family {
        Version::V4 => mapped(&ipv4::addresses(l3).1) == vtep.underlay,
        Version::V6 => ipv6::addresses(l3).1 == vtep.underlay,
    };
    match outer.fragment {
        _ if !ours => Ok(None),
        // V-012: a VTEP may discard fragmented VXLAN; its ports are not all known.
        Fragment::First { .. } | Fragment::Later { .. } => Err(DropReason::VxlanOuterFragment),
        Fragment::None => Ok((outer.destination_port == vtep.port).then_some(vtep)),
    }
}

/// The inner packet of a VXLAN datagram. `packet` says of the outer one what it is to say of the inner one.
#[inline(always)]
fn overlay<'f>(
    tables: &Tables,
    vtep: &VtepRow,
    l3: &'f [u8],
    counters: &mut Counters,
    packet: &mut Packet,
) -> Result<&'f [u8], DropReason> {
    const UDP_HEADER_LEN: u16 = 8;
    const VXLAN_HEADER_LEN: u16 = 8;
    const ETHERNET_HEADER_LEN: u16 = 14;
    const _: () = assert!(VXLAN_HEADER_LEN as usize == vxlan::HEADER_LEN);
    const _: () = assert!(ETHERNET_HEADER_LEN as usize == ethernet::HEADER_LEN);
    let (family, tos, l4_offset) = (packet.l3.family, packet.l3.tos, packet.l3.l4_offset);
    let datagram = l3
        .get(usize::from(l4_offset)..usize::from(packet.l3.total_len))
        .and_then(|udp| udp.get(usize::from(UDP_HEADER_LEN)..))
        .ok_or(DropReason::UdpTruncated)?;
    let header = vxlan::parse(datagram)?;
    if header.unknown_bits {
        counters.count(Event::VxlanUnknownFlags);
    }
    if header.vni != vtep.vni && !mutation::is(Mutation::AnyVni) {
        return Err(DropReason::VxlanUnknownVni);
    }
    let tunnel = match family {
        Version::V4 => tables.tunnels.by_underlay_v4(&ipv4::addresses(l3).0, header.vni),
        Version::V6 => tables.tunnels.by_underlay_v6(&ipv6::addresses(l3).0, header.vni),
    }
    .ok_or(DropReason::VxlanUnknownPeer)?;
    let inner = datagram.get(vxlan::HEADER_LEN..).ok_or(DropReason::VxlanTruncated)?;
    let (link, l3) = ethernet::split(inner)?;
    if ethernet::is_tag(link.ethertype()) {
        // One that cannot be read is counted as that.
        return ethernet::parse_ethernet(inner).map_or_else(|bad| Err(bad.into()), |_| Err(DropReason::VxlanInnerVlan));
    }
    if link.destination.0 != vtep.mac && !link.destination.is_group() {
        return Err(DropReason::VxlanOtherHost);
    }
    counters.count(Event::Decapsulated);
    packet.domain = Domain::Overlay;
    packet.tunnel = tunnel;
    packet.l3_offset += l4_offset + UDP_HEADER_LEN + VXLAN_HEADER_LEN + ETHERNET_HEADER_LEN;
    let ethertype = link.ethertype();
    if !matches!(ethertype, ethernet::IPV4 | ethernet::IPV6) {
        if ethertype != ethernet::ARP {
            return Err(DropReason::EthertypeUnknown);
        }
        if family != Version::V4 {
            return Err(DropReason::VxlanWrongFamily);
        }
        *packet = Packet::arp(packet.device, Domain::Overlay, tunnel, packet.l3_offset);
        return Ok(l3);
    }
    network(ethertype, l3, &mut packet.l3)?;
    if packet.l3.family != family {
        return Err(DropReason::VxlanWrongFamily);
    }
    let ecn = vxlan::ecn_decap(packet.l3.tos, tos).ok_or(DropReason::EcnMismatch)?;
    packet.ecn = (ecn != packet.l3.tos & 0b11 && !mutation::is(Mutation::OuterEcnLost)).then_some(ecn);
    Ok(l3)
}
