//! What the kernel of the node has: ours, and what others have that concerns us.
//!
//! Plain values, comparable and without any handle of the kernel's, so that a test can play kernel. What others made is
//! read, told and never changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::filter::{Filter, Loaded};
use crate::wanted::{Family, Mac};

/// Metric of routes to gateways.
pub const METRIC: u32 = 100;
/// Metric of the routes that discard what has no gateway: the last to be taken.
pub const METRIC_LAST: u32 = 65535;

/// The facts, of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Devices by name; those named in what is wanted.
    pub links: BTreeMap<String, Link>,
    /// Our rules, in the kernel's order.
    pub rules: Vec<Rule>,
    /// Marks that rules of others look at: value, mask, priority.
    pub foreign_marks: BTreeSet<(u32, u32, u32)>,
    /// Our routes.
    pub routes: BTreeSet<Route>,
    /// Tables of our range that somebody else uses.
    pub taken: BTreeSet<(Family, u32)>,
    /// Permanent neighbours on our devices.
    pub neighbours: Vec<(Neighbour, Owner)>,
    /// Entries for single link-layer addresses in the forwarding databases of our devices.
    pub forwarding: Vec<(Forwarding, Owner)>,
    /// Our table of nftables, if there is one.
    pub filter: Option<Loaded>,
}

/// Who made something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The agent.
    Ours,
    /// Somebody else, usually the CNI.
    Others,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Set up.
    pub up: bool,
    /// VXLAN network identifier, of VXLAN devices.
    pub vni: Option<u32>,
    /// Its own link-layer address.
    pub mac: Option<Mac>,
}

/// A policy rule: packets that it names look into a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Whose packets.
    pub family: Family,
    /// The lowest is asked first; of two equal ones the older.
    pub priority: u32,
    /// Source of the packets; none: any.
    pub source: Option<IpNet>,
    /// Value of the mark where [`Rule::mask`] is set.
    pub mark: u32,
    /// Bits of the mark that are looked at.
    pub mask: u32,
    /// The table.
    pub table: u32,
}

/// A route of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The table it stands in.
    pub table: u32,
    /// The rest of it.
    pub entry: Entry,
}

/// What a route says, whatever its table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Destination.
    pub prefix: IpNet,
    /// What becomes of the packet.
    pub way: Way,
    /// Of two routes for one prefix the one with the lower metric is taken.
    pub metric: u32,
}

/// What becomes of a packet that a route is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// To the gateway with this address, over this device, whatever the device's own prefixes.
    Through {
        /// The gateway's address in the overlay.
        gateway: IpAddr,
        /// The VXLAN device.
        device: String,
    },
    /// As if this table were not there.
    Throw,
    /// Nowhere (N-111).
    Blackhole,
}

/// A permanent neighbour.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// The device.
    pub device: String,
    /// Its address in the overlay.
    pub address: IpAddr,
    /// Its link-layer address.
    pub mac: Mac,
}

/// Where a VXLAN device sends frames for a link-layer address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forwarding {
    /// The device.
    pub device: String,
    /// Destination of the inner frame.
    pub mac: Mac,
    /// Address in the underlay.
    pub underlay: IpAddr,
}

/// One step from what was found to what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Our table of nftables becomes this, at once.
    LoadFilter(Filter),
    /// Our table of nftables goes.
    RemoveFilter,
    /// A neighbour comes, or gets another link-layer address.
    AddNeighbour(Neighbour),
    /// A neighbour goes.
    RemoveNeighbour(Neighbour),
    /// A forwarding entry comes, or gets another address in the underlay.
    AddForwarding(Forwarding),
    /// A forwarding entry goes.
    RemoveForwarding(Forwarding),
    /// A route comes.
    AddRoute(Route),
    /// A route goes.
    RemoveRoute(Route),
    /// A rule comes, after those of the same priority.
    AddRule(Rule),
    /// A rule goes.
    RemoveRule(Rule),
}

impl Change {
    /// True when something goes. What goes waits until all that comes has come.
    pub fn removes(&self) -> bool {
        matches!(
            self,
            Change::RemoveFilter
                | Change::RemoveNeighbour(_)
                | Change::RemoveForwarding(_)
                | Change::RemoveRoute(_)
                | Change::RemoveRule(_)
        )
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        if let Some(source) = self.source {
            write!(f, " from {}", source.addr())?;
        }
        if self.mask != 0 {
            write!(f, " fwmark {:#x}/{:#x}", self.mark, self.mask)?;
        }
        write!(f, " lookup {}", self.table)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = self.entry.prefix;
        match &self.entry.way {
            Way::Through { gateway, device } => write!(f, "{prefix} via {gateway} dev {device} onlink")?,
            Way::Throw => write!(f, "throw {prefix}")?,
            Way::Blackhole => write!(f, "blackhole {prefix}")?,
        }
        write!(f, " table {}", self.table)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::LoadFilter(filter) => {
                write!(f, "load nftables table {} ({} pods)", crate::filter::TABLE, filter.pods.len())
            }
            Change::RemoveFilter => write!(f, "remove nftables table {}", crate::filter::TABLE),
            Change::AddNeighbour(at) => write!(f, "add neighbour {} at {} on {}", at.address, at.mac, at.device),
            Change::RemoveNeighbour(at) => write!(f, "remove neighbour {} at {} on {}", at.address, at.mac, at.device),
            Change::AddForwarding(at) => write!(f, "add forwarding {} to {} on {}", at.mac, at.underlay, at.device),
            Change::RemoveForwarding(at) => {
                write!(f, "remove forwarding {} to {} on {}", at.mac, at.underlay, at.device)
            }
            Change::AddRoute(route) => write!(f, "add route {route}"),
            Change::RemoveRoute(route) => write!(f, "remove route {route}"),
            Change::AddRule(rule) => write!(f, "add rule {rule}"),
            Change::RemoveRule(rule) => write!(f, "remove rule {rule}"),
        }
    }
}
