//! The last sweep for every packet that is not simply one of an established flow: new flows, fragments, errors, what is
//! asked of us, and what belongs to another worker.
//!
//! Owns the ways a frame can go from there: out, back, into a hold, to another worker, or home. It takes the frame, where
//! the fast way only borrows it. Refuses to decide: that is [`crate::pipeline`] and the stages.

use crossbeam::channel::Sender;
use tidegate_io::Frame;

use super::{Slot, Want};
use crate::counters::{Counters, Event};
use crate::drops::DropReason;
use crate::family::Family;
use crate::handover::{Links, Parcel};
use crate::packet::{Domain, Key, Packet};
use crate::pipeline::{self, Moment, Silent, Verdict, fresh_identification};
use crate::stage::verdict::{self, Exits};
use crate::stage::{encap, fragment, local, owner, portless};
use crate::state::fragment::{Outcome, Ports, Waiting};
use crate::state::hold::Outlook;
use crate::state::{Entropy, State, Tuple};
use crate::table::neighbour::{NeighbourRow, NeighbourState};
use crate::table::owner::WorkerId;
use crate::table::{DeviceId, Tables, TunnelId};
use crate::wire::packet::{L3, parse_l3};
use crate::wire::{Family as Version, protocol, tcp};

/// All of a worker but its batch: what a frame can need in the last sweep.
pub(super) struct Hands<'w> {
    pub tables: &'w Tables,
    pub state: &'w mut State,
    pub exits: &'w mut Exits,
    pub counters: &'w mut Counters,
    pub links: &'w mut Links,
    pub entropy: &'w mut Entropy,
    pub wants: &'w Sender<Want>,
    pub now_ns: u64,
}

impl Hands<'_> {
    /// Sends the frame where its verdict says.
    #[inline(never)]
    pub fn carry_out(&mut self, verdict: Verdict, frame: Frame) {
        let want = |device, address| {
            let _full = self.wants.try_send(Want { device, address });
        };
        verdict::carry_out(verdict, frame, self.now_ns, self.state, self.exits, self.counters, want);
    }

    /// Gives the frame to the worker that owns it.
    #[inline]
    pub fn hand_over(&mut self, frame: Frame, packet: &Packet, key: Key, to: WorkerId, hops: u8) {
        match self.links.send(to, Parcel::new(frame, packet, key, hops + 1)) {
            Ok(()) => self.counters.count(Event::HandedOver),
            Err((frame, reason)) => self.exits.discard(frame, reason, self.counters),
        }
    }

    /// Every packet that the fast way has left.
    #[cold]
    #[inline(never)]
    pub fn other(&mut self, frame: Frame, slot: &Slot) {
        if let Some(reason) = slot.refused {
            return self.carry_out(Verdict::Drop(reason), frame);
        }
        match &slot.key {
            Key::V4(tuple) => self.flow(frame, &slot.packet, tuple, slot.hash, slot.hops),
            Key::V6(tuple) => self.flow(frame, &slot.packet, tuple, slot.hash, slot.hops),
            Key::None if fragment::is_followed(&slot.packet) => match slot.packet.l3.family {
                Version::V4 => self.fragment::<[u8; 4]>(frame, &slot.packet, slot.hops),
                Version::V6 => self.fragment::<[u8; 16]>(frame, &slot.packet, slot.hops),
            },
            Key::None => self.local(frame, &slot.packet),
        }
    }

    /// A packet with a tuple that is ours: everything is looked at.
    fn flow<A: Family>(&mut self, mut frame: Frame, packet: &Packet, tuple: &Tuple<A>, hash: u64, hops: u8) {
        if self.state.was_sticky
            && let Some(before) = elsewhere(self.tables, self.state, self.links.is_alone(), packet, tuple)
        {
            return self.hand_over(frame, packet, A::key(*tuple), before, hops);
        }
        self.counters.count(Event::SlowWalk);
        let moment = Moment { now_ns: self.now_ns, entropy: self.entropy.draw() };
        let decision = pipeline::decide(self.tables, self.state, packet, tuple, hash, moment, &mut Silent);
        let (state, counters) = (&mut *self.state, &mut *self.counters);
        let verdict = pipeline::apply(self.tables, state, counters, packet, &mut frame, hash, decision, self.now_ns);
        match verdict {
            Verdict::Hairpin => self.take_back(frame, packet, hops),
            Verdict::Cut(hop) => self.cut(frame, packet, hop, hash),
            verdict => self.carry_out(verdict, frame),
        }
    }

    /// A pod's packet to an external address comes back in as if from the wire: the second half of a hairpin (N-010), by the
    /// owner of the port it is to (design 4, rule 6).
    #[cold]
    fn take_back(&mut self, frame: Frame, packet: &Packet, hops: u8) {
        let l3 = frame.bytes().get(usize::from(packet.l3_offset)..).unwrap_or_default();
        // What answers a packet that was taken back goes the same way, and nothing ever answers that.
        let is_answer = |read: &L3| read.is_icmp_error() || read.is_icmp_echo() && !portless::asks(read);
        let read = parse_l3(l3).ok().filter(|read| packet.domain == Domain::Overlay || is_answer(read));
        let Some(read) = read else { return self.carry_out(Verdict::Drop(DropReason::NoRoute), frame) };
        self.counters.count(Event::Hairpinned);
        let hops = if packet.domain == Domain::Wire { 0 } else { hops };
        let packet = Packet { domain: Domain::Wire, tunnel: TunnelId::NONE, ecn: None, l3: read, ..*packet };
        let key = match pipeline::classify(&packet, l3) {
            Key::None => portless::key(self.tables, &packet, l3),
            key => key,
        };
        match key {
            Key::V4(tuple) => self.take_back_to(frame, &packet, &tuple, hops),
            Key::V6(tuple) => self.take_back_to(frame, &packet, &tuple, hops),
            // Its first piece came to this worker too, and so do the others. What has been taken back is not taken back again:
            // it may change hands as if it had just come.
            Key::None if fragment::is_followed(&packet) => match packet.l3.family {
                Version::V4 => self.fragment::<[u8; 4]>(frame, &packet, 0),
                Version::V6 => self.fragment::<[u8; 16]>(frame, &packet, 0),
            },
            // An echo request to an address that pods share.
            Key::None => self.local(frame, &packet),
        }
    }

    fn take_back_to<A: Family>(&mut self, frame: Frame, packet: &Packet, tuple: &Tuple<A>, hops: u8) {
        let to = owner::of(self.tables, tuple);
        if to != self.state.worker {
            return self.hand_over(frame, packet, A::key(*tuple), to, hops);
        }
        let hash = A::flows(self.state).hash(tuple);
        self.flow(frame, packet, tuple, hash, hops);
    }

    /// A packet that can belong to no flow.
    fn local(&mut self, mut frame: Frame, packet: &Packet) {
        let l3 = frame.bytes().get(usize::from(packet.l3_offset)..).unwrap_or_default();
        let verdict = match local::decide(self.tables, packet, l3) {
            Ok(answer) if let Some(denied) = local::denied(self.tables, packet, l3, answer) => {
                pipeline::count_denied(self.tables, self.state, &denied);
                Verdict::Drop(denied.reason)
            }
            Ok(answer) => {
                let (state, counters) = (&mut *self.state, &mut *self.counters);
                pipeline::answer(self.tables, state, counters, packet, &mut frame, answer, 0, self.now_ns)
            }
            Err(reason) => Verdict::Drop(reason),
        };
        match verdict {
            Verdict::Hairpin => self.take_back(frame, packet, 0),
            verdict => self.carry_out(verdict, frame),
        }
    }

    /// A fragment of a datagram that is followed here: it waits for the first one, or goes on with its ports.
    fn fragment<A: Family>(&mut self, frame: Frame, packet: &Packet, hops: u8) {
        let l3 = frame.bytes().get(usize::from(packet.l3_offset)..).unwrap_or_default();
        if let Err(reason) = fragment::admit::<A>(self.tables, packet, l3) {
            return self.carry_out(Verdict::Drop(reason), frame);
        }
        let (key, piece) = fragment::read::<A>(packet, l3);
        let destination = A::addresses(l3).1;
        let first =
            fragment::ports(packet).map(|ports| Ports { id: self.identification(packet, destination), ..ports });
        let waiting = Waiting { frame, packet: *packet, hops };
        match self.state.fragments.arrive(&key, piece, first, waiting, self.now_ns) {
            Outcome::Held => self.counters.count(Event::FragmentHeld),
            Outcome::Pass(Waiting { frame, packet, hops }, ports, mut released) => {
                self.follow::<A>(frame, &packet, ports, hops);
                while let Some(Waiting { frame, packet, hops }) = self.state.fragments.next(&mut released) {
                    self.follow::<A>(frame, &packet, ports, hops);
                }
            }
            Outcome::Refused(Waiting { frame, .. }, refusal, mut released) => {
                let reason = fragment::reason(refusal);
                self.exits.discard(frame, reason, self.counters);
                while let Some(Waiting { frame, .. }) = self.state.fragments.next(&mut released) {
                    self.exits.discard(frame, reason, self.counters);
                }
            }
        }
    }

    /// What the pieces of a datagram leave with, whoever forwards them (N-046).
    fn identification<A: Family>(&mut self, packet: &Packet, destination: A) -> u16 {
        match packet.l3.family {
            Version::V4 => fresh_identification(self.tables, self.state, destination, None, packet.l3.protocol),
            Version::V6 => 0,
        }
    }

    /// A fragment whose ports are known goes where packets of its flow go.
    fn follow<A: Family>(&mut self, frame: Frame, packet: &Packet, ports: Ports, hops: u8) {
        let packet = &fragment::renumbered(packet, ports.id);
        let l3 = frame.bytes().get(usize::from(packet.l3_offset)..).unwrap_or_default();
        let tuple = fragment::tuple::<A>(packet, l3, ports);
        let to = owner::of(self.tables, &tuple);
        if to != self.state.worker {
            return self.hand_over(frame, packet, A::key(tuple), to, hops);
        }
        let hash = A::flows(self.state).hash(&tuple);
        self.flow(frame, packet, &tuple, hash, hops);
    }
}

/// Who may know the flow of this packet, if we do not: it began before its Service was told to keep clients, or not
/// to any more, and lives where it began (S-094, S-100). Or it is a pod's with the outside, where answers of pods are looked
/// for first at their clients' worker. Only what cannot begin a flow itself is worth asking for.
#[cold]
pub(super) fn elsewhere<A: Family>(
    tables: &Tables,
    state: &State,
    is_alone: bool,
    packet: &Packet,
    tuple: &Tuple<A>,
) -> Option<WorkerId> {
    if is_alone || A::flows(state).lookup(tuple).is_some() {
        return None;
    }
    let second = owner::second(tables, tuple).filter(|second| *second != state.worker);
    if second.is_some() && owner::of(tables, tuple) == state.worker {
        return second;
    }
    let opens = tuple.protocol != protocol::TCP || packet.l3.tcp_flags & tcp::SYN != 0;
    if opens && !packet.l3.is_icmp_error() {
        return None;
    }
    // The other rule's owner hands back nothing: there this rule's owner is "elsewhere" only for whom it is not.
    let [now, before] = [owner::of(tables, tuple), owner::before(tables, tuple)];
    (now == state.worker && before != now).then_some(before)
}

/// Sends held frames whose neighbour has answered, and drops those that waited too long.
#[cold]
pub(super) fn release(
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
