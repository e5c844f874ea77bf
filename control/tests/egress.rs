//! EgressPolicies, StaticNats and the Pods they speak of → how pods leave the cluster.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use rig::{Rig, node, service};
use tidegate_api::resource::{Body, Egress, Kind, Pod, StaticNat};
use tidegate_control::source::ObjectKind;

fn egress(rig: &Rig, name: &str) -> Option<Egress> {
    match rig.body(Kind::Egress, name)? {
        Body::Egress(egress) => Some(egress.clone()),
        other => panic!("{other:?}"),
    }
}

fn pod(rig: &Rig, name: &str) -> Option<Pod> {
    match rig.body(Kind::Pod, name)? {
        Body::Pod(pod) => Some(pod.clone()),
        other => panic!("{other:?}"),
    }
}

fn static_nat(rig: &Rig, name: &str) -> Option<StaticNat> {
    match rig.body(Kind::StaticNat, name)? {
        Body::StaticNat(nat) => Some(nat.clone()),
        other => panic!("{other:?}"),
    }
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: tidegate.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n---\n"
    )
}

fn namespace(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {name}, labels: {{ {labels} }} }}\n---\n")
}

/// A Pod of both families on w1; its addresses end in `number`.
fn pod_of(name: &str, labels: &str, number: u8, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: {namespace}, labels: {{ {labels} }} }}\n\
         spec: {{ nodeName: w1, {spec} }}\n\
         status: {{ podIPs: [{{ ip: 10.244.1.{number} }}, {{ ip: \"fd00:10:244:1::{number}\" }}] }}\n---\n"
    )
}

const BOTH: &str = "addresses: [192.0.2.10, \"2001:db8::10\"]";

#[test]
fn a_selected_pod_leaves_by_its_policy_and_nobody_else_does() {
    let mut rig = Rig::new();
    rig.apply(&[
        node("gw-1", 9),
        node("w1", 1),
        namespace("shop", "team: a"),
        namespace("lab", "team: b"),
        policy("out", &format!("{BOTH}, namespaceSelector: {{ matchLabels: {{ team: a }} }}, podSelector: {{ matchLabels: {{ app: web }} }}")),
        pod_of("shop/web-0", "app: web", 5, ""),
        pod_of("shop/api-0", "app: api", 6, ""),
        pod_of("lab/web-0", "app: web", 7, ""),
        pod_of("shop/web-host", "app: web", 8, "hostNetwork: true"),
    ].concat());
    let web = pod(&rig, "shop/web-0").unwrap();
    assert_eq!((web.egress, web.node.as_str(), web.addresses.len()), (vec!["out".to_string()], "w1", 2));
    for other in ["shop/api-0", "lab/web-0", "shop/web-host"] {
        assert_eq!(pod(&rig, other), None, "{other}"); // N-114 for the last
    }
    let out = egress(&rig, "out").unwrap();
    assert_eq!(out.addresses.len(), 2);
    // N-110: pods and nodes of the cluster are no outside.
    let inside: Vec<String> = out.inside.iter().map(ToString::to_string).collect();
    for prefix in ["10.244.9.0/24", "10.244.1.0/24"] {
        assert!(inside.iter().any(|inside| inside == prefix), "{prefix} is not in {inside:?}");
    }
    assert!(rig.problems().is_empty(), "{:?}", rig.problems());

    // Labels are live: of the Pod, and of its Namespace.
    rig.apply(&pod_of("shop/api-0", "app: web", 6, ""));
    assert!(pod(&rig, "shop/api-0").is_some());
    rig.apply(&namespace("lab", "team: a"));
    assert!(pod(&rig, "lab/web-0").is_some());
    rig.apply(&namespace("shop", "team: c"));
    assert_eq!(pod(&rig, "shop/web-0"), None);
    rig.delete(ObjectKind::EgressPolicy, "out");
    assert_eq!((egress(&rig, "out"), pod(&rig, "lab/web-0")), (None, None));
}

/// P-010: every namespace has the label of its name, without an object, without labels, and whatever the object says.
#[test]
fn a_namespace_is_selected_by_its_name() {
    let by_name = |operator: &str| {
        let expression = format!("{{ key: kubernetes.io/metadata.name, operator: {operator}, values: [shop] }}");
        policy("out", &format!("{BOTH}, namespaceSelector: {{ matchExpressions: [{expression}] }}"))
    };
    let bare = |name: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {name} }}\n---\n");
    let wrong = namespace("shop", "kubernetes.io/metadata.name: lab");
    for objects in [String::new(), bare("shop") + &bare("lab"), namespace("shop", "team: a"), wrong] {
        let mut rig = Rig::new();
        let pods = [pod_of("shop/web-0", "", 5, ""), pod_of("lab/web-0", "", 6, "")].concat();
        rig.apply(&[node("gw-1", 9), node("w1", 1), objects.clone(), pods, by_name("In")].concat());
        let leaving = |rig: &Rig| ["shop/web-0", "lab/web-0"].map(|name| pod(rig, name).map(|pod| pod.egress));
        let by_out = || Some(vec!["out".to_string()]);
        assert_eq!(leaving(&rig), [by_out(), None], "{objects}");
        rig.apply(&by_name("NotIn"));
        assert_eq!(leaving(&rig), [None, by_out()], "{objects}");
        // An object that comes or goes changes nothing about it.
        for name in ["shop", "lab"] {
            rig.apply(&bare(name));
            assert_eq!(leaving(&rig), [None, by_out()], "{objects}");
            rig.delete(ObjectKind::Namespace, name);
            assert_eq!(leaving(&rig), [None, by_out()], "{objects}");
        }
    }
}

/// The same with an age and an identity.
fn aged(pod: String, created: &str, uid: &str) -> String {
    pod.replace("metadata: {", &format!("metadata: {{ creationTimestamp: \"{created}\", uid: \"{uid}\","))
}

/// Two that run claim an address: the newest has it, and the other one is not taken for it; not for policies, not for
/// egress, not by a StaticNat.
#[test]
fn an_address_of_two_pods_is_the_newest_ones() {
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z");
    let selected = policy("out", &format!("{BOTH}, podSelector: {{ matchLabels: {{ app: old }} }}"));
    let isolated = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: closed, namespace: shop }\n\
                    spec: { podSelector: { matchLabels: { app: new } } }\n---\n";
    let nat = "apiVersion: tidegate.io/v1alpha1\nkind: StaticNat\nmetadata: { name: door }\n\
               spec: { address: 192.0.2.99, pod: { namespace: shop, name: a-old } }\n---\n";
    let fixed = [node("gw-1", 9), node("w1", 1), selected, isolated.into()].concat();
    for (old, new) in [((early, "u-9"), (late, "u-1")), ((late, "u-1"), (late, "u-2")), (("", ""), (early, "u-1"))] {
        let pod_named = |name: &str, labels: &str, (created, uid): (&str, &str)| match created {
            "" => pod_of(name, labels, 5, ""),
            _ => aged(pod_of(name, labels, 5, ""), created, uid),
        };
        let (old, new) = (pod_named("shop/a-old", "app: old", old), pod_named("shop/b-new", "app: new", new));
        let mut rig = Rig::new();
        rig.apply(&(fixed.clone() + nat + &old));
        assert_eq!(pod(&rig, "shop/a-old").unwrap().egress, ["out"]);
        assert_eq!(static_nat(&rig, "door").unwrap().internal.to_string(), "10.244.1.5");
        assert!(rig.problems().is_empty(), "{:?}", rig.problems());
        rig.apply(&new);
        assert_eq!(pod(&rig, "shop/a-old"), None, "nobody leaves by its policy");
        let owner = pod(&rig, "shop/b-new").unwrap();
        assert!(owner.addresses.len() == 2 && owner.egress.is_empty() && owner.identity != 0, "{owner:?}");
        assert_eq!(static_nat(&rig, "door"), None);
        for address in ["10.244.1.5", "fd00:10:244:1::5"] {
            rig.expect_problem(&["Pod shop/a-old: ", &format!("is {address},"), "Pod shop/b-new, which is the newest"]);
        }
        rig.expect_problem(&["StaticNat door: leads nowhere", "10.244.1.5 of Pod shop/a-old is another one's too"]);
        // Whatever comes first.
        let mut other = Rig::new();
        other.apply(&new).apply(&old).apply(&(fixed.clone() + nat));
        assert_eq!(other.0.resources(), rig.0.resources());
        assert_eq!(other.problems(), rig.problems());
        // One address of the two.
        let of_v4 = new.replace(", { ip: \"fd00:10:244:1::5\" }", "");
        rig.apply(&of_v4);
        let rest: Vec<String> = pod(&rig, "shop/a-old").unwrap().addresses.iter().map(ToString::to_string).collect();
        assert_eq!(rest, ["fd00:10:244:1::5"]);
        assert_eq!(rig.problems().iter().filter(|problem| problem.contains("the newest")).count(), 1);
        // One that has ended, or has its node's addresses, claims none.
        rig.apply(&new.replace("status: {", "status: { phase: Failed,"));
        assert_eq!(pod(&rig, "shop/a-old").unwrap().addresses.len(), 2);
        assert!(rig.problems().is_empty(), "{:?}", rig.problems());
        rig.apply(&new);
        assert_eq!(pod(&rig, "shop/a-old"), None);
        rig.delete(ObjectKind::Pod, "shop/b-new");
        assert_eq!(pod(&rig, "shop/a-old").unwrap().egress, ["out"]);
        assert!(static_nat(&rig, "door").is_some() && rig.problems().is_empty(), "{:?}", rig.problems());
    }
}

/// A Node that comes later is no outside either, and costs no Pod anything.
#[test]
fn the_inside_grows_with_the_cluster() {
    let mut rig = Rig::new();
    rig.apply(&[node("gw-1", 9), policy("out", BOTH), pod_of("shop/web-0", "", 5, "")].concat());
    let version = rig.version(Kind::Pod, "shop/web-0");
    rig.apply(&node("w7", 7));
    assert!(egress(&rig, "out").unwrap().inside.iter().any(|inside| inside.to_string() == "10.244.7.0/24"));
    assert_eq!(rig.version(Kind::Pod, "shop/web-0"), version);
}

/// Several policies may select a Pod; the first by age, here by name, comes first.
#[test]
fn policies_of_a_pod_are_in_their_order() {
    let mut rig = Rig::new();
    let office = "destinations: [198.51.100.0/24], addresses: [192.0.2.11]";
    rig.apply(
        &[node("gw-1", 9), policy("b-rest", BOTH), policy("a-office", office), pod_of("shop/web-0", "", 5, "")]
            .concat(),
    );
    assert_eq!(pod(&rig, "shop/web-0").unwrap().egress, ["a-office", "b-rest"]);
}

/// N-111: a policy that has no address refuses its pods; they never leave some other way.
#[test]
fn without_an_address_nobody_gets_out_and_it_is_told() {
    let mut rig = Rig::new();
    rig.apply(&[node("gw-1", 9), policy("out", "addressPool: egress"), pod_of("shop/web-0", "", 5, "")].concat());
    rig.expect_problem(&["EgressPolicy out", "no AddressPool egress", "do not get out"]);
    assert_eq!(egress(&rig, "out").unwrap().addresses, [] as [std::net::IpAddr; 0]);
    assert_eq!(pod(&rig, "shop/web-0").unwrap().egress, ["out"]);
    let pool = "apiVersion: tidegate.io/v1alpha1\nkind: AddressPool\nmetadata: { name: egress }\n\
                spec: { addresses: [192.0.2.20-192.0.2.21, \"2001:db8::20\"], autoAssign: false }\n";
    rig.apply(pool);
    assert_eq!(egress(&rig, "out").unwrap().addresses.len(), 3);
    assert!(rig.problems().is_empty(), "{:?}", rig.problems());
    rig.delete(ObjectKind::AddressPool, "egress");
    assert!(egress(&rig, "out").unwrap().addresses.is_empty());
}

/// An address has one use: what Services have is left to them, and comes back when they go.
#[test]
fn addresses_of_services_are_left_to_them() {
    let mut rig = Rig::new();
    rig.apply(&[node("gw-1", 9), policy("out", BOTH), pod_of("shop/web-0", "", 5, "")].concat());
    rig.apply(&service("web", "loadBalancerIP: 192.0.2.10, ports: [{ port: 80 }]"));
    assert_eq!(egress(&rig, "out").unwrap().addresses, ["2001:db8::10".parse::<std::net::IpAddr>().unwrap()]);
    rig.expect_problem(&["EgressPolicy out", "192.0.2.10 belong to Services"]);
    rig.delete(ObjectKind::Service, "shop/web");
    assert_eq!(egress(&rig, "out").unwrap().addresses.len(), 2);
    assert!(rig.problems().is_empty(), "{:?}", rig.problems());
}

/// While one Pod goes and another comes, both claim an address: it is one's alone, and the other's afterwards.
#[test]
fn an_address_is_never_two_pods() {
    let mut rig = Rig::new();
    let claims = [pod_of("shop/a", "", 5, ""), pod_of("shop/b", "", 5, "")].concat();
    rig.apply(&[node("gw-1", 9), policy("out", BOTH), claims].concat());
    assert!(pod(&rig, "shop/a").is_some() && pod(&rig, "shop/b").is_none());
    rig.delete(ObjectKind::Pod, "shop/a");
    assert!(pod(&rig, "shop/a").is_none() && pod(&rig, "shop/b").is_some());
}

#[test]
fn a_static_nat_follows_its_pod() {
    let mut rig = Rig::new();
    let nat = |name: &str, spec: &str| {
        format!(
            "apiVersion: tidegate.io/v1alpha1\nkind: StaticNat\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n---\n"
        )
    };
    rig.apply(&[
        node("gw-1", 9),
        nat("door", "address: 192.0.2.30, pod: { namespace: shop, name: web-0 }"),
        nat("door6", "address: \"2001:db8::30\", pod: { namespace: shop, name: web-0 }, ports: [{ port: 80, targetPort: 8080 }]"),
        nat("fixed", "address: 192.0.2.31, internalAddress: 10.244.1.9"),
    ].concat());
    assert_eq!(static_nat(&rig, "door"), None);
    rig.expect_problem(&["StaticNat door", "no Pod shop/web-0"]);
    assert_eq!(static_nat(&rig, "fixed").unwrap().internal.to_string(), "10.244.1.9");
    rig.expect_problem(&["StaticNat fixed", "leads nowhere: no Pod has the address 10.244.1.9"]);
    rig.apply(
        &[("web-0", 5), ("web-9", 9), ("other", 7)]
            .map(|(name, n)| pod_of(&format!("shop/{name}"), "", n, ""))
            .concat(),
    );
    assert_eq!(static_nat(&rig, "door").unwrap().internal.to_string(), "10.244.1.5");
    // The dataplane knows the pods that they lead to, also under no policy at all, and no other.
    let known =
        |rig: &Rig| ["web-0", "web-9", "other"].map(|name| pod(rig, &format!("shop/{name}")).map(|pod| pod.egress));
    assert_eq!(known(&rig), [Some(vec![]), Some(vec![]), None]);
    rig.apply(&nat("fixed", "address: 192.0.2.31, internalAddress: \"10.244.1.7\""));
    assert_eq!(known(&rig), [Some(vec![]), None, Some(vec![])]);
    rig.apply(&nat("fixed", "address: 192.0.2.31, pod: { namespace: shop, name: web-9 }"));
    assert_eq!(known(&rig), [Some(vec![]), Some(vec![]), None]);
    rig.delete(ObjectKind::StaticNat, "fixed");
    assert_eq!(known(&rig), [Some(vec![]), None, None]);
    rig.apply(&nat("fixed", "address: 192.0.2.31, internalAddress: 10.244.1.9"));
    let door6 = static_nat(&rig, "door6").unwrap();
    assert_eq!((door6.internal.to_string().as_str(), door6.ports[0].internal), ("fd00:10:244:1::5", 8080));
    assert!(rig.problems().is_empty(), "{:?}", rig.problems());
    rig.apply(&pod_of("shop/web-0", "", 6, ""));
    assert_eq!(static_nat(&rig, "door").unwrap().internal.to_string(), "10.244.1.6");
    rig.delete(ObjectKind::Pod, "shop/web-0");
    assert_eq!(static_nat(&rig, "door"), None);
    rig.delete(ObjectKind::Pod, "shop/web-9");
    rig.expect_problem(&["StaticNat fixed", "leads nowhere"]);
    // No ports are not all ports.
    rig.apply(&nat("shut", "address: 192.0.2.32, pod: { namespace: shop, name: web-0 }, ports: []"));
    rig.expect_problem(&["StaticNat shut", "spec.ports", "leave it out"]);
    assert_eq!(static_nat(&rig, "shut"), None);
}

/// A pool that grows beyond what a policy can have costs it no address.
#[test]
fn a_pool_that_grows_too_large_leaves_what_was_had() {
    let mut rig = Rig::new();
    let pool = |ranges: &str| {
        format!(
            "apiVersion: tidegate.io/v1alpha1\nkind: AddressPool\nmetadata: {{ name: egress }}\n\
             spec: {{ addresses: [{ranges}], autoAssign: false }}\n"
        )
    };
    let small = pool("192.0.2.20-192.0.2.21, \"2001:db8::20\"");
    rig.apply(&[node("gw-1", 9), policy("out", "addressPool: egress"), pod_of("shop/web-0", "", 5, "")].concat());
    rig.apply(&small);
    let before = egress(&rig, "out").unwrap().addresses;
    assert_eq!(before.len(), 3);
    for large in ["192.0.2.0-192.0.3.255, \"2001:db8::20\"", "192.0.2.20-192.0.2.21, \"2001:db8::/64\""] {
        rig.apply(&pool(large));
        rig.expect_problem(&["EgressPolicy out", "over 256 addresses of a family", "stay in use"]);
        assert_eq!(egress(&rig, "out").unwrap().addresses, before, "{large}");
    }
    rig.apply(&small);
    assert!(rig.problems().is_empty(), "{:?}", rig.problems());
    assert_eq!(egress(&rig, "out").unwrap().addresses, before);
}

/// What is wrong with one object is told of that object and costs no other anything.
#[test]
fn bad_objects_are_told_with_their_field() {
    let mut rig = Rig::new();
    rig.apply(
        &[
            node("gw-1", 9),
            policy("good", BOTH),
            policy("bad", "addresses: [192.0.2.300]"),
            pod_of("shop/web-0", "", 5, ""),
        ]
        .concat(),
    );
    rig.expect_problem(&["EgressPolicy bad", "spec.addresses[0]"]);
    assert!(egress(&rig, "bad").is_none() && egress(&rig, "good").is_some());
    // Whom it selects can be read, and they are its: nobody knows what for (N-111).
    assert_eq!(pod(&rig, "shop/web-0").unwrap().egress, ["bad", "good"]);
    // The last good version stays in force.
    rig.apply(&policy("good", "addresses: []"));
    rig.expect_problem(&["EgressPolicy good", "exactly one of addressPool and addresses"]);
    assert_eq!(egress(&rig, "good").unwrap().addresses.len(), 2);
}

/// A number that is too large is told with its field and what may stand there, whatever its size; what was good stays.
#[test]
fn numbers_out_of_range_leave_what_was_good() {
    let nat = |name: &str, ports: &str| {
        format!(
            "apiVersion: tidegate.io/v1alpha1\nkind: StaticNat\nmetadata: {{ name: {name} }}\n\
             spec: {{ address: \"2001:db8::30\", internalAddress: \"fd00:10:244:1::5\", ports: [{{ {ports} }}] }}\n---\n"
        )
    };
    let pool = |priority: &str| {
        format!(
            "apiVersion: tidegate.io/v1alpha1\nkind: AddressPool\nmetadata: {{ name: office }}\n\
             spec: {{ addresses: [192.0.2.32/30], autoAssign: false, serviceAllocation: {{ priority: {priority} }} }}\n---\n"
        )
    };
    let mut rig = Rig::new();
    let limited = |limits: &str| policy("out", &format!("{BOTH}, limits: {{ {limits} }}"));
    let pooled = policy("pooled", "addressPool: office");
    let good = [pooled, limited("portsPerPod: 64512"), nat("door", "port: 80, targetPort: 8080"), pool("7")].concat();
    rig.apply(&[node("gw-1", 9), pod_of("shop/web-0", "", 5, ""), good.clone()].concat());
    assert!(rig.problems().is_empty(), "{:?}", rig.problems());
    let all =
        |rig: &Rig| (egress(rig, "out").unwrap(), egress(rig, "pooled").unwrap(), static_nat(rig, "door").unwrap());
    let before = all(&rig);
    assert_eq!(before.1.addresses.len(), 4);
    let huge = "100000000000000000000";
    for number in ["70000", "1000000000000", huge, "-1"] {
        for (object, of, field, range) in [
            (limited(&format!("portsPerPod: {number}")), "EgressPolicy out", "limits.portsPerPod", "1 to 64512"),
            (
                limited(&format!("portsPerPod: 9, portsPerNamespace: {number}00")),
                "EgressPolicy out",
                "limits.portsPerNamespace",
                "1 to 1048576",
            ),
            (
                policy("out", &format!("{BOTH}, udpTimeouts: [{{ port: {number}, seconds: 9 }}]")),
                "EgressPolicy out",
                "udpTimeouts[0].port",
                "1 to 65535",
            ),
            (
                policy("out", &format!("{BOTH}, udpTimeouts: [{{ port: 53, seconds: {number}0 }}]")),
                "EgressPolicy out",
                "udpTimeouts[0].seconds",
                "1 to 86400",
            ),
            (nat("door", &format!("port: {number}")), "StaticNat door", "ports[0].port", "1 to 65535"),
            (
                nat("door", &format!("port: 80, targetPort: {number}")),
                "StaticNat door",
                "ports[0].targetPort",
                "1 to 65535",
            ),
            (pool(&format!("{number}000000")), "AddressPool office", "serviceAllocation.priority", ""),
        ] {
            rig.apply(&object);
            rig.expect_problem(&[of, &format!("spec.{field}: "), range]);
            let told = rig.problems().join(" ");
            assert!(!["u32", "i32", "invalid value"].iter().any(|word| told.contains(word)), "{told}");
            assert_eq!(all(&rig), before, "{object}");
            rig.apply(&good);
            assert!(rig.problems().is_empty(), "{:?}", rig.problems());
        }
    }
}
