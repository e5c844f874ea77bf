//! What is asked of us: ARP, neighbour discovery, echo, on the wire and inside the overlay.

use std::net::IpAddr;

use tidegate_dataplane::rig::expect::{Outer, vxlan};
use tidegate_dataplane::rig::sketch::{Sketch, ethernet, icmp, ping, pong, raw, tagged};
use tidegate_dataplane::rig::{
    FROM_ROUTER, LAN, LAN_MAC, Net, ROUTER_MAC, VNI, VTEP_MAC, WAN, WAN_MAC, mapped, peer_mac, peer_vtep_mac,
};

use crate::{and, town};

const BROADCAST: [u8; 6] = [0xff; 6];

/// RFC 826, spelled out.
fn arp(operation: u8, sender: ([u8; 6], IpAddr), target: ([u8; 6], IpAddr)) -> Vec<u8> {
    let v4 = |address| match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => unreachable!(),
    };
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend_from_slice(&sender.0);
    packet.extend_from_slice(&v4(sender.1));
    packet.extend_from_slice(&target.0);
    packet.extend_from_slice(&v4(target.1));
    packet
}

fn who_has(mac: [u8; 6], from: IpAddr, target: IpAddr) -> Vec<u8> {
    let mut frame = ethernet((mac, BROADCAST), 0x0806, &arp(1, (mac, from), ([0; 6], target)));
    frame.resize(60, 0);
    frame
}

/// A neighbour solicitation with its source link-layer option.
fn solicitation(mac: [u8; 6], from: IpAddr, to: IpAddr, target: IpAddr) -> Sketch {
    let mut body = mapped(target).to_vec();
    if from != IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED) {
        body.extend_from_slice(&[1, 1]);
        body.extend_from_slice(&mac);
    }
    icmp(from, to, 135, 0, [0; 4]).data(body).ttl(255).ours()
}

/// The advertisement: router, override; solicited unless it goes to all nodes.
fn advertisement(mac: [u8; 6], to: IpAddr, target: IpAddr) -> Sketch {
    let mut body = mapped(target).to_vec();
    body.extend_from_slice(&[2, 1]);
    body.extend_from_slice(&mac);
    let solicited = if mapped(to)[0] == 0xff { 0 } else { 0x40 };
    icmp(target, to, 136, 0, [0x80 | 0x20 | solicited, 0, 0, 0]).data(body).ttl(255).ours()
}

fn solicited_node(target: IpAddr) -> IpAddr {
    let [.., a, b, c] = mapped(target);
    IpAddr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

fn multicast_mac(address: IpAddr) -> [u8; 6] {
    let [.., a, b, c, d] = mapped(address);
    [0x33, 0x33, a, b, c, d]
}

#[test]
fn arp_is_answered_for_announced_addresses_only() {
    // M-022, S-074: unicast, from our MAC; never for others'.
    let net = Net::BOTH[0];
    let mut rig = town();
    rig.rx(WAN, &who_has(ROUTER_MAC, net.neighbour(254), net.vip(200)));
    let reply = arp(2, (WAN_MAC, net.vip(200)), (ROUTER_MAC, net.neighbour(254)));
    rig.expect_frame(WAN, &ethernet((WAN_MAC, ROUTER_MAC), 0x0806, &reply));
    rig.expect_counted(&[("received", 1), ("answered_arp", 1), ("sent", 1)]);
    for other in [net.vip(1), net.gateway(), net.neighbour(9), net.source(), net.vtep()] {
        rig.rx(WAN, &who_has(ROUTER_MAC, net.neighbour(254), other));
        rig.expect_silence();
        rig.expect_counted(&[("received", 1), ("NotOurs", 1)]);
    }
    // A reply is no question.
    let reply = arp(2, (ROUTER_MAC, net.neighbour(254)), (WAN_MAC, net.vip(200)));
    rig.rx(WAN, &ethernet((ROUTER_MAC, WAN_MAC), 0x0806, &reply));
    rig.expect_silence();
    rig.expect_counted(&[("received", 1), ("NotOurs", 1)]);
}

#[test]
fn a_tagged_question_gets_a_tagged_answer() {
    let net = Net::BOTH[0];
    let mut rig = town();
    rig.rx(WAN, &tagged(&who_has(ROUTER_MAC, net.neighbour(254), net.vip(200)), 0x2064));
    let reply = arp(2, (WAN_MAC, net.vip(200)), (ROUTER_MAC, net.neighbour(254)));
    rig.expect_frame(WAN, &tagged(&ethernet((WAN_MAC, ROUTER_MAC), 0x0806, &reply), 0x2064));
    rig.expect_counted(&[("received", 1), ("answered_arp", 1), ("sent", 1)]);
}

#[test]
fn solicitations_are_answered_for_announced_addresses_only() {
    // M-024: hop limit 255, Solicited = 1, TLLA
    let net = Net::BOTH[1];
    let mut rig = town();
    let (router, vip) = (net.neighbour(254), net.vip(200));
    let group = solicited_node(vip);
    let asked = solicitation(ROUTER_MAC, router, group, vip);
    rig.rx(WAN, &asked.frame((ROUTER_MAC, multicast_mac(group))));
    rig.expect_frame(WAN, &advertisement(WAN_MAC, router, vip).frame((WAN_MAC, ROUTER_MAC)));
    rig.expect_counted(&[("received", 1), ("answered_nd", 1), ("sent", 1)]);
    // Unicast reachability probes too.
    rig.rx(WAN, &solicitation(ROUTER_MAC, router, vip, vip).frame(FROM_ROUTER));
    rig.expect_frame(WAN, &advertisement(WAN_MAC, router, vip).frame((WAN_MAC, ROUTER_MAC)));
    rig.moved();
    for other in [net.vip(1), net.gateway(), net.neighbour(9), net.source(), net.vtep()] {
        let group = solicited_node(other);
        rig.rx(WAN, &solicitation(ROUTER_MAC, router, group, other).frame((ROUTER_MAC, multicast_mac(group))));
        rig.expect_silence();
        rig.expect_counted(&[("received", 1), ("NotOurs", 1)]);
    }
    // "ignore NS without proper hop limit"
    rig.rx(WAN, &asked.ttl(64).frame((ROUTER_MAC, multicast_mac(group))));
    rig.expect_silence();
    rig.expect_counted(&[("received", 1), ("NdpMalformed", 1)]);
}

#[test]
fn somebody_who_tries_our_address_is_told_by_all_nodes() {
    // M-024, RFC 4862 section 5.4.3: duplicate address detection is answered to ff02::1 with Solicited = 0.
    let net = Net::BOTH[1];
    let mut rig = town();
    let vip = net.vip(200);
    let group = solicited_node(vip);
    let nobody = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
    rig.rx(WAN, &solicitation(ROUTER_MAC, nobody, group, vip).frame((ROUTER_MAC, multicast_mac(group))));
    let all_nodes: IpAddr = "ff02::1".parse().unwrap();
    rig.expect_frame(WAN, &advertisement(WAN_MAC, all_nodes, vip).frame((WAN_MAC, multicast_mac(all_nodes))));
    rig.expect_counted(&[("received", 1), ("answered_nd", 1), ("sent", 1)]);
}

const IN_AND_OUT: &[(&str, u64)] = &[("received", 1), ("decapsulated", 1), ("encapsulated", 1), ("sent", 1)];

#[test]
fn inside_the_overlay_our_vtep_answers_arp() {
    // V-016
    let net = Net::BOTH[0];
    let mut rig = town();
    let outer = Outer { source_port: 50_000, id: 9, tos: 0 };
    let ask = |target, destination| {
        let question = arp(1, (peer_vtep_mac(0), net.pod(0, 0)), ([0; 6], target));
        let inner = ethernet((peer_vtep_mac(0), destination), 0x0806, &question);
        vxlan((peer_mac(0), LAN_MAC), (net.peer(0), net.underlay()), outer, VNI, &inner)
    };
    for destination in [BROADCAST, VTEP_MAC] {
        rig.rx(LAN, &ask(net.vtep(), destination));
        let sent = rig.sent_one(LAN);
        let reply = arp(2, (VTEP_MAC, net.vtep()), (peer_vtep_mac(0), net.pod(0, 0)));
        let inner = ethernet((VTEP_MAC, peer_vtep_mac(0)), 0x0806, &reply);
        let (_, packet, _) = tidegate_dataplane::rig::into_peer(&sent).unwrap();
        let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let outer = Outer { source_port: word(20), id: word(4), tos: 0 };
        assert_eq!(sent, vxlan((LAN_MAC, peer_mac(0)), (net.underlay(), net.peer(0)), outer, VNI, &inner));
        rig.expect_counted(&and(IN_AND_OUT, &[("answered_arp", 1)]));
    }
    for other in [net.vip(1), net.vip(200), net.pod(1, 1), net.source()] {
        rig.rx(LAN, &ask(other, BROADCAST));
        rig.expect_silence();
        rig.expect_counted(&[("received", 1), ("decapsulated", 1), ("NotOurs", 1)]);
    }
}

#[test]
fn arp_has_no_business_in_an_overlay_over_ipv6() {
    // V-020: inner and outer family are the same with every peer of this overlay.
    let (v4, v6) = (Net::BOTH[0], Net::BOTH[1]);
    let mut rig = town();
    let outer = Outer { source_port: 50_000, id: 9, tos: 0 };
    let question = arp(1, (peer_vtep_mac(0), v4.pod(0, 0)), ([0; 6], v4.vtep()));
    let inner = ethernet((peer_vtep_mac(0), BROADCAST), 0x0806, &question);
    rig.rx(LAN, &vxlan((peer_mac(0), LAN_MAC), (v6.peer(0), v6.underlay()), outer, VNI, &inner));
    rig.expect_silence();
    rig.expect_counted(&[("received", 1), ("decapsulated", 1), ("VxlanWrongFamily", 1)]);
}

#[test]
fn inside_the_overlay_our_vtep_answers_solicitations() {
    // V-016
    let net = Net::BOTH[1];
    let mut rig = town();
    let (asker, vtep) = (net.pod(0, 0), net.vtep());
    let group = solicited_node(vtep);
    let asked = solicitation(peer_vtep_mac(0), asker, group, vtep);
    let inner = asked.frame((peer_vtep_mac(0), multicast_mac(group)));
    let outer = Outer { source_port: 50_000, id: 0, tos: 0 };
    rig.rx(LAN, &vxlan((peer_mac(0), LAN_MAC), (net.peer(0), net.underlay()), outer, VNI, &inner));
    rig.expect_overlay(net, 0, &advertisement(VTEP_MAC, asker, vtep));
    rig.expect_counted(&and(IN_AND_OUT, &[("answered_nd", 1)]));
    rig.rx_overlay(net, 0, &solicitation(peer_vtep_mac(0), asker, net.vip(200), net.vip(200)));
    rig.expect_silence();
    rig.expect_counted(&[("received", 1), ("decapsulated", 1), ("NotOurs", 1)]);
}

#[test]
fn echo_is_answered_by_vips_everywhere_and_by_overlay_addresses_inside() {
    // T-112
    // S-074, N-094
    for net in Net::BOTH {
        let mut rig = town();
        rig.rx_wan(&ping(net.client(7), net.vip(200)).tos(0x2));
        rig.expect_wan(&pong(net.vip(200), net.client(7)).tos(0x2));
        rig.expect_counted(&[("received", 1), ("answered_echo", 1), ("sent", 1)]);
        for ours in [net.vtep(), net.source(), net.vip(1)] {
            rig.rx_overlay(net, 1, &ping(net.pod(1, 3), ours));
            rig.expect_overlay(net, 1, &pong(ours, net.pod(1, 3)));
            rig.expect_counted(&and(IN_AND_OUT, &[("answered_echo", 1)]));
        }
        for ours in [net.vtep(), net.source()] {
            rig.rx_wan(&ping(net.client(7), ours));
            rig.expect_silence();
            rig.expect_counted(&[("received", 1), ("IcmpUnhandled", 1)]);
        }
    }
}

#[test]
fn a_broken_echo_request_is_not_answered() {
    // N-031
    for net in Net::BOTH {
        let mut rig = town();
        let mut frame = ping(net.client(7), net.vip(1)).frame(FROM_ROUTER);
        *frame.last_mut().unwrap() ^= 1;
        rig.rx(WAN, &frame);
        rig.expect_silence();
        rig.expect_counted(&[("received", 1), ("IcmpBadChecksum", 1)]);
    }
}

#[test]
fn a_pod_may_not_ping_under_a_name_that_is_not_its_own() {
    // P-047
    for net in Net::BOTH {
        let mut rig = town();
        rig.rx_overlay(net, 1, &ping(net.pod(0, 3), net.vip(1)));
        rig.expect_silence();
        rig.expect_counted(&[("received", 1), ("decapsulated", 1), ("SpoofedSource", 1)]);
    }
}

#[test]
fn echo_is_limited() {
    // S-079
    for net in Net::BOTH {
        let mut rig = town();
        for _ in 0..1100 {
            rig.rx_wan(&ping(net.client(7), net.vip(1)));
            rig.sent(WAN);
        }
        let moved = rig.moved();
        assert_eq!(moved["answered_echo"] + moved["AnswerSuppressed"], 1100);
        // One source has an eighth of a thousand, and 11 ms have earned one more.
        assert_eq!(moved["answered_echo"], 126, "{moved:?}");
    }
}

#[test]
fn other_icmp_and_other_protocols_to_a_vip_end_here() {
    for net in Net::BOTH {
        let mut rig = town();
        rig.rx_wan(&pong(net.client(7), net.vip(1)));
        rig.expect_silence();
        rig.expect_counted(&[("received", 1), ("IcmpUnhandled", 1)]);
        rig.rx_wan(&raw(net.client(7), net.vip(1), 47).data([0; 8]));
        rig.expect_silence();
        rig.expect_counted(&[("received", 1), ("ProtocolUnsupported", 1)]);
        rig.rx_wan(&raw(net.client(7), net.neighbour(9), 47).data([0; 8]));
        rig.expect_silence();
        rig.expect_counted(&[("received", 1), ("NotOurs", 1)]);
    }
}
