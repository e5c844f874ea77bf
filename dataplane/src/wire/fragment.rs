//! Fragments of an IPv4 packet that may be fragmented and does not fit (V-010, RFC 791 section 3.2).
//!
//! Owns the cutting: how many pieces, and each piece's header. Refuses IPv6, whose routers never fragment (RFC 8200 section
//! 5), and packets with DF. It is the answer to an inner packet too long for its tunnel: a VTEP must not fragment the outer
//! one (RFC 7348 section 4.3).
//!
//! Pieces are written one at a time, each into a frame of its own. A packet that is a fragment already is cut further: offsets
//! go on from its own, and the last piece says "more" if it did.

use zerocopy::{FromBytes, IntoBytes};

use super::checksum::Sum;
use super::packet::L3;
use super::{Family, ipv4};

/// How one packet is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pieces {
    header_len: usize,
    payload_len: usize,
    /// Payload bytes of every piece but the last: a multiple of eight.
    step: usize,
}

impl Pieces {
    /// Plans the pieces of a packet for a path of `mtu` bytes; one piece if it fits.
    ///
    /// `None` if it must not be fragmented, or `mtu` has no room for a header and eight bytes.
    #[must_use]
    pub fn plan(l3: &L3, mtu: u16) -> Option<Pieces> {
        if l3.family != Family::V4 || l3.dont_fragment {
            return None;
        }
        let header_len = usize::from(l3.l4_offset);
        let payload_len = usize::from(l3.l4_len());
        let room = usize::from(mtu).checked_sub(header_len)?;
        let step = if payload_len <= room { payload_len.max(8) } else { room & !7 };
        (step >= 8).then_some(Pieces { header_len, payload_len, step })
    }

    /// How many pieces there are, at least one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.payload_len.div_ceil(self.step).max(1)
    }

    /// Always false: there is at least one piece.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes piece `index` of `packet`, the one that was planned for, and returns its length; `None` if `out` is too small
    /// or there is no such piece.
    pub fn emit(&self, index: usize, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        if index >= self.len() {
            return None;
        }
        let start = index * self.step;
        let end = (start + self.step).min(self.payload_len);
        let whole = packet.get(..self.header_len + self.payload_len)?;
        let (header, payload) = whole.split_at_checked(self.header_len)?;
        let data = payload.get(start..end)?;
        let out = out.get_mut(..self.header_len + data.len())?;
        let (head, body) = out.split_at_mut_checked(self.header_len)?;
        head.copy_from_slice(header);
        body.copy_from_slice(data);
        let last = end == self.payload_len;
        finish_header(head, u16::try_from(self.header_len + data.len()).ok()?, u16::try_from(start / 8).ok()?, last)?;
        Some(out.len())
    }
}

/// Length, offset, flags and checksum of a piece; `offset` in units of eight bytes from the packet that is cut.
fn finish_header(head: &mut [u8], total_len: u16, offset: u16, last: bool) -> Option<()> {
    if offset != 0 {
        blank_first_only_options(head.get_mut(ipv4::HEADER_LEN..)?);
    }
    let (header, options) = ipv4::Header::mut_from_prefix(head).ok()?;
    let old = header.flags_offset();
    let more = if last { old & ipv4::MORE_FRAGMENTS } else { ipv4::MORE_FRAGMENTS };
    header.flags_offset = ((old & ipv4::OFFSET_MASK).checked_add(offset)? & ipv4::OFFSET_MASK | more).into();
    header.total_length = total_len.into();
    header.checksum = 0.into();
    header.checksum = Sum::ZERO.bytes(header.as_bytes()).bytes(options).checksum().into();
    Some(())
}

/// Turns options that only the first fragment carries (copied flag clear, RFC 791 section 3.1) into no-operations.
fn blank_first_only_options(options: &mut [u8]) {
    const COPIED: u8 = 0x80;
    let mut at = 0;
    while let Some(&[kind, ref rest @ ..]) = options.get(at..) {
        let length = match (kind, rest.first()) {
            (0, _) => return,
            (1, _) => 1,
            (_, Some(&length)) if length >= 2 => usize::from(length),
            _ => return,
        };
        if kind & COPIED == 0
            && let Some(option) = options.get_mut(at..at + length)
        {
            option.fill(1);
        }
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::packet::{Fragment, parse_l3};

    /// A packet of no particular protocol.
    fn packet(payload: &[u8], flags_offset: u16, options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 20];
        let payload_len = u16::try_from(payload.len() + options.len()).unwrap();
        let repr = ipv4::Repr {
            source: [10, 0, 0, 1],
            destination: [10, 0, 0, 2],
            protocol: 253,
            payload_len,
            ttl: 64,
            tos: 0,
            identification: 0x1234,
            dont_fragment: false,
        };
        repr.emit(&mut bytes).unwrap();
        bytes[0] += u8::try_from(options.len() / 4).unwrap();
        bytes[6..8].copy_from_slice(&flags_offset.to_be_bytes());
        bytes.extend_from_slice(options);
        bytes[10..12].fill(0);
        let checksum = Sum::ZERO.bytes(&bytes).checksum();
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    proptest! {
        #[test]
        fn pieces_fit_and_make_the_whole(
            payload in proptest::collection::vec(any::<u8>(), 0..400), mtu in 0u16..200, start in 0u16..100, more: bool,
            optioned: bool,
        ) {
            let flags_offset = start | if more { ipv4::MORE_FRAGMENTS } else { 0 };
            let mut payload = payload;
            if more {
                payload.resize(payload.len().next_multiple_of(8).max(8), 7);
            }
            // Record route is for the first fragment only, the router alert for all.
            let options: &[u8] = if optioned { &[7, 3, 4, 1, 148, 4, 0, 0] } else { &[] };
            let whole = packet(&payload, flags_offset, options);
            let l3 = parse_l3(&whole).unwrap();
            let Some(pieces) = Pieces::plan(&l3, mtu) else {
                prop_assert!(usize::from(mtu) < 28 + options.len());
                return Ok(());
            };
            let mut made = Vec::new();
            for index in 0..pieces.len() {
                let mut out = vec![0; usize::from(mtu)];
                let len = pieces.emit(index, &whole, &mut out).unwrap();
                prop_assert_eq!(pieces.emit(index, &whole, &mut vec![0; len - 1]), None);
                let piece = parse_l3(&out[..len]).unwrap();
                prop_assert_eq!(usize::from(piece.total_len), len);
                let last = index + 1 == pieces.len();
                let offset = start * 8 + u16::try_from(made.len()).unwrap();
                let expected = match (offset, !last || more) {
                    (0, false) => Fragment::None,
                    (0, true) => Fragment::First { id: 0x1234 },
                    (offset, more) => Fragment::Later { id: 0x1234, offset, more },
                };
                prop_assert_eq!(piece.fragment, expected);
                if optioned {
                    let route: &[u8] = if index == 0 { &[7, 3, 4, 1] } else { &[1, 1, 1, 1] };
                    prop_assert_eq!(&out[20..24], route);
                    prop_assert_eq!(&out[24..28], &[148, 4, 0, 0]);
                }
                made.extend_from_slice(&out[usize::from(piece.l4_offset)..len]);
            }
            prop_assert_eq!(made, payload);
            prop_assert_eq!(pieces.emit(pieces.len(), &whole, &mut [0; 600]), None);
        }
    }

    #[test]
    fn one_byte_too_many_makes_two_pieces() {
        // V-010, T-167: 1451 bytes through a tunnel of 1450
        let l3 = |len: usize, flags| parse_l3(&packet(&vec![0; len - 20], flags, &[])).unwrap();
        assert_eq!(Pieces::plan(&l3(1450, 0), 1450).unwrap().len(), 1);
        assert_eq!(Pieces::plan(&l3(1451, 0), 1450).unwrap().len(), 2);
        assert_eq!(Pieces::plan(&l3(1451, ipv4::DONT_FRAGMENT), 1450), None);
    }
}
