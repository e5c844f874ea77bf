//! Facts read once, for whoever looks and goes: what the monitor keeps current, and two that no packet of ours depends on:
//! forwarding databases of the kernel's own VXLAN devices, and rules of policy routing.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::KernelFacts;
use super::monitor::read_all;
use super::netlink::Netlink;

/// RT_TABLE_DEFAULT, RT_TABLE_MAIN, RT_TABLE_LOCAL (uapi/linux/rtnetlink.h): tables of the rules that every kernel has.
const TABLES_OF_ALL: std::ops::RangeInclusive<u32> = 253..=255;

/// An entry of a forwarding database that leads to a VTEP (RTM_NEWNEIGH of AF_BRIDGE, `bridge fdb`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// Interface index of the VXLAN device.
    pub ifindex: u32,
    /// Link-layer destination; all zero: any that has no entry.
    pub mac: [u8; 6],
    /// Address of the VTEP in the underlay.
    pub destination: IpAddr,
}

/// A rule of policy routing (RTM_NEWRULE, `ip rule`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Family; false: IPv6.
    pub is_v4: bool,
    /// Rules are asked in this order.
    pub priority: u32,
    /// What it is, much as ip-rule(8) has it, without the priority.
    pub text: String,
}

/// Links, addresses, routes and neighbours.
///
/// # Errors
/// What the system and the kernel say.
pub fn facts() -> io::Result<KernelFacts> {
    read_all(&mut Netlink::open()?, None)
}

/// Entries of all forwarding databases that lead to VTEPs.
///
/// # Errors
/// What the system and the kernel say.
pub fn forwarding() -> io::Result<Vec<Forwarding>> {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Bridge;
    let rows = Netlink::open()?.dump(&RouteNetlinkMessage::GetNeighbour(request))?;
    let entries = rows.iter().filter_map(|row| match row {
        RouteNetlinkMessage::NewNeighbour(message) => entry(message),
        _ => None,
    });
    Ok(entries.collect())
}

fn entry(message: &NeighbourMessage) -> Option<Forwarding> {
    if message.header.family != AddressFamily::Bridge {
        return None;
    }
    let (mut mac, mut destination) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => destination = ip(bytes),
            _ => {}
        }
    }
    Some(Forwarding { ifindex: message.header.ifindex, mac: mac?, destination: destination? })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(|octets| Ipv4Addr::from(octets).into());
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into());
    v4().or_else(v6)
}

/// Rules of policy routing, both families, that lead elsewhere than into the tables `local`, `main` and `default`: nobody here
/// follows those.
///
/// # Errors
/// What the system and the kernel say.
pub fn foreign_rules() -> io::Result<Vec<Rule>> {
    let mut netlink = Netlink::open()?;
    let mut rules = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RuleMessage::default();
        request.header.family = family;
        for row in netlink.dump(&RouteNetlinkMessage::GetRule(request))? {
            if let RouteNetlinkMessage::NewRule(message) = row {
                rules.extend(foreign(&message, family == AddressFamily::Inet));
            }
        }
    }
    Ok(rules)
}

fn foreign(message: &RuleMessage, is_v4: bool) -> Option<Rule> {
    let (mut priority, mut table) = (0, u32::from(message.header.table));
    let (mut from, mut to, mut more, mut goes_to) = (String::from("from all"), String::new(), String::new(), None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Source(address) => from = format!("from {address}/{}", message.header.src_len),
            RuleAttribute::Destination(address) => to = format!(" to {address}/{}", message.header.dst_len),
            RuleAttribute::Iifname(name) => more += &format!(" iif {name}"),
            RuleAttribute::Oifname(name) => more += &format!(" oif {name}"),
            // Writing to a String cannot fail.
            RuleAttribute::FwMark(mark) => drop(write!(more, " fwmark {mark:#x}")),
            RuleAttribute::L3MDev(true) => more += " l3mdev",
            RuleAttribute::Goto(target) => goes_to = Some(*target),
            _ => {}
        }
    }
    let action = match message.header.action {
        RuleAction::Nop => return None,
        RuleAction::ToTable if TABLES_OF_ALL.contains(&table) => return None,
        RuleAction::ToTable => format!("lookup {table}"),
        RuleAction::Goto => format!("goto {}", goes_to.unwrap_or_default()),
        RuleAction::Blackhole => "blackhole".to_owned(),
        RuleAction::Unreachable => "unreachable".to_owned(),
        RuleAction::Prohibit => "prohibit".to_owned(),
        other => format!("{other:?}"),
    };
    Some(Rule { is_v4, priority, text: format!("{from}{to}{more} {action}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_every_kernel_are_none_and_others_are_told_as_ip_rule_does() {
        let rule = |action, table, attributes: Vec<RuleAttribute>| {
            let mut message = RuleMessage::default();
            (message.header.action, message.header.table, message.header.src_len) = (action, table, 8);
            message.attributes = attributes;
            foreign(&message, true).map(|rule| format!("{}: {}", rule.priority, rule.text))
        };
        let priority = RuleAttribute::Priority(100);
        for table in [253, 254, 255] {
            assert_eq!(rule(RuleAction::ToTable, table, vec![priority.clone()]), None);
        }
        let source = RuleAttribute::Source("10.0.0.0".parse().unwrap());
        let mark = RuleAttribute::FwMark(0x80);
        let by_table = rule(RuleAction::ToTable, 0, vec![priority, RuleAttribute::Table(1000), source, mark]);
        assert_eq!(by_table.as_deref(), Some("100: from 10.0.0.0/8 fwmark 0x80 lookup 1000"));
        let to = RuleAttribute::Destination("fd00::".parse().unwrap());
        assert_eq!(rule(RuleAction::Prohibit, 0, vec![to]).as_deref(), Some("0: from all to fd00::/0 prohibit"));
        assert_eq!(rule(RuleAction::Nop, 0, vec![]), None);
    }

    #[test]
    fn entries_without_a_vtep_are_none() {
        let entry_of = |family, attributes| {
            let mut message = NeighbourMessage::default();
            (message.header.family, message.header.ifindex, message.attributes) = (family, 7, attributes);
            entry(&message)
        };
        let mac = || NeighbourAttribute::LinkLayerAddress(vec![2; 6]);
        for (bytes, destination) in
            [(vec![198, 51, 100, 1], "198.51.100.1"), (Ipv6Addr::LOCALHOST.octets().to_vec(), "::1")]
        {
            let to = NeighbourAttribute::Destination(NeighbourAddress::Other(bytes));
            let found = entry_of(AddressFamily::Bridge, vec![mac(), to.clone()]);
            let destination = destination.parse().unwrap();
            assert_eq!(found, Some(Forwarding { ifindex: 7, mac: [2; 6], destination }));
            assert_eq!(entry_of(AddressFamily::Inet, vec![mac(), to]), None);
        }
        assert_eq!(entry_of(AddressFamily::Bridge, vec![mac()]), None);
        let broken = NeighbourAttribute::Destination(NeighbourAddress::Other(vec![1, 2, 3]));
        assert_eq!(entry_of(AddressFamily::Bridge, vec![mac(), broken]), None);
    }
}
