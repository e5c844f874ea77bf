//! Frames that lie ready: a port without a device, and the worker over it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_dataplane::counters::Event;
use tidegate_dataplane::flows::Sampler;
use tidegate_dataplane::rig::outside::{self, Outside};
use tidegate_dataplane::rig::{self, LAN, LAN_MAC, Net, WAN, WAN_MAC};
use tidegate_dataplane::stage::parse::Ingress;
use tidegate_dataplane::stage::verdict::Exits;
use tidegate_dataplane::state::{Capacity, Entropy, State, Tuple};
use tidegate_dataplane::table::Tables;
use tidegate_dataplane::table::publish::{Publisher, Reader};
use tidegate_dataplane::worker::Worker;
use tidegate_io::{
    Batch, Frame, Homing, HugePages, Magazine, Mode, Pool, Port, PortCounters, PortFacts, SocketStatistics,
};

/// Frames of one pass: 32 MiB of frame memory, sixteen times a second-level cache of 2 MiB.
pub const PASS_FRAMES: usize = 16_384;
/// Bytes of a frame.
const FRAME_BYTES: u32 = 2048;
/// Backends behind the Service, unless more flows want more of them.
pub const BACKENDS: u16 = 100;
/// Pods of each peer that are clients through the overlay.
const PODS: u32 = 90;
/// External addresses of the policy of [`Way::Egress`]: so many that no crowd of pods uses one up.
const EXTERNALS: u8 = 64;
/// Servers that those pods speak to.
const SERVERS: u32 = 1000;

/// Frames that are ready to be received, and frames that were sent: batches, so that a port moves them as one piece. What is
/// measured is the worker; a real port's time is not in any figure, so this one's should not be either.
#[derive(Default)]
pub(crate) struct Stock {
    ready: Vec<Batch>,
    sent: Vec<Batch>,
}

impl Stock {
    /// Lays a frame before the worker.
    pub fn lay(&mut self, frame: Frame) {
        if self.ready.last().is_none_or(Batch::is_full) {
            self.ready.push(Batch::new());
        }
        self.ready.last_mut().expect("there is room").push(frame);
    }

    /// What was sent, which is here no more.
    pub fn take_sent(&mut self) -> impl Iterator<Item = Frame> {
        self.sent.drain(..).flatten()
    }

    /// What nobody has received, which is here no more.
    pub fn take_ready(&mut self) -> impl Iterator<Item = Frame> {
        self.ready.drain(..).flatten()
    }
}

/// A port that receives from the stock and sends into it. One lock per batch.
pub(crate) struct StockPort {
    pub stock: Arc<Mutex<Stock>>,
    pub facts: PortFacts,
    pub counters: PortCounters,
    pub receives: bool,
}

impl Port for StockPort {
    fn rx(&mut self, batch: &mut Batch) -> usize {
        if !self.receives {
            return 0;
        }
        let mut stock = self.stock.lock().unwrap_or_else(PoisonError::into_inner);
        if !batch.is_empty() {
            return 0;
        }
        match stock.ready.pop() {
            Some(ready) => *batch = ready,
            None => return 0,
        }
        batch.len()
    }

    fn tx(&mut self, batch: &mut Batch) -> usize {
        let mut stock = self.stock.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = batch.len();
        self.counters.tx_packets += sent as u64;
        self.counters.tx_completed += sent as u64;
        stock.sent.push(std::mem::take(batch));
        sent
    }

    fn recycle(&mut self, _magazine: &mut Magazine) {}

    fn kick(&mut self) {}

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn facts(&self) -> &PortFacts {
        &self.facts
    }

    fn socket_statistics(&self) -> std::io::Result<Option<SocketStatistics>> {
        Ok(None)
    }

    fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

/// Which way the measured packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Client to Service: LB, rewrite, VXLAN on.
    ToBackend,
    /// Pod to client: VXLAN off, reverse translation.
    ToClient,
    /// Pod to Service through the overlay: VXLAN off, LB, rewrite, VXLAN on.
    Overlay,
    /// Pod to the outside under an egress policy, UDP by endpoint-independent mappings: VXLAN off, SNAT. Each flow is of a pod's
    /// port of its own, so that there are as many mappings as flows.
    Egress,
    /// What servers answer those: the way back, VXLAN on.
    EgressBack,
}

impl Way {
    fn is_egress(self) -> bool {
        matches!(self, Way::Egress | Way::EgressBack)
    }

    /// Whether packets come from the wire, not from the overlay.
    fn is_from_wire(self) -> bool {
        matches!(self, Way::ToBackend | Way::EgressBack)
    }

    /// The way on which flows begin whose answers go this way.
    fn opening(self) -> Option<Way> {
        match self {
            Way::ToClient => Some(Way::ToBackend),
            Way::EgressBack => Some(Way::Egress),
            Way::ToBackend | Way::Overlay | Way::Egress => None,
        }
    }
}

/// Address and port.
type End = (IpAddr, u16);

/// A worker, a number of established flows, and frames for them.
pub struct Field {
    worker: Worker,
    /// Keeps the tables; elsewhere where somebody publishes others.
    _publisher: Option<Publisher>,
    stock: Arc<Mutex<Stock>>,
    idle: Vec<Frame>,
    net: Net,
    way: Way,
    flows: u32,
    now_ns: u64,
    random: Entropy,
    replies: Vec<(End, End)>,
    /// What passes are timed by.
    clock: fn() -> Duration,
}

impl Field {
    /// A worker with room for `flows_max` flows of each family, and no flow yet.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn empty(net: Net, way: Way, flows_max: u32) -> anyhow::Result<Field> {
        let mut tables = rig::tables();
        if way.is_egress() {
            Field::add_policy(&mut tables, net);
        } else {
            let pods = Field::pods(net, BACKENDS);
            rig::add_service(&mut tables, 1, net.vip(1), 80, 17, &pods);
            rig::add_service(&mut tables, 2, net.vip(1), 80, 6, &pods);
        }
        let (publisher, readers) = Publisher::new(tables);
        let field = Field::following(readers(), net, way, flows_max)?;
        Ok(Field { _publisher: Some(publisher), ..field })
    }

    /// A policy that selects all pods.
    fn add_policy(tables: &mut Tables, net: Net) {
        let mut outside = Outside::default();
        let places = (0..rig::PEERS).flat_map(|peer| (1..=PODS).map(move |pod| (peer, pod.to_le_bytes()[0])));
        for (peer, pod) in places {
            outside.pod(tables, &format!("shop/pod-{peer}-{pod}"), &[net.pod(peer, pod)], &["out"]);
        }
        let addresses: Vec<IpAddr> = (1..=EXTERNALS).map(|n| outside::external(net, n)).collect();
        outside.policy(tables, "out", Some(&outside::policy(&addresses)));
    }

    /// So many endpoints of the Service that flows belong to: port 80 at the first VIP of its net.
    pub fn pods(net: Net, count: u16) -> Vec<rig::Endpoint> {
        let pod = |n: u16| {
            let [at, _] = (n % 100).to_le_bytes();
            (net.pod(at % rig::PEERS, 100 + at), 8080 + n, 1)
        };
        (1..=count).map(pod).collect()
    }

    /// A worker over tables that somebody else publishes, with that Service among them, and no flow yet.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn following(reader: Reader, net: Net, way: Way, flows_max: u32) -> anyhow::Result<Field> {
        let frames = u32::try_from(PASS_FRAMES)? + 64;
        let pool = Pool::new(frames, FRAME_BYTES, HugePages::Auto)?;
        let stock = Arc::new(Mutex::new(Stock::default()));
        let from_wire = way.is_from_wire();
        let port = |name: &str, ifindex, mac, receives| -> Box<dyn Port> {
            let group = pool.group();
            let facts = PortFacts { device: name.into(), ifindex, queue: 0, mac, mtu: 1500, mode: Mode::Memory, group };
            Box::new(StockPort { stock: Arc::clone(&stock), facts, counters: PortCounters::default(), receives })
        };
        let ports = vec![(port("wan0", 10, WAN_MAC, from_wire), WAN), (port("lan0", 11, LAN_MAC, !from_wire), LAN)];
        let mut magazine = pool.magazine();
        let idle: Vec<Frame> = std::iter::from_fn(|| magazine.take()).take(PASS_FRAMES).collect();
        let exits = Exits::new(ports, vec![magazine]).map_err(anyhow::Error::msg)?;
        let ingress = vec![Ingress { device: WAN, mac: WAN_MAC }, Ingress { device: LAN, mac: LAN_MAC }];
        let capacity = Capacity { flows_v4: flows_max, flows_v6: flows_max, backends: 1 << 20, huge: HugePages::Auto };
        let now_ns = 1 << 40;
        let state = State::new(capacity, [3, 5], now_ns)?;
        let (wants, _) = crossbeam::channel::bounded(1);
        let (_, mailbox) = crossbeam::channel::bounded(1);
        let worker = Worker::new(0, reader, exits, ingress, state, Entropy::new(7), wants, mailbox);
        let random = Entropy::new(11);
        Ok(Field {
            worker,
            _publisher: None,
            stock,
            idle,
            net,
            way,
            flows: 0,
            now_ns,
            random,
            replies: Vec::new(),
            clock: || Duration::from_nanos(tidegate_io::mem::now_ns()),
        })
    }

    /// A worker with `flows` established flows.
    ///
    /// # Errors
    /// When the system has no memory, or a flow was not installed.
    pub fn with_flows(net: Net, way: Way, flows: u32) -> anyhow::Result<Field> {
        let mut field = Field::empty(net, way, 2 * flows.max(1024))?;
        match way.opening() {
            // The flows begin at the other end; then the field is turned round.
            Some(opening) => field.turn_round(&mut {
                let mut opening = Field::empty(net, opening, 2 * flows.max(1024))?;
                opening.install(flows)?;
                opening
            }),
            None => {
                field.install(flows)?;
            }
        }
        Ok(field)
    }

    /// Takes over the flows of `other`, the packets of whose answers are measured from now on.
    pub fn turn_round(&mut self, other: &mut Field) {
        self.replies = other.reply_tuples();
        std::mem::swap(self.worker.state_mut(), other.worker.state_mut());
        (self.flows, self.now_ns) = (other.flows, other.now_ns);
    }

    /// Begins flows up to the number `flows`; the time that turns took.
    ///
    /// # Errors
    /// When one was not installed.
    pub fn install(&mut self, flows: u32) -> anyhow::Result<Duration> {
        let mut spent = Duration::ZERO;
        while self.flows < flows {
            let first = self.flows;
            let count = (flows - first).min(u32::try_from(PASS_FRAMES)?);
            self.load(count as usize, |at| first + at);
            spent += self.turns().0;
            self.flows += count;
        }
        let installed = self.worker.counters().events(Event::FlowInstalled);
        anyhow::ensure!(
            installed == u64::from(flows),
            "{installed} of {flows} flows: {:?}",
            self.worker.counters().nonzero()
        );
        Ok(spent)
    }

    /// Ends all flows by letting time pass; the time that turns took.
    pub fn expire(&mut self) -> Duration {
        self.now_ns += 1_800_000_000_000;
        let begun = (self.clock)();
        while self.worker.state().live() > 0 {
            self.now_ns += 10_000_000_000;
            self.worker.turn(self.now_ns);
        }
        (self.clock)() - begun
    }

    /// Ends of packets of the reply direction of every flow.
    fn reply_tuples(&self) -> Vec<(End, End)> {
        fn ends<A: Copy + Into<IpAddr>>(tuple: &Tuple<A>) -> (End, End) {
            ((tuple.source.into(), tuple.source_port), (tuple.destination.into(), tuple.destination_port))
        }
        let mut replies = Vec::with_capacity(self.flows as usize);
        let state = self.worker.state();
        let _ = state.v4.visit(0, u32::MAX, |_, entry| replies.push(ends(&entry.reply_tuple())));
        let _ = state.v6.visit(0, u32::MAX, |_, entry| replies.push(ends(&entry.reply_tuple())));
        replies
    }

    /// Makes `count` frames ready, the packet of flow `choose(n)` in the `n`th.
    fn load(&mut self, count: usize, mut choose: impl FnMut(u32) -> u32) {
        self.load_with(count, |field, n| field.packet(choose(n)));
    }

    /// Makes `count` frames ready, `make(n)` in the `n`th.
    fn load_with(&mut self, count: usize, mut make: impl FnMut(&Field, u32) -> Vec<u8>) {
        let mut stock = std::mem::take(&mut *self.stock.lock().unwrap_or_else(PoisonError::into_inner));
        self.idle.extend(stock.take_sent());
        self.idle.extend(stock.take_ready());
        for n in (0..).take(count) {
            let Some(mut frame) = self.idle.pop() else { break };
            let whole = frame.fill(&make(self, n));
            debug_assert!(whole, "a frame holds every packet of a field");
            stock.lay(frame);
        }
        *self.stock.lock().unwrap_or_else(PoisonError::into_inner) = stock;
    }

    /// The packet of flow `n`, as it arrives.
    fn packet(&self, n: u32) -> Vec<u8> {
        let net = self.net;
        let low = u16::try_from(n & 0xffff).unwrap_or_default();
        let high = u16::try_from(n >> 16).unwrap_or_default();
        // 22 bytes of payload make a frame of 64 bytes over IPv4.
        let payload = [0u8; 22];
        match self.way {
            Way::ToBackend => rig::udp((net.client(low), 40_000 + high), (net.vip(1), 80), &payload),
            Way::ToClient => {
                let (pod, source) = self.reply(n);
                let peer = (0..rig::PEERS).find(|peer| (0..=255).any(|p| net.pod(*peer, p) == pod.0)).unwrap_or(0);
                let bare = rig::udp(pod, source, &payload);
                rig::from_peer(net, peer, &bare[14..])
            }
            Way::EgressBack => {
                let (server, external) = self.reply(n);
                rig::udp(server, external, &payload)
            }
            Way::Overlay | Way::Egress => {
                // One pod after the other, then the next port: no two flows have the same tuple.
                let pods = u32::from(rig::PEERS) * PODS;
                let (place, port) = (n % pods, 1024 + u16::try_from(n / pods).unwrap_or_default());
                let [peer, ..] = (place / PODS).to_le_bytes();
                let [pod, ..] = (place % PODS + 1).to_le_bytes();
                let server = (net.client(u16::try_from(n % SERVERS).unwrap_or_default()), 443);
                let to = if self.way == Way::Egress { server } else { (net.vip(1), 80) };
                let bare = rig::udp((net.pod(peer, pod), port), to, &payload);
                rig::from_peer(net, peer, &bare[14..])
            }
        }
    }

    fn reply(&self, n: u32) -> (End, End) {
        let nobody = (self.net.pod(0, 1), 1);
        self.replies.get(n as usize).copied().unwrap_or((nobody, nobody))
    }

    /// Turns until nothing is ready; returns how long that took and how many packets it were.
    fn turns(&mut self) -> (Duration, usize) {
        let (mut packets, begun) = (0, (self.clock)());
        loop {
            self.now_ns += 10_000;
            match self.worker.turn(self.now_ns) {
                0 => return ((self.clock)() - begun, packets),
                received => packets += received,
            }
        }
    }

    /// Time for `packets` packets of established flows, uniformly chosen. Whole passes are made and scaled.
    pub fn measure_hits(&mut self, packets: u64) -> Duration {
        let flows = u64::from(self.flows.max(1));
        let mut random = self.random.clone();
        let spent = self.measure(packets, |field| {
            field.load(PASS_FRAMES, |_| u32::try_from(random.draw() % flows).unwrap_or_default());
        });
        self.random = random;
        spent
    }

    /// Time for `packets` packets that each begin a flow. The flows end again between passes.
    pub fn measure_new(&mut self, packets: u64) -> Duration {
        let mut next = 0u32;
        self.measure(packets, |field| {
            // Half an hour later every datagram flow is over; a turn looks at as many rows as its time is worth.
            field.expire();
            let first = next;
            next = next.wrapping_add(u32::try_from(PASS_FRAMES).unwrap_or(1)) % 1_000_000;
            field.load(PASS_FRAMES, |n| first + n);
        })
    }

    /// Time for `packets` SYNs from strangers when their share of the table is used up, so that each takes the place of an
    /// older one.
    pub fn measure_flood(&mut self, packets: u64) -> Duration {
        let mut next = 0u32;
        let mut flood = |field: &mut Field| {
            let first = next;
            next = next.wrapping_add(u32::try_from(PASS_FRAMES).unwrap_or(1)) % 4_000_000;
            field.load_with(PASS_FRAMES, |field, n| field.syn(first + n));
        };
        while self.worker.counters().events(Event::HalfOpenEvicted) == 0 {
            flood(self);
            self.turns();
        }
        self.measure(packets, flood)
    }

    /// The SYN of stranger `n`.
    fn syn(&self, n: u32) -> Vec<u8> {
        let low = u16::try_from(n & 0xffff).unwrap_or_default();
        let high = u16::try_from(n >> 16).unwrap_or_default();
        let segment = rig::Segment("S", n, 0);
        rig::tcp((self.net.client(low), 40_000 + high), (self.net.vip(1), 80), segment, &[])
    }

    fn measure(&mut self, packets: u64, mut prepare: impl FnMut(&mut Field)) -> Duration {
        let (mut spent, mut done) = (Duration::ZERO, 0u64);
        while done < packets {
            prepare(self);
            let (time, count) = self.turns();
            spent += time;
            done += count as u64;
        }
        Duration::from_secs_f64(spent.as_secs_f64() * packets as f64 / done.max(1) as f64)
    }

    /// Has the worker tell of flows what the sampler chooses.
    pub fn sample(&mut self, sampler: Sampler) {
        self.worker.sample(sampler);
    }

    /// Times passes by another clock than the one on the wall.
    pub fn timed_by(self, clock: fn() -> Duration) -> Field {
        Field { clock, ..self }
    }

    /// Ends the field: every frame goes home.
    pub fn end(mut self) {
        let mut stock = self.stock.lock().unwrap_or_else(PoisonError::into_inner);
        let sent: Vec<Frame> = stock.take_sent().collect();
        let frames = self.idle.drain(..).chain(sent).chain(stock.take_ready());
        frames.for_each(|frame| drop(Homing::new(frame)));
    }

    /// The worker, to look at.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// One pass with `begin` called just before its turns and `end` just after; what `end` says, and packets handled.
    pub fn counted_pass<T, R>(&mut self, begin: impl FnOnce() -> T, end: impl FnOnce(T) -> R) -> (R, usize) {
        let flows = u64::from(self.flows.max(1));
        let mut random = self.random.clone();
        self.load(PASS_FRAMES, |_| u32::try_from(random.draw() % flows).unwrap_or_default());
        self.random = random;
        let begun = begin();
        let (_, packets) = self.turns();
        (end(begun), packets)
    }

    /// One pass over frames of established flows; packets handled.
    pub fn pass(&mut self) -> usize {
        self.counted_pass(|| (), |()| ()).1
    }
}

/// Time that this thread has had on cores.
pub fn on_core() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}
