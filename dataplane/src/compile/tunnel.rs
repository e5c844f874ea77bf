//! Tunnels: peers as rows with their outer headers prepared and the ways to them.
//!
//! A peer keeps its id for the life of its name, gone or not: a row that is gone is not `live`, and flows that still
//! name it are told so. The underlay is routed by the kernel's routes alone, never through another tunnel.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use tidegate_api::resource::{Gateway, Peer, PeerVtep, Vtep};

use super::ids::Ids;
use super::neighbour::Neighbours;
use super::route::{self, KernelRoutes, PodPrefix, Target};
use super::{address_of, mapped_ip};
use crate::kernel::Layout;
use crate::table::route::NextHops;
use crate::table::tunnel::{TunnelRow, TunnelTable};
use crate::table::{Family, NeighbourId, TunnelId};
use crate::wire::encap::{EncapTemplate, Tunnel, Underlay};

/// What VXLAN takes from the underlay's MTU (V-009): outer IPv4, UDP, VXLAN, inner Ethernet.
pub const OVERHEAD_V4_BYTES: u16 = 20 + 8 + 8 + 14;
/// The same over IPv6.
pub const OVERHEAD_V6_BYTES: u16 = 40 + 8 + 8 + 14;
/// Outer TTL and hop limit (V-006).
const TTL: u8 = 64;

/// Which peer has which id.
#[derive(Debug, Default)]
pub struct Tunnels {
    ids: Ids,
    by_peer: HashMap<(String, Family), TunnelId>,
    /// What the rows were made of, to tell whether anything changed.
    made_of: HashMap<TunnelId, Ingredients>,
    again: bool,
    /// Peers whose rows differ since they were asked for.
    touched: HashSet<String>,
}

/// How a peer is reached.
#[derive(Clone, Copy, Debug)]
pub struct PeerWay<'a> {
    /// Its row.
    pub id: TunnelId,
    /// Our end.
    pub ours: &'a Vtep,
    /// Its end.
    pub peer: &'a PeerVtep,
}

/// Everything a row is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ingredients {
    ours: Option<Vtep>,
    peer: PeerVtep,
    next_hops: NextHops,
    inner_mtu: u16,
}

/// What the rest of the machine and of the objects means for tunnels.
pub struct Surroundings<'a> {
    /// This gateway.
    pub gateway: Option<&'a Gateway>,
    /// Links, addresses, routes.
    pub layout: &'a Layout,
    /// The kernel's routes.
    pub routes: &'a KernelRoutes,
}

impl Tunnels {
    /// Makes `table` hold exactly `peers`, adds the neighbours in use to `used`, and returns the pod prefixes and whether
    /// any row differs from before.
    pub fn write<'a>(
        &mut self,
        peers: impl Iterator<Item = (&'a str, &'a Peer)>,
        around: &Surroundings<'_>,
        neighbours: &mut Neighbours,
        used: &mut HashSet<NeighbourId>,
        table: &mut TunnelTable,
    ) -> (Vec<PodPrefix>, bool) {
        let mut pods = Vec::new();
        let mut changed = false;
        let mut live = HashSet::new();
        for (name, peer) in peers {
            for (family, vtep) in [(Family::V4, &peer.v4), (Family::V6, &peer.v6)] {
                let Some(vtep) = vtep else { continue };
                let Some(id) = self.id(name, family) else { continue };
                live.insert(id);
                let ingredients = ingredients(family, vtep, around, neighbours, used);
                let mtu = ingredients.inner_mtu;
                pods.extend(vtep.pod_cidrs.iter().map(|cidr| PodPrefix {
                    prefix: cidr.trunc(),
                    tunnel: Some(id),
                    mtu,
                }));
                if self.made_of.get(&id) != Some(&ingredients) {
                    table.set(id, row(family, name, &ingredients));
                    self.touched.insert(name.to_owned());
                    self.made_of.insert(id, ingredients);
                    changed = true;
                }
            }
        }
        let gone: Vec<_> = self.made_of.keys().filter(|id| !live.contains(*id)).copied().collect();
        for id in gone {
            self.made_of.remove(&id);
            if let Some(row) = table.row(id).cloned() {
                self.touched.insert(row.name.to_string());
                table.set(id, TunnelRow { live: false, next_hops: NextHops::new(), ..row });
            }
            changed = true;
        }
        self.take_back_dead(table);
        (pods, changed)
    }

    /// How the peer `name` is reached, if it is a peer and we have an end of our own.
    pub fn way(&self, name: &str, family: Family) -> Option<PeerWay<'_>> {
        let id = *self.by_peer.get(&(name.to_owned(), family))?;
        let made_of = self.made_of.get(&id)?;
        Some(PeerWay { id, ours: made_of.ours.as_ref()?, peer: &made_of.peer })
    }

    /// Peers whose rows differ since the last call.
    pub fn take_touched(&mut self) -> HashSet<String> {
        std::mem::take(&mut self.touched)
    }

    /// Whether an id was given out again since the last call.
    pub fn take_again(&mut self) -> bool {
        std::mem::take(&mut self.again)
    }

    fn id(&mut self, name: &str, family: Family) -> Option<TunnelId> {
        let key = (name.to_owned(), family);
        if let Some(id) = self.by_peer.get(&key) {
            return Some(*id);
        }
        let Some(given) = self.ids.give() else {
            tracing::error!(peer = name, "no tunnel id is left");
            return None;
        };
        self.again |= given.again;
        self.by_peer.insert(key, TunnelId(given.id));
        Some(TunnelId(given.id))
    }

    /// Lets go of the ids of peers that are gone, once so many were given out that names alone would exhaust them.
    fn take_back_dead(&mut self, table: &mut TunnelTable) {
        if self.by_peer.len() < usize::from(super::ids::FRESH_MAX) {
            return;
        }
        let dead: Vec<_> = self
            .by_peer
            .iter()
            .filter(|(_, id)| !self.made_of.contains_key(*id))
            .map(|(key, id)| (key.clone(), *id))
            .collect();
        for (key, id) in dead {
            self.by_peer.remove(&key);
            self.ids.take_back(id.0);
            table.clear(id);
        }
    }
}

fn ingredients(
    family: Family,
    peer: &PeerVtep,
    around: &Surroundings<'_>,
    neighbours: &mut Neighbours,
    used: &mut HashSet<NeighbourId>,
) -> Ingredients {
    let overhead = match family {
        Family::V4 => OVERHEAD_V4_BYTES,
        Family::V6 => OVERHEAD_V6_BYTES,
    };
    let ours = around.gateway.and_then(|gateway| match family {
        Family::V4 => gateway.vtep_v4.as_ref(),
        Family::V6 => gateway.vtep_v6.as_ref(),
    });
    // An underlay address that has left the machine would be a source nobody answers.
    let ours = ours.filter(|vtep| around.layout.owner(vtep.underlay).is_some()).cloned();
    let way = around.routes.lookup(peer.underlay);
    let next_hops = match way.map(|way| &way.target) {
        Some(Target::Routers(routers)) => route::next_hops(routers, neighbours, used),
        Some(Target::Connected(device)) => {
            route::next_hops(&[(*device, mapped_ip(peer.underlay), 1)], neighbours, used)
        }
        Some(Target::Local | Target::Blackhole) | None => NextHops::new(),
    };
    // Without a way there is no packet to measure: any value does, and this one is a host's minimum (RFC 8200 section 5).
    let path_mtu = way.filter(|_| !next_hops.is_empty()).map_or(1280 + overhead, |way| way.mtu);
    Ingredients { ours, peer: peer.clone(), next_hops, inner_mtu: path_mtu.saturating_sub(overhead) }
}

fn row(family: Family, name: &str, made_of: &Ingredients) -> TunnelRow {
    let Ingredients { ours, peer, next_hops, inner_mtu } = made_of;
    let source = ours.as_ref().map_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), |vtep| vtep.underlay);
    let template = EncapTemplate::new(&Tunnel {
        underlay: underlay(family, source, peer.underlay),
        port: peer.port,
        vni: peer.vni,
        source_mac: ours.as_ref().map(|vtep| vtep.mac).unwrap_or_default().into(),
        destination_mac: peer.mac.into(),
        ttl: TTL,
        dont_fragment: false,
    });
    TunnelRow {
        family,
        template,
        underlay: mapped_ip(peer.underlay),
        // Without a VTEP of our own nothing can be sent; what the peer sends is not for us either.
        next_hops: if ours.is_some() { next_hops.clone() } else { NextHops::new() },
        inner_mtu: *inner_mtu,
        inner_mac: peer.mac.0,
        vni: peer.vni,
        name: name.into(),
        live: ours.is_some(),
    }
}

fn underlay(family: Family, source: IpAddr, destination: IpAddr) -> Underlay {
    let v4 = |address| match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    let v6 = |address| match address {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(_) => [0; 16],
    };
    match family {
        Family::V4 => Underlay::V4 { source: v4(source), destination: v4(destination) },
        Family::V6 => Underlay::V6 { source: v6(source), destination: v6(destination) },
    }
}

/// Why a tunnel cannot be used, for people; `ready` when it can.
pub fn state_name(row: &TunnelRow, neighbours: &crate::table::neighbour::NeighbourTable) -> &'static str {
    use crate::table::neighbour::NeighbourState;
    if !row.live {
        return "no VTEP of our own";
    }
    if row.next_hops.is_empty() {
        return "no route";
    }
    let states = || row.next_hops.iter().filter_map(|id| neighbours.row(*id)).map(|row| row.state);
    if states().any(|state| state == NeighbourState::Resolved) {
        "ready"
    } else if states().all(|state| state == NeighbourState::Failed) {
        "neighbour failed"
    } else {
        "neighbour unresolved"
    }
}

/// The underlay address of a row as people write it.
pub fn underlay_of(row: &TunnelRow) -> IpAddr {
    address_of(&row.underlay)
}
