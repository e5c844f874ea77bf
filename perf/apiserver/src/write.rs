//! Writes: create, update, patch, apply and delete, as one step each.
//!
//! Owns the rules between a request and the store: names, `resourceVersion` and uid as preconditions, what a write to the object
//! and a write to its status may change, finalizers, generations, and that a write that changes nothing is none. Refuses to
//! know HTTP and users.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::admit::admit;
use crate::apply::{self, Writer};
use crate::kinds::{Kind, from_definition};
use crate::object::{Key, Object, section, without_nulls};
use crate::patch::{PatchType, patched};
use crate::problem::{Cause, Problem};
use crate::store::Store;

/// How a write is meant.
#[derive(Clone, Debug)]
pub struct Write {
    /// Who writes, and to which part.
    pub writer: Writer,
    /// Check and answer, but store nothing.
    pub dry_run: bool,
    /// The write may set object and status at once: the test's own hand, never a client.
    pub whole: bool,
    /// Take fields from other managers (apply).
    pub force: bool,
}

/// What a DELETE asks for besides the object to go.
#[derive(Clone, Debug, Default)]
pub struct Preconditions {
    /// It must have this uid.
    pub uid: Option<String>,
    /// It must be at this revision.
    pub revision: Option<String>,
}

/// What a DELETE did.
#[derive(Debug)]
pub enum Deleted {
    /// The object is gone; its last state.
    Gone(Arc<Object>),
    /// It waits for its finalizers.
    Waiting(Arc<Object>),
}

impl Write {
    fn status(&self) -> bool {
        self.writer.subresource == "status"
    }
}

/// The time, as objects have it.
pub fn now() -> String {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or(0);
    Timestamp::from_second(seconds).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn uid() -> String {
    let (high, low) = (random(), random());
    let variant = 0x8000 | (low >> 48 & 0x3fff);
    format!(
        "{:08x}-{:04x}-4{:03x}-{variant:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low & 0xffff_ffff_ffff
    )
}

fn suffix() -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rest = random();
    let letter = |_| {
        let at = usize::try_from(rest % 27).unwrap_or(0);
        rest /= 27;
        char::from(LETTERS[at])
    };
    (0..5).map(letter).collect()
}

/// Text in the metadata of `value`, empty if there is none.
pub fn metadata<'v>(value: &'v Value, field: &str) -> &'v str {
    value.pointer("/metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str).unwrap_or_default()
}

fn finalizers(value: &Value) -> Vec<&str> {
    let list = value.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

impl Store {
    /// Stores a new object in `namespace`.
    ///
    /// # Errors
    /// A name that is taken or missing, a namespace that is not there, a value that cannot be.
    pub fn create(
        &mut self,
        kind: &Arc<Kind>,
        namespace: &str,
        mut value: Value,
        write: &Write,
    ) -> Result<Arc<Object>, Problem> {
        check_shape(kind, &value)?;
        without_nulls(&mut value);
        let said = metadata(&value, "namespace");
        if !said.is_empty() && said != namespace {
            let why = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Problem::bad_request(why));
        }
        if !write.whole && !metadata(&value, "resourceVersion").is_empty() {
            return Err(Problem::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let name = match (metadata(&value, "name"), metadata(&value, "generateName")) {
            ("", "") => {
                return Err(Problem::invalid(
                    kind,
                    "",
                    vec![Cause::required("metadata.name", "name or generateName is required")],
                ));
            }
            ("", prefix) => format!("{prefix}{}", suffix()),
            (name, _) => name.to_owned(),
        };
        check_name(kind, &name)?;
        let key = Key::new(namespace, &name);
        self.check_namespace(kind, &key)?;
        if self.get(kind, &key).is_some() {
            return Err(Problem::already_exists(kind, &name));
        }
        dress(kind, &mut value, &key);
        if !write.whole && kind.has_status && kind.kind != "Node" && kind.kind != "Pod" {
            value.as_object_mut().map(|fields| fields.remove("status"));
        }
        self.stored(kind, &key, value, None, write, false)
    }

    /// Stores `value` over the object at `key`, or its status over the status.
    ///
    /// # Errors
    /// No such object, another revision than the writer has seen, a value that cannot be.
    pub fn update(&mut self, kind: &Arc<Kind>, key: &Key, value: Value, write: &Write) -> Result<Arc<Object>, Problem> {
        check_shape(kind, &value)?;
        let live = self.get(kind, key).ok_or_else(|| Problem::not_found(kind, &key.name))?;
        let named = metadata(&value, "name");
        if !named.is_empty() && named != key.name {
            let why = format!("the name of the object ({named}) does not match the name on the URL ({})", key.name);
            return Err(Problem::bad_request(why));
        }
        if metadata(&value, "resourceVersion").is_empty() && !kind.unconditional && !write.whole {
            let cause = Cause::invalid("metadata.resourceVersion", &json!("0x0"), "must be specified for an update");
            return Err(Problem::invalid(kind, &key.name, vec![cause]));
        }
        self.over(kind, key, &live, value, write, false)
    }

    /// Patches the object at `key`; an apply makes it if it is not there.
    ///
    /// # Errors
    /// As an update, and patches that do not fit, and conflicts between managers.
    pub fn patch(
        &mut self,
        kind: &Arc<Kind>,
        key: &Key,
        patch: Value,
        of: PatchType,
        write: &Write,
    ) -> Result<(Arc<Object>, bool), Problem> {
        let live = self.get(kind, key);
        if of == PatchType::Apply {
            return self.apply(kind, key, live, patch, write);
        }
        let live = live.ok_or_else(|| Problem::not_found(kind, &key.name))?;
        let before = live.value();
        let mut value = patched(kind, &before, &patch, of)?;
        check_shape(kind, &value)?;
        // The patch is made on the newest state: only a revision that the patch itself names is a precondition.
        if metadata(&value, "resourceVersion") == metadata(&before, "resourceVersion") {
            section(&mut value, "metadata").remove("resourceVersion");
        }
        self.over(kind, key, &live, value, write, false).map(|object| (object, false))
    }

    fn apply(
        &mut self,
        kind: &Arc<Kind>,
        key: &Key,
        live: Option<Arc<Object>>,
        mut applied: Value,
        write: &Write,
    ) -> Result<(Arc<Object>, bool), Problem> {
        check_shape(kind, &applied)?;
        without_nulls(&mut applied);
        if applied.pointer("/metadata/managedFields").and_then(Value::as_array).is_some_and(|list| !list.is_empty()) {
            return Err(Problem::bad_request("metadata.managedFields must be nil"));
        }
        let named = metadata(&applied, "name");
        if !named.is_empty() && named != key.name {
            return Err(Problem::bad_request(format!(
                "the name of the object ({named}) does not match the name on the URL ({})",
                key.name
            )));
        }
        let revision = metadata(&applied, "resourceVersion").to_owned();
        let asked_uid = metadata(&applied, "uid").to_owned();
        cut(kind, &mut applied, write);
        crate::service::status_defaults(&mut applied);
        let Some(live) = live else {
            if write.status() {
                return Err(Problem::not_found(kind, &key.name));
            }
            if !revision.is_empty() || !asked_uid.is_empty() {
                return Err(Problem::stale(kind, &key.name));
            }
            check_name(kind, &key.name)?;
            self.check_namespace(kind, key)?;
            let mut value = apply::apply(kind, &Value::Null, &applied, &write.writer, write.force)?;
            dress(kind, &mut value, key);
            return self.stored(kind, key, value, None, write, true).map(|object| (object, true));
        };
        let mut merged = apply::apply(kind, &live.value(), &applied, &write.writer, write.force)?;
        let metadata = section(&mut merged, "metadata");
        metadata.remove("resourceVersion");
        for (field, asked) in [("resourceVersion", revision), ("uid", asked_uid)] {
            if !asked.is_empty() {
                metadata.insert(field.to_owned(), Value::from(asked));
            }
        }
        self.over(kind, key, &live, merged, write, true).map(|object| (object, false))
    }

    /// Stores `value` over `live` after all that a write over something must respect.
    fn over(
        &mut self,
        kind: &Arc<Kind>,
        key: &Key,
        live: &Object,
        mut value: Value,
        write: &Write,
        applied: bool,
    ) -> Result<Arc<Object>, Problem> {
        let before = live.value();
        let revision = metadata(&value, "resourceVersion");
        if !revision.is_empty() && revision != metadata(&before, "resourceVersion") {
            return Err(Problem::stale(kind, &key.name));
        }
        let (asked, uid) = (metadata(&value, "uid"), metadata(&before, "uid"));
        if !asked.is_empty() && asked != uid {
            let why = format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {uid}");
            return Err(Problem::conflict(kind, &key.name, &why));
        }
        without_nulls(&mut value);
        keep(&mut value, &before, applied);
        if !write.whole {
            part(kind, &mut value, &before, write.status());
        }
        if !metadata(&before, "deletionTimestamp").is_empty() {
            let old = finalizers(&before);
            let new: Vec<_> = finalizers(&value).into_iter().filter(|name| !old.contains(name)).collect();
            if !new.is_empty() {
                let why = format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers {new:?}"
                );
                return Err(Problem::invalid(kind, &key.name, vec![Cause::forbidden("metadata.finalizers", &why)]));
            }
        }
        self.stored(kind, key, value, Some(before), write, applied)
    }

    /// Admits `value`, notes owners and generation, and stores it unless nothing changed.
    fn stored(
        &mut self,
        kind: &Arc<Kind>,
        key: &Key,
        mut value: Value,
        before: Option<Value>,
        write: &Write,
        applied: bool,
    ) -> Result<Arc<Object>, Problem> {
        let saved = write.dry_run.then(|| self.addresses.clone());
        let status = write.status() && !write.whole;
        if before.is_none() && !applied {
            apply::note_update(kind, &json!({}), &mut value, &write.writer);
        }
        admit(&mut self.addresses, kind, key, &mut value, before.as_ref(), status)?;
        if let Some(before) = &before {
            if kind.generation && wanted(kind, &value) != wanted(kind, before) {
                let generation = before.pointer("/metadata/generation").and_then(Value::as_u64).unwrap_or(0);
                value["metadata"]["generation"] = json!(generation + 1);
            }
            if !applied {
                apply::note_update(kind, before, &mut value, &write.writer);
            }
        }
        if let Some(saved) = saved {
            self.addresses = saved;
            return Ok(Arc::new(Object::new(kind, value, self.revision())));
        }
        if let Some(before) = &before {
            if same(&value, before)
                && let Some(live) = self.get(kind, key)
            {
                return Ok(live);
            }
            if !metadata(&value, "deletionTimestamp").is_empty()
                && finalizers(&value).is_empty()
                && kind.kind != "Namespace"
            {
                return self.gone(kind, key).ok_or_else(|| Problem::not_found(kind, &key.name));
            }
        }
        let stored = self.put(kind, value).ok_or_else(Problem::no_path)?;
        self.follow(kind, &stored);
        Ok(stored)
    }

    /// Deletes the object at `key`, or marks it deleted while it has finalizers.
    ///
    /// # Errors
    /// No such object, or not the one that was meant.
    pub fn delete(
        &mut self,
        kind: &Arc<Kind>,
        key: &Key,
        only: &Preconditions,
        dry_run: bool,
    ) -> Result<Deleted, Problem> {
        let live = self.get(kind, key).ok_or_else(|| Problem::not_found(kind, &key.name))?;
        let mut value = live.value();
        for (name, asked, field) in [("UID", &only.uid, "uid"), ("ResourceVersion", &only.revision, "resourceVersion")]
        {
            let has = metadata(&value, field);
            if let Some(asked) = asked.as_deref().filter(|asked| *asked != has) {
                let why = format!("Precondition failed: {name} in precondition: {asked}, {name} in object meta: {has}");
                return Err(Problem::conflict(kind, &key.name, &why));
            }
        }
        let namespace = kind.kind == "Namespace" && kind.group.is_empty();
        let waits = !finalizers(&value).is_empty() || namespace;
        if dry_run {
            return Ok(if waits { Deleted::Waiting(live) } else { Deleted::Gone(live) });
        }
        if !waits {
            return self.gone(kind, key).map(Deleted::Gone).ok_or_else(|| Problem::not_found(kind, &key.name));
        }
        let mut marked = live;
        if metadata(&value, "deletionTimestamp").is_empty() {
            let fields = section(&mut value, "metadata");
            fields.insert("deletionTimestamp".to_owned(), json!(now()));
            fields.insert("deletionGracePeriodSeconds".to_owned(), json!(0));
            if let Some(generation) = fields.get("generation").and_then(Value::as_u64) {
                fields.insert("generation".to_owned(), json!(generation + 1));
            }
            if namespace {
                section(&mut value, "status").insert("phase".to_owned(), json!("Terminating"));
            }
            marked = self.put(kind, value).ok_or_else(Problem::no_path)?;
        }
        if namespace {
            self.empty_namespace(&key.name);
        }
        Ok(Deleted::Waiting(marked))
    }

    /// Takes an object away, with what follows from that.
    fn gone(&mut self, kind: &Arc<Kind>, key: &Key) -> Option<Arc<Object>> {
        let object = self.remove(kind, key)?;
        if kind.kind == "Service" {
            self.addresses.free(key);
        }
        if kind.kind == "CustomResourceDefinition"
            && let Some((plural, group)) = key.name.split_once('.')
        {
            self.withdraw(group, plural);
        }
        if kind.namespaced {
            self.finish_namespace(&key.namespace);
        }
        Some(object)
    }

    /// What follows from an object that was stored.
    fn follow(&mut self, kind: &Arc<Kind>, object: &Object) {
        if kind.kind == "CustomResourceDefinition"
            && let Ok(defined) = from_definition(&object.value())
        {
            self.serve(Arc::new(defined));
        }
        if kind.kind == "Namespace" {
            self.finish_namespace(&object.key.name);
        }
    }

    fn check_namespace(&self, kind: &Kind, key: &Key) -> Result<(), Problem> {
        if !kind.namespaced {
            return Ok(());
        }
        let Some(namespaces) = self.kind("", "v1", "namespaces") else { return Ok(()) };
        let object = self.get(&namespaces, &Key::new("", &key.namespace));
        let object = object.ok_or_else(|| Problem::not_found(&namespaces, &key.namespace))?;
        if metadata(&object.value(), "deletionTimestamp").is_empty() {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {} because it is being terminated", key.namespace);
        Err(Problem::forbidden(&kind.group, &kind.plural, &key.name, &why))
    }

    fn empty_namespace(&mut self, name: &str) {
        let kinds: Vec<_> = self.kinds().filter(|kind| kind.namespaced).cloned().collect();
        for kind in kinds {
            let keys: Vec<_> = self
                .shelf(&kind)
                .into_iter()
                .flat_map(|shelf| shelf.objects.keys().filter(|key| key.namespace == name).cloned())
                .collect();
            for key in keys {
                // Nothing to do about those that wait for finalizers: the namespace waits as well.
                let _ = self.delete(&kind, &key, &Preconditions::default(), false);
            }
        }
        self.finish_namespace(name);
    }

    fn finish_namespace(&mut self, name: &str) {
        let Some(namespaces) = self.kind("", "v1", "namespaces") else { return };
        let key = Key::new("", name);
        let Some(object) = self.get(&namespaces, &key) else { return };
        let value = object.value();
        let inside = |store: &Store| {
            let mut shelves = store.kinds().filter(|kind| kind.namespaced).filter_map(|kind| store.shelf(kind));
            shelves.any(|shelf| {
                shelf.objects.range(Key::new(name, "")..).next().is_some_and(|(key, _)| key.namespace == name)
            })
        };
        if !metadata(&value, "deletionTimestamp").is_empty() && finalizers(&value).is_empty() && !inside(self) {
            self.remove(&namespaces, &key);
        }
    }
}

/// Refuses bodies that are no object of `kind`.
fn check_shape(kind: &Kind, value: &Value) -> Result<(), Problem> {
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

fn check_name(kind: &Kind, name: &str) -> Result<(), Problem> {
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
fn dress(kind: &Kind, value: &mut Value, key: &Key) {
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
fn keep(value: &mut Value, before: &Value, applied: bool) {
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
fn part(kind: &Kind, value: &mut Value, before: &Value, status: bool) {
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
fn cut(kind: &Kind, applied: &mut Value, write: &Write) {
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
fn wanted(kind: &Kind, value: &Value) -> Value {
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
fn same(new: &Value, old: &Value) -> bool {
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
