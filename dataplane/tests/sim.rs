//! A seeded simulation: clients and pods that talk through one worker over a bad network, while tables change and time
//! jumps.
//!
//! Whatever happens, the books balance, no frame is lost, nothing leaves untranslated, usage equals flows; and when
//! everybody has gone, every flow ends. A failure prints its seed; `TIDEGATE_SEED=n` runs that one.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

use std::net::IpAddr;

use tidegate_dataplane::fuzzing::{self, Scene};
use tidegate_dataplane::rig::expect::from_peer;
use tidegate_dataplane::rig::sketch::{Sketch, Trouble, tcp, trouble, udp};
use tidegate_dataplane::rig::{self, Endpoint, FROM_ROUTER, LAN, Net, WAN};
use tidegate_dataplane::table::DeviceId;

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

struct World {
    scene: Scene,
    random: Random,
    air: Air,
    /// Which of the pods each family's Services have.
    alive: [[bool; 4]; 2],
    delivered: u64,
    faults: bool,
}

fn pods(net: Net, port: u16) -> [Endpoint; 4] {
    [0, 1, 2, 3].map(|n| (net.pod(n % 2, 20 + n), port, 1))
}

fn tables() -> tidegate_dataplane::table::Tables {
    let mut tables = fuzzing::tables();
    for (base, net) in [(0, Net::BOTH[0]), (10, Net::BOTH[1])] {
        rig::add_service(&mut tables, base + 6, net.vip(2), 80, 6, &pods(net, 8080));
        rig::add_service(&mut tables, base + 7, net.vip(2), 53, 17, &pods(net, 5353));
    }
    tables
}

impl World {
    fn new(seed: u64, faults: bool) -> World {
        let scene = Scene::with(tables(), 512, seed);
        World { scene, random: Random(seed), air: Vec::new(), alive: [[true; 4]; 2], delivered: 0, faults }
    }

    fn net(&mut self) -> Net {
        Net::BOTH[usize::from(self.random.one_in(2))]
    }

    /// A client says something, sensible or not.
    fn speak(&mut self) {
        let net = self.net();
        let client = (net.client(self.random.small(40)), 1024 + self.random.small(8));
        let (seq, ack) = (1000 + u32::from(self.random.small(100)), 5000 + u32::from(self.random.small(100)));
        let packet = match self.random.below(10) {
            0..=2 => tcp(client, (net.vip(2), 80)).syn(seq),
            3 => tcp(client, (net.vip(2), 80)).segment("FA", seq, ack),
            4 => tcp(client, (net.vip(2), 80)).segment("R", seq, ack),
            5 | 6 => tcp(client, (net.vip(2), 80)).segment("PA", seq, ack).data([1; 200]),
            _ => udp(client, (net.vip(2), 53)).data([2; 60]),
        };
        self.air.push((WAN, packet.frame(FROM_ROUTER)));
    }

    /// Pods and clients answer what the gateway sent them.
    fn listen(&mut self) {
        for frame in self.scene.rig.sent(LAN) {
            self.scene.check_frame(LAN, &frame);
            self.pod_answers(&frame);
        }
        for frame in self.scene.rig.sent(WAN) {
            self.scene.check_frame(WAN, &frame);
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
            None if self.random.one_in(20) => {
                let error = trouble(net.client(99), seen.from.0, Trouble::Host, &frame[14..]);
                self.air.push((WAN, error.frame(FROM_ROUTER)));
            }
            _ => {}
        }
    }

    /// The network delivers a few messages, badly.
    fn deliver(&mut self) {
        for _ in 0..self.random.below(40) {
            if self.air.is_empty() {
                break;
            }
            let last = self.air.len() as u64;
            let at = if self.faults && self.random.one_in(5) { self.random.below(last) as usize } else { 0 };
            let (device, mut frame) = self.air.remove(at);
            if self.faults {
                match self.random.below(60) {
                    0 => continue,
                    1 => self.air.push((device, frame.clone())),
                    2 => frame.truncate(1 + self.random.below(frame.len() as u64) as usize),
                    3 => {
                        let at = self.random.below(frame.len() as u64) as usize;
                        frame[at] ^= 1 << self.random.below(8);
                    }
                    _ => {}
                }
            }
            self.scene.rig.inject(device, &frame);
        }
        self.air.truncate(300);
    }

    /// Somebody changes something.
    fn publish(&mut self) {
        let family = usize::from(self.random.one_in(2));
        let (net, base) = (Net::BOTH[family], [0, 10][family]);
        let n = self.random.below(4) as usize;
        let what = self.random.below(8);
        let alive = &mut self.alive[family];
        self.scene.rig.publish(|tables| match what {
            0..=2 => {
                alive[n] = false;
                let row = u32::try_from(n).unwrap();
                rig::remove_endpoint(tables, base + 6, net.vip(2), 80, 6, &pods(net, 8080), row);
                rig::remove_endpoint(tables, base + 7, net.vip(2), 53, 17, &pods(net, 5353), row);
            }
            3 | 4 => {
                *alive = [true; 4];
                rig::add_service(tables, base + 6, net.vip(2), 80, 6, &pods(net, 8080));
                rig::add_service(tables, base + 7, net.vip(2), 53, 17, &pods(net, 5353));
            }
            5 => tables.settings.routes_epoch = tables.settings.routes_epoch.wrapping_add(1),
            _ => {
                use tidegate_dataplane::table::neighbour::{NeighbourRow, NeighbourState};
                let neighbours = std::sync::Arc::make_mut(&mut tables.neighbours);
                for id in [net.router(), net.peer_neighbour(0), net.peer_neighbour(1)] {
                    let state = if what == 6 { NeighbourState::Unresolved } else { NeighbourState::Resolved };
                    if let Some(row) = neighbours.row(id).copied() {
                        neighbours.set(id, NeighbourRow { state, ..row });
                    }
                }
            }
        });
    }

    fn run(&mut self, steps: u32) {
        for step in 0..steps {
            for _ in 0..self.random.below(12) {
                self.speak();
            }
            self.deliver();
            self.scene.rig.turn();
            self.listen();
            if self.random.one_in(15) {
                self.publish();
            }
            if self.random.one_in(50) {
                self.scene.rig.now_ns += self.random.below(200) * 1_000_000_000;
            }
            if step % 16 == 0 {
                self.scene.rig.expect_balance();
                self.scene.check_usage();
                assert!(self.scene.rig.worker.state().live() <= 1024, "flows are bounded");
            }
        }
    }

    /// Everybody goes: nothing remains.
    fn end(mut self) {
        for _ in 0..20 {
            self.scene.rig.turn();
            self.listen();
            self.air.clear();
        }
        // The longest timer there is (N-104), and a few laps of the sweep.
        self.scene.rig.now_ns += 8_000_000_000_000;
        for _ in 0..1000 {
            self.scene.rig.now_ns += 10_000_000;
            self.scene.rig.turn();
        }
        assert_eq!(self.scene.rig.worker.state().live(), 0, "{}", self.scene.rig.told());
        self.scene.check();
        self.scene.check_usage();
        self.scene.rig.expect_all_frames_home();
    }
}

/// Flags, sequence and acknowledgement number of a segment.
type Numbers = (&'static str, u32, u32);

/// Ends of a packet, and its flags and numbers if it is TCP, as etherparse reads them.
fn read(frame: &[u8]) -> Option<(Sketch, Option<Numbers>)> {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).ok()?;
    let (from, to): (IpAddr, IpAddr) = match &sliced.net? {
        etherparse::NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        etherparse::NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        etherparse::NetSlice::Arp(_) => return None,
    };
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

/// Says the seed of a run that panics.
struct Say(u64, bool);

impl Drop for Say {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed was {} (faults: {}); run it again with TIDEGATE_SEED={}", self.0, self.1, self.0);
        }
    }
}

fn simulate(seed: u64, faults: bool, steps: u32) {
    let _say = Say(seed, faults);
    let mut world = World::new(seed, faults);
    world.run(steps);
    assert!(world.delivered > u64::from(steps), "the simulation talks: {}", world.delivered);
    world.end();
}

fn seeds() -> Vec<u64> {
    match std::env::var("TIDEGATE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => vec![1, 2, 3, 5, 8, 13, 21, 34],
    }
}

#[test]
fn a_good_network() {
    seeds().into_iter().for_each(|seed| simulate(seed, false, 1500));
}

#[test]
fn a_bad_network() {
    seeds().into_iter().for_each(|seed| simulate(seed, true, 1500));
}
