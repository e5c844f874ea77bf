//! An EndpointSlice: addresses of one family, their conditions, and port numbers that are already resolved (S-011).

use std::collections::BTreeSet;
use std::net::IpAddr;

use tidegate_api::resource::Protocol;

use super::Name;

/// One EndpointSlice.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: Name,
    /// Name of its Service in the same namespace; `None` when it belongs to none of ours (S-003, S-040).
    pub service: Option<String>,
    /// Ports with a name and a number (S-042).
    pub ports: Vec<SlicePort>,
    /// Endpoints, in the order of the object.
    pub endpoints: Vec<Endpoint>,
}

/// One port all endpoints of a slice offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name, the key to Service ports; may be empty.
    pub name: String,
    /// L4 protocol.
    pub protocol: Protocol,
    /// Port at the pod, host order, never 0.
    pub port: u16,
}

/// One endpoint: its first address and its conditions with defaults applied (S-041).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`.
    pub address: IpAddr,
    /// May receive new flows.
    pub ready: bool,
    /// Answers, whether or not it is terminating.
    pub serving: bool,
    /// Is going away.
    pub terminating: bool,
    /// Node it runs on, possibly empty.
    pub node: String,
    /// Pod it is, possibly empty.
    pub pod: String,
    /// `hints.forNodes`: nodes whose traffic it is meant for (S-045).
    pub hinted_nodes: BTreeSet<String>,
    /// `hints.forZones`: zones whose traffic it is meant for (S-045).
    pub hinted_zones: BTreeSet<String>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A slice in namespace `shop` with one port `http` and ready endpoints.
    pub(crate) fn slice(name: &str, service: &str, addresses: &[&str]) -> EndpointSlice {
        EndpointSlice {
            name: Name { namespace: "shop".into(), name: name.into() },
            service: Some(service.into()),
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints: addresses
                .iter()
                .map(|address| Endpoint {
                    address: address.parse().unwrap(),
                    ready: true,
                    serving: true,
                    terminating: false,
                    node: "w1".into(),
                    pod: format!("pod-{address}"),
                    hinted_nodes: BTreeSet::new(),
                    hinted_zones: BTreeSet::new(),
                })
                .collect(),
        }
    }
}
