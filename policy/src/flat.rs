//! Identities as keys of an array: a map that is written once and then only read.
//!
//! Open addressing with linear probing at most half full, so that a look-up is one read, rarely two, whatever the number
//! of keys. Identity 0 is nobody's and marks free slots. Kind: table.

/// Values by identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flat<V> {
    /// A power of two of slots; a key of 0 is a free one.
    slots: Box<[(u32, V)]>,
    len: usize,
}

impl<V> Default for Flat<V> {
    fn default() -> Self {
        Flat { slots: Box::default(), len: 0 }
    }
}

impl<V: Copy + Default> Flat<V> {
    /// A map of these entries; of several with one key the first counts, and key 0 is left out.
    pub fn new(entries: impl IntoIterator<Item = (u32, V), IntoIter: ExactSizeIterator>) -> Self {
        let entries = entries.into_iter();
        if entries.len() == 0 {
            return Flat::default();
        }
        let mut slots = vec![(0, V::default()); (entries.len() * 2).next_power_of_two()].into_boxed_slice();
        let mut len = 0;
        for (key, value) in entries.filter(|(key, _)| *key != 0) {
            let slot = seek(&slots, key);
            if slots[slot].0 == 0 {
                slots[slot] = (key, value);
                len += 1;
            }
        }
        Flat { slots, len }
    }

    /// The value of a key.
    #[inline]
    pub fn get(&self, key: u32) -> Option<V> {
        if self.len == 0 || key == 0 {
            return None;
        }
        let (found, value) = self.slots[seek(&self.slots, key)];
        (found == key).then_some(value)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory of the slots.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(&*self.slots)
    }
}

/// The slot that has the key, or the free one where it would be. Half of the slots at least are free.
#[inline]
fn seek<V>(slots: &[(u32, V)], key: u32) -> usize {
    let mask = slots.len() - 1;
    let mut slot = (key.wrapping_mul(0x9e37_79b1) >> 8) as usize & mask;
    while slots[slot].0 != 0 && slots[slot].0 != key {
        slot = (slot + 1) & mask;
    }
    slot
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_tree_holds(entries in prop::collection::vec((0u32..200, any::<u32>()), 0..150), far in any::<u32>()) {
            let flat = Flat::new(entries.clone());
            let mut tree = BTreeMap::new();
            entries.iter().filter(|(key, _)| *key != 0).for_each(|(key, value)| { tree.entry(*key).or_insert(*value); });
            prop_assert_eq!(flat.len(), tree.len());
            for key in (0..200).chain([far]) {
                prop_assert_eq!(flat.get(key), tree.get(&key).copied());
            }
        }
    }
}
