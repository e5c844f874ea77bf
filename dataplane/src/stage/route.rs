//! # Route: where does it leave, each way?
//!
//! reads   `table::route`, `neighbour`, `tunnel`    writes  a [`Hop`] for the flow, a [`Departure`] for the packet
//! drops   `NoRoute`, `NoTunnel`
//! cost    one longest-prefix match per new flow; per packet two rows read by index
//! spec    V-015, V-022, P-047, RFC 2992 (equal-cost choice by flow hash)    tests   `dataplane/tests/golden/route.rs`
//!
//! A flow keeps *hops*: row numbers, not addresses. The rows change under it when a neighbour moves or a peer changes
//! its MAC, without any walk; only a change of the routes themselves sends flows through here again.

use crate::drops::DropReason;
use crate::family::Family;
use crate::pipeline::Refresh;
use crate::state::{Direction, Entry};
use crate::table::route::{RouteTarget, pick};
use crate::table::{DeviceId, NeighbourId, Tables, TunnelId};

/// The next thing on the way, as a flow remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Into VXLAN, to this peer.
    Tunnel(TunnelId),
    /// Plainly, to this neighbour.
    Neighbour(NeighbourId),
    /// To a neighbour that has no row yet; whoever sends must ask for one.
    Ask {
        /// Device it is connected to.
        device: DeviceId,
        /// Its address, IPv4 mapped.
        address: [u8; 16],
    },
    /// Back in, as if from the wire: the destination is an external address (N-010). No flow keeps it.
    Hairpin,
}

/// How one packet leaves: the device, and the neighbour's MAC when it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Device to send on.
    pub device: DeviceId,
    /// Link-layer destination; `None`: the packet waits until the neighbour answers.
    pub mac: Option<[u8; 6]>,
    /// The neighbour's address, IPv4 mapped.
    pub address: [u8; 16],
}

/// The hop towards `destination`, chosen by `hash` among equal ones.
///
/// # Errors
/// `NoRoute` when no route matches, or the one that does forbids.
pub fn toward<A: Family>(tables: &Tables, destination: A, hash: u64) -> Result<Hop, DropReason> {
    let row = destination.route(tables).ok_or(DropReason::NoRoute)?;
    match &row.target {
        RouteTarget::Tunnel(tunnel) => Ok(Hop::Tunnel(*tunnel)),
        RouteTarget::NextHops(hops) => choose(hops, hash).map(Hop::Neighbour).ok_or(DropReason::NoRoute),
        RouteTarget::Connected(device) => {
            let address = destination.mapped();
            Ok(match tables.neighbours.find(*device, &address) {
                Some(neighbour) => Hop::Neighbour(neighbour),
                None => Hop::Ask { device: *device, address },
            })
        }
        RouteTarget::Blackhole | RouteTarget::Local => Err(DropReason::NoRoute),
    }
}

/// How a packet leaves over `hop`.
///
/// # Errors
/// `NoTunnel` or `NoRoute` when the row is gone.
#[inline]
pub fn departure(tables: &Tables, hop: Hop, hash: u64) -> Result<Departure, DropReason> {
    let neighbour = match hop {
        Hop::Neighbour(neighbour) => neighbour,
        Hop::Tunnel(tunnel) => {
            let row = tables.tunnels.row(tunnel).ok_or(DropReason::NoTunnel)?;
            choose(&row.next_hops, hash).ok_or(DropReason::NoTunnel)?
        }
        Hop::Ask { device, address } => return Ok(Departure { device, mac: None, address }),
        Hop::Hairpin => return Ok(Departure { device: DeviceId::NONE, mac: None, address: [0; 16] }),
    };
    let row = tables.neighbours.row(neighbour).ok_or(DropReason::NoRoute)?;
    Ok(Departure { device: row.device, mac: row.known_mac(), address: row.address })
}

/// Largest packet in bytes, IP header included, that `hop` carries; `None` when its row is gone and another hop must be
/// found.
#[inline]
pub fn carries(tables: &Tables, hop: Hop) -> Option<u16> {
    let device = match hop {
        Hop::Tunnel(tunnel) => return tables.tunnels.row(tunnel).map(|row| row.inner_mtu),
        Hop::Neighbour(neighbour) => tables.neighbours.row(neighbour)?.device,
        Hop::Ask { device, .. } => device,
        // Whatever comes after it asks again.
        Hop::Hairpin => return Some(u16::MAX),
    };
    tables.devices.row(device).map(|row| row.mtu)
}

/// As [`carries`]; without a row 1280, which every link carries.
#[inline]
pub fn mtu(tables: &Tables, hop: Hop) -> u16 {
    const MTU_MIN: u16 = 1280;
    carries(tables, hop).unwrap_or(MTU_MIN)
}

/// May a packet with inner source `source` come from this peer? (P-047)
///
/// Its pods may, and the node itself by its underlay address (pods on the host network).
pub fn source_allowed<A: Family>(tables: &Tables, tunnel: TunnelId, source: A) -> bool {
    let routed = source.route(tables).is_some_and(|row| matches!(row.target, RouteTarget::Tunnel(id) if id == tunnel));
    routed || tables.tunnels.row(tunnel).is_some_and(|row| row.underlay == source.mapped())
}

#[inline(always)]
fn choose(hops: &[NeighbourId], hash: u64) -> Option<NeighbourId> {
    match hops {
        [] => None,
        [only] => Some(*only),
        many => many.get(pick(many.len(), hash)).copied(),
    }
}

/// Bit of [`Entry::mark`]: packets of the original direction leave plainly, not through a tunnel.
const FORWARD_PLAIN: u8 = 1;
/// Bit of [`Entry::mark`]: packets of the reply direction leave through a tunnel.
const REPLY_TUNNEL: u8 = 2;

/// Two hops as an entry keeps them: mark, row for the original and row for the reply direction.
#[inline]
pub fn pack(forward: Option<Hop>, reply: Option<Hop>) -> (u8, u16, u16) {
    let (forward_plain, forward) = match forward {
        Some(Hop::Tunnel(tunnel)) => (0, tunnel.0),
        Some(Hop::Neighbour(neighbour)) => (FORWARD_PLAIN, neighbour.0),
        Some(Hop::Ask { .. } | Hop::Hairpin) | None => (FORWARD_PLAIN, NeighbourId::NONE.0),
    };
    let (reply_tunnel, reply) = match reply {
        Some(Hop::Tunnel(tunnel)) => (REPLY_TUNNEL, tunnel.0),
        Some(Hop::Neighbour(neighbour)) => (0, neighbour.0),
        Some(Hop::Ask { .. } | Hop::Hairpin) | None => (0, NeighbourId::NONE.0),
    };
    (forward_plain | reply_tunnel, forward, reply)
}

/// The hop an entry keeps for packets of `direction`; `None` when it must be found again.
#[inline(always)]
pub fn kept<A: Family>(entry: &Entry<A>, direction: Direction) -> Option<Hop> {
    let (tunnelled, row) = row_kept(entry, direction);
    if row == NeighbourId::NONE.0 {
        None
    } else if tunnelled {
        Some(Hop::Tunnel(TunnelId(row)))
    } else {
        Some(Hop::Neighbour(NeighbourId(row)))
    }
}

/// Whether packets of `direction` leave through a tunnel, and its row, or that of the neighbour; a number that no row has
/// when it must be found again.
#[inline(always)]
pub fn row_kept<A: Family>(entry: &Entry<A>, direction: Direction) -> (bool, u16) {
    match direction {
        Direction::Original => (entry.mark & FORWARD_PLAIN == 0, entry.tunnel),
        Direction::Reply => (entry.mark & REPLY_TUNNEL != 0, entry.next_hop),
    }
}

/// Makes an entry keep what revalidation found.
pub fn keep<A: Family>(entry: &mut Entry<A>, refresh: &Refresh) {
    let (mark, tunnel, next_hop) = pack(refresh.forward, refresh.reply);
    entry.mark = entry.mark & !(FORWARD_PLAIN | REPLY_TUNNEL) | mark;
    (entry.tunnel, entry.next_hop) = (tunnel, next_hop);
    entry.backend_epoch = refresh.backend_epoch;
    entry.routes_epoch = refresh.routes_epoch;
}

const _: () = assert!(NeighbourId::NONE.0 == TunnelId::NONE.0, "one value says that a hop is not known");
