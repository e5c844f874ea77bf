//! A function of a number that is constant between few places: the longest-prefix structure, and ports.
//!
//! Prefixes with exceptions, nested as they like, come down to disjoint ranges of addresses, and ranges to the places
//! where the value changes. To find the range of an address is to count the places that are not above it. A binary search
//! would do; this is one with sixteen branches: each level reads sixteen neighbouring keys and compares all of them, so
//! that ten thousand prefixes cost four reads where ten cost one or two. The same serves 32-bit and 128-bit addresses and
//! 16-bit ports. Kind: table.

/// Keys of a node, which are compared without a branch.
const WIDTH: usize = 16;

/// A step function with values that are numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps<K> {
    /// `levels[0]` has all places but the first, ascending; level *n* + 1 has every sixteenth of level *n*.
    levels: Vec<Box<[K]>>,
    /// `values[i]` from the *i*-th place on; `values[0]` below all places. Never empty.
    values: Box<[u32]>,
}

impl<K: Copy + Ord> Steps<K> {
    /// The function that has `value` everywhere.
    pub fn constant(value: u32) -> Self {
        Steps { levels: Vec::new(), values: Box::new([value]) }
    }

    /// The function that is `below` before the first place and has the value of a place from there to the next. Places
    /// ascend; neighbours with one value become one.
    pub fn new(below: u32, places: impl IntoIterator<Item = (K, u32)>) -> Self {
        let (mut keys, mut values) = (Vec::new(), vec![below]);
        for (place, value) in places {
            debug_assert!(keys.last().is_none_or(|last| *last < place), "places ascend");
            if values.last() != Some(&value) {
                keys.push(place);
                values.push(value);
            }
        }
        let mut levels = Vec::new();
        while keys.len() > WIDTH {
            let above: Vec<K> = keys.iter().skip(WIDTH - 1).step_by(WIDTH).copied().collect();
            levels.push(std::mem::replace(&mut keys, above).into_boxed_slice());
        }
        levels.push(keys.into_boxed_slice());
        Steps { levels, values: values.into_boxed_slice() }
    }

    /// The value at a number.
    #[inline]
    pub fn at(&self, number: K) -> u32 {
        let mut node = 0;
        for level in self.levels.iter().rev() {
            let from = node * WIDTH;
            let keys = &level[from.min(level.len())..(from + WIDTH).min(level.len())];
            node = from + keys.iter().map(|key| usize::from(*key <= number)).sum::<usize>();
        }
        self.values.get(node).copied().unwrap_or_default()
    }

    /// Ranges of one value.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Never: a function has a value everywhere.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Memory of places and values.
    pub fn bytes(&self) -> usize {
        let keys: usize = self.levels.iter().map(|level| std::mem::size_of_val(&**level)).sum();
        keys + std::mem::size_of_val(&*self.values)
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
        assert_eq!(Steps::<u128>::constant(4).at(u128::MAX), 4);
        let steps = Steps::new(0, [(0u128, 1), (u128::MAX, 2)]);
        assert_eq!((steps.at(0), steps.at(5), steps.at(u128::MAX)), (1, 1, 2));
    }
}
