//! IPv4 headers (RFC 791).
//!
//! Owns the header, its checksum, its options as far as they are dangerous, and which sources are impossible. Refuses to
//! know what it carries.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::Sum;
use super::{Malformed, front, protocol};

/// Length of a header without options.
pub const HEADER_LEN: usize = 20;
/// TTL of packets that Tidegate itself sends (the recommended default, IANA "IP Parameters").
pub const TTL_DEFAULT: u8 = 64;

/// Flags and fragment offset: don't fragment.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// Flags and fragment offset: more fragments follow.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// Flags and fragment offset: the offset, in units of eight bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// The IPv4 header without options (RFC 791 section 3.1).
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |version|  IHL  |   DSCP    |ECN|         total length          |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |         identification        |0|D|M|     fragment offset     |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |      TTL      |   protocol    |        header checksum        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                        source address                         |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                      destination address                      |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    version_ihl: u8,
    /// DSCP in the upper six bits, ECN in the lower two.
    pub tos: u8,
    pub(super) total_length: U16,
    pub(super) identification: U16,
    pub(super) flags_offset: U16,
    /// Hops left.
    pub ttl: u8,
    /// What the packet carries.
    pub protocol: u8,
    pub(super) checksum: U16,
    /// Source address, network order.
    pub source: [u8; 4],
    /// Destination address, network order.
    pub destination: [u8; 4],
}

impl Header {
    /// A UDP packet's header that still lacks TOS, length, identification and checksum: they are zero.
    pub(super) fn plain(source: [u8; 4], destination: [u8; 4], ttl: u8, dont_fragment: bool) -> Header {
        Header {
            version_ihl: 0x45,
            tos: 0,
            total_length: 0.into(),
            identification: 0.into(),
            flags_offset: if dont_fragment { DONT_FRAGMENT } else { 0 }.into(),
            ttl,
            protocol: protocol::UDP,
            checksum: 0.into(),
            source,
            destination,
        }
    }

    /// Version field, 4 in every header that [`parse`] accepts.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Length of the header in bytes, options included, 0..=60.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        usize::from(self.header_len_byte())
    }

    #[inline]
    pub(super) fn header_len_byte(&self) -> u8 {
        (self.version_ihl & 0xf) * 4
    }

    /// Length of the packet in bytes, header included, host order.
    #[inline]
    #[must_use]
    pub fn total_length(&self) -> u16 {
        self.total_length.get()
    }

    /// Identification, host order.
    #[inline]
    #[must_use]
    pub fn identification(&self) -> u16 {
        self.identification.get()
    }

    /// Flags and fragment offset as one word, host order; see [`DONT_FRAGMENT`], [`MORE_FRAGMENTS`], [`OFFSET_MASK`].
    #[inline]
    #[must_use]
    pub fn flags_offset(&self) -> u16 {
        self.flags_offset.get()
    }

    /// Header checksum as stored, host order.
    #[inline]
    #[must_use]
    pub fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// Version 4 and no options.
    #[inline(always)]
    pub(super) fn is_bare(&self) -> bool {
        self.version_ihl == 0x45
    }

    /// Whether the checksum of a header without options is right.
    #[inline(always)]
    pub(super) fn verifies(&self) -> bool {
        self.sum().verifies()
    }

    /// The sum over the 20 fixed bytes.
    #[inline(always)]
    fn sum(&self) -> Sum {
        Sum::ZERO.block::<HEADER_LEN>(zerocopy::transmute_ref!(self))
    }
}

/// Reads and checks an IPv4 header; returns it and everything after its 20 fixed bytes.
///
/// # Errors
/// The `Ipv4…` reasons. "The IP header checksum is computed and verified at each point that the internet header is
/// processed" (RFC 791 section 3.1).
#[inline(always)]
pub fn parse(bytes: &[u8]) -> Result<(&Header, &[u8]), Malformed> {
    let Ok((header, rest)) = Header::ref_from_prefix(bytes) else { return Err(Malformed::Ipv4Truncated) };
    if header.version() != 4 {
        return Err(Malformed::Ipv4BadVersion);
    }
    let header_len = header.header_len();
    if header_len < HEADER_LEN {
        return Err(Malformed::Ipv4BadHeaderLength);
    }
    let Some(options) = bytes.get(HEADER_LEN..header_len) else { return Err(Malformed::Ipv4Truncated) };
    let total_len = usize::from(header.total_length());
    if total_len < header_len || total_len > bytes.len() {
        return Err(Malformed::Ipv4BadTotalLength);
    }
    let fixed = header.sum();
    if !options.is_empty() {
        check_options(fixed, options)?;
    } else if !fixed.verifies() {
        return Err(Malformed::Ipv4BadChecksum);
    }
    let fragment = header.flags_offset();
    if fragment & (OFFSET_MASK | MORE_FRAGMENTS) != 0 {
        check_fragment(fragment, total_len - header_len)?;
    }
    Ok((header, rest))
}

/// Verifies a header whose fixed bytes sum to `fixed`, and walks the options; everything but a source route is allowed to
/// pass unread (L-056).
#[cold]
fn check_options(fixed: Sum, mut options: &[u8]) -> Result<(), Malformed> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    if !fixed.bytes(options).verifies() {
        return Err(Malformed::Ipv4BadChecksum);
    }
    loop {
        options = match *options {
            [] | [END, ..] => return Ok(()),
            [NO_OPERATION, ref rest @ ..] => rest,
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, ..] => return Err(Malformed::Ipv4SourceRoute),
            [_, length @ 2..=255, ..] => options.get(usize::from(length)..).ok_or(Malformed::Ipv4BadOptions)?,
            _ => return Err(Malformed::Ipv4BadOptions),
        }
    }
}

/// A fragment must not end beyond the largest packet, and all but the last carry multiples of eight bytes (RFC 791
/// section 3.2).
#[cold]
fn check_fragment(flags_offset: u16, payload_len: usize) -> Result<(), Malformed> {
    let start = usize::from(flags_offset & OFFSET_MASK) * 8;
    let middle = flags_offset & MORE_FRAGMENTS != 0;
    if start + payload_len > usize::from(u16::MAX) || (middle && (payload_len == 0 || !payload_len.is_multiple_of(8))) {
        return Err(Malformed::Ipv4BadFragment);
    }
    Ok(())
}

/// Source and destination of an IPv4 packet, network order; zeros if `bytes` is shorter than a header.
#[inline(always)]
#[must_use]
pub fn addresses(bytes: &[u8]) -> ([u8; 4], [u8; 4]) {
    match front!(Header, bytes) {
        Some((header, _)) => (header.source, header.destination),
        None => ([0; 4], [0; 4]),
    }
}

/// Whether no honest packet that a gateway forwards has this source: "this network", loopback, multicast, class E and
/// limited broadcast (RFC 1812 section 5.3.7), or the destination itself (the LAND attack).
#[inline(always)]
#[must_use]
pub fn is_martian_source(source: [u8; 4], destination: [u8; 4]) -> bool {
    matches!(source[0], 0 | 127 | 224..) || source == destination
}

/// An IPv4 header to write, without options and not a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source address, network order.
    pub source: [u8; 4],
    /// Destination address, network order.
    pub destination: [u8; 4],
    /// What the packet carries.
    pub protocol: u8,
    /// Bytes after the header.
    pub payload_len: u16,
    /// Hops left.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Identification, host order.
    pub identification: u16,
    /// Don't fragment.
    pub dont_fragment: bool,
}

impl Repr {
    /// Always 20.
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

    /// Writes the header, checksum included, and returns its length; `None` (nothing written) if `out` is shorter or the
    /// packet would be longer than 65,535 bytes.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let mut header = Header {
            version_ihl: 0x45,
            tos: self.tos,
            total_length: self.payload_len.checked_add(20)?.into(),
            identification: self.identification.into(),
            flags_offset: if self.dont_fragment { DONT_FRAGMENT } else { 0 }.into(),
            ttl: self.ttl,
            protocol: self.protocol,
            checksum: 0.into(),
            source: self.source,
            destination: self.destination,
        };
        header.checksum = Sum::ZERO.bytes(header.as_bytes()).checksum().into();
        header.write_to_prefix(out).ok()?;
        Some(HEADER_LEN)
    }
}

impl From<&Header> for Repr {
    /// What a header without options says; flags other than don't-fragment are lost.
    fn from(header: &Header) -> Repr {
        Repr {
            source: header.source,
            destination: header.destination,
            protocol: header.protocol,
            payload_len: header.total_length().saturating_sub(20),
            ttl: header.ttl,
            tos: header.tos,
            identification: header.identification(),
            dont_fragment: header.flags_offset() & DONT_FRAGMENT != 0,
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
            source: [u8; 4], destination: [u8; 4], protocol: u8, payload_len in 0u16..100, ttl: u8, tos: u8,
            identification: u16, dont_fragment: bool,
        ) {
            let repr = Repr { source, destination, protocol, payload_len, ttl, tos, identification, dont_fragment };
            let mut out = [0xee; 120];
            prop_assert_eq!(repr.emit(&mut out[..19]), None);
            prop_assert_eq!(out, [0xee; 120], "nothing written");
            prop_assert_eq!(repr.emit(&mut out), Some(repr.len()));
            let (header, rest) = parse(&out).unwrap();
            prop_assert_eq!((Repr::from(header), rest.len()), (repr, 100));
            prop_assert_eq!(addresses(&out), (source, destination));
        }
    }

    #[test]
    fn the_longest_packet_is_the_longest() {
        let repr = |payload_len| Repr {
            source: [1; 4],
            destination: [2; 4],
            protocol: 6,
            payload_len,
            ttl: 1,
            tos: 0,
            identification: 0,
            dont_fragment: false,
        };
        assert_eq!(repr(65515).emit(&mut [0; 20]), Some(20));
        assert_eq!(repr(65516).emit(&mut [0; 20]), None);
        assert_eq!(addresses(&[0x45; 19]), ([0; 4], [0; 4]));
    }
}
