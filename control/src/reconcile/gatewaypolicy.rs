//! Which clients may reach which Services: from changed GatewayPolicies and Services to what the dataplane is to have.
//!
//! Owns when these are resolved again. A policy costs itself; a Service that comes, goes or has other labels costs those
//! policies that choose Services by what they are like.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tidegate_api::resource::{Body, Kind, ResourceKey};

use super::Reconciler;
use crate::model::{Dirty, Name};
use crate::resolve::{self, gatewaypolicy};
use crate::source::{ObjectKey, ObjectKind};
use crate::status::own::{self, OwnStatus};

/// Statuses are told at most so often.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// What is known of GatewayPolicies beside the objects.
#[derive(Debug, Default)]
pub(super) struct Gates {
    /// Labels of Services, while some policy chooses by them.
    labels: Option<HashMap<Name, BTreeMap<String, String>>>,
    /// Something that statuses tell may have changed.
    moved: bool,
    told_at: Option<Instant>,
    /// Conditions as they were told last.
    told: BTreeMap<String, Vec<Condition>>,
}

impl Gates {
    /// What an object says of itself may have changed.
    pub(super) fn touch(&mut self) {
        self.moved = true;
    }
}

impl Reconciler {
    /// Resolves again what `dirty` touches. Before Services: limits before what they limit.
    pub(super) fn resolve_gates(&mut self, dirty: &Dirty) {
        let mut due = dirty.gateway_policies.clone();
        if self.are_services_others(dirty) {
            let selecting = self.model.gateway_policies().filter(|policy| policy.is_selecting());
            due.extend(selecting.map(|policy| policy.name.clone()));
        }
        self.gates.moved |= !due.is_empty();
        for name in due {
            let policy = self.model.gateway_policy(&name);
            let resource = policy.map(|policy| {
                let body = gatewaypolicy::resolve(policy, self.model.all_services());
                resolve::resource(name.clone(), Body::GatewayPolicy(body))
            });
            self.want(ResourceKey { kind: Kind::GatewayPolicy, name }, resource);
        }
    }

    /// Whether Services are others to those who choose by names and labels, if anybody does.
    fn are_services_others(&mut self, dirty: &Dirty) -> bool {
        if !self.model.gateway_policies().any(|policy| policy.is_selecting()) {
            self.gates.labels = None;
            return false;
        }
        let Some(labels) = &mut self.gates.labels else {
            let all = self.model.all_services().map(|service| (service.name.clone(), service.labels.clone()));
            self.gates.labels = Some(all.collect());
            return true;
        };
        let mut others = false;
        for name in &dirty.services {
            let now = self.model.service(name).map(|service| &service.labels);
            if labels.get(name) != now {
                others = true;
                match now {
                    Some(now) => drop(labels.insert(name.clone(), now.clone())),
                    None => drop(labels.remove(name)),
                }
            }
        }
        others
    }

    /// Tells what became of GatewayPolicies, if that may have changed and was not told a moment ago.
    pub(super) fn tell_gates(&mut self) {
        let early = self.gates.told_at.is_some_and(|at| at.elapsed() < TOLD_EVERY);
        if self.office.in_force().is_none() || !self.gates.moved || early {
            return;
        }
        (self.gates.moved, self.gates.told_at) = (false, Some(Instant::now()));
        let is_ours = |key: &&ObjectKey| key.kind == ObjectKind::GatewayPolicy && !self.model.holds(key);
        let unread = self.invalid.keys().filter(is_ours).map(|key| (key.name.as_str(), None));
        let held = self.model.gateway_policies().map(|policy| (policy.name.as_str(), Some(policy)));
        let mut statuses = Vec::new();
        for (name, policy) in held.chain(unread) {
            let about = gate_key(name);
            let trouble = self.invalid.get(&about).map(|problem| ("Invalid", problem.to_string()));
            let before = self.gates.told.get(name).map_or(&[][..], Vec::as_slice);
            let generation = policy.and_then(|policy| policy.generation);
            let is_audit = policy.is_some_and(|policy| policy.audit);
            let status = own::gateway_policy(generation, self.services_of(name), is_audit, trouble, before);
            statuses.push((name.to_owned(), OwnStatus::new(about.kind, name, &status), status.conditions));
        }
        self.gates.told.clear();
        for (name, own, conditions) in statuses {
            self.gates.told.insert(name, conditions);
            self.office.tell_own(own);
        }
    }

    /// How many Services a policy speaks of; `None`: of all.
    fn services_of(&self, policy: &str) -> Option<usize> {
        let key = ResourceKey { kind: Kind::GatewayPolicy, name: policy.into() };
        let Some(Body::GatewayPolicy(policy)) = self.desired.resources.get(&key).map(|resource| &resource.body) else {
            return Some(0);
        };
        let mut names = BTreeSet::new();
        for rule in &policy.rules {
            names.extend(rule.services.as_ref()?);
        }
        Some(names.len())
    }
}

/// The object of that name.
fn gate_key(name: &str) -> ObjectKey {
    ObjectKey { kind: ObjectKind::GatewayPolicy, namespace: String::new(), name: name.into() }
}
