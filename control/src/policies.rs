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

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;
use tidegate_api::resource::{
    self as contract, Body, Identity, IdentitySet, Kind, NamedPort, PolicyPeer, PolicyRule, PortMatch, Resource,
    ResourceKey,
};

use crate::model::Name;
use crate::model::node::Node;
use crate::model::pod::{Pod, Pods};
use crate::model::policy::{Namespaces, Peer, Pods as Selected, Policy, PolicyKey, Rule};
use crate::model::selector::{Selector, Term};
use crate::resolve;
use numbering::Numbering;
use vocabulary::{Scope, Vocabulary};

/// Numbers of identities.
mod numbering;
/// What selectors and rules look at.
mod vocabulary;

/// The label that every Namespace has (P-010).
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

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
    /// Labels of Namespaces by name.
    pub namespaces: &'a dyn Fn(&str) -> Option<&'a BTreeMap<String, String>>,
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

    /// The resource of a pod that policies look at. Of pods that claim one address it is the first by name's.
    fn pod(&self, pod: &Pod, pods: &Pods) -> Option<Resource> {
        let identity = self.identity(&pod.name);
        let is_own = |address: IpAddr| pods.at(address).is_some_and(|at| at.name == pod.name);
        resolve::pod::resolve(pod, identity, Vec::new(), false, is_own)
    }

    /// A Namespace has other labels.
    fn relabel(&mut self, namespace: &str, objects: &Objects<'_>, touched: &mut Touched) {
        if !self.labels.contains_key(namespace) {
            return; // nobody is in it
        }
        self.labels.insert(namespace.to_owned(), labels_of(namespace, objects));
        let wide: Vec<Arc<Selected>> = self.wide.iter().cloned().collect();
        for selected in wide {
            let looks = self.looks_into(&selected, namespace);
            let sets = self.looking_into.entry(namespace.to_owned()).or_default();
            let looked = sets.contains(&selected);
            if looks != looked {
                match looks {
                    true => sets.insert(selected.clone()),
                    false => sets.remove(&selected),
                };
                self.fill(&selected, namespace, looks, touched);
            }
        }
    }

    fn looks_into(&self, selected: &Selected, namespace: &str) -> bool {
        match &selected.namespaces {
            Namespaces::One(name) => name == namespace,
            Namespaces::Matching(selector) => self.labels.get(namespace).is_some_and(|labels| selector.matches(labels)),
        }
    }

    /// Puts the identities of a namespace into a set that looks into it, or takes them out.
    fn fill(&mut self, selected: &Arc<Selected>, namespace: &str, looks: bool, touched: &mut Touched) {
        let Some(set) = self.sets.get_mut(selected) else { return };
        for nature in self.in_namespace.get(namespace).into_iter().flatten() {
            let Some(known) = self.identities.get_mut(nature) else { continue };
            let moved = match looks && selected.pods.matches_terms(&nature.terms) {
                true => known.sets.insert(selected.clone()) && set.members.insert(nature.clone()),
                false => known.sets.remove(selected) && set.members.remove(nature),
            };
            if moved {
                touched.natures.insert(nature.clone());
                touched.sets.insert(selected.clone());
            }
        }
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
        if let Some(before) = before.as_ref().filter(|before| before.isolates[0]) {
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
        if let Some(after) = after.as_ref().filter(|after| after.isolates[0]) {
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
        let subjects = self.policies.get(key).filter(|policy| policy.isolates[0]).map(|policy| &policy.subjects);
        let Some(set) = subjects.and_then(|subjects| self.sets.get(subjects)) else { return };
        let members = set.members.iter().filter_map(|nature| self.identities.get(nature));
        self.reconsidered.extend(members.flat_map(|known| &known.pods).cloned());
    }

    /// Somebody more names a set.
    fn take_set(&mut self, selected: &Selected, touched: &mut Touched) {
        let known = self.sets.get_key_value(selected).map(|(known, _)| known.clone());
        let selected = known.unwrap_or_else(|| Arc::new(selected.clone()));
        let new = || Set { name: set_name(&selected), ..Set::default() };
        let set = self.sets.entry(selected.clone()).or_insert_with(new);
        set.users += 1;
        if set.users > 1 {
            return;
        }
        let scope = scope_of(&selected);
        for term in selected.pods.terms() {
            if self.vocabulary.add_term(&scope, &term) {
                touched.facts.insert((scope.clone(), term));
            }
        }
        touched.fresh.push(selected);
    }

    /// A set has one user less.
    fn let_set_go(&mut self, selected: &Selected, touched: &mut Touched) {
        let Some((known, _)) = self.sets.get_key_value(selected) else { return };
        let known = known.clone();
        let Some(set) = self.sets.get_mut(selected) else { return };
        set.users -= 1;
        if set.users > 0 {
            return;
        }
        let scope = scope_of(selected);
        for term in selected.pods.terms() {
            if self.vocabulary.remove_term(&scope, &term) {
                touched.facts.insert((scope.clone(), term));
            }
        }
        touched.left.push(known);
    }

    /// Pods of which something can be seen now, or cannot any more, are looked at again. Pods without an identity yet are
    /// among those that changed.
    fn sharpen(&self, objects: &Objects<'_>, touched: &mut Touched) {
        let (facts, names) = (std::mem::take(&mut touched.facts), std::mem::take(&mut touched.names));
        if facts.is_empty() && names.is_empty() {
            return;
        }
        // By scope and key.
        let mut terms: HashMap<(Option<&str>, &str), Wanted<'_>> = HashMap::new();
        for (scope, term) in &facts {
            let (bare, values) = terms.entry((scope.as_deref(), term.key.as_str())).or_default();
            *bare |= term.value.is_none();
            values.extend(term.value.as_deref());
        }
        let concerns = |pod: &Pod| {
            let seen = |(key, value): (&String, &String)| {
                [None, Some(pod.name.namespace.as_str())].into_iter().any(|scope| {
                    let wanted = terms.get(&(scope, key.as_str()));
                    wanted.is_some_and(|(bare, values)| *bare || values.contains(value.as_str()))
                })
            };
            pod.labels.iter().any(seen) || pod.ports.iter().any(|port| names.contains(&port.name))
        };
        let everywhere = !names.is_empty() || facts.iter().any(|(scope, _)| scope.is_none());
        let scopes: HashSet<&str> = match everywhere {
            true => self.in_namespace.keys().map(String::as_str).collect(),
            false => facts.iter().filter_map(|(scope, _)| scope.as_deref()).collect(),
        };
        let natures = scopes.into_iter().filter_map(|namespace| self.in_namespace.get(namespace)).flatten();
        let pods = natures.filter_map(|nature| self.identities.get(nature)).flat_map(|known| &known.pods);
        let pods = pods.filter(|name| objects.pods.get(name).is_some_and(concerns));
        touched.pods.extend(pods.cloned());
    }

    /// Fills a set that is named for the first time. Identities that are made later find it themselves.
    fn fill_new(&mut self, selected: &Arc<Selected>, touched: &mut Touched) {
        touched.sets.insert(selected.clone());
        let namespaces: Vec<String> = match &selected.namespaces {
            Namespaces::One(name) => vec![name.clone()],
            Namespaces::Matching(selector) => {
                if !self.wide.insert(selected.clone()) {
                    return; // filled already
                }
                self.matching(selector)
            }
        };
        for namespace in namespaces {
            let sets = self.looking_into.entry(namespace.clone()).or_default();
            if sets.insert(selected.clone()) {
                self.fill(selected, &namespace, true, touched);
            }
        }
    }

    /// Namespaces with pods whose labels a selector matches.
    fn matching(&self, selector: &Selector) -> Vec<String> {
        // Most selectors of namespaces mean one by its name.
        if let Some(names) = selector.required(NAME_LABEL) {
            let known =
                names.iter().filter(|name| self.labels.get(*name).is_some_and(|labels| selector.matches(labels)));
            return known.cloned().collect();
        }
        self.labels.iter().filter(|(_, labels)| selector.matches(labels)).map(|(name, _)| name.clone()).collect()
    }

    /// Nobody names the set any more.
    fn drop_set(&mut self, selected: &Selected, touched: &mut Touched) {
        let Some(set) = self.sets.remove(selected) else { return };
        for nature in set.members {
            if let Some(known) = self.identities.get_mut(&nature) {
                known.sets.remove(selected);
            }
            touched.natures.insert(nature);
        }
        self.wide.remove(selected);
        let forget = |sets: &mut HashSet<Arc<Selected>>| {
            sets.remove(selected);
            !sets.is_empty()
        };
        match &selected.namespaces {
            Namespaces::One(name) => {
                if self.looking_into.get_mut(name).is_some_and(|sets| !forget(sets)) {
                    self.looking_into.remove(name);
                }
            }
            Namespaces::Matching(_) => self.looking_into.retain(|_, sets| forget(sets)),
        }
        touched.resolved.insert(ResourceKey { kind: Kind::IdentitySet, name: set.name }, None);
    }

    /// Gives a pod the identity it has now.
    fn place(&mut self, name: &Name, objects: &Objects<'_>, touched: &mut Touched) {
        touched.pods.insert(name.clone());
        let pod = objects.pods.get(name).filter(|pod| pod.owns_addresses());
        let nature = pod.map(|pod| Nature {
            namespace: name.namespace.clone(),
            terms: self.vocabulary.terms_of(&name.namespace, &pod.labels),
            ports: self.vocabulary.ports_of(pod),
        });
        let before = self.natures.get(name);
        if before.map(|before| &**before) == nature.as_ref() {
            return;
        }
        if let Some(before) = self.natures.remove(name) {
            self.leave(name, &before, touched);
        }
        // One that comes is in some Service only once it answers; that is news of the Service.
        self.reconsidered.insert(name.clone());
        let Some(nature) = nature else { return };
        let nature = match self.identities.get_key_value(&nature) {
            Some((known, _)) => known.clone(),
            None => self.meet(nature, objects, touched),
        };
        if let Some(known) = self.identities.get_mut(&nature) {
            known.pods.insert(name.clone());
        }
        self.natures.insert(name.clone(), nature);
    }

    /// An identity that was not there.
    fn meet(&mut self, nature: Nature, objects: &Objects<'_>, touched: &mut Touched) -> Arc<Nature> {
        let namespace = nature.namespace.clone();
        if !self.labels.contains_key(&namespace) {
            self.labels.insert(namespace.clone(), labels_of(&namespace, objects));
            let wide = self.wide.iter().filter(|selected| self.looks_into(selected, &namespace));
            let wide: Vec<Arc<Selected>> = wide.cloned().collect();
            if !wide.is_empty() {
                self.looking_into.entry(namespace.clone()).or_default().extend(wide);
            }
        }
        let nature = Arc::new(nature);
        let mut known = Known::default();
        for selected in self.looking_into.get(&namespace).into_iter().flatten() {
            if selected.pods.matches_terms(&nature.terms)
                && let Some(set) = self.sets.get_mut(selected)
            {
                set.members.insert(nature.clone());
                known.sets.insert(selected.clone());
                touched.sets.insert(selected.clone());
            }
        }
        self.identities.insert(nature.clone(), known);
        self.in_namespace.entry(namespace).or_default().insert(nature.clone());
        touched.natures.insert(nature.clone());
        nature
    }

    /// A pod has another identity now; one without pods goes.
    fn leave(&mut self, name: &Name, nature: &Arc<Nature>, touched: &mut Touched) {
        let Some(known) = self.identities.get_mut(nature) else { return };
        known.pods.remove(name);
        if !known.pods.is_empty() {
            return;
        }
        let Some(known) = self.identities.remove(nature) else { return };
        for selected in known.sets {
            if let Some(set) = self.sets.get_mut(&selected) {
                set.members.remove(nature);
            }
            touched.sets.insert(selected);
        }
        touched.natures.insert(nature.clone());
        let Some(others) = self.in_namespace.get_mut(&nature.namespace) else { return };
        others.remove(nature);
        if others.is_empty() {
            self.in_namespace.remove(&nature.namespace);
            self.labels.remove(&nature.namespace);
            // Sets that look by labels find the namespace again when somebody is in it.
            if let Some(sets) = self.looking_into.get_mut(&nature.namespace) {
                sets.retain(|selected| matches!(selected.namespaces, Namespaces::One(_)));
                if sets.is_empty() {
                    self.looking_into.remove(&nature.namespace);
                }
            }
        }
    }

    /// Gives numbers to identities that somebody looks at now, and takes those of others.
    fn number(&mut self, touched: &mut Touched) {
        let natures: Vec<Arc<Nature>> = touched.natures.drain().collect();
        let mut other: HashSet<Arc<Nature>> = HashSet::new();
        let is_seen = |known: &Known, nature: &Nature| !known.sets.is_empty() || !nature.ports.is_empty();
        let (mut come, mut gone) = (Vec::new(), Vec::new());
        for nature in natures {
            let seen = self.identities.get(&nature).is_some_and(|known| is_seen(known, &nature));
            match (seen, self.numbers.get(&nature)) {
                (true, None) => come.push(nature),
                (false, Some(_)) => gone.push(nature),
                _ => {}
            }
        }
        for nature in gone {
            other.extend(self.numbers.remove(&nature));
            other.insert(nature);
        }
        for nature in come {
            other.extend(self.numbers.insert(nature.clone()));
            other.insert(nature);
        }
        // What was told under a number goes before what is told under it now.
        for number in other.iter().filter_map(|nature| self.told.remove(nature)) {
            touched.resolved.insert(ResourceKey { kind: Kind::Identity, name: number.to_string() }, None);
        }
        for nature in other {
            if let Some(known) = self.identities.get(&nature) {
                touched.pods.extend(known.pods.iter().cloned());
                touched.sets.extend(known.sets.iter().cloned());
            }
            if let Some(number) = self.numbers.get(&nature).filter(|_| !nature.ports.is_empty()) {
                let body = Body::Identity(Identity { ports: nature.ports.clone() });
                put(&mut touched.resolved, Kind::Identity, resolve::resource(number.to_string(), body));
                self.told.insert(nature, number);
            }
        }
    }

    fn resolve(&self, policy: &Policy, objects: &Objects<'_>) -> Resource {
        let rules = |rules: &[Rule]| rules.iter().map(|rule| self.resolve_rule(rule, objects)).collect();
        let body = contract::Policy {
            tier: policy.tier,
            subjects: set_name(&policy.subjects),
            isolates_ingress: policy.isolates[0],
            isolates_egress: policy.isolates[1],
            ingress: rules(&policy.ingress),
            egress: rules(&policy.egress),
        };
        resolve::resource(policy.key.resource(), Body::Policy(body))
    }

    fn resolve_rule(&self, rule: &Rule, objects: &Objects<'_>) -> PolicyRule {
        let peers = rule.peers.as_ref().map(|peers| {
            let mut resolved = Vec::with_capacity(peers.len());
            for peer in peers {
                match peer {
                    Peer::Pods(selected) => resolved.push(PolicyPeer::Set(set_name(selected))),
                    Peer::Network(prefix, except) => {
                        resolved.push(PolicyPeer::Network { prefix: *prefix, except: except.clone() });
                    }
                    Peer::Nodes(selector) => resolved.extend(addresses_of(selector, objects)),
                }
            }
            resolved
        });
        PolicyRule { name: rule.name.clone(), action: rule.action, peers, ports: rule.ports.clone() }
    }
}

/// Labels of a Namespace as selectors see them (P-010).
fn labels_of(namespace: &str, objects: &Objects<'_>) -> BTreeMap<String, String> {
    let mut labels = (objects.namespaces)(namespace).cloned().unwrap_or_default();
    labels.insert(NAME_LABEL.into(), namespace.into());
    labels
}

/// Addresses of the Nodes that a selector matches, each once.
fn addresses_of(selector: &Selector, objects: &Objects<'_>) -> Vec<PolicyPeer> {
    let nodes = (objects.nodes)().into_iter().filter(|node| selector.matches(&node.label_values));
    let addresses: BTreeSet<IpAddr> = nodes.flat_map(|node| node.all_addresses.iter().copied()).collect();
    let network = |address| PolicyPeer::Network { prefix: IpNet::from(address), except: Vec::new() };
    addresses.into_iter().map(network).collect()
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

/// Of a label: whether it matters that it is there, and which values do.
type Wanted<'a> = (bool, HashSet<&'a str>);

/// Where a selection's terms are looked for.
fn scope_of(selected: &Selected) -> Scope {
    match &selected.namespaces {
        Namespaces::One(name) => Some(name.clone()),
        Namespaces::Matching(_) => None,
    }
}

/// Name of the resource of a set: equal selections are one set, on every gateway.
fn set_name(selected: &Selected) -> String {
    use siphasher::sip128::{Hasher128, SipHasher13};
    use std::hash::Hash;
    let mut hasher = SipHasher13::new();
    selected.hash(&mut hasher);
    format!("{:032x}", hasher.finish128().as_u128())
}

fn put(resolved: &mut Resolved, kind: Kind, resource: Resource) {
    resolved.insert(ResourceKey { kind, name: resource.name.clone() }, Some(resource));
}
