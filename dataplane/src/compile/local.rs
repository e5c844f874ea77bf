//! Local addresses: what is ours, and what the pinhole takes for us.
//!
//! Roles are counted by cause: every Service that has a VIP, the gateway object, the machine. A VIP that the kernel has
//! meanwhile taken for itself is left to it (design 6), and a VTEP whose underlay address has left the machine is no
//! VTEP. A VIP inside a connected prefix of a served device is announced: routers reach the others by route.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use tidegate_api::resource::{Gateway, Vtep};
use tidegate_io::{Owned, OwnedFlags};

use super::device::Devices;
use super::{address_of, mapped_ip, net};
use crate::kernel::Layout;
use crate::table::Family;
use crate::table::local::{LocalKind, LocalTable, VtepRow};

/// Roles by address, and our VTEPs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locals {
    kinds: BTreeMap<[u8; 16], LocalKind>,
    vtep_v4: Option<VtepRow>,
    vtep_v6: Option<VtepRow>,
    /// VIPs that the kernel has taken.
    taken: Vec<IpAddr>,
}

impl Locals {
    /// All roles, given how many Services use each VIP.
    pub fn compile(vips: &HashMap<IpAddr, u32>, gateway: Option<&Gateway>, layout: &Layout, devices: &Devices) -> Self {
        let mut locals = Locals::default();
        let connected = connected(layout, devices);
        for vip in vips.keys() {
            if layout.owner(*vip).is_some() {
                locals.taken.push(*vip);
                continue;
            }
            locals.add(*vip, LocalKind::VIP);
            if connected.covers(&(*vip).into()) {
                locals.add(*vip, LocalKind::ANNOUNCED);
            }
        }
        locals.taken.sort_unstable();
        let Some(gateway) = gateway else { return locals };
        for source in gateway.fullnat_sources.iter().filter(|source| layout.owner(**source).is_none()) {
            locals.add(*source, LocalKind::FULLNAT_SOURCE);
        }
        let mut vtep = |vtep: &Option<Vtep>| {
            let vtep = vtep.as_ref().filter(|vtep| layout.owner(vtep.underlay).is_some())?;
            locals.add(vtep.overlay, LocalKind::VTEP_OVERLAY);
            locals.add(vtep.underlay, LocalKind::VTEP_UNDERLAY);
            Some(VtepRow {
                underlay: mapped_ip(vtep.underlay),
                mac: vtep.mac.0,
                overlay: mapped_ip(vtep.overlay),
                vni: vtep.vni,
                port: vtep.port,
            })
        };
        let (v4, v6) = (vtep(&gateway.vtep_v4), vtep(&gateway.vtep_v6));
        Locals { vtep_v4: v4, vtep_v6: v6, ..locals }
    }

    /// VIPs that the kernel has taken and that are therefore not served.
    pub fn taken(&self) -> &[IpAddr] {
        &self.taken
    }

    /// Writes what differs from `before` into `table`.
    pub fn write(&self, before: &Locals, table: &mut LocalTable) {
        for address in before.kinds.keys().filter(|address| !self.kinds.contains_key(*address)) {
            table.set(address, LocalKind::NONE);
        }
        for (address, kind) in self.kinds.iter().filter(|(address, kind)| before.kinds.get(*address) != Some(kind)) {
            table.set(address, *kind);
        }
        table.set_vtep(Family::V4, self.vtep_v4);
        table.set_vtep(Family::V6, self.vtep_v6);
    }

    /// What the pinhole hands to us: VIPs, `fullnat` sources (replies of nodes that route without VXLAN, V-025), and the
    /// VXLAN port at our VTEPs.
    pub fn owned(&self) -> Owned {
        let mut owned = Owned::default();
        for (address, kind) in &self.kinds {
            if !kind.intersects(LocalKind::VIP | LocalKind::FULLNAT_SOURCE) {
                continue;
            }
            let address = address_of(address);
            let announced =
                if kind.contains(LocalKind::ANNOUNCED) { OwnedFlags::ANNOUNCED } else { OwnedFlags::default() };
            let bits = if address.is_ipv4() { 32 } else { 128 };
            owned.prefixes.push((address, bits, OwnedFlags::TRAFFIC | announced));
        }
        let vteps = [&self.vtep_v4, &self.vtep_v6].into_iter().flatten();
        owned.vteps = vteps.map(|vtep| (address_of(&vtep.underlay), vtep.port)).collect();
        owned
    }

    fn add(&mut self, address: IpAddr, kind: LocalKind) {
        *self.kinds.entry(mapped_ip(address)).or_default() |= kind;
    }
}

/// Prefixes of the links we serve, where neighbours ask for addresses by ARP and NDP.
fn connected(layout: &Layout, devices: &Devices) -> net::Set {
    let served = layout.addresses.iter().filter(|entry| devices.by_ifindex(entry.ifindex).is_some());
    served
        .map(|entry| entry.prefix)
        .filter(|prefix| prefix.prefix_len() < prefix.max_prefix_len())
        .filter(|prefix| !matches!(prefix.addr(), IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80))
        .collect()
}
