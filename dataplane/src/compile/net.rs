//! A set of prefixes that can say whether it covers another.

use std::collections::{BTreeSet, HashSet};

use ipnet::IpNet;

/// Prefixes of both families, host bits cut off.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set {
    prefixes: HashSet<IpNet>,
    /// Lengths there are, per family: few, so that a question costs few look-ups.
    lengths: BTreeSet<(bool, u8)>,
}

impl FromIterator<IpNet> for Set {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        let prefixes: HashSet<IpNet> = prefixes.into_iter().map(|prefix| prefix.trunc()).collect();
        let lengths = prefixes.iter().map(|prefix| (prefix.addr().is_ipv4(), prefix.prefix_len())).collect();
        Set { prefixes, lengths }
    }
}

impl Set {
    /// Whether a prefix of the set is equal to `prefix` or contains it.
    pub fn covers(&self, prefix: &IpNet) -> bool {
        let mut shorter =
            self.lengths.range((prefix.addr().is_ipv4(), 0)..=(prefix.addr().is_ipv4(), prefix.prefix_len()));
        shorter.any(|(_, length)| {
            IpNet::new(prefix.addr(), *length).is_ok_and(|parent| self.prefixes.contains(&parent.trunc()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_covers_itself_and_what_is_inside() {
        let set: Set = ["10.0.0.0/8", "fd00::/16", "192.0.2.7/32"].iter().map(|text| text.parse().unwrap()).collect();
        let covers = |text: &str| set.covers(&text.parse().unwrap());
        assert!(covers("10.0.0.0/8") && covers("10.9.0.0/16") && covers("fd00:1::/64") && covers("192.0.2.7/32"));
        assert!(!covers("0.0.0.0/0") && !covers("11.0.0.0/8") && !covers("192.0.2.0/24") && !covers("fe80::/64"));
        assert!(!Set::default().covers(&"::/0".parse().unwrap()));
    }
}
