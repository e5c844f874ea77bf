//! What became of numbered packets: which came twice, which were overtaken, how long they took.
//!
//! Owns a window per stream. Loss is not told by gaps but by counts, sent less arrived: a packet may yet come.

use crate::pktgen::histogram::Histogram;
use crate::pktgen::mould::Stamp;

/// Packets of a stream, back from the highest seen, that are remembered one by one.
const WINDOW: u32 = 256;
/// Words of that memory.
const WORDS: usize = WINDOW as usize / 64;

/// One stream: the number after the highest seen, and which of the [`WINDOW`] before it came, as a ring of bits.
#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    next: u32,
    came: [u64; WORDS],
}

/// What a sink has seen of one trial.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Packets of this trial, those that came twice among them.
    pub received: u64,
    /// Their bytes, without check sequences.
    pub bytes: u64,
    /// Packets that had come before.
    pub duplicates: u64,
    /// Packets that were overtaken by a later one of their stream (RFC 4737's reordered).
    pub reordered: u64,
    /// Packets whose checksum was wrong, where that was looked at; not among those received.
    pub corrupt: u64,
    /// Packets of another trial.
    pub stale: u64,
    /// Packets without a stamp.
    pub foreign: u64,
}

/// Follows the streams of one trial.
#[derive(Debug, Clone)]
pub struct Tracker {
    trial: u16,
    streams: Vec<Stream>,
    /// What was seen.
    pub seen: Seen,
    /// How long packets took.
    pub latency: Histogram,
}

impl Tracker {
    /// Expects so many streams of this trial.
    pub fn new(trial: u16, streams: u32) -> Tracker {
        let streams = vec![Stream::default(); streams.max(1) as usize];
        Tracker { trial, streams, seen: Seen::default(), latency: Histogram::default() }
    }

    /// A packet with this stamp came at this time, `bytes` long.
    #[inline]
    pub fn note(&mut self, stamp: Stamp, bytes: usize, now_ns: u64) {
        if stamp.trial != self.trial {
            self.seen.stale += 1;
            return;
        }
        let Some(stream) = self.streams.get_mut(usize::from(stamp.stream)) else {
            self.seen.stale += 1;
            return;
        };
        self.seen.received += 1;
        self.seen.bytes += bytes as u64;
        self.latency.add(now_ns.saturating_sub(stamp.sent_ns));
        let behind = i64::from(stream.next) - 1 - i64::from(stamp.sequence);
        if behind < 0 {
            stream.advance(stamp.sequence);
        } else if behind >= i64::from(WINDOW) {
            // Too long ago to know whether it came before; late it is in any case.
            self.seen.reordered += 1;
        } else if stream.set(stamp.sequence) {
            self.seen.duplicates += 1;
        } else {
            self.seen.reordered += 1;
        }
    }
}

impl Stream {
    /// Makes `sequence` the highest seen and forgets what leaves the window.
    fn advance(&mut self, sequence: u32) {
        let step = sequence - self.next + 1;
        if step >= WINDOW {
            self.came = [0; WORDS];
        } else {
            (0..step).for_each(|ahead| self.clear(self.next.wrapping_add(ahead)));
        }
        self.next = sequence.saturating_add(1);
        self.set(sequence);
    }

    fn place(sequence: u32) -> (usize, u64) {
        let bit = sequence % WINDOW;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn clear(&mut self, sequence: u32) {
        let (word, bit) = Stream::place(sequence);
        self.came[word] &= !bit;
    }

    /// Notes that `sequence` came; whether it had before.
    fn set(&mut self, sequence: u32) -> bool {
        let (word, bit) = Stream::place(sequence);
        let before = self.came[word] & bit != 0;
        self.came[word] |= bit;
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn seen(sequences: &[u32]) -> Seen {
        let mut tracker = Tracker::new(1, 1);
        let stamp = |sequence| Stamp { trial: 1, stream: 0, sequence, sent_ns: 0 };
        sequences.iter().for_each(|sequence| tracker.note(stamp(*sequence), 60, 9));
        tracker.seen
    }

    #[test]
    fn packets_of_others_are_told_apart() {
        let mut tracker = Tracker::new(1, 2);
        for (trial, stream) in [(1, 0), (1, 1), (2, 0), (1, 2)] {
            tracker.note(Stamp { trial, stream, sequence: 0, sent_ns: 5 }, 60, 9);
        }
        assert_eq!((tracker.seen.received, tracker.seen.stale, tracker.latency.quantile_ns(1.0)), (2, 2, 4));
    }

    #[test]
    fn what_left_the_window_is_late_and_no_more_is_said() {
        let one = seen(&[0, 1000, 5, 5]);
        assert_eq!((one.received, one.reordered, one.duplicates), (4, 2, 0));
    }

    proptest! {
        /// The oracle remembers everything: what is behind the highest came before, or was overtaken.
        #[test]
        fn duplicates_and_reordering_are_those_of_a_set(sequences in prop::collection::vec(0u32..200, 0..300), base in 0u32..1000) {
            let sequences: Vec<u32> = sequences.into_iter().map(|sequence| sequence + base).collect();
            let (mut known, mut duplicates, mut reordered) = (BTreeSet::new(), 0, 0);
            for sequence in &sequences {
                let highest = known.last().copied();
                if !known.insert(*sequence) {
                    duplicates += 1;
                } else if highest.is_some_and(|highest| *sequence < highest) {
                    reordered += 1;
                }
            }
            let seen = seen(&sequences);
            prop_assert_eq!((seen.received, seen.duplicates, seen.reordered), (sequences.len() as u64, duplicates, reordered));
        }
    }
}
