//! Memory that the packet path is built from: mappings, slabs, rings between threads, prefetches, padded counters.
//!
//! It owns the addresses; everybody else has indices. It refuses to know what is stored.

mod bell;
mod lanes;
mod map;
mod prefetch;
mod slab;
pub mod spsc;
mod wait;

pub use bell::Bell;
pub use lanes::{LANE_BITS, equal_lanes};
pub use map::{HugePages, Pages};
pub use prefetch::{prefetch_read, prefetch_write};
pub use slab::Slab;
pub use wait::{IDLE_BEFORE_SLEEP_NS, now_ns, sleep_on};

pub(crate) use map::Mapping;
pub(crate) use prefetch::{prefetch_line, prefetch_line_write};

/// Bytes of a cache line on every machine Tidegate runs on; what structures are aligned to.
pub const CACHE_LINE_BYTES: usize = 64;

/// Bytes that one core's writing takes from the others: two cache lines, which processors of today fetch together. What
/// different threads write to lies in different pairs (crossbeam's `CachePadded` has the same idea of it).
pub const LINE_PAIR_BYTES: usize = 128;
const _: () = assert!(align_of::<crossbeam::utils::CachePadded<u8>>() >= LINE_PAIR_BYTES);

/// One counter that shares its cache line with nobody: written by one worker, read by whoever asks.
///
/// The writer adds up in a plain `u64` and stores it here every so many turns, so a load and a store suffice and no
/// read-modify-write is ever needed.
#[derive(Debug, Default)]
pub struct PaddedCounter(crossbeam::utils::CachePadded<std::sync::atomic::AtomicU64>);

impl PaddedCounter {
    /// A counter at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Publishes the writer's total.
    #[inline]
    pub fn store(&self, value: u64) {
        self.0.store(value, std::sync::atomic::Ordering::Relaxed);
    }

    /// The total last published.
    #[inline]
    #[must_use]
    pub fn load(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Adds to the total, for counters that have several writers and are not on the packet path.
    pub fn add(&self, value: u64) {
        self.0.fetch_add(value, std::sync::atomic::Ordering::Relaxed);
    }
}
