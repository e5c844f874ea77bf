//! The kind StaticNat: an address outside the cluster, or some of its ports, that always lead to the same pod.
#![allow(clippy::duplicated_attributes, reason = "several columns have the same type")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions;

/// An address outside the cluster, or some of its ports, that always lead to the same pod.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tidegate.io",
    version = "v1alpha1",
    kind = "StaticNat",
    plural = "staticnats",
    shortname = "tgnat",
    category = "tidegate",
    status = "StaticNatStatus",
    derive = "PartialEq",
    doc = "A StaticNat leads an address outside the cluster, or some of its ports, to one pod.",
    printcolumn(name = "External", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Valid", type_ = "string", json_path = ".status.conditions[?(@.type==\"Valid\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.pod) != has(self.internalAddress)")
        .message("exactly one of pod and internalAddress must be given")
)]
pub struct StaticNatSpec {
    /// Address that the outside sees. No Service and no EgressPolicy may have it.
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
    /// The pod, by its name: its address may change. A pod without an address of that family is not reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodReference>,
    /// The pod, by its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 45))]
    pub internal_address: Option<String>,
    /// Ports that lead to the pod. Left out: everything does, of every protocol, and whatever the pod sends to the
    /// outside shows this address (1:1).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub ports: Vec<ForwardedPort>,
}

/// A pod by its name.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReference {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A port that leads to the pod.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForwardedPort {
    /// TCP, UDP or SCTP; left out: TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Port at the external address.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Port of the pod; left out: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: Option<i32>,
}

/// What became of it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StaticNatStatus {
    /// The generation that all of this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Valid`: whether `spec` is in force, and if not, why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}
