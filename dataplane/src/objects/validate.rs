//! What can be told from one object alone, and from the machine it is meant for.
//!
//! Each check returns the first thing wrong as `field: value and why`, with the field as the contract names it. What
//! passes here can be compiled: no address is of the wrong family, no port is zero that has to be one, no list names
//! anything twice.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::{
    Body, Decap, DeliveryMode, Egress, Gateway, MacAddress, Peer, PeerVtep, Pod, Protocol, Resource, Service,
    ServicePort, StaticNat, Vtep,
};

use crate::kernel::Layout;

/// Identities, sets of them, and policies.
mod policy;
/// Gateway policies.
mod gatepolicy;

/// Largest VXLAN network identifier: 24 bits (RFC 7348 section 5).
const VNI_MAX: u32 = (1 << 24) - 1;
/// Longest object name in bytes: namespace, slash and name of Kubernetes have 63 + 1 + 253.
const NAME_BYTES_MAX: usize = 317;
/// Longest time of affinity, seconds: a day (S-016).
const AFFINITY_MAX_S: u32 = 86_400;

/// Most sources with an endpoint of their own in one port.
const SOURCE_BACKENDS_MAX: usize = 4096;

type Checked = Result<(), String>;

/// What a field is called; put into words only for one that is wrong.
#[derive(Clone, Copy)]
enum Field<'a> {
    Named(&'a str),
    Member(&'a Field<'a>, &'a str),
    Entry(&'a Field<'a>, usize),
}

impl<'a> Field<'a> {
    fn member(&'a self, name: &'a str) -> Field<'a> {
        Field::Member(self, name)
    }
}

impl<'a> From<&'a str> for Field<'a> {
    fn from(name: &'a str) -> Self {
        Field::Named(name)
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Named(name) => f.write_str(name),
            Field::Member(of, name) => write!(f, "{of}.{name}"),
            Field::Entry(of, number) => write!(f, "{of}[{number}]"),
        }
    }
}

/// Checks `resource` by itself.
///
/// # Errors
/// The field and what is wrong with it.
pub fn resource(resource: &Resource) -> Checked {
    ensure(!resource.name.is_empty(), "name", || "must not be empty".into())?;
    ensure(resource.name.len() <= NAME_BYTES_MAX, "name", || format!("is over {NAME_BYTES_MAX} bytes long"))?;
    ensure(!resource.name.chars().any(char::is_control), "name", || "has control characters".into())?;
    match &resource.body {
        Body::Gateway(gateway) => check_gateway(gateway),
        Body::Peer(peer) => check_peer(peer),
        Body::Service(service) => check_service(service),
        Body::Identity(identity) => policy::check_identity(&resource.name, identity),
        Body::IdentitySet(set) => policy::check_set(set),
        Body::Policy(object) => policy::check(object),
        Body::GatewayPolicy(policy) => gatepolicy::check(policy),
        Body::Pod(pod) => check_pod(pod),
        Body::Egress(egress) => check_egress(egress),
        Body::StaticNat(nat) => check_static_nat(nat),
    }
}

/// Checks `resource` against the machine, when that is known: an underlay address has to be here, a peer's pods and a whole
/// prefix of a Service's are not. One address of ours that the kernel has too is no mistake of the object: it is left to the
/// kernel for as long as that is so, and told (design 6).
///
/// # Errors
/// The field and what is wrong with it.
pub fn machine(resource: &Resource, machine: Option<&Layout>) -> Checked {
    let Some(machine) = machine else { return Ok(()) };
    match &resource.body {
        Body::Gateway(gateway) => {
            [("vtep_v4", &gateway.vtep_v4), ("vtep_v6", &gateway.vtep_v6)].into_iter().try_for_each(|(field, vtep)| {
                let Some(vtep) = vtep else { return Ok(()) };
                ensure(machine.owner(vtep.underlay).is_some(), Field::from(field).member("underlay"), || {
                    format!("{} is not an address of this machine", vtep.underlay)
                })
            })
        }
        Body::Service(service) => {
            each("prefixes", &service.prefixes, |field, prefix| {
                let own = machine.addresses.iter().find(|own| prefix.contains(&own.address));
                own.map_or(Ok(()), |own| Err(format!("{field}: {prefix} holds {}, this machine's own", own.address)))
            })?;
            // The kernel answers for these addresses, and goes on doing so at every other port.
            each("node_addresses", &service.node_addresses, |field, address| {
                ensure(machine.owner(*address).is_some(), field, || {
                    format!("{address} is not an address of this machine")
                })
            })
        }
        Body::Peer(peer) => [("v4", &peer.v4), ("v6", &peer.v6)].into_iter().try_for_each(|(field, vtep)| {
            let prefixes = vtep.as_ref().map_or(&[][..], |vtep| &vtep.pod_cidrs);
            each(Field::from(field).member("pod_cidrs"), prefixes, |field, prefix| {
                // Such a prefix would send what a connected network's hosts should get into that peer's tunnel.
                let own = machine.addresses.iter().find(|own| prefix.contains(&own.address));
                own.map_or(Ok(()), |own| Err(format!("{field}: {prefix} holds {}, this machine's own", own.address)))
            })
        }),
        Body::Pod(pod) => each("addresses", &pod.addresses, |field, address| match machine.owner(*address) {
            Some(link) => Err(format!("{field}: {address} is used by this machine's own kernel (interface {link})")),
            None => Ok(()),
        }),
        Body::Identity(_)
        | Body::IdentitySet(_)
        | Body::Policy(_)
        | Body::GatewayPolicy(_)
        | Body::Egress(_)
        | Body::StaticNat(_) => Ok(()),
    }
}

fn check_pod(pod: &Pod) -> Checked {
    let v4 = pod.addresses.iter().filter(|address| address.is_ipv4()).count();
    ensure(v4 < 2 && pod.addresses.len() - v4 < 2, "addresses", || "has two of one family".into())?;
    distinct("egress", &pod.egress)?;
    each("addresses", &pod.addresses, |field, address| check_address(field, *address))
}

fn check_egress(egress: &Egress) -> Checked {
    distinct("addresses", &egress.addresses)?;
    each("addresses", &egress.addresses, |field, address| check_address(field, *address))?;
    each("udp_timeouts", &egress.udp_timeouts, |field, timeout| {
        ensure(timeout.port != 0, field.member("port"), || "must not be 0".into())?;
        ensure((1..=86_400).contains(&timeout.idle_s), field.member("idle_s"), || {
            format!("{} is not 1 to 86400", timeout.idle_s)
        })
    })
}

fn check_static_nat(nat: &StaticNat) -> Checked {
    check_address("external".into(), nat.external)?;
    check_address("internal".into(), nat.internal)?;
    ensure(nat.external.is_ipv4() == nat.internal.is_ipv4(), "internal", || {
        format!("{} is not of the family of {}", nat.internal, nat.external)
    })?;
    let mut outside = HashSet::new();
    each("ports", &nat.ports, |field, port| {
        ensure(port.external != 0 && port.internal != 0, field, || "has port 0".into())?;
        ensure(outside.insert((port.protocol, port.external)), field, || {
            format!("{} {} is forwarded twice", port.protocol, port.external)
        })
    })
}

fn check_gateway(gateway: &Gateway) -> Checked {
    if let Some(vtep) = &gateway.vtep_v4 {
        check_vtep("vtep_v4".into(), vtep, false)?;
    }
    if let Some(vtep) = &gateway.vtep_v6 {
        check_vtep("vtep_v6".into(), vtep, true)?;
    }
    distinct("fullnat_sources", &gateway.fullnat_sources)?;
    distinct("pod_cidrs", &gateway.pod_cidrs)?;
    each("pod_cidrs", &gateway.pod_cidrs, check_prefix)?;
    let overlays: Vec<_> =
        [&gateway.vtep_v4, &gateway.vtep_v6].into_iter().flatten().map(|vtep| vtep.overlay).collect();
    each("fullnat_sources", &gateway.fullnat_sources, |field, address| {
        check_address(field, *address)?;
        ensure(!overlays.contains(address), field, || format!("{address} is the overlay address of a VTEP"))?;
        let mut own = gateway.pod_cidrs.iter().filter(|prefix| prefix.addr().is_ipv4() == address.is_ipv4()).peekable();
        // Workers send replies to where their routes say the address lives (V-024).
        ensure(own.peek().is_none() || own.any(|prefix| prefix.contains(address)), field, || {
            format!("{address} lies in none of the gateway's pod_cidrs")
        })
    })?;
    if let Some(decap) = &gateway.decap {
        check_decap(decap, gateway)?;
    }
    ensure(gateway.hash_key.is_empty() || hash_key(&gateway.hash_key).is_some(), "hash_key", || {
        "is not 16 bytes as 32 hexadecimal digits".into()
    })
}

fn check_decap(decap: &Decap, gateway: &Gateway) -> Checked {
    distinct("decap.addresses", &decap.addresses)?;
    ensure(!decap.addresses.is_empty(), "decap.addresses", || "is empty".into())?;
    distinct("decap.sources", &decap.sources)?;
    each("decap.sources", &decap.sources, |field, prefix| {
        ensure(prefix.prefix_len() > 0, field, || format!("{prefix} would take packets from anybody"))
    })?;
    each("decap.addresses", &decap.addresses, |field, address| {
        check_address(field, *address)?;
        let has_source = decap.sources.iter().any(|prefix| prefix.addr().is_ipv4() == address.is_ipv4());
        ensure(has_source, field, || format!("{address} has no source of its family in decap.sources"))
    })?;
    let vteps = [&gateway.vtep_v4, &gateway.vtep_v6];
    let is_overlay = |port: u16| vteps.into_iter().flatten().any(|vtep| vtep.port == port);
    ensure(decap.gue_port != Some(0), "decap.gue_port", || "must not be 0".into())?;
    ensure(!decap.gue_port.is_some_and(is_overlay), "decap.gue_port", || "is the port of the overlay".into())
}

/// The 16 bytes of a hash key in hexadecimal; `None` when `text` is anything else.
pub fn hash_key(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

fn check_vtep(field: Field<'_>, vtep: &Vtep, v6: bool) -> Checked {
    for (name, address) in [("underlay", vtep.underlay), ("overlay", vtep.overlay)] {
        let field = field.member(name);
        check_family(field, address, v6)?;
        check_address(field, address)?;
    }
    check_end_point(field, vtep.mac, vtep.vni, vtep.port)
}

fn check_peer(peer: &Peer) -> Checked {
    ensure(peer.v4.is_some() || peer.v6.is_some(), "v4", || "neither v4 nor v6 is given".into())?;
    for (field, vtep, v6) in [("v4", &peer.v4, false), ("v6", &peer.v6, true)] {
        if let Some(vtep) = vtep {
            check_peer_vtep(field.into(), vtep, v6)?;
        }
    }
    Ok(())
}

fn check_peer_vtep(field: Field<'_>, vtep: &PeerVtep, v6: bool) -> Checked {
    let underlay = field.member("underlay");
    check_family(underlay, vtep.underlay, v6)?;
    check_address(underlay, vtep.underlay)?;
    check_end_point(field, vtep.mac, vtep.vni, vtep.port)?;
    let prefixes = field.member("pod_cidrs");
    distinct(prefixes, &vtep.pod_cidrs)?;
    each(prefixes, &vtep.pod_cidrs, |field, prefix| {
        check_family(field, prefix.addr(), v6)?;
        check_prefix(field, prefix)
    })
}

fn check_end_point(field: Field<'_>, mac: MacAddress, vni: u32, port: u16) -> Checked {
    ensure(mac.0 != [0; 6], field.member("mac"), || "is all zero".into())?;
    // The group bit: IEEE 802-2014 section 8.2.2.
    ensure(mac.0[0] & 1 == 0, field.member("mac"), || format!("{mac} is a multicast address"))?;
    ensure(vni <= VNI_MAX, field.member("vni"), || format!("{vni} does not fit 24 bits"))?;
    ensure(port != 0, field.member("port"), || "must not be 0".into())
}

fn check_service(service: &Service) -> Checked {
    let mut places = HashSet::new();
    for (field, addresses) in whole_addresses(service).into_iter().chain([("node_addresses", &service.node_addresses)])
    {
        distinct(field, addresses)?;
        each(field, addresses, |field, address| {
            check_address(field, *address)?;
            ensure(places.insert(*address), field, || format!("{address} stands in another list too"))
        })?;
    }
    distinct("prefixes", &service.prefixes)?;
    each("prefixes", &service.prefixes, check_vips)?;
    let mut taken = HashSet::new();
    each("ports", &service.ports, |field, port| {
        check_port(field, port)?;
        ensure(taken.insert((port.port, port.protocol)), field, || {
            format!("{}/{} is listed twice", port.port, port.protocol)
        })?;
        each(field.member("backends"), &port.backends, |field, backend| {
            check_address(field.member("address"), backend.address)?;
            ensure(backend.port != 0 || port.port == 0, field.member("port"), || "must not be 0".into())?;
            // S-049
            ensure(backend.local_weight == 0 || !backend.node.is_empty(), field.member("local_weight"), || {
                "is not 0 and no node is named".into()
            })
        })?;
        check_source_backends(field.member("source_backends"), port)?;
        let mut known = HashSet::new();
        each(field.member("backends"), &port.backends, |field, backend| {
            ensure(known.insert((backend.address, backend.port)), field, || {
                format!("{} port {} is listed twice", backend.address, backend.port)
            })
        })
    })?;
    let mut node_ports = HashSet::new();
    each("ports", &service.ports, |field, port| {
        let Some(number) = port.node_port else { return Ok(()) };
        ensure(node_ports.insert((number, port.protocol)), field.member("node_port"), || {
            format!("{number}/{} is listed twice", port.protocol)
        })
    })
}

/// Addresses that are the Service's whole, by field.
fn whole_addresses(service: &Service) -> [(&'static str, &Vec<IpAddr>); 3] {
    [
        ("addresses", &service.addresses),
        ("external_addresses", &service.external_addresses),
        ("cluster_addresses", &service.cluster_addresses),
    ]
}

/// What one port says, its endpoints aside.
fn check_port(field: Field<'_>, port: &ServicePort) -> Checked {
    let node_port = field.member("node_port");
    ensure(port.node_port != Some(0), node_port, || "must not be 0".into())?;
    ensure(port.node_port.is_none() || port.port != 0, node_port, || "one port cannot stand for every port".into())?;
    let timeout = port.affinity_timeout_s;
    ensure(
        timeout.is_none_or(|timeout| (1..=AFFINITY_MAX_S).contains(&timeout)),
        field.member("affinity_timeout_s"),
        || format!("{} is not between 1 and {AFFINITY_MAX_S}", timeout.unwrap_or(0)),
    )?;
    let one_packet = field.member("one_packet");
    ensure(!port.one_packet || port.protocol == Protocol::Udp, one_packet, || "is for UDP only".into())?;
    ensure(!port.one_packet || port.mode != DeliveryMode::Fullnat, one_packet, || {
        "needs a mode that keeps the client's address: in fullnat each datagram would take a port that its answer needs"
            .into()
    })
}

fn check_source_backends(field: Field<'_>, port: &ServicePort) -> Checked {
    let mut known = HashSet::new();
    ensure(port.source_backends.len() <= SOURCE_BACKENDS_MAX, field, || {
        format!("has over {SOURCE_BACKENDS_MAX} entries")
    })?;
    each(field, &port.source_backends, |field, entry| {
        check_family(field.member("address"), entry.address, entry.sources.addr().is_ipv6())?;
        ensure(known.insert(entry.sources.trunc()), field, || format!("{} is listed twice", entry.sources))
    })
}

/// A prefix whose addresses can all be VIPs.
fn check_vips(field: Field<'_>, prefix: &IpNet) -> Checked {
    ensure(prefix.prefix_len() > 0, field, || format!("{prefix} would take all traffic"))?;
    // A range that cannot be anybody's is wrong as a whole and in part.
    for address in [prefix.network(), prefix.broadcast()] {
        check_address(field, address).map_err(|reason| format!("{reason} (of {prefix})"))?;
    }
    Ok(())
}

fn check_family(field: Field<'_>, address: IpAddr, v6: bool) -> Checked {
    ensure(address.is_ipv6() == v6, field, || format!("{address} is not IPv{}", if v6 { 6 } else { 4 }))
}

/// An address that one host in a routed network can have.
fn check_address(field: Field<'_>, address: IpAddr) -> Checked {
    let wrong = match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V4(v4) if v4.is_link_local() => "a link-local address",
        IpAddr::V4(v4) if v4.octets()[0] == 0 => "in 0.0.0.0/8, which is no host's (RFC 1122 section 3.2.1.3)",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4-mapped address; write it as IPv4",
        IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80 => "a link-local address",
        _ => return Ok(()),
    };
    Err(format!("{field}: {address} is {wrong}"))
}

fn check_prefix(field: Field<'_>, prefix: &IpNet) -> Checked {
    ensure(prefix.prefix_len() > 0, field, || format!("{prefix} would take all traffic"))?;
    let address = prefix.network();
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    ensure(!address.is_multicast() && !address.is_loopback() && !mapped, field, || format!("{prefix} cannot hold pods"))
}

fn distinct<'f, T: Eq + std::hash::Hash + std::fmt::Display>(field: impl Into<Field<'f>>, list: &[T]) -> Checked {
    let field = field.into();
    let mut seen = HashSet::new();
    each(field, list, |field, entry| ensure(seen.insert(entry), field, || format!("{entry} is listed twice")))
}

fn each<'a, 'f, T>(
    field: impl Into<Field<'f>>,
    list: &'a [T],
    mut check: impl FnMut(Field<'_>, &'a T) -> Checked,
) -> Checked {
    let field = field.into();
    list.iter().enumerate().try_for_each(|(number, entry)| check(Field::Entry(&field, number), entry))
}

fn ensure<'f>(holds: bool, field: impl Into<Field<'f>>, reason: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(format!("{}: {}", field.into(), reason())) }
}
