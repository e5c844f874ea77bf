//! Clients that belong to the worker on whose queue the NIC lays their packets: nothing they send to a VIP changes hands
//! (design 4, rule 2; decision 0025). The NIC is the rig's, which hashes bytes of frames and knows no table.

use tidegate_dataplane::packet::Domain;
use tidegate_dataplane::rig::fleet::{Fleet, Plan};
use tidegate_dataplane::rig::sketch::{End, Sketch, Trouble, sctp, tcp, trouble, udp};
use tidegate_dataplane::rig::{self, FROM_ROUTER, LAN, Net};
use tidegate_dataplane::table::Tables;
use tidegate_dataplane::table::owner::OwnerTable;
use tidegate_dataplane::table::spread::Spread;
use tidegate_io::netdev::Hashed;

use crate::{names, names_pod, to_names, web, web_pod};

const WORKERS: [u16; 3] = [2, 3, 4];

fn everywhere() -> impl Iterator<Item = (u16, Net)> {
    WORKERS.into_iter().flat_map(|workers| Net::BOTH.map(|net| (workers, net)))
}

fn fleet(tables: Tables, workers: u16) -> Fleet {
    Fleet::with(tables, Plan { nic: true, ..Plan::of(workers) }).unwrap()
}

fn handed_over(fleet: &Fleet) -> u64 {
    fleet.counted().get("handed_over").copied().unwrap_or(0)
}

/// A hundred clients: a connection and a datagram of each.
fn clients(net: Net) -> impl Iterator<Item = (End, [Sketch; 3])> {
    (0..100u16).map(move |n| {
        let from = (net.client(n % 30), 2000 + 7 * n);
        let of_tcp = || tcp(from, web(net));
        (
            from,
            [of_tcp().syn(100), of_tcp().segment("PA", 101, 501).data([1; 30]), udp(from, names(net)).data(*b"who?")],
        )
    })
}

/// The source port inside a VXLAN frame.
fn source_port(net: Net, frame: &[u8]) -> u16 {
    let (_, _, inner) = rig::into_peer(frame).unwrap();
    let at = if net == Net::BOTH[0] { 34 } else { 54 };
    u16::from_be_bytes([inner[at], inner[at + 1]])
}

/// Nobody handed anything over, and every worker has some of these flows.
fn expect_stayed(fleet: &Fleet, flows: u64) {
    assert_eq!(handed_over(fleet), 0, "{}", fleet.told());
    let live = fleet.live();
    assert_eq!(live.iter().sum::<u64>(), flows, "{}", fleet.told());
    assert!(live.iter().all(|live| *live > flows / 16), "clients are spread: {live:?}");
    fleet.expect_flows_at_home();
}

#[test]
fn what_clients_send_to_a_vip_stays_with_the_worker_it_arrives_at() {
    for (workers, net) in everywhere() {
        let mut fleet = fleet(crate::tables(), workers);
        let mut ports = Vec::new();
        for (from, packets) in clients(net) {
            for packet in &packets {
                let queue = fleet.rx_nic(packet);
                assert_eq!(fleet.owner(packet, Domain::Wire), queue);
                ports.push((from, packet.number(), source_port(net, &fleet.sent_one(LAN))));
            }
        }
        expect_stayed(&fleet, 200);
        // The answers come in VXLAN, on any queue, and leave as the Service's.
        for (n, (from, number, port)) in ports.into_iter().enumerate() {
            let source = (net.source(), port);
            let (answer, seen) = match number {
                6 => {
                    let say = |from, to| tcp(from, to).segment("PA", 501, 131).data([2; 9]);
                    (say(web_pod(net), source), say(web(net), from))
                }
                _ => {
                    let say = |from, to| udp(from, to).data(*b"me");
                    (say(names_pod(net), source), say(names(net), from))
                }
            };
            fleet.rx_overlay(n % usize::from(workers), net, 0, &answer);
            fleet.expect_wan(&seen.ttl(63));
        }
        assert!(handed_over(&fleet) > 0, "the NIC cannot see whose answers are");
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

#[test]
fn so_does_what_nodes_deliver_themselves() {
    // S-056: node-dsr sees one direction only.
    for (workers, net) in everywhere() {
        let mut tables = crate::tables();
        let base = if net == Net::BOTH[0] { 0 } else { 10 };
        [1, 2].into_iter().for_each(|id| rig::deliver_to_nodes(&mut tables, base + id, &[(0, 1), (1, 1)]));
        let mut fleet = fleet(tables, workers);
        for (_, packets) in clients(net) {
            for packet in &packets {
                fleet.rx_nic(packet);
                fleet.sent_one(LAN);
            }
        }
        expect_stayed(&fleet, 200);
        fleet.expect_balance();
        fleet.expect_all_frames_home();
    }
}

#[test]
fn errors_and_fragments_find_the_flow_from_any_queue() {
    // Rules 4 and 5: the NIC hashes their addresses, which are not those of the flow, or not its ports.
    for (workers, net) in everywhere() {
        for queue in 0..usize::from(workers) {
            let mut fleet = fleet(crate::tables(), workers);
            let owner = fleet.rx_nic(&to_names(net));
            let port = source_port(net, &fleet.sent_one(LAN));
            let (from, source) = (to_names(net).from, (net.source(), port));
            // A router on the way tells of the answer.
            let seen = udp(names(net), from).data(*b"me").ttl(60);
            fleet.rx_wan(queue, &trouble(net.client(99), net.vip(1), Trouble::Host, &seen.packet()));
            let told = udp(names_pod(net), source).data(*b"me").ttl(60);
            let expected = trouble(net.client(99), names_pod(net).0, Trouble::Host, &told.packet()).ttl(63);
            let sent = fleet.sent_one(LAN);
            let (_, _, inner) = rig::into_peer(&sent).unwrap();
            assert_eq!(inner[14..], expected.between((net.source(), 0), names_pod(net)).packet()[..]);
            assert_eq!(handed_over(&fleet), u64::from(queue != owner));
            // A long question in pieces: one flow, where the short one's is.
            let long = to_names(net).data([5; 2000]);
            for piece in crate::fragment::cut(&long, &[1208, 800]) {
                fleet.rx_wan(queue, &piece);
                assert_eq!(fleet.sent(LAN).len(), 1);
            }
            assert_eq!((fleet.live()[owner], fleet.live().iter().sum::<u64>()), (1, 1));
            fleet.expect_flows_at_home();
            fleet.expect_balance();
            fleet.expect_all_frames_home();
        }
    }
}

#[test]
fn a_nic_that_was_set_otherwise_since_costs_hand_overs_and_no_packet() {
    for (workers, net) in everywhere() {
        let mut fleet = fleet(crate::tables(), workers);
        for (_, packets) in clients(net) {
            fleet.rx_nic(&packets[0]);
            fleet.sent_one(LAN);
        }
        assert_eq!(handed_over(&fleet), 0);
        // `ethtool -X wan0 hkey …`
        let key = &mut fleet.nic.as_mut().unwrap().rss.key;
        key.reverse();
        for (_, packets) in clients(net) {
            fleet.rx_nic(&packets[1]);
            fleet.sent_one(LAN);
        }
        assert!(handed_over(&fleet) > 0);
        assert_eq!((fleet.live().iter().sum::<u64>(), fleet.counted().get("OrphanSegment")), (100, None));
        fleet.expect_flows_at_home();
        fleet.expect_all_frames_home();
    }
}

#[test]
fn what_the_nic_does_not_say_is_spread_by_the_hash() {
    // SCTP of another sort than both ends, clients inside the overlay, and queues that nobody serves.
    for (workers, net) in everywhere() {
        let fleet = fleet(crate::tables(), workers);
        let mut rss = fleet.nic.as_ref().unwrap().rss.clone();
        let (mut followed, mut hashed) = (fleet.publisher.current().clone(), fleet.publisher.current().clone());
        // Nobody serves queue 77.
        rss.indirection.iter_mut().step_by(16).for_each(|queue| *queue = 77);
        rss.hashed.iter_mut().skip(2).step_by(3).for_each(|of_sctp| *of_sctp = Some(Hashed::Other));
        let queues: Vec<u32> = (0..workers.into()).collect();
        let owners = OwnerTable::new(workers, [1, 2]);
        followed.owners = owners.clone().with_spread(Spread::new(&rss, &queues, workers).unwrap()).into();
        hashed.owners = owners.into();
        let mut owner_of = {
            let mut fleet = fleet;
            move |tables: &Tables, packet: &Sketch, domain| {
                fleet.publish(|published| *published = tables.clone());
                fleet.owner(packet, domain)
            }
        };
        let nic = rig::nic::Nic { rss };
        let mut unserved = 0;
        for n in 0..300u16 {
            let from = (net.client(n), 3000 + n);
            let packet = udp(from, names(net)).data(*b"x");
            let [by_nic, by_hash] = [&followed, &hashed].map(|tables| owner_of(tables, &packet, Domain::Wire));
            let queue = nic.queue(&packet.frame(FROM_ROUTER)) as usize;
            assert_eq!(by_nic, if queue == 77 { by_hash } else { queue });
            unserved += u64::from(queue == 77);
            for (packet, domain) in [(packet, Domain::Overlay), (sctp(from, web(net)), Domain::Wire)] {
                let [by_nic, by_hash] = [&followed, &hashed].map(|tables| owner_of(tables, &packet, domain));
                assert_eq!(by_nic, by_hash);
            }
        }
        assert!((5..60).contains(&unserved), "{unserved} of 300 on a queue of nobody");
    }
}
