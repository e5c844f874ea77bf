//! Ethernet II frames and VLAN tags.
//!
//! Owns MAC addresses, ethertypes and up to two tags (IEEE 802.3 clause 3, 802.1Q clause 9). Refuses to know what the
//! payload means.

use core::fmt;

use tidegate_api::resource::MacAddress;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Family, Malformed, front};

/// A MAC address, first byte on the wire first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Every station.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Whether the group bit is set: multicast or broadcast.
    #[inline]
    #[must_use]
    pub fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// The MAC of an IPv6 multicast address: `33:33` and its last four bytes (RFC 2464 section 7).
    #[inline]
    #[must_use]
    pub fn of_ipv6_multicast(address: [u8; 16]) -> Mac {
        let [.., a, b, c, d] = address;
        Mac([0x33, 0x33, a, b, c, d])
    }
}

impl From<MacAddress> for Mac {
    #[inline]
    fn from(address: MacAddress) -> Mac {
        Mac(address.0)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Ethertype of IPv4 (IANA "IEEE 802 Numbers").
pub const IPV4: u16 = 0x0800;
/// Ethertype of ARP.
pub const ARP: u16 = 0x0806;
/// Ethertype of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Ethertype of an 802.1Q customer tag.
pub const VLAN: u16 = 0x8100;
/// Ethertype of an 802.1ad service tag.
pub const SERVICE_VLAN: u16 = 0x88a8;

/// Length of an untagged header.
pub const HEADER_LEN: usize = 14;
/// Length of one VLAN tag.
pub const TAG_LEN: usize = 4;

/// The Ethernet header.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                       destination (48 bits)                   |
/// +                               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                               |       source (48 bits)        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+                               +
/// |                                                               |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |           ethertype           |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Receiving station.
    pub destination: Mac,
    /// Sending station.
    pub source: Mac,
    pub(super) ethertype: U16,
}

impl Header {
    /// What follows, host order; values below 0x0600 are lengths of 802.3 frames.
    #[inline]
    #[must_use]
    pub fn ethertype(&self) -> u16 {
        self.ethertype.get()
    }
}

/// A VLAN tag after its ethertype: three bits of priority, one of drop eligibility, twelve of VLAN id; then the ethertype
/// of what follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Tag {
    tci: U16,
    ethertype: U16,
}

/// What parse learned about the link layer of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Receiving station.
    pub destination: Mac,
    /// Sending station.
    pub source: Mac,
    /// What follows the tags, host order.
    pub ethertype: u16,
    /// Tag control information of the outermost tag, host order; the VLAN id is its low twelve bits.
    pub vlan: Option<u16>,
    /// Tag control information of the second tag.
    pub inner_vlan: Option<u16>,
    /// Where the network header starts: 14, 18 or 22.
    pub l3_offset: u16,
}

/// The header of a frame, and what follows it, tags included.
///
/// # Errors
/// [`Malformed::EthernetTruncated`].
#[inline(always)]
pub fn split(bytes: &[u8]) -> Result<(&Header, &[u8]), Malformed> {
    front!(Header, bytes).ok_or(Malformed::EthernetTruncated)
}

/// Reads the link layer of a frame, through at most two tags.
///
/// # Errors
/// [`Malformed::EthernetTruncated`], [`Malformed::VlanTruncated`], [`Malformed::VlanTooMany`].
#[inline(always)]
pub fn parse_ethernet(bytes: &[u8]) -> Result<Ethernet, Malformed> {
    let (header, rest) = split(bytes)?;
    if is_tag(header.ethertype()) { parse_tags(header, rest) } else { Ok(untagged(header)) }
}

#[inline(always)]
fn untagged(header: &Header) -> Ethernet {
    Ethernet {
        destination: header.destination,
        source: header.source,
        ethertype: header.ethertype(),
        vlan: None,
        inner_vlan: None,
        l3_offset: 14,
    }
}

/// The ethertype of a family, host order.
#[inline(always)]
#[must_use]
pub fn of(family: Family) -> u16 {
    match family {
        Family::V4 => IPV4,
        Family::V6 => IPV6,
    }
}

/// Whether an ethertype, host order, says that a VLAN tag follows.
#[inline]
#[must_use]
pub fn is_tag(ethertype: u16) -> bool {
    ethertype == VLAN || ethertype == SERVICE_VLAN
}

#[inline(never)]
fn parse_tags(header: &Header, rest: &[u8]) -> Result<Ethernet, Malformed> {
    let mut ethernet = untagged(header);
    let Ok((tag, rest)) = Tag::ref_from_prefix(rest) else { return Err(Malformed::VlanTruncated) };
    ethernet.vlan = Some(tag.tci.get());
    ethernet.ethertype = tag.ethertype.get();
    ethernet.l3_offset = 18;
    if !is_tag(ethernet.ethertype) {
        return Ok(ethernet);
    }
    let Ok((tag, _)) = Tag::ref_from_prefix(rest) else { return Err(Malformed::VlanTruncated) };
    ethernet.inner_vlan = Some(tag.tci.get());
    ethernet.ethertype = tag.ethertype.get();
    ethernet.l3_offset = 22;
    if is_tag(ethernet.ethertype) { Err(Malformed::VlanTooMany) } else { Ok(ethernet) }
}

/// An Ethernet header to write, with at most one 802.1Q tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Receiving station.
    pub destination: Mac,
    /// Sending station.
    pub source: Mac,
    /// Tag control information, host order.
    pub vlan: Option<u16>,
    /// What follows, host order.
    pub ethertype: u16,
}

impl Repr {
    /// 14, or 18 with a tag.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        if self.vlan.is_some() { HEADER_LEN + TAG_LEN } else { HEADER_LEN }
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
        let outer = if self.vlan.is_some() { VLAN } else { self.ethertype };
        let out = out.get_mut(..self.len())?;
        let header = Header { destination: self.destination, source: self.source, ethertype: outer.into() };
        header.write_to_prefix(out).ok()?;
        if let Some(tci) = self.vlan {
            Tag { tci: tci.into(), ethertype: self.ethertype.into() }.write_to_suffix(out).ok()?;
        }
        Some(self.len())
    }
}

/// Writes both MAC addresses of a frame; false (nothing written) if it is shorter than twelve bytes.
#[inline]
pub fn set_macs(frame: &mut [u8], destination: Mac, source: Mac) -> bool {
    let Some(macs) = frame.first_chunk_mut::<12>() else { return false };
    let (to, from) = macs.split_at_mut(6);
    to.copy_from_slice(&destination.0);
    from.copy_from_slice(&source.0);
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parse_of_emit_is_identity(destination: [u8; 6], source: [u8; 6], vlan: Option<u16>, ethertype: u16) {
            prop_assume!(!is_tag(ethertype));
            let repr = Repr { destination: Mac(destination), source: Mac(source), vlan, ethertype };
            let mut out = [0xee; 20];
            for short in 0..repr.len() {
                prop_assert_eq!(repr.emit(&mut out[..short]), None);
                prop_assert_eq!(out, [0xee; 20], "nothing written");
            }
            prop_assert_eq!(repr.emit(&mut out), Some(repr.len()));
            let read = parse_ethernet(&out).unwrap();
            prop_assert_eq!(usize::from(read.l3_offset), repr.len());
            prop_assert_eq!((read.destination, read.source), (repr.destination, repr.source));
            prop_assert_eq!((read.vlan, read.inner_vlan, read.ethertype), (vlan, None, ethertype));
        }
    }

    #[test]
    fn macs_are_set_and_told() {
        let mut frame = [7u8; 14];
        assert!(set_macs(&mut frame, Mac([1, 2, 3, 4, 5, 6]), Mac::BROADCAST));
        assert_eq!(frame, [1, 2, 3, 4, 5, 6, 255, 255, 255, 255, 255, 255, 7, 7]);
        assert!(!set_macs(&mut frame[..11], Mac::default(), Mac::default()));
        assert!(Mac::BROADCAST.is_group() && !Mac([2, 0, 0, 0, 0, 1]).is_group());
        assert_eq!(Mac([2, 0, 0x5e, 0x10, 0, 1]).to_string(), "02:00:5e:10:00:01");
        let mut address = [0u8; 16];
        address[12..].copy_from_slice(&[0xff, 1, 2, 3]);
        assert_eq!(Mac::of_ipv6_multicast(address), Mac([0x33, 0x33, 0xff, 1, 2, 3]));
    }
}
