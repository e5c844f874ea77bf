//! The kind AddressPool: addresses that Services of type LoadBalancer may get.
//!
//! Owns the form, which is that of MetalLB's `IPAddressPool` under other names of group and kind, so that its manifests
//! need no other change. The server checks what a schema can check; what takes arithmetic is checked by
//! [`crate::watch::addresspool`], which tells it in `status`.
#![allow(clippy::duplicated_attributes, reason = "several columns have the same type")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions;

/// Type of the condition that says whether the pool as it is written now is in force.
pub const VALID: &str = "Valid";

/// Addresses that Services of type LoadBalancer may get, and which Services.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tidegate.io",
    version = "v1alpha1",
    kind = "AddressPool",
    plural = "addresspools",
    shortname = "tgpool",
    category = "tidegate",
    status = "AddressPoolStatus",
    derive = "PartialEq",
    doc = "An AddressPool holds addresses that Services of type LoadBalancer may get. Pools must not overlap.",
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses"),
    printcolumn(name = "Auto", type_ = "boolean", json_path = ".spec.autoAssign"),
    printcolumn(name = "Used IPv4", type_ = "integer", json_path = ".status.assignedIPv4"),
    printcolumn(name = "Free IPv4", type_ = "integer", json_path = ".status.availableIPv4"),
    printcolumn(name = "Used IPv6", type_ = "integer", json_path = ".status.assignedIPv6"),
    printcolumn(name = "Free IPv6", type_ = "integer", json_path = ".status.availableIPv6"),
    printcolumn(name = "Valid", type_ = "string", json_path = ".status.conditions[?(@.type==\"Valid\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolSpec {
    /// Addresses of the pool, IPv4 and IPv6: CIDRs (`192.0.2.0/24`), ranges with both ends (`192.0.2.10-192.0.2.99`) or
    /// single addresses. They are given out in this order, the lowest free address of each first. No address may be in
    /// the pool twice, or in two pools.
    #[schemars(
        length(min = 1, max = 256),
        inner(length(min = 2, max = 87), regex(pattern = r"^[0-9A-Fa-f:.]+(/[0-9]{1,3}| ?- ?[0-9A-Fa-f:.]+)?$"))
    )]
    pub addresses: Vec<String>,
    /// Whether Services get addresses of this pool without asking for them. If false, only Services that name the pool
    /// (annotation `tidegate.io/address-pool`) or one of its addresses do.
    #[serde(default = "yes")]
    pub auto_assign: bool,
    /// Leaves out IPv4 addresses that end in .0 or .255, which some old devices take for network and broadcast addresses.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,
    /// Restricts the pool to some Services, which then try it before the pools that are for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_allocation: Option<ServiceAllocation>,
}

/// Which Services a pool is for. A Service must be in one of the namespaces, if any are given, and carry the labels of
/// one of the selectors, if any are given.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAllocation {
    /// Pools with a lower number are tried first; 0 comes last.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub priority: i32,
    /// Names of namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub namespaces: Vec<String>,
    /// Namespaces by their labels; one selector that fits is enough, or one name above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub namespace_selectors: Vec<LabelSelector>,
    /// Services by their labels; one selector that fits is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub service_selectors: Vec<LabelSelector>,
}

/// Objects by their labels, as everywhere in Kubernetes: all parts must fit; an empty selector fits every object.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels with their values.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub match_labels: std::collections::BTreeMap<String, String>,
    /// Conditions on labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub match_expressions: Vec<Requirement>,
}

/// A condition on one label.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)")
        .message("operators In and NotIn need values, Exists and DoesNotExist have none")
)]
pub struct Requirement {
    /// Key of the label.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
    /// Values for `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub values: Vec<String>,
}

/// What is asked of a label.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// It has one of the values.
    In,
    /// It has none of the values; also true without the label.
    NotIn,
    /// It is there, with whatever value.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// What became of a pool.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolStatus {
    /// The generation that all of this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ranges in force. They differ from `spec.addresses` while those cannot be used: then the last good ones stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// IPv4 addresses that could be given out, used ones included.
    #[serde(default, rename = "totalIPv4")]
    pub total_ipv4: i64,
    /// IPv4 addresses that Services have; shared ones count once.
    #[serde(default, rename = "assignedIPv4")]
    pub assigned_ipv4: i64,
    /// IPv4 addresses left.
    #[serde(default, rename = "availableIPv4")]
    pub available_ipv4: i64,
    /// IPv6 addresses that could be given out, used ones included; 9223372036854775807 also stands for more.
    #[serde(default, rename = "totalIPv6")]
    pub total_ipv6: i64,
    /// IPv6 addresses that Services have; shared ones count once.
    #[serde(default, rename = "assignedIPv6")]
    pub assigned_ipv6: i64,
    /// IPv6 addresses left; 9223372036854775807 also stands for more.
    #[serde(default, rename = "availableIPv6")]
    pub available_ipv6: i64,
    /// `Valid`: whether `spec` is in force, and if not, why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

fn yes() -> bool {
    true
}
