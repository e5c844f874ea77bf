//! Pods that reach each other by their external ports: hops, errors and echoes on a way that comes back in (N-010, N-032 … N-034,
//! L-058, RFC 4787 REQ-9, RFC 5508 REQ-7, T-083 … T-085).

use tidegate_api::explain::{Step, Verdict};
use tidegate_api::resource::{Egress, Filtering, StaticNat};
use tidegate_dataplane::rig::expect::from_peer;
use tidegate_dataplane::rig::fleet::{Fleet, Plan};
use tidegate_dataplane::rig::outside::{self, Outside, external, policy};
use tidegate_dataplane::rig::sketch::{End, Sketch, Trouble, our_trouble, ping, pong, raw, tcp, trouble, udp};
use tidegate_dataplane::rig::{LAN, Net, WAN};

use crate::egress::{names, pod, web};

/// A gateway whose pods let everybody in, and where everything may be spoken.
fn town(workers: u16) -> (Fleet, Outside) {
    let (mut tables, mut outside) = outside::town();
    let mut egress = Egress { other_protocols: true, ..policy(&Net::BOTH.map(|net| external(net, 1))) };
    egress.udp.filtering = Filtering::EndpointIndependent;
    outside.policy(&mut tables, "out", Some(&egress));
    // Three workers follow a NIC, which never sees what comes back in.
    (Fleet::with(tables, Plan { nic: workers == 3, ..Plan::of(workers) }).unwrap(), outside)
}

/// The external port of a pod's datagrams.
fn port_of(fleet: &mut Fleet, net: Net, peer: u8, end: End) -> u16 {
    fleet.rx_overlay(0, net, peer, &udp(end, names(net)));
    let frame = fleet.sent_one(WAN);
    let at = if net == Net::BOTH[0] { 34 } else { 54 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn everywhere() -> impl Iterator<Item = (u16, Net)> {
    [1u16, 2, 3, 8].into_iter().flat_map(|workers| Net::BOTH.map(|net| (workers, net)))
}

#[test]
fn a_way_that_comes_back_in_has_two_hops_and_both_are_told_of() {
    // L-058, N-036, T-085: TTL 1 and 2 end here, and the pod hears of both; with 3 it arrives with 1.
    for (workers, net) in everywhere() {
        let (mut fleet, _) = town(workers);
        let (ours, a, b) = (external(net, 1), pod(net), (net.pod(1, 7), 5060));
        let (to_a, to_b) = (port_of(&mut fleet, net, 0, a), port_of(&mut fleet, net, 1, b));
        for ttl in [1, 2] {
            let short = udp(a, (ours, to_b)).data(*b"trace").ttl(ttl);
            fleet.rx_overlay(usize::from(ttl) % usize::from(workers), net, 0, &short);
            fleet.expect_overlay(net, 0, &our_trouble(net.vtep(), a.0, Trouble::Time, &short.packet()));
        }
        fleet.rx_overlay(0, net, 0, &udp(a, (ours, to_b)).data(*b"trace").ttl(3));
        fleet.expect_overlay(net, 1, &udp((ours, to_a), b).data(*b"trace").ttl(1));
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

#[test]
fn errors_about_what_came_back_in_go_back_the_same_way() {
    // RFC 5508 REQ-7, N-034, T-070: in both directions, with the quote that each side knows.
    for (workers, net) in everywhere() {
        let (mut fleet, _) = town(workers);
        let (ours, a, b) = (external(net, 1), pod(net), (net.pod(1, 7), 5060));
        let (to_a, to_b) = (port_of(&mut fleet, net, 0, a), port_of(&mut fleet, net, 1, b));
        fleet.rx_overlay(0, net, 0, &udp(a, (ours, to_b)).data(*b"hello"));
        fleet.expect_overlay(net, 1, &udp((ours, to_a), b).data(*b"hello").ttl(62));
        fleet.rx_overlay(0, net, 1, &udp(b, (ours, to_a)).data(*b"you"));
        fleet.expect_overlay(net, 0, &udp((ours, to_b), a).data(*b"you").ttl(62));
        for about in [Trouble::Port, Trouble::Host, Trouble::TooBig(1300)] {
            for queue in 0..usize::from(workers) {
                let seen = udp((ours, to_a), b).data(*b"hello").ttl(60).packet();
                let sent = udp(a, (ours, to_b)).data(*b"hello").ttl(60).packet();
                fleet.rx_overlay(queue, net, 1, &trouble(b.0, ours, about, &seen));
                fleet.expect_overlay(net, 0, &trouble(ours, a.0, about, &sent).ttl(62));
            }
        }
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

#[test]
fn what_does_not_fit_the_second_half_is_told_to_who_sent_it() {
    // V-010, N-014: the other pod's node has a narrower link.
    for (workers, net) in everywhere() {
        let (mut fleet, _) = town(workers);
        let (ours, a, b) = (external(net, 1), pod(net), (net.pod(1, 7), 5060));
        let (to_a, to_b) = (port_of(&mut fleet, net, 0, a), port_of(&mut fleet, net, 1, b));
        fleet.publish(|tables| {
            let row = tables.tunnels.row(net.tunnel(1)).cloned().unwrap();
            let row = tidegate_dataplane::table::tunnel::TunnelRow { inner_mtu: 1300, ..row };
            std::sync::Arc::make_mut(&mut tables.tunnels).set(net.tunnel(1), row);
            tables.settings.routes_epoch += 1;
        });
        let long = |packet: Sketch| packet.long(1400);
        fleet.rx_overlay(0, net, 0, &long(udp(a, (ours, to_b))));
        // We say it as the second half's router, and the first half tells the pod of its own packet, one hop on.
        let sent = long(udp(a, (ours, to_b)));
        let mut quoted = sent.clone().ttl(63).packet();
        quoted.truncate(if net == Net::BOTH[0] { 576 - 28 } else { 1280 - 48 });
        let told = trouble(ours, a.0, Trouble::TooBig(1300), &quoted).ours();
        let told = if net == Net::BOTH[0] { told.tos(0xc0) } else { told };
        fleet.expect_overlay(net, 0, &told.ttl(63));
        // What may be cut is.
        if net == Net::BOTH[0] {
            fleet.rx_overlay(0, net, 0, &long(udp(a, (ours, to_b))).may_fragment());
            assert_eq!(fleet.sent(LAN).len(), 2, "{}", fleet.told());
        }
        fleet.rx_overlay(0, net, 0, &udp(a, (ours, to_b)).long(1300));
        fleet.expect_overlay(net, 1, &udp((ours, to_a), b).long(1300).ttl(62));
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

#[test]
fn a_pod_that_pings_an_external_address_is_answered() {
    // T-088 from inside: the address that pods share answers, its own pod's too; and nothing goes round for ever.
    for (workers, net) in everywhere() {
        let (mut fleet, _) = town(workers);
        for (n, p) in [(0, 5), (0, 6), (1, 7)] {
            fleet.rx_overlay(0, net, n, &ping(net.pod(n, p), external(net, 1)));
            let frame = fleet.sent_one(LAN);
            let expected = pong(external(net, 1), net.pod(n, p));
            let ttl = |frame: &[u8]| {
                let (_, _, inner) = tidegate_dataplane::rig::into_peer(frame).unwrap();
                inner[14 + if net == Net::BOTH[0] { 8 } else { 7 }]
            };
            assert!(ttl(&frame) >= 62, "{}", ttl(&frame));
            let (_, _, inner) = tidegate_dataplane::rig::into_peer(&frame).unwrap();
            let wanted = expected.packet();
            let data = wanted.len() - 24..;
            assert_eq!(inner[14..].len(), wanted.len());
            assert_eq!(inner[14..][data.clone()], wanted[data], "identifier, number and data as asked");
        }
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

#[test]
fn a_pod_with_an_address_of_its_own_is_reached_by_it_from_inside() {
    // T-083, T-084 with hairpin: TCP, GRE and echo to a 1:1 address of another pod, which sees the asker's external address.
    for (workers, net) in everywhere() {
        let (mut fleet, mut outside) = town(workers);
        let own = external(net, 9);
        let nat = StaticNat { external: own, internal: net.pod(1, 7), ports: Vec::new() };
        fleet.publish(|tables| outside.fixed(tables, "own", Some(&nat)));
        let (a, b, ours) = (pod(net), net.pod(1, 7), external(net, 1));
        fleet.rx_overlay(0, net, 0, &raw(a.0, own, 47).data([1; 60]));
        fleet.expect_overlay(net, 1, &raw(ours, b, 47).data([1; 60]).ttl(62));
        fleet.rx_overlay(0, net, 1, &raw(b, ours, 47).data([2; 60]));
        fleet.expect_overlay(net, 0, &raw(own, a.0, 47).data([2; 60]).ttl(62));
        fleet.rx_overlay(0, net, 0, &ping(a.0, own));
        assert_eq!(fleet.sent(LAN).len(), 1);
        fleet.rx_overlay(0, net, 0, &tcp(a, (own, 80)).syn(1));
        let (port, _) = fleet.expect_overlay(net, 1, &tcp((ours, 0), (b, 80)).syn(1).ttl(62).mss(crate::mss(net)));
        fleet.rx_overlay(0, net, 1, &tcp((b, 80), (ours, port)).syn_ack(5, 2));
        fleet.expect_overlay(net, 0, &tcp((own, 80), a).syn_ack(5, 2).ttl(62).mss(crate::mss(net)));
        // T-084 without: its own packets leave with its own address.
        fleet.rx_overlay(0, net, 1, &raw(b, web(net).0, 47).data([3; 60]));
        fleet.expect_wan(&raw(own, web(net).0, 47).data([3; 60]).ttl(63));
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

#[test]
fn a_way_that_comes_back_in_is_explained_to_its_end() {
    for (workers, net) in everywhere() {
        let (mut fleet, mut outside) = town(workers);
        let own = external(net, 9);
        let nat = StaticNat { external: own, internal: net.pod(0, 6), ports: Vec::new() };
        fleet.publish(|tables| outside.fixed(tables, "own", Some(&nat)));
        let (ours, a, b) = (external(net, 1), pod(net), (net.pod(1, 7), 5060));
        let to_b = port_of(&mut fleet, net, 1, b);
        let packets = [
            // Both flows begin, then both are known.
            ("sent", udp(a, (ours, to_b))),
            ("sent", udp(a, (ours, to_b))),
            ("sent", tcp(a, (own, 80)).syn(1)),
            ("sent", raw(a.0, own, 47).data([1; 60])),
            ("sent", ping(a.0, own)),
            // Both hops are counted before it goes the second time.
            ("answered", udp(a, (ours, to_b)).ttl(2)),
            // Nobody has that port.
            ("dropped", udp(a, (ours, to_b ^ 1))),
        ];
        for (number, (wanted, packet)) in packets.into_iter().enumerate() {
            let about = format!("packet {number} of {workers} workers, {net:?}");
            let frame = from_peer(net, 0, &packet);
            let first = number % usize::from(workers);
            fleet.moved();
            let live = fleet.live();
            let told = fleet.explain(first, LAN, &frame);
            assert_eq!((fleet.moved(), fleet.live()), (Default::default(), live), "asking changes nothing, {about}");
            let backs = told.steps.iter().filter(|step| **step == Step::TakenBack).count();
            assert_eq!(backs, usize::from(wanted != "answered"), "{about}\n{told:#?}");
            fleet.rx(first, LAN, &frame);
            let (seen, moved) = (fleet.sent(LAN), fleet.moved());
            assert_eq!(moved.get("hairpinned").copied().unwrap_or(0), backs as u64, "{about}");
            match &told.verdict {
                Verdict::Sent { device, .. } => {
                    assert_eq!((wanted, device.as_str(), seen.len()), ("sent", "lan0", 1), "{about}");
                    let said = told.steps.iter().rev().find_map(|step| match step {
                        Step::Translated { source, destination } => Some((*source, *destination)),
                        _ => None,
                    });
                    let left = crate::explain::ends(LAN, &seen[0]);
                    assert!(left.is_none() || left == said, "{about}: {left:?}, but {said:?}");
                    let vtep = told.steps.iter().any(|step| matches!(step, Step::Encapsulated { .. }));
                    assert!(vtep, "{about}");
                }
                Verdict::Answered { .. } => assert_eq!((wanted, seen.len()), ("answered", 1), "{about}"),
                Verdict::Dropped(reason) => {
                    assert_eq!((wanted, seen.len()), ("dropped", 0), "{about}\n{told:#?}");
                    assert_eq!(moved.get(reason.reason.as_str()), Some(&1), "{about}\n{told:#?}");
                }
                other => panic!("{other:?}, {about}"),
            }
        }
        // Of pieces only the first half is told.
        let piece = from_peer(net, 0, &udp(a, (ours, to_b)).data([7; 64]).fragment(0, true));
        assert_eq!(fleet.explain(0, LAN, &piece).verdict, Verdict::Returns);
        fleet.expect_all_frames_home();
    }
}
