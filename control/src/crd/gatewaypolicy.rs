//! The kind GatewayPolicy: which clients may reach which Services through gateways.
//!
//! Owns the form. It is in no namespace, as gateways and their clients are in none: who may write one may close every
//! Service. The server checks what a schema can check; the rest is checked by [`crate::watch::gatewaypolicy`], which tells it
//! in `status`.
#![allow(clippy::duplicated_attributes, reason = "several columns have the same type")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::addresspool::LabelSelector;
use super::conditions;

/// Which clients may reach which Services through gateways.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tidegate.io",
    version = "v1alpha1",
    kind = "GatewayPolicy",
    plural = "gatewaypolicies",
    shortname = "tggate",
    category = "tidegate",
    status = "GatewayPolicyStatus",
    derive = "PartialEq",
    doc = "A GatewayPolicy says which clients may reach which Services through gateways, before anything is translated.",
    printcolumn(name = "Order", type_ = "integer", json_path = ".spec.order"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Services", type_ = "integer", json_path = ".status.services"),
    printcolumn(name = "Valid", type_ = "string", json_path = ".status.conditions[?(@.type==\"Valid\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct GatewayPolicySpec {
    /// Place among all GatewayPolicies: those with a lower number are asked first, of equal ones by name. The first rule
    /// of all that matches decides; what none matches may pass.
    #[serde(default = "order_default")]
    #[schemars(range(min = 0, max = 65535))]
    pub order: i32,
    /// Whether the rules are in force, or only count what they would deny.
    #[serde(default)]
    pub mode: Mode,
    /// Rules, asked in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub rules: Vec<ClientRule>,
}

/// Whether rules are in force.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// They are.
    #[default]
    Enforce,
    /// Nothing is denied; what would be, were all policies in audit in force, is counted.
    Audit,
}

/// One rule.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.action == 'Limit') == has(self.limits)")
        .message("limits must be given with the action Limit, and with no other")
)]
pub struct ClientRule {
    /// A name for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 100))]
    pub name: String,
    /// What happens to whoever matches.
    pub action: Action,
    /// Clients by their own addresses, pods and nodes included; left out: everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub clients: Option<Vec<Client>>,
    /// Services; left out: all, and echo requests to their addresses too if there are no ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub services: Option<Vec<ServiceChoice>>,
    /// Ports of the Services themselves, not of their pods or nodes; left out: every port of every protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub ports: Option<Vec<Port>>,
    /// What one source may do, with the action `Limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// What happens to whoever matches.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// It may pass, as far as this kind of policy is concerned.
    Allow,
    /// It may not, and hears nothing.
    Deny,
    /// It may pass within `limits`; what is beyond hears nothing.
    Limit,
}

/// Clients by address.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Client {
    /// All of this CIDR …
    #[schemars(length(min = 3, max = 43))]
    pub cidr: String,
    /// … but these, which must be in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub except: Vec<String>,
}

/// Services by name or by labels. All that is given must fit.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.namespace) || has(self.selector)").message("namespace or selector must be given"),
    validation = Rule::new("!has(self.name) || has(self.namespace) && !has(self.selector)")
        .message("name needs namespace, and no selector")
)]
pub struct ServiceChoice {
    /// Their namespace; left out: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// The name of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// Their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// One port of Services, or several.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// TCP, UDP or SCTP; left out: TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The port; left out: all of the protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// The last of several that begin with `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<i32>,
}

/// What one source may do, at each gateway. At least one of `newConnectionsPerSecond` and `halfOpen` must be given.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.newConnectionsPerSecond) || has(self.halfOpen)")
        .message("newConnectionsPerSecond or halfOpen must be given"),
    validation = Rule::new("!has(self.burst) || has(self.newConnectionsPerSecond)")
        .message("burst needs newConnectionsPerSecond")
)]
pub struct Limits {
    /// New connections a second; of UDP: new flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub new_connections_per_second: Option<u32>,
    /// New connections at once; left out: as many as in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub burst: Option<u32>,
    /// Handshakes at once that the client has not finished; of TCP and SCTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub half_open: Option<u32>,
    /// First bits of an IPv4 address that make a source; left out: 32, every address by itself.
    #[serde(default, rename = "ipv4PrefixLength", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 8, max = 32))]
    pub ipv4_prefix_length: Option<u8>,
    /// First bits of an IPv6 address that make a source; left out: 64, a link.
    #[serde(default, rename = "ipv6PrefixLength", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 128))]
    pub ipv6_prefix_length: Option<u8>,
}

/// What became of a policy.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayPolicyStatus {
    /// The generation that all of this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Services that rules speak of by name or labels; absent where a rule is for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<i64>,
    /// `Valid`: whether `spec` is in force, and if not, why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

fn order_default() -> i32 {
    1000
}
