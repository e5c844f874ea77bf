//! # Portless: what packets without ports are looked up by
//!
//! reads   `table::pod`, `egress`, `local`     writes  nothing; returns a key
//! drops   none
//! cost    cold: two or three lookups by address for packets that have no other key
//! spec    N-030, N-094, N-095, T-088     tests   `dataplane/tests/golden/egress.rs`
//!
//! An echo message has an identifier, which is a port by another name. Other protocols have nothing: of those that survive
//! the exchange of an address, one pod may speak each with one remote, since nothing else tells whose an answer is (N-095).
//! Checksums that cover addresses (UDP-Lite, DCCP) and packets that authenticate them (AH) do not survive it.

use crate::family::Family;
use crate::packet::{Domain, Key, Kind, Packet};
use crate::state::Tuple;
use crate::table::Tables;
use crate::table::local::LocalKind;
use crate::wire::packet::{Fragment, L3};
use crate::wire::{Family as Version, icmp, icmpv6, protocol};

/// Whether packets out of the overlay to `destination` may be pods' to the outside: it is no address that Services or
/// `fullnat` have.
#[inline]
pub fn is_outside<A: Family>(tables: &Tables, destination: &A) -> bool {
    let kind = destination.kind(tables);
    !kind.intersects(LocalKind::SERVED | LocalKind::FULLNAT_SOURCE | LocalKind::VTEP_OVERLAY)
}

/// Whether packets of this protocol have no ports and still find their way back: one pod may speak it with a remote.
#[inline]
pub const fn is_bare(number: u8) -> bool {
    matches!(number, protocol::IPIP | protocol::IPV6 | protocol::GRE | protocol::ESP)
}

/// What an echo message, or a packet of a bare protocol, is looked up by.
#[cold]
pub fn key(tables: &Tables, packet: &Packet, l3: &[u8]) -> Key {
    if packet.kind != Kind::Ip || tables.egress.is_empty() {
        return Key::None;
    }
    match packet.l3.family {
        Version::V4 => tuple::<[u8; 4]>(tables, packet, l3).map_or(Key::None, Key::V4),
        Version::V6 => tuple::<[u8; 16]>(tables, packet, l3).map_or(Key::None, Key::V6),
    }
}

fn tuple<A: Family>(tables: &Tables, packet: &Packet, l3: &[u8]) -> Option<Tuple<A>> {
    if is_bare(packet.l3.protocol) { bare_tuple(tables, packet, l3) } else { echo_tuple(tables, packet, l3) }
}

/// The tuple of a packet of a bare protocol that can belong to a pod's flow, fragments included: there are no ports to wait for.
fn bare_tuple<A: Family>(tables: &Tables, packet: &Packet, l3: &[u8]) -> Option<Tuple<A>> {
    let (source, destination) = A::addresses(l3);
    let fits = match packet.domain {
        Domain::Overlay => source.pod(tables).is_some() && is_outside(tables, &destination),
        Domain::Wire => destination.external(tables).is_some(),
    };
    let (protocol, domain) = (packet.l3.protocol, packet.domain as u8);
    fits.then_some(Tuple { source, destination, source_port: 0, destination_port: 0, protocol, domain })
}

/// The tuple of an echo message that can belong to a pod's flow: both ports are its identifier (N-094).
fn echo_tuple<A: Family>(tables: &Tables, packet: &Packet, l3: &[u8]) -> Option<Tuple<A>> {
    let at = &packet.l3;
    if at.fragment != Fragment::None || !at.is_icmp_echo() {
        return None;
    }
    let (source, destination) = A::addresses(l3);
    may_be_pods(tables, packet, &source, &destination).then_some(Tuple {
        source,
        destination,
        source_port: at.source_port,
        destination_port: at.destination_port,
        protocol: at.protocol,
        domain: packet.domain as u8,
    })
}

/// Whether an echo message asks; a later fragment does not say.
pub fn asks(at: &L3) -> bool {
    let request = if at.family == Version::V4 { icmp::ECHO_REQUEST } else { icmpv6::ECHO_REQUEST };
    at.has_l4() && at.icmp_type == request
}

/// Whether an echo message between these can belong to a pod's flow.
#[cold]
pub fn may_be_pods<A: Family>(tables: &Tables, packet: &Packet, source: &A, destination: &A) -> bool {
    match packet.domain {
        Domain::Overlay => source.pod(tables).is_some() && is_outside(tables, destination),
        Domain::Wire => {
            let row = destination.external(tables).and_then(|id| tables.egress.external(id));
            // A request to an address that pods share is answered here (T-088).
            row.is_some_and(|row| !asks(&packet.l3) || row.whole.is_some())
        }
    }
}
