use std::collections::BTreeMap;
use std::sync::Mutex;

use tidegate_api::message::WayState;
use tidegate_api::resource::{Backend, DeliveryMode, Service, TrafficPolicy};

use super::*;
use crate::compile::tests::{SECOND, compiler, update};
use crate::compile::{Arrived, Compiler, mapped_ip};
use crate::kernel::Change;
use crate::objects::key;
use crate::objects::tests::{full, gateway, incremental, machine, named, peer};
use crate::probe::{Finding, Probes, Target, Way};
use crate::table::backend::BackendState;
use crate::table::service::Frontend;
use tidegate_api::message::Update;
use tidegate_api::resource::Kind;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Vec<Wrist>>>>);

impl Probes for Told {
    fn watch(&mut self, _service: &Arc<str>, _targets: Vec<Target>) {}

    fn feel(&mut self, wrists: Vec<Wrist>) {
        self.0.lock().unwrap().push(wrists);
    }
}

/// One endpoint of each family on each node.
fn on(nodes: &[u8]) -> Vec<Backend> {
    let addresses =
        |node: &u8| [format!("10.244.{node}.5"), format!("fd00:10:244:{node}::5")].map(|text| (*node, text));
    let backend = |(node, address): (u8, String)| Backend {
        address: address.parse().unwrap(),
        port: 8080,
        weight: 1,
        local_weight: 1,
        node: format!("w{node}"),
        pod: String::new(),
    };
    nodes.iter().flat_map(addresses).map(backend).collect()
}

fn web(mode: DeliveryMode, backends: Vec<Backend>) -> Service {
    let mut service = crate::objects::tests::service(&["203.0.113.10", "2001:db8:f::10"], 80, &backends);
    service.ports[0].mode = mode;
    if mode == DeliveryMode::NodeDsr {
        service.ports[0].external_policy = TrafficPolicy::Local;
    }
    service
}

fn with(service: Service) -> (Compiler, Told) {
    let (mut compiler, _) = compiler();
    let told = Told::default();
    compiler.set_probes(Box::new(told.clone()));
    compiler.turn(Arrived { changes: vec![Change::Layout(machine())], ..Arrived::default() }, SECOND);
    let mut objects = vec![named("gw", "1", gateway())];
    objects.extend((1..=3).map(|n| named(&format!("w{n}"), "1", peer(n))));
    objects.push(named("shop/web", "1", service));
    assert_eq!(update(&mut compiler, full(objects)).rejected, []);
    (compiler, told)
}

fn feel(compiler: &mut Compiler, node: &str, family: Family, suspected: bool) {
    let felt = vec![(Pulse { node: node.into(), family }, suspected)];
    compiler.turn(Arrived { felt, ..Arrived::default() }, SECOND);
}

/// What a thousand new flows get, by endpoint or node.
fn shares(compiler: &Compiler, family: Family, nodes: bool) -> BTreeMap<String, usize> {
    let vip = if family == Family::V4 { "203.0.113.10" } else { "2001:db8:f::10" };
    let frontend = Frontend { address: mapped_ip(vip.parse().unwrap()), protocol: 6, port: 80 };
    let tables = compiler.tables();
    let id = tables.services.lookup(&frontend).unwrap();
    let set = if nodes { tables.services.nodes(id).unwrap() } else { &tables.services.row(id).unwrap().cluster };
    let mut shares = BTreeMap::new();
    for n in 0..1000u64 {
        let Some(id) = set.pick(n.wrapping_mul(u64::MAX / 1000)) else { continue };
        let row = tables.backends.row(id).unwrap();
        assert_eq!(row.state, BackendState::Active);
        *shares.entry(crate::compile::address_of(&row.address).to_string()).or_default() += 1;
    }
    shares
}

fn endpoint(family: Family, node: u8) -> String {
    if family == Family::V4 { format!("10.244.{node}.5") } else { format!("fd00:10:244:{node}::5") }
}

// S-114: "catch dead kube-proxy" and dead nodes, in fullnat too; S-100: flows that are there stay.
#[test]
fn new_flows_avoid_a_suspected_node_while_there_are_others() {
    for family in FAMILIES {
        let (mut compiler, _) = with(web(DeliveryMode::Fullnat, on(&[1, 2, 3])));
        let before = shares(&compiler, family, false);
        assert_eq!(before.len(), 3, "{before:?}");
        feel(&mut compiler, "w2", family, true);
        let after = shares(&compiler, family, false);
        let [w1, w2, w3] = [1, 2, 3].map(|node| endpoint(family, node));
        assert!(!after.contains_key(&w2) && after.len() == 2, "{after:?}");
        // L-008: only the share of the one that left has moved.
        assert!(after[&w1] >= before[&w1] && after[&w3] >= before[&w3], "{before:?} {after:?}");
        let row = |address: &str| {
            let wanted = mapped_ip(address.parse().unwrap());
            compiler.tables().backends.rows().find(|(_, row)| row.address == wanted).unwrap().1.state
        };
        assert_eq!((row(&w1), row(&w2)), (BackendState::Active, BackendState::Draining), "S-100");
        // The other family does not suspect it.
        let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
        assert_eq!(shares(&compiler, other, false).len(), 3);
        // With nobody left, suspicion is no reason.
        feel(&mut compiler, "w1", family, true);
        feel(&mut compiler, "w3", family, true);
        assert_eq!(shares(&compiler, family, false), before);
        for node in ["w1", "w3", "w2"] {
            feel(&mut compiler, node, family, false);
        }
        assert_eq!(shares(&compiler, family, false), before);
        assert!(compiler.suspects().all().is_empty());
    }
}

#[test]
fn a_silence_grows_until_the_node_answers() {
    for family in FAMILIES {
        let (mut compiler, _) = with(web(DeliveryMode::Fullnat, on(&[1, 2])));
        assert!(compiler.suspects().silences(9 * SECOND).is_empty());
        feel(&mut compiler, "w2", family, true);
        // Felt again, it is the same silence.
        let felt = vec![(Pulse { node: "w2".into(), family }, true)];
        compiler.turn(Arrived { felt, ..Arrived::default() }, 3 * SECOND);
        assert_eq!(compiler.suspects().silences(SECOND), [SUSPECTED_AFTER]);
        assert_eq!(compiler.suspects().silences(5 * SECOND), [SUSPECTED_AFTER + 4 * SECOND]);
        feel(&mut compiler, "w2", family, false);
        assert!(compiler.suspects().silences(9 * SECOND).is_empty());
    }
}

#[test]
fn an_endpoint_with_weight_on_a_suspected_node_is_taken_before_one_that_drains() {
    for family in FAMILIES {
        let mut backends = on(&[1, 2]);
        backends.iter_mut().filter(|backend| backend.node == "w1").for_each(|backend| backend.weight = 0);
        let (mut compiler, _) = with(web(DeliveryMode::Fullnat, backends));
        feel(&mut compiler, "w2", family, true);
        assert_eq!(shares(&compiler, family, false), BTreeMap::from([(endpoint(family, 2), 1000)]));
    }
}

#[test]
fn node_dsr_avoids_it_too_and_tells_so() {
    for family in FAMILIES {
        let (mut compiler, _) = with(web(DeliveryMode::NodeDsr, on(&[1, 2])));
        for node in ["w1", "w2"] {
            let way = Way { service: "shop/web".into(), port: 80, family, node: node.into() };
            let proven = Finding { state: WayState::Proven, reason: String::new() };
            compiler.turn(Arrived { found: vec![(way, proven)], ..Arrived::default() }, SECOND);
        }
        let before = shares(&compiler, family, true);
        assert_eq!(before.len(), 2);
        compiler.take_deliveries();
        feel(&mut compiler, "w2", family, true);
        assert_eq!(shares(&compiler, family, true).len(), 1);
        let told = compiler.take_deliveries();
        let port = &told[0].ports[usize::from(family == Family::V6)];
        let states: Vec<_> = port.nodes.iter().map(|node| (node.node.as_str(), node.state, node.weight)).collect();
        assert_eq!(states, [("w1", WayState::Proven, 1), ("w2", WayState::Suspected, 1)]);
        assert_eq!(port.mode, DeliveryMode::NodeDsr);
        feel(&mut compiler, "w1", family, true);
        assert_eq!(shares(&compiler, family, true), before, "nobody else is left");
        feel(&mut compiler, "w1", family, false);
        feel(&mut compiler, "w2", family, false);
        assert_eq!(shares(&compiler, family, true), before);
    }
}

#[test]
fn every_peer_is_asked_at_kube_proxys_port_and_at_those_of_health_checks() {
    let (mut compiler, told) = with(web(DeliveryMode::Fullnat, on(&[1])));
    let last = || told.0.lock().unwrap().last().unwrap().clone();
    let asked: Vec<_> = last().iter().map(|wrist| (wrist.pulse.node.to_string(), wrist.pulse.family)).collect();
    let all = ["w1", "w2", "w3"].into_iter().flat_map(|node| FAMILIES.map(|family| (node.to_owned(), family)));
    assert_eq!(asked, all.collect::<Vec<_>>());
    assert_eq!((last()[0].ours, last()[0].theirs), ("198.51.100.1".parse().unwrap(), "198.51.100.11".parse().unwrap()));
    assert_eq!(last()[0].ports, [10256]);
    for (name, vip, port) in [("shop/a", 21, 32_007), ("shop/b", 22, 32_003), ("shop/c", 23, 32_007)] {
        let mut service = web(DeliveryMode::Fullnat, vec![]);
        (service.addresses, service.health_check_port) = (vec![[203, 0, 113, vip].into()], Some(port));
        assert_eq!(update(&mut compiler, incremental(vec![named(name, "1", service)])).rejected, []);
    }
    assert_eq!(last()[0].ports, [10256, 32_003, 32_007]);
    // What changes nothing is not told again.
    let count = told.0.lock().unwrap().len();
    update(&mut compiler, incremental(vec![named("shop/web", "2", web(DeliveryMode::Fullnat, on(&[2])))]));
    assert_eq!(told.0.lock().unwrap().len(), count);
    let gone = |name: &str| Update { removed: vec![key(Kind::Service, name)], ..Update::default() };
    update(&mut compiler, gone("shop/a"));
    update(&mut compiler, gone("shop/b"));
    assert_eq!(last()[0].ports, [10256, 32_007]);
    // Switched off, nobody is asked and nobody stays suspected.
    feel(&mut compiler, "w1", Family::V6, true);
    assert_eq!(compiler.take_suspects().unwrap().len(), 1);
    let off = Gateway { health_port: None, ..gateway() };
    update(&mut compiler, incremental(vec![named("gw", "2", off)]));
    assert_eq!((last(), compiler.take_suspects()), (vec![], Some(vec![])));
    assert_eq!(compiler.take_suspects(), None, "once");
}

#[test]
fn a_peer_that_goes_takes_its_suspicion_along_and_strangers_are_none() {
    for family in FAMILIES {
        let (mut compiler, _) = with(web(DeliveryMode::Fullnat, on(&[1, 2])));
        feel(&mut compiler, "w9", family, true);
        assert_eq!(compiler.take_suspects(), None);
        feel(&mut compiler, "w2", family, true);
        let told = compiler.take_suspects().unwrap();
        let at = if family == Family::V4 { "198.51.100.12" } else { "2001:db8:2::12" };
        assert_eq!(told[0].reason, format!("no answer from {at} on TCP port 10256"));
        update(&mut compiler, Update { removed: vec![key(Kind::Peer, "w2")], ..Update::default() });
        assert_eq!(compiler.take_suspects(), Some(vec![]));
        assert_eq!(shares(&compiler, family, false).len(), 2);
    }
}
