//! VXLAN on: source ports, ECN, identification, what does not fit.

use std::collections::BTreeMap;

use tidegate_dataplane::rig::sketch::{Trouble, our_trouble, tcp, udp};
use tidegate_dataplane::rig::{LAN, Net, Rig};

use crate::{HIT_OUT, STARTS, and, ask, client, connect, inner_mtu, names, names_pod, to_names, to_web, town, web_pod};

#[test]
fn the_outer_source_port_is_one_per_flow_and_spread_over_the_dynamic_range() {
    // T-169, V-003: "10 000 flows ⇒ chi-square flat over range; all packets of a flow share one port".
    for net in Net::BOTH {
        let mut rig = Rig::with(crate::tables(), 16_384, 1024, 3).unwrap();
        let mut bins = [0u32; 64];
        for n in 0..10_000u16 {
            let packet = udp((net.client(n % 100), 2_000 + n), names(net)).data(*b"x");
            rig.rx_wan(&packet);
            let expected = udp((net.source(), 0), names_pod(net)).data(*b"x").ttl(63);
            let (port, outer) = rig.expect_overlay(net, 0, &expected);
            bins[usize::from(outer.source_port - 49_152) / 256] += 1;
            if n % 50 == 0 {
                rig.rx_wan(&packet.clone().data(*b"some more"));
                let more = udp((net.source(), port), names_pod(net)).data(*b"some more").ttl(63);
                assert_eq!(rig.expect_overlay(net, 0, &more).1.source_port, outer.source_port);
            }
        }
        let expected = 10_000.0 / 64.0;
        let chi: f64 = bins.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
        // 63 degrees of freedom: beyond 113 once in ten thousand tries; the seed is fixed.
        assert!(chi < 113.0, "chi-square {chi}: {bins:?}");
    }
}

#[test]
pub(crate) fn ecn_goes_outside_as_the_kernel_does_it_and_dscp_stays_inside() {
    // V-017, V-008; checked by the expectation itself: 00→00, 01→01, 10→10, 11→10.
    for net in Net::BOTH {
        let mut rig = town();
        let port = ask(&mut rig, net);
        for ecn in 0..4 {
            let tos = 0xb8 | ecn;
            rig.rx_wan(&to_names(net).tos(tos));
            let (_, outer) =
                rig.expect_overlay(net, 0, &udp((net.source(), port), names_pod(net)).data(*b"who?").ttl(63).tos(tos));
            assert_eq!(outer.tos, [0, 1, 2, 2][usize::from(ecn)]);
            rig.expect_counted(HIT_OUT);
        }
    }
}

#[test]
fn the_outer_identification_varies() {
    // V-006, RFC 6864
    let net = Net::BOTH[0];
    let mut rig = town();
    let port = connect(&mut rig, net);
    let mut ids = BTreeMap::new();
    for n in 0..1000u32 {
        rig.rx_wan(&to_web(net).ack(101 + n * 1410, 501));
        let expected = tcp((net.source(), port), web_pod(net)).ack(101 + n * 1410, 501).ttl(63);
        *ids.entry(rig.expect_overlay(net, 0, &expected).1.id).or_insert(0) += 1;
    }
    assert!(ids.len() > 950, "{}", ids.len());
}

#[test]
fn what_does_not_fit_is_answered_from_the_vip_with_the_size_that_does() {
    // L-051, V-010, V-052, T-119: 1500 bytes with DF ⇒ ICMP 3/4 mtu 1450 quoting the client's own packet; PTB 1430.
    for net in Net::BOTH {
        let mut rig = town();
        let too_big = [("received", 1), ("slow_walk", 1), ("answered_too_big", 1), ("sent", 1)];
        let mtu = inner_mtu(net);
        // A flow that is not there yet is not begun.
        let datagram = udp(client(net), names(net)).long(1500);
        rig.rx_wan(&datagram);
        rig.expect_wan(&our_trouble(net.vip(1), net.client(7), Trouble::TooBig(mtu), &datagram.packet()));
        rig.expect_counted(&too_big);
        assert_eq!(rig.worker.state().live(), 0);
        let (tcp_port, udp_port) = (connect(&mut rig, net), ask(&mut rig, net));
        rig.rx_wan(&datagram);
        rig.expect_wan(&our_trouble(net.vip(1), net.client(7), Trouble::TooBig(mtu), &datagram.packet()));
        rig.expect_counted(&too_big);
        let segment = to_web(net).ack(101, 501).long(usize::from(mtu) + 1);
        rig.rx_wan(&segment);
        rig.expect_wan(&our_trouble(net.vip(1), net.client(7), Trouble::TooBig(mtu), &segment.packet()));
        rig.expect_counted(&too_big);
        // What just fits goes, and is a full frame outside.
        let segment = to_web(net).ack(101, 501).long(mtu.into());
        rig.rx_wan(&segment);
        let expected = segment.between((net.source(), tcp_port), web_pod(net)).ttl(63);
        rig.expect_overlay(net, 0, &expected);
        rig.expect_counted(HIT_OUT);
        let datagram = udp(client(net), names(net)).long(mtu.into());
        rig.rx_wan(&datagram);
        rig.expect_overlay(net, 0, &datagram.between((net.source(), udp_port), names_pod(net)).ttl(63));
        rig.expect_counted(HIT_OUT);
    }
}

#[test]
pub(crate) fn too_big_is_not_answered_without_limit() {
    // V-052: "Rate-limited"
    for net in Net::BOTH {
        let mut rig = town();
        let datagram = udp(client(net), names(net)).long(1500);
        for _ in 0..1100 {
            rig.rx_wan(&datagram);
            rig.sent(tidegate_dataplane::rig::WAN);
        }
        let moved = rig.moved();
        assert_eq!(moved["answered_too_big"] + moved["TooBig"], 1100);
        // One source has an eighth of a thousand, and 11 ms have earned one more.
        assert_eq!(moved["answered_too_big"], 126, "{moved:?}");
    }
}

#[test]
fn a_pod_that_sends_too_much_hears_it_inside_the_overlay() {
    // Through the overlay and back into it: the pod's own path is as narrow as ours, so this takes a wrong MTU there.
    for net in Net::BOTH {
        let mut rig = town();
        let datagram = udp((net.pod(1, 9), 4000), names(net)).long(usize::from(inner_mtu(net)) + 8);
        rig.rx_overlay(net, 1, &datagram);
        let about = Trouble::TooBig(inner_mtu(net));
        rig.expect_overlay(net, 1, &our_trouble(net.vip(1), net.pod(1, 9), about, &datagram.packet()));
        let both = [("received", 1), ("slow_walk", 1), ("decapsulated", 1), ("encapsulated", 1), ("sent", 1)];
        rig.expect_counted(&and(&both, &[("answered_too_big", 1)]));
    }
}

#[test]
fn padding_is_cut_off_before_a_packet_travels_on() {
    // IEEE 802.3: frames are padded to 60 bytes.
    for net in Net::BOTH {
        let mut rig = town();
        let mut frame = udp(client(net), names(net)).data(*b"a").frame(tidegate_dataplane::rig::FROM_ROUTER);
        frame.resize(frame.len() + 17, 0xee);
        rig.rx(tidegate_dataplane::rig::WAN, &frame);
        let (port, _) = rig.expect_overlay(net, 0, &udp((net.source(), 0), names_pod(net)).data(*b"a").ttl(63));
        rig.expect_counted(STARTS);
        let answer = udp(names_pod(net), (net.source(), port)).data(*b"b");
        let mut frame = tidegate_dataplane::rig::expect::from_peer(net, 0, &answer);
        frame.resize(frame.len() + 5, 0xee);
        rig.rx(LAN, &frame);
        rig.expect_wan(&udp(names(net), client(net)).data(*b"b").ttl(63));
        rig.expect_counted(crate::HIT_BACK);
    }
}
