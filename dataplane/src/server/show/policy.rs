//! Network policies: which there are, and what their rules have done.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_api::resource::{Body, GatewayPolicy, Policy, Resource};
use tidegate_api::show::{Policies, RulingRow};
use tidegate_policy::Direction;

use crate::compile::thread::View;
use crate::state::ruling::Ruling;
use crate::table::policy::{gate_ruling_key, ruling_key};

/// One row per rule of every policy of `view`, in the order of names, and of `gates`, the gateway policies.
pub(super) fn shown(view: &View, gates: &[Arc<Resource>], rulings: &[Ruling]) -> Policies {
    let mut counted: HashMap<u64, (u64, u64)> = HashMap::new();
    for ruling in rulings {
        let of = counted.entry(ruling.key).or_default();
        *of = (of.0 + ruling.allowed, of.1 + ruling.denied);
    }
    let policies = view.objects.iter().filter_map(|resource| match &resource.body {
        Body::Policy(policy) => Some((resource.name.as_str(), policy)),
        _ => None,
    });
    let gates = gates.iter().filter_map(|resource| match &resource.body {
        Body::GatewayPolicy(policy) => Some((resource.name.as_str(), policy)),
        _ => None,
    });
    let rules = policies.flat_map(|(name, policy)| rows(name, policy, &counted));
    let rules = rules.chain(gates.flat_map(|(name, policy)| gate_rows(name, policy, &counted))).collect();
    let table = &view.tables.policy.rules;
    let size = table.size();
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    Policies {
        digest: format!("{:016x}", table.digest()),
        identities: number(table.len()),
        programs: number(size.programs),
        programs_walked: number(size.walked),
        bytes: number(size.bytes),
        rules,
    }
}

fn rows(name: &str, policy: &Policy, counted: &HashMap<u64, (u64, u64)>) -> Vec<RulingRow> {
    let sides = [
        (Direction::Ingress, "ingress", policy.ingress.len(), policy.isolates_ingress),
        (Direction::Egress, "egress", policy.egress.len(), policy.isolates_egress),
    ];
    let row = |direction, told: &str, rule| {
        let (allowed, denied) = counted.get(&ruling_key(name, direction, rule)).copied().unwrap_or_default();
        let audit = policy.audit;
        RulingRow { policy: name.to_owned(), direction: told.to_owned(), rule, allowed, denied, audit }
    };
    let of_side = |(direction, told, rules, isolates): (Direction, &'static str, usize, bool)| {
        let numbers = (0..u16::try_from(rules).unwrap_or(u16::MAX)).map(Some);
        numbers.chain(isolates.then_some(None)).map(move |rule| row(direction, told, rule))
    };
    sides.into_iter().flat_map(of_side).collect()
}

/// The rules of a gateway policy.
fn gate_rows(name: &str, policy: &GatewayPolicy, counted: &HashMap<u64, (u64, u64)>) -> Vec<RulingRow> {
    let row = |rule: u16| {
        let (allowed, denied) = counted.get(&gate_ruling_key(name, rule)).copied().unwrap_or_default();
        let policy_name = format!("GatewayPolicy/{name}");
        RulingRow {
            policy: policy_name,
            direction: "clients".into(),
            rule: Some(rule),
            allowed,
            denied,
            audit: policy.audit,
        }
    };
    (0..u16::try_from(policy.rules.len()).unwrap_or(u16::MAX)).map(row).collect()
}

#[cfg(test)]
mod tests {
    use tidegate_api::resource::{Action, GatewayAction, GatewayRule, PolicyRule, Tier};

    use super::*;

    #[test]
    fn a_row_has_what_all_workers_counted() {
        let rule = PolicyRule { name: String::new(), action: Action::Accept, peers: None, ports: None };
        let policy = Policy {
            tier: Tier::Namespace,
            subjects: "all".into(),
            audit: false,
            isolates_ingress: true,
            isolates_egress: false,
            ingress: vec![rule.clone(), rule],
            egress: vec![],
        };
        let name = "networkpolicy/shop/clients";
        let resource = Resource { name: name.into(), version: "1".into(), body: Body::Policy(policy) };
        let view = View { objects: vec![Arc::new(resource)], ..View::default() };
        let ruling =
            |rule, allowed, denied| Ruling { key: ruling_key(name, Direction::Ingress, rule), allowed, denied };
        let shown = shown(&view, &[], &[ruling(Some(1), 3, 0), ruling(Some(1), 4, 0), ruling(None, 0, 9)]);
        let told: Vec<_> = shown.rules.iter().map(|row| (row.rule, row.allowed, row.denied)).collect();
        assert_eq!(told, [(Some(0), 0, 0), (Some(1), 7, 0), (None, 0, 9)]);
        assert!(shown.rules.iter().all(|row| row.policy == name && row.direction == "ingress"));
    }

    #[test]
    fn gateway_policies_have_rows_too() {
        let rule = GatewayRule {
            name: String::new(),
            action: GatewayAction::Deny,
            clients: None,
            ports: None,
            services: None,
        };
        let body = Body::GatewayPolicy(GatewayPolicy { order: 1, audit: true, rules: vec![rule.clone(), rule] });
        let gates = [Arc::new(Resource { name: "office".into(), version: "1".into(), body })];
        let ruling = Ruling { key: gate_ruling_key("office", 1), allowed: 2, denied: 5 };
        let shown = shown(&View::default(), &gates, &[ruling, ruling]);
        let told: Vec<_> = shown.rules.iter().map(|row| (row.rule, row.allowed, row.denied, row.audit)).collect();
        assert_eq!(told, [(Some(0), 0, 0, true), (Some(1), 4, 10, true)]);
        assert!(shown.rules.iter().all(|row| row.policy == "GatewayPolicy/office" && row.direction == "clients"));
    }
}
