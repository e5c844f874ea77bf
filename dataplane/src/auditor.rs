//! The auditor: a line in the log for what gateway policies in audit would have denied.
//!
//! Owns a thread that looks now and then at what workers have counted, and how often that is said. Workers say nothing: a
//! packet costs a counter, and a flood of them one line in [`LOOKS_EVERY`] for each rule. It refuses to know packets.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tidegate_api::resource::{Body, Kind, Resource};

use crate::compile::thread::Handle;
use crate::server::query::WorkerQuery;
use crate::state::ruling::Ruling;
use crate::table::policy::gate_ruling_key;

/// How often it looks: at most one line for each rule in that time.
pub const LOOKS_EVERY: Duration = Duration::from_secs(30);
/// How often it looks whether it is to end.
const WAKES_EVERY: Duration = Duration::from_millis(100);

/// What was told of rules in audit so far: flows denied in all, by the rule's key.
#[derive(Debug, Default)]
pub struct Told(HashMap<u64, u64>);

/// A rule that would have denied something since it was told of last.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// Name of the policy.
    pub policy: String,
    /// Number of the rule.
    pub rule: u16,
    /// Flows that it would have denied since then.
    pub denied: u64,
}

impl Told {
    /// What is new, by all gateway policies and what all workers have counted.
    pub fn news(&mut self, policies: &[Arc<Resource>], rulings: &[Ruling]) -> Vec<Finding> {
        let mut denied: HashMap<u64, u64> = HashMap::new();
        for ruling in rulings {
            *denied.entry(ruling.key).or_default() += ruling.denied;
        }
        let mut told = HashMap::new();
        let mut findings = Vec::new();
        for (resource, policy) in policies.iter().filter_map(|resource| match &resource.body {
            Body::GatewayPolicy(policy) if policy.audit => Some((resource, policy)),
            _ => None,
        }) {
            for rule in 0..u16::try_from(policy.rules.len()).unwrap_or(u16::MAX) {
                let key = gate_ruling_key(&resource.name, rule);
                let now = denied.get(&key).copied().unwrap_or(0);
                // A rule comes into audit with what it had denied before.
                let before = self.0.get(&key).copied().unwrap_or(0);
                if now > before {
                    findings.push(Finding { policy: resource.name.clone(), rule, denied: now - before });
                }
                told.insert(key, now);
            }
        }
        self.0 = told;
        findings
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
    let Ok(view) = handle.view(Some(Kind::GatewayPolicy)) else { return };
    let is_audit = |resource: &Arc<Resource>| matches!(&resource.body, Body::GatewayPolicy(policy) if policy.audit);
    if !view.objects.iter().any(is_audit) {
        return;
    }
    let Ok(rulings) = workers.rulings() else { return };
    for Finding { policy, rule, denied } in told.news(&view.objects, &rulings) {
        tracing::info!(policy, rule, denied, "a gateway policy in audit would have denied flows");
    }
}

#[cfg(test)]
mod tests {
    use tidegate_api::resource::{GatewayAction, GatewayPolicy, GatewayRule};

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
        let ruling = |name, rule, denied| Ruling { key: gate_ruling_key(name, rule), allowed: 9, denied };
        let mut told = Told::default();
        let finding = |denied| vec![Finding { policy: "trial".into(), rule: 1, denied }];
        // Two workers.
        let rulings = [ruling("trial", 1, 4), ruling("trial", 1, 3), ruling("real", 0, 8)];
        assert_eq!(told.news(&policies, &rulings), finding(7));
        assert_eq!(told.news(&policies, &rulings), []);
        assert_eq!(told.news(&policies, &[ruling("trial", 1, 9)]), finding(2));
        assert_eq!(told.news(&policies[1..], &rulings), []);
    }
}
