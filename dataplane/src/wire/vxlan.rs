//! VXLAN headers (RFC 7348) and the ECN rules of the tunnel's two ends.
//!
//! Owns the eight bytes between outer UDP and inner Ethernet, the choice of the outer source port, and both ECN tables.
//! Refuses to know tunnels. The outer headers to put on are in [`encap`](super::encap).

use zerocopy::byteorder::network_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Malformed, front};

/// Length of the header.
pub const HEADER_LEN: usize = 8;
/// The port IANA assigned; flannel and Cilium use 8472 (V-002).
pub const PORT_IANA: u16 = 4789;

const FLAG_VNI: u32 = 0x0800_0000;

/// The VXLAN header (RFC 7348 section 5).
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |R|R|R|R|I|R|R|R|                   reserved                    |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                      VNI                      |   reserved    |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    flags: U32,
    vni: U32,
}

/// What a VXLAN header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Where the inner Ethernet header starts, from the start of the VXLAN header: always 8.
    pub inner_offset: usize,
    /// Reserved bits that are set: ignored, to be counted (V-001).
    pub unknown_bits: bool,
}

/// Reads the header at the start of a UDP payload.
///
/// # Errors
/// [`Malformed::VxlanTruncated`], [`Malformed::VxlanNoVni`].
#[inline]
pub fn parse(payload: &[u8]) -> Result<Vxlan, Malformed> {
    let (header, _) = front!(Header, payload).ok_or(Malformed::VxlanTruncated)?;
    let (flags, vni) = (header.flags.get(), header.vni.get());
    if flags & FLAG_VNI == 0 {
        return Err(Malformed::VxlanNoVni);
    }
    let unknown_bits = flags != FLAG_VNI || vni & 0xff != 0;
    Ok(Vxlan { vni: vni >> 8, inner_offset: HEADER_LEN, unknown_bits })
}

/// A VXLAN header to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// VXLAN network identifier; higher bits than 24 are cut off.
    pub vni: u32,
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

    /// Writes the header and returns its length, or `None` (nothing written) if `out` is shorter.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        Header { flags: FLAG_VNI.into(), vni: (self.vni << 8).into() }.write_to_prefix(out).ok()?;
        Some(HEADER_LEN)
    }
}

/// The outer source port for a hash of the inner flow: 49152..=65535, "the dynamic/private port range" (RFC 7348 section 5,
/// V-003).
///
/// The hash must be of the inner addresses, protocol and ports; of the addresses and protocol alone for every fragment of a
/// fragmented datagram.
#[inline]
#[must_use]
pub fn source_port(hash: u64) -> u16 {
    0xc000 | ((hash ^ (hash >> 32) ^ (hash >> 16)) & 0x3fff) as u16
}

/// ECN: not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN: capable, codepoint 1.
pub const ECT_1: u8 = 0b01;
/// ECN: capable, codepoint 0.
pub const ECT_0: u8 = 0b10;
/// ECN: congestion experienced.
pub const CE: u8 = 0b11;

/// The ECN bits an inner packet leaves the tunnel with; `None` is a drop (V-007, RFC 6040 section 4.2).
///
/// Only the lower two bits of either argument are looked at, so whole TOS bytes may be given.
#[inline]
#[must_use]
pub fn ecn_decap(inner: u8, outer: u8) -> Option<u8> {
    match (inner & CE, outer & CE) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (CE, _) | (_, CE) => Some(CE),
        (_, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// The ECN bits of the outer header (V-017): the inner ones, but CE becomes ECT(0), as the kernel does (RFC 3168 section
/// 9.1.1, full functionality). Only the lower two bits of the argument are looked at.
#[inline]
#[must_use]
pub fn ecn_encap(inner: u8) -> u8 {
    match inner & CE {
        CE => ECT_0,
        ecn => ecn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_of_emit_is_identity() {
        for vni in [0, 1, 4096, 0x80_0000, 0xff_ffff] {
            let mut out = [0xee; 9];
            assert_eq!(Repr { vni }.emit(&mut out[..7]), None);
            assert_eq!(Repr { vni }.emit(&mut out), Some(HEADER_LEN));
            assert_eq!(parse(&out), Ok(Vxlan { vni, inner_offset: 8, unknown_bits: false }));
        }
    }
}
