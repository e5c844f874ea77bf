//! Values by exact key: an open-addressing hash table on [`Rows`].
//!
//! Owns placement of keys: linear probing from a hashed home slot, backward-shift deletion (no tombstones), at most 70 % of
//! the slots taken. It refuses to know what keys mean. Because the slots are rows, one added key copies one or two chunks
//! of a table that another generation shares; only growth rebuilds, and doubles, so that it is rare.
//!
//! The hash is fixed, fast and public: keys come from configured objects, and a packet can only look up. At 70 % a lookup
//! that misses reads six slots on average (Knuth, The Art of Computer Programming 3, section 6.4, linear probing), all in
//! one or two cache lines for 16-byte slots.

use super::rows::{ROWS_PER_CHUNK, Rows};

/// A key: compared whole, hashed by a fixed function.
pub trait Key: Copy + Eq + Default {
    /// Well-mixed bits; the low ones choose the slot.
    fn hash(&self) -> u64;
}

/// A value with one member that means "no value here".
pub trait Value: Copy + Eq {
    /// The value no key has.
    const VACANT: Self;
}

/// Values by exact key. Kind: table. A clone shares all slots.
#[derive(Debug)]
pub struct ExactMap<K, V> {
    slots: Rows<Slot<K, V>>,
    /// Slots less one: a power of two less one, or 0 while there are none.
    mask: u32,
    live: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot<K, V> {
    key: K,
    value: V,
}

impl<K: Key, V: Value> Default for Slot<K, V> {
    fn default() -> Self {
        Slot { key: K::default(), value: V::VACANT }
    }
}

impl<K, V> Clone for ExactMap<K, V> {
    fn clone(&self) -> Self {
        ExactMap { slots: self.slots.clone(), mask: self.mask, live: self.live }
    }
}

impl<K, V> Default for ExactMap<K, V> {
    fn default() -> Self {
        ExactMap { slots: Rows::default(), mask: 0, live: 0 }
    }
}

/// Slots of the smallest table: one chunk.
const SLOTS_MIN: u32 = 512;
const _: () = assert!(SLOTS_MIN as usize == ROWS_PER_CHUNK && SLOTS_MIN.is_power_of_two());

impl<K, V> ExactMap<K, V> {
    /// Chunks of slots that `before` does not have: what the edits since have copied.
    pub fn chunks_copied(&self, before: &Self) -> usize {
        self.slots.chunks_copied(&before.slots)
    }
}

impl<K: Key, V: Value> ExactMap<K, V> {
    /// The value of `key`. Read side: no allocation, at most as many steps as the longest run of taken slots.
    #[inline]
    pub fn get(&self, key: &K) -> Option<V> {
        let mut at = self.home(key);
        // Every table has a vacant slot; the bound is for the reader of this line.
        for _ in 0..=self.mask {
            let slot = self.slots.get(at)?;
            if slot.value == V::VACANT {
                return None;
            }
            if slot.key == *key {
                return Some(slot.value);
            }
            at = (at + 1) & self.mask;
        }
        None
    }

    /// Keys that have a value.
    pub fn len(&self) -> usize {
        self.live as usize
    }

    /// Whether no key has a value.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Every key with its value, in the order of slots (which depends on history).
    pub fn iter(&self) -> impl Iterator<Item = (K, V)> {
        self.slots.iter().filter(|(_, slot)| slot.value != V::VACANT).map(|(_, slot)| (slot.key, slot.value))
    }

    /// Gives `key` a value and returns the one it had; [`Value::VACANT`] removes. Build side: copies one or two chunks.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        if value == V::VACANT {
            return self.remove(&key);
        }
        // 70 %, in integers; an empty table has no slots at all.
        if (u64::from(self.live) + 1) * 10 > self.capacity() * 7 {
            self.rebuild((self.mask + 1).max(SLOTS_MIN / 2) * 2);
        }
        let at = self.find(&key);
        let slot = self.slots.edit(at);
        let before = std::mem::replace(slot, Slot { key, value }).value;
        if before == V::VACANT {
            self.live += 1;
            return None;
        }
        Some(before)
    }

    /// Takes the value from `key`. Build side: copies the chunks of the run of slots behind it, nearly always one.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let before = self.get(key)?;
        let mut hole = self.find(key);
        let mut at = hole;
        // Backward shift: a later slot of the run moves into the hole unless that would put it before its home.
        loop {
            at = (at + 1) & self.mask;
            let Some(slot) = self.slots.get(at).copied().filter(|slot| slot.value != V::VACANT) else { break };
            let from_home = at.wrapping_sub(self.home(&slot.key)) & self.mask;
            let from_hole = at.wrapping_sub(hole) & self.mask;
            if from_home >= from_hole {
                self.slots.set(hole, slot);
                hole = at;
            }
        }
        self.slots.clear(hole);
        self.live -= 1;
        if self.mask >= SLOTS_MIN && u64::from(self.live) * 8 < self.capacity() {
            self.rebuild(self.mask.div_ceil(2));
        }
        Some(before)
    }

    fn capacity(&self) -> u64 {
        self.slots.capacity() as u64
    }

    #[inline]
    fn home(&self, key: &K) -> u32 {
        low(key.hash()) & self.mask
    }

    /// The slot that holds `key`, or the vacant one where it belongs. There are slots, and one of them is vacant.
    fn find(&self, key: &K) -> u32 {
        let mut at = self.home(key);
        while self.slots.get(at).is_some_and(|slot| slot.value != V::VACANT && slot.key != *key) {
            at = (at + 1) & self.mask;
        }
        at
    }

    /// `slots` is a power of two and leaves room.
    fn rebuild(&mut self, slots: u32) {
        let before = std::mem::replace(&mut self.slots, Rows::with_capacity(slots as usize));
        self.mask = slots - 1;
        for (_, slot) in before.iter().filter(|(_, slot)| slot.value != V::VACANT) {
            let at = self.find(&slot.key);
            self.slots.set(at, *slot);
        }
    }
}

/// Two words into one: the folded 128-bit product, each word first masked by a constant with no pattern (digits of pi).
/// One fold of two words that both count upwards leaves a pattern; a second fold of the result does not.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the two halves are taken apart")]
pub fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x243f_6a88_85a3_08d3) * u128::from(b ^ 0x1319_8a2e_0370_7345);
    product as u64 ^ (product >> 64) as u64
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
fn low(hash: u64) -> u32 {
    hash as u32
}

/// The two big-endian words of sixteen bytes.
#[inline]
pub fn words(bytes: &[u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *bytes;
    [u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::from_be_bytes(rest)]
}

impl Key for [u8; 4] {
    #[inline]
    fn hash(&self) -> u64 {
        fold(fold(u64::from(u32::from_be_bytes(*self)), 0), 0)
    }
}

impl Key for [u8; 16] {
    #[inline]
    fn hash(&self) -> u64 {
        let [high, low] = words(self);
        fold(fold(high, low), 0)
    }
}

/// An address with whatever else makes it exact, packed in one word: port and protocol, network identifier, device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tagged<A> {
    /// Address in network order.
    pub address: A,
    /// The rest of the key.
    pub tag: u32,
}

impl Default for Tagged<[u8; 4]> {
    fn default() -> Self {
        Tagged { address: [0; 4], tag: 0 }
    }
}

impl Default for Tagged<[u8; 16]> {
    fn default() -> Self {
        Tagged { address: [0; 16], tag: 0 }
    }
}

impl Key for Tagged<[u8; 4]> {
    #[inline]
    fn hash(&self) -> u64 {
        fold(fold(u64::from(u32::from_be_bytes(self.address)), u64::from(self.tag)), 0)
    }
}

impl Key for Tagged<[u8; 16]> {
    #[inline]
    fn hash(&self) -> u64 {
        let [high, low] = words(&self.address);
        fold(fold(fold(high, u64::from(self.tag)), low), 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// A key whose hash is as bad as it likes: many homes near the end of the table, so that runs wrap around.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    struct Clashing(u16);

    impl Key for Clashing {
        fn hash(&self) -> u64 {
            u64::MAX - u64::from(self.0 % 5)
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    struct Spread(u16);

    impl Key for Spread {
        fn hash(&self) -> u64 {
            fold(u64::from(self.0), 0)
        }
    }

    impl Value for u32 {
        const VACANT: Self = u32::MAX;
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u16, u32),
        Remove(u16),
        Fork,
    }

    fn ops(keys: u16, length: usize) -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            5 => (0..keys, 0..100u32).prop_map(|(key, value)| Op::Insert(key, value)),
            4 => (0..keys).prop_map(Op::Remove),
            1 => Just(Op::Fork),
        ];
        prop::collection::vec(op, 0..length)
    }

    fn check<K: Key + std::hash::Hash + std::fmt::Debug>(ops: Vec<Op>, keys: u16, key: impl Fn(u16) -> K) {
        let mut map = ExactMap::<K, u32>::default();
        let mut oracle = HashMap::<K, u32>::new();
        let mut generations = Vec::new();
        for op in ops {
            match op {
                Op::Insert(k, value) => assert_eq!(map.insert(key(k), value), oracle.insert(key(k), value)),
                Op::Remove(k) => assert_eq!(map.remove(&key(k)), oracle.remove(&key(k))),
                Op::Fork => generations.push((map.clone(), oracle.clone())),
            }
        }
        generations.push((map, oracle));
        for (map, oracle) in generations {
            assert_eq!(map.len(), oracle.len());
            assert_eq!(map.is_empty(), oracle.is_empty());
            assert_eq!(map.iter().collect::<HashMap<_, _>>(), oracle);
            for k in 0..keys {
                assert_eq!(map.get(&key(k)), oracle.get(&key(k)).copied());
            }
        }
    }

    proptest! {
        #[test]
        fn answers_as_a_hash_map_does(ops in ops(40, 300)) {
            check(ops, 40, Spread);
        }

        #[test]
        fn answers_as_a_hash_map_does_when_all_keys_clash(ops in ops(40, 300)) {
            check(ops, 40, Clashing);
        }
    }

    #[test]
    fn grows_and_shrinks_without_losing_a_key() {
        let ops = (0..4000).map(|k| Op::Insert(k, u32::from(k)));
        let ops = ops.chain([Op::Fork]).chain((0..3990).map(Op::Remove)).chain([Op::Fork]);
        check(ops.chain((0..100).map(|k| Op::Insert(k, 1))).collect(), 4000, Spread);
        let mut map = ExactMap::<Spread, u32>::default();
        for k in 0..4000 {
            map.insert(Spread(k), 1);
            assert!(map.len() as u64 * 10 <= map.capacity() * 7, "room is left at {k}");
        }
        assert_eq!(map.capacity(), 8192);
        for k in 0..3990 {
            map.remove(&Spread(k));
        }
        assert_eq!(map.capacity(), 512, "given back once an eighth is used");
    }

    #[test]
    fn vacant_is_no_value_and_an_empty_map_answers() {
        let mut map = ExactMap::<[u8; 16], u32>::default();
        assert_eq!(map.get(&[0; 16]), None);
        assert_eq!(map.remove(&[0; 16]), None);
        assert_eq!(map.insert([0; 16], u32::MAX), None);
        assert!(map.is_empty());
        map.insert([0; 16], 5);
        assert_eq!(map.get(&[0; 16]), Some(5), "the default key is a key like others");
        assert_eq!(map.insert([0; 16], u32::MAX), Some(5));
        assert_eq!(map.get(&[0; 16]), None);
    }

    /// Consecutive addresses and ports, as people allot them, cost no more slots to find than random ones would: 1.83 on
    /// average at 62.5 % (Knuth, section 6.4, formula for linear probing).
    #[test]
    fn keys_as_people_choose_them_are_found_quickly() {
        let v4 = |n: u32| Tagged { address: (0xcb00_7100 + n).to_be_bytes(), tag: 6 << 16 | 443 };
        let v4_ports =
            |n: u32| Tagged { address: (0xcb00_7100 + n / 80).to_be_bytes(), tag: 17 << 16 | (8000 + n % 80) };
        let v6 = |n: u32, shift: u32| {
            let low = u64::from(n) << shift;
            let mut address = [0x20, 1, 0x0d, 0xb8, 0, 0x0f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            address[8..].copy_from_slice(&low.to_be_bytes());
            address
        };
        probes_mean_is_random(v4);
        probes_mean_is_random(v4_ports);
        probes_mean_is_random(|n| v4(n).address);
        probes_mean_is_random(|n| v6(n, 0));
        probes_mean_is_random(|n| v6(n, 16));
        probes_mean_is_random(|n| Tagged { address: v6(n / 80, 0), tag: 6 << 16 | (8000 + n % 80) });
        probes_mean_is_random(|n| Tagged { address: v6(n, 48), tag: 1 });
    }

    fn probes_mean_is_random<K: Key>(key: impl Fn(u32) -> K) {
        let mut map = ExactMap::<K, u32>::default();
        (0..20_480).for_each(|n| assert_eq!(map.insert(key(n), n), None));
        assert_eq!(map.capacity(), 32_768);
        let probes = |n: u32| u64::from(map.find(&key(n)).wrapping_sub(map.home(&key(n))) & map.mask) + 1;
        let total: u64 = (0..20_480).map(probes).sum();
        assert!(total * 100 < 20_480 * 205, "{} slots on average", total as f64 / 20_480.0);
    }

    #[test]
    fn one_more_key_copies_at_most_two_chunks() {
        let mut map = ExactMap::<Tagged<[u8; 4]>, u32>::default();
        let key = |n: u32| Tagged { address: n.to_be_bytes(), tag: 6 << 16 | 80 };
        for n in 0..40_000 {
            map.insert(key(n), n);
        }
        let chunks = map.slots.capacity() / ROWS_PER_CHUNK;
        for n in 40_000..40_200 {
            let before = map.clone();
            map.insert(key(n), n);
            assert!(map.slots.chunks_shared(&before.slots) >= chunks - 2);
            assert_eq!(before.get(&key(n)), None);
        }
    }
}
