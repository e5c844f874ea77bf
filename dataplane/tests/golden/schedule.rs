//! Schedulers with the names of the kernel's `ipvs` (L-030 … L-042), weights and slow start.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tidegate_api::resource::{Backend, Protocol, Scheduler, Service};
use tidegate_dataplane::rig::catalog::{pod, service};
use tidegate_dataplane::rig::sketch::{tcp, udp};
use tidegate_dataplane::rig::{Net, Rig};
use tidegate_dataplane::table::maglev::{Ring, member_key};

use crate::{gateway_of, pod_of, walked, went_to};

/// Pods 10, 11, 12 … of peer 0 with these weights, under a scheduler.
fn scheduled(net: Net, scheduler: Scheduler, weights: &[u16]) -> Service {
    let backends = (10..).zip(weights).map(|(p, weight)| pod(net, 0, p, *weight, *weight)).collect();
    let mut service = service(net.vip(1), Protocol::Tcp, 80, backends);
    service.ports[0].scheduler = scheduler;
    service
}

/// The letter of a pod of [`scheduled`].
fn letter(net: Net, address: IpAddr) -> char {
    (0..26u8).find(|n| net.pod(0, 10 + n) == address).map(|n| char::from(b'A' + n)).unwrap()
}

/// Opens `count` connections, each from another client, and names their pods; `-` where it was refused.
fn connect(rig: &mut Rig, net: Net, first: u16, count: u16) -> String {
    let open = |n| pod_of(rig, (net.client(n), 40_000), (net.vip(1), 80)).map_or('-', |pod| letter(net, pod));
    (first..first + count).map(open).collect()
}

/// Resets the connection of client `n`, as it would itself.
fn reset(rig: &mut Rig, net: Net, n: u16) {
    rig.rx_wan(&tcp((net.client(n), 40_000), (net.vip(1), 80)).segment("R", 2, 0));
    went_to(rig);
}

#[test]
fn turns_are_taken_by_weight() {
    // L-030, L-031
    for net in Net::BOTH {
        let (mut rig, mut catalog) = gateway_of(&[("shop/web", scheduled(net, Scheduler::Wrr, &[4, 3, 2]))]);
        assert_eq!(connect(&mut rig, net, 0, 18), "AABABCABCAABABCABC");
        rig.publish(|tables| catalog.put(tables, "shop/web", &scheduled(net, Scheduler::Rr, &[4, 3, 2])));
        let turns = connect(&mut rig, net, 20, 9);
        assert!(["ABCABCABC", "BCABCABCA", "CABCABCAB"].contains(&turns.as_str()), "{turns}");
        // L-047: weight 0 drains.
        rig.publish(|tables| catalog.put(tables, "shop/web", &scheduled(net, Scheduler::Rr, &[4, 0, 2])));
        assert!(!connect(&mut rig, net, 30, 9).contains('B'));
        // A segment that opens nothing moves no turn.
        let one = connect(&mut rig, net, 40, 1);
        rig.rx_wan(&tcp((net.client(41), 40_000), (net.vip(1), 80)).ack(9, 9));
        assert_ne!(connect(&mut rig, net, 42, 1), one);
    }
}

#[test]
fn the_sum_over_workers_is_even_within_one_each() {
    // What `docs/services.md` says of several workers: each takes its own turns.
    for net in Net::BOTH {
        let mut workers: Vec<Rig> =
            (0..3).map(|_| gateway_of(&[("shop/web", scheduled(net, Scheduler::Rr, &[1, 1, 1, 1]))]).0).collect();
        let mut counts = BTreeMap::<String, u32>::new();
        for n in 0..200u16 {
            // Which worker a client belongs to is anybody's guess here.
            let worker = usize::from(n.wrapping_mul(40_503) >> 7) % workers.len();
            *counts.entry(connect(&mut workers[worker], net, n, 1)).or_default() += 1;
        }
        let (most, least) = (counts.values().max().unwrap(), counts.values().min().unwrap());
        assert!(counts.len() == 4 && most - least <= 3, "{counts:?}");
    }
}

#[test]
fn the_least_loaded_gets_the_next_and_ended_connections_do_not_count() {
    // L-032 … L-035
    for net in Net::BOTH {
        for (scheduler, weights, expected) in [
            (Scheduler::Lc, [1, 9, 3], "ABCABC"),
            (Scheduler::Wlc, [1, 2, 3], "ABCCBC"),
            (Scheduler::Sed, [1, 2, 3], "CBCABC"),
            (Scheduler::Nq, [1, 2, 3], "ABCCBC"),
        ] {
            let (mut rig, _) = gateway_of(&[("shop/web", scheduled(net, scheduler, &weights))]);
            assert_eq!(connect(&mut rig, net, 0, 6), expected, "{scheduler:?}");
        }
        let (mut rig, _) = gateway_of(&[("shop/web", scheduled(net, Scheduler::Lc, &[1, 1, 1]))]);
        assert_eq!(connect(&mut rig, net, 0, 6), "ABCABC");
        // Both of B's end: they are inactive, and 512 times lighter than one that is not.
        reset(&mut rig, net, 1);
        reset(&mut rig, net, 4);
        let usage = &rig.worker.state().usage;
        let active: BTreeMap<u32, (u32, u32)> = (0..3).map(|id| (id, usage.connections(id))).collect();
        assert_eq!(active.values().copied().collect::<Vec<_>>(), [(2, 0), (0, 2), (2, 0)]);
        assert_eq!(connect(&mut rig, net, 10, 3), "BBA");
    }
}

#[test]
fn failover_goes_to_the_heaviest_and_overflow_goes_on_when_it_is_full() {
    // L-041, L-042
    for net in Net::BOTH {
        let (mut rig, mut catalog) = gateway_of(&[("shop/web", scheduled(net, Scheduler::Fo, &[1, 5, 2]))]);
        assert_eq!(connect(&mut rig, net, 0, 4), "BBBB");
        rig.publish(|tables| catalog.put(tables, "shop/web", &scheduled(net, Scheduler::Fo, &[1, 0, 2])));
        assert_eq!(connect(&mut rig, net, 10, 2), "CC");
        let (mut rig, _) = gateway_of(&[("shop/web", scheduled(net, Scheduler::Ovf, &[1, 3]))]);
        assert_eq!(connect(&mut rig, net, 0, 8), "BBBBAA--", "all full: refused as without endpoints");
        reset(&mut rig, net, 1);
        assert_eq!(connect(&mut rig, net, 20, 1), "B");
    }
}

#[test]
fn source_and_destination_hashing_go_by_one_address() {
    // L-036, L-037
    for net in Net::BOTH {
        let mut service = scheduled(net, Scheduler::Sh, &[1, 1, 1, 1]);
        service.addresses = (1..=40).map(|n| net.vip(n)).collect();
        for (scheduler, by_client, by_vip) in [(Scheduler::Sh, 4, 1), (Scheduler::Dh, 1, 4)] {
            service.ports[0].scheduler = scheduler;
            let (mut rig, _) = gateway_of(&[("shop/web", service.clone())]);
            let mut spread = |ends: Vec<(u16, u8)>| {
                let pods = ends.into_iter().map(|(client, vip)| {
                    pod_of(&mut rig, (net.client(client), 1_000 + client), (net.vip(vip), 80)).unwrap()
                });
                pods.collect::<std::collections::BTreeSet<_>>().len()
            };
            assert_eq!(spread((0..60).map(|client| (client, 1)).collect()), by_client, "{scheduler:?} by client");
            assert_eq!(spread((1..=40).map(|vip| (99, vip)).collect()), by_vip, "{scheduler:?} by VIP");
        }
    }
}

#[test]
fn a_new_endpoint_starts_slowly_and_reaches_its_share() {
    // L-048
    for net in Net::BOTH {
        let mut service = scheduled(net, Scheduler::Mh, &[1, 1]);
        service.ports[0].slow_start_s = 30;
        let (mut rig, mut catalog) = gateway_of(&[("shop/web", service.clone())]);
        let pods_of = |rig: &Rig| {
            let tables = rig.publisher.current();
            let (_, row) = tables.services.rows().next().unwrap();
            let ring = row.cluster.ring.as_ref().unwrap();
            let mut shares = vec![0usize; row.cluster.members.len()];
            ring.slots().for_each(|member| shares[member] += 1);
            (shares, ring.size())
        };
        assert_eq!(
            pods_of(&rig).0.iter().max().unwrap() - pods_of(&rig).0.iter().min().unwrap(),
            1,
            "the first are full"
        );
        service.ports[0].backends.push(pod(net, 0, 12, 1, 1));
        catalog.now_ns = 1_000_000_000;
        rig.publish(|tables| catalog.put(tables, "shop/web", &service));
        let mut shares = vec![];
        for second in 0..=31u64 {
            catalog.now_ns = (1 + second) * 1_000_000_000;
            rig.publish(|tables| {
                catalog.tick(tables);
            });
            let (of, size) = pods_of(&rig);
            shares.push(of[2] * 1000 / size);
        }
        let mut steps = shares.clone();
        steps.dedup();
        assert!(steps.len() >= 5 && steps.windows(2).all(|pair| pair[0] < pair[1]), "{shares:?}");
        assert!((40..60).contains(&shares[0]), "one of ten against ten and ten: {shares:?}");
        assert_eq!(shares[31], 332, "a third, rounded down: {shares:?}");
        // Plain weights again, and the same ring as one that never grew.
        let (fresh, _) = gateway_of(&[("shop/web", service)]);
        let digest = |rig: &Rig| rig.publisher.current().services.digest();
        assert_eq!(digest(&rig), digest(&fresh));
        assert!(!catalog.tick(&mut rig.publisher.current().clone()), "nothing is left to grow");
    }
}

/// Per mille of the slots that change hands between members that did not grow.
fn moved_besides(before: &Ring, after: &Ring, grown: usize) -> usize {
    let moved = before.slots().zip(after.slots()).filter(|(then, now)| then != now && *then != grown && *now != grown);
    moved.count() * 1000 / before.size()
}

#[test]
fn a_step_moves_little_besides_what_the_share_grows_by() {
    // L-048: "disruption per step within L-005", that is twice its table (per mille, at its nearest sizes).
    for (members, size, bound) in [(3u16, 509, 9), (10, 1_021, 23), (100, 16_381, 26)] {
        let ring = |weight: u16, full: u16| {
            let key =
                |n: u16| member_key(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 244, (n >> 8) as u8, n as u8], 80);
            let members: Vec<_> =
                (0..members).map(|n| (key(n), if n == members / 2 { weight } else { full })).collect();
            Ring::build(&members, size).unwrap()
        };
        let steps: Vec<Ring> = (1..=10).map(|weight| ring(weight, 10)).collect();
        let moved: Vec<usize> =
            steps.windows(2).map(|pair| moved_besides(&pair[0], &pair[1], usize::from(members / 2))).collect();
        assert!(moved.iter().all(|moved| *moved <= bound), "{members} members: {moved:?} per mille");
        // Weights are proportions: neither does the end of the growth move anything.
        assert!(ring(1, 1).slots().eq(steps[9].slots()));
    }
}

#[test]
fn datagrams_count_as_inactive() {
    for net in Net::BOTH {
        let mut service = scheduled(net, Scheduler::Lc, &[1, 1]);
        service.ports[0].protocol = Protocol::Udp;
        let (mut rig, _) = gateway_of(&[("dns/names", service)]);
        let mut ask = |n: u16| {
            rig.rx_wan(&udp((net.client(n), 40_000), (net.vip(1), 80)).data(*b"?"));
            letter(net, went_to(&mut rig).pop().unwrap().0)
        };
        assert_eq!((0..6).map(&mut ask).collect::<String>(), "ABABAB");
        assert_eq!(rig.worker.state().usage.connections(0), (0, 3));
        rig.moved();
        rig.rx_wan(&udp((net.client(1), 40_000), (net.vip(1), 81)).data(*b"?"));
        rig.expect_silence();
        rig.expect_counted(&walked("NoFrontend"));
    }
}

#[test]
fn endpoints_come_and_go_around_a_turn() {
    for net in Net::BOTH {
        let (mut rig, mut catalog) = gateway_of(&[("shop/web", scheduled(net, Scheduler::Rr, &[1, 1, 1, 1]))]);
        assert_eq!(connect(&mut rig, net, 0, 2), "AB");
        let mut without_b = scheduled(net, Scheduler::Rr, &[1, 1, 1, 1]);
        let gone: Backend = without_b.ports[0].backends.remove(1);
        rig.publish(|tables| catalog.put(tables, "shop/web", &without_b));
        assert_eq!(connect(&mut rig, net, 10, 3), "CDA", "who came after the one that left is next");
        without_b.ports[0].backends.push(gone);
        rig.publish(|tables| catalog.put(tables, "shop/web", &without_b));
        assert_eq!(connect(&mut rig, net, 20, 4), "BCDA");
    }
}
