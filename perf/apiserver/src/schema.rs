//! Structural schemas of custom resources: pruning, defaults and refusals.
//!
//! Owns what the real server does with `openAPIV3Schema` on every write: fields that the schema does not name are dropped,
//! missing fields with a default get it, and values that do not fit are refused with their field. Refuses to know CEL:
//! `x-kubernetes-validations` are not evaluated.

use serde_json::Value;

use crate::problem::Cause;

/// Prunes, completes and checks `value` by `schema`.
///
/// # Errors
/// Everything that does not fit.
pub fn admit(schema: &Value, value: &mut Value) -> Result<(), Vec<Cause>> {
    prune(schema, value, true);
    complete(schema, value);
    let mut causes = Vec::new();
    check(schema, value, "", &mut causes);
    if causes.is_empty() { Ok(()) } else { Err(causes) }
}

fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool) == Some(true)
}

fn prune(schema: &Value, value: &mut Value, top: bool) {
    match value {
        Value::Object(fields) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let others = schema.get("additionalProperties").filter(|others| **others != Value::Bool(false));
            let keep_all = flag(schema, "x-kubernetes-preserve-unknown-fields");
            let own = |name: &str| top && matches!(name, "apiVersion" | "kind" | "metadata");
            let known = |name: &str| properties.is_some_and(|properties| properties.contains_key(name));
            if !keep_all && others.is_none() {
                let gone: Vec<_> = fields.keys().filter(|name| !known(name) && !own(name)).cloned().collect();
                gone.iter().for_each(|name| drop(fields.remove(name)));
            }
            for (name, inner) in fields.iter_mut().filter(|(name, _)| !own(name)) {
                match (properties.and_then(|properties| properties.get(name)), others) {
                    (Some(schema), _) => prune(schema, inner, false),
                    (None, Some(schema)) if schema.is_object() => prune(schema, inner, false),
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| prune(schema, item, false));
            }
        }
        _ => {}
    }
}

fn complete(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                if let Some(default) = schema.get("default").filter(|_| !fields.contains_key(name)) {
                    fields.insert(name.clone(), default.clone());
                }
                if let Some(inner) = fields.get_mut(name) {
                    complete(schema, inner);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| complete(schema, item));
            }
        }
        _ => {}
    }
}

fn check(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if !of_type(schema, value) {
        let of = schema.get("type").and_then(Value::as_str).unwrap_or("integer or string");
        let message = format!("Invalid value: {value}: {path} in body must be of type {of}");
        causes.push(Cause { reason: "FieldValueTypeInvalid", message, field: path.to_owned() });
        return;
    }
    let invalid = |why: String| Cause::invalid(path, value, &format!("{path} in body {why}"));
    if let Some(choices) = schema.get("enum").and_then(Value::as_array).filter(|choices| !choices.contains(value)) {
        let words: Vec<_> = choices.iter().filter_map(Value::as_str).collect();
        causes.push(Cause::unsupported(path, value, &words));
    }
    let limit = |name: &str| schema.get(name).and_then(Value::as_f64);
    if let Some(number) = value.as_f64() {
        if limit("minimum").is_some_and(|least| number < least) {
            causes.push(invalid(format!("should be greater than or equal to {}", schema["minimum"])));
        }
        if limit("maximum").is_some_and(|most| number > most) {
            causes.push(invalid(format!("should be less than or equal to {}", schema["maximum"])));
        }
    }
    let size = match value {
        Value::String(text) => Some(("Length", text.chars().count())),
        Value::Array(items) => Some(("Items", items.len())),
        Value::Object(fields) => Some(("Properties", fields.len())),
        _ => None,
    };
    if let Some((of, size)) = size {
        let bound = |word: &str| {
            schema.get(format!("{word}{of}")).and_then(Value::as_u64).and_then(|bound| usize::try_from(bound).ok())
        };
        if bound("min").is_some_and(|least| size < least) {
            causes.push(invalid(format!("should be at least {} long", bound("min").unwrap_or(0))));
        }
        if bound("max").is_some_and(|most| size > most) {
            causes.push(Cause {
                reason: "FieldValueTooLong",
                message: format!("Too long: may not be more than {}", bound("max").unwrap_or(0)),
                field: path.to_owned(),
            });
        }
    }
    inside(schema, value, path, causes);
}

fn inside(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(fields) => {
            for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
            {
                if !fields.contains_key(name) {
                    causes.push(Cause::required(&below(name), ""));
                }
            }
            for (name, inner) in fields {
                let schema = schema.get("properties").and_then(|properties| properties.get(name));
                let schema = schema.filter(|_| !(path.is_empty() && name == "metadata"));
                schema.into_iter().for_each(|schema| check(schema, inner, &below(name), causes));
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                schema
                    .get("items")
                    .into_iter()
                    .for_each(|schema| check(schema, item, &format!("{path}[{index}]"), causes));
            }
        }
        _ => {}
    }
}

fn of_type(schema: &Value, value: &Value) -> bool {
    if flag(schema, "nullable") && value.is_null() {
        return true;
    }
    if flag(schema, "x-kubernetes-int-or-string") {
        return value.is_i64() || value.is_u64() || value.is_string();
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_pruned_completed_and_checked() {
        let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object", "required": ["addresses"], "properties": {
            "addresses": {"type": "array", "minItems": 1, "items": {"type": "string"}},
            "autoAssign": {"type": "boolean", "default": true},
            "priority": {"type": "integer", "minimum": 0},
            "mode": {"type": "string", "enum": ["A", "B"]},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}}}}}});
        let mut good = json!({"kind": "K", "metadata": {"name": "x"}, "spec": {"addresses": ["a"], "other": 1, "labels": {"k": "v"}}});
        admit(&schema, &mut good).unwrap();
        assert_eq!(
            good,
            json!({"kind": "K", "metadata": {"name": "x"}, "spec": {"addresses": ["a"], "autoAssign": true, "labels": {"k": "v"}}})
        );
        let mut bad = json!({"spec": {"addresses": [], "autoAssign": "yes", "priority": -1, "mode": "C"}});
        let fields: Vec<_> = admit(&schema, &mut bad).unwrap_err().into_iter().map(|cause| cause.field).collect();
        assert_eq!(fields, ["spec.addresses", "spec.autoAssign", "spec.mode", "spec.priority"]);
        assert_eq!(admit(&schema, &mut json!({})).unwrap_err()[0].field, "spec");
    }
}
