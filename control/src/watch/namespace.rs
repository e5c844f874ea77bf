//! A Namespace read from its manifest.

use k8s_openapi::api::core::v1 as api;

use crate::model::namespace::Namespace;

/// The Namespace of that name, with the labels of the object.
pub(super) fn read_object(name: &str, object: &api::Namespace) -> Namespace {
    Namespace::new(name, object.metadata.labels.clone().unwrap_or_default())
}
