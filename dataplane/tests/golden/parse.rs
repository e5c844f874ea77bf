//! Frames that are no packets for us: each ends here under its own name (T-096, T-168).

use tidegate_dataplane::rig::expect::{Outer, from_peer, from_peer_with, vxlan};
use tidegate_dataplane::rig::sketch::{Sketch, ethernet, raw, tagged, tcp, udp};
use tidegate_dataplane::rig::{
    FROM_ROUTER, LAN, LAN_MAC, Net, ROUTER_MAC, Rig, VNI, VTEP_MAC, WAN, WAN_MAC, mapped, peer_mac, peer_vtep_mac,
};

use crate::{and, ask, client, names, names_pod, to_names, to_web, town};

fn drops(rig: &mut Rig, device: tidegate_dataplane::table::DeviceId, frame: &[u8], counted: &[(&'static str, u64)]) {
    rig.rx(device, frame);
    rig.expect_silence();
    rig.expect_counted(&and(&[("received", 1)], counted));
}

/// A VXLAN frame from peer 0 with this payload after the UDP header.
fn datagram(net: Net, payload: &[u8]) -> Vec<u8> {
    let packet = udp((net.peer(0), 50_000), (net.underlay(), 8472)).data(payload);
    packet.frame((peer_mac(0), LAN_MAC))
}

fn inner(net: Net) -> Sketch {
    udp(names_pod(net), (net.source(), 2000)).data(*b"x")
}

fn inner_frame(net: Net) -> Vec<u8> {
    inner(net).frame((peer_vtep_mac(0), VTEP_MAC))
}

const OUTER: Outer = Outer { source_port: 50_000, id: 7, tos: 0 };

#[test]
fn frames_for_others_and_of_unknown_kind() {
    for net in Net::BOTH {
        let mut rig = town();
        let stranger = [2, 0, 0, 0, 9, 9];
        drops(&mut rig, WAN, &to_web(net).frame((ROUTER_MAC, stranger)), &[("OtherHost", 1)]);
        drops(&mut rig, WAN, &to_web(net).frame(FROM_ROUTER)[..13], &[("EthernetTruncated", 1)]);
        drops(&mut rig, WAN, &ethernet(FROM_ROUTER, 0x88cc, b"lldp"), &[("EthertypeUnknown", 1)]);
        let other = if net == Net::BOTH[0] { (0x86dd, "Ipv6BadVersion") } else { (0x0800, "Ipv4BadVersion") };
        drops(&mut rig, WAN, &ethernet(FROM_ROUTER, other.0, &to_web(net).packet()), &[(other.1, 1)]);
        let three = tagged(&tagged(&tagged(&to_web(net).frame(FROM_ROUTER), 5), 6), 7);
        drops(&mut rig, WAN, &three, &[("VlanTruncated", 1)]);
        drops(&mut rig, WAN, &tagged(&to_web(net).frame(FROM_ROUTER), 5)[..16], &[("VlanTruncated", 1)]);
    }
}

#[test]
fn a_tag_or_two_are_understood_and_do_not_travel_into_the_overlay() {
    // Design 3: "VLAN tags understood"
    for net in Net::BOTH {
        let mut rig = town();
        let port = ask(&mut rig, net);
        for frame in
            [tagged(&to_names(net).frame(FROM_ROUTER), 5), tagged(&tagged(&to_names(net).frame(FROM_ROUTER), 5), 6)]
        {
            rig.rx(WAN, &frame);
            rig.expect_overlay(net, 0, &udp((net.source(), port), names_pod(net)).data(*b"who?").ttl(63));
            rig.expect_counted(crate::HIT_OUT);
        }
    }
}

#[test]
fn sources_that_cannot_be() {
    // RFC 1812 section 5.3.7, RFC 4291
    for net in Net::BOTH {
        let mut rig = town();
        let martians: &[&str] = if net == Net::BOTH[0] {
            &["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "203.0.113.1"]
        } else {
            &["::", "::1", "ff02::1", "::ffff:192.0.2.1", "2001:db8:f::1"]
        };
        for martian in martians {
            let mut frame = udp(client(net), names(net)).data(*b"x").frame(FROM_ROUTER);
            // An address that etherparse would take for IPv4 goes in as bytes.
            let source: std::net::IpAddr = martian.parse().unwrap();
            let at = if net == Net::BOTH[0] { 26..30 } else { 22..38 };
            let width = at.len();
            frame[at].copy_from_slice(
                &match source {
                    std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
                    std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
                }[..width],
            );
            if net == Net::BOTH[0] {
                let mut header = etherparse::Ipv4Header::from_slice(&frame[14..]).unwrap().0;
                header.header_checksum = header.calc_header_checksum();
                frame[14..34].copy_from_slice(&header.to_bytes());
            }
            drops(&mut rig, WAN, &frame, &[("MartianSource", 1)]);
        }
        // Inside the overlay as well.
        let loopback = if net == Net::BOTH[0] { "127.0.0.1".parse().unwrap() } else { "::1".parse().unwrap() };
        let frame = from_peer(net, 0, &tcp((loopback, 1), crate::web(net)).syn(1));
        drops(&mut rig, LAN, &frame, &[("decapsulated", 1), ("MartianSource", 1)]);
    }
}

#[test]
fn ip_options_travel_on_and_source_routes_do_not() {
    // T-114: options are handled, where Katran drops them.
    // L-056
    let net = Net::BOTH[0];
    let mut rig = town();
    let stamped = to_names(net).options(&[68, 8, 5, 0, 1, 2, 3, 4]);
    rig.rx_wan(&stamped);
    rig.expect_overlay(net, 0, &stamped.between((net.source(), 0), names_pod(net)).ttl(63));
    rig.expect_counted(crate::STARTS);
    for kind in [131, 137] {
        let routed = to_names(net).options(&[kind, 7, 4, 10, 0, 0, 1, 0]);
        drops(&mut rig, WAN, &routed.frame(FROM_ROUTER), &[("Ipv4SourceRoute", 1)]);
    }
    drops(&mut rig, WAN, &to_names(net).options(&[7, 1, 0, 0]).frame(FROM_ROUTER), &[("Ipv4BadOptions", 1)]);
}

#[test]
pub(crate) fn a_vxlan_header_needs_its_flag_and_may_have_others() {
    // V-001
    for net in Net::BOTH {
        let mut rig = town();
        let with = |header: [u8; 8]| datagram(net, &[&header[..], &inner_frame(net)].concat());
        drops(&mut rig, LAN, &with([0, 0, 0, 0, 0, 0, 1, 0]), &[("VxlanNoVni", 1)]);
        drops(&mut rig, LAN, &datagram(net, &[8, 0, 0, 0, 0, 0, 1]), &[("VxlanTruncated", 1)]);
        for header in [[0x88, 0, 0, 0, 0, 0, 1, 0], [8, 0, 1, 0, 0, 0, 1, 0], [8, 0, 0, 0, 0, 0, 1, 1]] {
            let accepted = [("decapsulated", 1), ("vxlan_unknown_flags", 1), ("slow_walk", 1), ("NoFlow", 1)];
            drops(&mut rig, LAN, &with(header), &accepted);
        }
        // T-168, V-002
        drops(&mut rig, LAN, &with([8, 0, 0, 0, 0, 0, 2, 0]), &[("VxlanUnknownVni", 1)]);
    }
}

#[test]
fn only_known_peers_send_to_our_vtep() {
    // T-168: unknown VTEP, wrong inner MAC; V-015
    for net in Net::BOTH {
        let mut rig = town();
        let macs = (peer_mac(0), LAN_MAC);
        let frame = vxlan(macs, (net.peer(9), net.underlay()), OUTER, VNI, &inner_frame(net));
        drops(&mut rig, LAN, &frame, &[("VxlanUnknownPeer", 1)]);
        let other = inner(net).frame((peer_vtep_mac(0), peer_vtep_mac(1)));
        let frame = vxlan(macs, (net.peer(0), net.underlay()), OUTER, VNI, &other);
        drops(&mut rig, LAN, &frame, &[("VxlanOtherHost", 1)]);
        // A peer that is no more.
        rig.publish(|tables| {
            let mut row = tables.tunnels.row(net.tunnel(0)).cloned().unwrap();
            row.live = false;
            std::sync::Arc::make_mut(&mut tables.tunnels).set(net.tunnel(0), row);
        });
        let frame = vxlan(macs, (net.peer(0), net.underlay()), OUTER, VNI, &inner_frame(net));
        drops(&mut rig, LAN, &frame, &[("VxlanUnknownPeer", 1)]);
        // Another UDP port of the VTEP is no VXLAN.
        let packet = udp((net.peer(0), 50_000), (net.underlay(), 4789)).data(*b"x");
        drops(&mut rig, LAN, &packet.frame(macs), &[("slow_walk", 1), ("NotOurs", 1)]);
    }
}

#[test]
fn what_must_not_be_inside() {
    for net in Net::BOTH {
        let mut rig = town();
        let (macs, ends) = ((peer_mac(0), LAN_MAC), (net.peer(0), net.underlay()));
        // T-168, V-014
        let frame = vxlan(macs, ends, OUTER, VNI, &tagged(&inner_frame(net), 5));
        drops(&mut rig, LAN, &frame, &[("VxlanInnerVlan", 1)]);
        // V-020
        let other = if net == Net::BOTH[0] { Net::BOTH[1] } else { Net::BOTH[0] };
        let frame = vxlan(macs, ends, OUTER, VNI, &inner_frame(other));
        drops(&mut rig, LAN, &frame, &[("decapsulated", 1), ("VxlanWrongFamily", 1)]);
        let lldp = ethernet((peer_vtep_mac(0), VTEP_MAC), 0x88cc, b"lldp");
        let frame = vxlan(macs, ends, OUTER, VNI, &lldp);
        drops(&mut rig, LAN, &frame, &[("decapsulated", 1), ("EthertypeUnknown", 1)]);
        let frame = vxlan(macs, ends, OUTER, VNI, &inner_frame(net)[..10]);
        drops(&mut rig, LAN, &frame, &[("EthernetTruncated", 1)]);
        // VXLAN inside VXLAN is a datagram to an address that is not ours there.
        let twice = udp((net.pod(0, 1), 50_000), (net.underlay(), 8472)).data(inner_frame(net));
        let frame = vxlan(macs, ends, OUTER, VNI, &twice.frame((peer_vtep_mac(0), VTEP_MAC)));
        drops(&mut rig, LAN, &frame, &[("decapsulated", 1), ("slow_walk", 1), ("NotOurs", 1)]);
    }
}

#[test]
fn fragmented_vxlan_is_dropped_whatever_piece_comes_first() {
    // T-168, V-012
    for net in Net::BOTH {
        let mut rig = town();
        for (offset, more) in [(0, true), (512, true), (1024, false)] {
            let piece = udp((net.peer(0), 50_000), (net.underlay(), 8472)).data(vec![8; 512]).fragment(offset, more);
            drops(&mut rig, LAN, &piece.frame((peer_mac(0), LAN_MAC)), &[("VxlanOuterFragment", 1)]);
        }
    }
}

#[test]
fn an_outer_checksum_that_is_there_must_be_right() {
    // V-004: "non-zero on receive: MAY verify; wrong ⇒ drop"; V-005: zero over IPv6 is refused.
    for net in Net::BOTH {
        let mut rig = town();
        let port = ask(&mut rig, net);
        let answer = udp(names_pod(net), (net.source(), port)).data(*b"me");
        let mut payload = vec![8, 0, 0, 0, 0, 0, 1, 0];
        payload.extend_from_slice(&answer.frame((peer_vtep_mac(0), VTEP_MAC)));
        rig.rx(LAN, &datagram(net, &payload));
        rig.expect_wan(&udp(names(net), client(net)).data(*b"me").ttl(63));
        rig.expect_counted(crate::HIT_BACK);
    }
    let net = Net::BOTH[1];
    let mut rig = town();
    let zero = udp((net.peer(0), 50_000), (net.underlay(), 8472)).data([8; 64]).unsummed();
    drops(&mut rig, LAN, &zero.frame((peer_mac(0), LAN_MAC)), &[("Udp6ZeroChecksum", 1)]);
}

/// V-007: outer bits for each row, inner bits for each column; what the inner packet leaves with, or a drop.
const ECN: [[Option<u8>; 4]; 4] = [
    //  outer 00   outer 01   outer 10   outer 11
    [Some(0), Some(0), Some(0), None],    // inner 00
    [Some(1), Some(1), Some(1), Some(3)], // inner 01
    [Some(2), Some(1), Some(2), Some(3)], // inner 10
    [Some(3), Some(3), Some(3), Some(3)], // inner 11
];

#[test]
pub(crate) fn ecn_comes_out_of_the_overlay_as_the_kernel_lets_it() {
    for net in Net::BOTH {
        let mut rig = town();
        let port = ask(&mut rig, net);
        for inner in 0..4u8 {
            for outer in 0..4u8 {
                let packet = udp(names_pod(net), (net.source(), port)).data(*b"me").tos(0x28 | inner);
                rig.rx(LAN, &from_peer_with(net, 0, 0x48 | outer, &packet));
                match ECN[usize::from(inner)][usize::from(outer)] {
                    Some(ecn) => {
                        let leaves = udp(names(net), client(net)).data(*b"me").ttl(63).tos(0x28 | ecn);
                        rig.expect_wan(&leaves);
                        rig.expect_counted(crate::HIT_BACK);
                    }
                    None => {
                        rig.expect_silence();
                        rig.expect_counted(&[("received", 1), ("decapsulated", 1), ("EcnMismatch", 1)]);
                    }
                }
            }
        }
    }
}

#[test]
fn udp_over_ipv6_needs_a_checksum() {
    // N-072, T-101
    let net = Net::BOTH[1];
    let mut rig = town();
    drops(&mut rig, WAN, &to_names(net).unsummed().frame(FROM_ROUTER), &[("Udp6ZeroChecksum", 1)]);
}

#[test]
fn extension_headers_are_walked_and_edited_behind() {
    // N-064, RFC 8200: hop-by-hop and destination options before a datagram
    let net = Net::BOTH[1];
    let mut rig = town();
    let with = |packet: Vec<u8>| {
        let mut bytes = packet[..40].to_vec();
        let [high, low] = (u16::from_be_bytes([packet[4], packet[5]]) + 16).to_be_bytes();
        (bytes[4], bytes[5], bytes[6]) = (high, low, 0);
        bytes.extend_from_slice(&[60, 0, 1, 4, 0, 0, 0, 0]);
        bytes.extend_from_slice(&[17, 0, 1, 4, 0, 0, 0, 0]);
        bytes.extend_from_slice(&packet[40..]);
        bytes
    };
    rig.rx(WAN, &ethernet(FROM_ROUTER, 0x86dd, &with(to_names(net).packet())));
    let sent = rig.sent_one(LAN);
    let (_, _, frame) = tidegate_dataplane::rig::into_peer(&sent).unwrap();
    let port = u16::from_be_bytes([frame[14 + 56], frame[14 + 57]]);
    let expected = udp((net.source(), port), names_pod(net)).data(*b"who?").ttl(63);
    assert_eq!(&frame[14..], with(expected.packet()));
    etherparse::SlicedPacket::from_ethernet(&sent).unwrap();
    rig.expect_counted(crate::STARTS);
    // Type 0 routing header (RFC 5095).
    let mut routed = with(to_names(net).packet());
    (routed[6], routed[40 + 2], routed[40 + 3]) = (43, 0, 1);
    drops(&mut rig, WAN, &ethernet(FROM_ROUTER, 0x86dd, &routed), &[("Ipv6RoutingHeader", 1)]);
    let _ = (mapped(net.client(1)), WAN_MAC, raw(net.client(1), net.vip(1), 59));
}
