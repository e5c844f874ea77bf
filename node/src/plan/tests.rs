//! Plans, held against a naive kernel.
//!
//! The model looks rules up one by one and routes by the longest prefix, and knows of the filter only what it drops. Every
//! state between two changes is looked at, not the last one alone.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;
use crate::choose::score;
use crate::found::Link;
use crate::wanted::{Devices, Mac, Marks, Numbers, Vtep};

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// To a gateway with this overlay address.
    Gateway(IpAddr),
    /// Nowhere.
    Dropped,
    /// Where it went without us.
    Plain,
}

/// A kernel in so many words.
#[derive(Clone, Debug, Default)]
struct Model {
    found: Found,
    filter: Option<Filter>,
}

impl Model {
    fn make(&mut self, change: &Change) {
        let found = &mut self.found;
        match change.clone() {
            Change::LoadFilter(filter) => {
                found.filter = Some(filter.loaded());
                self.filter = Some(filter);
            }
            Change::RemoveFilter => (found.filter, self.filter) = (None, None),
            Change::AddNeighbour(at) => {
                let place =
                    |other: &Neighbour| (other.device.clone(), other.address) == (at.device.clone(), at.address);
                assert!(
                    !found.neighbours.iter().any(|(other, owner)| place(other) && *owner == Owner::Others),
                    "{change}"
                );
                found.neighbours.retain(|(other, _)| !place(other));
                found.neighbours.push((at, Owner::Ours));
            }
            Change::RemoveNeighbour(at) => take(&mut found.neighbours, &(at, Owner::Ours)),
            Change::AddForwarding(at) => {
                let place = |other: &Forwarding| (other.device.clone(), other.mac) == (at.device.clone(), at.mac);
                assert!(
                    !found.forwarding.iter().any(|(other, owner)| place(other) && *owner == Owner::Others),
                    "{change}"
                );
                found.forwarding.retain(|(other, _)| !place(other));
                found.forwarding.push((at, Owner::Ours));
            }
            Change::RemoveForwarding(at) => take(&mut found.forwarding, &(at, Owner::Ours)),
            Change::AddRoute(route) => {
                assert!(!found.taken.contains(&(Family::of_net(&route.entry.prefix), route.table)), "{change}");
                assert!(found.routes.insert(route), "{change}");
            }
            Change::RemoveRoute(route) => assert!(found.routes.remove(&route), "{change}"),
            Change::AddRule(rule) => {
                assert!(!found.rules.contains(&rule), "{change}");
                let place = found.rules.partition_point(|other| other.priority <= rule.priority);
                found.rules.insert(place, rule);
            }
            Change::RemoveRule(rule) => take(&mut found.rules, &rule),
        }
    }

    /// What rules and routes do with a packet.
    fn routed(&self, from: IpAddr, to: IpAddr, mark: u32) -> Fate {
        let family = Family::of(from);
        let mut rules: Vec<&Rule> = self.found.rules.iter().filter(|rule| rule.family == family).collect();
        rules.sort_by_key(|rule| rule.priority);
        for rule in rules {
            if rule.source.is_some_and(|source| !source.contains(&from)) || (mark ^ rule.mark) & rule.mask != 0 {
                continue;
            }
            let of_table = self.found.routes.iter().filter(|route| route.table == rule.table);
            let best = of_table
                .filter(|route| route.entry.prefix.contains(&to))
                .max_by_key(|route| (route.entry.prefix.prefix_len(), std::cmp::Reverse(route.entry.metric)));
            match best.map(|route| &route.entry.way) {
                Some(Way::Through { gateway, .. }) => return Fate::Gateway(*gateway),
                Some(Way::Blackhole) => return Fate::Dropped,
                Some(Way::Throw) | None => {}
            }
        }
        Fate::Plain
    }

    /// The same with the filter in the way of what a pod begins.
    fn fate(&self, from: IpAddr, to: IpAddr) -> Fate {
        let within = |prefixes: &[IpNet]| prefixes.iter().any(|prefix| prefix.contains(&to));
        let captured = |capture: &Capture| {
            let meant = capture.destinations.is_empty() || within(&capture.destinations);
            capture.pods.contains(&from) && meant && !within(&capture.except)
        };
        match self.routed(from, to, 0) {
            Fate::Plain if self.filter.iter().any(|filter| filter.captures.iter().any(captured)) => Fate::Dropped,
            fate => fate,
        }
    }

    /// What a device that goes down takes with it.
    fn lose(&mut self, device: &str) {
        self.found
            .routes
            .retain(|route| !matches!(&route.entry.way, Way::Through { device: over, .. } if over == device));
        self.found.neighbours.retain(|(at, _)| at.device != device);
        self.found.forwarding.retain(|(at, _)| at.device != device);
    }
}

fn take<T: PartialEq + std::fmt::Debug>(list: &mut Vec<T>, what: &T) {
    let place = list.iter().position(|other| other == what).unwrap_or_else(|| panic!("{what:?} is not there"));
    list.remove(place);
}

/// What should become of a packet, from the wishes alone.
fn naive(wanted: &Wanted, found: &Found, from: IpAddr, to: IpAddr) -> Fate {
    for egress in &wanted.egress {
        let Some(pod) = egress.pods.iter().find(|pod| pod.addresses.contains(&from)) else { continue };
        let within = |prefixes: &[IpNet]| prefixes.iter().any(|prefix| prefix.contains(&to));
        let meant = egress.destinations.is_empty() || within(&egress.destinations);
        if !meant || within(&wanted.cluster) || within(&egress.except) {
            return Fate::Plain;
        }
        let family = Family::of(from);
        let device = wanted.devices.of(family);
        let up = device.is_some_and(|device| found.links.get(device).is_some_and(|link| link.up));
        let mut live: Vec<&Gateway> = wanted.gateways.iter().filter(|gateway| gateway.live && up).collect();
        live.retain(|gateway| gateway.vtep(family).is_some());
        live.retain(|gateway| egress.gateways.as_ref().is_none_or(|names| names.contains(&gateway.name)));
        live.sort_by_key(|gateway| score(&gateway.name, &pod.name));
        return live.first().map_or(Fate::Dropped, |gateway| Fate::Gateway(gateway.vtep(family).unwrap().overlay));
    }
    Fate::Plain
}

const DEVICES: [&str; 2] = ["flannel.1", "flannel-v6.1"];

fn prefixes(of: &[&str]) -> Vec<IpNet> {
    of.iter().map(|text| text.parse().unwrap()).collect()
}

fn some_prefixes() -> impl Strategy<Value = Vec<IpNet>> {
    let all = [
        "0.0.0.0/0",
        "192.0.0.0/8",
        "192.0.2.0/24",
        "192.0.2.7/32",
        "10.0.0.0/8",
        "::/0",
        "2001:db8::/32",
        "2001:db8:7::/48",
    ];
    subsequence(prefixes(&all), 0..5).prop_shuffle()
}

/// Packets of both families to everywhere that matters.
fn packets(wanted: &[&Wanted]) -> Vec<(IpAddr, IpAddr)> {
    let to = [
        "192.0.2.7",
        "192.0.2.8",
        "192.1.1.1",
        "203.0.113.5",
        "10.1.1.1",
        "10.244.3.3",
        "2001:db8:7::1",
        "2001:db8:8::1",
        "2600::1",
        "fd00:10:244:3::3",
    ];
    let mut from: Vec<IpAddr> = wanted
        .iter()
        .flat_map(|wanted| &wanted.egress)
        .flat_map(|egress| &egress.pods)
        .flat_map(|pod| pod.addresses.clone())
        .collect();
    from.push("10.244.1.99".parse().unwrap());
    from.push("fd00:10:244:1::99".parse().unwrap());
    let to = to.map(|text| text.parse::<IpAddr>().unwrap());
    from.iter().flat_map(|from| to.iter().filter(|to| to.is_ipv4() == from.is_ipv4()).map(|to| (*from, *to))).collect()
}

fn gateway(number: u8, live: bool, families: u8, moved: bool) -> Gateway {
    let vtep = |family: u8, overlay: String, underlay: String| Vtep {
        overlay: overlay.parse().unwrap(),
        mac: Mac([10, 88, number, u8::from(moved), 0, family]),
        underlay: underlay.parse().unwrap(),
        vni: None,
    };
    let host = number + if moved { 100 } else { 0 };
    Gateway {
        name: format!("gw-{number}"),
        live,
        ipv4: (families & 1 != 0).then(|| vtep(4, format!("10.244.{host}.0"), format!("198.51.100.{host}"))),
        ipv6: (families & 2 != 0).then(|| vtep(6, format!("fd00:10:244:{host}::"), format!("2001:db8:2::{host}"))),
    }
}

fn some_gateways() -> impl Strategy<Value = Vec<Gateway>> {
    let one = |number: u8| {
        (any::<bool>(), any::<bool>(), 1u8..4, prop::bool::weighted(0.1))
            .prop_map(move |(there, live, families, moved)| there.then(|| gateway(number, live, families, moved)))
    };
    (one(1), one(2), one(3)).prop_map(|(a, b, c)| [a, b, c].into_iter().flatten().collect())
}

fn some_wishes() -> impl Strategy<Value = Wanted> {
    let pods = proptest::collection::vec(0u8..3, 6);
    let named = proptest::option::of(subsequence(vec![1u8, 2, 3], 0..3));
    (some_gateways(), pods, some_prefixes(), some_prefixes(), any::<bool>(), named).prop_map(
        |(gateways, pods, destinations, except, symmetric, named)| {
            // Policy 0 is nobody's.
            let of = |policy: u8| -> Vec<Pod> {
                let chosen = (1u8..).zip(&pods).filter(|(_, choice)| **choice == policy);
                chosen
                    .map(|(number, _)| Pod {
                        name: format!("shop/p-{number}"),
                        addresses: vec![
                            format!("10.244.1.{number}").parse().unwrap(),
                            format!("fd00:10:244:1::{number}").parse().unwrap(),
                        ],
                    })
                    .collect()
            };
            let known = |names: Vec<u8>| -> Vec<String> {
                names
                    .iter()
                    .map(|number| format!("gw-{number}"))
                    .filter(|name| gateways.iter().any(|gateway| gateway.name == *name))
                    .collect()
            };
            let first = Egress {
                name: "a".into(),
                pods: of(1),
                gateways: named.map(known),
                carriers: None,
                destinations,
                except,
            };
            let second = Egress {
                name: "b".into(),
                pods: of(2),
                gateways: None,
                carriers: None,
                destinations: vec![],
                except: vec![],
            };
            Wanted {
                devices: Devices { ipv4: Some(DEVICES[0].into()), ipv6: Some(DEVICES[1].into()) },
                cluster: prefixes(&["10.244.0.0/16", "10.96.0.0/12", "fd00:10:244::/48", "198.51.100.0/24"]),
                gateways,
                egress: vec![first, second],
                symmetric: if symmetric { prefixes(&["10.244.1.0/24", "fd00:10:244:1::/64"]) } else { vec![] },
                marks: Marks::default(),
                numbers: Numbers { tables: 40, ..Numbers::default() },
                ..Wanted::default()
            }
        },
    )
}

/// What happens to a node.
#[derive(Clone, Debug)]
enum Op {
    /// Something else is wanted.
    Wish(Box<Wanted>),
    /// Somebody takes something of ours away.
    Harm(u8, usize),
    /// A device goes down, or comes back.
    Device(usize),
    /// The CNI sets what a gateway needs, or something else in its place.
    Cni(usize, bool),
}

fn some_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => some_wishes().prop_map(|wanted| Op::Wish(Box::new(wanted))),
        2 => (0u8..5, any::<prop::sample::Index>()).prop_map(|(kind, index)| Op::Harm(kind, index.index(64))),
        1 => (0usize..2).prop_map(Op::Device),
        1 => (0usize..3, any::<bool>()).prop_map(|(gateway, right)| Op::Cni(gateway, right)),
    ]
}

fn up(found: &mut Found, device: &str, up: bool) {
    found.links.insert(device.into(), Link { up, vni: Some(1), mac: None });
}

/// Plans, makes the changes one by one, and looks at every state on the way.
fn carry_out(model: &mut Model, before: &Wanted, wanted: &Wanted, was_whole: bool) -> Result<(), TestCaseError> {
    let changes = plan(wanted, &model.found);
    let packets = packets(&[before, wanted]);
    let selected = |wanted: &Wanted, from, to| naive(wanted, &Found::default(), from, to) == Fate::Dropped;
    for (step, change) in changes.iter().enumerate() {
        model.make(change);
        for (from, to) in &packets {
            if !selected(wanted, *from, *to) {
                continue;
            }
            // N-111: from the first change on, and before it if it was selected already.
            prop_assert_ne!(model.fate(*from, *to), Fate::Plain, "{} to {} after {}: {}", from, to, step, change);
            if was_whole && selected(before, *from, *to) {
                // By rules and routes alone, were there no filter.
                prop_assert_ne!(
                    model.routed(*from, *to, 0),
                    Fate::Plain,
                    "{} to {} after {}: {}",
                    from,
                    to,
                    step,
                    change
                );
            }
        }
    }
    for (from, to) in &packets {
        let expected = naive(wanted, &model.found, *from, *to);
        prop_assert_eq!(model.routed(*from, *to, 0), expected.clone(), "{} to {}", from, to);
        prop_assert_eq!(model.fate(*from, *to), expected, "{} to {}", from, to);
        // What answers a connection that did not come by a gateway goes as before.
        let plain = wanted.marks.place(crate::wanted::NUMBER_PLAIN);
        prop_assert_eq!(model.routed(*from, *to, plain), Fate::Plain);
        // An answer with a gateway's number goes there, or nowhere.
        for (name, number) in numbers(wanted, &model.found) {
            let gateway = wanted.gateway(&name).unwrap();
            let family = Family::of(*from);
            let inside = wanted.cluster.iter().any(|prefix| prefix.contains(to));
            let expected = match usable(wanted, &model.found, gateway, family) {
                _ if inside => Fate::Plain,
                true => Fate::Gateway(gateway.vtep(family).unwrap().overlay),
                false => Fate::Dropped,
            };
            prop_assert_eq!(model.routed(*from, *to, wanted.marks.place(number)), expected);
        }
    }
    prop_assert_eq!(plan(wanted, &model.found), vec![], "not at rest");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn every_state_on_the_way_keeps_selected_pods_in(first in some_wishes(), ops in proptest::collection::vec(some_op(), 1..8)) {
        let mut model = Model::default();
        DEVICES.iter().for_each(|device| up(&mut model.found, device, true));
        model.found.taken.insert((Family::V4, 7301));
        let mut wanted = first;
        let mut cni = (Vec::new(), Vec::new());
        carry_out(&mut model, &wanted.clone(), &wanted, false)?;
        for op in ops {
            let before = wanted.clone();
            let mut whole = true;
            match op {
                Op::Wish(next) => wanted = *next,
                Op::Device(number) => {
                    let device = DEVICES[number];
                    let was_up = model.found.links[device].up;
                    up(&mut model.found, device, !was_up);
                    if was_up {
                        model.lose(device);
                        cni.0.retain(|(at, _): &(Neighbour, Owner)| at.device != device);
                        cni.1.retain(|(at, _): &(Forwarding, Owner)| at.device != device);
                    }
                }
                Op::Harm(kind, index) => {
                    whole = false;
                    harm(&mut model, kind, index);
                }
                Op::Cni(number, right) => {
                    let Some(gateway) = wanted.gateways.get(number) else { continue };
                    let Some(vtep) = gateway.vtep(Family::V4) else { continue };
                    let mac = if right { vtep.mac } else { Mac([2, 0, 0, 0, 0, 1]) };
                    let neighbour = Neighbour { device: DEVICES[0].into(), address: vtep.overlay, mac };
                    let underlay = if right { vtep.underlay } else { "198.51.100.99".parse().unwrap() };
                    let entry = Forwarding { device: DEVICES[0].into(), mac: vtep.mac, underlay };
                    // What is set by somebody else is somebody else's.
                    model.found.neighbours.retain(|(at, _)| (&at.device, at.address) != (&neighbour.device, neighbour.address));
                    model.found.forwarding.retain(|(at, _)| (&at.device, at.mac) != (&entry.device, entry.mac));
                    model.found.neighbours.push((neighbour, Owner::Others));
                    model.found.forwarding.push((entry, Owner::Others));
                    cni = others(&model);
                }
            }
            carry_out(&mut model, &before, &wanted, whole)?;
            prop_assert_eq!(&others(&model), &cni);
        }
        for change in removal(&model.found) {
            model.make(&change);
        }
        prop_assert_eq!(others(&model), cni);
        let left = Found { links: model.found.links.clone(), taken: model.found.taken.clone(), ..Found::default() };
        let theirs = others(&model);
        prop_assert_eq!(&model.found, &Found { neighbours: theirs.0, forwarding: theirs.1, ..left });
    }
}

type Theirs = (Vec<(Neighbour, Owner)>, Vec<(Forwarding, Owner)>);

fn others(model: &Model) -> Theirs {
    let neighbours = model.found.neighbours.iter().filter(|(_, owner)| *owner == Owner::Others).cloned();
    let forwarding = model.found.forwarding.iter().filter(|(_, owner)| *owner == Owner::Others).cloned();
    (neighbours.collect(), forwarding.collect())
}

fn harm(model: &mut Model, kind: u8, index: usize) {
    let found = &mut model.found;
    let pick = |length: usize| if length == 0 { None } else { Some(index % length) };
    match kind {
        0 => drop(pick(found.rules.len()).map(|at| found.rules.remove(at))),
        1 => {
            let route = pick(found.routes.len()).and_then(|at| found.routes.iter().nth(at).cloned());
            let _ = route.map(|route| found.routes.remove(&route));
        }
        2 => {
            let ours: Vec<usize> =
                (0..found.neighbours.len()).filter(|at| found.neighbours[*at].1 == Owner::Ours).collect();
            drop(pick(ours.len()).map(|at| found.neighbours.remove(ours[at])));
        }
        3 => {
            let ours: Vec<usize> =
                (0..found.forwarding.len()).filter(|at| found.forwarding[*at].1 == Owner::Ours).collect();
            drop(pick(ours.len()).map(|at| found.forwarding.remove(ours[at])));
        }
        _ => (found.filter, model.filter) = (None, None),
    }
}

fn small(live: &[u8]) -> Wanted {
    let pod = Pod { name: "shop/p-1".into(), addresses: vec!["10.244.1.1".parse().unwrap()] };
    Wanted {
        devices: Devices { ipv4: Some(DEVICES[0].into()), ipv6: None },
        cluster: prefixes(&["10.244.0.0/16"]),
        gateways: [1, 2, 3].map(|number| gateway(number, live.contains(&number), 1, false)).into(),
        egress: vec![Egress {
            name: "a".into(),
            pods: vec![pod],
            gateways: None,
            carriers: None,
            destinations: vec![],
            except: vec![],
        }],
        symmetric: prefixes(&["10.244.1.0/24"]),
        marks: Marks { mask: 0x1c, foreign: vec![] },
        numbers: Numbers::default(),
        ..Wanted::default()
    }
}

#[test]
fn gateways_keep_their_numbers_and_new_ones_get_unused_ones() {
    let mut model = Model::default();
    up(&mut model.found, DEVICES[0], true);
    let mut wanted = small(&[1, 2, 3]);
    plan(&wanted, &model.found).iter().for_each(|change| model.make(change));
    let named = |wanted: &Wanted, model: &Model| numbers(wanted, &model.found).into_iter().collect::<Vec<_>>();
    let before = named(&wanted, &model);
    assert_eq!(before, [("gw-1".into(), 2), ("gw-2".into(), 3), ("gw-3".into(), 4)]);
    // Another one in the place of the first: not under its number, connections know it.
    wanted.gateways[0] = gateway(5, true, 1, false);
    assert_eq!(named(&wanted, &model), [("gw-2".into(), 3), ("gw-3".into(), 4), ("gw-5".into(), 5)]);
    // The bits have room for 2 to 7; after the last the first free one comes again.
    wanted.gateways = (2..8).map(|number| gateway(number, true, 1, false)).collect();
    let all = named(&wanted, &model);
    let taken: BTreeSet<u32> = all.iter().map(|(_, number)| *number).collect();
    assert_eq!((all.len(), taken), (6, (2..8).collect()));
    assert_eq!(&all[..2], [("gw-2".into(), 3), ("gw-3".into(), 4)]);
}

#[test]
fn what_no_plan_can_mend_is_told() {
    let mut model = Model::default();
    let mut wanted = small(&[1]);
    let told = |wanted: &Wanted, model: &Model| conflicts(wanted, &model.found).join("\n");
    assert!(told(&wanted, &model).contains("flannel.1 is not there"));
    up(&mut model.found, DEVICES[0], false);
    assert!(told(&wanted, &model).contains("flannel.1 is down"));
    up(&mut model.found, DEVICES[0], true);
    plan(&wanted, &model.found).iter().for_each(|change| model.make(change));
    assert_eq!(told(&wanted, &model), "");
    wanted.gateways[0].ipv4.as_mut().unwrap().vni = Some(4096);
    assert!(told(&wanted, &model).contains("flannel.1 has VNI 1, not that of gw-1"));
    model.found.neighbours[0] = (Neighbour { mac: Mac([2; 6]), ..model.found.neighbours[0].0.clone() }, Owner::Others);
    model.found.forwarding[0] =
        (Forwarding { underlay: "192.0.2.99".parse().unwrap(), ..model.found.forwarding[0].0.clone() }, Owner::Others);
    model.found.foreign_marks.insert((0x10, 0xff, 99));
    model.found.links.get_mut(DEVICES[0]).unwrap().mac = wanted.gateways[0].ipv4.as_ref().map(|vtep| vtep.mac);
    let all = told(&wanted, &model);
    for part in [
        "10.244.1.0 is 02:02",
        "is at 192.0.2.99 for somebody else",
        "rule 99 of somebody else",
        "this node is that gateway",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
    wanted.numbers.tables = 1;
    let mut empty = Model::default();
    up(&mut empty.found, DEVICES[0], true);
    assert!(told(&wanted, &empty).contains("rules have no table"));
}

/// Pods that each have an address alone are many objects with the same destinations.
#[test]
fn pods_with_equal_destinations_share_a_capture() {
    let mut wanted = small(&[1]);
    let number = |number: u8, except: &[&str]| Egress {
        name: format!("StaticNat own-{number}"),
        pods: vec![Pod {
            name: format!("shop/p-{number}"),
            addresses: vec![
                format!("10.244.1.{number}").parse().unwrap(),
                format!("fd00:10:244:1::{number}").parse().unwrap(),
            ],
        }],
        except: prefixes(except),
        ..wanted.egress[0].clone()
    };
    let all = [number(1, &[]), number(2, &[]), number(3, &["192.0.2.0/24"])];
    wanted.egress = all.into();
    let of: Vec<Vec<String>> =
        captures(&wanted).iter().map(|capture| capture.pods.iter().map(ToString::to_string).collect()).collect();
    let alike = ["10.244.1.1", "10.244.1.2", "fd00:10:244:1::1", "fd00:10:244:1::2"].map(str::to_owned);
    assert_eq!(of, [alike.to_vec(), ["10.244.1.3", "fd00:10:244:1::3"].map(str::to_owned).to_vec()]);
}

#[test]
fn pods_with_equal_ways_share_a_table() {
    let mut model = Model::default();
    up(&mut model.found, DEVICES[0], true);
    let mut wanted = small(&[1]);
    wanted.symmetric.clear();
    wanted.egress[0].pods.extend((2..100).map(|number| Pod {
        name: format!("shop/p-{number}"),
        addresses: vec![format!("10.244.1.{number}").parse().unwrap()],
    }));
    plan(&wanted, &model.found).iter().for_each(|change| model.make(change));
    let tables: BTreeSet<u32> = model.found.routes.iter().map(|route| route.table).collect();
    // A rule for each pod, and one for the answers of each gateway: the one that lives has the pods' table.
    assert_eq!((model.found.rules.len(), tables.len()), (99 + 3, 2));
    // A gateway that goes: two tables for a moment, one in the end.
    wanted.gateways[0].live = false;
    let changes = plan(&wanted, &model.found);
    let first_removal = changes.iter().position(Change::removes).unwrap();
    assert!(changes[first_removal..].iter().all(Change::removes), "what comes, comes before what goes: {changes:?}");
}
