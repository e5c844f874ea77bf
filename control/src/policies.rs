//! Policies and pods → identities, sets of identities, resolved policies.
//!
//! Owns the index that makes a change cost what it touches: which facts about labels selectors look at
//! ([`vocabulary`]), which pods share an identity, which sets an identity is in. Refuses to know where objects come from and
//! what becomes of the resources. What comes out is a function of the objects alone: identities have numbers that are
//! hashes ([`numbering`]), sets have names that are hashes of their selectors.
//!
//! A pod's identity is its namespace, the facts about its labels that some selector looks at, and its named ports that some
//! rule names. It has a number only while some set holds it or some rule names a port of it: nobody else asks. Pods with
//! their node's addresses and pods that have ended have none (P-009, P-105).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use tidegate_api::resource::{Body, IdentitySet, Kind, NamedPort, PortMatch, Resource, ResourceKey};

use crate::model::Name;
use crate::model::namespace::Namespace;
use crate::model::node::Node;
use crate::model::pod::{Pod, Pods};
use crate::model::policy::{Peer, Pods as Selected, Policy, PolicyKey};
use crate::model::selector::Term;
use crate::resolve;
use numbering::Numbering;
use vocabulary::{Scope, Vocabulary};

/// Which identities a selection means.
mod sets;
/// Which pods nobody can tell apart.
mod identities;
/// What a policy comes to.
mod meaning;
/// Numbers of identities.
mod numbering;
/// What selectors and rules look at.
mod vocabulary;

/// What all pods of an identity have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Nature {
    namespace: String,
    terms: Vec<Term>,
    ports: Vec<NamedPort>,
}

/// One identity.
#[derive(Debug, Default)]
struct Known {
    pods: HashSet<Name>,
    sets: HashSet<Arc<Selected>>,
}

/// What one selector means.
#[derive(Debug, Default)]
struct Set {
    /// Name of its resource.
    name: String,
    /// How often it is named.
    users: u32,
    members: HashSet<Arc<Nature>>,
}

/// Objects that changed since the last time; they may be gone.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Pods, and pods that have an address in common with one of them.
    pub pods: BTreeSet<Name>,
    /// Namespaces whose labels changed.
    pub namespaces: BTreeSet<String>,
    /// Policies.
    pub policies: BTreeSet<PolicyKey>,
    /// Whether any Node changed in labels or addresses.
    pub nodes: bool,
}

/// The objects as they are now.
pub struct Objects<'a> {
    /// Pods.
    pub pods: &'a Pods,
    /// The Namespace of a name, be there an object or not.
    pub namespaces: &'a dyn Fn(&str) -> Cow<'a, Namespace>,
    /// Policies by key.
    pub policies: &'a dyn Fn(&PolicyKey) -> Option<&'a Policy>,
    /// Nodes in the order of their names.
    pub nodes: &'a dyn Fn() -> Vec<&'a Node>,
}

/// Resources as they are wanted from now on; `None`: not any more.
pub type Resolved = BTreeMap<ResourceKey, Option<Resource>>;

/// The index.
#[derive(Debug, Default)]
pub struct Policies {
    vocabulary: Vocabulary,
    policies: BTreeMap<PolicyKey, Arc<Policy>>,
    /// Policies whose rules speak of Nodes.
    of_nodes: BTreeSet<PolicyKey>,
    natures: HashMap<Name, Arc<Nature>>,
    identities: HashMap<Arc<Nature>, Known>,
    in_namespace: HashMap<String, HashSet<Arc<Nature>>>,
    /// Labels of the Namespaces that have pods with an identity.
    labels: HashMap<String, BTreeMap<String, String>>,
    sets: HashMap<Arc<Selected>, Set>,
    /// Sets that look into a namespace.
    looking_into: HashMap<String, HashSet<Arc<Selected>>>,
    /// Sets that look into namespaces with such labels.
    wide: HashSet<Arc<Selected>>,
    numbers: Numbering<Nature>,
    /// Under which numbers the ports of identities were told.
    told: HashMap<Arc<Nature>, u32>,
    /// Policies that isolate for ingress, by the set of their subjects.
    isolating: HashMap<Selected, BTreeSet<PolicyKey>>,
    /// Pods that others isolate since this was asked last, or that have other labels.
    reconsidered: BTreeSet<Name>,
}

/// What a round of changes touches.
#[derive(Default)]
struct Touched {
    natures: HashSet<Arc<Nature>>,
    sets: HashSet<Arc<Selected>>,
    pods: BTreeSet<Name>,
    resolved: Resolved,
    /// Facts that are looked at for the first time, or not any more.
    facts: HashSet<(Scope, Term)>,
    /// The same for names of ports.
    names: HashSet<String>,
    /// Sets that are named for the first time.
    fresh: Vec<Arc<Selected>>,
    /// Sets that had lost their last user at some time.
    left: Vec<Arc<Selected>>,
}

impl Policies {
    /// Whether there is any policy.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// All policies in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().map(|policy| &**policy)
    }

    /// The number of a pod's identity; 0: no policy looks at it.
    pub fn identity(&self, pod: &Name) -> u32 {
        self.natures.get(pod).and_then(|nature| self.numbers.get(nature)).unwrap_or(0)
    }

    /// A policy that isolates the pod for ingress: clients it does not name are kept out.
    pub fn isolating(&self, pod: &Name) -> Option<&PolicyKey> {
        let known = self.identities.get(self.natures.get(pod)?)?;
        known.sets.iter().find_map(|set| self.isolating.get(&**set)?.first())
    }

    /// Pods for which [`Self::isolating`] may be another one than when this was asked last.
    pub fn take_reconsidered(&mut self) -> BTreeSet<Name> {
        std::mem::take(&mut self.reconsidered)
    }

    /// Takes in what changed. Returns the resources that may be others now.
    pub fn update(&mut self, changed: &Changed, objects: &Objects<'_>) -> Resolved {
        let mut touched = Touched { pods: changed.pods.clone(), ..Touched::default() };
        // Sets come before pods, so that an identity that comes is put into all that hold it.
        let mut renewed: BTreeSet<&PolicyKey> = changed.policies.iter().collect();
        for namespace in &changed.namespaces {
            self.relabel(namespace, objects, &mut touched);
        }
        for key in &changed.policies {
            self.replace(key, objects, &mut touched);
        }
        self.sharpen(objects, &mut touched);
        for selected in std::mem::take(&mut touched.left) {
            if self.sets.get(&selected).is_some_and(|set| set.users == 0) {
                self.drop_set(&selected, &mut touched);
            }
        }
        for selected in std::mem::take(&mut touched.fresh) {
            if self.sets.contains_key(&selected) {
                self.fill_new(&selected, &mut touched);
            }
        }
        for key in &changed.policies {
            self.reconsider(key);
        }
        let of_nodes = if changed.nodes { self.of_nodes.clone() } else { BTreeSet::new() };
        renewed.extend(&of_nodes);
        for name in std::mem::take(&mut touched.pods) {
            self.place(&name, objects, &mut touched);
        }
        self.number(&mut touched);
        let mut resolved = std::mem::take(&mut touched.resolved);
        for key in renewed {
            let policy = self.policies.get(key).map(|policy| self.resolve(policy, objects));
            resolved.insert(ResourceKey { kind: Kind::Policy, name: key.resource() }, policy);
        }
        for set in &touched.sets {
            let Some(set) = self.sets.get(set) else { continue };
            let mut identities: Vec<u32> = set.members.iter().filter_map(|nature| self.numbers.get(nature)).collect();
            identities.sort_unstable();
            let body = Body::IdentitySet(IdentitySet { identities });
            put(&mut resolved, Kind::IdentitySet, resolve::resource(set.name.clone(), body));
        }
        for name in &touched.pods {
            let resource = objects.pods.get(name).and_then(|pod| self.pod(pod, objects.pods));
            resolved.insert(ResourceKey { kind: Kind::Pod, name: name.to_string() }, resource);
        }
        resolved
    }

    /// The resource of a pod that policies look at. Of pods that claim one address it is the newest one's.
    fn pod(&self, pod: &Pod, pods: &Pods) -> Option<Resource> {
        let identity = self.identity(&pod.name);
        resolve::pod::resolve(pod, identity, Vec::new(), false, |address| pods.has(pod, address))
    }

    /// A policy came, changed or went.
    fn replace(&mut self, key: &PolicyKey, objects: &Objects<'_>, touched: &mut Touched) {
        let after = (objects.policies)(key).map(|policy| Arc::new(policy.clone()));
        let before = match &after {
            Some(after) => self.policies.insert(key.clone(), after.clone()),
            None => self.policies.remove(key),
        };
        if before == after {
            return;
        }
        if let Some(before) = before.as_ref().filter(|before| isolates_ingress(before)) {
            let set = self.sets.get(&before.subjects);
            let members = set.iter().flat_map(|set| &set.members).filter_map(|nature| self.identities.get(nature));
            self.reconsidered.extend(members.flat_map(|known| &known.pods).cloned());
            if let Some(keys) = self.isolating.get_mut(&before.subjects) {
                keys.remove(key);
                if keys.is_empty() {
                    self.isolating.remove(&before.subjects);
                }
            }
        }
        if let Some(after) = after.as_ref().filter(|after| isolates_ingress(after)) {
            self.isolating.entry(after.subjects.clone()).or_default().insert(key.clone());
        }
        // The new before the old, so that what both speak of is not forgotten in between.
        if let Some(after) = &after {
            for selected in selections(after) {
                self.take_set(selected, touched);
            }
            touched.names.extend(port_names(after).filter(|name| self.vocabulary.add_port(name)).map(String::from));
        }
        if let Some(before) = &before {
            for selected in selections(before) {
                self.let_set_go(selected, touched);
            }
            touched.names.extend(port_names(before).filter(|name| self.vocabulary.remove_port(name)).map(String::from));
        }
        let speaks_of_nodes = after.as_ref().is_some_and(|policy| speaks_of_nodes(policy));
        match speaks_of_nodes {
            true => self.of_nodes.insert(key.clone()),
            false => self.of_nodes.remove(key),
        };
    }

    /// Notes the pods that a changed policy isolates.
    fn reconsider(&mut self, key: &PolicyKey) {
        let subjects = self.policies.get(key).filter(|policy| isolates_ingress(policy)).map(|policy| &policy.subjects);
        let Some(set) = subjects.and_then(|subjects| self.sets.get(subjects)) else { return };
        let members = set.members.iter().filter_map(|nature| self.identities.get(nature));
        self.reconsidered.extend(members.flat_map(|known| &known.pods).cloned());
    }
}

/// Whether it keeps out clients that it does not name.
fn isolates_ingress(policy: &Policy) -> bool {
    policy.isolates[0] && !policy.audit
}

/// Every selection of pods that a policy names.
fn selections(policy: &Policy) -> impl Iterator<Item = &Selected> {
    let rules = policy.ingress.iter().chain(&policy.egress);
    let peers = rules.flat_map(|rule| rule.peers.iter().flatten()).filter_map(|peer| match peer {
        Peer::Pods(selected) => Some(selected),
        Peer::Network(..) | Peer::Nodes(_) => None,
    });
    peers.chain([&policy.subjects])
}

fn speaks_of_nodes(policy: &Policy) -> bool {
    let peers = policy.egress.iter().chain(&policy.ingress).flat_map(|rule| rule.peers.iter().flatten());
    peers.into_iter().any(|peer| matches!(peer, Peer::Nodes(_)))
}

/// Every name of a port that a policy names.
fn port_names(policy: &Policy) -> impl Iterator<Item = &str> {
    let rules = policy.ingress.iter().chain(&policy.egress);
    rules.flat_map(|rule| rule.ports.iter().flatten()).filter_map(|port| match &port.port {
        PortMatch::Named(name) => Some(name.as_str()),
        PortMatch::Range(..) => None,
    })
}

fn put(resolved: &mut Resolved, kind: Kind, resource: Resource) {
    resolved.insert(ResourceKey { kind, name: resource.name.clone() }, Some(resource));
}
