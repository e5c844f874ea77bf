//! Network policies: who may reach whom through the gateway, asked with a client's own address and a pod's own port.

use std::sync::Arc;

use tidegate_api::resource::{Action, Body, Kind, Protocol, Service, ServicePort, StaticNat};
use tidegate_dataplane::rig::catalog;
use tidegate_dataplane::rig::fleet::{Fleet, Plan};
use tidegate_dataplane::rig::outside::{self, external};
use tidegate_dataplane::rig::policed::{
    Policed, admin, at, baseline, everybody, in_audit, in_set, near, of, pod, policy, set,
};
use tidegate_dataplane::rig::sketch::{End, Sketch, Trouble, ping, sctp, tcp, trouble, udp};
use tidegate_dataplane::rig::{self, LAN, Net, Rig, WAN};
use tidegate_dataplane::table::Tables;
use tidegate_dataplane::table::policy::ruling_key;
use tidegate_policy::{Direction, Query};

const PASSED: &str = "passed";
const INGRESS: &str = "PolicyDeniedIngress";
const EGRESS: &str = "PolicyDeniedEgress";

/// Pods 5 and 6 of peer 0 and 7 of peer 1: number, peer, identity, name, set of it alone.
const PODS: [(u8, u8, u32, &str, &str); 3] =
    [(5, 0, 105, "shop/five", "five"), (6, 0, 106, "shop/six", "six"), (7, 1, 107, "blog/seven", "seven")];

/// Ports of every Service, with the pods' own.
const PORTS: [(Protocol, u16, u16); 3] =
    [(Protocol::Tcp, 80, 8080), (Protocol::Udp, 53, 5353), (Protocol::Sctp, 3868, 9868)];

fn service(number: u8, peer: u8) -> Body {
    let port = |(protocol, port, pod_port)| {
        let backend = |net| tidegate_api::resource::Backend { port: pod_port, ..catalog::pod(net, peer, number, 1, 1) };
        ServicePort { protocol, port, backends: Net::BOTH.map(backend).to_vec(), ..ServicePort::default() }
    };
    Body::Service(Service {
        uid: format!("uid-{number}"),
        addresses: Net::BOTH.map(|net| net.vip(number)).to_vec(),
        ports: PORTS.map(port).to_vec(),
        ..Service::default()
    })
}

/// Pods 5, 6 and 7, each behind a Service at the VIP of its number and under an egress policy.
fn town() -> (Rig, Policed) {
    let (mut tables, mut policed) = (rig::tables(), Policed::default());
    let egress = Body::Egress(outside::policy(&Net::BOTH.map(|net| external(net, 1))));
    policed.put(&mut tables, "out", egress);
    for (number, peer, identity, name, alone) in PODS {
        let addresses = Net::BOTH.map(|net| net.pod(peer, number));
        policed.put(&mut tables, alone, set(&[identity]));
        policed.put(&mut tables, name, pod(&addresses, identity, &["out"]));
        policed.put(&mut tables, &format!("{name}-web"), service(number, peer));
    }
    policed.put(&mut tables, "all", set(&[105, 106, 107]));
    (Rig::new(tables).unwrap(), policed)
}

fn put(rig: &mut Rig, policed: &mut Policed, name: &str, body: Body) {
    rig.publish(|tables| policed.put(tables, name, body));
}

fn remove(rig: &mut Rig, policed: &mut Policed, name: &str) {
    rig.publish(|tables| policed.remove(tables, Kind::Policy, name));
}

/// The first packet of a flow.
fn first(protocol: Protocol, from: End, to: End) -> Sketch {
    match protocol {
        Protocol::Tcp => tcp(from, to).syn(100),
        Protocol::Udp => udp(from, to).data(*b"who?"),
        Protocol::Sctp => sctp(from, to).init(1, 9),
    }
}

/// What becomes of a packet that the last turn saw: [`PASSED`], or why not.
fn fate(rig: &mut Rig) -> &'static str {
    let sent = rig.sent(WAN).len() + rig.sent(LAN).len();
    let moved = rig.moved();
    rig.expect_balance();
    match (sent, moved.keys().find(|name| name.starts_with(char::is_uppercase))) {
        (1, None) => PASSED,
        (0, Some(reason)) => reason,
        other => panic!("{other:?} {moved:?}"),
    }
}

fn from_client(rig: &mut Rig, packet: &Sketch) -> &'static str {
    rig.rx_wan(packet);
    fate(rig)
}

fn from_pod(rig: &mut Rig, net: Net, peer: u8, packet: &Sketch) -> &'static str {
    rig.rx_overlay(net, peer, packet);
    fate(rig)
}

fn client(net: Net) -> End {
    (net.client(7), 40_000)
}

/// A new port each time, so that every packet is a flow's first.
fn fresh(net: Net, n: u16) -> impl FnMut() -> End {
    let mut port = 1000;
    move || {
        port += 1;
        (net.client(n), port)
    }
}

/// What clients 7 and 9 are told by the Services of pod `number`, per protocol.
fn reached(rig: &mut Rig, net: Net, number: u8, salt: u16) -> [[&'static str; 3]; 2] {
    [7, 9].map(|n| {
        PORTS.map(|(protocol, port, _)| {
            let packet = first(protocol, (net.client(n), 2000 + salt), (net.vip(number), port));
            from_client(rig, &packet)
        })
    })
}

#[test]
fn who_is_isolated_is_reached_by_whom_rules_name() {
    // T-040, T-041, T-046, T-061, P-021, P-040, P-044
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        assert_eq!(reached(&mut rig, net, 5, 0), [[PASSED; 3]; 2]);
        put(&mut rig, &mut policed, "deny", policy("five", Some(vec![]), None));
        assert_eq!(reached(&mut rig, net, 5, 1), [[INGRESS; 3]; 2]);
        assert_eq!(reached(&mut rig, net, 6, 1), [[PASSED; 3]; 2], "nobody is asked about this pod");
        // The client's own address, though its source is translated.
        let rule = of(vec![near(net.client(9), 16, 64, &[net.client(7)])], everybody(Action::Accept));
        put(&mut rig, &mut policed, "clients", policy("five", Some(vec![rule]), None));
        assert_eq!(reached(&mut rig, net, 5, 2), [[INGRESS; 3], [PASSED; 3]]);
        // T-053: policies of a namespace add up.
        put(&mut rig, &mut policed, "open", policy("five", Some(vec![everybody(Action::Accept)]), None));
        assert_eq!(reached(&mut rig, net, 5, 3), [[PASSED; 3]; 2]);
        for name in ["open", "clients", "deny"] {
            remove(&mut rig, &mut policed, name);
        }
        assert_eq!(reached(&mut rig, net, 5, 4), [[PASSED; 3]; 2]);
    }
}

#[test]
fn a_denied_packet_ends_in_silence_and_begins_nothing() {
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        put(&mut rig, &mut policed, "deny", policy("five", Some(vec![]), None));
        rig.rx_wan(&tcp(client(net), (net.vip(5), 80)).syn(100));
        rig.expect_silence();
        rig.expect_counted(&crate::walked(INGRESS));
        assert_eq!(rig.worker.state().live(), 0);
        rig.expect_all_frames_home();
    }
}

#[test]
fn ports_are_the_pods_and_protocols_differ() {
    // T-063, T-045, T-047, P-025
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let rule = |protocol, first, last| vec![at(protocol, first, last, everybody(Action::Accept))];
        let table = [
            (Protocol::Tcp, 80, 80, [INGRESS, INGRESS, INGRESS]),
            (Protocol::Tcp, 8080, 8080, [PASSED, INGRESS, INGRESS]),
            (Protocol::Tcp, 8000, 8079, [INGRESS, INGRESS, INGRESS]),
            (Protocol::Tcp, 8000, 8080, [PASSED, INGRESS, INGRESS]),
            (Protocol::Udp, 0, 65_535, [INGRESS, PASSED, INGRESS]),
            (Protocol::Sctp, 9868, 9900, [INGRESS, INGRESS, PASSED]),
        ];
        for (salt, (protocol, first, last, expected)) in (0..).zip(table) {
            put(&mut rig, &mut policed, "ports", policy("five", Some(rule(protocol, first, last)), None));
            assert_eq!(reached(&mut rig, net, 5, salt), [expected; 2], "{protocol:?} {first}-{last}");
        }
    }
}

#[test]
fn what_a_pod_sends_to_the_outside_is_asked_for_too() {
    // T-062, P-026, P-030, P-042, T-059
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let five = net.pod(0, 5);
        let mut port = 30_000;
        let mut out = |rig: &mut Rig, n: u16| {
            port += 1;
            let [tcp, udp] = [Protocol::Tcp, Protocol::Udp]
                .map(|protocol| from_pod(rig, net, 0, &first(protocol, (five, port), (net.client(n), 443))));
            [tcp, udp, from_pod(rig, net, 0, &ping(five, net.client(n)))]
        };
        assert_eq!([out(&mut rig, 20), out(&mut rig, 21)], [[PASSED; 3]; 2]);
        put(&mut rig, &mut policed, "deny", policy("five", None, Some(vec![])));
        assert_eq!([out(&mut rig, 22), out(&mut rig, 23)], [[EGRESS; 3]; 2]);
        let one = of(vec![near(net.client(22), 32, 128, &[])], everybody(Action::Accept));
        put(&mut rig, &mut policed, "one", policy("five", None, Some(vec![one.clone()])));
        assert_eq!([out(&mut rig, 22), out(&mut rig, 23)], [[PASSED; 3], [EGRESS; 3]]);
        // An echo has no port, and a rule with ports is none for it.
        let web = at(Protocol::Tcp, 443, 443, one);
        put(&mut rig, &mut policed, "one", policy("five", None, Some(vec![web])));
        assert_eq!(out(&mut rig, 22), [PASSED, EGRESS, EGRESS]);
        // Its answers to whom it may not speak first are no speech of its own.
        remove(&mut rig, &mut policed, "one");
        rig.rx_wan(&tcp(client(net), (net.vip(5), 80)).syn(100));
        let syn = tcp((net.source(), 0), (five, 8080)).syn(100).mss(crate::mss(net)).ttl(63);
        let (source_port, _) = rig.expect_overlay(net, 0, &syn);
        rig.moved();
        let answer = tcp((five, 8080), (net.source(), source_port)).syn_ack(500, 101);
        assert_eq!(from_pod(&mut rig, net, 0, &answer), PASSED);
        assert_eq!(out(&mut rig, 22), [EGRESS; 3]);
    }
}

#[test]
fn between_pods_both_are_asked() {
    // T-049, P-033, P-043, T-042
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let mut port = 20_000;
        let mut speak = |rig: &mut Rig, number: u8, peer: u8, to: u8| {
            port += 1;
            PORTS.map(|(protocol, at, _)| {
                from_pod(rig, net, peer, &first(protocol, (net.pod(peer, number), port), (net.vip(to), at)))
            })
        };
        let to = |name: &str| vec![of(vec![in_set(name)], everybody(Action::Accept))];
        assert_eq!(speak(&mut rig, 6, 0, 7), [PASSED; 3]);
        put(&mut rig, &mut policed, "from six", policy("six", None, Some(vec![])));
        assert_eq!(speak(&mut rig, 6, 0, 7), [EGRESS; 3]);
        put(&mut rig, &mut policed, "to seven", policy("seven", Some(vec![]), None));
        assert_eq!(speak(&mut rig, 6, 0, 7), [EGRESS; 3]);
        put(&mut rig, &mut policed, "from six", policy("six", None, Some(to("seven"))));
        assert_eq!(speak(&mut rig, 6, 0, 7), [INGRESS; 3]);
        assert_eq!(speak(&mut rig, 6, 0, 5), [EGRESS; 3]);
        put(&mut rig, &mut policed, "to seven", policy("seven", Some(to("six")), None));
        assert_eq!([speak(&mut rig, 6, 0, 7), speak(&mut rig, 5, 0, 7)], [[PASSED; 3], [INGRESS; 3]]);
        // A prefix means whoever has an address in it, pods included (P-107).
        let prefix = vec![of(vec![near(net.pod(0, 5), 32, 128, &[])], everybody(Action::Accept))];
        put(&mut rig, &mut policed, "prefix", policy("seven", Some(prefix), None));
        assert_eq!(speak(&mut rig, 5, 0, 7), [PASSED; 3]);
        // From itself no policy of a namespace keeps a pod.
        put(&mut rig, &mut policed, "shut", policy("six", Some(vec![]), Some(vec![])));
        remove(&mut rig, &mut policed, "from six");
        assert_eq!([speak(&mut rig, 6, 0, 6), speak(&mut rig, 6, 0, 5)], [[PASSED; 3], [EGRESS; 3]]);
        // The admin tier goes first (T-057).
        let deny = of(vec![in_set("five")], everybody(Action::Deny));
        put(&mut rig, &mut policed, "admin", admin("all", 1, vec![deny], vec![]));
        assert_eq!([speak(&mut rig, 5, 0, 7), speak(&mut rig, 7, 1, 5)], [[INGRESS; 3], [PASSED; 3]]);
    }
}

#[test]
fn through_a_service_a_pod_reaches_itself_as_far_as_the_outer_tiers_let_it() {
    // P-033, P-103, P-110
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let mut port = 20_000;
        let mut speak = |rig: &mut Rig, to: u8| {
            port += 1;
            PORTS.map(|(protocol, at, _)| {
                from_pod(rig, net, 0, &first(protocol, (net.pod(0, 5), port), (net.vip(to), at)))
            })
        };
        let with = |name: &str, action| vec![of(vec![in_set(name)], everybody(action))];
        let shut = policy("five", Some(vec![]), Some(vec![]));
        // The baseline is for a pod that no NetworkPolicy isolates in that direction.
        put(&mut rig, &mut policed, "base", baseline("five", 1, with("five", Action::Deny), vec![]));
        assert_eq!([speak(&mut rig, 5), speak(&mut rig, 6)], [[INGRESS; 3], [PASSED; 3]]);
        put(&mut rig, &mut policed, "base", baseline("five", 1, vec![], with("five", Action::Deny)));
        assert_eq!([speak(&mut rig, 5), speak(&mut rig, 6)], [[EGRESS; 3], [PASSED; 3]]);
        put(&mut rig, &mut policed, "shut", policy("five", Some(vec![]), None));
        assert_eq!(speak(&mut rig, 5), [EGRESS; 3], "ingress alone is isolated");
        put(&mut rig, &mut policed, "shut", shut.clone());
        assert_eq!([speak(&mut rig, 5), speak(&mut rig, 6)], [[PASSED; 3], [EGRESS; 3]]);
        // In audit it isolates nobody.
        put(&mut rig, &mut policed, "shut", in_audit(shut.clone()));
        assert_eq!(speak(&mut rig, 5), [EGRESS; 3]);
        put(&mut rig, &mut policed, "shut", shut);
        // Before it the admin tier is asked, by either side.
        put(&mut rig, &mut policed, "admin", admin("all", 1, with("five", Action::Deny), vec![]));
        assert_eq!(speak(&mut rig, 5), [INGRESS; 3]);
        put(&mut rig, &mut policed, "admin", admin("all", 1, vec![], with("five", Action::Deny)));
        assert_eq!(speak(&mut rig, 5), [EGRESS; 3]);
        put(&mut rig, &mut policed, "first", admin("five", 0, vec![], with("all", Action::Pass)));
        assert_eq!(speak(&mut rig, 5), [PASSED; 3]);
    }
}

#[test]
fn a_pods_running_flow_with_itself_learns_of_the_outer_tiers() {
    // P-031, P-110
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let ask = first(Protocol::Udp, (net.pod(0, 5), 700), (net.vip(5), 53));
        assert_eq!(from_pod(&mut rig, net, 0, &ask), PASSED);
        let deny = vec![of(vec![in_set("five")], everybody(Action::Deny))];
        put(&mut rig, &mut policed, "shut", policy("five", Some(vec![]), Some(vec![])));
        assert_eq!(from_pod(&mut rig, net, 0, &ask), PASSED);
        put(&mut rig, &mut policed, "base", baseline("five", 1, deny.clone(), deny.clone()));
        assert_eq!(from_pod(&mut rig, net, 0, &ask), PASSED);
        remove(&mut rig, &mut policed, "shut");
        assert_eq!(from_pod(&mut rig, net, 0, &ask), EGRESS);
        remove(&mut rig, &mut policed, "base");
        assert_eq!(from_pod(&mut rig, net, 0, &ask), PASSED);
        put(&mut rig, &mut policed, "admin", admin("five", 1, deny, vec![]));
        assert_eq!(from_pod(&mut rig, net, 0, &ask), INGRESS);
    }
}

#[test]
fn whoever_claims_a_pods_address_is_not_taken_for_it() {
    // T-064, P-047
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let six = of(vec![in_set("six")], everybody(Action::Accept));
        put(&mut rig, &mut policed, "six", policy("seven", Some(vec![six]), None));
        let claim = first(Protocol::Udp, (net.pod(0, 6), 5), (net.vip(7), 53));
        assert_eq!(from_pod(&mut rig, net, 1, &claim), "SpoofedSource");
        assert_eq!(from_client(&mut rig, &claim), INGRESS, "from the wire it is a client with that address");
        assert_eq!(from_pod(&mut rig, net, 0, &claim), PASSED);
    }
}

#[test]
fn a_pods_own_node_always_reaches_it() {
    // P-032
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        put(&mut rig, &mut policed, "deny", policy("all", Some(vec![]), None));
        let ask = |peer, number| first(Protocol::Tcp, (net.peer(peer), 5), (net.vip(number), 80));
        assert_eq!(from_pod(&mut rig, net, 1, &ask(1, 7)), PASSED);
        assert_eq!(from_pod(&mut rig, net, 1, &ask(1, 6)), INGRESS, "another's pod");
        assert_eq!(from_client(&mut rig, &ask(1, 7)), INGRESS, "not out of its tunnel");
    }
}

/// Opens a connection of client `n` to pod 5 and completes its handshake; the source port it was given.
fn connect(rig: &mut Rig, net: Net, from: End) -> u16 {
    let (vip, five) = ((net.vip(5), 80), (net.pod(0, 5), 8080));
    rig.rx_wan(&tcp(from, vip).syn(100));
    let (port, _) = rig.expect_overlay(net, 0, &tcp((net.source(), 0), five).syn(100).mss(crate::mss(net)).ttl(63));
    rig.rx_overlay(net, 0, &tcp(five, (net.source(), port)).syn_ack(500, 101));
    rig.expect_wan(&tcp(vip, from).syn_ack(500, 101).mss(crate::mss(net)).ttl(63));
    rig.rx_wan(&tcp(from, vip).ack(101, 501));
    rig.expect_overlay(net, 0, &tcp((net.source(), port), five).ack(101, 501).ttl(63));
    rig.moved();
    port
}

#[test]
fn a_change_stops_whom_it_denies_and_delays_nobody_else() {
    // P-031, P-035, P-048, T-048
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let (seven, nine) = ((net.client(7), 4000), (net.client(9), 4000));
        let (vip, five) = ((net.vip(5), 80), (net.pod(0, 5), 8080));
        let ports = [connect(&mut rig, net, seven), connect(&mut rig, net, nine)];
        // Another pod's stream, for which nothing of this is.
        let other = first(Protocol::Udp, client(net), (net.vip(6), 53));
        assert_eq!(from_client(&mut rig, &other), PASSED);
        let rule = of(vec![near(net.client(9), 32, 128, &[])], everybody(Action::Accept));
        put(&mut rig, &mut policed, "nine", policy("five", Some(vec![rule.clone()]), None));
        rig.rx_wan(&other);
        assert_eq!(rig.sent(LAN).len(), 1);
        rig.expect_counted(crate::HIT_OUT);
        // Both ways, packet after packet.
        for _ in 0..3 {
            assert_eq!(from_client(&mut rig, &tcp(seven, vip).ack(101, 501)), INGRESS);
            let back = tcp(five, (net.source(), ports[0])).ack(501, 101);
            assert_eq!(from_pod(&mut rig, net, 0, &back), INGRESS);
        }
        // The allowed one looks once, and goes on.
        rig.rx_wan(&tcp(nine, vip).ack(101, 501));
        rig.expect_overlay(net, 0, &tcp((net.source(), ports[1]), five).ack(101, 501).ttl(63));
        rig.expect_counted(&[
            ("received", 1),
            ("slow_walk", 1),
            ("flow_revalidated", 1),
            ("encapsulated", 1),
            ("sent", 1),
        ]);
        rig.rx_wan(&tcp(nine, vip).ack(101, 501));
        rig.expect_overlay(net, 0, &tcp((net.source(), ports[1]), five).ack(101, 501).ttl(63));
        rig.expect_counted(crate::HIT_OUT);
        // Policies about others, and pods that come and go, are nothing to it.
        put(&mut rig, &mut policed, "others", policy("seven", Some(vec![]), Some(vec![])));
        put(&mut rig, &mut policed, "more", set(&[106, 107]));
        put(&mut rig, &mut policed, "blog/new", pod(&[net.pod(1, 99)], 199, &[]));
        put(&mut rig, &mut policed, "all", set(&[105, 106, 107, 199]));
        rig.rx_wan(&tcp(nine, vip).ack(101, 501));
        rig.expect_overlay(net, 0, &tcp((net.source(), ports[1]), five).ack(101, 501).ttl(63));
        rig.expect_counted(crate::HIT_OUT);
        // Allowed again, the connection is where it was.
        put(&mut rig, &mut policed, "seven", policy("five", Some(vec![everybody(Action::Accept)]), None));
        rig.rx_wan(&tcp(seven, vip).ack(101, 501));
        rig.expect_overlay(net, 0, &tcp((net.source(), ports[0]), five).ack(101, 501).ttl(63));
        // P-035: from one policy that allows to another in one update, again and again.
        for flip in 0..50 {
            let names = if flip % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
            let rule = policy("five", Some(vec![rule.clone()]), None);
            rig.publish(|tables| {
                policed.change(tables, vec![(names[0], Kind::Policy, Some(rule)), (names[1], Kind::Policy, None)]);
            });
            if flip == 0 {
                remove(&mut rig, &mut policed, "nine");
                remove(&mut rig, &mut policed, "seven");
            }
            assert_eq!(from_client(&mut rig, &tcp(nine, vip).ack(101, 501)), PASSED);
            let back = tcp(five, (net.source(), ports[1])).ack(501, 101);
            assert_eq!(from_pod(&mut rig, net, 0, &back), PASSED);
            assert_eq!(from_client(&mut rig, &tcp(seven, vip).ack(101, 501)), INGRESS);
        }
    }
}

#[test]
fn a_change_of_either_pod_reaches_what_goes_on_between_them() {
    // T-048, P-031: identity, program of the source, membership in a set that rules name.
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let addresses = |number, peer| Net::BOTH.map(|net| net.pod(peer, number));
        let stream = first(Protocol::Udp, (net.pod(0, 6), 5), (net.vip(7), 53));
        let says = |rig: &mut Rig| from_pod(rig, net, 0, &stream);
        assert_eq!(says(&mut rig), PASSED);
        put(&mut rig, &mut policed, "from six", policy("six", None, Some(vec![])));
        assert_eq!(says(&mut rig), EGRESS);
        let to_friends = vec![of(vec![in_set("friends")], everybody(Action::Accept))];
        put(&mut rig, &mut policed, "from six", policy("six", None, Some(to_friends.clone())));
        assert_eq!(says(&mut rig), EGRESS);
        put(&mut rig, &mut policed, "friends", set(&[106, 107]));
        assert_eq!(says(&mut rig), PASSED);
        rig.rx_overlay(net, 0, &stream);
        assert_eq!(rig.sent(LAN).len(), 1);
        rig.expect_counted(&[("received", 1), ("flow_hit", 1), ("decapsulated", 1), ("encapsulated", 1), ("sent", 1)]);
        put(&mut rig, &mut policed, "to seven", policy("seven", Some(to_friends), None));
        assert_eq!(says(&mut rig), PASSED);
        // The source loses its label …
        put(&mut rig, &mut policed, "shop/six", pod(&addresses(6, 0), 0, &["out"]));
        assert_eq!(says(&mut rig), INGRESS);
        put(&mut rig, &mut policed, "shop/six", pod(&addresses(6, 0), 106, &["out"]));
        assert_eq!(says(&mut rig), PASSED);
        // … leaves the set …
        put(&mut rig, &mut policed, "friends", set(&[107]));
        assert_eq!(says(&mut rig), INGRESS);
        put(&mut rig, &mut policed, "friends", set(&[106, 107]));
        assert_eq!(says(&mut rig), PASSED);
        // … and the destination is another to whom the source may not speak.
        put(&mut rig, &mut policed, "blog/seven", pod(&addresses(7, 1), 108, &["out"]));
        assert_eq!(says(&mut rig), EGRESS);
        rig.publish(|tables| policed.remove(tables, Kind::Pod, "blog/seven"));
        assert_eq!(says(&mut rig), EGRESS, "P-034: nobody the rule names");
        put(&mut rig, &mut policed, "other/pod", pod(&addresses(7, 1), 107, &[]));
        assert_eq!(says(&mut rig), PASSED, "the address is another pod's now");
    }
}

#[test]
fn an_address_that_changes_hands_in_one_update_is_policed_for_who_has_it() {
    for net in Net::BOTH {
        for (from, to) in [("shop/five", "shop/a"), ("shop/five", "shop/z")] {
            let (mut rig, mut policed) = town();
            put(&mut rig, &mut policed, "deny", policy("six", Some(vec![]), None));
            let stream = first(Protocol::Udp, client(net), (net.vip(5), 53));
            assert_eq!(from_client(&mut rig, &stream), PASSED);
            let new = pod(&Net::BOTH.map(|net| net.pod(0, 5)), 106, &[]);
            // In the order of names, as updates are.
            let mut changes = vec![(from, Kind::Pod, None), (to, Kind::Pod, Some(new))];
            changes.sort_by_key(|(name, ..)| *name);
            rig.publish(|tables| policed.change(tables, changes));
            assert_eq!(from_client(&mut rig, &stream), INGRESS, "{to}");
        }
    }
}

#[test]
fn flows_to_the_outside_stop_too_and_the_sweep_forgets_no_denial() {
    // P-031, N-101
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let stream = |number| first(Protocol::Udp, (net.pod(0, number), 9), (net.client(9), 53));
        assert_eq!([5, 6].map(|number| from_pod(&mut rig, net, 0, &stream(number))), [PASSED; 2]);
        put(&mut rig, &mut policed, "deny", policy("five", None, Some(vec![])));
        // A lap of the sweep looks at every flow.
        for _ in 0..8 {
            rig.now_ns += 1_000_000_000;
            rig.turn();
        }
        assert_eq!([5, 6].map(|number| from_pod(&mut rig, net, 0, &stream(number))), [EGRESS, PASSED]);
        remove(&mut rig, &mut policed, "deny");
        assert_eq!(from_pod(&mut rig, net, 0, &stream(5)), PASSED);
    }
}

#[test]
fn whoever_comes_in_by_an_external_address_is_a_client_of_the_pod() {
    // P-041, N-009
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let nat = StaticNat { external: external(net, 2), internal: net.pod(0, 6), ports: vec![] };
        put(&mut rig, &mut policed, "one", Body::StaticNat(nat));
        let mut from = fresh(net, 9);
        let ask = |from| first(Protocol::Tcp, from, (external(net, 2), 8080));
        assert_eq!(from_client(&mut rig, &ask(from())), PASSED);
        let rule = of(vec![near(net.client(7), 32, 128, &[])], everybody(Action::Accept));
        put(&mut rig, &mut policed, "seven", policy("all", Some(vec![rule]), None));
        assert_eq!(from_client(&mut rig, &ask(from())), INGRESS);
        assert_eq!(from_client(&mut rig, &ask(client(net))), PASSED);
        // To a mapping: from whom the pod has sent to, but not what it asked for.
        let five = (net.pod(0, 5), 9);
        rig.rx_overlay(net, 0, &first(Protocol::Udp, five, (net.client(9), 53)));
        let frame = rig.sent_one(WAN);
        let header = if net == Net::BOTH[0] { 34 } else { 54 };
        let port = u16::from_be_bytes([frame[header], frame[header + 1]]);
        rig.moved();
        let back = |from: End| udp(from, (external(net, 1), port)).data(*b"me");
        assert_eq!(from_client(&mut rig, &back((net.client(9), 53))), PASSED, "P-030");
        assert_eq!(from_client(&mut rig, &back((net.client(9), 54))), INGRESS);
    }
}

#[test]
fn errors_about_what_passed_pass() {
    // P-026
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let from = (net.client(9), 4000);
        let rule = at(Protocol::Tcp, 8080, 8080, of(vec![near(from.0, 32, 128, &[])], everybody(Action::Accept)));
        put(&mut rig, &mut policed, "nine", policy("five", Some(vec![rule]), Some(vec![])));
        let port = connect(&mut rig, net, from);
        let seen = tcp((net.vip(5), 80), from).ack(501, 101);
        let error = trouble(net.client(99), net.vip(5), Trouble::TooBig(1300), &seen.packet());
        assert_eq!(from_client(&mut rig, &error), PASSED);
        let seen = tcp((net.source(), port), (net.pod(0, 5), 8080)).ack(101, 501);
        let error = trouble(net.pod(0, 5), net.source(), Trouble::Port, &seen.packet());
        assert_eq!(from_pod(&mut rig, net, 0, &error), PASSED);
    }
}

#[test]
fn a_node_is_spared_only_what_all_of_its_pods_would_refuse() {
    // Design 6
    for net in Net::BOTH {
        let (mut tables, mut policed) = (rig::tables(), Policed::default());
        for (number, peer, identity, name, alone) in PODS {
            policed.put(&mut tables, alone, set(&[identity]));
            policed.put(&mut tables, name, pod(&Net::BOTH.map(|net| net.pod(peer, number)), identity, &[]));
        }
        let backends = PODS.map(|(number, peer, ..)| catalog::pod(net, peer, number, 1, 1)).to_vec();
        policed.put(&mut tables, "shop/all", Body::Service(catalog::service(net.vip(1), Protocol::Tcp, 80, backends)));
        rig::deliver_to_nodes(&mut tables, 0, &[(0, 1), (1, 1)]);
        let mut rig = Rig::new(tables).unwrap();
        let vip = (net.vip(1), 80);
        let pinned = client(net);
        let mut from = fresh(net, 7);
        assert_eq!(from_client(&mut rig, &tcp(pinned, vip).syn(1)), PASSED);
        for name in ["five", "six"] {
            put(&mut rig, &mut policed, name, policy(name, Some(vec![]), None));
            assert_eq!(from_client(&mut rig, &tcp(from(), vip).syn(1)), PASSED, "one is left");
            assert_eq!(from_client(&mut rig, &tcp(pinned, vip).ack(2, 2)), PASSED);
        }
        put(&mut rig, &mut policed, "seven", policy("seven", Some(vec![]), None));
        assert_eq!(from_client(&mut rig, &tcp(from(), vip).syn(1)), INGRESS);
        assert_eq!(from_client(&mut rig, &tcp(from(), vip).ack(1, 1)), INGRESS);
        assert_eq!(from_client(&mut rig, &tcp(pinned, vip).ack(2, 2)), INGRESS, "P-031");
        remove(&mut rig, &mut policed, "six");
        assert_eq!(from_client(&mut rig, &tcp(pinned, vip).ack(2, 2)), PASSED);
        // Whoever has an endpoint that is no pod's, or one that nobody knows, is left to the node (P-034, P-044).
        put(&mut rig, &mut policed, "six", policy("six", Some(vec![]), None));
        assert_eq!(from_client(&mut rig, &tcp(from(), vip).syn(1)), INGRESS);
        rig.publish(|tables| policed.remove(tables, Kind::Pod, "shop/five"));
        assert_eq!(from_client(&mut rig, &tcp(from(), vip).syn(1)), PASSED);
    }
}

#[test]
fn rules_count_what_they_decide() {
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let other = of(vec![near(net.client(5000), 32, 128, &[])], everybody(Action::Accept));
        let nine = of(vec![near(net.client(9), 32, 128, &[])], everybody(Action::Accept));
        put(&mut rig, &mut policed, "nine", policy("five", Some(vec![other, nine]), None));
        let vip = (net.vip(5), 80);
        let from = connect(&mut rig, net, (net.client(9), 4000));
        for _ in 0..5 {
            assert_eq!(from_client(&mut rig, &tcp((net.client(9), 4000), vip).ack(101, 501)), PASSED);
            assert_eq!(from_client(&mut rig, &tcp(client(net), vip).syn(1)), INGRESS);
        }
        let _ = from;
        let told = |rig: &Rig, direction, rule| {
            let key = ruling_key("nine", direction, rule);
            let all = rig.worker.state().rulings.all();
            all.filter(|ruling| ruling.key == key).map(|ruling| (ruling.allowed, ruling.denied)).next()
        };
        assert_eq!(told(&rig, Direction::Ingress, Some(0)), None);
        assert_eq!(told(&rig, Direction::Ingress, Some(1)), Some((1, 0)), "flows that began");
        assert_eq!(told(&rig, Direction::Ingress, None), Some((0, 5)), "packets that were stopped");
        assert_eq!(told(&rig, Direction::Egress, None), None);
    }
}

/// A policy in audit decides nothing; what all would deny and those in force do not is counted, once for a flow.
#[test]
fn what_is_in_audit_stops_nobody_and_counts_what_it_would() {
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let ruling = |rig: &Rig, name: &str, direction| {
            let key = ruling_key(name, direction, None);
            rig.worker.state().rulings.all().find(|ruling| ruling.key == key).unwrap_or_default()
        };
        let denied = |rig: &Rig, name: &str, direction| {
            let ruling = ruling(rig, name, direction);
            assert_eq!(ruling.denied, 0, "nothing is");
            ruling.would_deny
        };
        let only = |n| Some(vec![of(vec![near(net.client(n), 32, 128, &[])], everybody(Action::Accept))]);
        put(&mut rig, &mut policed, "deny", in_audit(policy("five", Some(vec![]), Some(vec![]))));
        assert_eq!(reached(&mut rig, net, 5, 0), [[PASSED; 3]; 2]);
        assert_eq!(denied(&rig, "deny", Direction::Ingress), 6);
        assert_eq!(reached(&mut rig, net, 5, 0), [[PASSED; 3]; 2]);
        assert_eq!(denied(&rig, "deny", Direction::Ingress), 6, "their flows are there");
        // An exception in audit is one.
        put(&mut rig, &mut policed, "exception", in_audit(policy("five", only(9), None)));
        assert_eq!(reached(&mut rig, net, 5, 1), [[PASSED; 3]; 2]);
        assert_eq!(denied(&rig, "deny", Direction::Ingress), 9, "the other client's");
        // What is denied anyway is not counted.
        put(&mut rig, &mut policed, "real", policy("five", only(7), None));
        assert_eq!(reached(&mut rig, net, 5, 2), [[PASSED; 3], [INGRESS; 3]]);
        assert_eq!(denied(&rig, "deny", Direction::Ingress), 9, "one in force lets the client in");
        // The other direction.
        let out = udp((net.pod(0, 5), 7000), (net.client(3), 53)).data(*b"?");
        assert_eq!(from_pod(&mut rig, net, 0, &out), PASSED);
        assert_eq!(denied(&rig, "deny", Direction::Egress), 1);
        // In force, it denies.
        put(&mut rig, &mut policed, "deny", policy("five", Some(vec![]), Some(vec![])));
        assert_eq!(from_pod(&mut rig, net, 0, &out), EGRESS);
        let of_both = ruling(&rig, "deny", Direction::Egress);
        assert_eq!((of_both.denied, of_both.would_deny), (1, 1), "apart from what it would have");
        put(&mut rig, &mut policed, "deny", in_audit(policy("five", Some(vec![]), Some(vec![]))));
        let again = udp((net.pod(0, 5), 7001), (net.client(3), 53)).data(*b"?");
        assert_eq!(from_pod(&mut rig, net, 0, &again), PASSED);
        let of_both = ruling(&rig, "deny", Direction::Egress);
        assert_eq!((of_both.denied, of_both.would_deny), (1, 2));
    }
}

#[test]
fn a_snapshot_is_shared_until_policies_change() {
    let (mut rig, mut policed) = town();
    let before = Arc::clone(&rig.publisher.current().policy);
    put(&mut rig, &mut policed, "shop/more", service(8, 0));
    assert!(Arc::ptr_eq(&before, &rig.publisher.current().policy));
    let digest = before.rules.digest();
    put(&mut rig, &mut policed, "deny", policy("five", Some(vec![]), None));
    assert_ne!(rig.publisher.current().policy.rules.digest(), digest);
    remove(&mut rig, &mut policed, "deny");
    assert_eq!(rig.publisher.current().policy.rules.digest(), digest);
}

/// A gateway that has dropped for every reason that policies have.
pub fn refusals(net: Net) -> Rig {
    let (mut rig, mut policed) = town();
    put(&mut rig, &mut policed, "deny", policy("five", Some(vec![]), Some(vec![])));
    rig.rx_wan(&first(Protocol::Tcp, client(net), (net.vip(5), 80)));
    rig.rx_overlay(net, 0, &first(Protocol::Tcp, (net.pod(0, 5), 1), (net.vip(6), 80)));
    rig
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn one_of<T: Clone>(&mut self, these: &[T]) -> T {
        these[self.below(these.len() as u64) as usize].clone()
    }

    fn rule(&mut self, net: Net, action: Action) -> tidegate_api::resource::PolicyRule {
        let peers = [
            in_set("five"),
            in_set("friends"),
            in_set("nobody knows"),
            near(net.client(7), 32, 128, &[]),
            near(net.client(7), 0, 0, &[net.client(9), net.pod(0, 6)]),
            near(net.pod(0, 6), 24, 64, &[net.pod(0, 5)]),
        ];
        let mut rule = everybody(action);
        if self.below(4) > 0 {
            rule = of((0..self.below(3)).map(|_| self.one_of(&peers)).collect(), rule);
        }
        let (protocol, port, pod_port) = self.one_of(&PORTS);
        match self.below(4) {
            0 => at(protocol, pod_port, pod_port, rule),
            1 => at(protocol, port, 6000, rule),
            _ => rule,
        }
    }

    /// A policy of any kind, or that there is none.
    fn policy(&mut self, net: Net) -> Option<Body> {
        let subjects = self.one_of(&["five", "six", "seven", "all", "friends"]);
        let actions = [Action::Accept, Action::Deny, Action::Pass];
        match self.below(5) {
            0 => None,
            1 => {
                let mut rules = |_| (0..self.below(3)).map(|_| self.any_rule(net, &actions)).collect::<Vec<_>>();
                let [ingress, egress] = [0, 1].map(&mut rules);
                let outer = self.one_of(&[admin, baseline]);
                Some(outer(subjects, 3, ingress, egress))
            }
            _ => {
                let mut rules = |_| {
                    let count = self.below(3);
                    (self.below(3) > 0).then(|| (0..count).map(|_| self.rule(net, Action::Accept)).collect::<Vec<_>>())
                };
                let [ingress, egress] = [0, 1].map(&mut rules);
                Some(policy(subjects, ingress, egress))
            }
        }
    }

    fn any_rule(&mut self, net: Net, actions: &[Action]) -> tidegate_api::resource::PolicyRule {
        let action = self.one_of(actions);
        self.rule(net, action)
    }
}

/// One stream: from outside or a pod of a peer, to a Service's pod or the outside.
#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The pod that sends, if one does.
    from_pod: Option<(u8, u8)>,
    from: End,
    to: End,
    protocol: Protocol,
    /// Where it goes after translation.
    led_to: End,
}

fn streams(net: Net) -> Vec<Stream> {
    let clients = [7, 9].map(|n| (None, (net.client(n), 5000)));
    let pods = PODS.map(|(number, peer, ..)| (Some((number, peer)), (net.pod(peer, number), 5000)));
    let mut streams = Vec::new();
    for (from_pod, from) in clients.into_iter().chain(pods) {
        for (protocol, port, pod_port) in PORTS {
            let to_pods = PODS.map(|(number, peer, ..)| ((net.vip(number), port), (net.pod(peer, number), pod_port)));
            let outside =
                from_pod.filter(|_| protocol != Protocol::Sctp).map(|_| ((net.client(7), port), (net.client(7), port)));
            streams.extend(to_pods.into_iter().chain(outside).map(|(to, led_to)| Stream {
                from_pod,
                from,
                to,
                protocol,
                led_to,
            }));
        }
    }
    streams
}

/// What the rules alone say of a stream.
fn expected(tables: &Tables, stream: &Stream) -> &'static str {
    let identity = |address| tables.pods.pod(&rig::mapped(address)).map_or(0, |row| row.identity);
    let is_itself = stream.from_pod.is_some() && stream.from.0 == stream.led_to.0;
    if is_itself && stream.to.0 == stream.led_to.0 {
        return PASSED;
    }
    let source = stream.from_pod.map_or(0, |_| identity(stream.from.0));
    let destination = identity(stream.led_to.0);
    let ask = |direction, subject, peer, peer_address| {
        let (protocol, port) = (stream.protocol.number(), stream.led_to.1);
        let query = Query { direction, subject, peer, peer_address, protocol, port, is_itself };
        tables.policy.rules.lookup(&query).allow
    };
    match () {
        _ if !ask(Direction::Egress, source, destination, stream.led_to.0) => EGRESS,
        _ if !ask(Direction::Ingress, destination, source, stream.from.0) => INGRESS,
        _ => PASSED,
    }
}

/// Whatever changes, every packet of every stream, new or going on, meets what the rules of that moment say, whichever
/// worker it came to (P-031, P-035, P-048).
fn packets_do_what_rules_say(net: Net, workers: u16, seed: u64) -> u64 {
    let (rig, mut policed) = town();
    let tables = rig.publisher.current().clone();
    let plan = Plan { seed, nic: seed.is_multiple_of(2), ..Plan::of(workers) };
    let (mut fleet, mut random) = (Fleet::with(tables, plan).unwrap(), Random(seed));
    let streams = streams(net);
    let mut denied = 0;
    for round in 0..14 {
        let name = random.one_of(&["a", "b", "c", "d"]);
        let change = match random.below(6) {
            0 => ("friends", Kind::IdentitySet, Some(set(random.one_of(&[&[][..], &[105], &[106, 107], &[105, 107]])))),
            1 => {
                let (number, peer, identity, name, _) = random.one_of(&PODS);
                let identity = random.one_of(&[0, identity, identity, 105]);
                (name, Kind::Pod, Some(pod(&Net::BOTH.map(|net| net.pod(peer, number)), identity, &["out"])))
            }
            _ => (name, Kind::Policy, random.policy(net)),
        };
        fleet.publish(|tables| policed.change(tables, vec![change.clone()]));
        // Some streams rest over several changes.
        for stream in &streams {
            if random.below(3) == 0 {
                continue;
            }
            let packet = first(stream.protocol, stream.from, stream.to);
            let queue = random.below(workers.into()) as usize;
            let before: Vec<u64> = [INGRESS, EGRESS].map(|reason| counted(&fleet, reason)).to_vec();
            match stream.from_pod {
                None => fleet.rx_wan(queue, &packet),
                Some((_, peer)) => fleet.rx_overlay(queue, net, peer, &packet),
            }
            let sent = fleet.sent(WAN).len() + fleet.sent(LAN).len();
            let after: Vec<u64> = [INGRESS, EGRESS].map(|reason| counted(&fleet, reason)).to_vec();
            let fate = match (sent, after[0] - before[0], after[1] - before[1]) {
                (1, 0, 0) => PASSED,
                (0, 1, 0) => INGRESS,
                (0, 0, 1) => EGRESS,
                other => panic!("{other:?} {stream:?}\n{}", fleet.told()),
            };
            let expected = expected(fleet.publisher.current(), stream);
            assert_eq!(fate, expected, "round {round} after {change:?}: {stream:?}\n{}", fleet.told());
            denied += u64::from(fate != PASSED);
        }
    }
    fleet.expect_balance();
    fleet.expect_all_frames_home();
    denied
}

fn counted(fleet: &Fleet, reason: &str) -> u64 {
    fleet.counted().get(reason).copied().unwrap_or(0)
}

#[test]
fn every_packet_meets_the_rules_of_its_moment() {
    let seeds = match std::env::var("TIDEGATE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 1..25u64,
    };
    let mut denied = 0;
    for seed in seeds {
        for (net, workers) in Net::BOTH.into_iter().flat_map(|net| [(net, 1), (net, 2)]) {
            println!("seed {seed}, {workers} workers, {net:?}");
            denied += packets_do_what_rules_say(net, workers, seed);
        }
    }
    assert!(denied > 100, "{denied}");
}
