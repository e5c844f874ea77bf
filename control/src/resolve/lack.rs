//! Why new connections to a port of a Service find no endpoint.
//!
//! Owns the search for what stands between a port and its endpoints, in the order in which they are joined: slices by
//! their label (S-040), ports by name and protocol (S-010), endpoints by family and condition (S-043, S-121). Looks only
//! where nothing was chosen. Refuses to look at other Services: what belongs to whom is the business of the model.

use std::collections::BTreeSet;

use tidegate_api::resource::{Protocol, ServicePort as Resolved};

use super::frontend::Frontends;
use super::note::Note;
use super::service::EVERY_PORT;
use crate::model::endpointslice::EndpointSlice;
use crate::model::service::Service;
use crate::watch::endpointslice::SERVICE_NAME_LABEL;

/// Ports told one by one.
const PORTS_TOLD_MAX: usize = 5;
/// Ports of slices named as what there is instead.
const OFFERS_TOLD_MAX: usize = 5;

/// What is missing, the first in order of the join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lack {
    /// No slice has a port of that name and protocol.
    Port,
    /// There is no endpoint of the family.
    Endpoint,
    /// None of so many is ready.
    Ready(usize),
}

/// The condition of a Service of which some port has no endpoint, in a family in which it is served.
pub fn note(service: &Service, frontends: &Frontends, ports: &[Resolved], slices: &[&EndpointSlice]) -> Option<Note> {
    let families: Vec<bool> = [true, false].into_iter().filter(|v4| frontends.has_family(*v4)).collect();
    if families.is_empty() || ports.is_empty() {
        return None;
    }
    let told = |reason, message| Some(Note { kind: "EndpointsFound", reason, message });
    if slices.is_empty() {
        let message = format!(
            "no EndpointSlice in namespace {} has the label {SERVICE_NAME_LABEL}: {}; endpoints are found by it, selectors \
             are not looked at",
            service.name.namespace, service.name.name
        );
        return told("NoSlice", message);
    }
    let mut lacks = Vec::new();
    for port in ports {
        let names = names(service, port);
        let of = |v4: &bool| lack(port, &names, slices, *v4).map(|lack| (*v4, lack));
        let found: Vec<(bool, Lack)> = families.iter().filter_map(of).collect();
        match found.as_slice() {
            [] => {}
            [(_, Lack::Port), ..] => lacks.push((Lack::Port, words(Lack::Port, port, &names, slices, ""))),
            [(_, Lack::Endpoint), (_, Lack::Endpoint)] => {
                lacks.push((Lack::Endpoint, words(Lack::Endpoint, port, &names, slices, "")));
            }
            [(_, Lack::Ready(v4)), (_, Lack::Ready(v6))] => {
                let both = Lack::Ready(v4 + v6);
                lacks.push((both, words(both, port, &names, slices, "")));
            }
            each => lacks.extend(each.iter().map(|(v4, lack)| {
                let family = if *v4 { "IPv4 " } else { "IPv6 " };
                (*lack, words(*lack, port, &names, slices, family))
            })),
        }
    }
    let reason = match lacks.iter().map(|(lack, _)| *lack).min()? {
        Lack::Port => "NoMatchingPort",
        Lack::Endpoint | Lack::Ready(_) => "NoReadyEndpoint",
    };
    let mut message: Vec<String> = lacks.iter().take(PORTS_TOLD_MAX).map(|(_, words)| words.clone()).collect();
    if lacks.len() > PORTS_TOLD_MAX {
        message.push(format!("and {} more", lacks.len() - PORTS_TOLD_MAX));
    }
    told(reason, message.join("; "))
}

/// Names of the ports of slices that would do.
fn names<'a>(service: &'a Service, port: &'a Resolved) -> Vec<&'a str> {
    if port.name != EVERY_PORT {
        return vec![&port.name];
    }
    let same = service.ports.iter().filter(|other| other.protocol == port.protocol);
    same.map(|other| other.name.as_str()).collect()
}

fn lack(port: &Resolved, names: &[&str], slices: &[&EndpointSlice], v4: bool) -> Option<Lack> {
    let chosen = port.backends.iter().filter(|backend| backend.address.is_ipv4() == v4);
    if chosen.clone().any(|backend| backend.weight > 0 || backend.local_weight > 0) {
        return None;
    }
    let mut offered = false;
    let mut endpoints = 0;
    for slice in slices {
        if !slice.ports.iter().any(|offer| offer.protocol == port.protocol && names.contains(&offer.name.as_str())) {
            continue;
        }
        offered = true;
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.address.is_ipv4() == v4) {
            if endpoint.ready || (endpoint.serving && endpoint.terminating) {
                return None; // found, but not wanted: its weight is 0
            }
            endpoints += 1;
        }
    }
    Some(match (offered, endpoints) {
        (false, _) => Lack::Port,
        (true, 0) => Lack::Endpoint,
        (true, some) => Lack::Ready(some),
    })
}

fn words(lack: Lack, port: &Resolved, names: &[&str], slices: &[&EndpointSlice], family: &str) -> String {
    let at = match (port.name.as_str(), port.port) {
        (EVERY_PORT, _) => format!("every port/{}", port.protocol),
        ("", number) => format!("port {number}/{}", port.protocol),
        (name, number) => format!("port {name} ({number}/{})", port.protocol),
    };
    match lack {
        Lack::Port => {
            let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
            let (named, instead) = (names.join(" or "), offers(slices));
            format!("{at}: no EndpointSlice of the Service has a {} port named {named}; {instead}", port.protocol)
        }
        Lack::Endpoint => format!("{at}: the EndpointSlices of the Service list no {family}endpoint"),
        Lack::Ready(1) => format!("{at}: its only {family}endpoint is not ready"),
        Lack::Ready(some) => format!("{at}: none of its {some} {family}endpoints is ready"),
    }
}

/// What the slices have instead.
fn offers(slices: &[&EndpointSlice]) -> String {
    let offers = slices.iter().flat_map(|slice| &slice.ports);
    let offers: BTreeSet<(&str, Protocol, u16)> =
        offers.map(|offer| (offer.name.as_str(), offer.protocol, offer.port)).collect();
    if offers.is_empty() {
        return "they have no port with a number".into();
    }
    let listed =
        offers.iter().take(OFFERS_TOLD_MAX).map(|(name, protocol, port)| format!("{name:?} {port}/{protocol}"));
    let mut listed: Vec<String> = listed.collect();
    if offers.len() > OFFERS_TOLD_MAX {
        listed.push(format!("{} more", offers.len() - OFFERS_TOLD_MAX));
    }
    format!("there are: {}", listed.join(", "))
}
