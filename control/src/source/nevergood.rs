//! Objects of which no good version has come.
//!
//! Owns what one who reads objects tells a source that holds deletions back: of these nobody had anything, so that
//! nothing waits for a person when they go. What stands in for one of them, such as a rule that denies everybody, would
//! stay with it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::ObjectKey;

/// The list, shared by who writes it and who asks.
#[derive(Clone, Debug, Default)]
pub struct NeverGood(Arc<Mutex<BTreeSet<ObjectKey>>>);

impl NeverGood {
    /// An object was wrong when it came first.
    pub fn insert(&self, key: &ObjectKey) {
        self.with(|keys| keys.insert(key.clone()));
    }

    /// An object is good, or gone.
    pub fn remove(&self, key: &ObjectKey) {
        self.with(|keys| keys.remove(key));
    }

    /// All of them now. There are few.
    pub fn all(&self) -> BTreeSet<ObjectKey> {
        self.with(|keys| keys.clone())
    }

    fn with<T>(&self, does: impl FnOnce(&mut BTreeSet<ObjectKey>) -> T) -> T {
        does(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
