//! # Policy: may it pass?
//!
//! reads   `table::policy`     writes  nothing     drops   none yet
//! cost    nothing while no policy is known        spec    P-040 (client's real source, pod's real address)
//! tests   with the first kind of rule
//!
//! The place in the order is fixed: after the backend is known, with the source not yet translated, for new and for
//! revalidated flows. The table knows no kind of rule yet, so everything passes.

use crate::drops::DropReason;
use crate::state::Tuple;
use crate::table::Tables;

/// Whether a flow from `original.source` to `backend` may pass.
///
/// # Errors
/// The reason, when a policy denies.
#[inline]
pub fn check<A>(_tables: &Tables, _original: &Tuple<A>, _backend: (A, u16)) -> Result<(), DropReason> {
    Ok(())
}
