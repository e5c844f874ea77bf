//! The same rules read one after the other.
//!
//! Owns the meaning of a list of policies in the plainest form: tier after tier, policy after policy, rule after rule, the
//! first that matches. It takes time in proportion to the rules and no memory beyond them. A program whose layout would
//! outgrow [`WORK_MAX`](crate::program::WORK_MAX) is read this way, and every test of the layout compares with it.

use std::net::IpAddr;
use std::sync::Arc;

use tidegate_api::resource::Action;

use crate::link::{Linked, Peer, Port, Rule, Target, place};
use crate::query::{Decided, Direction, Verdict};

/// Which set holds which identity.
pub(crate) trait Membership {
    /// Whether the set of that number holds the identity.
    fn holds(&self, set: u32, identity: u32) -> bool;
}

/// What the policies, which are in the order of evaluation, say.
pub(crate) fn decide(
    policies: &[Arc<Linked>],
    direction: Direction,
    sets: &impl Membership,
    peer: (u32, IpAddr),
    target: Target<'_>,
) -> Verdict {
    // P-003: the first by name of those that isolate.
    let isolating = policies.iter().find(|policy| policy.isolates(direction));
    let mut skipped = [false; 3];
    for policy in policies {
        let tier = place(policy.tier);
        // P-102: Pass skips the rest of its tier. P-103: the baseline is for those that are not isolated.
        if skipped[tier] {
            continue;
        }
        if tier == 2
            && let Some(isolating) = isolating
        {
            return Verdict { allow: false, decided_by: Decided::Isolation(isolating.id) };
        }
        for (number, rule) in policy.rules(direction).iter().enumerate() {
            if !applies(rule, sets, peer, target) {
                continue;
            }
            let decided_by = Decided::Rule(policy.id, u16::try_from(number).unwrap_or(u16::MAX));
            match rule.action {
                Action::Accept => return Verdict { allow: true, decided_by },
                Action::Deny => return Verdict { allow: false, decided_by },
                Action::Pass => skipped[tier] = true,
            }
            break;
        }
    }
    match isolating {
        Some(policy) => Verdict { allow: false, decided_by: Decided::Isolation(policy.id) },
        None => Verdict::DEFAULT,
    }
}

/// The rule of the admin tier that passes on, if the first one that matches does.
pub(crate) fn passes(
    policies: &[Arc<Linked>],
    direction: Direction,
    sets: &impl Membership,
    peer: (u32, IpAddr),
    target: Target<'_>,
) -> Option<Decided> {
    let of_tier = policies.iter().filter(|policy| place(policy.tier) == 0);
    let mut rules = of_tier.flat_map(|policy| (0..).zip(policy.rules(direction)).map(|rule| (policy.id, rule)));
    let (policy, (number, rule)) = rules.find(|(_, (_, rule))| applies(rule, sets, peer, target))?;
    (rule.action == Action::Pass).then_some(Decided::Rule(policy, number))
}

fn applies(rule: &Rule, sets: &impl Membership, (identity, address): (u32, IpAddr), target: Target<'_>) -> bool {
    let is_peer = |peer: &Peer| match peer {
        Peer::Set(set) => identity != 0 && sets.holds(*set, identity),
        Peer::Network { prefix, except } => {
            prefix.contains(&address) && !except.iter().any(|except| except.contains(&address))
        }
    };
    let is_port = |port: &Port| match *port {
        Port::Range(protocol, first, last) => protocol == target.protocol && (first..=last).contains(&target.port),
        Port::Named(protocol, name) => {
            let is_it = |it: &crate::link::Named| it.name == name && it.protocol == protocol;
            protocol == target.protocol && target.named.iter().any(|it| is_it(it) && it.port == target.port)
        }
    };
    rule.peers.as_ref().is_none_or(|peers| peers.iter().any(is_peer))
        && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(is_port))
}
