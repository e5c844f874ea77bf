//! Answers of the read side: tables, objects and workers as rows of plain values.
//!
//! Runs on the asking client's thread, over a copy of what the compiler had at one moment.

use std::collections::HashMap;
use std::net::IpAddr;

use tidegate_api::message::{IpFamily, NodeDelivery, NodeSuspicion};
use tidegate_api::resource::{Body, Kind, MacAddress, Protocol, Service};
use tidegate_api::show::{
    BackendRow, NeighbourRow, PortRow, Readiness, RouteRow, ServiceRow, Show, Shown, TunnelRow, WorkerRow,
};

use super::Announcers;
use super::query::{BackendUsage, WorkerQuery};
use crate::compile::thread::{Handle, View};
use crate::compile::{address_of, mapped_ip, tunnel};
use crate::gateways;
use crate::kernel::NeighbourKey;
use crate::mailbox::FlowsWanted;
use crate::probe::pulse::SUSPECTED_AFTER;
use crate::probe::schedule::Nanos;
use crate::routes;
use crate::table::backend::{BackendRow as BackendRowOf, BackendState};
use crate::table::neighbour::NeighbourState;
use crate::table::route::{NextHops, RouteTarget};
use crate::table::service::{FrontendKind, Mode, ServiceRow as ServiceRowOf};
use crate::table::terms::Scheduler;
use crate::table::{BackendId, NeighbourId, ServiceId, Tables};

/// Ports of external addresses.
mod egress;
/// Network policies.
mod policy;

/// The answer to `question`.
///
/// # Errors
/// Who has not answered, for people.
pub fn answer(
    question: &Show,
    compiler: &Handle,
    workers: &dyn WorkerQuery,
    others: &Announcers,
) -> Result<Shown, String> {
    let view = |objects| compiler.view(objects).map_err(|error| error.to_string());
    let told = |error: super::query::QueryError| error.to_string();
    Ok(match question {
        Show::Services => {
            let view = view(Some(Kind::Service))?;
            let ids: Vec<_> = view.tables.backends.rows().map(|(id, _)| id).collect();
            Shown::Services(services(&view, &workers.backend_usage(&ids).map_err(told)?))
        }
        Show::Backends { service } => {
            let mut rows = backends(&view(Some(Kind::Service))?, service.as_deref());
            let ids: Vec<_> = rows.iter().map(|(id, _)| *id).collect();
            let usage = workers.backend_usage(&ids).map_err(told)?;
            for (id, row) in &mut rows {
                let used = usage.get(id).copied().unwrap_or_default();
                (row.flows, row.new_flows, row.packets, row.bytes) =
                    (used.flows, used.new_flows, used.packets, used.bytes);
            }
            Shown::Backends(rows.into_iter().map(|(_, row)| row).collect())
        }
        Show::Flows { limit, filter } => {
            let services = match &filter.service {
                Some(name) => rows_of(&view(None)?.tables, name),
                None => Vec::new(),
            };
            let wanted = FlowsWanted { filter: filter.clone(), services };
            Shown::Flows(workers.flows(wanted, *limit).map_err(told)?)
        }
        Show::Tunnels => Shown::Tunnels(tunnels(&view(Some(Kind::Peer))?)),
        Show::Routes => Shown::Routes(routes(&view(None)?.tables)),
        Show::Neighbours => Shown::Neighbours(neighbours(&view(None)?)),
        Show::Workers => Shown::Workers(workers.workers().map_err(told)?),
        Show::Ports => Shown::Ports(ports(workers.ports().map_err(told)?, &view(None)?.tables)),
        Show::Counters => {
            let mut counters = workers.counters().map_err(told)?;
            let (now, ever) = compiler.suspicions();
            counters.totals.extend([("nodes_suspected".to_owned(), now), ("node_suspicions".to_owned(), ever)]);
            Shown::Counters(counters)
        }
        Show::Drops => Shown::Drops(workers.drops().map_err(told)?),
        Show::Egress => {
            let carrier = |address| others.gateways.as_ref().and_then(|gateways| gateways.owner(address));
            Shown::Egress(egress::shown(&view(Some(Kind::Pod))?, &workers.egress().map_err(told)?, carrier))
        }
        Show::Policies => {
            let gates = view(Some(Kind::GatewayPolicy))?.objects;
            Shown::Policies(policy::shown(&view(Some(Kind::Policy))?, &gates, &workers.rulings().map_err(told)?))
        }
        Show::Gateways => Shown::Gateways(others.gateways.as_ref().map(gateways::Handle::show).unwrap_or_default()),
        Show::Control => Shown::Control(others.seats.control()),
        Show::Readiness => {
            // In this order: workers may be further than what is asked of them, not less far.
            let view = view(None)?;
            Shown::Readiness(readiness(&view, &workers.workers().map_err(told)?, &workers.ports().map_err(told)?))
        }
        Show::Announcements => {
            Shown::Announcements(others.routes.as_ref().map(routes::Handle::show).unwrap_or_default())
        }
    })
}

/// What keeps this gateway from its work.
fn readiness(view: &View, workers: &[WorkerRow], ports: &[PortRow]) -> Readiness {
    let behind = workers.iter().filter(|row| row.generation < view.generation);
    let is_up = |name: &str| {
        view.tables.devices.rows().any(|(_, row)| *row.name == *name) && !view.down.iter().any(|down| down == name)
    };
    let mut down: Vec<String> = ports.iter().map(|row| row.device.clone()).filter(|name| !is_up(name)).collect();
    down.sort_unstable();
    down.dedup();
    let is_starved = |row: &&PortRow| row.rings.get("fill").is_some_and(|(level, size)| *level == 0 && *size > 0);
    Readiness {
        generation: view.generation,
        behind: behind.map(|row| (row.worker, row.generation)).collect(),
        down,
        starved: ports.iter().filter(is_starved).map(|row| format!("{}/{}", row.device, row.queue)).collect(),
    }
}

/// Ports as workers tell of them, with MAC and MTU as the devices have them now: a port keeps those that it was opened with.
fn ports(mut rows: Vec<PortRow>, tables: &Tables) -> Vec<PortRow> {
    for row in &mut rows {
        if let Some((_, device)) = tables.devices.rows().find(|(_, device)| *device.name == *row.device) {
            (row.mac, row.mtu) = (MacAddress(device.mac), u32::from(device.mtu));
        }
    }
    rows
}

/// Rows of the Service with that name, growing.
fn rows_of(tables: &Tables, name: &str) -> Vec<ServiceId> {
    let named = tables.services.rows().filter(|(_, row)| *row.name == *name).map(|(id, _)| id);
    let mut ids: Vec<_> = named.collect();
    ids.sort_unstable();
    ids
}

fn each_service(view: &View) -> impl Iterator<Item = (&str, &Service)> {
    view.objects.iter().filter_map(|resource| match &resource.body {
        Body::Service(service) => Some((resource.name.as_str(), service)),
        _ => None,
    })
}

/// One row per frontend. Counters are those of the Service port and family: frontends that share it show the same.
fn services(view: &View, usage: &HashMap<BackendId, BackendUsage>) -> Vec<ServiceRow> {
    let tables = &view.tables;
    let mut used: HashMap<ServiceId, BackendUsage> = HashMap::new();
    for (id, row) in tables.backends.rows() {
        used.entry(row.service).or_default().add(usage.get(&id).copied().unwrap_or_default());
    }
    let frontends = tables.services.frontends();
    let exact = frontends.iter().map(|(at, served)| (address_of(&at.address), None, at.protocol, at.port, served));
    let prefixes = frontends
        .prefixes()
        .map(|(at, served)| (at.prefix.addr(), Some(at.prefix.prefix_len()), at.protocol, at.port, served));
    let told = exact.chain(prefixes).filter_map(|(address, prefix_len, number, port, served)| {
        let row = tables.services.row(served.service)?;
        let active =
            |id: &&BackendId| tables.backends.row(**id).is_some_and(|backend| backend.state == BackendState::Active);
        let used = used.get(&served.service).copied().unwrap_or_default();
        Some(ServiceRow {
            service: row.name.to_string(),
            address,
            prefix_len,
            protocol: protocol(number),
            port,
            // Cluster addresses and node ports never lead to nodes (S-058, S-065).
            mode: match served.kind {
                FrontendKind::Vip | FrontendKind::External => row.mode,
                FrontendKind::Cluster | FrontendKind::Node if row.mode == Mode::NodeDsr => Mode::Fullnat,
                FrontendKind::Cluster | FrontendKind::Node => row.mode,
            }
            .name()
            .to_owned(),
            service_port: row.port,
            scheduler: match (served.kind, row.mode) {
                (FrontendKind::Vip | FrontendKind::External, Mode::NodeDsr) => Scheduler::Mh,
                _ => row.terms.as_ref().map(|terms| terms.scheduler).unwrap_or_default(),
            },
            affinity_timeout_s: row.terms.as_ref().map(|terms| terms.affinity_timeout_s).filter(|timeout| *timeout > 0),
            nodes: match served.kind {
                FrontendKind::Vip | FrontendKind::External => {
                    nodes(view, &row.name, protocol(number), row.port, address)
                }
                FrontendKind::Cluster | FrontendKind::Node => Vec::new(),
            },
            backends: u32::try_from(row.cluster.members.iter().filter(active).count()).unwrap_or(u32::MAX),
            maglev_slots: row.cluster.ring.as_ref().map_or(0, |ring| u32::try_from(ring.size()).unwrap_or(u32::MAX)),
            packets: used.packets,
            bytes: used.bytes,
            new_flows: used.new_flows,
        })
    });
    let mut rows: Vec<ServiceRow> = told.collect();
    rows.sort_by(|a, b| {
        (&a.service, a.address, a.prefix_len, a.port, a.protocol).cmp(&(
            &b.service,
            b.address,
            b.prefix_len,
            b.port,
            b.protocol,
        ))
    });
    rows
}

/// What is known of the ways to the nodes of a Service port, where `node-dsr` was asked for.
fn nodes(view: &View, service: &str, protocol: Protocol, port: u16, vip: IpAddr) -> Vec<NodeDelivery> {
    let family = if vip.is_ipv4() { IpFamily::Ipv4 } else { IpFamily::Ipv6 };
    let found = view.deliveries.binary_search_by(|told| told.service.as_str().cmp(service)).ok();
    let ports = found.and_then(|at| view.deliveries.get(at)).map(|told| told.ports.as_slice()).unwrap_or_default();
    let told = ports.iter().find(|told| (told.protocol, told.port, told.family) == (protocol, port, family));
    told.map(|told| told.nodes.clone()).unwrap_or_default()
}

/// A row that is a node: its name, the sum of its endpoints' weights, and what it takes.
fn node(view: &View, service: &ServiceRowOf, row: &BackendRowOf, id: BackendId) -> Option<(String, u16, &'static str)> {
    let name = view.tables.tunnels.row(row.node)?.name.to_string();
    let told = nodes(view, &service.name, protocol(service.protocol), service.port, address_of(&row.address));
    let told = told.iter().find(|told| told.node == name);
    let weight = told.map_or(0, |told| u16::try_from(told.weight).unwrap_or(u16::MAX));
    let is_member = || view.tables.services.nodes(row.service).is_some_and(|nodes| nodes.members.contains(&id));
    let state = match row.state {
        BackendState::Gone if is_member() => "unproven",
        BackendState::Active | BackendState::Draining if is_suspected(view, &name, address_of(&row.address)) => {
            "suspected"
        }
        state => backend_state(state),
    };
    Some((name, weight, state))
}

/// Whether `node` does not answer in the family of `address`.
fn is_suspected(view: &View, node: &str, address: IpAddr) -> bool {
    suspicion(view, node, address).is_some()
}

/// What is suspected of `node` in the family of `address`, and for how long it has been silent.
fn suspicion<'v>(view: &'v View, node: &str, address: IpAddr) -> Option<(&'v NodeSuspicion, Nanos)> {
    let family = if address.is_ipv4() { IpFamily::Ipv4 } else { IpFamily::Ipv6 };
    let mut all = view.suspects.iter().zip(view.silences.iter().copied());
    all.find(|(suspicion, _)| suspicion.node == node && suspicion.family == family)
}

/// The same in words.
fn why_suspected(view: &View, node: &str, address: IpAddr) -> Option<String> {
    let (suspicion, silent) = suspicion(view, node, address)?;
    let [silent_s, limit_s] = [silent, SUSPECTED_AFTER].map(|time| time / 1_000_000_000);
    Some(format!("node {node}: {} for at least {silent_s} s, and {limit_s} s is the limit", suspicion.reason))
}

/// Backends with their ids and no usage yet; of one Service, or of all. Those that are gone stand at the end of their
/// Service port, as long as their id is not another's.
fn backends(view: &View, only: Option<&str>) -> Vec<(BackendId, BackendRow)> {
    let told: HashMap<(&str, Protocol, u16, IpAddr, u16), &tidegate_api::resource::Backend> = each_service(view)
        .filter(|(name, _)| only.is_none_or(|only| only == *name))
        .flat_map(|(name, service)| service.ports.iter().map(move |port| (name, port)))
        .flat_map(|(name, port)| {
            let key = move |backend: &tidegate_api::resource::Backend| {
                (name, port.protocol, port.port, backend.address, backend.port)
            };
            port.backends.iter().map(move |backend| (key(backend), backend))
        })
        .collect();
    let mut rows = Vec::new();
    for (id, row) in view.tables.backends.rows() {
        let Some(service) = view.tables.services.row(row.service) else { continue };
        if only.is_some_and(|only| only != &*service.name) {
            continue;
        }
        let protocol = protocol(service.protocol);
        let address = address_of(&row.address);
        let told = told.get(&(&*service.name, protocol, service.port, address, row.port));
        let node = node(view, service, row, id);
        let suspected = || told.is_some_and(|backend| is_suspected(view, &backend.node, backend.address));
        let state = match row.state {
            BackendState::Active | BackendState::Draining if suspected() => "suspected",
            state => backend_state(state),
        };
        let state = node.as_ref().map_or(state, |(_, _, state)| state);
        let lives_on = node.as_ref().map(|(name, ..)| name).or_else(|| told.map(|backend| &backend.node));
        let why = lives_on.filter(|_| state == "suspected").and_then(|node| why_suspected(view, node, address));
        let reason = why.unwrap_or_default();
        rows.push((
            id,
            BackendRow {
                service: service.name.to_string(),
                port: service.port,
                protocol,
                address,
                backend_port: row.port,
                weight: node
                    .as_ref()
                    .map_or_else(|| told.map_or(0, |backend| backend.weight), |(_, weight, _)| *weight),
                state: state.to_owned(),
                reason,
                node: node
                    .map_or_else(|| told.map(|backend| backend.node.clone()).unwrap_or_default(), |(name, ..)| name),
                pod: told.map(|backend| backend.pod.clone()).unwrap_or_default(),
                flows: 0,
                packets: 0,
                bytes: 0,
                new_flows: 0,
            },
        ));
    }
    rows.sort_by(|(_, a), (_, b)| {
        let order = |row: &BackendRow| {
            (row.service.clone(), row.protocol, row.port, row.state == "gone", row.address, row.backend_port)
        };
        order(a).cmp(&order(b))
    });
    rows
}

fn protocol(number: u8) -> Protocol {
    match number {
        17 => Protocol::Udp,
        132 => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn backend_state(state: BackendState) -> &'static str {
    match state {
        BackendState::Active => "active",
        BackendState::Draining => "draining",
        BackendState::Gone => "gone",
        BackendState::Vacant => "vacant",
    }
}

fn tunnels(view: &View) -> Vec<TunnelRow> {
    let mut rows = Vec::new();
    for resource in &view.objects {
        let Body::Peer(peer) = &resource.body else { continue };
        for vtep in [&peer.v4, &peer.v6].into_iter().flatten() {
            let underlay = mapped_ip(vtep.underlay);
            let row = view.tables.tunnels.rows().map(|(_, row)| row);
            let row = row.filter(|row| *row.name == *resource.name).find(|row| row.underlay == underlay);
            rows.push(TunnelRow {
                peer: resource.name.clone(),
                underlay: vtep.underlay,
                mac: vtep.mac,
                vni: vtep.vni,
                port: vtep.port,
                prefixes: vtep.pod_cidrs.iter().map(ToString::to_string).collect(),
                inner_mtu: row.map_or(0, |row| u32::from(row.inner_mtu)),
                state: match row.map_or("no row", |row| tunnel::state_name(row, &view.tables.neighbours)) {
                    "ready" if is_suspected(view, &resource.name, vtep.underlay) => "suspected",
                    state => state,
                }
                .to_owned(),
            });
        }
    }
    rows
}

fn routes(tables: &Tables) -> Vec<RouteRow> {
    let device = |id| tables.devices.row(id).map_or("?", |row| &*row.name);
    let rows = tables.routes.iter().map(|(prefix, row)| {
        let (next_hops, origin) = match &row.target {
            RouteTarget::Tunnel(id) => {
                let name = tables.tunnels.row(*id).map_or("?", |row| &*row.name);
                (vec![format!("tunnel {name}")], "overlay")
            }
            RouteTarget::NextHops(hops) => (ways(tables, hops), "kernel"),
            RouteTarget::Connected(id) => (vec![format!("dev {}", device(*id))], "kernel"),
            RouteTarget::Blackhole => (vec!["blackhole".to_owned()], "kernel"),
            RouteTarget::Local => (vec!["local".to_owned()], "kernel"),
        };
        RouteRow { prefix: prefix.to_string(), next_hops, origin: origin.to_owned(), mtu: u32::from(row.mtu) }
    });
    rows.collect()
}

/// Each next hop once, with its share where shares differ from one each.
fn ways(tables: &Tables, hops: &NextHops) -> Vec<String> {
    let mut counted: Vec<(NeighbourId, usize)> = Vec::new();
    for hop in hops {
        match counted.iter_mut().find(|(id, _)| id == hop) {
            Some((_, count)) => *count += 1,
            None => counted.push((*hop, 1)),
        }
    }
    let weighted = counted.iter().any(|(_, count)| *count > 1);
    let text = |(id, count): (NeighbourId, usize)| {
        let Some(row) = tables.neighbours.row(id) else { return "?".to_owned() };
        let device = tables.devices.row(row.device).map_or("?", |row| &*row.name);
        let weight = if weighted { format!(" weight {count}") } else { String::new() };
        format!("via {} dev {device}{weight}", address_of(&row.address))
    };
    counted.into_iter().map(text).collect()
}

fn neighbours(view: &View) -> Vec<NeighbourRow> {
    let rows = view.tables.neighbours.rows().map(|(_, row)| {
        let address = address_of(&row.address);
        let device = view.tables.devices.row(row.device);
        let key = device.map(|device| NeighbourKey { ifindex: device.ifindex, address });
        let known = key.and_then(|key| view.neighbours.get(&key));
        NeighbourRow {
            address,
            device: device.map_or("?", |device| &*device.name).to_owned(),
            mac: (row.state == NeighbourState::Resolved).then_some(MacAddress(row.mac)),
            state: known.map_or("unresolved", |known| known.state_name()).to_owned(),
        }
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by(|a, b| (&a.device, a.address).cmp(&(&b.device, b.address)));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::tests::{on_machine, routed};

    fn port(device: &str) -> PortRow {
        PortRow {
            device: device.into(),
            queue: 0,
            mode: "copy".into(),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            counters: Default::default(),
            rings: Default::default(),
        }
    }

    #[test]
    fn who_is_behind_down_or_starved_is_not_ready() {
        let (compiler, _) = on_machine();
        let mut view = View { tables: compiler.tables().clone(), generation: 7, ..View::default() };
        let worker = |generation| WorkerRow { worker: 1, generation, ..WorkerRow::default() };
        let filled = |device: &str, level| PortRow { rings: [("fill".to_owned(), (level, 64))].into(), ..port(device) };
        let well = readiness(&view, &[worker(7), worker(8)], &[port("wan0"), filled("lan0", 1)]);
        assert!(well.is_ready() && well.to_string().is_empty(), "{well}");
        view.down = vec!["lan0".into(), "other0".into()];
        let ports = [port("wan0"), filled("lan0", 0), port("gone0")];
        let ill = readiness(&view, &[worker(7), worker(6)], &ports);
        assert!(!ill.is_ready());
        assert_eq!(
            ill.to_string(),
            "worker 1 is at generation 6, the newest is 7; gone0 is down, or without a carrier; lan0 is down, or without a \
             carrier; the fill ring of lan0/0 is empty"
        );
    }

    #[test]
    fn ports_have_the_mac_and_mtu_of_now() {
        let (mut compiler, _) = on_machine();
        let mut layout = routed();
        let link = layout.links.values_mut().find(|link| link.name == "lan0").unwrap();
        (link.mtu, link.mac) = (1400, Some([2, 0, 0, 0, 0, 9]));
        crate::compile::tests::layout(&mut compiler, layout);
        let rows = ports(vec![port("lan0"), port("gone0")], compiler.tables());
        assert_eq!((rows[0].mtu, rows[0].mac), (1400, MacAddress([2, 0, 0, 0, 0, 9])));
        assert_eq!(rows[1], port("gone0"), "of a device that is gone, what it had");
    }
}
