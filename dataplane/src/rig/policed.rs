//! Pods, Services, network and egress policies as the contract tells them, taken in together as the compiler does.
//!
//! Owns the objects of one test and gives their addresses the roles that the compiler thread would. Refuses to know what
//! the rules say.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tidegate_api::resource::{
    Action, Body, ClientRange, GatewayAction, GatewayPolicy, GatewayRule, IdentitySet, Kind, Pod, Policy, PolicyPeer,
    PolicyPort, PolicyRule, PortMatch, Protocol, Resource, ResourceKey, Tier,
};

use super::mapped;
use crate::compile::egress::Egresses;
use crate::compile::gatepolicy::GatewayPolicies;
use crate::compile::pod::Pods;
use crate::compile::policy::Policies;
use crate::compile::service::Services;
use crate::objects::Change;
use crate::table::Tables;
use crate::table::local::LocalKind;

/// What a test tells of a cluster with policies.
#[derive(Debug, Default)]
pub struct Policed {
    services: Services,
    pods: Pods,
    egresses: Egresses,
    policies: Policies,
    gates: GatewayPolicies,
    objects: BTreeMap<ResourceKey, Arc<Resource>>,
    version: u64,
}

impl Policed {
    /// These objects come or change (`Some`) or go (`None`), all in one update.
    pub fn change(&mut self, tables: &mut Tables, changes: Vec<(&str, Kind, Option<Body>)>) {
        self.version += 1;
        for (name, kind, body) in changes {
            let key = ResourceKey { kind, name: name.to_owned() };
            let version = self.version.to_string();
            let after = body.map(|body| Arc::new(Resource { name: name.to_owned(), version, body }));
            let before = match &after {
                Some(after) => self.objects.insert(key.clone(), Arc::clone(after)),
                None => self.objects.remove(&key),
            };
            let change = Change { key, before, after };
            self.policies.take(&change);
            self.gates.take(&change);
            self.write(tables, &change);
        }
        self.settle(tables);
    }

    /// One object of its own kind comes or changes.
    pub fn put(&mut self, tables: &mut Tables, name: &str, body: Body) {
        self.change(tables, vec![(name, body.kind(), Some(body))]);
    }

    /// One object goes.
    pub fn remove(&mut self, tables: &mut Tables, kind: Kind, name: &str) {
        self.change(tables, vec![(name, kind, None)]);
    }

    fn write(&mut self, tables: &mut Tables, Change { key, after, .. }: &Change) {
        let (name, body) = (key.name.as_str(), after.as_ref().map(|resource| &resource.body));
        match (key.kind, body) {
            (Kind::Service, Some(Body::Service(service))) => {
                self.services.write(name, Some(service), tables, 0);
                let locals = Arc::make_mut(&mut tables.locals);
                service.addresses.iter().for_each(|address| locals.add(&mapped(*address), LocalKind::VIP));
            }
            (Kind::Service, _) => drop(self.services.write(name, None, tables, 0)),
            (Kind::Pod, body) => {
                let pod = if let Some(Body::Pod(pod)) = body { Some(pod) } else { None };
                self.pods.write(name, pod, self.services.backends_mut(), &mut self.egresses, tables, 0);
            }
            (Kind::Egress, body) => {
                self.egresses.policy(name, if let Some(Body::Egress(egress)) = body { Some(egress) } else { None });
            }
            (Kind::StaticNat, body) => {
                self.egresses.fixed(name, if let Some(Body::StaticNat(nat)) = body { Some(nat) } else { None });
            }
            _ => {}
        }
    }

    fn settle(&mut self, tables: &mut Tables) {
        let before: Vec<_> = tables.egress.externals().map(|(_, row)| row.address).collect();
        let touched = self.egresses.settle(|_| true, &mut tables.egress);
        touched.policies.iter().for_each(|policy| self.pods.touch(policy, tables));
        touched.pods.iter().for_each(|pod| Pods::touch_address(*pod, tables));
        let locals = Arc::make_mut(&mut tables.locals);
        before.iter().for_each(|address| locals.take(address, LocalKind::EXTERNAL));
        tables.egress.externals().for_each(|(_, row)| locals.add(&row.address, LocalKind::EXTERNAL));
        self.policies.settle(self.services.backends(), tables);
        self.gates.settle(&self.services, tables);
    }
}

/// A pod with this identity, that reaches the outside by `egress`.
pub fn pod(addresses: &[IpAddr], identity: u32, egress: &[&str]) -> Body {
    let egress = egress.iter().map(|name| (*name).to_owned()).collect();
    Body::Pod(Pod { addresses: addresses.to_vec(), node: String::new(), identity, egress })
}

/// A set of identities.
pub fn set(identities: &[u32]) -> Body {
    Body::IdentitySet(IdentitySet { identities: identities.to_vec() })
}

/// A policy of a namespace about the pods of set `subjects`, which isolates where rules are given.
pub fn policy(subjects: &str, ingress: Option<Vec<PolicyRule>>, egress: Option<Vec<PolicyRule>>) -> Body {
    Body::Policy(Policy {
        tier: Tier::Namespace,
        subjects: subjects.into(),
        audit: false,
        isolates_ingress: ingress.is_some(),
        isolates_egress: egress.is_some(),
        ingress: ingress.unwrap_or_default(),
        egress: egress.unwrap_or_default(),
    })
}

/// The same policy, which only counts.
pub fn in_audit(policy: Body) -> Body {
    match policy {
        Body::Policy(policy) => Body::Policy(Policy { audit: true, ..policy }),
        other => other,
    }
}

/// A policy of the admin tier with these rules.
pub fn admin(subjects: &str, priority: u16, ingress: Vec<PolicyRule>, egress: Vec<PolicyRule>) -> Body {
    outer(Tier::Admin(priority), subjects, ingress, egress)
}

/// A policy of the baseline tier with these rules.
pub fn baseline(subjects: &str, priority: u16, ingress: Vec<PolicyRule>, egress: Vec<PolicyRule>) -> Body {
    outer(Tier::Baseline(priority), subjects, ingress, egress)
}

fn outer(tier: Tier, subjects: &str, ingress: Vec<PolicyRule>, egress: Vec<PolicyRule>) -> Body {
    let (isolates_ingress, isolates_egress) = (false, false);
    Body::Policy(Policy {
        tier,
        subjects: subjects.into(),
        audit: false,
        isolates_ingress,
        isolates_egress,
        ingress,
        egress,
    })
}

/// A gateway policy of this order with these rules.
pub fn gateway(order: u16, rules: Vec<GatewayRule>) -> Body {
    Body::GatewayPolicy(GatewayPolicy { order, audit: false, rules })
}

/// The same, which only counts.
pub fn audited(order: u16, rules: Vec<GatewayRule>) -> Body {
    Body::GatewayPolicy(GatewayPolicy { order, audit: true, rules })
}

/// A rule of a gateway policy for these clients at every port of every Service.
pub fn clients(action: GatewayAction, addresses: &[IpAddr]) -> GatewayRule {
    let range = |address: &IpAddr| ClientRange { prefix: (*address).into(), except: vec![] };
    let clients = Some(addresses.iter().map(range).collect());
    GatewayRule { name: String::new(), action, clients, ports: None, services: None }
}

/// The same for everybody.
pub fn anyone(action: GatewayAction) -> GatewayRule {
    GatewayRule { name: String::new(), action, clients: None, ports: None, services: None }
}

/// A rule that does this with everybody at every port.
pub fn everybody(action: Action) -> PolicyRule {
    PolicyRule { name: String::new(), action, peers: None, ports: None }
}

/// The rule, for these peers alone.
pub fn of(peers: Vec<PolicyPeer>, rule: PolicyRule) -> PolicyRule {
    PolicyRule { peers: Some(peers), ..rule }
}

/// The rule, for these ports alone, both included.
pub fn at(protocol: Protocol, first: u16, last: u16, rule: PolicyRule) -> PolicyRule {
    PolicyRule { ports: Some(vec![PolicyPort { protocol, port: PortMatch::Range(first, last) }]), ..rule }
}

/// Pods of a set.
pub fn in_set(name: &str) -> PolicyPeer {
    PolicyPeer::Set(name.into())
}

/// Addresses of prefixes that begin with that of `address`, less `except`.
pub fn near(address: IpAddr, v4: u8, v6: u8, except: &[IpAddr]) -> PolicyPeer {
    let except = except.iter().map(|address| (*address).into()).collect();
    PolicyPeer::Network { prefix: super::net(address, if address.is_ipv4() { v4 } else { v6 }), except }
}
