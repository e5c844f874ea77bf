//! Quotes: the packet inside an ICMP error, read and translated.
//!
//! Owns what an ICMP or ICMPv6 error says about the packet that caused it, and the rewriting of that packet so that the
//! error's receiver recognises its own (N-074, RFC 5508 section 4.2). Refuses to know which flow it belongs to.
//!
//! A quote may end after eight bytes of the L4 header (RFC 792): ports are there, TCP's checksum at byte 16 often is not.
//! It may be followed by extensions (RFC 4884), which are no part of it. Its IPv4 header checksum is checked, its L4 checksum
//! is not (RFC 5508 REQ-3, N-031): the data it covers is mostly missing.
//!
//! Offsets count from the first byte of the ICMP message. All of them are even, since IP headers are multiples of four
//! bytes, so every field that changes is a word of the outer checksum, and that is updated by exactly the words that changed.

use core::net::IpAddr;

use zerocopy::FromBytes;

use super::checksum::{Delta, Sum};
use super::edit::{self, Tuple, replace_word};
use super::{Family, Malformed, icmp, icmpv6, ipv4, ipv6, packet, protocol, sctp, tcp, udp};

/// Where the quoted packet starts in an ICMP or ICMPv6 error.
pub const OFFSET: usize = 8;
/// Bytes of the quoted L4 header without which no flow is named.
const L4_LEN_MIN: usize = 8;

/// What an ICMP error says about the packet it quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// IP version.
    pub family: Family,
    /// What the quoted packet carries, after IPv6 extension headers.
    pub protocol: u8,
    /// Source address of the quoted packet.
    pub source: IpAddr,
    /// Destination address of the quoted packet.
    pub destination: IpAddr,
    /// Source port, host order; the identifier of an echo message; else zero.
    pub source_port: u16,
    /// Destination port, host order; the identifier of an echo message; else zero.
    pub destination_port: u16,
    /// Where the quoted L4 header starts in the message.
    pub l4_offset: usize,
    /// Where the quoted L4 checksum is in the message, if the quote reaches it and the protocol has one that addresses or
    /// ports change.
    pub l4_checksum_offset: Option<usize>,
    /// Whether it quotes an echo message, whose identifier the ports hold.
    pub is_echo: bool,
    /// Length of the L4 header and its payload as they were sent, if the quoted packet was no fragment: SCTP's checksum
    /// changes with the ports by an amount that depends on it.
    pub l4_len: Option<usize>,
}

/// Reads the packet quoted in an ICMP (`family` V4) or ICMPv6 error. `message` starts at the ICMP type and ends with the IP
/// packet.
///
/// # Errors
/// [`Malformed::IcmpTruncated`], the `Quote…` reasons, and those of the IPv6 extension header walk.
pub fn parse(family: Family, message: &[u8]) -> Result<Quote, Malformed> {
    let (header, rest) = icmp::Header::ref_from_prefix(message).map_err(|_| Malformed::IcmpTruncated)?;
    let quoted = match original_len(family, header) {
        0 => rest,
        // A length beyond the message is a lie that harms no one: what is there is the quote.
        length => rest.get(..length).unwrap_or(rest),
    };
    match family {
        Family::V4 => parse_v4(quoted),
        Family::V6 => parse_v6(quoted),
    }
}

/// Length of the "original datagram" field if extensions follow it (RFC 4884 sections 4.1 to 4.5), else zero.
fn original_len(family: Family, header: &icmp::Header) -> usize {
    let [first, second, _, _] = header.rest().to_be_bytes();
    match (family, header.icmp_type) {
        (Family::V4, icmp::UNREACHABLE | icmp::TIME_EXCEEDED | 12) => usize::from(second) * 4,
        (Family::V6, icmpv6::UNREACHABLE | icmpv6::TIME_EXCEEDED) => usize::from(first) * 8,
        _ => 0,
    }
}

fn parse_v4(quoted: &[u8]) -> Result<Quote, Malformed> {
    let (header, _) = ipv4::Header::ref_from_prefix(quoted).map_err(|_| Malformed::QuoteTruncated)?;
    let header_len = header.header_len();
    if header.version() != 4 || header_len < ipv4::HEADER_LEN || usize::from(header.total_length()) < header_len {
        return Err(Malformed::QuoteBadHeader);
    }
    let whole = quoted.get(..header_len).ok_or(Malformed::QuoteTruncated)?;
    if !Sum::ZERO.bytes(whole).verifies() {
        return Err(Malformed::QuoteBadChecksum);
    }
    if header.flags_offset() & ipv4::OFFSET_MASK != 0 {
        return Err(Malformed::QuoteLaterFragment);
    }
    let quote = Quote {
        family: Family::V4,
        protocol: header.protocol,
        source: IpAddr::from(header.source),
        destination: IpAddr::from(header.destination),
        source_port: 0,
        destination_port: 0,
        l4_offset: OFFSET + header_len,
        l4_checksum_offset: None,
        is_echo: false,
        l4_len: (header.flags_offset() & ipv4::MORE_FRAGMENTS == 0)
            .then(|| usize::from(header.total_length()) - header_len),
    };
    let end = quoted.len().min(usize::from(header.total_length()));
    parse_l4(quote, quoted.get(header_len..end).unwrap_or_default())
}

fn parse_v6(quoted: &[u8]) -> Result<Quote, Malformed> {
    let (header, rest) = ipv6::Header::ref_from_prefix(quoted).map_err(|_| Malformed::QuoteTruncated)?;
    if header.version() != 6 {
        return Err(Malformed::QuoteBadHeader);
    }
    let end = ipv6::HEADER_LEN + rest.len().min(usize::from(header.payload_length()));
    let quoted = quoted.get(..end).unwrap_or(quoted);
    let walked = ipv6::walk_quoted(quoted, header.next_header)?;
    if walked.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return Err(Malformed::QuoteLaterFragment);
    }
    let l4_offset = usize::from(walked.offset);
    let quote = Quote {
        family: Family::V6,
        protocol: walked.protocol,
        source: IpAddr::from(header.source),
        destination: IpAddr::from(header.destination),
        source_port: 0,
        destination_port: 0,
        l4_offset: OFFSET + l4_offset,
        l4_checksum_offset: None,
        is_echo: false,
        l4_len: match walked.fragment {
            None => (ipv6::HEADER_LEN + usize::from(header.payload_length())).checked_sub(l4_offset),
            Some(_) => None,
        },
    };
    parse_l4(quote, quoted.get(l4_offset..).unwrap_or_default())
}

/// Reads ports or the echo identifier; `l4` is what is there of the quoted L4 header and payload.
fn parse_l4(mut quote: Quote, l4: &[u8]) -> Result<Quote, Malformed> {
    let Some(&[a, b, c, d, e, f, _, _]) = l4.first_chunk::<L4_LEN_MIN>() else {
        return Err(Malformed::QuoteTruncated);
    };
    let checksum = match quote.protocol {
        protocol::TCP => Some((tcp::CHECKSUM_OFFSET, 2)),
        protocol::UDP => Some((udp::CHECKSUM_OFFSET, 2)),
        protocol::SCTP => Some((sctp::CHECKSUM_OFFSET, 4)),
        _ => None,
    };
    if edit::has_ports(quote.protocol) {
        quote.source_port = u16::from_be_bytes([a, b]);
        quote.destination_port = u16::from_be_bytes([c, d]);
        let there = checksum.filter(|(at, len)| at + len <= l4.len());
        quote.l4_checksum_offset = there.map(|(at, _)| quote.l4_offset + at);
    } else if quote.protocol == packet::icmp_of(quote.family) {
        // ICMPv4 checksums cover no address: only a new identifier changes them.
        if packet::is_echo(quote.family, a) {
            quote.is_echo = true;
            quote.source_port = u16::from_be_bytes([e, f]);
            quote.destination_port = quote.source_port;
        }
        if quote.is_echo || quote.family == Family::V6 {
            quote.l4_checksum_offset = Some(quote.l4_offset + 2);
        }
    }
    Ok(quote)
}

impl Quote {
    /// The quoted end points if this is IPv4.
    #[must_use]
    pub fn tuple_v4(&self) -> Option<Tuple<[u8; 4]>> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Some(self.tuple(source.octets(), destination.octets())),
            _ => None,
        }
    }

    /// The quoted end points if this is IPv6.
    #[must_use]
    pub fn tuple_v6(&self) -> Option<Tuple<[u8; 16]>> {
        match (self.source, self.destination) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => Some(self.tuple(source.octets(), destination.octets())),
            _ => None,
        }
    }

    fn tuple<A>(&self, source: A, destination: A) -> Tuple<A> {
        Tuple { source, destination, source_port: self.source_port, destination_port: self.destination_port }
    }
}

/// Translates the quoted packet of an ICMPv4 error to new end points: embedded addresses, header checksum, ports or echo
/// identifier (`to.source_port`), L4 checksum if it is there, and the outer ICMP checksum (N-074).
///
/// The outer IP header is the caller's; ICMPv4 does not cover it. False if `quote` is not of this message, which may be half
/// translated then and must be dropped.
#[must_use]
pub fn rewrite_v4(message: &mut [u8], quote: &Quote, to: &Tuple<[u8; 4]>) -> bool {
    let Some(from) = quote.tuple_v4() else { return false };
    rewrite_embedded_v4(message, quote, &from, to).is_some()
}

fn rewrite_embedded_v4(message: &mut [u8], quote: &Quote, from: &Tuple<[u8; 4]>, to: &Tuple<[u8; 4]>) -> Option<()> {
    let addresses = edit::addresses_delta(from, to);
    let mut total = addresses;
    let (header, _) = ipv4::Header::mut_from_prefix(message.get_mut(OFFSET..)?).ok()?;
    let old = header.checksum();
    let new = addresses.apply(old);
    header.source = to.source;
    header.destination = to.destination;
    header.checksum = new.into();
    total = total.and_word(old, new);
    let covered = if quote.protocol == protocol::ICMP { Delta::NONE } else { addresses };
    total = total.and(rewrite_l4(message, quote, covered, from, to)?);
    replace_word(message, 2, |checksum| total.apply(checksum)).map(drop)
}

/// Translates the quoted packet of an ICMPv6 error to new end points, as [`rewrite_v4`].
///
/// ICMPv6 covers the outer addresses: `outer` is how they change, which the caller writes itself; see
/// [`edit::addresses_delta`], or [`Delta::NONE`] if they stay or [`edit::translate_v6`] takes care of them.
#[must_use]
pub fn rewrite_v6(message: &mut [u8], quote: &Quote, to: &Tuple<[u8; 16]>, outer: Delta) -> bool {
    let Some(from) = quote.tuple_v6() else { return false };
    rewrite_embedded_v6(message, quote, &from, to, outer).is_some()
}

fn rewrite_embedded_v6(
    message: &mut [u8],
    quote: &Quote,
    from: &Tuple<[u8; 16]>,
    to: &Tuple<[u8; 16]>,
    outer: Delta,
) -> Option<()> {
    let addresses = edit::addresses_delta(from, to);
    let mut total = addresses.and(outer);
    let (header, _) = ipv6::Header::mut_from_prefix(message.get_mut(OFFSET..)?).ok()?;
    header.source = to.source;
    header.destination = to.destination;
    total = total.and(rewrite_l4(message, quote, addresses, from, to)?);
    replace_word(message, 2, |checksum| total.apply(checksum)).map(drop)
}

/// Ports or identifier, then the checksum if it is there; returns the change of the outer sum. `covered` is the change of
/// what the L4 checksum covers besides them.
fn rewrite_l4<A>(message: &mut [u8], quote: &Quote, covered: Delta, from: &Tuple<A>, to: &Tuple<A>) -> Option<Delta> {
    let at = quote.l4_offset;
    let ports = match quote.protocol {
        protocol::TCP | protocol::UDP => {
            let source = replace_word(message, at, |_| to.source_port)?;
            source.and(replace_word(message, at + 2, |_| to.destination_port)?)
        }
        protocol::SCTP => return rewrite_sctp(message, quote, from, to),
        _ if quote.is_echo => replace_word(message, at + 4, |_| to.source_port)?,
        _ => Delta::NONE,
    };
    let Some(at) = quote.l4_checksum_offset else { return Some(ports) };
    let covered = covered.and(ports);
    let checksum = if quote.protocol == protocol::UDP {
        replace_word(message, at, |old| covered.apply_udp(old))?
    } else {
        replace_word(message, at, |old| covered.apply(old))?
    };
    Some(ports.and(checksum))
}

/// Ports, and the CRC32c where it is there and can be known: it changes by the ports and the length of the whole packet,
/// however much of that is quoted.
#[cold]
fn rewrite_sctp<A>(message: &mut [u8], quote: &Quote, from: &Tuple<A>, to: &Tuple<A>) -> Option<Delta> {
    let at = quote.l4_offset;
    let source = replace_word(message, at, |_| to.source_port)?;
    let ports = source.and(replace_word(message, at + 2, |_| to.destination_port)?);
    let (Some(at), Some(len)) = (quote.l4_checksum_offset, quote.l4_len) else { return Some(ports) };
    let old = (from.source_port, from.destination_port);
    let change = sctp::ports_delta(old, (to.source_port, to.destination_port), len).to_le_bytes();
    let [a, b, c, d] = change;
    let first = replace_word(message, at, |word| word ^ u16::from_be_bytes([a, b]))?;
    let second = replace_word(message, at + 2, |word| word ^ u16::from_be_bytes([c, d]))?;
    Some(ports.and(first).and(second))
}
