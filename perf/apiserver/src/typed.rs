//! Objects of built-in kinds as their types have them.
//!
//! Owns one question: what is left of a value when the type of its kind has read it. The real server stores no field that the
//! type does not have and refuses values of another type; a misspelt field that a stand-in kept would hide a mistake. Refuses
//! to know what values mean. Pods and definitions are left as they are: only tests write them, and their types are large.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Event as CoreEvent, Namespace, Node, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kinds::Kind;
use crate::problem::Problem;

/// `value` as the type of `kind` has it.
///
/// # Errors
/// A value of another type than the field has.
pub fn read(kind: &Kind, value: &Value) -> Result<Value, Problem> {
    let read = match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Service") => through::<Service>,
        ("", "Endpoints") => through::<Endpoints>,
        ("", "Node") => through::<Node>,
        ("", "Namespace") => through::<Namespace>,
        ("", "Event") => through::<CoreEvent>,
        ("", "Secret") => through::<Secret>,
        ("", "ConfigMap") => through::<ConfigMap>,
        ("discovery.k8s.io", "EndpointSlice") => through::<EndpointSlice>,
        ("coordination.k8s.io", "Lease") => through::<Lease>,
        ("events.k8s.io", "Event") => through::<Event>,
        ("networking.k8s.io", "NetworkPolicy") => through::<NetworkPolicy>,
        _ => return Ok(value.clone()),
    };
    read(value).map_err(|error| {
        let (version, name) = (&kind.version, &kind.kind);
        Problem::bad_request(format!("{name} in version {version:?} cannot be handled as a {name}: json: {error}"))
    })
}

fn through<K: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<K>(value.clone())?)
}

/// The first field of `value` that `typed` lost, as a path.
pub fn lost(value: &Value, typed: &Value) -> Option<String> {
    match (value, typed) {
        (Value::Object(fields), Value::Object(kept)) => fields.iter().find_map(|(name, field)| match kept.get(name) {
            None if field.is_null() => None,
            None => Some(format!(".{name}")),
            Some(kept) => lost(field, kept).map(|path| format!(".{name}{path}")),
        }),
        (Value::Array(items), Value::Array(kept)) => items
            .iter()
            .zip(kept)
            .enumerate()
            .find_map(|(at, (item, kept))| lost(item, kept).map(|path| format!("[{at}]{path}"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::built_in;

    #[test]
    fn a_misspelt_field_is_lost_and_a_wrong_type_refused() {
        let kind = &built_in()[0];
        let value = json!({"spec": {"ports": [{"port": 80, "portt": 1}]}, "status": {"loadBalancer": {}}});
        let typed = read(kind, &value).unwrap();
        assert_eq!(typed["spec"]["ports"], json!([{"port": 80}]));
        assert_eq!(lost(&value, &typed).unwrap(), ".spec.ports[0].portt");
        assert_eq!(read(kind, &json!({"spec": {"ports": "none"}})).unwrap_err().code, 400);
    }

    #[test]
    fn what_every_built_in_kind_has_is_kept() {
        for kind in built_in() {
            let value = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": "x", "labels": {"a": "b"},
                "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}]}});
            let value = if kind.kind == "EndpointSlice" {
                let mut slice = value.clone();
                slice["addressType"] = json!("IPv4");
                slice["endpoints"] = json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}]);
                slice
            } else {
                value
            };
            let typed = read(&kind, &value).unwrap();
            assert_eq!(lost(&value, &typed), None, "{}", kind.kind);
        }
    }
}
