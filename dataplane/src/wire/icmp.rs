//! ICMP for IPv4 (RFC 792): types, the header, and the messages a gateway sends.
//!
//! Owns error messages with their quotes (RFC 1812 section 4.3) and the echo answer. Refuses to know when to send one:
//! callers ask [`may_answer`] and their rate limits first.

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::{Delta, Sum};
use super::packet::{Fragment, L3};
use super::{Family, ipv4, protocol};

/// Length of the header every message we know has.
pub const HEADER_LEN: usize = 8;

/// Echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// Source quench (RFC 792), deprecated by RFC 6633.
pub const SOURCE_QUENCH: u8 = 4;
/// Redirect (RFC 792).
pub const REDIRECT: u8 = 5;
/// Echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;

/// Code of [`UNREACHABLE`]: network.
pub const CODE_NET: u8 = 0;
/// Code of [`UNREACHABLE`]: host.
pub const CODE_HOST: u8 = 1;
/// Code of [`UNREACHABLE`]: port.
pub const CODE_PORT: u8 = 3;
/// Code of [`UNREACHABLE`]: fragmentation needed and DF set.
pub const CODE_FRAGMENTATION_NEEDED: u8 = 4;
/// Code of [`UNREACHABLE`]: communication administratively prohibited (RFC 1812 section 5.2.7.1).
pub const CODE_PROHIBITED: u8 = 13;

/// Longest error message, IP header included (RFC 1812 section 4.3.2.3).
pub const ERROR_LEN_MAX: usize = 576;

/// The header of ICMP and ICMPv6 messages (RFC 792, RFC 4443 section 2.1).
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |     type      |     code      |           checksum            |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |   rest: echo identifier and sequence number, or MTU, or zero  |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Which message.
    pub icmp_type: u8,
    /// Which kind of it.
    pub code: u8,
    pub(super) checksum: U16,
    pub(super) rest: U32,
}

impl Header {
    /// Checksum as stored, host order.
    #[inline]
    #[must_use]
    pub fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// Identifier of an echo message, host order.
    #[inline]
    #[must_use]
    pub fn identifier(&self) -> u16 {
        (self.rest.get() >> 16) as u16
    }

    /// The last four bytes as one number, host order.
    #[inline]
    #[must_use]
    pub fn rest(&self) -> u32 {
        self.rest.get()
    }
}

/// Whether a type is an error, which quotes the packet it is about: destination unreachable, source quench, redirect, time
/// exceeded, parameter problem.
#[inline]
#[must_use]
pub fn is_error(icmp_type: u8) -> bool {
    matches!(icmp_type, 3 | 4 | 5 | 11 | 12)
}

/// Whether an error may be sent about this packet at all (RFC 1812 section 4.3.2.7): not about an ICMP error, not about a
/// fragment that is not the first, not to or about an address that is no single host. One that goes where it comes from has
/// been refused when it was read (the LAND attack), unless it is between two pods that share an address.
#[must_use]
pub fn may_answer(packet: &[u8], l3: &L3) -> bool {
    let (source, destination) = ipv4::addresses(packet);
    l3.family == Family::V4
        && !l3.is_icmp_error()
        && !matches!(l3.fragment, Fragment::Later { .. })
        && !ipv4::is_martian_source(source, [0; 4])
        && destination[0] < 224
}

/// An error message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorRepr {
    /// Destination unreachable for any reason but size.
    Unreachable {
        /// Why; see [`CODE_HOST`] and the others.
        code: u8,
    },
    /// The packet must not be fragmented and does not fit (RFC 1191 section 4).
    FragmentationNeeded {
        /// Largest IP packet that would fit, bytes.
        mtu: u16,
    },
    /// The TTL reached zero here.
    TimeExceeded,
}

impl ErrorRepr {
    fn header(self) -> Header {
        let (icmp_type, code, rest) = match self {
            ErrorRepr::Unreachable { code } => (UNREACHABLE, code, 0),
            ErrorRepr::FragmentationNeeded { mtu } => (UNREACHABLE, CODE_FRAGMENTATION_NEEDED, u32::from(mtu)),
            ErrorRepr::TimeExceeded => (TIME_EXCEEDED, 0, 0),
        };
        Header { icmp_type, code, checksum: 0.into(), rest: rest.into() }
    }

    /// The message whose header this is, if it is one that Tidegate sends.
    #[must_use]
    pub fn of(header: &Header) -> Option<ErrorRepr> {
        match (header.icmp_type, header.code) {
            (UNREACHABLE, CODE_FRAGMENTATION_NEEDED) => {
                Some(ErrorRepr::FragmentationNeeded { mtu: (header.rest() & 0xffff) as u16 })
            }
            (UNREACHABLE, code) => Some(ErrorRepr::Unreachable { code }),
            (TIME_EXCEEDED, 0) => Some(ErrorRepr::TimeExceeded),
            _ => None,
        }
    }

    /// Length of the IP packet that [`ErrorRepr::emit`] writes about `original`.
    #[must_use]
    pub fn len(self, original: &[u8]) -> usize {
        (ipv4::HEADER_LEN + HEADER_LEN + original.len()).min(ERROR_LEN_MAX)
    }

    /// Always false: a message has bytes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        false
    }

    /// Writes the IP packet that tells the sender of `original` about it, and returns its length; `None` if `out` is too
    /// small or `original` is no IPv4 packet.
    ///
    /// `original` is the packet as received, from its IP header to its end without padding; as much of it is quoted as 576
    /// bytes allow. `source` is the address to speak from: for traffic to a VIP, the VIP (V-010).
    pub fn emit(self, out: &mut [u8], source: [u8; 4], original: &[u8]) -> Option<usize> {
        let (about, _) = ipv4::Header::ref_from_prefix(original).ok()?;
        let out = out.get_mut(..self.len(original))?;
        let payload_len = u16::try_from(out.len() - ipv4::HEADER_LEN).ok()?;
        let (ip, message) = out.split_at_mut_checked(ipv4::HEADER_LEN)?;
        let repr = ipv4::Repr {
            source,
            destination: about.source,
            protocol: protocol::ICMP,
            payload_len,
            ttl: ipv4::TTL_DEFAULT,
            // "ICMP error messages SHOULD have their IP Precedence field set to 6 or 7" (RFC 1812 section 4.3.2.5)
            tos: 0xc0,
            identification: 0,
            dont_fragment: true,
        };
        repr.emit(ip)?;
        let mut header = self.header();
        let (head, quote) = message.split_at_mut_checked(HEADER_LEN)?;
        quote.copy_from_slice(original.get(..quote.len())?);
        header.checksum = Sum::ZERO.bytes(header.as_bytes()).bytes(quote).checksum().into();
        header.write_to(head).ok()?;
        Some(out.len())
    }
}

/// Turns an echo request into its reply, in place: addresses swapped, TTL fresh, checksums right. False (nothing changed) if
/// it is no whole echo request.
///
/// `packet` starts at the IP header. The link layer is the caller's.
#[must_use]
pub fn answer_echo(packet: &mut [u8], l3: &L3) -> bool {
    if l3.family != Family::V4
        || l3.protocol != protocol::ICMP
        || l3.icmp_type != ECHO_REQUEST
        || l3.icmp_code != 0
        || l3.fragment != Fragment::None
    {
        return false;
    }
    let Some(message) = packet.get_mut(usize::from(l3.l4_offset)..usize::from(l3.total_len)) else { return false };
    let Ok((header, _)) = Header::mut_from_prefix(message) else { return false };
    let checksum = Delta::word(u16::from(ECHO_REQUEST) << 8, u16::from(ECHO_REPLY) << 8).apply(header.checksum.get());
    header.icmp_type = ECHO_REPLY;
    header.checksum = checksum.into();
    settle_zero(message);
    let Ok((ip, _)) = ipv4::Header::mut_from_prefix(packet) else { return false };
    core::mem::swap(&mut ip.source, &mut ip.destination);
    let old = u16::from_be_bytes([ip.ttl, ip.protocol]);
    ip.ttl = ipv4::TTL_DEFAULT;
    ip.checksum = Delta::word(old, u16::from_be_bytes([ip.ttl, ip.protocol])).apply(ip.checksum.get()).into();
    true
}

/// Gives a message of nothing but zeros the one checksum that verifies, `0xffff`, after an incremental update made it
/// `0x0000`: an echo reply with identifier, sequence number and data zero has no other byte in its sum.
#[inline]
pub(super) fn settle_zero(message: &mut [u8]) {
    if let Ok((header, _)) = Header::ref_from_prefix(message)
        && header.checksum() == 0
        && message.iter().all(|byte| *byte == 0)
        && let Some([_, _, high, low]) = message.first_chunk_mut::<4>()
    {
        (*high, *low) = (0xff, 0xff);
    }
}
