//! `node-dsr`: the packet leaves as it came, but for its TTL, for a node that delivers by itself.

use tidegate_dataplane::rig::sketch::{Trouble, our_trouble, tcp, trouble, udp};
use tidegate_dataplane::rig::{self, LAN, Net, PEERS, Rig};
use tidegate_dataplane::table::backend::BackendState;
use tidegate_dataplane::table::{BackendId, OrphanTcp, Tables};

use crate::{HIT_OUT, STARTS, and, client, inner_mtu, mss, names, to_names, to_web, walked, web};

/// Number of the Service `web` or `names` of [`crate::tables`].
fn id(net: Net, what: u32) -> u32 {
    if net == Net::BOTH[0] { what } else { 10 + what }
}

/// [`crate::tables`], TCP 80 and UDP 53 of `vip(1)` delivered to these nodes.
fn tables(nodes: &[(u8, u16)]) -> Tables {
    let mut tables = crate::tables();
    deliver(&mut tables, nodes);
    tables
}

fn deliver(tables: &mut Tables, nodes: &[(u8, u16)]) {
    for net in Net::BOTH {
        rig::deliver_to_nodes(tables, id(net, 1), nodes);
        rig::deliver_to_nodes(tables, id(net, 2), nodes);
    }
}

fn town(nodes: &[(u8, u16)]) -> Rig {
    Rig::new(tables(nodes)).unwrap()
}

/// The node (0-based) that each packet sent into the overlay went to.
fn nodes(rig: &mut Rig) -> Vec<u8> {
    let node = |frame: &Vec<u8>| {
        let mac = rig::into_peer(frame).unwrap().2[..6].to_vec();
        (0..PEERS).find(|n| mac == rig::peer_vtep_mac(*n)).unwrap()
    };
    rig.sent(LAN).iter().map(node).collect()
}

const PASSED: &[(&str, u64)] = &[("received", 1), ("slow_walk", 1), ("passed", 1), ("encapsulated", 1), ("sent", 1)];

#[test]
fn a_connection_keeps_its_addresses_and_its_node_sees_the_client() {
    // S-056, L-058, V-013, V-003
    for net in Net::BOTH {
        let mut rig = town(&[(1, 1)]);
        rig.rx_wan(&to_web(net).syn(100));
        rig.expect_overlay(net, 1, &to_web(net).syn(100).mss(mss(net)).ttl(63));
        rig.expect_counted(&and(STARTS, &[("mss_clamped", 1)]));
        // The answer went to the client another way; nothing of it is seen here.
        rig.rx_wan(&to_web(net).ack(101, 501));
        rig.expect_overlay(net, 1, &to_web(net).ack(101, 501).ttl(63));
        rig.expect_counted(HIT_OUT);
        let request = to_web(net).segment("PA", 101, 501).data(*b"GET / HTTP/1.1\r\n\r\n").tos(3);
        rig.rx_wan(&request);
        rig.expect_overlay(net, 1, &request.ttl(63));
        rig.expect_counted(HIT_OUT);
        rig.rx_wan(&to_web(net).segment("FA", 119, 900));
        rig.expect_overlay(net, 1, &to_web(net).segment("FA", 119, 900).ttl(63));
        rig.expect_counted(HIT_OUT);
        let usage = rig.worker.state().usage.row(id(net, 1) * 1000 + 501);
        assert_eq!((usage.opened, usage.live), (1, 1), "counted for the node");
        rig.expect_all_frames_home();
    }
}

#[test]
fn a_datagram_keeps_its_addresses() {
    for net in Net::BOTH {
        let mut rig = town(&[(0, 1)]);
        rig.rx_wan(&to_names(net));
        rig.expect_overlay(net, 0, &to_names(net).ttl(63));
        rig.expect_counted(STARTS);
        rig.rx_wan(&to_names(net));
        rig.expect_overlay(net, 0, &to_names(net).ttl(63));
        rig.expect_counted(HIT_OUT);
        if net == Net::BOTH[0] {
            rig.rx_wan(&to_names(net).unsummed()); // N-071
            rig.expect_overlay(net, 0, &to_names(net).unsummed().ttl(63));
            rig.expect_counted(HIT_OUT);
        }
    }
}

#[test]
fn nodes_get_their_weight_of_flows_and_none_without() {
    // S-050: as many as their endpoints; S-057: a node without endpoints gets nothing.
    for net in Net::BOTH {
        let mut rig = town(&[(0, 2), (1, 1)]);
        let mut flows = [0; 2];
        for n in 0..600 {
            rig.rx_wan(&tcp((net.client(n), 40_000), web(net)).syn(1));
            flows[usize::from(nodes(&mut rig)[0])] += 1;
        }
        assert!((360..=440).contains(&flows[0]), "{flows:?}");
        let mut rig = town(&[(0, 2), (1, 0)]);
        for n in 0..100 {
            rig.rx_wan(&tcp((net.client(n), 40_000), web(net)).syn(1));
            assert_eq!(nodes(&mut rig), [0]);
        }
    }
}

#[test]
fn a_connection_stays_when_nodes_come_and_go_and_a_new_syn_goes_elsewhere() {
    // L-020, S-108, S-100
    for net in Net::BOTH {
        let mut rig = town(&[(0, 1)]);
        rig.rx_wan(&to_web(net).syn(100));
        rig.rx_wan(&to_web(net).ack(101, 1));
        assert_eq!(nodes(&mut rig), [0, 0]);
        rig.publish(|tables| deliver(tables, &[(1, 1)]));
        rig.moved();
        rig.rx_wan(&to_web(net).ack(101, 1));
        assert_eq!(nodes(&mut rig), [0], "established: it stays");
        rig.expect_counted(&[
            ("received", 1),
            ("slow_walk", 1),
            ("flow_revalidated", 1),
            ("encapsulated", 1),
            ("sent", 1),
        ]);
        rig.rx_wan(&to_web(net).ack(101, 1));
        assert_eq!(nodes(&mut rig), [0]);
        rig.expect_counted(HIT_OUT);
        rig.rx_wan(&to_web(net).syn(9000));
        assert_eq!(nodes(&mut rig), [1], "a new connection of the same tuple");
        let moved = rig.moved();
        assert_eq!((moved.get("flow_replaced"), moved.get("flow_installed")), (Some(&1), Some(&1)), "{moved:?}");
        rig.rx_wan(&to_web(net).ack(9001, 1));
        assert_eq!(nodes(&mut rig), [1]);
        assert_eq!(rig.worker.state().live(), 1);
    }
}

#[test]
fn a_syn_of_an_established_flow_whose_node_is_there_goes_to_it() {
    // N-103, and N-087 once it was closed.
    for net in Net::BOTH {
        let mut rig = town(&[(0, 1), (1, 1)]);
        rig.rx_wan(&to_web(net).syn(100));
        let first = nodes(&mut rig);
        rig.rx_wan(&to_web(net).syn(100));
        rig.rx_wan(&to_web(net).ack(101, 1));
        rig.rx_wan(&to_web(net).syn(777));
        assert_eq!(nodes(&mut rig), [first[0]; 3]);
        rig.moved();
        rig.rx_wan(&to_web(net).segment("FA", 101, 1));
        rig.rx_wan(&to_web(net).syn(9000));
        assert_eq!(nodes(&mut rig), [first[0]; 2]);
        assert_eq!(rig.moved().get("flow_replaced"), Some(&1));
    }
}

#[test]
fn a_datagram_flow_leaves_a_node_that_left_the_set_at_once() {
    // S-108, S-102
    for net in Net::BOTH {
        let mut rig = town(&[(0, 1)]);
        rig.rx_wan(&to_names(net));
        assert_eq!(nodes(&mut rig), [0]);
        rig.publish(|tables| deliver(tables, &[(0, 0), (1, 1)]));
        rig.rx_wan(&to_names(net));
        assert_eq!(nodes(&mut rig), [1]);
        // S-102: without anybody who serves, nothing is deleted.
        rig.publish(|tables| {
            let services = std::sync::Arc::make_mut(&mut tables.services);
            let service = tidegate_dataplane::table::ServiceId(id(net, 2));
            let mut row = services.row(service).unwrap().clone();
            row.serving = 0;
            services.set_row(service, row);
            deliver(tables, &[]);
        });
        rig.rx_wan(&to_names(net));
        assert_eq!(nodes(&mut rig), [1]);
    }
}

#[test]
fn while_no_node_is_proven_delivery_is_fullnat_and_connections_to_nodes_go_on() {
    // Design 6: "until proven, fullnat"
    for net in Net::BOTH {
        let mut rig = town(&[(1, 1)]);
        rig.rx_wan(&to_web(net).syn(100));
        rig.rx_wan(&to_web(net).ack(101, 1));
        rig.rx_wan(&to_names(net));
        assert_eq!(nodes(&mut rig), [1, 1, 1]);
        rig.publish(|tables| deliver(tables, &[(1, 0)]));
        rig.rx_wan(&to_web(net).ack(101, 1));
        rig.expect_overlay(net, 1, &to_web(net).ack(101, 1).ttl(63));
        let fresh = tcp((net.client(8), 5), web(net));
        rig.rx_wan(&fresh.clone().syn(1));
        rig.expect_overlay(net, 0, &fresh.between((net.source(), 0), crate::web_pod(net)).syn(1).mss(mss(net)).ttl(63));
        rig.rx_wan(&to_names(net));
        rig.expect_overlay(net, 0, &to_names(net).between((net.source(), 0), crate::names_pod(net)).ttl(63));
    }
}

#[test]
fn a_segment_in_the_middle_is_taken_up_by_the_hash() {
    // S-077, N-088, L-010: as after the loss of another gateway.
    for net in Net::BOTH {
        let (mut one, mut other) = (town(&[(0, 1), (1, 1)]), town(&[(1, 1), (0, 1)]));
        for n in 0..50 {
            let segment = tcp((net.client(n), 41_000), web(net));
            one.rx_wan(&segment.clone().syn(1));
            one.moved();
            other.rx_wan(&segment.clone().segment("PA", 2, 2).data(*b"more"));
            assert_eq!(nodes(&mut one), nodes(&mut other), "both gateways choose the same node");
            other.expect_counted(&and(STARTS, &[("picked_up", 1)]));
            other.rx_wan(&segment.segment("A", 6, 2));
            other.expect_counted(HIT_OUT);
            other.sent(LAN);
        }
    }
}

#[test]
fn a_reset_without_a_flow_passes_and_leaves_nothing_behind() {
    // L-021
    for net in Net::BOTH {
        for flags in ["R", "RA"] {
            let mut rig = town(&[(1, 1)]);
            rig.rx_wan(&to_web(net).segment(flags, 7, 0));
            rig.expect_overlay(net, 1, &to_web(net).segment(flags, 7, 0).ttl(63));
            rig.expect_counted(PASSED);
            assert_eq!(rig.worker.state().live(), 0);
            assert_eq!(rig.worker.state().usage.row(id(net, 1) * 1000 + 501).packets, [1, 0], "counted all the same");
        }
        let mut rig = town(&[(1, 1)]);
        for nonsense in ["", "SF", "SA", "SR"] {
            rig.rx_wan(&to_web(net).segment(nonsense, 7, 0));
            rig.expect_silence();
            rig.expect_counted(&walked("TcpInvalid"));
        }
    }
}

#[test]
fn a_full_table_and_a_flood_of_new_flows_cost_nobody_a_packet() {
    // L-021, N-100: what is not remembered goes by the hash, to the same node.
    for net in Net::BOTH {
        let mut rig = Rig::with(tables(&[(0, 1), (1, 1)]), 16, 1024, 1).unwrap();
        let mut first = Vec::new();
        for n in 0..64 {
            rig.rx_wan(&tcp((net.client(n), 41_000), web(net)).syn(1));
            first.extend(nodes(&mut rig));
        }
        let counted = rig.moved();
        let (installed, passed) = (counted["flow_installed"], counted["passed"]);
        assert!(installed <= 16 && installed + passed == 64, "{counted:?}");
        assert!(!counted.contains_key("TableFull"));
        for n in 0..64u16 {
            rig.rx_wan(&tcp((net.client(n), 41_000), web(net)).ack(2, 2));
            assert_eq!(nodes(&mut rig), [first[usize::from(n)]]);
        }
        let mut rig = Rig::with(tables(&[(0, 1), (1, 1)]), 4096, 1024, 1).unwrap();
        let now_ns = rig.now_ns;
        rig.worker.state_mut().pins.set(2, 2, now_ns);
        for n in 0..10 {
            rig.rx_wan(&tcp((net.client(n), 41_000), web(net)).syn(1));
        }
        let counted = rig.moved();
        assert_eq!((counted["flow_installed"], counted["passed"]), (2, 8), "{counted:?}");
        assert_eq!(nodes(&mut rig), first[..10]);
    }
}

#[test]
fn what_does_not_fit_is_answered_from_the_vip() {
    // V-010, V-052, T-119 in this mode
    for net in Net::BOTH {
        let mut rig = town(&[(0, 1)]);
        let large = to_web(net).segment("A", 1, 1).long(1500);
        rig.rx_wan(&large);
        let about = Trouble::TooBig(inner_mtu(net));
        rig.expect_wan(&our_trouble(net.vip(1), net.client(7), about, &large.packet()));
        rig.rx_wan(&to_web(net).syn(1));
        rig.sent(LAN);
        rig.rx_wan(&large);
        rig.expect_wan(&our_trouble(net.vip(1), net.client(7), about, &large.packet()));
        let fits = to_web(net).segment("A", 1, 1).long(usize::from(inner_mtu(net)));
        rig.rx_wan(&fits);
        rig.expect_overlay(net, 0, &fits.ttl(63));
    }
}

#[test]
fn the_last_hop_is_told_to_the_sender() {
    // L-058, S-063: a loop over a node that routes the packet back ends.
    for net in Net::BOTH {
        let mut rig = town(&[(0, 1)]);
        let last = to_web(net).syn(1).ttl(1);
        rig.rx_wan(&last);
        rig.expect_wan(&our_trouble(net.gateway(), net.client(7), Trouble::Time, &last.packet()));
        rig.rx_wan(&to_web(net).syn(1).ttl(2));
        rig.expect_overlay(net, 0, &to_web(net).syn(1).mss(mss(net)).ttl(1));
    }
}

#[test]
fn an_error_goes_unchanged_to_the_node_of_what_it_quotes() {
    // L-050, V-051
    for net in Net::BOTH {
        let mut rig = town(&[(0, 1)]);
        rig.rx_wan(&to_web(net).syn(1));
        rig.rx_wan(&to_names(net));
        rig.publish(|tables| deliver(tables, &[(0, 1), (1, 64)]));
        nodes(&mut rig);
        rig.moved();
        let answers = [
            tcp(web(net), client(net)).segment("PA", 700, 800).data(vec![7; 600]).packet(),
            udp(names(net), client(net)).data(vec![9; 600]).packet(),
        ];
        for answer in &answers {
            for about in [Trouble::Host, Trouble::TooBig(1400), Trouble::Time] {
                let error = trouble(net.client(999), net.vip(1), about, &answer[..120]);
                rig.rx_wan(&error);
                rig.expect_overlay(net, 0, &error.clone().ttl(63));
                rig.expect_counted(PASSED);
                rig.rx_wan(&error.ttl(1));
                rig.expect_silence();
                rig.expect_counted(&walked("TtlExpired"));
            }
        }
        // Without a flow the hash says whose it is.
        for n in 0..20 {
            let from = (net.client(n), 5);
            let quoted = tcp(web(net), from).ack(1, 1).packet();
            rig.rx_wan(&trouble(net.client(999), net.vip(1), Trouble::TooBig(1400), &quoted));
            let error = nodes(&mut rig);
            rig.expect_counted(PASSED);
            rig.rx_wan(&tcp(from, web(net)).syn(1));
            assert_eq!(error, nodes(&mut rig));
            rig.moved();
        }
        // To another address than it quotes: the node would not know it.
        let quoted = tcp(web(net), (net.client(77), 5)).ack(1, 1).packet();
        rig.rx_wan(&trouble(net.client(999), net.source(), Trouble::TooBig(1400), &quoted));
        rig.expect_silence();
        rig.expect_counted(&walked("ErrorUnmatched"));
    }
}

#[test]
fn a_client_inside_the_overlay_gets_an_endpoint_and_not_a_node() {
    // S-058
    for net in Net::BOTH {
        let mut rig = town(&[(0, 1)]);
        let from = (net.pod(1, 9), 40_000);
        rig.rx_overlay(net, 1, &tcp(from, web(net)).syn(1));
        rig.expect_overlay(net, 0, &tcp((net.source(), 0), crate::web_pod(net)).syn(1).mss(mss(net)).ttl(63));
        rig.rx_overlay(net, 1, &tcp(from, web(net)).segment("A", 2, 2).between((net.pod(1, 8), 1), web(net)));
        rig.expect_silence();
        assert_eq!(rig.moved().get("OrphanSegment"), Some(&1), "not taken up");
    }
}

#[test]
fn where_nodes_are_waited_for_no_connection_is_reset() {
    // L-012: not while it may belong to a node that is about to be proven again.
    for net in Net::BOTH {
        let mut tables = tables(&[(0, 0)]);
        tables.settings.orphan_tcp = OrphanTcp::Reset;
        let mut rig = Rig::new(tables).unwrap();
        rig.rx_wan(&to_web(net).ack(5, 5));
        rig.expect_silence();
        rig.expect_counted(&walked("OrphanSegment"));
        rig.publish(|tables| deliver(tables, &[(0, 1)]));
        rig.rx_wan(&to_web(net).ack(5, 5));
        rig.expect_overlay(net, 0, &to_web(net).ack(5, 5).ttl(63));
    }
}

#[test]
fn a_row_given_to_another_node_is_noticed() {
    // The row's tunnel is not the flow's: the flow does not follow a stranger.
    for net in Net::BOTH {
        let mut rig = town(&[(0, 1)]);
        rig.rx_wan(&to_web(net).syn(100));
        rig.rx_wan(&to_web(net).ack(101, 1));
        nodes(&mut rig);
        rig.publish(|tables| {
            let backends = std::sync::Arc::make_mut(&mut tables.backends);
            let id = BackendId(id(net, 1) * 1000 + 500);
            let mut row = *backends.row(id).unwrap();
            (row.node, row.state) = (net.tunnel(1), BackendState::Active);
            backends.set(id, row);
        });
        rig.rx_wan(&to_web(net).ack(101, 1));
        assert_eq!(nodes(&mut rig), [0]);
    }
}

#[test]
fn a_pin_lives_as_long_as_a_connection_and_an_unanswered_syn_a_minute() {
    // N-102
    for net in Net::BOTH {
        let mut rig = town(&[(0, 1)]);
        let (opening, pinned) = (tcp((net.client(1), 5), web(net)), tcp((net.client(2), 5), web(net)));
        rig.rx_wan(&opening.syn(1));
        rig.rx_wan(&pinned.clone().syn(1));
        rig.rx_wan(&pinned.ack(2, 2));
        let mut wait = |seconds: u64| {
            rig.now_ns += seconds * 1_000_000_000;
            rig.turn();
            rig.worker.state().live()
        };
        assert_eq!((wait(59), wait(5), wait(7_300), wait(100)), (2, 1, 1, 0));
    }
}
