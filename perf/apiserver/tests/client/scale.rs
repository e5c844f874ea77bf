//! Thousands of objects.

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use tidegate_apiserver::bulk::Bulk;

use crate::cluster::{client, server};

#[tokio::test]
async fn bulk_objects_are_like_others() {
    for v6 in [false, true] {
        let server = server();
        let bulk = Bulk { services: 300, endpoints: 3, v6, ..Bulk::default() };
        server.create_bulk(&bulk);
        let client = client(&server).await;
        let (services, slices): (Api<Service>, Api<EndpointSlice>) = (Api::all(client.clone()), Api::all(client));
        let list = services.list(&ListParams::default()).await.unwrap();
        assert_eq!(list.items.len(), 300);
        let one = services.get_status("svc-7").await;
        assert!(one.is_err(), "namespaced");
        let found = list.items.iter().find(|service| service.metadata.name.as_deref() == Some("svc-7")).unwrap();
        let ingress = found.status.as_ref().unwrap().load_balancer.as_ref().unwrap().ingress.as_ref().unwrap();
        assert_eq!(ingress[0].ip.as_deref(), Some(bulk.address(7).to_string().as_str()));
        let by_label = slices.list(&ListParams::default().labels("kubernetes.io/service-name=svc-7")).await.unwrap();
        let endpoints = by_label.items[0].endpoints.as_ref().unwrap();
        assert_eq!(endpoints.len(), 3);
        assert_eq!(endpoints[2].addresses, [bulk.endpoint(7, 2).to_string()]);
        // The same through the checks that clients' writes go through.
        for kind in ["Service", "EndpointSlice"] {
            let value = server.list(kind, "scale").remove(0);
            server.apply_value(value).unwrap();
        }
        let mut stream = slices.watch(&WatchParams::default(), "0").await.unwrap().take(300).boxed();
        while let Some(event) = stream.next().await {
            assert!(matches!(event.unwrap(), WatchEvent::Added(_)));
        }
    }
}
