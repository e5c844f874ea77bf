//! A bounded ring from one producer to one consumer: how frames change workers and trace lines leave one.
//!
//! The simple version is an array with two cursors that only grow: the producer owns `tail`, the consumer owns `head`,
//! slot `n` lives at `n mod capacity`. Two tricks make it cheap:
//!
//! - *Cached cursors.* Each side keeps a copy of the other's cursor and looks at the real one only when the copy says
//!   full or empty. The line that both sides touch then moves once per many elements. (Same as libxdp's `cached_cons`
//!   in `xsk_prod_nb_free`.)
//! - *Batches.* [`Producer::stage`] writes without publishing, [`Producer::publish`] makes all staged elements visible
//!   with one release store; [`Consumer::pop_into`] takes many with one acquire load and one release store.

use std::mem::MaybeUninit;

use arrayvec::ArrayVec;
use crossbeam::utils::CachePadded;

use sync::{Arc, AtomicUsize, Ordering, Slot};

/// What the ring is built from: the real thing, or loom's, which tries every order of what two threads do.
#[cfg(not(loom))]
mod sync {
    pub(super) use std::sync::Arc;
    pub(super) use std::sync::atomic::{AtomicUsize, Ordering};

    /// A place for an element that one side at a time may touch.
    pub(super) struct Slot<T>(std::cell::UnsafeCell<T>);

    impl<T> Slot<T> {
        pub(super) fn new(value: T) -> Slot<T> {
            Slot(std::cell::UnsafeCell::new(value))
        }

        #[inline(always)]
        pub(super) fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
            access(self.0.get())
        }
    }
}

#[cfg(loom)]
mod sync {
    pub(super) use loom::cell::UnsafeCell as Slot;
    pub(super) use loom::sync::Arc;
    pub(super) use loom::sync::atomic::{AtomicUsize, Ordering};
}

struct Shared<T> {
    /// Elements taken since the beginning; written by the consumer.
    head: CachePadded<AtomicUsize>,
    /// Elements published since the beginning; written by the producer.
    tail: CachePadded<AtomicUsize>,
    /// A power of two of slots; those in `head..tail` are initialised and belong to the consumer, the others to the producer.
    slots: Box<[Slot<MaybeUninit<T>>]>,
}

// SAFETY: a slot is touched by the side it belongs to only, and changes sides by a release store of a cursor that the
// other side reads with acquire. The elements themselves cross threads, hence `T: Send`.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Both sides are gone, and dropping the last handle has synchronised with them.
        let (head, tail) = (self.head.load(Ordering::Relaxed), self.tail.load(Ordering::Relaxed));
        let mask = self.slots.len() - 1;
        let mut at = head;
        while at != tail {
            // SAFETY: slots in head..tail are initialised, and both sides are gone.
            self.slots[at & mask].with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            at = at.wrapping_add(1);
        }
    }
}

/// The sending end. There is one. It is written with every element, so it shares no pair of lines with another end.
#[repr(align(128))]
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    /// Next slot to write; ahead of the shared `tail` by what is staged.
    tail: usize,
    /// What was published last.
    published: usize,
    /// A past value of the consumer's `head`.
    head_cached: usize,
    mask: usize,
}

/// The receiving end. There is one. It is written with every element, as the other.
#[repr(align(128))]
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    /// A past value of the producer's `tail`.
    tail_cached: usize,
    mask: usize,
}

/// A ring that holds `capacity` elements, rounded up to a power of two (at least one).
///
/// # Panics
///
/// If the capacity is more than half of the address space.
#[must_use]
pub fn ring<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let capacity = capacity.max(1).next_power_of_two();
    let slots = (0..capacity).map(|_| Slot::new(MaybeUninit::uninit())).collect();
    let cursor = || CachePadded::new(AtomicUsize::new(0));
    let shared = Arc::new(Shared { head: cursor(), tail: cursor(), slots });
    let mask = capacity - 1;
    (
        Producer { shared: Arc::clone(&shared), tail: 0, published: 0, head_cached: 0, mask },
        Consumer { shared, head: 0, tail_cached: 0, mask },
    )
}

impl<T> Producer<T> {
    /// Elements the ring holds when full.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.mask + 1
    }

    /// Slots free right now; the consumer can only make it more.
    #[inline]
    pub fn free(&mut self) -> usize {
        self.head_cached = self.shared.head.load(Ordering::Acquire);
        self.capacity() - self.tail.wrapping_sub(self.head_cached)
    }

    /// Writes an element that the consumer will see after the next [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// The element itself, if the ring is full.
    #[inline]
    pub fn stage(&mut self, element: T) -> Result<(), T> {
        if self.tail.wrapping_sub(self.head_cached) > self.mask && self.free() == 0 {
            return Err(element);
        }
        // SAFETY: the slot is free (the consumer's head is at most a capacity behind), so it belongs to this side.
        self.shared.slots[self.tail & self.mask].with_mut(|slot| unsafe { (*slot).write(element) });
        self.tail = self.tail.wrapping_add(1);
        Ok(())
    }

    /// Makes every staged element visible.
    #[inline]
    pub fn publish(&mut self) {
        if self.published != self.tail {
            self.published = self.tail;
            self.shared.tail.store(self.tail, Ordering::Release);
        }
    }

    /// Stages and publishes one element.
    ///
    /// # Errors
    ///
    /// The element itself, if the ring is full.
    #[inline]
    pub fn push(&mut self, element: T) -> Result<(), T> {
        self.stage(element)?;
        self.publish();
        Ok(())
    }

    /// Whether the consumer is gone, so that nobody will ever take what is pushed.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.shared) == 1
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        // What was staged is visible at last, so that it is dropped (or taken) like the rest.
        self.publish();
    }
}

impl<T> Consumer<T> {
    /// Elements waiting right now; the producer can only make it more.
    #[inline]
    pub fn len(&mut self) -> usize {
        self.tail_cached = self.shared.tail.load(Ordering::Acquire);
        self.tail_cached.wrapping_sub(self.head)
    }

    /// Whether nothing waits right now.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        self.len() == 0
    }

    /// Takes the oldest element.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let element = self.take()?;
        self.shared.head.store(self.head, Ordering::Release);
        Some(element)
    }

    /// Moves elements to the end of `into` while there are any and it has room; returns how many.
    #[inline]
    pub fn pop_into<const N: usize>(&mut self, into: &mut ArrayVec<T, N>) -> usize {
        let before = into.len();
        while !into.is_full() {
            let Some(element) = self.take() else { break };
            into.push(element);
        }
        if into.len() > before {
            self.shared.head.store(self.head, Ordering::Release);
        }
        into.len() - before
    }

    /// Whether the producer is gone, so that nothing will come after what waits.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.shared) == 1
    }

    fn take(&mut self) -> Option<T> {
        if self.head == self.tail_cached && self.is_empty() {
            return None;
        }
        // SAFETY: head..tail is not empty, so the slot is initialised and belongs to this side; moving `head` on gives
        // the (now uninitialised) slot back once it is stored.
        let element = self.shared.slots[self.head & self.mask].with_mut(|slot| unsafe { (*slot).assume_init_read() });
        self.head = self.head.wrapping_add(1);
        Some(element)
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        // `take` without the store can only be left over by a panic in between; then elements before `head` are gone.
        self.shared.head.store(self.head, Ordering::Release);
    }
}

impl<T> std::fmt::Debug for Producer<T> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Producer({} slots)", self.capacity())
    }
}

impl<T> std::fmt::Debug for Consumer<T> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Consumer({} slots)", self.mask + 1)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::mem::LINE_PAIR_BYTES;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::rc::Rc;

    #[test]
    fn cursors_and_ends_have_pairs_of_lines_to_themselves() {
        let (producer, consumer) = ring::<u32>(4);
        let pair = |address: usize| address / LINE_PAIR_BYTES;
        let [head, tail] =
            [&producer.shared.head, &producer.shared.tail].map(|cursor| pair(std::ptr::from_ref(&**cursor).addr()));
        let slots = pair(producer.shared.slots.as_ptr().addr());
        assert!(head != tail && head != slots && tail != slots);
        assert_eq!((align_of_val(&producer), align_of_val(&consumer)), (LINE_PAIR_BYTES, LINE_PAIR_BYTES));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Push(u32),
        Stage(u32),
        Publish,
        Pop,
        PopInto,
        Free,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            any::<u32>().prop_map(Op::Push),
            any::<u32>().prop_map(Op::Stage),
            Just(Op::Publish),
            Just(Op::Pop),
            Just(Op::PopInto),
            Just(Op::Free),
        ]
    }

    proptest! {
        /// The oracle is two queues: what is staged and what is published.
        #[test]
        fn a_ring_is_a_bounded_queue(capacity in 1usize..9, ops in prop::collection::vec(op(), 0..300)) {
            let (mut producer, mut consumer) = ring(capacity);
            let capacity = capacity.next_power_of_two();
            let (mut staged, mut published) = (VecDeque::new(), VecDeque::new());
            for op in ops {
                let full = staged.len() + published.len() == capacity;
                match op {
                    Op::Push(value) => {
                        prop_assert_eq!(producer.push(value).is_err(), full);
                        if !full {
                            staged.push_back(value);
                            published.append(&mut staged);
                        }
                    }
                    Op::Stage(value) => {
                        prop_assert_eq!(producer.stage(value).is_err(), full);
                        if !full {
                            staged.push_back(value);
                        }
                    }
                    Op::Publish => {
                        producer.publish();
                        published.append(&mut staged);
                    }
                    Op::Pop => prop_assert_eq!(consumer.pop(), published.pop_front()),
                    Op::PopInto => {
                        let mut into = ArrayVec::<u32, 3>::new();
                        let taken = consumer.pop_into(&mut into);
                        let expected: Vec<u32> = published.drain(..published.len().min(3)).collect();
                        prop_assert_eq!((taken, &into[..]), (expected.len(), &expected[..]));
                    }
                    Op::Free => prop_assert_eq!(producer.free(), capacity - staged.len() - published.len()),
                }
                prop_assert_eq!(consumer.len(), published.len());
            }
        }
    }

    #[test]
    fn what_is_left_in_a_ring_is_dropped_once() {
        let value = Rc::new(());
        let (mut producer, mut consumer) = ring(4);
        for _ in 0..3 {
            producer.push(Rc::clone(&value)).unwrap();
        }
        producer.stage(Rc::clone(&value)).unwrap();
        assert!(consumer.pop().is_some());
        assert!(!consumer.is_abandoned());
        drop(producer);
        assert!(consumer.is_abandoned());
        assert_eq!(Rc::strong_count(&value), 4);
        drop(consumer);
        assert_eq!(Rc::strong_count(&value), 1);
    }

    #[test]
    fn two_threads_see_every_element_once_and_in_order() {
        const COUNT: u64 = 200_000;
        let (mut producer, mut consumer) = ring::<u64>(64);
        let sender = std::thread::spawn(move || {
            for value in 0..COUNT {
                while producer.stage(value).is_err() {
                    producer.publish();
                    std::thread::yield_now();
                }
                if value % 7 == 0 {
                    producer.publish();
                }
            }
        });
        let mut expected = 0;
        let mut batch = ArrayVec::<u64, 16>::new();
        while expected < COUNT {
            if consumer.pop_into(&mut batch) == 0 {
                std::thread::yield_now();
            }
            for value in batch.drain(..) {
                assert_eq!(value, expected);
                expected += 1;
            }
        }
        sender.join().unwrap();
        assert_eq!(consumer.pop(), None);
    }
}

/// Every order of two threads' steps: `RUSTFLAGS="--cfg loom" cargo test -p tidegate-io --release --lib spsc`.
#[cfg(all(test, loom))]
mod model {
    use super::*;

    #[test]
    fn elements_arrive_once_and_in_order_whatever_the_interleaving() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring::<Box<usize>>(2);
            let sender = loom::thread::spawn(move || {
                let mut sent = 0;
                while sent < 4 {
                    // Two at a time become visible, where there is room.
                    for _ in 0..2 {
                        if sent < 4 && producer.stage(Box::new(sent)).is_ok() {
                            sent += 1;
                        }
                    }
                    producer.publish();
                    loom::thread::yield_now();
                }
            });
            let mut expected = 0;
            while expected < 3 {
                match consumer.pop() {
                    Some(value) => {
                        assert_eq!(*value, expected);
                        expected += 1;
                    }
                    None => loom::thread::yield_now(),
                }
            }
            // The fourth is dropped with the ring, whichever end goes last.
            drop(consumer);
            sender.join().unwrap();
        });
    }
}
