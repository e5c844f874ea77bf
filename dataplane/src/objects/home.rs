//! Homes: addresses at which peers and their pods live.
//!
//! Owns the underlay addresses and pod prefixes of a set of peers, so that asking whose an address is costs a look-up per
//! length of prefix in use, however many peers there are. It refuses to know what is done about an answer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::{Body, Resource};

/// Where the peers of a set live.
#[derive(Clone, Debug, Default)]
pub(super) struct Homes {
    /// Names of peers by underlay address: one for each network that has it.
    underlays: BTreeMap<IpAddr, Vec<String>>,
    prefixes: BTreeMap<IpNet, Vec<String>>,
    /// How many of `prefixes` are IPv4 or not and of this length.
    lengths: BTreeMap<(bool, u8), usize>,
}

impl Homes {
    /// Takes a peer into the set; other objects live nowhere.
    pub(super) fn add(&mut self, peer: &Resource) {
        each(peer, |home| match home {
            Home::Underlay(address) => self.underlays.entry(address).or_default().push(peer.name.clone()),
            Home::Prefix(prefix) => {
                self.prefixes.entry(prefix).or_default().push(peer.name.clone());
                *self.lengths.entry(length(&prefix)).or_default() += 1;
            }
        });
    }

    /// Takes a peer out that was taken in as it is given here.
    pub(super) fn remove(&mut self, peer: &Resource) {
        each(peer, |home| match home {
            Home::Underlay(address) => drop(leave(&mut self.underlays, &address, &peer.name)),
            Home::Prefix(prefix) => {
                if leave(&mut self.prefixes, &prefix, &peer.name)
                    && let Some(count) = self.lengths.get_mut(&length(&prefix))
                {
                    *count -= 1;
                    if *count == 0 {
                        self.lengths.remove(&length(&prefix));
                    }
                }
            }
        });
    }

    /// Whose the addresses of `whole` are, or one of them, for people, among the peers whose names `count`.
    pub(super) fn at(&self, whole: &IpNet, count: impl Fn(&str) -> bool) -> Option<String> {
        let among = |names: &Vec<String>| names.iter().find(|name| count(name)).cloned();
        let (first, last) = (whole.network(), whole.broadcast());
        let underlay = |(address, names): (&IpAddr, _)| Some((*address, among(names)?));
        if let Some((address, peer)) = self.underlays.range(first..=last).find_map(underlay) {
            let holds = if first == last { format!("{first} is") } else { format!("{whole} holds {address},") };
            return Some(format!("{holds} the underlay address of peer {peer}"));
        }
        let v4 = first.is_ipv4();
        let around = self.lengths.range((v4, 0)..=(v4, whole.prefix_len())).find_map(|((_, length), _)| {
            let prefix = IpNet::new(first, *length).ok()?.trunc();
            Some((prefix, self.prefixes.get(&prefix).and_then(among)?))
        });
        let inside = || {
            let ends = [first, last].map(IpNet::from);
            let mut inside = self.prefixes.range(IpNet::new(ends[0].addr(), 0).unwrap_or(ends[0])..=ends[1]);
            inside.find_map(|(prefix, names)| Some((*prefix, among(names).filter(|_| whole.contains(prefix))?)))
        };
        let (prefix, peer) = around.or_else(inside)?;
        let meets = if first == last { format!("{first} lies in") } else { format!("{whole} meets") };
        Some(format!("{meets} pod prefix {prefix} of peer {peer}"))
    }
}

enum Home {
    Underlay(IpAddr),
    Prefix(IpNet),
}

fn each(peer: &Resource, mut tell: impl FnMut(Home)) {
    let Body::Peer(body) = &peer.body else { return };
    for vtep in [&body.v4, &body.v6].into_iter().flatten() {
        tell(Home::Underlay(vtep.underlay));
        vtep.pod_cidrs.iter().for_each(|prefix| tell(Home::Prefix(prefix.trunc())));
    }
}

fn length(prefix: &IpNet) -> (bool, u8) {
    (prefix.addr().is_ipv4(), prefix.prefix_len())
}

/// Takes one `name` from what is at `key`; whether it was there.
fn leave<K: Ord>(map: &mut BTreeMap<K, Vec<String>>, key: &K, name: &str) -> bool {
    let Some(names) = map.get_mut(key) else { return false };
    let Some(at) = names.iter().position(|other| other == name) else { return false };
    names.swap_remove(at);
    if names.is_empty() {
        map.remove(key);
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::objects::tests::{named, peer};

    proptest! {
        /// Whoever came and went: an address is somebody's exactly when a peer of the set lives there.
        #[test]
        fn an_address_is_whose_peer_is_there(
            steps in prop::collection::vec((1..4u8, 0..3u8, any::<bool>()), 0..30),
        ) {
            let (mut homes, mut oracle) = (Homes::default(), BTreeMap::<u8, Resource>::new());
            for (number, variant, stays) in steps {
                if let Some(before) = oracle.remove(&number) {
                    homes.remove(&before);
                }
                if stays {
                    let mut body = peer(number);
                    let v4 = body.v4.as_mut().unwrap();
                    // Another network may have the same underlay address.
                    v4.underlay = format!("198.51.100.{variant}").parse().unwrap();
                    let after = named(&format!("w{number}"), "1", body);
                    homes.add(&after);
                    oracle.insert(number, after);
                }
            }
            let asked = (0..5u8).flat_map(|n| [
                format!("198.51.100.{n}/32"), format!("198.51.100.{n}/31"), format!("2001:db8:2::1{n}/128"), "2001:db8:2::/64".into(),
                format!("10.244.{n}.9/32"), format!("10.244.{n}.64/26"), "10.244.2.0/23".into(), format!("10.244.{n}.0/24"),
                format!("fd00:10:244:{n}::9/128"), format!("fd00:10:244:{n}::/80"), "fd00:10:244::/62".into(),
            ]);
            for whole in asked.map(|text| text.parse::<IpNet>().unwrap().trunc()) {
                let lives = |resource: &Resource| {
                    let mut there = false;
                    each(resource, |home| there |= match home {
                        Home::Underlay(underlay) => whole.contains(&underlay),
                        Home::Prefix(prefix) => prefix.contains(&whole) || whole.contains(&prefix),
                    });
                    there
                };
                let expected: Vec<&str> = oracle.values().filter(|peer| lives(peer)).map(|peer| peer.name.as_str()).collect();
                let found = homes.at(&whole, |_| true);
                prop_assert_eq!(found.is_some(), !expected.is_empty(), "{}: {:?}", whole, found);
                let named = |text: String| expected.iter().any(|name| text.ends_with(&format!("peer {name}")));
                prop_assert!(found.is_none_or(named), "one of those who live there");
                prop_assert_eq!(homes.at(&whole, |name| !expected.contains(&name)), None);
            }
            oracle.values().for_each(|peer| homes.remove(peer));
            prop_assert!(homes.underlays.is_empty() && homes.prefixes.is_empty() && homes.lengths.is_empty());
        }
    }
}
