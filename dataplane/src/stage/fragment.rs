//! # Fragment: the later ones follow the first
//!
//! reads   `table::local`, `route`, `service`, `egress`     writes  nothing; returns keys, pieces and tuples for `state::fragment`
//! drops   `NotOurs`, `SpoofedSource`, `FragmentUntracked`, `FragmentOverlap`, `FragmentsFull`
//! cost    cold; two hash lookups per fragment, no allocation
//! spec    S-076, N-046, N-060 … N-063, V-050, L-056, T-081, T-141     tests   `dataplane/tests/golden/fragment.rs`
//!
//! Only the first fragment of a datagram names its ports. It is remembered by what all of them have in common, and the
//! others are then packets with a tuple like any: they meet the flow of the first one, and have their addresses
//! translated. Their L4 checksum is in the first, which is updated for the whole datagram (N-062).
//!
//! Of ICMP only echo messages of pods with the outside are followed, which have an identifier as others have ports. One to an
//! address of ours that must be fragmented is longer than we answer, and errors are never fragmented.

use crate::drops::DropReason;
use crate::family::Family;
use crate::mutation::{self, Mutation};
use crate::packet::{Domain, Kind, Packet};
use crate::stage::{portless, route};
use crate::state::Tuple;
use crate::state::fragment::{FragmentKey, Piece, Ports, Refusal};
use crate::table::Tables;
use crate::table::local::LocalKind;
use crate::wire::packet::{Fragment, L3, icmp_of};
use crate::wire::{Family as Version, ipv6, protocol};

/// Whether the packet is a fragment of a datagram that can belong to a flow.
#[inline]
pub fn is_followed(packet: &Packet) -> bool {
    let of_icmp = packet.l3.protocol == icmp_of(packet.l3.family);
    let carried = || of_icmp || matches!(packet.l3.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
    packet.kind == Kind::Ip
        && match packet.l3.fragment {
            Fragment::None => false,
            Fragment::First { .. } => carried() && (!of_icmp || packet.l3.is_icmp_echo()),
            Fragment::Later { .. } if mutation::is(Mutation::FragmentsUnfollowed) => false,
            // Over IPv6 another extension header may come before the ports, in the first fragment only.
            Fragment::Later { .. } => {
                carried() || (packet.l3.family == Version::V6 && ipv6::is_extension(packet.l3.protocol))
            }
        }
}

/// What the fragments of the packet's datagram have in common, and which bytes of it this one carries.
#[cold]
pub fn read<A: Family>(packet: &Packet, l3: &[u8]) -> (FragmentKey, Piece) {
    let (source, destination) = A::addresses(l3);
    let at = &packet.l3;
    let (id, offset, more) = match at.fragment {
        Fragment::None => (0, 0, false),
        Fragment::First { id } => (id, 0, true),
        Fragment::Later { id, offset, more } => (id, offset, more),
    };
    let key = FragmentKey {
        source: source.mapped(),
        destination: destination.mapped(),
        id,
        protocol: if at.family == Version::V4 { at.protocol } else { 0 },
        domain: packet.domain as u8,
    };
    (key, Piece { offset, len: at.l4_len(), more })
}

/// Whether the datagram may be followed at all: what is not for us, or not from who it says, must not take up room.
///
/// # Errors
/// Why not.
#[cold]
pub fn admit<A: Family>(tables: &Tables, packet: &Packet, l3: &[u8]) -> Result<(), DropReason> {
    let (source, destination) = A::addresses(l3);
    let ours = LocalKind::SERVED | LocalKind::FULLNAT_SOURCE | LocalKind::EXTERNAL;
    let may_answer = || tables.services.any_symmetric();
    let is_pods = packet.domain == Domain::Overlay && (source.pod(tables).is_some() || may_answer());
    if !destination.kind(tables).intersects(ours) && !is_pods {
        return Err(DropReason::NotOurs);
    }
    if packet.l3.protocol == A::ICMP && !portless::may_be_pods(tables, packet, &source, &destination) {
        return Err(DropReason::FragmentUntracked);
    }
    if packet.domain == Domain::Overlay && !route::source_allowed(tables, packet.tunnel, source) {
        return Err(DropReason::SpoofedSource); // P-047
    }
    Ok(())
}

/// What a fragment that is not followed any further is counted as.
#[cold]
pub fn reason(refusal: Refusal) -> DropReason {
    match refusal {
        Refusal::Overlap => DropReason::FragmentOverlap,
        Refusal::Full => DropReason::FragmentsFull,
    }
}

/// The ports that the packet itself names.
#[cold]
pub fn ports(packet: &Packet) -> Option<Ports> {
    let at = &packet.l3;
    let ports = Ports { source: at.source_port, destination: at.destination_port, protocol: at.protocol, id: 0 };
    at.has_l4().then_some(ports)
}

/// A piece of a datagram whose pieces leave with identification `id`, should their source change (N-046). Only over IPv4; over
/// IPv6 nobody but its source has anything to do with it.
#[cold]
pub fn renumbered(packet: &Packet, id: u16) -> Packet {
    let id = u32::from(id);
    let fragment = match packet.l3.fragment {
        _ if packet.l3.family == Version::V6 => packet.l3.fragment,
        Fragment::None => Fragment::None,
        Fragment::First { .. } => Fragment::First { id },
        Fragment::Later { offset, more, .. } => Fragment::Later { id, offset, more },
    };
    Packet { l3: L3 { fragment, ..packet.l3 }, ..*packet }
}

/// The tuple of a fragment whose ports are known.
#[cold]
pub fn tuple<A: Family>(packet: &Packet, l3: &[u8], ports: Ports) -> Tuple<A> {
    let (source, destination) = A::addresses(l3);
    Tuple {
        source,
        destination,
        source_port: ports.source,
        destination_port: ports.destination,
        protocol: ports.protocol,
        domain: packet.domain as u8,
    }
}
