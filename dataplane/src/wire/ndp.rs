//! Neighbour discovery for IPv6 (RFC 4861): solicitations and advertisements.
//!
//! Owns both messages with their link-layer address options, and the frames that answer a solicitation or announce an
//! address. Refuses to know which addresses are ours.

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::Sum;
use super::ethernet::{self, Mac};
use super::packet::{self, Fragment, L3};
use super::{Family, Malformed, ipv6, protocol};

/// ICMPv6 type of a neighbour solicitation.
pub const SOLICITATION: u8 = 135;
/// ICMPv6 type of a neighbour advertisement.
pub const ADVERTISEMENT: u8 = 136;

/// The all-nodes multicast address (RFC 4291 section 2.7.1).
pub const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

const UNSPECIFIED: [u8; 16] = [0; 16];
const HOP_LIMIT: u8 = 255;
const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;
const MESSAGE_LEN: usize = 24;
const OPTION_LEN: usize = 8;

const ROUTER: u32 = 1 << 31;
const SOLICITED: u32 = 1 << 30;
const OVERRIDE: u32 = 1 << 29;

/// Neighbour solicitation and advertisement without options (RFC 4861 sections 4.3 and 4.4).
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// | type 135/136  |    code 0     |           checksum            |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |R|S|O|  reserved; the three flags in an advertisement only     |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                   target address (128 bits)                   |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Message {
    icmp_type: u8,
    code: u8,
    checksum: U16,
    flags: U32,
    target: [u8; 16],
}

/// A neighbour solicitation that passed all checks of RFC 4861 section 7.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicitation {
    /// Who asks; unspecified (zeros) in duplicate address detection.
    pub source: [u8; 16],
    /// The address asked for.
    pub target: [u8; 16],
    /// MAC of who asks, if given.
    pub source_mac: Option<Mac>,
}

/// A neighbour advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Who speaks, network order.
    pub source: [u8; 16],
    /// Who is told; [`ALL_NODES`] for announcements.
    pub destination: [u8; 16],
    /// The address spoken about.
    pub target: [u8; 16],
    /// The speaker is a router.
    pub router: bool,
    /// In answer to a solicitation.
    pub solicited: bool,
    /// Caches that know another MAC should take this one.
    pub overrides: bool,
    /// MAC of the target, if given.
    pub target_mac: Option<Mac>,
}

/// Reads the neighbour solicitation in a packet that [`packet::parse_l3`] found to be ICMPv6 type 135.
///
/// # Errors
/// [`Malformed::NdpMalformed`] where RFC 4861 section 7.1.1 says "silently discard", [`Malformed::IcmpBadChecksum`].
pub fn parse_solicitation(bytes: &[u8], l3: &L3) -> Result<Solicitation, Malformed> {
    let (message, options) = validate(bytes, l3, SOLICITATION)?;
    let (source, destination) = ipv6::addresses(bytes);
    let source_mac = find_option(options, OPTION_SOURCE)?;
    // "If the IP source address is the unspecified address, the IP destination address is a solicited-node multicast
    // address" and "there is no source link-layer address option in the message".
    if source == UNSPECIFIED && (destination != ipv6::solicited_node(message.target) || source_mac.is_some()) {
        return Err(Malformed::NdpMalformed);
    }
    Ok(Solicitation { source, target: message.target, source_mac })
}

/// Reads the neighbour advertisement in a packet that [`packet::parse_l3`] found to be ICMPv6 type 136.
///
/// # Errors
/// [`Malformed::NdpMalformed`] where RFC 4861 section 7.1.2 says "silently discard", [`Malformed::IcmpBadChecksum`].
pub fn parse_advertisement(bytes: &[u8], l3: &L3) -> Result<Advertisement, Malformed> {
    let (message, options) = validate(bytes, l3, ADVERTISEMENT)?;
    let (source, destination) = ipv6::addresses(bytes);
    let flags = message.flags.get();
    // "If the IP Destination Address is a multicast address the Solicited flag is zero."
    if destination[0] == 0xff && flags & SOLICITED != 0 {
        return Err(Malformed::NdpMalformed);
    }
    Ok(Advertisement {
        source,
        destination,
        target: message.target,
        router: flags & ROUTER != 0,
        solicited: flags & SOLICITED != 0,
        overrides: flags & OVERRIDE != 0,
        target_mac: find_option(options, OPTION_TARGET)?,
    })
}

/// The checks that both messages share; returns the message and its options.
fn validate<'a>(bytes: &'a [u8], l3: &L3, icmp_type: u8) -> Result<(&'a Message, &'a [u8]), Malformed> {
    // A hop limit of 255 proves that no router forwarded it. Fragments are refused as RFC 6980 section 5 asks.
    let expected = l3.family == Family::V6 && l3.protocol == protocol::ICMPV6 && l3.fragment == Fragment::None;
    if !expected || l3.ttl != HOP_LIMIT || l3.icmp_type != icmp_type || l3.icmp_code != 0 {
        return Err(Malformed::NdpMalformed);
    }
    let payload = bytes.get(usize::from(l3.l4_offset)..usize::from(l3.total_len)).ok_or(Malformed::NdpMalformed)?;
    let (message, options) = Message::ref_from_prefix(payload).map_err(|_| Malformed::NdpMalformed)?;
    if message.target[0] == 0xff {
        return Err(Malformed::NdpMalformed);
    }
    if !packet::l4_checksum_verifies(bytes, l3) {
        return Err(Malformed::IcmpBadChecksum);
    }
    Ok((message, options))
}

/// Walks all options, each a type and a length in units of eight bytes, for an Ethernet address of the given type.
fn find_option(mut options: &[u8], wanted: u8) -> Result<Option<Mac>, Malformed> {
    let mut found = None;
    while !options.is_empty() {
        let &[kind, length, ..] = options else { return Err(Malformed::NdpMalformed) };
        let length = usize::from(length) * 8;
        // "All included options have a length that is greater than zero."
        if length == 0 || length > options.len() {
            return Err(Malformed::NdpMalformed);
        }
        if let (true, &[_, 1, a, b, c, d, e, f, ..]) = (kind == wanted, options) {
            found = Some(Mac([a, b, c, d, e, f]));
        }
        options = options.get(length..).unwrap_or_default();
    }
    Ok(found)
}

impl Solicitation {
    /// The answer: `mac` has the target. Sent to who asked with Solicited = 1, or to all nodes with Solicited = 0 if that was
    /// duplicate address detection (M-024, RFC 4861 section 7.2.4).
    #[must_use]
    pub fn answer(&self, mac: Mac, router: bool, overrides: bool) -> Advertisement {
        let anonymous = self.source == UNSPECIFIED;
        Advertisement {
            source: self.target,
            destination: if anonymous { ALL_NODES } else { self.source },
            target: self.target,
            router,
            solicited: !anonymous,
            overrides,
            target_mac: Some(mac),
        }
    }

    /// Length of the IP packet.
    #[must_use]
    pub fn len(&self) -> usize {
        ipv6::HEADER_LEN + MESSAGE_LEN + if self.source_mac.is_some() { OPTION_LEN } else { 0 }
    }

    /// Always false: a packet has bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the IP packet, sent to the target's solicited-node multicast address, and returns its length; `None` (nothing
    /// written) if `out` is shorter.
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let to = ipv6::solicited_node(self.target);
        let message =
            Message { icmp_type: SOLICITATION, code: 0, checksum: 0.into(), flags: 0.into(), target: self.target };
        emit(out, self.source, to, message, self.source_mac.map(|mac| (OPTION_SOURCE, mac)))
    }
}

impl Advertisement {
    /// The announcement that `mac` has `address`: to all nodes, Override = 1, Solicited = 0 (M-024).
    #[must_use]
    pub fn unsolicited(mac: Mac, address: [u8; 16], router: bool) -> Advertisement {
        Advertisement {
            source: address,
            destination: ALL_NODES,
            target: address,
            router,
            solicited: false,
            overrides: true,
            target_mac: Some(mac),
        }
    }

    /// Length of the IP packet.
    #[must_use]
    pub fn len(&self) -> usize {
        ipv6::HEADER_LEN + MESSAGE_LEN + if self.target_mac.is_some() { OPTION_LEN } else { 0 }
    }

    /// Always false: a packet has bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the IP packet and returns its length; `None` (nothing written) if `out` is shorter.
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let flags = flag(self.router, ROUTER) | flag(self.solicited, SOLICITED) | flag(self.overrides, OVERRIDE);
        let message =
            Message { icmp_type: ADVERTISEMENT, code: 0, checksum: 0.into(), flags: flags.into(), target: self.target };
        emit(out, self.source, self.destination, message, self.target_mac.map(|mac| (OPTION_TARGET, mac)))
    }

    /// Writes a frame with this packet from `source` to `destination`, or to the multicast MAC if it goes to a multicast
    /// address; returns its length: 86, or 90 with a VLAN tag. `None` if `out` is too small.
    pub fn emit_frame(&self, out: &mut [u8], destination: Mac, source: Mac, vlan: Option<u16>) -> Option<usize> {
        let multicast = self.destination[0] == 0xff;
        let destination = if multicast { Mac::of_ipv6_multicast(self.destination) } else { destination };
        let link = ethernet::Repr { destination, source, vlan, ethertype: ethernet::IPV6 };
        let out = out.get_mut(..link.len() + self.len())?;
        let (head, body) = out.split_at_mut_checked(link.len())?;
        Some(link.emit(head)? + self.emit(body)?)
    }
}

fn emit(
    out: &mut [u8],
    source: [u8; 16],
    destination: [u8; 16],
    mut message: Message,
    option: Option<(u8, Mac)>,
) -> Option<usize> {
    let bytes = option.map(|(kind, Mac([a, b, c, d, e, f]))| [kind, 1, a, b, c, d, e, f]);
    let option = bytes.as_ref().map_or(&[][..], |bytes| &bytes[..]);
    let payload_len = u16::try_from(MESSAGE_LEN + option.len()).ok()?;
    let pseudo = Sum::ZERO.pseudo_v6(source, destination, protocol::ICMPV6, u32::from(payload_len));
    message.checksum = pseudo.bytes(message.as_bytes()).bytes(option).checksum().into();
    let out = out.get_mut(..ipv6::HEADER_LEN + usize::from(payload_len))?;
    let (ip, body) = out.split_at_mut_checked(ipv6::HEADER_LEN)?;
    let repr = ipv6::Repr {
        source,
        destination,
        next_header: protocol::ICMPV6,
        payload_len,
        hop_limit: HOP_LIMIT,
        traffic_class: 0,
        flow_label: 0,
    };
    repr.emit(ip)?;
    message.write_to_prefix(body).ok()?;
    option.write_to_suffix(body).ok()?;
    Some(out.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::packet::parse_l3;

    proptest! {
        #[test]
        fn parse_of_emit_is_identity(
            addresses: [[u8; 16]; 3], mac: Option<[u8; 6]>, router: bool, solicited: bool, overrides: bool,
        ) {
            let [mut source, mut destination, mut target] = addresses;
            for address in [&mut source, &mut destination, &mut target] {
                address[0] = 0x20;
            }
            let mac = mac.map(Mac);
            let mut out = [0; 80];

            let question = Solicitation { source, target, source_mac: mac };
            let len = question.emit(&mut out).unwrap();
            prop_assert_eq!(len, question.len());
            let l3 = parse_l3(&out[..len]).unwrap();
            prop_assert_eq!(parse_solicitation(&out[..len], &l3), Ok(question));
            prop_assert_eq!(parse_advertisement(&out[..len], &l3), Err(Malformed::NdpMalformed));
            prop_assert_eq!(question.emit(&mut out[..len - 1]), None);

            let answer = Advertisement { source, destination, target, router, solicited, overrides, target_mac: mac };
            let len = answer.emit(&mut out).unwrap();
            prop_assert_eq!(len, answer.len());
            let l3 = parse_l3(&out[..len]).unwrap();
            prop_assert_eq!(parse_advertisement(&out[..len], &l3), Ok(answer));
            prop_assert_eq!(answer.emit(&mut out[..len - 1]), None);
        }
    }
}
