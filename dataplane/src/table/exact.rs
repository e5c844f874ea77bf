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

/// Two words into one: the folded 128-bit product, each word first masked by an odd constant with no pattern (digits of pi).
#[inline]
pub fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x243f_6a88_85a3_08d3) * u128::from(b ^ 0x1319_8a2e_0370_7345);
    let [low, high] = [product & u128::from(u64::MAX), product >> 64];
    (low ^ high) as u64
}

#[inline]
fn low(hash: u64) -> u32 {
    (hash & u64::from(u32::MAX)) as u32
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
        fold(u64::from(u32::from_be_bytes(*self)), 0)
    }
}

impl Key for [u8; 16] {
    #[inline]
    fn hash(&self) -> u64 {
        let [high, low] = words(self);
        fold(fold(high, 0), low)
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
        fold(u64::from(u32::from_be_bytes(self.address)), u64::from(self.tag))
    }
}

impl Key for Tagged<[u8; 16]> {
    #[inline]
    fn hash(&self) -> u64 {
        let [high, low] = words(&self.address);
        fold(fold(high, u64::from(self.tag)), low)
    }
}
