//! The pipeline: classify, probe, decide, apply.
//!
//! Four steps, so that a batch can be prefetched between them and so that deciding stays a pure function that workers,
//! `explain`, simulation, fuzzing and benches all call:
//!
//! - [`classify`] makes the lookup key of a packet;
//! - probing the flow table is done by [`crate::worker`] for a whole batch;
//! - [`decide`] reads tables and state and says what is to happen, without changing anything;
//! - [`apply`] does it: the only place where state and frames change.

use tidegate_io::Frame;

use crate::counters::{Counters, Event};
use crate::drops::DropReason;
use crate::family::Family;
use crate::mutation::{self, Mutation};
use crate::packet::{Key, Kind, Packet};
use crate::stage::gatepolicy::{self, Charged, UNASKED};
use crate::stage::policy::{self, Blame, Denied, Passed};
use crate::stage::rewrite::{self, Edited};
use crate::stage::route::{self, Departure, Hop};
use crate::stage::{self, encap, error, flow, portless};
use crate::state::ruling::Said;
use crate::state::{self, Direction, EgressError, Entry, Fold, Hit, InsertError, State, Tuple, Victim, tcp, ticks};
use crate::table::lane::Lane;
use crate::table::local::LocalKind;
use crate::table::{BackendId, Tables};
use crate::wire::encap::Outside;
use crate::wire::packet::Fragment;
use crate::wire::sctp::Saying;
use crate::wire::{Family as Version, edit, protocol, tcp as segment};

/// Answers to whoever asked.
mod answer;
/// What a decision may say.
mod decision;
/// What applying a decision would refuse.
mod objection;
/// The way of SCTP packets of a known flow.
mod sctp;

pub use answer::answer;
pub use decision::{Answer, Decision, Granted, Moment, NewFlow, Refresh, Refused, Silent, Step, Trace, Verdict};
pub use objection::{objection, objection_to_answer};

/// The lookup key of a packet whose IP header starts at `l3[0]`.
#[inline(always)]
pub fn classify(packet: &Packet, l3: &[u8]) -> Key {
    if packet.kind != Kind::Ip {
        return Key::None;
    }
    match packet.l3.family {
        Version::V4 => classify_in::<[u8; 4]>(packet, l3),
        Version::V6 => classify_in::<[u8; 16]>(packet, l3),
    }
}

#[inline(always)]
fn classify_in<A: Family>(packet: &Packet, l3: &[u8]) -> Key {
    match tuple_of::<A>(packet, l3) {
        Some(tuple) => A::key(tuple),
        None if packet.l3.fragment == Fragment::None && packet.l3.is_icmp_error() => classify_quote::<A>(packet, l3),
        None => Key::None,
    }
}

/// The tuple of a whole TCP segment, SCTP packet or datagram of family `A`: the keys that [`classify`] gives nearly every packet.
#[inline(always)]
pub fn tuple_of<A: Family>(packet: &Packet, l3: &[u8]) -> Option<Tuple<A>> {
    let at = &packet.l3;
    let carried = packet.kind == Kind::Ip && at.fragment == Fragment::None;
    if !carried || !matches!(at.protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return None;
    }
    Some(tuple_of_plain(packet, l3))
}

/// The tuple of a plain packet of family `A` ([`L3::is_plain`](crate::wire::packet::L3::is_plain)).
#[inline(always)]
pub fn tuple_of_plain<A: Family>(packet: &Packet, l3: &[u8]) -> Tuple<A> {
    let (source, destination) = A::addresses(l3);
    let at = &packet.l3;
    Tuple {
        source,
        destination,
        source_port: at.source_port,
        destination_port: at.destination_port,
        protocol: at.protocol,
        domain: packet.domain as u8,
    }
}

/// An ICMP error is looked up by the reverse of what it quotes: that is the flow whose packet did not arrive.
#[cold]
fn classify_quote<A: Family>(packet: &Packet, l3: &[u8]) -> Key {
    l3.get(usize::from(packet.l3.l4_offset)..usize::from(packet.l3.total_len))
        .and_then(|message| A::quoted(message, packet.domain as u8).ok())
        .map_or(Key::None, |quoted| A::key(quoted.reversed(packet.domain as u8)))
}

/// What is to happen to a packet with key `tuple`. Pure: reads tables and state, changes nothing.
#[allow(clippy::too_many_arguments)]
pub fn decide<A: Family, T: Trace>(
    tables: &Tables,
    state: &State,
    packet: &Packet,
    tuple: &Tuple<A>,
    hash: u64,
    moment: Moment,
    trace: &mut T,
) -> Decision<A> {
    // Looked up again, not remembered: an earlier packet of the same batch may have started this flow.
    let hit = A::flows(state).lookup(tuple);
    if packet.l3.is_icmp_error() {
        return error::decide::<A>(tables, state, packet, tuple, hit, hash);
    }
    match hit {
        Some(hit) => flow::known(tables, state, packet, tuple, hit, hash, moment, trace),
        None => {
            trace.note(Step::Miss);
            flow::new(tables, state, packet, tuple, hash, moment, None, trace)
        }
    }
}

/// Does what was decided. The frame holds what is to be sent afterwards, unless the verdict is a drop.
#[allow(clippy::too_many_arguments)]
pub fn apply<A: Family>(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    packet: &Packet,
    frame: &mut Frame,
    hash: u64,
    decision: Decision<A>,
    now_ns: u64,
) -> Verdict {
    let said = match packet.l3.protocol {
        protocol::SCTP => stage::sctp::read(packet, frame.bytes()),
        _ => Ok(None),
    };
    let said = match said {
        Ok(said) => said,
        Err(reason) => return Verdict::Drop(reason),
    };
    match decision {
        Decision::Forward { flow, direction, hop, refresh } => {
            if let Some(refresh) = refresh {
                counters.count(Event::FlowRevalidated);
                route::keep(A::flows_mut(state).entry_mut(flow), &refresh);
            }
            let hit = Hit { flow, direction };
            // By the flow, since a later fragment may not name its protocol.
            if A::flows(state).entry(flow).protocol() == protocol::SCTP {
                sctp::forward::<A>(tables, state, counters, packet, frame, said, hit, hop, hash, now_ns)
            } else if packet.l3.has_l4() {
                forward::<A>(tables, state, counters, packet, frame, hit, hop, hash, now_ns)
            } else {
                forward_later::<A>(tables, state, counters, packet, frame, hit, hop, hash, now_ns)
            }
        }
        Decision::Start { flow, replaces } => {
            if let Some(ended) = replaces {
                counters.count(Event::FlowReplaced);
                state.end::<A>(ended, ticks(now_ns));
            }
            // No flow for what could not be sent.
            if said.is_none() && packet.l3.protocol == protocol::SCTP && flow.reply.is_some() {
                return Verdict::Drop(DropReason::SctpFragment);
            }
            let new = flow.entry(packet);
            count_passed(tables, state, &flow.passed);
            let charged = (flow.passed.gate != UNASKED).then(|| charge(tables, state, counters, &flow, now_ns));
            if let Some(granted) = &flow.granted {
                return match begin_egress(tables, state, counters, &new, granted, now_ns) {
                    Ok(hit) => {
                        begun::<A>(tables, state, counters, packet, frame, said, hit, flow.forward, hash, now_ns)
                    }
                    Err(reason) => Verdict::Drop(reason),
                };
            }
            // A pin is not worth anybody else's entry, nor a place among handshakes: the hash does without.
            let pin = flow.reply.is_none();
            if pin && !(state.pins.allow(now_ns) && A::flows(state).has_room(new.state)) {
                return pass::<A>(tables, state, counters, packet, frame, flow.backend, flow.forward, hash);
            }
            match state.make_room::<A>(&new, ticks(now_ns)) {
                None => {}
                Some(Victim::HalfOpen(_)) => counters.count(Event::HalfOpenEvicted),
                Some(Victim::Spared(_)) => counters.count(Event::FlowSpared),
            }
            claim(tables, state, flow.backend);
            match state.begin::<A>(&new, ticks(now_ns)) {
                Ok(id) => {
                    counters.count(Event::FlowInstalled);
                    if let Some(charged) = &charged {
                        gatepolicy::count_opening::<A>(state, id, charged);
                    }
                    if !state.learn(&flow.original, flow.backend, &flow.learn, ticks(now_ns)) {
                        counters.count(Event::AffinityForgotten);
                    }
                    if pin && packet.l3.protocol != protocol::UDP && packet.l3.tcp_flags & segment::SYN == 0 {
                        counters.count(Event::PickedUp);
                    }
                    let hit = Hit { flow: id, direction: Direction::Original };
                    begun::<A>(tables, state, counters, packet, frame, said, hit, flow.forward, hash, now_ns)
                }
                Err(InsertError::Full) if pin => {
                    pass::<A>(tables, state, counters, packet, frame, flow.backend, flow.forward, hash)
                }
                Err(InsertError::Full) => Verdict::Drop(DropReason::TableFull),
                Err(InsertError::OriginalTaken | InsertError::ReplyTaken) => Verdict::Drop(DropReason::PortsExhausted),
            }
        }
        Decision::Translate { flow, direction, hop } => {
            let entry = *A::flows(state).entry(flow);
            let came = A::addresses(frame.bytes().get(usize::from(packet.l3_offset)..).unwrap_or_default());
            match error::translate::<A>(tables, packet, frame, &entry, direction) {
                Ok(()) => {
                    counters.count(Event::ErrorTranslated);
                    identify_error::<A>(tables, state, packet, frame, came);
                    if mutation::is(Mutation::ErrorEndsFlow) {
                        state.end::<A>(flow, ticks(now_ns));
                    }
                    leave(tables, counters, packet, frame, hop, hash)
                }
                Err(reason) => Verdict::Drop(reason),
            }
        }
        Decision::Deliver { to, hop, passed } => {
            count_passed(tables, state, &passed);
            deliver(tables, counters, packet, frame, &to, hop, hash)
        }
        Decision::Route(hop) => {
            counters.count(Event::Routed);
            match rewrite::pass(packet, frame, None) {
                Edited::Plainly | Edited::Clamped => leave(tables, counters, packet, frame, hop, hash),
                Edited::Refused => Verdict::Drop(DropReason::EditRefused),
            }
        }
        Decision::Deny(denied) => {
            count_denied(tables, state, &denied);
            Verdict::Drop(denied.reason)
        }
        Decision::Refuse(refused) => {
            let Refused { answer, address, class, pod, exhausted, short } = refused;
            if let Some(quota) = short {
                state.egress.quotas.want(quota);
            }
            match address.zip(class) {
                Some((address, class)) => state.egress.ports.refuse(&address, class, pod),
                None => state.egress.ports.refuse_pod(pod),
            }
            if let (Some(destination), Some((address, class))) = (exhausted, address.zip(class)) {
                state.egress.ports.exhausted(destination, now_ns);
                state.egress.ports.want(&address, class);
            }
            self::answer(tables, state, counters, packet, frame, answer, hash, now_ns)
        }
        Decision::Pass { backend, hop } => pass::<A>(tables, state, counters, packet, frame, backend, hop, hash),
        Decision::Answer(answer) => self::answer(tables, state, counters, packet, frame, answer, hash, now_ns),
        Decision::Drop(reason) => Verdict::Drop(reason),
    }
}

/// Sends the packet that began a flow.
#[cold]
#[allow(clippy::too_many_arguments)]
fn begun<A: Family>(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    packet: &Packet,
    frame: &mut Frame,
    said: Option<(Saying, u32)>,
    hit: Hit,
    hop: Hop,
    hash: u64,
    now_ns: u64,
) -> Verdict {
    if packet.l3.protocol == protocol::SCTP {
        sctp::forward::<A>(tables, state, counters, packet, frame, said, hit, hop, hash, now_ns)
    } else if packet.l3.has_l4() {
        forward::<A>(tables, state, counters, packet, frame, hit, hop, hash, now_ns)
    } else {
        forward_later::<A>(tables, state, counters, packet, frame, hit, hop, hash, now_ns)
    }
}

/// Counts the rules that let a flow begin.
fn count_passed(tables: &Tables, state: &mut State, passed: &Passed) {
    for (direction, by) in [(policy::Direction::Ingress, passed.ingress), (policy::Direction::Egress, passed.egress)] {
        if let Some(key) = by.and_then(|by| tables.policy.key_of(direction, by)) {
            state.rulings.count(key, Said::Allowed);
        }
    }
    if passed.audited != [None; 2] {
        count_audited(tables, state, passed);
    }
}

/// Counts what in audit would have stopped a flow that begins.
#[cold]
fn count_audited(tables: &Tables, state: &mut State, passed: &Passed) {
    for (direction, by) in policy::Direction::ALL.into_iter().zip(passed.audited) {
        if let Some(key) = by.and_then(|by| tables.policy.key_of(direction, by)) {
            state.rulings.count(key, Said::WouldDeny);
        }
    }
}

/// Charges the source of a flow that begins, and counts the rules of gateway policies that are about it.
#[cold]
fn charge<A: Family>(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    flow: &NewFlow<A>,
    now_ns: u64,
) -> Charged {
    let charged = gatepolicy::charge(tables, state, &flow.original, &flow.passed.gate, now_ns);
    charged.verdicts.iter().flatten().for_each(|(key, said)| state.rulings.count(*key, *said));
    if charged.is_untold {
        counters.count(Event::SourceUntold);
    }
    charged
}

/// Counts the rule, or the isolation, that stopped a packet.
#[cold]
pub(crate) fn count_denied(tables: &Tables, state: &mut State, denied: &Denied) {
    let key = match denied.by {
        Blame::Policy(by) => tables.policy.key_of(denied.direction(), by),
        Blame::Gate(key) => Some(key),
        Blame::Unknown => None,
    };
    if let Some(key) = key {
        state.rulings.count(key, Said::Denied);
    }
}

/// Begins a pod's flow to the outside, in place of those that give way to it.
#[cold]
fn begin_egress<A: Family>(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    new: &state::NewFlow<A>,
    granted: &Granted<A>,
    now_ns: u64,
) -> Result<Hit, DropReason> {
    let now = ticks(now_ns);
    if let Some(class) = granted.grant.class.filter(|_| granted.is_scarce) {
        state.egress.ports.want(&new.translated.source.mapped(), class);
    }
    if let Some(quota) = granted.short {
        state.egress.quotas.want(quota);
    }
    if let Some(closed) = granted.reuses {
        counters.count(Event::PortReused);
        state.end::<A>(closed, now);
    }
    if let Some((mapping, class)) = granted.ends.as_ref().zip(granted.grant.class) {
        state.egress.end(mapping, class, new.original.protocol, now);
    }
    match state.make_room::<A>(new, now) {
        None => {}
        Some(Victim::HalfOpen(_)) => counters.count(Event::HalfOpenEvicted),
        Some(Victim::Spared(_)) => counters.count(Event::FlowSpared),
    }
    claim(tables, state, BackendId(new.backend));
    match state.begin_egress::<A>(new, &granted.grant, now) {
        Ok(flow) => {
            counters.count(Event::FlowInstalled);
            Ok(Hit { flow, direction: Direction::Original })
        }
        Err(EgressError::Flow(InsertError::Full) | EgressError::Port(_)) => Err(DropReason::TableFull),
        // Another flow has the external port towards this very destination: one that a mapping has let in.
        Err(EgressError::Flow(InsertError::OriginalTaken | InsertError::ReplyTaken)) => {
            Err(DropReason::EgressPortsExhausted)
        }
    }
}

/// Sends a packet from outside to the pod whose mapping it came to.
#[cold]
fn deliver<A: Family>(
    tables: &Tables,
    counters: &mut Counters,
    packet: &Packet,
    frame: &mut Frame,
    to: &Tuple<A>,
    hop: Hop,
    hash: u64,
) -> Verdict {
    counters.count(Event::MappingUsed);
    match rewrite::run(packet, frame, to, None) {
        Edited::Plainly | Edited::Clamped => leave(tables, counters, packet, frame, hop, hash),
        Edited::Refused => Verdict::Drop(DropReason::EditRefused),
    }
}

/// Edits and sends a plain packet of a known flow over `lane`, which it fits: what nearly every packet meets.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub fn forward_on<A: Family>(
    lane: &Lane,
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    packet: &Packet,
    frame: &mut Frame,
    hit: Hit,
    hash: u64,
    now_ns: u64,
) -> Verdict {
    let at = &packet.l3;
    let entry = A::flows_mut(state).entry_mut(hit.flow);
    if at.protocol != protocol::TCP {
        tell_datagram(entry, hit.direction, now_ns);
    } else if tcp::is_steady(entry.state, at.tcp_flags) {
        entry.last_ack[hit.direction.index()] = at.tcp_ack;
        entry.last_seen_ticks = ticks(now_ns);
    } else {
        return forward_kept::<A>(tables, state, counters, packet, frame, hit, hash, now_ns);
    }
    let to = entry.leaving(hit.direction);
    if let Some(fold) = entry.count(hit.direction, u32::from(at.total_len)) {
        settle::<A>(state, hit, fold);
    }
    let from = usize::from(packet.l3_offset);
    let l3 = frame.bytes_mut().get_mut(from..from + usize::from(at.total_len)).unwrap_or_default();
    if let Some(ecn) = packet.ecn {
        edit::set_ecn(l3, at.family, ecn);
    }
    if !A::forward(l3, at, &to) {
        return Verdict::Drop(DropReason::EditRefused);
    }
    if !at.dont_fragment {
        identify::<A>(tables, state, packet, frame, hit);
    }
    match encap::dress(lane, packet, frame, hash) {
        Ok(()) => {
            counters.add(Event::Encapsulated, u64::from(!matches!(lane.outside, Outside::Ethernet(_))));
            Verdict::Send(lane.device)
        }
        Err(reason) => Verdict::Drop(reason),
    }
}

/// As [`forward_on`], when the segment changes what is known of its connection.
#[inline(never)]
#[allow(clippy::too_many_arguments)]
fn forward_kept<A: Family>(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    packet: &Packet,
    frame: &mut Frame,
    hit: Hit,
    hash: u64,
    now_ns: u64,
) -> Verdict {
    match route::kept(A::flows(state).entry(hit.flow), hit.direction) {
        Some(hop) => forward::<A>(tables, state, counters, packet, frame, hit, hop, hash, now_ns),
        None => Verdict::Drop(DropReason::NoRoute),
    }
}

/// What a datagram does to its flow.
#[inline(always)]
fn tell_datagram<A: Family>(entry: &mut Entry<A>, direction: Direction, now_ns: u64) {
    entry.state = tcp::advance_udp(entry.state, direction);
    if entry.is_kept_by(direction) {
        entry.last_seen_ticks = ticks(now_ns);
    }
}

/// Adds to its backend's totals what an entry cannot count any more.
#[cold]
#[inline(never)]
fn settle<A: Family>(state: &mut State, hit: Hit, fold: Fold) {
    state.fold::<A>(hit.flow, hit.direction, fold);
    A::flows_mut(state).settle(hit.flow);
}

/// Edits and sends a packet of a known flow over `hop`, in fragments where it does not fit.
#[allow(clippy::too_many_arguments)]
fn forward<A: Family>(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    packet: &Packet,
    frame: &mut Frame,
    hit: Hit,
    hop: Hop,
    hash: u64,
    now_ns: u64,
) -> Verdict {
    match pass_through::<A>(tables, state, counters, packet, frame, hit, now_ns) {
        Ok(()) => leave(tables, counters, packet, frame, hop, hash),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// What a packet does to its flow, and the flow to it: state, time and counters there, header and checksums here.
fn pass_through<A: Family>(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    packet: &Packet,
    frame: &mut Frame,
    hit: Hit,
    now_ns: u64,
) -> Result<(), DropReason> {
    let entry = A::flows_mut(state).entry_mut(hit.flow);
    let at = &packet.l3;
    let mut turned = None;
    if at.protocol == protocol::TCP {
        let ack = &mut entry.last_ack;
        let next = tcp::advance(entry.state, hit.direction, at.tcp_flags, at.tcp_seq, at.tcp_ack, ack);
        if !next.forward {
            return Err(DropReason::TcpInvalid);
        }
        if entry.state != next.state {
            if entry.state.is_active() != next.state.is_active() {
                turned = Some(next.state.is_active());
            }
            entry.state = next.state;
        }
        if next.refresh {
            entry.last_seen_ticks = ticks(now_ns);
        }
    } else {
        tell_datagram(entry, hit.direction, now_ns);
    }
    let to = entry.leaving(hit.direction);
    let folded = entry.count(hit.direction, u32::from(at.total_len));
    let mtu = if at.tcp_flags & segment::SYN != 0 { mtu_both_ways(tables, entry) } else { None };
    let backend = entry.backend;
    if let Some(fold) = folded {
        settle::<A>(state, hit, fold);
    }
    if let Some(is_active) = turned {
        state.usage.turn(backend, is_active);
    }
    match rewrite::run(packet, frame, &to, mtu) {
        Edited::Plainly => {}
        Edited::Clamped => counters.count(Event::MssClamped),
        Edited::Refused => return Err(DropReason::EditRefused),
    }
    if !at.dont_fragment {
        identify::<A>(tables, state, packet, frame, hit);
    }
    Ok(())
}

/// Gives a packet that may be cut an identification of ours, where its source is one that several pods or clients share:
/// theirs could meet (N-046, RFC 6864 section 5.3.1). What keeps its source keeps what its sender gave it. A protocol without
/// ports is one pod's towards each remote; pieces that must not be cut further are nobody's business here.
#[cold]
#[inline(never)]
fn identify<A: Family>(tables: &Tables, state: &mut State, packet: &Packet, frame: &mut Frame, hit: Hit) {
    let entry = A::flows(state).entry(hit.flow);
    let (from, to) = (entry.arriving(hit.direction), entry.leaving(hit.direction));
    if packet.l3.family == Version::V6 || from.source == to.source || portless::is_bare(to.protocol) {
        return;
    }
    let id = match packet.l3.fragment {
        Fragment::First { id } | Fragment::Later { id, .. } => (id & 0xffff) as u16,
        Fragment::None => fresh_identification(tables, state, from.destination, Some(to.destination), to.protocol),
    };
    if mutation::is(Mutation::IdentificationAsItCame) {
        return;
    }
    edit::set_identification(frame.bytes_mut().get_mut(usize::from(packet.l3_offset)..).unwrap_or_default(), id);
}

/// The number that an IPv4 packet leaves with that came in to `came_to`. `goes_to`: where it is led, which is known of no piece
/// of a datagram before all of it is numbered.
pub(crate) fn fresh_identification<A: Family>(
    tables: &Tables,
    state: &mut State,
    came_to: A,
    goes_to: Option<A>,
    protocol: u8,
) -> u16 {
    let (worker, workers) = (state.worker.0, tables.owners.workers());
    let low = |address: A| address.mapped().last_chunk().copied().unwrap_or_default();
    // What comes to an address of ours is led on, and what came to several may meet at one: pieces count together, in a half
    // of the numbers that whole packets have no part in.
    let is_led = came_to.kind(tables).intersects(LocalKind::SERVED | LocalKind::FULLNAT_SOURCE);
    let (to, part) = match goes_to {
        _ if !is_led => (low(came_to), (worker, workers)),
        Some(goes_to) => (low(goes_to), (2 * worker, 2 * workers)),
        None => ([0; 4], (2 * worker + 1, 2 * workers)),
    };
    state.identifications.draw(to, protocol, part)
}

/// The same for an ICMP error that went out in an address's name that others share.
#[cold]
fn identify_error<A: Family>(tables: &Tables, state: &mut State, packet: &Packet, frame: &mut Frame, came: (A, A)) {
    let at = usize::from(packet.l3_offset);
    let left = A::addresses(frame.bytes().get(at..).unwrap_or_default());
    if packet.l3.family == Version::V4 && !packet.l3.dont_fragment && came.0 != left.0 {
        let id = fresh_identification(tables, state, came.1, Some(left.1), A::ICMP);
        edit::set_identification(frame.bytes_mut().get_mut(at..).unwrap_or_default(), id);
    }
}

/// As [`forward`] for a fragment without an L4 header: it says nothing of the flow's state, and only its addresses are
/// edited (N-060).
#[cold]
#[allow(clippy::too_many_arguments)]
fn forward_later<A: Family>(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    packet: &Packet,
    frame: &mut Frame,
    hit: Hit,
    hop: Hop,
    hash: u64,
    now_ns: u64,
) -> Verdict {
    let entry = A::flows_mut(state).entry_mut(hit.flow);
    if entry.protocol() == protocol::UDP && entry.is_kept_by(hit.direction) {
        entry.last_seen_ticks = ticks(now_ns);
    }
    let to = entry.leaving(hit.direction);
    if let Some(fold) = entry.count(hit.direction, u32::from(packet.l3.total_len)) {
        settle::<A>(state, hit, fold);
    }
    match rewrite::run(packet, frame, &to, None) {
        Edited::Plainly | Edited::Clamped => {
            if !packet.l3.dont_fragment {
                identify::<A>(tables, state, packet, frame, hit);
            }
            leave(tables, counters, packet, frame, hop, hash)
        }
        Edited::Refused => Verdict::Drop(DropReason::EditRefused),
    }
}

/// Has usage counted for whoever `backend` is now.
fn claim(tables: &Tables, state: &mut State, backend: BackendId) {
    if let Some(row) = tables.backends.row(backend) {
        state.usage.claim(backend.0, row.identity());
    }
}

/// Sends a packet of no flow to a node as it is.
#[cold]
#[allow(clippy::too_many_arguments)]
fn pass<A: Family>(
    tables: &Tables,
    state: &mut State,
    counters: &mut Counters,
    packet: &Packet,
    frame: &mut Frame,
    backend: BackendId,
    hop: Hop,
    hash: u64,
) -> Verdict {
    // An ICMP error may quote one address of ours and be sent to another, where the node would not know it.
    let l3 = frame.bytes().get(usize::from(packet.l3_offset)..).unwrap_or_default();
    if !A::addresses(l3).1.kind(tables).intersects(LocalKind::SERVED) {
        return Verdict::Drop(DropReason::ErrorUnmatched);
    }
    counters.count(Event::Passed);
    claim(tables, state, backend);
    let fold = Fold { packets: 1, bytes: packet.l3.total_len.into() };
    state.usage.fold(backend.0, Direction::Original, fold);
    let syn = packet.l3.protocol == protocol::TCP && packet.l3.tcp_flags & segment::SYN != 0;
    let mtu = (syn && tables.settings.clamp_mss).then(|| route::mtu(tables, hop));
    match rewrite::pass(packet, frame, mtu) {
        Edited::Plainly => {}
        Edited::Clamped => counters.count(Event::MssClamped),
        Edited::Refused => return Verdict::Drop(DropReason::EditRefused),
    }
    leave(tables, counters, packet, frame, hop, hash)
}

/// V-013: the largest packet that fits the overlay, whichever way it goes.
#[cold]
fn mtu_both_ways<A: Family>(tables: &Tables, entry: &Entry<A>) -> Option<u16> {
    let way = |direction| route::kept(entry, direction).map(|hop| route::mtu(tables, hop));
    let mtu = [way(Direction::Original), way(Direction::Reply)].into_iter().flatten().min()?;
    tables.settings.clamp_mss.then_some(mtu)
}

/// Sends a finished packet over `hop`, in fragments where it does not fit: nothing larger than the path leaves (V-006).
#[cold]
fn leave(tables: &Tables, counters: &mut Counters, packet: &Packet, frame: &mut Frame, hop: Hop, hash: u64) -> Verdict {
    let mtu = route::mtu(tables, hop);
    match packet.l3.total_len {
        len if len <= mtu => depart(tables, counters, packet, frame, hop, hash),
        _ if flow::may_cut(&packet.l3, mtu) => Verdict::Cut(hop),
        _ => Verdict::Drop(DropReason::TooBig),
    }
}

/// Puts the outside on a packet whose IP header is at `packet.l3_offset`, and says where it goes.
#[inline(always)]
pub(crate) fn depart(
    tables: &Tables,
    counters: &mut Counters,
    packet: &Packet,
    frame: &mut Frame,
    hop: Hop,
    hash: u64,
) -> Verdict {
    let departure = match route::departure(tables, hop, hash) {
        Ok(departure) => departure,
        Err(reason) => return Verdict::Drop(reason),
    };
    let dressed = match hop {
        Hop::Tunnel(tunnel) => {
            counters.count(Event::Encapsulated);
            encap::vxlan(tables, packet, frame, tunnel, &departure, hash)
        }
        Hop::Neighbour(_) | Hop::Ask { .. } => encap::ethernet(tables, packet, frame, &departure),
        Hop::Hairpin => return Verdict::Hairpin,
    };
    match dressed {
        Ok(()) => verdict(departure),
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn verdict(departure: Departure) -> Verdict {
    match departure.mac {
        Some(_) => Verdict::Send(departure.device),
        None => Verdict::Hold { device: departure.device, address: departure.address },
    }
}
