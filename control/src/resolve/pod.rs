//! A Pod → whose an overlay address is, for those Pods that something is different for.

use std::net::IpAddr;

use tidegate_api::resource::{self, Body, Resource};

use crate::model::pod::Pod;

/// The resource of a Pod that has `identity` for network policies and leaves by `egress`; none for a Pod that nothing
/// speaks of, unless it `is_known` all the same: a static translation leads to it, or all Pods are to be known. `is_its_own`
/// says whether an address of the Pod is no other Pod's too, as it may be while one goes and another comes.
pub fn resolve(
    pod: &Pod,
    identity: u32,
    egress: Vec<String>,
    is_known: bool,
    is_its_own: impl Fn(IpAddr) -> bool,
) -> Option<Resource> {
    if !pod.owns_addresses() || (!is_known && identity == 0 && egress.is_empty()) {
        return None;
    }
    let addresses: Vec<IpAddr> = pod.addresses.iter().copied().filter(|address| is_its_own(*address)).collect();
    let body = resource::Pod { addresses, node: pod.node.clone(), identity, egress };
    (!body.addresses.is_empty()).then(|| super::resource(pod.name.to_string(), Body::Pod(body)))
}
