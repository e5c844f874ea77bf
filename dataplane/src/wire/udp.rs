//! UDP headers (RFC 768).
//!
//! Owns the header and its checksum rules. Refuses to know what is in the datagram.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Malformed;
use super::checksum::Sum;

/// Length of the header.
pub const HEADER_LEN: usize = 8;
/// Where the checksum is, from the start of the header.
pub const CHECKSUM_OFFSET: usize = 6;

/// The UDP header.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |          source port          |       destination port        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |            length             |           checksum            |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    pub(super) source_port: U16,
    pub(super) destination_port: U16,
    pub(super) length: U16,
    pub(super) checksum: U16,
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

    /// Header and payload in bytes, host order.
    #[inline]
    #[must_use]
    pub fn length(&self) -> u16 {
        self.length.get()
    }

    /// Checksum as stored, host order; zero means none (N-071).
    #[inline]
    #[must_use]
    pub fn checksum(&self) -> u16 {
        self.checksum.get()
    }
}

/// Reads a header from the start of an IP payload and checks its length against that payload.
///
/// A first fragment holds less than its length says: there `whole` is false and only the lower bound is checked.
///
/// # Errors
/// [`Malformed::UdpTruncated`], [`Malformed::UdpBadLength`].
#[inline(always)]
pub fn parse(payload: &[u8], whole: bool) -> Result<(&Header, &[u8]), Malformed> {
    let Ok((header, rest)) = Header::ref_from_prefix(payload) else { return Err(Malformed::UdpTruncated) };
    let length = usize::from(header.length());
    if length < HEADER_LEN || (whole && length > payload.len()) {
        return Err(Malformed::UdpBadLength);
    }
    Ok((header, rest))
}

/// A UDP header to write. It lacks a checksum until [`Repr::emit`] is told the sum of pseudo header and payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// Bytes after the header.
    pub payload_len: u16,
}

impl Repr {
    /// Always 8.
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

    /// Writes the header and returns its length; `None` (nothing written) if `out` is shorter or the datagram too long.
    ///
    /// `rest` is the sum over pseudo header and payload; `None` writes checksum zero, "none".
    #[inline]
    pub fn emit(&self, out: &mut [u8], rest: Option<Sum>) -> Option<usize> {
        let mut header = Header {
            source_port: self.source_port.into(),
            destination_port: self.destination_port.into(),
            length: self.payload_len.checked_add(8)?.into(),
            checksum: 0.into(),
        };
        if let Some(rest) = rest {
            header.checksum = rest.bytes(header.as_bytes()).udp_checksum().into();
        }
        header.write_to_prefix(out).ok()?;
        Some(HEADER_LEN)
    }
}

impl From<&Header> for Repr {
    fn from(header: &Header) -> Repr {
        Repr {
            source_port: header.source_port(),
            destination_port: header.destination_port(),
            payload_len: header.length().saturating_sub(8),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parse_of_emit_is_identity(source_port: u16, destination_port: u16, data in proptest::collection::vec(any::<u8>(), 0..40)) {
            let payload_len = u16::try_from(data.len()).unwrap();
            let repr = Repr { source_port, destination_port, payload_len };
            let mut out = vec![0xee; 8 + data.len()];
            prop_assert_eq!(repr.emit(&mut out[..7], None), None);
            out[8..].copy_from_slice(&data);
            for with_checksum in [false, true] {
                let rest = with_checksum.then(|| Sum::ZERO.bytes(&data));
                prop_assert_eq!(repr.emit(&mut out, rest), Some(repr.len()));
                let (header, rest) = parse(&out, true).unwrap();
                prop_assert_eq!((Repr::from(header), rest), (repr, &data[..]));
                prop_assert_eq!(header.checksum() != 0, with_checksum, "N-071: a computed checksum is never zero");
                prop_assert!(!with_checksum || Sum::ZERO.bytes(&out).verifies());
            }
        }
    }

    #[test]
    fn a_computed_zero_is_sent_as_ones() {
        // N-071: ports and length sum to 0xffff
        let repr = Repr { source_port: 0xfff7, destination_port: 0, payload_len: 0 };
        let mut out = [0; 8];
        assert_eq!(repr.emit(&mut out, Some(Sum::ZERO)), Some(8));
        assert_eq!(out[6..], [0xff, 0xff]);
        assert_eq!(Repr { payload_len: 65528, ..repr }.emit(&mut out, None), None);
    }
}
