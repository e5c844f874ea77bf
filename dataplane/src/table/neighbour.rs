//! Link-layer neighbours.
//!
//! Owns rows by id, read for every packet that leaves towards them, and the exact map from (device, address) to id. Rows are
//! read by index at the moment of use, so a changed MAC needs no epoch. It refuses to know how addresses are resolved: the
//! kernel does that, and the compiler thread copies what the kernel knows.

use super::exact::{ExactMap, Tagged};
use super::rows::Rows;
use super::{DeviceId, NeighbourId};

/// What is known of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum NeighbourState {
    /// No neighbour has this id.
    #[default]
    Vacant,
    /// Asked for, not answered yet: a bounded number of packets wait.
    Unresolved,
    /// `mac` is valid.
    Resolved,
    /// Asked for, not answered: packets are answered or dropped as unreachable.
    Failed,
}

/// One neighbour. Kind: table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NeighbourRow {
    /// Device it is reached through.
    pub device: DeviceId,
    /// Destination MAC; valid when resolved.
    pub mac: [u8; 6],
    /// What is known.
    pub state: NeighbourState,
    /// IP address in network order; IPv4 in mapped form.
    pub address: [u8; 16],
}

impl NeighbourRow {
    /// Its MAC, once it is known.
    #[inline(always)]
    #[must_use]
    pub fn known_mac(&self) -> Option<[u8; 6]> {
        (self.state == NeighbourState::Resolved).then_some(self.mac)
    }
}

/// All neighbours. Kind: table.
#[derive(Clone, Debug, Default)]
pub struct NeighbourTable {
    rows: Rows<NeighbourRow>,
    ids: ExactMap<Tagged<[u8; 16]>, NeighbourId>,
}

impl NeighbourTable {
    /// The row of an id; `None` when vacant. Read side.
    #[inline]
    pub fn row(&self, id: NeighbourId) -> Option<&NeighbourRow> {
        self.rows.get(u32::from(id.0)).filter(|row| row.state != NeighbourState::Vacant)
    }

    /// The neighbour with this address (mapped form) on this device. Read side.
    #[inline]
    pub fn find(&self, device: DeviceId, address: &[u8; 16]) -> Option<NeighbourId> {
        self.ids.get(&key(device, address))
    }

    /// Every neighbour with its id.
    pub fn rows(&self) -> impl Iterator<Item = (NeighbourId, &NeighbourRow)> {
        let ids = (0..NeighbourId::NONE.0).map(NeighbourId);
        ids.zip(self.rows.iter()).map(|(id, (_, row))| (id, row)).filter(|(_, row)| row.state != NeighbourState::Vacant)
    }

    /// Writes a row; a vacant one removes. Build side: one chunk of rows, and chunks of the map only if device or address
    /// changed. [`NeighbourId::NONE`] is no id: nothing happens.
    pub fn set(&mut self, id: NeighbourId, row: NeighbourRow) {
        if id.is_none() {
            return;
        }
        let before = self.row(id).map(|row| key(row.device, &row.address));
        let after = (row.state != NeighbourState::Vacant).then(|| key(row.device, &row.address));
        if before != after {
            // An address may have moved to another id meanwhile: only our own entry goes.
            if let Some(before) = before.filter(|before| self.ids.get(before) == Some(id)) {
                self.ids.remove(&before);
            }
            if let Some(after) = after {
                self.ids.insert(after, id);
            }
        }
        self.rows.set(u32::from(id.0), row);
    }

    /// Makes an id vacant. Build side.
    pub fn clear(&mut self, id: NeighbourId) {
        self.set(id, NeighbourRow::default());
    }
}

fn key(device: DeviceId, address: &[u8; 16]) -> Tagged<[u8; 16]> {
    Tagged { address: *address, tag: u32::from(device.0) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::table::mapped;

    fn any_row() -> impl Strategy<Value = NeighbourRow> {
        let state = prop::sample::select(vec![
            NeighbourState::Vacant,
            NeighbourState::Unresolved,
            NeighbourState::Resolved,
            NeighbourState::Failed,
        ]);
        (0..2u16, any::<bool>(), 0..3u8, any::<[u8; 6]>(), state).prop_map(|(device, v4, host, mac, state)| {
            let address = if v4 { mapped(&[192, 0, 2, host]) } else { [host; 16] };
            NeighbourRow { device: DeviceId(device), mac, state, address }
        })
    }

    proptest! {
        #[test]
        fn rows_and_addresses_agree(ops in prop::collection::vec((0..8u16, any_row()), 0..80)) {
            let mut table = NeighbourTable::default();
            let mut rows = HashMap::<u16, NeighbourRow>::new();
            for (id, row) in ops {
                // One id per address, as the compiler thread keeps it: whoever had the address before goes.
                let taken = rows.iter().find(|(_, other)| (other.device, other.address) == (row.device, row.address));
                if let Some(other) = taken.map(|(other, _)| *other).filter(|other| *other != id) {
                    table.clear(NeighbourId(other));
                    rows.remove(&other);
                }
                table.set(NeighbourId(id), row);
                rows.remove(&id);
                if row.state != NeighbourState::Vacant {
                    rows.insert(id, row);
                }
            }
            let found: HashMap<_, _> = table.rows().map(|(id, row)| (id.0, *row)).collect();
            prop_assert_eq!(&found, &rows);
            for id in 0..10 {
                prop_assert_eq!(table.row(NeighbourId(id)), rows.get(&id));
            }
            for device in 0..3 {
                for address in (0..4).flat_map(|host| [mapped(&[192, 0, 2, host]), [host; 16]]) {
                    let expected = rows.iter().find(|(_, row)| (row.device, row.address) == (DeviceId(device), address));
                    prop_assert_eq!(table.find(DeviceId(device), &address), expected.map(|(id, _)| NeighbourId(*id)));
                }
            }
        }
    }

    #[test]
    fn an_address_that_moved_to_another_id_stays_there() {
        let mut table = NeighbourTable::default();
        let row = NeighbourRow { device: DeviceId(0), mac: [2; 6], state: NeighbourState::Resolved, address: [1; 16] };
        table.set(NeighbourId(1), row);
        table.set(NeighbourId(2), row);
        table.clear(NeighbourId(1));
        assert_eq!(table.find(DeviceId(0), &[1; 16]), Some(NeighbourId(2)));
        table.set(NeighbourId::NONE, row);
        assert!(table.row(NeighbourId::NONE).is_none());
    }
}
