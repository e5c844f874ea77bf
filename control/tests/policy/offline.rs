//! Folders of manifests, questions, and words about them.

use std::fs;

use tidegate_control::offline::Offline;
use tidegate_control::offline::question::Question;

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

#[test]
fn policies_between_pods_alone_are_reported() {
    let case = case(&[
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: x, name: clients}, spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}}".into(),
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: x, name: friends}, spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}}".into(),
        "{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: apart}, spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}}".into(),
    ]);
    let report = case.0.report();
    assert!(report.contains("ClusterNetworkPolicy apart: pods alone"), "{report}");
    assert!(
        report.contains("NetworkPolicy x/friends: in part: ingress[0]") && !report.contains("clients:"),
        "{report}"
    );
    assert!(report.ends_with("policies: 3 (1 whole, 1 in part, 1 between pods alone)\n"), "{report}");
}
