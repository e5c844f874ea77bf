//! No allocation in a turn after warm-up: for hits, new flows, drops, answers, waiting packets, errors and expiry.
//!
//! The counter is of this thread only, and the harness that injects and takes frames is outside of what is counted.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

use tidegate_api::resource::{Protocol, Scheduler, Service, ServicePort, TrafficPolicy};
use tidegate_dataplane::fuzzing::{Scene, tables};
use tidegate_dataplane::rig::catalog::{Catalog, pod, service};
use tidegate_dataplane::rig::expect::from_peer;
use tidegate_dataplane::rig::fleet::Fleet;
use tidegate_dataplane::rig::policed::{self, Policed};
use tidegate_dataplane::rig::sketch::{tcp, udp};
use tidegate_dataplane::rig::{FROM_ROUTER, LAN, Net, Rig, WAN};

/// Injects the frames, lets the worker turn, and returns what was allocated in those turns.
fn allocations(rig: &mut Rig, frames: &[(tidegate_dataplane::table::DeviceId, Vec<u8>)]) -> u64 {
    let mut count = 0;
    for batch in frames.chunks(40) {
        for (device, frame) in batch {
            assert!(rig.inject(*device, frame), "no room");
        }
        count += allocation_counter::measure(|| {
            rig.turn();
        })
        .count_total;
        drop((rig.sent(WAN), rig.sent(LAN)));
    }
    count
}

fn scene() -> Scene {
    Scene::new(tables(), 8192)
}

#[test]
fn the_counter_counts() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(vec![1u8; 100])));
    assert_eq!(counted.count_total, 1);
}

/// TCP 80 of the family: by turns, by load or by client, for some clients, at a VIP or in a prefix, for every port.
fn demanding(net: Net) -> [Service; 4] {
    let backends = || (0..6).map(|n| pod(net, n % 2, 10 + n, 1 + u16::from(n), 1)).collect();
    let of = |vip, port, change: fn(&mut ServicePort)| {
        let mut service = service(net.vip(vip), Protocol::Tcp, port, backends());
        change(&mut service.ports[0]);
        service
    };
    let mut turns = of(21, 80, |port| port.scheduler = Scheduler::Wrr);
    turns.source_ranges = vec![net.client(1).into(), net.client(2).into()];
    let mut load = of(22, 0, |port| port.scheduler = Scheduler::Wlc);
    load.addresses.clear();
    load.prefixes = vec![ipnet::IpNet::new(net.vip(22), if net == Net::BOTH[0] { 30 } else { 126 }).unwrap()];
    let sticky = of(24, 80, |port| port.affinity_timeout_s = Some(60));
    let local = of(25, 0, |port| port.external_policy = TrafficPolicy::Local);
    [turns, load, sticky, local]
}

#[test]
fn what_services_ask_for_allocates_nothing() {
    let (mut tables, mut catalog) = (tables(), Catalog::default());
    for (number, service) in Net::BOTH.into_iter().flat_map(demanding).enumerate() {
        catalog.put(&mut tables, &format!("shop/{number}"), &service);
    }
    let mut rig = Rig::with(tables, 4096, 4096, 1).unwrap();
    let from = |net: Net, round: u16| {
        let each = (0..50u16).flat_map(move |n| [21, 22, 23, 24, 25].map(|vip| (n, vip)));
        each.map(move |(n, vip)| {
            let segment = tcp((net.client(n % 5), 1_000 + round * 100 + n), (net.vip(vip), 80)).syn(1);
            (WAN, segment.frame(FROM_ROUTER))
        })
    };
    let frames = |round| Net::BOTH.into_iter().flat_map(|net| from(net, round)).collect::<Vec<_>>();
    allocations(&mut rig, &frames(0));
    assert_eq!(allocations(&mut rig, &frames(1)), 0);
    let seen = rig.worker.counters().nonzero();
    assert!(seen["flow_installed"] > 700 && seen["SourceDenied"] > 50, "{seen:?}");
}

#[test]
fn packets_of_every_kind_allocate_nothing() {
    let mut scene = scene();
    let frames: Vec<_> = scene.specimens().into_iter().map(|(_, device, frame)| (device, frame)).collect();
    allocations(&mut scene.rig, &frames);
    for _ in 0..20 {
        assert_eq!(allocations(&mut scene.rig, &frames), 0);
    }
    assert!(scene.rig.worker.counters().nonzero().contains_key("cut"), "a packet was cut");
}

#[test]
fn established_flows_allocate_nothing() {
    for net in Net::BOTH {
        let mut scene = scene();
        let hit = tcp((net.client(7), 40_000), (net.vip(1), 80)).ack(101, 501).frame(FROM_ROUTER);
        let frames = vec![(WAN, hit); 40];
        allocations(&mut scene.rig, &frames);
        scene.rig.moved();
        for _ in 0..200 {
            assert_eq!(allocations(&mut scene.rig, &frames), 0);
        }
        assert_eq!(scene.rig.moved()["flow_hit"], 8000);
    }
}

#[test]
fn pods_flows_to_the_outside_and_their_end_allocate_nothing() {
    for net in Net::BOTH {
        let mut scene = scene();
        let pod = net.pod(0, 6);
        let new = |n: u16| {
            [
                (LAN, from_peer(net, 0, &udp((pod, n % 500), (net.client(n % 7), 53)).data(*b"x"))),
                (LAN, from_peer(net, 0, &tcp((pod, n), (net.client(n % 7), 443)).syn(1))),
            ]
        };
        allocations(&mut scene.rig, &(60_000..60_040).flat_map(new).collect::<Vec<_>>());
        let frames: Vec<_> = (0..2000).flat_map(new).collect();
        assert_eq!(allocations(&mut scene.rig, &frames), 0);
        assert!(scene.rig.worker.state().live() > 2000);
        scene.rig.now_ns += 500_000_000_000;
        let idle = allocation_counter::measure(|| {
            for _ in 0..2000 {
                scene.rig.turn();
            }
        });
        assert_eq!(idle.count_total, 0);
    }
}

#[test]
fn new_flows_and_their_end_allocate_nothing() {
    for net in Net::BOTH {
        let mut scene = scene();
        let new = |n: u16| (WAN, udp((net.client(n), 9), (net.vip(1), 53)).data(*b"x").frame(FROM_ROUTER));
        allocations(&mut scene.rig, &(6000..6040).map(new).collect::<Vec<_>>());
        let frames: Vec<_> = (0..4000).map(new).collect();
        scene.rig.moved();
        assert_eq!(allocations(&mut scene.rig, &frames), 0);
        assert_eq!(scene.rig.moved()["flow_installed"], 4000);
        scene.rig.now_ns += 130_000_000_000;
        let mut counted = 0;
        for _ in 0..1000 {
            scene.rig.now_ns += 10_000_000;
            counted += allocation_counter::measure(|| {
                scene.rig.turn();
            })
            .count_total;
        }
        assert_eq!(counted, 0);
        assert!(scene.rig.moved()["flow_expired"] >= 4040);
    }
}

#[test]
fn a_full_table_allocates_nothing() {
    for net in Net::BOTH {
        let mut scene = Scene::new(tables(), 64);
        let frames: Vec<_> =
            (0..400).map(|n| (WAN, udp((net.client(n), 9), (net.vip(1), 53)).data(*b"x").frame(FROM_ROUTER))).collect();
        allocations(&mut scene.rig, &frames);
        scene.rig.moved();
        assert_eq!(allocations(&mut scene.rig, &frames), 0);
        assert!(scene.rig.moved()["flow_spared"] > 300);
        // A flood of SYNs, until nothing else can be spared.
        let syn = |n: u16| (WAN, tcp((net.client(n), 9), (net.vip(1), 80)).syn(1).frame(FROM_ROUTER));
        let frames: Vec<_> = (1000..1400).map(syn).collect();
        assert_eq!(allocations(&mut scene.rig, &frames), 0);
        assert!(scene.rig.moved()["half_open_evicted"] > 300);
    }
}

#[test]
fn packets_that_wait_allocate_nothing() {
    for net in Net::BOTH {
        let mut scene = scene();
        let asks = |n: u8| (WAN, udp((net.neighbour(n), 9), (net.vip(1), 53)).data(*b"x").frame(FROM_ROUTER));
        allocations(&mut scene.rig, &(50..120).map(asks).collect::<Vec<_>>());
        scene.rig.publish(|tables| {
            let neighbours = std::sync::Arc::make_mut(&mut tables.neighbours);
            for n in 0..2 {
                if let Some(row) = neighbours.row(net.peer_neighbour(n)).copied() {
                    let state = tidegate_dataplane::table::neighbour::NeighbourState::Unresolved;
                    let row = tidegate_dataplane::table::neighbour::NeighbourRow { state, ..row };
                    neighbours.set(net.peer_neighbour(n), row);
                }
            }
        });
        scene.rig.moved();
        assert_eq!(allocations(&mut scene.rig, &(50..120).map(asks).collect::<Vec<_>>()), 0);
        let moved = scene.rig.moved();
        assert_eq!((moved["neighbour_held"], moved["NeighbourUnresolved"]), (6, 64), "three for each of two");
    }
}

#[test]
fn packets_that_change_hands_allocate_nothing() {
    for net in Net::BOTH {
        let mut fleet = Fleet::new(tables(), 2).unwrap();
        let ask = |n: u16| udp((net.client(n), 9), (net.vip(1), 53)).data(*b"x").frame(FROM_ROUTER);
        let piece = |n: u16, offset: u16| {
            udp((net.client(n), 9), (net.vip(1), 53)).data([1; 64]).fragment(offset, true).frame(FROM_ROUTER)
        };
        let mut counted = 0;
        fleet.workers.iter_mut().for_each(|worker| worker.time_by(tidegate_io::mem::now_ns));
        for round in 0..60u16 {
            for n in 0..20 {
                assert!(fleet.inject(usize::from(n % 2), WAN, &ask(20 * (round % 30) + n)));
            }
            for n in 0..4 {
                assert!(fleet.inject(usize::from(n % 2), WAN, &piece(4 * round + n, 64)));
                assert!(fleet.inject(usize::from(n % 2), WAN, &piece(4 * round + n, 0)));
            }
            fleet.now_ns += 10_000;
            let now_ns = fleet.now_ns;
            // The first round fills magazines.
            for worker in [0, 1, 0] {
                let count = allocation_counter::measure(|| {
                    match round % 3 {
                        0 => fleet.workers[worker].timed_turn(now_ns),
                        _ => fleet.workers[worker].turn(now_ns),
                    };
                });
                counted += if round > 0 { count.count_total } else { 0 };
            }
            drop((fleet.sent(WAN), fleet.sent(LAN)));
        }
        assert_eq!(counted, 0);
        let moved = fleet.moved();
        assert!(moved["handed_over"] > 400 && moved["fragment_held"] > 100, "{moved:?}");
        assert!((0..2).all(|worker| fleet.stages(worker).len() == 7), "some turns were measured");
    }
}

/// Verdicts of network policies, of rules by prefix and by set, that let pass and that stop, of new flows and of old ones.
#[test]
fn verdicts_allocate_nothing() {
    use tidegate_api::resource::Action;
    let (mut tables, mut policies) = (tables(), Policed::default());
    let clients = Net::BOTH.map(|net| policed::near(net.client(0), 25, 122, &[net.client(3)])).to_vec();
    let rules = vec![
        policed::of(vec![policed::in_set("pods")], policed::everybody(Action::Accept)),
        policed::of(clients, policed::at(Protocol::Udp, 5000, 6000, policed::everybody(Action::Accept))),
    ];
    policies.put(&mut tables, "pods", policed::set(&[5]));
    for net in Net::BOTH {
        let mut names = service(net.vip(30), Protocol::Udp, 53, vec![pod(net, 0, 77, 1, 1)]);
        names.ports[0].backends[0].port = 5353;
        policies.put(&mut tables, &format!("shop/names-{:?}", net.0), tidegate_api::resource::Body::Service(names));
    }
    policies.put(&mut tables, "shop/five", policed::pod(&Net::BOTH.map(|net| net.pod(0, 77)), 5, &[]));
    let mut rig = Rig::with(tables, 4096, 4096, 1).unwrap();
    let frames = |port: u16| {
        let each = (0..100u16).flat_map(|n| Net::BOTH.map(|net| (net, n)));
        each.map(|(net, n)| (WAN, udp((net.client(n), port), (net.vip(30), 53)).data(*b"x").frame(FROM_ROUTER)))
            .collect::<Vec<_>>()
    };
    allocations(&mut rig, &frames(1));
    let policy = policed::policy("pods", Some(rules), None);
    rig.publish(|tables| policies.put(tables, "networkpolicy/shop/names", policy));
    assert_eq!(allocations(&mut rig, &frames(1)) + allocations(&mut rig, &frames(2)), 0);
    let seen = rig.worker.counters().nonzero();
    assert!(seen["flow_revalidated"] > 100 && seen["flow_installed"] > 300, "{seen:?}");
    assert!(seen["PolicyDeniedIngress"] > 50, "{seen:?}");
    assert_eq!(rig.worker.state().rulings.all().count(), 2);
}

#[test]
fn a_turn_that_is_captured_allocates_nothing_either() {
    use tidegate_dataplane::capture::{Rings, Tap};
    use tidegate_dataplane::mailbox::Request;
    let mut rig = Rig::new(tables()).unwrap();
    let wanted = serde_json::from_str("{}").unwrap();
    let (rings, (reply, answer)) = (Rings::new(2048), crossbeam::channel::bounded(1));
    let tap = Tap::new(1, &wanted, None, std::sync::Arc::clone(&rings)).unwrap();
    rig.mailbox.send(Request::Capture { tap: Some(Box::new(tap)), reply }).unwrap();
    rig.turn();
    assert!(answer.try_recv().unwrap());
    let frames = |port: u16| -> Vec<_> {
        let of = |net: Net, n| tcp((net.client(n), port), (net.vip(1), 80)).syn(1).frame(FROM_ROUTER);
        (1..40).flat_map(|n| Net::BOTH.map(|net| (WAN, of(net, n)))).collect()
    };
    allocations(&mut rig, &frames(40_000));
    assert_eq!(allocations(&mut rig, &frames(40_001)), 0);
    let told = std::iter::from_fn(|| rings.take()).count();
    assert!(told >= 150, "{told}");
}
