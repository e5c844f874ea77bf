//! Local addresses: what is ours, and what the pinhole takes for us.
//!
//! Roles are added up by cause: every place at which a Service is reached, the gateway object, the machine. A VIP that
//! the kernel has meanwhile taken for itself is left to it (design 6), and a VTEP whose underlay address has left the
//! machine is no VTEP. A VIP inside a connected prefix of a served device is announced, by the gateway of the set that
//! owns it ([`Locals::announce`]): routers reach the others by route. A prefix of VIPs that holds an address of the kernel is left to it whole, since there is no way to leave out a
//! part.
//!
//! Node ports are the reverse: their address must be the kernel's, which keeps everything but those ports.
//!
//! A Service that comes or goes touches its own places and no other: [`Locals::follow`] looks at those alone, and the
//! pinhole is told what has changed since it was told last ([`Locals::news`]). Everything is looked at when the gateway
//! object or the machine's own addresses changed ([`Locals::surround`]).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tidegate_api::resource::{Decap as Told, Gateway, Vtep};
use tidegate_io::{Owned, OwnedChange, OwnedFlags};

use super::device::Devices;
use super::{address_of, mapped_ip, net};
use crate::kernel::Layout;
use crate::objects::place::{Place, is_one};
use crate::table::Family;
use crate::table::decap::Decap;
use crate::table::local::{LocalKind, LocalTable, VtepRow};
use crate::wire::protocol;

/// How many Services are reached at each place.
pub type Places = hashbrown::HashMap<Place, u32>;
/// One port of an address: address, IANA protocol number, port in host order.
type AddressPort = (IpAddr, u8, u16);

/// Roles by address, and our VTEPs.
#[derive(Debug, Default)]
pub struct Locals {
    kinds: BTreeMap<[u8; 16], LocalKind>,
    /// Roles of prefixes that are more than one address.
    prefixes: BTreeMap<IpNet, LocalKind>,
    node_ports: BTreeSet<AddressPort>,
    around: Around,
    /// Addresses of Services, and external ones of pods, that the kernel has taken.
    taken: BTreeSet<IpNet>,
    /// What the kernel has taken is not what it was when that was asked last.
    taken_moved: bool,
    untold: Untold,
    /// VIPs on links that this gateway answers for; absent: all.
    owned: Option<HashSet<IpNet>>,
    /// VIPs for which gateways elect an owner: those on a link, and external addresses of pods wherever they are.
    on_link: BTreeSet<IpNet>,
    /// Those that came, or left, since that was asked last.
    moved: BTreeMap<IpNet, bool>,
    /// VIPs that are ours, and whether they lie on a link.
    served: BTreeMap<IpNet, bool>,
    /// VIPs that became ours, or are not any more (`None`), since that was asked last.
    served_moved: BTreeMap<IpNet, Option<bool>>,
}

/// What roles depend on besides Services.
#[derive(Debug, Default, PartialEq)]
struct Around {
    /// Roles that the gateway object gives.
    gateway: BTreeMap<[u8; 16], LocalKind>,
    /// Addresses that the kernel uses.
    kernel: BTreeSet<IpAddr>,
    /// Sources of `fullnat` among them.
    sources_taken: BTreeSet<IpAddr>,
    connected: net::Set,
    vtep_v4: Option<VtepRow>,
    vtep_v6: Option<VtepRow>,
    decap: Option<Arc<Decap>>,
    /// What the pinhole takes for them: protocols have no port.
    decap_ends: Vec<AddressPort>,
}

/// What the pinhole has been told about what has changed since.
#[derive(Debug, Default)]
struct Untold {
    prefixes: BTreeMap<IpNet, OwnedFlags>,
    /// Whether it takes the port.
    ports: BTreeMap<AddressPort, bool>,
    /// VTEPs are others.
    vteps: bool,
}

/// What the pinhole has not heard yet.
#[derive(Debug, PartialEq)]
pub enum News {
    /// Everything that is ours.
    All(Owned),
    /// What differs.
    Change(OwnedChange),
}

impl Locals {
    /// From now on this gateway answers on its links for those VIPs that it is told to.
    pub fn own_nothing(&mut self) {
        self.owned = Some(HashSet::new());
    }

    /// Answers on the links for VIPs, or does not any more; true when any role differs. Costs what is named.
    pub fn announce(&mut self, changes: &[(IpNet, bool)], places: &Places, table: &mut Arc<LocalTable>) -> bool {
        let Some(owned) = &mut self.owned else { return false };
        for (vip, announced) in changes {
            if *announced {
                owned.insert(*vip)
            } else {
                owned.remove(vip)
            };
        }
        self.follow(changes.iter().map(|(vip, _)| Place::Vip(*vip)), places, table)
    }

    /// VIPs for which an owner is to be elected from now on (true), or no longer, since the last call.
    pub fn take_moved(&mut self) -> Vec<(IpNet, bool)> {
        std::mem::take(&mut self.moved).into_iter().collect()
    }

    /// VIPs that became ours (and lie on a link, or do not), or are not any more, since the last call.
    pub fn take_served(&mut self) -> Vec<(IpNet, Option<bool>)> {
        std::mem::take(&mut self.served_moved).into_iter().collect()
    }

    /// Takes in the gateway object and the machine. True when any role may differ: then [`Locals::follow_all`] is due.
    pub fn surround(&mut self, gateway: Option<&Gateway>, layout: &Layout, devices: &Devices) -> bool {
        let around = Around::of(gateway, layout, devices);
        if around == self.around {
            return false;
        }
        self.untold.vteps |= (around.vtep_v4, around.vtep_v6) != (self.around.vtep_v4, self.around.vtep_v6);
        self.untold.vteps |= around.decap_ends != self.around.decap_ends;
        self.around = around;
        self.taken_moved = true;
        true
    }

    /// Addresses of ours that the kernel has taken, sources of `fullnat` among them, if they may differ from when this was
    /// asked last.
    pub fn take_taken(&mut self) -> Option<BTreeSet<IpAddr>> {
        std::mem::take(&mut self.taken_moved).then(|| {
            let of = |whole: &IpNet| self.around.kernel.range(whole.network()..=whole.broadcast());
            self.taken.iter().flat_map(of).chain(&self.around.sources_taken).copied().collect()
        })
    }

    /// Forgets that the kernel has taken an address, where that is no matter any more.
    fn not_taken(&mut self, whole: &IpNet) {
        self.taken_moved |= self.taken.remove(whole);
    }

    /// Writes all roles there are or were.
    pub fn follow_all(&mut self, places: &Places, table: &mut Arc<LocalTable>) {
        self.follow(places.keys().copied(), places, table);
        let others: BTreeSet<[u8; 16]> = self.kinds.keys().chain(self.around.gateway.keys()).copied().collect();
        for address in others {
            self.follow_address(address, places, table);
        }
        let table = Arc::make_mut(table);
        table.set_vtep(Family::V4, self.around.vtep_v4);
        table.set_vtep(Family::V6, self.around.vtep_v6);
        table.set_decap(self.around.decap.clone());
    }

    /// Writes the roles of what lies at `touched` places where they differ; true when any does. Costs what is named.
    pub fn follow(
        &mut self,
        touched: impl Iterator<Item = Place>,
        places: &Places,
        table: &mut Arc<LocalTable>,
    ) -> bool {
        let mut changed = false;
        for place in touched {
            changed |= match place {
                Place::NodePort(address, protocol, port) => {
                    let served = places.contains_key(&place) && self.around.kernel.contains(&address);
                    let moved = self.follow_port((address, protocol.number(), port), served);
                    self.follow_address(mapped_ip(address), places, table) | moved
                }
                Place::Vip(prefix) if !is_one(&prefix) => self.follow_prefix(prefix, places, table),
                Place::Vip(prefix) => self.follow_address(mapped_ip(prefix.addr()), places, table),
                Place::Service(address) | Place::External(address) => {
                    self.follow_address(mapped_ip(address), places, table)
                }
            };
        }
        changed
    }

    fn follow_port(&mut self, port: AddressPort, served: bool) -> bool {
        let moved = if served { self.node_ports.insert(port) } else { self.node_ports.remove(&port) };
        if moved {
            self.untold.ports.entry(port).or_insert(!served);
        }
        moved
    }

    fn follow_prefix(&mut self, prefix: IpNet, places: &Places, table: &mut Arc<LocalTable>) -> bool {
        let wanted = places.contains_key(&Place::Vip(prefix));
        if !wanted {
            self.not_taken(&prefix);
        }
        let kind = if wanted && !self.is_taken(prefix) { self.vip(prefix) } else { self.no_vip(prefix) };
        let before = self.prefixes.get(&prefix).copied().unwrap_or_default();
        if kind == before {
            return false;
        }
        Arc::make_mut(table).set_prefix(prefix, kind);
        self.untold.prefixes.entry(prefix).or_insert(owned_flags(before));
        if kind.is_empty() {
            self.prefixes.remove(&prefix);
        } else {
            self.prefixes.insert(prefix, kind);
        }
        true
    }

    fn follow_address(&mut self, mapped: [u8; 16], places: &Places, table: &mut Arc<LocalTable>) -> bool {
        let kind = self.kind(mapped, places);
        let before = self.kinds.get(&mapped).copied().unwrap_or_default();
        if kind == before {
            return false;
        }
        Arc::make_mut(table).set(&mapped, kind);
        self.untold.prefixes.entry(address_of(&mapped).into()).or_insert(owned_flags(before));
        if kind.is_empty() {
            self.kinds.remove(&mapped);
        } else {
            self.kinds.insert(mapped, kind);
        }
        true
    }

    /// The roles an address should have.
    fn kind(&mut self, mapped: [u8; 16], places: &Places) -> LocalKind {
        let address = address_of(&mapped);
        let mut kind = self.around.gateway.get(&mapped).copied().unwrap_or_default();
        if self.node_ports.range((address, 0, 0)..=(address, u8::MAX, u16::MAX)).next().is_some() {
            kind |= LocalKind::NODE;
        }
        let whole = IpNet::from(address);
        let vip = places.contains_key(&Place::Vip(whole));
        let service = places.contains_key(&Place::Service(address));
        // What is a Service's, or has another role here, is nobody's external address.
        if places.contains_key(&Place::External(address)) && !vip && !service {
            // Asked whatever else it is: that the kernel has it is told.
            let taken = self.is_taken(whole);
            return match taken || !kind.is_empty() {
                true => kind | self.no_vip(whole),
                false => LocalKind::EXTERNAL | self.external(whole).without(LocalKind::VIP),
            };
        }
        if !vip && !service {
            self.not_taken(&whole);
            return kind | self.no_vip(whole);
        }
        if self.is_taken(whole) {
            return kind | self.no_vip(whole);
        }
        kind |= if vip { self.vip(whole) } else { self.no_vip(whole) };
        if service {
            kind |= LocalKind::SERVICE;
        }
        kind
    }

    /// The roles of VIPs.
    fn vip(&mut self, whole: IpNet) -> LocalKind {
        let on_link = self.around.connected.covers(&whole);
        self.note(whole, on_link);
        if self.served.insert(whole, on_link) != Some(on_link) {
            self.served_moved.insert(whole, Some(on_link));
        }
        let owned = self.owned.as_ref().is_none_or(|owned| owned.contains(&whole));
        if on_link && owned { LocalKind::VIP | LocalKind::ANNOUNCED } else { LocalKind::VIP }
    }

    /// The same of an external address of pods. Who carries it has its mappings: exactly one gateway, on a link or not, so
    /// that it is elected everywhere and a route leads to its carrier only (N-112).
    fn external(&mut self, whole: IpNet) -> LocalKind {
        let on_link = self.around.connected.covers(&whole);
        self.note(whole, true);
        let owned = self.owned.as_ref().is_none_or(|owned| owned.contains(&whole));
        let served = owned.then_some(on_link);
        let before = match served {
            Some(on_link) => self.served.insert(whole, on_link),
            None => self.served.remove(&whole),
        };
        if before != served {
            self.served_moved.insert(whole, served);
        }
        if on_link && owned { LocalKind::VIP | LocalKind::ANNOUNCED } else { LocalKind::VIP }
    }

    /// The roles of what is no VIP, or none of ours.
    fn no_vip(&mut self, whole: IpNet) -> LocalKind {
        self.note(whole, false);
        if self.served.remove(&whole).is_some() {
            self.served_moved.insert(whole, None);
        }
        LocalKind::NONE
    }

    fn note(&mut self, whole: IpNet, on_link: bool) {
        let moved = if on_link { self.on_link.insert(whole) } else { self.on_link.remove(&whole) };
        if moved {
            self.moved.insert(whole, on_link);
        }
    }

    /// Whether this gateway, of all of the set, owns a VIP or external address.
    pub fn is_owned(&self, address: IpAddr) -> bool {
        self.owned.as_ref().is_none_or(|owned| owned.contains(&IpNet::from(address)))
    }

    /// Whether `address` is one that pods look like from outside.
    pub fn is_external(&self, address: IpAddr) -> bool {
        self.kinds.get(&mapped_ip(address)).is_some_and(|kind| kind.contains(LocalKind::EXTERNAL))
    }

    /// Whether the kernel uses an address of `whole`, where a Service is reached; tells people when it begins to.
    fn is_taken(&mut self, whole: IpNet) -> bool {
        let taken = self.around.kernel.range(whole.network()..=whole.broadcast()).next().is_some();
        if !taken {
            self.not_taken(&whole);
        } else if self.taken.insert(whole) {
            self.taken_moved = true;
            tracing::warn!(address = %whole, "an address of a Service or of pods is also this machine's own kernel's; it is left to the kernel");
        }
        taken
    }

    /// What the pinhole has to hear, which counts as told then: everything when it has to hear `all` or the VTEPs moved.
    /// `None`: nothing.
    pub fn news(&mut self, all: bool) -> Option<News> {
        let untold = std::mem::take(&mut self.untold);
        if untold.vteps || all {
            return Some(News::All(self.owned()));
        }
        let mut change = OwnedChange::default();
        for (prefix, before) in untold.prefixes {
            let kind = match is_one(&prefix) {
                true => self.kinds.get(&mapped_ip(prefix.addr())),
                false => self.prefixes.get(&prefix),
            };
            let now = owned_flags(kind.copied().unwrap_or_default());
            if now == OwnedFlags::default() && now != before {
                change.gone.push((prefix.addr(), prefix.prefix_len()));
            } else if now != before {
                change.set.push((prefix.addr(), prefix.prefix_len(), now));
            }
        }
        for (port, before) in untold.ports {
            match (before, self.node_ports.contains(&port)) {
                (false, true) => change.ports_set.push(port),
                (true, false) => change.ports_gone.push(port),
                _ => {}
            }
        }
        (change != OwnedChange::default()).then_some(News::Change(change))
    }

    /// What the pinhole hands to us: addresses of Services, `fullnat` sources (replies of nodes that route without VXLAN,
    /// V-025), node ports, and the VXLAN port at our VTEPs.
    fn owned(&self) -> Owned {
        let addresses = self.kinds.iter().map(|(address, kind)| (IpNet::from(address_of(address)), kind));
        let all = addresses.chain(self.prefixes.iter().map(|(prefix, kind)| (*prefix, kind)));
        let all = all.map(|(prefix, kind)| (prefix.addr(), prefix.prefix_len(), owned_flags(*kind)));
        let vteps = [&self.around.vtep_v4, &self.around.vtep_v6].into_iter().flatten();
        Owned {
            prefixes: all.filter(|(_, _, flags)| *flags != OwnedFlags::default()).collect(),
            vteps: vteps.map(|vtep| (address_of(&vtep.underlay), vtep.port)).collect(),
            ports: self.node_ports.iter().chain(&self.around.decap_ends).copied().collect(),
        }
    }
}

impl Around {
    fn of(gateway: Option<&Gateway>, layout: &Layout, devices: &Devices) -> Self {
        let kernel: BTreeSet<IpAddr> = layout.addresses.iter().map(|entry| entry.address).collect();
        let mut around = Around { connected: connected(layout, devices), ..Around::default() };
        let Some(gateway) = gateway else { return Around { kernel, ..around } };
        let mut add = |address: IpAddr, kind| *around.gateway.entry(mapped_ip(address)).or_default() |= kind;
        let (sources_taken, sources): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) =
            gateway.fullnat_sources.iter().partition(|source| kernel.contains(*source));
        for source in sources {
            add(source, LocalKind::FULLNAT_SOURCE);
        }
        let mut vtep = |vtep: &Option<Vtep>| {
            let vtep = vtep.as_ref().filter(|vtep| kernel.contains(&vtep.underlay))?;
            add(vtep.overlay, LocalKind::VTEP_OVERLAY);
            add(vtep.underlay, LocalKind::VTEP_UNDERLAY);
            Some(VtepRow {
                underlay: mapped_ip(vtep.underlay),
                mac: vtep.mac.0,
                overlay: mapped_ip(vtep.overlay),
                vni: vtep.vni,
                port: vtep.port,
            })
        };
        let (vtep_v4, vtep_v6) = (vtep(&gateway.vtep_v4), vtep(&gateway.vtep_v6));
        let decap = gateway.decap.as_ref();
        let table = |decap: &Told| Arc::new(Decap::new(&decap.addresses, &decap.sources, decap.gue_port.unwrap_or(0)));
        let decap_ends = decap.map(decap_ends).unwrap_or_default();
        Around { kernel, sources_taken, vtep_v4, vtep_v6, decap: decap.map(table), decap_ends, ..around }
    }
}

/// What belongs to tunnels that end here: IP in IP of both kinds, and GUE's port.
fn decap_ends(decap: &Told) -> Vec<AddressPort> {
    let gue = decap.gue_port.map(|port| (protocol::UDP, port));
    let kinds = [(protocol::IPIP, 0), (protocol::IPV6, 0)].into_iter().chain(gue);
    let ends = kinds.flat_map(|(kind, port)| decap.addresses.iter().map(move |address| (*address, kind, port)));
    ends.collect()
}

/// Whether the pinhole hands us everything that is to an address of these roles.
pub fn is_traffic(kind: LocalKind) -> bool {
    kind.intersects(LocalKind::VIP | LocalKind::SERVICE | LocalKind::FULLNAT_SOURCE | LocalKind::EXTERNAL)
}

/// What the pinhole does with packets to an address of these roles.
fn owned_flags(kind: LocalKind) -> OwnedFlags {
    if !is_traffic(kind) {
        return OwnedFlags::default();
    }
    let announced = if kind.contains(LocalKind::ANNOUNCED) { OwnedFlags::ANNOUNCED } else { OwnedFlags::default() };
    OwnedFlags::TRAFFIC | announced
}

/// Prefixes of the links we serve, where neighbours ask for addresses by ARP and NDP.
fn connected(layout: &Layout, devices: &Devices) -> net::Set {
    let served = layout.addresses.iter().filter(|entry| devices.by_ifindex(entry.ifindex).is_some());
    served.map(|entry| entry.prefix).filter(holds_neighbours).collect()
}

/// Whether hosts beside us may have addresses of a prefix, other than link-local ones.
pub fn holds_neighbours(prefix: &IpNet) -> bool {
    prefix.prefix_len() < prefix.max_prefix_len()
        && !matches!(prefix.addr(), IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80)
}
