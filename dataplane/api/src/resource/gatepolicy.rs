//! Policy of a gateway: which clients may reach which Services, asked before anything is translated.
//!
//! A rule speaks of clients by prefix, of Services by name and of a Service's own ports. Rule number *n* is entry *n* of the
//! object's list.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Protocol;

/// One policy object. Its resource is named like the object. Those with a lower order go first, then by name; the first
/// rule of all of them that matches decides, and what none matches may pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct GatewayPolicy {
    /// Place among the others.
    #[serde(default)]
    pub order: u16,
    /// Nothing is denied by it: what it would deny, were it in force with the others, is counted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub audit: bool,
    /// Rules in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<GatewayRule>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GatewayRule {
    /// Name in the object, possibly empty, for telling people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What happens to what matches.
    pub action: GatewayAction,
    /// Clients by their own addresses: any of these. Absent: everybody; empty: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<Vec<ClientRange>>,
    /// Ports of the Service, before translation: any of these. Absent: every port of every protocol; empty: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<FrontPort>>,
    /// Names of Services (`namespace/name`), sorted. Absent: all, and echo requests to VIPs if there are no ports either;
    /// empty: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<String>>,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GatewayAction {
    /// May pass.
    Allow,
    /// May not, in silence.
    Deny,
    /// May pass as far as its source keeps within limits.
    Limit(SourceLimits),
}

/// What one source may do under one rule. At least one of the limits is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SourceLimits {
    /// New connections (of UDP: flows) in a second, never 0; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_s: Option<u32>,
    /// New connections at once, with `rate_per_s`; never 0.
    #[serde(default = "one")]
    pub burst: u32,
    /// Handshakes that are not finished, at once, never 0; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_open_max: Option<u16>,
    /// First bits of an IPv4 address that make a source, 1 to 32.
    #[serde(default = "whole_v4")]
    pub bits_v4: u8,
    /// First bits of an IPv6 address that make a source, 1 to 128.
    #[serde(default = "link_v6")]
    pub bits_v6: u8,
}

/// Clients by address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClientRange {
    /// All of these …
    pub prefix: IpNet,
    /// … but those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<IpNet>,
}

/// Ports of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FrontPort {
    /// L4 protocol.
    pub protocol: Protocol,
    /// First port, host order.
    pub first: u16,
    /// Last port, not below the first.
    pub last: u16,
}

fn one() -> u32 {
    1
}

fn whole_v4() -> u8 {
    32
}

fn link_v6() -> u8 {
    64
}
