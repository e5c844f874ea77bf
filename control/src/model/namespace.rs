//! A Namespace: the labels that selectors of namespaces look at.
//!
//! Owns the label that every Namespace has, whatever its manifest says and whether there is one (P-010): a Namespace
//! cannot be made without it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The label that every Namespace has, with its name (P-010).
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// One Namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Namespace {
    /// Name.
    pub name: String,
    labels: BTreeMap<String, String>,
}

/// A Namespace as somebody wrote it, perhaps without the label that every Namespace has.
#[derive(Deserialize)]
struct Written {
    name: String,
    labels: BTreeMap<String, String>,
}

impl From<Written> for Namespace {
    fn from(written: Written) -> Self {
        Namespace::new(&written.name, written.labels)
    }
}

impl Namespace {
    /// The Namespace of that name with these labels, and with the one that every Namespace has.
    pub fn new(name: &str, mut labels: BTreeMap<String, String>) -> Self {
        labels.insert(NAME_LABEL.into(), name.into());
        Namespace { name: name.into(), labels }
    }

    /// One of which nothing is known but its name.
    pub fn bare(name: &str) -> Self {
        Namespace::new(name, BTreeMap::new())
    }

    /// Labels, [`NAME_LABEL`] among them.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_namespace_has_the_label_of_its_name() {
        let wrong = BTreeMap::from([(NAME_LABEL.to_string(), "other".to_string()), ("team".into(), "a".into())]);
        let written = Namespace::new("shop", wrong);
        let expected = BTreeMap::from([(NAME_LABEL.to_string(), "shop".to_string()), ("team".into(), "a".into())]);
        assert_eq!((written.name.as_str(), written.labels()), ("shop", &expected));
        assert_eq!(Namespace::bare("shop").labels()[NAME_LABEL], "shop");
        // As an earlier version saved it.
        let saved: Namespace = serde_json::from_str(r#"{"name":"shop","labels":{"team":"a"}}"#).unwrap();
        assert_eq!(saved, written);
    }
}
