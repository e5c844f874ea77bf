//! What the loop tells of itself in numbers.
//!
//! Owns what only the loop sees pass by, and the walk over what it holds. The walk is made for who asks, between two changes.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_api::message::Response;
use tidegate_api::resource::Kind;
use tidegate_metrics::{Histogram, Metric, number};

use super::{Input, Reconciler};
use crate::lease::Word;
use crate::metrics::Figure;
use crate::resolve::gateway;
use crate::session::link::News;
use crate::source::{ObjectKey, ObjectKind};

/// Upper ends of the buckets of passes, in seconds.
const PASS_BUCKETS_S: &[f64] = &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0];

/// What has passed by.
#[derive(Debug)]
pub(super) struct Seen {
    generation_told: u64,
    generation_reached: u64,
    connections: u64,
    terms: u64,
    batches: u64,
    passes: Histogram,
}

impl Default for Seen {
    fn default() -> Self {
        let passes = Histogram::new(PASS_BUCKETS_S);
        Seen { generation_told: 0, generation_reached: 0, connections: 0, terms: 0, batches: 0, passes }
    }
}

impl Seen {
    /// Something is there for the loop.
    pub(super) fn look(&mut self, input: &Input) {
        match input {
            Input::Dataplane(News::Connected { reached, .. }) => {
                self.connections += 1;
                (self.generation_told, self.generation_reached) = (*reached, *reached);
            }
            Input::Dataplane(News::Message { response: Response::Accepted(accepted), .. }) => {
                self.generation_told = accepted.generation;
            }
            Input::Dataplane(News::Message { response: Response::Reached { generation }, .. }) => {
                self.generation_reached = self.generation_reached.max(*generation);
            }
            Input::Lease(Word::Taken(_)) => self.terms += 1,
            _ => {}
        }
    }

    /// So many batches were taken at once.
    pub(super) fn took(&mut self, batches: usize) {
        self.batches += batches as u64;
    }

    /// The loop has done with what it was given.
    pub(super) fn passed(&mut self, took: Duration) {
        self.passes.observe(took.as_secs_f64());
    }
}

impl Reconciler {
    /// Everything that only this loop knows.
    pub fn figures(&self) -> Vec<Metric> {
        let seen = &self.seen;
        let yes = |holds: bool| f64::from(u8::from(holds));
        let mut passes = Figure::Pass.metric();
        passes.distribute([], seen.passes.told());
        let mut programming = Figure::Programming.metric();
        programming.distribute([], self.latency.distribution());
        let own = self.model.node(&self.file.node).map_or(0, |_| 1);
        let others = gateway::others(self.model.nodes(), &self.file.node, &self.file.control).len() as u64;
        let mut page = vec![
            Figure::SourceComplete.of(yes(self.complete)),
            self.objects(),
            Figure::Services.of(number(self.notes.len() as u64)),
            self.notices(),
            Figure::HeldBack.of(number(self.session.held_back().len() as u64)),
            Figure::GenerationTold.of(number(seen.generation_told)),
            Figure::GenerationReached.of(number(seen.generation_reached)),
            Figure::Connected.of(yes(self.session.is_synced() && self.dataplane_problem.is_none())),
            Figure::Connections.of(number(seen.connections)),
            programming,
            passes,
            Figure::Batches.of(number(seen.batches)),
            Figure::Leads.of(yes(self.office.in_force().is_some())),
            Figure::Terms.of(number(seen.terms)),
            self.problems_by_reason(),
            self.pools(),
            Figure::Gateways.of(number(own + others)),
        ];
        page.extend(self.resources_by_kind());
        page
    }

    fn objects(&self) -> Metric {
        let invalid = |kind: ObjectKind| self.invalid.keys().filter(move |key| key.kind == kind);
        let mut metric = Figure::Objects.metric();
        for kind in ObjectKind::ALL {
            let kept = invalid(kind).filter(|key: &&ObjectKey| self.model.holds(key)).count();
            let unused = invalid(kind).count() - kept;
            let valid = self.model.count(kind) - kept;
            for (state, count) in [("valid", valid), ("kept", kept), ("unused", unused)] {
                metric.add([("kind", &kind.to_string()), ("state", state)], number(count as u64));
            }
        }
        metric
    }

    fn notices(&self) -> Metric {
        let mut services: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for note in self.notes.values().flatten() {
            *services.entry((note.kind, note.reason)).or_default() += 1;
        }
        let mut metric = Figure::Notices.metric();
        for ((condition, reason), count) in services {
            metric.add([("condition", condition), ("reason", reason)], number(count));
        }
        metric
    }

    fn resources_by_kind(&self) -> [Metric; 2] {
        let (mut wanted, mut refused) = (Figure::Resources.metric(), Figure::Refused.metric());
        for kind in Kind::ALL {
            let name = format!("{kind:?}");
            let count = self.desired.resources.keys().filter(|key| key.kind == kind).count();
            wanted.add([("kind", &*name)], number(count as u64));
            let count = self.session.refused().keys().filter(|key| key.kind == kind).count();
            refused.add([("kind", &*name)], number(count as u64));
        }
        [wanted, refused]
    }

    fn problems_by_reason(&self) -> Metric {
        let mut problems = BTreeMap::new();
        for problem in &self.told {
            *problems.entry((problem.reason, problem.severity)).or_default() += 1;
        }
        let mut metric = Figure::Problems.metric();
        for ((reason, severity), count) in problems {
            metric.add([("reason", reason), ("severity", severity.name())], number(count));
        }
        metric
    }

    /// Others do not know what the one that leads has given out and not told yet.
    fn pools(&self) -> Metric {
        let mut metric = Figure::Pool.metric();
        if self.office.in_force().is_none() {
            return metric;
        }
        for (pool, v4, v6) in self.allocation.counts() {
            for (family, counts) in [("ipv4", v4), ("ipv6", v6)] {
                if counts.total == 0 {
                    continue;
                }
                for (state, count) in [("assigned", counts.assigned), ("available", counts.available)] {
                    metric.add([("pool", pool), ("family", family), ("state", state)], number(count));
                }
            }
        }
        metric
    }
}
