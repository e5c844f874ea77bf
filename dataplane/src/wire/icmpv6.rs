//! ICMP for IPv6 (RFC 4443): types and the messages a gateway sends.
//!
//! Owns error messages with their quotes and the echo answer; the header is [`icmp::Header`]. Refuses to know when to send
//! one: callers ask [`may_answer`] and their rate limits first. Neighbour discovery is in [`ndp`](super::ndp).

use zerocopy::{FromBytes, IntoBytes};

use super::checksum::{Delta, Sum};
use super::packet::{Fragment, L3};
use super::{Family, icmp, ipv6, protocol};

/// Length of the header every message we know has.
pub const HEADER_LEN: usize = 8;

/// Destination unreachable.
pub const UNREACHABLE: u8 = 1;
/// Packet too big.
pub const PACKET_TOO_BIG: u8 = 2;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 3;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 4;
/// Echo request.
pub const ECHO_REQUEST: u8 = 128;
/// Echo reply.
pub const ECHO_REPLY: u8 = 129;

/// Code of [`UNREACHABLE`]: no route.
pub const CODE_NO_ROUTE: u8 = 0;
/// Code of [`UNREACHABLE`]: administratively prohibited.
pub const CODE_PROHIBITED: u8 = 1;
/// Code of [`UNREACHABLE`]: address.
pub const CODE_ADDRESS: u8 = 3;
/// Code of [`UNREACHABLE`]: port.
pub const CODE_PORT: u8 = 4;

/// Whether a type is an error, which quotes the packet it is about (RFC 4443 section 2.1: types 0 to 127; only the four
/// defined ones are known to quote at byte eight).
#[inline]
#[must_use]
pub fn is_error(icmp_type: u8) -> bool {
    matches!(icmp_type, UNREACHABLE | PACKET_TOO_BIG | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// Whether an error may be sent about this packet at all (RFC 4443 section 2.4 (e)): not about an ICMPv6 error or a redirect,
/// not about an address that is no single node, and not about a fragment that is not the first, which names no flow. As for
/// one that goes where it comes from, see [`icmp::may_answer`](super::icmp::may_answer).
///
/// Packet too big is allowed about multicast by the RFC; we do not forward multicast.
#[must_use]
pub fn may_answer(packet: &[u8], l3: &L3) -> bool {
    const REDIRECT: u8 = 137;
    let (source, destination) = ipv6::addresses(packet);
    l3.family == Family::V6
        && !(l3.is_icmp() && (l3.icmp_type < 128 || l3.icmp_type == REDIRECT))
        && !matches!(l3.fragment, Fragment::Later { .. })
        && !ipv6::is_martian_source(source, [0; 16])
        && destination[0] != 0xff
}

/// An error message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorRepr {
    /// Destination unreachable.
    Unreachable {
        /// Why; see [`CODE_NO_ROUTE`] and the others.
        code: u8,
    },
    /// The packet does not fit.
    PacketTooBig {
        /// Largest IP packet that would fit, bytes.
        mtu: u32,
    },
    /// The hop limit reached zero here.
    TimeExceeded,
}

impl ErrorRepr {
    fn header(self) -> icmp::Header {
        let (icmp_type, code, rest) = match self {
            ErrorRepr::Unreachable { code } => (UNREACHABLE, code, 0),
            ErrorRepr::PacketTooBig { mtu } => (PACKET_TOO_BIG, 0, mtu),
            ErrorRepr::TimeExceeded => (TIME_EXCEEDED, 0, 0),
        };
        icmp::Header { icmp_type, code, checksum: 0.into(), rest: rest.into() }
    }

    /// The message whose header this is, if it is one that Tidegate sends.
    #[must_use]
    pub fn of(header: &icmp::Header) -> Option<ErrorRepr> {
        match (header.icmp_type, header.code) {
            (UNREACHABLE, code) => Some(ErrorRepr::Unreachable { code }),
            (PACKET_TOO_BIG, _) => Some(ErrorRepr::PacketTooBig { mtu: header.rest() }),
            (TIME_EXCEEDED, 0) => Some(ErrorRepr::TimeExceeded),
            _ => None,
        }
    }

    /// Length of the IP packet that [`ErrorRepr::emit`] writes about `original`.
    #[must_use]
    pub fn len(self, original: &[u8]) -> usize {
        (ipv6::HEADER_LEN + HEADER_LEN + original.len()).min(ipv6::MTU_MIN)
    }

    /// Always false: a message has bytes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        false
    }

    /// Writes the IP packet that tells the sender of `original` about it, and returns its length; `None` if `out` is too
    /// small or `original` is no IPv6 packet.
    ///
    /// `original` is the packet as received, from its IP header to its end without padding; "as much of invoking packet as
    /// possible without the ICMPv6 packet exceeding the minimum IPv6 MTU" (RFC 4443 section 3). `source` is the address to
    /// speak from: for traffic to a VIP, the VIP (V-010).
    pub fn emit(self, out: &mut [u8], source: [u8; 16], original: &[u8]) -> Option<usize> {
        let (about, _) = ipv6::Header::ref_from_prefix(original).ok()?;
        let out = out.get_mut(..self.len(original))?;
        let payload_len = u16::try_from(out.len() - ipv6::HEADER_LEN).ok()?;
        let (ip, message) = out.split_at_mut_checked(ipv6::HEADER_LEN)?;
        let repr = ipv6::Repr {
            source,
            destination: about.source,
            next_header: protocol::ICMPV6,
            payload_len,
            hop_limit: ipv6::HOP_LIMIT_DEFAULT,
            traffic_class: 0,
            flow_label: 0,
        };
        repr.emit(ip)?;
        let mut header = self.header();
        let (head, quote) = message.split_at_mut_checked(HEADER_LEN)?;
        quote.copy_from_slice(original.get(..quote.len())?);
        header.checksum = Sum::ZERO
            .pseudo_v6(source, about.source, protocol::ICMPV6, u32::from(payload_len))
            .bytes(header.as_bytes())
            .bytes(quote)
            .checksum()
            .into();
        header.write_to(head).ok()?;
        Some(out.len())
    }
}

/// Turns an echo request into its reply, in place: addresses swapped, hop limit fresh, checksum right. False (nothing
/// changed) if it is no whole echo request.
///
/// `packet` starts at the IP header. The link layer is the caller's.
#[must_use]
pub fn answer_echo(packet: &mut [u8], l3: &L3) -> bool {
    if l3.family != Family::V6
        || l3.protocol != protocol::ICMPV6
        || l3.icmp_type != ECHO_REQUEST
        || l3.icmp_code != 0
        || l3.fragment != Fragment::None
    {
        return false;
    }
    let Some(message) = packet.get_mut(usize::from(l3.l4_offset)..) else { return false };
    let Ok((header, _)) = icmp::Header::mut_from_prefix(message) else { return false };
    // Swapping the addresses leaves the pseudo header's sum as it is.
    let delta = Delta::word(u16::from(ECHO_REQUEST) << 8, u16::from(ECHO_REPLY) << 8);
    header.checksum = delta.apply(header.checksum.get()).into();
    header.icmp_type = ECHO_REPLY;
    let Ok((ip, _)) = ipv6::Header::mut_from_prefix(packet) else { return false };
    core::mem::swap(&mut ip.source, &mut ip.destination);
    ip.hop_limit = ipv6::HOP_LIMIT_DEFAULT;
    true
}
