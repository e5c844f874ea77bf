//! What people get wrong in manifests, and what they are told.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use rig::{Rig, node, service, slice};
use tidegate_control::problem::Severity;
use tidegate_control::source::ObjectKind;
use tidegate_control::source::manifest;
use tidegate_control::watch::Dialect;

const VIPS: &str = "externalIPs: [], loadBalancerIP: 203.0.113.1";

/// A Service on port 80 with the fields of one port changed.
fn web(port: &str) -> String {
    service("web", &format!("{VIPS}, ports: [{{ {port} }}]"))
}

#[test]
fn a_field_that_does_not_exist_is_told_and_the_object_is_served_all_the_same() {
    let mut rig = Rig::new();
    rig.apply(&(node("gw-1", 9) + &web("port: 80, prottocol: UDP")));
    rig.expect_problem(&[
        "test.yaml document 2 (line ",
        "Service shop/web: spec.ports[0].prottocol: is no field of kind",
    ]);
    let problems = rig.0.problems();
    assert!(problems.iter().all(|p| (p.severity, p.reason) == (Severity::Warning, "UnknownField")), "{problems:?}");
    assert_eq!(rig.service("shop/web").ports[0].protocol.to_string(), "TCP");
    rig.apply(&web("port: 80, protocol: UDP"));
    assert!(rig.problems().is_empty(), "{:?}", rig.problems());
}

#[test]
fn unknown_fields_of_every_kind_and_depth_are_found() {
    for (yaml, field) in [
        (web("port: 80").replace("metadata: {", "metadata: { nmae: x,"), "Service shop/web: metadata.nmae:"),
        (web("port: 80").replace("spec:", "sepc:"), "Service shop/web: sepc:"),
        // Not one of ours for the very reason of the slip.
        (web("port: 80").replace(" type:", " tpye:"), "Service shop/web: spec.tpye:"),
        (
            slice("web-x", "web", "IPv4", "{ port: 80 }", "{ addresses: [10.244.1.5], conditions: { raedy: false } }"),
            "EndpointSlice shop/web-x: endpoints[0].conditions.raedy:",
        ),
        (node("w1", 1).replace("podCIDRs:", "podCIDR: 10.244.1.0/24, podCidrs:"), "Node w1: spec.podCidrs:"),
    ] {
        let mut rig = Rig::new();
        rig.apply(&yaml);
        rig.expect_problem(&[field, "nobody looks at it"]);
    }
    // An error beside it does not hide the slip that may have caused it.
    let mut rig = Rig::new();
    rig.apply(&web("prot: 80"));
    rig.expect_problem(&["spec.ports[0].prot:", "is no field"]);
    rig.expect_problem(&["spec.ports[0].port:", "0 is not a port number"]);
    rig.delete(ObjectKind::Service, "shop/web");
    assert!(!rig.problems().iter().any(|problem| problem.contains("prot")), "{:?}", rig.problems());
}

#[test]
fn what_an_api_server_has_stored_is_not_searched_for_slips() {
    let mut rig = Rig::with(Dialect::Cluster, "");
    rig.apply(
        &(node("gw-1", 9) + &web("port: 80, newerThanWe: true").replace("spec: {", "spec: { clusterIP: 10.96.0.1,")),
    );
    assert!(rig.problems().is_empty(), "{:?}", rig.problems());
}

#[test]
fn many_slips_make_a_bounded_list() {
    let mut rig = Rig::new();
    let fields: Vec<String> = (0..30).map(|n| format!("x{n}: 1")).collect();
    let many = |n: usize| service(&format!("s{n:03}"), &fields.join(", "));
    rig.apply(&(node("gw-1", 9) + &(0..150).map(many).collect::<String>()));
    let problems = rig.problems();
    let told = problems.iter().filter(|problem| problem.contains("is no field")).count();
    assert_eq!(told, 100 * 8);
    rig.expect_problem(&["Service shop/s000: spec.x15:", "nor at 22 more fields"]);
    rig.expect_problem(&["50 more objects have fields that nobody looks at"]);
}

#[test]
fn a_kind_that_is_almost_one_of_ours_is_a_warning_and_somebody_else_s_is_not() {
    for (types, warned) in [
        ("apiVersion: v1\nkind: service", Some("apiVersion: v1, kind: Service")),
        ("apiVersion: v2\nkind: Service", Some("apiVersion: v1, kind: Service")),
        ("apiVersion: V1\nkind: Node", Some("apiVersion: v1, kind: Node")),
        ("apiVersion: v1\nkind: EndpointSlice", Some("apiVersion: discovery.k8s.io/v1, kind: EndpointSlice")),
        ("apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice", Some("apiVersion: discovery.k8s.io/v1,")),
        ("apiVersion: serving.knative.dev/v1\nkind: Service", None),
        ("apiVersion: v1\nkind: ConfigMap", None),
    ] {
        let content = manifest::parse("a.yaml", &format!("{types}\nmetadata: {{ name: web }}\n")).unwrap();
        assert!(content.manifests.is_empty());
        assert_eq!(content.unknown.len(), usize::from(warned.is_none()), "{types}");
        let told: Vec<String> = content.nameless.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), usize::from(warned.is_some()), "{types}: {told:?}");
        if let Some(words) = warned {
            assert_eq!((content.nameless[0].severity, content.nameless[0].reason), (Severity::Warning, "MisspeltKind"));
            assert!(told[0].starts_with("a.yaml document 1 (line 1)") && told[0].contains(words), "{told:?}");
        }
    }
}

#[test]
fn a_number_that_is_none_is_told_in_plain_words() {
    let mut rig = Rig::new();
    rig.apply(&web("port: eighty"));
    rig.expect_problem(&["spec.ports[0].port:", "\"eighty\"", "expected a whole number"]);
    assert!(!rig.problems().iter().any(|problem| problem.contains("i32")), "{:?}", rig.problems());
}
