//! # Error: ICMP errors and resets
//!
//! reads   the flow that an error quotes; `table::device`, `table::local`     writes  whole packets, in place
//! drops   `IcmpBadChecksum`, `IcmpUnhandled`, `QuoteMalformed`, `SpoofedSource`, `TtlExpired`, `TooBig`, `NoBackend`
//! cost    cold; one flow lookup, one copy of at most 1,280 bytes
//! spec    L-050, S-070, S-075, S-079, N-031, N-074, P-047, V-010, V-052, L-058, RFC 792, 1812, 4443, 5508, 9293
//! tests   `dataplane/tests/golden/error.rs`
//!
//! Translating: an error that reaches a Service address quotes a packet *we* sent to the client, so its reverse is the
//! original tuple, and the error goes to the backend; one that comes out of the overlay quotes what we sent to a backend
//! and goes to the client. The quoted packet is turned back into the one its sender knows.

use tidegate_io::Frame;

use crate::drops::DropReason;
use crate::family::Family;
use crate::mutation::{self, Mutation};
use crate::packet::{Domain, Packet};
use crate::pipeline::Decision;
use crate::stage::{egress, encap, node, policy, route};
use crate::state::{Direction, Entry, Hit, State, Tuple};
use crate::table::Tables;
use crate::wire::packet::l4_checksum_verifies;
use crate::wire::{Family as Version, edit, icmp, icmpv6, ipv4, ipv6, protocol, reset, sctp};

/// Most of a packet that is quoted: "as much of invoking packet as possible without the ICMPv6 packet exceeding the
/// minimum IPv6 MTU" (RFC 4443 section 3); IPv4 quotes less (RFC 1812 section 4.3.2.3).
const QUOTE_BYTES_MAX: usize = 1280;

/// What to do with an ICMP error, given the reverse of what it quotes and the flow of that.
pub fn decide<A: Family>(
    tables: &Tables,
    state: &State,
    packet: &Packet,
    tuple: &Tuple<A>,
    hit: Option<Hit>,
    hash: u64,
) -> Decision<A> {
    // Source quench is "ignored" (RFC 6633), and a redirect is for the link that it was sent on (RFC 1122 section 3.2.2.2).
    let unheard =
        packet.l3.family == Version::V4 && matches!(packet.l3.icmp_type, icmp::SOURCE_QUENCH | icmp::REDIRECT);
    if unheard && !mutation::is(Mutation::RedirectTranslated) {
        return Decision::Drop(DropReason::IcmpUnhandled);
    }
    let Some(hit) = hit else { return node::error_by_hash(tables, packet, tuple) };
    if packet.l3.ttl <= 1 {
        return Decision::Drop(DropReason::TtlExpired); // never an error about an error
    }
    let entry = A::flows(state).entry(hit.flow);
    if entry.is_one_way() {
        return node::error(tables, packet, entry);
    }
    let to = entry.leaving(hit.direction).destination;
    let fresh = entry.routes_epoch == policy::ways_epoch(tables, entry);
    let hop = route::kept(entry, hit.direction).filter(|hop| fresh && route::carries(tables, *hop).is_some());
    let way = || match entry.leaving(hit.direction).domain == Domain::Wire as u8 {
        true => egress::way(tables, to, hash),
        false => route::toward(tables, to, hash),
    };
    match hop.map_or_else(way, Ok) {
        Ok(hop) => Decision::Translate { flow: hit.flow, direction: hit.direction, hop },
        Err(reason) => Decision::Drop(reason),
    }
}

/// Translates an error that travels in `direction` of the flow `entry`, quote included.
///
/// # Errors
/// `IcmpBadChecksum` and `SpoofedSource` when the error is not to be believed, `QuoteMalformed`.
pub fn translate<A: Family>(
    tables: &Tables,
    packet: &Packet,
    frame: &mut Frame,
    entry: &Entry<A>,
    direction: Direction,
) -> Result<(), DropReason> {
    let at = usize::from(packet.l3_offset);
    encap::resize(frame, at + usize::from(packet.l3.total_len))?;
    let l3 = frame.bytes_mut().get_mut(at..).ok_or(DropReason::QuoteMalformed)?;
    translate_in(tables, packet, l3, entry, direction)
}

/// The same in a packet that begins at `l3[0]` and has nothing after it.
///
/// # Errors
/// As [`translate`].
pub(crate) fn translate_in<A: Family>(
    tables: &Tables,
    packet: &Packet,
    l3: &mut [u8],
    entry: &Entry<A>,
    direction: Direction,
) -> Result<(), DropReason> {
    // N-031 REQ-3: an edit of a checksum that was wrong would only move the mistake to somebody else.
    if !l4_checksum_verifies(l3, &packet.l3) && !mutation::is(Mutation::ErrorUnchecked) {
        return Err(DropReason::IcmpBadChecksum);
    }
    if mutation::is(Mutation::ErrorAsItCame) {
        return Ok(());
    }
    if packet.domain == Domain::Overlay && !route::source_allowed(tables, packet.tunnel, A::addresses(l3).0) {
        return Err(DropReason::SpoofedSource);
    }
    // The quoted packet travelled against the error: its new tuple is that of the other direction before translation,
    // reversed, which is what `translated` of this direction is when read backwards.
    let to = entry.leaving(direction);
    let quoted = to.reversed(to.domain);
    // Whoever tells of it keeps its address where the flow's own source does: a router on the way must be seen (N-032).
    let keeps_source = entry.arriving(direction).source == to.source;
    let outer = if keeps_source { Tuple { source: A::addresses(l3).0, ..to } } else { to };
    if let Some(ecn) = packet.ecn {
        edit::set_ecn(l3, packet.l3.family, ecn);
    }
    let _alive = edit::decrement_ttl(l3, packet.l3.family);
    if A::translate_error(l3, &packet.l3, &outer, &quoted) { Ok(()) } else { Err(DropReason::QuoteMalformed) }
}

/// Turns a TCP segment into the RST that answers it, an SCTP packet into the ABORT.
///
/// # Errors
/// `otherwise` when the segment must not be answered.
pub fn reset(packet: &Packet, frame: &mut Frame, otherwise: DropReason) -> Result<(), DropReason> {
    // What is acknowledged is the whole segment, however long it is; the answer itself is short.
    let whole = answerable(packet, frame, otherwise)?;
    let mut answer = [0u8; reset::LEN_V6];
    let len = reset_in(packet, &mut answer, whole).ok_or(otherwise)?;
    let answer = answer.get(..len).ok_or(otherwise)?;
    let at = usize::from(packet.l3_offset);
    encap::resize(frame, at + len)?;
    frame.bytes_mut().get_mut(at..).ok_or(otherwise)?.copy_from_slice(answer);
    Ok(())
}

/// Writes the answer to the segment that begins at `original[0]`; `None` when it must not be answered.
fn reset_in(packet: &Packet, out: &mut [u8], original: &[u8]) -> Option<usize> {
    match packet.l3.protocol {
        protocol::SCTP => sctp::emit_abort(out, original, &packet.l3),
        _ => reset::emit(out, original, &packet.l3),
    }
}

/// Whether [`reset`] answers the segment that begins at `l3[0]`.
#[cold]
pub(crate) fn may_reset(packet: &Packet, l3: &[u8]) -> bool {
    may_answer(packet, l3) && reset_in(packet, &mut [0; reset::LEN_V6], l3).is_some()
}

/// Turns a datagram into the port unreachable that answers it, from the address it asked.
///
/// # Errors
/// When it must not be answered.
pub fn unreachable(packet: &Packet, frame: &mut Frame) -> Result<(), DropReason> {
    replace(packet, frame, DropReason::NoBackend, |out, original| match packet.l3.family {
        Version::V4 => {
            let source = ipv4::addresses(original).1;
            icmp::ErrorRepr::Unreachable { code: icmp::CODE_PORT }.emit(out, source, original)
        }
        Version::V6 => {
            let source = ipv6::addresses(original).1;
            icmpv6::ErrorRepr::Unreachable { code: icmpv6::CODE_PORT }.emit(out, source, original)
        }
    })
}

/// Turns a packet whose time ran out into the time exceeded that tells its sender, from the gateway (L-058).
///
/// # Errors
/// When it must not be answered, or the gateway has no address there.
pub fn time_exceeded(tables: &Tables, packet: &Packet, frame: &mut Frame) -> Result<(), DropReason> {
    let from = own_address(tables, packet).ok_or(DropReason::TtlExpired)?;
    replace(packet, frame, DropReason::TtlExpired, |out, original| match packet.l3.family {
        Version::V4 => {
            <[u8; 4]>::unmapped(&from).and_then(|source| icmp::ErrorRepr::TimeExceeded.emit(out, source, original))
        }
        Version::V6 => icmpv6::ErrorRepr::TimeExceeded.emit(out, from, original),
    })
}

/// Turns a packet that does not fit into the error that tells its sender how large one may be, from the address it was
/// sent to (V-010: "for VIP flows source = VIP"), or from the gateway if that is somebody else's (N-036).
///
/// # Errors
/// When it must not be answered.
pub fn too_big(tables: &Tables, packet: &Packet, frame: &mut Frame, mtu: u16) -> Result<(), DropReason> {
    let own = own_address(tables, packet);
    let from = |asked: [u8; 16]| {
        let is_pods = packet.domain == Domain::Overlay && tables.locals.kind(&asked).is_empty();
        own.filter(|_| is_pods).unwrap_or(asked)
    };
    replace(packet, frame, DropReason::TooBig, |out, original| match packet.l3.family {
        Version::V4 => {
            let source = <[u8; 4]>::unmapped(&from(ipv4::addresses(original).1.mapped()))?;
            icmp::ErrorRepr::FragmentationNeeded { mtu }.emit(out, source, original)
        }
        Version::V6 => {
            let source = from(ipv6::addresses(original).1);
            icmpv6::ErrorRepr::PacketTooBig { mtu: u32::from(mtu) }.emit(out, source, original)
        }
    })
}

/// Turns a pod's packet to the outside into the error that tells that it was not let out, from the gateway: "communication
/// administratively prohibited" (RFC 5508 REQ-8; RFC 4443 section 3.1 code 1).
///
/// # Errors
/// `otherwise` when it must not be answered, or the gateway has no address there.
pub fn prohibited(
    tables: &Tables,
    packet: &Packet,
    frame: &mut Frame,
    otherwise: DropReason,
) -> Result<(), DropReason> {
    let from = own_address(tables, packet).ok_or(otherwise)?;
    replace(packet, frame, otherwise, |out, original| match packet.l3.family {
        Version::V4 => {
            let source = <[u8; 4]>::unmapped(&from)?;
            icmp::ErrorRepr::Unreachable { code: icmp::CODE_PROHIBITED }.emit(out, source, original)
        }
        Version::V6 => icmpv6::ErrorRepr::Unreachable { code: icmpv6::CODE_PROHIBITED }.emit(out, from, original),
    })
}

/// The gateway's own address on the link a packet came from, IPv4 mapped.
fn own_address(tables: &Tables, packet: &Packet) -> Option<[u8; 16]> {
    let address = match packet.domain {
        Domain::Overlay => tables.locals.vtep(packet.l3.family)?.overlay,
        Domain::Wire => {
            let device = tables.devices.row(packet.device)?;
            match packet.l3.family {
                Version::V4 => device.address_v4.mapped(),
                Version::V6 => device.address_v6,
            }
        }
    };
    let unspecified = address == [0; 16] || address == [0u8; 4].mapped();
    (!unspecified).then_some(address)
}

/// Whether whoever sent this packet, which begins at `l3[0]`, may be told of an error (RFC 1812 section 4.3.2.7, RFC 4443
/// section 2.4).
pub(crate) fn may_answer(packet: &Packet, l3: &[u8]) -> bool {
    match packet.l3.family {
        Version::V4 => icmp::may_answer(l3, &packet.l3),
        Version::V6 => icmpv6::may_answer(l3, &packet.l3),
    }
}

/// The packet in the frame, if it may be answered.
fn answerable<'f>(packet: &Packet, frame: &'f Frame, refused: DropReason) -> Result<&'f [u8], DropReason> {
    let at = usize::from(packet.l3_offset);
    let whole = frame.bytes().get(at..at + usize::from(packet.l3.total_len)).ok_or(refused)?;
    if may_answer(packet, whole) { Ok(whole) } else { Err(refused) }
}

/// Replaces the packet in the frame by what `make(out, original)` writes and returns the length of.
fn replace(
    packet: &Packet,
    frame: &mut Frame,
    refused: DropReason,
    make: impl FnOnce(&mut [u8], &[u8]) -> Option<usize>,
) -> Result<(), DropReason> {
    let at = usize::from(packet.l3_offset);
    let mut original = [0u8; QUOTE_BYTES_MAX];
    let whole = answerable(packet, frame, refused)?;
    let quoted = whole.len().min(QUOTE_BYTES_MAX);
    let original = original.get_mut(..quoted).ok_or(refused)?;
    original.copy_from_slice(whole.get(..quoted).ok_or(refused)?);
    encap::resize(frame, at + QUOTE_BYTES_MAX)?;
    let out = frame.bytes_mut().get_mut(at..).ok_or(refused)?;
    let len = make(out, original).ok_or(refused)?;
    encap::resize(frame, at + len)
}
