//! A Pod → whose an overlay address is, for those Pods that something is different for.

use std::net::IpAddr;

use tidegate_api::resource::{self, Body, Resource};

use crate::model::Name;
use crate::model::pod::{Pod, Pods};
use crate::problem::{Problem, Severity};
use crate::source::{ObjectKey, ObjectKind};

/// Addresses told one by one; of the others only the number is told.
const CONTESTED_TOLD_MAX: usize = 100;

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

/// What is to be told of addresses that several Pods say they have: to policies and for egress only one of them can
/// have it.
pub fn contested(pods: &Pods) -> Vec<Problem> {
    let contested = pods.contested();
    let more = contested.len().saturating_sub(CONTESTED_TOLD_MAX);
    let one = |(address, claimants): (IpAddr, Vec<&Name>)| {
        let (first, second) = (claimants.first()?, claimants.get(1)?);
        let others = match claimants.len() - 2 {
            0 => String::new(),
            others => format!(", as do {others} more"),
        };
        let message = format!(
            "says that its address is {address}, as does Pod {first}, which is the newest and has it{others}: to policies and \
             for egress {second} is without it"
        );
        let key = ObjectKey { kind: ObjectKind::Pod, namespace: second.namespace.clone(), name: second.name.clone() };
        Some(Problem::new(Severity::Warning, "AddressOfTwoPods", message).about(key))
    };
    let mut problems: Vec<Problem> = contested.take(CONTESTED_TOLD_MAX).filter_map(one).collect();
    if more > 0 {
        let message = format!("{more} more addresses are those of several Pods");
        problems.push(Problem::new(Severity::Warning, "AddressOfTwoPods", message));
    }
    problems
}
