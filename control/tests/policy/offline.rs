//! Folders of manifests, questions, and words about them.

use std::fs;
use std::path::Path;

use tidegate_control::offline::Offline;
use tidegate_control::offline::question::Question;
use tidegate_control::problem::Severity;

use super::cases::case;

const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, labels: {app: web}}, \
    spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}, status: {podIP: 10.0.1.1}}";
const DENY: &str = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: clients}, \
    spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 8080}]}]}}";
const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: front}, \
    spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}}";

fn question(from: &str, to: &str, port: u32) -> Question {
    Question { from: from.into(), to: to.into(), protocol: "tcp".into(), port: Some(port) }
}

#[test]
fn a_folder_is_read_to_its_leaves_and_bad_objects_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("deep/er")).unwrap();
    fs::write(at("deep/er/pod.yaml"), format!("# nothing\n---\n{POD}\n---\n")).unwrap();
    fs::write(
        at("deep/list.yml"),
        format!("{{apiVersion: v1, kind: List, items: [{DENY}, {{apiVersion: v1, kind: ConfigMap}}]}}"),
    )
    .unwrap();
    fs::write(at("broken.yaml"), "a: [").unwrap();
    fs::write(at("notes.txt"), "a: [").unwrap();
    fs::write(at("twice.yaml"), POD).unwrap();
    fs::write(at("wrong.json"), r#"{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"shop","name":"odd"},"status":{"podIPs":[{"ip":"here"}]}}"#).unwrap();
    let offline = Offline::read(folder.path()).unwrap();
    let problems: Vec<String> = offline.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 3, "{problems:#?}");
    assert!(
        problems[0].starts_with("broken.yaml document 1") && problems[2].contains("status.podIPs[0].ip"),
        "{problems:#?}"
    );
    assert!(problems[1].starts_with("twice.yaml") && problems[1].contains("deep/er/pod.yaml"), "{problems:#?}");
    assert_eq!(offline.ask(&question("192.0.2.7", "shop/web", 8080)).unwrap().combined, "allow");
    assert_eq!(offline.ask(&question("198.51.100.7", "10.0.1.1", 8080)).unwrap().combined, "deny");
    assert!(Offline::read(&at("nowhere")).is_err());
}

#[test]
fn questions_without_a_meaning_say_why() {
    let service = "{apiVersion: v1, kind: Service, metadata: {namespace: x, name: front}, spec: {ports: [{port: 80}]}}";
    let case = case(&[service.into()]);
    for (from, to, protocol, port, why) in [
        ("x/nobody", "x/a", "TCP", Some(80), "there is no pod x/nobody"),
        ("x/a", "nobody", "TCP", Some(80), "neither an address nor"),
        ("x/a", "x/b", "TCP", None, "port is missing"),
        ("x/a", "x/b", "TCP", Some(0), "is not a port"),
        ("x/a", "x/b", "TCP", Some(65_536), "is not a port"),
        ("x/a", "x/b", "IPX", Some(80), "is no protocol"),
        ("10.0.1.1", "fd00::1:2", "TCP", Some(80), "no address family in common"),
        ("x/a", "x/front", "TCP", Some(80), "x/front is a Service, not a pod: `tidegate policy explain` tells"),
    ] {
        let question = Question { from: from.into(), to: to.into(), protocol: protocol.into(), port };
        let error = case.0.ask(&question).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(case.ask("x/a", "192.0.2.7", "ICMP", 7).port, Some(7), "a port that means nothing is repeated");
}

/// The words name the object and rule that decide, and what was passed over.
#[test]
fn an_explanation_names_what_decided_and_what_did_not() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("all.yaml"), [POD, DENY, SERVICE].join("\n---\n")).unwrap();
    let offline = Offline::read(folder.path()).unwrap();
    let told = |from: &str, to: &str, port| offline.explain(&question(from, to, port)).unwrap();
    let allowed = told("192.0.2.7", "shop/web", 8080);
    assert!(
        allowed.contains("ALLOWED")
            && allowed.contains("NetworkPolicy shop/clients (namespace's tier) rule 0 matches and accepts"),
        "{allowed}"
    );
    let denied = told("198.51.100.7", "shop/web", 8080);
    assert!(denied.contains("DENIED") && denied.contains("198.51.100.7 is none of: 192.0.2.0/24"), "{denied}");
    assert!(denied.contains("isolated by NetworkPolicy shop/clients"), "{denied}");
    assert!(told("192.0.2.7", "shop/web", 80).contains("its ports are 8080/TCP"));
    let service = told("192.0.2.7", "shop/front", 80);
    assert!(
        service.contains("Service shop/front port 80/tcp") && service.contains("pod shop/web tcp port 8080: ALLOWED"),
        "{service}"
    );
    assert!(offline.explain(&question("192.0.2.7", "shop/front", 81)).unwrap_err().contains("has no port 81"));
}

/// P-020: an exception that keeps a peer from matching is named, of many the narrowest.
#[test]
fn an_explanation_names_the_exception() {
    let folder = tempfile::tempdir().unwrap();
    let pod = POD.replace("{podIP: 10.0.1.1}", "{podIPs: [{ip: 10.0.1.1}, {ip: 'fd00::1'}]}");
    let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: clients}, \
        spec: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [
        {ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25, 192.0.2.192/26, 192.0.2.64/32]}},
        {ipBlock: {cidr: '2001:db8::/32', except: ['2001:db8:bad::/48']}}]}],
        egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [198.51.100.0/24]}}, {ipBlock: {cidr: '::/0', except: ['2001:db8:f::/64']}}]}]}}";
    fs::write(folder.path().join("all.yaml"), [&pod, policy].join("\n---\n")).unwrap();
    let offline = Offline::read(folder.path()).unwrap();
    assert!(offline.problems().is_empty(), "{:?}", offline.problems());
    let told = |from: &str, to: &str| offline.explain(&question(from, to, 8080)).unwrap();
    for (from, words) in [
        ("192.0.2.200", "192.0.2.200 is none of: 192.0.2.0/24 (except: 192.0.2.192/26, which holds it)"),
        ("192.0.2.129", "192.0.2.0/24 (except: 192.0.2.128/25, which holds it)"),
        ("192.0.2.64", "192.0.2.0/24 (except: 192.0.2.64/32, which holds it)"),
        ("198.51.100.7", "198.51.100.7 is none of: 192.0.2.0/24 but for 3 prefixes"),
        ("2001:db8:bad::7", "2001:db8::/32 (except: 2001:db8:bad::/48, which holds it)"),
        ("2001:db9::7", "2001:db8::/32 but for 1 prefix"),
    ] {
        let denied = told(from, "shop/web");
        assert!(denied.contains("DENIED") && denied.contains(words), "{from}: {denied}");
    }
    for (to, words) in [
        ("198.51.100.7", "0.0.0.0/0 (except: 198.51.100.0/24, which holds it)"),
        ("2001:db8:f::7", "::/0 (except: 2001:db8:f::/64, which holds it)"),
    ] {
        let denied = told("shop/web", to);
        assert!(denied.contains("DENIED") && denied.contains(words), "{to}: {denied}");
    }
    assert!(told("192.0.2.7", "shop/web").contains("ALLOWED"));
}

/// P-120: before anything is translated, GatewayPolicies are asked.
#[test]
fn an_explanation_of_a_service_begins_with_gateway_policies() {
    let folder = tempfile::tempdir().unwrap();
    let gate = "{apiVersion: tidegate.io/v1alpha1, kind: GatewayPolicy, metadata: {name: doors}, spec: {order: 5, rules: [
        {name: bad, action: Deny, clients: [{cidr: 192.0.2.66/32}, {cidr: '2001:db8::/32', except: ['2001:db8:1::/48']}]},
        {action: Deny, services: [{namespace: shop, selector: {matchLabels: {tier: back}}}]},
        {action: Limit, limits: {newConnectionsPerSecond: 5, burst: 9}, ports: [{port: 80}],
         services: [{selector: {matchLabels: {tier: front}}}]}]}}";
    let trial = "{apiVersion: tidegate.io/v1alpha1, kind: GatewayPolicy, metadata: {name: trial},
        spec: {order: 1, mode: Audit, rules: [{action: Deny}]}}";
    let service = SERVICE.replace("name: front}", "name: front, labels: {tier: front}}");
    let text = [POD, &DENY.replace("192.0.2.0/24", "0.0.0.0/0"), &service, gate, trial].join("\n---\n");
    fs::write(folder.path().join("all.yaml"), text).unwrap();
    let offline = Offline::read(folder.path()).unwrap();
    assert!(offline.problems().is_empty(), "{:?}", offline.problems());
    let told = |from: &str| offline.explain(&question(from, "shop/front", 80)).unwrap();
    for from in ["192.0.2.66", "2001:db8::7"] {
        let denied = told(from);
        assert!(denied.contains(&format!("client {from}: denied, before any pod is chosen")), "{denied}");
        assert!(denied.contains("GatewayPolicy doors (order 5) rule 0 \"bad\" matches and denies"), "{denied}");
        assert!(
            denied.contains("GatewayPolicy trial (order 1) rule 0 matches; it is in audit, in force it would deny")
        );
        assert!(!denied.contains("rule 1") && !denied.contains("pod shop/web"), "{denied}");
    }
    let limited = told("192.0.2.7");
    assert!(limited.contains("client 192.0.2.7: allowed within limits"), "{limited}");
    assert!(limited.contains("rule 0 \"bad\" does not match: 192.0.2.7 is none of its clients"), "{limited}");
    assert!(limited.contains("rule 1 does not match: it is not about Service shop/front"), "{limited}");
    assert!(
        limited.contains("rule 2 matches and allows each source 5 new connections a second, 9 at once"),
        "{limited}"
    );
    let (gate, network) =
        (limited.find("GatewayPolicy doors").unwrap(), limited.find("NetworkPolicy shop/clients").unwrap());
    assert!(gate < network, "{limited}");
    let excepted = told("2001:db8:1::7");
    assert!(
        excepted.contains("allowed within limits")
            && excepted.contains("not of 2001:db8::/32 (except: 2001:db8:1::/48, which holds it)"),
        "{excepted}"
    );
}

/// A policy in audit decides nothing, and what it would deny is told.
#[test]
fn an_explanation_tells_what_is_in_audit() {
    let folder = tempfile::tempdir().unwrap();
    let deny = DENY.replace("name: clients}", "name: clients, annotations: {tidegate.io/audit: 'true'}}");
    fs::write(folder.path().join("all.yaml"), [POD, &deny].join("\n---\n")).unwrap();
    let offline = Offline::read(folder.path()).unwrap();
    assert!(offline.problems().is_empty(), "{:?}", offline.problems());
    let told = offline.explain(&question("198.51.100.7", "shop/web", 8080)).unwrap();
    assert!(
        told.contains("ALLOWED") && told.contains("NetworkPolicy shop/clients (namespace's tier) is in audit"),
        "{told}"
    );
    assert!(told.contains("in force, NetworkPolicy shop/clients would deny it by its isolation"), "{told}");
    let answer = offline.ask(&question("198.51.100.7", "shop/web", 8080)).unwrap();
    assert_eq!((answer.ingress, answer.ingress_audit.unwrap()["name"].as_str()), ("allow", Some("clients")));
    let answer = offline.ask(&question("192.0.2.7", "shop/web", 8080)).unwrap();
    assert_eq!((answer.ingress, answer.ingress_audit), ("allow", None));
    // What it says otherwise is a slip, and the policy is in force.
    fs::write(folder.path().join("all.yaml"), [POD, &deny.replace("'true'", "'yes'")].join("\n---\n")).unwrap();
    let offline = Offline::read(folder.path()).unwrap();
    assert!(offline.problems()[0].to_string().contains("metadata.annotations[tidegate.io/audit]"));
    assert_eq!(offline.ask(&question("198.51.100.7", "shop/web", 8080)).unwrap().combined, "deny");
}

/// An address of several is asked about as the newest one's, and that there are several is told.
#[test]
fn a_question_about_an_address_of_two_pods_is_about_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let pod = |name: &str, day: u8| {
        POD.replace("{podIP: 10.0.1.1}", "{podIPs: [{ip: 10.0.1.1}, {ip: 'fd00::1'}]}")
            .replace("name: web,", &format!("name: {name}, creationTimestamp: '2026-01-0{day}T00:00:00Z',"))
            .replace("app: web", &format!("app: {name}"))
    };
    let deny = DENY.replace("podSelector: {}", "podSelector: {matchLabels: {app: shut}}");
    for (shut, open, expected) in [(1, 2, "allow"), (2, 1, "deny")] {
        fs::write(
            folder.path().join("all.yaml"),
            [&pod("open", open), &pod("shut", shut), &deny].map(String::as_str).join("\n---\n"),
        )
        .unwrap();
        let offline = Offline::read(folder.path()).unwrap();
        for (from, to) in [("198.51.100.7", "10.0.1.1"), ("2001:db8::7", "fd00::1")] {
            assert_eq!(offline.ask(&question(from, to, 8080)).unwrap().combined, expected, "{to}");
            let (newest, other) = if expected == "allow" { ("open", "shut") } else { ("shut", "open") };
            let words = [format!("Pod shop/{other}: "), format!("is {to}, as does Pod shop/{newest}")];
            let is_told = |problem: String| words.iter().all(|word| problem.contains(word));
            assert!(offline.problems().iter().map(ToString::to_string).any(is_told), "{:?}", offline.problems());
        }
    }
}

/// P-045, P-112: the report says of each policy what the CNI on workers has to do with it, and of none that it does
/// nothing.
#[test]
fn policies_about_the_inside_of_the_cluster_are_reported() {
    const NODE: &str =
        "{apiVersion: v1, kind: Node, metadata: {name: w2}, spec: {podCIDRs: [10.0.9.0/24, 'fd00:9::/64']}}";
    let network = |spec: &str| {
        let head = "apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: x, name: p}";
        format!("{{{head}, spec: {{podSelector: {{}}, {spec}}}}}")
    };
    let cluster = |rules: &str| {
        let head = "apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: c}";
        format!("{{{head}, spec: {{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, {rules}}}}}")
    };
    let out = |prefix: &str| cluster(&format!("egress: [{{action: Deny, to: [{{networks: ['{prefix}']}}]}}]"));
    let inside = "c: inside the cluster alone: in force for what crosses a gateway";
    let but = "cidr: 10.0.0.0/8, except: [10.0.0.0/16]";
    for (written, expected) in [
        (
            network("ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]"),
            "in part: isolation for ingress, ingress[0] also",
        ),
        (
            network("ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]"),
            "in part: isolation for ingress also between",
        ),
        (network("policyTypes: [Ingress, Egress]"), "in part: isolation for ingress, isolation for egress also"),
        (network("policyTypes: [Egress], egress: [{}]"), "in part: isolation for egress, egress[0] also"),
        (network(&format!("ingress: [{{from: [{{ipBlock: {{{but}}}}}]}}]")), "in part: isolation for ingress also"),
        (cluster("ingress: [{action: Deny, from: [{namespaces: {}}]}]"), inside),
        (cluster("egress: [{action: Deny, to: [{nodes: {}}]}]"), inside),
        (out("10.0.9.0/24"), inside),
        (out("fd00:9::8:0/112"), inside),
        (out("10.0.1.1/32"), inside),
        (out("10.0.0.0/8"), "in part: egress[0] also"),
        (out("::/0"), "in part: egress[0] also"),
        (out("198.51.100.0/24"), ""),
        (out("2001:db8:f::/48"), ""),
    ] {
        let report = case(&[NODE.into(), written.clone()]).0.report();
        let (told, count) = report.rsplit_once("policies: 1 ").unwrap();
        let counted = match expected {
            "" => "(1 whole, 0 in part, 0 inside the cluster alone)\n",
            _ if expected.starts_with("in part") => "(0 whole, 1 in part, 0 inside the cluster alone)\n",
            _ => "(0 whole, 0 in part, 1 inside the cluster alone)\n",
        };
        assert_eq!(count, counted, "{written}: {report}");
        assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{written}: {report}");
    }
}

/// Kinds of policies that are not read, and priorities that two have in common, are told as they are by a running
/// control.
#[test]
fn what_is_ignored_or_without_order_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let stranger = |types: &str, name: &str| format!("{{apiVersion: {}, metadata: {{name: {name}}}}}\n---\n", types);
    let old = stranger("policy.networking.k8s.io/v1alpha1, kind: AdminNetworkPolicy", "a1")
        + &stranger("policy.networking.k8s.io/v1alpha1, kind: AdminNetworkPolicy", "a2")
        + &stranger("policy.networking.k8s.io/v1alpha1, kind: BaselineAdminNetworkPolicy", "default")
        + &stranger("projectcalico.org/v3, kind: GlobalNetworkPolicy", "g")
        + &stranger("v1, kind: ConfigMap", "c");
    at("old.yaml", &old);
    let cluster = |name: &str, tier: &str, priority: u16| {
        let head = "apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy";
        format!(
            "{{{head}, metadata: {{name: {name}}}, spec: {{tier: {tier}, priority: {priority}, subject: {{namespaces: {{}}}}, \
             egress: [{{action: Deny, to: [{{networks: [192.0.2.0/24, '2001:db8::/32']}}]}}]}}}}\n---\n"
        )
    };
    let same = cluster("first", "Admin", 7) + &cluster("second", "Admin", 7);
    at("same.yaml", &(same + &cluster("third", "Baseline", 7) + &cluster("fourth", "Admin", 8)));
    let offline = Offline::read(folder.path()).unwrap();
    let told: Vec<String> = offline.problems().iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 4, "{told:#?}");
    for (problem, parts) in told.iter().zip([
        ["v1alpha1 AdminNetworkPolicy are not read", "old.yaml", "kind: ClusterNetworkPolicy"],
        ["v1alpha1 BaselineAdminNetworkPolicy are not read", "old.yaml", "kind: ClusterNetworkPolicy"],
        ["projectcalico.org/v3 GlobalNetworkPolicy are not read", "nothing of what they say is in force", "old.yaml"],
        ["ClusterNetworkPolicy first", "same.yaml", "first, second of one tier share a priority"],
    ]) {
        assert!(parts.iter().all(|part| problem.contains(part)), "{problem}: {parts:?}");
    }
    assert!(offline.problems().iter().all(|problem| problem.severity == Severity::Warning), "{told:#?}");
}

/// P-120: an address that a Service is reached at means the Service, by its port where several share it.
#[test]
fn a_question_to_an_address_of_a_service_is_about_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let pod = POD.replace("{podIP: 10.0.1.1}", "{podIPs: [{ip: 10.0.1.1}, {ip: 'fd00::1'}]}");
    let gate = "{apiVersion: tidegate.io/v1alpha1, kind: GatewayPolicy, metadata: {name: doors}, spec: {rules: [
        {action: Deny, clients: [{cidr: 192.0.2.66/32}, {cidr: '2001:db8::66/128'}],
         services: [{namespace: shop, name: front}]}]}}";
    let front = "{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: front}, spec: {type: LoadBalancer,
        clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, 'fd00:96::7'], externalIPs: [198.51.100.9, '2001:db8:e::9'],
        selector: {app: web}, ports: [{port: 80, targetPort: http}]},
        status: {loadBalancer: {ingress: [{ip: 203.0.113.7}, {ip: '2001:db8:f::7'}]}}}";
    let asked = "{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: other,
        annotations: {tidegate.io/addresses: '203.0.113.7,203.0.113.8,2001:db8:f::8'}}, spec: {type: LoadBalancer,
        selector: {app: web}, ports: [{port: 81, targetPort: http}]}}";
    let text = [&pod, gate, front, asked].join("\n---\n");
    fs::write(folder.path().join("all.yaml"), text).unwrap();
    let offline = Offline::read(folder.path()).unwrap();
    assert!(offline.problems().is_empty(), "{:?}", offline.problems());
    let told = |from: &str, to: &str, port| offline.explain(&question(from, to, port));
    for (clients, addresses) in [
        (["192.0.2.66", "192.0.2.7"], ["203.0.113.7", "10.96.0.7", "198.51.100.9"]),
        (["2001:db8::66", "2001:db8::7"], ["2001:db8:f::7", "fd00:96::7", "2001:db8:e::9"]),
    ] {
        for address in addresses {
            let denied = told(clients[0], address, 80).unwrap();
            assert!(denied.starts_with(&format!("Service shop/front at {address} port 80/tcp:\n")), "{denied}");
            let said = format!("client {}: denied, before any pod is chosen", clients[0]);
            assert!(denied.contains(&said) && !denied.contains("ALLOWED"), "{denied}");
            let allowed = told(clients[1], address, 80).unwrap();
            assert!(allowed.contains("pod shop/web tcp port 8080: ALLOWED"), "{allowed}");
            // A pod comes in the family of the address, and an answer about pods is not one about the Service.
            let own = told("shop/web", address, 80).unwrap();
            let clients = own.matches("  client ").count();
            assert!(clients == 1 && own.matches("ALLOWED").count() == 1 && !own.contains("in common"), "{own}");
            let error = offline.ask(&question("192.0.2.7", address, 80)).unwrap_err();
            assert!(
                error.contains("in common") || error.contains("an address of Service shop/front, not a pod"),
                "{error}"
            );
        }
        let error = told(clients[1], addresses[0], 82).unwrap_err();
        assert!(
            error.contains(&format!("Service shop/front, which {} is an address of, has no port 82", addresses[0]))
        );
    }
    // One address of two Services: the port tells; and what is only asked for is one too.
    for (client, address) in
        [("192.0.2.66", "203.0.113.7"), ("192.0.2.66", "203.0.113.8"), ("2001:db8::66", "2001:db8:f::8")]
    {
        let allowed = told(client, address, 81).unwrap();
        let head = format!("Service shop/other at {address} port 81");
        assert!(allowed.starts_with(&head) && allowed.contains("ALLOWED"), "{allowed}");
    }
    let other = told("192.0.2.7", "2001:db8:f::7", 80).unwrap_err();
    assert!(other.contains("192.0.2.7 has no address of the family of 2001:db8:f::7"), "{other}");
    let ping = Question { protocol: "ICMP".into(), port: None, ..question("192.0.2.7", "203.0.113.7", 1) };
    assert!(offline.explain(&ping).unwrap_err().contains("203.0.113.7 is an address of Service shop/front"));
    assert!(told("192.0.2.7", "203.0.113.9", 80).unwrap().contains("it is no pod"), "nobody's");
}

/// Backends of the other family have one thing to say.
#[test]
fn backends_of_another_family_are_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let slice = |family: &str, addresses: [&str; 3]| {
        let ends: Vec<String> = addresses.iter().map(|address| format!("{{addresses: ['{address}']}}")).collect();
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{namespace: shop, name: s-{}, labels: \
             {{kubernetes.io/service-name: front}}}}, addressType: {family}, ports: [{{port: 8080}}], endpoints: [{}]}}",
            family.to_lowercase(),
            ends.join(", ")
        )
    };
    let v4 = slice("IPv4", ["10.0.1.1", "10.0.1.2", "10.0.1.3"]);
    let v6 = slice("IPv6", ["fd00::1", "fd00::2", "fd00::3"]);
    fs::write(folder.path().join("all.yaml"), [SERVICE, &v4, &v6].join("\n---\n")).unwrap();
    let offline = Offline::read(folder.path()).unwrap();
    assert!(offline.problems().is_empty(), "{:?}", offline.problems());
    for (from, first) in [("192.0.2.7", "fd00::1"), ("2001:db8::7", "10.0.1.1")] {
        let told = offline.explain(&question(from, "shop/front", 80)).unwrap();
        assert_eq!((told.matches("ALLOWED").count(), told.matches("no address family in common").count()), (3, 1));
        assert!(told.contains(&format!("{first} port 8080 and 2 more: from and to have no address family")), "{told}");
    }
}

/// P-109: of a rule that is closed for a mistake the mistake is told, and not what it would do by its words.
#[test]
fn an_explanation_tells_what_closed_a_rule() {
    let folder = tempfile::tempdir().unwrap();
    let pod = POD.replace("{podIP: 10.0.1.1}", "{podIPs: [{ip: 10.0.1.1}, {ip: 'fd00::1'}]}");
    let cluster = |spec: &str| {
        format!(
            "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: c}}, \
             spec: {{tier: Admin, priority: 5, subject: {{namespaces: {{}}}}, {spec}}}}}"
        )
    };
    let gate = |rule: &str| {
        format!(
            "{{apiVersion: tidegate.io/v1alpha1, kind: GatewayPolicy, metadata: {{name: doors}}, spec: {{rules: [{rule}]}}}}"
        )
    };
    let of_clients = "networks: [192.0.2.0/24, '2001:db8::/32']";
    let accepts = DENY.replace("cidr: 192.0.2.0/24", "cidr: 192.0.2.0/33");
    for (policy, expected) in [
        (
            cluster(&format!("ingress: [{{name: pass-21, action: Pass, from: [{{{of_clients}}}]}}]")),
            "rule 0 \"pass-21\" denies everything, since it cannot be read: spec.ingress[0].from[0].networks: is no peer of",
        ),
        (
            cluster("ingress: [{name: pass-21, action: Pass, from: [{namespaces: {}, network: []}]}]"),
            "rule 0 \"pass-21\" denies everything, since it cannot be read: spec.ingress[0].from[0].network: is no field",
        ),
        (
            cluster("ingress: [{name: a, action: Accept, form: [{namespaces: {}}]}]"),
            "is none of: nobody; spec.ingress[0].form: is no field of this kind\n    nothing decided: the default allows",
        ),
        (
            gate(
                "{action: Allow, clients: [{cidr: 203.0.113.0/24}]}, {name: few, action: Limit, limits: {halfOpen: 0}}",
            ),
            "rule 1 \"few\" denies what it may mean, since it cannot be read: spec.rules[1].limits.halfOpen: 0 is not",
        ),
        (
            gate("{action: Deny, clients: []}, {action: Allow, clients: [{cidr: 1}]}"),
            "rule 0 denies what it may mean, since it cannot be read: spec.rules[0].clients: is empty",
        ),
        (
            gate("{action: Allow, clients: []}, {action: Deny}"),
            "is none of its clients; spec.rules[0].clients: is empty",
        ),
        (accepts, "is none of: nobody; spec.ingress[0].from[0].ipBlock.cidr: "),
    ] {
        fs::write(folder.path().join("all.yaml"), [&pod, SERVICE, &policy].join("\n---\n")).unwrap();
        let offline = Offline::read(folder.path()).unwrap();
        assert!(!offline.problems().is_empty(), "{policy}");
        for client in ["192.0.2.7", "2001:db8::7"] {
            let told = offline.explain(&question(client, "shop/front", 80)).unwrap();
            let allows = expected.ends_with("the default allows");
            assert!(told.contains(expected) && told.contains("ALLOWED") == allows, "{policy}: {told}");
            assert!(!told.contains("\"pass-21\" matches") && !told.contains("\"few\" matches"), "{told}");
        }
    }
}

/// The example of policies of the whole cluster says what the page about policies says of it, and stands there word for
/// word.
#[test]
fn the_example_of_cluster_policies_does_what_is_said_of_it() {
    let at = |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap();
    let example = at("deploy/examples/policies/cluster.yaml");
    assert!(at("docs/policy.md").contains(&example));
    let namespace = |name: &str, labels: &str| {
        format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{labels}}}}}}}")
    };
    let pod = |namespace: &str, name: &str, n: u8| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: {namespace}, name: {name}, labels: {{app: {name}}}}}, \
             spec: {{containers: [{{name: c}}]}}, status: {{podIPs: [{{ip: 10.0.1.{n}}}, {{ip: 'fd00::{n}'}}]}}}}"
        )
    };
    let open = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: open},
        spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {}}]}]}}";
    let documents = [
        example,
        namespace("guests", "tenant: guests"),
        pod("shop", "web", 1),
        pod("shop", "db", 2),
        pod("monitoring", "prober", 3),
        pod("guests", "visitor", 4),
        pod("kube-system", "dns", 5),
        open.into(),
    ];
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("all.yaml"), documents.join("\n---\n")).unwrap();
    let offline = Offline::read(folder.path()).unwrap();
    assert!(offline.problems().is_empty(), "{:?}", offline.problems());
    let asked = |from: &str, to: &str| offline.ask(&question(from, to, 80)).unwrap().combined;
    for v4 in [true, false] {
        let of = |n: u8| if v4 { format!("10.0.1.{n}") } else { format!("fd00::{n}") };
        let [web, db, prober, visitor, dns] = [1, 2, 3, 4, 5].map(of);
        let [metadata, outside] =
            if v4 { ["169.254.169.254", "198.51.100.7"] } else { ["fd00:ec2::254", "2001:db8::7"] };
        for (from, to, expected) in [
            (prober.as_str(), web.as_str(), "allow"), // passed on, and the NetworkPolicy accepts
            (&prober, &db, "deny"),                   // passed on, and the baseline denies
            (&visitor, &web, "deny"),                 // whatever the NetworkPolicy says
            (&dns, &web, "allow"),
            (&visitor, &dns, "deny"), // no subject of the guard rails, and of the baseline
            (&web, metadata, "deny"),
            (&dns, metadata, "deny"), // as for everything outside
            (&web, outside, "deny"),
            (outside, &db, "allow"), // ingress names no client outside
            (outside, &web, "deny"), // but for the NetworkPolicy, which names pods
        ] {
            assert_eq!(asked(from, to), expected, "{from} -> {to}");
        }
    }
    let told = offline.explain(&question("monitoring/prober", "shop/web", 80)).unwrap();
    assert!(
        told.contains("rule 0 \"monitoring-is-up-to-each-namespace\" matches and passes to the next tier"),
        "{told}"
    );
}
