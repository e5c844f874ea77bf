use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tidegate_api::message::{IpFamily, ServiceDelivery, WayState};
use tidegate_api::resource::{
    Backend, DeliveryMode, Protocol, Resource, ResourceKey, Service, ServicePort, TrafficPolicy,
};

use crate::compile::tests::compiler;
use crate::compile::{Arrived, Compiler, Nanos, mapped_ip};
use crate::kernel::Change;
use crate::objects::key;
use crate::objects::tests::{full, gateway, incremental, machine, named, peer};
use crate::probe::{Finding, Probes, Target, Way};
use crate::table::backend::{BackendRow, BackendState};
use crate::table::maglev;
use crate::table::service::{Frontend, Mode};
use crate::table::{BackendId, Family, ServiceId};
use tidegate_api::message::Update;
use tidegate_api::resource::Kind;

const SECOND: Nanos = 1_000_000_000;

/// What the prober was told to watch, per Service.
#[derive(Clone, Default)]
struct Watched(Arc<Mutex<BTreeMap<String, Vec<Target>>>>);

impl Probes for Watched {
    fn watch(&mut self, service: &Arc<str>, targets: Vec<Target>) {
        self.0.lock().unwrap().insert(service.to_string(), targets);
    }
}

impl Watched {
    /// Service, node and family of everything that is watched.
    fn ways(&self) -> Vec<(String, String, Family)> {
        let all = self.0.lock().unwrap();
        let ways = all.values().flatten().map(|target| &target.way);
        ways.map(|way| (way.service.to_string(), way.node.to_string(), way.family)).collect()
    }
}

/// A compiler with gateway, three peers and these Services.
fn with(services: Vec<Resource>) -> (Compiler, Watched) {
    let (mut compiler, _) = compiler();
    let watched = Watched::default();
    compiler.set_probes(Box::new(watched.clone()));
    compiler.turn(Arrived { changes: vec![Change::Layout(machine())], ..Arrived::default() }, SECOND);
    let mut objects = vec![named("gw", "1", gateway())];
    objects.extend((1..=3).map(|n| named(&format!("w{n}"), "1", peer(n))));
    objects.extend(services);
    update(&mut compiler, full(objects));
    (compiler, watched)
}

fn update(compiler: &mut Compiler, update: Update) {
    let turned = compiler.turn(Arrived { updates: vec![update.into()], ..Arrived::default() }, SECOND);
    assert_eq!(turned.accepted[0].rejected, []);
}

fn find(compiler: &mut Compiler, service: &str, node: &str, family: Family, state: WayState) {
    let way = Way { service: service.into(), port: 80, family, node: node.into() };
    let reason = if state == WayState::Proven { String::new() } else { "silence".into() };
    compiler.turn(Arrived { found: vec![(way, Finding { state, reason })], ..Arrived::default() }, SECOND);
}

fn prove(compiler: &mut Compiler, service: &str, nodes: &[&str]) {
    for node in nodes {
        for family in [Family::V4, Family::V6] {
            find(compiler, service, node, family, WayState::Proven);
        }
    }
}

/// `pods[n]` pods on node n + 1, both families.
fn pods(pods: &[(u8, u16)]) -> Vec<Backend> {
    let mut backends = Vec::new();
    for (node, (count, local_weight)) in (1..).zip(pods) {
        for pod in 0..*count {
            for address in [format!("10.244.{node}.{}", 10 + pod), format!("fd00:10:244:{node}::{}", 10 + pod)] {
                backends.push(Backend {
                    address: address.parse().unwrap(),
                    port: 8080,
                    weight: 1,
                    local_weight: *local_weight,
                    node: format!("w{node}"),
                    pod: format!("p{node}{pod}"),
                });
            }
        }
    }
    backends
}

fn service(host: u8, ports: &[(Protocol, u16)], backends: &[Backend]) -> Service {
    let port = |(protocol, port): &(Protocol, u16)| ServicePort {
        protocol: *protocol,
        port: *port,
        mode: DeliveryMode::NodeDsr,
        external_policy: TrafficPolicy::Local,
        backends: backends.to_vec(),
        ..ServicePort::default()
    };
    Service {
        uid: format!("uid-{host}"),
        addresses: vec![format!("203.0.113.{host}").parse().unwrap(), format!("2001:db8:f::{host}").parse().unwrap()],
        ports: ports.iter().map(port).collect(),
        ..Service::default()
    }
}

fn web(backends: &[Backend]) -> Resource {
    named("shop/web", "1", service(10, &[(Protocol::Tcp, 80)], backends))
}

fn id(compiler: &Compiler, host: u8, protocol: u8, family: Family) -> ServiceId {
    let vip = if family == Family::V4 { format!("203.0.113.{host}") } else { format!("2001:db8:f::{host}") };
    let port = if protocol == 6 { 80 } else { 53 };
    let frontend = Frontend { address: mapped_ip(vip.parse().unwrap()), protocol, port };
    compiler.tables().services.lookup(&frontend).unwrap()
}

fn mode(compiler: &Compiler, host: u8, protocol: u8) -> [Mode; 2] {
    [Family::V4, Family::V6].map(|family| {
        let row = id(compiler, host, protocol, family);
        compiler.tables().services.row(row).unwrap().mode
    })
}

/// The nodes of a Service by name: row and share of a thousand flows.
fn nodes(compiler: &Compiler, service: ServiceId) -> BTreeMap<String, (BackendId, BackendRow, u32)> {
    let tables = compiler.tables();
    let set = tables.services.nodes(service).unwrap();
    let mut nodes: BTreeMap<_, _> = BTreeMap::new();
    for id in set.members.iter() {
        let row = *tables.backends.row(*id).unwrap();
        let name = tables.tunnels.row(row.node).unwrap().name.to_string();
        let share = (0..1000u64).filter(|n| set.pick(n.wrapping_mul(u64::MAX / 1000)) == Some(*id)).count();
        nodes.insert(name, (*id, row, u32::try_from(share).unwrap()));
    }
    nodes
}

fn told(compiler: &mut Compiler) -> Vec<ServiceDelivery> {
    compiler.take_deliveries()
}

#[test]
fn a_service_is_delivered_to_nodes_once_one_is_proven() {
    // Design 6: "until proven, fullnat"; S-050: weighted by endpoints
    let (mut compiler, watched) = with(vec![web(&pods(&[(2, 1), (1, 1)]))]);
    assert_eq!(mode(&compiler, 10, 6), [Mode::Fullnat; 2]);
    let expected: Vec<_> = ["w1", "w2"]
        .into_iter()
        .flat_map(|node| [Family::V4, Family::V6].map(|family| ("shop/web".to_owned(), node.to_owned(), family)))
        .collect();
    let mut ways = watched.ways();
    ways.sort_by(|a, b| (&a.1, a.2 == Family::V6).cmp(&(&b.1, b.2 == Family::V6)));
    assert_eq!(ways, expected);
    let target = watched.0.lock().unwrap()["shop/web"][0].clone();
    assert_eq!((target.vip, target.ours.underlay), ("203.0.113.10".parse().unwrap(), "198.51.100.1".parse().unwrap()));
    let report = told(&mut compiler);
    assert_eq!(report[0].service, "shop/web");
    assert_eq!(report[0].ports.iter().map(|port| port.family).collect::<Vec<_>>(), [IpFamily::Ipv4, IpFamily::Ipv6]);
    assert_eq!(report[0].ports[0].mode, DeliveryMode::Fullnat);
    assert_eq!(report[0].ports[0].nodes[0].reason, "not asked yet");

    // One family alone.
    find(&mut compiler, "shop/web", "w1", Family::V4, WayState::Proven);
    assert_eq!(mode(&compiler, 10, 6), [Mode::NodeDsr, Mode::Fullnat]);
    let v4 = id(&compiler, 10, 6, Family::V4);
    let first = nodes(&compiler, v4);
    assert_eq!((first["w1"].2, first["w2"].2), (1000, 0));
    assert_eq!((first["w1"].1.state, first["w2"].1.state), (BackendState::Active, BackendState::Gone));
    prove(&mut compiler, "shop/web", &["w1", "w2"]);
    for family in [Family::V4, Family::V6] {
        let nodes = nodes(&compiler, id(&compiler, 10, 6, family));
        assert!((640..=690).contains(&nodes["w1"].2) && nodes["w1"].2 + nodes["w2"].2 == 1000, "{nodes:?}");
    }
    let report = told(&mut compiler);
    let port = &report[0].ports[1];
    assert_eq!((port.mode, port.nodes[0].weight, port.nodes[0].state), (DeliveryMode::NodeDsr, 2, WayState::Proven));
    assert!(told(&mut compiler).is_empty(), "once");
}

#[test]
fn a_node_that_fails_leaves_the_set_and_keeps_its_row() {
    // Design 6: "a failing node leaves the set, and the reason stands in the Service's condition"
    let (mut compiler, _) = with(vec![web(&pods(&[(1, 1), (1, 1)]))]);
    prove(&mut compiler, "shop/web", &["w1", "w2"]);
    let service = id(&compiler, 10, 6, Family::V4);
    let before = nodes(&compiler, service);
    told(&mut compiler);
    find(&mut compiler, "shop/web", "w2", Family::V4, WayState::Failed);
    let after = nodes(&compiler, service);
    assert_eq!((after["w1"].2, after["w2"].2), (1000, 0));
    assert_eq!((after["w2"].0, after["w2"].1.state), (before["w2"].0, BackendState::Gone));
    assert_eq!(after["w1"].1, before["w1"].1, "L-008: the other one's flows are not touched");
    let report = told(&mut compiler);
    let node = &report[0].ports[0].nodes[1];
    assert_eq!((node.node.as_str(), node.state, node.reason.as_str()), ("w2", WayState::Failed, "silence"));
    find(&mut compiler, "shop/web", "w1", Family::V4, WayState::Failed);
    assert_eq!(mode(&compiler, 10, 6)[0], Mode::Fullnat);
    find(&mut compiler, "shop/web", "w2", Family::V4, WayState::Proven);
    assert_eq!(nodes(&compiler, service)["w2"].0, before["w2"].0);
    assert_eq!(mode(&compiler, 10, 6)[0], Mode::NodeDsr);
}

#[test]
fn endpoints_that_come_and_go_move_nodes_and_keep_what_is_proven() {
    // S-108, S-048, S-057, L-047
    let (mut compiler, watched) = with(vec![web(&pods(&[(1, 1), (1, 1)]))]);
    prove(&mut compiler, "shop/web", &["w1", "w2"]);
    let service = id(&compiler, 10, 6, Family::V4);
    let before = nodes(&compiler, service);
    // A rolling update: w2's endpoint only serves, one comes on w3.
    update(&mut compiler, incremental(vec![web(&pods(&[(1, 1), (1, 0), (1, 1)]))]));
    let during = nodes(&compiler, service);
    assert_eq!((during["w2"].1.state, during["w2"].2), (BackendState::Draining, 0));
    assert_eq!((during["w3"].1.state, during["w3"].2), (BackendState::Gone, 0), "it is not proven yet");
    assert_eq!(mode(&compiler, 10, 6), [Mode::NodeDsr; 2], "still, with what is proven");
    prove(&mut compiler, "shop/web", &["w3"]);
    update(&mut compiler, incremental(vec![web(&pods(&[(1, 1), (0, 0), (1, 1)]))]));
    let after = nodes(&compiler, service);
    assert_eq!(after.keys().collect::<Vec<_>>(), ["w1", "w3"]);
    let gone = compiler.tables().backends.row(before["w2"].0).unwrap();
    assert_eq!(gone.state, BackendState::Gone, "its connections end by themselves");
    assert!(watched.ways().iter().all(|(_, node, _)| node != "w2"));
    // What was known of it is not believed when it comes back, and its id is the old one.
    update(&mut compiler, incremental(vec![web(&pods(&[(1, 1), (1, 1), (1, 1)]))]));
    let back = nodes(&compiler, service);
    assert_eq!((back["w2"].0, back["w2"].2), (before["w2"].0, 0));
}

#[test]
fn a_udp_port_takes_over_what_tcp_says() {
    let dns = |name: &str, host, ports: &[(Protocol, u16)], backends: &[Backend]| {
        named(&format!("shop/{name}"), "1", service(host, ports, backends))
    };
    let (tcp, udp) = ((Protocol::Tcp, 80), (Protocol::Udp, 53));
    let both = dns("both", 20, &[tcp, udp], &pods(&[(1, 1)]));
    let alone = dns("alone", 30, &[udp], &pods(&[(1, 1), (1, 1)]));
    let (mut compiler, watched) = with(vec![both, alone]);
    assert!(watched.ways().iter().all(|(service, ..)| service == "shop/both"), "UDP is not probed");
    let report = told(&mut compiler);
    let alone = report.iter().find(|told| told.service == "shop/alone").unwrap();
    assert!(alone.ports[0].nodes[0].reason.contains("only TCP can be proven"), "{}", alone.ports[0].nodes[0].reason);
    prove(&mut compiler, "shop/both", &["w1"]);
    assert_eq!((mode(&compiler, 20, 17), mode(&compiler, 30, 17)), ([Mode::NodeDsr; 2], [Mode::NodeDsr; 2]));
    let shares = nodes(&compiler, id(&compiler, 30, 17, Family::V6));
    assert_eq!((shares["w1"].2, shares["w2"].2), (1000, 0), "only where it is proven");
    find(&mut compiler, "shop/both", "w1", Family::V6, WayState::Failed);
    assert_eq!(mode(&compiler, 30, 17), [Mode::NodeDsr, Mode::Fullnat]);
    find(&mut compiler, "shop/both", "w1", Family::V6, WayState::Proven);
    // With the Service that proved it goes the proof.
    let gone = Update { removed: vec![key(Kind::Service, "shop/both")], ..incremental(vec![]) };
    update(&mut compiler, gone);
    assert_eq!(mode(&compiler, 30, 17), [Mode::Fullnat; 2]);
}

#[test]
fn without_a_peer_there_is_no_node_and_a_peer_that_moves_stays_the_same_node() {
    let (mut compiler, watched) = with(vec![web(&pods(&[(1, 1), (1, 1)]))]);
    prove(&mut compiler, "shop/web", &["w1", "w2"]);
    let service = id(&compiler, 10, 6, Family::V4);
    let before = nodes(&compiler, service);
    let mut moved = peer(2);
    moved.v4.as_mut().unwrap().underlay = "198.51.100.99".parse().unwrap();
    update(&mut compiler, incremental(vec![named("w2", "2", moved)]));
    let after = nodes(&compiler, service);
    assert_eq!((after["w2"].0, after["w2"].2), (before["w2"].0, before["w2"].2));
    assert_eq!(after["w2"].1.address, mapped_ip("198.51.100.99".parse().unwrap()));
    let targets = watched.0.lock().unwrap()["shop/web"].clone();
    assert!(
        targets.iter().any(|target| target.peer.underlay.to_string() == "198.51.100.99"),
        "asked there from now on"
    );
    let gone: Vec<ResourceKey> = vec![key(Kind::Peer, "w2")];
    told(&mut compiler);
    update(&mut compiler, Update { removed: gone, ..incremental(vec![]) });
    assert_eq!(nodes(&compiler, service).keys().collect::<Vec<_>>(), ["w1", "w2"], "its row waits");
    assert_eq!(nodes(&compiler, service)["w2"].2, 0);
    let report = told(&mut compiler);
    assert!(report[0].ports[0].nodes[1].reason.contains("no peer"), "{report:?}");
    assert!(watched.ways().iter().all(|(_, node, _)| node != "w2"));
}

#[test]
fn a_service_that_no_longer_asks_has_no_nodes() {
    let (mut compiler, watched) = with(vec![web(&pods(&[(1, 1)]))]);
    prove(&mut compiler, "shop/web", &["w1"]);
    let service_id = id(&compiler, 10, 6, Family::V4);
    let before = nodes(&compiler, service_id)["w1"].0;
    let mut plain = service(10, &[(Protocol::Tcp, 80)], &pods(&[(1, 1)]));
    plain.ports[0].mode = DeliveryMode::Fullnat;
    told(&mut compiler);
    update(&mut compiler, incremental(vec![named("shop/web", "2", plain)]));
    assert_eq!(mode(&compiler, 10, 6), [Mode::Fullnat; 2]);
    assert!(compiler.tables().services.nodes(service_id).is_none() && watched.ways().is_empty());
    assert_eq!(compiler.tables().backends.row(before).unwrap().state, BackendState::Gone);
    assert_eq!(told(&mut compiler), [ServiceDelivery { service: "shop/web".into(), ports: vec![] }]);
    // An answer that was on its way is about nothing.
    find(&mut compiler, "shop/web", "w1", Family::V4, WayState::Proven);
    assert_eq!(mode(&compiler, 10, 6), [Mode::Fullnat; 2]);
}

#[test]
fn what_kube_proxy_cannot_know_stays_with_fullnat() {
    let mut wide = service(10, &[(Protocol::Tcp, 80)], &pods(&[(1, 1)]));
    wide.prefixes = vec!["203.0.114.0/24".parse().unwrap()];
    let (mut compiler, watched) = with(vec![named("shop/wide", "1", wide)]);
    assert!(watched.ways().is_empty());
    assert!(told(&mut compiler)[0].ports[0].nodes[0].reason.contains("prefixes"));
}

#[test]
fn nodes_are_members_by_name() {
    // L-010: gateways that were told in another order, or know another underlay address, choose alike.
    assert_ne!(maglev::node_key("w1"), maglev::node_key("w2"));
    let (mut one, _) = with(vec![web(&pods(&[(1, 1), (1, 1), (1, 1)]))]);
    let (mut other, _) = with(vec![]);
    update(&mut other, incremental(vec![web(&pods(&[(0, 1), (0, 1), (1, 1)]))]));
    update(&mut other, incremental(vec![web(&pods(&[(1, 1), (1, 1), (1, 1)]))]));
    for compiler in [&mut one, &mut other] {
        prove(compiler, "shop/web", &["w3", "w1", "w2"]);
    }
    let choose = |compiler: &Compiler, n: u64| {
        let service = id(compiler, 10, 6, Family::V6);
        let picked = compiler.tables().services.nodes(service).unwrap().pick(n << 54).unwrap();
        let node = compiler.tables().backends.row(picked).unwrap().node;
        compiler.tables().tunnels.row(node).unwrap().name.clone()
    };
    assert!((0..1024).all(|n| choose(&one, n) == choose(&other, n)));
    assert_eq!(one.tables().services.digest(), other.tables().services.digest());
}
