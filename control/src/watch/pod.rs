//! A Pod read from the few fields that tell who it is (C-024).

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use tidegate_api::resource::Protocol;

use super::{Invalid, address, port, protocol};
use crate::model::Name;
use crate::model::pod::{Pod, PodPort};
use crate::source::slips;

/// `spec` as far as it is looked at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Spec {
    node_name: String,
    host_network: bool,
    containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    ports: Vec<ContainerPort>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    #[serde(default)]
    name: String,
    container_port: i32,
    protocol: Option<String>,
}

/// `status` as far as it is looked at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

/// Reads one Pod.
///
/// # Errors
/// When an address or a named port cannot be worked with.
pub(crate) fn read(name: Name, metadata: ObjectMeta, spec: Spec, status: Status) -> Result<Pod, Invalid> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (index, entry) in status.pod_ips.iter().enumerate().filter(|(_, entry)| !entry.ip.is_empty()) {
        addresses.push(address(&entry.ip, format!("status.podIPs[{index}].ip"))?);
    }
    let mut ports: Vec<PodPort> = Vec::new();
    for (c, container) in spec.containers.iter().enumerate() {
        for (p, entry) in container.ports.iter().enumerate().filter(|(_, entry)| !entry.name.is_empty()) {
            let field = |field: &str| format!("spec.containers[{c}].ports[{p}].{field}");
            ports.push(PodPort {
                name: entry.name.clone(),
                protocol: kind(entry.protocol.as_deref(), field("protocol"))?,
                port: port(entry.container_port, field("containerPort"))?,
            });
        }
    }
    ports.sort();
    Ok(Pod {
        name,
        uid: metadata.uid.unwrap_or_default().into(),
        created_at_s: metadata.creation_timestamp.map_or(i64::MIN, |time| time.0.as_second()),
        labels: metadata.labels.unwrap_or_default(),
        addresses,
        node: spec.node_name,
        host_network: spec.host_network,
        ended: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
        ports,
    })
}

/// Whether a field that no Pod has may be one of those that tell who it is. `spec` and `status` have more fields with every
/// version of Kubernetes: there only what is near to those that are looked at counts.
pub(super) fn is_vital(field: &str) -> bool {
    const NEAR: [&str; 5] = ["podIPs", "podIP", "phase", "hostNetwork", "nodeName"];
    match field.split_once('.') {
        None | Some(("metadata", _)) => true,
        Some(("spec" | "status", inner)) => {
            inner.starts_with("podIPs[") || NEAR.iter().any(|name| slips(inner, name).is_some())
        }
        Some(_) => true,
    }
}

/// The same from a whole object.
///
/// # Errors
/// As [`read`].
pub(super) fn read_object(name: Name, object: &api::Pod) -> Result<Pod, Invalid> {
    let spec = object.spec.as_ref();
    let containers = spec.map_or(&[][..], |spec| &spec.containers);
    let containers = containers.iter().map(|container| {
        let ports = container.ports.iter().flatten().map(|port| ContainerPort {
            name: port.name.clone().unwrap_or_default(),
            container_port: port.container_port,
            protocol: port.protocol.clone(),
        });
        Container { ports: ports.collect() }
    });
    let spec = Spec {
        node_name: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or_default(),
        containers: containers.collect(),
    };
    let status = object.status.as_ref();
    let listed = status.and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
    let mut pod_ips: Vec<PodIp> = listed.iter().map(|entry| PodIp { ip: entry.ip.clone() }).collect();
    // People write the one address; an API server always lists it too.
    if let (true, Some(ip)) = (pod_ips.is_empty(), status.and_then(|status| status.pod_ip.clone())) {
        pod_ips.push(PodIp { ip });
    }
    let phase = status.and_then(|status| status.phase.clone()).unwrap_or_default();
    read(name, object.metadata.clone(), spec, Status { phase, pod_ips })
}

fn kind(text: Option<&str>, field: String) -> Result<Protocol, Invalid> {
    protocol(text.filter(|text| !text.is_empty()), field)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_a_pod_is_can_be_read_in_both_families() {
        let spec = json!({ "nodeName": "w1", "volumes": [1], "containers": [
            { "name": "a", "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }, { "containerPort": 9 }] },
            { "name": "b", "ports": [{ "name": "dns", "containerPort": 53, "protocol": "UDP" }] },
            { "name": "c" },
        ]});
        let status = json!({ "phase": "Running", "podIPs": [{ "ip": "10.244.1.5" }, { "ip": "fd00:10:244:1::5" }] });
        let name = Name { namespace: "shop".into(), name: "web-1".into() };
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let metadata = json!({ "uid": "u-1", "creationTimestamp": "2026-01-02T03:04:05Z", "labels": { "app": "web" } });
        let metadata: ObjectMeta = serde_json::from_value(metadata).unwrap();
        let pod = read(name, metadata, spec, serde_json::from_value(status).unwrap()).unwrap();
        assert_eq!(pod.addresses, ["10.244.1.5".parse::<IpAddr>().unwrap(), "fd00:10:244:1::5".parse().unwrap()]);
        let ports: Vec<_> = pod.ports.iter().map(|port| (port.name.as_str(), port.protocol, port.port)).collect();
        assert_eq!(ports, [("dns", Protocol::Udp, 53), ("http", Protocol::Tcp, 8080)]);
        assert!((pod.node.as_str(), pod.host_network, pod.ended) == ("w1", false, false));
        assert_eq!((&*pod.uid, pod.created_at_s, pod.labels["app"].as_str()), ("u-1", 1_767_323_045, "web"));
    }

    #[test]
    fn an_address_that_is_none_names_its_field() {
        let status = json!({ "podIPs": [{ "ip": "10.244.1.5" }, { "ip": "here" }] });
        let name = Name { namespace: "shop".into(), name: "web-1".into() };
        let read = read(name, ObjectMeta::default(), Spec::default(), serde_json::from_value(status).unwrap());
        assert_eq!(read.unwrap_err().field, "status.podIPs[1].ip");
    }
}
