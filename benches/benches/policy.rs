//! Who may reach whom: what a question costs with few rules and with many, and what the compiler thread does.
//!
//! The cluster has 50,000 pods in 5,000 identities and 1,000 namespaces; policies speak of their namespace's pods, of other
//! namespaces', and of prefixes with exceptions of both families. Questions go round over subjects, peers and ports, so that
//! they are as cold as those of new flows.

#![allow(missing_docs)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tidegate_api::resource::{
    Action, Body, IdentitySet, Policy, PolicyPeer, PolicyPort, PolicyRule, PortMatch, Protocol, Resource, ResourceKey,
    Tier,
};
use tidegate_benches::summary;
use tidegate_policy::{Compiler, Direction, Query, Table};

const IDENTITIES: u32 = 5_000;
const NAMESPACES: u32 = 1_000;
const POLICIES: u32 = 10_000;

fn resource(name: String, body: Body) -> Resource {
    Resource { name, version: String::new(), body }
}

fn set(name: String, identities: impl IntoIterator<Item = u32>) -> Resource {
    let mut identities: Vec<u32> = identities.into_iter().collect();
    identities.sort_unstable();
    resource(name, Body::IdentitySet(IdentitySet { identities }))
}

fn port(port: u16) -> PolicyPort {
    PolicyPort { protocol: Protocol::Tcp, port: PortMatch::Range(port, port) }
}

/// Rule *n*: by turns pods, an IPv4 and an IPv6 prefix with an exception.
fn rule(number: u32) -> PolicyRule {
    let [_, a, b, c] = number.to_be_bytes();
    let network = |prefix: String, except: String| PolicyPeer::Network {
        prefix: prefix.parse().expect("a prefix"),
        except: vec![except.parse().expect("a prefix")],
    };
    let peer = match number % 3 {
        0 => PolicyPeer::Set(format!("namespace-{}", number % NAMESPACES)),
        1 => network(format!("{}.{b}.{c}.0/24", 16 + a), format!("{}.{b}.{c}.128/28", 16 + a)),
        _ => network(format!("2001:db8:{a:x}:{b:x}{c:02x}::/64"), format!("2001:db8:{a:x}:{b:x}{c:02x}:1::/80")),
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
        isolates_ingress: true,
        isolates_egress: false,
        ingress,
        egress: Vec::new(),
    };
    resource(name, Body::Policy(policy))
}

fn namespaces() -> impl Iterator<Item = Resource> {
    (0..NAMESPACES).map(|it| set(format!("namespace-{it}"), (1..=IDENTITIES).filter(move |id| id % NAMESPACES == it)))
}

fn compiled(resources: &[Resource]) -> Compiler {
    let keys: Vec<ResourceKey> = resources.iter().map(Resource::key).collect();
    let mut compiler = Compiler::default();
    compiler.update(keys.iter().zip(resources.iter().map(Some)));
    compiler
}

/// All identities under so many rules.
fn one_program(rules: u32) -> Compiler {
    let mut resources: Vec<Resource> = namespaces().collect();
    resources.push(set("all".into(), 1..=IDENTITIES));
    resources.push(policy("p".into(), "all".into(), (0..rules).map(rule).collect()));
    compiled(&resources)
}

/// Ten policies of ten rules in every namespace.
fn cluster() -> Vec<Resource> {
    let mut resources: Vec<Resource> = namespaces().collect();
    for number in 0..POLICIES {
        let rules = (0..10).map(|it| rule(number * 10 + it)).collect();
        resources.push(policy(format!("p{number}"), format!("namespace-{}", number % NAMESPACES), rules));
    }
    resources
}

fn questions() -> Vec<Query> {
    let question = |number: u32| {
        let at = number.wrapping_mul(2_654_435_761);
        let [a, b, c, d] = at.to_be_bytes();
        let peer_address: IpAddr = match number % 2 {
            0 => Ipv4Addr::new(16 + a % 2, b, c, d).into(),
            _ => Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from_be_bytes([b, c]), 0, 0, 0, d.into()).into(),
        };
        let peer = if number.is_multiple_of(3) { at % IDENTITIES + 1 } else { 0 };
        let (subject, port) =
            ((at >> 8) % IDENTITIES + 1, if number.is_multiple_of(5) { 80 } else { 1000 + u16::from(c) });
        Query { direction: Direction::Ingress, subject, peer, peer_address, protocol: 6, port }
    };
    (0..65_536).map(question).collect()
}

fn ask(criterion: &mut Criterion, name: &str, parameter: u32, table: &Table) {
    let questions = questions();
    let mut at = 0;
    let mut group = criterion.benchmark_group(name);
    group.bench_function(BenchmarkId::from_parameter(parameter), |bencher| {
        bencher.iter(|| {
            at = (at + 1) % questions.len();
            black_box(table.lookup(&questions[at]))
        });
    });
    group.finish();
}

fn lookup(criterion: &mut Criterion) {
    for rules in [10, 1_000, 10_000] {
        ask(criterion, "policy_lookup", rules, one_program(rules).table());
    }
}

fn compile(criterion: &mut Criterion) {
    let resources = cluster();
    criterion.bench_function("policy/compile_10000", |bencher| bencher.iter(|| compiled(&resources)));
    let mut compiler = compiled(&resources);
    ask(criterion, "policy_lookup_cluster", POLICIES, compiler.table());
    let bytes = compiler.table().size().bytes;
    // A figure that is not written is reported as missing.
    let _ = summary::count(
        &summary::target(),
        "policy/memory",
        f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0,
    );
    // A pod gets a label that makes it another identity: the set of its namespace changes, and back.
    let before = set("namespace-7".into(), (1..=IDENTITIES).filter(|id| id % NAMESPACES == 7));
    let after = set("namespace-7".into(), (1..=IDENTITIES + 1).filter(|id| id % NAMESPACES == 7 || *id > IDENTITIES));
    let mut turn = false;
    criterion.bench_function("policy/label_change", |bencher| {
        bencher.iter(|| {
            turn = !turn;
            let now = if turn { &after } else { &before };
            compiler.update([(&now.key(), Some(now))])
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1)).without_plots();
    targets = lookup, compile
}
criterion_main!(benches);
