//! # Node: to a node that delivers by itself
//!
//! reads   `table::service`, `backend`, `tunnel`    writes  nothing; returns a flow to pin, a packet to pass, or why not
//! drops   `TcpInvalid`, `NoBackend`, `NoTunnel`, `ErrorUnmatched`, `TtlExpired`, `TooBig`
//! cost    one ring slot and one backend row for what has no flow; nothing for what has one
//! spec    S-077, S-108, N-088, L-010, L-020, L-021, L-050, L-058, V-010, V-013, V-052
//! tests   `dataplane/tests/golden/node.rs`
//!
//! In `node-dsr` a packet keeps its addresses and goes, inside VXLAN, to a node that has an endpoint; the node's own
//! kube-proxy picks the pod, and the answer goes straight to the client. Here such a flow is a flow entry whose
//! translation changes nothing, found from one direction only: established packets take the same way as all others.
//!
//! What such an entry does is to keep a connection on its node while the set of nodes changes (L-020). Without one the
//! hash decides, and finds the same node unless the set has changed since. So what must not or cannot be remembered is
//! *passed*: a reset (L-021), a datagram that is scheduled alone, whatever arrives above the rate of new pins or when the
//! table is full, and ICMP errors about connections that are not known.

use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::{Domain, Packet};
use crate::pipeline::{Answer, Decision, NewFlow, Refresh};
use crate::stage::flow::{self, Begun, Standing};
use crate::stage::gatepolicy::{self, Admitted};
use crate::stage::policy::{self, Passed};
use crate::stage::route::{self, Hop};
use crate::stage::service;
use crate::state::one_way::{self, Opening};
use crate::state::{Direction, Entry, Learn, Tuple};
use crate::table::backend::BackendState;
use crate::table::{BackendId, Tables};
use crate::wire::protocol;

/// What becomes of a packet without a flow whose Service chose the node `backend` for it, after gateway policies `gate`.
///
/// # Errors
/// `TcpInvalid`, and `NoBackend` when the row is gone.
pub fn start<A: Family>(
    tables: &Tables,
    packet: &Packet,
    tuple: &Tuple<A>,
    backend: BackendId,
    gate: Admitted,
) -> Result<Begun<A>, DropReason> {
    let hop = hop(tables, backend).ok_or(DropReason::NoBackend)?;
    let opening = match packet.l3.protocol {
        protocol::TCP | protocol::SCTP => one_way::open(packet.l3.tcp_flags),
        _ if is_scheduled_alone(tables, backend) => Opening::Pass,
        _ => Opening::Pin(crate::state::FlowState::UDP_UNREPLIED),
    };
    if let Err(answer) = flow::passable(tables, packet, hop) {
        return Ok(Begun::Answer(answer));
    }
    match opening {
        Opening::Nonsense => Err(DropReason::TcpInvalid),
        Opening::Pass => Ok(Begun::Pass { backend, hop }),
        Opening::Pin(_) => Ok(Begun::Flow(NewFlow {
            original: *tuple,
            source: (tuple.source, tuple.source_port),
            to: (tuple.destination, tuple.destination_port),
            leaves: Domain::Overlay,
            backend,
            backend_epoch: tables.backends.epoch(backend),
            routes_epoch: tables.settings.routes_epoch,
            forward: hop,
            reply: None,
            learn: Learn::default(),
            granted: None,
            passed: Passed { gate, ..Passed::default() },
        })),
    }
}

/// What becomes of a later fragment without a flow: its first one may have been passed.
pub fn later<A: Family>(tables: &Tables, packet: &Packet, tuple: &Tuple<A>) -> Option<Begun<A>> {
    let (backend, hop) = by_hash(tables, packet, tuple)?;
    if let Err(denied) = gatepolicy::check_again(tables, tuple).and(policy::check_node_row(tables, tuple, backend)) {
        return Some(Begun::Deny(denied));
    }
    match flow::passable(tables, packet, hop) {
        Ok(()) => Some(Begun::Pass { backend, hop }),
        Err(answer) => Some(Begun::Answer(answer)),
    }
}

/// S-108: a connection stays with its node, and a new one of the same tuple (`syn`) goes elsewhere once the node has left
/// the set; datagrams go elsewhere at once (S-102), unless nothing serves at all.
pub fn revalidate<A: Family>(tables: &Tables, entry: &Entry<A>, syn: bool) -> Standing {
    let Some(hop) = route::kept(entry, Direction::Original) else { return Standing::Refuse(DropReason::NoTunnel) };
    let backend = BackendId(entry.backend);
    let row = tables.backends.row(backend).filter(|row| Hop::Tunnel(row.node) == hop);
    let gone = row.is_none_or(|row| matches!(row.state, BackendState::Gone | BackendState::Vacant));
    let datagram = entry.protocol() == protocol::UDP;
    if gone && (syn || datagram && flow::serves(tables, &entry.original_tuple())) {
        return Standing::Reselect;
    }
    if !tables.settings.policy.sticky {
        let original = entry.original_tuple();
        let denied = gatepolicy::check_again(tables, &original).and(policy::check_node_row(tables, &original, backend));
        if let Err(denied) = denied {
            return Standing::Deny(denied);
        }
    }
    Standing::Keep(Refresh {
        // A datagram flow kept only because nothing serves stays stale on purpose: it looks again with every packet.
        backend_epoch: if gone && datagram { entry.backend_epoch } else { tables.backends.epoch(backend) },
        routes_epoch: tables.settings.routes_epoch,
        forward: Some(hop),
        reply: None,
    })
}

/// Where an ICMP error goes that quotes the pinned flow `entry`: to the node whose packet it is about (L-050).
pub fn error<A: Family>(tables: &Tables, packet: &Packet, entry: &Entry<A>) -> Decision<A> {
    match route::kept(entry, Direction::Original) {
        Some(hop) => relay(tables, packet, BackendId(entry.backend), hop),
        None => Decision::Drop(DropReason::ErrorUnmatched),
    }
}

/// The same for one whose flow is not known: `tuple` is what a packet of the flow would have had, and the hash says where
/// that would have gone.
pub fn error_by_hash<A: Family>(tables: &Tables, packet: &Packet, tuple: &Tuple<A>) -> Decision<A> {
    match by_hash(tables, packet, tuple) {
        Some((backend, hop)) => relay(tables, packet, backend, hop),
        None => Decision::Drop(DropReason::ErrorUnmatched),
    }
}

/// Whether the Service at the destination of a packet from outside wants nodes and has none yet.
pub fn is_awaited<A: Family>(tables: &Tables, packet: &Packet, tuple: &Tuple<A>) -> bool {
    let served = tuple.destination.service(tables, tuple.protocol, tuple.destination_port);
    packet.domain == Domain::Wire && served.is_some_and(|served| tables.services.nodes(served.service).is_some())
}

fn relay<A: Family>(tables: &Tables, packet: &Packet, backend: BackendId, hop: Hop) -> Decision<A> {
    // Never an error about an error (RFC 1812 section 4.3.2.7).
    match flow::passable(tables, packet, hop) {
        Ok(()) => Decision::Pass { backend, hop },
        Err(Answer::TooBig { .. }) => Decision::Drop(DropReason::TooBig),
        Err(_) => Decision::Drop(DropReason::TtlExpired),
    }
}

/// The node that the hash says, if nodes take what this client sends there.
fn by_hash<A: Family>(tables: &Tables, packet: &Packet, tuple: &Tuple<A>) -> Option<(BackendId, Hop)> {
    let offer = service::admit(tables, packet, tuple).ok().flatten().filter(|offer| offer.is_nodes)?;
    let backend = service::choose_node(tables, &offer, tuple)?;
    Some((backend, hop(tables, backend)?))
}

/// The way to `backend`, if that is a node.
fn hop(tables: &Tables, backend: BackendId) -> Option<Hop> {
    tables.backends.row(backend).filter(|row| !row.node.is_none()).map(|row| Hop::Tunnel(row.node))
}

/// Whether the Service of `backend` asks that no datagram be remembered.
fn is_scheduled_alone(tables: &Tables, backend: BackendId) -> bool {
    let row = tables.backends.row(backend).and_then(|row| tables.services.row(row.service));
    row.and_then(|row| row.terms.as_ref()).is_some_and(|terms| terms.one_packet)
}
