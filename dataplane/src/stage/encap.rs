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
use crate::table::device::DeviceRow;
use crate::table::tunnel::TunnelRow;
use crate::table::{Tables, TunnelId};
use crate::wire::checksum::Sum;
use crate::wire::encap::{self as outer, Inner};
use crate::wire::ethernet::{self, Mac};
use crate::wire::packet::L3;
use crate::wire::{Family as Version, ipv6, vxlan};

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
    vxlan_over(row, device, packet, frame, departure, hash)
}

/// As [`vxlan`], over rows that are known already.
///
/// # Errors
/// See the card.
#[inline(always)]
pub fn vxlan_over(
    row: &TunnelRow,
    device: &DeviceRow,
    packet: &Packet,
    frame: &mut Frame,
    departure: &Departure,
    hash: u64,
) -> Result<(), DropReason> {
    if !frame.trim_front(usize::from(packet.l3_offset)) {
        return Err(DropReason::NoHeadroom);
    }
    let template = &row.template;
    let sum = match row.family {
        // V-004: none over IPv4. V-005: over IPv6 the inner checksum says what the payload sums to.
        Version::V4 => Sum::ZERO,
        Version::V6 => outer::inner_sum(frame.bytes(), &packet.l3),
    };
    let inner = Inner {
        family: packet.l3.family,
        len: u16::try_from(frame.len()).map_err(|_| DropReason::TooBig)?,
        source_port: vxlan::source_port(hash),
        id: identification(hash, &packet.l3),
        tos: if mutation::is(Mutation::InnerEcnHidden) {
            0
        } else {
            vxlan::ecn_encap(packet.ecn.unwrap_or(packet.l3.tos))
        },
        sum,
    };
    if !frame.grow_front(template.len()) {
        return Err(DropReason::NoHeadroom);
    }
    let bytes = frame.bytes_mut();
    let written = template.write(bytes, &inner).ok_or(DropReason::TooBig)?;
    if packet.kind == Kind::Arp {
        let ethertype = bytes.get_mut(written - 2..written).ok_or(DropReason::NoHeadroom)?;
        ethertype.copy_from_slice(&ethernet::ARP.to_be_bytes());
    }
    outer::set_outer_macs(bytes, Mac(departure.mac.unwrap_or(UNKNOWN)), Mac(device.mac));
    Ok(())
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
    ethernet_over(device, packet, frame, departure)
}

/// As [`ethernet`], over a device that is known already.
///
/// # Errors
/// See the card.
#[inline(always)]
pub fn ethernet_over(
    device: &DeviceRow,
    packet: &Packet,
    frame: &mut Frame,
    departure: &Departure,
) -> Result<(), DropReason> {
    if !frame.trim_front(usize::from(packet.l3_offset)) || !frame.grow_front(ethernet::HEADER_LEN) {
        return Err(DropReason::NoHeadroom);
    }
    let ethertype = match packet.l3.family {
        Version::V4 => ethernet::IPV4,
        Version::V6 => ethernet::IPV6,
    };
    let destination = Mac(departure.mac.unwrap_or(UNKNOWN));
    let header = ethernet::Repr { destination, source: Mac(device.mac), vlan: None, ethertype };
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
