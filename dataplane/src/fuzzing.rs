//! Bodies of the fuzz targets: what must hold whatever bytes come.
//!
//! Owns one function per target of `fuzz/`, a scene (a rig with live flows of both families), and frames of every kind
//! to begin from. Tests run the same bodies over the committed corpus and over random changes of it. Each panics when
//! something does not hold and returns nothing else. Refuses to know where bytes come from.

use std::net::IpAddr;
use std::sync::OnceLock;

use crate::counters::Event;
use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::Key;
use crate::pipeline::{self, Moment, Silent};
use crate::rig::expect::{Outer, from_peer, vxlan};
use crate::rig::outside::{self, Outside};
use crate::rig::sketch::{self, Sketch, Trouble};
use crate::rig::{self, FROM_ROUTER, LAN, LAN_MAC, Net, ROUTER_MAC, Rig, VNI, VTEP_MAC, WAN};
use crate::stage::parse::{self, Ingress};
use crate::state::{State, Tuple};
use crate::table::decap::Decap;
use crate::table::{DeviceId, Tables};
use crate::wire::checksum::Delta;
use crate::wire::ethernet::Mac;
use crate::wire::packet::{L3, l4_checksum_verifies, parse_l3, parse_l3_accepting_zero_udp6};
use crate::wire::{self, arp, edit, ethernet, gue, ipv4, ipv6, ndp, quote, tcp, udp, vxlan as vxlan_header};

/// Every parser of the wire on any bytes: no panic, offsets inside the packet, and no disagreement with etherparse.
pub fn parse(bytes: &[u8]) {
    let _ = arp::Repr::parse(bytes);
    let _ = vxlan_header::parse(bytes);
    let _ = gue::parse(bytes).map(|gue| assert!(usize::from(gue.inner_offset) <= bytes.len()));
    let _ = tcp::parse(bytes, true).map(|(header, _)| header.header_len());
    let _ = udp::parse(bytes, true);
    if let Ok(link) = ethernet::parse_ethernet(bytes) {
        assert!(usize::from(link.l3_offset) <= bytes.len());
    }
    let _ = parse_l3_accepting_zero_udp6(bytes);
    let Ok(at) = parse_l3(bytes) else { return };
    assert!(at.l4_offset <= at.total_len && usize::from(at.total_len) <= bytes.len(), "{at:?}");
    let _ = l4_checksum_verifies(bytes, &at);
    let _ = ndp::parse_solicitation(bytes, &at).map(|asked| asked.answer(Mac([2; 6]), true, true));
    let _ = ndp::parse_advertisement(bytes, &at);
    if at.is_icmp_error() {
        let message = bytes.get(usize::from(at.l4_offset)..usize::from(at.total_len)).unwrap_or_default();
        let _ = quote::parse(at.family, message);
    }
    agrees(bytes, &at);
    edited(bytes, &at);
}

/// Where etherparse sees a whole packet of the same protocol, it sees the same ports.
fn agrees(bytes: &[u8], at: &L3) {
    let Ok(sliced) = etherparse::SlicedPacket::from_ip(bytes) else { return };
    let ports = match sliced.transport {
        Some(etherparse::TransportSlice::Udp(udp)) if at.protocol == 17 => (udp.source_port(), udp.destination_port()),
        Some(etherparse::TransportSlice::Tcp(tcp)) if at.protocol == 6 => (tcp.source_port(), tcp.destination_port()),
        _ => return,
    };
    assert_eq!((at.source_port, at.destination_port), ports);
}

/// An edit there and back again leaves addresses, ports and lengths as they were; checksums that were right stay right.
fn edited(bytes: &[u8], at: &L3) {
    let mut packet = bytes.to_vec();
    let right = l4_checksum_verifies(bytes, at);
    let done = match at.family {
        wire::Family::V4 => edit::translate_v4(&mut packet, at, &far_v4()),
        wire::Family::V6 => edit::translate_v6(&mut packet, at, &far_v6()),
    };
    if done {
        let again = parse_l3(&packet).map(|again| L3 { source_port: 0, destination_port: 0, ..again });
        assert_eq!(again, Ok(L3 { source_port: 0, destination_port: 0, ..*at }), "an edit changes nothing else");
        assert!(!right || l4_checksum_verifies(&packet, at), "a right checksum stays right");
    }
}

fn far_v4() -> edit::Tuple<[u8; 4]> {
    edit::Tuple { source: [10, 1, 2, 3], destination: [10, 4, 5, 6], source_port: 1025, destination_port: 8080 }
}

fn far_v6() -> edit::Tuple<[u8; 16]> {
    edit::Tuple { source: [0xfd; 16], destination: [0xfc; 16], source_port: 1025, destination_port: 8080 }
}

/// A quote in an ICMP error (first bit of the first byte: family), read and rewritten: the new tuple is read back, and
/// an ICMP checksum that was right stays right.
pub fn quoted(bytes: &[u8]) {
    let Some((first, message)) = bytes.split_first() else { return };
    if first & 1 == 0 { quoted_v4(message) } else { quoted_v6(message) }
}

fn quoted_v4(message: &[u8]) {
    let Ok(quote) = quote::parse(wire::Family::V4, message) else { return };
    let sum = |bytes: &[u8]| wire::checksum::Sum::ZERO.bytes(bytes).verifies();
    let (right, to) = (sum(message), far_v4());
    let mut rewritten = message.to_vec();
    if !quote::rewrite_v4(&mut rewritten, &quote, &to) {
        return;
    }
    let again = quote::parse(wire::Family::V4, &rewritten).map(|quote| quote.tuple_v4());
    let Ok(Some(again)) = again else { panic!("a rewritten quote cannot be read: {again:?}") };
    assert_eq!((again.source, again.destination), (to.source, to.destination));
    assert!(!right || sum(&rewritten), "the outer checksum follows");
    assert_eq!(rewritten.len(), message.len());
}

fn quoted_v6(message: &[u8]) {
    let Ok(quote) = quote::parse(wire::Family::V6, message) else { return };
    let to = far_v6();
    let mut rewritten = message.to_vec();
    let sum = |bytes: &[u8]| wire::checksum::Sum::ZERO.bytes(bytes).verifies();
    let right = sum(message);
    if !quote::rewrite_v6(&mut rewritten, &quote, &to, Delta::NONE) {
        return;
    }
    let again = quote::parse(wire::Family::V6, &rewritten).map(|quote| quote.tuple_v6());
    let Ok(Some(again)) = again else { panic!("a rewritten quote cannot be read: {again:?}") };
    assert_eq!((again.source, again.destination), (to.source, to.destination));
    // Without pseudo header here: what changed is what the delta says, whatever the rest sums to.
    assert!(!right || sum(&rewritten), "the outer checksum follows");
}

/// The contract: any bytes are a message or an error, and what was understood is said again and understood the same.
pub fn contract(bytes: &[u8]) {
    said_again::<tidegate_api::message::Request>(bytes);
    said_again::<tidegate_api::message::Response>(bytes);
}

fn said_again<M: serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug>(bytes: &[u8]) {
    let mut reader = bytes;
    while let Ok(message) = tidegate_api::frame::read::<M>(&mut reader) {
        let mut said = Vec::new();
        if tidegate_api::frame::write(&mut said, &message).is_ok() {
            let again = tidegate_api::frame::read::<M>(&mut said.as_slice());
            let Ok(again) = again else { panic!("what was said is not understood: {message:?}") };
            assert_eq!(format!("{again:?}"), format!("{message:?}"));
        }
    }
}

/// A heartbeat: any bytes are a message or refused, with whatever tag they came and with the right one, and there is one
/// encoding of each message.
pub fn heartbeat(bytes: &[u8]) {
    use crate::gateways::key::Keys;
    use crate::gateways::message::Message;
    let Ok(keys) = Keys::parse(HEARTBEAT_KEY) else { panic!("a key that is none") };
    let _ = Message::decode(bytes, &keys);
    // The tag would stop nearly all of it: whoever has the key may say anything.
    let mut sealed = bytes.to_vec();
    let length = u16::try_from(sealed.len()).unwrap_or(u16::MAX);
    if let Some(place) = sealed.get_mut(6..8) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    sealed.extend(keys.tag(&sealed));
    if let Ok(message) = Message::decode(&sealed, &keys) {
        assert_eq!(message.encode(&keys), sealed, "{message:?}");
    }
}

/// The key of [`heartbeat`].
pub const HEARTBEAT_KEY: &str = "the key of the fuzz target";

/// A frame to begin from: what it is, where it arrives, its bytes.
pub type Specimen = (String, DeviceId, Vec<u8>);

/// A rig with one live TCP, one live UDP and one live SCTP flow of each family, and what must hold of it at any moment.
pub struct Scene {
    /// The rig.
    pub rig: Rig,
    /// Source ports of the flows: per family, TCP, UDP and SCTP.
    pub ports: [[u16; 3]; 2],
    /// External ports of the pod's flows: by family, TCP and UDP.
    pub external_ports: [[u16; 2]; 2],
    balanced: (u64, u64),
}

/// UDP port of GUE that ends at the gateway's own addresses.
const GUE: u16 = 6080;

/// Who sends into tunnels that end here.
fn balancer(net: Net) -> IpAddr {
    net.client(60_000)
}

/// Tables with TCP 80, UDP 53 and SCTP 3868 of `vip(1)` on two pods, TCP 81 and UDP 54 without any, an announced `vip(200)`,
/// TCP 80, UDP 53 and SCTP 3868 of `vip(4)` delivered to nodes, and tunnels that end at the gateway's own addresses.
pub fn tables() -> Tables {
    let mut tables = rig::tables();
    for (base, net) in [(0, Net::BOTH[0]), (10, Net::BOTH[1])] {
        let pods = |port| [(net.pod(0, 5), port, 1), (net.pod(1, 6), port, 1)];
        rig::add_service(&mut tables, base + 1, net.vip(1), 80, 6, &pods(8080));
        rig::add_service(&mut tables, base + 2, net.vip(1), 53, 17, &pods(5353));
        rig::add_service(&mut tables, base + 3, net.vip(1), 81, 6, &[]);
        rig::add_service(&mut tables, base + 4, net.vip(1), 54, 17, &[]);
        rig::add_service(&mut tables, base + 5, net.vip(200), 80, 6, &pods(8080));
        rig::add_service(&mut tables, base + 8, net.vip(4), 80, 6, &pods(8080));
        rig::add_service(&mut tables, base + 9, net.vip(4), 53, 17, &pods(5353));
        rig::add_service(&mut tables, sctp_id(base), net.vip(1), 3868, 132, &pods(9868));
        rig::add_service(&mut tables, sctp_id(base) + 1, net.vip(4), 3868, 132, &pods(9868));
        deliver(&mut tables, base, &[(0, 1), (1, 1)]);
    }
    let mut outside = Outside::default();
    outside.pod(&mut tables, "shop/out", &Net::BOTH.map(OUTSIDE_POD), &["out"]);
    outside.policy(&mut tables, "out", Some(&outside::policy(&Net::BOTH.map(EXTERNAL))));
    let ends = Decap::new(&Net::BOTH.map(Net::gateway), &Net::BOTH.map(|net| balancer(net).into()), GUE);
    std::sync::Arc::make_mut(&mut tables.locals).set_decap(Some(ends.into()));
    tables.settings.reject_rate_per_s = 1_000_000;
    tables
}

/// A pod under an egress policy, of peer 0.
const OUTSIDE_POD: fn(Net) -> IpAddr = |net| net.pod(0, 6);
/// What the outside sees of it.
const EXTERNAL: fn(Net) -> IpAddr = |net| outside::external(net, 1);

/// Delivers what goes to `vip(4)` to these nodes: number of the peer, weight (0: not proven). `base` is 0 for IPv4, 10 for
/// IPv6.
pub fn deliver(tables: &mut Tables, base: u32, nodes: &[(u8, u16)]) {
    (8..10).for_each(|id| rig::deliver_to_nodes(tables, base + id, nodes));
    rig::deliver_to_nodes(tables, sctp_id(base) + 1, nodes);
}

/// Number of the SCTP port of `vip(1)`; that of `vip(4)` is the next.
fn sctp_id(base: u32) -> u32 {
    20 + base / 5
}

fn client(net: Net) -> sketch::End {
    (net.client(7), 40_000)
}

impl Scene {
    /// The scene, with room for `flows` of each family.
    ///
    /// # Panics
    /// When the system has no memory, or when the flows cannot be begun.
    pub fn new(tables: Tables, flows: u32) -> Scene {
        Scene::with(tables, flows, 1)
    }

    /// The same with another seed.
    ///
    /// # Panics
    /// As [`Scene::new`].
    pub fn with(tables: Tables, flows: u32, seed: u64) -> Scene {
        Scene::sized(tables, flows, 4096, seed)
    }

    fn sized(tables: Tables, flows: u32, frames: u32, seed: u64) -> Scene {
        let Ok(rig) = Rig::with(tables, flows, frames, seed) else { panic!("no memory for a rig") };
        let mut scene = Scene { rig, ports: [[0; 3]; 2], external_ports: [[0; 2]; 2], balanced: (0, 0) };
        for net in Net::BOTH {
            let opening = [
                sketch::tcp(client(net), (net.vip(1), 80)).syn(100),
                sketch::tcp(client(net), (net.vip(1), 80)).ack(101, 501),
                sketch::udp(client(net), (net.vip(1), 53)).data(*b"who?"),
                sketch::sctp(client(net), (net.vip(1), 3868)).init(1, 9),
                sketch::sctp(client(net), (net.vip(1), 3868)).tag(8).chunk(10, 0, b"cookie"),
            ];
            for packet in &opening {
                scene.rig.rx_wan(packet);
                scene.rig.sent(LAN);
            }
            let (pod, remote) = ((OUTSIDE_POD(net), 41_000), net.client(30));
            scene.rig.rx_overlay(net, 0, &sketch::tcp(pod, (remote, 443)).syn(100));
            scene.rig.rx_overlay(net, 0, &sketch::udp(pod, (remote, 53)).data(*b"who?"));
            scene.rig.sent(WAN);
        }
        scene.learn_ports();
        scene.check();
        scene
    }

    fn learn_ports(&mut self) {
        let mut ports = [[0; 3]; 2];
        let place = |protocol| [6, 17, 132].iter().position(|number| *number == protocol).unwrap_or(0);
        let mut external = [[0; 2]; 2];
        let state = self.rig.worker.state();
        state.v4.visit(0, u32::MAX, |_, entry| {
            if entry.is_egress() {
                external[0][usize::from(entry.protocol() == 17)] = entry.translated_tuple().source_port;
            }
            if entry.original_tuple().source_port == 40_000 {
                ports[0][place(entry.protocol())] = entry.translated_tuple().source_port;
            }
        });
        state.v6.visit(0, u32::MAX, |_, entry| {
            if entry.is_egress() {
                external[1][usize::from(entry.protocol() == 17)] = entry.translated_tuple().source_port;
            }
            if entry.original_tuple().source_port == 40_000 {
                ports[1][place(entry.protocol())] = entry.translated_tuple().source_port;
            }
        });
        (self.ports, self.external_ports) = (ports, external);
    }

    /// Where the live flow of this family and protocol went: peer and pod.
    fn pod(&self, net: Net, protocol: u8) -> (u8, IpAddr) {
        let mut found = (0, net.pod(0, 5));
        let other = rig::mapped(net.pod(1, 6));
        let state = self.rig.worker.state();
        let is = |source_port: u16, of: u8| source_port == 40_000 && of == protocol;
        let mut at_other = false;
        if net == Net::BOTH[0] {
            state.v4.visit(0, u32::MAX, |_, entry| {
                let (from, to) = (entry.original_tuple(), entry.translated_tuple());
                at_other |= is(from.source_port, from.protocol) && Family::mapped(to.destination) == other;
            });
        } else {
            state.v6.visit(0, u32::MAX, |_, entry| {
                let (from, to) = (entry.original_tuple(), entry.translated_tuple());
                at_other |= is(from.source_port, from.protocol) && to.destination == other;
            });
        }
        if at_other {
            found = (1, net.pod(1, 6));
        }
        found
    }

    /// Valid frames of every kind, of both families.
    pub fn specimens(&self) -> Vec<Specimen> {
        let mut all = Vec::new();
        for (family, net) in [(0, Net::BOTH[0]), (1, Net::BOTH[1])] {
            self.on_the_wire(net, family, &mut all);
            self.in_the_overlay(net, family, &mut all);
        }
        for (family, net) in [(0, Net::BOTH[0]), (1, Net::BOTH[1])] {
            to_nodes(net, family, &mut all);
            through_tunnels(net, family, &mut all);
        }
        for (family, net) in [(0, Net::BOTH[0]), (1, Net::BOTH[1])] {
            self.to_the_outside(net, family, &mut all);
        }
        all
    }

    /// What a pod under an egress policy sends, and what comes back.
    fn to_the_outside(&self, net: Net, family: usize, all: &mut Vec<Specimen>) {
        let [tcp_port, udp_port] = self.external_ports.get(family).copied().unwrap_or_default();
        let (pod, remote, external) = ((OUTSIDE_POD(net), 41_000), net.client(30), EXTERNAL(net));
        let name = |what: &str| format!("{what} outside v{}", 4 + 2 * family);
        let mut out = |what: &str, packet: &Sketch| all.push((name(what), LAN, from_peer(net, 0, packet)));
        out("syn", &sketch::tcp((pod.0, 41_001), (remote, 443)).syn(7));
        out("segment", &sketch::tcp(pod, (remote, 443)).ack(101, 501));
        out("datagram", &sketch::udp(pod, (remote, 53)).data(*b"who?"));
        out("new datagram", &sketch::udp((pod.0, 9), (remote, 53)).data(*b"who?"));
        out("ping", &sketch::ping(pod.0, remote));
        out("hairpin datagram", &sketch::udp((pod.0, 10), (external, udp_port)).data(*b"me"));
        out("fragment", &sketch::udp(pod, (remote, 53)).data([1; 64]).fragment(0, true));
        let told = sketch::udp((remote, 53), pod).data(*b"me").packet();
        out("error back", &sketch::trouble(pod.0, remote, Trouble::Port, &told));
        let mut back = |what: &str, packet: &Sketch| all.push((name(what), WAN, packet.frame(FROM_ROUTER)));
        back("syn-ack", &sketch::tcp((remote, 443), (external, tcp_port)).syn_ack(500, 101));
        back("answer", &sketch::udp((remote, 53), (external, udp_port)).data(*b"me"));
        back("answer of another port", &sketch::udp((remote, 54), (external, udp_port)).data(*b"me"));
        back("stranger", &sketch::udp((net.client(31), 53), (external, udp_port)).data(*b"me"));
        back("pong", &sketch::pong(remote, external));
        back("ping of the address", &sketch::ping(remote, external));
        let seen = sketch::udp((external, udp_port), (remote, 53)).data(*b"who?").packet();
        back("error in", &sketch::trouble(net.client(99), external, Trouble::Time, &seen));
    }

    fn on_the_wire(&self, net: Net, family: usize, all: &mut Vec<Specimen>) {
        let (web, names, client) = ((net.vip(1), 80), (net.vip(1), 53), client(net));
        let tcp = || sketch::tcp(client, web);
        let mut add = |name: &str, packet: &Sketch| {
            all.push((format!("{name} v{}", 4 + 2 * family), WAN, packet.frame(FROM_ROUTER)));
        };
        add("syn", &sketch::tcp((net.client(8), 41_000), web).syn(7));
        add("data", &tcp().segment("PA", 101, 501).data(*b"GET / HTTP/1.1"));
        add("fin", &tcp().segment("FA", 101, 501));
        add("rst", &tcp().segment("R", 101, 0));
        add("last hop", &tcp().ack(101, 501).ttl(1));
        add("too big", &tcp().ack(101, 501).long(1500));
        add("datagram", &sketch::udp(client, names).data(*b"who?"));
        add("datagram to cut", &sketch::udp(client, names).long(1500).may_fragment());
        add("new datagram", &sketch::udp((net.client(9), 1), names).data(*b"who?"));
        add("refused segment", &sketch::tcp(client, (net.vip(1), 81)).syn(1));
        add("refused datagram", &sketch::udp(client, (net.vip(1), 54)).data(*b"x"));
        add("unknown port", &sketch::udp(client, (net.vip(1), 55)).data(*b"x"));
        add("ping", &sketch::ping(net.client(7), net.vip(1)));
        add("first fragment", &sketch::udp(client, names).data([1; 64]).fragment(0, true));
        add("later fragment", &sketch::udp(client, names).data([1; 64]).fragment(64, false));
        let association = || sketch::sctp(client, (net.vip(1), 3868)).tag(8);
        add("init", &sketch::sctp((net.client(8), 41_000), (net.vip(1), 3868)).init(1, 5));
        add("sctp data", &association().chunk(0, 3, &[1; 40]));
        add("abort", &association().chunk(4, 0, &[0, 1, 0, 4]).chunk(6, 0, &[0, 12, 0, 4]));
        add("sctp fragment", &association().chunk(0, 3, &[1; 40]).fragment(0, true));
        add("gre", &sketch::raw(net.client(7), net.vip(1), 47).data([1; 16]));
        let seen = sketch::tcp(web, client).segment("PA", 501, 101).data([7; 40]).packet();
        add("error about a segment", &sketch::trouble(net.client(99), net.vip(1), Trouble::Host, &seen));
        let seen = sketch::udp(names, client).data([7; 40]).packet();
        add("error about a datagram", &sketch::trouble(net.client(99), net.vip(1), Trouble::TooBig(1400), &seen));
        let chunk = sketch::sctp((net.vip(1), 3868), client).tag(9).chunk(0, 3, &[7; 40]).packet();
        add("error about a chunk", &sketch::trouble(net.client(99), net.vip(1), Trouble::Port, &chunk));
        let short = seen.get(..48.min(seen.len())).unwrap_or_default();
        add("error with a short quote", &sketch::trouble(net.client(99), net.vip(1), Trouble::Time, short));
        let frame = tcp().ack(101, 501).frame(FROM_ROUTER);
        let name = |what: &str| format!("{what} v{}", 4 + 2 * family);
        all.push((name("tagged"), WAN, sketch::tagged(&frame, 5)));
        all.push((name("tagged twice"), WAN, sketch::tagged(&sketch::tagged(&frame, 5), 6)));
        match net.0 {
            wire::Family::V4 => {
                let stamped = sketch::udp(client, names).data(*b"x").options(&[68, 8, 5, 0, 1, 2, 3, 4]);
                all.push((name("options"), WAN, stamped.frame(FROM_ROUTER)));
                all.push((name("arp"), WAN, arp_request(ROUTER_MAC, net.neighbour(254), net.vip(200))));
            }
            wire::Family::V6 => {
                let datagram = sketch::udp(client, names).data(*b"x").packet();
                all.push((name("extensions"), WAN, sketch::ethernet(FROM_ROUTER, 0x86dd, &extended(&datagram))));
                all.push((name("solicitation"), WAN, solicitation(ROUTER_MAC, net.neighbour(254), net.vip(200))));
            }
        }
    }

    fn in_the_overlay(&self, net: Net, family: usize, all: &mut Vec<Specimen>) {
        let [tcp_port, udp_port, sctp_port] = self.ports.get(family).copied().unwrap_or_default();
        let ((tcp_peer, tcp_pod), (udp_peer, udp_pod)) = (self.pod(net, 6), self.pod(net, 17));
        let name = |what: &str| format!("{what} out of the overlay v{}", 4 + 2 * family);
        let mut add = |what: &str, peer, packet: &Sketch| all.push((name(what), LAN, from_peer(net, peer, packet)));
        let back = sketch::tcp((tcp_pod, 8080), (net.source(), tcp_port));
        add("syn-ack", tcp_peer, &back.clone().syn_ack(500, 101));
        add("data", tcp_peer, &back.clone().segment("PA", 501, 101).data(*b"200 OK"));
        add("rst", tcp_peer, &back.segment("R", 501, 0));
        let (sctp_peer, sctp_pod) = self.pod(net, 132);
        let answer = sketch::sctp((sctp_pod, 9868), (net.source(), sctp_port)).tag(9);
        add("init ack", sctp_peer, &answer.clone().init(2, 8));
        add("cookie ack", sctp_peer, &answer.chunk(11, 0, &[]));
        add("datagram", udp_peer, &sketch::udp((udp_pod, 5353), (net.source(), udp_port)).data(*b"me"));
        let seen = sketch::udp((net.source(), udp_port), (udp_pod, 5353)).data(*b"who?").packet();
        add("error", udp_peer, &sketch::trouble(udp_pod, net.source(), Trouble::Port, &seen));
        add("hairpin", 1, &sketch::tcp((net.pod(1, 9), 33_000), (net.vip(1), 80)).syn(5));
        add("ping", 0, &sketch::ping(net.pod(0, 5), net.vtep()));
        add("fragment", 0, &sketch::udp((udp_pod, 5353), (net.source(), udp_port)).data([1; 64]).fragment(64, true));
        let outer = Outer { source_port: 50_000, id: 9, tos: 0 };
        let (macs, ends) = ((rig::peer_mac(0), LAN_MAC), (net.peer(0), net.underlay()));
        let question = match net.0 {
            wire::Family::V4 => arp_request(rig::peer_vtep_mac(0), net.pod(0, 0), net.vtep()),
            wire::Family::V6 => solicitation(rig::peer_vtep_mac(0), net.pod(0, 0), net.vtep()),
        };
        all.push((name("question"), LAN, vxlan(macs, ends, outer, VNI, &question)));
        let tagged = sketch::tagged(&question, 5);
        all.push((name("tagged question"), LAN, vxlan(macs, ends, outer, VNI, &tagged)));
        let lldp = sketch::ethernet((rig::peer_vtep_mac(0), VTEP_MAC), 0x88cc, &[0; 20]);
        all.push((name("something"), LAN, vxlan(macs, ends, outer, VNI, &lldp)));
    }

    /// Lets the worker have one frame and checks everything; the reason, if it was dropped.
    ///
    /// # Panics
    /// When anything does not hold.
    pub fn play(&mut self, device: DeviceId, frame: &[u8]) -> Option<DropReason> {
        let counters = self.rig.worker.counters();
        let before: Vec<u64> = DropReason::ALL.iter().map(|reason| counters.drops(*reason)).collect();
        let (received, dropped) = (counters.events(Event::Received), counters.dropped());
        let (sent, held) = (counters.events(Event::Sent), counters.events(Event::NeighbourHeld));
        let (made, consumed) = (counters.events(Event::Generated), counters.events(Event::Consumed));
        let waited = self.rig.worker.state().fragments.waiting() as u64;
        self.pure(device, frame);
        if !self.rig.inject(device, frame) {
            self.rig.turn();
            return None;
        }
        self.rig.turn();
        let counters = self.rig.worker.counters();
        assert_eq!(counters.events(Event::Received), received + 1);
        let ends = (counters.dropped() - dropped)
            + (counters.events(Event::Sent) - sent)
            + (counters.events(Event::NeighbourHeld) - held)
            + (counters.events(Event::Consumed) - consumed);
        // One that was cut ends, and its pieces end besides.
        let ends = ends - (counters.events(Event::Generated) - made);
        // It may wait as a fragment, and may end others that waited.
        let waits = self.rig.worker.state().fragments.waiting() as u64;
        assert_eq!(ends + waits, 1 + waited, "a frame has exactly one verdict\n{}", self.rig.told());
        let reason = DropReason::ALL.iter().zip(before).find(|(reason, n)| counters.drops(**reason) != *n);
        let reason = reason.map(|(reason, _)| *reason);
        self.check();
        reason
    }

    /// Deciding changes nothing, and decides the same when asked again, heard or not.
    fn pure(&self, device: DeviceId, bytes: &[u8]) {
        let mac = if device == WAN { rig::WAN_MAC } else { LAN_MAC };
        let tables = self.rig.publisher.current();
        let mut counters = crate::counters::Counters::default();
        let Ok(packet) = parse::run(tables, Ingress { device, mac }, bytes, &mut counters) else { return };
        let l3 = bytes.get(usize::from(packet.l3_offset)..).unwrap_or_default();
        match pipeline::classify(&packet, l3) {
            Key::None => {}
            Key::V4(tuple) => decides_alike(tables, self.rig.worker.state(), &packet, &tuple),
            Key::V6(tuple) => decides_alike(tables, self.rig.worker.state(), &packet, &tuple),
        }
    }

    /// What must hold at any moment.
    ///
    /// # Panics
    /// When it does not.
    pub fn check(&mut self) {
        self.balanced = self.rig.books();
        assert_eq!(self.balanced.0, self.balanced.1, "the books balance\n{}", self.rig.told());
        for device in [WAN, LAN] {
            for frame in self.rig.sent(device) {
                check_sent(device, &frame);
            }
        }
    }

    /// What must hold of a frame that was sent.
    ///
    /// # Panics
    /// When it does not.
    pub fn check_frame(&self, device: DeviceId, frame: &[u8]) {
        check_sent(device, frame);
    }

    /// Live and active flows per backend are what the flow tables hold (slow: visits every flow).
    ///
    /// # Panics
    /// When they differ.
    pub fn check_usage(&self) {
        let mut live = std::collections::BTreeMap::new();
        let state = self.rig.worker.state();
        let mut count = |backend, is_active| {
            let (flows, active) = live.entry(backend).or_insert((0u32, 0u32));
            (*flows, *active) = (*flows + 1, *active + u32::from(is_active));
        };
        state.v4.visit(0, u32::MAX, |_, entry| count(entry.backend, entry.state.is_active()));
        state.v6.visit(0, u32::MAX, |_, entry| count(entry.backend, entry.state.is_active()));
        let rows = |base| (base..base + 64).chain(base + 500..base + 502);
        for backend in (0..24_000).step_by(1000).flat_map(rows) {
            let (live, active) = live.get(&backend).copied().unwrap_or_default();
            let counted = (state.usage.live(backend), state.usage.connections(backend));
            assert_eq!(counted, (live, (active, live - active)), "backend {backend}");
        }
    }
}

/// What nodes deliver themselves.
fn to_nodes(net: Net, family: usize, all: &mut Vec<Specimen>) {
    let (web, names, client) = ((net.vip(4), 80), (net.vip(4), 53), client(net));
    let chunk = sketch::sctp(client, (net.vip(4), 3868)).tag(8).chunk(0, 3, &[1; 40]);
    let mut add = |name: &str, packet: &Sketch| {
        all.push((format!("{name} to a node v{}", 4 + 2 * family), WAN, packet.frame(FROM_ROUTER)));
    };
    add("syn", &sketch::tcp(client, web).syn(7));
    add("middle", &sketch::tcp((net.client(8), 1), web).segment("PA", 101, 501).data(*b"GET / HTTP/1.1"));
    add("rst", &sketch::tcp(client, web).segment("R", 101, 0));
    add("datagram", &sketch::udp(client, names).data(*b"who?"));
    add("later fragment", &sketch::udp(client, names).data([1; 64]).fragment(64, false));
    add("last hop", &sketch::udp(client, names).data(*b"who?").ttl(1));
    add("sctp data", &chunk);
    let seen = sketch::tcp(web, client).segment("PA", 501, 101).data([7; 40]).packet();
    add("error", &sketch::trouble(net.client(99), net.vip(4), Trouble::TooBig(1400), &seen));
}

/// What a load balancer in front sends in tunnels.
fn through_tunnels(net: Net, family: usize, all: &mut Vec<Specimen>) {
    let (from, to) = (balancer(net), net.gateway());
    let protocol = if family == 0 { 4 } else { 41 };
    let segment = sketch::tcp(client(net), (net.vip(1), 80)).segment("PA", 101, 501).data(*b"GET /");
    let refused = sketch::udp(client(net), (net.vip(1), 54)).data(*b"x");
    let mut add = |name: &str, packet: &Sketch| {
        all.push((format!("{name} v{}", 4 + 2 * family), WAN, packet.frame(FROM_ROUTER)));
    };
    add("ip in ip", &sketch::raw(from, to, protocol).data(segment.packet()));
    add("refused in ip", &sketch::raw(from, to, protocol).data(refused.packet()));
    add("gue", &sketch::udp((from, 31_000), (to, GUE)).data(segment.packet()));
    let header = [&[1, protocol, 0, 0, 9, 9, 9, 9][..], &segment.packet()].concat();
    add("gue with a header", &sketch::udp((from, 31_000), (to, GUE)).data(header));
}

fn decides_alike<A: Family + std::fmt::Debug + PartialEq>(
    tables: &Tables,
    state: &State,
    packet: &crate::packet::Packet,
    tuple: &Tuple<A>,
) {
    let hash = A::flows(state).hash(tuple);
    let (moment, live) = (Moment { now_ns: 1 << 40, entropy: 5 }, state.live());
    let mut steps = Vec::new();
    let first = pipeline::decide(tables, state, packet, tuple, hash, moment, &mut Silent);
    let second = pipeline::decide(tables, state, packet, tuple, hash, moment, &mut steps);
    assert_eq!(first, second);
    assert_eq!(live, state.live());
}

/// Addresses at which some scene has Services.
const SERVED: [fn(Net) -> IpAddr; 7] = [
    |net| net.vip(1),
    |net| net.vip(2),
    |net| net.vip(3),
    |net| net.vip(4),
    |net| net.vip(21),
    |net| net.vip(200),
    EXTERNAL,
];

/// The one of them that nodes deliver themselves: what is sent there keeps its client's address.
const BY_NODES: fn(Net) -> IpAddr = |net| net.vip(4);

/// S-078: nothing leaves untranslated. To the wire only Service addresses and the gateway itself speak, to the overlay
/// only our VTEP; and what leaves can be read.
///
/// # Panics
/// When it does not hold.
pub fn check_sent(device: DeviceId, frame: &[u8]) {
    let Ok(link) = ethernet::parse_ethernet(frame) else { panic!("sent {frame:02x?}") };
    if link.ethertype == ethernet::ARP {
        return;
    }
    let l3 = frame.get(usize::from(link.l3_offset)..).unwrap_or_default();
    let at = match parse_l3(l3) {
        Ok(at) => at,
        Err(malformed) => panic!("sent a packet that cannot be read, {malformed:?}: {frame:02x?}"),
    };
    let source = match at.family {
        wire::Family::V4 => ipv4::addresses(l3).0.mapped(),
        wire::Family::V6 => ipv6::addresses(l3).0,
    };
    let is = |addresses: &[fn(Net) -> IpAddr]| {
        Net::BOTH.iter().any(|net| addresses.iter().any(|address| rig::mapped(address(*net)) == source))
    };
    if rig::into_peer(frame).is_some() {
        assert!(device == LAN && is(&[Net::underlay]), "VXLAN leaves from our VTEP: {frame:02x?}");
        check_inside(frame);
    } else {
        assert!(
            is(&SERVED) || is(&[Net::gateway, Net::underlay]),
            "on device {device:?} a foreign source speaks: {frame:02x?}"
        );
    }
}

fn check_inside(frame: &[u8]) {
    let Some((_, _, inner)) = rig::into_peer(frame) else { return };
    let Ok(link) = ethernet::parse_ethernet(inner) else { panic!("inside: {inner:02x?}") };
    assert_eq!((link.source.0, link.vlan), (VTEP_MAC, None));
    if link.ethertype == ethernet::ARP {
        return;
    }
    let l3 = inner.get(usize::from(link.l3_offset)..).unwrap_or_default();
    let Ok(at) = parse_l3(l3) else { panic!("inside: {inner:02x?}") };
    assert_eq!(usize::from(at.total_len), l3.len(), "no padding travels");
    let (source, destination) = match at.family {
        wire::Family::V4 => {
            let (source, destination) = ipv4::addresses(l3);
            (source.mapped(), destination.mapped())
        }
        wire::Family::V6 => ipv6::addresses(l3),
    };
    if [BY_NODES, OUTSIDE_POD].iter().any(|of| Net::BOTH.iter().any(|net| rig::mapped(of(*net)) == destination)) {
        return;
    }
    // The gateway's own address speaks from its node ports.
    let ours: [fn(Net) -> IpAddr; 3] = [Net::source, Net::vtep, Net::gateway];
    let mut all = ours.iter().chain(&SERVED);
    let speaks = all.any(|address| Net::BOTH.iter().any(|net| rig::mapped(address(*net)) == source));
    assert!(speaks, "into the overlay a foreign source speaks: {frame:02x?}");
}

fn arp_request(mac: [u8; 6], from: IpAddr, target: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(target)) = (from, target) else { return Vec::new() };
    let request = arp::Repr {
        operation: arp::Operation::Request,
        sender_mac: Mac(mac),
        sender: from.octets(),
        target_mac: Mac([0; 6]),
        target: target.octets(),
    };
    let mut frame = vec![0; arp::FRAME_LEN];
    let _ = request.emit_frame(&mut frame, Mac::BROADCAST, None);
    frame
}

fn solicitation(mac: [u8; 6], from: IpAddr, target: IpAddr) -> Vec<u8> {
    let target = rig::mapped(target);
    let asked = ndp::Solicitation { source: rig::mapped(from), target, source_mac: Some(Mac(mac)) };
    let mut packet = vec![0; asked.len()];
    let _ = asked.emit(&mut packet);
    let group = Mac::of_ipv6_multicast(ipv6::solicited_node(target));
    sketch::ethernet((mac, group.0), 0x86dd, &packet)
}

/// A UDP packet over IPv6 with hop-by-hop and destination options before the datagram.
fn extended(packet: &[u8]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    bytes.splice(40..40, [60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0]);
    let length = u16::try_from(bytes.len() - 40).unwrap_or(0).to_be_bytes();
    (bytes[4], bytes[5], bytes[6]) = (length[0], length[1], 0);
    bytes
}

/// Makes the checksums right again after a change that somebody who damages packets could not: the IPv4 header's at `at`,
/// if there is such a header, and the CRC32c of SCTP behind it.
pub fn repair(frame: &mut [u8], at: usize) {
    repair_v4(frame, at);
    let Some(packet) = frame.get_mut(at..) else { return };
    let Some(l3) = parse_l3(packet).ok().filter(|l3| l3.protocol == wire::protocol::SCTP && l3.has_l4()) else {
        return;
    };
    let Some(l4) = packet.get_mut(usize::from(l3.l4_offset)..usize::from(l3.total_len)) else { return };
    if let Some(field) = l4.get_mut(8..12) {
        field.fill(0);
        let sum = sketch::crc32c(l4).to_le_bytes();
        l4.iter_mut().skip(8).zip(sum).for_each(|(byte, sum)| *byte = sum);
    }
}

fn repair_v4(frame: &mut [u8], at: usize) {
    let Some(words) = frame.get(at).filter(|byte| **byte >> 4 == 4).map(|byte| usize::from(byte & 15)) else { return };
    let Some(header) = frame.get_mut(at..at + words * 4).filter(|header| header.len() >= 20) else { return };
    (header[10], header[11]) = (0, 0);
    let sum = wire::checksum::Sum::ZERO.bytes(header).checksum().to_be_bytes();
    (header[10], header[11]) = (sum[0], sum[1]);
}

/// Where the IP headers of a specimen are: the outer one, and the inner one of VXLAN.
pub fn headers(frame: &[u8]) -> Vec<usize> {
    let Ok(link) = ethernet::parse_ethernet(frame) else { return Vec::new() };
    let outer = usize::from(link.l3_offset);
    let inner = match frame.get(outer).map(|byte| byte >> 4) {
        Some(4) => outer + 20 + 8 + 8 + 14,
        _ => outer + 40 + 8 + 8 + 14,
    };
    if rig::into_peer(frame).is_some() { vec![outer, inner] } else { vec![outer] }
}

/// A little program: each operation takes a specimen, changes some bytes of it and plays it; others move time and
/// change the tables. Whatever it is, [`Scene::check`] holds after every step.
///
/// One operation: kind, number of changes (low four bits; bit 7: repair checksums, bit 6: cut the frame), then
/// pairs of offset and value, then the length to cut to. Kind 255: raw bytes, as many as the next byte says.
pub fn decide(bytes: &[u8]) {
    // Made once: fresh scenes are all alike, ports included, since their seed is.
    static FRESH: OnceLock<(Tables, Vec<Specimen>)> = OnceLock::new();
    let scene = |tables| Scene::sized(tables, 64, 256, 1);
    let (tables, specimens) = FRESH.get_or_init(|| (tables(), scene(tables()).specimens()));
    decide_in(&mut scene(tables.clone()), specimens, bytes);
}

/// As [`decide`], in a scene that is there, beginning from these frames.
pub fn decide_in(scene: &mut Scene, specimens: &[Specimen], bytes: &[u8]) {
    let mut left = bytes.iter().copied();
    for _ in 0..64 {
        let (Some(kind), Some(how)) = (left.next(), left.next()) else { break };
        match kind {
            255 => {
                let raw: Vec<u8> = left.by_ref().take(usize::from(how)).collect();
                let device = if how & 1 == 0 { WAN } else { LAN };
                scene.play(device, &raw);
            }
            240..=254 => change(scene, kind, how),
            _ => {
                let (_, device, frame) = &specimens[usize::from(kind) % specimens.len()];
                let mut frame = frame.clone();
                for _ in 0..how & 15 {
                    let (Some(at), Some(value)) = (left.next(), left.next()) else { break };
                    if let Some(byte) = frame.get_mut(usize::from(at)) {
                        *byte ^= value;
                    }
                }
                if how & 0x40 != 0 {
                    frame.truncate(usize::from(left.next().unwrap_or(0)));
                }
                if how & 0x80 != 0 {
                    headers(&frame).into_iter().rev().for_each(|at| repair(&mut frame, at));
                }
                scene.play(*device, &frame);
            }
        }
    }
    scene.check_usage();
}

/// Moves time, or publishes other tables.
fn change(scene: &mut Scene, kind: u8, how: u8) {
    let net = Net::BOTH[usize::from(how & 1)];
    let base = if how & 1 == 0 { 0 } else { 10 };
    let pods = |port| [(net.pod(0, 5), port, 1), (net.pod(1, 6), port, 1)];
    let n = u32::from(how >> 1 & 1);
    match kind {
        240 => scene.rig.now_ns += u64::from(how) << 30,
        241 => scene.rig.publish(|tables| {
            rig::remove_endpoint(tables, base + 1, net.vip(1), 80, 6, &pods(8080), n);
        }),
        242 => scene.rig.publish(|tables| {
            rig::remove_endpoint(tables, base + 2, net.vip(1), 53, 17, &pods(5353), n);
            rig::remove_endpoint(tables, sctp_id(base), net.vip(1), 3868, 132, &pods(9868), n);
        }),
        243 => scene.rig.publish(|tables| {
            rig::add_service(tables, base + 1, net.vip(1), 80, 6, &pods(8080));
            rig::add_service(tables, base + 2, net.vip(1), 53, 17, &pods(5353));
            rig::add_service(tables, sctp_id(base), net.vip(1), 3868, 132, &pods(9868));
        }),
        244 => scene.rig.publish(|tables| tables.settings.routes_epoch = tables.settings.routes_epoch.wrapping_add(1)),
        245 => scene.rig.publish(|tables| {
            let neighbours = std::sync::Arc::make_mut(&mut tables.neighbours);
            let id = if how & 2 == 0 { net.router() } else { net.peer_neighbour(how >> 2 & 1) };
            if let Some(row) = neighbours.row(id).copied() {
                use crate::table::neighbour::NeighbourState::{Resolved, Unresolved};
                let state = if row.state == Resolved { Unresolved } else { Resolved };
                neighbours.set(id, crate::table::neighbour::NeighbourRow { state, ..row });
            }
        }),
        246 => scene.rig.publish(|tables| {
            tables.settings.clamp_mss = how & 2 == 0;
            tables.settings.orphan_tcp =
                if how & 4 == 0 { crate::table::OrphanTcp::Drop } else { crate::table::OrphanTcp::Reset };
        }),
        247 => {
            let nodes = [(0, u16::from(how >> 1 & 1)), (1, u16::from(how >> 2 & 1))];
            let there = if how & 8 == 0 { &nodes[..] } else { &nodes[..1] };
            scene.rig.publish(|tables| deliver(tables, base, there));
        }
        _ => {}
    }
    scene.rig.turn();
    scene.check();
}
