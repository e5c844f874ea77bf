//! Generic UDP encapsulation (draft-ietf-intarea-gue-09), as far as it carries IP packets.
//!
//! Owns the question where the inner packet begins and of which version it is. Both forms that are in use are read: variant
//! 0 with its header, and variant 1, in which the IP packet follows the UDP header at once (what Katran sends). Refuses to
//! know tunnels, and everything that would have to be understood to be left out: flags with their extension fields, control
//! messages, and payloads other than IP.

use super::{Family, Malformed, protocol};

/// First two bits: which of the forms below.
const VARIANT_SHIFT: u32 = 6;
/// Variant 0: bit C, a control message.
const CONTROL: u8 = 0x20;
/// Variant 0: words of the header beyond the first.
const LENGTH_MASK: u8 = 0x1f;

/// What a datagram's payload holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gue {
    /// Version of the inner packet as announced; the packet itself may say otherwise.
    pub version: Family,
    /// Where the inner packet starts, from the start of the UDP payload: 0 for variant 1, else 4 to 128.
    pub inner_offset: u16,
}

/// Reads the start of a UDP payload.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// | 0 |C|   Hlen  |  Proto/ctype  |             Flags             |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |        extension fields by flag, then private data            |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
///
/// Without flags all that `Hlen` counts is private data, which a receiver that has made no agreement about it skips.
///
/// # Errors
/// [`Malformed::GueTruncated`], [`Malformed::GueUnsupported`].
pub fn parse(payload: &[u8]) -> Result<Gue, Malformed> {
    let first = *payload.first().ok_or(Malformed::GueTruncated)?;
    match first >> VARIANT_SHIFT {
        0 => {
            let [_, kind, flags @ ..] = *payload.first_chunk::<4>().ok_or(Malformed::GueTruncated)?;
            let version = match kind {
                protocol::IPIP => Family::V4,
                protocol::IPV6 => Family::V6,
                _ => return Err(Malformed::GueUnsupported),
            };
            if first & CONTROL != 0 || flags != [0; 2] {
                return Err(Malformed::GueUnsupported);
            }
            let inner_offset = 4 + u16::from(first & LENGTH_MASK) * 4;
            if payload.len() < usize::from(inner_offset) {
                return Err(Malformed::GueTruncated);
            }
            Ok(Gue { version, inner_offset })
        }
        // The first bits of the IP version tell this form from others: 4 is 0100, 6 is 0110.
        1 if first >> 4 == 4 => Ok(Gue { version: Family::V4, inner_offset: 0 }),
        1 if first >> 4 == 6 => Ok(Gue { version: Family::V6, inner_offset: 0 }),
        _ => Err(Malformed::GueUnsupported),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_first_byte_is_one_form_or_none() {
        for first in 0..=255u8 {
            for kind in [4, 41, 6, 0] {
                let mut payload = [0; 128];
                (payload[0], payload[1]) = (first, kind);
                let expected = match (first, kind) {
                    (0x00..0x20, 4) => Ok(Gue { version: Family::V4, inner_offset: 4 + u16::from(first) * 4 }),
                    (0x00..0x20, 41) => Ok(Gue { version: Family::V6, inner_offset: 4 + u16::from(first) * 4 }),
                    (0x40..0x50, _) => Ok(Gue { version: Family::V4, inner_offset: 0 }),
                    (0x60..0x70, _) => Ok(Gue { version: Family::V6, inner_offset: 0 }),
                    _ => Err(Malformed::GueUnsupported),
                };
                assert_eq!(parse(&payload), expected, "{first:#x} {kind}");
            }
        }
    }

    #[test]
    fn flags_are_refused_and_short_headers_are_truncated() {
        for bit in 0..16u16 {
            let [high, low] = (1u16 << bit).to_be_bytes();
            assert_eq!(parse(&[0, 4, high, low, 0x45]), Err(Malformed::GueUnsupported));
        }
        assert_eq!(parse(&[]), Err(Malformed::GueTruncated));
        let whole = [2, 4, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9];
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), Err(Malformed::GueTruncated), "{len}");
        }
        assert_eq!(parse(&whole), Ok(Gue { version: Family::V4, inner_offset: 12 }));
    }
}
