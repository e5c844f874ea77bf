//! Fragments through egress that others do without: of echo messages, and of what comes back in (N-060, N-094, N-010, T-081,
//! T-082).

use tidegate_api::resource::Filtering;
use tidegate_dataplane::rig::expect::{expect_overlay, from_peer, identification};
use tidegate_dataplane::rig::fleet::{Fleet, Plan};
use tidegate_dataplane::rig::outside::{self, external, policy};
use tidegate_dataplane::rig::sketch::{Body, End, Sketch, ping, pong, udp};
use tidegate_dataplane::rig::{self, FROM_ROUTER, LAN, Net, ROUTER_MAC, WAN, WAN_MAC};

use crate::egress::{names, pod, town, web};
use crate::fragment::cut;

/// Orders in which three pieces can come.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// An echo message with this identifier and 1,992 bytes.
fn long(message: Sketch, id: u16) -> Sketch {
    let [high, low] = id.to_be_bytes();
    let Body::Icmp { kind, code, .. } = message.body else { return message };
    Sketch { body: Body::Icmp { kind, code, rest: [high, low, 0, 9] }, ..message }.data([0x5a; 1992])
}

const SIZES: [usize; 3] = [800, 800, 400];

/// Where the first piece of an order stands, then the others as they come.
fn as_they_leave(order: [usize; 3]) -> Vec<usize> {
    std::iter::once(0).chain(order.into_iter().filter(|piece| *piece != 0)).collect()
}

#[test]
fn long_echoes_pass_in_pieces_both_ways() {
    // T-081 for ICMP, N-094: every order, both families, one to eight workers.
    for (workers, net) in [1u16, 2, 8].into_iter().flat_map(|workers| Net::BOTH.map(|net| (workers, net))) {
        let (tables, _) = outside::town();
        let mut fleet = Fleet::with(tables, Plan::of(workers)).unwrap();
        let (ours, remote, queues) = (external(net, 1), web(net).0, usize::from(workers));
        for (n, order) in ORDERS.into_iter().enumerate() {
            let inside = 100 + n as u16;
            let asked = Sketch { id: 0x6000 + n as u16, ..long(ping(pod(net).0, remote), inside) };
            let pieces = cut(&asked, &SIZES);
            for (k, at) in order.into_iter().enumerate() {
                fleet.rx_overlay((n + k) % queues, net, 0, &pieces[at]);
            }
            let sent = fleet.sent(WAN);
            assert_eq!(sent.len(), 3, "{}", fleet.told());
            let l3 = if net == Net::BOTH[0] { 34 } else { 62 };
            let first = sent.iter().find(|frame| frame[l3..l3 + 2] == [asked_kind(net), 0]).unwrap();
            let id = u16::from_be_bytes([first[l3 + 4], first[l3 + 5]]);
            let expected = cut(&long(ping(ours, remote), id).ttl(63), &SIZES);
            for at in as_they_leave(order) {
                let expected = Sketch { id: asked.id, ..expected[at].clone() }.frame((WAN_MAC, ROUTER_MAC));
                assert!(sent.iter().any(|frame| is_same(frame, &expected)), "piece {at}: {}", fleet.told());
            }
            let answer = Sketch { id: 0x7000 + n as u16, ..long(pong(remote, ours), id) };
            for (k, at) in order.into_iter().enumerate() {
                fleet.rx(((n + k + 1) % queues).min(queues - 1), WAN, &cut(&answer, &SIZES)[at].frame(FROM_ROUTER));
            }
            let sent = fleet.sent(LAN);
            assert_eq!(sent.len(), 3, "{}", fleet.told());
            let expected = cut(&Sketch { id: answer.id, ..long(pong(remote, pod(net).0), inside).ttl(63) }, &SIZES);
            if workers == 1 {
                for (frame, at) in sent.iter().zip(as_they_leave(order)) {
                    expect_overlay(net, 0, &expected[at], frame, &fleet.told());
                }
            }
        }
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

/// Type of an echo request.
fn asked_kind(net: Net) -> u8 {
    if net == Net::BOTH[0] { 8 } else { 128 }
}

/// Equal but for the identification over IPv4, and the checksum over that.
fn is_same(frame: &[u8], expected: &[u8]) -> bool {
    let nameless = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        if identification(&frame).is_some() {
            frame[18..20].fill(0);
            frame[24..26].fill(0);
        }
        frame
    };
    nameless(frame) == nameless(expected)
}

#[test]
fn long_questions_from_outside_are_not_answered_and_take_no_room() {
    // T-088: an echo request to the address itself is answered, but not in pieces; nor may it be led to a pod.
    for net in Net::BOTH {
        let (mut rig, _) = town();
        rig.rx_overlay(net, 0, &ping(pod(net).0, web(net).0));
        let frame = rig.sent_one(WAN);
        let l3 = if net == Net::BOTH[0] { 34 } else { 54 };
        let id = u16::from_be_bytes([frame[l3 + 4], frame[l3 + 5]]);
        rig.moved();
        for piece in cut(&long(ping(web(net).0, external(net, 1)), id), &SIZES) {
            rig.rx_wan(&piece);
        }
        rig.expect_silence();
        assert_eq!(
            rig.moved().get("FragmentUntracked"),
            Some(&1),
            "the others wait for a first one that does not come"
        );
        rig.now_ns += 3_000_000_000;
        rig.turn();
        assert!(rig.worker.state().fragments.is_empty());
        // Nor of a pod to another, or to a VIP.
        for to in [net.pod(1, 7), net.vip(1)] {
            for piece in cut(&long(ping(net.pod(0, 99), to), 5), &SIZES) {
                rig.rx(LAN, &from_peer(net, 0, &piece));
            }
        }
        rig.expect_silence();
        assert!(rig.worker.state().fragments.is_empty());
    }
}

#[test]
fn what_comes_back_in_comes_back_in_pieces() {
    // T-082, N-010: a pod's datagram to another's external port, in pieces, in every order, on every queue.
    for (workers, net) in [1u16, 2, 3, 8].into_iter().flat_map(|workers| Net::BOTH.map(|net| (workers, net))) {
        let (mut tables, mut outside) = outside::town();
        let mut egress = policy(&Net::BOTH.map(|net| external(net, 1)));
        egress.udp.filtering = Filtering::EndpointIndependent;
        outside.policy(&mut tables, "out", Some(&egress));
        let mut fleet = Fleet::with(tables, Plan::of(workers)).unwrap();
        let (ours, queues) = (external(net, 1), usize::from(workers));
        let (a, b): (End, End) = (pod(net), (net.pod(1, 7), 5060));
        let l4 = if net == Net::BOTH[0] { 34 } else { 54 };
        let mut port_of = |peer: u8, end: End| {
            fleet.rx_overlay(0, net, peer, &udp(end, names(net)));
            let frame = fleet.sent_one(WAN);
            u16::from_be_bytes([frame[l4], frame[l4 + 1]])
        };
        let (to_a, to_b) = (port_of(0, a), port_of(1, b));
        for (n, order) in ORDERS.into_iter().enumerate() {
            let asked = Sketch { id: n as u16, ..udp(a, (ours, to_b)).data([0x5a; 1992]) };
            let pieces = cut(&asked, &SIZES);
            for (k, at) in order.into_iter().enumerate() {
                fleet.rx_overlay((n + k) % queues, net, 0, &pieces[at]);
            }
            let sent = fleet.sent(LAN);
            assert_eq!(sent.len(), 3, "{workers} workers, {order:?}\n{}", fleet.told());
            let id = identification(rig::into_peer(&sent[0]).unwrap().2).unwrap_or(asked.id);
            let expected = cut(&Sketch { id, ..udp((ours, to_a), b).data([0x5a; 1992]).ttl(62) }, &SIZES);
            for (frame, at) in sent.iter().zip(as_they_leave(order)) {
                expect_overlay(net, 1, &expected[at], frame, &fleet.told());
            }
        }
        assert_eq!(fleet.counted().get("HandOverLoop"), None);
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}
