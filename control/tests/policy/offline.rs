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
    let case = case(&[]);
    for (from, to, protocol, port, why) in [
        ("x/nobody", "x/a", "TCP", Some(80), "there is no pod x/nobody"),
        ("x/a", "nobody", "TCP", Some(80), "neither an address nor"),
        ("x/a", "x/b", "TCP", None, "port is missing"),
        ("x/a", "x/b", "TCP", Some(0), "is not a port"),
        ("x/a", "x/b", "TCP", Some(65_536), "is not a port"),
        ("x/a", "x/b", "IPX", Some(80), "is no protocol"),
        ("10.0.1.1", "fd00::1:2", "TCP", Some(80), "no address family in common"),
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
