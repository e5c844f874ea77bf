//! ICMP errors that quote our flows: both directions, truncated quotes, and those that are not believed.

use tidegate_dataplane::rig::sketch::{Sketch, Trouble, tcp, trouble, udp};
use tidegate_dataplane::rig::{FROM_ROUTER, LAN, Net, Rig, WAN};

use crate::{and, ask, client, connect, names, names_pod, to_names, town, walked, web, web_pod};

const TRANSLATED_IN: &[(&str, u64)] =
    &[("received", 1), ("slow_walk", 1), ("error_translated", 1), ("encapsulated", 1), ("sent", 1)];
const TRANSLATED_OUT: &[(&str, u64)] =
    &[("received", 1), ("slow_walk", 1), ("error_translated", 1), ("decapsulated", 1), ("sent", 1)];

/// A rig with both flows, and what each end knows of a packet of each: (as the client's side sees it, as the pod's does),
/// first for packets to the client, then for packets to the pod.
struct Known {
    rig: Rig,
    to_client: [(Sketch, Sketch); 2],
    to_pod: [(Sketch, Sketch); 2],
}

fn known(net: Net) -> Known {
    let mut rig = town();
    let (tcp_port, udp_port) = (connect(&mut rig, net), ask(&mut rig, net));
    let segment = |from, to| tcp(from, to).segment("PA", 700, 800).data(vec![7; 600]).ttl(33);
    let datagram = |from, to| udp(from, to).data(vec![9; 600]).ttl(33);
    let source = |port| (net.source(), port);
    Known {
        rig,
        to_client: [
            (segment(web(net), client(net)), segment(web_pod(net), source(tcp_port))),
            (datagram(names(net), client(net)), datagram(names_pod(net), source(udp_port))),
        ],
        to_pod: [
            (segment(client(net), web(net)), segment(source(tcp_port), web_pod(net))),
            (datagram(client(net), names(net)), datagram(source(udp_port), names_pod(net))),
        ],
    }
}

/// How much of a packet is quoted: bytes behind the IP header, the least first (RFC 792).
const QUOTED: [usize; 6] = [8, 12, 16, 20, 28, 500];

fn troubles() -> [Trouble; 4] {
    [Trouble::Host, Trouble::Port, Trouble::TooBig(1400), Trouble::Time]
}

fn header(net: Net) -> usize {
    if net == Net::BOTH[0] { 20 } else { 40 }
}

#[test]
fn an_error_to_the_vip_goes_to_the_pod_whose_packet_it_quotes() {
    // T-113
    // L-050, S-075, N-074
    for net in Net::BOTH {
        let Known { mut rig, to_client, .. } = known(net);
        for (seen, sent_by_pod) in &to_client {
            for about in troubles() {
                for length in QUOTED.map(|more| header(net) + more) {
                    let router = net.client(999);
                    rig.rx_wan(&trouble(router, net.vip(1), about, &seen.packet()[..length]));
                    let quote = &sent_by_pod.packet()[..length];
                    let expected = trouble(net.source(), sent_by_pod.from.0, about, quote).ttl(63);
                    rig.expect_overlay(net, 0, &expected);
                    rig.expect_counted(TRANSLATED_IN);
                }
            }
        }
        rig.expect_all_frames_home();
    }
}

#[test]
fn an_error_out_of_the_overlay_goes_to_the_client_as_from_the_vip() {
    // L-050: from the pod itself or from its node
    for net in Net::BOTH {
        let Known { mut rig, to_pod, .. } = known(net);
        for (sent_by_client, seen) in &to_pod {
            for about in troubles() {
                for from in [net.pod(0, 5), net.peer(0), net.pod(0, 0)] {
                    for length in QUOTED.map(|more| header(net) + more) {
                        rig.rx_overlay(net, 0, &trouble(from, net.source(), about, &seen.packet()[..length]));
                        let quote = &sent_by_client.packet()[..length];
                        rig.expect_wan(&trouble(net.vip(1), net.client(7), about, quote).ttl(63));
                        rig.expect_counted(TRANSLATED_OUT);
                    }
                }
            }
        }
    }
}

#[test]
fn errors_that_quote_no_flow_end_here() {
    for net in Net::BOTH {
        let Known { mut rig, .. } = known(net);
        let quoted = tcp(web(net), (net.client(7), 41_111)).ack(1, 1).packet();
        rig.rx_wan(&trouble(net.client(9), net.vip(1), Trouble::Host, &quoted));
        rig.expect_silence();
        rig.expect_counted(&walked("ErrorUnmatched"));
    }
}

#[test]
fn errors_that_do_not_hold_together_end_here() {
    // N-031: REQ-3 and 3a
    for net in Net::BOTH {
        let Known { mut rig, to_client, .. } = known(net);
        let quoted = to_client[1].0.packet();
        let error = trouble(net.client(9), net.vip(1), Trouble::Port, &quoted);
        // The quoted L4 checksum is not looked at (3c).
        let mut other = quoted.clone();
        *other.last_mut().unwrap() ^= 1;
        rig.rx_wan(&trouble(net.client(9), net.vip(1), Trouble::Port, &other));
        assert_eq!(rig.sent(LAN).len(), 1);
        rig.expect_counted(TRANSLATED_IN);
        let mut frame = error.frame(FROM_ROUTER);
        *frame.last_mut().unwrap() ^= 1;
        rig.rx(WAN, &frame);
        rig.expect_silence();
        rig.expect_counted(&walked("IcmpBadChecksum"));
        // Too little to name a flow.
        for length in [0, 1, header(net) - 1, header(net), header(net) + 7] {
            rig.rx_wan(&trouble(net.client(9), net.vip(1), Trouble::Port, &quoted[..length]));
            rig.expect_silence();
            rig.expect_counted(&[("received", 1), ("QuoteMalformed", 1)]);
        }
        if net == Net::BOTH[0] {
            let mut broken = quoted.clone();
            broken[10] ^= 1;
            rig.rx_wan(&trouble(net.client(9), net.vip(1), Trouble::Port, &broken));
            rig.expect_silence();
            rig.expect_counted(&[("received", 1), ("QuoteMalformed", 1)]);
        }
        // No hop left, and no error about an error (RFC 1812 section 4.3.2.7).
        rig.rx_wan(&error.ttl(1));
        rig.expect_silence();
        rig.expect_counted(&walked("TtlExpired"));
    }
}

#[test]
fn an_error_from_a_peer_that_has_nothing_to_do_with_it_is_dropped() {
    // P-047
    for net in Net::BOTH {
        let Known { mut rig, to_pod, .. } = known(net);
        rig.rx_overlay(net, 1, &trouble(net.pod(0, 5), net.source(), Trouble::Port, &to_pod[1].1.packet()));
        rig.expect_silence();
        rig.expect_counted(&and(&walked("SpoofedSource"), &[("decapsulated", 1)]));
    }
}

#[test]
fn an_error_does_not_keep_its_flow_alive_and_leaves_it_unchanged() {
    for net in Net::BOTH {
        let mut rig = town();
        let port = ask(&mut rig, net);
        let before = rig.told();
        let quoted = udp((net.source(), port), names_pod(net)).data(*b"who?").ttl(63).packet();
        rig.rx_overlay(net, 0, &trouble(net.pod(0, 5), net.source(), Trouble::Port, &quoted));
        let quote = to_names(net).ttl(63).packet();
        rig.expect_wan(&trouble(net.vip(1), net.client(7), Trouble::Port, &quote).ttl(63));
        let flows = |told: &str| told.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(flows(&rig.told()), flows(&before));
    }
}

#[test]
fn an_error_follows_a_route_that_moved() {
    // V-022: an error may be the first packet after the change.
    for net in Net::BOTH {
        let Known { mut rig, to_client, .. } = known(net);
        rig.publish(|tables| {
            let pods = ipnet::IpNet::new(net.pod(0, 0), if net == Net::BOTH[0] { 24 } else { 64 }).unwrap();
            let target = tidegate_dataplane::table::route::RouteTarget::Tunnel(net.tunnel(1));
            let row = tidegate_dataplane::table::route::RouteRow { target, mtu: 1500 };
            std::sync::Arc::make_mut(&mut tables.routes).insert(pods, row);
            tables.settings.routes_epoch += 1;
        });
        let (seen, sent_by_pod) = &to_client[0];
        rig.rx_wan(&trouble(net.client(999), net.vip(1), Trouble::Host, &seen.packet()));
        let expected = trouble(net.source(), net.pod(0, 5), Trouble::Host, &sent_by_pod.packet()).ttl(63);
        rig.expect_overlay(net, 1, &expected);
        rig.expect_counted(TRANSLATED_IN);
    }
}
