//! The kernel: reading what is there, making one change at a time.
//!
//! Owns the sockets and the words; decides nothing. Routes, rules, neighbours and forwarding entries go by rtnetlink
//! (rtnetlink(7)), the filter by `nft`. A change that is already so is no error.

mod bells;
mod message;
mod netlink;
mod nft;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

pub use bells::Bells;
use message::{Direction, ReadRoute, ReadRule};
use netlink::Netlink;

use crate::found::{Change, Found};
use crate::wanted::{Family, Wanted};

/// EEXIST, ENOENT, ESRCH, ENODEV and EADDRNOTAVAIL (uapi/asm-generic/errno.h): it is so already.
const ALREADY_THERE: i32 = 17;
const ALREADY_GONE: [i32; 4] = [2, 3, 19, 99];

/// The kernel of this network namespace.
#[derive(Debug)]
pub struct Kernel {
    netlink: Netlink,
    /// Indexes by name, of the last reading.
    indexes: BTreeMap<String, u32>,
}

impl Kernel {
    /// Opens a socket for requests.
    ///
    /// # Errors
    /// What the system says.
    pub fn open() -> io::Result<Kernel> {
        Ok(Kernel { netlink: Netlink::open(0)?, indexes: BTreeMap::new() })
    }

    /// Reads everything that a plan has to know.
    ///
    /// # Errors
    /// What the kernel or nft says.
    pub fn read(&mut self, wanted: &Wanted) -> io::Result<Found> {
        let mut found = Found { filter: nft::list()?, ..Found::default() };
        let names = self.read_links(wanted, &mut found)?;
        self.read_rules(wanted, &mut found)?;
        self.read_routes(wanted, &names, &mut found)?;
        self.read_neighbours(wanted, &names, &mut found)?;
        Ok(found)
    }

    /// Makes one change.
    ///
    /// # Errors
    /// What the kernel or nft says, unless it says that it is so already.
    pub fn make(&mut self, wanted: &Wanted, change: &Change) -> io::Result<()> {
        let protocol = wanted.numbers.protocol;
        let replace = NLM_F_CREATE | NLM_F_REPLACE;
        let (message, flags) = match change {
            Change::LoadFilter(filter) => return nft::run(&filter.commands()),
            Change::RemoveFilter => return nft::run(&crate::filter::Filter::removal()),
            Change::AddNeighbour(at) => {
                (RouteNetlinkMessage::NewNeighbour(message::neighbour(at, self.index(&at.device)?, protocol)), replace)
            }
            Change::RemoveNeighbour(at) => {
                (RouteNetlinkMessage::DelNeighbour(message::neighbour(at, self.index(&at.device)?, protocol)), 0)
            }
            Change::AddForwarding(at) => {
                (RouteNetlinkMessage::NewNeighbour(message::forwarding(at, self.index(&at.device)?)), replace)
            }
            Change::RemoveForwarding(at) => {
                (RouteNetlinkMessage::DelNeighbour(message::forwarding(at, self.index(&at.device)?)), 0)
            }
            Change::AddRoute(route) => {
                let message = message::route(route, |device| self.index(device), protocol, Direction::Come)?;
                (RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
            }
            Change::RemoveRoute(route) => {
                let message = message::route(route, |device| self.index(device), protocol, Direction::Go)?;
                (RouteNetlinkMessage::DelRoute(message), 0)
            }
            Change::AddRule(rule) => {
                (RouteNetlinkMessage::NewRule(message::rule(rule, protocol)), NLM_F_CREATE | NLM_F_EXCL)
            }
            Change::RemoveRule(rule) => (RouteNetlinkMessage::DelRule(message::rule(rule, protocol)), 0),
        };
        match self.netlink.command(message, flags) {
            Err(error) if change.removes() && ALREADY_GONE.iter().any(|code| error.raw_os_error() == Some(*code)) => {
                Ok(())
            }
            Err(error) if !change.removes() && error.raw_os_error() == Some(ALREADY_THERE) => Ok(()),
            answer => answer,
        }
    }

    fn index(&self, device: &str) -> io::Result<u32> {
        // ENODEV, as the kernel would say.
        self.indexes.get(device).copied().ok_or_else(|| io::Error::from_raw_os_error(19))
    }

    /// Names of all devices by index; facts of those that are named.
    fn read_links(&mut self, wanted: &Wanted, found: &mut Found) -> io::Result<BTreeMap<u32, String>> {
        let mut names = BTreeMap::new();
        self.indexes.clear();
        for row in self.netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
            let RouteNetlinkMessage::NewLink(row) = row else { continue };
            let Some((name, link)) = message::read_link(&row) else { continue };
            names.insert(row.header.index, name.clone());
            self.indexes.insert(name.clone(), row.header.index);
            // None is named where everything of ours is to be found.
            let named = [&wanted.devices.ipv4, &wanted.devices.ipv6].into_iter().flatten();
            if named.clone().any(|device| *device == name) || named.count() == 0 && link.vni.is_some() {
                found.links.insert(name, link);
            }
        }
        Ok(names)
    }

    fn read_rules(&mut self, wanted: &Wanted, found: &mut Found) -> io::Result<()> {
        for (family, address_family) in families() {
            let mut request = RuleMessage::default();
            request.header.family = address_family;
            for row in self.netlink.dump(&RouteNetlinkMessage::GetRule(request))? {
                let RouteNetlinkMessage::NewRule(row) = row else { continue };
                match message::read_rule(&row, family, wanted.numbers.protocol) {
                    ReadRule::Ours(rule) => found.rules.push(rule),
                    ReadRule::Others { mark, table, priority } => {
                        found.foreign_marks.extend(mark.map(|(value, mask)| (value, mask, priority)));
                        if in_range(wanted, table) {
                            found.taken.insert((family, table));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn read_routes(&mut self, wanted: &Wanted, names: &BTreeMap<u32, String>, found: &mut Found) -> io::Result<()> {
        for (family, address_family) in families() {
            let mut request = RouteMessage::default();
            request.header.address_family = address_family;
            for row in self.netlink.dump(&RouteNetlinkMessage::GetRoute(request))? {
                let RouteNetlinkMessage::NewRoute(row) = row else { continue };
                match message::read_route(&row, names, wanted.numbers.protocol) {
                    ReadRoute::Ours(route) => drop(found.routes.insert(route)),
                    ReadRoute::Others { table } if in_range(wanted, table) => drop(found.taken.insert((family, table))),
                    ReadRoute::Others { .. } | ReadRoute::None => {}
                }
            }
        }
        Ok(())
    }

    fn read_neighbours(&mut self, wanted: &Wanted, names: &BTreeMap<u32, String>, found: &mut Found) -> io::Result<()> {
        let devices: BTreeSet<String> = found.links.keys().cloned().collect();
        let kinds = families().into_iter().map(|(_, kind)| kind).chain([AddressFamily::Bridge]);
        for kind in kinds {
            let mut request = NeighbourMessage::default();
            request.header.family = kind;
            for row in self.netlink.dump(&RouteNetlinkMessage::GetNeighbour(request))? {
                let RouteNetlinkMessage::NewNeighbour(row) = row else { continue };
                let Some(device) = names.get(&row.header.ifindex).filter(|name| devices.contains(*name)) else {
                    continue;
                };
                if kind == AddressFamily::Bridge {
                    found.forwarding.extend(message::read_forwarding(&row, device));
                } else {
                    found.neighbours.extend(message::read_neighbour(&row, device, wanted.numbers.protocol));
                }
            }
        }
        Ok(())
    }
}

fn in_range(wanted: &Wanted, table: u32) -> bool {
    let numbers = &wanted.numbers;
    table.checked_sub(numbers.table_first).is_some_and(|offset| offset < numbers.tables)
}

fn families() -> [(Family, AddressFamily); 2] {
    [(Family::V4, AddressFamily::Inet), (Family::V6, AddressFamily::Inet6)]
}
