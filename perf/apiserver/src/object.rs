//! One stored object: its JSON text, and the little that lists and watches need without reading it.
//!
//! The text is made once, when the object is written, and sent as it is in every answer: fifty thousand objects stream as
//! fast as memory can be copied. It is laid out so that the parts that answers leave out can be cut off without parsing:
//! `{` kind and apiVersion `"metadata":` metadata `,` the rest `}`. An object never changes; a write makes a new one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use axum::body::Bytes;
use serde_json::{Map, Value};

use crate::kinds::Kind;

/// Where an object is: its namespace (empty for kinds of the whole cluster) and its name. Ordered as lists are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace, empty for kinds of the whole cluster.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The key of `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Key {
        Key { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// One object as it was stored at one revision.
#[derive(Clone, Debug)]
pub struct Object {
    /// Where it is.
    pub key: Key,
    /// Its `metadata.resourceVersion`.
    pub revision: u64,
    /// Its labels, for selectors.
    pub labels: BTreeMap<String, String>,
    text: Bytes,
    /// Bytes of kind and apiVersion after the opening brace.
    types: Range<usize>,
    /// Bytes of the metadata object.
    metadata: Range<usize>,
}

impl Object {
    /// The object of `value`, with `revision` as its `resourceVersion`.
    pub fn new(kind: &Kind, mut value: Value, revision: u64) -> Object {
        value["metadata"]["resourceVersion"] = Value::from(revision.to_string());
        let metadata = value.get("metadata").cloned().unwrap_or_default();
        let metadata_text = metadata.to_string();
        let mut rest = String::new();
        if let Value::Object(fields) = &value {
            for (name, field) in
                fields.iter().filter(|(name, _)| !matches!(name.as_str(), "kind" | "apiVersion" | "metadata"))
            {
                rest.push(',');
                rest.push_str(&Value::from(name.as_str()).to_string());
                rest.push(':');
                rest.push_str(&field.to_string());
            }
        }
        let word = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let key = Key::new(word("/metadata/namespace"), word("/metadata/name"));
        Object::assembled(kind, key, revision, labels(&value), &metadata_text, &rest)
    }

    /// The object whose parts are text already: `metadata_text` is its metadata object, `rest` its other fields, each
    /// with a comma before it.
    pub fn assembled(
        kind: &Kind,
        key: Key,
        revision: u64,
        labels: BTreeMap<String, String>,
        metadata_text: &str,
        rest: &str,
    ) -> Object {
        let types = format!("\"kind\":\"{}\",\"apiVersion\":\"{}\",", kind.kind, kind.api_version());
        let head = 1 + types.len() + "\"metadata\":".len();
        let text = format!("{{{types}\"metadata\":{metadata_text}{rest}}}");
        Object {
            key,
            revision,
            labels,
            text: Bytes::from(text),
            types: 1..1 + types.len(),
            metadata: head..head + metadata_text.len(),
        }
    }

    /// The whole text.
    pub fn text(&self) -> Bytes {
        self.text.clone()
    }

    /// The text as items of lists of built-in kinds have it: without kind and apiVersion, and without its opening brace.
    pub fn untyped_tail(&self) -> Bytes {
        self.text.slice(self.types.end..)
    }

    /// The text of the metadata object.
    pub fn metadata(&self) -> Bytes {
        self.text.slice(self.metadata.clone())
    }

    /// The object in memory, to read or to change.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.text).unwrap_or_default()
    }

    /// The same object under another revision: what a watch says of a deletion.
    pub fn at(&self, kind: &Kind, revision: u64) -> Arc<Object> {
        Arc::new(Object::new(kind, self.value(), revision))
    }
}

fn labels(value: &Value) -> BTreeMap<String, String> {
    let text = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
    let found = value.pointer("/metadata/labels").and_then(Value::as_object);
    found.into_iter().flatten().filter_map(text).collect()
}

/// Takes `null` fields out: the real server's types do not store them.
pub fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let nulls: Vec<_> =
                fields.iter().filter(|(_, field)| field.is_null()).map(|(name, _)| name.clone()).collect();
            nulls.iter().for_each(|name| drop(fields.remove(name)));
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// The map at `field` of `value`, made if it is not there.
pub fn section<'v>(value: &'v mut Value, field: &str) -> &'v mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    if !value.get(field).is_some_and(Value::is_object) {
        value[field] = Value::Object(Map::new());
    }
    match &mut value[field] {
        Value::Object(fields) => fields,
        _ => unreachable!("made above"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::built_in;

    #[test]
    fn parts_of_the_text_are_json_themselves() {
        let kind = built_in().remove(0);
        let value =
            json!({"spec": {"type": "ClusterIP"}, "metadata": {"name": "a", "namespace": "n", "labels": {"l": "1"}}});
        let object = Object::new(&kind, value, 7);
        assert_eq!(object.key, Key::new("n", "a"));
        assert_eq!(object.labels.get("l").map(String::as_str), Some("1"));
        let whole = object.value();
        assert_eq!(whole["kind"], "Service");
        assert_eq!(whole["metadata"]["resourceVersion"], "7");
        let mut item = b"{".to_vec();
        item.extend_from_slice(&object.untyped_tail());
        let item: Value = serde_json::from_slice(&item).unwrap();
        assert!(item.get("kind").is_none());
        assert_eq!(item["spec"], whole["spec"]);
        let metadata: Value = serde_json::from_slice(&object.metadata()).unwrap();
        assert_eq!(metadata, whole["metadata"]);
        assert_eq!(object.at(&kind, 9).value()["metadata"]["resourceVersion"], "9");
    }
}
