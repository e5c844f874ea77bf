//! Clients that are sent to an endpoint of their own.
//!
//! Owns what becomes of the annotation `source-backends`: pods by name are found among a port's endpoints, and what names
//! none that takes new connections is told, since its clients are then served by any. Refuses to choose for a client: that
//! is the dataplane's.

use tidegate_api::resource::{Backend, DeliveryMode, ServicePort as Resolved, SourceBackend};

use super::note::Note;
use super::service::{Delivery, EVERY_PORT};
use crate::model::service::{EndpointName, Service, Wishes};
use crate::watch::annotation;

/// Entries without an endpoint told one by one.
const LACKS_TOLD_MAX: usize = 5;

/// The entries of one port whose endpoints are there.
pub fn entries(wishes: &Wishes, backends: &[Backend]) -> Vec<SourceBackend> {
    let entry = |(sources, whose): &(ipnet::IpNet, EndpointName)| {
        let of_family = backends.iter().filter(|backend| backend.address.is_ipv4() == sources.addr().is_ipv4());
        let backend = of_family.clone().find(|backend| is(backend, whose))?;
        Some(SourceBackend { sources: *sources, address: backend.address })
    };
    wishes.source_backends.iter().filter_map(entry).collect()
}

/// The condition of a Service some of whose sources have no endpoint of their own.
pub fn note(service: &Service, delivery: &Delivery, ports: &[Resolved]) -> Option<Note> {
    let entries = &service.wishes.source_backends;
    if entries.is_empty() || ports.is_empty() {
        return None;
    }
    let told = |reason, message| Some(Note { kind: "SourceBackendsHonoured", reason, message });
    if delivery.mode == DeliveryMode::NodeDsr {
        let message = format!(
            "{}: in node-dsr the node picks the pod; delivery mode fullnat sends sources to an endpoint of their own",
            annotation::SOURCE_BACKENDS
        );
        return told("OnlyInFullnat", message);
    }
    let mut lacks = Vec::new();
    for (sources, whose) in entries {
        let v4 = sources.addr().is_ipv4();
        let takes = |backend: &Backend| {
            backend.address.is_ipv4() == v4 && is(backend, whose) && backend.weight.max(backend.local_weight) > 0
        };
        let without = ports.iter().filter(|port| !port.backends.iter().any(takes));
        lacks.extend(without.map(|port| format!("{sources}={whose} at {}", at(port))));
    }
    let more = lacks.len().saturating_sub(LACKS_TOLD_MAX);
    if lacks.is_empty() {
        return None;
    }
    lacks.truncate(LACKS_TOLD_MAX);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let message = format!(
        "no such endpoint takes new connections, so these clients are served by any: {}{more}",
        lacks.join("; ")
    );
    told("NoSuchEndpoint", message)
}

fn is(backend: &Backend, whose: &EndpointName) -> bool {
    match whose {
        EndpointName::Address(address) => backend.address == *address,
        EndpointName::Pod(name) => !name.is_empty() && backend.pod == *name,
    }
}

fn at(port: &Resolved) -> String {
    match port.name.as_str() {
        EVERY_PORT => format!("every port/{}", port.protocol),
        _ => format!("port {}/{}", port.port, port.protocol),
    }
}
