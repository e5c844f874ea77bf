//! Edits and quotes: what is updated incrementally equals what is computed from scratch.

use proptest::prelude::*;
use tidegate_dataplane::wire::Family;
use tidegate_dataplane::wire::checksum::{Delta, Sum};
use tidegate_dataplane::wire::edit::{self, Prepared, Tuple};
use tidegate_dataplane::wire::packet::{Fragment, L3, l4_checksum_verifies, parse_l3};
use tidegate_dataplane::wire::{Malformed, icmp, icmpv6, quote, tcp};

use crate::oracle::{assert_checksums, crc_place, fix_ip_checksum, l4_checksum, naive_sum, naive_sums, recompute};
use crate::parse::as_fragment;
use crate::sample::{Kind, Spec, port, samples, spec, v4};

/// Translates a packet as its family needs.
fn translate(packet: &mut [u8], l3: &L3, to: &Spec) -> bool {
    match to.family {
        Family::V4 => edit::translate_v4(packet, l3, &to.tuple_v4()),
        Family::V6 => edit::translate_v6(packet, l3, &to.tuple_v6()),
    }
}

/// Small, repeatable numbers (Marsaglia's xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A word, often one of the two zeros or its neighbours.
    fn word(&mut self) -> u16 {
        const EDGES: [u16; 6] = [0, 0xffff, 1, 0xfffe, 0x00ff, 0xff00];
        let bits = self.next();
        let [low, high, pick, ..] = bits.to_le_bytes();
        match pick {
            0..64 => EDGES[usize::from(pick) % EDGES.len()],
            _ => u16::from_le_bytes([low, high]),
        }
    }
}

#[test]
fn a_million_incremental_updates_equal_full_recomputation() {
    // N-070: HC' = ~(~HC + ~m + m'), never RFC 1141
    let mut numbers = Numbers(0x7469_6465_6761_7465);
    let mut zeros = [0u32; 2];
    for _ in 0..1_000_000 {
        // One word that stays and is not zero, as the version of an IP header or the length of a pseudo header.
        let mut words = [0x4500, numbers.word(), numbers.word(), numbers.word()];
        let new = numbers.word();
        if numbers.next().is_multiple_of(8) {
            // Meet a checksum of zero after the change.
            words[3] = 0;
            words[3] = !naive_sums(&[&words[0].to_be_bytes(), &words[1].to_be_bytes(), &new.to_be_bytes()]);
        }
        let bytes = |words: [u16; 4]| {
            let [[a, b], [c, d], [e, f], [g, h]] = words.map(u16::to_be_bytes);
            [a, b, c, d, e, f, g, h]
        };
        let before = !naive_sum(&bytes(words));
        let old = words[2];
        words[2] = new;
        let after = !naive_sum(&bytes(words));
        assert_eq!(Delta::word(old, new).apply(before), after, "{old:#06x} to {new:#06x} with {before:#06x}");
        let long = [words[2], words[3]];
        words[2] = numbers.word();
        words[3] = numbers.word();
        let last = !naive_sum(&bytes(words));
        let delta = Delta::word(long[0], words[2]).and_word(long[1], words[3]);
        assert_eq!(Delta::from_bits(delta.bits()).apply(after), last, "two words, stored and read back");
        zeros[usize::from(after == 0)] += 1;
        assert_ne!(after, 0xffff, "a sum that is not over zeros alone");
    }
    assert!(zeros[1] > 100_000, "the edge was met: {zeros:?}");
}

#[test]
fn checksums_that_are_zero_in_either_form_still_verify_after_updates() {
    // N-070: HC in {0, 0xffff}
    for stored in [0u16, 0xffff] {
        for old in [0u16, 0xffff, 0x1234] {
            for new in [0u16, 0xffff, 0x4321] {
                // The rest of the data sums to what makes `stored` right.
                let rest = naive_sums(&[&(!old).to_be_bytes(), &(!stored).to_be_bytes()]);
                let updated = Delta::word(old, new).apply(stored);
                let sum = naive_sums(&[
                    &0xffffu16.to_be_bytes(),
                    &rest.to_be_bytes(),
                    &new.to_be_bytes(),
                    &updated.to_be_bytes(),
                ]);
                assert_eq!(sum, 0xffff, "{old:#06x} to {new:#06x} with {stored:#06x}");
            }
        }
    }
    // N-070, T-100: RFC 1624 section 4: the example that RFC 1141 gets wrong
    assert_eq!(Delta::word(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    assert_eq!(Delta::NONE.apply(0x1234), 0x1234);
    // N-071
    assert_eq!(Delta::word(0x5555, 0x3285).apply_udp(0xdd2f), 0xffff);
    assert_eq!(Delta::word(1, 2).apply_udp(0), 0);
}

proptest! {
    #[test]
    fn sums_equal_naive_sums(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in any::<prop::sample::Index>()) {
        prop_assert_eq!(Sum::ZERO.bytes(&bytes).fold(), naive_sum(&bytes));
        let cut = cut.index(bytes.len() + 1) & !1;
        prop_assert_eq!(Sum::ZERO.bytes(&bytes[..cut]).bytes(&bytes[cut..]).fold(), naive_sum(&bytes));
        prop_assert_eq!(Sum::ZERO.sum(Sum::ZERO.bytes(&bytes)).fold(), naive_sum(&bytes));
        prop_assert_eq!(Sum::ZERO.word(0x0102).long(0x0304_0506).bytes(&bytes).fold(),
            naive_sums(&[&[1, 2, 3, 4, 5, 6], &bytes]));
    }

    // N-070, T-100
    #[test]
    fn a_translated_packet_is_the_one_built_with_the_new_end_points(
        spec in spec(), [source, destination] in any::<[[u8; 16]; 2]>(), from in port(), to in port(),
    ) {
        // N-070, N-071, N-073, N-075, N-097: byte for byte, checksums included
        let mut packet = spec.build();
        let l3 = parse_l3(&packet).unwrap();
        let target = spec.with(source, destination, from, to);
        prop_assert!(translate(&mut packet, &l3, &target));
        let mut expected = target.build();
        recompute(&mut expected);
        prop_assert_eq!(packet, expected);
    }

    #[test]
    fn a_prepared_edit_fits_every_packet_of_its_flow(
        spec in spec(), [source, destination] in any::<[[u8; 16]; 2]>(), from in port(), to in port(),
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 3),
    ) {
        let target = spec.with(source, destination, from, to);
        let protocol = parse_l3(&spec.build()).unwrap().protocol;
        for payload in payloads {
            let mut packet = Spec { payload: payload.clone(), ..spec.clone() }.build();
            let l3 = parse_l3(&packet).unwrap();
            let applied = match spec.family {
                Family::V4 => {
                    let prepared = Prepared::new_v4(&spec.tuple_v4(), &target.tuple_v4(), protocol);
                    edit::apply_v4(&mut packet, &l3, &prepared)
                }
                Family::V6 => {
                    let prepared = Prepared::new_v6(&spec.tuple_v6(), &target.tuple_v6(), protocol);
                    edit::apply_v6(&mut packet, &l3, &prepared)
                }
            };
            prop_assert!(applied);
            let mut expected = Spec { payload, ..target.clone() }.build();
            recompute(&mut expected);
            prop_assert_eq!(packet, expected);
        }
    }

    #[test]
    fn there_and_back_is_where_it_was(
        spec in spec(), [source, destination] in any::<[[u8; 16]; 2]>(), from in port(), to in port(),
    ) {
        let before = spec.build();
        let mut packet = before.clone();
        let l3 = parse_l3(&packet).unwrap();
        prop_assert!(translate(&mut packet, &l3, &spec.with(source, destination, from, to)));
        let l3 = parse_l3(&packet).unwrap();
        prop_assert!(translate(&mut packet, &l3, &spec));
        prop_assert_eq!(packet, before);
    }

    #[test]
    fn fragments_are_translated_like_their_datagram(
        spec in spec(), [source, destination] in any::<[[u8; 16]; 2]>(), from in port(), to in port(), first in 4usize..8,
    ) {
        // N-062, V-050: the pieces of the translated datagram are the translated pieces
        let spec = Spec { options: false, payload: vec![0x5a; 100], dont_fragment: false, ..spec };
        // N-075: SCTP's ports stay, or there is no fragment.
        let (from, to) = if matches!(spec.kind, Kind::Sctp) { spec.ports() } else { (from, to) };
        let target = spec.with(source, destination, from, to);
        let (pieces, expected) = (split(&spec, first * 8), split(&target, first * 8));
        for (mut piece, expected) in pieces.into_iter().zip(expected) {
            let l3 = parse_l3(&piece).unwrap();
            prop_assert_ne!(l3.fragment, Fragment::None);
            prop_assert!(translate(&mut piece, &l3, &target));
            prop_assert_eq!(piece, expected);
        }
    }

    #[test]
    fn hops_and_ecn_keep_the_header_checksum(spec in spec(), ecn in 0u8..4) {
        let mut packet = spec.build();
        edit::set_ecn(&mut packet, spec.family, ecn);
        let mut expected = Spec { tos: spec.tos & !3 | ecn, ..spec.clone() }.build();
        prop_assert_eq!(&packet, &expected);
        let forwarded = edit::decrement_ttl(&mut packet, spec.family);
        prop_assert_eq!(forwarded, spec.ttl > 1, "L-058");
        if forwarded {
            expected = Spec { tos: spec.tos & !3 | ecn, ttl: spec.ttl - 1, ..spec }.build();
        }
        prop_assert_eq!(packet, expected);
    }

    #[test]
    fn the_segment_size_is_clamped_and_never_raised(spec in spec(), mtu in 0u16..2000) {
        // V-013
        let mut packet = spec.build();
        let before = packet.clone();
        let l3 = parse_l3(&packet).unwrap();
        let segment = usize::from(l3.l4_offset)..;
        let max = mtu.saturating_sub(if spec.family == Family::V4 { 40 } else { 60 });
        let old = if l3.protocol == 6 { tcp::find_mss(&packet[segment.clone()]) } else { None };
        let changed = edit::clamp_mss(&mut packet, &l3, mtu);
        match old {
            Some((at, mss)) if l3.tcp_flags & tcp::SYN != 0 && mss > max => {
                prop_assert!(changed);
                prop_assert_eq!(tcp::find_mss(&packet[segment]), Some((at, max)));
                assert_checksums(&packet);
            }
            _ => {
                prop_assert!(!changed);
                prop_assert_eq!(packet, before);
            }
        }
    }

    #[test]
    fn translated_quotes_equal_full_recomputation(
        spec in spec(), [source, destination] in any::<[[u8; 16]; 2]>(), from in port(), to in port(),
        [outer_old, outer_new] in any::<[[[u8; 16]; 2]; 2]>(), which in 0usize..3,
    ) {
        // N-074, for every length of the quote
        let target = spec.with(source, destination, from, to);
        let (original, mut wanted) = (spec.build(), target.build());
        recompute(&mut wanted);
        for len in 0..=original.len() {
            let mut message = icmp_error(spec.family, which, &original[..len], outer_old);
            let quote = match quote::parse(spec.family, &message) {
                Ok(quote) => quote,
                Err(reason) => {
                    prop_assert!(len < 8 + usize::from(parse_l3(&original).unwrap().l4_offset), "{:?} at {}", reason, len);
                    continue;
                }
            };
            let rewritten = match spec.family {
                Family::V4 => {
                    prop_assert_eq!(quote.tuple_v4(), Some(spec.tuple_v4()));
                    quote::rewrite_v4(&mut message, &quote, &target.tuple_v4())
                }
                Family::V6 => {
                    prop_assert_eq!(quote.tuple_v6(), Some(spec.tuple_v6()));
                    let tuple = |[source, destination]: [[u8; 16]; 2]| Tuple { source, destination, source_port: 0, destination_port: 0 };
                    let outer = edit::addresses_delta(&tuple(outer_old), &tuple(outer_new));
                    quote::rewrite_v6(&mut message, &quote, &target.tuple_v6(), outer)
                }
            };
            prop_assert!(rewritten);
            let mut expected = wanted[..len].to_vec();
            if let Some((at, _)) = l4_checksum(&original) && at + 1 == len {
                // Half a checksum cannot be updated and stays.
                expected[at] = original[at];
            }
            if let Some(at) = crc_place(&original) && (at..at + 4).contains(&len) {
                expected[at..].copy_from_slice(&original[at..len]);
            }
            let expected = icmp_error(spec.family, which, &expected, outer_new);
            prop_assert_eq!(&message, &expected, "quote of {} bytes", len);
        }
    }

    #[test]
    fn lies_about_a_packet_never_panic(
        spec in spec(), other in spec(), bytes in proptest::collection::vec(any::<u8>(), 0..120),
        cut in any::<prop::sample::Index>(), l4_offset in any::<u16>(), total_len in any::<u16>(),
    ) {
        let mut l3 = parse_l3(&spec.build()).unwrap();
        let mut victim = other.build();
        victim.truncate(cut.index(victim.len()));
        let message = icmp_error(spec.family, 0, &spec.build(), [[1; 16]; 2]);
        let quote = quote::parse(spec.family, &message).unwrap();
        for _ in 0..2 {
            for mut target in [bytes.clone(), victim.clone()] {
                let _ = translate(&mut target, &l3, &other);
                let _ = (edit::decrement_ttl(&mut target, l3.family), edit::clamp_mss(&mut target, &l3, 100));
                edit::set_ecn(&mut target, l3.family, 3);
                let _ = edit::answer_echo(&mut target, &l3);
                let _ = tcp::clamp_mss(&mut target, 100);
                let _ = quote::rewrite_v4(&mut target, &quote, &other.tuple_v4());
                let _ = quote::rewrite_v6(&mut target, &quote, &other.tuple_v6(), Delta::NONE);
            }
            (l3.l4_offset, l3.total_len) = (l4_offset, total_len);
        }
    }
}

/// An ICMP or ICMPv6 error with this quote, its checksum from scratch.
fn icmp_error(family: Family, which: usize, quoted: &[u8], [source, destination]: [[u8; 16]; 2]) -> Vec<u8> {
    let header = match family {
        Family::V4 => [[3, 3, 0, 0, 0, 0, 0, 0], [3, 4, 0, 0, 0, 0, 5, 0xaa], [11, 0, 0, 0, 0, 0, 0, 0]][which],
        Family::V6 => [[1, 4, 0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 5, 0xaa], [3, 0, 0, 0, 0, 0, 0, 0]][which],
    };
    let mut message = [&header, quoted].concat();
    let len = u32::try_from(message.len()).expect("short").to_be_bytes();
    let checksum = match family {
        Family::V4 => !naive_sum(&message),
        Family::V6 => !naive_sums(&[&source, &destination, &len, &[0, 0, 0, 58], &message]),
    };
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

/// The two fragments of a packet, the first with `first` bytes after the IP headers.
fn split(spec: &Spec, first: usize) -> Vec<Vec<u8>> {
    let mut whole = spec.build();
    recompute(&mut whole);
    let ip = if spec.family == Family::V4 { 20 } else { 40 };
    let offset = u16::try_from(first).expect("short");
    let piece = |data: &[u8], offset: u16, more: bool| {
        let mut bytes = whole[..ip].to_vec();
        match spec.family {
            Family::V4 => {
                let total = u16::try_from(20 + data.len()).expect("short");
                bytes[2..4].copy_from_slice(&total.to_be_bytes());
                bytes[6..8].copy_from_slice(&((offset / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
                fix_ip_checksum(&mut bytes);
            }
            Family::V6 => {
                let payload = u16::try_from(8 + data.len()).expect("short");
                bytes[4..6].copy_from_slice(&payload.to_be_bytes());
                let [high, low] = (offset | u16::from(more)).to_be_bytes();
                bytes.extend_from_slice(&[whole[6], 0, high, low, 0, 0, 0, 9]);
                bytes[6] = 44;
            }
        }
        bytes.extend_from_slice(data);
        bytes
    };
    vec![piece(&whole[ip..ip + first], 0, true), piece(&whole[ip + first..], offset, false)]
}

#[test]
fn an_echo_reply_of_zeros_keeps_a_checksum_that_verifies() {
    // N-070: the one packet whose sum has no other byte; identifier 0 of N-097
    let zero = Spec {
        source_port: 0,
        payload: vec![0; 56],
        ..Spec::new(Family::V4, Kind::Echo { request: true, sequence: 0 })
    };
    let mut packet = zero.build();
    let l3 = parse_l3(&packet).unwrap();
    assert!(icmp::answer_echo(&mut packet, &l3));
    assert_eq!(&packet[20..24], &[0, 0, 0xff, 0xff]);
    assert_checksums(&packet);

    let reply = Spec { source_port: 77, kind: Kind::Echo { request: false, sequence: 0 }, ..zero };
    let mut packet = reply.build();
    let l3 = parse_l3(&packet).unwrap();
    let to = Tuple { source_port: 0, destination_port: 0, ..reply.tuple_v4() };
    assert!(edit::translate_v4(&mut packet, &l3, &to));
    assert_eq!(&packet[20..24], &[0, 0, 0xff, 0xff]);
    assert_checksums(&packet);
}

#[test]
fn sctp_ports_change_with_their_crc_and_stay_in_fragments() {
    // N-075, Q-12: the sample is built anew with a checksum computed bit by bit
    for family in [Family::V4, Family::V6] {
        for length in [0, 1, 3, 4, 9, 1020, 1024, 1100, 1400] {
            let spec = Spec { payload: (0..=255).cycle().take(length).collect(), ..Spec::new(family, Kind::Sctp) };
            let before = spec.build();
            let l3 = parse_l3(&before).unwrap();
            let to = spec.with([9; 16], [8; 16], 0, 0xffff);
            let mut packet = before.clone();
            assert!(translate(&mut packet, &l3, &to));
            assert_eq!(packet, to.build(), "{length}");
            // A mistake stays one.
            let mut packet = before.clone();
            *packet.last_mut().unwrap() ^= 1;
            assert!(translate(&mut packet, &l3, &to) && !l4_checksum_verifies(&packet, &l3));
            // Addresses are not under it, and a fragment has no other ports.
            for fragment in [Fragment::First { id: 1 }, Fragment::None] {
                let l3 = L3 { fragment, ..l3 };
                let mut packet = before.clone();
                assert!(translate(&mut packet, &l3, &spec.with([9; 16], [8; 16], 40000, 443)));
                let mut packet = before.clone();
                let whole = fragment == Fragment::None;
                assert_eq!(translate(&mut packet, &l3, &to), whole);
                assert_eq!(packet == before, !whole, "untouched");
            }
        }
    }
}

#[test]
fn quoted_sctp_is_translated_with_its_crc_however_much_of_it_there_is() {
    // N-074, N-075
    for family in [Family::V4, Family::V6] {
        let spec = Spec { payload: vec![0x5a; 300], ..Spec::new(family, Kind::Sctp) };
        let to = spec.with([0x11; 16], [0x22; 16], 7, 8);
        let (before, after) = (spec.build(), to.build());
        let header = before.len() - 312;
        for length in [8, 11, 12, 16, 40, 312].map(|more| header + more) {
            let mut message = icmp_error(family, 0, &before[..length], [[1; 16]; 2]);
            let quote = quote::parse(family, &message).unwrap();
            let done = match family {
                Family::V4 => quote::rewrite_v4(&mut message, &quote, &to.tuple_v4()),
                Family::V6 => quote::rewrite_v6(&mut message, &quote, &to.tuple_v6(), Delta::NONE),
            };
            // What does not reach the end of the checksum keeps the bytes that are there of it.
            let mut expected = after[..length].to_vec();
            if length < header + 12 {
                expected[header + 8..].copy_from_slice(&before[header + 8..length]);
            }
            assert!(done);
            assert_eq!(message, icmp_error(family, 0, &expected, [[1; 16]; 2]), "{length}");
        }
    }
}

#[test]
fn icmp_errors_follow_the_outer_addresses() {
    // N-073: ICMPv6 covers its addresses, ICMPv4 does not
    for spec in samples() {
        let original = spec.build();
        let mut out = [0u8; 1500];
        let mut target = spec.with([0x33; 16], [0x44; 16], 5, 6);
        target.kind = Kind::Udp { checksum: true };
        let len = match spec.family {
            Family::V4 => icmp::ErrorRepr::TimeExceeded.emit(&mut out, v4(spec.destination), &original),
            Family::V6 => icmpv6::ErrorRepr::TimeExceeded.emit(&mut out, spec.destination, &original),
        };
        let mut packet = out[..len.unwrap()].to_vec();
        let l3 = parse_l3(&packet).unwrap();
        assert!(l3.is_icmp_error() && translate(&mut packet, &l3, &target));
        assert_checksums(&packet);
        assert_eq!(&packet[usize::from(l3.l4_offset) + 8..], original, "the quote is not touched");
        let quote = quote::parse(spec.family, &packet[usize::from(l3.l4_offset)..]).unwrap();
        assert_eq!((quote.source_port, quote.destination_port), spec.ports());
    }
}

#[test]
fn quotes_are_checked() {
    let good = Spec::new(Family::V4, Kind::Udp { checksum: true });
    let parse = |quoted: &[u8]| quote::parse(Family::V4, &icmp_error(Family::V4, 0, quoted, [[1; 16]; 2]));
    let bytes = good.build();
    assert!(parse(&bytes[..28]).is_ok(), "eight bytes of UDP");
    assert_eq!(parse(&bytes[..27]), Err(Malformed::QuoteTruncated));
    // N-031 3a
    let mut bad = bytes.clone();
    bad[8] ^= 1;
    assert_eq!(parse(&bad), Err(Malformed::QuoteBadChecksum));
    // N-031 3b: options are skipped
    let optioned = Spec { options: true, ..good.clone() }.build();
    assert_eq!(parse(&optioned).map(|quote| (quote.l4_offset, quote.source_port)), Ok((36, 40000)));
    // N-031 3c: the embedded L4 checksum is not validated
    let mut bad = bytes.clone();
    bad[26] ^= 1;
    assert!(parse(&bad).is_ok());
    bad = bytes.clone();
    bad[0] = 0x44;
    assert_eq!(parse(&bad), Err(Malformed::QuoteBadHeader));
    bad[0] = 0x65;
    assert_eq!(parse(&bad), Err(Malformed::QuoteBadHeader), "an IPv6 packet in an ICMPv4 error");

    for family in [Family::V4, Family::V6] {
        let mut spec = Spec::new(family, Kind::Udp { checksum: true });
        spec.payload = vec![1; 24];
        let parse = |quoted: &[u8]| quote::parse(family, &icmp_error(family, 0, quoted, [[1; 16]; 2]));
        assert_eq!(parse(&as_fragment(&spec, 8, true)), Err(Malformed::QuoteLaterFragment));
        let first = as_fragment(&spec, 0, true);
        let l4 = usize::from(parse_l3(&first).unwrap().l4_offset);
        for len in l4 + 8..first.len() {
            let quote = parse(&first[..len]).unwrap();
            assert_eq!((quote.source_port, quote.destination_port), spec.ports(), "first fragment, {len} bytes");
        }
        assert_eq!(quote::parse(family, &[3, 0, 0]), Err(Malformed::IcmpTruncated));
    }
}

#[test]
fn extensions_behind_a_quote_are_not_its_checksum() {
    // N-031 3d: RFC 4884 says how long the original datagram is; behind it come extensions
    for family in [Family::V4, Family::V6] {
        let spec = Spec { payload: vec![], ..Spec::new(family, Kind::Tcp { flags: 0x10, options: vec![] }) };
        let original = spec.build();
        let l4 = original.len() - 20;
        // Eight bytes of TCP, then extensions where the checksum would be.
        let quoted = [&original[..l4 + 8], &[0xee; 40]].concat();
        let mut message = icmp_error(family, 0, &quoted, [[1; 16]; 2]);
        let length = u8::try_from(l4 + 8).unwrap();
        match family {
            Family::V4 => message[5] = length / 4,
            Family::V6 => message[4] = length / 8,
        }
        let quote = quote::parse(family, &message).unwrap();
        assert_eq!((quote.source_port, quote.l4_checksum_offset), (40000, None));
        let rewritten = match family {
            Family::V4 => quote::rewrite_v4(&mut message, &quote, &spec.with([5; 16], [6; 16], 7, 8).tuple_v4()),
            Family::V6 => {
                quote::rewrite_v6(&mut message, &quote, &spec.with([5; 16], [6; 16], 7, 8).tuple_v6(), Delta::NONE)
            }
        };
        assert!(rewritten);
        assert_eq!(&message[8 + l4 + 8..], &[0xee; 40], "extensions are not touched");
        // Without the length field the same bytes are taken for the rest of the TCP header.
        (message[4], message[5]) = (0, 0);
        assert!(quote::parse(family, &message).unwrap().l4_checksum_offset.is_some());
    }
}

#[test]
fn the_oracle_agrees_with_etherparse_itself() {
    for spec in samples() {
        let bytes = spec.build();
        if let Some((at, checksum)) = l4_checksum(&bytes) {
            assert_eq!(bytes[at..at + 2], checksum.to_be_bytes(), "{spec:?}");
        }
        assert_checksums(&bytes);
    }
}
