//! The cluster model: the last good version of every object, and which Service a slice belongs to.
//!
//! Objects are keyed by namespace/name and carry their UID: the same name under another UID is another object (S-005).
//! Refuses to know where objects came from. A change costs what it touches: [`Model::apply`] tells which Services and
//! Nodes must be resolved again, found through an index from Service to slices, never by a walk over all objects.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::policies;
use crate::source::{ObjectKey, ObjectKind};
use addresspool::AddressPool;
use egresspolicy::EgressPolicy;
use endpointslice::EndpointSlice;
use gatewaypolicy::GatewayPolicy;
use namespace::Namespace;
use node::Node;
use pod::{Pod, Pods};
use policy::{Policy, PolicyKey, PolicyKind};
use service::Service;
use staticnat::StaticNat;

/// A Service as far as a gateway cares.
pub mod service;
/// An EndpointSlice: addresses, conditions, resolved ports.
pub mod endpointslice;
/// A Node: pod CIDRs and what flannel says of its tunnel end point.
pub mod node;
/// An AddressPool: ranges and whom they are for.
pub mod addresspool;
/// An EgressPolicy: which pods leave with which addresses.
pub mod egresspolicy;
/// A GatewayPolicy: which clients may reach which Services.
pub mod gatewaypolicy;
/// A StaticNat: an external address, and the pod it leads to.
pub mod staticnat;
/// A Namespace: its labels.
pub mod namespace;
/// A Pod: labels, addresses, named ports; and the index from address to Pod.
pub mod pod;
/// A NetworkPolicy or ClusterNetworkPolicy: subjects, tier, rules.
pub mod policy;
/// A label selector.
pub mod selector;

/// Namespace and name of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Name {
    /// Namespace, never empty.
    pub namespace: String,
    /// Name in the namespace.
    pub name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One object of the kinds the model knows.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// A Node.
    Node(Node),
    /// An AddressPool.
    AddressPool(AddressPool),
    /// An EgressPolicy.
    EgressPolicy(Box<EgressPolicy>),
    /// A GatewayPolicy.
    GatewayPolicy(Box<GatewayPolicy>),
    /// A StaticNat.
    StaticNat(StaticNat),
    /// A Namespace.
    Namespace(Namespace),
    /// A Pod.
    Pod(Box<Pod>),
    /// A NetworkPolicy or ClusterNetworkPolicy.
    Policy(Box<Policy>),
}

/// What must be resolved again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services whose own object or slices changed; they may be gone.
    pub services: BTreeSet<Name>,
    /// Nodes that changed; they may be gone.
    pub nodes: BTreeSet<String>,
    /// Whether any AddressPool changed or went.
    pub pools: bool,
    /// Whether the labels of any Namespace changed.
    pub namespaces: bool,
    /// Whether any EgressPolicy changed or went.
    pub egress: bool,
    /// GatewayPolicies that changed; they may be gone.
    pub gateway_policies: BTreeSet<String>,
    /// StaticNats that changed; they may be gone.
    pub static_nats: BTreeSet<String>,
    /// What matters to policies.
    pub policies: policies::Changed,
}

/// All objects.
#[derive(Debug, Default)]
pub struct Model {
    services: HashMap<Name, Service>,
    slices: HashMap<Name, EndpointSlice>,
    /// Service → names of its slices in the same namespace, in name order.
    slices_of: HashMap<Name, BTreeSet<String>>,
    nodes: BTreeMap<String, Node>,
    pools: BTreeMap<String, AddressPool>,
    egress: BTreeMap<String, EgressPolicy>,
    gateway_policies: BTreeMap<String, GatewayPolicy>,
    static_nats: BTreeMap<String, StaticNat>,
    namespaces: BTreeMap<String, Namespace>,
    pods: Pods,
    policies: BTreeMap<PolicyKey, Policy>,
}

impl Model {
    /// Takes in a new or changed object and adds to `dirty` what it touches; an equal object touches nothing.
    pub fn apply(&mut self, object: Object, dirty: &mut Dirty) {
        match object {
            Object::Service(service) => {
                if self.services.get(&service.name) != Some(&*service) {
                    dirty.services.insert(service.name.clone());
                    self.services.insert(service.name.clone(), *service);
                }
            }
            Object::EndpointSlice(slice) => {
                if self.slices.get(&slice.name) != Some(&slice) {
                    self.unlink(&slice.name, dirty);
                    self.link(slice, dirty);
                }
            }
            Object::Node(node) => {
                if self.nodes.get(&node.name) != Some(&node) {
                    dirty.policies.nodes = true;
                    dirty.nodes.insert(node.name.clone());
                    self.nodes.insert(node.name.clone(), node);
                }
            }
            Object::AddressPool(pool) => {
                if self.pools.get(&pool.name) != Some(&pool) {
                    dirty.pools = true;
                    self.pools.insert(pool.name.clone(), pool);
                }
            }
            Object::Namespace(namespace) => {
                if self.namespaces.get(&namespace.name) != Some(&namespace) {
                    dirty.namespaces = true;
                    dirty.policies.namespaces.insert(namespace.name.clone());
                    self.namespaces.insert(namespace.name.clone(), namespace);
                }
            }
            Object::EgressPolicy(policy) => {
                dirty.egress |= self.egress.get(&policy.name).is_none_or(|before| !before.asks_like(&policy));
                self.egress.insert(policy.name.clone(), *policy);
            }
            Object::GatewayPolicy(policy) => {
                if self.gateway_policies.get(&policy.name) != Some(&*policy) {
                    dirty.gateway_policies.insert(policy.name.clone());
                    self.gateway_policies.insert(policy.name.clone(), *policy);
                }
            }
            Object::StaticNat(nat) => {
                if self.static_nats.get(&nat.name) != Some(&nat) {
                    dirty.static_nats.insert(nat.name.clone());
                    self.static_nats.insert(nat.name.clone(), nat);
                }
            }
            Object::Pod(pod) => {
                let name = pod.name.clone();
                let before = self.pods.rivals(&name);
                if self.pods.insert(*pod) {
                    dirty.policies.pods.extend(before);
                    dirty.policies.pods.extend(self.pods.rivals(&name));
                }
            }
            Object::Policy(policy) => {
                if self.policies.get(&policy.key) != Some(&policy) {
                    dirty.policies.policies.insert(policy.key.clone());
                    self.policies.insert(policy.key.clone(), *policy);
                }
            }
        }
    }

    /// Forgets an object and adds to `dirty` what that touches.
    pub fn delete(&mut self, key: &ObjectKey, dirty: &mut Dirty) {
        match key.kind {
            ObjectKind::Service => {
                let name = key.name();
                if self.services.remove(&name).is_some() {
                    dirty.services.insert(name);
                }
            }
            ObjectKind::EndpointSlice => self.unlink(&key.name(), dirty),
            ObjectKind::Node => {
                if self.nodes.remove(&key.name).is_some() {
                    dirty.policies.nodes = true;
                    dirty.nodes.insert(key.name.clone());
                }
            }
            ObjectKind::AddressPool => dirty.pools |= self.pools.remove(&key.name).is_some(),
            ObjectKind::EgressPolicy => dirty.egress |= self.egress.remove(&key.name).is_some(),
            ObjectKind::GatewayPolicy => {
                if self.gateway_policies.remove(&key.name).is_some() {
                    dirty.gateway_policies.insert(key.name.clone());
                }
            }
            ObjectKind::StaticNat => {
                if self.static_nats.remove(&key.name).is_some() {
                    dirty.static_nats.insert(key.name.clone());
                }
            }
            ObjectKind::Namespace => {
                if self.namespaces.remove(&key.name).is_some() {
                    dirty.namespaces = true;
                    dirty.policies.namespaces.insert(key.name.clone());
                }
            }
            ObjectKind::Pod => {
                let name = key.name();
                let rivals = self.pods.rivals(&name);
                if self.pods.remove(&name) {
                    dirty.policies.pods.extend(rivals);
                }
            }
            ObjectKind::NetworkPolicy | ObjectKind::ClusterNetworkPolicy => {
                let key = policy_key(key);
                if self.policies.remove(&key).is_some() {
                    dirty.policies.policies.insert(key);
                }
            }
        }
    }

    /// Whether a good version of the object is held.
    pub fn holds(&self, key: &ObjectKey) -> bool {
        match key.kind {
            ObjectKind::Service => self.services.contains_key(&key.name()),
            ObjectKind::EndpointSlice => self.slices.contains_key(&key.name()),
            ObjectKind::Node => self.nodes.contains_key(&key.name),
            ObjectKind::AddressPool => self.pools.contains_key(&key.name),
            ObjectKind::Namespace => self.namespaces.contains_key(&key.name),
            ObjectKind::EgressPolicy => self.egress.contains_key(&key.name),
            ObjectKind::GatewayPolicy => self.gateway_policies.contains_key(&key.name),
            ObjectKind::StaticNat => self.static_nats.contains_key(&key.name),
            ObjectKind::Pod => self.pods.get(&key.name()).is_some(),
            ObjectKind::NetworkPolicy | ObjectKind::ClusterNetworkPolicy => {
                self.policies.contains_key(&policy_key(key))
            }
        }
    }

    /// Whether an object is held, and not only what stands in for it.
    pub fn holds_good(&self, key: &ObjectKey) -> bool {
        let stands_in = |policy: &EgressPolicy| policy.addresses == egresspolicy::Addresses::Unreadable;
        self.holds(key) && !(key.kind == ObjectKind::EgressPolicy && self.egress.get(&key.name).is_some_and(stands_in))
    }

    /// How many good versions of that kind are held.
    pub fn count(&self, kind: ObjectKind) -> usize {
        let policies = |kind: PolicyKind| self.policies.keys().filter(|key| key.kind == kind).count();
        match kind {
            ObjectKind::Service => self.services.len(),
            ObjectKind::EndpointSlice => self.slices.len(),
            ObjectKind::Node => self.nodes.len(),
            ObjectKind::AddressPool => self.pools.len(),
            ObjectKind::Namespace => self.namespaces.len(),
            ObjectKind::EgressPolicy => self.egress.len(),
            ObjectKind::GatewayPolicy => self.gateway_policies.len(),
            ObjectKind::StaticNat => self.static_nats.len(),
            ObjectKind::Pod => self.pods.iter().count(),
            ObjectKind::NetworkPolicy => policies(PolicyKind::NetworkPolicy),
            ObjectKind::ClusterNetworkPolicy => policies(PolicyKind::ClusterNetworkPolicy),
        }
    }

    /// The Service of that name.
    pub fn service(&self, name: &Name) -> Option<&Service> {
        self.services.get(name)
    }

    /// Names of all Services, in no order.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Name> {
        self.services.keys()
    }

    /// All Services, in no order.
    pub fn all_services(&self) -> impl Iterator<Item = &Service> + Clone {
        self.services.values()
    }

    /// The slices of a Service, in name order (S-040).
    pub fn slices_of(&self, service: &Name) -> impl Iterator<Item = &EndpointSlice> {
        self.slices_of
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(|name| self.slices.get(&Name { namespace: service.namespace.clone(), name: name.clone() }))
    }

    /// The Node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// All Nodes in name order.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// All AddressPools in name order.
    pub fn pools(&self) -> impl Iterator<Item = &AddressPool> {
        self.pools.values()
    }

    /// The AddressPool of that name.
    pub fn pool(&self, name: &str) -> Option<&AddressPool> {
        self.pools.get(name)
    }

    /// All EgressPolicies in name order.
    pub fn egress(&self) -> impl Iterator<Item = &EgressPolicy> {
        self.egress.values()
    }

    /// All GatewayPolicies in name order.
    pub fn gateway_policies(&self) -> impl Iterator<Item = &GatewayPolicy> {
        self.gateway_policies.values()
    }

    /// The GatewayPolicy of that name.
    pub fn gateway_policy(&self, name: &str) -> Option<&GatewayPolicy> {
        self.gateway_policies.get(name)
    }

    /// All StaticNats in name order.
    pub fn static_nats(&self) -> impl Iterator<Item = &StaticNat> {
        self.static_nats.values()
    }

    /// The Namespace of that name; one without an object has its name alone.
    pub fn namespace(&self, name: &str) -> Cow<'_, Namespace> {
        self.namespaces.get(name).map_or_else(|| Cow::Owned(Namespace::bare(name)), Cow::Borrowed)
    }

    /// All Namespaces in name order.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// All Pods.
    pub fn pods(&self) -> &Pods {
        &self.pods
    }

    /// All policies in the order of their keys.
    pub fn policies(&self) -> &BTreeMap<PolicyKey, Policy> {
        &self.policies
    }

    /// What policies are resolved from.
    pub fn resolve_policies(&self, index: &mut policies::Policies, changed: &policies::Changed) -> policies::Resolved {
        let objects = policies::Objects {
            pods: &self.pods,
            namespaces: &|name| self.namespace(name),
            policies: &|key| self.policies.get(key),
            nodes: &|| self.nodes.values().collect(),
        };
        index.update(changed, &objects)
    }

    fn link(&mut self, slice: EndpointSlice, dirty: &mut Dirty) {
        if let Some(service) = &slice.service {
            let service = Name { namespace: slice.name.namespace.clone(), name: service.clone() };
            self.slices_of.entry(service.clone()).or_default().insert(slice.name.name.clone());
            dirty.services.insert(service);
        }
        self.slices.insert(slice.name.clone(), slice);
    }

    fn unlink(&mut self, slice: &Name, dirty: &mut Dirty) {
        let Some(old) = self.slices.remove(slice) else { return };
        let Some(service) = old.service else { return };
        let service = Name { namespace: slice.namespace.clone(), name: service };
        if let Some(names) = self.slices_of.get_mut(&service) {
            names.remove(&slice.name);
            if names.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        dirty.services.insert(service);
    }
}

/// The key of a policy by that of its object.
pub(crate) fn policy_key(key: &ObjectKey) -> PolicyKey {
    let kind = match key.kind {
        ObjectKind::ClusterNetworkPolicy => PolicyKind::ClusterNetworkPolicy,
        _ => PolicyKind::NetworkPolicy,
    };
    PolicyKey { kind, namespace: key.namespace.clone(), name: key.name.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::endpointslice::tests::slice;

    fn name(name: &str) -> Name {
        Name { namespace: "shop".into(), name: name.into() }
    }

    #[test]
    fn a_slice_that_moves_touches_both_services_and_nothing_else() {
        let mut model = Model::default();
        let mut dirty = Dirty::default();
        model.apply(Object::EndpointSlice(slice("s1", "web", &["10.244.1.5"])), &mut dirty);
        model.apply(Object::EndpointSlice(slice("s2", "api", &["10.244.1.6"])), &mut dirty);
        let mut dirty = Dirty::default();
        model.apply(Object::EndpointSlice(slice("s1", "api", &["10.244.1.5"])), &mut dirty);
        assert_eq!(dirty.services, [name("api"), name("web")].into());
        assert_eq!(model.slices_of(&name("web")).count(), 0);
        assert_eq!(model.slices_of(&name("api")).count(), 2);
        let mut dirty = Dirty::default();
        model.apply(Object::EndpointSlice(slice("s1", "api", &["10.244.1.5"])), &mut dirty);
        assert_eq!(dirty, Dirty::default(), "an equal object touches nothing");
    }

    #[test]
    fn deleting_what_is_not_there_touches_nothing() {
        let mut model = Model::default();
        let mut dirty = Dirty::default();
        for kind in ObjectKind::ALL {
            model.delete(&ObjectKey { kind, namespace: "shop".into(), name: "x".into() }, &mut dirty);
        }
        assert_eq!(dirty, Dirty::default());
    }
}
