//! Kernel facts: what the machine's own network stack knows and Tidegate believes.
//!
//! Links, addresses, routes and neighbours, read over netlink (rtnetlink(7)) and kept current by its multicast groups.
//! This module knows no Kubernetes object and no table: it reports what is, and passes on wishes about neighbours.
//!
//! Facts come as whole values or as [`Change`]s that [`KernelFacts::apply`] folds in. Neighbours change often and one
//! at a time, so they are told singly. Links, addresses and routes are told together and whole, because the kernel
//! does not announce every route it removes (IPv4 routes vanish silently with their device or source address), and a
//! list that is only nearly right forwards packets into nowhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A request/answer netlink socket: dumps and acknowledged commands.
pub mod netlink;
/// Netlink messages into facts.
mod parse;
/// The thread that keeps facts current.
pub mod monitor;
/// Facts read once.
pub mod once;
/// Wishes about neighbours: resolve, keep resolved, forget.
pub mod request;
/// The machine as it was, on disk.
pub mod saved;
#[cfg(test)]
#[cfg(feature = "kernel-tests")]
pub(crate) mod tests;

/// Everything the kernel told, as of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelFacts {
    /// Links, addresses and routes.
    pub layout: Layout,
    /// The neighbour caches (ARP and NDP), both families.
    pub neighbours: HashMap<NeighbourKey, Neighbour>,
}

/// Links, addresses and routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Links by interface index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses assigned to links.
    pub addresses: BTreeSet<Address>,
    /// Routes of the tables `local` and `main`, both families, in the order the kernel lists them.
    pub routes: Vec<Route>,
}

/// One link (RTM_NEWLINK).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Interface name.
    pub name: String,
    /// Ethernet address; `None` for links of another kind.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up, and with carrier (IFF_UP and IFF_LOWER_UP).
    pub up: bool,
}

/// One address of a link (RTM_NEWADDR).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// Interface index.
    pub ifindex: u32,
    /// The address itself.
    pub address: IpAddr,
    /// The prefix it makes reachable; on a point-to-point link that of the far end.
    pub prefix: IpNet,
}

/// Which routing table a route stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Table {
    /// RT_TABLE_LOCAL (255): consulted first.
    Local,
    /// RT_TABLE_MAIN (254).
    Main,
}

/// What a route does (`RTN_*`, uapi/linux/rtnetlink.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteKind {
    /// Forwards to its hops.
    Unicast,
    /// Delivers to this machine (local and anycast).
    Local,
    /// Delivers nowhere: blackhole, unreachable, prohibit, and broadcast, which is not forwarded.
    Discard,
}

/// One route (RTM_NEWROUTE).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination prefix; host bits are zero.
    pub prefix: IpNet,
    /// Table it stands in.
    pub table: Table,
    /// Priority: the lowest wins among equal prefixes.
    pub metric: u32,
    /// What it does.
    pub kind: RouteKind,
    /// Hops; several for ECMP, none for [`RouteKind::Discard`].
    pub hops: Vec<Hop>,
    /// MTU metric, when set.
    pub mtu: Option<u32>,
}

/// One way out of a [`Route`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Router address, of either family (RFC 5549 style routes included); `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Interface index.
    pub ifindex: u32,
    /// Share of the flows, at least 1.
    pub weight: u16,
    /// The kernel considers it dead or its link down (RTNH_F_DEAD, RTNH_F_LINKDOWN).
    pub down: bool,
}

/// Interface index and address of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NeighbourKey {
    /// Interface index.
    pub ifindex: u32,
    /// Its address on that link.
    pub address: IpAddr,
}

/// One entry of a neighbour cache (RTM_NEWNEIGH).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its Ethernet address, if known.
    pub mac: Option<[u8; 6]>,
    /// `NUD_*` bits (uapi/linux/neighbour.h).
    pub state: u16,
    /// The kernel keeps it resolved (NTF_EXT_MANAGED).
    pub managed: bool,
}

/// `NUD_*` values (uapi/linux/neighbour.h).
pub mod nud {
    /// Being resolved.
    pub const INCOMPLETE: u16 = 0x01;
    /// Confirmed lately.
    pub const REACHABLE: u16 = 0x02;
    /// Not confirmed lately; usable.
    pub const STALE: u16 = 0x04;
    /// In use, about to be probed; usable.
    pub const DELAY: u16 = 0x08;
    /// Being probed; usable.
    pub const PROBE: u16 = 0x10;
    /// Resolution failed.
    pub const FAILED: u16 = 0x20;
    /// Needs no resolution.
    pub const NOARP: u16 = 0x40;
    /// Set by an administrator.
    pub const PERMANENT: u16 = 0x80;
    /// States in which the link-layer address may be used: the kernel's NUD_VALID (include/net/neighbour.h).
    pub const VALID: u16 = PERMANENT | NOARP | REACHABLE | PROBE | STALE | DELAY;
}

/// News from the kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Everything anew: at start, and after messages were lost.
    All(KernelFacts),
    /// Links, addresses and routes anew.
    Layout(Layout),
    /// Some neighbours changed (`Some`) or went (`None`), in this order.
    Neighbours(Vec<(NeighbourKey, Option<Neighbour>)>),
}

impl KernelFacts {
    /// Folds `change` in; true when anything differs from before.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::All(facts) => {
                let differs = *self != facts;
                *self = facts;
                differs
            }
            Change::Layout(layout) => {
                let differs = self.layout != layout;
                self.layout = layout;
                differs
            }
            Change::Neighbours(list) => {
                let mut differs = false;
                for (key, neighbour) in list {
                    differs |= match neighbour {
                        Some(neighbour) => self.neighbours.insert(key, neighbour) != Some(neighbour),
                        None => self.neighbours.remove(&key).is_some(),
                    };
                }
                differs
            }
        }
    }
}

impl Layout {
    /// The link named `name`.
    pub fn link(&self, name: &str) -> Option<(u32, &Link)> {
        self.links.iter().find(|(_, link)| link.name == name).map(|(index, link)| (*index, link))
    }

    /// Name of the link that has `address`, when the kernel itself uses it.
    pub fn owner(&self, address: IpAddr) -> Option<&str> {
        self.held().find(|held| held.address.addr() == address).map(|held| held.device)
    }

    /// Every address of the kernel's own with the link that has it.
    pub fn held(&self) -> impl Iterator<Item = Held<'_>> {
        self.addresses.iter().map(|entry| {
            let link = self.links.get(&entry.ifindex);
            Held {
                address: IpNet::new(entry.address, entry.prefix.prefix_len()).unwrap_or_else(|_| entry.address.into()),
                device: link.map_or("an unnamed link", |link| link.name.as_str()),
                mac: link.and_then(|link| link.mac),
            }
        })
    }
}

/// An address of the kernel's own, and the link that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held<'a> {
    /// The address, with the length of the prefix that it makes reachable.
    pub address: IpNet,
    /// Name of the link.
    pub device: &'a str,
    /// Its Ethernet address, if it has one.
    pub mac: Option<[u8; 6]>,
}

impl Neighbour {
    /// The address to send to, when this entry may be used for sending.
    pub fn usable_mac(&self) -> Option<[u8; 6]> {
        self.mac.filter(|_| self.state & nud::VALID != 0)
    }

    /// True when the kernel tried and gave up.
    pub fn failed(&self) -> bool {
        self.state & nud::FAILED != 0
    }

    /// The same without how sure the kernel is of it at the moment, and by whose wish it is there.
    #[must_use]
    pub fn lasting(self) -> Neighbour {
        let state = match self.usable_mac() {
            Some(_) if self.state & (nud::PERMANENT | nud::NOARP) != 0 => self.state,
            Some(_) => nud::STALE,
            None if self.failed() => nud::FAILED,
            None => nud::INCOMPLETE,
        };
        Neighbour { mac: self.usable_mac(), state, managed: false }
    }

    /// The kernel's name of the state, as iproute2 prints it.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            nud::INCOMPLETE => "INCOMPLETE",
            nud::REACHABLE => "REACHABLE",
            nud::STALE => "STALE",
            nud::DELAY => "DELAY",
            nud::PROBE => "PROBE",
            nud::FAILED => "FAILED",
            nud::NOARP => "NOARP",
            nud::PERMANENT => "PERMANENT",
            _ => "NONE",
        }
    }
}

#[cfg(test)]
mod fact_tests {
    use super::*;

    fn key(address: &str) -> NeighbourKey {
        NeighbourKey { ifindex: 2, address: address.parse().unwrap() }
    }

    #[test]
    fn only_valid_states_lend_their_mac() {
        let with = |state| Neighbour { mac: Some([2; 6]), state, managed: false };
        for state in [nud::REACHABLE, nud::STALE, nud::DELAY, nud::PROBE, nud::PERMANENT, nud::NOARP] {
            assert_eq!(with(state).usable_mac(), Some([2; 6]), "{}", with(state).state_name());
        }
        for state in [0, nud::INCOMPLETE, nud::FAILED] {
            assert_eq!(with(state).usable_mac(), None, "{}", with(state).state_name());
        }
        assert_eq!(Neighbour { mac: None, state: nud::REACHABLE, managed: false }.usable_mac(), None);
    }

    #[test]
    fn apply_tells_whether_anything_changed() {
        let mut facts = KernelFacts::default();
        let neighbour = Neighbour { mac: Some([2; 6]), state: nud::STALE, managed: false };
        for address in ["192.0.2.1", "fe80::1"] {
            let news = Change::Neighbours(vec![(key(address), Some(neighbour))]);
            assert!(facts.apply(news.clone()));
            assert!(!facts.apply(news), "the same news again is no change");
            assert!(facts.apply(Change::Neighbours(vec![(key(address), None)])));
            assert!(!facts.apply(Change::Neighbours(vec![(key(address), None)])));
        }
        let layout = Layout {
            links: [(2, Link { name: "wan0".into(), mac: Some([2; 6]), mtu: 1500, up: true })].into(),
            ..Layout::default()
        };
        assert!(facts.apply(Change::Layout(layout.clone())));
        assert!(!facts.apply(Change::Layout(layout.clone())));
        assert!(!facts.apply(Change::All(KernelFacts { layout, ..KernelFacts::default() })));
        assert!(facts.apply(Change::All(KernelFacts::default())));
    }
}
