//! Who has which address, and who may join.
//!
//! Owns the rules of sharing (M-010 … M-012), which are those of MetalLB. Refuses to know pools.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::request::{Port, Request};
use super::runs::Runs;
use crate::model::Name;
use crate::model::addresspool::AddressRange;

/// Addresses with the same key that are looked at before a free one is taken. Only when there is none, all are.
const SHARED_LOOKED_AT_MAX: usize = 256;

/// What Services that share an address must have in common (M-010).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// Value of the annotation; empty: does not share.
    sharing: String,
    /// Selector under `externalTrafficPolicy: Local`; absent under Cluster.
    backend: Option<String>,
}

/// One address that is used.
#[derive(Debug)]
struct Use {
    /// That of all holders.
    key: Key,
    /// Never empty.
    holders: BTreeSet<Name>,
    ports: BTreeMap<Port, Name>,
}

/// Who has which address.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Let Services share whose selectors differ (M-012).
    relaxed: bool,
    uses: BTreeMap<IpAddr, Use>,
    /// Addresses of Services that are not ours.
    foreign: BTreeMap<IpAddr, BTreeSet<Name>>,
    /// All of both.
    occupied: Runs,
    /// Addresses whose holders share, by what they have in common.
    shared: BTreeMap<Key, BTreeSet<IpAddr>>,
}

impl Ledger {
    /// Nobody has anything. `relaxed`: Services share whatever their selectors and traffic policies are (M-012).
    pub(super) fn new(relaxed: bool) -> Self {
        Ledger { relaxed, ..Ledger::default() }
    }

    /// Takes everything away from our Services.
    pub(super) fn forget(&mut self) {
        self.shared.clear();
        for address in std::mem::take(&mut self.uses).into_keys() {
            if !self.foreign.contains_key(&address) {
                self.occupied.remove(address);
            }
        }
    }

    /// The end of the run of occupied addresses around `address`; absent when it is free.
    pub(super) fn occupied_until(&self, address: IpAddr) -> Option<IpAddr> {
        self.occupied.end_of(address)
    }

    /// Whether the Service may have `address` beside those who have it, itself left out; else who is in the way. That
    /// it belongs to a Service that is not ours is not looked at.
    pub(super) fn may_hold(&self, address: IpAddr, request: &Request) -> Result<(), String> {
        let Some(used) = self.uses.get(&address) else { return Ok(()) };
        let Some(other) = used.holders.iter().find(|holder| **holder != request.name) else {
            return Ok(()); // M-011: the only one may change its key in place
        };
        let key = self.key(request);
        if used.key.sharing.is_empty() {
            return Err(format!("{address} belongs to {other}, which does not share it"));
        }
        if key.sharing != used.key.sharing {
            let own = if key.sharing.is_empty() { "none".into() } else { format!("{:?}", key.sharing) };
            return Err(format!(
                "{address} belongs to {other} with the sharing key {:?}; here it is {own}",
                used.key.sharing
            ));
        }
        if key.backend != used.key.backend {
            let why = match (&key.backend, &used.key.backend) {
                (Some(_), Some(_)) => "both have externalTrafficPolicy Local, and their selectors differ",
                _ => "only one of them has externalTrafficPolicy Local",
            };
            return Err(format!("{address} belongs to {other}, and cannot be shared: {why}"));
        }
        for port in &request.ports {
            if let Some(owner) = used.ports.get(port).filter(|owner| **owner != request.name) {
                return Err(format!("{} of {address} belongs to {owner}", port_words(*port)));
            }
        }
        Ok(())
    }

    /// Whether `address` belongs to a Service that is not ours; which.
    pub(super) fn foreign(&self, address: IpAddr) -> Option<&Name> {
        self.foreign.get(&address)?.first()
    }

    /// Gives `address` to the Service, which [`Ledger::may_hold`] it; what it had of it before is replaced.
    pub(super) fn give(&mut self, address: IpAddr, request: &Request) {
        self.take_back(address, &request.name);
        let key = self.key(request);
        let used = self.uses.entry(address).or_insert_with(|| Use {
            key: key.clone(),
            holders: BTreeSet::new(),
            ports: BTreeMap::new(),
        });
        used.holders.insert(request.name.clone());
        used.ports.extend(request.ports.iter().map(|port| (*port, request.name.clone())));
        if !key.sharing.is_empty() {
            self.shared.entry(key).or_default().insert(address);
        }
        self.occupied.insert(address);
    }

    /// Takes `address` away from a Service.
    pub(super) fn take_back(&mut self, address: IpAddr, name: &Name) {
        let Some(used) = self.uses.get_mut(&address) else { return };
        used.holders.remove(name);
        used.ports.retain(|_, owner| owner != name);
        if !used.holders.is_empty() {
            return;
        }
        if let Some(used) = self.uses.remove(&address)
            && let Some(addresses) = self.shared.get_mut(&used.key)
        {
            addresses.remove(&address);
            if addresses.is_empty() {
                self.shared.remove(&used.key);
            }
        }
        if !self.foreign.contains_key(&address) {
            self.occupied.remove(address);
        }
    }

    /// The lowest address in `ranges` that the Service may share; looks at some, or at all.
    pub(super) fn shareable(
        &self,
        request: &Request,
        ranges: &[AddressRange],
        all: bool,
        usable: impl Fn(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let addresses = self.shared.get(&self.key(request))?;
        let limit = if all { usize::MAX } else { SHARED_LOOKED_AT_MAX };
        let within = ranges.iter().flat_map(|range| addresses.range(range.first()..=range.last()));
        let fits = |address: &&IpAddr| {
            usable(**address) && self.foreign(**address).is_none() && self.may_hold(**address, request).is_ok()
        };
        within.take(limit).find(fits).copied()
    }

    /// Replaces what a Service that is not ours has: `before` is what it had.
    pub(super) fn occupy(&mut self, name: &Name, before: &[IpAddr], addresses: &[IpAddr]) {
        for address in before {
            if let Some(owners) = self.foreign.get_mut(address) {
                owners.remove(name);
                if owners.is_empty() {
                    self.foreign.remove(address);
                    if !self.uses.contains_key(address) {
                        self.occupied.remove(*address);
                    }
                }
            }
        }
        for address in addresses {
            self.foreign.entry(*address).or_default().insert(name.clone());
            self.occupied.insert(*address);
        }
    }

    /// How many addresses of a range our Services have.
    pub(super) fn used_in(&self, range: &AddressRange) -> u64 {
        self.uses.range(range.first()..=range.last()).count() as u64
    }

    /// Addresses of a range that anybody has.
    pub(super) fn occupied_in(&self, range: &AddressRange) -> impl Iterator<Item = IpAddr> {
        let bounds = range.first()..=range.last();
        let foreign = self.foreign.range(bounds.clone()).map(|(address, _)| *address);
        let foreign = foreign.filter(|address| !self.uses.contains_key(address));
        self.uses.range(bounds).map(|(address, _)| *address).chain(foreign)
    }

    fn key(&self, request: &Request) -> Key {
        let backend = request.backend.clone().filter(|_| !self.relaxed);
        Key { sharing: request.sharing.clone(), backend }
    }
}

fn port_words((protocol, port): Port) -> String {
    match port {
        0 => format!("every {protocol} port"),
        _ => format!("{port}/{protocol}"),
    }
}
