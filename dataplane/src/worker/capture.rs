//! Watching: the way of packets while somebody captures them, or one of them is told of to the exporter of flows.
//!
//! Owns what has to be kept of a packet before it is touched, and the comparison afterwards: frames that wait to be sent and
//! were not there before are what became of it, and counters that moved say why. So the stages know nothing of captures,
//! and while there is none a worker pays one branch a turn.
//!
//! A packet that is handed over is told by the worker that decides about it. What had waited (for a neighbour) and
//! leaves between two packets is told by itself.

use arrayvec::ArrayVec;
use tidegate_io::Frame;

use super::other::Hands;
use super::{Slot, Worker};
use crate::capture::{CAPTURES_MAX, COPY_BYTES_MAX, Form, Outcome, Tap, Told};
use crate::counters::{Counters, Event};
use crate::drops::DropReason;
use crate::family::Family;
use crate::flows::{Ends, Note, Sampler, Subject};
use crate::limits;
use crate::packet::{Key, Kind};
use crate::stage::parse::Ingress;
use crate::stage::verdict::Exits;
use crate::state::{Direction, State, Tuple};
use crate::table::{BackendId, DeviceId, ServiceId, Tables};
use crate::wire::packet::{Fragment, L3, parse_l3};
use crate::wire::{Family as Version, ethernet, protocol, udp, vxlan};

/// Frames that one packet can become, and some more.
const ROOM: usize = limits::PIECES_PER_PACKET + 3;
const _: () = assert!(ROOM < limits::BATCH_PACKETS);

/// All captures of a worker, and the packet that is being watched.
#[derive(Debug)]
pub(super) struct Watch {
    taps: ArrayVec<Box<Tap>, CAPTURES_MAX>,
    /// The packet as it came in; never longer than it was made for.
    before: Vec<u8>,
    /// First byte of the IP packet in it, without VXLAN; its length: there is none.
    inner_at: usize,
    came_by: DeviceId,
    /// Device of the port that is being read; none: packets come from other workers.
    pub(super) reading: DeviceId,
    /// Frames that waited to be sent, by port.
    waiting: ArrayVec<usize, { limits::DEVICES_MAX }>,
    events: [u64; Event::COUNT],
    drops: [u64; DropReason::COUNT],
    number: u64,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch {
            taps: ArrayVec::new(),
            before: Vec::with_capacity(COPY_BYTES_MAX),
            inner_at: 0,
            came_by: DeviceId::NONE,
            reading: DeviceId::NONE,
            waiting: ArrayVec::new(),
            events: [0; Event::COUNT],
            drops: [0; DropReason::COUNT],
            number: 0,
        }
    }
}

impl Watch {
    /// Keeps how a packet is before anything is done with it.
    pub fn look(&mut self, frame: &Frame, slot: &Slot, hands: &mut Hands<'_>) {
        // So that frames it becomes stay where they can be looked at.
        for exit in &mut hands.exits.ports {
            if exit.pending.remaining_capacity() < ROOM {
                hands.counters.add(Event::Sent, exit.port.tx(&mut exit.pending) as u64);
            }
        }
        self.number += 1;
        self.came_by = if self.reading.is_none() { slot.packet.device } else { self.reading };
        self.before.clear();
        self.before.extend_from_slice(frame.bytes().get(..COPY_BYTES_MAX).unwrap_or(frame.bytes()));
        self.inner_at = match slot.refused {
            None if slot.packet.kind == Kind::Ip => usize::from(slot.packet.l3_offset),
            _ => self.before.len() - inner(hands.tables, &self.before).len(),
        };
        self.note(hands.exits, hands.counters);
    }

    /// Notes what was sent and counted so far.
    fn note(&mut self, exits: &Exits, counters: &Counters) {
        self.waiting.clear();
        self.waiting.extend(exits.ports.iter().take(limits::DEVICES_MAX).map(|exit| exit.pending.len()));
        for (kept, event) in self.events.iter_mut().zip(Event::ALL) {
            *kept = counters.events(*event);
        }
        for (kept, reason) in self.drops.iter_mut().zip(DropReason::ALL) {
            *kept = counters.drops(*reason);
        }
    }

    /// Tells what became of the packet that was looked at, also to the sampler that has chosen it, if one has.
    pub fn tell(&mut self, slot: &Slot, hands: &Hands<'_>, ingress: &[Ingress], sampler: Option<&mut Sampler>) {
        let moved = |event: Event| hands.counters.events(event) != self.events[event as usize];
        let is_told_elsewhere = moved(Event::HandedOver) && !moved(Event::Hairpinned);
        if is_told_elsewhere {
            return;
        }
        let left = left(&self.waiting, hands.exits, ingress);
        // A ring that was full has taken some meanwhile: which ones of those that wait are its own is not known.
        let is_blurred = moved(Event::Sent);
        let left = left.take(if is_blurred { 0 } else { usize::MAX });
        let frames = left.clone().count();
        let outcome = self.outcome(hands.counters, frames);
        let before = Form {
            after: false,
            device: self.came_by,
            frame: &self.before,
            inner: self.before.get(self.inner_at..).unwrap_or_default(),
        };
        let after = |(device, frame)| Form { after: true, device, frame, inner: inner(hands.tables, frame) };
        let forms = std::iter::once(before).chain(left.map(after));
        let mut told = Told {
            number: self.number,
            at_ns: hands.now_ns,
            outcome,
            service: ServiceId::NONE,
            counted: self.moved(hands.counters),
            generation: hands.tables.generation,
        };
        if let Some(sampler) = sampler
            && let Some(note) = self.note_of(slot, hands, &told)
        {
            sampler.note(note);
        }
        let mut is_named = false;
        for tap in self.taps.iter_mut().filter(|tap| !tap.is_abandoned()) {
            if !tap.wants(outcome, forms.clone()) {
                continue;
            }
            if !is_named {
                (told.service, is_named) = (service_of(hands.tables, hands.state, &slot.key), true);
            }
            forms.clone().for_each(|form| tap.copy(&told, &form));
            tap.miss(u64::from(is_blurred));
        }
    }

    /// What is noted of the packet; nothing of what is no IP packet.
    fn note_of(&self, slot: &Slot, hands: &Hands<'_>, told: &Told) -> Option<Note> {
        let inner = self.before.get(self.inner_at..)?;
        let read = parse_l3(inner).ok()?;
        let packet = match read.family {
            Version::V4 => ends_of(<[u8; 4]>::addresses(inner), &read),
            Version::V6 => ends_of(<[u8; 16]>::addresses(inner), &read),
        };
        let nothing = Noted { came: packet, left: None, backend: BackendId::NONE, is_egress: false, is_reply: false };
        let flow = match &slot.key {
            // An error has the key of the flow that it quotes.
            _ if slot.refused.is_some() || read.is_icmp_error() => nothing,
            Key::None => nothing,
            Key::V4(tuple) => noted(hands.state, tuple),
            Key::V6(tuple) => noted(hands.state, tuple),
        };
        let (outcome, counted) = (told.outcome, told.counted);
        Some(Note {
            at_ns: told.at_ns,
            generation: told.generation,
            subject: Subject::Packet {
                outcome,
                counted,
                bytes: read.total_len,
                tcp_flags: if read.protocol == protocol::TCP { read.tcp_flags } else { 0 },
                tos: read.tos,
                device: self.came_by,
                is_reply: flow.is_reply,
            },
            family: read.family,
            protocol: read.protocol,
            came: flow.came,
            left: flow.left,
            is_egress: flow.is_egress,
            backend: flow.backend,
        })
    }

    fn outcome(&self, counters: &Counters, frames: usize) -> Outcome {
        let moved = |event: Event| counters.events(event) != self.events[event as usize];
        let dropped = DropReason::ALL.iter().zip(&self.drops).find(|(reason, kept)| counters.drops(**reason) != **kept);
        match dropped {
            Some((reason, _)) => Outcome::Dropped(*reason),
            None if frames > 0 || moved(Event::Sent) => Outcome::Sent(u32::try_from(frames).unwrap_or(u32::MAX)),
            None if moved(Event::HandedOver) => Outcome::HandedOver,
            None if moved(Event::NeighbourHeld) => Outcome::Held,
            None if moved(Event::FragmentHeld) => Outcome::Waits,
            None => Outcome::Consumed,
        }
    }

    /// A bit for each event that moved, but for those that every packet moves.
    fn moved(&self, counters: &Counters) -> u64 {
        let told = Event::ALL.iter().zip(&self.events).filter(|(event, kept)| {
            !matches!(event, Event::Received | Event::Sent) && counters.events(**event) != **kept
        });
        told.fold(0, |bits, (event, _)| bits | 1 << (*event as u32))
    }

    /// Tells what has begun to wait to be sent since the last look, without a packet that came for it.
    fn released(&mut self, exits: &Exits, ingress: &[Ingress], tables: &Tables, now_ns: u64) {
        let after = |(device, frame)| Form { after: true, device, frame, inner: inner(tables, frame) };
        for form in left(&self.waiting, exits, ingress).map(after) {
            self.number += 1;
            let (service, counted, generation) = (ServiceId::NONE, 0, tables.generation);
            let told =
                Told { number: self.number, at_ns: now_ns, outcome: Outcome::Released, service, counted, generation };
            for tap in self.taps.iter_mut().filter(|tap| !tap.is_abandoned()) {
                if tap.wants(told.outcome, std::iter::once(form)) {
                    tap.copy(&told, &form);
                }
            }
        }
    }
}

/// What a flow says of a packet.
struct Noted {
    came: Ends,
    left: Option<Ends>,
    backend: BackendId,
    is_egress: bool,
    is_reply: bool,
}

fn ends_of<A: Family>((source, destination): (A, A), read: &L3) -> Ends {
    Ends { source: (source.mapped(), read.source_port), destination: (destination.mapped(), read.destination_port) }
}

fn noted<A: Family>(state: &State, tuple: &Tuple<A>) -> Noted {
    let came = Ends::of(tuple);
    let Some(hit) = A::flows(state).lookup(tuple) else {
        return Noted { came, left: None, backend: BackendId::NONE, is_egress: false, is_reply: false };
    };
    let entry = A::flows(state).entry(hit.flow);
    Noted {
        came,
        left: Some(Ends::of(&entry.leaving(hit.direction))),
        backend: BackendId(entry.backend),
        is_egress: entry.is_egress(),
        is_reply: hit.direction == Direction::Reply,
    }
}

/// Frames that wait to be sent beyond the first so many of each port, with the device they leave by.
fn left<'e>(
    waiting: &[usize],
    exits: &'e Exits,
    ingress: &'e [Ingress],
) -> impl Iterator<Item = (DeviceId, &'e [u8])> + Clone + use<'e> {
    let mut first: ArrayVec<usize, { limits::DEVICES_MAX }> = ArrayVec::new();
    first.extend(waiting.iter().copied().take(limits::DEVICES_MAX));
    let ports = exits.ports.iter().zip(ingress).enumerate();
    ports.flat_map(move |(number, (exit, ingress))| {
        let new = exit.pending.get(first.get(number).copied().unwrap_or_default()..).unwrap_or_default();
        new.iter().map(|frame| (ingress.device, frame.bytes()))
    })
}

/// The IP packet in a frame, that in VXLAN of ours if there is one; empty: none that can be read.
fn inner<'f>(tables: &Tables, frame: &'f [u8]) -> &'f [u8] {
    network(frame).map(|outside| overlaid(tables, outside).unwrap_or(outside)).unwrap_or_default()
}

fn network(frame: &[u8]) -> Option<&[u8]> {
    let link = ethernet::parse_ethernet(frame).ok()?;
    let is_ip = matches!(link.ethertype, ethernet::IPV4 | ethernet::IPV6);
    frame.get(usize::from(link.l3_offset)..).filter(|_| is_ip)
}

fn overlaid<'f>(tables: &Tables, outside: &'f [u8]) -> Option<&'f [u8]> {
    let at = parse_l3(outside).ok().filter(|at| at.protocol == protocol::UDP && at.fragment == Fragment::None)?;
    let is_ours = |family| tables.locals.vtep(family).is_some_and(|vtep| vtep.port == at.destination_port);
    if ![Version::V4, Version::V6].into_iter().any(is_ours) {
        return None;
    }
    let payload = outside.get(usize::from(at.l4_offset) + udp::HEADER_LEN..)?;
    let header = vxlan::parse(payload).ok()?;
    network(payload.get(header.inner_offset..)?)
}

/// The Service of a packet: that of its flow, else that of the address it asks for.
fn service_of(tables: &Tables, state: &State, key: &Key) -> ServiceId {
    match key {
        Key::None => ServiceId::NONE,
        Key::V4(tuple) => service_in(tables, state, tuple),
        Key::V6(tuple) => service_in(tables, state, tuple),
    }
}

fn service_in<A: Family>(tables: &Tables, state: &State, tuple: &Tuple<A>) -> ServiceId {
    let flow = A::flows(state).lookup(tuple).map(|hit| A::flows(state).entry(hit.flow).backend);
    let backend = flow.and_then(|backend| tables.backends.row(BackendId(backend)));
    let asked = || tuple.destination.service(tables, tuple.protocol, tuple.destination_port);
    match backend {
        Some(row) => row.service,
        None => asked().map_or(ServiceId::NONE, |served| served.service),
    }
}

impl Worker {
    /// The packets' part of a turn, watched.
    #[cold]
    #[inline(never)]
    pub(super) fn watched_turn(&mut self, now_ns: u64) -> usize {
        // Nothing waited when the last turn ended.
        self.watch.waiting.clear();
        self.released(now_ns);
        let mut received = 0;
        if self.links.is_alone() {
            for port in 0..self.exits.ports.len() {
                received += self.receive::<false, true>(port, now_ns);
            }
        } else {
            received += self.take_over::<true>(now_ns);
            for port in 0..self.exits.ports.len() {
                received += self.receive::<true, true>(port, now_ns);
            }
            self.links.publish();
        }
        self.watch.note(&self.exits, &self.counters);
        received
    }

    /// Tells what had waited and leaves now.
    #[cold]
    pub(super) fn released(&mut self, now_ns: u64) {
        self.watch.released(&self.exits, &self.ingress, self.reader.tables(), now_ns);
        self.watch.note(&self.exits, &self.counters);
    }

    /// Begins a capture.
    ///
    /// # Errors
    /// The tap, if there are too many.
    #[cold]
    pub(crate) fn begin_capture(&mut self, tap: Box<Tap>) -> Result<(), Box<Tap>> {
        let begun = self.watch.taps.try_push(tap).map_err(|refused| refused.element());
        self.is_watched = !self.watch.taps.is_empty();
        self.watch.note(&self.exits, &self.counters);
        begun
    }

    /// Ends a capture: its tap, if there was one.
    #[cold]
    pub(crate) fn end_capture(&mut self, number: u64) -> Option<Box<Tap>> {
        let at = self.watch.taps.iter().position(|tap| tap.number == number)?;
        let tap = self.watch.taps.remove(at);
        self.is_watched = !self.watch.taps.is_empty();
        Some(tap)
    }

    /// What belongs to watching among the chores: what was released meanwhile, and captures that nobody ended.
    #[cold]
    pub(super) fn watch_chores(&mut self, now_ns: u64) {
        self.released(now_ns);
        while let Some(number) = self.watch.taps.iter().find(|tap| tap.is_abandoned()).map(|tap| tap.number) {
            drop(self.end_capture(number));
        }
    }
}
