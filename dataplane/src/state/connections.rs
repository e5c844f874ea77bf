//! Connections that are told of: what each flow has counted in all, from its beginning to its end.
//!
//! It owns totals beside the flows' entries, which are folded into their backends' every few seconds and so never know all.
//! Its memory is there only where somebody collects records of connections. It refuses to know when flows begin and end: that
//! is the worker's state, which calls.

use std::io;
use std::sync::Arc;

use tidegate_io::mem::{HugePages, Slab};
use zerocopy::FromZeros;

use super::{Capacity, Direction, Entry, FlowId, Fold, TICK_NS_LOG2, ticks, ticks_since};
use crate::family::Family;
use crate::flows::{Ends, Note, Notes, Reason, Subject};
use crate::table::BackendId;
use crate::wire::Family as Version;

/// What one flow has counted so far, without what is in its entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros)]
#[repr(C)]
struct Total {
    packets: [u64; 2],
    bytes: [u64; 2],
    /// When it began, monotonic nanoseconds.
    begun_ns: u64,
}

/// Totals of all flows, by row, and the ring to the exporter. Kind: state.
#[derive(Debug)]
pub struct Connections {
    v4: Slab<Total>,
    v6: Slab<Total>,
    notes: Arc<Notes>,
    /// Time of this turn, and generation of its tables.
    now: (u64, u64),
    /// Notes made and lost since somebody asked.
    counts: (u64, u64),
}

impl Connections {
    /// Totals for as many flows as `capacity` has, told to `notes`.
    ///
    /// # Errors
    /// What the system says when it has not the memory.
    pub fn new(capacity: &Capacity, notes: Arc<Notes>) -> io::Result<Connections> {
        let slab = |flows| Slab::new(flows, HugePages::Off);
        Ok(Connections {
            v4: slab(capacity.flows_v4)?,
            v6: slab(capacity.flows_v6)?,
            notes,
            now: (0, 0),
            counts: (0, 0),
        })
    }

    /// A turn begins.
    pub fn turn(&mut self, now_ns: u64, generation: u64) {
        self.now = (now_ns, generation);
    }

    fn total(&mut self, version: Version, flow: FlowId) -> Option<&mut Total> {
        match version {
            Version::V4 => self.v4.get_mut(flow.row()),
            Version::V6 => self.v6.get_mut(flow.row()),
        }
    }

    /// A flow has begun.
    pub fn begin<A: Family>(&mut self, flow: FlowId, entry: &Entry<A>) {
        let begun_ns = self.now.0;
        if let Some(total) = self.total(A::VERSION, flow) {
            *total = Total { begun_ns, ..Total::default() };
        }
        self.note(entry, Subject::Begun);
    }

    /// Its entry gave out what it had counted.
    pub fn add(&mut self, version: Version, flow: FlowId, direction: Direction, fold: Fold) {
        if let Some(total) = self.total(version, flow) {
            total.packets[direction.index()] += fold.packets;
            total.bytes[direction.index()] += fold.bytes;
        }
    }

    /// It ends; what is still in its entry counts too.
    pub fn end<A: Family>(&mut self, flow: FlowId, entry: &Entry<A>, is_over: bool) {
        for direction in [Direction::Original, Direction::Reply] {
            self.add(A::VERSION, flow, direction, entry.counted(direction));
        }
        let Some(Total { packets, bytes, begun_ns }) = self.total(A::VERSION, flow).copied() else { return };
        let reason = match is_over {
            true if entry.state.has_closed() => Reason::Closed,
            true => Reason::Idle,
            false => Reason::Replaced,
        };
        let idle_ns = u64::from(ticks_since(entry.last_seen_ticks, ticks(self.now.0))) << TICK_NS_LOG2;
        let seen_ns = self.now.0.saturating_sub(idle_ns).max(begun_ns);
        self.note(entry, Subject::Ended { packets, bytes, begun_ns, seen_ns, reason });
    }

    fn note<A: Family>(&mut self, entry: &Entry<A>, subject: Subject) {
        let (at_ns, generation) = self.now;
        let note = Note {
            at_ns,
            generation,
            subject,
            family: A::VERSION,
            protocol: entry.protocol(),
            came: Ends::of(&entry.original_tuple()),
            left: Some(Ends::of(&entry.translated_tuple())),
            is_egress: entry.is_egress(),
            backend: BackendId(entry.backend),
        };
        match self.notes.put(note) {
            true => self.counts.0 += 1,
            false => self.counts.1 += 1,
        }
    }

    /// Notes made and lost since this was asked last.
    pub fn take_counts(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.counts)
    }
}
