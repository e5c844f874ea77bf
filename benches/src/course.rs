//! Courses: one way that packets take, flows that are ready for it, and packets of these flows.
//!
//! Owns the list of ways whose cost is looked after ([`Path`]), and what it takes to get there: handshakes, answers, ports
//! given out. The worker is the real one, its ports are those of [`crate::field`]. Several workers take their turns one after
//! the other on one thread, where work is counted, or each on a thread and core of its own, where it is timed.

use std::net::IpAddr;
use std::sync::{Arc, Barrier, Mutex, PoisonError};

use anyhow::ensure;
use tidegate_dataplane::counters::Event;
use tidegate_dataplane::drops::DropReason;
use tidegate_dataplane::handover;
use tidegate_dataplane::packet::Domain;
use tidegate_dataplane::rig::{self, LAN, LAN_MAC, Net, Segment, WAN, WAN_MAC, outside};
use tidegate_dataplane::stage::parse::Ingress;
use tidegate_dataplane::stage::verdict::Exits;
use tidegate_dataplane::state::{Capacity, Direction, Entropy, Entry, State, Tuple};
use tidegate_dataplane::table::owner::OwnerTable;
use tidegate_dataplane::table::publish::Publisher;
use tidegate_dataplane::table::{DeviceId, Tables};
use tidegate_dataplane::worker::Worker;
use tidegate_io::mem::{PaddedCounter, now_ns};
use tidegate_io::pin::{cores, pin_to};
use tidegate_io::{HugePages, Magazine, Mode, Pool, Port, PortCounters, PortFacts};

use crate::field::{Field, Stock, StockPort};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// First sequence numbers of client and server.
const SEQUENCES: [u32; 2] = [1000, 5000];

/// How long a worker waits for others before it is told that packets are lost.
const PATIENCE_NS: u64 = 10_000_000_000;

/// A way that packets take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Client to a Service's pod, `fullnat`, established.
    ToPod,
    /// The same as datagrams.
    ToPodUdp,
    /// Pod to client, `fullnat`, established.
    ToClient,
    /// Pod to a Service's pod: out of VXLAN and into VXLAN, datagrams.
    Overlay,
    /// Client to a node, `node-dsr`, established.
    NodeDsr,
    /// Pod to the outside under an egress policy, established.
    EgressOut,
    /// Its answers.
    EgressBack,
    /// As [`Path::ToPod`], received by a worker that does not own the flow: both workers' shares.
    HandedOver,
    /// SYNs to a Service.
    New,
    /// Datagrams that each begin a flow.
    NewUdp,
    /// Datagrams to nobody here.
    NobodyHere,
}

impl Path {
    /// All of them.
    pub const ALL: [Path; 11] = [
        Path::ToPod,
        Path::ToPodUdp,
        Path::ToClient,
        Path::Overlay,
        Path::NodeDsr,
        Path::EgressOut,
        Path::EgressBack,
        Path::HandedOver,
        Path::New,
        Path::NewUdp,
        Path::NobodyHere,
    ];

    /// As the records call it.
    pub fn name(self) -> &'static str {
        match self {
            Path::ToPod => "to_pod_tcp",
            Path::ToPodUdp => "to_pod_udp",
            Path::ToClient => "to_client_tcp",
            Path::Overlay => "overlay_udp",
            Path::NodeDsr => "node_dsr_tcp",
            Path::EgressOut => "egress_out_tcp",
            Path::EgressBack => "egress_back_tcp",
            Path::HandedOver => "handed_over_tcp",
            Path::New => "new_tcp",
            Path::NewUdp => "new_udp",
            Path::NobodyHere => "nobody_here",
        }
    }

    fn protocol(self) -> u8 {
        match self {
            Path::ToPodUdp | Path::Overlay | Path::NewUdp | Path::NobodyHere => UDP,
            _ => TCP,
        }
    }

    /// Whether the packets belong to flows that are there.
    pub fn is_established(self) -> bool {
        !matches!(self, Path::New | Path::NewUdp | Path::NobodyHere)
    }

    fn is_egress(self) -> bool {
        matches!(self, Path::EgressOut | Path::EgressBack)
    }

    /// The direction of the flow that is measured.
    fn direction(self) -> Direction {
        if matches!(self, Path::ToClient | Path::EgressBack) { Direction::Reply } else { Direction::Original }
    }
}

/// What a course is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Which way the packets go.
    pub path: Path,
    /// Their family.
    pub net: Net,
    /// Flows that are ready; of paths that begin flows there are none yet.
    pub flows: u32,
    /// Packets of a pass, at most.
    pub frames: usize,
    /// How many workers there are.
    pub workers: u16,
    /// Where packets arrive.
    pub arrival: Arrival,
    /// Pages under frames and tables.
    pub huge: HugePages,
}

impl Plan {
    /// As many workers as the path takes, and the pages that a gateway asks for.
    pub fn new(path: Path, net: Net, flows: u32, frames: usize) -> Plan {
        let (workers, arrival) = if path == Path::HandedOver { (2, Arrival::Elsewhere) } else { (1, Arrival::AtOwner) };
        Plan { path, net, flows, frames, workers, arrival, huge: HugePages::Auto }
    }
}

/// Which worker receives a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The one that owns its flow.
    AtOwner,
    /// Any, each as often.
    Anywhere,
    /// Another one.
    Elsewhere,
}

/// One packet to make: where it arrives, and between whom it goes.
#[derive(Clone, Copy, Debug)]
struct Ends {
    domain: Domain,
    protocol: u8,
    from: (IpAddr, u16),
    to: (IpAddr, u16),
}

impl Ends {
    fn of<A: Copy + Into<IpAddr>>(tuple: &Tuple<A>) -> Ends {
        Ends {
            domain: if tuple.domain == Domain::Wire as u8 { Domain::Wire } else { Domain::Overlay },
            protocol: tuple.protocol,
            from: (tuple.source.into(), tuple.source_port),
            to: (tuple.destination.into(), tuple.destination_port),
        }
    }
}

/// One flow that is there: its worker, and its packets of both directions as they arrive.
#[derive(Clone, Copy, Debug)]
struct Known {
    worker: usize,
    arriving: [Ends; 2],
}

/// One worker, and what lies before its two devices.
struct Gate {
    worker: Worker,
    stocks: [Arc<Mutex<Stock>>; 2],
}

/// Workers with flows, and frames for their packets.
pub struct Course {
    plan: Plan,
    gates: Vec<Gate>,
    known: Vec<Known>,
    /// Flows begun so far.
    begun: u32,
    now_ns: u64,
    random: Entropy,
    magazine: Magazine,
    _publisher: Publisher,
}

impl Course {
    /// A course as planned.
    ///
    /// # Errors
    /// When the system has no memory, or a flow was not to be had.
    pub fn new(plan: Plan) -> anyhow::Result<Course> {
        let Plan { path, flows, frames, huge, .. } = plan;
        let tables = Course::tables(&plan);
        let (publisher, readers) = Publisher::new(tables);
        let pool = Pool::new(u32::try_from(frames)? + 1024, 2048, huge)?;
        let mut gates = Vec::new();
        // Rings that hold a whole pass: a worker that the system does not let run loses nothing meanwhile.
        let ring = frames.next_power_of_two().max(4096);
        for (id, links) in (0..).zip(handover::matrix(plan.workers, ring)?) {
            let stocks = [(); 2].map(|()| Arc::new(Mutex::new(Stock::default())));
            let port = |name: &str, ifindex, mac, stock: &Arc<Mutex<Stock>>| -> Box<dyn Port> {
                let group = pool.group();
                let facts =
                    PortFacts { device: name.into(), ifindex, queue: 0, mac, mtu: 1500, mode: Mode::Memory, group };
                Box::new(StockPort {
                    stock: Arc::clone(stock),
                    facts,
                    counters: PortCounters::default(),
                    receives: true,
                })
            };
            let ports =
                vec![(port("wan0", 10, WAN_MAC, &stocks[0]), WAN), (port("lan0", 11, LAN_MAC, &stocks[1]), LAN)];
            let exits = Exits::new(ports, vec![pool.magazine()]).map_err(anyhow::Error::msg)?;
            let ingress = vec![Ingress { device: WAN, mac: WAN_MAC }, Ingress { device: LAN, mac: LAN_MAC }];
            let room = flows.max(8192) * 2;
            let capacity = Capacity { flows_v4: room, flows_v6: room, backends: 1 << 20, huge };
            let mut state = State::new(capacity, [3, 5], 1 << 40)?;
            // Handshakes may use all of the table: what is measured is not who gives way.
            state.set_half_open_percent(100);
            let (wants, _) = crossbeam::channel::bounded(1);
            let (_, mailbox) = crossbeam::channel::bounded(1);
            let entropy = Entropy::new(7);
            let mut worker = Worker::new(id, readers(), exits, ingress, state, entropy, wants, mailbox);
            worker.link(links);
            gates.push(Gate { worker, stocks });
        }
        let mut course = Course {
            plan,
            gates,
            known: Vec::new(),
            begun: 0,
            now_ns: 1 << 40,
            random: Entropy::new(11),
            magazine: pool.magazine(),
            _publisher: publisher,
        };
        if path.is_established() {
            course.establish(flows, frames)?;
        }
        Ok(course)
    }

    fn tables(plan: &Plan) -> Tables {
        let Plan { path, net, .. } = *plan;
        let mut tables = if path.is_egress() { outside::town().0 } else { rig::tables() };
        if path != Path::NobodyHere {
            let pods = Field::pods(net);
            rig::add_service(&mut tables, 1, net.vip(1), 80, path.protocol(), &pods);
        }
        if path == Path::NodeDsr {
            rig::deliver_to_nodes(&mut tables, 1, &[(0, 1), (1, 1)]);
        }
        tables.owners = OwnerTable::new(plan.workers, [13, 17]).into();
        tables
    }

    /// The first packet of flow `n`.
    fn opening(&self, n: u32) -> Ends {
        let [low, high] = [n & 0xffff, n >> 16].map(|half| u16::try_from(half).unwrap_or_default());
        let (net, protocol) = (self.plan.net, self.plan.path.protocol());
        let (domain, from, to) = match self.plan.path {
            Path::EgressOut | Path::EgressBack => {
                (Domain::Overlay, (net.pod(0, 5), 1024 + low % 60_000), (net.client(low), 443 + high))
            }
            Path::Overlay => {
                let pods = u32::from(rig::PEERS) * 90;
                let ([peer, ..], [pod, ..]) = ((n % pods / 90).to_le_bytes(), (n % 90 + 1).to_le_bytes());
                let port = 1024 + u16::try_from(n / pods).unwrap_or_default();
                (Domain::Overlay, (net.pod(peer, pod), port), (net.vip(1), 80))
            }
            _ => (Domain::Wire, (net.client(low), 40_000 + high), (net.vip(1), 80)),
        };
        Ends { domain, protocol, from, to }
    }

    /// The frame of a packet between `ends`; 64 bytes over IPv4, without what VXLAN adds.
    fn frame(&self, ends: &Ends, segment: Segment<'_>) -> Vec<u8> {
        let payload = [0; 22];
        let bare = match ends.protocol {
            UDP => rig::udp(ends.from, ends.to, &payload),
            _ => rig::tcp(ends.from, ends.to, segment, if segment.0.contains('S') { &[] } else { &payload[..10] }),
        };
        if ends.domain == Domain::Wire {
            return bare;
        }
        let is_peer = |peer: &u8| (0..=255).any(|pod| self.plan.net.pod(*peer, pod) == ends.from.0);
        let peer = (0..rig::PEERS).find(is_peer).unwrap_or_default();
        rig::from_peer(self.plan.net, peer, &bare[14..])
    }

    /// Lays a frame before a worker.
    fn lay(&mut self, worker: usize, domain: Domain, bytes: &[u8]) -> anyhow::Result<()> {
        let gate = self.gates.get(worker).ok_or_else(|| anyhow::anyhow!("no worker {worker}"))?;
        let device = if domain == Domain::Wire { WAN } else { LAN };
        let stock = gate.stocks.get(usize::from(device.0)).ok_or_else(|| anyhow::anyhow!("no {device:?}"))?;
        let mut frame = self.magazine.take().ok_or_else(|| anyhow::anyhow!("no frame is left"))?;
        ensure!(frame.fill(bytes), "a frame holds every packet of a course");
        stock.lock().unwrap_or_else(PoisonError::into_inner).lay(frame);
        Ok(())
    }

    /// Takes back what was sent.
    fn collect(&mut self) {
        for stock in self.gates.iter().flat_map(|gate| &gate.stocks) {
            let mut stock = stock.lock().unwrap_or_else(PoisonError::into_inner);
            stock.take_sent().for_each(|frame| self.magazine.give(frame));
        }
    }

    /// Turns until nobody has anything to do; how many frames were received.
    fn turns(&mut self) -> usize {
        let mut received = 0;
        loop {
            self.now_ns += 10_000;
            let before = received;
            for gate in &mut self.gates {
                received += gate.worker.turn(self.now_ns);
            }
            if received == before {
                return received;
            }
        }
    }

    /// As [`Course::turns`], under a name by which a profiler finds what is to be counted.
    #[inline(never)]
    fn counted_turns(&mut self) -> usize {
        self.turns()
    }

    fn establish(&mut self, flows: u32, frames: usize) -> anyhow::Result<()> {
        const SYN: Segment<'_> = Segment("S", SEQUENCES[0], 0);
        const SYN_ACK: Segment<'_> = Segment("SA", SEQUENCES[1], SEQUENCES[0] + 1);
        const ACK: Segment<'_> = Segment("A", SEQUENCES[0] + 1, SEQUENCES[1] + 1);
        while self.begun < flows {
            let count = (flows - self.begun).min(u32::try_from(frames)?);
            for n in self.begun..self.begun + count {
                let ends = self.opening(n);
                self.lay(0, ends.domain, &self.frame(&ends, SYN))?;
            }
            // A handful at a time: a thousand flows to nodes begin in 8 ms.
            self.now_ns += 1_000_000_000;
            self.turns();
            self.collect();
            self.begun += count;
        }
        self.known = self.flows();
        ensure!(self.known.len() == flows as usize, "{} of {flows} flows: {}", self.known.len(), self.told());
        if self.plan.path.protocol() != TCP {
            return Ok(());
        }
        let known = std::mem::take(&mut self.known);
        for (direction, segment) in [(Direction::Reply, SYN_ACK), (Direction::Original, ACK)] {
            if self.plan.path == Path::NodeDsr && direction == Direction::Reply {
                continue;
            }
            for part in known.chunks(frames) {
                for flow in part {
                    let ends = flow.arriving[direction.index()];
                    self.lay(flow.worker, ends.domain, &self.frame(&ends, segment))?;
                }
                self.turns();
                self.collect();
            }
        }
        self.known = known;
        Ok(())
    }

    /// The flows that are there.
    fn flows(&self) -> Vec<Known> {
        fn both<A: Copy + Into<IpAddr>>(worker: usize, original: &Tuple<A>, reply: &Tuple<A>) -> Known {
            Known { worker, arriving: [Ends::of(original), Ends::of(reply)] }
        }
        let mut known = Vec::new();
        for (worker, gate) in self.gates.iter().enumerate() {
            let state = gate.worker.state();
            let mut v4 = |entry: &Entry<[u8; 4]>| {
                known.push(both(worker, &entry.original_tuple(), &entry.reply_tuple()));
            };
            let _ = state.v4.visit(0, u32::MAX, |_, entry| v4(entry));
            let mut v6 = |entry: &Entry<[u8; 16]>| {
                known.push(both(worker, &entry.original_tuple(), &entry.reply_tuple()));
            };
            let _ = state.v6.visit(0, u32::MAX, |_, entry| v6(entry));
        }
        known
    }

    /// Makes `count` packets ready.
    fn prepare(&mut self, count: usize) -> anyhow::Result<()> {
        const DATA: [Segment<'_>; 2] =
            [Segment("A", SEQUENCES[0] + 1, SEQUENCES[1] + 1), Segment("A", SEQUENCES[1] + 1, SEQUENCES[0] + 1)];
        self.collect();
        for _ in 0..count {
            if !self.plan.path.is_established() {
                let ends = self.opening(self.begun);
                self.begun = (self.begun + 1) % 4_000_000;
                self.lay(0, ends.domain, &self.frame(&ends, Segment("S", SEQUENCES[0], 0)))?;
                continue;
            }
            let at = self.random.draw() % self.known.len().max(1) as u64;
            let flow = self.known.get(usize::try_from(at)?).copied().ok_or_else(|| anyhow::anyhow!("no flow"))?;
            let at = self.plan.path.direction().index();
            let ends = flow.arriving[at];
            let worker = self.receiver(flow.worker);
            self.lay(worker, ends.domain, &self.frame(&ends, DATA[at]))?;
        }
        Ok(())
    }

    /// Who receives a packet of a flow that `owner` owns.
    fn receiver(&mut self, owner: usize) -> usize {
        let workers = self.gates.len();
        let draw = |random: &mut Entropy, below: usize| usize::try_from(random.draw()).unwrap_or(0) % below.max(1);
        match self.plan.arrival {
            Arrival::AtOwner => owner,
            Arrival::Anywhere => draw(&mut self.random, workers),
            Arrival::Elsewhere => (owner + 1 + draw(&mut self.random, workers - 1)) % workers,
        }
    }

    /// One pass of `count` packets, counted by whoever looks at [`Course::counted_turns`]. Nanoseconds.
    ///
    /// # Errors
    /// When a packet went another way than this one.
    pub fn pass(&mut self, count: usize) -> anyhow::Result<u64> {
        self.prepare(count)?;
        let before = self.went();
        let begun = now_ns();
        self.counted_turns();
        let spent_ns = now_ns() - begun;
        let went = self.went() - before;
        ensure!(went == count as u64, "{went} of {count} packets went {:?}: {}", self.plan.path, self.told());
        Ok(spent_ns)
    }

    /// One pass of `count` packets with each worker on a thread and core of its own. Nanoseconds from the first turn of any
    /// to the last of all.
    ///
    /// # Errors
    /// When there are not as many cores, or a packet went another way than this one.
    pub fn pass_side_by_side(&mut self, count: usize) -> anyhow::Result<u64> {
        Course::pass_apart(std::slice::from_mut(self), count)
    }

    /// The same of several courses at once, `count` packets of each: their workers share nothing but the machine.
    ///
    /// # Errors
    /// As [`Course::pass_side_by_side`].
    pub fn pass_apart(courses: &mut [Course], count: usize) -> anyhow::Result<u64> {
        let numbers = cores();
        let workers = courses.iter().map(|course| course.gates.len()).sum();
        ensure!(numbers.len() >= workers, "{workers} workers need as many cores");
        courses.iter_mut().try_for_each(|course| course.prepare(count))?;
        let (before, count): (Vec<u64>, _) = (courses.iter().map(Course::went).collect(), count as u64);
        let barrier = Barrier::new(workers);
        // Packets sent, by course and worker: each is looked at by the others once a turn, on a line of its own.
        let counters = |course: &Course| course.gates.iter().map(|_| PaddedCounter::new()).collect();
        let sent: Vec<Vec<PaddedCounter>> = courses.iter().map(counters).collect();
        let run = |worker: &mut Worker, core, start_ns, own: &PaddedCounter, sent: &[PaddedCounter]| {
            let pinned = pin_to(core);
            let first = worker.counters().events(Event::Sent);
            barrier.wait();
            pinned?;
            let (begun, mut now) = (now_ns(), start_ns);
            while sent.iter().map(PaddedCounter::load).sum::<u64>() < count {
                now += 10_000;
                if worker.turn(now) == 0 && now_ns() - begun > PATIENCE_NS {
                    break;
                }
                own.store(worker.counters().events(Event::Sent) - first);
            }
            std::io::Result::Ok((begun, now_ns()))
        };
        let spans: Vec<(u64, u64)> = std::thread::scope(|scope| {
            let (run, mut numbers, mut threads) = (&run, numbers.into_iter(), Vec::new());
            for (course, sent) in courses.iter_mut().zip(&sent) {
                let start_ns = course.now_ns;
                for ((gate, own), core) in course.gates.iter_mut().zip(sent).zip(&mut numbers) {
                    threads.push(scope.spawn(move || run(&mut gate.worker, core, start_ns, own, sent)));
                }
            }
            let ended =
                threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a worker panicked")));
            ended.map(|ended| Ok(ended??)).collect::<anyhow::Result<_>>()
        })?;
        for (course, before) in courses.iter_mut().zip(before) {
            course.now_ns += 1_000_000_000;
            let went = course.went() - before;
            ensure!(went == count, "{went} of {count} packets went {:?}: {}", course.plan.path, course.told());
        }
        let begun = spans.iter().map(|(begun, _)| *begun).min().unwrap_or_default();
        Ok(spans.iter().map(|(_, ended)| *ended).max().unwrap_or_default() - begun)
    }

    /// Ends the flows that passes have begun.
    pub fn rest(&mut self) {
        if matches!(self.plan.path, Path::New | Path::NewUdp) {
            self.now_ns += 1_800_000_000_000;
            while self.gates.iter().any(|gate| gate.worker.state().live() > 0) {
                self.now_ns += 10_000_000_000;
                for gate in &mut self.gates {
                    gate.worker.turn(self.now_ns);
                }
            }
        }
    }

    /// Packets that have gone the way of this course, each part of it counted.
    fn went(&self) -> u64 {
        let events = |event| self.gates.iter().map(|gate| gate.worker.counters().events(event)).sum::<u64>();
        let drops =
            |reason: DropReason| self.gates.iter().map(|gate| gate.worker.counters().drops(reason)).sum::<u64>();
        let sent = events(Event::Sent);
        match self.plan.path {
            Path::NobodyHere => drops(DropReason::NotOurs),
            Path::New | Path::NewUdp => sent.min(events(Event::FlowInstalled)),
            Path::HandedOver => sent.min(events(Event::FlowHit)).min(events(Event::HandedOver)),
            _ => sent.min(events(Event::FlowHit)),
        }
    }

    fn told(&self) -> String {
        let told = self.gates.iter().map(|gate| format!("{:?}", gate.worker.counters().nonzero()));
        told.collect::<Vec<_>>().join("\n")
    }
}

/// Every frame goes home.
impl Drop for Course {
    fn drop(&mut self) {
        for stock in self.gates.iter().flat_map(|gate| &gate.stocks) {
            let mut stock = stock.lock().unwrap_or_else(PoisonError::into_inner);
            stock.take_sent().for_each(|frame| self.magazine.give(frame));
            stock.take_ready().for_each(|frame| self.magazine.give(frame));
        }
    }
}

const _: () = assert!(WAN.0 == 0 && LAN.0 == 1 && size_of::<DeviceId>() > 0, "stocks are found by device");
