//! Gateway policies: rules in order, laid out for every Service port that they are about.
//!
//! Owns the policies, and for which Service ports they have been laid out. Service ports of which the same rules speak share
//! what is laid out ([`crate::table::gatepolicy::Gate`]). A policy that comes, changes or goes has all of them looked at, a
//! Service that comes or changes its own alone.
//!
//! What a change is about looks again (P-031, P-048): the epochs of all backends of a Service whose gate differs move, those
//! that have left and nodes included.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use siphasher::sip::SipHasher13;
use tidegate_api::resource::{self, Body, FrontPort, GatewayAction, GatewayPolicy, GatewayRule, Kind, Resource};

use super::service::Services;
use crate::objects::Change;
use crate::table::gatepolicy::{Gate, GateAction, GateRule, SourceLimits, Wanted};
use crate::table::policy::gate_ruling_key;
use crate::table::service::ServiceRow;
use crate::table::{ServiceId, Tables};

/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;

/// A rule that speaks of a Service port, by its number, and its ports where the Service has all; none: every one.
type Speaking = (usize, Vec<(u16, u16)>);

/// All gateway policies, and what has come since they were settled last.
#[derive(Debug, Default)]
pub struct GatewayPolicies {
    policies: BTreeMap<String, Arc<Resource>>,
    /// Policies in the order in which they are asked.
    ordered: Vec<Arc<Resource>>,
    /// Rules of `ordered`, in order: number of the policy, number in it.
    rules: Vec<(usize, usize)>,
    /// Of which Service which rules speak by name; both by their number in `rules`.
    of_service: HashMap<String, Vec<usize>>,
    /// Rules for every Service.
    of_all: Vec<usize>,
    /// What has been laid out, by the rules that speak.
    shared: HashMap<Vec<Speaking>, Option<Arc<Gate>>>,
    due: bool,
    services_due: BTreeSet<String>,
}

impl GatewayPolicies {
    /// Takes in an object of any kind that came, changed or went. It takes effect with [`GatewayPolicies::settle`].
    pub fn take(&mut self, change: &Change) {
        match (change.key.kind, &change.after) {
            (Kind::GatewayPolicy, Some(resource)) => {
                self.policies.insert(change.key.name.clone(), Arc::clone(resource));
                self.due = true;
            }
            (Kind::GatewayPolicy, None) => {
                self.policies.remove(&change.key.name);
                self.due = true;
            }
            (Kind::Service, Some(_)) if !self.policies.is_empty() => {
                self.services_due.insert(change.key.name.clone());
            }
            _ => {}
        }
    }

    /// Lays out what is due, after Services have their rows; whether anything differs.
    pub fn settle(&mut self, services: &Services, tables: &mut Tables) -> bool {
        let due = std::mem::take(&mut self.due);
        let services_due = std::mem::take(&mut self.services_due);
        if due {
            self.order();
            return self.settle_all(tables);
        }
        let ids: Vec<ServiceId> = services_due.iter().flat_map(|name| services.ids_of(name)).collect();
        let mut changed = false;
        for id in ids {
            let Some(row) = tables.services.row(id) else { continue };
            let gate = self.gate(row);
            if tables.services.gate(id) != gate.as_deref() {
                // Its row is new: no flow has begun under it.
                changed |= Arc::make_mut(&mut tables.services).set_gate(id, gate);
            }
        }
        changed
    }

    fn settle_all(&mut self, tables: &mut Tables) -> bool {
        let current = Arc::clone(&tables.services);
        let mut moved = HashSet::new();
        for (id, row) in current.rows() {
            let gate = self.gate(row);
            if current.gate(id) != gate.as_deref() && Arc::make_mut(&mut tables.services).set_gate(id, gate) {
                moved.insert(id);
            }
        }
        let touched: Vec<_> =
            tables.backends.rows().filter(|(_, row)| moved.contains(&row.service)).map(|(id, _)| id).collect();
        if !touched.is_empty() {
            let backends = Arc::make_mut(&mut tables.backends);
            touched.into_iter().for_each(|id| backends.touch(id));
        }
        let echo = self.echo_gate();
        let echo_moved = tables.policy.echo_gate != echo;
        if echo_moved {
            Arc::make_mut(&mut tables.policy).echo_gate = echo;
        }
        echo_moved || !moved.is_empty()
    }

    /// A digest of all gateway policies, whatever the order in which they came.
    pub fn digest(&self) -> u64 {
        let digest = |(name, resource): (&String, &Arc<Resource>)| {
            let mut hasher = SipHasher13::new_with_key(b"tidegate gatepol");
            (name, policy(resource)).hash(&mut hasher);
            hasher.finish()
        };
        self.policies.iter().map(digest).fold(0, u64::wrapping_add)
    }

    /// Puts policies into their order: the lower number first, then by name.
    fn order(&mut self) {
        let mut ordered: Vec<_> = self.policies.values().cloned().collect();
        ordered.sort_by_key(|resource| policy(resource).map_or(0, |policy| policy.order));
        (self.rules, self.of_all) = (Vec::new(), Vec::new());
        self.of_service.clear();
        self.shared.clear();
        for (at, policy) in ordered.iter().enumerate().filter_map(|(at, resource)| Some((at, policy(resource)?))) {
            for (number, rule) in policy.rules.iter().enumerate() {
                let rules = self.rules.len();
                self.rules.push((at, number));
                match &rule.services {
                    None => self.of_all.push(rules),
                    Some(names) => {
                        for name in names {
                            self.of_service.entry(name.clone()).or_default().push(rules);
                        }
                    }
                }
            }
        }
        self.ordered = ordered;
    }

    fn rule(&self, number: usize) -> Option<(&Resource, &GatewayPolicy, usize, &GatewayRule)> {
        let (at, number) = *self.rules.get(number)?;
        let resource = self.ordered.get(at)?;
        let policy = policy(resource)?;
        Some((resource, policy, number, policy.rules.get(number)?))
    }

    /// What all rules say of a Service port.
    fn gate(&mut self, row: &ServiceRow) -> Option<Arc<Gate>> {
        if self.rules.is_empty() {
            return None;
        }
        let named = self.of_service.get(&*row.name).map_or(&[][..], Vec::as_slice);
        let mut numbers: Vec<usize> = self.of_all.iter().chain(named).copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        let speaking = numbers.into_iter().filter_map(|number| {
            let (.., rule) = self.rule(number)?;
            Some((number, at_port(rule, row)?))
        });
        let speaking: Vec<Speaking> = speaking.collect();
        if let Some(gate) = self.shared.get(&speaking) {
            return gate.clone();
        }
        let gate = self.lay_out(&speaking);
        self.shared.insert(speaking, gate.clone());
        gate
    }

    /// What rules about every port of every Service say of echo requests.
    fn echo_gate(&self) -> Option<Arc<Gate>> {
        let is_for_all = |number: &usize| self.rule(*number).is_some_and(|(.., rule)| rule.ports.is_none());
        let speaking: Vec<_> = self.of_all.iter().filter(|number| is_for_all(number)).map(|n| (*n, vec![])).collect();
        self.lay_out(&speaking)
    }

    fn lay_out(&self, speaking: &[Speaking]) -> Option<Arc<Gate>> {
        let wanted: Vec<Wanted<'_>> = speaking
            .iter()
            .filter_map(|(number, ports)| {
                let (resource, policy, at, rule) = self.rule(*number)?;
                let key = gate_ruling_key(&resource.name, u16::try_from(at).unwrap_or(u16::MAX));
                let rule_of_gate = GateRule { key, action: action(&rule.action), audit: policy.audit };
                let clients = rule.clients.as_ref();
                let clients =
                    clients.map(|list| list.iter().map(|range| (range.prefix, range.except.as_slice())).collect());
                Some(Wanted { rule: rule_of_gate, clients, ports: (!ports.is_empty()).then(|| ports.clone()) })
            })
            .collect();
        Gate::of(&wanted)
    }
}

/// At which ports of `row` the rule matches; none listed: every one. `None`: at none.
fn at_port(rule: &GatewayRule, row: &ServiceRow) -> Option<Vec<(u16, u16)>> {
    let Some(ports) = &rule.ports else { return Some(Vec::new()) };
    let of_protocol = |port: &&FrontPort| port.protocol.number() == row.protocol;
    let mut ports = ports.iter().filter(of_protocol).map(|port| (port.first, port.last));
    if row.port == 0 {
        // Served at every port: which one was asked for is known with the packet.
        let ports: Vec<_> = ports.collect();
        return (!ports.is_empty()).then_some(ports);
    }
    ports.any(|(first, last)| (first..=last).contains(&row.port)).then(Vec::new)
}

fn action(action: &GatewayAction) -> GateAction {
    match action {
        GatewayAction::Allow => GateAction::Allow,
        GatewayAction::Deny => GateAction::Deny,
        GatewayAction::Limit(resource::SourceLimits { rate_per_s, burst, half_open_max, bits_v4, bits_v6 }) => {
            GateAction::Limit(SourceLimits {
                interval_ns: rate_per_s.map_or(0, |rate| SECOND_NS.div_ceil(u64::from(rate.max(1)))),
                burst: (*burst).max(1),
                half_open_max: half_open_max.unwrap_or(0),
                bits_v4: *bits_v4,
                bits_v6: *bits_v6,
            })
        }
    }
}

fn policy(resource: &Resource) -> Option<&GatewayPolicy> {
    if let Body::GatewayPolicy(policy) = &resource.body { Some(policy) } else { None }
}
