//! Endpoints of Services, with the epochs that flows remember.
//!
//! Owns one row per endpoint of a Service port (and, in `node-dsr`, per node that has one: to flows a node is an endpoint
//! that takes packets as they are), and one 16-bit epoch per row in a dense side array: an established flow
//! compares its remembered epoch with that one alone, and walks the slow path only when it moved. It refuses to know who
//! chose the endpoint and which flows use it.

use tidegate_io::mem::prefetch_read;

use super::rows::Rows;
use super::{BackendId, Family, ServiceId, TunnelId};

/// Life of an endpoint, as flows need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum BackendState {
    /// No endpoint has this id.
    #[default]
    Vacant,
    /// Takes new flows.
    Active,
    /// Serving, but takes no new flows (L-047).
    Draining,
    /// No longer serving: TCP flows end by themselves (S-100), UDP flows choose again (S-102).
    Gone,
}

/// One endpoint of one Service port. Kind: table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendRow {
    /// Pod address in network order; IPv4 in mapped form. Of a node: its underlay address.
    pub address: [u8; 16],
    /// Family of `address`.
    pub family: Family,
    /// Pod port, host order; 0: the port that the client asked for. Of a node 0.
    pub port: u16,
    /// The node itself, by the tunnel that leads there; [`TunnelId::NONE`]: this is an endpoint.
    pub node: TunnelId,
    /// The Service port it belongs to.
    pub service: ServiceId,
    /// Where it is in its life.
    pub state: BackendState,
    /// Bumped by [`BackendTable::set`] when anything above changed; wraps.
    pub epoch: u16,
}

impl BackendRow {
    /// The pod port for a client that asked for `asked`.
    #[inline]
    pub fn port_for(&self, asked: u16) -> u16 {
        if self.port == 0 { asked } else { self.port }
    }
}

impl Default for BackendRow {
    fn default() -> Self {
        BackendRow {
            address: [0; 16],
            family: Family::V4,
            port: 0,
            node: TunnelId::NONE,
            service: ServiceId::NONE,
            state: BackendState::Vacant,
            epoch: 0,
        }
    }
}

impl BackendRow {
    /// A number that endpoints with another Service port, address or port do not have, but for one in 2^63 pairs. It
    /// outlives states and epochs, so that what is counted for an endpoint stays its own when its id is given to another.
    #[must_use]
    pub fn identity(&self) -> u64 {
        let [high, low] = [0, 8].map(|at| self.address[at..].first_chunk().map_or(0, |half| u64::from_be_bytes(*half)));
        let place = u64::from(self.service.0) << 16 | u64::from(self.port);
        // SplitMix64's finish over each word in turn; every step can be undone, so equal ends need equal words.
        [low, high, place].into_iter().fold(1, |mixed: u64, word| {
            let mixed = (mixed ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ mixed >> 31
        })
    }
}

/// Epochs in a chunk: 8 KB, so that half a million backends need a spine of 1 KB.
const EPOCHS_PER_CHUNK: usize = 4096;

/// All endpoints. Kind: table.
#[derive(Clone, Debug, Default)]
pub struct BackendTable {
    rows: Rows<BackendRow>,
    /// `epoch` of each row, same index.
    epochs: Rows<u16, EPOCHS_PER_CHUNK>,
}

impl BackendTable {
    /// The row of an id; `None` when vacant. Read side, slow path.
    #[inline]
    pub fn row(&self, id: BackendId) -> Option<&BackendRow> {
        self.rows.get(id.0).filter(|row| row.state != BackendState::Vacant)
    }

    /// The epoch of an id; 0 for one that was never given out (rows that were have others, except once in 65,536 changes).
    /// Read side, fast path.
    #[inline]
    pub fn epoch(&self, id: BackendId) -> u16 {
        self.epochs.get(id.0).copied().unwrap_or(0)
    }

    /// Asks for the cache line that [`BackendTable::epoch`] will read. Read side, fast path.
    #[inline]
    pub fn prefetch_epoch(&self, id: BackendId) {
        if let Some(epoch) = self.epochs.get(id.0) {
            prefetch_read(epoch);
        }
    }

    /// Chunks of rows and of epochs that `before` does not have: what the edits since have copied.
    pub fn chunks_copied(&self, before: &Self) -> [usize; 2] {
        [self.rows.chunks_copied(&before.rows), self.epochs.chunks_copied(&before.epochs)]
    }

    /// Every endpoint with its id.
    pub fn rows(&self) -> impl Iterator<Item = (BackendId, &BackendRow)> {
        let rows = self.rows.iter().filter(|(_, row)| row.state != BackendState::Vacant);
        rows.map(|(id, row)| (BackendId(id), row))
    }

    /// Moves the epoch of an id, though its row stays: something else that its flows depend on has changed. Build side: two
    /// chunks.
    pub fn touch(&mut self, id: BackendId) {
        let Some(row) = self.row(id).copied() else { return };
        let epoch = row.epoch.wrapping_add(1);
        self.rows.set(id.0, BackendRow { epoch, ..row });
        self.epochs.set(id.0, epoch);
    }

    /// Writes a row and returns its epoch: one more than before if state or identity changed, else the same. `row.epoch` is
    /// ignored. Build side: two chunks.
    pub fn set(&mut self, id: BackendId, row: BackendRow) -> u16 {
        let before = self.rows.get(id.0).copied().unwrap_or_default();
        let same = BackendRow { epoch: before.epoch, ..row };
        if same == before {
            return before.epoch;
        }
        let epoch = before.epoch.wrapping_add(1);
        self.rows.set(id.0, BackendRow { epoch, ..row });
        self.epochs.set(id.0, epoch);
        epoch
    }

    /// Changes the state of a row and returns its epoch as [`BackendTable::set`] does.
    pub fn set_state(&mut self, id: BackendId, state: BackendState) -> u16 {
        let row = self.rows.get(id.0).copied().unwrap_or_default();
        self.set(id, BackendRow { state, ..row })
    }

    /// Makes an id vacant. Its epoch is bumped and kept, so that flows of the next endpoint under this id are told apart.
    pub fn clear(&mut self, id: BackendId) {
        self.set(id, BackendRow::default());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn any_row() -> impl Strategy<Value = BackendRow> {
        let state = prop::sample::select(vec![
            BackendState::Vacant,
            BackendState::Active,
            BackendState::Draining,
            BackendState::Gone,
        ]);
        (any::<bool>(), 0..2u8, 0..2u16, 0..2u32, state, any::<u16>()).prop_map(
            |(v4, host, port, service, state, epoch)| {
                let address = if v4 { super::super::mapped(&[10, 244, 1, host]) } else { [host; 16] };
                let family = if v4 { Family::V4 } else { Family::V6 };
                let node = if port == 1 { TunnelId(3) } else { TunnelId::NONE };
                BackendRow { address, family, port, node, service: ServiceId(service), state, epoch }
            },
        )
    }

    #[test]
    fn an_identity_is_of_service_port_address_and_port_alone() {
        let row = BackendRow { address: [1; 16], port: 80, service: ServiceId(3), ..BackendRow::default() };
        assert_eq!(row.identity(), BackendRow { epoch: 9, state: BackendState::Gone, ..row }.identity());
        let mut others = vec![BackendRow { port: 81, ..row }, BackendRow { service: ServiceId(4), ..row }];
        others.extend((0..16).map(|at| {
            let mut address = row.address;
            address[at] ^= 1;
            BackendRow { address, ..row }
        }));
        let mut seen: std::collections::HashSet<u64> = others.iter().map(BackendRow::identity).collect();
        assert!(seen.insert(row.identity()) && seen.len() == others.len() + 1 && !seen.contains(&0));
    }

    proptest! {
        /// The epoch moves with every change of a row and with nothing else, and the side array agrees with the rows.
        #[test]
        fn epochs_count_changes(ops in prop::collection::vec((0..6u32, prop::option::of(any_row())), 0..120)) {
            let mut table = BackendTable::default();
            let mut oracle = HashMap::<u32, (BackendRow, u16)>::new();
            for (id, row) in ops {
                let row = BackendRow { epoch: 0, ..row.unwrap_or_default() };
                let entry = oracle.entry(id).or_default();
                if entry.0 != row {
                    *entry = (row, entry.1 + 1);
                }
                let before = table.epoch(BackendId(id));
                prop_assert_eq!(table.set(BackendId(id), BackendRow { epoch: 77, ..row }), entry.1);
                prop_assert!(table.epoch(BackendId(id)).wrapping_sub(before) <= 1);
            }
            for id in 0..8 {
                let (row, epoch) = oracle.get(&id).copied().unwrap_or_default();
                let expected = (row.state != BackendState::Vacant).then_some(BackendRow { epoch, ..row });
                prop_assert_eq!(table.row(BackendId(id)).copied(), expected);
                prop_assert_eq!(table.epoch(BackendId(id)), epoch);
            }
            prop_assert!(table.rows().all(|(id, row)| row.epoch == table.epoch(id)));
        }
    }

    #[test]
    fn an_id_used_again_has_another_epoch() {
        let mut table = BackendTable::default();
        let row = BackendRow { address: [1; 16], family: Family::V6, port: 80, ..BackendRow::default() };
        let id = BackendId(5000);
        let first = table.set(id, BackendRow { state: BackendState::Active, ..row });
        assert_eq!(table.set_state(id, BackendState::Active), first);
        let draining = table.set_state(id, BackendState::Draining);
        assert_ne!(first, draining);
        table.clear(id);
        assert!(table.row(id).is_none());
        let again = table.set(id, BackendRow { state: BackendState::Active, ..row });
        assert!(again != first && again != draining);
        assert_eq!(table.epoch(BackendId::NONE), 0);
        table.prefetch_epoch(BackendId::NONE);
    }

    #[test]
    fn a_row_is_small() {
        const { assert!(size_of::<BackendRow>() <= 32) };
    }
}
