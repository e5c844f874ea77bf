//! Frames: move-only tokens for chunks of packet memory.
//!
//! A [`Frame`] gives exclusive access to one chunk. It cannot be cloned; giving it to a port or a magazine moves it,
//! so using a frame after it was sent, or giving it back twice, does not compile:
//!
//! ```compile_fail,E0382
//! # use tidegate_io::{HugePages, Pool};
//! # let pool = Pool::new(64, 2048, HugePages::Off).unwrap();
//! let mut magazine = pool.magazine();
//! let frame = magazine.take().unwrap();
//! magazine.give(frame);
//! magazine.give(frame); // error: use of moved value
//! ```
//!
//! ```compile_fail,E0382
//! # use tidegate_io::{Batch, HugePages, Pool, Port, memory};
//! # let pool = Pool::new(64, 2048, HugePages::Off).unwrap();
//! # let (mut port, _peer) = memory::pair(&pool, memory::Config::default());
//! let frame = pool.magazine().take().unwrap();
//! let mut batch = Batch::new();
//! batch.push(frame);
//! port.tx(&mut batch);
//! frame.bytes(); // error: borrow of moved value
//! ```
//!
//! ```compile_fail,E0599
//! # use tidegate_io::{HugePages, Pool};
//! # let pool = Pool::new(64, 2048, HugePages::Off).unwrap();
//! let frame = pool.magazine().take().unwrap();
//! let twin = frame.clone(); // error: no method named `clone`
//! ```
//!
//! ```text
//!  chunk (frame_bytes, a power of two)
//!  |<---- headroom ---->|<-------- len -------->|<---- tailroom ---->|
//!                       ^ bytes()
//! ```
//!
//! Received packets begin [`HEADROOM_BYTES`] into their chunk, room enough for any encapsulation.

use std::ptr::NonNull;

use arrayvec::ArrayVec;

use crate::mem::{CACHE_LINE_BYTES, prefetch_line, prefetch_line_write};
use crate::pool;

/// Frames that a port takes or gives in one call, at most.
pub const BATCH_MAX: usize = 64;

/// Frames on their way together.
pub type Batch = ArrayVec<Frame, BATCH_MAX>;

/// Bytes before a received or filled packet: the kernel's `XDP_PACKET_HEADROOM` (include/uapi/linux/bpf.h).
pub const HEADROOM_BYTES: usize = HEADROOM as usize;

/// The same, as frames store it.
pub(crate) const HEADROOM: u16 = 256;

/// Smallest chunk (the kernel's `XDP_UMEM_MIN_CHUNK_SIZE`, net/xdp/xdp_umem.c).
pub const FRAME_BYTES_MIN: u32 = 2048;

/// Largest chunk.
pub const FRAME_BYTES_MAX: u32 = 16384;

/// Largest chunk that the kernel takes: a page, as an AF_XDP chunk never crosses one.
pub const KERNEL_FRAME_BYTES_MAX: u32 = 4096;

/// Which memory a frame belongs to: one value per pool that lives in this process.
///
/// Frames move without a copy between ports of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub(crate) u16);

impl std::fmt::Display for GroupId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(out)
    }
}

/// Exclusive access to one chunk of packet memory, and where in it the packet lies.
///
/// A frame is given back to a [`Magazine`](crate::Magazine) or to a port. One that is dropped is a mistake: it is
/// counted ([`frames_dropped`](crate::pool::frames_dropped)), goes home by a slow way, and stops a debug build.
pub struct Frame {
    /// First byte of the packet, `headroom` bytes after the start of the chunk.
    data: NonNull<u8>,
    headroom: u16,
    len: u16,
    /// Bytes of the chunk; `headroom + len` is never more.
    chunk_bytes: u16,
    group: GroupId,
}

const _: () = assert!(size_of::<Frame>() == 16 && size_of::<Option<Frame>>() == 16);
const _: () = assert!(FRAME_BYTES_MAX <= u16::MAX as u32 && HEADROOM_BYTES < FRAME_BYTES_MIN as usize);

// SAFETY: the token is the only access to its chunk, which is plain memory that outlives it (a pool with frames
// outstanding is never unmapped), so it can be moved to another thread.
unsafe impl Send for Frame {}
// SAFETY: through `&Frame` the chunk is only read.
unsafe impl Sync for Frame {}

impl Frame {
    /// The token for a chunk.
    ///
    /// # Safety
    ///
    /// `chunk` is the start of `chunk_bytes` (at most [`FRAME_BYTES_MAX`]) initialised bytes that stay mapped as long
    /// as the frame lives, belong to `group`, and to which no other frame, and not the kernel, has access.
    /// `headroom + len` is at most `chunk_bytes`.
    #[inline]
    pub(crate) unsafe fn from_chunk(
        chunk: NonNull<u8>,
        chunk_bytes: u16,
        headroom: u16,
        len: u16,
        group: GroupId,
    ) -> Frame {
        debug_assert!(u32::from(headroom) + u32::from(len) <= u32::from(chunk_bytes));
        // SAFETY: `headroom` lies inside the chunk.
        let data = unsafe { chunk.add(headroom as usize) };
        Frame { data, headroom, len, chunk_bytes, group }
    }

    /// Ends the token without ending the chunk's life: the chunk's new owner is a ring or a free list.
    ///
    /// Returns the start of the chunk, the headroom and the length.
    #[inline]
    pub(crate) fn into_chunk(self) -> (NonNull<u8>, u16, u16) {
        let frame = std::mem::ManuallyDrop::new(self);
        // SAFETY: `data` is `headroom` bytes after the start of the chunk.
        (unsafe { frame.data.sub(frame.headroom as usize) }, frame.headroom, frame.len)
    }

    /// Start of the chunk, for telling chunks apart; not for access.
    #[cfg(test)]
    pub(crate) fn chunk_address(&self) -> usize {
        self.data.as_ptr().addr() - self.headroom as usize
    }

    /// Bytes of the packet.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the packet has no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The packet.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `data .. data + len` is inside the chunk, which is initialised memory that only this token gives
        // access to; `&self` excludes writes.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len as usize) }
    }

    /// The packet, for rewriting.
    #[inline]
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` excludes every other access.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len as usize) }
    }

    /// Bytes that the packet can grow by at its front.
    #[inline]
    #[must_use]
    pub fn headroom(&self) -> usize {
        self.headroom as usize
    }

    /// Bytes that the packet can grow by at its end.
    #[inline]
    #[must_use]
    pub fn tailroom(&self) -> usize {
        (self.chunk_bytes - self.headroom - self.len) as usize
    }

    /// Lets the packet begin `n` bytes earlier; false (and nothing changes) if there is no room.
    ///
    /// The new bytes hold whatever was there before.
    #[inline]
    #[must_use]
    pub fn grow_front(&mut self, n: usize) -> bool {
        let step = match u16::try_from(n) {
            Ok(step) if step <= self.headroom => step,
            _ => return false,
        };
        self.headroom -= step;
        self.len += step;
        // SAFETY: the start moves by at most the headroom and stays in the chunk.
        self.data = unsafe { self.data.sub(n) };
        true
    }

    /// Takes `n` bytes off the packet's front; false (and nothing changes) if it is shorter.
    #[inline]
    #[must_use]
    pub fn trim_front(&mut self, n: usize) -> bool {
        let step = match u16::try_from(n) {
            Ok(step) if step <= self.len => step,
            _ => return false,
        };
        self.headroom += step;
        self.len -= step;
        // SAFETY: the start moves by at most the length and stays in the chunk.
        self.data = unsafe { self.data.add(n) };
        true
    }

    /// Keeps `len` bytes of the packet from `off` on and lets `on` others be before them, which hold whatever was there
    /// before; false (and nothing changes) if it has fewer or there is no room.
    #[inline]
    #[must_use]
    pub fn exchange_front(&mut self, off: u16, on: u16, len: u16) -> bool {
        if off > self.len || len > self.len - off || on > self.headroom + off {
            return false;
        }
        self.headroom = self.headroom + off - on;
        self.len = on + len;
        // SAFETY: the first step leads to the packet's end at most, the second back to the chunk's start at most.
        self.data = unsafe { self.data.add(off as usize).sub(on as usize) };
        true
    }

    /// Cuts the packet to `n` bytes, or extends it into the tailroom with whatever is there; false (and nothing
    /// changes) if the chunk ends before that.
    #[inline]
    #[must_use]
    pub fn set_len(&mut self, n: usize) -> bool {
        match u16::try_from(n) {
            Ok(len) if len <= self.chunk_bytes - self.headroom => {
                self.len = len;
                true
            }
            _ => false,
        }
    }

    /// Longest packet that [`fill`](Self::fill) can make, in bytes.
    #[inline]
    #[must_use]
    pub fn capacity(&self) -> usize {
        (self.chunk_bytes - HEADROOM) as usize
    }

    /// Makes the packet a copy of `bytes`, with the standard headroom before it; false (and nothing changes) if they
    /// do not fit.
    #[must_use]
    pub fn fill(&mut self, bytes: &[u8]) -> bool {
        let len = match u16::try_from(bytes.len()) {
            Ok(len) if len <= self.chunk_bytes - HEADROOM => len,
            _ => return false,
        };
        self.reset();
        self.len = len;
        self.bytes_mut().copy_from_slice(bytes);
        true
    }

    /// An empty packet with the standard headroom.
    #[inline]
    pub(crate) fn reset(&mut self) {
        // SAFETY: the first step leads to the start of the chunk, the second to HEADROOM_BYTES into it, and every
        // chunk is longer than that.
        self.data = unsafe { self.data.sub(self.headroom as usize).add(HEADROOM_BYTES) };
        self.headroom = HEADROOM;
        self.len = 0;
    }

    /// Starts to load the first cache lines of the packet: the headers.
    #[inline(always)]
    pub fn prefetch(&self) {
        prefetch_line(self.data.as_ptr());
        if self.len() > CACHE_LINE_BYTES {
            prefetch_line(self.data.as_ptr().wrapping_add(CACHE_LINE_BYTES));
        }
    }

    /// Starts to load the cache lines of the `bytes` before the packet for writing, two at most: where headers go that are
    /// put on.
    #[inline(always)]
    pub fn prefetch_headroom(&self, bytes: usize) {
        if bytes > 0 {
            prefetch_line_write(self.data.as_ptr().wrapping_sub(1));
        }
        if bytes > CACHE_LINE_BYTES {
            prefetch_line_write(self.data.as_ptr().wrapping_sub(bytes));
        }
    }

    /// Memory that the chunk belongs to.
    #[inline]
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }
}

impl Drop for Frame {
    #[cold]
    #[inline(never)]
    fn drop(&mut self) {
        // SAFETY: `self` is not used again by anybody (drop runs once, and a Frame has no drop glue besides this), so
        // the copy is the only token.
        let token = unsafe { std::ptr::read(self) };
        pool::take_in_stray(token);
        debug_assert!(std::thread::panicking(), "a frame was dropped: give it to a magazine or a port");
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Frame({} bytes after {}, group {})", self.len, self.headroom, self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HugePages, Pool};
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        GrowFront(usize),
        TrimFront(usize),
        ExchangeFront(u16, u16, u16),
        SetLen(usize),
        Fill(Vec<u8>),
        Write(u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0usize..300).prop_map(Op::GrowFront),
            (0usize..300).prop_map(Op::TrimFront),
            (0u16..300, 0u16..600, 0u16..2000).prop_map(|(off, on, len)| Op::ExchangeFront(off, on, len)),
            (0usize..17_000).prop_map(Op::SetLen),
            prop::collection::vec(any::<u8>(), 0..1900).prop_map(Op::Fill),
            (0usize..17_000).prop_map(|len| Op::Fill(vec![7; len])),
            any::<u8>().prop_map(Op::Write),
        ]
    }

    /// Fifty naive lines: a chunk is an array, a packet is a range of it.
    struct Oracle {
        chunk: Vec<u8>,
        start: usize,
        end: usize,
    }

    impl Oracle {
        fn apply(&mut self, op: &Op) -> bool {
            let size = self.chunk.len();
            match op {
                Op::GrowFront(n) if *n <= self.start => self.start -= n,
                Op::TrimFront(n) if *n <= self.end - self.start => self.start += n,
                Op::ExchangeFront(off, on, len) => {
                    let (off, on, len) = (usize::from(*off), usize::from(*on), usize::from(*len));
                    if off + len > self.end - self.start || on > self.start + off {
                        return false;
                    }
                    self.end = self.start + off + len;
                    self.start = self.start + off - on;
                }
                Op::SetLen(n) if self.start + n <= size => self.end = self.start + n,
                Op::Fill(bytes) if HEADROOM_BYTES + bytes.len() <= size => {
                    self.start = HEADROOM_BYTES;
                    self.end = HEADROOM_BYTES + bytes.len();
                    self.chunk[self.start..self.end].copy_from_slice(bytes);
                }
                Op::Write(byte) => self.chunk[self.start..self.end].fill(*byte),
                _ => return false,
            }
            true
        }
    }

    proptest! {
        #[test]
        fn a_frame_is_a_range_of_its_chunk(doublings in 0..4u32, ops in prop::collection::vec(op(), 0..60)) {
            let size = FRAME_BYTES_MIN << doublings;
            let pool = Pool::new(3, size, HugePages::Off).unwrap();
            let mut magazine = pool.magazine();
            let (before, mut frame, after) = (magazine.take().unwrap(), magazine.take().unwrap(), magazine.take().unwrap());
            let mut oracle = Oracle { chunk: vec![0; size as usize], start: HEADROOM_BYTES, end: HEADROOM_BYTES };
            for op in &ops {
                let done = match op {
                    Op::GrowFront(n) => frame.grow_front(*n),
                    Op::TrimFront(n) => frame.trim_front(*n),
                    Op::ExchangeFront(off, on, len) => frame.exchange_front(*off, *on, *len),
                    Op::SetLen(n) => frame.set_len(*n),
                    Op::Fill(bytes) => frame.fill(bytes),
                    Op::Write(byte) => {
                        frame.bytes_mut().fill(*byte);
                        true
                    }
                };
                prop_assert_eq!(done, oracle.apply(op), "{:?}", op);
                prop_assert_eq!(frame.bytes(), &oracle.chunk[oracle.start..oracle.end]);
                prop_assert_eq!((frame.headroom(), frame.tailroom()), (oracle.start, size as usize - oracle.end));
                prop_assert_eq!((frame.len(), frame.is_empty()), (oracle.end - oracle.start, oracle.end == oracle.start));
            }
            // The neighbours' chunks are as they were.
            for mut other in [before, after] {
                prop_assert!(other.grow_front(HEADROOM_BYTES) && other.set_len(size as usize));
                prop_assert!(other.bytes().iter().all(|byte| *byte == 0));
                magazine.give(other);
            }
            magazine.give(frame);
        }
    }
}
