//! What is told of policies by events in the API: a policy that cannot be read whole, or that others contradict.
//!
//! Owns which problems have become events. Whoever leads tells each problem once, and a new leader what he finds; how many
//! events there are at most is [`crate::status::api::event`]'s business.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use super::Reconciler;
use crate::problem::{Problem, Severity};
use crate::source::{ObjectKey, ObjectKind};

/// Policies as the API has them, and what was told.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Keys and identities of policies, by how problems name them.
    policies: HashMap<String, (ObjectKey, String)>,
    told: BTreeSet<Problem>,
    /// Term of the one who told that.
    term: Option<u64>,
}

impl Events {
    /// An object has this identity.
    pub(super) fn know(&mut self, key: &ObjectKey, uid: String) {
        if is_policy(key.kind) {
            self.policies.insert(key.to_string(), (key.clone(), uid));
        }
    }

    /// The identity of an object, as far as it is known.
    pub(super) fn uid(&self, key: &ObjectKey) -> Option<&str> {
        self.policies.get(&key.to_string()).map(|(_, uid)| uid.as_str())
    }

    /// An object is gone.
    pub(super) fn forget(&mut self, key: &ObjectKey) {
        if is_policy(key.kind) {
            self.policies.remove(&key.to_string());
        }
    }

    /// Which of `problems` are to be told in `term`, with whom each is about.
    fn news<'a>(
        &'a mut self,
        problems: &'a BTreeSet<Problem>,
        term: u64,
    ) -> Vec<(&'a ObjectKey, &'a str, &'a Problem)> {
        if self.term != Some(term) {
            (self.term, self.told) = (Some(term), BTreeSet::new());
        }
        let about = |problem: &Problem| self.policies.contains_key(problem.object.as_deref().unwrap_or_default());
        let theirs: BTreeSet<Problem> =
            problems.iter().filter(|problem| problem.severity != Severity::Notice && about(problem)).cloned().collect();
        let before = std::mem::replace(&mut self.told, theirs);
        let new = problems.iter().filter(|problem| self.told.contains(*problem) && !before.contains(*problem));
        new.filter_map(|problem| {
            let (key, uid) = self.policies.get(problem.object.as_deref()?)?;
            Some((key, uid.as_str(), problem))
        })
        .collect()
    }
}

impl Reconciler {
    /// Tells what is newly wrong with policies, if this process leads.
    pub(super) fn tell_events(&mut self, problems: &BTreeSet<Problem>) {
        let Some(term) = self.office.in_force() else { return };
        for (about, uid, problem) in self.events.news(problems, term) {
            let field = problem.field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default();
            self.office.tell_of_policy(about, uid, problem.reason, format!("{field}{}", problem.message));
        }
    }
}

fn is_policy(kind: ObjectKind) -> bool {
    matches!(kind, ObjectKind::NetworkPolicy | ObjectKind::ClusterNetworkPolicy | ObjectKind::GatewayPolicy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: ObjectKind, name: &str) -> ObjectKey {
        let namespace = if kind.is_namespaced() { "shop" } else { "" };
        ObjectKey { kind, namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn a_problem_is_told_once_in_a_term() {
        let mut events = Events::default();
        let (network, gateway) = (key(ObjectKind::NetworkPolicy, "web"), key(ObjectKind::GatewayPolicy, "office"));
        events.know(&network, "1".into());
        events.know(&gateway, "2".into());
        events.know(&key(ObjectKind::Pod, "p"), "3".into());
        let problem = |about: &ObjectKey, message: &str| Problem::new(Severity::Error, "Invalid", message).about(about);
        let mut problems = BTreeSet::from([
            problem(&network, "a"),
            problem(&key(ObjectKind::Pod, "p"), "b"),
            Problem::new(Severity::Notice, "Fine", "c").about(&gateway),
        ]);
        let told = |events: &mut Events, problems: &BTreeSet<Problem>, term| -> Vec<(String, String)> {
            let news = events.news(problems, term);
            news.into_iter().map(|(key, uid, problem)| (format!("{key} {uid}"), problem.message.clone())).collect()
        };
        assert_eq!(told(&mut events, &problems, 1), [("NetworkPolicy shop/web 1".into(), "a".into())]);
        assert_eq!(told(&mut events, &problems, 1), []);
        problems.insert(problem(&gateway, "d"));
        assert_eq!(told(&mut events, &problems, 1), [("GatewayPolicy office 2".into(), "d".into())]);
        assert_eq!(told(&mut events, &problems, 2).len(), 2, "a new leader tells what he finds");
        // One that was right in between is news again.
        assert_eq!(told(&mut events, &BTreeSet::new(), 2), []);
        assert_eq!(told(&mut events, &problems, 2).len(), 2);
        events.forget(&network);
        assert_eq!(told(&mut events, &problems, 3).len(), 1);
    }
}
