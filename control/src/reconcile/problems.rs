//! Everything that is wrong now, gathered and told.
//!
//! Owns the list and when it is written; each problem is found by whose subject it is.

use std::collections::BTreeSet;
use std::time::Instant;

use tidegate_api::resource::{Kind, ResourceKey};

use super::{Reconciler, kept_words, object_key};
use crate::health::Health;
use crate::problem::{Place, Problem, Severity};
use crate::resolve;
use crate::session::Standing;
use crate::source::{ObjectKey, ObjectKind};
use crate::watch::{self, Dialect};

/// Objects whose unknown fields are listed one by one; of the others only the number is told.
const OBJECTS_TOLD_MAX: usize = 100;
/// Unknown fields listed of one object.
const FIELDS_TOLD_MAX: usize = 8;

impl Reconciler {
    /// Everything that is wrong now, worst first.
    pub fn problems(&self) -> BTreeSet<Problem> {
        let mut problems: BTreeSet<Problem> = self.source_problems.iter().cloned().collect();
        problems.extend(self.invalid.iter().map(|(key, problem)| self.as_it_stands(key, problem)));
        problems.extend(self.unknown_fields.values().take(OBJECTS_TOLD_MAX).flatten().cloned());
        if let Some(more) = self.unknown_fields.len().checked_sub(OBJECTS_TOLD_MAX).filter(|more| *more > 0) {
            let message = format!("{more} more objects have fields that nobody looks at");
            problems.insert(Problem::new(Severity::Warning, "UnknownField", message));
        }
        for (name, found) in &self.node_problems {
            let key = ObjectKey { kind: ObjectKind::Node, namespace: String::new(), name: name.clone() };
            let placed = |problem: &Problem| Problem { place: self.places.get(&key).cloned(), ..problem.clone() };
            problems.extend(found.iter().map(placed));
        }
        problems.extend(self.dataplane_problem.clone());
        problems.extend(self.health.iter().flat_map(Health::problems));
        problems.extend(self.office.problems());
        problems.extend(self.allocation.problems());
        problems.extend(self.leaving.problems().cloned());
        problems.extend(self.conflicts_of_leaving());
        problems.extend(self.policy_problems());
        problems.extend(resolve::pod::contested(self.model.pods()));
        problems.extend(self.saved_problems());
        problems.extend(self.unused_pools());
        for (key, refused) in self.session.refused() {
            let message = format!("the dataplane refused it: {}", refused.reason);
            let object = object_key(key);
            let mut problem = Problem::new(Severity::Error, "Refused", message).about(&object);
            problem.place = self.places.get(&object).cloned();
            problems.insert(problem);
        }
        if let Some(first) = self.session.held_back().first() {
            let message = format!(
                "the dataplane holds {} ({first}{}) that the source no longer has: so much does not go by mistake, it stays \
                 until a file named {} is created in the directory, or comes back",
                match self.session.held_back().len() {
                    1 => "an object".into(),
                    several => format!("{several} objects"),
                },
                if self.session.held_back().len() > 1 { ", …" } else { "" },
                crate::source::scan::CONFIRM_FILE,
            );
            problems.insert(Problem::new(Severity::Error, "DeletesHeld", message));
        }
        problems.extend(self.changes_that_wait());
        problems
    }

    /// Policies, and whom they mean, that only the dataplane knows as a whole.
    fn changes_that_wait(&self) -> Vec<Problem> {
        let (policies, sets): (Vec<_>, Vec<_>) =
            self.session.postponed().iter().partition(|key| key.kind == Kind::Policy);
        let of_policy = |key: &ResourceKey| {
            let message = "its change waits until Pods, Namespaces and policies can all be read: the version that the \
                           dataplane has stays in force, since nobody else knows whom it is about";
            let object = object_key(key);
            let mut problem = Problem::new(Severity::Warning, "ChangeWaits", message).about(&object);
            problem.place = self.places.get(&object).cloned();
            problem
        };
        let of_sets = (!sets.is_empty()).then(|| {
            let message = format!(
                "{} selections of pods stay as the dataplane has them until Pods, Namespaces and policies can all be read: \
                 policies may not be about Pods that are new",
                sets.len()
            );
            Problem::new(Severity::Warning, "SelectionsWait", message)
        });
        policies.into_iter().map(of_policy).chain(of_sets).collect()
    }

    /// What is wrong with an object, with what becomes of it: of one that was wrong when this run began the dataplane may
    /// have the version before, which nobody else knows.
    fn as_it_stands(&self, key: &ObjectKey, problem: &Problem) -> Problem {
        let is_held = |resource: &ResourceKey| self.session.standing(resource) != Standing::Absent;
        let unused = kept_words(key.kind, false, false);
        match problem.message.strip_suffix(unused) {
            Some(said) if self.desired.doubtful.get(key).is_some_and(is_held) => {
                let message = format!("{said}; the version that the dataplane has stays in force");
                Problem { message, ..problem.clone() }
            }
            _ => problem.clone(),
        }
    }

    /// Pools in a directory: giving addresses out takes one who decides for all gateways, and a place where they all read
    /// what he decided. A directory has neither.
    fn unused_pools(&self) -> Option<Problem> {
        let leaves_by = |pool: &str| self.model.egress().any(|policy| policy.addresses.is_pool(pool));
        let pools = self.model.pools().map(|pool| pool.name.as_str()).filter(|pool| !leaves_by(pool));
        let names: Vec<&str> = pools.filter(|_| self.dialect == Dialect::Files).collect();
        let message = || {
            format!(
                "not used: {}; Services are given addresses of pools in a cluster only. In a directory a Service asks for its \
                 own, with the annotation {}",
                names.join(", "),
                watch::annotation::ADDRESSES
            )
        };
        (!names.is_empty())
            .then(|| Problem::new(Severity::Warning, "PoolWithoutCluster", message()).about("AddressPool"))
    }

    /// Fields that its kind does not have: a slip of the pen would otherwise be served by a default.
    pub(super) fn tell_unknown(&mut self, key: &ObjectKey, place: Option<&Place>, fields: Vec<String>) {
        if fields.is_empty() {
            self.unknown_fields.remove(key);
            return;
        }
        let more = fields.len().saturating_sub(FIELDS_TOLD_MAX);
        let problem = |(index, field): (usize, String)| {
            let others = match more {
                0 => String::new(),
                _ if index + 1 < FIELDS_TOLD_MAX => String::new(),
                more => format!("; nor at {more} more fields of this object"),
            };
            let message = format!("is no field of kind {}: nobody looks at it{others}", key.kind);
            let mut problem = Problem::new(Severity::Warning, "UnknownField", message).about(key).in_field(field);
            problem.place = place.cloned();
            problem
        };
        let problems = fields.into_iter().take(FIELDS_TOLD_MAX).enumerate().map(problem).collect();
        self.unknown_fields.insert(key.clone(), problems);
    }

    /// Logs what is newly wrong and what is right again, and writes the list.
    pub(super) fn tell_problems(&mut self) {
        let problems = self.problems();
        self.tell_events(&problems);
        if problems == self.told {
            return;
        }
        let now = Instant::now();
        let mattered: BTreeSet<_> = self.told.iter().map(Problem::matter).collect();
        for problem in problems.difference(&self.told) {
            // What goes on and is told in other words each time, as by a server that numbers its answers, fills no log.
            if mattered.contains(&problem.matter()) && !self.retold.admits(problem.reason, now) {
                continue;
            }
            if !self.chorus.admits(("problem", problem.reason), now) {
                continue;
            }
            match problem.severity {
                Severity::Error => tracing::error!("{problem}"),
                Severity::Warning => tracing::warn!("{problem}"),
                Severity::Notice => tracing::info!("{problem}"),
            }
        }
        let matters: BTreeSet<_> = problems.iter().map(Problem::matter).collect();
        // What is told in other words now goes on.
        for problem in self.told.difference(&problems).filter(|problem| !matters.contains(&problem.matter())) {
            if self.chorus.admits(("problem that is no longer so", problem.reason), now) {
                tracing::info!("no longer so: {problem}");
            }
        }
        self.status.problems(problems.iter().cloned().collect());
        self.told = problems;
    }
}
