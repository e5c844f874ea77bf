//! Who may reach whom: from changed policies, pods and namespaces to what the dataplane is to have.
//!
//! Owns what is wrong with policies that are used all the same: fields read as closed, and priorities that two of a tier
//! share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hashbrown::HashSet;
use tidegate_api::resource::{Body, DeliveryMode, Kind, ResourceKey, Service, Tier};

use super::Reconciler;
use crate::model::Name;
use crate::model::policy::{Policy, PolicyKey, PolicyKind};
use crate::policies::{Changed, Policies as Index};
use crate::problem::{Place, Problem, Severity};
use crate::resolve::note::Note;
use crate::source::{ObjectKey, ObjectKind};

/// Complaints listed of one policy.
const COMPLAINTS_TOLD_MAX: usize = 8;
/// Policies that are listed; of the others only the number is told.
const POLICIES_TOLD_MAX: usize = 100;

/// Policies named in one problem.
const NAMES_TOLD_MAX: usize = 8;

/// The index, and what is found wrong.
#[derive(Default)]
pub(super) struct Policies {
    index: Index,
    complaints: BTreeMap<PolicyKey, Vec<(String, String)>>,
    /// ClusterNetworkPolicies by tier and priority (P-101).
    priorities: BTreeMap<Tier, BTreeSet<PolicyKey>>,
    tiers: BTreeMap<PolicyKey, Tier>,
}

impl Reconciler {
    /// Resolves again what `changed` touches, but for Pods: those whose identity may be another now are added to it.
    pub(super) fn resolve_policies(&mut self, changed: &mut Changed) {
        if *changed == Changed::default() {
            return;
        }
        for key in &changed.policies {
            self.policies.judge(key, self.model.policies().get(key));
        }
        for (key, resource) in self.model.resolve_policies(&mut self.policies.index, changed) {
            match key.name.split_once('/') {
                Some((namespace, name)) if key.kind == Kind::Pod => {
                    changed.pods.insert(Name { namespace: namespace.into(), name: name.into() });
                }
                _ => drop(self.want(key, resource)),
            }
        }
    }

    /// Services with an endpoint that policies isolate now, or do not any more (P-046). They are looked for among those of
    /// the pods' namespaces: policies change seldom.
    pub(super) fn reconsidered_by_policies(&mut self) -> BTreeSet<Name> {
        let mut addresses: BTreeMap<String, HashSet<IpAddr>> = BTreeMap::new();
        for name in self.policies.index.take_reconsidered() {
            if let Some(pod) = self.model.pods().get(&name) {
                addresses.entry(name.namespace).or_default().extend(&pod.addresses);
            }
        }
        let mut services = BTreeSet::new();
        for (namespace, addresses) in addresses {
            let prefix = format!("{namespace}/");
            let from = ResourceKey { kind: Kind::Service, name: prefix.clone() };
            let of_namespace = self.desired.resources.range(from..);
            for (key, resource) in of_namespace.take_while(|(key, _)| key.name.starts_with(&prefix)) {
                let Body::Service(service) = &resource.body else { break };
                let backends = service.ports.iter().flat_map(|port| &port.backends);
                if backends.into_iter().any(|backend| addresses.contains(&backend.address)) {
                    services.insert(Name { namespace: namespace.clone(), name: key.name[prefix.len()..].into() });
                }
            }
        }
        services
    }

    /// P-046: what workers see of clients of a Service whose endpoints policies isolate.
    pub(super) fn note_hidden_clients(&self, service: &Service, notes: &mut Vec<Note>) {
        if self.policies.index.is_empty() {
            return;
        }
        let hidden = service.ports.iter().filter(|port| port.mode == DeliveryMode::Fullnat);
        let pods = hidden.flat_map(|port| &port.backends).filter_map(|backend| self.model.pods().at(backend.address));
        let Some((pod, policy)) =
            pods.into_iter().find_map(|pod| Some((pod, self.policies.index.isolating(&pod.name)?)))
        else {
            return;
        };
        let message = format!(
            "{policy} isolates {}, and in fullnat the CNI on its worker sees the gateway's address instead of the client's: \
             it judges by that, whatever the policy says of clients; with externalTrafficPolicy Local and node-dsr it sees \
             the client",
            pod.name
        );
        notes.push(Note { kind: "PolicySeesClients", reason: "ClientSourceHiddenFromPolicy", message });
        notes.sort();
    }

    /// What is wrong with policies that are used.
    pub(super) fn policy_problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let at = |problem: Problem, key: &PolicyKey| {
            let object = object_key(key);
            Problem { place: self.places.get(&object).cloned(), ..problem.about(&object) }
        };
        for (key, complaints) in self.policies.complaints.iter().take(POLICIES_TOLD_MAX) {
            for (field, message) in complaints.iter().take(COMPLAINTS_TOLD_MAX) {
                let problem = Problem::new(Severity::Error, "PolicyPartlyUnreadable", message.clone());
                problems.push(at(problem, key).in_field(field.clone()));
            }
        }
        if let Some(more) = self.policies.complaints.len().checked_sub(POLICIES_TOLD_MAX).filter(|more| *more > 0) {
            let message = format!("{more} more policies have fields that cannot be worked with");
            problems.push(Problem::new(Severity::Error, "PolicyPartlyUnreadable", message));
        }
        let place = |object: &ObjectKey| self.places.get(object).cloned();
        let shared = self.policies.priorities.values().filter_map(|keys| equal_priorities(keys, place));
        problems.extend(shared.take(POLICIES_TOLD_MAX));
        problems
    }
}

impl Policies {
    /// What a Pod is known as; 0: no policy looks at it.
    pub(super) fn identity(&self, pod: &Name) -> u32 {
        self.index.identity(pod)
    }

    /// Notes what is to be told of a policy.
    fn judge(&mut self, key: &PolicyKey, policy: Option<&Policy>) {
        let before = match policy {
            Some(policy) if key.kind == PolicyKind::ClusterNetworkPolicy => self.tiers.insert(key.clone(), policy.tier),
            _ => self.tiers.remove(key),
        };
        if let Some(tier) = before
            && let Some(keys) = self.priorities.get_mut(&tier)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.priorities.remove(&tier);
            }
        }
        if let Some(tier) = self.tiers.get(key) {
            self.priorities.entry(*tier).or_default().insert(key.clone());
        }
        match policy.filter(|policy| !policy.complaints.is_empty()) {
            Some(policy) => drop(self.complaints.insert(key.clone(), policy.complaints.clone())),
            None => drop(self.complaints.remove(key)),
        }
    }
}

/// What is wrong with policies of one tier and priority, if they are more than one.
pub(crate) fn equal_priorities(
    keys: &BTreeSet<PolicyKey>,
    place: impl Fn(&ObjectKey) -> Option<Place>,
) -> Option<Problem> {
    let first = object_key(keys.first().filter(|_| keys.len() > 1)?);
    let names: Vec<&str> = keys.iter().take(NAMES_TOLD_MAX).map(|key| key.name.as_str()).collect();
    let more = if keys.len() > NAMES_TOLD_MAX { " and others" } else { "" };
    let message = format!(
        "{}{more} of one tier share a priority: their rules are asked in the order of their names, and elsewhere perhaps in \
         another",
        names.join(", ")
    );
    let problem = Problem::new(Severity::Warning, "EqualPriorities", message).about(&first);
    Some(Problem { place: place(&first), ..problem })
}

/// The object that a policy is.
pub(super) fn object_key(key: &PolicyKey) -> ObjectKey {
    let kind = match key.kind {
        PolicyKind::NetworkPolicy => ObjectKind::NetworkPolicy,
        PolicyKind::ClusterNetworkPolicy => ObjectKind::ClusterNetworkPolicy,
    };
    ObjectKey { kind, namespace: key.namespace.clone(), name: key.name.clone() }
}
