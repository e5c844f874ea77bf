//! TCP headers (RFC 9293).
//!
//! Owns the header, its flags, and the one option a gateway reads and lowers: the maximum segment size. Refuses to know
//! connections.

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Malformed;
use super::checksum::{Delta, Sum};

/// Length of a header without options.
pub const HEADER_LEN: usize = 20;
/// Where the checksum is, from the start of the header.
pub const CHECKSUM_OFFSET: usize = 16;

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// Push.
pub const PSH: u8 = 0x08;
/// The acknowledgment number is significant.
pub const ACK: u8 = 0x10;
/// The urgent pointer is significant.
pub const URG: u8 = 0x20;
/// ECN echo (RFC 3168).
pub const ECE: u8 = 0x40;
/// Congestion window reduced (RFC 3168).
pub const CWR: u8 = 0x80;

/// The TCP header without options (RFC 9293 section 3.1).
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |          source port          |       destination port        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                        sequence number                        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                     acknowledgment number                     |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |offset | resv. |C E U A P R S F|            window             |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |           checksum            |        urgent pointer         |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    pub(super) source_port: U16,
    pub(super) destination_port: U16,
    pub(super) sequence: U32,
    pub(super) acknowledgment: U32,
    offset_reserved: u8,
    /// Control bits; see [`FIN`] and the others.
    pub flags: u8,
    pub(super) window: U16,
    pub(super) checksum: U16,
    pub(super) urgent: U16,
}

impl Header {
    /// Source port, host order.
    #[inline]
    #[must_use]
    pub fn source_port(&self) -> u16 {
        self.source_port.get()
    }

    /// Destination port, host order.
    #[inline]
    #[must_use]
    pub fn destination_port(&self) -> u16 {
        self.destination_port.get()
    }

    /// Sequence number, host order.
    #[inline]
    #[must_use]
    pub fn sequence(&self) -> u32 {
        self.sequence.get()
    }

    /// Acknowledgment number, host order; meaningful with [`ACK`].
    #[inline]
    #[must_use]
    pub fn acknowledgment(&self) -> u32 {
        self.acknowledgment.get()
    }

    /// Length of the header in bytes, options included, 0..=60.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        usize::from(self.offset_reserved >> 4) * 4
    }

    /// Receive window, host order, not scaled.
    #[inline]
    #[must_use]
    pub fn window(&self) -> u16 {
        self.window.get()
    }

    /// Checksum as stored, host order.
    #[inline]
    #[must_use]
    pub fn checksum(&self) -> u16 {
        self.checksum.get()
    }
}

/// Reads a header from the start of an IP payload.
///
/// A first fragment may end inside the options: there `whole` is false and only the fixed 20 bytes are required. Fewer than
/// these make a tiny fragment, refused as truncated (RFC 1858, N-061).
///
/// # Errors
/// [`Malformed::TcpTruncated`], [`Malformed::TcpBadOffset`].
#[inline(always)]
pub fn parse(payload: &[u8], whole: bool) -> Result<(&Header, &[u8]), Malformed> {
    let Ok((header, rest)) = Header::ref_from_prefix(payload) else { return Err(Malformed::TcpTruncated) };
    if header.header_len() < HEADER_LEN {
        return Err(Malformed::TcpBadOffset);
    }
    if whole && header.header_len() > payload.len() {
        return Err(Malformed::TcpTruncated);
    }
    Ok((header, rest))
}

/// Where the value of the maximum segment size option is, from the start of the header, and its value in host order.
///
/// Walks at most 40 bytes of options; an option that runs past the header ends the walk (RFC 9293 section 3.1).
#[inline]
#[must_use]
pub fn find_mss(header: &[u8]) -> Option<(usize, u16)> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const MAXIMUM_SEGMENT_SIZE: u8 = 2;
    let header_len = Header::ref_from_prefix(header).ok()?.0.header_len();
    let options = header.get(..header_len)?;
    let mut at = HEADER_LEN;
    loop {
        at += match *options.get(at..)? {
            [] | [END, ..] => return None,
            [NO_OPERATION, ..] => 1,
            [MAXIMUM_SEGMENT_SIZE, 4, high, low, ..] => return Some((at + 2, u16::from_be_bytes([high, low]))),
            [_, length @ 2..=255, ..] => usize::from(length),
            _ => return None,
        }
    }
}

/// Lowers the maximum segment size that a SYN or SYN-ACK announces to at most `max`, checksum included (V-013).
///
/// `segment` starts at the TCP header. True if it changed: a segment without SYN, without the option, or with a value that
/// is small enough stays as it is. A missing option is not added, although it means 536 bytes over IPv4 and 1,220 over IPv6
/// (RFC 9293 section 3.7.1), both of which fit.
#[inline]
pub fn clamp_mss(segment: &mut [u8], max: u16) -> bool {
    match Header::ref_from_prefix(segment) {
        Ok((header, _)) if header.flags & SYN != 0 => lower_mss(segment, max),
        _ => false,
    }
}

fn lower_mss(segment: &mut [u8], max: u16) -> bool {
    let Some((at, mss)) = find_mss(segment) else { return false };
    if mss <= max {
        return false;
    }
    let Some(value) = segment.get_mut(at..at + 2) else { return false };
    value.copy_from_slice(&max.to_be_bytes());
    // Options are not aligned. At an odd offset the value straddles two words of the sum, which is the same as swapping its
    // bytes (RFC 1071 section 2 (B)).
    let delta =
        if at.is_multiple_of(2) { Delta::word(mss, max) } else { Delta::word(mss.swap_bytes(), max.swap_bytes()) };
    let Ok((header, _)) = Header::mut_from_prefix(segment) else { return false };
    header.checksum = delta.apply(header.checksum.get()).into();
    true
}

/// A TCP header to write, with at most the maximum segment size option. It lacks a checksum until [`Repr::emit`] is told
/// the sum of pseudo header and payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// Sequence number, host order.
    pub sequence: u32,
    /// Acknowledgment number, host order.
    pub acknowledgment: u32,
    /// Control bits.
    pub flags: u8,
    /// Receive window, host order, not scaled.
    pub window: u16,
    /// Maximum segment size to announce, host order.
    pub mss: Option<u16>,
}

impl Repr {
    /// 20, or 24 with the option.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        if self.mss.is_some() { HEADER_LEN + 4 } else { HEADER_LEN }
    }

    /// Always false: a header has bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the header and returns its length, or `None` (nothing written) if `out` is shorter.
    ///
    /// `rest` is the sum over pseudo header and payload.
    #[inline]
    pub fn emit(&self, out: &mut [u8], rest: Sum) -> Option<usize> {
        let out = out.get_mut(..self.len())?;
        let mut header = Header {
            source_port: self.source_port.into(),
            destination_port: self.destination_port.into(),
            sequence: self.sequence.into(),
            acknowledgment: self.acknowledgment.into(),
            offset_reserved: if self.mss.is_some() { 6 << 4 } else { 5 << 4 },
            flags: self.flags,
            window: self.window.into(),
            checksum: 0.into(),
            urgent: 0.into(),
        };
        let mut sum = rest.bytes(header.as_bytes());
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            let option = [2, 4, high, low];
            sum = sum.bytes(&option);
            option.write_to_suffix(out).ok()?;
        }
        header.checksum = sum.checksum().into();
        header.write_to_prefix(out).ok()?;
        Some(self.len())
    }
}

impl Repr {
    /// What the header at the start of `segment` says; options other than the maximum segment size are lost.
    #[must_use]
    pub fn of(segment: &[u8]) -> Option<Repr> {
        let (header, _) = Header::ref_from_prefix(segment).ok()?;
        Some(Repr {
            source_port: header.source_port(),
            destination_port: header.destination_port(),
            sequence: header.sequence(),
            acknowledgment: header.acknowledgment(),
            flags: header.flags,
            window: header.window(),
            mss: find_mss(segment).map(|(_, mss)| mss),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parse_of_emit_is_identity(
            ports: [u16; 2], sequence: u32, acknowledgment: u32, flags: u8, window: u16, mss: Option<u16>,
        ) {
            let [source_port, destination_port] = ports;
            let repr = Repr { source_port, destination_port, sequence, acknowledgment, flags, window, mss };
            let mut out = vec![0xee; 24];
            for short in 0..repr.len() {
                prop_assert_eq!(repr.emit(&mut out[..short], Sum::ZERO), None);
            }
            prop_assert_eq!(repr.emit(&mut out, Sum::ZERO), Some(repr.len()));
            out.truncate(repr.len());
            prop_assert_eq!(Repr::of(&out), Some(repr));
            prop_assert!(parse(&out, true).is_ok() && Sum::ZERO.bytes(&out).verifies());
        }

        #[test]
        fn options_of_any_bytes_are_walked_within_the_header(options in proptest::collection::vec(any::<u8>(), 40), words in 0u8..16) {
            let mut segment = [vec![0; 20], options].concat();
            segment[12] = words << 4;
            if let Some((at, _)) = find_mss(&segment) {
                prop_assert!(at + 2 <= usize::from(words) * 4);
            }
            segment[13] = SYN;
            let before = segment.len();
            clamp_mss(&mut segment, 100);
            prop_assert_eq!(segment.len(), before);
        }
    }

    #[test]
    fn every_length_of_the_option_before_is_walked() {
        for length in 0..=255u8 {
            let mut segment = [0u8; 60];
            (segment[12], segment[13]) = (15 << 4, SYN);
            segment[20..].fill(1);
            (segment[20], segment[21]) = (8, length);
            let at = 20 + usize::from(length);
            if (2..=36).contains(&length) {
                segment[at..at + 4].copy_from_slice(&[2, 4, 5, 180]);
                assert_eq!(find_mss(&segment), Some((at + 2, 1460)), "length {length}");
            } else {
                assert_eq!(find_mss(&segment), None, "length {length}");
            }
        }
    }

    #[test]
    fn only_a_well_formed_option_counts() {
        let segment = |option: [u8; 4]| {
            let mut segment = [0u8; 24];
            (segment[12], segment[13]) = (6 << 4, SYN);
            segment[20..].copy_from_slice(&option);
            segment
        };
        assert_eq!(find_mss(&segment([2, 4, 5, 180])), Some((22, 1460)));
        assert_eq!(find_mss(&segment([2, 3, 5, 180])), None);
        assert_eq!(find_mss(&segment([1, 2, 4, 5])), None, "cut off");
        assert_eq!(find_mss(&segment([0, 0, 2, 4])), None, "after the end");
        let mut plain = segment([2, 4, 5, 180]);
        plain[13] = ACK;
        assert!(!clamp_mss(&mut plain, 100), "only with SYN");
    }
}
