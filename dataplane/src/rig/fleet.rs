//! A gateway of several workers in memory: the network of [`super`], a queue of each device for every worker.
//!
//! Owns the workers, one pool that all their frames come from, and the order in which they turn, which is random by the
//! seed. A test says on which queue a packet arrives; what leaves is looked at on all queues. Refuses to know what is
//! right: tests say that.

use std::collections::{BTreeMap, BTreeSet};

use crossbeam::channel::{Receiver, Sender, bounded};
use tidegate_api::explain::Explanation;
use tidegate_io::fault::{FaultPort, Faults};
use tidegate_io::memory::{self, MemoryPeer};
use tidegate_io::{HugePages, Pool, Port};

use super::expect::{expect_overlay, from_peer, same};
use super::nic::Nic;
use super::sketch::Sketch;
use super::{FROM_ROUTER, LAN, LAN_MAC, Net, ROUTER_MAC, WAN, WAN_MAC, mapped};
use crate::compile;
use crate::counters::Event;
use crate::explain;
use crate::family::Family;
use crate::handover;
use crate::mailbox::Request;
use crate::packet::Domain;
use crate::port_office::PortMove;
use crate::rig::expect::Outer;
use crate::stage::owner;
use crate::stage::parse::Ingress;
use crate::stage::verdict::Exits;
use crate::state::{Capacity, Direction, Entropy, FlowTable, State, Tuple};
use crate::table::owner::OwnerTable;
use crate::table::publish::Publisher;
use crate::table::spread::Spread;
use crate::table::{self, DeviceId, Tables};
use crate::worker::stages::Spent;
use crate::worker::{PortWant, Want, Worker};

/// What a fleet is like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many workers.
    pub workers: u16,
    /// Flows of each family and worker.
    pub flows: u32,
    /// Frames of the pool they share.
    pub frames: u32,
    /// Entries of each ring of a port.
    pub ring_entries: usize,
    /// Parcels in each ring between two workers.
    pub hand_over_packets: usize,
    /// What happens to packets that arrive.
    pub faults: Faults,
    /// Where everything random comes from.
    pub seed: u64,
    /// Whether a NIC spreads clients, and is followed: a queue for each worker, and the worker of a queue owns its clients.
    pub nic: bool,
}

impl Plan {
    /// So many workers with room for 4096 flows each, and nothing that goes wrong.
    pub fn of(workers: u16) -> Plan {
        Plan {
            workers,
            flows: 4096,
            frames: 1024 + 2048 * u32::from(workers),
            ring_entries: 256,
            hand_over_packets: 256,
            faults: Faults::default(),
            seed: 1,
            nic: false,
        }
    }
}

/// Several workers, each with a queue of [`WAN`] and one of [`LAN`].
pub struct Fleet {
    /// The workers.
    pub workers: Vec<Worker>,
    /// Publishes tables to them.
    pub publisher: Publisher,
    /// The far ends, by worker: of its queue of [`WAN`] and of that of [`LAN`].
    pub peers: Vec<[MemoryPeer; 2]>,
    /// Neighbours they asked for.
    pub wants: Receiver<Want>,
    /// Ports they run short of.
    pub port_wants: Receiver<PortWant>,
    /// Their mailboxes.
    pub mailboxes: Vec<Sender<Request>>,
    /// The memory their frames come from.
    pub pool: Pool,
    /// The time they are given, nanoseconds.
    pub now_ns: u64,
    /// The NIC, if one is followed.
    pub nic: Option<Nic>,
    random: Entropy,
    seen: BTreeMap<&'static str, u64>,
}

impl Fleet {
    /// `workers` workers with `tables` published.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn new(tables: Tables, workers: u16) -> Result<Fleet, Box<dyn std::error::Error>> {
        Fleet::with(tables, Plan::of(workers))
    }

    /// Workers as `plan` says, with `tables` published.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn with(mut tables: Tables, plan: Plan) -> Result<Fleet, Box<dyn std::error::Error>> {
        let now_ns = 1 << 40;
        let mut random = Entropy::new(plan.seed);
        let pool = Pool::new(plan.frames, 2048, HugePages::Off)?;
        let owners = OwnerTable::new(plan.workers, [random.draw(), random.draw()]);
        let nic = plan.nic.then(|| Nic::new(plan.workers, &mut random));
        let queues: Vec<u32> = (0..plan.workers.into()).collect();
        tables.owners = match &nic {
            Some(nic) => owners.with_spread(Spread::new(&nic.rss, &queues, plan.workers)?).into(),
            None => owners.into(),
        };
        let (publisher, readers) = Publisher::new(tables);
        let (want, wants) = bounded(1024);
        let (port_want, port_wants) = bounded(1024);
        let (mut workers, mut peers, mut mailboxes) = (Vec::new(), Vec::new(), Vec::new());
        for (id, links) in (0..).zip(handover::matrix(plan.workers, plan.hand_over_packets)?) {
            let mut port = |name: &str, ifindex, mac| {
                let ring_entries = plan.ring_entries;
                let config = memory::Config { device: name.into(), ifindex, queue: id, mac, ring_entries, mtu: 1500 };
                let (port, peer) = memory::pair(&pool, config);
                if plan.faults == Faults::default() {
                    return (Box::new(port) as Box<dyn Port>, peer);
                }
                let mut port = FaultPort::new(port, &pool.depot(), plan.faults, random.draw());
                port.set_faults_sending(Faults::default());
                (Box::new(port) as Box<dyn Port>, peer)
            };
            let (wan, wan_peer) = port("wan0", 10, WAN_MAC);
            let (lan, lan_peer) = port("lan0", 11, LAN_MAC);
            let exits = Exits::new(vec![(wan, WAN), (lan, LAN)], vec![pool.magazine()])?;
            let ingress = vec![Ingress { device: WAN, mac: WAN_MAC }, Ingress { device: LAN, mac: LAN_MAC }];
            let flows = plan.flows;
            let capacity = Capacity { flows_v4: flows, flows_v6: flows, backends: 1 << 20, huge: HugePages::Off };
            let state = State::new(capacity, [random.draw(), random.draw()], now_ns)?;
            let (mailbox, questions) = bounded(8);
            let entropy = Entropy::new(random.draw());
            let mut worker = Worker::new(id, readers(), exits, ingress, state, entropy, want.clone(), questions);
            worker.link(links);
            worker.ask_for_ports(port_want.clone());
            workers.push(worker);
            peers.push([wan_peer, lan_peer]);
            mailboxes.push(mailbox);
        }
        Ok(Fleet {
            workers,
            publisher,
            peers,
            wants,
            port_wants,
            mailboxes,
            pool,
            now_ns,
            nic,
            random,
            seen: BTreeMap::new(),
        })
    }

    /// Gives a frame to worker `queue`'s queue of `device`; false when there was no room.
    pub fn inject(&mut self, queue: usize, device: DeviceId, frame: &[u8]) -> bool {
        let peers = self.peers.get_mut(queue);
        peers.and_then(|peers| peers.get_mut(usize::from(device.0))).is_some_and(|peer| peer.inject(frame))
    }

    /// Moves external ports to the first worker that has asked for some, as the port office does; how many.
    pub fn move_ports(&mut self) -> usize {
        let wants: Vec<PortWant> = self.port_wants.try_iter().collect();
        wants.iter().for_each(|want| self.lend_quota(want));
        let mut ports = wants.iter().filter(|want| matches!(want, PortWant::Ports { .. }));
        let Some(&PortWant::Ports { worker, address, class }) = ports.next() else { return 0 };
        let mut ports = Vec::new();
        for (_, mailbox) in self.mailboxes.iter().enumerate().filter(|(other, _)| *other != usize::from(worker.0)) {
            let (reply, answer) = bounded(1);
            let _ = mailbox.try_send(Request::Release { address, class, reply });
            for _ in 0..2 {
                self.now_ns += 10_000;
                for worker in &mut self.workers {
                    worker.turn(self.now_ns);
                }
            }
            ports.extend(answer.try_recv().unwrap_or_default());
        }
        let count = ports.len();
        if count == 0 {
            return 0;
        }
        for landed in [false, true] {
            let moved = PortMove { address, class, ports: ports.clone(), to: worker, landed };
            self.publish(|tables| compile::move_ports(tables, &moved));
            self.turn();
        }
        count
    }

    /// Moves shares of a quota to the worker that runs short of it.
    fn lend_quota(&mut self, want: &PortWant) {
        let PortWant::Quota { worker, quota } = *want else { return };
        let mut count = 0;
        for other in (0..self.mailboxes.len()).filter(|other| *other != usize::from(worker.0)) {
            let (reply, answer) = bounded(1);
            let _ = self.mailboxes.get(other).map(|mailbox| mailbox.try_send(Request::LendQuota { quota, reply }));
            self.turn();
            count += answer.try_recv().unwrap_or(0);
        }
        let grant = Request::GrantQuota { quota, count };
        let _ = self.mailboxes.get(usize::from(worker.0)).map(|mailbox| mailbox.try_send(grant));
        self.turn();
    }

    /// One turn of every worker in a random order, 10 µs after the last; how many frames they took.
    pub fn turn(&mut self) -> usize {
        self.now_ns += 10_000;
        let mut left: Vec<usize> = (0..self.workers.len()).collect();
        let mut taken = 0;
        while !left.is_empty() {
            let next = usize::try_from(self.random.draw() % left.len() as u64).unwrap_or(0);
            let worker = left.swap_remove(next);
            taken += self.workers.get_mut(worker).map_or(0, |worker| worker.turn(self.now_ns));
        }
        taken
    }

    /// Turns until nobody has anything to do, at least twice, so that every packet that was injected has ended or waits.
    pub fn settle(&mut self) {
        const TURNS_MAX: u32 = 100_000;
        let mut idle = 0;
        for _ in 0..TURNS_MAX {
            idle = if self.turn() == 0 { idle + 1 } else { 0 };
            if idle == 2 {
                return;
            }
        }
        panic!("no end in sight\n{}", self.told());
    }

    /// How long packets were at each stage of a worker, of those that were measured.
    pub fn stages(&self, worker: usize) -> Vec<(&'static str, Spent)> {
        let stages = self.workers.get(worker).map(|worker| worker.stopwatch.stages()).unwrap_or_default();
        stages.named().filter(|(_, spent)| *spent != Spent::default()).collect()
    }

    /// Gives a frame to one queue and lets everybody work until it is quiet.
    pub fn rx(&mut self, queue: usize, device: DeviceId, frame: &[u8]) {
        assert!(self.inject(queue, device, frame), "no room for the frame");
        self.settle();
    }

    /// As [`Fleet::rx`], for a packet from the clients' router.
    pub fn rx_wan(&mut self, queue: usize, packet: &Sketch) {
        self.rx(queue, WAN, &packet.frame(FROM_ROUTER));
    }

    /// As [`Fleet::rx_wan`], on the queue that the NIC chooses; which one that is.
    pub fn rx_nic(&mut self, packet: &Sketch) -> usize {
        let frame = packet.frame(FROM_ROUTER);
        let queue = self.nic.as_ref().map_or(0, |nic| nic.queue(&frame)) as usize;
        self.rx(queue, WAN, &frame);
        queue
    }

    /// As [`Fleet::rx`], for a packet out of the overlay, from peer `n`.
    pub fn rx_overlay(&mut self, queue: usize, net: Net, n: u8, packet: &Sketch) {
        self.rx(queue, LAN, &from_peer(net, n, packet));
    }

    /// Everything sent on `device` since the last look, queue after queue.
    pub fn sent(&mut self, device: DeviceId) -> Vec<Vec<u8>> {
        let ends = self.peers.iter_mut().filter_map(|peers| peers.get_mut(usize::from(device.0)));
        ends.flat_map(|peer| std::iter::from_fn(|| peer.take_sent())).collect()
    }

    /// Publishes the tables as `change` leaves them.
    pub fn publish(&mut self, change: impl FnOnce(&mut Tables)) {
        let mut tables = self.publisher.current().clone();
        change(&mut tables);
        self.publisher.publish(tables);
    }

    /// What would become of a frame: worker `first` is asked, and then the one that it names.
    #[track_caller]
    pub fn explain(&mut self, first: usize, device: DeviceId, frame: &[u8]) -> Explanation {
        let told = explain::whole(first, device, frame, |worker, asked| {
            let (reply, answer) = bounded(1);
            let question = Request::Explain { asked: asked.clone(), reply };
            let asked = self.mailboxes.get(worker).map(|mailbox| mailbox.try_send(question));
            assert!(matches!(asked, Some(Ok(()))), "worker {worker} cannot be asked");
            if let Some(worker) = self.workers.get_mut(worker) {
                worker.turn(self.now_ns);
            }
            answer.try_recv()
        });
        match told {
            Ok(Some(explanation)) => explanation,
            Ok(None) => panic!("workers do not agree whose it is\n{}", self.told()),
            Err(error) => panic!("a worker does not answer: {error}"),
        }
    }

    /// The worker that owns packets with the tuple of this one.
    pub fn owner(&self, packet: &Sketch, domain: Domain) -> usize {
        let (from, to) = (mapped(packet.from.0), mapped(packet.to.0));
        let protocol = packet.number();
        let (source_port, destination_port) = (packet.from.1, packet.to.1);
        let tables = self.publisher.current();
        let domain = domain as u8;
        let owner = match (table::unmapped(&from), table::unmapped(&to)) {
            (Some(source), Some(destination)) => {
                owner::of(tables, &Tuple { source, destination, source_port, destination_port, protocol, domain })
            }
            _ => owner::of(
                tables,
                &Tuple { source: from, destination: to, source_port, destination_port, protocol, domain },
            ),
        };
        owner.0.into()
    }

    /// Live flows, by worker.
    pub fn live(&self) -> Vec<u64> {
        self.workers.iter().map(|worker| worker.state().live()).collect()
    }

    /// The one frame that was sent, on `device`, whatever the queue.
    #[track_caller]
    pub fn sent_one(&mut self, device: DeviceId) -> Vec<u8> {
        let strays = self.sent(if device == WAN { LAN } else { WAN });
        let mut sent = self.sent(device);
        assert!(strays.is_empty(), "sent on the other device: {strays:02x?}\n{}", self.told());
        assert_eq!(sent.len(), 1, "frames sent\n{sent:02x?}\n{}", self.told());
        sent.pop().unwrap_or_default()
    }

    /// Nothing was sent anywhere.
    #[track_caller]
    pub fn expect_silence(&mut self) {
        let sent = (self.sent(WAN), self.sent(LAN));
        assert!(sent.0.is_empty() && sent.1.is_empty(), "sent {sent:02x?}\n{}", self.told());
    }

    /// Exactly this packet was sent to the clients' router.
    #[track_caller]
    pub fn expect_wan(&mut self, packet: &Sketch) {
        let sent = self.sent_one(WAN);
        same(&sent, &packet.frame((WAN_MAC, ROUTER_MAC)), &self.told());
    }

    /// Exactly this packet was sent to peer `n` in VXLAN; see [`super::Rig::expect_overlay`].
    #[track_caller]
    pub fn expect_overlay(&mut self, net: Net, n: u8, packet: &Sketch) -> (u16, Outer) {
        let sent = self.sent_one(LAN);
        expect_overlay(net, n, packet, &sent, &self.told())
    }

    /// Exactly these counters moved since the last time, over all workers, and the books balance.
    #[track_caller]
    pub fn expect_counted(&mut self, expected: &[(&str, u64)]) {
        let expected: BTreeMap<&str, u64> = expected.iter().copied().collect();
        let moved = self.moved();
        assert_eq!(moved, expected, "left: what moved, right: what the test says\n{}", self.told());
        self.expect_balance();
    }

    /// Counters of all workers together.
    pub fn counted(&self) -> BTreeMap<&'static str, u64> {
        let mut all = BTreeMap::new();
        for worker in &self.workers {
            for (name, count) in worker.counters().nonzero() {
                *all.entry(name).or_default() += count;
            }
        }
        all
    }

    /// What moved since the last time this was asked; not how often they turned.
    pub fn moved(&mut self) -> BTreeMap<&'static str, u64> {
        let now = self.counted();
        let before = std::mem::replace(&mut self.seen, now.clone());
        let own = [Event::Turns.name(), Event::IdleTurns.name()];
        let difference = |(name, value): (&'static str, u64)| (name, value - before.get(name).copied().unwrap_or(0));
        now.into_iter().filter(|(name, _)| !own.contains(name)).map(difference).filter(|(_, n)| *n != 0).collect()
    }

    /// Design 9, of each worker and of all: what came in and was taken over is what was sent, handed over, dropped,
    /// consumed, or is held. Without faults what came and went is counted by the ports.
    #[track_caller]
    pub fn expect_balance(&self) {
        let (mut handed, mut taken) = (0, 0);
        for worker in &self.workers {
            let counters = worker.counters();
            handed += counters.events(Event::HandedOver);
            taken += counters.events(Event::TakenOver);
            let came = counters.events(Event::Received)
                + counters.events(Event::Generated)
                + counters.events(Event::TakenOver);
            let ended = counters.dropped()
                + counters.events(Event::Consumed)
                + counters.events(Event::ToKernel)
                + counters.events(Event::HandedOver);
            let waiting = (worker.state.hold.len() + worker.state.fragments.waiting()) as u64;
            let pending: u64 = worker.exits.ports.iter().map(|exit| exit.pending.len() as u64).sum();
            let went = ended + counters.events(Event::Sent) + waiting + pending;
            assert_eq!(came, went, "the books of worker {} do not balance\n{}", worker.id, self.told());
        }
        assert!(handed >= taken, "{taken} taken over and {handed} handed over");
    }

    /// The same by what the ports counted, and with what lies in rings between workers: for fleets without faults.
    #[track_caller]
    pub fn expect_ports_balance(&self) {
        let (mut came, mut went) = (0, 0);
        for worker in &self.workers {
            let counters = worker.counters();
            came += counters.events(Event::Generated) + counters.events(Event::TakenOver);
            went += counters.dropped() + counters.events(Event::Consumed) + counters.events(Event::ToKernel);
            went += counters.events(Event::HandedOver) + worker.held();
            for exit in &worker.exits.ports {
                let port = exit.port.counters();
                came += port.rx_packets;
                went += port.tx_completed + port.tx_rejected;
            }
        }
        assert_eq!(came, went, "the ports' books do not balance\n{}", self.told());
    }

    /// Every flow lives with the worker that owns its packets of both directions, its usage is counted there, and no tuple
    /// is known twice. Slow: visits every flow.
    #[track_caller]
    pub fn expect_flows_at_home(&self) {
        self.at_home::<[u8; 4]>();
        self.at_home::<[u8; 16]>();
    }

    #[track_caller]
    fn at_home<A: Family>(&self) {
        let tables = self.publisher.current();
        let mut tuples = BTreeSet::new();
        for worker in &self.workers {
            let flows: &FlowTable<A> = A::flows(&worker.state);
            flows.visit(0, u32::MAX, |_, entry| {
                // Of a flow to a node no answer comes here.
                let directions =
                    [Direction::Original, Direction::Reply].into_iter().take(if entry.is_one_way() { 1 } else { 2 });
                for direction in directions {
                    let tuple = entry.arriving(direction);
                    let owner = owner::of(tables, &tuple);
                    assert_eq!(u32::from(owner.0), worker.id, "{tuple:?} is not at home\n{}", self.told());
                    assert!(tuples.insert(format!("{tuple:?}")), "known twice: {tuple:?}\n{}", self.told());
                }
            });
        }
    }

    /// Stops everybody and takes everything apart: every frame must come home.
    #[track_caller]
    pub fn expect_all_frames_home(self) {
        let Fleet { mut workers, peers, pool, .. } = self;
        workers.iter_mut().for_each(Worker::stop);
        drop((workers, peers));
        assert_eq!(pool.outstanding(), 0, "frames leaked");
    }

    /// Counters and flows of every worker, for a test that fails.
    pub fn told(&self) -> String {
        let mut text = String::new();
        for worker in &self.workers {
            text.push_str(&format!("worker {}: {:?}\n", worker.id, worker.counters().nonzero()));
            worker.state().v4.visit(0, 8, |_, entry| text.push_str(&format!("  {entry:?}\n")));
            worker.state().v6.visit(0, 8, |_, entry| text.push_str(&format!("  {entry:?}\n")));
        }
        text
    }
}
