//! A seeded simulation of egress: pods that speak to the outside and to each other through one, two or eight workers over a
//! good or a bad network, with few ports that move between workers, while policies, addresses and pods come and go and time
//! jumps.
//!
//! Packets arrive on any queue and in fragments, answers too. Whatever happens: nothing leaves with a pod's own address, no
//! port leads to two pods nor twice to one remote, flows live with the worker that owns their packets, the books of every
//! worker balance, and no packet changes hands more often than it may; and when everybody is silent everything ends, every
//! port is somebody's to give out, and no frame is lost. A failure prints its seed; `TIDEGATE_SEED=n` runs that one.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tidegate_api::resource::{Egress, Filtering};
use tidegate_dataplane::family::Family;
use tidegate_dataplane::rig::expect::from_peer;
use tidegate_dataplane::rig::fleet::{Fleet, Plan};
use tidegate_dataplane::rig::outside::{self, Outside, external, policy};
use tidegate_dataplane::rig::sketch::{End, Sketch, Trouble, ping, pong, raw, sctp, tcp, trouble, udp};
use tidegate_dataplane::rig::{self, FROM_ROUTER, LAN, Net, WAN};
use tidegate_dataplane::state::FlowTable;
use tidegate_dataplane::table::egress::PortClass;
use tidegate_dataplane::table::owner::WorkerId;
use tidegate_dataplane::table::{DeviceId, Tables};
use tidegate_io::fault::Faults;

const SECOND: u64 = 1_000_000_000;
/// What goes wrong on the way, out of 65,536 packets.
const BAD: Faults = Faults { drop: 1100, duplicate: 1100, reorder: 6000, truncate: 1100, corrupt: 1100 };
/// Ports of the first address that anybody may give out at the start, all with worker 0.
const FEW: usize = 48;
/// Pods: peer and number.
const PODS: [(u8, u8); 6] = [(0, 5), (0, 6), (1, 7), (0, 8), (0, 9), (1, 10)];

struct World {
    fleet: Fleet,
    outside: Outside,
    random: u64,
    air: Vec<(DeviceId, Vec<u8>)>,
    /// Ends that were seen outside.
    seen: Vec<End>,
    faults: bool,
    left: u64,
    came: u64,
    moved: u64,
}

fn tables() -> (Tables, Outside) {
    let (mut tables, mut outside) = outside::town();
    for (n, p) in PODS {
        outside.pod(&mut tables, &name(p), &Net::BOTH.map(|net| net.pod(n, p)), &["out"]);
    }
    let few: Vec<u16> = (40_000..).take(FEW).collect();
    let others: Vec<u16> = (1024..=65_535).filter(|port| !few.contains(port)).collect();
    let owners = Arc::clone(&tables.owners);
    let egress = Arc::make_mut(&mut tables.egress);
    let ids: Vec<_> = egress.externals().map(|(id, _)| id).collect();
    for (id, class) in ids.into_iter().flat_map(|id| PortClass::ALL.map(|class| (id, class))) {
        egress.move_ports(&owners, id, class, &others, WorkerId(0), false);
    }
    (tables, outside)
}

fn name(p: u8) -> String {
    match p {
        5 => "shop/five".into(),
        6 => "shop/six".into(),
        7 => "blog/seven".into(),
        _ => format!("shop/more-{p}"),
    }
}

/// Cuts what a packet carries into pieces of `size` bytes, a multiple of eight.
fn cut(whole: &Sketch, size: usize, id: u16) -> Vec<Sketch> {
    let header = if whole.from.0.is_ipv4() { 20 } else { 40 };
    let packet = whole.clone().may_fragment().packet();
    let body = &packet[header..];
    let piece = |(n, data): (usize, &[u8])| {
        let piece = raw(whole.from.0, whole.to.0, whole.number()).data(data);
        Sketch { id, ..piece }.fragment((n * size) as u16, n * size + data.len() < body.len())
    };
    body.chunks(size).enumerate().map(piece).collect()
}

/// What can be seen of an IP packet that is no later fragment: protocol, ends, bytes of L4.
fn read(packet: &[u8]) -> Option<(u8, End, End, &[u8])> {
    let word = |at: usize| packet.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
    let (from, to, mut protocol, mut at): (IpAddr, IpAddr, u8, usize) = if packet.first()? >> 4 == 4 {
        if word(6)? & 0x1fff != 0 {
            return None;
        }
        let of = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
        (of(12)?, of(16)?, packet[9], 20)
    } else {
        let of = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
        (of(8)?, of(24)?, packet[6], 40)
    };
    if protocol == 44 {
        if word(42)? & 0xfff8 != 0 {
            return None;
        }
        (protocol, at) = (packet[40], 48);
    }
    let l4 = packet.get(at..)?;
    let (source, destination) = match protocol {
        6 | 17 | 132 => (word(at)?, word(at + 2)?),
        _ => (word(at + 4)?, word(at + 4)?),
    };
    Some((protocol, (from, source), (to, destination), l4))
}

fn identified(packet: Sketch, id: u16) -> Sketch {
    let [high, low] = id.to_be_bytes();
    let rest = [high, low, 0, 9];
    match packet.body {
        rig::sketch::Body::Icmp { kind, code, .. } => {
            Sketch { body: rig::sketch::Body::Icmp { kind, code, rest }, ..packet }
        }
        _ => packet,
    }
}

impl World {
    fn new(workers: u16, seed: u64, faults: bool) -> World {
        let (tables, outside) = tables();
        let faulty = if faults { BAD } else { Faults::default() };
        // Every other world has a NIC that is followed.
        let nic = seed.is_multiple_of(2);
        let plan = Plan { flows: 512, faults: faulty, hand_over_packets: 64, seed, nic, ..Plan::of(workers) };
        let fleet = Fleet::with(tables, plan).unwrap();
        World { fleet, outside, random: seed, air: vec![], seen: vec![], faults, left: 0, came: 0, moved: 0 }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn small(&mut self, limit: u16) -> u16 {
        self.below(limit.into()) as u16
    }

    /// A pod says something, whole or in pieces.
    fn speak(&mut self) {
        let net = Net::BOTH[self.below(2) as usize];
        let (n, p) = PODS[self.below(PODS.len() as u64) as usize];
        let from = (net.pod(n, p), 2000 + self.small(12));
        let mut to = (net.client(60 + self.small(4)), 5000 + self.small(3));
        // One in five speaks to another pod, by where it was seen.
        if self.below(5) == 0 && !self.seen.is_empty() {
            let at = self.below(self.seen.len() as u64) as usize;
            to = if self.seen[at].0.is_ipv4() == from.0.is_ipv4() { self.seen[at] } else { to };
        }
        let packet = match self.below(16) {
            0..=3 => udp(from, to).data([1; 60]),
            4 => udp(from, to).data([2; 300]).may_fragment(),
            5 => return self.speak_long(net, n, udp(from, to).data([3; 900])),
            6 | 7 => tcp(from, to).syn(100),
            8 => tcp(from, to).segment("PA", 101, 501).data([4; 100]),
            9 => tcp(from, to).segment("FA", 201, 501),
            10 => sctp(from, to).init(1, 9),
            11 => sctp(from, to).tag(8).chunk(10, 0, b"cookie"),
            12 => identified(ping(from.0, to.0), from.1),
            13 => return self.speak_long(net, n, identified(ping(from.0, to.0).data([5; 900]), from.1)),
            14 => raw(from.0, to.0, 47).data([6; 80]),
            _ => tcp(from, to).segment("R", 101, 501),
        };
        self.air.push((LAN, from_peer(net, n, &packet)));
    }

    fn pieces(&mut self, whole: &Sketch) -> Vec<Sketch> {
        let size = 8 * (20 + usize::from(self.small(60)));
        let id = self.small(40);
        let mut pieces = cut(whole, size, id);
        match self.below(6) {
            0 | 1 => pieces.reverse(),
            2 => drop(pieces.swap_remove(self.below(pieces.len() as u64) as usize)),
            _ => {}
        }
        pieces
    }

    fn speak_long(&mut self, net: Net, n: u8, whole: Sketch) {
        let pieces = self.pieces(&whole);
        self.air.extend(pieces.iter().map(|piece| (LAN, from_peer(net, n, piece))));
    }

    /// The outside sees what left, and answers; pods answer what reached them.
    fn listen(&mut self) {
        for frame in self.fleet.sent(WAN) {
            self.left += 1;
            self.remote_answers(&frame[14..]);
        }
        for frame in self.fleet.sent(LAN) {
            let Some((_, _, inner)) = rig::into_peer(&frame) else { continue };
            self.came += 1;
            self.pod_answers(&inner[14..]);
        }
    }

    /// N-110, N-111: nobody but external addresses is seen outside.
    fn remote_answers(&mut self, packet: &[u8]) {
        let at = if packet[0] >> 4 == 4 { (12, 4) } else { (8, 16) };
        let ours: Vec<IpAddr> = Net::BOTH.into_iter().flat_map(|net| (1..8).map(move |n| external(net, n))).collect();
        let source: IpAddr = match <[u8; 4]>::try_from(&packet[at.0..at.0 + at.1]) {
            Ok(v4) => v4.into(),
            Err(_) => <[u8; 16]>::try_from(&packet[at.0..at.0 + at.1]).unwrap().into(),
        };
        assert!(ours.contains(&source), "{source} is seen outside\n{}", self.fleet.told());
        let Some((protocol, from, to, l4)) = read(packet) else { return };
        if protocol == 17 {
            self.seen.push(from);
            if self.seen.len() > 20 {
                self.seen.remove(0);
            }
        }
        let answer = match protocol {
            17 if self.below(8) == 0 => {
                return self.answer_long(udp(to, from).data([7; 900]));
            }
            17 if self.below(10) == 0 => trouble(to.0, from.0, Trouble::Port, packet),
            17 => udp((to.0, to.1 + self.small(2)), from).data([8; 40]),
            6 if l4[13] & 4 != 0 => return,
            6 if l4[13] & 2 != 0 && self.below(8) == 0 => tcp(to, from).segment("RA", 0, 101),
            6 if l4[13] & 2 != 0 => tcp(to, from).syn_ack(500, 101),
            6 if l4[13] & 1 != 0 => tcp(to, from).segment("FA", 501, 202),
            6 => tcp(to, from).ack(501, 201),
            132 if l4.get(12) == Some(&1) => sctp(to, from).tag(9).init(2, 8),
            132 if l4.get(12) == Some(&10) => sctp(to, from).tag(9).chunk(11, 0, &[]),
            132 => sctp(to, from).tag(9).chunk(0, 3, &[1; 40]),
            1 | 58 if !matches!(l4[0], 8 | 128) => return,
            1 | 58 if self.below(4) == 0 => {
                return self.answer_long(identified(pong(to.0, from.0).data([9; 900]), from.1));
            }
            1 | 58 => identified(pong(to.0, from.0), from.1),
            _ => raw(to.0, from.0, protocol).data([6; 80]),
        };
        // One in twelve is somebody else's doing.
        let answer = if self.below(12) == 0 { answer.between((to.0, 9), from) } else { answer };
        self.air.push((WAN, answer.frame(FROM_ROUTER)));
    }

    fn answer_long(&mut self, whole: Sketch) {
        let pieces = self.pieces(&whole);
        self.air.extend(pieces.iter().map(|piece| (WAN, piece.frame(FROM_ROUTER))));
    }

    fn pod_answers(&mut self, packet: &[u8]) {
        let Some((protocol, from, to, l4)) = read(packet) else { return };
        let net = if from.0.is_ipv4() { Net::BOTH[0] } else { Net::BOTH[1] };
        let Some((n, _)) = PODS.into_iter().find(|(n, p)| net.pod(*n, *p) == to.0) else {
            panic!("{to:?} is no pod\n{}", self.fleet.told());
        };
        let answer = match protocol {
            17 if self.below(12) == 0 => trouble(to.0, from.0, Trouble::Port, packet),
            17 if self.below(3) == 0 => udp(to, from).data([1; 30]),
            6 if l4[13] & 6 == 2 => tcp(to, from).syn_ack(700, 101),
            6 if l4[13] & 18 == 18 => tcp(to, from).ack(101, 501),
            132 if l4.get(12) == Some(&2) => sctp(to, from).tag(8).chunk(10, 0, b"cookie"),
            _ => return,
        };
        self.air.push((LAN, from_peer(net, n, &answer)));
    }

    /// The network delivers a few messages, each to any queue.
    fn deliver(&mut self) {
        for _ in 0..self.below(40) {
            if self.air.is_empty() {
                break;
            }
            let last = self.air.len() as u64;
            let at = if self.faults && self.below(5) == 0 { self.below(last) as usize } else { 0 };
            let (device, frame) = self.air.remove(at);
            let queue = self.below(self.fleet.workers.len() as u64) as usize;
            self.fleet.inject(queue, device, &frame);
        }
        self.air.truncate(300);
    }

    /// Policies, addresses or pods change; packets that are on their way meet it. A lap of the sweep ends what is over.
    fn publish(&mut self) {
        let first = 1 + self.small(3) as u8;
        let count = 1 + self.small(2) as u8;
        let addresses: Vec<IpAddr> =
            Net::BOTH.into_iter().flat_map(|net| (first..first + count).map(move |n| external(net, n))).collect();
        let mut egress = Egress { other_protocols: self.below(3) > 0, ..policy(&addresses) };
        if self.below(2) == 0 {
            egress.udp.filtering = Filtering::EndpointIndependent;
        }
        egress.ports_per_pod_max = (self.below(4) == 0).then_some(5);
        egress.ports_per_namespace_max = (self.below(4) == 0).then_some(12);
        let (n, p) = PODS[self.below(PODS.len() as u64) as usize];
        let (what, outside) = (self.below(12), &mut self.outside);
        self.fleet.publish(|tables| match what {
            0 => outside.remove_pod(tables, &name(p)),
            1..=4 => outside.pod(tables, &name(p), &Net::BOTH.map(|net| net.pod(n, p)), &["out"]),
            5 => outside.policy(tables, "out", None),
            _ => outside.policy(tables, "out", Some(&egress)),
        });
        for _ in 0..3 {
            self.deliver();
            self.fleet.turn();
        }
        for _ in 0..6 {
            self.fleet.now_ns += SECOND;
            self.fleet.turn();
        }
        self.listen();
    }

    fn run(&mut self, steps: u32) {
        for step in 0..steps {
            for _ in 0..self.below(12) {
                self.speak();
            }
            self.deliver();
            self.fleet.turn();
            self.listen();
            if self.below(4) == 0 {
                self.moved += self.fleet.move_ports() as u64;
            }
            match self.below(60) {
                0 | 1 => self.publish(),
                2 => self.fleet.now_ns += self.below(200) * SECOND,
                _ => {}
            }
            if step % 16 == 0 {
                self.check();
            }
        }
    }

    fn check(&self) {
        self.fleet.expect_balance();
        if !self.faults {
            self.fleet.expect_ports_balance();
        }
        let counted = self.fleet.counted();
        assert_eq!(counted.get("EditRefused"), None, "{}", self.fleet.told());
        assert_eq!(counted.get("HandOverLoop"), None, "{}", self.fleet.told());
        self.check_mappings::<[u8; 4]>();
        self.check_mappings::<[u8; 16]>();
    }

    /// N-003, N-042: a port of datagrams or echoes leads to one pod's port, whoever gave it out; no flow is known twice, by
    /// whichever worker: no port is used twice for one remote.
    fn check_mappings<A: Family>(&self) {
        let (mut inside_of, mut answers) = (BTreeMap::new(), BTreeSet::new());
        for worker in &self.fleet.workers {
            let flows: &FlowTable<A> = A::flows(worker.state());
            flows.visit(0, u32::MAX, |_, entry| {
                if !entry.is_egress() {
                    return;
                }
                let (from, to) = (entry.original_tuple(), entry.translated_tuple());
                let protocol = entry.protocol();
                let outside = (protocol, to.source, to.source_port);
                assert!(answers.insert((outside, to.destination, to.destination_port)), "{entry:?} is there twice");
                if matches!(protocol, 17 | 1 | 58) {
                    let inside = (from.source, from.source_port);
                    let known = inside_of.entry(outside).or_insert(inside);
                    assert_eq!(*known, inside, "{outside:?} is two pods'\n{}", self.fleet.told());
                }
            });
        }
    }

    /// Everybody falls silent: nothing remains, and every port is some worker's.
    fn end(mut self) {
        for _ in 0..20 {
            self.fleet.turn();
            self.listen();
            self.air.clear();
        }
        self.fleet.now_ns += 8000 * SECOND;
        for _ in 0..400 {
            self.fleet.now_ns += SECOND / 2;
            self.fleet.turn();
        }
        self.listen();
        assert_eq!(self.fleet.live().iter().sum::<u64>(), 0, "{}", self.fleet.told());
        for worker in &self.fleet.workers {
            let egress = &worker.state().egress;
            assert!(worker.state().fragments.is_empty());
            assert_eq!(egress.ports.tallies().map(|(.., tally)| tally.held).sum::<u32>(), 0);
            assert_eq!(egress.v4.live() + egress.v6.live(), 0);
        }
        self.check();
        self.fleet.expect_flows_at_home();
        self.fleet.expect_all_frames_home();
    }
}

/// Says the seed of a run that panics.
struct Say(u16, u64, bool);

impl Drop for Say {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Say(workers, seed, faults) = self;
            eprintln!("{workers} workers, seed {seed}, faults: {faults}; run it again with TIDEGATE_SEED={seed}");
        }
    }
}

fn simulate(workers: u16, faults: bool, steps: u32) {
    let given = std::env::var("TIDEGATE_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in given.map_or_else(|| vec![1, 2, 3, 5, 8], |seed| vec![seed]) {
        let _say = Say(workers, seed, faults);
        let mut world = World::new(workers, seed, faults);
        world.run(steps);
        let counted = |name| world.fleet.counted().get(name).copied().unwrap_or(0);
        assert!(world.left > u64::from(steps) / 2 && world.came > u64::from(steps) / 3, "{}", world.fleet.told());
        assert!(counted("hairpinned") > 0 && counted("error_translated") > 0, "{}", world.fleet.told());
        assert!(counted("fragment_held") > 0 && counted("mapping_used") > 0, "{}", world.fleet.told());
        assert!(counted("answered_prohibited") > 0, "{}", world.fleet.told());
        assert_eq!((world.moved > 0, counted("handed_over") > 0), (workers > 1, workers > 1), "{}", world.fleet.told());
        world.end();
    }
}

#[test]
fn one_worker_on_a_good_network() {
    simulate(1, false, 1000);
}

#[test]
fn one_worker_on_a_bad_network() {
    simulate(1, true, 1000);
}

#[test]
fn two_workers_on_a_good_network() {
    simulate(2, false, 1000);
}

#[test]
fn two_workers_on_a_bad_network() {
    simulate(2, true, 1000);
}

#[test]
fn eight_workers_on_a_good_network() {
    simulate(8, false, 700);
}

#[test]
fn eight_workers_on_a_bad_network() {
    simulate(8, true, 700);
}
