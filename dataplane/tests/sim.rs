//! A seeded simulation: clients and pods that talk through one, two or eight workers over a bad network, while tables
//! change, affinity is toggled, nodes come and go and time jumps.
//!
//! Packets arrive on any queue, workers turn in any order, datagrams come in fragments. Whatever happens, the books of
//! every worker balance, no frame is lost, nothing leaves untranslated, usage equals flows, and no packet changes hands
//! more than twice; and when everybody has gone, every flow ends. A failure prints its seed; `TIDEGATE_SEED=n` runs that
//! one.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tidegate_dataplane::fuzzing::{self, check_sent};
use tidegate_dataplane::rig::expect::from_peer;
use tidegate_dataplane::rig::fleet::{Fleet, Plan};
use tidegate_dataplane::rig::sketch::{End, Sketch, Trouble, crc32c, raw, sctp, tcp, trouble, udp};
use tidegate_dataplane::rig::{self, Endpoint, FROM_ROUTER, LAN, Net, WAN};
use tidegate_dataplane::table::neighbour::{NeighbourRow, NeighbourState};
use tidegate_dataplane::table::{DeviceId, Tables};
use tidegate_io::fault::Faults;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn small(&mut self, limit: u16) -> u16 {
        (self.next() % u64::from(limit)) as u16
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Messages on their way to the gateway.
type Air = Vec<(DeviceId, Vec<u8>)>;

/// What goes wrong on the way, out of 65,536 packets.
const BAD: Faults = Faults { drop: 1100, duplicate: 1100, reorder: 6000, truncate: 1100, corrupt: 1100 };

struct World {
    fleet: Fleet,
    random: Random,
    air: Air,
    /// Which of the pods each family's Services have.
    alive: [[bool; 4]; 2],
    delivered: u64,
    fragments: u64,
    associations: u64,
    faults: bool,
    /// Affinity was toggled: flows may live with their former owner.
    toggled: bool,
}

fn pods(net: Net, port: u16) -> [Endpoint; 4] {
    [0, 1, 2, 3].map(|n| (net.pod(n % 2, 20 + n), port, 1))
}

/// Number of the SCTP port of `vip(2)`.
fn sctp_id(base: u32) -> u32 {
    24 + base / 10
}

fn tables() -> Tables {
    let mut tables = fuzzing::tables();
    for (base, net) in [(0, Net::BOTH[0]), (10, Net::BOTH[1])] {
        rig::add_service(&mut tables, base + 6, net.vip(2), 80, 6, &pods(net, 8080));
        rig::add_service(&mut tables, base + 7, net.vip(2), 53, 17, &pods(net, 5353));
        rig::add_service(&mut tables, sctp_id(base), net.vip(2), 3868, 132, &pods(net, 9868));
    }
    tables
}

/// Cuts what a packet carries into pieces of `size` bytes, a multiple of eight.
fn cut(whole: &Sketch, size: usize, id: u16) -> Vec<Sketch> {
    let header = if whole.from.0.is_ipv4() { 20 } else { 40 };
    let packet = whole.clone().may_fragment().packet();
    let body = &packet[header..];
    let piece = |(n, data): (usize, &[u8])| {
        let at = n * size;
        let piece = raw(whole.from.0, whole.to.0, whole.number()).data(data);
        Sketch { id, ..piece }.fragment(at as u16, at + data.len() < body.len())
    };
    body.chunks(size).enumerate().map(piece).collect()
}

impl World {
    fn new(workers: u16, seed: u64, faults: bool) -> World {
        let faulty = if faults { BAD } else { Faults::default() };
        // Every other world has a NIC that is followed; packets come to any queue there, too.
        let nic = seed.is_multiple_of(2);
        let plan = Plan { flows: 512, faults: faulty, hand_over_packets: 64, seed, nic, ..Plan::of(workers) };
        World {
            fleet: Fleet::with(tables(), plan).unwrap(),
            random: Random(seed),
            air: Vec::new(),
            alive: [[true; 4]; 2],
            delivered: 0,
            fragments: 0,
            associations: 0,
            faults,
            toggled: false,
        }
    }

    fn net(&mut self) -> Net {
        Net::BOTH[usize::from(self.random.one_in(2))]
    }

    /// A client says something, sensible or not.
    fn speak(&mut self) {
        let net = self.net();
        let client = (net.client(self.random.small(40)), 1024 + self.random.small(8));
        // One in four speaks to a Service that nodes deliver themselves.
        let vip = if self.random.one_in(4) { net.vip(4) } else { net.vip(2) };
        let (seq, ack) = (1000 + u32::from(self.random.small(100)), 5000 + u32::from(self.random.small(100)));
        let packet = match self.random.below(14) {
            0..=2 => tcp(client, (vip, 80)).syn(seq),
            3 => tcp(client, (vip, 80)).segment("FA", seq, ack),
            4 => tcp(client, (vip, 80)).segment("R", seq, ack),
            5 | 6 => tcp(client, (vip, 80)).segment("PA", seq, ack).data([1; 200]),
            7 if self.random.one_in(3) => {
                return self.speak_long(tcp(client, (vip, 80)).segment("PA", seq, ack).data([9; 700]));
            }
            7 => return self.speak_long(udp(client, (vip, 53)).data([5; 900])),
            8..=10 => return self.speak_sctp(client, (vip, 3868)),
            11 => udp(client, (vip, 53)).data([6; 1440]).may_fragment(),
            _ => udp(client, (vip, 53)).data([2; 60]),
        };
        self.air.push((WAN, packet.frame(FROM_ROUTER)));
    }

    /// A packet of an association that may be there. Clients' tags are 9, pods' are 8.
    fn speak_sctp(&mut self, client: End, to: End) {
        let packet = || sctp(client, to).tag(8);
        let said = match self.random.below(12) {
            0..=4 => sctp(client, to).init(1, 9),
            5 => packet().chunk(7, 0, &[0, 0, 0, 1]),
            6 => packet().chunk(6, 0, &[]).tag(8 + u32::from(self.random.small(2))),
            7 => packet().chunk(10, 0, b"forged"),
            8 if self.random.one_in(3) => return self.speak_long(packet().chunk(0, 3, &[5; 900])),
            _ => packet().chunk(0, 3, &[5; 120]),
        };
        self.air.push((WAN, said.frame(FROM_ROUTER)));
    }

    /// What a pod says to this; `None`: nothing.
    fn sctp_answer(&mut self, seen: &Sketch) -> Option<Sketch> {
        let back = sctp(seen.to, seen.from).tag(9);
        match seen.payload.first()? {
            1 => Some(back.init(2, 8)),
            10 => Some(back.chunk(11, 0, &[])),
            7 => Some(back.chunk(8, 0, &[])),
            14 | 6 => None,
            _ if self.random.one_in(20) => Some(back.chunk(6, 0, &[])),
            _ => Some(back.chunk(3, 0, &[0; 12]).chunk(4, 0, &[0, 1, 0, 4])),
        }
    }

    /// What a client says to an answer.
    fn sctp_reply(&mut self, seen: &Sketch) -> Option<Sketch> {
        let reply = sctp(seen.to, seen.from).tag(8);
        match seen.payload.first()? {
            2 => Some(reply.chunk(10, 0, b"cookie")),
            8 => Some(reply.chunk(14, 0, &[])),
            11 => {
                self.associations += 1;
                None
            }
            _ => None,
        }
    }

    /// A datagram in fragments, sometimes out of order, sometimes not all of it.
    fn speak_long(&mut self, whole: Sketch) {
        let size = 8 * (5 + usize::from(self.random.small(60)));
        let mut pieces = cut(&whole, size, self.random.small(u16::MAX));
        if self.random.one_in(3) {
            pieces.reverse();
        }
        if self.random.one_in(6) {
            pieces.swap_remove(self.random.below(pieces.len() as u64) as usize);
        }
        if self.random.one_in(6) {
            // What overlaps ends its datagram, whichever worker the pieces come to (N-061).
            let twin = pieces[self.random.below(pieces.len() as u64) as usize].clone();
            let moved = twin.fragment.map(|(offset, more)| (offset + 8, more));
            pieces.push(Sketch { fragment: moved, ..twin });
        }
        self.fragments += pieces.len() as u64;
        self.air.extend(pieces.iter().map(|piece| (WAN, piece.frame(FROM_ROUTER))));
    }

    /// Pods and clients answer what the gateway sent them.
    fn listen(&mut self) {
        for frame in self.fleet.sent(LAN) {
            check_sent(LAN, &frame);
            self.pod_answers(&frame);
        }
        for frame in self.fleet.sent(WAN) {
            check_sent(WAN, &frame);
            self.client_answers(&frame);
        }
    }

    fn pod_answers(&mut self, frame: &[u8]) {
        self.delivered += 1;
        let Some((_, _, inner)) = rig::into_peer(frame) else { return };
        let Some((seen, at)) = read(inner) else { return };
        let net = if seen.from.0.is_ipv4() { Net::BOTH[0] } else { Net::BOTH[1] };
        let Some(peer) = (0..2).find(|n| (0..4).any(|p| net.pod(*n, 20 + p) == seen.to.0)) else { return };
        let back = match at {
            None if seen.number() == 132 => match self.sctp_answer(&seen) {
                Some(back) => back,
                None => return,
            },
            Some(("S", seq, _)) => tcp(seen.to, seen.from).syn_ack(5000, seq.wrapping_add(1)),
            Some((flags, seq, ack)) if flags.contains('F') => {
                tcp(seen.to, seen.from).segment("FA", ack, seq.wrapping_add(1))
            }
            Some((flags, ..)) if flags.contains('R') => return,
            Some((_, seq, ack)) => tcp(seen.to, seen.from).segment("PA", ack, seq).data([3; 100]),
            None if self.random.one_in(10) => {
                let quoted = &inner[14..];
                trouble(seen.to.0, seen.from.0, Trouble::Port, quoted)
            }
            None if self.random.one_in(8) => {
                let whole = udp(seen.to, seen.from).data([6; 700]);
                let pieces = cut(&whole, 256, self.random.small(u16::MAX));
                self.air.extend(pieces.iter().map(|piece| (LAN, from_peer(net, peer, piece))));
                return;
            }
            None => udp(seen.to, seen.from).data([4; 80]),
        };
        if !self.random.one_in(4) {
            self.air.push((LAN, from_peer(net, peer, &back)));
        }
    }

    fn client_answers(&mut self, frame: &[u8]) {
        self.delivered += 1;
        let Some((seen, at)) = read(frame) else { return };
        let net = if seen.from.0.is_ipv4() { Net::BOTH[0] } else { Net::BOTH[1] };
        match at {
            Some(("SA", seq, ack)) => {
                let reply = tcp(seen.to, seen.from).ack(ack, seq.wrapping_add(1));
                self.air.push((WAN, reply.frame(FROM_ROUTER)));
            }
            Some((flags, seq, ack)) if flags.contains('F') => {
                let reply = tcp(seen.to, seen.from).segment("A", ack, seq.wrapping_add(1));
                self.air.push((WAN, reply.frame(FROM_ROUTER)));
            }
            None if seen.number() == 132 && !self.random.one_in(8) => {
                if let Some(reply) = self.sctp_reply(&seen) {
                    self.air.push((WAN, reply.frame(FROM_ROUTER)));
                }
            }
            None if self.random.one_in(20) => {
                let error = trouble(net.client(99), seen.from.0, Trouble::Host, &frame[14..]);
                self.air.push((WAN, error.frame(FROM_ROUTER)));
            }
            _ => {}
        }
    }

    /// The network delivers a few messages, each to any queue; in a bad one the ports see to what goes wrong.
    fn deliver(&mut self) {
        for _ in 0..self.random.below(40) {
            if self.air.is_empty() {
                break;
            }
            let last = self.air.len() as u64;
            let at = if self.faults && self.random.one_in(5) { self.random.below(last) as usize } else { 0 };
            let (device, frame) = self.air.remove(at);
            let queue = self.random.below(self.fleet.workers.len() as u64) as usize;
            self.fleet.inject(queue, device, &frame);
        }
        self.air.truncate(300);
    }

    /// Somebody changes something.
    fn publish(&mut self) {
        let family = usize::from(self.random.one_in(2));
        let (net, base) = (Net::BOTH[family], [0, 10][family]);
        let n = self.random.below(4) as usize;
        let what = self.random.below(12);
        let weights = [0, 1].map(|node| (node, self.random.small(2)));
        let nodes = if self.random.one_in(4) { &weights[..1] } else { &weights[..] };
        self.toggled |= what == 9;
        let alive = &mut self.alive[family];
        self.fleet.publish(|tables| match what {
            0..=2 => {
                alive[n] = false;
                let row = u32::try_from(n).unwrap();
                rig::remove_endpoint(tables, base + 6, net.vip(2), 80, 6, &pods(net, 8080), row);
                rig::remove_endpoint(tables, base + 7, net.vip(2), 53, 17, &pods(net, 5353), row);
                rig::remove_endpoint(tables, sctp_id(base), net.vip(2), 3868, 132, &pods(net, 9868), row);
            }
            3 | 4 => {
                *alive = [true; 4];
                rig::add_service(tables, base + 6, net.vip(2), 80, 6, &pods(net, 8080));
                rig::add_service(tables, base + 7, net.vip(2), 53, 17, &pods(net, 5353));
                rig::add_service(tables, sctp_id(base), net.vip(2), 3868, 132, &pods(net, 9868));
            }
            5 => tables.settings.routes_epoch = tables.settings.routes_epoch.wrapping_add(1),
            6..=8 => neighbours(tables, net, what == 6),
            10 | 11 => fuzzing::deliver(tables, base, nodes),
            _ => rig::toggle_affinity(tables, base + 6, 100),
        });
    }

    fn run(&mut self, steps: u32) {
        for step in 0..steps {
            for _ in 0..self.random.below(12) {
                self.speak();
            }
            self.deliver();
            self.fleet.turn();
            self.listen();
            if self.random.one_in(15) {
                self.publish();
            }
            if self.random.one_in(50) {
                self.fleet.now_ns += self.random.below(200) * 1_000_000_000;
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
        if !self.toggled {
            self.fleet.expect_flows_at_home();
        }
        check_usage(&self.fleet);
        assert!(self.fleet.live().iter().all(|live| *live <= 1024), "flows are bounded");
        let counted = self.fleet.counted();
        // After a toggle a fragment of a segment may need a third, and a packet that is on its way meanwhile may meet
        // workers that disagree on whose it is. Nothing else wants to change hands so often.
        let loops = counted.get("HandOverLoop").copied().unwrap_or(0);
        assert!(loops == 0 || self.toggled, "{loops} loops\n{}", self.fleet.told());
        assert_eq!(counted.get("EditRefused"), None, "{}", self.fleet.told());
    }

    /// Everybody goes: nothing remains.
    fn end(mut self) {
        for _ in 0..20 {
            self.fleet.turn();
            self.listen();
            self.air.clear();
        }
        // The longest timer there is (N-104), and a few laps of the sweep.
        self.fleet.now_ns += 8_000_000_000_000;
        for _ in 0..1000 {
            self.fleet.now_ns += 10_000_000;
            self.fleet.turn();
        }
        self.listen();
        assert_eq!(self.fleet.live().iter().sum::<u64>(), 0, "{}", self.fleet.told());
        assert!(self.fleet.workers.iter().all(|worker| worker.state().fragments.is_empty()));
        self.check();
        self.fleet.expect_all_frames_home();
    }
}

fn neighbours(tables: &mut Tables, net: Net, lost: bool) {
    let neighbours = Arc::make_mut(&mut tables.neighbours);
    for id in [net.router(), net.peer_neighbour(0), net.peer_neighbour(1)] {
        let state = if lost { NeighbourState::Unresolved } else { NeighbourState::Resolved };
        if let Some(row) = neighbours.row(id).copied() {
            neighbours.set(id, NeighbourRow { state, ..row });
        }
    }
}

/// Live flows per backend are what the flow tables hold, on every worker.
fn check_usage(fleet: &Fleet) {
    for worker in &fleet.workers {
        let mut live = BTreeMap::new();
        let state = worker.state();
        state.v4.visit(0, u32::MAX, |_, entry| *live.entry(entry.backend).or_insert(0u32) += 1);
        state.v6.visit(0, u32::MAX, |_, entry| *live.entry(entry.backend).or_insert(0u32) += 1);
        for backend in (0..26_000).step_by(1000).flat_map(|base| (base..base + 8).chain(base + 500..base + 502)) {
            assert_eq!(state.usage.live(backend), live.get(&backend).copied().unwrap_or(0), "backend {backend}");
        }
    }
}

/// Flags, sequence and acknowledgement number of a segment.
type Numbers = (&'static str, u32, u32);

/// Ends of a packet, and its flags and numbers if it is TCP, as etherparse reads them.
fn read(frame: &[u8]) -> Option<(Sketch, Option<Numbers>)> {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).ok()?;
    let (from, to, carried): (IpAddr, IpAddr, _) = match sliced.net.as_ref()? {
        etherparse::NetSlice::Ipv4(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.payload())
        }
        etherparse::NetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.payload())
        }
        etherparse::NetSlice::Arp(_) => return None,
    };
    if carried.ip_number.0 == 132 && !carried.fragmented {
        return Some((read_sctp(from, to, carried.payload)?, None));
    }
    match sliced.transport? {
        etherparse::TransportSlice::Tcp(t) => {
            let flags = match (t.syn(), t.ack(), t.fin(), t.rst()) {
                (true, false, ..) => "S",
                (true, true, ..) => "SA",
                (_, _, true, _) => "FA",
                (_, _, _, true) => "R",
                _ => "A",
            };
            let packet = tcp((from, t.source_port()), (to, t.destination_port()));
            Some((packet, Some((flags, t.sequence_number(), t.acknowledgment_number()))))
        }
        etherparse::TransportSlice::Udp(u) => Some((udp((from, u.source_port()), (to, u.destination_port())), None)),
        _ => None,
    }
}

/// An SCTP packet, whose checksum must be right.
fn read_sctp(from: IpAddr, to: IpAddr, bytes: &[u8]) -> Option<Sketch> {
    let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let mut unsummed = bytes.to_vec();
    unsummed.get_mut(8..12)?.fill(0);
    assert_eq!(crc32c(&unsummed).to_le_bytes(), bytes[8..12], "{bytes:02x?}");
    Some(sctp((from, word(0)?), (to, word(2)?)).data(&bytes[12..]))
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

fn simulate(workers: u16, seed: u64, faults: bool, steps: u32) {
    let _say = Say(workers, seed, faults);
    let mut world = World::new(workers, seed, faults);
    world.run(steps);
    assert!(world.delivered > u64::from(steps), "the simulation talks: {}", world.delivered);
    assert!(world.fragments > u64::from(steps), "and in fragments: {}", world.fragments);
    let counted = |name| world.fleet.counted().get(name).copied().unwrap_or(0);
    assert!(counted("passed") > 0 && counted("picked_up") > 0, "and with nodes: {}", world.fleet.told());
    let associations = world.associations;
    assert!(associations > 0, "and in associations: {}", world.fleet.told());
    assert!(counted("cut") > 0 && counted("FragmentOverlap") > 0, "{}", world.fleet.told());
    let handed = counted("handed_over");
    assert_eq!(handed > 0, workers > 1, "{handed} handed over");
    world.end();
}

fn seeds() -> Vec<u64> {
    match std::env::var("TIDEGATE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => vec![1, 2, 3, 5, 8, 13],
    }
}

#[test]
fn one_worker_on_a_good_network() {
    seeds().into_iter().for_each(|seed| simulate(1, seed, false, 1500));
}

#[test]
fn one_worker_on_a_bad_network() {
    seeds().into_iter().for_each(|seed| simulate(1, seed, true, 1500));
}

#[test]
fn two_workers_on_a_good_network() {
    seeds().into_iter().for_each(|seed| simulate(2, seed, false, 1500));
}

#[test]
fn two_workers_on_a_bad_network() {
    seeds().into_iter().for_each(|seed| simulate(2, seed, true, 1500));
}

#[test]
fn eight_workers_on_a_good_network() {
    seeds().into_iter().for_each(|seed| simulate(8, seed, false, 1000));
}

#[test]
fn eight_workers_on_a_bad_network() {
    seeds().into_iter().for_each(|seed| simulate(8, seed, true, 1000));
}

/// Where a client's packets went: client, pod.
type Routes = BTreeSet<(IpAddr, u16, IpAddr, u16)>;

/// A conversation without chance: every client opens a connection and asks a question, every pod answers, one endpoint goes
/// in between. Returns all frames that clients got, and which pod each client was sent to. Queues are random.
fn converse(workers: u16, seed: u64) -> (Vec<Vec<u8>>, Routes) {
    let plan = Plan { seed, nic: seed.is_multiple_of(2), ..Plan::of(workers) };
    let (mut fleet, mut random) = (Fleet::with(tables(), plan).unwrap(), Random(seed));
    let (mut heard, mut routes) = (Vec::new(), Routes::new());
    for round in 0..3u32 {
        for (net, client) in (0..150).flat_map(|client| Net::BOTH.map(|net| (net, client))) {
            let from = (net.client(client), 2000 + client);
            let packets = match round {
                0 => [tcp(from, (net.vip(2), 80)).syn(9), udp(from, (net.vip(2), 53)).data([7; 40])],
                _ => [
                    tcp(from, (net.vip(2), 80)).segment("PA", 10 + round, 41 + round).data([1; 30]),
                    udp(from, (net.vip(2), 53)).data([8; 300]),
                ],
            };
            for packet in &packets {
                let queue = random.below(workers.into()) as usize;
                fleet.rx_wan(queue, packet);
                let sent = fleet.sent(LAN);
                let Some(frame) = sent.first() else { continue };
                let (_, _, inner) = rig::into_peer(frame).unwrap();
                let (seen, at) = read(inner).unwrap();
                routes.insert((from.0, packet.to.1, seen.to.0, seen.to.1));
                let peer = (0..2).find(|n| (0..4).any(|p| net.pod(*n, 20 + p) == seen.to.0)).unwrap();
                let back = match at {
                    Some(("S", seq, _)) => tcp(seen.to, seen.from).syn_ack(40, seq + 1),
                    Some((_, seq, ack)) => tcp(seen.to, seen.from).segment("PA", ack, seq + 30).data([2; 60]),
                    None => udp(seen.to, seen.from).data([3; 99]),
                };
                fleet.rx_overlay(random.below(workers.into()) as usize, net, peer, &back);
                heard.append(&mut fleet.sent(WAN));
            }
        }
        if round == 1 {
            for (base, net) in [(0, Net::BOTH[0]), (10, Net::BOTH[1])] {
                fleet.publish(|tables| {
                    rig::remove_endpoint(tables, base + 7, net.vip(2), 53, 17, &pods(net, 5353), 2);
                });
            }
        }
    }
    fleet.expect_flows_at_home();
    fleet.expect_ports_balance();
    fleet.expect_all_frames_home();
    (heard, routes)
}

#[test]
fn clients_cannot_tell_how_many_workers_there_are() {
    // What is deterministic is the same whatever the number of workers and the queues that packets take: which pod serves
    // whom, before and after an endpoint goes, and every byte that a client gets.
    let one = converse(1, 1);
    assert_eq!(one.0.len(), 1800, "every packet is answered");
    for (workers, seed) in [(2, 2), (2, 3), (8, 4)] {
        let several = converse(workers, seed);
        assert_eq!(several.1, one.1, "{workers} workers send clients to other pods");
        assert!(several.0 == one.0, "{workers} workers answer something else");
    }
}
