//! What the pinhole leaves to the kernel, told from the tables that it is made from.
//!
//! Owns the rules of `io/bpf/pinhole.bpf.c` in the words of tables: a worker that is asked about a packet which never comes to
//! it would call it not ours, and that sounds like a loss. What parse can read is told with what would have to be there
//! ([`passed`]); what it refuses is walked as the program does, which reads less than parse and passes what it cannot read
//! ([`unread`]). Refuses to know what the kernel does with it.

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

/// Why the pinhole passes a frame that parse refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It carries something else than IP or ARP: this EtherType, or length (IEEE 802.3), host order.
    Ethertype(u16),
    /// Its headers end too early, or are none.
    Malformed,
    /// It has no entry for it.
    Passed(Passed),
}

/// Why the pinhole passes a frame that parse refuses; `None`: it comes to a worker.
pub fn unread(tables: &Tables, frame: &[u8]) -> Option<Unread> {
    ours(tables, frame).err()
}

/// So many bytes from `at` on.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Unread> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().ok_or(Unread::Malformed)
}

/// The walk of `owner` there.
fn ours(tables: &Tables, frame: &[u8]) -> Result<(), Unread> {
    let mut at = 14;
    let mut ethertype = u16::from_be_bytes(field(frame, at - 2)?);
    for _ in 0..2 {
        if ethernet::is_tag(ethertype) {
            at += 4;
            ethertype = u16::from_be_bytes(field(frame, at - 2)?);
        }
    }
    let l3 = frame.get(at..).unwrap_or_default();
    match ethertype {
        ethernet::IPV4 => ours_v4(tables, l3),
        ethernet::IPV6 => ours_v6(tables, l3),
        ethernet::ARP => {
            let target = IpAddr::from(field::<4>(l3, 24)?);
            let [.., high, low] = field::<8>(l3, 0)?;
            let is_request = field::<4>(l3, 2)? == [8, 0, 6, 4] && [high, low] == [0, 1];
            let is_ours = is_request && kind(tables, target).contains(LocalKind::ANNOUNCED);
            of(is_ours, tables, target, format!("ARP about {target}"))
        }
        other => Err(Unread::Ethertype(other)),
    }
}

fn ours_v4(tables: &Tables, l3: &[u8]) -> Result<(), Unread> {
    let header = field::<20>(l3, 0)?;
    let len = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || len < header.len() {
        return Err(Unread::Malformed);
    }
    let destination = IpAddr::from(field::<4>(l3, 16)?);
    let is_later = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    match header[9] {
        _ if is_traffic(kind(tables, destination)) => Ok(()),
        protocol::IPIP | protocol::IPV6 => {
            of(is_end(tables, destination), tables, destination, destination.to_string())
        }
        _ if is_later => of(false, tables, destination, destination.to_string()),
        protocol::ICMP => {
            let is_error = matches!(field::<8>(l3, len)?[0], 3 | 11 | 12);
            of(is_error && quotes_v4(tables, destination, l3, len + 8), tables, destination, destination.to_string())
        }
        number => port(tables, destination, number, l3, len),
    }
}

fn ours_v6(tables: &Tables, l3: &[u8]) -> Result<(), Unread> {
    let header = field::<40>(l3, 0)?;
    if header[0] >> 4 != 6 {
        return Err(Unread::Malformed);
    }
    let destination = IpAddr::from(field::<16>(l3, 24)?);
    let no_entry = || destination.to_string();
    match header[6] {
        _ if is_traffic(kind(tables, destination)) => Ok(()),
        protocol::ICMPV6 if field::<24>(l3, 40).is_ok_and(|message| message[0] == ndp::SOLICITATION) => {
            let target = IpAddr::from(field::<16>(l3, 48)?);
            let is_ours = kind(tables, target).contains(LocalKind::ANNOUNCED);
            of(is_ours, tables, target, format!("neighbour solicitations for {target}"))
        }
        protocol::ICMPV6 => {
            let is_error = matches!(field::<8>(l3, 40)?[0], 1..=4);
            of(is_error && quotes_v6(tables, destination, l3, 48), tables, destination, no_entry())
        }
        protocol::IPIP | protocol::IPV6 => of(is_end(tables, destination), tables, destination, no_entry()),
        protocol::FRAGMENT => {
            let [next, _, high, low, ..] = field::<8>(l3, 40)?;
            let is_later = u16::from_be_bytes([high, low]) & 0xfff8 != 0;
            match next {
                protocol::IPIP | protocol::IPV6 => of(is_end(tables, destination), tables, destination, no_entry()),
                _ if is_later => of(false, tables, destination, no_entry()),
                next => port(tables, destination, next, l3, 48),
            }
        }
        number => port(tables, destination, number, l3, 40),
    }
}

/// Whether it is ours; otherwise what there would have to be.
fn of(is_ours: bool, tables: &Tables, address: IpAddr, sought: String) -> Result<(), Unread> {
    if is_ours { Ok(()) } else { Err(Unread::Passed(told(tables, address, sought))) }
}

fn port(tables: &Tables, address: IpAddr, number: u8, l3: &[u8], at: usize) -> Result<(), Unread> {
    let is_ours = has_ports(number) && is_endpoint(tables, address, number, u16::from_be_bytes(field(l3, at + 2)?));
    of(is_ours, tables, address, address.to_string())
}

fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP)
}

/// Whether an error quotes what was sent from one of our ports; `at`: where the quote begins.
fn quotes_v4(tables: &Tables, address: IpAddr, l3: &[u8], at: usize) -> bool {
    let Ok(quoted) = field::<20>(l3, at) else { return false };
    let len = usize::from(quoted[0] & 0x0f) * 4;
    let is_first = u16::from_be_bytes([quoted[6], quoted[7]]) & 0x1fff == 0;
    is_first && len >= quoted.len() && quotes_port(tables, address, quoted[9], l3, at + len)
}

fn quotes_v6(tables: &Tables, address: IpAddr, l3: &[u8], at: usize) -> bool {
    field::<40>(l3, at).is_ok_and(|quoted| quotes_port(tables, address, quoted[6], l3, at + quoted.len()))
}

fn quotes_port(tables: &Tables, address: IpAddr, number: u8, l3: &[u8], at: usize) -> bool {
    let Ok([high, low, ..]) = field::<4>(l3, at) else { return false };
    has_ports(number) && is_endpoint(tables, address, number, u16::from_be_bytes([high, low]))
}

/// Whether a tunnel without ports ends at an address.
fn is_end(tables: &Tables, address: IpAddr) -> bool {
    tables.locals.decap().is_some_and(|decap| decap.ends_at(&mapped_ip(address)))
}

fn kind(tables: &Tables, address: IpAddr) -> LocalKind {
    tables.locals.kind(&mapped_ip(address))
}

/// Whether a packet is one of a tunnel without ports that ends at an address.
fn ends(tables: &Tables, at: &L3, address: IpAddr) -> bool {
    let is_tunnel = matches!(at.protocol, protocol::IPIP | protocol::IPV6);
    is_tunnel && is_end(tables, address)
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
