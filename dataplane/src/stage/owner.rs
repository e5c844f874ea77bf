//! # Owner: which worker a packet belongs to
//!
//! reads   `table::owner`, `table::nat`, `table::egress`, `table::local`, `table::service`     writes  nothing; returns a worker
//! drops   none
//! cost    one worker: one branch. Several: a few comparisons with the translated addresses, or one keyed hash, or that of
//!         the NIC
//! spec    design 4, rules 1 to 6; S-090, N-090     tests   `dataplane/tests/golden/workers.rs`, `egress.rs`
//!
//! A pure function of the tables and the tuple a packet is looked up by, so every worker gives the same answer. An ICMP
//! error is looked up by the reverse of what it quotes, so it is owned like the flow it is about (rule 4).

use crate::family::Family;
use crate::packet::Domain;
use crate::stage::portless;
use crate::state::Tuple;
use crate::state::fragment::FragmentKey;
use crate::table::Tables;
use crate::table::egress::PortClass;
use crate::table::owner::WorkerId;

/// Translated addresses up to this number are compared one by one; more are searched.
const COMPARED_MAX: usize = 8;

/// The owner of packets with `tuple`.
#[inline]
pub fn of<A: Family>(tables: &Tables, tuple: &Tuple<A>) -> WorkerId {
    if tables.owners.workers() == 1 {
        return WorkerId(0);
    }
    if tuple.domain == Domain::Overlay as u8 && is_translated(A::sources(tables), &tuple.destination) {
        return tables.owners.owner(tuple.destination_port);
    }
    if tables.services.any_symmetric()
        && let Some(owner) = of_kept(tables, tuple)
    {
        return owner;
    }
    if !tables.egress.is_empty()
        && let Some(owner) = of_egress(tables, tuple)
    {
        return owner;
    }
    by_client(tables, tuple, tables.services.any_sticky() && is_sticky(tables, tuple))
}

/// The owner of what pods send to the outside, and of what comes to an external address.
#[inline(never)]
fn of_egress<A: Family>(tables: &Tables, tuple: &Tuple<A>) -> Option<WorkerId> {
    if tuple.domain == Domain::Overlay as u8 {
        let is_fixed = || tables.egress.whole_of(&tuple.source.mapped()).is_some();
        let by_remote = portless::is_bare(tuple.protocol) && !is_fixed();
        let owner =
            || if by_remote { of_remote(tables, tuple, tuple.destination) } else { by_pod(tables, tuple.source) };
        return portless::is_outside(tables, &tuple.destination).then(owner);
    }
    let id = tuple.destination.external(tables)?;
    let row = tables.egress.external(id)?;
    let forwarded = || row.forwards.get(&(tuple.protocol, tuple.destination_port)).map(|(pod, _)| *pod);
    if let Some(pod) = row.whole.or_else(|| if row.forwards.is_empty() { None } else { forwarded() }) {
        return Some(by_pod(tables, A::unmapped(&pod)?));
    }
    if portless::is_bare(tuple.protocol) {
        return Some(of_remote(tables, tuple, tuple.source));
    }
    let class = PortClass::of(tuple.protocol)?;
    Some(tables.egress.port_owner(&tables.owners, id, class, tuple.destination_port))
}

/// Rule 3: H(pod address). All of a pod's flows to the outside meet one worker, which hands out its ports and knows how many
/// it holds.
#[inline]
fn by_pod<A: Family>(tables: &Tables, pod: A) -> WorkerId {
    const PODS: u64 = 1 << 32;
    tables.owners.of_hash(A::mix(pod, A::new_zeroed(), PODS, tables.owners.keys()))
}

/// H(remote address, protocol): what both directions of a protocol without ports have in common, and where two pods that want
/// to speak it with the same remote meet (N-095).
#[cold]
fn of_remote<A: Family>(tables: &Tables, tuple: &Tuple<A>, remote: A) -> WorkerId {
    const REMOTES: u64 = 1 << 33;
    let rest = REMOTES | u64::from(tuple.protocol);
    tables.owners.of_hash(A::mix(remote, A::new_zeroed(), rest, tables.owners.keys()))
}

/// The owner of a pod's answer to a client whose address was kept (design 4, rule 3): that of everything the client sends to
/// such Services. Other packets of pods to the outside meet it too, and go on from there ([`second`]).
#[inline(never)]
fn of_kept<A: Family>(tables: &Tables, tuple: &Tuple<A>) -> Option<WorkerId> {
    let to_outside = tuple.domain == Domain::Overlay as u8
        && portless::is_outside(tables, &tuple.destination)
        && tuple.destination.external(tables).is_none();
    to_outside.then(|| by_client(tables, &tuple.reversed(Domain::Wire as u8), true))
}

/// Who owns a pod's packet to the outside that turned out to be no answer to such a client.
#[cold]
pub fn second<A: Family>(tables: &Tables, tuple: &Tuple<A>) -> Option<WorkerId> {
    let may_be = tables.services.any_symmetric() && !tables.egress.is_empty() && of_kept(tables, tuple).is_some();
    if may_be { of_egress(tables, tuple) } else { None }
}

/// Who owned packets with `tuple` if its Service was toggled between keeping clients and not: flows that began before
/// are there still (S-094, S-100).
#[cold]
pub fn before<A: Family>(tables: &Tables, tuple: &Tuple<A>) -> WorkerId {
    let translated = tuple.domain == Domain::Overlay as u8 && is_translated(A::sources(tables), &tuple.destination);
    let is_pods = !tables.egress.is_empty() && of_egress(tables, tuple).is_some()
        || tables.services.any_symmetric() && of_kept(tables, tuple).is_some();
    if translated || is_pods { of(tables, tuple) } else { by_client(tables, tuple, !is_sticky(tables, tuple)) }
}

/// The owner of the fragments of one datagram until their ports are known.
#[cold]
pub fn of_fragments(tables: &Tables, key: &FragmentKey) -> WorkerId {
    tables.owners.of_hash(key.hash(tables.owners.keys()))
}

/// The worker whose queue the NIC chooses, where that is known; else H(client address, client port, protocol), without the
/// port where all connections of a client must meet (S-090): there the NIC, which looks at ports, cannot be followed.
#[inline]
fn by_client<A: Family>(tables: &Tables, tuple: &Tuple<A>, sticky: bool) -> WorkerId {
    if !sticky && let Some(owner) = tables.owners.of_queue(tuple) {
        return owner;
    }
    let port = if sticky { 0 } else { tuple.source_port };
    let rest = u64::from(port) | u64::from(tuple.protocol) << 16;
    tables.owners.of_hash(A::mix(tuple.source, A::new_zeroed(), rest, tables.owners.keys()))
}

#[inline]
fn is_translated<A: Family>(sources: &[A], address: &A) -> bool {
    if sources.len() <= COMPARED_MAX { sources.contains(address) } else { sources.binary_search(address).is_ok() }
}

/// Whether the Service at the tuple's destination keeps a client at one backend.
#[inline]
fn is_sticky<A: Family>(tables: &Tables, tuple: &Tuple<A>) -> bool {
    tuple.destination.is_sticky(tables, tuple.protocol, tuple.destination_port)
}
