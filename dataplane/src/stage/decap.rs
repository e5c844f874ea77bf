//! # Decap: take off what a load balancer in front of us put on
//!
//! reads   `table::decap`, the headers inside     writes  the [`Packet`], which tells of the inner one then; changes no byte
//! drops   every reason of `wire::Malformed`, `DecapOuterFragment`, `DecapUnknownSource`, `DecapNested`, `EcnMismatch`
//! cost    nothing for other packets; for these two small searches and the inner headers once
//! spec    RFC 2003, RFC 2473, RFC 4213, RFC 6040, draft-ietf-intarea-gue-09, T-125
//! tests   `dataplane/tests/golden/decap.rs`, `dataplane/tests/malformed.rs`
//!
//! IP in IP of every combination of families, and GUE, addressed to one of our own tunnel ends. What is inside goes on as if
//! it had arrived bare on the same device: it has one hop taken off when it is sent on, and none for the tunnel. What is
//! inside a second time is not looked at.

use crate::counters::{Counters, Event};
use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::Packet;
use crate::stage::parse;
use crate::table::Tables;
use crate::table::decap::Decap;
use crate::wire::packet::{Fragment, L3};
use crate::wire::{Family as Version, ethernet, gue, ipv4, ipv6, protocol, vxlan};

/// Length of the UDP header before GUE.
const UDP_HEADER_LEN: u16 = 8;

/// Makes `packet` tell of what is inside, if it is addressed to one of our tunnel ends; `l3` begins with the outer header.
/// Returns the frame from the packet that is told of on.
///
/// # Errors
/// Why it is for us and goes no further.
#[cold]
#[inline(never)]
pub fn run<'f>(
    tables: &Tables,
    decap: &Decap,
    l3: &'f [u8],
    counters: &mut Counters,
    packet: &mut Packet,
) -> Result<&'f [u8], DropReason> {
    let outer = packet.l3;
    let (source, destination) = ends(&outer, l3);
    if !decap.ends_at(&destination) {
        return Ok(l3); // somebody else's business, or a Service's
    }
    if outer.fragment != Fragment::None {
        return Err(DropReason::DecapOuterFragment);
    }
    if !decap.takes_from(&source, outer.family) {
        return Err(DropReason::DecapUnknownSource);
    }
    let payload = l3.get(usize::from(outer.l4_offset)..usize::from(outer.total_len)).unwrap_or_default();
    let (version, skipped) = match outer.protocol {
        protocol::IPIP => (Version::V4, 0),
        protocol::IPV6 => (Version::V6, 0),
        _ => {
            let datagram = payload.get(usize::from(UDP_HEADER_LEN)..).unwrap_or_default();
            let header = gue::parse(datagram)?;
            (header.version, UDP_HEADER_LEN + header.inner_offset)
        }
    };
    let inner = payload.get(usize::from(skipped)..).unwrap_or_default();
    let ethertype = match version {
        Version::V4 => ethernet::IPV4,
        Version::V6 => ethernet::IPV6,
    };
    parse::network(ethertype, inner, &mut packet.l3)?;
    packet.l3_offset += outer.l4_offset + skipped;
    if is_tunnel(tables, decap, &packet.l3, inner) {
        return Err(DropReason::DecapNested);
    }
    let ecn = vxlan::ecn_decap(packet.l3.tos, outer.tos).ok_or(DropReason::EcnMismatch)?;
    packet.ecn = (ecn != packet.l3.tos & 0b11).then_some(ecn);
    counters.count(Event::TunnelEnded);
    Ok(inner)
}

/// Whether a packet out of a tunnel is itself one that would be taken apart, were it not.
fn is_tunnel(tables: &Tables, decap: &Decap, at: &L3, l3: &[u8]) -> bool {
    match at.protocol {
        protocol::IPIP | protocol::IPV6 => true,
        protocol::UDP => {
            let gue = decap.is_gue(at.destination_port) && decap.ends_at(&ends(at, l3).1);
            gue || !matches!(parse::tunnel_end(tables, at, l3), Ok(None))
        }
        _ => false,
    }
}

/// Source and destination in mapped form.
fn ends(at: &L3, l3: &[u8]) -> ([u8; 16], [u8; 16]) {
    match at.family {
        Version::V4 => {
            let (source, destination) = ipv4::addresses(l3);
            (source.mapped(), destination.mapped())
        }
        Version::V6 => ipv6::addresses(l3),
    }
}
