//! Ports on AF_XDP sockets: one per queue of a device.
//!
//! [`open`] takes a list of devices and makes everything: the packet memory of each mode group, a socket per queue,
//! the pinhole of each device. From then on a port is driven by its worker alone, and a [`Pinhole`](crate::Pinhole) by
//! whoever decides what is ours.
//!
//! A turn on the rings (all four are `ring.rs`; nothing here allocates or locks):
//!
//! ```text
//!             device                                                        device
//!               |                                                             ^
//!   fill  ----> | ----> receive ---- rx() ---> worker ---- tx() ----> send -> | -> completion
//!    ^                                                                                |
//!    +------------------------ recycle() <---- magazine <---- recycle() <-------------+
//! ```
//!
//! **What the kernel says is checked.** Each port knows which chunks it has lent to the kernel, one bit each (2 KiB for
//! 16,384 frames, so it stays in the first-level cache). A descriptor for a chunk that was not lent, or whose packet
//! leaves its chunk, is counted and makes no frame: two tokens for one chunk can not come into being.
//!
//! **A packet in several frames** is several descriptors (Documentation/networking/af_xdp.rst, "Multi-Buffer Support"),
//! and only a port that was opened for such has them. Both rings may end in the middle of one: what was received of it waits
//! in the port for the rest, and of what is sent no part is written before there is room for all.

mod refuse;
mod open;
mod ring;
mod socket;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::chain::{CHAIN_FRAMES_MAX, Chains};
use crate::frame::{Batch, Frame};
use crate::pinhole::Connection;
use crate::pool::{Depot, Magazine};
use crate::port::{Port, PortCounters, PortFacts, RingLevels, SocketStatistics};

pub use open::{InterfaceConfig, ModeChoice, OpenConfig, Opened, open, preflight};
pub use refuse::OpenError;

/// A packet continues in the next descriptor (`XDP_PKT_CONTD`, include/uapi/linux/if_xdp.h). Never set unless asked for.
const PACKET_CONTINUES: u32 = 1;

/// Shortest packet that is sent: an Ethernet header.
const PACKET_BYTES_MIN: usize = 14;

/// Bytes before the network layer: an Ethernet header and two VLAN tags.
const LINK_BYTES_MAX: u32 = 14 + 4 + 4;

/// System calls that one turn makes for sending, at most. In copy mode one sends 32 packets, or as many as the ring
/// has where the kernel can be told; this many empty a full batch even so, several times.
const SENDS_PER_KICK_MAX: u32 = 8;

/// The queues of one socket as xsk-rs sees them. They are never used (`ring.rs` is), but the socket is closed when
/// all are gone.
struct SocketOwner {
    _queues: (xsk_rs::TxQueue, xsk_rs::RxQueue, xsk_rs::FillQueue, xsk_rs::CompQueue),
}

/// One queue of one device, on an AF_XDP socket.
pub struct AfXdpPort {
    facts: PortFacts,
    counters: PortCounters,
    rx: ring::Consumer<libc::xdp_desc>,
    tx: ring::Producer<libc::xdp_desc>,
    fill: ring::Producer<u64>,
    completion: ring::Consumer<u64>,
    fill_entries: usize,
    /// Chunks that the kernel has from this port.
    lent: Lent,
    /// Where copies of frames of other groups come from.
    spare: Magazine,
    depot: Depot,
    /// Chunks are `1 << chunk_shift` bytes.
    chunk_shift: u32,
    /// Longest packet that is sent, in bytes.
    packet_bytes_max: usize,
    /// What there is to know of packets in several frames, if such were asked for.
    pieces: Option<Box<Pieces>>,
    /// Packets may wait in the send ring for the kernel to be woken.
    sends_wait: bool,
    busy_poll: bool,
    /// The place in the socket map; given up before the socket is closed.
    connection: Option<Connection>,
    descriptor: OwnedFd,
    socket: Option<SocketOwner>,
}

/// Packets in several frames that are not through.
struct Pieces {
    /// Frames of the packet that is being received.
    received: Batch,
    /// Something was wrong with it, which is counted: the rest of it is dropped.
    is_broken: bool,
    /// Chunks lent for sending whose packet goes on in another.
    go_on: Lent,
}

/// What a port is made of.
struct Parts {
    facts: PortFacts,
    depot: Depot,
    ring_entries: u32,
    multi_buffer: bool,
    busy_poll: bool,
    connection: Connection,
    descriptor: OwnedFd,
    socket: SocketOwner,
}

impl AfXdpPort {
    /// Maps the rings of a bound socket and fills the fill ring.
    fn new(parts: Parts) -> io::Result<AfXdpPort> {
        use std::os::fd::AsFd;
        let Parts { facts, depot, ring_entries, multi_buffer, busy_poll, connection, descriptor, socket } = parts;
        let pieces = || Pieces { received: Batch::new(), is_broken: false, go_on: Lent::new(depot.frames()) };
        let fd = descriptor.as_fd();
        let mut port = AfXdpPort {
            rx: ring::Consumer::new(fd, ring::Which::Rx, ring_entries)?,
            tx: ring::Producer::new(fd, ring::Which::Tx, ring_entries)?,
            fill: ring::Producer::new(fd, ring::Which::Fill, ring_entries)?,
            completion: ring::Consumer::new(fd, ring::Which::Completion, ring_entries)?,
            fill_entries: ring_entries as usize,
            lent: Lent::new(depot.frames()),
            spare: depot.magazine(),
            chunk_shift: depot.frame_bytes().trailing_zeros(),
            packet_bytes_max: (facts.mtu + LINK_BYTES_MAX) as usize,
            counters: PortCounters::default(),
            pieces: multi_buffer.then(|| Box::new(pieces())),
            sends_wait: false,
            busy_poll,
            connection: Some(connection),
            facts,
            depot,
            descriptor,
            socket: Some(socket),
        };
        let mut magazine = port.depot.magazine();
        port.recycle(&mut magazine);
        port.counters = PortCounters::default();
        Ok(port)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.descriptor.as_fd()
    }

    /// The token for a received descriptor, if it is what the kernel may say.
    #[inline]
    fn received(&mut self, descriptor: libc::xdp_desc) -> Option<Frame> {
        let chunk = descriptor.addr >> self.chunk_shift;
        let Some(index) = self.lent.take(chunk) else {
            self.counters.rx_violations += 1;
            return None;
        };
        let chunk_bytes = 1u64 << self.chunk_shift;
        let headroom = descriptor.addr & (chunk_bytes - 1);
        let fits = headroom + u64::from(descriptor.len) <= chunk_bytes && descriptor.options & PACKET_CONTINUES == 0;
        let place = match (u16::try_from(headroom), u16::try_from(descriptor.len)) {
            (Ok(headroom), Ok(len)) if fits => Some((headroom, len)),
            _ => None,
        };
        let (headroom, len) = place.unwrap_or((0, 0));
        // SAFETY: `index` is below the number of chunks (take), the chunk was lent to the kernel by this port, so no
        // token for it exists, and with this descriptor the kernel gave it back; the numbers fit the chunk (above).
        let frame = unsafe { self.depot.token(index, headroom, len) };
        if place.is_some() {
            return Some(frame);
        }
        self.counters.rx_violations += 1;
        self.spare.give(frame);
        None
    }

    /// A frame that this port can send, or nothing; what becomes of the original is seen to.
    #[inline]
    fn sendable(&mut self, frame: Frame) -> Option<Frame> {
        let length_fits = (PACKET_BYTES_MIN..=self.packet_bytes_max).contains(&frame.len());
        if length_fits && frame.group() == self.facts.group {
            return Some(frame);
        }
        self.unusual(frame, length_fits)
    }

    #[cold]
    fn unusual(&mut self, frame: Frame, length_fits: bool) -> Option<Frame> {
        let copy = if length_fits { self.spare.copy_of(&frame) } else { None };
        self.spare.give(frame);
        match copy {
            Some(_) => self.counters.tx_copied += 1,
            None => self.counters.tx_rejected += 1,
        }
        copy
    }

    /// Receives whole packets from at most so many frames; those in several frames are dropped if each is to be `alone`.
    fn receive(&mut self, chains: &mut Chains, frames_max: usize, alone: bool) -> usize {
        let Some(mut pieces) = self.pieces.take() else { return 0 };
        let (before, ready) = (chains.len(), self.rx.ready(frames_max.saturating_sub(pieces.received.len())));
        for _ in 0..ready {
            let descriptor = self.rx.read();
            let goes_on = descriptor.options & PACKET_CONTINUES != 0;
            match self.received(libc::xdp_desc { options: descriptor.options & !PACKET_CONTINUES, ..descriptor }) {
                None => pieces.is_broken = true,
                Some(frame) if pieces.is_broken || pieces.received.len() == CHAIN_FRAMES_MAX => {
                    self.counters.rx_violations += u64::from(!pieces.is_broken);
                    pieces.is_broken = true;
                    self.spare.give(frame);
                }
                Some(frame) => pieces.received.push(frame),
            }
            if goes_on {
                continue;
            }
            if alone && pieces.received.len() > 1 && !pieces.is_broken {
                self.counters.rx_violations += 1;
                pieces.is_broken = true;
            }
            let bytes: usize = pieces.received.iter().map(Frame::len).sum();
            if !pieces.is_broken && chains.push(&mut pieces.received) {
                self.counters.rx_packets += 1;
                self.counters.rx_bytes += bytes as u64;
            }
            pieces.received.drain(..).for_each(|frame| self.spare.give(frame));
            pieces.is_broken = false;
        }
        if ready > 0 {
            self.rx.release();
        }
        self.pieces = Some(pieces);
        chains.len() - before
    }

    /// Writes the frames of a packet into the send ring, which has room for them, or discards a packet that cannot be sent.
    fn send_packet(&mut self, packet: &mut Batch) {
        if packet.len() == 1 {
            let frame = packet.pop().and_then(|frame| self.sendable(frame));
            packet.extend(frame);
        }
        if packet.is_empty() {
            return;
        }
        let bytes: usize = packet.iter().map(Frame::len).sum();
        let is_ours = packet.iter().all(|frame| frame.group() == self.facts.group && !frame.is_empty());
        if !is_ours || !(PACKET_BYTES_MIN..=self.packet_bytes_max).contains(&bytes) {
            packet.drain(..).for_each(|frame| self.spare.give(frame));
            self.counters.tx_rejected += 1;
            return;
        }
        self.counters.tx_packets += 1;
        self.counters.tx_bytes += bytes as u64;
        let count = packet.len();
        for (number, frame) in packet.drain(..).enumerate() {
            let (addr, len) = self.lend(frame);
            let goes_on = number + 1 < count;
            if goes_on && let Some(pieces) = &mut self.pieces {
                pieces.go_on.put(addr >> self.chunk_shift);
            }
            self.tx.write(libc::xdp_desc { addr, len, options: if goes_on { PACKET_CONTINUES } else { 0 } });
        }
    }

    /// Takes back what was sent. With packets in several frames, the last frame of each counts.
    fn complete<const PIECES: bool>(&mut self, magazine: &mut Magazine) {
        let ready = self.completion.ready(usize::MAX);
        for _ in 0..ready {
            let address = self.completion.read();
            match self.lent.take(address >> self.chunk_shift) {
                Some(index) => {
                    let pieces = if PIECES { self.pieces.as_mut() } else { None };
                    let goes_on = pieces.is_some_and(|pieces| pieces.go_on.take(u64::from(index)).is_some());
                    self.counters.tx_completed += u64::from(!goes_on);
                    // SAFETY: as in `received`; an empty packet fits any chunk.
                    magazine.give(unsafe { self.depot.token(index, 0, 0) });
                }
                None => self.counters.tx_violations += 1,
            }
        }
        if ready > 0 {
            self.completion.release();
        }
    }

    fn refill(&mut self, magazine: &mut Magazine) {
        let free = self.fill.free(self.fill_entries);
        for _ in 0..free {
            let Some(frame) = magazine.take() else {
                self.counters.fill_starved += 1;
                break;
            };
            let offset = self.lend(frame).0;
            self.fill.write(offset);
        }
        if free > 0 {
            self.fill.publish();
        }
    }

    /// Gives a frame's chunk to the kernel; the address of its packet and its length.
    #[inline]
    fn lend(&mut self, frame: Frame) -> (u64, u32) {
        let (chunk, headroom, len) = frame.into_chunk();
        let offset = self.depot.offset(chunk) as u64;
        self.lent.put(offset >> self.chunk_shift);
        (offset + u64::from(headroom), u32::from(len))
    }

    /// Wakes the kernel until it has taken what can be taken, a bounded number of times.
    fn send(&mut self) {
        for _ in 0..SENDS_PER_KICK_MAX {
            let before = self.tx.pending();
            if before == 0 {
                self.sends_wait = false;
                return;
            }
            self.counters.kicks += 1;
            match socket::wake_tx(self.fd()).map_err(|error| error.raw_os_error()) {
                // In zero-copy mode the driver was told and goes on by itself.
                Ok(()) => break,
                // In copy mode: there is more than one call may send, or as much on the way as there may be.
                Err(Some(libc::EAGAIN)) if self.tx.pending() < before => {}
                Err(Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS)) => break,
                Err(_) => return self.kick_failed(),
            }
        }
        self.sends_wait = self.tx.pending() > 0;
    }

    #[cold]
    fn kick_failed(&mut self) {
        self.counters.kick_errors += 1;
    }
}

impl Port for AfXdpPort {
    fn rx(&mut self, batch: &mut Batch) -> usize {
        if self.pieces.is_some() {
            let mut chains = Chains::new();
            let count = self.receive(&mut chains, batch.remaining_capacity(), true);
            batch.extend(chains.drain());
            return count;
        }
        let (before, bytes_before) = (batch.len(), self.counters.rx_bytes);
        let ready = self.rx.ready(batch.remaining_capacity());
        if ready == 0 {
            return 0;
        }
        let mut bytes = 0;
        for _ in 0..ready {
            let descriptor = self.rx.read();
            if let Some(frame) = self.received(descriptor) {
                bytes += frame.len() as u64;
                batch.push(frame);
            }
        }
        self.rx.release();
        let count = batch.len() - before;
        self.counters.rx_packets += count as u64;
        self.counters.rx_bytes = bytes_before + bytes;
        count
    }

    fn tx(&mut self, batch: &mut Batch) -> usize {
        let count = self.tx.free(batch.len());
        if count == 0 {
            return 0;
        }
        for frame in batch.drain(..count) {
            let Some(frame) = self.sendable(frame) else { continue };
            self.counters.tx_packets += 1;
            self.counters.tx_bytes += frame.len() as u64;
            let (addr, len) = self.lend(frame);
            self.tx.write(libc::xdp_desc { addr, len, options: 0 });
        }
        self.tx.publish();
        self.sends_wait = true;
        count
    }

    fn has_chains(&self) -> bool {
        self.pieces.is_some()
    }

    fn rx_chains(&mut self, chains: &mut Chains) -> usize {
        match &self.pieces {
            Some(_) => self.receive(chains, chains.room(), false),
            None => self.rx(&mut chains.frames),
        }
    }

    fn tx_chains(&mut self, chains: &mut Chains) -> usize {
        if self.pieces.is_none() && chains.len() < chains.frames.len() {
            return 0;
        }
        let before = chains.len();
        let free = self.tx.free(chains.frames.len());
        let mut packet = Batch::new();
        for (frame, goes_on) in chains.take(free) {
            packet.push(frame);
            if !goes_on {
                self.send_packet(&mut packet);
            }
        }
        let count = before - chains.len();
        if count > 0 {
            self.tx.publish();
            self.sends_wait = true;
        }
        count
    }

    fn recycle(&mut self, magazine: &mut Magazine) {
        match &self.pieces {
            None => self.complete::<false>(magazine),
            Some(_) => self.complete::<true>(magazine),
        }
        if magazine.group() == self.facts.group {
            self.refill(magazine);
        }
    }

    fn kick(&mut self) {
        if self.sends_wait && self.tx.needs_wakeup() {
            self.send();
        }
        if self.fill.needs_wakeup() || self.busy_poll {
            self.counters.kicks += 1;
            // Nothing to receive is not an error.
            let _ = socket::wake_rx(self.fd());
        }
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn facts(&self) -> &PortFacts {
        &self.facts
    }

    fn socket_statistics(&self) -> io::Result<Option<SocketStatistics>> {
        socket::statistics(self.fd()).map(Some)
    }

    fn levels(&self) -> Option<RingLevels> {
        let (rx, tx) = (self.rx.level(), self.tx.level());
        Some(RingLevels { rx, tx, fill: self.fill.level(), completion: self.completion.level() })
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }
}

impl Drop for AfXdpPort {
    fn drop(&mut self) {
        if let Some(mut pieces) = self.pieces.take() {
            pieces.received.drain(..).for_each(|frame| self.spare.give(frame));
        }
        drop(self.connection.take());
        drop(self.socket.take());
        // The descriptor of the first socket of a group is that of the UMEM, so closing the socket need not have ended
        // the kernel's access to what was lent. It ends with the memory.
        self.depot.note_kept_by_kernel(self.lent.count());
    }
}

impl std::fmt::Debug for AfXdpPort {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let PortFacts { device, queue, mode, .. } = &self.facts;
        write!(out, "AfXdpPort({device} queue {queue}, {mode}, descriptor {})", self.descriptor.as_raw_fd())
    }
}

/// The set of chunks that a port has lent to the kernel.
struct Lent {
    words: Box<[u64]>,
}

impl Lent {
    fn new(frames: u32) -> Lent {
        Lent { words: vec![0; (frames as usize).div_ceil(64)].into_boxed_slice() }
    }

    #[inline]
    fn put(&mut self, chunk: u64) {
        // Chunks of tokens are in range.
        if let Some(word) = self.words.get_mut((chunk / 64) as usize) {
            *word |= 1 << (chunk % 64);
        }
    }

    /// Takes `chunk` out; nothing if it is not in, as for every number beyond the last chunk.
    #[inline]
    fn take(&mut self, chunk: u64) -> Option<u32> {
        let word = self.words.get_mut(usize::try_from(chunk / 64).ok()?)?;
        let bit = 1 << (chunk % 64);
        if *word & bit == 0 {
            return None;
        }
        *word &= !bit;
        // Always so: it is below 64 times the number of words, which came from a u32.
        u32::try_from(chunk).ok()
    }

    fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// The oracle is a set; chunk numbers from the kernel may be anything.
        #[test]
        fn lent_is_a_set_of_chunks(frames in 1u32..300, ops in prop::collection::vec((any::<bool>(), prop_oneof![0u64..320, any::<u64>()]), 0..200)) {
            let (mut lent, mut oracle) = (Lent::new(frames), BTreeSet::new());
            for (put, chunk) in ops {
                if put && chunk < u64::from(frames) {
                    lent.put(chunk);
                    oracle.insert(chunk);
                } else if !put {
                    prop_assert_eq!(lent.take(chunk).map(u64::from), oracle.take(&chunk));
                }
                prop_assert_eq!(lent.count() as usize, oracle.len());
            }
        }
    }
}
