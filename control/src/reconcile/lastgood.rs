//! Last good versions of policies over a restart of this process.
//!
//! Owns when a version that an earlier run has saved is used: while the source has the object and it cannot be worked with,
//! or while a part of the source that may have it cannot be read. It is resolved like any other, so that it means today's
//! pods. What the source turns out not to have any more is forgotten.

use std::collections::BTreeSet;

use super::Reconciler;
use crate::model::{Dirty, Object};
use crate::problem::{Problem, Severity};
use crate::saved::Saved;
use crate::source::manifest::{Stranger, has_almost};
use crate::source::{ObjectKey, ObjectKind};
use crate::watch::Dialect;

/// What is saved, and what of it is in use.
#[derive(Debug, Default)]
pub(super) struct LastGood {
    saved: Saved,
    /// In use although the source has not shown them: they may be in a file that cannot be read.
    unseen: BTreeSet<ObjectKey>,
    /// What the source does not have has been forgotten, but for these kinds, which could not be listed, and for what these
    /// strangers may be.
    settled: Option<(BTreeSet<ObjectKind>, BTreeSet<Stranger>)>,
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

    /// The source is known, but for files of a directory that are `unreadable`, for what stands where another object may
    /// have been, and for kinds that a cluster withholds, or knows only later: of these nothing is known to be gone.
    pub(super) fn settle_good(
        &mut self,
        unreadable: bool,
        unlisted: BTreeSet<ObjectKind>,
        strangers: BTreeSet<Stranger>,
        dirty: &mut Dirty,
    ) {
        let but = (unlisted, strangers);
        if self.last_good.settled.as_ref() == Some(&but) {
            return;
        }
        let unreadable = unreadable && self.dialect == Dialect::Files;
        let (unlisted, strangers) = &but;
        let is_unknown = |key: &ObjectKey| unreadable || unlisted.contains(&key.kind) || has_almost(strangers, key);
        for (key, object) in self.last_good.saved.take_unheard(is_unknown) {
            if !self.model.holds(&key) && !self.invalid.contains_key(&key) {
                self.model.apply(object, dirty);
                self.last_good.unseen.insert(key);
            }
        }
        if unreadable {
            return;
        }
        let unseen = std::mem::take(&mut self.last_good.unseen);
        let (unseen, gone): (BTreeSet<_>, BTreeSet<_>) = unseen.into_iter().partition(is_unknown);
        self.last_good.unseen = unseen;
        for key in gone {
            self.model.delete(&key, dirty);
        }
        let (model, invalid) = (&self.model, &self.invalid);
        let is_there = |key: &ObjectKey| model.holds(key) || invalid.contains_key(key);
        self.last_good.saved.settle(|key| is_there(key) || is_unknown(key));
        self.last_good.settled = Some(but);
    }

    /// What is wrong with what is saved, and what of it is used for what the source does not show.
    pub(super) fn saved_problems(&self) -> Vec<Problem> {
        let unseen = &self.last_good.unseen;
        let told = unseen.first().map(|first| {
            let more = if unseen.len() > 1 { ", …" } else { "" };
            let message = format!(
                "{} policies ({first}{more}) have not been seen since control began anew, for they may be in what cannot be \
                 read of the source: their last good versions stay in use. Where they are gone for good and it cannot be \
                 mended, end control and remove policies.log",
                unseen.len()
            );
            Problem::new(Severity::Warning, "PoliciesNotSeen", message)
        });
        self.last_good.saved.problems().into_iter().chain(told).collect()
    }
}

fn is_kept(kind: ObjectKind) -> bool {
    matches!(kind, ObjectKind::NetworkPolicy | ObjectKind::ClusterNetworkPolicy | ObjectKind::GatewayPolicy)
}
