//! What a policy comes to: the contract's words for it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::{self as contract, Body, PolicyPeer, PolicyRule, Resource};

use super::sets::set_name;
use super::{Objects, Policies};
use crate::model::policy::{Peer, Policy, Rule};
use crate::model::selector::Selector;
use crate::resolve;

impl Policies {
    pub(super) fn resolve(&self, policy: &Policy, objects: &Objects<'_>) -> Resource {
        let rules = |rules: &[Rule]| rules.iter().map(|rule| self.resolve_rule(rule, objects)).collect();
        let body = contract::Policy {
            tier: policy.tier,
            subjects: set_name(&policy.subjects),
            audit: policy.audit,
            isolates_ingress: policy.isolates[0],
            isolates_egress: policy.isolates[1],
            ingress: rules(&policy.ingress),
            egress: rules(&policy.egress),
        };
        resolve::resource(policy.key.resource(), Body::Policy(body))
    }

    pub(super) fn resolve_rule(&self, rule: &Rule, objects: &Objects<'_>) -> PolicyRule {
        let peers = rule.peers.as_ref().map(|peers| {
            let mut resolved = Vec::with_capacity(peers.len());
            for peer in peers {
                match peer {
                    Peer::Pods(selected) => resolved.push(PolicyPeer::Set(set_name(selected))),
                    Peer::Network(prefix, except) => {
                        resolved.push(PolicyPeer::Network { prefix: *prefix, except: except.clone() });
                    }
                    Peer::Nodes(selector) => resolved.extend(addresses_of(selector, objects)),
                }
            }
            resolved
        });
        PolicyRule { name: rule.name.clone(), action: rule.action, peers, ports: rule.ports.clone() }
    }
}

/// Addresses of the Nodes that a selector matches, each once.
fn addresses_of(selector: &Selector, objects: &Objects<'_>) -> Vec<PolicyPeer> {
    let nodes = (objects.nodes)().into_iter().filter(|node| selector.matches(&node.label_values));
    let addresses: BTreeSet<IpAddr> = nodes.flat_map(|node| node.all_addresses.iter().copied()).collect();
    let network = |address| PolicyPeer::Network { prefix: IpNet::from(address), except: Vec::new() };
    addresses.into_iter().map(network).collect()
}
