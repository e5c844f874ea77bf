//! Affinity on several workers: all connections of a client meet one worker, and flows from before a Service was told to
//! keep its clients, or not to any more, are found where they live (S-090, S-094, S-100; rule 2 of design 4).

use std::collections::BTreeSet;

use tidegate_api::resource::{Protocol, Service};
use tidegate_dataplane::packet::Domain;
use tidegate_dataplane::rig::catalog::{Catalog, pod, service};
use tidegate_dataplane::rig::fleet::{Fleet, Plan};
use tidegate_dataplane::rig::sketch::{Sketch, raw, tcp};
use tidegate_dataplane::rig::{self, LAN, Net, WAN};

/// TCP 80 on so many pods, with or without affinity.
fn web(net: Net, pods: u8, keeps: bool) -> Service {
    let pods = (0..pods).map(|n| pod(net, n % 2, 10 + n, 1, 1)).collect();
    let mut service = service(net.vip(1), Protocol::Tcp, 80, pods);
    service.ports[0].affinity_timeout_s = keeps.then_some(100);
    service
}

fn town(net: Net, (workers, nic): (u16, bool), pods: u8, keeps: bool) -> (Fleet, Catalog) {
    let (mut tables, mut catalog) = (rig::tables(), Catalog::default());
    catalog.put(&mut tables, "shop/web", &web(net, pods, keeps));
    (Fleet::with(tables, Plan { nic, ..Plan::of(workers) }).unwrap(), catalog)
}

fn from(net: Net, client: u16, port: u16) -> Sketch {
    tcp((net.client(client), port), (net.vip(1), 80))
}

/// The pod's end and the source port of the one packet that was sent into the overlay.
fn arrived(net: Net, fleet: &mut Fleet) -> ((std::net::IpAddr, u16), u16) {
    let sent = fleet.sent_one(LAN);
    let (_, _, inner) = rig::into_peer(&sent).unwrap();
    let port = |at: usize| u16::from_be_bytes([inner[at], inner[at + 1]]);
    if net == Net::BOTH[0] {
        let address: [u8; 4] = inner[30..34].try_into().unwrap();
        ((address.into(), port(36)), port(34))
    } else {
        let address: [u8; 16] = inner[38..54].try_into().unwrap();
        ((address.into(), port(56)), port(54))
    }
}

#[test]
fn all_connections_of_a_client_meet_one_worker_and_one_pod() {
    // S-090, S-095: whatever port and queue, also when others of its connections are old.
    for ((workers, nic), net) in crate::everywhere() {
        let (mut fleet, _) = town(net, (workers, nic), 6, true);
        let mut pods = BTreeSet::new();
        for client in 0..12 {
            let mut own = BTreeSet::new();
            for n in 0..15 {
                fleet.rx_wan(usize::from(n % workers), &from(net, client, 2000 + 77 * n).syn(1));
                own.insert(arrived(net, &mut fleet).0);
            }
            assert_eq!(own.len(), 1, "client {client}");
            pods.extend(own);
        }
        assert!(pods.len() >= 4, "{pods:?}");
        // Twelve clients meet every worker.
        assert!(fleet.live().iter().all(|live| *live > 0 && live.is_multiple_of(15)), "{:?}", fleet.live());
        fleet.expect_flows_at_home();
        fleet.expect_balance();
    }
}

#[test]
fn connections_from_before_affinity_was_toggled_go_on() {
    // S-094, S-100
    for ((workers, nic), net) in crate::everywhere() {
        for keeps in [false, true] {
            let (mut fleet, mut catalog) = town(net, (workers, nic), 1, keeps);
            let mut open = Vec::new();
            for port in 3000..3012 {
                fleet.rx_wan(0, &from(net, 5, port).syn(100).mss(500));
                let (pod, source) = arrived(net, &mut fleet);
                fleet.rx_overlay(0, net, 0, &tcp(pod, (net.source(), source)).syn_ack(500, 101).mss(500));
                fleet.rx_wan(0, &from(net, 5, port).ack(101, 501));
                drop((fleet.sent(WAN), fleet.sent(LAN)));
                open.push((port, pod, source, fleet.owner(&from(net, 5, port), Domain::Wire)));
            }
            fleet.publish(|tables| catalog.put(tables, "shop/web", &web(net, 1, !keeps)));
            let moved = open.iter().filter(|open| fleet.owner(&from(net, 5, open.0), Domain::Wire) != open.3).count();
            assert!(workers == 1 || moved > 0, "some have another owner now");
            for round in 0..u32::from(workers) {
                for (port, pod, source, _) in &open {
                    let data = from(net, 5, *port).segment("PA", 101 + round, 501 + round).data([1]);
                    fleet.rx_wan(round as usize, &data);
                    let expected = data.between((net.source(), *source), *pod).ttl(63);
                    fleet.expect_overlay(net, 0, &expected);
                    let answer = tcp(*pod, (net.source(), *source)).segment("PA", 501 + round, 102 + round).data([2]);
                    fleet.rx_overlay(round as usize, net, 0, &answer);
                    fleet.expect_wan(&answer.between((net.vip(1), 80), (net.client(5), *port)).ttl(63));
                }
            }
            assert_eq!(fleet.live().iter().sum::<u64>(), 12);
            // New ones follow the new rule.
            fleet.rx_wan(0, &from(net, 5, 4000).syn(1));
            let owner = fleet.owner(&from(net, 5, 4000), Domain::Wire);
            let before = open.iter().filter(|open| open.3 == owner).count() as u64;
            assert_eq!(fleet.live()[owner], before + 1);
            fleet.expect_balance();
            fleet.expect_ports_balance();
            drop((fleet.sent(WAN), fleet.sent(LAN)));
            fleet.expect_all_frames_home();
        }
    }
}

#[test]
fn a_segment_that_nobody_knows_ends_once() {
    // S-077: asked for at both owners, it is one drop and no loop.
    for net in Net::BOTH {
        let (mut fleet, mut catalog) = town(net, (3, net == Net::BOTH[0]), 1, true);
        fleet.publish(|tables| catalog.put(tables, "shop/web", &web(net, 1, false)));
        fleet.settle();
        for port in 0..60 {
            fleet.rx_wan(usize::from(port % 3), &from(net, 9, 5000 + port).ack(1, 1));
        }
        fleet.expect_silence();
        let moved = fleet.moved();
        assert_eq!((moved["received"], moved["OrphanSegment"]), (60, 60));
        assert!(moved["handed_over"] <= 120 && moved["handed_over"] == moved["taken_over"]);
    }
}

/// The first fragment of a segment; the rest never comes.
fn first_fragment(whole: &Sketch, id: u16) -> Sketch {
    let header = if whole.from.0.is_ipv4() { 20 } else { 40 };
    let body = whole.clone().may_fragment().packet()[header..header + 64].to_vec();
    Sketch { id, ..raw(whole.from.0, whole.to.0, 6).data(body).fragment(0, true) }
}

#[test]
fn a_packet_changes_hands_twice_at_most() {
    // A fragment of a segment whose flow lives with the owner of the other rule may need a third: a counted drop.
    for net in Net::BOTH {
        let (mut fleet, mut catalog) = town(net, (3, net == Net::BOTH[0]), 1, false);
        let port = (3000..4000)
            .find(|port| {
                let now = fleet.owner(&from(net, 5, *port), Domain::Wire);
                fleet.publish(|tables| catalog.put(tables, "shop/web", &web(net, 1, true)));
                let kept = fleet.owner(&from(net, 5, *port), Domain::Wire);
                fleet.publish(|tables| catalog.put(tables, "shop/web", &web(net, 1, false)));
                now != kept
            })
            .unwrap();
        fleet.rx_wan(0, &from(net, 5, port).syn(100).mss(500));
        let (pod, source) = arrived(net, &mut fleet);
        fleet.rx_overlay(0, net, 0, &tcp(pod, (net.source(), source)).syn_ack(500, 101).mss(500));
        fleet.sent(WAN);
        fleet.publish(|tables| catalog.put(tables, "shop/web", &web(net, 1, true)));
        fleet.moved();
        let whole = from(net, 5, port).segment("PA", 101, 501).data([3; 200]);
        for id in 0..40 {
            fleet.rx_wan(usize::from(id % 3), &first_fragment(&whole, id));
        }
        let (arrived, moved) = (fleet.sent(LAN).len() as u64, fleet.moved());
        let lost = moved["HandOverLoop"];
        assert!(arrived > 0 && lost > 0 && arrived + lost == 40, "{arrived} arrived, {moved:?}");
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}
