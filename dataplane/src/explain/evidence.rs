//! Where a packet and the tables do not say the same.
//!
//! A drop reason tells that something is wrong; what an operator needs is of whom, and both values: what the tables have
//! and what the packet carries. This walks a frame a second time, with the parsers of [`crate::wire`], and lists every
//! disagreement, whether the frame was dropped for it or not: a node whose frames carry another VTEP MAC than the tables
//! have is heard well, and never hears us.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};

use tidegate_api::explain::Step;
use tidegate_api::resource::MacAddress;

use super::envelope::SENDER;
use crate::compile::address_of;
use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::Packet;
use crate::stage::parse::Ingress;
use crate::stage::route::{self, Hop};
use crate::state::State;
use crate::table::local::VtepRow;
use crate::table::ranges::Ranges;
use crate::table::route::RouteTarget;
use crate::table::service::Mode;
use crate::table::tunnel::TunnelRow;
use crate::table::{BackendId, Tables, TunnelId};
use crate::wire::packet::{Fragment, parse_l3_accepting_zero_udp6};
use crate::wire::{Family as Version, ethernet, ipv4, ipv6, protocol, vxlan};

/// Bytes of a UDP header (RFC 768).
const UDP_HEADER_LEN: usize = 8;
/// Identifier in the tag control information of IEEE 802.1Q.
const VLAN_ID: u16 = 0x0fff;
/// The least time to live with which a packet is forwarded.
const TTL_MIN: u8 = 2;
/// Ranges that are named; of more, how many there are.
const RANGES_NAMED: usize = 4;

/// One disagreement.
fn differs(what: impl Into<String>, tables: impl Display, packet: impl Display) -> Step {
    Step::Differs { what: what.into(), tables: tables.to_string(), packet: packet.to_string() }
}

/// What link-layer headers and VXLAN carry against what the tables have; empty where they agree or nothing can be read.
pub(crate) fn of_frame(tables: &Tables, ingress: Ingress, bytes: &[u8]) -> Vec<Step> {
    let mut found = Vec::new();
    let Ok(link) = ethernet::parse_ethernet(bytes) else { return found };
    if link.destination.0 != ingress.mac && !link.destination.is_group() {
        let device = super::device_name(tables, ingress.device);
        found.push(differs(format!("MAC of {device}"), MacAddress(ingress.mac), MacAddress(link.destination.0)));
    }
    if let Some(tag) = link.vlan {
        let device = super::device_name(tables, ingress.device);
        found.push(differs(format!("VLAN tag on {device}"), "none", tag & VLAN_ID));
    }
    // As far as it goes: what cannot be read has its own drop reason.
    let l3 = bytes.get(usize::from(link.l3_offset)..).unwrap_or_default();
    // Of a packet that came without a frame nobody knows who handed it to us.
    let station = Some(link.source.0).filter(|station| *station != SENDER.0);
    of_tunnel(tables, station, l3, &mut found).unwrap_or_default();
    found
}

/// The same of the frame in a VXLAN datagram; `None`: it is no such datagram, or cannot be read further.
fn of_tunnel(tables: &Tables, station: Option<[u8; 6]>, l3: &[u8], found: &mut Vec<Step>) -> Option<()> {
    let outer = parse_l3_accepting_zero_udp6(l3).ok()?;
    let (source, destination) = ends(outer.family, l3);
    let vtep = tables.locals.vtep(outer.family)?;
    if outer.protocol != protocol::UDP || outer.fragment != Fragment::None || destination != address_of(&vtep.underlay)
    {
        return None;
    }
    let of_source = |(_, row): &(TunnelId, &TunnelRow)| row.live && address_of(&row.underlay) == source;
    let peer = tables.tunnels.rows().find(of_source);
    let who = peer.map_or_else(|| format!("source {source}"), |(_, row)| format!("node {}", row.name));
    let datagram = l3.get(usize::from(outer.l4_offset) + UDP_HEADER_LEN..usize::from(outer.total_len))?;
    let header = vxlan::parse(datagram).ok()?;
    let expected = peer.map_or(vtep.vni, |(_, row)| row.vni);
    if outer.destination_port != vtep.port {
        // Another datagram of a node, unless it is of this overlay.
        let is_ours = peer.is_some() && header.vni == expected;
        let what = format!("VXLAN port of this gateway, in frames of {who}");
        found.extend(is_ours.then(|| differs(what, vtep.port, outer.destination_port)));
        return None;
    }
    if header.vni != expected {
        found.push(differs(format!("VNI of {who}"), expected, header.vni));
    } else if header.vni != vtep.vni {
        found.push(differs(format!("VNI of this gateway, in frames of {who}"), vtep.vni, header.vni));
    }
    let inner = datagram.get(header.inner_offset..)?;
    let link = ethernet::parse_ethernet(inner).ok()?;
    if let Some(tag) = link.vlan {
        found.push(differs(format!("VLAN in the tunnel of {who}"), "none", tag & VLAN_ID));
    }
    macs(tables, station, vtep, peer, &who, &link, found);
    let inner_l3 = inner.get(usize::from(link.l3_offset)..)?;
    let at = parse_l3_accepting_zero_udp6(inner_l3).ok()?;
    let (sender, _) = ends(at.family, inner_l3);
    let home = match at.family {
        Version::V4 => ipv4::addresses(inner_l3).0.route(tables).map(|row| &row.target),
        Version::V6 => ipv6::addresses(inner_l3).0.route(tables).map(|row| &row.target),
    };
    let home = match home {
        Some(RouteTarget::Tunnel(id)) => tables.tunnels.row(*id).filter(|row| row.live),
        _ => None,
    };
    match (home, peer) {
        (Some(home), None) => {
            found.push(differs(
                format!("VTEP of node {}, which has {sender}", home.name),
                address_of(&home.underlay),
                source,
            ));
        }
        (Some(home), Some((_, row))) if home.name != row.name => {
            found.push(differs(format!("node of source {sender}"), &home.name, &row.name));
        }
        _ => {}
    }
    Some(())
}

/// Link-layer addresses: ours and the node's inside, and that of the node's next hop outside where it is on our link.
fn macs(
    tables: &Tables,
    station: Option<[u8; 6]>,
    vtep: &VtepRow,
    peer: Option<(TunnelId, &TunnelRow)>,
    who: &str,
    link: &ethernet::Ethernet,
    found: &mut Vec<Step>,
) {
    if link.destination.0 != vtep.mac && !link.destination.is_group() {
        let what = format!("VTEP MAC of this gateway, in frames of {who}");
        found.push(differs(what, MacAddress(vtep.mac), MacAddress(link.destination.0)));
    }
    let Some((id, row)) = peer else { return };
    if link.source.0 != row.inner_mac {
        found.push(differs(format!("VTEP MAC of {who}"), MacAddress(row.inner_mac), MacAddress(link.source.0)));
    }
    if let Some(station) = station
        && let Ok(departure) = route::departure(tables, Hop::Tunnel(id), 0)
        && departure.address == row.underlay
        && let Some(mac) = departure.mac.filter(|mac| *mac != station)
    {
        let what = format!("MAC of next hop {}, which is {who}", address_of(&row.underlay));
        found.push(differs(what, MacAddress(mac), MacAddress(station)));
    }
}

/// A packet that a gateway may not forward any more (RFC 1812 section 5.3.1, RFC 8200 section 3).
pub(crate) fn of_ttl(packet: &Packet) -> Step {
    let name = if packet.l3.family == Version::V4 { "TTL" } else { "hop limit" };
    Step::Lacks {
        what: format!("{name} of the packet"),
        found: packet.l3.ttl.to_string(),
        needed: format!("{TTL_MIN}, to be forwarded"),
    }
}

/// A packet that does not fit its path.
pub(crate) fn of_length(packet: &Packet, mtu: u16) -> Step {
    Step::Lacks {
        what: "length of the packet".to_owned(),
        found: format!("{} bytes", packet.l3.total_len),
        needed: format!("at most {mtu}"),
    }
}

/// A flow to a backend for which there is no source address or port.
pub(crate) fn of_sources<A: Family>(tables: &Tables, state: &State, id: BackendId, reason: DropReason) -> Option<Step> {
    let row = tables.backends.row(id)?;
    let keeps_client = tables.services.row(row.service).is_some_and(|service| service.mode == Mode::Symmetric);
    let (sources, address) = (A::sources(tables).len(), address_of(&row.address));
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    match reason {
        DropReason::NoSource => Some(Step::Lacks {
            what: format!("{family} addresses in control.fullnatSources"),
            found: "none".to_owned(),
            needed: "1".to_owned(),
        }),
        DropReason::PortsExhausted if !keeps_client => {
            let ports = u64::from(tables.owners.ports_of(state.worker).len()) * u64::try_from(sources).ok()?;
            Some(Step::Lacks {
                what: format!("source ports of this worker towards {}", SocketAddr::new(address, row.port)),
                found: format!("all {ports} are in use, of {sources} {family} addresses in control.fullnatSources"),
                needed: "one that is free, or another address there".to_owned(),
            })
        }
        _ => None,
    }
}

/// A client that is in none of the ranges that its Service admits.
pub(crate) fn of_client<A: Family>(service: &str, ranges: &Ranges, client: A) -> Option<Step> {
    if ranges.contain(&client.mapped()) {
        return None;
    }
    let spans = ranges.spans();
    let name = |(first, last): &(u128, u128)| {
        let [first, last] = [first, last].map(|end| address_of(&end.to_be_bytes()));
        format!("{first} to {last}")
    };
    let mut named: Vec<String> = spans.iter().take(RANGES_NAMED).map(name).collect();
    if let Some(more) = spans.len().checked_sub(RANGES_NAMED).filter(|more| *more > 0) {
        named.push(format!("{more} more"));
    }
    Some(differs(format!("source ranges of {service}"), named.join(", "), client.ip()))
}

fn ends(family: Version, l3: &[u8]) -> (IpAddr, IpAddr) {
    match family {
        Version::V4 => {
            let (source, destination) = ipv4::addresses(l3);
            (source.ip(), destination.ip())
        }
        Version::V6 => {
            let (source, destination) = ipv6::addresses(l3);
            (source.ip(), destination.ip())
        }
    }
}
