//! AF_XDP, the pinhole and the refusals on real veth devices, in namespaces of their own.
#![cfg(feature = "kernel-tests")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use support::{Namespace, Wire, config, forward, isolated, run, tagged, udp, until, veth};
use tidegate_io::afxdp::{InterfaceConfig, ModeChoice, OpenConfig, OpenError, Opened, open};
use tidegate_io::{
    BATCH_MAX, Batch, Chains, Guarded, HugePages, Magazine, Mode, OnDeath, Owned, OwnedFlags, Pinhole, PinholeCounters,
    Pool, Port, PortCounters,
};

const CLIENTS: [&str; 2] = ["192.0.2.10", "2001:db8:1::10"];
const VIPS: [&str; 2] = ["203.0.113.7", "2001:db8:f::7"];
const NOT_OURS: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The VIP networks of both families.
fn vips() -> Owned {
    Owned {
        prefixes: vec![(ip("203.0.113.0"), 24, OwnedFlags::TRAFFIC), (ip("2001:db8:f::"), 64, OwnedFlags::TRAFFIC)],
        ..Owned::default()
    }
}

fn counters(pinholes: &[Pinhole]) -> PinholeCounters {
    pinholes[0].counters().unwrap()
}

/// Drops frames that are of no more interest.
fn give_all(batch: &mut Batch, pool: &Pool) {
    let mut magazine = pool.magazine();
    batch.drain(..).for_each(|frame| magazine.give(frame));
}

/// Receives until nothing comes for a moment.
fn receive_all(ports: &mut [tidegate_io::afxdp::AfXdpPort], pool: &Pool) -> Vec<Vec<u8>> {
    let (mut packets, mut magazine, mut idle) = (Vec::new(), pool.magazine(), 0);
    while idle < 20 {
        let mut batch = Batch::new();
        for port in ports.iter_mut() {
            port.rx(&mut batch);
            port.recycle(&mut magazine);
            port.kick();
        }
        idle = if batch.is_empty() { idle + 1 } else { 0 };
        if batch.is_empty() {
            std::thread::sleep(Duration::from_millis(2));
        }
        packets.extend(batch.iter().map(|frame| frame.bytes().to_vec()));
        batch.drain(..).for_each(|frame| magazine.give(frame));
    }
    packets
}

#[test]
fn packets_of_both_families_cross_two_devices_without_a_copy() {
    isolated("packets_of_both_families_cross_two_devices_without_a_copy", || {
        veth("wan0", "wan1", 2);
        veth("lan0", "lan1", 2);
        let (client, fabric) = (Wire::open("wan1"), Wire::open("lan1"));
        let Opened { mut ports, pools, mut pinholes } = open(&config(&["wan0", "lan0"])).unwrap();
        assert_eq!((ports.len(), pools.len(), pinholes.len()), (4, 1, 2));
        for (port, (device, queue)) in ports.iter().zip([("wan0", 0), ("wan0", 1), ("lan0", 0), ("lan0", 1)]) {
            let facts = port.facts();
            assert_eq!((facts.device.as_str(), facts.queue, facts.mtu), (device, queue, 1500));
            assert_eq!((facts.mode, facts.group), (Mode::Copy, pools[0].group()));
        }
        pinholes[0].update(&vips()).unwrap();

        let mut sent = BTreeSet::new();
        for number in 0..100u16 {
            for family in [0, 1] {
                let payload = [&number.to_be_bytes()[..], &[u8::try_from(family).unwrap(); 40]].concat();
                let packet = udp(CLIENTS[family], VIPS[family], (1024 + number, 80), &payload);
                client.send(&packet);
                sent.insert(packet);
            }
        }
        let (mut magazine, mut arrived) = (pools[0].magazine(), BTreeSet::new());
        let (wan, lan) = ports.split_at_mut(2);
        until("all packets to arrive", || {
            for (from, to) in wan.iter_mut().zip(lan.iter_mut()) {
                let mut batch = Batch::new();
                from.rx(&mut batch);
                // Encapsulated in place: 50 bytes before where it was received.
                for frame in &mut batch {
                    assert!(frame.grow_front(50));
                    frame.bytes_mut()[..50].fill(0xee);
                }
                to.tx(&mut batch);
                give_all(&mut batch, &pools[0]);
                for port in [from, to] {
                    port.recycle(&mut magazine);
                    port.kick();
                }
            }
            arrived.extend(fabric.drain());
            arrived.len() == sent.len()
        });
        let expected: BTreeSet<Vec<u8>> = sent.iter().map(|packet| [&[0xee; 50][..], packet].concat()).collect();
        assert_eq!(arrived, expected);

        until("completions", || {
            lan.iter_mut().for_each(|port| port.recycle(&mut magazine));
            lan.iter().map(|port| port.counters().tx_completed).sum::<u64>() == 200
        });
        let bytes: u64 = sent.iter().map(|packet| packet.len() as u64).sum();
        let sum = |ports: &[tidegate_io::afxdp::AfXdpPort], what: fn(&PortCounters) -> u64| -> u64 {
            ports.iter().map(|port| what(&port.counters())).sum()
        };
        assert_eq!((sum(wan, |c| c.rx_packets), sum(wan, |c| c.rx_bytes)), (200, bytes));
        assert_eq!((sum(lan, |c| c.tx_packets), sum(lan, |c| c.tx_bytes)), (200, bytes + 200 * 50));
        assert_eq!(sum(lan, |c| c.tx_copied + c.tx_rejected + c.rx_violations + c.tx_violations + c.kick_errors), 0);
        // Kernel senders spread flows: both queues have seen some.
        assert!(wan.iter().all(|port| port.counters().rx_packets > 0));
        assert_eq!(counters(&pinholes), PinholeCounters { redirected: 200, ..Default::default() });
        for port in wan {
            assert_eq!(port.socket_statistics().unwrap(), Some(Default::default()));
        }
        // Everything that is not lent to the kernel comes home.
        drop((ports, magazine));
        assert_eq!(pools[0].outstanding(), 0);
    });
}

#[test]
fn a_flood_is_accounted_for_packet_by_packet() {
    isolated("a_flood_is_accounted_for_packet_by_packet", || {
        veth("wan0", "wan1", 1);
        let client = Wire::open("wan1");
        let Opened { mut ports, pools, mut pinholes } = open(&config(&["wan0"])).unwrap();
        pinholes[0].update(&vips()).unwrap();
        // More than the rings hold, while nobody receives: the kernel counts what it drops.
        let packet = udp(CLIENTS[0], VIPS[0], (1, 2), &[0; 18]);
        let sent = 3000u64;
        (0..sent).for_each(|_| client.send(&packet));
        let received = receive_all(&mut ports, &pools[0]).len() as u64;
        let lost = ports[0].socket_statistics().unwrap().unwrap();
        assert!(lost.lost() > 0, "the rings were meant to overflow");
        assert_eq!(counters(&pinholes).redirected, sent);
        assert_eq!((received + lost.lost(), ports[0].counters().rx_packets), (sent, received));
        // And it goes on afterwards.
        client.send(&packet);
        assert_eq!(receive_all(&mut ports, &pools[0]), [packet]);
    });
}

#[test]
fn frames_of_another_group_are_copied() {
    isolated("frames_of_another_group_are_copied", || {
        veth("wan0", "wan1", 1);
        let client = Wire::open("wan1");
        let Opened { mut ports, pools, pinholes: _pinholes } = open(&config(&["wan0"])).unwrap();
        let foreign = Pool::new(64, 2048, HugePages::Off).unwrap();
        let (mut magazine, mut batch) = (foreign.magazine(), Batch::new());
        // Too short, too long, and right.
        for length in [13, 1523, 1522] {
            let mut frame = magazine.take().unwrap();
            assert!(frame.fill(&vec![0x55; length]));
            batch.push(frame);
        }
        assert_eq!(ports[0].tx(&mut batch), 3);
        ports[0].kick();
        let mut arrived = Vec::new();
        until("the copy", || {
            arrived.extend(client.drain());
            ports[0].recycle(&mut magazine);
            ports[0].counters().tx_completed == 1
        });
        assert!(arrived.is_empty() || arrived == [vec![0x55; 1522]]);
        let counters = ports[0].counters();
        assert_eq!((counters.tx_copied, counters.tx_packets, counters.tx_rejected), (1, 1, 2));
        drop((ports, magazine));
        assert_eq!((foreign.outstanding(), pools[0].outstanding()), (0, 0));
    });
}

/// Everything the pinhole can be asked, and whose it is. V-012, L-057.
#[test]
fn the_pinhole_takes_what_is_ours_and_nothing_else() {
    isolated("the_pinhole_takes_what_is_ours_and_nothing_else", || {
        veth("wan0", "wan1", 1);
        let (client, kernel) = (Wire::open("wan1"), Wire::open("wan0"));
        let Opened { mut ports, pools, mut pinholes } = open(&config(&["wan0"])).unwrap();
        let announced = OwnedFlags::TRAFFIC | OwnedFlags::ANNOUNCED;
        let mut owned = vips();
        owned.prefixes.extend([
            (ip("192.0.2.100"), 32, announced),
            (ip("2001:db8:1::100"), 128, announced),
            (ip("192.0.2.101"), 32, OwnedFlags::ANNOUNCED),
            (ip("203.0.113.9"), 32, OwnedFlags::ANNOUNCED),
        ]);
        owned.vteps = vec![(ip("192.0.2.1"), 8472), (ip("2001:db8:1::1"), 8472)];
        pinholes[0].update(&owned).unwrap();

        let mut ours: Vec<(&str, Vec<u8>)> = Vec::new();
        let mut kernels: Vec<(&str, Vec<u8>)> = Vec::new();
        for family in [0, 1] {
            let (from, vip, node) = (CLIENTS[family], VIPS[family], NOT_OURS[family]);
            ours.push(("udp to a VIP", udp(from, vip, (9, 80), b"x")));
            ours.push(("icmp echo to a VIP", support_echo(from, vip)));
            ours.push(("vxlan to our endpoint", udp(from, node, (9, 8472), &[8, 0, 0, 0])));
            ours.push((
                "to an announced address",
                udp(from, ["192.0.2.100", "2001:db8:1::100"][family], (9, 80), b"x"),
            ));
            kernels.push(("udp to the node", udp(from, node, (9, 80), b"x")));
            kernels.push((
                "vxlan port of another address",
                udp(from, ["192.0.2.2", "2001:db8:1::2"][family], (9, 8472), b"x"),
            ));
            kernels.push(("icmp echo to the node", support_echo(from, node)));
            kernels.push(("beside a VIP", udp(from, ["203.0.112.7", "2001:db8:e::7"][family], (9, 80), b"x")));
        }
        ours.push(("arp for an announced address", arp(1, "192.0.2.100")));
        ours.push(("arp for one announced only", arp(1, "192.0.2.101")));
        ours.push(("arp below a prefix that is not announced", arp(1, "203.0.113.9")));
        ours.push(("solicitation", solicitation("ff02::1:ff00:100", "2001:db8:1::100")));
        ours.push(("flags add up", udp(CLIENTS[0], "203.0.113.9", (9, 80), b"x")));
        ours.push(("first fragment of vxlan", fragment(&udp(CLIENTS[0], NOT_OURS[0], (9, 8472), &[0; 16]), 0x2000)));
        ours.push((
            "first fragment of vxlan over IPv6",
            fragment_v6(&udp(CLIENTS[1], NOT_OURS[1], (9, 8472), &[0; 16]), 1),
        ));
        ours.push(("later fragment to a VIP", fragment(&udp(CLIENTS[0], VIPS[0], (9, 80), &[0; 16]), 0x0002)));
        kernels.push((
            "later fragment to an endpoint's address",
            fragment(&udp(CLIENTS[0], NOT_OURS[0], (9, 8472), &[0; 16]), 0x0002),
        ));
        kernels
            .push(("later fragment over IPv6", fragment_v6(&udp(CLIENTS[1], NOT_OURS[1], (9, 8472), &[0; 16]), 0x10)));
        kernels.push(("arp for the node", arp(1, "192.0.2.1")));
        kernels.push(("arp for a VIP that is not announced", arp(1, "203.0.113.7")));
        kernels.push(("arp reply about an announced address", arp(2, "192.0.2.100")));
        kernels.push(("solicitation for the node", solicitation("ff02::1:ff00:1", "2001:db8:1::1")));
        kernels.push(("announced only", udp(CLIENTS[0], "192.0.2.101", (9, 80), b"x")));
        kernels.push(("some other protocol", [&[0xff; 12][..], &[0x88, 0xcc], &[0; 46]].concat()));

        let tags: [&[(u16, u16)]; 4] = [&[], &[(0x8100, 5)], &[(0x88a8, 9), (0x8100, 5)], &[(0x8100, 9), (0x8100, 5)]];
        let (mut redirected, mut passed) = (0, 0);
        for tags in tags {
            for (what, packet) in &ours {
                let packet = tagged(packet, tags);
                client.send(&packet);
                redirected += 1;
                until(what, || counters(&pinholes).redirected == redirected || counters(&pinholes).passed > passed);
                assert_eq!(counters(&pinholes).passed, passed, "{what}, {} tags", tags.len());
                assert_eq!(receive_all(&mut ports, &pools[0]), [packet], "{what}, {} tags", tags.len());
            }
            for (what, packet) in &kernels {
                let packet = tagged(packet, tags);
                client.send(&packet);
                passed += 1;
                until(what, || counters(&pinholes).passed == passed || counters(&pinholes).redirected > redirected);
                assert_eq!(counters(&pinholes).redirected, redirected, "{what}, {} tags", tags.len());
            }
        }
        // Three tags are more than it looks under.
        client.send(&tagged(&ours[0].1, &[(0x8100, 1), (0x8100, 2), (0x8100, 3)]));
        passed += 1;
        until("three tags", || counters(&pinholes).passed == passed);
        // What passed has reached the kernel.
        let reached = kernel.drain();
        for (what, packet) in &kernels {
            assert!(reached.contains(packet), "{what}");
        }
        let counted = counters(&pinholes);
        assert_eq!((counted.dropped_dead, counted.passed_dead, counted.malformed), (0, 0, 0));

        // Cut anywhere, a packet is somebody's, and one that ends before we can tell passes as malformed. Its length
        // is that of an Ethernet header at least, or the sender's own kernel refuses it.
        let (mut cut, before) = (0, counters(&pinholes));
        for (_, packet) in ours.iter().chain(&kernels) {
            for end in 14..packet.len() {
                client.send(&packet[..end]);
                cut += 1;
            }
        }
        until("the cut ones", || {
            receive_all(&mut ports, &pools[0]);
            let now = counters(&pinholes);
            now.passed + now.redirected == before.passed + before.redirected + cut
        });
        assert!(counters(&pinholes).malformed > 0);
        let mut wrong = udp(CLIENTS[0], VIPS[0], (9, 80), b"x");
        wrong[14] = 0x44;
        let malformed = counters(&pinholes).malformed;
        client.send(&wrong);
        until("a header that is too short", || counters(&pinholes).malformed == malformed + 1);
    });
}

/// S-065: node ports are ours, and everything else at their address is the kernel's.
#[test]
fn single_ports_of_the_nodes_own_addresses_are_ours() {
    isolated("single_ports_of_the_nodes_own_addresses_are_ours", || {
        const TCP: u8 = 6;
        const UDP: u8 = 17;
        const SCTP: u8 = 132;
        // Ports are in the same place.
        let sctp = |mut packet: Vec<u8>| {
            let at = if packet[12] == 8 { 23 } else { 20 };
            packet[at] = SCTP;
            packet
        };
        veth("wan0", "wan1", 1);
        let (client, kernel) = (Wire::open("wan1"), Wire::open("wan0"));
        let Opened { mut ports, pools, mut pinholes } = open(&config(&["wan0"])).unwrap();
        let mut owned = vips();
        for node in NOT_OURS {
            owned.ports.extend([(ip(node), TCP, 30_080), (ip(node), UDP, 30_053), (ip(node), SCTP, 30_868)]);
            owned.vteps.push((ip(node), 8472));
        }
        pinholes[0].update(&owned).unwrap();
        let (mut ours, mut kernels) = (Vec::new(), Vec::new());
        for family in [0, 1] {
            let (from, node, other) = (CLIENTS[family], NOT_OURS[family], ["192.0.2.2", "2001:db8:1::2"][family]);
            let errors: &[u8] = [&[3u8, 11, 12][..], &[1, 2, 3, 4]][family];
            let answer = |port| tcp(node, from, (port, 40_000));
            ours.push(("tcp to a node port", tcp(from, node, (40_000, 30_080))));
            ours.push(("udp to a node port", udp(from, node, (40_000, 30_053), b"x")));
            ours.push(("sctp to a node port", sctp(tcp(from, node, (40_000, 30_868)))));
            ours.push(("an error about sctp", error(from, node, errors[0], &sctp(answer(30_868)))));
            kernels.push(("sctp to the tcp port", sctp(tcp(from, node, (40_000, 30_080)))));
            ours.push(("vxlan", udp(from, node, (9, 8472), &[8, 0, 0, 0])));
            let errors_about =
                |packet: &[u8]| errors.iter().map(|kind| error(from, node, *kind, packet)).collect::<Vec<_>>();
            ours.extend(
                errors_about(&answer(30_080)).into_iter().map(|packet| ("an error about what we sent", packet)),
            );
            let datagram = udp(node, from, (30_053, 40_000), b"answer");
            ours.extend(errors_about(&datagram).into_iter().map(|packet| ("an error about a datagram", packet)));
            kernels.push(("tcp to the udp port", tcp(from, node, (40_000, 30_053))));
            kernels.push(("udp to the tcp port", udp(from, node, (40_000, 30_080), b"x")));
            kernels.push(("ssh", tcp(from, node, (40_000, 22))));
            kernels.push(("tcp from such a port", tcp(from, node, (30_080, 22))));
            kernels.push(("another address", tcp(from, other, (40_000, 30_080))));
            kernels.push(("echo", support_echo(from, node)));
            kernels.push(("an error about a connection of the node's own", error(from, node, errors[0], &answer(22))));
            let incoming = tcp(from, node, (40_000, 30_080));
            kernels.push(("an error that quotes the wrong way", error(from, node, errors[0], &incoming)));
            kernels.push(("an error that quotes no ports", error(from, node, errors[0], &support_echo(node, from))));
            kernels.push(("an error that quotes too little", error(from, node, errors[0], &answer(30_080)[..24])));
        }
        let (from, node) = (CLIENTS[0], NOT_OURS[0]);
        for words in 6..=15 {
            let answer = options(&tcp(node, from, (30_080, 40_000)), words);
            ours.push(("behind options", options(&tcp(from, node, (40_000, 30_080)), words)));
            ours.push(("an error that quotes options", error(from, node, 3, &answer)));
            ours.push(("an error behind options", options(&error(from, node, 3, &answer), words)));
            kernels.push(("ssh behind options", options(&tcp(from, node, (40_000, 22)), words)));
        }
        ours.push(("first fragment", fragment(&tcp(CLIENTS[0], NOT_OURS[0], (9, 30_080)), 0x2000)));
        ours.push(("first fragment over IPv6", fragment_v6(&tcp(CLIENTS[1], NOT_OURS[1], (9, 30_080)), 1)));
        kernels.push(("later fragment", fragment(&tcp(CLIENTS[0], NOT_OURS[0], (9, 30_080)), 0x0002)));
        kernels.push(("later fragment over IPv6", fragment_v6(&tcp(CLIENTS[1], NOT_OURS[1], (9, 30_080)), 0x10)));
        for (number, (what, packet)) in (1..).zip(&ours) {
            client.send(packet);
            until(what, || counters(&pinholes).redirected == number || counters(&pinholes).passed > 0);
            assert_eq!(counters(&pinholes).passed, 0, "{what}");
            assert_eq!(receive_all(&mut ports, &pools[0]), std::slice::from_ref(packet), "{what}");
        }
        let redirected = counters(&pinholes).redirected;
        for (number, (what, packet)) in (1..).zip(&kernels) {
            client.send(packet);
            until(what, || counters(&pinholes).passed == number || counters(&pinholes).redirected > redirected);
            assert_eq!(counters(&pinholes).redirected, redirected, "{what}");
        }
        let reached = kernel.drain();
        kernels.iter().for_each(|(what, packet)| assert!(reached.contains(packet), "{what}"));
        // Taken back, they are the kernel's again.
        owned.ports.clear();
        pinholes[0].update(&owned).unwrap();
        client.send(&ours[0].1);
        until("not ours any more", || counters(&pinholes).passed == kernels.len() as u64 + 1);
        // Cut anywhere, a packet is somebody's.
        pinholes[0].update(&Owned { ports: vec![(ip(NOT_OURS[0]), TCP, 30_080)], ..vips() }).unwrap();
        let before = counters(&pinholes);
        let cut: Vec<_> = ours.iter().flat_map(|(_, packet)| (14..packet.len()).map(|end| &packet[..end])).collect();
        cut.iter().for_each(|packet| client.send(packet));
        until("the cut ones", || {
            receive_all(&mut ports, &pools[0]);
            let now = counters(&pinholes);
            now.passed + now.redirected == before.passed + before.redirected + cut.len() as u64
        });
    });
}

/// T-125: tunnels that end at the node's own addresses are ours, whole and in pieces, and nothing else of theirs.
#[test]
fn tunnels_that_end_here_are_ours() {
    isolated("tunnels_that_end_here_are_ours", || {
        const GUE: u16 = 6080;
        veth("wan0", "wan1", 1);
        let (client, kernel) = (Wire::open("wan1"), Wire::open("wan0"));
        let Opened { mut ports, pools, mut pinholes } = open(&config(&["wan0"])).unwrap();
        let mut owned = vips();
        for node in NOT_OURS {
            owned.ports.extend([(ip(node), 4, 0), (ip(node), 41, 0), (ip(node), 17, GUE)]);
        }
        pinholes[0].update(&owned).unwrap();
        let (mut ours, mut kernels) = (Vec::new(), Vec::new());
        for family in [0, 1] {
            let (from, node, other) = (CLIENTS[family], NOT_OURS[family], ["192.0.2.2", "2001:db8:1::2"][family]);
            for (protocol, inner) in [(4, 0), (41, 1)] {
                let inside = tcp(CLIENTS[inner], VIPS[inner], (40_000, 80));
                let piece = |field: u16| match family {
                    0 => fragment(&ip_in_ip(from, node, protocol, &inside[14..]), field),
                    _ => fragment_v6(&ip_in_ip(from, node, protocol, &inside[14..]), field),
                };
                ours.push(("ip in ip", ip_in_ip(from, node, protocol, &inside[14..])));
                ours.push(("gue", udp(from, node, (9, GUE), &inside[14..])));
                ours.push(("first piece", piece([0x2000, 1][family])));
                ours.push(("later piece", piece([0x0002, 0x10][family])));
                kernels.push(("ip in ip to another address", ip_in_ip(from, other, protocol, &inside[14..])));
                kernels.push(("gue to another address", udp(from, other, (9, GUE), &inside[14..])));
            }
            kernels.push(("from the port of gue", udp(from, node, (GUE, 9), b"x")));
            kernels.push(("another protocol", ip_in_ip(from, node, 47, &[0; 40])));
            kernels.push(("tcp to the port of gue", tcp(from, node, (9, GUE))));
            kernels.push(("udp to port 0", udp(from, node, (9, 0), b"x")));
        }
        for (number, (what, packet)) in (1..).zip(&ours) {
            client.send(packet);
            until(what, || counters(&pinholes).redirected == number || counters(&pinholes).passed > 0);
            assert_eq!(counters(&pinholes).passed, 0, "{what}");
            assert_eq!(receive_all(&mut ports, &pools[0]), std::slice::from_ref(packet), "{what}");
        }
        let redirected = counters(&pinholes).redirected;
        for (number, (what, packet)) in (1..).zip(&kernels) {
            client.send(packet);
            until(what, || counters(&pinholes).passed == number || counters(&pinholes).redirected > redirected);
            assert_eq!(counters(&pinholes).redirected, redirected, "{what}");
        }
        let reached = kernel.drain();
        kernels.iter().for_each(|(what, packet)| assert!(reached.contains(packet), "{what}"));
        // Taken back, they are the kernel's again.
        pinholes[0].update(&vips()).unwrap();
        client.send(&ours[0].1);
        until("not ours any more", || counters(&pinholes).passed == kernels.len() as u64 + 1);
    });
}

#[test]
fn what_stays_ours_is_ours_while_the_rest_changes() {
    isolated("what_stays_ours_is_ours_while_the_rest_changes", || {
        veth("wan0", "wan1", 1);
        let client = Wire::open("wan1");
        let Opened { ports, pools: _pools, mut pinholes } = open(&config(&["wan0"])).unwrap();
        let set = |odd: bool| {
            let mut owned = vips();
            for number in (u8::from(odd)..250).step_by(2) {
                owned.prefixes.push((ip(&format!("203.0.113.{number}")), 32, OwnedFlags::ANNOUNCED));
                owned.prefixes.push((ip(&format!("2001:db8:f::{number:x}")), 128, OwnedFlags::ANNOUNCED));
            }
            owned.vteps = vec![(ip("192.0.2.1"), 4000 + u16::from(odd)), (ip("192.0.2.1"), 8472)];
            owned
        };
        pinholes[0].update(&set(false)).unwrap();
        let packets = [
            udp(CLIENTS[0], "203.0.113.8", (9, 80), b"x"),
            udp(CLIENTS[1], "2001:db8:f::8", (9, 80), b"x"),
            udp(CLIENTS[0], "203.0.113.251", (9, 80), b"x"),
            udp(CLIENTS[0], "192.0.2.1", (9, 8472), b"x"),
        ];
        let done = std::sync::atomic::AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut sent = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    packets.iter().for_each(|packet| client.send(packet));
                    sent += packets.len() as u64;
                }
                sent
            });
            for round in 0..60 {
                pinholes[0].update(&set(round % 2 == 0)).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            sender.join().unwrap()
        });
        until("the last packet", || counters(&pinholes).redirected + counters(&pinholes).passed == sent);
        assert_eq!(counters(&pinholes).passed, 0);
        // And what is removed is gone.
        pinholes[0].update(&Owned::default()).unwrap();
        packets.iter().for_each(|packet| client.send(packet));
        until("not ours any more", || counters(&pinholes).passed == packets.len() as u64);
        drop(ports);
    });
}

/// L-057, T-115: the node's own traffic is untouched.
#[test]
fn connections_to_the_node_pass_to_the_kernel() {
    isolated("connections_to_the_node_pass_to_the_kernel", || {
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0").unwrap();
        let client = Namespace::new();
        veth("wan0", "wan1", 1);
        client.take("wan1");
        run("ip addr add 192.0.2.1/24 dev wan0; ip addr add 2001:db8:1::1/64 dev wan0 nodad");
        client.run(
            "ip link set wan1 up; ip addr add 192.0.2.10/24 dev wan1; ip addr add 2001:db8:1::10/64 dev wan1 nodad",
        );
        let Opened { ports: _ports, pools: _pools, mut pinholes } = open(&config(&["wan0"])).unwrap();
        pinholes[0].update(&vips()).unwrap();
        for address in ["192.0.2.1", "2001:db8:1::1"] {
            let listener = TcpListener::bind((address, 22)).unwrap();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                text
            });
            let sent = "ssh-like ".repeat(20_000);
            client.within(|| {
                let mut stream = TcpStream::connect((address, 22)).unwrap();
                stream.write_all(sent.as_bytes()).unwrap();
            });
            assert_eq!(server.join().unwrap(), sent);
        }
        let counted = counters(&pinholes);
        assert!(counted.passed > 0);
        assert_eq!((counted.redirected, counted.dropped_dead), (0, 0));
    });
}

/// Where a VLAN tag is in a packet that a kernel sends over a veth is its sender's choice: with `txvlan` on it stays
/// beside the packet and no XDP program can see it, whatever offloads the receiving end has.
#[test]
fn a_veth_delivers_tags_if_its_peer_writes_them_into_the_packet() {
    isolated("a_veth_delivers_tags_if_its_peer_writes_them_into_the_packet", || {
        veth("wan0", "wan1", 1);
        let client = Wire::open("wan1");
        run("mount -t tmpfs none /mnt");
        std::fs::write("/mnt/tag.c", TAGGER).unwrap();
        run("cd /mnt && clang -O2 -g -target bpf -c tag.c -o tag.o && tc qdisc add dev wan1 clsact");
        run("tc filter add dev wan1 egress bpf direct-action object-file /mnt/tag.o section tc");
        let Opened { mut ports, pools, mut pinholes } = open(&config(&["wan0"])).unwrap();
        pinholes[0].update(&vips()).unwrap();
        let packet = udp(CLIENTS[0], VIPS[0], (9, 80), b"x");
        for (ours, theirs, tag) in
            [("on", "off", true), ("off", "off", true), ("on", "on", false), ("off", "on", false)]
        {
            run(&format!("ethtool -K wan0 rxvlan {ours} >/dev/null; ethtool -K wan1 txvlan {theirs} >/dev/null"));
            client.send(&packet);
            let expected = if tag { tagged(&packet, &[(0x8100, 7)]) } else { packet.clone() };
            assert_eq!(receive_all(&mut ports, &pools[0]), [expected], "rxvlan {ours}, peer's txvlan {theirs}");
        }
    });
}

/// Puts VLAN 7 on every packet (helper 18 is `bpf_skb_vlan_push`).
const TAGGER: &str = "
static long (*push)(void *, unsigned short, unsigned short) = (void *)18;
__attribute__((section(\"tc\"), used)) int tag(void *skb) { push(skb, 0x0081, 7); return 0; }
";

/// Called by the tests below in a process of its own: opens, says so, forwards until it is killed.
#[test]
fn role_owner() {
    let Ok(on_death) = std::env::var("TIDEGATE_TEST_OWNER") else { return };
    let on_death = if on_death == "pass" { OnDeath::Pass } else { OnDeath::Drop };
    let Opened { mut ports, pools, mut pinholes } = open(&OpenConfig { on_death, ..config(&["wan0"]) }).unwrap();
    pinholes[0].update(&vips()).unwrap();
    println!("\nowner ready");
    let mut magazine = pools[0].magazine();
    loop {
        let mut batch = Batch::new();
        for port in &mut ports {
            port.rx(&mut batch);
            batch.drain(..).for_each(|frame| magazine.give(frame));
            port.recycle(&mut magazine);
            port.kick();
        }
    }
}

struct Owner {
    child: Child,
    _stdin: Option<ChildStdin>,
}

impl Owner {
    fn start(on_death: &str) -> Owner {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "role_owner", "--nocapture", "--test-threads=1"])
            .env("TIDEGATE_TEST_OWNER", on_death)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "owner ready"), "the owner did not start");
        // The rest of its output has nobody to read it.
        std::thread::spawn(move || lines.count());
        Owner { _stdin: child.stdin.take(), child }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: no pointers; the process is our child and not waited for yet.
        assert_eq!(unsafe { libc::kill(i32::try_from(self.child.id()).unwrap(), signal) }, 0);
    }
}

fn attached(device: &str) -> bool {
    run(&format!("ip link show {device}")).contains("xdp")
}

fn to_vips(client: &Wire, count: usize) {
    for number in 0..count {
        client.send(&udp(CLIENTS[number % 2], VIPS[number % 2], (9, 80), b"for nobody"));
    }
}

#[test]
fn after_a_kill_ours_is_dropped_and_a_restart_goes_on_from_there() {
    isolated("after_a_kill_ours_is_dropped_and_a_restart_goes_on_from_there", || {
        veth("wan0", "wan1", 1);
        let (client, kernel) = (Wire::open("wan1"), Wire::open("wan0"));
        let owner = Owner::start("drop");
        to_vips(&client, 10);
        until("packets handled", || client.drain().is_empty());
        owner.kill();
        assert!(attached("wan0"), "the program stays when its process is killed");
        // The kernel needs a moment to close the sockets of a dead process.
        std::thread::sleep(Duration::from_millis(300));
        kernel.drain();
        to_vips(&client, 100);
        let node = udp(CLIENTS[0], NOT_OURS[0], (9, 22), b"for the kernel");
        client.send(&node);
        until("the node's own packet", || kernel.drain() == [node.clone()]);

        // Its successor finds the program with all it knows: ours is ours before it has said so.
        let Opened { mut ports, pools, mut pinholes } = open(&config(&["wan0"])).unwrap();
        assert!(pinholes[0].is_adopted());
        let counted = counters(&pinholes);
        assert_eq!((counted.redirected, counted.dropped_dead, counted.passed, counted.passed_dead), (10, 100, 1, 0));
        to_vips(&client, 6);
        assert_eq!(receive_all(&mut ports, &pools[0]).len(), 6);
        // It also knows what to remove.
        pinholes[0].update(&Owned::default()).unwrap();
        to_vips(&client, 2);
        until("no longer ours", || counters(&pinholes).passed == 3);

        // A clean end takes the program off.
        drop(ports);
        pinholes.into_iter().for_each(|pinhole| pinhole.close().unwrap());
        assert!(!attached("wan0"));
    });
}

#[test]
fn no_packet_passes_while_one_process_follows_another() {
    isolated("no_packet_passes_while_one_process_follows_another", || {
        veth("wan0", "wan1", 1);
        let (client, kernel) = (Wire::open("wan1"), Wire::open("wan0"));
        let first = Owner::start("drop");
        kernel.drain();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut sent = 0u64;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    to_vips(&client, 2);
                    sent += 2;
                    std::thread::sleep(Duration::from_micros(100));
                }
                sent
            });
            first.kill();
            for _ in 0..3 {
                Owner::start("drop").kill();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            let sent = sender.join().unwrap();
            let Opened { ports: _ports, pools: _pools, pinholes } = open(&config(&["wan0"])).unwrap();
            let counted = counters(&pinholes);
            assert_eq!((counted.redirected + counted.dropped_dead, counted.passed), (sent, 0));
        });
        assert_eq!(kernel.drain(), Vec::<Vec<u8>>::new());
    });
}

/// Called by the test below in a process of its own: opens, says what it found or why it could not.
#[test]
fn role_successor() {
    let Ok(pin_dir) = std::env::var("TIDEGATE_TEST_PINS") else { return };
    match open(&OpenConfig { pin_dir: Some(pin_dir.into()), ..config(&["wan0"]) }) {
        Ok(Opened { mut pinholes, .. }) => {
            let before = counters(&pinholes).redirected;
            let pinhole = &mut pinholes[0];
            pinhole.update(&vips()).unwrap();
            println!(
                "\nadopted {}, pinned {}, redirected {before}",
                pinhole.is_adopted(),
                pinhole.not_pinned().is_none()
            );
        }
        Err(error) => println!("\nrefused: {error}"),
    }
}

/// What a process says that opens `wan0` with the capabilities of a gateway in production and no others.
fn unprivileged_successor(pin_dir: &str) -> String {
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-all,+net_admin,+net_raw,+bpf,+ipc_lock", "--no-new-privs"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "role_successor", "--nocapture", "--test-threads=1"])
        .env("TIDEGATE_TEST_PINS", pin_dir)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = text.lines().find(|line| line.starts_with("adopted ") || line.starts_with("refused: "));
    said.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr))).to_owned()
}

#[test]
fn without_the_right_to_look_at_every_program_the_pinhole_is_found_by_its_pins() {
    isolated("without_the_right_to_look_at_every_program_the_pinhole_is_found_by_its_pins", || {
        run("mount -t tmpfs tmpfs /run && mkdir /run/bpf && mount -t bpf bpf /run/bpf");
        let pins = "/run/bpf/tidegate";
        let pinned = || run(&format!("ls {pins}/*")).lines().filter(|name| name.starts_with("program-")).count();
        veth("wan0", "wan1", 1);
        let client = Wire::open("wan1");
        assert_eq!(unprivileged_successor(pins), "adopted false, pinned true, redirected 0");
        assert_eq!(pinned(), 1);
        // What it left drops what is ours, and is taken over with all it knows, again and again. The kernel needs a moment
        // to close the sockets of a process that ended.
        std::thread::sleep(Duration::from_millis(300));
        to_vips(&client, 4);
        for _ in 0..2 {
            assert_eq!(unprivileged_successor(pins), "adopted true, pinned true, redirected 0");
            assert_eq!(pinned(), 1, "a successor leaves one pin");
        }
        let Opened { pinholes, ports, .. } =
            open(&OpenConfig { pin_dir: Some(pins.into()), ..config(&["wan0"]) }).unwrap();
        assert!(pinholes[0].is_adopted() && counters(&pinholes).dropped_dead == 4, "{:?}", counters(&pinholes));
        drop((pinholes, ports));

        // Elsewhere it is not found: refused with what to do, and left alone.
        let refused = unprivileged_successor("/run/bpf/elsewhere");
        for part in ["refused: wan0 has an XDP program", "/run/bpf/elsewhere", "bpfDir", "CAP_SYS_ADMIN", "xdp off"] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
        assert!(attached("wan0"));
        // Who may look at everything needs no pins, and one that cannot pin works all the same.
        let Opened { mut pinholes, .. } =
            open(&OpenConfig { pin_dir: Some("/run/no-bpf".into()), ..config(&["wan0"]) }).unwrap();
        assert!(pinholes[0].is_adopted());
        let reason = pinholes[0].not_pinned().unwrap();
        assert!(reason.contains("/run/no-bpf"), "{reason}");
        pinholes.remove(0).close().unwrap();

        // Pins of a program that is not there any more mislead nobody, and are replaced.
        assert_eq!(unprivileged_successor(pins), "adopted false, pinned true, redirected 0");
        assert_eq!(pinned(), 1);
        // A clean end takes them away.
        let Opened { mut pinholes, .. } =
            open(&OpenConfig { pin_dir: Some(pins.into()), ..config(&["wan0"]) }).unwrap();
        pinholes.remove(0).close().unwrap();
        assert_eq!(run(&format!("ls {pins}")), "");
    });
}

#[test]
fn a_stopped_process_keeps_its_packets() {
    isolated("a_stopped_process_keeps_its_packets", || {
        veth("wan0", "wan1", 1);
        let (client, kernel) = (Wire::open("wan1"), Wire::open("wan0"));
        let owner = Owner::start("drop");
        kernel.drain();
        owner.signal(libc::SIGSTOP);
        // More than its rings hold.
        to_vips(&client, 5000);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(kernel.drain(), Vec::<Vec<u8>>::new());
        owner.signal(libc::SIGCONT);
        owner.kill();
    });
}

#[test]
fn a_program_that_is_taken_off_is_put_back_and_another_is_left_alone() {
    isolated("a_program_that_is_taken_off_is_put_back_and_another_is_left_alone", || {
        veth("wan0", "wan1", 1);
        let client = Wire::open("wan1");
        let Opened { mut ports, pools, mut pinholes } = open(&config(&["wan0"])).unwrap();
        pinholes[0].update(&vips()).unwrap();
        let packet = udp(CLIENTS[0], VIPS[0], (9, 80), b"x");
        let mut arrives = || {
            client.send(&packet);
            assert_eq!(receive_all(&mut ports, &pools[0]), std::slice::from_ref(&packet));
        };
        assert_eq!(pinholes[0].guard().unwrap(), Guarded::InPlace);
        arrives();
        run("ip link set wan0 xdp off");
        assert!(!attached("wan0"));
        assert_eq!(pinholes[0].guard().unwrap(), Guarded::Reattached);
        assert_eq!(pinholes[0].guard().unwrap(), Guarded::InPlace);
        // It has its maps and its sockets still.
        arrives();
        assert_eq!((counters(&pinholes).redirected, counters(&pinholes).reattached), (2, 1));
        run("mount -t tmpfs none /mnt");
        let source = "__attribute__((section(\"xdp\"), used)) int other(void *context) { return 2; }";
        std::fs::write("/mnt/other.c", source).unwrap();
        run("cd /mnt && clang -O2 -g -target bpf -c other.c -o other.o");
        run("ip link set wan0 xdp off; cd /mnt && ip link set dev wan0 xdp obj other.o sec xdp");
        assert!(matches!(pinholes[0].guard().unwrap(), Guarded::Replaced(id) if id > 0));
        assert!(attached("wan0"), "it is still there");
        assert_eq!(counters(&pinholes).reattached, 1);
    });
}

#[test]
fn pass_on_death_is_an_opt_in() {
    isolated("pass_on_death_is_an_opt_in", || {
        veth("wan0", "wan1", 1);
        let (client, kernel) = (Wire::open("wan1"), Wire::open("wan0"));
        Owner::start("pass").kill();
        std::thread::sleep(Duration::from_millis(300));
        kernel.drain();
        to_vips(&client, 10);
        let mut passed = Vec::new();
        until("ten packets in the kernel", || {
            passed.extend(kernel.drain());
            passed.len() == 10
        });
        let Opened { pinholes, .. } = open(&OpenConfig { on_death: OnDeath::Drop, ..config(&["wan0"]) }).unwrap();
        assert_eq!((counters(&pinholes).passed_dead, counters(&pinholes).dropped_dead), (10, 0));
        // The ports are gone, so the new setting decides.
        to_vips(&client, 4);
        until("four dropped", || counters(&pinholes).dropped_dead == 4);
    });
}

#[test]
fn dropping_a_pinhole_leaves_it_and_a_port_that_is_dropped_leaves_the_map() {
    isolated("dropping_a_pinhole_leaves_it_and_a_port_that_is_dropped_leaves_the_map", || {
        veth("wan0", "wan1", 2);
        let client = Wire::open("wan1");
        let Opened { mut ports, pools, mut pinholes } = open(&config(&["wan0"])).unwrap();
        pinholes[0].update(&vips()).unwrap();
        // The first socket shares its descriptor with the memory, which lives on here.
        drop(ports.remove(0));
        drop(ports.remove(0));
        to_vips(&client, 8);
        until("dropped", || counters(&pinholes).dropped_dead == 8);
        assert_eq!(pools[0].outstanding(), 0);
        drop((pinholes, pools));
        assert!(attached("wan0"));
        let Opened { pinholes, .. } = open(&config(&["wan0"])).unwrap();
        assert_eq!(counters(&pinholes).dropped_dead, 8);
    });
}

fn refusal(config: &OpenConfig) -> (OpenError, String) {
    let error = open(config).unwrap_err();
    let text = error.to_string();
    (error, text)
}

fn one(name: &str, queues: &[u32]) -> OpenConfig {
    OpenConfig {
        interfaces: vec![InterfaceConfig { name: name.to_owned(), queues: Some(queues.to_vec()) }],
        ..config(&[])
    }
}

#[test]
fn what_cannot_work_is_refused_with_the_fix() {
    isolated("what_cannot_work_is_refused_with_the_fix", || {
        veth("wan0", "wan1", 2);
        let check = |config: &OpenConfig, parts: &[&str]| {
            let (_, text) = refusal(config);
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
            assert!(!attached("wan0"), "{text}");
        };
        check(&config(&[]), &["no interface"]);
        check(&config(&["nothere0"]), &["no interface nothere0", "ip link"]);
        check(&config(&["wan0", "wan0"]), &["wan0", "twice"]);
        check(&one("wan0", &[0, 2]), &["wan0 has 2 receive queues (0 to 1), not a queue 2", "ethtool -L"]);
        check(&one("wan0", &[1, 1]), &["queue 1 of wan0 is configured twice"]);
        check(&OpenConfig { frames: 0, ..config(&["wan0"]) }, &["0 frames", "choose"]);
        check(&OpenConfig { frame_bytes: 3000, ..config(&["wan0"]) }, &["3000 bytes", "2048 or 4096"]);
        check(&OpenConfig { mode: ModeChoice::ZeroCopy, ..config(&["wan0"]) }, &["wan0 (driver veth)", "mode: auto"]);
        if run("cat /proc/sys/vm/nr_hugepages").trim() == "0" {
            check(&OpenConfig { huge: HugePages::On, ..config(&["wan0"]) }, &["vm.nr_hugepages", "hugePages: auto"]);
        }

        run("ip link set wan0 mtu 1800");
        check(&config(&["wan0"]), &["MTU of 1800", "at most 1770", "frameBytes: 4096", "mtu 1770"]);
        drop(open(&OpenConfig { frame_bytes: 4096, ..config(&["wan0"]) }).unwrap());
        run("ip link set wan0 xdp off; ip link set wan0 mtu 1500");

        run("ip link set wan0 mtu 9000");
        check(&OpenConfig { frame_bytes: 4096, ..config(&["wan0"]) }, &["MTU of 9000", "at most 3818", "mtu 3818"]);
        check(&OpenConfig { frame_bytes: 8192, ..config(&["wan0"]) }, &["8192 bytes", "2048 or 4096"]);
        run("ip link set wan0 mtu 1500");

        // What only the driver knows.
        run("ip link set wan1 mtu 9000");
        check(&config(&["wan0"]), &["wan0 cannot run XDP at this MTU", "peer"]);
        run("ip link set wan1 mtu 1500");
        // The kernel takes a moment to let go of the queues that were just closed.
        until("fewer queues", || {
            Command::new("ethtool").args(["-L", "wan0", "rx", "1"]).output().unwrap().status.success()
        });
        check(&config(&["wan0"]), &["wan0 has too few queues", "numrxqueues", "ethtool -L"]);
        run("ethtool -L wan0 rx 2");

        // A failure at the second device leaves nothing on the first.
        veth("lan0", "lan1", 1);
        run("ip link set lan1 mtu 9000");
        check(&config(&["wan0", "lan0"]), &["lan0 cannot run XDP"]);
    });
}

#[test]
fn a_program_or_a_socket_of_somebody_else_is_left_alone() {
    isolated("a_program_or_a_socket_of_somebody_else_is_left_alone", || {
        veth("wan0", "wan1", 1);
        run("mount -t tmpfs none /mnt");
        std::fs::write(
            "/mnt/other.c",
            "__attribute__((section(\"xdp\"), used)) int other(void *context) { return 2; }",
        )
        .unwrap();
        run(
            "cd /mnt && clang -O2 -g -target bpf -c other.c -o other.o && ip link set dev wan0 xdp obj other.o sec xdp",
        );
        let (error, text) = refusal(&config(&["wan0"]));
        assert!(matches!(error, OpenError::ForeignProgram { .. }));
        assert!(text.contains("wan0") && text.contains("other") && text.contains("xdp off"), "{text}");
        assert!(attached("wan0"));
        // Also when it is attached the other way.
        run("ip link set wan0 xdp off; cd /mnt && ip link set dev wan0 xdpgeneric obj other.o sec xdp");
        assert!(matches!(refusal(&config(&["wan0"])).0, OpenError::ForeignProgram { .. }));
        run("ip link set wan0 xdpgeneric off");

        // A second instance fails, and the first does not notice.
        let client = Wire::open("wan1");
        let Opened { mut ports, pools, mut pinholes } = open(&config(&["wan0"])).unwrap();
        pinholes[0].update(&vips()).unwrap();
        let (error, text) = refusal(&config(&["wan0"]));
        assert!(matches!(error, OpenError::Busy { .. }) && text.contains("queue 0 of wan0 is in use"), "{text}");
        to_vips(&client, 4);
        assert_eq!(receive_all(&mut ports, &pools[0]).len(), 4);
    });
}

#[test]
fn the_same_queues_can_be_opened_again_at_once_and_in_another_mode() {
    isolated("the_same_queues_can_be_opened_again_at_once_and_in_another_mode", || {
        veth("wan0", "wan1", 2);
        let client = Wire::open("wan1");
        let modes = [
            (ModeChoice::Auto, Mode::Copy),
            (ModeChoice::Copy, Mode::Copy),
            (ModeChoice::Skb, Mode::Skb),
            (ModeChoice::Copy, Mode::Copy),
        ];
        for (choice, mode) in modes {
            let Opened { mut ports, pools, mut pinholes } =
                open(&OpenConfig { mode: choice, ..config(&["wan0"]) }).unwrap();
            assert!(ports.iter().all(|port| port.facts().mode == mode));
            pinholes[0].update(&vips()).unwrap();
            to_vips(&client, 4);
            assert_eq!(receive_all(&mut ports, &pools[0]).len(), 4, "{mode}");
        }
    });
}

#[test]
fn full_batches_are_sent_in_both_directions() {
    isolated("full_batches_are_sent_in_both_directions", || {
        veth("wan0", "wan1", 1);
        let Opened { mut ports, pools, mut pinholes } = open(&config(&["wan0"])).unwrap();
        pinholes[0].update(&vips()).unwrap();
        let client = Wire::open("wan1");
        let mut magazine = pools[0].magazine();
        let packet = udp(VIPS[0], CLIENTS[0], (80, 9), &[7; 100]);
        for _ in 0..20 {
            let mut batch = Batch::new();
            for _ in 0..BATCH_MAX {
                let mut frame = magazine.take().unwrap();
                assert!(frame.fill(&packet));
                batch.push(frame);
            }
            assert_eq!(ports[0].tx(&mut batch), BATCH_MAX);
            ports[0].kick();
            ports[0].recycle(&mut magazine);
        }
        let mut arrived = 0;
        until("all sent", || {
            ports[0].kick();
            ports[0].recycle(&mut magazine);
            arrived += client.drain().iter().filter(|one| **one == packet).count();
            arrived == 20 * 64
        });
        until("all completed", || {
            ports[0].recycle(&mut magazine);
            ports[0].counters().tx_completed == 20 * 64
        });
        assert_eq!(ports[0].counters().kick_errors, 0);
        // Sleeping ends when a packet comes.
        let descriptor = ports[0].descriptor().unwrap();
        assert_eq!(tidegate_io::mem::sleep_on(&[descriptor], Duration::ZERO).unwrap(), 0);
        to_vips(&client, 1);
        assert_eq!(tidegate_io::mem::sleep_on(&[descriptor], Duration::from_secs(10)).unwrap(), 1);
    });
}

/// One device's worker reflects through `forward`, so that this test covers a whole turn.
#[test]
fn a_turn_between_two_queues_of_one_device() {
    isolated("a_turn_between_two_queues_of_one_device", || {
        veth("wan0", "wan1", 2);
        let client = Wire::open("wan1");
        let Opened { mut ports, pools, mut pinholes } = open(&config(&["wan0"])).unwrap();
        pinholes[0].update(&vips()).unwrap();
        let (one, two) = ports.split_at_mut(1);
        let mut magazine = pools[0].magazine();
        let packets: BTreeSet<Vec<u8>> =
            (0..100).map(|port| udp(CLIENTS[0], VIPS[0], (1000 + port, 80), b"x")).collect();
        packets.iter().for_each(|packet| client.send(packet));
        let mut returned = BTreeSet::new();
        until("everything to come back", || {
            forward(&mut one[0], &mut two[0], &mut magazine);
            forward(&mut two[0], &mut one[0], &mut magazine);
            returned.extend(client.drain());
            returned == packets
        });
    });
}

fn support_echo(from: &str, to: &str) -> Vec<u8> {
    use etherparse::PacketBuilder;
    let ethernet = PacketBuilder::ethernet2(support::CLIENT_MAC, support::GATEWAY_MAC);
    let mut packet = Vec::new();
    match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            ethernet
                .ipv4(from.octets(), to.octets(), 64)
                .icmpv4_echo_request(1, 1)
                .write(&mut packet, b"ping")
                .unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            ethernet
                .ipv6(from.octets(), to.octets(), 64)
                .icmpv6_echo_request(1, 1)
                .write(&mut packet, b"ping")
                .unwrap();
        }
        _ => panic!("two families"),
    }
    packet
}

fn ip_packet(from: &str, to: &str) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = etherparse::PacketBuilder::ethernet2(support::CLIENT_MAC, support::GATEWAY_MAC);
    match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("two families"),
    }
}

fn tcp(from: &str, to: &str, ports: (u16, u16)) -> Vec<u8> {
    let mut packet = Vec::new();
    ip_packet(from, to).tcp(ports.0, ports.1, 1, 1000).write(&mut packet, b"segment").unwrap();
    packet
}

/// A packet of this protocol with this payload.
fn ip_in_ip(from: &str, to: &str, protocol: u8, inside: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    ip_packet(from, to).write(&mut packet, etherparse::IpNumber(protocol), inside).unwrap();
    packet
}

/// An ICMP error of type `kind` that quotes the packet in the frame `about`.
fn error(from: &str, to: &str, kind: u8, about: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match ip(from) {
        IpAddr::V4(_) => ip_packet(from, to).icmpv4_raw(kind, 1, [0; 4]).write(&mut packet, &about[14..]).unwrap(),
        IpAddr::V6(_) => ip_packet(from, to).icmpv6_raw(kind, 0, [0; 4]).write(&mut packet, &about[14..]).unwrap(),
    }
    packet
}

fn arp(operation: u8, target: &str) -> Vec<u8> {
    let IpAddr::V4(target) = ip(target) else { panic!("ARP is IPv4") };
    [
        &[0xff; 6][..],
        &support::CLIENT_MAC,
        &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation],
        &support::CLIENT_MAC,
        &[192, 0, 2, 10],
        &[0; 6],
        &target.octets(),
    ]
    .concat()
}

fn solicitation(to: &str, target: &str) -> Vec<u8> {
    let (IpAddr::V6(from), IpAddr::V6(to), IpAddr::V6(target)) = (ip(CLIENTS[1]), ip(to), ip(target)) else {
        panic!("solicitations are IPv6")
    };
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ethernet2(support::CLIENT_MAC, [0x33, 0x33, 0xff, 0, 1, 0])
        .ipv6(from.octets(), to.octets(), 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut packet, &target.octets())
        .unwrap();
    packet
}

/// The IPv4 packet with another flags-and-offset field; nobody here looks at the header's sum.
/// The packet with an IPv4 header of so many 32-bit words, filled up with options that do nothing.
fn options(packet: &[u8], words: u8) -> Vec<u8> {
    let more = usize::from(words - 5) * 4;
    let mut packet = packet.to_vec();
    packet.splice(34..34, std::iter::repeat_n(1, more));
    packet[14] = 0x40 | words;
    let length = u16::try_from(packet.len() - 14).unwrap();
    packet[16..18].copy_from_slice(&length.to_be_bytes());
    packet
}

fn fragment(packet: &[u8], field: u16) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[20..22].copy_from_slice(&field.to_be_bytes());
    packet
}

/// The IPv6 packet with a fragment header put in.
fn fragment_v6(packet: &[u8], field: u16) -> Vec<u8> {
    let (head, rest) = packet.split_at(54);
    let mut head = head.to_vec();
    let next = std::mem::replace(&mut head[20], 44);
    [&head[..], &[next, 0], &field.to_be_bytes(), &[0, 0, 0, 1], rest].concat()
}

/// A veth pair of an MTU of 9000, its near end open for packets in several frames.
fn jumbo() -> (Wire, Opened) {
    veth("wan0", "wan1", 1);
    run("ip link set wan0 mtu 9000; ip link set wan1 mtu 9000");
    let opened = open(&OpenConfig { frame_bytes: 4096, multi_buffer: true, ..config(&["wan0"]) }).unwrap();
    (Wire::open("wan1"), opened)
}

/// A packet of `length` bytes that no other number has.
fn numbered(family: usize, from: [&str; 2], to: [&str; 2], number: u16, length: usize) -> Vec<u8> {
    let headers = [14 + 20 + 8, 14 + 40 + 8][family];
    let payload: Vec<u8> = (0..length - headers).map(|at| (at * 7 + usize::from(number)).to_le_bytes()[0]).collect();
    udp(from[family], to[family], (1024 + number, 80), &payload)
}

/// A packet in as many frames as it takes.
fn in_frames(magazine: &mut Magazine, packet: &[u8]) -> Batch {
    let mut frames = Batch::new();
    for piece in packet.chunks(4096 - 256) {
        let mut frame = magazine.take().unwrap();
        assert!(frame.fill(piece));
        frames.push(frame);
    }
    frames
}

const LENGTHS: [usize; 7] = [9014, 100, 3840, 3841, 7680, 7681, 9014];

#[test]
fn packets_in_several_frames_are_received_whole() {
    isolated("packets_in_several_frames_are_received_whole", || {
        let (client, Opened { mut ports, pools, mut pinholes }) = jumbo();
        pinholes[0].update(&vips()).unwrap();
        let port = &mut ports[0];
        assert!(port.has_chains());
        let sent: Vec<Vec<u8>> = (0..140)
            .map(|number| numbered(usize::from(number % 2), CLIENTS, VIPS, number, LENGTHS[usize::from(number) % 7]))
            .collect();
        let (mut magazine, mut chains, mut arrived) = (pools[0].magazine(), Chains::new(), Vec::new());
        for some in sent.chunks(70) {
            // More than a batch holds at once, so batches end in the middle of packets.
            some.iter().for_each(|packet| client.send(packet));
            until("all of them", || {
                let count = port.rx_chains(&mut chains);
                assert_eq!(count, chains.len());
                arrived.extend(chains.iter().map(|packet| {
                    let bytes: Vec<u8> = packet.iter().flat_map(|frame| frame.bytes().to_vec()).collect();
                    assert_eq!(packet.len(), bytes.len().div_ceil(4096 - 256));
                    bytes
                }));
                chains.drain().for_each(|frame| magazine.give(frame));
                port.recycle(&mut magazine);
                port.kick();
                arrived.len() % 70 == 0
            });
        }
        assert!(arrived == sent, "{} of {}", arrived.len(), sent.len());
        let counters = port.counters();
        let bytes: usize = sent.iter().map(Vec::len).sum();
        assert_eq!((counters.rx_packets, counters.rx_bytes, counters.rx_violations), (140, bytes as u64, 0));

        // Who asks for single frames gets those, and no part of others.
        sent[..14].iter().for_each(|packet| client.send(packet));
        let single: Vec<Vec<u8>> = sent[..14].iter().filter(|packet| packet.len() <= 3840).cloned().collect();
        assert_eq!(single.len(), 4);
        assert_eq!(receive_all(&mut ports, &pools[0]), single);
        assert_eq!((ports[0].counters().rx_violations, ports[0].counters().rx_packets), (10, 144));
        assert_eq!(ports[0].socket_statistics().unwrap(), Some(Default::default()));
        drop((ports, magazine));
        assert_eq!(pools[0].outstanding(), 0);
    });
}

#[test]
fn packets_in_several_frames_are_sent_whole() {
    isolated("packets_in_several_frames_are_sent_whole", || {
        let (client, Opened { mut ports, pools, pinholes: _pinholes }) = jumbo();
        let port = &mut ports[0];
        let mut magazine = pools[0].magazine();
        let packet =
            |number: u16| numbered(usize::from(number % 2), VIPS, CLIENTS, number, LENGTHS[usize::from(number) % 7]);
        // Until the ring is full: what has no room for all of it stays where it is.
        let (mut chains, mut next, mut stuck) = (Chains::new(), 0, false);
        while !stuck {
            while chains.room() >= 3 {
                assert!(chains.push(&mut in_frames(&mut magazine, &packet(next))));
                next += 1;
            }
            let before = chains.len();
            let taken = port.tx_chains(&mut chains);
            assert_eq!(chains.len(), before - taken);
            stuck = taken == 0;
        }
        let accepted = u64::from(next) - chains.len() as u64;
        assert_eq!(port.counters().tx_packets, accepted);
        assert!(accepted > 300 && port.levels().unwrap().tx.0 > 1020, "{:?}", port.levels());
        let mut arrived = Vec::new();
        until("the rest to go, and all to arrive", || {
            port.tx_chains(&mut chains);
            port.kick();
            port.recycle(&mut magazine);
            arrived.extend(client.drain());
            arrived.len() == usize::from(next) && port.counters().tx_completed == u64::from(next)
        });
        assert!(arrived.iter().zip(0..).all(|(bytes, number)| *bytes == packet(number)));

        // Too long for the device, and of memory that is not the port's.
        let theirs = Pool::new(64, 4096, HugePages::Off).unwrap();
        let mut foreign = theirs.magazine();
        let long = vec![0x55; 9023];
        assert!(chains.push(&mut in_frames(&mut magazine, &long)));
        assert!(chains.push(&mut in_frames(&mut foreign, &packet(0))));
        assert!(chains.push(&mut in_frames(&mut foreign, &packet(1))));
        assert_eq!((port.tx_chains(&mut chains), chains.len()), (3, 0));
        port.kick();
        until("the copy", || {
            arrived = client.drain();
            !arrived.is_empty()
        });
        assert!(arrived == [packet(1)]);
        until("its completion", || {
            port.recycle(&mut magazine);
            port.counters().tx_completed == u64::from(next) + 1
        });
        let counters = port.counters();
        assert_eq!((counters.tx_rejected, counters.tx_copied, counters.tx_packets), (2, 1, u64::from(next) + 1));
        assert_eq!((counters.tx_violations, counters.kick_errors), (0, 0));
        drop((ports, magazine, foreign));
        assert_eq!(pools[0].outstanding(), 0);
    });
}

/// A port that was not opened for such leaves them with whoever has them.
#[test]
fn packets_in_several_frames_need_a_port_for_such() {
    isolated("packets_in_several_frames_need_a_port_for_such", || {
        veth("wan0", "wan1", 1);
        let client = Wire::open("wan1");
        let Opened { mut ports, pools, mut pinholes } = open(&config(&["wan0"])).unwrap();
        pinholes[0].update(&vips()).unwrap();
        let (port, mut magazine, mut chains) = (&mut ports[0], pools[0].magazine(), Chains::new());
        assert!(!port.has_chains());
        let packet = numbered(0, VIPS, CLIENTS, 1, 1000);
        let mut pieces = in_frames(&mut magazine, &packet[..500]);
        pieces.extend(in_frames(&mut magazine, &packet[500..]));
        assert!(chains.push(&mut in_frames(&mut magazine, &packet)) && chains.push(&mut pieces));
        assert_eq!((port.tx_chains(&mut chains), chains.len()), (0, 2));
        chains.drain().for_each(|frame| magazine.give(frame));
        assert!(chains.push(&mut in_frames(&mut magazine, &packet)));
        assert_eq!((port.tx_chains(&mut chains), chains.len()), (1, 0));
        port.kick();
        until("one in one frame", || client.drain() == [packet.clone()]);
        to_vips(&client, 4);
        until("those that arrive", || {
            port.rx_chains(&mut chains);
            chains.len() == 4
        });
        chains.drain().for_each(|frame| magazine.give(frame));
    });
}
