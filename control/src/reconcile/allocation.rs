//! Addresses for Services while this process leads: the allocator's decisions, and what they change.
//!
//! Owns what was decided and is not in status yet. Such an address is served here already, since status may name it only
//! when a dataplane has it (C-001). Other gateways learn it from status and from nowhere else: one carrier cannot
//! contradict itself, and an address that no status has named was told to nobody, so that a leader who dies takes no
//! promise with him. Refuses to choose addresses, which [`crate::allocate`] does, and to write them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::Reconciler;
use crate::allocate::{Allocator, Counts, Decision, PoolProblem, Refusal, Request, reserved};
use crate::config::Control;
use crate::crd::addresspool::AddressPoolStatus;
use crate::model::service::{Service, ServiceType};
use crate::model::{Dirty, Name};
use crate::problem::{Problem, Severity};
use crate::resolve;
use crate::resolve::note::Note;
use crate::source::{ObjectKey, ObjectKind};
use crate::status::addresspool;
use crate::status::api::event::Tone;
use crate::status::own::OwnStatus;

/// Figures of pools are written so often at most: they change with every Service.
const POOLS_TOLD_EVERY: Duration = Duration::from_secs(1);

/// The allocator and its decisions.
#[derive(Debug)]
pub(super) struct Allocation {
    allocator: Allocator,
    /// Decisions in force, of Services that are ours.
    given: HashMap<Name, Given>,
    /// They were made in a term that is over; whoever leads now tells others by status.
    stale: bool,
    problems: Vec<PoolProblem>,
    /// Figures of pools may have changed.
    moved: bool,
    told_at: Option<Instant>,
    /// Conditions of pools as they were told last.
    told: HashMap<String, Vec<Condition>>,
}

/// What was decided about a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    /// Identity of the Service: another of its name has nothing yet (S-005).
    uid: String,
    addresses: Vec<IpAddr>,
    pools: String,
    refusal: Option<Refusal>,
}

impl Allocation {
    pub(super) fn new(control: &Control) -> Self {
        Allocation {
            allocator: Allocator::new(control),
            given: HashMap::new(),
            stale: false,
            problems: Vec::new(),
            moved: false,
            told_at: None,
            told: HashMap::new(),
        }
    }

    /// How much of each pool in force is used, IPv4 and IPv6.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&str, Counts, Counts)> {
        let counts = |pool, v4| self.allocator.counts(pool, v4);
        self.allocator.in_force().map(move |(pool, _)| (pool, counts(pool, true), counts(pool, false)))
    }

    /// Something is to be told of pools.
    pub(super) fn touch(&mut self) {
        self.moved = true;
    }

    /// The term is over: what was decided stays until somebody else's decisions are heard of.
    pub(super) fn suspend(&mut self) {
        self.stale = true;
    }

    /// Names of Services whose decision is void, because others decide now.
    pub(super) fn expire(&mut self) -> Vec<Name> {
        match std::mem::take(&mut self.stale) {
            true => self.given.drain().map(|(name, _)| name).collect(),
            false => Vec::new(),
        }
    }

    /// The Service with the addresses that it was given, if they are others than status says.
    pub(super) fn effective(&self, service: &Service) -> Option<Box<Service>> {
        let given = self.given.get(&service.name).filter(|given| given.uid == service.uid)?;
        let differs = given.addresses != service.addresses;
        differs.then(|| Box::new(Service { addresses: given.addresses.clone(), ..service.clone() }))
    }

    /// The pools that its addresses are of, by name.
    pub(super) fn pools_of(&self, name: &Name) -> Option<String> {
        self.given.get(name).map(|given| given.pools.clone()).filter(|pools| !pools.is_empty())
    }

    /// Whether it was decided about.
    pub(super) fn has_decided(&self, name: &Name, uid: &str) -> bool {
        !self.stale && self.given.get(name).is_some_and(|given| given.uid == uid)
    }

    /// Says why an address is missing, in the allocator's words instead of those of somebody who only sees none.
    pub(super) fn explain(&self, name: &Name, notes: &mut Vec<Note>) {
        let Some(refusal) = self.given.get(name).and_then(|given| given.refusal.as_ref()) else { return };
        notes.retain(|note| !(note.kind == "AddressAssigned" && note.reason == "NoAddress"));
        let (reason, message) = (refusal.reason.as_str(), refusal.message.clone());
        notes.push(Note { kind: "AddressAssigned", reason, message });
        notes.sort();
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.problems.iter().map(|problem| {
            let severity = if problem.refused { Severity::Error } else { Severity::Warning };
            Problem::new(severity, problem.reason, problem.message.clone()).about(pool_key(&problem.pool))
        })
    }
}

impl Reconciler {
    /// Decides about all Services anew, those first that have addresses (M-006).
    pub(super) fn begin_allocation(&mut self) {
        if !self.file.control.allocate {
            return;
        }
        self.allocation.allocator = Allocator::new(&self.file.control);
        self.allocation.stale = false;
        self.rule_allocation();
        let mut requests = Vec::new();
        for name in self.model.services() {
            let Some(service) = self.model.service(name) else { continue };
            match resolve::service::is_balanced_here(service, &self.site) {
                false => self.allocation.allocator.occupy(name, foreign(service)),
                // C-001: who has nothing yet is held first.
                true if self.office.is_held(name) || !service.addresses.is_empty() => {
                    requests.push(Request::new(service, &service.addresses));
                }
                true => {}
            }
        }
        for (name, addresses) in self.office.ingress().filter(|(name, _)| self.model.service(name).is_none()) {
            self.allocation.allocator.occupy(name, addresses);
        }
        let before: Vec<Name> = self.allocation.given.drain().map(|(name, _)| name).collect();
        let mut changed: BTreeSet<Name> = before.into_iter().collect();
        for (name, decision) in self.allocation.allocator.adopt(requests) {
            self.give(&name, decision);
            changed.insert(name);
        }
        self.resolve_services(changed);
    }

    /// Pools, the labels of namespaces, and what is never given out.
    fn rule_allocation(&mut self) {
        let labels = self.model.namespaces().map(|namespace| (namespace.name.clone(), namespace.labels().clone()));
        let namespaces = labels.collect();
        let pools = self.model.pools().cloned().collect();
        let never = reserved(&self.model, &self.file.control);
        self.allocation.allocator.set_namespaces(namespaces);
        self.allocation.problems = self.allocation.allocator.set_pools(pools, never);
        self.allocation.moved = true;
    }

    /// Something that the rules depend on may have changed.
    pub(super) fn reconsider(&mut self, dirty: &Dirty) {
        if !self.allocates() {
            return;
        }
        if dirty.pools || dirty.namespaces || !dirty.nodes.is_empty() {
            self.rule_allocation();
        }
        self.serve_waiting();
    }

    /// Whether this process decides about addresses now.
    pub(super) fn allocates(&self) -> bool {
        self.file.control.allocate && self.office.in_force().is_some()
    }

    /// Those that wait may be served now (M-007).
    pub(super) fn serve_waiting(&mut self) {
        let mut changed = BTreeSet::new();
        for (name, decision) in self.allocation.allocator.reconsider() {
            if self.give(&name, decision) {
                changed.insert(name);
            }
        }
        self.resolve_services(changed);
    }

    /// Decides about a Service that is ours and held.
    pub(super) fn allocate(&mut self, name: &Name) {
        let Some(service) = self.model.service(name) else { return };
        self.allocation.allocator.occupy(name, &[]);
        let decision = self.allocation.allocator.assign(Request::new(service, &service.addresses));
        if self.give(name, decision) {
            self.resolve_services([name.clone()].into());
        }
        self.serve_waiting();
    }

    /// Nobody else gets what a Service has that cannot be read now.
    pub(super) fn reserve(&mut self, name: &Name) {
        if self.allocates() && !self.allocation.given.contains_key(name) {
            self.allocation.allocator.occupy(name, self.office.ingress_of(name));
        }
    }

    /// What a Service had is free again: it is gone, let go, or somebody else's.
    pub(super) fn release(&mut self, name: &Name) {
        if !self.allocates() {
            return;
        }
        let foreign = self.model.service(name).map_or(&[][..], foreign);
        self.allocation.allocator.occupy(name, foreign);
        let had = self.allocation.allocator.release(name);
        if self.allocation.given.remove(name).is_some() {
            tracing::debug!(service = %name, ?had, "addresses released");
            self.allocation.moved = true;
            self.resolve_services([name.clone()].into());
        }
        self.serve_waiting();
    }

    /// Takes a decision in; whether it changes anything.
    fn give(&mut self, name: &Name, decision: Decision) -> bool {
        for cleared in &decision.cleared {
            let note = format!("{} is taken back: {}", cleared.address, cleared.why);
            self.office.tell(name, Tone::Normal, "ClearAssignment", note); // M-005
        }
        let uid = self.model.service(name).map(|service| service.uid.clone()).unwrap_or_default();
        let given = match decision.result {
            Ok(assignment) => Given {
                uid,
                pools: assignment.pool_names(),
                addresses: assignment.addresses,
                refusal: assignment.lacks,
            },
            Err(refusal) => Given { uid, addresses: Vec::new(), pools: String::new(), refusal: Some(refusal) },
        };
        if self.allocation.given.get(name) == Some(&given) {
            return false;
        }
        if let Some(refusal) = &given.refusal {
            let note = format!("Failed to allocate an address: {}", refusal.message);
            self.office.tell(name, Tone::Warning, "AllocationFailed", note); // M-004, M-007
        }
        self.allocation.given.insert(name.clone(), given);
        self.allocation.moved = true;
        true
    }

    /// Tells how much of each pool is used, if that may have changed and was not told a moment ago.
    pub(super) fn tell_pools(&mut self) {
        let early = self.allocation.told_at.is_some_and(|at| at.elapsed() < POOLS_TOLD_EVERY);
        if !self.allocates() || !self.allocation.moved || early {
            return;
        }
        self.allocation.moved = false;
        self.allocation.told_at = Some(Instant::now());
        let mut statuses: Vec<(String, AddressPoolStatus)> = Vec::new();
        let before = |pool: &str| self.allocation.told.get(pool).map_or(&[][..], Vec::as_slice);
        for pool in self.model.pools() {
            let invalid = self.invalid.get(&pool_key(&pool.name)).map(ToString::to_string);
            let Allocation { allocator, problems, .. } = &self.allocation;
            let status = addresspool::status(pool, allocator, problems, invalid.as_deref(), before(&pool.name));
            statuses.push((pool.name.clone(), status));
        }
        let unread =
            self.invalid.iter().filter(|(key, _)| key.kind == ObjectKind::AddressPool && !self.model.holds(key));
        for (key, problem) in unread {
            statuses.push((key.name.clone(), addresspool::unread(&problem.to_string(), before(&key.name))));
        }
        self.allocation.told =
            statuses.iter().map(|(name, status)| (name.clone(), status.conditions.clone())).collect();
        for (name, status) in statuses {
            self.office.tell_own(OwnStatus::new(ObjectKind::AddressPool, &name, &status));
        }
    }
}

fn pool_key(name: &str) -> ObjectKey {
    ObjectKey { kind: ObjectKind::AddressPool, namespace: String::new(), name: name.into() }
}

/// Addresses of a Service that somebody else looks after.
fn foreign(service: &Service) -> &[IpAddr] {
    match service.service_type {
        ServiceType::LoadBalancer => &service.addresses,
        _ => &[],
    }
}
