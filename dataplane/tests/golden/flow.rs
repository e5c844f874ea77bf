//! Flows: what is known, what is not, and when a known one is looked at again.

use tidegate_dataplane::rig::sketch::{Trouble, our_trouble, ping, tcp, udp};
use tidegate_dataplane::rig::{self, LAN, Net, Rig, WAN};
use tidegate_dataplane::state::Direction;
use tidegate_dataplane::table::OrphanTcp;

use crate::{STARTS, and, ask, client, connect, to_names, to_web, town, walked, web, web_pod};

#[test]
fn a_segment_without_a_flow_is_dropped_or_reset_as_configured() {
    // S-077, L-012
    for net in Net::BOTH {
        let mut rig = town();
        for flags in ["A", "PA", "FA", "SA", "R", "RA"] {
            rig.rx_wan(&to_web(net).segment(flags, 7, 9));
            rig.expect_silence();
            rig.expect_counted(&walked("OrphanSegment"));
        }
        rig.publish(|tables| tables.settings.orphan_tcp = OrphanTcp::Reset);
        rig.rx_wan(&to_web(net).segment("A", 7, 9));
        rig.expect_wan(&tcp(web(net), client(net)).segment("R", 9, 0).window(0).ours());
        rig.expect_counted(&[("received", 1), ("slow_walk", 1), ("answered_reset", 1), ("sent", 1)]);
        // An upload that goes on after the gateway has forgotten it comes in segments as long as the path takes.
        for length in [1, 1200, 1240, 1241, 1400, 1440] {
            rig.rx_wan(&to_web(net).segment("PA", 7, 9).data(vec![b'x'; length]));
            rig.expect_wan(&tcp(web(net), client(net)).segment("R", 9, 0).window(0).ours());
            rig.expect_counted(&[("received", 1), ("slow_walk", 1), ("answered_reset", 1), ("sent", 1)]);
        }
        rig.rx_wan(&to_web(net).segment("R", 7, 9));
        rig.expect_silence();
        rig.expect_counted(&walked("OrphanSegment"));
        // Beyond the rate they are orphans still, and not the fault of a Service without endpoints.
        rig.publish(|tables| tables.settings.reject_rate_per_s = 0);
        rig.rx_wan(&to_web(net).segment("A", 7, 9));
        rig.expect_silence();
        rig.expect_counted(&walked("OrphanSegment"));
        assert_eq!(rig.worker.state().live(), 0);
    }
}

#[test]
fn a_packet_to_the_translated_address_without_a_flow_is_dropped_never_sent_on() {
    // S-078
    for net in Net::BOTH {
        let mut rig = town();
        rig.rx_overlay(net, 0, &tcp(web_pod(net), (net.source(), 2000)).ack(1, 2));
        rig.expect_silence();
        rig.expect_counted(&and(&walked("NoFlow"), &[("decapsulated", 1)]));
    }
}

#[test]
fn a_destination_that_nobody_serves_is_not_ours() {
    for net in Net::BOTH {
        let mut rig = town();
        rig.rx_wan(&tcp(client(net), (net.pod(0, 5), 8080)).syn(1));
        rig.expect_silence();
        rig.expect_counted(&walked("NotOurs"));
    }
}

#[test]
fn a_last_hop_is_answered_with_time_exceeded_from_the_gateway() {
    // L-058, for new flows and for known ones
    for net in Net::BOTH {
        let mut rig = town();
        let syn = to_web(net).syn(100).ttl(1);
        rig.rx_wan(&syn);
        rig.expect_wan(&our_trouble(net.gateway(), net.client(7), Trouble::Time, &syn.packet()));
        rig.expect_counted(&[("received", 1), ("slow_walk", 1), ("answered_ttl", 1), ("sent", 1)]);
        assert_eq!(rig.worker.state().live(), 0);
        let port = connect(&mut rig, net);
        let last = to_web(net).ack(101, 501).ttl(1);
        rig.rx_wan(&last);
        rig.expect_wan(&our_trouble(net.gateway(), net.client(7), Trouble::Time, &last.packet()));
        rig.expect_counted(&[("received", 1), ("slow_walk", 1), ("answered_ttl", 1), ("sent", 1)]);
        // V-015: "TTL 1 ⇒ time exceeded to inner sender".
        let last = tcp(web_pod(net), (net.source(), port)).ack(501, 101).ttl(1);
        rig.rx_overlay(net, 0, &last);
        rig.expect_overlay(net, 0, &our_trouble(net.vtep(), net.pod(0, 5), Trouble::Time, &last.packet()));
        let answered = [("received", 1), ("decapsulated", 1), ("encapsulated", 1), ("sent", 1)];
        rig.expect_counted(&and(&answered, &[("slow_walk", 1), ("answered_ttl", 1)]));
        rig.rx_wan(&to_web(net).ack(101, 501).ttl(2));
        rig.expect_overlay(net, 0, &tcp((net.source(), port), web_pod(net)).ack(101, 501).ttl(1));
        rig.expect_counted(crate::HIT_OUT);
    }
}

#[test]
fn a_syn_on_a_closed_connection_opens_a_new_one() {
    // N-087
    for net in Net::BOTH {
        let mut rig = town();
        let port = connect(&mut rig, net);
        let pod = |flags, seq, ack| tcp(web_pod(net), (net.source(), port)).segment(flags, seq, ack);
        rig.rx_wan(&to_web(net).segment("FA", 101, 501));
        rig.rx_overlay(net, 0, &pod("FA", 501, 102));
        rig.rx_wan(&to_web(net).segment("A", 102, 502));
        drop((rig.sent(WAN), rig.sent(LAN)));
        rig.moved();
        rig.rx_wan(&to_web(net).syn(9000));
        let syn = tcp((net.source(), 0), web_pod(net)).syn(9000).mss(crate::mss(net)).ttl(63);
        let (again, _) = rig.expect_overlay(net, 0, &syn);
        assert_ne!(again, port, "chosen anew");
        rig.expect_counted(&and(STARTS, &[("flow_replaced", 1), ("mss_clamped", 1)]));
        assert_eq!(rig.worker.state().live(), 1);
        // After a reset as well.
        rig.rx_overlay(net, 0, &tcp(web_pod(net), (net.source(), again)).segment("RA", 0, 9001));
        rig.expect_wan(&tcp(web(net), client(net)).segment("RA", 0, 9001).ttl(63));
        rig.moved();
        rig.rx_wan(&to_web(net).syn(12_000));
        rig.expect_overlay(net, 0, &syn.syn(12_000).mss(crate::mss(net)));
        rig.expect_counted(&and(STARTS, &[("flow_replaced", 1), ("mss_clamped", 1)]));
    }
}

#[test]
fn nonsense_flags_end_in_a_counted_drop() {
    // N-086
    for net in Net::BOTH {
        let mut rig = town();
        connect(&mut rig, net);
        for flags in ["", "P", "SF", "SR", "F", "SFA"] {
            rig.rx_wan(&to_web(net).segment(flags, 101, 501));
            rig.expect_silence();
            let moved = rig.moved();
            assert_eq!(moved.get("TcpInvalid"), Some(&1), "{flags}: {moved:?}");
        }
        rig.expect_balance();
    }
}

#[test]
fn a_reply_from_a_peer_that_does_not_have_the_pod_is_dropped() {
    // P-047
    for net in Net::BOTH {
        let mut rig = town();
        let port = connect(&mut rig, net);
        rig.rx_overlay(net, 1, &tcp(web_pod(net), (net.source(), port)).ack(501, 101));
        rig.expect_silence();
        rig.expect_counted(&and(&walked("SpoofedSource"), &[("decapsulated", 1)]));
        // And so is a question from a pod of somebody else.
        rig.rx_overlay(net, 1, &tcp((net.pod(0, 7), 5), web(net)).syn(1));
        rig.expect_silence();
        rig.expect_counted(&and(&walked("SpoofedSource"), &[("decapsulated", 1)]));
        // The node itself, by its underlay address, may ask.
        rig.rx_overlay(net, 1, &tcp((net.peer(1), 5), web(net)).syn(1));
        let syn = tcp((net.source(), 0), web_pod(net)).syn(1).mss(crate::mss(net)).ttl(63);
        rig.expect_overlay(net, 0, &syn);
    }
}

#[test]
fn unrelated_publishes_cause_no_slow_walk() {
    // Design 5: epochs
    for net in Net::BOTH {
        let mut rig = town();
        let port = connect(&mut rig, net);
        for n in 0..50u32 {
            rig.publish(|tables| {
                rig::add_service(tables, 500 + n, net.vip(20), 1000 + (n as u16), 6, &[(net.pod(1, 7), 80, 1)]);
            });
            rig.rx_wan(&to_web(net).ack(101, 501));
            rig.expect_overlay(net, 0, &tcp((net.source(), port), web_pod(net)).ack(101, 501).ttl(63));
        }
        rig.expect_counted(&[("received", 50), ("flow_hit", 50), ("encapsulated", 50), ("sent", 50)]);
        assert_eq!(rig.worker.state().v4.live() + rig.worker.state().v6.live(), 1);
    }
}

#[test]
fn flows_end_by_their_timer_and_not_before() {
    // N-102: "expiry within +1 sweep period (≤5 s), never early", however many flows there are and however rare turns.
    for net in Net::BOTH {
        let mut rig = Rig::with(crate::tables(), 32_768, 2048, 5).unwrap();
        for n in 0..24_000u16 {
            rig.rx_wan(&udp((net.client(n), 1), crate::names(net)).data(*b"x"));
            rig.sent(LAN);
        }
        assert_eq!(rig.worker.state().live(), 24_000);
        let (start, second) = (rig.now_ns, 1_000_000_000);
        // A worker that sleeps turns a hundred times a second.
        let sleep_until = |rig: &mut Rig, until| {
            while rig.now_ns < until {
                rig.now_ns += 10_000_000;
                rig.turn();
            }
        };
        sleep_until(&mut rig, start + 119 * second);
        assert_eq!(rig.worker.state().live(), 24_000, "never early");
        sleep_until(&mut rig, start + 126 * second);
        assert_eq!(rig.worker.state().live(), 0, "within five seconds");
        let moved = rig.moved();
        assert_eq!((moved["flow_installed"], moved["flow_expired"]), (24_000, 24_000));
        let usage = &rig.worker.state().usage;
        let backend = if net == Net::BOTH[0] { 2000 } else { 12_000 };
        let row = usage.row(backend);
        assert_eq!((row.live, row.opened, row.packets), (0, 24_000, [24_000, 0]));
    }
}

#[test]
fn packets_that_open_one_flow_in_one_batch_are_one_flow() {
    for net in Net::BOTH {
        let mut rig = town();
        let frame = to_names(net).frame(rig::FROM_ROUTER);
        for _ in 0..5 {
            assert!(rig.inject(WAN, &frame));
        }
        rig.turn();
        assert_eq!(rig.sent(LAN).len(), 5);
        let moved = rig.moved();
        assert_eq!((moved["flow_installed"], moved["sent"], rig.worker.state().live()), (1, 5, 1));
        ask(&mut rig, net);
    }
}

#[test]
fn packets_and_bytes_are_counted_in_the_flow() {
    for net in Net::BOTH {
        let mut rig = town();
        let port = connect(&mut rig, net);
        let length = to_web(net).ack(101, 501).packet().len() as u64;
        rig.rx_overlay(net, 0, &tcp(web_pod(net), (net.source(), port)).ack(501, 101).data([0; 100]));
        let mut seen = Vec::new();
        let state = rig.worker.state();
        let count = |direction| move |entry: tidegate_dataplane::state::Fold| (direction, entry);
        state.v4.visit(0, 9, |_, e| {
            seen = [Direction::Original, Direction::Reply].map(|d| count(d)(e.counted(d))).to_vec();
        });
        state.v6.visit(0, 9, |_, e| {
            seen = [Direction::Original, Direction::Reply].map(|d| count(d)(e.counted(d))).to_vec();
        });
        // The data. The handshake, SYN with four bytes of MSS and ACK, and SYN-ACK, was counted for the backend at once.
        assert_eq!((seen[0].1.packets, seen[0].1.bytes), (0, 0));
        assert_eq!((seen[1].1.packets, seen[1].1.bytes), (1, length + 100));
        let backend = if net == Net::BOTH[0] { 1000 } else { 11_000 };
        let row = state.usage.row(backend);
        assert_eq!((row.packets, row.bytes), ([2, 1], [2 * length + 4, length + 4]));
    }
}

#[test]
fn fragments_of_protocols_without_ports_are_counted_and_dropped() {
    for net in Net::BOTH {
        let mut rig = town();
        for (offset, more) in [(0, true), (64, true), (128, false)] {
            rig.rx_wan(&ping(net.client(7), net.vip(1)).data([1; 64]).fragment(offset, more));
            rig.expect_silence();
            rig.expect_counted(&[("received", 1), ("FragmentUntracked", 1)]);
        }
    }
}

#[test]
fn a_client_may_use_the_port_of_another() {
    for net in Net::BOTH {
        let mut rig = town();
        rig.rx_wan(&to_names(net));
        rig.rx_wan(&udp((net.client(8), 40_000), crate::names(net)).data(*b"me too"));
        assert_eq!(rig.sent(LAN).len(), 2);
        assert_eq!(rig.worker.state().live(), 2);
    }
}
