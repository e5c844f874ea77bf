//! Frontends claimed by more than one Service (S-067).
//!
//! Owns the index from (address or prefix, protocol, port) to the Services that claim it, over all kinds of frontends,
//! and the rule who wins: the older one, then the one whose namespace/name sorts first. An address does not meet a prefix
//! that contains it, nor a port the frontend of every port: the exact one goes before by rule (S-068). The dataplane
//! applies the same rules to what it serves; this index exists so that the losing Service is told, also when the change
//! came from the other one.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use hashbrown::HashMap;
use ipnet::IpNet;
use tidegate_api::resource::{Protocol, Service, ServicePort};

use crate::model::Name;

/// One address or prefix, protocol and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frontend {
    /// The address as a prefix of full length, or the prefix.
    pub at: IpNet,
    /// L4 protocol.
    pub protocol: Protocol,
    /// Port, host order; 0: every port.
    pub port: u16,
}

/// Who claims what.
#[derive(Debug, Default)]
pub struct Claims {
    /// Claimants in order of precedence: creation time, then name.
    claimants: HashMap<Frontend, BTreeSet<(i64, Name)>>,
    claimed: HashMap<Name, Claimed>,
    /// How many frontends are at an address.
    at: HashMap<IpAddr, usize>,
}

/// A Service with all that it claims.
#[derive(Debug)]
struct Claimed {
    service: Box<Service>,
    frontends: Vec<Frontend>,
}

impl Claims {
    /// Replaces what `name` claims; returns the other Services on the frontends it gave up or took.
    pub fn replace(&mut self, name: &Name, service: Option<Box<Service>>) -> BTreeSet<Name> {
        let mut others = BTreeSet::new();
        if let Some(Claimed { service, frontends }) = self.claimed.remove(name) {
            for frontend in frontends {
                if let Some(address) = frontend.whole()
                    && let Some(count) = self.at.get_mut(&address)
                {
                    *count -= 1;
                    if *count == 0 {
                        self.at.remove(&address);
                    }
                }
                if let Some(claimants) = self.claimants.get_mut(&frontend) {
                    claimants.remove(&(service.created_at_s, name.clone()));
                    others.extend(claimants.iter().map(|(_, name)| name.clone()));
                    if claimants.is_empty() {
                        self.claimants.remove(&frontend);
                    }
                }
            }
        }
        let Some(service) = service else { return others };
        let frontends = frontends(&service);
        for frontend in &frontends {
            frontend.whole().into_iter().for_each(|address| *self.at.entry(address).or_default() += 1);
            let claimants = self.claimants.entry(*frontend).or_default();
            others.extend(claimants.iter().map(|(_, name)| name.clone()));
            claimants.insert((service.created_at_s, name.clone()));
        }
        self.claimed.insert(name.clone(), Claimed { service, frontends });
        others
    }

    /// The Service as it may be served: each port less the places where it is another's.
    pub fn granted(&self, name: &Name) -> Option<Service> {
        let mut service = Service::clone(&self.claimed.get(name)?.service);
        for (lost, _) in self.lost(name) {
            let at_node = service.node_addresses.iter().any(|address| IpNet::from(*address) == lost.at);
            let here = |port: &&mut ServicePort| {
                let number = if at_node { port.node_port } else { Some(port.port) };
                port.protocol == lost.protocol && number == Some(lost.port)
            };
            service.ports.iter_mut().filter(here).for_each(|port| port.not_at.push(lost.at));
        }
        Some(service)
    }

    /// Whether any Service is reached at this address; as part of a prefix of VIPs does not count.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.at.contains_key(&address)
    }

    /// Frontends of `name` that belong to another Service, with that Service.
    pub fn lost(&self, name: &Name) -> Vec<(Frontend, Name)> {
        let Some(Claimed { frontends, .. }) = self.claimed.get(name) else { return Vec::new() };
        let owner = |frontend: &Frontend| self.claimants.get(frontend)?.first().map(|(_, owner)| owner.clone());
        frontends
            .iter()
            .filter_map(|frontend| Some((*frontend, owner(frontend)?)))
            .filter(|(_, owner)| owner != name)
            .collect()
    }
}

/// All frontends of a Service.
fn frontends(service: &Service) -> Vec<Frontend> {
    let addresses = [&service.addresses, &service.external_addresses, &service.cluster_addresses];
    let exact = addresses.into_iter().flatten().copied().map(IpNet::from);
    let at: Vec<IpNet> = exact.chain(service.prefixes.iter().copied()).collect();
    let mut frontends = Vec::new();
    for port in &service.ports {
        let frontend = |at: IpNet, number: u16| Frontend { at, protocol: port.protocol, port: number };
        frontends.extend(at.iter().map(|at| frontend(*at, port.port)));
        let node = service.node_addresses.iter().map(|address: &IpAddr| IpNet::from(*address));
        frontends
            .extend(port.node_port.into_iter().flat_map(|number| node.clone().map(move |at| frontend(at, number))));
    }
    frontends
}

impl Frontend {
    /// Its address, unless it is a prefix of several.
    fn whole(&self) -> Option<IpAddr> {
        (self.at.prefix_len() == self.at.max_prefix_len()).then(|| self.at.addr())
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at.prefix_len() == self.at.max_prefix_len() {
            true => write!(f, "{}", self.at.addr())?,
            false => write!(f, "{}", self.at)?,
        }
        match self.port {
            0 => write!(f, " every port/{}", self.protocol),
            port => write!(f, " {port}/{}", self.protocol),
        }
    }
}
