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

/// Whether both policies are in force with pod 1 as the subject of the one and pod 2 as whom the other speaks of.
fn is_as_it_was(gateway: &Gateway) -> bool {
    let (Some(network), Some(cluster)) = (policy(gateway, NETWORK), policy(gateway, CLUSTER)) else { return false };
    is_in(gateway, &network.subjects, 1)
        && is_in(gateway, &clients(&cluster), 2)
        && [1, 2].iter().all(|number| is_in(gateway, &cluster.subjects, *number))
}

/// Waits until `part` stands in what is saved of the object of that name.
fn until_saved(gateway: &Gateway, name: &str, part: &str) {
    let name = format!("\"name\":\"{name}\"");
    let file = gateway.home.path().join("state/policies.log");
    until(part, || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        text.lines().rfind(|line| line.contains(&name)).is_some_and(|line| line.contains(part))
    });
}

/// Waits until what is saved is all there is.
fn until_whole(gateway: &Gateway) {
    let file = gateway.home.path().join("state/policies.log");
    until("all", || fs::read_to_string(&file).is_ok_and(|text| text.starts_with("{\"format\":2}\n")));
}

fn write(gateway: &Gateway, name: &str, text: &str) {
    let hidden = gateway.manifests().join(format!(".{name}.new"));
    fs::write(&hidden, text).unwrap();
    fs::rename(hidden, gateway.manifests().join(format!("{name}.yaml"))).unwrap();
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
    // What its rule may mean is denied; the block of the one before is not known of it.
    gateway.until("its own", |gateway| doors(gateway).is_some_and(|doors| doors.rules[0].clients.is_none()));
    assert!(policy(&gateway, NETWORK).is_some());
}

#[test]
fn policies_of_a_directory_that_are_wrong_after_a_kill_stay_as_they_were() {
    let mut gateway = Gateway::of_directory("gw-1");
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

/// The good policies, each about the same pods in other words.
fn edited() -> String {
    let good = good();
    let edited = good.replace("operator: Exists", "operator: NotIn, values: [db]");
    edited.replace("matchLabels: { role: client }", "matchExpressions: [{ key: role, operator: Exists }]")
}

/// Whom policies are about is said in other words and then in the old ones, while nobody knows the pods.
fn edit_and_take_back(gateway: &Gateway, number: usize, put: &dyn Fn(&Gateway, &str, &str)) {
    for (step, text) in [("e", edited()), ("f", good())] {
        put(gateway, "policies", &text);
        until_told(gateway, &format!("{step}{number}"), put);
        assert!(is_as_it_was(gateway), "{number}{step}");
    }
}

/// P-010: whom a policy is about is not forgotten because nobody can tell at the moment.
#[test]
fn pods_that_cannot_be_read_after_a_kill_stay_in_their_policies() {
    let mut gateway = Gateway::of_directory("gw-1");
    let pods = pod(1, "app: web") + &pod(2, "role: client");
    write(&gateway, "nodes", &(node("gw-1", 9) + &node("w1", 1)));
    write(&gateway, "policies", &good());
    write(&gateway, "pods", &pods);
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
        until_whole(&gateway);
        until_saved(&gateway, "p2", "\"client\"");
        gateway.kill();
        match is_lost {
            true => fs::write(gateway.home.path().join("state/policies.log"), "nonsense").unwrap(),
            // Not even the dataplane knows them, and somebody new is to join them.
            false => {
                gateway.dataplane().resources.clear();
                write(&gateway, "more", &pod(4, "app: web, role: client"));
            }
        }
        write(&gateway, "pods", wrong);
        gateway.run();
        until_told(&gateway, &format!("m{number}"), &write);
        assert!(is_as_it_was(&gateway), "{number}: {wrong}");
        edit_and_take_back(&gateway, number, &write);
        // One with a field that nobody knows is used as it can be read.
        let is_used = wrong.contains("lables") || wrong.contains("podIps");
        if is_lost && !is_used {
            // The next run knows no more.
            gateway.kill();
            gateway.run();
            edit_and_take_back(&gateway, 100 + number, &write);
        }
        if !is_lost {
            let (network, cluster) = (policy(&gateway, NETWORK).unwrap(), policy(&gateway, CLUSTER).unwrap());
            assert!(
                is_in(&gateway, &network.subjects, 4) && is_in(&gateway, &clients(&cluster), 4),
                "{number}: {wrong}"
            );
            fs::remove_file(gateway.manifests().join("more.yaml")).unwrap();
        }
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

/// A Pod that has never been without a mistake is what can be read of it: what policies say of it later is about it, too.
#[test]
fn a_pod_with_a_mistake_all_along_is_in_policies_that_are_edited_after_a_kill() {
    let mut gateway = Gateway::of_directory("gw-1");
    write(&gateway, "nodes", &(node("gw-1", 9) + &node("w1", 1)));
    write(&gateway, "policies", &good());
    write(
        &gateway,
        "pods",
        &(pod(1, "app: web").replace("metadata: {", "metadata: { lables: { app: db },") + &pod(2, "role: client")),
    );
    gateway.until("who is meant", is_as_it_was);
    until_whole(&gateway);
    gateway.kill();
    gateway.run();
    gateway.problem_with("Invalid", "metadata.lables");
    for step in ["g", "h"] {
        edit_and_take_back(&gateway, 0, &write);
        write(
            &gateway,
            "policies",
            &good().replace("key: app, operator: Exists", "key: app, operator: In, values: [db]"),
        );
        gateway.until("others", |gateway| {
            policy(gateway, NETWORK).is_some_and(|policy| !is_in(gateway, &policy.subjects, 1))
        });
        write(&gateway, "policies", &good());
        gateway.until("as it was", is_as_it_was);
        until_told(&gateway, step, &write);
        ["e0", "f0"].iter().for_each(|name| fs::remove_file(gateway.manifests().join(format!("{name}.yaml"))).unwrap());
        gateway.until("less", |gateway| policy(gateway, "NetworkPolicy/shop/f0").is_none());
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
    gateway.until("who is meant", is_as_it_was);
    for saved in ["p1", "p2", "tier"] {
        until_saved(&gateway, saved, "set");
    }
    let put = |_: &Gateway, _: &str, text: &str| drop(server.apply(text).unwrap());
    let missing = Effect::Answer { code: 404, retry_after_s: None };
    let cases = ["pods", "namespaces", "clusternetworkpolicies"].map(|kind| [(kind, false), (kind, true)]);
    let cases =
        cases.as_flattened().iter().flat_map(|(kind, missing)| [(*kind, *missing, false), (*kind, *missing, true)]);
    for (number, (withheld, is_missing, is_lost)) in cases.enumerate() {
        // A kind of policies that nobody remembers, of a cluster that says it does not have it, is not looked for.
        if is_missing && is_lost && withheld == "clusternetworkpolicies" {
            continue;
        }
        until_whole(&gateway);
        gateway.kill();
        match is_lost {
            true => fs::remove_file(gateway.home.path().join("state/policies.log")).unwrap(),
            false => gateway.dataplane().resources.clear(),
        }
        match is_missing {
            true => server.faults().add(Fault::always(Match::resource(withheld), missing.clone())),
            false => server.add_user("gw-1", role_without(withheld)),
        }
        gateway.run();
        match withheld {
            "clusternetworkpolicies" if !is_lost => {
                gateway.problem_with("PoliciesNotSeen", "ClusterNetworkPolicy tier")
            }
            _ => gateway.problem_with(if is_missing { "ApiKindMissing" } else { "ApiForbidden" }, withheld),
        };
        until_told(&gateway, &format!("m{number}"), &put);
        assert!(is_as_it_was(&gateway), "without {withheld}, missing: {is_missing}, lost: {is_lost}");
        if withheld == "pods" {
            edit_and_take_back(&gateway, number, &put);
            server.delete("networkpolicies", "shop", "closed").unwrap();
            gateway.until("no policy", |gateway| policy(gateway, NETWORK).is_none());
            server.apply(&of_team).unwrap();
            gateway.until("the policy again", is_as_it_was);
            if is_lost {
                server.apply(&edited()).unwrap();
                gateway.problem_with("ChangeWaits", "closed");
                server.apply(&of_team).unwrap();
                gateway.without_problem("ChangeWaits");
            }
        }
        // Who is new is one of them, though nobody can tell the labels of the namespace.
        if withheld == "namespaces" && !is_lost {
            server.apply(&pod(4, "app: web, role: client")).unwrap();
            gateway.until("who is new", |gateway| {
                let (network, cluster) = (policy(gateway, NETWORK).unwrap(), policy(gateway, CLUSTER).unwrap());
                [&network.subjects, &cluster.subjects, &clients(&cluster)].iter().all(|set| is_in(gateway, set, 4))
            });
            server.delete("pods", "shop", "p4").unwrap();
            gateway.until("gone", |gateway| body(gateway, Kind::Pod, "shop/p4").is_none());
        }
        server.add_user("gw-1", role());
        server.faults().clear();
        for reason in ["ApiForbidden", "ApiKindMissing", "PoliciesNotSeen", "PodsNotSeen"] {
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

/// What is gone is gone: neither a kind that a cluster never had nor one that can be read again holds anything.
#[test]
fn what_is_deleted_while_control_is_not_there_does_not_stay() {
    let server = cluster();
    let mut gateway = Gateway::start(&server, "gw-1", "");
    server.apply(&(pod(1, "app: web") + &pod(2, "app: web"))).unwrap();
    server.apply(good().split("---\n").next().unwrap()).unwrap();
    let subjects = |gateway: &Gateway| policy(gateway, NETWORK).map(|policy| policy.subjects);
    let has = |gateway: &Gateway, number| subjects(gateway).is_some_and(|set| is_in(gateway, &set, number));
    gateway.until("who is meant", |gateway| has(gateway, 1) && has(gateway, 2));
    until_whole(&gateway);
    gateway.kill();
    server.delete("pods", "shop", "p2").unwrap();
    gateway.run();
    gateway.until("who is left", |gateway| has(gateway, 1) && body(gateway, Kind::Pod, "shop/p2").is_none());
    // While Pods are withheld, those who went meanwhile stay; then they go.
    gateway.kill();
    server.delete("pods", "shop", "p1").unwrap();
    server.add_user("gw-1", role_without("pods"));
    gateway.run();
    gateway.problem_with("PodsNotSeen", "Pod shop/p1");
    until_told(&gateway, "m1", &|_, _, text| drop(server.apply(text).unwrap()));
    assert!(has(&gateway, 1));
    server.add_user("gw-1", role());
    gateway.until("nobody", |gateway| body(gateway, Kind::Pod, "shop/p1").is_none());
    gateway.without_problem("PodsNotSeen");
    gateway.kill();
    server.delete("networkpolicies", "shop", "closed").unwrap();
    gateway.run();
    gateway.until("no policy", |gateway| policy(gateway, NETWORK).is_none());
    assert!(!gateway.log().contains("PoliciesNotSeen"));
}

/// A directory that has lost its pods, or all it had, while control was not there: that waits for a person.
#[test]
fn what_is_missing_from_a_directory_after_a_kill_waits_with_its_meaning() {
    let mut gateway = Gateway::of_directory("gw-1");
    let manifests = gateway.manifests();
    let pods: String = [pod(1, "app: web"), pod(2, "role: client"), pod(3, "app: web")].concat();
    let all = [("nodes", node("gw-1", 9) + &node("w1", 1)), ("policies", good()), ("pods", pods)];
    for missing in [&["pods"][..], &["pods", "policies"], &["nodes", "policies", "pods"]] {
        all.iter().for_each(|(name, text)| write(&gateway, name, text));
        gateway.until("who is meant", is_as_it_was);
        until_whole(&gateway);
        until_saved(&gateway, "p3", "set");
        gateway.kill();
        missing.iter().for_each(|name| fs::remove_file(manifests.join(format!("{name}.yaml"))).unwrap());
        gateway.run();
        gateway.problem_with("PodsNotSeen", "confirm-deletes");
        until_told(&gateway, "marker", &write);
        assert!(is_as_it_was(&gateway) && doors(&gateway).is_some(), "without {missing:?}");
        // Half of it there again is no word about the other half.
        if missing.len() == 2 {
            write(&gateway, "policies", &all[1].1);
            gateway.without_problem("PoliciesNotSeen");
            write(&gateway, "pods", &(pod(1, "app: web") + &pod(2, "role: client")));
            gateway.problem_with("PodsNotSeen", "Pod shop/p3");
            assert!(is_as_it_was(&gateway) && is_in(&gateway, &policy(&gateway, NETWORK).unwrap().subjects, 3));
        }
        fs::write(manifests.join("confirm-deletes"), "").unwrap();
        gateway.until("gone", |gateway| body(gateway, Kind::Pod, "shop/p3").is_none());
        gateway.until("gone", |gateway| policy(gateway, NETWORK).is_some() == (missing.len() < 3));
        gateway.without_problem("PodsNotSeen");
        fs::remove_file(manifests.join("marker.yaml")).unwrap();
    }
}
