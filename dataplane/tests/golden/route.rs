//! Routes: where packets leave, what waits for neighbours, and what changes take effect without a walk.

use std::net::IpAddr;
use std::sync::Arc;

use tidegate_dataplane::rig::sketch::{Sketch, tcp, udp};
use tidegate_dataplane::rig::{self, LAN, LAN_MAC, Net, Rig, WAN, WAN_MAC, mapped};
use tidegate_dataplane::table::neighbour::{NeighbourRow, NeighbourState};
use tidegate_dataplane::table::route::{NextHops, RouteRow, RouteTarget};
use tidegate_dataplane::table::{NeighbourId, Tables};
use tidegate_dataplane::worker::Want;

use crate::{
    HIT_BACK, HIT_OUT, STARTS, and, ask, client, connect, names, names_pod, to_names, to_web, town, walked, web,
    web_pod,
};

fn whole(net: Net) -> ipnet::IpNet {
    if net == Net::BOTH[0] { "0.0.0.0/0".parse().unwrap() } else { "::/0".parse().unwrap() }
}

fn pods_of(net: Net, peer: u8) -> ipnet::IpNet {
    ipnet::IpNet::new(net.pod(peer, 0), if net == Net::BOTH[0] { 24 } else { 64 }).unwrap()
}

fn route(tables: &mut Tables, prefix: ipnet::IpNet, target: RouteTarget) {
    Arc::make_mut(&mut tables.routes).insert(prefix, RouteRow { target, mtu: 1500 });
    tables.settings.routes_epoch = tables.settings.routes_epoch.wrapping_add(1);
}

fn neighbour(tables: &mut Tables, id: NeighbourId, change: impl FnOnce(&mut NeighbourRow)) {
    let mut row = tables.neighbours.row(id).copied().unwrap_or_default();
    change(&mut row);
    Arc::make_mut(&mut tables.neighbours).set(id, row);
}

#[test]
fn a_neighbour_or_a_peer_that_changes_its_mac_is_followed_without_a_walk() {
    // V-022; design 5: neighbour and tunnel rows are read by index
    for net in Net::BOTH {
        let mut rig = town();
        let port = ask(&mut rig, net);
        let new_mac = [2, 0, 0, 0, 9, 9];
        rig.publish(|tables| {
            neighbour(tables, net.router(), |row| row.mac = new_mac);
            neighbour(tables, net.peer_neighbour(0), |row| row.mac = new_mac);
        });
        rig.rx_wan(&to_names(net));
        let sent = rig.sent_one(LAN);
        assert_eq!((&sent[..6], &sent[6..12]), (&new_mac[..], &LAN_MAC[..]));
        rig.expect_counted(HIT_OUT);
        rig.rx_overlay(net, 0, &udp(names_pod(net), (net.source(), port)).data(*b"me"));
        rig.expect_frame(WAN, &udp(names(net), client(net)).data(*b"me").ttl(63).frame((WAN_MAC, new_mac)));
        rig.expect_counted(HIT_BACK);
        // The peer's VTEP gets another MAC and another underlay address.
        rig.publish(|tables| {
            let mut row = tables.tunnels.row(net.tunnel(0)).cloned().unwrap();
            row.template = tables.tunnels.row(net.tunnel(1)).unwrap().template;
            Arc::make_mut(&mut tables.tunnels).set(net.tunnel(0), row);
        });
        rig.rx_wan(&to_names(net));
        let sent = rig.sent_one(LAN);
        let (_, _, inner) = rig::into_peer(&sent).unwrap();
        assert_eq!(&inner[..6], &rig::peer_vtep_mac(1));
        rig.expect_counted(HIT_OUT);
    }
}

#[test]
fn a_route_that_moves_sends_flows_the_new_way_and_keeps_their_backend() {
    // L-020: pinned; routes_epoch
    for net in Net::BOTH {
        let mut rig = town();
        let port = connect(&mut rig, net);
        rig.publish(|tables| route(tables, pods_of(net, 0), RouteTarget::Tunnel(net.tunnel(1))));
        rig.rx_wan(&to_web(net).ack(101, 501));
        rig.expect_overlay(net, 1, &tcp((net.source(), port), web_pod(net)).ack(101, 501).ttl(63));
        rig.expect_counted(&[
            ("received", 1),
            ("slow_walk", 1),
            ("flow_revalidated", 1),
            ("encapsulated", 1),
            ("sent", 1),
        ]);
        rig.rx_wan(&to_web(net).ack(101, 501));
        rig.expect_overlay(net, 1, &tcp((net.source(), port), web_pod(net)).ack(101, 501).ttl(63));
        rig.expect_counted(HIT_OUT);
        // The pod now answers from behind the other peer, and only from there (P-047).
        rig.rx_overlay(net, 1, &tcp(web_pod(net), (net.source(), port)).ack(501, 101));
        rig.expect_wan(&tcp(web(net), client(net)).ack(501, 101).ttl(63));
        rig.expect_counted(HIT_BACK);
        rig.rx_overlay(net, 0, &tcp(web_pod(net), (net.source(), port)).ack(501, 101));
        rig.expect_silence();
        rig.expect_counted(&and(&walked("SpoofedSource"), &[("decapsulated", 1)]));
        // A reply may be the first to meet the change.
        rig.publish(|tables| route(tables, pods_of(net, 0), RouteTarget::Tunnel(net.tunnel(0))));
        rig.rx_overlay(net, 0, &tcp(web_pod(net), (net.source(), port)).ack(501, 101));
        rig.expect_wan(&tcp(web(net), client(net)).ack(501, 101).ttl(63));
        let revalidated =
            [("received", 1), ("slow_walk", 1), ("flow_revalidated", 1), ("decapsulated", 1), ("sent", 1)];
        rig.expect_counted(&revalidated);
    }
}

#[test]
fn without_a_route_packets_are_dropped_and_flow_again_when_it_is_back() {
    // T-135: a difference. The kernel has no state of ours to pass the answer up to.
    for net in Net::BOTH {
        let mut rig = town();
        let port = ask(&mut rig, net);
        rig.publish(|tables| {
            Arc::make_mut(&mut tables.routes).remove(&pods_of(net, 0));
            Arc::make_mut(&mut tables.routes).remove(&whole(net));
            tables.settings.routes_epoch += 1;
        });
        rig.rx_wan(&to_names(net));
        rig.expect_silence();
        rig.expect_counted(&walked("NoRoute"));
        rig.publish(|tables| {
            route(tables, pods_of(net, 0), RouteTarget::Tunnel(net.tunnel(0)));
            route(tables, whole(net), RouteTarget::NextHops(NextHops::from_iter([net.router()])));
        });
        rig.rx_wan(&to_names(net));
        rig.expect_overlay(net, 0, &udp((net.source(), port), names_pod(net)).data(*b"who?").ttl(63));
        rig.expect_counted(&[
            ("received", 1),
            ("slow_walk", 1),
            ("flow_revalidated", 1),
            ("encapsulated", 1),
            ("sent", 1),
        ]);
        for target in [RouteTarget::Blackhole, RouteTarget::Local] {
            rig.publish(|tables| route(tables, pods_of(net, 0), target));
            rig.rx_wan(&udp((net.client(9), 9), names(net)).data(*b"x"));
            rig.expect_silence();
            rig.expect_counted(&walked("NoRoute"));
        }
    }
}

#[test]
fn replies_spread_over_equal_next_hops_and_a_flow_stays_on_its_own() {
    // RFC 2992
    for net in Net::BOTH {
        let mut tables = crate::tables();
        let other_mac = [2, 0, 0, 0, 1, 9];
        let other = NeighbourId(net.router().0 + 5);
        let address = mapped(net.neighbour(253));
        let row = NeighbourRow { device: rig::WAN, mac: other_mac, state: NeighbourState::Resolved, address };
        Arc::make_mut(&mut tables.neighbours).set(other, row);
        route(&mut tables, whole(net), RouteTarget::NextHops(NextHops::from_iter([net.router(), other])));
        let mut rig = Rig::new(tables).unwrap();
        let mut through_other = 0;
        for n in 0..400u16 {
            let from = (net.client(n), 7);
            rig.rx_wan(&udp(from, names(net)).data(*b"x"));
            let asked = udp((net.source(), 0), names_pod(net)).data(*b"x").ttl(63);
            let (port, _) = rig.expect_overlay(net, 0, &asked);
            let mut macs = Vec::new();
            for _ in 0..3 {
                rig.rx_overlay(net, 0, &udp(names_pod(net), (net.source(), port)).data(*b"y"));
                macs.push(rig.sent_one(WAN)[..6].to_vec());
            }
            assert!(macs.iter().all(|mac| *mac == macs[0]));
            through_other += usize::from(macs[0] == other_mac);
        }
        assert!((140..260).contains(&through_other), "{through_other} of 400");
    }
}

fn wants(rig: &Rig) -> Vec<Want> {
    let mut wants: Vec<Want> = rig.wants.try_iter().collect();
    wants.dedup();
    wants
}

/// A client on the link, whose MAC nobody has asked for.
fn stranger(net: Net) -> (IpAddr, u16) {
    (net.neighbour(77), 40_000)
}

fn stranger_asks(rig: &mut Rig, net: Net) -> u16 {
    rig.rx_wan(&udp(stranger(net), names(net)).data(*b"who?"));
    let (port, _) = rig.expect_overlay(net, 0, &udp((net.source(), 0), names_pod(net)).data(*b"who?").ttl(63));
    rig.expect_counted(STARTS);
    port
}

fn answer(net: Net, port: u16, n: u8) -> Sketch {
    udp(names_pod(net), (net.source(), port)).data([n])
}

fn answered(net: Net, n: u8) -> Sketch {
    udp(names(net), stranger(net)).data([n]).ttl(63)
}

#[test]
fn packets_wait_for_a_neighbour_that_is_asked_for_and_leave_in_order_when_it_answers() {
    // RFC 4861 section 7.2.2: a small queue
    for net in Net::BOTH {
        let mut rig = town();
        let port = stranger_asks(&mut rig, net);
        for n in 0..5 {
            rig.rx_overlay(net, 0, &answer(net, port, n));
        }
        rig.expect_silence();
        let held = [("received", 5), ("decapsulated", 5), ("slow_walk", 5), ("flow_revalidated", 5)];
        rig.expect_counted(&and(&held, &[("neighbour_held", 3), ("NeighbourUnresolved", 2)]));
        let want = Want { device: WAN, address: mapped(net.neighbour(77)) };
        assert_eq!(wants(&rig), [want], "the device and the address");
        let mac = [2, 0, 0, 0, 7, 7];
        let id = NeighbourId(300);
        let row = NeighbourRow { device: WAN, mac, state: NeighbourState::Unresolved, address: want.address };
        rig.publish(|tables| Arc::make_mut(&mut tables.neighbours).set(id, row));
        rig.turn();
        rig.expect_silence();
        rig.publish(|tables| neighbour(tables, id, |row| row.state = NeighbourState::Resolved));
        // One more arrives with the turn that sees the answer: those that waited go first.
        rig.rx_overlay(net, 0, &answer(net, port, 9));
        rig.turn();
        let sent = rig.sent(WAN);
        let expected: Vec<_> = [0, 1, 2, 9].map(|n| answered(net, n).frame((WAN_MAC, mac))).to_vec();
        assert_eq!(sent, expected);
        rig.expect_counted(&[
            ("received", 1),
            ("decapsulated", 1),
            ("slow_walk", 1),
            ("flow_revalidated", 1),
            ("sent", 4),
        ]);
        rig.rx_overlay(net, 0, &answer(net, port, 10));
        rig.expect_frame(WAN, &answered(net, 10).frame((WAN_MAC, mac)));
        rig.expect_counted(HIT_BACK);
        rig.expect_all_frames_home();
    }
}

#[test]
fn packets_that_waited_too_long_are_dropped() {
    for net in Net::BOTH {
        let mut rig = town();
        let port = stranger_asks(&mut rig, net);
        rig.rx_overlay(net, 0, &answer(net, port, 0));
        rig.moved();
        rig.now_ns += 2_900_000_000;
        rig.turn();
        rig.expect_counted(&[]);
        rig.now_ns += 200_000_000;
        rig.turn();
        rig.expect_silence();
        rig.expect_counted(&[("NeighbourUnresolved", 1)]);
    }
}

#[test]
fn a_peer_whose_next_hop_is_not_resolved_makes_packets_wait_dressed_but_for_one_mac() {
    for net in Net::BOTH {
        let mut tables = crate::tables();
        neighbour(&mut tables, net.peer_neighbour(0), |row| row.state = NeighbourState::Unresolved);
        let mut rig = Rig::new(tables).unwrap();
        rig.rx_wan(&to_names(net));
        rig.expect_silence();
        let waits =
            [("received", 1), ("slow_walk", 1), ("flow_installed", 1), ("encapsulated", 1), ("neighbour_held", 1)];
        rig.expect_counted(&waits);
        assert_eq!(wants(&rig), [Want { device: LAN, address: mapped(net.peer(0)) }]);
        rig.publish(|tables| neighbour(tables, net.peer_neighbour(0), |row| row.state = NeighbourState::Resolved));
        rig.turn();
        rig.expect_overlay(net, 0, &udp((net.source(), 0), names_pod(net)).data(*b"who?").ttl(63));
        rig.expect_counted(&[("sent", 1)]);
    }
}

#[test]
fn a_neighbour_row_that_is_gone_is_looked_for_again() {
    // A row may go (the kernel forgot the neighbour) before the routes change: flows must not stay in a hole.
    for net in Net::BOTH {
        let mut rig = town();
        let port = stranger_asks(&mut rig, net);
        let mac = [2, 0, 0, 0, 7, 7];
        let address = mapped(net.neighbour(77));
        let row = NeighbourRow { device: WAN, mac, state: NeighbourState::Resolved, address };
        rig.publish(|tables| Arc::make_mut(&mut tables.neighbours).set(NeighbourId(300), row));
        rig.rx_overlay(net, 0, &answer(net, port, 1));
        rig.expect_frame(WAN, &answered(net, 1).frame((WAN_MAC, mac)));
        rig.publish(|tables| {
            Arc::make_mut(&mut tables.neighbours).clear(NeighbourId(300));
            Arc::make_mut(&mut tables.neighbours).set(NeighbourId(301), row);
        });
        rig.rx_overlay(net, 0, &answer(net, port, 2));
        rig.expect_frame(WAN, &answered(net, 2).frame((WAN_MAC, mac)));
    }
}

#[test]
fn a_device_without_a_port_is_a_counted_drop() {
    for net in Net::BOTH {
        let mut tables = crate::tables();
        let elsewhere = tidegate_dataplane::table::DeviceId(9);
        let row = tables.devices.row(LAN).cloned().unwrap();
        Arc::make_mut(&mut tables.devices).set(elsewhere, row);
        neighbour(&mut tables, net.peer_neighbour(0), |row| row.device = elsewhere);
        let mut rig = Rig::new(tables).unwrap();
        rig.rx_wan(&to_names(net));
        rig.expect_silence();
        let dropped =
            [("received", 1), ("slow_walk", 1), ("flow_installed", 1), ("encapsulated", 1), ("NoEgressPort", 1)];
        rig.expect_counted(&dropped);
    }
}

#[test]
fn a_peer_that_is_gone_is_a_counted_drop() {
    for net in Net::BOTH {
        let mut tables = crate::tables();
        Arc::make_mut(&mut tables.tunnels).clear(net.tunnel(0));
        let mut rig = Rig::new(tables).unwrap();
        rig.rx_wan(&to_names(net));
        rig.expect_silence();
        let moved = rig.moved();
        assert_eq!(moved.get("NoTunnel"), Some(&1), "{moved:?}");
    }
}
