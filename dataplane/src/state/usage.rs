//! What each backend is used for: flows, packets, bytes.
//!
//! It owns the totals of one worker, one cache line per backend, in memory that is touched when a backend first
//! is used. It refuses to know what a backend is. Packets are counted in the flow entries, where a worker looks anyway,
//! and come here when those fold.

use std::io;

use tidegate_io::mem::{HugePages, Slab};
use zerocopy::FromZeros;

use super::{Direction, Fold};

/// Totals of one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromZeros)]
#[repr(C, align(64))]
pub struct Row {
    /// Flows opened since `owner` is counted.
    pub opened: u64,
    /// Packets per direction, as far as folded.
    pub packets: [u64; 2],
    /// Bytes per direction, as far as folded.
    pub bytes: [u64; 2],
    /// Flows that are live now.
    pub live: u32,
    /// Those among them that are active, as schedulers count ([`super::FlowState::is_active`]).
    pub active: u32,
    /// Who is counted: a number that an endpoint has to itself (`BackendRow::identity`); 0: nobody yet.
    pub owner: u64,
}

const _: () = assert!(size_of::<Row>() == 64);

/// Totals of all backends, by row number of the backend. Numbers beyond the capacity are not counted.
#[derive(Debug)]
pub struct Usage {
    rows: Slab<Row>,
}

impl Usage {
    /// Totals for `backends_max` backends, all zero.
    ///
    /// # Errors
    ///
    /// What mmap(2) reports.
    pub fn new(backends_max: u32, huge: HugePages) -> io::Result<Usage> {
        Ok(Usage { rows: Slab::new(backends_max, huge)? })
    }

    /// `owner` is about to be counted under the number `backend`. If that was another's before, counting starts anew;
    /// flows of that one that are still live stay counted as live, since they will be closed.
    #[inline]
    pub fn claim(&mut self, backend: u32, owner: u64) {
        if let Some(row) = self.rows.get_mut(backend)
            && row.owner != owner
        {
            *row = Row { live: row.live, active: row.active, owner, ..Row::default() };
        }
    }

    /// A flow to `backend` was installed.
    #[inline]
    pub fn open(&mut self, backend: u32, is_active: bool) {
        if let Some(row) = self.rows.get_mut(backend) {
            row.opened += 1;
            row.live += 1;
            row.active += u32::from(is_active);
        }
    }

    /// A flow to `backend` was removed.
    #[inline]
    pub fn close(&mut self, backend: u32, was_active: bool) {
        if let Some(row) = self.rows.get_mut(backend) {
            debug_assert!(row.live > 0, "a flow is closed once");
            row.live = row.live.saturating_sub(1);
            row.active = row.active.saturating_sub(u32::from(was_active));
        }
    }

    /// A live flow to `backend` became active or ceased to be.
    #[cold]
    pub fn turn(&mut self, backend: u32, is_active: bool) {
        if let Some(row) = self.rows.get_mut(backend) {
            row.active = if is_active { row.active + 1 } else { row.active.saturating_sub(1) };
        }
    }

    /// Adds what an entry had counted.
    #[inline]
    pub fn fold(&mut self, backend: u32, direction: Direction, fold: Fold) {
        if let Some(row) = self.rows.get_mut(backend) {
            row.packets[direction.index()] += fold.packets;
            row.bytes[direction.index()] += fold.bytes;
        }
    }

    /// Totals of `backend`; zeroes for one that was never used.
    #[must_use]
    pub fn row(&self, backend: u32) -> Row {
        self.rows.get(backend).copied().unwrap_or_default()
    }

    /// Totals of `owner` under the number `backend`: those of somebody else are not shown for its own.
    #[must_use]
    pub fn row_of(&self, backend: u32, owner: u64) -> Row {
        let row = self.row(backend);
        if row.owner == owner { row } else { Row { live: row.live, active: row.active, ..Row::default() } }
    }

    /// Flows to `backend` that are live now.
    #[inline]
    #[must_use]
    pub fn live(&self, backend: u32) -> u32 {
        self.rows.get(backend).map_or(0, |row| row.live)
    }

    /// Flows to `backend` that are active now, and those that are live besides.
    #[inline]
    #[must_use]
    pub fn connections(&self, backend: u32) -> (u32, u32) {
        self.rows.get(backend).map_or((0, 0), |row| (row.active, row.live.saturating_sub(row.active)))
    }

    /// Starts to load the totals of `backend`.
    #[inline]
    pub fn prefetch(&self, backend: u32) {
        self.rows.prefetch(backend);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_kept_per_backend_and_strangers_are_ignored() {
        let mut usage = Usage::new(4, HugePages::Off).unwrap();
        usage.open(2, true);
        usage.open(2, false);
        usage.close(2, false);
        usage.fold(2, Direction::Original, Fold { packets: 3, bytes: 400 });
        usage.fold(2, Direction::Original, Fold { packets: 1, bytes: 60 });
        usage.fold(2, Direction::Reply, Fold { packets: 2, bytes: 3000 });
        assert_eq!(usage.row(2), Row { opened: 2, live: 1, active: 1, packets: [4, 2], bytes: [460, 3000], owner: 0 });
        assert_eq!((usage.live(2), usage.connections(2)), (1, (1, 0)));
        usage.turn(2, false);
        assert_eq!(usage.connections(2), (0, 1));
        usage.turn(2, true);
        for stranger in [4, u32::MAX] {
            usage.open(stranger, true);
            usage.turn(stranger, true);
            usage.close(stranger, true);
            usage.fold(stranger, Direction::Reply, Fold { packets: 1, bytes: 1 });
            assert_eq!(usage.row(stranger), Row::default());
        }
        assert_eq!(usage.row(0), Row::default());
    }

    #[test]
    fn a_number_that_is_given_to_another_backend_is_counted_anew() {
        let mut usage = Usage::new(4, HugePages::Off).unwrap();
        for _ in 0..3 {
            usage.claim(1, 77);
            usage.open(1, true);
        }
        usage.close(1, true);
        usage.fold(1, Direction::Reply, Fold { packets: 1, bytes: 60 });
        assert_eq!(
            usage.row_of(1, 77),
            Row { opened: 3, live: 2, active: 2, packets: [0, 1], bytes: [0, 60], owner: 77 }
        );
        // The next one has no flow yet: what is known is not its own.
        assert_eq!(usage.row_of(1, 78), Row { live: 2, active: 2, ..Row::default() });
        usage.claim(1, 78);
        usage.open(1, true);
        assert_eq!(usage.row_of(1, 78), Row { opened: 1, live: 3, active: 3, owner: 78, ..Row::default() });
        usage.claim(9, 1);
        assert_eq!(usage.row_of(9, 1), Row::default(), "strangers are ignored");
    }
}
