//! Flows: what workers note of packets and connections, for whoever collects records of them.
//!
//! Owns a worker's end: the [`Note`], the ring it leaves by, and the [`Sampler`] that chooses packets. A note has addresses and
//! numbers of rows; names, forms and destinations are the exporter's. A worker that finds the ring full
//! leaves the note out and counts it: it never waits, allocates or frees.
//!
//! Packets are chosen by counting. The distance to the next one is drawn from 1 to 2·N−1, so that one packet in N is chosen on
//! average and no rhythm of the traffic can hide from it (RFC 5475 section 5.2). A batch that has no packet to note pays one
//! subtraction; one that has goes the way of batches that are captured, which knows what became of each packet.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use crate::capture::Outcome;
use crate::counters::Event;
use crate::family::Family;
use crate::state::{Entropy, Tuple};
use crate::table::{BackendId, DeviceId};
use crate::wire::Family as Version;

/// What is told of a note: names instead of numbers.
pub mod record;
/// The thread that tells, and where.
pub mod exporter;

/// Notes that may wait for the exporter, of each worker: 1.5 MiB, what 400,000 connections a second come to in 10 ms.
pub const NOTES_MAX: usize = 8192;
/// Largest N of sampling one packet in N.
pub const SAMPLING_MAX: u32 = 1 << 24;

/// Addresses and ports of a packet, or of one direction of a flow: IPv4 mapped; ports in host order, 0 where there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Where it comes from.
    pub source: ([u8; 16], u16),
    /// Where it goes.
    pub destination: ([u8; 16], u16),
}

impl Ends {
    /// Those of a tuple.
    pub fn of<A: Family>(tuple: &Tuple<A>) -> Ends {
        Ends {
            source: (tuple.source.mapped(), tuple.source_port),
            destination: (tuple.destination.mapped(), tuple.destination_port),
        }
    }

    /// The other way round.
    #[must_use]
    pub fn reversed(self) -> Ends {
        Ends { source: self.destination, destination: self.source }
    }
}

/// What a note is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// One packet, which stands for as many as the worker's sampling says.
    Packet {
        /// What became of it.
        outcome: Outcome,
        /// Events that it moved, a bit each by number.
        counted: u64,
        /// Length of its IP packet.
        bytes: u16,
        /// TCP control bits; of other protocols 0.
        tcp_flags: u8,
        /// DSCP (upper six bits) and ECN (lower two).
        tos: u8,
        /// Device it came in by; none: not known.
        device: DeviceId,
        /// Whether it is of the direction that answers.
        is_reply: bool,
    },
    /// A flow that has begun.
    Begun,
    /// A flow that has ended.
    Ended {
        /// Packets of either direction, the original one first.
        packets: [u64; 2],
        /// Bytes of their IP packets.
        bytes: [u64; 2],
        /// When it began, monotonic nanoseconds.
        begun_ns: u64,
        /// When its timer was started last, which is by nearly every packet; monotonic nanoseconds.
        seen_ns: u64,
        /// Why it ended.
        reason: Reason,
    },
}

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its ends closed or reset it, and the time after that was over.
    Closed,
    /// Nothing came for as long as it may be idle.
    Idle,
    /// Another took its place, or its tuple.
    Replaced,
}

impl Reason {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Closed => "closed",
            Reason::Idle => "idle",
            Reason::Replaced => "replaced",
        }
    }
}

/// What a worker noted. Names of rows are those of the tables of `generation`, or of younger ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// When, monotonic nanoseconds.
    pub at_ns: u64,
    /// Generation of the tables.
    pub generation: u64,
    /// What it is about.
    pub subject: Subject,
    /// Family of the addresses.
    pub family: Version,
    /// IANA protocol number.
    pub protocol: u8,
    /// As packets come in.
    pub came: Ends,
    /// As they leave, if a flow says so.
    pub left: Option<Ends>,
    /// Whether the flow is a pod's to the outside, by which [`Note::backend`] is the pod's own row.
    pub is_egress: bool,
    /// Row of the flow's endpoint; none: no flow.
    pub backend: BackendId,
}
const _: () = assert!(size_of::<Note>() <= 192, "the ring's size above");

/// The ring between one worker and the exporter.
#[derive(Debug)]
pub struct Notes(ArrayQueue<Note>);

impl Notes {
    /// An empty ring for [`NOTES_MAX`] notes.
    pub fn new() -> Arc<Notes> {
        Notes::with_room(NOTES_MAX)
    }

    /// An empty ring for at least one note.
    pub fn with_room(notes: usize) -> Arc<Notes> {
        Arc::new(Notes(ArrayQueue::new(notes.max(1))))
    }

    /// Puts a note in; false: there is no room.
    pub fn put(&self, note: Note) -> bool {
        self.0.push(note).is_ok()
    }

    /// The oldest note that nobody has taken yet.
    pub fn take(&self) -> Option<Note> {
        self.0.pop()
    }
}

/// What one worker tells of flows, and how seldom. Kind: state.
#[derive(Debug)]
pub struct Sampler {
    /// Packets until the next one that is noted; while nothing is sampled, more than will ever come.
    left: u64,
    /// One packet in so many; 0: none.
    one_in: u32,
    entropy: Entropy,
    /// Whether the packets of this batch are counted one by one, since one of them is to be noted.
    counts: bool,
    notes: Option<Arc<Notes>>,
    /// Notes that found the ring full since somebody asked.
    lost: u64,
    /// Notes made since somebody asked.
    noted: u64,
}

impl Default for Sampler {
    /// One that notes nothing.
    fn default() -> Sampler {
        Sampler { left: u64::MAX, one_in: 0, entropy: Entropy::new(0), counts: false, notes: None, lost: 0, noted: 0 }
    }
}

impl Sampler {
    /// Notes one packet in `one_in` (0: none) to `notes` from now on. `seed` decides which.
    pub fn new(one_in: u32, notes: Arc<Notes>, seed: u64) -> Sampler {
        let mut sampler = Sampler {
            one_in: one_in.min(SAMPLING_MAX),
            entropy: Entropy::new(seed),
            notes: Some(notes),
            ..Sampler::default()
        };
        sampler.draw();
        sampler
    }

    fn draw(&mut self) {
        let widest = (2 * u64::from(self.one_in)).saturating_sub(1);
        self.left = if widest == 0 { u64::MAX } else { 1 + self.entropy.draw() % widest };
    }

    /// Lets a batch of so many packets pass, if none of them is to be noted. True: one is, and each has to be asked about.
    #[inline(always)]
    pub fn is_due(&mut self, packets: usize) -> bool {
        let packets = packets as u64;
        if packets < self.left {
            self.left -= packets;
            return false;
        }
        true
    }

    /// Begins a batch that is looked at packet by packet anyway.
    pub fn begin(&mut self, packets: usize) {
        self.counts = self.is_due(packets);
    }

    /// Whether the next packet of the batch is to be noted.
    pub fn chooses(&mut self) -> bool {
        if !self.counts {
            return false;
        }
        self.left -= 1;
        let is_chosen = self.left == 0;
        if is_chosen {
            self.draw();
        }
        is_chosen
    }

    /// Puts a note into the ring, or counts it as lost.
    pub fn note(&mut self, note: Note) {
        match &self.notes {
            Some(notes) if notes.put(note) => self.noted += 1,
            Some(_) => self.lost += 1,
            None => {}
        }
    }

    /// Notes made and lost since this was asked last.
    pub fn take_counts(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.noted), std::mem::take(&mut self.lost))
    }
}

/// What is said of a packet's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It left.
    Forwarded,
    /// It was answered from here.
    Answered,
    /// It waits for a neighbour or for the rest of its datagram.
    Held,
    /// It ended here as it should.
    Consumed,
    /// It was dropped.
    Dropped,
}

impl Verdict {
    /// Of an outcome, and the events that the packet moved.
    pub fn of(outcome: Outcome, counted: u64) -> Verdict {
        const ANSWERS: [Event; 8] = [
            Event::AnsweredArp,
            Event::AnsweredNd,
            Event::AnsweredEcho,
            Event::AnsweredReset,
            Event::AnsweredUnreachable,
            Event::AnsweredTtl,
            Event::AnsweredTooBig,
            Event::AnsweredProhibited,
        ];
        match outcome {
            Outcome::Dropped(_) => Verdict::Dropped,
            _ if ANSWERS.iter().any(|event| counted >> (*event as u32) & 1 == 1) => Verdict::Answered,
            Outcome::Sent(_) | Outcome::Released | Outcome::HandedOver => Verdict::Forwarded,
            Outcome::Held | Outcome::Waits => Verdict::Held,
            Outcome::Consumed => Verdict::Consumed,
        }
    }

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Forwarded => "forwarded",
            Verdict::Answered => "answered",
            Verdict::Held => "held",
            Verdict::Consumed => "consumed",
            Verdict::Dropped => "dropped",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn note() -> Note {
        let end = ([0; 16], 0);
        Note {
            at_ns: 0,
            generation: 0,
            subject: Subject::Packet {
                outcome: Outcome::Consumed,
                counted: 0,
                bytes: 60,
                tcp_flags: 0,
                tos: 0,
                device: DeviceId::NONE,
                is_reply: false,
            },
            family: Version::V4,
            protocol: 6,
            came: Ends { source: end, destination: end },
            left: None,
            is_egress: false,
            backend: BackendId::NONE,
        }
    }

    /// Packets chosen among batches of these sizes, by place.
    fn chosen(sampler: &mut Sampler, batches: impl Iterator<Item = usize>) -> Vec<u64> {
        let (mut place, mut chosen) = (0u64, Vec::new());
        for batch in batches {
            sampler.begin(batch);
            for _ in 0..batch {
                chosen.extend(sampler.chooses().then_some(place));
                place += 1;
            }
        }
        chosen
    }

    /// As many as they should be, every residue of a rhythm, whatever the sizes of batches; the same ones for one seed.
    #[test]
    fn one_packet_in_so_many_is_chosen_and_no_rhythm_hides() {
        let sizes = || {
            (0..).map(|n: usize| 1 + n * 7 % 64).scan(0, |sum, size| {
                *sum += size;
                (*sum < 2_000_000).then_some(size)
            })
        };
        let packets: usize = sizes().sum();
        for one_in in [1, 2, 10, 64, 1000] {
            let mut sampler = Sampler::new(one_in, Notes::new(), 7);
            let places = chosen(&mut sampler, sizes());
            let expected = packets as f64 / f64::from(one_in);
            // The distance's deviation is N/√3 about; four deviations of the count.
            let slack = 4.0 * (expected / 3.0).sqrt() + 1.0;
            let off = (places.len() as f64 - expected).abs();
            assert!(off <= slack, "1:{one_in}: {} of {packets}, {off} off, {slack} allowed", places.len());
            if one_in >= 10 {
                let mut residues = vec![0u32; one_in as usize];
                places.iter().for_each(|place| residues[usize::try_from(place % u64::from(one_in)).unwrap()] += 1);
                let fullest = residues.iter().max().unwrap();
                assert!(
                    f64::from(*fullest) < 10.0 + 4.0 * places.len() as f64 / f64::from(one_in),
                    "1:{one_in}: {fullest}"
                );
            }
            // Batches that pass as a whole choose the same packets.
            let mut whole = Sampler::new(one_in, Notes::new(), 7);
            let (mut again, mut at) = (Vec::new(), 0u64);
            for batch in sizes() {
                if whole.is_due(batch) {
                    again.extend(chosen(&mut whole, std::iter::once(batch)).iter().map(|place| place + at));
                }
                at += batch as u64;
            }
            assert_eq!(again, places);
        }
    }

    #[test]
    fn nothing_is_chosen_where_nothing_is_sampled() {
        for mut sampler in [Sampler::default(), Sampler::new(0, Notes::new(), 1)] {
            assert!((0..1000).all(|_| !sampler.is_due(64)));
            assert!(chosen(&mut sampler, (0..1000).map(|_| 64)).is_empty());
        }
    }

    #[test]
    fn a_full_ring_loses_notes_and_counts_them() {
        let notes = Notes::with_room(8);
        let mut sampler = Sampler::new(1, Arc::clone(&notes), 1);
        for at_ns in 0..20 {
            sampler.note(Note { at_ns, ..note() });
        }
        assert_eq!(sampler.take_counts(), (8, 12));
        assert_eq!(
            std::iter::from_fn(|| notes.take()).map(|note| note.at_ns).collect::<Vec<_>>(),
            Vec::from_iter(0..8)
        );
        sampler.note(note());
        assert_eq!((sampler.take_counts(), notes.take()), ((1, 0), Some(note())));
    }

    #[test]
    fn a_drop_goes_before_an_answer_and_an_answer_before_what_left() {
        let answered = 1 << (Event::AnsweredEcho as u32);
        let dropped = Outcome::Dropped(crate::drops::DropReason::NoBackend);
        for (outcome, counted, name) in [
            (Outcome::Sent(1), 0, "forwarded"),
            (Outcome::Sent(1), answered, "answered"),
            (dropped, answered, "dropped"),
            (Outcome::Held, 0, "held"),
            (Outcome::Consumed, 0, "consumed"),
        ] {
            assert_eq!(Verdict::of(outcome, counted).name(), name);
        }
    }
}
