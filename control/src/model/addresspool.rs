//! An AddressPool: ranges of addresses and which Services may get them, whatever the manifest looked like.
//!
//! Owns the arithmetic of ranges. Nothing here walks over addresses: a range of 2^100 costs what a range of two does.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use kube::core::Selector;

/// One AddressPool.
#[derive(Clone, Debug, PartialEq)]
pub struct AddressPool {
    /// Name of the pool.
    pub name: String,
    /// Object identity (S-005); empty when nobody assigned one.
    pub uid: String,
    /// Seconds since the epoch at creation; the largest value when unknown.
    pub created_at_s: i64,
    /// `metadata.generation`, told back in status.
    pub generation: Option<i64>,
    /// Ranges in the order in which they are used up; at least one; none of them overlap (M-001).
    pub ranges: Vec<AddressRange>,
    /// Ranges that were in force according to status; empty when nothing was written there.
    pub last_good: Vec<AddressRange>,
    /// Why what is written now cannot be used: the ranges are then those that were in force before.
    pub complaint: Option<String>,
    /// Whether Services get addresses without asking for this pool.
    pub auto_assign: bool,
    /// Whether IPv4 addresses ending in .0 and .255 are left out.
    pub avoid_buggy: bool,
    /// Which Services it is for; absent: all of them.
    pub pinning: Option<Pinning>,
}

/// Which Services a pool is for.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Pinning {
    /// Lower is tried first; 0 last (M-002).
    pub priority: u32,
    /// Namespaces by name.
    pub namespaces: Vec<String>,
    /// Namespaces by labels.
    pub namespace_selectors: Vec<Selector>,
    /// Services by labels.
    pub service_selectors: Vec<Selector>,
}

/// Addresses of one family from `first` to `last`, both included; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// The range with these ends; absent when they are of two families or in the wrong order.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(AddressRange { first, last })
    }

    /// Its lowest address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Its highest address.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether it is IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        // IPv4 comes before IPv6 in their order, so a family cannot lie within the other.
        (self.first..=self.last).contains(&address)
    }

    /// What both have in common.
    pub fn intersection(&self, other: &AddressRange) -> Option<AddressRange> {
        AddressRange::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// The parts of it, at most two and in order, that are not in `other`.
    pub fn without(&self, other: &AddressRange) -> Vec<AddressRange> {
        let Some(common) = self.intersection(other) else { return vec![*self] };
        let below = before(common.first).and_then(|last| AddressRange::new(self.first, last));
        let above = after(common.last).and_then(|first| AddressRange::new(first, self.last));
        below.into_iter().chain(above).collect()
    }

    /// How many addresses it has, without those that [`is_buggy`] if `avoid_buggy`. The largest value also stands for
    /// one more.
    pub fn count(&self, avoid_buggy: bool) -> u128 {
        let (first, last) = (number(self.first), number(self.last));
        let all = (last - first).saturating_add(1);
        if !(avoid_buggy && self.is_ipv4()) {
            return all;
        }
        // How many numbers below `end` end in 0 or 255.
        let buggy_below = |end: u128| 2 * (end / 256) + u128::from(!end.is_multiple_of(256));
        all - (buggy_below(last + 1) - buggy_below(first))
    }
}

impl AddressPool {
    /// Whether `address` may be given out by this pool (M-001).
    pub fn contains(&self, address: IpAddr) -> bool {
        let buggy = self.avoid_buggy && is_buggy(address);
        !buggy && self.ranges.iter().any(|range| range.contains(address))
    }
}

/// Whether some devices would take it for a network or broadcast address (M-001).
pub fn is_buggy(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if matches!(v4.octets()[3], 0 | 255))
}

/// The next address of the family.
pub fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|next| Ipv4Addr::from(next).into()),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|next| Ipv6Addr::from(next).into()),
    }
}

/// The address before it in the family.
pub fn before(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_sub(1).map(|previous| Ipv4Addr::from(previous).into()),
        IpAddr::V6(v6) => u128::from(v6).checked_sub(1).map(|previous| Ipv6Addr::from(previous).into()),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

impl From<IpNet> for AddressRange {
    fn from(prefix: IpNet) -> Self {
        AddressRange { first: prefix.network(), last: prefix.broadcast() }
    }
}

impl From<IpAddr> for AddressRange {
    fn from(address: IpAddr) -> Self {
        AddressRange { first: address, last: address }
    }
}

impl fmt::Display for AddressRange {
    /// As it may stand in a manifest: an address, a CIDR if it is one, else both ends.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        let differing = 128 - (number(self.first) ^ number(self.last)).leading_zeros();
        let bits = if self.is_ipv4() { 32 } else { 128 };
        let length = u8::try_from(bits - differing).unwrap_or_default();
        match IpNet::new(self.first, length) {
            Ok(prefix) if AddressRange::from(prefix) == *self => write!(f, "{prefix}"),
            _ => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> AddressRange {
        let (first, last) = text.split_once('-').unwrap();
        AddressRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_range_is_shown_as_it_may_be_written() {
        for (ends, shown) in [
            ("192.0.2.0-192.0.2.255", "192.0.2.0/24"),
            ("192.0.2.1-192.0.2.255", "192.0.2.1-192.0.2.255"),
            ("192.0.2.7-192.0.2.7", "192.0.2.7"),
            ("2001:db8::-2001:db8::ffff:ffff:ffff:ffff", "2001:db8::/64"),
            ("2001:db8::1-2001:db8::2", "2001:db8::1-2001:db8::2"),
            ("0.0.0.0-255.255.255.255", "0.0.0.0/0"),
        ] {
            assert_eq!(range(ends).to_string(), shown);
        }
    }

    #[test]
    fn counting_takes_no_steps() {
        assert_eq!(range("10.0.0.0-10.255.255.255").count(false), 1 << 24);
        assert_eq!(range("10.0.0.0-10.255.255.255").count(true), (1 << 24) - 2 * (1 << 16));
        assert_eq!(range("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff").count(true), u128::MAX);
    }

    proptest! {
        #[test]
        fn arithmetic_agrees_with_counting(a in 0u32..1200, length in 0u32..1200, c in 0u32..1200, other in 0u32..1200) {
            let ip = |number: u32| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + number));
            let one = AddressRange::new(ip(a), ip(a + length)).unwrap();
            let two = AddressRange::new(ip(c), ip(c + other)).unwrap();
            let all: Vec<u32> = (0..3000).filter(|number| one.contains(ip(*number))).collect();
            prop_assert_eq!(one.count(false), all.len() as u128);
            prop_assert_eq!(one.count(true), all.iter().filter(|number| !is_buggy(ip(**number))).count() as u128);
            let parts = one.without(&two);
            for number in 0..3000 {
                let within = parts.iter().filter(|part| part.contains(ip(number))).count();
                prop_assert_eq!(within, usize::from(one.contains(ip(number)) && !two.contains(ip(number))));
            }
            prop_assert_eq!(one.intersection(&two).is_some(), all.iter().any(|number| two.contains(ip(*number))));
        }
    }
}
