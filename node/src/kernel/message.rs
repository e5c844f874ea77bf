//! Our values as netlink messages, and back.
//!
//! How ours are told from others': rules and routes by their protocol number; neighbours and forwarding entries by the flag
//! "learned elsewhere" (NTF_EXT_LEARNED), neighbours by the protocol number too. The kernel takes that flag away when somebody
//! sets the entry without it, as CNIs do: then it is theirs.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::found::{Entry, Forwarding, Link, Neighbour, Owner, Route, Rule, Way};
use crate::wanted::{Family, Mac};

/// Whether a message says that something is to come or to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To come.
    Come,
    /// To go.
    Go,
}

/// A rule as read.
#[derive(Debug)]
pub enum ReadRule {
    /// One of ours.
    Ours(Rule),
    /// Somebody else's.
    Others {
        /// Value and mask, if it looks at marks.
        mark: Option<(u32, u32)>,
        /// Table it leads to.
        table: u32,
        /// Its priority.
        priority: u32,
    },
}

/// A route as read.
#[derive(Debug)]
pub enum ReadRoute {
    /// One of ours.
    Ours(Route),
    /// Somebody else's.
    Others {
        /// Table it stands in.
        table: u32,
    },
    /// None at all: a cached exception.
    None,
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// A table in the header, whose eight bits are RT_TABLE_UNSPEC when they are too few (rtnetlink(7)).
fn short(table: u32) -> u8 {
    u8::try_from(table).unwrap_or_default()
}

pub fn rule(rule: &Rule, protocol: u8) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.table = short(rule.table);
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message.attributes.push(RuleAttribute::Table(rule.table));
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(protocol)));
    if let Some(source) = rule.source {
        message.header.src_len = source.prefix_len();
        message.attributes.push(RuleAttribute::Source(source.network()));
    }
    if rule.mask != 0 {
        message.attributes.push(RuleAttribute::FwMark(rule.mark));
        message.attributes.push(RuleAttribute::FwMask(rule.mask));
    }
    message
}

pub fn read_rule(message: &RuleMessage, family: Family, protocol: u8) -> ReadRule {
    let table = u32::from(message.header.table);
    let mut rule = Rule { family, priority: 0, source: None, mark: 0, mask: 0, table };
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::FwMark(mark) => rule.mark = *mark,
            RuleAttribute::FwMask(mask) => rule.mask = *mask,
            RuleAttribute::Source(source) => rule.source = IpNet::new(*source, message.header.src_len).ok(),
            RuleAttribute::Protocol(number) => ours = *number == RouteProtocol::from(protocol),
            _ => {}
        }
    }
    if ours {
        return ReadRule::Ours(rule);
    }
    let mark = (rule.mask != 0).then_some((rule.mark, rule.mask));
    ReadRule::Others { mark, table: rule.table, priority: rule.priority }
}

pub fn route(
    route: &Route,
    index: impl Fn(&str) -> io::Result<u32>,
    protocol: u8,
    direction: Direction,
) -> io::Result<RouteMessage> {
    let Entry { prefix, way, metric } = &route.entry;
    let mut message = RouteMessage::default();
    message.header.address_family = family(prefix.addr());
    message.header.destination_prefix_length = prefix.prefix_len();
    message.header.table = short(route.table);
    message.header.protocol = RouteProtocol::from(protocol);
    message.header.scope = RouteScope::Universe;
    if prefix.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route_address(prefix.network())));
    }
    message.attributes.push(RouteAttribute::Table(route.table));
    message.attributes.push(RouteAttribute::Priority(*metric));
    message.header.kind = match way {
        Way::Blackhole => RouteType::BlackHole,
        Way::Throw => RouteType::Throw,
        Way::Through { gateway, device } => {
            message.attributes.push(RouteAttribute::Gateway(route_address(*gateway)));
            message.attributes.push(RouteAttribute::Oif(index(device)?));
            if direction == Direction::Come {
                message.header.flags = RouteFlags::Onlink;
            }
            RouteType::Unicast
        }
    };
    Ok(message)
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

pub fn read_route(message: &RouteMessage, names: &BTreeMap<u32, String>, protocol: u8) -> ReadRoute {
    if message.header.flags.contains(RouteFlags::Cloned) {
        return ReadRoute::None;
    }
    let everything = match message.header.address_family {
        AddressFamily::Inet => Family::V4.everything(),
        AddressFamily::Inet6 => Family::V6.everything(),
        _ => return ReadRoute::None,
    };
    let (mut destination, mut gateway, mut device, mut metric) = (everything.addr(), None, None, 0);
    let mut table = u32::from(message.header.table);
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address).unwrap_or(destination),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(index) => device = names.get(index).cloned(),
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            _ => {}
        }
    }
    if message.header.protocol != RouteProtocol::from(protocol) {
        return ReadRoute::Others { table };
    }
    let way = match (message.header.kind, gateway, device) {
        (RouteType::BlackHole, _, _) => Way::Blackhole,
        (RouteType::Throw, _, _) => Way::Throw,
        (RouteType::Unicast, Some(gateway), Some(device)) => Way::Through { gateway, device },
        // Under our number and unlike anything of ours: the table is left alone.
        _ => return ReadRoute::Others { table },
    };
    match IpNet::new(destination, message.header.destination_prefix_length) {
        Ok(prefix) => ReadRoute::Ours(Route { table, entry: Entry { prefix, way, metric } }),
        Err(_) => ReadRoute::Others { table },
    }
}

fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}

pub fn neighbour(at: &Neighbour, index: u32, protocol: u8) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(at.address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::ExtLearned;
    message.attributes.push(NeighbourAttribute::Destination(neighbour_address(at.address)));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(at.mac.0.to_vec()));
    message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::from(protocol)));
    message
}

pub fn read_neighbour(message: &NeighbourMessage, device: &str, protocol: u8) -> Option<(Neighbour, Owner)> {
    if !matches!(message.header.state, NeighbourState::Permanent) {
        return None; // one that the kernel found out, or waits for: ours may replace it
    }
    let (address, mac) = (destination(message)?, link_layer(message)?);
    let number = NeighbourAttribute::Protocol(RouteProtocol::from(protocol));
    let ours = message.header.flags.contains(NeighbourFlags::ExtLearned) && message.attributes.contains(&number);
    let owner = if ours { Owner::Ours } else { Owner::Others };
    Some((Neighbour { device: device.to_owned(), address, mac }, owner))
}

pub fn forwarding(at: &Forwarding, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own | NeighbourFlags::ExtLearned;
    message.attributes.push(NeighbourAttribute::Destination(neighbour_address(at.underlay)));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(at.mac.0.to_vec()));
    message
}

pub fn read_forwarding(message: &NeighbourMessage, device: &str) -> Option<(Forwarding, Owner)> {
    let (underlay, mac) = (destination(message)?, link_layer(message)?);
    let ours = message.header.flags.contains(NeighbourFlags::ExtLearned);
    let owner = if ours { Owner::Ours } else { Owner::Others };
    Some((Forwarding { device: device.to_owned(), mac, underlay }, owner))
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        // In a forwarding database the address is of the underlay, whatever the message's own family.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    })
}

fn link_layer(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })
}

pub fn read_link(message: &LinkMessage) -> Option<(String, Link)> {
    let mut name = None;
    let mut link = Link { up: message.header.flags.contains(LinkFlags::Up), ..Link::default() };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
            LinkAttribute::LinkInfo(parts) => {
                link.vni = parts.iter().find_map(|part| match part {
                    LinkInfo::Data(InfoData::Vxlan(data)) => data.iter().find_map(|part| match part {
                        InfoVxlan::Id(id) => Some(*id),
                        _ => None,
                    }),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some((name?, link))
}
