//! Affinity: a client stays with its endpoint (S-090 … S-096).

use std::collections::BTreeSet;
use std::net::IpAddr;

use tidegate_api::resource::{Backend, Protocol, Scheduler, Service, ServicePort, TrafficPolicy};
use tidegate_dataplane::rig::catalog::{pod, service};
use tidegate_dataplane::rig::sketch::{End, udp};
use tidegate_dataplane::rig::{Net, Rig};
use tidegate_dataplane::wire::protocol;

use crate::{gateway_of, pod_of, went_to};

const TIMEOUT_S: u32 = 100;
const SECOND_NS: u64 = 1_000_000_000;

fn pods(net: Net) -> Vec<Backend> {
    (0..6).map(|n| pod(net, n % 2, 10 + n, 1, 1)).collect()
}

/// TCP 80 with affinity, at a VIP, an external address and a node port.
fn sticky(net: Net) -> Service {
    let mut sticky = service(net.vip(1), Protocol::Tcp, 80, pods(net));
    sticky.external_addresses = vec![net.vip(2)];
    sticky.node_addresses = vec![net.gateway()];
    sticky.ports[0].node_port = Some(30_080);
    sticky.ports[0].affinity_timeout_s = Some(TIMEOUT_S);
    sticky
}

fn web(net: Net) -> End {
    (net.vip(1), 80)
}

/// The pods of `count` connections of client `n`, from ports that have not been used.
fn hits(rig: &mut Rig, net: Net, n: u16, to: End, count: u16) -> BTreeSet<IpAddr> {
    let first = 1_024 + u16::try_from(rig.now_ns / 10_000 % 50_000).unwrap();
    (0..count).map(|port| pod_of(rig, (net.client(n), first + port), to).expect("a pod")).collect()
}

#[test]
fn fifteen_connections_of_one_client_reach_one_pod_at_every_frontend() {
    // T-027, T-091, T-095, T-142, S-090, S-094
    for net in Net::BOTH {
        for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
            let mut web = sticky(net);
            web.ports[0].external_policy = policy;
            let (mut rig, mut catalog) = gateway_of(&[("shop/web", web.clone())]);
            let mut seen = BTreeSet::new();
            for client in 0..20 {
                let own = hits(&mut rig, net, client, (net.vip(1), 80), 15);
                assert_eq!(own.len(), 1);
                assert_eq!(
                    hits(&mut rig, net, client, (net.vip(2), 80), 3),
                    own,
                    "S-090: the same at an external address"
                );
                if policy == TrafficPolicy::Cluster {
                    assert_eq!(hits(&mut rig, net, client, (net.gateway(), 30_080), 3), own, "and at the node port");
                }
                seen.extend(own);
            }
            assert!(seen.len() >= 4, "clients spread: {seen:?}");
            // Off and on again, without a restart (S-094).
            web.ports[0].affinity_timeout_s = None;
            rig.publish(|tables| catalog.put(tables, "shop/web", &web));
            assert!(hits(&mut rig, net, 1, (net.vip(1), 80), 30).len() >= 2);
            web.ports[0].affinity_timeout_s = Some(TIMEOUT_S);
            rig.publish(|tables| catalog.put(tables, "shop/web", &web));
            assert_eq!(hits(&mut rig, net, 1, (net.vip(1), 80), 15).len(), 1);
        }
    }
}

#[test]
fn a_client_stays_when_others_come_and_chooses_anew_when_its_pod_goes() {
    // S-092, S-095
    for net in Net::BOTH {
        let mut service = sticky(net);
        service.ports[0].backends.truncate(2);
        let (mut rig, mut catalog) = gateway_of(&[("shop/web", service.clone())]);
        let before: Vec<_> = (0..40).map(|client| hits(&mut rig, net, client, web(net), 1)).collect();
        service.ports[0].backends = pods(net);
        rig.publish(|tables| catalog.put(tables, "shop/web", &service));
        let after: Vec<_> = (0..40).map(|client| hits(&mut rig, net, client, web(net), 2)).collect();
        assert_eq!(after, before, "hashing alone would have moved two thirds");
        assert!(
            (40..80).flat_map(|client| hits(&mut rig, net, client, web(net), 1)).collect::<BTreeSet<_>>().len() > 4
        );
        // One drains, then another is gone: their clients, and no others, choose anew and stay there.
        for gone in [0, 1] {
            if gone == 0 {
                (service.ports[0].backends[0].weight, service.ports[0].backends[0].local_weight) = (0, 0);
            } else {
                service.ports[0].backends.remove(1);
            }
            rig.publish(|tables| catalog.put(tables, "shop/web", &service));
            let left = pods(net)[gone].address;
            for (client, then) in (0..40).zip(&before) {
                let now = hits(&mut rig, net, client, web(net), 3);
                assert_eq!(now.len(), 1);
                assert!(!now.contains(&left));
                let is_moved = then.contains(&pods(net)[0].address) || then.contains(&left);
                assert!(is_moved || now == *then, "client {client}");
            }
        }
    }
}

#[test]
fn the_time_runs_from_the_last_new_connection() {
    // S-091
    for net in Net::BOTH {
        let mut service = sticky(net);
        service.ports[0].backends.truncate(1);
        let (mut rig, mut catalog) = gateway_of(&[("shop/web", service.clone())]);
        let clients = 0..30;
        let all = |rig: &mut Rig| clients.clone().map(|n| hits(rig, net, n, web(net), 1)).collect::<Vec<_>>();
        let first = all(&mut rig);
        service.ports[0].backends = pods(net);
        rig.publish(|tables| catalog.put(tables, "shop/web", &service));
        for _ in 0..3 {
            rig.now_ns += 60 * SECOND_NS;
            assert_eq!(all(&mut rig), first, "refreshed by each new connection");
        }
        rig.now_ns += u64::from(TIMEOUT_S) * SECOND_NS + SECOND_NS;
        assert_ne!(all(&mut rig), first, "expired: a free choice");
    }
}

#[test]
fn gateways_agree_without_telling_each_other_and_services_do_not_interfere() {
    // S-095: with two gateways that saw different things before; L-010.
    for net in Net::BOTH {
        let (mut one, _) = gateway_of(&[("shop/web", sticky(net))]);
        let other_service = service(net.vip(9), Protocol::Tcp, 80, pods(net));
        let (mut other, _) = gateway_of(&[("a/first", other_service), ("shop/web", sticky(net))]);
        for client in 0..40 {
            assert_eq!(hits(&mut one, net, client, web(net), 1), hits(&mut other, net, client, web(net), 1));
        }
        // Two ports of a Service are two identities (S-090: "service port").
        let mut two = sticky(net);
        two.ports.push(ServicePort { port: 81, node_port: None, ..two.ports[0].clone() });
        let (mut rig, _) = gateway_of(&[("shop/two", two)]);
        let differ = (0..40).filter(|client| {
            hits(&mut rig, net, *client, web(net), 1) != hits(&mut rig, net, *client, (net.vip(1), 81), 1)
        });
        assert!(differ.count() > 20);
    }
}

#[test]
fn datagrams_stick_too_and_leave_with_their_pod() {
    // S-096, S-102
    for net in Net::BOTH {
        let mut names = sticky(net);
        names.ports[0].protocol = Protocol::Udp;
        let (mut rig, mut catalog) = gateway_of(&[("dns/names", names.clone())]);
        let ask = |rig: &mut Rig, port: u16| {
            rig.rx_wan(&udp((net.client(7), port), web(net)).data(*b"?"));
            went_to(rig).pop().unwrap().0
        };
        let pod = ask(&mut rig, 1);
        assert!((2..15).all(|port| ask(&mut rig, port) == pod));
        names.ports[0].backends.retain(|backend| backend.address != pod);
        rig.publish(|tables| catalog.put(tables, "dns/names", &names));
        let next = ask(&mut rig, 1);
        assert_ne!(next, pod);
        assert!((2..15).all(|port| ask(&mut rig, port) == next), "all of them, and to the same");
    }
}

#[test]
fn a_scheduler_chooses_the_first_endpoint_of_a_client_and_affinity_keeps_it() {
    for net in Net::BOTH {
        let mut service = sticky(net);
        service.ports[0].scheduler = Scheduler::Rr;
        let (mut rig, _) = gateway_of(&[("shop/web", service)]);
        let first: Vec<_> = (0..6).flat_map(|client| hits(&mut rig, net, client, web(net), 1)).collect();
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 6, "in turn");
        let again: Vec<_> = (0..6).flat_map(|client| hits(&mut rig, net, client, web(net), 4)).collect();
        assert_eq!(again, first);
    }
}

#[test]
fn the_table_of_services_says_where_clients_stick() {
    for net in Net::BOTH {
        let plain = service(net.vip(9), Protocol::Tcp, 80, pods(net));
        let (rig, mut catalog) = gateway_of(&[("shop/plain", plain.clone())]);
        let mut tables = rig.publisher.current().clone();
        let is_sticky = |tables: &tidegate_dataplane::table::Tables, address: IpAddr, port| match address {
            IpAddr::V4(v4) => tables.services.is_sticky_v4(&v4.octets(), protocol::TCP, port),
            IpAddr::V6(v6) => tables.services.is_sticky_v6(&v6.octets(), protocol::TCP, port),
        };
        assert!(!tables.services.any_sticky());
        catalog.put(&mut tables, "shop/web", &sticky(net));
        assert!(tables.services.any_sticky());
        for (address, port, expected) in [
            (net.vip(1), 80, true),
            (net.vip(2), 80, true),
            (net.gateway(), 30_080, true),
            (net.vip(9), 80, false),
            (net.vip(1), 81, false),
        ] {
            assert_eq!(is_sticky(&tables, address, port), expected, "{address} {port}");
        }
        catalog.remove(&mut tables, "shop/web");
        assert!(!tables.services.any_sticky());
    }
}
