//! Last good versions of policies over a restart of this process.
//!
//! Owns when a version that an earlier run has saved is used: while the source has the object and it cannot be worked with,
//! or while a part of the source that may have it cannot be read. It is resolved like any other, so that it means today's
//! pods. What the source turns out not to have any more is forgotten.

use std::collections::BTreeSet;

use super::Reconciler;
use crate::model::{Dirty, Object};
use crate::problem::Problem;
use crate::saved::Saved;
use crate::source::{ObjectKey, ObjectKind};
use crate::watch::Dialect;

/// What is saved, and what of it is in use.
#[derive(Debug, Default)]
pub(super) struct LastGood {
    saved: Saved,
    /// In use although the source has not shown them: they may be in a file that cannot be read.
    unseen: BTreeSet<ObjectKey>,
    /// What the source does not have has been forgotten.
    settled: bool,
}

impl Reconciler {
    /// Has the last good versions of policies saved, and those of an earlier run used. Before the first batch.
    #[must_use]
    pub fn remembering(self, saved: Saved) -> Self {
        Reconciler { last_good: LastGood { saved, ..LastGood::default() }, ..self }
    }

    /// An object has a good version.
    pub(super) fn keep_good(&mut self, key: &ObjectKey, object: &Object) {
        if is_kept(key.kind) {
            self.last_good.unseen.remove(key);
            self.last_good.saved.keep(key, self.events.uid(key), object);
        }
    }

    /// An object is gone, and its versions with it.
    pub(super) fn forget_good(&mut self, key: &ObjectKey) {
        if is_kept(key.kind) {
            self.last_good.unseen.remove(key);
            self.last_good.saved.forget(key);
        }
    }

    /// Takes the version of an earlier run for an object that cannot be worked with; whether there is one.
    pub(super) fn restore_good(&mut self, key: &ObjectKey, dirty: &mut Dirty) -> bool {
        if !is_kept(key.kind) {
            return false;
        }
        self.last_good.unseen.remove(key);
        let Some(object) = self.last_good.saved.take(key, self.events.uid(key)) else { return false };
        tracing::info!(policy = %key, "the last good version of an earlier run is used");
        self.model.apply(object, dirty);
        true
    }

    /// The source is known, but for what is `unreadable`.
    pub(super) fn settle_good(&mut self, unreadable: bool, dirty: &mut Dirty) {
        if self.last_good.settled {
            return;
        }
        if unreadable {
            for (key, object) in self.last_good.saved.take_unheard() {
                if !self.model.holds(&key) && !self.invalid.contains_key(&key) {
                    self.model.apply(object, dirty);
                    self.last_good.unseen.insert(key);
                }
            }
            return;
        }
        self.last_good.settled = true;
        for key in std::mem::take(&mut self.last_good.unseen) {
            self.model.delete(&key, dirty);
        }
        let (model, invalid) = (&self.model, &self.invalid);
        let is_there = |key: &ObjectKey| model.holds(key) || invalid.contains_key(key);
        // A cluster may withhold a kind that is not needed, or know it only later: of such a kind nothing is known to be gone.
        let is_listed =
            |kind| self.dialect == Dialect::Files || kind == ObjectKind::NetworkPolicy || model.has_any(kind);
        self.last_good.saved.settle(|key| is_there(key) || !is_listed(key.kind));
    }

    /// What is wrong with what is saved.
    pub(super) fn saved_problems(&self) -> Vec<Problem> {
        self.last_good.saved.problems()
    }
}

fn is_kept(kind: ObjectKind) -> bool {
    matches!(kind, ObjectKind::NetworkPolicy | ObjectKind::ClusterNetworkPolicy | ObjectKind::GatewayPolicy)
}
