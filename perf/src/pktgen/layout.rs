//! Where things are in a frame that arrived, and a frame turned round.
//!
//! Owns offsets: Ethernet, perhaps VXLAN (RFC 7348) and what is in it, IP without options or extension headers, UDP or TCP.
//! That is all a generator ever sends. Anything else has no layout, and is counted as foreign.

/// UDP ports under which VXLAN arrives: IANA's, and the one Linux and flannel took before there was one.
const VXLAN_PORTS: [u16; 2] = [4789, 8472];
/// Bytes of an Ethernet header.
pub const ETHERNET_BYTES: usize = 14;
/// Bytes of UDP's and of VXLAN's header together.
pub const VXLAN_BYTES: usize = 8 + 8;
/// IANA's number of UDP.
pub const UDP: u8 = 17;
/// IANA's number of TCP.
pub const TCP: u8 = 6;

/// Offsets in bytes from the start of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Whether the innermost IP header is one of IPv6.
    pub v6: bool,
    /// The innermost IP header.
    pub network: usize,
    /// IANA's number of what it carries, UDP or TCP.
    pub protocol: u8,
    /// The UDP or TCP header in it.
    pub transport: usize,
    /// What that carries.
    pub payload: usize,
    /// End of the IP packet; padding of Ethernet lies behind it.
    pub end: usize,
    /// The outer IP header of a VXLAN packet, and whether that is one of IPv6.
    pub outer: Option<(usize, bool)>,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

/// The layout of a frame, with the innermost packet of one in VXLAN.
#[inline]
pub fn find(bytes: &[u8]) -> Option<Layout> {
    find_first(bytes, bytes.len())
}

/// The same of a frame of `frame_len` bytes that begins with `bytes` and goes on elsewhere.
#[inline]
pub fn find_first(bytes: &[u8], frame_len: usize) -> Option<Layout> {
    let outer = find_at(bytes, 0, frame_len)?;
    let is_vxlan = outer.protocol == UDP
        && VXLAN_PORTS.contains(&u16_at(bytes, outer.transport + 2)?)
        && bytes.get(outer.payload).is_some_and(|flags| flags & 0x08 != 0);
    if !is_vxlan {
        return Some(outer);
    }
    let inner = find_at(bytes, outer.payload + 8, frame_len)?;
    (inner.end <= outer.end).then_some(Layout { outer: Some((outer.network, outer.v6)), ..inner })
}

/// The layout of the Ethernet frame that begins at `start` and ends at `frame_len` at the latest.
fn find_at(bytes: &[u8], start: usize, frame_len: usize) -> Option<Layout> {
    let network = start + ETHERNET_BYTES;
    let first = *bytes.get(network)?;
    let (v6, protocol, transport, end) = match u16_at(bytes, start + 12)? {
        0x0800 if first == 0x45 => {
            // Not the first, or not the only fragment: no ports, or not all of the payload.
            if u16_at(bytes, network + 6)? & 0x3fff != 0 {
                return None;
            }
            (false, *bytes.get(network + 9)?, network + 20, network + usize::from(u16_at(bytes, network + 2)?))
        }
        0x86dd if first >> 4 == 6 => {
            (true, *bytes.get(network + 6)?, network + 40, network + 40 + usize::from(u16_at(bytes, network + 4)?))
        }
        _ => return None,
    };
    let (header_len, header_len_min) = match protocol {
        // A datagram that does not fill its packet is none of ours.
        UDP if transport + usize::from(u16_at(bytes, transport + 4)?) == end => (8, 8),
        TCP => (usize::from(*bytes.get(transport + 12)? >> 4) * 4, 20),
        _ => return None,
    };
    let payload = transport + header_len;
    let whole = header_len >= header_len_min && payload <= end && end <= frame_len;
    whole.then_some(Layout { v6, network, protocol, transport, payload, end, outer: None })
}

impl Layout {
    /// Bytes of each address of the innermost IP header, and where the first of the two begins.
    pub fn addresses(&self) -> (usize, usize) {
        if self.v6 { (16, self.network + 8) } else { (4, self.network + 12) }
    }

    /// Where the checksum of UDP or TCP is.
    pub fn checksum(&self) -> usize {
        self.transport + if self.protocol == UDP { 6 } else { 16 }
    }

    /// Makes the checksum of UDP or TCP right.
    pub fn sum_again(&self, bytes: &mut [u8]) {
        let at = self.checksum();
        if let Some(place) = bytes.get_mut(at..at + 2) {
            place.fill(0);
        }
        let sum = match !self.sum(std::iter::once(&*bytes)).unwrap_or(0) {
            0 if self.protocol == UDP => 0xffff,
            sum => sum,
        };
        if let Some(place) = bytes.get_mut(at..at + 2) {
            place.copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// The sum of pseudo-header and segment (RFC 9293, section 3.1; RFC 768; RFC 8200, section 8.1).
    fn sum<'a>(&self, mut pieces: impl Iterator<Item = &'a [u8]> + Clone) -> Option<u16> {
        let (length, first) = self.addresses();
        let addresses = pieces.clone().next()?.get(first..first + 2 * length)?;
        let length = u32::try_from(self.end.checked_sub(self.transport)?).ok()?;
        let header = add(u32::from(self.protocol) + (length >> 16) + (length & 0xffff), addresses);
        let (mut at, mut sum) = (0, header);
        while at < self.end {
            let piece = pieces.next()?;
            let (from, to) = (self.transport.saturating_sub(at).min(piece.len()), piece.len().min(self.end - at));
            let part = fold(add(0, piece.get(from..to)?));
            // Words that begin at an odd place have their bytes exchanged (RFC 1071, section 2, B).
            let is_odd = (at + from).saturating_sub(self.transport) % 2 == 1;
            sum += u32::from(if is_odd { part.swap_bytes() } else { part });
            at += piece.len();
        }
        Some(fold(sum))
    }

    /// Whether the checksum of UDP or TCP is right; that of a datagram over IPv4 may be absent (RFC 768).
    pub fn is_intact(&self, bytes: &[u8]) -> bool {
        self.is_intact_over(std::iter::once(bytes))
    }

    /// The same of a frame in pieces; its headers are in the first.
    pub fn is_intact_over<'a>(&self, pieces: impl Iterator<Item = &'a [u8]> + Clone) -> bool {
        let sum = pieces.clone().next().and_then(|first| u16_at(first, self.checksum()));
        if self.protocol == UDP && !self.v6 && sum == Some(0) {
            return true;
        }
        self.sum(pieces) == Some(0xffff)
    }
}

/// Adds 16-bit words of `bytes` to a sum (RFC 1071); a last odd byte counts as if a zero followed.
#[inline]
pub fn add(sum: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum = words.iter().fold(sum, |sum, word| sum + u32::from(u16::from_be_bytes(*word)));
    sum + rest.first().map_or(0, |last| u32::from(*last) << 8)
}

/// The sum in 16 bits, carries added (RFC 1071).
#[inline]
pub fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from(sum & 0xffff).unwrap_or(0)
}

/// Exchanges two ranges of `length` bytes that follow each other.
fn exchange(bytes: &mut [u8], at: usize, length: usize) {
    if let Some(both) = bytes.get_mut(at..at + 2 * length) {
        let (first, second) = both.split_at_mut(length);
        first.swap_with_slice(second);
    }
}

/// Exchanges the link-layer addresses of a frame, and nothing else.
#[inline]
pub fn turn_link_round(bytes: &mut [u8]) {
    exchange(bytes, 0, 6);
}

/// Sends a frame back where it came from: exchanges addresses and ports on every floor. Ports of VXLAN stay, since every
/// endpoint listens at the same one. All sums stay right: what was added is added in another order.
pub fn turn_round(bytes: &mut [u8], layout: &Layout) {
    turn_link_round(bytes);
    if let Some((outer, v6)) = layout.outer {
        let (length, at) = if v6 { (16, outer + 8) } else { (4, outer + 12) };
        exchange(bytes, at, length);
        exchange(bytes, layout.network - ETHERNET_BYTES, 6);
    }
    let (length, at) = layout.addresses();
    exchange(bytes, at, length);
    exchange(bytes, layout.transport, 2);
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    fn plain(v6: bool, tcp: bool, payload: &[u8]) -> Vec<u8> {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let network = if v6 { link.ipv6([1; 16], [2; 16], 64) } else { link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64) };
        let mut bytes = Vec::new();
        match tcp {
            true => network.tcp(7, 9, 1, 100).ack(5).write(&mut bytes, payload).unwrap(),
            false => network.udp(7, 9).write(&mut bytes, payload).unwrap(),
        }
        bytes
    }

    fn in_vxlan(v6: bool, inner: &[u8]) -> Vec<u8> {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 4]);
        let network = if v6 { link.ipv6([3; 16], [4; 16], 64) } else { link.ipv4([9, 0, 0, 1], [9, 0, 0, 2], 64) };
        let mut bytes = Vec::new();
        network.udp(50_000, 8472).write(&mut bytes, &[&[8, 0, 0, 0, 0, 0, 1, 0], inner].concat()).unwrap();
        bytes
    }

    fn all() -> impl Iterator<Item = Vec<u8>> {
        let plains =
            || [(false, false), (false, true), (true, false), (true, true)].map(|(v6, tcp)| plain(v6, tcp, b"pay"));
        plains()
            .into_iter()
            .chain(plains().map(|inner| in_vxlan(false, &inner)))
            .chain(plains().map(|inner| in_vxlan(true, &inner)))
    }

    #[test]
    fn payloads_are_found_and_sums_are_checked() {
        for mut bytes in all() {
            let layout = find(&bytes).unwrap();
            assert_eq!(&bytes[layout.payload..layout.end], b"pay");
            assert!(layout.is_intact(&bytes));
            bytes[layout.payload] ^= 1;
            assert!(!layout.is_intact(&bytes));
            // Whatever is cut off, there is no panic, and no payload that is not there.
            for length in 0..bytes.len() {
                assert!(find(&bytes[..length]).is_none());
            }
        }
        let mut without_sum = plain(false, false, b"pay");
        without_sum[40..42].fill(0);
        assert!(find(&without_sum).unwrap().is_intact(&without_sum));
    }

    /// However a frame is cut, a wrong byte is found wherever it is.
    #[test]
    fn sums_are_checked_over_pieces() {
        for mut bytes in all() {
            let layout = find(&bytes).unwrap();
            for (at, is_right) in [(layout.payload, true), (layout.payload, false), (layout.end - 1, false)] {
                bytes[at] ^= u8::from(!is_right);
                for size in layout.payload..=bytes.len() {
                    let (first, rest) = bytes.split_at(size);
                    assert_eq!(find_first(first, bytes.len()), Some(layout));
                    for after in 1..=3 {
                        let pieces = || std::iter::once(first).chain(rest.chunks(after));
                        assert_eq!(layout.is_intact_over(pieces()), is_right, "cut at {size}, then every {after}");
                        // Without its end it is not right.
                        if size < layout.end {
                            assert!(!layout.is_intact_over(std::iter::once(first)));
                        }
                    }
                }
                bytes[at] ^= u8::from(!is_right);
            }
        }
    }

    #[test]
    fn a_frame_turned_round_is_right_and_twice_is_itself() {
        for bytes in all() {
            let mut back = bytes.clone();
            turn_round(&mut back, &find(&bytes).unwrap());
            let layout = find(&back).unwrap();
            assert!(layout.is_intact(&back) && back != bytes);
            assert_eq!(&back[layout.transport..layout.transport + 4], [0, 9, 0, 7]);
            turn_round(&mut back, &layout);
            assert_eq!(back, bytes);
        }
    }

    proptest! {
        /// etherparse is the oracle for what is found in plain frames; arbitrary bytes never panic.
        #[test]
        fn what_is_found_is_what_etherparse_finds(start in 0usize..12, changes in prop::collection::vec((0usize..60, any::<u8>()), 0..4)) {
            let mut bytes = all().nth(start).unwrap();
            for (at, value) in changes {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            if let Some(layout) = find(&bytes) && layout.outer.is_none() {
                let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
                let payload = match packet.transport.unwrap() {
                    TransportSlice::Udp(udp) => udp.payload().as_ptr(),
                    TransportSlice::Tcp(tcp) => tcp.payload().as_ptr(),
                    other => panic!("{other:?}"),
                };
                prop_assert_eq!(payload, bytes[layout.payload..].as_ptr());
                prop_assert_eq!(matches!(packet.net, Some(NetSlice::Ipv6(_))), layout.v6);
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(layout) = find(&bytes) {
                layout.is_intact(&bytes);
                turn_round(&mut bytes, &layout);
            }
        }
    }
}
