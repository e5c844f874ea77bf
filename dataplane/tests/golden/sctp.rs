//! SCTP through Services: associations from INIT to SHUTDOWN COMPLETE, tags that are believed and those that are not,
//! checksums over the whole packet, fragments, and what is refused (S-012, N-075, N-093, T-015, T-140, T-189, Q-12).

use std::sync::Arc;

use tidegate_dataplane::rig::sketch::{End, Sketch, Trouble, our_trouble, sctp, tcp, udp};
use tidegate_dataplane::rig::{self, FROM_ROUTER, LAN, Net, Rig, WAN, WAN_MAC};
use tidegate_dataplane::state::tcp::Timeouts;
use tidegate_dataplane::state::{FlowState, TICK_NS_LOG2};
use tidegate_dataplane::table::backend::BackendState;
use tidegate_dataplane::table::terms::Scheduler;
use tidegate_dataplane::table::{BackendId, OrphanTcp, Tables};

use crate::fragment::cut;
use crate::{STARTS, and, client, walked};

const SCTP: u8 = 132;
/// What the client and the pod choose as their tags.
const TAGS: (u32, u32) = (0x7845_e39d, 0x46c3_13de);

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const HEARTBEAT: u8 = 4;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

/// SCTP 3868 of `vip(1)` with one pod behind peer 0, 3869 without any, 80 of it beside TCP 80.
pub(crate) fn tables() -> Tables {
    let mut tables = crate::tables();
    for net in Net::BOTH {
        let id = base(net) + 6;
        rig::add_service(&mut tables, id, net.vip(1), 3868, SCTP, &[(net.pod(0, 5), 9868, 1)]);
        rig::add_service(&mut tables, id + 1, net.vip(1), 3869, SCTP, &[]);
        rig::add_service(&mut tables, id + 2, net.vip(1), 80, SCTP, &[(net.pod(1, 7), 9080, 1)]);
    }
    tables
}

fn base(net: Net) -> u32 {
    if net == Net::BOTH[0] { 0 } else { 10 }
}

pub(crate) fn town() -> Rig {
    Rig::new(tables()).unwrap()
}

pub(crate) fn diameter(net: Net) -> End {
    (net.vip(1), 3868)
}

pub(crate) fn diameter_pod(net: Net) -> End {
    (net.pod(0, 5), 9868)
}

fn source(net: Net, port: u16) -> End {
    (net.source(), port)
}

/// From the client, under the pod's tag.
fn ask(net: Net) -> Sketch {
    sctp(client(net), diameter(net)).tag(TAGS.1)
}

fn data(packet: Sketch) -> Sketch {
    packet.chunk(0, 3, &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0][..], b"capabilities, please"].concat())
}

/// The client says this and the pod hears it.
#[track_caller]
fn forth(rig: &mut Rig, net: Net, port: u16, said: Sketch) {
    rig.rx_wan(&said);
    rig.expect_overlay(net, 0, &said.between(source(net, port), diameter_pod(net)).ttl(63));
}

/// The pod says this, and the client hears it.
#[track_caller]
fn back(rig: &mut Rig, net: Net, port: u16, said: Sketch) {
    rig.rx_overlay(net, 0, &said.clone().between(diameter_pod(net), source(net, port)));
    rig.expect_wan(&said.between(diameter(net), client(net)).ttl(63));
}

/// An association under way; the source port that it was given. Nothing is left unlooked at.
pub(crate) fn associate(rig: &mut Rig, net: Net) -> u16 {
    let init = sctp(client(net), diameter(net)).init(INIT, TAGS.0);
    rig.rx_wan(&init);
    let (port, _) = rig.expect_overlay(net, 0, &init.between(source(net, 0), diameter_pod(net)).ttl(63));
    back(rig, net, port, ask(net).tag(TAGS.0).init(INIT_ACK, TAGS.1));
    forth(rig, net, port, ask(net).chunk(COOKIE_ECHO, 0, b"a cookie of odd length"));
    back(rig, net, port, ask(net).tag(TAGS.0).chunk(COOKIE_ACK, 0, &[]));
    rig.moved();
    port
}

/// The state of the one flow there is.
pub(crate) fn state(rig: &Rig) -> FlowState {
    let mut states = Vec::new();
    rig.worker.state().v4.visit(0, u32::MAX, |_, entry| states.push(entry.state));
    rig.worker.state().v6.visit(0, u32::MAX, |_, entry| states.push(entry.state));
    assert_eq!(states.len(), 1, "{}", rig.told());
    states[0]
}

#[test]
pub(crate) fn an_association_is_translated_from_init_to_shutdown_complete() {
    // S-012, N-075, N-093, Q-12: port 3868 becomes 9868, the CRC is right each time, and the address that INIT lists stays
    for net in Net::BOTH {
        let mut rig = town();
        let init = sctp(client(net), diameter(net)).init(INIT, TAGS.0);
        rig.rx_wan(&init);
        let (port, _) = rig.expect_overlay(net, 0, &init.between(source(net, 0), diameter_pod(net)).ttl(63));
        rig.expect_counted(STARTS);
        assert_eq!(state(&rig), FlowState::SCTP_COOKIE_WAIT);
        back(&mut rig, net, port, ask(net).tag(TAGS.0).init(INIT_ACK, TAGS.1));
        rig.expect_counted(&[("received", 1), ("slow_walk", 1), ("decapsulated", 1), ("sent", 1)]);
        forth(&mut rig, net, port, data(ask(net).chunk(COOKIE_ECHO, 0, b"a cookie of odd length")));
        assert_eq!(state(&rig), FlowState::SCTP_COOKIE_ECHOED);
        back(&mut rig, net, port, ask(net).tag(TAGS.0).chunk(COOKIE_ACK, 0, &[]));
        assert_eq!(state(&rig), FlowState::SCTP_ESTABLISHED);
        for length in [0, 1, 2, 3, 1000, 1300] {
            forth(&mut rig, net, port, ask(net).chunk(0, 3, &vec![0xa5; 12 + length]));
            back(&mut rig, net, port, ask(net).tag(TAGS.0).chunk(3, 0, &[0; 12]).chunk(0, 3, &vec![1; 12 + length]));
        }
        back(&mut rig, net, port, ask(net).tag(TAGS.0).chunk(HEARTBEAT, 0, &[0, 1, 0, 8, 9, 9, 9, 9]));
        forth(&mut rig, net, port, ask(net).chunk(SHUTDOWN, 0, &[0, 0, 0, 9]));
        assert_eq!(state(&rig), FlowState::SCTP_SHUTDOWN_SENT);
        back(&mut rig, net, port, ask(net).tag(TAGS.0).chunk(SHUTDOWN_ACK, 0, &[]));
        forth(&mut rig, net, port, ask(net).chunk(SHUTDOWN_COMPLETE, 0, &[]));
        assert_eq!(state(&rig), FlowState::SCTP_CLOSED);
        let usage = rig.worker.state().usage.row((base(net) + 6) * 1000);
        assert_eq!((usage.opened, usage.live), (1, 1));
        rig.expect_all_frames_home();
    }
}

#[test]
fn one_port_of_three_protocols_leads_to_three_places() {
    // T-015: TCP and SCTP 80 of one address; nothing else is there
    for net in Net::BOTH {
        let mut rig = town();
        let web = (net.vip(1), 80);
        rig.rx_wan(&tcp(client(net), web).syn(1));
        rig.rx_wan(&sctp(client(net), web).init(INIT, 5));
        assert_eq!(went_to(&mut rig), [(net.pod(0, 5), 8080), (net.pod(1, 7), 9080)]);
        rig.moved();
        rig.rx_wan(&udp(client(net), web).data(*b"x"));
        rig.expect_silence();
        rig.expect_counted(&walked("NoFrontend"));
        rig.rx_wan(&sctp(client(net), (net.vip(1), 53)).init(INIT, 5));
        rig.expect_silence();
        rig.expect_counted(&walked("NoFrontend"));
    }
}

/// Where packets went, of any protocol with ports.
fn went_to(rig: &mut Rig) -> Vec<End> {
    let end = |frame: Vec<u8>| {
        let (_, _, inner) = rig::into_peer(&frame).unwrap();
        let (header, v4) = if inner[12] == 8 { (34, true) } else { (54, false) };
        let port = u16::from_be_bytes([inner[header + 2], inner[header + 3]]);
        let address = if v4 {
            <[u8; 4]>::try_from(&inner[30..34]).unwrap().into()
        } else {
            <[u8; 16]>::try_from(&inner[38..54]).unwrap().into()
        };
        (address, port)
    };
    rig.sent(LAN).into_iter().map(end).collect()
}

#[test]
fn edge_ports_are_translated() {
    // N-097
    for net in Net::BOTH {
        for port in [0, 1, 1023, 65_535] {
            let mut rig = town();
            let init = sctp((net.client(7), port), diameter(net)).init(INIT, TAGS.0);
            rig.rx_wan(&init);
            let (given, _) = rig.expect_overlay(net, 0, &init.between(source(net, 0), diameter_pod(net)).ttl(63));
            let answer = sctp(diameter_pod(net), source(net, given)).tag(TAGS.0).init(INIT_ACK, TAGS.1);
            rig.rx_overlay(net, 0, &answer);
            rig.expect_wan(&answer.between(diameter(net), (net.client(7), port)).ttl(63));
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_the_vip() {
    // T-140: loopback through the VIP, with the port rewritten, which is not refused
    for net in Net::BOTH {
        let mut rig = town();
        let pod = (net.pod(0, 5), 33_000);
        let init = sctp(pod, diameter(net)).init(INIT, TAGS.0);
        rig.rx_overlay(net, 0, &init);
        let (port, _) = rig.expect_overlay(net, 0, &init.between(source(net, 0), diameter_pod(net)).ttl(63));
        let answer = sctp(diameter_pod(net), source(net, port)).tag(TAGS.0).init(INIT_ACK, TAGS.1);
        rig.rx_overlay(net, 0, &answer);
        rig.expect_overlay(net, 0, &answer.between(diameter(net), pod).ttl(63));
    }
}

#[test]
fn damaged_packets_end_here_and_begin_nothing() {
    // N-075: "Input CRC wrong ⇒ drop", in both modes and directions
    for net in Net::BOTH {
        let mut rig = town();
        let init = sctp(client(net), diameter(net)).init(INIT, TAGS.0);
        let damaged = |packet: &Sketch| {
            let mut frame = packet.frame(FROM_ROUTER);
            *frame.last_mut().unwrap() ^= 1;
            frame
        };
        rig.rx(WAN, &damaged(&init));
        rig.expect_silence();
        rig.expect_counted(&walked("SctpBadChecksum"));
        assert_eq!(rig.worker.state().live(), 0);
        let port = associate(&mut rig, net);
        let before = state(&rig);
        rig.rx(WAN, &damaged(&ask(net).chunk(ABORT, 0, &[0; 4])));
        rig.expect_silence();
        rig.expect_counted(&walked("SctpBadChecksum"));
        let mut answer = sctp(diameter_pod(net), source(net, port)).tag(TAGS.0).chunk(COOKIE_ACK, 0, &[]).packet();
        let at = answer.len() - 8;
        answer[at] ^= 0x10;
        rig.rx(LAN, &rig::from_peer(net, 0, &answer));
        rig.expect_silence();
        rig.expect_counted(&and(&walked("SctpBadChecksum"), &[("decapsulated", 1)]));
        assert_eq!(state(&rig), before);
        // Zero is a checksum like any (RFC 9653 is not spoken).
        let mut frame = ask(net).chunk(COOKIE_ECHO, 0, b"x").frame(FROM_ROUTER);
        let at = 14 + if net == Net::BOTH[0] { 28 } else { 48 };
        frame[at..at + 4].fill(0);
        rig.rx(WAN, &frame);
        rig.expect_silence();
        rig.expect_counted(&walked("SctpBadChecksum"));
        let mut rig = to_nodes(&[(1, 1)]);
        rig.rx(WAN, &damaged(&init));
        rig.expect_silence();
        rig.expect_counted(&walked("SctpBadChecksum"));
    }
}

#[test]
fn what_no_sctp_sends_ends_here() {
    // RFC 9260 sections 3.2, 6.10, 8.5, 8.5.1
    for net in Net::BOTH {
        let mut rig = town();
        associate(&mut rig, net);
        let empty = sctp(client(net), diameter(net));
        let beyond = Sketch { payload: vec![COOKIE_ECHO, 0, 0, 9, 1, 2, 3, 4], ..ask(net) };
        let short = Sketch { payload: vec![0, 0, 0, 3], ..ask(net) };
        let cut = Sketch { payload: vec![HEARTBEAT, 0, 0, 4, 0, 0], ..ask(net) };
        for (why, packet) in [
            ("no chunk", ask(net)),
            ("a chunk beyond the packet", beyond),
            ("a chunk shorter than its header", short),
            ("half a chunk header", cut),
            ("INIT with a tag", ask(net).init(INIT, 9)),
            ("INIT that gives no tag", empty.clone().init(INIT, 0)),
            ("INIT too short", empty.clone().chunk(INIT, 0, &[0, 0, 0, 9])),
            ("INIT in company", empty.clone().init(INIT, 9).chunk(COOKIE_ECHO, 0, b"x")),
            ("INIT behind another", ask(net).chunk(COOKIE_ECHO, 0, b"xxxx").init(INIT, 9)),
            ("SHUTDOWN COMPLETE in company", ask(net).chunk(SHUTDOWN_COMPLETE, 0, &[]).chunk(3, 0, &[0; 12])),
            ("data without a tag", data(empty.clone())),
        ] {
            rig.rx_wan(&packet);
            rig.expect_silence();
            let [received, walk, _] = walked("x");
            let moved = rig.moved();
            assert_eq!(moved.get("SctpInvalid"), Some(&1), "{why}: {moved:?}");
            assert_eq!(moved.len(), 3, "{why}: {moved:?} {received:?} {walk:?}");
        }
        assert_eq!(state(&rig), FlowState::SCTP_ESTABLISHED);
    }
}

#[test]
fn many_chunks_are_carried_and_not_all_looked_at() {
    for net in Net::BOTH {
        let mut rig = town();
        let port = associate(&mut rig, net);
        let bundle = |n: usize| (0..n).fold(ask(net), |packet, _| packet.chunk(HEARTBEAT, 0, &[]));
        forth(&mut rig, net, port, bundle(300));
        // An ABORT behind so many is not seen, and the pod hears it all the same.
        forth(&mut rig, net, port, bundle(40).chunk(ABORT, 0, &[]));
        assert_eq!(state(&rig), FlowState::SCTP_ESTABLISHED);
        forth(&mut rig, net, port, bundle(3).chunk(ABORT, 0, &[]));
        assert_eq!(state(&rig), FlowState::SCTP_CLOSED);
    }
}

#[test]
fn an_abort_ends_a_flow_only_under_the_right_tag() {
    // N-093: T bit
    for net in Net::BOTH {
        for (reflected, tag, ends) in [(0, TAGS.1, true), (1, TAGS.0, true), (0, 1, false), (1, TAGS.1, false)] {
            let mut rig = town();
            let port = associate(&mut rig, net);
            forth(&mut rig, net, port, ask(net).tag(tag).chunk(ABORT, reflected, &[]));
            let expected = if ends { FlowState::SCTP_CLOSED } else { FlowState::SCTP_ESTABLISHED };
            assert_eq!(state(&rig), expected, "{reflected} {tag:#x}");
        }
    }
}

#[test]
fn an_init_after_the_end_chooses_anew_and_one_before_it_does_not() {
    // N-087, S-100, N-103
    for net in Net::BOTH {
        let mut rig = town();
        let port = associate(&mut rig, net);
        let id = base(net) + 6;
        let endpoints = [(net.pod(0, 5), 9868, 1), (net.pod(1, 6), 9868, 1)];
        rig.publish(|tables| {
            rig::add_service(tables, id, net.vip(1), 3868, SCTP, &endpoints);
            rig::remove_endpoint(tables, id, net.vip(1), 3868, SCTP, &endpoints, 0);
        });
        // The association stays where it is.
        forth(&mut rig, net, port, data(ask(net)));
        let again = sctp(client(net), diameter(net)).init(INIT, 77);
        forth(&mut rig, net, port, again.clone());
        forth(&mut rig, net, port, ask(net).chunk(ABORT, 0, &[]));
        rig.moved();
        rig.rx_wan(&again);
        rig.expect_overlay(net, 1, &again.between(source(net, 0), (net.pod(1, 6), 9868)).ttl(63));
        rig.expect_counted(&and(STARTS, &[("flow_replaced", 1)]));
        assert_eq!(state(&rig), FlowState::SCTP_COOKIE_WAIT);
    }
}

#[test]
fn the_association_survives_init_from_both_ends_and_a_late_answer() {
    // T-189, conntrack_sctp_collision.sh: the answer to the first INIT comes when all is over
    for net in Net::BOTH {
        let mut rig = town();
        let init = sctp(client(net), diameter(net)).init(INIT, TAGS.0);
        rig.rx_wan(&init);
        let (port, _) = rig.expect_overlay(net, 0, &init.between(source(net, 0), diameter_pod(net)).ttl(63));
        let seconds = |rig: &mut Rig, tenths: u64| rig.now_ns += tenths * 100_000_000;
        seconds(&mut rig, 7);
        back(&mut rig, net, port, ask(net).tag(0).init(INIT, TAGS.1));
        forth(&mut rig, net, port, ask(net).init(INIT_ACK, TAGS.0));
        back(&mut rig, net, port, ask(net).tag(TAGS.0).chunk(COOKIE_ECHO, 0, b"cookie"));
        forth(&mut rig, net, port, ask(net).chunk(COOKIE_ACK, 0, &[]));
        assert_eq!(state(&rig), FlowState::SCTP_ESTABLISHED);
        seconds(&mut rig, 12);
        back(&mut rig, net, port, ask(net).tag(TAGS.0).init(INIT_ACK, 0x09cd_e2c2));
        assert_eq!(state(&rig), FlowState::SCTP_ESTABLISHED);
        forth(&mut rig, net, port, data(ask(net)));
        back(&mut rig, net, port, data(ask(net).tag(TAGS.0)));
        forth(&mut rig, net, port, ask(net).chunk(ABORT, 0, &[]));
        assert_eq!(state(&rig), FlowState::SCTP_CLOSED, "the tag is still the right one");
    }
}

#[test]
fn a_flow_lasts_as_long_as_its_state() {
    // N-093: ≥ 210 s, HEARTBEAT starts the time again; N-102: never early, at most 5 s late
    for net in Net::BOTH {
        let timeouts = Timeouts::default();
        let time = |state| u64::from(timeouts.of(state)) << TICK_NS_LOG2;
        let wait = |rig: &mut Rig, ns: u64| {
            let until = rig.now_ns + ns;
            while rig.now_ns < until {
                rig.now_ns += (until - rig.now_ns).min(1_000_000_000);
                rig.turn();
            }
        };
        let mut rig = town();
        let port = associate(&mut rig, net);
        assert!(time(FlowState::SCTP_ESTABLISHED) >= 210_000_000_000);
        wait(&mut rig, time(FlowState::SCTP_ESTABLISHED) - 9_000_000_000);
        assert_eq!(rig.worker.state().live(), 1);
        back(&mut rig, net, port, ask(net).tag(TAGS.0).chunk(HEARTBEAT, 0, &[0, 1, 0, 4]));
        wait(&mut rig, 20_000_000_000);
        assert_eq!(rig.worker.state().live(), 1, "a heartbeat kept it");
        wait(&mut rig, time(FlowState::SCTP_ESTABLISHED));
        assert_eq!(rig.worker.state().live(), 0);
        // What was only asked for is forgotten sooner, and counts as opening until then.
        rig.rx_wan(&sctp(client(net), diameter(net)).init(INIT, TAGS.0));
        let opening = |rig: &Rig| rig.worker.state().v4.opening() + rig.worker.state().v6.opening();
        assert_eq!(opening(&rig), 1);
        wait(&mut rig, time(FlowState::SCTP_COOKIE_WAIT) - 1_000_000_000);
        assert_eq!(rig.worker.state().live(), 1);
        wait(&mut rig, 6_000_000_000);
        assert_eq!((rig.worker.state().live(), opening(&rig)), (0, 0));
    }
}

#[test]
fn without_endpoints_it_is_refused_by_icmp_and_an_abort_is_not() {
    // S-070: "UDP/SCTP ⇒ ICMP(v6) port-unreachable", S-079
    for net in Net::BOTH {
        let mut rig = town();
        let nobody = (net.vip(1), 3869);
        let init = sctp(client(net), nobody).init(INIT, TAGS.0);
        rig.rx_wan(&init);
        rig.expect_wan(&our_trouble(net.vip(1), net.client(7), Trouble::Port, &init.packet()));
        rig.expect_counted(&[("received", 1), ("slow_walk", 1), ("answered_unreachable", 1), ("sent", 1)]);
        rig.rx_wan(&sctp(client(net), nobody).tag(9).chunk(ABORT, 0, &[]));
        rig.expect_silence();
        rig.expect_counted(&walked("NoBackend"));
        assert_eq!(rig.worker.state().live(), 0);
    }
}

#[test]
fn a_packet_without_an_association_is_dropped_or_aborted_as_configured() {
    // S-077; RFC 9260 section 8.4
    for net in Net::BOTH {
        let mut rig = town();
        let packets = [
            (data(ask(net)), Some((ABORT, 1, TAGS.1))),
            (ask(net).chunk(COOKIE_ECHO, 0, b"stale"), Some((ABORT, 1, TAGS.1))),
            // Longer than any error would quote.
            (ask(net).chunk(COOKIE_ECHO, 0, &[7; 1400]), Some((ABORT, 1, TAGS.1))),
            (ask(net).chunk(SHUTDOWN_ACK, 0, &[]), Some((SHUTDOWN_COMPLETE, 1, TAGS.1))),
            (ask(net).init(INIT_ACK, 4), Some((ABORT, 1, TAGS.1))),
            (ask(net).chunk(COOKIE_ACK, 0, &[]), None),
            (ask(net).chunk(9, 0, &[0, 3, 0, 8, 0, 0, 0, 1]), None),
            (ask(net).chunk(SHUTDOWN_COMPLETE, 0, &[]), None),
            (ask(net).chunk(ABORT, 0, &[]), None),
        ];
        for (packet, _) in &packets {
            rig.rx_wan(packet);
            rig.expect_silence();
            rig.expect_counted(&walked("OrphanSegment"));
        }
        rig.publish(|tables| tables.settings.orphan_tcp = OrphanTcp::Reset);
        for (packet, answer) in packets {
            rig.rx_wan(&packet);
            match answer {
                Some((kind, flags, tag)) => {
                    let expected = sctp(diameter(net), client(net)).tag(tag).chunk(kind, flags, &[]).ours();
                    rig.expect_wan(&expected);
                    rig.expect_counted(&[("received", 1), ("slow_walk", 1), ("answered_reset", 1), ("sent", 1)]);
                }
                None => {
                    rig.expect_silence();
                    rig.expect_counted(&walked("OrphanSegment"));
                }
            }
        }
        assert_eq!(rig.worker.state().live(), 0);
    }
}

#[test]
fn fragments_are_refused_where_ports_change() {
    // N-075: "fragments of SCTP with port change cannot be done without reassembly"
    for net in Net::BOTH {
        let mut rig = town();
        let port = associate(&mut rig, net);
        let whole = ask(net).chunk(0, 3, &[7; 1000]);
        for order in [[0, 1], [1, 0]] {
            let pieces = cut(&whole, &[512, 504]);
            order.iter().for_each(|n| rig.rx_wan(&pieces[*n]));
            rig.expect_silence();
            assert_eq!(rig.moved().get("SctpFragment"), Some(&2));
        }
        let answer = sctp(diameter_pod(net), source(net, port)).tag(TAGS.0).chunk(0, 3, &[7; 1000]);
        cut(&answer, &[512, 504]).iter().for_each(|piece| rig.rx_overlay(net, 0, piece));
        rig.expect_silence();
        assert_eq!(rig.moved().get("SctpFragment"), Some(&2));
        assert_eq!(state(&rig), FlowState::SCTP_ESTABLISHED);
        // Nor does one begin a flow.
        let mut rig = town();
        let padded = Sketch { payload: vec![0; 600], ..sctp(client(net), diameter(net)) };
        let long = Sketch { payload: Vec::new(), ..padded.clone() }.init(INIT, TAGS.0);
        let long = Sketch { payload: [long.payload, padded.payload].concat(), ..padded };
        let size = long.payload.len() + 12 - 512;
        cut(&long, &[512, size]).iter().for_each(|piece| rig.rx_wan(piece));
        rig.expect_silence();
        let moved = rig.moved();
        assert_eq!((moved.get("SctpFragment"), moved.get("FragmentUntracked")), (Some(&1), Some(&1)), "{moved:?}");
        assert_eq!(rig.worker.state().live(), 0);
    }
}

/// [`tables`], delivered to these nodes.
fn to_nodes(nodes: &[(u8, u16)]) -> Rig {
    let mut tables = tables();
    Net::BOTH.iter().for_each(|net| rig::deliver_to_nodes(&mut tables, base(*net) + 6, nodes));
    Rig::new(tables).unwrap()
}

#[test]
fn a_node_gets_every_packet_as_it_came() {
    // S-056, S-077, N-088, L-020: nothing is rewritten, fragments pass, and one direction is seen
    for net in Net::BOTH {
        let mut rig = to_nodes(&[(1, 1)]);
        let pass = |rig: &mut Rig, packet: Sketch| {
            rig.rx_wan(&packet);
            rig.expect_overlay(net, 1, &packet.ttl(63));
        };
        let init = sctp(client(net), diameter(net)).init(INIT, TAGS.0);
        pass(&mut rig, init.clone());
        rig.expect_counted(STARTS);
        assert_eq!(state(&rig), FlowState::PIN_OPENING);
        pass(&mut rig, ask(net).chunk(COOKIE_ECHO, 0, b"cookie"));
        pass(&mut rig, data(ask(net)));
        assert_eq!(state(&rig), FlowState::PINNED);
        for piece in cut(&ask(net).chunk(0, 3, &[7; 1000]), &[512, 504]) {
            pass(&mut rig, piece);
        }
        // When both ends began, clients answer an INIT that went past us.
        pass(&mut rig, ask(net).init(INIT_ACK, TAGS.0));
        // It stays when another node takes its place, and an INIT after the end goes there.
        rig.publish(|tables| rig::deliver_to_nodes(tables, base(net) + 6, &[(0, 1)]));
        pass(&mut rig, data(ask(net)));
        pass(&mut rig, ask(net).chunk(SHUTDOWN, 0, &[0, 0, 0, 9]));
        assert_eq!(state(&rig), FlowState::PIN_CLOSED);
        rig.moved();
        rig.rx_wan(&init);
        rig.expect_overlay(net, 0, &init.clone().ttl(63));
        rig.expect_counted(&and(STARTS, &[("flow_replaced", 1)]));
        // Another gateway's association is picked up; an ABORT is passed and remembered by nobody.
        let mut rig = to_nodes(&[(1, 1)]);
        pass(&mut rig, ask(net).chunk(ABORT, 0, &[]));
        assert_eq!((rig.worker.state().live(), rig.moved().get("passed")), (0, Some(&1)));
        pass(&mut rig, data(ask(net)));
        assert_eq!((rig.worker.state().live(), rig.moved().get("picked_up")), (1, Some(&1)));
        rig.expect_all_frames_home();
    }
}

#[test]
fn schedulers_and_affinity_hold_for_sctp() {
    // L-033: the least connected; S-090: one client, one pod
    for net in Net::BOTH {
        let mut tables = tables();
        let id = base(net) + 6;
        let pods = [(net.pod(0, 5), 9868, 1), (net.pod(1, 6), 9868, 1)];
        rig::add_service(&mut tables, id, net.vip(1), 3868, SCTP, &pods);
        rig::toggle_affinity(&mut tables, id, 100);
        let mut rig = Rig::new(tables).unwrap();
        let open = |rig: &mut Rig, client: u16, port: u16| {
            rig.rx_wan(&sctp((net.client(client), port), diameter(net)).init(INIT, 5));
            went_to(rig)[0].0
        };
        for n in 0..20 {
            let first = open(&mut rig, n, 1000);
            assert!((1001..1005).all(|port| open(&mut rig, n, port) == first));
        }
        rig.publish(|tables| {
            let service = tidegate_dataplane::table::ServiceId(id);
            let mut row = tables.services.row(service).cloned().unwrap();
            let mut terms = (**row.terms.as_ref().unwrap()).clone();
            (terms.affinity_timeout_s, terms.scheduler) = (0, Scheduler::Lc);
            row.terms = Some(Arc::new(terms));
            Arc::make_mut(&mut tables.services).set_row(service, row);
        });
        (0..40).for_each(|n| assert_ne!(open(&mut rig, 100 + n, 9), net.vip(1)));
        let active = [0, 1].map(|n| rig.worker.state().usage.connections(id * 1000 + n).0);
        assert!(active[0].abs_diff(active[1]) <= 1, "{active:?}");
        assert_eq!(active[0] + active[1], 140);
    }
}

#[test]
fn a_draining_endpoint_keeps_its_association() {
    for net in Net::BOTH {
        let mut rig = town();
        let port = associate(&mut rig, net);
        let backend = BackendId((base(net) + 6) * 1000);
        rig.publish(|tables| {
            Arc::make_mut(&mut tables.backends).set_state(backend, BackendState::Draining);
        });
        forth(&mut rig, net, port, data(ask(net)));
        // Ethernet pads short frames; the padding is no part of the packet.
        let packet = ask(net).chunk(COOKIE_ECHO, 0, b"x");
        let mut frame = packet.frame(FROM_ROUTER);
        frame.resize(frame.len().max(60) + 6, 0xee);
        rig.rx(WAN, &frame);
        rig.expect_overlay(net, 0, &packet.between(source(net, port), diameter_pod(net)).ttl(63));
        let answer = sctp(diameter_pod(net), source(net, port)).tag(TAGS.0).chunk(COOKIE_ACK, 0, &[]);
        rig.rx_overlay(net, 0, &answer);
        let expected = answer.between(diameter(net), client(net)).ttl(63);
        rig.expect_frame(WAN, &expected.frame((WAN_MAC, rig::ROUTER_MAC)));
    }
}
