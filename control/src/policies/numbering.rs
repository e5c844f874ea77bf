//! Numbers of identities: the same on every gateway, whatever came first.
//!
//! A number is a hash of what the identity is. Two identities may want one number; with fifty thousand of them that happens
//! once in a while. The smaller of the two by its text then has it, and the other wants its next hash, and so on. Like that,
//! who has what does not depend on the order in which they came: it is the one assignment in which nobody could have a
//! number he would rather have (Gale and Shapley, College Admissions and the Stability of Marriage, 1962).

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use hashbrown::HashMap;
use siphasher::sip::SipHasher13;

/// Numbers of all that have one.
#[derive(Debug)]
pub(super) struct Numbering<K> {
    holders: HashMap<u32, Arc<K>>,
    /// Number, and how many others were wanted before it.
    numbers: HashMap<Arc<K>, (u32, u32)>,
    /// Those that do not have their first choice.
    displaced: BTreeSet<Arc<K>>,
    /// Bits of a hash that count; fewer than all only in tests, where numbers are to be scarce.
    mask: u32,
}

impl<K> Default for Numbering<K> {
    fn default() -> Self {
        Numbering { holders: HashMap::new(), numbers: HashMap::new(), displaced: BTreeSet::new(), mask: u32::MAX }
    }
}

impl<K: Hash + Ord> Numbering<K> {
    /// Its number.
    pub(super) fn get(&self, key: &K) -> Option<u32> {
        self.numbers.get(key).map(|(number, _)| *number)
    }

    /// Gives it a number. Returns others whose number is another one now.
    pub(super) fn insert(&mut self, key: Arc<K>) -> Vec<Arc<K>> {
        if self.numbers.contains_key(&key) {
            return Vec::new();
        }
        let mut moved = Vec::new();
        let mut seeking = Some((key.clone(), 0));
        while let Some((who, times)) = seeking.take() {
            seeking = self.propose(who.clone(), times);
            if who != key {
                moved.push(who);
            }
        }
        moved.sort();
        moved.dedup();
        moved
    }

    /// Takes its number away. Returns others whose number is another one now: those for whom it had become free.
    pub(super) fn remove(&mut self, key: &K) -> Vec<Arc<K>> {
        let Some((number, _)) = self.numbers.remove(key) else { return Vec::new() };
        self.holders.remove(&number);
        self.displaced.remove(key);
        // All that had to give way choose again; the others have their first choice and keep it, unless one of these is
        // smaller.
        let choosing: Vec<(Arc<K>, u32)> =
            self.displaced.iter().filter_map(|who| Some((who.clone(), self.get(who)?))).collect();
        for (who, number) in &choosing {
            self.numbers.remove(who);
            self.holders.remove(number);
        }
        self.displaced.clear();
        for (who, _) in &choosing {
            let mut seeking = Some((who.clone(), 0));
            while let Some((who, times)) = seeking.take() {
                seeking = self.propose(who, times);
            }
        }
        choosing.into_iter().filter(|(who, before)| self.get(who) != Some(*before)).map(|(who, _)| who).collect()
    }

    /// Asks for its choice after so many others. Returns who has to ask again, and from which of its choices on.
    fn propose(&mut self, who: Arc<K>, times: u32) -> Option<(Arc<K>, u32)> {
        let number = self.choice(&who, times);
        let Some(number) = number else { return Some((who, times + 1)) };
        let loser = match self.holders.get(&number) {
            Some(holder) if **holder < *who => return Some((who, times + 1)),
            Some(holder) => {
                let holder = holder.clone();
                let asked = self.numbers.remove(&holder).map_or(0, |(_, times)| times);
                self.displaced.insert(holder.clone());
                Some((holder, asked + 1))
            }
            None => None,
        };
        if times > 0 {
            self.displaced.insert(who.clone());
        }
        self.holders.insert(number, who.clone());
        self.numbers.insert(who, (number, times));
        loser
    }

    /// What it wants after so many others; `None`: nobody's number.
    fn choice(&self, key: &K, times: u32) -> Option<u32> {
        let mut hasher = SipHasher13::new_with_keys(0x6964_656e, times.into());
        key.hash(&mut hasher);
        let hash = hasher.finish();
        #[allow(clippy::cast_possible_truncation, reason = "half of a hash is a hash")]
        let number = (hash ^ (hash >> 32)) as u32 & self.mask;
        (number != 0).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Fifteen numbers for up to twelve: the outcome is that of any other order, and those that moved are told.
        #[test]
        fn the_order_of_events_does_not_matter(steps in prop::collection::vec((0u8..12, any::<bool>()), 0..60)) {
            let fresh = || Numbering { mask: 15, ..Numbering::default() };
            let (mut numbering, mut present) = (fresh(), BTreeSet::new());
            for (key, comes) in steps {
                let before: Vec<_> = (0..12).map(|key| numbering.get(&key)).collect();
                let moved = match comes {
                    true => { present.insert(key); numbering.insert(Arc::new(key)) }
                    false => { present.remove(&key); numbering.remove(&key) }
                };
                let mut other = fresh();
                present.iter().rev().for_each(|key| drop(other.insert(Arc::new(*key))));
                for it in 0..12u8 {
                    let now = numbering.get(&it);
                    prop_assert_eq!(now, other.get(&it));
                    prop_assert_eq!(now.is_some(), present.contains(&it));
                    if it != key {
                        prop_assert!(now == before[it as usize] || moved.iter().any(|moved| **moved == it));
                    }
                }
            }
        }
    }
}
