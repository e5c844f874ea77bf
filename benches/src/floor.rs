//! The floor: what has to be paid for a packet of one flow among a million, whatever is decided about it.
//!
//! Per packet one index line and one entry line at random, two frame lines, fetched in batches, and 50 bytes written.

use std::io;

use tidegate_dataplane::state::Entropy;
use tidegate_io::mem::{Pages, Slab, now_ns};
use tidegate_io::{Frame, HugePages, Magazine, Pool};
use zerocopy::FromZeros;

use crate::field::PASS_FRAMES;

/// Packets whose lines are fetched together.
const BATCH: usize = 64;
/// Flows that have their lines.
const FLOWS: u32 = 1_000_000;

#[derive(FromZeros, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u64; 8]);

/// Lines of a million flows, and frames.
pub struct Floor {
    index: Slab<Line>,
    entries: Slab<Line>,
    frames: Vec<Frame>,
    random: Entropy,
    magazine: Magazine,
}

impl Floor {
    /// Memory of these pages, touched.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn new(huge: HugePages) -> io::Result<Floor> {
        let mut index: Slab<Line> = Slab::new(FLOWS / 4, huge)?;
        let mut entries: Slab<Line> = Slab::new(FLOWS, huge)?;
        (0..FLOWS / 4).for_each(|row| index.at_mut(row).0[0] = u64::from(row));
        (0..FLOWS).for_each(|row| entries.at_mut(row).0[0] = u64::from(row));
        let pool = Pool::new(u32::try_from(PASS_FRAMES).map_err(io::Error::other)? + 64, 2048, huge)?;
        let mut magazine = pool.magazine();
        let mut frames: Vec<Frame> = std::iter::from_fn(|| magazine.take()).take(PASS_FRAMES).collect();
        for frame in &mut frames {
            let _fits = frame.fill(&[1; 64]);
        }
        Ok(Floor { index, entries, frames, random: Entropy::new(1), magazine })
    }

    /// What tables and frames are made of.
    pub fn pages(&self) -> Pages {
        self.entries.pages()
    }

    /// One pass over all frames; nanoseconds, and packets.
    pub fn pass(&mut self) -> (u64, usize) {
        let picks: Vec<u64> = (0..self.frames.len()).map(|_| self.random.draw()).collect();
        let begun = now_ns();
        for (batch, picks) in self.frames.chunks_mut(BATCH).zip(picks.chunks(BATCH)) {
            batch.iter().for_each(Frame::prefetch);
            for pick in picks {
                self.index.prefetch(bucket(*pick));
            }
            for pick in picks {
                let low = self.index.at(bucket(*pick)).0[0] & 1;
                self.entries.prefetch(row(*pick, low));
            }
            for (frame, pick) in batch.iter_mut().zip(picks) {
                let low = self.index.at(bucket(*pick)).0[0] & 1;
                let entry = self.entries.at_mut(row(*pick, low));
                entry.0[1] += 1;
                let [byte, ..] = entry.0[0].to_le_bytes();
                if let Some(out) = frame.bytes_mut().first_chunk_mut::<50>() {
                    *out = [byte; 50];
                }
            }
        }
        (now_ns() - begun, self.frames.len())
    }
}

/// Every frame goes home.
impl Drop for Floor {
    fn drop(&mut self) {
        self.frames.drain(..).for_each(|frame| self.magazine.give(frame));
    }
}

#[inline(always)]
fn bucket(pick: u64) -> u32 {
    (pick >> 32) as u32 % (FLOWS / 4)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
fn row(pick: u64, low: u64) -> u32 {
    (pick as u32 % FLOWS) ^ low as u32
}
