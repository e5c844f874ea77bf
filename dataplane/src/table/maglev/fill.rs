//! The taking of turns that fills a table.
//!
//! The simple version: a full table of M slots takes about M·ln M steps in all, permutations are walked by addition and never
//! stored, and a slot is asked for in a set of bits (8 KB at M = 65,537) that stays in the first-level cache.
//!
//! One trick: half of those steps search for the last few slots, each walk passing hundreds that are taken. So when about
//! √M/3 are left, a walker no longer tries one slot after another. It asks each free slot how many steps away it is, which is
//! (slot − position) / skip modulo the prime M, and takes the nearest: the same slot, found without the way there. Price: an
//! inverse for each of those last turns.

use siphasher::sip128::SipHasher13;

/// Key of the hash behind offset and skip: the same on every gateway and in every version, since it decides the tables.
const PERMUTATION_KEY: &[u8; 16] = b"tidegate maglev\0";

/// One member on its way through its permutation.
struct Walker {
    /// Slot to try next.
    position: u32,
    /// Slot the permutation begins with.
    offset: u32,
    /// Distance from one preferred slot to the next, 1..M.
    skip: u32,
    /// Weight, as far as turns go.
    weight: u32,
    /// Weight added up since the last turn; below the largest weight.
    accumulated: u32,
}

/// The state between two turns.
struct Table {
    /// Member index of each slot; meaningful where taken.
    slots: Vec<u16>,
    /// One bit per slot.
    taken: Vec<u64>,
    size: u32,
    /// Largest weight: what a member must accumulate for a turn.
    weight_max: u32,
    /// Index of the walker whose turn is next.
    next: usize,
}

/// Member index of every slot, for sorted `members` and a prime `size`; `None` when all weights are 0.
pub(super) fn fill(members: &[(&[u8], u16)], size: u32) -> Option<Vec<u16>> {
    let weight_max = members.iter().map(|(_, weight)| u32::from(*weight)).max().filter(|max| *max > 0)?;
    let mut walkers: Vec<Walker> =
        // L-008: who drains takes its turns as everybody else does, at first.
        members.iter().map(|(key, weight)| Walker::new(key, if *weight == 0 { weight_max } else { u32::from(*weight) }, size)).collect();
    let mut table =
        Table { slots: vec![0; size as usize], taken: vec![0; size.div_ceil(64) as usize], size, weight_max, next: 0 };
    table.take_turns(&mut walkers, size);
    if members.iter().any(|(_, weight)| *weight == 0) {
        for (walker, (_, weight)) in walkers.iter_mut().zip(members) {
            walker.position = walker.offset;
            walker.weight = u32::from(*weight);
        }
        let freed = table.free_slots_of(|member| walkers.get(member).is_some_and(|walker| walker.weight == 0));
        // The order of turns goes on where it stopped, so that shares stay within one slot of each other (L-004).
        table.take_turns(&mut walkers, freed);
    }
    Some(table.slots)
}

impl Table {
    /// Takes turns until `free` more slots are taken. Ends: a walk visits every slot of a prime table, and one weight is the
    /// largest.
    fn take_turns(&mut self, walkers: &mut [Walker], mut free: u32) {
        let scarce = self.size.isqrt() / 3;
        while free > scarce {
            let member = self.next_turn(walkers);
            let slot = walkers[member].walk(&self.taken, self.size);
            self.take(slot, member);
            free -= 1;
        }
        let mut left: Vec<u32> = (0..self.size).filter(|slot| !is_taken(&self.taken, *slot)).collect();
        while !left.is_empty() {
            let member = self.next_turn(walkers);
            let slot = walkers[member].jump(&mut left, self.size);
            self.take(slot, member);
        }
    }

    /// Index of the walker that has the next turn.
    fn next_turn(&mut self, walkers: &mut [Walker]) -> usize {
        loop {
            let member = self.next;
            self.next = if member + 1 == walkers.len() { 0 } else { member + 1 };
            let walker = &mut walkers[member];
            walker.accumulated += walker.weight;
            if walker.accumulated >= self.weight_max {
                walker.accumulated -= self.weight_max;
                return member;
            }
        }
    }

    fn take(&mut self, slot: u32, member: usize) {
        self.taken[slot as usize / 64] |= 1 << (slot % 64);
        self.slots[slot as usize] = u16::try_from(member).unwrap_or(u16::MAX);
    }

    /// Frees the slots of the members that `leaves` names, and counts them.
    fn free_slots_of(&mut self, leaves: impl Fn(usize) -> bool) -> u32 {
        let mut freed = 0;
        for (slot, member) in self.slots.iter().enumerate() {
            if leaves(usize::from(*member)) {
                self.taken[slot / 64] &= !(1 << (slot % 64));
                freed += 1;
            }
        }
        freed
    }
}

impl Walker {
    fn new(key: &[u8], weight: u32, size: u32) -> Walker {
        let (h1, h2) = SipHasher13::new_with_key(PERMUTATION_KEY).hash(key).as_u64();
        let offset = below(h1, size);
        Walker { position: offset, offset, skip: below(h2, size - 1) + 1, weight, accumulated: 0 }
    }

    /// The next free slot of this permutation, found by trying one after another.
    #[inline]
    fn walk(&mut self, taken: &[u64], size: u32) -> u32 {
        loop {
            let slot = self.position;
            let next = slot + self.skip;
            // The smaller of the two, whichever has not wrapped: no branch to guess.
            self.position = next.min(next.wrapping_sub(size));
            if !is_taken(taken, slot) {
                return slot;
            }
        }
    }

    /// The same slot, found by asking each free one in `left` how many steps away it is; it is taken out of `left`, which is
    /// not empty.
    fn jump(&mut self, left: &mut Vec<u32>, size: u32) -> u32 {
        let (modulus, inverse) = (u64::from(size), inverse(self.skip, size));
        let steps = |slot: u32| u64::from(slot + size - self.position) * inverse % modulus;
        let nearest = (0..left.len()).min_by_key(|at| steps(left[*at])).unwrap_or(0);
        let slot = left.swap_remove(nearest);
        let next = slot + self.skip;
        self.position = next.min(next.wrapping_sub(size));
        slot
    }
}

#[inline]
fn is_taken(taken: &[u64], slot: u32) -> bool {
    taken[slot as usize / 64] >> (slot % 64) & 1 == 1
}

/// What `value` times it is 1 modulo a prime: `value^(prime - 2)` (Fermat).
fn inverse(value: u32, prime: u32) -> u64 {
    let (modulus, mut exponent) = (u64::from(prime), prime - 2);
    let (mut power, mut result) = (u64::from(value), 1);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result * power % modulus;
        }
        power = power * power % modulus;
        exponent >>= 1;
    }
    result
}

/// `hash mod bound`, which fits because `bound` does.
fn below(hash: u64, bound: u32) -> u32 {
    u32::try_from(hash % u64::from(bound)).unwrap_or(0)
}
