//! VIPs to be announced by route: those that are served here and, where that is asked for, have somebody who answers.
//!
//! External addresses of pods are VIPs in this respect, and need nobody.
//!
//! Rules M-021 and M-031: an endpoint counts when new clients from outside can be sent to it, on whatever node it is; gateways
//! choose nodes, so `externalTrafficPolicy: Local` changes which weight counts and not which gateway announces. VIPs of
//! several Services stay as long as one of them has somebody (M-025).
//!
//! Costs what has changed: a Service touches its own VIPs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;
use tidegate_api::resource::{Body, Resource, Service, TrafficPolicy};

use crate::routes::plan::Wanted;

/// What is to be announced, and what has been told of it.
#[derive(Debug, Default)]
pub struct Announced {
    /// VIPs without a usable endpoint are not announced.
    withdraw_when_empty: bool,
    /// VIPs that are ours, and whether they lie on a link.
    served: BTreeMap<IpNet, bool>,
    /// How many Services have somebody behind each VIP.
    usable: HashMap<IpNet, u32>,
    touched: BTreeSet<IpNet>,
    told: HashMap<IpNet, Wanted>,
}

impl Announced {
    /// Nothing yet.
    pub fn new(withdraw_when_empty: bool) -> Announced {
        Announced { withdraw_when_empty, ..Announced::default() }
    }

    /// A Service, or an object that names external addresses, came, changed or went.
    pub fn object(&mut self, before: Option<&Resource>, after: Option<&Resource>) {
        if !self.withdraw_when_empty {
            return;
        }
        for vip in usable(before) {
            if let Some(count) = self.usable.get_mut(&vip) {
                *count -= 1;
                if *count == 0 {
                    self.usable.remove(&vip);
                    self.touched.insert(vip);
                }
            }
        }
        for vip in usable(after) {
            *self.usable.entry(vip).or_default() += 1;
            self.touched.insert(vip);
        }
    }

    /// VIPs became ours (and lie on a link, or do not), or are not any more.
    pub fn served(&mut self, changes: impl IntoIterator<Item = (IpNet, Option<bool>)>) {
        for (vip, on_link) in changes {
            match on_link {
                Some(on_link) => self.served.insert(vip, on_link),
                None => self.served.remove(&vip),
            };
            self.touched.insert(vip);
        }
    }

    /// What differs from what was told before.
    pub fn take(&mut self) -> Vec<(IpNet, Wanted)> {
        let touched = std::mem::take(&mut self.touched);
        let mut news = Vec::new();
        for vip in touched {
            let has_somebody = !self.withdraw_when_empty || self.usable.contains_key(&vip);
            let wanted = match self.served.get(&vip) {
                Some(true) if has_somebody => Wanted::Alone,
                Some(false) if has_somebody => Wanted::Shared,
                _ => Wanted::No,
            };
            let before = match wanted {
                Wanted::No => self.told.remove(&vip),
                _ => self.told.insert(vip, wanted),
            };
            if before.unwrap_or_default() != wanted {
                news.push((vip, wanted));
            }
        }
        news
    }
}

/// VIPs of a Service behind which it has somebody, each once; external addresses have.
fn usable(resource: Option<&Resource>) -> BTreeSet<IpNet> {
    let service = match resource.map(|resource| &resource.body) {
        Some(Body::Service(service)) => service,
        Some(Body::Egress(egress)) => return egress.addresses.iter().map(|address| IpNet::from(*address)).collect(),
        Some(Body::StaticNat(nat)) => return BTreeSet::from([nat.external.into()]),
        _ => return BTreeSet::new(),
    };
    let families = [true, false].map(|is_ipv4| has_somebody(service, is_ipv4));
    let vips = service.addresses.iter().map(|address| IpNet::from(*address));
    let vips = vips.chain(service.prefixes.iter().map(IpNet::trunc));
    vips.filter(|vip| if vip.addr().is_ipv4() { families[0] } else { families[1] }).collect()
}

fn has_somebody(service: &Service, is_ipv4: bool) -> bool {
    service.ports.iter().any(|port| {
        let weight = |backend: &tidegate_api::resource::Backend| match port.external_policy {
            TrafficPolicy::Cluster => backend.weight,
            TrafficPolicy::Local => backend.local_weight,
        };
        port.backends.iter().any(|backend| backend.address.is_ipv4() == is_ipv4 && weight(backend) > 0)
    })
}

#[cfg(test)]
mod tests {
    use tidegate_api::resource::{Backend, ServicePort};

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn service(vips: &[&str], policy: TrafficPolicy, backends: &[(&str, u16, u16)]) -> Resource {
        let backends = backends.iter().map(|(address, weight, local_weight)| Backend {
            address: address.parse().unwrap(),
            port: 80,
            weight: *weight,
            local_weight: *local_weight,
            node: "w1".into(),
            pod: String::new(),
        });
        let port = ServicePort { external_policy: policy, backends: backends.collect(), ..ServicePort::default() };
        let addresses = vips.iter().map(|vip| vip.parse().unwrap()).collect();
        let body = Body::Service(Service { addresses, ports: vec![port], ..Service::default() });
        Resource { name: "shop/web".into(), version: "1".into(), body }
    }

    const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8:f::10"];

    fn both() -> [IpNet; 2] {
        [net("203.0.113.10/32"), net("2001:db8:f::10/128")]
    }

    #[test]
    fn what_is_served_is_announced_with_or_without_endpoints() {
        let mut announced = Announced::new(false); // M-021: the default
        let empty = service(&VIPS, TrafficPolicy::Cluster, &[]);
        announced.object(None, Some(&empty));
        assert_eq!(announced.take(), [], "not ours yet");
        announced.served(both().map(|vip| (vip, Some(false))));
        assert_eq!(announced.take(), both().map(|vip| (vip, Wanted::Shared)));
        assert_eq!(announced.take(), []);
        announced.served(both().map(|vip| (vip, Some(true))));
        assert_eq!(announced.take(), both().map(|vip| (vip, Wanted::Alone)), "on a link: never part of an aggregate");
        announced.served(both().map(|vip| (vip, None)));
        assert_eq!(announced.take(), both().map(|vip| (vip, Wanted::No)));
    }

    #[test]
    fn the_last_endpoint_takes_the_route_of_its_family_with_it() {
        let mut announced = Announced::new(true); // M-021, M-031
        announced.served(both().map(|vip| (vip, Some(false))));
        let [v4, v6] = both();
        let with = |backends: &[(&str, u16, u16)]| service(&VIPS, TrafficPolicy::Cluster, backends);
        let (pod_v4, pod_v6) = (("10.244.1.11", 1, 0), ("fd00::11", 1, 0));
        let states = [with(&[]), with(&[pod_v4, pod_v6]), with(&[pod_v6, ("10.244.1.11", 0, 1)]), with(&[])];
        announced.object(None, Some(&states[0]));
        assert_eq!(announced.take(), []);
        announced.object(Some(&states[0]), Some(&states[1]));
        assert_eq!(announced.take(), [(v4, Wanted::Shared), (v6, Wanted::Shared)]);
        announced.object(Some(&states[1]), Some(&states[2]));
        assert_eq!(announced.take(), [(v4, Wanted::No)], "an endpoint that drains gets no new clients");
        announced.object(Some(&states[2]), Some(&states[3]));
        assert_eq!(announced.take(), [(v6, Wanted::No)]);
        announced.object(Some(&states[3]), None);
        assert_eq!(announced.take(), []);
    }

    #[test]
    fn local_policy_asks_for_endpoints_on_any_node() {
        let mut announced = Announced::new(true); // M-031, S-048
        announced.served([(both()[0], Some(false))]);
        let of = |weight, local| service(&VIPS, TrafficPolicy::Local, &[("10.244.1.11", weight, local)]);
        announced.object(None, Some(&of(1, 0)));
        assert_eq!(announced.take(), []);
        announced.object(Some(&of(1, 0)), Some(&of(0, 1)));
        assert_eq!(announced.take(), [(both()[0], Wanted::Shared)]);
    }

    #[test]
    fn a_shared_vip_stays_until_the_last_service_has_nobody() {
        let mut announced = Announced::new(true); // M-025
        announced.served([(both()[0], Some(false))]);
        let of = |pod| service(&VIPS[..1], TrafficPolicy::Cluster, &[(pod, 1, 1)]);
        let (web, dns) = (of("10.244.1.11"), of("10.244.1.12"));
        announced.object(None, Some(&web));
        announced.object(None, Some(&dns));
        assert_eq!(announced.take(), [(both()[0], Wanted::Shared)]);
        announced.object(Some(&web), None);
        assert_eq!(announced.take(), []);
        announced.object(Some(&dns), None);
        assert_eq!(announced.take(), [(both()[0], Wanted::No)]);
    }
}
