//! Sets of fields: which parts of an object somebody owns.
//!
//! A field is a path of steps written as in `metadata.managedFields[].fieldsV1`: `f:name` for a field, `k:{…}` for an item of a
//! list of objects, `v:…` for an item of a set. Owns the gathering of all fields of a value, the comparison of two values
//! and the change of a set into its JSON form and back. Refuses to know managers and conflicts.
//!
//! Rules follow `sigs.k8s.io/structured-merge-diff`: leaves, atomic lists and maps and empty maps are fields; items of lists
//! by key are fields besides their own fields; a list or a free map that appears as a whole is one as well (its `.`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::kinds::{Kind, ListKey, ListType};

/// Steps from the top of an object to one field.
pub type Path = Vec<String>;

/// Some fields of an object.
pub type Fields = BTreeSet<Path>;

/// What differs between two values.
#[derive(Debug, Default, PartialEq)]
pub struct Difference {
    /// Fields only the new one has.
    pub added: Fields,
    /// Fields with another value.
    pub modified: Fields,
    /// Fields only the old one had.
    pub removed: Fields,
}

/// The place of a value in an object: as steps, and as field names for the schema.
#[derive(Clone, Default)]
struct Place {
    path: Path,
    names: String,
}

impl Place {
    fn field(&self, name: &str) -> Place {
        let mut path = self.path.clone();
        path.push(format!("f:{name}"));
        let names = if self.names.is_empty() { name.to_owned() } else { format!("{}.{name}", self.names) };
        Place { path, names }
    }

    fn item(&self, step: String) -> Place {
        let mut path = self.path.clone();
        path.push(step);
        Place { path, names: self.names.clone() }
    }
}

/// Maps whose fields people name: they have a `.` of their own.
fn is_free(names: &str) -> bool {
    matches!(names, "metadata.labels" | "metadata.annotations" | "data" | "stringData" | "binaryData")
}

/// The step to `item` of a list by key.
pub fn key_step(keys: &[ListKey], item: &Value) -> String {
    let mut named = BTreeMap::new();
    for key in keys {
        let value = item.get(&key.field).or(key.default.as_ref());
        named.insert(key.field.as_str(), value.cloned().unwrap_or_default());
    }
    format!("k:{}", serde_json::to_string(&named).unwrap_or_default())
}

/// The step to `item` of a set.
pub fn value_step(item: &Value) -> String {
    format!("v:{item}")
}

/// The step to `item` of a list of type `of`; none for atomic lists.
pub fn item_step(of: &ListType, item: &Value) -> Option<String> {
    match of {
        ListType::Atomic => None,
        ListType::Set => Some(value_step(item)),
        ListType::Map(keys) => Some(key_step(keys, item)),
    }
}

/// All fields of `value`, an object of `kind`.
pub fn of(kind: &Kind, value: &Value) -> Fields {
    let mut fields = Fields::new();
    gather(kind, value, &Place::default(), &mut fields);
    fields
}

fn gather(kind: &Kind, value: &Value, place: &Place, fields: &mut Fields) {
    match value {
        Value::Object(map) if !map.is_empty() && !kind.atomic_map(&place.names) => {
            map.iter().for_each(|(name, inner)| gather(kind, inner, &place.field(name), fields));
        }
        Value::Array(items) if *kind.list_type(&place.names) != ListType::Atomic => {
            let of = kind.list_type(&place.names);
            for item in items {
                let place = place.item(item_step(of, item).unwrap_or_default());
                fields.insert(place.path.clone());
                if matches!(of, ListType::Map(_)) {
                    gather(kind, item, &place, fields);
                }
            }
        }
        _ if place.path.is_empty() => {}
        _ => drop(fields.insert(place.path.clone())),
    }
}

/// What a whole new (or gone) value adds: its fields, and itself where it can hold others.
fn gather_whole(kind: &Kind, value: &Value, place: &Place, fields: &mut Fields) {
    let list = value.is_array() && *kind.list_type(&place.names) != ListType::Atomic;
    if list || (value.is_object() && is_free(&place.names)) {
        fields.insert(place.path.clone());
    }
    match value {
        Value::Object(map) if !map.is_empty() && !kind.atomic_map(&place.names) => {
            map.iter().for_each(|(name, inner)| gather_whole(kind, inner, &place.field(name), fields));
        }
        _ => gather(kind, value, place, fields),
    }
}

/// What differs between two objects of `kind`.
pub fn compare(kind: &Kind, old: &Value, new: &Value) -> Difference {
    let mut difference = Difference::default();
    walk(kind, old, new, &Place::default(), &mut difference);
    difference
}

fn walk(kind: &Kind, old: &Value, new: &Value, place: &Place, to: &mut Difference) {
    match (old, new) {
        (Value::Object(old_map), Value::Object(new_map)) if !kind.atomic_map(&place.names) => {
            for (name, inner) in new_map {
                match old_map.get(name) {
                    Some(before) => walk(kind, before, inner, &place.field(name), to),
                    None => gather_whole(kind, inner, &place.field(name), &mut to.added),
                }
            }
            for (name, inner) in old_map.iter().filter(|(name, _)| !new_map.contains_key(*name)) {
                gather_whole(kind, inner, &place.field(name), &mut to.removed);
            }
        }
        (Value::Array(old_items), Value::Array(new_items)) if *kind.list_type(&place.names) != ListType::Atomic => {
            walk_items(kind, old_items, new_items, place, to);
        }
        _ if old == new => {}
        _ => drop(to.modified.insert(place.path.clone())),
    }
}

fn walk_items(kind: &Kind, old: &[Value], new: &[Value], place: &Place, to: &mut Difference) {
    let of = kind.list_type(&place.names);
    let by_step = |items: &[Value]| -> BTreeMap<String, Value> {
        items.iter().filter_map(|item| Some((item_step(of, item)?, item.clone()))).collect()
    };
    let (old, new) = (by_step(old), by_step(new));
    let whole = |step: &String, item: &Value, fields: &mut Fields| {
        let place = place.item(step.clone());
        fields.insert(place.path.clone());
        if matches!(of, ListType::Map(_)) {
            gather(kind, item, &place, fields);
        }
    };
    for (step, item) in &new {
        match old.get(step) {
            Some(before) => walk(kind, before, item, &place.item(step.clone()), to),
            None => whole(step, item, &mut to.added),
        }
    }
    for (step, item) in old.iter().filter(|(step, _)| !new.contains_key(*step)) {
        whole(step, item, &mut to.removed);
    }
}

/// `fieldsV1` of `fields`.
pub fn to_json(fields: &Fields) -> Value {
    let mut top = Map::new();
    for path in fields {
        insert(&mut top, path);
    }
    let mut top = Value::Object(top);
    trim_dots(&mut top);
    top
}

fn insert(at: &mut Map<String, Value>, path: &[String]) {
    let Some((step, rest)) = path.split_first() else {
        at.insert(".".to_owned(), Value::Object(Map::new()));
        return;
    };
    if let Value::Object(inner) = at.entry(step.clone()).or_insert_with(|| Value::Object(Map::new())) {
        insert(inner, rest);
    }
}

/// Takes the `.` out of fields that hold nothing else: `{".": {}}` is written `{}`.
fn trim_dots(value: &mut Value) {
    let Value::Object(map) = value else { return };
    if map.len() == 1 && map.contains_key(".") {
        map.clear();
    }
    map.values_mut().for_each(trim_dots);
}

/// The fields that a `fieldsV1` says.
pub fn from_json(value: &Value) -> Fields {
    let mut fields = Fields::new();
    read(value, &mut Vec::new(), &mut fields);
    fields
}

fn read(value: &Value, path: &mut Path, fields: &mut Fields) {
    let Value::Object(map) = value else { return };
    if !path.is_empty() && (map.is_empty() || map.contains_key(".")) {
        fields.insert(path.clone());
    }
    for (step, inner) in map.iter().filter(|(step, _)| *step != ".") {
        path.push(step.clone());
        read(inner, path, fields);
        path.pop();
    }
}

/// A path as messages write it: `.spec.ports[port=80,protocol="TCP"].name`.
pub fn written(path: &[String]) -> String {
    path.iter().map(|step| written_step(step)).collect()
}

fn written_step(step: &str) -> String {
    match step.split_at_checked(2) {
        Some(("f:", name)) => format!(".{name}"),
        Some(("v:", value)) => format!("[={value}]"),
        Some(("k:", key)) => {
            let key: BTreeMap<String, Value> = serde_json::from_str(key).unwrap_or_default();
            let parts: Vec<_> = key.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", parts.join(","))
        }
        _ => step.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::kinds::built_in;

    fn service() -> Arc<Kind> {
        built_in().remove(0)
    }

    #[test]
    fn fields_are_written_as_managed_fields_are() {
        let value = json!({"metadata": {"labels": {"a": "1"}, "finalizers": ["x/y"]},
            "spec": {"selector": {"app": "w"}, "ports": [{"port": 80, "name": "web"}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
        let json = to_json(&of(&service(), &value));
        let expected = json!({
            "f:metadata": {"f:labels": {"f:a": {}}, "f:finalizers": {"v:\"x/y\"": {}}},
            "f:spec": {"f:selector": {}, "f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}, "f:name": {}}}},
            "f:status": {"f:loadBalancer": {"f:ingress": {}}}});
        assert_eq!(json, expected);
        assert_eq!(from_json(&json), of(&service(), &value));
    }

    #[test]
    fn a_comparison_tells_what_came_what_went_and_what_is_another() {
        let old = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"ports": [{"port": 80, "nodePort": 1}, {"port": 81}]}});
        let new = json!({"metadata": {"labels": {"a": "3"}, "finalizers": ["f"]}, "spec": {"ports": [{"port": 80, "protocol": "TCP", "nodePort": 2}]}});
        let found = compare(&service(), &old, &new);
        let text = |fields: &Fields| fields.iter().map(|path| written(path)).collect::<Vec<_>>();
        assert_eq!(text(&found.modified), [".metadata.labels.a", ".spec.ports[port=80,protocol=\"TCP\"].nodePort"]);
        assert_eq!(
            text(&found.added),
            [".metadata.finalizers", ".metadata.finalizers[=\"f\"]", ".spec.ports[port=80,protocol=\"TCP\"].protocol"]
        );
        assert_eq!(
            text(&found.removed),
            [
                ".metadata.labels.b",
                ".spec.ports[port=81,protocol=\"TCP\"]",
                ".spec.ports[port=81,protocol=\"TCP\"].port"
            ]
        );
    }
}
