//! VXLAN: headers, ECN, and the outer headers of both families around inner packets of both families.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use tidegate_dataplane::wire::checksum::Sum;
use tidegate_dataplane::wire::encap::{self, EncapTemplate, Inner, Tunnel, Underlay};
use tidegate_dataplane::wire::ethernet::{self, Mac};
use tidegate_dataplane::wire::packet::{l4_checksum_verifies, parse_l3, parse_l3_accepting_zero_udp6};
use tidegate_dataplane::wire::{Family, Malformed, edit, vxlan};

use crate::oracle::{assert_checksums, naive_sum};
use crate::parse::{as_fragment, in_eights};
use crate::sample::{Kind, Spec, samples, spec};

const VTEP: Mac = Mac([0x02, 1, 2, 3, 4, 5]);
const FAR_VTEP: Mac = Mac([0x06, 1, 2, 3, 4, 5]);
const LINK: Mac = Mac([0x0a, 1, 2, 3, 4, 5]);
const NEXT_HOP: Mac = Mac([0x0e, 1, 2, 3, 4, 5]);

fn tunnel(underlay: Underlay) -> Tunnel {
    Tunnel { underlay, port: 8472, vni: 1, source_mac: VTEP, destination_mac: FAR_VTEP, ttl: 64, dont_fragment: false }
}

const UNDERLAYS: [Underlay; 2] = [
    Underlay::V4 { source: [198, 51, 100, 1], destination: [198, 51, 100, 11] },
    Underlay::V6 {
        source: [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        destination: [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11],
    },
];

/// The whole frame around an inner packet.
fn encapsulate(tunnel: &Tunnel, packet: &[u8], source_port: u16, id: u16, tos: u8, sum: Sum) -> Vec<u8> {
    let template = EncapTemplate::new(tunnel);
    let l3 = parse_l3(packet).expect("an inner packet");
    let mut frame = vec![0xee; template.len() + packet.len()];
    let inner = Inner { family: l3.family, len: l3.total_len, source_port, id, tos, sum };
    assert_eq!(template.write(&mut frame, &inner), Some(template.len()));
    frame[template.len()..].copy_from_slice(packet);
    assert!(encap::set_outer_macs(&mut frame, NEXT_HOP, LINK));
    frame
}

proptest! {
    #[test]
    fn the_far_end_reads_what_was_put_in(spec in spec(), source_port: u16, id: u16, tos: u8, vni in 0u32..1 << 24, df: bool) {
        // V-001, V-004, V-005, V-006, V-009, V-014
        let packet = spec.build();
        let l3 = parse_l3(&packet).unwrap();
        for underlay in UNDERLAYS {
            let tunnel = Tunnel { vni, dont_fragment: df, ..tunnel(underlay) };
            let frame = encapsulate(&tunnel, &packet, source_port, id, tos, encap::inner_sum(&packet, &l3));
            let link = ethernet::parse_ethernet(&frame).unwrap();
            prop_assert_eq!((link.destination, link.source), (NEXT_HOP, LINK));
            let outer = parse_l3(&frame[14..]).unwrap();
            assert_checksums(&frame[14..]);
            prop_assert_eq!((outer.source_port, outer.destination_port, outer.ttl, outer.tos), (source_port, 8472, 64, tos));
            prop_assert_eq!(usize::from(outer.total_len) + 14, frame.len());

            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("not UDP") };
            match sliced.net {
                Some(NetSlice::Ipv4(ip)) => {
                    prop_assert_eq!((ip.header().identification(), ip.header().dont_fragment()), (id, df));
                    prop_assert_eq!(udp.checksum(), 0, "V-004");
                    prop_assert_eq!(frame.len() - packet.len(), encap::OUTER_LEN_V4);
                }
                Some(NetSlice::Ipv6(ip)) => {
                    prop_assert_eq!(ip.header().traffic_class(), tos);
                    prop_assert_ne!(udp.checksum(), 0, "V-005");
                    prop_assert!(l4_checksum_verifies(&frame[14..], &outer));
                    prop_assert_eq!(frame.len() - packet.len(), encap::OUTER_LEN_V6);
                }
                other => panic!("{other:?}"),
            }
            let header = vxlan::parse(udp.payload()).unwrap();
            prop_assert_eq!((header.vni, header.unknown_bits), (vni, false));
            prop_assert_eq!(udp.payload()[..4].to_vec(), vec![8, 0, 0, 0], "V-001");
            prop_assert_eq!(udp.payload()[7], 0, "V-001");
            let inner = &udp.payload()[header.inner_offset..];
            let inner_link = ethernet::parse_ethernet(inner).unwrap();
            prop_assert_eq!((inner_link.destination, inner_link.source), (FAR_VTEP, VTEP), "V-014");
            let ethertype = if spec.family == Family::V4 { 0x0800 } else { 0x86dd };
            prop_assert_eq!(inner_link.ethertype, ethertype);
            prop_assert_eq!(&inner[14..], &packet[..]);
        }
    }

    #[test]
    fn the_inner_sum_from_headers_equals_the_sum_of_all(spec in spec()) {
        let packet = spec.build();
        let l3 = parse_l3(&packet).unwrap();
        let expected = naive_sum(&packet);
        prop_assert_eq!(encap::inner_sum_of_all(&packet).fold(), expected);
        prop_assert_eq!(encap::inner_sum(&packet, &l3).fold(), expected);
        let mut padded = packet.clone();
        padded.extend_from_slice(&[0xff; 7]);
        prop_assert_eq!(encap::inner_sum(&padded, &l3).fold(), expected, "padding is not summed");
    }

    #[test]
    fn the_inner_sum_holds_after_a_translation(spec in spec(), [source, destination] in any::<[[u8; 16]; 2]>()) {
        let mut packet = spec.build();
        let l3 = parse_l3(&packet).unwrap();
        let target = spec.with(source, destination, 77, 88);
        let translated = match spec.family {
            Family::V4 => edit::translate_v4(&mut packet, &l3, &target.tuple_v4()),
            Family::V6 => edit::translate_v6(&mut packet, &l3, &target.tuple_v6()),
        };
        prop_assert!(translated);
        prop_assert_eq!(encap::inner_sum(&packet, &l3).fold(), naive_sum(&packet));
    }
}

#[test]
fn the_inner_sum_of_fragments_reads_them() {
    for spec in samples() {
        let spec = in_eights(spec);
        for (offset, more) in [(0, true), (8, true), (8, false)] {
            let packet = as_fragment(&spec, offset, more);
            let l3 = parse_l3(&packet).unwrap();
            assert_eq!(encap::inner_sum(&packet, &l3).fold(), naive_sum(&packet), "{spec:?}");
        }
    }
}

#[test]
fn templates_refuse_what_does_not_fit() {
    for underlay in UNDERLAYS {
        let template = EncapTemplate::new(&tunnel(underlay));
        let inner = |len| Inner { family: Family::V4, len, source_port: 1, id: 2, tos: 0, sum: Sum::ZERO };
        let mut out = [0xeeu8; 100];
        for short in 0..template.len() {
            assert_eq!(template.write(&mut out[..short], &inner(100)), None);
            assert_eq!(out, [0xee; 100], "nothing written");
        }
        let max = match template.family() {
            Family::V4 => 65535 - template.overhead(),
            Family::V6 => 65535 - 30,
        };
        assert!(template.write(&mut out, &inner(max)).is_some());
        assert_eq!(template.write(&mut out, &inner(max + 1)), None);
    }
    assert!(!encap::set_outer_macs(&mut [0; 11], VTEP, LINK));
}

#[test]
fn the_vni_flag_is_required_and_other_bits_are_only_reported() {
    // V-001
    let mut good = [0u8; 8];
    vxlan::Repr { vni: 0xabcdef }.emit(&mut good).unwrap();
    assert_eq!(good, [8, 0, 0, 0, 0xab, 0xcd, 0xef, 0]);
    for len in 0..8 {
        assert_eq!(vxlan::parse(&good[..len]), Err(Malformed::VxlanTruncated));
    }
    for at in 0..8 {
        for bit in 0..8 {
            let mut bytes = good;
            bytes[at] ^= 1 << bit;
            match (at, bit, vxlan::parse(&bytes)) {
                (0, 3, result) => assert_eq!(result, Err(Malformed::VxlanNoVni)),
                (4..=6, _, Ok(parsed)) => assert!(!parsed.unknown_bits && parsed.vni != 0xabcdef),
                (_, _, Ok(parsed)) => assert!(parsed.unknown_bits && parsed.vni == 0xabcdef),
                (_, _, Err(reason)) => panic!("{reason:?}"),
            }
        }
    }
}

#[test]
fn ecn_on_decap_all_sixteen_rows() {
    // V-007, rows inner, columns outer 00 01 10 11
    let table = [
        (0b00, [Some(0b00), Some(0b00), Some(0b00), None]),
        (0b01, [Some(0b01), Some(0b01), Some(0b01), Some(0b11)]),
        (0b10, [Some(0b10), Some(0b01), Some(0b10), Some(0b11)]),
        (0b11, [Some(0b11), Some(0b11), Some(0b11), Some(0b11)]),
    ];
    for (inner, row) in table {
        for (outer, expected) in (0u8..4).zip(row) {
            assert_eq!(vxlan::ecn_decap(inner, outer), expected, "inner {inner:02b} outer {outer:02b}");
            assert_eq!(vxlan::ecn_decap(inner | 0xb8, outer | 0x54), expected, "DSCP is not looked at");
            let Some(ecn) = expected else { continue };
            for family in [Family::V4, Family::V6] {
                let spec = Spec { tos: 0xb8 | inner, ..Spec::new(family, Kind::Udp { checksum: true }) };
                let mut packet = spec.build();
                edit::set_ecn(&mut packet, family, ecn);
                assert_eq!(
                    packet,
                    Spec { tos: 0xb8 | ecn, ..spec }.build(),
                    "header checksum fixed, DSCP kept (V-008)"
                );
            }
        }
    }
}

#[test]
fn ecn_on_encap_is_the_kernel_table() {
    // V-017
    for (inner, outer) in [(0b00, 0b00), (0b01, 0b01), (0b10, 0b10), (0b11, 0b10)] {
        assert_eq!(vxlan::ecn_encap(inner), outer);
        assert_eq!(vxlan::ecn_encap(inner | 0xb8), outer);
        // What leaves the far end after a path without congestion is what went in.
        assert_eq!(vxlan::ecn_decap(inner, outer), Some(inner));
    }
}

#[test]
fn source_ports_are_flat_over_their_range() {
    // V-003: 10,000 flows, chi-square over 128 bins of the 16,384 ports
    let mut bins = [0u32; 128];
    let mut hash = 0u64;
    for _ in 0..10_000 {
        // splitmix64: any good hash of the inner flow
        hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = hash;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let port = vxlan::source_port(z ^ (z >> 31));
        assert!(port >= 49152);
        bins[usize::from(port - 49152) / 128] += 1;
    }
    let expected = 10_000.0 / 128.0;
    let chi_square: f64 = bins.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
    // 127 degrees of freedom: 181 is exceeded once in a thousand.
    assert!(chi_square < 181.0, "chi-square {chi_square}");
}

#[test]
fn a_tunnel_packet_without_checksum_is_read_where_configured() {
    // V-005
    let packet = Spec::new(Family::V6, Kind::Tcp { flags: 2, options: vec![] }).build();
    let mut frame = encapsulate(&tunnel(UNDERLAYS[1]), &packet, 50000, 0, 0, Sum::ZERO);
    let outer = parse_l3(&frame[14..]).unwrap();
    assert!(!l4_checksum_verifies(&frame[14..], &outer), "a sum that is not the packet's is noticed");
    frame[60..62].fill(0);
    assert_eq!(parse_l3(&frame[14..]), Err(Malformed::Udp6ZeroChecksum));
    assert!(parse_l3_accepting_zero_udp6(&frame[14..]).is_ok());
}
