//! A Namespace read from its manifest.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as api;

use crate::model::namespace::Namespace;

/// The Namespace of that name and those labels.
pub(crate) fn read(name: &str, labels: BTreeMap<String, String>) -> Namespace {
    Namespace { name: name.into(), labels }
}

/// The same from a whole object.
pub(super) fn read_object(name: &str, object: &api::Namespace) -> Namespace {
    read(name, object.metadata.labels.clone().unwrap_or_default())
}
