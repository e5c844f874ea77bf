//! `symmetric`: the pod sees its client, and what it answers comes back through the gateway (design 6).

use tidegate_api::resource::{
    Action, Backend, Body, DeliveryMode, GatewayAction, Kind, Protocol, Service, ServicePort,
};
use tidegate_dataplane::rig::catalog;
use tidegate_dataplane::rig::fleet::{Fleet, Plan};
use tidegate_dataplane::rig::outside::{self, external};
use tidegate_dataplane::rig::policed::{Policed, anyone, at, clients, everybody, gateway, near, of, pod, policy, set};
use tidegate_dataplane::rig::sketch::{End, Sketch, Trouble, our_trouble, sctp, tcp, trouble, udp};
use tidegate_dataplane::rig::{self, Net, Rig, WAN};
use tidegate_dataplane::table::Tables;

use crate::{HIT_BACK, HIT_OUT, STARTS, and, client, names, names_pod, web, web_pod};

/// As [`crate::tables`], every Service in `symmetric`.
fn tables() -> Tables {
    let mut tables = crate::tables();
    (1..=15).for_each(|id| rig::deliver_symmetric(&mut tables, id));
    tables
}

/// Several workers, and whether a NIC is followed that spreads clients over them; both families.
fn teams() -> impl Iterator<Item = ((u16, bool), Net)> {
    let teams = [(2, false), (3, false), (8, false), (3, true), (8, true)];
    teams.into_iter().flat_map(|team| Net::BOTH.map(|net| (team, net)))
}

fn town() -> Rig {
    Rig::new(tables()).unwrap()
}

/// Opens a connection of `from` to the Service; the port that the pod sees.
fn connect(rig: &mut Rig, net: Net, from: End, to: End) -> u16 {
    rig.rx_wan(&tcp(from, to).syn(100));
    let (port, _) = rig.expect_overlay(net, 0, &tcp(from, web_pod(net)).syn(100).mss(crate::mss(net)).ttl(63));
    rig.rx_overlay(net, 0, &tcp(web_pod(net), (from.0, port)).syn_ack(500, 101));
    rig.expect_wan(&tcp(to, from).syn_ack(500, 101).mss(crate::mss(net)).ttl(63));
    rig.rx_wan(&tcp(from, to).ack(101, 501));
    rig.expect_overlay(net, 0, &tcp((from.0, port), web_pod(net)).ack(101, 501).ttl(63));
    port
}

#[test]
fn the_pod_sees_its_client_and_the_client_its_service() {
    for net in Net::BOTH {
        let mut rig = town();
        let syn = tcp(client(net), web(net)).syn(100);
        rig.rx_wan(&syn);
        // From the gateway's VTEP to the node's: that is how the node knows where answers belong.
        rig.expect_overlay(net, 0, &syn.between(client(net), web_pod(net)).mss(crate::mss(net)).ttl(63));
        rig.expect_counted(&and(STARTS, &[("mss_clamped", 1)]));
        rig.rx_overlay(net, 0, &tcp(web_pod(net), client(net)).syn_ack(500, 101));
        rig.expect_wan(&tcp(web(net), client(net)).syn_ack(500, 101).mss(crate::mss(net)).ttl(63));
        rig.moved();
        // Established: as fast as everything else, either way.
        rig.rx_wan(&tcp(client(net), web(net)).ack(101, 501));
        rig.expect_overlay(net, 0, &tcp(client(net), web_pod(net)).ack(101, 501).ttl(63));
        rig.expect_counted(HIT_OUT);
        rig.rx_overlay(net, 0, &tcp(web_pod(net), client(net)).segment("PA", 501, 101).data(*b"200"));
        rig.expect_wan(&tcp(web(net), client(net)).segment("PA", 501, 101).data(*b"200").ttl(63));
        rig.expect_counted(HIT_BACK);
        // From another node it is nobody's answer (P-047).
        rig.rx_overlay(net, 1, &tcp(web_pod(net), client(net)).ack(504, 101));
        rig.expect_silence();
        assert_eq!(rig.moved().get("SpoofedSource"), Some(&1));
        rig.expect_all_frames_home();
    }
}

#[test]
fn a_pod_speaks_to_a_stranger_in_nobodys_name() {
    for net in Net::BOTH {
        let mut rig = town();
        for packet in [tcp(web_pod(net), client(net)).ack(1, 2), udp(names_pod(net), client(net)).data(*b"x")] {
            rig.rx_overlay(net, 0, &packet);
            rig.expect_silence();
            assert_eq!(rig.moved().get("NotOurs"), Some(&1));
        }
    }
}

#[test]
fn clients_inside_the_overlay_are_served_as_ever() {
    // S-058: their answers would go straight to them.
    for net in Net::BOTH {
        let mut rig = town();
        let pod = (net.pod(1, 9), 5000);
        rig.rx_overlay(net, 1, &udp(pod, names(net)).data(*b"who?"));
        let (port, _) = rig.expect_overlay(net, 0, &udp((net.source(), 0), names_pod(net)).data(*b"who?").ttl(63));
        rig.rx_overlay(net, 0, &udp(names_pod(net), (net.source(), port)).data(*b"me"));
        rig.expect_overlay(net, 1, &udp(names(net), pod).data(*b"me").ttl(63));
    }
}

#[test]
fn one_client_port_by_two_vips_to_one_pod_is_two_connections() {
    for net in Net::BOTH {
        let mut tables = tables();
        let id = if net == Net::BOTH[0] { 20 } else { 30 };
        rig::add_service(&mut tables, id, net.vip(2), 80, 6, &[(web_pod(net).0, web_pod(net).1, 1)]);
        rig::deliver_symmetric(&mut tables, id);
        let mut rig = Rig::new(tables).unwrap();
        assert_eq!(connect(&mut rig, net, client(net), web(net)), client(net).1);
        rig.rx_wan(&tcp(client(net), (net.vip(2), 80)).syn(7));
        // The address stays, the port cannot.
        let frame = rig.sent_one(rig::LAN);
        let (_, _, inner) = rig::into_peer(&frame).unwrap();
        let at = if net == Net::BOTH[0] { 34 } else { 54 };
        let port = u16::from_be_bytes([inner[at], inner[at + 1]]);
        assert!(port != client(net).1 && port >= 1024);
        let expected = tcp((client(net).0, port), web_pod(net)).syn(7).mss(crate::mss(net)).ttl(63);
        assert_eq!(inner[14..], expected.packet()[..]);
        rig.rx_overlay(net, 0, &tcp(web_pod(net), (client(net).0, port)).syn_ack(70, 8));
        rig.expect_wan(&tcp((net.vip(2), 80), client(net)).syn_ack(70, 8).mss(crate::mss(net)).ttl(63));
        rig.rx_overlay(net, 0, &tcp(web_pod(net), client(net)).ack(501, 101));
        rig.expect_wan(&tcp(web(net), client(net)).ack(501, 101).ttl(63));
    }
}

#[test]
fn a_connection_outlives_a_change_of_mode() {
    // S-100
    for net in Net::BOTH {
        let mut rig = town();
        connect(&mut rig, net, client(net), web(net));
        rig.publish(|tables| (1..=15).for_each(|id| rig::deliver_fullnat(tables, id)));
        rig.rx_overlay(net, 0, &tcp(web_pod(net), client(net)).ack(501, 101));
        rig.expect_wan(&tcp(web(net), client(net)).ack(501, 101).ttl(63));
        rig.rx_wan(&tcp((net.client(8), 5), web(net)).syn(1));
        rig.expect_overlay(net, 0, &tcp((net.source(), 0), web_pod(net)).syn(1).mss(crate::mss(net)).ttl(63));
    }
}

#[test]
fn connections_outlive_a_change_of_mode_on_every_worker() {
    // S-094, S-100: both directions are looked for where they began.
    for ((workers, nic), net) in teams() {
        let mut fleet = Fleet::with(tables(), Plan { nic, ..Plan::of(workers) }).unwrap();
        let (queues, clients) = (usize::from(workers), (0..24).map(|n| (net.client(n), 2000 + n)));
        let clients: Vec<End> = clients.collect();
        for (queue, from) in clients.iter().enumerate() {
            fleet.rx_wan(queue % queues, &tcp(*from, web(net)).syn(100));
            fleet.expect_overlay(net, 0, &tcp(*from, web_pod(net)).syn(100).mss(crate::mss(net)).ttl(63));
        }
        let ids = if net == Net::BOTH[0] { 1..=5 } else { 11..=15 };
        fleet.publish(|tables| ids.for_each(|id| rig::deliver_fullnat(tables, id)));
        for (queue, from) in clients.iter().enumerate() {
            fleet.rx_overlay(queue % queues, net, 0, &tcp(web_pod(net), *from).syn_ack(500, 101));
            fleet.expect_wan(&tcp(web(net), *from).syn_ack(500, 101).mss(crate::mss(net)).ttl(63));
            fleet.rx_wan((queue + 1) % queues, &tcp(*from, web(net)).ack(101, 501));
            fleet.expect_overlay(net, 0, &tcp(*from, web_pod(net)).ack(101, 501).ttl(63));
        }
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

#[test]
fn answers_in_fragments_and_errors_find_the_client() {
    // N-060, L-050
    for net in Net::BOTH {
        let mut rig = town();
        rig.rx_wan(&udp(client(net), names(net)).data(*b"who?"));
        rig.expect_overlay(net, 0, &udp(client(net), names_pod(net)).data(*b"who?").ttl(63));
        let sizes = [1208, 1200, 400];
        let answer = |from| udp(from, client(net)).data((0..=255).cycle().take(2800).collect::<Vec<u8>>());
        let expected = crate::fragment::cut(&answer(names(net)), &sizes);
        for (piece, expected) in crate::fragment::cut(&answer(names_pod(net)), &sizes).iter().zip(expected) {
            rig.rx_overlay(net, 0, piece);
            rig.expect_wan(&expected.ttl(63));
        }
        let (seen, told) =
            (udp(client(net), names_pod(net)).data(*b"who?"), udp(client(net), names(net)).data(*b"who?"));
        rig.rx_overlay(net, 0, &trouble(names_pod(net).0, client(net).0, Trouble::Port, &seen.packet()));
        rig.expect_wan(&trouble(names(net).0, client(net).0, Trouble::Port, &told.packet()).ttl(63));
        // A hop for answers too.
        let last = answer(names_pod(net)).long(200).ttl(1);
        rig.rx_overlay(net, 0, &last);
        rig.expect_overlay(net, 0, &our_trouble(net.vtep(), names_pod(net).0, Trouble::Time, &last.packet()));
    }
}

#[test]
fn every_queue_leads_to_the_clients_worker_and_pods_leave_as_before() {
    // Design 4 rules 2 and 3: answers at the client's worker; a pod's own flows to the outside go on to the pod's.
    for ((workers, nic), net) in teams() {
        let (mut tables, _) = outside::town();
        let id = if net == Net::BOTH[0] { 2 } else { 12 };
        rig::add_service(&mut tables, id, net.vip(1), 53, 17, &[(net.pod(0, 5), 5353, 1)]);
        rig::deliver_symmetric(&mut tables, id);
        let mut fleet = Fleet::with(tables, Plan { nic, ..Plan::of(workers) }).unwrap();
        let (queues, ours, mut ports) = (usize::from(workers), external(net, 1), Vec::new());
        for n in 0..48u16 {
            let (from, queue) = ((net.client(n / 4), 1000 + n), usize::from(n));
            fleet.rx_wan(queue % queues, &udp(from, names(net)).data(*b"who?"));
            fleet.expect_overlay(net, 0, &udp(from, names_pod(net)).data(*b"who?").ttl(63));
            for other in 0..queues {
                fleet.rx_overlay((queue + other) % queues, net, 0, &udp(names_pod(net), from).data(*b"me"));
                fleet.expect_wan(&udp(names(net), from).data(*b"me").ttl(63));
            }
            // The same pod asks somebody, of the very port it answers from.
            let to = (net.client(500 + n), 53);
            fleet.rx_overlay((queue + 1) % queues, net, 0, &udp(names_pod(net), to).data(*b"x"));
            let frame = fleet.sent_one(WAN);
            let asked = udp((ours, 0), to).data(*b"x").ttl(63);
            ports.push(crate::egress::out(&frame, &asked, &fleet.told()));
            fleet.rx_wan(queue % queues, &udp(to, (ours, ports[0])).data(*b"y"));
            fleet.expect_overlay(net, 0, &udp(to, names_pod(net)).data(*b"y").ttl(63));
            let opens: Sketch = tcp((net.pod(0, 5), n), to).syn(5);
            fleet.rx_overlay(queue % queues, net, 0, &opens);
            let asked = opens.between((ours, 0), to).ttl(63).mss(crate::mss(net));
            crate::egress::out(&fleet.sent_one(WAN), &asked, &fleet.told());
        }
        ports.dedup();
        assert_eq!(ports.len(), 1, "N-001");
        assert_eq!(fleet.counted().get("HandOverLoop"), None);
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

/// Ports of the Service of [`policed_town`], with the pod's own.
const PORTS: [(Protocol, u16, u16); 3] =
    [(Protocol::Tcp, 80, 8080), (Protocol::Udp, 53, 5353), (Protocol::Sctp, 3868, 9868)];

/// `shop/five-web` at VIP 5 in `symmetric`, with the pod `shop/five` behind it.
fn policed_town() -> (Rig, Policed) {
    let port = |(protocol, port, pod_port)| {
        let backend = |net| Backend { port: pod_port, ..catalog::pod(net, 0, 5, 1, 1) };
        let backends = Net::BOTH.map(backend).to_vec();
        ServicePort { protocol, port, backends, mode: DeliveryMode::Symmetric, ..ServicePort::default() }
    };
    let addresses = Net::BOTH.map(|net| net.vip(5)).to_vec();
    let service = Service { uid: "uid-5".into(), addresses, ports: PORTS.map(port).to_vec(), ..Service::default() };
    let (mut tables, mut policed) = (rig::tables(), Policed::default());
    policed.put(&mut tables, "five", set(&[105]));
    policed.put(&mut tables, "shop/five", pod(&Net::BOTH.map(|net| net.pod(0, 5)), 105, &[]));
    policed.put(&mut tables, "shop/five-web", Body::Service(service));
    (Rig::new(tables).unwrap(), policed)
}

/// What client `n` meets at each port from its port `from`: nothing, or why the packet was dropped. What passes reaches the
/// pod with the client's own address and port.
fn met(rig: &mut Rig, net: Net, n: u16, from: u16) -> [Option<&'static str>; 3] {
    PORTS.map(|(protocol, port, pod_port)| {
        let client = (net.client(n), from);
        let first = |to: End| match protocol {
            Protocol::Tcp => tcp(client, to).syn(100),
            Protocol::Udp => udp(client, to).data(*b"who?"),
            Protocol::Sctp => sctp(client, to).init(1, 9),
        };
        rig.rx_wan(&first((net.vip(5), port)));
        let moved = rig.moved();
        let why = moved.keys().copied().find(|name| name.starts_with(char::is_uppercase));
        if why.is_some() {
            rig.expect_silence();
        } else {
            let mut expected = first((net.pod(0, 5), pod_port)).ttl(63);
            if protocol == Protocol::Tcp {
                expected = expected.mss(crate::mss(net));
            }
            rig.expect_overlay(net, 0, &expected);
        }
        why
    })
}

#[test]
fn policies_of_pods_meet_the_client_that_the_pod_sees() {
    // P-021, P-040, P-046, T-046, T-061
    const DENIED: Option<&str> = Some("PolicyDeniedIngress");
    for net in Net::BOTH {
        let (mut rig, mut policed) = policed_town();
        assert_eq!([7, 9].map(|n| met(&mut rig, net, n, 2000)), [[None; 3]; 2]);
        let one = of(vec![near(net.client(9), 32, 128, &[])], everybody(Action::Accept));
        rig.publish(|tables| policed.put(tables, "one", policy("five", Some(vec![one.clone()]), Some(vec![]))));
        assert_eq!([7, 9].map(|n| met(&mut rig, net, n, 2001)), [[DENIED; 3], [None; 3]]);
        // The pod's answers are none of its own speech (T-062), and come back as the Service's.
        rig.rx_overlay(net, 0, &tcp((net.pod(0, 5), 8080), (net.client(9), 2001)).syn_ack(500, 101));
        rig.expect_wan(&tcp((net.vip(5), 80), (net.client(9), 2001)).syn_ack(500, 101).mss(crate::mss(net)).ttl(63));
        rig.moved();
        // By port: the pod's own (P-025).
        let web = at(Protocol::Tcp, 8080, 8080, one);
        rig.publish(|tables| policed.put(tables, "one", policy("five", Some(vec![web]), None)));
        assert_eq!([7, 9].map(|n| met(&mut rig, net, n, 2002)), [[DENIED; 3], [None, DENIED, DENIED]]);
        rig.publish(|tables| policed.remove(tables, Kind::Policy, "one"));
        assert_eq!([7, 9].map(|n| met(&mut rig, net, n, 2003)), [[None; 3]; 2]);
    }
}

#[test]
fn policies_of_gateways_meet_the_client_too() {
    for net in Net::BOTH {
        let (mut rig, mut policed) = policed_town();
        let both = |n| Net::BOTH.map(|net| net.client(n));
        let rules = vec![clients(GatewayAction::Allow, &both(9)), anyone(GatewayAction::Deny)];
        rig.publish(|tables| policed.put(tables, "office", gateway(1, rules)));
        let denied = Some("GatewayPolicyDenied");
        assert_eq!([7, 9].map(|n| met(&mut rig, net, n, 2000)), [[denied; 3], [None; 3]]);
        // Both are asked: whoever passes the gateway's policy meets the pod's.
        rig.publish(|tables| policed.put(tables, "deny", policy("five", Some(vec![]), None)));
        assert_eq!(met(&mut rig, net, 9, 2001), [Some("PolicyDeniedIngress"); 3]);
        rig.publish(|tables| policed.remove(tables, Kind::GatewayPolicy, "office"));
        rig.publish(|tables| policed.remove(tables, Kind::Policy, "deny"));
        assert_eq!([7, 9].map(|n| met(&mut rig, net, n, 2002)), [[None; 3]; 2]);
    }
}
