//! A port without a device: its other end is a value in the same process.
//!
//! Made for tests, simulation and benches. It has the rings of a real port (fill, receive, send, completion), so that a
//! worker that starves its fill ring or forgets completions sees the same here as it would on a device. After it is
//! made, the port's side allocates nothing.

use std::io;
use std::os::fd::BorrowedFd;

use crate::frame::{Batch, Frame};
use crate::mem::spsc::{self, Consumer, Producer};
use crate::pool::{Depot, Homing, Magazine, Pool};
use crate::port::{Mode, Port, PortCounters, PortFacts, SocketStatistics};

/// What the imagined device is like.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name.
    pub device: String,
    /// Its index.
    pub ifindex: u32,
    /// Its queue.
    pub queue: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Entries of each ring, rounded up to a power of two.
    pub ring_entries: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            device: "memory0".to_owned(),
            ifindex: 1,
            queue: 0,
            mac: [0x02, 0, 0, 0, 0, 1],
            mtu: 1500,
            ring_entries: 512,
        }
    }
}

/// The worker's end.
#[derive(Debug)]
pub struct MemoryPort {
    facts: PortFacts,
    counters: PortCounters,
    /// Empty frames for packets to come.
    fill: Producer<Homing>,
    received: Consumer<Homing>,
    sending: Producer<Homing>,
    completed: Consumer<Homing>,
    /// Where copies of frames of other groups come from, and the reason that the memory outlives the rings.
    spare: Magazine,
}

/// The world's end: injects packets and sees what was sent.
#[derive(Debug)]
pub struct MemoryPeer {
    fill: Consumer<Homing>,
    received: Producer<Homing>,
    sending: Consumer<Homing>,
    completed: Producer<Homing>,
    /// Packets refused since there was no frame in the fill ring.
    fill_empty: u64,
    /// The reason that the memory outlives the rings.
    _depot: Depot,
}

/// Both ends of a port whose frames come from `pool`.
///
/// The fill ring is stocked from the pool at once, with a quarter of it at most, so that packets can be injected
/// before the first turn.
#[must_use]
pub fn pair(pool: &Pool, config: Config) -> (MemoryPort, MemoryPeer) {
    let (mut fill, fill_out) = spsc::ring(config.ring_entries);
    let (received_in, received) = spsc::ring(config.ring_entries);
    let (sending, sending_out) = spsc::ring(config.ring_entries);
    // Room for every frame that can be on its way out, so that completing never fails.
    let (completed_in, completed) = spsc::ring(config.ring_entries.max(1).next_power_of_two() * 2);
    let mut magazine = pool.magazine();
    for _ in 0..fill.capacity().min((pool.frames() as usize).div_ceil(4)) {
        let Some(frame) = magazine.take() else { break };
        if fill.push(Homing::new(frame)).is_err() {
            break;
        }
    }
    magazine.flush();
    let Config { device, ifindex, queue, mac, mtu, .. } = config;
    let facts = PortFacts { device, ifindex, queue, mac, mtu, mode: Mode::Memory, group: pool.group() };
    let port =
        MemoryPort { facts, counters: PortCounters::default(), fill, received, sending, completed, spare: magazine };
    let peer = MemoryPeer {
        fill: fill_out,
        received: received_in,
        sending: sending_out,
        completed: completed_in,
        fill_empty: 0,
        _depot: pool.depot(),
    };
    (port, peer)
}

impl MemoryPeer {
    /// Lets the port receive a copy of `packet`; false if its fill ring is empty, its receive ring full, or the packet
    /// longer than a frame.
    pub fn inject(&mut self, packet: &[u8]) -> bool {
        if self.received.free() == 0 {
            return false;
        }
        let Some(frame) = self.fill.pop() else {
            self.fill_empty += 1;
            return false;
        };
        let mut frame = frame.into_frame();
        // What does not fit is lost with its frame going home, as on a device.
        let fits = frame.fill(packet);
        if !fits {
            Depot::send_home(frame);
            return false;
        }
        self.received.push(Homing::new(frame)).is_ok()
    }

    /// Takes out a copy of the oldest packet that was sent, and completes it.
    pub fn take_sent(&mut self) -> Option<Vec<u8>> {
        let mut packet = Vec::new();
        self.take_sent_into(&mut packet).then_some(packet)
    }

    /// Makes `packet` a copy of the oldest packet that was sent, and completes it; false (and nothing changes) if
    /// there is none, or no room for its completion.
    pub fn take_sent_into(&mut self, packet: &mut Vec<u8>) -> bool {
        self.complete(|bytes| {
            packet.clear();
            packet.extend_from_slice(bytes);
        })
    }

    /// Completes everything that was sent without looking at it; returns how many packets that were.
    pub fn discard_sent(&mut self) -> usize {
        let mut count = 0;
        while self.complete(|_| ()) {
            count += 1;
        }
        count
    }

    /// Packets that were injected while there was no frame for them.
    #[must_use]
    pub fn fill_empty(&self) -> u64 {
        self.fill_empty
    }

    fn complete(&mut self, look: impl FnOnce(&[u8])) -> bool {
        // A device whose completion ring is full stops sending.
        if self.completed.free() == 0 {
            return false;
        }
        let Some(frame) = self.sending.pop() else { return false };
        look(frame.frame().bytes());
        self.completed.push(frame).is_ok()
    }
}

impl MemoryPort {
    /// The frame itself, or a copy in one of ours; the original goes home.
    #[inline]
    fn localise(&mut self, frame: Frame) -> Option<Frame> {
        if frame.group() == self.facts.group { Some(frame) } else { self.copy(frame) }
    }

    #[cold]
    fn copy(&mut self, frame: Frame) -> Option<Frame> {
        let copy = self.spare.copy_of(&frame);
        Depot::send_home(frame);
        self.counters.tx_copied += u64::from(copy.is_some());
        copy
    }
}

impl Port for MemoryPort {
    fn rx(&mut self, batch: &mut Batch) -> usize {
        let before = batch.len();
        let count = self.received.len().min(batch.remaining_capacity());
        batch.extend(std::iter::from_fn(|| self.received.pop()).take(count).map(Homing::into_frame));
        self.counters.rx_packets += count as u64;
        self.counters.rx_bytes += batch[before..].iter().map(|frame| frame.len() as u64).sum::<u64>();
        count
    }

    fn tx(&mut self, batch: &mut Batch) -> usize {
        let count = batch.len().min(self.sending.free());
        for frame in batch.drain(..count) {
            let bytes = frame.len() as u64;
            if bytes == 0 {
                self.counters.tx_rejected += 1;
                self.spare.give(frame);
                continue;
            }
            let Some(frame) = self.localise(frame) else {
                self.counters.tx_rejected += 1;
                continue;
            };
            if self.sending.stage(Homing::new(frame)).is_ok() {
                self.counters.tx_packets += 1;
                self.counters.tx_bytes += bytes;
            }
        }
        self.sending.publish();
        count
    }

    fn recycle(&mut self, magazine: &mut Magazine) {
        while let Some(frame) = self.completed.pop() {
            self.counters.tx_completed += 1;
            magazine.give(frame.into_frame());
        }
        if magazine.group() != self.facts.group {
            return;
        }
        for _ in 0..self.fill.free() {
            let Some(frame) = magazine.take() else {
                self.counters.fill_starved += 1;
                break;
            };
            if self.fill.stage(Homing::new(frame)).is_err() {
                break;
            }
        }
        self.fill.publish();
    }

    fn kick(&mut self) {}

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn facts(&self) -> &PortFacts {
        &self.facts
    }

    fn socket_statistics(&self) -> io::Result<Option<SocketStatistics>> {
        Ok(None)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HugePages;

    fn small() -> Config {
        Config { ring_entries: 4, ..Config::default() }
    }

    #[test]
    fn packets_arrive_in_order_and_leave_in_order() {
        let pool = Pool::new(64, 2048, HugePages::Off).unwrap();
        let mut magazine = pool.magazine();
        let (mut port, mut peer) = pair(&pool, Config::default());
        for byte in 0..10 {
            assert!(peer.inject(&[byte; 60]));
        }
        let mut batch = Batch::new();
        assert_eq!(port.rx(&mut batch), 10);
        assert_eq!(port.tx(&mut batch), 10);
        port.kick();
        for byte in 0..10 {
            assert_eq!(peer.take_sent(), Some(vec![byte; 60]));
        }
        assert_eq!(peer.take_sent(), None);
        port.recycle(&mut magazine);
        let expected = PortCounters {
            rx_packets: 10,
            rx_bytes: 600,
            tx_packets: 10,
            tx_bytes: 600,
            tx_completed: 10,
            fill_starved: 1,
            ..PortCounters::default()
        };
        assert_eq!(port.counters(), expected);
        drop((port, peer, magazine));
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn a_full_send_ring_leaves_the_rest_in_the_batch() {
        let pool = Pool::new(64, 2048, HugePages::Off).unwrap();
        let mut magazine = pool.magazine();
        let (mut port, mut peer) = pair(&pool, small());
        let mut batch = Batch::new();
        for byte in 0..6 {
            let mut frame = magazine.take().unwrap();
            assert!(frame.fill(&[byte; 20]));
            batch.push(frame);
        }
        assert_eq!(port.tx(&mut batch), 4);
        assert_eq!(batch.iter().map(|frame| frame.bytes()[0]).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(port.tx(&mut batch), 0);
        assert_eq!(peer.discard_sent(), 4);
        assert_eq!(port.tx(&mut batch), 2);
        assert_eq!(peer.take_sent(), Some(vec![4; 20]));
    }

    #[test]
    fn a_port_that_does_not_recycle_runs_dry() {
        let pool = Pool::new(64, 2048, HugePages::Off).unwrap();
        let mut magazine = pool.magazine();
        let (mut port, mut peer) = pair(&pool, small());
        assert_eq!((0..6).filter(|_| peer.inject(b"x")).count(), 4);
        let mut batch = Batch::new();
        assert_eq!(port.rx(&mut batch), 4);
        assert!(!peer.inject(b"x"));
        assert_eq!(peer.fill_empty(), 1);
        port.recycle(&mut magazine);
        assert!(peer.inject(b"x"));
        batch.drain(..).for_each(|frame| magazine.give(frame));
    }

    #[test]
    fn frames_of_another_group_are_copied_and_nothing_is_lost() {
        let (ours, theirs) =
            (Pool::new(64, 2048, HugePages::Off).unwrap(), Pool::new(64, 4096, HugePages::Off).unwrap());
        let mut magazine = theirs.magazine();
        let (mut port, mut peer) = pair(&ours, Config::default());
        let mut batch = Batch::new();
        for len in [5, 0, 1900] {
            let mut frame = magazine.take().unwrap();
            assert!(frame.fill(&vec![7; len]));
            batch.push(frame);
        }
        assert_eq!(port.tx(&mut batch), 3);
        assert_eq!(peer.take_sent(), Some(vec![7; 5]));
        assert_eq!(peer.take_sent(), None);
        let counters = port.counters();
        assert_eq!((counters.tx_copied, counters.tx_rejected, counters.tx_packets), (1, 2, 1));
        port.recycle(&mut magazine);
        assert_eq!(port.counters().tx_completed, 1);
        drop((port, peer, magazine));
        assert_eq!((ours.outstanding(), theirs.outstanding()), (0, 0));
    }
}
