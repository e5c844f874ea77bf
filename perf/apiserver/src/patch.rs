//! Patches: JSON patch, merge patch and strategic merge patch.
//!
//! Owns what a patch makes of an object. Refuses to know whether the result may be stored. Server-side apply is in `apply`.
//! Strategic merge knows the lists of the kinds table and merges them by their first key, as the built-in types declare;
//! `$patch`, `$retainKeys` and `$deleteFromPrimitiveList` are honoured, `$setElementOrder` is not (it orders, no more).

use json_patch::PatchOperation;
use serde_json::{Map, Value};

use crate::kinds::{Kind, ListType};
use crate::problem::Problem;

/// How the body of a PATCH is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Merge by the keys of lists.
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchType {
    /// The type that a `Content-Type` names.
    pub fn named(content_type: &str) -> Option<PatchType> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Some(PatchType::Json),
            "application/merge-patch+json" => Some(PatchType::Merge),
            "application/strategic-merge-patch+json" => Some(PatchType::Strategic),
            "application/apply-patch+yaml" => Some(PatchType::Apply),
            _ => None,
        }
    }
}

/// `live` after `patch`.
///
/// # Errors
/// A patch that cannot be read or does not fit.
pub fn patched(kind: &Kind, live: &Value, patch: &Value, of: PatchType) -> Result<Value, Problem> {
    let mut value = live.clone();
    match of {
        PatchType::Json => {
            let operations: Vec<PatchOperation> = serde_json::from_value(patch.clone())
                .map_err(|error| Problem::bad_request(format!("error decoding patch: {error}")))?;
            let refused = |error| {
                Problem::unprocessable(format!(
                    "the server rejected our request due to an error in our request: {error}"
                ))
            };
            json_patch::patch(&mut value, &operations).map_err(refused)?;
        }
        PatchType::Merge => json_patch::merge(&mut value, patch),
        PatchType::Strategic if kind.custom => {
            return Err(Problem::unsupported_media("application/strategic-merge-patch+json"));
        }
        PatchType::Strategic => match patch {
            Value::Object(patch) => merge_map(kind, &mut value, patch, ""),
            _ => return Err(Problem::bad_request("error decoding patch: not an object")),
        },
        PatchType::Apply => return Err(Problem::bad_request("apply is not a patch of a value")),
    }
    Ok(value)
}

fn directive(patch: &Map<String, Value>) -> Option<&str> {
    patch.get("$patch").and_then(Value::as_str)
}

fn merge_map(kind: &Kind, target: &mut Value, patch: &Map<String, Value>, names: &str) {
    if !target.is_object() || directive(patch) == Some("replace") {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return };
    for (name, inner) in patch {
        if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = inner.as_array().cloned().unwrap_or_default();
            if let Some(items) = map.get_mut(list).and_then(Value::as_array_mut) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if name == "$retainKeys" {
            let kept = inner.as_array().cloned().unwrap_or_default();
            let gone: Vec<_> = map.keys().filter(|name| !kept.contains(&Value::from(name.as_str()))).cloned().collect();
            gone.iter().for_each(|name| drop(map.remove(name)));
            continue;
        }
        if name.starts_with('$') {
            continue;
        }
        let names = if names.is_empty() { name.clone() } else { format!("{names}.{name}") };
        match inner {
            Value::Null => drop(map.remove(name)),
            Value::Object(inner) if directive(inner) == Some("delete") => drop(map.remove(name)),
            Value::Object(inner) => merge_map(kind, map.entry(name.clone()).or_insert(Value::Null), inner, &names),
            Value::Array(items) => {
                merge_list(kind, map.entry(name.clone()).or_insert(Value::Array(Vec::new())), items, &names)
            }
            _ => drop(map.insert(name.clone(), inner.clone())),
        }
    }
}

fn merge_list(kind: &Kind, target: &mut Value, patch: &[Value], names: &str) {
    let (of, Value::Array(items)) = (kind.list_type(names), &mut *target) else {
        *target = Value::Array(patch.to_vec());
        return;
    };
    let says = |item: &Value, word: &str| item.get("$patch").and_then(Value::as_str) == Some(word);
    match of {
        ListType::Atomic => *items = patch.to_vec(),
        ListType::Set => patch.iter().for_each(|item| {
            if !items.contains(item) {
                items.push(item.clone());
            }
        }),
        ListType::Map(_) if patch.iter().any(|item| says(item, "replace")) => {
            *items = patch.iter().filter(|item| !says(item, "replace")).cloned().collect();
        }
        ListType::Map(keys) => {
            let key = keys.first().map(|key| key.field.as_str()).unwrap_or_default();
            for item in patch {
                let there = items.iter().position(|there| there.get(key) == item.get(key));
                match (there, item) {
                    (Some(at), item) if says(item, "delete") => drop(items.remove(at)),
                    (None, item) if says(item, "delete") => {}
                    (Some(at), Value::Object(item)) => merge_map(kind, &mut items[at], item, names),
                    (_, item) => items.push(item.clone()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::built_in;

    fn result(live: Value, patch: Value, of: PatchType) -> Result<Value, Problem> {
        patched(&built_in()[0], &live, &patch, of)
    }

    #[test]
    fn strategic_merge_joins_lists_by_key_and_sets_by_value() {
        let live = json!({"metadata": {"finalizers": ["a"], "labels": {"x": "1"}},
            "status": {"conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "True"}], "loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
        let patch = json!({"metadata": {"finalizers": ["b"], "labels": {"x": null}, "$setElementOrder/finalizers": ["a", "b"]},
            "status": {"conditions": [{"type": "B", "status": "False"}, {"type": "A", "$patch": "delete"}], "loadBalancer": {"ingress": [{"ip": "192.0.2.2"}]}}});
        let expected = json!({"metadata": {"finalizers": ["a", "b"], "labels": {}},
            "status": {"conditions": [{"type": "B", "status": "False"}], "loadBalancer": {"ingress": [{"ip": "192.0.2.2"}]}}});
        assert_eq!(result(live.clone(), patch, PatchType::Strategic).unwrap(), expected);
        let gone = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}});
        assert_eq!(result(live, gone, PatchType::Strategic).unwrap()["metadata"]["finalizers"], json!([]));
    }

    #[test]
    fn a_json_patch_whose_test_fails_changes_nothing_and_says_so() {
        let live = json!({"metadata": {"finalizers": ["a"]}});
        let patch = json!([{"op": "test", "path": "/metadata/finalizers/0", "value": "b"}, {"op": "remove", "path": "/metadata/finalizers/0"}]);
        assert_eq!(result(live.clone(), patch, PatchType::Json).unwrap_err().code, 422);
        assert_eq!(result(live, json!([{"op": "jump"}]), PatchType::Json).unwrap_err().code, 400);
    }
}
