//! # Flow: is it known and still current?
//!
//! reads   the flow entry, two epochs     writes  nothing; returns a hop, or what to do instead
//! drops   `SpoofedSource`, `NotOurs`, `NoFlow`, `NoBackend`, `NoRoute`, `OrphanSegment`,
//!         `FragmentUntracked`
//! cost    known and current: the entry's line, and each row on the way read once by its index (two for a neighbour,
//!         three for a tunnel, the epochs); no loop, no hash
//! spec    S-070, S-074, S-077, S-078, S-100 … S-103, N-087, V-010, L-020, L-058, P-047
//! tests   `dataplane/tests/golden/flow.rs`, `dataplane/tests/differential.rs`
//!
//! [`current`] is all that a packet of an established flow meets. Whatever it does not like goes through [`known`] or
//! [`new`], which look at everything and say exactly what is to happen.

use crate::drops::DropReason;
use crate::family::Family;
use crate::limits;
use crate::mutation::{self, Mutation};
use crate::packet::{Domain, Packet};
use crate::pipeline::{Answer, Decision, Moment, NewFlow, Refresh, Refused, Step, Trace};
use crate::stage::policy::{Denied, Passed};
use crate::stage::route::{self, Hop};
use crate::stage::{egress, gatepolicy, inward, nat, node, policy, portless, service, standing};
use crate::state::{Direction, Entry, FlowId, FlowState, Hit, State, Tuple};
use crate::table::backend::BackendState;
use crate::table::lane::Lane;
use crate::table::local::LocalKind;
use crate::table::{BackendId, OrphanTcp, Tables};
use crate::wire::fragment::Pieces;
use crate::wire::packet::L3;
use crate::wire::{protocol, tcp};

/// The way of a plain packet whose flow is known, if nothing about it needs a second look.
#[inline(always)]
pub fn current<'t, A: Family>(
    tables: &'t Tables,
    entry: &Entry<A>,
    direction: Direction,
    packet: &Packet,
    hash: u64,
) -> Option<&'t Lane> {
    let (tunnelled, row) = route::row_kept(entry, direction);
    let lane = tables.lanes.find(tunnelled, row, hash)?;
    let at = &packet.l3;
    if entry.routes_epoch != policy::ways_epoch(tables, entry)
        || entry.backend_epoch != tables.backends.epoch(BackendId(entry.backend))
        || at.tcp_flags & tcp::SYN != 0
        || at.ttl <= 1
        || at.total_len > lane.mtu
    {
        return None;
    }
    let came_right =
        packet.domain == Domain::Wire || route::row_kept(entry, direction.reversed()) == (true, packet.tunnel.0);
    came_right.then_some(lane)
}

/// What to do with a packet whose flow is known, looking at everything.
#[allow(clippy::too_many_arguments)]
pub fn known<A: Family, T: Trace>(
    tables: &Tables,
    state: &State,
    packet: &Packet,
    tuple: &Tuple<A>,
    hit: Hit,
    hash: u64,
    moment: Moment,
    trace: &mut T,
) -> Decision<A> {
    let entry = A::flows(state).entry(hit.flow);
    trace.note(Step::Hit(hit.direction));
    if packet.domain == Domain::Overlay && !came_right(tables, packet, entry, hit.direction, tuple.source) {
        return Decision::Drop(DropReason::SpoofedSource);
    }
    let syn = is_connected(packet) && packet.l3.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN;
    if syn && hit.direction == Direction::Original && may_reopen(entry.state) {
        return new(tables, state, packet, tuple, hash, moment, Some(hit.flow), trace); // N-087
    }
    let mut refresh = None;
    if syn && entry.is_one_way()
        || entry.routes_epoch != policy::ways_epoch(tables, entry)
        || entry.backend_epoch != tables.backends.epoch(BackendId(entry.backend))
        || route::kept(entry, hit.direction).and_then(|hop| route::carries(tables, hop)).is_none()
    {
        trace.note(Step::Revalidate);
        let standing = if entry.is_one_way() {
            node::revalidate(tables, entry, syn)
        } else if standing::is_pods(tables, entry) {
            standing::revalidate(tables, entry, hit.direction, hash)
        } else {
            revalidate(tables, entry, hit.direction, hash)
        };
        match standing {
            Standing::Keep(fresh) => refresh = Some(fresh),
            Standing::Reselect | Standing::End if hit.direction == Direction::Original => {
                return new(tables, state, packet, tuple, hash, moment, Some(hit.flow), trace); // S-102
            }
            Standing::Reselect | Standing::End => return Decision::Drop(DropReason::NoFlow),
            Standing::Refuse(reason) => return Decision::Drop(reason),
            Standing::Deny(denied) => return Decision::Deny(denied),
        }
    }
    let hop = match (refresh, hit.direction) {
        (Some(Refresh { forward, .. }), Direction::Original) => forward,
        (Some(Refresh { reply, .. }), Direction::Reply) => reply,
        (None, direction) => route::kept(entry, direction),
    };
    let Some(hop) = hop else { return Decision::Drop(DropReason::NoRoute) };
    match passable(tables, packet, hop) {
        Ok(()) => Decision::Forward { flow: hit.flow, direction: hit.direction, hop, refresh },
        Err(answer) => Decision::Answer(answer),
    }
}

/// N-087: whether a SYN begins a new connection over one in this state.
fn may_reopen(state: FlowState) -> bool {
    use FlowState as S;
    matches!(state, S::TIME_WAIT | S::CLOSE | S::PIN_CLOSED | S::PIN_DOUBTED | S::SCTP_CLOSED)
}

/// Whether one packet of the protocol opens what the others belong to, which its flags tell.
fn is_connected(packet: &Packet) -> bool {
    matches!(packet.l3.protocol, protocol::TCP | protocol::SCTP)
}

/// What to do with a packet that belongs to no flow. `replaces` is a flow of the same tuple that ends with this.
#[allow(clippy::too_many_arguments)]
pub fn new<A: Family, T: Trace>(
    tables: &Tables,
    state: &State,
    packet: &Packet,
    tuple: &Tuple<A>,
    hash: u64,
    moment: Moment,
    replaces: Option<FlowId>,
    trace: &mut T,
) -> Decision<A> {
    match start(tables, state, packet, tuple, hash, moment, replaces, trace) {
        Ok(Begun::Flow(flow)) => Decision::Start { flow, replaces },
        Ok(Begun::Pass { backend, hop }) => Decision::Pass { backend, hop },
        Ok(Begun::Deliver { to, hop, passed }) => Decision::Deliver { to, hop, passed },
        Ok(Begun::Route(hop)) => Decision::Route(hop),
        Ok(Begun::Refuse(refused)) => Decision::Refuse(refused),
        Ok(Begun::Deny(denied)) => Decision::Deny(denied),
        Ok(Begun::Answer(answer)) => Decision::Answer(answer),
        Err(reason) => Decision::Drop(reason),
    }
}

/// What a packet without a flow begins.
pub enum Begun<A> {
    /// A flow.
    Flow(NewFlow<A>),
    /// Nothing that is remembered: it goes this way.
    Pass {
        /// The node it is counted for.
        backend: BackendId,
        /// Where it leaves.
        hop: Hop,
    },
    /// Nothing that is remembered: it goes to a pod by its mapping.
    Deliver {
        /// The tuple it leaves with.
        to: Tuple<A>,
        /// Where it leaves.
        hop: Hop,
        /// What let it pass.
        passed: Passed,
    },
    /// Nothing that is remembered: it leaves this way as it is.
    Route(Hop),
    /// Nothing: the pod that sent it is told.
    Refuse(Refused),
    /// Nothing, in silence: a policy denies it.
    Deny(Denied),
    /// An answer.
    Answer(Answer),
}

#[allow(clippy::too_many_arguments)]
fn start<A: Family, T: Trace>(
    tables: &Tables,
    state: &State,
    packet: &Packet,
    tuple: &Tuple<A>,
    hash: u64,
    moment: Moment,
    replaces: Option<FlowId>,
    trace: &mut T,
) -> Result<Begun<A>, DropReason> {
    if !packet.l3.has_l4() && !portless::is_bare(tuple.protocol) {
        // Its first fragment began no flow.
        let begun = node::later(tables, packet, tuple)
            .or_else(|| egress::later(tables, packet, tuple, hash))
            .or_else(|| inward::later(tables, state, packet, tuple, hash, moment));
        return begun.ok_or(DropReason::FragmentUntracked);
    }
    let kind = tuple.destination.kind(tables);
    if !kind.intersects(LocalKind::SERVED) {
        if packet.domain == Domain::Overlay && !kind.contains(LocalKind::FULLNAT_SOURCE) {
            let before = replaces.map(|flow| A::flows(state).entry(flow));
            return egress::start(tables, state, packet, tuple, hash, moment, before, trace);
        }
        if packet.domain == Domain::Wire
            && let Some(external) = tuple.destination.external(tables)
        {
            return inward::start(tables, state, packet, tuple, hash, external, moment);
        }
        let ours = kind.contains(LocalKind::FULLNAT_SOURCE);
        return Err(if ours { DropReason::NoFlow } else { DropReason::NotOurs });
    }
    if packet.domain == Domain::Overlay && !route::source_allowed(tables, packet.tunnel, tuple.source) {
        return Err(DropReason::SpoofedSource);
    }
    let offer = service::admit(tables, packet, tuple)?;
    let begins = !is_connected(packet) || opens(packet.l3.tcp_flags);
    let gate = match gatepolicy::check(tables, state, tuple, begins, moment.now_ns) {
        Ok(gate) => gate,
        Err(denied) => return Ok(Begun::Deny(denied)),
    };
    let Some(offer) = offer else { return refuse(packet).map(Begun::Answer) };
    if offer.is_nodes {
        let Some(backend) = service::choose_node(tables, &offer, tuple) else {
            return refuse(packet).map(Begun::Answer);
        };
        trace.note(Step::Backend(backend));
        return match policy::check_node(tables, tuple, &offer.row.cluster.members) {
            Ok(_) => node::start(tables, packet, tuple, backend, gate),
            Err(denied) => Ok(Begun::Deny(denied)),
        };
    }
    if !begins {
        return orphan(tables, packet, node::is_awaited(tables, packet, tuple)).map(Begun::Answer);
    }
    let Some(service::Chosen { backend, learn }) = service::choose(tables, state, &offer, tuple, moment) else {
        return refuse(packet).map(Begun::Answer);
    };
    trace.note(Step::Backend(backend));
    let to = tables
        .backends
        .row(backend)
        .and_then(|row| Some((A::unmapped(&row.address)?, row.port_for(tuple.destination_port))))
        .ok_or(DropReason::NoBackend)?;
    let passed = match policy::check(tables, tuple, to) {
        Ok(passed) => Passed { gate, ..passed },
        Err(denied) => return Ok(Begun::Deny(denied)),
    };
    let forward = route::toward(tables, to.0, hash)?;
    let reply = match packet.domain {
        Domain::Wire => route::toward(tables, tuple.source, hash)?,
        Domain::Overlay => Hop::Tunnel(packet.tunnel),
    };
    if let Err(answer) = passable(tables, packet, forward) {
        return Ok(Begun::Answer(answer));
    }
    let source = match offer.keeps_client {
        true => nat::keep(state, tuple, to, moment.entropy)?,
        false => nat::choose(tables, state, backend, to, tuple.protocol, moment.entropy)?,
    };
    trace.note(Step::Source(source.1));
    Ok(Begun::Flow(NewFlow {
        original: *tuple,
        source,
        to,
        leaves: Domain::Overlay,
        backend,
        backend_epoch: tables.backends.epoch(backend),
        routes_epoch: policy::ways_epoch_of(tables, tuple),
        forward,
        reply: Some(reply),
        learn,
        granted: None,
        passed,
    }))
}

/// SYN without ACK, RST or FIN, or INIT: the only segment that begins a flow (L-021: no entry for RST).
fn opens(tcp_flags: u8) -> bool {
    tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN
}

/// S-070: TCP is refused with RST, other protocols with port unreachable; an RST is never answered (RFC 9293 3.5.2), and an
/// ABORT needs no answer.
fn refuse(packet: &Packet) -> Result<Answer, DropReason> {
    match packet.l3.protocol {
        protocol::TCP | protocol::SCTP if packet.l3.tcp_flags & tcp::RST != 0 => Err(DropReason::NoBackend),
        protocol::TCP => Ok(Answer::Reset { otherwise: DropReason::NoBackend }),
        _ => Ok(Answer::Unreachable),
    }
}

/// S-077, L-012: a segment of a flow that this gateway does not know. Where nodes are only waited for, it is more likely of
/// a connection with one of them, which a reset would end: it is sent again when they are there.
fn orphan(tables: &Tables, packet: &Packet, nodes_awaited: bool) -> Result<Answer, DropReason> {
    match tables.settings.orphan_tcp {
        OrphanTcp::Reset if packet.l3.tcp_flags & tcp::RST == 0 && !nodes_awaited => {
            Ok(Answer::Reset { otherwise: DropReason::OrphanSegment })
        }
        _ => Err(DropReason::OrphanSegment),
    }
}

/// L-058 and V-010: does the packet survive the hop?
pub(super) fn passable(tables: &Tables, packet: &Packet, hop: Hop) -> Result<(), Answer> {
    // What comes back in here takes two hops of ours, and its sender is told while it is known who that is.
    let hops = if hop == Hop::Hairpin { 2 } else { 1 };
    if packet.l3.ttl <= hops && !mutation::is(Mutation::AnyHopLeaves) {
        return Err(Answer::TimeExceeded);
    }
    let mtu = route::mtu(tables, hop);
    if packet.l3.total_len > mtu && !may_cut(&packet.l3, mtu) && !mutation::is(Mutation::AnySizeLeaves) {
        return Err(Answer::TooBig { mtu });
    }
    Ok(())
}

/// Whether a packet that does not fit a path of `mtu` bytes is to be cut into fragments, "v4 DF=0 ⇒ fragment the inner
/// packet" (V-010, N-014), and not into too many of them.
pub(crate) fn may_cut(l3: &L3, mtu: u16) -> bool {
    Pieces::plan(l3, mtu).is_some_and(|pieces| pieces.len() <= limits::PIECES_PER_PACKET)
        && !mutation::is(Mutation::NeverCut)
}

fn came_right<A: Family>(tables: &Tables, packet: &Packet, entry: &Entry<A>, direction: Direction, source: A) -> bool {
    route::kept(entry, direction.reversed()) == Some(Hop::Tunnel(packet.tunnel))
        || route::source_allowed(tables, packet.tunnel, source)
}

/// What revalidation says of a flow.
pub enum Standing {
    /// It goes on.
    Keep(Refresh),
    /// Its next packet chooses anew.
    Reselect,
    /// It is nothing any more: what its pod sends is looked at as if there were no flow (N-101).
    End,
    /// Its packets end here.
    Refuse(DropReason),
    /// A policy denies it now: its packets end here, and go on should that be allowed again (P-031).
    Deny(Denied),
}

/// Whether the Service at the destination of `original` has an endpoint that serves (S-102).
pub(super) fn serves<A: Family>(tables: &Tables, original: &Tuple<A>) -> bool {
    original
        .destination
        .service(tables, original.protocol, original.destination_port)
        .and_then(|served| tables.services.row(served.service))
        .is_some_and(|service| service.serving > 0)
}

/// Liveness, policy and routes again, with the backend pinned: never a new choice where the old one stays (S-100).
fn revalidate<A: Family>(tables: &Tables, entry: &Entry<A>, direction: Direction, hash: u64) -> Standing {
    let original = entry.original_tuple();
    let translated = entry.translated_tuple();
    let to = (translated.destination, translated.destination_port);
    let row = tables.backends.row(BackendId(entry.backend));
    let same = row.is_some_and(|row| row.address == to.0.mapped() && row.port_for(original.destination_port) == to.1);
    let gone = !same || row.is_none_or(|row| matches!(row.state, BackendState::Gone | BackendState::Vacant));
    // S-102: a datagram of a flow whose endpoint left the serving set chooses anew, unless nothing serves at all.
    if gone && original.protocol == protocol::UDP && serves(tables, &original) {
        return Standing::Reselect;
    }
    if !tables.settings.policy.sticky
        && let Err(denied) = gatepolicy::check_again(tables, &original).and(policy::check_again(tables, &original, to))
    {
        return Standing::Deny(denied);
    }
    // One hash per flow and direction, so that the choice among equal hops is the flow's and not the packet's.
    let forward = route::toward(tables, to.0, hash);
    let reply = match route::kept(entry, Direction::Reply) {
        // A client inside the overlay is answered through the peer it came from.
        Some(hop @ Hop::Tunnel(_)) if original.domain == Domain::Overlay as u8 => Ok(hop),
        _ => route::toward(tables, original.source, hash),
    };
    let needed = match direction {
        Direction::Original => forward,
        Direction::Reply => reply,
    };
    if let Err(reason) = needed {
        return Standing::Refuse(reason);
    }
    // A datagram flow kept only because nothing serves stays stale on purpose: it looks again with every packet.
    let waits = gone && original.protocol == protocol::UDP;
    Standing::Keep(Refresh {
        backend_epoch: if waits { entry.backend_epoch } else { tables.backends.epoch(BackendId(entry.backend)) },
        routes_epoch: policy::ways_epoch(tables, entry),
        forward: forward.ok(),
        reply: reply.ok(),
    })
}
