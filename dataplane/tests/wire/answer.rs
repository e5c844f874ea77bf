//! Packets that Tidegate writes itself: etherparse reads them, and their checksums are right.

use etherparse::{ArpOperation, Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice, icmpv4, icmpv6 as ep6};
use proptest::prelude::*;
use tidegate_dataplane::wire::arp::{self, Operation};
use tidegate_dataplane::wire::ethernet::{self, Mac};
use tidegate_dataplane::wire::packet::parse_l3;
use tidegate_dataplane::wire::{Family, Malformed, edit, icmp, icmpv6, ipv4, ipv6, ndp, quote, reset, tcp};

use crate::oracle::{assert_checksums, recompute};
use crate::parse::as_fragment;
use crate::sample::{Kind, Spec, samples, spec, v4};

const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 2]);

#[test]
fn icmp_errors_quote_what_fits() {
    // V-010, V-052, RFC 1812 section 4.3.2.3, RFC 4443 section 3
    for family in [Family::V4, Family::V6] {
        let ip = if family == Family::V4 { 20 } else { 40 };
        let room = if family == Family::V4 { 576 } else { 1280 };
        for payload in 0..1500 {
            let spec = Spec { payload: vec![0xa5; payload], ..Spec::new(family, Kind::Udp { checksum: true }) };
            let original = spec.build();
            let mut out = [0u8; 1600];
            let len = match family {
                Family::V4 => {
                    icmp::ErrorRepr::FragmentationNeeded { mtu: 1450 }.emit(&mut out, v4(spec.destination), &original)
                }
                Family::V6 => icmpv6::ErrorRepr::PacketTooBig { mtu: 1450 }.emit(&mut out, spec.destination, &original),
            }
            .unwrap();
            let packet = &out[..len];
            assert_eq!(len, (ip + 8 + original.len()).min(room));
            assert_eq!(packet[ip + 8..], original[..len - ip - 8]);
            assert_checksums(packet);
            let l3 = parse_l3(packet).unwrap();
            assert!(l3.is_icmp_error());
            let quote = quote::parse(family, &packet[ip..]).unwrap();
            assert_eq!((quote.source_port, quote.destination_port), spec.ports());
            if payload % 300 == 0 {
                let sliced = SlicedPacket::from_ip(packet).unwrap();
                match sliced.transport.unwrap() {
                    TransportSlice::Icmpv4(icmp) => assert_eq!(
                        icmp.icmp_type(),
                        Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded {
                            next_hop_mtu: 1450
                        })
                    ),
                    TransportSlice::Icmpv6(icmp) => {
                        assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1450 });
                        assert!(icmp.is_checksum_valid(spec.destination, spec.source));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

#[test]
fn every_icmp_error_reads_back() {
    for spec in samples() {
        let original = spec.build();
        let mut out = [0u8; 1280];
        match spec.family {
            Family::V4 => {
                for error in [
                    icmp::ErrorRepr::Unreachable { code: icmp::CODE_PORT },
                    icmp::ErrorRepr::Unreachable { code: icmp::CODE_PROHIBITED },
                    icmp::ErrorRepr::FragmentationNeeded { mtu: 1450 },
                    icmp::ErrorRepr::TimeExceeded,
                ] {
                    let len = error.emit(&mut out, [203, 0, 113, 7], &original).unwrap();
                    assert_checksums(&out[..len]);
                    let l3 = parse_l3(&out[..len]).unwrap();
                    assert_eq!(ipv4::addresses(&out), ([203, 0, 113, 7], v4(spec.source)));
                    let header = zerocopy_header(&out[20..28]);
                    assert_eq!((l3.icmp_type, icmp::ErrorRepr::of(&header)), (header.icmp_type, Some(error)));
                    assert!(!icmp::may_answer(&out[..len], &l3), "no error about an error");
                    for short in 0..len {
                        assert_eq!(error.emit(&mut out[..short], [203, 0, 113, 7], &original), None);
                    }
                }
            }
            Family::V6 => {
                for error in [
                    icmpv6::ErrorRepr::Unreachable { code: icmpv6::CODE_PORT },
                    icmpv6::ErrorRepr::Unreachable { code: icmpv6::CODE_PROHIBITED },
                    icmpv6::ErrorRepr::PacketTooBig { mtu: 1430 },
                    icmpv6::ErrorRepr::TimeExceeded,
                ] {
                    let len = error.emit(&mut out, spec.destination, &original).unwrap();
                    assert_checksums(&out[..len]);
                    let l3 = parse_l3(&out[..len]).unwrap();
                    assert_eq!(ipv6::addresses(&out), (spec.destination, spec.source));
                    let header = zerocopy_header(&out[40..48]);
                    assert_eq!((l3.icmp_type, icmpv6::ErrorRepr::of(&header)), (header.icmp_type, Some(error)));
                    assert!(!icmpv6::may_answer(&out[..len], &l3), "no error about an error");
                    for short in 0..len {
                        assert_eq!(error.emit(&mut out[..short], spec.destination, &original), None);
                    }
                }
            }
        }
    }
}

/// The ICMP header in eight bytes.
fn zerocopy_header(bytes: &[u8]) -> icmp::Header {
    <icmp::Header as zerocopy::FromBytes>::read_from_bytes(bytes).expect("eight bytes")
}

#[test]
fn errors_are_not_sent_about_just_anything() {
    for family in [Family::V4, Family::V6] {
        let may = |bytes: &[u8]| {
            let l3 = parse_l3(bytes).unwrap();
            icmp::may_answer(bytes, &l3) || icmpv6::may_answer(bytes, &l3)
        };
        let good = Spec { payload: vec![0; 24], ..Spec::new(family, Kind::Udp { checksum: true }) };
        assert!(may(&good.build()));
        assert!(may(&as_fragment(&good, 0, true)), "a first fragment");
        assert!(!may(&as_fragment(&good, 8, false)), "a later fragment");
        let echo = Spec::new(family, Kind::Echo { request: true, sequence: 0 });
        assert!(may(&echo.build()), "an echo request is no error");
        let multicast = if family == Family::V4 { 224 } else { 0xff };
        let mut spec = good.clone();
        spec.destination[0] = multicast;
        assert!(!may(&spec.build()), "to multicast");
        let mut spec = good.clone();
        spec.source[0] = multicast;
        assert!(!may(&spec.build()), "from multicast");
        assert!(may(&Spec { source: good.destination, ..good.clone() }.build()), "two pods may share an address");
    }
}

proptest! {
    #[test]
    fn echo_is_answered_in_place(spec in spec()) {
        let mut packet = spec.build();
        let before = packet.clone();
        let l3 = parse_l3(&packet).unwrap();
        let answered = edit::answer_echo(&mut packet, &l3);
        if let Kind::Echo { request: true, sequence } = spec.kind {
            prop_assert!(answered);
            let mut expected = Spec {
                kind: Kind::Echo { request: false, sequence },
                source: spec.destination,
                destination: spec.source,
                ttl: 64,
                ..spec
            }
            .build();
            recompute(&mut expected);
            prop_assert_eq!(packet, expected);
        } else {
            prop_assert!(!answered);
            prop_assert_eq!(packet, before);
        }
    }

    #[test]
    fn resets_follow_the_rules_of_a_closed_port(spec in spec()) {
        // RFC 9293 section 3.10.7.1
        let packet = spec.build();
        let l3 = parse_l3(&packet).unwrap();
        let mut out = [0u8; 80];
        let len = reset::emit(&mut out, &packet, &l3);
        let Kind::Tcp { flags, .. } = spec.kind else {
            prop_assert_eq!(len, None);
            return Ok(());
        };
        let multicast = if spec.family == Family::V4 { 224 } else { 0xff };
        let martian = tidegate_dataplane::wire::packet::is_martian_source(&packet, spec.family);
        if flags & tcp::RST != 0 || martian || spec.destination[0] >= multicast {
            prop_assert_eq!(len, None);
            return Ok(());
        }
        let len = len.unwrap();
        let answer = out[..len].to_vec();
        let answer = &answer[..];
        assert_checksums(answer);
        let reply = parse_l3(answer).unwrap();
        prop_assert_eq!((reply.source_port, reply.destination_port), (l3.destination_port, l3.source_port));
        let sliced = SlicedPacket::from_ip(answer).unwrap();
        let Some(TransportSlice::Tcp(segment)) = sliced.transport else { panic!("not TCP") };
        prop_assert!(segment.rst() && !segment.syn() && !segment.fin() && segment.payload().is_empty());
        let occupied = u32::try_from(spec.payload.len()).unwrap()
            + u32::from(flags & tcp::SYN != 0) + u32::from(flags & tcp::FIN != 0);
        if flags & tcp::ACK != 0 {
            prop_assert_eq!((segment.sequence_number(), segment.ack()), (0x0506_0708, false));
        } else {
            prop_assert_eq!((segment.sequence_number(), segment.ack()), (0, true));
            prop_assert_eq!(segment.acknowledgment_number(), 0x0102_0304 + occupied);
        }
        match spec.family {
            Family::V4 => prop_assert_eq!(ipv4::addresses(answer), (v4(spec.destination), v4(spec.source))),
            Family::V6 => prop_assert_eq!(ipv6::addresses(answer), (spec.destination, spec.source)),
        }
        for short in 0..len {
            prop_assert_eq!(reset::emit(&mut out[..short], &packet, &l3), None);
        }
    }
}

#[test]
fn no_reset_for_a_fragment() {
    for family in [Family::V4, Family::V6] {
        let spec =
            Spec { payload: vec![0; 20], ..Spec::new(family, Kind::Tcp { flags: 2, options: vec![2, 4, 5, 180] }) };
        let packet = as_fragment(&spec, 0, true);
        let packet = &packet[..];
        if let Ok(l3) = parse_l3(packet) {
            assert_eq!(reset::emit(&mut [0; 80], packet, &l3), None);
        }
    }
}

#[test]
fn arp_requests_are_answered_in_unicast() {
    // M-022
    let request = arp::Repr {
        operation: Operation::Request,
        sender_mac: THEIRS,
        sender: [192, 0, 2, 10],
        target_mac: Mac::default(),
        target: [192, 0, 2, 100],
    };
    for vlan in [None, Some(5)] {
        let mut out = [0u8; 64];
        let len = arp::emit_reply(&mut out, &request, OURS, vlan).unwrap();
        assert_eq!(len, if vlan.is_some() { 46 } else { arp::FRAME_LEN });
        let bytes = out[..len].to_vec();
        let frame = SlicedPacket::from_ethernet(&bytes).unwrap();
        assert_eq!(frame.vlan().is_some(), vlan.is_some());
        let link = ethernet::parse_ethernet(&out[..len]).unwrap();
        assert_eq!((link.destination, link.source, link.vlan), (THEIRS, OURS, vlan));
        let Some(NetSlice::Arp(packet)) = frame.net else { panic!("not ARP: {frame:?}") };
        assert_eq!(packet.operation(), ArpOperation::REPLY);
        assert_eq!((packet.sender_hw_addr(), packet.sender_protocol_addr()), (&OURS.0[..], &[192, 0, 2, 100][..]));
        assert_eq!((packet.target_hw_addr(), packet.target_protocol_addr()), (&THEIRS.0[..], &[192, 0, 2, 10][..]));
        let read = arp::Repr::parse(&out[usize::from(link.l3_offset)..len]).unwrap();
        assert_eq!(read, request.answer(OURS));
        assert_eq!(arp::emit_reply(&mut out, &read, OURS, vlan), None, "a reply is not answered");
        for short in 0..len {
            assert_eq!(arp::emit_reply(&mut [0u8; 64][..short], &request, OURS, vlan), None);
        }
    }
}

#[test]
fn announcements_come_in_both_forms() {
    // M-023
    for operation in [Operation::Request, Operation::Reply] {
        let repr = arp::Repr::gratuitous(operation, OURS, [192, 0, 2, 100]);
        assert_eq!((repr.sender, repr.target, repr.sender_mac), ([192, 0, 2, 100], [192, 0, 2, 100], OURS));
        let mut out = [0u8; 42];
        assert_eq!(repr.emit_frame(&mut out, Mac::BROADCAST, None), Some(42));
        assert_eq!(arp::Repr::parse(&out[14..]), Ok(repr));
    }
}

#[test]
fn every_truncation_and_wrong_length_of_arp_is_refused() {
    let repr = arp::Repr::gratuitous(Operation::Request, OURS, [192, 0, 2, 100]);
    let mut good = [0u8; 28];
    repr.emit(&mut good).unwrap();
    for len in 0..28 {
        assert_eq!(arp::Repr::parse(&good[..len]), Err(Malformed::ArpMalformed));
    }
    for at in 0..8 {
        for value in 0..=255 {
            let mut bytes = good;
            bytes[at] = value;
            let same = value == good[at] || (at == 7 && value == 2);
            assert_eq!(arp::Repr::parse(&bytes).is_ok(), same, "byte {at} = {value}");
        }
    }
    good[8] |= 1;
    assert_eq!(arp::Repr::parse(&good), Err(Malformed::ArpMalformed), "a group as sender");
}

/// A VIP, and a client on its link.
const VIP: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const CLIENT: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];

#[test]
fn solicitations_are_answered() {
    // M-024
    for (source, mac) in [(CLIENT, Some(THEIRS)), (CLIENT, None), ([0; 16], None)] {
        let asked = ndp::Solicitation { source, target: VIP, source_mac: mac };
        let mut question = [0u8; 80];
        let len = asked.emit(&mut question).unwrap();
        assert_checksums(&question[..len]);
        let l3 = parse_l3(&question[..len]).unwrap();
        assert_eq!(ndp::parse_solicitation(&question[..len], &l3), Ok(asked));

        let answer = asked.answer(OURS, false, false);
        let mut out = [0u8; 100];
        let len = answer.emit_frame(&mut out, THEIRS, OURS, None).unwrap();
        assert_eq!(len, 86);
        let link = ethernet::parse_ethernet(&out[..len]).unwrap();
        let packet = &out[14..len];
        assert_checksums(packet);
        let l3 = parse_l3(packet).unwrap();
        assert_eq!((l3.ttl, l3.icmp_type), (255, ndp::ADVERTISEMENT));
        assert_eq!(ndp::parse_advertisement(packet, &l3), Ok(answer));
        if source == [0; 16] {
            assert_eq!((answer.destination, answer.solicited), (ndp::ALL_NODES, false), "duplicate address detection");
            assert_eq!(link.destination.0, [0x33, 0x33, 0, 0, 0, 1]);
        } else {
            assert_eq!((answer.destination, answer.solicited, link.destination), (source, true, THEIRS));
        }
        let Some(TransportSlice::Icmpv6(icmp)) = SlicedPacket::from_ip(packet).unwrap().transport else {
            panic!("not ICMPv6")
        };
        assert!(icmp.is_checksum_valid(VIP, answer.destination));
        let Icmpv6Type::NeighborAdvertisement(flags) = icmp.icmp_type() else { panic!("{:?}", icmp.icmp_type()) };
        let expected =
            ep6::NeighborAdvertisementHeader { router: false, solicited: answer.solicited, r#override: false };
        assert_eq!(flags, expected);
        for short in 0..len {
            assert_eq!(answer.emit_frame(&mut out[..short], THEIRS, OURS, None), None);
        }
    }
    let announced = ndp::Advertisement::unsolicited(OURS, VIP, true);
    let mut out = [0u8; 90];
    assert_eq!(announced.emit_frame(&mut out, THEIRS, OURS, Some(9)), Some(90));
    let l3 = parse_l3(&out[18..]).unwrap();
    assert_eq!(ndp::parse_advertisement(&out[18..], &l3), Ok(announced));
    assert!(announced.overrides && !announced.solicited && announced.router);
}

/// Asks parse about a solicitation after a change; checksums are made right again.
fn altered(change: impl FnOnce(&mut Vec<u8>)) -> Result<ndp::Solicitation, Malformed> {
    let mut bytes = vec![0u8; 72];
    ndp::Solicitation { source: CLIENT, target: VIP, source_mac: Some(THEIRS) }.emit(&mut bytes).expect("room");
    change(&mut bytes);
    let payload_len = u16::try_from(bytes.len() - 40).expect("short");
    bytes[4..6].copy_from_slice(&payload_len.to_be_bytes());
    if bytes.len() >= 48 {
        recompute(&mut bytes);
    }
    ndp::parse_solicitation(&bytes, &parse_l3(&bytes)?)
}

#[test]
fn solicitations_that_must_be_discarded_are() {
    // RFC 4861 section 7.1.1
    let refused = Err(Malformed::NdpMalformed);
    assert!(altered(|_| ()).is_ok());
    assert_eq!(altered(|bytes| bytes[7] = 254), refused, "M-024: a forwarded one");
    assert_eq!(altered(|bytes| bytes[41] = 1), refused, "code");
    assert_eq!(altered(|bytes| bytes[48] = 0xff), refused, "a multicast target");
    assert_eq!(altered(|bytes| bytes[8..24].fill(0)), refused, "unspecified source with a source MAC");
    assert_eq!(
        altered(|bytes| {
            bytes[8..24].fill(0);
            bytes[39] ^= 1;
            bytes.truncate(64);
        }),
        refused,
        "unspecified source, not to the solicited-node address"
    );
    for len in 40..72 {
        let expected = match len {
            40..48 => Err(Malformed::IcmpTruncated),
            64 => Ok(ndp::Solicitation { source: CLIENT, target: VIP, source_mac: None }),
            _ => refused,
        };
        assert_eq!(altered(|bytes| bytes.truncate(len)), expected, "{len} bytes");
    }
    for length in 0..=255 {
        assert_eq!(altered(|bytes| bytes[65] = length).is_ok(), length == 1, "option length {length}");
    }
    let unknown = altered(|bytes| bytes[64] = 14).unwrap();
    assert_eq!(unknown.source_mac, None, "an option we do not know");

    let mut bytes = vec![0u8; 72];
    ndp::Solicitation { source: CLIENT, target: VIP, source_mac: Some(THEIRS) }.emit(&mut bytes).unwrap();
    bytes[70] ^= 1;
    let l3 = parse_l3(&bytes).unwrap();
    assert_eq!(ndp::parse_solicitation(&bytes, &l3), Err(Malformed::IcmpBadChecksum));
}
