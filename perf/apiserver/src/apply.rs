//! Server-side apply, and who owns which field.
//!
//! Owns `metadata.managedFields`: reads it, keeps it right at every write, and merges what a manager applies. Refuses to know
//! the store and HTTP. Follows "Server-Side Apply" of the Kubernetes documentation: a manager that applies owns what it
//! said; what it said before and no longer says goes away unless somebody else owns it; changing what another owns is a
//! conflict that names the other, or takes it from him by force. Ordinary writes own what they changed.
//!
//! Managers of different operations and subresources are different managers, even under one name.

use serde_json::{Map, Value, json};

use crate::fields::{self, Fields, compare, item_step, written};
use crate::kinds::{Kind, ListType};
use crate::object::section;
use crate::problem::{Cause, Problem};

/// Who writes, where and when.
#[derive(Clone, Debug)]
pub struct Writer {
    /// Name of the field manager.
    pub manager: String,
    /// `status`, or empty for the object itself.
    pub subresource: String,
    /// Time of the write, RFC 3339 in whole seconds.
    pub now: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Owner {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: String,
    fields: Fields,
}

impl Owner {
    fn new(kind: &Kind, writer: &Writer, operation: &str, fields: Fields) -> Owner {
        Owner {
            manager: writer.manager.clone(),
            operation: operation.to_owned(),
            api_version: kind.api_version(),
            subresource: writer.subresource.clone(),
            time: writer.now.clone(),
            fields,
        }
    }

    fn is(&self, writer: &Writer, operation: &str) -> bool {
        self.manager == writer.manager && self.operation == operation && self.subresource == writer.subresource
    }

    /// As conflicts name it.
    fn named(&self) -> String {
        let subresource = &self.subresource;
        let at = if subresource.is_empty() { String::new() } else { format!(" with subresource {subresource:?}") };
        let since = if self.operation == "Update" {
            format!(" using {} at {}", self.api_version, self.time)
        } else {
            String::new()
        };
        format!("{:?}{at}{since}", self.manager)
    }
}

fn read(value: &Value) -> Vec<Owner> {
    let entries = value.pointer("/metadata/managedFields").and_then(Value::as_array);
    let word = |entry: &Value, field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let owner = |entry: &Value| Owner {
        manager: word(entry, "manager"),
        operation: word(entry, "operation"),
        api_version: word(entry, "apiVersion"),
        subresource: word(entry, "subresource"),
        time: word(entry, "time"),
        fields: entry.get("fieldsV1").map(fields::from_json).unwrap_or_default(),
    };
    entries.into_iter().flatten().map(owner).collect()
}

fn write(value: &mut Value, owners: &[Owner]) {
    let entry = |owner: &Owner| {
        let mut entry = json!({
            "manager": owner.manager, "operation": owner.operation, "apiVersion": owner.api_version,
            "time": owner.time, "fieldsType": "FieldsV1", "fieldsV1": fields::to_json(&owner.fields),
        });
        if !owner.subresource.is_empty() {
            entry["subresource"] = Value::from(owner.subresource.as_str());
        }
        entry
    };
    let entries: Vec<_> = owners.iter().filter(|owner| !owner.fields.is_empty()).map(entry).collect();
    let metadata = section(value, "metadata");
    if entries.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), Value::Array(entries));
    }
}

/// `value` without what nobody owns: the server's own parts of the metadata.
fn ownable(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        for name in SERVERS_OWN {
            metadata.remove(name);
        }
        if metadata.is_empty() {
            value.as_object_mut().map(|fields| fields.remove("metadata"));
        }
    }
    value
}

const SERVERS_OWN: [&str; 10] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
];

/// Writes into `new` who owns what after `writer` made it out of `old` by an ordinary write.
pub fn note_update(kind: &Kind, old: &Value, new: &mut Value, writer: &Writer) {
    let mut owners = read(old);
    let difference = compare(kind, &ownable(old), &ownable(new));
    let changed: Fields = difference.added.union(&difference.modified).cloned().collect();
    for owner in owners.iter_mut().filter(|owner| !owner.is(writer, "Update")) {
        owner.fields.retain(|path| !changed.contains(path) && !difference.removed.contains(path));
    }
    match owners.iter_mut().find(|owner| owner.is(writer, "Update")) {
        Some(own) => {
            let before = own.fields.len();
            own.fields.retain(|path| !difference.removed.contains(path));
            if !changed.is_empty() || own.fields.len() != before {
                own.fields.extend(changed);
                own.time.clone_from(&writer.now);
            }
        }
        None => owners.push(Owner::new(kind, writer, "Update", changed)),
    }
    write(new, &owners);
}

/// The object that results when `writer` applies `applied` to `live` (`null`: there is none yet), with its owners.
///
/// # Errors
/// A conflict with the owners of fields that would change, unless `force`.
pub fn apply(kind: &Kind, live: &Value, applied: &Value, writer: &Writer, force: bool) -> Result<Value, Problem> {
    let applied = ownable(applied);
    let wanted = fields::of(kind, &applied);
    let mut merged = if live.is_null() { Value::Object(Map::new()) } else { live.clone() };
    merge(kind, &mut merged, &applied, "");
    let mut owners = read(live);
    let difference = compare(kind, &ownable(live_or_empty(live)), &ownable(&merged));
    let changed: Fields = difference.added.union(&difference.modified).cloned().collect();
    let lost = |owner: &Owner| owner.fields.intersection(&changed).cloned().collect::<Vec<_>>();
    let others = || owners.iter().filter(|owner| !owner.is(writer, "Apply"));
    let conflicts: Vec<_> =
        others().map(|owner| (owner.named(), lost(owner))).filter(|(_, paths)| !paths.is_empty()).collect();
    if !conflicts.is_empty() && !force {
        return Err(conflict(&conflicts));
    }
    for owner in owners.iter_mut().filter(|owner| !owner.is(writer, "Apply")) {
        owner.fields.retain(|path| !changed.contains(path));
    }
    let position = owners.iter().position(|owner| owner.is(writer, "Apply"));
    let before = position.map(|at| owners.remove(at));
    if let Some(before) = &before {
        prune(kind, &mut merged, &before.fields, &wanted, &owners);
    }
    let mut own = Owner::new(kind, writer, "Apply", wanted);
    if let Some(before) = before
        && before.fields == own.fields
        && changed.is_empty()
    {
        own.time = before.time;
    }
    owners.insert(position.unwrap_or(owners.len()), own);
    write(&mut merged, &owners);
    Ok(merged)
}

fn live_or_empty(live: &Value) -> &Value {
    static EMPTY: std::sync::LazyLock<Value> = std::sync::LazyLock::new(|| Value::Object(Map::new()));
    if live.is_null() { &EMPTY } else { live }
}

fn conflict(conflicts: &[(String, Vec<fields::Path>)]) -> Problem {
    let cause = |owner: &String, path: &fields::Path| Cause {
        reason: "FieldManagerConflict",
        message: format!("conflict with {owner}"),
        field: written(path),
    };
    let causes: Vec<_> =
        conflicts.iter().flat_map(|(owner, paths)| paths.iter().map(move |path| cause(owner, path))).collect();
    let count = causes.len();
    if let [one] = &causes[..] {
        return Problem::apply_conflict(
            format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
            causes,
        );
    }
    let mut message = format!("Apply failed with {count} conflicts: ");
    let lists = conflicts.iter().map(|(owner, paths)| {
        let paths: Vec<_> = paths.iter().map(|path| format!("- {}", written(path))).collect();
        format!("conflicts with {owner}:\n{}", paths.join("\n"))
    });
    message.push_str(&lists.collect::<Vec<_>>().join("\n"));
    Problem::apply_conflict(message, causes)
}

/// Merges what is applied into what is there.
fn merge(kind: &Kind, live: &mut Value, applied: &Value, names: &str) {
    match (live, applied) {
        (Value::Object(live), Value::Object(applied)) if !kind.atomic_map(names) => {
            for (name, inner) in applied {
                let names = if names.is_empty() { name.clone() } else { format!("{names}.{name}") };
                match live.get_mut(name) {
                    Some(there) => merge(kind, there, inner, &names),
                    None => drop(live.insert(name.clone(), inner.clone())),
                }
            }
        }
        (Value::Array(live), Value::Array(applied)) if *kind.list_type(names) != ListType::Atomic => {
            let of = kind.list_type(names);
            for item in applied {
                let step = item_step(of, item);
                match live.iter_mut().find(|there| item_step(of, there) == step) {
                    Some(there) => merge(kind, there, item, names),
                    None => live.push(item.clone()),
                }
            }
        }
        (live, applied) => live.clone_from(applied),
    }
}

/// Takes out of `merged` what its manager said before, says no longer, and nobody else owns.
fn prune(kind: &Kind, merged: &mut Value, before: &Fields, wanted: &Fields, others: &[Owner]) {
    let mut gone: Vec<_> = before.difference(wanted).collect();
    gone.sort_by_key(|path| std::cmp::Reverse(path.len()));
    let kept = |path: &fields::Path| {
        let within = |set: &Fields| set.range(path.clone()..).next().is_some_and(|owned| owned.starts_with(path));
        within(wanted) || others.iter().any(|owner| within(&owner.fields))
    };
    for path in gone.into_iter().filter(|path| !kept(path)) {
        remove(kind, merged, path, "");
    }
}

/// Removes the value at `path`; what is left empty by that goes too. Returns whether `value` became empty.
fn remove(kind: &Kind, value: &mut Value, path: &[String], names: &str) -> bool {
    let Some((step, rest)) = path.split_first() else { return false };
    match value {
        Value::Object(map) => {
            let Some(name) = step.strip_prefix("f:") else { return false };
            let names = if names.is_empty() { name.to_owned() } else { format!("{names}.{name}") };
            let empty = rest.is_empty() || map.get_mut(name).is_some_and(|inner| remove(kind, inner, rest, &names));
            if empty {
                map.remove(name);
            }
            empty && map.is_empty()
        }
        Value::Array(items) => {
            let of = kind.list_type(names);
            let Some(at) = items.iter().position(|item| item_step(of, item).as_ref() == Some(step)) else {
                return false;
            };
            if rest.is_empty() {
                items.remove(at);
            } else {
                remove(kind, &mut items[at], rest, names);
            }
            items.is_empty()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kinds::built_in;

    fn service() -> Arc<Kind> {
        built_in().remove(0)
    }

    fn by(manager: &str) -> Writer {
        Writer { manager: manager.to_owned(), subresource: String::new(), now: "2026-01-01T00:00:00Z".to_owned() }
    }

    #[test]
    fn what_a_manager_no_longer_applies_goes_unless_another_owns_it() {
        let kind = service();
        let first = json!({"metadata": {"labels": {"a": "1", "b": "1"}}, "spec": {"ports": [{"port": 80, "name": "x"}, {"port": 81}]}});
        let live = apply(&kind, &Value::Null, &first, &by("one"), false).unwrap();
        let live = apply(&kind, &live, &json!({"metadata": {"labels": {"b": "1"}}}), &by("two"), false).unwrap();
        let live = apply(&kind, &live, &json!({"spec": {"ports": [{"port": 80}]}}), &by("one"), false).unwrap();
        assert_eq!(live["metadata"]["labels"], json!({"b": "1"}));
        assert_eq!(live["spec"]["ports"], json!([{"port": 80}]));
        let live = apply(&kind, &live, &json!({}), &by("two"), false).unwrap();
        assert!(live["metadata"].get("labels").is_none(), "{live}");
    }

    #[test]
    fn another_owner_is_a_conflict_that_names_him_and_force_takes_the_field() {
        let kind = service();
        let status = |ip: &str| json!({"status": {"loadBalancer": {"ingress": [{"ip": ip}]}}});
        let mut writer = by("one");
        writer.subresource = "status".to_owned();
        let live = apply(&kind, &json!({"metadata": {"name": "s"}}), &status("192.0.2.1"), &writer, false).unwrap();
        let refused = apply(&kind, &live, &status("192.0.2.2"), &by("two"), false).unwrap_err();
        assert_eq!(refused.code, 409);
        assert_eq!(
            refused.message,
            "Apply failed with 1 conflict: conflict with \"one\" with subresource \"status\": .status.loadBalancer.ingress"
        );
        let live = apply(&kind, &live, &status("192.0.2.2"), &by("two"), true).unwrap();
        assert_eq!(live["status"], status("192.0.2.2")["status"]);
        let owners: Vec<_> =
            read(&live).into_iter().filter(|owner| !owner.fields.is_empty()).map(|owner| owner.manager).collect();
        assert_eq!(owners, ["two"]);
    }

    #[test]
    fn the_same_value_is_shared_not_fought_over() {
        let kind = service();
        let one = json!({"metadata": {"finalizers": ["a/b"]}});
        let live = apply(&kind, &Value::Null, &one, &by("one"), false).unwrap();
        let live = apply(&kind, &live, &one, &by("two"), false).unwrap();
        let live = apply(&kind, &live, &json!({}), &by("one"), false).unwrap();
        assert_eq!(live["metadata"]["finalizers"], json!(["a/b"]));
    }

    #[test]
    fn an_ordinary_write_takes_what_it_changes() {
        let kind = service();
        let live = apply(
            &kind,
            &Value::Null,
            &json!({"spec": {"type": "ClusterIP", "sessionAffinity": "None"}}),
            &by("one"),
            false,
        )
        .unwrap();
        let mut new = live.clone();
        new["spec"]["type"] = json!("NodePort");
        note_update(&kind, &live, &mut new, &by("two"));
        let refused = apply(&kind, &new, &json!({"spec": {"type": "ClusterIP"}}), &by("one"), false).unwrap_err();
        assert!(
            refused.message.contains("\"two\" using v1 at 2026-01-01T00:00:00Z: .spec.type"),
            "{}",
            refused.message
        );
    }

    #[test]
    fn applying_the_same_again_changes_nothing_at_all() {
        let kind = service();
        let wanted = json!({"spec": {"ports": [{"port": 80}]}});
        let live = apply(&kind, &Value::Null, &wanted, &by("one"), false).unwrap();
        let mut later = by("one");
        later.now = "2027-01-01T00:00:00Z".to_owned();
        assert_eq!(apply(&kind, &live, &wanted, &later, false).unwrap(), live);
    }
}
