//! Egress against a naive NAT: lists of mappings and flows, searched from end to end.
//!
//! Pods send datagrams, echoes, connections, associations and a protocol without ports to a few remotes, remotes answer or intrude, policies change and time passes,
//! all at random, through one, two or eight workers and on any queue. After each packet both must agree on what left: to whom,
//! from which address, by a port that is the mapping's or that nothing else has. A failure prints its seed; `TIDEGATE_SEED=n`
//! runs that one.
//!
//! Time passes in strides that no timer ends near, so that the sweep's lap (N-102) is in nobody's way.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::net::IpAddr;

use tidegate_api::resource::{Egress, Filtering};
use tidegate_dataplane::rig::fleet::{Fleet, Plan};
use tidegate_dataplane::rig::outside::{self, Outside, external, policy};
use tidegate_dataplane::rig::sketch::{End, Sketch, icmp, raw, sctp, tcp, udp};
use tidegate_dataplane::rig::{self, LAN, Net, WAN};

const SECOND: u64 = 1_000_000_000;
/// A stride: a jump, and a lap of the sweep.
const STRIDE: (u64, u64) = (47, 6);

/// Strides after which something that was not used is over: 300 s, 60 s, 240 s (N-007, N-030, N-024), 75 s, 7440 s.
fn lasts(protocol: u8, established: bool) -> u64 {
    match (protocol, established) {
        (17 | GRE, _) => 6,
        (6, false) => 5,
        (6 | SCTP, true) => 141,
        _ => 2,
    }
}
/// Strides that a port rests: 120 s (N-042).
const RESTS: u64 = 3;

#[derive(Debug, Clone)]
struct Mapping {
    outside: End,
    /// By remote: the stride in which the pod sent to it last.
    sessions: HashMap<End, u64>,
    /// Since when nothing uses it.
    idle: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    outside: End,
    established: bool,
    used: u64,
}

type Inside = (IpAddr, u16, u8);

/// A protocol without ports (N-095).
const GRE: u8 = 47;
/// Mapped by destination, as TCP is; its port stays where it can (N-075, N-093).
const SCTP: u8 = 132;
/// Tags that pods and remotes choose.
const TAGS: (u32, u32) = (7, 8);

/// A pod that speaks it, and when it did so last.
#[derive(Debug, Clone, Copy)]
struct Bare {
    pod: IpAddr,
    used: u64,
}

/// The naive NAT.
#[derive(Debug, Default)]
struct Oracle {
    now: u64,
    mappings: HashMap<Inside, Mapping>,
    flows: HashMap<(Inside, End), Flow>,
    /// By remote and external address.
    bare: HashMap<(IpAddr, IpAddr), Bare>,
    open: bool,
    addresses: Vec<IpAddr>,
}

impl Oracle {
    /// Everything that is over goes.
    fn pass(&mut self) {
        let (now, addresses) = (self.now, &self.addresses);
        self.flows.retain(|((_, _, protocol), _), flow| {
            addresses.contains(&flow.outside.0) && now - flow.used < lasts_of(*protocol, flow.established)
        });
        self.bare.retain(|(_, outside), bare| addresses.contains(outside) && now - bare.used < lasts(GRE, false));
        self.mappings.retain(|(_, _, protocol), mapping| {
            let valid = addresses.contains(&mapping.outside.0);
            mapping.sessions.retain(|_, used| valid && now - *used < lasts(*protocol, false));
            if mapping.sessions.is_empty() && mapping.idle.is_none() {
                mapping.idle = Some(now);
            }
            mapping.idle.is_none_or(|since| now - since < RESTS)
        });
    }

    /// A datagram or echo of a pod left from `outside`: may it?
    fn sent(&mut self, inside: Inside, remote: End, outside: End) -> Result<(), String> {
        if !self.addresses.contains(&outside.0) {
            return Err(format!("{} is no address of the policy", outside.0));
        }
        match self.mappings.get_mut(&inside).filter(|mapping| self.addresses.contains(&mapping.outside.0)) {
            Some(mapping) if mapping.outside == outside => {
                mapping.sessions.insert(remote, self.now);
                mapping.idle = None;
                Ok(())
            }
            Some(mapping) => Err(format!("mapped to {:?} before (N-001)", mapping.outside)),
            None => {
                let taken = |(of, mapping): (&Inside, &Mapping)| {
                    of.2 == inside.2 && *of != inside && mapping.outside == outside
                };
                if self.mappings.iter().any(taken) {
                    return Err("that port is another's (N-003, N-042)".into());
                }
                let sessions = HashMap::from([(remote, self.now)]);
                self.mappings.insert(inside, Mapping { outside, sessions, idle: None });
                Ok(())
            }
        }
    }

    /// Who gets what `remote` sends to `outside`.
    fn receives(&self, remote: End, outside: End, protocol: u8) -> Option<End> {
        if matches!(protocol, 6 | SCTP) {
            let is_it = |of: &Inside, to: &End, flow: &Flow| (of.2, *to, flow.outside) == (protocol, remote, outside);
            let mut found = self.flows.iter().filter(|((of, to), flow)| is_it(of, to, flow));
            return found.next().map(|((of, _), _)| (of.0, of.1));
        }
        let of = |(of, mapping): &(&Inside, &Mapping)| {
            of.2 == protocol && mapping.outside == outside && mapping.idle.is_none()
        };
        let (inside, mapping) = self.mappings.iter().find(of)?;
        let known = mapping.sessions.keys().any(|(address, _)| *address == remote.0);
        let open = protocol == 17 && self.open;
        (known || open).then_some((inside.0, inside.1))
    }

    /// Whether a flow of this protocol to `remote` has this external port.
    fn is_taken(&self, protocol: u8, remote: End, outside: End) -> bool {
        self.flows.iter().any(|((of, to), flow)| of.2 == protocol && *to == remote && flow.outside == outside)
    }

    /// The first segment of a connection left.
    fn connected(&mut self, inside: Inside, remote: End, outside: End) -> Result<(), String> {
        if !self.addresses.contains(&outside.0) {
            return Err(format!("{} is no address of the policy", outside.0));
        }
        let now = self.now;
        if let Some(flow) = self.flows.get_mut(&(inside, remote)) {
            // N-103: an INIT inside an association changes nothing.
            if inside.2 == 6 || !flow.established {
                flow.used = now;
            }
            return if flow.outside == outside { Ok(()) } else { Err(format!("was {:?}", flow.outside)) };
        }
        if self.is_taken(inside.2, remote, outside) {
            return Err("that port towards that remote is another's".into());
        }
        self.flows.insert((inside, remote), Flow { outside, established: false, used: now });
        Ok(())
    }
}

fn lasts_of(protocol: u8, established: bool) -> u64 {
    lasts(protocol, established)
}

struct World {
    fleet: Fleet,
    outside: Outside,
    oracle: Oracle,
    net: Net,
    random: u64,
}

/// Source, destination and payload's first byte of an IP packet; of echo the identifier as port.
fn ends(packet: &[u8]) -> (End, End) {
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let (from, to, protocol, at): (IpAddr, IpAddr, u8, usize) = if packet[0] >> 4 == 4 {
        let of = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
        (of(12), of(16), packet[9], 20)
    } else {
        let of = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
        (of(8), of(24), packet[6], 40)
    };
    match protocol {
        6 | 17 | SCTP => ((from, word(at)), (to, word(at + 2))),
        _ => ((from, word(at + 4)), (to, word(at + 4))),
    }
}

impl World {
    fn draw(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn number(&mut self, limit: u16) -> u16 {
        self.draw(limit.into()) as u16
    }

    fn queue(&mut self) -> usize {
        let workers = self.fleet.workers.len() as u64;
        self.draw(workers) as usize
    }

    fn inside(&mut self, protocol: u8) -> (u8, Inside) {
        let (n, p) = [(0, 5), (0, 6), (1, 7)][self.draw(3) as usize];
        // Ports that are no privileged ones, so that they may be kept.
        let first = if protocol == SCTP { 2000 } else { 1000 };
        (n, (self.net.pod(n, p), first + self.number(6), protocol))
    }

    fn remote(&mut self) -> End {
        (self.net.client(self.random as u16 % 4 + 60), 5000 + self.number(3))
    }

    fn echo(&self, from: IpAddr, to: IpAddr, id: u16, is_reply: bool) -> Sketch {
        let kind = match (from.is_ipv6(), is_reply) {
            (false, false) => 8,
            (false, true) => 0,
            (true, false) => 128,
            (true, true) => 129,
        };
        let [high, low] = id.to_be_bytes();
        icmp(from, to, kind, 0, [high, low, 0, 1]).data(*b"ping")
    }

    fn leave(&mut self) -> Option<(End, End)> {
        let frame = self.fleet.sent(WAN).pop()?;
        Some(ends(&frame[14..]))
    }

    /// A pod sends something.
    fn speak(&mut self) -> Result<(), String> {
        let protocol = [17, 17, 1, 6, SCTP][self.draw(5) as usize];
        let (n, inside) = self.inside(protocol);
        let remote = self.remote();
        let (queue, net) = (self.queue(), self.net);
        let from = (inside.0, inside.1);
        let packet = match protocol {
            17 => udp(from, remote).data(*b"x"),
            6 => tcp(from, remote).syn(100),
            SCTP => sctp(from, remote).init(1, TAGS.0),
            _ => self.echo(inside.0, remote.0, inside.1, false),
        };
        self.fleet.rx_overlay(queue, net, n, &packet);
        let Some((source, to)) = self.leave() else {
            return Err(format!("nothing left for {packet:?}, sent to pods: {}", self.fleet.sent(LAN).len()));
        };
        let expected = if protocol == 1 { (remote.0, source.1) } else { remote };
        if to != expected {
            return Err(format!("left for {to:?}, not {expected:?}"));
        }
        let remote = if protocol == 1 { (remote.0, 0) } else { remote };
        if protocol == SCTP {
            self.keeps_its_port(inside, remote, source)?;
        }
        match protocol {
            6 | SCTP => self.oracle.connected(inside, remote, source)?,
            _ => self.oracle.sent(inside, remote, source)?,
        }
        if matches!(protocol, 6 | SCTP) && self.draw(2) == 0 {
            self.shake_hands(n, inside, remote, source)?;
        }
        Ok(())
    }

    /// N-075: where one worker gives out all ports an association has its pod's own, unless another has it there.
    fn keeps_its_port(&self, inside: Inside, remote: End, outside: End) -> Result<(), String> {
        let wanted = (outside.0, inside.1);
        let is_new = !self.oracle.flows.contains_key(&(inside, remote));
        let is_free = self.fleet.workers.len() == 1 && !self.oracle.is_taken(SCTP, remote, wanted);
        if is_new && is_free && outside != wanted {
            Err(format!("{outside:?} in place of a free {wanted:?}"))
        } else {
            Ok(())
        }
    }

    /// A pod speaks a protocol without ports.
    fn speak_bare(&mut self) -> Result<(), String> {
        let (n, (pod, ..)) = self.inside(GRE);
        let (remote, queue, net) = (self.remote().0, self.queue(), self.net);
        self.fleet.rx_overlay(queue, net, n, &raw(pod, remote, GRE).data([0; 40]));
        let left = self.leave();
        self.fleet.sent(LAN);
        let others = |(at, bare): (&(IpAddr, IpAddr), &Bare)| at.0 == remote && bare.pod != pod;
        let Some(((outside, _), to)) = left else {
            let is_taken = self.oracle.bare.iter().any(others);
            return if is_taken { Ok(()) } else { Err(format!("{pod} may not speak with {remote}")) };
        };
        let known = self.oracle.bare.get(&(remote, outside));
        if to.0 != remote || known.is_some_and(|bare| bare.pod != pod) || !self.oracle.addresses.contains(&outside) {
            return Err(format!("{pod} speaks as {outside} with {to:?}, {known:?}"));
        }
        self.oracle.bare.insert((remote, outside), Bare { pod, used: self.oracle.now });
        Ok(())
    }

    /// Somebody outside speaks it.
    fn intrude_bare(&mut self) -> Result<(), String> {
        let (remote, queue) = (self.remote().0, self.queue());
        let outside = external(self.net, 1 + self.number(3) as u8);
        self.fleet.rx_wan(queue, &raw(remote, outside, GRE).data([0; 40]));
        let sent = self.fleet.sent(LAN);
        let got = sent.first().and_then(|frame| rig::into_peer(frame)).map(|(_, _, inner)| ends(&inner[14..]).1.0);
        let expected = self.oracle.bare.get(&(remote, outside)).map(|bare| bare.pod);
        if got == expected { Ok(()) } else { Err(format!("{remote} to {outside}: {got:?}, not {expected:?}")) }
    }

    fn shake_hands(&mut self, n: u8, inside: Inside, remote: End, outside: End) -> Result<(), String> {
        let (queue, other, net, now) = (self.queue(), self.queue(), self.net, self.oracle.now);
        let pod = (inside.0, inside.1);
        let (answer, last) = match inside.2 {
            SCTP => (
                sctp(remote, outside).tag(TAGS.0).init(2, TAGS.1),
                sctp(pod, remote).tag(TAGS.1).chunk(10, 0, b"cookie"),
            ),
            _ => (tcp(remote, outside).syn_ack(500, 101), tcp(pod, remote).ack(101, 501)),
        };
        self.fleet.rx_wan(queue, &answer);
        let delivered = self.fleet.sent(LAN).len();
        self.fleet.rx_overlay(other, net, n, &last);
        let left = self.fleet.sent(WAN).len();
        if inside.2 == SCTP {
            self.fleet.rx_wan(other, &sctp(remote, outside).tag(TAGS.0).chunk(11, 0, &[]));
            self.fleet.sent(LAN);
        }
        if let Some(flow) = self.oracle.flows.get_mut(&(inside, remote)) {
            (flow.established, flow.used) = (true, now);
        }
        if (delivered, left) == (1, 1) { Ok(()) } else { Err(format!("handshake: {delivered} in, {left} out")) }
    }

    /// Somebody outside sends something to a port that is, was, or never was anybody's.
    fn intrude(&mut self) -> Result<(), String> {
        let protocol = [17, 17, 1, 6, SCTP][self.draw(5) as usize];
        let known: Vec<End> = match protocol {
            6 | SCTP => {
                let of = self.oracle.flows.iter().filter(|((of, _), _)| of.2 == protocol);
                of.map(|(_, flow)| flow.outside).collect()
            }
            _ => self
                .oracle
                .mappings
                .iter()
                .filter(|(of, _)| of.2 == protocol)
                .map(|(_, mapping)| mapping.outside)
                .collect(),
        };
        let mut sorted = known;
        sorted.sort_unstable();
        let outside = match sorted.len() {
            0 => (external(self.net, 1), 1024 + self.number(60_000)),
            many => sorted[self.draw(many as u64) as usize],
        };
        let (remote, queue) = (self.remote(), self.queue());
        let packet = match protocol {
            17 => udp(remote, outside).data(*b"y"),
            6 => tcp(remote, outside).ack(501, 101),
            SCTP => sctp(remote, outside).tag(TAGS.0).chunk(0, 3, &[5; 24]),
            _ => self.echo(remote.0, outside.0, outside.1, true),
        };
        self.fleet.rx_wan(queue, &packet);
        let sent = self.fleet.sent(LAN);
        let got = sent.first().and_then(|frame| rig::into_peer(frame)).map(|(_, _, inner)| ends(&inner[14..]).1);
        let remote = if protocol == 1 { (remote.0, 0) } else { remote };
        let expected = self.oracle.receives(remote, outside, protocol);
        if matches!(protocol, 6 | SCTP) && expected.is_some() {
            let now = self.oracle.now;
            let is_it = |of: &Inside, to: &End, flow: &Flow| (of.2, *to, flow.outside) == (protocol, remote, outside);
            let keys = self.oracle.flows.iter_mut().filter(|((of, to), flow)| is_it(of, to, flow));
            keys.filter(|(_, flow)| flow.established).for_each(|(_, flow)| flow.used = now);
        }
        if got == expected { Ok(()) } else { Err(format!("{packet:?} went to {got:?}, should to {expected:?}")) }
    }

    /// Policies change, perhaps, and time passes.
    fn wait(&mut self) {
        if self.draw(6) == 0 {
            let first = 1 + self.number(3) as u8;
            let addresses: Vec<u8> = if self.draw(2) == 0 { vec![first] } else { vec![first, first + 1] };
            self.oracle.open = self.draw(2) == 0;
            self.oracle.addresses = addresses.iter().map(|n| external(self.net, *n)).collect();
            let mut egress = Egress { other_protocols: true, ..policy(&self.oracle.addresses) };
            egress.udp.filtering =
                if self.oracle.open { Filtering::EndpointIndependent } else { Filtering::AddressDependent };
            let outside = &mut self.outside;
            self.fleet.publish(|tables| outside.policy(tables, "out", Some(&egress)));
        }
        self.fleet.now_ns += STRIDE.0 * SECOND;
        for _ in 0..STRIDE.1 {
            self.fleet.now_ns += SECOND;
            self.fleet.turn();
        }
        self.oracle.now += 1;
        self.oracle.pass();
    }

    fn run(&mut self, steps: u32) -> Result<(), String> {
        for step in 0..steps {
            let done = match self.draw(20) {
                0 => {
                    self.wait();
                    Ok(())
                }
                1 => self.speak_bare(),
                2 => self.intrude_bare(),
                3..=12 => self.speak(),
                _ => self.intrude(),
            };
            done.map_err(|error| format!("step {step}: {error}\n{}", self.fleet.told()))?;
        }
        Ok(())
    }
}

fn world(workers: u16, net: Net, seed: u64) -> World {
    let (mut tables, mut outside) = outside::town();
    let addresses = vec![external(net, 1)];
    outside.policy(&mut tables, "out", Some(&Egress { other_protocols: true, ..policy(&addresses) }));
    let fleet = Fleet::with(tables, Plan { seed, nic: seed.is_multiple_of(2), ..Plan::of(workers) }).unwrap();
    let oracle = Oracle { addresses, ..Oracle::default() };
    World { fleet, outside, oracle, net, random: seed }
}

#[test]
fn egress_agrees_with_a_naive_nat() {
    let given = std::env::var("TIDEGATE_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    let seeds: Vec<u64> = given.map_or_else(|| (1..=6).collect(), |seed| vec![seed]);
    let steps = std::env::var("TIDEGATE_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(60_000);
    for seed in seeds {
        for workers in [1u16, 2, 8] {
            for net in Net::BOTH {
                let mut world = world(workers, net, seed);
                if let Err(error) = world.run(steps) {
                    panic!("TIDEGATE_SEED={seed}, {workers} workers, {net:?}: {error}");
                }
                world.fleet.expect_balance();
                // Everybody falls silent: everything ends.
                for _ in 0..160 {
                    world.wait();
                }
                assert_eq!(world.fleet.live().iter().sum::<u64>(), 0);
                for worker in &world.fleet.workers {
                    let egress = &worker.state().egress;
                    assert_eq!(egress.ports.tallies().map(|(.., tally)| tally.held).sum::<u32>(), 0, "seed {seed}");
                    assert_eq!(egress.v4.live() + egress.v6.live(), 0, "seed {seed}");
                }
                world.fleet.expect_all_frames_home();
            }
        }
    }
}
