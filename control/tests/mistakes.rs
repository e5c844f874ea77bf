//! What people get wrong in manifests, and what they are told.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use rig::{Rig, endpoints, node, node_with, service, slice};
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
        ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolcy", Some("kind: NetworkPolicy")),
        ("apiVersion: networking.k8s.oi/v1\nkind: NetworkPolicy", Some("apiVersion: networking.k8s.io/v1,")),
        ("apiVersion: serving.knative.dev/v1\nkind: Service", None),
        ("apiVersion: v1\nkind: ConfigMap", None),
    ] {
        let content = manifest::parse("a.yaml", &format!("{types}\nmetadata: {{ name: web }}\n")).unwrap();
        assert!(content.manifests.is_empty());
        assert_eq!(content.strangers.len(), usize::from(warned.is_none()), "{types}");
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

/// A Service of both families on TCP 80 by the name `http`.
fn dual() -> String {
    let spec = "ports: [{ name: http, port: 80 }]";
    service("web", spec).replace(
        "namespace: shop,",
        "namespace: shop, annotations: { tidegate.io/addresses: \"203.0.113.1, 2001:db8:f::1\" },",
    )
}

const HTTP: &str = "{ name: http, port: 8080 }";

#[test]
fn a_service_without_endpoints_says_what_was_looked_for_and_what_there_is() {
    let v4 = |ports: &str, list: &[&str]| slice("web-4", "web", "IPv4", ports, &endpoints(list));
    let v6 = |list: &[&str]| slice("web-6", "web", "IPv6", HTTP, &endpoints(list));
    for (slices, reason, words) in [
        (String::new(), "NoSlice", "no EndpointSlice in namespace shop has the label kubernetes.io/service-name: web;"),
        (slice("x", "wbe", "IPv4", HTTP, &endpoints(&["10.244.1.5"])), "NoSlice", "kubernetes.io/service-name: web;"),
        (
            v4("{ name: web, port: 8080 }, { name: dns, port: 53, protocol: UDP }", &["10.244.1.5"])
                + &v6(&[]).replace("name: http", "name: web"),
            "NoMatchingPort",
            "port http (80/TCP): no EndpointSlice of the Service has a TCP port named \"http\"; there are: \"dns\" 53/UDP, \"web\" 8080/TCP",
        ),
        (v4("{ name: http }", &["10.244.1.5"]), "NoMatchingPort", "they have no port with a number"),
        (v4("{ name: http, port: 8080, protocol: UDP }", &["10.244.1.5"]), "NoMatchingPort", "\"http\" 8080/UDP"),
        (
            v4(HTTP, &["10.244.1.5=s", "10.244.1.6="]) + &v6(&["fd00::5=s"]),
            "NoReadyEndpoint",
            "port http (80/TCP): none of its 3 endpoints is ready",
        ),
        (
            v4(HTTP, &["10.244.1.5"]),
            "NoReadyEndpoint",
            "port http (80/TCP): the EndpointSlices of the Service list no IPv6 endpoint",
        ),
        (v4(HTTP, &["10.244.1.5"]) + &v6(&["fd00::5=s"]), "NoReadyEndpoint", "its only IPv6 endpoint is not ready"),
        (v4(HTTP, &[]), "NoReadyEndpoint", "port http (80/TCP): the EndpointSlices of the Service list no endpoint"),
    ] {
        let mut rig = Rig::new();
        rig.apply(&(dual() + &slices));
        let (found, message) = rig.note("shop/web", "EndpointsFound").unwrap_or_else(|| panic!("{slices}"));
        assert_eq!(found, reason, "{message}");
        assert!(message.contains(words), "{message}");
        // With one ready endpoint of each family it is gone; S-043: so it is with one that still serves.
        let good = |how: &str| v4(HTTP, &[&format!("10.244.1.5={how}")]) + &v6(&[&format!("fd00::5={how}")]);
        rig.apply(&good("rs"));
        assert_eq!(rig.note("shop/web", "EndpointsFound"), None);
        rig.apply(&good("st"));
        assert_eq!(rig.note("shop/web", "EndpointsFound"), None);
    }
}

#[test]
fn an_endpoint_that_was_set_to_weight_0_is_found() {
    let mut rig = Rig::new();
    let weights = dual().replace("annotations: {", "annotations: { tidegate.io/weights: \"10.244.1.5=0\",");
    let slices = slice("web-4", "web", "IPv4", HTTP, &endpoints(&["10.244.1.5"]))
        + &slice("web-6", "web", "IPv6", HTTP, &endpoints(&["fd00::5"]));
    rig.apply(&(weights + &slices));
    assert_eq!(rig.backends("shop/web", 80), ["10.244.1.5:8080*0", "[fd00::5]:8080*1"]);
    assert_eq!(rig.note("shop/web", "EndpointsFound"), None);
}

#[test]
fn every_port_of_a_service_is_looked_at() {
    let mut rig = Rig::new();
    let spec = format!("{VIPS}, ports: [{{ name: http, port: 80 }}, {{ name: dns, port: 53, protocol: UDP }}]");
    rig.apply(&(service("web", &spec) + &slice("web-4", "web", "IPv4", HTTP, &endpoints(&["10.244.1.5"]))));
    let (reason, message) = rig.note("shop/web", "EndpointsFound").unwrap();
    assert_eq!(reason, "NoMatchingPort");
    assert!(message.contains("port dns (53/UDP)") && !message.contains("port http"), "{message}");
}

/// An endpoint of each family on node `name`, addressed as the pods of node `n` are.
fn on(name: &str, n: u8) -> String {
    let one = |address: &str| format!("{{ addresses: [\"{address}\"], nodeName: {name} }}");
    slice("web-4", "web", "IPv4", HTTP, &one(&format!("10.244.{n}.5")))
        + &slice("web-6", "web", "IPv6", HTTP, &one(&format!("fd00:10:244:{n}::5")))
}

#[test]
fn endpoints_without_a_node_that_no_tunnel_covers_are_told() {
    let mut rig = Rig::new();
    let at = |v4: &str, v6: &str| {
        slice("web-4", "web", "IPv4", HTTP, &format!("{{ addresses: [\"{v4}\"] }}"))
            + &slice("web-6", "web", "IPv6", HTTP, &format!("{{ addresses: [\"{v6}\"] }}"))
    };
    rig.apply(&(node("gw-1", 9) + &node("w1", 1) + &dual() + &at("192.0.2.55", "2001:db8:55::5")));
    let told = |rig: &Rig| rig.note("shop/web", "BackendsReachable").map(|(reason, words)| (reason, words.to_string()));
    let (reason, words) = told(&rig).unwrap();
    assert_eq!(reason, "NotInOverlay");
    let cidrs = |numbers: &[u8]| {
        let v4 = numbers.iter().map(|n| format!("10.244.{n}.0/24"));
        v4.chain(numbers.iter().map(|n| format!("fd00:10:244:{n}::/64"))).collect::<Vec<_>>().join(", ")
    };
    let lost = |numbers: &[u8]| {
        let known = cidrs(numbers);
        format!("no node (192.0.2.55, 2001:db8:55::5: in no pod CIDR of the overlay, which has {known})")
    };
    assert!(words.contains(&lost(&[1, 9])), "{words}");
    // What is known of the overlay is what is told, also when that changes.
    rig.apply(&node("w2", 2));
    assert!(told(&rig).unwrap().1.contains(&lost(&[1, 2, 9])), "{:?}", told(&rig));
    rig.delete(ObjectKind::Node, "w2");
    assert!(told(&rig).unwrap().1.contains(&lost(&[1, 9])), "{:?}", told(&rig));
    rig.apply(&at("10.244.1.5", "fd00:10:244:1::5"));
    assert_eq!(told(&rig), None, "behind w1");
    rig.apply(&at("10.244.9.5", "fd00:10:244:9::5"));
    assert_eq!(told(&rig), None, "our own pods");
    rig.delete(ObjectKind::Node, "w1");
    rig.apply(&at("10.244.1.5", "fd00:10:244:1::5"));
    assert!(told(&rig).is_some());
}

#[test]
fn endpoints_outside_the_pod_cidrs_of_their_node_are_told_with_these() {
    let mut rig = Rig::new();
    let on_w1 = |v4: &str, v6: &str| {
        slice("web-4", "web", "IPv4", HTTP, &format!("{{ addresses: [\"{v4}\"], nodeName: w1 }}"))
            + &slice("web-6", "web", "IPv6", HTTP, &format!("{{ addresses: [\"{v6}\"], nodeName: w1 }}"))
    };
    rig.apply(&(node("gw-1", 9) + &node("w1", 1) + &dual() + &on_w1("10.99.1.5", "fd00:99::5")));
    let told = |rig: &Rig| rig.note("shop/web", "BackendsReachable").map(|(reason, words)| (reason, words.to_string()));
    let (reason, words) = told(&rig).unwrap();
    assert_eq!(reason, "NotInOverlay");
    let why = "w1 (10.99.1.5, fd00:99::5: neither an address of that Node nor in its pod CIDRs, which are 10.244.1.0/24, \
               fd00:10:244:1::/64)";
    assert!(words.contains(why), "{words}");
    rig.apply(&on_w1("10.244.1.5", "fd00:99::5"));
    assert!(told(&rig).unwrap().1.contains("w1 (fd00:99::5: neither"), "{:?}", told(&rig));
    rig.apply(&on_w1("198.51.100.1", "2001:db8:2::1"));
    assert_eq!(told(&rig), None, "the Node's own addresses");
    rig.apply(&on_w1("10.244.9.5", "fd00:10:244:1::5"));
    assert_eq!(told(&rig), None, "our own pods and that Node's");
}

#[test]
fn pools_in_a_directory_are_told_to_do_nothing() {
    let mut rig = Rig::new();
    let pool = "apiVersion: tidegate.io/v1alpha1\nkind: AddressPool\nmetadata: { name: edge }\nspec: { addresses: [203.0.113.0/24] }\n---\n";
    rig.apply(&(node("gw-1", 9) + pool));
    let problems = rig.0.problems();
    let told = problems.iter().find(|problem| problem.reason == "PoolWithoutCluster").unwrap();
    assert!(told.message.contains("edge") && told.message.contains("tidegate.io/addresses"), "{told}");
    rig.delete(ObjectKind::AddressPool, "edge");
    assert!(rig.0.problems().iter().all(|problem| problem.reason != "PoolWithoutCluster"));
}

#[test]
fn endpoints_on_a_node_that_is_no_peer_are_told_until_it_is_one() {
    let mut rig = Rig::new();
    rig.apply(&(node("gw-1", 9) + &node("w1", 1) + &dual() + &on("w2", 2)));
    let told = |rig: &Rig| rig.note("shop/web", "BackendsReachable").map(|(reason, words)| (reason, words.to_string()));
    let (reason, words) = told(&rig).unwrap();
    assert_eq!(reason, "NotInOverlay");
    assert!(words.contains("w2 (10.244.2.5, fd00:10:244:2::5: there is no Node of that name)"), "{words}");
    rig.apply(&node("w2", 2));
    assert_eq!(told(&rig), None, "it has become a peer");
    rig.apply(&node_with("w2", "podCIDR: 10.244.2.0/24", &[]));
    assert!(told(&rig).unwrap().1.contains("kube-subnet-manager is not \"true\""), "{:?}", told(&rig));
    rig.delete(ObjectKind::Node, "w2");
    assert!(told(&rig).unwrap().1.contains("no Node of that name"), "{:?}", told(&rig));
    // By its address it is behind w1, whatever it says.
    rig.apply(&on("w2", 1));
    assert_eq!(told(&rig), None);
    rig.delete(ObjectKind::Node, "w1");
    assert!(told(&rig).is_some());
}

#[test]
fn a_family_without_a_tunnel_is_told_alone_and_what_is_not_known_is_not_told() {
    let mut rig = Rig::new();
    let v4_only = node("w2", 2).replace("backend-v6-data", "backend-v6-dta");
    rig.apply(&(v4_only + &dual() + &on("w2", 2)));
    let (_, words) = rig.note("shop/web", "BackendsReachable").unwrap();
    assert!(words.contains("w2 (fd00:10:244:2::5: annotation") && !words.contains("10.244.2.5"), "{words}");
    // In the network of the node itself, by name or not, and on this gateway: the kernel may know.
    let mut rig = Rig::new();
    let host = "{ addresses: [198.51.100.2], nodeName: w2 }, { addresses: [198.51.100.2] }, { addresses: [10.244.9.7], nodeName: gw-1 }";
    rig.apply(&(node("gw-1", 9) + &node("w2", 2) + &dual() + &slice("web-4", "web", "IPv4", HTTP, host)));
    assert_eq!(rig.note("shop/web", "BackendsReachable"), None);
}
