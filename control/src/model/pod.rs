//! A Pod: who it is, for those that choose pods by label or meet one by its address.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use tidegate_api::resource::Protocol;

use super::Name;

/// One Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace and name.
    pub name: Name,
    /// Object identity; empty where the source has none.
    #[serde(with = "text")]
    pub uid: Arc<str>,
    /// Creation, seconds since 1970; `i64::MIN` where the source does not say.
    pub created_at_s: i64,
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

/// A shared text as JSON.
mod text {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(deserializer).map(Into::into)
    }
}

/// All Pods, by name and by address.
#[derive(Debug, Default)]
pub struct Pods {
    pods: HashMap<Name, Pod>,
    /// Several Pods claim an address while one goes and another comes. The first has it.
    at: HashMap<IpAddr, BTreeSet<Claimant>>,
    /// Addresses that more than one claims.
    contested: BTreeSet<IpAddr>,
}

/// A Pod that says it has an address. The newest is the least: the network gave it the address last. Of equal ones, as
/// files have them, it is the first by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant {
    created_at_s: Reverse<i64>,
    uid: Reverse<Arc<str>>,
    name: Name,
}

impl Claimant {
    fn of(pod: &Pod) -> Self {
        Claimant { created_at_s: Reverse(pod.created_at_s), uid: Reverse(pod.uid.clone()), name: pod.name.clone() }
    }
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
                let claimants = self.at.entry(*address).or_default();
                claimants.insert(Claimant::of(&pod));
                if claimants.len() > 1 {
                    self.contested.insert(*address);
                }
            }
        }
        self.pods.insert(pod.name.clone(), pod);
        true
    }

    /// Forgets a Pod; whether there was one.
    pub fn remove(&mut self, name: &Name) -> bool {
        let Some(pod) = self.pods.remove(name) else { return false };
        let claimant = Claimant::of(&pod);
        for address in &pod.addresses {
            if let Some(claimants) = self.at.get_mut(address) {
                claimants.remove(&claimant);
                if claimants.len() < 2 {
                    self.contested.remove(address);
                }
                if claimants.is_empty() {
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

    /// The Pod that has that address; the newest while several claim it.
    pub fn at(&self, address: IpAddr) -> Option<&Pod> {
        self.at.get(&address)?.first().and_then(|claimant| self.pods.get(&claimant.name))
    }

    /// Whether a Pod has an address that it claims.
    pub fn has(&self, pod: &Pod, address: IpAddr) -> bool {
        self.at(address).is_some_and(|owner| owner.name == pod.name)
    }

    /// Addresses that several Pods claim, in order, with all of these: the one that has it first.
    pub fn contested(&self) -> impl ExactSizeIterator<Item = (IpAddr, Vec<&Name>)> {
        self.contested.iter().map(|address| {
            let claimants = self.at.get(address).into_iter().flatten();
            (*address, claimants.map(|claimant| &claimant.name).collect())
        })
    }

    /// That Pod and those that claim an address of it.
    pub fn rivals(&self, name: &Name) -> BTreeSet<Name> {
        let addresses = self.pods.get(name).into_iter().flat_map(|pod| &pod.addresses);
        let claimants = addresses.filter_map(|address| self.at.get(address)).flatten();
        claimants.map(|claimant| &claimant.name).chain([name]).cloned().collect()
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

    /// Addresses of both families by their last part.
    fn of_both(last: u8) -> [IpAddr; 2] {
        [IpAddr::from([10, 244, 1, last]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)])]
    }

    fn pod(name: u8, (created_at_s, uid): (i64, u8), addresses: &[u8], host_network: bool, ended: bool) -> Pod {
        Pod {
            name: Name { namespace: "shop".into(), name: format!("p{name}") },
            uid: format!("u{uid}").into(),
            created_at_s,
            labels: BTreeMap::new(),
            addresses: addresses.iter().flat_map(|last| of_both(*last)).collect(),
            node: "w1".into(),
            host_network,
            ended,
            ports: Vec::new(),
        }
    }

    proptest! {
        /// C-024: the index always names the Pod that a walk over all of them finds: the newest that says it has the
        /// address.
        #[test]
        fn the_index_says_what_a_walk_says(steps in prop::collection::vec(
            ((0u8..5, (0i64..3, 0u8..2)), prop::collection::btree_set(0u8..6, 0..3), any::<bool>(), any::<bool>(), 0u8..4),
            0..60,
        )) {
            let mut pods = Pods::default();
            let mut all: BTreeMap<Name, Pod> = BTreeMap::new();
            for ((name, age), addresses, host_network, ended, dice) in steps {
                let new = pod(name, age, &addresses.into_iter().collect::<Vec<_>>(), host_network, ended);
                if dice == 0 {
                    prop_assert_eq!(pods.remove(&new.name), all.remove(&new.name).is_some());
                } else {
                    prop_assert_eq!(pods.insert(new.clone()), all.get(&new.name) != Some(&new));
                    all.insert(new.name.clone(), new);
                }
                let mut contested = Vec::new();
                for address in (0..6).flat_map(of_both) {
                    let claims = |pod: &&Pod| pod.owns_addresses() && pod.addresses.contains(&address);
                    let mut by_walk: Vec<&Pod> = all.values().filter(claims).collect();
                    // Stable: of equal ones the first by name stays first.
                    by_walk.sort_by(|a, b| (b.created_at_s, &b.uid).cmp(&(a.created_at_s, &a.uid)));
                    prop_assert_eq!(pods.at(address), by_walk.first().copied());
                    if by_walk.len() > 1 {
                        contested.push((address, by_walk.iter().map(|pod| &pod.name).collect::<Vec<_>>()));
                    }
                }
                contested.sort();
                prop_assert_eq!(pods.contested().collect::<Vec<_>>(), contested);
            }
        }
    }
}
