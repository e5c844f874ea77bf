//! A worker: one thread, one core, its ports, its state; one [`Worker::turn`] after the other.
//!
//! Owns everything a packet can change. Shares with other threads only the published tables (read), its committed
//! counters (written), a queue of neighbours it wants, a mailbox of questions, and the rings to other workers. Knows no
//! clock: time is an argument.
//!
//! A batch goes through the same sweeps whether a port received it or another worker handed it over. With several
//! workers the first sweep also finds out whose each packet is; those of others are handed over in the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender};
use crossbeam::utils::CachePadded;
use tidegate_io::{Batch, Frame};

use crate::counters::{Counters, Event};
use crate::drops::DropReason;
use crate::family::Family;
use crate::flows::Sampler;
use crate::handover::{Links, Parcel, Parcels};
use crate::limits;
use crate::mailbox::Request;
use crate::packet::{Domain, Key, Packet};
use crate::pipeline::{self, Verdict};
use crate::stage::parse::Ingress;
use crate::stage::standing::Judge;
use crate::stage::verdict::Exits;
use crate::stage::{flow, fragment, owner, parse, portless};
use crate::state::egress::NatRecord;
use crate::state::ports::PortOf;
use crate::state::quota::Quota;
use crate::state::{Candidate, Entropy, State, Ticks, Tuple, mark, ticks, ticks_since};
use crate::table::egress::{PORT_TIMERS_MAX, PortClass};
use crate::table::owner::WorkerId;
use crate::table::publish::Reader;
use crate::table::{DeviceId, Tables, unmapped};
use crate::wire::Family as Version;

/// What the last sweep does with every packet that is not one of an established flow.
mod other;
/// A packet that is larger than its path, in fragments.
mod cut;
/// What would become of a packet.
mod explain;
/// Where what a worker writes lies in memory.
#[cfg(test)]
pub(crate) mod lines;
/// Packets that somebody captures.
mod capture;
/// How large batches are.
pub mod batches;
/// How long packets are at each stage.
pub mod stages;

use batches::Batches;
use capture::Watch;
use other::Hands;
use stages::{Stage, Stopwatch};

const _: () = assert!(PORT_TIMERS_MAX < mark::TIMER_RECORDED, "the last two numbers mean something else");

/// A neighbour that a packet waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Want {
    /// Device it is connected to.
    pub device: DeviceId,
    /// Its address, IPv4 mapped.
    pub address: [u8; 16],
}

/// What a worker runs short of that others may have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortWant {
    /// Ports of an external address.
    Ports {
        /// The worker.
        worker: WorkerId,
        /// The address, IPv4 mapped.
        address: [u8; 16],
        /// Whose ports.
        class: PortClass,
    },
    /// Its share of a quota.
    Quota {
        /// The worker.
        worker: WorkerId,
        /// The quota.
        quota: Quota,
    },
}

/// One worker. What it writes with every packet lies in pairs of cache lines that no other worker writes to.
#[repr(align(128))]
pub struct Worker {
    /// Number of this worker.
    pub id: u32,
    pub(crate) reader: Reader,
    pub(crate) exits: Exits,
    pub(crate) state: State,
    pub(crate) counters: Counters,
    ingress: Vec<Ingress>,
    pub(crate) links: Links,
    parcels: Box<CachePadded<Parcels>>,
    received: Batch,
    slots: Box<CachePadded<[Slot; limits::BATCH_PACKETS]>>,
    entropy: Entropy,
    wants: Sender<Want>,
    port_wants: Option<Sender<PortWant>>,
    /// Records that the ledger lost, for one worker to count.
    records_lost: Option<Arc<AtomicU64>>,
    mailbox: Receiver<Request>,
    turns: u64,
    generation: u64,
    /// When expiry last looked.
    swept: Ticks,
    /// Time spent in turns that found packets; whoever turns the worker measures it.
    pub(crate) busy_ns: u64,
    pub(crate) batches: Batches,
    pub(crate) stopwatch: Stopwatch,
    /// Whether somebody captures packets.
    is_watched: bool,
    watch: Box<Watch>,
    sampler: Sampler,
}

/// What a batch sweep knows about one frame.
#[derive(Clone, Copy, Debug)]
struct Slot {
    packet: Packet,
    /// Why there is none.
    refused: Option<DropReason>,
    key: Key,
    hash: u64,
    candidate: Option<Candidate>,
    /// Whose it is; looked at with several workers only.
    owner: WorkerId,
    /// How often it has changed hands.
    hops: u8,
}

impl Slot {
    const EMPTY: Slot = Slot {
        packet: Packet::NOTHING,
        refused: None,
        key: Key::None,
        hash: 0,
        candidate: None,
        owner: WorkerId(0),
        hops: 0,
    };
}
const _: () = assert!(size_of::<Slot>() <= 128, "a batch of them stays in the first-level cache");

impl Worker {
    /// A worker over `exits`, whose ports are those of `ingress` in the same order.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        id: u32,
        reader: Reader,
        exits: Exits,
        ingress: Vec<Ingress>,
        mut state: State,
        entropy: Entropy,
        wants: Sender<Want>,
        mailbox: Receiver<Request>,
    ) -> Worker {
        let counters = Counters::default();
        state.worker = WorkerId(u16::try_from(id).unwrap_or(u16::MAX));
        let (received, slots) = (Batch::new(), Box::new(CachePadded::new([Slot::EMPTY; limits::BATCH_PACKETS])));
        Worker {
            id,
            reader,
            exits,
            state,
            counters,
            ingress,
            links: Links::default(),
            parcels: Box::default(),
            received,
            slots,
            entropy,
            wants,
            port_wants: None,
            records_lost: None,
            mailbox,
            turns: 0,
            generation: 0,
            swept: 0,
            busy_ns: 0,
            batches: Batches::default(),
            stopwatch: Stopwatch::default(),
            is_watched: false,
            watch: Box::default(),
            sampler: Sampler::default(),
        }
    }

    /// Gives the worker its ends of the rings to others. The tables must know as many workers as there are links.
    pub fn link(&mut self, links: Links) {
        self.links = links;
    }

    /// Has the worker say when external ports run short that others may have free.
    pub fn ask_for_ports(&mut self, wants: Sender<PortWant>) {
        self.port_wants = Some(wants);
    }

    /// Has the worker count, beside those it has no room for, the records that the ledger itself lost. One worker does.
    pub fn count_records_lost(&mut self, lost: Arc<AtomicU64>) {
        self.records_lost = Some(lost);
    }

    /// Has the worker record who had which external port, where a policy asks for that.
    pub fn record_to(&mut self, records: Sender<NatRecord>) {
        self.state.egress.record_to(records);
    }

    /// Has the worker tell of flows what the sampler chooses.
    pub fn sample(&mut self, sampler: Sampler) {
        self.sampler = sampler;
    }

    /// One turn of the wheel: everything a worker does, in order. Returns how many frames it received or took over.
    pub fn turn(&mut self, now_ns: u64) -> usize {
        self.adopt(now_ns);
        self.stopwatch.lap(Stage::Upkeep);
        let mut received = 0;
        if self.is_watched {
            received += self.watched_turn(now_ns);
            self.stopwatch.spoil();
        } else if self.links.is_alone() {
            for port in 0..self.exits.ports.len() {
                received += self.receive::<false, false>(port, now_ns);
            }
        } else {
            // First what was handed over: it has waited longer, and rings must not run full while ports are read.
            received += self.take_over::<false>(now_ns);
            for port in 0..self.exits.ports.len() {
                received += self.receive::<true, false>(port, now_ns);
            }
            self.links.publish();
            self.stopwatch.lap(Stage::HandOver);
        }
        self.expire(now_ns);
        self.turns += 1;
        self.counters.count(Event::Turns);
        if received == 0 {
            self.counters.count(Event::IdleTurns);
        }
        if received == 0 || self.turns.is_multiple_of(limits::TURNS_PER_CHORE) {
            self.chores(now_ns);
        }
        self.stopwatch.lap(Stage::Upkeep);
        self.exits.flush(&mut self.counters);
        self.stopwatch.lap(Stage::Transmit);
        if received == 0 || self.turns.is_multiple_of(limits::TURNS_PER_COMMIT) {
            self.counters.commit();
        }
        received
    }

    /// The same, and measures how long packets are at each stage: for few turns. Without a clock it is as any other.
    pub fn timed_turn(&mut self, now_ns: u64) -> usize {
        self.stopwatch.start();
        let received = self.turn(now_ns);
        self.stopwatch.stop(received);
        received
    }

    /// Has turns that are measured go by `clock`, which tells nanoseconds.
    pub fn time_by(&mut self, clock: impl FnMut() -> u64 + Send + 'static) {
        self.stopwatch = Stopwatch::new(clock);
    }

    /// Takes over what was published since the last turn, if anything was: the rate of answers, and neighbours that
    /// frames wait for, which leave before any frame that arrives now.
    fn adopt(&mut self, now_ns: u64) {
        let tables = self.reader.refresh();
        if let Some(told) = &mut self.state.connections {
            told.turn(now_ns, tables.generation);
        }
        if tables.generation == self.generation {
            return;
        }
        self.generation = tables.generation;
        let rate_per_s = tables.settings.reject_rate_per_s;
        self.state.answers.set(rate_per_s, now_ns);
        self.state.was_sticky |= tables.services.any_sticky();
        if self.state.egress.ports.has_lent() {
            let is_ours = |port: &PortOf| {
                let (egress, own) = (&tables.egress, self.state.worker);
                let id = match unmapped(&port.address) {
                    Some(address) => egress.external_v4(&address),
                    None => egress.external_v6(&port.address),
                };
                id.is_some_and(|id| egress.port_owner(&tables.owners, id, port.class, port.port) == own)
            };
            self.state.egress.ports.forget_lent(is_ours);
        }
        for number in 1..=PORT_TIMERS_MAX {
            let seconds = tables.egress.timer_s(number).unwrap_or(0);
            self.state.v4.timeouts_mut().set_numbered(number, seconds);
            self.state.v6.timeouts_mut().set_numbered(number, seconds);
        }
        if !self.state.hold.is_empty() {
            other::release(tables, now_ns, &mut self.state, &mut self.exits, &mut self.counters, &self.wants);
        }
    }

    /// Receives one batch from one port and carries it through.
    fn receive<const SEVERAL: bool, const WATCHED: bool>(&mut self, port: usize, now_ns: u64) -> usize {
        let (Some(exit), Some(ingress)) = (self.exits.ports.get_mut(port), self.ingress.get(port).copied()) else {
            return 0;
        };
        let received = exit.port.rx(&mut self.received);
        self.stopwatch.lap(Stage::Receive);
        if received == 0 {
            return 0;
        }
        self.counters.add(Event::Received, received as u64);
        self.batches.count(received);
        let tables = self.reader.tables();
        // Sweep 0: fetch headers.
        for frame in &self.received {
            frame.prefetch();
        }
        // Sweep 1: parse, make keys, fetch index lines.
        for (frame, slot) in self.received.iter().zip(self.slots.iter_mut()) {
            learn::<SEVERAL>(tables, ingress, frame, &self.state, &mut self.counters, slot);
        }
        self.stopwatch.lap(Stage::Parse);
        self.carry::<SEVERAL, WATCHED>(received, ingress.device, now_ns);
        received
    }

    /// Takes over what other workers have handed over, in batches: at most as many as they can receive in a turn.
    fn take_over<const WATCHED: bool>(&mut self, now_ns: u64) -> usize {
        let mut taken = 0;
        for _ in 0..self.links.others() * self.exits.ports.len() {
            let count = self.links.take_into(&mut self.parcels);
            if count == 0 {
                break;
            }
            taken += count;
            self.counters.add(Event::TakenOver, count as u64);
            // The frames' lines are in another core's cache: the longest way there is.
            let front_bytes = self.reader.tables().lanes.front_bytes();
            for parcel in self.parcels.iter() {
                parcel.frame().prefetch();
            }
            for (parcel, slot) in self.parcels.drain(..).zip(self.slots.iter_mut()) {
                accept(front_bytes, &self.state, &parcel, slot);
                self.received.push(parcel.into_frame());
            }
            self.stopwatch.lap(Stage::HandOver);
            self.carry::<true, WATCHED>(count, DeviceId::NONE, now_ns);
        }
        taken
    }

    /// Sweeps 2 to 4, over the batch in `received` and what is known of it in `slots`. It was read at a port of the device
    /// `reading`; none: it comes from other workers.
    #[inline(always)]
    fn carry<const SEVERAL: bool, const WATCHED: bool>(&mut self, received: usize, reading: DeviceId, now_ns: u64) {
        if WATCHED {
            self.watch.reading = reading;
            self.sampler.begin(received);
        } else if self.sampler.is_due(received) {
            self.stopwatch.spoil();
            return self.carry_watched::<SEVERAL>(received, reading, now_ns);
        }
        let own = self.state.worker;
        // Sweep 2: read index lines, fetch entry lines.
        let mut any_spilled = false;
        for slot in self.slots.iter_mut().take(received) {
            slot.candidate = match slot.key {
                Key::None => None,
                _ if SEVERAL && slot.owner != own => None,
                Key::V4(_) => self.state.v4.candidate(slot.hash),
                Key::V6(_) => self.state.v6.candidate(slot.hash),
            };
            any_spilled |= slot.candidate.is_some_and(|candidate| candidate.is_spilled());
        }
        // Sweep 3: the same for keys that had to go to their second line.
        if any_spilled {
            self.follow(received);
        }
        self.stopwatch.lap(Stage::LookUp);
        // Sweep 4: decide, apply, dispatch.
        let mut hands = Hands {
            tables: self.reader.tables(),
            state: &mut self.state,
            exits: &mut self.exits,
            counters: &mut self.counters,
            links: &mut self.links,
            entropy: &mut self.entropy,
            wants: &self.wants,
            now_ns,
        };
        for (mut frame, slot) in self.received.drain(..).zip(self.slots.iter()) {
            let is_chosen = WATCHED && self.sampler.chooses();
            let is_watched = is_chosen || WATCHED && self.is_watched;
            if is_watched {
                self.watch.look(&frame, slot, &mut hands);
            }
            if SEVERAL && slot.owner != own {
                hands.hand_over(frame, &slot.packet, slot.key, slot.owner, slot.hops);
            } else {
                // Nearly all are sent, so that the verdict of the fast way stays in registers.
                match run(hands.tables, hands.state, hands.counters, slot, &mut frame, now_ns) {
                    Some(Verdict::Send(device)) => hands.exits.send(device, frame, hands.counters),
                    Some(verdict) => hands.carry_out(verdict, frame),
                    None => hands.other(frame, slot),
                }
            }
            if is_watched {
                self.watch.tell(slot, &hands, &self.ingress, is_chosen.then_some(&mut self.sampler));
            }
        }
        self.stopwatch.lap(Stage::Forward);
    }

    /// The same for a batch with a packet that is to be told of.
    #[cold]
    #[inline(never)]
    fn carry_watched<const SEVERAL: bool>(&mut self, received: usize, reading: DeviceId, now_ns: u64) {
        self.carry::<SEVERAL, true>(received, reading, now_ns);
    }

    /// Sweep 3.
    fn follow(&mut self, received: usize) {
        for slot in self.slots.iter_mut().take(received) {
            let Some(candidate) = slot.candidate else { continue };
            slot.candidate = match slot.key {
                Key::None => None,
                Key::V4(_) => self.state.v4.follow(candidate, slot.hash),
                Key::V6(_) => self.state.v6.follow(candidate, slot.hash),
            };
        }
    }

    /// Ends flows whose time is over: a bounded look, never a sweep of the world.
    fn expire(&mut self, now_ns: u64) {
        let now = ticks(now_ns);
        let elapsed = ticks_since(self.swept, now);
        self.swept = now;
        if elapsed == 0 {
            return;
        }
        let expired = self.state.expire(now, elapsed, &Judge(self.reader.tables()));
        self.counters.add(Event::FlowExpired, u64::from(expired));
        if let Some(lost) = &self.records_lost {
            self.counters.add(Event::RecordLost, lost.swap(0, Ordering::Relaxed));
        }
        let (exits, counters) = (&mut self.exits, &mut self.counters);
        self.state.fragments.expire(now_ns, |late| exits.discard(late.frame, DropReason::FragmentExpired, counters));
    }

    /// What need not happen every turn: held frames, questions.
    fn chores(&mut self, now_ns: u64) {
        let tables = self.reader.tables();
        self.counters.add(Event::RecordLost, self.state.egress.take_records_lost());
        let connections = self.state.connections.as_mut().map(|told| told.take_counts()).unwrap_or_default();
        let sampled = self.sampler.take_counts();
        let (noted, lost) = (sampled.0 + connections.0, sampled.1 + connections.1);
        self.counters.add(Event::FlowNoted, noted);
        self.counters.add(Event::FlowNoteLost, lost);
        if !self.state.hold.is_empty() {
            other::release(tables, now_ns, &mut self.state, &mut self.exits, &mut self.counters, &self.wants);
        }
        let worker = self.state.worker;
        for (address, class) in self.state.egress.ports.take_wanted() {
            if let Some(wants) = &self.port_wants {
                let _full = wants.try_send(PortWant::Ports { worker, address, class });
            }
        }
        for quota in self.state.egress.quotas.take_wanted() {
            if let Some(wants) = &self.port_wants {
                let _full = wants.try_send(PortWant::Quota { worker, quota });
            }
        }
        while let Ok(request) = self.mailbox.try_recv() {
            crate::mailbox::answer(self, request, now_ns);
        }
        if self.is_watched {
            self.watch_chores(now_ns);
        }
    }

    /// What it counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What its ports counted.
    pub fn port_counters(&self) -> impl Iterator<Item = tidegate_io::PortCounters> {
        self.exits.ports.iter().map(|exit| exit.port.counters())
    }

    /// What it remembers.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What it remembers, to prepare it for a measurement.
    #[cfg(feature = "rig")]
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// Frames it holds: waiting for neighbours or for the first of their datagram, pending, in flight. Those on their way
    /// to it from other workers are nobody's; see [`crate::handover`].
    pub fn held(&self) -> u64 {
        (self.state.hold.len() + self.state.fragments.waiting()) as u64 + self.exits.in_flight()
    }

    /// Gives back every frame that is held; for an orderly end.
    pub fn stop(&mut self) {
        let (exits, counters) = (&mut self.exits, &mut self.counters);
        for held in self.state.hold.drain() {
            exits.discard(held.frame, DropReason::ShuttingDown, counters);
        }
        self.state.fragments.drain(|held| exits.discard(held.frame, DropReason::ShuttingDown, counters));
        self.links.publish();
        while self.links.take_into(&mut self.parcels) > 0 {
            for parcel in self.parcels.drain(..) {
                counters.count(Event::TakenOver);
                exits.discard(parcel.into_frame(), DropReason::ShuttingDown, counters);
            }
        }
        self.exits.flush(&mut self.counters);
        self.counters.commit();
    }
}

/// However a worker ends, the frames it holds go home.
impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sweep 1 for one frame.
#[inline(always)]
fn learn<const SEVERAL: bool>(
    tables: &Tables,
    ingress: Ingress,
    frame: &Frame,
    state: &State,
    counters: &mut Counters,
    slot: &mut Slot,
) {
    slot.key = Key::None;
    if SEVERAL {
        (slot.hops, slot.owner) = (0, state.worker);
    }
    let l3 = match parse::read(tables, ingress, frame.bytes(), counters, &mut slot.packet) {
        Ok(l3) => l3,
        Err(reason) => {
            slot.refused = Some(reason);
            return;
        }
    };
    slot.refused = None;
    if slot.packet.domain == Domain::Wire {
        // It most likely leaves in VXLAN. One that came in VXLAN has room where its old outside is.
        frame.prefetch_headroom(tables.lanes.front_bytes());
    }
    look_up::<SEVERAL>(tables, l3, state, slot);
}

/// Makes the key of a packet that was parsed, whose IP header starts at `l3[0]`, and fetches what it leads to.
#[inline(always)]
fn look_up<const SEVERAL: bool>(tables: &Tables, l3: &[u8], state: &State, slot: &mut Slot) {
    match slot.packet.l3.family {
        _ if !slot.packet.l3.is_plain => look_up_other(tables, l3, state, slot),
        Version::V4 => look_up_plain::<[u8; 4], SEVERAL>(tables, l3, state, slot),
        Version::V6 => look_up_plain::<[u8; 16], SEVERAL>(tables, l3, state, slot),
    }
}

#[inline(always)]
fn look_up_plain<A: Family, const SEVERAL: bool>(tables: &Tables, l3: &[u8], state: &State, slot: &mut Slot) {
    let tuple = pipeline::tuple_of_plain::<A>(&slot.packet, l3);
    slot.key = A::key(tuple);
    if SEVERAL {
        slot.owner = owner::of(tables, &tuple);
    }
    if !SEVERAL || slot.owner == state.worker {
        slot.hash = A::flows(state).hash(&tuple);
        A::flows(state).prefetch_index(slot.hash);
    }
}

/// The same for packets that are not plain: ICMP errors and fragments, which have no ports of their own, SCTP, IP options;
/// and for those that belong to no flow.
#[cold]
#[inline(never)]
fn look_up_other(tables: &Tables, l3: &[u8], state: &State, slot: &mut Slot) {
    slot.key = pipeline::classify(&slot.packet, l3);
    match &slot.key {
        Key::None if fragment::is_followed(&slot.packet) => {
            let (key, _) = match slot.packet.l3.family {
                Version::V4 => fragment::read::<[u8; 4]>(&slot.packet, l3),
                Version::V6 => fragment::read::<[u8; 16]>(&slot.packet, l3),
            };
            slot.owner = owner::of_fragments(tables, &key);
        }
        Key::None => look_up_portless(tables, l3, state, slot),
        Key::V4(tuple) => (slot.owner, slot.hash) = (owner::of(tables, tuple), state.v4.hash(tuple)),
        Key::V6(tuple) => (slot.owner, slot.hash) = (owner::of(tables, tuple), state.v6.hash(tuple)),
    }
}

/// The same for echo messages of pods, and for protocols without ports.
fn look_up_portless(tables: &Tables, l3: &[u8], state: &State, slot: &mut Slot) {
    slot.key = portless::key(tables, &slot.packet, l3);
    match &slot.key {
        Key::None => {}
        Key::V4(tuple) => (slot.owner, slot.hash) = (owner::of(tables, tuple), state.v4.hash(tuple)),
        Key::V6(tuple) => (slot.owner, slot.hash) = (owner::of(tables, tuple), state.v6.hash(tuple)),
    }
}

/// Sweep 1 for a packet that another worker has parsed.
#[inline(always)]
fn accept(front_bytes: usize, state: &State, parcel: &Parcel, slot: &mut Slot) {
    slot.packet = parcel.packet;
    slot.refused = None;
    slot.key = parcel.key;
    slot.owner = state.worker;
    slot.hops = parcel.hops;
    match &slot.key {
        Key::None => {}
        Key::V4(tuple) => {
            slot.hash = state.v4.hash(tuple);
            state.v4.prefetch_index(slot.hash);
        }
        Key::V6(tuple) => {
            slot.hash = state.v6.hash(tuple);
            state.v6.prefetch_index(slot.hash);
        }
    }
    if slot.packet.domain == Domain::Wire {
        parcel.frame().prefetch_headroom(front_bytes);
    }
}

/// Sweep 4 for one frame whose flow is known and current; `None`: it takes the slow way.
#[inline(always)]
fn run(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    slot: &Slot,
    frame: &mut Frame,
    now_ns: u64,
) -> Option<Verdict> {
    match &slot.key {
        Key::V4(tuple) => run_flow(tables, state, counters, slot, tuple, frame, now_ns),
        Key::V6(tuple) => run_flow(tables, state, counters, slot, tuple, frame, now_ns),
        Key::None => None,
    }
}

#[inline(always)]
fn run_flow<A: Family>(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    slot: &Slot,
    tuple: &Tuple<A>,
    frame: &mut Frame,
    now_ns: u64,
) -> Option<Verdict> {
    let packet = &slot.packet;
    // An error has the key of the flow it quotes, a later fragment that was handed over the ports of the first: neither
    // is a segment. SCTP is looked at as a whole.
    if !packet.l3.is_plain {
        return None;
    }
    let hit = A::flows(state).confirm(slot.candidate?, tuple, slot.hash)?;
    let lane = flow::current(tables, A::flows(state).entry(hit.flow), hit.direction, packet, slot.hash)?;
    counters.count(Event::FlowHit);
    Some(pipeline::forward_on::<A>(lane, tables, state, counters, packet, frame, hit, slot.hash, now_ns))
}
