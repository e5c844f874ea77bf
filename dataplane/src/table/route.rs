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

/// Which of `count` equal ways a flow with `hash` takes (RFC 2992): one below `count`, or 0.
#[inline(always)]
#[must_use]
pub fn pick(count: usize, hash: u64) -> usize {
    // The high half: the low bits already chose the bucket and the VXLAN source port.
    ((hash >> 32) as usize).checked_rem(count).unwrap_or(0)
}

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::table::mapped;

    fn row(n: u16) -> RouteRow {
        let target = match n % 5 {
            0 => RouteTarget::Tunnel(TunnelId(n)),
            1 => RouteTarget::NextHops([NeighbourId(n), NeighbourId(n + 1)].into_iter().collect()),
            2 => RouteTarget::Connected(DeviceId(n)),
            3 => RouteTarget::Blackhole,
            _ => RouteTarget::Local,
        };
        RouteRow { target, mtu: n }
    }

    /// Addresses of few bits set, so that prefixes nest.
    fn any_address(v4: bool) -> impl Strategy<Value = IpAddr> {
        let v6 = prop::collection::vec(prop::sample::select(vec![0u8, 1, 128, 255]), 16);
        v6.prop_map(move |bytes| match <[u8; 16]>::try_from(bytes).unwrap() {
            [a, b, c, d, ..] if v4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            bytes => IpAddr::V6(Ipv6Addr::from(bytes)),
        })
    }

    fn any_prefix() -> impl Strategy<Value = IpNet> {
        any::<bool>().prop_flat_map(|v4| {
            let length_max: u8 = if v4 { 32 } else { 128 };
            (any_address(v4), 0..=length_max).prop_map(|(address, length)| IpNet::new(address, length).unwrap())
        })
    }

    fn octets(address: IpAddr) -> [u8; 16] {
        match address {
            IpAddr::V4(address) => mapped(&address.octets()),
            IpAddr::V6(address) => address.octets(),
        }
    }

    proptest! {
        /// The trie gives what a walk over all prefixes gives, and earlier generations keep theirs.
        #[test]
        fn the_longest_prefix_wins(
            ops in prop::collection::vec((any_prefix(), prop::option::weighted(0.75, 0..1000u16)), 0..40),
            asked in prop::collection::vec(any::<bool>().prop_flat_map(any_address), 0..30),
        ) {
            let mut table = RouteTable::default();
            let mut oracle = BTreeMap::<IpNet, RouteRow>::new();
            let mut generations = Vec::new();
            for (prefix, change) in ops {
                if prefix.prefix_len() % 8 == 0 {
                    generations.push((table.clone(), oracle.clone()));
                }
                match change.map(row) {
                    Some(row) => prop_assert_eq!(table.insert(prefix, row.clone()), oracle.insert(prefix.trunc(), row)),
                    None => prop_assert_eq!(table.remove(&prefix), oracle.remove(&prefix.trunc())),
                }
            }
            generations.push((table, oracle.clone()));
            let asked: Vec<IpAddr> = asked.into_iter().chain(oracle.keys().map(|prefix| prefix.addr())).collect();
            for (table, oracle) in generations {
                prop_assert_eq!(table.iter().map(|(prefix, row)| (prefix, row.clone())).collect::<BTreeMap<_, _>>(), oracle.clone());
                prop_assert_eq!((table.len(), table.is_empty()), (oracle.len(), oracle.is_empty()));
                for address in &asked {
                    let covering = oracle.iter().filter(|(prefix, _)| prefix.contains(address));
                    let longest = covering.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, row)| row);
                    let found = match address {
                        IpAddr::V4(address) => table.lookup_v4(&address.octets()),
                        IpAddr::V6(address) => table.lookup_v6(&address.octets()),
                    };
                    prop_assert_eq!(found, longest);
                    if octets(*address) == octets(address.to_canonical()) {
                        prop_assert_eq!(table.lookup(&octets(*address)), longest);
                    }
                }
                for prefix in oracle.keys() {
                    prop_assert_eq!(table.get(prefix), oracle.get(prefix));
                }
            }
        }
    }

    #[test]
    fn an_edit_leaves_the_other_family_shared() {
        let mut table = RouteTable::default();
        table.insert("::/0".parse().unwrap(), row(1));
        let before = table.clone();
        table.insert("0.0.0.0/0".parse().unwrap(), row(2));
        assert!(Arc::ptr_eq(&before.v6, &table.v6) && !Arc::ptr_eq(&before.v4, &table.v4));
        let before = table.clone();
        assert_eq!(table.remove(&"10.0.0.0/8".parse().unwrap()), None);
        assert!(Arc::ptr_eq(&before.v4, &table.v4), "removing nothing copies nothing");
    }
}
