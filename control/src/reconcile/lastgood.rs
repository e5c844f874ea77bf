//! Last good versions of policies, and of the Pods and Namespaces that they are about, over a restart of this process.
//!
//! The rule: what an earlier run knew and this one has not been told of is *uncertain*, not absent. Its saved version is used
//! while the source has the object and it cannot be worked with; while a part of the source that may have it cannot be read;
//! while a cluster does not let its kind be listed; and while its deletion waits for a person, because too much is gone from
//! a directory at once. It is resolved like any other, so that a policy means today's pods and yesterday's where today's are
//! not known, and what is new joins them. All of this ends with its cause: what the source then turns out not to have is
//! forgotten. Where nothing is saved, what the dataplane has stands in ([`super::desired`]).

use std::collections::BTreeSet;

use super::Reconciler;
use crate::model::{Dirty, Object};
use crate::problem::{Problem, Severity};
use crate::saved::Saved;
use crate::source::manifest::{Stranger, has_almost};
use crate::source::scan::{CONFIRM_FILE, DELETES_HELD_MIN};
use crate::source::{ObjectKey, ObjectKind, Unavailable, Unlisted};
use crate::watch::Dialect;

/// What is saved, and what of it is in use.
#[derive(Debug, Default)]
pub(super) struct LastGood {
    saved: Saved,
    /// In use although the source has not shown them: nobody can tell yet that they are gone.
    unseen: BTreeSet<ObjectKey>,
    /// What the source does not have has been forgotten, but for these kinds, which could not be listed, and for what these
    /// strangers may be.
    settled: Option<(Unlisted, BTreeSet<Stranger>)>,
    /// They are gone from a directory, and that waits for a person.
    held: bool,
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
        tracing::info!(object = %key, "the last good version of an earlier run is used");
        self.model.apply(object, dirty);
        true
    }

    /// The source is known, but for files of a directory that are `unreadable`, for what stands where a policy may have
    /// been, and for kinds that could not be listed: of these nothing is known to be gone. `confirmed`: what is gone from a
    /// directory is meant to be.
    pub(super) fn settle_good(
        &mut self,
        unreadable: bool,
        unlisted: Unlisted,
        strangers: BTreeSet<Stranger>,
        confirmed: bool,
        dirty: &mut Dirty,
    ) {
        let but = (unlisted, strangers);
        if self.last_good.settled.as_ref() == Some(&but) && !confirmed {
            self.have_all(&but.0);
            return;
        }
        let (unlisted, strangers) = &but;
        let is_unknown = |key: &ObjectKey| {
            unlisted.contains_key(&key.kind) || (!confirmed && !is_subject(key.kind) && has_almost(strangers, key))
        };
        let of_files = self.dialect == Dialect::Files;
        for (key, object) in self.last_good.saved.take_unheard(|key| of_files || is_unknown(key)) {
            if !self.model.holds(&key) && !self.invalid.contains_key(&key) {
                self.model.apply(object, dirty);
                self.last_good.unseen.insert(key);
            }
        }
        if unreadable {
            return;
        }
        let waits = of_files && !confirmed && !self.last_good.unseen.is_empty();
        self.last_good.held = waits && (self.last_good.held || self.lacks_too_much());
        if self.last_good.held {
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
        self.have_all(unlisted);
        self.last_good.settled = Some(but);
    }

    /// What is saved is all there is, unless a kind is withheld, or something cannot be worked with of which nothing is saved:
    /// the next run knows no more of it than this one.
    fn have_all(&mut self, unlisted: &Unlisted) {
        let is_missed = |(kind, why): (&ObjectKind, &Unavailable)| {
            is_subject(*kind) || (is_kept(*kind) && *why == Unavailable::Forbidden)
        };
        let saved = &self.last_good.saved;
        let is_unknown =
            |key: &ObjectKey| is_subject(key.kind) && !self.stood_in.contains(key) && !saved.has_saved(key);
        if !unlisted.iter().any(is_missed) && !self.invalid.keys().any(is_unknown) {
            self.last_good.saved.have_all();
        }
    }

    /// Whether what this run has not seen is so much that whatever took it away may have taken all of it: the measure is the
    /// one for deletions from a directory. An API server's list is whole.
    fn lacks_too_much(&self) -> bool {
        let LastGood { saved, unseen, .. } = &self.last_good;
        let is_too_much = |kind: &ObjectKind| {
            let lacking = unseen.iter().filter(|key| key.kind == *kind).count();
            lacking >= DELETES_HELD_MIN && lacking * 2 > saved.had(*kind)
        };
        let is_empty = ObjectKind::ALL.iter().map(|kind| self.model.count(*kind)).sum::<usize>() == unseen.len();
        is_empty || ObjectKind::ALL.iter().any(is_too_much)
    }

    /// Whether what is saved has all that there was before, if somebody has to ask.
    pub(super) fn remembers(&self) -> bool {
        self.last_good.saved.is_whole()
    }

    /// What is wrong with what is saved, and what of it is used for what the source does not show.
    pub(super) fn saved_problems(&self) -> Vec<Problem> {
        let (subjects, policies): (Vec<_>, Vec<_>) = self.last_good.unseen.iter().partition(|key| is_subject(key.kind));
        let mut problems = self.last_good.saved.problems();
        for (objects, keys, reason) in
            [("policies", policies, "PoliciesNotSeen"), ("Pods and Namespaces", subjects, "PodsNotSeen")]
        {
            let Some(first) = keys.first() else { continue };
            let more = if keys.len() > 1 { ", …" } else { "" };
            let (why, way_out) = match self.last_good.held {
                true => (
                    "so much is gone from the directory that it looks like a mistake",
                    format!("Put them back, or create a file named {CONFIRM_FILE} in the directory to let them go"),
                ),
                false if self.dialect == Dialect::Files => (
                    "they may be in what cannot be read of the source, or under another type",
                    format!(
                        "Mend that, or, where they are gone for good, create a file named {CONFIRM_FILE} in the directory"
                    ),
                ),
                false => (
                    "their kind cannot be listed (forbidden, or unknown to the API server)",
                    "Where they are gone for good, with their CRD, end control and remove policies.log".into(),
                ),
            };
            let message = format!(
                "{} {objects} ({first}{more}) have not been seen since control began anew, and {why}: their last good \
                 versions stay in use. {way_out}",
                keys.len()
            );
            problems.push(Problem::new(Severity::Warning, reason, message));
        }
        problems
    }
}

fn is_kept(kind: ObjectKind) -> bool {
    let is_policy =
        matches!(kind, ObjectKind::NetworkPolicy | ObjectKind::ClusterNetworkPolicy | ObjectKind::GatewayPolicy);
    is_policy || is_subject(kind)
}

/// Whether objects of a kind say whom policies are about.
pub(super) fn is_subject(kind: ObjectKind) -> bool {
    matches!(kind, ObjectKind::Pod | ObjectKind::Namespace)
}
