//! Gateway policies: which clients may reach which Services, in order, with limits and in audit, before translation.

use std::sync::Arc;

use tidegate_api::resource::{
    Body, DeliveryMode, FrontPort, GatewayAction, GatewayRule, Kind, PolicyOptions, Protocol, Service, ServicePort,
    SourceLimits, UnknownPod,
};
use tidegate_dataplane::rig::catalog;
use tidegate_dataplane::rig::fleet::Fleet;
use tidegate_dataplane::rig::policed::{Policed, anyone, audited, clients, gateway, pod, policy, set};
use tidegate_dataplane::rig::sketch::{End, Sketch, ping, pong, sctp, tcp, udp};
use tidegate_dataplane::rig::{self, LAN, Net, Rig, WAN};
use tidegate_dataplane::state::ruling::Ruling;
use tidegate_dataplane::table::policy::gate_ruling_key;

const PASSED: &str = "passed";
const DENIED: &str = "GatewayPolicyDenied";
const LIMITED: &str = "GatewayPolicyLimited";

const SECOND_NS: u64 = 1_000_000_000;

/// Ports of every Service, with the pods' own.
const PORTS: [(Protocol, u16, u16); 3] =
    [(Protocol::Tcp, 80, 8080), (Protocol::Udp, 53, 5353), (Protocol::Sctp, 3868, 9868)];

fn service(number: u8) -> Service {
    let port = |(protocol, port, pod_port)| {
        let backend = |net| tidegate_api::resource::Backend { port: pod_port, ..catalog::pod(net, 0, number, 1, 1) };
        ServicePort { protocol, port, backends: Net::BOTH.map(backend).to_vec(), ..ServicePort::default() }
    };
    Service {
        uid: format!("uid-{number}"),
        addresses: Net::BOTH.map(|net| net.vip(number)).to_vec(),
        ports: PORTS.map(port).to_vec(),
        ..Service::default()
    }
}

/// `shop/five` and `blog/six` at the VIPs of their numbers, each with the pod of that number; `shop/none` at VIP 9 with no
/// endpoint.
fn town() -> (Rig, Policed) {
    let (mut tables, mut policed) = (rig::tables(), Policed::default());
    policed.put(&mut tables, "shop/five", Body::Service(service(5)));
    policed.put(&mut tables, "blog/six", Body::Service(service(6)));
    let mut none = service(9);
    none.ports.iter_mut().for_each(|port| port.backends.clear());
    policed.put(&mut tables, "shop/none", Body::Service(none));
    (Rig::new(tables).unwrap(), policed)
}

fn put(rig: &mut Rig, policed: &mut Policed, name: &str, body: Body) {
    rig.publish(|tables| policed.put(tables, name, body));
}

fn remove(rig: &mut Rig, policed: &mut Policed, name: &str) {
    rig.publish(|tables| policed.remove(tables, Kind::GatewayPolicy, name));
}

/// The first packet of a flow.
fn first(protocol: Protocol, from: End, to: End) -> Sketch {
    match protocol {
        Protocol::Tcp => tcp(from, to).syn(100),
        Protocol::Udp => udp(from, to).data(*b"who?"),
        Protocol::Sctp => sctp(from, to).init(1, 9),
    }
}

/// What became of the packet that the last turn saw: [`PASSED`], or why not.
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

fn send(rig: &mut Rig, packet: &Sketch) -> &'static str {
    rig.rx_wan(packet);
    fate(rig)
}

/// What client `n` is told by each port of the Service at VIP `number`.
fn reached(rig: &mut Rig, net: Net, n: u16, number: u8, salt: u16) -> [&'static str; 3] {
    PORTS.map(|(protocol, port, _)| send(rig, &first(protocol, (net.client(n), 2000 + salt), (net.vip(number), port))))
}

fn both(n: u16) -> Vec<std::net::IpAddr> {
    Net::BOTH.map(|net| net.client(n)).to_vec()
}

fn at(protocol: Protocol, first: u16, last: u16, rule: GatewayRule) -> GatewayRule {
    GatewayRule { ports: Some(vec![FrontPort { protocol, first, last }]), ..rule }
}

fn to(services: &[&str], rule: GatewayRule) -> GatewayRule {
    GatewayRule { services: Some(services.iter().map(|name| (*name).to_owned()).collect()), ..rule }
}

fn limit(rate_per_s: Option<u32>, burst: u32, half_open_max: Option<u16>) -> GatewayAction {
    GatewayAction::Limit(SourceLimits { rate_per_s, burst, half_open_max, bits_v4: 32, bits_v6: 64 })
}

/// What rule `rule` of policy `name` has done.
fn ruling(rig: &Rig, name: &str, rule: u16) -> Ruling {
    let key = gate_ruling_key(name, rule);
    let mut all = rig.worker.state().rulings.all();
    all.find(|ruling| ruling.key == key).unwrap_or_default()
}

/// Flows that it has let begin, and packets that it has stopped, in force.
fn counted(rig: &Rig, name: &str, rule: u16) -> (u64, u64) {
    let ruling = ruling(rig, name, rule);
    assert_eq!(ruling.would_deny, 0);
    (ruling.allowed, ruling.denied)
}

/// Flows that it has let begin, and flows that it would have stopped, in audit.
fn counted_in_audit(rig: &Rig, name: &str, rule: u16) -> (u64, u64) {
    let ruling = ruling(rig, name, rule);
    assert_eq!(ruling.denied, 0);
    (ruling.allowed, ruling.would_deny)
}

#[test]
fn the_first_rule_that_matches_decides_in_the_order_of_policies() {
    // P-120
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        assert_eq!(reached(&mut rig, net, 7, 5, 0), [PASSED; 3]);
        put(&mut rig, &mut policed, "closed", gateway(100, vec![anyone(GatewayAction::Deny)]));
        assert_eq!(reached(&mut rig, net, 7, 5, 1), [DENIED; 3]);
        let office = vec![clients(GatewayAction::Deny, &both(9)), clients(GatewayAction::Allow, &both(7))];
        put(&mut rig, &mut policed, "office", gateway(50, office.clone()));
        assert_eq!([7, 8, 9].map(|n| reached(&mut rig, net, n, 5, 2)[0]), [PASSED, DENIED, DENIED]);
        // Of equal orders the name decides, and a later one says nothing any more.
        put(&mut rig, &mut policed, "office", gateway(100, office.clone()));
        assert_eq!(reached(&mut rig, net, 7, 5, 3), [DENIED; 3]);
        put(&mut rig, &mut policed, "a", gateway(100, vec![clients(GatewayAction::Allow, &both(9))]));
        assert_eq!([7, 9].map(|n| reached(&mut rig, net, n, 5, 4)[1]), [DENIED, PASSED]);
        remove(&mut rig, &mut policed, "closed");
        assert_eq!([7, 8, 9].map(|n| reached(&mut rig, net, n, 6, 5)[2]), [PASSED; 3]);
        assert_eq!(counted(&rig, "office", 1), (6, 0));
        remove(&mut rig, &mut policed, "a");
        remove(&mut rig, &mut policed, "office");
        assert_eq!(reached(&mut rig, net, 9, 5, 6), [PASSED; 3]);
        assert!(!rig.publisher.current().services.any_gate());
    }
}

#[test]
fn rules_speak_of_services_and_their_own_ports() {
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        put(&mut rig, &mut policed, "shop", gateway(1, vec![to(&["shop/five"], anyone(GatewayAction::Deny))]));
        assert_eq!([5, 6].map(|number| reached(&mut rig, net, 7, number, 0)), [[DENIED; 3], [PASSED; 3]]);
        let table = [
            (Protocol::Tcp, 8080, 8080, [PASSED; 3]),
            (Protocol::Tcp, 80, 80, [DENIED, PASSED, PASSED]),
            (Protocol::Tcp, 0, 79, [PASSED; 3]),
            (Protocol::Udp, 0, u16::MAX, [PASSED, DENIED, PASSED]),
            (Protocol::Sctp, 3868, 4000, [PASSED, PASSED, DENIED]),
        ];
        for (salt, (protocol, first, last, expected)) in (1..).zip(table) {
            let rule = at(protocol, first, last, anyone(GatewayAction::Deny));
            put(&mut rig, &mut policed, "shop", gateway(1, vec![to(&["blog/six"], rule)]));
            assert_eq!(reached(&mut rig, net, 7, 6, salt), expected, "{protocol:?} {first}-{last}");
            assert_eq!(reached(&mut rig, net, 7, 5, salt), [PASSED; 3]);
        }
        // A Service that comes, and one that changes, is found by the rule that is there.
        put(&mut rig, &mut policed, "shop", gateway(1, vec![to(&["new/one"], anyone(GatewayAction::Deny))]));
        put(&mut rig, &mut policed, "new/one", Body::Service(service(8)));
        assert_eq!(reached(&mut rig, net, 7, 8, 9), [DENIED; 3]);
        let mut more = service(8);
        more.ports[0].port = 81;
        put(&mut rig, &mut policed, "new/one", Body::Service(more));
        assert_eq!(send(&mut rig, &tcp((net.client(7), 9), (net.vip(8), 81)).syn(1)), DENIED);
        // Nobody, nowhere.
        let nobody = GatewayRule { clients: Some(vec![]), ..anyone(GatewayAction::Deny) };
        let nowhere = GatewayRule { ports: Some(vec![]), ..anyone(GatewayAction::Deny) };
        put(&mut rig, &mut policed, "shop", gateway(1, vec![nobody, nowhere, to(&[], anyone(GatewayAction::Deny))]));
        assert_eq!(reached(&mut rig, net, 7, 8, 10)[1], PASSED);
    }
}

#[test]
fn who_may_not_come_hears_nothing_and_leaves_nothing() {
    // S-073: not even whether anybody is there.
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        assert_eq!(reached(&mut rig, net, 7, 9, 0), [PASSED; 3], "refusals are sent");
        put(&mut rig, &mut policed, "closed", gateway(1, vec![clients(GatewayAction::Deny, &both(7))]));
        assert_eq!(reached(&mut rig, net, 7, 9, 1), [DENIED; 3]);
        assert_eq!(reached(&mut rig, net, 8, 9, 2), [PASSED; 3]);
        rig.rx_wan(&tcp((net.client(7), 5), (net.vip(5), 80)).syn(100));
        rig.expect_silence();
        rig.expect_counted(&crate::walked(DENIED));
        // A segment without a flow is denied as what it would belong to.
        assert_eq!(send(&mut rig, &tcp((net.client(7), 5), (net.vip(5), 80)).ack(1, 1)), DENIED);
        assert_eq!(send(&mut rig, &tcp((net.client(8), 5), (net.vip(5), 80)).ack(1, 1)), "OrphanSegment");
        assert_eq!(send(&mut rig, &tcp((net.client(7), 5), (net.vip(5), 7)).syn(1)), "NoFrontend");
        assert_eq!(rig.worker.state().live(), 0);
        rig.expect_all_frames_home();
    }
}

#[test]
fn rules_for_everything_are_about_echo_too() {
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let echo = |rig: &mut Rig, n| send(rig, &ping(net.client(n), net.vip(5)));
        put(
            &mut rig,
            &mut policed,
            "tcp",
            gateway(1, vec![at(Protocol::Tcp, 0, u16::MAX, anyone(GatewayAction::Deny))]),
        );
        put(&mut rig, &mut policed, "shop", gateway(1, vec![to(&["shop/five"], anyone(GatewayAction::Deny))]));
        assert_eq!(echo(&mut rig, 7), PASSED);
        put(&mut rig, &mut policed, "seven", gateway(1, vec![clients(GatewayAction::Deny, &both(7))]));
        assert_eq!([7, 8].map(|n| echo(&mut rig, n)), [DENIED, PASSED]);
        assert_eq!(counted(&rig, "seven", 0), (0, 1));
        remove(&mut rig, &mut policed, "seven");
        rig.rx_wan(&ping(net.client(7), net.vip(5)));
        rig.expect_wan(&pong(net.vip(5), net.client(7)));
    }
}

#[test]
fn a_change_stops_what_goes_on_and_nothing_else() {
    // P-031, P-048
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let from = (net.client(7), 40_000);
        for (number, (protocol, port)) in
            [5, 6].into_iter().flat_map(|number| [(Protocol::Tcp, 80), (Protocol::Udp, 53)].map(|of| (number, of)))
        {
            assert_eq!(send(&mut rig, &first(protocol, from, (net.vip(number), port))), PASSED);
        }
        put(
            &mut rig,
            &mut policed,
            "shop",
            gateway(1, vec![to(&["shop/five"], clients(GatewayAction::Deny, &both(7)))]),
        );
        let say = |rig: &mut Rig, number| send(rig, &first(Protocol::Udp, from, (net.vip(number), 53)));
        assert_eq!([5, 6].map(|number| say(&mut rig, number)), [DENIED, PASSED]);
        let syn = |rig: &mut Rig, number| send(rig, &first(Protocol::Tcp, from, (net.vip(number), 80)));
        assert_eq!([5, 6].map(|number| syn(&mut rig, number)), [DENIED, PASSED]);
        // Answers of what is denied stop as well, and all goes on where it was.
        put(
            &mut rig,
            &mut policed,
            "shop",
            gateway(1, vec![to(&["shop/five"], clients(GatewayAction::Deny, &both(8)))]),
        );
        assert_eq!([5, 6].map(|number| say(&mut rig, number)), [PASSED; 2]);
        assert_eq!([5, 6].map(|number| syn(&mut rig, number)), [PASSED; 2]);
        assert_eq!(rig.worker.state().live(), 4);
        // Who is not concerned has not looked again.
        rig.moved();
        put(&mut rig, &mut policed, "shop", gateway(1, vec![to(&["shop/five"], anyone(GatewayAction::Allow))]));
        rig.rx_wan(&first(Protocol::Udp, from, (net.vip(6), 53)));
        rig.sent_one(LAN);
        assert_eq!(rig.moved().get("slow_walk"), None);
        // Sticky: what has been let begin stays.
        rig.publish(|tables| tables.settings.policy = PolicyOptions { sticky: true, ..PolicyOptions::default() });
        put(&mut rig, &mut policed, "shop", gateway(1, vec![anyone(GatewayAction::Deny)]));
        assert_eq!([5, 6].map(|number| say(&mut rig, number)), [PASSED; 2]);
        assert_eq!(reached(&mut rig, net, 9, 5, 1), [DENIED; 3], "new ones are asked");
    }
}

#[test]
fn a_source_begins_no_more_than_it_may() {
    for net in Net::BOTH {
        for (protocol, port, _) in PORTS {
            let (mut rig, mut policed) = town();
            let rule = to(&["shop/five"], anyone(limit(Some(10), 3, None)));
            put(&mut rig, &mut policed, "slow", gateway(1, vec![rule]));
            let mut from_port = 1000;
            let mut begin = |rig: &mut Rig, n| {
                from_port += 1;
                send(rig, &first(protocol, (net.client(n), from_port), (net.vip(5), port)))
            };
            let told = [7; 5].map(|n| begin(&mut rig, n));
            assert_eq!(told, [PASSED, PASSED, PASSED, LIMITED, LIMITED]);
            assert_eq!(counted(&rig, "slow", 0), (3, 2));
            // Another address of an IPv6 link is the same source, another IPv4 address is not.
            let expected = if net == Net::BOTH[0] { PASSED } else { LIMITED };
            assert_eq!(begin(&mut rig, 8), expected);
            rig.now_ns += SECOND_NS / 10;
            assert_eq!([7, 7].map(|n| begin(&mut rig, n)), [PASSED, LIMITED]);
            // What goes on costs nothing, and who was refused has left nothing.
            let going = (net.client(7), 1001);
            assert_eq!([0; 5].map(|_| send(&mut rig, &first(protocol, going, (net.vip(5), port)))), [PASSED; 5]);
            rig.now_ns += 60 * SECOND_NS;
            let told = [7; 4].map(|n| begin(&mut rig, n));
            assert_eq!(told, [PASSED, PASSED, PASSED, LIMITED], "never more than the burst");
        }
    }
}

#[test]
fn unfinished_handshakes_are_counted_until_the_client_answers() {
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        put(&mut rig, &mut policed, "open", gateway(1, vec![anyone(limit(None, 1, Some(2)))]));
        let vip = (net.vip(5), 80);
        let client = |port| (net.client(7), port);
        let syn = |rig: &mut Rig, port| send(rig, &tcp(client(port), vip).syn(100));
        rig.rx_wan(&tcp(client(1), vip).syn(100));
        let pod = (net.pod(0, 5), 8080);
        let sent = tcp((net.source(), 0), pod).syn(100).mss(crate::mss(net)).ttl(63);
        let (source_port, _) = rig.expect_overlay(net, 0, &sent);
        assert_eq!([2, 3, 4].map(|port| syn(&mut rig, port)), [PASSED, LIMITED, LIMITED]);
        assert_eq!(rig.worker.state().live(), 2);
        // The pod's answer finishes nothing, the client's does.
        rig.rx_overlay(net, 0, &tcp(pod, (net.source(), source_port)).syn_ack(500, 101));
        rig.sent(WAN);
        rig.moved();
        assert_eq!(syn(&mut rig, 3), LIMITED);
        assert_eq!(send(&mut rig, &tcp(client(1), vip).ack(101, 501)), PASSED);
        assert_eq!([3, 4].map(|port| syn(&mut rig, port)), [PASSED, LIMITED]);
        // UDP has no handshake.
        let ask = |rig: &mut Rig, port| send(rig, &udp(client(port), (net.vip(5), 53)).data(*b"who?"));
        assert_eq!([1, 2, 3].map(|port| ask(&mut rig, port)), [PASSED; 3]);
        // Those that time out are none any more.
        for _ in 0..300 {
            rig.now_ns += SECOND_NS;
            rig.turn();
        }
        assert_eq!([5, 6, 7].map(|port| syn(&mut rig, port)), [PASSED, PASSED, LIMITED]);
        let sources = rig.worker.state();
        assert_eq!(if net == Net::BOTH[0] { sources.v4.sources() } else { sources.v6.sources() }.handshakes(), 2);
    }
}

#[test]
fn without_room_for_a_source_it_passes_and_is_counted() {
    for net in Net::BOTH {
        let (tables, mut policed) = (rig::tables(), Policed::default());
        let mut rig = Rig::with(tables, 65_536, 1024, 3).unwrap();
        put(&mut rig, &mut policed, "shop/five", Body::Service(service(5)));
        // A source each: as many as there are addresses, and slow enough that none is forgotten.
        let rule = anyone(GatewayAction::Limit(SourceLimits {
            rate_per_s: Some(1),
            burst: 1,
            half_open_max: None,
            bits_v4: 32,
            bits_v6: 128,
        }));
        put(&mut rig, &mut policed, "slow", gateway(1, vec![rule]));
        for n in 0..20_000 {
            rig.rx_wan(&udp((net.client(n), 1), (net.vip(5), 53)).data(*b"x"));
            rig.sent_one(LAN);
        }
        let moved = rig.moved();
        let untold = moved["source_untold"];
        assert!(untold > 3000 && untold < 6000, "{untold}");
        assert_eq!((moved["flow_installed"], moved.get(LIMITED)), (20_000, None));
        assert_eq!(counted(&rig, "slow", 0), (20_000, 0));
    }
}

#[test]
fn audit_counts_what_it_would_deny_and_denies_nothing() {
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let deny = vec![clients(GatewayAction::Allow, &both(8)), anyone(GatewayAction::Deny)];
        put(&mut rig, &mut policed, "trial", audited(5, deny));
        assert_eq!([7, 8].map(|n| reached(&mut rig, net, n, 5, 0)), [[PASSED; 3]; 2]);
        assert_eq!([0, 1].map(|rule| counted_in_audit(&rig, "trial", rule)), [(3, 0), (0, 3)]);
        // Packets that go on are not counted.
        assert_eq!(send(&mut rig, &udp((net.client(7), 2000), (net.vip(5), 53)).data(*b"x")), PASSED);
        assert_eq!(counted_in_audit(&rig, "trial", 1), (0, 3));
        // What one in force denies is not counted as denied by one in audit; what it allows before is not either.
        put(&mut rig, &mut policed, "real", gateway(6, vec![clients(GatewayAction::Deny, &both(7))]));
        assert_eq!(reached(&mut rig, net, 7, 5, 1), [DENIED; 3]);
        put(&mut rig, &mut policed, "real", gateway(4, vec![clients(GatewayAction::Allow, &both(7))]));
        assert_eq!(reached(&mut rig, net, 7, 5, 2), [PASSED; 3]);
        assert_eq!(counted_in_audit(&rig, "trial", 1), (0, 3));
        assert_eq!(counted(&rig, "real", 0), (3, 3));
        // Limits count those beyond.
        remove(&mut rig, &mut policed, "real");
        put(&mut rig, &mut policed, "trial", audited(5, vec![anyone(limit(Some(1), 2, None))]));
        let told = [1, 2, 3, 4].map(|port| send(&mut rig, &udp((net.client(9), port), (net.vip(5), 53)).data(*b"x")));
        assert_eq!(told, [PASSED; 4]);
        let of_deny_and_allow = (3, 0);
        let (allowed, denied) = counted_in_audit(&rig, "trial", 0);
        assert_eq!((allowed - of_deny_and_allow.0, denied), (2, 2));
        // In force it denies, which is counted apart.
        let all = vec![anyone(GatewayAction::Deny)];
        put(&mut rig, &mut policed, "trial", gateway(5, all.clone()));
        assert_eq!(send(&mut rig, &udp((net.client(9), 5), (net.vip(5), 53)).data(*b"x")), DENIED);
        put(&mut rig, &mut policed, "trial", audited(5, all));
        assert_eq!(send(&mut rig, &udp((net.client(9), 5), (net.vip(5), 53)).data(*b"x")), PASSED);
        let of_both = ruling(&rig, "trial", 0);
        assert_eq!((of_both.denied, of_both.would_deny), (1, 3));
    }
}

#[test]
fn nodes_that_deliver_by_themselves_are_spared_who_may_not_come() {
    for net in Net::BOTH {
        let (mut tables, mut policed) = (rig::tables(), Policed::default());
        let mut web = catalog::service(net.vip(1), Protocol::Tcp, 80, vec![catalog::pod(net, 0, 5, 1, 1)]);
        web.ports[0].mode = DeliveryMode::NodeDsr;
        policed.put(&mut tables, "shop/web", Body::Service(web));
        rig::deliver_to_nodes(&mut tables, 0, &[(0, 1), (1, 1)]);
        let mut rig = Rig::new(tables).unwrap();
        let vip = (net.vip(1), 80);
        let client = |n, port| (net.client(n), port);
        assert_eq!(send(&mut rig, &tcp(client(7, 1), vip).syn(1)), PASSED);
        assert_eq!(send(&mut rig, &tcp(client(7, 1), vip).ack(2, 2)), PASSED);
        put(&mut rig, &mut policed, "seven", gateway(1, vec![clients(GatewayAction::Deny, &both(7))]));
        assert_eq!(send(&mut rig, &tcp(client(7, 1), vip).ack(2, 2)), DENIED, "P-031");
        assert_eq!(send(&mut rig, &tcp(client(7, 2), vip).syn(1)), DENIED);
        assert_eq!(send(&mut rig, &tcp(client(8, 2), vip).ack(1, 1)), PASSED, "picked up");
        assert_eq!(send(&mut rig, &tcp(client(7, 3), vip).ack(1, 1)), DENIED);
        assert_eq!(send(&mut rig, &tcp(client(7, 3), vip).segment("R", 1, 0)), DENIED);
        remove(&mut rig, &mut policed, "seven");
        assert_eq!(send(&mut rig, &tcp(client(7, 1), vip).ack(2, 2)), PASSED);
        put(&mut rig, &mut policed, "slow", gateway(1, vec![anyone(limit(Some(1), 2, None))]));
        let told = [1, 2, 3, 4].map(|port| send(&mut rig, &tcp(client(9, port), vip).syn(1)));
        assert_eq!(told, [PASSED, PASSED, LIMITED, LIMITED]);
        assert_eq!(send(&mut rig, &tcp(client(9, 3), vip).ack(1, 1)), PASSED, "no new connection");
    }
}

#[test]
fn several_workers_let_a_source_begin_no_more_than_one() {
    for net in Net::BOTH {
        for workers in [1, 2, 4] {
            let (rig, mut policed) = town();
            let mut fleet = Fleet::new(rig.publisher.current().clone(), workers).unwrap();
            // One that began before, whose owner is another by then.
            let early: Vec<u16> = (100..120).collect();
            let packet = |port| tcp((net.client(7), port), (net.vip(5), 80));
            for port in &early {
                fleet.rx_wan(0, &packet(*port).syn(100));
            }
            assert_eq!(fleet.sent(LAN).len(), early.len());
            let rule = clients(limit(Some(1), 5, None), &both(7));
            fleet.publish(|tables| policed.put(tables, "slow", gateway(1, vec![rule])));
            for port in 1..=20 {
                fleet.rx_wan(usize::from(port) % usize::from(workers), &packet(port).syn(100));
            }
            assert_eq!(fleet.sent(LAN).len(), 5, "{workers} workers");
            assert_eq!(fleet.counted()[LIMITED], 15);
            for port in &early {
                fleet.rx_wan(usize::from(*port) % usize::from(workers), &packet(*port).ack(101, 1));
            }
            assert_eq!(fleet.sent(LAN).len(), early.len(), "{workers} workers\n{}", fleet.told());
            // Those of one link are a source at each worker that owns some of them.
            let others = |n| udp((net.client(n), 9), (net.vip(5), 53)).data(*b"x");
            let rule = anyone(limit(Some(1), 5, None));
            fleet.publish(|tables| policed.remove(tables, Kind::GatewayPolicy, "slow"));
            fleet.publish(|tables| policed.put(tables, "link", gateway(1, vec![rule])));
            (50..250).for_each(|n| fleet.rx_wan(usize::from(n) % usize::from(workers), &others(n)));
            let sent = fleet.sent(LAN).len();
            if net == Net::BOTH[0] {
                assert_eq!(sent, 200);
            } else {
                assert_eq!(sent, 5 * usize::from(workers), "many addresses of a link meet every worker");
            }
            fleet.expect_balance();
            fleet.expect_all_frames_home();
        }
    }
}

#[test]
fn pods_are_clients_with_their_addresses_and_network_policies_are_asked_besides() {
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let five = net.pod(0, 5);
        let mut port = 3000;
        let mut out = |rig: &mut Rig| {
            port += 1;
            rig.rx_overlay(net, 0, &first(Protocol::Tcp, (five, port), (net.vip(6), 80)));
            fate(rig)
        };
        assert_eq!(out(&mut rig), PASSED);
        put(&mut rig, &mut policed, "outside", gateway(1, vec![clients(GatewayAction::Deny, &[five])]));
        assert_eq!(out(&mut rig), DENIED);
        put(&mut rig, &mut policed, "outside", gateway(1, vec![anyone(GatewayAction::Allow)]));
        put(&mut rig, &mut policed, "six", set(&[106]));
        put(&mut rig, &mut policed, "blog/pod", pod(&Net::BOTH.map(|net| net.pod(0, 6)), 106, &[]));
        put(&mut rig, &mut policed, "np", policy("six", Some(vec![]), None));
        assert_eq!(out(&mut rig), "PolicyDeniedIngress", "allowed here is not allowed there");
        assert_eq!(counted(&rig, "outside", 0), (0, 1), "what did not begin was let begin by nobody");
    }
}

#[test]
fn pods_that_nobody_knows_are_denied_where_that_is_asked_for() {
    // P-034
    for net in Net::BOTH {
        let (mut rig, mut policed) = town();
        let strict = PolicyOptions { unknown_pod: UnknownPod::Deny, ..PolicyOptions::default() };
        let told = |rig: &mut Rig, salt| {
            let inwards = send(rig, &udp((net.client(7), salt), (net.vip(5), 53)).data(*b"x"));
            rig.rx_overlay(net, 0, &udp((net.pod(0, 77), salt), (net.vip(6), 53)).data(*b"x"));
            [inwards, fate(rig)]
        };
        rig.publish(|tables| tables.settings.policy = strict);
        assert_eq!(told(&mut rig, 1), [PASSED; 2], "without any policy nobody could select them");
        put(&mut rig, &mut policed, "none", set(&[999]));
        put(&mut rig, &mut policed, "other", set(&[1]));
        put(&mut rig, &mut policed, "np", policy("none", Some(vec![]), None));
        let pods = |numbers: &[u8], identity| -> Vec<Body> {
            numbers.iter().map(|n| pod(&Net::BOTH.map(|net| net.pod(0, *n)), identity, &[])).collect()
        };
        for (n, body) in [5, 6, 77].iter().zip(pods(&[5, 6, 77], 999)).filter(|(n, _)| **n == 6) {
            put(&mut rig, &mut policed, &format!("shop/{n}"), body);
        }
        rig.publish(|tables| policed.remove(tables, Kind::Policy, "np"));
        put(&mut rig, &mut policed, "np", policy("other", Some(vec![]), None));
        put(&mut rig, &mut policed, "x/one", pod(&Net::BOTH.map(|net| net.pod(1, 1)), 1, &[]));
        assert_eq!(told(&mut rig, 2), ["PolicyUnknownPod"; 2]);
        for (n, body) in [5, 77].into_iter().zip(pods(&[5, 77], 0)) {
            put(&mut rig, &mut policed, &format!("shop/{n}"), body);
        }
        assert_eq!(told(&mut rig, 3), [PASSED; 2], "known, and nobody's subject");
        rig.publish(|tables| tables.settings.policy = PolicyOptions::default());
        rig.publish(|tables| policed.remove(tables, Kind::Pod, "shop/5"));
        assert_eq!(told(&mut rig, 4), [PASSED; 2], "the default");
    }
}

#[test]
fn what_is_laid_out_is_shared() {
    let (mut rig, mut policed) = town();
    put(&mut rig, &mut policed, "a", gateway(1, vec![clients(GatewayAction::Deny, &both(7))]));
    let tables = rig.publisher.current();
    let gates: Vec<*const _> =
        tables.services.rows().filter_map(|(id, _)| tables.services.gate(id)).map(std::ptr::from_ref).collect();
    assert_eq!(gates.len(), 18);
    assert!(gates.iter().all(|gate| *gate == gates[0]));
    // An update about something else touches none of it.
    let before = Arc::clone(&tables.services);
    put(&mut rig, &mut policed, "set", set(&[4]));
    assert!(Arc::ptr_eq(&before, &rig.publisher.current().services));
}

/// A gateway that has dropped for every reason that gateway policies have.
pub fn refusals(net: Net) -> Rig {
    let (mut rig, mut policed) = town();
    let rules = vec![clients(GatewayAction::Deny, &both(7)), anyone(limit(Some(1), 1, None))];
    put(&mut rig, &mut policed, "all", gateway(1, rules));
    rig.publish(|tables| tables.settings.policy.unknown_pod = UnknownPod::Deny);
    for n in [7, 8, 8] {
        rig.rx_wan(&tcp((net.client(n), 1), (net.vip(9), 80)).syn(1));
    }
    (1..3).for_each(|port| rig.rx_wan(&tcp((net.client(8), port), (net.vip(5), 80)).syn(1)));
    put(&mut rig, &mut policed, "one", set(&[1]));
    put(&mut rig, &mut policed, "x/one", pod(&[net.pod(1, 1)], 1, &[]));
    put(&mut rig, &mut policed, "np", policy("one", Some(vec![]), None));
    rig.rx_wan(&tcp((net.client(9), 1), (net.vip(6), 80)).syn(1));
    rig.now_ns += 2 * SECOND_NS;
    rig.rx_wan(&tcp((net.client(9), 2), (net.vip(6), 80)).syn(1));
    rig
}
