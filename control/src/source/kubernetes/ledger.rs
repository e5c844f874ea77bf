//! What has been told of each kind, and what of it goes on as one batch.
//!
//! Owns two things that need memory: which objects are known, so that a fresh list tells what is gone without a moment
//! of emptiness (C-021), and what is wrong with the API now. Refuses to know how it is spoken to. An outage removes
//! nothing; neither does a kind that was taken away from us.

use std::collections::BTreeMap;

use hashbrown::{HashMap, HashSet};
use k8s_openapi::jiff::Timestamp;

use super::follow::{Failure, Fault, Told};
use crate::problem::{Problem, Severity};
use crate::source::{Batch, ObjectKey, ObjectKind, Reading, Unavailable, Unlisted};

/// Nothing waits for more once there are so many objects.
const PORTION: usize = 2000;

/// All kinds.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    kinds: BTreeMap<ObjectKind, Standing>,
    /// Since when nobody answers, and what was heard first.
    outage: Option<(Timestamp, String)>,
    /// What goes with the next batch: a reading, or that the object is gone. Of an object that is gone and there again
    /// both is told.
    changed: HashMap<ObjectKey, Change>,
    listed_for: Option<u64>,
    /// There is something to tell besides objects.
    news: bool,
    complete: bool,
}

#[derive(Debug, Default)]
struct Change {
    gone: bool,
    seen: Option<Reading>,
}

/// One kind.
#[derive(Debug)]
struct Standing {
    needed: bool,
    /// What it takes to be allowed to watch it.
    rule: &'static str,
    /// `namespace/name` of all that have been told on.
    known: HashSet<Box<str>>,
    /// What the present list has brought so far.
    fresh: Option<HashSet<Box<str>>>,
    /// It has been listed once, or cannot be.
    settled: bool,
    /// Why it has not been listed yet, where it is not waited for.
    unavailable: Option<Unavailable>,
    failure: Option<Failure>,
}

impl Ledger {
    /// Also keeps a kind. `rule` is what it takes to be allowed to.
    pub(super) fn keep(&mut self, kind: ObjectKind, needed: bool, rule: &'static str) {
        let (known, fresh) = (HashSet::new(), None);
        let standing = Standing { needed, rule, known, fresh, settled: false, unavailable: None, failure: None };
        self.kinds.insert(kind, standing);
    }

    /// Takes in what was told of a kind.
    pub(super) fn take(&mut self, kind: ObjectKind, told: Told) {
        let Some(standing) = self.kinds.get_mut(&kind) else { return };
        match told {
            Told::Listing => {
                // What an abandoned list has brought is known too.
                let before = standing.fresh.replace(HashSet::new());
                standing.known.extend(before.into_iter().flatten());
                self.answered(kind);
            }
            Told::Seen(readings) => {
                let names = standing.fresh.as_mut().unwrap_or(&mut standing.known);
                for reading in readings {
                    names.insert(path(&reading.key));
                    let change = self.changed.entry(reading.key.clone()).or_default();
                    change.seen = Some(reading);
                }
            }
            Told::Gone(key) => {
                standing.known.remove(&path(&key));
                self.changed.insert(key, Change { gone: true, seen: None });
            }
            Told::Listed { asked } => {
                let fresh = standing.fresh.take().unwrap_or_default();
                for gone in standing.known.difference(&fresh) {
                    let (namespace, name) = gone.split_once('/').unwrap_or(("", gone));
                    let key = ObjectKey { kind, namespace: namespace.into(), name: name.into() };
                    self.changed.insert(key, Change { gone: true, seen: None });
                }
                standing.known = fresh;
                (standing.settled, standing.unavailable) = (true, None);
                if kind == ObjectKind::Service {
                    self.listed_for = Some(asked);
                }
                self.news = true;
                self.answered(kind);
            }
            Told::Healthy => self.answered(kind),
            Told::Failed(failure) => self.failed(kind, failure),
        }
    }

    fn answered(&mut self, kind: ObjectKind) {
        let Some(standing) = self.kinds.get_mut(&kind) else { return };
        self.news |= standing.failure.take().is_some();
        let unreachable =
            |standing: &Standing| standing.failure.as_ref().is_some_and(|failure| failure.fault == Fault::Unreachable);
        if !self.kinds.values().any(unreachable) {
            self.outage = None;
        }
    }

    fn failed(&mut self, kind: ObjectKind, failure: Failure) {
        let Some(standing) = self.kinds.get_mut(&kind) else { return };
        if failure.fault == Fault::Unreachable && self.outage.is_none() {
            self.outage = Some((Timestamp::now(), failure.message.clone()));
        }
        // A kind that is not needed and not to be had is no reason to wait.
        let unavailable = match failure.fault {
            Fault::Forbidden => Some(Unavailable::Forbidden),
            Fault::Missing => Some(Unavailable::Unknown),
            _ => None,
        };
        let was_listed = standing.settled && standing.unavailable.is_none();
        if unavailable.is_some() && !standing.needed && !was_listed {
            (standing.settled, standing.unavailable) = (true, unavailable);
        }
        let same = standing.failure.as_ref().is_some_and(|before| before.fault == failure.fault);
        if !same {
            standing.failure = Some(failure); // the first words stay, or each attempt would be news
            self.news = true;
        }
    }

    /// What there is to deliver now; `waiting` says that more will be there in a moment.
    pub(super) fn batch(&mut self, waiting: bool) -> Option<Batch> {
        let complete = self.kinds.values().all(|standing| standing.settled);
        let first = complete && !self.complete;
        let due = match complete {
            true => first || self.news || self.changed.len() >= PORTION || (!waiting && !self.changed.is_empty()),
            false => self.news || self.changed.len() >= PORTION,
        };
        if !due {
            return None;
        }
        (self.news, self.complete) = (false, complete);
        let mut batch = Batch {
            problems: self.problems(),
            complete,
            nodes_known: self.kinds.get(&ObjectKind::Node).is_some_and(|standing| standing.settled),
            listed_for: self.listed_for.take_if(|_| complete), // it is of use with everything only
            unlisted: self.unlisted(),
            ..Batch::default()
        };
        for (key, Change { gone, seen }) in self.changed.drain() {
            batch.read.extend(seen);
            if gone {
                batch.deleted.push(key);
            }
        }
        Some(batch)
    }

    /// Kinds that are not waited for any more and have never been listed.
    fn unlisted(&self) -> Unlisted {
        self.kinds.iter().filter_map(|(kind, standing)| Some((*kind, standing.unavailable?))).collect()
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Some((since, first)) = &self.outage {
            let since = since.strftime("%Y-%m-%dT%H:%M:%SZ");
            let message = format!(
                "the API server does not answer since {since} (at first: {first}); nothing is changed until it does"
            );
            problems.push(Problem::new(Severity::Error, "ApiUnreachable", message));
        }
        for (kind, standing) in &self.kinds {
            let Some(failure) = &standing.failure else { continue };
            let severity = if standing.needed { Severity::Error } else { Severity::Warning };
            let rule = standing.rule;
            let kept = if standing.known.is_empty() { "" } else { "; what was known of them stays in use" };
            let problem = match failure.fault {
                Fault::Unreachable | Fault::Expired => continue,
                Fault::Unauthorized => {
                    let message = format!(
                        "the API server does not know us: look at the token or certificate of the kubeconfig{kept} ({})",
                        failure.message
                    );
                    Problem::new(severity, "ApiUnauthorized", message)
                }
                // Most clusters have no definition of it.
                Fault::Missing if *kind == ObjectKind::ClusterNetworkPolicy && standing.known.is_empty() => continue,
                Fault::Forbidden => {
                    let message = format!(
                        "objects of kind {kind} may not be read: the role needs get, list and watch of {rule}{kept} ({})",
                        failure.message
                    );
                    Problem::new(severity, "ApiForbidden", message)
                }
                Fault::Missing if standing.needed => {
                    let message = format!("the API server knows no {rule}{kept}: {}", failure.message);
                    Problem::new(severity, "ApiKindMissing", message)
                }
                Fault::Missing => {
                    let message = format!("the API server knows no {rule}: there are none until it does{kept}");
                    Problem::new(Severity::Notice, "ApiKindMissing", message)
                }
                Fault::Nonsense => {
                    let message = format!(
                        "what the API server answers about {rule} makes no sense: {}; nothing is changed, and it is asked again",
                        failure.message
                    );
                    Problem::new(Severity::Error, "ApiMisanswers", message)
                }
            };
            problems.push(problem);
        }
        problems
    }
}

/// `namespace/name`, in the least memory.
fn path(key: &ObjectKey) -> Box<str> {
    format!("{}/{}", key.namespace, key.name).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::watch::Invalid;

    fn key(kind: ObjectKind, name: &str) -> ObjectKey {
        ObjectKey { kind, namespace: "shop".into(), name: name.into() }
    }

    fn seen(kind: ObjectKind, names: &[&str]) -> Told {
        let reading = |name: &&str| Reading {
            key: key(kind, name),
            object: Err(Invalid::new("", "")),
            service: None,
            record: None,
            uid: None,
            triggered_at: None,
        };
        Told::Seen(names.iter().map(reading).collect())
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.keep(ObjectKind::Service, true, "services");
        ledger.keep(ObjectKind::EndpointSlice, true, "endpointslices");
        ledger.keep(ObjectKind::Pod, false, "pods");
        ledger
    }

    fn list(ledger: &mut Ledger, kind: ObjectKind, names: &[&str]) {
        ledger.take(kind, Told::Listing);
        ledger.take(kind, seen(kind, names));
        ledger.take(kind, Told::Listed { asked: 0 });
    }

    fn failure(fault: Fault, message: &str) -> Told {
        Told::Failed(Failure { fault, message: message.into(), not_before: None })
    }

    fn names(batch: &Batch) -> (BTreeSet<&str>, BTreeSet<&str>) {
        let read = batch.read.iter().map(|reading| reading.key.name.as_str()).collect();
        (read, batch.deleted.iter().map(|key| key.name.as_str()).collect())
    }

    fn complete() -> Ledger {
        let mut ledger = ledger();
        list(&mut ledger, ObjectKind::Service, &["a", "b"]);
        list(&mut ledger, ObjectKind::EndpointSlice, &["s"]);
        list(&mut ledger, ObjectKind::Pod, &[]);
        assert!(ledger.batch(false).unwrap().complete);
        ledger
    }

    #[test]
    fn nothing_is_complete_before_every_needed_kind_has_been_listed() {
        let mut ledger = ledger();
        list(&mut ledger, ObjectKind::EndpointSlice, &["s"]); // C-022: slices may come first
        ledger.take(ObjectKind::Pod, failure(Fault::Forbidden, "pods is forbidden"));
        let batch = ledger.batch(false).unwrap();
        assert!(!batch.complete);
        assert_eq!(batch.problems.len(), 1, "{:?}", batch.problems);
        ledger.take(ObjectKind::Service, failure(Fault::Forbidden, "services is forbidden"));
        let batch = ledger.batch(false).unwrap();
        assert!(!batch.complete, "a kind that is needed is waited for");
        assert!(batch.problems.iter().any(|problem| problem.message.contains("get, list and watch of services")));
        list(&mut ledger, ObjectKind::Service, &["a"]);
        let batch = ledger.batch(false).unwrap();
        assert!(batch.complete);
        assert_eq!(names(&batch).0, ["a"].into());
    }

    /// What closes something may be withheld, be it the policy or those whom it is about.
    #[test]
    fn what_is_withheld_at_the_start_is_not_taken_for_absent() {
        let cnp = ObjectKind::ClusterNetworkPolicy;
        for (fault, why) in [(Fault::Forbidden, Unavailable::Forbidden), (Fault::Missing, Unavailable::Unknown)] {
            let mut ledger = ledger();
            ledger.keep(cnp, false, "clusternetworkpolicies");
            list(&mut ledger, ObjectKind::Service, &[]);
            list(&mut ledger, ObjectKind::EndpointSlice, &[]);
            ledger.take(ObjectKind::Pod, failure(fault, "no pods"));
            ledger.take(cnp, failure(fault, "none"));
            let batch = ledger.batch(false).unwrap();
            assert_eq!((batch.complete, batch.unlisted), (true, [(ObjectKind::Pod, why), (cnp, why)].into()));
            // Nobody answers, which says nothing new of them.
            ledger.take(ObjectKind::Pod, failure(Fault::Unreachable, "refused"));
            assert_eq!(ledger.batch(false).unwrap().unlisted.len(), 2, "{fault:?}");
            list(&mut ledger, ObjectKind::Pod, &["p"]);
            ledger.take(ObjectKind::Pod, failure(fault, "no pods any more"));
            assert_eq!(ledger.batch(false).unwrap().unlisted, [(cnp, why)].into(), "pods are known");
        }
    }

    /// C-021, C-022: what a fresh list lacks is gone, what it has never was.
    #[test]
    fn a_fresh_list_tells_the_difference_only() {
        let mut ledger = complete();
        list(&mut ledger, ObjectKind::Service, &["b", "c"]);
        let batch = ledger.batch(false).unwrap();
        assert_eq!(names(&batch), (["b", "c"].into(), ["a"].into()));
        // A list that breaks off removes nothing, and what it brought is known.
        ledger.take(ObjectKind::Service, Told::Listing);
        ledger.take(ObjectKind::Service, seen(ObjectKind::Service, &["d"]));
        ledger.take(ObjectKind::Service, failure(Fault::Unreachable, "cut"));
        let batch = ledger.batch(false).unwrap();
        assert_eq!(names(&batch), (["d"].into(), [].into()));
        list(&mut ledger, ObjectKind::Service, &["b"]);
        assert_eq!(names(&ledger.batch(false).unwrap()), (["b"].into(), ["c", "d"].into()));
    }

    /// S-005: both is told of an object that went and came again.
    #[test]
    fn an_object_that_was_made_anew_is_deleted_first() {
        let mut ledger = complete();
        ledger.take(ObjectKind::Service, Told::Gone(key(ObjectKind::Service, "a")));
        ledger.take(ObjectKind::Service, seen(ObjectKind::Service, &["a"]));
        let batch = ledger.batch(false).unwrap();
        assert_eq!(names(&batch), (["a"].into(), ["a"].into()));
        ledger.take(ObjectKind::Service, seen(ObjectKind::Service, &["a"]));
        ledger.take(ObjectKind::Service, Told::Gone(key(ObjectKind::Service, "a")));
        assert_eq!(names(&ledger.batch(false).unwrap()), ([].into(), ["a"].into()));
    }

    /// C-021.
    #[test]
    fn an_outage_is_one_problem_that_ends_when_all_answer_again() {
        let mut ledger = complete();
        for kind in [ObjectKind::Service, ObjectKind::EndpointSlice] {
            ledger.take(kind, failure(Fault::Unreachable, "connection refused"));
        }
        let batch = ledger.batch(false).unwrap();
        assert_eq!(names(&batch), ([].into(), [].into()));
        assert_eq!(batch.problems.len(), 1, "{:?}", batch.problems);
        assert!(batch.complete && batch.problems[0].reason == "ApiUnreachable");
        ledger.take(ObjectKind::Service, failure(Fault::Unreachable, "other words"));
        assert!(ledger.batch(false).is_none(), "another attempt is no news");
        ledger.take(ObjectKind::Service, Told::Healthy);
        assert_eq!(ledger.batch(false).unwrap().problems.len(), 1);
        ledger.take(ObjectKind::EndpointSlice, Told::Healthy);
        assert!(ledger.batch(false).unwrap().problems.is_empty());
    }

    #[test]
    fn what_comes_in_a_moment_is_waited_for() {
        let mut ledger = complete();
        ledger.take(ObjectKind::Service, seen(ObjectKind::Service, &["a"]));
        assert!(ledger.batch(true).is_none());
        ledger.take(ObjectKind::Service, seen(ObjectKind::Service, &["a", "b"]));
        assert_eq!(ledger.batch(false).unwrap().read.len(), 2);
        assert!(ledger.batch(false).is_none());
    }
}
