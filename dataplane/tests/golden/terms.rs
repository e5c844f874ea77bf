//! Frontends of four kinds, traffic policies, source ranges, prefixes and every-port Services.

use std::net::IpAddr;

use proptest::prelude::*;
use tidegate_api::resource::{Backend, HashFields, Protocol, Service, ServicePort, TrafficPolicy};
use tidegate_dataplane::fuzzing::{self, Scene};
use tidegate_dataplane::rig::catalog::{Catalog, pod, service};
use tidegate_dataplane::rig::expect::from_peer;
use tidegate_dataplane::rig::sketch::{End, Sketch, Trouble, our_trouble, ping, pong, tcp, trouble, udp};
use tidegate_dataplane::rig::{FROM_ROUTER, LAN, Net, Rig, WAN};

use crate::{STARTS, and, gateway_of, pod_of, walked, went_to};

/// Port of the Service at node addresses.
const NODE_PORT: u16 = 30_080;

/// A Service of TCP 80 at one frontend of each kind.
pub(crate) fn everywhere(net: Net, backends: Vec<Backend>) -> Service {
    let mut everywhere = service(net.vip(1), Protocol::Tcp, 80, backends);
    everywhere.external_addresses = vec![net.vip(2)];
    everywhere.cluster_addresses = vec![net.vip(3)];
    everywhere.node_addresses = vec![net.gateway()];
    everywhere.ports[0].node_port = Some(NODE_PORT);
    everywhere
}

/// VIP, external address, cluster address and node port of [`everywhere`].
pub(crate) fn frontends(net: Net) -> [End; 4] {
    [(net.vip(1), 80), (net.vip(2), 80), (net.vip(3), 80), (net.gateway(), NODE_PORT)]
}

fn client(net: Net) -> End {
    (net.client(7), 40_000)
}

fn range(address: IpAddr) -> ipnet::IpNet {
    address.into()
}

/// Sends a packet as the client at `from` would: from inside the overlay when that is a pod of peer 1.
fn send(rig: &mut Rig, net: Net, packet: &Sketch) {
    if packet.from.0 == net.pod(1, 99) { rig.rx_overlay(net, 1, packet) } else { rig.rx_wan(packet) }
}

#[test]
fn a_service_is_reached_at_frontends_of_every_kind() {
    // S-065, S-066, T-010: translated and masqueraded, and answered from where it was asked.
    for net in Net::BOTH {
        let (mut rig, _) = gateway_of(&[("shop/web", everywhere(net, vec![pod(net, 0, 5, 1, 1)]))]);
        for frontend in frontends(net) {
            rig.rx_wan(&tcp(client(net), frontend).syn(100));
            let syn = tcp((net.source(), 0), (net.pod(0, 5), 8080)).syn(100).mss(crate::mss(net)).ttl(63);
            let (port, _) = rig.expect_overlay(net, 0, &syn);
            rig.expect_counted(&and(STARTS, &[("mss_clamped", 1)]));
            rig.rx_overlay(net, 0, &tcp((net.pod(0, 5), 8080), (net.source(), port)).syn_ack(500, 101));
            rig.expect_wan(&tcp(frontend, client(net)).syn_ack(500, 101).mss(crate::mss(net)).ttl(63));
            rig.moved();
        }
        // S-065: never at VIPs, and of a node address never anything but the port.
        for wrong in [(net.vip(1), NODE_PORT), (net.gateway(), 80), (net.gateway(), 22)] {
            rig.rx_wan(&tcp(client(net), wrong).syn(1));
            rig.expect_silence();
            rig.expect_counted(&walked("NoFrontend"));
        }
        // N-094: only VIPs are answered from.
        rig.rx_wan(&ping(net.client(7), net.vip(1)));
        rig.expect_wan(&pong(net.vip(1), net.client(7)));
        rig.moved();
        for quiet in [net.vip(2), net.vip(3), net.gateway()] {
            rig.rx_wan(&ping(net.client(7), quiet));
            rig.expect_silence();
            rig.expect_counted(&[("received", 1), ("IcmpUnhandled", 1)]);
        }
        rig.expect_all_frames_home();
    }
}

#[test]
fn errors_reach_the_pod_at_frontends_of_every_kind() {
    // L-050, S-075
    for net in Net::BOTH {
        let (mut rig, _) = gateway_of(&[("shop/web", everywhere(net, vec![pod(net, 0, 5, 1, 1)]))]);
        for frontend in frontends(net) {
            rig.rx_wan(&tcp(client(net), frontend).syn(100));
            let syn = tcp((net.source(), 0), (net.pod(0, 5), 8080)).syn(100).mss(crate::mss(net)).ttl(63);
            let (port, _) = rig.expect_overlay(net, 0, &syn);
            let seen = tcp(frontend, client(net)).segment("PA", 7, 101).data([7; 100]);
            let sent = tcp((net.pod(0, 5), 8080), (net.source(), port)).segment("PA", 7, 101).data([7; 100]);
            rig.rx_wan(&trouble(net.client(99), frontend.0, Trouble::TooBig(1400), &seen.packet()));
            let expected = trouble(net.source(), net.pod(0, 5), Trouble::TooBig(1400), &sent.packet()).ttl(63);
            rig.expect_overlay(net, 0, &expected);
        }
    }
}

#[test]
fn without_endpoints_every_frontend_refuses() {
    // T-009, T-120, T-137, S-070
    for net in Net::BOTH {
        let mut tcp_and_udp = everywhere(net, vec![]);
        tcp_and_udp.ports.push(ServicePort { protocol: Protocol::Udp, ..tcp_and_udp.ports[0].clone() });
        let policies = [TrafficPolicy::Cluster, TrafficPolicy::Local];
        for (external, internal) in policies.into_iter().flat_map(|one| policies.map(|other| (one, other))) {
            for port in &mut tcp_and_udp.ports {
                (port.external_policy, port.internal_policy) = (external, internal);
            }
            let (mut rig, _) = gateway_of(&[("shop/web", tcp_and_udp.clone())]);
            for frontend in frontends(net) {
                rig.rx_wan(&tcp(client(net), frontend).syn(7));
                rig.expect_wan(&tcp(frontend, client(net)).segment("RA", 0, 8).window(0).ours());
                let datagram = udp(client(net), frontend).data(*b"x");
                rig.rx_wan(&datagram);
                rig.expect_wan(&our_trouble(frontend.0, net.client(7), Trouble::Port, &datagram.packet()));
            }
            let answered = [("received", 8), ("slow_walk", 8), ("answered_reset", 4), ("answered_unreachable", 4)];
            rig.expect_counted(&and(&answered, &[("sent", 8)]));
        }
    }
}

#[test]
fn source_ranges_guard_vips_and_nothing_else() {
    // S-080 … S-082, S-072, S-073, T-010 … T-013
    for net in Net::BOTH {
        let mut guarded = everywhere(net, vec![pod(net, 0, 5, 1, 1)]);
        guarded.source_ranges = vec![range(net.client(7)), range(net.peer(1))];
        let (mut rig, mut catalog) = gateway_of(&[("shop/web", guarded.clone())]);
        let blocked = (net.client(8), 40_000);
        let [vip, others @ ..] = frontends(net);
        assert_eq!(pod_of(&mut rig, client(net), vip), Some(net.pod(0, 5)), "T-010");
        rig.moved();
        rig.rx_wan(&tcp(blocked, vip).syn(1));
        rig.expect_silence();
        rig.expect_counted(&walked("SourceDenied"));
        for frontend in others {
            assert_eq!(pod_of(&mut rig, blocked, frontend), Some(net.pod(0, 5)), "T-012: {frontend:?}");
        }
        rig.moved();
        // T-013: a pod is not in the ranges, its node is.
        rig.rx_overlay(net, 1, &tcp((net.pod(1, 99), 1), vip).syn(1));
        rig.expect_silence();
        rig.expect_counted(&and(&walked("SourceDenied"), &[("decapsulated", 1)]));
        rig.rx_overlay(net, 1, &tcp((net.peer(1), 1), vip).syn(1));
        assert_eq!(went_to(&mut rig), [(net.pod(0, 5), 8080)]);
        // S-082 lets a node reach its VIPs from the VIP itself. That never leaves the node: from the wire it is forged.
        rig.moved();
        rig.rx_wan(&tcp((net.vip(1), 5), vip).syn(1));
        rig.expect_silence();
        rig.expect_counted(&[("received", 1), ("MartianSource", 1)]);
        // S-073: whoever is not in the ranges does not learn that there is no endpoint.
        guarded.ports[0].backends.clear();
        rig.publish(|tables| catalog.put(tables, "shop/web", &guarded));
        rig.moved();
        rig.rx_wan(&tcp((net.client(8), 41_000), vip).syn(1));
        rig.expect_silence();
        rig.expect_counted(&walked("SourceDenied"));
    }
}

#[test]
fn ranges_change_for_new_flows_alone_and_by_family() {
    // S-081, S-083, S-085
    for (net, other) in [(Net::BOTH[0], Net::BOTH[1]), (Net::BOTH[1], Net::BOTH[0])] {
        let mut web = service(net.vip(1), Protocol::Tcp, 80, vec![pod(net, 0, 5, 1, 1)]);
        let vip = (net.vip(1), 80);
        let (mut rig, mut catalog) = gateway_of(&[("shop/web", web.clone())]);
        assert_eq!(pod_of(&mut rig, client(net), vip), Some(net.pod(0, 5)));
        let halves = match net.vip(1) {
            IpAddr::V4(_) => ["0.0.0.0/1", "128.0.0.0/1"],
            IpAddr::V6(_) => ["::/1", "8000::/1"],
        };
        let halves = halves.map(|text| text.parse().unwrap()).to_vec();
        let steps = [
            (vec![range(net.client(1))], false),
            (halves, true),
            (vec![range(net.client(2))], false),
            (vec![range(other.client(1))], true),
            (vec![], true),
        ];
        for (n, (ranges, passes)) in (50_000..).zip(steps) {
            web.source_ranges = ranges;
            rig.publish(|tables| catalog.put(tables, "shop/web", &web));
            let expected = passes.then(|| net.pod(0, 5));
            assert_eq!(pod_of(&mut rig, (net.client(7), n), vip), expected, "{:?}", web.source_ranges);
            rig.moved();
            rig.rx_wan(&tcp(client(net), vip).ack(2, 1));
            assert_eq!(went_to(&mut rig).len(), 1, "S-083: the connection of before goes on");
            assert!(rig.moved().contains_key("flow_hit"), "and looks at nothing again");
        }
    }
}

/// Pod 5 of peer 0 is ready and local to its node, pod 6 of peer 1 is ready and its node is not known, pod 7 of peer 1
/// is terminating.
fn mixed(net: Net) -> Vec<Backend> {
    let nameless = Backend { node: String::new(), ..pod(net, 1, 6, 1, 0) };
    vec![pod(net, 0, 5, 1, 1), nameless, pod(net, 1, 7, 0, 0)]
}

/// The pods that 40 connections from `from` to `to` reached.
fn reached(rig: &mut Rig, net: Net, from: IpAddr, to: End) -> Vec<IpAddr> {
    for n in 0..40 {
        send(rig, net, &tcp((from, 20_000 + n), to).syn(1));
    }
    let mut pods: Vec<IpAddr> = went_to(rig).into_iter().map(|(address, _)| address).collect();
    pods.sort_unstable();
    pods.dedup();
    pods
}

#[test]
fn who_may_reach_which_endpoints_under_which_policy() {
    // T-016, T-017, T-136, S-048, S-049, S-055 … S-060, S-065, S-071: rows of T-017 as a gateway without pods of its own
    // sees them. Everything is masqueraded, since that is what `fullnat` means.
    for net in Net::BOTH {
        let (all, own) = (vec![net.pod(0, 5), net.pod(1, 6)], vec![net.pod(0, 5)]);
        let (outside, inside, node) = (net.client(7), net.pod(1, 99), net.peer(1));
        for (external, internal) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut web = everywhere(net, mixed(net));
            let policy = |is_local| if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
            (web.ports[0].external_policy, web.ports[0].internal_policy) = (policy(external), policy(internal));
            let (mut rig, _) = gateway_of(&[("shop/web", web)]);
            let [vip, external_ip, cluster_ip, node_port] = frontends(net);
            for at in [vip, external_ip] {
                let seen = reached(&mut rig, net, outside, at);
                assert_eq!(seen, if external { own.clone() } else { all.clone() }, "{at:?} from outside");
                assert_eq!(reached(&mut rig, net, inside, at), all, "S-058: {at:?} from a pod");
            }
            rig.rx_overlay(net, 1, &tcp((node, 1), vip).syn(1));
            assert_eq!(went_to(&mut rig).len(), 1, "a node inside the overlay");
            rig.moved();
            let expected = if external { vec![] } else { all.clone() };
            assert_eq!(reached(&mut rig, net, outside, node_port), expected, "S-065");
            let dropped = rig.moved().get("NodePortLocal").copied().unwrap_or(0);
            assert_eq!(dropped, if external { 40 } else { 0 });
            assert_eq!(reached(&mut rig, net, inside, node_port), all);
            rig.moved();
            for from in [outside, inside] {
                let expected = if internal { vec![] } else { all.clone() };
                assert_eq!(reached(&mut rig, net, from, cluster_ip), expected, "S-060");
                let dropped = rig.moved().get("InternalPolicyLocal").copied().unwrap_or(0);
                assert_eq!(dropped, if internal { 40 } else { 0 }, "T-006: silently");
            }
        }
    }
}

#[test]
fn a_local_service_whose_nodes_nobody_knows_drops() {
    // S-071: no endpoint is usable by node, though there is one. S-070 when there is none at all.
    for net in Net::BOTH {
        let mut web = everywhere(net, vec![Backend { node: String::new(), ..pod(net, 1, 6, 1, 0) }]);
        web.ports[0].external_policy = TrafficPolicy::Local;
        let (mut rig, mut catalog) = gateway_of(&[("shop/web", web.clone())]);
        for at in &frontends(net)[..2] {
            rig.rx_wan(&tcp(client(net), *at).syn(1));
            rig.expect_silence();
            rig.expect_counted(&walked("NoLocalEndpoint"));
        }
        // T-005: one that terminates on its node serves while no local one is ready, though another is ready elsewhere.
        web.ports[0].backends.push(pod(net, 0, 5, 0, 1));
        rig.publish(|tables| catalog.put(tables, "shop/web", &web));
        assert_eq!(reached(&mut rig, net, net.client(7), (net.vip(1), 80)), [net.pod(0, 5)]);
        assert_eq!(reached(&mut rig, net, net.pod(1, 99), (net.vip(1), 80)), [net.pod(1, 6)]);
    }
}

#[test]
fn protocols_of_one_port_are_frontends_of_their_own() {
    // T-015, S-010
    for net in Net::BOTH {
        let mut both = service(net.vip(1), Protocol::Tcp, 80, vec![pod(net, 0, 5, 1, 1)]);
        let udp_port =
            ServicePort { protocol: Protocol::Udp, backends: vec![pod(net, 1, 6, 1, 1)], ..both.ports[0].clone() };
        both.ports.push(udp_port);
        both.ports.push(ServicePort { port: 81, ..both.ports[0].clone() });
        let (mut rig, _) = gateway_of(&[("shop/both", both)]);
        rig.rx_wan(&tcp(client(net), (net.vip(1), 80)).syn(1));
        rig.rx_wan(&udp(client(net), (net.vip(1), 80)).data(*b"x"));
        assert_eq!(went_to(&mut rig), [(net.pod(0, 5), 8080), (net.pod(1, 6), 8080)]);
        rig.moved();
        rig.rx_wan(&udp(client(net), (net.vip(1), 81)).data(*b"x"));
        rig.expect_silence();
        rig.expect_counted(&walked("NoFrontend"));
    }
}

/// A Service of every port at `vip`; `port` 0 sends to the port that was asked for.
fn every_port(net: Net, vip: u8, p: u8, port: u16) -> Service {
    service(net.vip(vip), Protocol::Tcp, 0, vec![Backend { port, ..pod(net, 0, p, 1, 1) }])
}

#[test]
fn a_service_of_every_port_takes_those_that_no_other_has() {
    // T-111
    for net in Net::BOTH {
        let web = service(net.vip(1), Protocol::Tcp, 80, vec![pod(net, 0, 5, 1, 1)]);
        let (mut rig, mut catalog) = gateway_of(&[
            ("shop/web", web),
            ("shop/rest", every_port(net, 1, 6, 0)),
            ("shop/one", every_port(net, 2, 7, 9)),
        ]);
        for port in [1, 79, 443, 65_535] {
            rig.rx_wan(&tcp(client(net), (net.vip(1), port)).syn(1));
            let syn = tcp((net.source(), 0), (net.pod(0, 6), port)).syn(1).mss(crate::mss(net)).ttl(63);
            let (source, _) = rig.expect_overlay(net, 0, &syn);
            rig.rx_overlay(net, 0, &tcp((net.pod(0, 6), port), (net.source(), source)).syn_ack(5, 2));
            rig.expect_wan(&tcp((net.vip(1), port), client(net)).syn_ack(5, 2).mss(crate::mss(net)).ttl(63));
            rig.rx_wan(&tcp(client(net), (net.vip(2), port)).syn(1));
            assert_eq!(went_to(&mut rig), [(net.pod(0, 7), 9)]);
        }
        assert_eq!(pod_of(&mut rig, client(net), (net.vip(1), 80)), Some(net.pod(0, 5)), "its own frontend goes first");
        rig.moved();
        rig.rx_wan(&udp(client(net), (net.vip(1), 443)).data(*b"x"));
        rig.expect_silence();
        rig.expect_counted(&walked("NoFrontend"));
        // S-100: a flow to a port that was asked for survives its endpoint's leaving.
        rig.publish(|tables| {
            let mut rest = every_port(net, 1, 6, 0);
            rest.ports[0].backends = vec![Backend { port: 0, ..pod(net, 1, 8, 1, 1) }];
            catalog.put(tables, "shop/rest", &rest);
        });
        rig.rx_wan(&tcp(client(net), (net.vip(1), 443)).ack(2, 6));
        assert_eq!(went_to(&mut rig), [(net.pod(0, 6), 443)]);
    }
}

#[test]
fn a_prefix_is_served_wherever_no_address_is() {
    // T-121: "/prefix VIP, port 0 / 443 / mismatch / miss"
    for net in Net::BOTH {
        let (wide, narrow): (ipnet::IpNet, ipnet::IpNet) = match net.vip(1) {
            IpAddr::V4(_) => ("203.0.113.0/24".parse().unwrap(), "203.0.113.64/26".parse().unwrap()),
            IpAddr::V6(_) => ("2001:db8:f::/64".parse().unwrap(), "2001:db8:f::40/122".parse().unwrap()),
        };
        let of = |prefix, port, p| {
            let mut service = service(net.vip(1), Protocol::Tcp, port, vec![pod(net, 0, p, 1, 1)]);
            (service.addresses, service.prefixes) = (vec![], vec![prefix]);
            service
        };
        let one = service(net.vip(5), Protocol::Tcp, 443, vec![pod(net, 0, 12, 1, 1)]);
        let services = [("a", of(wide, 443, 10)), ("b", of(narrow, 0, 11)), ("c", one)];
        let (mut rig, mut catalog) = gateway_of(&services);
        let mut pod_at = |vip: u8, port: u16| pod_of(&mut rig, client(net), (net.vip(vip), port));
        assert_eq!(pod_at(1, 443), Some(net.pod(0, 10)), "port 443");
        assert_eq!(
            (pod_at(70, 443), pod_at(70, 81)),
            (Some(net.pod(0, 11)), Some(net.pod(0, 11))),
            "the longer, any port"
        );
        assert_eq!(pod_at(5, 443), Some(net.pod(0, 12)), "the address itself");
        assert_eq!(pod_at(1, 444), None, "mismatch");
        rig.moved();
        rig.rx_wan(&ping(net.client(7), net.vip(77)));
        rig.expect_wan(&pong(net.vip(77), net.client(7)));
        let outside = if net == Net::BOTH[0] { "203.0.114.1" } else { "2001:db8:e::1" };
        rig.moved();
        rig.rx_wan(&tcp(client(net), (outside.parse().unwrap(), 443)).syn(1));
        rig.expect_silence();
        rig.expect_counted(&walked("NotOurs"));
        // What is taken away is not served any more, and what it covered comes to light.
        rig.publish(|tables| catalog.remove(tables, "b"));
        assert_eq!(pod_of(&mut rig, (net.client(9), 1), (net.vip(70), 443)), Some(net.pod(0, 10)));
    }
}

#[test]
fn fields_that_are_not_hashed_do_not_matter() {
    // T-117, L-009
    for net in Net::BOTH {
        let backends: Vec<_> = (0..6).map(|n| pod(net, n % 2, 10 + n, 1, 1)).collect();
        let mut web = service(net.vip(1), Protocol::Tcp, 80, backends);
        let spread = |rig: &mut Rig, clients: u16, ports: u16| {
            let pairs = (0..clients).flat_map(|client| (0..ports).map(move |port| (net.client(client), 1_000 + port)));
            let seen: Vec<_> = pairs.filter_map(|from| pod_of(rig, from, (net.vip(1), 80))).collect();
            assert_eq!(seen.len(), usize::from(clients * ports));
            seen.into_iter().collect::<std::collections::BTreeSet<_>>().len()
        };
        for (hash, one_client, many_clients) in
            [(HashFields::Flow, 6, 6), (HashFields::WithoutSourcePort, 1, 6), (HashFields::DestinationPort, 1, 1)]
        {
            web.ports[0].hash = hash;
            let (mut rig, _) = gateway_of(&[("shop/web", web.clone())]);
            assert_eq!(spread(&mut rig, 1, 60), one_client, "{hash:?}");
            assert_eq!(spread(&mut rig, 60, 1), many_clients, "{hash:?}");
        }
    }
}

#[test]
fn a_flow_keeps_its_endpoint_when_the_set_changes_and_no_refusal_is_remembered() {
    // T-116, T-123, T-138, T-187, S-100, S-103
    for net in Net::BOTH {
        let mut both = service(net.vip(1), Protocol::Tcp, 80, vec![]);
        both.ports.push(ServicePort { protocol: Protocol::Udp, ..both.ports[0].clone() });
        let (mut rig, mut catalog) = gateway_of(&[("shop/web", both.clone())]);
        let vip = (net.vip(1), 80);
        for _ in 0..3 {
            rig.rx_wan(&tcp(client(net), vip).syn(1));
            rig.rx_wan(&udp(client(net), vip).data(*b"x"));
        }
        assert_eq!(went_to(&mut rig), []);
        let mut set = |rig: &mut Rig, backends: Vec<Backend>| {
            both.ports.iter_mut().for_each(|port| port.backends.clone_from(&backends));
            rig.publish(|tables| catalog.put(tables, "shop/web", &both));
        };
        set(&mut rig, vec![pod(net, 0, 5, 1, 1)]);
        // T-187, S-103: the same tuples, at once.
        rig.rx_wan(&tcp(client(net), vip).syn(1));
        rig.rx_wan(&udp(client(net), vip).data(*b"x"));
        assert_eq!(went_to(&mut rig), [(net.pod(0, 5), 8080); 2]);
        // T-138: it terminates while another is ready. Old flows stay, new ones go elsewhere.
        set(&mut rig, vec![pod(net, 0, 5, 0, 0), pod(net, 1, 6, 1, 1)]);
        rig.rx_wan(&tcp(client(net), vip).syn(1));
        rig.rx_wan(&udp(client(net), vip).data(*b"x"));
        rig.rx_wan(&tcp((net.client(7), 41_000), vip).syn(1));
        rig.rx_wan(&udp((net.client(7), 41_000), vip).data(*b"x"));
        let (old, new) = ((net.pod(0, 5), 8080), (net.pod(1, 6), 8080));
        assert_eq!(went_to(&mut rig), [old, old, new, new]);
        // T-123: it is gone. TCP stays, UDP moves.
        set(&mut rig, vec![pod(net, 1, 6, 1, 1)]);
        rig.rx_wan(&tcp(client(net), vip).syn(1));
        rig.rx_wan(&udp(client(net), vip).data(*b"x"));
        assert_eq!(went_to(&mut rig), [old, new]);
    }
}

#[test]
fn only_datagram_flows_of_the_endpoint_that_left_move() {
    // T-020: "flows to {serving, removed, other port same IP}: only the removed backend's; none when 0 serving; TCP untouched"
    for net in Net::BOTH {
        let other_port = Backend { port: 9090, ..pod(net, 0, 5, 1, 1) };
        let all = vec![pod(net, 0, 5, 1, 1), other_port, pod(net, 1, 6, 1, 1)];
        let mut names = service(net.vip(1), Protocol::Udp, 53, all.clone());
        let (mut rig, mut catalog) = gateway_of(&[("dns/names", names.clone())]);
        let ask = |rig: &mut Rig| {
            (0..60).for_each(|n| rig.rx_wan(&udp((net.client(n), 5_353), (net.vip(1), 53)).data(*b"?")));
            went_to(rig)
        };
        let before = ask(&mut rig);
        let gone = (net.pod(0, 5), 8080);
        assert!(before.iter().filter(|end| **end == gone).count() > 5);
        names.ports[0].backends = all[1..].to_vec();
        rig.publish(|tables| catalog.put(tables, "dns/names", &names));
        let after = ask(&mut rig);
        assert!(before.iter().zip(&after).all(|(then, now)| if *then == gone { now != then } else { now == then }));
        names.ports[0].backends.clear();
        rig.publish(|tables| catalog.put(tables, "dns/names", &names));
        assert_eq!(ask(&mut rig), after, "nothing serves: nothing is deleted");
    }
}

#[test]
fn a_pod_reaches_itself_through_any_frontend() {
    // T-014, T-140, S-061
    for net in Net::BOTH {
        let (mut rig, _) = gateway_of(&[("shop/web", everywhere(net, vec![pod(net, 0, 5, 1, 1)]))]);
        for frontend in frontends(net) {
            rig.rx_overlay(net, 0, &tcp((net.pod(0, 5), 33_000), frontend).syn(100));
            let syn = tcp((net.source(), 0), (net.pod(0, 5), 8080)).syn(100).mss(crate::mss(net)).ttl(63);
            let (port, _) = rig.expect_overlay(net, 0, &syn);
            rig.rx_overlay(net, 0, &tcp((net.pod(0, 5), 8080), (net.source(), port)).syn_ack(500, 101));
            let answer = tcp(frontend, (net.pod(0, 5), 33_000)).syn_ack(500, 101).mss(crate::mss(net)).ttl(63);
            rig.expect_overlay(net, 0, &answer);
        }
    }
}

/// A Service that asks for what `how` says: a scheduler, affinity, policies, ranges, hash fields, prefixes, every port,
/// and endpoints of odd weights.
fn asking(net: Net, how: u64) -> Service {
    use tidegate_api::resource::Scheduler as S;
    let bit = |n: u32| how >> n & 1 == 1;
    let policy = |is_local| if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    let weight = |n: u8| u16::try_from(how >> (16 + 2 * u32::from(n)) & 3).unwrap();
    let backends = (0..4).map(|n| Backend { port: 8080, ..pod(net, n % 2, 30 + n, weight(n), weight(n + 4)) });
    let mut asking = everywhere(net, backends.take(usize::try_from(how >> 40 & 7).unwrap()).collect());
    let [v4, v6] = Net::BOTH;
    asking.source_ranges =
        if bit(0) { vec![range(v4.client(1)), range(v6.client(1)), range(v6.client(2))] } else { vec![] };
    let prefix: ipnet::IpNet = range(net.vip(20));
    asking.prefixes = vec![ipnet::IpNet::new(prefix.addr(), prefix.max_prefix_len() - 2).unwrap()];
    let port = &mut asking.ports[0];
    (port.external_policy, port.internal_policy) = (policy(bit(1)), policy(bit(2)));
    port.affinity_timeout_s = bit(3).then_some(1 + u32::from(bit(4)) * 100);
    port.slow_start_s = if bit(5) { 5 } else { 0 };
    port.hash = [HashFields::Flow, HashFields::WithoutSourcePort, HashFields::DestinationPort]
        [usize::from(bit(6)) + usize::from(bit(7))];
    let all = [S::Mh, S::Rr, S::Wrr, S::Lc, S::Wlc, S::Sed, S::Nq, S::Sh, S::Dh, S::Fo, S::Ovf];
    port.scheduler = all[usize::try_from(how >> 8 & 0xff).unwrap() % all.len()];
    let mut datagrams = ServicePort { protocol: Protocol::Udp, node_port: None, ..port.clone() };
    datagrams.port = if bit(15) { 0 } else { 53 };
    asking.ports.push(datagrams);
    asking
}

/// One step of [`whatever_services_ask_for_the_books_balance_and_deciding_changes_nothing`].
#[derive(Clone, Debug)]
enum Step {
    Ask(u64),
    Wait(u64),
    Send { client: u16, port: u16, at: usize, flags: usize, inside: bool },
}

fn any_step() -> impl Strategy<Value = Step> {
    let send = (1..4u16, 1..6u16, 0..8usize, 0..5usize, any::<bool>());
    prop_oneof![
        1 => any::<u64>().prop_map(Step::Ask),
        1 => (1..20_000_000_000u64).prop_map(Step::Wait),
        20 => send.prop_map(|(client, port, at, flags, inside)| Step::Send { client, port, at, flags, inside }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_services_ask_for_the_books_balance_and_deciding_changes_nothing(
        first: u64, is_v4: bool, steps in prop::collection::vec(any_step(), 1..120)
    ) {
        let net = Net::BOTH[usize::from(!is_v4)];
        let (mut tables, mut catalog) = (fuzzing::tables(), Catalog::default());
        // Rows of the scene's own Services begin at 1.
        tables.services = Default::default();
        catalog.put(&mut tables, "shop/asking", &asking(net, first));
        let mut scene = Scene::new(tables, 64);
        for step in steps {
            match step {
                Step::Ask(how) => {
                    catalog.now_ns = scene.rig.now_ns;
                    scene.rig.publish(|tables| catalog.put(tables, "shop/asking", &asking(net, how)));
                }
                Step::Wait(time_ns) => {
                    scene.rig.now_ns += time_ns;
                    catalog.now_ns = scene.rig.now_ns;
                    scene.rig.publish(|tables| {
                        catalog.tick(tables);
                    });
                }
                Step::Send { client, port, at, flags, inside } => {
                    let [vip, external, cluster, node] = frontends(net);
                    let ends = [vip, external, cluster, node, (net.vip(21), 80), (net.vip(1), 53), (net.vip(21), 53), (net.vip(1), 99)];
                    let from = (if inside { net.pod(1, 90 + client as u8) } else { net.client(client) }, port);
                    let packet = match flags {
                        0 | 1 => tcp(from, ends[at]).syn(100),
                        2 => tcp(from, ends[at]).segment("R", 101, 0),
                        3 => tcp(from, ends[at]).ack(101, 1),
                        _ => udp(from, ends[at]).data(*b"x"),
                    };
                    if inside {
                        scene.play(LAN, &from_peer(net, 1, &packet));
                    } else {
                        scene.play(WAN, &packet.frame(FROM_ROUTER));
                    }
                }
            }
        }
        scene.check_usage();
    }
}
