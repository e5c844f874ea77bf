//! The kind EgressPolicy: which pods leave the cluster with which addresses.
//!
//! Owns the form. The server checks what a schema can check; what takes arithmetic is checked by
//! [`crate::watch::egresspolicy`], which tells it in `status`.
#![allow(clippy::duplicated_attributes, reason = "several columns have the same type")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::addresspool::LabelSelector;
use super::conditions;

/// Type of the condition that says whether the policy as it is written now is in force.
pub const VALID: &str = "Valid";
/// Type of the condition that says whether workers of the gateway that writes forward by it.
pub const PROGRAMMED: &str = "Programmed";
/// Type of the condition that says whether new connections find ports.
pub const PORTS_AVAILABLE: &str = "PortsAvailable";

/// Which pods leave the cluster with which addresses.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tidegate.io",
    version = "v1alpha1",
    kind = "EgressPolicy",
    plural = "egresspolicies",
    shortname = "tgegress",
    category = "tidegate",
    status = "EgressPolicyStatus",
    derive = "PartialEq",
    doc = "An EgressPolicy gives selected pods fixed addresses outside the cluster.",
    printcolumn(name = "Addresses", type_ = "string", json_path = ".status.addresses"),
    printcolumn(name = "Pods", type_ = "integer", json_path = ".status.pods"),
    printcolumn(name = "Used", type_ = "integer", json_path = ".status.portsUsed"),
    printcolumn(name = "Refused", type_ = "integer", json_path = ".status.portsRefused"),
    printcolumn(name = "Gateways", type_ = "string", json_path = ".status.gateways[*].name", priority = 1),
    printcolumn(name = "Valid", type_ = "string", json_path = ".status.conditions[?(@.type==\"Valid\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.addressPool) != (has(self.addresses) && size(self.addresses) > 0)")
        .message("exactly one of addressPool and addresses must be given")
)]
pub struct EgressPolicySpec {
    /// Namespaces of the pods, by their labels; left out or empty: all namespaces.
    #[serde(default)]
    pub namespace_selector: LabelSelector,
    /// Pods in those namespaces, by their labels; left out or empty: all of them. Where several policies select a pod,
    /// the oldest whose destinations fit is used.
    #[serde(default)]
    pub pod_selector: LabelSelector,
    /// Destinations (CIDRs) that the policy is for; left out: everything outside the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub destinations: Vec<String>,
    /// Destinations (CIDRs) within those that are reached untranslated, with the pod's own address, if the gateway has a
    /// route there. Pods, nodes and cluster IPs are not reached through the gateway. The most specific CIDR of both lists
    /// decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub except: Vec<String>,
    /// AddressPool that is the policy's as a whole: it should be `autoAssign: false`. Addresses that Services have are
    /// left to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub address_pool: Option<String>,
    /// Addresses, IPv4 and IPv6. Policies may share them. A pod always has the same one of each family, as long as the
    /// list stays as it is; a pod of a family without any is refused rather than let out with another address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 2, max = 45)))]
    pub addresses: Vec<String>,
    /// TCP: how ports are given out, and who may answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Behaviour>,
    /// UDP: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<Behaviour>,
    /// How much pods may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Ports of UDP whose mappings end earlier or later than the usual five minutes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 14))]
    pub udp_timeouts: Vec<UdpTimeout>,
    /// Whether ESP, GRE and IP in IP leave too, which have no ports; one pod at a time speaks each with a destination.
    #[serde(default)]
    pub other_protocols: bool,
    /// Whether it is recorded who had which port: `tidegate nat who` reads that.
    #[serde(default)]
    pub log: bool,
}

/// How ports of one protocol are given out, and who may send to them.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Behaviour {
    /// Whether a pod's port looks the same to everybody. Left out: `EndpointIndependent` for UDP, as applications that
    /// meet through a third party need it; `AddressAndPortDependent` for TCP, so that an address carries 64,512
    /// connections to each remote and not in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<Mapping>,
    /// Who may send to a port that looks the same to everybody. Left out: `AddressDependent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filtering: Option<Filtering>,
}

/// Which packets of a pod's port show the same external port (RFC 4787 section 4.1).
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mapping {
    /// One external port for all destinations.
    EndpointIndependent,
    /// An external port per destination address and port.
    AddressAndPortDependent,
}

/// Who may send to a mapped port (RFC 4787 section 5).
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Filtering {
    /// Addresses that the pod has sent to.
    AddressDependent,
    /// Everyone.
    EndpointIndependent,
}

/// How much pods may take.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Ports of one pod at once, of each family; left out: as many as there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64512))]
    pub ports_per_pod: Option<u32>,
    /// Ports of all pods of a namespace at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1048576))]
    pub ports_per_namespace: Option<u32>,
}

/// When idle mappings towards a port end.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UdpTimeout {
    /// Destination port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Seconds without a packet from the pod.
    #[schemars(range(min = 1, max = 86400))]
    pub seconds: i32,
}

/// What became of a policy.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressPolicyStatus {
    /// The generation that all of this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Addresses in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Pods that it is used for.
    #[serde(default)]
    pub pods: i64,
    /// Ports of its addresses in use, TCP, UDP, SCTP and echo together, at all gateways that told.
    #[serde(default)]
    pub ports_used: i64,
    /// New connections and mappings that found no port or met a quota, at those gateways, since each of them began.
    #[serde(default)]
    pub ports_refused: i64,
    /// Gateways that carry addresses of it; each tells of itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "gateways")]
    pub gateways: Vec<EgressGateway>,
    /// `Valid`: whether `spec` is in force, and if not, why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// What a gateway tells of its part in a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressGateway {
    /// Name of its Node.
    pub name: String,
    /// Addresses of the policy that it carries: an address is one gateway's at a time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Ports in use there.
    #[serde(default)]
    pub ports_used: i64,
    /// New connections and mappings refused there since its dataplane began.
    #[serde(default)]
    pub ports_refused: i64,
}

/// A list by name, so that each gateway owns its own entry under server-side apply.
fn gateways(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "Gateways that carry addresses of it; each tells of itself.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": { "type": "string", "description": "Name of its Node." },
                "addresses": {
                    "type": "array",
                    "description": "Addresses of the policy that it carries: an address is one gateway's at a time.",
                    "items": { "type": "string" }
                },
                "portsUsed": { "type": "integer", "format": "int64", "description": "Ports in use there." },
                "portsRefused": {
                    "type": "integer",
                    "format": "int64",
                    "description": "New connections and mappings refused there since its dataplane began."
                }
            }
        }
    })
}
