//! A long array of which little changes at a time.
//!
//! Two levels of shared arrays: a copy costs the spine, a change the chunk it is in. Kind: table.

use std::sync::Arc;

/// Values of one chunk.
const CHUNK: usize = 128;

/// Values by number; one that was never set is the default.
#[derive(Clone, Debug)]
pub(crate) struct Chunks<T> {
    spine: Vec<Arc<[T; CHUNK]>>,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Chunks { spine: Vec::new() }
    }
}

impl<T: Clone + Default> Chunks<T> {
    /// The value of a number, if any near it was ever set.
    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        let number = number as usize;
        self.spine.get(number / CHUNK).map(|chunk| &chunk[number % CHUNK])
    }

    /// All values, also those never set.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.spine.iter().flat_map(|chunk| chunk.iter())
    }

    /// Sets the value of a number.
    pub(crate) fn set(&mut self, number: u32, value: T) {
        let number = number as usize;
        while self.spine.len() <= number / CHUNK {
            self.spine.push(Arc::new(std::array::from_fn(|_| T::default())));
        }
        Arc::make_mut(&mut self.spine[number / CHUNK])[number % CHUNK] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_what_it_had() {
        let mut now: Chunks<u32> = Chunks::default();
        assert_eq!(now.get(0), None);
        now.set(300, 7);
        let before = now.clone();
        now.set(300, 8);
        now.set(5, 9);
        assert_eq!((before.get(300), before.get(5), before.get(1000)), (Some(&7), Some(&0), None));
        assert_eq!((now.get(300), now.get(5)), (Some(&8), Some(&9)));
    }
}
