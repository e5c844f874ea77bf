//! The packet generator: 64-byte frames of many flows, sent through a port, counted exactly.
//!
//! Owns what a flood looks like and its count; refuses to know devices, which are the port's business. It is bounded in
//! frames and in time, and it paces itself, so that a lab on a busy machine measures bookkeeping and not luck.
//!
//! Every frame is written whole, headers and all: a frame that comes back from the kernel may hold anything. The made-up
//! clients live in benchmark networks behind a next hop that does not exist (see [`topology`](crate::topology)), so no
//! kernel answers what the gateway sends to them and the gateway's device sees the generator's frames and no others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use etherparse::PacketBuilder;
use serde::{Deserialize, Serialize};
use tidegate_io::{BATCH_MAX, Batch, Magazine, Port, PortCounters};

use crate::topology::{FLOOD_NET_V4, FLOOD_NET_V6};

/// Smallest Ethernet frame, without the check sequence that no memory holds: a "64-byte frame" on the wire.
pub const FRAME_BYTES_MIN: usize = 60;
/// Longest wait for completions after the last frame was accepted.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);
/// Pause while nothing is due or the device has all the frames.
const PAUSE: Duration = Duration::from_micros(200);
/// Flows that differ in source port before the source address moves on.
const PORTS_PER_ADDRESS: u32 = 16_384;
/// First source port.
const FIRST_PORT: u16 = 1024;

/// What the frames carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Payload {
    /// UDP datagrams.
    Udp,
    /// TCP SYN segments.
    TcpSyn,
}

/// One flood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flood {
    /// Link-layer source.
    pub source_mac: [u8; 6],
    /// Link-layer destination: the gateway's device.
    pub destination_mac: [u8; 6],
    /// Where to: a VIP and port of either family.
    pub target: SocketAddr,
    /// What the frames carry.
    pub payload: Payload,
    /// Number of distinct flows; frame `n` belongs to flow `n % flows`.
    pub flows: u32,
    /// Frames to send.
    pub count: u64,
    /// Frames per second at most; 0: as fast as the port takes them.
    pub rate_per_s: u64,
    /// Longest time for the whole flood.
    pub limit: Duration,
}

/// What became of a flood.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Frames the port took.
    pub accepted: u64,
    /// Frames whose sending the device completed. The figure to compare with what the other side received.
    pub completed: u64,
    /// Frames the port refused for good.
    pub rejected: u64,
    /// Milliseconds from the first frame to the last completion.
    pub took_ms: u64,
}

impl Flood {
    /// Source address and port of a flow.
    pub fn source(&self, flow: u32) -> SocketAddr {
        let port = FIRST_PORT + u16::try_from(flow % PORTS_PER_ADDRESS).unwrap_or(0);
        let host = 1 + flow / PORTS_PER_ADDRESS;
        let address: IpAddr = match self.target {
            SocketAddr::V4(_) => Ipv4Addr::from(u32::from(FLOOD_NET_V4) + host).into(),
            SocketAddr::V6(_) => Ipv6Addr::from(u128::from(FLOOD_NET_V6) + u128::from(host)).into(),
        };
        SocketAddr::new(address, port)
    }

    /// Writes frame `number` whole into `bytes` (cleared first): at least [`FRAME_BYTES_MIN`] bytes, all checksums right.
    ///
    /// # Errors
    /// Never for the packets made here; etherparse's own otherwise.
    pub fn write(&self, number: u64, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.clear();
        let flow = u32::try_from(number % u64::from(self.flows.max(1)))?;
        let source = self.source(flow);
        let link = PacketBuilder::ethernet2(self.source_mac, self.destination_mac);
        let network = match (source.ip(), self.target.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
            _ => bail!("source and target of one family"),
        };
        match self.payload {
            Payload::Udp => network.udp(source.port(), self.target.port()).write(bytes, &self.padding())?,
            Payload::TcpSyn => {
                // Sequence numbers tell two SYNs of one flow apart from a retransmission.
                let sequence = u32::try_from(number & u64::from(u32::MAX))?;
                let segment = network.tcp(source.port(), self.target.port(), sequence, 65_535);
                segment.syn().write(bytes, &[])?;
            }
        }
        // Ethernet padding, not part of the IP packet.
        bytes.resize(bytes.len().max(FRAME_BYTES_MIN), 0);
        Ok(())
    }

    /// Datagram content that fills the frame to 60 bytes: 18 over IPv4, none over IPv6, whose headers need 62.
    fn padding(&self) -> Vec<u8> {
        let headers = if self.target.is_ipv4() { 14 + 20 + 8 } else { 14 + 40 + 8 };
        vec![0x2e; FRAME_BYTES_MIN.saturating_sub(headers)]
    }

    /// Sends the flood through `port`, with frames from `magazine`, and waits for the completions.
    ///
    /// The pool behind `magazine` must hold more frames than the port's fill ring, which takes its share first.
    ///
    /// # Errors
    /// When the time limit passes, or completions stay out; the text says how far it came.
    pub fn send(&self, port: &mut impl Port, magazine: &mut Magazine) -> Result<Sent> {
        let tally = Tally { before: port.counters(), began: Instant::now() };
        let mut batch = Batch::new();
        let sent = self.send_all(port, magazine, &mut batch, &tally);
        // Frames have owners to the end, also after a failure.
        batch.drain(..).for_each(|frame| magazine.give(frame));
        sent?;
        tally.wait_for_completions(port, magazine, self.count)
    }

    fn send_all(&self, port: &mut impl Port, magazine: &mut Magazine, batch: &mut Batch, tally: &Tally) -> Result<()> {
        let mut bytes = Vec::new();
        let mut written = 0;
        while written < self.count || !batch.is_empty() {
            if tally.began.elapsed() > self.limit {
                bail!("flood not sent within {} s: {:?}", self.limit.as_secs_f32(), tally.sent(port));
            }
            let due = self.due(tally.began.elapsed()).min(self.count);
            while written < due && batch.len() < BATCH_MAX {
                self.write(written, &mut bytes)?;
                let Some(mut frame) = magazine.take() else { break };
                let fits = frame.fill(&bytes);
                batch.push(frame);
                if !fits {
                    bail!("a frame holds fewer than {} bytes", bytes.len());
                }
                written += 1;
            }
            if batch.is_empty() {
                std::thread::sleep(PAUSE);
            }
            port.tx(batch);
            port.kick();
            port.recycle(magazine);
        }
        Ok(())
    }

    /// Frames that may have gone out after this much time.
    fn due(&self, elapsed: Duration) -> u64 {
        match self.rate_per_s {
            0 => u64::MAX,
            rate => u64::try_from(elapsed.as_micros() * u128::from(rate) / 1_000_000).unwrap_or(u64::MAX),
        }
    }
}

/// The port's counters since a flood began.
struct Tally {
    before: PortCounters,
    began: Instant,
}

impl Tally {
    fn sent(&self, port: &impl Port) -> Sent {
        let now = port.counters();
        Sent {
            accepted: now.tx_packets - self.before.tx_packets,
            completed: now.tx_completed - self.before.tx_completed,
            rejected: now.tx_rejected - self.before.tx_rejected,
            took_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn wait_for_completions(&self, port: &mut impl Port, magazine: &mut Magazine, count: u64) -> Result<Sent> {
        let drained_by = Instant::now() + DRAIN_LIMIT;
        loop {
            let sent = self.sent(port);
            if sent.completed == sent.accepted && sent.accepted + sent.rejected >= count {
                return Ok(sent);
            }
            if Instant::now() > drained_by {
                bail!("completions stay out: {sent:?}");
            }
            port.kick();
            port.recycle(magazine);
            std::thread::sleep(PAUSE);
        }
    }
}

/// Six octets of a link-layer address in text form.
///
/// # Errors
/// When the text is none.
pub fn mac(text: &str) -> Result<[u8; 6]> {
    let address: tidegate_api::resource::MacAddress = text.parse().context("link-layer address")?;
    Ok(address.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use std::collections::BTreeSet;
    use tidegate_io::{HugePages, Pool, memory};

    fn flood(target: &str, payload: Payload) -> Flood {
        Flood {
            source_mac: mac("02:00:00:00:01:10").unwrap(),
            destination_mac: mac("02:00:00:00:01:01").unwrap(),
            target: target.parse().unwrap(),
            payload,
            flows: 40_000,
            count: 0,
            rate_per_s: 0,
            limit: Duration::from_secs(20),
        }
    }

    /// Source of a frame, after etherparse has agreed with every length and checksum in it.
    fn source_of(bytes: &[u8], flood: &Flood) -> SocketAddr {
        let packet = SlicedPacket::from_ethernet(bytes).unwrap();
        let net = packet.net.unwrap();
        let (address, target, checksum_error) = match &net {
            NetSlice::Ipv4(slice) => {
                let header = slice.header().to_header();
                assert_eq!(header.calc_header_checksum(), header.header_checksum);
                let wrong = match packet.transport.as_ref().unwrap() {
                    TransportSlice::Udp(udp) => {
                        udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap() != udp.checksum()
                    }
                    TransportSlice::Tcp(tcp) => {
                        tcp.calc_checksum_ipv4(slice.header().source(), slice.header().destination()).unwrap()
                            != tcp.checksum()
                    }
                    other => panic!("{other:?}"),
                };
                (IpAddr::from(header.source), IpAddr::from(header.destination), wrong)
            }
            NetSlice::Ipv6(slice) => {
                let header = slice.header().to_header();
                let wrong = match packet.transport.as_ref().unwrap() {
                    TransportSlice::Udp(udp) => {
                        udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap() != udp.checksum()
                    }
                    TransportSlice::Tcp(tcp) => {
                        let header = tcp.to_header();
                        header.calc_checksum_ipv6(&slice.header().to_header(), tcp.payload()).unwrap() != tcp.checksum()
                    }
                    other => panic!("{other:?}"),
                };
                (IpAddr::from(header.source), IpAddr::from(header.destination), wrong)
            }
            other => panic!("{other:?}"),
        };
        assert!(!checksum_error, "L4 checksum");
        let (from, to) = match packet.transport.unwrap() {
            TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
            TransportSlice::Tcp(tcp) => {
                assert!(tcp.syn() && !tcp.ack() && !tcp.rst());
                (tcp.source_port(), tcp.destination_port())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(SocketAddr::new(target, to), flood.target);
        SocketAddr::new(address, from)
    }

    const ALL: [(&str, Payload, usize); 4] = [
        ("203.0.113.11:53", Payload::Udp, 60),
        ("203.0.113.10:80", Payload::TcpSyn, 60),
        ("[2001:db8:f::11]:53", Payload::Udp, 62),
        ("[2001:db8:f::10]:80", Payload::TcpSyn, 74),
    ];

    #[test]
    fn frames_are_right_and_flows_are_distinct() {
        for (target, payload, length) in ALL {
            let flood = flood(target, payload);
            let mut sources = BTreeSet::new();
            let mut bytes = Vec::new();
            for number in (0..40_000).step_by(79) {
                flood.write(number, &mut bytes).unwrap();
                assert_eq!(bytes.len(), length, "{target}");
                assert!(sources.insert(source_of(&bytes, &flood)), "{target}: flow {number} twice");
                let first = bytes.clone();
                flood.write(number, &mut bytes).unwrap();
                assert_eq!(first, bytes);
            }
            flood.write(40_000, &mut bytes).unwrap();
            assert_eq!(source_of(&bytes, &flood), flood.source(0));
        }
    }

    #[test]
    fn every_frame_sent_is_counted_and_comes_home() {
        for (target, payload, _) in ALL {
            let pool = Pool::new(1024, 2048, HugePages::Off).unwrap();
            let (mut port, mut peer) = memory::pair(&pool, memory::Config::default());
            let flood = Flood { count: 5_000, flows: 100, ..flood(target, payload) };
            let mut magazine = pool.magazine();
            let stop = std::sync::atomic::AtomicBool::new(false);
            let seen = std::thread::scope(|scope| {
                let sink = scope.spawn(|| {
                    let mut seen = Vec::new();
                    loop {
                        match peer.take_sent() {
                            Some(bytes) => seen.push(source_of(&bytes, &flood)),
                            None if stop.load(std::sync::atomic::Ordering::Relaxed) => return seen,
                            None => std::thread::yield_now(),
                        }
                    }
                });
                let sent = flood.send(&mut port, &mut magazine);
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                let sent = sent.unwrap();
                assert_eq!((sent.accepted, sent.completed, sent.rejected), (5_000, 5_000, 0));
                sink.join().unwrap()
            });
            let expected: Vec<SocketAddr> = (0..5_000).map(|number| flood.source(number % 100)).collect();
            assert_eq!(seen, expected, "in order, each once");
        }
    }

    #[test]
    fn a_flood_nobody_takes_ends_by_its_limit() {
        let pool = Pool::new(64, 2048, HugePages::Off).unwrap();
        let (mut port, _peer) = memory::pair(&pool, memory::Config { ring_entries: 8, ..memory::Config::default() });
        let flood = Flood { count: 1_000, limit: Duration::from_millis(20), ..flood("203.0.113.11:53", Payload::Udp) };
        let error = flood.send(&mut port, &mut pool.magazine()).unwrap_err().to_string();
        assert!(error.contains("not sent within"), "{error}");
    }
}
