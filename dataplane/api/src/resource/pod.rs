//! A pod: whose an overlay address is, for everything that treats pods differently.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A pod that an egress policy selects or a network policy looks at. Its resource is named `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pod {
    /// Its own addresses, at most one of each family; no other pod has them.
    pub addresses: Vec<IpAddr>,
    /// Node it runs on; empty: not known.
    #[serde(default)]
    pub node: String,
    /// What network policies know it as: pods that no policy can tell apart share one. 0: no policy looks at it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub identity: u32,
    /// Names of the [`super::Egress`] resources that select it, first choice first: the first whose destinations hold
    /// that of a packet decides. Empty: its traffic to the outside is not translated here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}
