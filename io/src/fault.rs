//! A port that misbehaves: wraps another and drops, duplicates, reorders, truncates and corrupts packets.
//!
//! What happens depends on the seed and on the order of calls alone, so a run that failed can be run again. Faults are
//! made in both directions, each packet drawing for each kind of fault on its own.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use crate::frame::{BATCH_MAX, Batch, Frame};
use crate::pool::{Depot, Magazine};
use crate::port::{Port, PortCounters, PortFacts, SocketStatistics};

/// How often each fault happens, in packets per 65,536. Zero is never, 65,535 is nearly always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// The packet is lost.
    pub drop: u16,
    /// The packet arrives twice.
    pub duplicate: u16,
    /// The packet arrives after the one that follows it.
    pub reorder: u16,
    /// The packet loses bytes at its end (it keeps at least one).
    pub truncate: u16,
    /// One bit of the packet is flipped.
    pub corrupt: u16,
}

/// How often each fault has happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Packets lost.
    pub dropped: u64,
    /// Packets that came twice.
    pub duplicated: u64,
    /// Packets held back.
    pub reordered: u64,
    /// Packets cut.
    pub truncated: u64,
    /// Packets with a bit flipped.
    pub corrupted: u64,
}

/// Packets of one direction between the two ports.
#[derive(Debug, Default)]
struct Lane {
    ready: VecDeque<Frame>,
    /// A packet that waits to be overtaken.
    held: Option<Frame>,
}

/// A port whose packets suffer.
#[derive(Debug)]
pub struct FaultPort<P> {
    port: P,
    /// Of packets received.
    faults: Faults,
    /// Of packets sent.
    faults_sending: Faults,
    counters: FaultCounters,
    random: u64,
    incoming: Lane,
    outgoing: Lane,
    /// Where duplicates come from and lost packets go.
    spare: Magazine,
}

impl<P: Port> FaultPort<P> {
    /// Wraps `port`; `depot` is that of the memory its frames come from.
    #[must_use]
    pub fn new(port: P, depot: &Depot, faults: Faults, seed: u64) -> FaultPort<P> {
        FaultPort {
            port,
            faults,
            faults_sending: faults,
            counters: FaultCounters::default(),
            random: seed,
            incoming: Lane::default(),
            outgoing: Lane::default(),
            spare: depot.magazine(),
        }
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        (self.faults, self.faults_sending) = (faults, faults);
    }

    /// Changes what goes wrong with packets that are sent, and with those alone.
    pub fn set_faults_sending(&mut self, faults: Faults) {
        self.faults_sending = faults;
    }

    /// What went wrong so far.
    #[must_use]
    pub fn faults(&self) -> FaultCounters {
        self.counters
    }

    /// The port inside.
    pub fn inner(&mut self) -> &mut P {
        &mut self.port
    }

    /// Next random number (splitmix64: Steele, Lea and Flood, OOPSLA 2014).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn happens(&mut self, rate: u16) -> bool {
        self.random() & 0xffff < u64::from(rate)
    }

    /// A number below `limit`, which is not zero.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.random() % limit as u64).unwrap_or(0)
    }

    /// Passes a packet through each of `faults` into `lane`.
    fn suffer(&mut self, faults: Faults, mut frame: Frame, lane: &mut Lane) {
        if self.happens(faults.drop) {
            self.counters.dropped += 1;
            return self.spare.give(frame);
        }
        if self.happens(faults.truncate) && frame.len() > 1 {
            let length = 1 + self.below(frame.len() - 1);
            self.counters.truncated += u64::from(frame.set_len(length));
        }
        if self.happens(faults.corrupt) && !frame.is_empty() {
            let (at, bit) = (self.below(frame.len()), self.below(8));
            frame.bytes_mut()[at] ^= 1 << bit;
            self.counters.corrupted += 1;
        }
        if self.happens(faults.duplicate)
            && let Some(twin) = self.spare.copy_of(&frame)
        {
            lane.ready.push_back(twin);
            self.counters.duplicated += 1;
        }
        if lane.held.is_none() && self.happens(faults.reorder) {
            self.counters.reordered += 1;
            lane.held = Some(frame);
            return;
        }
        lane.ready.push_back(frame);
        lane.ready.extend(lane.held.take());
    }

    /// Passes packets through; without any, what is held has been held long enough.
    fn suffer_all(&mut self, faults: Faults, batch: &mut Batch, mut lane: Lane) -> Lane {
        if batch.is_empty() {
            lane.ready.extend(lane.held.take());
        }
        for frame in batch.drain(..) {
            self.suffer(faults, frame, &mut lane);
        }
        lane
    }
}

impl<P: Port> Port for FaultPort<P> {
    fn rx(&mut self, batch: &mut Batch) -> usize {
        let mut received = Batch::new();
        if self.incoming.ready.len() < BATCH_MAX {
            self.port.rx(&mut received);
        }
        let lane = std::mem::take(&mut self.incoming);
        self.incoming = self.suffer_all(self.faults, &mut received, lane);
        let count = self.incoming.ready.len().min(batch.remaining_capacity());
        batch.extend(self.incoming.ready.drain(..count));
        count
    }

    fn tx(&mut self, batch: &mut Batch) -> usize {
        let count = if self.outgoing.ready.len() < BATCH_MAX { batch.len() } else { 0 };
        let lane = std::mem::take(&mut self.outgoing);
        let mut taken: Batch = batch.drain(..count).collect();
        self.outgoing = self.suffer_all(self.faults_sending, &mut taken, lane);
        let mut sending: Batch = self.outgoing.ready.drain(..self.outgoing.ready.len().min(BATCH_MAX)).collect();
        self.port.tx(&mut sending);
        // What was not taken stays first in line.
        while let Some(frame) = sending.pop() {
            self.outgoing.ready.push_front(frame);
        }
        count
    }

    fn recycle(&mut self, magazine: &mut Magazine) {
        self.port.recycle(magazine);
    }

    fn kick(&mut self) {
        // What waits goes out even if nothing more is sent.
        self.tx(&mut Batch::new());
        self.port.kick();
    }

    fn counters(&self) -> PortCounters {
        self.port.counters()
    }

    fn facts(&self) -> &PortFacts {
        self.port.facts()
    }

    fn socket_statistics(&self) -> io::Result<Option<SocketStatistics>> {
        self.port.socket_statistics()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.port.descriptor()
    }
}

impl<P> Drop for FaultPort<P> {
    fn drop(&mut self) {
        for lane in [&mut self.incoming, &mut self.outgoing] {
            lane.ready.drain(..).chain(lane.held.take()).for_each(|frame| self.spare.give(frame));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{self, MemoryPeer, MemoryPort};
    use crate::{HugePages, Pool};

    fn rig(faults: Faults, seed: u64) -> (Pool, FaultPort<MemoryPort>, MemoryPeer) {
        let pool = Pool::new(1024, 2048, HugePages::Off).unwrap();
        let (port, peer) = memory::pair(&pool, memory::Config::default());
        let port = FaultPort::new(port, &pool.depot(), faults, seed);
        (pool, port, peer)
    }

    /// Sends 64 numbered packets through in both directions; what came out.
    fn loop_back(faults: Faults, seed: u64) -> (Vec<Vec<u8>>, FaultCounters) {
        let (pool, mut port, mut peer) = rig(faults, seed);
        let mut magazine = pool.magazine();
        for number in 0..64 {
            assert!(peer.inject(&[number; 40]));
        }
        let mut out = Vec::new();
        for _ in 0..8 {
            let mut batch = Batch::new();
            port.rx(&mut batch);
            port.tx(&mut batch);
            batch.drain(..).for_each(|frame| magazine.give(frame));
            port.kick();
            out.extend(std::iter::from_fn(|| peer.take_sent()));
            port.recycle(&mut magazine);
        }
        let counted = port.faults();
        drop((port, peer, magazine));
        assert_eq!(pool.outstanding(), 0);
        (out, counted)
    }

    const HALF: u16 = 1 << 15;

    #[test]
    fn without_faults_nothing_happens() {
        let (out, counted) = loop_back(Faults::default(), 1);
        assert_eq!(out, (0..64).map(|number| vec![number; 40]).collect::<Vec<_>>());
        assert_eq!(counted, FaultCounters::default());
    }

    #[test]
    fn every_fault_shows_and_is_counted() {
        let (out, counted) = loop_back(Faults { drop: HALF, ..Faults::default() }, 2);
        assert!(counted.dropped > 0 && out.len() as u64 == 64 - counted.dropped);
        let (out, counted) = loop_back(Faults { duplicate: HALF, ..Faults::default() }, 3);
        assert!(counted.duplicated > 0 && out.len() as u64 == 64 + counted.duplicated);
        let (mut out, counted) = loop_back(Faults { reorder: HALF, ..Faults::default() }, 4);
        assert!(counted.reordered > 0 && !out.is_sorted());
        out.sort();
        assert_eq!(out, (0..64).map(|number| vec![number; 40]).collect::<Vec<_>>());
        let (out, counted) = loop_back(Faults { truncate: HALF, ..Faults::default() }, 5);
        assert!(counted.truncated > 0 && out.len() == 64 && out.iter().any(|packet| packet.len() < 40));
        let (out, counted) = loop_back(Faults { corrupt: HALF, ..Faults::default() }, 6);
        let flipped = |packet: &Vec<u8>| packet.iter().any(|byte| *byte != packet[0]);
        assert!(counted.corrupted > 0 && out.len() == 64 && out.iter().any(flipped));
    }

    #[test]
    fn a_direction_can_be_spared() {
        let (pool, mut port, mut peer) = rig(Faults { drop: u16::MAX, ..Faults::default() }, 9);
        port.set_faults_sending(Faults::default());
        let mut magazine = pool.magazine();
        let mut batch = Batch::new();
        assert!(peer.inject(b"lost") && port.rx(&mut batch) == 0);
        let mut frame = magazine.take().unwrap();
        assert!(frame.fill(b"kept"));
        batch.push(frame);
        assert_eq!(port.tx(&mut batch), 1);
        assert_eq!(peer.take_sent().as_deref(), Some(&b"kept"[..]));
    }

    #[test]
    fn the_same_seed_makes_the_same_faults() {
        let faults = Faults { drop: 9000, duplicate: 9000, reorder: 9000, truncate: 9000, corrupt: 9000 };
        assert_eq!(loop_back(faults, 7), loop_back(faults, 7));
        assert_ne!(loop_back(faults, 7), loop_back(faults, 8));
    }
}
