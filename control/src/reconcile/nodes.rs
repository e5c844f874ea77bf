//! Nodes: this gateway, its peers, and what a Node means to Services.
//!
//! Owns when these are resolved again. The own Node is this gateway; every other one may be a peer of the overlay, a place
//! that Services are served at or delivered to, or another gateway of the set.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::{Backend, Body, Kind, ResourceKey};

use super::{Reconciler, object_key};
use crate::model::Dirty;
use crate::problem::{Problem, Severity};
use crate::resolve::reach::Way;
use crate::resolve::site::{Site, health_addresses};
use crate::resolve::{self, gateway, peer};

/// Changed Nodes for which the Services concerned are looked for; with more, all are resolved again.
const NODES_SOUGHT_MAX: usize = 64;

impl Reconciler {
    pub(super) fn gateway_key(&self) -> ResourceKey {
        ResourceKey { kind: Kind::Gateway, name: self.file.node.clone() }
    }

    /// Sources of `fullnat` that the dataplane is told.
    pub(super) fn fullnat_sources(&self) -> &[IpAddr] {
        match self.desired.resources.get(&self.gateway_key()).map(|resource| &resource.body) {
            Some(Body::Gateway(gateway)) => &gateway.fullnat_sources,
            _ => &[],
        }
    }

    pub(super) fn resolve_nodes(&mut self, nodes: &BTreeSet<String>) {
        // Others of the set are part of this gateway.
        let own = self.file.node.clone();
        let anew = (!nodes.is_empty() && !nodes.contains(&own)).then_some(&own);
        for name in nodes.iter().chain(anew) {
            let problems = if *name == self.file.node { self.resolve_gateway() } else { self.resolve_peer(name) };
            match problems.is_empty() {
                true => drop(self.node_problems.remove(name)),
                false => drop(self.node_problems.insert(name.clone(), problems)),
            }
        }
    }

    fn resolve_gateway(&mut self) -> Vec<Problem> {
        let key = self.gateway_key();
        let Some(node) = self.model.node(&self.file.node) else {
            self.want(key, None);
            let message = "the Node of this gateway is not there, so it cannot take part in the overlay; waiting for it \
                           (its name is `node` in the node file)";
            return vec![
                Problem::new(Severity::Error, "OwnNodeMissing", message).about(format!("Node {}", self.file.node)),
            ];
        };
        let about = format!("Node {}", node.name);
        let others = gateway::others(self.model.nodes(), &node.name, &self.file.control);
        match gateway::resolve(node, &self.file.control, others) {
            Ok(gateway) => {
                let lacking = gateway::families_without_source(&gateway);
                let resource = resolve::resource(self.file.node.clone(), Body::Gateway(gateway));
                self.want(key, Some(resource));
                let problem = |family: &str| {
                    let message = format!(
                        "no {family} address in control.fullnatSources: Services cannot be delivered over {family}"
                    );
                    Problem::new(Severity::Warning, "NoFullnatSource", message).about(&about)
                };
                lacking.into_iter().map(problem).collect()
            }
            Err(reason) => {
                let kept = match self.desired.resources.contains_key(&key) {
                    true => "; the last good version stays in use",
                    false => "; waiting for a change",
                };
                vec![Problem::new(Severity::Error, "OwnNodeUnusable", format!("{reason}{kept}")).about(about)]
            }
        }
    }

    fn resolve_peer(&mut self, name: &str) -> Vec<Problem> {
        let key = ResourceKey { kind: Kind::Peer, name: name.into() };
        match self.model.node(name).map(|node| peer::resolve(node, self.file.control.vxlan_port)) {
            None => drop(self.want(key, None)),
            Some(Ok(peer)) => drop(self.want(key, Some(resolve::resource(name.into(), Body::Peer(peer))))),
            Some(Err(reason)) => {
                self.want(key, None);
                let message = format!("is not reached through the overlay: {reason}");
                return vec![Problem::new(Severity::Notice, "NotAPeer", message).about(format!("Node {name}"))];
            }
        }
        Vec::new()
    }

    /// A Node may matter to all Services: where they are served at, or whom they may be sent to.
    pub(super) fn resolve_site(&mut self, dirty: &mut Dirty) {
        if dirty.nodes.is_empty() {
            return;
        }
        if let Some(health) = self.health.as_mut().filter(|_| self.complete) {
            health.listen_at(health_addresses(&self.file, &self.model));
        }
        let site = Site::new(&self.file, &self.model);
        if site != self.site {
            self.site = site;
            dirty.services.extend(self.model.services().cloned());
        }
    }

    /// A Node that became a peer, or is none any more, matters to the Services with an endpoint on it. That is rare, so
    /// they are looked for and not kept in an index.
    pub(super) fn resolve_reach(&mut self, dirty: &mut Dirty) {
        let first = self.reach.is_empty();
        let mut changed: BTreeMap<&str, Vec<IpNet>> = BTreeMap::new();
        for name in &dirty.nodes {
            let way = self.model.node(name).map(|node| Way::new(node, *name == self.file.node));
            if let Some(cidrs) = self.reach.replace(name, way) {
                changed.insert(name, cidrs);
            }
        }
        let mut touched = Vec::new();
        if changed.len() > NODES_SOUGHT_MAX || (first && !changed.is_empty()) {
            touched.extend(self.model.services().cloned());
        } else if !changed.is_empty() {
            let on_changed = |backend: &Backend| {
                let mut cidrs = changed.values().flatten();
                changed.contains_key(backend.node.as_str())
                    || cidrs.any(|cidr| cidr.contains(&backend.address))
                    || self.reach.is_lost(backend)
            };
            for (key, resource) in &self.desired.resources {
                let Body::Service(service) = &resource.body else { continue };
                if service.ports.iter().flat_map(|port| &port.backends).any(on_changed) {
                    touched.push(object_key(key).name());
                }
            }
        }
        dirty.services.extend(touched);
    }
}
