//! Kinds of Tidegate's own, as the API server is told of them.
//!
//! Owns their Rust types, from which `deploy/crds/tidegate.yaml` is written: a doc comment here is what `kubectl explain`
//! prints. Refuses to know what values mean: [`crate::watch`] reads them into the model.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};

/// `tidegate.io/v1alpha1` AddressPool.
pub mod addresspool;
/// `tidegate.io/v1alpha1` EgressPolicy.
pub mod egresspolicy;
/// `tidegate.io/v1alpha1` GatewayPolicy.
pub mod gatewaypolicy;
/// `tidegate.io/v1alpha1` StaticNat.
pub mod staticnat;
/// Numbers that are out of the range that their schema names.
pub mod range;

/// All definitions, in the order of their names.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        addresspool::AddressPool::crd(),
        egresspolicy::EgressPolicy::crd(),
        gatewaypolicy::GatewayPolicy::crd(),
        staticnat::StaticNat::crd(),
    ]
}

/// All definitions as one text of YAML, for `kubectl apply -f -`.
///
/// # Errors
/// When a schema cannot be written as YAML; a test would have found that.
pub fn text() -> Result<String, serde_norway::Error> {
    let mut text = String::from("# Written by `tidegate-control --print-crds`.\n");
    for crd in all() {
        text.push_str("---\n");
        text.push_str(&serde_norway::to_string(&crd)?);
    }
    Ok(text)
}

/// The schema that `metav1.Condition` has in Kubernetes itself.
fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "`Valid`: whether `spec` is in force, and if not, why.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "type": { "type": "string", "maxLength": 316 },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "reason": { "type": "string", "minLength": 1, "maxLength": 1024 },
                "message": { "type": "string", "maxLength": 32768 },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_definitions_in_deploy_are_those_of_the_types() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds/tidegate.yaml");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == text().unwrap(),
            "deploy/crds/tidegate.yaml is stale; \
             cargo run -p tidegate-control -- --print-crds > deploy/crds/tidegate.yaml"
        );
    }

    /// What an API server asks of a schema that it is to accept (structural schemas of apiextensions).
    fn structural(path: &str, schema: &Value) {
        let at = |key: &str| schema.get(key);
        assert!(at("type").is_some() || at("x-kubernetes-int-or-string").is_some(), "{path} has no type");
        for forbidden in ["$ref", "definitions", "$defs", "additionalItems", "patternProperties", "oneOf"] {
            assert!(at(forbidden).is_none(), "{path} has {forbidden}");
        }
        assert!(at("properties").is_none() || at("additionalProperties").is_none(), "{path} has both properties");
        for (name, property) in at("properties").and_then(Value::as_object).into_iter().flatten() {
            structural(&format!("{path}.{name}"), property);
            let described = property.get("description").is_some() || path.contains("conditions") || path.is_empty();
            assert!(described, "{path}.{name} has no description");
        }
        for part in ["items", "additionalProperties"] {
            if let Some(inner) = at(part).filter(|inner| inner.is_object()) {
                structural(&format!("{path}[]"), inner);
            }
        }
    }

    #[test]
    fn schemas_are_such_as_an_api_server_accepts() {
        for crd in all() {
            let version = &crd.spec.versions[0];
            let schema = serde_json::to_value(&version.schema).unwrap();
            structural("", &schema["openAPIV3Schema"]);
            assert!(version.subresources.as_ref().is_some_and(|all| all.status.is_some()));
            assert_eq!(crd.metadata.name.as_deref(), Some(&*format!("{}.{}", crd.spec.names.plural, crd.spec.group)));
        }
    }
}
