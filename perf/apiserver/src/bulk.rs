//! Thousands of Services with their endpoints at once, for the scale bench.
//!
//! Owns the making of objects as text, without a value in between: 50,000 Services with 500,000 endpoints take about as long as
//! copying them. They look like what a cluster has: defaults, addresses, labels, a slice per Service and family. Refuses to
//! check: the objects are right because this file makes them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ApiServer;
use crate::hand::make_namespace;
use crate::object::{Key, Object};

/// What to make.
#[derive(Clone, Debug)]
pub struct Bulk {
    /// Namespace of all of it.
    pub namespace: String,
    /// How many Services, named `svc-0` and on.
    pub services: u32,
    /// How many endpoints each has.
    pub endpoints: u32,
    /// Number of the first Service.
    pub first: u32,
    /// Whether Services and slices are IPv6.
    pub v6: bool,
    /// `loadBalancerClass` of the Services; empty for none.
    pub class: String,
    /// How many nodes the endpoints are spread over by turns, `node-0` and on.
    pub nodes: u32,
    /// Whether the Services have addresses of a load balancer in their status already.
    pub with_status: bool,
}

impl Default for Bulk {
    fn default() -> Self {
        Bulk {
            namespace: "scale".to_owned(),
            services: 50_000,
            endpoints: 10,
            first: 0,
            v6: false,
            class: String::new(),
            nodes: 100,
            with_status: true,
        }
    }
}

impl Bulk {
    /// Address of the load balancer that Service `number` has: 172.16.0.0/12 or fd00:2::/64 and on.
    pub fn address(&self, number: u32) -> IpAddr {
        if self.v6 { v6(0xfd00_0002, number) } else { IpAddr::V4(Ipv4Addr::from(0xac10_0000 + number)) }
    }

    /// Address of endpoint `index` of Service `number`, in the pod CIDR of its node.
    pub fn endpoint(&self, number: u32, index: u32) -> IpAddr {
        let (node, at) = (self.node(number, index), (number * self.endpoints + index) / self.nodes.max(1));
        match self.v6 {
            true => IpAddr::V6(Ipv6Addr::from(self.pod_block_v6(node) | u128::from(at))),
            false => IpAddr::V4(Ipv4Addr::from(self.pod_block_v4(node) + at)),
        }
    }

    /// What pods of node `node` have addresses of: a part of 10.128.0.0/9, or a /64 of fd00:1::/32.
    pub fn pod_cidr(&self, node: u32) -> String {
        match self.v6 {
            true => format!("{}/64", Ipv6Addr::from(self.pod_block_v6(node))),
            false => format!("{}/{}", Ipv4Addr::from(self.pod_block_v4(node)), 32 - self.pod_bits_v4()),
        }
    }

    fn node(&self, number: u32, index: u32) -> u32 {
        (number * self.endpoints + index) % self.nodes.max(1)
    }

    fn pod_block_v6(&self, node: u32) -> u128 {
        0xfd00_0001 << 96 | u128::from(node) << 64
    }

    fn pod_block_v4(&self, node: u32) -> u32 {
        0x0a80_0000 + (node << self.pod_bits_v4())
    }

    /// Bits that tell the pods of one node from each other.
    fn pod_bits_v4(&self) -> u32 {
        23_u32.saturating_sub(self.nodes.max(1).next_power_of_two().trailing_zeros())
    }

    /// From the end of the ranges, which the server gives out from the beginning; beyond them when they are full.
    fn cluster_ip(&self, number: u32) -> IpAddr {
        let low = 0xffff_u32.saturating_sub(number);
        let full = number > 0xffff;
        match (self.v6, full) {
            (false, false) => IpAddr::V4(Ipv4Addr::from(0x0a60_0000 + low)),
            (false, true) => IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + number)),
            (true, false) => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::try_from(low).unwrap_or(0))),
            (true, true) => v6(0xfd00_0096, number),
        }
    }

    fn metadata(&self, name: &str, number: u32, revision: u64, more: &str) -> String {
        format!(
            "{{\"name\":\"{name}\",\"namespace\":\"{}\",\"uid\":\"{:08x}-0000-4000-8000-{revision:012x}\",\"creationTimestamp\":\"2026-01-01T00:00:00Z\",\
             \"resourceVersion\":\"{revision}\"{more}}}",
            self.namespace, number
        )
    }

    fn service(&self, number: u32, revision: u64) -> (String, String) {
        let labels = format!(",\"labels\":{{\"app\":\"app-{number}\"}}");
        let family = if self.v6 { "IPv6" } else { "IPv4" };
        let class =
            if self.class.is_empty() { String::new() } else { format!(",\"loadBalancerClass\":\"{}\"", self.class) };
        let ip = self.cluster_ip(number);
        let ingress = if self.with_status {
            format!("\"ingress\":[{{\"ip\":\"{}\",\"ipMode\":\"VIP\"}}]", self.address(number))
        } else {
            String::new()
        };
        let rest = format!(
            ",\"spec\":{{\"type\":\"LoadBalancer\"{class},\"allocateLoadBalancerNodePorts\":false,\"clusterIP\":\"{ip}\",\"clusterIPs\":[\"{ip}\"],\
             \"ipFamilies\":[\"{family}\"],\"ipFamilyPolicy\":\"SingleStack\",\"externalTrafficPolicy\":\"Cluster\",\"internalTrafficPolicy\":\"Cluster\",\
             \"sessionAffinity\":\"None\",\"selector\":{{\"app\":\"app-{number}\"}},\
             \"ports\":[{{\"name\":\"http\",\"protocol\":\"TCP\",\"port\":80,\"targetPort\":8080}}]}},\"status\":{{\"loadBalancer\":{{{ingress}}}}}"
        );
        (self.metadata(&format!("svc-{number}"), number, revision, &labels), rest)
    }

    fn slice(&self, number: u32, revision: u64) -> (String, String) {
        let more = format!(
            ",\"generation\":1,\"labels\":{{\"kubernetes.io/service-name\":\"svc-{number}\",\
             \"endpointslice.kubernetes.io/managed-by\":\"endpointslice-controller.k8s.io\"}}"
        );
        let family = if self.v6 { "IPv6" } else { "IPv4" };
        let mut rest = format!(
            ",\"addressType\":\"{family}\",\"ports\":[{{\"name\":\"http\",\"protocol\":\"TCP\",\"port\":8080}}],\"endpoints\":["
        );
        for index in 0..self.endpoints {
            let comma = if index == 0 { "" } else { "," };
            let (address, node) = (self.endpoint(number, index), self.node(number, index));
            // Writing into a String cannot fail.
            let _ = write!(
                rest,
                "{comma}{{\"addresses\":[\"{address}\"],\"conditions\":{{\"ready\":true,\"serving\":true,\"terminating\":false}},\"nodeName\":\"node-{node}\",\
                 \"targetRef\":{{\"kind\":\"Pod\",\"namespace\":\"{}\",\"name\":\"app-{number}-{index}\"}}}}",
                self.namespace
            );
        }
        rest.push(']');
        (self.metadata(&format!("svc-{number}-0"), number, revision, &more), rest)
    }
}

fn v6(prefix: u32, number: u32) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(u128::from(prefix) << 96 | u128::from(number)))
}

impl ApiServer {
    /// Makes what `bulk` says.
    ///
    /// # Panics
    /// Not: both kinds are built in.
    pub fn create_bulk(&self, bulk: &Bulk) {
        let mut store = self.shared.store();
        // A namespace that cannot be made is there already.
        let _ = make_namespace(&mut store, &bulk.namespace);
        let kinds = (store.kind("", "v1", "services"), store.kind("discovery.k8s.io", "v1", "endpointslices"));
        let (Some(services), Some(slices)) = kinds else { return };
        for number in bulk.first..bulk.first + bulk.services {
            store.put_with(&services, |revision| {
                let (metadata, rest) = bulk.service(number, revision);
                let labels = BTreeMap::from([("app".to_owned(), format!("app-{number}"))]);
                Object::assembled(
                    &services,
                    Key::new(&bulk.namespace, &format!("svc-{number}")),
                    revision,
                    labels,
                    &metadata,
                    &rest,
                )
            });
            store.put_with(&slices, |revision| {
                let (metadata, rest) = bulk.slice(number, revision);
                let text = str::to_owned;
                let labels = BTreeMap::from([
                    (text("kubernetes.io/service-name"), format!("svc-{number}")),
                    (text("endpointslice.kubernetes.io/managed-by"), text("endpointslice-controller.k8s.io")),
                ]);
                Object::assembled(
                    &slices,
                    Key::new(&bulk.namespace, &format!("svc-{number}-0")),
                    revision,
                    labels,
                    &metadata,
                    &rest,
                )
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn endpoints_are_many_and_in_the_pod_cidr_of_their_node() {
        for (v6, nodes) in [(false, 100), (true, 100), (false, 7), (true, 7), (false, 1), (true, 1)] {
            let bulk = Bulk { services: 5000, first: 3000, v6, nodes, ..Bulk::default() };
            let mut seen = HashSet::new();
            for number in bulk.first..bulk.first + bulk.services {
                for index in 0..bulk.endpoints {
                    let (address, node) = (bulk.endpoint(number, index), bulk.node(number, index));
                    assert!(seen.insert(address), "{address} twice");
                    let cidr = bulk.pod_cidr(node);
                    let (base, length) = cidr.split_once('/').unwrap();
                    let (base, length): (IpAddr, u32) = (base.parse().unwrap(), length.parse().unwrap());
                    let same = match (base, address) {
                        (IpAddr::V4(base), IpAddr::V4(at)) => (base.to_bits() ^ at.to_bits()) >> (32 - length) == 0,
                        (IpAddr::V6(base), IpAddr::V6(at)) => (base.to_bits() ^ at.to_bits()) >> (128 - length) == 0,
                        _ => false,
                    };
                    assert!(same, "{address} of node {node} is not in {cidr}");
                }
            }
        }
    }
}
