//! T-040 … T-063 one by one, in the words of the suites they come from; every case in both families where addresses matter.

use tidegate_control::offline::Offline;
use tidegate_control::offline::question::{Answer, Question};

/// Pods a and b in x, a in y (labels `pod` and `ns`), all dual-stack, serving 80 (`serve-80-tcp`), 81, and 53/UDP (`dns`).
const CLUSTER: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {ns: x}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: y, labels: {ns: y}}}
---
{apiVersion: v1, kind: Node, metadata: {name: w1, labels: {role: worker}}, status: {addresses: [{type: InternalIP, address: 172.18.0.2}, {type: InternalIP, address: 'fd00:18::2'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: a, labels: {pod: a}}, spec: {nodeName: w1, containers: [{name: c, ports: [
  {containerPort: 80, name: serve-80-tcp}, {containerPort: 81}, {containerPort: 53, protocol: UDP, name: dns}]}]}, status: {podIPs: [{ip: 10.0.1.1}, {ip: 'fd00::1:1'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: b, labels: {pod: b}}, spec: {containers: [{name: c, ports: [
  {containerPort: 80, name: serve-80-tcp}]}]}, status: {podIPs: [{ip: 10.0.1.2}, {ip: 'fd00::1:2'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: y, name: a, labels: {pod: a}}, spec: {containers: [{name: c}]}, status: {podIPs: [{ip: 10.0.2.1}, {ip: 'fd00::2:1'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: y, name: host, labels: {pod: a}}, spec: {hostNetwork: true, containers: [{name: c}]}, status: {podIPs: [{ip: 172.18.0.9}, {ip: 'fd00:18::9'}]}}
";

pub struct Case(pub Offline);

/// A NetworkPolicy of namespace x.
fn np(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: x, name: {name}}}, spec: {{{spec}}}}}"
    )
}

fn cnp(name: &str, tier: &str, priority: u16, spec: &str) -> String {
    format!(
        "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: {name}}}, \
         spec: {{tier: {tier}, priority: {priority}, subject: {{namespaces: {{matchLabels: {{ns: x}}}}}}, {spec}}}}}"
    )
}

pub fn case(policies: &[String]) -> Case {
    let folder = tempfile::tempdir().unwrap();
    let text = [&[CLUSTER.to_owned()], policies].concat().join("\n---\n");
    std::fs::write(folder.path().join("all.yaml"), text).unwrap();
    Case(Offline::read(folder.path()).unwrap())
}

impl Case {
    pub fn ask(&self, from: &str, to: &str, protocol: &str, port: u32) -> Answer {
        let port = (port != 0).then_some(port);
        let question = Question { from: from.into(), to: to.into(), protocol: protocol.into(), port };
        self.0.ask(&question).unwrap()
    }

    fn tcp(&self, from: &str, to: &str, port: u32) -> bool {
        self.ask(from, to, "TCP", port).combined == "allow"
    }

    /// By name, and by the addresses of both families.
    fn all(&self, from: [&str; 3], to: [&str; 3], port: u32) -> bool {
        let answers = [0, 1, 2].map(|at| self.tcp(from[at], to[at], port));
        assert!(answers.iter().all(|it| *it == answers[0]), "{from:?} {to:?}: {answers:?}");
        answers[0]
    }
}

const XA: [&str; 3] = ["x/a", "10.0.1.1", "fd00::1:1"];
const XB: [&str; 3] = ["x/b", "10.0.1.2", "fd00::1:2"];
const YA: [&str; 3] = ["y/a", "10.0.2.1", "fd00::2:1"];
const OUT: [&str; 3] = ["192.0.2.7", "192.0.2.7", "2001:db8::7"];

/// T-040, P-001, P-003, P-004.
#[test]
fn t_040_default_deny_lets_nothing_in_but_the_pod_itself() {
    let case = case(&[np("deny", "podSelector: {}")]);
    for from in [XB, YA, OUT] {
        assert!(!case.all(from, XA, 80));
    }
    assert!(case.all(XA, XA, 80), "P-033, P-110");
    assert!(case.all(XA, YA, 80), "egress is not isolated (P-002)");
    assert!(case.tcp("172.18.0.2", "x/a", 80) && !case.tcp("172.18.0.3", "x/a", 80), "P-032: its own node");
    assert!(!case.tcp("172.18.0.2", "x/b", 80), "P-032: another pod's node");
}

/// T-041, T-053, P-005.
#[test]
fn t_041_t_053_allow_all_wins_over_deny_all_whatever_the_order() {
    for names in [("a", "b"), ("b", "a")] {
        let case = case(&[np(names.0, "podSelector: {}, ingress: []"), np(names.1, "podSelector: {}, ingress: [{}]")]);
        assert!([XB, YA, OUT].into_iter().all(|from| case.all(from, XA, 80)));
    }
}

/// T-042, P-008.
#[test]
fn t_042_selectors_in_one_peer_are_and_in_two_are_or() {
    let both = "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}, podSelector: {matchLabels: {pod: b}}}]}]";
    let either = "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}, {podSelector: {matchLabels: {pod: b}}}]}]";
    let case_of = |spec: &str| case(&[np("p", spec)]);
    let and = case_of(both);
    assert_eq!([XB, YA, OUT].map(|from| and.all(from, XA, 80)), [true, false, false]);
    let or = case_of(either);
    assert_eq!([XB, YA, OUT].map(|from| or.all(from, XA, 80)), [true, true, false]);
    assert!(!or.tcp("y/host", "x/a", 80), "P-009: it has its node's address");
}

/// T-043, P-005.
#[test]
fn t_043_stacked_policies_add_up() {
    let port =
        |number: u16| format!("podSelector: {{matchLabels: {{pod: a}}}}, ingress: [{{ports: [{{port: {number}}}]}}]");
    let case = case(&[np("p80", &port(80)), np("p81", &port(81))]);
    assert_eq!([80, 81, 82].map(|port| case.all(YA, XA, port)), [true, true, false]);
}

/// T-044, T-052, P-024.
#[test]
fn t_044_t_052_named_ports_are_those_of_the_receiver() {
    let spec = "podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: serve-80-tcp}]}], egress: [{ports: [{port: serve-80-tcp}]}]";
    let named = case(&[np("p", spec)]);
    assert_eq!([80, 81].map(|port| named.all(XB, XA, port)), [true, false]);
    assert!(!named.all(XB, YA, 80), "the receiver has no such port");
    assert!(!named.tcp("x/b", "192.0.2.7", 80), "P-024: nothing off the cluster has names");
    let wrong = case(&[np(
        "p",
        "podSelector: {}, ingress: [{ports: [{port: serve-80-tcp, protocol: UDP}, {port: dns}, {port: nobody}]}]",
    )]);
    assert!(!wrong.all(YA, XA, 80), "name and protocol must both match");
    assert_eq!(wrong.ask("y/a", "x/a", "UDP", 53).combined, "deny");
    let unserved = case(&[np("p", "podSelector: {}, ingress: [{ports: [{port: 7777}]}]")]);
    assert!(unserved.all(YA, XA, 7777), "a number need not be served");
}

/// T-045, P-023.
#[test]
fn t_045_ranges_have_both_ends() {
    let range = case(&[np("p", "podSelector: {}, ingress: [{ports: [{port: 81, endPort: 90, protocol: TCP}]}]")]);
    assert_eq!([80, 81, 90, 91].map(|port| range.all(YA, XA, port)), [false, true, true, false]);
    for wrong in [
        "endPort: 90",
        "port: serve-80-tcp, endPort: 90",
        "port: 90, endPort: 81",
        "port: 0",
        "port: 70000",
        "protocol: GRE",
    ] {
        let case = case(&[np("p", &format!("podSelector: {{}}, ingress: [{{ports: [{{{wrong}}}]}}]"))]);
        assert!(!case.all(YA, XA, 80) && !case.0.problems().is_empty(), "{wrong} is told, and opens nothing");
    }
}

/// P-024: a name that no container can have is told, in both kinds; it matches nothing, and its neighbours stand.
#[test]
fn names_that_no_port_can_have_are_told() {
    let long = "x".repeat(1_000_000);
    for (name, words) in [
        ("80", "without a letter; write a port's number without quotes"),
        ("serve-80-tcp-and", "more than 15 characters"),
        (&long, "more than 15 characters"),
        ("1-2", "without a letter"),
        ("Serve", "other characters than"),
        ("serve_80", "other characters than"),
        ("sérve", "other characters than"),
        ("-serve", "a '-' at its begin"),
        ("serve-", "a '-' at its begin"),
        ("ser--ve", "a '-' at its begin"),
    ] {
        let spec = format!("podSelector: {{}}, ingress: [{{ports: [{{port: '{name}'}}, {{port: 81}}]}}]");
        let case_of_np = case(&[np("p", &spec)]);
        let told: Vec<String> = case_of_np.0.problems().iter().map(ToString::to_string).collect();
        assert!(
            told.len() == 1 && told[0].contains("spec.ingress[0].ports[0].port: ") && told[0].contains(words),
            "{told:?}"
        );
        assert!(told[0].len() < 300, "it is as long as an object");
        assert_eq!([80, 81].map(|port| case_of_np.all(YA, XA, port)), [false, true], "{name}");
        // What the API stores here means what it says: nothing.
        let rules = format!("ingress: [{{action: Deny, {FROM_Y}, protocols: [{{destinationNamedPort: '{name}'}}]}}]");
        let case_of_cnp = case(&[cnp("p", "Admin", 1, &rules)]);
        let told: Vec<String> = case_of_cnp.0.problems().iter().map(ToString::to_string).collect();
        let field = "spec.ingress[0].protocols[0].destinationNamedPort: ";
        assert!(told.len() == 1 && told[0].contains(field) && told[0].contains(words), "{told:?}");
        assert!(case_of_cnp.all(YA, XA, 80), "{name}");
    }
    for name in ["serve-80-tcp", "x", "8a", "a-1-b", "exactly-15-char"] {
        let fine = case(&[np("p", &format!("podSelector: {{}}, ingress: [{{ports: [{{port: {name}}}]}}]"))]);
        assert!(fine.0.problems().is_empty(), "{name}: {:?}", fine.0.problems());
    }
}

/// T-046, P-005, P-020, P-022.
#[test]
fn t_046_exceptions_hold_for_their_block_alone() {
    let block = |cidr: &str, except: &str| {
        format!("podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: '{cidr}', except: [{except}]}}}}]}}]")
    };
    for (cidr, except, from, other) in
        [("10.0.0.0/16", "10.0.2.1/32", YA[1], "10.0.2.2"), ("fd00::/64", "'fd00::2:1/128'", YA[2], "fd00::2:2")]
    {
        let to = if from.contains(':') { XA[2] } else { XA[1] };
        let closed = case(&[np("p", &block(cidr, except))]);
        assert!(!closed.tcp(from, to, 80) && closed.tcp(other, to, 80));
        let open = case(&[np("p", &block(cidr, except)), np("q", &block(except.trim_matches('\''), ""))]);
        assert!(open.tcp(from, to, 80), "P-005, P-022: another policy allows it");
    }
    for wrong in [
        block("10.0.0.0/16", "11.0.0.0/24"),
        block("10.0.0.0/16", "10.0.0.0/16"),
        block("10.0.0.0/33", ""),
        block("all", ""),
    ] {
        let case = case(&[np("p", &wrong)]);
        assert!(!case.tcp("10.0.9.9", "x/a", 80) && !case.0.problems().is_empty(), "{wrong}");
    }
}

/// T-047, P-026, P-027.
#[test]
fn t_047_a_protocol_does_not_open_another() {
    for (spec, open) in
        [("UDP", ["deny", "allow", "deny"]), ("SCTP", ["deny", "deny", "allow"]), ("TCP", ["allow", "deny", "deny"])]
    {
        let case = case(&[np("p", &format!("podSelector: {{}}, ingress: [{{ports: [{{protocol: {spec}}}]}}]"))]);
        assert_eq!(["TCP", "UDP", "SCTP"].map(|it| case.ask("y/a", "x/a", it, 80).combined), open);
        assert_eq!(case.ask("y/a", "x/a", "ICMP", 0).combined, "deny", "P-026: only rules without ports");
    }
    let open = case(&[np("p", "podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]")]);
    assert_eq!(["ICMP", "ICMPv6", "47"].map(|it| open.ask("y/a", "x/a", it, 0).combined), ["allow"; 3], "P-026, P-007");
}

/// T-049, P-006.
#[test]
fn t_049_egress_of_one_and_ingress_of_the_other_are_both_needed() {
    let to_b = "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {pod: b}}}]}]";
    let from_nobody = "podSelector: {matchLabels: {pod: b}}, ingress: []";
    let one = case(&[np("out", to_b)]);
    assert!(one.all(XA, XB, 80) && !one.all(XA, YA, 80) && one.all(YA, XA, 80));
    let both = case(&[np("out", to_b), np("in", from_nobody)]);
    let answer = both.ask("x/a", "x/b", "TCP", 80);
    assert_eq!((answer.egress, answer.ingress, answer.combined), ("allow", "deny", "deny"));
    assert_eq!(
        answer.egress_by,
        serde_json::json!({"kind": "NetworkPolicy", "namespace": "x", "name": "out", "rule": 0})
    );
    assert_eq!(answer.ingress_by["rule"], serde_json::Value::Null);
}

/// T-051, P-002, P-004, P-007: nil, empty and set, in every place.
#[test]
fn t_051_nothing_an_empty_list_and_an_empty_rule() {
    for (spec, ingress, egress) in [
        ("", false, true),
        ("ingress: null", false, true),
        ("ingress: [], egress: []", false, true),
        ("ingress: [{}]", true, true),
        ("ingress: [{from: [], ports: []}]", true, true),
        ("ingress: [{from: null, ports: null}]", true, true),
        ("egress: [{}]", false, true),
        ("policyTypes: []", false, true),
        ("policyTypes: [Egress]", true, false),
        ("policyTypes: [Egress], ingress: [{from: [{podSelector: {matchLabels: {no: one}}}]}]", true, false),
        ("policyTypes: [Egress], egress: [{to: [], ports: []}]", true, true),
        ("policyTypes: [Ingress, Egress], egress: []", false, false),
        ("egress: [{to: [{podSelector: {matchLabels: {no: one}}}]}]", false, false),
    ] {
        for selector in ["podSelector: {}", "podSelector: {matchLabels: {}, matchExpressions: []}", "podSelector: null"]
        {
            let case = case(&[np("p", &format!("{selector}, {spec}"))]);
            assert_eq!((case.all(YA, XA, 80), case.all(XA, YA, 80)), (ingress, egress), "{selector}, {spec}");
            assert!(case.all(YA, YA, 80) && case.all(OUT, YA, 80), "P-001: other namespaces are not touched");
        }
    }
    let spec =
        case(&["{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: x, name: p}}".into()]);
    assert!(!spec.all(YA, XA, 80), "no spec at all selects all and allows nothing in");
}

/// P-011 at the places where a key is absent.
#[test]
fn absent_labels_are_not_in_lists_and_namespaces_have_their_name() {
    let from = |selector: &str| {
        np(
            "p",
            &format!(
                "podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {{matchExpressions: [{selector}]}}}}]}}]"
            ),
        )
    };
    for (selector, open) in [
        ("{key: gone, operator: NotIn, values: [a]}", true),
        ("{key: gone, operator: DoesNotExist}", true),
        ("{key: gone, operator: Exists}", false),
        ("{key: gone, operator: In, values: [a]}", false),
        ("{key: kubernetes.io/metadata.name, operator: In, values: [y]}", true),
        ("{key: kubernetes.io/metadata.name, operator: NotIn, values: [y]}", false),
    ] {
        assert_eq!(case(&[from(selector)]).all(YA, XA, 80), open, "{selector}");
    }
    for wrong in [
        "{key: a, operator: In}",
        "{key: a, operator: Exists, values: [b]}",
        "{key: a, operator: Near, values: [b]}",
        "{operator: Exists}",
    ] {
        let case = case(&[from(wrong)]);
        assert!(!case.all(YA, XA, 80) && !case.0.problems().is_empty(), "{wrong}");
    }
}

const FROM_Y: &str = "from: [{namespaces: {matchLabels: {ns: y}}}]";
const TO_Y: &str = "to: [{namespaces: {matchLabels: {ns: y}}}]";

/// T-055, T-058, P-101, P-102, P-104.
#[test]
fn t_055_the_first_rule_that_matches_counts_and_order_matters() {
    for protocol in ["tcp", "udp", "sctp"] {
        let rule = |action: &str, peer: &str| {
            format!("{{action: {action}, {peer}, protocols: [{{{protocol}: {{destinationPort: {{number: 80}}}}}}]}}")
        };
        for (first, second, answer) in
            [("Accept", "Deny", "allow"), ("Deny", "Accept", "deny"), ("Pass", "Deny", "allow")]
        {
            let spec = |peer| format!("[{}, {}]", rule(first, peer), rule(second, peer));
            let case = case(&[cnp("p", "Admin", 5, &format!("ingress: {}, egress: {}", spec(FROM_Y), spec(TO_Y)))]);
            let upper = protocol.to_uppercase();
            assert_eq!(case.ask("y/a", "x/a", &upper, 80).ingress, answer, "{first} {second}");
            assert_eq!(case.ask("x/a", "y/a", &upper, 80).egress, answer, "T-058: directions are independent");
            assert_eq!(case.ask("y/a", "x/a", &upper, 81).ingress, "allow", "P-104");
            assert_eq!(case.ask("x/b", "x/a", &upper, 80).ingress, "allow");
        }
    }
}

/// T-056, P-101, P-102.
#[test]
fn t_056_the_lower_priority_number_goes_first() {
    let deny =
        cnp("deny", "Admin", 10, &format!("ingress: [{{action: Deny, {FROM_Y}}}], egress: [{{action: Deny, {TO_Y}}}]"));
    let pass = |priority| {
        cnp(
            "pass",
            "Admin",
            priority,
            &format!("ingress: [{{action: Pass, {FROM_Y}}}], egress: [{{action: Pass, {TO_Y}}}]"),
        )
    };
    assert!(!case(std::slice::from_ref(&deny)).all(YA, XA, 80));
    for (priority, open) in [(9, true), (11, false)] {
        let case = case(&[deny.clone(), pass(priority)]);
        assert_eq!((case.all(YA, XA, 80), case.all(XA, YA, 80)), (open, open));
    }
    let baseline = cnp(
        "base",
        "Baseline",
        0,
        &format!("ingress: [{{action: Deny, {FROM_Y}}}], egress: [{{action: Deny, {TO_Y}}}]"),
    );
    let passed = case(&[deny, pass(9), baseline]);
    assert!(!passed.all(YA, XA, 80) && !passed.all(XA, YA, 80), "passed on to the baseline");
}

/// T-057, P-100, P-102, P-103.
#[test]
fn t_057_tiers_are_asked_in_their_order() {
    let tier = |tier: &str, action: &str| {
        cnp(
            &tier.to_lowercase(),
            tier,
            1,
            &format!("ingress: [{{action: {action}, {FROM_Y}}}], egress: [{{action: {action}, {TO_Y}}}]"),
        )
    };
    let np = |rules: &str| {
        np("np", &format!("podSelector: {{}}, policyTypes: [Ingress, Egress], ingress: {rules}, egress: {rules}"))
    };
    for (policies, open) in [
        (vec![tier("Admin", "Deny"), np("[{}]"), tier("Baseline", "Accept")], false),
        (vec![tier("Admin", "Accept"), np("[]"), tier("Baseline", "Deny")], true),
        (vec![tier("Admin", "Pass"), np("[]"), tier("Baseline", "Accept")], false),
        (vec![tier("Admin", "Pass"), np("[{}]"), tier("Baseline", "Deny")], true),
        (vec![tier("Admin", "Pass"), tier("Baseline", "Deny")], false),
        (vec![tier("Admin", "Pass"), tier("Baseline", "Pass")], true),
        (vec![tier("Baseline", "Deny")], false),
    ] {
        let case = case(&policies);
        assert_eq!((case.all(YA, XA, 80), case.all(XA, YA, 80)), (open, open), "{policies:?}");
    }
}

/// P-033, P-103, P-110: by its own address a pod reaches itself whatever anybody says; through a Service the outer tiers
/// have their say, and policies of namespaces silence the baseline.
#[test]
fn a_pod_that_reaches_itself_through_a_service_is_subject_to_the_outer_tiers() {
    let service = "{apiVersion: v1, kind: Service, metadata: {namespace: x, name: front}, spec: {selector: {pod: a}, ports: [{port: 443, targetPort: 80}]}}";
    let outer = |tier: &str, action: &str, ingress: bool| {
        let rules = match ingress {
            true => format!("ingress: [{{action: {action}, from: [{{namespaces: {{}}}}]}}]"),
            false => format!("egress: [{{action: {action}, to: [{{namespaces: {{}}}}]}}]"),
        };
        cnp(&format!("{}-{ingress}", tier.to_lowercase()), tier, 1, &rules)
    };
    let shut = || np("shut", "podSelector: {}, policyTypes: [Ingress, Egress]");
    let silenced = "(baseline tier) is not asked: a NetworkPolicy isolates the pod";
    for (policies, open, words) in [
        (vec![], true, "no policy is about the pod"),
        (vec![shut()], true, "the pod is isolated by NetworkPolicy x/shut, which keeps no pod from itself"),
        (
            vec![outer("Admin", "Deny", true)],
            false,
            "ClusterNetworkPolicy admin-true (admin tier) rule 0 matches and denies",
        ),
        (
            vec![outer("Admin", "Deny", false), shut()],
            false,
            "ClusterNetworkPolicy admin-false (admin tier) rule 0 matches and denies",
        ),
        (
            vec![outer("Admin", "Pass", true), outer("Admin", "Pass", false), shut()],
            true,
            "which keeps no pod from itself",
        ),
        (
            vec![outer("Baseline", "Deny", true)],
            false,
            "ClusterNetworkPolicy baseline-true (baseline tier) rule 0 matches and denies",
        ),
        (
            vec![outer("Baseline", "Deny", false)],
            false,
            "ClusterNetworkPolicy baseline-false (baseline tier) rule 0 matches and denies",
        ),
        (vec![outer("Baseline", "Deny", true), outer("Baseline", "Deny", false), shut()], true, silenced),
        (
            vec![outer("Baseline", "Deny", false), np("in", "podSelector: {}")],
            false,
            "baseline-false (baseline tier) rule 0",
        ),
    ] {
        let slice = |family: &str, address: &str| {
            format!(
                "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{namespace: x, name: 'front-{family}', labels: {{kubernetes.io/service-name: front}}}}, \
                 addressType: {family}, ports: [{{name: '', port: 80}}], endpoints: [{{addresses: ['{address}'], conditions: {{ready: true}}}}]}}"
            )
        };
        let behind = [vec![], vec![slice("IPv4", XA[1])], vec![slice("IPv6", XA[2])]];
        for slices in behind {
            let case = case(&[policies.clone(), vec![service.to_owned()], slices].concat());
            let question =
                Question { from: XA[0].into(), to: "x/front".into(), protocol: "TCP".into(), port: Some(443) };
            let told = case.0.explain(&question).unwrap();
            let verdict =
                if open { "pod x/a -> pod x/a TCP port 80: ALLOWED" } else { "pod x/a -> pod x/a TCP port 80: DENIED" };
            assert!(told.contains(verdict) && told.contains(words), "{policies:?}: {words}\n{told}");
            assert!(case.all(XA, XA, 80), "by its own address: {policies:?}");
            let answer = case.ask(XA[0], XA[0], "TCP", 80);
            assert_eq!([answer.ingress_by, answer.egress_by], ["self", "self"]);
        }
    }
}

/// P-103: the baseline is not asked for a direction that a NetworkPolicy isolates, whatever that policy says, and is
/// for the other one.
#[test]
fn a_network_policy_silences_the_baseline_for_its_directions_alone() {
    let base = cnp(
        "base",
        "Baseline",
        1,
        &format!("ingress: [{{action: Deny, {FROM_Y}}}], egress: [{{action: Deny, {TO_Y}}}]"),
    );
    for (policies, ingress, egress) in [
        ("", false, false),
        ("policyTypes: [Ingress], ingress: [{}]", true, false),
        ("policyTypes: [Egress], egress: [{}]", false, true),
        ("policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]", true, true),
        ("policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 81}]}], egress: [{}]", false, true),
    ] {
        let np = (!policies.is_empty()).then(|| np("np", &format!("podSelector: {{}}, {policies}")));
        let case = case(&[vec![base.clone()], np.into_iter().collect()].concat());
        assert_eq!((case.all(YA, XA, 80), case.all(XA, YA, 80)), (ingress, egress), "{policies}");
    }
}

/// P-108: without `protocols` a rule is about all of them; a named port is a pod's, and not for rules about others.
#[test]
fn rules_of_tiers_without_protocols_are_about_all_and_names_are_for_pods() {
    let deny = |rest: &str| case(&[cnp("p", "Admin", 1, &format!("egress: [{{action: Deny, {rest}}}]"))]);
    let protocols = [("TCP", 80), ("UDP", 80), ("SCTP", 80), ("ICMP", 0), ("ICMPv6", 0), ("47", 0)];
    let all = deny(TO_Y);
    assert_eq!(protocols.map(|(protocol, port)| all.ask("x/a", "y/a", protocol, port).egress), ["deny"; 6]);
    let one = deny(&format!("{TO_Y}, protocols: [{{udp: {{destinationPort: {{range: {{start: 79, end: 80}}}}}}}}]"));
    let told = protocols.map(|(protocol, port)| one.ask("x/a", "y/a", protocol, port).egress);
    assert_eq!(told, ["allow", "deny", "allow", "allow", "allow", "allow"]);
    let to_x = "to: [{namespaces: {matchLabels: {ns: x}}}]";
    let named = deny(&format!("{to_x}, protocols: [{{destinationNamedPort: serve-80-tcp}}]"));
    assert_eq!([80, 81].map(|port| named.all(XA, XB, port)), [false, true]);
    assert!(named.0.problems().is_empty() && named.all(XA, YA, 80));
    let others = deny("to: [{networks: [10.0.2.1/32]}], protocols: [{destinationNamedPort: serve-80-tcp}]");
    assert!(!others.all(XA, YA, 80) && !others.all(XA, OUT, 80), "P-109: what the API refuses is closed");
    assert!(others.0.problems()[0].to_string().contains("only pods have named ports"), "{:?}", others.0.problems());
}

/// T-059, P-106, P-107, P-112.
#[test]
fn t_059_networks_and_nodes_match_whoever_has_the_address() {
    let to = |peer: &str| cnp("p", "Admin", 1, &format!("egress: [{{action: Deny, to: [{peer}]}}]"));
    for (peer, denied) in [
        ("{networks: ['10.0.2.1/32', 'fd00::2:1/128']}", [true, false, false]),
        ("{networks: [0.0.0.0/0, '::/0']}", [true, true, true]),
        ("{networks: [172.18.0.2/32, 'fd00:18::2/128']}", [false, false, true]),
        ("{nodes: {matchLabels: {role: worker}}}", [false, false, true]),
        ("{nodes: {matchLabels: {role: other}}}", [false, false, false]),
    ] {
        let case = case(&[to(peer)]);
        for (ends, denied) in [YA, OUT, ["172.18.0.2", "172.18.0.2", "fd00:18::2"]].into_iter().zip(denied) {
            assert_eq!(!case.all(["x/a", "x/a", "x/a"], ends, 80), denied, "{peer} {ends:?}");
        }
        assert!(case.all(OUT, XA, 80), "P-106, P-112");
    }
}

/// T-060, P-106, P-107, P-109.
#[test]
fn t_060_what_is_not_known_is_closed() {
    let unknown = "{asteroids: {}}";
    for (action, peers, y, out) in [
        ("Accept", unknown, true, true),
        ("Deny", unknown, false, false),
        ("Pass", unknown, false, false),
        ("Deny", "{networks: [10.0.0.0/8]}", false, false), // no peer of ingress
        ("Deny", "{namespaces: {}}, {asteroids: {}}", false, false),
    ] {
        let case = case(&[cnp("p", "Admin", 1, &format!("ingress: [{{action: {action}, from: [{peers}]}}]"))]);
        assert_eq!((case.all(YA, XA, 80), case.all(OUT, XA, 80)), (y, out), "{action} {peers}");
        assert!(!case.0.problems().is_empty(), "{action} {peers}");
    }
    let misspelt = case(&[cnp("p", "Admin", 1, "ingres: []")]);
    assert!(misspelt.0.problems()[0].to_string().contains("spec.ingres: "), "{:?}", misspelt.0.problems());
    // An Accept that cannot be read does not accept what a later rule denies.
    let rules =
        format!("ingress: [{{action: Accept, from: [{unknown}]}}, {{action: Deny, from: [{{namespaces: {{}}}}]}}]");
    assert!(!case(&[cnp("p", "Admin", 1, &rules)]).all(YA, XA, 80));
    // Names are not looked up: a list of what is open stays closed.
    let names = "egress: [{action: Accept, to: [{domainNames: [example.org]}]}, {action: Deny, to: [{networks: [0.0.0.0/0, '::/0']}]}]";
    assert!(!case(&[cnp("p", "Admin", 1, names)]).all(XA, OUT, 80));
    // A peer of a NetworkPolicy with nothing known in it, or with two things.
    for peer in ["{}", "{fqdn: example.org}", "{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}"] {
        let case = case(&[np("p", &format!("podSelector: {{}}, ingress: [{{from: [{peer}]}}]"))]);
        assert!(!case.all(YA, XA, 80) && !case.0.problems().is_empty(), "{peer}");
    }
}

/// P-101, P-105, P-111: what makes a whole object unusable is said.
#[test]
fn objects_that_cannot_be_used_are_told_by_their_field() {
    let rule = format!("{{action: Deny, {FROM_Y}}}");
    let many = vec![rule.as_str(); 26].join(", ");
    let peers = vec!["{namespaces: {}}"; 26].join(", ");
    let protocols = vec!["{tcp: {destinationPort: {number: 80}}}"; 26].join(", ");
    let networks = vec!["10.0.0.0/8"; 26].join(", ");
    for (policy, field, closed) in [
        (cnp("p", "Boss", 1, &format!("ingress: [{rule}]")), "spec.tier", false),
        (cnp("p", "Admin", 1001, &format!("ingress: [{rule}]")), "spec.priority", false),
        (cnp("p", "Admin", 1, &format!("ingress: [{many}]")), "spec.ingress", false),
        (cnp("p", "Admin", 1, &format!("ingress: [{{action: Deny, from: [{peers}]}}]")), "spec.ingress[0].from", true),
        (
            cnp("p", "Admin", 1, &format!("ingress: [{{action: Deny, {FROM_Y}, protocols: [{protocols}]}}]")),
            "spec.ingress[0].protocols",
            true,
        ),
        (
            cnp("p", "Admin", 1, &format!("egress: [{{action: Deny, to: [{{networks: [{networks}]}}]}}]")),
            "spec.egress[0].to[0].networks",
            false,
        ),
        (cnp("p", "Admin", 1, "ingress: [{action: Deny, from: []}]"), "spec.ingress[0].from", true),
        (cnp("p", "Admin", 1, &format!("ingress: [{{action: Log, {FROM_Y}}}]")), "spec.ingress[0].action", true),
        (
            np("p", "podSelector: {matchExpressions: [{key: a, operator: In}]}"),
            "spec.podSelector.matchExpressions[0]",
            false,
        ),
        (np("p", "podSelector: 7"), "spec.podSelector", false),
    ] {
        let case = case(std::slice::from_ref(&policy));
        let problems: Vec<String> = case.0.problems().iter().map(ToString::to_string).collect();
        assert!(problems.len() == 1 && problems[0].contains(&format!(": {field}: ")), "{policy}: {problems:?}");
        assert_eq!(!case.all(YA, XA, 80), closed, "{policy}");
        let of_egress = field.starts_with("spec.egress");
        assert_eq!(
            case.all(XA, YA, 80),
            !of_egress,
            "a rule that denies and cannot be read denies everything: {policy}"
        );
    }
}

/// T-063, P-025: a question names the pod's port, and so do rules.
#[test]
fn t_063_rules_speak_of_the_pods_port() {
    let port =
        |number: u16| case(&[np("p", &format!("podSelector: {{}}, ingress: [{{ports: [{{port: {number}}}]}}]"))]);
    assert!(!port(80).tcp("192.0.2.7", "x/a", 8080) && port(8080).tcp("192.0.2.7", "x/a", 8080));
}
