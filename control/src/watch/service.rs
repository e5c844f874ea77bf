//! A Service read from its manifest.
//!
//! Owns the meaning of the fields of `spec`, `status.loadBalancer` and the annotations that request addresses. Fields of
//! Services without a frontend that this gateway serves are not looked at: they are none of our business (S-001).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;
use kube::ResourceExt;
use tidegate_api::resource::TrafficPolicy;

use super::{Dialect, Exposed, Invalid, address, annotation, port, protocol};
use crate::model::Name;
use crate::model::service::{AddressRequest, FamilyPolicy, Service, ServicePort, ServiceType, Wishes};

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
pub(crate) fn read(name: Name, object: &api::Service, dialect: Dialect, exposed: Exposed) -> Result<Service, Invalid> {
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
        family_policy: None,
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
        address_request: AddressRequest::default(),
        labels: BTreeMap::new(),
    };
    if service.service_type == ServiceType::Other {
        return Ok(service);
    }
    service.without_cluster_ip = match spec.cluster_ip.as_deref() {
        Some("None" | "") => true,
        Some(_) => false,
        None => dialect == Dialect::Cluster,
    };
    service.labels = object.labels().clone();
    service.families = families(spec)?;
    service.family_policy = family_policy(spec)?;
    service.wishes = annotation::read(object.annotations(), dialect)?;
    if service.service_type == ServiceType::LoadBalancer {
        // People who write files by hand know MetalLB's form best; in a cluster it may be meant for MetalLB.
        let metallb = exposed.metallb_annotations || dialect == Dialect::Files;
        service.address_request = address_request(object, spec, metallb)?;
        service.addresses = addresses(object, &service.address_request.addresses, dialect)?;
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

fn family_policy(spec: &api::ServiceSpec) -> Result<Option<FamilyPolicy>, Invalid> {
    match spec.ip_family_policy.as_deref() {
        None | Some("") => Ok(None),
        Some("SingleStack") => Ok(Some(FamilyPolicy::SingleStack)),
        Some("PreferDualStack") => Ok(Some(FamilyPolicy::PreferDualStack)),
        Some("RequireDualStack") => Ok(Some(FamilyPolicy::RequireDualStack)),
        Some(other) => {
            let message = format!("{other:?} is not SingleStack, PreferDualStack or RequireDualStack");
            Err(Invalid::new("spec.ipFamilyPolicy", message))
        }
    }
}

/// The addresses to serve: what status says; without status, in files, what is requested.
fn addresses(object: &api::Service, requested: &[IpAddr], dialect: Dialect) -> Result<Vec<IpAddr>, Invalid> {
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
        Dialect::Files => Ok(requested.to_vec()),
        Dialect::Cluster => Ok(Vec::new()),
    }
}

/// Which addresses are asked for, of which pool, and with whom they may be shared.
fn address_request(object: &api::Service, spec: &api::ServiceSpec, metallb: bool) -> Result<AddressRequest, Invalid> {
    let one = |ours: &'static str| {
        let mut ways = annotation::meaning(object.annotations(), ours, metallb).filter(|(_, value)| !value.is_empty());
        let Some((first, value)) = ways.next() else { return Ok(None) };
        match ways.find(|(_, other)| *other != value) {
            None => Ok(Some(value.to_string())),
            Some((other, _)) => Err(contradiction(annotation::field(other), &annotation::field(first))),
        }
    };
    let sharing = one(annotation::ALLOW_SHARED_IP)?.unwrap_or_default();
    let selector = spec.selector.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    Ok(AddressRequest {
        addresses: requested(object, spec, metallb)?,
        pool: one(annotation::ADDRESS_POOL)?,
        selector: if sharing.is_empty() { String::new() } else { selector.collect::<Vec<_>>().join(",") },
        sharing,
    })
}

/// Addresses asked for by `spec.loadBalancerIP` or one of the annotations; more than one way at once is an error (S-020,
/// M-004).
fn requested(object: &api::Service, spec: &api::ServiceSpec, metallb: bool) -> Result<Vec<IpAddr>, Invalid> {
    let mut ways: Vec<(String, &str)> = Vec::new();
    if let Some(ip) = spec.load_balancer_ip.as_deref().filter(|ip| !ip.is_empty()) {
        ways.push(("spec.loadBalancerIP".into(), ip));
    }
    for ours in [annotation::ADDRESSES, annotation::LOAD_BALANCER_IPS] {
        let given = annotation::meaning(object.annotations(), ours, metallb);
        ways.extend(given.map(|(name, list)| (annotation::field(name), list)));
    }
    let Some((field, list)) = ways.first() else { return Ok(Vec::new()) };
    if let Some((other, _)) = ways.get(1) {
        return Err(contradiction(other, field));
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

fn contradiction(field: impl Into<String>, other: &str) -> Invalid {
    Invalid::new(field, format!("addresses are requested here and in {other}; keep one"))
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

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: (Dialect, bool) = (Dialect::Cluster, false);
    const COMPATIBLE: (Dialect, bool) = (Dialect::Cluster, true);
    const FILES: (Dialect, bool) = (Dialect::Files, false);

    fn service(
        (dialect, metallb_annotations): (Dialect, bool),
        annotations: &str,
        spec: &str,
    ) -> Result<Service, Invalid> {
        let text = format!(
            "metadata: {{ name: web, namespace: shop, labels: {{ tier: web }}, annotations: {{ {annotations} }} }}\n\
             spec: {{ type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{{ port: 80 }}], selector: {{ b: c, a: b }}, {spec} }}"
        );
        let value: serde_json::Value = serde_norway::from_str(&text).unwrap();
        let object = super::super::typed(&value, None)?;
        let name = Name { namespace: "shop".into(), name: "web".into() };
        read(name, &object, dialect, Exposed { metallb_annotations, ..Exposed::default() })
    }

    fn asks(how: (Dialect, bool), annotations: &str, spec: &str) -> Result<AddressRequest, String> {
        service(how, annotations, spec).map(|service| service.address_request).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn what_is_asked_for_is_read_under_our_names_and_metallbs() {
        // M-003, M-004, M-010, S-020
        let ours = "tidegate.io/load-balancer-ips: \"192.0.2.1, 2001:db8::1\", tidegate.io/address-pool: p, tidegate.io/allow-shared-ip: k";
        let theirs = "metallb.io/loadBalancerIPs: \"192.0.2.1,2001:db8::1\", metallb.io/address-pool: p, metallb.io/allow-shared-ip: k";
        let older = theirs.replace("metallb.io", "metallb.universe.tf");
        let full = AddressRequest {
            addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            pool: Some("p".into()),
            sharing: "k".into(),
            selector: "a=b,b=c".into(),
        };
        for (how, annotations, expected) in [
            (CLUSTER, ours, &full),
            (FILES, ours, &full),
            (COMPATIBLE, theirs, &full),
            (COMPATIBLE, &older, &full),
            (FILES, theirs, &full),
            (CLUSTER, theirs, &AddressRequest::default()),
            (CLUSTER, "tidegate.io/address-pool: \"\", tidegate.io/allow-shared-ip: \" \"", &AddressRequest::default()),
        ] {
            assert_eq!(asks(how, annotations, "").as_ref(), Ok(expected), "{annotations}");
        }
        let by_field = asks(CLUSTER, "", "loadBalancerIP: 192.0.2.1").unwrap();
        assert_eq!(by_field.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        let agreed = asks(COMPATIBLE, "tidegate.io/address-pool: p, metallb.io/address-pool: p", "").unwrap();
        assert_eq!(agreed.pool.as_deref(), Some("p"));
    }

    #[test]
    fn requests_that_contradict_each_other_are_errors() {
        // M-004, S-020
        for (annotations, spec, expected) in [
            ("tidegate.io/load-balancer-ips: 192.0.2.1", "loadBalancerIP: 192.0.2.1", "keep one"),
            ("tidegate.io/load-balancer-ips: 192.0.2.1, tidegate.io/addresses: 192.0.2.1", "", "keep one"),
            ("tidegate.io/load-balancer-ips: \"192.0.2.1,192.0.2.2\"", "", "more than one address of a family"),
            ("tidegate.io/load-balancer-ips: \"192.0.2.1,192.0.2.1\"", "", "listed twice"),
            ("tidegate.io/load-balancer-ips: \"\"", "", "not an IP address"),
            ("metallb.io/address-pool: p, tidegate.io/address-pool: q", "", "metallb.io/address-pool"),
            ("metallb.io/allow-shared-ip: p, tidegate.io/allow-shared-ip: q", "", "keep one"),
            ("", "ipFamilyPolicy: Both", "spec.ipFamilyPolicy"),
        ] {
            let message = asks(COMPATIBLE, annotations, spec).unwrap_err();
            assert!(message.contains(expected), "{annotations} {spec} gave {message:?}");
        }
    }

    #[test]
    fn a_request_for_addresses_says_families_ports_and_labels() {
        use crate::allocate::Request;

        // S-120: the API server fills in families; files leave them out and mean both.
        let request = |how, spec: &str| Request::new(&service(how, "", spec).unwrap(), &[]);
        let of = |request: &Request| (request.families.clone(), request.family_policy);
        let both = vec![true, false];
        assert_eq!(of(&request(FILES, "clusterIP: \"\"")), (both.clone(), FamilyPolicy::PreferDualStack));
        assert_eq!(of(&request(FILES, "")), (vec![true], FamilyPolicy::SingleStack));
        let dual = "ipFamilies: [IPv4, IPv6], ipFamilyPolicy";
        assert_eq!(of(&request(CLUSTER, &format!("{dual}: RequireDualStack"))), (both, FamilyPolicy::RequireDualStack));
        assert_eq!(of(&request(CLUSTER, &format!("{dual}: SingleStack"))), (vec![true], FamilyPolicy::SingleStack));
        let local = request(CLUSTER, "externalTrafficPolicy: Local");
        assert_eq!((local.backend.as_deref(), request(CLUSTER, "").backend), (Some(""), None));
        assert_eq!(local.ports, [(tidegate_api::resource::Protocol::Tcp, 80)].into());
        assert_eq!(local.labels["tier"], "web");
        let every = service(FILES, "tidegate.io/all-ports: \"true\"", "").unwrap();
        assert_eq!(Request::new(&every, &[]).ports.len(), 2);
    }
}
