//! GatewayPolicies in a cluster: their life, their status, and events about policies that are wrong.

use serde_json::{Value, json};
use tidegate_api::resource::{Body, GatewayPolicy};
use tidegate_apiserver::ApiServer;

use super::stage::{Gateway, PATIENCE, cluster, expect_nothing_denied, service, until, until_served};

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: tidegate.io/v1alpha1\nkind: GatewayPolicy\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n---\n"
    )
}

fn held(gateway: &Gateway, name: &str) -> Option<GatewayPolicy> {
    gateway.dataplane().resources.values().find_map(|resource| match &resource.body {
        Body::GatewayPolicy(policy) if resource.name == name => Some(policy.clone()),
        _ => None,
    })
}

/// Waits until the condition `Valid` fits.
fn until_valid(server: &ApiServer, name: &str, status: &str) -> Value {
    let valid = |object: &Value| object["status"]["conditions"][0]["status"] == status;
    server.wait_for("gatewaypolicies", "", name, PATIENCE, valid).unwrap()
}

/// Reason and note of events about an object of that kind. Those about what is in no namespace are in `default`.
fn events(server: &ApiServer, kind: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = ["shop", "default"].into_iter().flat_map(|namespace| server.list("events.events.k8s.io", namespace));
    let all = all.filter(|event| event["regarding"]["kind"] == kind);
    all.map(|event| (text(&event["reason"]), text(&event["note"]))).collect()
}

#[test]
fn a_policy_lives_and_tells_how_it_is() {
    let server = cluster();
    let gateway = Gateway::start(&server, "gw-1", "");
    server.apply(&service("web", "")).unwrap();
    until_served(&server, "web");
    server.apply(&policy("doors", "order: 7, rules: [{ action: Deny, services: [{ namespace: shop }] }]")).unwrap();
    gateway.until("the policy", |gateway| held(gateway, "doors").is_some_and(|policy| policy.order == 7));
    let doors = until_valid(&server, "doors", "True");
    assert_eq!((&doors["status"]["services"], &doors["status"]["observedGeneration"]), (&json!(1), &json!(1)));
    // One that the server lets through and that cannot be worked with: the last good version stays.
    let spec = "order: 8, rules: [{ action: Deny, clients: [{ cidr: 192.0.2.1/24 }] }]";
    server.apply(&policy("doors", spec)).unwrap();
    let doors = until_valid(&server, "doors", "False");
    let condition = &doors["status"]["conditions"][0];
    assert_eq!(condition["reason"], "Invalid");
    assert!(condition["message"].as_str().unwrap().contains("has bits set"), "{condition}");
    assert_eq!(held(&gateway, "doors").unwrap().order, 7);
    until("an event", || events(&server, "GatewayPolicy").iter().any(|(reason, _)| reason == "Invalid"));
    server.apply(&policy("doors", "order: 9, mode: Audit, rules: [{ action: Deny }]")).unwrap();
    let doors = until_valid(&server, "doors", "True");
    assert!(doors["status"]["conditions"][0]["message"].as_str().unwrap().contains("counts"), "{doors}");
    gateway.until("audit", |gateway| held(gateway, "doors").is_some_and(|policy| policy.audit));
    server.delete("gatewaypolicies", "", "doors").unwrap();
    gateway.until("gone", |gateway| held(gateway, "doors").is_none());
    expect_nothing_denied(&server);
}

#[test]
fn policies_that_are_wrong_have_events() {
    let server = cluster();
    // Somebody else's definition, there before control is.
    let definition = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n\
         metadata: { name: clusternetworkpolicies.policy.networking.k8s.io }\n\
         spec: { group: policy.networking.k8s.io, scope: Cluster, \
         names: { plural: clusternetworkpolicies, kind: ClusterNetworkPolicy }, versions: [{ name: v1alpha2, served: true, \
         storage: true, schema: { openAPIV3Schema: { type: object, x-kubernetes-preserve-unknown-fields: true } } }] }\n---\n";
    server.apply(definition).unwrap();
    let gateway = Gateway::start(&server, "gw-1", "");
    server.apply(&service("web", "")).unwrap();
    until_served(&server, "web");
    let network = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: odd, namespace: shop }\n\
                   spec: { podSelector: {}, ingress: [{ from: [{ ipBlock: { cidr: 10.0.0.0/8, except: [11.0.0.0/16] } }] }] }\n---\n";
    server.apply(network).unwrap();
    gateway.problem("PolicyPartlyUnreadable");
    until("an event", || events(&server, "NetworkPolicy").iter().any(|(reason, _)| reason == "PolicyPartlyUnreadable"));
    let cluster_policy = |name: &str| {
        format!(
            "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{ name: {name} }}\n\
             spec: {{ tier: Admin, priority: 5, subject: {{ namespaces: {{}} }}, \
             ingress: [{{ action: Deny, from: [{{ namespaces: {{}} }}] }}] }}\n---\n"
        )
    };
    server.apply(&(cluster_policy("a") + &cluster_policy("b"))).unwrap();
    until("an event", || {
        events(&server, "ClusterNetworkPolicy")
            .iter()
            .any(|(reason, note)| reason == "EqualPriorities" && note.contains("a, b"))
    });
    // Told once each, and never by the one who does not lead.
    let count = |server: &ApiServer| events(server, "NetworkPolicy").len();
    let before = count(&server);
    server.apply(&service("api", "")).unwrap();
    until_served(&server, "api");
    assert_eq!(count(&server), before);
    expect_nothing_denied(&server);
}
