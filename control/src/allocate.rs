//! Addresses for Services of type LoadBalancer, out of pools.
//!
//! Owns who has which address: the rules of MetalLB for choosing (M-002), keeping (M-005) and sharing (M-010 … M-012), made
//! deterministic. Refuses to do I/O, to read a clock and to know the dataplane. Whether a Service is ours (S-001 … S-004)
//! is decided before it comes here.
//!
//! # How it is used
//!
//! ```text
//! let mut allocator = Allocator::new(&file.control);
//! // When all objects are known, on every gain of the lease too:
//! allocator.set_namespaces(labels by namespace);
//! let problems = allocator.set_pools(model.address_pools(), reserved(&model, &file.control));
//! for (name, decision) in allocator.adopt(all our Services as Requests) { … }           // M-006
//! // Then, for each batch of changes:
//! allocator.set_namespaces(…); allocator.set_pools(…); allocator.occupy(…);             // if they changed
//! allocator.release(&name);                                                             // gone, or not ours any more
//! let decision = allocator.assign(Request::new(service, &service.addresses));           // new or changed
//! for (name, decision) in allocator.reconsider() { … }                                  // M-007: who is concerned by it
//! ```
//!
//! A [`Decision`] is what holds from now on. `Ok`: these addresses, in order of `ipFamilies`, and the pools for the
//! annotation `…/ip-allocated-from-pool`. `Err`: no address at all (`AllocationFailed`); the Service waits and comes back
//! from [`Allocator::reconsider`] when it is served. `cleared`: what it had and has no more (`ClearAssignment`).
//!
//! Between two calls nothing changes: [`Allocator::assign`] with an equal request gives an equal answer, whatever status
//! says in the meantime. Status is believed once, for a Service that is not known yet.
//!
//! As long as there has never been a pool in force, Services keep what their status says ([`Allocator::is_idle`]).
//!
//! # Order
//!
//! Of Services that want the same, the elder gets it, and of equals the first by name. Within a pool, ranges are used up
//! in the order in which they are listed, the lowest free address first. A Service with a sharing key joins the lowest
//! address that it may share before it takes a free one. Tables are ordered maps and runs of addresses, so a decision
//! costs a few lookups however large pools are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::Control;
use crate::model::Name;
use crate::model::addresspool::{AddressPool, AddressRange};
use choice::{Chooser, Cursors};
use ledger::Ledger;
use pools::{Namespaces, Pools};
use request::Turn;

pub use decision::{Assignment, Cleared, Counts, Decision, Reason, Refusal};
pub use pools::PoolProblem;
pub use request::{Port, Request};
pub use reserved::{Reserved, reserved};

/// What one Service asks for.
mod request;
/// What the answer is.
mod decision;
/// What is never given out.
mod reserved;
/// The pools in force.
mod pools;
/// A set of addresses as runs.
mod runs;
/// Who has which address.
mod ledger;
/// Which addresses a Service gets.
mod choice;
#[cfg(test)]
mod tests;

/// Who has which address.
#[derive(Debug, Default)]
pub struct Allocator {
    pools: Pools,
    pool_problems: Vec<PoolProblem>,
    namespaces: Namespaces,
    ledger: Ledger,
    cursors: Cursors,
    services: BTreeMap<Name, Known>,
    /// Those that do not have all they want, in the order in which they are served.
    waiting: BTreeSet<Turn>,
    /// Addresses of Services that are not ours.
    foreign: BTreeMap<Name, Vec<IpAddr>>,
    /// There has been a pool in force.
    had_pools: bool,
    adopted: bool,
    /// Everything must be looked at again.
    rules_changed: bool,
    /// Somebody gave something up: those that wait may be served.
    freed: bool,
}

/// One Service.
#[derive(Debug)]
struct Known {
    request: Arc<Request>,
    held: Vec<IpAddr>,
    /// Status has not been believed yet.
    idle: bool,
    told: Result<Assignment, Refusal>,
    /// What it has lost since that was told.
    lost: Vec<Cleared>,
}

impl Allocator {
    /// An allocator that knows nothing yet.
    pub fn new(control: &Control) -> Self {
        Allocator { ledger: Ledger::new(control.relaxed_sharing), ..Allocator::default() }
    }

    /// Whether there has never been a pool in force: then nothing is given out and nothing taken away, and Services keep
    /// what their status says, as with `control.allocate: false`.
    pub fn is_idle(&self) -> bool {
        !self.had_pools
    }

    /// Replaces all pools and everything that is never given out (M-001, M-013). Tells all that is wrong with pools.
    /// What that means for Services is told by [`Allocator::reconsider`].
    pub fn set_pools(&mut self, pools: Vec<AddressPool>, reserved: Vec<Reserved>) -> Vec<PoolProblem> {
        if self.pools.is_set_to(&pools, &reserved) {
            return self.pool_problems.clone();
        }
        self.pool_problems = self.pools.set(pools, reserved);
        self.had_pools |= !self.pools.is_empty();
        self.cursors.clear();
        self.rules_changed = true;
        self.pool_problems.clone()
    }

    /// Replaces the labels of all namespaces, which `namespaceSelectors` of pools look at; one that is not among them
    /// has its name alone.
    pub fn set_namespaces(&mut self, namespaces: BTreeMap<String, BTreeMap<String, String>>) {
        if self.namespaces != namespaces {
            self.namespaces = namespaces;
            self.rules_changed = true;
        }
    }

    /// Replaces the addresses of a Service that is not ours: they are not given out as long as it has them.
    pub fn occupy(&mut self, name: &Name, addresses: &[IpAddr]) {
        let before = match addresses.is_empty() {
            true => self.foreign.remove(name),
            false => self.foreign.insert(name.clone(), addresses.to_vec()),
        };
        let before = before.unwrap_or_default();
        if before == addresses {
            return;
        }
        self.ledger.occupy(name, &before, addresses);
        self.cursors.clear();
        self.freed |= !before.is_empty();
    }

    /// Begins anew with all Services that are ours: first each one gets what its status says, then those that have less
    /// than they want are served (M-006). Tells the decision about every Service.
    pub fn adopt(&mut self, requests: impl IntoIterator<Item = Request>) -> Vec<(Name, Decision)> {
        self.ledger.forget();
        self.cursors.clear();
        self.services.clear();
        self.waiting.clear();
        self.adopted = true;
        let mut requests: Vec<Request> = requests.into_iter().collect();
        requests.sort_by_cached_key(Request::age);
        let names: Vec<Name> = requests.into_iter().map(|request| self.admit(Arc::new(request))).collect();
        self.serve();
        names.into_iter().filter_map(|name| self.decision(name)).collect()
    }

    /// Decides about one Service that is new or has changed. What it frees is offered to others by
    /// [`Allocator::reconsider`].
    pub fn assign(&mut self, request: Request) -> Decision {
        if !self.adopted {
            return starting();
        }
        if let Some(known) = self.services.get(&request.name) {
            if known.request.uid != request.uid {
                self.release(&request.name); // S-005, T-036: another Service of the same name
            } else if known.request.same_wish(&request) && !(known.idle || self.rules_changed) {
                return Decision { result: known.told.clone(), cleared: Vec::new() };
            }
        }
        let name = self.admit(Arc::new(request));
        self.settle(&name);
        self.decision(name).map_or_else(starting, |(_, decision)| decision)
    }

    /// Forgets a Service that is gone or not ours any more; what it had.
    pub fn release(&mut self, name: &Name) -> Vec<IpAddr> {
        let Some(known) = self.services.remove(name) else { return Vec::new() };
        self.waiting.remove(&known.request.turn());
        for address in &known.held {
            self.take_back(*address, name);
        }
        known.held
    }

    /// Decides again about everybody who is concerned by what has happened since the last call: all after a change of
    /// pools, else those that wait if something became free (M-007). Tells the decisions that are new.
    pub fn reconsider(&mut self) -> Vec<(Name, Decision)> {
        if !self.adopted || !(self.rules_changed || self.freed) {
            return Vec::new();
        }
        if self.rules_changed {
            let mut all: Vec<Arc<Request>> = self.services.values().map(|known| known.request.clone()).collect();
            all.sort_by_cached_key(|request| request.age());
            for request in all {
                self.admit(request);
            }
        }
        self.serve().into_iter().filter_map(|name| self.decision(name)).collect()
    }

    /// Names of the Services that have less than they want, the eldest first.
    pub fn waiting(&self) -> impl Iterator<Item = &Name> {
        self.waiting.iter().map(|(.., name)| name)
    }

    /// What a Service has.
    pub fn held_by(&self, name: &Name) -> &[IpAddr] {
        self.services.get(name).map_or(&[], |known| &known.held)
    }

    /// Names of the pools in force, with the ranges that are.
    pub fn in_force(&self) -> impl Iterator<Item = (&str, &[AddressRange])> {
        self.pools.iter().map(|pool| (&*pool.name, pool.config.ranges.as_slice()))
    }

    /// How much of a pool is used in one family; costs a step per address used. Nothing for a pool not in force.
    pub fn counts(&self, pool: &str, v4: bool) -> Counts {
        let Some(pool) = self.pools.get(pool) else { return Counts::default() };
        let small = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        let all = pool.config.ranges.iter().filter(|range| range.is_ipv4() == v4);
        let assigned = all.map(|range| self.ledger.used_in(range)).fold(0, u64::saturating_add);
        let mut counts = Counts { assigned, ..Counts::default() };
        for range in pool.usable(v4) {
            let total = range.count(pool.config.avoid_buggy);
            let occupied = self.ledger.occupied_in(range).filter(|address| pool.config.contains(*address)).count();
            counts.total = counts.total.saturating_add(small(total));
            counts.available = counts.available.saturating_add(small(total - occupied as u128));
        }
        counts
    }

    /// Takes a Service in with what it may keep of what it has, and lets it wait for the rest.
    fn admit(&mut self, request: Arc<Request>) -> Name {
        let name = request.name.clone();
        let before = self.services.remove(&name);
        let mut known = Known {
            request: request.clone(),
            held: Vec::new(),
            idle: self.is_idle(),
            told: before.as_ref().map_or_else(|| starting().result, |before| before.told.clone()),
            lost: Vec::new(),
        };
        let had = match &before {
            Some(before) if !before.idle => before.held.clone(),
            _ => request.status.clone(),
        };
        if let Some(before) = before {
            self.waiting.remove(&before.request.turn());
            // Whoever shares its addresses may find room where it was.
            self.freed |= !before.request.same_claims(&request);
            known.lost = before.lost;
        }
        for address in had.into_iter().filter(|_| !known.idle) {
            if known.held.contains(&address) {
                continue;
            }
            match self.may_keep(address, &request) {
                Ok(()) => {
                    self.ledger.give(address, &request);
                    known.held.push(address);
                }
                Err(why) => {
                    self.take_back(address, &name);
                    known.lost.push(Cleared { address, why });
                }
            }
        }
        self.waiting.insert(request.turn());
        self.services.insert(name.clone(), known);
        name
    }

    /// Whether a Service may keep an address that it has; else why not (M-005).
    fn may_keep(&self, address: IpAddr, request: &Request) -> Result<(), String> {
        let Some(pool) = self.pools.of(address) else {
            return Err(format!("{address} is in no AddressPool in force"));
        };
        if !pool.permits(request, &self.namespaces) {
            return Err(format!("AddressPool {} is not for this Service any more", pool.name));
        }
        if let Some(asked) = request.pool.as_deref().filter(|asked| **asked != *pool.name) {
            return Err(format!("AddressPool {asked} is asked for, and {address} is in {}", pool.name));
        }
        if !request.addresses.is_empty() && !request.addresses.contains(&address) {
            return Err(format!("other addresses than {address} are asked for"));
        }
        if !request.wants(address.is_ipv4()) {
            return Err(format!("the family of {address} is not in ipFamilies any more"));
        }
        self.ledger.may_hold(address, request)
    }

    /// Gives a Service what it waits for, or nothing at all.
    fn settle(&mut self, name: &Name) {
        let Some(known) = self.services.get_mut(name) else { return };
        let request = known.request.clone();
        if known.idle {
            known.told = by_status(&request);
            if known.told.is_ok() {
                self.waiting.remove(&request.turn());
            }
            return;
        }
        let mut chooser = Chooser {
            pools: &self.pools,
            namespaces: &self.namespaces,
            ledger: &self.ledger,
            cursors: &mut self.cursors,
        };
        match chooser.choose(&request, &known.held) {
            Ok(choice) => {
                for address in choice.addresses {
                    self.ledger.give(address, &request);
                    known.held.push(address);
                }
                known.held.sort_by_key(|address| request.rank(*address));
                if choice.lacks.is_none() {
                    self.waiting.remove(&request.turn());
                }
                let pool = |address: &IpAddr| self.pools.of(*address).map(|pool| pool.name.clone());
                known.told = Ok(Assignment {
                    addresses: known.held.clone(),
                    pools: known.held.iter().filter_map(pool).collect(),
                    lacks: choice.lacks,
                });
            }
            Err(refusal) => {
                let given_up = std::mem::take(&mut known.held);
                let why = |address: &IpAddr| Cleared { address: *address, why: refusal.message.clone() };
                known.lost.extend(given_up.iter().map(why));
                known.told = Err(refusal);
                for address in given_up {
                    self.take_back(address, name);
                }
            }
        }
    }

    /// Settles those that wait, the eldest first, until nothing becomes free by it. Names of those whose decision is new.
    fn serve(&mut self) -> Vec<Name> {
        self.rules_changed = false;
        let mut before: BTreeMap<Name, Result<Assignment, Refusal>> = BTreeMap::new();
        loop {
            self.freed = false;
            let waiting: Vec<Name> = self.waiting().cloned().collect();
            for name in waiting {
                if let Some(known) = self.services.get(&name) {
                    before.entry(name.clone()).or_insert_with(|| known.told.clone());
                }
                self.settle(&name);
            }
            if !self.freed {
                break;
            }
        }
        let is_new = |(name, told): &(Name, Result<Assignment, Refusal>)| {
            self.services.get(name).is_some_and(|known| known.told != *told || !known.lost.is_empty())
        };
        before.into_iter().filter(is_new).map(|(name, _)| name).collect()
    }

    /// What is to be told of a Service.
    fn decision(&mut self, name: Name) -> Option<(Name, Decision)> {
        let known = self.services.get_mut(&name)?;
        let decision = Decision { result: known.told.clone(), cleared: std::mem::take(&mut known.lost) };
        Some((name, decision))
    }

    fn take_back(&mut self, address: IpAddr, name: &Name) {
        self.ledger.take_back(address, name);
        if let Some(pool) = self.pools.of(address) {
            self.cursors.rewind(pool, address.is_ipv4());
        }
        self.freed = true;
    }
}

/// Nothing is decided before everything is known.
fn starting() -> Decision {
    let message = "addresses that Services have already are read first".into();
    Decision { result: Err(Refusal { reason: Reason::Starting, message }), cleared: Vec::new() }
}

/// Without pools: what status says.
fn by_status(request: &Request) -> Result<Assignment, Refusal> {
    match request.status.is_empty() {
        true => Err(Refusal { reason: Reason::NoPool, message: "there is no AddressPool".into() }),
        false => Ok(Assignment { addresses: request.status.clone(), ..Assignment::default() }),
    }
}
