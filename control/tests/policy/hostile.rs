//! Objects made to cost, to confuse or to slip through: read in bounded time and memory, told with object and field, and
//! nothing is open because of them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tidegate_control::model::Object;
use tidegate_control::offline::Offline;
use tidegate_control::offline::question::Question;
use tidegate_control::source::{ObjectKey, ObjectKind, manifest};
use tidegate_control::watch::{self, Dialect, Exposed};

use super::cluster::Dice;
use super::fuzzing;
use super::live::Gateway;
use super::naive::Target;

const HTTP: Target = Target { protocol: "TCP", port: 80 };

fn pod(name: &str, number: usize, labels: &Value) -> Value {
    let address = format!("10.0.{}.{}", number >> 8, number & 255);
    json!({
        "metadata": { "namespace": "x", "name": name, "labels": labels },
        "spec": {}, "status": { "podIPs": [{ "ip": address }, { "ip": format!("fd00::{number:x}") }] },
    })
}

fn policy(spec: &Value) -> Value {
    json!({ "metadata": { "namespace": "x", "name": "p" }, "spec": spec })
}

/// Whether pod 1 accepts a peer, which must be the same in both families.
fn open(gateway: &Gateway, v4: &str, v6: &str) -> bool {
    let ask = |own: &str, peer: &str| gateway.judge(true, own.parse().unwrap(), peer.parse().unwrap(), HTTP).allow;
    let answers = [ask("10.0.0.1", v4), ask("fd00::1", v6)];
    assert_eq!(answers[0], answers[1], "{v4} {v6}");
    answers[0]
}

/// Selectors as long as an object can be hold what they say, as subjects and as peers; longer ones are refused by their
/// field. An API server stores 1.5 MiB.
#[test]
fn selectors_as_long_as_an_object_can_be() {
    let mut gateway = Gateway::default();
    for number in 1..=300 {
        let pod = pod(
            &format!("p{number}"),
            number,
            &json!({ "app": format!("v{number}"), "odd": (number % 2).to_string() }),
        );
        gateway.apply(ObjectKind::Pod, &pod).unwrap();
    }
    let values = |range: std::ops::Range<u32>| Value::Array(range.map(|number| format!("v{number}").into()).collect());
    let listed = |values| json!({ "matchExpressions": [{ "key": "app", "operator": "In", "values": values }] });
    let spec = json!({ "podSelector": listed(values(1..150_000)), "ingress": [{ "from": [{ "podSelector": listed(values(200..150_000)) }] }] });
    assert_eq!(gateway.apply(ObjectKind::NetworkPolicy, &policy(&spec)), Ok(vec![]));
    gateway.publish();
    assert!(open(&gateway, "10.0.0.200", "fd00::c8") && !open(&gateway, "10.0.0.199", "fd00::c7"));
    // A pod with another label is another one to all of them.
    gateway.apply(ObjectKind::Pod, &pod("p199", 199, &json!({ "app": "v7777" }))).unwrap();
    gateway.publish();
    assert!(open(&gateway, "10.0.0.199", "fd00::c7"));
    // Ten thousand requirements, each with a fact of its own.
    let requirement = |number: u32| json!({ "key": format!("k{number}"), "operator": "NotIn", "values": ["1"] });
    let many = json!({ "matchExpressions": (0..10_000).map(requirement).collect::<Vec<_>>() });
    let spec =
        json!({ "podSelector": many, "ingress": [{ "from": [{ "namespaceSelector": many, "podSelector": many }] }] });
    assert_eq!(gateway.apply(ObjectKind::NetworkPolicy, &policy(&spec)), Ok(vec![]));
    gateway.apply(ObjectKind::Pod, &pod("p2", 2, &json!({ "k77": "1" }))).unwrap();
    gateway.publish();
    assert!(open(&gateway, "10.0.0.3", "fd00::3") && !open(&gateway, "10.0.0.2", "fd00::2"));
    assert!(!open(&gateway, "192.0.2.7", "2001:db8::7"));
    let size = gateway.compiler.table().size();
    assert!(size.bytes < 8 << 20, "{} bytes of tables", size.bytes);
    let spec = json!({ "podSelector": listed(values(0..400_001)) });
    let error = gateway.apply(ObjectKind::NetworkPolicy, &policy(&spec)).unwrap_err();
    assert_eq!(error.field, "spec.podSelector");
    // Whoever is only a peer by it is none, and the object stands.
    let spec = json!({ "podSelector": {}, "ingress": [{ "from": [{ "podSelector": listed(values(0..400_001)) }] }] });
    let complaints = gateway.apply(ObjectKind::NetworkPolicy, &policy(&spec)).unwrap();
    assert_eq!(complaints[0].0, "spec.ingress[0].from[0].podSelector");
    gateway.publish();
    assert!(!open(&gateway, "10.0.0.3", "fd00::3"));
}

/// P-005, P-020: exceptions by the ten thousand, and blocks in blocks in blocks.
#[test]
fn thousands_of_exceptions_and_overlapping_blocks() {
    let mut gateway = Gateway::default();
    gateway.apply(ObjectKind::Pod, &pod("p1", 1, &json!({}))).unwrap();
    let exceptions = |count: u32| -> [Value; 2] {
        let v4 = (0..count).map(|n| format!("172.{}.{}.{}/32", 16 + (n >> 15), n >> 7 & 255, (n & 127) * 2).into());
        let v6 = (0..count).map(|n| format!("2001:db8:{:x}:{:x}::/64", n >> 8, (n & 255) * 2).into());
        [Value::Array(v4.collect()), Value::Array(v6.collect())]
    };
    let blocks = |count| {
        let [v4, v6] = exceptions(count);
        json!([{ "ipBlock": { "cidr": "172.16.0.0/12", "except": v4 } }, { "ipBlock": { "cidr": "2001:db8::/32", "except": v6 } }])
    };
    let spec = |from: Value| json!({ "podSelector": {}, "ingress": [{ "from": from }] });
    assert_eq!(gateway.apply(ObjectKind::NetworkPolicy, &policy(&spec(blocks(65_536)))), Ok(vec![]));
    gateway.publish();
    for (n, v6) in [(0u32, "2001:db8::7"), (40_000, "2001:db8:9c:80::7"), (65_535, "2001:db8:ff:1fe::7")] {
        let v4 = format!("172.{}.{}.{}", 16 + (n >> 15), n >> 7 & 255, (n & 127) * 2);
        assert!(!open(&gateway, &v4, v6), "{v4} {v6}");
    }
    assert!(open(&gateway, "172.16.0.1", "2001:db8:0:1::7") && open(&gateway, "172.31.0.0", "2001:db8:ff00::7"));
    assert!(gateway.compiler.table().size().bytes < 16 << 20);
    let complaints = gateway.apply(ObjectKind::NetworkPolicy, &policy(&spec(blocks(65_537)))).unwrap();
    let fields: Vec<&str> = complaints.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["spec.ingress[0].from[0].ipBlock.except", "spec.ingress[0].from[1].ipBlock.except"]);
    gateway.publish();
    assert!(!open(&gateway, "172.16.0.1", "2001:db8:0:1::7"), "a block that is not read matches nothing");
    // Every length of one address, each block with the next one left out; then a thousand times the same.
    let nested = |address: &str, longest: u32| -> Vec<Value> {
        let block = |length: u32| {
            let except = if length < longest { json!([format!("{address}/{}", length + 1)]) } else { json!([]) };
            json!({ "ipBlock": { "cidr": format!("{address}/{length}"), "except": except } })
        };
        (1..=longest).map(block).collect()
    };
    let mut from = nested("172.16.0.1", 32);
    from.extend(nested("2001:db8::1", 128));
    let again = from.clone();
    (0..60).for_each(|_| from.extend(again.iter().cloned()));
    assert_eq!(gateway.apply(ObjectKind::NetworkPolicy, &policy(&spec(from.into()))), Ok(vec![]));
    gateway.publish();
    assert!(open(&gateway, "172.16.0.1", "2001:db8::1") && open(&gateway, "172.16.0.0", "2001:db8::2"));
    assert!(!open(&gateway, "1.1.1.1", "fd00::7"), "outside of the widest");
    let size = gateway.compiler.table().size();
    assert!(size.bytes < 16 << 20, "{size:?}");
}

/// Thousands of peers, each another selector.
#[test]
fn thousands_of_different_selectors() {
    let mut gateway = Gateway::default();
    for number in 1..=100 {
        let labels = json!({ format!("k{number}"): "1", "app": "web" });
        gateway.apply(ObjectKind::Pod, &pod(&format!("p{number}"), number, &labels)).unwrap();
    }
    let from: Vec<Value> =
        (2..5_000).map(|n| json!({ "podSelector": { "matchLabels": { format!("k{n}"): "1" } } })).collect();
    let spec = json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{ "from": from }] });
    assert_eq!(gateway.apply(ObjectKind::NetworkPolicy, &policy(&spec)), Ok(vec![]));
    gateway.publish();
    assert!(open(&gateway, "10.0.0.2", "fd00::2") && open(&gateway, "10.0.0.100", "fd00::64"));
    gateway.apply(ObjectKind::Pod, &pod("p2", 2, &json!({ "k5000": "1" }))).unwrap();
    gateway.publish();
    assert!(!open(&gateway, "10.0.0.2", "fd00::2"));
    gateway.delete(ObjectKind::NetworkPolicy, "x/p");
    gateway.publish();
    assert!(gateway.held.is_empty());
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> Offline {
    let folder = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, text)| fs::write(folder.path().join(name), text).unwrap());
    Offline::read(folder.path()).unwrap()
}

fn question(from: &str, to: &str) -> Question {
    Question { from: from.into(), to: to.into(), protocol: "TCP".into(), port: Some(80) }
}

fn ask(offline: &Offline, from: &str, to: &str) -> &'static str {
    offline.ask(&question(from, to)).unwrap_or_else(|error| panic!("{error}")).ingress
}

const PODS: &str = "
{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: a}, status: {podIPs: [{ip: 10.0.1.1}, {ip: 'fd00::1:1'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: b, labels: {size: small, größe: klein, 'ключ': 'значение'}}, status: {podIPs: [{ip: 10.0.1.2}]}}
";
const TYPE: &str = "apiVersion: networking.k8s.io/v1, kind: NetworkPolicy";

/// Words in alphabets that labels do not have, which pods may carry and selectors not name; names as long as names can be
/// and longer, and lists that are nothing.
#[test]
fn odd_names_and_labels_are_only_names() {
    let long = "n".repeat(253);
    let by_label = format!(
        "{{{TYPE}, metadata: {{namespace: x, name: {long}}}, spec: {{podSelector: {{}}, ingress: [{{from: [\
         {{podSelector: {{matchLabels: {{size: small}}, matchExpressions: [{{key: app.example.org/part, operator: DoesNotExist}}]}}}}]}}]}}}}"
    );
    for (key, wrong) in [("size: small", "größe: klein"), ("app.example.org/part", "'ключ'"), ("app.", "App.")] {
        let offline = folder(&[("all.yaml", &format!("{PODS}---\n{}", by_label.replace(key, wrong)))]);
        assert!(offline.problems()[0].message.contains("that a label can have"), "{:?}", offline.problems());
        assert_eq!((ask(&offline, "x/b", "x/a"), ask(&offline, "192.0.2.7", "x/a")), ("deny", "deny"), "{wrong}");
    }
    let offline = folder(&[("all.yaml", &format!("{PODS}---\n{by_label}"))]);
    assert!(offline.problems().is_empty(), "{:?}", offline.problems());
    assert_eq!((ask(&offline, "x/b", "x/a"), ask(&offline, "192.0.2.7", "x/a")), ("allow", "deny"));
    let offline = folder(&[("all.yaml", &format!("{PODS}---\n{}", by_label.replace(&long, &"n".repeat(300))))]);
    let told = offline.problems()[0].to_string();
    assert!(told.contains("all.yaml document 3") && told.contains("metadata.name"), "{told}");
    for nothing in [
        "podSelector: null, policyTypes: null, ingress: null, egress: null",
        "podSelector: {matchLabels: null, matchExpressions: null}, ingress: []",
        "ingress: [{from: [{podSelector: {matchLabels: {no: one}, matchExpressions: null}, namespaceSelector: null, ipBlock: null}], ports: null}]",
    ] {
        let offline = folder(&[(
            "all.yaml",
            &format!("{PODS}---\n{{{TYPE}, metadata: {{namespace: x, name: p}}, spec: {{{nothing}}}}}"),
        )]);
        assert!(offline.problems().is_empty(), "{nothing}: {:?}", offline.problems());
        assert_eq!(ask(&offline, "x/b", "x/a"), "deny", "{nothing}");
    }
}

/// What nobody knows is told: fields by their path, kinds that are almost ours by their name; files that are not text.
#[test]
fn unknown_fields_and_kinds_and_junk_are_told_and_open_nothing() {
    let deny = format!(
        "{{{TYPE}, metadata: {{namespace: x, name: p}}, spec: {{podSelector: {{}}, ingres: [{{}}], ingress: [{{form: [], from: [{{podSelektor: {{}}}}]}}]}}}}"
    );
    let newer = "{apiVersion: networking.k8s.io/v2, kind: NetworkPolicy, metadata: {namespace: x, name: q}, spec: {ingress: [{}]}}";
    let near = "{apiVersion: networking.k8s.io/v1, kind: Networkpolicy, metadata: {namespace: x, name: r}}";
    let deep = format!(
        "{}{}",
        r#"{"apiVersion":"v1","kind":"Pod","spec":"#.to_owned() + &"[".repeat(100_000),
        "]".repeat(100_000)
    );
    let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
    for (name, before) in ["b", "c", "d", "e", "f", "g", "h", "i"].iter().zip(["a", "b", "c", "d", "e", "f", "g", "h"])
    {
        let row = vec![format!("*{before}"); 10].join(", ");
        writeln!(bomb, "{name}: &{name} [{row}]").unwrap();
    }
    let offline = folder(&[
        ("all.yaml", &format!("{PODS}---\n{deny}\n---\n{newer}\n---\n{near}")),
        ("bomb.yaml", &bomb),
        ("brackets.yaml", &"[".repeat(100_000)),
        ("deep.json", &deep),
        ("junk.json", "\u{0}\u{1}{\u{fffd}"),
        (
            "list.json",
            r#"{"apiVersion":"v1","kind":"List","items":[7,null,"x",[],{"kind":7},{"apiVersion":"v1","kind":"List","items":7}]}"#,
        ),
    ]);
    let told: Vec<String> = offline.problems().iter().map(ToString::to_string).collect();
    let text = told.join("\n");
    for expected in [
        "NetworkPolicy x/p: spec.ingres: ",
        "spec.ingress[0].form: ",
        "spec.ingress[0].from[0].podSelektor: ",
        "networking.k8s.io/v2 NetworkPolicy q",
        "Networkpolicy r",
        "bomb.yaml",
        "brackets.yaml",
        "deep.json",
        "junk.json",
        "list.json",
    ] {
        assert!(text.contains(expected), "{expected} is missing:\n{text}");
    }
    assert_eq!((ask(&offline, "x/b", "x/a"), ask(&offline, "192.0.2.7", "x/a")), ("deny", "deny"));
}

/// A slip of type or a word that is none, from the first day: what is written beside it holds, and the rule opens nothing.
#[test]
fn a_slip_in_a_rule_isolates_all_the_same() {
    const GOOD: &str = "{from: [{ipBlock: {cidr: 192.0.2.7/32}}]}, {from: [{ipBlock: {cidr: '2001:db8::7/128'}}]}";
    let both = PODS.replace("{ip: 10.0.1.2}", "{ip: 10.0.1.2}, {ip: 'fd00::1:2'}");
    let answers = |spec: &str| {
        let policy = format!("{{{TYPE}, metadata: {{namespace: x, name: p}}, spec: {spec}}}");
        let offline = folder(&[("all.yaml", &format!("{both}---\n{policy}"))]);
        let told: Vec<String> = offline.problems().iter().map(ToString::to_string).collect();
        let ask = |from| ask(&offline, from, "x/a");
        (["198.51.100.7", "2001:db8::8", "x/b", "192.0.2.7", "2001:db8::7"].map(ask), told.join("\n"))
    };
    for rule in [
        "from: {ipBlock: {cidr: 198.51.100.0/24}}",
        "from: [null]",
        "from: [{ipBlock: {cidr: 7}}]",
        "from: [{ipBlock: {cidr: 0.0.0.0/0, excepts: [198.51.100.0/24]}}, {ipBlock: {cidr: '::/0', excepts: []}}]",
        "form: [{ipBlock: {cidr: 192.0.2.0/24}}]",
        "ports: [{port: 80.5}]",
        "ports: [null]",
        "ports: {port: 80}",
        "port: [{port: 81}]",
        "ports: [{prot: 81}]",
    ] {
        let (answers, told) = answers(&format!("{{podSelector: {{}}, ingress: [{{{rule}}}, {GOOD}]}}"));
        assert_eq!(answers, ["deny", "deny", "deny", "allow", "allow"], "{rule}: {told}");
        assert!(told.contains("NetworkPolicy x/p: spec.ingress[0]"), "{rule}: {told}");
    }
    for spec in [
        "{podSelector: {}, ingress: [null]}",
        "{podSelector: {}, ingress: {}}",
        "{podSelector: {}, ingress: 7}",
        "{podSelector: {}, ingress: [7, [], '']}",
        "{podSelector: {}, policyTypes: Ingress, ingress: [{from: {}}]}",
        "{podSelector: {}, policyTypes: [7], ingress: [{from: {}}]}",
        "{podSelector: {}, ingres: [], ingress: [{}]}",
    ] {
        let (answers, told) = answers(spec);
        assert_eq!(answers, ["deny"; 5], "{spec}: {told}");
        assert!(told.contains("isolates and accepts less than written"), "{spec}: {told}");
    }
    for spec in [
        "{podSelector: 7, ingress: []}",
        "{podSelectr: {matchLabels: {app: web}}, ingress: []}",
        "{podSelector: {matchLabel: {app: web}}, ingress: []}",
    ] {
        let (answers, told) = answers(spec);
        assert_eq!(answers, ["allow"; 5], "{spec}: {told}");
        assert!(told.contains("the pods it is about are as open as without it"), "{spec}: {told}");
    }
}

/// P-002: what makes a policy be about no direction, or another one, is a mistake of the whole object. What was good stays,
/// and from the first day both directions are closed.
#[test]
fn a_policy_that_does_not_say_for_which_direction_it_is_closes_both() {
    let both = PODS.replace("{ip: 10.0.1.2}", "{ip: 10.0.1.2}, {ip: 'fd00::1:2'}");
    let good = "spec: {podSelector: {}, policyTypes: [Egress], egress: []}";
    for (wrong, field) in [
        ("spec: {podSelector: {}, policyTypes: [ingress]}", "spec.policyTypes[0]"),
        ("spec: {podSelector: {}, policyTypes: ['Ingress,Egress']}", "spec.policyTypes[0]"),
        ("spec: {podSelector: {}, policyTypes: ['Egress ']}", "spec.policyTypes[0]"),
        ("spec: {podSelector: {}, policyTypes: ['']}", "spec.policyTypes[0]"),
        ("spec: {podSelector: {}, policyTypes: [Both]}", "spec.policyTypes[0]"),
        ("spec: {podSelector: {}, policyTypes: [Ingress, Egres]}", "spec.policyTypes[1]"),
        (
            "spec: {podSelector: {}, policyTypes: [Egress, ~], ingress: [{from: [{podSelector: {}}]}]}",
            "spec.policyTypes[1]",
        ),
        ("spec: {podSelector: {}, policyTypes: [1]}", "spec.policyTypes[0]"),
        (
            "spec: {podSelector: {}, policyTypes: [Ingres], ingress: [{from: [{podSelector: {}}], form: []}]}",
            "spec.policyTypes[0]",
        ),
        ("sepc: {podSelector: {}, policyTypes: [Egress], egress: []}", "sepc"),
        ("---spec: {podSelector: {}, policyTypes: [Egress], egress: []}", "---spec"),
        ("spec: ~", "spec"),
        ("labels: {}", "labels"),
        ("", "spec"),
    ] {
        let policy = |spec: &str| format!("{{{TYPE}, metadata: {{namespace: x, name: p}}, {spec}}}");
        let offline = folder(&[("all.yaml", &format!("{both}---\n{}", policy(wrong)))]);
        let told: Vec<String> = offline.problems().iter().map(ToString::to_string).collect();
        let is_told = told.iter().any(|told| told.contains(&format!("x/p: {field}: ")));
        assert!(is_told && told.len() == 1 + wrong.matches("form:").count(), "{wrong}: {told:#?}");
        for outside in ["192.0.2.7", "2001:db8::7"] {
            let answers = (ask(&offline, outside, "x/a"), offline.ask(&question("x/a", outside)).unwrap().egress);
            assert_eq!(answers, ("deny", "deny"), "{wrong} {outside}");
        }
        // What was good stays.
        let object = |spec: &str| manifest::parse("p.yaml", &policy(spec)).unwrap().manifests.remove(0).value;
        let mut gateway = Gateway::default();
        gateway.apply(ObjectKind::Pod, &pod("a", 1, &json!({}))).unwrap();
        assert_eq!(gateway.apply(ObjectKind::NetworkPolicy, &object(good)), Ok(vec![]));
        assert_eq!(gateway.apply(ObjectKind::NetworkPolicy, &object(wrong)).unwrap_err().field, field);
    }
}

/// An API server refuses a selector that no label fits. Whom the policy is about is then not known, and what was good stays; a
/// peer is nobody, and in a rule that denies everybody.
#[test]
fn a_selector_that_no_label_fits_opens_nothing() {
    for wrong in [
        json!({ "matchLabels": { "app": "web " } }),
        json!({ "matchLabels": { "app:": "web" } }),
        json!({ "matchLabels": { "/app": "web" } }),
        json!({ "matchLabels": { "app": "w".repeat(64) } }),
        json!({ "matchExpressions": [{ "key": "app", "operator": "NotIn", "values": ["web", "3 "] }] }),
        json!({ "matchExpressions": [{ "key": "app ", "operator": "DoesNotExist" }] }),
    ] {
        let mut gateway = Gateway::default();
        gateway.apply(ObjectKind::Pod, &pod("a", 1, &json!({ "app": "web" }))).unwrap();
        gateway.apply(ObjectKind::Pod, &pod("b", 2, &json!({}))).unwrap();
        let good = json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [] });
        gateway.apply(ObjectKind::NetworkPolicy, &policy(&good)).unwrap();
        let error = gateway.apply(ObjectKind::NetworkPolicy, &policy(&json!({ "podSelector": wrong }))).unwrap_err();
        assert!(error.field.starts_with("spec.podSelector.match") && error.message.contains("that a label can have"));
        gateway.publish();
        assert!(!open(&gateway, "10.0.0.2", "fd00::2") && !open(&gateway, "192.0.2.7", "2001:db8::7"), "{wrong}");
        let peer = json!({ "podSelector": {}, "ingress": [{ "from": [{ "podSelector": wrong }] }] });
        assert_eq!(gateway.apply(ObjectKind::NetworkPolicy, &policy(&peer)).unwrap().len(), 1);
        gateway.publish();
        assert!(!open(&gateway, "10.0.0.2", "fd00::2"), "{wrong}");
        gateway.delete(ObjectKind::NetworkPolicy, "x/p");
        let deny = json!({ "tier": "Admin", "priority": 1, "subject": { "namespaces": {} }, "ingress": [{ "action": "Deny",
            "from": [{ "pods": { "namespaceSelector": {}, "podSelector": wrong } }] }] });
        let deny = json!({ "metadata": { "name": "p" }, "spec": deny });
        assert_eq!(gateway.apply(ObjectKind::ClusterNetworkPolicy, &deny).unwrap().len(), 1);
        gateway.publish();
        assert!(!open(&gateway, "10.0.0.2", "fd00::2"), "{wrong}");
    }
}

fn read(kind: ObjectKind, value: &Value) -> Object {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let key = ObjectKey { kind, namespace: text("/metadata/namespace"), name: text("/metadata/name") };
    watch::read(&key, value, Dialect::Files, Exposed::default(), &mut Vec::new()).unwrap()
}

/// A pod or namespace that a slip makes another one to policies stays what it was.
#[test]
fn a_slip_in_what_a_pod_is_leaves_it_what_it_was() {
    let good = pod("a", 1, &json!({ "app": "web" }));
    let changed = |from: &str, to: &str| -> Value {
        let text = good.to_string();
        assert!(text.contains(from), "{from}");
        serde_json::from_str(&text.replacen(from, to, 1)).unwrap()
    };
    for (wrong, field) in [
        (changed("\"labels\"", "\"lables\""), "metadata.lables"),
        (changed("\"status\"", "\"staus\""), "staus"),
        (changed("\"podIPs\"", "\"podIps\""), "status.podIps"),
        (changed("\"ip\"", "\"ipp\""), "status.podIPs[0].ipp"),
        (changed("\"spec\":{}", "\"spec\":{\"hostnetwork\":true}"), "spec.hostnetwork"),
        (changed("\"podIPs\":[", "\"phase\":\"Running\",\"conditions\":["), "status"),
    ] {
        let mut gateway = Gateway::default();
        gateway.apply(ObjectKind::Pod, &good).unwrap();
        let spec = json!({ "podSelector": { "matchLabels": { "app": "web" } } });
        gateway.apply(ObjectKind::NetworkPolicy, &policy(&spec)).unwrap();
        let error = gateway.apply(ObjectKind::Pod, &wrong).unwrap_err();
        assert!(error.field.starts_with(field), "{error}");
        gateway.publish();
        assert!(!open(&gateway, "192.0.2.7", "2001:db8::7"), "{field}");
    }
    // One that nobody knew before is what the rest of it says.
    for wrong in [
        changed("\"labels\"", "\"foo\":\"bar\",\"labels\""),
        changed("\"metadata\"", "\"foo\":1,\"metadata\""),
        changed("\"spec\":{}", "\"spec\":{\"hostnetwork\":false}"),
    ] {
        let error = Gateway::default().apply(ObjectKind::Pod, &wrong).unwrap_err();
        assert_eq!(error.stand_in.map(|object| *object), Some(read(ObjectKind::Pod, &good)), "{}", error.field);
    }
    let team = json!({ "metadata": { "name": "x", "foo": 1, "labels": { "team": "a" } } });
    let plain = json!({ "metadata": { "name": "x", "labels": { "team": "a" } } });
    let error = Gateway::default().apply(ObjectKind::Namespace, &team).unwrap_err();
    assert_eq!(error.stand_in.map(|object| *object), Some(read(ObjectKind::Namespace, &plain)));
    // With every version of Kubernetes come fields that are none of our business.
    let mut gateway = Gateway::default();
    gateway.apply(ObjectKind::Pod, &changed("\"status\":{", "\"status\":{\"newer\":1,")).unwrap();
    let namespace = json!({ "metadata": { "name": "x", "lables": { "a": "b" } } });
    assert_eq!(gateway.apply(ObjectKind::Namespace, &namespace).unwrap_err().field, "metadata.lables");
}

/// P-108, P-109: a selection of pods has both of its selectors, and a rule the peers of its direction alone.
#[test]
fn a_peer_without_a_selector_and_peers_of_the_other_direction_close_a_rule() {
    let pods = json!({ "namespaceSelector": {}, "podSelector": {} });
    for (peers, field) in [
        (json!({ "from": [{ "pods": {} }] }), "from[0].pods.namespaceSelector"),
        (json!({ "from": [{ "pods": { "podSelector": {} } }] }), "from[0].pods.namespaceSelector"),
        (json!({ "from": [{ "pods": { "namespaceSelector": {} } }] }), "from[0].pods.podSelector"),
        (json!({ "from": [{ "pods": pods }], "to": [{ "pods": pods }] }), "to"),
    ] {
        for (action, expected) in [("Accept", false), ("Deny", false)] {
            let mut gateway = Gateway::default();
            gateway.apply(ObjectKind::Pod, &pod("a", 1, &json!({}))).unwrap();
            gateway.apply(ObjectKind::Pod, &pod("b", 2, &json!({}))).unwrap();
            gateway.apply(ObjectKind::NetworkPolicy, &policy(&json!({ "podSelector": {} }))).unwrap();
            let mut rule = peers.clone();
            rule["action"] = action.into();
            let spec = json!({ "tier": "Admin", "priority": 1, "subject": { "namespaces": {} }, "ingress": [rule] });
            let object = json!({ "metadata": { "name": "p" }, "spec": spec });
            let complaints = gateway.apply(ObjectKind::ClusterNetworkPolicy, &object).unwrap();
            assert_eq!(complaints.len(), 1, "{complaints:?}");
            assert_eq!(complaints[0].0, format!("spec.ingress[0].{field}"));
            gateway.publish();
            assert_eq!(open(&gateway, "10.0.0.2", "fd00::2"), expected, "{action} {peers}");
            gateway.delete(ObjectKind::NetworkPolicy, "x/p");
            gateway.publish();
            assert_eq!(open(&gateway, "192.0.2.7", "2001:db8::7"), action == "Accept", "{peers}");
        }
    }
    let subject = json!({ "tier": "Admin", "priority": 1, "subject": { "pods": { "podSelector": {} } } });
    let object = json!({ "metadata": { "name": "p" }, "spec": subject });
    let error = Gateway::default().apply(ObjectKind::ClusterNetworkPolicy, &object).unwrap_err();
    assert_eq!(error.field, "spec.subject.pods.namespaceSelector");
}

/// A slip is told once.
#[test]
fn of_one_slip_there_is_one_message() {
    for (rule, field) in [
        ("{ports: [{port: 0.5}]}", "spec.ingress[0].ports[0].port"),
        ("{ports: [{port: 80, prot: TCP}]}", "spec.ingress[0].ports[0].prot"),
        ("{from: [{podSelektor: {}}]}", "spec.ingress[0].from[0].podSelektor"),
        ("{form: []}", "spec.ingress[0].form"),
        ("{from: 7}", "spec.ingress[0].from"),
        ("{ports: [{port: http s}]}", "spec.ingress[0].ports[0].port"),
    ] {
        let policy =
            format!("{{{TYPE}, metadata: {{namespace: x, name: p}}, spec: {{podSelector: {{}}, ingress: [{rule}]}}}}");
        let offline = folder(&[("all.yaml", &format!("{PODS}---\n{policy}"))]);
        let told: Vec<String> = offline.problems().iter().map(ToString::to_string).collect();
        assert!(told.len() == 1 && told[0].contains(&format!("x/p: {field}: ")), "{rule}: {told:#?}");
        assert_eq!(ask(&offline, "x/b", "x/a"), "deny", "{rule}");
    }
}

/// P-109: the same of a ClusterNetworkPolicy, whose rules that deny deny everything then.
#[test]
fn a_slip_in_a_rule_of_a_cluster_network_policy_denies() {
    const CLUSTER: &str = "apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy";
    let accept = "{action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {size: small}}}}]}";
    for (rules, expected) in [
        (format!("[{{action: Deny, from: {{namespaces: {{}}}}}}, {accept}]"), ["deny", "deny", "deny"]),
        (format!("[{{action: Deny, form: [{{namespaces: {{}}}}]}}, {accept}]"), ["deny", "deny", "deny"]),
        (format!("[{{action: Accept, from: 7}}, {accept}, {{action: Deny, from: [7]}}]"), ["deny", "deny", "allow"]),
        (format!("[null, {accept}]"), ["deny", "deny", "deny"]),
        ("7".into(), ["deny", "deny", "deny"]),
    ] {
        let policy = format!(
            "{{{CLUSTER}, metadata: {{name: p}}, spec: {{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, ingress: {rules}}}}}"
        );
        let offline = folder(&[("all.yaml", &format!("{PODS}---\n{policy}"))]);
        let answers = ["198.51.100.7", "2001:db8::8", "x/b"].map(|from| ask(&offline, from, "x/a"));
        assert_eq!(answers, expected, "{rules}: {:?}", offline.problems());
        assert!(!offline.problems().is_empty());
    }
}

/// A NetworkPolicy that isolates, with anything in place of anything: it is refused by its field, or it isolates still and
/// opens no more than it would have.
#[test]
fn no_change_of_a_deny_opens_it() {
    let whole = json!({
        "podSelector": { "matchLabels": { "app": "web" }, "matchExpressions": [{ "key": "app", "operator": "In", "values": ["web"] }] },
        "policyTypes": ["Ingress"],
        "ingress": [{
            "from": [{ "ipBlock": { "cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"] } }, { "podSelector": { "matchLabels": { "app": "no" } } }],
            "ports": [{ "protocol": "TCP", "port": 443, "endPort": 444 }],
        }],
    });
    fn places(value: &Value, at: &str, all: &mut Vec<String>) {
        all.push(at.into());
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, value)| places(value, &format!("{at}/{name}"), all))
            }
            Value::Array(entries) => {
                entries.iter().enumerate().for_each(|(index, value)| places(value, &format!("{at}/{index}"), all));
            }
            _ => {}
        }
    }
    let mut all = Vec::new();
    places(&whole, "", &mut all);
    let junk = [
        json!(500),
        json!(-1),
        json!(1.5),
        json!(70_000),
        json!(1e300),
        json!("x"),
        json!(""),
        json!(true),
        json!([7]),
        json!(["x"]),
        json!([null]),
        json!([[]]),
        json!({ "x": {} }),
        json!({ "matchLabels": { "app": 7 } }),
    ];
    let (mut refused, mut closed) = (0, 0);
    for place in all.iter().filter(|place| place.len() > 1) {
        // These are a change of meaning by the API: whom it is about, and for which direction.
        if place.starts_with("/podSelector") {
            continue;
        }
        for junk in &junk {
            // A rule or port of unknown fields alone is an empty one, by the API too, which forgets them; that they are told is
            // above.
            if ["/ingress/0", "/ingress/0/ports/0"].contains(&place.as_str()) && junk.is_object() {
                continue;
            }
            let mut spec = whole.clone();
            *spec.pointer_mut(place).unwrap() = junk.clone();
            let mut gateway = Gateway::default();
            gateway.apply(ObjectKind::Pod, &pod("a", 1, &json!({ "app": "web" }))).unwrap();
            gateway.apply(ObjectKind::Pod, &pod("b", 2, &json!({ "app": "no" }))).unwrap();
            match gateway.apply(ObjectKind::NetworkPolicy, &policy(&spec)) {
                Err(error) => {
                    assert!(error.field.starts_with("spec"), "{place} {junk}: {error}");
                    refused += 1;
                }
                Ok(complaints) => {
                    gateway.publish();
                    assert!(!open(&gateway, "198.51.100.7", "2001:db8::7"), "{place} {junk} {complaints:?}");
                    assert!(!open(&gateway, "192.0.2.7", "fd00::2"), "{place} {junk} {complaints:?}: port 80");
                    closed += 1;
                }
            }
        }
    }
    assert!(refused > 50 && closed > 20, "{refused} {closed}");
}

/// The fuzz target's body over its corpus and over changes of it: bytes, and whole words of this vocabulary.
#[test]
fn any_text_for_manifests() {
    const WORDS: [&str; 12] =
        ["null", "[]", "{}", "ingress", "-1", "65536", "namespaceSelector", "\"", "Deny", "&a", "*a", "\u{fc}"];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/policies");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    for text in &corpus {
        assert!(manifest::parse("any.yaml", std::str::from_utf8(text).unwrap()).is_ok());
        fuzzing::policies(text);
    }
    let mut dice = Dice::new(11);
    for _ in 0..3_000 {
        let mut text = corpus[dice.below(corpus.len())].clone();
        for _ in 0..=dice.below(3) {
            let at = dice.below(text.len());
            let end = (at + dice.below(12)).min(text.len());
            match dice.below(4) {
                0 => drop(text.drain(at..end)),
                1 => text[at] = b" :,[]{}-7a"[dice.below(10)],
                _ => drop(text.splice(at..end, dice.one(&WORDS).bytes())),
            }
            if text.is_empty() {
                break;
            }
        }
        fuzzing::policies(&text);
    }
}
