//! # Service: choose a backend for a new flow
//!
//! reads   `table::service`, `backend`, `maglev`     writes  nothing; returns the backend
//! drops   `NoFrontend`, `ProtocolUnsupported`
//! cost    two hash lookups, one ring slot, one backend row; no loop over backends
//! spec    S-051, S-068, S-070, S-074, L-009, L-020; Maglev, NSDI 2016, section 3.4
//! tests   `dataplane/tests/golden/service.rs`

use crate::drops::DropReason;
use crate::family::Family;
use crate::state::Tuple;
use crate::table::{BackendId, Tables};
use crate::wire::protocol;

/// What a Service says to a packet that has no flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This backend.
    Backend(BackendId),
    /// The Service has none: reject (S-070).
    Reject,
}

/// The backend for `tuple`, whose destination is an address of Services.
///
/// # Errors
/// `ProtocolUnsupported` and `NoFrontend`.
pub fn choose<A: Family>(tables: &Tables, tuple: &Tuple<A>) -> Result<Choice, DropReason> {
    if !matches!(tuple.protocol, protocol::TCP | protocol::UDP) {
        return Err(DropReason::ProtocolUnsupported);
    }
    let row = tuple
        .destination
        .service(tables, tuple.protocol, tuple.destination_port)
        .and_then(|served| tables.services.row(served.service))
        .ok_or(DropReason::NoFrontend)?;
    let hash = A::hash_flow(&tables.settings.hash_key, tuple);
    Ok(row.cluster.pick(hash).map_or(Choice::Reject, Choice::Backend))
}
