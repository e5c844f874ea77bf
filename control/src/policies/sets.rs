//! Sets: which identities a selection of pods means.
//!
//! Owns when a set is there (somebody names it), where it looks, and who is in it. A set that looks into namespaces by their
//! labels is known to every namespace that it looks into, so that whoever comes into one finds all sets that may hold him.

use std::sync::Arc;

use hashbrown::HashSet;
use tidegate_api::resource::{Kind, ResourceKey};

use super::vocabulary::Scope;
use super::{Objects, Policies, Selected, Set, Touched};
use crate::model::namespace::NAME_LABEL;
use crate::model::policy::Namespaces;
use crate::model::selector::Selector;

impl Policies {
    /// A Namespace has other labels.
    pub(super) fn relabel(&mut self, namespace: &str, objects: &Objects<'_>, touched: &mut Touched) {
        if !self.labels.contains_key(namespace) {
            return; // nobody is in it
        }
        self.labels.insert(namespace.to_owned(), (objects.namespaces)(namespace).labels().clone());
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

    pub(super) fn looks_into(&self, selected: &Selected, namespace: &str) -> bool {
        match &selected.namespaces {
            Namespaces::One(name) => name == namespace,
            Namespaces::Matching(selector) => self.labels.get(namespace).is_some_and(|labels| selector.matches(labels)),
        }
    }

    /// Puts the identities of a namespace into a set that looks into it, or takes them out.
    pub(super) fn fill(&mut self, selected: &Arc<Selected>, namespace: &str, looks: bool, touched: &mut Touched) {
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

    /// Somebody more names a set.
    pub(super) fn take_set(&mut self, selected: &Selected, touched: &mut Touched) {
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
    pub(super) fn let_set_go(&mut self, selected: &Selected, touched: &mut Touched) {
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

    /// Fills a set that is named for the first time. Identities that are made later find it themselves.
    pub(super) fn fill_new(&mut self, selected: &Arc<Selected>, touched: &mut Touched) {
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
    pub(super) fn matching(&self, selector: &Selector) -> Vec<String> {
        // Most selectors of namespaces mean one by its name.
        if let Some(names) = selector.required(NAME_LABEL) {
            let known =
                names.iter().filter(|name| self.labels.get(*name).is_some_and(|labels| selector.matches(labels)));
            return known.cloned().collect();
        }
        self.labels.iter().filter(|(_, labels)| selector.matches(labels)).map(|(name, _)| name.clone()).collect()
    }

    /// Nobody names the set any more.
    pub(super) fn drop_set(&mut self, selected: &Selected, touched: &mut Touched) {
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
}

/// Where a selection's terms are looked for.
pub(super) fn scope_of(selected: &Selected) -> Scope {
    match &selected.namespaces {
        Namespaces::One(name) => Some(name.clone()),
        Namespaces::Matching(_) => None,
    }
}

/// Name of the resource of a set: equal selections are one set, on every gateway.
pub(super) fn set_name(selected: &Selected) -> String {
    use siphasher::sip128::{Hasher128, SipHasher13};
    use std::hash::Hash;
    let mut hasher = SipHasher13::new();
    selected.hash(&mut hasher);
    format!("{:032x}", hasher.finish128().as_u128())
}
