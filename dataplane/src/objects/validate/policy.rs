//! What can be told from one identity, one set of identities or one policy alone.

use tidegate_api::resource::{
    Action, Identity, IdentitySet, Policy, PolicyPeer, PolicyPort, PolicyRule, PortMatch, Tier,
};

use super::{Checked, Field, each, ensure};

/// Most rules of a policy in one direction. One object of a cluster cannot hold more than some tens of thousands.
const RULES_MAX: usize = 65_000;

/// Checks an identity and that its name is its number.
pub(super) fn check_identity(name: &str, identity: &Identity) -> Checked {
    let number: u32 = name.parse().unwrap_or(0);
    ensure(number != 0 && number.to_string() == name, "name", || format!("{name:?} is not a number from 1"))?;
    each("ports", &identity.ports, |field, port| {
        ensure(port.port != 0 && !port.name.is_empty(), field, || "has no name or port 0".into())
    })
}

/// Checks a set of identities.
pub(super) fn check_set(set: &IdentitySet) -> Checked {
    ensure(set.identities.first() != Some(&0), "identities", || "0 is nobody's".into())?;
    ensure(set.identities.is_sorted_by(|a, b| a < b), "identities", || "is not sorted, or names one twice".into())
}

/// Checks a policy.
pub(super) fn check(policy: &Policy) -> Checked {
    let isolates = policy.isolates_ingress || policy.isolates_egress;
    ensure(policy.tier == Tier::Namespace || !isolates, "tier", || "only a policy of a namespace isolates".into())?;
    for (name, rules) in [("ingress", &policy.ingress), ("egress", &policy.egress)] {
        ensure(rules.len() <= RULES_MAX, name, || format!("has over {RULES_MAX} rules"))?;
        each(name, rules, |field, rule| check_rule(policy.tier, field, rule))?;
    }
    Ok(())
}

fn check_rule(tier: Tier, field: Field<'_>, rule: &PolicyRule) -> Checked {
    let right = tier != Tier::Namespace || rule.action == Action::Accept;
    ensure(right, field.member("action"), || "a policy of a namespace can only accept".into())?;
    each(field.member("peers"), rule.peers.as_deref().unwrap_or_default(), check_peer)?;
    each(field.member("ports"), rule.ports.as_deref().unwrap_or_default(), check_port)
}

fn check_peer(field: Field<'_>, peer: &PolicyPeer) -> Checked {
    match peer {
        PolicyPeer::Set(_) => Ok(()),
        PolicyPeer::Network { prefix, except } => each(field.member("except"), except, |field, inner| {
            ensure(prefix.contains(inner), field, || format!("{inner} is not in {prefix}"))
        }),
    }
}

fn check_port(field: Field<'_>, port: &PolicyPort) -> Checked {
    match &port.port {
        PortMatch::Range(first, last) => ensure(first <= last, field, || format!("{first} is after {last}")),
        PortMatch::Named(name) => ensure(!name.is_empty(), field, || "the name is empty".into()),
    }
}

#[cfg(test)]
mod tests {
    use tidegate_api::resource::Protocol;

    use super::*;

    fn policy(tier: Tier, rule: PolicyRule) -> Policy {
        let subjects = "everybody".into();
        Policy {
            tier,
            subjects,
            audit: false,
            isolates_ingress: false,
            isolates_egress: false,
            ingress: vec![rule],
            egress: vec![],
        }
    }

    fn rule(prefix: &str, except: &str, port: PortMatch) -> PolicyRule {
        PolicyRule {
            name: String::new(),
            action: Action::Accept,
            peers: Some(vec![PolicyPeer::Network {
                prefix: prefix.parse().unwrap(),
                except: vec![except.parse().unwrap()],
            }]),
            ports: Some(vec![PolicyPort { protocol: Protocol::Sctp, port }]),
        }
    }

    #[test]
    fn a_policy_is_refused_by_the_field_that_is_wrong() {
        let reason = |policy: &Policy| check(policy).err().unwrap_or_default();
        for (prefix, inside, outside) in
            [("10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/16"), ("fd00::/8", "fd01::/16", "::/0")]
        {
            assert_eq!(check(&policy(Tier::Namespace, rule(prefix, inside, PortMatch::ALL))), Ok(()));
            let wrong = policy(Tier::Namespace, rule(prefix, outside, PortMatch::ALL));
            assert!(reason(&wrong).starts_with("ingress[0].peers[0].except[0]: "), "{}", reason(&wrong));
            let backwards = policy(Tier::Namespace, rule(prefix, inside, PortMatch::Range(9, 8)));
            assert_eq!(reason(&backwards), "ingress[0].ports[0]: 9 is after 8");
        }
        let deny = PolicyRule { action: Action::Deny, ..rule("::/0", "::/1", PortMatch::ALL) };
        assert!(reason(&policy(Tier::Namespace, deny.clone())).starts_with("ingress[0].action: "));
        assert_eq!(check(&policy(Tier::Admin(0), deny.clone())), Ok(()));
        let isolating = Policy { isolates_egress: true, ..policy(Tier::Baseline(7), deny) };
        assert!(reason(&isolating).starts_with("tier: "));
    }

    #[test]
    fn identities_are_numbers_and_sets_are_sorted() {
        for name in ["0", "01", "x", "4294967296", "-1", ""] {
            assert!(check_identity(name, &Identity::default()).is_err(), "{name}");
        }
        assert_eq!(check_identity("4294967295", &Identity::default()), Ok(()));
        for (identities, fine) in [(vec![], true), (vec![1, 2], true), (vec![0, 1], false), (vec![2, 2], false)] {
            assert_eq!(check_set(&IdentitySet { identities }).is_ok(), fine);
        }
    }
}
