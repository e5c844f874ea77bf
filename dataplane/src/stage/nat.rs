//! # NAT: choose the source address and port of a new flow
//!
//! reads   `table::nat`, `table::owner`, the flow table, live flows per backend     writes  nothing; returns address and port
//! drops   `NoSource`, `PortsExhausted`
//! cost    about capacity / free probes of the index; one or two unless a backend is nearly full
//! spec    RFC 6056 section 3.3 (unpredictable choice), design 6 (ports counted per backend)
//! tests   `dataplane/tests/golden/nat.rs`, `state::nat`

use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::Domain;
use crate::state::{State, Tuple, nat};
use crate::table::{BackendId, Tables};

/// A source address and one of this worker's ports that no other flow to `backend` uses.
///
/// # Errors
/// `NoSource` without a reserved address of this family, `PortsExhausted` when all that this worker gives out are
/// taken.
pub fn choose<A: Family>(
    tables: &Tables,
    state: &State,
    backend: BackendId,
    to: (A, u16),
    protocol: u8,
    entropy: u64,
) -> Result<(A, u16), DropReason> {
    let sources = A::sources(tables);
    if sources.is_empty() {
        return Err(DropReason::NoSource);
    }
    // Flows to other ports of the backend take none of this one's: then how many there are is not known.
    let is_one_port = tables.backends.row(backend).is_some_and(|row| row.port != 0);
    let live = if is_one_port { state.usage.live(backend.0) } else { 0 };
    let ports = tables.owners.ports_of(state.worker);
    nat::choose(A::flows(state), sources, ports, to, protocol, entropy, live).map_err(|_| DropReason::PortsExhausted)
}

/// Ports looked at for a connection of a client whose own port is taken.
const KEEP_TRIES: u64 = 64;
const PRIVILEGED: u16 = 1024;

/// The client as it is (`symmetric`). Where its port leads from the pod to another of its connections already, which came by
/// another VIP, another port of the client's address: the pod could not tell the two apart either.
///
/// # Errors
/// `PortsExhausted` when no port of a few is free.
pub fn keep<A: Family>(state: &State, tuple: &Tuple<A>, to: (A, u16), entropy: u64) -> Result<(A, u16), DropReason> {
    let is_free = |port: &u16| {
        let kept = Tuple { source_port: *port, destination: to.0, destination_port: to.1, ..*tuple };
        A::flows(state).lookup(&kept.reversed(Domain::Overlay as u8)).is_none()
    };
    let draw = |n: u64| {
        let random = A::flows(state).scramble(entropy.wrapping_add(n));
        let port = u64::from(PRIVILEGED) + random % (1 + u64::from(u16::MAX - PRIVILEGED));
        u16::try_from(port).unwrap_or(u16::MAX)
    };
    let port = std::iter::once(tuple.source_port).chain((0..KEEP_TRIES).map(draw)).find(is_free);
    port.map(|port| (tuple.source, port)).ok_or(DropReason::PortsExhausted)
}
