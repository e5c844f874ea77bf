//! Fragments follow their first one, to the same backend and with the same translation, whatever queue and order they
//! come in (S-076, N-060 … N-063, V-050, L-056, T-097, T-141; rule 5 of design 4).

use tidegate_dataplane::packet::Domain;
use tidegate_dataplane::rig::expect::{expect_overlay, from_peer, identification, same};
use tidegate_dataplane::rig::fleet::{Fleet, Plan};
use tidegate_dataplane::rig::sketch::{End, Sketch, tcp, udp};
use tidegate_dataplane::rig::{self, FROM_ROUTER, LAN, Net, ROUTER_MAC, WAN, WAN_MAC};
use tidegate_dataplane::state::fragment::{DATAGRAMS_MAX, PIECES_MAX, WAIT_NS};

use crate::{client, names, names_pod, to_names, town, web, web_pod};

/// Cuts what `whole` carries behind its IP header into fragments of so many bytes; the first has the L4 header, checksum of
/// the whole included, as etherparse wrote it.
pub(crate) fn cut(whole: &Sketch, sizes: &[usize]) -> Vec<Sketch> {
    let packet = whole.clone().may_fragment().packet();
    let header = if whole.from.0.is_ipv4() { 20 } else { 40 };
    let body = &packet[header..];
    let mut at = 0;
    let mut pieces = Vec::new();
    for size in sizes {
        let end = (at + size).min(body.len());
        // A piece is the bytes themselves, so that checksums are those of the whole.
        let piece = tidegate_dataplane::rig::sketch::raw(whole.from.0, whole.to.0, whole.number()).data(&body[at..end]);
        let piece = Sketch { ttl: whole.ttl, id: whole.id, label: whole.label, ..piece };
        pieces.push(piece.fragment(u16::try_from(at).unwrap(), end < body.len()));
        at = end;
    }
    assert_eq!(at, body.len(), "the sizes make the whole");
    pieces
}

/// How [`question`] is cut: pieces that fit the overlay of both families.
const SIZES: [usize; 3] = [1360, 1360, 288];

/// A long datagram from the client, and its pieces.
fn question(net: Net) -> (Sketch, Vec<Sketch>) {
    let whole = to_names(net).data((0..=255).cycle().take(3000).collect::<Vec<u8>>());
    let pieces = cut(&whole, &SIZES);
    (whole, pieces)
}

/// The pieces that must leave for the pod: the same cut of the translated datagram.
fn translated(whole: &Sketch, from: End, to: End, sizes: &[usize]) -> Vec<Sketch> {
    cut(&whole.clone().between(from, to).ttl(63), sizes)
}

fn source_port(net: Net, frame: &[u8]) -> u16 {
    let (_, _, inner) = rig::into_peer(frame).unwrap();
    let at = if net == Net::BOTH[0] { 34 } else { 62 };
    u16::from_be_bytes([inner[at], inner[at + 1]])
}

/// Exactly these were sent to the first peer, in this order.
fn expect_pieces(net: Net, sent: &[Vec<u8>], pieces: &[Sketch], told: &str) {
    assert_eq!(sent.len(), pieces.len(), "{told}");
    for (sent, piece) in sent.iter().zip(pieces) {
        expect_overlay(net, 0, piece, sent, told);
    }
}

#[test]
fn fragments_in_order_follow_the_first_with_its_checksum_for_the_whole() {
    // N-060, N-062, T-141, V-050
    for net in Net::BOTH {
        let mut rig = town();
        let (whole, pieces) = question(net);
        pieces.iter().for_each(|piece| assert!(rig.inject(WAN, &piece.frame(FROM_ROUTER))));
        rig.turn();
        let sent = rig.sent(LAN);
        let port = source_port(net, &sent[0]);
        let expected = translated(&whole, (net.source(), port), names_pod(net), &SIZES);
        expect_pieces(net, &sent, &expected, &rig.told());
        rig.expect_counted(&[
            ("received", 3),
            ("slow_walk", 3),
            ("flow_installed", 1),
            ("encapsulated", 3),
            ("sent", 3),
        ]);
        // The answer comes in pieces too, and leaves with addresses of the Service.
        let answer = udp(names_pod(net), (net.source(), port)).data([7; 2000]);
        for piece in cut(&answer, &[1200, 808]) {
            rig.rx_overlay(net, 0, &piece);
        }
        let sent = rig.sent(WAN);
        let expected = translated(&answer, names(net), client(net), &[1200, 808]);
        assert_eq!(sent.len(), expected.len());
        for (sent, expected) in sent.iter().zip(&expected) {
            same(sent, &expected.frame((WAN_MAC, ROUTER_MAC)), &rig.told());
        }
        rig.expect_counted(&[("received", 2), ("slow_walk", 2), ("decapsulated", 2), ("sent", 2)]);
        assert!(rig.worker.state().fragments.is_empty(), "a datagram that has come is forgotten");
        rig.expect_all_frames_home();
    }
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    // N-071
    let net = Net::BOTH[0];
    let mut rig = town();
    let whole = to_names(net).data([1; 1000]).unsummed();
    cut(&whole, &[600, 408]).iter().for_each(|piece| rig.rx_wan(piece));
    let sent = rig.sent(LAN);
    let port = source_port(net, &sent[0]);
    expect_pieces(net, &sent, &translated(&whole, (net.source(), port), names_pod(net), &[600, 408]), &rig.told());
}

#[test]
fn segments_in_fragments_follow_too() {
    for net in Net::BOTH {
        let mut rig = town();
        let port = crate::connect(&mut rig, net);
        let whole = tcp(client(net), web(net)).segment("PA", 101, 501).data([5; 1000]);
        cut(&whole, &[512, 508]).iter().rev().for_each(|piece| rig.rx_wan(piece));
        let sent = rig.sent(LAN);
        let expected = translated(&whole, (net.source(), port), web_pod(net), &[512, 508]);
        // The first leads, then those that waited.
        expect_pieces(net, &sent, &expected, &rig.told());
        rig.expect_all_frames_home();
    }
}

#[test]
fn those_that_come_before_the_first_wait_and_follow_in_the_order_they_came() {
    for net in Net::BOTH {
        let mut rig = town();
        let (whole, pieces) = question(net);
        rig.rx_wan(&pieces[2]);
        rig.rx_wan(&pieces[1]);
        rig.expect_silence();
        rig.expect_counted(&[("received", 2), ("fragment_held", 2)]);
        rig.rx_wan(&pieces[0]);
        let sent = rig.sent(LAN);
        let port = source_port(net, &sent[0]);
        let all = translated(&whole, (net.source(), port), names_pod(net), &SIZES);
        expect_pieces(net, &sent, &[all[0].clone(), all[2].clone(), all[1].clone()], &rig.told());
        rig.expect_all_frames_home();
    }
}

#[test]
fn every_order_on_every_queue_reaches_one_backend() {
    // Rule 5: who follows the datagram is one worker, who owns its flow perhaps another: at most two hand-overs.
    for ((workers, nic), net) in crate::everywhere() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            for shift in 0..usize::from(workers) {
                let mut fleet = Fleet::with(crate::tables(), Plan { nic, ..Plan::of(workers) }).unwrap();
                let (whole, pieces) = question(net);
                for (at, n) in order.into_iter().enumerate() {
                    fleet.rx_wan((at + shift) % usize::from(workers), &pieces[n]);
                }
                let sent = fleet.sent(LAN);
                let port = source_port(net, &sent[0]);
                let all = translated(&whole, (net.source(), port), names_pod(net), &SIZES);
                let mut left: Vec<_> = all.iter().collect();
                assert_eq!(sent.len(), 3);
                for sent in &sent {
                    // All have the number that the gateway gave the datagram (N-046).
                    let (_, _, inner) = rig::into_peer(sent).unwrap();
                    let id = identification(inner);
                    let is = |piece: &&Sketch| {
                        inner[14..] == Sketch { id: id.unwrap_or(piece.id), ..(*piece).clone() }.packet()[..]
                    };
                    left.remove(left.iter().position(is).expect("one of the pieces"));
                }
                let owner = fleet.owner(&to_names(net), Domain::Wire);
                assert_eq!(fleet.live()[owner], 1);
                let moved = fleet.moved();
                assert!(moved.get("handed_over").copied().unwrap_or(0) <= 6, "{moved:?}");
                fleet.expect_balance();
                fleet.expect_ports_balance();
                // The pod's answer in pieces, on every queue.
                let answer = udp(names_pod(net), (net.source(), port)).data([7; 2000]);
                for (n, piece) in cut(&answer, &[1200, 808]).iter().enumerate() {
                    fleet.rx_overlay((n + shift) % usize::from(workers), net, 0, piece);
                }
                assert_eq!(fleet.sent(WAN).len(), 2);
                fleet.expect_all_frames_home();
            }
        }
    }
}

#[test]
fn a_first_fragment_that_never_comes_costs_its_followers_after_two_seconds() {
    // N-060: held for 2 s.
    for net in Net::BOTH {
        let mut rig = town();
        let (_, pieces) = question(net);
        rig.rx_wan(&pieces[1]);
        rig.now_ns += WAIT_NS - 2_000_000;
        rig.turn();
        rig.expect_counted(&[("received", 1), ("fragment_held", 1)]);
        rig.now_ns += 2_000_000;
        rig.turn();
        rig.expect_counted(&[("FragmentExpired", 1)]);
        // Too late, it finds nobody; and who follows it now does.
        rig.rx_wan(&pieces[0]);
        rig.rx_wan(&pieces[2]);
        assert_eq!(rig.sent(LAN).len(), 2);
        rig.expect_all_frames_home();
    }
}

#[test]
fn fragments_that_overlap_end_their_datagram() {
    // N-061, RFC 5722, RFC 1858
    for net in Net::BOTH {
        let (_, pieces) = question(net);
        let overlapping = |offset, more| pieces[1].clone().fragment(offset, more);
        for evil in [overlapping(1352, true), overlapping(8, true), overlapping(2000, false)] {
            let mut rig = town();
            rig.rx_wan(&pieces[1]);
            rig.rx_wan(&evil);
            rig.rx_wan(&pieces[0]);
            rig.rx_wan(&pieces[2]);
            rig.expect_silence();
            rig.expect_counted(&[("received", 4), ("fragment_held", 1), ("FragmentOverlap", 4)]);
            // The identification is free again when the datagram is forgotten.
            rig.now_ns += WAIT_NS;
            rig.turn();
            pieces.iter().for_each(|piece| rig.rx_wan(piece));
            assert_eq!(rig.sent(LAN).len(), 3);
            rig.expect_all_frames_home();
        }
        // Behind a first fragment that has left already.
        let mut rig = town();
        rig.rx_wan(&pieces[0]);
        rig.rx_wan(&overlapping(1352, true));
        rig.rx_wan(&pieces[1]);
        assert_eq!(rig.sent(LAN).len(), 1);
        assert_eq!(rig.moved()["FragmentOverlap"], 2);
    }
}

#[test]
fn pieces_that_overlap_on_different_queues_meet_and_end_their_datagram() {
    // N-061; rule 5 of design 4: whichever workers they come to, one knows them all
    for ((workers, nic), net) in crate::everywhere() {
        let (_, pieces) = question(net);
        let evil = pieces[1].clone().fragment(1352, true);
        for start in 0..usize::from(workers) {
            let mut fleet = Fleet::with(crate::tables(), Plan { nic, ..Plan::of(workers) }).unwrap();
            for (n, piece) in [&pieces[2], &evil, &pieces[1], &pieces[0]].into_iter().enumerate() {
                fleet.rx_wan((start + n) % usize::from(workers), piece);
            }
            assert!(fleet.sent(LAN).is_empty() && fleet.sent(WAN).is_empty(), "{}", fleet.told());
            assert_eq!(fleet.counted().get("FragmentOverlap"), Some(&4), "{}", fleet.told());
            fleet.expect_balance();
            fleet.expect_all_frames_home();
        }
    }
}

#[test]
fn a_first_fragment_too_small_for_its_ports_is_dropped_and_so_are_the_others() {
    // N-061: tiny fragments
    for net in Net::BOTH {
        let mut rig = town();
        let whole = tcp(client(net), web(net)).syn(1).data([1; 40]);
        let pieces = cut(&whole, &[16, 48]);
        pieces.iter().for_each(|piece| rig.rx_wan(piece));
        rig.expect_silence();
        rig.now_ns += WAIT_NS;
        rig.turn();
        rig.expect_counted(&[("received", 2), ("fragment_held", 1), ("TcpTruncated", 1), ("FragmentExpired", 1)]);
        assert_eq!(rig.worker.state().live(), 0);
        rig.expect_all_frames_home();
    }
}

#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    // RFC 6946
    let net = Net::BOTH[1];
    let mut rig = town();
    rig.rx_wan(&to_names(net).fragment(0, false));
    assert_eq!(rig.sent(LAN).len(), 1);
    rig.expect_counted(crate::STARTS);
}

#[test]
fn fragments_for_nobody_and_from_a_false_source_take_no_room() {
    for net in Net::BOTH {
        let mut rig = town();
        let later = |from: End, to: End| udp(from, to).data([1; 64]).fragment(64, false);
        rig.rx_wan(&later(client(net), (net.pod(0, 5), 53)));
        rig.expect_counted(&[("received", 1), ("NotOurs", 1)]);
        rig.rx_overlay(net, 0, &later((net.pod(1, 6), 53), (net.source(), 2000)));
        rig.expect_counted(&[("received", 1), ("decapsulated", 1), ("SpoofedSource", 1)]);
        assert!(rig.worker.state().fragments.is_empty());
    }
}

#[test]
fn a_datagram_whose_first_fragment_is_refused_leaves_nothing() {
    // The Service has no endpoint: port unreachable about the first (S-070), the others begin nothing.
    for net in Net::BOTH {
        let mut rig = town();
        let whole = udp(client(net), (net.vip(1), 54)).data([1; 1000]);
        cut(&whole, &[600, 408]).iter().for_each(|piece| rig.rx_wan(piece));
        assert_eq!(rig.sent(WAN).len(), 1);
        let expected = [("received", 2), ("slow_walk", 2), ("answered_unreachable", 1), ("sent", 1)];
        rig.expect_counted(&crate::and(&expected, &[("FragmentUntracked", 1)]));
        assert_eq!(rig.worker.state().live(), 0);
    }
}

#[test]
fn what_does_not_fit_is_dropped_alone() {
    // N-060, N-063: 16 fragments of a datagram wait, 1024 datagrams are known.
    for net in Net::BOTH {
        let mut rig = town();
        let piece = |id: u16, offset: u16| Sketch { id, ..to_names(net).data([1; 8]).fragment(offset, true) };
        for n in 0..20 {
            rig.rx_wan(&piece(1, 800 - 16 * n));
        }
        rig.expect_counted(&[("received", 20), ("fragment_held", PIECES_MAX as u64), ("FragmentsFull", 4)]);
        assert_eq!(rig.worker.state().fragments.waiting(), PIECES_MAX);
        rig.now_ns += WAIT_NS;
        rig.turn();
        rig.moved();
        for id in 0..DATAGRAMS_MAX + 10 {
            // The first fragment leaves at once and the datagram stays known.
            rig.rx_wan(&Sketch { id, ..cut(&to_names(net).data([1; 56]), &[32, 32])[0].clone() });
            rig.sent(LAN);
        }
        let moved = rig.moved();
        assert_eq!(moved["FragmentsFull"], 10);
        rig.now_ns += WAIT_NS;
        rig.turn();
        assert!(rig.worker.state().fragments.is_empty());
        rig.expect_all_frames_home();
    }
}

#[test]
fn frames_that_wait_for_a_first_fragment_are_given_back_at_the_end() {
    for net in Net::BOTH {
        let mut rig = town();
        let (_, pieces) = question(net);
        rig.rx_wan(&pieces[1]);
        rig.expect_balance();
        rig.worker.stop();
        assert_eq!(rig.moved()["ShuttingDown"], 1);
        rig.expect_balance();
        rig.expect_all_frames_home();
    }
}

#[test]
fn a_large_datagram_goes_through_fragment_by_fragment() {
    // 64 KB in 46 pieces, forwards: one range that grows, nothing waits.
    for net in Net::BOTH {
        let mut rig = town();
        let whole = to_names(net).data(vec![9; 60_000]);
        let mut sizes = vec![1320; 45];
        sizes.push(60_008 - 45 * 1320);
        for piece in cut(&whole, &sizes) {
            rig.rx_wan(&piece);
        }
        let sent = rig.sent(LAN);
        let port = source_port(net, &sent[0]);
        expect_pieces(net, &sent, &translated(&whole, (net.source(), port), names_pod(net), &sizes), &rig.told());
        rig.expect_all_frames_home();
    }
}

#[test]
fn a_first_fragment_with_a_header_before_its_ports_leads_the_others() {
    // RFC 8200 section 4.5: the others name the extension header that comes next, not the protocol.
    let net = Net::BOTH[1];
    let mut rig = town();
    let whole = to_names(net).data([3; 500]);
    let datagram = whole.packet()[40..].to_vec();
    let mut body = vec![17, 0, 1, 4, 0, 0, 0, 0];
    body.extend_from_slice(&datagram);
    let piece = |at: usize, end: usize, more| {
        let piece = tidegate_dataplane::rig::sketch::raw(client(net).0, net.vip(1), 60).data(&body[at..end]);
        piece.fragment(u16::try_from(at).unwrap(), more)
    };
    rig.rx_wan(&piece(256, body.len(), false));
    rig.rx_wan(&piece(0, 256, true));
    assert_eq!(rig.sent(LAN).len(), 2);
    rig.expect_counted(&[
        ("received", 2),
        ("fragment_held", 1),
        ("slow_walk", 2),
        ("flow_installed", 1),
        ("encapsulated", 2),
        ("sent", 2),
    ]);
}

#[test]
fn pieces_of_two_pods_with_the_same_identification_do_not_mix() {
    for net in Net::BOTH {
        let mut rig = town();
        let port = crate::ask(&mut rig, net);
        let reply = |data: u8| udp(names_pod(net), (net.source(), port)).data([data; 100]);
        let (one, other) =
            (cut(&reply(1), &[56, 52]), cut(&udp((net.client(9), 7), names(net)).data([2; 100]), &[56, 52]));
        assert!(rig.inject(LAN, &from_peer(net, 0, &one[0])));
        assert!(rig.inject(WAN, &other[1].frame(FROM_ROUTER)));
        assert!(rig.inject(LAN, &from_peer(net, 0, &one[1])));
        assert!(rig.inject(WAN, &other[0].frame(FROM_ROUTER)));
        rig.turn();
        assert_eq!((rig.sent(WAN).len(), rig.sent(LAN).len()), (2, 2));
        rig.expect_all_frames_home();
    }
}
