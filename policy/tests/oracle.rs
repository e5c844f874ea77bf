//! The compiler against a reading of the contract's objects one after the other, while they come and go.
//!
//! Every round changes some objects, in any order, and asks about every pair of what there is. Three things must hold: the
//! answers are the naive ones, a table made of the same objects at once has the same answers and digest, and whoever has
//! another answer than before has other epochs.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;
use tidegate_api::resource::{
    Action, Body, Identity, IdentitySet, Kind, NamedPort, Policy, PolicyPeer, PolicyPort, PolicyRule, PortMatch,
    Protocol, Resource, ResourceKey, Tier,
};
use tidegate_policy::{Compiler, Decided, Direction, Query, Table, Verdict};

type Objects = BTreeMap<ResourceKey, Resource>;

const IDENTITIES: u32 = 6;
const ADDRESSES: [&str; 7] =
    ["10.0.0.1", "10.0.1.1", "10.1.0.1", "192.0.2.1", "fd00::1", "fd00:0:0:1::1", "2001:db8::1"];
const PORTS: [(u8, u16); 8] = [(6, 80), (6, 81), (6, 443), (17, 53), (17, 80), (132, 80), (1, 0), (58, 0)];

/// What the objects say, read straight from the contract's words; those in audit are not there, or in force as others.
fn naive(objects: &Objects, query: &Query, with_audit: bool) -> (bool, Option<(String, Option<usize>)>) {
    let set = |name: &str| match objects.get(&ResourceKey { kind: Kind::IdentitySet, name: name.into() }) {
        Some(Resource { body: Body::IdentitySet(set), .. }) => set.identities.clone(),
        _ => Vec::new(),
    };
    let mut policies: Vec<(&String, &Policy)> = objects
        .values()
        .filter_map(
            |resource| if let Body::Policy(policy) = &resource.body { Some((&resource.name, policy)) } else { None },
        )
        .filter(|(_, policy)| with_audit || !policy.audit)
        .filter(|(_, policy)| query.subject != 0 && set(&policy.subjects).contains(&query.subject))
        .collect();
    policies.sort_by_key(|(name, policy)| (policy.tier, *name));
    let isolates = |policy: &Policy| match query.direction {
        Direction::Ingress => policy.isolates_ingress,
        Direction::Egress => policy.isolates_egress,
    };
    let target = if query.direction == Direction::Ingress { query.subject } else { query.peer };
    let names = match objects.get(&ResourceKey { kind: Kind::Identity, name: target.to_string() }) {
        Some(Resource { body: Body::Identity(identity), .. }) => identity.ports.clone(),
        _ => Vec::new(),
    };
    let is_peer = |peer: &PolicyPeer| match peer {
        PolicyPeer::Set(name) => query.peer != 0 && set(name).contains(&query.peer),
        PolicyPeer::Network { prefix, except } => {
            prefix.contains(&query.peer_address) && !except.iter().any(|except| except.contains(&query.peer_address))
        }
    };
    let is_port = |port: &PolicyPort| {
        port.protocol.number() == query.protocol
            && match &port.port {
                PortMatch::Range(first, last) => *first <= query.port && query.port <= *last,
                PortMatch::Named(name) => {
                    names.iter().any(|it| it.name == *name && it.protocol == port.protocol && it.port == query.port)
                }
            }
    };
    let first = |wanted: fn(Tier) -> bool| {
        policies.iter().filter(|(_, policy)| wanted(policy.tier)).find_map(|(name, policy)| {
            if policy.tier == Tier::Namespace && !isolates(policy) {
                return None;
            }
            let rules = if query.direction == Direction::Ingress { &policy.ingress } else { &policy.egress };
            let found = rules.iter().position(|rule| {
                rule.peers.as_ref().is_none_or(|peers| peers.iter().any(is_peer))
                    && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(is_port))
            })?;
            Some((rules[found].action, ((*name).clone(), Some(found))))
        })
    };
    let (admin, baseline) =
        (first(|tier| matches!(tier, Tier::Admin(_))), first(|tier| matches!(tier, Tier::Baseline(_))));
    match admin {
        Some((Action::Accept, by)) => return (true, Some(by)),
        Some((Action::Deny, by)) => return (false, Some(by)),
        _ => {}
    }
    if let Some((name, _)) = policies.iter().find(|(_, policy)| policy.tier == Tier::Namespace && isolates(policy)) {
        return match first(|tier| tier == Tier::Namespace) {
            Some((_, by)) => (true, Some(by)),
            // P-033: these keep nobody from itself, and the baseline is not asked (P-103).
            None => (query.is_itself, Some(((*name).clone(), None))),
        };
    }
    match baseline {
        Some((Action::Accept, by)) => (true, Some(by)),
        Some((Action::Deny, by)) => (false, Some(by)),
        _ => (true, None),
    }
}

fn queries() -> impl Iterator<Item = Query> {
    let identities = move || 0..=IDENTITIES;
    Direction::ALL.into_iter().flat_map(move |direction| {
        identities().flat_map(move |subject| {
            identities().flat_map(move |peer| {
                ADDRESSES.iter().flat_map(move |address| {
                    let peer_address: IpAddr = address.parse().unwrap();
                    PORTS.iter().flat_map(move |(protocol, port)| {
                        let (protocol, port) = (*protocol, *port);
                        let query = move |is_itself| Query {
                            direction,
                            subject,
                            peer,
                            peer_address,
                            protocol,
                            port,
                            is_itself,
                        };
                        // Of one identity there may be several pods.
                        [Some(query(false)), (subject == peer).then_some(query(true))].into_iter().flatten()
                    })
                })
            })
        })
    })
}

fn answers(table: &Table) -> Vec<Verdict> {
    queries().map(|query| table.lookup(&query)).collect()
}

fn in_words(table: &Table, verdict: Verdict) -> (bool, Option<(String, Option<usize>)>) {
    let by = match verdict.decided_by {
        Decided::Default => None,
        Decided::Isolation(policy) | Decided::Itself(policy) => Some((table.policy(policy).unwrap().into(), None)),
        Decided::Rule(policy, rule) => Some((table.policy(policy).unwrap().into(), Some(rule.into()))),
    };
    (verdict.allow, by)
}

/// What would be denied is what all policies deny and those in force do not, and one in audit is named for it.
fn audit_agrees(objects: &Objects, table: &Table, query: &Query, now: Verdict) -> Result<(), TestCaseError> {
    let (allowed, by) = naive(objects, query, true);
    let told = table.audit(query).filter(|_| now.allow);
    prop_assert_eq!(told.is_some(), now.allow && !allowed, "{:?}", query);
    let Some(decided_by) = told else { return Ok(()) };
    let named = in_words(table, Verdict { allow: false, decided_by }).1.unwrap();
    let is_audited = |name: &str| match &objects[&ResourceKey { kind: Kind::Policy, name: name.into() }].body {
        Body::Policy(policy) => policy.audit,
        other => panic!("{other:?}"),
    };
    prop_assert!(is_audited(&named.0), "{:?}", named);
    let decides = by.unwrap();
    prop_assert!(named == decides || !is_audited(&decides.0), "{:?} instead of {:?}", named, decides);
    Ok(())
}

fn set_name() -> impl Strategy<Value = String> {
    (0..7u8).prop_map(|set| format!("s{set}"))
}

fn peer() -> impl Strategy<Value = PolicyPeer> {
    let nets =
        ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/24", "10.0.0.1/32", "::/0", "fd00::/16", "fd00::/64"];
    let network =
        (prop::sample::select(nets.to_vec()), prop::collection::vec(prop::sample::select(nets.to_vec()), 0..3));
    let network = network.prop_map(|(prefix, except)| {
        let prefix: ipnet::IpNet = prefix.parse().unwrap();
        let except =
            except.iter().map(|except| except.parse().unwrap()).filter(|except| prefix.contains(except)).collect();
        PolicyPeer::Network { prefix, except }
    });
    prop_oneof![3 => set_name().prop_map(PolicyPeer::Set), 2 => network]
}

fn port() -> impl Strategy<Value = PolicyPort> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let which = prop_oneof![
        Just(PortMatch::ALL),
        Just(PortMatch::Range(80, 80)),
        Just(PortMatch::Range(53, 443)),
        Just(PortMatch::Range(81, u16::MAX)),
        (0..3u8).prop_map(|name| PortMatch::Named(format!("n{name}"))),
    ];
    (protocol, which).prop_map(|(protocol, port)| PolicyPort { protocol, port })
}

fn rule(accept_only: bool) -> impl Strategy<Value = PolicyRule> {
    let actions = if accept_only { vec![Action::Accept] } else { vec![Action::Accept, Action::Deny, Action::Pass] };
    let peers = prop::option::of(prop::collection::vec(peer(), 0..8));
    let ports = prop::option::of(prop::collection::vec(port(), 0..4));
    (prop::sample::select(actions), peers, ports).prop_map(|(action, peers, ports)| PolicyRule {
        name: String::new(),
        action,
        peers,
        ports,
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let tier = prop_oneof![(0..3u16).prop_map(Tier::Admin), Just(Tier::Namespace), (0..3u16).prop_map(Tier::Baseline)];
    tier.prop_flat_map(|tier| {
        let namespaced = tier == Tier::Namespace;
        let rules = || prop::collection::vec(rule(namespaced), 0..4);
        let flags = (any::<(bool, bool)>(), prop::bool::weighted(0.3));
        (set_name(), flags, rules(), rules()).prop_map(move |(subjects, (isolates, audit), ingress, egress)| Policy {
            tier,
            subjects,
            audit,
            isolates_ingress: namespaced && isolates.0,
            isolates_egress: namespaced && isolates.1,
            ingress,
            egress,
        })
    })
}

fn named() -> impl Strategy<Value = NamedPort> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let port = prop::sample::select(vec![80u16, 81, 53]);
    ((0..3u8), protocol, port).prop_map(|(name, protocol, port)| NamedPort { name: format!("n{name}"), protocol, port })
}

/// An object and whether it goes instead of coming.
fn change() -> impl Strategy<Value = (ResourceKey, Option<Resource>)> {
    let set = (set_name(), prop::collection::btree_set(1..=IDENTITIES, 0..5)).prop_map(|(name, identities)| {
        (name, Body::IdentitySet(IdentitySet { identities: identities.into_iter().collect() }))
    });
    let identity = (1..=IDENTITIES, prop::collection::btree_set(named(), 0..3)).prop_map(|(number, ports)| {
        (number.to_string(), Body::Identity(Identity { ports: ports.into_iter().collect() }))
    });
    let policy = ((0..6u8), policy()).prop_map(|(name, policy)| (format!("p{name}"), Body::Policy(policy)));
    (prop_oneof![2 => set, 1 => identity, 3 => policy], prop::bool::weighted(0.25)).prop_map(|((name, body), goes)| {
        let resource = Resource { name, version: String::new(), body };
        (resource.key(), (!goes).then_some(resource))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("TIDEGATE_POLICY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24)
    ))]

    /// P-003 … P-007, P-024, P-033, P-035, P-048, P-100 … P-104, P-110.
    #[test]
    fn the_table_says_what_the_objects_say(rounds in prop::collection::vec(prop::collection::vec(change(), 1..12), 1..6)) {
        let mut compiler = Compiler::default();
        let mut objects = Objects::new();
        let mut before = answers(compiler.table());
        for round in rounds {
            let old = compiler.table().clone();
            compiler.update(round.iter().map(|(key, after)| (key, after.as_ref())));
            for (key, after) in round {
                match after {
                    Some(resource) => drop(objects.insert(key, resource)),
                    None => drop(objects.remove(&key)),
                }
            }
            let table = compiler.table();
            let now = answers(table);
            for ((query, now), then) in queries().zip(&now).zip(&before) {
                prop_assert_eq!(in_words(table, *now), naive(&objects, &query, false), "{:?}", query);
                audit_agrees(&objects, table, &query, *now)?;
                let epochs = |table: &Table| table.epochs(query.direction, query.subject, query.peer);
                prop_assert!(now.allow == then.allow || epochs(table) != epochs(&old), "{:?} goes unnoticed", query);
            }
            let mut fresh = Compiler::default();
            fresh.update(objects.iter().rev().map(|(key, resource)| (key, Some(resource))));
            prop_assert_eq!(fresh.table().digest(), table.digest());
            before = now;
        }
        let gone: Vec<ResourceKey> = objects.keys().cloned().collect();
        compiler.update(gone.iter().map(|key| (key, None)));
        prop_assert!(compiler.table().is_empty(), "nothing is left of what has gone");
        prop_assert_eq!(compiler.table().digest(), 0);
    }
}
