//! A slab: a fixed number of rows in one mapping, addressed by `u32`.
//!
//! Rows hold no pointers (an index into a slab is still good when the slab is mapped elsewhere), begin as all zeroes,
//! and cost no memory before they are touched. There is no allocation in it: which rows are in use is known to the
//! table that owns the slab.

use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;

use zerocopy::FromZeros;

use super::{HugePages, Mapping, Pages, prefetch_line};

/// A fixed number of rows of `T`, a power of two, in one zeroed mapping.
///
/// Rows are never dropped, only unmapped.
#[derive(Debug)]
pub struct Slab<T> {
    rows: NonNull<T>,
    mask: u32,
    mapping: Mapping,
    owns: PhantomData<T>,
}

// SAFETY: a slab owns its rows as a `Box<[T]>` would.
unsafe impl<T: Send> Send for Slab<T> {}
// SAFETY: through `&Slab` only `&T` can be had.
unsafe impl<T: Sync> Sync for Slab<T> {}

impl<T: FromZeros> Slab<T> {
    /// Maps a slab of `rows` rows, rounded up to a power of two (at least one, at most 2^31).
    ///
    /// # Errors
    ///
    /// What mmap(2) reports, or that the size or the alignment of `T` cannot be had.
    pub fn new(rows: u32, huge: HugePages) -> io::Result<Slab<T>> {
        let invalid = |text| io::Error::new(io::ErrorKind::InvalidInput, text);
        let capacity = rows.max(1).checked_next_power_of_two().ok_or_else(|| invalid("more than 2^31 rows"))?;
        if align_of::<T>() > 4096 {
            return Err(invalid("rows aligned to more than a page"));
        }
        let bytes = (capacity as usize)
            .checked_mul(size_of::<T>())
            .ok_or_else(|| invalid("slab larger than the address space"))?;
        let mapping = Mapping::new(bytes, huge)?;
        Ok(Slab { rows: mapping.start().cast(), mask: capacity - 1, mapping, owns: PhantomData })
    }

    /// Number of rows: what was asked for, rounded up to a power of two.
    #[inline]
    #[must_use]
    pub fn capacity(&self) -> u32 {
        // At most 2^31, so this does not wrap.
        self.mask + 1
    }

    /// Bytes of the mapping, touched or not.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.mapping.bytes()
    }

    /// What the mapping is made of.
    #[must_use]
    pub fn pages(&self) -> Pages {
        self.mapping.pages()
    }

    /// Row `index`, or nothing if there is no such row.
    #[inline]
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&T> {
        (index <= self.mask).then(|| self.at(index))
    }

    /// Row `index` for writing, or nothing if there is no such row.
    #[inline]
    #[must_use]
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        (index <= self.mask).then(|| self.at_mut(index))
    }

    /// Row `index` modulo the capacity: neither a branch nor a panic.
    #[inline(always)]
    #[must_use]
    pub fn at(&self, index: u32) -> &T {
        // SAFETY: the masked index is below the capacity the mapping was made for; zeroes are a valid `T` (FromZeros);
        // `&self` excludes `&mut T`.
        unsafe { self.rows.add((index & self.mask) as usize).as_ref() }
    }

    /// Row `index` modulo the capacity, for writing.
    #[inline(always)]
    #[must_use]
    pub fn at_mut(&mut self, index: u32) -> &mut T {
        // SAFETY: as in `at`; `&mut self` excludes every other reference.
        unsafe { self.rows.add((index & self.mask) as usize).as_mut() }
    }

    /// Starts to load the first cache line of row `index` modulo the capacity.
    #[inline(always)]
    pub fn prefetch(&self, index: u32) {
        prefetch_line(self.rows.as_ptr().wrapping_add((index & self.mask) as usize).cast());
    }

    /// All rows in order. Touches every page: for tests and for tables that are small.
    #[must_use]
    pub fn rows(&self) -> &[T] {
        // SAFETY: the mapping holds `capacity` valid rows and `&self` excludes `&mut T`.
        unsafe { std::slice::from_raw_parts(self.rows.as_ptr(), self.capacity() as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
    #[repr(C, align(64))]
    struct Row {
        key: u64,
        value: u32,
    }

    #[test]
    fn capacity_is_a_power_of_two_and_rows_start_as_zeroes() {
        for (asked, got) in [(0, 1), (1, 1), (3, 4), (1000, 1024), (1024, 1024)] {
            let slab = Slab::<Row>::new(asked, HugePages::Off).unwrap();
            assert_eq!(slab.capacity(), got);
            assert!(slab.rows().iter().all(|row| *row == Row { key: 0, value: 0 }));
            assert!(slab.get(got).is_none());
            assert!(slab.get(u32::MAX).is_none());
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        assert!(Slab::<Row>::new(u32::MAX, HugePages::Off).is_err());
        assert!(Slab::<[u8; 1 << 40]>::new(1 << 31, HugePages::Off).is_err());
    }

    proptest! {
        /// The oracle is a vector of the same length.
        #[test]
        fn a_slab_is_a_vector_with_wrapping_indices(writes in prop::collection::vec((any::<u32>(), any::<u64>()), 0..200)) {
            let mut slab = Slab::<Row>::new(64, HugePages::Auto).unwrap();
            let mut oracle = vec![Row { key: 0, value: 0 }; 64];
            for (index, key) in writes {
                slab.prefetch(index);
                slab.at_mut(index).key = key;
                oracle[index as usize % 64].key = key;
                prop_assert_eq!(slab.get(index), oracle.get(index as usize));
            }
            prop_assert_eq!(slab.rows(), &oracle[..]);
        }
    }
}
