//! Clients that are sent to an endpoint of their own by where they come from.

use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::{Backend, Protocol, Scheduler, Service, SourceBackend, TrafficPolicy};
use tidegate_dataplane::rig::Net;
use tidegate_dataplane::rig::catalog::{pod, service};
use tidegate_dataplane::rig::sketch::{End, tcp};
use tidegate_dataplane::wire::Family;

use crate::{STARTS, and, gateway_of, pod_of, walked, went_to};

/// Clients whose number is equal to `n` in all but the last `bits` bits, and the endpoint they are sent to.
fn to(net: Net, n: u16, bits: u8, address: IpAddr) -> SourceBackend {
    let longest = if net.0 == Family::V4 { 32 } else { 128 };
    SourceBackend { sources: IpNet::new(net.client(n), longest - bits).unwrap().trunc(), address }
}

/// Pods 5 to 9; clients 0 to 32,767 (an IPv4 /17) to pod 5, but 768 to 1,023 (a /24) to pod 6 and client 800 to pod 7.
fn routed(net: Net) -> Service {
    let pods = (5..10).map(|p| pod(net, p % 2, p, 1, 1)).collect();
    let mut routed = service(net.vip(1), Protocol::Tcp, 80, pods);
    routed.ports[0].source_backends =
        vec![to(net, 0, 15, at(net, 5)), to(net, 768, 8, at(net, 6)), to(net, 800, 0, at(net, 7))];
    routed
}

fn at(net: Net, p: u8) -> IpAddr {
    net.pod(p % 2, p)
}

fn web(net: Net) -> End {
    (net.vip(1), 80)
}

#[test]
fn the_longest_prefix_around_the_client_decides_and_all_others_are_hashed() {
    // T-122: /17, /24, miss.
    for net in Net::BOTH {
        let (mut rig, _) = gateway_of(&[("shop/web", routed(net))]);
        let mut plain = routed(net);
        plain.ports[0].source_backends.clear();
        let (mut unrouted, _) = gateway_of(&[("shop/web", plain)]);
        for (n, expected) in [(0, 5), (767, 5), (768, 6), (1023, 6), (800, 7), (799, 6), (1024, 5), (32_767, 5)] {
            for port in [40_000, 40_001, 40_002] {
                assert_eq!(pod_of(&mut rig, (net.client(n), port), web(net)), Some(at(net, expected)), "client {n}");
            }
        }
        rig.moved();
        for n in (32_768..33_000).step_by(3) {
            let from = (net.client(n), 40_000);
            assert_eq!(pod_of(&mut rig, from, web(net)), pod_of(&mut unrouted, from, web(net)), "client {n}");
        }
        rig.moved();
        // The way of the first packet, byte for byte: as any other.
        rig.rx_wan(&tcp((net.client(5), 50_000), web(net)).syn(100));
        let syn = tcp((net.source(), 0), (at(net, 5), 8080)).syn(100).mss(crate::mss(net)).ttl(63);
        rig.expect_overlay(net, 1, &syn);
        rig.expect_counted(&and(STARTS, &[("mss_clamped", 1)]));
        rig.expect_all_frames_home();
    }
}

#[test]
fn an_endpoint_that_takes_no_new_flows_leaves_its_clients_to_the_scheduler() {
    for net in Net::BOTH {
        let (mut rig, mut catalog) = gateway_of(&[("shop/web", routed(net))]);
        let client = |port| (net.client(3), port);
        assert_eq!(pod_of(&mut rig, client(40_000), web(net)), Some(at(net, 5)));
        for draining in [true, false] {
            let mut web_now = routed(net);
            if draining {
                (web_now.ports[0].backends[0].weight, web_now.ports[0].backends[0].local_weight) = (0, 0);
            } else {
                web_now.ports[0].backends.remove(0);
            }
            rig.publish(|tables| catalog.put(tables, "shop/web", &web_now));
            let mut pods: Vec<IpAddr> =
                (0..200).filter_map(|n| pod_of(&mut rig, client(41_000 + n), web(net))).collect();
            assert_eq!(pods.len(), 200, "everybody is served");
            pods.sort_unstable();
            pods.dedup();
            assert!(pods.len() == 4 && !pods.contains(&at(net, 5)), "{pods:?}");
            // S-100: what began goes on.
            rig.moved();
            rig.rx_wan(&tcp(client(40_000), web(net)).ack(2, 1));
            assert_eq!(went_to(&mut rig), [(at(net, 5), 8080)]);
            rig.publish(|tables| catalog.put(tables, "shop/web", &routed(net)));
            assert_eq!(
                pod_of(&mut rig, client(42_000 + u16::from(draining)), web(net)),
                Some(at(net, 5)),
                "it is back"
            );
        }
        // Nobody at all: refused as ever (S-070).
        let nobody = Service {
            ports: vec![tidegate_api::resource::ServicePort { backends: vec![], ..routed(net).ports[0].clone() }],
            ..routed(net)
        };
        rig.publish(|tables| catalog.put(tables, "shop/web", &nobody));
        rig.moved();
        rig.rx_wan(&tcp(client(43_000), web(net)).syn(1));
        rig.expect_wan(&tcp(web(net), client(43_000)).segment("RA", 0, 2).window(0).ours());
    }
}

#[test]
fn overrides_go_before_affinity_and_schedulers_and_leave_both_alone() {
    for net in Net::BOTH {
        let mut sticky = routed(net);
        sticky.ports[0].affinity_timeout_s = Some(100);
        let stray = (net.client(40_000), 1);
        sticky.ports[0].source_backends.clear();
        let (mut rig, mut catalog) = gateway_of(&[("shop/web", sticky.clone())]);
        let mine = pod_of(&mut rig, (net.client(3), 1), web(net));
        let theirs = pod_of(&mut rig, stray, web(net));
        sticky.ports[0].source_backends = routed(net).ports[0].source_backends.clone();
        rig.publish(|tables| catalog.put(tables, "shop/web", &sticky));
        assert_eq!(pod_of(&mut rig, (net.client(3), 2), web(net)), Some(at(net, 5)));
        assert_eq!(pod_of(&mut rig, (stray.0, 2), web(net)), theirs);
        sticky.ports[0].source_backends.clear();
        rig.publish(|tables| catalog.put(tables, "shop/web", &sticky));
        assert_eq!(pod_of(&mut rig, (net.client(3), 3), web(net)), mine, "the affinity of before is untouched");
        // Turns go on where they were.
        let mut turns = routed(net);
        turns.ports[0].scheduler = Scheduler::Rr;
        let (mut rig, _) = gateway_of(&[("shop/web", turns)]);
        let mut order = Vec::new();
        for n in 0..5 {
            order.extend(pod_of(&mut rig, (net.client(40_000 + n), 1), web(net)));
            assert_eq!(pod_of(&mut rig, (net.client(n), 1), web(net)), Some(at(net, 5)));
        }
        order.sort_unstable();
        order.dedup();
        assert_eq!(order.len(), 5, "each had its turn: {order:?}");
    }
}

#[test]
fn the_local_set_and_source_ranges_apply_as_ever() {
    // S-048, S-072
    for net in Net::BOTH {
        let mut local = routed(net);
        local.ports[0].external_policy = TrafficPolicy::Local;
        // Pod 6 is nobody's local endpoint.
        local.ports[0].backends[1] =
            Backend { node: String::new(), local_weight: 0, ..local.ports[0].backends[1].clone() };
        local.source_ranges = vec![to(net, 0, 15, at(net, 5)).sources];
        let (mut rig, _) = gateway_of(&[("shop/web", local)]);
        assert_eq!(pod_of(&mut rig, (net.client(3), 1), web(net)), Some(at(net, 5)));
        let other = pod_of(&mut rig, (net.client(900), 1), web(net));
        assert!(other.is_some() && other != Some(at(net, 6)), "not in the Local set: {other:?}");
        rig.moved();
        rig.rx_wan(&tcp((net.client(40_000), 1), web(net)).syn(1));
        rig.expect_silence();
        rig.expect_counted(&walked("SourceDenied"));
    }
}
