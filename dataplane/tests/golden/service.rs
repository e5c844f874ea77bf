//! Services in `fullnat`: both directions, both families, and what happens when endpoints come and go.

use tidegate_dataplane::rig::sketch::{Trouble, our_trouble, ping, pong, tcp, udp};
use tidegate_dataplane::rig::{self, LAN, Net, Rig, WAN};
use tidegate_dataplane::table::backend::BackendState;

use crate::overload::stranger;
use crate::{STARTS, and, ask, client, connect, names, to_names, to_web, town, walked, web};

#[test]
fn a_connection_goes_through_both_ways_with_its_mss_lowered() {
    // T-110, T-134, T-093: there and back; the answer is restored.
    // V-013, L-058: SYN and SYN-ACK are clamped, TTL falls by one, every checksum is right.
    for net in Net::BOTH {
        let mut rig = town();
        let port = connect(&mut rig, net);
        rig.rx_wan(&to_web(net).segment("PA", 101, 501).data(*b"GET / HTTP/1.1\r\n\r\n"));
        let request = tcp((net.source(), port), crate::web_pod(net)).segment("PA", 101, 501);
        rig.expect_overlay(net, 0, &request.data(*b"GET / HTTP/1.1\r\n\r\n").ttl(63));
        rig.expect_counted(crate::HIT_OUT);
        rig.rx_overlay(net, 0, &tcp(crate::web_pod(net), (net.source(), port)).segment("PA", 501, 119).data(*b"200"));
        rig.expect_wan(&tcp(web(net), client(net)).segment("PA", 501, 119).data(*b"200").ttl(63));
        rig.expect_counted(crate::HIT_BACK);
        rig.expect_all_frames_home();
    }
}

#[test]
fn the_first_segment_installs_a_flow_and_the_answer_walks_for_its_mss() {
    for net in Net::BOTH {
        let mut rig = town();
        rig.rx_wan(&to_web(net).syn(100));
        let syn = tcp((net.source(), 0), crate::web_pod(net)).syn(100).mss(crate::mss(net)).ttl(63);
        let (port, _) = rig.expect_overlay(net, 0, &syn);
        rig.expect_counted(&and(STARTS, &[("mss_clamped", 1)]));
        rig.rx_overlay(net, 0, &tcp(crate::web_pod(net), (net.source(), port)).syn_ack(500, 101));
        rig.expect_wan(&tcp(web(net), client(net)).syn_ack(500, 101).mss(crate::mss(net)).ttl(63));
        rig.expect_counted(&[("received", 1), ("slow_walk", 1), ("decapsulated", 1), ("mss_clamped", 1), ("sent", 1)]);
    }
}

#[test]
fn an_mss_that_fits_or_is_absent_stays() {
    for net in Net::BOTH {
        let mut rig = town();
        rig.rx_wan(&to_web(net).syn(100).mss(536));
        rig.expect_overlay(net, 0, &tcp((net.source(), 0), crate::web_pod(net)).syn(100).mss(536).ttl(63));
        rig.expect_counted(STARTS);
        let bare = tcp((net.client(7), 40_001), web(net)).segment("S", 9, 0);
        rig.rx_wan(&bare);
        rig.expect_overlay(net, 0, &bare.between((net.source(), 0), crate::web_pod(net)).ttl(63));
        rig.expect_counted(STARTS);
    }
}

#[test]
fn a_datagram_and_its_answer_go_through() {
    for net in Net::BOTH {
        let mut rig = town();
        rig.rx_wan(&to_names(net));
        let (port, _) =
            rig.expect_overlay(net, 0, &udp((net.source(), 0), crate::names_pod(net)).data(*b"who?").ttl(63));
        rig.expect_counted(STARTS);
        rig.rx_overlay(net, 0, &udp(crate::names_pod(net), (net.source(), port)).data(*b"me"));
        rig.expect_wan(&udp(names(net), client(net)).data(*b"me").ttl(63));
        rig.expect_counted(crate::HIT_BACK);
        rig.rx_wan(&to_names(net));
        rig.expect_overlay(net, 0, &udp((net.source(), port), crate::names_pod(net)).data(*b"who?").ttl(63));
        rig.expect_counted(crate::HIT_OUT);
        rig.expect_all_frames_home();
    }
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    // N-071, T-101
    let net = Net::BOTH[0];
    let mut rig = town();
    rig.rx_wan(&to_names(net).unsummed());
    rig.expect_overlay(net, 0, &udp((net.source(), 0), crate::names_pod(net)).data(*b"who?").unsummed().ttl(63));
    rig.expect_counted(STARTS);
}

#[test]
fn a_service_without_endpoints_refuses_at_once_and_works_as_soon_as_it_has_one() {
    // S-070, S-079 (source is the VIP), S-103 (nothing negative is remembered)
    for net in Net::BOTH {
        let mut rig = town();
        let syn = tcp(client(net), (net.vip(1), 81)).syn(100);
        rig.rx_wan(&syn);
        let reset = tcp((net.vip(1), 81), client(net)).segment("RA", 0, 101).window(0).ours();
        rig.expect_wan(&reset);
        rig.expect_counted(&[("received", 1), ("slow_walk", 1), ("answered_reset", 1), ("sent", 1)]);
        // All of what it carries is acknowledged (RFC 9293 section 3.10.7.1), also what no error would quote.
        rig.rx_wan(&syn.clone().data(vec![b'x'; 1400]));
        rig.expect_wan(&tcp((net.vip(1), 81), client(net)).segment("RA", 0, 101 + 1400).window(0).ours());
        rig.expect_counted(&[("received", 1), ("slow_walk", 1), ("answered_reset", 1), ("sent", 1)]);
        let datagram = udp(client(net), (net.vip(1), 54)).data(*b"anyone?");
        rig.rx_wan(&datagram);
        let expected = our_trouble(net.vip(1), net.client(7), Trouble::Port, &datagram.packet());
        rig.expect_wan(&expected);
        rig.expect_counted(&[("received", 1), ("slow_walk", 1), ("answered_unreachable", 1), ("sent", 1)]);
        assert_eq!(rig.worker.state().live(), 0);
        let base = if net == Net::BOTH[0] { 0 } else { 10 };
        rig.publish(|tables| {
            rig::add_service(tables, base + 3, net.vip(1), 81, 6, &[(net.pod(1, 9), 8081, 1)]);
            rig::add_service(tables, base + 4, net.vip(1), 54, 17, &[(net.pod(1, 9), 5454, 1)]);
        });
        rig.rx_wan(&syn);
        let arrived = tcp((net.source(), 0), (net.pod(1, 9), 8081)).syn(100).mss(crate::mss(net)).ttl(63);
        rig.expect_overlay(net, 1, &arrived);
        rig.expect_counted(&and(STARTS, &[("mss_clamped", 1)]));
        rig.rx_wan(&datagram);
        rig.expect_overlay(net, 1, &datagram.between((net.source(), 0), (net.pod(1, 9), 5454)).ttl(63));
        rig.expect_counted(STARTS);
    }
}

#[test]
fn refusals_are_limited_to_a_thousand_a_second() {
    // S-079
    for net in Net::BOTH {
        let mut rig = town();
        let mut answered = 0;
        for n in 0..1200u16 {
            rig.rx_wan(&tcp((stranger(net, n % 20), 10_000 + n), (net.vip(1), 81)).syn(n.into()));
            answered += rig.sent(WAN).len() as u64;
        }
        // 1200 turns of 10 µs earn 11 more.
        assert_eq!(answered, 1011);
        rig.expect_counted(&[
            ("received", 1200),
            ("slow_walk", 1200),
            ("answered_reset", answered),
            ("sent", answered),
            ("NoBackend", 1200 - answered),
        ]);
        rig.now_ns += 100_000_000;
        let mut answered = 0;
        for n in 0..120u16 {
            rig.rx_wan(&udp((stranger(net, n), 10_000 + n), (net.vip(1), 54)).data(*b"x"));
            answered += rig.sent(WAN).len();
        }
        assert!((100..=102).contains(&answered), "a tenth of a second earns a hundred: {answered}");
    }
}

#[test]
fn the_rate_of_refusals_is_a_setting() {
    // S-079: "default"
    let net = Net::BOTH[0];
    let mut tables = crate::tables();
    tables.settings.reject_rate_per_s = 10;
    let mut rig = Rig::new(tables).unwrap();
    let answered = (0..100u16).filter(|n| {
        rig.rx_wan(&tcp((stranger(net, *n), 10_000), (net.vip(1), 81)).syn(1));
        !rig.sent(WAN).is_empty()
    });
    assert_eq!(answered.count(), 10);
}

#[test]
fn a_reset_is_never_answered_with_a_reset() {
    // RFC 9293 section 3.10.7.1
    for net in Net::BOTH {
        let mut rig = town();
        rig.rx_wan(&tcp(client(net), (net.vip(1), 81)).segment("R", 5, 0));
        rig.expect_silence();
        rig.expect_counted(&walked("NoBackend"));
    }
}

#[test]
fn an_unknown_port_of_a_vip_is_dropped_silently_and_the_vip_still_answers_echo() {
    // T-139, T-095
    // S-074, N-094
    for net in Net::BOTH {
        let mut rig = town();
        rig.rx_wan(&tcp(client(net), (net.vip(1), 8443)).syn(1));
        rig.expect_silence();
        rig.expect_counted(&walked("NoFrontend"));
        rig.rx_wan(&udp(client(net), (net.vip(1), 80)).data(*b"x"));
        rig.expect_silence();
        rig.expect_counted(&walked("NoFrontend"));
        rig.rx_wan(&ping(net.client(7), net.vip(1)));
        rig.expect_wan(&pong(net.vip(1), net.client(7)));
        rig.expect_counted(&[("received", 1), ("answered_echo", 1), ("sent", 1)]);
    }
}

/// Three pods behind two peers for TCP 80 and UDP 53 of `vip(2)`.
fn three(net: Net) -> [rig::Endpoint; 3] {
    [(net.pod(0, 1), 8080, 1), (net.pod(1, 2), 8080, 1), (net.pod(1, 3), 8080, 1)]
}

/// Of the packets on `device`, the pod (0-based) that each went to.
fn pods(rig: &mut Rig, net: Net) -> Vec<usize> {
    let at = if net == Net::BOTH[0] { 30..34 } else { 38..54 };
    let address = |frame: &Vec<u8>| rig::into_peer(frame).unwrap().2[at.clone()].to_vec();
    let octets = |n: usize| match three(net)[n].0 {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let find = |frame: &Vec<u8>| (0..3).find(|n| octets(*n) == address(frame)).unwrap();
    rig.sent(LAN).iter().map(find).collect()
}

#[test]
fn an_endpoint_that_goes_keeps_its_connections_loses_its_datagrams_and_gets_nothing_new() {
    // S-100, S-101, S-102, S-051, T-092; errors about its connections: `errors_to_the_service` of the matrix
    for net in Net::BOTH {
        let (vip, endpoints) = (net.vip(2), three(net));
        let mut tables = rig::tables();
        rig::add_service(&mut tables, 1, vip, 80, 6, &endpoints);
        rig::add_service(&mut tables, 2, vip, 53, 17, &endpoints);
        let mut rig = Rig::new(tables).unwrap();
        let segment = |n: u16| tcp((net.client(n), 40_000), (vip, 80));
        let datagram = |n: u16| udp((net.client(n), 40_000), (vip, 53)).data(*b"x");
        let (mut tcp_before, mut udp_before) = (Vec::new(), Vec::new());
        for n in 0..60 {
            rig.rx_wan(&segment(n).syn(100));
            tcp_before.extend(pods(&mut rig, net));
            rig.rx_wan(&datagram(n));
            udp_before.extend(pods(&mut rig, net));
        }
        rig.moved();
        rig.publish(|tables| {
            rig::remove_endpoint(tables, 1, vip, 80, 6, &endpoints, 1);
            rig::remove_endpoint(tables, 2, vip, 53, 17, &endpoints, 1);
        });
        let (tcp_gone, udp_gone) = (tcp_before.iter().filter(|n| **n == 1), udp_before.iter().filter(|n| **n == 1));
        let (tcp_gone, udp_gone) = (tcp_gone.count() as u64, udp_gone.count() as u64);
        assert!(tcp_gone > 5 && udp_gone > 5);
        for n in 0..60u16 {
            rig.rx_wan(&segment(n).ack(101, 1));
            assert_eq!(pods(&mut rig, net), [tcp_before[usize::from(n)]], "S-100: a connection stays");
        }
        rig.expect_counted(&[
            ("received", 60),
            ("flow_hit", 60 - tcp_gone),
            ("slow_walk", tcp_gone),
            ("flow_revalidated", tcp_gone),
            ("encapsulated", 60),
            ("sent", 60),
        ]);
        for n in 0..60u16 {
            rig.rx_wan(&segment(n).ack(101, 1));
        }
        assert_eq!(pods(&mut rig, net), tcp_before);
        rig.expect_counted(&[("received", 60), ("flow_hit", 60), ("encapsulated", 60), ("sent", 60)]);
        let mut moved_to = [0; 3];
        for n in 0..60u16 {
            rig.rx_wan(&datagram(n));
            let (before, after) = (udp_before[usize::from(n)], pods(&mut rig, net)[0]);
            assert!(after == before || before == 1, "L-005: only flows of the one that went move");
            assert_ne!(after, 1, "S-102: a datagram chooses again");
            moved_to[after] += u64::from(before == 1);
        }
        assert!(moved_to[0] > 0 && moved_to[2] > 0, "spread over those that stay: {moved_to:?}");
        rig.expect_counted(&[
            ("received", 60),
            ("flow_hit", 60 - udp_gone),
            ("slow_walk", udp_gone),
            ("flow_replaced", udp_gone),
            ("flow_installed", udp_gone),
            ("encapsulated", 60),
            ("sent", 60),
        ]);
        for n in 60..120 {
            rig.rx_wan(&segment(n).syn(1));
            rig.rx_wan(&datagram(n));
            assert!(pods(&mut rig, net).iter().all(|pod| *pod != 1), "nothing new");
        }
        let usage = &rig.worker.state().usage;
        let live: u32 = (0..3).map(|n| usage.live(1000 + n) + usage.live(2000 + n)).sum();
        assert_eq!((live, usage.live(2001)), (240, 0));
        rig.expect_all_frames_home();
    }
}

#[test]
fn when_nothing_serves_any_more_flows_keep_what_they_have() {
    // S-102: "If the service port has zero serving endpoints, delete nothing"; S-070 for new ones.
    for net in Net::BOTH {
        let mut rig = town();
        let (tcp_port, udp_port) = (connect(&mut rig, net), ask(&mut rig, net));
        let base = if net == Net::BOTH[0] { 0 } else { 10 };
        rig.publish(|tables| {
            let web = [(net.pod(0, 5), 8080, 1)];
            rig::remove_endpoint(tables, base + 1, net.vip(1), 80, 6, &web, 0);
            let names = [(net.pod(0, 5), 5353, 1)];
            rig::remove_endpoint(tables, base + 2, net.vip(1), 53, 17, &names, 0);
        });
        rig.rx_wan(&to_web(net).ack(101, 501));
        rig.expect_overlay(net, 0, &tcp((net.source(), tcp_port), crate::web_pod(net)).ack(101, 501).ttl(63));
        let revalidated =
            [("received", 1), ("slow_walk", 1), ("flow_revalidated", 1), ("encapsulated", 1), ("sent", 1)];
        rig.expect_counted(&revalidated);
        rig.rx_wan(&to_names(net));
        rig.expect_overlay(net, 0, &udp((net.source(), udp_port), crate::names_pod(net)).data(*b"who?").ttl(63));
        rig.expect_counted(&revalidated);
        rig.rx_wan(&tcp((net.client(8), 1), web(net)).syn(7));
        rig.expect_wan(&tcp(web(net), (net.client(8), 1)).segment("RA", 0, 8).window(0).ours());
        rig.expect_counted(&[("received", 1), ("slow_walk", 1), ("answered_reset", 1), ("sent", 1)]);
        // One that serves again takes the datagrams at once, though the flow was kept (S-102).
        rig.publish(|tables| {
            rig::add_service(
                tables,
                base + 2,
                net.vip(1),
                53,
                17,
                &[(net.pod(0, 5), 5353, 0), (net.pod(1, 7), 5353, 1)],
            );
            std::sync::Arc::make_mut(&mut tables.backends)
                .set_state(tidegate_dataplane::table::BackendId((base + 2) * 1000), BackendState::Gone);
        });
        rig.rx_wan(&to_names(net));
        rig.expect_overlay(net, 1, &udp((net.source(), 0), (net.pod(1, 7), 5353)).data(*b"who?").ttl(63));
        rig.expect_counted(&and(STARTS, &[("flow_replaced", 1)]));
    }
}

#[test]
fn a_draining_endpoint_keeps_its_flows_and_gets_no_new_ones() {
    // L-047
    for net in Net::BOTH {
        let mut rig = town();
        let (tcp_port, udp_port) = (connect(&mut rig, net), ask(&mut rig, net));
        let base = if net == Net::BOTH[0] { 0 } else { 10 };
        rig.publish(|tables| {
            rig::add_service(
                tables,
                base + 1,
                net.vip(1),
                80,
                6,
                &[(net.pod(0, 5), 8080, 0), (net.pod(1, 7), 8080, 1)],
            );
            rig::add_service(
                tables,
                base + 2,
                net.vip(1),
                53,
                17,
                &[(net.pod(0, 5), 5353, 0), (net.pod(1, 7), 5353, 1)],
            );
        });
        let revalidated =
            [("received", 1), ("slow_walk", 1), ("flow_revalidated", 1), ("encapsulated", 1), ("sent", 1)];
        rig.rx_wan(&to_web(net).ack(101, 501));
        rig.expect_overlay(net, 0, &tcp((net.source(), tcp_port), crate::web_pod(net)).ack(101, 501).ttl(63));
        rig.expect_counted(&revalidated);
        rig.rx_wan(&to_names(net));
        rig.expect_overlay(net, 0, &udp((net.source(), udp_port), crate::names_pod(net)).data(*b"who?").ttl(63));
        rig.expect_counted(&revalidated);
        rig.rx_wan(&to_names(net));
        rig.expect_overlay(net, 0, &udp((net.source(), udp_port), crate::names_pod(net)).data(*b"who?").ttl(63));
        rig.expect_counted(crate::HIT_OUT);
        rig.rx_wan(&tcp((net.client(8), 1), web(net)).syn(7));
        let syn = tcp((net.source(), 0), (net.pod(1, 7), 8080)).syn(7).mss(crate::mss(net)).ttl(63);
        rig.expect_overlay(net, 1, &syn);
    }
}

#[test]
fn new_flows_spread_evenly_over_six_pods() {
    // S-051, T-091: within ±10 % of 1/6.
    for net in Net::BOTH {
        let endpoints: Vec<_> = (0..6).map(|n| (net.pod(n % 2, 10 + n), 8080, 1)).collect();
        let mut tables = rig::tables();
        rig::add_service(&mut tables, 1, net.vip(2), 80, 6, &endpoints);
        // A quarter of the table is for handshakes, which is all that this sees.
        let mut rig = Rig::with(tables, 65_536, 1024, 3).unwrap();
        for n in 0..12_000u16 {
            rig.rx_wan(&tcp((net.client(n % 500), 2_000 + n), (net.vip(2), 80)).syn(1));
            assert_eq!(rig.sent(LAN).len(), 1);
        }
        let live: Vec<u32> = (0..6).map(|n| rig.worker.state().usage.live(1000 + n)).collect();
        assert!(live.iter().all(|n| (1800..=2200).contains(n)), "{live:?}");
    }
}

#[test]
fn a_pod_reaches_a_service_through_the_overlay_and_even_itself() {
    // S-061: hairpin, in and out through VXLAN.
    for net in Net::BOTH {
        for (peer, pod) in [(1, net.pod(1, 9)), (0, net.pod(0, 5))] {
            let mut rig = town();
            rig.rx_overlay(net, peer, &tcp((pod, 33_000), web(net)).syn(100));
            let syn = tcp((net.source(), 0), crate::web_pod(net)).syn(100).mss(crate::mss(net)).ttl(63);
            let (port, _) = rig.expect_overlay(net, 0, &syn);
            rig.expect_counted(&and(STARTS, &[("decapsulated", 1), ("mss_clamped", 1)]));
            rig.rx_overlay(net, 0, &tcp(crate::web_pod(net), (net.source(), port)).syn_ack(500, 101));
            let answer = tcp(web(net), (pod, 33_000)).syn_ack(500, 101).mss(crate::mss(net)).ttl(63);
            rig.expect_overlay(net, peer, &answer);
            rig.expect_counted(&[
                ("received", 1),
                ("slow_walk", 1),
                ("decapsulated", 1),
                ("encapsulated", 1),
                ("mss_clamped", 1),
                ("sent", 1),
            ]);
            rig.rx_overlay(net, peer, &tcp((pod, 33_000), web(net)).ack(101, 501));
            rig.expect_overlay(net, 0, &tcp((net.source(), port), crate::web_pod(net)).ack(101, 501).ttl(63));
            rig.expect_counted(&and(crate::HIT_OUT, &[("decapsulated", 1)]));
            rig.expect_all_frames_home();
        }
    }
}
