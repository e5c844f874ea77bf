//! IPv4 identifications: packets that may be cut, of several pods or clients that share an address, leave with numbers that do
//! not meet; all pieces of one with the same (N-046, RFC 6864 section 5.3.1).

use std::collections::BTreeSet;

use tidegate_dataplane::rig::expect::identification;
use tidegate_dataplane::rig::fleet::{Fleet, Plan};
use tidegate_dataplane::rig::outside::{self, external};
use tidegate_dataplane::rig::sketch::{End, Sketch, Trouble, ping, raw, tcp, trouble, udp};
use tidegate_dataplane::rig::{self, FROM_ROUTER, LAN, Net, Rig, WAN};
use tidegate_dataplane::table::Tables;

use crate::egress::{change, names, pod, send, town, web};

const V4: Net = Net::BOTH[0];

/// Identifications of everything that was sent to the router.
fn left(rig: &mut Rig) -> Vec<u16> {
    rig.sent(WAN).iter().filter_map(|frame| identification(frame)).collect()
}

/// Of one packet.
#[track_caller]
fn one(rig: &mut Rig) -> u16 {
    let left = left(rig);
    assert_eq!(left.len(), 1, "{}", rig.told());
    left[0]
}

fn with_id(packet: Sketch, id: u16) -> Sketch {
    Sketch { id, ..packet }
}

#[test]
pub(crate) fn datagrams_of_pods_that_share_an_address_have_numbers_of_their_own() {
    // N-046: whatever number the pods give theirs, the same all the time.
    let (mut rig, _) = town();
    let mut seen = BTreeSet::new();
    for n in 0..500u16 {
        for p in [5, 6] {
            rig.rx_overlay(V4, 0, &with_id(udp((V4.pod(0, p), 7), names(V4)).may_fragment(), n % 3));
            assert!(seen.insert(one(&mut rig)), "twice");
        }
    }
    // The header's checksum is right: the frame is what etherparse makes of it.
    let port = send(&mut rig, V4, pod(V4), names(V4));
    rig.rx_overlay(V4, 0, &udp(pod(V4), names(V4)).data(*b"cut me").may_fragment());
    rig.expect_wan(&udp((external(V4, 1), port), names(V4)).data(*b"cut me").may_fragment().ttl(63));
}

#[test]
fn what_cannot_be_cut_keeps_its_number() {
    // RFC 6864 section 4.1: it is nobody's business there. This is what nearly every packet is.
    let (mut rig, _) = town();
    rig.rx_overlay(V4, 0, &with_id(tcp(pod(V4), web(V4)).syn(1), 0x4321));
    assert_eq!(one(&mut rig), 0x4321);
    for id in [0, 1, 0xffff] {
        rig.rx_overlay(V4, 0, &with_id(udp(pod(V4), names(V4)), id));
        assert_eq!(one(&mut rig), id);
    }
}

#[test]
fn what_has_one_sender_keeps_its_number() {
    // To a pod, and of a protocol that one pod speaks with the remote.
    let (mut rig, mut outside) = town();
    change(&mut rig, &mut outside, |egress| egress.other_protocols = true);
    let port = send(&mut rig, V4, pod(V4), names(V4));
    rig.rx_wan(&with_id(udp(names(V4), (external(V4, 1), port)).may_fragment(), 77));
    rig.expect_overlay(V4, 0, &with_id(udp(names(V4), pod(V4)).may_fragment(), 77).ttl(63));
    rig.rx_overlay(V4, 0, &with_id(raw(pod(V4).0, web(V4).0, 47).data([0; 40]).may_fragment(), 78));
    assert_eq!(one(&mut rig), 78);
}

#[test]
fn what_leaves_untranslated_is_left_alone() {
    let (mut rig, mut outside) = town();
    change(&mut rig, &mut outside, |egress| egress.except = vec![names(V4).0.into()]);
    rig.rx_overlay(V4, 0, &with_id(udp(pod(V4), names(V4)).may_fragment(), 99));
    assert_eq!(one(&mut rig), 99);
    for piece in crate::fragment::cut(&with_id(udp(pod(V4), names(V4)).data([7; 1992]), 98), &[800, 800, 400]) {
        rig.rx_overlay(V4, 0, &piece);
        assert_eq!(one(&mut rig), 98);
    }
}

/// Pieces of a datagram of `from` with this number.
fn pieces(from: End, to: End, id: u16) -> Vec<Sketch> {
    crate::fragment::cut(&with_id(udp(from, to).data([7; 1992]), id), &[800, 800, 400])
}

#[test]
pub(crate) fn all_pieces_of_a_datagram_have_one_number_and_no_other_datagram_has_it() {
    // N-046, N-060: both pods use the same number at the same time, and pieces come in every order.
    let (mut rig, _) = town();
    let mut seen = BTreeSet::new();
    for (n, order) in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]].into_iter().enumerate() {
        let both = [5, 6].map(|p| pieces((V4.pod(0, p), 7), names(V4), n as u16));
        let mut left_as = [BTreeSet::new(), BTreeSet::new()];
        for at in order {
            for (pieces, left_as) in both.iter().zip(&mut left_as) {
                rig.rx_overlay(V4, 0, &pieces[at]);
                left_as.extend(left(&mut rig));
            }
        }
        for left_as in left_as {
            assert_eq!(left_as.len(), 1, "{order:?}: {left_as:?}");
            assert!(seen.is_disjoint(&left_as));
            seen.extend(left_as);
        }
    }
    rig.expect_balance();
    rig.expect_all_frames_home();
}

#[test]
fn what_is_cut_here_is_cut_with_the_new_number() {
    let (tables, _) = outside::town();
    let mut rig = Rig::with(tables, 4096, 4096, 1).unwrap();
    rig.publish(|tables| {
        let row = tables.devices.row(WAN).cloned().unwrap();
        let row = tidegate_dataplane::table::device::DeviceRow { mtu: 1000, ..row };
        std::sync::Arc::make_mut(&mut tables.devices).set(WAN, row);
    });
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        rig.rx_overlay(V4, 0, &with_id(udp(pod(V4), names(V4)).data([7; 1400]).may_fragment(), 5));
        let left: BTreeSet<u16> = left(&mut rig).into_iter().collect();
        assert_eq!(left.len(), 1);
        seen.extend(left);
    }
    assert_eq!(seen.len(), 20);
}

#[test]
fn echoes_and_errors_of_pods_have_numbers_of_their_own() {
    let (mut rig, _) = town();
    let mut seen = BTreeSet::new();
    let port = send(&mut rig, V4, pod(V4), names(V4));
    for _ in 0..50 {
        for p in [5, 6] {
            rig.rx_overlay(V4, 0, &with_id(ping(V4.pod(0, p), names(V4).0).may_fragment(), 4));
            assert!(seen.insert(one(&mut rig)));
        }
        let told = udp(names(V4), pod(V4)).data(*b"me").ttl(60).packet();
        rig.rx_overlay(V4, 0, &with_id(trouble(pod(V4).0, names(V4).0, Trouble::Port, &told).may_fragment(), 4));
        let frame = rig.sent_one(WAN);
        assert!(seen.insert(identification(&frame).unwrap()));
        let seen = udp(names(V4), (external(V4, 1), port)).data(*b"me").ttl(60).packet();
        let expected = trouble(external(V4, 1), names(V4).0, Trouble::Port, &seen).may_fragment().ttl(63);
        rig::expect::same(&frame, &expected.frame((rig::WAN_MAC, rig::ROUTER_MAC)), "");
    }
}

#[test]
fn workers_that_know_nothing_of_each_other_do_not_meet() {
    for workers in [2u16, 3, 8] {
        let (mut tables, mut outside) = outside::town();
        for n in 10..40 {
            outside.pod(&mut tables, &format!("shop/more-{n}"), &[V4.pod(0, n)], &["out"]);
        }
        let mut fleet = Fleet::with(tables, Plan::of(workers)).unwrap();
        let mut seen = BTreeSet::new();
        for (round, p) in (0..30u16).flat_map(|round| (10..40).map(move |p| (round, p))) {
            let queue = usize::from(round + u16::from(p)) % usize::from(workers);
            let id = |fleet: &mut Fleet| -> BTreeSet<u16> {
                fleet.sent(WAN).iter().filter_map(|frame| identification(frame)).collect()
            };
            fleet.rx_overlay(queue, V4, 0, &with_id(udp((V4.pod(0, p), 7), names(V4)).may_fragment(), round));
            let whole = id(&mut fleet);
            for piece in pieces((V4.pod(0, p), 7), names(V4), round) {
                fleet.rx_overlay(queue, V4, 0, &piece);
            }
            let cut = id(&mut fleet);
            assert_eq!((whole.len(), cut.len()), (1, 1), "{}", fleet.told());
            assert!(seen.is_disjoint(&whole) && seen.is_disjoint(&cut) && whole != cut, "{workers} workers");
            seen.extend(whole.into_iter().chain(cut));
        }
        assert!(fleet.sent(LAN).is_empty());
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

/// Identifications of the packets inside what was sent to pods.
fn led(frames: &[Vec<u8>]) -> Vec<u16> {
    frames.iter().filter_map(|frame| identification(rig::into_peer(frame)?.2)).collect()
}

/// The Services of all tests, and another VIP for the same pod.
fn two_vips() -> (Tables, [End; 2]) {
    let mut tables = crate::tables();
    let (address, port) = crate::names_pod(V4);
    let other = V4.vip(7);
    rig::add_service(&mut tables, 77, other, 53, 17, &[(address, port, 1)]);
    (tables, [crate::names(V4), (other, 53)])
}

#[test]
pub(crate) fn datagrams_of_clients_that_share_a_source_have_numbers_of_their_own() {
    // N-046 in fullnat: many clients, two VIPs, one source towards one pod; whole datagrams and pieces at the same time.
    for workers in [1u16, 2, 3] {
        let (tables, vips) = two_vips();
        let mut fleet = Fleet::with(tables, Plan::of(workers)).unwrap();
        let mut seen = BTreeSet::new();
        for n in 0..200u16 {
            let (from, to) = ((V4.client(n), 9), vips[usize::from(n % 2)]);
            let queue = usize::from(n % workers);
            fleet.rx(queue, WAN, &with_id(udp(from, to).data(*b"?").may_fragment(), 7).frame(FROM_ROUTER));
            let whole = led(&fleet.sent(LAN));
            for piece in pieces(from, to, 7) {
                fleet.rx(queue, WAN, &piece.frame(FROM_ROUTER));
            }
            let cut = led(&fleet.sent(LAN));
            assert_eq!((whole.len(), cut.len()), (1, 3), "{}", fleet.told());
            let cut: BTreeSet<u16> = cut.into_iter().collect();
            assert_eq!(cut.len(), 1, "all pieces of one datagram");
            for id in whole.into_iter().chain(cut) {
                assert!(seen.insert(id), "{id} twice with {workers} workers");
            }
        }
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

#[test]
fn answers_of_pods_that_share_a_vip_have_numbers_of_their_own() {
    // Both ends change on the way back, too: pods count alike, and their answers leave from one VIP.
    let pods = [(V4.pod(0, 5), 5353), (V4.pod(0, 6), 5353)];
    let mut tables = rig::tables();
    rig::add_service(&mut tables, 77, V4.vip(7), 53, 17, &pods.map(|(address, port)| (address, port, 1)));
    let mut rig = Rig::new(tables).unwrap();
    let (mut seen, mut answered) = (BTreeSet::new(), BTreeSet::new());
    for n in 0..200u16 {
        let client = (V4.client(9), 1000 + n);
        rig.rx_wan(&udp(client, (V4.vip(7), 53)).data(*b"?"));
        let sent = rig.sent(LAN);
        let (_, _, inner) = rig::into_peer(&sent[0]).unwrap();
        let (port, pod) = (u16::from_be_bytes([inner[34], inner[35]]), inner[33]);
        let pod = pods.into_iter().find(|(address, _)| address.to_string().ends_with(&format!(".{pod}"))).unwrap();
        answered.insert(pod);
        rig.rx_overlay(V4, 0, &with_id(udp(pod, (V4.source(), port)).data(*b"!").may_fragment(), 7));
        assert!(seen.insert(one(&mut rig)), "twice");
        for piece in pieces(pod, (V4.source(), port), 7) {
            rig.rx_overlay(V4, 0, &piece);
        }
        let cut: BTreeSet<u16> = left(&mut rig).into_iter().collect();
        assert_eq!(cut.len(), 1);
        assert!(cut.into_iter().all(|id| seen.insert(id)), "twice");
        // What cannot be cut keeps its number.
        rig.rx_overlay(V4, 0, &with_id(udp(pod, (V4.source(), port)).data(*b"!"), 7));
        assert_eq!(one(&mut rig), 7);
    }
    assert_eq!(answered.len(), 2, "of both pods");
}
