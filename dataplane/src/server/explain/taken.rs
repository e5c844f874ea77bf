//! What the kernel has: packets that never come to a worker, and addresses of ours.
//!
//! The pinhole leaves an address that the kernel has to it (design 6), also where a Service is reached there or pods leave
//! by it; whose it is and which device has the address stands with objects and the machine. Refuses to know what the kernel
//! does with a packet.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tidegate_api::explain::{Explanation, Step, Verdict};
use tidegate_api::resource::{Body, Gateway, Kind, Resource, Service};

use super::lacks::{NAMED_MAX, lacks, own_end};
use crate::compile::mapped_ip;
use crate::compile::thread::{Handle, View};
use crate::explain::Story;
use crate::explain::evidence;
use crate::explain::pinhole::{self, Left, Passed};
use crate::stage::parse::Ingress;
use crate::table::local::LocalKind;
use crate::table::{DeviceId, Family};

/// What becomes of a frame that the pinhole passes to the kernel; `None`: a worker is to be asked.
///
/// # Errors
/// Who has not answered, for people.
pub fn by_kernel(
    view: &View,
    compiler: &Handle,
    device: DeviceId,
    frame: &[u8],
) -> Result<Option<Explanation>, String> {
    let tables = &view.tables;
    let mac = tables.devices.row(device).map(|row| row.mac).unwrap_or_default();
    let ingress = Ingress { device, mac };
    let mut story = Story::begin(tables, device, frame.len());
    let left = pinhole::left(tables, ingress, frame, |packet, l3| story.packet(packet, l3));
    let Some(left) = left else { return Ok(None) };
    let mut steps = story.steps;
    steps.extend(evidence::of_frame(tables, ingress, frame));
    let told = |steps, why| {
        Ok(Some(Explanation { worker: 0, generation: tables.generation, steps, verdict: Verdict::Kernel { why } }))
    };
    let passed = match left {
        Left::Ethertype(ethertype) => {
            return told(
                steps,
                format!("the pinhole takes IPv4, IPv6 and ARP alone; EtherType {ethertype:#06x} is neither"),
            );
        }
        Left::Malformed => {
            return told(steps, "the pinhole cannot read it: its headers end too early, or are none".to_owned());
        }
        Left::Passed(passed) => passed,
    };
    steps.extend(services(view, passed.address));
    steps.extend(externals(view, compiler, passed.address)?);
    let gateways = gateways(compiler)?;
    if sources_of(&gateways).any(|source| source == passed.address) {
        steps.extend(source(view, passed.address));
    }
    if is_own_end(&gateways, passed.address) {
        let family = if passed.address.is_ipv4() { Family::V4 } else { Family::V6 };
        steps.extend(own_end(view, &gateways, family));
    }
    told(steps, why(view, &passed))
}

/// Sources of `fullnat` that the kernel has, of the packet's family.
///
/// # Errors
/// Who has not answered, for people.
pub fn sources(view: &View, compiler: &Handle, steps: &[Step]) -> Result<Vec<Step>, String> {
    let is_v4 = steps.iter().find_map(|step| match step {
        Step::Packet { destination, .. } => Some(destination.is_ipv4()),
        _ => None,
    });
    let gateways = gateways(compiler)?;
    let of_family = sources_of(&gateways).filter(|source| Some(source.is_ipv4()) == is_v4);
    Ok(of_family.filter_map(|address| source(view, address)).collect())
}

fn gateways(compiler: &Handle) -> Result<Vec<Arc<Resource>>, String> {
    Ok(compiler.view(Some(Kind::Gateway)).map_err(|error| error.to_string())?.objects)
}

fn bodies(gateways: &[Arc<Resource>]) -> impl Iterator<Item = &Gateway> {
    gateways.iter().filter_map(|resource| match &resource.body {
        Body::Gateway(gateway) => Some(gateway),
        _ => None,
    })
}

fn sources_of(gateways: &[Arc<Resource>]) -> impl Iterator<Item = IpAddr> {
    bodies(gateways).flat_map(|gateway| gateway.fullnat_sources.iter().copied())
}

/// Whether tunnels of this gateway are to end at an address.
fn is_own_end(gateways: &[Arc<Resource>], address: IpAddr) -> bool {
    bodies(gateways)
        .any(|gateway| [&gateway.vtep_v4, &gateway.vtep_v6].into_iter().flatten().any(|vtep| vtep.underlay == address))
}

/// The kernel's own entry of an address, and its device.
fn holder(view: &View, address: IpAddr) -> Option<&(IpNet, String)> {
    view.addresses.iter().find(|(held, _)| held.addr() == address)
}

fn source(view: &View, address: IpAddr) -> Option<Step> {
    holder(view, address).map(|held| both(format!("fullnat source {address} (control.fullnatSources)"), held))
}

/// Services that are reached at an address which the kernel has.
fn services(view: &View, address: IpAddr) -> Vec<Step> {
    let Some(held) = holder(view, address) else { return Vec::new() };
    let has_it = |service: &Service| {
        service.addresses.contains(&address) || service.prefixes.iter().any(|prefix| prefix.contains(&address))
    };
    let those =
        view.objects.iter().filter(|resource| matches!(&resource.body, Body::Service(service) if has_it(service)));
    those.map(|resource| both(format!("address {address} of Service {}", resource.name), held)).collect()
}

/// EgressPolicies and StaticNats by whose address, which the kernel has, pods leave.
fn externals(view: &View, compiler: &Handle, address: IpAddr) -> Result<Vec<Step>, String> {
    let Some(held) = holder(view, address) else { return Ok(Vec::new()) };
    let mut steps = Vec::new();
    for kind in [Kind::Egress, Kind::StaticNat] {
        for resource in &compiler.view(Some(kind)).map_err(|error| error.to_string())?.objects {
            let name = &resource.name;
            let whose = match &resource.body {
                Body::Egress(egress) if egress.addresses.contains(&address) => format!("EgressPolicy {name}"),
                Body::StaticNat(nat) if nat.external == address => format!("StaticNat {name}"),
                _ => continue,
            };
            steps.push(both(format!("address {address} of {whose}"), held));
        }
    }
    Ok(steps)
}

/// What stands against the addresses of an EgressPolicy that has none of the pod's family here.
///
/// # Errors
/// Who has not answered, for people.
pub fn egress(view: &View, compiler: &Handle, steps: &[Step]) -> Result<Vec<Step>, String> {
    let asked = steps.iter().find_map(|step| match step {
        Step::Egress { pod, policy: Some(policy), address: None, .. } => Some((pod.is_ipv4(), policy)),
        _ => None,
    });
    let Some((is_v4, policy)) = asked else { return Ok(Vec::new()) };
    let objects = |kind| compiler.view(Some(kind)).map(|view| view.objects).map_err(|error| error.to_string());
    let policies = objects(Kind::Egress)?;
    let found = policies.iter().find_map(|resource| match &resource.body {
        Body::Egress(egress) if resource.name == *policy => Some(egress),
        _ => None,
    });
    let Some(egress) = found else { return Ok(Vec::new()) };
    let listed: Vec<IpAddr> = egress.addresses.iter().copied().filter(|address| address.is_ipv4() == is_v4).collect();
    if listed.is_empty() {
        let family = if is_v4 { "IPv4" } else { "IPv6" };
        return Ok(vec![lacks(format!("{family} addresses of EgressPolicy {policy}"), "it has none".into(), "one")]);
    }
    let nats = objects(Kind::StaticNat)?;
    let against = |address: &IpAddr| {
        let what = format!("address {address} of EgressPolicy {policy}");
        if let Some(held) = holder(view, *address) {
            return Some(both(what, held));
        }
        let is_whole = |resource: &&Arc<Resource>| matches!(&resource.body, Body::StaticNat(nat) if nat.external == *address && nat.ports.is_empty());
        let roles = view.tables.locals.kind(&mapped_ip(*address));
        let whose = match nats.iter().find(is_whole) {
            Some(nat) => format!("it is a pod's own by StaticNat {}", nat.name),
            None if roles.intersects(LocalKind::VIP | LocalKind::SERVICE) && !roles.contains(LocalKind::EXTERNAL) => {
                "a Service is reached there".to_owned()
            }
            None => return None,
        };
        Some(lacks(what, whose, "an address that is the policy's"))
    };
    Ok(listed.iter().filter_map(against).take(NAMED_MAX).collect())
}

fn both(what: String, (held, device): &(IpNet, String)) -> Step {
    let found = format!("also an address of this machine's kernel, on {device}, and left to it");
    lacks(what, found, format!("an address that is Tidegate's alone (ip address del {held} dev {device})"))
}

fn why(view: &View, Passed { address, sought, entries }: &Passed) -> String {
    let who = match holder(view, *address) {
        Some((_, device)) if entries.is_empty() => format!("{address} is this machine's own, on {device}"),
        Some((_, device)) => {
            format!("{address} is this machine's own, on {device}, and of it Tidegate has {} alone", entries.join(", "))
        }
        None if address.is_multicast() => format!("{address} is a group"),
        None => format!(
            "{address} is no address of Tidegate's and none of this machine's: what the kernel does with it tells ip route get \
             {address}"
        ),
    };
    format!("the pinhole has no entry for {sought}; {who}")
}
