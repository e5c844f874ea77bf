//! The program: a kubeconfig, manifests, and an end on SIGTERM.

use std::process::{Command, Stdio};
use std::time::Instant;

use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::cluster::SOON;

#[tokio::test]
async fn the_program_serves_manifests_and_ends_when_told() {
    let directory = tempfile::tempdir().unwrap();
    let manifests = directory.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    std::fs::write(
        manifests.join("a.yaml"),
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n",
    )
    .unwrap();
    let kubeconfig = directory.path().join("admin.kubeconfig");
    let mut program = Command::new(env!("CARGO_BIN_EXE_tidegate-apiserver"))
        .args(["--listen", "[::1]:0", "--kubeconfig"])
        .arg(&kubeconfig)
        .arg("--manifests")
        .arg(&manifests)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !kubeconfig.exists() {
        assert!(started.elapsed() < SOON, "no kubeconfig");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let config = Kubeconfig::read_from(&kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    let services: Api<Service> = Api::namespaced(Client::try_from(config).unwrap(), "shop");
    assert!(services.get("web").await.unwrap().spec.unwrap().cluster_ip.is_some());
    let told = Command::new("kill").arg(program.id().to_string()).status().unwrap();
    assert!(told.success() && program.wait().unwrap().success());
}
