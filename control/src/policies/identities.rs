//! Identities: which pods nobody can tell apart.
//!
//! Owns who is which, when an identity comes and goes, and which have numbers: those that somebody looks at.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use tidegate_api::resource::{Body, Identity, Kind, ResourceKey};

use super::{Known, Nature, Objects, Policies, Selected, Touched, put};
use crate::model::Name;
use crate::model::pod::Pod;
use crate::model::policy::Namespaces;
use crate::resolve;

/// Of a label: whether it matters that it is there, and which values do.
type Wanted<'a> = (bool, HashSet<&'a str>);

impl Policies {
    /// Pods of which something can be seen now, or cannot any more, are looked at again. Pods without an identity yet are
    /// among those that changed.
    pub(super) fn sharpen(&self, objects: &Objects<'_>, touched: &mut Touched) {
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

    /// Gives a pod the identity it has now.
    pub(super) fn place(&mut self, name: &Name, objects: &Objects<'_>, touched: &mut Touched) {
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
    pub(super) fn meet(&mut self, nature: Nature, objects: &Objects<'_>, touched: &mut Touched) -> Arc<Nature> {
        let namespace = nature.namespace.clone();
        if !self.labels.contains_key(&namespace) {
            self.labels.insert(namespace.clone(), (objects.namespaces)(&namespace).labels().clone());
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
    pub(super) fn leave(&mut self, name: &Name, nature: &Arc<Nature>, touched: &mut Touched) {
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
    pub(super) fn number(&mut self, touched: &mut Touched) {
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
}
