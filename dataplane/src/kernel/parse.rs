//! Netlink messages into facts.
//!
//! Each function takes one parsed message and returns the fact in it, or `None` when it is about something Tidegate
//! has no use for (another family, another routing table, a cached route).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags, RouteType,
    RouteVia,
};

use super::{Address, Hop, Link, Neighbour, NeighbourKey, Route, RouteKind, Table};

/// RT_TABLE_MAIN (uapi/linux/rtnetlink.h).
const TABLE_MAIN: u32 = 254;
/// RT_TABLE_LOCAL (uapi/linux/rtnetlink.h).
const TABLE_LOCAL: u32 = 255;

/// Interface index and link.
pub(super) fn link(message: &LinkMessage) -> Option<(u32, Link)> {
    let mut link = Link { name: String::new(), mac: None, mtu: 0, up: false };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    link.up = message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
    (!link.name.is_empty()).then_some((message.header.index, link))
}

/// An address of a link.
pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let mut local = None;
    let mut far = None;
    for attribute in &message.attributes {
        match attribute {
            // IPv4 tells its own address in IFA_LOCAL; IPv6 does so on point-to-point links only.
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => far = Some(*address),
            _ => {}
        }
    }
    let prefix = IpNet::new(far.or(local)?, message.header.prefix_len).ok()?.trunc();
    Some(Address { ifindex: message.header.index, address: local.or(far)?, prefix })
}

/// A route of the tables `local` and `main`.
pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let kind = match message.header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local | RouteType::Anycast => RouteKind::Local,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Broadcast => {
            RouteKind::Discard
        }
        _ => return None, // multicast is not forwarded at all; throw leads out of the tables we read
    };
    if message.header.flags.contains(RouteFlags::Cloned) || message.header.tos != 0 {
        return None; // RTM_F_CLONED: a cached exception. TOS routes are not supported.
    }
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut parts = Parts { destination: any, table: u32::from(message.header.table), ..Parts::default() };
    for attribute in &message.attributes {
        parts.take(attribute)?;
    }
    let table = match parts.table {
        TABLE_LOCAL => Table::Local,
        TABLE_MAIN => Table::Main,
        _ => return None,
    };
    let header_down = message.header.flags.bits() & u32::from(RouteNextHopFlags::Dead.bits()) != 0
        || message.header.flags.bits() & u32::from(RouteNextHopFlags::Linkdown.bits()) != 0;
    Some(Route {
        prefix: IpNet::new(parts.destination, message.header.destination_prefix_length).ok()?.trunc(),
        table,
        metric: parts.metric,
        kind,
        mtu: parts.mtu,
        hops: if kind == RouteKind::Discard { vec![] } else { parts.into_hops(header_down) },
    })
}

/// Attributes of a route, as collected.
struct Parts {
    destination: IpAddr,
    table: u32,
    metric: u32,
    mtu: Option<u32>,
    gateway: Option<IpAddr>,
    ifindex: Option<u32>,
    hops: Vec<Hop>,
}

impl Default for Parts {
    fn default() -> Self {
        Parts {
            destination: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            table: 0,
            metric: 0,
            mtu: None,
            gateway: None,
            ifindex: None,
            hops: vec![],
        }
    }
}

impl Parts {
    /// Takes one attribute; `None` when it makes the route one that is not supported.
    fn take(&mut self, attribute: &RouteAttribute) -> Option<()> {
        match attribute {
            RouteAttribute::Destination(address) => self.destination = ip(address)?,
            RouteAttribute::Table(table) => self.table = *table,
            RouteAttribute::Priority(metric) => self.metric = *metric,
            RouteAttribute::Oif(ifindex) => self.ifindex = Some(*ifindex),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => self.gateway = gateway(attribute),
            RouteAttribute::MultiPath(hops) => self.hops = hops.iter().map(hop).collect(),
            RouteAttribute::Metrics(metrics) => {
                self.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            // An IPv6 route for some sources only (subtrees), or through a light-weight tunnel.
            RouteAttribute::Source(_) | RouteAttribute::Encap(_) => return None,
            _ => {}
        }
        Some(())
    }

    fn into_hops(self, down: bool) -> Vec<Hop> {
        match self.ifindex {
            _ if !self.hops.is_empty() => self.hops,
            Some(ifindex) => vec![Hop { gateway: self.gateway, ifindex, weight: 1, down }],
            None => vec![],
        }
    }
}

fn hop(next: &RouteNextHop) -> Hop {
    Hop {
        gateway: next.attributes.iter().find_map(gateway),
        ifindex: next.interface_index,
        weight: u16::from(next.hops) + 1, // rtnh_hops is the weight less one
        down: next.flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown),
    }
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// A neighbour of either family. Forwarding databases of bridges and VXLAN devices (AF_BRIDGE) are not neighbours.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return None;
    }
    let mut address = None;
    let mut neighbour = Neighbour { mac: None, state: message.header.state.into(), managed: false };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => neighbour.mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::ExtFlags(flags) => neighbour.managed = flags.contains(NeighbourExtFlags::Managed),
            _ => {}
        }
    }
    Some((NeighbourKey { ifindex: message.header.ifindex, address: address? }, neighbour))
}
