//! A Service read from its manifest.
//!
//! Owns the meaning of the fields of `spec`, `status.loadBalancer` and the annotations that request addresses. Fields
//! of Services that are not of type LoadBalancer are not looked at: they are none of our business (S-001).

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;
use kube::ResourceExt;

use super::{Dialect, Invalid, address, port, protocol};
use crate::model::Name;
use crate::model::service::{Service, ServicePort};

/// Requests addresses, comma-separated; in order of preference the first annotation that is asked for.
pub const ADDRESSES_ANNOTATION: &str = "tidegate.io/addresses";
/// MetalLB's forms of the same request (M-004).
pub const METALLB_ANNOTATIONS: [&str; 2] = ["metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"];
/// Older form of `loadBalancerSourceRanges` (S-021).
pub const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Labels that leave an object to another implementation, whatever their value (S-003).
pub const LEFT_TO_OTHERS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

/// Reads one Service.
///
/// # Errors
/// When a field cannot be worked with.
pub(super) fn read(name: Name, object: &api::Service, dialect: Dialect) -> Result<Service, Invalid> {
    let empty = api::ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&empty);
    let mut service = Service {
        name,
        uid: object.uid().unwrap_or_default(),
        created_at_s: object.creation_timestamp().map_or(0, |time| time.0.as_second()),
        generation: object.metadata.generation,
        load_balancer: spec.type_.as_deref() == Some("LoadBalancer"),
        class: spec.load_balancer_class.clone(),
        left_to: LEFT_TO_OTHERS.into_iter().find(|label| object.labels().contains_key(*label)),
        without_cluster_ip: false,
        addresses: Vec::new(),
        addresses_of_other_families: Vec::new(),
        ports: Vec::new(),
        local: false,
        source_ranges: Vec::new(),
        affinity: false,
        external_ips: Vec::new(),
    };
    if !service.load_balancer {
        return Ok(service);
    }
    service.without_cluster_ip = match spec.cluster_ip.as_deref() {
        Some("None" | "") => true,
        Some(_) => false,
        None => dialect == Dialect::Cluster,
    };
    let families = families(spec)?;
    let addresses = addresses(object, spec, dialect)?;
    (service.addresses, service.addresses_of_other_families) = sort_by_family(addresses, &families);
    service.ports = ports(spec)?;
    service.local = match spec.external_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => false,
        Some("Local") => true,
        Some(other) => {
            return Err(Invalid::new("spec.externalTrafficPolicy", format!("{other:?} is not Cluster or Local")));
        }
    };
    service.affinity = match spec.session_affinity.as_deref() {
        None | Some("" | "None") => false,
        Some("ClientIP") => true,
        Some(other) => return Err(Invalid::new("spec.sessionAffinity", format!("{other:?} is not None or ClientIP"))),
    };
    service.source_ranges = source_ranges(object, spec)?;
    service.external_ips = spec.external_ips.clone().unwrap_or_default();
    Ok(service)
}

/// `ipFamilies` as "is IPv4", in order; empty when not given.
fn families(spec: &api::ServiceSpec) -> Result<Vec<bool>, Invalid> {
    let mut families = Vec::new();
    for (index, family) in spec.ip_families.iter().flatten().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        let v4 = match family.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            other => return Err(Invalid::new(field, format!("{other:?} is not IPv4 or IPv6"))),
        };
        if families.contains(&v4) {
            return Err(Invalid::new(field, format!("{family} is listed twice")));
        }
        families.push(v4);
    }
    Ok(families)
}

/// The addresses to serve: what status says; without status, in files, what is requested.
fn addresses(object: &api::Service, spec: &api::ServiceSpec, dialect: Dialect) -> Result<Vec<IpAddr>, Invalid> {
    let ingress = object.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    if let Some(ingress) = ingress.filter(|ingress| !ingress.is_empty()) {
        let mut addresses = Vec::new();
        for (index, entry) in ingress.iter().enumerate() {
            // T-018: with ipMode Proxy the address belongs to somebody who terminates connections himself.
            let (Some(ip), false) = (&entry.ip, entry.ip_mode.as_deref() == Some("Proxy")) else { continue };
            push_once(&mut addresses, ip, format!("status.loadBalancer.ingress[{index}].ip"))?;
        }
        return Ok(addresses);
    }
    match dialect {
        Dialect::Files => requested(object, spec),
        Dialect::Cluster => Ok(Vec::new()),
    }
}

/// Addresses asked for by `spec.loadBalancerIP` or one of the annotations; more than one way at once is an error (S-020).
fn requested(object: &api::Service, spec: &api::ServiceSpec) -> Result<Vec<IpAddr>, Invalid> {
    let mut ways: Vec<(String, &str)> = Vec::new();
    if let Some(ip) = spec.load_balancer_ip.as_deref().filter(|ip| !ip.is_empty()) {
        ways.push(("spec.loadBalancerIP".into(), ip));
    }
    for annotation in [ADDRESSES_ANNOTATION].into_iter().chain(METALLB_ANNOTATIONS) {
        if let Some(list) = object.annotations().get(annotation) {
            ways.push((format!("metadata.annotations[{annotation}]"), list));
        }
    }
    let Some((field, list)) = ways.first() else { return Ok(Vec::new()) };
    if let Some((other, _)) = ways.get(1) {
        return Err(Invalid::new(other, format!("addresses are requested here and in {field}; keep one")));
    }
    let mut addresses = Vec::new();
    for ip in list.split(',') {
        push_once(&mut addresses, ip, field)?;
    }
    let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    if !field.contains(ADDRESSES_ANNOTATION) && (v4 > 1 || addresses.len() - v4 > 1) {
        // M-004: MetalLB's form takes at most one address of each family.
        return Err(Invalid::new(
            field,
            format!("more than one address of a family; {ADDRESSES_ANNOTATION} takes more"),
        ));
    }
    Ok(addresses)
}

fn push_once(addresses: &mut Vec<IpAddr>, text: &str, field: impl Into<String>) -> Result<(), Invalid> {
    let field = field.into();
    let ip = address(text, field.clone())?;
    if addresses.contains(&ip) {
        return Err(Invalid::new(field, format!("{ip} is listed twice")));
    }
    addresses.push(ip);
    Ok(())
}

/// Splits into (those of `families`, primary family first; the others). No families given: all, as listed.
fn sort_by_family(addresses: Vec<IpAddr>, families: &[bool]) -> (Vec<IpAddr>, Vec<IpAddr>) {
    if families.is_empty() {
        return (addresses, Vec::new());
    }
    let rank = |ip: &IpAddr| families.iter().position(|v4| *v4 == ip.is_ipv4());
    let (mut ours, others): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|ip| rank(ip).is_some());
    ours.sort_by_key(rank);
    (ours, others)
}

fn ports(spec: &api::ServiceSpec) -> Result<Vec<ServicePort>, Invalid> {
    let listed = spec.ports.as_deref().unwrap_or_default();
    if listed.is_empty() {
        return Err(Invalid::new("spec.ports", "a Service of type LoadBalancer needs at least one port"));
    }
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, entry) in listed.iter().enumerate() {
        let name = entry.name.clone().unwrap_or_default();
        let field = |field: &str| format!("spec.ports[{index}].{field}");
        let parsed = ServicePort {
            protocol: protocol(entry.protocol.as_deref(), field("protocol"))?,
            port: port(entry.port, field("port"))?,
            name,
        };
        if listed.len() > 1 && parsed.name.is_empty() {
            return Err(Invalid::new(field("name"), "required when there is more than one port"));
        }
        if ports.iter().any(|other| other.name == parsed.name) {
            return Err(Invalid::new(field("name"), format!("{:?} is the name of two ports", parsed.name)));
        }
        if ports.iter().any(|other| (other.port, other.protocol) == (parsed.port, parsed.protocol)) {
            return Err(Invalid::new(field("port"), format!("{}/{} is listed twice", parsed.port, parsed.protocol)));
        }
        ports.push(parsed);
    }
    ports.sort_by_key(|port| (port.port, port.protocol));
    Ok(ports)
}

fn source_ranges(object: &api::Service, spec: &api::ServiceSpec) -> Result<Vec<IpNet>, Invalid> {
    let listed = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let parse = |text: &str, field: String| {
        let text = text.trim(); // S-080: white space around a range is legal.
        text.parse::<IpNet>().map_err(|_| Invalid::new(field, format!("{text:?} is not a CIDR")))
    };
    if listed.is_empty() {
        let annotation = object.annotations().get(SOURCE_RANGES_ANNOTATION).map_or("", String::as_str);
        return annotation
            .split(',')
            .filter(|text| !text.trim().is_empty())
            .map(|text| parse(text, format!("metadata.annotations[{SOURCE_RANGES_ANNOTATION}]")))
            .collect();
    }
    let field = |index| format!("spec.loadBalancerSourceRanges[{index}]");
    listed.iter().enumerate().map(|(index, text)| parse(text, field(index))).collect()
}
