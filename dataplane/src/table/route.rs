//! Longest-prefix routes.
//!
//! Owns one trie per family, of the kernel's routes and the overlay's. It refuses to know neighbours beyond their ids. Only
//! the slow path looks routes up: a flow remembers the tunnel or neighbour it got, and `routes_epoch` tells it when to ask
//! again.
//!
//! An edit copies the trie of one family once per generation, about 100 B a route: a gateway has some routes per node, and
//! they change with links and nodes, not with Services.

use std::sync::Arc;

use arrayvec::ArrayVec;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::{DeviceId, NeighbourId, TunnelId, unmapped};

/// Most next hops of one route or tunnel, repetitions for weight included.
pub const NEXT_HOPS_MAX: usize = 16;

/// Next hops of equal cost; one that stands `n` times gets `n` shares. Never empty where it stands in a row in use.
pub type NextHops = ArrayVec<NeighbourId, NEXT_HOPS_MAX>;

/// Where packets to a prefix go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteTarget {
    /// Into VXLAN, to this peer.
    Tunnel(TunnelId),
    /// To a router: choose by flow hash.
    NextHops(NextHops),
    /// Directly: the destination itself is the neighbour on this device.
    Connected(DeviceId),
    /// Nowhere: dropped.
    Blackhole,
    /// To this machine's own kernel.
    Local,
}

/// One route. Kind: table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRow {
    /// Where to.
    pub target: RouteTarget,
    /// Largest IP packet on this way, bytes.
    pub mtu: u16,
}

/// All routes. Kind: table.
#[derive(Clone, Default)]
pub struct RouteTable {
    v4: Arc<PrefixMap<Ipv4Net, RouteRow>>,
    v6: Arc<PrefixMap<Ipv6Net, RouteRow>>,
}

impl RouteTable {
    /// The longest match for an IPv4 destination. Read side: at most 32 steps down the trie.
    pub fn lookup_v4(&self, address: &[u8; 4]) -> Option<&RouteRow> {
        Some(self.v4.get_lpm(&Ipv4Net::from(std::net::Ipv4Addr::from(*address)))?.1)
    }

    /// The longest match for an IPv6 destination. Read side: at most 128 steps down the trie.
    pub fn lookup_v6(&self, address: &[u8; 16]) -> Option<&RouteRow> {
        Some(self.v6.get_lpm(&Ipv6Net::from(std::net::Ipv6Addr::from(*address)))?.1)
    }

    /// The longest match for a destination in mapped form.
    pub fn lookup(&self, address: &[u8; 16]) -> Option<&RouteRow> {
        match unmapped(address) {
            Some(address) => self.lookup_v4(&address),
            None => self.lookup_v6(address),
        }
    }

    /// The route of exactly this prefix.
    pub fn get(&self, prefix: &IpNet) -> Option<&RouteRow> {
        match prefix.trunc() {
            IpNet::V4(prefix) => self.v4.get(&prefix),
            IpNet::V6(prefix) => self.v6.get(&prefix),
        }
    }

    /// Every route with its prefix, IPv4 first, in order of prefixes.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &RouteRow)> {
        let v4 = self.v4.iter().map(|(prefix, row)| (IpNet::V4(*prefix), row));
        v4.chain(self.v6.iter().map(|(prefix, row)| (IpNet::V6(*prefix), row)))
    }

    /// Routes of both families.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there is no route.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sets the route of a prefix (host bits are cut off) and returns the one before. Build side: one copy of the family's
    /// trie per generation.
    pub fn insert(&mut self, prefix: IpNet, row: RouteRow) -> Option<RouteRow> {
        match prefix.trunc() {
            IpNet::V4(prefix) => Arc::make_mut(&mut self.v4).insert(prefix, row),
            IpNet::V6(prefix) => Arc::make_mut(&mut self.v6).insert(prefix, row),
        }
    }

    /// Removes the route of exactly this prefix and returns it. Build side; cost as [`RouteTable::insert`].
    pub fn remove(&mut self, prefix: &IpNet) -> Option<RouteRow> {
        self.get(prefix)?;
        match prefix.trunc() {
            IpNet::V4(prefix) => Arc::make_mut(&mut self.v4).remove(&prefix),
            IpNet::V6(prefix) => Arc::make_mut(&mut self.v6).remove(&prefix),
        }
    }
}

impl std::fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
