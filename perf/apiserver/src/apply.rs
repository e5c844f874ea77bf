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
        // A map that became empty by that may have been applied empty.
        merge(kind, &mut merged, &applied, "");
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
    // Items before their fields: without its key an item could not be found.
    gone.sort_by_key(|path| path.len());
    let kept = |path: &fields::Path| {
        let within = |set: &Fields| set.range(path.clone()..).next().is_some_and(|owned| owned.starts_with(path));
        within(wanted) || others.iter().any(|owner| within(&owner.fields))
    };
    for path in gone.into_iter().filter(|path| !kept(path) && !is_key(path)) {
        remove(kind, merged, path, "");
    }
}

/// Whether the field is part of the key of its item: it goes with the item or not at all.
fn is_key(path: &[String]) -> bool {
    let [.., item, field] = path else { return false };
    let key = item.strip_prefix("k:").and_then(|key| serde_json::from_str::<Map<String, Value>>(key).ok());
    key.is_some_and(|key| field.strip_prefix("f:").is_some_and(|field| key.contains_key(field)))
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

    use proptest::prelude::*;

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

    fn config() -> impl Strategy<Value = Value> {
        let labels = prop::collection::btree_map("[ab]", "[12]", 0..3);
        let ports = prop::collection::btree_map(80..83_u16, prop::option::of("[xy]"), 0..3);
        let finalizers = prop::collection::btree_set("[fg]/[h]", 0..3);
        (labels, ports, finalizers, prop::option::of("[12]")).prop_map(|(labels, ports, finalizers, class)| {
            let port = |(port, name): (u16, Option<String>)| {
                name.map_or(json!({"port": port}), |name| json!({"port": port, "name": name}))
            };
            let ports: Vec<_> = ports.into_iter().map(port).collect();
            let mut value = json!({"metadata": {}, "spec": {}});
            if !labels.is_empty() {
                value["metadata"]["labels"] = json!(labels);
            }
            if !finalizers.is_empty() {
                value["metadata"]["finalizers"] = json!(finalizers);
            }
            if !ports.is_empty() {
                value["spec"]["ports"] = json!(ports);
            }
            if let Some(class) = class {
                value["spec"]["loadBalancerClass"] = json!(class);
            }
            value
        })
    }

    proptest! {
        /// Managers that apply by force: what each said last is there as far as nobody took it since, nothing is there that
        /// nobody owns, and saying it again changes nothing.
        #[test]
        fn only_what_somebody_applies_is_there(steps in prop::collection::vec((0..3_usize, config()), 1..12)) {
            let kind = service();
            let managers = ["one", "two", "three"];
            let mut live = Value::Null;
            for (manager, wanted) in steps {
                let writer = by(managers[manager]);
                live = apply(&kind, &live, &wanted, &writer, true).unwrap();
                let again = apply(&kind, &live, &wanted, &writer, false).unwrap();
                prop_assert_eq!(&again, &live);
                let there = leaves(&kind, &live);
                let owned: Fields = read(&live).into_iter().flat_map(|owner| owner.fields).collect();
                prop_assert!(there.iter().all(|path| owned.contains(path)), "{:?} is not owned in {}", there.difference(&owned), live);
                let said = leaves(&kind, &wanted);
                prop_assert!(said.is_subset(&there), "{:?} is missing", said.difference(&there));
            }
            for manager in managers {
                live = apply(&kind, &live, &json!({}), &by(manager), true).unwrap();
            }
            prop_assert_eq!(leaves(&kind, &live), Fields::new());
        }
    }

    /// Fields but for empty maps, which may stay when what was in them goes.
    fn leaves(kind: &Kind, value: &Value) -> Fields {
        let empty = [vec!["f:metadata".to_owned()], vec!["f:spec".to_owned()]];
        fields::of(kind, &ownable(value)).into_iter().filter(|path| !empty.contains(path)).collect()
    }
}
