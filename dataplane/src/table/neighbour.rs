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
