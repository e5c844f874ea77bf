//! A Namespace: the labels that selectors of namespaces look at.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One Namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}
