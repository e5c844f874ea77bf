//! A Namespace: the labels that selectors of namespaces look at.

use std::collections::BTreeMap;

/// One Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}
