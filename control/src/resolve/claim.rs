//! Frontends claimed by more than one Service (S-067).
//!
//! Owns the index from (address, protocol, port) to the Services that claim it, and the rule who wins: the older one,
//! then the one whose namespace/name sorts first. The dataplane applies the same rule to what it serves; this index
//! exists so that the losing Service is told, also when the change came from the other one.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hashbrown::HashMap;
use tidegate_api::resource::{Protocol, Service};

use crate::model::Name;

/// One address, protocol and port.
pub type Frontend = (IpAddr, Protocol, u16);

/// Who claims what.
#[derive(Debug, Default)]
pub struct Claims {
    /// Claimants in order of precedence: creation time, then name.
    claimants: HashMap<Frontend, BTreeSet<(i64, Name)>>,
    claimed: HashMap<Name, (i64, Vec<Frontend>)>,
}

impl Claims {
    /// Replaces what `name` claims; returns the other Services on the frontends it gave up or took.
    pub fn replace(&mut self, name: &Name, service: Option<&Service>) -> BTreeSet<Name> {
        let mut others = BTreeSet::new();
        if let Some((created_at_s, frontends)) = self.claimed.remove(name) {
            for frontend in frontends {
                if let Some(claimants) = self.claimants.get_mut(&frontend) {
                    claimants.remove(&(created_at_s, name.clone()));
                    others.extend(claimants.iter().map(|(_, name)| name.clone()));
                    if claimants.is_empty() {
                        self.claimants.remove(&frontend);
                    }
                }
            }
        }
        let Some(service) = service else { return others };
        let mut frontends = Vec::new();
        for address in &service.addresses {
            for port in &service.ports {
                let frontend = (*address, port.protocol, port.port);
                let claimants = self.claimants.entry(frontend).or_default();
                others.extend(claimants.iter().map(|(_, name)| name.clone()));
                claimants.insert((service.created_at_s, name.clone()));
                frontends.push(frontend);
            }
        }
        self.claimed.insert(name.clone(), (service.created_at_s, frontends));
        others
    }

    /// Frontends of `name` that belong to another Service, with that Service.
    pub fn lost(&self, name: &Name) -> Vec<(Frontend, Name)> {
        let Some((_, frontends)) = self.claimed.get(name) else { return Vec::new() };
        let owner = |frontend: &Frontend| self.claimants.get(frontend)?.first().map(|(_, owner)| owner.clone());
        frontends
            .iter()
            .filter_map(|frontend| Some((*frontend, owner(frontend)?)))
            .filter(|(_, owner)| owner != name)
            .collect()
    }
}
