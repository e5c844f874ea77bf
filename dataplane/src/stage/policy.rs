//! # Policy: may it pass?
//!
//! reads   `table::policy`, `pod`, `backend`     writes  nothing; returns what decided
//! drops   `PolicyDeniedIngress`, `PolicyDeniedEgress`, `PolicyUnknownPod`
//! cost    nothing while no policy is about anybody; else two pods looked up, and rules once for each side that is one
//! spec    P-021, P-025, P-026, P-030 … P-033, P-034, P-040 … P-044, P-047, P-048, P-110
//! tests   `dataplane/tests/golden/policy.rs`
//!
//! The place in the order is fixed: after the backend is known, with the source not yet translated, for new and for
//! revalidated flows. What answers a flow is let through with it, and so are ICMP errors about it.
//!
//! A packet out of the overlay is from the pod whose address it has, since its tunnel proves that (P-047). On the wire an
//! address proves nothing: whoever writes a pod's there is a client with that address, and no rule takes him for the pod.

use tidegate_policy::Query;
pub use tidegate_policy::{Decided, Direction};

use crate::drops::DropReason;
use crate::family::Family;
use crate::packet::Domain;
use crate::stage::gatepolicy::Admitted;
use crate::state::{Entry, Tuple};
use crate::table::route::RouteTarget;
use crate::table::{BackendId, Tables, UnknownPod};

/// Endpoints behind a node that are asked for before it is left to the node: what one packet may cost.
const ENDPOINTS_ASKED_MAX: usize = 64;

/// What let a flow pass, by side. `None`: nobody was asked, since that side is no pod that rules are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Of the pod it goes to.
    pub ingress: Option<Decided>,
    /// Of the pod it comes from.
    pub egress: Option<Decided>,
    /// Of gateway policies.
    pub gate: Admitted,
    /// What in audit would have stopped it, by [`Direction`].
    pub audited: [Option<Decided>; 2],
}

/// What stopped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Which side.
    pub reason: DropReason,
    /// And who.
    pub by: Blame,
}

/// Who stopped something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// A network policy.
    Policy(Decided),
    /// The rule of a gateway policy that is counted under this.
    Gate(u64),
    /// Nobody: the pod is not known (P-034).
    Unknown,
}

impl Denied {
    /// The side as rules name it.
    pub fn direction(&self) -> Direction {
        if self.reason == DropReason::PolicyDeniedEgress { Direction::Egress } else { Direction::Ingress }
    }
}

/// Whether a flow from the source of `original` that is led to `to` may pass.
///
/// # Errors
/// Who denies it.
#[inline]
pub fn check<A: Family>(tables: &Tables, original: &Tuple<A>, to: (A, u16)) -> Result<Passed, Denied> {
    if tables.policy.is_empty() { Ok(Passed::default()) } else { judge(tables, original, to) }
}

/// The same of a flow that is there, which has been let begin once: not asked where flows are to stay (P-031).
///
/// # Errors
/// Who denies it.
#[inline]
pub fn check_again<A: Family>(tables: &Tables, original: &Tuple<A>, to: (A, u16)) -> Result<(), Denied> {
    if tables.settings.policy.sticky { Ok(()) } else { check(tables, original, to).map(|_| ()) }
}

#[inline(never)]
fn judge<A: Family>(tables: &Tables, original: &Tuple<A>, (to, port): (A, u16)) -> Result<Passed, Denied> {
    let is_inside = original.domain == Domain::Overlay as u8;
    let is_itself = is_inside && original.source == to;
    if is_itself && original.destination == to {
        return Ok(Passed::default()); // P-033, P-110: by its own address
    }
    if tables.settings.policy.unknown_pod == UnknownPod::Deny && tables.policy.rules.is_enforcing() {
        let [from, towards] = [is_inside && is_unknown(tables, &original.source), is_unknown(tables, &to)];
        if from || towards {
            return Err(Denied { reason: DropReason::PolicyUnknownPod, by: Blame::Unknown });
        }
    }
    let source = if is_inside { identity(tables, &original.source) } else { 0 };
    let destination = identity(tables, &to);
    let (rules, protocol) = (&tables.policy.rules, original.protocol);
    let query = |direction, subject, peer, peer_address| Query {
        direction,
        subject,
        peer,
        peer_address,
        protocol,
        port,
        is_itself,
    };
    let is_own_node = || is_inside && source == 0 && lives_on(tables, &to, &original.source);
    let mut passed = Passed::default();
    let egress = query(Direction::Egress, source, destination, to.ip());
    if let Some(verdict) = rules.ask(&egress) {
        if !verdict.allow {
            return Err(Denied { reason: DropReason::PolicyDeniedEgress, by: Blame::Policy(verdict.decided_by) });
        }
        passed.egress = Some(verdict.decided_by);
    }
    let ingress = query(Direction::Ingress, destination, source, original.source.ip());
    if let Some(verdict) = rules.ask(&ingress).filter(|_| !is_own_node()) {
        if !verdict.allow {
            return Err(Denied { reason: DropReason::PolicyDeniedIngress, by: Blame::Policy(verdict.decided_by) });
        }
        passed.ingress = Some(verdict.decided_by);
    }
    passed.audited = [rules.audit(&ingress).filter(|_| !is_own_node()), rules.audit(&egress)];
    Ok(passed)
}

/// Whether a node may be sent what is for one of `endpoints`, of which it picks one by itself: unless every one of them
/// would refuse it (design 6). Of many only the first are asked; the node's own policies decide anyway.
///
/// # Errors
/// Who denies it, at the first of them.
#[inline]
pub fn check_node<A: Family>(tables: &Tables, original: &Tuple<A>, endpoints: &[BackendId]) -> Result<Passed, Denied> {
    if tables.policy.is_empty() { Ok(Passed::default()) } else { judge_node(tables, original, endpoints) }
}

#[inline(never)]
fn judge_node<A: Family>(tables: &Tables, original: &Tuple<A>, endpoints: &[BackendId]) -> Result<Passed, Denied> {
    let mut first = None;
    for endpoint in endpoints.iter().take(ENDPOINTS_ASKED_MAX) {
        let row = tables.backends.row(*endpoint);
        let to = row.and_then(|row| Some((A::unmapped(&row.address)?, row.port_for(original.destination_port))));
        let Some(to) = to else { continue };
        match judge(tables, original, to) {
            // Not told whose rule it was: nobody knows which of them the node picks.
            Ok(_) => return Ok(Passed::default()),
            Err(denied) => first = first.or(Some(denied)),
        }
    }
    match first {
        Some(denied) if endpoints.len() <= ENDPOINTS_ASKED_MAX => Err(denied),
        _ => Ok(Passed::default()),
    }
}

/// The same by a node's own row.
///
/// # Errors
/// Who denies it.
pub fn check_node_row<A: Family>(tables: &Tables, original: &Tuple<A>, node: BackendId) -> Result<Passed, Denied> {
    let service = tables.backends.row(node).and_then(|row| tables.services.row(row.service));
    service.map_or(Ok(Passed::default()), |row| check_node(tables, original, &row.cluster.members))
}

/// P-032: whether the address of a pod leads to the node that has this underlay address.
fn lives_on<A: Family>(tables: &Tables, pod: &A, node: &A) -> bool {
    let target = pod.route(tables).map(|row| &row.target);
    let tunnel = if let Some(RouteTarget::Tunnel(tunnel)) = target { tables.tunnels.row(*tunnel) } else { None };
    tunnel.is_some_and(|row| row.underlay == node.mapped())
}

/// P-034: whether an address is among those of a node's pods, and nobody has told of its pod.
fn is_unknown<A: Family>(tables: &Tables, address: &A) -> bool {
    address.pod(tables).is_none()
        && address.route(tables).is_some_and(|row| matches!(row.target, RouteTarget::Tunnel(_)))
}

fn identity<A: Family>(tables: &Tables, address: &A) -> u32 {
    address.pod(tables).map_or(0, |pod| pod.identity)
}

/// The epoch that the entry's `routes_epoch` is compared with: that of routes, and where a pod has begun the flow with a
/// Service also that of the pod as a source.
#[inline(always)]
pub fn ways_epoch<A: Family>(tables: &Tables, entry: &Entry<A>) -> u16 {
    let routes = tables.settings.routes_epoch;
    if entry.is_from_inside() { with_source(tables, routes, entry.original_tuple().source) } else { routes }
}

/// The same of a flow to a Service that is yet to begin with `original`.
pub fn ways_epoch_of<A: Family>(tables: &Tables, original: &Tuple<A>) -> u16 {
    let routes = tables.settings.routes_epoch;
    if original.domain == Domain::Overlay as u8 { with_source(tables, routes, original.source) } else { routes }
}

#[inline]
fn with_source<A: Family>(tables: &Tables, routes: u16, source: A) -> u16 {
    routes.wrapping_add(tables.policy.source_epoch(&source.mapped()))
}
