//! IPv6 headers (RFC 8200).
//!
//! Owns the fixed header, the bounded walk over extension headers, and which sources are impossible. Refuses to know what
//! comes after them.
//!
//! The walk goes through hop-by-hop options, routing, destination options and the fragment header; at most
//! [`EXTENSIONS_MAX`] headers and [`EXTENSION_BYTES_MAX`] bytes (N-064). Any other next header ends it: authentication,
//! ESP, mobility and "no next header" are carried as protocols without ports.
//!
//! Routing headers: type 0 is refused whatever it says (RFC 5095), and so is any type with segments left, since the
//! address in the IPv6 header is then not the packet's destination (as IPv4 source routes, L-056).

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Malformed, front, protocol};

/// Length of the fixed header.
pub const HEADER_LEN: usize = 40;
/// Extension headers walked before a packet is refused (N-064).
pub const EXTENSIONS_MAX: usize = 8;
/// Bytes of extension headers walked before a packet is refused (N-064).
pub const EXTENSION_BYTES_MAX: usize = 256;
/// Hop limit of packets that Tidegate itself sends.
pub const HOP_LIMIT_DEFAULT: u8 = 64;
/// The MTU every IPv6 link has (RFC 8200 section 5).
pub const MTU_MIN: usize = 1280;

/// The IPv6 fixed header (RFC 8200 section 3).
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |version| traffic class |              flow label               |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |        payload length         |  next header  |   hop limit   |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                   source address (128 bits)                   |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                destination address (128 bits)                 |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    pub(super) version_class_label: U32,
    pub(super) payload_length: U16,
    /// Type of the header that follows.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source address, network order.
    pub source: [u8; 16],
    /// Destination address, network order.
    pub destination: [u8; 16],
}

impl Header {
    /// A UDP packet's header that still lacks traffic class and length: they are zero.
    pub(super) fn plain(source: [u8; 16], destination: [u8; 16], hop_limit: u8) -> Header {
        Header {
            version_class_label: (6 << 28).into(),
            payload_length: 0.into(),
            next_header: protocol::UDP,
            hop_limit,
            source,
            destination,
        }
    }

    /// Version field, 6 in every header that [`parse`] accepts.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u8 {
        (self.version_class_label.get() >> 28) as u8
    }

    /// DSCP in the upper six bits, ECN in the lower two.
    #[inline]
    #[must_use]
    pub fn traffic_class(&self) -> u8 {
        ((self.version_class_label.get() >> 20) & 0xff) as u8
    }

    /// Flow label, 20 bits, host order.
    #[inline]
    #[must_use]
    pub fn flow_label(&self) -> u32 {
        self.version_class_label.get() & 0xf_ffff
    }

    /// Bytes after the fixed header, host order.
    #[inline]
    #[must_use]
    pub fn payload_length(&self) -> u16 {
        self.payload_length.get()
    }
}

/// The first two bytes that hop-by-hop, routing and destination option headers share (RFC 8200 section 4).
#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Extension {
    next_header: u8,
    /// In units of eight bytes, not counting the first eight.
    length: u8,
    /// Routing header: its type.
    routing_type: u8,
    /// Routing header: segments left.
    segments_left: u8,
    rest: [u8; 4],
}

/// The fragment header (RFC 8200 section 4.5).
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |  next header  |   reserved    |     fragment offset     |Res|M|
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                        identification                         |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FragmentHeader {
    next_header: u8,
    reserved: u8,
    offset_more: U16,
    identification: U32,
}

/// Where an extension header walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// The header that is not an extension header we walk.
    pub protocol: u8,
    /// Where it starts, from the start of the IPv6 header.
    pub offset: u16,
    /// The fragment header that was met, if it says more than "whole packet".
    pub fragment: Option<WalkedFragment>,
}

/// What a fragment header said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkedFragment {
    /// Identification, host order.
    pub id: u32,
    /// Offset of the data in the whole packet's fragmentable part, in bytes.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
}

/// Reads and checks the fixed header; returns it and everything after it.
///
/// # Errors
/// [`Malformed::Ipv6Truncated`], [`Malformed::Ipv6BadVersion`], [`Malformed::Ipv6BadPayloadLength`].
#[inline(always)]
pub fn parse(bytes: &[u8]) -> Result<(&Header, &[u8]), Malformed> {
    let Ok((header, rest)) = Header::ref_from_prefix(bytes) else { return Err(Malformed::Ipv6Truncated) };
    if header.version() != 6 {
        return Err(Malformed::Ipv6BadVersion);
    }
    if usize::from(header.payload_length()) > rest.len() || header.payload_length() > u16::MAX - 40 {
        return Err(Malformed::Ipv6BadPayloadLength);
    }
    Ok((header, rest))
}

/// Whether the walk goes through this header.
#[inline]
#[must_use]
pub fn is_extension(next_header: u8) -> bool {
    matches!(next_header, protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT | protocol::DESTINATION_OPTIONS)
}

/// Walks the extension headers of `packet`, which starts at the IPv6 header and ends where its payload length says.
///
/// The walk ends at a fragment header that is not the first's: what follows is data. A fragment header with offset zero and
/// no more fragments means a whole packet (RFC 6946).
///
/// # Errors
/// The `Ipv6Extension…` reasons, [`Malformed::Ipv6RoutingHeader`], [`Malformed::Ipv6BadFragment`].
#[cold]
pub fn walk(packet: &[u8], first: u8) -> Result<Walked, Malformed> {
    walk_headers(packet, first, true)
}

/// As [`walk`], for a packet that was cut off when it was quoted: fragments may have any length.
///
/// # Errors
/// As [`walk`].
#[cold]
pub fn walk_quoted(packet: &[u8], first: u8) -> Result<Walked, Malformed> {
    walk_headers(packet, first, false)
}

fn walk_headers(packet: &[u8], first: u8, whole: bool) -> Result<Walked, Malformed> {
    let mut walked = Walked { protocol: first, offset: 40, fragment: None };
    let mut fragments = 0;
    for count in 0..=EXTENSIONS_MAX {
        if !is_extension(walked.protocol) {
            return Ok(walked);
        }
        let rest = packet.get(usize::from(walked.offset)..).ok_or(Malformed::Ipv6ExtensionTruncated)?;
        let (extension, _) = Extension::ref_from_prefix(rest).map_err(|_| Malformed::Ipv6ExtensionTruncated)?;
        let mut length = 8 + u16::from(extension.length) * 8;
        match walked.protocol {
            // "the Hop-by-Hop Options header … is restricted to appear immediately after an IPv6 header only"
            // (RFC 8200 section 4.1)
            protocol::HOP_BY_HOP if count != 0 => return Err(Malformed::Ipv6ExtensionOrder),
            protocol::ROUTING if extension.routing_type == 0 || extension.segments_left != 0 => {
                return Err(Malformed::Ipv6RoutingHeader);
            }
            protocol::FRAGMENT => {
                length = 8;
                fragments += 1;
                walked.fragment = read_fragment(rest, whole)?;
            }
            _ => {}
        }
        walked.protocol = extension.next_header;
        walked.offset += length;
        if fragments > 1 {
            return Err(Malformed::Ipv6BadFragment);
        }
        if usize::from(walked.offset) - HEADER_LEN > EXTENSION_BYTES_MAX {
            return Err(Malformed::Ipv6ExtensionTooMany);
        }
        if usize::from(walked.offset) > packet.len() {
            return Err(Malformed::Ipv6ExtensionTruncated);
        }
        if walked.fragment.is_some_and(|f| f.offset != 0) {
            return Ok(walked);
        }
    }
    Err(Malformed::Ipv6ExtensionTooMany)
}

/// Reads the fragment header at the start of `rest`, the remainder of the packet; `None` for a whole packet in one fragment.
fn read_fragment(rest: &[u8], whole: bool) -> Result<Option<WalkedFragment>, Malformed> {
    let (header, data) = FragmentHeader::ref_from_prefix(rest).map_err(|_| Malformed::Ipv6ExtensionTruncated)?;
    let offset = header.offset_more.get() & 0xfff8;
    let more = header.offset_more.get() & 1 != 0;
    // RFC 8200 section 4.5: lengths of all but the last are multiples of eight, and no fragment ends beyond 65,535 bytes.
    let too_long = usize::from(offset) + data.len() > usize::from(u16::MAX);
    let uneven = more && (data.is_empty() || !data.len().is_multiple_of(8));
    if too_long || (whole && uneven) {
        return Err(Malformed::Ipv6BadFragment);
    }
    let fragment = WalkedFragment { id: header.identification.get(), offset, more };
    Ok((offset != 0 || more).then_some(fragment))
}

/// Source and destination of an IPv6 packet, network order; zeros if `bytes` is shorter than a header.
#[inline(always)]
#[must_use]
pub fn addresses(bytes: &[u8]) -> ([u8; 16], [u8; 16]) {
    match front!(Header, bytes) {
        Some((header, _)) => (header.source, header.destination),
        None => ([0; 16], [0; 16]),
    }
}

/// Whether no honest packet that a gateway forwards has this source: unspecified, loopback, multicast (RFC 4291 sections
/// 2.5.2, 2.5.3 and 2.7), IPv4-mapped (RFC 4942 section 2.2), or the destination itself (the LAND attack).
///
/// Duplicate address detection sends from the unspecified address: ask this only about packets to be forwarded.
#[inline(always)]
#[must_use]
pub fn is_martian_source(source: [u8; 16], destination: [u8; 16]) -> bool {
    let number = u128::from_be_bytes(source);
    number <= 1 || source[0] == 0xff || number >> 32 == 0xffff || source == destination
}

/// The solicited-node multicast address of an address (RFC 4291 section 2.7.1).
#[inline]
#[must_use]
pub fn solicited_node(address: [u8; 16]) -> [u8; 16] {
    let [.., a, b, c] = address;
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]
}

/// An IPv6 header to write, without extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source address, network order.
    pub source: [u8; 16],
    /// Destination address, network order.
    pub destination: [u8; 16],
    /// What follows.
    pub next_header: u8,
    /// Bytes after the header.
    pub payload_len: u16,
    /// Hops left.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Flow label, 20 bits, host order; higher bits are cut off.
    pub flow_label: u32,
}

impl Repr {
    /// Always 40.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        HEADER_LEN
    }

    /// Always false: a header has bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the header and returns its length, or `None` (nothing written) if `out` is shorter.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let word = 6 << 28 | u32::from(self.traffic_class) << 20 | (self.flow_label & 0xf_ffff);
        let header = Header {
            version_class_label: word.into(),
            payload_length: self.payload_len.into(),
            next_header: self.next_header,
            hop_limit: self.hop_limit,
            source: self.source,
            destination: self.destination,
        };
        header.write_to_prefix(out).ok()?;
        Some(HEADER_LEN)
    }
}

impl From<&Header> for Repr {
    fn from(header: &Header) -> Repr {
        Repr {
            source: header.source,
            destination: header.destination,
            next_header: header.next_header,
            payload_len: header.payload_length(),
            hop_limit: header.hop_limit,
            traffic_class: header.traffic_class(),
            flow_label: header.flow_label(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parse_of_emit_is_identity(
            source: [u8; 16], destination: [u8; 16], next_header: u8, payload_len in 0u16..50, hop_limit: u8,
            traffic_class: u8, flow_label in 0u32..1 << 20,
        ) {
            let repr = Repr { source, destination, next_header, payload_len, hop_limit, traffic_class, flow_label };
            let mut out = [0xee; 90];
            prop_assert_eq!(repr.emit(&mut out[..39]), None);
            prop_assert_eq!(out, [0xee; 90], "nothing written");
            prop_assert_eq!(repr.emit(&mut out), Some(repr.len()));
            let (header, rest) = parse(&out).unwrap();
            prop_assert_eq!((Repr::from(header), rest.len()), (repr, 50));
            prop_assert_eq!(addresses(&out), (source, destination));
        }
    }

    #[test]
    fn solicited_node_addresses_take_the_last_three_bytes() {
        // RFC 4291 section 2.7.1: the example
        let address = [0x40, 0x37, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x08, 0x00, 0x20, 0x0e];
        let mut expected = [0; 16];
        (expected[0], expected[1], expected[11], expected[12]) = (0xff, 2, 1, 0xff);
        expected[13..].copy_from_slice(&address[13..]);
        assert_eq!(solicited_node(address), expected);
        assert_eq!(addresses(&[0x60; 39]), ([0; 16], [0; 16]));
    }
}
