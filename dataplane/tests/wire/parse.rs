//! What parse accepts and says, against etherparse; what it refuses, by which reason; and that nothing makes it panic.

use etherparse::{IpSlice, PacketBuilder, SlicedPacket, TransportSlice, VlanId};
use proptest::prelude::*;
use tidegate_dataplane::wire::packet::{Fragment, L3, is_martian_source, l4_checksum_verifies, parse_l3};
use tidegate_dataplane::wire::{
    Family, Malformed, arp, encap, ethernet, icmp, icmpv6, ipv4, ipv6, ndp, quote, tcp, vxlan,
};

use crate::oracle::{fix_ip_checksum, l4};
use crate::sample::{Kind, Spec, samples, spec};

/// Compares everything parse says with the description and with etherparse.
#[track_caller]
fn assert_agrees(spec: &Spec, bytes: &[u8], l3: &L3) {
    let (offset, protocol) = l4(bytes);
    assert_eq!((usize::from(l3.l4_offset), l3.protocol), (offset, protocol.0));
    assert_eq!(usize::from(l3.total_len), bytes.len());
    assert_eq!((l3.family, l3.ttl, l3.tos, l3.has_options), (spec.family, spec.ttl, spec.tos, spec.options));
    assert_eq!(l3.dont_fragment, spec.dont_fragment || spec.family == Family::V6);
    assert_eq!((l3.source_port, l3.destination_port), spec.ports());
    let sliced = SlicedPacket::from_ip(bytes).expect("etherparse reads what it wrote");
    match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            assert_eq!((l3.source_port, l3.destination_port), (tcp.source_port(), tcp.destination_port()));
            assert_eq!((l3.tcp_seq, l3.tcp_ack), (tcp.sequence_number(), tcp.acknowledgment_number()));
            let Kind::Tcp { flags, .. } = spec.kind else { panic!("not TCP: {spec:?}") };
            assert_eq!(l3.tcp_flags, flags);
        }
        Some(TransportSlice::Udp(udp)) => {
            assert_eq!((l3.source_port, l3.destination_port), (udp.source_port(), udp.destination_port()));
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            assert_eq!((l3.icmp_type, l3.icmp_code), (icmp.type_u8(), icmp.code_u8()));
            assert!(l3.is_icmp_echo() && !l3.is_icmp_error());
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            assert_eq!((l3.icmp_type, l3.icmp_code), (icmp.type_u8(), icmp.code_u8()));
            assert!(l3.is_icmp_echo() && !l3.is_icmp_error());
        }
        other => assert!(matches!(spec.kind, Kind::Sctp), "{other:?}"),
    }
    match IpSlice::from_slice(bytes).expect("etherparse reads what it wrote") {
        IpSlice::Ipv4(ip) => {
            assert_eq!(ipv4::addresses(bytes), (ip.header().source(), ip.header().destination()));
        }
        IpSlice::Ipv6(ip) => {
            assert_eq!(ipv6::addresses(bytes), (ip.header().source(), ip.header().destination()));
        }
    }
}

proptest! {
    #[test]
    fn parse_agrees_with_etherparse(spec in spec()) {
        let bytes = spec.build();
        let l3 = parse_l3(&bytes).unwrap();
        assert_agrees(&spec, &bytes, &l3);
        prop_assert!(l4_checksum_verifies(&bytes, &l3));
    }

    #[test]
    fn padding_is_not_read(spec in spec(), padding in proptest::collection::vec(any::<u8>(), 0..40)) {
        let mut bytes = spec.build();
        let alone = parse_l3(&bytes);
        bytes.extend_from_slice(&padding);
        prop_assert_eq!(parse_l3(&bytes), alone);
    }

    #[test]
    fn one_flipped_bit_is_noticed(spec in spec(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = spec.build();
        let before = parse_l3(&bytes).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let covered = !matches!(spec.kind, Kind::Udp { checksum: false });
        let in_l4 = at >= usize::from(before.l4_offset);
        if let Ok(l3) = parse_l3(&bytes) && covered && in_l4 {
            // A flip may turn a UDP checksum into "none"; everything else breaks the sum.
            let none = l3.protocol == 17 && bytes[usize::from(l3.l4_offset) + 6..][..2] == [0, 0];
            prop_assert!(none || !l4_checksum_verifies(&bytes, &l3));
        }
        if spec.family == Family::V4 && !in_l4 {
            prop_assert!(parse_l3(&bytes).is_err(), "the header checksum notices");
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        all_parsers(&bytes);
    }

    #[test]
    fn damaged_packets_never_panic(
        spec in spec(), hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = spec.build();
        for (at, value) in hits {
            let at = at.index(bytes.len().min(64));
            bytes[at] = value;
        }
        fix_ip_checksum(&mut bytes);
        all_parsers(&bytes);
        all_parsers(&bytes[..cut.index(bytes.len())]);
    }
}

/// Runs every reader over the same bytes; what an accepted packet says must lie within it.
fn all_parsers(bytes: &[u8]) {
    if let Ok(l3) = parse_l3(bytes) {
        assert!(usize::from(l3.total_len) <= bytes.len());
        assert!(l3.l4_offset <= l3.total_len);
        let _ = (l4_checksum_verifies(bytes, &l3), encap::inner_sum(bytes, &l3));
        let _ = (icmp::may_answer(bytes, &l3), icmpv6::may_answer(bytes, &l3));
        let _ = (ndp::parse_solicitation(bytes, &l3), ndp::parse_advertisement(bytes, &l3));
    }
    let _ = (is_martian_source(bytes, Family::V4), is_martian_source(bytes, Family::V6));
    let _ = (ethernet::parse_ethernet(bytes), arp::Repr::parse(bytes), vxlan::parse(bytes));
    let _ = (quote::parse(Family::V4, bytes), quote::parse(Family::V6, bytes), tcp::find_mss(bytes));
}

#[test]
fn every_truncation_of_a_packet_is_refused() {
    for spec in samples() {
        let bytes = spec.build();
        for len in 0..bytes.len() {
            assert!(parse_l3(&bytes[..len]).is_err(), "{len} of {spec:?}");
        }
    }
}

/// Cuts a packet and makes the IP length say so, to get past it.
fn cut(bytes: &[u8], len: usize) -> Vec<u8> {
    let mut short = bytes[..len].to_vec();
    let len = u16::try_from(len).expect("short");
    if bytes[0] >> 4 == 4 && short.len() >= 20 {
        short[2..4].copy_from_slice(&len.to_be_bytes());
        fix_ip_checksum(&mut short);
    } else if short.len() >= 40 {
        short[4..6].copy_from_slice(&(len - 40).to_be_bytes());
    }
    short
}

#[test]
fn every_truncation_inside_the_ip_payload_has_its_reason() {
    for spec in samples() {
        let bytes = spec.build();
        let l3 = parse_l3(&bytes).unwrap();
        let l4 = usize::from(l3.l4_offset);
        let (ip_len, l4_len, reason) = match (spec.family, &spec.kind) {
            (Family::V4, Kind::Tcp { options, .. }) => (20, 20 + options.len(), Malformed::TcpTruncated),
            (Family::V6, Kind::Tcp { options, .. }) => (40, 20 + options.len(), Malformed::TcpTruncated),
            (Family::V4, Kind::Udp { .. }) => (20, 8, Malformed::UdpTruncated),
            (Family::V6, Kind::Udp { .. }) => (40, 8, Malformed::UdpTruncated),
            (Family::V4, Kind::Echo { .. }) => (20, 8, Malformed::IcmpTruncated),
            (Family::V6, Kind::Echo { .. }) => (40, 8, Malformed::IcmpTruncated),
            (Family::V4, Kind::Sctp) => (20, 12, Malformed::SctpTruncated),
            (Family::V6, Kind::Sctp) => (40, 12, Malformed::SctpTruncated),
        };
        for len in 0..bytes.len() {
            let result = parse_l3(&cut(&bytes, len));
            match (spec.family, len) {
                (Family::V4, 0..20) => assert_eq!(result, Err(Malformed::Ipv4Truncated), "{len} of {spec:?}"),
                (Family::V6, 0) => assert_eq!(result, Err(Malformed::Ipv4Truncated)),
                (Family::V6, 1..40) => assert_eq!(result, Err(Malformed::Ipv6Truncated), "{len} of {spec:?}"),
                (Family::V4, _) if len < l4 => assert_eq!(result, Err(Malformed::Ipv4Truncated), "{len} of {spec:?}"),
                (Family::V6, _) if len < l4 => {
                    assert_eq!(result, Err(Malformed::Ipv6ExtensionTruncated), "{len} of {spec:?}");
                }
                _ if len < l4 + l4_len => assert_eq!(result, Err(reason), "{len} of {spec:?}"),
                _ if matches!(spec.kind, Kind::Udp { .. }) => assert_eq!(result, Err(Malformed::UdpBadLength)),
                _ => assert_eq!(usize::from(result.unwrap().total_len), len),
            }
        }
        assert!(l4 >= ip_len);
    }
}

#[test]
fn every_truncation_of_a_frame_is_refused() {
    let packet = Spec::new(Family::V4, Kind::Udp { checksum: true }).build();
    for tags in 0..3 {
        let mut frame = vec![0u8; 12];
        for _ in 0..tags {
            frame.extend_from_slice(&[0x81, 0, 0x20, 5]);
        }
        frame.extend_from_slice(&[8, 0]);
        let l3_offset = frame.len();
        frame.extend_from_slice(&packet);
        for len in 0..l3_offset {
            let reason = if len < 14 { Malformed::EthernetTruncated } else { Malformed::VlanTruncated };
            assert_eq!(ethernet::parse_ethernet(&frame[..len]), Err(reason), "{len} with {tags} tags");
        }
        let parsed = ethernet::parse_ethernet(&frame).unwrap();
        assert_eq!(usize::from(parsed.l3_offset), l3_offset);
        assert_eq!((parsed.vlan.is_some(), parsed.inner_vlan.is_some()), (tags > 0, tags > 1));
    }
}

#[test]
fn tags_agree_with_etherparse() {
    let (from, to) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from, to)
        .double_vlan(VlanId::try_new(100).unwrap(), VlanId::try_new(200).unwrap())
        .ipv6([1; 16], [2; 16], 9)
        .udp(1, 2)
        .write(&mut frame, b"x")
        .unwrap();
    let parsed = ethernet::parse_ethernet(&frame).unwrap();
    assert_eq!((parsed.source.0, parsed.destination.0), (from, to));
    assert_eq!((parsed.vlan, parsed.inner_vlan), (Some(100), Some(200)));
    assert_eq!((parsed.ethertype, parsed.l3_offset), (ethernet::IPV6, 22));
    assert!(parse_l3(&frame[22..]).is_ok());
    frame[16..18].copy_from_slice(&[0x88, 0xa8]);
    frame[20..22].copy_from_slice(&[0x81, 0x00]);
    assert_eq!(ethernet::parse_ethernet(&frame), Err(Malformed::VlanTooMany));
}

#[test]
fn every_value_of_every_ipv4_length_has_its_answer() {
    for spec in samples().into_iter().filter(|spec| spec.family == Family::V4) {
        let good = spec.build();
        let header_len = usize::from(good[0] & 0xf) * 4;
        for total in 0..=u16::MAX {
            let mut bytes = good.clone();
            bytes[2..4].copy_from_slice(&total.to_be_bytes());
            fix_ip_checksum(&mut bytes);
            let total = usize::from(total);
            match parse_l3(&bytes) {
                Err(Malformed::Ipv4BadTotalLength) => assert!(total < header_len || total > good.len()),
                Ok(l3) => assert!(usize::from(l3.total_len) == total && total <= good.len()),
                Err(reason) => {
                    assert!(total < good.len() && total >= header_len, "{reason:?}");
                }
            }
        }
        for words in 0..16u8 {
            let mut bytes = good.clone();
            bytes[0] = 0x40 | words;
            fix_ip_checksum(&mut bytes);
            let result = parse_l3(&bytes);
            match usize::from(words) * 4 {
                0..20 => assert_eq!(result, Err(Malformed::Ipv4BadHeaderLength)),
                len if len > bytes.len() => assert_eq!(result, Err(Malformed::Ipv4Truncated)),
                _ => all_parsers(&bytes),
            }
        }
    }
}

#[test]
fn every_value_of_every_ipv6_length_has_its_answer() {
    for spec in samples().into_iter().filter(|spec| spec.family == Family::V6) {
        let good = spec.build();
        for payload in 0..=u16::MAX {
            let mut bytes = good.clone();
            bytes[4..6].copy_from_slice(&payload.to_be_bytes());
            let payload = usize::from(payload);
            match parse_l3(&bytes) {
                Err(Malformed::Ipv6BadPayloadLength) => assert!(payload + 40 > good.len()),
                Ok(l3) => assert!(usize::from(l3.total_len) == payload + 40 && payload + 40 <= good.len()),
                Err(reason) => assert!(payload + 40 < good.len(), "{reason:?}"),
            }
        }
    }
}

#[test]
fn every_value_of_udp_length_has_its_answer() {
    for family in [Family::V4, Family::V6] {
        let good = Spec::new(family, Kind::Udp { checksum: true }).build();
        let at = good.len() - 9 - 4;
        for length in 0..=u16::MAX {
            let mut bytes = good.clone();
            bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
            let expected = (8..=17).contains(&length);
            match parse_l3(&bytes) {
                Ok(_) => assert!(expected),
                Err(reason) => assert!(!expected && reason == Malformed::UdpBadLength),
            }
        }
    }
}

#[test]
fn every_value_of_tcp_offset_has_its_answer() {
    for family in [Family::V4, Family::V6] {
        let good = Spec::new(family, Kind::Tcp { flags: 0x10, options: vec![] }).build();
        let at = good.len() - 9 - 8;
        for words in 0..16u8 {
            let mut bytes = good.clone();
            bytes[at] = words << 4;
            let expected = match words {
                0..5 => Err(Malformed::TcpBadOffset),
                // Nine bytes of payload hold two words more.
                5..=7 => Ok(()),
                _ => Err(Malformed::TcpTruncated),
            };
            assert_eq!(parse_l3(&bytes).map(drop), expected, "{words} words");
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_is_none_over_ipv4_and_illegal_over_ipv6() {
    // N-071, N-072
    for family in [Family::V4, Family::V6] {
        let bytes = Spec::new(family, Kind::Udp { checksum: false }).build();
        match family {
            Family::V4 => assert!(parse_l3(&bytes).is_ok()),
            Family::V6 => {
                assert_eq!(parse_l3(&bytes), Err(Malformed::Udp6ZeroChecksum));
                // V-005: configured tunnels
                let accepted = tidegate_dataplane::wire::packet::parse_l3_accepting_zero_udp6(&bytes);
                assert!(accepted.is_ok());
            }
        }
    }
}

#[test]
fn versions_and_checksums_are_checked() {
    let good = Spec::new(Family::V4, Kind::Udp { checksum: true }).build();
    for version in (0..16u8).filter(|version| *version != 4) {
        let mut bytes = good.clone();
        bytes[0] = version << 4 | 5;
        let expected = if version == 6 { Malformed::Ipv6Truncated } else { Malformed::Ipv4BadVersion };
        bytes.truncate(39);
        assert_eq!(parse_l3(&bytes), Err(expected));
    }
    for at in 0..20 {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        assert!(parse_l3(&bytes).is_err(), "byte {at}");
    }
    let mut bytes = good;
    bytes[8] ^= 1;
    assert_eq!(parse_l3(&bytes), Err(Malformed::Ipv4BadChecksum));
}

/// An IPv4 packet with these options, eight bytes.
fn with_options(options: [u8; 8]) -> Vec<u8> {
    let mut bytes = Spec { options: true, ..Spec::new(Family::V4, Kind::Udp { checksum: true }) }.build();
    bytes[20..28].copy_from_slice(&options);
    fix_ip_checksum(&mut bytes);
    bytes
}

#[test]
fn ipv4_options_pass_but_for_source_routes() {
    // L-056
    assert!(parse_l3(&with_options([1, 1, 1, 0, 9, 9, 9, 9])).is_ok(), "after the end anything goes");
    assert!(parse_l3(&with_options([148, 4, 0, 0, 1, 1, 1, 1])).is_ok(), "router alert");
    for option in [131, 137] {
        assert_eq!(parse_l3(&with_options([1, option, 7, 4, 0, 0, 0, 0])), Err(Malformed::Ipv4SourceRoute));
        assert_eq!(parse_l3(&with_options([1, 1, 1, 1, 1, 1, 1, option])), Err(Malformed::Ipv4SourceRoute));
    }
    for length in 0..=255 {
        let expected = if (2..=7).contains(&length) { Ok(()) } else { Err(Malformed::Ipv4BadOptions) };
        // An option of up to seven bytes, whatever follows is no operation.
        let mut options = [1u8; 8];
        (options[1], options[2]) = (7, length);
        assert_eq!(parse_l3(&with_options(options)).map(drop), expected, "length {length}");
    }
}

/// An IPv6 packet that carries these extension headers before a UDP datagram.
fn with_extensions(first: u8, extensions: &[u8]) -> Vec<u8> {
    let plain = Spec::new(Family::V6, Kind::Udp { checksum: true }).build();
    let mut bytes = [&plain[..40], extensions, &plain[40..]].concat();
    let payload_len = u16::try_from(bytes.len() - 40).expect("short");
    bytes[4..6].copy_from_slice(&payload_len.to_be_bytes());
    bytes[6] = first;
    bytes
}

#[test]
fn extension_headers_are_walked_within_bounds() {
    // N-064
    let options = |next: u8, length: u8| [vec![next, length, 1, 4], vec![0; 4 + usize::from(length) * 8]].concat();
    for count in 1..=12usize {
        let mut chain = Vec::new();
        for n in 1..=count {
            chain.extend(options(if n == count { 17 } else { 60 }, 0));
        }
        let result = parse_l3(&with_extensions(60, &chain));
        if count <= ipv6::EXTENSIONS_MAX {
            let l3 = result.unwrap();
            assert_eq!((l3.protocol, usize::from(l3.l4_offset), l3.source_port), (17, 40 + 8 * count, 40000));
        } else {
            assert_eq!(result, Err(Malformed::Ipv6ExtensionTooMany), "{count} headers");
        }
    }
    assert!(parse_l3(&with_extensions(60, &options(17, 31))).is_ok(), "256 bytes");
    assert_eq!(parse_l3(&with_extensions(60, &options(17, 32))), Err(Malformed::Ipv6ExtensionTooMany));
    for length in 0..=255u8 {
        let header = [17, length, 1, 4, 0, 0, 0, 0];
        let bytes = with_extensions(60, &header);
        let end = 48 + usize::from(length) * 8;
        match parse_l3(&bytes) {
            Err(Malformed::Ipv6ExtensionTooMany) => assert!(end - 40 > ipv6::EXTENSION_BYTES_MAX),
            Err(Malformed::Ipv6ExtensionTruncated) => assert!(end > bytes.len()),
            other => assert!(end <= bytes.len(), "{length}: {other:?}"),
        }
    }
    let late = [options(0, 0), options(17, 0)].concat();
    assert_eq!(parse_l3(&with_extensions(60, &late)), Err(Malformed::Ipv6ExtensionOrder));
    for (next, name) in [(50, "ESP"), (51, "AH"), (59, "no next header"), (135, "mobility")] {
        let l3 = parse_l3(&with_extensions(60, &options(next, 0))).unwrap();
        assert_eq!((l3.protocol, l3.source_port, l3.destination_port), (next, 0, 0), "{name}");
    }
}

#[test]
fn routing_headers_that_still_route_are_refused() {
    for (kind, left, expected) in [
        (0, 0, Err(Malformed::Ipv6RoutingHeader)),
        (0, 1, Err(Malformed::Ipv6RoutingHeader)),
        (4, 1, Err(Malformed::Ipv6RoutingHeader)),
        (4, 0, Ok(())),
        (2, 0, Ok(())),
    ] {
        let header = [17, 0, kind, left, 0, 0, 0, 0];
        assert_eq!(parse_l3(&with_extensions(43, &header)).map(drop), expected, "type {kind}, {left} left");
    }
}

/// The same packet with as much payload as makes its L4 part some multiple of eight bytes, as fragments but the last have.
pub fn in_eights(mut spec: Spec) -> Spec {
    spec.payload = vec![7; 24];
    let bytes = spec.build();
    let len = bytes.len() - l4(&bytes).0;
    spec.payload.resize(24 + len.next_multiple_of(8) - len, 7);
    spec
}

/// A packet as one fragment: offset in bytes, more to come.
pub fn as_fragment(spec: &Spec, offset: u16, more: bool) -> Vec<u8> {
    let mut bytes = spec.build();
    match spec.family {
        Family::V4 => {
            let word = (offset / 8) | if more { 0x2000 } else { 0 };
            bytes[6..8].copy_from_slice(&word.to_be_bytes());
            fix_ip_checksum(&mut bytes);
            bytes
        }
        Family::V6 => {
            let (l4, protocol) = l4(&bytes);
            let [high, low] = (offset | u16::from(more)).to_be_bytes();
            let header = [protocol.0, 0, high, low, 0xde, 0xad, 0xbe, 0xef];
            let mut bytes = [&bytes[..l4], &header, &bytes[l4..]].concat();
            // The header before names what follows.
            let before = if l4 == 40 { 6 } else { l4 - 16 };
            bytes[before] = 44;
            let payload_len = u16::try_from(bytes.len() - 40).expect("short");
            bytes[4..6].copy_from_slice(&payload_len.to_be_bytes());
            bytes
        }
    }
}

#[test]
fn fragments_are_told_apart() {
    for spec in samples() {
        let spec = in_eights(spec);
        let id = if spec.family == Family::V4 { 0x1234 } else { 0xdead_beef };
        let whole = parse_l3(&spec.build()).unwrap();

        let first = parse_l3(&as_fragment(&spec, 0, true)).unwrap();
        assert_eq!(first.fragment, Fragment::First { id });
        assert_eq!((first.source_port, first.destination_port), spec.ports(), "V-050: the first has the ports");
        assert_eq!(first.protocol, whole.protocol);

        for more in [false, true] {
            let later = parse_l3(&as_fragment(&spec, 1480, more)).unwrap();
            assert_eq!(later.fragment, Fragment::Later { id, offset: 1480, more });
            assert_eq!((later.source_port, later.destination_port, later.tcp_flags), (0, 0, 0));
            assert_eq!((later.has_l4(), later.protocol), (false, whole.protocol));
            assert!(!later.is_icmp() && !later.is_icmp_echo());
        }

        // RFC 6946: an atomic fragment is a whole packet.
        let atomic = parse_l3(&as_fragment(&spec, 0, false)).unwrap();
        assert_eq!((atomic.fragment, atomic.source_port), (Fragment::None, spec.source_port));
    }
}

#[test]
fn impossible_fragments_are_refused() {
    for family in [Family::V4, Family::V6] {
        let reason = if family == Family::V4 { Malformed::Ipv4BadFragment } else { Malformed::Ipv6BadFragment };
        let mut spec = Spec::new(family, Kind::Udp { checksum: true });
        spec.payload = vec![7; 24];
        assert_eq!(parse_l3(&as_fragment(&spec, 65528, false)), Err(reason), "ends beyond 65,535");
        assert!(parse_l3(&as_fragment(&spec, 65496, false)).is_ok(), "ends at 65,528");
        spec.payload = vec![7; 23];
        assert_eq!(parse_l3(&as_fragment(&spec, 8, true)), Err(reason), "a middle of 31 bytes");
        assert!(parse_l3(&as_fragment(&spec, 8, false)).is_ok(), "a last of 31 bytes");
    }
    let twice = [44, 0, 0, 1, 0, 0, 0, 1, 17, 0, 0, 1, 0, 0, 0, 1];
    let mut bytes = with_extensions(44, &twice);
    bytes.truncate(bytes.len() - 1);
    bytes[5] -= 1;
    assert_eq!(parse_l3(&bytes), Err(Malformed::Ipv6BadFragment));
}

#[test]
fn tiny_first_fragments_are_refused() {
    // N-061: a first fragment that ends inside the L4 header
    for family in [Family::V4, Family::V6] {
        let mut spec = Spec::new(family, Kind::Tcp { flags: 2, options: vec![2, 4, 5, 180] });
        spec.payload = vec![0; 8];
        let bytes = as_fragment(&spec, 0, true);
        let l4 = bytes.len() - 32;
        assert!(parse_l3(&cut(&bytes, l4 + 24)).is_ok());
        assert_eq!(parse_l3(&cut(&bytes, l4 + 16)), Err(Malformed::TcpTruncated));
        assert_eq!(parse_l3(&cut(&bytes, l4 + 8)), Err(Malformed::TcpTruncated));
        assert!(parse_l3(&cut(&bytes, l4)).is_err());
    }
}

#[test]
fn martian_sources_are_known() {
    let ordinary = [198, 51, 100, 1];
    for source in [[0, 0, 0, 0], [0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 1], [240, 0, 0, 1], [255; 4]] {
        assert!(ipv4::is_martian_source(source, ordinary), "{source:?}");
    }
    assert!(ipv4::is_martian_source(ordinary, ordinary), "LAND");
    for source in
        [[1, 0, 0, 1], [10, 0, 0, 1], [126, 255, 255, 255], [128, 0, 0, 1], [169, 254, 1, 1], [223, 255, 0, 1]]
    {
        assert!(!ipv4::is_martian_source(source, ordinary), "{source:?}");
    }
    let ordinary = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut mapped = [0; 16];
    mapped[10..].copy_from_slice(&[0xff, 0xff, 1, 2, 3, 4]);
    let mut loopback = [0; 16];
    loopback[15] = 1;
    let mut multicast = ordinary;
    multicast[0] = 0xff;
    for source in [[0; 16], loopback, mapped, multicast, ordinary] {
        assert!(ipv6::is_martian_source(source, ordinary), "{source:x?}");
    }
    let mut other = ordinary;
    other[15] = 2;
    let mut link_local = [0; 16];
    (link_local[0], link_local[1], link_local[15]) = (0xfe, 0x80, 2);
    assert!(!ipv6::is_martian_source(other, ordinary) && !ipv6::is_martian_source(link_local, ordinary));
}
