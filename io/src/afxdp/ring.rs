//! Our side of the four rings that an AF_XDP socket shares with the kernel.
//!
//! xsk-rs creates and binds the socket; the rings are mapped here once more and driven from Rust, for two reasons.
//! Its descriptors can only hold addresses that came from a ring, while an encapsulated packet begins before the place
//! where it was received. And its ring access is a call into C for each descriptor.
//!
//! Each ring is two cursors that only grow, and a power of two of entries. Our cursor is private and is published once
//! per batch with a release store; the kernel's is read with acquire, only when the cached copy does not suffice
//! (libxdp's `xsk_ring_cons__peek` and `xsk_prod_nb_free`, headers/xdp/xsk.h of xdp-tools 1.6.0). What the kernel wrote
//! is never trusted: counts are bound by the ring's size, entries are copied out once and checked by the port.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Kernel waits for a system call before it looks at the ring (`XDP_RING_NEED_WAKEUP`, include/uapi/linux/if_xdp.h).
const NEED_WAKEUP: u32 = 1;

/// Which of the four rings, by its place in the socket's address space.
#[derive(Debug, Clone, Copy)]
pub(super) enum Which {
    Rx,
    Tx,
    Fill,
    Completion,
}

/// One shared mapping of a ring.
struct Map {
    start: NonNull<u8>,
    bytes: usize,
    producer: usize,
    consumer: usize,
    flags: usize,
    entries: usize,
    size: u32,
}

// SAFETY: a mapping is valid on every thread; all access goes through `&mut` ends below.
unsafe impl Send for Map {}

impl Map {
    fn new(socket: BorrowedFd<'_>, which: Which, size: u32, entry_bytes: usize) -> io::Result<Map> {
        let all = offsets(socket)?;
        let (offset, place) = match which {
            Which::Rx => (all.rx, libc::XDP_PGOFF_RX_RING),
            Which::Tx => (all.tx, libc::XDP_PGOFF_TX_RING),
            Which::Fill => (all.fr, i64::try_from(libc::XDP_UMEM_PGOFF_FILL_RING).map_err(io::Error::other)?),
            Which::Completion => {
                (all.cr, i64::try_from(libc::XDP_UMEM_PGOFF_COMPLETION_RING).map_err(io::Error::other)?)
            }
        };
        let number = |value: u64| usize::try_from(value).map_err(io::Error::other);
        let entries = number(offset.desc)?;
        let bytes = entries + size as usize * entry_bytes;
        let cursors = [number(offset.producer)?, number(offset.consumer)?, number(offset.flags)?];
        if cursors.iter().any(|at| at + 4 > entries || at % 4 != 0) || entries % 8 != 0 {
            return Err(io::Error::other("the kernel describes a ring that this program does not understand"));
        }
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                socket.as_raw_fd(),
                place,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap returned address zero"))?;
        let [producer, consumer, flags] = cursors;
        Ok(Map { start, bytes, producer, consumer, flags, entries, size })
    }

    #[inline(always)]
    fn cursor(&self, at: usize) -> &AtomicU32 {
        // SAFETY: `new` has checked that `at` is aligned and lies inside the mapping, before the entries; the kernel
        // accesses it atomically as well.
        unsafe { self.start.add(at).cast::<AtomicU32>().as_ref() }
    }

    /// Where the entry for cursor position `index` lies.
    #[inline(always)]
    fn entry<E>(&self, index: u32) -> NonNull<E> {
        // SAFETY: the masked index is below `size`, and the mapping holds that many entries (of the size given to
        // `new`, which is that of E) after `entries`.
        unsafe { self.start.add(self.entries).cast::<E>().add((index & (self.size - 1)) as usize) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` and all references into it ended with the ends below.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// A ring that we write and the kernel reads: fill, send.
pub(super) struct Producer<E> {
    map: Map,
    /// Next position to write.
    head: u32,
    /// A past value of the kernel's cursor.
    consumed: u32,
    entry: PhantomData<E>,
}

/// A ring that the kernel writes and we read: receive, completion.
pub(super) struct Consumer<E> {
    map: Map,
    /// Next position to read.
    tail: u32,
    /// A past value of the kernel's cursor.
    produced: u32,
    entry: PhantomData<E>,
}

impl<E> Producer<E> {
    /// Entries that the kernel has not read yet, and how many there are.
    pub(super) fn level(&self) -> (u32, u32) {
        let consumed = self.map.cursor(self.map.consumer).load(Ordering::Relaxed);
        (self.head.wrapping_sub(consumed).min(self.map.size), self.map.size)
    }
}

impl<E> Consumer<E> {
    /// Entries that were not read yet, and how many there are.
    pub(super) fn level(&self) -> (u32, u32) {
        let produced = self.map.cursor(self.map.producer).load(Ordering::Relaxed);
        (produced.wrapping_sub(self.tail).min(self.map.size), self.map.size)
    }
}

impl<E: Copy> Producer<E> {
    /// Maps a ring of `size` entries (a power of two) of a bound socket.
    pub(super) fn new(socket: BorrowedFd<'_>, which: Which, size: u32) -> io::Result<Producer<E>> {
        let map = Map::new(socket, which, size, size_of::<E>())?;
        let head = map.cursor(map.producer).load(Ordering::Relaxed);
        let consumed = map.cursor(map.consumer).load(Ordering::Acquire);
        Ok(Producer { map, head, consumed, entry: PhantomData })
    }

    /// Entries that can be written now, `want` at most.
    #[inline]
    pub(super) fn free(&mut self, want: usize) -> usize {
        let free = |consumed: u32| self.map.size.saturating_sub(self.head.wrapping_sub(consumed)) as usize;
        if free(self.consumed) < want {
            self.consumed = self.map.cursor(self.map.consumer).load(Ordering::Acquire);
        }
        free(self.consumed).min(want)
    }

    /// Writes an entry. No more than [`free`](Self::free) said, or the kernel's entries are overwritten.
    #[inline]
    pub(super) fn write(&mut self, entry: E) {
        // SAFETY: the place lies in the mapping and is aligned for E (8 bytes at most, checked in `new`).
        unsafe { self.map.entry::<E>(self.head).write_volatile(entry) };
        self.head = self.head.wrapping_add(1);
    }

    /// Shows the kernel what was written.
    #[inline]
    pub(super) fn publish(&mut self) {
        self.map.cursor(self.map.producer).store(self.head, Ordering::Release);
    }

    /// Entries that the kernel has not read yet.
    #[inline]
    pub(super) fn pending(&mut self) -> u32 {
        self.consumed = self.map.cursor(self.map.consumer).load(Ordering::Acquire);
        self.head.wrapping_sub(self.consumed).min(self.map.size)
    }

    /// Whether the kernel waits to be woken.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.map.cursor(self.map.flags).load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }
}

impl<E: Copy> Consumer<E> {
    /// Maps a ring of `size` entries (a power of two) of a bound socket.
    pub(super) fn new(socket: BorrowedFd<'_>, which: Which, size: u32) -> io::Result<Consumer<E>> {
        let map = Map::new(socket, which, size, size_of::<E>())?;
        let tail = map.cursor(map.consumer).load(Ordering::Relaxed);
        Ok(Consumer { map, tail, produced: tail, entry: PhantomData })
    }

    /// Entries that can be read now, `want` at most.
    #[inline]
    pub(super) fn ready(&mut self, want: usize) -> usize {
        let ready = |produced: u32| produced.wrapping_sub(self.tail).min(self.map.size) as usize;
        if ready(self.produced) < want {
            self.produced = self.map.cursor(self.map.producer).load(Ordering::Acquire);
        }
        ready(self.produced).min(want)
    }

    /// Copies an entry out. No more than [`ready`](Self::ready) said.
    #[inline]
    pub(super) fn read(&mut self) -> E {
        // SAFETY: the place lies in the mapping, is aligned for E, and every bit pattern is an E (integers). Volatile,
        // so that what is checked is what is used.
        let entry = unsafe { self.map.entry::<E>(self.tail).read_volatile() };
        self.tail = self.tail.wrapping_add(1);
        entry
    }

    /// Gives what was read back to the kernel.
    #[inline]
    pub(super) fn release(&mut self) {
        self.map.cursor(self.map.consumer).store(self.tail, Ordering::Release);
    }
}

/// Where the cursors and entries of each ring lie (`XDP_MMAP_OFFSETS`).
fn offsets(socket: BorrowedFd<'_>) -> io::Result<libc::xdp_mmap_offsets> {
    super::socket::option(socket, libc::XDP_MMAP_OFFSETS)
}
