//! Routes: the kernel's and the overlay's, as one table.
//!
//! Read from the kernel: the tables `local` and `main`, as its own lookup would find them. For one prefix `local` beats
//! `main`, then the lowest metric with a usable hop wins. What this file refuses to do is invent a way out: a route that
//! leads over a device Tidegate does not serve becomes a blackhole, since falling through to a shorter prefix would send
//! the packet somewhere the operator did not mean. Only a link that is down makes a route step aside.
//!
//! Pod prefixes of peers lead into tunnels and beat whatever the kernel has there, longer prefixes inside them included:
//! a pod prefix is one peer's whole, and the check of inner sources (P-047) relies on that. Prefixes of this node's own
//! pods lead to the kernel if it has routes there and nowhere else if it has none.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::device::Devices;
use super::neighbour::Neighbours;
use super::{mapped_ip, net};
use crate::kernel::{Hop, Layout, Route, RouteKind, Table};
use crate::table::route::{NEXT_HOPS_MAX, NextHops, RouteRow, RouteTable, RouteTarget};
use crate::table::{DeviceId, NeighbourId, TunnelId};

/// The kernel's routes by prefix, resolved to served devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelRoutes {
    by_prefix: BTreeMap<IpNet, Way>,
    /// Prefix lengths there are, longest first.
    lengths_v4: Vec<u8>,
    lengths_v6: Vec<u8>,
}

/// A way out, before ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where to.
    pub target: Target,
    /// Largest IP packet, bytes.
    pub mtu: u16,
}

/// Where a [`Way`] leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To routers: device, address in mapped form, weight.
    Routers(Vec<(DeviceId, [u8; 16], u16)>),
    /// To the destination itself, on this device.
    Connected(DeviceId),
    /// To this machine.
    Local,
    /// Nowhere.
    Blackhole,
}

impl KernelRoutes {
    /// What `layout` says, for these devices.
    pub fn read(layout: &Layout, devices: &Devices) -> Self {
        let mut best: BTreeMap<IpNet, (Table, u32, Way)> = BTreeMap::new();
        for route in &layout.routes {
            let Some(way) = way(route, devices, layout) else { continue };
            let rank = (route.table, route.metric);
            // Equals: the first listed, as in the kernel.
            if best.get(&route.prefix).is_none_or(|(table, metric, _)| rank < (*table, *metric)) {
                best.insert(route.prefix, (route.table, route.metric, way));
            }
        }
        let lengths = |v4: bool| {
            let of_family = best.keys().filter(|prefix| prefix.addr().is_ipv4() == v4);
            of_family.map(IpNet::prefix_len).collect::<BTreeSet<_>>().into_iter().rev().collect()
        };
        let (lengths_v4, lengths_v6) = (lengths(true), lengths(false));
        let by_prefix = best.into_iter().map(|(prefix, (_, _, way))| (prefix, way)).collect();
        KernelRoutes { by_prefix, lengths_v4, lengths_v6 }
    }

    /// The longest match.
    pub fn lookup(&self, address: IpAddr) -> Option<&Way> {
        let lengths = if address.is_ipv4() { &self.lengths_v4 } else { &self.lengths_v6 };
        lengths.iter().find_map(|length| self.by_prefix.get(&IpNet::new(address, *length).ok()?.trunc()))
    }
}

/// What a route means for us; `None` when it steps aside.
fn way(route: &Route, devices: &Devices, layout: &Layout) -> Option<Way> {
    let fixed = |target| Some(Way { target, mtu: u16::MAX });
    match route.kind {
        RouteKind::Discard => return fixed(Target::Blackhole),
        RouteKind::Local => return fixed(Target::Local),
        // Every link has this prefix, and nothing to it is forwarded (RFC 4291 section 2.5.6).
        RouteKind::Unicast if is_link_local(&route.prefix) => return fixed(Target::Blackhole),
        RouteKind::Unicast => {}
    }
    let alive: Vec<(&Hop, Option<DeviceId>)> = route
        .hops
        .iter()
        .filter(|hop| !hop.down && layout.links.get(&hop.ifindex).is_some_and(|link| link.up))
        .map(|hop| (hop, devices.by_ifindex(hop.ifindex)))
        .collect();
    if alive.is_empty() {
        return None;
    }
    let served: Vec<(&Hop, DeviceId)> = alive.into_iter().filter_map(|(hop, device)| Some((hop, device?))).collect();
    let device_mtu = served.iter().filter_map(|(_, device)| devices.row(*device)).map(|row| row.mtu).min();
    let Some(device_mtu) = device_mtu else { return fixed(Target::Blackhole) };
    let route_mtu = route.mtu.map_or(u16::MAX, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX));
    let routers: Vec<_> =
        served.iter().filter_map(|(hop, device)| Some((*device, mapped_ip(hop.gateway?), hop.weight))).collect();
    let target = match served.first() {
        Some((_, device)) if routers.is_empty() => Target::Connected(*device),
        _ => Target::Routers(routers),
    };
    Some(Way { target, mtu: device_mtu.min(route_mtu) })
}

fn is_link_local(prefix: &IpNet) -> bool {
    prefix.prefix_len() >= 10 && matches!(prefix.addr(), IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80)
}

/// Shares of at most [`NEXT_HOPS_MAX`] in proportion to `weights`, at least one each, and as few as say it exactly.
pub fn shares(weights: &[u16]) -> Vec<usize> {
    let weights: Vec<usize> = weights.iter().take(NEXT_HOPS_MAX).map(|weight| usize::from(*weight).max(1)).collect();
    let divisor = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
    let total: usize = weights.iter().sum();
    if total / divisor <= NEXT_HOPS_MAX {
        return weights.iter().map(|weight| weight / divisor).collect();
    }
    let mut shares: Vec<usize> = weights.iter().map(|weight| (weight * NEXT_HOPS_MAX / total).max(1)).collect();
    // Too many, since small ones were raised to one: the largest give. Too few, since parts were cut off: the ones that
    // are furthest below their due get.
    while shares.iter().sum::<usize>() > NEXT_HOPS_MAX {
        if let Some(largest) = shares.iter_mut().max() {
            *largest -= 1;
        }
    }
    while shares.iter().sum::<usize>() < NEXT_HOPS_MAX {
        let due = |index: &usize| (weights[*index] * NEXT_HOPS_MAX).saturating_sub(shares[*index] * total);
        let Some(index) = (0..shares.len()).max_by_key(|index| (due(index), std::cmp::Reverse(*index))) else { break };
        shares[index] += 1;
    }
    shares
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Ids of `routers`, each as often as its share; ids in use are added to `used`.
pub fn next_hops(
    routers: &[(DeviceId, [u8; 16], u16)],
    neighbours: &mut Neighbours,
    used: &mut HashSet<NeighbourId>,
) -> NextHops {
    let weights: Vec<u16> = routers.iter().map(|(_, _, weight)| *weight).collect();
    let mut hops = NextHops::new();
    for ((device, address, _), share) in routers.iter().zip(shares(&weights)) {
        let Some(id) = neighbours.hop(*device, *address) else { continue };
        used.insert(id);
        for _ in 0..share {
            let _ = hops.try_push(id);
        }
    }
    hops
}

/// A pod prefix and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodPrefix {
    /// The prefix.
    pub prefix: IpNet,
    /// The peer's tunnel; `None` for the pods of this node.
    pub tunnel: Option<TunnelId>,
    /// Largest inner packet, bytes.
    pub mtu: u16,
}

/// Every row there should be, by prefix.
pub fn plan(
    kernel: &KernelRoutes,
    pods: &[PodPrefix],
    neighbours: &mut Neighbours,
    used: &mut HashSet<NeighbourId>,
) -> BTreeMap<IpNet, RouteRow> {
    let mut rows = BTreeMap::new();
    let peers: net::Set = pods.iter().filter(|pod| pod.tunnel.is_some()).map(|pod| pod.prefix).collect();
    for (prefix, way) in &kernel.by_prefix {
        if !matches!(way.target, Target::Local) && peers.covers(prefix) {
            continue;
        }
        let target = match &way.target {
            Target::Routers(routers) => {
                let hops = next_hops(routers, neighbours, used);
                if hops.is_empty() { RouteTarget::Blackhole } else { RouteTarget::NextHops(hops) }
            }
            Target::Connected(device) => RouteTarget::Connected(*device),
            Target::Local => RouteTarget::Local,
            Target::Blackhole => RouteTarget::Blackhole,
        };
        rows.insert(*prefix, RouteRow { target, mtu: way.mtu });
    }
    for pod in pods {
        match pod.tunnel {
            Some(tunnel) => {
                rows.insert(pod.prefix, RouteRow { target: RouteTarget::Tunnel(tunnel), mtu: pod.mtu });
            }
            // Without a route of their own they would follow the default route out.
            None => {
                rows.entry(pod.prefix).or_insert(RouteRow { target: RouteTarget::Blackhole, mtu: u16::MAX });
            }
        }
    }
    rows
}

/// Makes `table` equal to `rows`. True when anything differed.
pub fn write(rows: &BTreeMap<IpNet, RouteRow>, table: &mut RouteTable) -> bool {
    let gone: Vec<_> = table.iter().map(|(prefix, _)| prefix).filter(|prefix| !rows.contains_key(prefix)).collect();
    let mut changed = !gone.is_empty();
    for prefix in gone {
        table.remove(&prefix);
    }
    for (prefix, row) in rows {
        if table.get(prefix) != Some(row) {
            table.insert(*prefix, row.clone());
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_say_weights_exactly_where_they_fit() {
        assert_eq!(shares(&[1]), [1]);
        assert_eq!(shares(&[256]), [1]);
        assert_eq!(shares(&[3, 1]), [3, 1]);
        assert_eq!(shares(&[30, 10]), [3, 1]);
        assert_eq!(shares(&[100, 1]), [15, 1]);
        assert_eq!(shares(&[0, 0]), [1, 1]);
        assert_eq!(shares(&[1; 20]).len(), NEXT_HOPS_MAX);
    }

    proptest! {
        #[test]
        fn shares_fill_what_there_is_and_forget_nobody(weights in proptest::collection::vec(1..300u16, 1..=NEXT_HOPS_MAX)) {
            let shares = shares(&weights);
            prop_assert_eq!(shares.len(), weights.len());
            prop_assert!(shares.iter().all(|share| *share >= 1));
            prop_assert!(shares.iter().sum::<usize>() <= NEXT_HOPS_MAX);
            // A heavier one never gets less than a lighter one, but for the one given or taken by rounding.
            for (a, b) in weights.iter().zip(&shares) {
                for (c, d) in weights.iter().zip(&shares) {
                    prop_assert!(a < c || b + 1 >= *d, "{weights:?} {shares:?}");
                }
            }
        }
    }
}
