//! Pods: one row per address, beside a row of backends whose epoch the pod's flows remember.
//!
//! An address keeps its numbers for as long as a pod has it. Whatever decides about a pod's traffic moves the epoch of its
//! row: the pod itself, and each egress policy that it names ([`Pods::touch`]). Costs what changes: a pod some chunks, a policy
//! those of the pods that name it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use tidegate_api::resource::Pod;

use super::backend::{BackendKey, Backends};
use super::egress::Egresses;
use super::{Nanos, mapped_ip};
use crate::table::backend::{BackendRow, BackendState};
use crate::table::pod::{NO_SERVICE, PodRow};
use crate::table::{BackendId, PodId, Tables, family_of};

/// Which pod has which numbers.
#[derive(Debug, Default)]
pub struct Pods {
    known: HashMap<Arc<str>, Known>,
    namespaces: HashMap<Arc<str>, u32>,
    /// Pods that name a policy, by its name.
    selected: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    given: u32,
    free: Vec<PodId>,
}

#[derive(Debug)]
struct Known {
    addresses: Vec<([u8; 16], PodId, BackendId)>,
    egress: Vec<Arc<str>>,
}

impl Pods {
    /// Makes the rows of pod `name` say `pod`; whether any differs.
    pub fn write(
        &mut self,
        name: &str,
        pod: Option<&Pod>,
        backends: &mut Backends,
        egresses: &mut Egresses,
        tables: &mut Tables,
        now: Nanos,
    ) -> bool {
        let wanted: Vec<[u8; 16]> = pod.iter().flat_map(|pod| pod.addresses.iter().copied().map(mapped_ip)).collect();
        let name: Arc<str> = name.into();
        let mut known = self.known.remove(&name).unwrap_or(Known { addresses: Vec::new(), egress: Vec::new() });
        let mut changed = false;
        for policy in std::mem::take(&mut known.egress) {
            self.deselect(&policy, &name);
        }
        known.addresses.retain(|(address, id, backend)| {
            let stays = wanted.contains(address);
            if !stays {
                changed = true;
                self.free.push(*id);
                // Unless another pod has got the address in the same update.
                if tables.pods.pod(address).is_some_and(|row| row.backend == *backend) {
                    Arc::make_mut(&mut tables.pods).remove(address);
                }
                backends.leave(*backend, key(*address), Arc::make_mut(&mut tables.backends), now);
            }
            stays
        });
        let Some(pod) = pod else { return changed };
        let egress: Arc<[_]> = pod.egress.iter().map(|policy| egresses.id(policy)).collect();
        let namespace = self.namespace(&name);
        for address in wanted {
            let at = known.addresses.iter().find(|(held, ..)| *held == address).copied();
            let (_, id, backend) = at.unwrap_or_else(|| {
                let id = self.free.pop().unwrap_or_else(|| self.fresh());
                (address, id, BackendId::NONE)
            });
            let table = Arc::make_mut(&mut tables.backends);
            let held = Some(backend).filter(|backend| !backend.is_none());
            let family = family_of(&address);
            let (service, state) = (NO_SERVICE, BackendState::Active);
            let row = BackendRow { address, family, service, state, ..BackendRow::default() };
            let backend = backends.set_row(held, key(address), row, table, now);
            let row = PodRow { backend, namespace, identity: pod.identity, egress: Arc::clone(&egress) };
            if at.is_none() {
                known.addresses.push((address, id, backend));
            }
            if tables.pods.pod(&address) != Some(&row) {
                table.touch(backend);
                Arc::make_mut(&mut tables.pods).set(&address, id, row);
                changed = true;
            }
        }
        for policy in &pod.egress {
            let policy: Arc<str> = policy.as_str().into();
            self.selected.entry(Arc::clone(&policy)).or_default().insert(Arc::clone(&name));
            known.egress.push(policy);
        }
        self.known.insert(name, known);
        changed
    }

    /// Policy `name` differs: flows of the pods that name it look again.
    pub fn touch(&self, name: &str, tables: &mut Tables) {
        let Some(pods) = self.selected.get(name) else { return };
        let table = Arc::make_mut(&mut tables.backends);
        let known = pods.iter().filter_map(|pod| self.known.get(pod));
        known.flat_map(|known| &known.addresses).for_each(|(_, _, backend)| table.touch(*backend));
    }

    /// The pod of address `address`: flows of it look again.
    pub fn touch_address(address: IpAddr, tables: &mut Tables) {
        let backend = tables.pods.pod(&mapped_ip(address)).map(|row| row.backend);
        if let Some(backend) = backend {
            Arc::make_mut(&mut tables.backends).touch(backend);
        }
    }

    /// Whether a pod names policy `name`.
    pub fn is_named(&self, name: &str) -> bool {
        self.selected.contains_key(name)
    }

    fn deselect(&mut self, policy: &Arc<str>, pod: &Arc<str>) {
        if let Some(pods) = self.selected.get_mut(policy) {
            pods.remove(pod);
            if pods.is_empty() {
                self.selected.remove(policy);
            }
        }
    }

    fn fresh(&mut self) -> PodId {
        self.given += 1;
        PodId(self.given - 1)
    }

    fn namespace(&mut self, pod: &str) -> u32 {
        let name = pod.split_once('/').map_or("", |(namespace, _)| namespace);
        if let Some(number) = self.namespaces.get(name) {
            return *number;
        }
        let number = u32::try_from(self.namespaces.len()).unwrap_or(u32::MAX);
        self.namespaces.insert(name.into(), number);
        number
    }
}

fn key(address: [u8; 16]) -> BackendKey {
    (NO_SERVICE, address, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(addresses: &[&str], egress: &[&str]) -> Pod {
        Pod {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            node: "w1".into(),
            identity: 0,
            egress: egress.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn a_pod_keeps_its_numbers_and_what_decides_about_it_moves_its_epoch() {
        let (mut pods, mut backends, mut egresses) = (Pods::default(), Backends::default(), Egresses::default());
        let mut tables = Tables::default();
        let mut write = |pods: &mut Pods, tables: &mut Tables, name: &str, pod: Option<&Pod>| {
            pods.write(name, pod, &mut backends, &mut egresses, tables, 0)
        };
        let both = ["10.244.1.5", "fd00::5"];
        let at = both.map(|address| mapped_ip(address.parse().unwrap()));
        assert!(write(&mut pods, &mut tables, "shop/a", Some(&pod(&both, &["out"]))));
        assert!(!write(&mut pods, &mut tables, "shop/a", Some(&pod(&both, &["out"]))));
        let epochs = |tables: &Tables| {
            at.map(|at| tables.pods.pod(&at).map(|row| (row.backend, tables.backends.epoch(row.backend))))
        };
        let before = epochs(&tables);
        pods.touch("other", &mut tables);
        assert_eq!(epochs(&tables), before);
        pods.touch("out", &mut tables);
        let after = epochs(&tables);
        assert!(before.iter().zip(&after).all(|(a, b)| a.unwrap().0 == b.unwrap().0 && a.unwrap().1 != b.unwrap().1));
        assert!(write(&mut pods, &mut tables, "shop/a", Some(&pod(&both[..1], &[]))));
        assert_eq!(tables.pods.pod(&at[1]), None);
        assert!(tables.pods.pod(&at[0]).unwrap().egress.is_empty() && !pods.is_named("out"));
        assert!(write(&mut pods, &mut tables, "blog/b", Some(&pod(&both[1..], &["out"]))));
        let namespaces = at.map(|at| tables.pods.pod(&at).unwrap().namespace);
        assert_ne!(namespaces[0], namespaces[1], "other namespaces have other numbers");
        assert!(write(&mut pods, &mut tables, "shop/a", None));
        assert_eq!(tables.pods.len(), 1);
    }
}
