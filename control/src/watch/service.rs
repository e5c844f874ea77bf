//! A Service read from its manifest.
//!
//! Owns the meaning of the fields of `spec`, `status.loadBalancer` and the annotations that request addresses. Fields of
//! Services without a frontend that this gateway serves are not looked at: they are none of our business (S-001).

use std::fmt::Display;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;
use kube::ResourceExt;
use tidegate_api::resource::TrafficPolicy;

use super::{Dialect, Exposed, Invalid, address, annotation, port, protocol};
use crate::model::Name;
use crate::model::service::{Service, ServicePort, ServiceType, Wishes};

/// MetalLB's forms of a request for addresses (M-004).
pub const METALLB_ANNOTATIONS: [&str; 2] = ["metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"];
/// Older form of `loadBalancerSourceRanges` (S-021).
pub const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Labels that leave an object to another implementation, whatever their value (S-003).
pub const LEFT_TO_OTHERS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

/// `timeoutSeconds` when it is not given, and its largest value (S-016).
const AFFINITY_TIMEOUT_S_DEFAULT: u32 = 10_800;
const AFFINITY_TIMEOUT_S_MAX: u32 = 86_400;

/// Reads one Service.
///
/// # Errors
/// When a field cannot be worked with.
pub(super) fn read(name: Name, object: &api::Service, dialect: Dialect, exposed: Exposed) -> Result<Service, Invalid> {
    let spec = object.spec.as_ref().ok_or_else(|| Invalid::new("spec", "is missing"))?;
    let mut service = Service {
        name,
        uid: object.uid().unwrap_or_default(),
        // Who does not say since when he exists is nobody's elder (S-067).
        created_at_s: object.creation_timestamp().map_or(i64::MAX, |time| time.0.as_second()),
        generation: object.metadata.generation,
        service_type: service_type(spec, exposed)?,
        class: spec.load_balancer_class.clone(),
        left_to: LEFT_TO_OTHERS.into_iter().find(|label| object.labels().contains_key(*label)),
        without_cluster_ip: false,
        families: Vec::new(),
        addresses: Vec::new(),
        cluster_ips: Vec::new(),
        external_ips: Vec::new(),
        of_other_families: Vec::new(),
        ports: Vec::new(),
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        source_ranges: Vec::new(),
        affinity_timeout_s: None,
        health_check_node_port: None,
        wishes: Wishes::default(),
    };
    if service.service_type == ServiceType::Other {
        return Ok(service);
    }
    service.without_cluster_ip = match spec.cluster_ip.as_deref() {
        Some("None" | "") => true,
        Some(_) => false,
        None => dialect == Dialect::Cluster,
    };
    service.families = families(spec)?;
    service.wishes = annotation::read(object.annotations(), dialect)?;
    if service.service_type == ServiceType::LoadBalancer {
        service.addresses = addresses(object, spec, dialect)?;
        service.source_ranges = source_ranges(object, spec)?;
    } else {
        // Not a Service with VIPs: nothing can make it one.
        service.wishes.prefixes.clear();
        service.wishes.prefixes_unassigned.clear();
        service.wishes.all_ports = false;
    }
    if !service.without_cluster_ip {
        service.cluster_ips = cluster_ips(spec)?;
    }
    for (index, ip) in spec.external_ips.iter().flatten().enumerate() {
        push_once(&mut service.external_ips, ip, format!("spec.externalIPs[{index}]"))?;
    }
    service.sort_by_family();
    service.ports = ports(spec)?;
    service.internal_policy = policy(spec.internal_traffic_policy.as_deref(), "spec.internalTrafficPolicy")?;
    service.external_policy = policy(spec.external_traffic_policy.as_deref(), "spec.externalTrafficPolicy")?;
    if service.service_type == ServiceType::ClusterIp && service.external_ips.is_empty() {
        service.external_policy = TrafficPolicy::Cluster; // T-007: nobody outside reaches it
    }
    service.affinity_timeout_s = affinity(spec)?;
    // The API clears the field when the policy is no longer Local (S-116); a file may not.
    let checked = service.service_type == ServiceType::LoadBalancer && service.external_policy == TrafficPolicy::Local;
    if let Some(number) = spec.health_check_node_port.filter(|number| checked && *number != 0) {
        service.health_check_node_port = Some(port(number, "spec.healthCheckNodePort")?);
    }
    Ok(service)
}

/// The type, or `Other` when no frontend of the Service is one that this gateway serves.
fn service_type(spec: &api::ServiceSpec, exposed: Exposed) -> Result<ServiceType, Invalid> {
    let external = exposed.external_ips && spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    Ok(match spec.type_.as_deref() {
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("NodePort") if exposed.node_ports || exposed.cluster_ips || external => ServiceType::NodePort,
        None | Some("" | "ClusterIP") if exposed.cluster_ips || external => ServiceType::ClusterIp,
        None | Some("" | "ClusterIP" | "NodePort" | "ExternalName") => ServiceType::Other,
        Some(other) => {
            let message = format!("{other:?} is not ClusterIP, NodePort, LoadBalancer or ExternalName");
            return Err(Invalid::new("spec.type", message));
        }
    })
}

fn policy(text: Option<&str>, field: &str) -> Result<TrafficPolicy, Invalid> {
    match text {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(Invalid::new(field, format!("{other:?} is not Cluster or Local"))),
    }
}

fn affinity(spec: &api::ServiceSpec) -> Result<Option<u32>, Invalid> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => return Err(Invalid::new("spec.sessionAffinity", format!("{other:?} is not None or ClientIP"))),
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(timeout) = client_ip.and_then(|config| config.timeout_seconds) else {
        return Ok(Some(AFFINITY_TIMEOUT_S_DEFAULT));
    };
    let valid = u32::try_from(timeout).ok().filter(|timeout| (1..=AFFINITY_TIMEOUT_S_MAX).contains(timeout));
    valid.map(Some).ok_or_else(|| {
        let message = format!("{timeout} is not a number of seconds from 1 to {AFFINITY_TIMEOUT_S_MAX}");
        Invalid::new("spec.sessionAffinityConfig.clientIP.timeoutSeconds", message)
    })
}

/// `clusterIPs`, or `clusterIP` alone in what people wrote by hand.
fn cluster_ips(spec: &api::ServiceSpec) -> Result<Vec<IpAddr>, Invalid> {
    let mut addresses = Vec::new();
    for (index, ip) in spec.cluster_ips.iter().flatten().enumerate() {
        push_once(&mut addresses, ip, format!("spec.clusterIPs[{index}]"))?;
    }
    if let (true, Some(ip)) = (addresses.is_empty(), &spec.cluster_ip) {
        push_once(&mut addresses, ip, "spec.clusterIP")?;
    }
    Ok(addresses)
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
    for name in [annotation::ADDRESSES].into_iter().chain(METALLB_ANNOTATIONS) {
        if let Some(list) = object.annotations().get(name) {
            ways.push((annotation::field(name), list));
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
    if !field.contains(annotation::ADDRESSES) && (v4 > 1 || addresses.len() - v4 > 1) {
        // M-004: MetalLB's form takes at most one address of each family.
        return Err(Invalid::new(
            field,
            format!("more than one address of a family; {} takes more", annotation::ADDRESSES),
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

impl Service {
    /// Sorts out what is not of one of the Service's families (S-123); VIPs stand with the primary family first (S-120).
    fn sort_by_family(&mut self) {
        fn part<T: Display>(list: &mut Vec<T>, others: &mut Vec<String>, ours: impl Fn(&T) -> bool) {
            let (kept, gone): (Vec<T>, Vec<T>) = std::mem::take(list).into_iter().partition(ours);
            *list = kept;
            others.extend(gone.iter().map(ToString::to_string));
        }
        let families = std::mem::take(&mut self.families);
        if !families.is_empty() {
            let rank = |ip: &IpAddr| families.iter().position(|v4| *v4 == ip.is_ipv4());
            for list in [&mut self.addresses, &mut self.cluster_ips, &mut self.external_ips] {
                part(list, &mut self.of_other_families, |ip| rank(ip).is_some());
            }
            part(&mut self.wishes.prefixes, &mut self.of_other_families, |prefix| rank(&prefix.addr()).is_some());
            self.addresses.sort_by_key(rank);
        }
        self.families = families;
    }
}

fn ports(spec: &api::ServiceSpec) -> Result<Vec<ServicePort>, Invalid> {
    let listed = spec.ports.as_deref().unwrap_or_default();
    if listed.is_empty() {
        return Err(Invalid::new("spec.ports", "a Service needs at least one port"));
    }
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, entry) in listed.iter().enumerate() {
        let name = entry.name.clone().unwrap_or_default();
        let field = |field: &str| format!("spec.ports[{index}].{field}");
        let parsed = ServicePort {
            protocol: protocol(entry.protocol.as_deref(), field("protocol"))?,
            port: port(entry.port, field("port"))?,
            node_port: match entry.node_port {
                None | Some(0) => None, // S-022
                Some(number) => Some(port(number, field("nodePort"))?),
            },
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
        let node_port = parsed.node_port.map(|number| (number, parsed.protocol));
        if node_port.is_some() && ports.iter().any(|other| other.node_port.map(|n| (n, other.protocol)) == node_port) {
            return Err(Invalid::new(field("nodePort"), "another port of this protocol has it"));
        }
        ports.push(parsed);
    }
    ports.sort_by_key(|port| (port.port, port.protocol));
    Ok(ports)
}

/// Clients that may reach the VIPs: the field, else its older annotation.
fn source_ranges(object: &api::Service, spec: &api::ServiceSpec) -> Result<Vec<IpNet>, Invalid> {
    let listed = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let mut texts: Vec<(&str, String)> = Vec::new();
    for (index, text) in listed.iter().enumerate() {
        texts.push((text, format!("spec.loadBalancerSourceRanges[{index}]")));
    }
    if listed.is_empty() {
        let annotation = object.annotations().get(SOURCE_RANGES_ANNOTATION).map_or("", String::as_str);
        let parts = annotation.split(',').filter(|text| !text.trim().is_empty());
        texts.extend(parts.map(|text| (text, annotation::field(SOURCE_RANGES_ANNOTATION))));
    }
    let mut ranges = Vec::new();
    for (text, field) in texts {
        let text = text.trim(); // S-080: white space around a range is legal.
        let range: IpNet = text.parse().map_err(|_| Invalid::new(field, format!("{text:?} is not a CIDR")))?;
        ranges.push(range.trunc());
    }
    ranges.sort();
    ranges.dedup();
    Ok(ranges)
}
