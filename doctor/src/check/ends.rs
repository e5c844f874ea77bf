//! Whether a worker's tunnels lead to everybody they know.
//!
//! An overlay by VXLAN without learning, as flannel and Calico set it up, has three entries for each other node: a route to its
//! pods by its VTEP, a neighbour with the link-layer address of that VTEP, and a forwarding entry with the underlay address
//! for that one. Which nodes and gateways there are nobody here knows, but where one of the three is gone the others tell of
//! it. Refuses to judge a device that learns, where entries come and go by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_dataplane::kernel::once::Forwarding;
use tidegate_dataplane::kernel::{KernelFacts, RouteKind, Table, nud};
use tidegate_io::netdev::NetDevice;

use super::fine;
use crate::{Finding, Machine, Verdict};

/// VTEPs that are told one by one for each device.
const TOLD_MAX: usize = 8;

/// Looks at all VXLAN devices.
pub fn look(machine: &Machine, tunnels: &[NetDevice]) -> Vec<Finding> {
    let read = || -> io::Result<_> { Ok((machine.network()?, machine.forwarding()?)) };
    match read() {
        Ok((facts, forwarding)) => tunnels
            .iter()
            .flat_map(|tunnel| ends(&tunnel.name, Entries::of(tunnel.ifindex, &facts, &forwarding)))
            .collect(),
        Err(error) => {
            let found = format!("routes and neighbours of tunnels cannot be read: {error}");
            vec![Finding::new("tunnel", "", Verdict::Note, found)]
        }
    }
}

/// What one device has.
#[derive(Debug, Default)]
struct Entries {
    /// Prefixes, and the VTEP that each leads to.
    routes: Vec<(IpNet, IpAddr)>,
    /// Link-layer addresses of VTEPs, and whether somebody set them.
    neighbours: BTreeMap<IpAddr, ([u8; 6], bool)>,
    /// Link-layer addresses with a destination.
    forwarding: BTreeSet<[u8; 6]>,
}

impl Entries {
    fn of(ifindex: u32, facts: &KernelFacts, forwarding: &[Forwarding]) -> Entries {
        let of_main =
            facts.layout.routes.iter().filter(|route| (route.table, route.kind) == (Table::Main, RouteKind::Unicast));
        let routes = of_main.flat_map(|route| {
            let hops = route.hops.iter().filter(|hop| hop.ifindex == ifindex);
            hops.filter_map(|hop| Some((route.prefix, hop.gateway?)))
        });
        let neighbours = facts.neighbours.iter().filter(|(key, _)| key.ifindex == ifindex);
        let neighbours = neighbours.filter_map(|(key, neighbour)| {
            Some((key.address, (neighbour.usable_mac()?, neighbour.state & nud::PERMANENT != 0)))
        });
        let forwarding = forwarding.iter().filter(|entry| entry.ifindex == ifindex).map(|entry| entry.mac);
        Entries { routes: routes.collect(), neighbours: neighbours.collect(), forwarding: forwarding.collect() }
    }

    /// Whether entries are set, and not learnt: somebody has set one, and what has no entry goes nowhere.
    fn are_set(&self) -> bool {
        let is_set = self.neighbours.values().any(|(_, is_set)| *is_set) || !self.forwarding.is_empty();
        is_set && !self.forwarding.contains(&[0; 6])
    }

    /// Link-layer addresses with a destination that no neighbour has: of a family, since each has a device of its own.
    fn unused(&self) -> Vec<[u8; 6]> {
        let used: BTreeSet<[u8; 6]> = self.neighbours.values().map(|(mac, _)| *mac).collect();
        self.forwarding.difference(&used).copied().collect()
    }

    /// The prefix that the pods of a VTEP have, where all others begin with their VTEP and are equally long, as flannel's do.
    fn prefix_of(&self, vtep: IpAddr) -> Option<IpNet> {
        let alike = self.routes.iter().filter(|(prefix, via)| prefix.addr() == *via && via.is_ipv4() == vtep.is_ipv4());
        let lengths: BTreeSet<u8> = alike.map(|(prefix, _)| prefix.prefix_len()).collect();
        let length = lengths.first().filter(|_| lengths.len() == 1)?;
        IpNet::new(vtep, *length).ok().filter(|prefix| prefix.trunc().addr() == vtep)
    }
}

fn mac(octets: [u8; 6]) -> String {
    let mut text = String::new();
    for (at, octet) in octets.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{}{octet:02x}", if at == 0 { "" } else { ":" });
    }
    text
}

/// Annotations of a Node that have its link-layer and its underlay address, as flannel names them for the family of a VTEP.
fn annotations(vtep: IpAddr) -> (&'static str, &'static str) {
    match vtep {
        IpAddr::V4(_) => ("backend-data", "public-ip"),
        IpAddr::V6(_) => ("backend-v6-data", "public-ipv6"),
    }
}

/// What is missing on one device.
fn ends(device: &str, entries: Entries) -> Vec<Finding> {
    if !entries.are_set() {
        return Vec::new();
    }
    let fail = |found: String, fix: String| Finding::new("tunnel", device, Verdict::Fail, found).mended_by(fix);
    let mut findings = Vec::new();
    let vteps: BTreeMap<IpAddr, IpNet> = entries.routes.iter().map(|(prefix, via)| (*via, *prefix)).collect();
    let unused = entries.unused();
    for (vtep, prefix) in &vteps {
        if entries.neighbours.contains_key(vtep) {
            continue;
        }
        let found = format!("no neighbour {vtep}, by which the route to {prefix} leads");
        let known = match unused.as_slice() {
            [only] => mac(*only),
            _ => format!("MAC, with that of the annotation {} of its Node", annotations(*vtep).0),
        };
        findings.push(fail(found, format!("ip neigh replace {vtep} dev {device} nud permanent lladdr {known}")));
    }
    for (vtep, (own, is_set)) in &entries.neighbours {
        if (*is_set || vteps.contains_key(vtep)) && !entries.forwarding.contains(own) {
            let (of_mac, of_underlay) = annotations(*vtep);
            let append = format!("bridge fdb append {} dev {device} dst ADDRESS, with that of", mac(*own));
            let found = format!("no forwarding entry for {}, which is the VTEP {vtep}", mac(*own));
            let (found, fix) = match unused.as_slice() {
                [other] => (
                    format!("{found}; there is one for {}, which no neighbour has", mac(*other)),
                    format!(
                        "ip neigh replace {vtep} dev {device} nud permanent lladdr {other}, if {of_mac} of its Node has {other}; \
                         else {append} {of_underlay}",
                        other = mac(*other)
                    ),
                ),
                _ => (found, format!("{append} the annotation {of_underlay} of its Node")),
            };
            findings.push(fail(found, fix));
        }
        let is_routed = entries.routes.iter().any(|(prefix, _)| prefix.prefix_len() > 0 && prefix.contains(vtep));
        if *is_set && !is_routed {
            let found = format!("no route to the pods behind the VTEP {vtep}, which is {}", mac(*own));
            let prefix = entries.prefix_of(*vtep).map_or_else(|| "PREFIX".to_owned(), |prefix| prefix.to_string());
            findings.push(fail(found, format!("ip route add {prefix} via {vtep} dev {device} onlink")));
        }
    }
    if findings.is_empty() && !unused.is_empty() {
        let macs: Vec<String> = unused.iter().take(TOLD_MAX).map(|own| mac(*own)).collect();
        let found = format!("forwarding entries without a neighbour and a route that lead there: {}", macs.join(", "));
        let fix = "restart the agent of the CNI on this node, which writes all of them anew; bridge fdb del takes away what a \
                   node has left that is gone";
        return vec![Finding::new("tunnel", device, Verdict::Warn, found).mended_by(fix)];
    }
    if findings.is_empty() {
        return vec![fine("tunnel", device, format!("leads to {} nodes", entries.neighbours.len()))];
    }
    let more = findings.len().saturating_sub(TOLD_MAX);
    findings.truncate(TOLD_MAX);
    if more > 0 {
        let fix = "restart the agent of the CNI on this node, which writes all of them anew".to_owned();
        findings.push(fail(format!("{more} more entries are missing"), fix));
    }
    findings
}

#[cfg(test)]
mod tests {
    use tidegate_dataplane::kernel::{Hop, Neighbour, NeighbourKey, Route};

    use super::super::tests::told;
    use super::*;

    const DEVICE: u32 = 7;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Nodes 1 and 9 of flannel's overlay.
    fn whole(is_v4: bool) -> (KernelFacts, Vec<Forwarding>) {
        let (mut facts, mut forwarding) = (KernelFacts::default(), Vec::new());
        for node in [1u8, 9] {
            let (vtep, length, underlay) = match is_v4 {
                true => (format!("10.244.{node}.0"), 24, "198.51.100.1"),
                false => (format!("fd00:10:244:{node}::"), 64, "2001:db8:2::1"),
            };
            let vtep = ip(&vtep);
            facts.layout.routes.push(Route {
                prefix: IpNet::new(vtep, length).unwrap(),
                table: Table::Main,
                metric: 0,
                kind: RouteKind::Unicast,
                hops: vec![Hop { gateway: Some(vtep), ifindex: DEVICE, weight: 1, down: false }],
                mtu: None,
            });
            let mac = [10, 0, 0, 0, 0, node];
            let neighbour = Neighbour { mac: Some(mac), state: nud::PERMANENT, managed: false };
            facts.neighbours.insert(NeighbourKey { ifindex: DEVICE, address: vtep }, neighbour);
            forwarding.push(Forwarding { ifindex: DEVICE, mac, destination: ip(underlay) });
        }
        (facts, forwarding)
    }

    fn says((facts, forwarding): &(KernelFacts, Vec<Forwarding>)) -> Vec<String> {
        told(&ends("flannel.1", Entries::of(DEVICE, facts, forwarding)), "tunnel")
    }

    #[test]
    fn each_of_the_three_entries_that_is_gone_is_named_with_the_command() {
        for (is_v4, vtep, prefix, underlay) in [
            (true, "10.244.9.0", "10.244.9.0/24", "public-ip"),
            (false, "fd00:10:244:9::", "fd00:10:244:9::/64", "public-ipv6"),
        ] {
            assert_eq!(says(&whole(is_v4)), ["Ok flannel.1 | leads to 2 nodes | -"]);

            let mut lost = whole(is_v4);
            lost.0.layout.routes.pop();
            assert_eq!(
                says(&lost),
                [format!(
                    "Fail flannel.1 | no route to the pods behind the VTEP {vtep}, which is 0a:00:00:00:00:09 | ip route \
                     add {prefix} via {vtep} dev flannel.1 onlink"
                )]
            );
            // A route to somebody else by that VTEP is not one to its pods.
            let mut other = lost.0.layout.routes[0].clone();
            (other.prefix, other.hops[0].gateway) =
                (ip(if is_v4 { "192.0.2.7" } else { "2001:db8::7" }).into(), Some(ip(vtep)));
            lost.0.layout.routes.push(other);
            assert_eq!(says(&lost).len(), 1);

            let mut lost = whole(is_v4);
            lost.0.neighbours.retain(|key, _| key.address != ip(vtep));
            assert_eq!(
                says(&lost),
                [format!(
                    "Fail flannel.1 | no neighbour {vtep}, by which the route to {prefix} leads | ip neigh replace {vtep} \
                     dev flannel.1 nud permanent lladdr 0a:00:00:00:00:09"
                )]
            );

            let mut lost = whole(is_v4);
            lost.1.pop();
            assert_eq!(
                says(&lost),
                [format!(
                    "Fail flannel.1 | no forwarding entry for 0a:00:00:00:00:09, which is the VTEP {vtep} | bridge fdb \
                     append 0a:00:00:00:00:09 dev flannel.1 dst ADDRESS, with that of the annotation {underlay} of its Node"
                )]
            );

            // A neighbour with a MAC that nobody has, and the entry of the one it had.
            let mut wrong = whole(is_v4);
            let key = NeighbourKey { ifindex: DEVICE, address: ip(vtep) };
            wrong.0.neighbours.get_mut(&key).unwrap().mac = Some([10, 0, 0, 0, 0, 0x77]);
            let told = says(&wrong);
            let (found, fix) = told[0].rsplit_once(" | ").unwrap();
            assert!(found.contains(&format!("for 0a:00:00:00:00:77, which is the VTEP {vtep}")), "{found}");
            assert!(found.ends_with("there is one for 0a:00:00:00:00:09, which no neighbour has"), "{found}");
            let replace = format!("ip neigh replace {vtep} dev flannel.1 nud permanent lladdr 0a:00:00:00:00:09, if ");
            assert!(fix.starts_with(&replace) && fix.contains(underlay), "{fix}");

            // Nothing but the forwarding entry is left.
            let mut left = whole(is_v4);
            left.0.layout.routes.pop();
            left.0.neighbours.retain(|key, _| key.address != ip(vtep));
            let told = says(&left);
            assert!(told.len() == 1 && told[0].starts_with("Warn flannel.1 | forwarding entries without"), "{told:?}");
            assert!(told[0].contains("0a:00:00:00:00:09"), "{told:?}");

            // Another one's entries are no help, and a device that learns is not judged.
            let mut other = whole(is_v4);
            other.1.iter_mut().for_each(|entry| entry.ifindex = 8);
            assert_eq!(says(&other).len(), 2);
            let mut learns = whole(is_v4);
            learns.1 = vec![Forwarding { mac: [0; 6], ..learns.1[0] }];
            assert_eq!(says(&learns), Vec::<String>::new());
            assert_eq!(says(&Default::default()), Vec::<String>::new());
        }
    }

    #[test]
    fn of_many_that_are_gone_some_are_named() {
        let mut entries = Entries::default();
        for node in 0..20u8 {
            entries.neighbours.insert(ip(&format!("10.244.{node}.0")), ([2, 0, 0, 0, 0, node], true));
            entries.forwarding.insert([2, 0, 0, 0, 0, node]);
        }
        let findings = told(&ends("flannel.1", entries), "tunnel");
        assert_eq!(findings.len(), TOLD_MAX + 1);
        assert!(findings[0].ends_with("ip route add PREFIX via 10.244.0.0 dev flannel.1 onlink"), "{findings:?}");
        assert!(findings[TOLD_MAX].starts_with("Fail flannel.1 | 12 more entries are missing"), "{findings:?}");
    }
}
