//! Plain packets: a whole TCP segment or UDP datagram right behind an IP header without options. Nearly all packets are.
//!
//! Owns their reading and their edit, in which every field is at a place that the compiler knows, behind one check of the
//! length. Refuses everything else: whoever asks then goes the general way ([`super::packet`], [`super::edit`]), which
//! knows all packets, these too, and says what is wrong with bad ones. Both ways agree on every packet (`tests/wire`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::{Delta, Sum};
use super::edit::{self, Tuple};
use super::packet::{Fragment, L3};
use super::{Family, front, front_mut, ipv4, ipv6, protocol, tcp, udp};

/// An IP header and the header right behind it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Headers<Ip, L4> {
    ip: Ip,
    l4: L4,
}

/// The plain IPv4 packet at the start of `bytes`; `None`: it is not one, or not a good one.
#[inline(always)]
pub(super) fn read_v4(bytes: &[u8]) -> Option<L3> {
    let (Headers { ip, l4: udp }, _) = front!(Headers<ipv4::Header, udp::Header>, bytes)?;
    let flags_offset = ip.flags_offset();
    let total_len = ip.total_length();
    let whole = flags_offset & (ipv4::OFFSET_MASK | ipv4::MORE_FRAGMENTS) == 0;
    if !(ip.is_bare() & whole & (usize::from(total_len) <= bytes.len()) & ip.verifies()) {
        return None;
    }
    let l3 = L3 {
        protocol: ip.protocol,
        l4_offset: 20,
        total_len,
        ttl: ip.ttl,
        tos: ip.tos,
        dont_fragment: flags_offset & ipv4::DONT_FRAGMENT != 0,
        is_plain: true,
        ..L3::empty(Family::V4)
    };
    let l4_len = total_len.checked_sub(20)?;
    match ip.protocol {
        protocol::TCP => {
            let (headers, _) = front!(Headers<ipv4::Header, tcp::Header>, bytes)?;
            segment(l3, &headers.l4, l4_len)
        }
        protocol::UDP => datagram(l3, udp, l4_len),
        _ => None,
    }
}

/// The plain IPv6 packet at the start of `bytes`, as [`read_v4`]. A datagram without checksum is none (N-072).
#[inline(always)]
pub(super) fn read_v6(bytes: &[u8]) -> Option<L3> {
    let (Headers { ip, l4: udp }, rest) = front!(Headers<ipv6::Header, udp::Header>, bytes)?;
    let l4_len = ip.payload_length();
    let fits = (usize::from(l4_len) <= rest.len() + udp::HEADER_LEN) & (l4_len <= u16::MAX - 40);
    if !(fits & (ip.version() == 6)) {
        return None;
    }
    let l3 = L3 {
        protocol: ip.next_header,
        l4_offset: 40,
        total_len: l4_len + 40,
        ttl: ip.hop_limit,
        tos: ip.traffic_class(),
        dont_fragment: true,
        is_plain: true,
        ..L3::empty(Family::V6)
    };
    match ip.next_header {
        protocol::TCP => {
            let (headers, _) = front!(Headers<ipv6::Header, tcp::Header>, bytes)?;
            segment(l3, &headers.l4, l4_len)
        }
        protocol::UDP if udp.checksum() != 0 => datagram(l3, udp, l4_len),
        _ => None,
    }
}

#[inline(always)]
fn segment(l3: L3, header: &tcp::Header, l4_len: u16) -> Option<L3> {
    let header_len = header.header_len();
    if !((header_len >= tcp::HEADER_LEN) & (header_len <= usize::from(l4_len))) {
        return None;
    }
    Some(L3 {
        source_port: header.source_port(),
        destination_port: header.destination_port(),
        tcp_flags: header.flags,
        tcp_seq: header.sequence(),
        tcp_ack: header.acknowledgment(),
        ..l3
    })
}

#[inline(always)]
fn datagram(l3: L3, header: &udp::Header, l4_len: u16) -> Option<L3> {
    let (source_port, destination_port) = (header.source_port(), header.destination_port());
    let exact = (l4_len >= 8) & (header.length() == l4_len);
    exact.then_some(L3 { source_port, destination_port, ..l3 })
}

/// What [`L3::is_plain`] says of a packet that the general way has read. `udp`: length and checksum of a datagram's header.
pub(super) fn is_plain(l3: &L3, udp: Option<(u16, u16)>) -> bool {
    let bare = !l3.has_options && l3.fragment == Fragment::None;
    match (l3.protocol, udp) {
        (protocol::TCP, _) => bare,
        (protocol::UDP, Some((length, checksum))) => {
            bare && length == l3.l4_len() && !(l3.family == Family::V6 && checksum == 0)
        }
        _ => false,
    }
}

/// Takes a hop off a plain IPv4 packet and gives it the ends `to`. `None` (nothing written): go the general way.
#[inline(always)]
pub(super) fn forward_v4(packet: &mut [u8], l3: &L3, to: &Tuple<[u8; 4]>) -> Option<()> {
    if !l3.is_plain || packet.len() < usize::from(l3.total_len) {
        return None;
    }
    if l3.protocol == protocol::TCP {
        let headers = front_mut!(Headers<ipv4::Header, tcp::Header>, packet)?;
        let addresses = hop_v4(&mut headers.ip, to)?;
        set_segment(&mut headers.l4, addresses, to);
    } else {
        let headers = front_mut!(Headers<ipv4::Header, udp::Header>, packet)?;
        let addresses = hop_v4(&mut headers.ip, to)?;
        set_datagram(&mut headers.l4, addresses, to);
    }
    Some(())
}

/// The same for a plain IPv6 packet.
#[inline(always)]
pub(super) fn forward_v6(packet: &mut [u8], l3: &L3, to: &Tuple<[u8; 16]>) -> Option<()> {
    if !l3.is_plain || packet.len() < usize::from(l3.total_len) {
        return None;
    }
    if l3.protocol == protocol::TCP {
        let headers = front_mut!(Headers<ipv6::Header, tcp::Header>, packet)?;
        let addresses = hop_v6(&mut headers.ip, to)?;
        set_segment(&mut headers.l4, addresses, to);
    } else {
        let headers = front_mut!(Headers<ipv6::Header, udp::Header>, packet)?;
        let addresses = hop_v6(&mut headers.ip, to)?;
        set_datagram(&mut headers.l4, addresses, to);
    }
    Some(())
}

#[inline(always)]
fn hop_v4(ip: &mut ipv4::Header, to: &Tuple<[u8; 4]>) -> Option<Delta> {
    if ip.ttl <= 1 {
        return None;
    }
    let addresses = Delta::blocks(&ip.source, &to.source).and(Delta::blocks(&ip.destination, &to.destination));
    ip.ttl -= 1;
    ip.checksum = addresses.and(edit::ONE_HOP).apply(ip.checksum.get()).into();
    (ip.source, ip.destination) = (to.source, to.destination);
    Some(addresses)
}

#[inline(always)]
fn hop_v6(ip: &mut ipv6::Header, to: &Tuple<[u8; 16]>) -> Option<Delta> {
    if ip.hop_limit <= 1 {
        return None;
    }
    let addresses = Delta::blocks(&ip.source, &to.source).and(Delta::blocks(&ip.destination, &to.destination));
    ip.hop_limit -= 1;
    (ip.source, ip.destination) = (to.source, to.destination);
    Some(addresses)
}

#[inline(always)]
fn set_segment<A>(header: &mut tcp::Header, addresses: Delta, to: &Tuple<A>) {
    let delta = addresses
        .and_word(header.source_port.get(), to.source_port)
        .and_word(header.destination_port.get(), to.destination_port);
    header.checksum = delta.apply(header.checksum.get()).into();
    header.source_port = to.source_port.into();
    header.destination_port = to.destination_port.into();
}

#[inline(always)]
fn set_datagram<A>(header: &mut udp::Header, addresses: Delta, to: &Tuple<A>) {
    let delta = addresses
        .and_word(header.source_port.get(), to.source_port)
        .and_word(header.destination_port.get(), to.destination_port);
    header.checksum = delta.apply_udp(header.checksum.get()).into();
    header.source_port = to.source_port.into();
    header.destination_port = to.destination_port.into();
}

/// The sum over a plain IPv6 packet whose own checksum is right, at the start of `packet`: addresses, ports and payload are
/// under that checksum, which says what they sum to. What is left is the header's other words, without those of the pseudo
/// header (RFC 8200 section 8.1): payload length is in both.
#[inline(always)]
pub(super) fn sum_v6(packet: &[u8], l3: &L3) -> Option<Sum> {
    let (header, _) = front!(ipv6::Header, packet)?;
    // Apart, since the hop limit was most likely just written by itself: a load of both would wait for that.
    let (next, hops) = (u16::from(header.next_header) << 8, u16::from(header.hop_limit));
    let sum = Sum::ZERO.long(header.version_class_label.get()).word(next).word(hops).word(!u16::from(l3.protocol));
    (l3.is_plain && header.payload_length() == l3.l4_len()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::super::{encap, packet};
    use super::*;

    /// A segment or datagram of either family, some of whose first 64 bytes are something else, cut or padded.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let ends = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u16>(), any::<u16>());
        let damage = proptest::collection::vec((0usize..64, any::<u8>()), 0..4);
        let shape = (any::<bool>(), any::<bool>(), 0usize..80, -3isize..20, any::<bool>());
        (ends, damage, shape).prop_map(|((from, to, source, destination), damage, (v6, tcp, len, more, mended))| {
            let payload = vec![0xa5; len];
            let mut out = Vec::new();
            let short = |address: [u8; 16]| *address.first_chunk::<4>().unwrap();
            let ip = match v6 {
                true => PacketBuilder::ipv6(from, to, 64),
                false => PacketBuilder::ipv4(short(from), short(to), 64),
            };
            match tcp {
                true => ip.tcp(source, destination, 7, 1024).ack(9).write(&mut out, &payload).unwrap(),
                false => ip.udp(source, destination).write(&mut out, &payload).unwrap(),
            }
            for (at, value) in damage {
                if let Some(byte) = out.get_mut(at) {
                    *byte = value;
                }
            }
            out.resize(out.len().saturating_add_signed(more), 0);
            if mended && !v6 && out.len() >= 20 {
                out[10..12].fill(0);
                let checksum = Sum::ZERO.bytes(&out[..20]).checksum();
                out[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            out
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn both_ways_read_the_same(bytes in bytes()) {
            let mut l3 = L3::empty(Family::V4);
            let general = match bytes.first().map(|first| first >> 4) {
                Some(6) => packet::parse_v6::<false>(&bytes, &mut l3),
                _ => packet::parse_v4(&bytes, &mut l3),
            };
            let plain = match bytes.first().map(|first| first >> 4) {
                Some(6) => read_v6(&bytes),
                _ => read_v4(&bytes),
            };
            prop_assert_eq!(plain, general.ok().map(|()| l3).filter(|l3| l3.is_plain));
            prop_assert_eq!(packet::parse_l3(&bytes), general.map(|()| l3));
        }

        #[test]
        fn both_ways_write_the_same(bytes in bytes(), to: ([u8; 16], [u8; 16], u16, u16)) {
            let Ok(l3) = packet::parse_l3(&bytes) else { return Ok(()) };
            let (source, destination, source_port, destination_port) = to;
            let mut plain = bytes.clone();
            let mut general = bytes.clone();
            let (done, expected) = match l3.family {
                Family::V4 => {
                    let short = |address: [u8; 16]| *address.first_chunk::<4>().unwrap();
                    let (source, destination) = (short(source), short(destination));
                    let to = Tuple { source, destination, source_port, destination_port };
                    (forward_v4(&mut plain, &l3, &to), edit::forward_any_v4(&mut general, &l3, &to))
                }
                Family::V6 => {
                    let to = Tuple { source, destination, source_port, destination_port };
                    (forward_v6(&mut plain, &l3, &to), edit::forward_any_v6(&mut general, &l3, &to))
                }
            };
            prop_assert_eq!(done.is_some(), l3.is_plain && expected);
            prop_assert_eq!(plain, if done.is_some() { general } else { bytes });
        }

        #[test]
        fn a_right_checksum_says_the_rest(bytes in bytes()) {
            let Ok(l3) = packet::parse_l3(&bytes) else { return Ok(()) };
            if l3.family == Family::V6 && l3.is_plain && packet::l4_checksum_verifies(&bytes, &l3) {
                let all = encap::inner_sum_of_all(&bytes[..usize::from(l3.total_len)]);
                let sum = sum_v6(&bytes, &l3).unwrap();
                // Sums of this arithmetic are equal modulo 0xffff.
                prop_assert_eq!(sum.fold() % 0xffff, all.fold() % 0xffff);
            }
        }
    }
}
