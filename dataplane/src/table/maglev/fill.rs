//! The taking of turns that fills a table.
//!
//! A full table of M slots takes about M·ln M steps in all. Permutations are walked by addition and never stored, and a slot
//! is asked for in a set of bits (8 KB at M = 65,537) that stays in the first-level cache.

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
        while free > 0 {
            let member = self.next;
            self.next = if member + 1 == walkers.len() { 0 } else { member + 1 };
            let walker = &mut walkers[member];
            walker.accumulated += walker.weight;
            if walker.accumulated < self.weight_max {
                continue;
            }
            walker.accumulated -= self.weight_max;
            let slot = walker.claim(&mut self.taken, self.size);
            self.slots[slot as usize] = u16::try_from(member).unwrap_or(u16::MAX);
            free -= 1;
        }
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

    /// Takes the next free slot of this permutation.
    fn claim(&mut self, taken: &mut [u64], size: u32) -> u32 {
        loop {
            let slot = self.position;
            let next = slot + self.skip;
            self.position = if next >= size { next - size } else { next };
            let word = &mut taken[slot as usize / 64];
            let bit = 1 << (slot % 64);
            if *word & bit == 0 {
                *word |= bit;
                return slot;
            }
        }
    }
}

/// `hash mod bound`, which fits because `bound` does.
fn below(hash: u64, bound: u32) -> u32 {
    u32::try_from(hash % u64::from(bound)).unwrap_or(0)
}
