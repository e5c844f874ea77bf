//! Network devices of the gateway.
//!
//! Owns what a packet needs to know of a device: its MAC, its MTU, and the addresses the gateway answers from as itself. It
//! refuses to know queues and sockets.

use std::sync::Arc;

use super::DeviceId;
use super::rows::Rows;

/// One network device. Kind: table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    /// Name in the kernel.
    pub name: Arc<str>,
    /// Index in the kernel.
    pub ifindex: u32,
    /// Source MAC of what we send there.
    pub mac: [u8; 6],
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// Source of ICMP errors the gateway sends as itself, network order; all zero when the device has none.
    pub address_v4: [u8; 4],
    /// The same for IPv6.
    pub address_v6: [u8; 16],
}

/// Devices in a chunk: a gateway has a handful.
const DEVICES_PER_CHUNK: usize = 16;

/// All devices. Kind: table.
#[derive(Clone, Debug, Default)]
pub struct DeviceTable {
    rows: Rows<Option<DeviceRow>, DEVICES_PER_CHUNK>,
}

impl DeviceTable {
    /// The row of an id; `None` when vacant. Read side.
    #[inline]
    pub fn row(&self, id: DeviceId) -> Option<&DeviceRow> {
        self.rows.get(u32::from(id.0))?.as_ref()
    }

    /// Every device with its id.
    pub fn rows(&self) -> impl Iterator<Item = (DeviceId, &DeviceRow)> {
        let ids = (0..DeviceId::NONE.0).map(DeviceId);
        ids.zip(self.rows.iter()).filter_map(|(id, (_, row))| Some((id, row.as_ref()?)))
    }

    /// The device with this index in the kernel. Walks all.
    pub fn by_ifindex(&self, ifindex: u32) -> Option<DeviceId> {
        self.rows().find(|(_, row)| row.ifindex == ifindex).map(|(id, _)| id)
    }

    /// Writes a row. Build side: one chunk. [`DeviceId::NONE`] is no id: nothing happens.
    pub fn set(&mut self, id: DeviceId, row: DeviceRow) {
        if !id.is_none() {
            self.rows.set(u32::from(id.0), Some(row));
        }
    }

    /// Makes an id vacant. Build side.
    pub fn clear(&mut self, id: DeviceId) {
        self.rows.clear(u32::from(id.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_by_id_and_kernel_index() {
        let row = |ifindex| DeviceRow {
            name: "wan0".into(),
            ifindex,
            mac: [2; 6],
            mtu: 1500,
            address_v4: [192, 0, 2, 1],
            address_v6: [0x20; 16],
        };
        let mut table = DeviceTable::default();
        table.set(DeviceId(0), row(7));
        table.set(DeviceId(20), row(9));
        table.set(DeviceId::NONE, row(11));
        assert_eq!(table.by_ifindex(9), Some(DeviceId(20)));
        assert_eq!(table.by_ifindex(11), None);
        assert_eq!(table.rows().map(|(id, _)| id).collect::<Vec<_>>(), [DeviceId(0), DeviceId(20)]);
        table.clear(DeviceId(0));
        assert!(table.row(DeviceId(0)).is_none() && table.row(DeviceId(500)).is_none());
        assert_eq!(table.row(DeviceId(20)), Some(&row(9)));
    }
}
