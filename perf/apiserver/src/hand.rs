//! The test's own hand in the store: writes and reads without HTTP, users or faults.
//!
//! Owns what a test does to a cluster: objects from YAML, edits, deletions, waiting for a state. Everything goes through the
//! same checks and makes the same events as a client's write, but may set an object and its status at once, and makes
//! namespaces that are missing. Waiting blocks the calling thread: in an async test, wait on a thread of its own
//! (`tokio::task::spawn_blocking`) or run the test on several.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::ApiServer;
use crate::apply::Writer;
use crate::kinds::Kind;
use crate::object::{Key, section};
use crate::patch::PatchType;
use crate::problem::Problem;
use crate::store::Store;
use crate::write::{Deleted, Preconditions, Write, metadata, now};

/// The manager that owns what the test wrote.
const MANAGER: &str = "test";

/// What the test's hand could not do.
#[derive(Debug, thiserror::Error)]
pub enum HandError {
    /// Text that is no YAML.
    #[error("not YAML: {0}")]
    Yaml(#[from] serde_norway::Error),
    /// A kind that is not served.
    #[error("no kind {0}")]
    Kind(String),
    /// What the server said.
    #[error("{code} {reason}: {message}", code = .0.code, reason = .0.reason, message = .0.message)]
    Refused(Problem),
    /// What was waited for did not happen; with the last state.
    #[error("{what} is not as expected after {waited:?}: {last}")]
    Late {
        /// Which object.
        what: String,
        /// How long.
        waited: Duration,
        /// Its last state; `null` if it is not there.
        last: Value,
    },
}

impl From<Problem> for HandError {
    fn from(problem: Problem) -> Self {
        HandError::Refused(problem)
    }
}

fn hand(status: bool) -> Write {
    let subresource = if status { "status" } else { "" };
    let writer = Writer { manager: MANAGER.to_owned(), subresource: subresource.to_owned(), now: now() };
    Write { writer, dry_run: false, whole: !status, force: true }
}

/// The kind called `name`: kind (`Service`), plural (`services`) or either with its group (`events.events.k8s.io`).
fn kind(store: &Store, name: &str) -> Result<Arc<Kind>, HandError> {
    let called =
        |kind: &Kind| kind.kind == name || kind.plural == name || format!("{}.{}", kind.plural, kind.group) == name;
    let mut found: Vec<_> = store.kinds().filter(|kind| called(kind)).cloned().collect();
    found.sort_by(|a, b| a.group.cmp(&b.group));
    found.into_iter().next().ok_or_else(|| HandError::Kind(name.to_owned()))
}

impl ApiServer {
    /// Applies all objects in `yaml`, any number of documents or `List`s, by force and as they are: with their status, and
    /// with the namespace `default` where none is said. What others own (finalizers, addresses) stays; what an earlier apply
    /// said and this one does not goes. Returns them as stored.
    ///
    /// # Errors
    /// Text that is no YAML, unknown kinds, and what the server refuses.
    pub fn apply(&self, yaml: &str) -> Result<Vec<Value>, HandError> {
        let mut stored = Vec::new();
        for document in serde_norway::Deserializer::from_str(yaml) {
            let value = Value::deserialize(document)?;
            match value.get("items").and_then(Value::as_array) {
                Some(items) => items
                    .iter()
                    .try_for_each(|item| self.apply_value(item.clone()).map(|object| stored.push(object)))?,
                None if value.is_null() => {}
                None => stored.push(self.apply_value(value)?),
            }
        }
        Ok(stored)
    }

    /// Applies one object, as `apply` does.
    ///
    /// # Errors
    /// Unknown kinds, and what the server refuses.
    pub fn apply_value(&self, mut value: Value) -> Result<Value, HandError> {
        let mut store = self.shared.store();
        let said = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, name) = (said("apiVersion"), said("kind"));
        let kind =
            store.kind_of(&api_version, &name).ok_or_else(|| HandError::Kind(format!("{api_version} {name}")))?;
        let namespace = match (kind.namespaced, metadata(&value, "namespace")) {
            (false, _) => String::new(),
            (true, "") => "default".to_owned(),
            (true, namespace) => namespace.to_owned(),
        };
        if kind.namespaced {
            make_namespace(&mut store, &namespace)?;
        }
        let key = Key::new(&namespace, metadata(&value, "name"));
        for field in ["resourceVersion", "uid", "managedFields"] {
            section(&mut value, "metadata").remove(field);
        }
        let (object, _) = store.patch(&kind, &key, value, PatchType::Apply, &hand(false))?;
        Ok(object.value())
    }

    /// The object, if it is there. `kind` is a kind or a plural name; `namespace` is empty for kinds of the whole cluster.
    pub fn get(&self, kind_name: &str, namespace: &str, name: &str) -> Option<Value> {
        let store = self.shared.store();
        let kind = kind(&store, kind_name).ok()?;
        Some(store.get(&kind, &Key::new(namespace, name))?.value())
    }

    /// All objects of a kind in a namespace (empty: everywhere), in the order of their keys.
    pub fn list(&self, kind_name: &str, namespace: &str) -> Vec<Value> {
        let store = self.shared.store();
        let Some(kind) = kind(&store, kind_name).ok() else { return Vec::new() };
        let shelf = store.shelf(&kind).into_iter();
        let inside = |key: &Key| namespace.is_empty() || key.namespace == namespace;
        shelf
            .flat_map(|shelf| &shelf.objects)
            .filter(|(key, _)| inside(key))
            .map(|(_, object)| object.value())
            .collect()
    }

    /// Changes one object, object and status alike, and returns it as stored.
    ///
    /// # Errors
    /// No such object, and what the server refuses.
    pub fn edit(
        &self,
        kind_name: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<Value, HandError> {
        let mut store = self.shared.store();
        let kind = kind(&store, kind_name)?;
        let key = Key::new(namespace, name);
        let live = store.get(&kind, &key).ok_or_else(|| Problem::not_found(&kind, name))?;
        let mut value = live.value();
        change(&mut value);
        Ok(store.update(&kind, &key, value, &hand(false))?.value())
    }

    /// Deletes one object as a client would: one with finalizers stays, marked. Returns whether it is gone.
    ///
    /// # Errors
    /// No such object.
    pub fn delete(&self, kind_name: &str, namespace: &str, name: &str) -> Result<bool, HandError> {
        let mut store = self.shared.store();
        let kind = kind(&store, kind_name)?;
        let deleted = store.delete(&kind, &Key::new(namespace, name), &Preconditions::default(), false)?;
        Ok(matches!(deleted, Deleted::Gone(_)))
    }

    /// Blocks until `good` says so of the object (`null` while it is not there) and returns it.
    ///
    /// # Errors
    /// It did not within `timeout`; the error has the last state.
    pub fn wait_for(
        &self,
        kind_name: &str,
        namespace: &str,
        name: &str,
        timeout: Duration,
        good: impl Fn(&Value) -> bool,
    ) -> Result<Value, HandError> {
        let started = Instant::now();
        loop {
            let value = self.get(kind_name, namespace, name).unwrap_or_default();
            if good(&value) {
                return Ok(value);
            }
            if started.elapsed() >= timeout {
                return Err(HandError::Late {
                    what: format!("{kind_name} {namespace}/{name}"),
                    waited: timeout,
                    last: value,
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Blocks until the object is not there.
    ///
    /// # Errors
    /// It still was after `timeout`.
    pub fn wait_gone(&self, kind_name: &str, namespace: &str, name: &str, timeout: Duration) -> Result<(), HandError> {
        self.wait_for(kind_name, namespace, name, timeout, Value::is_null).map(drop)
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.shared.store().revision()
    }

    /// Makes every older revision expired for whoever asks from now on.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// Uses up `count` revisions, as writes elsewhere in the cluster would.
    pub fn skip_revisions(&self, count: u64) {
        self.shared.store().skip_revisions(count);
    }
}

pub(crate) fn make_namespace(store: &mut Store, name: &str) -> Result<(), Problem> {
    let Some(namespaces) = store.kind("", "v1", "namespaces") else { return Ok(()) };
    if store.get(&namespaces, &Key::new("", name)).is_none() {
        store.create(&namespaces, "", json!({"metadata": {"name": name}}), &hand(false))?;
    }
    Ok(())
}
