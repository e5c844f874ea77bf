//! Edits: the one place that changes headers inside forwarded packets.
//!
//! Owns address and port translation, TTL, and ECN, each with its incremental checksum updates (RFC 1624, N-070). Refuses to
//! know why: it is told old and new values.
//!
//! [`Prepared`] is an edit to be written: what to write and two checksum deltas. [`apply_v4`] and [`apply_v6`] write it;
//! [`translate_v4`] and [`translate_v6`] make and write one for one packet, and [`forward_v4`] and [`forward_v6`] take a hop
//! off as well.
//!
//! What the L4 checksum covers decides the delta (N-073): TCP, UDP and ICMPv6 cover the addresses, ICMPv4 does not, and
//! SCTP's CRC32c covers no address but the ports, over the whole packet: in a fragment these must stay (N-075). Fragments other
//! than the first have no L4 header: only their addresses change; the first one's checksum is updated for the whole datagram
//! (N-062).

use zerocopy::FromBytes;
use zerocopy::byteorder::network_endian::U16;

use super::checksum::{Delta, Sum};
use super::packet::{Fragment, L3};
use super::{Family, icmp, icmpv6, ipv4, ipv6, plain, protocol, sctp, tcp, udp};

/// The end points of one direction of a flow.
///
/// For ICMP echo both ports hold the identifier, as in [`L3`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple<A> {
    /// Source address, network order.
    pub source: A,
    /// Destination address, network order.
    pub destination: A,
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
}

impl Tuple<[u8; 4]> {
    /// The end points of an IPv4 packet.
    #[inline(always)]
    #[must_use]
    pub fn of_v4(packet: &[u8], l3: &L3) -> Self {
        let (source, destination) = ipv4::addresses(packet);
        Tuple { source, destination, source_port: l3.source_port, destination_port: l3.destination_port }
    }
}

impl Tuple<[u8; 16]> {
    /// The end points of an IPv6 packet.
    #[inline(always)]
    #[must_use]
    pub fn of_v6(packet: &[u8], l3: &L3) -> Self {
        let (source, destination) = ipv6::addresses(packet);
        Tuple { source, destination, source_port: l3.source_port, destination_port: l3.destination_port }
    }
}

impl<A> Tuple<A> {
    /// The other direction.
    #[inline]
    #[must_use]
    pub fn reversed(self) -> Tuple<A> {
        Tuple {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// A translation ready to be written: the new end points, and what they add to the checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared<A> {
    /// What to write.
    pub to: Tuple<A>,
    /// The change of the IPv4 header checksum; [`Delta::NONE`] for IPv6, which has none.
    pub ip: Delta,
    /// The change of the L4 checksum, for the protocol it was prepared for.
    pub l4: Delta,
}

impl Prepared<[u8; 4]> {
    /// Prepares the translation of a flow of `protocol`.
    #[inline(always)]
    #[must_use]
    pub fn new_v4(from: &Tuple<[u8; 4]>, to: &Tuple<[u8; 4]>, protocol: u8) -> Self {
        let ip = addresses_delta(from, to);
        let l4 = match protocol {
            protocol::TCP | protocol::UDP => ip.and(ports_delta(from, to)),
            protocol::ICMP => Delta::word(from.source_port, to.source_port),
            _ => Delta::NONE,
        };
        Prepared { to: *to, ip, l4 }
    }
}

impl Prepared<[u8; 16]> {
    /// Prepares the translation of a flow of `protocol`.
    #[inline(always)]
    #[must_use]
    pub fn new_v6(from: &Tuple<[u8; 16]>, to: &Tuple<[u8; 16]>, protocol: u8) -> Self {
        let addresses = addresses_delta(from, to);
        let l4 = match protocol {
            protocol::TCP | protocol::UDP => addresses.and(ports_delta(from, to)),
            protocol::ICMPV6 => addresses.and(Delta::word(from.source_port, to.source_port)),
            _ => Delta::NONE,
        };
        Prepared { to: *to, ip: Delta::NONE, l4 }
    }
}

/// What new addresses add to a sum over them: a pseudo header or an IPv4 header.
#[inline(always)]
pub fn addresses_delta<const N: usize>(from: &Tuple<[u8; N]>, to: &Tuple<[u8; N]>) -> Delta {
    let over = |ends: &Tuple<[u8; N]>| Sum::ZERO.block(&ends.source).block(&ends.destination);
    Delta::sum(over(from), over(to))
}

/// What new ports add to a sum over them.
#[inline(always)]
pub fn ports_delta<A>(from: &Tuple<A>, to: &Tuple<A>) -> Delta {
    Delta::word(from.source_port, to.source_port).and_word(from.destination_port, to.destination_port)
}

/// Writes a prepared translation into an IPv4 packet. `packet` starts at the IP header, `l3` is what parse said of it.
///
/// False if the packet is not what `l3` says, or a fragment of SCTP whose ports would change; nothing is written then.
#[inline(always)]
#[must_use]
pub fn apply_v4(packet: &mut [u8], l3: &L3, edit: &Prepared<[u8; 4]>) -> bool {
    if l3.family != Family::V4 || packet.len() < usize::from(l3.total_len) {
        return false;
    }
    if !apply_l4(packet, l3, edit.l4, edit.to.source_port, edit.to.destination_port) {
        return false;
    }
    let Ok((header, _)) = ipv4::Header::mut_from_prefix(packet) else { return false };
    header.source = edit.to.source;
    header.destination = edit.to.destination;
    header.checksum = edit.ip.apply(header.checksum.get()).into();
    true
}

/// Writes a prepared translation into an IPv6 packet; as [`apply_v4`].
#[inline(always)]
#[must_use]
pub fn apply_v6(packet: &mut [u8], l3: &L3, edit: &Prepared<[u8; 16]>) -> bool {
    if l3.family != Family::V6 || packet.len() < usize::from(l3.total_len) {
        return false;
    }
    if !apply_l4(packet, l3, edit.l4, edit.to.source_port, edit.to.destination_port) {
        return false;
    }
    let Ok((header, _)) = ipv6::Header::mut_from_prefix(packet) else { return false };
    header.source = edit.to.source;
    header.destination = edit.to.destination;
    true
}

/// [`decrement_ttl_v4`] and [`translate_v4`] at once: what a forwarded packet gets, its header checksum changed once.
#[inline(always)]
#[must_use]
pub fn forward_v4(packet: &mut [u8], l3: &L3, to: &Tuple<[u8; 4]>) -> bool {
    plain::forward_v4(packet, l3, to).is_some() || forward_any_v4(packet, l3, to)
}

#[cold]
#[inline(never)]
pub(super) fn forward_any_v4(packet: &mut [u8], l3: &L3, to: &Tuple<[u8; 4]>) -> bool {
    let Ok((header, _)) = ipv4::Header::ref_from_prefix(packet) else { return false };
    let ttl = header.ttl;
    if ttl <= 1 {
        return false;
    }
    let from = Tuple::of_v4(packet, l3);
    let prepared = Prepared::new_v4(&from, to, l3.protocol);
    let edit = Prepared { ip: prepared.ip.and(ONE_HOP), ..prepared };
    if !apply_v4(packet, l3, &edit) {
        return false;
    }
    if let Ok((header, _)) = ipv4::Header::mut_from_prefix(packet) {
        header.ttl = ttl - 1;
    }
    true
}

/// [`decrement_ttl_v6`] and [`translate_v6`] at once.
#[inline(always)]
#[must_use]
pub fn forward_v6(packet: &mut [u8], l3: &L3, to: &Tuple<[u8; 16]>) -> bool {
    plain::forward_v6(packet, l3, to).is_some() || forward_any_v6(packet, l3, to)
}

#[cold]
#[inline(never)]
pub(super) fn forward_any_v6(packet: &mut [u8], l3: &L3, to: &Tuple<[u8; 16]>) -> bool {
    decrement_ttl_v6(packet) && translate_v6(packet, l3, to)
}

/// Changes addresses and ports of one IPv4 packet, checksums included.
///
/// `packet` starts at the IP header, `l3` is what parse said of it. For ICMP echo, `to.source_port` is the new identifier.
/// False (nothing written) as [`apply_v4`].
#[inline(always)]
#[must_use]
pub fn translate_v4(packet: &mut [u8], l3: &L3, to: &Tuple<[u8; 4]>) -> bool {
    let from = Tuple::of_v4(packet, l3);
    apply_v4(packet, l3, &Prepared::new_v4(&from, to, l3.protocol))
}

/// Changes addresses and ports of one IPv6 packet, checksums included; as [`translate_v4`].
///
/// ICMPv6 other than echo (errors, above all) has its checksum updated for the addresses; quotes are the business of
/// [`quote`](super::quote).
#[inline(always)]
#[must_use]
pub fn translate_v6(packet: &mut [u8], l3: &L3, to: &Tuple<[u8; 16]>) -> bool {
    let mut from = Tuple::of_v6(packet, l3);
    if l3.protocol == protocol::ICMPV6 && !l3.is_icmp_echo() {
        from.source_port = to.source_port;
    }
    apply_v6(packet, l3, &Prepared::new_v6(&from, to, l3.protocol))
}

#[inline(always)]
fn apply_l4(packet: &mut [u8], l3: &L3, delta: Delta, source_port: u16, destination_port: u16) -> bool {
    if matches!(l3.fragment, Fragment::Later { .. }) {
        return true;
    }
    let Some(l4) = packet.get_mut(usize::from(l3.l4_offset)..usize::from(l3.total_len)) else { return false };
    match (l3.protocol, l3.family) {
        (protocol::TCP, _) => {
            let Ok((header, _)) = tcp::Header::mut_from_prefix(l4) else { return false };
            header.source_port = source_port.into();
            header.destination_port = destination_port.into();
            header.checksum = delta.apply(header.checksum.get()).into();
        }
        (protocol::UDP, _) => {
            let Ok((header, _)) = udp::Header::mut_from_prefix(l4) else { return false };
            header.source_port = source_port.into();
            header.destination_port = destination_port.into();
            header.checksum = delta.apply_udp(header.checksum.get()).into();
        }
        (protocol::ICMP, Family::V4) | (protocol::ICMPV6, Family::V6) => {
            return apply_icmp(l4, l3, delta, source_port);
        }
        (protocol::SCTP, _) => {
            let same = (source_port, destination_port) == (l3.source_port, l3.destination_port);
            return same || l3.fragment == Fragment::None && sctp::set_ports(l4, source_port, destination_port);
        }
        _ => {}
    }
    true
}

/// The identifier of an echo message; of other ICMPv6 messages only the checksum.
fn apply_icmp(message: &mut [u8], l3: &L3, delta: Delta, identifier: u16) -> bool {
    let Ok((header, _)) = icmp::Header::mut_from_prefix(message) else { return false };
    if l3.is_icmp_echo() {
        let sequence = header.rest.get() & 0xffff;
        header.rest = (u32::from(identifier) << 16 | sequence).into();
    } else if l3.family == Family::V4 {
        return true;
    }
    header.checksum = delta.apply(header.checksum.get()).into();
    if l3.family == Family::V4 {
        icmp::settle_zero(message);
    }
    true
}

/// One hop less: the word of TTL and protocol falls by 0x0100 whatever it was, ~m + m' = 0xffff - 0x0100.
pub(super) const ONE_HOP: Delta = Delta::from_bits(0xfeff);

/// Takes one hop off an IPv4 packet, header checksum included (RFC 1812 section 5.3.1). False (nothing changed) if no hop is
/// left: the packet must not be forwarded.
#[inline(always)]
#[must_use]
pub fn decrement_ttl_v4(packet: &mut [u8]) -> bool {
    let Ok((header, _)) = ipv4::Header::mut_from_prefix(packet) else { return false };
    if header.ttl <= 1 {
        return false;
    }
    header.ttl -= 1;
    header.checksum = ONE_HOP.apply(header.checksum.get()).into();
    true
}

/// Takes one hop off an IPv6 packet (RFC 8200 section 3). False (nothing changed) if no hop is left.
#[inline(always)]
#[must_use]
pub fn decrement_ttl_v6(packet: &mut [u8]) -> bool {
    let Ok((header, _)) = ipv6::Header::mut_from_prefix(packet) else { return false };
    if header.hop_limit <= 1 {
        return false;
    }
    header.hop_limit -= 1;
    true
}

/// As [`decrement_ttl_v4`] or [`decrement_ttl_v6`].
#[inline(always)]
#[must_use]
pub fn decrement_ttl(packet: &mut [u8], family: Family) -> bool {
    match family {
        Family::V4 => decrement_ttl_v4(packet),
        Family::V6 => decrement_ttl_v6(packet),
    }
}

/// Gives an IPv4 packet another identification, header checksum included. `id` is in host order.
pub fn set_identification(packet: &mut [u8], id: u16) {
    let Ok((header, _)) = ipv4::Header::mut_from_prefix(packet) else { return };
    let before = header.identification.get();
    header.identification = id.into();
    header.checksum = Delta::word(before, id).apply(header.checksum.get()).into();
}

/// Sets the ECN bits of a packet to the lower two of `ecn`, the IPv4 header checksum included (V-007).
#[inline]
pub fn set_ecn(packet: &mut [u8], family: Family, ecn: u8) {
    match family {
        Family::V4 => {
            let Ok((header, _)) = ipv4::Header::mut_from_prefix(packet) else { return };
            let tos = header.tos & !3 | ecn & 3;
            header.checksum = Delta::word(u16::from(header.tos), u16::from(tos)).apply(header.checksum.get()).into();
            header.tos = tos;
        }
        Family::V6 => {
            let Ok((header, _)) = ipv6::Header::mut_from_prefix(packet) else { return };
            let word = header.version_class_label.get();
            header.version_class_label = (word & !(3 << 20) | u32::from(ecn & 3) << 20).into();
        }
    }
}

/// Lowers the maximum segment size of a SYN or SYN-ACK to what fits a path of `mtu` bytes: 40 or 60 less (V-013).
///
/// True if it changed. Anything but a whole TCP packet stays as it is.
#[inline]
pub fn clamp_mss(packet: &mut [u8], l3: &L3, mtu: u16) -> bool {
    if l3.tcp_flags & tcp::SYN == 0 || l3.protocol != protocol::TCP || l3.fragment != Fragment::None {
        return false;
    }
    let headers = match l3.family {
        Family::V4 => 40,
        Family::V6 => 60,
    };
    match packet.get_mut(usize::from(l3.l4_offset)..usize::from(l3.total_len)) {
        Some(segment) => tcp::clamp_mss(segment, mtu.saturating_sub(headers)),
        None => false,
    }
}

/// A two-byte field at an even offset of `bytes`, to be changed: writes `new`, returns the change of the sum.
#[inline]
pub(super) fn replace_word(bytes: &mut [u8], at: usize, new: impl FnOnce(u16) -> u16) -> Option<Delta> {
    let (field, _) = U16::mut_from_prefix(bytes.get_mut(at..)?).ok()?;
    let old = field.get();
    let new = new(old);
    *field = new.into();
    Some(Delta::word(old, new))
}

/// Whether either port differs.
#[inline]
#[must_use]
pub fn ports_changed<A>(from: &Tuple<A>, to: &Tuple<A>) -> bool {
    (from.source_port, from.destination_port) != (to.source_port, to.destination_port)
}

/// Whether a protocol's header starts with a source and a destination port, of those we read.
#[inline]
#[must_use]
pub fn has_ports(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
}

/// Turns a whole ICMP or ICMPv6 echo request into its reply, in place; see [`icmp::answer_echo`], [`icmpv6::answer_echo`].
#[must_use]
pub fn answer_echo(packet: &mut [u8], l3: &L3) -> bool {
    match l3.family {
        Family::V4 => icmp::answer_echo(packet, l3),
        Family::V6 => icmpv6::answer_echo(packet, l3),
    }
}
