//! A server, a client of it, and small objects.

use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tidegate_apiserver::{ApiServer, Options};

/// Long enough for a machine that does much else.
pub const SOON: Duration = Duration::from_secs(20);

/// A running server with default options.
pub fn server() -> ApiServer {
    ApiServer::start(Options::default()).unwrap()
}

/// A client of `server` as `user`.
pub async fn client_as(server: &ApiServer, user: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(user)).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    // The tests want to see every refusal.
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// A client of `server` who may do everything.
pub async fn client(server: &ApiServer) -> Client {
    client_as(server, "admin").await
}

/// The Services of namespace `default`.
pub async fn services(server: &ApiServer) -> Api<Service> {
    Api::default_namespaced(client(server).await)
}

/// A Service with one port.
pub fn service(name: &str) -> Service {
    let spec = json!({"type": "LoadBalancer", "selector": {"app": name}, "ports": [{"port": 80}]});
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": spec})).unwrap()
}

/// Creates Services of these names.
pub async fn create(api: &Api<Service>, names: &[&str]) {
    for name in names {
        api.create(&PostParams::default(), &service(name)).await.unwrap();
    }
}

/// The refusal in an error of the client.
pub fn refusal<T: std::fmt::Debug>(result: kube::Result<T>) -> kube::core::Status {
    match result.unwrap_err() {
        kube::Error::Api(status) => *status,
        other => panic!("not refused: {other}"),
    }
}

/// A typed object of its JSON.
pub fn typed<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}
