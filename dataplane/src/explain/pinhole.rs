//! What the pinhole leaves to the kernel, told from the tables that it is made from.
//!
//! Owns the rules of `io/bpf/pinhole.bpf.c` in the words of tables, for packets that parse can read: a worker that is asked
//! about a packet which never comes to it would call it not ours, and that sounds like a loss. Refuses to know what the
//! kernel does with it.

use std::net::IpAddr;

use crate::compile::local::is_traffic;
use crate::compile::{address_of, mapped_ip};
use crate::family::Family as _;
use crate::packet::{Domain, Key, Kind, Packet};
use crate::pipeline;
use crate::table::Tables;
use crate::table::local::LocalKind;
use crate::table::service::FrontendKind;
use crate::wire::packet::{Fragment, L3};
use crate::wire::{Family as Version, arp, ethernet, ipv4, ipv6, ndp, protocol};

/// Entries of an address that are named; of more, how many there are.
const NAMED_MAX: usize = 4;

/// A packet for which the pinhole has no entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The address that it is to, or asks for.
    pub address: IpAddr,
    /// The entry that there would have to be: `TCP port 22 of 192.0.2.1`.
    pub sought: String,
    /// Entries that the address does have.
    pub entries: Vec<String>,
}

/// What the pinhole would need to hand a packet to a worker; `None`: it does. `frame` is the packet as it comes in, `packet` and
/// `l3` what parse made of it.
pub fn passed(tables: &Tables, frame: &[u8], packet: &Packet, l3: &[u8]) -> Option<Passed> {
    // Out of a tunnel that ends here: the pinhole has seen its end.
    let link = ethernet::parse_ethernet(frame).ok()?;
    if packet.domain == Domain::Overlay || packet.l3_offset != link.l3_offset {
        return None;
    }
    if packet.kind == Kind::Arp {
        let asked = arp::Repr::parse(l3).ok()?;
        let target = IpAddr::from(asked.target);
        let is_request = asked.operation == arp::Operation::Request;
        let what = if is_request { "ARP requests for" } else { "ARP replies about" };
        let is_ours = is_request && kind(tables, target).contains(LocalKind::ANNOUNCED);
        return (!is_ours).then(|| told(tables, target, format!("{what} {target}")));
    }
    let at = &packet.l3;
    let destination = match at.family {
        Version::V4 => ipv4::addresses(l3).1.ip(),
        Version::V6 => ipv6::addresses(l3).1.ip(),
    };
    let roles = kind(tables, destination);
    if is_traffic(roles) || ends(tables, at, destination) {
        return None;
    }
    if at.family == Version::V6 && at.is_icmp() && at.icmp_type == ndp::SOLICITATION {
        let target = IpAddr::from(ndp::parse_solicitation(l3, at).ok()?.target);
        let is_ours = kind(tables, target).contains(LocalKind::ANNOUNCED);
        return (!is_ours).then(|| told(tables, target, format!("neighbour solicitations for {target}")));
    }
    let name = |number: u8| match number {
        protocol::TCP => "TCP".to_owned(),
        protocol::UDP => "UDP".to_owned(),
        protocol::SCTP => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    };
    let port = match at.fragment {
        Fragment::Later { .. } => None,
        _ if at.is_icmp_error() => match pipeline::classify(packet, l3) {
            Key::V4(tuple) => Some((tuple.protocol, tuple.destination_port)),
            Key::V6(tuple) => Some((tuple.protocol, tuple.destination_port)),
            Key::None => None,
        },
        _ => matches!(at.protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
            .then_some((at.protocol, at.destination_port)),
    };
    match port {
        Some((protocol, port)) if is_endpoint(tables, destination, protocol, port) => None,
        Some((protocol, port)) => {
            Some(told(tables, destination, format!("{destination}, nor for its {} port {port}", name(protocol))))
        }
        None => Some(told(tables, destination, destination.to_string())),
    }
}

fn kind(tables: &Tables, address: IpAddr) -> LocalKind {
    tables.locals.kind(&mapped_ip(address))
}

/// Whether a tunnel without ports ends at an address.
fn ends(tables: &Tables, at: &L3, address: IpAddr) -> bool {
    let is_tunnel = matches!(at.protocol, protocol::IPIP | protocol::IPV6);
    is_tunnel && tables.locals.decap().is_some_and(|decap| decap.ends_at(&mapped_ip(address)))
}

/// Whether one port of the kernel's address is ours.
fn is_endpoint(tables: &Tables, address: IpAddr, protocol: u8, port: u16) -> bool {
    let mapped = mapped_ip(address);
    let ends_here = |family| {
        let vtep = tables.locals.vtep(family);
        vtep.is_some_and(|vtep| vtep.underlay == mapped && vtep.port == port)
    };
    let family = if address.is_ipv4() { Version::V4 } else { Version::V6 };
    let gue = tables.locals.decap().is_some_and(|decap| decap.ends_at(&mapped) && decap.is_gue(port));
    let served = match address {
        IpAddr::V4(v4) => tables.services.lookup_v4(&v4.octets(), protocol, port),
        IpAddr::V6(v6) => tables.services.lookup_v6(&v6.octets(), protocol, port),
    };
    let is_node_port = served.is_some_and(|served| matches!(served.kind, FrontendKind::Node));
    (protocol == protocol::UDP && (ends_here(family) || gue))
        || (is_node_port && kind(tables, address).contains(LocalKind::NODE))
}

fn told(tables: &Tables, address: IpAddr, sought: String) -> Passed {
    let mapped = mapped_ip(address);
    let mut entries = Vec::new();
    let family = if address.is_ipv4() { Version::V4 } else { Version::V6 };
    if let Some(vtep) = tables.locals.vtep(family).filter(|vtep| vtep.underlay == mapped) {
        entries.push(format!("UDP port {} (VXLAN)", vtep.port));
    }
    if tables.locals.decap().is_some_and(|decap| decap.ends_at(&mapped)) {
        entries.push("tunnels of IP in IP and GUE".to_owned());
    }
    if kind(tables, address).contains(LocalKind::NODE) {
        let all = tables.services.frontends().iter();
        let ports =
            all.filter(|(at, served)| matches!(served.kind, FrontendKind::Node) && address_of(&at.address) == address);
        let mut ports: Vec<u16> = ports.map(|(at, _)| at.port).collect();
        ports.sort_unstable();
        ports.dedup();
        let more = ports.len().saturating_sub(NAMED_MAX);
        entries.extend(ports.iter().take(NAMED_MAX).map(|port| format!("node port {port}")));
        if more > 0 {
            entries.push(format!("{more} more node ports"));
        }
    }
    Passed { address, sought, entries }
}
