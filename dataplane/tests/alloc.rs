//! No allocation in a turn after warm-up: for hits, new flows, drops, answers, waiting packets, errors and expiry.
//!
//! The counter is of this thread only, and the harness that injects and takes frames is outside of what is counted.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

use tidegate_dataplane::fuzzing::{Scene, tables};
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

#[test]
fn packets_of_every_kind_allocate_nothing() {
    let mut scene = scene();
    let frames: Vec<_> = scene.specimens().into_iter().map(|(_, device, frame)| (device, frame)).collect();
    allocations(&mut scene.rig, &frames);
    for _ in 0..20 {
        assert_eq!(allocations(&mut scene.rig, &frames), 0);
    }
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
        assert!(scene.rig.moved()["TableFull"] > 300);
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
