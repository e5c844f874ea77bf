//! What follows from a write: addresses given back, definitions served, namespaces that end.
//!
//! Owns the small duties of the controllers that live inside the real server. Refuses to know requests.

use std::sync::Arc;

use super::Preconditions;
use super::parts::{finalizers, metadata};
use crate::kinds::{Kind, from_definition};
use crate::object::{Key, Object};
use crate::problem::Problem;
use crate::store::Store;

impl Store {
    /// Takes an object away, with what follows from that.
    pub(super) fn gone(&mut self, kind: &Arc<Kind>, key: &Key) -> Option<Arc<Object>> {
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
    pub(super) fn follow(&mut self, kind: &Arc<Kind>, object: &Object) {
        if kind.kind == "CustomResourceDefinition"
            && let Ok(defined) = from_definition(&object.value())
        {
            self.serve(Arc::new(defined));
        }
        if kind.kind == "Namespace" {
            self.finish_namespace(&object.key.name);
        }
    }

    pub(super) fn check_namespace(&self, kind: &Kind, key: &Key) -> Result<(), Problem> {
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

    pub(super) fn empty_namespace(&mut self, name: &str) {
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
