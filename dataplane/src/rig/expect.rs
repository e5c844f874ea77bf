//! Expectations: what left, byte for byte, and exactly what was counted.
//!
//! Owns the comparison of a rig's output with sketches, and of its counters with what a test says moved; everything
//! else that moved fails the test and the whole state is printed. Refuses to know what is right: tests say that.
//!
//! `turns` and `idle_turns` are the rig's own doing and are compared with it, not listed by tests.

use std::collections::BTreeMap;
use std::net::IpAddr;

use etherparse::{Ipv4Header, Ipv6Header, UdpHeader};

use super::sketch::{self, Sketch};
use super::{LAN, LAN_MAC, Net, PORT, Rig, VNI, VTEP_MAC, WAN, WAN_MAC, mapped, peer_mac, peer_vtep_mac};
use crate::counters::Event;
use crate::table::DeviceId;

/// What varies in the outer headers of a VXLAN packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Outer UDP source port (V-003).
    pub source_port: u16,
    /// Outer identification over IPv4 (V-006); zero over IPv6.
    pub id: u16,
    /// Outer TOS or traffic class.
    pub tos: u8,
}

/// The VXLAN frame that carries `inner` between these ends, in full: etherparse writes the headers and checksums.
pub fn vxlan(macs: ([u8; 6], [u8; 6]), ends: (IpAddr, IpAddr), outer: Outer, vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend_from_slice(&(vni << 8).to_be_bytes());
    payload.extend_from_slice(inner);
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let mut packet = Vec::new();
    let (ethertype, udp) = match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let udp = UdpHeader::without_ipv4_checksum(outer.source_port, PORT, payload.len()).unwrap_or_default();
            let protocol = etherparse::IpNumber::UDP;
            let mut ip = Ipv4Header::new(length + 8, 64, protocol, from.octets(), to.octets()).unwrap_or_default();
            (ip.identification, ip.dont_fragment) = (outer.id, false);
            ip.dscp = etherparse::IpDscp::try_new(outer.tos >> 2).unwrap_or_default();
            ip.ecn = etherparse::IpEcn::try_new(outer.tos & 3).unwrap_or_default();
            ip.header_checksum = ip.calc_header_checksum();
            packet.extend_from_slice(&ip.to_bytes());
            (0x0800, udp)
        }
        (from, to) => {
            let ip = Ipv6Header {
                traffic_class: outer.tos,
                payload_length: length + 8,
                next_header: etherparse::IpNumber::UDP,
                hop_limit: 64,
                source: mapped(from),
                destination: mapped(to),
                ..Ipv6Header::default()
            };
            packet.extend_from_slice(&ip.to_bytes());
            let udp = UdpHeader::with_ipv6_checksum(outer.source_port, PORT, &ip, &payload).unwrap_or_default();
            (0x86dd, udp)
        }
    };
    packet.extend_from_slice(&udp.to_bytes());
    packet.extend_from_slice(&payload);
    sketch::ethernet(macs, ethertype, &packet)
}

/// The frame in which peer `n` sends us `inner`, an IP packet.
pub fn from_peer(net: Net, n: u8, inner: &Sketch) -> Vec<u8> {
    from_peer_with(net, n, 0, inner)
}

/// The same, with this outer TOS.
pub fn from_peer_with(net: Net, n: u8, tos: u8, inner: &Sketch) -> Vec<u8> {
    let outer = Outer { source_port: 50_000, id: 7, tos };
    let inner = inner.frame((peer_vtep_mac(n), VTEP_MAC));
    vxlan((peer_mac(n), LAN_MAC), (net.peer(n), net.underlay()), outer, VNI, &inner)
}

impl Rig {
    /// Gives the worker a frame on `device` and lets it turn once.
    pub fn rx(&mut self, device: DeviceId, frame: &[u8]) {
        assert!(self.inject(device, frame), "no room for the frame");
        self.turn();
    }

    /// Gives the worker a packet from the clients' router and lets it turn once.
    pub fn rx_wan(&mut self, packet: &Sketch) {
        self.rx(WAN, &packet.frame(super::FROM_ROUTER));
    }

    /// Gives the worker a packet out of the overlay, from peer `n`, and lets it turn once.
    pub fn rx_overlay(&mut self, net: Net, n: u8, packet: &Sketch) {
        self.rx(LAN, &from_peer(net, n, packet));
    }

    /// The one frame that was sent, on `device`.
    pub fn sent_one(&mut self, device: DeviceId) -> Vec<u8> {
        let other = if device == WAN { LAN } else { WAN };
        let strays = self.sent(other);
        let mut sent = self.sent(device);
        let state = self.told();
        assert!(strays.is_empty(), "sent on the other device: {strays:02x?}\n{state}");
        assert_eq!(sent.len(), 1, "frames sent\n{sent:02x?}\n{state}");
        sent.pop().unwrap_or_default()
    }

    /// Nothing was sent anywhere.
    #[track_caller]
    pub fn expect_silence(&mut self) {
        let sent = (self.sent(WAN), self.sent(LAN));
        assert!(sent.0.is_empty() && sent.1.is_empty(), "sent {sent:02x?}\n{}", self.told());
    }

    /// Exactly this frame was sent, on `device`.
    #[track_caller]
    pub fn expect_frame(&mut self, device: DeviceId, expected: &[u8]) {
        let sent = self.sent_one(device);
        same(&sent, expected, &self.told());
    }

    /// Exactly this packet was sent to the clients' router.
    #[track_caller]
    pub fn expect_wan(&mut self, packet: &Sketch) {
        self.expect_frame(WAN, &packet.frame((WAN_MAC, super::ROUTER_MAC)));
    }

    /// Exactly this packet was sent to peer `n` in VXLAN. A source port of zero in the sketch means any from 1024 on;
    /// returns that port and what varies outside.
    #[track_caller]
    pub fn expect_overlay(&mut self, net: Net, n: u8, packet: &Sketch) -> (u16, Outer) {
        let sent = self.sent_one(LAN);
        let told = self.told();
        expect_overlay(net, n, packet, &sent, &told)
    }

    /// Exactly these counters moved since the last time, by exactly so much, and the books balance.
    #[track_caller]
    pub fn expect_counted(&mut self, expected: &[(&str, u64)]) {
        let expected: BTreeMap<&str, u64> = expected.iter().copied().collect();
        let moved = self.moved();
        assert_eq!(moved, expected, "left: what moved, right: what the test says\n{}", self.told());
        self.expect_balance();
    }

    /// What moved since the last time this was asked.
    pub fn moved(&mut self) -> BTreeMap<&'static str, u64> {
        let now = self.worker.counters().nonzero();
        let turns = self.worker.counters().events(Event::Turns);
        assert_eq!(turns, self.turns, "turns are counted");
        let own = [Event::Turns.name(), Event::IdleTurns.name()];
        let before = std::mem::replace(&mut self.seen, now.clone());
        let difference = |(name, value): (&'static str, u64)| (name, value - before.get(name).copied().unwrap_or(0));
        now.into_iter().filter(|(name, _)| !own.contains(name)).map(difference).filter(|(_, n)| *n != 0).collect()
    }

    /// Design 9: rx + generated = tx completed + tx rejected + dropped + consumed + to kernel + held, the left side and
    /// what was sent from the ports, the rest from the worker.
    #[track_caller]
    pub fn expect_balance(&self) {
        let (came, went) = self.books();
        assert_eq!(came, went, "the books do not balance\n{}", self.told());
    }

    /// Both sides of the books.
    pub fn books(&self) -> (u64, u64) {
        let counters = self.worker.counters();
        let mut came = counters.events(Event::Generated);
        let mut went = counters.dropped() + counters.events(Event::Consumed) + counters.events(Event::ToKernel);
        for exit in &self.worker.exits.ports {
            let port = exit.port.counters();
            came += port.rx_packets;
            went += port.tx_completed + port.tx_rejected;
        }
        (came, went + self.worker.held())
    }

    /// Stops the worker and takes everything apart: every frame must come home.
    #[track_caller]
    pub fn expect_all_frames_home(self) {
        let Rig { mut worker, peers, pool, .. } = self;
        worker.stop();
        drop((worker, peers));
        assert_eq!(pool.outstanding(), 0, "frames leaked");
    }

    /// Counters and flows, for a test that fails.
    pub fn told(&self) -> String {
        let mut text = format!("counters: {:?}\n", self.worker.counters().nonzero());
        let state = self.worker.state();
        state.v4.visit(0, 16, |_, entry| text.push_str(&format!("{entry:?}\n")));
        state.v6.visit(0, 16, |_, entry| text.push_str(&format!("{entry:?}\n")));
        text
    }
}

/// As [`Rig::expect_overlay`], about one frame.
#[track_caller]
pub fn expect_overlay(net: Net, n: u8, packet: &Sketch, sent: &[u8], told: &str) -> (u16, Outer) {
    let Some((_, outer, sent_inner)) = super::into_peer(sent) else { panic!("no VXLAN: {sent:02x?}\n{told}") };
    let outer = read_outer(outer);
    let mut packet = packet.clone();
    if packet.from.1 == 0
        && matches!(packet.body, sketch::Body::Tcp { .. } | sketch::Body::Udp { .. } | sketch::Body::Sctp { .. })
    {
        packet.from.1 = inner_source_port(sent_inner);
        assert!(packet.from.1 >= 1024, "a privileged source port (N-004)");
    }
    assert!(outer.source_port >= 49_152, "RFC 7348 section 5");
    let inner = packet.frame((VTEP_MAC, peer_vtep_mac(n)));
    // What leaves from the source that clients share is numbered by the gateway (N-046).
    let inner = if packet.from.0 == net.source() { as_identified(sent_inner, &inner) } else { inner };
    // V-017, V-008: the ECN bits go outside, CE as ECT(0); DSCP stays inside.
    let ecn = if packet.tos & 3 == 3 { 2 } else { packet.tos & 3 };
    assert_eq!(outer.tos, ecn, "outer TOS\n{told}");
    let expected = vxlan((LAN_MAC, peer_mac(n)), (net.underlay(), net.peer(n)), outer, VNI, &inner);
    same(sent, &expected, told);
    (packet.from.1, outer)
}

/// Identification of the IPv4 packet in a frame.
pub fn identification(frame: &[u8]) -> Option<u16> {
    let is_ipv4 = frame.get(12..14) == Some(&[8, 0]);
    frame.get(18..20).filter(|_| is_ipv4).and_then(|id| id.try_into().ok()).map(u16::from_be_bytes)
}

/// An expected frame with the identification of the one that was sent, if that is an IPv4 packet that may be cut: what such a
/// packet leaves with is for the gateway to say. Tests of that look at it themselves (`dataplane/tests/golden/identification.rs`).
fn as_identified(sent: &[u8], expected: &[u8]) -> Vec<u8> {
    let mut frame = expected.to_vec();
    let may_be_cut = identification(&frame).is_some() && frame.get(20).is_some_and(|flags| flags & 0x40 == 0);
    let Some(id) = identification(sent).filter(|_| may_be_cut) else { return frame };
    let Some(Ok((header, _))) = frame.get(14..).map(Ipv4Header::from_slice) else { return frame };
    let mut header = Ipv4Header { identification: id, ..header };
    header.header_checksum = header.calc_header_checksum();
    let bytes = header.to_bytes();
    if let Some(place) = frame.get_mut(14..14 + bytes.len()) {
        place.copy_from_slice(&bytes);
    }
    frame
}

fn read_outer(packet: &[u8]) -> Outer {
    let byte = |at: usize| packet.get(at).copied().unwrap_or(0);
    let word = |at: usize| u16::from_be_bytes([byte(at), byte(at + 1)]);
    if byte(0) >> 4 == 4 {
        Outer { source_port: word(20), id: word(4), tos: byte(1) }
    } else {
        Outer { source_port: word(40), id: 0, tos: (word(0) >> 4 & 0xff) as u8 }
    }
}

fn inner_source_port(frame: &[u8]) -> u16 {
    let words = frame.get(14).map_or(5, |byte| usize::from(byte & 15));
    let at = if frame.get(12) == Some(&8) { 14 + 4 * words } else { 54 };
    frame.get(at..at + 2).and_then(|port| port.try_into().ok()).map_or(0, u16::from_be_bytes)
}

/// Both frames are equal byte for byte, but for the identification of a packet that may be cut; if not, both are shown as etherparse reads them.
#[track_caller]
pub fn same(sent: &[u8], expected: &[u8], told: &str) {
    let expected = &as_identified(sent, expected)[..];
    if sent != expected {
        let at = sent.iter().zip(expected).position(|(left, right)| left != right);
        panic!(
            "another frame was sent (lengths {} and {}, first difference at {at:?})\nsent:     {:#?}\nexpected: {:#?}\n{told}",
            sent.len(),
            expected.len(),
            etherparse::PacketHeaders::from_ethernet_slice(sent),
            etherparse::PacketHeaders::from_ethernet_slice(expected),
        );
    }
}
