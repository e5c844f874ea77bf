//! # Encap: put the outside on
//!
//! reads   `table::tunnel`, `table::device`, `table::local`     writes  Ethernet; or Ethernet, IP, UDP, VXLAN, Ethernet
//! drops   `NoHeadroom`, `NoTunnel`, `NoEgressPort`, `TooBig`, `EthernetTruncated`
//! cost    one template copied (64 B over IPv4, 84 B over IPv6) and five fields written
//! spec    V-003 … V-009, V-014, V-017, RFC 7348 section 5      tests   `dataplane/tests/golden/encap.rs`
//!
//! A packet arrives here with its IP header at `packet.l3_offset`; what stands before that is the past and is cut off.

use tidegate_io::Frame;

use crate::drops::DropReason;
use crate::mutation::{self, Mutation};
use crate::packet::{Kind, Packet};
use crate::pipeline::Verdict;
use crate::stage::route::Departure;
use crate::table::lane::Lane;
use crate::table::{Tables, TunnelId};
use crate::wire::checksum::Sum;
use crate::wire::encap::{self as outer, Inner, Outside};
use crate::wire::ethernet::{self, Mac};
use crate::wire::packet::L3;
use crate::wire::{Family as Version, ipv6, vxlan};

/// Bytes put before a packet: an Ethernet header, VXLAN over IPv4, VXLAN over IPv6.
const LINK: u16 = 14;
const OUTER_V4: u16 = 64;
const OUTER_V6: u16 = 84;
const _: () = assert!(LINK as usize == ethernet::HEADER_LEN);
const _: () = assert!(OUTER_V4 as usize == outer::OUTER_LEN_V4 && OUTER_V6 as usize == outer::OUTER_LEN_V6);

/// MAC of a neighbour that is not known yet; overwritten before the frame leaves.
const UNKNOWN: [u8; 6] = [0; 6];

/// Puts the packet into VXLAN towards `tunnel`.
///
/// # Errors
/// See the card.
pub fn vxlan(
    tables: &Tables,
    packet: &Packet,
    frame: &mut Frame,
    tunnel: TunnelId,
    departure: &Departure,
    hash: u64,
) -> Result<(), DropReason> {
    let row = tables.tunnels.row(tunnel).ok_or(DropReason::NoTunnel)?;
    let device = tables.devices.row(departure.device).ok_or(DropReason::NoEgressPort)?;
    let l3_offset = usize::from(packet.l3_offset);
    let l3 = frame.bytes().get(l3_offset..).unwrap_or_default();
    let len = u16::try_from(l3.len()).map_err(|_| DropReason::TooBig)?;
    let sum = match row.family {
        // V-004: none over IPv4. V-005: over IPv6 the inner checksum says what the payload sums to.
        Version::V4 => Sum::ZERO,
        Version::V6 => outer::inner_sum(l3, &packet.l3),
    };
    let inner = inner(packet, len, hash, sum);
    let outer_len = match row.template.family() {
        Version::V4 => OUTER_V4,
        Version::V6 => OUTER_V6,
    };
    if !frame.exchange_front(packet.l3_offset, outer_len, len) {
        return Err(DropReason::NoHeadroom);
    }
    let bytes = frame.bytes_mut();
    let written = row.template.write(bytes, &inner).ok_or(DropReason::TooBig)?;
    if packet.kind == Kind::Arp {
        let ethertype = bytes.get_mut(written - 2..written).ok_or(DropReason::NoHeadroom)?;
        ethertype.copy_from_slice(&ethernet::ARP.to_be_bytes());
    }
    outer::set_outer_macs(bytes, Mac(departure.mac.unwrap_or(UNKNOWN)), Mac(device.mac));
    Ok(())
}

/// Puts the outside of `lane` on an IP packet, and cuts off what comes after it.
///
/// # Errors
/// See the card.
#[inline(always)]
pub fn dress(lane: &Lane, packet: &Packet, frame: &mut Frame, hash: u64) -> Result<(), DropReason> {
    let (from, len) = (packet.l3_offset, packet.l3.total_len);
    let written = match &lane.outside {
        Outside::VxlanV4(template) => {
            let inner = inner(packet, len, hash, Sum::ZERO);
            if !frame.exchange_front(from, OUTER_V4, len) {
                return Err(DropReason::NoHeadroom);
            }
            template.write(frame.bytes_mut(), &inner).map(|_| ())
        }
        Outside::VxlanV6(template) => {
            let l3 = frame.bytes().get(usize::from(from)..).unwrap_or_default();
            let inner = inner(packet, len, hash, outer::inner_sum(l3, &packet.l3));
            if !frame.exchange_front(from, OUTER_V6, len) {
                return Err(DropReason::NoHeadroom);
            }
            template.write(frame.bytes_mut(), &inner).map(|_| ())
        }
        Outside::Ethernet(header) => {
            if !frame.exchange_front(from, LINK, len) {
                return Err(DropReason::NoHeadroom);
            }
            outer::write_ethernet(header, frame.bytes_mut(), packet.l3.family)
        }
    };
    written.ok_or(DropReason::TooBig)
}

#[inline(always)]
fn inner(packet: &Packet, len: u16, hash: u64, sum: Sum) -> Inner {
    let tos = packet.ecn.unwrap_or(packet.l3.tos);
    Inner {
        family: packet.l3.family,
        len,
        source_port: vxlan::source_port(hash),
        id: identification(hash, &packet.l3),
        tos: if mutation::is(Mutation::InnerEcnHidden) { 0 } else { vxlan::ecn_encap(tos) },
        sum,
    }
}

/// V-006, RFC 6864: with DF unset the outer identification varies from packet to packet of a flow. What varies in a
/// segment is its number; a datagram has only its length, and is never fragmented by us.
#[inline(always)]
fn identification(hash: u64, l3: &L3) -> u16 {
    let seed = (hash & 0xffff_ffff) as u32 ^ l3.tcp_seq.wrapping_mul(0x9e37_79b1) ^ u32::from(l3.total_len);
    ((seed ^ seed >> 16) & 0xffff) as u16
}

/// Puts an Ethernet header on the packet.
///
/// # Errors
/// See the card.
pub fn ethernet(tables: &Tables, packet: &Packet, frame: &mut Frame, departure: &Departure) -> Result<(), DropReason> {
    let device = tables.devices.row(departure.device).ok_or(DropReason::NoEgressPort)?;
    let len = frame.len().saturating_sub(usize::from(packet.l3_offset));
    let len = u16::try_from(len).map_err(|_| DropReason::TooBig)?;
    if !frame.exchange_front(packet.l3_offset, LINK, len) {
        return Err(DropReason::NoHeadroom);
    }
    let header = ethernet::Repr {
        destination: Mac(departure.mac.unwrap_or(UNKNOWN)),
        source: Mac(device.mac),
        vlan: None,
        ethertype: ethernet::of(packet.l3.family),
    };
    header.emit(frame.bytes_mut()).map(|_| ()).ok_or(DropReason::NoHeadroom)
}

/// Whether nothing stands between the link-layer header and the packet: no tunnel brought it.
pub fn is_bare(packet: &Packet, frame: &Frame) -> bool {
    ethernet::parse_ethernet(frame.bytes()).is_ok_and(|link| link.l3_offset == packet.l3_offset)
}

/// Sends the frame back where it came from on the wire, tags kept: source becomes destination, unless the answer goes to a
/// group (RFC 2464 section 7).
pub fn back(tables: &Tables, packet: &Packet, frame: &mut Frame) -> Verdict {
    let Some(device) = tables.devices.row(packet.device) else { return Verdict::Drop(DropReason::NoEgressPort) };
    let Ok(link) = ethernet::parse_ethernet(frame.bytes()) else {
        return Verdict::Drop(DropReason::EthernetTruncated);
    };
    let l3 = frame.bytes().get(usize::from(packet.l3_offset)..).unwrap_or_default();
    let destination = match (packet.kind, packet.l3.family) {
        (Kind::Ip, Version::V6) => Some(ipv6::addresses(l3).1).filter(|address| address[0] == 0xff),
        _ => None,
    };
    let destination = destination.map_or(link.source, Mac::of_ipv6_multicast);
    if ethernet::set_macs(frame.bytes_mut(), destination, Mac(device.mac)) {
        Verdict::Send(packet.device)
    } else {
        Verdict::Drop(DropReason::EthernetTruncated)
    }
}

/// Writes the link-layer destination of a frame that waited for it.
pub fn address(frame: &mut Frame, mac: [u8; 6]) {
    if let Some(destination) = frame.bytes_mut().get_mut(..6) {
        destination.copy_from_slice(&mac);
    }
}

/// Makes the frame exactly `len` bytes long.
///
/// # Errors
/// `NoHeadroom` when the frame has no room for that.
pub fn resize(frame: &mut Frame, len: usize) -> Result<(), DropReason> {
    if frame.set_len(len) { Ok(()) } else { Err(DropReason::NoHeadroom) }
}
