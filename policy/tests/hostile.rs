//! Objects made to be expensive: they cost a bounded amount, and the answers stay right.

#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use ipnet::IpNet;
use tidegate_api::resource::{
    Action, Body, IdentitySet, Policy, PolicyPeer, PolicyPort, PolicyRule, PortMatch, Protocol, Resource, Tier,
};
use tidegate_policy::{Compiler, Decided, Direction, Query, Verdict};

fn set(name: &str, identities: impl IntoIterator<Item = u32>) -> Resource {
    let set = IdentitySet { identities: identities.into_iter().collect() };
    Resource { name: name.into(), version: String::new(), body: Body::IdentitySet(set) }
}

fn policy(name: &str, ingress: Vec<PolicyRule>) -> Resource {
    let policy = Policy {
        tier: Tier::Namespace,
        subjects: "subjects".into(),
        audit: false,
        isolates_ingress: true,
        isolates_egress: false,
        ingress,
        egress: vec![],
    };
    Resource { name: name.into(), version: String::new(), body: Body::Policy(policy) }
}

fn rule(prefix: String, except: Vec<IpNet>, port: Option<u16>) -> PolicyRule {
    let ports = port.map(|port| vec![PolicyPort { protocol: Protocol::Tcp, port: PortMatch::Range(port, port) }]);
    let peers = Some(vec![PolicyPeer::Network { prefix: prefix.parse().unwrap(), except }]);
    PolicyRule { name: String::new(), action: Action::Accept, peers, ports }
}

fn compiled(resources: &[Resource]) -> Compiler {
    let mut compiler = Compiler::default();
    let keys: Vec<_> = resources.iter().map(Resource::key).collect();
    compiler.update(keys.iter().zip(resources.iter().map(Some)));
    compiler
}

fn ask(compiler: &Compiler, from: &str, port: u16) -> Verdict {
    compiler.table().lookup(&Query { port, ..query(from) })
}

/// Thousands of ports for a wide prefix, and thousands of addresses inside it: every address would need them all.
#[test]
fn a_layout_that_would_explode_is_walked_and_counted() {
    for (wide, at) in [("10.0.0.0/8", "10.1"), ("fd00::/8", "fd00::")] {
        let narrow = |n: u16| match at.contains(':') {
            true => format!("{at}{n:x}/128"),
            false => format!("{at}.{}.{}/32", n >> 8, n & 255),
        };
        let ports = (1..=3000).map(|port| rule(wide.into(), vec![], Some(port)));
        let hosts = (1..=3000).map(|host| rule(narrow(host), vec![], Some(9000)));
        let compiler = compiled(&[set("subjects", [1]), policy("a", ports.chain(hosts).collect())]);
        let size = compiler.table().size();
        assert_eq!((size.programs, size.walked), (1, 1));
        assert!(size.bytes < 1 << 20, "{} bytes", size.bytes);
        let host = narrow(700);
        let host = host.split('/').next().unwrap();
        assert!(matches!(ask(&compiler, host, 9001), Verdict { allow: false, decided_by: Decided::Isolation(_) }));
        for (port, rule) in [(2999, 2998), (9000, 3699)] {
            let verdict = ask(&compiler, host, port);
            assert!(verdict.allow);
            assert!(matches!(verdict.decided_by, Decided::Rule(_, found) if found == rule), "{verdict:?}");
        }
    }
}

fn query(from: &str) -> Query {
    let peer_address = from.parse().unwrap();
    Query { direction: Direction::Ingress, subject: 1, peer: 0, peer_address, protocol: 6, port: 80, is_itself: false }
}

/// P-005, P-020: exceptions by the thousand, overlapping, in overlapping prefixes.
#[test]
fn thousands_of_exceptions_are_laid_out_and_each_counts() {
    let hole = |n: u32| -> IpNet { format!("10.{}.{}.0/{}", n >> 8, n & 255, 24 + n % 3).parse().unwrap() };
    let all: Vec<IpNet> = (0..20_000).map(hole).collect();
    let some: Vec<IpNet> = (0..20_000).filter(|n| n % 2 == 0).map(hole).collect();
    let rules = vec![rule("10.0.0.0/8".into(), all, None), rule("0.0.0.0/0".into(), some, None)];
    let compiler = compiled(&[set("subjects", [1]), policy("a", rules)]);
    assert_eq!(compiler.table().size().walked, 0);
    for n in (0..20_000u32).step_by(77) {
        let verdict = ask(&compiler, &format!("10.{}.{}.3", n >> 8, n & 255), 80);
        assert_eq!(verdict.allow, n % 2 == 1, "the second rule leaves out every other");
        assert!(ask(&compiler, &format!("10.{}.{}.255", n >> 8, n & 255), 80).allow || n % 6 == 0, "{n}");
    }
    assert!(!ask(&compiler, "fd00::1", 80).allow, "another family");
}

/// A set with everybody in it, in many policies: the programs do not carry it, and one identity more costs the set.
#[test]
fn a_large_set_is_shared_by_all_programs() {
    let everybody = |last: u32| set("everybody", 1..=last);
    let mut resources = vec![everybody(50_000)];
    for n in 1..=500u32 {
        resources.push(set(&format!("subjects{n}"), [n]));
        let from = PolicyRule {
            name: String::new(),
            action: Action::Accept,
            peers: Some(vec![PolicyPeer::Set("everybody".into())]),
            ports: None,
        };
        let Body::Policy(body) = policy("", vec![from]).body else { panic!() };
        let body = Body::Policy(Policy { subjects: format!("subjects{n}"), ..body });
        resources.push(Resource { name: format!("p{n}"), version: String::new(), body });
    }
    let mut compiler = compiled(&resources);
    let size = compiler.table().size();
    assert_eq!(size.programs, 500);
    assert!(size.bytes < 8 << 20, "{} bytes", size.bytes);
    let epochs = compiler.table().epochs(Direction::Ingress, 7, 9);
    let more = everybody(50_001);
    let work = compiler.update([(&more.key(), Some(&more))]);
    assert_eq!((work.programs, work.rows), (0, 1), "nothing but the newcomer");
    assert_eq!(compiler.table().epochs(Direction::Ingress, 7, 9), epochs, "others' flows do not ask again");
    let newcomer = Query { subject: 7, peer: 50_001, ..query("192.0.2.1") };
    assert!(compiler.table().lookup(&newcomer).allow);
}
