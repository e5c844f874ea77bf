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
//! - **Tags apart from entries.** A slot is 16 bits of tag, 32 of entry and two marks; a bucket keeps the eight tags side by
//!   side in two words, so that all are compared by a dozen plain instructions without a branch, on any processor.
//!   Price: an equal tag of a stranger once in ten thousand lookups, which costs a look at the wrong entry.
//!
//! When both buckets of a new key are full, a breadth-first search finds the shortest chain of moves that makes room,
//! looking at [`DISPLACE_BUCKETS_MAX`] buckets at most. With eight slots and two choices that search begins to fail
//! above 99 % of all slots; the promise is 95 %.

use std::io;

use arrayvec::ArrayVec;
use tidegate_io::mem::{HugePages, LANE_BITS, Slab, equal_lanes};
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

/// Mark of a slot: it leads to the reply direction of its entry.
const REPLY: u8 = 1;
/// Mark of a slot: its key is in its second bucket.
const SECOND: u8 = 2;

/// Eight slots in one cache line.
#[derive(Debug, FromZeros)]
#[repr(C, align(64))]
struct Bucket {
    /// Four tags a word, the first lowest. No key has the tag 0: it says that the slot is free.
    tags: [u64; 2],
    entries: [u32; SLOTS],
    marks: [u8; SLOTS],
    /// Number of keys whose first bucket this is and that are in their second.
    spilled: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64);

/// Bits of one tag in a word of four.
const TAG_BITS: usize = 16;

/// A set of slots: slot `s` is bit `s * LANE_BITS`.
#[derive(Clone, Copy)]
struct Places(u64);

impl Iterator for Places {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some((bit / LANE_BITS) as usize)
    }
}

impl Bucket {
    /// The slots with this tag.
    #[inline(always)]
    fn places(&self, tag: u16) -> Places {
        Places(equal_lanes(&self.tags, tag))
    }

    #[inline(always)]
    fn slot(&self, at: usize) -> Slot {
        let direction = if self.marks[at] & REPLY == 0 { Direction::Original } else { Direction::Reply };
        Slot { entry: self.entries[at], direction }
    }

    fn tag(&self, at: usize) -> u16 {
        (self.tags[at / 4] >> (at % 4 * TAG_BITS) & 0xffff) as u16
    }

    fn free_slot(&self) -> Option<usize> {
        self.places(0).next()
    }

    fn set_tag(&mut self, at: usize, tag: u16) {
        let (word, shift) = (&mut self.tags[at / 4], at % 4 * TAG_BITS);
        *word = *word & !(0xffff << shift) | u64::from(tag) << shift;
    }

    fn set(&mut self, at: usize, key: Key) {
        self.set_tag(at, key.tag);
        self.entries[at] = key.entry;
        self.marks[at] = key.marks;
    }

    fn take(&mut self, at: usize) -> Key {
        let key = Key { tag: self.tag(at), entry: self.entries[at], marks: self.marks[at] };
        self.set_tag(at, 0);
        key
    }
}

/// What is in an occupied slot.
#[derive(Clone, Copy)]
struct Key {
    tag: u16,
    entry: u32,
    marks: u8,
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
    /// The key is probably this one (a stranger's tag is equal once in ten thousand lookups or so).
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
        let (at, tag) = (self.first(hash), tag(hash));
        let bucket = self.buckets.at(at);
        if let Some(place) = bucket.places(tag).next() {
            return Probe::Likely(bucket.slot(place));
        }
        if bucket.spilled == 0 {
            return Probe::Absent;
        }
        self.buckets.prefetch(self.other(at, tag));
        Probe::Spilled
    }

    /// Reads the second bucket of a key that [`probe`](Self::probe) called spilled; nothing if it is not in the index.
    #[inline(always)]
    #[must_use]
    pub fn probe_second(&self, hash: u64) -> Option<Slot> {
        let tag = tag(hash);
        let bucket = self.buckets.at(self.other(self.first(hash), tag));
        bucket.places(tag).next().map(|place| bucket.slot(place))
    }

    /// The first slot with the tag of `hash` that `is_it` accepts, in both buckets.
    #[inline]
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(Slot) -> bool) -> Option<Slot> {
        let (first, tag) = (self.first(hash), tag(hash));
        let mut find_in = |bucket: &Bucket| {
            let mut slots = bucket.places(tag).map(|place| bucket.slot(place));
            slots.find(|slot| is_it(*slot))
        };
        let bucket = self.buckets.at(first);
        find_in(bucket).or_else(|| {
            if bucket.spilled == 0 {
                return None;
            }
            find_in(self.buckets.at(self.other(first, tag)))
        })
    }

    /// Adds a key. Equal keys may be added more than once; it is the caller who knows better.
    ///
    /// # Errors
    ///
    /// [`IndexFull`] if a bounded search finds no room; keys may have been moved then, none is lost.
    pub fn insert(&mut self, hash: u64, slot: Slot) -> Result<(), IndexFull> {
        let first = self.first(hash);
        let marks = if slot.direction == Direction::Reply { REPLY } else { 0 };
        let key = Key { tag: tag(hash), entry: slot.entry, marks };
        let bucket = self.buckets.at_mut(first);
        if let Some(at) = bucket.free_slot() {
            bucket.set(at, key);
            return Ok(());
        }
        let second = self.other(first, key.tag);
        let (bucket, at) = match self.buckets.at(second).free_slot() {
            Some(at) => (second, at),
            None => self.displace(first, second).ok_or(IndexFull)?,
        };
        if bucket == first {
            self.buckets.at_mut(first).set(at, key);
        } else {
            self.buckets.at_mut(second).set(at, Key { marks: marks | SECOND, ..key });
            self.buckets.at_mut(first).spilled += 1;
        }
        Ok(())
    }

    /// Takes out the key that leads to `slot`; whether it was there.
    pub fn remove(&mut self, hash: u64, slot: Slot) -> bool {
        let (first, tag) = (self.first(hash), tag(hash));
        if self.remove_from(first, tag, 0, slot) {
            return true;
        }
        let removed = self.remove_from(self.other(first, tag), tag, SECOND, slot);
        if removed {
            self.unspill(first);
        }
        removed
    }

    fn remove_from(&mut self, at: u32, tag: u16, second: u8, slot: Slot) -> bool {
        let bucket = self.buckets.at_mut(at);
        let is_it = |place: &usize| bucket.slot(*place) == slot && bucket.marks[*place] & SECOND == second;
        let Some(place) = bucket.places(tag).find(is_it) else { return false };
        bucket.set_tag(place, 0);
        true
    }

    /// A key of this bucket is no longer in its second one.
    fn unspill(&mut self, first: u32) {
        let bucket = self.buckets.at_mut(first);
        debug_assert!(bucket.spilled > 0);
        bucket.spilled = bucket.spilled.saturating_sub(1);
    }

    #[inline(always)]
    fn first(&self, hash: u64) -> u32 {
        reduce((hash >> 32) as u32, self.count)
    }

    /// The other bucket of a key with the tag of `tag` that sits in `bucket`.
    #[inline(always)]
    fn other(&self, bucket: u32, tag: u16) -> u32 {
        // The multiplier is the golden ratio: the tags divide the range of sums evenly.
        let sum = reduce(u32::from(tag).wrapping_mul(0x9e37_79b1), self.count);
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
            let others: [u32; SLOTS] =
                std::array::from_fn(|slot| self.other(bucket, self.buckets.at(bucket).tag(slot)));
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
        let key = self.buckets.at_mut(from.0).take(from.1);
        debug_assert_eq!(self.other(from.0, key.tag), to.0);
        if key.marks & SECOND == 0 {
            self.buckets.at_mut(from.0).spilled += 1;
        } else {
            self.unspill(to.0);
        }
        self.buckets.at_mut(to.0).set(to.1, Key { marks: key.marks ^ SECOND, ..key });
    }

    /// Occupied slots, and those among them in their second bucket. Reads everything.
    #[cfg(test)]
    pub(super) fn occupied(&self) -> (u64, u64) {
        let mut counts = (0, 0);
        for bucket in self.buckets.rows() {
            for at in (0..SLOTS).filter(|at| bucket.tag(*at) != 0) {
                counts.0 += 1;
                counts.1 += u64::from(bucket.marks[at] & SECOND != 0);
            }
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

/// The tag of a key: bits that do not choose its first bucket, and not 0.
#[inline(always)]
const fn tag(hash: u64) -> u16 {
    let tag = (hash & 0xffff) as u16;
    if tag == 0 { 1 } else { tag }
}

/// `value` scaled from 0..2^32 to 0..`range`: a multiplication where a remainder would do (Lemire 2019).
#[inline(always)]
const fn reduce(value: u32, range: u32) -> u32 {
    ((value as u64 * range as u64) >> 32) as u32
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

    /// Every bucket knows how many keys spilled from it.
    fn check(index: &Index) {
        let mut spilled = HashMap::<u32, u32>::new();
        for at in 0..index.count {
            let bucket = index.buckets.at(at);
            for slot in (0..SLOTS).filter(|slot| bucket.tag(*slot) != 0 && bucket.marks[*slot] & SECOND != 0) {
                *spilled.entry(index.other(at, bucket.tag(slot))).or_default() += 1;
            }
        }
        for at in 0..index.count {
            assert_eq!(index.buckets.at(at).spilled, spilled.get(&at).copied().unwrap_or(0), "bucket {at}");
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
                bits & !0xffff_ffff | bits & ((1 << tag_bits) - 1)
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
                    let likely = match index.probe(hash) {
                        Probe::Absent => None,
                        Probe::Likely(slot) => Some(slot),
                        Probe::Spilled => index.probe_second(hash),
                    };
                    match likely {
                        None => prop_assert_eq!(found, None),
                        Some(slot) => prop_assert!(known.contains_key(&slot.entry)),
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
    fn keys_of_one_first_bucket_spill_all_over_and_come_back() {
        let mut index = index(4_000);
        let hash = |key: u32| 0x8000_0000_0000_0000 | u64::from(key);
        for key in 0..3_000 {
            index.insert(hash(key), slot(key)).unwrap();
        }
        let first = index.first(hash(0));
        assert_eq!(index.buckets.at(first).spilled, 3_000 - 8);
        check(&index);
        for key in 0..3_000 {
            assert_eq!(index.find(hash(key), |found| found.entry == key), Some(slot(key)));
        }
        for key in 0..3_000 {
            assert!(index.remove(hash(key), slot(key)));
            assert!(!index.remove(hash(key), slot(key)));
        }
        assert_eq!((index.occupied(), index.probe(hash(0))), ((0, 0), Probe::Absent));
    }

    #[test]
    fn all_tags_of_a_bucket_are_compared_and_no_other_bit() {
        let mut bucket = Bucket::new_zeroed();
        assert_eq!(bucket.places(0).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7]);
        for (at, tag) in [1, 0x8000, 0xffff, 1, 0x7fff, 0x8001, 0x0100, 1].into_iter().enumerate() {
            bucket.set(at, Key { tag, entry: 0, marks: 0xff });
        }
        (bucket.entries, bucket.spilled) = ([0x0001_0001; 8], u32::MAX);
        for tag in 0..=u16::MAX {
            let found: Vec<usize> = bucket.places(tag).collect();
            let expected: Vec<usize> = (0..SLOTS).filter(|at| bucket.tag(*at) == tag).collect();
            assert_eq!(found, expected, "{tag:#x}");
        }
        assert_eq!(bucket.take(5).tag, 0x8001);
        assert_eq!(bucket.free_slot(), Some(5));
    }

    #[test]
    fn the_other_bucket_of_the_other_bucket_is_the_first() {
        for flows_max in [1, 2, 5, 64, 100, 12_345, 1 << 20] {
            let index = index(flows_max);
            let mut random = random(flows_max.into());
            for _ in 0..1_000 {
                let hash = random();
                let first = index.first(hash);
                let second = index.other(first, tag(hash));
                assert!(first < index.count && second < index.count);
                assert_eq!(index.other(second, tag(hash)), first);
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
