//! Kinds of Tidegate's own, as the API server is told of them.
//!
//! Owns their Rust types, from which the schemas in `deploy/crds` are written: a doc comment here is what
//! `kubectl explain` prints. Refuses to know what values mean: [`crate::watch`] reads them into the model.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// `tidegate.io/v1alpha1` AddressPool.
pub mod addresspool;

/// All definitions, in the order of their names.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![addresspool::AddressPool::crd()]
}

/// File name in `deploy/crds` and text of each definition.
///
/// # Errors
/// When a schema cannot be written as YAML, which a test would have found.
pub fn files() -> Result<Vec<(String, String)>, serde_norway::Error> {
    let file = |crd: CustomResourceDefinition| {
        let name = format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural);
        Ok((name, format!("# Written by `tidegate-control --print-crds`.\n{}", serde_norway::to_string(&crd)?)))
    };
    all().into_iter().map(file).collect()
}

/// All definitions as one text for `kubectl apply -f -`.
///
/// # Errors
/// As [`files`].
pub fn text() -> Result<String, serde_norway::Error> {
    let texts: Vec<String> = files()?.into_iter().map(|(_, text)| text).collect();
    Ok(texts.join("---\n"))
}
