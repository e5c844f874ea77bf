//! Frames from a mould: made once for each size, then filled in for each packet.
//!
//! Owns what the generator's packets look like. A template has everything but the addresses and ports of its flow and the
//! [`Stamp`], which are zero in it, as they are in its sums; so a packet costs a copy, those fields, and their sum. Each
//! frame is written whole: one that comes back from a kernel may hold anything.
//!
//! The stamp is the beginning of the payload, in network order:
//!
//! ```text
//!  0      2      4        6             10                  18
//!  | "TG" | trial | stream |  sequence   |  sent, nanoseconds |
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};
use etherparse::PacketBuilder;
use tidegate_io::Frame;

use crate::pktgen::flows::{FLOWS_MAX, Order};
use crate::pktgen::layout::{ETHERNET_BYTES, VXLAN_BYTES, add, fold};
use crate::pktgen::size::{FCS_BYTES, SIZE_BYTES_MIN, Sizes};

/// Bytes of a [`Stamp`].
pub const STAMP_BYTES: usize = 18;
/// Smallest frame in memory.
const FRAME_BYTES_MIN: usize = (SIZE_BYTES_MIN - FCS_BYTES) as usize;
/// What a stamp begins with.
const MARK: [u8; 2] = *b"TG";
/// Streams at most: packets of one stream are numbered, and expected in order.
pub const STREAMS_MAX: u32 = 1 << 16;
/// Ports that a source address has before the next one is used.
const PORTS_PER_ADDRESS: u32 = 16_384;
/// First source port.
const FIRST_PORT: u16 = 1024;
/// First source port of VXLAN (RFC 7348, section 5: 49152 to 65535).
const FIRST_OUTER_PORT: u16 = 49_152;

/// What is measured by: written by the generator, read by the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the trial, so that stragglers of the last one are told from packets of this one.
    pub trial: u16,
    /// Number of the stream, a flow or several.
    pub stream: u16,
    /// Number of the packet in its stream, from 0.
    pub sequence: u32,
    /// When it was sent, on the monotonic clock of the sender.
    pub sent_ns: u64,
}

impl Stamp {
    fn to_bytes(self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..2].copy_from_slice(&MARK);
        bytes[2..4].copy_from_slice(&self.trial.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.stream.to_be_bytes());
        bytes[6..10].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[10..].copy_from_slice(&self.sent_ns.to_be_bytes());
        bytes
    }

    /// The stamp at the beginning of a payload.
    #[inline]
    pub fn read(payload: &[u8]) -> Option<Stamp> {
        let bytes: &[u8; STAMP_BYTES] = payload.first_chunk()?;
        let (trial, stream) = (u16::from_be_bytes([bytes[2], bytes[3]]), u16::from_be_bytes([bytes[4], bytes[5]]));
        let sequence = u32::from_be_bytes([bytes[6], bytes[7], bytes[8], bytes[9]]);
        let sent_ns = u64::from_be_bytes(*bytes.last_chunk()?);
        (bytes[..2] == MARK).then_some(Stamp { trial, stream, sequence, sent_ns })
    }
}

/// What packets carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// UDP datagrams.
    Udp,
    /// TCP segments with the ACK flag: for what knows no connections, or has seen their handshakes.
    Tcp,
    /// TCP segments with the SYN flag and, if they are to be measured, payload.
    TcpSyn,
}

impl Protocol {
    fn header_bytes(self) -> usize {
        if self == Protocol::Udp { 8 } else { 20 }
    }
}

/// The tunnel that packets are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Endpoint that sends.
    pub local: IpAddr,
    /// Endpoint that receives.
    pub remote: IpAddr,
    /// UDP port of the receiving endpoint.
    pub port: u16,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Link-layer source of the inner frame.
    pub inner_source: [u8; 6],
    /// Link-layer destination of the inner frame.
    pub inner_destination: [u8; 6],
}

/// All of what is sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Traffic {
    /// Link-layer source.
    pub source_mac: [u8; 6],
    /// Link-layer destination.
    pub destination_mac: [u8; 6],
    /// Sources come from the addresses after this one.
    pub sources: IpAddr,
    /// Where to.
    pub target: SocketAddr,
    /// So many addresses from the target's on are targets, flow by flow.
    pub targets: u32,
    /// What packets carry.
    pub protocol: Protocol,
    /// Sizes on the wire.
    pub sizes: Sizes,
    /// Distinct flows.
    pub flows: u32,
    /// Number of the first of them: another one makes other flows.
    pub first_flow: u32,
    /// In which order flows come.
    pub order: Order,
    /// The tunnel, if there is one.
    pub tunnel: Option<Tunnel>,
    /// What chance begins with.
    pub seed: u64,
    /// Packets carry a [`Stamp`]; otherwise they carry nothing, and are as small as they can be.
    pub stamped: bool,
}

impl Traffic {
    /// Source address and port of a flow.
    pub fn source(&self, flow: u32) -> SocketAddr {
        let flow = flow.wrapping_add(self.first_flow);
        let port = FIRST_PORT + u16::try_from(flow % PORTS_PER_ADDRESS).unwrap_or(0);
        SocketAddr::new(plus(self.sources, 1 + flow / PORTS_PER_ADDRESS), port)
    }

    /// Where a flow goes.
    pub fn target(&self, flow: u32) -> SocketAddr {
        SocketAddr::new(plus(self.target.ip(), flow % self.targets.max(1)), self.target.port())
    }

    /// Streams that flows make: a flow each, as long as there are numbers.
    pub fn streams(&self) -> u32 {
        self.flows.min(STREAMS_MAX)
    }

    /// Bytes of a frame before its payload.
    fn headers(&self) -> usize {
        let ip = |v6: bool| if v6 { 40 } else { 20 };
        let inner = ETHERNET_BYTES + ip(self.target.is_ipv6()) + self.protocol.header_bytes();
        let around = |tunnel: &Tunnel| ETHERNET_BYTES + ip(tunnel.remote.is_ipv6()) + VXLAN_BYTES;
        inner + self.tunnel.as_ref().map_or(0, around)
    }

    /// Smallest frame on the wire that has room for headers and stamp, in bytes.
    pub fn size_bytes_min(&self) -> u16 {
        let stamp = if self.stamped { STAMP_BYTES } else { 0 };
        u16::try_from(self.headers() + stamp).unwrap_or(u16::MAX).saturating_add(FCS_BYTES)
    }

    fn check(&self) -> Result<()> {
        ensure!(self.sources.is_ipv4() == self.target.is_ipv4(), "sources and target must be of one family");
        ensure!((1..=FLOWS_MAX).contains(&self.flows), "flows are 1 to {FLOWS_MAX}, not {}", self.flows);
        ensure!((1..=FLOWS_MAX).contains(&self.targets), "targets are 1 to {FLOWS_MAX}, not {}", self.targets);
        if let Some(tunnel) = &self.tunnel {
            ensure!(tunnel.local.is_ipv4() == tunnel.remote.is_ipv4(), "a tunnel's ends must be of one family");
            ensure!(tunnel.vni < 1 << 24, "a VXLAN network identifier has 24 bits");
        }
        Ok(())
    }
}

/// An address so many further.
fn plus(address: IpAddr, step: u32) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4).wrapping_add(step)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6).wrapping_add(u128::from(step))).into(),
    }
}

/// A frame of one size with zeroes where packets differ, and its sums.
#[derive(Debug, Clone)]
struct Template {
    bytes: Vec<u8>,
    /// Sums of what stays the same: IPv4 header, UDP or TCP, and UDP of the tunnel.
    network: u32,
    transport: u32,
    outer: u32,
}

/// Makes frames of one [`Traffic`].
#[derive(Debug, Clone)]
pub struct Mould {
    traffic: Traffic,
    templates: Vec<Template>,
    /// Which template is next, again and again.
    cycle: Vec<usize>,
    /// Offset of the innermost IP header.
    network: usize,
    /// Offset of UDP's or TCP's header in it.
    transport: usize,
    /// Offset of the checksum in there.
    checksum: usize,
    /// Offset of the outer UDP header, and whether it has a checksum.
    outer: Option<(usize, bool)>,
}

impl Mould {
    /// Templates for every size. Sizes too small for headers and stamp are raised to [`Traffic::size_bytes_min`].
    ///
    /// # Errors
    /// When the traffic contradicts itself.
    pub fn new(traffic: &Traffic) -> Result<Mould> {
        traffic.check()?;
        let sizes = traffic.sizes.at_least(traffic.size_bytes_min());
        let mut different = sizes.cycle().to_vec();
        different.sort_unstable();
        different.dedup();
        let templates = different.iter().map(|size| template(traffic, *size)).collect::<Result<Vec<_>>>()?;
        let cycle = sizes.cycle().iter().filter_map(|size| different.binary_search(size).ok()).collect();
        let transport = traffic.headers() - traffic.protocol.header_bytes();
        let network = transport - if traffic.target.is_ipv6() { 40 } else { 20 };
        let checksum = transport + if traffic.protocol == Protocol::Udp { 6 } else { 16 };
        let outer = traffic.tunnel.as_ref().map(|tunnel| {
            let v6 = tunnel.remote.is_ipv6();
            (ETHERNET_BYTES + if v6 { 40 } else { 20 }, v6)
        });
        Ok(Mould { traffic: traffic.clone(), templates, cycle, network, transport, checksum, outer })
    }

    /// What it makes frames of.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Bytes of packet `number` on the wire, check sequence included.
    pub fn size_bytes(&self, number: u64) -> u64 {
        self.template(number).map_or(0, |template| template.bytes.len() as u64 + u64::from(FCS_BYTES))
    }

    #[inline]
    fn template(&self, number: u64) -> Option<&Template> {
        let place = usize::try_from(number % self.cycle.len().max(1) as u64).unwrap_or(0);
        self.templates.get(*self.cycle.get(place)?)
    }

    /// Bytes of the largest packet on the wire, check sequence included.
    pub fn size_bytes_max(&self) -> u64 {
        let largest = self.templates.iter().map(|template| template.bytes.len()).max();
        largest.map_or(0, |bytes| bytes as u64 + u64::from(FCS_BYTES))
    }

    /// Makes `frame` packet `number`, which belongs to `flow`; false if a frame cannot hold it.
    #[inline]
    #[must_use]
    pub fn write(&self, frame: &mut Frame, number: u64, flow: u32, stamp: Stamp) -> bool {
        let Some(template) = self.template(number) else { return false };
        if !frame.fill(&template.bytes) {
            return false;
        }
        self.fill_in(frame.bytes_mut(), template, flow, stamp);
        true
    }

    /// Frames of so many bytes that packet `number` fills.
    #[inline]
    pub fn frames(&self, number: u64, capacity: usize) -> usize {
        self.template(number).map_or(0, |template| template.bytes.len().div_ceil(capacity.max(1)))
    }

    /// Makes `frames`, as many as [`Mould::frames`] says, packet `number`, which belongs to `flow`; false if they cannot
    /// hold it, or one is left over.
    ///
    /// What differs between packets has to lie in the first of them, as in any frame of a kernel.
    #[must_use]
    pub fn write_over(&self, frames: &mut [Frame], number: u64, flow: u32, stamp: Stamp) -> bool {
        let Some(template) = self.template(number) else { return false };
        let mut rest = &template.bytes[..];
        for frame in frames.iter_mut() {
            let (piece, after) = rest.split_at(rest.len().min(frame.capacity()));
            if piece.is_empty() || !frame.fill(piece) {
                return false;
            }
            rest = after;
        }
        let variable = self.traffic.headers() + if self.traffic.stamped { STAMP_BYTES } else { 0 };
        match frames.first_mut() {
            Some(first) if rest.is_empty() && first.len() >= variable => {
                self.fill_in(first.bytes_mut(), template, flow, stamp);
                true
            }
            _ => false,
        }
    }

    /// Fills in what differs between packets.
    #[inline]
    fn fill_in(&self, bytes: &mut [u8], template: &Template, flow: u32, stamp: Stamp) {
        let (source, target) = (self.traffic.source(flow), self.traffic.target(flow));
        let addresses = match (source.ip(), target.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let both = [from.octets(), to.octets()];
                let words = put(bytes, self.network + 12, both.as_flattened());
                put(bytes, self.network + 10, &(!fold(template.network + words)).to_be_bytes());
                words
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                put(bytes, self.network + 8, [from.octets(), to.octets()].as_flattened())
            }
            _ => 0,
        };
        let port = put(bytes, self.transport, &source.port().to_be_bytes());
        let payload = self.transport + self.traffic.protocol.header_bytes();
        let stamped = if self.traffic.stamped { put(bytes, payload, &stamp.to_bytes()) } else { 0 };
        let mut sum = !fold(template.transport + addresses + port + stamped);
        if self.traffic.protocol == Protocol::Udp && sum == 0 {
            // RFC 768: a sum of zero is sent as all ones.
            sum = 0xffff;
        }
        let summed = put(bytes, self.checksum, &sum.to_be_bytes());
        if let Some((outer, has_checksum)) = self.outer {
            // What spreads packets over queues: as many ports as flows, as far as ports go.
            let port = FIRST_OUTER_PORT + u16::try_from(flow % u32::from(u16::MAX - FIRST_OUTER_PORT)).unwrap_or(0);
            let port = put(bytes, outer, &port.to_be_bytes());
            if has_checksum {
                let network = if self.traffic.target.is_ipv4() {
                    add(0, &bytes[self.network + 10..self.network + 12])
                } else {
                    0
                };
                let inner = network + addresses + u32::from(source.port()) + stamped + summed;
                let sum = !fold(template.outer + port + inner);
                put(bytes, outer + 6, &if sum == 0 { 0xffff } else { sum }.to_be_bytes());
            }
        }
    }
}

/// Puts bytes at their place and returns their sum.
#[inline]
fn put(bytes: &mut [u8], at: usize, what: &[u8]) -> u32 {
    if let Some(place) = bytes.get_mut(at..at + what.len()) {
        place.copy_from_slice(what);
    }
    add(0, what)
}

/// The frame of one size, by etherparse, with zeroes where packets differ.
fn template(traffic: &Traffic, size_bytes: u16) -> Result<Template> {
    let content = usize::from(size_bytes - FCS_BYTES) - traffic.headers();
    let mut payload = vec![0x2e; if traffic.stamped { content } else { 0 }];
    if let Some(stamp) = payload.get_mut(..STAMP_BYTES) {
        stamp.fill(0);
    }
    let macs = match &traffic.tunnel {
        Some(tunnel) => (tunnel.inner_source, tunnel.inner_destination),
        None => (traffic.source_mac, traffic.destination_mac),
    };
    let link = PacketBuilder::ethernet2(macs.0, macs.1);
    let network = match traffic.target.is_ipv6() {
        false => link.ipv4([0; 4], [0; 4], 64),
        true => link.ipv6([0; 16], [0; 16], 64),
    };
    let mut bytes = Vec::new();
    match traffic.protocol {
        Protocol::Udp => network.udp(0, traffic.target.port()).write(&mut bytes, &payload)?,
        Protocol::Tcp => network.tcp(0, traffic.target.port(), 1, 65_535).ack(1).write(&mut bytes, &payload)?,
        Protocol::TcpSyn => network.tcp(0, traffic.target.port(), 0, 65_535).syn().write(&mut bytes, &payload)?,
    }
    let v6 = traffic.target.is_ipv6();
    let transport = ETHERNET_BYTES + if v6 { 40 } else { 20 };
    let checksum = transport + if traffic.protocol == Protocol::Udp { 6 } else { 16 };
    // A sum that is zeroed is found again as the sum of the rest.
    let own = |bytes: &mut [u8], at: usize| {
        let sum = !u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        bytes[at..at + 2].fill(0);
        u32::from(sum)
    };
    let network = if v6 { 0 } else { own(&mut bytes, ETHERNET_BYTES + 10) };
    let transport = own(&mut bytes, checksum);
    // Padding of Ethernet, where a packet without a stamp is shorter than a frame.
    bytes.resize(bytes.len().max(FRAME_BYTES_MIN), 0);
    let Some(tunnel) = &traffic.tunnel else { return Ok(Template { bytes, network, transport, outer: 0 }) };
    let [_, high, middle, low] = tunnel.vni.to_be_bytes();
    let inner = [&[0x08, 0, 0, 0, high, middle, low, 0], &bytes[..]].concat();
    let link = PacketBuilder::ethernet2(traffic.source_mac, traffic.destination_mac);
    let around = match (tunnel.local, tunnel.remote) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => anyhow::bail!("a tunnel's ends must be of one family"),
    };
    let mut whole = Vec::new();
    around.udp(0, tunnel.port).write(&mut whole, &inner)?;
    let at = ETHERNET_BYTES + if tunnel.remote.is_ipv6() { 40 } else { 20 } + 6;
    // V-005: over IPv4 none, over IPv6 there must be one.
    let outer = own(&mut whole, at);
    Ok(Template { bytes: whole, network, transport, outer })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pktgen::layout;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use tidegate_io::{HugePages, Pool};

    /// Traffic of one kind between benchmark addresses.
    pub(crate) fn traffic(v6: bool, protocol: Protocol, tunnel: Option<bool>, sizes: &str) -> Traffic {
        let ends = |v6: bool| -> (IpAddr, IpAddr) {
            if v6 {
                ("2001:db8:2::1".parse().unwrap(), "2001:db8:2::11".parse().unwrap())
            } else {
                ("198.51.100.1".parse().unwrap(), "198.51.100.11".parse().unwrap())
            }
        };
        Traffic {
            source_mac: [2, 0, 0, 0, 1, 0x10],
            destination_mac: [2, 0, 0, 0, 1, 1],
            sources: if v6 { "2001:2::".parse().unwrap() } else { "198.18.0.0".parse().unwrap() },
            target: if v6 { "[2001:db8:f::10]:80".parse().unwrap() } else { "203.0.113.10:80".parse().unwrap() },
            targets: 3,
            protocol,
            sizes: sizes.parse().unwrap(),
            flows: 1000,
            first_flow: 0,
            order: Order::Uniform,
            tunnel: tunnel.map(|v6| Tunnel {
                local: ends(v6).0,
                remote: ends(v6).1,
                port: 8472,
                vni: 77,
                inner_source: [2, 0, 0, 0, 9, 1],
                inner_destination: [2, 0, 0, 0, 9, 2],
            }),
            seed: 5,
            stamped: true,
        }
    }

    /// Every kind of traffic: both families, three protocols, plain or in a tunnel of either family.
    pub(crate) fn every_kind(sizes: &str) -> Vec<Traffic> {
        let mut all = Vec::new();
        for v6 in [false, true] {
            for protocol in [Protocol::Udp, Protocol::Tcp, Protocol::TcpSyn] {
                all.extend([None, Some(false), Some(true)].map(|tunnel| traffic(v6, protocol, tunnel, sizes)));
            }
        }
        all
    }

    /// Sender, receiver and payload of a frame, after etherparse has agreed with every length and sum in it.
    fn read(bytes: &[u8]) -> (SocketAddr, SocketAddr, Vec<u8>) {
        let packet = SlicedPacket::from_ethernet(bytes).unwrap();
        let (from, to): (IpAddr, IpAddr) = match packet.net.as_ref().unwrap() {
            NetSlice::Ipv4(slice) => {
                let header = slice.header().to_header();
                assert_eq!(header.calc_header_checksum(), header.header_checksum);
                (header.source.into(), header.destination.into())
            }
            NetSlice::Ipv6(slice) => (slice.header().source_addr().into(), slice.header().destination_addr().into()),
            other => panic!("{other:?}"),
        };
        let (v4, v6) = match packet.net.as_ref().unwrap() {
            NetSlice::Ipv4(slice) => (Some(slice.header().to_header()), None),
            NetSlice::Ipv6(slice) => (None, Some(slice.header().to_header())),
            other => panic!("{other:?}"),
        };
        match packet.transport.unwrap() {
            TransportSlice::Udp(udp) => {
                let sum = match (&v4, &v6) {
                    (Some(v4), _) if udp.checksum() != 0 => {
                        udp.to_header().calc_checksum_ipv4(v4, udp.payload()).unwrap()
                    }
                    (_, Some(v6)) => udp.to_header().calc_checksum_ipv6(v6, udp.payload()).unwrap(),
                    _ => 0,
                };
                assert_eq!(sum, udp.checksum());
                (
                    SocketAddr::new(from, udp.source_port()),
                    SocketAddr::new(to, udp.destination_port()),
                    udp.payload().to_vec(),
                )
            }
            TransportSlice::Tcp(tcp) => {
                let header = tcp.to_header();
                let sum = match (&v4, &v6) {
                    (Some(v4), _) => header.calc_checksum_ipv4(v4, tcp.payload()).unwrap(),
                    (_, Some(v6)) => header.calc_checksum_ipv6(v6, tcp.payload()).unwrap(),
                    _ => 0,
                };
                assert_eq!(sum, tcp.checksum());
                (
                    SocketAddr::new(from, tcp.source_port()),
                    SocketAddr::new(to, tcp.destination_port()),
                    tcp.payload().to_vec(),
                )
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_frame_is_right_to_the_last_sum() {
        let pool = Pool::new(64, 4096, HugePages::Off).unwrap();
        let mut magazine = pool.magazine();
        let mut frame = magazine.take().unwrap();
        for traffic in every_kind("imix") {
            let mould = Mould::new(&traffic).unwrap();
            for number in 0..300_u64 {
                let flow = u32::try_from(number * 7 % 1000).unwrap();
                let stamp = Stamp {
                    trial: 3,
                    stream: 9,
                    sequence: 70_000 + flow,
                    sent_ns: (u64::MAX / 3).wrapping_mul(number),
                };
                assert!(mould.write(&mut frame, number, flow, stamp));
                assert_eq!(frame.len() as u64 + 4, mould.size_bytes(number));
                let (mut from, mut to, mut payload) = read(frame.bytes());
                if let Some(tunnel) = &traffic.tunnel {
                    assert_eq!((from.ip(), to), (tunnel.local, SocketAddr::new(tunnel.remote, 8472)));
                    assert!(from.port() >= FIRST_OUTER_PORT);
                    // V-005, and RFC 7348's header: a network identifier, flags 8.
                    let no_sum = frame.bytes()[40..42] == [0, 0];
                    assert_eq!(no_sum, tunnel.remote.is_ipv4());
                    assert_eq!(payload[..8], [8, 0, 0, 0, 0, 0, 77, 0]);
                    (from, to, payload) = read(&payload[8..]);
                }
                assert_eq!((from, to), (traffic.source(flow), traffic.target(flow)));
                assert_eq!(Stamp::read(&payload), Some(stamp));
            }
        }
        magazine.give(frame);
    }

    /// A packet in several frames has the bytes of the same packet in one.
    #[test]
    fn packets_over_several_frames_are_the_same_packets() {
        let (small, large) =
            (Pool::new(64, 4096, HugePages::Off).unwrap(), Pool::new(64, 16_384, HugePages::Off).unwrap());
        let (mut pieces, mut whole) = (small.magazine(), large.magazine());
        let mut one = whole.take().unwrap();
        for traffic in every_kind("64:1,3844:1,3845:1,7684:1,7685:1,9000:2") {
            let mould = Mould::new(&traffic).unwrap();
            assert_eq!(mould.size_bytes_max(), 9000);
            for number in 0..7 {
                let stamp = Stamp { trial: 3, stream: 9, sequence: 70_000, sent_ns: 0x1234_5678_9abc_def0 + number };
                assert!(mould.write(&mut one, number, 5, stamp));
                assert_eq!(one.len() as u64 + 4, mould.size_bytes(number));
                let mut told = read(one.bytes());
                if traffic.tunnel.is_some() {
                    told = read(&told.2[8..]);
                }
                assert_eq!((told.0, Stamp::read(&told.2)), (traffic.source(5), Some(stamp)));
                let count = mould.frames(number, 4096 - 256);
                assert_eq!(count, one.len().div_ceil(3840));
                let mut frames: Vec<Frame> = std::iter::from_fn(|| pieces.take()).take(count).collect();
                assert!(mould.write_over(&mut frames, number, 5, stamp));
                let joined: Vec<u8> = frames.iter().flat_map(|frame| frame.bytes().to_vec()).collect();
                assert_eq!(joined, one.bytes());
                // Neither fewer frames nor more.
                assert!(!mould.write_over(&mut frames[1..], number, 5, stamp));
                frames.extend(pieces.take());
                assert!(!mould.write_over(&mut frames, number, 5, stamp));
                frames.into_iter().for_each(|frame| pieces.give(frame));
            }
        }
        whole.give(one);
    }

    #[test]
    fn sizes_are_those_of_the_wire_and_raised_where_headers_need_more() {
        let plain = Mould::new(&traffic(false, Protocol::Udp, None, "imix")).unwrap();
        let sizes: Vec<u64> = (0..12).map(|number| plain.size_bytes(number)).collect();
        assert_eq!((sizes.iter().filter(|size| **size == 64).count(), sizes.iter().max()), (7, Some(&1518)));
        let v6 = Mould::new(&traffic(true, Protocol::Udp, None, "64")).unwrap();
        assert_eq!(v6.size_bytes(0), 14 + 40 + 8 + 18 + 4);
        let tunnel = Mould::new(&traffic(false, Protocol::Udp, Some(false), "64")).unwrap();
        assert_eq!(tunnel.size_bytes(0), 64 + 50);
    }

    #[test]
    fn packets_without_a_stamp_are_whole_too() {
        let pool = Pool::new(64, 2048, HugePages::Off).unwrap();
        let mut magazine = pool.magazine();
        let mut frame = magazine.take().unwrap();
        for mut traffic in every_kind("64") {
            traffic.stamped = false;
            let mould = Mould::new(&traffic).unwrap();
            assert!(mould.write(&mut frame, 0, 4, Stamp { trial: 1, stream: 1, sequence: 1, sent_ns: 1 }));
            let layout = layout::find(frame.bytes()).unwrap();
            assert!(layout.is_intact(frame.bytes()) && layout.payload == layout.end, "{traffic:?}");
            read(frame.bytes());
        }
        magazine.give(frame);
    }

    #[test]
    fn flows_differ_and_another_first_flow_makes_others() {
        let mut one = traffic(true, Protocol::Udp, None, "100");
        one.flows = 40_000;
        let all: std::collections::BTreeSet<SocketAddr> = (0..40_000).map(|flow| one.source(flow)).collect();
        assert_eq!(all.len(), 40_000);
        one.first_flow = 40_000;
        assert!((0..40_000).all(|flow| !all.contains(&one.source(flow))));
        assert_eq!(one.target(5).ip().to_string(), "2001:db8:f::12");
    }

    #[test]
    fn contradictions_are_refused() {
        let mut mixed = traffic(false, Protocol::Udp, None, "64");
        mixed.sources = "2001:2::".parse().unwrap();
        assert!(Mould::new(&mixed).unwrap_err().to_string().contains("one family"));
        let mut wide = traffic(false, Protocol::Udp, Some(false), "200");
        wide.tunnel.as_mut().unwrap().vni = 1 << 24;
        assert!(Mould::new(&wide).unwrap_err().to_string().contains("24 bits"));
    }
}
