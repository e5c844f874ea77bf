//! Writes: create, update, patch, apply and delete, as one step each.
//!
//! Owns the rules between a request and the store: names, `resourceVersion` and uid as preconditions, what a write to the object
//! and a write to its status may change, finalizers, generations, and that a write that changes nothing is none. Refuses to
//! know HTTP and users.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::admit::{admit, defaults};
use crate::apply::{self, Writer};
use crate::kinds::Kind;
use crate::object::{Key, Object, section, without_nulls};
use crate::patch::{PatchType, patched};
use crate::problem::{Cause, Problem};
use crate::store::Store;
use crate::typed;

/// What the server makes up.
mod mint;
/// What a write may touch.
mod parts;
/// What follows from a write.
mod follow;

pub use mint::now;
pub use parts::metadata;

use mint::suffix;
use parts::{check_name, check_shape, cut, dress, finalizers, keep, part, same, wanted};

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
        // A node comes with its status: the kubelet registers it so.
        if !write.whole && kind.has_status && kind.kind != "Node" {
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
        if let Some(field) = typed::lost(&applied, &typed::read(kind, &applied)?) {
            let what = format!("({}/{}; {}, Kind={})", key.namespace, key.name, kind.api_version(), kind.kind);
            return Err(Problem::internal(format!(
                "failed to create typed patch object {what}: {field}: field not declared in schema"
            )));
        }
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
        value = typed::read(kind, &value)?;
        let saved = write.dry_run.then(|| self.addresses.clone());
        let status = write.status() && !write.whole;
        if before.is_none() && !applied {
            defaults(kind, &mut value);
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
}
