//! Rows by id, in chunks that generations share.
//!
//! A [`Rows`] is a spine of pointers to chunks of `CHUNK` rows. It owns sharing: a clone shares everything, and the first
//! write to a clone copies the spine and the touched chunk, and nothing else; later writes to the same clone find both
//! already their own. It refuses to know what a row is and whether an id is in use: a row never set is `T::default()`.
//!
//! A read is two dependent loads (spine, chunk) and one comparison; the spine of half a million rows is 8 KB and stays in
//! the first-level cache.

use std::sync::Arc;

/// Rows in a chunk unless told otherwise: a copy of 512 rows of 64 B is 32 KB, a spine of 50,000 rows has 98 entries.
pub const ROWS_PER_CHUNK: usize = 512;

/// Rows by dense id, copy-on-write in chunks of `CHUNK` (a power of two). Kind: table.
#[derive(Debug)]
pub struct Rows<T, const CHUNK: usize = ROWS_PER_CHUNK> {
    spine: Arc<[Arc<[T; CHUNK]>]>,
}

impl<T, const CHUNK: usize> Clone for Rows<T, CHUNK> {
    fn clone(&self) -> Self {
        Rows { spine: Arc::clone(&self.spine) }
    }
}

impl<T, const CHUNK: usize> Default for Rows<T, CHUNK> {
    fn default() -> Self {
        const { assert!(CHUNK.is_power_of_two() && CHUNK <= u32::MAX as usize) };
        Rows { spine: Arc::new([]) }
    }
}

impl<T, const CHUNK: usize> Rows<T, CHUNK> {
    /// The row at `index`; `None` beyond the last chunk. Read side.
    #[inline]
    pub fn get(&self, index: u32) -> Option<&T> {
        let index = index as usize;
        self.spine.get(index / CHUNK).map(|chunk| &chunk[index % CHUNK])
    }

    /// Rows there is room for; every index below it yields a row.
    pub fn capacity(&self) -> usize {
        self.spine.len() * CHUNK
    }

    /// Every row with its index, vacant ones too.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(self.spine.iter().flat_map(|chunk| chunk.iter()))
    }

    /// Chunks that `self` and `other` share; what a copy has saved.
    pub fn chunks_shared(&self, other: &Self) -> usize {
        self.spine.iter().zip(other.spine.iter()).filter(|(mine, theirs)| Arc::ptr_eq(mine, theirs)).count()
    }

    /// Chunks of `self` that `before` does not have: what the edits since have copied.
    pub fn chunks_copied(&self, before: &Self) -> usize {
        self.spine.len() - self.chunks_shared(before)
    }
}

impl<T: Clone + Default, const CHUNK: usize> Rows<T, CHUNK> {
    /// Rows with room for at least `rows`, all vacant and sharing one chunk until written.
    pub fn with_capacity(rows: usize) -> Self {
        let mut made = Rows::default();
        made.grow(rows.div_ceil(CHUNK));
        made
    }

    /// The row at `index` for writing; copies the spine and one chunk where another generation shares them, and grows to
    /// hold `index`. Ids must be dense: memory follows the largest one. Build side.
    pub fn edit(&mut self, index: u32) -> &mut T {
        let index = index as usize;
        if index >= self.capacity() {
            self.grow(index / CHUNK + 1);
        }
        let chunk = &mut Arc::make_mut(&mut self.spine)[index / CHUNK];
        if Arc::get_mut(chunk).is_none() {
            *chunk = collect(chunk.iter().cloned());
        }
        match Arc::get_mut(chunk) {
            Some(rows) => &mut rows[index % CHUNK],
            None => unreachable!("a chunk just made has one owner"),
        }
    }

    /// Writes one row. Build side; cost as [`Rows::edit`].
    pub fn set(&mut self, index: u32, row: T) {
        *self.edit(index) = row;
    }

    /// Makes one row vacant again. Build side; cost as [`Rows::edit`].
    pub fn clear(&mut self, index: u32) {
        if (index as usize) < self.capacity() {
            self.set(index, T::default());
        }
    }

    fn grow(&mut self, chunks: usize) {
        let Some(more) = chunks.checked_sub(self.spine.len()).filter(|more| *more > 0) else { return };
        // New chunks share one vacant original until they are written.
        let vacant: Arc<[T; CHUNK]> = collect((0..CHUNK).map(|_| T::default()));
        self.spine = self.spine.iter().cloned().chain(std::iter::repeat_n(vacant, more)).collect();
    }
}

/// A chunk made in place: an array built on the stack first would be copied, and large rows would overflow it.
fn collect<T, const CHUNK: usize>(rows: impl Iterator<Item = T>) -> Arc<[T; CHUNK]> {
    match rows.collect::<Arc<[T]>>().try_into() {
        Ok(chunk) => chunk,
        Err(_) => unreachable!("every caller yields CHUNK rows"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Set(u32, u64),
        Clear(u32),
        Fork,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0..100u32, any::<u64>()).prop_map(|(index, row)| Op::Set(index, row)),
            2 => (0..120u32).prop_map(Op::Clear),
            1 => Just(Op::Fork),
        ]
    }

    proptest! {
        /// Whatever is written, every clone taken on the way keeps the rows it had.
        #[test]
        fn every_generation_keeps_its_rows(ops in prop::collection::vec(op(), 0..200)) {
            let mut rows = Rows::<u64, 8>::default();
            let mut oracle = HashMap::<u32, u64>::new();
            let mut generations = Vec::new();
            for op in ops {
                match op {
                    Op::Set(index, row) => {
                        rows.set(index, row);
                        oracle.insert(index, row);
                    }
                    Op::Clear(index) => {
                        rows.clear(index);
                        oracle.remove(&index);
                    }
                    Op::Fork => generations.push((rows.clone(), oracle.clone())),
                }
            }
            generations.push((rows, oracle));
            for (rows, oracle) in &generations {
                for index in 0..130 {
                    let expected = oracle.get(&index).copied().unwrap_or(0);
                    let within = (index as usize) < rows.capacity();
                    prop_assert_eq!(rows.get(index).copied(), within.then_some(expected));
                }
                prop_assert!(oracle.keys().all(|index| rows.get(*index).is_some()));
                prop_assert_eq!(rows.iter().count(), rows.capacity());
                for (index, row) in rows.iter() {
                    prop_assert_eq!(Some(row), rows.get(index));
                }
            }
        }
    }

    #[test]
    fn a_change_copies_one_chunk_and_only_the_first_time() {
        let mut rows = Rows::<u64>::default();
        for index in 0..50_000 {
            rows.set(index, u64::from(index));
        }
        let before = rows.clone();
        let chunks = before.capacity() / ROWS_PER_CHUNK;
        assert_eq!(rows.chunks_shared(&before), chunks);
        rows.set(20_000, 7);
        assert_eq!(rows.chunks_shared(&before), chunks - 1);
        let chunk = rows.get(20_000).map(std::ptr::from_ref);
        rows.set(20_001, 8);
        assert_eq!(rows.get(20_000).map(std::ptr::from_ref), chunk, "the second write finds its own chunk");
        assert_eq!(rows.chunks_shared(&before), chunks - 1);
        rows.set(49_999, 9);
        assert_eq!(rows.chunks_shared(&before), chunks - 2);
        assert_eq!((before.get(20_000), before.get(20_001)), (Some(&20_000), Some(&20_001)));
    }

    #[test]
    fn no_index_panics_and_new_room_is_shared_until_written() {
        let rows = Rows::<u64>::default();
        assert_eq!(rows.get(0), None);
        assert_eq!(rows.get(u32::MAX), None);
        let mut rows = Rows::<u64>::with_capacity(10 * ROWS_PER_CHUNK);
        assert_eq!(rows.capacity(), 10 * ROWS_PER_CHUNK);
        assert!(rows.spine.windows(2).all(|pair| Arc::ptr_eq(&pair[0], &pair[1])));
        rows.clear(u32::MAX);
        rows.set(3 * 512, 1);
        assert_eq!(rows.iter().filter(|(_, row)| **row != 0).map(|(index, _)| index).collect::<Vec<_>>(), [3 * 512]);
    }

    #[test]
    fn rows_too_large_for_the_stack_are_made_in_place() {
        let mut rows = Rows::<Wide>::default();
        rows.set(1000, Wide([7; 4096]));
        let other = rows.clone();
        rows.set(1001, Wide([8; 4096]));
        assert_eq!(rows.get(1000).unwrap().0[4095], 7);
        assert_eq!(other.get(1001).unwrap().0[0], 0);
    }

    #[derive(Clone)]
    struct Wide([u8; 4096]);

    impl Default for Wide {
        fn default() -> Self {
            Wide([0; 4096])
        }
    }
}
