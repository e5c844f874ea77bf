//! Pools of packet memory: who has which chunk when no port has it.
//!
//! A [`Pool`] is one mapping cut into chunks. It owns the memory and the tokens that nobody uses; it refuses to know
//! what is in them. For AF_XDP the mapping is the UMEM; to the outside there is no difference.
//!
//! Workers never take single frames from the pool. Each has a [`Magazine`] with up to two batches and exchanges whole
//! batches with the pool's [`Depot`], without a lock (Bonwick and Adams, "Magazines and Vmem", USENIX ATC 2001).
//! Frames carry no home: the worker that completes a frame keeps it, whoever received it, so traffic in one direction
//! does not starve the fill ring of the other.
//!
//! Memory outlives its tokens: a pool whose frames are not all back when its last handle goes leaves its mapping in
//! place. That is a leak, which is counted, instead of a dangling pointer.

use std::collections::BTreeMap;
use std::io;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use crate::frame::{BATCH_MAX, Batch, FRAME_BYTES_MAX, FRAME_BYTES_MIN, Frame, GroupId, HEADROOM};
use crate::mem::{HugePages, Mapping, Pages};

/// Frames of one pool, at most: 16 GiB of 4 KiB chunks.
pub const FRAMES_MAX: u32 = 1 << 22;

/// Frames that were dropped instead of given back, in this process so far. Should be zero.
static FRAMES_DROPPED: AtomicU64 = AtomicU64::new(0);

/// Pools alive, by group: the way home for frames that end up in the wrong place, and the source of group numbers.
static GROUPS: Mutex<BTreeMap<u16, Weak<Shared>>> = Mutex::new(BTreeMap::new());

/// Frames that were dropped, not given back, in this process so far.
#[must_use]
pub fn frames_dropped() -> u64 {
    FRAMES_DROPPED.load(Ordering::Relaxed)
}

/// Frames that a magazine holds: written with every frame, so that no other worker's lie in its lines.
type Stack = CachePadded<Batch>;

/// What a pool's chunks lie in.
pub(crate) enum Memory {
    /// Ordinary anonymous memory; held, not used.
    Mapping { _held: Mapping },
    /// Memory that is registered with the kernel.
    Umem(xsk_rs::Umem),
}

struct Shared {
    /// `None` only while it is being dropped.
    memory: Option<Memory>,
    start: NonNull<u8>,
    frames: u32,
    frame_bytes: u16,
    pages: Pages,
    group: GroupId,
    /// Batches of exactly `BATCH_MAX` frames.
    full: ArrayQueue<Box<Stack>>,
    /// Batches of none: so that an exchange never allocates.
    empty: ArrayQueue<Box<Stack>>,
    /// Frames that came in ones: leftovers of magazines, strays, and the last few of a pool.
    loose: Mutex<Vec<Frame>>,
    /// Chunks that the kernel keeps until the memory itself is closed.
    kept_by_kernel: AtomicU32,
}

// SAFETY: `start` is the address of the mapping that `memory` owns; it is only used to say where chunks lie.
unsafe impl Send for Shared {}
// SAFETY: as for `Send`; everything that changes is a lock-free queue, an atomic or behind a lock.
unsafe impl Sync for Shared {}

/// A fixed number of equal chunks of packet memory.
#[derive(Debug)]
pub struct Pool {
    depot: Depot,
}

/// A handle on the frames of a pool that nobody uses; all handles of a group share them.
#[derive(Clone)]
pub struct Depot(Arc<Shared>);

/// One worker's stock of unused frames of one group.
///
/// Taking and giving touch only the worker's own memory, but for one exchange of a whole batch per 64 frames at most.
/// Dropped, it returns its stock to the depot.
pub struct Magazine {
    depot: Depot,
    /// Where frames are taken from and given to.
    current: Box<Stack>,
    /// Full or empty, so that a worker that takes and gives around a boundary does not exchange every time.
    previous: Box<Stack>,
}

impl Pool {
    /// Maps `frames` chunks of `frame_bytes` (2048, 4096, 8192 or 16384) each.
    ///
    /// # Errors
    ///
    /// For sizes out of range, and what mmap(2) reports.
    pub fn new(frames: u32, frame_bytes: u32, huge: HugePages) -> io::Result<Pool> {
        check_size(frames, frame_bytes, FRAME_BYTES_MAX)?;
        let mapping = Mapping::new(frames as usize * frame_bytes as usize, huge)?;
        let (start, pages) = (mapping.start(), mapping.pages());
        // SAFETY: the mapping is new, long enough, zeroed, and nobody else has its address.
        unsafe { Pool::from_memory(Memory::Mapping { _held: mapping }, start, frames, frame_bytes, pages) }
    }

    /// Makes tokens for every chunk of `memory`.
    ///
    /// # Safety
    ///
    /// `start` is the address of `frames * frame_bytes` initialised bytes that `memory` keeps mapped, and nobody has
    /// access to any of them. The two numbers have passed [`check_size`].
    pub(crate) unsafe fn from_memory(
        memory: Memory,
        start: NonNull<u8>,
        frames: u32,
        frame_bytes: u32,
        pages: Pages,
    ) -> io::Result<Pool> {
        let frame_bytes = u16::try_from(frame_bytes).map_err(io::Error::other)?;
        let batches = (frames as usize).div_ceil(BATCH_MAX);
        let mut groups = groups();
        let free = (0..u16::MAX).find(|number| !groups.contains_key(number));
        let group = GroupId(free.ok_or_else(|| io::Error::other("65535 pools exist"))?);
        let shared = Arc::new(Shared {
            memory: Some(memory),
            start,
            frames,
            frame_bytes,
            pages,
            group,
            full: ArrayQueue::new(batches),
            // Every box that can be full, and two for each of so many magazines; more are freed instead of kept.
            empty: ArrayQueue::new(batches + 64),
            loose: Mutex::new(Vec::with_capacity(BATCH_MAX)),
            kept_by_kernel: AtomicU32::new(0),
        });
        groups.insert(group.0, Arc::downgrade(&shared));
        drop(groups);
        let depot = Depot(shared);
        let mut batch: Box<Stack> = Box::default();
        for index in 0..frames {
            // SAFETY: chunk `index` is inside the memory and no token for it exists yet.
            batch.push(unsafe { depot.token(index, HEADROOM, 0) });
            if batch.is_full() {
                let full = std::mem::take(&mut batch);
                depot.put_full(full);
            }
        }
        depot.loose().extend(batch.drain(..));
        depot.put_empty(batch);
        Ok(Pool { depot })
    }

    /// A new, empty magazine.
    #[must_use]
    pub fn magazine(&self) -> Magazine {
        self.depot.magazine()
    }

    /// A handle on the unused frames.
    #[must_use]
    pub fn depot(&self) -> Depot {
        self.depot.clone()
    }

    /// Chunks in all.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.depot.0.frames
    }

    /// Bytes of a chunk.
    #[must_use]
    pub fn frame_bytes(&self) -> u32 {
        u32::from(self.depot.0.frame_bytes)
    }

    /// What the memory is made of.
    #[must_use]
    pub fn pages(&self) -> Pages {
        self.depot.0.pages
    }

    /// What the frames call it.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.depot.0.group
    }

    /// Frames that are not in the depot: in magazines, in ports, in batches. Exact when nobody is exchanging.
    ///
    /// Those that a port which is gone had lent to the kernel are not among them: they stay there until the memory
    /// itself is closed.
    #[must_use]
    pub fn outstanding(&self) -> u32 {
        self.depot.0.frames.saturating_sub(self.depot.available() + self.depot.0.kept_by_kernel.load(Ordering::Relaxed))
    }
}

/// Refuses chunk counts and sizes that frames cannot express, or that are above `frame_bytes_max`.
pub(crate) fn check_size(frames: u32, frame_bytes: u32, frame_bytes_max: u32) -> io::Result<()> {
    let invalid = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if !frame_bytes.is_power_of_two() || !(FRAME_BYTES_MIN..=frame_bytes_max).contains(&frame_bytes) {
        let choices = match frame_bytes_max / FRAME_BYTES_MIN {
            ..=2 => format!("{FRAME_BYTES_MIN} or {frame_bytes_max}"),
            _ => format!("a power of two from {FRAME_BYTES_MIN} to {frame_bytes_max}"),
        };
        return invalid(format!("frames of {frame_bytes} bytes; choose {choices}"));
    }
    if frames == 0 || frames > FRAMES_MAX {
        return invalid(format!("{frames} frames; choose 1 to {FRAMES_MAX}"));
    }
    Ok(())
}

impl Depot {
    /// A new, empty magazine.
    #[must_use]
    pub fn magazine(&self) -> Magazine {
        Magazine { depot: self.clone(), current: Box::default(), previous: Box::default() }
    }

    /// What the frames call it.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.0.group
    }

    /// Frames in the depot. Exact when nobody is exchanging.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.0.available()
    }

    /// Chunks in all.
    pub(crate) fn frames(&self) -> u32 {
        self.0.frames
    }

    /// Bytes of a chunk.
    pub(crate) fn frame_bytes(&self) -> u32 {
        u32::from(self.0.frame_bytes)
    }

    /// The UMEM, if the memory is one.
    pub(crate) fn umem(&self) -> Option<&xsk_rs::Umem> {
        match &self.0.memory {
            Some(Memory::Umem(umem)) => Some(umem),
            _ => None,
        }
    }

    /// The token for chunk `index`.
    ///
    /// # Safety
    ///
    /// `index` is below the number of chunks, no other token for that chunk exists, the kernel has no access to it,
    /// and `headroom + len` is at most the size of a chunk.
    #[inline]
    pub(crate) unsafe fn token(&self, index: u32, headroom: u16, len: u16) -> Frame {
        debug_assert!(index < self.0.frames);
        // SAFETY: the caller vouches for the index, so the chunk is inside the memory; exclusive by the same contract.
        // The memory is not unmapped while a token is out (see `Shared::drop`).
        unsafe {
            let chunk = self.0.start.add(index as usize * self.0.frame_bytes as usize);
            Frame::from_chunk(chunk, self.0.frame_bytes, headroom, len, self.0.group)
        }
    }

    /// Where a chunk lies, counted in bytes from the start of the memory.
    #[inline]
    pub(crate) fn offset(&self, chunk: NonNull<u8>) -> usize {
        chunk.addr().get() - self.0.start.addr().get()
    }

    /// Notes that the kernel keeps so many chunks until the memory is closed; no tokens will exist for them.
    pub(crate) fn note_kept_by_kernel(&self, frames: u32) {
        self.0.kept_by_kernel.fetch_add(frames, Ordering::Relaxed);
    }

    /// Takes one frame home by the slow way, whatever group it is of.
    #[cold]
    pub(crate) fn send_home(frame: Frame) {
        let home = groups().get(&frame.group().0).and_then(Weak::upgrade);
        match home {
            Some(shared) => Depot(shared).take_in(frame),
            // The pool is going away at this moment; its memory stays mapped, as this frame is not home.
            None => std::mem::forget(frame),
        }
    }

    #[cold]
    fn take_in(&self, mut frame: Frame) {
        frame.reset();
        self.loose().push(frame);
    }

    fn loose(&self) -> MutexGuard<'_, Vec<Frame>> {
        // A list of tokens is whole after every step, so a panic elsewhere does not spoil it.
        self.0.loose.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_full(&self, batch: Box<Stack>) {
        if let Err(mut batch) = self.0.full.push(batch) {
            // Cannot happen: the queue holds as many batches as there are frames for.
            self.loose().extend(batch.drain(..));
        }
    }

    fn put_empty(&self, batch: Box<Stack>) {
        drop(self.0.empty.push(batch));
    }

    fn take_empty(&self) -> Box<Stack> {
        self.0.empty.pop().unwrap_or_default()
    }
}

impl std::fmt::Debug for Depot {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Depot(group {}, {} of {} frames)", self.0.group, self.available(), self.0.frames)
    }
}

/// A frame on its way between two owners, in a ring for instance: if the way ends, it goes home.
///
/// A bare [`Frame`] that is dropped is a mistake; one in transit is not, since both ends may be gone.
#[derive(Debug)]
pub struct Homing(ManuallyDrop<Frame>);

impl Homing {
    /// Sends `frame` on its way.
    #[inline]
    #[must_use]
    pub fn new(frame: Frame) -> Homing {
        Homing(ManuallyDrop::new(frame))
    }

    /// The frame, for looking at.
    #[inline]
    #[must_use]
    pub fn frame(&self) -> &Frame {
        &self.0
    }

    /// The frame, arrived.
    #[inline]
    #[must_use]
    pub fn into_frame(self) -> Frame {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped and not used again, so the frame is taken once.
        unsafe { ManuallyDrop::take(&mut this.0) }
    }
}

impl Drop for Homing {
    #[cold]
    #[inline(never)]
    fn drop(&mut self) {
        // SAFETY: the value is being dropped, so the frame is not used again.
        Depot::send_home(unsafe { ManuallyDrop::take(&mut self.0) });
    }
}

impl Magazine {
    /// Takes a frame: empty, with the standard headroom. `None` when the depot has no more either.
    #[inline]
    #[must_use]
    pub fn take(&mut self) -> Option<Frame> {
        if self.current.is_empty() {
            self.refill();
        }
        self.current.pop()
    }

    /// Gives a frame back. One of another group goes to its own depot, by a slow way.
    #[inline]
    pub fn give(&mut self, mut frame: Frame) {
        if frame.group() != self.depot.0.group {
            return Depot::send_home(frame);
        }
        if self.current.is_full() {
            self.unload();
        }
        frame.reset();
        self.current.push(frame);
    }

    /// A frame with the same packet as one of another group; `None` if there is no frame or it is too small.
    pub(crate) fn copy_of(&mut self, frame: &Frame) -> Option<Frame> {
        let mut copy = self.take()?;
        if copy.fill(frame.bytes()) {
            return Some(copy);
        }
        self.give(copy);
        None
    }

    /// Bytes of a chunk.
    #[must_use]
    pub fn frame_bytes(&self) -> u32 {
        self.depot.frame_bytes()
    }

    /// Frames in stock here, without the depot's.
    #[inline]
    #[must_use]
    pub fn held(&self) -> usize {
        self.current.len() + self.previous.len()
    }

    /// What the frames call their memory.
    #[inline]
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.depot.0.group
    }

    /// Returns the whole stock to the depot.
    pub fn flush(&mut self) {
        let mut loose = self.depot.loose();
        loose.extend(self.current.drain(..));
        loose.extend(self.previous.drain(..));
    }

    /// Makes `current` not empty, if there are frames.
    #[cold]
    fn refill(&mut self) {
        std::mem::swap(&mut self.current, &mut self.previous);
        if !self.current.is_empty() {
            return;
        }
        if let Some(full) = self.depot.0.full.pop() {
            let empty = std::mem::replace(&mut self.current, full);
            self.depot.put_empty(empty);
            return;
        }
        let mut loose = self.depot.loose();
        let keep = loose.len() - loose.len().min(BATCH_MAX);
        self.current.extend(loose.drain(keep..));
    }

    /// Makes `current` not full.
    #[cold]
    fn unload(&mut self) {
        std::mem::swap(&mut self.current, &mut self.previous);
        if self.current.is_full() {
            let empty = self.depot.take_empty();
            let full = std::mem::replace(&mut self.current, empty);
            self.depot.put_full(full);
        }
    }
}

impl Drop for Magazine {
    fn drop(&mut self) {
        self.flush();
    }
}

impl std::fmt::Debug for Magazine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Magazine(group {}, {} frames)", self.depot.0.group, self.held())
    }
}

impl Shared {
    fn available(&self) -> u32 {
        let loose = self.loose.lock().unwrap_or_else(PoisonError::into_inner).len();
        u32::try_from(self.full.len() * BATCH_MAX + loose).unwrap_or(u32::MAX).min(self.frames)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let home = self.available() + self.kept_by_kernel.load(Ordering::Relaxed);
        while let Some(mut batch) = self.full.pop() {
            batch.drain(..).for_each(std::mem::forget);
        }
        self.loose.lock().unwrap_or_else(PoisonError::into_inner).drain(..).for_each(std::mem::forget);
        if home == self.frames {
            drop(self.memory.take());
            groups().remove(&self.group.0);
        } else {
            // Tokens are out. The memory stays mapped and the group number taken for as long as the process lives.
            std::mem::forget(self.memory.take());
        }
    }
}

/// Counts a frame that was dropped and sends it home.
#[cold]
pub(crate) fn take_in_stray(frame: Frame) {
    FRAMES_DROPPED.fetch_add(1, Ordering::Relaxed);
    Depot::send_home(frame);
}

fn groups() -> MutexGuard<'static, BTreeMap<u16, Weak<Shared>>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn sizes_out_of_range_are_refused_with_the_choices() {
        for (frames, bytes) in [(0, 2048), (FRAMES_MAX + 1, 2048), (64, 1024), (64, 3000), (64, 32768)] {
            let error = Pool::new(frames, bytes, HugePages::Off).unwrap_err();
            assert!(error.to_string().contains("choose"), "{error}");
        }
    }

    #[test]
    fn a_pool_gives_every_chunk_once_and_then_none() {
        for count in [1, 63, 64, 65, 200] {
            let pool = Pool::new(count, 2048, HugePages::Off).unwrap();
            let mut magazine = pool.magazine();
            let frames: Vec<Frame> = std::iter::from_fn(|| magazine.take()).collect();
            let chunks: BTreeSet<usize> = frames.iter().map(Frame::chunk_address).collect();
            assert_eq!((frames.len(), chunks.len()), (count as usize, count as usize));
            assert_eq!(pool.outstanding(), count);
            frames.into_iter().for_each(|frame| magazine.give(frame));
            drop(magazine);
            assert_eq!(pool.outstanding(), 0);
        }
    }

    #[test]
    fn a_frame_in_transit_arrives_or_goes_home() {
        let pool = Pool::new(64, 2048, HugePages::Off).unwrap();
        let mut magazine = pool.magazine();
        let mut frame = magazine.take().unwrap();
        assert!(frame.fill(b"bytes"));
        let homing = Homing::new(frame);
        assert_eq!(homing.frame().bytes(), b"bytes");
        magazine.give(homing.into_frame());
        let lost = Homing::new(magazine.take().unwrap());
        magazine.flush();
        assert_eq!(pool.outstanding(), 1);
        drop(lost);
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn a_frame_of_another_group_goes_to_its_own_depot() {
        let (one, two) = (Pool::new(64, 2048, HugePages::Off).unwrap(), Pool::new(64, 2048, HugePages::Off).unwrap());
        assert_ne!(one.group(), two.group());
        let frame = one.magazine().take().unwrap();
        assert_eq!((one.outstanding(), frame.group()), (1, one.group()));
        let mut magazine = two.magazine();
        magazine.give(frame);
        assert_eq!((magazine.held(), one.outstanding(), two.outstanding()), (0, 0, 0));
    }

    #[test]
    fn a_pool_with_frames_out_leaves_its_memory_in_place() {
        let pool = Pool::new(64, 2048, HugePages::Off).unwrap();
        let mut frame = pool.magazine().take().unwrap();
        drop(pool);
        assert!(frame.fill(b"still here"));
        assert_eq!(frame.bytes(), b"still here");
        std::mem::forget(frame);
    }

    #[test]
    fn a_dropped_frame_is_counted_and_goes_home() {
        let pool = Pool::new(64, 2048, HugePages::Off).unwrap();
        let frame = pool.magazine().take().unwrap();
        let before = frames_dropped();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(frame)));
        assert_eq!(result.is_err(), cfg!(debug_assertions));
        assert!(frames_dropped() > before);
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn threads_exchange_frames_without_losing_any() {
        let pool = Pool::new(1024, 2048, HugePages::Off).unwrap();
        let (sender, receiver) = std::sync::mpsc::sync_channel::<Frame>(300);
        std::thread::scope(|scope| {
            // One thread only takes, the other only gives: all stock moves through the depot.
            let mut magazine = pool.magazine();
            scope.spawn(move || {
                let mut sent = 0;
                while sent < 20_000 {
                    match magazine.take() {
                        Some(frame) => {
                            sender.send(frame).unwrap();
                            sent += 1;
                        }
                        None => std::thread::yield_now(),
                    }
                }
            });
            let mut magazine = pool.magazine();
            scope.spawn(move || receiver.into_iter().for_each(|frame| magazine.give(frame)));
        });
        assert_eq!(pool.outstanding(), 0);
    }

    proptest! {
        /// The oracle counts: what was taken and not given is out, the rest can be had.
        #[test]
        fn frames_are_conserved(frames in 1u32..400, ops in prop::collection::vec((0usize..3, any::<bool>(), 1usize..150), 0..40)) {
            let pool = Pool::new(frames, 2048, HugePages::Off).unwrap();
            let mut magazines = [pool.magazine(), pool.magazine(), pool.magazine()];
            let mut out: Vec<Frame> = Vec::new();
            for (which, take, count) in ops {
                for _ in 0..count {
                    if take {
                        out.extend(magazines[which].take());
                    } else if let Some(frame) = out.pop() {
                        magazines[which].give(frame);
                    }
                }
                let held: usize = magazines.iter().map(Magazine::held).sum();
                prop_assert_eq!(pool.outstanding() as usize, held + out.len());
                let distinct: BTreeSet<usize> = out.iter().map(Frame::chunk_address).collect();
                prop_assert_eq!(distinct.len(), out.len());
            }
            out.into_iter().for_each(|frame| magazines[0].give(frame));
            magazines.iter_mut().for_each(Magazine::flush);
            prop_assert_eq!(pool.outstanding(), 0);
        }
    }
}
