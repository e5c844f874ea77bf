//! From a hash to an entry: buckets of one cache line, two choices, and a mark for what spilled.
//!
//! It owns the buckets and who sits in which. It refuses to know tuples: whoever asks compares the entry it is led to.
//!
//! The simple version is a cuckoo hash table with two buckets per key and eight slots per bucket. The tricks, and
//! what each costs:
//!
//! - **Primary first, and a count of what spilled.** A key goes to its second bucket only when the first is full, and
//!   the first one counts that. While its count is zero, a bucket answers "not here" for the whole table, so a miss
//!   costs one line, and so does a hit on whatever did not spill. Price: six bits and, on removal of a spilled key, a
//!   write to its first bucket. (Horton tables and F14 keep a similar mark.)
//! - **The other bucket follows from the slot.** `other = f(tag) - this` modulo the number of buckets is its own
//!   inverse, whatever that number is, so keys are displaced without reading the entries they lead to, and the
//!   number of buckets need not be a power of two. (Partial-key cuckoo hashing, Fan et al., CoNEXT 2014, with a
//!   subtraction in place of the exclusive-or.)
//! - **Tags apart from entries.** The eight 64-bit slots are stored as eight upper halves, then eight lower halves: a
//!   bucket is searched by one or two vector comparisons even where 64-bit ones do not exist.
//!
//! When both buckets of a new key are full, a breadth-first search finds the shortest chain of moves that makes room,
//! looking at [`DISPLACE_BUCKETS_MAX`] buckets at most. With eight slots and two choices that search begins to fail
//! above 99 % of all slots; the promise is 95 %.

use std::io;

use arrayvec::ArrayVec;
use tidegate_io::mem::{HugePages, Slab};
use zerocopy::FromZeros;

use super::Direction;

/// Slots of a bucket.
const SLOTS: usize = 8;
/// Index slots per flow: one for each direction.
pub const SLOTS_PER_FLOW: u32 = 2;
/// Buckets that a search for room looks into; bounds what one insertion can cost.
pub const DISPLACE_BUCKETS_MAX: usize = 512;

/// Tables with fewer buckets get [`SPARE_BUCKETS`] beyond the arithmetic. With very few, too many keys have the same two
/// (or the same one twice); these keep the promise for tables of any size and cost 512 B.
const SMALL_BUCKETS: u64 = 1024;
const SPARE_BUCKETS: u64 = 8;

/// Upper half of a slot, from the top: occupied, 23 bits of tag, direction, "in its second bucket", and in the
/// first slot of a bucket the number of keys that spilled from it.
const OCCUPIED: u32 = 1 << 31;
const TAG: u32 = OCCUPIED - REPLY * 2;
const REPLY: u32 = 1 << 7;
const SECOND: u32 = 1 << 6;
const SPILLED: u32 = SECOND - 1;
const _: () = assert!((TAG & (REPLY | SECOND | SPILLED)) == 0 && (TAG | OCCUPIED).count_ones() == 24);

/// Eight slots in one cache line.
#[derive(Debug, FromZeros)]
#[repr(C, align(64))]
struct Bucket {
    tags: [u32; SLOTS],
    entries: [u32; SLOTS],
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    /// Bit i says that slot i is occupied by a key with the tag of `wanted`.
    #[inline(always)]
    fn matching(&self, wanted: u32) -> u32 {
        let mut found = 0;
        for (at, tag) in self.tags.iter().enumerate() {
            found |= u32::from(tag & (OCCUPIED | TAG) == wanted) << at;
        }
        found
    }

    #[inline(always)]
    fn slot(&self, at: usize) -> Slot {
        let at = at % SLOTS;
        let direction = if self.tags[at] & REPLY == 0 { Direction::Original } else { Direction::Reply };
        Slot { entry: self.entries[at], direction }
    }

    /// Number of keys whose first bucket this is and that are elsewhere; the maximum means "that or more".
    #[inline(always)]
    fn spilled(&self) -> u32 {
        self.tags[0] & SPILLED
    }

    fn free_slot(&self) -> Option<usize> {
        self.tags.iter().position(|tag| tag & OCCUPIED == 0)
    }

    fn set(&mut self, at: usize, tag: u32, entry: u32) {
        self.tags[at] = tag & !SPILLED | self.tags[at] & SPILLED;
        self.entries[at] = entry;
    }

    fn clear(&mut self, at: usize) {
        self.tags[at] &= SPILLED;
    }

    fn spill(&mut self) {
        if self.spilled() < SPILLED {
            self.tags[0] += 1;
        }
    }

    /// Undoes one [`spill`](Self::spill). A count that ever reached its maximum stays there: it no longer knows.
    fn unspill(&mut self) {
        debug_assert!(self.spilled() > 0);
        if (1..SPILLED).contains(&self.spilled()) {
            self.tags[0] -= 1;
        }
    }
}

/// What a slot leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Row of the entry.
    pub entry: u32,
    /// Which of the entry's directions was indexed here.
    pub direction: Direction,
}

/// What one line of the index says about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// The key is not in the index.
    Absent,
    /// The key is probably this one (a stranger's tag is equal once in 2^20 lookups or so).
    Likely(Slot),
    /// The first bucket has no such tag, but keys spilled from it.
    Spilled,
}

/// The index found no room for a key within its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexFull;

/// The index of a flow table.
#[derive(Debug)]
pub struct Index {
    buckets: Slab<Bucket>,
    count: u32,
}

impl Index {
    /// An index with [`SLOTS_PER_FLOW`] slots for each of `flows_max` flows, at least.
    ///
    /// # Errors
    ///
    /// What mmap(2) reports.
    pub fn new(flows_max: u32, huge: HugePages) -> io::Result<Index> {
        let slots = u64::from(flows_max) * u64::from(SLOTS_PER_FLOW);
        let count = slots.div_ceil(SLOTS as u64);
        let count = count + if count < SMALL_BUCKETS { SPARE_BUCKETS } else { 0 };
        let count = u32::try_from(count).map_err(io::Error::other)?;
        Ok(Index { buckets: Slab::new(count, huge)?, count })
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> u64 {
        u64::from(self.count) * SLOTS as u64
    }

    /// Starts to load the line that [`probe`](Self::probe) reads.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        self.buckets.prefetch(self.first(hash));
    }

    /// Reads one bucket. A key that spilled has its second bucket on the way when this returns.
    #[inline(always)]
    #[must_use]
    pub fn probe(&self, hash: u64) -> Probe {
        let (at, wanted) = (self.first(hash), wanted(hash));
        let bucket = self.buckets.at(at);
        let found = bucket.matching(wanted);
        if found != 0 {
            return Probe::Likely(bucket.slot(found.trailing_zeros() as usize));
        }
        if bucket.spilled() == 0 {
            return Probe::Absent;
        }
        self.buckets.prefetch(self.other(at, wanted));
        Probe::Spilled
    }

    /// The first slot with the tag of `hash` that `is_it` accepts, in both buckets.
    #[inline]
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(Slot) -> bool) -> Option<Slot> {
        let (first, wanted) = (self.first(hash), wanted(hash));
        let bucket = self.buckets.at(first);
        if let Some(slot) = find_in(bucket, wanted, &mut is_it) {
            return Some(slot);
        }
        if bucket.spilled() == 0 {
            return None;
        }
        find_in(self.buckets.at(self.other(first, wanted)), wanted, &mut is_it)
    }

    /// Adds a key. Equal keys may be added more than once; it is the caller who knows better.
    ///
    /// # Errors
    ///
    /// [`IndexFull`] if a bounded search finds no room; keys may have been moved then, none is lost.
    pub fn insert(&mut self, hash: u64, slot: Slot) -> Result<(), IndexFull> {
        let first = self.first(hash);
        let tag = wanted(hash) | if slot.direction == Direction::Reply { REPLY } else { 0 };
        if let Some(at) = self.buckets.at(first).free_slot() {
            self.buckets.at_mut(first).set(at, tag, slot.entry);
            return Ok(());
        }
        let second = self.other(first, tag);
        let (bucket, at) = match self.buckets.at(second).free_slot() {
            Some(at) => (second, at),
            None => self.displace(first, second).ok_or(IndexFull)?,
        };
        if bucket == first {
            self.buckets.at_mut(first).set(at, tag, slot.entry);
        } else {
            self.buckets.at_mut(second).set(at, tag | SECOND, slot.entry);
            self.buckets.at_mut(first).spill();
        }
        Ok(())
    }

    /// Takes out the key that leads to `slot`; whether it was there.
    pub fn remove(&mut self, hash: u64, slot: Slot) -> bool {
        let (first, wanted) = (self.first(hash), wanted(hash));
        if self.remove_from(first, wanted, 0, slot) {
            return true;
        }
        let removed = self.remove_from(self.other(first, wanted), wanted, SECOND, slot);
        if removed {
            self.buckets.at_mut(first).unspill();
        }
        removed
    }

    fn remove_from(&mut self, at: u32, wanted: u32, second: u32, slot: Slot) -> bool {
        let bucket = self.buckets.at_mut(at);
        for place in ones(bucket.matching(wanted)) {
            if bucket.slot(place) == slot && bucket.tags[place] & SECOND == second {
                bucket.clear(place);
                return true;
            }
        }
        false
    }

    #[inline(always)]
    fn first(&self, hash: u64) -> u32 {
        reduce((hash >> 32) as u32, self.count)
    }

    /// The other bucket of a key with the tag of `tag` that sits in `bucket`.
    #[inline(always)]
    fn other(&self, bucket: u32, tag: u32) -> u32 {
        // The multiplier is the golden ratio: neighbouring tags end up far apart.
        let sum = reduce((tag & TAG).wrapping_mul(0x9e37_79b1), self.count);
        if sum >= bucket { sum - bucket } else { sum + (self.count - bucket) }
    }

    /// Makes room in one of two full buckets; the bucket and its slot that is free now.
    #[cold]
    #[inline(never)]
    fn displace(&mut self, first: u32, second: u32) -> Option<(u32, usize)> {
        let mut steps = ArrayVec::<Step, DISPLACE_BUCKETS_MAX>::new();
        steps.push(Step { bucket: first, parent: None, slot: 0 });
        if second != first {
            steps.push(Step { bucket: second, parent: None, slot: 0 });
        }
        let mut at = 0;
        while at < steps.len() {
            let bucket = steps[at].bucket;
            let others = self.buckets.at(bucket).tags.map(|tag| self.other(bucket, tag));
            for other in others {
                self.buckets.prefetch(other);
            }
            for (slot, other) in others.into_iter().enumerate() {
                if let Some(free) = self.buckets.at(other).free_slot() {
                    return Some(self.shift(&steps, at, slot, (other, free)));
                }
                // A chain that came back to a bucket would be cut short by going another way from there.
                if !steps.is_full() && !chain(&steps, at).any(|step| step.bucket == other) {
                    steps.push(Step { bucket: other, parent: Some(at), slot });
                }
            }
            at += 1;
        }
        None
    }

    /// Moves the keys of a chain, last one first, each into the slot that the one after it left.
    fn shift(&mut self, steps: &[Step], last: usize, slot: usize, free: (u32, usize)) -> (u32, usize) {
        let (mut at, mut slot, mut free) = (last, slot, free);
        loop {
            let step = steps[at];
            self.relocate((step.bucket, slot), free);
            free = (step.bucket, slot);
            let Some(parent) = step.parent else { return free };
            (at, slot) = (parent, step.slot);
        }
    }

    /// Moves one key from its one bucket to a free slot of its other.
    fn relocate(&mut self, from: (u32, usize), to: (u32, usize)) {
        let source = self.buckets.at_mut(from.0);
        let (tag, entry) = (source.tags[from.1] & !SPILLED, source.entries[from.1]);
        source.clear(from.1);
        debug_assert_eq!(self.other(from.0, tag), to.0);
        if tag & SECOND == 0 {
            self.buckets.at_mut(from.0).spill();
        } else {
            self.buckets.at_mut(to.0).unspill();
        }
        self.buckets.at_mut(to.0).set(to.1, tag ^ SECOND, entry);
    }

    /// Occupied slots, and those among them in their second bucket. Reads everything.
    #[cfg(test)]
    pub(super) fn occupied(&self) -> (u64, u64) {
        let mut counts = (0, 0);
        for tag in self.buckets.rows().iter().flat_map(|bucket| bucket.tags) {
            counts.0 += u64::from(tag & OCCUPIED != 0);
            counts.1 += u64::from(tag & OCCUPIED != 0 && tag & SECOND != 0);
        }
        counts
    }
}

/// One bucket that a search for room has reached.
#[derive(Clone, Copy)]
struct Step {
    bucket: u32,
    /// Which step led here, and which of its bucket's slots would move.
    parent: Option<usize>,
    slot: usize,
}

/// The steps from `at` back to where the search began.
fn chain(steps: &[Step], at: usize) -> impl Iterator<Item = &Step> {
    std::iter::successors(steps.get(at), |step| step.parent.and_then(|parent| steps.get(parent)))
}

#[inline(always)]
fn wanted(hash: u64) -> u32 {
    OCCUPIED | ((hash & 0xffff_ffff) as u32 & TAG)
}

/// `value` scaled from 0..2^32 to 0..`range`: a multiplication where a remainder would do (Lemire 2019).
#[inline(always)]
const fn reduce(value: u32, range: u32) -> u32 {
    ((value as u64 * range as u64) >> 32) as u32
}

/// The places of the ones in the lowest eight bits.
#[inline(always)]
fn ones(mut bits: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (bits != 0).then(|| {
            let place = bits.trailing_zeros() as usize % SLOTS;
            bits &= bits - 1;
            place
        })
    })
}

#[inline(always)]
fn find_in(bucket: &Bucket, wanted: u32, is_it: &mut impl FnMut(Slot) -> bool) -> Option<Slot> {
    ones(bucket.matching(wanted)).map(|place| bucket.slot(place)).find(|slot| is_it(*slot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::oracle::random;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn index(flows_max: u32) -> Index {
        Index::new(flows_max, HugePages::Off).unwrap()
    }

    fn slot(entry: u32) -> Slot {
        Slot { entry, direction: if entry.is_multiple_of(2) { Direction::Original } else { Direction::Reply } }
    }

    /// Every bucket knows how many keys spilled from it (or has forgotten for ever).
    fn check(index: &Index) {
        let mut spilled = HashMap::<u32, u32>::new();
        for at in 0..index.count {
            for tag in index.buckets.at(at).tags {
                if tag & OCCUPIED != 0 && tag & SECOND != 0 {
                    *spilled.entry(index.other(at, tag)).or_default() += 1;
                }
            }
        }
        for at in 0..index.count {
            let counted = index.buckets.at(at).spilled();
            assert!(counted == SPILLED || counted == spilled.get(&at).copied().unwrap_or(0), "bucket {at}");
        }
    }

    proptest! {
        /// Keys with few tags and few buckets: collisions of every kind, tables that are full.
        #[test]
        fn an_index_is_a_map(
            flows_max in 1u32..40, tag_bits in 0u32..6, seed: u64,
            ops in prop::collection::vec((0u32..100, prop::bool::weighted(0.6)), 0..300)
        ) {
            let mut index = index(flows_max);
            let mut random = random(seed);
            let hashes: Vec<u64> = (0..100).map(|_| {
                let bits = random();
                bits & !0xffff_ffff | u64::from((bits & 0xffff) as u32 & ((1 << tag_bits) - 1)) << 20
            }).collect();
            let mut known = HashMap::new();
            for (key, is_insert) in ops {
                let (hash, slot) = (hashes[key as usize], slot(key));
                if is_insert && !known.contains_key(&key) {
                    match index.insert(hash, slot) {
                        Ok(()) => { known.insert(key, slot); }
                        // With few tags a key has few places to go.
                        Err(IndexFull) => prop_assert!(known.len() >= SLOTS),
                    }
                } else {
                    prop_assert_eq!(index.remove(hash, slot), known.remove(&key).is_some());
                }
                check(&index);
                prop_assert_eq!(index.occupied().0, known.len() as u64);
                for key in 0..100 {
                    let hash = hashes[key as usize];
                    let found = index.find(hash, |slot| slot.entry == key);
                    prop_assert_eq!(found, known.get(&key).copied());
                    match index.probe(hash) {
                        Probe::Absent => prop_assert_eq!(found, None),
                        Probe::Likely(slot) => prop_assert!(known.contains_key(&slot.entry)),
                        Probe::Spilled => {}
                    }
                }
            }
        }
    }

    #[test]
    fn random_keys_fill_more_than_99_percent() {
        for (seed, flows_max) in [(1, 1 << 16), (2, 1 << 16), (3, 70_001), (4, 99_999), (5, 65_537)] {
            let mut index = index(flows_max);
            let mut random = random(seed);
            let mut entry = 0;
            while index.insert(random(), slot(entry)).is_ok() {
                entry += 1;
            }
            let load = f64::from(entry) / index.slots() as f64;
            assert!(load > 0.99, "seed {seed}: {load}");
            assert_eq!(index.occupied().0, u64::from(entry));
            check(&index);
        }
    }

    #[test]
    fn most_keys_sit_in_their_first_bucket() {
        // What one line answers: the share of spilled keys at loads of 50 %, 80 % and 95 %.
        for (percent, spilled_max) in [(50, 0.03), (80, 0.15), (95, 0.40)] {
            let mut index = index(1 << 14);
            let mut random = random(7);
            let keys = u32::try_from(index.slots() * percent / 100).unwrap();
            for entry in 0..keys {
                index.insert(random(), slot(entry)).unwrap();
            }
            let (occupied, second) = index.occupied();
            let share = second as f64 / occupied as f64;
            assert!(share < spilled_max, "{percent} %: {share}");
        }
    }

    #[test]
    fn a_count_that_overflows_stays_and_nothing_is_lost() {
        let mut index = index(4_000);
        // One first bucket, many tags.
        let hash = |key: u32| 0x8000_0000_0000_0000 | u64::from(key) << 9;
        for key in 0..150 {
            index.insert(hash(key), slot(key)).unwrap();
        }
        let first = index.first(hash(0));
        assert_eq!(index.buckets.at(first).spilled(), SPILLED);
        for key in 0..150 {
            assert_eq!(index.find(hash(key), |found| found.entry == key), Some(slot(key)));
        }
        for key in 0..150 {
            assert!(index.remove(hash(key), slot(key)));
        }
        assert_eq!(index.occupied(), (0, 0));
        assert_eq!(index.buckets.at(first).spilled(), SPILLED);
        assert_eq!(index.find(hash(0), |_| true), None);
    }

    #[test]
    fn the_other_bucket_of_the_other_bucket_is_the_first() {
        for flows_max in [1, 2, 5, 64, 100, 12_345, 1 << 20] {
            let index = index(flows_max);
            let mut random = random(flows_max.into());
            for _ in 0..1_000 {
                let hash = random();
                let first = index.first(hash);
                let second = index.other(first, wanted(hash));
                assert!(first < index.count && second < index.count);
                assert_eq!(index.other(second, wanted(hash)), first);
            }
        }
    }

    #[test]
    fn equal_keys_are_all_found() {
        // Sixteen equal keys fill both buckets; there is no room for one more, and no endless search.
        let mut index = index(1_000);
        let hash = 0x1234_5678_9abc_def0;
        for entry in 0..16 {
            index.insert(hash, slot(entry)).unwrap();
        }
        assert_eq!(index.insert(hash, slot(16)), Err(IndexFull));
        for entry in 0..16 {
            assert_eq!(index.find(hash, |found| found.entry == entry), Some(slot(entry)));
        }
        let mut seen = 0;
        assert_eq!(
            index.find(hash, |_| {
                seen += 1;
                false
            }),
            None
        );
        assert_eq!(seen, 16);
        check(&index);
    }
}
