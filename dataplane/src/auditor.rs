//! The auditor: a line in the log for what policies in audit would have denied.
//!
//! Owns a thread that looks now and then at what workers have counted, and how often that is said. Workers say nothing: a
//! packet costs a counter, and a flood of them one line in [`LOOKS_EVERY`] for each rule. It refuses to know packets.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tidegate_api::resource::{Body, Kind, Resource};
use tidegate_policy::Direction;

use crate::compile::thread::Handle;
use crate::server::query::WorkerQuery;
use crate::state::ruling::Ruling;
use crate::table::policy::{gate_ruling_key, ruling_key};

/// How often it looks: at most one line for each rule in that time.
pub const LOOKS_EVERY: Duration = Duration::from_secs(30);
/// How often it looks whether it is to end.
const WAKES_EVERY: Duration = Duration::from_millis(100);

/// What was told of rules so far: flows that they would have denied in all, by the rule's key.
#[derive(Debug, Default)]
pub struct Told(HashMap<u64, u64>);

/// A rule that would have denied something since it was told of last.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// Name of the policy, with its kind and namespace.
    pub policy: String,
    /// `clients`, `ingress` or `egress`.
    pub direction: &'static str,
    /// Number of the rule; none: that it isolates.
    pub rule: Option<u16>,
    /// Flows that it would have denied since then.
    pub would_deny: u64,
}

impl Told {
    /// What is new, by all policies and what all workers have counted.
    pub fn news(&mut self, policies: &[Arc<Resource>], rulings: &[Ruling]) -> Vec<Finding> {
        let mut counted: HashMap<u64, u64> = HashMap::new();
        // What a rule did deny, before it came into audit or after, is no news of audit.
        for ruling in rulings.iter().filter(|ruling| ruling.would_deny > 0) {
            *counted.entry(ruling.key).or_default() += ruling.would_deny;
        }
        let mut findings = Vec::new();
        for resource in policies {
            for (direction, rule, key) in keys_in_audit(resource) {
                let [now, before] = [&counted, &self.0].map(|counts| counts.get(&key).copied().unwrap_or(0));
                if now > before {
                    findings.push(Finding { policy: name_of(resource), direction, rule, would_deny: now - before });
                }
            }
        }
        self.0 = counted;
        findings
    }
}

/// What a policy in audit is counted under: direction, rule, key.
fn keys_in_audit(resource: &Resource) -> Vec<(&'static str, Option<u16>, u64)> {
    let numbers = |rules: usize| 0..u16::try_from(rules).unwrap_or(u16::MAX);
    match &resource.body {
        Body::GatewayPolicy(policy) if policy.audit => {
            let rules = numbers(policy.rules.len());
            rules.map(|rule| ("clients", Some(rule), gate_ruling_key(&resource.name, rule))).collect()
        }
        Body::Policy(policy) if policy.audit => {
            let sides = [
                ("ingress", Direction::Ingress, policy.ingress.len(), policy.isolates_ingress),
                ("egress", Direction::Egress, policy.egress.len(), policy.isolates_egress),
            ];
            let of_side = |(told, direction, rules, isolates): (&'static str, Direction, usize, bool)| {
                let rules = numbers(rules).map(Some).chain(isolates.then_some(None));
                rules.map(move |rule| (told, rule, ruling_key(&resource.name, direction, rule)))
            };
            sides.into_iter().flat_map(of_side).collect()
        }
        _ => Vec::new(),
    }
}

fn name_of(resource: &Resource) -> String {
    match &resource.body {
        Body::GatewayPolicy(_) => format!("GatewayPolicy/{}", resource.name),
        _ => resource.name.clone(),
    }
}

/// Starts the thread; it ends soon after `is_over` says so.
///
/// # Errors
/// When there can be no thread.
pub fn start(
    handle: Handle,
    workers: Arc<dyn WorkerQuery>,
    is_over: impl Fn() -> bool + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let run = move || {
        let mut told = Told::default();
        let mut waited = Duration::ZERO;
        while !is_over() {
            std::thread::sleep(WAKES_EVERY);
            waited += WAKES_EVERY;
            if waited >= LOOKS_EVERY {
                waited = Duration::ZERO;
                look(&handle, &*workers, &mut told);
            }
        }
    };
    std::thread::Builder::new().name("auditor".into()).spawn(run)
}

fn look(handle: &Handle, workers: &dyn WorkerQuery, told: &mut Told) {
    let views = [Kind::GatewayPolicy, Kind::Policy].map(|kind| handle.view(Some(kind)));
    let policies: Vec<Arc<Resource>> = views.into_iter().flatten().flat_map(|view| view.objects).collect();
    if policies.iter().all(|resource| keys_in_audit(resource).is_empty()) {
        return;
    }
    let Ok(rulings) = workers.rulings() else { return };
    for Finding { policy, direction, rule, would_deny } in told.news(&policies, &rulings) {
        tracing::info!(policy, direction, rule, would_deny, "a policy in audit would have denied flows");
    }
}

#[cfg(test)]
mod tests {
    use tidegate_api::resource::{GatewayAction, GatewayPolicy, GatewayRule, Policy, Tier};

    use super::*;

    #[test]
    fn what_is_new_is_told_once_and_of_rules_in_audit_alone() {
        let action = GatewayAction::Deny;
        let rule = GatewayRule { name: String::new(), action, clients: None, ports: None, services: None };
        let policy = |name: &str, audit| {
            let body = GatewayPolicy { order: 1, audit, rules: vec![rule.clone(), rule.clone()] };
            Arc::new(Resource { name: name.into(), version: "1".into(), body: Body::GatewayPolicy(body) })
        };
        let policies = [policy("trial", true), policy("real", false)];
        // What it has really denied is another matter, whenever that was.
        let ruling = |name, rule, would_deny| Ruling {
            key: gate_ruling_key(name, rule),
            allowed: 9,
            denied: 100 + 10 * would_deny,
            would_deny,
        };
        let mut told = Told::default();
        let finding = |would_deny| {
            vec![Finding { policy: "GatewayPolicy/trial".into(), direction: "clients", rule: Some(1), would_deny }]
        };
        assert_eq!(told.news(&policies, &[ruling("trial", 1, 0)]), [], "it was in force before");
        // Two workers.
        let rulings = [ruling("trial", 1, 4), ruling("trial", 1, 3), ruling("real", 0, 8)];
        assert_eq!(told.news(&policies, &rulings), finding(7));
        assert_eq!(told.news(&policies, &rulings), []);
        assert_eq!(told.news(&policies, &[ruling("trial", 1, 9)]), finding(2));
        assert_eq!(told.news(&policies[1..], &[ruling("trial", 1, 9)]), []);
        // In force for a while and in audit again: only what is new.
        assert_eq!(told.news(&[policy("trial", false)], &[ruling("trial", 1, 9)]), []);
        assert_eq!(told.news(&policies, &[ruling("trial", 1, 10)]), finding(1));
        // What isolates too.
        let network = |audit| {
            let (isolates_ingress, isolates_egress) = (true, false);
            let (ingress, egress, subjects) = (vec![], vec![], "all".into());
            let body =
                Policy { tier: Tier::Namespace, subjects, audit, isolates_ingress, isolates_egress, ingress, egress };
            Arc::new(Resource { name: "NetworkPolicy/shop/a".into(), version: "1".into(), body: Body::Policy(body) })
        };
        let key = ruling_key("NetworkPolicy/shop/a", Direction::Ingress, None);
        let rulings = [Ruling { key, allowed: 0, denied: 8, would_deny: 3 }];
        let isolation =
            Finding { policy: "NetworkPolicy/shop/a".into(), direction: "ingress", rule: None, would_deny: 3 };
        assert_eq!(told.news(&[network(true)], &rulings), [isolation]);
        assert_eq!(told.news(&[network(false)], &rulings), []);
    }
}
