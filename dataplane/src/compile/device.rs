//! Devices: which of the machine's links are served, and as what.
//!
//! The node file numbers them: the first interface listed is device 0 for the life of the process, whatever its
//! interface index is at the moment. A device that is missing from the machine keeps its number and loses its row.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::gateways::Link;
use crate::kernel::Layout;
use crate::table::DeviceId;
use crate::table::device::{DeviceRow, DeviceTable};

/// Devices in the order of the node file, with what the kernel says of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    served: Vec<Served>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Served {
    name: Arc<str>,
    row: Option<DeviceRow>,
    up: bool,
}

impl Devices {
    /// Devices by these names, none of them found yet.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Devices { served: names.into_iter().map(|name| Served { name: name.into(), row: None, up: false }).collect() }
    }

    /// Looks all of them up in `layout`. True when anything differs from before.
    pub fn follow(&mut self, layout: &Layout) -> bool {
        let before = self.clone();
        for served in &mut self.served {
            let found = layout.link(&served.name);
            served.up = found.is_some_and(|(_, link)| link.up);
            served.row = found.map(|(ifindex, link)| DeviceRow {
                name: Arc::clone(&served.name),
                ifindex,
                mac: link.mac.unwrap_or_default(),
                mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
                address_v4: own_v4(layout, ifindex),
                address_v6: own_v6(layout, ifindex),
            });
        }
        *self != before
    }

    /// The served device with this interface index.
    pub fn by_ifindex(&self, ifindex: u32) -> Option<DeviceId> {
        self.iter().find(|(_, row, _)| row.ifindex == ifindex).map(|(id, ..)| id)
    }

    /// Row of a device that is there.
    pub fn row(&self, id: DeviceId) -> Option<&DeviceRow> {
        self.served.get(usize::from(id.0))?.row.as_ref()
    }

    /// Whether a device is up, with carrier.
    pub fn is_up(&self, id: DeviceId) -> bool {
        self.served.get(usize::from(id.0)).is_some_and(|served| served.up)
    }

    /// The devices that are there as their neighbours see them. Of prefixes those count that hold neighbours: no link-local
    /// ones, and none of a single address.
    pub fn links(&self, layout: &Layout) -> Vec<Link> {
        let link = |(_, row, up): (DeviceId, &DeviceRow, bool)| {
            let own = layout.addresses.iter().filter(|entry| entry.ifindex == row.ifindex);
            let mut prefixes: Vec<IpNet> =
                own.map(|entry| entry.prefix.trunc()).filter(super::local::holds_neighbours).collect();
            prefixes.dedup();
            Link { ifindex: row.ifindex, name: Arc::clone(&row.name), mac: row.mac, up, prefixes }
        };
        self.iter().map(link).collect()
    }

    /// Writes the rows that differ.
    pub fn write(&self, table: &mut DeviceTable) {
        for (number, served) in (0..DeviceId::NONE.0).zip(&self.served) {
            let id = DeviceId(number);
            match &served.row {
                Some(row) if table.row(id) != Some(row) => table.set(id, row.clone()),
                None if table.row(id).is_some() => table.clear(id),
                _ => {}
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (DeviceId, &DeviceRow, bool)> {
        let numbered = (0..DeviceId::NONE.0).map(DeviceId).zip(&self.served);
        numbered.filter_map(|(id, served)| Some((id, served.row.as_ref()?, served.up)))
    }
}

/// The lowest IPv4 address: deterministic, and the primary one on nearly every machine.
fn own_v4(layout: &Layout, ifindex: u32) -> [u8; 4] {
    let mut own = layout.addresses.iter().filter(|entry| entry.ifindex == ifindex);
    own.find_map(|entry| if let IpAddr::V4(v4) = entry.address { Some(v4.octets()) } else { None }).unwrap_or_default()
}

/// A global IPv6 address if there is one (RFC 4443 section 2.2 wants a source the far end can answer), else link-local.
fn own_v6(layout: &Layout, ifindex: u32) -> [u8; 16] {
    let own = layout.addresses.iter().filter(|entry| entry.ifindex == ifindex);
    let mut v6: Vec<_> =
        own.filter_map(|entry| if let IpAddr::V6(v6) = entry.address { Some(v6) } else { None }).collect();
    v6.sort_by_key(|address| (address.segments()[0] & 0xffc0 == 0xfe80, *address));
    v6.first().map(std::net::Ipv6Addr::octets).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::tests::machine;

    #[test]
    fn devices_keep_their_number_whatever_the_machine_does() {
        let mut devices = Devices::new(["lan0", "missing", "wan0"]);
        assert!(devices.follow(&machine()));
        assert!(!devices.follow(&machine()));
        let mut table = DeviceTable::default();
        devices.write(&mut table);
        let lan = table.row(DeviceId(0)).unwrap();
        assert_eq!((lan.ifindex, lan.address_v4), (3, [198, 51, 100, 1]));
        assert_eq!(
            lan.address_v6,
            "2001:db8:2::1".parse::<std::net::Ipv6Addr>().unwrap().octets(),
            "not the link-local one"
        );
        assert!(table.row(DeviceId(1)).is_none());
        assert_eq!(devices.by_ifindex(2), Some(DeviceId(2)));
        let mut gone = machine();
        gone.links.remove(&3);
        assert!(devices.follow(&gone));
        devices.write(&mut table);
        assert!(table.row(DeviceId(0)).is_none() && table.row(DeviceId(2)).is_some());
        assert!(!devices.is_up(DeviceId(0)) && devices.is_up(DeviceId(2)));
    }
}
