use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use proptest::prelude::*;
use tidegate_api::resource::{Pod, Protocol, ResourceKey, Service};
use tidegate_io::OwnedFlags;

use super::*;
use crate::kernel::{Hop, Neighbour, Route, RouteKind, Table, nud};
use crate::objects::key;
use crate::objects::tests::{backend, full, gateway as gateway_object, incremental, machine, named, peer, service};
use crate::routes::plan::Wanted;
use crate::table::backend::BackendState;
use crate::table::local::LocalKind;
use crate::table::neighbour::NeighbourState;
use crate::table::publish::Publisher;
use crate::table::route::RouteTarget;
use crate::table::{Family, NeighbourId, TunnelId};

/// What the outside world was told, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    Owned(Owned),
    Change(OwnedChange),
    Ask(&'static str, NeighbourKey),
}

/// A pinhole and a kernel that write down what they are told.
#[derive(Clone, Default)]
pub(crate) struct Notebook(pub(crate) Arc<Mutex<Vec<Told>>>);

impl Notebook {
    pub(crate) fn take(&self) -> Vec<Told> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Pinholes for Notebook {
    fn update(&mut self, owned: &Owned) -> io::Result<()> {
        self.0.lock().unwrap().push(Told::Owned(owned.clone()));
        Ok(())
    }

    fn change(&mut self, change: &OwnedChange) -> io::Result<()> {
        self.0.lock().unwrap().push(Told::Change(change.clone()));
        Ok(())
    }
}

impl NeighbourRequests for Notebook {
    fn keep(&mut self, key: NeighbourKey) -> io::Result<bool> {
        self.0.lock().unwrap().push(Told::Ask("keep", key));
        Ok(true)
    }

    fn probe(&mut self, key: NeighbourKey) -> io::Result<()> {
        self.0.lock().unwrap().push(Told::Ask("probe", key));
        Ok(())
    }

    fn release(&mut self, key: NeighbourKey) -> io::Result<()> {
        self.0.lock().unwrap().push(Told::Ask("release", key));
        Ok(())
    }
}

pub(crate) fn compiler() -> (Compiler, Notebook) {
    let notebook = Notebook::default();
    let (publisher, _) = Publisher::new(Tables::default());
    let boxed = (Box::new(notebook.clone()), Box::new(notebook.clone()));
    (Compiler::new(["wan0", "lan0"], publisher, boxed.0, boxed.1), notebook)
}

/// A compiler on the machine of the tests, with connected and default routes and no object.
pub(crate) fn on_machine() -> (Compiler, Notebook) {
    let (mut compiler, notebook) = compiler();
    layout(&mut compiler, routed());
    notebook.take();
    (compiler, notebook)
}

pub(crate) fn layout(compiler: &mut Compiler, layout: crate::kernel::Layout) {
    compiler.turn(Arrived { changes: vec![Change::Layout(layout)], ..Arrived::default() }, SECOND);
}

pub(crate) fn update(compiler: &mut Compiler, update: Update) -> Accepted {
    update_at(compiler, update, SECOND)
}

pub(crate) fn update_at(compiler: &mut Compiler, update: Update, now: Nanos) -> Accepted {
    compiler.turn(Arrived { updates: vec![update.into()], ..Arrived::default() }, now).accepted.remove(0)
}

fn neighbours(compiler: &mut Compiler, list: &[(u32, &str, Option<Neighbour>)]) {
    let list = list.iter().map(|(ifindex, address, neighbour)| {
        (NeighbourKey { ifindex: *ifindex, address: address.parse().unwrap() }, *neighbour)
    });
    compiler.turn(Arrived { changes: vec![Change::Neighbours(list.collect())], ..Arrived::default() }, SECOND);
}

pub(crate) const SECOND: Nanos = 1_000_000_000;
const WAN: DeviceId = DeviceId(0);
const LAN: DeviceId = DeviceId(1);

fn route(prefix: &str, hops: &[(Option<&str>, u32, u16)]) -> Route {
    let hops = hops.iter().map(|(gateway, ifindex, weight)| Hop {
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        ifindex: *ifindex,
        weight: *weight,
        down: false,
    });
    Route {
        prefix: prefix.parse().unwrap(),
        table: Table::Main,
        metric: 0,
        kind: RouteKind::Unicast,
        hops: hops.collect(),
        mtu: None,
    }
}

fn local(prefix: &str, ifindex: u32) -> Route {
    Route { table: Table::Local, kind: RouteKind::Local, ..route(prefix, &[(None, ifindex, 1)]) }
}

/// The machine with what its kernel routes by itself, and a default route per family.
pub(crate) fn routed() -> crate::kernel::Layout {
    let mut layout = machine();
    layout.routes = vec![
        local("192.0.2.1/32", 2),
        local("2001:db8:1::1/128", 2),
        route("192.0.2.0/24", &[(None, 2, 1)]),
        route("198.51.100.0/24", &[(None, 3, 1)]),
        route("2001:db8:1::/64", &[(None, 2, 1)]),
        route("2001:db8:2::/64", &[(None, 3, 1)]),
        route("fe80::/64", &[(None, 2, 1)]),
        route("0.0.0.0/0", &[(Some("192.0.2.254"), 2, 1)]),
        route("::/0", &[(Some("fe80::1"), 2, 1)]),
    ];
    layout
}

fn ip16(text: &str) -> [u8; 16] {
    mapped_ip(text.parse().unwrap())
}

fn target<'a>(tables: &'a Tables, address: &str) -> Option<&'a RouteTarget> {
    tables.routes.lookup(&ip16(address)).map(|row| &row.target)
}

fn hops(tables: &Tables, address: &str) -> Vec<(DeviceId, IpAddr)> {
    match target(tables, address) {
        Some(RouteTarget::NextHops(hops)) => hops.iter().map(|id| place(tables, *id)).collect(),
        other => panic!("{address}: {other:?}"),
    }
}

fn place(tables: &Tables, id: NeighbourId) -> (DeviceId, IpAddr) {
    let row = tables.neighbours.row(id).expect("a next hop has a row");
    (row.device, address_of(&row.address))
}

fn both_families(port: u16, backends: &[(&str, u16)]) -> Service {
    let backends: Vec<_> = backends.iter().map(|(address, weight)| backend(address, 8080, *weight)).collect();
    service(&["203.0.113.10", "192.0.2.80", "2001:db8:f::10", "2001:db8:1::80"], port, &backends)
}

fn everything() -> Vec<Resource> {
    let web = both_families(80, &[("10.244.1.5", 1), ("10.244.2.5", 1), ("fd00:10:244:1::5", 1)]);
    vec![
        named("gw", "1", gateway_object()),
        named("w1", "1", peer(1)),
        named("w2", "1", peer(2)),
        named("shop/web", "1", web),
    ]
}

#[test]
fn objects_and_facts_become_tables_of_both_families() {
    let (mut compiler, notebook) = on_machine();
    let accepted = update(&mut compiler, full(everything()));
    assert_eq!((accepted.rejected.len(), accepted.generation), (0, compiler.generation()));
    let tables = compiler.tables();
    for (vip, members, announced) in
        [("203.0.113.10", 2, false), ("192.0.2.80", 2, true), ("2001:db8:f::10", 1, false), ("2001:db8:1::80", 1, true)]
    {
        let frontend = crate::table::service::Frontend { address: ip16(vip), protocol: 6, port: 80 };
        let row = tables.services.row(tables.services.lookup(&frontend).expect(vip)).unwrap();
        assert_eq!(
            (row.cluster.members.len(), row.serving, &*row.name),
            (members, u32::try_from(members).unwrap(), "shop/web")
        );
        assert!(
            row.cluster
                .pick(7)
                .is_some_and(|id| tables.backends.row(id).is_some_and(|row| row.state == BackendState::Active))
        );
        let kind = tables.locals.kind(&ip16(vip));
        assert!(kind.contains(LocalKind::VIP) && kind.contains(LocalKind::ANNOUNCED) == announced, "{vip}: {kind}");
    }
    for (pod, underlay, overhead) in [("10.244.2.7", "198.51.100.12", 50), ("fd00:10:244:2::7", "2001:db8:2::12", 70)] {
        let Some(RouteTarget::Tunnel(id)) = target(tables, pod) else { panic!("{:?}", target(tables, pod)) };
        let row = tables.tunnels.row(*id).unwrap();
        assert_eq!((address_of(&row.underlay), &*row.name, row.live), (underlay.parse().unwrap(), "w2", true));
        assert_eq!(row.inner_mtu, 1500 - overhead, "V-009");
        assert_eq!(row.template.overhead(), overhead);
        let ways: Vec<_> = row.next_hops.iter().map(|id| place(tables, *id)).collect();
        assert_eq!(ways, [(LAN, underlay.parse().unwrap())]);
    }
    assert_eq!(
        tables.tunnels.by_underlay_v4(&[198, 51, 100, 12], 1),
        tables.tunnels.by_underlay_v4(&[198, 51, 100, 12], 1)
    );
    assert!(tables.tunnels.by_underlay_v4(&[198, 51, 100, 12], 2).is_none(), "V-002: another network");
    assert_eq!(*tables.nat.sources_v4, [[10, 244, 9, 2]]);
    assert_eq!(tables.nat.sources_v6.len(), 1);
    assert_eq!(tables.settings.hash_key, 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes());
    for (family, overlay) in [(Family::V4, "10.244.9.0"), (Family::V6, "fd00:10:244:9::")] {
        assert_eq!(tables.locals.vtep(family).map(|vtep| vtep.overlay), Some(ip16(overlay)));
        assert!(tables.locals.kind(&ip16(overlay)).contains(LocalKind::VTEP_OVERLAY));
    }
    // Own pods are nobody's but the kernel's, and the kernel has no route to them.
    assert_eq!(target(tables, "10.244.9.77"), Some(&RouteTarget::Blackhole));
    assert_eq!(hops(tables, "8.8.8.8"), [(WAN, "192.0.2.254".parse().unwrap())]);
    assert_eq!(hops(tables, "2600::1"), [(WAN, "fe80::1".parse().unwrap())]);
    assert_eq!(target(tables, "192.0.2.10"), Some(&RouteTarget::Connected(WAN)));
    assert_eq!(target(tables, "2001:db8:1::1"), Some(&RouteTarget::Local));
    assert_eq!(target(tables, "fe80::77"), Some(&RouteTarget::Blackhole), "a link's own affair");

    let told = notebook.take();
    let Told::Owned(owned) = &told[0] else { panic!("the pinhole is told before the kernel is asked: {told:?}") };
    let flags = |address: &str, bits| {
        let address: IpAddr = address.parse().unwrap();
        owned.prefixes.iter().find(|entry| (entry.0, entry.1) == (address, bits)).map(|entry| entry.2)
    };
    assert_eq!(flags("203.0.113.10", 32), Some(OwnedFlags::TRAFFIC));
    assert_eq!(flags("2001:db8:1::80", 128), Some(OwnedFlags::TRAFFIC | OwnedFlags::ANNOUNCED));
    assert_eq!(flags("10.244.9.2", 32), Some(OwnedFlags::TRAFFIC), "V-025");
    assert_eq!(flags("198.51.100.1", 32), None, "the underlay address is the kernel's, but for VXLAN");
    let vteps = [("198.51.100.1".parse().unwrap(), 8472), ("2001:db8:2::1".parse().unwrap(), 8472)];
    assert_eq!(owned.vteps, vteps);
    let asked: Vec<_> = told[1..].iter().filter(|told| matches!(told, Told::Ask("keep", _))).collect();
    assert_eq!(asked.len(), 4, "both peers, both families; the routers were asked about before: {told:?}");
}

#[test]
fn an_update_shares_all_it_does_not_touch() {
    let (mut compiler, notebook) = on_machine();
    let mut objects = everything();
    for number in 0..1500u32 {
        let vip = format!("203.0.{}.{}", 64 + number / 250, 1 + number % 250);
        objects.push(named(&format!("many/{number}"), "1", service(&[&vip], 80, &[backend("10.244.1.9", 80, 1)])));
    }
    update(&mut compiler, full(objects));
    let before = compiler.tables().clone();
    notebook.take();
    let web = both_families(80, &[("10.244.1.5", 1), ("fd00:10:244:1::5", 1)]);
    update(&mut compiler, incremental(vec![named("shop/web", "2", web)]));
    let after = compiler.tables();
    assert_eq!(after.generation, before.generation + 1);
    let shared = [
        (Arc::ptr_eq(&before.routes, &after.routes), "routes"),
        (Arc::ptr_eq(&before.tunnels, &after.tunnels), "tunnels"),
        (Arc::ptr_eq(&before.neighbours, &after.neighbours), "neighbours"),
        (Arc::ptr_eq(&before.locals, &after.locals), "locals"),
        (Arc::ptr_eq(&before.nat, &after.nat), "nat"),
        (Arc::ptr_eq(&before.devices, &after.devices), "devices"),
        (before.settings == after.settings, "settings"),
    ];
    assert!(shared.iter().all(|(shared, _)| *shared), "{shared:?}");
    assert!(!Arc::ptr_eq(&before.backends, &after.backends));
    // Rings of others are the same memory, and no id moved.
    let ring = |tables: &Tables, vip: &str| {
        let frontend = crate::table::service::Frontend { address: ip16(vip), protocol: 6, port: 80 };
        let id = tables.services.lookup(&frontend).unwrap();
        (id, tables.services.row(id).unwrap().clone())
    };
    let (then, now) = (ring(&before, "203.0.64.77"), ring(after, "203.0.64.77"));
    assert_eq!(then.0, now.0);
    assert!(Arc::ptr_eq(then.1.cluster.ring.as_ref().unwrap(), now.1.cluster.ring.as_ref().unwrap()));
    assert!(Arc::ptr_eq(&then.1.cluster.members, &now.1.cluster.members));
    assert!(notebook.take().is_empty(), "neither pinhole nor kernel has to be told");
    // Nothing new is no generation.
    let generation = compiler.generation();
    let web = both_families(80, &[("10.244.1.5", 1), ("fd00:10:244:1::5", 1)]);
    assert_eq!(update(&mut compiler, incremental(vec![named("shop/web", "3", web)])).generation, generation);
}

#[test]
fn endpoints_drain_leave_and_return_under_one_id() {
    let (mut compiler, _) = on_machine();
    for (address, vip) in [("10.244.1.5", "203.0.113.10"), ("fd00:10:244:1::5", "2001:db8:f::10")] {
        let with = |backends: &[(&str, u16)]| named("shop/web", "x", both_families(80, backends));
        let row = |compiler: &Compiler| {
            let found = compiler.tables().backends.rows().find(|(_, row)| row.address == ip16(address));
            found.map(|(id, row)| (id, *row)).unwrap()
        };
        let front = |compiler: &Compiler| {
            let frontend = crate::table::service::Frontend { address: ip16(vip), protocol: 6, port: 80 };
            let tables = compiler.tables();
            tables.services.row(tables.services.lookup(&frontend).unwrap()).unwrap().clone()
        };
        update(&mut compiler, full(vec![with(&[(address, 1)])]));
        let (id, first) = row(&compiler);
        assert_eq!(first.state, BackendState::Active);
        update(&mut compiler, full(vec![with(&[(address, 0)])]));
        assert_eq!((row(&compiler).0, row(&compiler).1.state), (id, BackendState::Draining));
        assert_ne!(row(&compiler).1.epoch, first.epoch);
        assert_eq!((front(&compiler).serving, front(&compiler).cluster.is_empty()), (1, true), "S-070, S-102");
        update(&mut compiler, full(vec![with(&[])]));
        assert_eq!((row(&compiler).0, row(&compiler).1.state), (id, BackendState::Gone));
        assert_eq!(front(&compiler).serving, 0, "S-102: none serving");
        let gone = row(&compiler).1.epoch;
        update(&mut compiler, full(vec![with(&[(address, 1)])]));
        assert_eq!((row(&compiler).0, row(&compiler).1.state), (id, BackendState::Active));
        assert_ne!(row(&compiler).1.epoch, gone);
        // S-005: the same name with another uid is another Service.
        let other = Service { uid: "uid-2".into(), ..both_families(80, &[(address, 1)]) };
        update(&mut compiler, full(vec![named("shop/web", "y", other)]));
        assert_eq!(compiler.tables().backends.row(id).unwrap().state, BackendState::Gone);
        assert_ne!(front(&compiler).cluster.members[0], id);
        update(&mut compiler, full(vec![]));
        assert_eq!(compiler.tables().services.frontends_len(), 0);
    }
}

#[test]
fn a_frontend_moves_between_services_in_one_update() {
    let (mut compiler, notebook) = on_machine();
    for vip in ["203.0.113.10", "2001:db8:f::10"] {
        let of = |name: &str, version: &str, vips: &[&str]| named(name, version, service(vips, 80, &[]));
        update(&mut compiler, full(vec![of("a", "1", &[vip]), of("b", "1", &[])]));
        notebook.take();
        update(&mut compiler, incremental(vec![of("b", "2", &[vip]), of("a", "2", &[])]));
        let tables = compiler.tables();
        let frontend = crate::table::service::Frontend { address: ip16(vip), protocol: 6, port: 80 };
        let id = tables.services.lookup(&frontend).expect("still served");
        assert_eq!(&*tables.services.row(id).unwrap().name, "b");
        assert_eq!(notebook.take(), [], "the pinhole has the address all along");
    }
}

#[test]
fn metrics_links_and_foreign_devices_decide_about_routes() {
    let (mut compiler, _) = compiler();
    let mut facts = routed();
    facts.links.insert(9, crate::kernel::Link { name: "eth0".into(), mac: None, mtu: 1500, up: true });
    for (prefix, best, worse) in
        [("203.0.113.0/24", "192.0.2.7", "198.51.100.7"), ("2001:db8:a::/48", "2001:db8:1::7", "2001:db8:2::7")]
    {
        facts.routes.push(Route { metric: 20, ..route(prefix, &[(Some(worse), 3, 1)]) });
        facts.routes.push(Route { metric: 10, mtu: Some(1400), ..route(prefix, &[(Some(best), 2, 1)]) });
    }
    facts.routes.push(route("100.64.0.0/10", &[(Some("10.0.0.1"), 9, 1)]));
    facts.routes.push(Route { kind: RouteKind::Discard, ..route("100.65.0.0/16", &[]) });
    facts.routes.push(route("10.5.0.0/16", &[(Some("192.0.2.8"), 2, 3), (Some("198.51.100.8"), 3, 1)]));
    facts.routes.push(route("2001:db8:b::/48", &[(Some("2001:db8:1::8"), 2, 1), (Some("2001:db8:2::8"), 3, 1)]));
    facts.routes.push(route("10.6.0.0/16", &[(Some("fe80::8"), 2, 1)]));
    layout(&mut compiler, facts.clone());
    let tables = compiler.tables();
    assert_eq!(hops(tables, "203.0.113.1"), [(WAN, "192.0.2.7".parse().unwrap())]);
    assert_eq!(tables.routes.lookup(&ip16("2001:db8:a::1")).unwrap().mtu, 1400);
    assert_eq!(target(tables, "100.64.0.1"), Some(&RouteTarget::Blackhole), "out over a device that is not served");
    assert_eq!(target(tables, "100.65.0.1"), Some(&RouteTarget::Blackhole));
    assert_eq!(hops(tables, "10.5.0.1").len(), 4, "weights by repetition");
    assert_eq!(hops(tables, "10.5.0.1").iter().filter(|hop| hop.0 == WAN).count(), 3);
    assert_eq!(hops(tables, "2001:db8:b::1").len(), 2);
    assert_eq!(hops(tables, "10.6.0.1"), [(WAN, "fe80::8".parse().unwrap())]);
    let (epoch, id) = (tables.settings.routes_epoch, tables.neighbours.find(LAN, &ip16("198.51.100.8")).unwrap());
    // wan0 loses its carrier: routes over it step aside.
    facts.links.get_mut(&2).unwrap().up = false;
    layout(&mut compiler, facts);
    let tables = compiler.tables();
    assert_ne!(tables.settings.routes_epoch, epoch);
    assert_eq!(hops(tables, "203.0.113.1"), [(LAN, "198.51.100.7".parse().unwrap())]);
    assert_eq!(hops(tables, "2001:db8:a::1"), [(LAN, "2001:db8:2::7".parse().unwrap())]);
    assert_eq!(hops(tables, "10.5.0.1"), [(LAN, "198.51.100.8".parse().unwrap())]);
    assert_eq!(tables.neighbours.find(LAN, &ip16("198.51.100.8")), Some(id), "ids stay");
    assert_eq!(target(tables, "8.8.8.8"), None);
}

#[test]
fn pod_prefixes_beat_the_kernel() {
    let (mut compiler, _) = on_machine();
    update(&mut compiler, full(everything()));
    let mut facts = routed();
    facts.routes.push(route("10.244.1.0/24", &[(Some("198.51.100.99"), 3, 1)]));
    facts.routes.push(route("10.244.1.128/25", &[(Some("198.51.100.99"), 3, 1)]));
    facts.routes.push(route("fd00:10:244:1::/80", &[(Some("2001:db8:2::99"), 3, 1)]));
    facts.routes.push(route("10.244.9.0/24", &[(None, 3, 1)]));
    layout(&mut compiler, facts);
    for pod in ["10.244.1.5", "10.244.1.200", "fd00:10:244:1::5"] {
        assert!(matches!(target(compiler.tables(), pod), Some(RouteTarget::Tunnel(_))), "{pod}");
    }
    assert_eq!(target(compiler.tables(), "10.244.9.5"), Some(&RouteTarget::Connected(LAN)), "the kernel's own pods");
}

#[test]
fn a_peer_keeps_its_id_and_a_dead_one_is_not_live() {
    let (mut compiler, _) = on_machine();
    update(&mut compiler, full(everything()));
    let id = |compiler: &Compiler| match target(compiler.tables(), "10.244.2.7") {
        Some(RouteTarget::Tunnel(id)) => Some(*id),
        _ => None,
    };
    let w2: TunnelId = id(&compiler).unwrap();
    let epoch = compiler.tables().settings.routes_epoch;
    // A mere neighbour change moves no epoch.
    neighbours(
        &mut compiler,
        &[(3, "198.51.100.12", Some(Neighbour { mac: Some([2; 6]), state: nud::REACHABLE, managed: true }))],
    );
    assert_eq!(compiler.tables().settings.routes_epoch, epoch);
    let mut removal = incremental(vec![]);
    removal.removed.push(key(Kind::Peer, "w2"));
    update(&mut compiler, removal);
    assert_eq!(hops(compiler.tables(), "10.244.2.7"), [(WAN, "192.0.2.254".parse().unwrap())]);
    assert!(!compiler.tables().tunnels.row(w2).unwrap().live);
    assert!(compiler.tables().tunnels.by_underlay_v4(&[198, 51, 100, 12], 1).is_none());
    assert_ne!(compiler.tables().settings.routes_epoch, epoch);
    let mut moved = peer(2);
    moved.v4.as_mut().unwrap().underlay = "198.51.100.22".parse().unwrap();
    update(&mut compiler, incremental(vec![named("w2", "2", moved)]));
    assert_eq!(id(&compiler), Some(w2));
    assert!(compiler.tables().tunnels.row(w2).unwrap().live);
    assert_eq!(compiler.tables().tunnels.by_underlay_v4(&[198, 51, 100, 22], 1), Some(w2));
}

#[test]
fn neighbours_follow_the_kernel_and_wishes() {
    let (mut compiler, notebook) = on_machine();
    let known = |state| Some(Neighbour { mac: Some([2, 0, 0, 0, 0, 9]), state, managed: true });
    for (router, now) in [("192.0.2.254", 10 * SECOND), ("fe80::1", 30 * SECOND)] {
        let row = |compiler: &Compiler| {
            let id = compiler.tables().neighbours.find(WAN, &ip16(router)).expect("a next hop");
            *compiler.tables().neighbours.row(id).unwrap()
        };
        assert_eq!(row(&compiler).state, NeighbourState::Unresolved);
        for (state, expected) in [
            (nud::INCOMPLETE, NeighbourState::Unresolved),
            (nud::REACHABLE, NeighbourState::Resolved),
            (nud::STALE, NeighbourState::Resolved),
            (nud::PROBE, NeighbourState::Resolved),
            (nud::FAILED, NeighbourState::Failed),
            (nud::PERMANENT, NeighbourState::Resolved),
        ] {
            neighbours(&mut compiler, &[(2, router, known(state))]);
            assert_eq!(row(&compiler).state, expected, "{state:#x}");
        }
        assert_eq!(row(&compiler).mac, [2, 0, 0, 0, 0, 9]);
        neighbours(&mut compiler, &[(2, router, None)]);
        assert_eq!(row(&compiler).state, NeighbourState::Unresolved);
        notebook.take();
        compiler.tick(now);
        let key = NeighbourKey { ifindex: 2, address: router.parse().unwrap() };
        assert!(notebook.take().contains(&Told::Ask("keep", key)), "what the kernel has lost is asked for again");
        // What an administrator has set is left alone.
        neighbours(&mut compiler, &[(2, router, Some(Neighbour { managed: false, ..known(nud::PERMANENT).unwrap() }))]);
        compiler.tick(now + 10 * SECOND);
        assert!(!notebook.take().contains(&Told::Ask("keep", key)));
    }
}

#[test]
fn workers_get_the_neighbours_they_want_within_bounds() {
    let (mut compiler, notebook) = on_machine();
    let want = |compiler: &mut Compiler, address: &str, now| {
        compiler.turn(Arrived { wants: vec![(WAN, ip16(address))], ..Arrived::default() }, now);
    };
    for (client, start) in [("192.0.2.10", SECOND), ("2001:db8:1::10", 200 * SECOND)] {
        let key = NeighbourKey { ifindex: 2, address: client.parse().unwrap() };
        let told = || {
            let told = notebook.take().into_iter().filter_map(|told| match told {
                Told::Ask(what, asked) if asked == key => Some(what),
                _ => None,
            });
            told.collect::<Vec<_>>()
        };
        want(&mut compiler, client, start);
        assert_eq!(told(), ["keep"]);
        let id = compiler.tables().neighbours.find(WAN, &ip16(client)).unwrap();
        let generation = compiler.generation();
        want(&mut compiler, client, start + 1);
        assert_eq!((compiler.generation(), told().len()), (generation, 0), "wanted twice at once is once");
        want(&mut compiler, client, start + 2 * SECOND);
        assert_eq!(told(), ["probe"]);
        neighbours(&mut compiler, &[(2, client, Some(Neighbour { mac: None, state: nud::FAILED, managed: true }))]);
        compiler.tick(start + 80 * SECOND);
        assert_eq!(told(), ["release"], "nobody asks any more");
        assert_eq!(compiler.tables().neighbours.find(WAN, &ip16(client)), Some(id), "flows may still name it");
        neighbours(&mut compiler, &[(2, client, Some(Neighbour { mac: None, state: nud::FAILED, managed: false }))]);
        want(&mut compiler, client, start + 81 * SECOND);
        assert_eq!(told(), ["keep"]);
        assert_eq!(compiler.tables().neighbours.find(WAN, &ip16(client)), Some(id));
    }
    for nonsense in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "ff02::1"] {
        want(&mut compiler, nonsense, SECOND);
        assert!(compiler.tables().neighbours.find(WAN, &ip16(nonsense)).is_none());
    }
    let epoch = compiler.tables().settings.routes_epoch;
    let many = (0..20_000u16)
        .map(|number| (WAN, mapped_ip(IpAddr::V4(Ipv4Addr::from(0xc000_0000 | u32::from(number) << 8 | 9)))));
    compiler.turn(Arrived { wants: many.collect(), ..Arrived::default() }, 900 * SECOND);
    assert!(compiler.tables().neighbours.rows().count() <= neighbour::WANTED_MAX + 8);
    assert_eq!(compiler.tables().settings.routes_epoch, epoch, "invented addresses make no flow walk");
}

#[test]
fn what_the_kernel_uses_itself_is_not_served() {
    let (mut compiler, notebook) = on_machine();
    update(&mut compiler, full(everything()));
    notebook.take();
    let mut facts = routed();
    for (ifindex, address) in [(2, "203.0.113.10"), (2, "2001:db8:f::10"), (3, "10.244.9.2")] {
        let address: IpAddr = address.parse().unwrap();
        facts.addresses.insert(crate::kernel::Address { ifindex, address, prefix: address.into() });
    }
    facts.addresses.retain(|entry| entry.address != "2001:db8:2::1".parse::<IpAddr>().unwrap());
    assert_eq!(compiler.take_taken(), Some(vec![]));
    assert_eq!(compiler.take_taken(), None, "nothing has happened since");
    layout(&mut compiler, facts);
    let taken = compiler.take_taken().unwrap().into_iter().map(|taken| {
        assert!(taken.withheld && taken.mac.0 != [0; 6], "{taken:?}");
        (taken.address.to_string(), taken.device, taken.kernel)
    });
    let names = |address: &str, device: &str, length| (address.to_owned(), device.to_owned(), Some(length));
    let both = [names("203.0.113.10", "wan0", 32), names("2001:db8:f::10", "wan0", 128)];
    assert_eq!(taken.collect::<BTreeSet<_>>(), both.into_iter().chain([names("10.244.9.2", "lan0", 32)]).collect());
    let tables = compiler.tables();
    for address in ["203.0.113.10", "2001:db8:f::10", "10.244.9.2"] {
        assert!(tables.locals.kind(&ip16(address)).is_empty(), "{address}");
    }
    assert!(tables.nat.sources_v4.is_empty());
    assert!(tables.locals.vtep(Family::V6).is_none() && tables.locals.vtep(Family::V4).is_some());
    let Some(RouteTarget::Tunnel(id)) = target(tables, "fd00:10:244:1::5") else { panic!() };
    assert!(!tables.tunnels.row(*id).unwrap().live, "no VTEP of our own");
    let told = notebook.take();
    let Some(Told::Owned(owned)) = told.first() else { panic!("{told:?}") };
    assert!(!owned.prefixes.iter().any(|entry| entry.0 == "203.0.113.10".parse::<IpAddr>().unwrap()));
    assert_eq!(owned.vteps.len(), 1);
    layout(&mut compiler, routed());
    assert!(compiler.tables().locals.kind(&ip16("203.0.113.10")).contains(LocalKind::VIP), "and is, once it is free");
    assert_eq!(compiler.take_taken(), Some(vec![]));
    assert!(compiler.tables().locals.vtep(Family::V6).is_some());
}

#[test]
fn what_the_kernel_had_before_is_no_mistake_of_the_object() {
    let (mut compiler, _) = on_machine();
    let mut facts = routed();
    for (ifindex, address) in [(2, "203.0.113.10"), (2, "2001:db8:f::10"), (3, "10.244.9.2")] {
        let address: IpAddr = address.parse().unwrap();
        facts.addresses.insert(crate::kernel::Address { ifindex, address, prefix: address.into() });
    }
    layout(&mut compiler, facts);
    assert_eq!(update(&mut compiler, full(everything())).rejected, []);
    let taken = compiler.take_taken().unwrap();
    let taken: BTreeSet<String> = taken.into_iter().map(|taken| taken.address.to_string()).collect();
    assert_eq!(taken, ["10.244.9.2", "2001:db8:f::10", "203.0.113.10"].map(String::from).into());
    let tables = compiler.tables();
    assert!(tables.locals.kind(&ip16("203.0.113.10")).is_empty() && tables.nat.sources_v4.is_empty());
    assert!(tables.locals.kind(&ip16("2001:db8:f::10")).is_empty());
    layout(&mut compiler, routed());
    for vip in ["203.0.113.10", "2001:db8:f::10"] {
        assert!(compiler.tables().locals.kind(&ip16(vip)).contains(LocalKind::VIP), "{vip} is served once it is free");
    }
    assert_eq!((compiler.take_taken(), compiler.tables().nat.sources_v4.len()), (Some(vec![]), 1));
}

#[test]
fn saved_objects_work_before_control_and_before_addresses_are_up() {
    let (mut compiler, notebook) = compiler();
    compiler.restore(KernelFacts::default(), everything(), SECOND);
    assert!(matches!(notebook.take()[..], [Told::Owned(_)]), "the pinhole hears of everything at once");
    assert_eq!(compiler.tables().services.frontends_len(), 4);
    assert!(compiler.tables().locals.vtep(Family::V4).is_none());
    layout(&mut compiler, routed());
    assert!(compiler.tables().locals.vtep(Family::V4).is_some());
    assert!(matches!(target(compiler.tables(), "10.244.1.5"), Some(RouteTarget::Tunnel(_))));
    assert_eq!(compiler.objects().len(), 4);

    // Nothing saved: a pinhole that an earlier process left keeps guarding what was ours until control has spoken.
    let (mut compiler, notebook) = super::tests::compiler();
    compiler.restore(KernelFacts { layout: routed(), ..KernelFacts::default() }, vec![], SECOND);
    compiler.tick(2 * SECOND);
    layout(&mut compiler, machine());
    assert!(!notebook.take().iter().any(|told| matches!(told, Told::Owned(_))));
    update(&mut compiler, full(vec![]));
    assert!(notebook.take().iter().any(|told| matches!(told, Told::Owned(_))));
}

#[test]
fn a_refused_pinhole_is_told_again() {
    struct Refusing(Notebook, bool);
    impl Pinholes for Refusing {
        fn update(&mut self, owned: &Owned) -> io::Result<()> {
            if std::mem::take(&mut self.1) { Err(io::ErrorKind::OutOfMemory.into()) } else { self.0.update(owned) }
        }

        fn change(&mut self, change: &OwnedChange) -> io::Result<()> {
            self.0.change(change)?;
            Err(io::ErrorKind::OutOfMemory.into())
        }
    }
    let notebook = Notebook::default();
    let (publisher, _) = Publisher::new(Tables::default());
    let refusing = Box::new(Refusing(notebook.clone(), true));
    let mut compiler = Compiler::new(["wan0", "lan0"], publisher, refusing, Box::new(Notebook::default()));
    layout(&mut compiler, routed());
    assert_eq!(notebook.take(), []);
    compiler.tick(2 * SECOND);
    assert!(matches!(notebook.take()[..], [Told::Owned(_)]));
    compiler.tick(3 * SECOND);
    assert_eq!(notebook.take(), [], "once is enough");
    // A change that fails may have happened in part: then everything is told.
    let web = service(&["203.0.113.10", "2001:db8:f::10"], 80, &[]);
    update(&mut compiler, incremental(vec![named("shop/web", "1", web)]));
    compiler.tick(4 * SECOND);
    let told = notebook.take();
    let [Told::Change(change), Told::Owned(owned)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((&change.set, change.gone.len()), (&owned.prefixes, 0));
}

#[test]
fn the_pinhole_hears_of_what_changed_alone() {
    let (mut compiler, notebook) = on_machine();
    update(&mut compiler, full(everything()));
    notebook.take();
    let traffic = OwnedFlags::TRAFFIC;
    let both = OwnedFlags::TRAFFIC | OwnedFlags::ANNOUNCED;
    let at = |address: &str| -> IpAddr { address.parse().unwrap() };
    let addresses = ["203.0.113.10", "203.0.113.99", "192.0.2.99", "2001:db8:f::99", "2001:db8:1::99"];
    let mut new = service(&addresses, 443, &[]);
    new.ports[0].node_port = Some(30443);
    new.node_addresses = vec![at("192.0.2.1"), at("2001:db8:1::1")];
    update(&mut compiler, incremental(vec![named("shop/new", "1", new.clone())]));
    let node_ports = vec![(at("192.0.2.1"), 6, 30443), (at("2001:db8:1::1"), 6, 30443)];
    let set = vec![
        (at("192.0.2.99"), 32, both),
        (at("203.0.113.99"), 32, traffic),
        (at("2001:db8:1::99"), 128, both),
        (at("2001:db8:f::99"), 128, traffic),
    ];
    assert_eq!(
        notebook.take(),
        [Told::Change(OwnedChange { set, ports_set: node_ports.clone(), ..OwnedChange::default() })],
        "the first is another's too"
    );
    new.ports[0].port = 444;
    update(&mut compiler, incremental(vec![named("shop/new", "2", new)]));
    assert_eq!(notebook.take(), [], "a port is nothing to the pinhole");
    let mut removal = incremental(vec![]);
    removal.removed.push(key(Kind::Service, "shop/new"));
    update(&mut compiler, removal);
    let gone = vec![
        (at("192.0.2.99"), 32),
        (at("203.0.113.99"), 32),
        (at("2001:db8:1::99"), 128),
        (at("2001:db8:f::99"), 128),
    ];
    assert_eq!(notebook.take(), [Told::Change(OwnedChange { gone, ports_gone: node_ports, ..OwnedChange::default() })]);
    assert!(compiler.tables().locals.kind(&ip16("203.0.113.10")).contains(LocalKind::VIP));
    assert!(compiler.tables().locals.kind(&ip16("203.0.113.99")).is_empty());
}

/// Prefixes with what they are to us, and tunnel endpoints.
type Guarded = (BTreeMap<(IpAddr, u8), OwnedFlags>, Vec<(IpAddr, u16)>);

/// What the pinhole takes for us after all it was told.
fn guarded(told: Vec<Told>) -> Guarded {
    let (mut prefixes, mut vteps) = (BTreeMap::new(), Vec::new());
    let entry = |(address, bits, flags): &(IpAddr, u8, OwnedFlags)| ((*address, *bits), *flags);
    for told in told {
        match told {
            Told::Owned(owned) => {
                prefixes = owned.prefixes.iter().map(entry).collect();
                vteps = owned.vteps;
            }
            Told::Change(change) => {
                prefixes.extend(change.set.iter().map(entry));
                for prefix in &change.gone {
                    assert!(prefixes.remove(prefix).is_some(), "{prefix:?} was not there");
                }
            }
            Told::Ask(..) => {}
        }
    }
    (prefixes, vteps)
}

/// Service `n` of a crowd: by turns IPv4 and IPv6, with three endpoints less `version`.
fn of_crowd(n: u16, version: u8) -> Resource {
    let [high, low] = n.to_be_bytes();
    let of = |host: u8| match n.is_multiple_of(2) {
        true => format!("20.{high}.{low}.{host}"),
        false => format!("2001:db8:f:{n:x}::{host:x}"),
    };
    let backends: Vec<_> = (version..3).map(|at| backend(&of(100 + at), 8080, 1)).collect();
    named(&format!("crowd/{n:05}"), &version.to_string(), service(&[&of(1)], 80, &backends))
}

/// Design 5: a publish costs what changed.
#[test]
fn an_update_copies_the_chunks_it_touches() {
    let (mut compiler, _) = on_machine();
    update(&mut compiler, full((0..1500).map(|n| of_crowd(n, 0)).collect()));
    for n in [700, 701] {
        let before = compiler.tables().clone();
        update(&mut compiler, incremental(vec![of_crowd(n, 1)]));
        let after = compiler.tables();
        assert!(Arc::ptr_eq(&before.locals, &after.locals) && Arc::ptr_eq(&before.routes, &after.routes));
        assert_eq!(after.services.chunks_copied(&before.services), 1, "of {}", 1500 / 128);
        assert_eq!(after.services.frontends().chunks_copied(before.services.frontends()), 0);
        assert_eq!(after.backends.chunks_copied(&before.backends), [1, 1], "of {}", 4500 / 512);
        // A new Service: a row at the end, a frontend, an address.
        let before = after.clone();
        update(&mut compiler, incremental(vec![of_crowd(n + 2000, 0)]));
        let after = compiler.tables();
        assert!(!Arc::ptr_eq(&before.locals, &after.locals) && Arc::ptr_eq(&before.routes, &after.routes));
        assert_eq!(after.services.chunks_copied(&before.services), 1);
        assert!((1..=2).contains(&after.services.frontends().chunks_copied(before.services.frontends())));
        assert_eq!(after.backends.chunks_copied(&before.backends), [1, 1]);
    }
}

/// Design 5 and 10: updates of Services cost the flows of others no walk and no look-up.
#[test]
fn services_come_and_go_without_a_slow_walk_of_other_flows() {
    use crate::counters::Event;
    use crate::rig::{self, Net, Rig};
    const FLOWS: u16 = 40;
    let mut rig = Rig::new(rig::tables()).unwrap();
    let (unused, _) = Publisher::new(Tables::default());
    let publisher = std::mem::replace(&mut rig.publisher, unused);
    let boxed = (Box::new(Notebook::default()), Box::new(Notebook::default()));
    let mut compiler = Compiler::new(["wan0", "lan0"], publisher, boxed.0, boxed.1);
    let ours = Net::BOTH.map(|net| {
        let backends = [(0, 5), (1, 6)].map(|(peer, pod)| backend(&net.pod(peer, pod).to_string(), 8080, 1));
        let mut body = service(&[&net.vip(1).to_string()], 80, &backends);
        body.ports[0].protocol = Protocol::Udp;
        named(&format!("ours/{:?}", net.0), "1", body)
    });
    update(&mut compiler, full(ours.to_vec()));
    let send = |rig: &mut Rig, n: u16| {
        for net in Net::BOTH {
            assert!(rig.inject(rig::WAN, &rig::udp((net.client(n), 40_000), (net.vip(1), 80), b"x")));
        }
        rig.turn();
        assert_eq!(rig.sent(rig::LAN).len(), 2, "both are forwarded: {:?}", rig.worker.counters().nonzero());
    };
    (0..FLOWS).for_each(|n| send(&mut rig, n));
    let events = |rig: &Rig| {
        [Event::FlowInstalled, Event::SlowWalk, Event::FlowRevalidated, Event::FlowHit]
            .map(|event| rig.worker.counters().events(event))
    };
    let before = events(&rig);
    assert_eq!(before[0], u64::from(2 * FLOWS));
    let generation = compiler.generation();
    for round in 0..120u16 {
        let n = round / 4 % 6;
        let news = match round % 4 {
            0 => incremental(vec![of_crowd(n, 0)]),
            1 | 2 => incremental(vec![of_crowd(n, u8::try_from(round % 4).unwrap())]),
            _ => Update { removed: vec![of_crowd(n, 0).key()], ..incremental(vec![]) },
        };
        assert!(update(&mut compiler, news).rejected.is_empty());
        send(&mut rig, round % FLOWS);
    }
    assert_eq!(compiler.generation(), generation + 120, "each was published");
    let after = events(&rig);
    assert_eq!(after[..3], before[..3], "no flow began, walked or was looked at again");
    assert_eq!(after[3], before[3] + 2 * 120);
}

/// What workers can tell apart, without ids: those follow the order of events.
fn meaning(compiler: &Compiler) -> (u64, String) {
    let tables = compiler.tables();
    let mut lines: Vec<String> = tables
        .routes
        .iter()
        .map(|(prefix, row)| match &row.target {
            RouteTarget::Tunnel(id) => format!("{prefix} tunnel {} {}", tables.tunnels.row(*id).unwrap().name, row.mtu),
            RouteTarget::NextHops(hops) => {
                format!("{prefix} via {:?} {}", hops.iter().map(|id| place(tables, *id)).collect::<Vec<_>>(), row.mtu)
            }
            other => format!("{prefix} {other:?} {}", row.mtu),
        })
        .collect();
    lines.extend(tables.locals.iter().map(|(address, kind)| format!("{} {kind}", address_of(&address))));
    let tunnels = tables.tunnels.rows().filter(|(_, row)| row.live);
    lines.extend(tunnels.map(|(_, row)| format!("{} {} {:?}", row.name, address_of(&row.underlay), row.inner_mtu)));
    lines.sort();
    lines.push(format!("{:?}", tables.nat));
    (tables.services.digest(), lines.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever the order of updates and facts, and however objects changed on the way, the tables mean the same in the
    /// end as when all is told at once.
    #[test]
    fn the_order_of_events_does_not_matter(
        steps in proptest::collection::vec((0..7usize, 0..4u8), 0..40),
        order in Just((0..7usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let object = |number: usize, variant: u8| -> Resource {
            let version = format!("{variant}");
            match number {
                0 => named("gw", &version, gateway_object()),
                1 | 2 => {
                    let number = u8::try_from(number).unwrap();
                    let mut body = peer(number);
                    body.v4.as_mut().unwrap().underlay = format!("198.51.100.{number}{variant}").parse().unwrap();
                    named(&format!("w{number}"), &version, body)
                }
                _ => {
                    let backends: Vec<_> = (0..variant).map(|at| format!("10.244.1.{}", at + 5)).collect();
                    let mut list: Vec<_> = backends.iter().map(|address| backend(address, 8080, 1)).collect();
                    list.extend((0..variant).map(|at| backend(&format!("fd00:10:244:1::{}", at + 5), 80, u16::from(at))));
                    let mut body = service(&[&format!("203.0.113.{number}"), &format!("2001:db8:f::{number}")], 80, &list);
                    body.ports[0].protocol = if number.is_multiple_of(2) { Protocol::Udp } else { Protocol::Tcp };
                    named(&format!("s{number}"), &version, body)
                }
            }
        };
        let (mut walked, walked_notes) = compiler();
        for (number, variant) in steps {
            if variant == 3 {
                let mut removal = incremental(vec![]);
                removal.removed.push(ResourceKey::clone(&object(number, 0).key()));
                update(&mut walked, removal);
            } else if variant == 2 && number == 0 {
                layout(&mut walked, machine());
            } else {
                update(&mut walked, incremental(vec![object(number, variant)]));
            }
        }
        layout(&mut walked, routed());
        for number in order {
            update(&mut walked, incremental(vec![object(number, 2)]));
        }
        let (mut told_at_once, notes) = on_machine();
        update(&mut told_at_once, full((0..7).map(|number| object(number, 2)).collect()));
        prop_assert_eq!(meaning(&walked), meaning(&told_at_once));
        prop_assert_eq!(guarded(walked_notes.take()), guarded(notes.take()), "what the pinhole was told adds up");
    }
}

/// What a herald was told, in order.
#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Vec<Heard>>>);

#[derive(Clone, Debug, PartialEq)]
enum Heard {
    Site(Site),
    Vips(Vec<(IpNet, bool)>),
    Groups(BTreeMap<IpNet, IpNet>),
    Published(u64, u64),
}

impl Herald for Ear {
    fn site(&mut self, site: Site) {
        self.0.lock().unwrap().push(Heard::Site(site));
    }

    fn vips(&mut self, changes: Vec<(IpNet, bool)>) {
        self.0.lock().unwrap().push(Heard::Vips(changes));
    }

    fn groups(&mut self, groups: BTreeMap<IpNet, IpNet>) {
        self.0.lock().unwrap().push(Heard::Groups(groups));
    }

    fn published(&mut self, generation: u64, objects: u64) {
        self.0.lock().unwrap().push(Heard::Published(generation, objects));
    }
}

impl Ear {
    fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn announce(compiler: &mut Compiler, changes: &[(&str, bool)]) -> bool {
    let announce = changes.iter().map(|(vip, there)| (vip.parse().unwrap(), *there)).collect();
    compiler.turn(Arrived { announce, ..Arrived::default() }, SECOND).published
}

/// M-020: who decides about announcements is told which VIPs lie on a link, and nothing is answered for before it says so.
#[test]
fn vips_are_answered_for_on_links_when_the_herald_says_so() {
    let (mut compiler, notebook) = compiler();
    let ear = Ear::default();
    compiler.set_herald(Box::new(ear.clone()));
    layout(&mut compiler, routed());
    update(&mut compiler, full(everything()));
    let heard = ear.take();
    let sites: Vec<&Site> =
        heard.iter().filter_map(|heard| if let Heard::Site(site) = heard { Some(site) } else { None }).collect();
    assert_eq!((sites.len(), sites[0].has_tables, sites[1].has_tables), (2, false, true), "{heard:?}");
    let wan = &sites[1].links[0];
    assert_eq!((&*wan.name, wan.ifindex, wan.up), ("wan0", 2, true));
    let prefixes: Vec<IpNet> = ["192.0.2.0/24", "2001:db8:1::/64"].map(|prefix| prefix.parse().unwrap()).into();
    assert_eq!(wan.prefixes, prefixes, "no link-local ones");
    let on_link: Vec<(IpNet, bool)> =
        ["192.0.2.80/32", "2001:db8:1::80/128"].map(|vip| (vip.parse().unwrap(), true)).into();
    assert!(heard.contains(&Heard::Vips(on_link.clone())), "{heard:?}");
    let digest = |heard: &[Heard]| {
        heard.iter().rev().find_map(|h| if let Heard::Published(_, digest) = h { Some(*digest) } else { None })
    };
    let first = digest(&heard).unwrap();
    let kind = |compiler: &Compiler, vip: &str| compiler.tables().locals.kind(&ip16(vip));
    for vip in ["192.0.2.80", "2001:db8:1::80"] {
        assert_eq!(kind(&compiler, vip), LocalKind::VIP, "served, and not answered for");
    }
    notebook.take();
    assert!(announce(&mut compiler, &[("192.0.2.80/32", true), ("2001:db8:1::80/128", true)]));
    for vip in ["192.0.2.80", "2001:db8:1::80"] {
        assert_eq!(kind(&compiler, vip), LocalKind::VIP | LocalKind::ANNOUNCED);
    }
    let both = OwnedFlags::TRAFFIC | OwnedFlags::ANNOUNCED;
    let told = notebook.take();
    let Some(Told::Change(change)) = told.first() else { panic!("{told:?}") };
    assert_eq!(change.set.len(), 2);
    assert!(change.set.iter().all(|(.., flags)| *flags == both));
    assert!(!announce(&mut compiler, &[("192.0.2.80/32", true)]), "no news, no publish");
    assert!(announce(&mut compiler, &[("192.0.2.80/32", false)]));
    assert_eq!(kind(&compiler, "192.0.2.80"), LocalKind::VIP, "still served");
    // A VIP that leaves the link is told, and what was said about it before comes back with it.
    let mut elsewhere = routed();
    elsewhere.addresses.retain(|entry| entry.ifindex != 2);
    layout(&mut compiler, elsewhere);
    let gone = on_link.into_iter().map(|(vip, _)| (vip, false)).collect();
    assert!(ear.take().contains(&Heard::Vips(gone)));
    assert_eq!(kind(&compiler, "2001:db8:1::80"), LocalKind::VIP);
    // Equal objects have equal digests, whatever came between.
    update(&mut compiler, Update { removed: vec![key(Kind::Service, "shop/web")], ..incremental(vec![]) });
    let without = digest(&ear.take()).unwrap();
    let web = everything().pop().unwrap();
    update(&mut compiler, incremental(vec![web]));
    assert_eq!((digest(&ear.take()), without == first), (Some(first), false));
}

/// What whoever announces by route was told.
#[derive(Clone, Default)]
struct RouteEar(Arc<Mutex<Vec<(IpNet, Wanted)>>>);

impl crate::routes::Routes for RouteEar {
    fn vips(&mut self, changes: Vec<(IpNet, Wanted)>) {
        self.0.lock().unwrap().extend(changes);
    }
}

impl RouteEar {
    fn take(&self) -> Vec<(IpNet, Wanted)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// M-021, M-030: routes follow what is served, and what has endpoints.
#[test]
fn vips_are_announced_by_route_while_they_are_ours_and_have_somebody() {
    let (mut compiler, _) = compiler();
    let ear = RouteEar::default();
    compiler.set_routes(Box::new(ear.clone()), true);
    layout(&mut compiler, routed());
    assert_eq!(ear.take(), []);
    update(&mut compiler, full(everything()));
    let vips = ["192.0.2.80/32", "203.0.113.10/32", "2001:db8:1::80/128", "2001:db8:f::10/128"];
    let [v4, routed_v4, v6, routed_v6]: [IpNet; 4] = vips.map(|vip| vip.parse().unwrap());
    let all = [
        (v4, Wanted::Alone), // on a link
        (routed_v4, Wanted::Shared),
        (v6, Wanted::Alone),
        (routed_v6, Wanted::Shared),
    ];
    assert_eq!(ear.take(), all);
    update(&mut compiler, incremental(vec![named("shop/web", "2", both_families(80, &[("10.244.1.5", 1)]))]));
    assert_eq!(ear.take(), [(v6, Wanted::No), (routed_v6, Wanted::No)], "nobody answers there");
    update(&mut compiler, incremental(vec![named("shop/web", "3", both_families(80, &[("fd00:10:244:1::5", 1)]))]));
    let other_family = [(v4, Wanted::No), (routed_v4, Wanted::No), (v6, Wanted::Alone), (routed_v6, Wanted::Shared)];
    assert_eq!(ear.take(), other_family);
    update(&mut compiler, incremental(vec![everything().pop().unwrap()]));
    assert_eq!(ear.take(), all[..2]);
    let mut elsewhere = routed();
    elsewhere.addresses.retain(|entry| entry.ifindex != 2);
    layout(&mut compiler, elsewhere.clone());
    assert_eq!(ear.take(), [(v4, Wanted::Shared), (v6, Wanted::Shared)], "no link has them any more");
    elsewhere.addresses.insert(crate::kernel::Address { ifindex: 3, address: v4.addr(), prefix: v4 });
    layout(&mut compiler, elsewhere);
    assert_eq!(ear.take(), [(v4, Wanted::No)], "the kernel has taken it");
    update(&mut compiler, Update { removed: vec![key(Kind::Service, "shop/web")], ..incremental(vec![]) });
    assert_eq!(ear.take(), [routed_v4, v6, routed_v6].map(|vip| (vip, Wanted::No)));
}

/// N-112: with other gateways, an external address is carried where it is announced, on a link or by a route.
#[test]
fn external_addresses_are_carried_where_they_are_owned() {
    let (mut compiler, _) = on_machine();
    update(&mut compiler, full(everything()));
    let addresses = ["192.0.2.99", "203.0.113.99", "2001:db8:1::99", "2001:db8:f::99"];
    let policy = |version: &str, addresses: &[&str]| {
        incremental(vec![Resource { name: "out".into(), version: version.into(), body: egress(addresses) }])
    };
    update(&mut compiler, policy("1", &addresses));
    let carried = |compiler: &Compiler| -> Vec<bool> {
        let row = |address: &&str| compiler.tables().egress.external_at(&ip16(address)).map(|row| row.is_carried);
        addresses.iter().filter_map(row).collect()
    };
    assert_eq!(carried(&compiler), [true; 4], "alone");
    let ear = Ear::default();
    compiler.set_herald(Box::new(ear));
    update(&mut compiler, policy("2", &addresses[..1]));
    update(&mut compiler, policy("3", &addresses));
    assert_eq!(carried(&compiler), [false; 4]);
    assert!(announce(&mut compiler, &[("203.0.113.99/32", true), ("2001:db8:1::99/128", true)]));
    assert_eq!(carried(&compiler), [false, true, true, false]);
    // Whatever else is written of them does not touch that.
    update(&mut compiler, policy("4", &[&addresses[..], &["2001:db8:f::98"]].concat()));
    assert_eq!(carried(&compiler), [false, true, true, false]);
    assert!(announce(&mut compiler, &[("203.0.113.99/32", false), ("192.0.2.99/32", true)]));
    assert_eq!(carried(&compiler), [true, false, true, false]);
}

fn egress(addresses: &[&str]) -> Body {
    Body::Egress(serde_json::from_value(serde_json::json!({ "addresses": addresses })).unwrap())
}

#[test]
fn external_addresses_are_ours_like_vips_and_pods_find_their_policy() {
    // N-101, N-111, M-020, M-021: also with the withdrawal of VIPs that have nobody
    let (mut compiler, notebook) = on_machine();
    let ear = RouteEar::default();
    compiler.set_routes(Box::new(ear.clone()), true);
    update(&mut compiler, full(everything()));
    notebook.take();
    ear.take();
    let resource = |name: &str, version: &str, body| Resource { name: name.into(), version: version.into(), body };
    let pod = Pod {
        addresses: ["10.244.1.5", "fd00:10:244:1::5"].map(|address| address.parse().unwrap()).to_vec(),
        egress: vec!["shop/out".into()],
        ..Pod::default()
    };
    let addresses = ["192.0.2.99", "203.0.113.99", "203.0.113.10", "2001:db8:f::99"];
    let objects = vec![
        resource("shop/a", "1", Body::Pod(pod)),
        resource("shop/out", "1", egress(&["203.0.113.10", "192.0.2.99", "203.0.113.99", "2001:db8:f::99"])),
    ];
    let accepted = update(&mut compiler, incremental(objects));
    assert_eq!(accepted.rejected, []);
    // The kernel's own is left to it and told: so is a VTEP's, whose port nobody may be given (T-170, N-098).
    let own = ["192.0.2.1", "198.51.100.1", "2001:db8:2::1"];
    let listed: Vec<&str> = addresses.into_iter().chain(own).collect();
    let accepted = update(&mut compiler, incremental(vec![resource("shop/bad", "1", egress(&listed))]));
    assert_eq!(accepted.rejected, []);
    let taken: BTreeSet<String> =
        compiler.take_taken().unwrap().into_iter().map(|taken| taken.address.to_string()).collect();
    assert_eq!(taken, own.map(String::from).into());
    assert!(own.iter().all(|address| compiler.tables().egress.external_at(&ip16(address)).is_none()));
    assert!(compiler.tables().locals.vtep(Family::V4).is_some() && compiler.tables().locals.vtep(Family::V6).is_some());
    let tables = compiler.tables();
    let kind = |address: &str| tables.locals.kind(&ip16(address));
    assert_eq!(kind("192.0.2.99"), LocalKind::EXTERNAL | LocalKind::ANNOUNCED);
    assert_eq!((kind("203.0.113.99"), kind("2001:db8:f::99")), (LocalKind::EXTERNAL, LocalKind::EXTERNAL));
    assert!(kind("203.0.113.10").contains(LocalKind::VIP), "a Service's stays a Service's");
    let row = tables.pods.pod(&ip16("10.244.1.5")).unwrap();
    let policy = tables.egress.policy(row.egress[0]).unwrap();
    assert_eq!(*policy.addresses_v4, [[192, 0, 2, 99], [203, 0, 113, 99]]);
    assert_eq!(policy.addresses_v6.len(), 1);
    let epoch = tables.backends.epoch(row.backend);
    let backend = row.backend;
    let both = OwnedFlags::TRAFFIC | OwnedFlags::ANNOUNCED;
    let at = |address: &str| -> IpAddr { address.parse().unwrap() };
    let (prefixes, _) = guarded(notebook.take());
    assert_eq!(prefixes.get(&(at("192.0.2.99"), 32)), Some(&both));
    assert_eq!(prefixes.get(&(at("2001:db8:f::99"), 128)), Some(&OwnedFlags::TRAFFIC));
    let told: BTreeMap<_, _> = ear.take().into_iter().collect();
    assert_eq!(told.get(&"203.0.113.99/32".parse().unwrap()), Some(&Wanted::Shared));
    // The policy goes: its pods look again and find that nobody knows it.
    let mut removal = incremental(vec![]);
    removal.removed.extend(["shop/out", "shop/bad"].map(|name| key(Kind::Egress, name)));
    update(&mut compiler, removal);
    let tables = compiler.tables();
    assert_ne!(tables.backends.epoch(backend), epoch);
    assert!(tables.egress.is_empty() && tables.locals.kind(&ip16("192.0.2.99")).is_empty());
    let told: BTreeMap<_, _> = ear.take().into_iter().collect();
    assert_eq!(told.get(&"203.0.113.99/32".parse().unwrap()), Some(&Wanted::No));
}

/// Whether the kernel was given it before the policy or after it: control hears of it, and of its end.
#[test]
fn external_addresses_that_the_kernel_has_taken_are_told() {
    for (external, device, ifindex, is_before) in [
        ("192.0.2.99", "wan0", 2, false),
        ("192.0.2.99", "wan0", 2, true),
        ("2001:db8:f::99", "lan0", 3, false),
        ("2001:db8:f::99", "lan0", 3, true),
    ] {
        let (mut compiler, _) = on_machine();
        update(&mut compiler, full(everything()));
        let mut facts = routed();
        let address: IpAddr = external.parse().unwrap();
        facts.addresses.insert(crate::kernel::Address { ifindex, address, prefix: address.into() });
        if is_before {
            layout(&mut compiler, facts.clone());
        }
        let policy = Resource { name: "out".into(), version: "1".into(), body: egress(&[external, "192.0.2.98"]) };
        assert_eq!(update(&mut compiler, incremental(vec![policy])).rejected, []);
        if !is_before {
            compiler.take_taken();
            layout(&mut compiler, facts);
        }
        let taken = compiler.take_taken().unwrap();
        assert_eq!(taken.len(), 1, "{taken:?}");
        assert_eq!((taken[0].address, taken[0].device.as_str(), taken[0].withheld), (address, device, true));
        assert_eq!(taken[0].kernel, Some(if address.is_ipv4() { 32 } else { 128 }));
        assert!(compiler.tables().egress.external_at(&ip16(external)).is_none());
        assert!(compiler.tables().egress.external_at(&ip16("192.0.2.98")).is_some());
        layout(&mut compiler, routed());
        assert_eq!(compiler.take_taken(), Some(vec![]));
        assert!(compiler.tables().egress.external_at(&ip16(external)).is_some(), "and is used, once it is free");
        let mut removal = incremental(vec![]);
        removal.removed.push(key(Kind::Egress, "out"));
        update(&mut compiler, removal);
        assert_eq!(compiler.take_taken(), None);
    }
}
