//! Egress: what pods look like from outside.
//!
//! Owns the policies (for which destinations, with which addresses, how ports are given out), the external addresses, the
//! addresses and ports that are always the same pod's, and which worker gives out which port of an external address. It
//! refuses to know which ports are in use: that is state of the worker that owns them.
//!
//! Policies and addresses are few and change rarely: an edit copies the lists of references to them. The longest match
//! decides between destinations and exceptions, so an exception may again hold a destination.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use tidegate_api::resource::{Mapping, MappingClass};

use super::exact::ExactMap;
use super::owner::{OwnerTable, Ports, WorkerId};
use super::{EgressId, ExternalId, unmapped};
use crate::wire::protocol;

/// Ports of an address, by number.
pub const PORTS: usize = 1 << 16;
/// Different times after which idle mappings to some ports may end, over all policies.
pub const PORT_TIMERS_MAX: u8 = 13;

/// Protocols whose ports are counted apart: TCP 5000 and UDP 5000 have nothing to do with each other (RFC 7857 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum PortClass {
    /// TCP ports.
    Tcp = 0,
    /// UDP ports.
    Udp = 1,
    /// Identifiers of ICMP and ICMPv6 echo.
    Echo = 2,
    /// SCTP ports.
    Sctp = 3,
}

impl PortClass {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// All of them.
    pub const ALL: [PortClass; Self::COUNT] = [PortClass::Tcp, PortClass::Udp, PortClass::Echo, PortClass::Sctp];

    /// The class of an IANA protocol number; `None`: its packets cannot share an address.
    #[inline]
    pub const fn of(number: u8) -> Option<PortClass> {
        match number {
            protocol::TCP => Some(PortClass::Tcp),
            protocol::UDP => Some(PortClass::Udp),
            protocol::ICMP | protocol::ICMPV6 => Some(PortClass::Echo),
            protocol::SCTP => Some(PortClass::Sctp),
            _ => None,
        }
    }

    /// The IANA protocol number, where echo is that of `icmp`.
    #[inline]
    pub const fn number(self, icmp: u8) -> u8 {
        match self {
            PortClass::Tcp => protocol::TCP,
            PortClass::Udp => protocol::UDP,
            PortClass::Echo => icmp,
            PortClass::Sctp => protocol::SCTP,
        }
    }

    /// The name for people.
    pub const fn name(self) -> &'static str {
        match self {
            PortClass::Tcp => "tcp",
            PortClass::Udp => "udp",
            PortClass::Echo => "echo",
            PortClass::Sctp => "sctp",
        }
    }
}

/// One policy. Kind: table.
#[derive(Clone, Debug)]
pub struct EgressRow {
    /// Its name, for people.
    pub name: Arc<str>,
    /// Whether it is for a destination: the most specific prefix says. Of where the cluster is it says nothing.
    destinations_v4: PrefixMap<Ipv4Net, Option<bool>>,
    destinations_v6: PrefixMap<Ipv6Net, Option<bool>>,
    /// External addresses, network order, sorted.
    pub addresses_v4: Box<[[u8; 4]]>,
    /// The same for IPv6.
    pub addresses_v6: Box<[[u8; 16]]>,
    /// How TCP ports are given out.
    pub tcp: Mapping,
    /// How UDP ports are given out.
    pub udp: Mapping,
    /// Most ports a pod may hold.
    pub ports_per_pod_max: u32,
    /// Most ports the pods of a namespace may hold.
    pub ports_per_namespace_max: u32,
    /// Destination ports of UDP whose mappings have a timer of their own: its number, from 1 on.
    pub timers: Box<[(u16, u8)]>,
    /// Whether protocols without ports leave too (N-095).
    pub other_protocols: bool,
    /// Whether its mappings are recorded.
    pub log: bool,
}

impl EgressRow {
    /// A policy for these destinations, those in `except` left out; empty: every one.
    pub fn new(name: &str, destinations: &[IpNet], except: &[IpNet]) -> EgressRow {
        let mut row = EgressRow {
            name: name.into(),
            destinations_v4: PrefixMap::new(),
            destinations_v6: PrefixMap::new(),
            addresses_v4: Box::default(),
            addresses_v6: Box::default(),
            tcp: Mapping::default(),
            udp: Mapping::default(),
            ports_per_pod_max: u32::MAX,
            ports_per_namespace_max: u32::MAX,
            timers: Box::default(),
            other_protocols: false,
            log: false,
        };
        if destinations.is_empty() {
            row.destinations_v4.insert(Ipv4Net::default(), Some(true));
            row.destinations_v6.insert(Ipv6Net::default(), Some(true));
        }
        for (prefixes, is_for) in [(destinations, true), (except, false)] {
            prefixes.iter().for_each(|prefix| row.say(prefix, Some(is_for)));
        }
        row
    }

    fn say(&mut self, prefix: &IpNet, said: Option<bool>) {
        match prefix.trunc() {
            IpNet::V4(prefix) => drop(self.destinations_v4.insert(prefix, said)),
            IpNet::V6(prefix) => drop(self.destinations_v6.insert(prefix, said)),
        }
    }

    /// Says nothing of these prefixes, whatever was said of them before. Build side.
    pub fn keep_inside<'p>(&mut self, prefixes: impl Iterator<Item = &'p IpNet>) {
        prefixes.for_each(|prefix| self.say(prefix, None));
    }

    /// Whether it is for an IPv4 destination, or leaves it out; none where it says nothing of it. Read side, slow path.
    pub fn says_of_v4(&self, destination: &[u8; 4]) -> Option<bool> {
        let found = self.destinations_v4.get_lpm(&Ipv4Net::from(Ipv4Addr::from(*destination)));
        found.and_then(|(_, is_for)| *is_for)
    }

    /// The same of an IPv6 destination. Read side, slow path.
    pub fn says_of_v6(&self, destination: &[u8; 16]) -> Option<bool> {
        let found = self.destinations_v6.get_lpm(&Ipv6Net::from(Ipv6Addr::from(*destination)));
        found.and_then(|(_, is_for)| *is_for)
    }

    /// How ports of `class` are given out.
    #[inline]
    pub fn mapping(&self, class: PortClass) -> Mapping {
        match class {
            PortClass::Tcp => self.tcp,
            PortClass::Udp => self.udp,
            PortClass::Echo => Mapping::default(),
            PortClass::Sctp => Mapping { class: MappingClass::AddressAndPortDependent, ..Mapping::default() },
        }
    }

    /// The number of the timer for UDP to `port`; 0: the usual one.
    #[inline]
    pub fn timer(&self, port: u16) -> u8 {
        self.timers.iter().find(|(of, _)| *of == port).map_or(0, |(_, timer)| *timer)
    }
}

/// Who gives out which port of one address and class, where that differs from how ports are dealt. Kind: table.
#[derive(Clone, Debug)]
pub struct PortOwners {
    /// By port: the worker that packets to it belong to.
    owner: Box<[u16]>,
    /// By worker: the ports it gives out, ascending. A port on its way from one worker to another is in no list.
    own: Box<[Box<[u16]>]>,
}

impl PortOwners {
    /// As they are dealt.
    fn dealt(owners: &OwnerTable) -> PortOwners {
        let list = |worker| {
            let ports = owners.ports_of(worker);
            (0..ports.len()).map(|n| ports.at(n)).collect()
        };
        let owner = (0..=u16::MAX).map(|port| owners.owner(port).0).collect();
        PortOwners { owner, own: (0..owners.workers()).map(WorkerId).map(list).collect() }
    }
}

/// Ports that one worker gives out at one address. A walk through them is by number.
#[derive(Clone, Copy, Debug)]
pub enum OwnPorts<'t> {
    /// As they were dealt.
    Dealt(Ports<'t>),
    /// As they have moved since.
    Listed(&'t [u16]),
}

impl OwnPorts<'_> {
    /// How many there are.
    #[inline]
    pub fn len(self) -> u32 {
        match self {
            OwnPorts::Dealt(ports) => ports.len(),
            OwnPorts::Listed(ports) => u32::try_from(ports.len()).unwrap_or(0),
        }
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Whether `port` is one of them.
    pub fn contains(self, port: u16) -> bool {
        match self {
            OwnPorts::Dealt(ports) => ports.contains(port),
            OwnPorts::Listed(ports) => ports.binary_search(&port).is_ok(),
        }
    }

    /// The `n`th of them, `n` below [`OwnPorts::len`].
    #[inline]
    pub fn at(self, n: u32) -> u16 {
        match self {
            OwnPorts::Dealt(ports) => ports.at(n),
            OwnPorts::Listed(ports) => ports.get(n as usize).copied().unwrap_or(u16::MAX),
        }
    }
}

/// One external address. Kind: table.
#[derive(Clone, Debug, Default)]
pub struct ExternalRow {
    /// Network order, IPv4 mapped.
    pub address: [u8; 16],
    /// Whether this gateway carries it: answers to what leaves with it come here (N-112).
    pub is_carried: bool,
    /// The pod that all of it belongs to (1:1), mapped form.
    pub whole: Option<[u8; 16]>,
    /// Ports that are forwarded: protocol and port to pod (mapped form) and port.
    pub forwards: HashMap<(u8, u16), ([u8; 16], u16)>,
    /// Owners of its ports by [`PortClass`], where they are not those they were dealt to.
    pub owners: [Option<Arc<PortOwners>>; PortClass::COUNT],
}

/// All policies and external addresses. Kind: table.
#[derive(Clone, Debug, Default)]
pub struct EgressTable {
    policies: Vec<Option<Arc<EgressRow>>>,
    externals: Vec<Option<Arc<ExternalRow>>>,
    v4: ExactMap<[u8; 4], ExternalId>,
    v6: ExactMap<[u8; 16], ExternalId>,
    /// Pods with an address of their own, by their own, mapped form; to the external one.
    whole: HashMap<[u8; 16], [u8; 16]>,
    /// Seconds by number of the timer, which counts from 1.
    timers: [u32; PORT_TIMERS_MAX as usize],
}

impl EgressTable {
    /// Whether there is no external address.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// A policy. Read side, slow path.
    #[inline]
    pub fn policy(&self, id: EgressId) -> Option<&EgressRow> {
        self.policies.get(usize::from(id.0))?.as_deref()
    }

    /// Every policy with its id.
    pub fn policies(&self) -> impl Iterator<Item = (EgressId, &EgressRow)> {
        (0..u16::MAX).map(EgressId).zip(&self.policies).filter_map(|(id, row)| Some((id, row.as_deref()?)))
    }

    /// The external address that this IPv4 address is. Read side.
    #[inline]
    pub fn external_v4(&self, address: &[u8; 4]) -> Option<ExternalId> {
        self.v4.get(address)
    }

    /// The external address that this IPv6 address is. Read side.
    #[inline]
    pub fn external_v6(&self, address: &[u8; 16]) -> Option<ExternalId> {
        self.v6.get(address)
    }

    /// The row of an external address. Read side.
    #[inline]
    pub fn external(&self, id: ExternalId) -> Option<&ExternalRow> {
        self.externals.get(usize::from(id.0))?.as_deref()
    }

    /// The row of an external address in mapped form.
    pub fn external_at(&self, address: &[u8; 16]) -> Option<&ExternalRow> {
        let id = match unmapped(address) {
            Some(address) => self.v4.get(&address),
            None => self.v6.get(address),
        };
        self.external(id?)
    }

    /// Every external address.
    pub fn externals(&self) -> impl Iterator<Item = (ExternalId, &ExternalRow)> {
        (0..u16::MAX).map(ExternalId).zip(&self.externals).filter_map(|(id, row)| Some((id, row.as_deref()?)))
    }

    /// The external address that is all a pod's own (1:1), both in mapped form. Read side, slow path.
    #[inline]
    pub fn whole_of(&self, pod: &[u8; 16]) -> Option<[u8; 16]> {
        if self.whole.is_empty() { None } else { self.whole.get(pod).copied() }
    }

    /// Seconds that idle mappings live under the timer `number`.
    pub fn timer_s(&self, number: u8) -> Option<u32> {
        let place = usize::from(number).checked_sub(1)?;
        self.timers.get(place).copied().filter(|seconds| *seconds > 0)
    }

    /// The worker that owns `port` of an external address. Read side.
    #[inline]
    pub fn port_owner(&self, owners: &OwnerTable, external: ExternalId, class: PortClass, port: u16) -> WorkerId {
        let moved = self.external(external).and_then(|row| row.owners[class as usize].as_deref());
        match moved {
            Some(moved) => WorkerId(moved.owner.get(usize::from(port)).copied().unwrap_or(0)),
            None => owners.owner(port),
        }
    }

    /// The ports of an external address that `worker` gives out. Read side, slow path.
    #[inline]
    pub fn ports_of<'t>(
        &'t self,
        owners: &'t OwnerTable,
        external: ExternalId,
        class: PortClass,
        worker: WorkerId,
    ) -> OwnPorts<'t> {
        let moved = self.external(external).and_then(|row| row.owners[class as usize].as_deref());
        match moved {
            Some(moved) => OwnPorts::Listed(moved.own.get(usize::from(worker.0)).map_or(&[], |own| own)),
            None => OwnPorts::Dealt(owners.ports_of(worker)),
        }
    }

    /// Gives `ports` of an external address to worker `to`. Their packets belong to it from now on; it gives them out once they
    /// have landed, which is to be said when every worker knows whose they are. Build side: all ports of the address.
    pub fn move_ports(
        &mut self,
        owners: &OwnerTable,
        external: ExternalId,
        class: PortClass,
        ports: &[u16],
        to: WorkerId,
        landed: bool,
    ) {
        let Some(row) = self.external(external).cloned() else { return };
        let mut moved = match row.owners[class as usize].as_deref() {
            Some(moved) => moved.clone(),
            None => PortOwners::dealt(owners),
        };
        let mut leaves = vec![false; PORTS];
        ports.iter().for_each(|port| leaves[usize::from(*port)] = true);
        for own in &mut moved.own {
            *own = own.iter().copied().filter(|port| !leaves[usize::from(*port)]).collect();
        }
        for port in ports {
            if let Some(owner) = moved.owner.get_mut(usize::from(*port)) {
                *owner = to.0;
            }
        }
        if landed && let Some(own) = moved.own.get_mut(usize::from(to.0)) {
            let mut all: Vec<u16> = own.iter().chain(ports).copied().collect();
            all.sort_unstable();
            *own = all.into();
        }
        let mut row = row;
        row.owners[class as usize] = Some(Arc::new(moved));
        self.set_external(external, Some(row));
    }

    /// Writes a policy, or takes it away. Build side: a list of references.
    pub fn set_policy(&mut self, id: EgressId, row: Option<EgressRow>) {
        let at = usize::from(id.0);
        if self.policies.len() <= at {
            self.policies.resize_with(at + 1, || None);
        }
        if let Some(place) = self.policies.get_mut(at) {
            *place = row.map(Arc::new);
        }
    }

    /// Writes an external address, or takes it away. Build side: a list of references, and a chunk or two.
    pub fn set_external(&mut self, id: ExternalId, row: Option<ExternalRow>) {
        let at = usize::from(id.0);
        if self.externals.len() <= at {
            self.externals.resize_with(at + 1, || None);
        }
        let Some(place) = self.externals.get_mut(at) else { return };
        if let Some(before) = place.take() {
            match unmapped(&before.address) {
                Some(address) => drop(self.v4.remove(&address)),
                None => drop(self.v6.remove(&before.address)),
            }
            if let Some(pod) = before.whole {
                self.whole.remove(&pod);
            }
        }
        let Some(row) = row else { return };
        match unmapped(&row.address) {
            Some(address) => drop(self.v4.insert(address, id)),
            None => drop(self.v6.insert(row.address, id)),
        }
        if let Some(pod) = row.whole {
            self.whole.insert(pod, row.address);
        }
        *place = Some(Arc::new(row));
    }

    /// Says which external addresses this gateway carries, by mapped form; true when that differs for any. Build side.
    pub fn carry(&mut self, is_carried: impl Fn(&[u8; 16]) -> bool) -> bool {
        let mut changed = false;
        for row in self.externals.iter_mut().flatten() {
            let now = is_carried(&row.address);
            if row.is_carried != now {
                Arc::make_mut(row).is_carried = now;
                changed = true;
            }
        }
        changed
    }

    /// Sets the times of all timers, in the order of their numbers from 1 on. Build side.
    pub fn set_timers(&mut self, seconds: &[u32]) {
        self.timers = [0; PORT_TIMERS_MAX as usize];
        self.timers.iter_mut().zip(seconds).for_each(|(timer, seconds)| *timer = *seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::mapped;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_most_specific_prefix_decides() {
        // N-043
        let row = EgressRow::new("a", &[], &nets(&["10.0.0.0/8", "fd00::/8"]));
        assert!(row.says_of_v4(&[9, 255, 0, 1]) == Some(true) && row.says_of_v4(&[10, 0, 0, 1]) == Some(false));
        assert!(row.says_of_v6(&[0x20; 16]) == Some(true) && row.says_of_v6(&[0xfd; 16]) == Some(false));
        let row = EgressRow::new("b", &nets(&["10.0.0.0/8", "10.1.1.0/24"]), &nets(&["10.1.0.0/16"]));
        let said = [[10, 0, 0, 1], [10, 1, 0, 1], [10, 1, 1, 1]].map(|address| row.says_of_v4(&address));
        assert_eq!(said, [Some(true), Some(false), Some(true)]);
        assert!(row.says_of_v4(&[11, 0, 0, 1]).is_none() && row.says_of_v6(&[0x20; 16]).is_none());
        let mut row = EgressRow::new("d", &[], &nets(&["10.0.0.0/8"]));
        row.keep_inside(nets(&["10.96.0.0/12", "fd00::/8"]).iter());
        let said = [[10, 0, 0, 1], [10, 96, 0, 1], [9, 0, 0, 1]].map(|address| row.says_of_v4(&address));
        assert_eq!((said, row.says_of_v6(&[0xfd; 16])), ([Some(false), None, Some(true)], None));
        // Named as both: left out.
        let row = EgressRow::new("c", &nets(&["10.0.0.0/8"]), &nets(&["10.0.0.0/8"]));
        assert!(row.says_of_v4(&[10, 0, 0, 1]) == Some(false));
    }

    #[test]
    fn externals_come_and_go_with_what_is_known_of_them() {
        let mut table = EgressTable::default();
        assert!(table.is_empty());
        let (v4, pod) = (mapped(&[192, 0, 2, 1]), mapped(&[10, 0, 0, 1]));
        table.set_external(ExternalId(3), Some(ExternalRow { address: v4, whole: Some(pod), ..Default::default() }));
        table.set_external(ExternalId(0), Some(ExternalRow { address: [0x20; 16], ..Default::default() }));
        assert_eq!(table.external_v4(&[192, 0, 2, 1]), Some(ExternalId(3)));
        assert_eq!((table.whole_of(&pod), table.external_v6(&[0x20; 16])), (Some(v4), Some(ExternalId(0))));
        let other = mapped(&[192, 0, 2, 2]);
        table.set_external(ExternalId(3), Some(ExternalRow { address: other, ..Default::default() }));
        assert_eq!((table.external_v4(&[192, 0, 2, 1]), table.whole_of(&pod)), (None, None));
        assert_eq!(table.external_at(&other).map(|row| row.address), Some(other));
        table.set_external(ExternalId(3), None);
        table.set_external(ExternalId(0), None);
        assert!(table.is_empty() && table.externals().next().is_none());
    }

    #[test]
    fn ports_move_and_are_given_out_by_nobody_on_their_way() {
        let owners = OwnerTable::new(2, [0; 2]);
        let mut table = EgressTable::default();
        let external = ExternalId(0);
        table.set_external(external, Some(ExternalRow { address: [0x20; 16], ..Default::default() }));
        let list = |table: &EgressTable, worker| {
            let ports = table.ports_of(&owners, external, PortClass::Udp, WorkerId(worker));
            (0..ports.len()).map(|n| ports.at(n)).collect::<Vec<_>>()
        };
        let owner = |table: &EgressTable, port| table.port_owner(&owners, external, PortClass::Udp, port).0;
        let before = [0, 1].map(|worker| list(&table, worker));
        assert_eq!(before[1].len(), 32_256);
        let moving = [before[1][0], before[1][77]];
        for landed in [false, true] {
            table.move_ports(&owners, external, PortClass::Udp, &moving, WorkerId(0), landed);
            assert_eq!(list(&table, 1).len(), 32_254);
            assert_eq!(list(&table, 0).len(), 32_256 + if landed { 2 } else { 0 });
            assert!(moving.iter().all(|port| owner(&table, *port) == 0 && list(&table, 0).contains(port) == landed));
        }
        assert_eq!(owner(&table, before[1][1]), 1);
        assert!(list(&table, 0).is_sorted());
        assert_eq!(table.port_owner(&owners, external, PortClass::Tcp, moving[0]).0, 1, "of UDP only");
    }
}
