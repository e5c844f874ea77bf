//! Users and their rules.

use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::{Api, ListParams, Patch, PatchParams, WatchParams};
use serde_json::json;
use tidegate_apiserver::rbac::Rules;

use crate::cluster::{client_as, create, refusal, server, services};

const ROLE: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: control}
rules:
- apiGroups: ['']
  resources: [services]
  verbs: [get, list, watch, patch]
- apiGroups: ['']
  resources: [services/status]
  verbs: [patch]
";

// C-023
#[tokio::test]
async fn a_role_is_enforced_and_what_it_refused_is_known() {
    let server = server();
    server.add_user("control", Rules::from_cluster_role(ROLE).unwrap());
    create(&services(&server).await, &["web"]).await;
    server.clear_requests();
    let client = client_as(&server, "control").await;
    let api: Api<Service> = Api::default_namespaced(client.clone());
    api.list(&ListParams::default()).await.unwrap();
    let finalizers = Patch::Merge(json!({"metadata": {"finalizers": ["a/b"]}}));
    api.patch("web", &PatchParams::default(), &finalizers).await.unwrap();
    api.patch_status("web", &PatchParams::default(), &Patch::Merge(json!({"status": {}}))).await.unwrap();
    assert!(server.denied().is_empty());

    let nodes: Api<Node> = Api::all(client);
    let refused = refusal(nodes.list(&ListParams::default()).await);
    assert_eq!(
        refused.message,
        "nodes is forbidden: User \"control\" cannot list resource \"nodes\" in API group \"\" at the cluster scope"
    );
    let status = refusal(api.get_status("web").await);
    let text = "services \"web\" is forbidden: User \"control\" cannot get resource \"services/status\" in API group \"\" in the namespace \"default\"";
    assert_eq!((status.code, status.reason.as_str(), status.message.as_str()), (403, "Forbidden", text));
    let made = Patch::Apply(json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 1}]}}));
    let refused = refusal(api.patch("new", &PatchParams::apply("x"), &made).await);
    assert!(
        refused.message.contains("cannot create resource \"services\""),
        "an apply that would create needs more than patch: {}",
        refused.message
    );
    assert!(nodes.watch(&WatchParams::default(), "0").await.is_err());
    let verbs: Vec<_> = server.denied().into_iter().map(|line| (line.asked.verb, line.asked.resource)).collect();
    let expected = [("list", "nodes"), ("get", "services"), ("watch", "nodes")];
    assert_eq!(verbs, expected.map(|(verb, resource)| (verb.to_owned(), resource.to_owned())));
}

#[tokio::test]
async fn an_unknown_user_is_nobody() {
    let server = server();
    let client = client_as(&server, "stranger").await;
    let nodes: Api<Node> = Api::all(client);
    assert_eq!(refusal(nodes.list(&ListParams::default()).await).code, 401);
    server.add_user("stranger", Rules::all());
    nodes.list(&ListParams::default()).await.unwrap();
    server.remove_user("stranger");
    assert_eq!(refusal(nodes.list(&ListParams::default()).await).code, 401);
}

#[tokio::test]
async fn every_request_is_in_the_log() {
    let server = server();
    let api = services(&server).await;
    create(&api, &["web"]).await;
    let _ = api.get("nothing").await;
    let lines: Vec<_> = server
        .requests()
        .into_iter()
        .map(|line| (line.method.clone(), line.asked.name.clone(), line.code, line.is_write()))
        .collect();
    let text = str::to_owned;
    assert_eq!(lines, [(text("POST"), text(""), 201, true), (text("GET"), text("nothing"), 404, false)]);
}
