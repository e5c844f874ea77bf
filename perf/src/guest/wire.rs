//! Frames of a capture: each checked by itself, then what went into the gateway compared with what came out.
//!
//! Owns reading and comparing; the reading is etherparse's, which knows nothing of Tidegate's own parser. Refuses to
//! know addresses: what they should be is the trial's business. Two captures that agree here leave no room for a byte
//! that changed, a packet that was lost or sent twice, or a checksum that was patched wrong.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice, UdpSlice};

use crate::topology::VXLAN_PORT;

/// Length of a VXLAN header (RFC 7348 section 5).
const VXLAN_BYTES: usize = 8;
/// The one flag that is set: the network identifier is valid (V-001).
const VXLAN_FLAGS: u8 = 0x08;

/// What no translation may change, and how far the packet may still go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Content {
    /// TCP: sequence, acknowledgement, flags, window; nothing for UDP.
    header: Vec<u8>,
    /// TCP options, but of no SYN: their segment size is clamped (V-013).
    options: Vec<u8>,
    payload: Vec<u8>,
    is_tcp: bool,
    is_ipv4: bool,
    hops: u8,
}

/// The headers in front of an inner packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outer {
    pub(super) source: IpAddr,
    pub(super) target: IpAddr,
    pub(super) hops: u8,
    pub(super) vni: u32,
}

/// A TCP or UDP packet, plain or inside VXLAN, with no fault in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    /// Link-layer source and destination of the frame as it was captured.
    pub(super) link: [[u8; 6]; 2],
    pub(super) outer: Option<Outer>,
    /// Link-layer source and destination of the inner frame; the same as `link` without VXLAN.
    pub(super) inner_link: [[u8; 6]; 2],
    pub(super) source: SocketAddr,
    pub(super) target: SocketAddr,
    pub(super) content: Content,
}

impl Packet {
    /// Source and destination.
    pub(super) fn flow(&self) -> [SocketAddr; 2] {
        [self.source, self.target]
    }
}

/// Reads a frame; nothing for what is neither TCP nor UDP.
///
/// # Errors
/// When it is cut or malformed, or a checksum in it is wrong.
pub(super) fn read(bytes: &[u8]) -> Result<Option<Packet>> {
    read_layer(bytes, true)
}

/// Reads a frame, or what is inside one: there the overlay's port is a port like any other, and a translated source may
/// well have its number.
fn read_layer(bytes: &[u8], is_outermost: bool) -> Result<Option<Packet>> {
    let sliced = SlicedPacket::from_ethernet(bytes).context("not a packet")?;
    let (Some(net), Some(transport)) = (&sliced.net, &sliced.transport) else { return Ok(None) };
    let link = link(bytes)?;
    let Some((source, target, hops)) = addresses(net)? else { return Ok(None) };
    let at = |from, to| (SocketAddr::new(source, from), SocketAddr::new(target, to));
    let (source, target, content) = match transport {
        TransportSlice::Udp(udp) if is_outermost && udp.destination_port() == VXLAN_PORT => {
            check_outer_udp(udp, net)?;
            return inside(link, Outer { source, target, hops, vni: 0 }, udp.payload()).map(Some);
        }
        TransportSlice::Udp(udp) => {
            let right = udp_sum(udp, net)?;
            ensure!(udp.checksum() == right, "UDP checksum {:#06x}, not {right:#06x}", udp.checksum());
            let (from, to) = at(udp.source_port(), udp.destination_port());
            (from, to, Content::of_udp(udp, source.is_ipv4(), hops))
        }
        TransportSlice::Tcp(tcp) => {
            let right = tcp_sum(tcp, net)?;
            // Zero has two forms in this arithmetic (RFC 1071 section 1), and kernels send either.
            let same = tcp.checksum() == right || [tcp.checksum(), right].iter().all(|sum| [0, 0xffff].contains(sum));
            ensure!(same, "TCP checksum {:#06x}, not {right:#06x}", tcp.checksum());
            let (from, to) = at(tcp.source_port(), tcp.destination_port());
            (from, to, Content::of_tcp(tcp, source.is_ipv4(), hops))
        }
        _ => return Ok(None),
    };
    Ok(Some(Packet { link, outer: None, inner_link: link, source, target, content }))
}

impl Content {
    fn is_reset(&self) -> bool {
        // The header begins with the sequence number; flags are its tenth byte, RST the third bit.
        self.header.get(9).is_some_and(|flags| flags & 0x04 != 0)
    }

    fn of_udp(udp: &UdpSlice<'_>, is_ipv4: bool, hops: u8) -> Content {
        let payload = udp.payload().to_vec();
        Content { header: Vec::new(), options: Vec::new(), payload, is_tcp: false, is_ipv4, hops }
    }

    fn of_tcp(tcp: &TcpSlice<'_>, is_ipv4: bool, hops: u8) -> Content {
        // Sequence to window (RFC 9293 section 3.1).
        let header = tcp.header_slice().get(4..16).unwrap_or_default().to_vec();
        let options = if tcp.syn() { Vec::new() } else { tcp.options().to_vec() };
        Content { header, options, payload: tcp.payload().to_vec(), is_tcp: true, is_ipv4, hops }
    }
}

fn link(bytes: &[u8]) -> Result<[[u8; 6]; 2]> {
    let address = |at: usize| bytes.get(at..at + 6).and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    Ok([address(6).context("cut")?, address(0).context("cut")?])
}

/// Source, destination and hops left; nothing for what is not IP.
fn addresses(net: &NetSlice<'_>) -> Result<Option<(IpAddr, IpAddr, u8)>> {
    match net {
        NetSlice::Ipv4(slice) => {
            let header = slice.header().to_header();
            let right = header.calc_header_checksum();
            ensure!(header.header_checksum == right, "IP checksum {:#06x}, not {right:#06x}", header.header_checksum);
            ensure!(!slice.is_payload_fragmented(), "a fragment");
            Ok(Some((header.source.into(), header.destination.into(), header.time_to_live)))
        }
        NetSlice::Ipv6(slice) => {
            let header = slice.header();
            ensure!(!slice.is_payload_fragmented(), "a fragment");
            Ok(Some((header.source_addr().into(), header.destination_addr().into(), header.hop_limit())))
        }
        NetSlice::Arp(_) => Ok(None),
    }
}

fn udp_sum(udp: &UdpSlice<'_>, net: &NetSlice<'_>) -> Result<u16> {
    Ok(match net {
        NetSlice::Ipv4(slice) => udp.to_header().calc_checksum_ipv4(&slice.header().to_header(), udp.payload())?,
        NetSlice::Ipv6(slice) => udp.to_header().calc_checksum_ipv6(&slice.header().to_header(), udp.payload())?,
        NetSlice::Arp(_) => bail!("UDP over ARP"),
    })
}

fn tcp_sum(tcp: &TcpSlice<'_>, net: &NetSlice<'_>) -> Result<u16> {
    Ok(match net {
        NetSlice::Ipv4(slice) => tcp.calc_checksum_ipv4(slice.header().source(), slice.header().destination())?,
        NetSlice::Ipv6(slice) => tcp.to_header().calc_checksum_ipv6(&slice.header().to_header(), tcp.payload())?,
        NetSlice::Arp(_) => bail!("TCP over ARP"),
    })
}

/// Zero over IPv4 (V-004), right over IPv6 (V-005).
fn check_outer_udp(udp: &UdpSlice<'_>, net: &NetSlice<'_>) -> Result<()> {
    let zero = matches!(net, NetSlice::Ipv4(_)) && udp.checksum() == 0;
    ensure!(zero || udp.checksum() == udp_sum(udp, net)?, "outer UDP checksum {:#06x}", udp.checksum());
    Ok(())
}

/// The inner packet of VXLAN.
fn inside(link: [[u8; 6]; 2], outer: Outer, bytes: &[u8]) -> Result<Packet> {
    let (header, frame) = bytes.split_at_checked(VXLAN_BYTES).context("no VXLAN header")?;
    let [flags, 0, 0, 0, high, middle, low, 0] = *header else { bail!("VXLAN header {header:02x?}") };
    ensure!(flags == VXLAN_FLAGS, "VXLAN flags {flags:#04x} (V-001)");
    let inner = read_layer(frame, false).context("inside VXLAN")?.context("neither TCP nor UDP inside VXLAN")?;
    let vni = u32::from_be_bytes([0, high, middle, low]);
    Ok(Packet { link, outer: Some(Outer { vni, ..outer }), ..inner })
}

/// Compares what arrived at the gateway with what left it in the same direction, each packet one hop further.
///
/// # Errors
/// When a packet is missing, was sent more than once, or came from nowhere; the text shows the first.
pub(super) fn compare<'a>(
    arrived: impl Iterator<Item = &'a Packet>,
    left: impl Iterator<Item = &'a Packet>,
) -> Result<()> {
    let mut balance: BTreeMap<Content, i64> = BTreeMap::new();
    for packet in arrived {
        let expected = Content { hops: packet.content.hops.saturating_sub(1), ..packet.content.clone() };
        *balance.entry(expected).or_default() += 1;
    }
    for packet in left {
        *balance.entry(packet.content.clone()).or_default() -= 1;
    }
    balance.retain(|_, count| *count != 0);
    let Some((content, count)) = balance.first_key_value() else { return Ok(()) };
    let what = if *count > 0 { "did not leave" } else { "left and had not arrived" };
    bail!("{} kinds of packet out of balance; {} times one {what}: {content:?}", balance.len(), count.abs());
}

/// Compares flows on both sides of the translation: packets of one leave as packets of one, and of no other.
///
/// A packet's content tells which one of the other side it is, except where two are alike. An RST is left out: a client
/// sends one to a pod that still has an old connection at the translated port, then its SYN again, and that begins anew
/// (N-087).
///
/// # Errors
/// When a flow was translated in two ways, or two in one; the text tells each of its packets.
pub(super) fn compare_flows(arrived: &[&Packet], left: &[&Packet]) -> Result<()> {
    let mut by_content: BTreeMap<Content, Vec<&Packet>> = BTreeMap::new();
    for packet in arrived {
        let content = Content { hops: packet.content.hops.saturating_sub(1), ..packet.content.clone() };
        by_content.entry(content).or_default().push(packet);
    }
    let mut pairs = Vec::new();
    for after in left {
        if let Some([before]) = by_content.get(&after.content).map(Vec::as_slice)
            && !after.content.is_reset()
        {
            pairs.push((before.flow(), after.flow(), *after));
        }
    }
    let mut forth = BTreeMap::new();
    let mut back = BTreeMap::new();
    for (before, after, _) in &pairs {
        let (other_after, other_before) =
            (forth.entry(*before).or_insert(*after), back.entry(*after).or_insert(*before));
        if other_after != after || other_before != before {
            let of_these = pairs.iter().filter(|(one, other, _)| one == before || other == after);
            let told: Vec<String> =
                of_these.map(|(from, to, packet)| format!("{from:?} as {to:?}: {:?}", packet.content)).collect();
            bail!("a flow is not translated into one:\n{}", told.join("\n"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

    fn udp(is_ipv4: bool, hops: u8, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(MACS[0], MACS[1]);
        let network =
            if is_ipv4 { link.ipv4([192, 0, 2, 1], [192, 0, 2, 2], hops) } else { link.ipv6([1; 16], [2; 16], hops) };
        let mut bytes = Vec::new();
        network.udp(from, to).write(&mut bytes, payload).unwrap();
        bytes
    }

    fn tcp(is_ipv4: bool, hops: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(MACS[0], MACS[1]);
        let network =
            if is_ipv4 { link.ipv4([192, 0, 2, 1], [192, 0, 2, 2], hops) } else { link.ipv6([1; 16], [2; 16], hops) };
        let mut bytes = Vec::new();
        network.tcp(1000, 80, sequence, 500).ack(7).write(&mut bytes, payload).unwrap();
        bytes
    }

    fn vxlan(is_ipv4: bool, inner: &[u8]) -> Vec<u8> {
        udp(is_ipv4, 64, 50_000, VXLAN_PORT, &[&[8, 0, 0, 0, 0, 0, 1, 0], inner].concat())
    }

    fn packet(bytes: &[u8]) -> Packet {
        read(bytes).unwrap().unwrap()
    }

    #[test]
    fn every_byte_of_a_packet_is_covered() {
        for is_ipv4 in [true, false] {
            let plain = [udp(is_ipv4, 63, 1000, 53, b"who?"), tcp(is_ipv4, 63, 1, b"who?")];
            let wrapped = plain.clone().map(|inner| vxlan(is_ipv4, &inner));
            for bytes in plain.iter().chain(&wrapped) {
                let right = packet(bytes);
                for at in 0..bytes.len() {
                    let mut wrong = bytes.clone();
                    wrong[at] ^= 0x10;
                    // Found out by a checksum or a length, or seen: what is read differs.
                    let seen = read(&wrong).ok().flatten().is_none_or(|packet| packet != right);
                    // The class and label of the first IPv6 header are under no checksum and nobody's business here.
                    let unread = !is_ipv4 && (15..18).contains(&at);
                    assert!(seen || unread, "byte {at} of {bytes:02x?}");
                }
            }
        }
    }

    #[test]
    fn what_is_inside_is_read() {
        for is_ipv4 in [true, false] {
            let seen = packet(&vxlan(is_ipv4, &udp(is_ipv4, 63, 1000, 53, b"who?")));
            assert_eq!(seen.outer.as_ref().map(|outer| (outer.vni, outer.hops)), Some((1, 64)));
            assert_eq!((seen.source.port(), seen.target.port(), seen.content.hops), (1000, 53, 63));
            assert_eq!((seen.link, seen.inner_link), (MACS, MACS));
        }
        let by_chance = packet(&vxlan(true, &udp(true, 63, 5353, VXLAN_PORT, b"an answer")));
        assert_eq!((by_chance.target.port(), by_chance.content.payload.as_slice()), (VXLAN_PORT, &b"an answer"[..]));
    }

    #[test]
    fn a_zero_outer_checksum_is_right_over_ipv4_only() {
        for (is_ipv4, at) in [(true, 14 + 20 + 6), (false, 14 + 40 + 6)] {
            let mut bytes = vxlan(is_ipv4, &udp(is_ipv4, 63, 1000, 53, b"who?"));
            bytes[at..at + 2].fill(0);
            assert_eq!(read(&bytes).is_ok(), is_ipv4, "V-004, V-005");
        }
    }

    #[test]
    fn both_forms_of_a_zero_tcp_checksum_are_right() {
        let zero = (0..=u16::MAX).map(|sequence| tcp(true, 63, sequence.into(), b""));
        let mut bytes = zero.into_iter().find(|bytes| bytes[14 + 20 + 16..][..2] == [0, 0]).unwrap();
        let right = packet(&bytes);
        bytes[14 + 20 + 16..][..2].fill(0xff);
        assert_eq!(packet(&bytes), right);
        bytes[14 + 20 + 16..][..2].fill(0x01);
        assert!(read(&bytes).is_err());
    }

    #[test]
    fn losses_copies_and_changes_are_found() {
        let arrived = [tcp(true, 64, 1, b"a"), tcp(true, 64, 2, b"b"), tcp(true, 64, 2, b"b")].map(|one| packet(&one));
        let left = [tcp(true, 63, 2, b"b"), tcp(true, 63, 1, b"a"), tcp(true, 63, 2, b"b")].map(|one| packet(&one));
        compare(arrived.iter(), left.iter()).unwrap();
        let error = |arrived: &[Packet], left: &[Packet]| compare(arrived.iter(), left.iter()).unwrap_err().to_string();
        assert!(error(&arrived, &left[..2]).contains("did not leave"));
        assert!(error(&arrived[..2], &left).contains("had not arrived"));
        let changed = packet(&tcp(true, 63, 1, b"A"));
        assert!(error(&arrived, &[changed, left[0].clone(), left[2].clone()]).starts_with("2 kinds"));
        assert!(error(&arrived, &arrived).contains("out of balance"), "one hop further");
    }

    #[test]
    fn a_flow_is_translated_into_one() {
        let moved = |bytes: &[u8], port: u16| {
            let mut packet = packet(bytes);
            packet.source.set_port(port);
            packet
        };
        let [a, b, c] = [1, 2, 3].map(|sequence| tcp(true, 64, sequence, b""));
        let [x, y, z] = [1, 2, 3].map(|sequence| tcp(true, 63, sequence, b""));
        let arrived = [moved(&a, 1), moved(&b, 1), moved(&c, 2)];
        let outcome = |ports: [u16; 3]| {
            let left = [moved(&x, ports[0]), moved(&y, ports[1]), moved(&z, ports[2])];
            compare_flows(&arrived.each_ref(), &left.each_ref())
        };
        outcome([7, 7, 8]).unwrap();
        assert!(outcome([7, 9, 8]).unwrap_err().to_string().contains("not translated into one"));
        outcome([7, 7, 7]).unwrap_err();

        // The same with an RST in the place of `b`, which may go the old way.
        let reset = |hops: u8, port: u16| {
            let mut packet = moved(&tcp(true, hops, 2, b""), port);
            packet.content.header[9] = 0x04;
            packet
        };
        let arrived = [moved(&a, 1), reset(64, 1)];
        compare_flows(&arrived.each_ref(), &[moved(&x, 7), reset(63, 9)].each_ref()).unwrap();
    }
}
