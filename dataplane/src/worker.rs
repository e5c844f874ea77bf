//! A worker: one thread, one core, its ports, its state; one [`Worker::turn`] after the other.
//!
//! Owns everything a packet can change. Shares with other threads only the published tables (read), its committed
//! counters (written), a queue of neighbours it wants and a mailbox of questions. Knows no clock: time is an argument.

use crossbeam::channel::{Receiver, Sender};
use tidegate_io::{Batch, Frame};

use crate::counters::{Counters, Event};
use crate::drops::DropReason;
use crate::family::Family;
use crate::limits;
use crate::mailbox::Request;
use crate::packet::{Domain, Key, Packet};
use crate::pipeline::{self, Moment, Silent, Verdict};
use crate::stage::parse::Ingress;
use crate::stage::verdict::{self, Exits};
use crate::stage::{encap, flow, local, parse};
use crate::state::hold::Outlook;
use crate::state::{Candidate, Entropy, State, Ticks, Tuple, ticks, ticks_since};
use crate::table::neighbour::{NeighbourRow, NeighbourState};
use crate::table::publish::Reader;
use crate::table::{DeviceId, Tables};
use crate::wire::Family as Version;

/// A neighbour that a packet waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Want {
    /// Device it is connected to.
    pub device: DeviceId,
    /// Its address, IPv4 mapped.
    pub address: [u8; 16],
}

/// One worker.
pub struct Worker {
    /// Number of this worker.
    pub id: u32,
    pub(crate) reader: Reader,
    pub(crate) exits: Exits,
    pub(crate) state: State,
    pub(crate) counters: Counters,
    ingress: Vec<Ingress>,
    received: Batch,
    slots: Box<[Slot; limits::BATCH_PACKETS]>,
    entropy: Entropy,
    wants: Sender<Want>,
    mailbox: Receiver<Request>,
    turns: u64,
    generation: u64,
    /// When expiry last looked.
    swept: Ticks,
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
}

impl Slot {
    const EMPTY: Slot = Slot { packet: Packet::NOTHING, refused: None, key: Key::None, hash: 0, candidate: None };
}

impl Worker {
    /// A worker over `exits`, whose ports are those of `ingress` in the same order.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        id: u32,
        reader: Reader,
        exits: Exits,
        ingress: Vec<Ingress>,
        state: State,
        entropy: Entropy,
        wants: Sender<Want>,
        mailbox: Receiver<Request>,
    ) -> Worker {
        let counters = Counters::default();
        let (received, slots) = (Batch::new(), Box::new([Slot::EMPTY; limits::BATCH_PACKETS]));
        Worker {
            id,
            reader,
            exits,
            state,
            counters,
            ingress,
            received,
            slots,
            entropy,
            wants,
            mailbox,
            turns: 0,
            generation: 0,
            swept: 0,
        }
    }

    /// One turn of the wheel: everything a worker does, in order. Returns how many frames it received.
    pub fn turn(&mut self, now_ns: u64) -> usize {
        self.adopt(now_ns);
        let mut received = 0;
        for port in 0..self.exits.ports.len() {
            received += self.receive(port, now_ns);
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
        self.exits.flush(&mut self.counters);
        if received == 0 || self.turns.is_multiple_of(limits::TURNS_PER_COMMIT) {
            self.counters.commit();
        }
        received
    }

    /// Takes over what was published since the last turn, if anything was: the rate of answers, and neighbours that
    /// frames wait for, which leave before any frame that arrives now.
    fn adopt(&mut self, now_ns: u64) {
        let tables = self.reader.refresh();
        if tables.generation == self.generation {
            return;
        }
        self.generation = tables.generation;
        let rate_per_s = tables.settings.reject_rate_per_s;
        self.state.answers.set(rate_per_s, now_ns);
        if !self.state.hold.is_empty() {
            release(tables, now_ns, &mut self.state, &mut self.exits, &mut self.counters, &self.wants);
        }
    }

    /// Receives one batch from one port and carries it through.
    fn receive(&mut self, port: usize, now_ns: u64) -> usize {
        let (Some(exit), Some(ingress)) = (self.exits.ports.get_mut(port), self.ingress.get(port).copied()) else {
            return 0;
        };
        let received = exit.port.rx(&mut self.received);
        if received == 0 {
            return 0;
        }
        self.counters.add(Event::Received, received as u64);
        let tables = self.reader.tables();
        // Sweep 0: fetch headers.
        for frame in &self.received {
            frame.prefetch();
        }
        // Sweep 1: parse, make keys, fetch index lines.
        for (frame, slot) in self.received.iter().zip(self.slots.iter_mut()) {
            learn(tables, ingress, frame, &self.state, &mut self.counters, slot);
        }
        // Sweep 2: read index lines, fetch entry lines.
        for slot in self.slots.iter_mut().take(received) {
            slot.candidate = match slot.key {
                Key::None => None,
                Key::V4(_) => self.state.v4.candidate(slot.hash),
                Key::V6(_) => self.state.v6.candidate(slot.hash),
            };
        }
        // Sweep 3: the same for keys that had to go to their second line.
        for slot in self.slots.iter_mut().take(received) {
            let Some(candidate) = slot.candidate else { continue };
            slot.candidate = match slot.key {
                Key::None => None,
                Key::V4(_) => self.state.v4.follow(candidate, slot.hash),
                Key::V6(_) => self.state.v6.follow(candidate, slot.hash),
            };
        }
        // Sweep 4: decide, apply, dispatch.
        for (mut frame, slot) in self.received.drain(..).zip(self.slots.iter()) {
            let wants = &self.wants;
            let want = |device, address| {
                let _full = wants.try_send(Want { device, address });
            };
            let (state, exits, counters) = (&mut self.state, &mut self.exits, &mut self.counters);
            // Twice the same end, so that the verdict of the fast way stays in registers.
            match run(tables, state, counters, slot, &mut frame, now_ns) {
                Some(verdict) => verdict::carry_out(verdict, frame, now_ns, state, exits, counters, want),
                None => {
                    let verdict = run_other(tables, state, counters, &mut self.entropy, slot, &mut frame, now_ns);
                    verdict::carry_out(verdict, frame, now_ns, state, exits, counters, want);
                }
            }
        }
        received
    }

    /// Ends flows whose time is over: a bounded look, never a sweep of the world.
    fn expire(&mut self, now_ns: u64) {
        let now = ticks(now_ns);
        let elapsed = ticks_since(self.swept, now);
        self.swept = now;
        if elapsed == 0 {
            return;
        }
        let expired = self.state.expire(now, elapsed);
        self.counters.add(Event::FlowExpired, u64::from(expired));
    }

    /// What need not happen every turn: held frames, questions.
    fn chores(&mut self, now_ns: u64) {
        let tables = self.reader.tables();
        if !self.state.hold.is_empty() {
            release(tables, now_ns, &mut self.state, &mut self.exits, &mut self.counters, &self.wants);
        }
        while let Ok(request) = self.mailbox.try_recv() {
            crate::mailbox::answer(self, request, now_ns);
        }
    }

    /// What it counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
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

    /// Gives back every frame that is held; for an orderly end.
    pub fn stop(&mut self) {
        for held in self.state.hold.drain() {
            self.exits.discard(held.frame, DropReason::ShuttingDown, &mut self.counters);
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
fn learn(tables: &Tables, ingress: Ingress, frame: &Frame, state: &State, counters: &mut Counters, slot: &mut Slot) {
    slot.key = Key::None;
    let bytes = frame.bytes();
    slot.refused = parse::read(tables, ingress, bytes, counters, &mut slot.packet).err();
    if slot.refused.is_some() {
        return;
    }
    if slot.packet.domain == Domain::Wire {
        // It most likely leaves in VXLAN. One that came in VXLAN has room where its old outside is.
        frame.prefetch_headroom();
    }
    let l3 = bytes.get(usize::from(slot.packet.l3_offset)..).unwrap_or_default();
    match slot.packet.l3.family {
        Version::V4 => look_up::<[u8; 4]>(l3, state, slot),
        Version::V6 => look_up::<[u8; 16]>(l3, state, slot),
    }
}

#[inline(always)]
fn look_up<A: Family>(l3: &[u8], state: &State, slot: &mut Slot) {
    match pipeline::tuple_of::<A>(&slot.packet, l3) {
        Some(tuple) => {
            slot.hash = A::flows(state).hash(&tuple);
            A::flows(state).prefetch_index(slot.hash);
            slot.key = A::key(tuple);
        }
        None => look_up_quoted(l3, state, slot),
    }
}

#[cold]
#[inline(never)]
fn look_up_quoted(l3: &[u8], state: &State, slot: &mut Slot) {
    slot.key = pipeline::classify(&slot.packet, l3);
    slot.hash = match &slot.key {
        Key::None => 0,
        Key::V4(tuple) => state.v4.hash(tuple),
        Key::V6(tuple) => state.v6.hash(tuple),
    };
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
    if slot.refused.is_some() {
        return None;
    }
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
    let hit = A::flows(state).confirm(slot.candidate?, tuple, slot.hash)?;
    if packet.l3.protocol == A::ICMP {
        return None;
    }
    let hop = flow::current(tables, A::flows(state).entry(hit.flow), hit.direction, packet)?;
    counters.count(Event::FlowHit);
    Some(pipeline::forward::<A>(tables, state, counters, packet, frame, hit, hop, slot.hash, now_ns))
}

/// Sweep 4 for every other frame.
#[cold]
#[inline(never)]
fn run_other(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    entropy: &mut Entropy,
    slot: &Slot,
    frame: &mut Frame,
    now_ns: u64,
) -> Verdict {
    if let Some(reason) = slot.refused {
        return Verdict::Drop(reason);
    }
    let packet = &slot.packet;
    match &slot.key {
        Key::V4(tuple) => run_slowly(tables, state, counters, entropy.draw(), slot.hash, packet, tuple, frame, now_ns),
        Key::V6(tuple) => run_slowly(tables, state, counters, entropy.draw(), slot.hash, packet, tuple, frame, now_ns),
        Key::None => run_local(tables, state, counters, packet, frame, now_ns),
    }
}

#[cold]
#[inline(never)]
#[allow(clippy::too_many_arguments)]
fn run_slowly<A: Family>(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    entropy: u64,
    hash: u64,
    packet: &Packet,
    tuple: &Tuple<A>,
    frame: &mut Frame,
    now_ns: u64,
) -> Verdict {
    counters.count(Event::SlowWalk);
    let moment = Moment { now_ns, entropy };
    let decision = pipeline::decide(tables, state, packet, tuple, hash, moment, &mut Silent);
    pipeline::apply(tables, state, counters, packet, frame, hash, decision, now_ns)
}

#[cold]
fn run_local(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    packet: &Packet,
    frame: &mut Frame,
    now_ns: u64,
) -> Verdict {
    let l3 = frame.bytes().get(usize::from(packet.l3_offset)..).unwrap_or_default();
    match local::decide(tables, packet, l3) {
        Ok(answer) => pipeline::answer(tables, state, counters, packet, frame, answer, 0, now_ns),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Sends held frames whose neighbour has answered, and drops those that waited too long.
#[cold]
fn release(
    tables: &Tables,
    now_ns: u64,
    state: &mut State,
    exits: &mut Exits,
    counters: &mut Counters,
    wants: &Sender<Want>,
) {
    let outlook = |device, address: &[u8; 16]| match neighbour(tables, device, address).map(|row| row.state) {
        Some(NeighbourState::Resolved) => Outlook::Resolved,
        _ => {
            let _full = wants.try_send(Want { device, address: *address });
            Outlook::Waiting
        }
    };
    state.hold.take_ready(outlook, |mut held, _| match neighbour(tables, held.device, &held.address) {
        Some(row) => {
            encap::address(&mut held.frame, row.mac);
            exits.send(held.device, held.frame, counters);
        }
        None => exits.discard(held.frame, DropReason::NeighbourUnresolved, counters),
    });
    state.hold.expire(now_ns, |held| exits.discard(held.frame, DropReason::NeighbourUnresolved, counters));
}

fn neighbour<'t>(tables: &'t Tables, device: DeviceId, address: &[u8; 16]) -> Option<&'t NeighbourRow> {
    tables.neighbours.find(device, address).and_then(|id| tables.neighbours.row(id))
}
