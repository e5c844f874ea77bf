//! The matrix: every mode with every protocol, family and link of the client, and what is done there with errors, fragments,
//! sizes and hops.
//!
//! One table at the end names the cases; each becomes a module with one test per kind of stimulus, run for both families.
//! What is right is said once, by [`Stage::inside`]: a packet as one side knows it, as the other side does. Every packet that
//! leaves is compared byte for byte with one that etherparse made, so that addresses, quotes and all checksums count (SCTP's
//! is computed bit by bit). Another mode is another row, and what it does to a packet.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

use std::net::IpAddr;
use std::sync::Arc;

use tidegate_api::resource::{Filtering, MappingClass};
use tidegate_dataplane::mutation::{Mutation, is_noticed_by};
use tidegate_dataplane::rig::expect::{expect_overlay, identification, same};
use tidegate_dataplane::rig::outside;
use tidegate_dataplane::rig::sketch::{self, Body, End, Sketch, Trouble, our_trouble, ping, pong, sctp, tcp, udp};
use tidegate_dataplane::rig::{self, FROM_ROUTER, LAN, Net, ROUTER_MAC, Rig, WAN, WAN_MAC};
use tidegate_dataplane::table::Tables;

/// How a Service delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Fullnat,
    /// The client's address stays, and answers come back through us.
    Symmetric,
    NodeDsr,
    /// No Service: a pod under an egress policy speaks to the client, and is its server towards it, at the policy's address.
    /// A client in the overlay is another such pod, spoken to at its own external port: what is said comes back in (N-010).
    Egress,
}

impl Mode {
    /// Whether the destination becomes a pod, and its answers come back.
    fn translates(self) -> bool {
        self != Mode::NodeDsr
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
    /// Echo requests to the VIP, which the gateway answers itself in every mode (N-094); in egress a pod's to the outside.
    Echo,
}

/// How the client's packets come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// From a router.
    Plain,
    /// In VXLAN: the client is a pod.
    Vxlan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    mode: Mode,
    protocol: Protocol,
    link: Link,
}

impl Case {
    /// Whether nothing but an answer of the gateway's comes of it.
    fn is_answered_here(self) -> bool {
        self.protocol == Protocol::Echo && self.mode != Mode::Egress
    }

    /// Whether pieces of it cannot be translated: its checksum covers all of it, and ports change (N-075).
    fn refuses_pieces(self) -> bool {
        self.protocol == Protocol::Sctp && matches!(self.mode, Mode::Fullnat | Mode::Symmetric)
    }

    /// What the way through us costs.
    fn hops(self) -> u8 {
        if self.mode == Mode::Egress && self.link == Link::Vxlan { 2 } else { 1 }
    }
}

/// Which way a packet goes: to the Service, or from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Forth,
    Back,
}

/// A gateway with one flow of a case under way.
struct Stage {
    rig: Rig,
    net: Net,
    case: Case,
    /// The source port that the flow was given.
    port: u16,
    /// Of a client that is a pod under a policy: its external port.
    client_port: u16,
}

/// Tags of the client's and of the pod's end of an association.
const TAGS: (u32, u32) = (0x0c11_e217, 0x05e2_7e27);

/// TCP 80, UDP 53 and SCTP 3868 of `vip(1)`, with one pod behind peer 0; delivered by peer 1 as a node in `node-dsr`.
fn tables(case: Case) -> Tables {
    if case.mode == Mode::Egress {
        let (mut tables, mut outside) = outside::town();
        let mut egress = outside::policy(&Net::BOTH.map(|net| outside::external(net, 1)));
        if case.link == Link::Vxlan {
            egress.tcp.class = MappingClass::EndpointIndependent;
            (egress.tcp.filtering, egress.udp.filtering) =
                (Filtering::EndpointIndependent, Filtering::EndpointIndependent);
        }
        outside.policy(&mut tables, "out", Some(&egress));
        return tables;
    }
    let mut tables = rig::tables();
    for (base, net) in [(0, Net::BOTH[0]), (10, Net::BOTH[1])] {
        for (id, (port, pod_port, number)) in (1..).zip([(80, 8080, 6), (53, 5353, 17), (3868, 9868, 132)]) {
            rig::add_service(&mut tables, base + id, net.vip(1), port, number, &[(net.pod(0, 5), pod_port, 1)]);
            if case.mode == Mode::NodeDsr {
                rig::deliver_to_nodes(&mut tables, base + id, &[(1, 1)]);
            }
            if case.mode == Mode::Symmetric {
                rig::deliver_symmetric(&mut tables, base + id);
            }
        }
    }
    tables
}

/// An echo message with this identifier; anything else as it is.
fn identified(packet: Sketch, id: u16) -> Sketch {
    let Body::Icmp { kind: kind @ (0 | 8 | 128 | 129), code, rest } = packet.body else { return packet };
    let [high, low] = id.to_be_bytes();
    Sketch { body: Body::Icmp { kind, code, rest: [high, low, rest[2], rest[3]] }, ..packet }
}

/// Stages of a case in both families, over tables as `change` leaves them.
fn stages(case: Case, change: impl Fn(&mut Tables)) -> impl Iterator<Item = Stage> {
    Net::BOTH.into_iter().map(move |net| {
        let mut tables = tables(case);
        change(&mut tables);
        // Frames enough that receive rings leave some for pieces.
        let rig = Rig::with(tables, 4096, 4096, 1).unwrap();
        let mut stage = Stage { rig, net, case, port: 0, client_port: 0 };
        stage.begin();
        stage.rig.moved();
        stage
    })
}

impl Stage {
    fn client(&self) -> End {
        match self.case.link {
            Link::Plain => (self.net.client(7), 40_000),
            Link::Vxlan if self.case.mode == Mode::Egress => (self.net.pod(1, 7), 50_000),
            Link::Vxlan => (self.net.pod(1, 9), 40_000),
        }
    }

    /// The client as the server knows it.
    fn known_client(&self) -> End {
        match (self.case.mode, self.case.link) {
            (Mode::Fullnat, _) => (self.net.source(), self.port),
            (Mode::Egress, Link::Vxlan) => (outside::external(self.net, 1), self.client_port),
            _ => self.client(),
        }
    }

    fn ports(&self) -> (u16, u16) {
        match self.case.protocol {
            Protocol::Tcp => (80, 8080),
            Protocol::Udp => (53, 5353),
            Protocol::Sctp => (3868, 9868),
            Protocol::Echo => (0, 0x7766),
        }
    }

    fn service(&self) -> End {
        match self.case.mode {
            Mode::Egress => (outside::external(self.net, 1), self.port),
            _ => (self.net.vip(1), self.ports().0),
        }
    }

    /// Who is spoken to inside, and who speaks.
    fn inner_ends(&self) -> (End, End) {
        match self.case.mode {
            Mode::Fullnat | Mode::Symmetric | Mode::Egress => {
                ((self.net.pod(0, 5), self.ports().1), self.known_client())
            }
            Mode::NodeDsr => (self.service(), self.client()),
        }
    }

    /// The peer that delivers.
    fn deliverer(&self) -> u8 {
        u8::from(self.case.mode == Mode::NodeDsr)
    }

    /// Whether answers come back through us.
    fn is_two_way(&self) -> bool {
        self.case.mode.translates() && !self.case.is_answered_here()
    }

    fn header(&self) -> usize {
        if self.net == Net::BOTH[0] { 20 } else { 40 }
    }

    fn is_v4(&self) -> bool {
        self.net == Net::BOTH[0]
    }

    /// What the overlay carries.
    fn inner_mtu(&self) -> usize {
        1500 - usize::from(self.net.overhead())
    }

    /// A packet of the flow as the client's side knows it, with so many bytes of data (of SCTP: a multiple of four).
    fn say(&self, way: Way, bytes: usize) -> Sketch {
        let data: Vec<u8> = (0..=250).cycle().take(bytes).collect();
        let (from, to) = match way {
            Way::Forth => (self.client(), self.service()),
            Way::Back => (self.service(), self.client()),
        };
        match self.case.protocol {
            Protocol::Tcp => tcp(from, to).segment("PA", 700, 800).data(data),
            Protocol::Udp => udp(from, to).data(data),
            Protocol::Sctp => sctp(from, to).tag(if way == Way::Forth { TAGS.1 } else { TAGS.0 }).chunk(0, 3, &data),
            // A pod asks, and the outside answers.
            Protocol::Echo if self.case.mode == Mode::Egress => {
                let message = if way == Way::Back { ping(from.0, to.0) } else { pong(from.0, to.0) };
                identified(message.data(data), self.port)
            }
            Protocol::Echo if way == Way::Forth => ping(from.0, to.0).data(data),
            Protocol::Echo => pong(from.0, to.0).data(data),
        }
    }

    /// The same, so that the IP packet has `len` bytes.
    fn say_whole(&self, way: Way, len: usize) -> Sketch {
        let empty = self.say(way, 0).packet().len();
        self.say(way, len - empty)
    }

    /// What the other side knows of a packet that the client's side knows as `outside`.
    fn inside(&self, way: Way, outside: &Sketch) -> Sketch {
        let (server, speaker) = self.inner_ends();
        let inside = match way {
            Way::Forth => outside.clone().between(speaker, server),
            Way::Back => outside.clone().between(server, speaker),
        };
        if self.case.is_answered_here() { inside } else { identified(inside, server.1) }
    }

    fn client_sends(&mut self, packet: &Sketch) {
        match self.case.link {
            Link::Plain => self.rig.rx_wan(packet),
            Link::Vxlan => self.rig.rx_overlay(self.net, 1, packet),
        }
    }

    fn server_sends(&mut self, packet: &Sketch) {
        self.rig.rx_overlay(self.net, 0, packet);
    }

    fn send(&mut self, way: Way, packet: &Sketch) {
        match way {
            Way::Forth => self.client_sends(packet),
            Way::Back => self.server_sends(packet),
        }
    }

    /// Exactly these left for where packets of `way` go, in this order, and nothing else.
    #[track_caller]
    fn expect(&mut self, way: Way, packets: &[Sketch]) {
        let told = format!("{:?} {way:?}\n{}", self.case, self.rig.told());
        let peer = match (way, self.case.link) {
            (Way::Forth, _) => Some(self.deliverer()),
            (Way::Back, Link::Vxlan) => Some(1),
            (Way::Back, Link::Plain) => None,
        };
        let (here, elsewhere) = if peer.is_some() { (LAN, WAN) } else { (WAN, LAN) };
        let (sent, strays) = (self.rig.sent(here), self.rig.sent(elsewhere));
        assert!(strays.is_empty(), "{strays:02x?}\n{told}");
        assert_eq!(sent.len(), packets.len(), "frames sent\n{told}");
        for (frame, packet) in sent.iter().zip(packets) {
            match peer {
                Some(peer) => {
                    // What may be cut, from where several send, has a number of ours by now (N-046).
                    let is_shared = self.case.mode == Mode::Fullnat || self.case.hops() == 2;
                    let numbered = is_shared && !packet.dont_fragment;
                    let id = rig::into_peer(frame).and_then(|(_, _, inner)| identification(inner));
                    let id = id.filter(|_| numbered).unwrap_or(packet.id);
                    let _outer = expect_overlay(self.net, peer, &Sketch { id, ..packet.clone() }, frame, &told);
                }
                None => same(frame, &packet.frame((WAN_MAC, ROUTER_MAC)), &told),
            }
        }
    }

    /// Exactly this was sent to the pod that answers, by us and not by the client.
    #[track_caller]
    fn expect_at_pod(&mut self, packet: &Sketch) {
        self.rig.expect_overlay(self.net, 0, packet);
    }

    /// This one packet goes through, one hop poorer.
    #[track_caller]
    fn passes(&mut self, way: Way, outside: &Sketch) {
        let inside = self.inside(way, outside);
        let (sent, expected) = if way == Way::Forth { (outside, inside) } else { (&inside, outside.clone()) };
        self.send(way, &sent.clone());
        self.expect(way, &[expected.ttl(sent.ttl - self.case.hops())]);
    }

    /// Makes a pod's flow to the outside.
    fn begin_egress(&mut self) {
        let (pod, number) = ((self.net.pod(0, 5), self.ports().1), self.case.protocol);
        if self.case.link == Link::Vxlan {
            self.client_port = self.let_in();
        }
        let client = self.known_client();
        let first = match number {
            Protocol::Tcp => tcp(pod, client).syn(100),
            Protocol::Udp => udp(pod, client).data(*b"hello"),
            Protocol::Sctp => sctp(pod, client).init(1, TAGS.1),
            Protocol::Echo => identified(ping(pod.0, client.0), pod.1),
        };
        self.server_sends(&first);
        let device = if self.case.link == Link::Plain { WAN } else { LAN };
        let frame = self.rig.sent(device).pop().expect("the first packet leaves");
        let packet = if device == WAN { &frame[..] } else { rig::into_peer(&frame).unwrap().2 };
        let at = 14 + self.header() + if number == Protocol::Echo { 4 } else { 0 };
        self.port = u16::from_be_bytes([packet[at], packet[at + 1]]);
        let (client, service) = (self.client(), self.service());
        let rest = match number {
            Protocol::Tcp => vec![
                (Way::Forth, tcp(client, service).segment("SA", 500, 101)),
                (Way::Back, tcp(service, client).ack(101, 501)),
            ],
            Protocol::Sctp => vec![
                (Way::Forth, sctp(client, service).tag(TAGS.1).init(2, TAGS.0)),
                (Way::Back, sctp(service, client).tag(TAGS.0).chunk(10, 0, b"cookie")),
                (Way::Forth, sctp(client, service).tag(TAGS.1).chunk(11, 0, &[])),
            ],
            Protocol::Echo | Protocol::Udp => vec![(Way::Forth, self.say(Way::Forth, 16))],
        };
        for (way, packet) in rest {
            self.passes(way, &packet);
        }
    }

    /// The external port of the pod that is the client, to which anybody may send.
    fn let_in(&mut self) -> u16 {
        let (client, other) = (self.client(), (self.net.client(9), 80));
        let first = if self.case.protocol == Protocol::Tcp { tcp(client, other).syn(1) } else { udp(client, other) };
        self.rig.rx_overlay(self.net, 1, &first);
        let frame = self.rig.sent_one(WAN);
        let at = 14 + self.header();
        u16::from_be_bytes([frame[at], frame[at + 1]])
    }

    /// Makes the flow.
    fn begin(&mut self) {
        if self.case.mode == Mode::Egress {
            return self.begin_egress();
        }
        let (client, service) = (self.client(), self.service());
        let first = match self.case.protocol {
            Protocol::Tcp => tcp(client, service).syn(100),
            Protocol::Udp => udp(client, service).data(*b"hello"),
            Protocol::Sctp => sctp(client, service).init(1, TAGS.0),
            Protocol::Echo => return,
        };
        self.client_sends(&first);
        let frame = self.rig.sent(LAN).pop().expect("the first packet leaves");
        let (_, _, inner) = rig::into_peer(&frame).unwrap();
        let at = 14 + self.header();
        self.port = u16::from_be_bytes([inner[at], inner[at + 1]]);
        let rest = match self.case.protocol {
            Protocol::Tcp => vec![
                (Way::Back, tcp(service, client).segment("SA", 500, 101)),
                (Way::Forth, tcp(client, service).ack(101, 501)),
            ],
            Protocol::Sctp => vec![
                (Way::Back, sctp(service, client).tag(TAGS.0).init(2, TAGS.1)),
                (Way::Forth, sctp(client, service).tag(TAGS.1).chunk(10, 0, b"cookie")),
                (Way::Back, sctp(service, client).tag(TAGS.0).chunk(11, 0, &[])),
            ],
            _ => vec![],
        };
        for (way, packet) in rest {
            if way == Way::Forth || self.is_two_way() {
                self.passes(way, &packet);
            }
        }
    }

    #[track_caller]
    fn expect_dropped(&mut self, reason: &str, times: u64) {
        self.rig.expect_silence();
        let moved = self.rig.moved();
        assert_eq!(moved.get(reason), Some(&times), "{:?}: {moved:?}", self.case);
        self.rig.expect_balance();
    }
}

/// Both ways that packets of this case go.
fn ways(stage: &Stage) -> &'static [Way] {
    if stage.is_two_way() { &[Way::Forth, Way::Back] } else { &[Way::Forth] }
}

/// Data goes through, of every small length, with DSCP, and with padding behind it that does not travel (T-071); between
/// pods too, by way of their external ports (N-025, RFC 5382 REQ-8).
fn data(case: Case) {
    for mut stage in stages(case, |_| ()) {
        if case.is_answered_here() {
            return echo(case);
        }
        for &way in ways(&stage) {
            for bytes in [12, 16, 64, 500, 1300] {
                let said = stage.say(way, bytes);
                stage.passes(way, &said);
                stage.passes(way, &said.tos(0xb8).ttl(1 + case.hops()));
            }
        }
        // T-071: bytes after the IP packet are none of it.
        if case.link == Link::Plain {
            let said = stage.say(Way::Forth, 12);
            let mut frame = said.frame(FROM_ROUTER);
            frame.extend_from_slice(&[0xee; 13]);
            stage.rig.rx(WAN, &frame);
            let expected = stage.inside(Way::Forth, &said).ttl(64 - case.hops());
            stage.expect(Way::Forth, &[expected]);
        }
        // Pods that speak to each other have a flow each, and one with whom the first asked.
        assert_eq!(stage.rig.worker.state().live(), if case.hops() == 1 { 1 } else { 3 });
    }
}

/// N-094: "Echo request to a VIP: the gateway answers itself"; N-037 (128, 129), T-112, T-071, and identifiers at the edges (N-097).
fn echo(case: Case) {
    for mut stage in stages(case, |_| ()) {
        for rest in [[0x77, 0x66, 0, 9], [0, 0, 0, 0], [0xff; 4]] {
            for bytes in [0, 1, 56, 1300] {
                let with = |mut sketch: Sketch| {
                    if let sketch::Body::Icmp { rest: it, .. } = &mut sketch.body {
                        *it = rest;
                    }
                    sketch
                };
                let (asked, answer) = (with(stage.say(Way::Forth, bytes)), with(stage.say(Way::Back, bytes)));
                stage.client_sends(&asked);
                let sent = match case.link {
                    Link::Plain => stage.rig.sent_one(WAN)[14..].to_vec(),
                    Link::Vxlan => rig::into_peer(&stage.rig.sent_one(LAN)).unwrap().2[14..].to_vec(),
                };
                expect_echo(&sent, &answer, &asked);
            }
        }
        if case.link == Link::Plain {
            let asked = stage.say(Way::Forth, 16);
            let mut frame = asked.frame(FROM_ROUTER);
            frame.extend_from_slice(&[0xee; 9]);
            stage.rig.rx(WAN, &frame);
            expect_echo(&stage.rig.sent_one(WAN)[14..], &stage.say(Way::Back, 16), &asked);
        }
        assert_eq!(stage.rig.worker.state().live(), 0);
    }
}

/// What an echo reply shall be, whatever identification and TTL the gateway gives it.
#[track_caller]
fn expect_echo(sent: &[u8], answer: &Sketch, asked: &Sketch) {
    let mut expected = answer.clone();
    let v4 = answer.from.0.is_ipv4();
    expected.id = if v4 { u16::from_be_bytes([sent[4], sent[5]]) } else { 0 };
    expected.ttl = sent[if v4 { 8 } else { 7 }];
    expected.dont_fragment = v4 && sent[6] & 0x40 != 0;
    expected.label = if v4 { 0 } else { u32::from_be_bytes([0, sent[1] & 15, sent[2], sent[3]]) };
    assert!(expected.ttl >= 63, "a host's TTL");
    assert_eq!(sent, expected.packet(), "{asked:?}");
}

/// An ICMP error without its quote: type, code, bytes five to eight.
type Form = (u8, u8, [u8; 4]);

/// Every form that RFC 792, 1191, 1812, 5508 and RFC 4443 know (N-037: of ICMPv6 1 to 4).
fn forms(v4: bool) -> Vec<Form> {
    if v4 {
        let unreachable = [0, 1, 2, 3, 5, 9, 10, 13].map(|code| (3, code, [0; 4]));
        let others = [(3, 4, [0, 0, 5, 20]), (11, 0, [0; 4]), (11, 1, [0; 4]), (12, 0, [9, 0, 0, 0]), (12, 2, [0; 4])];
        [&unreachable[..], &others].concat()
    } else {
        let unreachable = [0, 1, 2, 3, 4, 5, 6].map(|code| (1, code, [0; 4]));
        let others =
            [(2, 0, [0, 0, 5, 20]), (3, 0, [0; 4]), (3, 1, [0; 4]), (4, 0, [0, 0, 0, 7]), (4, 1, [0, 0, 0, 6])];
        [&unreachable[..], &others].concat()
    }
}

/// How much is quoted, and how the quoted packet looks.
#[derive(Clone, Copy, Debug)]
enum Quote {
    /// So many bytes behind the IP header; 8 is the least (RFC 792).
    Plain(usize),
    /// The same behind IPv4 options or an IPv6 extension header.
    Optioned(usize),
    /// The whole packet.
    Whole,
    /// 128 bytes, and an extension structure behind them (RFC 4884): MPLS labels, say.
    Extended,
}

const QUOTES: [Quote; 8] = [
    Quote::Plain(8),
    Quote::Plain(12),
    Quote::Plain(18),
    Quote::Plain(20),
    Quote::Optioned(8),
    Quote::Optioned(40),
    Quote::Whole,
    Quote::Extended,
];

/// What an error of `form` carries about `packet`, and its bytes five to eight; `None`: it has no such quote.
fn quote(form: Form, packet: &Sketch, how: Quote) -> Option<([u8; 4], Vec<u8>)> {
    let v4 = packet.from.0.is_ipv4();
    let header = if v4 { 20 } else { 40 };
    let (mut rest, bytes) = (form.2, packet.packet());
    let quoted = match how {
        Quote::Whole => bytes,
        Quote::Plain(more) => bytes[..header + more].to_vec(),
        Quote::Optioned(more) if v4 => {
            packet.clone().options(&[7, 7, 4, 0, 0, 0, 0, 0]).packet()[..header + 8 + more].to_vec()
        }
        Quote::Optioned(more) => {
            let mut bytes = bytes;
            let length = u16::from_be_bytes([bytes[4], bytes[5]]) + 8;
            bytes[4..6].copy_from_slice(&length.to_be_bytes());
            let next = std::mem::replace(&mut bytes[6], 60);
            bytes.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
            bytes.truncate(header + 8 + more);
            bytes
        }
        Quote::Extended => {
            match (v4, form.0) {
                (true, 3 | 11 | 12) => rest[1] = 32,
                (false, 1 | 3) => rest[0] = 16,
                _ => return None,
            }
            let mut bytes = bytes;
            bytes.resize(128, 0);
            // Version 2, no checksum; one MPLS label stack entry (RFC 4950).
            bytes.extend_from_slice(&[0x20, 0, 0, 0, 0, 8, 1, 1, 0x12, 0x34, 0x51, 0xff]);
            bytes
        }
    };
    Some((rest, quoted))
}

fn error(from: IpAddr, to: IpAddr, form: Form, packet: &Sketch, how: Quote) -> Option<Sketch> {
    let (rest, quoted) = quote(form, packet, how)?;
    Some(sketch::icmp(from, to, form.0, form.1, rest).data(quoted))
}

/// L-050, S-075, N-025 (RFC 5382 REQ-9, REQ-10), N-032, N-037, N-074, T-070, T-113, T-131, T-132, T-150: an error about what the Service said goes to whoever said
/// it, with the quote as that one knows it; nothing ends by it (N-013).
fn errors_to_the_service(case: Case) {
    for mut stage in stages(case, |_| ()) {
        let (net, live) = (stage.net, stage.rig.worker.state().live());
        let seen = stage.say(Way::Back, 600).ttl(33);
        let known = stage.inside(Way::Back, &seen);
        let router = match case.link {
            Link::Plain => net.client(999),
            Link::Vxlan => net.peer(1),
        };
        for (form, how) in forms(stage.is_v4()).into_iter().flat_map(|form| QUOTES.map(|how| (form, how))) {
            let Some(told) = error(router, stage.service().0, form, &seen, how) else { continue };
            stage.client_sends(&told);
            let expected = match (case.protocol, case.mode) {
                // What we answered ourselves is nobody's business.
                _ if case.is_answered_here() => {
                    stage.expect_dropped("ErrorUnmatched", 1);
                    continue;
                }
                // The way that comes back in has the asker's own address in between.
                (_, Mode::Fullnat) => error(net.source(), known.from.0, form, &known, how).unwrap(),
                (_, Mode::Egress) if case.hops() == 2 => error(known.to.0, known.from.0, form, &known, how).unwrap(),
                // Whoever tells of it is seen where the client would be.
                (_, Mode::Symmetric | Mode::Egress) => error(router, known.from.0, form, &known, how).unwrap(),
                (_, Mode::NodeDsr) => told,
            };
            stage.expect(Way::Forth, &[expected.ttl(64 - if case.is_answered_here() { 1 } else { case.hops() })]);
        }
        assert_eq!(stage.rig.worker.state().live(), live, "N-013");
        if !case.is_answered_here() {
            let said = stage.say(Way::Forth, 16);
            stage.passes(Way::Forth, &said);
        }
    }
}

/// The same the other way (N-025, N-037): an error from the pod, its node or a router on the way, about what the client said.
fn errors_to_the_client(case: Case) {
    for mut stage in stages(case, |_| ()) {
        if !stage.is_two_way() {
            continue;
        }
        let net = stage.net;
        let said = stage.say(Way::Forth, 600).ttl(33);
        let seen = stage.inside(Way::Forth, &said);
        for (form, how) in forms(stage.is_v4()).into_iter().flat_map(|form| QUOTES.map(|how| (form, how))) {
            for from in [net.pod(0, 5), net.peer(0)] {
                let Some(told) = error(from, stage.inner_ends().1.0, form, &seen, how) else { continue };
                stage.server_sends(&told);
                let expected = error(stage.service().0, stage.client().0, form, &said, how).unwrap();
                stage.expect(Way::Back, &[expected.ttl(64 - case.hops())]);
            }
        }
        let said = stage.say(Way::Back, 16);
        stage.passes(Way::Back, &said);
    }
}

/// N-031: errors that are damaged, too short, or quote a fragment that names no ports.
fn errors_that_are_not_believed(case: Case) {
    for mut stage in stages(case, |_| ()) {
        if case.is_answered_here() {
            continue;
        }
        let (net, form) = (stage.net, (if stage.is_v4() { 3 } else { 1 }, 1, [0; 4]));
        let seen = stage.say(Way::Back, 100);
        let router = if case.link == Link::Plain { net.client(999) } else { net.peer(1) };
        let short = sketch::icmp(router, stage.service().0, form.0, form.1, [0; 4]);
        for bytes in [0, stage.header() - 1, stage.header(), stage.header() + 7] {
            stage.client_sends(&short.clone().data(&seen.packet()[..bytes]));
            stage.expect_dropped("QuoteMalformed", 1);
        }
        let later = seen.clone().fragment(64, false);
        stage.client_sends(&short.clone().data(later.packet()));
        stage.expect_dropped("QuoteMalformed", 1);
        let stranger = seen.clone().between(stage.service(), (net.client(8), 4));
        if case.mode.translates() {
            stage.client_sends(&short.clone().data(stranger.packet()));
            stage.expect_dropped("ErrorUnmatched", 1);
        }
        if case.mode.translates() {
            // REQ-3: an edit would only move the mistake to somebody else. To a node it goes as it came.
            let mut damaged = short.clone().data(seen.packet()).packet();
            *damaged.last_mut().unwrap() ^= 1;
            let (device, frame) = match case.link {
                Link::Plain => (WAN, sketch::ethernet(FROM_ROUTER, seen.ethertype(), &damaged)),
                Link::Vxlan => (LAN, rig::from_peer(net, 1, &damaged)),
            };
            stage.rig.rx(device, &frame);
            stage.expect_dropped("IcmpBadChecksum", 1);
        }
        // RFC 6633, RFC 1122 section 3.2.2.2: source quench and redirects are not for the other side.
        for kind in if stage.is_v4() { &[4, 5][..] } else { &[] } {
            stage.client_sends(&sketch::icmp(router, stage.service().0, *kind, 1, [192, 0, 2, 1]).data(seen.packet()));
            stage.expect_dropped("IcmpUnhandled", 1);
        }
        // An error about an error is none.
        stage.client_sends(&short.clone().data(short.data(seen.packet()).packet()));
        let moved = stage.rig.moved();
        assert!(moved.contains_key("ErrorUnmatched") || moved.contains_key("QuoteMalformed"), "{moved:?}");
        stage.rig.expect_silence();
    }
}

/// Cuts what `whole` carries into pieces of so many bytes, the last of what is left; checksums are those of the whole.
fn cut(whole: &Sketch, sizes: &[usize]) -> Vec<Sketch> {
    let packet = Sketch { fragment: None, ..whole.clone() }.may_fragment().packet();
    let body = &packet[if whole.from.0.is_ipv4() { 20 } else { 40 }..];
    let (mut at, mut pieces) = (0, Vec::new());
    for size in sizes.iter().copied().chain(std::iter::repeat(sizes[sizes.len() - 1])) {
        if at == body.len() {
            break;
        }
        let end = (at + size).min(body.len());
        let piece = sketch::raw(whole.from.0, whole.to.0, whole.number()).data(&body[at..end]);
        let piece = Sketch { ttl: whole.ttl, id: whole.id, label: whole.label, tos: whole.tos, ..piece };
        pieces.push(piece.fragment(at as u16, end < body.len()));
        at = end;
    }
    pieces
}

/// Orders in which three pieces can come.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// N-015, N-060, N-062, V-050, T-081, T-082, T-141: pieces follow the first, in every order, and make the translated whole.
fn fragments(case: Case) {
    for mut stage in stages(case, |_| ()) {
        for &way in ways(&stage) {
            for (n, order) in ORDERS.into_iter().enumerate() {
                let outside = Sketch { id: 0x4000 + n as u16, ..stage.say(way, 2000).may_fragment() };
                let inside = stage.inside(way, &outside);
                let (sent, left) = if way == Way::Forth { (&outside, inside) } else { (&inside, outside.clone()) };
                let (sent, left) = (cut(&sent.clone(), &[776]), cut(&left.ttl(64 - case.hops()), &[776]));
                assert_eq!(sent.len(), 3);
                order.iter().for_each(|piece| stage.send(way, &sent[*piece]));
                match case {
                    _ if case.is_answered_here() => stage.expect_dropped("FragmentUntracked", 3),
                    // N-075
                    _ if case.refuses_pieces() => stage.expect_dropped("SctpFragment", 3),
                    _ => {
                        // The first leads, the others in the order in which they came.
                        let lead = order.iter().position(|piece| *piece == 0).unwrap();
                        let rest = order.iter().enumerate().filter(|(at, _)| *at != lead).map(|(_, piece)| *piece);
                        let expected: Vec<Sketch> =
                            std::iter::once(0).chain(rest).map(|piece| left[piece].clone()).collect();
                        stage.expect(way, &expected);
                    }
                }
            }
        }
        assert!(stage.rig.worker.state().fragments.is_empty());
    }
}

/// N-061: what overlaps is refused, and so is the rest of its datagram.
fn overlapping_fragments(case: Case) {
    for mut stage in stages(case, |_| ()) {
        if case.is_answered_here() {
            continue;
        }
        for (n, overlap) in [(0u16, 768), (1, 1544), (2, 784)] {
            let whole = Sketch { id: 0x5000 + n, ..stage.say(Way::Forth, 2000).may_fragment() };
            let mut pieces = cut(&whole, &[776]);
            // A copy of the second piece, eight bytes earlier or later, or over the third.
            let evil = Sketch { fragment: Some((overlap, true)), ..pieces[1].clone() };
            pieces.insert(2, evil);
            pieces[1..].iter().for_each(|piece| stage.client_sends(piece));
            let moved = stage.rig.moved();
            assert!(moved.get("FragmentOverlap").is_some_and(|n| *n >= 1), "{overlap}: {moved:?}");
            stage.rig.expect_silence();
            stage.client_sends(&pieces[0]);
            stage.rig.expect_silence();
        }
    }
}

/// The device towards clients takes no more than this.
fn narrow(tables: &mut Tables, mtu: u16) {
    let row = tables.devices.row(WAN).cloned().unwrap();
    let row = tidegate_dataplane::table::device::DeviceRow { mtu, ..row };
    Arc::make_mut(&mut tables.devices).set(WAN, row);
}

/// The packets that a path of `mtu` leaves of one.
fn pieces(whole: &Sketch, mtu: usize) -> Vec<Sketch> {
    if whole.packet().len() <= mtu { vec![whole.clone()] } else { cut(whole, &[(mtu - 20) & !7]) }
}

/// L-051, V-010, V-052, N-014 (13, 13a), T-119, T-151, T-167, T-186: what does not fit is answered with the size that does, or cut
/// where its sender allows that; IPv6 never is.
fn sizes(case: Case) {
    for mut stage in stages(case, |_| ()) {
        // What comes back in is looked at in `golden/hairpin.rs`: two hops, and errors that go round as well.
        if case.is_answered_here() || case.hops() == 2 {
            continue;
        }
        let (mtu, vip) = (stage.inner_mtu(), stage.service().0);
        let step = if case.protocol == Protocol::Sctp { 4 } else { 1 };
        let fits = mtu / step * step;
        for len in [fits, fits + step, 1500] {
            let said = stage.say_whole(Way::Forth, len);
            if len <= mtu {
                stage.passes(Way::Forth, &said);
                continue;
            }
            stage.client_sends(&said);
            let size = Trouble::TooBig(mtu as u16);
            let expected = our_trouble(vip, stage.client().0, size, &said.packet());
            stage.expect(Way::Back, &[expected]);
        }
        stage.rig.moved();
        for len in [fits, fits + step, 1500, 1700] {
            let said = stage.say_whole(Way::Forth, len).may_fragment();
            stage.client_sends(&said);
            if stage.is_v4() {
                let inside = stage.inside(Way::Forth, &said).ttl(63);
                stage.expect(Way::Forth, &pieces(&inside, mtu));
                let cut = u64::from(len > mtu);
                assert_eq!(stage.rig.moved().get("cut").copied().unwrap_or(0), cut);
                stage.rig.expect_balance();
            } else if len > mtu {
                let size = Trouble::TooBig(mtu as u16);
                let expected = our_trouble(vip, stage.client().0, size, &said.packet());
                stage.expect(Way::Back, &[expected]);
            } else {
                stage.rig.sent(LAN);
            }
        }
        stage.rig.expect_all_frames_home();
    }
}

/// The same for answers, which are larger than the client's link.
fn sizes_of_answers(case: Case) {
    for mut stage in stages(case, |tables| narrow(tables, 1300)) {
        if !stage.is_two_way() || case.link == Link::Vxlan {
            continue;
        }
        let net = stage.net;
        for (len, may_cut) in [(1300, false), (1304, false), (1400, false), (1304, true), (1400, true)] {
            let outside = stage.say_whole(Way::Back, len);
            let outside = if may_cut { outside.may_fragment() } else { outside };
            let inside = stage.inside(Way::Back, &outside);
            stage.server_sends(&inside);
            if len <= 1300 || may_cut && stage.is_v4() {
                stage.expect(Way::Back, &pieces(&outside.ttl(63), 1300));
            } else {
                let size = Trouble::TooBig(1300);
                // From the address that was asked, if that is ours.
                let from = if case.mode == Mode::Fullnat { net.source() } else { net.vtep() };
                stage.expect_at_pod(&our_trouble(from, net.pod(0, 5), size, &inside.packet()));
            }
        }
        stage.rig.expect_all_frames_home();
    }
}

/// Fragments that are too large themselves are cut further, over a path of 1,000 bytes too (T-190); the error about one
/// that must not be is about the first only (RFC 1812 section 4.3.2.7).
fn large_fragments(case: Case) {
    let narrow = |tables: &mut Tables| {
        for net in Net::BOTH {
            for peer in 0..2 {
                let row = tables.tunnels.row(net.tunnel(peer)).cloned().unwrap();
                let row = tidegate_dataplane::table::tunnel::TunnelRow { inner_mtu: 950, ..row };
                Arc::make_mut(&mut tables.tunnels).set(net.tunnel(peer), row);
            }
        }
    };
    for mut stage in stages(case, narrow) {
        if case.is_answered_here() || case.refuses_pieces() || case.hops() == 2 {
            continue;
        }
        let whole = Sketch { id: 77, ..stage.say(Way::Forth, 2900).may_fragment() };
        let sent = cut(&whole, &[1480]);
        let inside = stage.inside(Way::Forth, &whole).ttl(63);
        sent.iter().for_each(|piece| stage.client_sends(piece));
        if stage.is_v4() {
            // 1480 become 928 and 552, and what is left of the last piece the same way.
            let sizes = [928, 552, 928];
            stage.expect(Way::Forth, &cut(&inside, &sizes));
            stage.rig.expect_balance();
        } else {
            let first = our_trouble(stage.service().0, stage.client().0, Trouble::TooBig(950), &sent[0].packet());
            stage.expect(Way::Back, &[first]);
        }
    }
}

/// L-058, V-015, N-036, T-085, T-094, T-125, T-153: the gateway is a hop, with an address on the link that asks.
fn hops(case: Case) {
    for mut stage in stages(case, |_| ()) {
        // What comes back in is looked at in `golden/hairpin.rs`: two hops, and errors that go round as well.
        if case.is_answered_here() || case.hops() == 2 {
            continue;
        }
        let net = stage.net;
        let own = if case.link == Link::Plain { net.gateway() } else { net.vtep() };
        for bytes in [16, 900] {
            let said = stage.say(Way::Forth, bytes);
            stage.passes(Way::Forth, &said.clone().ttl(2));
            for ttl in [1, 0] {
                let last = said.clone().ttl(ttl);
                stage.client_sends(&last);
                let expected = our_trouble(own, stage.client().0, Trouble::Time, &last.packet());
                stage.expect(Way::Back, &[expected]);
            }
            if stage.is_two_way() {
                let said = stage.say(Way::Back, bytes);
                stage.passes(Way::Back, &said.clone().ttl(2));
                let last = stage.inside(Way::Back, &said.ttl(1));
                stage.server_sends(&last);
                stage.expect_at_pod(&our_trouble(net.vtep(), net.pod(0, 5), Trouble::Time, &last.packet()));
            }
        }
        // Beyond the gateway: a router between it and the pod tells the client, with the client's own packet (T-085).
        if stage.is_two_way() {
            let said = stage.say(Way::Forth, 40).ttl(2);
            let seen = stage.inside(Way::Forth, &said).ttl(1);
            let form = (if stage.is_v4() { 11 } else { 3 }, 0, [0; 4]);
            stage.server_sends(&error(net.peer(0), stage.inner_ends().1.0, form, &seen, Quote::Plain(8)).unwrap());
            let expected = error(stage.service().0, stage.client().0, form, &said.ttl(1), Quote::Plain(8)).unwrap();
            stage.expect(Way::Back, &[expected.ttl(63)]);
        }
    }
}

/// One module per case, one test per stimulus.
macro_rules! matrix {
    ($($name:ident: $mode:ident, $protocol:ident, $link:ident;)*) => {
        /// All cases.
        const CASES: &[Case] =
            &[$(Case { mode: Mode::$mode, protocol: Protocol::$protocol, link: Link::$link },)*];
        $(
            mod $name {
                use super::{Case, Link, Mode, Protocol};

                const CASE: Case = Case { mode: Mode::$mode, protocol: Protocol::$protocol, link: Link::$link };

                matrix!(@ data errors_to_the_service errors_to_the_client errors_that_are_not_believed fragments
                    overlapping_fragments sizes sizes_of_answers large_fragments hops);
            }
        )*
    };
    (@ $($stimulus:ident)*) => {
        $(
            #[test]
            fn $stimulus() {
                super::$stimulus(CASE);
            }
        )*
    };
}

matrix! {
    fullnat_tcp: Fullnat, Tcp, Plain;
    fullnat_udp: Fullnat, Udp, Plain;
    fullnat_sctp: Fullnat, Sctp, Plain;
    fullnat_echo: Fullnat, Echo, Plain;
    fullnat_tcp_from_a_pod: Fullnat, Tcp, Vxlan;
    fullnat_udp_from_a_pod: Fullnat, Udp, Vxlan;
    fullnat_sctp_from_a_pod: Fullnat, Sctp, Vxlan;
    fullnat_echo_from_a_pod: Fullnat, Echo, Vxlan;
    symmetric_tcp: Symmetric, Tcp, Plain;
    symmetric_udp: Symmetric, Udp, Plain;
    symmetric_sctp: Symmetric, Sctp, Plain;
    symmetric_echo: Symmetric, Echo, Plain;
    node_dsr_tcp: NodeDsr, Tcp, Plain;
    node_dsr_udp: NodeDsr, Udp, Plain;
    node_dsr_sctp: NodeDsr, Sctp, Plain;
    node_dsr_echo: NodeDsr, Echo, Plain;
    egress_tcp: Egress, Tcp, Plain;
    egress_udp: Egress, Udp, Plain;
    egress_sctp: Egress, Sctp, Plain;
    egress_echo: Egress, Echo, Plain;
    egress_tcp_to_a_pod: Egress, Tcp, Vxlan;
    egress_udp_to_a_pod: Egress, Udp, Vxlan;
}

/// Why a combination is not in the table.
fn impossible(case: Case) -> Option<&'static str> {
    match case {
        Case { mode: Mode::Symmetric | Mode::NodeDsr, link: Link::Vxlan, .. } => {
            Some("pods are served by `fullnat` whatever the mode (S-058)")
        }
        Case { mode: Mode::Egress, protocol: Protocol::Sctp, link: Link::Vxlan } => {
            Some("associations are mapped by destination: the port of one leads nobody else in (N-075, N-093)")
        }
        Case { mode: Mode::Egress, protocol: Protocol::Echo, link: Link::Vxlan } => {
            Some("a pod that pings an external address is answered by the gateway: `golden/hairpin.rs` (N-094)")
        }
        _ => None,
    }
}

#[test]
fn every_combination_is_in_the_table() {
    for mode in [Mode::Fullnat, Mode::Symmetric, Mode::NodeDsr, Mode::Egress] {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Echo] {
            for link in [Link::Plain, Link::Vxlan] {
                let case = Case { mode, protocol, link };
                assert_eq!(CASES.contains(&case), impossible(case).is_none(), "{case:?}: {:?}", impossible(case));
            }
        }
    }
}

#[test]
fn tests_notice_what_they_are_for() {
    // Each requirement is broken on purpose; docs/rfc-compliance.md names these.
    let udp = Case { mode: Mode::Fullnat, protocol: Protocol::Udp, link: Link::Plain };
    let sctp = Case { protocol: Protocol::Sctp, ..udp };
    let egress = Case { mode: Mode::Egress, ..udp };
    type Broken = (Mutation, fn(Case), Case);
    let table: [Broken; 14] = [
        (Mutation::ErrorAsItCame, errors_to_the_service, egress),
        (Mutation::ErrorEndsFlow, errors_to_the_service, egress),
        (Mutation::FragmentsUnfollowed, fragments, egress),
        (Mutation::AnyHopLeaves, hops, egress),
        (Mutation::ErrorAsItCame, errors_to_the_service, udp),
        (Mutation::ErrorAsItCame, errors_to_the_client, udp),
        (Mutation::ErrorEndsFlow, errors_to_the_service, udp),
        (Mutation::ErrorUnchecked, errors_that_are_not_believed, udp),
        (Mutation::RedirectTranslated, errors_that_are_not_believed, udp),
        (Mutation::NeverCut, sizes, udp),
        (Mutation::AnySizeLeaves, sizes, udp),
        (Mutation::AnyHopLeaves, hops, udp),
        (Mutation::FragmentsUnfollowed, fragments, udp),
        (Mutation::OverlapAccepted, overlapping_fragments, udp),
    ];
    for (mutation, test, case) in table.into_iter().chain([(Mutation::CrcAsItCame, data as fn(Case), sctp)]) {
        assert!(is_noticed_by(mutation, || test(case)), "{mutation:?} goes unnoticed");
    }
}
