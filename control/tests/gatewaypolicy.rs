//! GatewayPolicies and the Services they speak of → rules by name.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use rig::{Rig, endpoints, node, service, service_with, slice};
use tidegate_api::resource::{Body, GatewayAction, GatewayPolicy, Kind, PolicyOptions, UnknownPod};
use tidegate_control::source::ObjectKind;
use tidegate_control::watch::Dialect;

fn gate(rig: &Rig, name: &str) -> Option<GatewayPolicy> {
    match rig.body(Kind::GatewayPolicy, name)? {
        Body::GatewayPolicy(policy) => Some(policy.clone()),
        other => panic!("{other:?}"),
    }
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: tidegate.io/v1alpha1\nkind: GatewayPolicy\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n---\n"
    )
}

const WEB: &str = "loadBalancerIP: 203.0.113.5, ports: [{ port: 80 }]";

/// Names of the Services of the one rule.
fn meant(rig: &Rig, name: &str) -> Option<Vec<String>> {
    gate(rig, name).unwrap().rules[0].services.clone()
}

#[test]
fn a_policy_becomes_rules_and_goes_with_its_object() {
    let mut rig = Rig::new();
    let spec =
        "order: 7, rules: [{ name: office, action: Allow, clients: [{ cidr: 198.51.100.0/24 }] }, { action: Deny }]";
    rig.apply(&[node("gw-1", 9), policy("doors", spec)].concat());
    let doors = gate(&rig, "doors").unwrap();
    assert_eq!((doors.order, doors.audit, doors.rules.len()), (7, false, 2));
    assert_eq!((doors.rules[0].name.as_str(), doors.rules[1].action), ("office", GatewayAction::Deny));
    assert_eq!(meant(&rig, "doors"), None);
    assert!(rig.problems().is_empty(), "{:?}", rig.problems());
    rig.apply(&policy("doors", "mode: Audit, rules: [{ action: Deny }]"));
    assert!(gate(&rig, "doors").unwrap().audit);
    rig.delete(ObjectKind::GatewayPolicy, "doors");
    assert_eq!(gate(&rig, "doors"), None);
}

#[test]
fn services_are_chosen_by_name_and_by_labels() {
    let mut rig = Rig::new();
    let one = "rules: [{ action: Deny, services: [{ namespace: shop, name: web }] }]";
    let labelled = "rules: [{ action: Deny, services: [{ selector: { matchLabels: { tier: front } } }] }]";
    let all = "rules: [{ action: Deny, services: [{ namespace: shop }] }]";
    rig.apply(&[node("gw-1", 9), policy("one", one), policy("front", labelled), policy("all", all)].concat());
    // Known by its name before it is there; by labels when it is.
    assert_eq!(meant(&rig, "one").unwrap(), ["shop/web"]);
    assert_eq!((meant(&rig, "front").unwrap().len(), meant(&rig, "all").unwrap().len()), (0, 0));
    rig.apply(&(service_with("web", "labels: { tier: front }", WEB) + &service("api", WEB)));
    assert_eq!(meant(&rig, "front").unwrap(), ["shop/web"]);
    assert_eq!(meant(&rig, "all").unwrap(), ["shop/api", "shop/web"]);
    // What does not change who is meant sends nothing.
    let version = rig.version(Kind::GatewayPolicy, "all");
    rig.apply(&slice("web-1", "web", "IPv4", "{ port: 8080 }", &endpoints(&["10.244.1.5"])));
    rig.apply(&service_with("api", "labels: { tier: front }", WEB));
    assert_eq!(meant(&rig, "front").unwrap(), ["shop/api", "shop/web"]);
    assert_eq!(rig.version(Kind::GatewayPolicy, "all"), version);
    rig.delete(ObjectKind::Service, "shop/web");
    assert_eq!(meant(&rig, "front").unwrap(), ["shop/api"]);
    assert_eq!(meant(&rig, "one").unwrap(), ["shop/web"]);
}

#[test]
fn what_cannot_be_read_leaves_the_last_good_version() {
    let mut rig = Rig::new();
    rig.apply(&[node("gw-1", 9), policy("doors", "order: 7, rules: [{ action: Deny }]")].concat());
    rig.apply(&policy("doors", "order: 70000, rules: [{ action: Deny }]"));
    rig.expect_problem(&["GatewayPolicy doors", "spec.order", "the last good version stays in use"]);
    assert_eq!(gate(&rig, "doors").unwrap().order, 7);
    rig.apply(&policy("other", "rules: [{ action: Deny, clients: [{ cidr: ten }] }]"));
    rig.expect_problem(&["GatewayPolicy other", "spec.rules[0].clients[0].cidr", "deny what they may mean"]);
    assert_eq!(gate(&rig, "other").map(|policy| policy.rules.len()), Some(1), "a rule that denies does not vanish");
    rig.apply(&policy("typo", "ordre: 5, rules: [{ action: Deny }]"));
    rig.expect_problem(&["GatewayPolicy typo", "spec.ordre", "is no field"]);
}

#[test]
fn options_for_policies_go_to_the_gateway() {
    let mut rig = Rig::new();
    rig.apply(&node("gw-1", 9));
    assert!(rig.gateway().unwrap().policy.is_default());
    let extra = "  policy: { sticky: true, unknownPod: deny }\n";
    let mut rig = Rig::with(Dialect::Files, extra);
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: { name: web-0, namespace: shop }\nspec: { nodeName: w1 }\n\
               status: { podIPs: [{ ip: 10.244.1.5 }, { ip: \"fd00:10:244:1::5\" }] }\n---\n";
    rig.apply(&(node("gw-1", 9) + pod));
    assert_eq!(rig.gateway().unwrap().policy, PolicyOptions { sticky: true, unknown_pod: UnknownPod::Deny });
    // P-034: all are told, so that the others are unknown.
    assert!(matches!(rig.body(Kind::Pod, "shop/web-0"), Some(Body::Pod(pod)) if pod.identity == 0));
}

/// The example of the page says what the page says of it.
#[test]
fn the_example_of_the_page_is_taken() {
    let page = include_str!("../../docs/policy.md");
    let example = page.split("```yaml\n").find(|part| part.starts_with("apiVersion: tidegate.io")).unwrap();
    let example = example.split("```").next().unwrap();
    let mut rig = Rig::new();
    rig.apply(&(node("gw-1", 9) + example));
    assert!(rig.problems().is_empty(), "{:?}", rig.problems());
    let policy = gate(&rig, "office-and-world").unwrap();
    assert_eq!((policy.order, policy.rules.len()), (100, 4));
    assert!(matches!(policy.rules[3].action, GatewayAction::Limit(limits) if limits.half_open_max == Some(50)));
}
