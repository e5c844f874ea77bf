//! What is left of prefixes when others are taken out: lists that do not overlap.
//!
//! A policy says where it is for by the longest of its prefixes, and of several policies the first that is for a destination
//! counts. Tables of routes know the former and not the latter; so what each policy has is said without overlaps.

use ipnet::IpNet;

/// What of `prefixes` is in none of `holes`, as few prefixes as that takes, sorted.
pub fn without(prefixes: &[IpNet], holes: &[IpNet]) -> Vec<IpNet> {
    let mut left = Vec::new();
    for prefix in prefixes {
        let inside: Vec<&IpNet> = holes.iter().filter(|hole| prefix.contains(*hole) || hole.contains(prefix)).collect();
        take(prefix.trunc(), &inside, &mut left);
    }
    IpNet::aggregate(&left)
}

fn take(prefix: IpNet, holes: &[&IpNet], left: &mut Vec<IpNet>) {
    if holes.iter().any(|hole| hole.contains(&prefix)) {
        return;
    }
    let inside: Vec<&IpNet> = holes.iter().copied().filter(|hole| prefix.contains(*hole)).collect();
    match (inside.is_empty(), prefix.subnets(prefix.prefix_len() + 1)) {
        (false, Ok(halves)) => halves.for_each(|half| take(half, &inside, left)),
        _ => left.push(prefix),
    }
}

/// Where a policy is for a destination: `destinations` less `except`, the longest prefix of both deciding, an exception
/// going before a destination that is the same. No overlaps.
pub fn decided(destinations: &[IpNet], except: &[IpNet]) -> Vec<IpNet> {
    let mut all: Vec<(IpNet, bool)> = destinations.iter().map(|prefix| (prefix.trunc(), true)).collect();
    all.extend(except.iter().map(|prefix| (prefix.trunc(), false)));
    // Of each prefix what longer ones leave of it.
    let mut left = Vec::new();
    for (prefix, _) in all.iter().filter(|(prefix, is_for)| *is_for && !all.contains(&(*prefix, false))) {
        let longer = all.iter().filter(|(other, _)| prefix.contains(other) && other.prefix_len() > prefix.prefix_len());
        let longer: Vec<IpNet> = longer.map(|(other, _)| *other).collect();
        left.extend(without(&[*prefix], &longer));
    }
    IpNet::aggregate(&left)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn holes_are_taken_out_in_both_families() {
        assert_eq!(
            without(&nets(&["10.0.0.0/8", "fd00::/8"]), &nets(&["10.128.0.0/9"])),
            nets(&["10.0.0.0/9", "fd00::/8"])
        );
        assert_eq!(without(&nets(&["10.0.0.0/30"]), &nets(&["10.0.0.1/32"])), nets(&["10.0.0.0/32", "10.0.0.2/31"]));
        assert_eq!(without(&nets(&["2001:db8::/126"]), &nets(&["2001:db8::/127"])), nets(&["2001:db8::2/127"]));
        assert_eq!(without(&nets(&["10.0.0.0/8"]), &nets(&["0.0.0.0/0"])), []);
    }

    #[test]
    fn the_longest_prefix_decides() {
        let decided = decided(&nets(&["10.0.0.0/8", "10.1.1.0/24"]), &nets(&["10.1.0.0/16", "10.2.0.0/15"]));
        let is_for = |text: &str| decided.iter().any(|prefix| prefix.contains(&text.parse::<IpAddr>().unwrap()));
        assert!(is_for("10.1.1.5") && is_for("10.9.0.1"));
        assert!(!is_for("10.1.2.5") && !is_for("10.3.0.1") && !is_for("11.0.0.1"));
    }

    /// A prefix of the eight addresses 10.0.0.0 to 10.0.0.7.
    fn small() -> impl Strategy<Value = IpNet> {
        (0u8..8, 29u8..=32)
            .prop_map(|(last, length)| IpNet::new(IpAddr::from([10, 0, 0, last]), length).unwrap().trunc())
    }

    proptest! {
        /// The oracle: each address, by the longest prefix that holds it.
        #[test]
        fn every_address_is_decided_as_by_a_walk(
            destinations in prop::collection::vec(small(), 0..5),
            except in prop::collection::vec(small(), 0..5),
        ) {
            let decided = decided(&destinations, &except);
            for last in 0..8 {
                let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
                let longest = |list: &[IpNet]| {
                    list.iter().filter(|prefix| prefix.contains(&address)).map(IpNet::prefix_len).max()
                };
                let expected = longest(&destinations).is_some_and(|length| {
                    longest(&except).is_none_or(|other| other < length)
                });
                let holding = decided.iter().filter(|prefix| prefix.contains(&address)).count();
                prop_assert_eq!(holding, usize::from(expected), "{} of {:?} {:?}", address, &destinations, &except);
            }
        }
    }
}
