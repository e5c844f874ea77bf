//! The parts of an object that a write may touch, and those that only the server does.
//!
//! Owns what is checked, kept, left out and compared in values. Refuses to know the store.

use serde_json::{Value, json};

use super::Write;
use super::mint::uid;
use crate::kinds::Kind;
use crate::object::{Key, section};
use crate::problem::{Cause, Problem};
use crate::write::now;

/// Text in the metadata of `value`, empty if there is none.
pub fn metadata<'v>(value: &'v Value, field: &str) -> &'v str {
    value.pointer("/metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn finalizers(value: &Value) -> Vec<&str> {
    let list = value.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Refuses bodies that are no object of `kind`.
pub(super) fn check_shape(kind: &Kind, value: &Value) -> Result<(), Problem> {
    let section = |name: &str| value.get(name).is_none_or(|part| part.is_object() || part.is_null());
    if !value.is_object() || !section("metadata") || !section("spec") || !section("status") {
        return Err(Problem::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: not an object",
            kind.kind,
            kind.api_version(),
            kind.kind
        )));
    }
    let said = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, name) = (said("apiVersion"), said("kind"));
    if (!api_version.is_empty() && api_version != kind.api_version()) || (!name.is_empty() && name != kind.kind) {
        let why = format!(
            "the object provided is unrecognized: apiVersion {api_version:?}, kind {name:?}; expected {:?}, {:?}",
            kind.api_version(),
            kind.kind
        );
        return Err(Problem::bad_request(why));
    }
    for field in ["labels", "annotations"] {
        let map = value.pointer(&format!("/metadata/{field}"));
        let texts = |map: &Value| {
            map.as_object().is_some_and(|map| map.values().all(|text| text.is_string() || text.is_null()))
        };
        if map.is_some_and(|map| !map.is_null() && !texts(map)) {
            return Err(Problem::bad_request(format!("json: cannot unmarshal {field} of type map[string]string")));
        }
    }
    Ok(())
}

pub(super) fn check_name(kind: &Kind, name: &str) -> Result<(), Problem> {
    let letter =
        |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-' || letter == '.';
    let ends = |name: &str| {
        name.chars()
            .next()
            .zip(name.chars().last())
            .is_some_and(|(first, last)| first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
    };
    let label = matches!(kind.kind.as_str(), "Service" | "Namespace");
    let good = name.chars().all(letter)
        && ends(name)
        && name.len() <= if label { 63 } else { 253 }
        && !(label && name.contains('.'));
    if good {
        return Ok(());
    }
    let why = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
    Err(Problem::invalid(kind, name, vec![Cause::invalid("metadata.name", &json!(name), why)]))
}

/// Gives a new object what the server gives it.
pub(super) fn dress(kind: &Kind, value: &mut Value, key: &Key) {
    let metadata = section(value, "metadata");
    for gone in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
        metadata.remove(gone);
    }
    metadata.insert("name".to_owned(), json!(key.name));
    if kind.namespaced {
        metadata.insert("namespace".to_owned(), json!(key.namespace));
    } else {
        metadata.remove("namespace");
    }
    metadata.insert("uid".to_owned(), json!(uid()));
    metadata.insert("creationTimestamp".to_owned(), json!(now()));
    if kind.generation {
        metadata.insert("generation".to_owned(), json!(1));
    }
    value["apiVersion"] = json!(kind.api_version());
    value["kind"] = json!(kind.kind);
}

/// Puts back what only the server writes.
pub(super) fn keep(value: &mut Value, before: &Value, applied: bool) {
    value["apiVersion"] = before["apiVersion"].clone();
    value["kind"] = before["kind"].clone();
    let old = before.get("metadata").cloned().unwrap_or_default();
    let metadata = section(value, "metadata");
    let owners = if applied { None } else { Some("managedFields") };
    let fields = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ];
    for field in fields.into_iter().chain(owners) {
        match old.get(field) {
            Some(there) => drop(metadata.insert(field.to_owned(), there.clone())),
            None => drop(metadata.remove(field)),
        }
    }
}

/// Leaves of a write only the part it is for: everything but the status, or the status.
pub(super) fn part(kind: &Kind, value: &mut Value, before: &Value, status: bool) {
    if !kind.has_status {
        return;
    }
    if !status {
        match before.get("status") {
            Some(there) => value["status"] = there.clone(),
            None => drop(value.as_object_mut().map(|fields| fields.remove("status"))),
        }
        return;
    }
    let new_status = value.get("status").cloned();
    let new_metadata = value.get("metadata").cloned();
    *value = before.clone();
    match new_status {
        Some(status) => value["status"] = status,
        None => drop(value.as_object_mut().map(|fields| fields.remove("status"))),
    }
    if let Some(metadata) = new_metadata {
        if kind.custom {
            let owners = metadata.get("managedFields").cloned();
            owners.into_iter().for_each(|owners| value["metadata"]["managedFields"] = owners);
        } else {
            value["metadata"] = metadata;
        }
    }
}

/// Leaves of what is applied only the part it is for.
pub(super) fn cut(kind: &Kind, applied: &mut Value, write: &Write) {
    let Some(fields) = applied.as_object_mut() else { return };
    if write.status() {
        fields.retain(|name, _| matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
        if kind.custom {
            fields.remove("metadata");
        }
    } else if kind.has_status && !write.whole {
        fields.remove("status");
    }
}

/// What counts for the generation.
pub(super) fn wanted(kind: &Kind, value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("metadata");
        if kind.has_status {
            fields.remove("status");
        }
    }
    value
}

/// Whether two states are the same but for the times of owners.
pub(super) fn same(new: &Value, old: &Value) -> bool {
    let timeless = |value: &Value| {
        let mut value = value.clone();
        let owners = value.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut);
        for owner in owners.into_iter().flatten().filter_map(Value::as_object_mut) {
            owner.remove("time");
        }
        value
    };
    timeless(new) == timeless(old)
}
