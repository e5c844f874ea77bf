//! What selectors and rules look at: everything else about a pod is invisible.
//!
//! Counts, for each namespace and for all of them, how many selectors mention a fact about labels, and how many rules name
//! a port. A pod is to policies what is left of it when only such facts are looked at.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use tidegate_api::resource::NamedPort;

use crate::model::pod::Pod;
use crate::model::selector::Term;

/// Where a selector looks: in one namespace, or (`None`) in any.
pub(super) type Scope = Option<String>;

/// Facts that somebody looks at.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    /// By scope and key of the label.
    terms: HashMap<Scope, HashMap<String, Mentions>>,
    /// Names of ports.
    ports: HashMap<String, u32>,
}

/// How often one key is mentioned.
#[derive(Debug, Default)]
struct Mentions {
    /// That it is there.
    bare: u32,
    /// That it has a value.
    values: HashMap<String, u32>,
}

impl Vocabulary {
    /// Another selector mentions a fact; true when it is the first.
    pub(super) fn add_term(&mut self, scope: &Scope, term: &Term) -> bool {
        let keys = match self.terms.get_mut(scope) {
            Some(keys) => keys,
            None => self.terms.entry(scope.clone()).or_default(),
        };
        let mentions = keys.entry(term.key.clone()).or_default();
        let count = match &term.value {
            None => &mut mentions.bare,
            Some(value) => mentions.values.entry(value.clone()).or_default(),
        };
        *count += 1;
        *count == 1
    }

    /// A selector less; true when it was the last.
    pub(super) fn remove_term(&mut self, scope: &Scope, term: &Term) -> bool {
        let Some(keys) = self.terms.get_mut(scope) else { return false };
        let Some(mentions) = keys.get_mut(&term.key) else { return false };
        let last = match &term.value {
            None => {
                mentions.bare = mentions.bare.saturating_sub(1);
                mentions.bare == 0
            }
            Some(value) => {
                let count = mentions.values.entry(value.clone()).or_default();
                *count = count.saturating_sub(1);
                let last = *count == 0;
                if last {
                    mentions.values.remove(value);
                }
                last
            }
        };
        if mentions.bare == 0 && mentions.values.is_empty() {
            keys.remove(&term.key);
        }
        if keys.is_empty() {
            self.terms.remove(scope);
        }
        last
    }

    /// Another rule names a port; true when it is the first.
    pub(super) fn add_port(&mut self, name: &str) -> bool {
        let count = self.ports.entry_ref(name).or_default();
        *count += 1;
        *count == 1
    }

    /// A rule less; true when it was the last.
    pub(super) fn remove_port(&mut self, name: &str) -> bool {
        let Some(count) = self.ports.get_mut(name) else { return false };
        *count -= 1;
        let last = *count == 0;
        if last {
            self.ports.remove(name);
        }
        last
    }

    /// The facts about a pod's labels that somebody looks at, sorted.
    pub(super) fn terms_of(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<Term> {
        let scopes = [self.terms.get(&Some(namespace.to_owned())), self.terms.get(&None)];
        let mut terms = Vec::new();
        for (key, value) in labels {
            let mut bare = false;
            let mut valued = false;
            for mentions in scopes.iter().flatten().filter_map(|keys| keys.get(key)) {
                bare |= mentions.bare > 0;
                valued |= mentions.values.contains_key(value);
            }
            let term = |value: Option<&String>| Term { key: key.clone(), value: value.cloned() };
            terms.extend(bare.then(|| term(None)));
            terms.extend(valued.then(|| term(Some(value))));
        }
        terms
    }

    /// The named ports of a pod that some rule names, sorted.
    pub(super) fn ports_of(&self, pod: &Pod) -> Vec<NamedPort> {
        let named = pod.ports.iter().filter(|port| self.ports.contains_key(&port.name));
        let mut ports: Vec<NamedPort> =
            named.map(|port| NamedPort { name: port.name.clone(), protocol: port.protocol, port: port.port }).collect();
        ports.sort();
        ports.dedup();
        ports
    }
}
