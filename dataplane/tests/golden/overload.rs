//! Overload: more than there is room or time for, and who pays for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use tidegate_dataplane::mailbox::Request;
use tidegate_dataplane::rig::sketch::{End, Sketch, tcp, udp};
use tidegate_dataplane::rig::{LAN, Net, Rig, WAN};
use tidegate_dataplane::table::BackendId;
use tidegate_dataplane::table::backend::BackendRow;

use crate::{HIT_BACK, HIT_OUT, STARTS, and, mss, names, names_pod, walked, web, web_pod};

/// Somebody of a link of its own, so that limits per source tell each from the others.
pub fn stranger(net: Net, n: u16) -> IpAddr {
    match net == Net::BOTH[0] {
        true => Ipv4Addr::from((198 << 24 | 19 << 16) + u32::from(n)).into(),
        false => Ipv6Addr::new(0x2001, 0xdb8, 0xd, n, 0, 0, 0, 1).into(),
    }
}

fn flows_of(rig: &Rig, net: Net) -> (u32, u32) {
    let state = rig.worker.state();
    if net == Net::BOTH[0] { (state.v4.live(), state.v4.opening()) } else { (state.v6.live(), state.v6.opening()) }
}

/// The SYN of `from`; returns the source port it was given.
fn syn(rig: &mut Rig, net: Net, from: End) -> u16 {
    rig.rx_wan(&tcp(from, web(net)).syn(100));
    rig.expect_overlay(net, 0, &tcp((net.source(), 0), web_pod(net)).syn(100).mss(mss(net)).ttl(63)).0
}

fn syn_ack(net: Net, port: u16) -> Sketch {
    tcp(web_pod(net), (net.source(), port)).syn_ack(500, 101)
}

/// A whole handshake; returns the source port.
fn open(rig: &mut Rig, net: Net, from: End) -> u16 {
    let port = syn(rig, net, from);
    rig.rx_overlay(net, 0, &syn_ack(net, port));
    rig.expect_wan(&tcp(web(net), from).syn_ack(500, 101).mss(mss(net)).ttl(63));
    rig.rx_wan(&tcp(from, web(net)).ack(101, 501));
    rig.expect_overlay(net, 0, &tcp((net.source(), port), web_pod(net)).ack(101, 501).ttl(63));
    port
}

#[test]
fn a_flood_of_spoofed_syns_takes_nothing_from_established_flows() {
    // L-022, N-100: ten times the share of handshakes, and a thousand connections that go on meanwhile.
    const SHARE: u32 = 2048;
    const FLOOD: u32 = 10 * SHARE;
    for net in Net::BOTH {
        let mut rig = Rig::with(crate::tables(), 4 * SHARE, 2048, 1).unwrap();
        let clients: Vec<End> = (0..1000).map(|n| (net.client(n), 5000)).collect();
        let ports: Vec<u16> = clients.iter().map(|client| open(&mut rig, net, *client)).collect();
        assert_eq!(flows_of(&rig, net), (1000, 0));
        rig.moved();
        for n in 0..FLOOD {
            let spoofed = (stranger(net, (n % 50_000) as u16), 1024 + (n / 50_000) as u16);
            let port = syn(&mut rig, net, spoofed);
            if n % 3 == 0 {
                // The server answers some, which makes them no better.
                rig.rx_overlay(net, 0, &syn_ack(net, port));
                assert_eq!(rig.sent(WAN).len(), 1);
            }
            if n % 10 == 0 {
                let at = (n / 10 % 1000) as usize;
                rig.rx_wan(&tcp(clients[at], web(net)).ack(101, 501));
                let arrived = tcp((net.source(), ports[at]), web_pod(net)).ack(101, 501).ttl(63);
                rig.expect_overlay(net, 0, &arrived);
                rig.rx_overlay(net, 0, &tcp(web_pod(net), (net.source(), ports[at])).ack(501, 101));
                rig.expect_wan(&tcp(web(net), clients[at]).ack(501, 101).ttl(63));
            }
        }
        let moved = rig.moved();
        let said = u64::from(FLOOD / 10);
        assert_eq!(moved["flow_installed"], u64::from(FLOOD));
        assert_eq!(moved["half_open_evicted"], u64::from(FLOOD - SHARE));
        assert_eq!((moved["flow_hit"], moved.contains_key("flow_spared")), (2 * said, false));
        assert_eq!(flows_of(&rig, net), (1000 + SHARE, SHARE));
        // Nothing was dropped, and nobody else was harmed.
        let sum = u64::from(FLOOD) + u64::from(FLOOD.div_ceil(3)) + 2 * said;
        assert_eq!((moved["received"], moved["sent"]), (sum, sum));
        for (client, port) in clients.iter().zip(&ports) {
            rig.rx_wan(&tcp(*client, web(net)).ack(101, 501));
            rig.expect_overlay(net, 0, &tcp((net.source(), *port), web_pod(net)).ack(101, 501).ttl(63));
        }
        assert_eq!(rig.moved()["flow_hit"], 1000);
        rig.expect_balance();
        // A client that means it still gets through, at once.
        open(&mut rig, net, (net.client(2000), 1));
        assert_eq!(flows_of(&rig, net).1, SHARE - 1);
    }
}

#[test]
fn the_oldest_handshake_goes_first_and_a_finished_one_stays() {
    // L-022
    for net in Net::BOTH {
        let mut rig = Rig::with(crate::tables(), 64, 256, 1).unwrap();
        // Sixteen may be opening. Finished ones are none of them.
        for n in 0..20 {
            open(&mut rig, net, (net.client(n), 1));
        }
        let ports: Vec<u16> = (100..116).map(|n| syn(&mut rig, net, (net.client(n), 1))).collect();
        assert_eq!(flows_of(&rig, net), (36, 16));
        rig.moved();
        // The third has finished before another comes, the second is answered and as old as before.
        rig.rx_overlay(net, 0, &syn_ack(net, ports[2]));
        rig.rx_wan(&tcp((net.client(102), 1), web(net)).ack(101, 501));
        rig.rx_overlay(net, 0, &syn_ack(net, ports[1]));
        rig.rx_wan(&tcp((net.client(101), 1), web(net)).syn(100));
        drop((rig.sent(WAN), rig.sent(LAN)));
        assert_eq!(rig.moved().get("half_open_evicted"), None);
        let known = |rig: &mut Rig, n: usize| {
            rig.rx_overlay(net, 0, &syn_ack(net, ports[n]));
            let sent = rig.sent(WAN).len();
            assert_eq!(rig.moved().contains_key("NoFlow"), sent == 0);
            sent == 1
        };
        syn(&mut rig, net, (net.client(200), 1));
        rig.expect_counted(&and(STARTS, &[("mss_clamped", 1)]));
        for gone in [0, 1, 3, 4] {
            assert!(known(&mut rig, gone), "{gone} is next");
            syn(&mut rig, net, (net.client(201 + gone as u16), 1));
            rig.expect_counted(&and(STARTS, &[("mss_clamped", 1), ("half_open_evicted", 1)]));
            assert!(!known(&mut rig, gone), "{gone} is gone");
        }
        assert!(known(&mut rig, 2) && known(&mut rig, 5));
        assert_eq!(flows_of(&rig, net), (37, 16));
    }
}

#[test]
fn a_syn_and_a_reset_do_not_get_round_the_share() {
    // L-022: neither proves that there is a client.
    for net in Net::BOTH {
        let mut rig = Rig::with(crate::tables(), 64, 256, 1).unwrap();
        for n in 0..500 {
            let spoofed = (stranger(net, n), 1);
            syn(&mut rig, net, spoofed);
            rig.rx_wan(&tcp(spoofed, web(net)).segment("R", 101, 0));
            assert_eq!(rig.sent(LAN).len(), 1);
        }
        assert_eq!(flows_of(&rig, net), (16, 16));
        assert_eq!(rig.moved()["half_open_evicted"], 500 - 16);
        // Their time is over sooner than that of handshakes.
        rig.now_ns += 11_000_000_000;
        rig.turn();
        assert_eq!(flows_of(&rig, net), (0, 0));
    }
}

#[test]
fn a_client_whose_handshake_went_starts_again() {
    for net in Net::BOTH {
        let mut rig = Rig::with(crate::tables(), 8, 256, 1).unwrap();
        let late = (net.client(1), 1);
        let port = syn(&mut rig, net, late);
        for n in 0..2 {
            syn(&mut rig, net, (net.client(10 + n), 1));
        }
        rig.moved();
        rig.rx_overlay(net, 0, &syn_ack(net, port));
        rig.expect_silence();
        rig.expect_counted(&and(&walked("NoFlow"), &[("decapsulated", 1)]));
        open(&mut rig, net, late);
        assert_eq!(flows_of(&rig, net), (2, 1));
    }
}

#[test]
fn a_crowded_table_gives_up_what_has_done_its_work() {
    // N-100: "timed-out UDP entries are reused while the TCP one remains"
    for net in Net::BOTH {
        let mut rig = Rig::with(crate::tables(), 16, 256, 1).unwrap();
        let asks = |n: u16| udp((net.client(n), 1), names(net)).data(*b"x");
        let port = open(&mut rig, net, (net.client(500), 1));
        // A conversation: the client went on after an answer.
        rig.rx_wan(&asks(600));
        let (source, _) = rig.expect_overlay(net, 0, &udp((net.source(), 0), names_pod(net)).data(*b"x").ttl(63));
        rig.rx_overlay(net, 0, &udp(names_pod(net), (net.source(), source)).data(*b"y"));
        rig.rx_wan(&asks(600));
        drop((rig.sent(WAN), rig.sent(LAN)));
        for n in 0..13 {
            rig.now_ns += 1 << 22;
            rig.rx_wan(&asks(n));
        }
        assert_eq!(rig.sent(LAN).len(), 13);
        assert_eq!(flows_of(&rig, net).0, 15);
        rig.moved();
        // The first of the questions goes, whichever way another flow begins.
        rig.rx_wan(&asks(100));
        assert_eq!(rig.sent(LAN).len(), 1);
        rig.expect_counted(&and(STARTS, &[("flow_spared", 1)]));
        syn(&mut rig, net, (net.client(101), 1));
        rig.expect_counted(&and(STARTS, &[("flow_spared", 1), ("mss_clamped", 1)]));
        assert_eq!(flows_of(&rig, net).0, 15);
        rig.rx_wan(&asks(2));
        assert_eq!(rig.sent(LAN).len(), 1);
        rig.expect_counted(HIT_OUT);
        // What is established is as it was.
        rig.rx_wan(&tcp((net.client(500), 1), web(net)).ack(101, 501));
        rig.expect_overlay(net, 0, &tcp((net.source(), port), web_pod(net)).ack(101, 501).ttl(63));
        rig.rx_wan(&asks(600));
        rig.expect_overlay(net, 0, &udp((net.source(), source), names_pod(net)).data(*b"x").ttl(63));
        rig.expect_counted(&[("received", 2), ("flow_hit", 2), ("encapsulated", 2), ("sent", 2)]);
        // A datagram of a question that was given up finds its way as a new one.
        rig.rx_wan(&asks(0));
        rig.expect_overlay(net, 0, &udp((net.source(), 0), names_pod(net)).data(*b"x").ttl(63));
    }
}

#[test]
fn a_table_full_of_established_flows_refuses_new_ones_and_keeps_the_old() {
    // N-100, T-143
    for net in Net::BOTH {
        let mut rig = Rig::with(crate::tables(), 8, 256, 1).unwrap();
        let ports: Vec<u16> = (0..8).map(|n| open(&mut rig, net, (net.client(n), 1))).collect();
        rig.moved();
        for n in 20..40 {
            rig.rx_wan(&tcp((net.client(n), 1), web(net)).syn(1));
            rig.expect_silence();
            rig.expect_counted(&walked("TableFull"));
        }
        for (n, port) in (0..8).zip(&ports) {
            rig.rx_overlay(net, 0, &tcp(web_pod(net), (net.source(), *port)).ack(501, 101));
            rig.expect_wan(&tcp(web(net), (net.client(n), 1)).ack(501, 101).ttl(63));
            rig.expect_counted(HIT_BACK);
        }
        // One of them ends: there is room for one.
        rig.rx_overlay(net, 0, &tcp(web_pod(net), (net.source(), ports[3])).segment("R", 501, 0));
        rig.expect_wan(&tcp(web(net), (net.client(3), 1)).segment("R", 501, 0).ttl(63));
        rig.moved();
        syn(&mut rig, net, (net.client(20), 1));
        rig.expect_counted(&and(STARTS, &[("flow_spared", 1), ("mss_clamped", 1)]));
    }
}

#[test]
fn resets_leave_no_entry() {
    // L-021: "no entry created for RST packets"
    for net in Net::BOTH {
        let mut rig = crate::town();
        for flags in ["R", "RA"] {
            rig.rx_wan(&tcp((net.client(1), 1), web(net)).segment(flags, 7, 9));
            rig.expect_silence();
            rig.expect_counted(&walked("OrphanSegment"));
        }
        assert_eq!(flows_of(&rig, net), (0, 0));
    }
}

#[test]
fn one_client_does_not_use_up_the_refusals_of_all() {
    // S-079
    for net in Net::BOTH {
        let mut rig = crate::town();
        let refused = (net.vip(1), 81);
        let knock = |rig: &mut Rig, from: End| {
            rig.rx_wan(&tcp(from, refused).syn(1));
            rig.sent(WAN).len()
        };
        let answered: usize = (0..2000).map(|n| knock(&mut rig, (stranger(net, 1), 1000 + n))).sum();
        // An eighth of 1,000, and 20 ms have earned two more.
        assert_eq!(answered, 127);
        assert_eq!(rig.moved()["NoBackend"], 2000 - 127);
        // All addresses of an IPv6 link are one source.
        if net == Net::BOTH[1] {
            let neighbour = Ipv6Addr::new(0x2001, 0xdb8, 0xd, 1, 9, 9, 9, 9).into();
            assert_eq!(knock(&mut rig, (neighbour, 1)), 0);
        }
        for n in 0..500 {
            assert_eq!(knock(&mut rig, (stranger(net, 100 + n), 1)), 1);
        }
        rig.expect_balance();
    }
}

#[test]
fn what_a_living_flow_counts_reaches_its_backend_within_a_lap() {
    // Design 5: counters "fold into backend, Service and policy counters on sweep"
    for net in Net::BOTH {
        let mut rig = crate::town();
        let client = (net.client(7), 40_000);
        let port = open(&mut rig, net, client);
        let back = tcp(web_pod(net), (net.source(), port)).ack(501, 101).data([0; 100]);
        let length = back.packet().len() as u64;
        for _ in 0..50 {
            rig.rx_overlay(net, 0, &back);
        }
        rig.sent(WAN);
        let backend = if net == Net::BOTH[0] { 1000 } else { 11_000 };
        let row = |rig: &Rig| rig.worker.state().usage.row(backend);
        // The handshake is counted at once.
        assert_eq!((row(&rig).packets, row(&rig).live), ([2, 1], 1));
        for _ in 0..500 {
            rig.now_ns += 10_000_000;
            rig.turn();
        }
        assert_eq!((row(&rig).packets, row(&rig).live), ([2, 51], 1));
        assert_eq!(row(&rig).bytes[1], 50 * length + (length - 100 + 4));
        // Nothing is counted twice, and the rest comes when the flow ends.
        rig.rx_wan(&tcp(client, web(net)).ack(101, 501));
        rig.rx_wan(&tcp(client, web(net)).segment("R", 101, 0));
        rig.now_ns += 20_000_000_000;
        rig.turn();
        assert_eq!((row(&rig).packets, row(&rig).live), ([4, 51], 0));
    }
}

#[test]
fn what_was_counted_for_a_backend_is_not_shown_for_its_successor() {
    for net in Net::BOTH {
        let mut rig = crate::town();
        let backend = BackendId(if net == Net::BOTH[0] { 2000 } else { 12_000 });
        let ask = |rig: &mut Rig| {
            let (reply, answer) = crossbeam::channel::bounded(1);
            rig.mailbox.send(Request::Usage { backends: vec![backend], reply }).unwrap();
            rig.turn();
            let row = answer.try_recv().unwrap()[0];
            (row.opened, row.packets, row.live)
        };
        rig.rx_wan(&crate::to_names(net));
        rig.now_ns += 200_000_000_000;
        rig.turn();
        assert_eq!(ask(&mut rig), (1, [1, 0], 0));
        // The number is given to another pod.
        rig.publish(|tables| {
            let row = *tables.backends.row(backend).unwrap();
            Arc::make_mut(&mut tables.backends).set(backend, BackendRow { port: row.port + 1, ..row });
        });
        assert_eq!(ask(&mut rig), (0, [0, 0], 0));
        rig.rx_wan(&crate::to_names(net));
        assert_eq!(ask(&mut rig), (1, [0, 0], 1));
    }
}

/// What is sent: whether by the client, and its flags, sequence and acknowledgement numbers.
type Script<'a> = &'a [(bool, &'a str, u32, u32)];

#[test]
fn every_state_lasts_as_long_as_its_timer() {
    // T-143, N-080 … N-087, N-102: never early, and within one lap of the sweep
    const SYN: (bool, &str, u32, u32) = (true, "S", 100, 0);
    const SYN_ACK: (bool, &str, u32, u32) = (false, "SA", 500, 101);
    const ACK: (bool, &str, u32, u32) = (true, "A", 101, 501);
    const FIN: (bool, &str, u32, u32) = (true, "FA", 101, 501);
    const FIN_BACK: (bool, &str, u32, u32) = (false, "FA", 501, 102);
    const LAST: (bool, &str, u32, u32) = (true, "A", 102, 502);
    const RESET: (bool, &str, u32, u32) = (false, "R", 501, 0);
    let table: [(Script, u64); 9] = [
        (&[SYN], 240),
        (&[SYN, SYN_ACK], 240),
        (&[SYN, SYN_ACK, ACK], 7440),
        (&[SYN, SYN_ACK, ACK, FIN], 240),
        (&[SYN, SYN_ACK, ACK, FIN, (false, "A", 501, 102)], 240),
        (&[SYN, SYN_ACK, ACK, FIN, FIN_BACK], 30),
        (&[SYN, SYN_ACK, ACK, FIN, FIN_BACK, LAST], 240),
        (&[SYN, SYN_ACK, ACK, RESET], 10),
        // N-087: after a SYN again it is a handshake like any other.
        (&[SYN, SYN_ACK, ACK, FIN, FIN_BACK, LAST, (true, "S", 9000, 0)], 240),
    ];
    for net in Net::BOTH {
        for (script, seconds) in table {
            let mut rig = crate::town();
            let client = (net.client(7), 40_000);
            let mut port = 0;
            for (from_client, flags, sequence, acknowledgement) in script {
                if *from_client {
                    rig.rx_wan(&tcp(client, web(net)).segment(flags, *sequence, *acknowledgement));
                    let sent = rig.sent_one(LAN);
                    let (_, _, inner) = tidegate_dataplane::rig::into_peer(&sent).unwrap();
                    let l4 = if net == Net::BOTH[0] { 34 } else { 54 };
                    port = u16::from_be_bytes([inner[l4], inner[l4 + 1]]);
                } else {
                    let segment = tcp(web_pod(net), (net.source(), port)).segment(flags, *sequence, *acknowledgement);
                    rig.rx_overlay(net, 0, &segment);
                    rig.sent_one(WAN);
                }
            }
            rig.now_ns += seconds * 1_000_000_000 - 1_000_000;
            rig.turn();
            assert_eq!(flows_of(&rig, net).0, 1, "early: {script:?}");
            rig.now_ns += 5_000_000_000;
            rig.turn();
            assert_eq!(flows_of(&rig, net).0, 0, "late: {script:?}");
        }
    }
}
