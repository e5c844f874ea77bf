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
    let mut counted: HashMap<u64, Ruling> = HashMap::new();
    for ruling in rulings {
        let of = counted.entry(ruling.key).or_default();
        of.allowed += ruling.allowed;
        of.denied += ruling.denied;
        of.would_deny += ruling.would_deny;
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

fn rows(name: &str, policy: &Policy, counted: &HashMap<u64, Ruling>) -> Vec<RulingRow> {
    let sides = [
        (Direction::Ingress, "ingress", policy.ingress.len(), policy.isolates_ingress),
        (Direction::Egress, "egress", policy.egress.len(), policy.isolates_egress),
    ];
    let of_rule = |direction, told, rule| {
        row(name.to_owned(), told, rule, counted.get(&ruling_key(name, direction, rule)), policy.audit)
    };
    let of_side = |(direction, told, rules, isolates): (Direction, &'static str, usize, bool)| {
        let numbers = (0..u16::try_from(rules).unwrap_or(u16::MAX)).map(Some);
        numbers.chain(isolates.then_some(None)).map(move |rule| of_rule(direction, told, rule))
    };
    sides.into_iter().flat_map(of_side).collect()
}

/// The rules of a gateway policy.
fn gate_rows(name: &str, policy: &GatewayPolicy, counted: &HashMap<u64, Ruling>) -> Vec<RulingRow> {
    let of_rule = |rule: u16| {
        let counts = counted.get(&gate_ruling_key(name, rule));
        row(format!("GatewayPolicy/{name}"), "clients", Some(rule), counts, policy.audit)
    };
    (0..u16::try_from(policy.rules.len()).unwrap_or(u16::MAX)).map(of_rule).collect()
}

fn row(policy: String, direction: &str, rule: Option<u16>, counts: Option<&Ruling>, audit: bool) -> RulingRow {
    let Ruling { allowed, denied, would_deny, .. } = counts.copied().unwrap_or_default();
    RulingRow { policy, direction: direction.to_owned(), rule, allowed, denied, would_deny, audit }
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
        let ruling = |rule, allowed, denied| Ruling {
            key: ruling_key(name, Direction::Ingress, rule),
            allowed,
            denied,
            would_deny: 1,
        };
        let shown = shown(&view, &[], &[ruling(Some(1), 3, 0), ruling(Some(1), 4, 0), ruling(None, 0, 9)]);
        let told: Vec<_> = shown.rules.iter().map(|row| (row.rule, row.allowed, row.denied, row.would_deny)).collect();
        assert_eq!(told, [(Some(0), 0, 0, 0), (Some(1), 7, 0, 2), (None, 0, 9, 1)]);
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
        let ruling = Ruling { key: gate_ruling_key("office", 1), allowed: 2, denied: 5, would_deny: 7 };
        let shown = shown(&View::default(), &gates, &[ruling, ruling]);
        let told = shown.rules.iter().map(|row| (row.rule, [row.allowed, row.denied, row.would_deny], row.audit));
        assert_eq!(told.collect::<Vec<_>>(), [(Some(0), [0; 3], true), (Some(1), [4, 10, 14], true)]);
        assert!(shown.rules.iter().all(|row| row.policy == "GatewayPolicy/office" && row.direction == "clients"));
    }
}
