//! Several workers: whatever queue a packet arrives on, it meets the worker that owns it (design 4).
//!
//! Tests run with 1, 2 and 3 workers, with clients spread by the hash and by a NIC, in both families, on every queue.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use tidegate_dataplane::limits;
use tidegate_dataplane::packet::Domain;
use tidegate_dataplane::rig::expect::{expect_overlay, from_peer};
use tidegate_dataplane::rig::fleet::{Fleet, Plan};
use tidegate_dataplane::rig::sketch::{End, Sketch, Trouble, ping, pong, tcp, trouble, udp};
use tidegate_dataplane::rig::{self, FROM_ROUTER, LAN, Net, WAN};
use tidegate_dataplane::wheel::{self, Idle};

use crate::{client, names, names_pod, to_names, to_web, web, web_pod};

const WORKERS: [u16; 3] = [1, 2, 3];

fn fleet(workers: u16, nic: bool) -> Fleet {
    Fleet::with(crate::tables(), Plan { nic, ..Plan::of(workers) }).unwrap()
}

/// Every pair of queues of so many workers.
fn queues(workers: u16) -> impl Iterator<Item = (usize, usize)> {
    let workers = usize::from(workers);
    (0..workers).flat_map(move |first| (0..workers).map(move |second| (first, second)))
}

/// `these`, and one hand-over if the packet arrives elsewhere than it belongs.
fn handed(these: &[(&'static str, u64)], arrives: usize, owner: usize) -> Vec<(&'static str, u64)> {
    let moved: &[_] = if arrives == owner { &[] } else { &[("handed_over", 1), ("taken_over", 1)] };
    [these, moved].concat()
}

const OPENS: &[(&str, u64)] =
    &[("received", 1), ("slow_walk", 1), ("flow_installed", 1), ("mss_clamped", 1), ("encapsulated", 1), ("sent", 1)];
const ANSWERS: &[(&str, u64)] =
    &[("received", 1), ("slow_walk", 1), ("decapsulated", 1), ("mss_clamped", 1), ("sent", 1)];

/// Opens the connection of [`to_web`], the client on queue `out`, the pod on queue `back`; the source port.
pub(crate) fn connect(fleet: &mut Fleet, net: Net, out: usize, back: usize) -> u16 {
    let owner = fleet.owner(&to_web(net), Domain::Wire);
    fleet.rx_wan(out, &to_web(net).syn(100));
    let syn = tcp((net.source(), 0), web_pod(net)).syn(100).mss(crate::mss(net)).ttl(63);
    let (port, _) = fleet.expect_overlay(net, 0, &syn);
    fleet.expect_counted(&handed(OPENS, out, owner));
    let reply = tcp(web_pod(net), (net.source(), port));
    assert_eq!(
        fleet.owner(&reply, Domain::Overlay),
        owner,
        "rule 1 and rule 2 agree: the port is of the owner's blocks"
    );
    fleet.rx_overlay(back, net, 0, &reply.syn_ack(500, 101));
    fleet.expect_wan(&tcp(web(net), client(net)).syn_ack(500, 101).mss(crate::mss(net)).ttl(63));
    fleet.expect_counted(&handed(ANSWERS, back, owner));
    fleet.rx_wan(out, &to_web(net).ack(101, 501));
    fleet.expect_overlay(net, 0, &tcp((net.source(), port), web_pod(net)).ack(101, 501).ttl(63));
    fleet.expect_counted(&handed(crate::HIT_OUT, out, owner));
    port
}

#[test]
fn a_connection_goes_through_whatever_queues_it_arrives_on() {
    // Design 4, rules 1 and 2: SYNs and replies on wrong queues.
    for ((workers, nic), net) in crate::everywhere() {
        for (out, back) in queues(workers) {
            let mut fleet = fleet(workers, nic);
            let port = connect(&mut fleet, net, out, back);
            let owner = fleet.owner(&to_web(net), Domain::Wire);
            // From now on each on the other's queue.
            fleet.rx_wan(back, &to_web(net).segment("PA", 101, 501).data(*b"GET /"));
            let request = tcp((net.source(), port), web_pod(net)).segment("PA", 101, 501).data(*b"GET /");
            fleet.expect_overlay(net, 0, &request.ttl(63));
            fleet.expect_counted(&handed(crate::HIT_OUT, back, owner));
            let answer = tcp(web_pod(net), (net.source(), port)).segment("PA", 501, 106).data(*b"200");
            fleet.rx_overlay(out, net, 0, &answer);
            fleet.expect_wan(&tcp(web(net), client(net)).segment("PA", 501, 106).data(*b"200").ttl(63));
            fleet.expect_counted(&handed(crate::HIT_BACK, out, owner));
            assert_eq!(fleet.live().iter().sum::<u64>(), 1);
            assert_eq!(fleet.live()[owner], 1);
            fleet.expect_flows_at_home();
            fleet.expect_ports_balance();
            fleet.expect_all_frames_home();
        }
    }
}

#[test]
fn one_worker_never_hands_anything_over() {
    for net in Net::BOTH {
        let mut fleet = fleet(1, false);
        for n in 0..100u16 {
            fleet.rx_wan(0, &udp((net.client(n), 9), names(net)).data(*b"x"));
        }
        assert_eq!(fleet.sent(LAN).len(), 100);
        let counted = fleet.counted();
        assert_eq!((counted.get("handed_over"), counted.get("taken_over")), (None, None));
    }
}

#[test]
fn clients_are_spread_over_all_workers_and_ports_never_meet() {
    // Rule 2 spreads; N-004 and RFC 6056 hold for all workers together: no pair is given out twice.
    for ((workers, nic), net) in crate::everywhere() {
        let mut fleet = fleet(workers, nic);
        let mut ports = BTreeSet::new();
        for n in 0..600u16 {
            let asked = udp((net.client(n % 300), 1000 + n), names(net)).data(*b"x");
            fleet.rx_wan(usize::from(n % workers), &asked);
            let expected = udp((net.source(), 0), names_pod(net)).data(*b"x").ttl(63);
            let (port, _) = fleet.expect_overlay(net, 0, &expected);
            assert!(ports.insert(port), "{port} is given out twice");
        }
        let even = 600 / u64::from(workers);
        assert!(fleet.live().iter().all(|live| live.abs_diff(even) < 80), "{:?}", fleet.live());
        fleet.expect_flows_at_home();
        fleet.expect_balance();
    }
}

#[test]
fn an_error_finds_the_flow_it_quotes_from_any_queue() {
    // Rule 4: the same on the reversed quote, from the wire and out of the overlay.
    for ((workers, nic), net) in crate::everywhere() {
        for (queue, _) in queues(workers).filter(|(queue, other)| queue == other) {
            let mut fleet = fleet(workers, nic);
            let port = connect(&mut fleet, net, 0, 0);
            let owner = fleet.owner(&to_web(net), Domain::Wire);
            let seen = tcp(web(net), client(net)).segment("PA", 501, 101).data([7; 40]).ttl(60);
            fleet.rx_wan(queue, &trouble(net.client(99), net.vip(1), Trouble::Host, &seen.packet()));
            let told = tcp(web_pod(net), (net.source(), port)).segment("PA", 501, 101).data([7; 40]).ttl(60);
            let expected = trouble(net.client(99), web_pod(net).0, Trouble::Host, &told.packet()).ttl(63);
            let sent = fleet.sent_one(LAN);
            let (_, _, inner) = rig::into_peer(&sent).unwrap();
            // The error's own source is the gateway's translated address; its quote is what the pod knows.
            let expected = expected.between((net.source(), 0), web_pod(net));
            assert_eq!(inner[14..], expected.packet()[..]);
            let moved = [("received", 1), ("slow_walk", 1), ("error_translated", 1), ("encapsulated", 1), ("sent", 1)];
            fleet.expect_counted(&handed(&moved, queue, owner));

            let seen = tcp((net.source(), port), web_pod(net)).ack(101, 501).ttl(60);
            fleet.rx_overlay(queue, net, 0, &trouble(web_pod(net).0, net.source(), Trouble::Port, &seen.packet()));
            let told = tcp(client(net), web(net)).ack(101, 501).ttl(60);
            fleet.expect_wan(&trouble(net.vip(1), client(net).0, Trouble::Port, &told.packet()).ttl(63));
            let moved = [("received", 1), ("slow_walk", 1), ("error_translated", 1), ("decapsulated", 1), ("sent", 1)];
            fleet.expect_counted(&handed(&moved, queue, owner));
            fleet.expect_all_frames_home();
        }
    }
}

#[test]
fn a_pod_reaches_itself_and_its_neighbours_through_the_service_from_any_queue() {
    // S-061, rule 6: pod -> VIP -> pod, out of the overlay and back into it, both halves on wrong queues.
    for ((workers, nic), net) in crate::everywhere() {
        for (out, back) in queues(workers) {
            for pod in [net.pod(1, 9), web_pod(net).0] {
                let peer = u8::from(pod != web_pod(net).0);
                let from: End = (pod, 33_000);
                let mut fleet = fleet(workers, nic);
                let owner = fleet.owner(&tcp(from, web(net)), Domain::Overlay);
                fleet.rx_overlay(out, net, peer, &tcp(from, web(net)).syn(5).mss(500));
                let (port, _) =
                    fleet.expect_overlay(net, 0, &tcp((net.source(), 0), web_pod(net)).syn(5).mss(500).ttl(63));
                fleet.rx_overlay(back, net, 0, &tcp(web_pod(net), (net.source(), port)).syn_ack(9, 6).mss(500));
                fleet.expect_overlay(net, peer, &tcp(web(net), from).syn_ack(9, 6).mss(500).ttl(63));
                let mut live = vec![0; workers.into()];
                live[owner] = 1;
                assert_eq!(fleet.live(), live);
                let over = u64::from(out != owner) + u64::from(back != owner);
                assert_eq!(fleet.moved().get("handed_over").copied().unwrap_or(0), over);
                fleet.expect_all_frames_home();
            }
        }
    }
}

#[test]
fn what_belongs_to_no_flow_is_answered_where_it_arrives() {
    for ((workers, nic), net) in crate::everywhere() {
        let mut fleet = fleet(workers, nic);
        for queue in 0..usize::from(workers) {
            fleet.rx_wan(queue, &ping(net.client(7), net.vip(1)));
            fleet.expect_wan(&pong(net.vip(1), net.client(7)));
            fleet.expect_counted(&[("received", 1), ("answered_echo", 1), ("sent", 1)]);
        }
    }
}

#[test]
fn many_datagrams_of_one_tuple_on_all_queues_at_once_are_one_flow() {
    // T-188: three backends; exactly one gets them, one flow entry, every datagram is answered.
    for ((workers, nic), net) in crate::everywhere() {
        let mut tables = rig::tables();
        let pods = [(net.pod(0, 5), 5353, 1), (net.pod(1, 6), 5353, 1), (net.pod(1, 7), 5353, 1)];
        rig::add_service(&mut tables, 1, net.vip(1), 53, 17, &pods);
        let mut fleet = Fleet::with(tables, Plan { nic, ..Plan::of(workers) }).unwrap();
        let queues = usize::from(workers);
        for n in 0..40 {
            for queue in 0..queues {
                let asked = to_names(net).data([n, queue as u8]);
                assert!(fleet.inject(queue, WAN, &asked.frame(FROM_ROUTER)));
            }
        }
        fleet.settle();
        let arrived = fleet.sent(LAN);
        assert_eq!(arrived.len(), 40 * queues);
        let ends: BTreeSet<Vec<u8>> = arrived.iter().map(|frame| inner_ends(net, frame)).collect();
        assert_eq!(ends.len(), 1, "one backend and one translated source");
        assert_eq!(fleet.live().iter().sum::<u64>(), 1);
        let (pod, port) = destination_and_port(net, &arrived[0], &pods);
        let peer = u8::from(pod != net.pod(0, 5));
        for n in 0..40 {
            for queue in 0..queues {
                let answer = udp((pod, 5353), (net.source(), port)).data([n, queue as u8]);
                assert!(fleet.inject(queue, LAN, &from_peer(net, peer, &answer)));
            }
        }
        fleet.settle();
        let mut answers = fleet.sent(WAN);
        answers.sort();
        let mut expected: Vec<_> = (0..40u8)
            .flat_map(|n| (0..queues).map(move |queue| [n, queue as u8]))
            .map(|data| udp(names(net), client(net)).data(data).ttl(63).frame((rig::WAN_MAC, rig::ROUTER_MAC)))
            .collect();
        expected.sort();
        assert_eq!(answers, expected);
        fleet.expect_flows_at_home();
        fleet.expect_all_frames_home();
    }
}

/// Addresses and ports of the UDP packet inside a VXLAN frame.
fn inner_ends(net: Net, frame: &[u8]) -> Vec<u8> {
    let (_, _, inner) = rig::into_peer(frame).unwrap();
    let (addresses, ports) = if net == Net::BOTH[0] { (26..34, 34..38) } else { (22..54, 54..58) };
    [&inner[addresses], &inner[ports]].concat()
}

fn destination_and_port(net: Net, frame: &[u8], pods: &[rig::Endpoint]) -> (std::net::IpAddr, u16) {
    let ends = inner_ends(net, frame);
    let half = (ends.len() - 4) / 2;
    let pod = pods.iter().map(|pod| pod.0).find(|pod| match pod {
        std::net::IpAddr::V4(v4) => v4.octets()[..] == ends[half..2 * half],
        std::net::IpAddr::V6(v6) => v6.octets()[..] == ends[half..2 * half],
    });
    (pod.unwrap(), u16::from_be_bytes([ends[2 * half], ends[2 * half + 1]]))
}

#[test]
fn a_full_ring_between_workers_is_a_counted_drop_and_no_frame_is_lost() {
    for net in Net::BOTH {
        let mut fleet = Fleet::with(crate::tables(), Plan { hand_over_packets: 8, ..Plan::of(2) }).unwrap();
        let owner = fleet.owner(&to_names(net), Domain::Wire);
        for _ in 0..30 {
            assert!(fleet.inject(1 - owner, WAN, &to_names(net).frame(FROM_ROUTER)));
        }
        fleet.settle();
        assert_eq!(fleet.sent(LAN).len(), 8);
        let moved = fleet.moved();
        assert_eq!((moved["handed_over"], moved["taken_over"], moved["HandOverFull"]), (8, 8, 22));
        fleet.expect_balance();
        fleet.expect_ports_balance();
        fleet.expect_all_frames_home();
    }
}

#[test]
fn packets_on_their_way_at_the_end_are_accounted_for() {
    for net in Net::BOTH {
        let mut fleet = fleet(2, false);
        let owner = fleet.owner(&to_names(net), Domain::Wire);
        for _ in 0..5 {
            assert!(fleet.inject(1 - owner, WAN, &to_names(net).frame(FROM_ROUTER)));
        }
        let now_ns = fleet.now_ns;
        fleet.workers[1 - owner].turn(now_ns);
        fleet.expect_balance();
        fleet.workers.iter_mut().for_each(|worker| worker.stop());
        assert_eq!(fleet.moved()["ShuttingDown"], 5);
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

#[test]
fn a_worker_that_is_gone_costs_packets_and_no_frames() {
    // Its ring fills up and is a counted drop; what lies in it goes home with the ring.
    let net = Net::BOTH[0];
    let mut fleet = fleet(2, false);
    let owner = fleet.owner(&to_names(net), Domain::Wire);
    for _ in 0..40 {
        for _ in 0..20 {
            assert!(fleet.inject(1 - owner, WAN, &to_names(net).frame(FROM_ROUTER)));
        }
        fleet.now_ns += 10_000;
        let now_ns = fleet.now_ns;
        fleet.workers[1 - owner].turn(now_ns);
    }
    assert_eq!((fleet.moved()["handed_over"], fleet.counted()["HandOverFull"]), (256, 800 - 256));
    let Fleet { workers, peers, pool, .. } = fleet;
    drop((workers, peers));
    assert_eq!(pool.outstanding(), 0);
}

#[test]
fn one_way_traffic_between_workers_starves_no_fill_ring() {
    // Frames are received on one worker's ports, sent on another's, and come home there: they must find their way back
    // through the depot. `TIDEGATE_FRAMES` sets how many.
    let wanted = std::env::var("TIDEGATE_FRAMES").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000u64);
    let mut fleet = Fleet::with(crate::tables(), Plan { frames: 2048, ..Plan::of(2) }).unwrap();
    let net = Net::BOTH[0];
    let frames: Vec<Vec<u8>> = (0..)
        .map(|n| udp((net.client(n), 9), names(net)).data([0; 18]))
        .filter(|packet| fleet.owner(packet, Domain::Wire) == 1)
        .map(|packet| packet.frame(FROM_ROUTER))
        .take(64)
        .collect();
    let mut done = 0;
    while done < wanted {
        for frame in &frames {
            assert!(fleet.inject(0, WAN, frame), "no frame for a packet after {done}");
            done += 1;
        }
        fleet.now_ns += 10_000;
        let now_ns = fleet.now_ns;
        fleet.workers[0].turn(now_ns);
        fleet.workers[1].turn(now_ns);
        fleet.peers[1][1].discard_sent();
    }
    fleet.settle();
    let counted = fleet.counted();
    assert_eq!((counted["received"], counted["handed_over"], counted["sent"]), (done, done, done));
    assert!(fleet.peers.iter().flatten().all(|peer| peer.fill_empty() == 0));
    let starved =
        fleet.workers.iter().flat_map(|worker| worker.port_counters()).map(|port| port.fill_starved).sum::<u64>();
    assert_eq!(starved, 0, "turns without a frame for a fill ring");
    fleet.expect_ports_balance();
    fleet.expect_all_frames_home();
}

/// A clock that goes 100 ns on between any two readings after the first four.
fn ticking() -> impl FnMut() -> u64 {
    let mut readings: u64 = 0;
    move || {
        readings += 1;
        readings.saturating_sub(4) * 100
    }
}

#[test]
fn a_turn_that_is_measured_does_what_others_do_and_says_how_long_each_stage_took() {
    for (net, workers) in Net::BOTH.into_iter().flat_map(|net| WORKERS.map(|workers| (net, workers))) {
        let mut fleet = fleet(workers, false);
        connect(&mut fleet, net, 0, 0);
        let owner = fleet.owner(&to_web(net), Domain::Wire);
        let packet = to_web(net).ack(101, 501);
        for _ in 0..5 {
            assert!(fleet.inject(0, WAN, &packet.frame(FROM_ROUTER)));
        }
        // What is handed over is published at the end of the turn that took it in, and its owner turns after that.
        let now_ns = fleet.now_ns;
        for worker in &mut fleet.workers {
            worker.time_by(ticking());
            worker.timed_turn(now_ns);
        }
        let sent = fleet.sent(LAN);
        fleet.rx_wan(0, &packet);
        let in_another_turn = fleet.sent(LAN);
        assert_eq!((sent.len(), in_another_turn.len()), (5, 1));
        assert!(sent.iter().all(|frame| *frame == in_another_turn[0]));
        let told = |worker: usize| fleet.stages(worker);
        let own: Vec<_> = told(owner).into_iter().map(|(stage, spent)| (stage, spent.time_ns)).collect();
        // Ports, two of them, are asked also when they have nothing.
        let expected: &[_] = match (workers, owner) {
            (1, _) => &[
                ("receive", 200),
                ("parse", 100),
                ("look_up", 100),
                ("forward", 100),
                ("upkeep", 200),
                ("transmit", 100),
            ],
            (_, 0) => &[
                ("hand_over", 100),
                ("receive", 200),
                ("parse", 100),
                ("look_up", 100),
                ("forward", 100),
                ("upkeep", 200),
                ("transmit", 100),
            ],
            (..) => &[
                ("hand_over", 200),
                ("receive", 200),
                ("look_up", 100),
                ("forward", 100),
                ("upkeep", 200),
                ("transmit", 100),
            ],
        };
        assert_eq!(own, expected, "{workers} workers, {net:?}");
        for (stage, spent) in told(owner) {
            // 100 ns for five packets: up to 32 ns each; 200 ns: up to 64.
            let bucket = if spent.time_ns == 100 { 3 } else { 4 };
            assert_eq!((spent.packets[bucket], spent.packets.iter().sum::<u64>()), (5, 5), "{stage}");
        }
        let bystander = (0..usize::from(workers)).find(|worker| ![0, owner].contains(worker));
        assert!(bystander.is_none_or(|worker| told(worker).is_empty()), "who has no packets has no times");
        fleet.expect_all_frames_home();
    }
}

#[test]
fn one_turn_in_a_thousand_is_measured() {
    let mut fleet = fleet(1, false);
    let stop = AtomicBool::new(false);
    let frame = to_names(Net::BOTH[0]).frame(FROM_ROUTER);
    let turns = 2 * limits::TURNS_PER_TIMED;
    std::thread::scope(|scope| {
        let worker = &mut fleet.workers[0];
        let thread = scope.spawn(|| wheel::turn_until(worker, Idle::Poll, &stop));
        for _ in 0..turns {
            assert!(fleet.peers[0][0].inject(&frame));
            while fleet.peers[0][1].take_sent().is_none() && !thread.is_finished() {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let stages = fleet.stages(0);
    let names: Vec<_> = stages.iter().map(|(stage, _)| *stage).collect();
    assert_eq!(names, ["receive", "parse", "look_up", "forward", "upkeep", "transmit"]);
    let packets: Vec<u64> = stages.iter().map(|(_, spent)| spent.packets.iter().sum()).collect();
    // Chance could have it that the next one is due at once, again and again, but not so often.
    assert!(packets.iter().all(|count| *count == packets[0] && (1..turns / 20).contains(count)), "{stages:?}");
}

#[test]
fn threads_that_hand_over_sleep_and_wake_lose_nothing() {
    // T-188 with real threads: datagrams of one tuple on both queues while both workers turn, sleep and are rung for.
    const DATAGRAMS: usize = 2000;
    for net in Net::BOTH {
        let mut fleet = fleet(2, false);
        let stop = AtomicBool::new(false);
        let frame = to_names(net).frame(FROM_ROUTER);
        let mut arrived = Vec::new();
        std::thread::scope(|scope| {
            let start = |worker| scope.spawn(|| wheel::turn_until(worker, Idle::Sleep, &stop));
            let threads: Vec<_> = fleet.workers.iter_mut().map(start).collect();
            let mut injected = 0;
            while arrived.len() < DATAGRAMS && !threads.iter().any(|thread| thread.is_finished()) {
                // A burst, then silence until all of it has come through: long enough to fall asleep now and then.
                if injected == arrived.len() {
                    for n in 0..(DATAGRAMS - injected).min(40) {
                        while !fleet.peers[n % 2][0].inject(&frame) {
                            std::thread::yield_now();
                        }
                        injected += 1;
                    }
                }
                for peers in &mut fleet.peers {
                    arrived.extend(std::iter::from_fn(|| peers[1].take_sent()));
                }
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
        let ends: BTreeSet<_> = arrived.iter().map(|frame| inner_ends(net, frame)).collect();
        assert_eq!((arrived.len(), ends.len()), (DATAGRAMS, 1));
        assert_eq!(fleet.live().iter().sum::<u64>(), 1);
        let counted = fleet.counted();
        assert_eq!((counted["received"], counted["flow_installed"]), (DATAGRAMS as u64, 1));
        assert_eq!((counted["handed_over"], counted["taken_over"]), (DATAGRAMS as u64 / 2, DATAGRAMS as u64 / 2));
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

#[test]
fn flows_begun_by_different_workers_share_a_backend_to_its_last_port() {
    // Every worker gives out its own blocks to the last port; PortsExhausted of one says nothing of the others.
    let net = Net::BOTH[0];
    let mut fleet = Fleet::with(crate::tables(), Plan { flows: 40_000, ..Plan::of(2) }).unwrap();
    let ask = |n: u32| -> Sketch {
        let [_, net_low, high, low] = n.to_be_bytes();
        udp((std::net::Ipv4Addr::new(198, 18 + net_low, high, low).into(), 5), names(net)).data(*b"x")
    };
    let (mut started, mut ports) = ([0u32; 2], BTreeSet::new());
    for n in 0..66_500 {
        let owner = fleet.owner(&ask(n), Domain::Wire);
        assert!(fleet.inject(owner, WAN, &ask(n).frame(FROM_ROUTER)));
        fleet.now_ns += 10_000;
        let now_ns = fleet.now_ns;
        fleet.workers[owner].turn(now_ns);
        for sent in fleet.sent(LAN) {
            started[owner] += 1;
            let expected = udp((net.source(), 0), names_pod(net)).data(*b"x").ttl(63);
            assert!(ports.insert(expect_overlay(net, 0, &expected, &sent, "").0));
        }
    }
    assert_eq!(started, [32_256; 2], "half of the ports each");
    assert_eq!(ports.len(), 64_512);
    assert_eq!(fleet.counted()["PortsExhausted"], 66_500 - 64_512);
    let told = fleet.explain(0, WAN, &ask(66_501).frame(FROM_ROUTER));
    let lacks = told.steps.iter().find_map(|step| match step {
        tidegate_api::explain::Step::Lacks { what, found, .. } => Some((what.as_str(), found.as_str())),
        _ => None,
    });
    let (what, found) = lacks.expect("what is missing is told");
    assert!(what.starts_with("source ports of this worker towards 10.244.1."), "{what}");
    assert_eq!(found, "all 32256 are in use, of 1 IPv4 addresses in control.fullnatSources");
    fleet.expect_balance();
}
