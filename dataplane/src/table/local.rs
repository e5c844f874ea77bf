//! Addresses that are ours.
//!
//! Owns which roles an address has for this gateway (VIP, announced, translated source, VTEP) and the gateway's own VTEPs.
//! It refuses to know how a packet to such an address is answered. Prefixes have roles as addresses do; an address that
//! has roles of its own has those alone.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::{Prefix, PrefixMap};

use super::decap::Decap;
use super::exact::{self, ExactMap};
use super::{Family, mapped, unmapped};

/// The roles of one address: a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct LocalKind(u8);

impl LocalKind {
    /// Not ours.
    pub const NONE: LocalKind = LocalKind(0);
    /// An address of a Service; answers echo requests.
    pub const VIP: LocalKind = LocalKind(1);
    /// Inside a connected prefix of one of our devices: answers ARP and neighbour solicitations.
    pub const ANNOUNCED: LocalKind = LocalKind(2);
    /// A source of `fullnat`: replies from pods come to it.
    pub const FULLNAT_SOURCE: LocalKind = LocalKind(4);
    /// The overlay address of one of our VTEPs.
    pub const VTEP_OVERLAY: LocalKind = LocalKind(8);
    /// The underlay address of one of our VTEPs: outer destination of what peers send us.
    pub const VTEP_UNDERLAY: LocalKind = LocalKind(16);

    /// An address of a Service that is no VIP: its frontends are served, and nothing else is answered.
    pub const SERVICE: LocalKind = LocalKind(32);
    /// An address of this machine at which node ports are served; everything else there is the kernel's.
    pub const NODE: LocalKind = LocalKind(64);
    /// What pods look like from outside: replies to translated flows come to it.
    pub const EXTERNAL: LocalKind = LocalKind(128);
    /// Roles of addresses at which Services have frontends.
    pub const SERVED: LocalKind = LocalKind::VIP.union(LocalKind::SERVICE).union(LocalKind::NODE);

    const NAMES: [(LocalKind, &'static str); 8] = [
        (LocalKind::VIP, "vip"),
        (LocalKind::ANNOUNCED, "announced"),
        (LocalKind::FULLNAT_SOURCE, "fullnat-source"),
        (LocalKind::VTEP_OVERLAY, "vtep-overlay"),
        (LocalKind::VTEP_UNDERLAY, "vtep-underlay"),
        (LocalKind::SERVICE, "service"),
        (LocalKind::NODE, "node"),
        (LocalKind::EXTERNAL, "external"),
    ];

    /// Whether all roles of `other` are in this set.
    #[inline]
    pub const fn contains(self, other: LocalKind) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether this and `other` have a role in common.
    #[inline]
    pub const fn intersects(self, other: LocalKind) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether the address is not ours.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Roles of either.
    pub const fn union(self, other: LocalKind) -> LocalKind {
        LocalKind(self.0 | other.0)
    }

    /// Roles of this that are not in `other`.
    pub const fn without(self, other: LocalKind) -> LocalKind {
        LocalKind(self.0 & !other.0)
    }
}

impl std::ops::BitOr for LocalKind {
    type Output = LocalKind;

    fn bitor(self, other: LocalKind) -> LocalKind {
        self.union(other)
    }
}

impl std::ops::BitOrAssign for LocalKind {
    fn bitor_assign(&mut self, other: LocalKind) {
        *self = self.union(other);
    }
}

impl std::fmt::Display for LocalKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> =
            Self::NAMES.iter().filter(|(kind, _)| self.contains(*kind)).map(|(_, name)| *name).collect();
        f.write_str(&names.join(","))
    }
}

impl exact::Value for LocalKind {
    const VACANT: Self = LocalKind::NONE;
}

/// One VXLAN tunnel end point of this gateway (RFC 7348).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VtepRow {
    /// Outer source on send, outer destination on receive; network order, IPv4 in mapped form.
    pub underlay: [u8; 16],
    /// Inner source MAC on send, inner destination MAC on receive.
    pub mac: [u8; 6],
    /// Overlay address of the end point itself; network order, IPv4 in mapped form.
    pub overlay: [u8; 16],
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port on receive, host order.
    pub port: u16,
}

/// Roles of the prefixes of one family.
#[derive(Clone)]
struct Prefixes<P: Prefix>(Arc<PrefixMap<P, LocalKind>>);

impl<P: Prefix + Clone> Prefixes<P> {
    /// Roles of every prefix around an address. Costs nothing where there is no prefix.
    #[inline]
    fn around(&self, address: impl FnOnce() -> P) -> LocalKind {
        if self.0.is_empty() { LocalKind::NONE } else { self.walk(&address()) }
    }

    #[cold]
    fn walk(&self, address: &P) -> LocalKind {
        self.0.cover_values(address).fold(LocalKind::NONE, |all, kind| all | *kind)
    }

    fn set(&mut self, prefix: P, kind: LocalKind) {
        let map = Arc::make_mut(&mut self.0);
        let _before = if kind.is_empty() { map.remove(&prefix) } else { map.insert(prefix, kind) };
    }
}

impl<P: Prefix> Default for Prefixes<P> {
    fn default() -> Self {
        Prefixes(Arc::new(PrefixMap::new()))
    }
}

impl<P: Prefix> std::fmt::Debug for Prefixes<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} prefixes", self.0.len())
    }
}

/// All addresses that are ours. Kind: table.
#[derive(Clone, Debug, Default)]
pub struct LocalTable {
    v4: ExactMap<[u8; 4], LocalKind>,
    v6: ExactMap<[u8; 16], LocalKind>,
    prefixes_v4: Prefixes<Ipv4Net>,
    prefixes_v6: Prefixes<Ipv6Net>,
    vtep_v4: Option<VtepRow>,
    vtep_v6: Option<VtepRow>,
    decap: Option<Arc<Decap>>,
}

impl LocalTable {
    /// Roles of an IPv4 address; empty when it is not ours. Read side.
    #[inline]
    pub fn kind_v4(&self, address: &[u8; 4]) -> LocalKind {
        let wider = || self.prefixes_v4.around(|| Ipv4Net::from(Ipv4Addr::from(*address)));
        self.v4.get(address).unwrap_or_else(wider)
    }

    /// Roles of an IPv6 address; empty when it is not ours. Read side.
    #[inline]
    pub fn kind_v6(&self, address: &[u8; 16]) -> LocalKind {
        let wider = || self.prefixes_v6.around(|| Ipv6Net::from(Ipv6Addr::from(*address)));
        self.v6.get(address).unwrap_or_else(wider)
    }

    /// Roles of an address in mapped form.
    pub fn kind(&self, address: &[u8; 16]) -> LocalKind {
        match unmapped(address) {
            Some(address) => self.kind_v4(&address),
            None => self.kind_v6(address),
        }
    }

    /// Roles of an address in mapped form, those of prefixes around it left out.
    fn own_kind(&self, address: &[u8; 16]) -> LocalKind {
        let kind = match unmapped(address) {
            Some(address) => self.v4.get(&address),
            None => self.v6.get(address),
        };
        kind.unwrap_or_default()
    }

    /// Our VTEP whose outer packets are of `family`. Read side.
    #[inline]
    pub fn vtep(&self, family: Family) -> Option<&VtepRow> {
        match family {
            Family::V4 => self.vtep_v4.as_ref(),
            Family::V6 => self.vtep_v6.as_ref(),
        }
    }

    /// Tunnels that end here without being part of the overlay, if there are any. Read side.
    #[inline]
    pub fn decap(&self) -> Option<&Decap> {
        self.decap.as_deref()
    }

    /// Every address of ours in mapped form, IPv4 first, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = ([u8; 16], LocalKind)> {
        self.v4.iter().map(|(address, kind)| (mapped(&address), kind)).chain(self.v6.iter())
    }

    /// Gives an address (mapped form) exactly these roles; the empty set removes it. Build side: one or two chunks.
    pub fn set(&mut self, address: &[u8; 16], kind: LocalKind) {
        match unmapped(address) {
            Some(address) => self.v4.insert(address, kind),
            None => self.v6.insert(*address, kind),
        };
    }

    /// Gives an address (mapped form) these roles beside those it has. Build side.
    pub fn add(&mut self, address: &[u8; 16], kind: LocalKind) {
        self.set(address, self.own_kind(address) | kind);
    }

    /// Takes these roles from an address (mapped form). Build side.
    pub fn take(&mut self, address: &[u8; 16], kind: LocalKind) {
        self.set(address, self.own_kind(address).without(kind));
    }

    /// Gives a prefix exactly these roles; the empty set removes it. Build side: copies the family's prefixes once per
    /// generation.
    pub fn set_prefix(&mut self, prefix: IpNet, kind: LocalKind) {
        match prefix.trunc() {
            IpNet::V4(prefix) => self.prefixes_v4.set(prefix, kind),
            IpNet::V6(prefix) => self.prefixes_v6.set(prefix, kind),
        }
    }

    /// Sets or removes the tunnels that end here. Build side.
    pub fn set_decap(&mut self, decap: Option<Arc<Decap>>) {
        self.decap = decap;
    }

    /// Sets or removes our VTEP whose outer packets are of `family`; its addresses need their roles too. Build side.
    pub fn set_vtep(&mut self, family: Family, vtep: Option<VtepRow>) {
        match family {
            Family::V4 => self.vtep_v4 = vtep,
            Family::V6 => self.vtep_v6 = vtep,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn roles_add_up_and_go(ops in prop::collection::vec((any::<bool>(), 0..4u8, 0..32u8, 0..3u8), 0..100)) {
            let mut table = LocalTable::default();
            let mut oracle = HashMap::<[u8; 16], u8>::new();
            for (v4, host, kind, how) in ops {
                let address = if v4 { mapped(&[203, 0, 113, host]) } else { [host; 16] };
                let roles = oracle.entry(address).or_default();
                match how {
                    0 => (table.set(&address, LocalKind(kind)), *roles = kind).0,
                    1 => (table.add(&address, LocalKind(kind)), *roles |= kind).0,
                    _ => (table.take(&address, LocalKind(kind)), *roles &= !kind).0,
                }
            }
            oracle.retain(|_, roles| *roles != 0);
            prop_assert_eq!(table.iter().map(|(address, kind)| (address, kind.0)).collect::<HashMap<_, _>>(), oracle.clone());
            for host in 0..5 {
                let v4 = [203, 0, 113, host];
                prop_assert_eq!(table.kind_v4(&v4).0, oracle.get(&mapped(&v4)).copied().unwrap_or(0));
                prop_assert_eq!(table.kind_v6(&[host; 16]).0, oracle.get(&[host; 16]).copied().unwrap_or(0));
                prop_assert!(table.kind_v6(&mapped(&v4)).is_empty(), "families stay apart");
            }
        }
    }

    #[test]
    fn kinds_are_sets_with_names() {
        let kind = LocalKind::VIP | LocalKind::ANNOUNCED;
        assert!(kind.contains(LocalKind::VIP) && !kind.contains(LocalKind::VIP | LocalKind::VTEP_OVERLAY));
        assert!(
            kind.intersects(LocalKind::VIP | LocalKind::VTEP_OVERLAY) && !kind.intersects(LocalKind::FULLNAT_SOURCE)
        );
        assert_eq!(kind.to_string(), "vip,announced");
        assert_eq!(LocalKind::NONE.to_string(), "");
        let all = LocalKind::NAMES.iter().fold(LocalKind::NONE, |all, (kind, _)| all | *kind);
        assert_eq!(all.0.count_ones(), 8, "each role has a bit of its own");
    }

    #[test]
    fn prefixes_have_roles_where_no_address_has() {
        // T-121
        let mut table = LocalTable::default();
        for (wide, narrow, inside, exact, outside) in [
            ("203.0.113.0/24", "203.0.113.64/26", "203.0.113.70", "203.0.113.71", "203.0.114.1"),
            ("2001:db8:f::/64", "2001:db8:f::40/122", "2001:db8:f::46", "2001:db8:f::47", "2001:db8:e::1"),
        ] {
            let at = |text: &str| match text.parse().unwrap() {
                std::net::IpAddr::V4(v4) => mapped(&v4.octets()),
                std::net::IpAddr::V6(v6) => v6.octets(),
            };
            table.set_prefix(wide.parse().unwrap(), LocalKind::VIP);
            table.set_prefix(narrow.parse().unwrap(), LocalKind::ANNOUNCED);
            table.set(&at(exact), LocalKind::FULLNAT_SOURCE);
            assert_eq!(table.kind(&at(inside)), LocalKind::VIP | LocalKind::ANNOUNCED);
            assert_eq!(table.kind(&at(exact)), LocalKind::FULLNAT_SOURCE);
            assert_eq!(table.kind(&at(outside)), LocalKind::NONE);
            table.set_prefix(wide.parse().unwrap(), LocalKind::NONE);
            assert_eq!(table.kind(&at(inside)), LocalKind::ANNOUNCED);
        }
    }

    #[test]
    fn each_family_has_its_vtep() {
        let mut table = LocalTable::default();
        let vtep = VtepRow { underlay: [1; 16], mac: [2; 6], overlay: [3; 16], vni: 1, port: 8472 };
        table.set_vtep(Family::V6, Some(vtep));
        assert_eq!((table.vtep(Family::V4), table.vtep(Family::V6)), (None, Some(&vtep)));
        table.set_vtep(Family::V4, Some(vtep));
        table.set_vtep(Family::V6, None);
        assert_eq!((table.vtep(Family::V4), table.vtep(Family::V6)), (Some(&vtep), None));
    }
}
