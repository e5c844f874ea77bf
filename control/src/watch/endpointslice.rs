//! An EndpointSlice read from its manifest (S-040 … S-042).

use k8s_openapi::api::discovery::v1 as api;
use kube::ResourceExt;

use super::service::LEFT_TO_OTHERS;
use super::{Dialect, Invalid, address, port, protocol};
use crate::model::Name;
use crate::model::endpointslice::{Endpoint, EndpointSlice, SlicePort};

/// Label that names the Service of a slice (S-040).
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Reads one EndpointSlice.
///
/// # Errors
/// When a field cannot be worked with.
pub(crate) fn read(name: Name, object: &api::EndpointSlice, dialect: Dialect) -> Result<EndpointSlice, Invalid> {
    let left_to_others = LEFT_TO_OTHERS.iter().any(|label| object.labels().contains_key(*label));
    let service = object.labels().get(SERVICE_NAME_LABEL).filter(|service| !service.is_empty() && !left_to_others);
    let mut slice = EndpointSlice { name, service: service.cloned(), ports: Vec::new(), endpoints: Vec::new() };
    let v4 = match object.address_type.as_str() {
        "IPv4" => true,
        "IPv6" => false,
        "FQDN" => return Ok(slice), // S-042: names are nobody's endpoints here.
        other => return Err(Invalid::new("addressType", format!("{other:?} is not IPv4, IPv6 or FQDN"))),
    };
    for (index, entry) in object.ports.iter().flatten().enumerate() {
        // S-042: a port without name or number is ignored. An API server never stores an absent name: its default is "".
        let name = match (&entry.name, dialect) {
            (Some(name), _) => name.clone(),
            (None, Dialect::Files) => String::new(),
            (None, Dialect::Cluster) => continue,
        };
        let (Some(number), protocol) = (
            entry.port.filter(|port| *port != 0),
            protocol(entry.protocol.as_deref(), format!("ports[{index}].protocol"))?,
        ) else {
            continue;
        };
        slice.ports.push(SlicePort { name, protocol, port: port(number, format!("ports[{index}].port"))? });
    }
    for (index, entry) in object.endpoints.iter().flatten().enumerate() {
        slice.endpoints.push(endpoint(entry, index, v4)?);
    }
    Ok(slice)
}

fn endpoint(entry: &api::Endpoint, index: usize, v4: bool) -> Result<Endpoint, Invalid> {
    let field = format!("endpoints[{index}].addresses[0]");
    let text = entry.addresses.first().ok_or_else(|| Invalid::new(&field, "an endpoint needs an address"))?;
    let address = address(text, &field)?;
    if address.is_ipv4() != v4 {
        let family = if v4 { "IPv4" } else { "IPv6" };
        return Err(Invalid::new(field, format!("{address} is not of the slice's addressType {family}")));
    }
    let conditions = entry.conditions.as_ref();
    let hints = entry.hints.as_ref();
    let pod = entry.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    Ok(Endpoint {
        address,
        // S-041: what is not said.
        ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
        serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
        terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        node: entry.node_name.clone().unwrap_or_default(),
        pod: pod.and_then(|target| target.name.clone()).unwrap_or_default(),
        hinted_nodes: hints.iter().flat_map(|hints| hints.for_nodes.iter().flatten()).map(|n| n.name.clone()).collect(),
        hinted_zones: hints.iter().flat_map(|hints| hints.for_zones.iter().flatten()).map(|z| z.name.clone()).collect(),
    })
}
