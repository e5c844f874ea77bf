//! # Inward: what comes to an external address without a flow
//!
//! reads   `table::egress`, `pod`; mappings of this worker     writes  nothing; returns a decision
//! drops   `NoMapping`, `Filtered`, `OrphanSegment`
//! cost    cold: one lookup of the port's mapping, one of who may send to it
//! spec    N-008, N-009, N-022, N-023, N-095, RFC 4787 REQ-8, RFC 7857 section 7     tests   `dataplane/tests/golden/egress.rs`
//!
//! What comes from outside without a flow may belong to a mapping, if its sender may use that; it is then led to the pod, and
//! nothing is remembered of it: only what the pod itself sends keeps a mapping (N-008). Connections, and whatever comes to an
//! address or port that is always the same pod's, are flows.

use tidegate_api::resource::Filtering;

use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::{Domain, Packet};
use crate::pipeline::{Moment, NewFlow};
use crate::stage::flow::{self, Begun};
use crate::stage::{egress, policy};
use crate::state::{Learn, State, Ticks, Tuple, ticks};
use crate::table::egress::{ExternalRow, PortClass};
use crate::table::{EgressId, ExternalId, Tables};
use crate::wire::{protocol, tcp};

/// What a packet from outside to the external address `id` begins that belongs to no flow.
pub fn start<A: Family>(
    tables: &Tables,
    state: &State,
    packet: &Packet,
    tuple: &Tuple<A>,
    hash: u64,
    id: ExternalId,
    moment: Moment,
) -> Result<Begun<A>, DropReason> {
    let row = tables.egress.external(id).ok_or(DropReason::NoMapping)?;
    let opens = packet.l3.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN;
    let is_tcp = tuple.protocol == protocol::TCP;
    let is_connected = is_tcp || tuple.protocol == protocol::SCTP;
    if let Some((pod, port)) = always(row, tuple) {
        if is_connected && !opens {
            return Err(DropReason::OrphanSegment);
        }
        let pod = A::unmapped(&pod).ok_or(DropReason::NoMapping)?;
        return led_in(tables, packet, tuple, hash, (pod, port));
    }
    let class = PortClass::of(tuple.protocol).ok_or(DropReason::NoMapping)?;
    let outside = (tuple.destination, tuple.destination_port);
    let found = A::mappings(&state.egress).of_outside(outside, tuple.protocol, ticks(moment.now_ns));
    let mapping = found.filter(|mapping| !mapping.is_resting).ok_or(DropReason::NoMapping)?;
    let pod = mapping.inside.0.pod(tables).filter(|pod| pod.backend.0 == mapping.pod);
    let policy = tables.egress.policy(EgressId(mapping.policy)).filter(|_| pod.is_some());
    let policy = policy.ok_or(DropReason::NoMapping)?;
    let may_send = match policy.mapping(class).filtering {
        Filtering::EndpointIndependent => true,
        Filtering::AddressDependent => A::mappings(&state.egress).is_permitted(outside, tuple.protocol, tuple.source),
    };
    if !may_send {
        return Err(DropReason::Filtered); // N-009, N-023: in silence
    }
    if is_tcp {
        return if opens { led_in(tables, packet, tuple, hash, mapping.inside) } else { Err(DropReason::NoMapping) };
    }
    let passed = match policy::check(tables, tuple, mapping.inside) {
        Ok(passed) => passed,
        Err(denied) => return Ok(Begun::Deny(denied)),
    };
    let hop = egress::toward_pod(tables, mapping.inside.0, hash)?;
    if let Err(answer) = flow::passable(tables, packet, hop) {
        return Ok(Begun::Answer(answer));
    }
    let (destination, port) = mapping.inside;
    let source_port = if tuple.protocol == A::ICMP { port } else { tuple.source_port };
    Ok(Begun::Deliver { to: Tuple { destination, destination_port: port, source_port, ..*tuple }, hop, passed })
}

/// The same of a later fragment: it follows the first one, which began nothing either.
pub fn later<A: Family>(
    tables: &Tables,
    state: &State,
    packet: &Packet,
    tuple: &Tuple<A>,
    hash: u64,
    moment: Moment,
) -> Option<Begun<A>> {
    let id = tuple.destination.external(tables).filter(|_| packet.domain == Domain::Wire)?;
    let begun = start(tables, state, packet, tuple, hash, id, moment).ok()?;
    matches!(begun, Begun::Deliver { .. }).then_some(begun)
}

/// The pod and port that a packet to an external address would be led to.
pub(crate) fn leads_to<A: Family>(tables: &Tables, state: &State, tuple: &Tuple<A>, now: Ticks) -> Option<(A, u16)> {
    let row = tables.egress.external(tuple.destination.external(tables)?)?;
    if let Some((pod, port)) = always(row, tuple) {
        return Some((A::unmapped(&pod)?, port));
    }
    let outside = (tuple.destination, tuple.destination_port);
    let found = A::mappings(&state.egress).of_outside(outside, tuple.protocol, now);
    found.filter(|mapping| !mapping.is_resting).map(|mapping| mapping.inside)
}

/// The pod and port that have this port of an external address whatever happens (N-022).
fn always<A: Family>(row: &ExternalRow, tuple: &Tuple<A>) -> Option<([u8; 16], u16)> {
    let forwarded = row.forwards.get(&(tuple.protocol, tuple.destination_port)).copied();
    forwarded.or_else(|| row.whole.map(|pod| (pod, tuple.destination_port)))
}

/// A flow that somebody outside begins with a pod: its source stays.
fn led_in<A: Family>(
    tables: &Tables,
    packet: &Packet,
    tuple: &Tuple<A>,
    hash: u64,
    inside: (A, u16),
) -> Result<Begun<A>, DropReason> {
    let pod = inside.0.pod(tables).ok_or(DropReason::NoMapping)?;
    let passed = match policy::check(tables, tuple, inside) {
        Ok(passed) => passed,
        Err(denied) => return Ok(Begun::Deny(denied)),
    };
    let forward = egress::toward_pod(tables, inside.0, hash)?;
    let reply = egress::way(tables, tuple.source, hash)?;
    if let Err(answer) = flow::passable(tables, packet, forward) {
        return Ok(Begun::Answer(answer));
    }
    Ok(Begun::Flow(NewFlow {
        original: *tuple,
        source: (tuple.source, tuple.source_port),
        to: inside,
        leaves: Domain::Overlay,
        backend: pod.backend,
        backend_epoch: tables.backends.epoch(pod.backend),
        routes_epoch: tables.settings.routes_epoch,
        forward,
        reply: Some(reply),
        learn: Learn::default(),
        granted: None,
        passed,
    }))
}
