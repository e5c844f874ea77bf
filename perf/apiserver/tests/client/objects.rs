//! Create, read, replace, delete.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::DynamicObject;
use kube::discovery::Discovery;
use serde_json::json;
use tidegate_apiserver::{ApiServer, Options};

use crate::cluster::{client, create, refusal, server, service, services, typed};

#[tokio::test]
async fn a_client_reaches_the_server_on_both_families_with_and_without_tls() {
    for (v6, plain) in [(false, false), (true, false), (false, true), (true, true)] {
        let options = if v6 { Options::v6() } else { Options::default() };
        let server = ApiServer::start(Options { plain, ..options }).unwrap();
        assert_eq!(server.address().is_ipv6(), v6);
        let client = client(&server).await;
        assert_eq!(client.apiserver_version().await.unwrap().major, "1");
        let nodes: Api<Node> = Api::all(client);
        assert!(nodes.list(&ListParams::default()).await.unwrap().items.is_empty());
    }
}

#[tokio::test]
async fn an_object_lives_as_long_as_it_should() {
    let server = server();
    let api = services(&server).await;
    let made = api.create(&PostParams::default(), &service("web")).await.unwrap();
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
    assert_eq!(made.metadata.generation, None, "Services count no generations");
    assert_eq!(made.spec.as_ref().unwrap().cluster_ips.as_ref().unwrap().len(), 1);
    assert_eq!(refusal(api.create(&PostParams::default(), &service("web")).await).reason, "AlreadyExists");

    let mut stale = made.clone();
    let mut changed = made.clone();
    changed.spec.as_mut().unwrap().session_affinity = Some("ClientIP".to_owned());
    let changed = api.replace("web", &PostParams::default(), &changed).await.unwrap();
    assert_ne!(changed.metadata.resource_version, made.metadata.resource_version);
    stale.metadata.labels = None;
    let conflict = refusal(api.replace("web", &PostParams::default(), &stale).await);
    assert_eq!((conflict.code, conflict.reason.as_str()), (409, "Conflict"));

    let again = api.replace("web", &PostParams::default(), &changed).await.unwrap();
    assert_eq!(
        again.metadata.resource_version, changed.metadata.resource_version,
        "a write that changes nothing is none"
    );
    api.delete("web", &DeleteParams::default()).await.unwrap().right().unwrap();
    assert_eq!(refusal(api.get("web").await).reason, "NotFound");
    assert!(api.get_opt("web").await.unwrap().is_none());
}

#[tokio::test]
async fn a_finalizer_keeps_a_deleted_object() {
    let server = server();
    let api = services(&server).await;
    let mut object = service("web");
    object.metadata.finalizers = Some(vec!["service.kubernetes.io/load-balancer-cleanup".to_owned()]);
    api.create(&PostParams::default(), &object).await.unwrap();
    let marked = api.delete("web", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert!(marked.metadata.deletion_timestamp.is_some());
    let more = json!({"metadata": {"finalizers": ["service.kubernetes.io/load-balancer-cleanup", "other/one"]}});
    assert_eq!(refusal(api.patch("web", &PatchParams::default(), &Patch::Merge(more)).await).code, 422);
    let none = json!({"metadata": {"finalizers": null}});
    api.patch("web", &PatchParams::default(), &Patch::Merge(none)).await.unwrap();
    assert!(api.get_opt("web").await.unwrap().is_none());
}

#[tokio::test]
async fn the_status_and_the_rest_are_written_apart() {
    let server = server();
    let api = services(&server).await;
    let mut object = service("web");
    object.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}})).unwrap();
    let made = api.create(&PostParams::default(), &object).await.unwrap();
    assert_eq!(made.status.unwrap().load_balancer.unwrap().ingress, None, "a create sets no status");

    let both = json!({"metadata": {"labels": {"seen": "yes"}}, "spec": {"sessionAffinity": "ClientIP"}, "status": {"loadBalancer": {"ingress": [{"ip": "2001:db8::1"}]}}});
    let patched = api.patch_status("web", &PatchParams::default(), &Patch::Merge(&both)).await.unwrap();
    let ingress = patched.status.unwrap().load_balancer.unwrap().ingress.unwrap();
    assert_eq!((ingress[0].ip.as_deref(), ingress[0].ip_mode.as_deref()), (Some("2001:db8::1"), Some("VIP")));
    assert_eq!(patched.spec.unwrap().session_affinity.as_deref(), Some("None"));

    let other = json!({"spec": {"sessionAffinity": "ClientIP"}, "status": {"loadBalancer": null}});
    let patched = api.patch("web", &PatchParams::default(), &Patch::Merge(&other)).await.unwrap();
    assert_eq!(patched.spec.unwrap().session_affinity.as_deref(), Some("ClientIP"));
    assert!(patched.status.unwrap().load_balancer.unwrap().ingress.is_some());
}

#[tokio::test]
async fn preconditions_of_a_delete_hold() {
    let server = server();
    let api = services(&server).await;
    let made = api.create(&PostParams::default(), &service("web")).await.unwrap();
    let only = |uid: Option<String>, resource_version: Option<String>| DeleteParams {
        preconditions: Some(Preconditions { uid, resource_version }),
        ..DeleteParams::default()
    };
    assert_eq!(refusal(api.delete("web", &only(Some("other".to_owned()), None)).await).code, 409);
    assert_eq!(refusal(api.delete("web", &only(None, Some("1".to_owned()))).await).code, 409);
    api.delete("web", &only(made.metadata.uid, made.metadata.resource_version)).await.unwrap();
}

#[tokio::test]
async fn collections_go_by_selector() {
    let server = server();
    let api = services(&server).await;
    create(&api, &["a", "b", "c"]).await;
    api.delete_collection(&DeleteParams::default(), &ListParams::default().labels("app in (a,c)")).await.unwrap();
    let left: Vec<_> = api
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
        .into_iter()
        .filter_map(|service| service.metadata.name)
        .collect();
    assert_eq!(left, ["b"]);
    let by_field = api.list(&ListParams::default().fields("metadata.name=b,metadata.namespace=default")).await.unwrap();
    assert_eq!(by_field.items.len(), 1);
    assert_eq!(refusal(api.list(&ListParams::default().fields("spec.ports=1")).await).code, 400);
}

#[tokio::test]
async fn names_are_made_and_checked() {
    let server = server();
    let api = services(&server).await;
    let mut object = service("x");
    object.metadata.name = None;
    object.metadata.generate_name = Some("made-".to_owned());
    let made = api.create(&PostParams::default(), &object).await.unwrap();
    assert!(made.metadata.name.unwrap().starts_with("made-"));
    assert_eq!(refusal(api.create(&PostParams::default(), &service("Bad_Name")).await).code, 422);
    let nowhere: Api<Service> = Api::namespaced(client(&server).await, "nowhere");
    assert_eq!(refusal(nowhere.create(&PostParams::default(), &service("x")).await).code, 404);
    let mut bad = service("bad");
    bad.spec.as_mut().unwrap().ports = None;
    let refused = refusal(api.create(&PostParams::default(), &bad).await);
    let causes = refused.details.unwrap().causes;
    assert_eq!(
        (refused.code, causes[0].field.as_str(), causes[0].reason.as_str()),
        (422, "spec.ports", "FieldValueRequired")
    );
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let server = server();
    let api = services(&server).await;
    let before = server.revision();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    assert!(api.create(&dry, &service("web")).await.unwrap().spec.unwrap().cluster_ip.is_some());
    assert_eq!(server.revision(), before);
    assert!(api.get_opt("web").await.unwrap().is_none());
}

#[tokio::test]
async fn leases_want_a_revision() {
    let server = server();
    let api: Api<Lease> = Api::namespaced(client(&server).await, "kube-system");
    let lease: Lease =
        serde_json::from_value(json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}})).unwrap();
    let made = api.create(&PostParams::default(), &lease).await.unwrap();
    assert_eq!(refusal(api.replace("l", &PostParams::default(), &lease).await).code, 422);
    let mut next = made.clone();
    next.spec.as_mut().unwrap().holder_identity = Some("b".to_owned());
    api.replace("l", &PostParams::default(), &next).await.unwrap();
    next.spec.as_mut().unwrap().holder_identity = Some("c".to_owned());
    assert_eq!(refusal(api.replace("l", &PostParams::default(), &next).await).code, 409);
}

#[tokio::test]
async fn a_namespace_goes_with_what_is_in_it_and_waits_for_finalizers() {
    let server = server();
    server.apply("{apiVersion: v1, kind: Service, metadata: {name: a, namespace: gone, finalizers: [x/y]}, spec: {ports: [{port: 1}]}}").unwrap();
    server.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: gone}}").unwrap();
    let namespaces: Api<Namespace> = Api::all(client(&server).await);
    namespaces.delete("gone", &DeleteParams::default()).await.unwrap();
    assert!(server.get("ConfigMap", "gone", "b").is_none());
    assert_eq!(namespaces.get("gone").await.unwrap().status.unwrap().phase.as_deref(), Some("Terminating"));
    let inside: Api<Service> = Api::namespaced(client(&server).await, "gone");
    assert_eq!(refusal(inside.create(&PostParams::default(), &service("c")).await).code, 403);
    server.edit("Service", "gone", "a", |service| service["metadata"]["finalizers"] = json!([])).unwrap();
    assert!(namespaces.get_opt("gone").await.unwrap().is_none());
}

#[tokio::test]
async fn a_definition_makes_its_resource_served() {
    let server = server();
    let yaml = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: tides.example.io}
spec:
  group: example.io
  scope: Cluster
  names: {plural: tides, singular: tide, kind: Tide}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, required: [height], properties: {height: {type: integer, minimum: 0}, name: {type: string, default: low}}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
";
    let client = client(&server).await;
    server.apply(yaml).unwrap();
    let discovery = Discovery::new(client.clone()).filter(&["example.io"]).run().await.unwrap();
    let (resource, capabilities) = discovery.get("example.io").unwrap().recommended_kind("Tide").unwrap();
    assert_eq!(capabilities.subresources.len(), 1);
    let tides: Api<DynamicObject> = Api::all_with(client, &resource);
    let tide = |spec| DynamicObject::new("t", &resource).data(json!({"spec": spec, "status": {"x": 1}}));
    assert_eq!(refusal(tides.create(&PostParams::default(), &tide(json!({}))).await).code, 422);
    let made = tides.create(&PostParams::default(), &tide(json!({"height": 3, "unknown": 1}))).await.unwrap();
    assert_eq!(made.data, json!({"spec": {"height": 3, "name": "low"}}));
    assert_eq!(made.metadata.generation, Some(1));
    let status = json!({"metadata": {"labels": {"l": "1"}}, "status": {"seen": true}});
    let patched = tides.patch_status("t", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    assert_eq!(
        (patched.metadata.generation, patched.metadata.labels),
        (Some(1), None),
        "the status of a custom resource is its status alone"
    );
    let patched =
        tides.patch("t", &PatchParams::default(), &Patch::Merge(json!({"spec": {"height": 4}}))).await.unwrap();
    assert_eq!(patched.metadata.generation, Some(2));
    let strategic = tides.patch("t", &PatchParams::default(), &Patch::Strategic(json!({"spec": {"height": 4}}))).await;
    assert_eq!(refusal(strategic).code, 415);
    server.delete("CustomResourceDefinition", "", "tides.example.io").unwrap();
    assert_eq!(refusal(tides.get("t").await).code, 404);
}

// C-004
#[tokio::test]
async fn events_must_say_what_the_real_server_wants() {
    let server = server();
    let events: Api<Event> = Api::default_namespaced(client(&server).await);
    let event = |namespace: &str, reason: &str| -> Event {
        typed(
            json!({"metadata": {"generateName": "web."}, "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "tidegate.io/controller",
            "reportingInstance": "gw-1", "action": "Ensure", "reason": reason, "type": "Normal", "note": "n",
            "regarding": {"kind": "Service", "name": "web", "namespace": namespace}}),
        )
    };
    let made = events.create(&PostParams::default(), &event("default", "EnsuredLoadBalancer")).await.unwrap();
    assert!(made.metadata.name.unwrap().starts_with("web."));
    assert_eq!(refusal(events.create(&PostParams::default(), &event("other", "R")).await).code, 422);
    let causes = refusal(events.create(&PostParams::default(), &event("default", "")).await).details.unwrap().causes;
    assert_eq!(causes[0].field, "reason");
}

#[tokio::test]
async fn fields_that_a_kind_does_not_have_are_not_kept() {
    let server = server();
    let api = services(&server).await;
    create(&api, &["web"]).await;
    let misspelt = json!({"status": {"loadbalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
    api.patch_status("web", &PatchParams::default(), &Patch::Merge(&misspelt)).await.unwrap();
    assert!(server.get("Service", "default", "web").unwrap()["status"].get("loadbalancer").is_none());
    let applied = json!({"apiVersion": "v1", "kind": "Service", "status": {"loadbalancer": {}}});
    let refused = refusal(api.patch_status("web", &PatchParams::apply("x"), &Patch::Apply(&applied)).await);
    assert!(
        refused.code == 500 && refused.message.contains(".status.loadbalancer: field not declared in schema"),
        "{}",
        refused.message
    );
    let wrong = json!({"spec": {"ports": [{"port": "eighty"}]}});
    assert_eq!(refusal(api.patch("web", &PatchParams::default(), &Patch::Merge(&wrong)).await).code, 400);
    let finalizer = json!({"metadata": {"finalizers": ["unqualified"]}});
    assert_eq!(refusal(api.patch("web", &PatchParams::default(), &Patch::Merge(&finalizer)).await).code, 422);
    let condition = json!({"status": {"conditions": [{"type": "A", "status": "Perhaps", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    assert_eq!(refusal(api.patch_status("web", &PatchParams::default(), &Patch::Merge(&condition)).await).code, 422);
}
