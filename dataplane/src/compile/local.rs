//! Local addresses: what is ours, and what the pinhole takes for us.
//!
//! Roles are counted by cause: every Service that is reached at an address, the gateway object, the machine. A VIP that the kernel has
//! meanwhile taken for itself is left to it (design 6), and a VTEP whose underlay address has left the machine is no
//! VTEP. A VIP inside a connected prefix of a served device is announced: routers reach the others by route. A prefix of VIPs
//! that holds an address of the kernel is left to it whole, since there is no way to leave out a part.
//!
//! Node ports are the reverse: their address must be the kernel's, which keeps everything but those ports.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::{Gateway, Vtep};
use tidegate_io::{Owned, OwnedFlags};

use super::device::Devices;
use super::{address_of, mapped_ip, net};
use crate::kernel::Layout;
use crate::objects::place::{Place, is_one};
use crate::table::Family;
use crate::table::local::{LocalKind, LocalTable, VtepRow};

/// Roles by address, and our VTEPs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locals {
    kinds: BTreeMap<[u8; 16], LocalKind>,
    prefixes: BTreeMap<IpNet, LocalKind>,
    node_ports: BTreeSet<(IpAddr, u8, u16)>,
    vtep_v4: Option<VtepRow>,
    vtep_v6: Option<VtepRow>,
    /// Addresses of Services that the kernel has taken.
    taken: Vec<IpNet>,
}

impl Locals {
    /// All roles, given how many Services are reached at each place.
    pub fn compile(
        places: &HashMap<Place, u32>,
        gateway: Option<&Gateway>,
        layout: &Layout,
        devices: &Devices,
    ) -> Self {
        let mut locals = Locals::default();
        let connected = connected(layout, devices);
        for place in places.keys() {
            if let Place::NodePort(address, protocol, port) = place {
                if layout.owner(*address).is_some() {
                    locals.add(*address, LocalKind::NODE);
                    locals.node_ports.insert((*address, protocol.number(), *port));
                }
                continue;
            }
            let Some(whole) = place.whole() else { continue };
            if kernel_has(layout, &whole) {
                locals.taken.push(whole);
                continue;
            }
            let kind = match place {
                Place::Vip(_) if connected.covers(&whole) => LocalKind::VIP | LocalKind::ANNOUNCED,
                Place::Vip(_) => LocalKind::VIP,
                Place::Service(_) | Place::NodePort(..) => LocalKind::SERVICE,
            };
            if is_one(&whole) {
                locals.add(whole.addr(), kind);
            } else {
                *locals.prefixes.entry(whole).or_default() |= kind;
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

    /// Addresses of Services that the kernel has taken and that are therefore not served.
    pub fn taken(&self) -> &[IpNet] {
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
        for prefix in before.prefixes.keys().filter(|prefix| !self.prefixes.contains_key(*prefix)) {
            table.set_prefix(*prefix, LocalKind::NONE);
        }
        for (prefix, kind) in self.prefixes.iter().filter(|(prefix, kind)| before.prefixes.get(*prefix) != Some(kind)) {
            table.set_prefix(*prefix, *kind);
        }
        table.set_vtep(Family::V4, self.vtep_v4);
        table.set_vtep(Family::V6, self.vtep_v6);
    }

    /// What the pinhole hands to us: addresses of Services, `fullnat` sources (replies of nodes that route without VXLAN,
    /// V-025), node ports, and the VXLAN port at our VTEPs.
    pub fn owned(&self) -> Owned {
        let mut owned = Owned::default();
        for (address, kind) in &self.kinds {
            if !kind.intersects(LocalKind::VIP | LocalKind::SERVICE | LocalKind::FULLNAT_SOURCE) {
                continue;
            }
            let address = address_of(address);
            let bits = if address.is_ipv4() { 32 } else { 128 };
            owned.prefixes.push((address, bits, flags(*kind)));
        }
        let prefixes = self.prefixes.iter().map(|(prefix, kind)| (prefix.addr(), prefix.prefix_len(), flags(*kind)));
        owned.prefixes.extend(prefixes);
        owned.ports.extend(&self.node_ports);
        let vteps = [&self.vtep_v4, &self.vtep_v6].into_iter().flatten();
        owned.vteps = vteps.map(|vtep| (address_of(&vtep.underlay), vtep.port)).collect();
        owned
    }

    fn add(&mut self, address: IpAddr, kind: LocalKind) {
        *self.kinds.entry(mapped_ip(address)).or_default() |= kind;
    }
}

fn flags(kind: LocalKind) -> OwnedFlags {
    let announced = if kind.contains(LocalKind::ANNOUNCED) { OwnedFlags::ANNOUNCED } else { OwnedFlags::default() };
    OwnedFlags::TRAFFIC | announced
}

/// Whether the kernel uses an address of `whole`.
fn kernel_has(layout: &Layout, whole: &IpNet) -> bool {
    if is_one(whole) {
        layout.owner(whole.addr()).is_some()
    } else {
        layout.addresses.iter().any(|own| whole.contains(&own.address))
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
