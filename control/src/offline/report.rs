//! Which policies a gateway can enforce whole.
//!
//! A gateway sees what enters and leaves the cluster, and pods that reach Services through it. Packets between two
//! pods, or a node and a pod, go from node to node without it, and are the business of the CNI on workers (P-045,
//! P-112). Every policy is in force for what crosses a gateway; what is told here is where something of it does not.
//! Whoever is inside is known by pod prefixes and addresses of Nodes, and addresses of Pods.

use std::fmt::Write;

use ipnet::IpNet;

use super::Offline;
use crate::model::policy::{Peer, Policy, Rule};
use crate::resolve::egress;

/// How much of a policy can be enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// What it says is about pods and nodes alone: it is in force for those that cross a gateway, as pods do that reach
    /// a Service through it.
    Inside,
    /// What it says of the outside, and of pods and nodes as far as they cross a gateway.
    InPart,
    /// All of it is about the outside.
    Whole,
}

/// Which of the two something is about.
#[derive(Clone, Copy, Default)]
struct About {
    outside: bool,
    inside: bool,
}

impl Offline {
    /// Every policy that cannot be enforced whole at a gateway, with the parts that are about traffic inside the
    /// cluster.
    pub fn report(&self) -> String {
        let (mut text, mut counts) = (String::new(), [0usize; 3]);
        let inside = self.inside();
        for policy in self.model.policies().values() {
            let (reach, parts) = reach(policy, &inside);
            counts[reach as usize] += 1;
            // Writing into a String cannot fail.
            let _ = match reach {
                Reach::Whole => Ok(()),
                Reach::Inside => writeln!(
                    text,
                    "{}: inside the cluster alone: in force for what crosses a gateway, such as a pod that reaches a Service \
                     through it; all else is enforced by the CNI on workers",
                    policy.key
                ),
                Reach::InPart => writeln!(
                    text,
                    "{}: in part: {} also between pods and nodes that reach each other without a gateway, which is enforced \
                     by the CNI on workers",
                    policy.key,
                    parts.join(", "),
                ),
            };
        }
        let _ = writeln!(
            text,
            "policies: {} ({} whole, {} in part, {} inside the cluster alone)",
            counts.iter().sum::<usize>(),
            counts[Reach::Whole as usize],
            counts[Reach::InPart as usize],
            counts[Reach::Inside as usize],
        );
        text
    }

    /// Prefixes and addresses that are inside the cluster.
    fn inside(&self) -> Vec<IpNet> {
        let mut inside = egress::inside(self.model.nodes());
        let nodes = self.model.nodes().flat_map(|node| &node.all_addresses);
        let pods = self.model.pods().iter().flat_map(|pod| &pod.addresses);
        inside.extend(nodes.chain(pods).map(|address| IpNet::from(*address)));
        inside
    }
}

/// How much of a policy a gateway can enforce, and its parts that are about what is `inside`, at least among others:
/// its isolation, and rules by number.
pub fn reach(policy: &Policy, inside: &[IpNet]) -> (Reach, Vec<String>) {
    let mut all = About::default();
    let mut parts = Vec::new();
    for (direction, isolates, rules) in
        [("ingress", policy.isolates[0], &policy.ingress), ("egress", policy.isolates[1], &policy.egress)]
    {
        let isolation = isolates.then(|| (format!("isolation for {direction}"), About { outside: true, inside: true }));
        let numbered = rules.iter().enumerate();
        let rules = numbered.map(|(number, rule)| (format!("{direction}[{number}]"), about(rule, inside)));
        for (part, about) in isolation.into_iter().chain(rules) {
            all = About { outside: all.outside | about.outside, inside: all.inside | about.inside };
            parts.extend(about.inside.then_some(part));
        }
    }
    let reach = match all {
        About { inside: false, .. } => Reach::Whole,
        About { outside: false, .. } => Reach::Inside,
        _ => Reach::InPart,
    };
    (reach, parts)
}

fn about(rule: &Rule, inside: &[IpNet]) -> About {
    let Some(peers) = &rule.peers else { return About { outside: true, inside: true } };
    let is_inside = |peer: &Peer| match peer {
        Peer::Pods(_) | Peer::Nodes(_) => true,
        Peer::Network(prefix, except) => {
            let common = inside.iter().filter_map(|inside| match (prefix.contains(inside), inside.contains(prefix)) {
                (true, _) => Some(inside),
                (false, true) => Some(prefix),
                (false, false) => None,
            });
            common.into_iter().any(|common| !except.iter().any(|except| except.contains(common)))
        }
    };
    let is_outside = |peer: &Peer| match peer {
        Peer::Pods(_) | Peer::Nodes(_) => false,
        Peer::Network(prefix, _) => !inside.iter().any(|inside| inside.contains(prefix)),
    };
    About { outside: peers.iter().any(is_outside), inside: peers.iter().any(is_inside) }
}
