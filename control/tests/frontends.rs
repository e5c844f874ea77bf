//! Where Services are reached and how they are delivered, row by row and for both families.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use ipnet::IpNet;
use rig::{Rig, endpoints, labelled, node, service, service_with, slice};
use tidegate_api::resource::{DeliveryMode, HashFields, Kind, Protocol, Scheduler, Service, TrafficPolicy};
use tidegate_control::model::Name;
use tidegate_control::resolve::claim::Claims;
use tidegate_control::source::ObjectKind;
use tidegate_control::watch::Dialect;

const HTTP: &str = "{ name: http, port: 80, nodePort: 30080 }";
const EXTERNAL: &str = "  externalIPs: [192.0.2.0/24, \"2001:db8:e::/64\"]\n";
const CLUSTER: &str = "  exposeClusterIPs: true\n";
const NODE_PORTS: &str = "  exposeNodePorts: true\n";
const VIPS: &str = "tidegate.io/addresses: \"203.0.113.10,2001:db8:f::10\"";

fn annotated(annotations: &str) -> String {
    format!("annotations: {{ {annotations} }}")
}

fn web(annotations: &str, spec: &str) -> String {
    service_with("web", &annotated(&format!("{VIPS}, {annotations}")), &format!("{spec} ports: [{HTTP}]"))
}

fn of_type(kind: &str, spec: &str) -> String {
    service("web", &format!("{spec} ports: [{HTTP}]")).replace("type: LoadBalancer", &format!("type: {kind}"))
}

fn texts<T: ToString>(list: &[T]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn resolved(extra: &str, text: &str) -> (Option<Service>, Vec<String>) {
    let mut rig = Rig::with(Dialect::Files, extra);
    rig.apply(&(text.to_string() + &node("gw-1", 9)));
    let notes = if rig.problems().is_empty() { rig.notes("shop/web") } else { rig.problems() };
    (rig.find_service("shop/web").cloned(), notes)
}

fn served(extra: &str, text: &str) -> Service {
    let (service, notes) = resolved(extra, text);
    service.unwrap_or_else(|| panic!("not served: {notes:?}"))
}

#[test]
fn external_addresses_need_an_allow_list() {
    // S-023, S-066
    let ips = "externalIPs: [192.0.2.7, 198.51.100.7, \"2001:db8:e::7\", \"2001:db8:a::7\"],";
    let (service, notes) = resolved("", &web("", ips));
    assert!(service.unwrap().external_addresses.is_empty());
    assert_eq!(notes, ["ExternalIPsServed/NotServed"]);
    let (service, notes) = resolved(EXTERNAL, &web("", ips));
    assert_eq!(texts(&service.unwrap().external_addresses), ["192.0.2.7", "2001:db8:e::7"]);
    assert_eq!(notes, ["ExternalIPsServed/NotAllowed"]);
    let (_, notes) = resolved(EXTERNAL, &web("", "externalIPs: [192.0.2.7],"));
    assert!(notes.is_empty(), "{notes:?}");
    // S-123
    let (service, notes) = resolved(EXTERNAL, &web("", &format!("ipFamilies: [IPv6], {ips}")));
    assert_eq!(texts(&service.unwrap().external_addresses), ["2001:db8:e::7"]);
    assert_eq!(notes, ["AddressAssigned/FamilyNotInIPFamilies", "ExternalIPsServed/NotAllowed"]);
    // What is also a VIP is a VIP: its source ranges hold (S-080).
    let extra = "  externalIPs: [203.0.113.0/24]\n";
    let service = served(extra, &web("", "externalIPs: [203.0.113.10, 203.0.113.11],"));
    assert_eq!(texts(&service.external_addresses), ["203.0.113.11"]);
    assert_eq!(texts(&service.addresses), ["203.0.113.10", "2001:db8:f::10"]);
}

#[test]
fn other_types_are_ours_only_for_what_is_exposed() {
    // S-001, S-004, S-014, S-060, S-065
    let ips = "clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd00:96::10\"],";
    let external = "clusterIP: 10.96.0.10, externalIPs: [192.0.2.7],";
    let elsewhere = "clusterIP: 10.96.0.10, externalIPs: [198.51.100.7],";
    for (kind, spec, extra, ours) in [
        ("ClusterIP", ips, "", false),
        ("ClusterIP", ips, CLUSTER, true),
        ("ClusterIP", ips, NODE_PORTS, false),
        ("ClusterIP", ips, EXTERNAL, false),
        ("ClusterIP", external, EXTERNAL, true),
        ("ClusterIP", external, "", false),
        ("ClusterIP", "clusterIP: None,", CLUSTER, false),
        ("ClusterIP", "clusterIP: \"\",", CLUSTER, false),
        ("NodePort", ips, "", false),
        ("NodePort", ips, NODE_PORTS, true),
        ("NodePort", ips, CLUSTER, true),
        ("NodePort", external, EXTERNAL, true),
        ("ExternalName", external, &format!("{EXTERNAL}{CLUSTER}{NODE_PORTS}"), false),
    ] {
        let (service, notes) = resolved(extra, &of_type(kind, spec));
        assert_eq!(service.is_some(), ours, "{kind} {spec} {extra}");
        assert!(notes.is_empty(), "{kind} {spec} {extra}: {notes:?}");
        if let Some(service) = service {
            assert!(service.addresses.is_empty() && service.prefixes.is_empty(), "no VIPs");
        }
    }
    // Asked for, looked at, and refused with a reason.
    let (service, notes) = resolved(EXTERNAL, &of_type("ClusterIP", elsewhere));
    assert!(service.is_none());
    assert_eq!(notes, ["ExternalIPsServed/NotAllowed"]);
    // S-001: another class is another's, whatever is exposed.
    let (service, _) = resolved(CLUSTER, &web("", "clusterIP: 10.96.0.10, loadBalancerClass: other/lb,"));
    assert!(service.is_none());
    // A VIP annotation does not make VIPs.
    let text = service_with("web", &annotated(&format!("{VIPS}, tidegate.io/prefixes: 203.0.113.0/28")), "")
        .replace("type: LoadBalancer,", &format!("type: ClusterIP, {ips} ports: [{HTTP}],"));
    let service = served(CLUSTER, &text);
    assert!(service.addresses.is_empty() && service.prefixes.is_empty());
    // Mistakes in what is not exposed are none of our business.
    for kind in ["ClusterIP", "NodePort"] {
        let (_, notes) = resolved("", &of_type(kind, "externalTrafficPolicy: Near, clusterIP: here,"));
        assert!(notes.is_empty(), "{notes:?}");
    }
}

#[test]
fn cluster_addresses_are_served_where_exposed() {
    // S-018, S-060; T-006: the dataplane is told that there are endpoints and that it must not use them.
    let ips = "clusterIPs: [10.96.0.10, \"fd00:96::10\"], clusterIP: 10.96.0.10, internalTrafficPolicy: Local,";
    let both = slice("s", "web", "IPv4", "{ name: http, port: 8080 }", &endpoints(&["10.244.1.5"]));
    assert!(served("", &web("", ips)).cluster_addresses.is_empty());
    let service = served(CLUSTER, &(web("", ips) + &both));
    assert_eq!(texts(&service.cluster_addresses), ["10.96.0.10", "fd00:96::10"]);
    assert_eq!(service.ports[0].internal_policy, TrafficPolicy::Local);
    assert_eq!(service.ports[0].external_policy, TrafficPolicy::Cluster);
    assert_eq!(service.ports[0].backends.len(), 1);
    // Written by hand with the older field alone, and without any.
    assert_eq!(texts(&served(CLUSTER, &web("", "clusterIP: \"fd00:96::1\",")).cluster_addresses), ["fd00:96::1"]);
    assert!(served(CLUSTER, &web("", "")).cluster_addresses.is_empty());
}

#[test]
fn a_policy_for_the_outside_is_nothing_to_a_service_nobody_outside_reaches() {
    // T-007
    let local = "clusterIP: 10.96.0.10, externalTrafficPolicy: Local,";
    let policy = |extra, text: &str| served(extra, text).ports[0].external_policy;
    assert_eq!(policy(CLUSTER, &of_type("ClusterIP", local)), TrafficPolicy::Cluster);
    assert_eq!(policy(CLUSTER, &of_type("NodePort", local)), TrafficPolicy::Local);
    assert_eq!(policy(CLUSTER, &web("", local)), TrafficPolicy::Local);
    let external = format!("{local} externalIPs: [192.0.2.7],");
    assert_eq!(policy(EXTERNAL, &of_type("ClusterIP", &external)), TrafficPolicy::Local);
}

#[test]
fn node_ports_are_served_at_the_gateway_s_own_addresses() {
    // S-014, S-065
    let own = |extra: &str| {
        let mut rig = Rig::with(Dialect::Files, extra);
        let status = "status: { addresses: [{ type: InternalIP, address: 198.51.100.9 }, \
                      { type: InternalIP, address: 192.0.2.99 }, { type: ExternalIP, address: 192.0.2.1 }, { type: Hostname, address: gw-1 }, \
                      { type: InternalIP, address: not-one }] }\n---\n";
        let own = node("gw-1", 9).replace("---\n", status);
        rig.apply(&(web("", "") + &own));
        assert!(rig.problems().is_empty(), "{:?}", rig.problems());
        let service = rig.service("shop/web").clone();
        (texts(&service.node_addresses), service.ports[0].node_port, rig.notes("shop/web"))
    };
    let all = ["192.0.2.99", "198.51.100.9", "2001:db8:2::9"].map(String::from).to_vec();
    assert_eq!(own(""), (vec![], None, vec![]));
    assert_eq!(own(NODE_PORTS), (all, Some(30080), vec![]));
    let chosen = |list: &str| own(&format!("{NODE_PORTS}  nodePortAddresses: {list}\n")).0;
    assert_eq!(chosen("[192.0.2.0/24]"), ["192.0.2.99"]);
    assert_eq!(chosen("[\"::/0\"]"), ["2001:db8:2::9"]);
    assert_eq!(chosen("[192.0.2.100, 198.51.100.0/24]"), ["192.0.2.100", "198.51.100.9"], "one that no Node lists");
    let (none, port, notes) = own(&format!("{NODE_PORTS}  nodePortAddresses: [10.0.0.0/8]\n"));
    assert_eq!((none.len(), port, notes), (0, Some(30080), vec!["NodePortsServed/NoNodeAddress".into()]));
}

#[test]
fn node_ports_come_and_go_with_services_and_with_the_node() {
    let mut rig = Rig::with(Dialect::Files, NODE_PORTS);
    let spec = |node_port: &str, more: &str| format!("{more} ports: [{{ name: http, port: 80 {node_port} }}]");
    let with = |node_port: &str, more: &str| service_with("web", &annotated(VIPS), &spec(node_port, more));
    rig.apply(&with(", nodePort: 30080", ""));
    assert_eq!(rig.notes("shop/web"), ["NodePortsServed/NoNodeAddress"]);
    rig.apply(&node("gw-1", 9));
    assert_eq!(texts(&rig.service("shop/web").node_addresses), ["198.51.100.9", "2001:db8:2::9"]);
    assert!(rig.notes("shop/web").is_empty());
    // S-123: a Service of one family has no frontend of the other.
    rig.apply(&with(", nodePort: 30080", "ipFamilies: [IPv6],"));
    assert_eq!(texts(&rig.service("shop/web").node_addresses), ["2001:db8:2::9"]);
    // S-022, T-028: without node ports it works, and with them again.
    rig.apply(&with("", "allocateLoadBalancerNodePorts: false,"));
    let service = rig.service("shop/web");
    assert_eq!((service.ports[0].node_port, service.node_addresses.len(), service.addresses.len()), (None, 0, 2));
    rig.apply(&with(", nodePort: 0", ""));
    assert_eq!(rig.service("shop/web").ports[0].node_port, None);
    rig.apply(&with(", nodePort: 30081", ""));
    assert_eq!(rig.service("shop/web").ports[0].node_port, Some(30081));
    // S-065: never at an address that is a VIP of the Service.
    rig.apply(&with(", nodePort: 30081", "").replace("203.0.113.10", "198.51.100.9"));
    assert_eq!(texts(&rig.service("shop/web").node_addresses), ["2001:db8:2::9"]);
    // Not to be had twice.
    let twice = "ports: [{ name: a, port: 80, nodePort: 30080 }, { name: b, port: 81, nodePort: 30080 }]";
    rig.apply(&service_with("web", &annotated(VIPS), twice));
    rig.expect_problem(&["Service shop/web", "spec.ports[1].nodePort", "another port"]);
    let fine = twice.replace("port: 81", "port: 81, protocol: UDP");
    rig.apply(&service_with("web", &annotated(VIPS), &fine));
    assert_eq!(rig.service("shop/web").ports.len(), 2, "T-017: TCP and UDP are two");
}

#[test]
fn source_ranges_are_sent_without_their_white_space() {
    // S-021, S-080, T-010, T-011; S-083: a change is a new version.
    let ranges = |spec: &str| texts(&served("", &web("", spec)).source_ranges);
    let listed = "loadBalancerSourceRanges: [\" 203.0.113.0/25\", 10.1.2.3/8, \"fd00::/8 \", 10.0.0.0/8],";
    assert_eq!(ranges(listed), ["10.0.0.0/8", "203.0.113.0/25", "fd00::/8"]);
    let annotation = "service.beta.kubernetes.io/load-balancer-source-ranges: \"10.0.0.0/8, fd00::/8\"";
    assert_eq!(texts(&served("", &web(annotation, "")).source_ranges), ["10.0.0.0/8", "fd00::/8"]);
    assert_eq!(texts(&served("", &web(annotation, "loadBalancerSourceRanges: [\"::/0\"],")).source_ranges), ["::/0"]);
    assert!(ranges("").is_empty());
    // S-085
    assert_eq!(ranges("loadBalancerSourceRanges: [0.0.0.0/1, 128.0.0.0/1],"), ["0.0.0.0/1", "128.0.0.0/1"]);
    assert_eq!(ranges("loadBalancerSourceRanges: [255.0.0.0/32],"), ["255.0.0.0/32"]);
}

#[test]
fn a_family_without_a_range_is_open_and_that_is_said() {
    // S-081, S-084
    let notes =
        |ranges: &str, more: &str| resolved("", &web("", &format!("{more} loadBalancerSourceRanges: [{ranges}],"))).1;
    assert_eq!(notes("10.0.0.0/8", ""), ["SourceRangesEnforced/FamilyNotRestricted"]);
    assert_eq!(notes("\"fd00::/8\"", ""), ["SourceRangesEnforced/FamilyNotRestricted"]);
    assert!(notes("10.0.0.0/8, \"fd00::/8\"", "").is_empty());
    assert_eq!(
        notes("10.0.0.0/8", "ipFamilies: [IPv4],"),
        ["AddressAssigned/FamilyNotInIPFamilies"],
        "only IPv4 is served"
    );
}

#[test]
fn affinity_has_kubernetes_default_and_limits() {
    // S-015, S-016, S-094
    let timeout = |spec: &str| served("", &web("", spec)).ports[0].affinity_timeout_s;
    let with = |seconds: i32| {
        format!("sessionAffinity: ClientIP, sessionAffinityConfig: {{ clientIP: {{ timeoutSeconds: {seconds} }} }},")
    };
    assert_eq!(timeout(""), None);
    assert_eq!(timeout("sessionAffinity: None, sessionAffinityConfig: { clientIP: { timeoutSeconds: 5 } },"), None);
    assert_eq!(timeout("sessionAffinity: ClientIP,"), Some(10800));
    assert_eq!((timeout(&with(1)), timeout(&with(86400))), (Some(1), Some(86400)));
    for wrong in [0, -1, 86401] {
        let (service, problems) = resolved("", &web("", &with(wrong)));
        assert!(service.is_none());
        assert!(problems[0].contains("spec.sessionAffinityConfig.clientIP.timeoutSeconds"), "{problems:?}");
    }
}

#[test]
fn the_mode_is_the_service_s_wish_then_the_node_file_s_then_the_policy_s() {
    // S-062; notes: S-056
    let (local, cluster) = ("externalTrafficPolicy: Local,", "");
    let (fullnat, dsr) = (DeliveryMode::Fullnat, DeliveryMode::NodeDsr);
    let lost = "ClientAddressKept/DeliveredByFullnat";
    for (file, annotation, policy, mode, notes) in [
        ("", "", cluster, fullnat, &[][..]),
        ("", "", local, dsr, &[]),
        ("", "fullnat", local, fullnat, &[lost]),
        ("", "node-dsr", cluster, dsr, &[]),
        ("node-dsr", "", cluster, dsr, &[]),
        ("fullnat", "", local, fullnat, &[lost]),
        ("fullnat", "node-dsr", local, dsr, &[]),
        ("node-dsr", "fullnat", cluster, fullnat, &[]),
    ] {
        let extra = if file.is_empty() { String::new() } else { format!("  deliveryMode: {file}\n") };
        let annotation = match annotation {
            "" => String::new(),
            _ => format!("tidegate.io/delivery-mode: {annotation}"),
        };
        let (service, found) = resolved(&extra, &web(&annotation, policy));
        assert_eq!(service.unwrap().ports[0].mode, mode, "{extra} {annotation} {policy}");
        assert_eq!(found, notes, "{extra} {annotation} {policy}");
    }
}

/// What is not asked for of every Node of a Service is asked of none: half of its clients would get answers from nowhere.
#[test]
fn symmetric_needs_nodes_that_send_answers_back() {
    let asked = web("tidegate.io/delivery-mode: symmetric", "");
    let on = |node: &str, n: u8| format!("{{ addresses: [10.244.{n}.5], nodeName: {node} }}");
    let slice =
        |endpoints: &[String]| slice("web-1", "web", "IPv4", "{ name: http, port: 8080 }", &endpoints.join(", "));
    let mut rig = Rig::with(Dialect::Files, "");
    let (w1, w2) = (node("w1", 1), node("w2", 2));
    rig.apply(&[asked, node("gw-1", 9), w1.clone(), w2.clone(), slice(&[on("w1", 1), on("w2", 2)])].concat());
    let mode = |rig: &Rig| rig.service("shop/web").ports[0].mode;
    let told = |rig: &Rig| rig.notes("shop/web").iter().any(|note| note == "ClientAddressKept/NodesDoNotReturn");
    assert_eq!((mode(&rig), told(&rig)), (DeliveryMode::Fullnat, true));
    rig.apply(&labelled(&w1, "tidegate.io/symmetric: \"true\""));
    assert_eq!(mode(&rig), DeliveryMode::Fullnat);
    rig.apply(&labelled(&w2, "tidegate.io/symmetric: \"\""));
    assert_eq!((mode(&rig), told(&rig)), (DeliveryMode::Symmetric, false));
    // An endpoint elsewhere, or nobody knows where; then only on Nodes that do.
    rig.apply(&[node("w3", 3), slice(&[on("w1", 1), on("w3", 3)])].concat());
    assert_eq!((mode(&rig), told(&rig)), (DeliveryMode::Fullnat, true));
    rig.apply(&slice(&[on("w1", 1), "{ addresses: [10.244.3.5] }".into()]));
    assert_eq!((mode(&rig), told(&rig)), (DeliveryMode::Fullnat, true));
    rig.apply(&slice(&[on("w1", 1)]));
    assert_eq!(mode(&rig), DeliveryMode::Symmetric);
    rig.apply(&labelled(&w1, "tidegate.io/symmetric: \"false\""));
    assert_eq!(mode(&rig), DeliveryMode::Fullnat);
}

#[test]
fn node_dsr_needs_nodes_that_know_the_address() {
    // S-063: their kube-proxy knows what stands in status, and neither prefixes nor every port.
    let local = "externalTrafficPolicy: Local,";
    for (annotation, mode, notes) in [
        ("", DeliveryMode::NodeDsr, &[][..]),
        ("tidegate.io/prefixes: 203.0.113.0/28", DeliveryMode::Fullnat, &["ClientAddressKept/NotKnownToNodes"]),
        ("tidegate.io/all-ports: \"true\"", DeliveryMode::Fullnat, &["ClientAddressKept/NotKnownToNodes"]),
    ] {
        let (service, found) = resolved("", &web(annotation, local));
        assert!(service.unwrap().ports.iter().all(|port| port.mode == mode), "{annotation}");
        assert_eq!(found, notes, "{annotation}");
    }
    // With an API server: what status says, without the addresses of proxies (T-018).
    let mut rig = Rig::with(Dialect::Cluster, "");
    let text = |ingress: &str| {
        web("", &format!("clusterIP: 10.96.0.1, {local}"))
            .replace("---\n", &format!("status: {{ loadBalancer: {{ ingress: [{ingress}] }} }}\n---\n"))
    };
    rig.apply(&text("{ ip: 203.0.113.9 }, { ip: 203.0.113.8, ipMode: Proxy }, { ip: \"2001:db8:f::9\", ipMode: VIP }"));
    assert_eq!(texts(&rig.service("shop/web").addresses), ["203.0.113.9", "2001:db8:f::9"]);
    assert_eq!(rig.service("shop/web").ports[0].mode, DeliveryMode::NodeDsr);
    rig.apply(&text("{ ip: 203.0.113.8, ipMode: Proxy }"));
    assert!(rig.find_service("shop/web").is_none());
    // Cluster addresses and node ports alone: the gateway is the only way, whatever the policy (S-060, S-065).
    let extra = format!("{CLUSTER}{NODE_PORTS}");
    let (service, notes) = resolved(&extra, &of_type("NodePort", &format!("clusterIP: 10.96.0.10, {local}")));
    assert_eq!(service.unwrap().ports[0].mode, DeliveryMode::Fullnat);
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn annotations_reach_every_port() {
    let annotations = "tidegate.io/scheduler: wlc, tidegate.io/hash: without-source-port, tidegate.io/slow-start: 30s";
    let ports = "ports: [{ name: a, port: 80 }, { name: b, port: 53, protocol: UDP }]";
    let text = service_with("web", &annotated(&format!("{VIPS}, {annotations}")), ports);
    let (service, notes) = resolved("", &text);
    for port in service.unwrap().ports {
        assert_eq!((port.scheduler, port.hash), (Scheduler::Wlc, HashFields::WithoutSourcePort));
        assert_eq!(port.slow_start_s, 30); // L-048
    }
    assert!(notes.is_empty(), "{notes:?}");
    for name in ["lblc", "lblcr"] {
        let (service, notes) = resolved("", &web(&format!("tidegate.io/scheduler: {name}"), ""));
        assert_eq!(service.unwrap().ports[0].scheduler, Scheduler::Dh);
        assert_eq!(notes, ["SchedulerHonoured/MappedToDh"]);
    }
    let (_, notes) = resolved("", &web("tidegate.io/schedular: rr, other.io/scheduler: x", ""));
    assert_eq!(notes, ["AnnotationsUnderstood/Unknown"]);
}

#[test]
fn a_wrong_annotation_keeps_the_last_good_version() {
    for (name, value, word) in [
        ("scheduler", "maglev", "lblcr"),
        ("scheduler", "RR", "not one of"),
        ("slow-start", "30m", "seconds"),
        ("slow-start", "3601", "3600"),
        ("slow-start", "-1", "seconds"),
        ("hash", "source-port", "without-source-port"),
        ("one-packet", "yes", "true"),
        ("all-ports", "1", "true"),
        ("delivery-mode", "tunnel-dsr", "symmetric"),
        ("prefixes", "203.0.113.0", "CIDR"),
        ("prefixes", "203.0.113.1/24", "203.0.113.0/24"),
        ("prefixes", "203.0.113.1/32", "tidegate.io/addresses"),
        ("prefixes", "0.0.0.0/0", "all traffic"),
        ("prefixes", "224.0.0.0/4", "unicast"),
        ("prefixes", "ff00::/8", "unicast"),
        ("prefixes", "203.0.113.0/24,203.0.113.0/24", "twice"),
        ("weights", "web-0", "pod=weight"),
        ("weights", "web-0=65536", "65535"),
        ("weights", "web-0=-1", "not a weight"),
        ("weights", "Web=1", "neither"),
        ("weights", "224.0.0.1=1", "multicast"),
        ("weights", "web-0=1, web-0=2", "twice"),
        ("weights", "fd00::5=1,fd00:0::5=2", "twice"),
        ("source-backends", "10.1.0.0/17", "prefix=address"),
        ("source-backends", "10.1.0.1/17=web-0", "10.1.0.0/17"),
        ("source-backends", "10.1.0.0/17=fd00::5", "families"),
        ("source-backends", "10.1.0.0/17=224.0.0.1", "multicast"),
    ] {
        let mut rig = Rig::new();
        rig.apply(&web("", ""));
        let before = rig.version(Kind::Service, "shop/web");
        rig.apply(&web(&format!("tidegate.io/{name}: \"{value}\""), ""));
        let field = format!("metadata.annotations[tidegate.io/{name}]");
        rig.expect_problem(&["test.yaml document 1 (line 1)", "Service shop/web", &field, word, "last good version"]);
        assert_eq!(rig.version(Kind::Service, "shop/web"), before, "{name}: {value}");
    }
}

#[test]
fn one_packet_is_for_udp_that_keeps_its_client() {
    let ports = "ports: [{ name: a, port: 53 }, { name: b, port: 53, protocol: UDP }]";
    let text = |more: &str, ports: &str| {
        service_with("web", &annotated(&format!("{VIPS}, tidegate.io/one-packet: \"true\", {more}")), ports)
    };
    let (service, notes) = resolved("", &text("tidegate.io/delivery-mode: node-dsr", ports));
    let wanted: Vec<(Protocol, bool)> =
        service.unwrap().ports.iter().map(|port| (port.protocol, port.one_packet)).collect();
    assert_eq!(wanted, [(Protocol::Tcp, false), (Protocol::Udp, true)]);
    assert!(notes.is_empty(), "{notes:?}");
    let (service, notes) = resolved("", &text("", ports));
    assert!(service.unwrap().ports.iter().all(|port| !port.one_packet));
    assert_eq!(notes, ["OnePacketScheduled/OnlyWithClientAddress"]);
    let (_, notes) = resolved("", &text("", "ports: [{ name: a, port: 53 }]"));
    assert_eq!(notes, ["OnePacketScheduled/NoUdpPort"]);
}

#[test]
fn prefixes_are_vips_where_the_author_of_files_says_so() {
    let annotations = annotated("tidegate.io/prefixes: \"2001:db8:f::/64, 203.0.113.0/28\"");
    let text = service_with("web", &annotations, &format!("clusterIP: 10.96.0.1, ports: [{HTTP}]"));
    let (service, notes) = resolved("", &text);
    let service = service.unwrap();
    assert_eq!(texts(&service.prefixes), ["203.0.113.0/28", "2001:db8:f::/64"]);
    assert!(service.addresses.is_empty() && notes.is_empty(), "{notes:?}");
    let (service, notes) = resolved("", &text.replace("clusterIP:", "ipFamilies: [IPv6], clusterIP:"));
    assert_eq!(texts(&service.unwrap().prefixes), ["2001:db8:f::/64"]);
    assert_eq!(notes, ["AddressAssigned/FamilyNotInIPFamilies"]);
    // With an API server a request is not an assignment, and nothing assigns prefixes.
    let mut rig = Rig::with(Dialect::Cluster, "");
    rig.apply(&text);
    assert!(rig.find_service("shop/web").is_none());
    assert_eq!(rig.notes("shop/web"), ["AddressAssigned/PrefixNotAssigned"]);
}

#[test]
fn every_port_is_one_frontend_for_each_protocol_beside_those_with_a_number() {
    let annotations = annotated(&format!("{VIPS}, tidegate.io/all-ports: \"true\""));
    let ports = "ports: [{ name: a, port: 80, nodePort: 30080 }, { name: b, port: 443 }]";
    let mut rig = Rig::with(Dialect::Files, NODE_PORTS);
    let slices = slice(
        "s4",
        "web",
        "IPv4",
        "{ name: a, port: 8080 }, { name: b, port: 8443 }",
        &endpoints(&["10.244.1.5", "10.244.2.5=st"]),
    ) + &slice("s6", "web", "IPv6", "{ name: b, port: 9443 }", &endpoints(&["fd00:10:244:1::5"]));
    rig.apply(&(service_with("web", &annotations, ports) + &slices));
    assert_eq!(rig.backends("shop/web", 80), ["10.244.1.5:8080*1", "10.244.2.5:8080*0"]);
    // Port 0 at the endpoint: the one the client asked for.
    assert_eq!(rig.backends("shop/web", 0), ["10.244.1.5:0*1", "10.244.2.5:0*0", "[fd00:10:244:1::5]:0*1"]);
    let numbers: Vec<(u16, Protocol, Option<u16>)> =
        rig.service("shop/web").ports.iter().map(|port| (port.port, port.protocol, port.node_port)).collect();
    assert_eq!(
        numbers,
        [(0, Protocol::Tcp, None), (80, Protocol::Tcp, Some(30080)), (443, Protocol::Tcp, None)],
        "no UDP port, no UDP"
    );
    rig.apply(&service_with("web", &annotations, &ports.replace("port: 443", "port: 443, protocol: UDP")));
    let protocols: Vec<(u16, Protocol)> =
        rig.service("shop/web").ports.iter().map(|port| (port.port, port.protocol)).collect();
    assert_eq!(protocols, [(0, Protocol::Tcp), (0, Protocol::Udp), (80, Protocol::Tcp), (443, Protocol::Udp)]);
}

#[test]
fn claims_of_all_kinds_of_frontends_meet() {
    // S-067, S-068: VIP, external address, cluster address and node port; not a prefix with an address inside, not every
    // port with a single one.
    let claim = |name: &str, day: u8, annotations: &str, spec: &str| {
        service_with(
            name,
            &format!("creationTimestamp: 2024-01-0{day}T00:00:00Z, annotations: {{ {annotations} }}"),
            spec,
        )
    };
    let port = "ports: [{ port: 80 }]";
    let node_port = "ports: [{ port: 81, nodePort: 80 }]";
    let vip = |ip: &str| format!("tidegate.io/addresses: \"{ip}\"");
    for (what, first, second, lost) in [
        ("two VIPs", claim("a", 2, &vip("203.0.113.1"), port), claim("b", 1, &vip("203.0.113.1"), port), "a"),
        (
            "VIP and external address",
            claim("a", 1, &vip("203.0.113.1"), port),
            claim("b", 2, &vip("203.0.113.2"), &format!("externalIPs: [203.0.113.1], {port}")),
            "b",
        ),
        (
            "cluster addresses, IPv6",
            claim("a", 1, &vip("203.0.113.1"), &format!("clusterIPs: [\"fd00:96::1\"], {port}")),
            claim("b", 1, &vip("203.0.113.2"), &format!("clusterIPs: [\"fd00:96::1\"], {port}")),
            "b",
        ),
        (
            "node port and VIP at the node's address",
            claim("a", 2, &vip("203.0.113.1"), node_port),
            claim("b", 1, &vip("198.51.100.9"), port),
            "a",
        ),
        (
            "equal prefixes",
            claim("a", 1, "tidegate.io/prefixes: \"2001:db8:f::/64\"", port),
            claim("b", 2, "tidegate.io/prefixes: \"2001:db8:f::/64\"", port),
            "b",
        ),
        (
            "a prefix and an address inside",
            claim("a", 1, "tidegate.io/prefixes: 203.0.113.0/24", port),
            claim("b", 2, &vip("203.0.113.1"), port),
            "",
        ),
        (
            "every port and one",
            claim(
                "a",
                1,
                &format!("{}, tidegate.io/all-ports: \"true\"", vip("203.0.113.1")),
                "ports: [{ port: 443 }]",
            ),
            claim("b", 2, &vip("203.0.113.1"), port),
            "",
        ),
        (
            "every port twice",
            claim(
                "a",
                1,
                &format!("{}, tidegate.io/all-ports: \"true\"", vip("203.0.113.1")),
                "ports: [{ port: 443 }]",
            ),
            claim("b", 2, &format!("{}, tidegate.io/all-ports: \"true\"", vip("203.0.113.1")), port),
            "b",
        ),
        (
            "another protocol, another port (S-068)",
            claim("a", 1, &vip("203.0.113.1"), port),
            claim("b", 2, &vip("203.0.113.1"), "ports: [{ name: x, port: 80, protocol: UDP }, { name: y, port: 81 }]"),
            "",
        ),
    ] {
        let extra = "  externalIPs: [0.0.0.0/0]\n  exposeClusterIPs: true\n  exposeNodePorts: true\n";
        let mut rig = Rig::with(Dialect::Files, extra);
        rig.apply(&(first + &second + &node("gw-1", 9)));
        let (a, b) = (rig.service("shop/a").clone(), rig.service("shop/b").clone());
        let mut claims = Claims::default();
        let name = |name: &str| Name { namespace: "shop".into(), name: name.into() };
        claims.replace(&name("a"), Some(Box::new(a)));
        let met = claims.replace(&name("b"), Some(Box::new(b)));
        assert_eq!(met.is_empty(), lost.is_empty(), "{what}");
        let losers: Vec<&str> = ["a", "b"].into_iter().filter(|one| !claims.lost(&name(one)).is_empty()).collect();
        let expected: &[&str] = if lost.is_empty() { &[] } else { &[lost] };
        assert_eq!(losers, expected, "{what}");
        // When one goes, the other is touched and has lost nothing.
        assert_eq!(claims.replace(&name("a"), None).is_empty(), lost.is_empty(), "{what}");
        assert!(claims.lost(&name("b")).is_empty(), "{what}");
    }
}

/// S-067: who was there first has no say against who is older, and one port's loss is not another port's.
#[test]
fn a_frontend_goes_to_the_older_service_whoever_came_first() {
    for (vip, full) in [("203.0.113.1", 32u8), ("2001:db8:f::1", 128)] {
        let claim = |name: &str, created: &str, ports: &str| {
            let created = if created.is_empty() { String::new() } else { format!("creationTimestamp: {created}") };
            rig::service_with(name, &created, &format!("loadBalancerIP: \"{vip}\", ports: [{ports}]"))
        };
        let (web, tls) = ("{ name: web, port: 80 }", "{ name: tls, port: 443 }");
        let mut rig = Rig::with(Dialect::Files, "");
        let lost = |rig: &Rig, name: &str| -> Vec<Vec<IpNet>> {
            rig.service(name).ports.iter().map(|port| port.not_at.clone()).collect()
        };
        let whole = IpNet::new(vip.parse().unwrap(), full).unwrap();
        rig.apply(&claim("first", "2024-01-02T00:00:00Z", &format!("{web}, {tls}")));
        assert_eq!(lost(&rig, "shop/first"), [vec![], vec![]]);
        rig.apply(&claim("elder", "2024-01-01T00:00:00Z", web));
        assert_eq!(lost(&rig, "shop/first"), [vec![whole], vec![]], "443 stays");
        assert_eq!(lost(&rig, "shop/elder"), [vec![]]);
        // Who does not say since when he exists is nobody's elder.
        rig.apply(&claim("ageless", "", tls));
        assert_eq!(lost(&rig, "shop/ageless"), [vec![whole]]);
        assert_eq!(lost(&rig, "shop/first"), [vec![whole], vec![]]);
        rig.delete(ObjectKind::Service, "shop/elder");
        assert_eq!(lost(&rig, "shop/first"), [vec![], vec![]], "given back");
    }
}
