//! Each scheduler against its rule, said naively.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::table::maglev::{Ring, member_key, ring_size};

/// A set of members 0, 1, 2 … with these weights, what they are busy with, and a scheduler at work on it.
struct Bench {
    scheduler: Scheduler,
    set: EndpointSet,
    weights: Weights,
    pointer: Pointer,
    load: RefCell<HashMap<BackendId, Connections>>,
    hash: u64,
    entropy: u64,
}

fn bench(scheduler: Scheduler, weights: &[u16]) -> Bench {
    let member = |n: usize| {
        let [.., high, low] = n.to_be_bytes();
        member_key(&[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low], 80)
    };
    let members: Vec<_> = (0..).zip(weights).map(|(n, weight)| (member(n), *weight)).collect();
    let set = EndpointSet {
        members: (0..u32::try_from(weights.len()).unwrap()).map(|id| BackendId(1000 + id)).collect(),
        ring: Ring::build(&members, ring_size(members.len())).map(Arc::new),
    };
    let weights = Weights::new(weights.iter().copied(), scheduler);
    Bench { scheduler, set, weights, pointer: Pointer::default(), load: RefCell::default(), hash: 0, entropy: 0 }
}

impl Bench {
    fn choose(&mut self) -> Option<usize> {
        let load = &self.load;
        let facts = Facts {
            connections: |backend| load.borrow().get(&backend).copied().unwrap_or_default(),
            pointer: self.pointer,
            hash: self.hash,
            entropy: self.entropy,
        };
        let (at, pointer) = choose(self.scheduler, &self.set, &self.weights, &facts)?;
        self.pointer = pointer.unwrap_or(self.pointer);
        Some(at)
    }

    /// Chooses, and the one chosen has one active connection more.
    fn connect(&mut self) -> usize {
        let at = self.choose().unwrap();
        self.load.borrow_mut().entry(self.set.members[at]).or_default().active += 1;
        at
    }

    fn busy(&mut self, loads: &[(u32, u32)]) {
        let loads = loads.iter().map(|(active, inactive)| Connections { active: *active, inactive: *inactive });
        self.load = RefCell::new(self.set.members.iter().copied().zip(loads).collect());
    }
}

/// The members chosen, as letters.
fn letters(bench: &mut Bench, count: usize) -> String {
    (0..count).map(|_| char::from(b'A' + u8::try_from(bench.connect()).unwrap())).collect()
}

#[test]
fn rr_takes_turns_and_passes_over_who_drains() {
    // L-030
    assert_eq!(letters(&mut bench(Scheduler::Rr, &[1, 9, 3]), 7), "ABCABCA");
    assert_eq!(letters(&mut bench(Scheduler::Rr, &[1, 0, 3]), 5), "ACACA");
    assert_eq!(bench(Scheduler::Rr, &[0, 0]).choose(), None);
}

#[test]
fn wrr_interleaves_as_the_kernel_does() {
    // L-031: "weights 4,3,2 ⇒ A A B A B C A B C"
    assert_eq!(letters(&mut bench(Scheduler::Wrr, &[4, 3, 2]), 18), "AABABCABCAABABCABC");
    assert_eq!(letters(&mut bench(Scheduler::Wrr, &[6, 4]), 10), "AABABAABAB", "steps of the common divisor");
    assert_eq!(letters(&mut bench(Scheduler::Wrr, &[0, 5, 5]), 4), "BCBC");
    assert_eq!(bench(Scheduler::Wrr, &[0]).choose(), None);
}

#[test]
fn wrr_goes_on_when_weights_change() {
    let mut turns = bench(Scheduler::Wrr, &[4, 3, 2]);
    letters(&mut turns, 4);
    for weights in [[1, 1, 1], [9, 3, 6], [65_535, 1, 1]] {
        turns.weights = Weights::new(weights, Scheduler::Wrr);
        let seen = letters(&mut turns, 30);
        assert!(weights != [1, 1, 1] || seen.matches('C').count() == 10, "{seen}");
        assert!(turns.pointer.current >= 1 && turns.pointer.current <= u32::from(turns.weights.max));
    }
}

#[test]
fn the_least_loaded_is_chosen_by_each_rule() {
    let chosen = |scheduler, weights: &[u16], loads: &[(u32, u32)]| {
        let mut bench = bench(scheduler, weights);
        bench.busy(loads);
        bench.choose()
    };
    // L-032: active connections count 256 times; the weight does not count, but 0 is passed over.
    assert_eq!(chosen(Scheduler::Lc, &[1, 1], &[(1, 0), (0, 255)]), Some(1));
    assert_eq!(chosen(Scheduler::Lc, &[1, 1], &[(1, 0), (0, 257)]), Some(0));
    assert_eq!(chosen(Scheduler::Lc, &[0, 1, 9], &[(0, 0), (2, 0), (2, 0)]), Some(1), "the first among equals");
    // L-033
    assert_eq!(chosen(Scheduler::Wlc, &[1, 3], &[(2, 0), (5, 0)]), Some(1));
    assert_eq!(chosen(Scheduler::Wlc, &[1, 3], &[(2, 0), (6, 0)]), Some(0));
    // L-034: an idle one of weight 1 expects 1/1, a busy one of weight 3 expects 2/3.
    assert_eq!(chosen(Scheduler::Sed, &[1, 3], &[(0, 0), (1, 0)]), Some(1));
    // L-035: nobody queues while somebody is idle.
    assert_eq!(chosen(Scheduler::Nq, &[1, 3], &[(0, 0), (1, 0)]), Some(0));
    assert_eq!(chosen(Scheduler::Nq, &[0, 1, 3], &[(0, 0), (1, 0), (1, 0)]), Some(2), "else as sed");
    for scheduler in [Scheduler::Lc, Scheduler::Wlc, Scheduler::Sed, Scheduler::Nq] {
        assert_eq!(chosen(scheduler, &[0, 0], &[(0, 0), (0, 0)]), None);
    }
}

#[test]
fn failover_and_overflow_prefer_the_heaviest() {
    // L-041
    let mut failover = bench(Scheduler::Fo, &[1, 5, 5, 2]);
    assert_eq!(letters(&mut failover, 3), "BBB");
    failover.weights = Weights::new([1, 0, 0, 2], Scheduler::Fo);
    assert_eq!(failover.choose(), Some(3));
    // L-042: no more active connections than the weight before the new one.
    let mut overflow = bench(Scheduler::Ovf, &[1, 2]);
    assert_eq!(letters(&mut overflow, 5), "BBBAA");
    assert_eq!(overflow.choose(), None, "all too busy");
}

#[test]
fn hashing_schedulers_go_by_the_hash_alone() {
    // L-036, L-037
    for scheduler in [Scheduler::Sh, Scheduler::Dh, Scheduler::Mh] {
        let mut hashed = bench(scheduler, &[3, 1, 0]);
        let mut counts = [0u32; 3];
        for n in 0..256u64 {
            hashed.hash = n << 56;
            let first = hashed.choose();
            hashed.connect();
            assert_eq!(hashed.choose(), first, "whatever the load");
            counts[first.unwrap()] += 1;
        }
        assert_eq!(counts[2], 0);
        match scheduler {
            Scheduler::Dh => assert_eq!(counts[0], 171, "one bucket each, the third's go to the first, which is next"),
            Scheduler::Sh => assert_eq!(counts[0], 205, "three buckets and that of the third, of five"),
            _ => assert!((185..=200).contains(&counts[0]), "{scheduler:?} {counts:?}"),
        }
    }
}

#[test]
fn two_choices_keep_a_large_set_even() {
    let weights: Vec<u16> = (0..600).map(|n| if n % 3 == 0 { 0 } else { 1 }).collect();
    let mut large = bench(Scheduler::Lc, &weights);
    let mut draw = crate::state::Entropy::new(7);
    for _ in 0..8_000 {
        large.entropy = draw.draw();
        large.connect();
    }
    let load = large.load.borrow();
    let counts: Vec<u32> =
        large.set.members.iter().map(|member| load.get(member).map_or(0, |load| load.active)).collect();
    assert!(counts.iter().step_by(3).all(|count| *count == 0), "who drains gets nothing");
    let most = counts.iter().max().unwrap();
    assert!(*most <= 20 + 6, "20 on average, the fullest has {most}");
}

/// The rules once more, each as its sentence in the specification says it.
fn expected(scheduler: Scheduler, weights: &[u16], loads: &[(u32, u32)]) -> Option<usize> {
    let open: Vec<usize> = (0..weights.len()).filter(|at| weights[*at] > 0).collect();
    let fewest = |value: &dyn Fn(usize) -> (u64, u64)| {
        // As fractions: a/b < c/d.
        open.iter().copied().reduce(|best, at| {
            let ((a, b), (c, d)) = (value(at), value(best));
            if u128::from(a) * u128::from(d) < u128::from(c) * u128::from(b) { at } else { best }
        })
    };
    let overhead = |at: usize| u64::from(loads[at].0) * 256 + u64::from(loads[at].1);
    let shortest = || fewest(&|at| (u64::from(loads[at].0) + 1, weights[at].into()));
    let heaviest =
        |of: Vec<usize>| of.into_iter().reduce(|best, at| if weights[at] > weights[best] { at } else { best });
    match scheduler {
        Scheduler::Lc => fewest(&|at| (overhead(at), 1)),
        Scheduler::Wlc => fewest(&|at| (overhead(at), weights[at].into())),
        Scheduler::Sed => shortest(),
        Scheduler::Nq => open.iter().copied().find(|at| loads[*at].0 == 0).or_else(shortest),
        Scheduler::Fo => heaviest(open),
        Scheduler::Ovf => heaviest(open.into_iter().filter(|at| loads[*at].0 <= weights[*at].into()).collect()),
        _ => unreachable!("has a pointer or a hash"),
    }
}

/// `wrr` as an endless loop over a list, with nothing clever about it.
struct NaiveTurns {
    at: Option<usize>,
    current: i64,
}

impl NaiveTurns {
    fn next(&mut self, weights: &[u16]) -> usize {
        let greatest = i64::from(*weights.iter().max().unwrap());
        let step = (1..=greatest).rev().find(|d| weights.iter().all(|weight| i64::from(*weight) % d == 0)).unwrap();
        loop {
            let at = match self.at {
                Some(at) if at + 1 < weights.len() => at + 1,
                _ => {
                    // A new pass: the bar is lowered by a step, and put up again at the bottom.
                    self.current -= if self.at.is_some() { step } else { 0 };
                    if self.current <= 0 {
                        self.current = greatest - step + 1;
                    }
                    0
                }
            };
            self.at = Some(at);
            if i64::from(weights[at]) >= self.current {
                return at;
            }
        }
    }
}

proptest! {
    #[test]
    fn rules_equal_their_sentences(
        members in prop::collection::vec((0..6u16, 0..6u32, 0..600u32), 1..12),
        scheduler in prop::sample::select(vec![
            Scheduler::Lc, Scheduler::Wlc, Scheduler::Sed, Scheduler::Nq, Scheduler::Fo, Scheduler::Ovf,
        ]),
    ) {
        let weights: Vec<u16> = members.iter().map(|(weight, ..)| *weight).collect();
        let loads: Vec<(u32, u32)> = members.iter().map(|(_, active, inactive)| (*active, *inactive)).collect();
        let mut bench = bench(scheduler, &weights);
        bench.busy(&loads);
        prop_assert_eq!(bench.choose(), expected(scheduler, &weights, &loads));
    }

    /// L-031: the same turns as the loop, and over a whole cycle each member as often as its weight says.
    #[test]
    fn wrr_equals_the_loop(weights in prop::collection::vec(0..9u16, 1..8)) {
        prop_assume!(weights.iter().any(|weight| *weight > 0));
        let mut bench = bench(Scheduler::Wrr, &weights);
        let mut naive = NaiveTurns { at: None, current: 0 };
        let cycle = weights.iter().map(|weight| usize::from(*weight)).sum::<usize>() / usize::from(bench.weights.gcd);
        let mut counts = vec![0u16; weights.len()];
        for turn in 0..2 * cycle {
            let at = bench.choose().unwrap();
            prop_assert_eq!(at, naive.next(&weights), "turn {}", turn);
            counts[at] += 1;
        }
        let shares: Vec<u16> = weights.iter().map(|weight| 2 * weight / bench.weights.gcd).collect();
        prop_assert_eq!(counts, shares);
    }

    /// L-030: every member that takes new flows is passed exactly once per round.
    #[test]
    fn rr_passes_everybody_once_a_round(weights in prop::collection::vec(0..3u16, 1..12)) {
        let mut bench = bench(Scheduler::Rr, &weights);
        let open: Vec<usize> = (0..weights.len()).filter(|at| weights[*at] > 0).collect();
        for _ in 0..3 {
            for at in &open {
                prop_assert_eq!(bench.choose(), Some(*at));
            }
        }
    }
}
