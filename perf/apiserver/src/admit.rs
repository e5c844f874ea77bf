//! What the server does to an object between reading it and storing it, by kind.
//!
//! Owns defaults and refusals of every kind but Services, which have their own file, and custom resources, which have their
//! schema. Refuses to know who writes. The plainly impossible is refused; what only a controller would notice is not.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::kinds::{Kind, from_definition};
use crate::object::{Key, section};
use crate::problem::{Cause, Problem};
use crate::schema;
use crate::service::{self, Addresses};

/// Puts in what is understood when it is not said, as reading an object does: it belongs to whoever wrote the object.
pub fn defaults(kind: &Kind, value: &mut Value) {
    if kind.kind == "Service" && kind.group.is_empty() {
        service::defaults(value);
    }
}

/// `value` as it will be stored at `key` over `old`. `status` says that only the status is written.
///
/// # Errors
/// Everything that is wrong with it.
pub fn admit(
    addresses: &mut Addresses,
    kind: &Kind,
    key: &Key,
    value: &mut Value,
    old: Option<&Value>,
    status: bool,
) -> Result<(), Problem> {
    let bad_finalizers = if kind.custom { Vec::new() } else { finalizers(value) };
    if !bad_finalizers.is_empty() {
        return Err(Problem::invalid(kind, &key.name, bad_finalizers));
    }
    let causes = match kind.kind.as_str() {
        "Service" if kind.group.is_empty() && status => {
            service::defaults(value);
            service::check_status(value)
        }
        "Service" if kind.group.is_empty() => service::admit(addresses, key, value, old),
        "Namespace" => {
            namespace(value, &key.name);
            Ok(())
        }
        "Pod" => {
            pod(value);
            Ok(())
        }
        "Secret" => {
            secret(value);
            Ok(())
        }
        "EndpointSlice" => slice(value, old),
        "Event" => event(kind, key, value),
        "CustomResourceDefinition" => definition(value),
        _ => match &kind.schema {
            Some(schema) => schema::admit(schema, value),
            None => Ok(()),
        },
    };
    causes.map_err(|causes| Problem::invalid(kind, &key.name, causes))
}

fn namespace(value: &mut Value, name: &str) {
    let labels = section(value, "metadata").entry("labels").or_insert_with(|| json!({}));
    labels["kubernetes.io/metadata.name"] = json!(name);
    let deleting = value.pointer("/metadata/deletionTimestamp").is_some();
    section(value, "spec").entry("finalizers").or_insert_with(|| json!(["kubernetes"]));
    section(value, "status").insert("phase".to_owned(), json!(if deleting { "Terminating" } else { "Active" }));
}

fn pod(value: &mut Value) {
    let spec = section(value, "spec");
    spec.entry("restartPolicy").or_insert_with(|| json!("Always"));
    section(value, "status").entry("phase").or_insert_with(|| json!("Pending"));
}

fn secret(value: &mut Value) {
    value.as_object_mut().map(|fields| fields.entry("type").or_insert_with(|| json!("Opaque")));
    let plain = value.as_object_mut().and_then(|fields| fields.remove("stringData"));
    if let Some(Value::Object(plain)) = plain {
        let data = section(value, "data");
        for (name, text) in &plain {
            data.insert(name.clone(), json!(crate::tls::base64(text.as_str().unwrap_or_default().as_bytes())));
        }
    }
}

fn slice(value: &mut Value, old: Option<&Value>) -> Result<(), Vec<Cause>> {
    let mut causes = Vec::new();
    let family = value.get("addressType").cloned().unwrap_or_default();
    if family.is_null() {
        causes.push(Cause::required("addressType", ""));
    } else if !matches!(family.as_str(), Some("IPv4" | "IPv6" | "FQDN")) {
        causes.push(Cause::unsupported("addressType", &family, &["FQDN", "IPv4", "IPv6"]));
    }
    if old.is_some_and(|old| old.get("addressType") != Some(&family)) {
        causes.push(Cause::invalid("addressType", &family, "field is immutable"));
    }
    if !value.get("endpoints").is_some_and(Value::is_array) {
        value["endpoints"] = json!([]);
    }
    let endpoints = value["endpoints"].as_array().cloned().unwrap_or_default();
    if endpoints.len() > 1000 {
        causes.push(Cause {
            reason: "FieldValueTooMany",
            message: format!("Too many: {}: must have at most 1000 items", endpoints.len()),
            field: "endpoints".to_owned(),
        });
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let addresses = endpoint.get("addresses").and_then(Value::as_array).cloned().unwrap_or_default();
        if addresses.is_empty() {
            causes.push(Cause::required(&format!("endpoints[{index}].addresses"), "must contain at least 1 address"));
        }
        for (position, address) in addresses.iter().enumerate() {
            let ip = address.as_str().and_then(|text| text.parse::<IpAddr>().ok());
            let good = match family.as_str() {
                Some("IPv4") => ip.is_some_and(|ip| ip.is_ipv4()),
                Some("IPv6") => ip.is_some_and(|ip| ip.is_ipv6()),
                _ => true,
            };
            if !good {
                causes.push(Cause::invalid(
                    &format!("endpoints[{index}].addresses[{position}]"),
                    address,
                    "must be a valid address of the addressType",
                ));
            }
        }
    }
    let ports = value.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
        port.entry("name").or_insert_with(|| json!(""));
        port.entry("protocol").or_insert_with(|| json!("TCP"));
    }
    if causes.is_empty() { Ok(()) } else { Err(causes) }
}

/// A finalizer is qualified by a domain, or one of the server's own.
fn finalizers(value: &Value) -> Vec<Cause> {
    let list = value.pointer("/metadata/finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
    let qualified =
        |name: &str| name.split_once('/').is_some_and(|(domain, rest)| !domain.is_empty() && !rest.is_empty());
    let good = |name: &Value| {
        name.as_str()
            .is_some_and(|name| qualified(name) || matches!(name, "foregroundDeletion" | "orphan" | "kubernetes"))
    };
    let bad = list.iter().filter(|name| !good(name));
    bad.map(|name| {
        Cause::invalid(
            "metadata.finalizers",
            name,
            "name is neither a standard finalizer name nor is it fully qualified",
        )
    })
    .collect()
}

/// What an event must say (`pkg/apis/core/validation/events.go`).
fn event(kind: &Kind, key: &Key, value: &Value) -> Result<(), Vec<Cause>> {
    let mut causes = Vec::new();
    let text = |field: &str| value.pointer(&format!("/{field}")).and_then(Value::as_str).unwrap_or_default();
    let about = if kind.group.is_empty() { "involvedObject" } else { "regarding" };
    let namespace = text(&format!("{about}/namespace"));
    let home = if namespace.is_empty() { "default" } else { namespace };
    if home != key.namespace {
        causes.push(Cause::invalid(&format!("{about}.namespace"), &json!(namespace), "does not match event.namespace"));
    }
    if !kind.group.is_empty() {
        for field in ["eventTime", "reportingController", "reportingInstance", "action", "reason"] {
            let said = text(field);
            if said.is_empty() {
                causes.push(Cause::required(field, ""));
            } else if said.len() > 128 {
                causes.push(Cause::invalid(field, &json!(said), "can have at most 128 characters"));
            }
        }
        if !matches!(text("type"), "Normal" | "Warning") {
            causes.push(Cause::invalid("type", &json!(text("type")), "has invalid value"));
        }
        if text("note").len() > 1024 {
            causes.push(Cause::invalid("note", &json!(text("note")), "can have at most 1024 bytes"));
        }
    }
    if causes.is_empty() { Ok(()) } else { Err(causes) }
}

fn definition(value: &mut Value) -> Result<(), Vec<Cause>> {
    let kind = from_definition(value).map_err(|error| {
        let (field, message) = error.split_once(": ").unwrap_or(("spec", &error));
        vec![Cause { reason: "FieldValueInvalid", message: message.to_owned(), field: field.to_owned() }]
    })?;
    let expected = kind.resource();
    let name = value.pointer("/metadata/name").cloned().unwrap_or_default();
    if name != expected.as_str() {
        return Err(vec![Cause::invalid("metadata.name", &name, "must be spec.names.plural+\".\"+spec.group")]);
    }
    let condition = |of: &str, reason: &str| json!({"type": of, "status": "True", "reason": reason, "message": "accepted", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let names = value.pointer("/spec/names").cloned().unwrap_or_default();
    value["status"] = json!({
        "conditions": [condition("NamesAccepted", "NoConflicts"), condition("Established", "InitialNamesAccepted")],
        "acceptedNames": names,
        "storedVersions": [kind.version],
    });
    Ok(())
}
