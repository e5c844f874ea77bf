//! Packets: all that parsing learns about one IP packet, in one pass and one small value.
//!
//! Owns [`L3`] and [`parse_l3`]. Refuses to know addresses beyond what a check needs: they stay in the frame until the key
//! builder copies them once.
//!
//! One length check per header: each header is borrowed whole from the front of what the header before it allows, so a
//! field can never be read beyond the packet's own end, and padding after it is never looked at.

use zerocopy::FromBytes;

use super::checksum::Sum;
use super::{Family, Malformed, icmp, icmpv6, ipv4, ipv6, plain, protocol, sctp, tcp, udp};

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fragment {
    /// A whole packet; an "atomic" IPv6 fragment counts as one (RFC 6946).
    None,
    /// The first fragment: it has the L4 header, and more follow.
    First {
        /// Identification, host order; 16 bits over IPv4.
        id: u32,
    },
    /// Another fragment: it has no ports.
    Later {
        /// Identification, host order; 16 bits over IPv4.
        id: u32,
        /// Where its data starts in the whole datagram's payload, bytes.
        offset: u16,
        /// Whether it is not the last.
        more: bool,
    },
}

/// Everything parse learns about one IP packet.
///
/// Offsets count from the first byte of the IP header. Numbers are in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L3 {
    /// IP version.
    pub family: Family,
    /// What the packet carries, after IPv6 extension headers. For [`Fragment::Later`] over IPv6: what the fragment header
    /// names, which may be an extension header.
    pub protocol: u8,
    /// Where the L4 header starts; for [`Fragment::Later`]: where the fragment's data starts.
    pub l4_offset: u16,
    /// Length of the IP packet. Bytes after it are padding, to be cut off before the packet is sent on.
    pub total_len: u16,
    /// Which part of a datagram this is.
    pub fragment: Fragment,
    /// TTL or hop limit as received.
    pub ttl: u8,
    /// DSCP (upper six bits) and ECN (lower two).
    pub tos: u8,
    /// Must not be fragmented on the way: the DF flag of IPv4; always true for IPv6.
    pub dont_fragment: bool,
    /// IPv4 options or IPv6 extension headers are present.
    pub has_options: bool,
    /// A whole TCP segment, or a whole UDP datagram of the packet's length (over IPv6: with a checksum), right behind an IP
    /// header without options or extension headers: every field is where it nearly always is.
    pub is_plain: bool,
    /// Source port of TCP, UDP, SCTP; the identifier of an ICMP(v6) echo request or reply; else zero.
    pub source_port: u16,
    /// Destination port of TCP, UDP, SCTP; the identifier of an ICMP(v6) echo request or reply, so that a key and its
    /// reverse agree; else zero.
    pub destination_port: u16,
    /// TCP control bits, see [`tcp::FIN`] and the others; of SCTP, what the first chunk amounts to in these words
    /// ([`sctp::in_words_of_tcp`]); else zero.
    pub tcp_flags: u8,
    /// TCP sequence number; the tag that an SCTP INIT gives; else zero.
    pub tcp_seq: u32,
    /// TCP acknowledgment number; else zero.
    pub tcp_ack: u32,
    /// ICMP(v6) type; else zero, which is also echo reply: look at `protocol` first.
    pub icmp_type: u8,
    /// ICMP(v6) code; else zero.
    pub icmp_code: u8,
}

const _: () = assert!(size_of::<L3>() <= 64, "a packet's description stays within one cache line");

impl L3 {
    /// Bytes after the IP headers.
    #[inline]
    #[must_use]
    pub fn l4_len(&self) -> u16 {
        self.total_len.saturating_sub(self.l4_offset)
    }

    /// Whether an L4 header is in this packet.
    #[inline]
    #[must_use]
    pub fn has_l4(&self) -> bool {
        !matches!(self.fragment, Fragment::Later { .. })
    }

    /// Whether this is ICMP over IPv4 or ICMPv6 over IPv6, with its header in this packet.
    #[inline]
    #[must_use]
    pub fn is_icmp(&self) -> bool {
        self.has_l4() && self.protocol == icmp_of(self.family)
    }

    /// Whether this is an ICMP error, which quotes another packet.
    #[inline]
    #[must_use]
    pub fn is_icmp_error(&self) -> bool {
        self.is_icmp()
            && match self.family {
                Family::V4 => icmp::is_error(self.icmp_type),
                Family::V6 => icmpv6::is_error(self.icmp_type),
            }
    }

    /// Whether this is an ICMP echo request or reply: [`L3::source_port`] and [`L3::destination_port`] are its identifier.
    #[inline]
    #[must_use]
    pub fn is_icmp_echo(&self) -> bool {
        self.is_icmp() && is_echo(self.family, self.icmp_type)
    }
}

/// The protocol number of a family's own ICMP.
#[inline]
#[must_use]
pub fn icmp_of(family: Family) -> u8 {
    match family {
        Family::V4 => protocol::ICMP,
        Family::V6 => protocol::ICMPV6,
    }
}

/// Whether an ICMP type is echo request or echo reply.
#[inline]
#[must_use]
pub fn is_echo(family: Family, icmp_type: u8) -> bool {
    match family {
        Family::V4 => matches!(icmp_type, icmp::ECHO_REPLY | icmp::ECHO_REQUEST),
        Family::V6 => matches!(icmp_type, icmpv6::ECHO_REPLY | icmpv6::ECHO_REQUEST),
    }
}

/// Reads one IP packet whose header starts at `bytes[0]`; the version field says which family.
///
/// L4 checksums are not verified (see [`l4_checksum_verifies`]); the IPv4 header's is.
///
/// # Errors
/// Any reason of the IPv4, IPv6, UDP, TCP, SCTP and ICMP headers. No bytes at all are [`Malformed::Ipv4Truncated`], an
/// unknown version is [`Malformed::Ipv4BadVersion`].
#[inline(always)]
pub fn parse_l3(bytes: &[u8]) -> Result<L3, Malformed> {
    let mut l3 = L3::empty(Family::V4);
    parse::<false>(bytes, &mut l3)?;
    Ok(l3)
}

/// As [`parse_l3`], into `l3`, which holds nothing of use after an error. Written once where it stays: a value of this size
/// that is returned through several hands is copied by each, and read again before it is written.
///
/// # Errors
/// As [`parse_l3`].
#[inline(always)]
pub fn parse_l3_into(bytes: &[u8], l3: &mut L3) -> Result<(), Malformed> {
    parse::<false>(bytes, l3)
}

/// As [`parse_l3`], for tunnel endpoints that are told to accept UDP over IPv6 with checksum zero (V-005, RFC 6935).
///
/// # Errors
/// As [`parse_l3`], without [`Malformed::Udp6ZeroChecksum`].
#[inline]
pub fn parse_l3_accepting_zero_udp6(bytes: &[u8]) -> Result<L3, Malformed> {
    let mut l3 = L3::empty(Family::V4);
    parse::<true>(bytes, &mut l3)?;
    Ok(l3)
}

#[inline(always)]
fn parse<const ZERO_UDP6: bool>(bytes: &[u8], l3: &mut L3) -> Result<(), Malformed> {
    match bytes.first().map(|first| first >> 4) {
        Some(6) => match plain::read_v6(bytes) {
            Some(plain) => *l3 = plain,
            None => return parse_v6::<ZERO_UDP6>(bytes, l3),
        },
        _ => match plain::read_v4(bytes) {
            Some(plain) => *l3 = plain,
            None => return parse_v4(bytes, l3),
        },
    }
    Ok(())
}

/// Reads any IPv4 packet.
#[cold]
#[inline(never)]
pub(super) fn parse_v4(bytes: &[u8], l3: &mut L3) -> Result<(), Malformed> {
    let (header, _) = ipv4::parse(bytes)?;
    let flags_offset = header.flags_offset();
    let id = u32::from(header.identification());
    let offset = (flags_offset & ipv4::OFFSET_MASK) * 8;
    let more = flags_offset & ipv4::MORE_FRAGMENTS != 0;
    let header_len = header.header_len();
    *l3 = L3 {
        protocol: header.protocol,
        l4_offset: u16::from(header.header_len_byte()),
        total_len: header.total_length(),
        fragment: match (offset, more) {
            (0, false) => Fragment::None,
            (0, true) => Fragment::First { id },
            _ => Fragment::Later { id, offset, more },
        },
        ttl: header.ttl,
        tos: header.tos,
        dont_fragment: flags_offset & ipv4::DONT_FRAGMENT != 0,
        has_options: header_len != ipv4::HEADER_LEN,
        ..L3::empty(Family::V4)
    };
    let payload = bytes.get(header_len..usize::from(l3.total_len)).ok_or(Malformed::Ipv4BadTotalLength)?;
    parse_l4::<true>(l3, payload)
}

/// Reads any IPv6 packet.
#[cold]
#[inline(never)]
pub(super) fn parse_v6<const ZERO_UDP6: bool>(bytes: &[u8], l3: &mut L3) -> Result<(), Malformed> {
    let (header, _) = ipv6::parse(bytes)?;
    *l3 = L3 {
        protocol: header.next_header,
        l4_offset: 40,
        total_len: header.payload_length() + 40,
        ttl: header.hop_limit,
        tos: header.traffic_class(),
        dont_fragment: true,
        ..L3::empty(Family::V6)
    };
    let packet = bytes.get(..usize::from(l3.total_len)).ok_or(Malformed::Ipv6BadPayloadLength)?;
    if ipv6::is_extension(l3.protocol) {
        return parse_v6_extended::<ZERO_UDP6>(packet, l3);
    }
    let payload = packet.get(ipv6::HEADER_LEN..).ok_or(Malformed::Ipv6Truncated)?;
    parse_l4::<ZERO_UDP6>(l3, payload)
}

/// What follows extension headers; `l3` holds what the fixed header says.
#[cold]
#[inline(never)]
fn parse_v6_extended<const ZERO_UDP6: bool>(packet: &[u8], l3: &mut L3) -> Result<(), Malformed> {
    let walked = ipv6::walk(packet, l3.protocol)?;
    l3.protocol = walked.protocol;
    l3.l4_offset = walked.offset;
    l3.has_options = true;
    l3.fragment = match walked.fragment {
        None => Fragment::None,
        Some(ipv6::WalkedFragment { id, offset: 0, .. }) => Fragment::First { id },
        Some(ipv6::WalkedFragment { id, offset, more }) => Fragment::Later { id, offset, more },
    };
    let payload = packet.get(usize::from(l3.l4_offset)..).ok_or(Malformed::Ipv6ExtensionTruncated)?;
    parse_l4::<ZERO_UDP6>(l3, payload)
}

/// Reads ports, flags and types; `payload` is what the IP headers announce, without padding.
#[inline(always)]
fn parse_l4<const ZERO_UDP: bool>(l3: &mut L3, payload: &[u8]) -> Result<(), Malformed> {
    let whole = match l3.fragment {
        Fragment::None => true,
        Fragment::First { .. } => false,
        Fragment::Later { .. } => return Ok(()),
    };
    match l3.protocol {
        protocol::TCP => {
            let (header, _) = tcp::parse(payload, whole)?;
            l3.source_port = header.source_port();
            l3.destination_port = header.destination_port();
            l3.tcp_flags = header.flags;
            l3.tcp_seq = header.sequence();
            l3.tcp_ack = header.acknowledgment();
            l3.is_plain = plain::is_plain(l3, None);
        }
        protocol::UDP => {
            let (header, _) = udp::parse(payload, whole)?;
            // "IPv6 receivers must discard UDP packets containing a zero checksum" (RFC 8200 section 8.1, N-072)
            if !ZERO_UDP && header.checksum() == 0 {
                return Err(Malformed::Udp6ZeroChecksum);
            }
            l3.source_port = header.source_port();
            l3.destination_port = header.destination_port();
            l3.is_plain = plain::is_plain(l3, Some((header.length(), header.checksum())));
        }
        protocol::SCTP => {
            let (header, chunks) = sctp::parse(payload)?;
            l3.source_port = header.source_port();
            l3.destination_port = header.destination_port();
            (l3.tcp_flags, l3.tcp_seq) = sctp::in_words_of_tcp(chunks);
        }
        number if number == icmp_of(l3.family) => {
            let (header, _) = icmp::Header::ref_from_prefix(payload).map_err(|_| Malformed::IcmpTruncated)?;
            l3.icmp_type = header.icmp_type;
            l3.icmp_code = header.code;
            if is_echo(l3.family, header.icmp_type) {
                l3.source_port = header.identifier();
                l3.destination_port = header.identifier();
            }
        }
        _ => {}
    }
    Ok(())
}

impl L3 {
    #[inline(always)]
    pub(super) fn empty(family: Family) -> L3 {
        L3 {
            family,
            protocol: 0,
            l4_offset: 0,
            total_len: 0,
            fragment: Fragment::None,
            ttl: 0,
            tos: 0,
            dont_fragment: false,
            has_options: false,
            is_plain: false,
            source_port: 0,
            destination_port: 0,
            tcp_flags: 0,
            tcp_seq: 0,
            tcp_ack: 0,
            icmp_type: 0,
            icmp_code: 0,
        }
    }
}

/// Whether no honest packet that a gateway forwards has this packet's source address, or source and destination are the
/// same; see [`ipv4::is_martian_source`] and [`ipv6::is_martian_source`].
#[inline]
#[must_use]
pub fn is_martian_source(bytes: &[u8], family: Family) -> bool {
    match family {
        Family::V4 => {
            let (source, destination) = ipv4::addresses(bytes);
            ipv4::is_martian_source(source, destination)
        }
        Family::V6 => {
            let (source, destination) = ipv6::addresses(bytes);
            ipv6::is_martian_source(source, destination)
        }
    }
}

/// The pseudo header of a packet, with the given L4 length and protocol.
#[inline]
pub fn pseudo_header(bytes: &[u8], family: Family, protocol: u8, l4_len: u16) -> Sum {
    match family {
        Family::V4 => {
            let (source, destination) = ipv4::addresses(bytes);
            Sum::ZERO.pseudo_v4(source, destination, protocol, l4_len)
        }
        Family::V6 => {
            let (source, destination) = ipv6::addresses(bytes);
            Sum::ZERO.pseudo_v6(source, destination, protocol, u32::from(l4_len))
        }
    }
}

/// Whether the L4 checksum of a whole packet is right; true where there is none to check (fragments, UDP zero over IPv4,
/// and protocols we do not read).
///
/// Costs a pass over the payload: for ICMP (N-031), SCTP (N-075) and tunnel packets that carry one (V-004, V-005), not for
/// every packet.
#[must_use]
pub fn l4_checksum_verifies(bytes: &[u8], l3: &L3) -> bool {
    if l3.fragment != Fragment::None {
        return true;
    }
    let Some(segment) = bytes.get(usize::from(l3.l4_offset)..usize::from(l3.total_len)) else { return false };
    match (l3.protocol, l3.family) {
        (protocol::UDP, _) => {
            let Ok((header, _)) = udp::parse(segment, true) else { return false };
            let Some(datagram) = segment.get(..usize::from(header.length())) else { return false };
            let pseudo = pseudo_header(bytes, l3.family, l3.protocol, header.length());
            header.checksum() == 0 || pseudo.bytes(datagram).verifies()
        }
        (protocol::ICMP, Family::V4) => Sum::ZERO.bytes(segment).verifies(),
        (protocol::TCP, _) | (protocol::ICMPV6, Family::V6) => {
            pseudo_header(bytes, l3.family, l3.protocol, l3.l4_len()).bytes(segment).verifies()
        }
        (protocol::SCTP, _) => sctp::checksum_verifies(segment),
        _ => true,
    }
}
