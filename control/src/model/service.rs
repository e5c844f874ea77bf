//! A Service as far as a gateway cares: a valid value, whatever the manifest looked like.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::{DeliveryMode, HashFields, Protocol, Scheduler, TrafficPolicy};

use super::Name;

/// One Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Namespace and name.
    pub name: Name,
    /// Object identity (S-005); empty when nobody assigned one.
    pub uid: String,
    /// Seconds since the epoch at creation, 0 when unknown (S-067).
    pub created_at_s: i64,
    /// `metadata.generation`, told back in conditions.
    pub generation: Option<i64>,
    /// `spec.type`; all below is empty when it is [`ServiceType::Other`].
    pub service_type: ServiceType,
    /// `spec.loadBalancerClass` (S-001).
    pub class: Option<String>,
    /// The label that leaves this Service to somebody else (S-003).
    pub left_to: Option<&'static str>,
    /// `clusterIP` is `None` or empty (S-004).
    pub without_cluster_ip: bool,
    /// `ipFamilies` as "is IPv4", in order; empty when not given, which means both.
    pub families: Vec<bool>,
    /// `ipFamilyPolicy` (S-120); absent when not given.
    pub family_policy: Option<FamilyPolicy>,
    /// VIPs, in order of `ipFamilies`, then as listed (S-120); of Services of type LoadBalancer only.
    pub addresses: Vec<IpAddr>,
    /// `clusterIPs`.
    pub cluster_ips: Vec<IpAddr>,
    /// `externalIPs` (S-023).
    pub external_ips: Vec<IpAddr>,
    /// Addresses and prefixes of all these kinds whose family is not in `ipFamilies` (S-123), as text.
    pub of_other_families: Vec<String>,
    /// Ports in order of (port, protocol), which is unique (S-010).
    pub ports: Vec<ServicePort>,
    /// `externalTrafficPolicy` (S-017).
    pub external_policy: TrafficPolicy,
    /// `internalTrafficPolicy` (S-018).
    pub internal_policy: TrafficPolicy,
    /// `loadBalancerSourceRanges` or its annotation, host bits cleared, sorted (S-021, S-080).
    pub source_ranges: Vec<IpNet>,
    /// `sessionAffinity: ClientIP` with its timeout in seconds (S-015, S-016).
    pub affinity_timeout_s: Option<u32>,
    /// `healthCheckNodePort`, host order, never 0; of Services of type LoadBalancer under the policy Local (S-017).
    pub health_check_node_port: Option<u16>,
    /// What our annotations ask for.
    pub wishes: Wishes,
    /// Which addresses it wants; of Services of type LoadBalancer only.
    pub address_request: AddressRequest,
    /// Labels, which pools and GatewayPolicies choose by.
    pub labels: BTreeMap<String, String>,
}

/// How many families a Service wants addresses of (S-120).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyPolicy {
    /// The first of its families.
    SingleStack,
    /// As many of its families as there are addresses for.
    PreferDualStack,
    /// Both.
    RequireDualStack,
}

/// Which addresses a Service wants to be given.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AddressRequest {
    /// These, each once (M-004); empty: any.
    pub addresses: Vec<IpAddr>,
    /// Of this pool.
    pub pool: Option<String>,
    /// Shared with the Services that have the same key; empty: with nobody (M-010).
    pub sharing: String,
    /// The Service's selector as text, where sharing asks for it (M-010, S-028); empty otherwise.
    pub selector: String,
}

/// Value of `spec.type` as far as it is one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceType {
    /// Reached at VIPs, node ports and cluster addresses.
    LoadBalancer,
    /// Reached at node ports and cluster addresses.
    NodePort,
    /// Reached at cluster addresses.
    ClusterIp,
    /// Without any frontend that this gateway is to serve.
    Other,
}

/// What the annotations `tidegate.io/*` ask for.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Wishes {
    /// `delivery-mode`.
    pub mode: Option<DeliveryMode>,
    /// `scheduler`.
    pub scheduler: Scheduler,
    /// Name of a scheduler that another one stands in for (`lblc`, `lblcr`).
    pub scheduler_replaced: Option<&'static str>,
    /// `hash`.
    pub hash: HashFields,
    /// `slow-start`, in seconds.
    pub slow_start_s: u16,
    /// `one-packet`.
    pub one_packet: bool,
    /// `all-ports`.
    pub all_ports: bool,
    /// `prefixes`, sorted; of Services of type LoadBalancer only.
    pub prefixes: Vec<IpNet>,
    /// `prefixes` that nobody has assigned: with an API server, requests are not assignments.
    pub prefixes_unassigned: Vec<IpNet>,
    /// `weights`, by address.
    pub weights_by_address: BTreeMap<IpAddr, u16>,
    /// `weights`, by name of the pod.
    pub weights_by_pod: BTreeMap<String, u16>,
    /// `source-backends`: clients and the endpoint they are sent to, sorted.
    pub source_backends: Vec<(IpNet, EndpointName)>,
    /// Annotations under our prefix that mean nothing.
    pub unknown: Vec<String>,
}

/// How an annotation names an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointName {
    /// By its address.
    Address(IpAddr),
    /// By its pod.
    Pod(String),
}

impl std::fmt::Display for EndpointName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EndpointName::Address(address) => address.fmt(f),
            EndpointName::Pod(name) => name.fmt(f),
        }
    }
}

/// One (port, protocol) of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, the key to slice ports; may be empty.
    pub name: String,
    /// L4 protocol.
    pub protocol: Protocol,
    /// Port at the VIP, host order, never 0.
    pub port: u16,
    /// `nodePort`, host order, never 0 (S-022: there may be none).
    pub node_port: Option<u16>,
}

impl Service {
    /// Whether the Service has frontends of the family of `address`.
    pub fn has_family_of(&self, address: IpAddr) -> bool {
        self.families.is_empty() || self.families.contains(&address.is_ipv4())
    }
}

impl Wishes {
    /// Weight of an endpoint that is chosen: that of its address, else that of its pod, else 1.
    pub fn weight(&self, address: IpAddr, pod: &str) -> u16 {
        let by_pod = || self.weights_by_pod.get(pod);
        self.weights_by_address.get(&address).or_else(by_pod).copied().unwrap_or(1)
    }
}
