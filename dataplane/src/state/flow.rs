//! The flow table: entries in a slab, and an index that finds them by the tuple of either direction.
//!
//! It owns which entries are live and when they end. It refuses to know what an entry's numbers mean.
//!
//! Looking up is in phases, so that a batch of packets waits for memory once and not once per packet:
//!
//! ```text
//! for every packet:  hash(tuple), prefetch_index(hash)           -> the index line is on its way
//! for every packet:  candidate(hash)                             -> reads that line, the entry is on its way
//! for every packet:  follow(candidate, hash)                     -> the same for keys in their second bucket
//! for every packet:  confirm(candidate, tuple, hash)             -> compares the entry
//! ```
//!
//! `candidate` believes a tag of 16 bits; `confirm` compares everything and searches both buckets when the tag lied.
//! `follow` is worth its pass over the batch in tables that are nearly full, and may be left out. A flow that is
//! installed between the phases of another packet of the same batch is not seen by it: whoever is about to insert after
//! a miss must be ready for [`InsertError::OriginalTaken`].
//!
//! A flow of which one direction is seen stands in the index once, under that direction.
//!
//! Entries that were in use are linked through their own lines and used again first, so the table touches no more pages
//! than it ever needed at once.

use std::io;

use tidegate_io::mem::{HugePages, Slab, prefetch_read};

use super::entry::{Entry, NewFlow};
use super::index::{Index, Probe, Slot};
use super::opening::Opening;
use super::sources::Sources;
use super::tcp::Timeouts;
use super::tuple::{Address, HashKeys, Tuple};
use super::{Direction, Ticks, dispensable, ticks_of_seconds, ticks_since};
use crate::limits;

/// End of the free list.
const NONE: u32 = u32::MAX;
/// Most flows a table can be made for.
pub const FLOWS_MAX: u32 = 1 << 31;
/// How far ahead of itself the sweep asks for entries.
const SWEEP_PREFETCH_ENTRIES: u32 = 8;
/// A sweep that takes [`FlowTable::sweep_share`] entries each turn sees every entry within this time, so no flow
/// outlives its timer by more (N-102).
pub const SWEEP_LAP_SECONDS: u32 = 4;

/// Row of a live entry. Good until the entry is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowId(u32);

impl FlowId {
    /// The number of the row.
    #[must_use]
    pub const fn row(self) -> u32 {
        self.0
    }
}

/// What the index said about a key, to be confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate(Option<Slot>);

impl Candidate {
    /// Whether the first line could not say: [`FlowTable::follow`] can.
    #[inline(always)]
    #[must_use]
    pub const fn is_spilled(&self) -> bool {
        self.0.is_none()
    }
}

/// A flow and the direction of it that a tuple belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The flow.
    pub flow: FlowId,
    /// Which way the packet goes.
    pub direction: Direction,
}

/// Why a flow was not installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// No entry is free, or (above 95 % of the capacity) the index has no room for this one.
    #[error("the flow table is full")]
    Full,
    /// A live flow already has the tuple of the original direction.
    #[error("the tuple of the original direction belongs to a live flow")]
    OriginalTaken,
    /// A live flow already has the tuple of the reply direction.
    #[error("the tuple of the reply direction belongs to a live flow")]
    ReplyTaken,
}

/// What the sweep came by.
#[derive(Debug)]
pub enum Swept<'table, A> {
    /// A flow whose timer still runs.
    Live(&'table mut Entry<A>),
    /// A flow that ends now: the last look at its counters.
    Expired(&'table Entry<A>),
}

/// A flow that has to go so that another may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The oldest flow that is opening.
    HalfOpen(FlowId),
    /// One whose time is over, that has ended, or that is easily made again.
    Spared(FlowId),
}

/// `percent` of `flows`.
fn share(flows: u32, percent: u8) -> u32 {
    let share = u64::from(flows) * u64::from(percent.min(100)) / 100;
    u32::try_from(share).unwrap_or(flows)
}

/// Flows from which on one must go for each that comes, as long as one can be spared.
fn crowd(capacity: u32) -> u32 {
    capacity - capacity / limits::CROWD_FREE_PART
}

/// The flows of one family that one worker owns.
#[derive(Debug)]
pub struct FlowTable<A: Address> {
    entries: Slab<Entry<A>>,
    index: Index,
    keys: HashKeys,
    capacity: u32,
    live: u32,
    /// First row that was never in use.
    fresh: u32,
    /// First link of the list of rows that are no longer in use.
    free: u32,
    /// Row the sweep looks at next.
    sweep: u32,
    /// Row that is looked at next for a flow that can be spared.
    spare: u32,
    opening: Opening,
    /// What sources have begun under limits, and whose the flows are that are opening.
    sources: Sources,
    timeouts: Timeouts,
}

impl<A: Address> FlowTable<A> {
    /// A table for `flows_max` flows. Memory is set aside by address now and by page when it is first used.
    ///
    /// # Errors
    ///
    /// What mmap(2) reports, or that more than [`FLOWS_MAX`] flows are asked for.
    pub fn new(flows_max: u32, seed: [u64; 2], huge: HugePages) -> io::Result<FlowTable<A>> {
        if flows_max > FLOWS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a flow table holds at most 2^31 flows"));
        }
        Ok(FlowTable {
            entries: Slab::new(flows_max, huge)?,
            index: Index::new(flows_max, huge)?,
            keys: HashKeys::new(seed),
            capacity: flows_max,
            live: 0,
            fresh: 0,
            free: NONE,
            sweep: 0,
            spare: 0,
            opening: Opening::new(share(flows_max, limits::HALF_OPEN_PERCENT)),
            sources: Sources::new(flows_max, seed)?,
            timeouts: Timeouts::default(),
        })
    }

    /// Flows in the table.
    #[inline]
    #[must_use]
    pub fn live(&self) -> u32 {
        self.live
    }

    /// Flows the table was made for.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Flows that are opening: no client has finished their handshake (L-022).
    #[must_use]
    pub fn opening(&self) -> u32 {
        self.opening.len()
    }

    /// Most flows that may be opening before a new one takes the place of the oldest.
    #[must_use]
    pub fn opening_max(&self) -> u32 {
        self.opening.len_max()
    }

    /// Sets that as a part of the capacity, 1 to 100.
    pub fn set_opening_percent(&mut self, percent: u8) {
        self.opening.set_len_max(share(self.capacity, percent));
    }

    /// How long flows live in which state.
    pub fn timeouts_mut(&mut self) -> &mut Timeouts {
        &mut self.timeouts
    }

    /// A number that only this table can compute from `value`.
    #[must_use]
    pub fn scramble(&self, value: u64) -> u64 {
        self.keys.scramble(value)
    }

    /// The hash that the other lookup functions want for `tuple`.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, tuple: &Tuple<A>) -> u64 {
        tuple.hash(&self.keys)
    }

    /// Phase 1: starts to load the line of the index.
    #[inline(always)]
    pub fn prefetch_index(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Phase 2: reads the line of the index and starts to load the entry. `None` is certain: there is no such flow.
    #[inline(always)]
    #[must_use]
    pub fn candidate(&self, hash: u64) -> Option<Candidate> {
        match self.index.probe(hash) {
            Probe::Absent => None,
            Probe::Likely(slot) => Some(self.expect(slot)),
            Probe::Spilled => Some(Candidate(None)),
        }
    }

    /// Between phases 2 and 3: what `candidate` could not say of a key that may be in its second bucket, it is said
    /// now. `None` is as certain as there, if nothing was inserted since.
    #[inline(always)]
    #[must_use]
    pub fn follow(&self, candidate: Candidate, hash: u64) -> Option<Candidate> {
        if candidate.0.is_some() {
            return Some(candidate);
        }
        self.index.probe_second(hash).map(|slot| self.expect(slot))
    }

    #[inline(always)]
    fn expect(&self, slot: Slot) -> Candidate {
        let entry = self.entries.at(slot.entry);
        prefetch_read(entry);
        if size_of::<Entry<A>>() > 64 {
            prefetch_read(entry.last_line());
        }
        Candidate(Some(slot))
    }

    /// Phase 3: compares the entry with the whole tuple.
    #[inline(always)]
    #[must_use]
    pub fn confirm(&self, candidate: Candidate, tuple: &Tuple<A>, hash: u64) -> Option<Hit> {
        if let Some(Slot { entry, direction }) = candidate.0
            && self.entries.at(entry).matches(direction, tuple)
        {
            return Some(Hit { flow: FlowId(entry), direction });
        }
        self.search(tuple, hash)
    }

    #[inline(never)]
    fn search(&self, tuple: &Tuple<A>, hash: u64) -> Option<Hit> {
        let slot = self.index.find(hash, |slot| self.entries.at(slot.entry).matches(slot.direction, tuple))?;
        Some(Hit { flow: FlowId(slot.entry), direction: slot.direction })
    }

    /// All phases at once.
    #[inline]
    #[must_use]
    pub fn lookup(&self, tuple: &Tuple<A>) -> Option<Hit> {
        self.find(tuple, self.hash(tuple))
    }

    /// The entry of a flow. (Of a flow that was removed: an entry that is not live, or is another flow by now.)
    #[inline(always)]
    #[must_use]
    pub fn entry(&self, flow: FlowId) -> &Entry<A> {
        self.entries.at(flow.0)
    }

    /// The entry of a flow, for writing.
    #[inline(always)]
    #[must_use]
    pub fn entry_mut(&mut self, flow: FlowId) -> &mut Entry<A> {
        self.entries.at_mut(flow.0)
    }

    /// Installs a flow.
    ///
    /// # Errors
    ///
    /// [`InsertError`]; the table is as it was.
    pub fn insert(&mut self, new: &NewFlow<A>, now: Ticks) -> Result<FlowId, InsertError> {
        let (reply, one_way) = (new.reply(), new.is_one_way());
        let (original_hash, reply_hash) = (self.hash(&new.original), self.hash(&reply));
        self.index.prefetch(reply_hash);
        if self.live >= self.capacity {
            return Err(InsertError::Full);
        }
        if self.find(&new.original, original_hash).is_some() {
            return Err(InsertError::OriginalTaken);
        }
        if !one_way && (reply == new.original || self.find(&reply, reply_hash).is_some()) {
            return Err(InsertError::ReplyTaken);
        }
        let row = if self.free == NONE { self.fresh } else { self.free };
        let original = Slot { entry: row, direction: Direction::Original };
        self.index.insert(original_hash, original).map_err(|_| InsertError::Full)?;
        if !one_way && self.index.insert(reply_hash, Slot { entry: row, direction: Direction::Reply }).is_err() {
            self.index.remove(original_hash, original);
            return Err(InsertError::Full);
        }
        if self.free == NONE {
            self.fresh += 1;
        } else {
            self.free = self.entries.at(row).backend;
        }
        *self.entries.at_mut(row) = Entry::new(new, now);
        if new.state.is_opening() {
            self.opening.join(&mut self.entries, row);
        }
        self.live += 1;
        Ok(FlowId(row))
    }

    #[inline]
    fn find(&self, tuple: &Tuple<A>, hash: u64) -> Option<Hit> {
        self.confirm(self.candidate(hash)?, tuple, hash)
    }

    /// Removes a flow; whether it was live. Its counters are lost unless they were folded before.
    pub fn remove(&mut self, flow: FlowId) -> bool {
        let entry = self.entries.at(flow.0);
        if !entry.is_live() {
            return false;
        }
        let one_way = entry.is_one_way();
        let (original, reply) = (self.hash(&entry.original_tuple()), self.hash(&entry.reply_tuple()));
        self.index.prefetch(reply);
        let removed = self.index.remove(original, Slot { entry: flow.0, direction: Direction::Original });
        debug_assert!(removed, "a live flow is in the index");
        let removed = one_way || self.index.remove(reply, Slot { entry: flow.0, direction: Direction::Reply });
        debug_assert!(removed, "a live flow whose answers come here is in the index twice");
        self.opening.leave(&mut self.entries, flow.0);
        self.sources.leave(flow.0);
        self.entries.at_mut(flow.0).vacate(self.free);
        self.free = flow.0;
        self.live -= 1;
        true
    }

    /// To be called when a packet of `flow` found something to fold: a flow whose handshake is complete leaves the class of
    /// those that are opening, for good. Constant time.
    #[cold]
    pub fn settle(&mut self, flow: FlowId) {
        let entry = self.entries.at(flow.0);
        if entry.is_listed() && !entry.state.proves_nothing() {
            self.opening.leave(&mut self.entries, flow.0);
            self.sources.leave(flow.0);
        }
    }

    /// Counts a flow that is opening for a source, by that one's place, until it is not any more.
    #[cold]
    pub fn count_opening(&mut self, flow: FlowId, source: u32) {
        if self.entries.at(flow.0).is_listed() {
            self.sources.join(flow.0, source);
        }
    }

    /// What sources have begun under limits.
    #[must_use]
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The same, to be added to.
    pub fn sources_mut(&mut self) -> &mut Sources {
        &mut self.sources
    }

    /// Whether nobody has to go before a flow that begins in `state` is installed.
    #[must_use]
    pub fn has_room(&self, state: super::FlowState) -> bool {
        let share_full = state.is_opening() && self.opening.len() >= self.opening.len_max();
        !share_full && self.live < crowd(self.capacity)
    }

    /// Who has to go before a flow that begins in `state` may be installed; nobody while there is room.
    ///
    /// A handshake beyond their share takes the place of the oldest one (L-022). In a crowded table any flow takes the
    /// place of one that can be spared, else of the oldest handshake, and never of an established flow (N-100).
    /// Constant time: at most [`limits::SPARE_LOOK_ROWS`] entries are looked at, a few lines side by side.
    pub fn victim(&mut self, state: super::FlowState, now: Ticks) -> Option<Victim> {
        let oldest = |opening: &Opening| opening.oldest().map(|row| Victim::HalfOpen(FlowId(row)));
        if state.is_opening() && self.opening.len() >= self.opening.len_max() {
            return oldest(&self.opening);
        }
        if self.live < crowd(self.capacity) {
            return None;
        }
        self.look_for_spare(now).map(Victim::Spared).or_else(|| oldest(&self.opening))
    }

    /// The flow that can best be spared among the next few rows, the one that was silent for longest among equals.
    #[cold]
    fn look_for_spare(&mut self, now: Ticks) -> Option<FlowId> {
        let mut best = None;
        for _ in 0..limits::SPARE_LOOK_ROWS.min(self.fresh) {
            let row = if self.spare < self.fresh { self.spare } else { 0 };
            self.spare = row + 1;
            self.entries.prefetch(row.wrapping_add(SWEEP_PREFETCH_ENTRIES));
            let entry = self.entries.at(row);
            if !entry.is_live() {
                continue;
            }
            let silent = ticks_since(entry.last_seen_ticks, now);
            let is_over = silent > self.timeouts.of_marked(entry.state, entry.mark);
            let rank = dispensable::rank(entry.state, is_over).map(|rank| (rank, silent));
            if let Some(rank) = rank
                && best.is_none_or(|(held, _)| rank > held)
            {
                best = Some((rank, FlowId(row)));
            }
        }
        best.map(|(_, flow)| flow)
    }

    /// Removes flows whose timer ran out among the next `entries_max` rows, after showing each to `on_expired`.
    /// Returns how many.
    pub fn expire(&mut self, now: Ticks, entries_max: u32, mut on_expired: impl FnMut(FlowId, &Entry<A>)) -> u32 {
        self.sweep(now, entries_max, |flow, swept| {
            if let Swept::Expired(entry) = swept {
                on_expired(flow, entry);
            }
        })
    }

    /// As [`expire`](Self::expire), and shows the flows that stay as well, so that their counters can be folded.
    pub fn sweep(&mut self, now: Ticks, entries_max: u32, on_entry: impl FnMut(FlowId, Swept<'_, A>)) -> u32 {
        self.sweep_judging(now, entries_max, |_| false, on_entry)
    }

    /// As [`sweep`](Self::sweep); flows that `is_void` says are nothing any more end as well, whatever their timer says.
    pub fn sweep_judging(
        &mut self,
        now: Ticks,
        entries_max: u32,
        mut is_void: impl FnMut(&mut Entry<A>) -> bool,
        mut on_entry: impl FnMut(FlowId, Swept<'_, A>),
    ) -> u32 {
        let mut expired = 0;
        for _ in 0..entries_max.min(self.fresh) {
            let row = if self.sweep < self.fresh { self.sweep } else { 0 };
            self.sweep = row + 1;
            self.entries.prefetch(row.wrapping_add(SWEEP_PREFETCH_ENTRIES));
            let entry = self.entries.at_mut(row);
            if !entry.is_live() {
                continue;
            }
            // Strictly more: both readings are rounded down to a tick, and no flow may end early (N-102).
            let is_over = ticks_since(entry.last_seen_ticks, now) > self.timeouts.of_marked(entry.state, entry.mark);
            if is_over || is_void(entry) {
                on_entry(FlowId(row), Swept::Expired(entry));
                self.remove(FlowId(row));
                expired += 1;
            } else {
                on_entry(FlowId(row), Swept::Live(entry));
            }
        }
        expired
    }

    /// How many rows to sweep for the `elapsed` ticks since the last time, so that every row is seen within
    /// [`SWEEP_LAP_SECONDS`]. At least one, at most all.
    #[must_use]
    pub fn sweep_share(&self, elapsed: Ticks) -> u32 {
        let lap = u64::from(ticks_of_seconds(SWEEP_LAP_SECONDS));
        let share = (u64::from(self.fresh) * u64::from(elapsed)).div_ceil(lap).clamp(1, u64::from(self.fresh).max(1));
        u32::try_from(share).unwrap_or(u32::MAX)
    }

    /// Shows the live flows among `rows_max` rows from row `from` on, for listings in bounded pieces. Returns where to
    /// go on, or nothing at the end.
    pub fn visit(&self, from: u32, rows_max: u32, mut on_entry: impl FnMut(FlowId, &Entry<A>)) -> Option<u32> {
        let end = from.saturating_add(rows_max).min(self.fresh);
        for row in from..end {
            let entry = self.entries.at(row);
            if entry.is_live() {
                on_entry(FlowId(row), entry);
            }
        }
        (end < self.fresh).then_some(end)
    }

    /// The flows that are opening, oldest first.
    #[cfg(test)]
    pub(super) fn opening_order(&self) -> Vec<FlowId> {
        self.opening.order(&self.entries).into_iter().map(FlowId).collect()
    }

    /// Occupied slots of the index, and those among them in their second bucket.
    #[cfg(test)]
    pub(super) fn index_occupied(&self) -> (u64, u64) {
        self.index.occupied()
    }
}
