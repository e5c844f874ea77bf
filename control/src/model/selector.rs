//! A label selector: what must hold of an object's labels.
//!
//! Owns the meaning of the four operators (P-011) and one form for all selectors that are written differently and mean the
//! same by being sorted. Refuses to know what is selected. [`Selector::terms`] are the facts about labels that decide it,
//! all else about an object's labels is invisible to the selector.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};

/// Requirements, all of which must hold; none: everything is selected.
///
/// A list of values may be as long as an object can be, and selectors are the keys of everything that is looked up when a
/// pod changes. So they are compared and hashed by their digest, which is also what the resources made of them are named by.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "BTreeSet<Requirement>", into = "BTreeSet<Requirement>")]
pub struct Selector {
    requirements: BTreeSet<Requirement>,
    digest: u128,
}

/// What must hold of one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Requirement {
    /// It is there, with one of these values.
    In(String, BTreeSet<String>),
    /// It is not there, or has none of these values.
    NotIn(String, BTreeSet<String>),
    /// It is there.
    Exists(String),
    /// It is not there.
    DoesNotExist(String),
}

/// A fact about an object's labels: that one is there, or that it has a certain value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    /// Key of the label.
    pub key: String,
    /// Its value; `None`: whichever.
    pub value: Option<String>,
}

impl From<BTreeSet<Requirement>> for Selector {
    fn from(requirements: BTreeSet<Requirement>) -> Self {
        Selector::new(requirements)
    }
}

impl From<Selector> for BTreeSet<Requirement> {
    fn from(selector: Selector) -> Self {
        selector.requirements
    }
}

impl Selector {
    /// The selector of these requirements.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        let requirements = requirements.into_iter().collect::<BTreeSet<Requirement>>();
        let mut hasher = SipHasher13::new();
        requirements.hash(&mut hasher);
        Selector { digest: hasher.finish128().as_u128(), requirements }
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether it selects an object with these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        })
    }

    /// The same for an object of which only facts are known: all that hold among [`Self::terms`], sorted, and possibly
    /// others.
    pub fn matches_terms(&self, terms: &[Term]) -> bool {
        let of = |wanted: &String| {
            let from = terms.partition_point(|term| term.key < *wanted);
            let wanted = wanted.clone();
            terms[from..].iter().take_while(move |term| term.key == wanted)
        };
        let has = |key: &String, values: &BTreeSet<String>| {
            of(key).any(|term| term.value.as_ref().is_some_and(|value| values.contains(value)))
        };
        let exists = |key: &String| of(key).any(|term| term.value.is_none());
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => has(key, values),
            Requirement::NotIn(key, values) => !has(key, values),
            Requirement::Exists(key) => exists(key),
            Requirement::DoesNotExist(key) => !exists(key),
        })
    }

    /// The facts that decide whether it selects an object.
    pub fn terms(&self) -> impl Iterator<Item = Term> {
        self.requirements.iter().flat_map(|requirement| {
            let (key, values) = match requirement {
                Requirement::In(key, values) | Requirement::NotIn(key, values) => (key, Some(values)),
                Requirement::Exists(key) | Requirement::DoesNotExist(key) => (key, None),
            };
            let with = |value: Option<&String>| Term { key: key.clone(), value: value.cloned() };
            match values {
                Some(values) => values.iter().map(|value| with(Some(value))).collect::<Vec<_>>(),
                None => vec![with(None)],
            }
        })
    }

    /// Values one of which a label must have, if a requirement says so.
    pub fn required(&self, wanted: &str) -> Option<&BTreeSet<String>> {
        self.requirements.iter().find_map(|requirement| match requirement {
            Requirement::In(key, values) if key == wanted => Some(values),
            _ => None,
        })
    }
}

impl Default for Selector {
    fn default() -> Self {
        Selector::new([])
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Selector {}

impl Hash for Selector {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

impl PartialOrd for Selector {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Selector {
    fn cmp(&self, other: &Self) -> Ordering {
        self.digest.cmp(&other.digest)
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_empty() {
            return f.write_str("all");
        }
        for (number, requirement) in self.requirements.iter().enumerate() {
            if number > 0 {
                f.write_str(", ")?;
            }
            let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(", ");
            match requirement {
                Requirement::In(key, values) if values.len() == 1 => write!(f, "{key}={}", list(values))?,
                Requirement::In(key, values) => write!(f, "{key} in ({})", list(values))?,
                Requirement::NotIn(key, values) => write!(f, "{key} not in ({})", list(values))?,
                Requirement::Exists(key) => write!(f, "{key} is there")?,
                Requirement::DoesNotExist(key) => write!(f, "{key} is not there")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn requirement() -> impl Strategy<Value = Requirement> {
        let key = || prop::sample::select(vec!["a", "b", "c"]).prop_map(String::from);
        let values =
            || prop::collection::btree_set(prop::sample::select(vec!["1", "2", "3"]).prop_map(String::from), 1..3);
        prop_oneof![
            (key(), values()).prop_map(|(key, values)| Requirement::In(key, values)),
            (key(), values()).prop_map(|(key, values)| Requirement::NotIn(key, values)),
            key().prop_map(Requirement::Exists),
            key().prop_map(Requirement::DoesNotExist),
        ]
    }

    fn selector() -> impl Strategy<Value = Selector> {
        prop::collection::vec(requirement(), 0..4).prop_map(Selector::new)
    }

    proptest! {
        /// P-011: labels that no selector mentions make no difference, and what is mentioned decides all.
        #[test]
        fn facts_decide_what_labels_decide(
            selectors in prop::collection::vec(selector(), 1..4),
            labels in prop::collection::btree_map(
                prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(String::from),
                prop::sample::select(vec!["1", "2", "3", "4"]).prop_map(String::from), 0..4),
        ) {
            let holds = |term: &Term| labels.get(&term.key).is_some_and(|value| term.value.as_ref().is_none_or(|wanted| wanted == value));
            let terms: BTreeSet<Term> = selectors.iter().flat_map(Selector::terms).filter(holds).collect();
            let terms: Vec<Term> = terms.into_iter().collect();
            for selector in &selectors {
                prop_assert_eq!(selector.matches_terms(&terms), selector.matches(&labels), "{} of {:?}", selector, labels);
            }
        }
    }

    /// P-011: what is absent is in no list, and not in every list.
    #[test]
    fn an_absent_label_is_not_in_every_list() {
        let one = |requirement| Selector::new([requirement]).matches(&BTreeMap::new());
        let values = || BTreeSet::from(["1".to_owned()]);
        assert!(!one(Requirement::In("a".into(), values())) && one(Requirement::NotIn("a".into(), values())));
        assert!(!one(Requirement::Exists("a".into())) && one(Requirement::DoesNotExist("a".into())));
        assert!(Selector::default().matches(&BTreeMap::new()), "an empty selector selects all");
    }
}
