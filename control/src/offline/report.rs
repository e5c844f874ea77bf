//! Which rules a gateway can enforce.
//!
//! A gateway sees what enters and leaves the cluster, and pods that reach Services through it. Packets between two pods go
//! from node to node without it, and are the business of the CNI on workers (P-045, P-112). A rule that speaks of pods alone
//! is therefore enforced for what passes the gateway, which between pods is little.

use std::fmt::Write;

use super::Offline;
use crate::model::policy::{Peer, Policy, Rule};

/// How much of a policy can be enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Nothing: every rule speaks of pods alone, and nothing is isolated.
    PodsAlone,
    /// What it says of the outside; some rules speak of pods alone.
    InPart,
    /// All of it is about what passes a gateway.
    Whole,
}

impl Offline {
    /// Every policy that cannot be enforced whole at a gateway, with the rules that speak of pods alone.
    pub fn report(&self) -> String {
        let mut text = String::new();
        let mut counts = [0usize; 3];
        for policy in self.model.policies().values() {
            let (reach, rules) = reach(policy);
            counts[reach as usize] += 1;
            // Writing into a String cannot fail.
            let _ = match reach {
                Reach::Whole => Ok(()),
                Reach::PodsAlone => writeln!(text, "{}: pods alone: it has no effect at a gateway", policy.key),
                Reach::InPart => writeln!(
                    text,
                    "{}: in part: {} between pods {} enforced by the CNI on workers",
                    policy.key,
                    rules.join(", "),
                    if rules.len() == 1 { "is" } else { "are" }
                ),
            };
        }
        let _ = writeln!(
            text,
            "policies: {} ({} whole, {} in part, {} between pods alone)",
            counts.iter().sum::<usize>(),
            counts[Reach::Whole as usize],
            counts[Reach::InPart as usize],
            counts[Reach::PodsAlone as usize],
        );
        text
    }
}

/// How much of a policy a gateway can enforce, and its rules that speak of pods alone.
pub fn reach(policy: &Policy) -> (Reach, Vec<String>) {
    let of_pods = |rule: &Rule| {
        let peers = rule.peers.as_deref().unwrap_or_default();
        !peers.is_empty() && peers.iter().all(|peer| matches!(peer, Peer::Pods(_)))
    };
    let listed = [("ingress", &policy.ingress), ("egress", &policy.egress)];
    let numbered = listed.into_iter().flat_map(|(name, rules)| {
        let numbered = rules.iter().enumerate();
        numbered.filter(|(_, rule)| of_pods(rule)).map(move |(number, _)| format!("{name}[{number}]"))
    });
    let pods_alone: Vec<String> = numbered.collect();
    let all = policy.ingress.len() + policy.egress.len();
    let isolates = policy.isolates != [false; 2];
    let reach = match pods_alone.len() {
        0 => Reach::Whole,
        some if some == all && !isolates => Reach::PodsAlone,
        _ => Reach::InPart,
    };
    (reach, pods_alone)
}
