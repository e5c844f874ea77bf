//! The books: every frame that came in or was made here is accounted for (design 9).

use tidegate_dataplane::rig::sketch::{tcp, udp};
use tidegate_dataplane::rig::{FROM_ROUTER, LAN, Net, Rig, WAN};
use tidegate_dataplane::state::hold;

use crate::{client, names, to_names, to_web, town};

#[test]
fn a_full_transmit_ring_is_a_counted_drop_and_no_frame_is_lost() {
    for net in Net::BOTH {
        let mut rig = Rig::with(crate::tables(), 64, 4096, 1).unwrap();
        let frame = to_names(net).frame(FROM_ROUTER);
        for _ in 0..30 {
            for _ in 0..32 {
                assert!(rig.inject(WAN, &frame));
            }
            rig.turn();
            rig.expect_balance();
        }
        let moved = rig.moved();
        // The ring has 512 places and nobody takes anything out.
        assert_eq!((moved["sent"], moved["TxRingFull"]), (512, 960 - 512));
        assert_eq!(rig.sent(LAN).len(), 512);
        rig.turn();
        rig.expect_balance();
        rig.expect_all_frames_home();
    }
}

#[test]
fn frames_that_wait_are_held_and_given_back_at_the_end() {
    for net in Net::BOTH {
        let mut tables = crate::tables();
        let neighbours = std::sync::Arc::make_mut(&mut tables.neighbours);
        neighbours.clear(net.peer_neighbour(0));
        let mut rig = Rig::new(tables).unwrap();
        rig.rx_wan(&to_names(net));
        rig.expect_silence();
        rig.expect_balance();
        rig.expect_all_frames_home();
        let mut tables = crate::tables();
        let mut row = tables.neighbours.row(net.peer_neighbour(0)).copied().unwrap();
        row.state = tidegate_dataplane::table::neighbour::NeighbourState::Unresolved;
        std::sync::Arc::make_mut(&mut tables.neighbours).set(net.peer_neighbour(0), row);
        let mut rig = Rig::new(tables).unwrap();
        for n in 0..5 {
            rig.rx_wan(&udp((net.client(n), 1), names(net)).data(*b"x"));
        }
        assert_eq!(rig.worker.state().hold.len(), hold::FRAMES_PER_NEIGHBOUR_MAX);
        rig.expect_balance();
        rig.worker.stop();
        assert_eq!(rig.moved()["ShuttingDown"], 3);
        rig.expect_balance();
        rig.expect_all_frames_home();
    }
}

#[test]
fn many_waiting_neighbours_are_bounded() {
    for net in Net::BOTH {
        let mut rig = Rig::with(crate::tables(), 4096, 4096, 1).unwrap();
        for n in 0..200u8 {
            let client = (net.neighbour(n.max(2)), 9000);
            rig.rx_wan(&udp(client, names(net)).data(*b"x"));
            let asked = udp((net.source(), 0), crate::names_pod(net)).data(*b"x").ttl(63);
            let (port, _) = rig.expect_overlay(net, 0, &asked);
            for _ in 0..2 {
                rig.rx_overlay(net, 0, &udp(crate::names_pod(net), (net.source(), port)).data(*b"y"));
            }
        }
        assert!(rig.worker.state().hold.len() <= hold::FRAMES_MAX);
        rig.expect_balance();
        rig.expect_all_frames_home();
    }
}

#[test]
fn a_mixed_batch_is_accounted_for() {
    for net in Net::BOTH {
        let mut rig = town();
        let frames = [
            to_web(net).syn(1).frame(FROM_ROUTER),
            to_names(net).frame(FROM_ROUTER),
            tcp(client(net), (net.vip(1), 81)).syn(1).frame(FROM_ROUTER),
            b"too short".to_vec(),
            to_web(net).ack(5, 5).frame(FROM_ROUTER),
            tcp((net.client(1), 1), (net.vip(1), 99)).syn(1).frame(FROM_ROUTER),
        ];
        for frame in &frames {
            assert!(rig.inject(WAN, frame));
        }
        assert_eq!(rig.turn(), 6);
        rig.expect_counted(&[
            ("received", 6),
            ("slow_walk", 5),
            ("flow_installed", 2),
            ("mss_clamped", 1),
            ("encapsulated", 3),
            ("answered_reset", 1),
            ("sent", 4),
            ("EthernetTruncated", 1),
            ("NoFrontend", 1),
        ]);
        assert_eq!((rig.sent(LAN).len(), rig.sent(WAN).len()), (3, 1));
        rig.expect_all_frames_home();
    }
}
