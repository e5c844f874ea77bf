//! Generator and sink without a device: what one sends the other receives, in this process.
//!
//! Owns the wire between two ports in memory. What a trial over it tells is how much the generator itself can do; a
//! generator that is not well ahead of what it measures measures itself.

use std::time::Duration;

use anyhow::Result;
use tidegate_io::fault::{FaultPort, Faults};
use tidegate_io::frame::FRAME_BYTES_MAX;
use tidegate_io::memory::{self, MemoryPeer, MemoryPort};
use tidegate_io::{HEADROOM_BYTES, HugePages, Pool};

use crate::pktgen::mould::Mould;
use crate::pktgen::size::{FCS_BYTES, SIZE_BYTES_MAX};
use crate::pktgen::stateful::{self, Handshakes, Sides, Validated};
use crate::pktgen::trial::{self, Lane, Outcome, Plan};

/// Frames of each side.
const FRAMES: u32 = 4096;
/// Bytes of a frame: a page, or several where packets are longer.
const FRAME_BYTES: [u32; 2] = [4096, FRAME_BYTES_MAX];

/// Largest size on the wire that a frame holds, in bytes.
const fn holds(frame_bytes: u32) -> u64 {
    frame_bytes as u64 - HEADROOM_BYTES as u64 + FCS_BYTES as u64
}

const _: () = assert!(SIZE_BYTES_MAX as u64 <= holds(FRAME_BYTES_MAX));

/// A sender and a receiver with a wire between them; what the receiver gets suffers faults.
#[derive(Debug)]
pub struct Wire {
    lane: Lane<FaultPort<MemoryPort>>,
    /// The world's ends of the sender's port and of the receiver's.
    ends: [MemoryPeer; 2],
    there: Way,
    back: Way,
    // After the ports: memory outlives what lies in it.
    _pools: [Pool; 2],
}

/// One direction of a wire.
#[derive(Debug, Default)]
struct Way {
    /// One packet.
    packet: Vec<u8>,
    /// It waits: there is no room for it.
    waits: bool,
}

impl Way {
    /// Carries what there is, if `passes` says so. What has no room waits: this wire loses nothing by itself.
    fn carry(&mut self, from: &mut MemoryPeer, to: &mut MemoryPeer, mut passes: impl FnMut() -> bool) {
        loop {
            if !self.waits && !from.take_sent_into(&mut self.packet) {
                return;
            }
            self.waits = (self.waits || passes()) && !to.inject(&self.packet);
            if self.waits {
                return;
            }
        }
    }
}

impl Wire {
    /// A wire for frames of a page, on which packets suffer `faults`, as `seed` has it, on arrival.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(faults: Faults, seed: u64) -> Result<Wire> {
        Wire::of(FRAME_BYTES[0], faults, seed)
    }

    /// The same for packets of at most this size on the wire, in bytes.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn for_size(size_bytes_max: u64, faults: Faults, seed: u64) -> Result<Wire> {
        let [page, large] = FRAME_BYTES;
        Wire::of(if size_bytes_max <= holds(page) { page } else { large }, faults, seed)
    }

    fn of(frame_bytes: u32, faults: Faults, seed: u64) -> Result<Wire> {
        let pools = [(); 2].map(|()| Pool::new(FRAMES, frame_bytes, HugePages::Auto));
        let [ours, theirs] = pools;
        let (ours, theirs) = (ours?, theirs?);
        let config = || memory::Config { ring_entries: 1024, mtu: 9000, ..memory::Config::default() };
        let (port, sent) = memory::pair(&ours, config());
        let (sink, receives) = memory::pair(&theirs, config());
        let port = FaultPort::new(port, &ours.depot(), Faults::default(), seed);
        let mut sink = FaultPort::new(sink, &theirs.depot(), faults, seed);
        sink.set_faults_sending(Faults::default());
        let lane = Lane { port, magazine: ours.magazine(), sink: Some((sink, theirs.magazine())) };
        let ends = [sent, receives];
        Ok(Wire { lane, ends, there: Way::default(), back: Way::default(), _pools: [ours, theirs] })
    }

    /// Runs a trial.
    ///
    /// # Errors
    /// As [`trial::run`].
    pub fn run(&mut self, plan: &Plan) -> Result<Outcome> {
        let Wire { lane, ends: [sent, receives], there, .. } = self;
        trial::run_with(lane, plan, || there.carry(sent, receives, || true))
    }

    /// Begins and validates connections; `passes` is told whether a packet is on its way back, and may have it lost.
    ///
    /// # Errors
    /// As [`Sides::trial`].
    pub fn stateful(
        &mut self,
        mould: &Mould,
        rate_per_s: u64,
        passes: &mut dyn FnMut(bool) -> bool,
    ) -> Result<Validated> {
        let Wire { lane, ends: [near, far], there, back, .. } = self;
        Sides::new(lane)?.trial(mould, 1, rate_per_s, &mut || {
            there.carry(near, far, || passes(false));
            back.carry(far, near, || passes(true));
        })
    }

    /// Begins connections by handshake.
    ///
    /// # Errors
    /// As [`stateful::handshakes`].
    pub fn handshakes(&mut self, mould: &Mould, limit: Duration, reset: bool) -> Result<Handshakes> {
        let Wire { lane, ends: [near, far], there, back, .. } = self;
        stateful::handshakes(lane, mould, 0, limit, reset, &mut || {
            there.carry(near, far, || true);
            back.carry(far, near, || true);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pktgen::mould::{Protocol, Traffic, tests::every_kind, tests::traffic};

    fn plan(traffic: &Traffic, packets: u64, rate_per_s: u64) -> Plan {
        let mould = Mould::new(traffic).unwrap();
        Plan { mould, rate_per_s, packets, duration: Duration::from_secs(30), trial: 4, verify: true }
    }

    #[test]
    fn everything_that_is_sent_arrives_once_and_in_order() {
        let mut wire = Wire::new(Faults::default(), 1).unwrap();
        for traffic in every_kind("imix") {
            let outcome = wire.run(&plan(&traffic, 3_000, 0)).unwrap();
            let told = (outcome.sent, outcome.received, outcome.lost, outcome.duplicates, outcome.reordered);
            assert_eq!(told, (3_000, 3_000, 0, 0, 0), "{traffic:?}");
            assert_eq!((outcome.corrupt, outcome.stale, outcome.foreign, outcome.latency.count), (0, 0, 0, 3_000));
            assert!(outcome.latency.p50_us > 0.0 && outcome.latency.p50_us <= outcome.latency.max_us);
            let bytes: u64 = (0..3_000).map(|number| Mould::new(&traffic).unwrap().size_bytes(number)).take(12).sum();
            assert_eq!(outcome.sent_bytes, bytes * 250);
        }
    }

    #[test]
    fn frames_of_9000_bytes_pass_in_memory() {
        for sizes in ["9000", "64:3,3844:1,3845:1,9000:2"] {
            for traffic in every_kind(sizes) {
                let plan = plan(&traffic, 700, 0);
                let mut wire = Wire::for_size(plan.mould.size_bytes_max(), Faults::default(), 1).unwrap();
                let outcome = wire.run(&plan).unwrap();
                let told = (outcome.sent, outcome.received, outcome.corrupt, outcome.foreign, outcome.duplicates);
                assert_eq!(told, (700, 700, 0, 0, 0), "{traffic:?}");
                assert_eq!(outcome.sent_bytes, (0..700).map(|number| plan.mould.size_bytes(number)).sum::<u64>());
            }
        }
        // What a page holds stays in one.
        for (size, page) in [(3844, true), (3845, false)] {
            let wire = Wire::for_size(size, Faults::default(), 1).unwrap();
            assert_eq!(wire.lane.magazine.frame_bytes() == 4096, page, "{size}");
        }
    }

    /// One kind of fault on a wire, with what the port has done of it.
    fn suffer(faults: Faults) -> (Outcome, tidegate_io::fault::FaultCounters) {
        let mut wire = Wire::new(faults, 9).unwrap();
        let mut kind = traffic(false, Protocol::Udp, None, "128");
        kind.flows = 10;
        let outcome = wire.run(&plan(&kind, 20_000, 0)).unwrap();
        let done = wire.lane.sink.as_ref().map(|(port, _)| port.faults()).unwrap();
        (outcome, done)
    }

    const SOME: u16 = 2_000;

    #[test]
    fn injected_loss_is_found() {
        let (outcome, done) = suffer(Faults { drop: SOME, ..Faults::default() });
        assert!(done.dropped > 100);
        assert_eq!((outcome.lost, outcome.received + outcome.lost, outcome.duplicates), (done.dropped, 20_000, 0));
        assert!((outcome.loss_ratio - done.dropped as f64 / 20_000.0).abs() < 1e-9);
    }

    #[test]
    fn injected_duplicates_are_found() {
        let (outcome, done) = suffer(Faults { duplicate: SOME, ..Faults::default() });
        assert!(done.duplicated > 100);
        assert_eq!((outcome.duplicates, outcome.received, outcome.lost), (done.duplicated, 20_000, 0));
    }

    #[test]
    fn injected_reordering_is_found() {
        let mut wire = Wire::new(Faults { reorder: SOME, ..Faults::default() }, 9).unwrap();
        let mut kind = traffic(true, Protocol::Udp, None, "128");
        kind.flows = 1;
        let outcome = wire.run(&plan(&kind, 20_000, 0)).unwrap();
        let done = wire.lane.sink.as_ref().map(|(port, _)| port.faults()).unwrap();
        // One that is held back while another is held back already goes at once, so there may be fewer, never more; and the
        // last may still be held.
        assert!(outcome.reordered > done.reordered / 2 && outcome.reordered <= done.reordered, "{outcome:?} {done:?}");
        assert!(outcome.lost <= 1 && outcome.duplicates == 0, "{outcome:?}");
    }

    #[test]
    fn injected_corruption_is_found() {
        let (outcome, done) = suffer(Faults { corrupt: SOME, ..Faults::default() });
        assert!(done.corrupted > 100 && outcome.corrupt > 0);
        // A bit of a header can make a packet foreign; one of the link-layer addresses is not in any sum.
        let noticed = outcome.corrupt + outcome.foreign;
        assert!(noticed > done.corrupted / 2 && noticed <= done.corrupted, "{outcome:?} {done:?}");
        assert_eq!(outcome.lost, noticed);
    }

    #[test]
    fn the_rate_is_kept_and_time_is_a_limit() {
        let mut wire = Wire::new(Faults::default(), 1).unwrap();
        let kind = traffic(false, Protocol::Udp, None, "64");
        let slow = Plan { duration: Duration::from_millis(200), ..plan(&kind, 0, 10_000) };
        let outcome = wire.run(&slow).unwrap();
        // Never more than the rate allows; a busy machine may be slower.
        assert!(outcome.sent > 0 && outcome.sent <= 2_001 + 40, "{outcome:?}");
        assert_eq!(outcome.lost, 0);
        let long = Plan { duration: crate::pktgen::trial::DURATION_MAX * 2, ..plan(&kind, 1, 0) };
        assert!(wire.run(&long).unwrap_err().to_string().contains("at most 24 h"));
    }

    #[test]
    fn a_packet_no_frame_can_hold_is_an_error() {
        let mut wire = Wire::new(Faults::default(), 1).unwrap();
        let large = traffic(false, Protocol::Udp, None, "9000");
        let error = wire.run(&plan(&large, 10, 0)).unwrap_err().to_string();
        assert!(error.contains("cannot hold 9000 bytes"), "{error}");
    }
}
