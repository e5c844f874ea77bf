//! What Services ask for, through the whole compiler: rows, roles, and what the pinhole is told.

use std::net::IpAddr;
use std::sync::Arc;

use tidegate_api::resource::{Backend, Decap, HashFields, Protocol, Scheduler, Service, ServicePort, TrafficPolicy};
use tidegate_io::{Owned, OwnedFlags};

use crate::compile::tests::{SECOND, Told, layout, on_machine, routed, update, update_at};
use crate::compile::{Compiler, mapped_ip};
use crate::objects::tests::{backend, full, gateway, incremental, named, service};
use crate::table::backend::BackendState;
use crate::table::local::LocalKind;
use crate::table::service::{Frontend, FrontendKind, ServiceRow};
use crate::table::terms::Terms;

const FAMILIES: [[&str; 6]; 2] = [
    ["203.0.113.10", "198.18.7.1", "10.96.0.10", "192.0.2.1", "203.0.113.64/26", "10.244.1.5"],
    ["2001:db8:f::10", "2001:db8:e::1", "fd00:96::10", "2001:db8:1::1", "2001:db8:f::40/122", "fd00:10:244:1::5"],
];

/// TCP 80 of one family at a frontend of each kind and at a prefix.
fn everywhere([vip, external, cluster, node, prefix, pod]: [&str; 6]) -> Service {
    let mut everywhere = service(&[vip], 80, &[backend(pod, 8080, 1)]);
    everywhere.external_addresses = vec![external.parse().unwrap()];
    everywhere.cluster_addresses = vec![cluster.parse().unwrap()];
    everywhere.node_addresses = vec![node.parse().unwrap()];
    everywhere.prefixes = vec![prefix.parse().unwrap()];
    everywhere.ports[0].node_port = Some(30_080);
    everywhere
}

/// What the pinhole holds after what it was told. Panics when it was told nothing.
fn owned(pinhole: &mut Owned, told: &[Told]) -> Owned {
    let about = told.iter().filter(|told| !matches!(told, Told::Ask(..)));
    assert_ne!(about.count(), 0, "the pinhole was told nothing");
    for told in told {
        match told {
            Told::Owned(owned) => *pinhole = owned.clone(),
            Told::Change(change) => {
                let named: Vec<_> = change.set.iter().map(|(address, bits, _)| (*address, *bits)).collect();
                let goes = |prefix: &(IpAddr, u8)| change.gone.contains(prefix) || named.contains(prefix);
                pinhole.prefixes.retain(|(address, bits, _)| !goes(&(*address, *bits)));
                pinhole.prefixes.extend(&change.set);
                pinhole.ports.retain(|port| !change.ports_gone.contains(port));
                pinhole.ports.extend(&change.ports_set);
            }
            Told::Ask(..) => {}
        }
    }
    pinhole.clone()
}

fn row<'a>(compiler: &'a Compiler, address: &str) -> &'a ServiceRow {
    let frontend = Frontend { address: mapped_ip(address.parse().unwrap()), protocol: 6, port: 80 };
    let services = &compiler.tables().services;
    services.row(services.lookup(&frontend).expect(address)).unwrap()
}

fn terms(compiler: &Compiler, address: &str) -> Option<Arc<Terms>> {
    row(compiler, address).terms.clone()
}

#[test]
fn frontends_of_every_kind_have_their_roles_and_the_pinhole_knows_them() {
    // S-065, S-066, T-121
    for family in FAMILIES {
        let [vip, external, cluster, node, prefix, _] = family;
        let (mut compiler, notebook) = on_machine();
        let mut pinhole = Owned::default();
        let accepted =
            update(&mut compiler, full(vec![named("gw", "1", gateway()), named("a/web", "1", everywhere(family))]));
        assert_eq!(accepted.rejected, []);
        let tables = compiler.tables();
        let at = |address: &str| mapped_ip(address.parse().unwrap());
        for (address, port, kind) in [
            (vip, 80, FrontendKind::Vip),
            (external, 80, FrontendKind::External),
            (cluster, 80, FrontendKind::Cluster),
            (node, 30_080, FrontendKind::Node),
        ] {
            let frontend = Frontend { address: at(address), protocol: 6, port };
            let served = tables.services.frontends().get(&frontend).expect(address);
            assert_eq!((served.kind, &*tables.services.row(served.service).unwrap().name), (kind, "a/web"));
        }
        assert_eq!(tables.services.rows().count(), 1, "one row, however it is reached");
        let inside: ipnet::IpNet = prefix.parse().unwrap();
        let inside = inside.hosts().nth(3).unwrap();
        assert!(tables.locals.kind(&mapped_ip(inside)).contains(LocalKind::VIP));
        let kinds = [vip, external, cluster, node].map(|address| tables.locals.kind(&at(address)));
        assert_eq!(kinds, [LocalKind::VIP, LocalKind::SERVICE, LocalKind::SERVICE, LocalKind::NODE]);
        let told = owned(&mut pinhole, &notebook.take());
        assert_eq!(told.ports, [(node.parse().unwrap(), 6, 30_080)]);
        let takes = |text: &str| {
            let net: ipnet::IpNet = text.parse().unwrap_or_else(|_| text.parse::<std::net::IpAddr>().unwrap().into());
            told.prefixes.contains(&(net.addr(), net.prefix_len(), OwnedFlags::TRAFFIC))
        };
        assert!([vip, external, cluster, prefix].into_iter().all(takes), "{told:?}");
        assert!(!takes(node), "the node's address stays the kernel's");
        // And all of it goes again.
        update(&mut compiler, full(vec![]));
        assert!(compiler.tables().services.frontends().is_empty());
        assert_eq!(compiler.tables().locals.kind(&mapped_ip(inside)), LocalKind::NONE);
        let told = owned(&mut pinhole, &notebook.take());
        assert_eq!((told.ports, told.prefixes), (vec![], vec![]));
    }
}

#[test]
fn what_the_kernel_has_is_left_to_it_and_node_ports_wait_for_their_address() {
    for family in FAMILIES {
        let [.., node, prefix, _] = family;
        let (mut compiler, notebook) = on_machine();
        let mut pinhole = Owned::default();
        update(&mut compiler, full(vec![named("a/web", "1", everywhere(family))]));
        notebook.take();
        // An address inside the prefix appears on the machine, and the node address goes.
        let mut facts = routed();
        let net: ipnet::IpNet = prefix.parse().unwrap();
        let mut taken = facts.addresses.iter().next().cloned().unwrap();
        (taken.address, taken.prefix) = (net.addr(), net);
        facts.addresses.retain(|own| own.address != node.parse::<std::net::IpAddr>().unwrap());
        facts.addresses.insert(taken);
        layout(&mut compiler, facts);
        let tables = compiler.tables();
        assert_eq!(
            tables.locals.kind(&mapped_ip(net.hosts().nth(3).unwrap())),
            LocalKind::NONE,
            "no part of it is left out"
        );
        assert_eq!(tables.locals.kind(&mapped_ip(node.parse().unwrap())), LocalKind::NONE);
        let told = owned(&mut pinhole, &notebook.take());
        assert!(told.ports.is_empty() && told.prefixes.iter().all(|(address, ..)| *address != net.addr()), "{told:?}");
        layout(&mut compiler, routed());
        assert_eq!(owned(&mut pinhole, &notebook.take()).ports.len(), 1, "it is back");
    }
}

#[test]
fn tunnels_that_end_here_are_known_to_parse_and_pinhole() {
    // T-125
    let with = |decap: Option<Decap>| tidegate_api::resource::Gateway { decap, ..gateway() };
    let (mut compiler, notebook) = on_machine();
    let mut pinhole = Owned::default();
    update(&mut compiler, full(vec![named("gw", "1", with(None))]));
    assert!(compiler.tables().locals.decap().is_none());
    assert_eq!(owned(&mut pinhole, &notebook.take()).ports, []);
    let addresses: Vec<IpAddr> = ["192.0.2.1", "2001:db8:1::1"].map(|text| text.parse().unwrap()).to_vec();
    let sources = vec!["198.51.100.0/24".parse().unwrap(), "2001:db8:9::/64".parse().unwrap()];
    let mut decap = Decap { addresses: addresses.clone(), sources, gue_port: Some(6080) };
    let accepted = update(&mut compiler, incremental(vec![named("gw", "2", with(Some(decap.clone())))]));
    assert_eq!(accepted.rejected, []);
    let table = compiler.tables().locals.decap().unwrap();
    assert!(addresses.iter().all(|address| table.ends_at(&mapped_ip(*address))) && table.is_gue(6080));
    assert!(table.takes_from(&mapped_ip("198.51.100.9".parse().unwrap()), crate::table::Family::V4));
    let mut ports = owned(&mut pinhole, &notebook.take()).ports;
    ports.sort_unstable();
    let expected = addresses.iter().flat_map(|address| [(*address, 4, 0), (*address, 17, 6080), (*address, 41, 0)]);
    assert_eq!(ports, expected.collect::<Vec<_>>());
    // Without GUE, then without any.
    decap.gue_port = None;
    update(&mut compiler, incremental(vec![named("gw", "3", with(Some(decap)))]));
    assert_eq!(owned(&mut pinhole, &notebook.take()).ports.len(), 4);
    update(&mut compiler, incremental(vec![named("gw", "4", with(None))]));
    assert_eq!(owned(&mut pinhole, &notebook.take()).ports, []);
    assert!(compiler.tables().locals.decap().is_none());
}

#[test]
fn claims_hold_for_every_kind_of_frontend() {
    // S-067
    for family in FAMILIES {
        let [vip, external, .., node, prefix, pod] = family;
        let (mut compiler, _) = on_machine();
        update(&mut compiler, full(vec![named("gw", "1", gateway()), named("a/old", "1", everywhere(family))]));
        let refused = |compiler: &mut Compiler, service: Service| {
            let rejected = update(compiler, incremental(vec![named("b/new", "1", service)])).rejected;
            rejected.first().map_or(String::new(), |rejection| rejection.reason.clone())
        };
        let empty = || service(&[], 80, &[backend(pod, 8080, 1)]);
        for contested in [
            Service { external_addresses: vec![vip.parse().unwrap()], ..empty() },
            Service { addresses: vec![external.parse().unwrap()], ..empty() },
            Service { prefixes: vec![prefix.parse().unwrap()], ..empty() },
        ] {
            let reason = refused(&mut compiler, contested);
            assert!(
                reason.starts_with("ports[0]: ") && reason.contains("already belongs to service a/old"),
                "{reason}"
            );
        }
        let mut at_node = Service { node_addresses: vec![node.parse().unwrap()], ..empty() };
        at_node.ports[0].node_port = Some(30_080);
        assert!(refused(&mut compiler, at_node.clone()).contains(":30080/TCP already belongs to service a/old"));
        // Nobody takes the tunnel's port, or an address that the gateway keeps for itself.
        let underlay = if node.contains(':') { "2001:db8:2::1" } else { "198.51.100.1" };
        at_node.node_addresses = vec![underlay.parse().unwrap()];
        (at_node.ports[0].protocol, at_node.ports[0].node_port) = (Protocol::Udp, Some(8472));
        assert!(refused(&mut compiler, at_node).contains(":8472/UDP already belongs to gateway gw"));
        let (source, pods) = if node.contains(':') {
            ("fd00:10:244:9::2", "fd00:10:244:9::/120")
        } else {
            ("10.244.9.2", "10.244.9.0/28")
        };
        let reserved = Service { cluster_addresses: vec![source.parse().unwrap()], ..empty() };
        assert_eq!(
            refused(&mut compiler, reserved),
            format!("cluster_addresses[0]: {source} is reserved by gateway gw")
        );
        let reserved = Service { prefixes: vec![pods.parse().unwrap()], ..empty() };
        assert!(refused(&mut compiler, reserved).contains("is reserved by gateway gw"));
    }
}

#[test]
fn prefixes_that_would_hijack_a_peer_are_refused() {
    let (mut compiler, _) = on_machine();
    update(&mut compiler, full(vec![named("w1", "1", crate::objects::tests::peer(1))]));
    for (prefix, what) in [
        ("198.51.100.8/29", "prefixes[0]: 198.51.100.8/29 holds 198.51.100.11, the underlay address of peer w1"),
        ("10.244.1.128/25", "prefixes[0]: 10.244.1.128/25 meets pod prefix 10.244.1.0/24 of peer w1"),
        ("10.244.0.0/16", "prefixes[0]: 10.244.0.0/16 meets pod prefix 10.244.1.0/24 of peer w1"),
        ("fd00:10:244::/48", "prefixes[0]: fd00:10:244::/48 meets pod prefix fd00:10:244:1::/64 of peer w1"),
    ] {
        let vips = Service { prefixes: vec![prefix.parse().unwrap()], ..service(&[], 80, &[]) };
        let rejected = update(&mut compiler, incremental(vec![named("a/web", "1", vips)])).rejected;
        assert_eq!(rejected.first().map(|rejection| rejection.reason.as_str()), Some(what));
    }
}

#[test]
fn what_is_asked_for_becomes_terms_and_moves_nothing_else() {
    for family in FAMILIES {
        let [vip, .., pod] = family;
        let (mut compiler, notebook) = on_machine();
        let mut asked = service(&[vip], 80, &[backend(pod, 8080, 3)]);
        update(&mut compiler, full(vec![named("a/web", "1", asked.clone())]));
        assert_eq!(terms(&compiler, vip), None, "a plain Service has no terms");
        let before = compiler.tables().clone();
        notebook.take();
        let changes: [fn(&mut Service); 7] = [
            |s| s.source_ranges = vec!["198.18.0.0/15".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            |s| s.ports[0].affinity_timeout_s = Some(60),
            |s| s.ports[0].scheduler = Scheduler::Sh,
            |s| s.ports[0].hash = HashFields::DestinationPort,
            |s| s.ports[0].internal_policy = TrafficPolicy::Local,
            |s| s.ports[0].external_policy = TrafficPolicy::Local,
            |s| s.ports[0].backends[0].local_weight = 0,
        ];
        let mut digests = vec![before.services.digest()];
        for change in changes {
            change(&mut asked);
            update(&mut compiler, incremental(vec![named("a/web", "2", asked.clone())]));
            digests.push(compiler.tables().services.digest());
        }
        let distinct: std::collections::BTreeSet<u64> = digests.iter().copied().collect();
        assert_eq!(distinct.len(), digests.len(), "gateways that disagree are told apart");
        let terms = terms(&compiler, vip).unwrap();
        assert_eq!(
            (terms.affinity_timeout_s, terms.scheduler, terms.hash),
            (60, Scheduler::Sh, HashFields::DestinationPort)
        );
        assert!(terms.ranges.is_some() && terms.weights.buckets.is_some() && terms.weights.of_members[..] == [3]);
        let (set, weights) = terms.local.as_ref().unwrap();
        assert!(set.is_empty() && weights.max == 0, "S-049");
        // The endpoint's row, and with it every flow, has not noticed.
        let after = compiler.tables();
        let id = row(&compiler, vip).cluster.members[0];
        assert_eq!(before.backends.epoch(id), after.backends.epoch(id));
        assert!(Arc::ptr_eq(&before.locals, &after.locals) && notebook.take().is_empty());
        // Nothing new is no generation.
        let generation = compiler.generation();
        assert_eq!(update(&mut compiler, incremental(vec![named("a/web", "3", asked.clone())])).generation, generation);
        update(&mut compiler, incremental(vec![named("a/web", "4", service(&[vip], 80, &[backend(pod, 8080, 3)]))]));
        assert_eq!(compiler.tables().services.digest(), digests[0], "and back");
    }
}

#[test]
fn an_endpoint_drains_where_nobody_counts_its_weight() {
    // S-043, S-048: one that terminates on its node while others are ready elsewhere is in the Local set alone.
    for family in FAMILIES {
        let [vip, .., pod] = family;
        let (mut compiler, _) = on_machine();
        let local_only = Backend { weight: 0, local_weight: 1, ..backend(pod, 8080, 1) };
        for (policy, expected) in [
            (TrafficPolicy::Cluster, BackendState::Draining),
            (TrafficPolicy::Local, BackendState::Active),
            (TrafficPolicy::Cluster, BackendState::Draining),
        ] {
            let mut asked = service(&[vip], 80, std::slice::from_ref(&local_only));
            asked.ports[0].external_policy = policy;
            update(&mut compiler, full(vec![named("a/web", "1", asked)]));
            let id = row(&compiler, vip).cluster.members[0];
            assert_eq!(compiler.tables().backends.row(id).unwrap().state, expected);
        }
    }
}

#[test]
fn time_publishes_weights_that_grow_and_then_nothing() {
    // L-048
    for family in FAMILIES {
        let [vip, .., pod] = family;
        let (mut compiler, _) = on_machine();
        let other = if pod.contains(':') { "fd00:10:244:2::9" } else { "10.244.2.9" };
        let mut asked = service(&[vip], 80, &[backend(pod, 8080, 1)]);
        asked.ports[0].slow_start_s = 20;
        update(&mut compiler, full(vec![named("a/web", "1", asked.clone())]));
        asked.ports[0].backends.push(backend(other, 8080, 1));
        update_at(&mut compiler, full(vec![named("a/web", "2", asked)]), 100 * SECOND);
        let start = compiler.generation();
        for quarter in 0..4 * 30 {
            compiler.tick(100 * SECOND + quarter * SECOND / 4);
        }
        assert_eq!(compiler.generation(), start + 9, "ten steps, one publish each");
        let ring = row(&compiler, vip).cluster.ring.clone().unwrap();
        let mut shares = [0usize; 2];
        ring.slots().for_each(|member| shares[member] += 1);
        assert!(shares[0].abs_diff(shares[1]) <= 1, "{shares:?}");
        compiler.tick(1000 * SECOND);
        assert_eq!(compiler.generation(), start + 9);
    }
}

#[test]
fn ports_of_a_service_that_change_kind_stay_one_row() {
    for family in FAMILIES {
        let [vip, external, .., pod] = family;
        let (mut compiler, _) = on_machine();
        let mut moving = service(&[vip], 80, &[backend(pod, 8080, 1)]);
        moving.ports.push(ServicePort { port: 81, ..moving.ports[0].clone() });
        update(&mut compiler, full(vec![named("a/web", "1", moving.clone())]));
        let frontend =
            |address: &str, port| Frontend { address: mapped_ip(address.parse().unwrap()), protocol: 6, port };
        let get = |compiler: &Compiler, at: &Frontend| compiler.tables().services.frontends().get(at);
        let before = get(&compiler, &frontend(vip, 80)).unwrap();
        (moving.addresses, moving.external_addresses) = (vec![external.parse().unwrap()], vec![vip.parse().unwrap()]);
        update(&mut compiler, full(vec![named("a/web", "2", moving)]));
        let after = get(&compiler, &frontend(vip, 80)).unwrap();
        assert_eq!((before.kind, after.kind), (FrontendKind::Vip, FrontendKind::External));
        assert_eq!(before.service, after.service);
        assert_eq!(get(&compiler, &frontend(external, 81)).unwrap().kind, FrontendKind::Vip);
        assert_eq!(compiler.tables().services.frontends_len(), 4);
        let kind = compiler.tables().locals.kind(&mapped_ip(vip.parse().unwrap()));
        assert_eq!(kind, LocalKind::SERVICE, "no echo any more");
    }
}
