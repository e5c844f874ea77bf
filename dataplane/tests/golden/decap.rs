//! Tunnels that end here: IP in IP and GUE of a load balancer in front of the gateway.

use std::net::IpAddr;
use std::sync::Arc;

use tidegate_dataplane::rig::expect::from_peer;
use tidegate_dataplane::rig::fleet::Fleet;
use tidegate_dataplane::rig::sketch::{Sketch, Trouble, ethernet, our_trouble, ping, pong, raw, tcp, trouble, udp};
use tidegate_dataplane::rig::{FROM_ROUTER, LAN, Net, Rig, WAN};
use tidegate_dataplane::table::Tables;
use tidegate_dataplane::table::decap::Decap;

use crate::{STARTS, and, ask, client, connect, names, names_pod, to_names, to_web, web, web_pod};

/// UDP port of GUE.
const GUE: u16 = 6080;

/// Who speaks to us through tunnels.
pub(crate) fn balancer(net: Net) -> IpAddr {
    net.client(60_000)
}

/// What every tunnelled packet moves beside what it does bare.
const TUNNELLED: &[(&str, u64)] = &[("tunnel_ended", 1)];

/// Tables with tunnel ends at the gateway's own addresses.
pub(crate) fn tables() -> Tables {
    let mut tables = crate::tables();
    let addresses = Net::BOTH.map(Net::gateway);
    let sources = Net::BOTH.map(|net| balancer(net).into());
    Arc::make_mut(&mut tables.locals).set_decap(Some(Arc::new(Decap::new(&addresses, &sources, GUE))));
    tables
}

fn town() -> Rig {
    Rig::new(tables()).unwrap()
}

/// How a packet travels.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// Protocol 4 or 41.
    IpInIp,
    /// The packet follows the UDP header.
    Gue1,
    /// With a header of this many bytes.
    Gue0(u8),
}

const WAYS: [Way; 4] = [Way::IpInIp, Way::Gue1, Way::Gue0(4), Way::Gue0(16)];

fn protocol_of(inner: &[u8]) -> u8 {
    if inner[0] >> 4 == 4 { 4 } else { 41 }
}

/// The outer packet around `inner`, over `net`.
fn outer(net: Net, way: Way, inner: &[u8]) -> Sketch {
    let to = net.gateway();
    match way {
        Way::IpInIp => raw(balancer(net), to, protocol_of(inner)).data(inner),
        Way::Gue1 => udp((balancer(net), 31_000), (to, GUE)).data(inner),
        Way::Gue0(len) => {
            let mut payload = vec![0; usize::from(len)];
            (payload[0], payload[1]) = ((len - 4) / 4, protocol_of(inner));
            payload.extend_from_slice(inner);
            udp((balancer(net), 31_000), (to, GUE)).data(payload)
        }
    }
}

fn tunnel(net: Net, way: Way, inner: &Sketch) -> Sketch {
    outer(net, way, &inner.packet())
}

/// Every family around every family, every way.
fn every_tunnel() -> impl Iterator<Item = (Net, Net, Way)> {
    let nets = Net::BOTH.into_iter().flat_map(|around| Net::BOTH.map(|net| (around, net)));
    nets.flat_map(|(around, net)| WAYS.map(|way| (around, net, way)))
}

fn drops(rig: &mut Rig, packet: &Sketch, counted: &[(&'static str, u64)]) {
    rig.rx_wan(packet);
    rig.expect_silence();
    rig.expect_counted(&and(&[("received", 1)], counted));
}

#[test]
fn what_is_inside_goes_on_as_if_it_had_come_bare() {
    // T-125: "IPIP/GUE in … decap, TTL−1", every combination of families.
    for (around, net, way) in every_tunnel() {
        let mut rig = town();
        // Only the inner TTL counts, and one hop is taken off.
        rig.rx_wan(&tunnel(around, way, &to_web(net).syn(100).ttl(33)).ttl(1));
        let syn = tcp((net.source(), 0), web_pod(net)).syn(100).mss(crate::mss(net)).ttl(32);
        let (port, _) = rig.expect_overlay(net, 0, &syn);
        rig.expect_counted(&[STARTS, TUNNELLED, &[("mss_clamped", 1)]].concat());
        rig.rx_overlay(net, 0, &tcp(web_pod(net), (net.source(), port)).syn_ack(500, 101));
        rig.expect_wan(&tcp(web(net), client(net)).syn_ack(500, 101).mss(crate::mss(net)).ttl(63));
        rig.moved();
        // The rest of the connection is one flow, whichever way its packets come.
        let expected = tcp((net.source(), port), web_pod(net)).ack(101, 501).ttl(63);
        rig.rx_wan(&tunnel(around, way, &to_web(net).ack(101, 501)));
        rig.expect_overlay(net, 0, &expected);
        rig.expect_counted(&and(crate::HIT_OUT, TUNNELLED));
        rig.rx_wan(&to_web(net).ack(101, 501));
        rig.expect_overlay(net, 0, &expected);
        rig.expect_counted(crate::HIT_OUT);
        assert_eq!(rig.worker.state().live(), 1);
        rig.expect_all_frames_home();
    }
}

#[test]
fn tunnels_as_katran_makes_them_end_here() {
    // L-052: outer source in 172.16.0.0/16 or 0100::/64 by a hash of the flow, TTL 64, TOS of the packet, either family in
    // either; L-053: GUE without a header of its own at a port of choice, the source port by the flow.
    const PORT: u16 = 9886;
    for (around, net) in Net::BOTH.into_iter().flat_map(|around| Net::BOTH.map(|net| (around, net))) {
        let mut tables = crate::tables();
        let sources = ["172.16.0.0/16", "100::/64"].map(|net| net.parse().unwrap());
        let decap = Decap::new(&Net::BOTH.map(Net::gateway), &sources, PORT);
        Arc::make_mut(&mut tables.locals).set_decap(Some(Arc::new(decap)));
        let mut rig = Rig::new(tables).unwrap();
        for n in 1..=8u16 {
            let from: IpAddr = match around.gateway() {
                IpAddr::V4(_) => [172, 16, (n * 31) as u8, n as u8].into(),
                IpAddr::V6(_) => [0x100, 0, 0, 0, 0, 0, 0xbeef, n].into(),
            };
            let client = (net.client(n), 5_000 + n);
            let said = udp(client, names(net)).data(*b"who?").tos(0xb8);
            let outer = match n % 2 {
                0 => raw(from, around.gateway(), protocol_of(&said.packet())).data(said.packet()),
                _ => udp((from, 0x8000 ^ client.1), (around.gateway(), PORT)).data(said.packet()),
            };
            rig.rx_wan(&outer.ttl(64).tos(0xb8));
            let expected = udp((net.source(), 0), names_pod(net)).data(*b"who?").tos(0xb8).ttl(63);
            let (port, _) = rig.expect_overlay(net, 0, &expected);
            rig.rx_overlay(net, 0, &udp(names_pod(net), (net.source(), port)).data(*b"me"));
            rig.expect_wan(&udp(names(net), client).data(*b"me").ttl(63));
        }
        // Of an address beside them it is a packet as any other.
        let stranger: IpAddr = match around.gateway() {
            IpAddr::V4(_) => [172, 17, 0, 1].into(),
            IpAddr::V6(_) => [0x100, 0, 0, 1, 0, 0, 0, 1].into(),
        };
        let said = udp((net.client(99), 5), names(net)).data(*b"who?").packet();
        rig.moved();
        rig.rx_wan(&udp((stranger, 0x8000), (around.gateway(), PORT)).data(said));
        assert_eq!(rig.moved().get("tunnel_ended"), None);
        rig.expect_all_frames_home();
    }
}

#[test]
fn what_has_expired_is_not_sent_on_and_its_sender_hears_of_it() {
    // T-125: "TTL 1 … expired not forwarded"; the answer takes our own route.
    for (around, net, way) in every_tunnel() {
        let mut rig = town();
        connect(&mut rig, net);
        for ttl in [0, 1] {
            let expired = to_web(net).ack(101, 501).ttl(ttl);
            rig.rx_wan(&tunnel(around, way, &expired));
            rig.expect_wan(&our_trouble(net.gateway(), net.client(7), Trouble::Time, &expired.packet()));
            let told = [("received", 1), ("slow_walk", 1), ("answered_ttl", 1), ("sent", 1)];
            rig.expect_counted(&and(&told, TUNNELLED));
        }
    }
}

#[test]
fn answers_go_to_the_client_and_not_into_the_tunnel() {
    // S-070, N-094
    for (around, net, way) in every_tunnel() {
        let mut rig = town();
        // It arrives on the other device: whoever sent the frame is not asked to carry the answer.
        let from_lan = |rig: &mut Rig, packet: &Sketch| {
            let macs = (tidegate_dataplane::rig::peer_mac(0), tidegate_dataplane::rig::LAN_MAC);
            rig.rx(LAN, &tunnel(around, way, packet).frame(macs));
        };
        let refused = tcp(client(net), (net.vip(1), 81)).syn(7);
        from_lan(&mut rig, &refused);
        rig.expect_wan(&tcp((net.vip(1), 81), client(net)).segment("RA", 0, 8).window(0).ours());
        from_lan(&mut rig, &ping(net.client(7), net.vip(1)));
        rig.expect_wan(&pong(net.vip(1), net.client(7)));
        let datagram = udp(client(net), (net.vip(1), 54)).data(*b"x");
        from_lan(&mut rig, &datagram);
        rig.expect_wan(&our_trouble(net.vip(1), net.client(7), Trouble::Port, &datagram.packet()));
        // V-010
        let long = udp(client(net), names(net)).long(1431 + usize::from(crate::inner_mtu(net) - 1430));
        if way == Way::IpInIp && around == net && net == Net::BOTH[0] {
            from_lan(&mut rig, &long);
            rig.expect_wan(&our_trouble(
                net.vip(1),
                net.client(7),
                Trouble::TooBig(crate::inner_mtu(net)),
                &long.packet(),
            ));
        }
        rig.expect_all_frames_home();
    }
}

#[test]
fn errors_and_fragments_inside_find_their_flows() {
    // L-050, T-141
    for (around, net, way) in every_tunnel() {
        let mut rig = town();
        let port = connect(&mut rig, net);
        let seen = tcp(web(net), client(net)).segment("PA", 7, 101).data([7; 100]);
        let sent = tcp(web_pod(net), (net.source(), port)).segment("PA", 7, 101).data([7; 100]);
        let told = trouble(net.client(99), net.vip(1), Trouble::TooBig(1400), &seen.packet());
        rig.rx_wan(&tunnel(around, way, &told));
        let expected = trouble(net.source(), web_pod(net).0, Trouble::TooBig(1400), &sent.packet()).ttl(63);
        rig.expect_overlay(net, 0, &expected);
        let port = ask(&mut rig, net);
        rig.moved();
        let whole = udp(client(net), names(net)).data([9; 64]);
        rig.rx_wan(&tunnel(around, way, &whole.clone().fragment(0, true)));
        rig.sent_one(LAN);
        rig.rx_wan(&tunnel(around, way, &whole.fragment(72, false)));
        rig.sent_one(LAN);
        let moved = rig.moved();
        assert_eq!((moved.get("tunnel_ended"), moved.get("encapsulated")), (Some(&2), Some(&2)), "{moved:?}");
        assert!(port >= 1024);
    }
}

#[test]
fn congestion_outside_is_told_inside() {
    // RFC 6040 section 4.2: outer for each row, inner for each column.
    const ECN: [[Option<u8>; 4]; 4] = [
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    for (around, net, way) in every_tunnel() {
        let mut rig = town();
        let port = ask(&mut rig, net);
        for (inner, outer) in (0..4u8).flat_map(|inner| (0..4u8).map(move |outer| (inner, outer))) {
            rig.rx_wan(&tunnel(around, way, &to_names(net).tos(0x28 | inner)).tos(0x48 | outer));
            match ECN[usize::from(inner)][usize::from(outer)] {
                Some(ecn) => {
                    let expected = udp((net.source(), port), names_pod(net)).data(*b"who?").ttl(63).tos(0x28 | ecn);
                    rig.expect_overlay(net, 0, &expected);
                    rig.expect_counted(&and(crate::HIT_OUT, TUNNELLED));
                }
                None => {
                    rig.expect_silence();
                    rig.expect_counted(&[("received", 1), ("EcnMismatch", 1)]);
                }
            }
        }
    }
}

#[test]
fn only_who_is_named_may_send_into_the_tunnel_and_only_to_its_end() {
    for (around, net, way) in every_tunnel() {
        let mut rig = town();
        let packet = tunnel(around, way, &to_web(net).syn(1));
        let stranger = Sketch { from: (around.client(60_001), packet.from.1), ..packet.clone() };
        drops(&mut rig, &stranger, &[("DecapUnknownSource", 1)]);
        // To another address it is a packet as any other.
        let elsewhere = |to: IpAddr| Sketch { to: (to, packet.to.1), ..packet.clone() };
        let bare: &[_] = if way == Way::IpInIp { &[] } else { &[("slow_walk", 1)] };
        drops(&mut rig, &elsewhere(around.neighbour(77)), &and(bare, &[("NotOurs", 1)]));
        let at_a_vip = if way == Way::IpInIp { "ProtocolUnsupported" } else { "NoFrontend" };
        drops(&mut rig, &elsewhere(around.vip(1)), &and(bare, &[(at_a_vip, 1)]));
        // So it is while no tunnel ends here.
        rig.publish(|tables| Arc::make_mut(&mut tables.locals).set_decap(None));
        drops(&mut rig, &packet, &and(bare, &[("NotOurs", 1)]));
        // A tunnel of the one family alone takes nothing over the other.
        let other = if around == Net::BOTH[0] { Net::BOTH[1] } else { Net::BOTH[0] };
        let ends = Decap::new(&Net::BOTH.map(Net::gateway), &[balancer(other).into()], GUE);
        rig.publish(|tables| Arc::make_mut(&mut tables.locals).set_decap(Some(Arc::new(ends))));
        drops(&mut rig, &packet, &[("DecapUnknownSource", 1)]);
    }
}

#[test]
fn fragments_of_the_outside_are_dropped() {
    for (around, net, way) in every_tunnel() {
        let mut rig = town();
        let mut whole = tunnel(around, way, &to_names(net).data([8; 504]));
        // The length of every fragment but the last is a multiple of eight.
        whole.payload.resize(whole.payload.len().next_multiple_of(8), 0);
        drops(&mut rig, &whole.fragment(0, true), &[("DecapOuterFragment", 1)]);
        if way == Way::IpInIp {
            for (offset, more) in [(512, true), (1024, false)] {
                let piece = raw(balancer(around), around.gateway(), protocol_of(&to_names(net).packet()));
                drops(&mut rig, &piece.data([8; 512]).fragment(offset, more), &[("DecapOuterFragment", 1)]);
            }
        }
    }
}

#[test]
fn a_tunnel_in_a_tunnel_is_not_followed() {
    for (around, net, way) in every_tunnel() {
        let mut rig = town();
        for again in WAYS {
            let inside = tunnel(net, again, &to_web(net).syn(1));
            drops(&mut rig, &tunnel(around, way, &inside), &[("DecapNested", 1)]);
        }
        let inner =
            to_web(net).syn(1).frame((tidegate_dataplane::rig::peer_vtep_mac(0), tidegate_dataplane::rig::VTEP_MAC));
        let vxlan =
            udp((net.peer(0), 50_000), (net.underlay(), 8472)).data([&[8, 0, 0, 0, 0, 0, 1, 0][..], &inner].concat());
        drops(&mut rig, &tunnel(around, way, &vxlan), &[("DecapNested", 1)]);
        // Nor one that comes out of the overlay.
        if around == net {
            rig.rx(LAN, &from_peer(net, 1, &tunnel(net, way, &to_web(net).syn(1))));
            rig.expect_silence();
            assert!(!rig.moved().contains_key("tunnel_ended"));
        }
    }
}

#[test]
fn what_is_inside_must_be_what_the_outside_says() {
    for around in Net::BOTH {
        let mut rig = town();
        let [v4, v6] = Net::BOTH.map(|net| to_web(net).syn(1).packet());
        let to = around.gateway();
        drops(&mut rig, &raw(balancer(around), to, 4).data(v6.clone()), &[("Ipv4BadVersion", 1)]);
        drops(&mut rig, &raw(balancer(around), to, 41).data(v4.clone()), &[("Ipv6BadVersion", 1)]);
        drops(&mut rig, &raw(balancer(around), to, 4), &[("Ipv4Truncated", 1)]);
        drops(&mut rig, &raw(balancer(around), to, 41), &[("Ipv6Truncated", 1)]);
        let gue = |payload: &[&[u8]]| udp((balancer(around), 1), (to, GUE)).data(payload.concat());
        for (header, reason) in [
            (&[][..], "GueTruncated"),
            (&[0, 4, 0], "GueTruncated"),
            (&[3, 4, 0, 0, 1, 2, 3, 4], "GueTruncated"),
            (&[0, 6, 0, 0], "GueUnsupported"),
            (&[0x20, 4, 0, 0], "GueUnsupported"),
            (&[0, 4, 0x80, 0], "GueUnsupported"),
            (&[0x80, 4, 0, 0], "GueUnsupported"),
            (&[0xc0, 4, 0, 0], "GueUnsupported"),
            (&[0x50, 4, 0, 0], "GueUnsupported"),
            (&[0, 4, 0, 0], "Ipv4Truncated"),
            (&[0, 41, 0, 0], "Ipv6Truncated"),
        ] {
            drops(&mut rig, &gue(&[header]), &[(reason, 1)]);
        }
        drops(&mut rig, &gue(&[&[0, 4, 0, 0], &v6]), &[("Ipv4BadVersion", 1)]);
        drops(&mut rig, &gue(&[&[0, 41, 0, 0], &v4]), &[("Ipv6BadVersion", 1)]);
        // Sources that cannot be, inside as outside.
        for net in Net::BOTH {
            let martian = tcp((net.vip(1), 5), web(net)).syn(1);
            drops(&mut rig, &tunnel(around, Way::IpInIp, &martian), &[("MartianSource", 1)]);
        }
    }
}

#[test]
fn every_truncation_of_what_is_inside_is_a_drop_of_its_own_name() {
    for (around, net, way) in every_tunnel() {
        let mut rig = town();
        let inner = to_web(net).syn(1).packet();
        let v4 = net == Net::BOTH[0];
        for len in 1..inner.len() {
            let mut whole = tunnel(around, way, &to_web(net).syn(1));
            whole.payload.truncate(whole.payload.len() - inner.len() + len);
            let reason = match (len, v4) {
                (..20, true) => "Ipv4Truncated",
                (_, true) => "Ipv4BadTotalLength",
                (..40, false) => "Ipv6Truncated",
                (_, false) => "Ipv6BadPayloadLength",
            };
            drops(&mut rig, &whole, &[(reason, 1)]);
        }
        // Padding behind it is cut off, as at the end of a frame.
        let mut padded = tunnel(around, way, &to_web(net).syn(1));
        padded.payload.extend_from_slice(&[0xee; 9]);
        rig.rx_wan(&padded);
        rig.expect_overlay(net, 0, &tcp((net.source(), 0), web_pod(net)).syn(1).mss(crate::mss(net)).ttl(63));
    }
}

#[test]
fn gue_over_ipv6_may_come_without_checksum_and_nothing_else_may() {
    // RFC 6935; N-072: "zero is illegal except configured tunnels"
    let around = Net::BOTH[1];
    for net in Net::BOTH {
        let mut rig = town();
        for way in [Way::Gue1, Way::Gue0(4)] {
            rig.rx_wan(&tunnel(around, way, &to_names(net)).unsummed());
            rig.expect_overlay(net, 0, &udp((net.source(), 0), names_pod(net)).data(*b"who?").ttl(63));
            let packet = tunnel(around, way, &to_names(net)).unsummed();
            let port = Sketch { to: (around.gateway(), GUE + 1), ..packet.clone() };
            let address = Sketch { to: (around.neighbour(77), GUE), ..packet.clone() };
            let stranger = Sketch { from: (around.client(60_001), 1), ..packet.clone() };
            let martian = Sketch { from: (around.gateway(), 1), ..packet };
            rig.moved();
            for (packet, reason) in [
                (port, "Udp6ZeroChecksum"),
                (address, "Udp6ZeroChecksum"),
                (stranger, "DecapUnknownSource"),
                (martian, "MartianSource"),
            ] {
                drops(&mut rig, &packet, &[(reason, 1)]);
            }
        }
        // Not behind the EtherType of IPv4 either.
        let misnamed = ethernet(FROM_ROUTER, 0x0800, &tunnel(around, Way::Gue1, &to_names(net)).unsummed().packet());
        rig.rx(WAN, &misnamed);
        rig.expect_silence();
        rig.expect_counted(&[("received", 1), ("Udp6ZeroChecksum", 1)]);
        let inside = udp(client(around), names(around)).data(*b"who?").unsummed();
        drops(&mut rig, &tunnel(net, Way::IpInIp, &inside), &[("Udp6ZeroChecksum", 1)]);
    }
}

#[test]
fn the_owner_is_that_of_what_is_inside() {
    for (around, net, way) in every_tunnel() {
        for workers in [2u16, 8] {
            let mut fleet = Fleet::new(tables(), workers).unwrap();
            for queue in 0..usize::from(workers) {
                fleet.rx(queue, WAN, &tunnel(around, way, &to_names(net)).frame(FROM_ROUTER));
                fleet.sent_one(LAN);
            }
            fleet.rx_wan(0, &to_names(net));
            fleet.sent_one(LAN);
            assert_eq!(fleet.live().iter().sum::<u64>(), 1, "one flow, however it comes");
            fleet.expect_flows_at_home();
            fleet.expect_all_frames_home();
        }
    }
}
