//! Services and EndpointSlices → resources, row by row.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use rig::{Rig, endpoints, service, service_with, slice};
use tidegate_api::resource::{DeliveryMode, Kind, Protocol};
use tidegate_control::source::ObjectKind;
use tidegate_control::watch::Dialect;

const HTTP: &str = "{ name: http, port: 80 }";
const HTTP_8080: &str = "{ name: http, port: 8080, protocol: TCP }";
const BOTH: &str = "loadBalancerIP: \"\", clusterIP: 10.96.0.10";

fn annotated(addresses: &str) -> String {
    format!("annotations: {{ tidegate.io/addresses: \"{addresses}\" }}")
}

/// A dual-stack Service on one HTTP port.
fn web() -> String {
    service_with("web", &annotated("203.0.113.10,2001:db8:f::10"), &format!("{BOTH}, ports: [{HTTP}]"))
}

fn both(service: &str, v4: &[&str], v6: &[&str]) -> String {
    slice(&format!("{service}-4"), service, "IPv4", HTTP_8080, &endpoints(v4))
        + &slice(&format!("{service}-6"), service, "IPv6", HTTP_8080, &endpoints(v6))
}

#[test]
fn both_families_of_a_service_reach_their_own_endpoints() {
    // S-010, S-121
    let mut rig = Rig::new();
    rig.apply(&(web() + &both("web", &["10.244.1.5", "10.244.2.5"], &["fd00:10:244:1::5"])));
    let web = rig.service("shop/web");
    assert_eq!(web.addresses, ["203.0.113.10".parse::<std::net::IpAddr>().unwrap(), "2001:db8:f::10".parse().unwrap()]);
    assert_eq!((web.ports.len(), web.ports[0].mode), (1, DeliveryMode::Fullnat));
    assert_eq!(rig.backends("shop/web", 80), ["10.244.1.5:8080*1", "10.244.2.5:8080*1", "[fd00:10:244:1::5]:8080*1"]);
    assert!(rig.notes("shop/web").is_empty(), "{:?}", rig.notes("shop/web"));
}

#[test]
fn which_services_are_served() {
    let ip = "loadBalancerIP: 203.0.113.1";
    for (id, metadata, spec, served) in [
        ("S-001 no class", "", "clusterIP: 10.96.0.1", true),
        ("S-001 another class", "", "clusterIP: 10.96.0.1, loadBalancerClass: other/lb", false),
        ("S-003 proxy name", "labels: { service.kubernetes.io/service-proxy-name: x }", "clusterIP: 10.96.0.1", false),
        (
            "S-003 proxy name, empty",
            "labels: { service.kubernetes.io/service-proxy-name: \"\" }",
            "clusterIP: 10.96.0.1",
            false,
        ),
        ("S-003 headless", "labels: { service.kubernetes.io/headless: \"\" }", "clusterIP: 10.96.0.1", false),
        ("S-004 None", "", "clusterIP: None", false),
        ("S-004 empty", "", "clusterIP: \"\"", false),
        ("S-004 IPv6", "", "clusterIP: \"fd00::1\"", true),
        ("written by hand", "", "sessionAffinity: None", true),
    ] {
        let mut rig = Rig::new();
        rig.apply(&service_with("a", metadata, &format!("{spec}, {ip}, ports: [{HTTP}]")));
        assert_eq!(rig.find_service("shop/a").is_some(), served, "{id}");
        assert!(
            served || rig.problems().iter().all(|problem| !problem.contains("shop/a")),
            "{id}: none of our business"
        );
    }
    for kind in ["ClusterIP", "NodePort", "ExternalName"] {
        // S-001, S-004; a port that would be invalid is none of our business there.
        let mut rig = Rig::new();
        let text = service("a", &format!("{ip}, ports: [{{ port: 0 }}]")).replace("LoadBalancer", kind);
        rig.apply(&text);
        assert!(rig.find_service("shop/a").is_none(), "{kind}");
        assert!(rig.problems().iter().all(|problem| !problem.contains("shop/a")), "{kind}");
    }
}

#[test]
fn the_configured_class_is_served_and_only_that() {
    // S-001
    let mut rig = Rig::with(Dialect::Files, "  loadBalancerClass: tidegate.io/lb\n");
    let spec = |class: &str| format!("{class} loadBalancerIP: 203.0.113.1, ports: [{HTTP}]");
    rig.apply(&(service("a", &spec("loadBalancerClass: tidegate.io/lb,")) + &service("b", &spec(""))));
    assert!(rig.find_service("shop/a").is_some());
    assert!(rig.find_service("shop/b").is_none());
}

#[test]
fn a_label_or_type_that_comes_and_goes_takes_the_service_along() {
    // S-003, S-029, T-022 (the same VIP through a change of ports)
    let mut rig = Rig::new();
    let spec = |port: u16| format!("loadBalancerIP: 203.0.113.1, ports: [{{ port: {port} }}]");
    rig.apply(&service("a", &spec(80)));
    rig.apply(&service_with("a", "labels: { service.kubernetes.io/headless: \"\" }", &spec(80)));
    assert!(rig.find_service("shop/a").is_none());
    rig.apply(&service("a", &spec(81)));
    assert_eq!(rig.service("shop/a").ports[0].port, 81);
    assert_eq!(rig.service("shop/a").addresses, ["203.0.113.1".parse::<std::net::IpAddr>().unwrap()]);
    rig.apply(&service("a", &spec(81)).replace("LoadBalancer", "ClusterIP"));
    assert!(rig.find_service("shop/a").is_none());
}

#[test]
fn where_addresses_come_from() {
    let rows: &[(&str, &str, &str, &str, &[&str])] = &[
        // (what, metadata, spec, status, addresses)
        ("S-020", "", "loadBalancerIP: 203.0.113.1,", "", &["203.0.113.1"]),
        (
            "ours",
            "annotations: { tidegate.io/addresses: \"203.0.113.1, 2001:db8:f::1 ,203.0.113.2\" }",
            "",
            "",
            &["203.0.113.1", "2001:db8:f::1", "203.0.113.2"],
        ),
        (
            "M-004",
            "annotations: { metallb.io/loadBalancerIPs: \"2001:db8:f::1,203.0.113.1\" }",
            "",
            "",
            &["2001:db8:f::1", "203.0.113.1"],
        ),
        ("M-004 older", "annotations: { metallb.universe.tf/loadBalancerIPs: 203.0.113.1 }", "", "", &["203.0.113.1"]),
        ("status wins", "", "loadBalancerIP: 203.0.113.1,", "[{ ip: 203.0.113.9 }]", &["203.0.113.9"]),
        ("T-018", "", "", "[{ ip: 203.0.113.8, ipMode: Proxy }, { ip: 203.0.113.9, ipMode: VIP }]", &["203.0.113.9"]),
        ("hostname", "", "", "[{ hostname: lb.example }, { ip: \"2001:db8:f::9\" }]", &["2001:db8:f::9"]),
        (
            "S-120",
            "",
            "ipFamilies: [IPv6, IPv4],",
            "[{ ip: 203.0.113.9 }, { ip: \"2001:db8:f::9\" }]",
            &["2001:db8:f::9", "203.0.113.9"],
        ),
        ("S-123", "", "ipFamilies: [IPv4],", "[{ ip: 203.0.113.9 }, { ip: \"2001:db8:f::9\" }]", &["203.0.113.9"]),
    ];
    for (what, metadata, spec, status, expected) in rows {
        let mut text = service_with("a", metadata, &format!("{spec} ports: [{HTTP}]"));
        if !status.is_empty() {
            text = text.replace("---\n", &format!("status: {{ loadBalancer: {{ ingress: {status} }} }}\n"));
        }
        let mut rig = Rig::new();
        rig.apply(&text);
        let addresses: Vec<String> = rig.service("shop/a").addresses.iter().map(ToString::to_string).collect();
        assert_eq!(&addresses, expected, "{what}");
        assert_eq!(rig.notes("shop/a").is_empty(), *what != "S-123", "{what}");
    }
}

#[test]
fn an_api_server_s_objects_are_taken_by_the_letter() {
    // With an API server, an absent clusterIP is one not given yet (S-004), and only status names addresses.
    let mut rig = Rig::with(Dialect::Cluster, "");
    let ports = format!("ports: [{HTTP}]");
    rig.apply(&service("no-cluster-ip", &format!("loadBalancerIP: 203.0.113.1, {ports}")));
    rig.apply(&service("no-status", &format!("clusterIP: 10.96.0.1, loadBalancerIP: 203.0.113.1, {ports}")));
    assert!(rig.0.resources().is_empty());
    assert_eq!(rig.notes("shop/no-status"), ["AddressAssigned/NoAddress"]);
    // S-042: a slice port without a name.
    let web = service("web", "clusterIP: 10.96.0.1, ports: [{ port: 80 }]")
        .replace("---\n", "status: { loadBalancer: { ingress: [{ ip: 203.0.113.9 }] } }\n---\n");
    rig.apply(&(web + &slice("s", "web", "IPv4", "{ port: 8080 }", &endpoints(&["10.244.1.5"]))));
    assert!(rig.backends("shop/web", 80).is_empty());
}

#[test]
fn a_proxied_address_alone_leaves_nothing_to_serve() {
    // T-018
    let mut rig = Rig::new();
    rig.apply(
        &service("a", &format!("loadBalancerIP: 203.0.113.1, ports: [{HTTP}]"))
            .replace("---\n", "status: { loadBalancer: { ingress: [{ ip: 203.0.113.9, ipMode: Proxy }] } }\n"),
    );
    assert!(rig.find_service("shop/a").is_none());
    assert_eq!(rig.notes("shop/a"), ["AddressAssigned/NoAddress"]);
}

#[test]
fn endpoints_are_chosen_as_kube_proxy_does() {
    // Letters: ready, serving, terminating. Chosen ones have weight 1, serving others 0, the rest are absent (S-102).
    let rows: &[(&str, &[&str], &[&str])] = &[
        ("S-041 nothing said", &["1"], &["1*1"]),
        ("ready ones only", &["1=rs", "2=st"], &["1*1", "2*0"]),
        ("T-004 all terminating", &["1=st", "2=st"], &["1*1", "2*1"]),
        ("S-044 never: not ready, serving, not terminating", &["1=s", "2=s"], &["1*0", "2*0"]),
        ("S-044 crash looping", &["1=", "2=t"], &[]),
        ("S-043 fallback leaves out the merely serving", &["1=s", "2=st", "3=t"], &["1*0", "2*1"]),
        ("S-025 ready though not serving", &["1=r", "2=s"], &["1*1", "2*0"]),
        ("terminating and ready", &["1=rst", "2=rs"], &["1*1", "2*1"]),
        ("none", &[], &[]),
    ];
    for (what, given, expected) in rows {
        for (prefix, family, show) in
            [("10.244.1.", "IPv4", "10.244.1.{}:8080"), ("fd00:10:244:1::", "IPv6", "[fd00:10:244:1::{}]:8080")]
        {
            let given: Vec<String> = given.iter().map(|text| format!("{prefix}{text}")).collect();
            let given: Vec<&str> = given.iter().map(String::as_str).collect();
            let expected: Vec<String> = expected
                .iter()
                .map(|text| {
                    let (host, weight) = text.split_once('*').unwrap();
                    format!("{}*{weight}", show.replace("{}", host))
                })
                .collect();
            let mut rig = Rig::new();
            rig.apply(&(web() + &slice("s", "web", family, HTTP_8080, &endpoints(&given))));
            assert_eq!(rig.backends("shop/web", 80), expected, "{what}, {family}");
        }
    }
}

#[test]
fn each_family_falls_back_for_itself() {
    // S-121 with S-043: ready IPv4 endpoints do not keep terminating IPv6 ones from being used.
    let mut rig = Rig::new();
    rig.apply(&(web() + &both("web", &["10.244.1.5=rs"], &["fd00:10:244:1::5=st"])));
    assert_eq!(rig.backends("shop/web", 80), ["10.244.1.5:8080*1", "[fd00:10:244:1::5]:8080*1"]);
}

#[test]
fn ports_are_joined_by_name_and_protocol_with_numbers_per_slice() {
    // S-010, S-011, T-015
    let mut rig = Rig::new();
    let ports =
        "{ name: dns, port: 53, protocol: UDP }, { name: dns-tcp, port: 53, protocol: TCP }, { name: web, port: 80 }";
    rig.apply(&service("a", &format!("loadBalancerIP: 203.0.113.1, ports: [{ports}]")));
    rig.apply(&slice(
        "s1",
        "a",
        "IPv4",
        "{ name: dns, port: 5353, protocol: UDP }, { name: web, port: 8080 }",
        &endpoints(&["10.244.1.5"]),
    ));
    rig.apply(&slice(
        "s2",
        "a",
        "IPv4",
        "{ name: web, port: 9090 }, { name: dns-tcp, port: 53, protocol: UDP }",
        &endpoints(&["10.244.2.5"]),
    ));
    let shown: Vec<(u16, Protocol, Vec<String>)> = rig
        .service("shop/a")
        .ports
        .iter()
        .map(|port| (port.port, port.protocol, port.backends.iter().map(rig::show).collect()))
        .collect();
    assert_eq!(
        shown,
        [
            (53, Protocol::Tcp, vec![]),
            (53, Protocol::Udp, vec!["10.244.1.5:5353*1".into()]),
            (80, Protocol::Tcp, vec!["10.244.1.5:8080*1".into(), "10.244.2.5:9090*1".into()]),
        ]
    );
}

#[test]
fn one_address_in_two_slices_is_one_endpoint() {
    // T-021, S-040: whichever slice is stale, and in either order.
    for (first, second) in [("10.244.1.5=rs", "10.244.1.5=st"), ("10.244.1.5=st", "10.244.1.5=rs")] {
        let mut rig = Rig::new();
        rig.apply(&web());
        rig.apply(&slice("s1", "web", "IPv4", HTTP_8080, &endpoints(&[first, "10.244.1.6"])));
        rig.apply(&slice("s2", "web", "IPv4", HTTP_8080, &endpoints(&[second])));
        assert_eq!(rig.backends("shop/web", 80), ["10.244.1.5:8080*1", "10.244.1.6:8080*1"]);
    }
    // S-040: moved from one slice to the other, nothing changes for the dataplane.
    let mut rig = Rig::new();
    rig.apply(&(web() + &slice("s1", "web", "IPv4", HTTP_8080, &endpoints(&["10.244.1.5"]))));
    let before = rig.version(Kind::Service, "shop/web");
    rig.apply(&slice("s2", "web", "IPv4", HTTP_8080, &endpoints(&["10.244.1.5"])));
    assert_eq!(rig.version(Kind::Service, "shop/web"), before);
    rig.delete(ObjectKind::EndpointSlice, "shop/s1");
    assert_eq!(rig.version(Kind::Service, "shop/web"), before);
}

#[test]
fn what_a_slice_may_hold_that_is_ignored() {
    // S-042, S-003, S-040
    let mut rig = Rig::new();
    rig.apply(&web());
    rig.apply(&slice("fqdn", "web", "FQDN", HTTP_8080, &endpoints(&["pod.example"])));
    rig.apply(&slice("zero", "web", "IPv4", "{ name: http, port: 0 }, { name: http }", &endpoints(&["10.244.1.5"])));
    rig.apply(&slice("other", "other", "IPv4", HTTP_8080, &endpoints(&["10.244.1.6"])));
    rig.apply(
        &slice("left", "web", "IPv4", HTTP_8080, &endpoints(&["10.244.1.7"]))
            .replace("service-name: web", "service-name: web, service.kubernetes.io/service-proxy-name: x"),
    );
    rig.apply(
        &slice("away", "web", "IPv4", HTTP_8080, &endpoints(&["10.244.1.8"]))
            .replace("namespace: shop", "namespace: away"),
    );
    rig.apply(&slice("second", "web", "IPv4", HTTP_8080, "{ addresses: [10.244.1.9, 10.244.1.10] }"));
    assert_eq!(rig.backends("shop/web", 80), ["10.244.1.9:8080*1"], "addresses[0] only");
    assert!(rig.problems().iter().all(|problem| problem.contains("gw-1")), "{:?}", rig.problems());
}

#[test]
fn an_invalid_object_keeps_its_last_good_version_and_says_which_field() {
    let good = |name: &str| service(name, &format!("loadBalancerIP: 203.0.113.1, ports: [{HTTP}]"));
    let bad = |spec: &str| service("a", spec);
    let ip = "loadBalancerIP: 203.0.113.1";
    let annotation = |name: &str, value: &str| {
        service_with("a", &format!("annotations: {{ {name}: \"{value}\" }}"), &format!("ports: [{HTTP}]"))
    };
    for (text, field, word) in [
        (bad(&format!("{ip}, ports: [{{ port: 0 }}]")), "spec.ports[0].port", "0"),
        (bad(&format!("{ip}, ports: [{{ port: 65536 }}]")), "spec.ports[0].port", "65536"),
        (bad(&format!("{ip}, ports: [{{ port: http }}]")), "spec.ports[0].port", "http"),
        (bad(&format!("{ip}, ports: []")), "spec.ports", "at least one"),
        (bad(&format!("{ip}, ports: [{{ port: 1, protocol: ICMP }}]")), "spec.ports[0].protocol", "ICMP"),
        (bad(&format!("{ip}, ports: [{{ port: 1, name: a }}, {{ port: 2 }}]")), "spec.ports[1].name", "required"),
        (
            bad(&format!("{ip}, ports: [{{ port: 1, name: a }}, {{ port: 2, name: a }}]")),
            "spec.ports[1].name",
            "two ports",
        ),
        (bad(&format!("{ip}, ports: [{{ port: 1, name: a }}, {{ port: 1, name: b }}]")), "spec.ports[1].port", "twice"),
        (bad(&format!("{ip}, ipFamilies: [IPv5], ports: [{HTTP}]")), "spec.ipFamilies[0]", "IPv5"),
        (bad(&format!("{ip}, externalTrafficPolicy: Near, ports: [{HTTP}]")), "spec.externalTrafficPolicy", "Near"),
        (
            bad(&format!("{ip}, loadBalancerSourceRanges: [10.0.0.0/33], ports: [{HTTP}]")),
            "spec.loadBalancerSourceRanges[0]",
            "10.0.0.0/33",
        ),
        (bad(&format!("loadBalancerIP: 203.0.113.256, ports: [{HTTP}]")), "spec.loadBalancerIP", "203.0.113.256"),
        (bad(&format!("loadBalancerIP: 127.0.0.1, ports: [{HTTP}]")), "spec.loadBalancerIP", "loopback"),
        (bad(&format!("loadBalancerIP: \"ff02::1\", ports: [{HTTP}]")), "spec.loadBalancerIP", "multicast"),
        (
            annotation("tidegate.io/addresses", "203.0.113.1,"),
            "metadata.annotations[tidegate.io/addresses]",
            "not an IP address",
        ),
        (
            annotation("tidegate.io/addresses", "203.0.113.1,203.0.113.1"),
            "metadata.annotations[tidegate.io/addresses]",
            "twice",
        ),
        (
            annotation("metallb.io/loadBalancerIPs", "203.0.113.1,203.0.113.2"),
            "metadata.annotations[metallb.io/loadBalancerIPs]",
            "family",
        ),
        (
            service_with("a", "annotations: { tidegate.io/addresses: 203.0.113.1 }", &format!("{ip}, ports: [{HTTP}]")),
            "metadata.annotations[tidegate.io/addresses]",
            "keep one",
        ),
    ] {
        let mut rig = Rig::new();
        rig.apply(&good("a"));
        let before = rig.version(Kind::Service, "shop/a");
        rig.apply(&(text.clone() + &good("b")));
        rig.expect_problem(&["test.yaml document 1 (line 1)", "Service shop/a", field, word, "last good version"]);
        assert_eq!(rig.version(Kind::Service, "shop/a"), before, "{text}");
        assert!(rig.find_service("shop/b").is_some(), "its neighbour in the file is applied: {text}");
        rig.apply(&good("a"));
        assert!(rig.problems().iter().all(|problem| !problem.contains("shop/a")), "healed");
    }
}

#[test]
fn an_invalid_slice_keeps_its_last_good_version_and_says_which_field() {
    for (family, ports, endpoint, field, word) in [
        ("IPv4", HTTP_8080, "{ addresses: [ten] }", "endpoints[0].addresses[0]", "not an IP"),
        ("IPv4", HTTP_8080, "{ addresses: [\"fd00::1\"] }", "endpoints[0].addresses[0]", "IPv4"),
        ("IPv6", HTTP_8080, "{ addresses: [10.244.1.5] }", "endpoints[0].addresses[0]", "IPv6"),
        ("IPv4", HTTP_8080, "{ addresses: [] }", "endpoints[0].addresses[0]", "needs an address"),
        ("IPv4", HTTP_8080, "{ addresses: [0.0.0.0] }", "endpoints[0].addresses[0]", "unspecified"),
        ("IPv4", HTTP_8080, "{ addresses: [169.254.1.1] }", "endpoints[0].addresses[0]", "link-local"),
        ("IPv6", HTTP_8080, "{ addresses: [\"::ffff:10.0.0.1\"] }", "endpoints[0].addresses[0]", "mapped"),
        ("IPv7", HTTP_8080, "{ addresses: [10.244.1.5] }", "addressType", "IPv7"),
        ("IPv4", "{ name: http, port: -1 }", "{ addresses: [10.244.1.5] }", "ports[0].port", "-1"),
        ("IPv4", "{ name: http, port: 80, protocol: tcp }", "{ addresses: [10.244.1.5] }", "ports[0].protocol", "tcp"),
        (
            "IPv4",
            HTTP_8080,
            "{ addresses: [10.244.1.5], conditions: { ready: maybe } }",
            "endpoints[0].conditions.ready",
            "maybe",
        ),
    ] {
        let mut rig = Rig::new();
        rig.apply(&(web() + &slice("s", "web", "IPv4", HTTP_8080, &endpoints(&["10.244.1.1"]))));
        rig.apply(&slice("s", "web", family, ports, endpoint));
        rig.expect_problem(&["EndpointSlice shop/s", field, word, "last good version"]);
        assert_eq!(rig.backends("shop/web", 80), ["10.244.1.1:8080*1"], "{field}");
    }
}

#[test]
fn what_is_not_done_is_said() {
    let ip = "loadBalancerIP: 203.0.113.1";
    let rows: &[(&str, &str, &[&str], bool)] = &[
        ("S-023", "externalIPs: [192.0.2.1],", &["ExternalIPsServed/NotServed"], true),
        ("S-025, S-028", "publishNotReadyAddresses: true, selector: { app: web },", &[], true),
    ];
    for (id, spec, notes, served) in rows {
        let mut rig = Rig::new();
        rig.apply(&service("a", &format!("{ip}, {spec} ports: [{HTTP}]")));
        assert_eq!(&rig.notes("shop/a"), notes, "{id}");
        assert_eq!(rig.find_service("shop/a").is_some(), *served, "{id}");
    }
}

#[test]
fn sctp_is_served_beside_others_and_alone() {
    // S-012
    let mut rig = Rig::new();
    let ip = "loadBalancerIP: 203.0.113.1";
    let sctp = "{ name: s, port: 80, protocol: SCTP }";
    rig.apply(&service("a", &format!("{ip}, ports: [{HTTP}, {sctp}]")));
    rig.apply(&service("b", &format!("loadBalancerIP: 203.0.113.2, ports: [{sctp}]")));
    assert!(rig.notes("shop/a").is_empty() && rig.notes("shop/b").is_empty());
    let protocols =
        |name: &str| -> Vec<Protocol> { rig.service(name).ports.iter().map(|port| port.protocol).collect() };
    assert_eq!(protocols("shop/a"), [Protocol::Tcp, Protocol::Sctp]);
    assert_eq!(protocols("shop/b"), [Protocol::Sctp]);
}

#[test]
fn every_change_that_matters_changes_the_version_and_nothing_else_does() {
    // S-030, S-005
    let base = |metadata: &str, spec: &str| {
        service_with("a", &format!("{metadata} labels: {{ app: x }}"), &format!("loadBalancerIP: 203.0.113.1, {spec}"))
    };
    let ports = format!("ports: [{HTTP}]");
    let version = |text: &str| {
        let mut rig = Rig::new();
        rig.apply(text);
        rig.version(Kind::Service, "shop/a")
    };
    let first = version(&base("uid: u1,", &ports));
    for other in [
        base("uid: u2,", &ports),
        base("uid: u1, creationTimestamp: 2024-01-01T00:00:00Z,", &ports),
        base("uid: u1,", "ports: [{ name: http, port: 81 }]"),
        base("uid: u1,", "ports: [{ name: http, port: 80, protocol: UDP }]"),
        base("uid: u1,", &ports).replace("203.0.113.1", "203.0.113.2"),
        base("uid: u1,", &format!("{ports}, externalTrafficPolicy: Local")),
        base("uid: u1,", &format!("{ports}, internalTrafficPolicy: Local")),
        base("uid: u1,", &format!("{ports}, loadBalancerSourceRanges: [10.0.0.0/8]")),
        base("uid: u1,", &format!("{ports}, sessionAffinity: ClientIP")),
        base("uid: u1, annotations: { tidegate.io/scheduler: rr },", &ports),
        base("uid: u1, annotations: { tidegate.io/hash: destination-port },", &ports),
        base("uid: u1, annotations: { tidegate.io/slow-start: 30s },", &ports),
        base("uid: u1, annotations: { tidegate.io/delivery-mode: node-dsr },", &ports),
        base("uid: u1, annotations: { tidegate.io/all-ports: \"true\" },", &ports),
        base("uid: u1, annotations: { tidegate.io/prefixes: 198.51.100.0/28 },", &ports)
            .replace("loadBalancerIP: 203.0.113.1, ", ""),
    ] {
        assert_ne!(version(&other), first, "{other}");
    }
    for same in [
        base("resourceVersion: \"7\", uid: u1,", &ports),
        base("uid: u1,", "ports: [{ name: http, port: 80, nodePort: 30080, targetPort: web, appProtocol: http }]"),
        base("uid: u1,", &format!("{ports}, allocateLoadBalancerNodePorts: false")),
    ] {
        assert_eq!(version(&same), first, "{same}"); // S-011, S-013, S-022
    }
}

#[test]
fn a_mistyped_type_or_spec_is_an_error_and_takes_nothing_away() {
    let good = rig::service_with("web", "uid: u1", "loadBalancerIP: 203.0.113.1, ports: [{ port: 80 }]");
    for (what, bad) in [
        ("spec.type: \"Loadbalancer\" is not ClusterIP", good.replace("LoadBalancer", "Loadbalancer")),
        ("spec: is missing", good.replace("spec:", "spex:")),
    ] {
        assert_ne!(bad, good, "{what}");
        let mut rig = Rig::new();
        rig.apply(&good).apply(&bad);
        assert_eq!(rig.service("shop/web").addresses.len(), 1, "{what}: the last good version stays");
        let problems: Vec<String> = rig.0.problems().iter().map(ToString::to_string).collect();
        assert!(
            problems.iter().any(|problem| problem.contains(what) && problem.contains("stays in use")),
            "{problems:?}"
        );
    }
}
