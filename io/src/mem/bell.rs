//! A bell: wakes one thread that sleeps, and costs those who would ring it one load while it is awake.
//!
//! It owns a flag that says "asleep" and a descriptor to sleep on. It refuses to know what there is to wake up for.
//!
//! The sleeper raises the flag and then looks once more for work; whoever brings work makes it visible and then looks at
//! the flag. Each writes one thing and reads the other's, with a sequentially consistent fence in between, so at least
//! one of them sees what the other wrote: the sleeper stays up, or it is woken. (Dekker's idea; C++20 section 31.4,
//! fences. Without the fences both could read the old value, even on x86.) A model proves it under `cfg(loom)`.
//!
//! A bell may ring for nothing: when work comes while its sleeper gets up by itself. That is one early wake-up.

use std::io;
use std::os::fd::BorrowedFd;

use crossbeam::utils::CachePadded;

use sync::{AtomicBool, Ordering, Wire, fence};

/// What the bell is built from: the real thing, or loom's, which tries every order of what two threads do.
#[cfg(not(loom))]
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};

    use std::io;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

    /// An eventfd(2): readable from a strike until it is drained.
    #[derive(Debug)]
    pub(super) struct Wire(OwnedFd);

    impl Wire {
        pub(super) fn new() -> io::Result<Wire> {
            // SAFETY: eventfd takes two numbers and returns a new descriptor or -1.
            let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the descriptor is new, open, and nobody else's.
            Ok(Wire(unsafe { OwnedFd::from_raw_fd(descriptor) }))
        }

        #[cold]
        pub(super) fn strike(&self) {
            let one = 1u64;
            // SAFETY: the buffer is eight initialised bytes. It fails only when 2^64 - 1 strikes are not drained, and then
            // the descriptor is readable anyway.
            let _ = unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
        }

        #[cold]
        pub(super) fn drain(&self) {
            let mut strikes = 0u64;
            // SAFETY: the buffer is eight bytes that may be written. Not to block when there is nothing is what is wanted.
            let _ = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut strikes).cast(), size_of::<u64>()) };
        }

        pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(loom)]
mod sync {
    pub(super) use loom::sync::atomic::{AtomicBool, Ordering, fence};

    use std::io;
    use std::os::fd::BorrowedFd;

    /// Counts strikes; whether somebody who sleeps on it would wake up is asked by the model.
    #[derive(Debug)]
    pub(super) struct Wire(loom::sync::atomic::AtomicUsize);

    impl Wire {
        pub(super) fn new() -> io::Result<Wire> {
            Ok(Wire(loom::sync::atomic::AtomicUsize::new(0)))
        }

        pub(super) fn strike(&self) {
            self.0.fetch_add(1, Ordering::AcqRel);
        }

        pub(super) fn drain(&self) {
            self.0.store(0, Ordering::Release);
        }

        #[cfg(test)]
        pub(super) fn struck(&self) -> bool {
            self.0.load(Ordering::Acquire) > 0
        }

        pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
            unreachable!("a model does not sleep on descriptors")
        }
    }
}

/// One thread's bell. It is shared: the thread sleeps on it, any number of others ring it.
#[derive(Debug)]
pub struct Bell {
    asleep: CachePadded<AtomicBool>,
    wire: Wire,
}

impl Bell {
    /// A bell whose owner is awake.
    ///
    /// # Errors
    ///
    /// What eventfd(2) reports.
    pub fn new() -> io::Result<Bell> {
        Ok(Bell { asleep: CachePadded::new(AtomicBool::new(false)), wire: Wire::new()? })
    }

    /// The owner is about to sleep. Between this and sleeping it must look once more for work.
    pub fn lie_down(&self) {
        // Release, for whoever takes the flag down with acquire: its strike comes after what we drained before.
        self.asleep.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The owner is awake, by the bell or by itself.
    pub fn get_up(&self) {
        // Still up: nobody has rung, so there is nothing to drain. (Somebody who rings right now finds it down, or has
        // taken it down and will strike: then the next sleep is short.)
        if !self.take_down() {
            self.wire.drain();
        }
    }

    /// Wakes the owner if it sleeps. Whatever it is to find must have been made visible before.
    #[inline]
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.take_down() {
            self.wire.strike();
        }
    }

    /// Takes the flag down; whether it was up. A flag that is down is not written, so nobody hides one raised meanwhile.
    fn take_down(&self) -> bool {
        self.asleep.compare_exchange(true, false, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// What the owner sleeps on: readable once the bell has rung.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.wire.descriptor()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::mem::{sleep_on, spsc};
    use std::sync::Arc;
    use std::time::Duration;

    /// Longer than any test: who misses the bell hangs, and says so.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn it_rings_for_a_sleeper_and_is_silent_for_everybody_else() {
        let bell = Bell::new().unwrap();
        let rung = |bell: &Bell| sleep_on(&[bell.descriptor()], Duration::ZERO).unwrap() == 1;
        bell.ring();
        assert!(!rung(&bell), "nobody slept");
        bell.lie_down();
        bell.ring();
        bell.ring();
        assert!(rung(&bell));
        bell.get_up();
        assert!(!rung(&bell), "drained");
        bell.lie_down();
        bell.get_up();
        bell.ring();
        assert!(!rung(&bell), "up again");
    }

    #[test]
    fn two_threads_that_wake_each_other_never_oversleep() {
        const ROUNDS: u32 = 20_000;
        let bells = [Arc::new(Bell::new().unwrap()), Arc::new(Bell::new().unwrap())];
        let (mut to_second, from_first) = spsc::ring::<u32>(2);
        let (mut to_first, from_second) = spsc::ring::<u32>(2);
        let wait = |bell: &Bell, ring: &mut spsc::Consumer<u32>| loop {
            if let Some(value) = ring.pop() {
                return value;
            }
            bell.lie_down();
            if ring.is_empty() {
                assert_eq!(sleep_on(&[bell.descriptor()], LONG).unwrap(), 1, "overslept");
            }
            bell.get_up();
        };
        let [mine, theirs] = bells.clone();
        let partner = std::thread::spawn(move || {
            let mut from_first = from_first;
            for round in 0..ROUNDS {
                assert_eq!(wait(&theirs, &mut from_first), round);
                to_first.push(round).unwrap();
                mine.ring();
            }
        });
        let [mine, theirs] = bells;
        let mut from_second = from_second;
        for round in 0..ROUNDS {
            to_second.push(round).unwrap();
            theirs.ring();
            assert_eq!(wait(&mine, &mut from_second), round);
        }
        partner.join().unwrap();
    }
}

/// Every order of a producer's and a sleeper's steps: `RUSTFLAGS="--cfg loom" cargo test -p tidegate-io --release --lib bell`.
#[cfg(all(test, loom))]
mod model {
    use super::*;
    use crate::mem::spsc;
    use loom::sync::Arc;

    #[test]
    fn who_sleeps_beside_a_full_ring_has_been_rung_for() {
        loom::model(|| {
            let bell = Arc::new(Bell::new().unwrap());
            let (mut producer, mut consumer) = spsc::ring::<usize>(2);
            let ringer = Arc::clone(&bell);
            let sender = loom::thread::spawn(move || {
                for value in 0..2 {
                    assert!(producer.push(value).is_ok());
                    ringer.ring();
                }
                producer
            });
            let mut seen = 0;
            let mut asleep = false;
            // Twice to bed; whoever finds something stays up.
            for _ in 0..2 {
                bell.lie_down();
                if consumer.is_empty() {
                    asleep = true;
                    break;
                }
                bell.get_up();
                while consumer.pop().is_some() {
                    seen += 1;
                }
            }
            let producer = sender.join().unwrap();
            if asleep && seen < 2 {
                assert!(bell.wire.struck(), "asleep, with {} elements in the ring", 2 - seen);
            }
            drop((producer, consumer));
        });
    }
}
