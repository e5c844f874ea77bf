//! What leaves the cluster: policies, static translations, and the Pods they speak of.
//!
//! Owns when these are resolved again. A Pod that changes costs itself; a policy, a Namespace or an AddressPool, which
//! change seldom, cost a look at every Pod.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tidegate_api::resource::{Body, Kind, Resource, ResourceKey, StaticNat, UnknownPod};

use super::Reconciler;
use crate::model::addresspool::AddressPool;
use crate::model::egresspolicy::{Addresses, EgressPolicy};
use crate::model::pod::{Pod, Pods};
use crate::model::staticnat::Target;
use crate::model::{Dirty, Name};
use crate::problem::{Problem, Severity};
use crate::resolve::{self, egress, pod};
use crate::source::{ObjectKey, ObjectKind};
use crate::status::conflict::{ADDRESS_CONFLICT, ADDRESSES_OURS};
use crate::status::own::{self, OwnStatus};

/// Statuses are told at most so often.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// What there is to say about the kinds of this file.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// Why an object is not in force, or not as it is written.
    problems: BTreeMap<ObjectKey, Problem>,
    /// Addresses that policies have.
    addresses: BTreeSet<IpAddr>,
    /// Addresses of Services, as they were when policies were resolved: those that policies want too.
    contested: BTreeSet<IpAddr>,
    /// What static translations lead to.
    targets: Targets,
    /// Something that statuses tell may have changed.
    moved: bool,
    told_at: Option<Instant>,
    /// Conditions as they were told last.
    told: BTreeMap<ObjectKey, Vec<Condition>>,
}

/// Pods that static translations lead to: the dataplane has to know them, whatever else speaks of them.
#[derive(Debug, Default)]
struct Targets {
    pods: BTreeSet<Name>,
    addresses: BTreeSet<IpAddr>,
}

impl Targets {
    fn of<'m>(nats: impl Iterator<Item = &'m crate::model::staticnat::StaticNat>) -> Targets {
        let mut targets = Targets::default();
        for nat in nats {
            match &nat.target {
                Target::Pod(pod) => drop(targets.pods.insert(pod.clone())),
                Target::Address(address) => drop(targets.addresses.insert(*address)),
            }
        }
        targets
    }

    fn holds(&self, pod: &Pod) -> bool {
        self.pods.contains(&pod.name) || pod.addresses.iter().any(|address| self.addresses.contains(address))
    }

    /// Pods that are in one of the two alone.
    fn differing(&self, other: &Targets, pods: &Pods) -> BTreeSet<Name> {
        let by_address = self.addresses.symmetric_difference(&other.addresses);
        let by_address = by_address.filter_map(|address| pods.at(*address)).map(|pod| pod.name.clone());
        self.pods.symmetric_difference(&other.pods).cloned().chain(by_address).collect()
    }
}

impl Leaving {
    /// Conditions of an object as they were told last.
    pub(super) fn before(&self, about: &ObjectKey) -> &[Condition] {
        self.told.get(about).map_or(&[], Vec::as_slice)
    }

    /// What an object of these kinds says of itself may have changed.
    pub(super) fn touch(&mut self) {
        self.moved = true;
    }

    /// What is wrong with policies and static translations as they are written.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values()
    }
}

impl Reconciler {
    /// Resolves again what `dirty` touches. After Services and Nodes.
    pub(super) fn resolve_leaving(&mut self, dirty: &Dirty) {
        self.leaving.moved |= dirty.egress || !dirty.static_nats.is_empty() || !dirty.policies.pods.is_empty();
        let served = self.is_contested_anew();
        if dirty.egress || dirty.pools || !dirty.nodes.is_empty() || served {
            self.resolve_egress();
        }
        let everyone = dirty.egress || dirty.namespaces;
        let mut names: BTreeSet<Name> = match everyone {
            true => self
                .model
                .pods()
                .iter()
                .map(|pod| pod.name.clone())
                .chain(dirty.policies.pods.iter().cloned())
                .collect(),
            false => dirty.policies.pods.clone(),
        };
        if !dirty.static_nats.is_empty() {
            let before = std::mem::replace(&mut self.leaving.targets, Targets::of(self.model.static_nats()));
            names.extend(before.differing(&self.leaving.targets, self.model.pods()));
        }
        for name in &names {
            self.resolve_pod(name);
        }
        let is_touched = |target: &Target| match target {
            Target::Pod(pod) => dirty.policies.pods.contains(pod),
            // Whose it was cannot be told any more; there are few.
            Target::Address(_) => !dirty.policies.pods.is_empty(),
        };
        let nats: BTreeSet<String> =
            self.model.static_nats().filter(|nat| is_touched(&nat.target)).map(|nat| nat.name.clone()).collect();
        for name in nats.union(&dirty.static_nats) {
            self.resolve_static_nat(name);
        }
    }

    /// Whether a Service has come by an address that a policy has, or has left one that a policy would have.
    fn is_contested_anew(&self) -> bool {
        let leaving = &self.leaving;
        leaving.addresses.iter().any(|address| self.claims.has_address(*address))
            || leaving.contested.iter().any(|address| !self.claims.has_address(*address))
    }

    fn resolve_egress(&mut self) {
        let mut inside = egress::inside(self.model.nodes());
        inside.extend(&self.file.control.service_cidrs);
        let policies: BTreeSet<String> = self.model.egress().map(|policy| policy.name.clone()).collect();
        let gone: Vec<ResourceKey> = self.of_kind(Kind::Egress).filter(|key| !policies.contains(&key.name)).collect();
        for key in gone {
            self.want(key, None);
        }
        self.leaving.problems.retain(|key, _| key.kind != ObjectKind::EgressPolicy);
        (self.leaving.addresses, self.leaving.contested) = Default::default();
        for name in policies {
            self.resolve_policy(name, &inside);
        }
    }

    fn resolve_policy(&mut self, name: String, inside: &[IpNet]) {
        let Some(policy) = self.model.egress().find(|policy| policy.name == name) else { return };
        if policy.addresses == Addresses::Unreadable {
            // Pods under a policy that nobody knows are refused (N-111); one that the dataplane knows it keeps.
            self.want(ResourceKey { kind: Kind::Egress, name }, None);
            return;
        }
        let pool = match &policy.addresses {
            Addresses::Pool(pool) => self.model.pool(pool),
            Addresses::Listed(_) | Addresses::Unreadable => None,
        };
        let (asked, lacks) = match egress::addresses(policy, pool) {
            Ok(asked) => (asked, None),
            Err(reason) => (self.addresses_before(policy, pool), Some(reason)),
        };
        let (served, free): (Vec<IpAddr>, Vec<IpAddr>) =
            asked.into_iter().partition(|address| self.claims.has_address(*address));
        let about = own_key(ObjectKind::EgressPolicy, &name);
        let listed = matches!(policy.addresses, Addresses::Listed(_));
        let problem = if free.is_empty() {
            // Fail closed (N-111): its pods are refused for as long as it has no address.
            let reason = lacks.unwrap_or_else(|| "Services have all of its addresses".into());
            let message = format!("{reason}; its pods do not get out");
            Some(Problem::new(Severity::Error, "NoEgressAddress", message))
        } else if let Some(reason) = lacks {
            let message = format!("{reason}; the addresses that it had stay in use");
            Some(Problem::new(Severity::Error, "PoolTooLarge", message))
        } else if listed && !served.is_empty() {
            let served: Vec<String> = served.iter().map(ToString::to_string).collect();
            let message = format!("{} belong to Services and are left to them", served.join(", "));
            Some(Problem::new(Severity::Warning, "EgressAddressServed", message))
        } else {
            None
        };
        self.leaving.addresses.extend(&free);
        self.leaving.contested.extend(served);
        let egress = egress::resolve(policy, free, inside);
        let key = ResourceKey { kind: Kind::Egress, name: name.clone() };
        self.want(key, Some(resolve::resource(name, Body::Egress(egress))));
        if let Some(mut problem) = problem {
            problem = problem.about(&about);
            problem.place = self.places.get(&about).cloned();
            self.leaving.problems.insert(about, problem);
        }
    }

    /// What a policy has had of a pool that has become too large for it.
    fn addresses_before(&self, policy: &EgressPolicy, pool: Option<&AddressPool>) -> Vec<IpAddr> {
        let Some(pool) = pool else { return Vec::new() };
        let key = ResourceKey { kind: Kind::Egress, name: policy.name.clone() };
        let mut before = match self.desired.resources.get(&key) {
            Some(Resource { body: Body::Egress(egress), .. }) => egress.addresses.clone(),
            // Of an earlier run.
            _ => policy.told.addresses.iter().filter_map(|text| text.parse().ok()).collect(),
        };
        before.retain(|address| pool.contains(*address));
        before.sort_unstable();
        before
    }

    fn resolve_pod(&mut self, name: &Name) {
        let key = ResourceKey { kind: Kind::Pod, name: name.to_string() };
        let resource = self.pod_resource(name);
        self.want(key, resource);
    }

    fn pod_resource(&self, name: &Name) -> Option<Resource> {
        let pod = self.model.pods().get(name)?;
        let egress = egress::selecting(self.model.egress(), &self.model.namespace(&name.namespace), pod);
        let is_its_own = |address| self.model.pods().has(pod, address);
        let all = self.file.control.policy.unknown_pod == UnknownPod::Deny;
        let is_known = all || self.leaving.targets.holds(pod);
        pod::resolve(pod, self.policies.identity(name), egress, is_known, is_its_own)
    }

    fn resolve_static_nat(&mut self, name: &str) {
        let about = own_key(ObjectKind::StaticNat, name);
        let key = ResourceKey { kind: Kind::StaticNat, name: name.into() };
        self.leaving.problems.remove(&about);
        let nat = self.model.static_nats().find(|nat| nat.name == name);
        let resolved = nat.map(|nat| {
            let internal = egress::leads_to(&nat.target, self.model.pods(), nat.external.is_ipv4());
            internal.map(|internal| StaticNat { external: nat.external, internal, ports: nat.ports.clone() })
        });
        // The dataplane waits for a pod with that address: it is told all the same.
        let unknown = nat.and_then(|nat| match &nat.target {
            Target::Address(address) if self.model.pods().at(*address).is_none() => {
                Some(format!("no Pod has the address {address}"))
            }
            _ => None,
        });
        let reason = resolved.as_ref().and_then(|resolved| resolved.as_ref().err()).or(unknown.as_ref());
        let problem =
            reason.map(|reason| Problem::new(Severity::Warning, "NowhereToLead", format!("leads nowhere: {reason}")));
        let body = resolved.and_then(Result::ok).map(Body::StaticNat);
        self.want(key, body.map(|body| resolve::resource(name.into(), body)));
        if let Some(problem) = problem {
            let mut problem = problem.about(&about);
            problem.place = self.places.get(&about).cloned();
            self.leaving.problems.insert(about, problem);
        }
    }

    /// Tells what became of policies and static translations, if that may have changed and was not told a moment ago.
    pub(super) fn tell_leaving(&mut self) {
        let early = self.leaving.told_at.is_some_and(|at| at.elapsed() < TOLD_EVERY);
        if self.office.in_force().is_none() || !self.leaving.moved || early {
            return;
        }
        (self.leaving.moved, self.leaving.told_at) = (false, Some(Instant::now()));
        self.sum_carrying();
        let mut pods: BTreeMap<&str, usize> = BTreeMap::new();
        for key in self.of_kind(Kind::Pod) {
            let Some(Resource { body: Body::Pod(pod), .. }) = self.desired.resources.get(&key) else { continue };
            for name in &pod.egress {
                if let Some(policy) = self.model.egress().find(|policy| policy.name == *name) {
                    *pods.entry(&policy.name).or_default() += 1;
                }
            }
        }
        let mut statuses = Vec::new();
        for policy in self.model.egress() {
            let about = own_key(ObjectKind::EgressPolicy, &policy.name);
            let count = pods.get(policy.name.as_str()).copied().unwrap_or_default();
            if let Some(status) = self.egress_status(policy, count) {
                statuses.push((OwnStatus::new(about.kind, &about.name, &status), about, status.conditions));
            }
        }
        for nat in self.model.static_nats() {
            let about = own_key(ObjectKind::StaticNat, &nat.name);
            let before = self.leaving.before(&about);
            let mut status = own::static_nat(nat.generation, self.trouble(&about), before);
            status.conditions.extend(self.not_ours(&[nat.external], nat.generation, before));
            statuses.push((OwnStatus::new(about.kind, &about.name, &status), about, status.conditions));
        }
        let is_ours = |key: &&ObjectKey| matches!(key.kind, ObjectKind::EgressPolicy | ObjectKind::StaticNat);
        for about in self.invalid.keys().filter(is_ours).filter(|key| !self.model.holds(key)) {
            let before = self.leaving.before(about);
            let conditions = own::static_nat(None, self.trouble(about), before).conditions;
            let status = serde_json::json!({ "conditions": conditions });
            statuses.push((OwnStatus::new(about.kind, &about.name, &status), about.clone(), conditions));
        }
        self.leaving.told.retain(|about, _| self.model.holds(about) || self.invalid.contains_key(about));
        for (own, about, conditions) in statuses {
            self.leaving.told.insert(about, conditions);
            self.office.tell_own(own);
        }
    }

    /// Why an object is not in force as it is written.
    pub(super) fn trouble(&self, about: &ObjectKey) -> Option<own::Trouble<'static>> {
        let invalid = self.invalid.get(about).map(|problem| ("Invalid", problem.to_string()));
        let resolved = || self.leaving.problems.get(about).map(|problem| (problem.reason, problem.message.clone()));
        invalid.or_else(resolved)
    }

    /// External addresses for which somebody else answers, one problem per object that has any.
    pub(super) fn conflicts_of_leaving(&self) -> impl Iterator<Item = Problem> + '_ {
        let policies = self
            .model
            .egress()
            .map(|policy| (own_key(ObjectKind::EgressPolicy, &policy.name), self.addresses_of(&policy.name).to_vec()));
        let nats = self.model.static_nats().map(|nat| (own_key(ObjectKind::StaticNat, &nat.name), vec![nat.external]));
        policies.chain(nats).filter_map(|(about, addresses)| {
            let (message, ends) = self.conflicts.of_external(&addresses)?;
            let severity = if ends { Severity::Error } else { Severity::Warning };
            let mut problem = Problem::new(severity, ADDRESS_CONFLICT, message).about(&about);
            problem.place = self.places.get(&about).cloned();
            Some(problem)
        })
    }

    /// The condition that tells of such addresses; `None`: there are none.
    pub(super) fn not_ours(
        &self,
        addresses: &[IpAddr],
        generation: Option<i64>,
        before: &[Condition],
    ) -> Option<Condition> {
        let (message, _) = self.conflicts.of_external(addresses)?;
        Some(own::named(ADDRESSES_OURS, generation, ("False", ADDRESS_CONFLICT, &message), before))
    }

    pub(super) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = ResourceKey> {
        let from = ResourceKey { kind, name: String::new() };
        self.desired.resources.range(from..).map(|(key, _)| key).take_while(move |key| key.kind == kind).cloned()
    }
}

pub(super) fn own_key(kind: ObjectKind, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: String::new(), name: name.into() }
}
