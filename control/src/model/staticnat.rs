//! A StaticNat: an external address, and the pod it leads to.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tidegate_api::resource::PortForward;

use super::Name;

/// One StaticNat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StaticNat {
    /// Name.
    pub name: String,
    /// Object identity (S-005); empty when nobody assigned one.
    pub uid: String,
    /// `metadata.generation`, told back in status.
    pub generation: Option<i64>,
    /// What the outside sees.
    pub external: IpAddr,
    /// Where it leads.
    pub target: Target,
    /// Ports that do; empty: everything.
    pub ports: Vec<PortForward>,
}

/// Where a StaticNat leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Target {
    /// To the Pod of that name.
    Pod(Name),
    /// To the pod of that address.
    Address(IpAddr),
}
