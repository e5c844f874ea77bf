//! VIPs into prefixes: which routes there should be.
//!
//! Owns how often each prefix is wanted; knows no kernel. With aggregation many VIPs share one route, which stands as long as
//! any of them is to be announced (M-025, M-030).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

/// What is wanted for a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Wanted {
    /// No route.
    #[default]
    No,
    /// A route of its own. So it is for VIPs inside a prefix of a link: one for more of that link would take the hosts
    /// there away from the kernel.
    Alone,
    /// A route, which others may share.
    Shared,
}

/// Lengths of routes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aggregate {
    /// 1..=32.
    pub ipv4: u8,
    /// 1..=128.
    pub ipv6: u8,
}

/// Which routes there should be.
#[derive(Clone, Debug)]
pub struct Plan {
    aggregate: Aggregate,
    /// The route of each VIP.
    vips: BTreeMap<IpNet, IpNet>,
    /// How many VIPs each route has, at least one.
    routes: BTreeMap<IpNet, u32>,
}

impl Plan {
    /// No routes yet.
    pub fn new(aggregate: Aggregate) -> Plan {
        Plan { aggregate, vips: BTreeMap::new(), routes: BTreeMap::new() }
    }

    /// Takes in what is wanted for VIPs; the routes that came (with how many VIPs), differ in that, or went (0). Costs what
    /// is named.
    pub fn change(&mut self, changes: impl IntoIterator<Item = (IpNet, Wanted)>) -> Vec<(IpNet, u32)> {
        let mut touched = BTreeSet::new();
        for (vip, wanted) in changes {
            let route = match wanted {
                Wanted::No => None,
                Wanted::Alone => Some(vip.trunc()),
                Wanted::Shared => Some(self.route(vip)),
            };
            let before = match route {
                Some(route) => self.vips.insert(vip, route),
                None => self.vips.remove(&vip),
            };
            if before == route {
                continue;
            }
            if let Some(before) = before {
                touched.insert(before);
                if let Some(count) = self.routes.get_mut(&before) {
                    *count -= 1;
                    if *count == 0 {
                        self.routes.remove(&before);
                    }
                }
            }
            if let Some(route) = route {
                touched.insert(route);
                *self.routes.entry(route).or_default() += 1;
            }
        }
        touched.into_iter().map(|route| (route, self.routes.get(&route).copied().unwrap_or_default())).collect()
    }

    /// All routes.
    pub fn routes(&self) -> impl Iterator<Item = IpNet> {
        self.routes.keys().copied()
    }

    /// A prefix of VIPs that is longer than the aggregate is shortened; one that is shorter stays.
    fn route(&self, vip: IpNet) -> IpNet {
        let length = match vip.addr() {
            IpAddr::V4(_) => self.aggregate.ipv4,
            IpAddr::V6(_) => self.aggregate.ipv6,
        };
        IpNet::new(vip.addr(), length.min(vip.prefix_len())).unwrap_or(vip).trunc()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    const WHOLE: Aggregate = Aggregate { ipv4: 32, ipv6: 128 };

    #[test]
    fn a_vip_is_a_route_of_full_length() {
        let mut plan = Plan::new(WHOLE); // M-030
        for vip in ["203.0.113.10/32", "2001:db8:f::10/128", "203.0.113.64/28", "2001:db8:f:1::/64"] {
            assert_eq!(plan.change([(net(vip), Wanted::Shared)]), [(net(vip), 1)]);
            assert_eq!(plan.change([(net(vip), Wanted::Shared)]), [], "no news");
            assert_eq!(plan.change([(net(vip), Wanted::No)]), [(net(vip), 0)]);
            assert_eq!(plan.change([(net(vip), Wanted::No)]), []);
        }
        assert_eq!(plan.routes().count(), 0);
    }

    #[test]
    fn an_aggregate_stands_as_long_as_one_vip_in_it_does() {
        let mut plan = Plan::new(Aggregate { ipv4: 24, ipv6: 64 }); // M-025, M-030
        for (a, b, route) in [
            ("203.0.113.10/32", "203.0.113.11/32", "203.0.113.0/24"),
            ("2001:db8:f::10/128", "2001:db8:f::11/128", "2001:db8:f::/64"),
        ] {
            assert_eq!(plan.change([(net(a), Wanted::Shared), (net(b), Wanted::Shared)]), [(net(route), 2)]);
            assert_eq!(plan.change([(net(a), Wanted::No)]), [(net(route), 1)]);
            assert_eq!(plan.change([(net(b), Wanted::Alone)]), [(net(route), 0), (net(b), 1)]);
            assert_eq!(plan.change([(net(b), Wanted::No)]), [(net(b), 0)]);
        }
        assert_eq!(
            plan.change([(net("203.0.0.0/16"), Wanted::Shared)]),
            [(net("203.0.0.0/16"), 1)],
            "shorter by itself"
        );
    }

    fn vip() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (0u8..40, 26u8..=32).prop_map(|(host, length)| IpNet::new(IpAddr::from([10, 0, 0, host]), length)),
            (0u16..40, 122u8..=128)
                .prop_map(|(host, length)| IpNet::new(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host]), length)),
        ]
        .prop_map(|net| net.unwrap().trunc())
    }

    fn wanted() -> impl Strategy<Value = Wanted> {
        prop_oneof![Just(Wanted::No), Just(Wanted::Alone), Just(Wanted::Shared)]
    }

    proptest! {
        #[test]
        fn what_is_told_adds_up_to_what_a_naive_plan_holds(
            turns in prop::collection::vec(prop::collection::vec((vip(), wanted()), 0..6), 0..30),
            ipv4 in 24u8..=32,
            ipv6 in 120u8..=128,
        ) {
            let mut plan = Plan::new(Aggregate { ipv4, ipv6 });
            let (mut vips, mut told) = (BTreeMap::new(), BTreeMap::new());
            for turn in turns {
                vips.extend(turn.iter().copied());
                for (route, count) in plan.change(turn) {
                    told.insert(route, count);
                }
                told.retain(|_, count| *count > 0);
                let mut naive: BTreeMap<IpNet, u32> = BTreeMap::new();
                for (vip, wanted) in &vips {
                    let most = if vip.addr().is_ipv4() { ipv4 } else { ipv6 };
                    let length = if *wanted == Wanted::Shared { most.min(vip.prefix_len()) } else { vip.prefix_len() };
                    if *wanted != Wanted::No {
                        *naive.entry(IpNet::new(vip.addr(), length).unwrap().trunc()).or_default() += 1;
                    }
                }
                prop_assert_eq!(&told, &naive);
                prop_assert!(plan.routes().eq(naive.keys().copied()));
            }
        }
    }
}
