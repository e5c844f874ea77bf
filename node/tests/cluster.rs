//! The agent's source from the API, against a stand-in for its server: what is wanted of a Node, and what silence does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidegate_apiserver::rbac::Rules;
use tidegate_apiserver::{ApiServer, Options};
use tidegate_node::cluster::{Cluster, kept};
use tidegate_node::source::{File, Source};
use tidegate_node::wanted::Wanted;

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

fn node(name: &str, n: u8, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels: {{ {labels} }}\n  annotations:\n    \
         flannel.alpha.coreos.com/kube-subnet-manager: 'true'\n    flannel.alpha.coreos.com/backend-type: vxlan\n    \
         flannel.alpha.coreos.com/backend-data: '{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:04:{n:02x}\"}}'\n    \
         flannel.alpha.coreos.com/backend-v6-data: '{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:06:{n:02x}\"}}'\n    \
         flannel.alpha.coreos.com/public-ip: 198.51.100.{n}\n    flannel.alpha.coreos.com/public-ipv6: 2001:db8:2::{n}\n\
         spec: {{ podCIDRs: [10.244.{n}.0/24, \"fd00:10:244:{n}::/64\"] }}\n---\n"
    )
}

fn pod(name: &str, node: &str, n: u8, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: shop, labels: {{ {labels} }} }}\n\
         spec: {{ nodeName: {node}, containers: [{{ name: web, image: web }}] }}\n\
         status: {{ phase: Running, podIPs: [{{ ip: 10.244.1.{n} }}, {{ ip: \"fd00:10:244:1::{n}\" }}] }}\n---\n"
    )
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: tidegate.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n---\n"
    )
}

fn nat(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: tidegate.io/v1alpha1\nkind: StaticNat\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n---\n"
    )
}

/// A cluster with one gateway and two workers, and the agent's user with its rights.
fn cluster() -> ApiServer {
    let server = ApiServer::start(Options::default()).unwrap();
    let read = ["get", "list", "watch"];
    let rules = Rules::default().and(&[""], &["nodes", "namespaces", "pods"], &read).and(
        &["tidegate.io"],
        &["egresspolicies", "staticnats"],
        &read,
    );
    server.add_user("agent", rules);
    let nodes = [("gw-1", 9, "tidegate.io/gateway: ''"), ("w1", 1, ""), ("w2", 2, "")];
    nodes.iter().for_each(|(name, n, labels)| drop(server.apply(&node(name, *n, labels)).unwrap()));
    server.apply("apiVersion: v1\nkind: Namespace\nmetadata: { name: shop, labels: { team: a } }\n").unwrap();
    server
}

fn start(server: &ApiServer, home: &Path) -> Cluster {
    std::fs::write(home.join("kubeconfig"), server.kubeconfig("agent")).unwrap();
    let text = format!(
        "devices: {{ ipv4: flannel.1, ipv6: flannel-v6.1 }}\ncluster: [10.96.0.0/12]\n\
         kubernetes: {{ node: w1, kubeconfig: {0}/kubeconfig, stateFile: {0}/state/wanted.json }}\n",
        home.display()
    );
    let path = home.join("agent.yaml");
    std::fs::write(&path, &text).unwrap();
    let base = Wanted::parse(&text).unwrap();
    let settings = base.kubernetes.clone().unwrap();
    Cluster::start(File::new(&[path]), base, settings).unwrap()
}

/// Follows until what is wanted fits.
fn until(cluster: &mut Cluster, what: &str, fits: impl Fn(&Wanted) -> bool) -> Wanted {
    let (begun, mut last) = (Instant::now(), None);
    while begun.elapsed() < PATIENCE {
        if let Some(wanted) = cluster.changed().unwrap_or_default() {
            if fits(&wanted) {
                return wanted;
            }
            last = Some(wanted);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what}: not within {PATIENCE:?}; last {last:#?}")
}

fn nets(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// N-110, N-111, N-113, N-114: pods of this Node, by namespace and label, to the gateway; those not told of are held.
#[test]
fn policies_of_the_api_are_wanted_of_the_node() {
    let (server, home) = (cluster(), TempDir::new().unwrap());
    server.apply(&(pod("web-0", "w1", 11, "app: web") + &pod("db-0", "w1", 12, "app: db"))).unwrap();
    let mut source = start(&server, home.path());
    let before = until(&mut source, "the cluster", |wanted| wanted.gateways.len() == 1);
    assert!(before.egress.is_empty() && before.held.is_none() && before.symmetric.is_empty(), "{before:#?}");
    let gateway = &before.gateways[0];
    assert_eq!(gateway.name, "gw-1");
    let ends = [gateway.ipv4.as_ref().unwrap(), gateway.ipv6.as_ref().unwrap()];
    assert_eq!(ends.map(|end| end.overlay.to_string()), ["10.244.9.0", "fd00:10:244:9::"]);
    assert_eq!(ends.map(|end| end.mac.to_string()), ["02:00:00:00:04:09", "02:00:00:00:06:09"]);
    for inside in ["10.244.2.0/24", "fd00:10:244:9::/64", "198.51.100.9/32", "2001:db8:2::9/128", "10.96.0.0/12"] {
        let inside: ipnet::IpNet = inside.parse().unwrap();
        assert!(before.cluster.iter().any(|prefix| prefix.contains(&inside)), "{inside} in {:?}", before.cluster);
    }
    // Also one of another Node, and one with the node's addresses, which nobody selects.
    let elsewhere = pod("web-1", "w2", 13, "app: web");
    let host = pod("web-2", "w1", 14, "app: web").replace("spec: {", "spec: { hostNetwork: true,");
    let spec = "namespaceSelector: { matchLabels: { team: a } }, podSelector: { matchLabels: { app: web } }, \
                except: [198.18.0.0/15], addresses: [192.0.2.10, \"2001:db8::10\"]";
    server.apply(&(elsewhere + &host + &policy("out", spec))).unwrap();
    let wanted = until(&mut source, "a policy", |wanted| !wanted.egress.is_empty());
    let [egress] = wanted.egress.as_slice() else { panic!("{wanted:#?}") };
    let names: Vec<&str> = egress.pods.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!((egress.name.as_str(), names), ("out", vec!["shop/web-0"]));
    assert_eq!((egress.destinations.len(), &egress.except), (0, &nets(&["198.18.0.0/15"])));
    let carriers = egress.carriers.clone().unwrap();
    assert_eq!((carriers.ipv4.as_deref(), carriers.ipv6.as_deref()), (Some("gw-1"), Some("gw-1")));
    let held = wanted.held.unwrap();
    assert_eq!(held.prefixes, nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]));
    assert_eq!(held.known.len(), 4, "those of web-0 and db-0: {held:?}");
    // A policy without an address of a family: its pods have no gateway there, and do not leave.
    let spec = "podSelector: { matchLabels: { app: web } }, addresses: [192.0.2.10]";
    server.apply(&policy("out", spec)).unwrap();
    until(&mut source, "one family", |wanted| {
        wanted.egress.first().and_then(|egress| egress.carriers.as_ref()).is_some_and(|of| of.ipv6.is_none())
    });
    server.edit("nodes", "", "w1", |node| node["metadata"]["labels"]["tidegate.io/symmetric"] = "true".into()).unwrap();
    until(&mut source, "the label", |wanted| wanted.symmetric == nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]));
    server.delete("egresspolicies", "", "out").unwrap();
    until(&mut source, "no policy", |wanted| wanted.egress.is_empty() && wanted.held.is_none());
    assert!(server.denied().is_empty(), "{:?}", server.denied());
}

/// Where several policies select a pod the oldest whose destinations fit is used; within one the longest prefix decides.
#[test]
fn several_policies_of_a_pod_have_destinations_of_their_own() {
    let (server, home) = (cluster(), TempDir::new().unwrap());
    server.apply(&pod("web-0", "w1", 11, "app: web")).unwrap();
    let first = "destinations: [203.0.113.0/24], except: [203.0.113.128/25], addresses: [192.0.2.10]";
    server.apply(&policy("a", first)).unwrap();
    server.apply(&policy("b", "destinations: [203.0.112.0/23], addresses: [192.0.2.11]")).unwrap();
    let mut source = start(&server, home.path());
    let wanted = until(&mut source, "both", |wanted| wanted.egress.len() == 2);
    let said: Vec<(&str, &[ipnet::IpNet])> =
        wanted.egress.iter().map(|egress| (egress.name.as_str(), egress.destinations.as_slice())).collect();
    assert_eq!(said[0], ("a", nets(&["203.0.113.0/25"]).as_slice()));
    assert_eq!(said[1], ("b", nets(&["203.0.112.0/24", "203.0.113.128/25"]).as_slice()));
    assert!(wanted.complaints().is_empty(), "{:?}", wanted.complaints());
}

/// C-021, N-111: silence changes nothing, and neither does a start while it lasts.
#[test]
fn an_api_that_is_away_changes_nothing() {
    let (server, home) = (cluster(), TempDir::new().unwrap());
    server
        .apply(&(pod("web-0", "w1", 11, "app: web") + &policy("out", "addresses: [192.0.2.10, \"2001:db8::10\"]")))
        .unwrap();
    let mut source = start(&server, home.path());
    let wanted = until(&mut source, "a policy", |wanted| !wanted.egress.is_empty());
    assert_eq!(
        kept(&home.path().join("state/wanted.json")).as_ref(),
        Some(&wanted),
        "kept for a start without the API"
    );
    server.stop().unwrap();
    server.delete("egresspolicies", "", "out").unwrap();
    let quiet = |source: &mut Cluster| {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            assert_eq!(source.changed().unwrap(), None);
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    quiet(&mut source);
    drop(source);
    let mut source = start(&server, home.path());
    assert_eq!(until(&mut source, "what was kept", |_| true), wanted);
    quiet(&mut source);
    server.start_again().unwrap();
    until(&mut source, "what happened meanwhile", |wanted| wanted.egress.is_empty());
}

/// Name, pod, addresses, and the gateways by family.
type Entry<'w> = (&'w str, &'w str, Vec<String>, [Option<&'w str>; 2]);

fn entries(wanted: &Wanted) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    for egress in &wanted.egress {
        let ([pod], Some(carriers)) = (egress.pods.as_slice(), &egress.carriers) else { panic!("{egress:?}") };
        assert!(egress.destinations.is_empty() && egress.except.is_empty(), "everything: {egress:?}");
        let addresses = pod.addresses.iter().map(ToString::to_string).collect();
        let carriers = [carriers.ipv4.as_deref(), carriers.ipv6.as_deref()];
        entries.push((egress.name.as_str(), pod.name.as_str(), addresses, carriers));
    }
    entries
}

fn unreadable(wanted: &Wanted) -> Vec<String> {
    wanted.heard.as_ref().map(|heard| heard.unreadable.clone()).unwrap_or_default()
}

/// N-110, N-111, N-114: a pod that a StaticNat gives a whole address goes to the gateway by it, each family for itself, and
/// before any policy; one to which ports lead is answered through gateways, and its own connections stay as they were.
#[test]
fn static_nats_of_the_api_are_wanted_of_the_node() {
    let (server, home) = (cluster(), TempDir::new().unwrap());
    let pods = [11, 12, 13, 14].map(|n| pod(&format!("web-{n}"), "w1", n, "app: web")).concat();
    let host = pod("host", "w1", 15, "app: web").replace("spec: {", "spec: { hostNetwork: true,");
    server.apply(&(pods + &host + &pod("far", "w2", 16, "app: far"))).unwrap();
    let to = |pod: &str| format!("pod: {{ namespace: shop, name: {pod} }}");
    let ports = "ports: [{ port: 80, targetPort: 8080 }]";
    // Of port forwards alone: nobody is held, and only answers go to gateways.
    server.apply(&nat("door-v4", &format!("address: 192.0.2.30, {}, {ports}", to("web-13")))).unwrap();
    server
        .apply(&nat("door-v6", &format!("address: \"2001:db8::30\", internalAddress: \"fd00:10:244:1::14\", {ports}")))
        .unwrap();
    let mut source = start(&server, home.path());
    let doors = nets(&["10.244.1.13/32", "fd00:10:244:1::14/128"]);
    let wanted = until(&mut source, "port forwards", |wanted| wanted.symmetric == doors);
    assert!(wanted.egress.is_empty() && wanted.held.is_none(), "{wanted:#?}");
    // One to one: by name in both families, by address, and of several for one pod the first; nobody of the node itself or
    // of another Node.
    let own = [
        nat("own-v4", &format!("address: 192.0.2.20, {}", to("web-11"))),
        nat("own-v6", &format!("address: \"2001:db8::20\", {}", to("web-11"))),
        nat("own-v6-too", &format!("address: \"2001:db8::21\", {}", to("web-11"))),
        nat("single", "address: 192.0.2.22, internalAddress: 10.244.1.12"),
        nat("host", &format!("address: 192.0.2.23, {}", to("host"))),
        nat("far", &format!("address: 192.0.2.24, {}", to("far"))),
        nat("nobody", "address: 192.0.2.25, internalAddress: 10.244.1.99"),
    ];
    server.apply(&own.concat()).unwrap();
    let wanted = until(&mut source, "one to one", |wanted| wanted.egress.len() == 3);
    let by_v4 = [Some("gw-1"), None];
    let expected = vec![
        ("StaticNat own-v4", "shop/web-11", vec!["10.244.1.11".to_owned()], by_v4),
        ("StaticNat single", "shop/web-12", vec!["10.244.1.12".to_owned()], by_v4),
        ("StaticNat own-v6", "shop/web-11", vec!["fd00:10:244:1::11".to_owned()], [None, Some("gw-1")]),
    ];
    assert_eq!(entries(&wanted), expected);
    assert_eq!(wanted.symmetric, doors);
    assert_eq!(wanted.held.as_ref().unwrap().known.len(), 8, "of four pods; who comes anew is held: {:?}", wanted.held);
    assert_eq!(Wanted::parse(&serde_json::to_string(&wanted).unwrap()).unwrap(), wanted, "kept and read again");
    // Beside a policy: what has an address alone is not under it, in the other family it is.
    server.apply(&policy("out", "addresses: [192.0.2.10, \"2001:db8::10\"]")).unwrap();
    let wanted = until(&mut source, "a policy too", |wanted| wanted.egress.len() == 4);
    let [by_policy, rest @ ..] = wanted.egress.as_slice() else { panic!("{wanted:#?}") };
    assert_eq!((by_policy.name.as_str(), rest.len()), ("out", 3));
    let under: Vec<String> =
        by_policy.pods.iter().flat_map(|pod| pod.addresses.iter().map(ToString::to_string)).collect();
    let both = |n: u8| [format!("10.244.1.{n}"), format!("fd00:10:244:1::{n}")];
    assert_eq!(under, [&both(12)[1..], &both(13)[..], &both(14)[..]].concat());
    server.delete("egresspolicies", "", "out").unwrap();
    // A Pod that goes and comes again with another address.
    server.delete("pods", "shop", "web-12").unwrap();
    server.apply(&pod("web-11", "w1", 17, "app: web")).unwrap();
    let wanted = until(&mut source, "another address", |wanted| {
        let addresses: Vec<String> =
            wanted.egress.iter().flat_map(|egress| &egress.pods[0].addresses).map(ToString::to_string).collect();
        addresses == ["10.244.1.17", "fd00:10:244:1::17"]
    });
    assert_eq!(wanted.symmetric, doors);
    // `symmetric` of the Node holds them already.
    server.edit("nodes", "", "w1", |node| node["metadata"]["labels"]["tidegate.io/symmetric"] = "true".into()).unwrap();
    until(&mut source, "the label", |wanted| wanted.symmetric == nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]));
    for name in ["own-v4", "own-v6", "own-v6-too", "single", "host", "far", "nobody"] {
        server.delete("staticnats", "", name).unwrap();
    }
    until(&mut source, "none one to one", |wanted| wanted.egress.is_empty() && wanted.held.is_none());
    assert!(server.denied().is_empty(), "{:?}", server.denied());
}

/// N-111: a StaticNat that cannot be read any more stays as it was, over a restart too; one that never could keeps the pod in
/// that it would have given a whole address, and nobody else.
#[test]
fn a_static_nat_that_cannot_be_read_lets_nobody_out() {
    let (server, home) = (cluster(), TempDir::new().unwrap());
    server.apply(&(pod("web-0", "w1", 11, "app: web") + &pod("web-1", "w1", 12, "app: web"))).unwrap();
    let to = |n: u8| format!("pod: {{ namespace: shop, name: web-{n} }}");
    let door = "ports: [{ port: 80 }]";
    let good = [
        nat("own-v4", &format!("address: 192.0.2.20, {}", to(0))),
        nat("own-v6", &format!("address: \"2001:db8::20\", {}", to(0))),
        nat("door-v4", &format!("address: 192.0.2.30, {}, {door}", to(1))),
        nat("door-v6", &format!("address: \"2001:db8::30\", {}, {door}", to(1))),
    ];
    server.apply(&good.concat()).unwrap();
    let mut source = start(&server, home.path());
    let before = until(&mut source, "all", |wanted| wanted.egress.len() == 2 && wanted.symmetric.len() == 2);
    let bad = [
        nat("own-v4", &format!("address: here, {}", to(0))),
        nat("own-v6", &format!("address: there, {}", to(0))),
        nat("door-v4", &format!("address: here, {}, {door}", to(1))),
        nat("door-v6", &format!("address: there, {}, {door}", to(1))),
    ];
    server.apply(&bad.concat()).unwrap();
    let is_told = |wanted: &Wanted| unreadable(wanted).len() == 4;
    let wanted = until(&mut source, "the mistakes", is_told);
    assert_eq!((&wanted.egress, &wanted.symmetric), (&before.egress, &before.symmetric));
    for told in unreadable(&wanted) {
        assert!(told.starts_with("StaticNat ") && told.ends_with("; it is left as it was"), "{told}");
    }
    // Another start.
    drop(source);
    let mut source = start(&server, home.path());
    assert_eq!(until(&mut source, "what was kept", |_| true), wanted);
    server.apply(&pod("web-2", "w1", 13, "app: web")).unwrap();
    let again =
        until(&mut source, "another pod", |wanted| wanted.held.as_ref().is_some_and(|held| held.known.len() == 6));
    assert_eq!(
        (&again.egress, &again.symmetric, unreadable(&again)),
        (&before.egress, &before.symmetric, unreadable(&wanted))
    );
    // Without what was kept: no gateway for the pod that was to have an address alone, in either family.
    drop(source);
    std::fs::remove_file(home.path().join("state/wanted.json")).unwrap();
    let mut source = start(&server, home.path());
    let closed = until(&mut source, "nothing kept", is_told);
    let expected = vec![
        ("StaticNat own-v4", "shop/web-0", vec!["10.244.1.11".to_owned()], [None, None]),
        ("StaticNat own-v4", "shop/web-0", vec!["fd00:10:244:1::11".to_owned()], [None, None]),
    ];
    assert_eq!(entries(&closed), expected);
    assert!(closed.symmetric.is_empty(), "{:?}", closed.symmetric);
    assert_eq!(closed.held.as_ref().unwrap().known.len(), 6, "everybody is known: {:?}", closed.held);
    let told = unreadable(&closed).join("\n");
    assert_eq!(told.matches("the pod that it names does not get out").count(), 2, "{told}");
    assert_eq!(told.matches("nobody is reached by it").count(), 2, "{told}");
    // Mended one by one.
    server.apply(&good[0]).unwrap();
    let half = until(&mut source, "the first family", |wanted| unreadable(wanted).len() == 3);
    assert_eq!(entries(&half).iter().map(|entry| entry.3).collect::<Vec<_>>(), [[Some("gw-1"), None], [None, None]]);
    server.delete("staticnats", "", "own-v6").unwrap();
    let one = until(&mut source, "one gone", |wanted| unreadable(wanted).len() == 2);
    assert_eq!(entries(&one).len(), 1, "its family is nobody's: {one:#?}");
    server.apply(&good.concat()).unwrap();
    let whole = until(&mut source, "all mended", |wanted| unreadable(wanted).is_empty());
    assert_eq!((whole.egress, whole.symmetric), (before.egress, before.symmetric));
}
