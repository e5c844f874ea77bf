//! Routes and the state of a device, over netlink: rtnetlink(7), RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWLINK.
//!
//! A route of ours is `unicast`, over our device, in one table, with a protocol number of our own by which routing daemons
//! and people tell it from others. One that somebody else has for the same prefix is never replaced: the kernel's EEXIST is
//! an answer.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NetlinkPayload};
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::kernel::netlink::Netlink;

/// RTMGRP_LINK | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE (uapi/linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x40 | 0x400;
/// RTN_UNICAST routes to a device are of this scope (RT_SCOPE_LINK); IPv6 ignores it.
const SCOPE: RouteScope = RouteScope::Link;

/// How our routes are told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Protocol number (`RTPROT_*`, or none of those).
    pub protocol: u8,
    /// Table they stand in.
    pub table: u32,
    /// Priority; 0: what the kernel takes then (0 for IPv4, 1024 for IPv6).
    pub metric: u32,
}

/// What happened in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A route of ours went.
    Gone(IpNet),
    /// Our device is down or gone.
    Down,
}

/// One device and the routes over it.
#[derive(Debug)]
pub struct Program {
    requests: Netlink,
    events: Netlink,
    ifindex: u32,
    mark: Mark,
}

impl Program {
    /// For the device with this index, which is set up.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(ifindex: u32, mark: Mark) -> io::Result<Program> {
        let events = Netlink::subscribe(GROUPS)?;
        let mut program = Program { requests: Netlink::open()?, events, ifindex, mark };
        // No link-local address: nobody lives there. A kernel without IPv6 has nothing to refuse it to.
        let quiet = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let _ = program.change_link(LinkFlags::empty(), Some(quiet));
        program.change_link(LinkFlags::Up, None)?;
        Ok(program)
    }

    fn change_link(&mut self, flags: LinkFlags, attribute: Option<AfSpecUnspec>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = self.ifindex;
        (message.header.flags, message.header.change_mask) = (flags, flags);
        message.attributes.extend(attribute.map(|attribute| LinkAttribute::AfSpecUnspec(vec![attribute])));
        self.requests.command(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Adds a route.
    ///
    /// # Errors
    /// What the kernel says: EEXIST when there is one for this prefix and metric, whoever made it.
    pub fn add(&mut self, prefix: IpNet) -> io::Result<()> {
        let message = route(prefix, self.ifindex, self.mark);
        self.requests.command(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a route of ours.
    ///
    /// # Errors
    /// What the kernel says: ESRCH when it is not there.
    pub fn remove(&mut self, prefix: IpNet) -> io::Result<()> {
        self.requests.command(RouteNetlinkMessage::DelRoute(route(prefix, self.ifindex, self.mark)), 0)
    }

    /// The socket that is readable when there may be news.
    pub fn events(&self) -> &Netlink {
        &self.events
    }

    /// What has happened; does not wait. `Ok(None)`: nothing more now.
    ///
    /// # Errors
    /// ENOBUFS when news were lost; otherwise what the system says.
    pub fn news(&mut self) -> io::Result<Option<Vec<News>>> {
        let messages = match self.events.receive_now() {
            Ok(messages) => messages,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let news = messages.into_iter().filter_map(|message| match message.payload {
            NetlinkPayload::InnerMessage(message) => self.read(&message),
            _ => None,
        });
        Ok(Some(news.collect()))
    }

    fn read(&self, message: &RouteNetlinkMessage) -> Option<News> {
        match message {
            RouteNetlinkMessage::DelRoute(message) => {
                let table = message.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Table(table) => Some(*table),
                    _ => None,
                });
                let ours = message.header.protocol == protocol(self.mark.protocol)
                    && table.unwrap_or(message.header.table.into()) == self.mark.table
                    && message.attributes.contains(&RouteAttribute::Oif(self.ifindex));
                destination(message).filter(|_| ours).map(News::Gone)
            }
            RouteNetlinkMessage::NewLink(message) if message.header.index == self.ifindex => {
                (!message.header.flags.contains(LinkFlags::Up)).then_some(News::Down)
            }
            RouteNetlinkMessage::DelLink(message) if message.header.index == self.ifindex => Some(News::Down),
            _ => None,
        }
    }
}

fn protocol(number: u8) -> RouteProtocol {
    RouteProtocol::from(number)
}

fn route(prefix: IpNet, ifindex: u32, mark: Mark) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.destination_prefix_length = prefix.prefix_len();
    // RTA_TABLE says all 32 bits; the header's eight are RT_TABLE_UNSPEC when they are too few (rtnetlink(7)).
    message.header.table = u8::try_from(mark.table).unwrap_or_default();
    message.header.protocol = protocol(mark.protocol);
    message.header.scope = SCOPE;
    message.header.kind = RouteType::Unicast;
    let destination = match prefix.network() {
        IpAddr::V4(address) => {
            message.header.address_family = AddressFamily::Inet;
            RouteAddress::Inet(address)
        }
        IpAddr::V6(address) => {
            message.header.address_family = AddressFamily::Inet6;
            RouteAddress::Inet6(address)
        }
    };
    message.attributes.push(RouteAttribute::Destination(destination));
    message.attributes.push(RouteAttribute::Oif(ifindex));
    message.attributes.push(RouteAttribute::Table(mark.table));
    if mark.metric > 0 {
        message.attributes.push(RouteAttribute::Priority(mark.metric));
    }
    message
}

fn destination(message: &RouteMessage) -> Option<IpNet> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    IpNet::new(address, message.header.destination_prefix_length).ok()
}
