//! Clusters full of policies: what is compiled, and what is asked of it.
//!
//! Policies speak of their namespace's pods, of other namespaces', and of prefixes with exceptions of both families.
//! Questions go round over subjects, peers and ports, so that they are as cold as those of new flows.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tidegate_api::resource::{
    Action, Body, IdentitySet, Policy, PolicyPeer, PolicyPort, PolicyRule, PortMatch, Protocol, Resource, ResourceKey,
    Tier,
};
use tidegate_policy::{Compiler, Direction, Query, Table};

/// Namespaces.
pub const NAMESPACES: u32 = 1_000;
/// Policies of [`cluster`].
pub const POLICIES: u32 = 10_000;
/// Identities of a cluster whose pods share them by tens.
pub const IDENTITIES: u32 = 5_000;
/// Pods: identities of a cluster in which every pod has its own.
pub const PODS: u32 = 50_000;

fn resource(name: String, body: Body) -> Resource {
    Resource { name, version: String::new(), body }
}

/// A set of identities.
#[must_use]
pub fn set(name: String, identities: impl IntoIterator<Item = u32>) -> Resource {
    let mut identities: Vec<u32> = identities.into_iter().collect();
    identities.sort_unstable();
    resource(name, Body::IdentitySet(IdentitySet { identities }))
}

fn port(port: u16) -> PolicyPort {
    PolicyPort { protocol: Protocol::Tcp, port: PortMatch::Range(port, port) }
}

/// Prefix *n* with an exception inside, of one family or the other.
#[must_use]
pub fn block(number: u32, v4: bool) -> (String, String) {
    let [_, a, b, c] = number.to_be_bytes();
    match v4 {
        true => (format!("{}.{b}.{c}.0/24", 16 + a), format!("{}.{b}.{c}.128/28", 16 + a)),
        false => (format!("2001:db8:{a:x}:{b:x}{c:02x}::/64"), format!("2001:db8:{a:x}:{b:x}{c:02x}:1::/80")),
    }
}

/// Rule *n*: by turns pods, an IPv4 and an IPv6 prefix with an exception.
fn rule(number: u32) -> PolicyRule {
    let peer = match number % 3 {
        0 => PolicyPeer::Set(format!("namespace-{}", number % NAMESPACES)),
        family => {
            let (prefix, except) = block(number, family == 1);
            let except = except.parse().map_or_else(|_| Vec::new(), |except| vec![except]);
            match prefix.parse() {
                Ok(prefix) => PolicyPeer::Network { prefix, except },
                Err(_) => PolicyPeer::Set(String::new()),
            }
        }
    };
    let first = u16::try_from(number % 20_000).unwrap_or(0);
    PolicyRule {
        name: String::new(),
        action: Action::Accept,
        peers: Some(vec![peer]),
        ports: Some(vec![port(80), port(1000 + first)]),
    }
}

fn policy(name: String, subjects: String, ingress: Vec<PolicyRule>) -> Resource {
    let policy = Policy {
        tier: Tier::Namespace,
        subjects,
        audit: false,
        isolates_ingress: true,
        isolates_egress: false,
        ingress,
        egress: Vec::new(),
    };
    resource(name, Body::Policy(policy))
}

fn namespaces(identities: u32) -> impl Iterator<Item = Resource> {
    let members = move |it| (1..=identities).filter(move |id| id % NAMESPACES == it);
    (0..NAMESPACES).map(move |it| set(format!("namespace-{it}"), members(it)))
}

/// A compiler that has taken all of these.
#[must_use]
pub fn compiled(resources: &[Resource]) -> Compiler {
    let keys: Vec<ResourceKey> = resources.iter().map(Resource::key).collect();
    let mut compiler = Compiler::default();
    compiler.update(keys.iter().zip(resources.iter().map(Some)));
    compiler
}

/// All identities under so many rules.
#[must_use]
pub fn one_program(rules: u32, identities: u32) -> Compiler {
    let mut resources: Vec<Resource> = namespaces(identities).collect();
    resources.push(set("all".into(), 1..=identities));
    resources.push(policy("p".into(), "all".into(), (0..rules).map(rule).collect()));
    compiled(&resources)
}

/// Ten policies of ten rules in every namespace.
#[must_use]
pub fn cluster(identities: u32) -> Vec<Resource> {
    let mut resources: Vec<Resource> = namespaces(identities).collect();
    for number in 0..POLICIES {
        let rules = (0..10).map(|it| rule(number * 10 + it)).collect();
        resources.push(policy(format!("p{number}"), format!("namespace-{}", number % NAMESPACES), rules));
    }
    resources
}

/// Questions, each about another subject, peer and port than the one before.
#[must_use]
pub fn questions(identities: u32, count: u32) -> Vec<Query> {
    let question = |number: u32| {
        let at = number.wrapping_mul(2_654_435_761);
        let [a, b, c, d] = at.to_be_bytes();
        let peer_address: IpAddr = match number % 2 {
            0 => Ipv4Addr::new(16 + a % 2, b, c, d).into(),
            _ => Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from_be_bytes([b, c]), 0, 0, 0, d.into()).into(),
        };
        let peer = if number.is_multiple_of(3) { at % identities + 1 } else { 0 };
        let (subject, port) =
            ((at >> 8) % identities + 1, if number.is_multiple_of(5) { 80 } else { 1000 + u16::from(c) });
        Query { direction: Direction::Ingress, subject, peer, peer_address, protocol: 6, port, is_itself: false }
    };
    (0..count).map(question).collect()
}

/// Asks them all; callgrind counts this and nothing else, by its name.
#[inline(never)]
pub fn counted_turns_of_questions(table: &Table, questions: &[Query]) {
    for question in questions {
        let _ = black_box(table.lookup(question));
    }
}

/// Megabytes of 2^20 bytes.
#[must_use]
pub fn megabytes(bytes: usize) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}
