//! Suspects: nodes that have fallen silent, and whom to ask whether they live.
//!
//! Owns whose pulse is to be felt and at which ports, which nodes are suspected, and what control is told about that. It
//! refuses to know how a pulse is felt (`probe::pulse`) and what a suspicion does to rows: endpoints on a suspected node
//! keep their places and their flows, and have no share of new flows while others in their set have one (S-114, S-100).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_api::message::{IpFamily, NodeSuspicion};
use tidegate_api::resource::{Body, Gateway, Resource};

use super::Nanos;
use super::tunnel::Tunnels;
use crate::probe::pulse::{Felt, PORTS_MAX, Pulse, SUSPECTED_AFTER, Wrist};
use crate::table::Family;

/// What is known of nodes.
#[derive(Debug, Default)]
pub struct Suspects {
    /// Since when.
    silent: BTreeMap<Pulse, Nanos>,
    /// Ports of Services' health checks, with how many Services have each. Every node has them open.
    ports: BTreeMap<u16, u32>,
    ports_moved: bool,
    /// What the prober was told last.
    felt: Vec<Wrist>,
    news: bool,
}

impl Suspects {
    /// Whether `node` is suspected in this family.
    pub fn contains(&self, node: &str, family: Family) -> bool {
        !self.silent.is_empty() && self.silent.contains_key(&Pulse { node: node.into(), family })
    }

    /// Whether no node is suspected.
    pub fn are_none(&self) -> bool {
        self.silent.is_empty()
    }

    /// Takes in what the prober felt until `now`; returns the nodes about which that changes anything.
    pub fn learn(&mut self, felt: Felt, now: Nanos) -> BTreeSet<Arc<str>> {
        let mut touched = BTreeSet::new();
        for (pulse, suspected) in felt {
            // It may have been on its way when the node went.
            let known = self.felt.iter().any(|wrist| wrist.pulse == pulse);
            let moved = match suspected {
                true if !known || self.silent.contains_key(&pulse) => false,
                true => self.silent.insert(pulse.clone(), now).is_none(),
                false => self.silent.remove(&pulse).is_some(),
            };
            if moved {
                let (node, family) = (&pulse.node, pulse.family);
                match suspected {
                    true => tracing::warn!(%node, ?family, "a node does not answer; new flows go to others"),
                    false => tracing::info!(%node, ?family, "a node answers again"),
                }
                touched.insert(pulse.node);
            }
        }
        self.news |= !touched.is_empty();
        touched
    }

    /// A Service changed from `before` to `after`.
    pub fn service(&mut self, before: Option<&Resource>, after: Option<&Resource>) {
        let port = |resource: Option<&Resource>| match resource.map(|resource| &resource.body) {
            Some(Body::Service(service)) => service.health_check_port,
            _ => None,
        };
        let (before, after) = (port(before), port(after));
        if before == after {
            return;
        }
        if let Some(count) = before.and_then(|port| self.ports.get_mut(&port)) {
            *count -= 1;
        }
        if let Some(port) = after {
            *self.ports.entry(port).or_default() += 1;
        }
        self.ports.retain(|_, count| *count > 0);
        self.ports_moved = true;
    }

    /// Whether ports moved since the last call.
    pub fn take_ports_moved(&mut self) -> bool {
        std::mem::take(&mut self.ports_moved)
    }

    /// Whom to ask, if that differs from what was returned last, and nodes that are suspected no more because nobody asks
    /// them.
    pub fn wrists<'a>(
        &mut self,
        gateway: Option<&Gateway>,
        peers: impl Iterator<Item = &'a str>,
        tunnels: &Tunnels,
    ) -> Option<(Vec<Wrist>, BTreeSet<Arc<str>>)> {
        let health = gateway.and_then(|gateway| gateway.health_port);
        // Asked of none, if it is not to be asked at all.
        let checks = self.ports.keys().copied().filter(|port| Some(*port) != health);
        let ports: Vec<u16> = health.into_iter().flat_map(|port| [port].into_iter().chain(checks.clone())).collect();
        let ports = &ports[..ports.len().min(PORTS_MAX)];
        let mut wrists = Vec::new();
        for node in peers.filter(|_| !ports.is_empty()) {
            for family in [Family::V4, Family::V6] {
                let Some(way) = tunnels.way(node, family) else { continue };
                wrists.push(Wrist {
                    pulse: Pulse { node: node.into(), family },
                    ours: way.ours.underlay,
                    theirs: way.peer.underlay,
                    ports: ports.to_vec(),
                });
            }
        }
        if wrists == self.felt {
            return None;
        }
        let asked: BTreeSet<&Pulse> = wrists.iter().map(|wrist| &wrist.pulse).collect();
        let forgotten: Vec<Pulse> = self.silent.keys().filter(|pulse| !asked.contains(pulse)).cloned().collect();
        self.news |= !forgotten.is_empty();
        for pulse in &forgotten {
            self.silent.remove(pulse);
        }
        self.felt.clone_from(&wrists);
        Some((wrists, forgotten.into_iter().map(|pulse| pulse.node).collect()))
    }

    /// All suspicions, in the order of names.
    pub fn all(&self) -> Vec<NodeSuspicion> {
        let told = |pulse: &Pulse| {
            let family = match pulse.family {
                Family::V4 => IpFamily::Ipv4,
                Family::V6 => IpFamily::Ipv6,
            };
            let wrist = self.felt.iter().find(|wrist| wrist.pulse == *pulse);
            let reason = wrist.map_or_else(String::new, |wrist| {
                let ports: Vec<String> = wrist.ports.iter().map(u16::to_string).collect();
                format!("no answer from {} on TCP port {}", wrist.theirs, ports.join(" or "))
            });
            NodeSuspicion { node: pulse.node.to_string(), family, reason }
        };
        self.silent.keys().map(told).collect()
    }

    /// For how long at least each of [`Suspects::all`] has been silent.
    pub fn silences(&self, now: Nanos) -> Vec<Nanos> {
        self.silent.values().map(|since| SUSPECTED_AFTER + now.saturating_sub(*since)).collect()
    }

    /// All suspicions, once after they changed.
    pub fn take_news(&mut self) -> Option<Vec<NodeSuspicion>> {
        std::mem::take(&mut self.news).then(|| self.all())
    }
}

#[cfg(test)]
mod tests;
