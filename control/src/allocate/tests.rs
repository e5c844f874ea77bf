//! The rules one by one, then the whole against a naive twin.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use tidegate_api::resource::Protocol;

use super::*;
use crate::model::addresspool::Pinning;
use crate::model::namespace::Namespace;
use crate::model::service::FamilyPolicy;

/// The same in fifty lines that walk over every address.
mod naive;

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn ips(list: &str) -> Vec<IpAddr> {
    list.split_whitespace().map(ip).collect()
}

fn range(text: &str) -> AddressRange {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    AddressRange::new(ip(first), ip(last)).unwrap()
}

/// A pool of ranges separated by white space.
pub(super) fn pool(name: &str, ranges: &str) -> AddressPool {
    AddressPool {
        name: name.into(),
        uid: format!("uid-{name}"),
        created_at_s: 0,
        generation: None,
        ranges: ranges.split_whitespace().map(range).collect(),
        last_good: Vec::new(),
        complaint: None,
        auto_assign: true,
        avoid_buggy: false,
        pinning: None,
    }
}

fn name(text: &str) -> Name {
    let (namespace, name) = text.split_once('/').unwrap_or(("shop", text));
    Name { namespace: namespace.into(), name: name.into() }
}

/// An IPv4 Service with TCP port 80.
fn request(text: &str) -> Request {
    Request {
        name: name(text),
        uid: format!("uid-{text}"),
        created_at_s: 0,
        families: vec![true],
        family_policy: FamilyPolicy::SingleStack,
        status: Vec::new(),
        addresses: Vec::new(),
        pool: None,
        sharing: String::new(),
        backend: None,
        ports: [(Protocol::Tcp, 80)].into(),
        labels: BTreeMap::new(),
    }
}

fn dual(text: &str, family_policy: FamilyPolicy) -> Request {
    Request { families: vec![true, false], family_policy, ..request(text) }
}

fn allocator(pools: &[AddressPool]) -> Allocator {
    let mut allocator = Allocator::default();
    assert_eq!(allocator.set_pools(pools.to_vec(), Vec::new()), []);
    allocator.adopt([]);
    allocator
}

/// Addresses given, or the word of the refusal.
fn words(decision: &Decision) -> String {
    match &decision.result {
        Ok(assignment) => assignment.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        Err(refusal) => refusal.reason.as_str().into(),
    }
}

fn told(decisions: &[(Name, Decision)]) -> Vec<String> {
    decisions.iter().map(|(name, decision)| format!("{} {}", name.name, words(decision))).collect()
}

#[test]
fn sharing_follows_metallb_to_the_letter() {
    // M-010, T-030. The first Service has the address; may the second one join?
    let base = |key: &str, backend: Option<&str>, port: u16, protocol| Request {
        sharing: key.into(),
        backend: backend.map(Into::into),
        ports: [(protocol, port)].into(),
        addresses: ips("192.0.2.1"),
        ..request("x")
    };
    use Protocol::{Tcp, Udp};
    for (what, first, second, may) in [
        ("same key, other port", base("k", None, 80, Tcp), base("k", None, 443, Tcp), true),
        ("same key, same port", base("k", None, 80, Tcp), base("k", None, 80, Tcp), false),
        ("same key, same number of another protocol", base("k", None, 53, Tcp), base("k", None, 53, Udp), true),
        ("other key", base("k", None, 80, Tcp), base("l", None, 443, Tcp), false),
        ("no key at the first", base("", None, 80, Tcp), base("k", None, 443, Tcp), false),
        ("no key at the second", base("k", None, 80, Tcp), base("", None, 443, Tcp), false),
        ("no keys", base("", None, 80, Tcp), base("", None, 443, Tcp), false),
        ("Local, same selector", base("k", Some("a=b"), 80, Tcp), base("k", Some("a=b"), 443, Tcp), true),
        ("Local, other selector", base("k", Some("a=b"), 80, Tcp), base("k", Some("a=c"), 443, Tcp), false),
        ("Local and Cluster", base("k", Some("a=b"), 80, Tcp), base("k", None, 443, Tcp), false),
        ("Cluster and Local", base("k", None, 80, Tcp), base("k", Some("a=b"), 443, Tcp), false),
        ("Local without selector and Cluster", base("k", Some(""), 80, Tcp), base("k", None, 443, Tcp), false),
        ("Local without selectors", base("k", Some(""), 80, Tcp), base("k", Some(""), 443, Tcp), true),
        ("every port and a single one", base("k", None, 0, Tcp), base("k", None, 443, Tcp), true),
        ("every port twice", base("k", None, 0, Tcp), base("k", None, 0, Tcp), false),
    ] {
        let mut allocator = allocator(&[pool("p", "192.0.2.1-192.0.2.9")]);
        assert_eq!(words(&allocator.assign(Request { name: name("one"), ..first })), "192.0.2.1");
        let decision = allocator.assign(Request { name: name("two"), ..second });
        assert_eq!(words(&decision), if may { "192.0.2.1" } else { "InUse" }, "{what}");
        if !may {
            assert!(decision.result.unwrap_err().message.contains("shop/one"), "{what}: the other is named");
        }
        assert_eq!(allocator.counts("p", true).assigned, 1);
    }
}

#[test]
fn relaxed_sharing_looks_at_keys_and_ports_only() {
    // M-012
    let mut allocator = Allocator { ledger: Ledger::new(true), ..Allocator::default() };
    allocator.set_pools(vec![pool("p", "192.0.2.1")], Vec::new());
    allocator.adopt([]);
    let sharing = |name: &str, backend: Option<&str>, port| Request {
        sharing: "k".into(),
        backend: backend.map(Into::into),
        ports: [(Protocol::Tcp, port)].into(),
        ..request(name)
    };
    assert_eq!(words(&allocator.assign(sharing("a", Some("x=y"), 1))), "192.0.2.1");
    assert_eq!(words(&allocator.assign(sharing("b", None, 2))), "192.0.2.1");
    assert_eq!(words(&allocator.assign(sharing("c", None, 2))), "Exhausted");
}

#[test]
fn a_key_changes_in_place_if_nobody_else_minds() {
    // M-011
    let mut allocator = allocator(&[pool("p", "192.0.2.1-192.0.2.2")]);
    let with = |name: &str, key: &str, port| Request {
        sharing: key.into(),
        ports: [(Protocol::Tcp, port)].into(),
        ..request(name)
    };
    assert_eq!(words(&allocator.assign(with("a", "k", 80))), "192.0.2.1");
    assert_eq!(words(&allocator.assign(with("a", "l", 80))), "192.0.2.1", "the only owner");
    assert_eq!(words(&allocator.assign(with("b", "l", 443))), "192.0.2.1", "joins by the new key");
    let moved = allocator.assign(with("b", "k", 443));
    assert_eq!(words(&moved), "192.0.2.2", "the one that changed moves");
    assert_eq!(moved.cleared[0].address, ip("192.0.2.1"));
    assert!(moved.cleared[0].why.contains("sharing key \"l\""), "{}", moved.cleared[0].why);
    // A port that becomes another's is such a change too.
    assert_eq!(words(&allocator.assign(with("b", "l", 443))), "192.0.2.2", "sticky");
    assert_eq!(words(&allocator.assign(with("c", "l", 443))), "192.0.2.1");
    assert_eq!(
        words(&allocator.assign(with("c", "l", 80))),
        "192.0.2.2",
        "80 of the first is a's, of the second nobody's"
    );
}

#[test]
fn restart_keeps_every_address_in_any_order() {
    // M-006, T-031, C-006
    let pools = [pool("p", "192.0.2.1-192.0.2.3 2001:db8::1-2001:db8::3")];
    let taken = [("a", "192.0.2.3 2001:db8::2"), ("b", "192.0.2.1 2001:db8::3"), ("c", "192.0.2.2 2001:db8::1")];
    let with =
        |(name, status): &(&str, &str)| Request { status: ips(status), ..dual(name, FamilyPolicy::RequireDualStack) };
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut allocator = Allocator::default();
        allocator.set_pools(pools.to_vec(), Vec::new());
        let early = allocator.assign(dual("d", FamilyPolicy::RequireDualStack));
        assert_eq!(words(&early), "Starting", "nothing is given out before all that is given is known");
        let decisions = allocator.adopt(order.map(|index| with(&taken[index])));
        for (who, decision) in decisions {
            let expected = taken.iter().find(|(name, _)| *name == who.name).unwrap().1;
            assert_eq!((words(&decision), decision.cleared), (expected.to_string(), Vec::new()));
        }
        assert_eq!(words(&allocator.assign(dual("d", FamilyPolicy::RequireDualStack))), "Exhausted");
    }
}

#[test]
fn two_that_claim_one_address_at_start_are_parted_by_age() {
    let claim = |name: &str, created_at_s| Request { created_at_s, status: ips("192.0.2.1"), ..request(name) };
    for order in [[("young", 9), ("old", 5)], [("old", 5), ("young", 9)]] {
        let mut allocator = Allocator::default();
        allocator.set_pools(vec![pool("p", "192.0.2.1-192.0.2.2")], Vec::new());
        let decisions = allocator.adopt(order.map(|(name, age)| claim(name, age)));
        let mut told = told(&decisions);
        told.sort();
        assert_eq!(told, ["old 192.0.2.1", "young 192.0.2.2"]);
    }
}

#[test]
fn who_waits_is_served_when_an_address_is_free() {
    // M-007, T-032
    let mut allocator = allocator(&[pool("p", "192.0.2.1")]);
    assert_eq!(words(&allocator.assign(request("a"))), "192.0.2.1");
    assert_eq!(words(&allocator.assign(Request { created_at_s: 2, ..request("b") })), "Exhausted");
    assert_eq!(words(&allocator.assign(Request { created_at_s: 1, ..request("c") })), "Exhausted");
    assert_eq!(allocator.reconsider(), [], "nothing has happened");
    assert_eq!(allocator.release(&name("a")), ips("192.0.2.1"));
    assert_eq!(told(&allocator.reconsider()), ["c 192.0.2.1"], "the elder one");
    assert_eq!(allocator.waiting().collect::<Vec<_>>(), [&name("b")]);
    allocator.set_pools(vec![pool("p", "192.0.2.1"), pool("q", "192.0.2.9")], Vec::new());
    assert_eq!(told(&allocator.reconsider()), ["b 192.0.2.9"]);
}

#[test]
fn who_asks_for_certain_addresses_chooses_before_those_who_take_any() {
    for (free, pools) in [("192.0.2.1", "192.0.2.1-192.0.2.2"), ("2001:db8::1", "2001:db8::1-2001:db8::2")] {
        let of = |text: &str| Request { families: vec![ip(free).is_ipv4()], ..request(text) };
        let asks = Request { created_at_s: 9, addresses: ips(free), ..of("asks") };
        // All are there when control starts, or when the first pool comes.
        let mut allocator = allocator(&[pool("p", pools)]);
        let decisions = allocator.adopt([of("a"), of("b"), asks.clone()]);
        assert_eq!(told(&decisions)[2], format!("asks {free}"), "{decisions:?}");
        let mut allocator = Allocator::default();
        allocator.adopt([of("a"), of("b"), asks.clone()]);
        allocator.set_pools(vec![pool("p", pools)], Vec::new());
        let decisions = told(&allocator.reconsider());
        assert!(decisions.contains(&format!("asks {free}")), "{decisions:?}");
        // Nobody loses what he has.
        allocator.release(&name("asks"));
        allocator.reconsider();
        assert_eq!(words(&allocator.assign(asks)), "InUse");
    }
}

#[test]
fn a_service_made_anew_under_its_name_is_another_one() {
    // S-005, T-036: the address may be the same, but it was given back in between.
    let mut allocator = allocator(&[pool("p", "192.0.2.1-192.0.2.9")]);
    allocator.assign(request("a"));
    allocator.assign(Request { uid: "other".into(), addresses: ips("192.0.2.5"), ..request("b") });
    let anew = Request { uid: "new".into(), status: ips("192.0.2.5"), ..request("a") };
    let decision = allocator.assign(anew);
    assert_eq!(words(&decision), "192.0.2.1", "what its status claims belongs to b");
    assert_eq!(decision.cleared[0].address, ip("192.0.2.5"));
}

#[test]
fn pools_are_chosen_by_wish_then_pinning_then_name() {
    // M-002
    let pinned = |name: &str, ranges: &str, priority, namespace: &str| AddressPool {
        pinning: Some(Pinning { priority, namespaces: vec![namespace.into()], ..Pinning::default() }),
        ..pool(name, ranges)
    };
    let mut allocator = allocator(&[
        pool("all", "192.0.2.1"),
        pinned("late", "192.0.2.2", 0, "shop"),
        pinned("second", "192.0.2.3", 20, "shop"),
        pinned("first", "192.0.2.4", 10, "shop"),
        pinned("others", "192.0.2.5", 1, "bank"),
        AddressPool { auto_assign: false, ..pool("by-hand", "192.0.2.6-192.0.2.7") },
    ]);
    let order: Vec<String> = ["a", "b", "c", "d", "e"].map(|name| words(&allocator.assign(request(name)))).into();
    assert_eq!(order, ["192.0.2.4", "192.0.2.3", "192.0.2.2", "192.0.2.1", "Exhausted"]);
    let asks = |name: &str, pool: &str| Request { pool: Some(pool.into()), ..request(name) };
    assert_eq!(words(&allocator.assign(asks("f", "by-hand"))), "192.0.2.6");
    assert_eq!(words(&allocator.assign(asks("g", "others"))), "PoolNotPermitted");
    assert_eq!(words(&allocator.assign(asks("h", "none"))), "PoolUnknown");
    assert_eq!(words(&allocator.assign(asks("bank/i", "others"))), "192.0.2.5");
    let names = allocator.assign(asks("f", "by-hand")).result.unwrap().pool_names();
    assert_eq!(names, "by-hand");
    // Another pool asked for: it moves (M-005).
    allocator.release(&name("d"));
    let moved = allocator.assign(asks("f", "all"));
    assert_eq!((words(&moved).as_str(), moved.cleared[0].address), ("192.0.2.1", ip("192.0.2.6")));
    assert!(moved.cleared[0].why.contains("AddressPool all is asked for"));
}

#[test]
fn labels_of_services_and_namespaces_decide_who_may() {
    let selector = |key: &str, value: &str| [(key.to_string(), value.to_string())].into_iter().collect();
    let labels = |key: &str, value: &str| BTreeMap::from([(key.to_string(), value.to_string())]);
    let pinning = Pinning {
        namespace_selectors: vec![selector("team", "a")],
        service_selectors: vec![selector("tier", "web"), selector("tier", "api")],
        ..Pinning::default()
    };
    let mut allocator = allocator(&[AddressPool { pinning: Some(pinning), ..pool("p", "192.0.2.1-192.0.2.2") }]);
    let web = Request { labels: labels("tier", "web"), ..request("a") };
    assert_eq!(words(&allocator.assign(web.clone())), "NoPoolPermits", "of the namespace only the name is known");
    allocator.set_namespaces([("shop".to_string(), labels("team", "a"))].into());
    assert_eq!(told(&allocator.reconsider()), ["a 192.0.2.1"]);
    assert_eq!(words(&allocator.assign(Request { labels: labels("tier", "db"), ..request("b") })), "NoPoolPermits");
    assert_eq!(words(&allocator.assign(Request { labels: labels("tier", "api"), ..request("b") })), "192.0.2.2");
    // The label goes: so does the address (M-005).
    let decision = allocator.assign(request("b"));
    assert_eq!((words(&decision).as_str(), decision.cleared.len()), ("NoPoolPermits", 1));
    allocator.set_namespaces([("shop".to_string(), labels("team", "b"))].into());
    let decisions = allocator.reconsider();
    assert_eq!(told(&decisions), ["a NoPoolPermits"]);
    assert!(decisions[0].1.cleared[0].why.contains("not for this Service any more"));
}

/// P-010 for pools: a namespace without an object, or whose object has no labels, has its name.
#[test]
fn a_pool_for_namespaces_by_their_name_needs_no_object() {
    let by_name = |operator: &str| {
        let expression =
            serde_json::json!({ "key": "kubernetes.io/metadata.name", "operator": operator, "values": ["shop"] });
        let written: LabelSelector =
            serde_json::from_value(serde_json::json!({ "matchExpressions": [expression] })).unwrap();
        Pinning { namespace_selectors: vec![written.try_into().unwrap()], ..Pinning::default() }
    };
    for (operator, expected) in [("In", "192.0.2.1 2001:db8::1"), ("NotIn", "NoPoolPermits")] {
        for namespaces in [vec![], vec![Namespace::bare("shop")]] {
            let range = pool("p", "192.0.2.1 2001:db8::1");
            let mut allocator = allocator(&[AddressPool { pinning: Some(by_name(operator)), ..range }]);
            allocator.set_namespaces(namespaces.iter().map(|it| (it.name.clone(), it.labels().clone())).collect());
            let decision = allocator.assign(dual("a", FamilyPolicy::RequireDualStack));
            assert_eq!(words(&decision), expected, "{operator} {namespaces:?}");
        }
    }
}

#[test]
fn addresses_asked_for_are_given_whole_or_not_at_all() {
    // M-004, S-020
    let mut allocator = Allocator::default();
    let taken = vec![Reserved { range: ip("192.0.2.1").into(), whose: "an address of Node w1".into() }];
    let pools = || vec![pool("p", "192.0.2.2-192.0.2.9 2001:db8::1-2001:db8::9"), pool("q", "198.51.100.1")];
    allocator.set_pools(pools(), taken);
    allocator.adopt([]);
    // A Node joins later with an address of the pool.
    let problems = allocator
        .set_pools(pools(), vec![Reserved { range: ip("192.0.2.3").into(), whose: "an address of Node w2".into() }]);
    assert_eq!((problems.len(), problems[0].refused), (1, false));
    allocator.occupy(&name("elsewhere"), &ips("192.0.2.4"));
    allocator.assign(request("a"));
    let asks = |list: &str, families: &[bool], family_policy| Request {
        addresses: ips(list),
        families: families.to_vec(),
        family_policy,
        ..request("b")
    };
    use FamilyPolicy::{PreferDualStack, RequireDualStack, SingleStack};
    for (list, families, policy, expected) in [
        ("192.0.2.5", &[true][..], SingleStack, "192.0.2.5"),
        ("192.0.2.2", &[true], SingleStack, "InUse"),
        ("192.0.2.3", &[true], SingleStack, "Reserved"),
        ("192.0.2.4", &[true], SingleStack, "InUse"),
        ("203.0.113.1", &[true], SingleStack, "NotInPool"),
        ("2001:db8::5", &[true], SingleStack, "FamilyMismatch"),
        ("192.0.2.5 2001:db8::5", &[true], SingleStack, "FamilyMismatch"),
        ("2001:db8::5 192.0.2.5", &[true, false], RequireDualStack, "192.0.2.5 2001:db8::5"),
        ("192.0.2.2 2001:db8::5", &[true, false], RequireDualStack, "InUse"),
        ("192.0.2.5", &[true, false], RequireDualStack, "FamilyMismatch"),
        ("192.0.2.5", &[true, false], PreferDualStack, "192.0.2.5"),
        ("192.0.2.5 192.0.2.6", &[true], SingleStack, "192.0.2.5 192.0.2.6"),
    ] {
        let decision = allocator.assign(asks(list, families, policy));
        assert_eq!(words(&decision), expected, "{list} {families:?} {policy:?}");
        if let Err(refusal) = &decision.result {
            assert!(!refusal.message.is_empty() && allocator.held_by(&name("b")).is_empty());
        }
    }
    let mismatch = Request { pool: Some("q".into()), ..asks("192.0.2.5", &[true], SingleStack) };
    assert_eq!(words(&allocator.assign(mismatch)), "OtherPool");
    // The request goes, the address stays.
    allocator.assign(asks("192.0.2.6", &[true], SingleStack));
    assert_eq!(words(&allocator.assign(request("b"))), "192.0.2.6");
}

#[test]
fn families_are_served_in_their_order_as_policy_says() {
    // S-120, S-122
    let v4 = pool("v4", "192.0.2.1-192.0.2.2");
    let v6 = pool("v6", "2001:db8::1-2001:db8::2");
    let mut allocator = allocator(std::slice::from_ref(&v4));
    assert_eq!(words(&allocator.assign(dual("a", FamilyPolicy::PreferDualStack))), "192.0.2.1");
    let lacks = allocator.assign(dual("a", FamilyPolicy::PreferDualStack)).result.unwrap().lacks.unwrap();
    let message = "no IPv6 address is free in AddressPool v4 (has none of that family)";
    assert_eq!((lacks.reason, lacks.message.as_str()), (Reason::Exhausted, message));
    assert_eq!(words(&allocator.assign(dual("b", FamilyPolicy::RequireDualStack))), "Exhausted");
    assert_eq!(words(&allocator.assign(Request { families: vec![false], ..request("c") })), "Exhausted");
    // IPv6 comes: the first address is not touched, and all get theirs.
    allocator.set_pools(vec![v4.clone(), v6], Vec::new());
    let mut decisions = told(&allocator.reconsider());
    decisions.sort();
    assert_eq!(decisions, ["a 192.0.2.1 2001:db8::1", "b 192.0.2.2 2001:db8::2", "c Exhausted"]);
    let neither = allocator.assign(dual("d", FamilyPolicy::RequireDualStack)).result.unwrap_err();
    assert_eq!(
        neither.message,
        "no IPv4 address is free in AddressPool v4 (has 2), v6 (has none of that family), and no IPv6 address is free in \
         AddressPool v4 (has none of that family), v6 (has 2)"
    );
    allocator.release(&request("d").name);
    // The secondary family is removed from one, and added to the other way round.
    let single = allocator.assign(request("a"));
    assert_eq!((words(&single).as_str(), single.cleared.len()), ("192.0.2.1", 1));
    assert_eq!(told(&allocator.reconsider()), ["c 2001:db8::1"]);
    let turned = Request { families: vec![false, true], ..dual("b", FamilyPolicy::RequireDualStack) };
    assert_eq!(words(&allocator.assign(turned)), "2001:db8::2 192.0.2.2");
    // A pool goes: who must have both has none, who prefers both has one.
    allocator.set_pools(vec![v4], Vec::new());
    let mut decisions = allocator.reconsider();
    decisions.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(told(&decisions), ["b Exhausted", "c Exhausted"]);
    assert_eq!(decisions[0].1.cleared.len(), 2);
}

#[test]
fn both_families_rather_come_from_one_pool() {
    let mut allocator =
        allocator(&[pool("a", "192.0.2.1"), pool("b", "192.0.2.2 2001:db8::2"), pool("c", "2001:db8::1")]);
    assert_eq!(words(&allocator.assign(dual("x", FamilyPolicy::RequireDualStack))), "192.0.2.2 2001:db8::2");
    let second = allocator.assign(dual("y", FamilyPolicy::RequireDualStack));
    assert_eq!(words(&second), "192.0.2.1 2001:db8::1", "two pools are better than none");
    assert_eq!(second.result.unwrap().pool_names(), "a,c");
}

#[test]
fn of_pools_that_overlap_the_changed_one_keeps_its_last_good_version() {
    // M-001
    let mut allocator = allocator(&[pool("a", "192.0.2.1-192.0.2.9"), pool("b", "192.0.2.20-192.0.2.29")]);
    let in_force = |allocator: &Allocator| {
        allocator.in_force().map(|(name, ranges)| format!("{name} {}", pools::words(ranges))).collect::<Vec<_>>()
    };
    let problems = allocator.set_pools(
        vec![pool("a", "192.0.2.1-192.0.2.25"), pool("b", "192.0.2.20-192.0.2.29"), pool("c", "192.0.2.9")],
        Vec::new(),
    );
    // `c` is new and fits beside what `a` had, but not beside what it wants: whoever comes last waits for the other.
    assert_eq!(in_force(&allocator)[..2], ["a 192.0.2.1-192.0.2.9", "b 192.0.2.20-192.0.2.29"]);
    assert!(problems.iter().all(|problem| problem.refused && problem.reason == "Overlap"), "{problems:?}");
    let names: Vec<&str> = problems.iter().map(|problem| problem.pool.as_str()).collect();
    assert_eq!(names, ["a", "c"]);
    assert!(problems[0].message.contains("stays in force: 192.0.2.1-192.0.2.9"), "{}", problems[0].message);
    // A range moves from one to the other at once; two exchange theirs.
    let moved = vec![pool("a", "192.0.2.1-192.0.2.24"), pool("b", "192.0.2.25-192.0.2.29")];
    assert_eq!(allocator.set_pools(moved, Vec::new()), []);
    assert_eq!(in_force(&allocator), ["a 192.0.2.1-192.0.2.24", "b 192.0.2.25-192.0.2.29"]);
    let exchanged = vec![pool("b", "192.0.2.1-192.0.2.24"), pool("a", "192.0.2.25-192.0.2.29")];
    assert_eq!(allocator.set_pools(exchanged, Vec::new()), []);
    assert_eq!(in_force(&allocator), ["a 192.0.2.25-192.0.2.29", "b 192.0.2.1-192.0.2.24"]);
}

#[test]
fn after_a_restart_status_tells_which_version_was_good() {
    let last_good = |pool: AddressPool, ranges: &str| AddressPool {
        last_good: ranges.split_whitespace().map(range).collect(),
        ..pool
    };
    let elder = last_good(pool("a", "192.0.2.1-192.0.2.25"), "192.0.2.1-192.0.2.9");
    let younger =
        AddressPool { created_at_s: 5, ..last_good(pool("b", "192.0.2.20-192.0.2.29"), "192.0.2.20-192.0.2.29") };
    let mut allocator = Allocator::default();
    let problems = allocator.set_pools(vec![elder.clone(), younger.clone()], Vec::new());
    assert_eq!((problems.len(), problems[0].pool.as_str()), (1, "a"));
    let held = Request { status: ips("192.0.2.20"), ..request("x") };
    assert_eq!(told(&allocator.adopt([held])), ["x 192.0.2.20"]);
    // Without that memory the elder wins.
    let mut allocator = Allocator::default();
    let forgetful = |pool: AddressPool| AddressPool { last_good: Vec::new(), ..pool };
    let problems = allocator.set_pools(vec![forgetful(younger), forgetful(elder)], Vec::new());
    assert_eq!((problems.len(), problems[0].pool.as_str()), (1, "b"));
}

#[test]
fn a_pool_that_became_unusable_stays_as_it_was() {
    let mut allocator = allocator(&[pool("p", "192.0.2.1-192.0.2.2")]);
    assert_eq!(words(&allocator.assign(request("a"))), "192.0.2.1");
    let complaint = Some("spec.addresses[0]: 192.0.2.9 comes after 192.0.2.1".to_string());
    let unusable = AddressPool {
        complaint,
        auto_assign: false,
        last_good: vec![range("192.0.2.1-192.0.2.2")],
        ..pool("p", "192.0.2.1-192.0.2.2")
    };
    let problems = allocator.set_pools(vec![unusable.clone()], Vec::new());
    assert_eq!((problems.len(), problems[0].reason, problems[0].refused), (1, "Invalid", true));
    assert!(problems[0].message.ends_with("stays in force: 192.0.2.1-192.0.2.2"), "{}", problems[0].message);
    assert_eq!(allocator.reconsider(), []);
    assert_eq!(words(&allocator.assign(request("b"))), "192.0.2.2", "also its other fields");
    // After a restart only the ranges are known: who has an address keeps it, nobody gets one without asking.
    let mut allocator = Allocator::default();
    assert_eq!(allocator.set_pools(vec![unusable], Vec::new()), problems);
    let decisions = allocator.adopt([Request { status: ips("192.0.2.1"), ..request("a") }, request("b")]);
    assert_eq!(told(&decisions), ["a 192.0.2.1", "b NoPoolPermits"]);
}

#[test]
fn addresses_of_the_network_are_never_given() {
    // M-013
    let reserved = |text: &str| vec![Reserved { range: range(text), whose: "the pod CIDR of Node w1".into() }];
    let mut allocator = Allocator::default();
    let problems = allocator.set_pools(vec![pool("p", "192.0.2.1-192.0.2.4")], reserved("192.0.2.3-192.0.2.9"));
    assert_eq!((problems.len(), problems[0].refused, problems[0].reason), (1, true, "Reserved"));
    assert!(problems[0].message.contains("192.0.2.3-192.0.2.4 is the pod CIDR of Node w1"), "{}", problems[0].message);
    allocator.adopt([]);
    assert!(allocator.is_idle());
    // In force already when the network grows into it: it stays, those who have an address keep it, nobody gets one.
    allocator.set_pools(vec![pool("p", "192.0.2.1-192.0.2.4")], Vec::new());
    allocator.assign(Request { addresses: ips("192.0.2.3"), ..request("a") });
    let problems = allocator.set_pools(vec![pool("p", "192.0.2.1-192.0.2.4")], reserved("192.0.2.3-192.0.2.9"));
    assert_eq!((problems.len(), problems[0].refused), (1, false));
    assert_eq!(allocator.reconsider(), []);
    assert_eq!(allocator.held_by(&name("a")), ips("192.0.2.3"));
    let order: Vec<String> = ["b", "c", "d"].map(|name| words(&allocator.assign(request(name)))).into();
    assert_eq!(order, ["192.0.2.1", "192.0.2.2", "Exhausted"]);
    assert_eq!(allocator.counts("p", true), Counts { total: 2, assigned: 3, available: 0 });
}

#[test]
fn buggy_addresses_are_not_in_a_pool_that_avoids_them() {
    let avoiding = AddressPool { avoid_buggy: true, ..pool("p", "192.0.2.254-192.0.3.1") };
    let mut allocator = allocator(&[avoiding]);
    let order: Vec<String> = ["a", "b", "c"].map(|name| words(&allocator.assign(request(name)))).into();
    assert_eq!(order, ["192.0.2.254", "192.0.3.1", "Exhausted"]);
    assert_eq!(words(&allocator.assign(Request { addresses: ips("192.0.3.0"), ..request("d") })), "NotInPool");
    assert_eq!(allocator.counts("p", true), Counts { total: 2, assigned: 2, available: 0 });
}

#[test]
fn without_any_pool_services_keep_what_they_have() {
    let mut allocator = Allocator::default();
    allocator.set_pools(Vec::new(), Vec::new());
    let has = Request { status: ips("203.0.113.7"), ..request("a") };
    let decisions = allocator.adopt([has.clone(), request("b")]);
    assert_eq!(told(&decisions), ["a 203.0.113.7", "b NoPool"]);
    assert!(allocator.is_idle());
    assert_eq!(words(&allocator.assign(Request { status: ips("203.0.113.8"), ..has })), "203.0.113.8");
    // The first pool ends that: M-005.
    allocator.set_pools(vec![pool("p", "192.0.2.1-192.0.2.9")], Vec::new());
    let decisions = allocator.reconsider();
    assert_eq!(told(&decisions), ["a 192.0.2.1", "b 192.0.2.2"]);
    assert_eq!(decisions[0].1.cleared[0].address, ip("203.0.113.8"));
    // And its end does not bring it back.
    allocator.set_pools(Vec::new(), Vec::new());
    assert_eq!(told(&allocator.reconsider()), ["a NoPool", "b NoPool"]);
}

#[test]
fn status_is_believed_once() {
    // M-005: what somebody writes into the status of a Service that is known changes nothing.
    let mut allocator = allocator(&[pool("p", "192.0.2.1-192.0.2.9")]);
    assert_eq!(words(&allocator.assign(request("a"))), "192.0.2.1");
    let stale = Request { status: ips("192.0.2.5"), ..request("a") };
    assert_eq!(words(&allocator.assign(stale.clone())), "192.0.2.1");
    assert_eq!(words(&allocator.assign(Request { ports: BTreeSet::new(), ..stale })), "192.0.2.1");
    // A Service that comes later with a status keeps it, as after a restore of the cluster.
    assert_eq!(words(&allocator.assign(Request { status: ips("192.0.2.7"), ..request("b") })), "192.0.2.7");
}

#[test]
fn huge_pools_and_many_services_take_no_walk() {
    let mut allocator = allocator(&[AddressPool {
        avoid_buggy: true,
        ..pool("p", "10.0.0.0-10.255.255.255 2001:db8::-2001:db8::ffff:ffff:ffff:ffff")
    }]);
    let services: Vec<Request> =
        (0..50_000).map(|number| dual(&format!("s{number:05}"), FamilyPolicy::RequireDualStack)).collect();
    for service in &services {
        assert!(allocator.assign(service.clone()).result.is_ok());
    }
    let last = allocator.held_by(&name("s49999")).to_vec();
    assert_eq!(last, ips("10.0.196.216 2001:db8::c34f"));
    assert_eq!(allocator.counts("p", true).assigned, 50_000);
    assert_eq!(allocator.counts("p", false).total, u64::MAX, "saturated");
    // A restart of all of them, and a change of pools: nothing moves.
    let with_status =
        |request: &Request| Request { status: allocator.held_by(&request.name).to_vec(), ..request.clone() };
    let adopting: Vec<Request> = services.iter().rev().map(with_status).collect();
    let decisions = allocator.adopt(adopting);
    assert!(decisions.iter().all(|(_, decision)| decision.cleared.is_empty() && decision.result.is_ok()));
    assert_eq!(allocator.held_by(&name("s49999")), last);
}
