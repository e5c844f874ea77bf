//! Fragments against a naive model, and the limits by hand.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const PORTS: Ports = Ports { source: 7, destination: 53, protocol: 17, id: 0 };

fn key(n: u8) -> FragmentKey {
    FragmentKey { source: [n; 16], destination: [9; 16], id: u32::from(n) << 20, protocol: 17, domain: n & 1 }
}

/// What arrives takes everything that is released with it.
fn arrive(table: &mut Fragments<u32>, n: u8, piece: Piece, first: bool, item: u32, now_ns: u64) -> Told {
    let outcome = table.arrive(&key(n), piece, first.then_some(Ports { source: n.into(), ..PORTS }), item, now_ns);
    let mut all = |item, mut released| {
        let mut items = vec![item];
        items.extend(std::iter::from_fn(|| table.next(&mut released)));
        items
    };
    match outcome {
        Outcome::Held => Told::Held,
        Outcome::Pass(item, ports, released) => {
            assert_eq!(ports, Ports { source: n.into(), ..PORTS });
            Told::Pass(all(item, released))
        }
        Outcome::Refused(item, why, released) => Told::Refused(why, all(item, released)),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Held,
    Pass(Vec<u32>),
    Refused(Refusal, Vec<u32>),
}

/// One datagram of the naive model: a map of every byte, and lists.
#[derive(Default)]
struct Naive {
    since_ns: u64,
    bytes: BTreeMap<u32, ()>,
    ends: Vec<u32>,
    total: Option<u32>,
    first: bool,
    refused: bool,
    waiting: Vec<u32>,
}

impl Naive {
    fn arrive(&mut self, piece: Piece, first: bool, item: u32) -> Told {
        if self.refused {
            return Told::Refused(Refusal::Overlap, vec![item]);
        }
        let (start, end) = (u32::from(piece.offset), u32::from(piece.offset) + u32::from(piece.len));
        if !first && !self.first && self.waiting.len() == PIECES_MAX {
            return Told::Refused(Refusal::Full, vec![item]);
        }
        let beyond_end = self.total.is_some_and(|total| end > total || !piece.more);
        let before_what_came = !piece.more && self.ends.iter().any(|seen| *seen > end);
        if beyond_end || before_what_came || (start..end).any(|byte| self.bytes.contains_key(&byte)) {
            self.refused = true;
            let mut dropped = vec![item];
            dropped.append(&mut self.waiting);
            return Told::Refused(Refusal::Overlap, dropped);
        }
        self.bytes.extend((start..end).map(|byte| (byte, ())));
        self.ends.push(end);
        if !piece.more {
            self.total = Some(end);
        }
        self.first |= first;
        if !self.first {
            self.waiting.push(item);
            return Told::Held;
        }
        let mut passed = vec![item];
        passed.append(&mut self.waiting);
        Told::Pass(passed)
    }

    fn complete(&self) -> bool {
        self.first && self.total.is_some_and(|total| self.bytes.len() == total as usize)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Arrive { n: u8, offset: u16, len: u16, more: bool },
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let arrive = (0..4u8, 0..12u16, 1..4u16, prop::bool::weighted(0.8)).prop_map(|(n, offset, len, more)| Op::Arrive {
        n,
        offset: offset * 8,
        len: len * 8,
        more,
    });
    prop_oneof![9 => arrive, 1 => (0..WAIT_NS).prop_map(Op::Wait)]
}

proptest! {
    #[test]
    fn fragments_do_what_the_naive_model_says(seed: u64, ops in prop::collection::vec(op(), 0..200)) {
        let mut table = Fragments::new([seed, 1]);
        let mut naive: BTreeMap<u8, Naive> = BTreeMap::new();
        let mut now_ns = 5;
        for (item, op) in (0..).zip(ops) {
            match op {
                Op::Wait(time_ns) => {
                    now_ns += time_ns;
                    let mut expired = Vec::new();
                    table.expire(now_ns, |item| expired.push(item));
                    let mut expected = Vec::new();
                    naive.retain(|_, known| {
                        let stays = now_ns - known.since_ns < WAIT_NS;
                        if !stays {
                            expected.append(&mut known.waiting);
                        }
                        stays
                    });
                    expired.sort_unstable();
                    expected.sort_unstable();
                    prop_assert_eq!(expired, expected);
                }
                Op::Arrive { n, offset, len, more } => {
                    let piece = Piece { offset, len, more };
                    let known = naive.entry(n).or_insert_with(|| Naive { since_ns: now_ns, ..Naive::default() });
                    let expected = known.arrive(piece, offset == 0, item);
                    if known.complete() {
                        naive.remove(&n);
                    }
                    prop_assert_eq!(arrive(&mut table, n, piece, offset == 0, item, now_ns), expected);
                }
            }
            prop_assert_eq!(table.waiting(), naive.values().map(|known| known.waiting.len()).sum::<usize>());
            prop_assert_eq!(table.is_empty(), naive.is_empty());
        }
        let mut left = Vec::new();
        table.drain(|item| left.push(item));
        let mut expected: Vec<u32> = naive.into_values().flat_map(|known| known.waiting).collect();
        left.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(left, expected);
        prop_assert!(table.is_empty() && table.waiting() == 0);
    }
}

fn later(at: u16) -> Piece {
    Piece { offset: 8 + 16 * at, len: 8, more: true }
}

#[test]
fn a_thousand_datagrams_are_known_and_the_oldest_make_room_by_time_alone() {
    // N-060
    let mut table = Fragments::new([3, 4]);
    let of = |n: u16| FragmentKey { id: n.into(), ..key(1) };
    let first = Piece { offset: 0, len: 8, more: true };
    for n in 0..DATAGRAMS_MAX {
        let outcome = table.arrive(&of(n), first, Some(PORTS), n, u64::from(n));
        assert!(matches!(outcome, Outcome::Pass(..)), "{n}");
    }
    let refused = table.arrive(&of(5000), first, Some(PORTS), 1, 2000);
    assert!(matches!(refused, Outcome::Refused(1, Refusal::Full, _)));
    // Those that are known are followed all the same.
    assert!(matches!(table.arrive(&of(7), later(0), None, 2, 2000), Outcome::Pass(2, PORTS, _)));
    table.expire(WAIT_NS, |_| panic!("nobody waits"));
    assert!(matches!(table.arrive(&of(5000), first, Some(PORTS), 3, WAIT_NS), Outcome::Pass(..)));
    assert!(matches!(table.arrive(&of(5001), first, Some(PORTS), 4, WAIT_NS), Outcome::Refused(4, Refusal::Full, _)));
    // A datagram that has come makes room at once.
    let last = Piece { offset: 8, len: 0, more: false };
    assert!(matches!(table.arrive(&of(8), last, None, 5, WAIT_NS), Outcome::Pass(..)));
    assert!(matches!(table.arrive(&of(5001), first, Some(PORTS), 6, WAIT_NS), Outcome::Pass(..)));
}

#[test]
fn frames_that_wait_are_bounded_in_all_and_nothing_allocates() {
    // N-015 (RFC 4787 REQ-14a)
    let mut table = Fragments::new([5, 6]);
    let room = (table.datagrams.capacity(), table.places.capacity());
    let mut held = 0;
    for round in 0..3u64 {
        let mut told = [0; 2];
        for n in 0..100u8 {
            for at in 0..20 {
                match arrive(&mut table, n, later(at), false, 1, round * WAIT_NS) {
                    Told::Held => told[0] += 1,
                    Told::Refused(Refusal::Full, items) => told[1] += items.len(),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(told, [usize::from(WAITING_MAX), 2000 - usize::from(WAITING_MAX)]);
        assert_eq!(table.waiting(), usize::from(WAITING_MAX));
        table.expire((round + 1) * WAIT_NS, |_| held += 1);
    }
    assert_eq!(held, 3 * u32::from(WAITING_MAX));
    assert_eq!(room, (table.datagrams.capacity(), table.places.capacity()));
}

#[test]
fn the_key_is_everything_that_fragments_have_in_common() {
    let base = key(1);
    let mut table = Fragments::new([7, 8]);
    let first = Piece { offset: 0, len: 8, more: true };
    assert!(matches!(table.arrive(&base, first, Some(PORTS), 0, 0), Outcome::Pass(..)));
    for other in [
        FragmentKey { source: [2; 16], ..base },
        FragmentKey { destination: [2; 16], ..base },
        FragmentKey { id: 2, ..base },
        FragmentKey { protocol: 6, ..base },
        FragmentKey { domain: 0, ..base },
    ] {
        assert_eq!(table.arrive(&other, later(0), None, 1, 0), Outcome::Held, "{other:?}");
        assert_ne!(base.hash(&table.keys), other.hash(&table.keys));
    }
    assert!(matches!(table.arrive(&base, later(0), None, 1, 0), Outcome::Pass(1, PORTS, _)));
}
