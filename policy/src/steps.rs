//! A function of a number that is constant between few places: the longest-prefix structure, and ports.
//!
//! Prefixes with exceptions, nested as they like, come down to disjoint ranges of addresses, and ranges to the places
//! where the value changes. To find the range of an address is to count the places that are not above it. A binary search
//! would do; this is one with sixteen branches: each level reads sixteen neighbouring keys and compares all of them, so
//! that ten thousand prefixes cost four reads where ten cost one or two. The same serves 32-bit and 128-bit addresses and
//! 16-bit ports. Kind: table.

/// Keys of a node, which are compared without a branch.
const WIDTH: usize = 16;
/// Levels there can be: sixteen million places.
const LEVELS_MAX: usize = 6;

/// A step function. All places are in one array and all values in another, so that a look-up reads two places of memory
/// and what lies near them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps<K, V> {
    /// Level after level, the top first. The last has all places but the first, ascending; each one above has every
    /// sixteenth of the one below.
    keys: Box<[K]>,
    /// Where each level ends in `keys`.
    ends: [u32; LEVELS_MAX],
    /// `values[i]` from the *i*-th place on; `values[0]` below all places. Never empty.
    values: Box<[V]>,
}

impl<K: Copy + Ord, V: Copy + Eq> Steps<K, V> {
    /// The function that is `below` before the first place and has the value of a place from there to the next. Places
    /// ascend; neighbours with one value become one. Places that are too many to be held have no effect; nobody makes so
    /// many.
    pub fn new(below: V, places: impl IntoIterator<Item = (K, V)>) -> Self {
        let (mut keys, mut values): (Vec<K>, Vec<V>) = (Vec::new(), vec![below]);
        for (place, value) in places.into_iter().take(WIDTH.pow(6)) {
            debug_assert!(keys.last().is_none_or(|last| *last < place), "places ascend");
            if values.last() != Some(&value) {
                keys.push(place);
                values.push(value);
            }
        }
        let mut levels = Vec::new();
        while keys.len() > WIDTH {
            let above: Vec<K> = keys.iter().skip(WIDTH - 1).step_by(WIDTH).copied().collect();
            levels.push(std::mem::replace(&mut keys, above));
        }
        levels.push(keys);
        let (mut keys, mut ends) = (Vec::new(), [0; LEVELS_MAX]);
        for (level, end) in levels.iter().rev().zip(&mut ends) {
            keys.extend(level);
            *end = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        }
        Steps { keys: keys.into(), ends, values: values.into() }
    }

    /// The value at a number.
    #[inline]
    pub fn at(&self, number: K) -> V {
        let (mut node, mut begin) = (0, 0);
        for end in self.ends {
            let end = end as usize;
            if end == 0 {
                break;
            }
            let from = (begin + node * WIDTH).min(end);
            let keys = self.keys.get(from..(from + WIDTH).min(end)).unwrap_or_default();
            node = node * WIDTH + keys.iter().map(|key| usize::from(*key <= number)).sum::<usize>();
            begin = end;
        }
        self.values.get(node).copied().unwrap_or(self.values[0])
    }

    /// Memory of places and values.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(&*self.keys) + std::mem::size_of_val(&*self.values)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn agrees(places: &BTreeMap<u16, u32>, numbers: impl Iterator<Item = u16>) -> Result<(), TestCaseError> {
        let steps = Steps::new(99, places.iter().map(|(place, value)| (*place, *value)));
        for number in numbers {
            let naive = places.range(..=number).next_back().map_or(99, |(_, value)| *value);
            prop_assert_eq!(steps.at(number), naive, "at {}", number);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn it_is_the_last_place_not_above(places in prop::collection::btree_map(0u16..2000, 0u32..5, 0..600)) {
            agrees(&places, 0..2001)?;
        }
    }

    #[test]
    fn every_size_near_the_width_of_a_node_works() {
        for size in (0..40).chain(250..262).chain(4090..4100) {
            let places = (0..size).map(|number| (number * 3 + 1, u32::from(number) % 7 + 100)).collect();
            agrees(&places, (0..size * 3 + 9).chain([u16::MAX])).unwrap();
        }
        assert_eq!(Steps::<u128, u32>::new(4, []).at(u128::MAX), 4);
        let steps = Steps::new(0, [(0u128, 1), (u128::MAX, 2)]);
        assert_eq!((steps.at(0), steps.at(5), steps.at(u128::MAX)), (1, 1, 2));
    }
}
