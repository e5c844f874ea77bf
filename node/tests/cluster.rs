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

/// A cluster with one gateway and two workers, and the agent's user with its rights.
fn cluster() -> ApiServer {
    let server = ApiServer::start(Options::default()).unwrap();
    let read = ["get", "list", "watch"];
    let rules = Rules::default().and(&[""], &["nodes", "namespaces", "pods"], &read).and(
        &["tidegate.io"],
        &["egresspolicies"],
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
