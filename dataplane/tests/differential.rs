//! A prepared edit, a full walk and an independent model say the same, for random tables and packets.
//!
//! Each packet goes through three ways that share as little as possible: a hit of a flow that is there, a walk of all
//! stages with the same seed (so with the same source port), and a sketch that etherparse writes anew with every
//! checksum computed from nothing. All three must agree in every byte.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

use proptest::prelude::*;
use tidegate_dataplane::rig::expect::{expect_overlay, identification};
use tidegate_dataplane::rig::sketch::{Body, End, Sketch, tcp, udp};
use tidegate_dataplane::rig::{self, LAN, Net, Rig, WAN};

/// One random case: addresses, ports, and what the packet is like.
#[derive(Clone, Debug)]
struct Case {
    family: usize,
    is_tcp: bool,
    /// From inside the overlay, not from the wire.
    hairpin: bool,
    client: u16,
    client_port: u16,
    vip: u8,
    port: u16,
    pod: u8,
    pod_port: u16,
    peer: u8,
    seed: u64,
    ttl: u8,
    tos: u8,
    id: u16,
    label: u32,
    dont_fragment: bool,
    options: bool,
    summed: bool,
    numbers: (u32, u32, u16),
    push: bool,
    payload: Vec<u8>,
}

fn case() -> impl Strategy<Value = Case> {
    let who = (0usize..2, any::<bool>(), any::<bool>(), 0u16..5000, 1u16.., 1u8..250, 1u16..);
    let to = (1u8..250, 1u16.., 0u8..2, any::<u64>());
    let how = (2u8.., any::<u8>(), any::<u16>(), 0u32..1 << 20, any::<bool>(), any::<bool>(), any::<bool>());
    let what = (any::<(u32, u32, u16)>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..1300));
    (who, to, how, what).prop_map(|(who, to, how, what)| Case {
        family: who.0,
        is_tcp: who.1,
        hairpin: who.2,
        client: who.3,
        client_port: who.4,
        vip: who.5,
        port: who.6,
        pod: to.0,
        pod_port: to.1,
        peer: to.2,
        seed: to.3,
        ttl: how.0,
        tos: how.1,
        id: how.2,
        label: how.3,
        dont_fragment: how.4,
        options: how.5,
        summed: how.6,
        numbers: what.0,
        push: what.1,
        payload: what.2,
    })
}

impl Case {
    fn net(&self) -> Net {
        Net::BOTH[self.family]
    }

    fn rig(&self) -> Rig {
        let (net, mut tables) = (self.net(), rig::tables());
        let endpoints = [(net.pod(self.peer, self.pod), self.pod_port, 1)];
        let protocol = if self.is_tcp { 6 } else { 17 };
        rig::add_service(&mut tables, 1, net.vip(self.vip), self.port, protocol, &endpoints);
        Rig::with(tables, 64, 256, self.seed).unwrap()
    }

    fn client(&self) -> End {
        let net = self.net();
        let client = if self.hairpin { net.pod(1 - self.peer, 251) } else { net.client(self.client) };
        (client, self.client_port)
    }

    fn vip(&self) -> End {
        (self.net().vip(self.vip), self.port)
    }

    fn pod(&self) -> End {
        (self.net().pod(self.peer, self.pod), self.pod_port)
    }

    /// The packet between these ends.
    fn packet(&self, from: End, to: End) -> Sketch {
        let v4 = self.family == 0;
        let mut packet = if self.is_tcp {
            let flags = if self.push { "PA" } else { "A" };
            tcp(from, to).segment(flags, self.numbers.0, self.numbers.1).window(self.numbers.2)
        } else {
            udp(from, to)
        };
        if !self.is_tcp && v4 && !self.summed {
            packet.body = Body::Udp { summed: false };
        }
        let options = if self.options && v4 { vec![68, 8, 5, 0, 1, 2, 3, 4] } else { Vec::new() };
        Sketch {
            ttl: self.ttl,
            tos: self.tos,
            id: self.id,
            label: self.label,
            dont_fragment: self.dont_fragment,
            options,
            payload: self.payload.clone(),
            ..packet
        }
    }

    /// Lets the rig have a packet from the client.
    fn ask(&self, rig: &mut Rig, packet: &Sketch) {
        if self.hairpin { rig.rx_overlay(self.net(), 1 - self.peer, packet) } else { rig.rx_wan(packet) }
    }

    /// What begins the flow: a SYN, or a datagram unlike the one that follows.
    fn begin(&self, rig: &mut Rig) {
        let first = if self.is_tcp { tcp(self.client(), self.vip()).syn(9) } else { udp(self.client(), self.vip()) };
        self.ask(rig, &first);
        assert_eq!(rig.sent(LAN).len(), 1, "{}", rig.told());
        rig.moved();
    }

    /// How a packet of the flow goes: plain ones the fast way, those with IP options like every other that is not plain.
    fn fast(&self) -> &'static str {
        if self.options && self.family == 0 { "slow_walk" } else { "flow_hit" }
    }

    /// As [`Case::begin`], and in half of the cases the rest of the handshake too.
    fn greet(&self, rig: &mut Rig) {
        self.begin(rig);
        if self.is_tcp && self.push {
            let source = (self.net().source(), port(rig));
            rig.rx_overlay(self.net(), self.peer, &tcp(self.pod(), source).segment("SA", 77, 10));
            self.ask(rig, &tcp(self.client(), self.vip()).segment("A", 10, 78));
            let sent = rig.sent(LAN).len() + rig.sent(WAN).len();
            assert_eq!(sent, 2, "{}", rig.told());
            rig.moved();
        }
    }

    /// Makes flows look at everything again with their next packet.
    fn forget(&self, rig: &mut Rig) {
        rig.publish(|tables| tables.settings.routes_epoch += 1);
    }

    /// What was sent on `device`, and how the packet got there.
    fn way(&self, rig: &mut Rig, device: tidegate_dataplane::table::DeviceId, way: &str) -> Vec<u8> {
        let sent = rig.sent_one(device);
        assert_eq!(rig.moved().get(way), Some(&1), "{}", rig.told());
        rig.expect_balance();
        sent
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn to_the_pod(case in case()) {
        let packet = case.packet(case.client(), case.vip());
        let mut hits = case.rig();
        case.greet(&mut hits);
        case.ask(&mut hits, &packet);
        let hit = case.way(&mut hits, LAN, case.fast());
        let mut walks = case.rig();
        if case.is_tcp {
            case.greet(&mut walks);
            case.forget(&mut walks);
        }
        case.ask(&mut walks, &packet);
        let walk = case.way(&mut walks, LAN, "slow_walk");
        prop_assert_eq!(&hit, &walk, "a hit and a walk");
        let model = Sketch { ttl: case.ttl - 1, ..packet.clone().between((case.net().source(), 0), case.pod()) };
        // Out of the overlay the inner ECN bits stay: the outer ones are 00.
        expect_overlay(case.net(), case.peer, &model, &hit, &hits.told());
    }

    #[test]
    fn back_to_the_client(case in case()) {
        let mut hits = case.rig();
        case.greet(&mut hits);
        let port = port(&hits);
        let packet = case.packet(case.pod(), (case.net().source(), port));
        let device = if case.hairpin { LAN } else { WAN };
        hits.rx_overlay(case.net(), case.peer, &packet);
        let hit = case.way(&mut hits, device, case.fast());
        let mut walks = case.rig();
        case.greet(&mut walks);
        case.forget(&mut walks);
        walks.rx_overlay(case.net(), case.peer, &packet);
        let walk = case.way(&mut walks, device, "slow_walk");
        prop_assert_eq!(&hit, &walk, "a hit and a walk");
        // Answers of several pods leave from one VIP: what may be cut has a number of the gateway's (N-046).
        let left = if case.hairpin { rig::into_peer(&hit).map_or(&hit[..], |(_, _, inner)| inner) } else { &hit };
        let id = identification(left).filter(|_| !case.dont_fragment).unwrap_or(case.id);
        let model = Sketch { ttl: case.ttl - 1, id, ..packet.clone().between(case.vip(), case.client()) };
        if case.hairpin {
            expect_overlay(case.net(), 1 - case.peer, &model, &hit, &hits.told());
        } else {
            prop_assert_eq!(hit, model.frame((rig::WAN_MAC, rig::ROUTER_MAC)), "the model");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// `node-dsr`: a hit, a walk and a packet without a flow differ from what came in the TTL alone.
    #[test]
    fn to_the_node(case in case()) {
        let case = Case { hairpin: false, ..case };
        let packet = case.packet(case.client(), case.vip());
        let rig = || {
            let mut rig = case.rig();
            rig.publish(|tables| rig::deliver_to_nodes(tables, 1, &[(case.peer, 1)]));
            rig
        };
        let mut hits = rig();
        case.begin(&mut hits);
        case.ask(&mut hits, &packet);
        let hit = case.way(&mut hits, LAN, case.fast());
        let mut walks = rig();
        case.begin(&mut walks);
        case.forget(&mut walks);
        case.ask(&mut walks, &packet);
        let walk = case.way(&mut walks, LAN, "slow_walk");
        prop_assert_eq!(&hit, &walk, "a hit and a walk");
        let mut passes = rig();
        let now_ns = passes.now_ns;
        passes.worker.state_mut().pins.set(1, 0, now_ns);
        case.ask(&mut passes, &packet);
        let pass = case.way(&mut passes, LAN, "passed");
        prop_assert_eq!(&hit, &pass, "a hit and a pass");
        expect_overlay(case.net(), case.peer, &packet.clone().ttl(case.ttl - 1), &hit, &hits.told());
    }
}

/// The source port of the only flow.
fn port(rig: &Rig) -> u16 {
    let mut port = 0;
    let state = rig.worker.state();
    state.v4.visit(0, 64, |_, entry| port = entry.translated_tuple().source_port);
    state.v6.visit(0, 64, |_, entry| port = entry.translated_tuple().source_port);
    port
}
