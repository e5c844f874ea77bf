//! A Node read from its manifest, with what flannel writes into its annotations (V-021).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;
use kube::ResourceExt;
use serde::Deserialize;
use tidegate_api::resource::MacAddress;

use super::{Invalid, address};
use crate::model::node::{Node, Overlay, Tunnel};

/// Label with the zone of a Node (S-045).
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Label that takes a Node out of the targets of load balancers (S-006).
const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const PREFIX: &str = "flannel.alpha.coreos.com/";
/// flannel's default network identifier, also meant when old releases leave it out (V-020, V-021).
const VNI_DEFAULT: u32 = 1;
const VNI_MAX: u32 = (1 << 24) - 1;

/// Body of `backend-data` and `backend-v6-data`.
#[derive(Deserialize)]
struct BackendData {
    #[serde(rename = "VNI")]
    vni: Option<u32>,
    #[serde(rename = "VtepMAC")]
    mac: Option<String>,
}

/// Reads one Node.
///
/// # Errors
/// When a field or annotation cannot be worked with.
pub(crate) fn read(name: &str, object: &api::Node) -> Result<Node, Invalid> {
    let spec = object.spec.as_ref();
    let mut pod_cidrs = Vec::new();
    let listed = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
    for (index, text) in listed.iter().enumerate() {
        pod_cidrs.push(cidr(text, format!("spec.podCIDRs[{index}]"))?);
    }
    if let (true, Some(text)) = (pod_cidrs.is_empty(), spec.and_then(|spec| spec.pod_cidr.as_deref())) {
        pod_cidrs.push(cidr(text, "spec.podCIDR")?);
    }
    Ok(Node {
        name: name.into(),
        uid: object.uid().unwrap_or_default(),
        pod_cidrs,
        zone: object.labels().get(ZONE_LABEL).cloned().unwrap_or_default(),
        // S-006: "false" is not excluded; what cannot be read as a truth value is.
        excluded: object.labels().get(EXCLUDE_LABEL).is_some_and(|value| !is_false(value)),
        labels: object.labels().iter().filter(|(_, value)| !is_false(value)).map(|(name, _)| name.clone()).collect(),
        label_values: object.labels().clone(),
        all_addresses: listed_addresses(object).filter_map(|entry| entry.address.parse().ok()).collect(),
        addresses: addresses(object),
        overlay: overlay(object.annotations())?,
    })
}

/// The forms of "false" that Go reads, which is what the API's own controllers do.
fn is_false(value: &str) -> bool {
    ["0", "f", "F", "false", "FALSE", "False"].contains(&value)
}

/// Addresses of the Node itself. An external one may belong to a translator before it, where nothing arrives for it.
/// Names and what cannot be reached from elsewhere are left out: a Node with one is still a good Node.
fn addresses(object: &api::Node) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for entry in listed_addresses(object).filter(|entry| entry.type_ == "InternalIP") {
        if let Ok(ip) = address(&entry.address, "status.addresses")
            && !addresses.contains(&ip)
        {
            addresses.push(ip);
        }
    }
    addresses
}

fn listed_addresses(object: &api::Node) -> impl Iterator<Item = &api::NodeAddress> {
    object.status.iter().flat_map(|status| status.addresses.iter().flatten())
}

fn cidr(text: &str, field: impl Into<String>) -> Result<IpNet, Invalid> {
    text.parse::<IpNet>().map(|cidr| cidr.trunc()).map_err(|_| Invalid::new(field, format!("{text:?} is not a CIDR")))
}

fn overlay(annotations: &BTreeMap<String, String>) -> Result<Result<Overlay, String>, Invalid> {
    let get = |name: &str| annotations.get(&format!("{PREFIX}{name}")).map(String::as_str);
    if get("kube-subnet-manager") != Some("true") {
        return Ok(Err(format!("annotation {PREFIX}kube-subnet-manager is not \"true\"")));
    }
    match get("backend-type") {
        Some("vxlan") => {}
        Some(other) => return Ok(Err(format!("flannel's backend type is {other:?}, not \"vxlan\""))),
        None => return Ok(Err(format!("annotation {PREFIX}backend-type is missing"))),
    }
    Ok(Ok(Overlay {
        v4: tunnel(annotations, true, "backend-data", ["public-ip-overwrite", "public-ip"])?,
        v6: tunnel(annotations, false, "backend-v6-data", ["public-ipv6-overwrite", "public-ipv6"])?,
    }))
}

/// One family: the address annotations are tried in order.
fn tunnel(
    annotations: &BTreeMap<String, String>,
    v4: bool,
    backend: &str,
    publics: [&str; 2],
) -> Result<Result<Tunnel, String>, Invalid> {
    let get = |name: &str| {
        let key = format!("{PREFIX}{name}");
        let text = annotations.get(&key)?.trim();
        (!text.is_empty() && text != "null").then(|| (format!("metadata.annotations[{key}]"), text))
    };
    let Some((field, text)) = get(backend) else {
        return Ok(Err(format!("annotation {PREFIX}{backend} is missing")));
    };
    let backend: BackendData = serde_json::from_str(text)
        .map_err(|error| Invalid::new(&field, format!("{text:?} is not flannel's JSON: {error}")))?;
    let vni = backend.vni.unwrap_or(VNI_DEFAULT);
    if vni > VNI_MAX {
        return Err(Invalid::new(field, format!("VNI {vni} does not fit in 24 bits")));
    }
    let mac = backend.mac.ok_or_else(|| Invalid::new(&field, "VtepMAC is missing"))?;
    let mac: MacAddress = mac.parse().map_err(|error| Invalid::new(&field, format!("VtepMAC: {error}")))?;
    if mac.0[0] & 1 != 0 || mac == MacAddress::default() {
        return Err(Invalid::new(field, format!("VtepMAC {mac} is not the address of one station")));
    }
    let Some((field, text)) = publics.into_iter().find_map(get) else {
        return Ok(Err(format!("annotation {PREFIX}{} is missing", publics[1])));
    };
    let underlay: IpAddr = address(text, &field)?;
    if underlay.is_ipv4() != v4 {
        let family = if v4 { "IPv4" } else { "IPv6" };
        return Err(Invalid::new(field, format!("{underlay} is not an {family} address")));
    }
    Ok(Ok(Tunnel { underlay, mac, vni }))
}
