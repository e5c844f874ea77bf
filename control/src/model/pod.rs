//! A Pod: who it is, for those that choose pods by label or meet one by its address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hashbrown::HashMap;
use tidegate_api::resource::Protocol;

use super::Name;

/// One Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: Name,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Addresses, at most one of each family; empty until it has some.
    pub addresses: Vec<IpAddr>,
    /// Node it runs on, possibly empty.
    pub node: String,
    /// It has the addresses of its node.
    pub host_network: bool,
    /// It has ended and keeps its addresses in name only.
    pub ended: bool,
    /// Named ports, sorted.
    pub ports: Vec<PodPort>,
}

/// A named port of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodPort {
    /// Name.
    pub name: String,
    /// L4 protocol.
    pub protocol: Protocol,
    /// Port, host order, never 0.
    pub port: u16,
}

impl Pod {
    /// Whether its addresses are its own: neither its node's nor those of one that has ended (C-024).
    pub fn owns_addresses(&self) -> bool {
        !self.host_network && !self.ended
    }
}

/// All Pods, by name and by address.
#[derive(Debug, Default)]
pub struct Pods {
    pods: HashMap<Name, Pod>,
    /// Several Pods claim an address while one goes and another comes.
    at: HashMap<IpAddr, BTreeSet<Name>>,
}

impl Pods {
    /// Takes in a new or changed Pod; whether that changes anything.
    pub fn insert(&mut self, pod: Pod) -> bool {
        if self.pods.get(&pod.name) == Some(&pod) {
            return false;
        }
        self.remove(&pod.name.clone());
        if pod.owns_addresses() {
            for address in &pod.addresses {
                self.at.entry(*address).or_default().insert(pod.name.clone());
            }
        }
        self.pods.insert(pod.name.clone(), pod);
        true
    }

    /// Forgets a Pod; whether there was one.
    pub fn remove(&mut self, name: &Name) -> bool {
        let Some(pod) = self.pods.remove(name) else { return false };
        for address in &pod.addresses {
            if let Some(names) = self.at.get_mut(address) {
                names.remove(name);
                if names.is_empty() {
                    self.at.remove(address);
                }
            }
        }
        true
    }

    /// The Pod of that name.
    pub fn get(&self, name: &Name) -> Option<&Pod> {
        self.pods.get(name)
    }

    /// The Pod that has that address; the first by name while several claim it.
    pub fn at(&self, address: IpAddr) -> Option<&Pod> {
        self.at.get(&address)?.first().and_then(|name| self.pods.get(name))
    }

    /// That Pod and those that claim an address of it.
    pub fn rivals(&self, name: &Name) -> BTreeSet<Name> {
        let addresses = self.pods.get(name).into_iter().flat_map(|pod| &pod.addresses);
        let claimants = addresses.filter_map(|address| self.at.get(address)).flatten();
        claimants.chain([name]).cloned().collect()
    }

    /// All Pods, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(name: u8, addresses: &[u8], host_network: bool, ended: bool) -> Pod {
        Pod {
            name: Name { namespace: "shop".into(), name: format!("p{name}") },
            labels: BTreeMap::new(),
            addresses: addresses.iter().map(|last| IpAddr::from([10, 244, 1, *last])).collect(),
            node: "w1".into(),
            host_network,
            ended,
            ports: Vec::new(),
        }
    }

    proptest! {
        /// C-024: the index always names the Pod that a walk over all of them finds.
        #[test]
        fn the_index_says_what_a_walk_says(steps in prop::collection::vec(
            (0u8..5, prop::collection::btree_set(0u8..6, 0..3), any::<bool>(), any::<bool>(), 0u8..4), 0..60,
        )) {
            let mut pods = Pods::default();
            let mut all: BTreeMap<Name, Pod> = BTreeMap::new();
            for (name, addresses, host_network, ended, dice) in steps {
                let new = pod(name, &addresses.into_iter().collect::<Vec<_>>(), host_network, ended);
                if dice == 0 {
                    prop_assert_eq!(pods.remove(&new.name), all.remove(&new.name).is_some());
                } else {
                    prop_assert_eq!(pods.insert(new.clone()), all.get(&new.name) != Some(&new));
                    all.insert(new.name.clone(), new);
                }
                for last in 0..6 {
                    let address = IpAddr::from([10, 244, 1, last]);
                    let by_walk = all.values().find(|pod| pod.owns_addresses() && pod.addresses.contains(&address));
                    prop_assert_eq!(pods.at(address), by_walk);
                }
            }
        }
    }
}
