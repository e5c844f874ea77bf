//! Which endpoints get which weight, row by row as kube-proxy's own table of categories has it, for both families.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use proptest::prelude::*;
use rig::{Rig, labelled, node, service_with, slice};
use tidegate_control::watch::Dialect;

const HTTP_8080: &str = "{ name: http, port: 8080, protocol: TCP }";
const HINTS: &str = "  topologyHints: true\n";

fn web(metadata: &str, spec: &str) -> String {
    let addresses = "tidegate.io/addresses: \"203.0.113.10,2001:db8:f::10\"";
    let metadata = format!("annotations: {{ {addresses}, {metadata} }}");
    service_with("web", &metadata, &format!("{spec} ports: [{{ name: http, port: 80 }}]"))
}

/// One endpoint: `HOST[=LETTERS][@NODE][ zone ZONE…][ node NODE…]`, letters as in `rig::endpoints`.
fn endpoint(text: &str, prefix: &str) -> String {
    let mut words = text.split(' ');
    let (host, node) = words.next().unwrap().split_once('@').map_or((text.split(' ').next().unwrap(), ""), |pair| pair);
    let base = rig::endpoints(&[&format!("{prefix}{host}")]);
    let mut fields = base.trim_end_matches(" }").to_string();
    if fields.ends_with("true") || fields.ends_with("false") {
        fields.push_str(" }"); // the conditions' own
    }
    if !node.is_empty() {
        fields.push_str(&format!(", nodeName: {node}"));
    }
    let hint = |kind: &str| {
        let mut of_kind = text.split(' ').skip(1).scan("", |last, word| {
            *last = if ["zone", "node"].contains(&word) { word } else { last };
            Some((*last, word))
        });
        let names: Vec<String> = of_kind
            .by_ref()
            .filter(|(last, word)| *last == kind && *word != kind)
            .map(|(_, word)| format!("{{ name: {word} }}"))
            .collect();
        names.join(", ")
    };
    let (zones, nodes) = (hint("zone"), hint("node"));
    if !(zones.is_empty() && nodes.is_empty()) {
        fields.push_str(&format!(", hints: {{ forZones: [{zones}], forNodes: [{nodes}] }}"));
    }
    format!("{fields} }}")
}

/// Weights as `HOST*CLUSTER/LOCAL` for the endpoints given, in one family.
fn weights(extra: &str, metadata: &str, spec: &str, nodes: &str, given: &[&str], v4: bool) -> Vec<String> {
    let (prefix, family) = if v4 { ("10.244.1.", "IPv4") } else { ("fd00:10:244:1::", "IPv6") };
    let list: Vec<String> = given.iter().map(|text| endpoint(text, prefix)).collect();
    let mut rig = Rig::with(Dialect::Files, extra);
    rig.apply(&(web(metadata, spec) + nodes + &slice("s", "web", family, HTTP_8080, &list.join(", "))));
    let shown = rig.service("shop/web").ports[0].backends.iter().map(|backend| {
        let host = backend.address.to_string().trim_start_matches(prefix).to_string();
        format!("{host}*{}/{}", backend.weight, backend.local_weight)
    });
    shown.collect()
}

fn expect(extra: &str, metadata: &str, rows: &[(&str, &[&str], &[&str])]) {
    let gateway = labelled(&node("gw-1", 9), "topology.kubernetes.io/zone: a");
    for (what, given, expected) in rows {
        for v4 in [true, false] {
            let found = weights(extra, metadata, "", &gateway, given, v4);
            assert_eq!(&found, expected, "{what}, {}", if v4 { "IPv4" } else { "IPv6" });
        }
    }
}

#[test]
fn hints_choose_the_cluster_set_only_if_every_ready_endpoint_has_them() {
    // S-045: this gateway is Node gw-1 in zone a.
    expect(
        HINTS,
        "",
        &[
            ("T-001 one without a hint", &["1 zone a", "2 zone b", "3"], &["1*1/0", "2*1/0", "3*1/0"]),
            ("all hinted, mine among them", &["1 zone a", "2 zone b", "3 zone a"], &["1*1/0", "2*0/0", "3*1/0"]),
            ("T-002 mine is not ready", &["1=st zone a", "2 zone b", "3 zone c"], &["1*0/0", "2*1/0", "3*1/0"]),
            ("T-003 several hints", &["1 zone c a", "2 zone b", "3 zone b a"], &["1*1/0", "2*0/0", "3*1/0"]),
            ("nobody is meant for here", &["1 zone b", "2 zone c"], &["1*1/0", "2*1/0"]),
            ("hints of endpoints that are not ready do not count", &["1 zone a", "2=s", "3=t"], &["1*1/0", "2*0/0"]),
            ("T-008 same node", &["1 node gw-1", "2 node w2", "3 node w3 gw-1"], &["1*1/0", "2*0/0", "3*1/0"]),
            (
                "T-008 a node hint is missing: zones count",
                &["1 node gw-1 zone a", "2 zone a", "3 node w3 zone b"],
                &["1*1/0", "2*1/0", "3*0/0"],
            ),
            ("T-008 neither is complete: all", &["1 node gw-1 zone a", "2"], &["1*1/0", "2*1/0"]),
            ("T-008 no node hint names me: zones", &["1 node w1 zone a", "2 node w2 zone b"], &["1*1/0", "2*0/0"]),
            ("T-004 the fallback knows no hints", &["1=st zone b", "2=st zone a"], &["1*1/0", "2*1/0"]),
            // Hints choose the Cluster set only: the Local set has them all.
            ("S-045 Local", &["1@w1 zone a", "2@w2 zone b"], &["1*1/1", "2*0/1"]),
            // Left out by its hint, ready, and not serving: not of the serving set either (S-102).
            ("S-102", &["1 zone a", "2=r zone b", "3=rs zone b"], &["1*1/0", "3*0/0"]),
        ],
    );
}

#[test]
fn hints_are_off_unless_the_node_file_says_so() {
    // S-046, and design 5: gateways in different zones are to choose alike.
    expect("", "", &[("off", &["1 zone a node gw-1", "2 zone b node w2"], &["1*1/0", "2*1/0"])]);
}

#[test]
fn a_gateway_whose_zone_is_not_known_uses_all() {
    // S-045
    for nodes in ["", &node("gw-1", 9)] {
        assert_eq!(weights(HINTS, "", "", nodes, &["1 zone a", "2 zone b"], true), ["1*1/0", "2*1/0"]);
    }
}

#[test]
fn a_node_that_moves_to_another_zone_takes_its_services_along() {
    let mut rig = Rig::with(Dialect::Files, HINTS);
    let list = [endpoint("1 zone a", "10.244.1."), endpoint("2 zone b", "10.244.1.")].join(", ");
    rig.apply(&(web("", "") + &slice("s", "web", "IPv4", HTTP_8080, &list)));
    let zone = |zone: &str| labelled(&node("gw-1", 9), &format!("topology.kubernetes.io/zone: {zone}"));
    for (zone, expected) in [
        (zone("a"), ["10.244.1.1:8080*1", "10.244.1.2:8080*0"]),
        (zone("b"), ["10.244.1.1:8080*0", "10.244.1.2:8080*1"]),
        (node("gw-1", 9), ["10.244.1.1:8080*1", "10.244.1.2:8080*1"]),
    ] {
        rig.apply(&zone);
        assert_eq!(rig.backends("shop/web", 80), expected);
    }
}

#[test]
fn the_local_set_is_that_of_all_nodes() {
    expect(
        "",
        "",
        &[
            ("S-048 ready ones on their nodes", &["1@w1", "2@w2", "3@w1"], &["1*1/1", "2*1/1", "3*1/1"]),
            ("S-049 without a node", &["1@w1", "2"], &["1*1/1", "2*1/0"]),
            ("S-049, S-071 none has a node", &["1", "2"], &["1*1/0", "2*1/0"]),
            // kube-proxy on w2 would use its own terminating one; a gateway sends nothing there while w1 is ready.
            ("T-005 with S-048", &["1=rs@w1", "2=st@w2"], &["1*1/1", "2*0/0"]),
            ("S-048 no node has a ready one", &["1=st@w1", "2=st@w2", "3=s@w3"], &["1*1/1", "2*1/1", "3*0/0"]),
            // Each set falls back on its own (S-043).
            ("the ready one has no node", &["1=rs", "2=st@w2", "3=s@w3"], &["1*1/0", "2*0/1", "3*0/0"]),
            ("S-044", &["1=@w1", "2=t@w2"], &[]),
        ],
    );
}

#[test]
fn each_family_has_its_own_local_set() {
    // S-121 with S-048
    let mut rig = Rig::new();
    rig.apply(
        &(web("", "")
            + &slice("s4", "web", "IPv4", HTTP_8080, &endpoint("1=rs@w1", "10.244.1."))
            + &slice("s6", "web", "IPv6", HTTP_8080, &endpoint("1=st@w1", "fd00:10:244:1::"))),
    );
    let weights: Vec<(u16, u16)> =
        rig.service("shop/web").ports[0].backends.iter().map(|b| (b.weight, b.local_weight)).collect();
    assert_eq!(weights, [(1, 1), (1, 1)]);
}

#[test]
fn nodes_that_are_excluded_from_load_balancers_are_no_targets() {
    // S-006: by the modes that choose nodes; "false" is not excluded, anything unreadable is.
    let local = "externalTrafficPolicy: Local,";
    for (label, excluded) in [
        ("\"true\"", true),
        ("\"\"", true),
        ("\"maybe\"", true),
        ("\"false\"", false),
        ("\"0\"", false),
        ("\"F\"", false),
    ] {
        let label = format!("node.kubernetes.io/exclude-from-external-load-balancers: {label}");
        let nodes = labelled(&node("w1", 1), &label) + &node("w2", 2);
        let expected = if excluded { ["1*1/0", "2*1/1"] } else { ["1*1/1", "2*1/1"] };
        for v4 in [true, false] {
            assert_eq!(weights("", "", local, &nodes, &["1@w1", "2@w2"], v4), expected, "{label}");
            let fullnat = "tidegate.io/delivery-mode: fullnat";
            assert_eq!(weights("", fullnat, local, &nodes, &["1@w1", "2@w2"], v4), ["1*1/1", "2*1/1"], "{label}");
        }
    }
}

#[test]
fn weights_come_from_the_annotation() {
    // By address, else by pod; both sets; chosen ones only.
    let endpoint = |host: &str, pod: &str, letters: &str| {
        let base = rig::endpoints(&[&format!("{host}={letters}")]);
        let more = format!(", nodeName: w1, targetRef: {{ kind: Pod, name: {pod} }} }}");
        base[..base.len() - 2].to_string() + &more
    };
    let mut rig = Rig::new();
    let metadata = "tidegate.io/weights: \"web-0=5, 10.244.1.2=0, [fd00:10:244:1::2]=9, web-3=7\"";
    let v4 = [
        endpoint("10.244.1.1", "web-0", "rs"),
        endpoint("10.244.1.2", "web-1", "rs"),
        endpoint("10.244.1.3", "web-2", "rs"),
        endpoint("10.244.1.4", "web-3", "st"),
    ];
    let v6 = [endpoint("fd00:10:244:1::1", "web-0", "rs"), endpoint("fd00:10:244:1::2", "web-1", "rs")];
    rig.apply(
        &(web(metadata, "")
            + &slice("s4", "web", "IPv4", HTTP_8080, &v4.join(", "))
            + &slice("s6", "web", "IPv6", HTTP_8080, &v6.join(", "))),
    );
    let weights: Vec<(u16, u16)> =
        rig.service("shop/web").ports[0].backends.iter().map(|b| (b.weight, b.local_weight)).collect();
    assert_eq!(weights, [(5, 5), (0, 0), (1, 1), (0, 0), (5, 5), (9, 9)]);
}

/// One endpoint as the table of categories sees it.
#[derive(Clone, Debug)]
struct Seen {
    ready: bool,
    serving: bool,
    terminating: bool,
    node: Option<u8>,
    zones: Vec<u8>,
    nodes: Vec<u8>,
}

fn seen() -> impl Strategy<Value = Seen> {
    let hints = || prop::collection::vec(0u8..3, 0..3);
    (any::<(bool, bool, bool)>(), prop::option::of(0u8..3), hints(), hints()).prop_map(
        |(conditions, node, zones, nodes)| {
            let (ready, serving, terminating) = conditions;
            Seen { ready, serving, terminating, node, zones, nodes }
        },
    )
}

/// The rules in the order of the specification, each set made by hand: (Cluster set, Local set) as indexes. Node 0 in
/// zone 0 is here.
fn oracle(endpoints: &[Seen]) -> (Vec<usize>, Vec<usize>) {
    let pick = |rule: &dyn Fn(&Seen) -> bool| -> Vec<usize> {
        (0..endpoints.len()).filter(|index| rule(&endpoints[*index])).collect()
    };
    let ready: Vec<&Seen> = endpoints.iter().filter(|endpoint| endpoint.ready).collect();
    let node_mode = ready.iter().all(|one| !one.nodes.is_empty()) && ready.iter().any(|one| one.nodes.contains(&0));
    let zone_mode = ready.iter().all(|one| !one.zones.is_empty()) && ready.iter().any(|one| one.zones.contains(&0));
    let mut cluster =
        pick(&|one| one.ready && if node_mode { one.nodes.contains(&0) } else { !zone_mode || one.zones.contains(&0) });
    if cluster.is_empty() {
        cluster = pick(&|one| one.serving && one.terminating);
    }
    let mut local = pick(&|one| one.ready && one.node.is_some());
    if local.is_empty() {
        local = pick(&|one| one.serving && one.terminating && one.node.is_some());
    }
    (cluster, local)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_sets_are_those_of_the_specification(endpoints in prop::collection::vec(seen(), 0..6), v4 in any::<bool>()) {
        // S-043, S-044, S-045, S-048, S-049
        let names = |kind: &str, list: &[u8]| match list.is_empty() {
            true => String::new(),
            false => format!(" {kind} {}", list.iter().map(|n| name(kind, *n)).collect::<Vec<_>>().join(" ")),
        };
        fn name(kind: &str, n: u8) -> String {
            match (kind, n) {
                ("node", 0) => "gw-1".into(),
                ("node", n) => format!("w{n}"),
                (_, n) => ["a", "b", "c"][usize::from(n)].into(),
            }
        }
        let texts: Vec<String> = endpoints.iter().enumerate().map(|(index, one)| {
            let letters: String = [(one.ready, 'r'), (one.serving, 's'), (one.terminating, 't')]
                .iter().filter(|(holds, _)| *holds).map(|(_, letter)| *letter).collect();
            let node = one.node.map_or(String::new(), |n| format!("@{}", name("node", n)));
            format!("{}={letters}{node}{}{}", index + 1, names("zone", &one.zones), names("node", &one.nodes))
        }).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let gateway = labelled(&node("gw-1", 9), "topology.kubernetes.io/zone: a");
        let (cluster, local) = oracle(&endpoints);
        let expected: Vec<String> = (0..endpoints.len())
            .filter(|index| cluster.contains(index) || local.contains(index) || endpoints[*index].serving)
            .map(|index| format!(
                "{}*{}/{}", index + 1, u8::from(cluster.contains(&index)), u8::from(local.contains(&index))
            ))
            .collect();
        prop_assert_eq!(weights(HINTS, "", "", &gateway, &texts, v4), expected);
    }
}

/// Endpoints that are there and do not serve are told, of a family in which none gets new flows, and of no other.
#[test]
fn who_does_not_serve_is_told_where_nobody_does() {
    for (v4, family) in [(true, "IPv4"), (false, "IPv6")] {
        let prefix = if v4 { "10.244.1." } else { "fd00:10:244:1::" };
        let told = |given: &[&str]| {
            let list: Vec<String> = given.iter().map(|text| endpoint(text, prefix)).collect();
            let mut rig = Rig::new();
            rig.apply(&(web("", "") + &slice("s", "web", family, HTTP_8080, &list.join(", "))));
            let port = &rig.service("shop/web").ports[0];
            let told = port.not_serving.iter().map(|endpoint| (endpoint.address.to_string(), endpoint.node.clone()));
            (port.backends.len(), told.collect::<Vec<_>>())
        };
        let of = |host: &str, node: &str| (format!("{prefix}{host}"), node.to_owned());
        assert_eq!(told(&["1=@w1", "2=@w2", "3=s@w3"]), (1, vec![of("1", "w1"), of("2", "w2")]), "one drains");
        assert_eq!(told(&["1=@w1", "2=rs@w2"]), (1, vec![]), "one is ready");
        assert_eq!(told(&["1=@w1", "2=st@w2"]), (1, vec![]), "one ends and is taken");
        assert_eq!(told(&[]), (0, vec![]));
        let many: Vec<String> = (1..=20).map(|host| format!("{host}=@w1")).collect();
        assert_eq!(told(&many.iter().map(String::as_str).collect::<Vec<_>>()).1.len(), 8, "some of many");
    }
}

#[test]
fn sources_are_sent_to_endpoints_of_their_own() {
    // T-122: by address and by pod, both families; what names no endpoint is told and not sent.
    let endpoint = |host: &str, pod: &str, letters: &str| {
        let base = rig::endpoints(&[&format!("{host}={letters}")]);
        let more = format!(", nodeName: w1, targetRef: {{ kind: Pod, name: {pod} }} }}");
        base[..base.len() - 2].to_string() + &more
    };
    let slices = slice(
        "s4",
        "web",
        "IPv4",
        HTTP_8080,
        &[
            endpoint("10.244.1.1", "web-0", "rs"),
            endpoint("10.244.1.2", "web-1", "rs"),
            endpoint("10.244.1.3", "web-2", "st"),
        ]
        .join(", "),
    ) + &slice("s6", "web", "IPv6", HTTP_8080, &endpoint("fd00:10:244:1::1", "web-0", "rs"));
    let sent = |metadata: &str| {
        let mut rig = Rig::new();
        rig.apply(&(web(metadata, "") + &slices));
        let port = &rig.service("shop/web").ports[0];
        let sent: Vec<String> =
            port.source_backends.iter().map(|entry| format!("{} {}", entry.sources, entry.address)).collect();
        let note = rig.note("shop/web", "SourceBackendsHonoured");
        (sent, note.map(|(reason, message)| (reason, message.to_owned())))
    };
    let (entries, note) =
        sent("tidegate.io/source-backends: \"10.1.0.0/17=10.244.1.2, 192.0.2.7=web-0, 2001:db8::/48=web-0\"");
    assert_eq!(entries, ["10.1.0.0/17 10.244.1.2", "192.0.2.7/32 10.244.1.1", "2001:db8::/48 fd00:10:244:1::1"]);
    assert_eq!(note, None);
    let (entries, note) =
        sent("tidegate.io/source-backends: \"10.1.0.0/17=web-2, 10.2.0.0/16=10.244.1.9, 2001:db8::/48=web-1\"");
    assert_eq!(entries, ["10.1.0.0/17 10.244.1.3"], "one that may be ready again is known");
    let (reason, message) = note.unwrap();
    assert_eq!(reason, "NoSuchEndpoint");
    for part in ["10.1.0.0/17=web-2 at port 80/TCP", "10.2.0.0/16=10.244.1.9", "2001:db8::/48=web-1"] {
        assert!(message.contains(part), "{message}");
    }
    let (entries, note) =
        sent("tidegate.io/delivery-mode: node-dsr, tidegate.io/source-backends: \"10.1.0.0/17=web-0\"");
    assert_eq!((entries.len(), note.unwrap().0), (0, "OnlyInFullnat"));
}
