//! Patches, server-side apply and managed fields.

use axum::http::Request;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tidegate_apiserver::ApiServer;

use crate::cluster::{client, create, refusal, server, services};

fn applied(value: Value) -> Patch<Value> {
    let mut whole = json!({"apiVersion": "v1", "kind": "Service"});
    whole.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
    Patch::Apply(whole)
}

fn ingress(ip: &str) -> Patch<Value> {
    applied(json!({"status": {"loadBalancer": {"ingress": [{"ip": ip}]}}}))
}

fn owners(server: &ApiServer) -> Vec<(String, String, String)> {
    let value = server.get("Service", "default", "web").unwrap();
    let entries = value["metadata"]["managedFields"].as_array().unwrap().clone();
    let word = |entry: &Value, field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    entries.iter().map(|entry| (word(entry, "manager"), word(entry, "operation"), word(entry, "subresource"))).collect()
}

async fn web(server: &ApiServer) -> Api<Service> {
    let api = services(server).await;
    create(&api, &["web"]).await;
    api
}

// C-005
#[tokio::test]
async fn one_manager_owns_the_addresses_and_another_conflicts() {
    let server = server();
    let api = web(&server).await;
    let tidegate = PatchParams::apply("tidegate-controller").force();
    let first = api.patch_status("web", &tidegate, &ingress("192.0.2.1")).await.unwrap();
    assert!(owners(&server).contains(&("tidegate-controller".to_owned(), "Apply".to_owned(), "status".to_owned())));
    let same = api.patch_status("web", &tidegate, &ingress("192.0.2.1")).await.unwrap();
    assert_eq!(same.metadata.resource_version, first.metadata.resource_version, "nothing changed, nothing written");

    let other = PatchParams::apply("other");
    let refused = refusal(api.patch_status("web", &other, &ingress("2001:db8::2")).await);
    assert_eq!((refused.code, refused.reason.as_str()), (409, "Conflict"));
    let causes = refused.details.unwrap().causes;
    assert_eq!(causes[0].reason, "FieldManagerConflict");
    assert_eq!(causes[0].field, ".status.loadBalancer.ingress");
    assert_eq!(causes[0].message, "conflict with \"tidegate-controller\" with subresource \"status\"");
    api.patch_status("web", &other.force(), &ingress("2001:db8::2")).await.unwrap();
    assert!(!owners(&server).iter().any(|(manager, ..)| manager == "tidegate-controller"), "it owned nothing else");
}

#[tokio::test]
async fn what_is_no_longer_applied_goes() {
    let server = server();
    let api = web(&server).await;
    let params = PatchParams::apply("tidegate-controller");
    api.patch(
        "web",
        &params,
        &applied(json!({"metadata": {"finalizers": ["tidegate.io/a"], "annotations": {"a": "1", "b": "2"}}})),
    )
    .await
    .unwrap();
    api.patch("web", &PatchParams::apply("other"), &applied(json!({"metadata": {"finalizers": ["other.io/b"]}})))
        .await
        .unwrap();
    let object = api.patch("web", &params, &applied(json!({"metadata": {"annotations": {"b": "2"}}}))).await.unwrap();
    assert_eq!(object.metadata.finalizers.unwrap(), ["other.io/b"]);
    assert_eq!(
        object.metadata.annotations.unwrap().into_iter().collect::<Vec<_>>(),
        [("b".to_owned(), "2".to_owned())]
    );
    assert_eq!(object.spec.unwrap().ports.unwrap()[0].port, 80, "what the creator owns stays");
}

// C-009
#[tokio::test]
async fn conditions_are_owned_one_by_one() {
    let server = server();
    let api = web(&server).await;
    let condition = |of: &str, status: &str| {
        let condition = json!({"type": of, "status": status, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        applied(json!({"status": {"conditions": [condition]}}))
    };
    api.patch_status("web", &PatchParams::apply("one"), &condition("A", "True")).await.unwrap();
    let object = api.patch_status("web", &PatchParams::apply("two"), &condition("B", "True")).await.unwrap();
    assert_eq!(object.status.unwrap().conditions.unwrap().len(), 2);
    assert_eq!(refusal(api.patch_status("web", &PatchParams::apply("two"), &condition("A", "False")).await).code, 409);
    let object = api.patch_status("web", &PatchParams::apply("one"), &applied(json!({"status": {}}))).await.unwrap();
    let left: Vec<_> =
        object.status.unwrap().conditions.unwrap().into_iter().map(|condition| condition.type_).collect();
    assert_eq!(left, ["B"]);
}

#[tokio::test]
async fn a_port_applied_by_number_merges_and_goes() {
    let server = server();
    let api = services(&server).await;
    let params = PatchParams::apply("author");
    let ports =
        |ports: Value| applied(json!({"metadata": {"name": "web"}, "spec": {"type": "NodePort", "ports": ports}}));
    let made =
        api.patch("web", &params, &ports(json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]))).await.unwrap();
    let node_port = made.spec.unwrap().ports.unwrap()[0].node_port;
    let next = api.patch("web", &params, &ports(json!([{"name": "a", "port": 80}]))).await.unwrap();
    let left = next.spec.unwrap().ports.unwrap();
    assert_eq!((left.len(), left[0].node_port), (1, node_port));
}

#[tokio::test]
async fn applying_wants_a_manager_and_no_managed_fields() {
    let server = server();
    let api = web(&server).await;
    let owned = applied(json!({"metadata": {"managedFields": [{"manager": "x"}]}}));
    assert_eq!(refusal(api.patch("web", &PatchParams::apply("one"), &owned).await).code, 400);
    let stale = applied(json!({"metadata": {"resourceVersion": "1"}}));
    assert_eq!(refusal(api.patch("web", &PatchParams::apply("one"), &stale).await).code, 409);
    assert_eq!(refusal(api.patch_status("nothing", &PatchParams::apply("one"), &ingress("192.0.2.1")).await).code, 404);
}

#[tokio::test]
async fn ordinary_patches_own_what_they_change() {
    let server = server();
    let api = web(&server).await;
    let params = PatchParams { field_manager: Some("hand".to_owned()), ..PatchParams::default() };
    api.patch("web", &params, &Patch::Strategic(json!({"metadata": {"finalizers": ["a/b"]}}))).await.unwrap();
    let object =
        api.patch("web", &params, &Patch::Strategic(json!({"metadata": {"finalizers": ["c/d"]}}))).await.unwrap();
    assert_eq!(object.metadata.finalizers.unwrap(), ["a/b", "c/d"], "finalizers are a set to a strategic patch");
    let object = api.patch("web", &params, &Patch::Merge(json!({"metadata": {"finalizers": ["c/d"]}}))).await.unwrap();
    assert_eq!(object.metadata.finalizers.unwrap(), ["c/d"], "and one value to a merge patch");
    assert!(owners(&server).contains(&("hand".to_owned(), "Update".to_owned(), String::new())));
    let test = json!([{"op": "test", "path": "/metadata/finalizers/0", "value": "x"}, {"op": "remove", "path": "/metadata/finalizers/0"}]);
    let request =
        Request::patch("/api/v1/namespaces/default/services/web").header("content-type", "application/json-patch+json");
    let request = request.body(test.to_string().into_bytes()).unwrap();
    assert_eq!(refusal(client(&server).await.request::<Service>(request).await).code, 422);
    let typed =
        api.patch("web", &PatchParams::apply("hand"), &applied(json!({"spec": {"sessionAffinity": "ClientIP"}}))).await;
    assert_eq!(refusal(typed).code, 409, "the creator owns it by an update");
}

#[tokio::test]
async fn a_change_of_type_clears_status_and_node_ports() {
    let server = server();
    let api = web(&server).await;
    api.patch_status("web", &PatchParams::apply("one"), &ingress("192.0.2.1")).await.unwrap();
    let mut object = api.get("web").await.unwrap();
    object.spec.as_mut().unwrap().type_ = Some("ClusterIP".to_owned());
    let object = api.replace("web", &PostParams::default(), &object).await.unwrap();
    assert_eq!(object.status.unwrap().load_balancer.unwrap().ingress, None);
    assert_eq!(object.spec.unwrap().ports.unwrap()[0].node_port, None);
    assert_eq!(refusal(api.patch_status("web", &PatchParams::apply("one"), &ingress("192.0.2.1")).await).code, 422);
}

#[tokio::test]
async fn the_tests_hand_leaves_what_others_own() {
    let server = server();
    let yaml = |port: u16| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web, labels: {{a: '1'}}}}, spec: {{type: LoadBalancer, ports: [{{port: {port}}}]}}}}"
        )
    };
    server.apply(&yaml(80)).unwrap();
    let api = services(&server).await;
    let finalizer = applied(json!({"metadata": {"finalizers": ["a/b"]}}));
    api.patch("web", &PatchParams::apply("control"), &finalizer).await.unwrap();
    api.patch_status("web", &PatchParams::apply("control"), &ingress("192.0.2.1")).await.unwrap();
    let value = server.apply(&yaml(81)).unwrap().remove(0);
    assert_eq!(value["metadata"]["finalizers"], json!(["a/b"]));
    assert_eq!(value["status"]["loadBalancer"]["ingress"][0]["ip"], "192.0.2.1");
    let ports: Vec<_> = value["spec"]["ports"].as_array().unwrap().iter().map(|port| port["port"].clone()).collect();
    assert_eq!(ports, [81]);
    assert!(server.apply("{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {typo: 1}}").is_err());
}
