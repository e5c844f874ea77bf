//! SCTP and protocols without ports through egress: an association keeps its port where it can, and one pod at a time speaks
//! a protocol that has none with a remote (N-075, N-093, N-095).

use std::net::IpAddr;

use tidegate_api::resource::{Egress, StaticNat};
use tidegate_dataplane::rig::fleet::{Fleet, Plan};
use tidegate_dataplane::rig::outside::{self, external, policy};
use tidegate_dataplane::rig::sketch::{Body, End, Sketch, Trouble, our_trouble, raw, sctp, tcp, trouble};
use tidegate_dataplane::rig::{LAN, Net, Rig, WAN};
use tidegate_dataplane::state::FlowState;
use tidegate_dataplane::table::egress::PortClass;

use crate::egress::{REFUSED, STARTS, change, connect, dropped, expect_out, out, town, wait};

/// What the pod and the remote choose as their tags.
const TAGS: (u32, u32) = (0x7845_e39d, 0x46c3_13de);
const GRE: u8 = 47;
const ESP: u8 = 50;

fn pod(net: Net) -> End {
    (net.pod(0, 5), 40_000)
}

fn diameter(net: Net) -> End {
    (net.client(9), 3868)
}

fn data(packet: Sketch) -> Sketch {
    packet.chunk(0, 3, &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0][..], b"capabilities, please"].concat())
}

/// An association of `from` (peer 0); the external port.
fn associate(rig: &mut Rig, net: Net, from: End) -> u16 {
    let (ours, to) = (external(net, 1), diameter(net));
    let init = sctp(from, to).init(1, TAGS.0);
    rig.rx_overlay(net, 0, &init);
    let port = expect_out(rig, &init.between((ours, 0), to).ttl(63));
    let back = |rig: &mut Rig, said: Sketch| {
        rig.rx_wan(&said.clone().between(to, (ours, port)));
        rig.expect_overlay(net, 0, &said.between(to, from).ttl(63));
    };
    let forth = |rig: &mut Rig, said: Sketch| {
        rig.rx_overlay(net, 0, &said.clone().between(from, to));
        rig.expect_wan(&said.between((ours, port), to).ttl(63));
    };
    let from_pod = || sctp(from, to).tag(TAGS.1);
    let from_remote = || sctp(to, from).tag(TAGS.0);
    back(rig, from_remote().init(2, TAGS.1));
    forth(rig, from_pod().chunk(10, 0, b"a cookie of odd length"));
    back(rig, from_remote().chunk(11, 0, &[]));
    forth(rig, data(from_pod()));
    back(rig, data(from_remote()));
    rig.moved();
    port
}

#[test]
fn an_association_keeps_its_port_or_has_its_checksum_made_anew() {
    // N-075, N-093, N-097
    for net in Net::BOTH {
        let (mut rig, _) = town();
        assert_eq!(associate(&mut rig, net, pod(net)), 40_000, "kept");
        // Taken towards this remote: another one, and every CRC32c above was compared.
        let other = associate(&mut rig, net, (net.pod(0, 6), 40_000));
        assert_ne!(other, 40_000);
        // Never a privileged one.
        for port in [0, 1, 1023] {
            assert!(associate(&mut rig, net, (net.pod(0, 6), port)) >= 1024);
        }
        let tally = rig.worker.state().egress.ports.tally(&outside::row_address(external(net, 1)), PortClass::Sctp);
        assert_eq!((tally.used, tally.held), (5, 5));
        // TCP has nothing to do with it (RFC 7857 section 5).
        connect(&mut rig, net, pod(net), diameter(net));
        rig.expect_balance();
        rig.expect_all_frames_home();
    }
}

#[test]
fn what_is_no_association_begins_none() {
    // N-023, N-088, N-093
    for net in Net::BOTH {
        let (mut rig, _) = town();
        rig.rx_overlay(net, 0, &data(sctp(pod(net), diameter(net)).tag(9)));
        rig.expect_silence();
        rig.expect_counted(&dropped("OrphanSegment"));
        rig.rx_wan(&sctp(diameter(net), (external(net, 1), 40_000)).init(1, 5));
        rig.expect_silence();
        rig.expect_counted(&crate::walked("NoMapping"));
        // An ABORT in the wrong name ends nothing; the right one does.
        let port = associate(&mut rig, net, pod(net));
        for (tag, state) in [(TAGS.0 ^ 1, FlowState::SCTP_ESTABLISHED), (TAGS.0, FlowState::SCTP_CLOSED)] {
            rig.rx_wan(&sctp(diameter(net), (external(net, 1), port)).tag(tag).chunk(6, 0, &[]));
            let mut states = Vec::new();
            rig.worker.state().v4.visit(0, 9, |_, entry| states.push(entry.state));
            rig.worker.state().v6.visit(0, 9, |_, entry| states.push(entry.state));
            assert_eq!(states, [state]);
        }
    }
}

#[test]
fn fragments_of_an_association_pass_where_its_port_is_kept() {
    // N-075: a port that changed would change a checksum that no fragment has whole.
    for net in Net::BOTH {
        let (mut rig, _) = town();
        let kept = associate(&mut rig, net, pod(net));
        let other = (net.pod(0, 6), 40_000);
        associate(&mut rig, net, other);
        let long = |from, to| sctp(from, to).tag(TAGS.1).chunk(0, 3, &[7; 1988]);
        let sizes = [808, 800, 396];
        let expected = crate::fragment::cut(&long((external(net, 1), kept), diameter(net)), &sizes);
        for (piece, expected) in crate::fragment::cut(&long(pod(net), diameter(net)), &sizes).iter().zip(expected) {
            rig.rx_overlay(net, 0, piece);
            rig.expect_wan(&expected.ttl(63));
        }
        rig.moved();
        for piece in crate::fragment::cut(&long(other, diameter(net)), &sizes) {
            rig.rx_overlay(net, 0, &piece);
        }
        rig.expect_silence();
        assert_eq!(rig.moved().get("SctpFragment"), Some(&3));
    }
}

#[test]
fn errors_about_associations_find_the_pod() {
    // N-032, L-050
    for net in Net::BOTH {
        let (mut rig, _) = town();
        for from in [pod(net), (net.pod(0, 6), 40_000)] {
            let port = associate(&mut rig, net, from);
            let seen = data(sctp((external(net, 1), port), diameter(net)).tag(TAGS.1)).ttl(60);
            let told = data(sctp(from, diameter(net)).tag(TAGS.1)).ttl(60);
            let router: IpAddr = net.client(77);
            rig.rx_wan(&trouble(router, external(net, 1), Trouble::TooBig(1300), &seen.packet()));
            rig.expect_overlay(net, 0, &trouble(router, from.0, Trouble::TooBig(1300), &told.packet()).ttl(63));
        }
    }
}

#[test]
fn one_pod_speaks_a_protocol_without_ports_with_a_remote() {
    // N-095
    for (net, protocol) in Net::BOTH.into_iter().flat_map(|net| [GRE, ESP, 4, 41].map(|protocol| (net, protocol))) {
        let (mut rig, mut outside) = town();
        let (remote, ours) = (net.client(9), external(net, 1));
        let asks = |p: u8, remote| raw(net.pod(0, p), remote, protocol).data([0x45; 60]);
        // Not asked for: in silence, counted.
        rig.rx_overlay(net, 0, &asks(5, remote));
        rig.expect_silence();
        rig.expect_counted(&dropped("ProtocolUnsupported"));
        change(&mut rig, &mut outside, |egress| egress.other_protocols = true);
        rig.rx_overlay(net, 0, &asks(5, remote));
        rig.expect_wan(&raw(ours, remote, protocol).data([0x45; 60]).ttl(63));
        rig.expect_counted(STARTS);
        let answer = raw(remote, ours, protocol).data([7; 40]);
        rig.rx_wan(&answer);
        rig.expect_overlay(net, 0, &raw(remote, pod(net).0, protocol).data([7; 40]).ttl(63));
        rig.moved();
        // Another pod: refused, and told; it may speak with somebody else, and in another protocol.
        let refused = asks(6, remote);
        rig.rx_overlay(net, 0, &refused);
        let (kind, code) = if net == Net::BOTH[0] { (3, 13) } else { (1, 1) };
        let told = our_trouble(net.vtep(), net.pod(0, 6), Trouble::Port, &refused.packet());
        rig.expect_overlay(net, 0, &Sketch { body: Body::Icmp { kind, code, rest: [0; 4] }, ..told });
        rig.expect_counted(REFUSED);
        rig.rx_overlay(net, 0, &asks(6, net.client(10)));
        assert_eq!(rig.sent(WAN).len(), 1);
        let next = if protocol == GRE { ESP } else { GRE };
        rig.rx_overlay(net, 0, &raw(net.pod(0, 6), remote, next).data([0; 40]));
        assert_eq!(rig.sent(WAN).len(), 1);
        rig.moved();
        // Fragments have all there is to know.
        for (offset, more) in [(0, true), (640, false)] {
            let piece = |from, to, ttl| raw(from, to, protocol).data([1; 640]).fragment(offset, more).ttl(ttl);
            rig.rx_wan(&piece(remote, ours, 64));
            rig.expect_overlay(net, 0, &piece(remote, pod(net).0, 63));
            rig.rx_overlay(net, 0, &piece(pod(net).0, remote, 64));
            rig.expect_wan(&piece(ours, remote, 63));
        }
        // A router tells that a packet was too large.
        let (seen, sent) = (raw(ours, remote, protocol).data([0x45; 60]), asks(5, remote));
        rig.rx_wan(&trouble(net.client(77), ours, Trouble::TooBig(1300), &seen.packet()));
        rig.expect_overlay(net, 0, &trouble(net.client(77), pod(net).0, Trouble::TooBig(1300), &sent.packet()).ttl(63));
        // Strangers, and what nobody speaks.
        rig.moved();
        rig.rx_wan(&raw(net.client(11), ours, protocol).data([0; 40]));
        rig.expect_silence();
        rig.expect_counted(&crate::walked("NoMapping"));
        // Only the pod keeps it (N-008); then it is the other's.
        rig.now_ns += 200_000_000_000;
        rig.rx_wan(&answer);
        assert_eq!(rig.sent(LAN).len(), 1);
        wait(&mut rig, 101);
        rig.rx_overlay(net, 0, &asks(6, remote));
        rig.expect_wan(&raw(ours, remote, protocol).data([0x45; 60]).ttl(63));
        rig.expect_balance();
        rig.expect_all_frames_home();
    }
}

#[test]
fn protocols_whose_checksums_cover_addresses_stay_here() {
    // N-095: UDP-Lite, DCCP, AH and whatever else nobody has looked at
    for (net, protocol) in Net::BOTH.into_iter().flat_map(|net| [33, 89, 136].map(|protocol| (net, protocol))) {
        let (mut rig, mut outside) = town();
        change(&mut rig, &mut outside, |egress| egress.other_protocols = true);
        rig.rx_overlay(net, 0, &raw(pod(net).0, net.client(9), protocol).data([0; 40]));
        rig.rx_wan(&raw(net.client(9), external(net, 1), protocol).data([0; 40]));
        rig.expect_silence();
    }
}

#[test]
fn a_pod_with_an_address_of_its_own_speaks_everything() {
    // 1:1, of every protocol, in both directions
    for net in Net::BOTH {
        let (mut rig, mut outside) = town();
        let nat = StaticNat { external: external(net, 7), internal: pod(net).0, ports: Vec::new() };
        rig.publish(|tables| outside.fixed(tables, "own", Some(&nat)));
        let (remote, own) = (net.client(9), external(net, 7));
        rig.rx_wan(&raw(remote, own, GRE).data([7; 40]));
        rig.expect_overlay(net, 0, &raw(remote, pod(net).0, GRE).data([7; 40]).ttl(63));
        rig.rx_overlay(net, 0, &raw(pod(net).0, remote, GRE).data([8; 40]));
        rig.expect_wan(&raw(own, remote, GRE).data([8; 40]).ttl(63));
        rig.rx_overlay(net, 0, &raw(pod(net).0, remote, ESP).data([8; 40]));
        rig.expect_wan(&raw(own, remote, ESP).data([8; 40]).ttl(63));
        let init = sctp(diameter(net), (own, 3868)).init(1, TAGS.0);
        rig.rx_wan(&init);
        rig.expect_overlay(net, 0, &init.between(diameter(net), (pod(net).0, 3868)).ttl(63));
        let init = sctp((pod(net).0, 7), diameter(net)).init(1, TAGS.0);
        rig.rx_overlay(net, 0, &init);
        rig.expect_wan(&init.between((own, 7), diameter(net)).ttl(63));
    }
}

#[test]
fn every_queue_leads_to_the_one_worker_that_knows() {
    // N-090, N-095, design 4
    for (workers, net) in [2u16, 3, 8].into_iter().flat_map(|workers| Net::BOTH.map(|net| (workers, net))) {
        let (mut tables, mut outside) = outside::town();
        let egress = Egress { other_protocols: true, ..policy(&[external(net, 1)]) };
        outside.policy(&mut tables, "out", Some(&egress));
        let mut fleet = Fleet::with(tables, Plan::of(workers)).unwrap();
        let (queues, ours) = (usize::from(workers), external(net, 1));
        for n in 0..32u16 {
            let (remote, queue) = (net.client(n), usize::from(n));
            let asks = raw(pod(net).0, remote, GRE).data([1; 40]);
            fleet.rx_overlay(queue % queues, net, 0, &asks);
            fleet.expect_wan(&raw(ours, remote, GRE).data([1; 40]).ttl(63));
            fleet.rx_wan((queue + 1) % queues, &raw(remote, ours, GRE).data([2; 40]));
            fleet.expect_overlay(net, 0, &raw(remote, pod(net).0, GRE).data([2; 40]).ttl(63));
            fleet.rx_overlay((queue + 1) % queues, net, 0, &raw(net.pod(0, 6), remote, GRE).data([1; 40]));
            assert_eq!((fleet.sent(WAN).len(), fleet.sent(LAN).len()), (0, 1), "refused");
            // SCTP, with the port that its worker gives out.
            let to = (remote, 3868);
            let init = sctp((pod(net).0, 1000 * n), to).init(1, 5);
            fleet.rx_overlay(queue % queues, net, 0, &init);
            let frame = fleet.sent_one(WAN);
            let port = out(&frame, &init.between((ours, 0), to).ttl(63), &fleet.told());
            let answer = sctp(to, (ours, port)).tag(5).init(2, 6);
            fleet.rx_wan((queue + 1) % queues, &answer);
            fleet.expect_overlay(net, 0, &answer.between(to, (pod(net).0, 1000 * n)).ttl(63));
        }
        fleet.expect_flows_at_home();
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

#[test]
fn a_change_of_policy_ends_what_it_no_longer_lets_out() {
    // N-101
    for net in Net::BOTH {
        let (mut rig, mut outside) = town();
        change(&mut rig, &mut outside, |egress| egress.other_protocols = true);
        let asks = raw(pod(net).0, net.client(9), GRE).data([1; 40]);
        rig.rx_overlay(net, 0, &asks);
        assert_eq!(rig.sent(WAN).len(), 1);
        connect(&mut rig, net, pod(net), (net.client(9), 443));
        change(&mut rig, &mut outside, |_| ());
        rig.moved();
        rig.rx_overlay(net, 0, &asks);
        rig.rx_wan(&raw(net.client(9), external(net, 1), GRE).data([1; 40]));
        rig.expect_silence();
        wait(&mut rig, 0);
        assert_eq!(rig.worker.state().live(), 1, "{}", rig.told());
        rig.rx_overlay(net, 0, &tcp(pod(net), (net.client(9), 443)).ack(101, 501));
        assert_eq!(rig.sent(WAN).len(), 1, "the connection has noticed nothing");
    }
}

/// A protocol without ports to whom another pod speaks it with, where nothing may be answered.
pub fn refusal(net: Net) -> Rig {
    let (mut tables, mut outside) = outside::town();
    tables.settings.reject_rate_per_s = 0;
    let egress = Egress { other_protocols: true, ..policy(&[external(net, 1)]) };
    outside.policy(&mut tables, "out", Some(&egress));
    let mut rig = Rig::new(tables).unwrap();
    for p in [5, 6] {
        rig.rx_overlay(net, 0, &raw(net.pod(0, p), net.client(9), GRE).data([0; 40]));
    }
    rig
}

#[test]
fn a_refusal_that_may_not_be_told_is_counted_by_its_reason() {
    for net in Net::BOTH {
        assert_eq!(refusal(net).moved().get("EgressProtocolTaken"), Some(&1));
    }
}
