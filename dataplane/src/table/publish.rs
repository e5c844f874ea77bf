//! Publishing: one swap replaces all tables, and readers follow at their own pace.
//!
//! Owns which generation is current, who has seen which, and where memory is freed. It refuses to know what a snapshot
//! holds.
//!
//! The simple version is a `Mutex<Arc<Tables>>` that every worker locks for every batch. Three tricks, each with its price:
//!
//! 1. *A generation counter before the lock.* A reader compares one atomic with the generation it has and touches the lock
//!    only when it moved: one load of a line that is shared and unchanged between publishes. Price: a publish is seen one
//!    batch later at worst.
//! 2. *`try_lock`, not `lock`.* If the publisher, or another reader, holds the lock, a reader keeps its tables for one more
//!    batch, so a busy worker never waits. Price: another batch.
//! 3. *The publisher keeps an `Arc` of every retired snapshot* and drops those nobody else holds ([`Publisher::collect`]),
//!    so that the last reference, and with it the work of freeing, is always the publisher's. Price: memory of a retired
//!    generation lives until the next collect; it is only the chunks that differ.
//!
//! A reader that is about to sleep goes offline, which counts as having reached every generation. Coming back it takes its
//! seat first and the lock second, and it waits for the lock: either the publisher sees the taken seat, or the reader sees
//! the published tables, in every order of the two (a model proves this under `cfg(loom)`).
//!
//! Contexts: [`Publisher`] lives on one thread, the compiler's. A [`Reader`] lives on one worker. Nothing is called while the
//! lock is held; its section is one swap or one clone of an `Arc`.

#[cfg(loom)]
use loom::sync::{Arc, Mutex, MutexGuard, atomic::AtomicU64, atomic::Ordering};
#[cfg(not(loom))]
use std::sync::{Arc, Mutex, MutexGuard, atomic::AtomicU64, atomic::Ordering};
use std::sync::{PoisonError, TryLockError};

use super::Tables;

/// Something that can be published: it carries the number of its generation.
pub trait Snapshot {
    /// Writes the number given by [`Publisher::publish`].
    fn stamp(&mut self, generation: u64);
}

/// What a seat says while its reader is offline or gone: it holds nobody up.
const OFFLINE: u64 = u64::MAX;

struct Shared<T> {
    /// Generation of `current`; stored after the swap, so that who sees it also finds the tables.
    generation: AtomicU64,
    current: Mutex<(u64, Arc<T>)>,
    seats: Mutex<Vec<Arc<Seat>>>,
}

/// Where one reader writes the generation it works with, or [`OFFLINE`]; its neighbours' seats are in other lines.
#[repr(align(128))]
struct Seat {
    seen: AtomicU64,
}

/// The writing end: one, on the compiler thread.
pub struct Publisher<T: Snapshot = Tables> {
    shared: Arc<Shared<T>>,
    current: Arc<T>,
    generation: u64,
    retired: Vec<Arc<T>>,
}

/// A reading end: one per worker.
pub struct Reader<T: Snapshot = Tables> {
    shared: Arc<Shared<T>>,
    seat: Arc<Seat>,
    tables: Arc<T>,
    seen: u64,
    online: bool,
}

impl<T: Snapshot> Publisher<T> {
    /// A publisher whose generation 1 is `first`, and a function that makes readers (on any thread, at any time).
    pub fn new(mut first: T) -> (Self, impl Fn() -> Reader<T> + Clone) {
        first.stamp(1);
        let current = Arc::new(first);
        let shared = Arc::new(Shared {
            generation: AtomicU64::new(1),
            current: Mutex::new((1, Arc::clone(&current))),
            seats: Mutex::new(Vec::new()),
        });
        let publisher = Publisher { shared: Arc::clone(&shared), current, generation: 1, retired: Vec::new() };
        (publisher, move || Reader::new(Arc::clone(&shared)))
    }

    /// Replaces the tables, all at once, and returns their generation. Frees what nobody reads any more.
    pub fn publish(&mut self, mut tables: T) -> u64 {
        self.generation += 1;
        tables.stamp(self.generation);
        let tables = Arc::new(tables);
        let swapped = {
            let mut current = lock(&self.shared.current);
            std::mem::replace(&mut *current, (self.generation, Arc::clone(&tables)))
        };
        // Ours is still in `self.current`: this never frees.
        drop(swapped);
        self.shared.generation.store(self.generation, Ordering::Release);
        self.retired.push(std::mem::replace(&mut self.current, tables));
        self.collect();
        self.generation
    }

    /// The tables published last.
    pub fn current(&self) -> &T {
        &self.current
    }

    /// Their generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The oldest generation a reader may still be working with; the current one if all readers are offline or gone.
    pub fn reached(&self) -> u64 {
        let mut seats = lock(&self.shared.seats);
        // A seat that only this list holds has lost its reader.
        seats.retain(|seat| Arc::strong_count(seat) > 1);
        seats.iter().map(|seat| seat.seen.load(Ordering::Acquire)).fold(self.generation, u64::min)
    }

    /// Frees retired snapshots that no reader holds, on this thread; returns how many are still held.
    pub fn collect(&mut self) -> usize {
        // A count of one is ours alone, and nobody can raise it: readers clone from `Shared::current` only.
        self.retired.retain(|tables| Arc::strong_count(tables) > 1);
        self.retired.len()
    }
}

impl<T: Snapshot> Reader<T> {
    fn new(shared: Arc<Shared<T>>) -> Self {
        // The seat is taken, with a generation older than all, before the tables are: see `come_online`.
        let seat = Arc::new(Seat { seen: AtomicU64::new(0) });
        lock(&shared.seats).push(Arc::clone(&seat));
        let (seen, tables) = {
            let current = lock(&shared.current);
            (current.0, Arc::clone(&current.1))
        };
        seat.seen.store(seen, Ordering::Release);
        Reader { shared, seat, tables, seen, online: true }
    }

    /// The newest tables, or those from before if somebody holds the lock right now. One atomic load unless they moved.
    /// What was read through the tables before this call is done with: [`Publisher::reached`] counts on it.
    #[inline]
    pub fn refresh(&mut self) -> &T {
        if !self.online || self.shared.generation.load(Ordering::Acquire) != self.seen {
            self.follow();
        }
        &self.tables
    }

    /// The tables as of the last refresh.
    #[inline]
    pub fn tables(&self) -> &T {
        &self.tables
    }

    /// Generation of [`Reader::tables`].
    pub fn generation(&self) -> u64 {
        self.seen
    }

    /// Stops counting as a reader until the next [`Reader::refresh`]: call before sleeping, and read nothing through the
    /// tables in between. They stay allocated.
    pub fn go_offline(&mut self) {
        self.online = false;
        self.seat.seen.store(OFFLINE, Ordering::Release);
    }

    /// Where this reader writes, for a test of what lies beside it.
    #[cfg(test)]
    pub(crate) fn written(&self) -> std::ops::Range<usize> {
        crate::worker::lines::of(&*self.seat)
    }

    #[cold]
    fn follow(&mut self) {
        if !self.online {
            self.come_online();
            return;
        }
        let newer = match self.shared.current.try_lock() {
            Ok(current) => (current.0, Arc::clone(&current.1)),
            Err(TryLockError::Poisoned(poisoned)) => {
                let current = poisoned.into_inner();
                (current.0, Arc::clone(&current.1))
            }
            Err(TryLockError::WouldBlock) => return,
        };
        self.take(newer);
    }

    /// Seat first, lock second. If our section comes before the publisher's, unlocking orders the taken seat before its
    /// later look at the seats; if it comes after, we find the new tables.
    fn come_online(&mut self) {
        self.seat.seen.store(self.seen, Ordering::Release);
        let newer = {
            let current = lock(&self.shared.current);
            (current.0, Arc::clone(&current.1))
        };
        self.online = true;
        self.take(newer);
    }

    fn take(&mut self, (generation, tables): (u64, Arc<T>)) {
        // The publisher holds the one replaced here until its count says that we have let go: nothing is freed here.
        self.tables = tables;
        self.seen = generation;
        self.seat.seen.store(generation, Ordering::Release);
    }
}

impl<T: Snapshot> Drop for Reader<T> {
    fn drop(&mut self) {
        self.seat.seen.store(OFFLINE, Ordering::Release);
    }
}

impl<T: Snapshot> std::fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Publisher {{ generation: {}, retired: {} }}", self.generation, self.retired.len())
    }
}

impl<T: Snapshot> std::fmt::Debug for Reader<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader {{ seen: {}, online: {} }}", self.seen, self.online)
    }
}

/// A section under this lock is one swap or clone that cannot panic, so a poisoned lock still guards whole values.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::thread::{self, ThreadId};

    use super::*;
    use crate::table::{DeviceId, local::LocalKind};

    #[test]
    fn readers_follow_and_reached_waits_for_the_slowest() {
        let (mut publisher, reader) = Publisher::new(Tables::default());
        let (mut fast, mut slow) = (reader(), reader());
        assert_eq!((publisher.generation(), publisher.reached(), fast.generation()), (1, 1, 1));
        let mut next = publisher.current().clone();
        std::sync::Arc::make_mut(&mut next.locals).set(&[1; 16], LocalKind::VIP);
        assert_eq!(publisher.publish(next), 2);
        assert_eq!(fast.tables().locals.kind_v6(&[1; 16]), LocalKind::NONE, "not before it asks");
        assert_eq!(fast.refresh().locals.kind_v6(&[1; 16]), LocalKind::VIP);
        assert_eq!((fast.generation(), fast.tables().generation), (2, 2));
        assert_eq!(publisher.reached(), 1);
        slow.refresh();
        assert_eq!(publisher.reached(), 2);
        assert_eq!(reader().generation(), 2, "a late reader starts with the newest");
    }

    #[test]
    fn sleepers_and_the_gone_hold_nobody_up() {
        let (mut publisher, reader) = Publisher::new(Tables::default());
        assert_eq!(publisher.reached(), 1, "without readers all is reached");
        let (mut sleeper, gone) = (reader(), reader());
        publisher.publish(Tables::default());
        sleeper.go_offline();
        assert_eq!(publisher.reached(), 1);
        drop(gone);
        assert_eq!(publisher.reached(), 2);
        publisher.publish(Tables::default());
        assert_eq!(publisher.reached(), 3);
        assert_eq!(sleeper.refresh().generation, 3, "the first look after waking is at the newest");
        publisher.publish(Tables::default());
        assert_eq!(publisher.reached(), 3);
    }

    #[test]
    fn a_reader_that_finds_the_lock_taken_keeps_its_tables() {
        let (mut publisher, reader) = Publisher::new(Tables::default());
        let mut reader = reader();
        publisher.publish(Tables::default());
        let shared = Arc::clone(&publisher.shared);
        let held = lock(&shared.current);
        assert_eq!(reader.refresh().generation, 1);
        drop(held);
        assert_eq!(reader.refresh().generation, 2);
    }

    #[test]
    fn unchanged_tables_are_shared_between_generations() {
        let (mut publisher, reader) = Publisher::new(Tables::default());
        let mut next = publisher.current().clone();
        let row = crate::table::device::DeviceRow {
            name: "wan0".into(),
            ifindex: 3,
            mac: [2; 6],
            mtu: 1500,
            address_v4: [192, 0, 2, 1],
            address_v6: [0x20; 16],
        };
        std::sync::Arc::make_mut(&mut next.devices).set(DeviceId(0), row);
        let before = publisher.current().clone();
        publisher.publish(next);
        let mut reader = reader();
        let after = reader.refresh();
        assert!(std::sync::Arc::ptr_eq(&before.services, &after.services));
        assert!(!std::sync::Arc::ptr_eq(&before.devices, &after.devices));
        assert_eq!(after.devices.row(DeviceId(0)).map(|row| row.ifindex), Some(3));
    }

    /// A snapshot that complains when it is freed on another thread than its publisher's, or while not whole.
    struct Watched {
        generation: u64,
        twice: u64,
        home: ThreadId,
        strays: std::sync::Arc<AtomicUsize>,
        freed: std::sync::Arc<AtomicUsize>,
    }

    impl Snapshot for Watched {
        fn stamp(&mut self, generation: u64) {
            self.generation = generation;
            self.twice = generation * 2;
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            if thread::current().id() != self.home {
                self.strays.fetch_add(1, Ordering::Relaxed);
            }
            self.freed.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn tables_are_freed_on_the_publishers_thread_alone() {
        const PUBLISHES: usize = 50_000;
        let (strays, freed) = (std::sync::Arc::new(AtomicUsize::new(0)), std::sync::Arc::new(AtomicUsize::new(0)));
        let watched = || Watched {
            generation: 0,
            twice: 0,
            home: thread::current().id(),
            strays: std::sync::Arc::clone(&strays),
            freed: std::sync::Arc::clone(&freed),
        };
        let (mut publisher, reader) = Publisher::new(watched());
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for worker in 0..4u64 {
                let (mut reader, done) = (reader(), &done);
                scope.spawn(move || {
                    let mut last = 0;
                    while !done.load(Ordering::Acquire) {
                        let tables = reader.refresh();
                        assert_eq!(tables.twice, tables.generation * 2);
                        assert!(tables.generation >= last);
                        last = tables.generation;
                        if last % 4 == worker {
                            reader.go_offline();
                        }
                    }
                    // The publisher rests; only other readers still take the lock now and then.
                    while reader.refresh().generation != PUBLISHES as u64 + 1 {
                        thread::yield_now();
                    }
                });
            }
            let mut reached = 0;
            for _ in 0..PUBLISHES {
                publisher.publish(watched());
                let now = publisher.reached();
                assert!(now >= reached && now <= publisher.generation());
                reached = now;
            }
            done.store(true, Ordering::Release);
        });
        assert_eq!(publisher.reached(), PUBLISHES as u64 + 1);
        assert_eq!(publisher.collect(), 0, "nobody holds a retired one");
        assert_eq!(freed.load(Ordering::Relaxed), PUBLISHES);
        drop(reader);
        drop(publisher);
        assert_eq!((freed.load(Ordering::Relaxed), strays.load(Ordering::Relaxed)), (PUBLISHES + 1, 0));
    }
}

#[cfg(all(test, loom))]
mod model;
