//! # Owner: which worker a packet belongs to
//!
//! reads   `table::owner`, `table::nat`     writes  nothing; returns a worker
//! drops   none
//! cost    one worker: one branch. Several: a few comparisons with the translated addresses, or one keyed hash
//! spec    design 4, rules 1, 2, 4, 5; S-090     tests   `dataplane/tests/golden/workers.rs`
//!
//! A pure function of the tables and the tuple a packet is looked up by, so every worker gives the same answer. An ICMP
//! error is looked up by the reverse of what it quotes, so it is owned like the flow it is about (rule 4).

use crate::family::Family;
use crate::packet::Domain;
use crate::state::Tuple;
use crate::state::fragment::FragmentKey;
use crate::table::Tables;
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
    by_client(tables, tuple, tables.services.any_sticky() && is_sticky(tables, tuple))
}

/// Who owned packets with `tuple` if its Service was toggled between keeping clients and not: flows that began before
/// are there still (S-094, S-100).
#[cold]
pub fn before<A: Family>(tables: &Tables, tuple: &Tuple<A>) -> WorkerId {
    let translated = tuple.domain == Domain::Overlay as u8 && is_translated(A::sources(tables), &tuple.destination);
    if translated { of(tables, tuple) } else { by_client(tables, tuple, !is_sticky(tables, tuple)) }
}

/// The owner of the fragments of one datagram until their ports are known.
#[cold]
pub fn of_fragments(tables: &Tables, key: &FragmentKey) -> WorkerId {
    tables.owners.of_hash(key.hash(tables.owners.keys()))
}

/// H(client address, client port, protocol); without the port where all connections of a client must meet (S-090).
#[inline]
fn by_client<A: Family>(tables: &Tables, tuple: &Tuple<A>, sticky: bool) -> WorkerId {
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
