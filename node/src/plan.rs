//! The plan: which changes lead from what was found to what is wanted, and in which order.
//!
//! Pure, and the whole of what the agent decides. A table of routes is never altered: one that should say something else
//! (because a gateway moved, or because somebody took a route out of it) is built anew under a free number, rules come to
//! lead there, and the old one goes. So at any moment between two changes every selected pod's packet finds a complete
//! table, the old or the new one, and each table ends with a route that discards (N-111). Beside that, the first change is
//! always the filter, which lets nothing that a selected pod begins out by another device.
//!
//! ```text
//! filter (those that leave still exempt) → neighbours, forwarding → routes → rules
//!                                      → rules go → routes go → neighbours, forwarding go → filter
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::choose::choose;
use crate::filter::{Capture, Filter};
use crate::found::{Change, Entry, Forwarding, Found, METRIC, METRIC_LAST, Neighbour, Owner, Route, Rule, Way};
use crate::wanted::{Egress, FAMILIES, Family, Gateway, NUMBER_FIRST, Pod, Wanted};

/// What a table says.
pub type Content = BTreeSet<Entry>;

/// Where packets of one pod go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice<'a> {
    /// The policy.
    pub egress: &'a Egress,
    /// The pod.
    pub pod: &'a Pod,
    /// One of its addresses.
    pub address: IpAddr,
    /// The gateway; none: nowhere (N-111).
    pub gateway: Option<&'a Gateway>,
}

/// Every address of every selected pod with its gateway, in the order of the file.
pub fn choices<'a>(wanted: &'a Wanted, found: &Found) -> Vec<Choice<'a>> {
    let mut choices = Vec::new();
    for egress in &wanted.egress {
        for pod in &egress.pods {
            for address in &pod.addresses {
                let family = Family::of(*address);
                let named =
                    |gateway: &&Gateway| egress.gateways.as_ref().is_none_or(|names| names.contains(&gateway.name));
                let carries = |gateway: &&Gateway| {
                    egress.carriers.as_ref().is_none_or(|carriers| carriers.of(family) == Some(&gateway.name))
                };
                let named = |gateway: &&Gateway| named(gateway) && carries(gateway);
                let usable =
                    wanted.gateways.iter().filter(named).filter(|gateway| usable(wanted, found, gateway, family));
                let gateway = choose(usable.map(|gateway| gateway.name.as_str()), &pod.name);
                let gateway = gateway.and_then(|name| wanted.gateway(name));
                choices.push(Choice { egress, pod, address: *address, gateway });
            }
        }
    }
    choices
}

/// True when packets of `family` can be sent to `gateway` now.
pub fn usable(wanted: &Wanted, found: &Found, gateway: &Gateway, family: Family) -> bool {
    let up = wanted.devices.of(family).and_then(|device| found.links.get(device)).is_some_and(|link| link.up);
    gateway.live && up && gateway.vtep(family).is_some()
}

/// The numbers of gateways in marks. One that has a number keeps it, since connections remember it; a new one gets one that
/// was not used lately.
pub fn numbers(wanted: &Wanted, found: &Found) -> BTreeMap<String, u32> {
    let mut numbers = BTreeMap::new();
    if wanted.symmetric.is_empty() && wanted.egress.iter().all(|egress| egress.pods.is_empty()) {
        return numbers;
    }
    let (first, last) = (NUMBER_FIRST, wanted.marks.number_max());
    let before = found.filter.as_ref().map(|loaded| loaded.numbers.clone()).unwrap_or_default();
    for gateway in &wanted.gateways {
        let known = FAMILIES.into_iter().find_map(|family| before.get(&gateway.vtep(family)?.mac).copied());
        let free =
            known.filter(|number| (first..=last).contains(number) && !numbers.values().any(|taken| taken == number));
        if let Some(number) = free {
            numbers.insert(gateway.name.clone(), number);
        }
    }
    let mut next = before.values().copied().max().unwrap_or(0).saturating_add(1);
    for gateway in &wanted.gateways {
        if numbers.contains_key(&gateway.name) {
            continue;
        }
        for _ in first..=last {
            next = if (first..=last).contains(&next) { next } else { first };
            if !numbers.values().any(|taken| *taken == next) {
                numbers.insert(gateway.name.clone(), next);
                break;
            }
            next += 1;
        }
    }
    numbers
}

/// What the tables should say, and the rules that lead there.
#[derive(Debug, Default)]
pub struct Target {
    /// Rules without their table, each with what that table says.
    pub rules: Vec<(Rule, Content)>,
}

/// Every rule that is wanted, its table being 0.
pub fn target(wanted: &Wanted, found: &Found) -> Target {
    let (priority, mask) = (wanted.numbers.priority, wanted.marks.mask);
    let mut rules = Vec::new();
    let numbers = numbers(wanted, found);
    for gateway in &wanted.gateways {
        let Some(number) = numbers.get(&gateway.name) else { continue };
        for family in FAMILIES.into_iter().filter(|family| wanted.devices.of(*family).is_some()) {
            let way = usable(wanted, found, gateway, family).then_some(gateway);
            let content = content(wanted, family, &[], &wanted.cluster, way);
            let mark = wanted.marks.place(*number);
            rules.push((Rule { family, priority, source: None, mark, mask, table: 0 }, content));
        }
    }
    let mut contents: BTreeMap<IpAddr, Content> = BTreeMap::new();
    let choices = choices(wanted, found);
    for choice in &choices {
        let except = wanted.exceptions(choice.egress);
        let family = Family::of(choice.address);
        let content = content(wanted, family, &choice.egress.destinations, &except, choice.gateway);
        contents.entry(choice.address).or_default().extend(content);
    }
    for address in choices.iter().map(|choice| choice.address) {
        // One rule for all policies of a pod.
        let Some(content) = contents.remove(&address).filter(|content| !content.is_empty()) else { continue };
        let source = Some(IpNet::from(address));
        let family = Family::of(address);
        rules.push((Rule { family, priority: priority + 1, source, mark: 0, mask, table: 0 }, content));
    }
    Target { rules }
}

/// The content of a table: `destinations` (none: everything) through `gateway`, or nowhere, except what is left to others.
fn content(
    wanted: &Wanted,
    family: Family,
    destinations: &[IpNet],
    except: &[IpNet],
    gateway: Option<&Gateway>,
) -> Content {
    let everything = [family.everything()];
    let destinations = if destinations.is_empty() { &everything } else { destinations };
    let of_family = |prefixes: &[IpNet]| -> Vec<IpNet> {
        prefixes.iter().filter(|prefix| Family::of_net(prefix) == family).map(IpNet::trunc).collect()
    };
    // The longest prefix wins in the kernel, the exception always: destinations inside of one are not said.
    let except = IpNet::aggregate(&of_family(except));
    let mut destinations = IpNet::aggregate(&of_family(destinations));
    destinations.retain(|prefix| !except.iter().any(|exception| exception.contains(prefix)));
    let mut content = Content::new();
    let vtep = gateway.and_then(|gateway| gateway.vtep(family)).zip(wanted.devices.of(family));
    for prefix in &destinations {
        if let Some((vtep, device)) = vtep {
            let way = Way::Through { gateway: vtep.overlay, device: device.to_owned() };
            content.insert(Entry { prefix: *prefix, way, metric: METRIC });
        }
        content.insert(Entry { prefix: *prefix, way: Way::Blackhole, metric: METRIC_LAST });
    }
    for prefix in except.into_iter().filter(|prefix| destinations.iter().any(|wide| wide.contains(prefix))) {
        content.insert(Entry { prefix, way: Way::Throw, metric: METRIC });
    }
    content
}

/// What must not leave by another device: pods that go to the same destinations together.
fn captures(wanted: &Wanted) -> Vec<Capture> {
    let mut policies: BTreeMap<IpAddr, BTreeSet<usize>> = BTreeMap::new();
    for (number, egress) in wanted.egress.iter().enumerate() {
        for address in egress.pods.iter().flat_map(|pod| &pod.addresses) {
            policies.entry(*address).or_default().insert(number);
        }
    }
    let mut captures: BTreeMap<BTreeSet<usize>, Capture> = BTreeMap::new();
    for (address, numbers) in policies {
        let capture = captures.entry(numbers.clone()).or_insert_with(|| {
            let egresses = || numbers.iter().filter_map(|number| wanted.egress.get(*number));
            let mut except: Vec<IpNet> = egresses().flat_map(|egress| wanted.exceptions(egress)).collect();
            except.sort_unstable();
            except.dedup();
            let destinations = egresses().flat_map(|egress| egress.destinations.iter().copied()).collect();
            Capture { pods: BTreeSet::new(), destinations, except }
        });
        capture.pods.insert(address);
    }
    // Pods that each have an address alone differ in name only.
    let mut merged: BTreeMap<(Vec<IpNet>, Vec<IpNet>), BTreeSet<IpAddr>> = BTreeMap::new();
    for Capture { pods, destinations, except } in captures.into_values() {
        merged.entry((destinations, except)).or_default().extend(pods);
    }
    let capture = |((destinations, except), pods)| Capture { pods, destinations, except };
    merged.into_iter().map(capture).collect()
}

/// The filter that belongs to `wanted`.
pub fn filter(wanted: &Wanted, found: &Found) -> Filter {
    let numbers = numbers(wanted, found);
    let macs = |gateway: &Gateway| FAMILIES.into_iter().filter_map(|family| Some(gateway.vtep(family)?.mac)).collect();
    let captures = captures(wanted);
    Filter {
        marks: wanted.marks.clone(),
        devices: FAMILIES.into_iter().filter_map(|family| wanted.devices.of(family)).map(str::to_owned).collect(),
        cluster: wanted.cluster.clone(),
        pods: captures.iter().flat_map(|capture| capture.pods.iter().copied()).collect(),
        captures,
        held: wanted.held.clone().unwrap_or_default(),
        symmetric: wanted.symmetric.clone(),
        gateways: wanted
            .gateways
            .iter()
            .filter_map(|gateway| Some((*numbers.get(&gateway.name)?, macs(gateway))))
            .collect(),
    }
}

/// The changes from `found` to `wanted`, in order. None: it is so.
pub fn plan(wanted: &Wanted, found: &Found) -> Vec<Change> {
    let mut changes = Vec::new();
    let (rules, routes) = number_tables(wanted, found, target(wanted, found));

    // Pods that stop to be selected are exempt from masquerading for as long as rules send them through a gateway.
    let last = filter(wanted, found);
    let mut first = last.clone();
    first.pods.extend(found.rules.iter().filter_map(|rule| rule.source).map(|source| source.addr()));
    let is_loaded = |filter: &Filter| found.filter.as_ref() == Some(&filter.loaded());
    if first != last || !is_loaded(&last) {
        changes.push(Change::LoadFilter(first.clone()));
    }

    let (mut come, mut go) = (Vec::new(), Vec::new());
    neighbours(wanted, found, &mut come, &mut go);
    forwarding(wanted, found, &mut come, &mut go);
    changes.extend(come);
    changes.extend(in_order(routes.difference(&found.routes)).map(Change::AddRoute));
    changes.extend(rules.iter().filter(|rule| !found.rules.contains(rule)).cloned().map(Change::AddRule));
    changes.extend(found.rules.iter().filter(|rule| !rules.contains(rule)).cloned().map(Change::RemoveRule));
    let stale = in_order(found.routes.difference(&routes));
    changes.extend(stale.rev().map(Change::RemoveRoute));
    changes.extend(go);
    if first != last {
        changes.push(Change::LoadFilter(last));
    }
    changes
}

/// Discarding routes before those that are to be used.
fn in_order<'a>(routes: impl Iterator<Item = &'a Route>) -> std::vec::IntoIter<Route> {
    let rank = |route: &Route| match route.entry.way {
        Way::Blackhole => 0,
        Way::Throw => 1,
        Way::Through { .. } => 2,
    };
    let mut routes: Vec<Route> = routes.cloned().collect();
    routes.sort_by_key(rank);
    routes.into_iter()
}

/// The changes that leave nothing of ours.
pub fn removal(found: &Found) -> Vec<Change> {
    let mut changes: Vec<Change> = found.rules.iter().cloned().map(Change::RemoveRule).collect();
    changes.extend(in_order(found.routes.iter()).rev().map(Change::RemoveRoute));
    let ours = |owner: &Owner| *owner == Owner::Ours;
    changes.extend(
        found.neighbours.iter().filter(|(_, owner)| ours(owner)).map(|(at, _)| Change::RemoveNeighbour(at.clone())),
    );
    changes.extend(
        found.forwarding.iter().filter(|(_, owner)| ours(owner)).map(|(at, _)| Change::RemoveForwarding(at.clone())),
    );
    if found.filter.is_some() {
        changes.push(Change::RemoveFilter);
    }
    changes
}

/// Gives every content a table: the one that says just that already, or a free one.
fn number_tables(wanted: &Wanted, found: &Found, target: Target) -> (Vec<Rule>, BTreeSet<Route>) {
    let mut there: BTreeMap<(Family, u32), Content> = BTreeMap::new();
    for route in &found.routes {
        let key = (Family::of_net(&route.entry.prefix), route.table);
        there.entry(key).or_default().insert(route.entry.clone());
    }
    let mut used: BTreeMap<(Family, Content), u32> = BTreeMap::new();
    for ((family, table), content) in &there {
        if !found.taken.contains(&(*family, *table)) {
            used.entry((*family, content.clone())).or_insert(*table);
        }
    }
    let mut given: BTreeMap<(Family, Content), u32> = BTreeMap::new();
    let (mut rules, mut routes) = (Vec::new(), BTreeSet::new());
    for (rule, content) in target.rules {
        let key = (rule.family, content);
        let table = given.get(&key).or_else(|| used.get(&key)).copied().or_else(|| {
            let numbers = &wanted.numbers;
            // Rules of ours may lead to a table that was emptied: it is not free while they do.
            let led_to = |table| found.rules.iter().any(|rule| rule.family == key.0 && rule.table == table);
            (numbers.table_first..numbers.table_first.saturating_add(numbers.tables)).find(|table| {
                let at = (key.0, *table);
                let taken = there.contains_key(&at) || found.taken.contains(&at) || led_to(*table);
                !taken && !given.iter().any(|((family, _), given)| (*family, *given) == at)
            })
        });
        // Without a table there is no rule, and the filter drops: told as a problem.
        let Some(table) = table else { continue };
        routes.extend(key.1.iter().map(|entry| Route { table, entry: entry.clone() }));
        given.insert(key, table);
        rules.push(Rule { table, ..rule });
    }
    (rules, routes)
}

/// Neighbours that gateways' routes need. What others say is left as it is, also when it is something else.
fn neighbours(wanted: &Wanted, found: &Found, come: &mut Vec<Change>, go: &mut Vec<Change>) {
    let mut needed = BTreeSet::new();
    for (gateway, family) in pairs(wanted) {
        if let Some((vtep, device)) = gateway.vtep(family).zip(wanted.devices.of(family))
            && usable(wanted, found, gateway, family)
        {
            needed.insert(Neighbour { device: device.to_owned(), address: vtep.overlay, mac: vtep.mac });
        }
    }
    let place = |at: &Neighbour| (at.device.clone(), at.address);
    for wish in &needed {
        let there = found.neighbours.iter().find(|(at, _)| place(at) == place(wish));
        if there.is_none_or(|(at, owner)| *owner == Owner::Ours && at != wish) {
            come.push(Change::AddNeighbour(wish.clone()));
        }
    }
    for (at, _) in found.neighbours.iter().filter(|(_, owner)| *owner == Owner::Ours) {
        if !needed.iter().any(|wish| place(wish) == place(at)) {
            go.push(Change::RemoveNeighbour(at.clone()));
        }
    }
}

/// The same for forwarding entries.
fn forwarding(wanted: &Wanted, found: &Found, come: &mut Vec<Change>, go: &mut Vec<Change>) {
    let mut needed = BTreeSet::new();
    for (gateway, family) in pairs(wanted) {
        if let Some((vtep, device)) = gateway.vtep(family).zip(wanted.devices.of(family))
            && usable(wanted, found, gateway, family)
        {
            needed.insert(Forwarding { device: device.to_owned(), mac: vtep.mac, underlay: vtep.underlay });
        }
    }
    let place = |at: &Forwarding| (at.device.clone(), at.mac);
    for wish in &needed {
        let there = found.forwarding.iter().find(|(at, _)| place(at) == place(wish));
        if there.is_none_or(|(at, owner)| *owner == Owner::Ours && at != wish) {
            come.push(Change::AddForwarding(wish.clone()));
        }
    }
    for (at, _) in found.forwarding.iter().filter(|(_, owner)| *owner == Owner::Ours) {
        if !needed.iter().any(|wish| place(wish) == place(at)) {
            go.push(Change::RemoveForwarding(at.clone()));
        }
    }
}

fn pairs(wanted: &Wanted) -> impl Iterator<Item = (&Gateway, Family)> {
    wanted.gateways.iter().flat_map(|gateway| FAMILIES.into_iter().map(move |family| (gateway, family)))
}

/// What a person has to look at, and no plan can mend.
pub fn conflicts(wanted: &Wanted, found: &Found) -> Vec<String> {
    let mut told = Vec::new();
    for family in FAMILIES {
        let Some(device) = wanted.devices.of(family) else { continue };
        match found.links.get(device) {
            None => told.push(format!("{device} is not there: nothing of its family leaves by a gateway")),
            Some(link) if !link.up => told.push(format!("{device} is down: nothing of its family leaves by a gateway")),
            Some(link) => vxlan(wanted, family, device, link, &mut told),
        }
    }
    for (gateway, family) in pairs(wanted) {
        let Some((vtep, device)) = gateway.vtep(family).zip(wanted.devices.of(family)) else { continue };
        let said = found.neighbours.iter().find(|(at, owner)| {
            *owner == Owner::Others && at.device == device && at.address == vtep.overlay && at.mac != vtep.mac
        });
        if let Some((at, _)) = said {
            told.push(format!(
                "{device}: {} is {} for somebody else, not {} of {}",
                at.address, at.mac, vtep.mac, gateway.name
            ));
        }
        let said = found.forwarding.iter().find(|(at, owner)| {
            *owner == Owner::Others && at.device == device && at.mac == vtep.mac && at.underlay != vtep.underlay
        });
        if let Some((at, _)) = said {
            let (mac, other) = (at.mac, at.underlay);
            told.push(format!(
                "{device}: {mac} is at {other} for somebody else, not at {} of {}",
                vtep.underlay, gateway.name
            ));
        }
    }
    for (value, mask, priority) in &found.foreign_marks {
        if mask & wanted.marks.mask != 0 {
            told.push(format!(
                "rule {priority} of somebody else looks at mark {value:#x}/{mask:#x}, which overlaps marks.mask"
            ));
        }
    }
    let (rules, _) = number_tables(wanted, found, target(wanted, found));
    let missing = target(wanted, found).rules.len() - rules.len();
    if missing > 0 {
        told.push(format!(
            "{missing} rules have no table: more than numbers.tables are needed, and their packets are dropped"
        ));
    }
    told
}

fn vxlan(wanted: &Wanted, family: Family, device: &str, link: &crate::found::Link, told: &mut Vec<String>) {
    let Some(vni) = link.vni else {
        told.push(format!("{device} is no VXLAN device"));
        return;
    };
    for gateway in &wanted.gateways {
        let Some(vtep) = gateway.vtep(family) else { continue };
        if vtep.vni.is_some_and(|theirs| theirs != vni) {
            told.push(format!("{device} has VNI {vni}, not that of {}", gateway.name));
        }
        if link.mac == Some(vtep.mac) {
            told.push(format!(
                "{device} has the address {} of {} itself: this node is that gateway",
                vtep.mac, gateway.name
            ));
        }
    }
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
