//! # NAT: choose the source address and port of a new flow
//!
//! reads   `table::nat`, `table::owner`, the flow table, live flows per backend     writes  nothing; returns address and port
//! drops   `NoSource`, `PortsExhausted`
//! cost    about capacity / free probes of the index; one or two unless a backend is nearly full
//! spec    RFC 6056 section 3.3 (unpredictable choice), design 6 (ports counted per backend)
//! tests   `dataplane/tests/golden/nat.rs`, `state::nat`

use crate::drops::DropReason;
use crate::family::Family;
use crate::state::{State, nat};
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
