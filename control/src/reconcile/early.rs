//! What is resolved before the source is known as a whole.
//!
//! Owns the choice of Services for which that is worth its while: those that have been read together with some of their
//! slices, once all Nodes are known. A list of a large cluster takes seconds to arrive, and what is resolved meanwhile need
//! not be afterwards. Resolving depends on the objects alone and never on their order, so that it may be done at any time
//! and again: what a later portion touches is. Refuses to conclude anything from it: nothing is told to people and nothing
//! comes in force before all is known; the dataplane may prepare for it.

use std::collections::BTreeSet;

use super::{Reconciler, warn_of};
use crate::model::{Dirty, Name};

/// How far it has come.
#[derive(Debug, Default)]
pub(super) struct Early {
    /// All Nodes are: with each that is not, every Service would be resolved once more.
    pub(super) nodes_known: bool,
    /// Nodes that Services were resolved with; they are resolved themselves when all is known.
    pub(super) nodes: BTreeSet<String>,
    /// Services that have been read without slices, or slices without their Service; or that are gone again.
    pub(super) unripe: BTreeSet<Name>,
}

impl Reconciler {
    /// Resolves what a portion has made ripe, and takes the Services out of `dirty`. Costs what the portion touches.
    pub(super) fn resolve_early(&mut self, dirty: &mut Dirty) {
        if !self.early.nodes_known {
            return;
        }
        self.resolve_site(dirty);
        self.resolve_reach(dirty);
        self.early.nodes.append(&mut dirty.nodes);
        let (model, services) = (&self.model, std::mem::take(&mut dirty.services));
        let is_ripe = |name: &Name| model.service(name).is_some() && model.slices_of(name).next().is_some();
        let (ripe, unripe): (BTreeSet<Name>, BTreeSet<Name>) = services.into_iter().partition(is_ripe);
        for name in &ripe {
            self.early.unripe.remove(name);
        }
        self.early.unripe.extend(unripe);
        self.resolve_services(ripe);
    }

    /// All is known now: says what was kept back of Services that were resolved early and are not going to be again.
    pub(super) fn tell_early(&mut self, again: &BTreeSet<Name>) {
        let early: Vec<Name> = self.notes.keys().filter(|name| !again.contains(*name)).cloned().collect();
        for name in early {
            for note in self.notes(&name) {
                warn_of(&name, note);
            }
            self.follow_health(&name, true);
        }
        // Those that will be: their notes are news.
        self.notes.retain(|name, _| !again.contains(name));
    }
}
