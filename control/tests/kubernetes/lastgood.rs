//! Policies that became wrong while control was not there: the version before stays in force, and means today's pods.

use std::fs;

use tidegate_api::resource::{Body, GatewayPolicy, IdentitySet, Kind, Policy, ResourceKey};
use tidegate_apiserver::fault::{Effect, Fault, Match};

use super::stage::{Gateway, cluster, node, role, role_without, until};

/// Somebody else's definition.
const DEFINITION: &str = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n\
    metadata: { name: clusternetworkpolicies.policy.networking.k8s.io }\n\
    spec: { group: policy.networking.k8s.io, scope: Cluster, \
    names: { plural: clusternetworkpolicies, kind: ClusterNetworkPolicy }, versions: [{ name: v1alpha2, served: true, \
    storage: true, schema: { openAPIV3Schema: { type: object, x-kubernetes-preserve-unknown-fields: true } } }] }\n";

const NETWORK: &str = "NetworkPolicy/shop/closed";
const CLUSTER: &str = "ClusterNetworkPolicy/tier";

/// A pod by its number, with its labels.
fn pod(number: u8, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: p{number}, namespace: shop, labels: {{ {labels} }} }}\n\
         spec: {{ nodeName: w1, containers: [{{ name: c }}] }}\n\
         status: {{ podIPs: [{{ ip: 10.244.1.{number} }}, {{ ip: \"fd00:10:244:1::{number}\" }}] }}\n---\n"
    )
}

/// One policy of each kind, with what each may be spoilt by.
fn policies(operator: &str, tier: &str, block: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: closed, namespace: shop }}\n\
         spec: {{ podSelector: {{ matchExpressions: [{{ key: app, operator: {operator} }}] }}, policyTypes: [Ingress] }}\n---\n\
         apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{ name: tier }}\n\
         spec: {{ tier: {tier}, priority: 5, subject: {{ namespaces: {{}} }}, ingress: [{{ action: Deny, from: \
         [{{ pods: {{ namespaceSelector: {{}}, podSelector: {{ matchLabels: {{ role: client }} }} }} }}] }}] }}\n---\n\
         apiVersion: tidegate.io/v1alpha1\nkind: GatewayPolicy\nmetadata: {{ name: doors }}\n\
         spec: {{ order: 7, rules: [{{ action: Deny, clients: [{{ cidr: \"{block}\" }}] }}] }}\n---\n"
    )
}

fn good() -> String {
    policies("Exists", "Admin", "2001:db8::/32")
}

fn bad() -> String {
    policies("Exist", "Amin", "2001:db8::1/32")
}

fn body(gateway: &Gateway, kind: Kind, name: &str) -> Option<Body> {
    let key = ResourceKey { kind, name: name.into() };
    gateway.dataplane().resources.get(&key).map(|resource| resource.body.clone())
}

fn policy(gateway: &Gateway, name: &str) -> Option<Policy> {
    if let Some(Body::Policy(policy)) = body(gateway, Kind::Policy, name) { Some(policy) } else { None }
}

fn doors(gateway: &Gateway) -> Option<GatewayPolicy> {
    if let Some(Body::GatewayPolicy(policy)) = body(gateway, Kind::GatewayPolicy, "doors") {
        Some(policy)
    } else {
        None
    }
}

/// Whether a pod is in a set of the dataplane.
fn is_in(gateway: &Gateway, set: &str, number: u8) -> bool {
    let members = match body(gateway, Kind::IdentitySet, set) {
        Some(Body::IdentitySet(IdentitySet { identities })) => identities,
        _ => return false,
    };
    match body(gateway, Kind::Pod, &format!("shop/p{number}")) {
        Some(Body::Pod(pod)) => pod.identity != 0 && members.contains(&pod.identity),
        _ => false,
    }
}

/// The set of whom the first rule of `tier` speaks.
fn clients(policy: &Policy) -> String {
    match policy.ingress[0].peers.as_deref() {
        Some([tidegate_api::resource::PolicyPeer::Set(name)]) => name.clone(),
        other => panic!("{other:?}"),
    }
}

/// The life of policies of all kinds; `put` makes a text what the source has under a name.
fn lives(gateway: &mut Gateway, put: &dyn Fn(&Gateway, &str, &str)) {
    put(gateway, "pods", &(pod(1, "app: web") + &pod(2, "role: client")));
    put(gateway, "policies", &good());
    let of_all = |gateway: &Gateway| Some((policy(gateway, NETWORK)?, policy(gateway, CLUSTER)?, doors(gateway)?));
    gateway.until("all policies", |gateway| of_all(gateway).is_some());
    let before = of_all(gateway).unwrap();
    gateway.until("who is meant", |gateway| {
        is_in(gateway, &before.0.subjects, 1) && is_in(gateway, &clients(&before.1), 2)
    });
    let file = gateway.home.path().join("state/policies.log");
    until("saved policies", || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        ["closed", "tier", "doors"].iter().all(|name| text.contains(&format!("\"name\":\"{name}\"")))
    });

    gateway.kill();
    // Not even the dataplane has them any more.
    gateway.dataplane().resources.clear();
    put(gateway, "policies", &bad());
    put(gateway, "pods", &(pod(1, "role: client, x: y") + &pod(2, "other: one") + &pod(3, "app: web, new: pod")));
    gateway.run();
    gateway.until("all policies again", |gateway| of_all(gateway).as_ref() == Some(&before));
    gateway.until("who is meant now", |gateway| {
        let (subjects, clients) = (&before.0.subjects, clients(&before.1));
        [1, 2, 3].map(|pod| (is_in(gateway, subjects, pod), is_in(gateway, &clients, pod)))
            == [(false, true), (false, false), (true, false)]
    });
    let told = gateway.problem("Invalid");
    assert!(told.contains("the last good version stays in use"), "{told}");

    // Once more: what was used is still saved.
    gateway.kill();
    gateway.dataplane().resources.clear();
    gateway.run();
    gateway.until("all policies a third time", |gateway| of_all(gateway).as_ref() == Some(&before));

    // A file that cannot be used is told; then only the dataplane has them, and keeps them.
    gateway.kill();
    fs::write(&file, "{\"format\":1}\nnonsense\n").unwrap();
    gateway.run();
    let told = gateway.problem("SavedPoliciesUnusable");
    assert!(told.contains("line 2"), "{told}");
    gateway.problem_with("Invalid", "the version that the dataplane has stays in force");
    assert_eq!(of_all(gateway), Some(before));
    put(gateway, "policies", &good().replace("order: 7", "order: 8"));
    gateway.until("the mended one", |gateway| doors(gateway).is_some_and(|doors| doors.order == 8));
    gateway.without_problem("\"Invalid\"");
    until("saved again", || fs::read_to_string(&file).is_ok_and(|text| text.contains("\"doors\"")));
}

#[test]
fn policies_of_a_cluster_that_are_wrong_after_a_kill_stay_as_they_were() {
    let server = cluster();
    server.apply(DEFINITION).unwrap();
    let mut gateway = Gateway::start(&server, "gw-1", "");
    lives(&mut gateway, &|_, _, text| drop(server.apply(text).unwrap()));
    // Another object of that name has no earlier version (S-005).
    server.delete("gatewaypolicies", "", "doors").unwrap();
    gateway.until("gone", |gateway| doors(gateway).is_none());
    gateway.kill();
    server.apply(&bad()).unwrap();
    gateway.run();
    gateway.problem("Invalid");
    gateway.until("the others", |gateway| policy(gateway, NETWORK).is_some());
    assert_eq!(doors(&gateway), None);
}

#[test]
fn policies_of_a_directory_that_are_wrong_after_a_kill_stay_as_they_were() {
    let mut gateway = Gateway::of_directory("gw-1");
    let write = |gateway: &Gateway, name: &str, text: &str| {
        let hidden = gateway.manifests().join(format!(".{name}.new"));
        fs::write(&hidden, text).unwrap();
        fs::rename(hidden, gateway.manifests().join(format!("{name}.yaml"))).unwrap();
    };
    write(&gateway, "nodes", &(node("gw-1", 9) + &node("w1", 1)));
    lives(&mut gateway, &write);
    // A file that nobody can read may have any of them.
    let lines = ["\"name\":\"closed\"", "\"name\":\"tier\"", "\"order\":8"];
    let is_saved = |text: String| lines.iter().all(|part| text.contains(part));
    gateway.until("saved", |gateway| {
        fs::read_to_string(gateway.home.path().join("state/policies.log")).is_ok_and(is_saved)
    });
    let far = good().replace("kind: NetworkPolicy", "kind: Ingress").replace("tidegate.io/v1alpha1", "example.org/v1");
    for unreadable in ["kind: [\n".to_owned(), good().replace("Policy\n", "Polcy\n"), far] {
        gateway.kill();
        gateway.dataplane().resources.clear();
        write(&gateway, "policies", &unreadable);
        gateway.run();
        gateway.until("all policies", |gateway| {
            policy(gateway, NETWORK).is_some() && policy(gateway, CLUSTER).is_some() && doors(gateway).is_some()
        });
    }
    // It turns out that one of them is not there any more.
    write(&gateway, "policies", &good().replace("name: closed", "name: other"));
    gateway.until("what there is", |gateway| {
        policy(gateway, NETWORK).is_none() && policy(gateway, "NetworkPolicy/shop/other").is_some()
    });
}

/// A policy of the namespace that is about everybody, and in force when all before it is.
fn marker(name: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec: {{ podSelector: {{ matchLabels: {{ none: such }} }} }}\n---\n"
    )
}

/// Waits for a policy that `put` makes known now: what control had to say before it has been said.
fn until_told(gateway: &Gateway, name: &str, put: &dyn Fn(&Gateway, &str, &str)) {
    put(gateway, name, &marker(name));
    gateway.until(name, |gateway| policy(gateway, &format!("NetworkPolicy/shop/{name}")).is_some());
}

/// P-010: whom a policy is about is not forgotten because nobody can tell at the moment.
#[test]
fn pods_that_cannot_be_read_after_a_kill_stay_in_their_policies() {
    let mut gateway = Gateway::of_directory("gw-1");
    let write = |gateway: &Gateway, name: &str, text: &str| {
        let hidden = gateway.manifests().join(format!(".{name}.new"));
        fs::write(&hidden, text).unwrap();
        fs::rename(hidden, gateway.manifests().join(format!("{name}.yaml"))).unwrap();
    };
    let pods = pod(1, "app: web") + &pod(2, "role: client");
    write(&gateway, "nodes", &(node("gw-1", 9) + &node("w1", 1)));
    write(&gateway, "policies", &good());
    write(&gateway, "pods", &pods);
    let is_as_it_was = |gateway: &Gateway| {
        let (Some(network), Some(cluster)) = (policy(gateway, NETWORK), policy(gateway, CLUSTER)) else { return false };
        is_in(gateway, &network.subjects, 1) && is_in(gateway, &clients(&cluster), 2)
    };
    gateway.until("who is meant", is_as_it_was);
    let wrong = [
        pods.replace("status: {", "status: {{"),
        pods.replace("app: web", "app: 1").replace("role: client", "role: 1"),
        pods.replace("labels: {", "lables: {"),
        pods.replace("kind: Pod", "kind: Pd"),
        pods.replace("podIPs:", "podIps:"),
        String::new(),
    ];
    for (number, (wrong, is_lost)) in wrong.iter().flat_map(|wrong| [(wrong, false), (wrong, true)]).enumerate() {
        gateway.kill();
        if is_lost {
            fs::write(gateway.home.path().join("state/policies.log"), "nonsense").unwrap();
        }
        write(&gateway, "pods", wrong);
        gateway.run();
        until_told(&gateway, &format!("m{number}"), &write);
        assert!(is_as_it_was(&gateway), "{number}: {wrong}");
        // Put right, it means what it says.
        write(&gateway, "pods", &(pod(1, "app: web") + &pod(2, "role: other") + &pod(3, "app: web, role: client")));
        gateway.until("who is meant now", |gateway| {
            let (Some(network), Some(cluster)) = (policy(gateway, NETWORK), policy(gateway, CLUSTER)) else {
                return false;
            };
            let (subjects, clients) = (&network.subjects, &clients(&cluster));
            is_in(gateway, subjects, 3) && is_in(gateway, clients, 3) && !is_in(gateway, clients, 2)
        });
        write(&gateway, "pods", &pods);
        gateway.until("who is meant", is_as_it_was);
    }
}

/// The same of a cluster that withholds Pods, Namespaces or a kind of policies when control begins anew.
#[test]
fn what_a_cluster_withholds_after_a_kill_stays_as_it_was() {
    let server = cluster();
    server.apply(DEFINITION).unwrap();
    let mut gateway = Gateway::start(&server, "gw-1", "");
    server.apply("apiVersion: v1\nkind: Namespace\nmetadata: { name: shop, labels: { team: a } }\n").unwrap();
    server.apply(&(pod(1, "app: web") + &pod(2, "role: client"))).unwrap();
    let of_team =
        good().replace("subject: { namespaces: {} }", "subject: { namespaces: { matchLabels: { team: a } } }");
    server.apply(&of_team).unwrap();
    let is_as_it_was = |gateway: &Gateway| {
        let (Some(network), Some(cluster)) = (policy(gateway, NETWORK), policy(gateway, CLUSTER)) else { return false };
        let subjects =
            [(&network.subjects, 1), (&clients(&cluster), 2), (&cluster.subjects, 1), (&cluster.subjects, 2)];
        subjects.iter().all(|(set, pod)| is_in(gateway, set, *pod))
    };
    gateway.until("who is meant", is_as_it_was);
    let file = gateway.home.path().join("state/policies.log");
    until("saved policies", || fs::read_to_string(&file).is_ok_and(|text| text.contains("\"name\":\"tier\"")));
    let put = |_: &Gateway, _: &str, text: &str| drop(server.apply(text).unwrap());
    let missing = Effect::Answer { code: 404, retry_after_s: None };
    let cases = ["pods", "namespaces", "clusternetworkpolicies"].map(|kind| [(kind, false), (kind, true)]);
    for (number, (withheld, is_missing)) in cases.as_flattened().iter().copied().enumerate() {
        gateway.kill();
        match is_missing {
            true => server.faults().add(Fault::always(Match::resource(withheld), missing.clone())),
            false => server.add_user("gw-1", role_without(withheld)),
        }
        gateway.run();
        match withheld {
            "clusternetworkpolicies" => gateway.problem_with("PoliciesNotSeen", "ClusterNetworkPolicy tier"),
            _ => gateway.problem_with(if is_missing { "ApiKindMissing" } else { "ApiForbidden" }, withheld),
        };
        until_told(&gateway, &format!("m{number}"), &put);
        assert!(is_as_it_was(&gateway), "without {withheld}");
        server.add_user("gw-1", role());
        server.faults().clear();
        for reason in ["ApiForbidden", "ApiKindMissing", "PoliciesNotSeen"] {
            gateway.without_problem(reason);
        }
        assert!(is_as_it_was(&gateway), "with {withheld} again");
        server.apply(&pod(3, "app: web")).unwrap();
        gateway.until("a new pod", |gateway| {
            policy(gateway, NETWORK).is_some_and(|policy| is_in(gateway, &policy.subjects, 3))
        });
        server.delete("pods", "shop", "p3").unwrap();
    }
}
