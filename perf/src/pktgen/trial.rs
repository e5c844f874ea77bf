//! One trial: packets sent at a rate for a time, and what came of them.
//!
//! Owns the loop of generator and sink, one lane per queue, and the books of a trial. Refuses to know devices, which are
//! ports, and what a result is good for, which is the searches' affair. It is bounded in packets and in time.
//!
//! A lane sends and receives by turns on one thread, with one look at the clock for each, so time stamps are as exact as a
//! batch is short. What waits longer than that is counted as the packet's latency, as it should be.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tidegate_io::chain::CHAIN_FRAMES_MAX;
use tidegate_io::mem::now_ns;
use tidegate_io::{BATCH_MAX, Batch, Chains, Frame, HEADROOM_BYTES, Magazine, Port, PortCounters};

use crate::pktgen::flows::Picker;
use crate::pktgen::histogram::{Histogram, Quantiles};
use crate::pktgen::layout::{self, Layout};
use crate::pktgen::mould::{Mould, Stamp};
use crate::pktgen::pace::Pace;
use crate::pktgen::size::FCS_BYTES;
use crate::pktgen::tracker::{Seen, Tracker};

/// Packets that are sent between two looks at the clock.
const BATCH: usize = if BATCH_MAX < 32 { BATCH_MAX } else { 32 };
/// Longest trial.
pub const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long completions and stragglers are waited for, at most.
const DRAIN_LIMIT_NS: u64 = 3_000_000_000;
/// Nothing for so long: nothing more comes.
const QUIET_NS: u64 = 100_000_000;

/// How much, how fast, how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What is sent.
    pub mould: Mould,
    /// Packets per second on all lanes; 0: as fast as they go.
    pub rate_per_s: u64,
    /// Most packets on all lanes; 0: until the time is over.
    pub packets: u64,
    /// Longest time for sending.
    pub duration: Duration,
    /// Number of the trial; each has its own.
    pub trial: u16,
    /// Look at every checksum that arrives.
    pub verify: bool,
}

/// What came of a trial.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Packets per second that were asked for; 0: as many as go.
    pub asked_per_s: u64,
    /// Packets that the device sent.
    pub sent: u64,
    /// Packets that it refused.
    pub rejected: u64,
    /// Bytes sent, check sequences included.
    pub sent_bytes: u64,
    /// Time of sending in seconds.
    pub took_s: f64,
    /// Packets sent per second.
    pub sent_per_s: f64,
    /// Different packets that arrived.
    pub received: u64,
    /// Different packets that arrived, per second of sending.
    pub received_per_s: f64,
    /// Packets sent that did not arrive.
    pub lost: u64,
    /// Their part of what was sent.
    pub loss_ratio: f64,
    /// Packets that arrived again.
    pub duplicates: u64,
    /// Packets that were overtaken by a later one of their stream.
    pub reordered: u64,
    /// Packets that arrived with a wrong checksum, if that was looked at.
    pub corrupt: u64,
    /// Packets of earlier trials.
    pub stale: u64,
    /// Packets that were not the generator's.
    pub foreign: u64,
    /// From sending to arrival.
    pub latency: Quantiles,
}

/// One queue: a port that sends, and one that receives unless it is the same.
#[derive(Debug)]
pub struct Lane<P> {
    /// The port that sends.
    pub port: P,
    /// Its frames.
    pub magazine: Magazine,
    /// The port that receives, and its frames.
    pub sink: Option<(P, Magazine)>,
}

/// What one lane has done.
#[derive(Debug)]
struct Part {
    sent: u64,
    rejected: u64,
    bytes: u64,
    took_ns: u64,
    seen: Seen,
    latency: Histogram,
}

/// What a lane keeps while it sends.
struct Course<'a> {
    plan: &'a Plan,
    picker: Picker,
    pace: Pace,
    /// Number of the next packet of each stream.
    sequences: Vec<u32>,
    written: u64,
    tracker: Tracker,
    /// Bytes that a frame holds, and how many of them the largest packet takes.
    capacity: usize,
    frames_max: usize,
    leaving: Chains,
    arrived: Chains,
}

/// Runs a trial on every lane, each on a thread of its own unless there is but one.
///
/// # Errors
/// When a frame cannot hold a packet, or the device keeps frames.
pub fn run<'a, P: Port>(lanes: &'a mut [Lane<P>], plan: &Plan) -> Result<Outcome> {
    match lanes {
        [] => bail!("no lane to send on"),
        [lane] => run_with(lane, plan, || ()),
        lanes => {
            let count = lanes.len() as u64;
            let parts = std::thread::scope(|scope| {
                let spawn = |(number, lane): (u64, &'a mut Lane<P>)| {
                    let plan = share(plan, count, number);
                    scope.spawn(move || lane.run(&plan, number, &mut || ()))
                };
                let running: Vec<_> = (0..).zip(lanes).map(spawn).collect();
                let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Part>>| {
                    thread.join().unwrap_or_else(|_| bail!("a lane has panicked"))
                };
                running.into_iter().map(join).collect::<Result<Vec<_>>>()
            })?;
            Ok(Outcome::of(plan, &parts))
        }
    }
}

/// Runs a trial on one lane; `between` is called once a turn, for whoever carries the packets.
///
/// # Errors
/// As [`run`].
pub fn run_with<P: Port>(lane: &mut Lane<P>, plan: &Plan, mut between: impl FnMut()) -> Result<Outcome> {
    let part = lane.run(plan, 0, &mut between)?;
    Ok(Outcome::of(plan, &[part]))
}

/// One lane's share of a plan.
fn share(plan: &Plan, lanes: u64, number: u64) -> Plan {
    let of = |all: u64| if all == 0 { 0 } else { (all / lanes + u64::from(number < all % lanes)).max(1) };
    Plan { rate_per_s: of(plan.rate_per_s), packets: of(plan.packets), ..plan.clone() }
}

impl<P: Port> Lane<P> {
    fn run(&mut self, plan: &Plan, number: u64, between: &mut dyn FnMut()) -> Result<Part> {
        ensure!(plan.duration <= DURATION_MAX, "a trial lasts at most {} h", DURATION_MAX.as_secs() / 3600);
        let traffic = plan.mould.traffic();
        let capacity = self.magazine.frame_bytes() as usize - HEADROOM_BYTES;
        let largest = plan.mould.size_bytes_max();
        let frames_max = usize::try_from(largest - u64::from(FCS_BYTES))?.div_ceil(capacity);
        ensure!(
            frames_max == 1 || self.port.has_chains() && frames_max <= CHAIN_FRAMES_MAX,
            "a frame of memory cannot hold {largest} bytes, and {} sends no packets in several",
            self.port.facts().device
        );
        let began_ns = now_ns();
        let mut course = Course {
            plan,
            picker: Picker::new(traffic.order, traffic.flows, traffic.seed.wrapping_add(number))?,
            pace: Pace::new(plan.rate_per_s, began_ns),
            sequences: vec![0; traffic.streams() as usize],
            written: 0,
            tracker: Tracker::new(plan.trial, traffic.streams()),
            capacity,
            frames_max,
            leaving: Chains::new(),
            arrived: Chains::new(),
        };
        let before = self.port.counters();
        let sent = self.send(&mut course, began_ns, between);
        let took_ns = now_ns() - began_ns;
        // What was not sent was not promised either: nobody waits for it.
        course.leaving.drain().for_each(|frame| self.magazine.give(frame));
        let drained = sent.and_then(|()| self.drain(&mut course, &before, between));
        drained?;
        let after = self.port.counters();
        Ok(Part {
            sent: after.tx_completed - before.tx_completed,
            rejected: after.tx_rejected - before.tx_rejected,
            bytes: after.tx_bytes - before.tx_bytes,
            took_ns,
            seen: course.tracker.seen,
            latency: course.tracker.latency,
        })
    }

    fn send(&mut self, course: &mut Course<'_>, began_ns: u64, between: &mut dyn FnMut()) -> Result<()> {
        let plan = course.plan;
        let limit_ns = u64::try_from(plan.duration.as_nanos()).unwrap_or(u64::MAX);
        loop {
            let now = now_ns();
            if now - began_ns >= limit_ns
                || plan.packets > 0 && course.written == plan.packets && course.leaving.is_empty()
            {
                return Ok(());
            }
            let left = if plan.packets == 0 { u64::MAX } else { plan.packets - course.written };
            let room = BATCH.saturating_sub(course.leaving.len()).min(course.leaving.room() / course.frames_max);
            let room = room.min(usize::try_from(left).unwrap_or(BATCH));
            course.write(&mut self.magazine, now, room)?;
            self.port.tx_chains(&mut course.leaving);
            self.port.kick();
            self.port.recycle(&mut self.magazine);
            between();
            self.receive(course);
        }
    }

    /// Takes in what has arrived; how many packets that were.
    fn receive(&mut self, course: &mut Course<'_>) -> usize {
        let (port, magazine) = match &mut self.sink {
            Some((port, magazine)) => (port, magazine),
            None => (&mut self.port, &mut self.magazine),
        };
        let count = port.rx_chains(&mut course.arrived);
        if count > 0 {
            let now = now_ns();
            for packet in course.arrived.iter() {
                look_at(&mut course.tracker, packet, course.plan.verify, now);
            }
            course.arrived.drain().for_each(|frame| magazine.give(frame));
        }
        port.recycle(magazine);
        port.kick();
        count
    }

    /// Waits for completions and for what is still on its way.
    fn drain(&mut self, course: &mut Course<'_>, before: &PortCounters, between: &mut dyn FnMut()) -> Result<()> {
        let began_ns = now_ns();
        let mut last_ns = began_ns;
        loop {
            self.port.kick();
            self.port.recycle(&mut self.magazine);
            between();
            let now = now_ns();
            if self.receive(course) > 0 {
                last_ns = now;
            }
            let counters = self.port.counters();
            let out = (counters.tx_packets - before.tx_packets) - (counters.tx_completed - before.tx_completed);
            let everything = course.tracker.seen.received >= counters.tx_packets - before.tx_packets;
            if out == 0 && (everything || now - last_ns >= QUIET_NS) {
                return Ok(());
            }
            if now - began_ns >= DRAIN_LIMIT_NS {
                ensure!(out == 0, "{out} packets were given to the device and never completed");
                return Ok(());
            }
        }
    }
}

impl Course<'_> {
    /// Writes what is due, at most `room` packets, into the batch.
    fn write(&mut self, magazine: &mut Magazine, now: u64, room: usize) -> Result<()> {
        let mut due = self.pace.due(now, room);
        let streams = u32::try_from(self.sequences.len()).unwrap_or(u32::MAX);
        while due > 0 {
            let count = if self.frames_max == 1 { 1 } else { self.plan.mould.frames(self.written, self.capacity) };
            let mut packet = Batch::new();
            packet.extend(std::iter::from_fn(|| magazine.take()).take(count));
            if packet.len() < count {
                packet.drain(..).for_each(|frame| magazine.give(frame));
                return Ok(());
            }
            let flow = self.picker.pick();
            let stream = flow % streams;
            let Some(sequence) = self.sequences.get_mut(stream as usize) else { bail!("stream {stream}") };
            let stamp = Stamp {
                trial: self.plan.trial,
                stream: u16::try_from(stream).unwrap_or(u16::MAX),
                sequence: *sequence,
                sent_ns: now,
            };
            let fits = match &mut packet[..] {
                [frame] => self.plan.mould.write(frame, self.written, flow, stamp),
                frames => self.plan.mould.write_over(frames, self.written, flow, stamp),
            };
            let has_room = self.leaving.push(&mut packet);
            packet.drain(..).for_each(|frame| magazine.give(frame));
            ensure!(
                fits && has_room,
                "a frame of memory cannot hold {} bytes",
                self.plan.mould.size_bytes(self.written)
            );
            *sequence = sequence.wrapping_add(1);
            self.written += 1;
            due -= 1;
        }
        Ok(())
    }
}

/// Looks at a packet that arrived, in one frame or in several; headers and stamp are in the first.
#[inline]
fn look_at(tracker: &mut Tracker, packet: &[Frame], verify: bool, now: u64) {
    let first = packet.first().map_or(&[][..], Frame::bytes);
    let len = packet.iter().map(Frame::len).sum();
    let layout = layout::find_first(first, len);
    let stamp = layout.and_then(|layout| Stamp::read(first.get(layout.payload..layout.end.min(first.len()))?));
    let is_intact = |layout: Layout| layout.is_intact_over(packet.iter().map(Frame::bytes));
    match (layout, stamp) {
        (Some(layout), Some(_)) if verify && !is_intact(layout) => tracker.seen.corrupt += 1,
        (_, Some(stamp)) => tracker.note(stamp, len, now),
        _ => tracker.seen.foreign += 1,
    }
}

impl Outcome {
    fn of(plan: &Plan, parts: &[Part]) -> Outcome {
        let sum = |of: fn(&Part) -> u64| parts.iter().map(of).sum::<u64>();
        let sent = sum(|part| part.sent);
        let took_s = parts.iter().map(|part| part.took_ns).max().unwrap_or(0).max(1) as f64 / 1e9;
        let duplicates = sum(|part| part.seen.duplicates);
        let mut latency = Histogram::default();
        parts.iter().for_each(|part| latency.merge(&part.latency));
        let rest = Outcome {
            asked_per_s: plan.rate_per_s,
            sent,
            rejected: sum(|part| part.rejected),
            sent_bytes: sum(|part| part.bytes) + sent * u64::from(FCS_BYTES),
            took_s,
            sent_per_s: sent as f64 / took_s,
            duplicates,
            reordered: sum(|part| part.seen.reordered),
            corrupt: sum(|part| part.seen.corrupt),
            stale: sum(|part| part.seen.stale),
            foreign: sum(|part| part.seen.foreign),
            latency: latency.quantiles(),
            ..Outcome::default()
        };
        rest.with_received(sum(|part| part.seen.received) - duplicates)
    }

    /// The same with so many different packets that arrived, counted by whoever has counted them.
    #[must_use]
    pub fn with_received(mut self, received: u64) -> Outcome {
        self.received = received;
        self.received_per_s = received as f64 / self.took_s;
        self.lost = self.sent.saturating_sub(received);
        self.loss_ratio = self.lost as f64 / self.sent.max(1) as f64;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pktgen::mould::tests::every_kind;
    use tidegate_io::{HugePages, Pool};

    /// A packet in several frames is one packet with all of its bytes, and wrong if any of them is.
    #[test]
    fn packets_over_several_frames_are_looked_at_as_one() {
        let pool = Pool::new(64, 4096, HugePages::Off).unwrap();
        let mut magazine = pool.magazine();
        for traffic in every_kind("9000") {
            let mould = Mould::new(&traffic).unwrap();
            let mut tracker = Tracker::new(3, traffic.streams());
            let mut frames: Vec<Frame> = std::iter::from_fn(|| magazine.take()).take(3).collect();
            let stamp = |sequence| Stamp { trial: 3, stream: 1, sequence, sent_ns: 5 };
            assert!(mould.write_over(&mut frames, 0, 1, stamp(0)));
            look_at(&mut tracker, &frames, true, 9);
            assert_eq!((tracker.seen.received, tracker.seen.bytes, tracker.seen.corrupt), (1, 8996, 0), "{traffic:?}");
            // A wrong byte in any of them, which only a sum shows.
            for piece in 0..3 {
                let last = frames[piece].len() - 1;
                frames[piece].bytes_mut()[last] ^= 1;
                look_at(&mut tracker, &frames, true, 9);
                look_at(&mut tracker, &frames, false, 9);
                frames[piece].bytes_mut()[last] ^= 1;
                let corrupt = piece as u64 + 1;
                assert_eq!((tracker.seen.corrupt, tracker.seen.received), (corrupt, corrupt + 1), "{traffic:?}");
            }
            // Without its end it is none of ours.
            look_at(&mut tracker, &frames[..2], true, 9);
            assert_eq!((tracker.seen.foreign, tracker.seen.received), (1, 4));
            frames.into_iter().for_each(|frame| magazine.give(frame));
        }
    }
}
