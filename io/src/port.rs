//! What a port is: one queue of one device, frames in and frames out.
//!
//! All ports follow the same turn: [`rx`](Port::rx), work, [`tx`](Port::tx), [`recycle`](Port::recycle),
//! [`kick`](Port::kick). None of these allocates, locks or blocks. Everything else is for the cold path.

use std::io;
use std::os::fd::BorrowedFd;

use crate::chain::Chains;
use crate::frame::{Batch, GroupId};
use crate::pool::Magazine;

/// How frames pass between a port and its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// AF_XDP, the device reads and writes our memory itself.
    ZeroCopy,
    /// AF_XDP on a native XDP program, the kernel copies.
    Copy,
    /// AF_XDP on a generic XDP program, the kernel copies, after it has built an skb.
    Skb,
    /// No device: the other end is in this process.
    Memory,
    /// No device: packets come from a capture file and go to one.
    Pcap,
}

impl Mode {
    /// The name that configuration and output use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::ZeroCopy => "zero-copy",
            Mode::Copy => "copy",
            Mode::Skb => "skb",
            Mode::Memory => "memory",
            Mode::Pcap => "pcap",
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.pad(self.name())
    }
}

/// What is known about a port from the moment it is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortFacts {
    /// Name of the device.
    pub device: String,
    /// The kernel's index of the device; 0 if there is none.
    pub ifindex: u32,
    /// Queue of the device.
    pub queue: u32,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest network-layer packet the device sends, in bytes.
    pub mtu: u32,
    /// How frames pass to and from the device.
    pub mode: Mode,
    /// Memory that its frames come from; frames of others are copied.
    pub group: GroupId,
}

/// What a port has done since it was opened. Plain numbers: the port belongs to one worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Received descriptors that were refused: chunk not lent to the kernel, a packet that leaves its chunk, or one in more
    /// frames than were asked for.
    pub rx_violations: u64,
    /// Packets accepted for sending.
    pub tx_packets: u64,
    /// Bytes accepted for sending.
    pub tx_bytes: u64,
    /// Packets whose frames came back from the device after [`Port::tx`] accepted them.
    pub tx_completed: u64,
    /// Completions that were refused: chunk not lent to the kernel.
    pub tx_violations: u64,
    /// Packets that could never be sent (empty, too long, or no frame to copy into) and were discarded by the port.
    pub tx_rejected: u64,
    /// Packets that were copied since their frame was of another group.
    pub tx_copied: u64,
    /// Turns in which the magazine had no frame for the fill ring.
    pub fill_starved: u64,
    /// System calls made to wake the kernel.
    pub kicks: u64,
    /// Those that failed for another reason than that there was more to do.
    pub kick_errors: u64,
}

/// The kernel's own counters of a socket (`struct xdp_statistics`, include/uapi/linux/if_xdp.h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketStatistics {
    /// Packets dropped for other reasons than a full ring, such as being longer than a frame.
    pub rx_dropped: u64,
    /// Invalid descriptors in the fill ring.
    pub rx_invalid_descs: u64,
    /// Invalid descriptors in the send ring.
    pub tx_invalid_descs: u64,
    /// Packets dropped since the receive ring was full.
    pub rx_ring_full: u64,
    /// Packets dropped since the fill ring was empty.
    pub rx_fill_ring_empty_descs: u64,
    /// Times the kernel found the send ring empty.
    pub tx_ring_empty_descs: u64,
}

impl SocketStatistics {
    /// Packets that were handed to the socket and lost by it, in copy mode: each is in exactly one of these two.
    ///
    /// A packet that finds the fill ring empty is counted as `rx_dropped` as well as `rx_fill_ring_empty_descs`
    /// (`__xsk_rcv` and `xp_alloc`, net/xdp/xsk.c and xsk_buff_pool.c), so the latter must not be added. In zero-copy
    /// mode a device that finds no frames drops packets before the program, and counts them itself.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.rx_dropped + self.rx_ring_full
    }
}

/// How many entries of a ring are in use, and how many it has.
pub type Level = (u32, u32);

/// How full the rings of a socket are: each in use means waiting for whoever takes from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingLevels {
    /// Packets that wait for us.
    pub rx: Level,
    /// Packets that wait for the device.
    pub tx: Level,
    /// Frames that wait to be received into: few are trouble.
    pub fill: Level,
    /// Frames that were sent and wait for us.
    pub completion: Level,
}

/// One queue of one device.
pub trait Port: Send {
    /// Appends received frames to `batch` until it is full or there are no more; returns how many.
    fn rx(&mut self, batch: &mut Batch) -> usize;

    /// Sends frames from the front of `batch`. Those taken leave it, the others stay in order; returns how many left.
    ///
    /// A packet that this port could never send leaves too, and is counted as `tx_rejected`.
    fn tx(&mut self, batch: &mut Batch) -> usize;

    /// Whether packets may lie in several frames: [`rx_chains`](Self::rx_chains) gives such, and
    /// [`tx_chains`](Self::tx_chains) takes them.
    fn has_chains(&self) -> bool {
        false
    }

    /// As [`rx`](Self::rx), with packets in several frames among them; each is there whole. Returns how many packets.
    ///
    /// [`rx`](Self::rx) itself never gives a part of one: it drops such packets, counted as `rx_violations`.
    fn rx_chains(&mut self, chains: &mut Chains) -> usize {
        self.rx(&mut chains.frames)
    }

    /// As [`tx`](Self::tx), with packets in several frames among them, which leave `chains` whole or not at all. Returns how
    /// many packets left.
    ///
    /// A port without [`has_chains`](Self::has_chains) takes nothing as long as one of them lies in several frames. One
    /// with it copies no such packet: from frames of another group it is discarded, counted as `tx_rejected`.
    fn tx_chains(&mut self, chains: &mut Chains) -> usize {
        if chains.len() == chains.frames.len() { self.tx(&mut chains.frames) } else { 0 }
    }

    /// Moves frames whose packets were sent into `magazine`, and frames from `magazine` to where packets are received.
    ///
    /// With a magazine of another group only the first half is done.
    fn recycle(&mut self, magazine: &mut Magazine);

    /// Ends a turn: wakes the kernel if it waits to be woken.
    fn kick(&mut self);

    /// What was done so far.
    fn counters(&self) -> PortCounters;

    /// What the port is.
    fn facts(&self) -> &PortFacts;

    /// The kernel's counters, for ports that have a socket. Makes a system call.
    ///
    /// # Errors
    ///
    /// What getsockopt(2) reports.
    fn socket_statistics(&self) -> io::Result<Option<SocketStatistics>>;

    /// How full the rings to and from the kernel are right now, for ports that have such.
    fn levels(&self) -> Option<RingLevels> {
        None
    }

    /// What to sleep on until packets come, for ports that have such a thing.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}
