//! A function of a number that is constant between few places: the longest-prefix structure.
//!
//! Prefixes with exceptions, nested as they like, come down to disjoint ranges of addresses, and ranges to the places
//! where the value changes. To find the range of an address is to count the places that are not above it. A binary search
//! would do, in as many dependent reads as ten thousand places have bits. Here a read leads near the place at once: what
//! lies between the first place and the last is cut into as many equal slots as there are half as many places, and a slot
//! says where its places begin. Eight neighbours are then compared without a branch. Ten places take the latter alone.
//!
//! Where places crowd, a slot leads to another cut of its own. There cannot be many below each other, since a cut makes
//! numbers shorter by the bits of its slots: a crowd that was made to be as deep as possible costs some thirty reads, and
//! memory in proportion to its places. Kind: table.

/// Places that are compared at once.
const WINDOW: usize = 8;
/// A slot that leads to another cut; the rest of it is the cut's number. Others say where their places begin.
const CUT: u32 = 1 << 31;
/// Bits of a cut's slots.
const SLOT_BITS_MIN: u32 = 4;
const SLOT_BITS_MAX: u32 = 16;
/// Slots that there may be in any case; beyond, there may be [`SLOTS_PER_PLACE_MAX`] for each place.
const SLOTS_MIN: usize = 1 << 20;
const SLOTS_PER_PLACE_MAX: usize = 4;

/// A number that steps are taken along.
pub trait Number: Copy + Ord {
    /// The largest one.
    const MAX: Self;
    /// How many bits it has.
    const BITS: u32;
    /// How far it is beyond another; 0 below that.
    fn beyond(self, other: Self) -> Self;
    /// Itself without its last bits, as far as a `usize` goes.
    fn without(self, bits: u32) -> usize;
    /// Bits up to the first one that is set.
    fn length(self) -> u32;
}

macro_rules! number {
    ($type:ty) => {
        impl Number for $type {
            const MAX: Self = <$type>::MAX;
            const BITS: u32 = <$type>::BITS;
            #[inline]
            fn beyond(self, other: Self) -> Self {
                self.saturating_sub(other)
            }
            #[inline]
            fn without(self, bits: u32) -> usize {
                usize::try_from(self >> bits).unwrap_or(usize::MAX)
            }
            #[inline]
            fn length(self) -> u32 {
                Self::BITS - self.leading_zeros()
            }
        }
    };
}

number!(u32);
number!(u128);

/// A step function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps<K, V> {
    /// Ascending; behind them as many of the largest number as are compared at once.
    places: Box<[K]>,
    /// `values[i]` from the *i*-th place on, counted from 1; `values[0]` below all places. Never empty.
    values: Box<[V]>,
    /// Where everything begins: a slot.
    root: u32,
    cuts: Box<[Cut<K>]>,
    /// Slots of all cuts.
    slots: Box<[u32]>,
}

/// Equal slots of what lies between two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut<K> {
    /// Where the first slot begins.
    from: K,
    /// Bits of a number that make no difference here.
    bits: u32,
    /// Its first and its last slot.
    first: u32,
    last: u32,
}

impl<K: Number, V: Copy + Eq> Steps<K, V> {
    /// The function that is `below` before the first place and has the value of a place from there to the next. Places
    /// ascend; neighbours with one value become one. `None`: it would take too much memory.
    pub fn new(below: V, places: impl IntoIterator<Item = (K, V)>) -> Option<Self> {
        let (mut keys, mut values): (Vec<K>, Vec<V>) = (Vec::new(), vec![below]);
        for (place, value) in places {
            debug_assert!(keys.last().is_none_or(|last| *last < place), "places ascend");
            if values.last() != Some(&value) {
                keys.push(place);
                values.push(value);
            }
        }
        let slots_max = SLOTS_MIN.max(keys.len().saturating_mul(SLOTS_PER_PLACE_MAX)).min(CUT as usize);
        let mut cuts = Cuts { cuts: Vec::new(), slots: Vec::new(), slots_max };
        let root = cuts.lead_to(&keys, 0)?;
        keys.extend([K::MAX; WINDOW]);
        let (places, values) = (keys.into(), values.into());
        Some(Steps { places, values, root, cuts: cuts.cuts.into(), slots: cuts.slots.into() })
    }

    /// The value at a number.
    #[inline]
    pub fn at(&self, number: K) -> V {
        let mut slot = self.root;
        while slot & CUT != 0 {
            let Some(cut) = self.cuts.get((slot & !CUT) as usize) else { break };
            let at = number.beyond(cut.from).without(cut.bits).min((cut.last - cut.first) as usize);
            slot = self.slots.get(cut.first as usize + at).copied().unwrap_or(0);
        }
        let begin = slot as usize;
        let window: &[K; WINDOW] = match self.places.get(begin..).and_then(<[K]>::first_chunk) {
            Some(window) => window,
            None => return self.values[0],
        };
        let not_above = window.iter().map(|place| usize::from(*place <= number)).sum::<usize>();
        // Behind the last place the largest number stands, which is not above itself.
        let at = (begin + not_above).min(self.values.len() - 1);
        self.values.get(at).copied().unwrap_or(self.values[0])
    }

    /// Memory of places, values and slots.
    pub fn bytes(&self) -> usize {
        let places = std::mem::size_of_val(&*self.places) + std::mem::size_of_val(&*self.values);
        places + std::mem::size_of_val(&*self.cuts) + std::mem::size_of_val(&*self.slots)
    }
}

/// Cuts as they are made.
struct Cuts<K> {
    cuts: Vec<Cut<K>>,
    slots: Vec<u32>,
    slots_max: usize,
}

impl<K: Number> Cuts<K> {
    /// A slot that leads to these places, of which the first has that number; `None`: there are too many.
    fn lead_to(&mut self, places: &[K], number: u32) -> Option<u32> {
        let (Some(from), Some(last)) = (places.first().copied(), places.last().copied()) else { return Some(number) };
        if places.len() <= WINDOW {
            return Some(number);
        }
        let length = last.beyond(from).length();
        let wanted = usize::BITS - (places.len() / 2).leading_zeros();
        let slot_bits = wanted.clamp(SLOT_BITS_MIN, SLOT_BITS_MAX).min(length);
        let bits = length - slot_bits;
        let (cut, first) = (self.cuts.len(), self.slots.len());
        let slots = last.beyond(from).without(bits) + 1;
        if first + slots > self.slots_max || number & CUT != 0 {
            return None;
        }
        self.slots.resize(first + slots, 0);
        let index = |at: usize| u32::try_from(at).ok();
        self.cuts.push(Cut { from, bits, first: index(first)?, last: index(first + slots - 1)? });
        let mut begin = 0;
        for slot in 0..slots {
            let here = places[begin..].partition_point(|place| place.beyond(from).without(bits) <= slot);
            let leads = self.lead_to(&places[begin..begin + here], number + index(begin)?)?;
            self.slots[first + slot] = leads;
            begin += here;
        }
        Some(CUT | index(cut)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn agrees<K: Number + std::fmt::Display + std::fmt::Debug>(
        places: &BTreeMap<K, u32>,
        numbers: impl Iterator<Item = K>,
    ) -> Result<Steps<K, u32>, TestCaseError> {
        let steps = Steps::new(99, places.iter().map(|(place, value)| (*place, *value))).unwrap();
        for number in numbers {
            let naive = places.range(..=number).next_back().map_or(99, |(_, value)| *value);
            prop_assert_eq!(steps.at(number), naive, "at {}", number);
        }
        Ok(steps)
    }

    proptest! {
        #[test]
        fn it_is_the_last_place_not_above(places in prop::collection::btree_map(0u32..2000, 0u32..5, 0..600)) {
            agrees(&places, 0..2001)?;
        }

        /// Places of any length in bits crowd about some, and questions are near them.
        #[test]
        fn crowds_are_found_their_way(
            places in prop::collection::btree_map((any::<u128>(), 0u32..128).prop_map(|(it, bits)| it >> bits), 0u32..9, 0..200),
            crowd in any::<u128>(), dense in 0u128..400, far in prop::collection::vec(any::<u128>(), 20),
        ) {
            let mut places = places;
            places.extend((0..dense).map(|it| (crowd.saturating_add(it * 3), (it % 7) as u32)));
            let near: Vec<u128> = places.keys().flat_map(|it| [it.saturating_sub(1), *it, it.saturating_add(1)]).collect();
            agrees(&places, near.into_iter().chain(far).chain([0, u128::MAX]))?;
            let short: BTreeMap<u32, u32> = places.iter().map(|(place, value)| ((place >> 96) as u32, *value)).collect();
            let near: Vec<u32> = short.keys().flat_map(|it| [it.saturating_sub(1), *it, it.saturating_add(1)]).collect();
            agrees(&short, near.into_iter().chain([0, u32::MAX]))?;
        }
    }

    #[test]
    fn every_size_near_those_of_windows_and_cuts_works() {
        for size in (0..40).chain(250..262).chain(4090..4100) {
            let places = (0..size).map(|number| (number * 3 + 1, number % 7 + 100)).collect();
            agrees(&places, (0..size * 3 + 9).chain([u32::MAX])).unwrap();
        }
        assert_eq!(Steps::<u128, u32>::new(4, []).unwrap().at(u128::MAX), 4);
        let steps = Steps::new(0, [(0u128, 1), (u128::MAX, 2)]).unwrap();
        assert_eq!((steps.at(0), steps.at(5), steps.at(u128::MAX - 1), steps.at(u128::MAX)), (1, 1, 1, 2));
    }

    /// Places that double, with a crowd at every one: the deepest there can be.
    #[test]
    fn nothing_grows_beyond_its_places() {
        let crowded =
            |bit: u32| (0..40u128).map(move |it| ((1u128 << bit) + it * 2, bit * 64 + u32::try_from(it).unwrap()));
        let places: BTreeMap<u128, u32> = (8..128).flat_map(crowded).chain([(u128::MAX, 7)]).collect();
        let near: Vec<u128> = places.keys().flat_map(|it| [it - 1, *it, it.saturating_add(1)]).collect();
        let steps = agrees(&places, near.into_iter()).unwrap();
        assert!(steps.slots.len() < 40 * places.len(), "{} slots of {} places", steps.slots.len(), places.len());
        let mut deepest = 0;
        for number in places.keys() {
            let (mut slot, mut depth) = (steps.root, 0);
            while slot & CUT != 0 {
                let cut = steps.cuts[(slot & !CUT) as usize];
                let at = number.beyond(cut.from).without(cut.bits).min((cut.last - cut.first) as usize);
                (slot, depth) = (steps.slots[cut.first as usize + at], depth + 1);
            }
            deepest = deepest.max(depth);
        }
        assert!(deepest <= 33, "{deepest} cuts below each other");
    }
}
