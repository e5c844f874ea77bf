//! Identities as keys of an array: a map that is read often, and copied before it is written.
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

    /// Gives a key a value, which key 0 has never.
    pub fn insert(&mut self, key: u32, value: V) {
        if key == 0 {
            return;
        }
        if (self.len + 1) * 2 > self.slots.len() {
            let room = vec![(0, V::default()); ((self.len + 1) * 4).next_power_of_two()].into_boxed_slice();
            for entry in std::mem::replace(&mut self.slots, room).into_iter().filter(|(key, _)| *key != 0) {
                self.slots[seek(&self.slots, entry.0)] = entry;
            }
        }
        let slot = seek(&self.slots, key);
        self.len += usize::from(self.slots[slot].0 == 0);
        self.slots[slot] = (key, value);
    }

    /// Takes a key out. What had given way to it moves up, so that everything is found where it is sought.
    pub fn remove(&mut self, key: u32) -> Option<V> {
        let value = self.get(key)?;
        let mask = self.slots.len() - 1;
        let mut gap = seek(&self.slots, key);
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            let (other, _) = self.slots[at];
            if other == 0 {
                break;
            }
            let from_home = at.wrapping_sub(home(other, self.slots.len())) & mask;
            if from_home >= at.wrapping_sub(gap) & mask {
                self.slots[gap] = self.slots[at];
                gap = at;
            }
        }
        self.slots[gap] = (0, V::default());
        self.len -= 1;
        Some(value)
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
    let mut slot = home(key, slots.len());
    while slots[slot].0 != 0 && slots[slot].0 != key {
        slot = (slot + 1) & mask;
    }
    slot
}

/// Where a key is sought first among so many slots: by the upper bits of its product, so that keys that follow each other
/// are spread as well as any (Knuth, The Art of Computer Programming 3, 6.4).
#[inline]
fn home(key: u32, slots: usize) -> usize {
    let spread = u64::from(key.wrapping_mul(0x9e37_79b1));
    usize::try_from((spread * slots as u64) >> 32).unwrap_or(0)
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

        #[test]
        fn it_changes_as_a_tree_does(steps in prop::collection::vec((0u32..60, prop::option::of(any::<u32>())), 0..300)) {
            let (mut flat, mut tree) = (Flat::default(), BTreeMap::new());
            for (key, value) in steps {
                match value {
                    Some(value) if key != 0 => { flat.insert(key, value); tree.insert(key, value); }
                    Some(value) => flat.insert(key, value),
                    None => prop_assert_eq!(flat.remove(key), tree.remove(&key)),
                }
                prop_assert_eq!(flat.len(), tree.len());
            }
            for key in 0..60 {
                prop_assert_eq!(flat.get(key), tree.get(&key).copied());
            }
        }
    }
}
