//! Ways out, ready to be put on a packet.
//!
//! Owns one row per VXLAN peer and per neighbour with all that a packet needs that leaves there: its outer headers with every
//! fixed field, link-layer addresses too, the port, the largest size. An established flow's packet reads this one row where
//! it would go through those of peer, neighbour and device one after the other.
//!
//! It refuses to be told anything: the rows follow from the three tables, whole, whenever one of them is another than they
//! were made from. What has no row here (a neighbour that is not known, a vacant number) is for whoever looks closer.

use std::sync::Arc;

use super::device::DeviceTable;
use super::neighbour::NeighbourTable;
use super::route;
use super::tunnel::TunnelTable;
use super::{DeviceId, NeighbourId};
use crate::wire::encap::Outside;
use crate::wire::ethernet::Mac;

/// One way out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lane {
    /// What is put before the packet.
    pub outside: Outside,
    /// Largest IP packet, bytes, that goes this way.
    pub mtu: u16,
    /// Device it leaves on.
    pub device: DeviceId,
}

/// What a number stands for. As long as two lines, and begins with one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(align(64))]
enum Place {
    /// Nothing that is ready.
    #[default]
    Closed,
    Open(Lane),
    /// One of `count` places from `first` in [`Lanes::shares`] on, by hash.
    Shared {
        first: usize,
        count: usize,
    },
}
const _: () = assert!(size_of::<Place>() == 128);

/// All ways out. Kind: table, derived.
#[derive(Clone, Debug, Default)]
pub struct Lanes {
    /// By number of the neighbour, and by number of the peer.
    places: [Arc<[Place]>; 2],
    shares: Arc<[Place]>,
    front_bytes: usize,
    /// What they were made from.
    tunnels: Arc<TunnelTable>,
    neighbours: Arc<NeighbourTable>,
    devices: Arc<DeviceTable>,
}

impl Lanes {
    /// The way to the peer (`tunnelled`) or neighbour with the number `row`, by `hash` where there are several to a peer;
    /// `None` when it is not ready. Read side.
    #[inline(always)]
    pub fn find(&self, tunnelled: bool, row: u16, hash: u64) -> Option<&Lane> {
        match self.places[usize::from(tunnelled)].get(usize::from(row))? {
            Place::Open(lane) => Some(lane),
            Place::Closed => None,
            Place::Shared { first, count } => self.find_shared(*first, *count, hash),
        }
    }

    #[inline(never)]
    fn find_shared(&self, first: usize, count: usize, hash: u64) -> Option<&Lane> {
        match self.shares.get(first + route::pick(count, hash))? {
            Place::Open(lane) => Some(lane),
            Place::Closed | Place::Shared { .. } => None,
        }
    }

    /// The most bytes that a tunnel's headers take before a frame that had an Ethernet header: 0 (no tunnels), 50 or 70.
    /// Read side.
    #[inline(always)]
    pub fn front_bytes(&self) -> usize {
        self.front_bytes
    }

    /// Makes the rows follow these tables. Build side: nothing while they are the same, else all rows.
    pub fn follow(&mut self, tunnels: &Arc<TunnelTable>, neighbours: &Arc<NeighbourTable>, devices: &Arc<DeviceTable>) {
        let same_ways = Arc::ptr_eq(&self.neighbours, neighbours) && Arc::ptr_eq(&self.devices, devices);
        if same_ways && Arc::ptr_eq(&self.tunnels, tunnels) {
            return;
        }
        let to = |neighbour: NeighbourId| {
            let row = neighbours.row(neighbour)?;
            let device = devices.row(row.device)?;
            Some((Mac(row.known_mac()?), Mac(device.mac), row.device, device.mtu))
        };
        let mut shares = Vec::new();
        let mut by_tunnel = Vec::new();
        for (id, row) in tunnels.rows() {
            let lane = |neighbour| {
                let (destination, source, device, _) = to(neighbour)?;
                Some(Lane { outside: row.template.between(destination, source), mtu: row.inner_mtu, device })
            };
            let place = match row.next_hops.as_slice() {
                [] => Place::Closed,
                [only] => lane(*only).into(),
                many => {
                    let first = shares.len();
                    shares.extend(many.iter().map(|hop| Place::from(lane(*hop))));
                    Place::Shared { first, count: many.len() }
                }
            };
            put(&mut by_tunnel, id.0, place);
        }
        if !same_ways {
            let mut by_neighbour = Vec::new();
            for (id, _) in neighbours.rows() {
                let lane = to(id).map(|(destination, source, device, mtu)| Lane {
                    outside: Outside::ethernet(destination, source),
                    mtu,
                    device,
                });
                put(&mut by_neighbour, id.0, lane.into());
            }
            self.places[0] = by_neighbour.into();
        }
        self.places[1] = by_tunnel.into();
        self.shares = shares.into();
        let overheads = tunnels.rows().map(|(_, row)| row.template.overhead());
        self.front_bytes = overheads.max().map_or(0, usize::from);
        (self.tunnels, self.neighbours, self.devices) =
            (Arc::clone(tunnels), Arc::clone(neighbours), Arc::clone(devices));
    }
}

impl From<Option<Lane>> for Place {
    fn from(lane: Option<Lane>) -> Place {
        lane.map_or(Place::Closed, Place::Open)
    }
}

fn put(places: &mut Vec<Place>, number: u16, place: Place) {
    let number = usize::from(number);
    if places.len() <= number {
        places.resize(number + 1, Place::Closed);
    }
    if let Some(at) = places.get_mut(number) {
        *at = place;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::device::DeviceRow;
    use crate::table::neighbour::{NeighbourRow, NeighbourState};
    use crate::table::publish::Snapshot;
    use crate::table::tunnel::TunnelRow;
    use crate::table::{Family, Tables, TunnelId};
    use crate::wire::encap::{EncapTemplate, Tunnel, Underlay};

    #[derive(Clone, Debug)]
    enum Op {
        Device(u16, Option<u8>),
        Neighbour(u8, Option<(u16, u8, bool)>),
        Tunnel(u8, Option<(bool, Vec<u16>)>),
        Publish,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            1 => (0u16..3, proptest::option::of(any::<u8>())).prop_map(|(id, mac)| Op::Device(id, mac)),
            4 => (0u8..6, proptest::option::of((0u16..3, any::<u8>(), any::<bool>())))
                .prop_map(|(id, row)| Op::Neighbour(id, row)),
            4 => (0u8..6, proptest::option::of((any::<bool>(), proptest::collection::vec(0u16..7, 0..4))))
                .prop_map(|(id, row)| Op::Tunnel(id, row)),
            2 => Just(Op::Publish),
        ]
    }

    fn run(tables: &mut Tables, op: Op) {
        match op {
            Op::Device(id, Some(mac)) => {
                let (name, mac, mtu) = ("eth".into(), [mac; 6], 1400 + u16::from(mac));
                let row = DeviceRow { name, ifindex: 1, mac, mtu, address_v4: [0; 4], address_v6: [0; 16] };
                Arc::make_mut(&mut tables.devices).set(DeviceId(id), row);
            }
            Op::Device(id, None) => Arc::make_mut(&mut tables.devices).clear(DeviceId(id)),
            Op::Neighbour(id, Some((device, mac, known))) => {
                let state = if known { NeighbourState::Resolved } else { NeighbourState::Unresolved };
                let address = [id + 1; 16];
                let row = NeighbourRow { device: DeviceId(device), mac: [mac; 6], state, address };
                Arc::make_mut(&mut tables.neighbours).set(NeighbourId(id.into()), row);
            }
            Op::Neighbour(id, None) => Arc::make_mut(&mut tables.neighbours).clear(NeighbourId(id.into())),
            Op::Tunnel(id, Some((v4, hops))) => {
                let underlay = match v4 {
                    true => Underlay::V4 { source: [1; 4], destination: [id; 4] },
                    false => Underlay::V6 { source: [1; 16], destination: [id; 16] },
                };
                let (source_mac, destination_mac) = (Mac([2; 6]), Mac([3; 6]));
                let tunnel =
                    Tunnel { underlay, port: 4789, vni: 1, source_mac, destination_mac, ttl: 64, dont_fragment: false };
                let row = TunnelRow {
                    family: if v4 { Family::V4 } else { Family::V6 },
                    template: EncapTemplate::new(&tunnel),
                    underlay: [id; 16],
                    next_hops: hops.into_iter().map(NeighbourId).collect(),
                    inner_mtu: 1300 + u16::from(id),
                    inner_mac: [3; 6],
                    vni: 1,
                    name: "w".into(),
                    live: true,
                };
                Arc::make_mut(&mut tables.tunnels).set(TunnelId(id.into()), row);
            }
            Op::Tunnel(id, None) => Arc::make_mut(&mut tables.tunnels).clear(TunnelId(id.into())),
            Op::Publish => tables.stamp(1),
        }
    }

    /// The same by going through the three tables.
    fn walk(tables: &Tables, tunnelled: bool, row: u16, hash: u64) -> Option<Lane> {
        let peer = if tunnelled { Some(tables.tunnels.row(TunnelId(row))?) } else { None };
        let neighbour = match peer {
            Some(peer) => *peer.next_hops.get(route::pick(peer.next_hops.len(), hash))?,
            None => NeighbourId(row),
        };
        let neighbour = tables.neighbours.row(neighbour)?;
        let device = tables.devices.row(neighbour.device)?;
        let (destination, source) = (Mac(neighbour.known_mac()?), Mac(device.mac));
        Some(match peer {
            Some(peer) => {
                let outside = peer.template.between(destination, source);
                Lane { outside, mtu: peer.inner_mtu, device: neighbour.device }
            }
            None => Lane { outside: Outside::ethernet(destination, source), mtu: device.mtu, device: neighbour.device },
        })
    }

    proptest! {
        #[test]
        fn a_lane_is_what_the_rows_say(ops in proptest::collection::vec(op(), 0..40)) {
            let mut tables = Tables::default();
            ops.into_iter().for_each(|op| run(&mut tables, op));
            tables.stamp(2);
            for row in (0..8).chain([u16::MAX]) {
                for hash in [0, 1 << 32, 2 << 32, 3 << 32, u64::MAX] {
                    for tunnelled in [false, true] {
                        let found = tables.lanes.find(tunnelled, row, hash).copied();
                        prop_assert_eq!(found, walk(&tables, tunnelled, row, hash), "{} {} {}", tunnelled, row, hash);
                        let front_bytes = match found.map(|lane| lane.outside) {
                            Some(Outside::VxlanV4(_)) => 50,
                            Some(Outside::VxlanV6(_)) => 70,
                            _ => 0,
                        };
                        prop_assert!(tables.lanes.front_bytes() >= front_bytes);
                    }
                }
            }
        }
    }
}
