//! Nodes with flannel's annotations → this gateway and its peers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use rig::{Rig, node, node_with};
use tidegate_api::resource::{OrphanTcp, PeerVtep, Vtep};
use tidegate_control::source::ObjectKind;

#[test]
fn the_own_node_becomes_the_gateway() {
    // V-020, V-022, V-023, V-024
    let mut rig = Rig::new();
    rig.apply(&node("gw-1", 9));
    let gateway = rig.gateway().unwrap();
    let v4 = Vtep {
        underlay: "198.51.100.9".parse().unwrap(),
        mac: "02:00:00:00:04:09".parse().unwrap(),
        overlay: "10.244.9.0".parse().unwrap(),
        vni: 1,
        port: 8472,
    };
    let v6 = Vtep {
        underlay: "2001:db8:2::9".parse().unwrap(),
        mac: "02:00:00:00:06:09".parse().unwrap(),
        overlay: "fd00:10:244:9::".parse().unwrap(),
        vni: 1,
        port: 8472,
    };
    assert_eq!((gateway.vtep_v4.as_ref(), gateway.vtep_v6.as_ref()), (Some(&v4), Some(&v6)));
    assert_eq!(gateway.fullnat_sources.len(), 2);
    assert_eq!(gateway.pod_cidrs.len(), 2);
    assert_eq!((gateway.clamp_mss, gateway.orphan_tcp), (true, OrphanTcp::Drop));
    assert!(rig.problems().is_empty(), "{:?}", rig.problems());
    assert!(rig.peer("gw-1").is_none(), "nobody is his own peer");
}

#[test]
fn without_its_own_node_it_says_so_and_waits() {
    let mut rig = Rig::new();
    rig.apply(&node("w1", 1));
    rig.expect_problem(&["Node gw-1", "not there", "waiting"]);
    assert!(rig.peer("w1").is_some());
    rig.apply(&node("gw-1", 9));
    assert!(rig.gateway().is_some() && rig.problems().is_empty());
    rig.delete(ObjectKind::Node, "gw-1");
    assert!(rig.gateway().is_none());
    rig.expect_problem(&["Node gw-1", "not there"]);
}

/// A rig whose node file has this in its control section, and no `fullnatSources` but those.
fn gateway_with(line: &str) -> Rig {
    let file = format!("node: gw-1\ncontrol:\n  source: {{ directory: /nowhere }}\n  {line}\n");
    let file = tidegate_control::config::NodeFile::parse(&file).unwrap();
    let status = tidegate_control::status::StatusWriter::silent();
    let dialect = tidegate_control::watch::Dialect::Files;
    Rig(tidegate_control::reconcile::Reconciler::new(file, dialect, status))
}

#[test]
fn fullnat_hosts_are_addresses_of_whatever_pod_cidrs_the_own_node_has() {
    // V-024: gateways that share a node file reserve the same number in pod CIDRs of their own.
    let mut rig = gateway_with("fullnatHosts: [250, 2]");
    rig.apply(&node("gw-1", 9));
    let sources: Vec<String> = rig.gateway().unwrap().fullnat_sources.iter().map(ToString::to_string).collect();
    assert_eq!(sources, ["10.244.9.2", "10.244.9.250", "fd00:10:244:9::2", "fd00:10:244:9::fa"]);
    assert!(rig.problems().is_empty(), "{:?}", rig.problems());

    // Listed both ways is listed once.
    let mut rig = gateway_with("fullnatHosts: [2]\n  fullnatSources: [10.244.9.2]");
    rig.apply(&node("gw-1", 9));
    assert_eq!(rig.gateway().unwrap().fullnat_sources.len(), 2);

    for (hosts, word) in [("[2, 256]", "10.244.9.0/24 has no address 256"), ("[255]", "10.244.9.255 is the broadcast")]
    {
        let mut rig = gateway_with(&format!("fullnatHosts: {hosts}"));
        rig.apply(&node("gw-1", 9));
        rig.expect_problem(&["Node gw-1", "control.fullnatHosts", word]);
        assert!(rig.gateway().is_none(), "{hosts}");
    }
}

#[test]
fn fullnat_sources_must_lie_in_the_own_pod_cidrs_and_be_nobody_else_s() {
    // V-024
    for (sources, field, word) in [
        ("[10.244.8.2]", "control.fullnatSources[0]", "lies in none of the pod CIDRs of Node gw-1 (10.244.9.0/24)"),
        ("[10.244.9.2, \"fd00:10:244:8::2\"]", "control.fullnatSources[1]", "fd00:10:244:9::/64"),
        ("[10.244.9.0]", "control.fullnatSources[0]", "the VTEP itself"),
        ("[\"fd00:10:244:9::\"]", "control.fullnatSources[0]", "the VTEP itself"),
        ("[10.244.9.255]", "control.fullnatSources[0]", "broadcast"),
    ] {
        let mut rig = gateway_with(&format!("fullnatSources: {sources}"));
        rig.apply(&node("gw-1", 9));
        rig.expect_problem(&["Node gw-1", field, word]);
        assert!(rig.gateway().is_none(), "{sources}");
    }
}

#[test]
fn a_gateway_that_becomes_unusable_keeps_its_last_good_version() {
    let mut rig = Rig::new();
    rig.apply(&node("gw-1", 9));
    rig.apply(&node("gw-1", 8));
    rig.expect_problem(&["Node gw-1", "control.fullnatSources[0]", "last good version"]);
    assert_eq!(rig.gateway().unwrap().vtep_v4.as_ref().unwrap().overlay.to_string(), "10.244.9.0");
}

#[test]
fn other_nodes_become_peers() {
    // V-021, V-022
    let mut rig = Rig::new();
    rig.apply(&node("w1", 1));
    let peer = rig.peer("w1").unwrap();
    let v6 = PeerVtep {
        underlay: "2001:db8:2::1".parse().unwrap(),
        mac: "02:00:00:00:06:01".parse().unwrap(),
        vni: 1,
        port: 8472,
        pod_cidrs: vec!["fd00:10:244:1::/64".parse().unwrap()],
    };
    assert_eq!(peer.v6.as_ref(), Some(&v6));
    assert_eq!(peer.v4.as_ref().unwrap().pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
    rig.delete(ObjectKind::Node, "w1");
    assert!(rig.peer("w1").is_none());
}

/// flannel's annotations without their prefix.
type Annotations<'a> = &'a [(&'a str, &'a str)];

const DATA: &str = "{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:04:01\"}";
const MANAGED: (&str, &str) = ("kube-subnet-manager", "true");
const VXLAN: (&str, &str) = ("backend-type", "vxlan");
const V4: &str = "podCIDR: 10.244.1.0/24";

#[test]
fn flannel_s_annotations_by_the_letter() {
    // (what, podCIDRs, annotations, underlay and VNI of the IPv4 tunnel)
    let rows: &[(&str, &str, Annotations<'_>, &str)] = &[
        ("V-021", V4, &[MANAGED, VXLAN, ("backend-data", DATA), ("public-ip", "198.51.100.1")], "198.51.100.1 1"),
        (
            "overwrite",
            V4,
            &[
                MANAGED,
                VXLAN,
                ("backend-data", DATA),
                ("public-ip", "198.51.100.1"),
                ("public-ip-overwrite", "198.51.100.77"),
            ],
            "198.51.100.77 1",
        ),
        (
            "empty overwrite",
            V4,
            &[MANAGED, VXLAN, ("backend-data", DATA), ("public-ip", "198.51.100.1"), ("public-ip-overwrite", "")],
            "198.51.100.1 1",
        ),
        (
            "no VNI",
            V4,
            &[MANAGED, VXLAN, ("backend-data", "{\"VtepMAC\":\"02:00:00:00:04:01\"}"), ("public-ip", "198.51.100.1")],
            "198.51.100.1 1",
        ),
        (
            "VNI",
            V4,
            &[
                MANAGED,
                VXLAN,
                ("backend-data", "{\"VNI\":16777215,\"VtepMAC\":\"02:00:00:00:04:01\"}"),
                ("public-ip", "198.51.100.1"),
            ],
            "198.51.100.1 16777215",
        ),
        (
            "IPv6 said to be null",
            V4,
            &[MANAGED, VXLAN, ("backend-data", DATA), ("public-ip", "198.51.100.1"), ("backend-v6-data", "null")],
            "198.51.100.1 1",
        ),
        (
            "IPv6 without prefix",
            V4,
            &[
                MANAGED,
                VXLAN,
                ("backend-data", DATA),
                ("public-ip", "198.51.100.1"),
                ("backend-v6-data", DATA),
                ("public-ipv6", "2001:db8::1"),
            ],
            "198.51.100.1 1",
        ),
    ];
    for (what, spec, annotations, expected) in rows {
        let mut rig = Rig::new();
        rig.apply(&node_with("w1", spec, annotations));
        let peer = rig.peer("w1").unwrap_or_else(|| panic!("{what}: {:?}", rig.problems()));
        let v4 = peer.v4.as_ref().unwrap();
        assert_eq!(format!("{} {}", v4.underlay, v4.vni), *expected, "{what}");
        assert_eq!(peer.v6, None, "{what}");
    }
}

#[test]
fn nodes_outside_the_overlay_are_ignored_and_the_reason_is_told() {
    let rows: &[(Annotations<'_>, &str, &str)] = &[
        (&[VXLAN, ("backend-data", DATA), ("public-ip", "198.51.100.1")], V4, "kube-subnet-manager"),
        (&[("kube-subnet-manager", "false"), VXLAN], V4, "kube-subnet-manager"),
        (&[MANAGED, ("backend-type", "host-gw")], V4, "host-gw"),
        (&[MANAGED], V4, "backend-type"),
        (&[MANAGED, VXLAN], V4, "backend-data"),
        (&[MANAGED, VXLAN, ("backend-data", DATA)], V4, "public-ip"),
        (&[MANAGED, VXLAN, ("backend-data", DATA), ("public-ip", "198.51.100.1")], "podCIDRs: []", "no IPv4 pod CIDR"),
    ];
    for (annotations, spec, word) in rows {
        let mut rig = Rig::new();
        rig.apply(&node_with("w1", spec, annotations));
        assert!(rig.peer("w1").is_none(), "{word}");
        rig.expect_problem(&["Node w1", word]);
    }
}

#[test]
fn an_invalid_node_keeps_its_last_good_version_and_says_which_field() {
    let data = "metadata.annotations[flannel.alpha.coreos.com/backend-data]";
    let address = "metadata.annotations[flannel.alpha.coreos.com/public-ip]";
    let rows: &[(Annotations<'_>, &str, &str, &str)] = &[
        (&[("backend-data", "{VNI:1}"), ("public-ip", "198.51.100.1")], V4, data, "JSON"),
        (&[("backend-data", "{\"VNI\":1}"), ("public-ip", "198.51.100.1")], V4, data, "VtepMAC is missing"),
        (
            &[("backend-data", "{\"VNI\":16777216,\"VtepMAC\":\"02:00:00:00:04:01\"}"), ("public-ip", "198.51.100.1")],
            V4,
            data,
            "24 bits",
        ),
        (&[("backend-data", "{\"VtepMAC\":\"02:00\"}"), ("public-ip", "198.51.100.1")], V4, data, "02:00"),
        (
            &[("backend-data", "{\"VtepMAC\":\"ff:ff:ff:ff:ff:ff\"}"), ("public-ip", "198.51.100.1")],
            V4,
            data,
            "station",
        ),
        (&[("backend-data", DATA), ("public-ip", "gw.example")], V4, address, "gw.example"),
        (&[("backend-data", DATA), ("public-ip", "2001:db8::1")], V4, address, "IPv4"),
        (
            &[("backend-data", DATA), ("public-ip", "198.51.100.1")],
            "podCIDRs: [10.244.1.0/24, fd00]",
            "spec.podCIDRs[1]",
            "fd00",
        ),
    ];
    for (annotations, spec, field, word) in rows {
        let mut rig = Rig::new();
        rig.apply(&node("w1", 1));
        let annotations: Vec<(&str, &str)> = [MANAGED, VXLAN].iter().chain(annotations.iter()).copied().collect();
        rig.apply(&node_with("w1", spec, &annotations));
        rig.expect_problem(&["Node w1", field, word, "last good version"]);
        assert!(rig.peer("w1").unwrap().v6.is_some(), "{word}");
    }
}
